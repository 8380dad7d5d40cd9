/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backup and restore, both through a copy in memory.
 *
 *   backup    live ──one read transaction──▶ memory ──checked──▶ new file
 *   restore   file ──▶ memory ──migrated, checked──▶ one write transaction on the live
 *
 * So a backup is one state of the database, whatever is written meanwhile, and a
 * damaged database makes no backup; and a restore has read and judged everything
 * before it touches the first row.
 */
#include "store/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Bytes of a database's header: 1 rollback journal, 2 WAL. */
#define HEADER_BYTES 100
#define HEADER_WRITE_VERSION 18
#define HEADER_READ_VERSION 19
#define FORMAT_ROLLBACK 1
#define FORMAT_WAL 2

int memory_open(const char *name, struct store **ret_store, struct vgpu_error *error)
{
    struct store *memory;
    char *path = strdup(name);

    if (!path)
        return error_set(error, ENOMEM, "%s: no memory to read it", name);
    if (sql_open(":memory:", STORE_WRITE, &memory, error) < 0) {
        free(path);
        return -1;
    }
    free(memory->path);
    memory->path = path; /* what messages are about */
    *ret_store = memory;
    return 0;
}

int memory_publish(struct store *memory, const char *path, enum memory_use use,
                   struct vgpu_error *error)
{
    sqlite3_int64 bytes;
    unsigned char *data = sqlite3_serialize(memory->db, "main", &bytes, 0);
    int result;

    if (!data || bytes < HEADER_BYTES) {
        sqlite3_free(data);
        return error_set(error, ENOMEM, "%s: no memory to write it", path);
    }
    data[HEADER_WRITE_VERSION] = data[HEADER_READ_VERSION] =
        use == MEMORY_IN_USE ? FORMAT_WAL : FORMAT_ROLLBACK;
    result = file_publish(path, data, (size_t)bytes, error);
    sqlite3_free(data);
    return result;
}

/* All pages as of one instant. */
static int copy_pages(struct store *source, struct store *memory, struct vgpu_error *error)
{
    sqlite3_backup *backup = sqlite3_backup_init(memory->db, "main", source->db, "main");

    if (!backup)
        return sql_fail(memory, error, "copy it");
    sqlite3_backup_step(backup, -1);
    if (sqlite3_backup_finish(backup) != SQLITE_OK)
        return sql_fail(memory, error, "copy it");
    return 0;
}

int store_backup(struct store *store, const char *path, struct vgpu_error *error)
{
    struct store *memory;
    int result;

    if (store->began)
        return error_set(error, EINVAL, "%s: no backup in the middle of a change", store->path);
    if (memory_open(store->path, &memory, error) < 0)
        return -1;
    result = copy_pages(store, memory, error);
    if (result == 0)
        result = verify_content(memory, error);
    if (result == 0)
        result = memory_publish(memory, path, MEMORY_ALONE, error);
    store_close(memory);
    return result;
}

/* --- restore -------------------------------------------------------------------------- */

static int load_backup(const char *path, struct store *memory, struct vgpu_error *error)
{
    struct store *file;
    struct stat status;
    unsigned version;
    int result;

    if (stat(path, &status) < 0)
        return error_set_errno(error, "%s: cannot read the backup", path);
    /* SQLite would wait at a pipe for ever. */
    if (!S_ISREG(status.st_mode))
        return error_set(error, EINVAL,
                         "%s: expected a file that `vgpu-admin backup` made, and it "
                         "is no regular file",
                         path);
    if (sql_open(path, STORE_READ, &file, error) < 0)
        return -1;
    result = schema_read_version(file, &version, error);
    if (result == 0)
        result = copy_pages(file, memory, error);
    store_close(file);
    if (result == 0 && version < store_schema_version())
        result = schema_migrate(memory, error);
    return result == 0 ? verify_content(memory, error) : -1;
}

static int copy_rows(struct store *store, sqlite3_stmt *from, sqlite3_stmt *to,
                     struct vgpu_error *error)
{
    int columns = sqlite3_column_count(from), row;

    while ((row = sql_step(store, from, error)) == 1) {
        for (int i = 0; i < columns; i++)
            sqlite3_bind_value(to, i + 1, sqlite3_column_value(from, i));
        if (sql_step(store, to, error) < 0)
            return -1;
        sqlite3_reset(to);
    }
    return row;
}

static int copy_table(struct store *memory, struct store *store, const char *select,
                      const char *insert, struct vgpu_error *error)
{
    sqlite3_stmt *from = NULL, *to = NULL;
    int result = -1;

    if (sql_prepare(memory, select, &from, error) == 0 &&
        sql_prepare(store, insert, &to, error) == 0)
        result = copy_rows(store, from, to, error);
    sqlite3_finalize(from);
    sqlite3_finalize(to);
    return result;
}

/* VMs first, while there is no pool that could be full or disabled for them; that each
 * has its pool is checked at the end. */
static int replace_rows(struct store *memory, struct store *store, struct vgpu_error *error)
{
    if (sql_run(store,
                "PRAGMA defer_foreign_keys = ON; DELETE FROM vms; DELETE FROM pools;"
                "DELETE FROM devices;",
                "replace its content", error) < 0)
        return -1;
    if (copy_table(memory, store, "SELECT " VM_COLUMNS " FROM vms",
                   "INSERT INTO vms (" VM_COLUMNS ") VALUES (" VM_MARKS ")", error) < 0)
        return -1;
    fault_point("store_restore");
    if (copy_table(memory, store, "SELECT " POOL_COLUMNS " FROM pools",
                   "INSERT INTO pools (" POOL_COLUMNS ") VALUES (" POOL_MARKS ")", error) < 0)
        return -1;
    return copy_table(
        memory, store, "SELECT name, kind, description, withdrawn FROM devices",
        "INSERT INTO devices (name, kind, description, withdrawn) VALUES (?, ?, ?, ?)", error);
}

/* --- what a restore changes, for the audit ---------------------------------------------- */

enum { KIND_VMS, KIND_POOLS, KIND_DEVICES, KINDS };

static int describe_all(struct store *store, json_t *all[KINDS], struct vgpu_error *error)
{
    return vms_describe(store, &all[KIND_VMS], error) < 0 ||
                   pools_describe(store, &all[KIND_POOLS], error) < 0 ||
                   devices_describe(store, &all[KIND_DEVICES], error) < 0
               ? -1
               : 0;
}

static void forget_all(json_t *all[KINDS])
{
    for (unsigned kind = 0; kind < KINDS; kind++)
        json_decref(all[kind]);
}

/* One row; `before` and `after` may be NULL. */
static int note_row(struct store *store, unsigned kind, const char *key, const json_t *before,
                    const json_t *after, struct vgpu_error *error)
{
    json_t *old = json_copy((json_t *)before), *new = json_copy((json_t *)after);
    const char *pool = json_string_value(json_object_get(after ? after : before, "pool"));
    uint64_t vm_id = 0;

    if (old && new) {
        int changed = event_compare(old, new, error);

        if (changed <= 0)
            return changed;
    }
    if (kind == KIND_VMS)
        text_parse_u64(key, 1, STORE_VM_ID_MAX, &vm_id);
    return event_add(store, (uint32_t)vm_id, 0, pool ? pool[0] : '\0', old, new, error);
}

static int note_kind(struct store *store, unsigned kind, json_t *before, json_t *after,
                     struct vgpu_error *error)
{
    const char *key;
    json_t *row;

    json_object_foreach(before, key, row)
    {
        if (note_row(store, kind, key, row, json_object_get(after, key), error) < 0)
            return -1;
    }
    json_object_foreach(after, key, row)
    {
        if (!json_object_get(before, key) && note_row(store, kind, key, NULL, row, error) < 0)
            return -1;
    }
    return 0;
}

static json_t *count_rows(json_t *const all[KINDS])
{
    return json_pack("{s:I, s:I}", "vms", (json_int_t)json_object_size(all[KIND_VMS]), "pools",
                     (json_int_t)json_object_size(all[KIND_POOLS]));
}

/* One event for the restore, and one for each row that it changed. */
static int note_restore(struct store *store, json_t *before[KINDS], struct vgpu_error *error)
{
    json_t *after[KINDS] = {NULL};
    int result = describe_all(store, after, error);

    if (result == 0)
        result = event_add(store, 0, 0, '\0', count_rows(before), count_rows(after), error);
    for (unsigned kind = 0; kind < KINDS && result == 0; kind++)
        result = note_kind(store, kind, before[kind], after[kind], error);
    forget_all(after);
    return result;
}

static int replace_and_note(struct store *memory, struct store *store, struct vgpu_error *error)
{
    json_t *before[KINDS] = {NULL};
    int result = describe_all(store, before, error);

    if (result == 0)
        result = replace_rows(memory, store, error);
    if (result == 0)
        result = note_restore(store, before, error);
    forget_all(before);
    return result;
}

static int restore_from(struct store *memory, struct store *store, struct vgpu_error *error)
{
    struct scope scope;

    if (scope_begin(store, &scope, error) < 0)
        return -1;
    return scope_end(store, &scope, replace_and_note(memory, store, error), error);
}

int store_restore(struct store *store, const char *path, struct vgpu_error *error)
{
    struct store *memory;
    int result;

    if (store->began)
        return error_set(error, EINVAL, "%s: no restore in the middle of a change", store->path);
    if (memory_open(path, &memory, error) < 0)
        return -1;
    result = load_backup(path, memory, error);
    if (result == 0)
        result = restore_from(memory, store, error);
    store_close(memory);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file: made whole, opened with a look at what it is, verified.
 *
 * WAL: readers see the last commit while a writer works, and never wait.  The files
 * PATH-wal and PATH-shm stay when the last one closes (truncated), so that a reader
 * whom the directory's mode keeps from making them can still open it.
 */
#include "store/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Some changes' worth.  Changes are few and the database is small: so the -wal file
 * never takes the room that the database itself needs. */
#define WAL_PAGES "16"

/* --- make ---------------------------------------------------------------------------- */

static int add_first_pools(struct store *store, struct vgpu_error *error)
{
    static const char ids[] = "AB";

    for (const char *id = ids; *id; id++) {
        struct store_pool pool;

        store_pool_init(&pool);
        pool.id = *id;
        snprintf(pool.name, sizeof(pool.name), "Pool %c", *id);
        text_copy(pool.device, sizeof(pool.device), "cpu");
        if (store_add_pool(store, &pool, error) < 0)
            return -1;
    }
    return 0;
}

int store_create(const char *path, const struct store_actor *actor, struct vgpu_error *error)
{
    struct store *memory, *store;
    struct stat info;
    int result = -1;

    if (lstat(path, &info) == 0)
        return error_set(error, EEXIST, "%s: there is a database already; it stays as it is", path);
    if (memory_open(path, &memory, error) < 0)
        return -1;
    store_set_actor(memory, actor);
    if (schema_create(memory, error) == 0 && add_first_pools(memory, error) == 0)
        result = memory_publish(memory, path, MEMORY_IN_USE, error);
    store_close(memory);
    /* The files next to it: a convenience for readers, each writer makes them too. */
    if (result == 0 && store_open(path, STORE_WRITE, &store, NULL) == 0)
        store_close(store);
    return result;
}

/* --- open ---------------------------------------------------------------------------- */

static int look_at(const char *path, struct vgpu_error *error)
{
    struct stat info;

    if (stat(path, &info) < 0) {
        if (errno == ENOENT)
            return error_set(error, ENOENT,
                             "%s: there is no database; make one with 'vgpu-admin init'", path);
        return error_set_errno(error, "%s: cannot open the database", path);
    }
    if (!S_ISREG(info.st_mode))
        return error_set(error, EINVAL, "%s: expected a database, and it is no regular file", path);
    return 0;
}

/* For good, so only a backup that was put in the place still needs it.  SQLite does not
 * wait here by itself. */
static int use_wal(struct store *store, struct vgpu_error *error)
{
    static const char sql[] = "PRAGMA journal_mode = WAL";
    int count = 0;

    while (sqlite3_exec(store->db, sql, NULL, NULL, NULL) != SQLITE_OK) {
        if ((sqlite3_extended_errcode(store->db) & 0xff) != SQLITE_BUSY ||
            !sql_wait(store, count++))
            return sql_fail(store, error, "make it ready for changes");
    }
    return 0;
}

static int make_writable(struct store *store, struct vgpu_error *error)
{
    if (sqlite3_db_readonly(store->db, "main") == 1)
        return error_set(error, EACCES,
                         "%s: the database cannot be written: run it as root, and see that its "
                         "disk is not mounted read-only",
                         store->path);
    if (use_wal(store, error) < 0)
        return -1;
    return sql_run(store, "PRAGMA wal_autocheckpoint = " WAL_PAGES, "make it ready for changes",
                   error);
}

static int look_into(struct store *store, struct vgpu_error *error)
{
    unsigned version;

    if (schema_read_version(store, &version, error) < 0)
        return -1;
    if (store->access == STORE_WRITE && make_writable(store, error) < 0)
        return -1;
    if (version == store_schema_version())
        return 0;
    if (store->access == STORE_WRITE)
        return schema_migrate(store, error);
    return error_set(error, EPROTO,
                     "%s: its schema has version %u and this program needs %u; 'vgpu-admin init' "
                     "brings it up to date",
                     store->path, version, store_schema_version());
}

/* A reader that has the right to write clears up after a killed writer, as a writer. */
static bool clear_up(const char *path)
{
    struct store *store;
    unsigned version;
    bool clear;

    if (sql_open(path, STORE_WRITE, &store, NULL) < 0)
        return false;
    clear = schema_read_version(store, &version, NULL) == 0;
    store_close(store);
    return clear;
}

static int open_once(const char *path, enum store_access access, struct store **ret_store,
                     struct vgpu_error *error)
{
    struct store *store;

    if (sql_open(path, access, &store, error) < 0)
        return -1;
    if (look_into(store, error) < 0) {
        store_close(store);
        return -1;
    }
    *ret_store = store;
    return 0;
}

int store_open(const char *path, enum store_access access, struct store **ret_store,
               struct vgpu_error *error)
{
    struct vgpu_error first;

    if (look_at(path, error) < 0)
        return -1;
    if (open_once(path, access, ret_store, &first) == 0)
        return 0;
    if (first.code == EUCLEAN && clear_up(path))
        return open_once(path, access, ret_store, error);
    return error_set(error, first.code, "%s", first.message);
}

void store_close(struct store *store)
{
    if (!store)
        return;
    sqlite3_close(store->db); /* rolls back what is open */
    free(store->path);
    free(store);
}

void store_set_actor(struct store *store, const struct store_actor *actor)
{
    text_copy(store->who, sizeof(store->who), actor->who);
    text_copy(store->action, sizeof(store->action), actor->action);
}

/* --- verify -------------------------------------------------------------------------- */

static int verify_pages(struct store *store, struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    char text[200];
    int result;

    if (sql_prepare(store, "PRAGMA integrity_check(1)", &statement, error) < 0)
        return -1;
    result = sql_step(store, statement, error);
    if (result > 0) {
        sql_column_text(statement, 0, text, sizeof(text));
        sql_one_line(text);
        result = strcmp(text, "ok") == 0
                     ? 0
                     : error_set(error, EBADMSG, "%s: it is damaged: %s; put a backup in its place",
                                 store->path, text);
    }
    sqlite3_finalize(statement);
    return result;
}

static int verify_references(struct store *store, struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    int result;

    if (sql_prepare(store, "PRAGMA foreign_key_check", &statement, error) < 0)
        return -1;
    result = sql_step(store, statement, error);
    if (result > 0)
        result = error_set(error, EBADMSG,
                           "%s: row %lld of its table %s names a row of %s that is not there; put "
                           "a backup in its place",
                           store->path, (long long)sqlite3_column_int64(statement, 1),
                           sqlite3_column_text(statement, 0), sqlite3_column_text(statement, 2));
    sqlite3_finalize(statement);
    return result;
}

int verify_content(struct store *store, struct vgpu_error *error)
{
    unsigned version;

    if (schema_read_version(store, &version, error) < 0 || verify_pages(store, error) < 0)
        return -1;
    return verify_references(store, error);
}

int store_verify(struct store *store, struct vgpu_error *error)
{
    return verify_content(store, error) < 0 ? -1 : schema_verify(store, error);
}

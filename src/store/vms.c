/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of VMs.  A change reads the row, changes what it names, judges the result
 * and writes it, all in one write transaction: so changes of different columns by two
 * administrators both last.
 */
#include "store/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Limits stand in VM_COLUMNS in the order of store_limits, behind so many others. */
#define FIRST_LIMIT 5
#define LIMIT_COUNT ((int)STORE_LIMITS)

static const char *const state_words[] = {"active", "quarantined"};

void store_vm_init(struct store_vm *vm)
{
    *vm = (struct store_vm){.pool = STORE_POOL_DEFAULT,
                            .priority = STORE_PRIORITY_DEFAULT,
                            .channels = STORE_CHANNEL_FILE | STORE_CHANNEL_WINDOW,
                            .owner_uid = -1,
                            .owner_gid = -1,
                            .mode = 0700};
}

/* --- rows ----------------------------------------------------------------------------- */

static void read_row(sqlite3_stmt *row, struct store_vm *vm)
{
    char word[16];

    *vm = (struct store_vm){0};
    vm->vm_id = (uint32_t)sqlite3_column_int64(row, 0);
    sql_column_text(row, 1, vm->uuid, sizeof(vm->uuid));
    sql_column_text(row, 2, vm->name, sizeof(vm->name));
    sql_column_text(row, 3, word, sizeof(word));
    vm->pool = word[0];
    vm->priority = (uint8_t)sqlite3_column_int(row, 4);
    for (int i = 0; i < LIMIT_COUNT; i++)
        store_limit_set(&vm->limits, &store_limits[i],
                        (uint32_t)sqlite3_column_int64(row, FIRST_LIMIT + i));
    sql_column_text(row, 15, word, sizeof(word));
    /* A word that nobody knows must not let a VM run. */
    vm->state = strcmp(word, state_words[0]) == 0 ? STORE_VM_ACTIVE : STORE_VM_QUARANTINED;
    sql_column_text(row, 16, vm->reason, sizeof(vm->reason));
    vm->channels = (uint32_t)sqlite3_column_int64(row, 17);
    vm->owner_uid = sqlite3_column_int64(row, 18);
    vm->owner_gid = sqlite3_column_int64(row, 19);
    vm->mode = (uint32_t)sqlite3_column_int64(row, 20);
    vm->created_us = (uint64_t)sqlite3_column_int64(row, 21);
    vm->changed_us = (uint64_t)sqlite3_column_int64(row, 22);
    vm->quarantine_until_us = (uint64_t)sqlite3_column_int64(row, 23);
}

/* `pool` is where the pool's letter lies as a string while the statement runs. */
static void bind_row(sqlite3_stmt *statement, const struct store_vm *vm, char pool[2])
{
    pool[0] = vm->pool;
    pool[1] = '\0';
    sql_bind_number(statement, 1, vm->vm_id);
    sql_bind_text_or_null(statement, 2, vm->uuid);
    sql_bind_text_or_null(statement, 3, vm->name);
    sql_bind_text(statement, 4, pool);
    sql_bind_number(statement, 5, vm->priority);
    for (int i = 0; i < LIMIT_COUNT; i++)
        sql_bind_number(statement, FIRST_LIMIT + 1 + i,
                        store_limit_get(&vm->limits, &store_limits[i]));
    sql_bind_text(statement, 16, state_words[vm->state]);
    sql_bind_text(statement, 17, vm->reason);
    sql_bind_number(statement, 18, vm->channels);
    sql_bind_number(statement, 19, vm->owner_uid);
    sql_bind_number(statement, 20, vm->owner_gid);
    sql_bind_number(statement, 21, vm->mode);
    sql_bind_number(statement, 22, (int64_t)vm->created_us);
    sql_bind_number(statement, 23, (int64_t)vm->changed_us);
    sql_bind_number(statement, 24, (int64_t)vm->quarantine_until_us);
}

static json_t *channels_json(uint32_t channels)
{
    static const char *const names[] = {"file", "window", "xen"};
    json_t *array = json_array();

    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(names); i++) {
        if (channels & (1u << i))
            json_array_append_new(array, json_string(names[i]));
    }
    return array;
}

/* What an event says of a VM; all of it fits STORE_STATE_BYTES. */
static json_t *describe(const struct store_vm *vm)
{
    static const char *const priorities[] = {"low", "medium", "high"};
    char mode[8];
    json_t *object;

    snprintf(mode, sizeof(mode), "%04o", vm->mode & 07777u);
    object =
        json_pack("{s:I, s:s, s:s, s:s#, s:s, s:s, s:s, s:I, s:o, s:I, s:I, s:s}", "vm_id",
                  (json_int_t)vm->vm_id, "uuid", vm->uuid, "name", vm->name, "pool", &vm->pool, 1,
                  "priority", priorities[vm->priority], "state", state_words[vm->state], "reason",
                  vm->reason, "quarantine_until_us", (json_int_t)vm->quarantine_until_us,
                  "channels", channels_json(vm->channels), "owner_uid", (json_int_t)vm->owner_uid,
                  "owner_gid", (json_int_t)vm->owner_gid, "mode", mode);
    for (unsigned i = 0; i < STORE_LIMITS; i++)
        json_object_set_new(object, store_limits[i].name,
                            json_integer(store_limit_get(&vm->limits, &store_limits[i])));
    return object;
}

/* The first row of `sql`, whose ?1 is `text` or, NULL, `number`: 1, 0 without one, -1. */
static int find_row(struct store *store, const char *sql, const char *text, uint32_t number,
                    struct store_vm *ret_vm, struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    int result;

    if (sql_prepare(store, sql, &statement, error) < 0)
        return -1;
    if (text)
        sql_bind_text(statement, 1, text);
    else
        sql_bind_number(statement, 1, number);
    result = sql_step(store, statement, error);
    if (result > 0)
        read_row(statement, ret_vm);
    sqlite3_finalize(statement);
    return result;
}

#define SELECT_VM "SELECT " VM_COLUMNS " FROM vms "

static int find_id(struct store *store, uint32_t vm_id, struct store_vm *ret_vm,
                   struct vgpu_error *error)
{
    return find_row(store, SELECT_VM "WHERE vm_id = ?1", NULL, vm_id, ret_vm, error);
}

/* --- reading --------------------------------------------------------------------------- */

int store_get_vm(struct store *store, uint32_t vm_id, struct store_vm *ret_vm,
                 struct vgpu_error *error)
{
    int found = find_id(store, vm_id, ret_vm, error);

    if (found == 0)
        error_fill(error, ENOENT, "no VM with id %u is registered", vm_id);
    return found > 0 ? 0 : -1;
}

static void no_such_vm(struct store *store, const char *text, struct vgpu_error *error)
{
    struct near near = {.count = 0};
    struct store_vm *vms;
    size_t count;
    char escaped[80], words[256];

    if (store_list_vms(store, &vms, &count, error) < 0)
        return;
    for (size_t i = 0; i < count; i++)
        near_offer(&near, text, vms[i].name);
    free(vms);
    near_words(&near, words, sizeof(words));
    text_escape(escaped, sizeof(escaped), text, strlen(text));
    error_fill(error, ENOENT, "no VM with id, UUID or name '%s' is registered%s%s", escaped, words,
               near.count ? "" : "; 'vgpu-admin list-vms' shows those that are");
}

int store_find_vm(struct store *store, const char *text, struct store_vm *ret_vm,
                  struct vgpu_error *error)
{
    char uuid[STORE_UUID_BYTES];
    uint32_t vm_id;
    int found = 0;

    if (store_check_vm_id(text, &vm_id, NULL) == 0)
        found = find_id(store, vm_id, ret_vm, error);
    if (found == 0 && store_check_uuid(text, uuid, NULL) == 0)
        found = find_row(store, SELECT_VM "WHERE uuid = ?1", uuid, 0, ret_vm, error);
    if (found == 0)
        found = find_row(store, SELECT_VM "WHERE name = ?1", text, 0, ret_vm, error);
    if (found == 0)
        no_such_vm(store, text, error);
    return found > 0 ? 0 : -1;
}

int store_list_vms(struct store *store, struct store_vm **ret_vms, size_t *ret_count,
                   struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    void *vms = NULL;
    size_t count = 0;
    int result;

    if (sql_prepare(store, SELECT_VM "ORDER BY vm_id", &statement, error) < 0)
        return -1;
    while ((result = sql_step(store, statement, error)) == 1) {
        struct store_vm *vm = sql_new_row(&vms, &count, sizeof(*vm));

        if (!vm) {
            result = error_set(error, ENOMEM, "no memory for a list of VMs");
            break;
        }
        read_row(statement, vm);
    }
    sqlite3_finalize(statement);
    if (result < 0) {
        free(vms);
        return -1;
    }
    *ret_vms = vms;
    *ret_count = count;
    return 0;
}

/* --- what is taken --------------------------------------------------------------------- */

static int taken(const struct store_vm *holder, const char *what, const char *value,
                 struct vgpu_error *error)
{
    return error_set(error, EEXIST, "%s %s is taken by VM %u%s%s%s", what, value, holder->vm_id,
                     holder->name[0] ? " ('" : "", holder->name, holder->name[0] ? "')" : "");
}

/* `self` is the id of the VM that is changed, 0 for a new one. */
static int check_free(struct store *store, uint32_t self, const struct store_vm *vm,
                      struct vgpu_error *error)
{
    struct store_vm holder;
    char value[STORE_NAME_BYTES + 2];
    int found;

    found = find_id(store, vm->vm_id, &holder, error);
    snprintf(value, sizeof(value), "%u", vm->vm_id);
    if (found > 0 && holder.vm_id != self)
        return taken(&holder, "VM id", value, error);
    if (found >= 0 && vm->uuid[0]) {
        found = find_row(store, SELECT_VM "WHERE uuid = ?1", vm->uuid, 0, &holder, error);
        if (found > 0 && holder.vm_id != self)
            return taken(&holder, "UUID", vm->uuid, error);
    }
    if (found >= 0 && vm->name[0]) {
        found = find_row(store, SELECT_VM "WHERE name = ?1", vm->name, 0, &holder, error);
        snprintf(value, sizeof(value), "'%s'", vm->name);
        if (found > 0 && holder.vm_id != self)
            return taken(&holder, "name", value, error);
    }
    return found < 0 ? -1 : 0;
}

int store_choose_vm_id(struct store *store, uint32_t *ret_vm_id, struct vgpu_error *error)
{
    /* Without a gap, the usual case, nothing is searched. */
    static const char sql[] =
        "SELECT CASE WHEN (SELECT count(*) FROM vms) = (SELECT coalesce(max(vm_id), 0) FROM vms)"
        " THEN (SELECT coalesce(max(vm_id), 0) + 1 FROM vms)"
        " WHEN NOT EXISTS (SELECT 1 FROM vms WHERE vm_id = 1) THEN 1"
        " ELSE (SELECT vm_id + 1 FROM vms AS low WHERE NOT EXISTS (SELECT 1 FROM vms"
        " WHERE vm_id = low.vm_id + 1) ORDER BY vm_id LIMIT 1) END";
    int64_t number;

    if (sql_number(store, sql, &number, error) < 0)
        return -1;
    if (number > STORE_VM_ID_MAX)
        return error_set(error, ENOSPC, "no VM id is free");
    *ret_vm_id = (uint32_t)number;
    return 0;
}

/* UUIDs are kept in lower case, what belongs to a quarantine only while it lasts. */
static void make_normal(struct store_vm *vm)
{
    char uuid[STORE_UUID_BYTES];

    if (store_check_uuid(vm->uuid, uuid, NULL) == 0)
        memcpy(vm->uuid, uuid, sizeof(uuid));
    if (vm->state == STORE_VM_ACTIVE) {
        vm->reason[0] = '\0';
        vm->quarantine_until_us = 0;
    }
}

int vms_describe(struct store *store, json_t **ret_all, struct vgpu_error *error)
{
    struct store_vm *vms;
    char key[16];
    size_t count;

    if (store_list_vms(store, &vms, &count, error) < 0)
        return -1;
    *ret_all = json_object();
    for (size_t i = 0; i < count; i++) {
        snprintf(key, sizeof(key), "%u", vms[i].vm_id);
        json_object_set_new(*ret_all, key, describe(&vms[i]));
    }
    free(vms);
    return 0;
}

/* --- adding ------------------------------------------------------------------------------ */

static int insert(struct store *store, struct store_vm *vm, struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    char pool[2];

    make_normal(vm);
    if ((vm->vm_id == 0 && store_choose_vm_id(store, &vm->vm_id, error) < 0) ||
        check_vm(vm, error) < 0 || check_free(store, 0, vm, error) < 0 ||
        pool_check_fits(store, NULL, vm, error) < 0 ||
        sql_prepare(store, "INSERT INTO vms (" VM_COLUMNS ") VALUES (" VM_MARKS ")", &statement,
                    error) < 0)
        return -1;
    vm->created_us = vm->changed_us = clock_realtime_ns() / NS_PER_US;
    bind_row(statement, vm, pool);
    if (sql_finish(store, statement, "add the VM", error) < 0)
        return -1;
    fault_point("store_row");
    return event_add(store, vm->vm_id, 0, vm->pool, NULL, describe(vm), error);
}

int store_add_vm(struct store *store, struct store_vm *vm, struct vgpu_error *error)
{
    struct store_vm added = *vm;
    struct scope scope;

    if (scope_begin(store, &scope, error) < 0 ||
        scope_end(store, &scope, insert(store, &added, error), error) < 0)
        return -1;
    *vm = added;
    return 0;
}

/* --- changing ------------------------------------------------------------------------------ */

static void apply(const struct store_vm_change *change, struct store_vm *vm)
{
    const struct store_vm *values = &change->values;
    unsigned fields = change->fields;

    if (fields & STORE_VM_POOL)
        vm->pool = values->pool;
    if (fields & STORE_VM_PRIORITY)
        vm->priority = values->priority;
    if (fields & STORE_VM_NAME)
        memcpy(vm->name, values->name, sizeof(vm->name));
    if (fields & STORE_VM_UUID)
        memcpy(vm->uuid, values->uuid, sizeof(vm->uuid));
    if (fields & STORE_VM_STATE) {
        vm->state = values->state;
        memcpy(vm->reason, values->reason, sizeof(vm->reason));
        vm->quarantine_until_us = values->quarantine_until_us;
    }
    if (fields & STORE_VM_CHANNELS)
        vm->channels = values->channels;
    if (fields & STORE_VM_OWNER) {
        vm->owner_uid = values->owner_uid;
        vm->owner_gid = values->owner_gid;
        vm->mode = values->mode;
    }
    for (unsigned i = 0; i < STORE_LIMITS; i++) {
        if (fields & store_limits[i].field)
            store_limit_set(&vm->limits, &store_limits[i],
                            store_limit_get(&values->limits, &store_limits[i]));
    }
    if (fields & STORE_VM_ID)
        vm->vm_id = values->vm_id;
}

static int update_row(struct store *store, uint32_t vm_id, const struct store_vm *vm,
                      struct vgpu_error *error)
{
    static const char sql[] =
        "UPDATE vms SET vm_id = ?1, uuid = ?2, name = ?3, pool = ?4, priority = ?5,"
        " sessions_max = ?6, device_memory_mib = ?7, operation_limit_ms = ?8, weight = ?9,"
        " request_rate = ?10, request_burst = ?11, device_share_percent = ?12,"
        " queue_depth_max = ?13, inflight_ops_max = ?14, inflight_kib_max = ?15, state = ?16,"
        " reason = ?17, channels = ?18, owner_uid = ?19, owner_gid = ?20, mode = ?21,"
        " created_us = ?22, changed_us = ?23, quarantine_until_us = ?24 WHERE vm_id = ?25";
    sqlite3_stmt *statement;
    char pool[2];

    if (sql_prepare(store, sql, &statement, error) < 0)
        return -1;
    bind_row(statement, vm, pool);
    sql_bind_number(statement, 25, vm_id);
    return sql_finish(store, statement, "change the VM", error);
}

static int write_change(struct store *store, const struct store_vm *before,
                        const struct store_vm *after, struct vgpu_error *error)
{
    if (check_free(store, before->vm_id, after, error) < 0 ||
        pool_check_fits(store, before, after, error) < 0)
        return -1;
    return update_row(store, before->vm_id, after, error);
}

/* What is as it was is no change: no row is written and no event is made. */
static int update(struct store *store, const struct store_vm *before, struct store_vm *after,
                  struct vgpu_error *error)
{
    json_t *old, *new;
    int changed;

    make_normal(after);
    if (check_vm(after, error) < 0)
        return -1;
    changed = event_compare(old = describe(before), new = describe(after), error);
    if (changed <= 0)
        return changed;
    after->changed_us = clock_realtime_ns() / NS_PER_US;
    if (write_change(store, before, after, error) < 0) {
        json_decref(old);
        json_decref(new);
        return -1;
    }
    fault_point("store_row");
    return event_add(store, before->vm_id, after->vm_id != before->vm_id ? after->vm_id : 0,
                     after->pool, old, new, error);
}

static int read_and_update(struct store *store, uint32_t vm_id,
                           const struct store_vm_change *change, struct store_vm *before,
                           struct store_vm *after, struct vgpu_error *error)
{
    if (store_get_vm(store, vm_id, before, error) < 0)
        return -1;
    *after = *before;
    apply(change, after);
    return update(store, before, after, error);
}

int store_change_vm(struct store *store, uint32_t vm_id, const struct store_vm_change *change,
                    struct store_vm *ret_before, struct store_vm *ret_after,
                    struct vgpu_error *error)
{
    struct store_vm before, after;
    struct scope scope;
    int result;

    if (scope_begin(store, &scope, error) < 0)
        return -1;
    result = read_and_update(store, vm_id, change, &before, &after, error);
    if (scope_end(store, &scope, result, error) < 0)
        return -1;
    if (ret_before)
        *ret_before = before;
    if (ret_after)
        *ret_after = after;
    return 0;
}

/* --- removing ------------------------------------------------------------------------------ */

static int remove_row(struct store *store, uint32_t vm_id, struct store_vm *before,
                      struct vgpu_error *error)
{
    sqlite3_stmt *statement;

    if (store_get_vm(store, vm_id, before, error) < 0 ||
        sql_prepare(store, "DELETE FROM vms WHERE vm_id = ?1", &statement, error) < 0)
        return -1;
    sql_bind_number(statement, 1, vm_id);
    if (sql_finish(store, statement, "remove the VM", error) < 0)
        return -1;
    fault_point("store_row");
    return event_add(store, vm_id, 0, before->pool, describe(before), NULL, error);
}

int store_remove_vm(struct store *store, uint32_t vm_id, struct store_vm *ret_before,
                    struct vgpu_error *error)
{
    struct store_vm before;
    struct scope scope;
    int result;

    if (scope_begin(store, &scope, error) < 0)
        return -1;
    result = remove_row(store, vm_id, &before, error);
    if (scope_end(store, &scope, result, error) < 0)
        return -1;
    if (ret_before)
        *ret_before = before;
    return 0;
}

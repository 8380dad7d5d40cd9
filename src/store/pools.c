/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of pools, and what a pool says to a VM that wants to join it.  A pool
 * that bounds its device memory takes only VMs that have a limit themselves: without
 * one there would be nothing to add up.
 */
#include "store/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const sharing_words[] = {"shared", "independent"};
static const char *const placement_words[] = {"spread", "pack"};
static const char *const policy_words[] = {"", "strict", "wfq", "fifo", "round-robin"};

const char *store_policy_name(enum store_policy policy)
{
    return policy == STORE_POLICY_DEFAULT ? "default" : policy_words[policy];
}

static enum store_policy policy_of(const char *word)
{
    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(policy_words); i++) {
        if (strcmp(word, policy_words[i]) == 0)
            return (enum store_policy)i;
    }
    return STORE_POLICY_DEFAULT;
}

void store_pool_init(struct store_pool *pool)
{
    *pool = (struct store_pool){.enabled = true, .sharing = STORE_SHARED, .session_devices = 1};
}

/* --- rows ----------------------------------------------------------------------------- */

#define SELECT_POOL                                                                                \
    "SELECT " POOL_COLUMNS ", (SELECT count(*) FROM vms WHERE pool = pools.id) FROM pools "

static void read_row(sqlite3_stmt *row, struct store_pool *pool)
{
    char word[16], more[STORE_POOL_DEVICE_BYTES];
    size_t used;

    *pool = (struct store_pool){0};
    sql_column_text(row, 0, word, sizeof(word));
    pool->id = word[0];
    sql_column_text(row, 1, pool->name, sizeof(pool->name));
    sql_column_text(row, 2, pool->description, sizeof(pool->description));
    pool->enabled = sqlite3_column_int(row, 3) == 1;
    sql_column_text(row, 4, word, sizeof(word));
    pool->sharing = strcmp(word, sharing_words[1]) == 0 ? STORE_INDEPENDENT : STORE_SHARED;
    sql_column_text(row, 5, pool->device, sizeof(pool->device));
    pool->vms_max = (uint32_t)sqlite3_column_int64(row, 6);
    pool->device_memory_max_mib = (uint64_t)sqlite3_column_int64(row, 7);
    used = strlen(pool->device);
    sql_column_text(row, 8, more, sizeof(more));
    if (more[0])
        snprintf(pool->device + used, sizeof(pool->device) - used, " %s", more);
    sql_column_text(row, 9, word, sizeof(word));
    pool->pack = strcmp(word, placement_words[1]) == 0;
    pool->session_devices = (uint32_t)sqlite3_column_int64(row, 10);
    sql_column_text(row, 11, word, sizeof(word));
    pool->policy = policy_of(word);
    pool->aging_ms = (uint32_t)sqlite3_column_int64(row, 12);
    pool->demand = sqlite3_column_int(row, 13) == 1;
    pool->vm_count = (uint32_t)sqlite3_column_int64(row, 14);
}

/* What bind_row() binds lives as long as the statement. */
struct texts {
    char id[2];
    char device[STORE_DEVICE_BYTES];
};

static void bind_row(sqlite3_stmt *statement, const struct store_pool *pool, struct texts *texts)
{
    const char *space = strchr(pool->device, ' ');
    char *id = texts->id;

    text_copy(texts->device, sizeof(texts->device), pool->device);
    if (space && (size_t)(space - pool->device) < sizeof(texts->device))
        texts->device[space - pool->device] = '\0';
    id[0] = pool->id;
    id[1] = '\0';
    sql_bind_text(statement, 1, id);
    sql_bind_text(statement, 2, pool->name);
    sql_bind_text(statement, 3, pool->description);
    sql_bind_number(statement, 4, pool->enabled);
    sql_bind_text(statement, 5, sharing_words[pool->sharing]);
    sql_bind_text_or_null(statement, 6, texts->device);
    sql_bind_number(statement, 7, pool->vms_max);
    sql_bind_number(statement, 8, (int64_t)pool->device_memory_max_mib);
    sql_bind_text(statement, 9, space ? space + 1 : "");
    sql_bind_text(statement, 10, placement_words[pool->pack]);
    sql_bind_number(statement, 11, pool->session_devices);
    sql_bind_text(statement, 12, policy_words[pool->policy]);
    sql_bind_number(statement, 13, pool->aging_ms);
    sql_bind_number(statement, 14, pool->demand);
}

static json_t *describe(const struct store_pool *pool)
{
    return json_pack("{s:s#, s:s, s:s, s:b, s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:I, s:b}", "pool",
                     &pool->id, 1, "name", pool->name, "description", pool->description, "enabled",
                     pool->enabled, "sharing", sharing_words[pool->sharing], "device", pool->device,
                     "placement", placement_words[pool->pack], "session_devices",
                     (json_int_t)pool->session_devices, "vms_max", (json_int_t)pool->vms_max,
                     "device_memory_max_mib", (json_int_t)pool->device_memory_max_mib, "policy",
                     store_policy_name(pool->policy), "aging_ms", (json_int_t)pool->aging_ms,
                     "demand", pool->demand);
}

static int find_row(struct store *store, const char *sql, const char *text,
                    struct store_pool *ret_pool, struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    int result;

    if (sql_prepare(store, sql, &statement, error) < 0)
        return -1;
    sql_bind_text(statement, 1, text);
    result = sql_step(store, statement, error);
    if (result > 0)
        read_row(statement, ret_pool);
    sqlite3_finalize(statement);
    return result;
}

/* --- reading --------------------------------------------------------------------------- */

static void no_such_pool(struct store *store, const char *text, struct vgpu_error *error)
{
    struct store_pool *pools;
    size_t count, used = 0;
    char escaped[80], known[300] = "";

    if (store_list_pools(store, &pools, &count, error) < 0)
        return;
    for (size_t i = 0; i < count && used < sizeof(known); i++)
        used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%c ('%s')", i ? ", " : "",
                                 pools[i].id, pools[i].name);
    free(pools);
    text_escape(escaped, sizeof(escaped), text, strlen(text));
    error_fill(error, ENOENT, "no pool '%s'; there are: %s", escaped, count ? known : "none");
}

int pool_get(struct store *store, char id, struct store_pool *ret_pool, struct vgpu_error *error)
{
    char text[] = {id, '\0'};
    int found = find_row(store, SELECT_POOL "WHERE id = ?1", text, ret_pool, error);

    if (found == 0)
        no_such_pool(store, text, error);
    return found > 0 ? 0 : -1;
}

int store_find_pool(struct store *store, const char *text, struct store_pool *ret_pool,
                    struct vgpu_error *error)
{
    int found = find_row(store, SELECT_POOL "WHERE id = ?1", text, ret_pool, error);

    if (found == 0)
        found = find_row(store, SELECT_POOL "WHERE name = ?1", text, ret_pool, error);
    if (found == 0)
        no_such_pool(store, text, error);
    return found > 0 ? 0 : -1;
}

int store_list_pools(struct store *store, struct store_pool **ret_pools, size_t *ret_count,
                     struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    void *pools = NULL;
    size_t count = 0;
    int result;

    if (sql_prepare(store, SELECT_POOL "ORDER BY id", &statement, error) < 0)
        return -1;
    while ((result = sql_step(store, statement, error)) == 1) {
        struct store_pool *pool = sql_new_row(&pools, &count, sizeof(*pool));

        if (!pool) {
            result = error_set(error, ENOMEM, "no memory for a list of pools");
            break;
        }
        read_row(statement, pool);
    }
    sqlite3_finalize(statement);
    if (result < 0) {
        free(pools);
        return -1;
    }
    *ret_pools = pools;
    *ret_count = count;
    return 0;
}

int pools_describe(struct store *store, json_t **ret_all, struct vgpu_error *error)
{
    struct store_pool *pools;
    size_t count;

    if (store_list_pools(store, &pools, &count, error) < 0)
        return -1;
    *ret_all = json_object();
    for (size_t i = 0; i < count; i++)
        json_object_set_new(*ret_all, (const char[]){pools[i].id, '\0'}, describe(&pools[i]));
    free(pools);
    return 0;
}

/* --- does a VM fit? ---------------------------------------------------------------------- */

/* The device memory that the VMs of a pool have been promised, without `except`. */
static int promised_mib(struct store *store, char pool, uint32_t except, uint64_t *ret_mib,
                        struct vgpu_error *error)
{
    char text[] = {pool, '\0'};
    sqlite3_stmt *statement;
    int result;

    if (sql_prepare(store,
                    "SELECT coalesce(sum(device_memory_mib), 0) FROM vms WHERE pool = ?1"
                    " AND vm_id <> ?2",
                    &statement, error) < 0)
        return -1;
    sql_bind_text(statement, 1, text);
    sql_bind_number(statement, 2, except);
    result = sql_step(store, statement, error);
    if (result > 0)
        *ret_mib = (uint64_t)sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return result < 0 ? -1 : 0;
}

static int check_memory_fits(struct store *store, const struct store_pool *pool,
                             const struct store_vm *vm, uint32_t except, struct vgpu_error *error)
{
    uint64_t promised = 0;

    if (pool->device_memory_max_mib == 0)
        return 0;
    if (vm->limits.device_memory_mib == 0)
        return error_set(error, EINVAL,
                         "pool %c gives out %llu MiB of device memory in all, so each of its VMs "
                         "needs a limit of its own (device_memory_mib)",
                         pool->id, (unsigned long long)pool->device_memory_max_mib);
    if (promised_mib(store, pool->id, except, &promised, error) < 0)
        return -1;
    if (promised + vm->limits.device_memory_mib > pool->device_memory_max_mib)
        return error_set(error, EINVAL,
                         "pool %c gives out %llu MiB of device memory in all, its other VMs have "
                         "%llu MiB of it: %u MiB are too much",
                         pool->id, (unsigned long long)pool->device_memory_max_mib,
                         (unsigned long long)promised, vm->limits.device_memory_mib);
    return 0;
}

int pool_check_fits(struct store *store, const struct store_vm *before,
                    const struct store_vm *after, struct vgpu_error *error)
{
    struct store_pool pool;
    bool joins = !before || before->pool != after->pool;

    if (pool_get(store, after->pool, &pool, error) < 0)
        return -1;
    if (joins && !pool.enabled)
        return error_set(error, EINVAL,
                         "pool %c ('%s') is disabled: no VM can join it; enable it first or choose "
                         "another",
                         pool.id, pool.name);
    if (joins && pool.vms_max && pool.vm_count >= pool.vms_max)
        return error_set(error, EINVAL,
                         "pool %c ('%s') is full: it has %u VMs and takes at most %u; raise its "
                         "vms_max or choose another",
                         pool.id, pool.name, pool.vm_count, pool.vms_max);
    return check_memory_fits(store, &pool, after, before ? before->vm_id : 0, error);
}

/* --- what a pool may be -------------------------------------------------------------------- */

static int check_name_free(struct store *store, const struct store_pool *pool,
                           struct vgpu_error *error)
{
    struct store_pool holder;
    int found = find_row(store, SELECT_POOL "WHERE name = ?1", pool->name, &holder, error);

    if (found > 0 && holder.id != pool->id)
        return error_set(error, EEXIST, "name '%s' is taken by pool %c", pool->name, holder.id);
    return found < 0 ? -1 : 0;
}

static int check_one_known(struct store *store, const char *name, struct vgpu_error *error)
{
    struct store_device *devices;
    size_t count, used = 0;
    char known[256] = "none";
    bool found = false;

    if (store_list_devices(store, &devices, &count, error) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        found = found || strcmp(devices[i].name, name) == 0;
        if (used < sizeof(known))
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "",
                                     devices[i].name);
    }
    free(devices);
    if (!found)
        return error_set(error, ENOENT, "no device '%s'; there are: %s", name, known);
    return 0;
}

static int check_device_known(struct store *store, const char *devices, struct vgpu_error *error)
{
    char text[STORE_POOL_DEVICE_BYTES], *rest = text, *name;

    text_copy(text, sizeof(text), devices);
    while ((name = strtok_r(rest, " ", &rest))) {
        if (check_one_known(store, name, error) < 0)
            return -1;
    }
    return 0;
}

/* A bound below what the pool's VMs have already. */
static int check_holds_its_vms(struct store *store, const struct store_pool *pool,
                               struct vgpu_error *error)
{
    char text[] = {pool->id, '\0'};
    uint64_t promised = 0;
    sqlite3_stmt *statement;
    int64_t vm_id = 0;
    int result;

    if (pool->vms_max && pool->vms_max < pool->vm_count)
        return error_set(error, EINVAL, "pool %c has %u VMs: vms_max %u is too small", pool->id,
                         pool->vm_count, pool->vms_max);
    if (pool->device_memory_max_mib == 0)
        return 0;
    if (promised_mib(store, pool->id, 0, &promised, error) < 0 ||
        sql_prepare(store, "SELECT min(vm_id) FROM vms WHERE pool = ?1 AND device_memory_mib = 0",
                    &statement, error) < 0)
        return -1;
    sql_bind_text(statement, 1, text);
    result = sql_step(store, statement, error);
    if (result > 0)
        vm_id = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    if (result < 0)
        return -1;
    if (vm_id)
        return error_set(error, EINVAL,
                         "pool %c can bound its device memory when each of its VMs has a limit of "
                         "its own (device_memory_mib); VM %lld has none",
                         pool->id, (long long)vm_id);
    if (promised > pool->device_memory_max_mib)
        return error_set(error, EINVAL,
                         "the VMs of pool %c have %llu MiB of device memory: "
                         "device_memory_max_mib %llu is too small",
                         pool->id, (unsigned long long)promised,
                         (unsigned long long)pool->device_memory_max_mib);
    return 0;
}

static int check_pool_row(struct store *store, const struct store_pool *pool,
                          struct vgpu_error *error)
{
    if (check_pool(pool, error) < 0 || check_name_free(store, pool, error) < 0 ||
        check_device_known(store, pool->device, error) < 0)
        return -1;
    return check_holds_its_vms(store, pool, error);
}

/* --- adding, changing, removing ----------------------------------------------------------- */

static int insert(struct store *store, const struct store_pool *new_pool, struct vgpu_error *error)
{
    struct store_pool pool = *new_pool, holder;
    struct texts texts;
    sqlite3_stmt *statement;
    char id[] = {pool.id, '\0'};
    int found;

    pool.vm_count = 0;
    if (check_pool_row(store, &pool, error) < 0)
        return -1;
    found = find_row(store, SELECT_POOL "WHERE id = ?1", id, &holder, error);
    if (found > 0)
        return error_set(error, EEXIST, "pool %c is there already ('%s')", pool.id, holder.name);
    if (found < 0 ||
        sql_prepare(store, "INSERT INTO pools (" POOL_COLUMNS ") VALUES (" POOL_MARKS ")",
                    &statement, error) < 0)
        return -1;
    bind_row(statement, &pool, &texts);
    if (sql_finish(store, statement, "add the pool", error) < 0)
        return -1;
    return event_add(store, 0, 0, pool.id, NULL, describe(&pool), error);
}

int store_add_pool(struct store *store, const struct store_pool *pool, struct vgpu_error *error)
{
    struct scope scope;

    if (scope_begin(store, &scope, error) < 0)
        return -1;
    return scope_end(store, &scope, insert(store, pool, error), error);
}

static void apply(const struct store_pool_change *change, struct store_pool *pool)
{
    const struct store_pool *values = &change->values;
    unsigned fields = change->fields;

    if (fields & STORE_POOL_NAME)
        memcpy(pool->name, values->name, sizeof(pool->name));
    if (fields & STORE_POOL_DESCRIPTION)
        memcpy(pool->description, values->description, sizeof(pool->description));
    if (fields & STORE_POOL_ENABLED)
        pool->enabled = values->enabled;
    if (fields & STORE_POOL_SHARING)
        pool->sharing = values->sharing;
    if (fields & STORE_POOL_DEVICE)
        memcpy(pool->device, values->device, sizeof(pool->device));
    if (fields & STORE_POOL_PLACEMENT)
        pool->pack = values->pack;
    if (fields & STORE_POOL_SESSION_DEVICES)
        pool->session_devices = values->session_devices;
    if (fields & STORE_POOL_VMS_MAX)
        pool->vms_max = values->vms_max;
    if (fields & STORE_POOL_DEVICE_MEMORY)
        pool->device_memory_max_mib = values->device_memory_max_mib;
    if (fields & STORE_POOL_POLICY)
        pool->policy = values->policy;
    if (fields & STORE_POOL_AGING)
        pool->aging_ms = values->aging_ms;
    if (fields & STORE_POOL_DEMAND)
        pool->demand = values->demand;
}

static int update_row(struct store *store, const struct store_pool *pool, struct vgpu_error *error)
{
    static const char sql[] =
        "UPDATE pools SET name = ?2, description = ?3, enabled = ?4, sharing = ?5, device = ?6,"
        " vms_max = ?7, device_memory_max_mib = ?8, more_devices = ?9, placement = ?10,"
        " session_devices = ?11, policy = ?12, aging_ms = ?13, demand = ?14 WHERE id = ?1";
    sqlite3_stmt *statement;
    struct texts texts;

    if (sql_prepare(store, sql, &statement, error) < 0)
        return -1;
    bind_row(statement, pool, &texts);
    return sql_finish(store, statement, "change the pool", error);
}

static int read_and_update(struct store *store, char id, const struct store_pool_change *change,
                           struct store_pool *before, struct store_pool *after,
                           struct vgpu_error *error)
{
    json_t *old, *new;
    int changed;

    if (pool_get(store, id, before, error) < 0)
        return -1;
    *after = *before;
    apply(change, after);
    if (check_pool_row(store, after, error) < 0)
        return -1;
    changed = event_compare(old = describe(before), new = describe(after), error);
    if (changed <= 0)
        return changed;
    if (update_row(store, after, error) < 0) {
        json_decref(old);
        json_decref(new);
        return -1;
    }
    return event_add(store, 0, 0, id, old, new, error);
}

int store_change_pool(struct store *store, char id, const struct store_pool_change *change,
                      struct store_pool *ret_before, struct store_pool *ret_after,
                      struct vgpu_error *error)
{
    struct store_pool before, after;
    struct scope scope;
    int result;

    if (scope_begin(store, &scope, error) < 0)
        return -1;
    result = read_and_update(store, id, change, &before, &after, error);
    if (scope_end(store, &scope, result, error) < 0)
        return -1;
    if (ret_before)
        *ret_before = before;
    if (ret_after)
        *ret_after = after;
    return 0;
}

static int remove_row(struct store *store, char id, struct vgpu_error *error)
{
    struct store_pool pool;
    sqlite3_stmt *statement;
    char text[] = {id, '\0'};
    int64_t pools;

    if (pool_get(store, id, &pool, error) < 0 ||
        sql_number(store, "SELECT count(*) FROM pools", &pools, error) < 0)
        return -1;
    if (pool.vm_count)
        return error_set(error, EINVAL, "pool %c has %u VMs; move them to another pool first", id,
                         pool.vm_count);
    if (pools == 1)
        return error_set(error, EINVAL, "pool %c is the last one; a VM must have one to be in", id);
    if (sql_prepare(store, "DELETE FROM pools WHERE id = ?1", &statement, error) < 0)
        return -1;
    sql_bind_text(statement, 1, text);
    if (sql_finish(store, statement, "remove the pool", error) < 0)
        return -1;
    return event_add(store, 0, 0, id, describe(&pool), NULL, error);
}

int store_remove_pool(struct store *store, char id, struct vgpu_error *error)
{
    struct scope scope;

    if (scope_begin(store, &scope, error) < 0)
        return -1;
    return scope_end(store, &scope, remove_row(store, id, error), error);
}

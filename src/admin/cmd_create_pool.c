/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin create-pool: a new pool, empty. */
#include "admin/commands.h"

#include "admin/pool_options.h"

#include <stdio.h>
#include <string.h>

/* What the options name, over the defaults. */
static void complete_pool(const struct store_pool_change *change, struct store_pool *pool)
{
    const struct store_pool *values = &change->values;

    if (change->fields & STORE_POOL_NAME)
        text_copy(pool->name, sizeof(pool->name), values->name);
    else
        snprintf(pool->name, sizeof(pool->name), "Pool %c", pool->id);
    text_copy(pool->description, sizeof(pool->description), values->description);
    if (change->fields & STORE_POOL_ENABLED)
        pool->enabled = values->enabled;
    if (change->fields & STORE_POOL_SHARING)
        pool->sharing = values->sharing;
    pool->pack = values->pack;
    if (change->fields & STORE_POOL_SESSION_DEVICES)
        pool->session_devices = values->session_devices;
    pool->policy = values->policy;
    pool->aging_ms = values->aging_ms;
    pool->demand = values->demand;
    if (change->fields & STORE_POOL_DEVICE)
        text_copy(pool->device, sizeof(pool->device), values->device);
    pool->vms_max = values->vms_max;
    pool->device_memory_max_mib = values->device_memory_max_mib;
}

static int add_inside(struct store *store, const struct pool_change *change,
                      struct store_pool *pool, struct vgpu_error *error)
{
    if (put_devices(store, change, error) < 0)
        return -1;
    return store_add_pool(store, pool, error);
}

static int add_whole(struct store *store, const struct pool_change *change, struct store_pool *pool,
                     struct vgpu_error *error)
{
    if (store_begin(store, error) < 0)
        return -1;
    if (add_inside(store, change, pool, error) < 0 || store_commit(store, error) < 0) {
        store_rollback(store);
        return -1;
    }
    return 0;
}

int cmd_create_pool(struct admin *admin, int argc, char **argv)
{
    struct pool_options input = {.admin = admin};
    int result = admin_parse(admin, &pool_options_argp, argc, argv, &input);
    struct vgpu_error error;
    struct store_pool pool;
    struct store *store;
    char sentence[STORE_POOL_DEVICE_BYTES + 64];

    if (result)
        return result;
    store_pool_init(&pool);
    if (store_check_pool_id(admin->words[0], &pool.id, &error) < 0)
        return admin_fail(admin, &error);
    complete_pool(&input.change.store, &pool);
    if (admin_open_store(admin, STORE_WRITE, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = add_whole(store, &input.change, &pool, &error);
    store_close(store);
    if (result < 0)
        return live_fail(admin, &error);
    if (live_apply(admin, &error) < 0)
        return admin_fail_applied(admin, &error);
    snprintf(sentence, sizeof(sentence), "Pool %c is made, on %s", pool.id,
             pool.device[0] ? pool.device : "no device yet (vgpu-admin bind-device)");
    change_answer(admin, json_pack("{s:o}", "pool", output_pool(&pool)), sentence);
    return ADMIN_OK;
}

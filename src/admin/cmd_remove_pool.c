/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin remove-pool: only an empty one, and never the last. */
#include "admin/commands.h"

#include <stdio.h>

static int remove_whole(struct admin *admin, struct store *store, struct store_pool *ret_pool,
                        struct vgpu_error *error)
{
    if (store_begin(store, error) < 0)
        return -1;
    if (store_find_pool(store, admin->words[0], ret_pool, error) < 0 ||
        store_remove_pool(store, ret_pool->id, error) < 0 || store_commit(store, error) < 0) {
        store_rollback(store);
        return -1;
    }
    return 0;
}

int cmd_remove_pool(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct store_pool pool = {0};
    struct vgpu_error error;
    struct store *store;
    char sentence[64];

    if (result)
        return result;
    if (admin_open_store(admin, STORE_WRITE, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = remove_whole(admin, store, &pool, &error);
    store_close(store);
    if (result < 0)
        return live_fail(admin, &error);
    if (live_apply(admin, &error) < 0)
        return admin_fail_applied(admin, &error);
    snprintf(sentence, sizeof(sentence), "Pool %c is removed", pool.id);
    change_answer(admin, json_pack("{s:o}", "pool", output_pool(&pool)), sentence);
    return ADMIN_OK;
}

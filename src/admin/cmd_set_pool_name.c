/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin set-pool-name */
#include "admin/commands.h"

int cmd_set_pool_name(struct admin *admin, int argc, char **argv)
{
    struct pool_change change = {.store.fields = STORE_POOL_NAME};
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;

    if (result)
        return result;
    if (store_check_name(admin->words[1], &error) < 0)
        return admin_fail(admin, &error);
    text_copy(change.store.values.name, STORE_NAME_BYTES, admin->words[1]);
    return change_pool(admin, &change);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin set-pool: another pool, for requests that wait as well. */
#include "admin/commands.h"

int cmd_set_pool(struct admin *admin, int argc, char **argv)
{
    struct vm_change change = {0};
    int result = admin_parse(admin, NULL, argc, argv, NULL);

    if (result)
        return result;
    change.pool = admin->words[1];
    return change_vm(admin, &change);
}

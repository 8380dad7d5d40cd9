/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin set-priority: for requests that wait as well. */
#include "admin/commands.h"

int cmd_set_priority(struct admin *admin, int argc, char **argv)
{
    struct vm_change change = {.store.fields = STORE_VM_PRIORITY};
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;

    if (result)
        return result;
    if (store_check_priority(admin->words[1], &change.store.values.priority, &error) < 0)
        return admin_fail(admin, &error);
    return change_vm(admin, &change);
}

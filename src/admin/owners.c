/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner of a VM under Xen, where nobody names one.
 *
 * A session's broker becomes the owner of the VM's socket, and never root: without an
 * owner there is no session, and with another VM's each could reach the other's
 * socket.  So the VM gets a number of its own, its number above xen_owner_base, or the
 * next that no VM has.  It stays when the VM's number changes.
 *
 *        1000  people           65536  containers and their users, to 1879048191
 *       61184  systemd's own   200000  domains' users (SSSD, winbind), to 2000200000
 *       65534  nobody      2147352576  foreign files of systemd, then nobody's
 */
#include "admin/admin.h"

#include <errno.h>
#include <stdlib.h>

bool owner_is_needed(const struct admin *admin)
{
    return toolstack_is_xen(admin->toolstack_name[0] ? admin->toolstack_name : NULL, admin->uri);
}

static bool is_taken(const struct store_vm *vms, size_t count, uint32_t but_vm_id, int64_t id)
{
    for (size_t i = 0; i < count; i++) {
        if (vms[i].vm_id != but_vm_id && (vms[i].owner_uid == id || vms[i].owner_gid == id))
            return true;
    }
    return false;
}

static int choose_owner(const struct admin *admin, struct store *store, uint32_t vm_id,
                        int64_t *ret_id, struct vgpu_error *error)
{
    int64_t id = (int64_t)admin->xen_owner_base + vm_id;
    struct store_vm *vms;
    size_t count;

    if (store_list_vms(store, &vms, &count, error) < 0)
        return -1;
    while (is_taken(vms, count, vm_id, id))
        id++;
    free(vms);
    if (id > ADMIN_OWNER_MAX)
        return error_set(error, ERANGE,
                         "VM %u under Xen has no default owner: %lld (xen_owner_base %u and its "
                         "number) is above %u, the last that no system uses; name one with "
                         "--owner, or give it a smaller number",
                         vm_id, (long long)id, admin->xen_owner_base, ADMIN_OWNER_MAX);
    *ret_id = id;
    return 0;
}

int owner_complete(const struct admin *admin, struct store *store, struct store_vm *vm,
                   struct vgpu_error *error)
{
    int64_t id;

    if (vm->owner_uid >= 0 || !owner_is_needed(admin))
        return 0;
    if (vm->vm_id == 0 && store_choose_vm_id(store, &vm->vm_id, error) < 0)
        return -1;
    if (choose_owner(admin, store, vm->vm_id, &id, error) < 0)
        return -1;
    vm->owner_uid = vm->owner_gid = id;
    return 0;
}

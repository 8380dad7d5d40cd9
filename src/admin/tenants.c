/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What keeps one VM's files from another: an owner of its own for its directory, and
 * an address of its own for its export.  Two VMs that share either can read each
 * other's requests and answers, so that is refused unless somebody means it (--force).
 * Under Xen the owner is also whom its sessions' brokers run as, who can reach its socket.
 */
#include "admin/exports.h"

#include <dirent.h>
#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OWNERS_FROM 100000 /* what the guide gives VMs: this and their number */

static bool has_directory(const struct admin *admin, const struct store_vm *vm)
{
    return admin->share[0] && (vm->channels & STORE_CHANNEL_FILE);
}

static bool has_own_user(const struct admin *admin, const struct store_vm *vm)
{
    return has_directory(admin, vm) ||
           ((vm->channels & STORE_CHANNEL_WINDOW) && owner_is_needed(admin));
}

/* --- the owner --------------------------------------------------------------------------- */

static const struct store_vm *find_owned(const struct admin *admin, const struct store_vm *vms,
                                         size_t count, uint32_t but_vm_id, int64_t uid)
{
    for (size_t i = 0; i < count; i++) {
        if (vms[i].vm_id != but_vm_id && vms[i].owner_uid == uid && has_own_user(admin, &vms[i]))
            return &vms[i];
    }
    return NULL;
}

static int64_t proposal_for(const struct admin *admin, const struct store_vm *vm)
{
    return (owner_is_needed(admin) ? (int64_t)admin->xen_owner_base : OWNERS_FROM) + vm->vm_id;
}

static int refuse_owner(const struct admin *admin, const struct store_vm *vms, size_t count,
                        const struct store_vm *vm, const struct store_vm *other,
                        struct vgpu_error *error)
{
    int64_t proposal = proposal_for(admin, vm);
    char name[STORE_NAME_BYTES + 32];

    while (find_owned(admin, vms, count, vm->vm_id, proposal))
        proposal++;
    output_vm_name(other, name, sizeof(name));
    return error_set(error, EEXIST,
                     "owner %lld is that of %s already, and each could reach the other's files "
                     "and sessions: choose a number that nobody has, as --owner %lld, or say "
                     "--force",
                     (long long)vm->owner_uid, name, (long long)proposal);
}

/* Who may signal and trace the workers of all VMs. */
static int check_not_workers(const struct admin *admin, const struct store_vm *vm,
                             struct vgpu_error *error)
{
    const struct passwd *user = getpwnam(admin->worker_user);
    uint64_t uid = user ? user->pw_uid : UINT64_MAX;

    if (!user && !text_parse_u64(admin->worker_user, 0, UINT32_MAX - 1, &uid))
        return 0; /* the mediator does not start with that */
    if (vm->owner_uid < 0 || (uint64_t)vm->owner_uid != uid)
        return 0;
    return error_set(error, EINVAL,
                     "owner %lld is whom the workers of all VMs run as (worker_user = %s): a "
                     "program of this VM's could end them; choose a number that nobody has, as "
                     "--owner %lld, or say --force",
                     (long long)vm->owner_uid, admin->worker_user,
                     (long long)proposal_for(admin, vm));
}

static int check_owner(const struct admin *admin, struct store *store, const struct store_vm *vm,
                       struct vgpu_error *error)
{
    const struct store_vm *other;
    struct store_vm *vms;
    int result = 0;
    size_t count;

    if (store_list_vms(store, &vms, &count, error) < 0)
        return -1;
    other = find_owned(admin, vms, count, vm->vm_id, vm->owner_uid);
    if (other)
        result = refuse_owner(admin, vms, count, vm, other, error);
    free(vms);
    return result;
}

/* --- the address ------------------------------------------------------------------------- */

/* Files, not rows: one that an unregistered VM left still exports its directory. */
static bool is_exported_to(const struct admin *admin, uint32_t vm_id, const char *address)
{
    char has[64], *text = exports_read(admin, vm_id);

    exports_address(text, has);
    free(text);
    return strcmp(has, address) == 0;
}

static int check_export(const struct admin *admin, uint32_t vm_id, const char *address,
                        struct vgpu_error *error)
{
    if (!is_exported_to(admin, vm_id, address))
        return 0;
    return error_set(error, EEXIST,
                     "%s is the address of VM %u: the guest there would see both directories; "
                     "give each guest its own, take the other's export away (remove-vm, or its "
                     "file in %.200s), or say --force",
                     address, vm_id, admin->exports_dir);
}

static int check_address(const struct admin *admin, uint32_t vm_id, const char *address,
                         struct vgpu_error *error)
{
    DIR *names = opendir(admin->exports_dir);
    const struct dirent *entry;
    int result = 0;

    while (names && result == 0 && (entry = readdir(names))) {
        uint32_t other;

        if (exports_is_file(admin, entry->d_name, &other) && other != vm_id)
            result = check_export(admin, other, address, error);
    }
    if (names)
        closedir(names);
    return result;
}

int tenant_check(const struct admin *admin, struct store *store, const struct store_vm *before,
                 const struct store_vm *vm, const char *address, struct vgpu_error *error)
{
    bool same_owner = before && before->owner_uid == vm->owner_uid && has_own_user(admin, before);

    if (check_not_workers(admin, vm, error) < 0)
        return -1;
    if (vm->owner_uid >= 0 && has_own_user(admin, vm) && !same_owner &&
        check_owner(admin, store, vm, error) < 0)
        return -1;
    if (!has_directory(admin, vm))
        return 0;
    if (address && admin->exports_kind != EXPORTS_NONE &&
        !(before && is_exported_to(admin, vm->vm_id, address)))
        return check_address(admin, vm->vm_id, address, error);
    return 0;
}

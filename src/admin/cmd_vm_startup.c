/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin vm-startup: what the toolstacks' hooks ask before a VM starts.  A VM
 * whose device says something else than the registry does not start so.
 *
 *   libvirt  the hook may not call libvirt back (it would wait for itself), and what
 *            it prints changes nothing: the definition comes on standard input, is
 *            compared, and a stale one is refused with the command that mends it
 *   xapi     the keys were read before the hook runs: stale ones are put right for the
 *            next start, and this start is refused
 *
 * A VM without our device is nobody's business here and always starts, also where the
 * database is missing.  One whose arguments could make or change a device unseen (-set,
 * -global, -readconfig) does not start: only a person can take those out.
 *
 * xl has no hooks: there, start VMs by vgpu-admin start-vm.
 */
#include "admin/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFINITION_MAX_BYTES (4u << 20)

/* XAPI goes on after 0 and 1. */
#define XAPI_ABORT 2

/* By its exact name, and only a VM that has no UUID in the registry: who may name a
 * machine must not get another one's place by it. */
static int find_by_name(struct store *store, const char *name, struct store_vm *ret_vm,
                        struct vgpu_error *error)
{
    struct store_vm vm;

    if (store_find_vm(store, name, &vm, error) < 0)
        return -1;
    if (strcmp(vm.name, name) != 0 || vm.uuid[0])
        return error_set(error, ENOENT, "no VM without UUID is registered as '%s'", name);
    *ret_vm = vm;
    return 0;
}

/* 1 registered, 0 not, -1 the database cannot tell. */
static int look_up(struct admin *admin, const struct toolstack_vm *machine, struct store_vm *ret_vm,
                   struct vgpu_error *error)
{
    struct store *store;
    int found;

    if (admin_open_store(admin, STORE_READ, &store, error) < 0)
        return -1;
    found = store_find_vm(store, machine->uuid, ret_vm, error);
    if (found < 0 && error->code == ENOENT)
        found = find_by_name(store, machine->name, ret_vm, error);
    store_close(store);
    if (found == 0)
        return 1;
    return error->code == ENOENT || error->code == EINVAL ? 0 : -1;
}

static bool is_stale(struct admin *admin, const struct store_vm *vm,
                     const struct toolstack_device *device, struct toolstack_device *ret_right)
{
    publish_device(admin, vm, device, ret_right);
    return device->vm_id != ret_right->vm_id || device->pool != ret_right->pool ||
           device->priority != ret_right->priority ||
           (device->window && strcmp(device->socket_path, ret_right->socket_path) != 0);
}

static void describe_stale(const struct toolstack_vm *machine, const struct store_vm *vm,
                           struct vgpu_error *error)
{
    if (machine->device_problem[0])
        error_fill(error, ESTALE,
                   "%s, and the registry says VM %u, pool %c, %s: vgpu-admin publish %u, then "
                   "start it again (vgpu-admin start-vm does both)",
                   machine->device_problem, vm->vm_id, vm->pool, output_priority(vm->priority),
                   vm->vm_id);
    else
        error_fill(error, ESTALE,
                   "its device says VM %u, pool %c, %s, and the registry VM %u, pool %c, %s: "
                   "vgpu-admin publish %u, then start it again (vgpu-admin start-vm does both)",
                   machine->device.vm_id, machine->device.pool,
                   output_priority(machine->device.priority), vm->vm_id, vm->pool,
                   output_priority(vm->priority), vm->vm_id);
}

/* 0 it may start; 1 its device is stale (*ret_right is what it should say); -1 it may
 * not start, for another reason. */
static int judge(struct admin *admin, const struct toolstack_vm *machine,
                 struct toolstack_device *ret_right, struct vgpu_error *error)
{
    struct vgpu_error why;
    struct store_vm vm;
    int found;

    if (publish_check(machine, error) < 0)
        return -1;
    if (!machine->has_device)
        return 0;
    found = look_up(admin, machine, &vm, &why);
    if (found < 0)
        return error_set(error, why.code, "its device cannot be compared with the registry: %.400s",
                         why.message);
    if (found == 0)
        return error_set(error, ENOENT,
                         "it has a vgpu-stub (vm_id %u), but is not registered: vgpu-admin "
                         "register-vm --uuid %s, or take the device out",
                         machine->device.vm_id, machine->uuid);
    if (!is_stale(admin, &vm, &machine->device, ret_right) && !machine->device_problem[0])
        return 0;
    describe_stale(machine, &vm, error);
    return 1;
}

/* --- libvirt ------------------------------------------------------------------------- */

static int read_definition(char **ret_text, struct vgpu_error *error)
{
    char *text = malloc(DEFINITION_MAX_BYTES + 1);
    size_t used;

    if (!text)
        return error_set(error, ENOMEM, "no memory");
    used = fread(text, 1, DEFINITION_MAX_BYTES, stdin);
    if (ferror(stdin) || !feof(stdin)) {
        free(text);
        return error_set(error, EBADMSG,
                         "its definition cannot be read from standard input, or "
                         "is over 4 MiB");
    }
    text[used] = '\0';
    *ret_text = text;
    return 0;
}

static int start_libvirt(struct admin *admin, struct vgpu_error *error)
{
    struct toolstack_device right = {0};
    struct toolstack_vm machine;
    char *text;
    int result;

    if (read_definition(&text, error) < 0)
        return -1;
    if (!strstr(text, "vgpu-stub") && !strstr(text, "-readconfig"))
        result = 0;
    else if (toolstack_read_domain_xml(text, &machine, error) < 0)
        result = -1;
    else
        result = judge(admin, &machine, &right, error);
    free(text);
    return result == 0 ? 0 : -1;
}

/* --- xapi ------------------------------------------------------------------------------ */

static int mend(struct toolstack *toolstack, const struct toolstack_vm *machine,
                const struct toolstack_device *right, struct vgpu_error *error)
{
    struct vgpu_error why, cause = *error;

    if (toolstack_publish(toolstack, machine->uuid, right, &why) < 0)
        return error_set(error, cause.code, "%.300s; putting it right failed: %.180s",
                         cause.message, why.message);
    return error_set(error, cause.code,
                     "its platform keys were stale and are right now (VM %u, pool %c, %s): start "
                     "it again",
                     right->vm_id, right->pool, output_priority(right->priority));
}

static int start_xapi(struct admin *admin, const char *uuid, struct vgpu_error *error)
{
    struct toolstack_device right = {0};
    struct toolstack *toolstack;
    struct toolstack_vm machine;
    int result;

    if (toolstack_open("xapi", NULL, &toolstack, error) < 0)
        return -1;
    result = toolstack_find(toolstack, uuid, &machine, error);
    if (result == 0)
        result = judge(admin, &machine, &right, error);
    if (result > 0)
        result = mend(toolstack, &machine, &right, error);
    toolstack_close(toolstack);
    return result;
}

int cmd_vm_startup(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;

    if (result)
        return result;
    if (strcmp(admin->words[0], "libvirt") == 0) {
        result = start_libvirt(admin, &error);
    } else if (strcmp(admin->words[0], "xapi") == 0) {
        result = start_xapi(admin, admin->words[1], &error);
        admin->failed_exit = XAPI_ABORT;
    } else {
        return admin_refuse(admin, "the toolstack is libvirt or xapi: others have no hooks");
    }
    if (result == 0)
        return ADMIN_OK;
    fprintf(stderr, "vgpu-vm-startup: '%s' does not start: %s\n", admin->words[1], error.message);
    return admin->failed_exit ? admin->failed_exit : ADMIN_FAILED;
}

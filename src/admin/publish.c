/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's definition holds a copy of its registered values, with which its device
 * starts.  The copy decides nothing, as the registry's values win over registers, but
 * a guest should not read stale ones: it follows each change by itself where it can.
 */
#include "admin/admin.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define WINDOW_DEFAULT_MIB 64
#define SLOTS_DEFAULT 8
#define TRIES 8

void publish_device(struct admin *admin, const struct store_vm *vm,
                    const struct toolstack_device *old, struct toolstack_device *ret_device)
{
    *ret_device = (struct toolstack_device){
        .vm_id = vm->vm_id,
        .pool = vm->pool,
        .priority = vm->priority,
        .window = vm->channels & STORE_CHANNEL_WINDOW,
        .window_mib = old && old->window_mib ? old->window_mib : WINDOW_DEFAULT_MIB,
        .slots = old && old->slots ? old->slots : SLOTS_DEFAULT,
    };
    snprintf(ret_device->socket_path, sizeof(ret_device->socket_path), "%.80s/vm%u.sock",
             admin->run_dir, vm->vm_id);
}

int publish_open(struct admin *admin, struct toolstack **ret_toolstack, struct vgpu_error *error)
{
    const char *name = admin->toolstack_name[0] ? admin->toolstack_name : NULL;

    if (name && strcmp(name, "none") == 0) {
        admin->failed_exit = ADMIN_NOT_RUNNING;
        return error_set(error, ENODEV, "a toolstack is needed, and --toolstack is none");
    }
    if (toolstack_open(name, admin->uri, ret_toolstack, error) < 0) {
        admin->failed_exit = ADMIN_NOT_RUNNING;
        return -1;
    }
    return 0;
}

const char *publish_handle(const struct toolstack_vm *found)
{
    return found->uuid[0] ? found->uuid : found->name;
}

int publish_check(const struct toolstack_vm *found, struct vgpu_error *error)
{
    if (!found->device_overridden)
        return 0;
    return error_set(error, ENOTSUP,
                     "%s, so its device cannot be compared with the registry: take that out of "
                     "the definition of %.100s yourself (virsh edit, or its file under xl), then "
                     "start it again",
                     found->device_problem, found->name);
}

/* Only libvirt's VMs can have a window: elsewhere QEMU's memory cannot be shared. */
static bool differs(const struct toolstack *toolstack, const struct toolstack_device *one,
                    const struct toolstack_device *other)
{
    bool windows = strcmp(toolstack_name(toolstack), "libvirt") == 0;

    return one->vm_id != other->vm_id || one->pool != other->pool ||
           one->priority != other->priority || (windows && one->window != other->window) ||
           (windows && one->window && strcmp(one->socket_path, other->socket_path) != 0);
}

bool publish_is_same(const struct toolstack_vm *machine, const struct store_vm *vm)
{
    if (machine->uuid[0] && vm->uuid[0])
        return strcasecmp(machine->uuid, vm->uuid) == 0;
    return vm->name[0] && strcmp(machine->name, vm->name) == 0;
}

/* --- one VM ------------------------------------------------------------------------------ */

/* 1 written, 0 nothing to do, -1. */
static int publish_stale(struct admin *admin, struct toolstack *toolstack,
                         const struct store_vm *vm, struct vgpu_error *error)
{
    struct toolstack_device device;
    struct toolstack_vm found;

    if (toolstack_find(toolstack, vm->uuid[0] ? vm->uuid : vm->name, &found, error) < 0)
        return error->code == ENOENT ? 0 : -1;
    if (!found.has_device)
        return 0;
    if (!vm->uuid[0] && found.device.vm_id != vm->vm_id)
        return 0; /* another that has the name */
    publish_device(admin, vm, &found.device, &device);
    if (!differs(toolstack, &found.device, &device))
        return 0;
    return toolstack_publish(toolstack, publish_handle(&found), &device, error) < 0 ? -1 : 1;
}

/* As the registry says now: another administrator may have changed it since. */
static int publish_present(struct admin *admin, struct toolstack *toolstack, uint32_t vm_id,
                           struct vgpu_error *error)
{
    struct store *store;
    struct store_vm vm;
    int result;

    if (store_open(admin->database_path, STORE_READ, &store, error) < 0)
        return -1;
    result = store_get_vm(store, vm_id, &vm, error);
    store_close(store);
    if (result < 0)
        return error->code == ENOENT ? 0 : -1; /* it is gone */
    return publish_stale(admin, toolstack, &vm, error);
}

void publish_changed(struct admin *admin, const struct store_vm *vm)
{
    int saved_exit = admin->failed_exit, result = 1;
    struct toolstack *toolstack;
    struct vgpu_error error;

    if (!vm->uuid[0] && !vm->name[0])
        return;
    if (publish_open(admin, &toolstack, &error) == 0) {
        /* Whoever writes last looks once more, and finds what others changed meanwhile. */
        for (int i = 0; result > 0 && i < TRIES; i++)
            result = publish_present(admin, toolstack, vm->vm_id, &error);
        if (result < 0 && !admin->quiet)
            fprintf(stderr,
                    "vgpu-admin: note: the definition of VM %u keeps its old values: %s; "
                    "vgpu-admin publish %u tries again\n",
                    vm->vm_id, error.message, vm->vm_id);
        toolstack_close(toolstack);
    }
    admin->failed_exit = saved_exit;
}

/* --- all of them ---------------------------------------------------------------------------- */

static void compare_machine(struct admin *admin, const struct toolstack *toolstack,
                            const struct toolstack_vm *machine, const struct store_vm *vms,
                            size_t count, struct publish_left *left)
{
    struct toolstack_device right;
    size_t i = 0;

    if (!machine->has_device)
        return;
    while (i < count && !publish_is_same(machine, &vms[i]))
        i++;
    if (i == count) {
        json_array_append_new(left->unregistered, json_string(machine->name));
        return;
    }
    publish_device(admin, &vms[i], &machine->device, &right);
    if (machine->device_problem[0] || differs(toolstack, &machine->device, &right))
        json_array_append_new(left->stale, json_integer(vms[i].vm_id));
}

void publish_find_left(struct admin *admin, const struct store_vm *vms, size_t count,
                       struct publish_left *ret_left)
{
    struct toolstack_vm *machines = NULL;
    int saved_exit = admin->failed_exit;
    struct toolstack *toolstack;
    struct vgpu_error ignored;
    size_t machine_count = 0;

    *ret_left = (struct publish_left){json_array(), json_array()};
    if (publish_open(admin, &toolstack, &ignored) == 0) {
        if (toolstack_list(toolstack, &machines, &machine_count, &ignored) == 0)
            for (size_t i = 0; i < machine_count; i++)
                compare_machine(admin, toolstack, &machines[i], vms, count, ret_left);
        free(machines);
        toolstack_close(toolstack);
    }
    admin->failed_exit = saved_exit;
}

void publish_find_removed(struct admin *admin, const struct store_vm *vm,
                          char ret_name[TOOLSTACK_NAME_BYTES])
{
    const char *handle = vm->uuid[0] ? vm->uuid : vm->name;
    int saved_exit = admin->failed_exit;
    struct toolstack *toolstack;
    struct toolstack_vm machine;
    struct vgpu_error ignored;

    ret_name[0] = '\0';
    if (handle[0] && publish_open(admin, &toolstack, &ignored) == 0) {
        if (toolstack_find(toolstack, handle, &machine, &ignored) == 0 && machine.has_device &&
            machine.device.vm_id == vm->vm_id)
            text_escape(ret_name, TOOLSTACK_NAME_BYTES, machine.name, strlen(machine.name));
        toolstack_close(toolstack);
    }
    admin->failed_exit = saved_exit;
}

void publish_note_left(const struct admin *admin, const struct publish_left *left)
{
    const json_t *one;
    size_t i;

    if (admin->quiet)
        return;
    if (json_array_size(left->stale) > 0) {
        fprintf(stderr, "vgpu-admin: note: definitions that do not say what is registered: VM");
        json_array_foreach(left->stale, i, one)
            fprintf(stderr, "%s %lld", i ? "," : "", (long long)json_integer_value(one));
        fprintf(stderr, "; vgpu-admin publish writes the registered values into all\n");
    }
    json_array_foreach(left->unregistered, i, one)
    {
        char shown[4 * TOOLSTACK_NAME_BYTES + 1], quoted[4 * sizeof(shown) + 4];

        text_escape(shown, sizeof(shown), json_string_value(one), json_string_length(one));
        output_quote(shown, quoted, sizeof(quoted));
        fprintf(stderr,
                "vgpu-admin: note: a machine has a vgpu-stub and is not registered: vgpu-admin "
                "publish --remove %s takes it out\n",
                quoted);
    }
}

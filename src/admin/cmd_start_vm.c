/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin start-vm: the registered values go into the VM's definition, then the
 * toolstack starts it.  So what it starts with is never stale, whoever changed the
 * definition meanwhile.
 */
#include "admin/commands.h"

#include <errno.h>
#include <stdio.h>

static int find(struct admin *admin, struct store_vm *ret_vm, struct vgpu_error *error)
{
    struct store *store;
    int result;

    if (admin_open_store(admin, STORE_READ, &store, error) < 0)
        return -1;
    result = store_find_vm(store, admin->words[0], ret_vm, error);
    store_close(store);
    return result;
}

static int start(struct admin *admin, struct toolstack *toolstack, const struct store_vm *vm,
                 struct vgpu_error *error)
{
    struct toolstack_device device;
    struct toolstack_vm found;

    if (toolstack_find(toolstack, vm->uuid[0] ? vm->uuid : vm->name, &found, error) < 0)
        return -1;
    if (found.state != TOOLSTACK_OFF)
        return error_set(error, EBUSY, "VM %u is not off: it keeps the values that it has",
                         vm->vm_id);
    if (publish_check(&found, error) < 0)
        return -1;
    publish_device(admin, vm, found.has_device ? &found.device : NULL, &device);
    if (toolstack_publish(toolstack, publish_handle(&found), &device, error) < 0)
        return -1;
    return toolstack_start(toolstack, publish_handle(&found), error);
}

int cmd_start_vm(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    char name[STORE_NAME_BYTES + 32], sentence[256];
    struct toolstack *toolstack;
    struct vgpu_error error;
    struct store_vm vm;

    if (result)
        return result;
    if (find(admin, &vm, &error) < 0 || publish_open(admin, &toolstack, &error) < 0)
        return admin_fail(admin, &error);
    result = start(admin, toolstack, &vm, &error);
    if (result == 0 && admin->json)
        output_json(
            json_pack("{s:o, s:s}", "vm", output_vm(&vm), "toolstack", toolstack_name(toolstack)));
    toolstack_close(toolstack);
    if (result < 0)
        return admin_fail(admin, &error);
    output_vm_name(&vm, name, sizeof(name));
    snprintf(sentence, sizeof(sentence), "%s is started: pool %c, priority %s", name, vm.pool,
             output_priority(vm.priority));
    output_say(admin, "%s", sentence);
    return ADMIN_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin publish: the registered values go into the VMs' definitions, one VM's or
 * those of all that are registered with a UUID.  With --remove the device is taken out
 * of a definition again, also of a VM that is registered no more.
 */
#include "admin/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static const struct argp_option options[] = {
    {"remove", 'r', NULL, 0,
     "Take the device out of the definition; VM is the toolstack's name or UUID", 1},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    (void)value;
    if (key != 'r')
        return ARGP_ERR_UNKNOWN;
    *(bool *)state->input = true;
    return 0;
}

static const struct argp argp = {options, parse};

static const struct output_column columns[] = {
    {"vm_id", "VM", true},
    {"name", "NAME", false},
    {"published", "PUBLISHED", false},
    {"message", "WHY NOT", false},
};

static int publish_one(struct admin *admin, struct toolstack *toolstack, const struct store_vm *vm,
                       struct vgpu_error *error)
{
    struct toolstack_device device;
    struct toolstack_vm found;

    if (!vm->uuid[0] && !vm->name[0])
        return error_set(error, EINVAL,
                         "VM %u has neither UUID nor name, by which the toolstack "
                         "could know it",
                         vm->vm_id);
    if (toolstack_find(toolstack, vm->uuid[0] ? vm->uuid : vm->name, &found, error) < 0 ||
        publish_check(&found, error) < 0)
        return -1;
    publish_device(admin, vm, found.has_device ? &found.device : NULL, &device);
    return toolstack_publish(toolstack, publish_handle(&found), &device, error);
}

/* Each that is not found or refused is told; the others are published. */
static int publish_all(struct admin *admin, struct toolstack *toolstack, const struct store_vm *vms,
                       size_t count, struct vgpu_error *error)
{
    struct output *table = output_new(admin, columns, VGPU_ARRAY_LENGTH(columns));
    unsigned failed = 0;

    for (size_t i = 0; i < count; i++) {
        struct vgpu_error why = {0};
        bool done = publish_one(admin, toolstack, &vms[i], &why) == 0;

        failed += !done;
        output_number(table, vms[i].vm_id);
        output_text(table, vms[i].name);
        output_text(table, done ? "yes" : "no");
        output_text(table, done ? NULL : why.message);
        output_end_row(table);
    }
    output_print(table, "No VM is registered.");
    output_free(table);
    if (failed)
        return error_set(error, EIO, "%u of %zu VMs could not be published", failed, count);
    return 0;
}

static int publish_named(struct admin *admin, struct vgpu_error *error)
{
    char name[STORE_NAME_BYTES + 32];
    struct toolstack *toolstack;
    struct store *store;
    struct store_vm vm;
    int result;

    if (admin_open_store(admin, STORE_READ, &store, error) < 0)
        return -1;
    result = store_find_vm(store, admin->words[0], &vm, error);
    store_close(store);
    if (result < 0 || publish_open(admin, &toolstack, error) < 0)
        return -1;
    result = publish_one(admin, toolstack, &vm, error);
    if (result == 0 && admin->json)
        output_json(
            json_pack("{s:o, s:s}", "vm", output_vm(&vm), "toolstack", toolstack_name(toolstack)));
    toolstack_close(toolstack);
    output_vm_name(&vm, name, sizeof(name));
    if (result == 0)
        output_say(admin, "%s: its definition has the registered values, from its next start on",
                   name);
    return result;
}

static int publish_registered(struct admin *admin, struct vgpu_error *error)
{
    struct toolstack *toolstack;
    struct store_vm *vms = NULL;
    struct store *store;
    size_t count = 0;
    int result;

    if (admin_open_store(admin, STORE_READ, &store, error) < 0)
        return -1;
    result = store_list_vms(store, &vms, &count, error);
    store_close(store);
    if (result == 0)
        result = publish_open(admin, &toolstack, error);
    if (result == 0) {
        result = publish_all(admin, toolstack, vms, count, error);
        toolstack_close(toolstack);
    }
    free(vms);
    return result;
}

/* The name or UUID that the toolstack knows; the registry may know the VM no more. */
static int find_handle(struct admin *admin, char text[TOOLSTACK_NAME_BYTES],
                       struct vgpu_error *error)
{
    struct vgpu_error ignored;
    struct store *store;
    struct store_vm vm;

    if (admin_open_store(admin, STORE_READ, &store, error) < 0)
        return -1;
    text_copy(text, TOOLSTACK_NAME_BYTES, admin->words[0]);
    if (store_find_vm(store, admin->words[0], &vm, &ignored) == 0 && (vm.uuid[0] || vm.name[0]))
        text_copy(text, TOOLSTACK_NAME_BYTES, vm.uuid[0] ? vm.uuid : vm.name);
    store_close(store);
    return 0;
}

static int withdraw(struct admin *admin, struct vgpu_error *error)
{
    char text[TOOLSTACK_NAME_BYTES];
    struct toolstack *toolstack;
    struct toolstack_vm machine;
    int result;

    if (find_handle(admin, text, error) < 0 || publish_open(admin, &toolstack, error) < 0)
        return -1;
    result = toolstack_find(toolstack, text, &machine, error);
    if (result == 0 && machine.has_device)
        result = toolstack_publish(toolstack, publish_handle(&machine), NULL, error);
    toolstack_close(toolstack);
    if (result < 0)
        return -1;
    if (admin->json)
        output_json(json_pack("{s:s, s:b}", "name", machine.name, "removed", machine.has_device));
    output_say(admin,
               machine.has_device ? "%s: its definition has no vgpu-stub any more, from its next "
                                    "start on"
                                  : "%s: its definition had no vgpu-stub",
               machine.name);
    return 0;
}

int cmd_publish(struct admin *admin, int argc, char **argv)
{
    bool remove = false;
    int result = admin_parse(admin, &argp, argc, argv, &remove);
    struct vgpu_error error;

    if (result)
        return result;
    if (remove && !admin->word_count)
        return admin_refuse(admin, "--remove takes the device out of one VM's definition: name it");
    if (remove)
        return withdraw(admin, &error) < 0 ? admin_fail(admin, &error) : ADMIN_OK;
    result = admin->word_count ? publish_named(admin, &error) : publish_registered(admin, &error);
    return result < 0 ? admin_fail(admin, &error) : ADMIN_OK;
}

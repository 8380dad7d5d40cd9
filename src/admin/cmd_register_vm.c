/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin register-vm: a VM gets its number, pool and priority, and where the file
 * channel is on its directory and export.  With a toolstack here, a name or UUID that
 * it knows is completed from it.
 */
#include "admin/commands.h"
#include "admin/limit_options.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* In the order of the options. */
enum {
    KEY_UUID = 0x100,
    KEY_NAME,
    KEY_VM_ID,
    KEY_POOL,
    KEY_PRIORITY,
    KEY_CHANNELS,
    KEY_OWNER,
    KEY_MODE,
    KEY_ADDRESS,
    KEY_LIMITS,
    KEY_FORCE = KEY_LIMITS + (int)STORE_LIMITS,
};

static const struct argp_option options[] = {
    {"uuid", KEY_UUID, "UUID", 0, "The VM's UUID, as its toolstack knows it", 1},
    {"name", KEY_NAME, "NAME", 0, "Its name, in place of the word", 1},
    {"vm-id", KEY_VM_ID, "ID", 0, "Its number (default: the smallest that is free)", 1},
    {"pool", KEY_POOL, "POOL", 0, "Its pool (default A)", 1},
    {"priority", KEY_PRIORITY, "PRIORITY", 0, "low, medium (default) or high; 0..2", 1},
    {"channels", KEY_CHANNELS, "LIST", 0, "file,window (default), file, window, xen or none", 2},
    {"owner", KEY_OWNER, "USER[:GROUP]", 0,
     "Who owns its directory and socket (under Xen default: its own)", 2},
    {"mode", KEY_MODE, "MODE", 0, "Their mode (default 0700)", 2},
    {"address", KEY_ADDRESS, "IP", 0, "The guest's, for which its directory is exported", 2},
    LIMIT_OPTIONS(KEY_LIMITS, 3),
    {"force", KEY_FORCE, NULL, 0, "Also with an owner or address that another VM has", 2},
    {0},
};

struct input {
    struct admin *admin;
    struct store_vm vm;
    const char *name, *uuid, *pool;
    char address[64]; /* of the guest; "" none */
    bool force;
    char aside[64]; /* what stood in the directory's place */
};

static int parse_value(struct input *input, int key, const char *value, struct vgpu_error *error)
{
    struct store_vm *vm = &input->vm;

    switch (key) {
    case KEY_PRIORITY:
        return store_check_priority(value, &vm->priority, error);
    case KEY_VM_ID:
        return store_check_vm_id(value, &vm->vm_id, error);
    case KEY_CHANNELS:
        return value_channels(value, &vm->channels, error);
    case KEY_OWNER:
        return value_owner(value, &vm->owner_uid, &vm->owner_gid, error);
    case KEY_MODE:
        return value_mode(value, &vm->mode, error);
    case KEY_ADDRESS:
        return value_address(value, input->address, error);
    default:
        return limit_parse(&vm->limits, (unsigned)(key - KEY_LIMITS), value, error);
    }
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;
    struct vgpu_error error;

    switch (key) {
    case KEY_NAME:
        input->name = value;
        return 0;
    case KEY_UUID:
        input->uuid = value;
        return 0;
    case KEY_POOL:
        input->pool = value;
        return 0;
    case KEY_FORCE:
        input->force = true;
        return 0;
    default:
        if (key < KEY_UUID || key > KEY_FORCE)
            return ARGP_ERR_UNKNOWN;
        return parse_value(input, key, value, &error) < 0
                   ? admin_usage(input->admin, "--%s: %s", options[key - KEY_UUID].name,
                                 error.message)
                   : 0;
    }
}

static const struct argp argp = {options, parse};

/* Toolstacks allow names that the registry does not. */
static void take_name(struct input *input, const struct toolstack_vm *found)
{
    struct store_vm *vm = &input->vm;
    struct vgpu_error why;

    if (store_check_name(found->name, &why) == 0) {
        text_copy(vm->name, sizeof(vm->name), found->name);
        return;
    }
    if (vm->uuid[0])
        snprintf(vm->name, sizeof(vm->name), "vm-%.8s", vm->uuid);
    if (!input->admin->quiet)
        fprintf(stderr,
                "vgpu-admin: note: the toolstack's name cannot be registered (%s): it is "
                "registered as '%s', which update-vm --name changes\n",
                why.message, vm->name);
}

/* A word that the toolstack knows is its name or its UUID. */
static void ask_toolstack(struct input *input, const char *word)
{
    int saved_exit = input->admin->failed_exit;
    struct toolstack *toolstack;
    struct toolstack_vm found;
    struct vgpu_error ignored;

    if (publish_open(input->admin, &toolstack, &ignored) == 0) {
        if (toolstack_find(toolstack, word, &found, &ignored) == 0) {
            if (store_check_uuid(found.uuid, input->vm.uuid, &ignored) < 0)
                input->vm.uuid[0] = '\0';
            if (!input->vm.name[0])
                take_name(input, &found);
        }
        toolstack_close(toolstack);
    }
    input->admin->failed_exit = saved_exit;
}

static int name_it(struct input *input, struct vgpu_error *error)
{
    const char *word = input->admin->word_count ? input->admin->words[0] : NULL;
    struct store_vm *vm = &input->vm;
    struct vgpu_error ignored;

    if (word && input->name)
        return error_set(error, EINVAL, "two names came, '%s' and '%s': give one", word,
                         input->name);
    if (word && !input->uuid && store_check_uuid(word, vm->uuid, &ignored) == 0)
        word = NULL;
    if (input->uuid && store_check_uuid(input->uuid, vm->uuid, error) < 0)
        return -1;
    if (input->name)
        word = input->name;
    if (word && store_check_name(word, error) < 0)
        return -1;
    if (word)
        text_copy(vm->name, sizeof(vm->name), word);
    if (!input->uuid)
        ask_toolstack(input, vm->uuid[0] ? vm->uuid : vm->name);
    return 0;
}

static const char *address_of(const struct input *input)
{
    return input->address[0] ? input->address : NULL;
}

/* Between begin and commit; the number is chosen by the first call. */
static int add_row(struct input *input, struct store *store, struct vgpu_error *error)
{
    struct store_pool pool;

    if (input->pool) {
        if (store_find_pool(store, input->pool, &pool, error) < 0)
            return -1;
        input->vm.pool = pool.id;
    }
    if (owner_complete(input->admin, store, &input->vm, error) < 0 ||
        store_add_vm(store, &input->vm, error) < 0)
        return -1;
    return input->force
               ? 0
               : tenant_check(input->admin, store, NULL, &input->vm, address_of(input), error);
}

static int try_row(struct input *input, struct store *store, struct vgpu_error *error)
{
    int result;

    if (store_begin(store, error) < 0)
        return -1;
    result = add_row(input, store, error);
    store_rollback(store);
    return result;
}

static int write_row(struct input *input, struct store *store, struct vgpu_error *error)
{
    if (store_begin(store, error) < 0)
        return -1;
    if (add_row(input, store, error) < 0 || store_commit(store, error) < 0) {
        store_rollback(store);
        return -1;
    }
    return 0;
}

static int add_row_and_share(struct input *input, struct store *store, struct vgpu_error *error)
{
    struct share_undo undo = {0};
    struct vgpu_error ignored;

    if (try_row(input, store, error) < 0 ||
        share_make_new(input->admin, &input->vm, address_of(input), &undo, error) < 0)
        return -1;
    if (write_row(input, store, error) < 0) {
        share_undo(input->admin, &undo, &ignored);
        return -1;
    }
    text_copy(input->aside, sizeof(input->aside), undo.aside);
    share_done(&undo);
    return store_get_vm(store, input->vm.vm_id, &input->vm, error);
}

static int add_whole(struct input *input, struct store *store, struct vgpu_error *error)
{
    int turn, result;

    if (share_lock(input->admin, &turn, error) < 0)
        return -1;
    result = add_row_and_share(input, store, error);
    fd_close(&turn);
    return result;
}

static void answer(struct input *input)
{
    const struct store_vm *vm = &input->vm;
    char name[STORE_NAME_BYTES + 32], directory[4200] = "", aside[4200] = "", sentence[8800];

    if (input->admin->share[0] && (vm->channels & STORE_CHANNEL_FILE))
        snprintf(directory, sizeof(directory), "%s/vm%u", input->admin->share, vm->vm_id);
    if (input->aside[0])
        snprintf(aside, sizeof(aside), "%s/%s", input->admin->share, input->aside);
    output_vm_name(vm, name, sizeof(name));
    snprintf(sentence, sizeof(sentence), "%s is registered: pool %c, priority %s%s%s%s%s", name,
             vm->pool, output_priority(vm->priority), directory[0] ? ", directory " : "", directory,
             aside[0] ? "; what an earlier VM left there is now " : "", aside);
    change_answer(input->admin,
                  json_pack("{s:o, s:s?, s:s?}", "vm", output_vm(vm), "directory",
                            directory[0] ? directory : NULL, "retired", aside[0] ? aside : NULL),
                  sentence);
}

int cmd_register_vm(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin};
    struct vgpu_error error;
    struct store *store;
    int result;

    store_vm_init(&input.vm);
    result = admin_parse(admin, &argp, argc, argv, &input);
    if (result)
        return result;
    if (settings_read(admin, &error) < 0 || name_it(&input, &error) < 0 ||
        admin_open_store(admin, STORE_WRITE, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = add_whole(&input, store, &error);
    store_close(store);
    if (result < 0)
        return live_fail(admin, &error);
    if (live_apply(admin, &error) < 0)
        return admin_fail_applied(admin, &error);
    publish_changed(admin, &input.vm);
    answer(&input);
    return ADMIN_OK;
}

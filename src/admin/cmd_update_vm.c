/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin update-vm: name, UUID, channels, owner, mode and the guest's address.
 * Directory and export follow.
 */
#include "admin/commands.h"

#include <string.h>

enum { KEY_NAME = 0x100, KEY_UUID, KEY_CHANNELS, KEY_OWNER, KEY_MODE, KEY_ADDRESS, KEY_FORCE };

static const struct argp_option options[] = {
    {"name", KEY_NAME, "NAME", 0, "Its name", 1},
    {"uuid", KEY_UUID, "UUID", 0, "Its UUID, or none", 1},
    {"channels", KEY_CHANNELS, "LIST", 0, "file,window, file, window, xen or none", 1},
    {"owner", KEY_OWNER, "USER[:GROUP]", 0, "Who owns its directory and socket, or default", 1},
    {"mode", KEY_MODE, "MODE", 0, "Their mode", 1},
    {"address", KEY_ADDRESS, "IP", 0, "The guest's, for which its directory is exported", 1},
    {"force", KEY_FORCE, NULL, 0, "Also an owner or address that another VM has", 1},
    {0},
};

struct input {
    struct admin *admin;
    struct vm_change change;
    char address[64];
};

static int parse_owner(struct input *input, int key, const char *value, struct vgpu_error *error)
{
    struct store_vm *values = &input->change.store.values;

    /* One field of the store: what is not given stays. */
    if (!(input->change.store.fields & STORE_VM_OWNER))
        input->change.keep_owner = input->change.keep_mode = true;
    input->change.store.fields |= STORE_VM_OWNER;
    if (key == KEY_MODE) {
        input->change.keep_mode = false;
        return value_mode(value, &values->mode, error);
    }
    input->change.keep_owner = false;
    return value_owner(value, &values->owner_uid, &values->owner_gid, error);
}

static int parse_value(struct input *input, int key, const char *value, struct vgpu_error *error)
{
    struct store_vm *values = &input->change.store.values;

    switch (key) {
    case KEY_NAME:
        input->change.store.fields |= STORE_VM_NAME;
        text_copy(values->name, sizeof(values->name), value);
        return store_check_name(value, error);
    case KEY_UUID:
        input->change.store.fields |= STORE_VM_UUID;
        return strcmp(value, "none") == 0 ? 0 : store_check_uuid(value, values->uuid, error);
    case KEY_CHANNELS:
        input->change.store.fields |= STORE_VM_CHANNELS;
        return value_channels(value, &values->channels, error);
    case KEY_ADDRESS:
        input->change.address = input->address;
        return value_address(value, input->address, error);
    case KEY_FORCE:
        input->change.force = true;
        return 0;
    default:
        return parse_owner(input, key, value, error);
    }
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;
    struct vgpu_error error;

    if (key < KEY_NAME || key > KEY_FORCE)
        return ARGP_ERR_UNKNOWN;
    return parse_value(input, key, value, &error) < 0
               ? admin_usage(input->admin, "--%s: %s", options[key - KEY_NAME].name, error.message)
               : 0;
}

static const struct argp argp = {options, parse};

int cmd_update_vm(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin};
    int result = admin_parse(admin, &argp, argc, argv, &input);

    if (result)
        return result;
    if (!input.change.store.fields && !input.change.address)
        return admin_refuse(admin, "what is to change? Expected --name, --uuid, --channels, "
                                   "--owner, --mode or --address");
    return change_vm(admin, &input.change);
}

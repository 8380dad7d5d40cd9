/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin stop-vm: the guest is asked to shut down, and waited for.  With --force
 * one that has not by then is powered off.
 */
#include "admin/commands.h"

#include <stdio.h>

#define TIMEOUT_DEFAULT_MS 120000
#define TIMEOUT_MAX_S 86400

enum { KEY_TIMEOUT = 0x100, KEY_FORCE };

static const struct argp_option options[] = {
    {"timeout", KEY_TIMEOUT, "SECONDS", 0, "How long the guest may take to shut down (default 120)",
     1},
    {"force", KEY_FORCE, NULL, 0, "Power it off when it has not shut down by then", 1},
    {0},
};

struct input {
    struct admin *admin;
    unsigned timeout_ms;
    bool force;
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;
    uint64_t seconds;

    switch (key) {
    case KEY_TIMEOUT:
        if (!text_parse_u64(value, 1, TIMEOUT_MAX_S, &seconds))
            return admin_usage(input->admin, "--timeout '%s': expected seconds from 1 to %d", value,
                               TIMEOUT_MAX_S);
        input->timeout_ms = (unsigned)(seconds * MS_PER_S);
        return 0;
    case KEY_FORCE:
        input->force = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {options, parse};

/* 1 it was stopped, 0 it was off, -1. */
static int stop(const struct input *input, struct toolstack *toolstack, const struct store_vm *vm,
                struct vgpu_error *error)
{
    struct toolstack_vm found;

    if (toolstack_find(toolstack, vm->uuid[0] ? vm->uuid : vm->name, &found, error) < 0)
        return -1;
    if (found.state == TOOLSTACK_OFF)
        return 0;
    if (toolstack_stop(toolstack, publish_handle(&found), input->timeout_ms, input->force, error) <
        0)
        return -1;
    return 1;
}

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

int cmd_stop_vm(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin, .timeout_ms = TIMEOUT_DEFAULT_MS};
    int result = admin_parse(admin, &argp, argc, argv, &input);
    char name[STORE_NAME_BYTES + 32];
    struct toolstack *toolstack;
    struct vgpu_error error;
    struct store_vm vm;

    if (result)
        return result;
    if (find(admin, &vm, &error) < 0 || publish_open(admin, &toolstack, &error) < 0)
        return admin_fail(admin, &error);
    result = stop(&input, toolstack, &vm, &error);
    if (result >= 0 && admin->json)
        output_json(json_pack("{s:o, s:s, s:b}", "vm", output_vm(&vm), "toolstack",
                              toolstack_name(toolstack), "stopped", result > 0));
    toolstack_close(toolstack);
    if (result < 0)
        return admin_fail(admin, &error);
    output_vm_name(&vm, name, sizeof(name));
    output_say(admin, "%s %s", name, result > 0 ? "is off" : "was off");
    return ADMIN_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin list-vms: the registered VMs, all or those that the filters leave. */
#include "admin/commands.h"

#include <stdio.h>
#include <stdlib.h>

enum { KEY_POOL = 0x100, KEY_PRIORITY, KEY_STATE };

static const struct argp_option options[] = {
    {"pool", KEY_POOL, "POOL", 0, "Only this pool's", 1},
    {"priority", KEY_PRIORITY, "PRIORITY", 0, "Only low, medium or high", 1},
    {"state", KEY_STATE, "STATE", 0, "Only active or quarantined", 1},
    {0},
};

struct input {
    struct admin *admin;
    const char *pool;
    char pool_id; /* '\0': any */
    uint8_t priority;
    enum store_vm_state state;
    bool priority_given, state_given;
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;
    struct vgpu_error error;

    switch (key) {
    case KEY_POOL:
        input->pool = value;
        return 0;
    case KEY_PRIORITY:
        input->priority_given = true;
        return store_check_priority(value, &input->priority, &error) < 0
                   ? admin_usage(input->admin, "--priority: %s", error.message)
                   : 0;
    case KEY_STATE:
        input->state_given = true;
        return value_state(value, &input->state, &error) < 0
                   ? admin_usage(input->admin, "--state: %s", error.message)
                   : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {options, parse};

static const struct output_column columns[] = {
    {"vm_id", "VM", true},          {"name", "NAME", false},
    {"pool", "POOL", false},        {"priority", "PRIORITY", false},
    {"state", "STATE", false},      {"channels", "CHANNELS", false},
    {"sessions", "SESSIONS", true}, {"device_memory", "MEMORY", true},
    {"uuid", "UUID", false},
};

static bool wanted(const struct input *input, const struct store_vm *vm)
{
    return (!input->pool_id || vm->pool == input->pool_id) &&
           (!input->priority_given || vm->priority == input->priority) &&
           (!input->state_given || vm->state == input->state);
}

static void add_limit(struct output *table, uint64_t limit, const char *unit)
{
    char text[32];

    snprintf(text, sizeof(text), "%llu%s", (unsigned long long)limit, unit);
    output_text(table, limit ? text : NULL);
}

static void print_table(struct admin *admin, const struct input *input, const struct store_vm *vms,
                        size_t count)
{
    struct output *table = output_new(admin, columns, VGPU_ARRAY_LENGTH(columns));

    for (size_t i = 0; i < count; i++) {
        const struct store_vm *vm = &vms[i];
        const char pool[2] = {vm->pool, '\0'};
        char channels[32];

        if (!wanted(input, vm))
            continue;
        output_channels(vm->channels, channels, sizeof(channels));
        output_number(table, vm->vm_id);
        output_text(table, vm->name);
        output_text(table, pool);
        output_text(table, output_priority(vm->priority));
        output_text(table, output_state(vm->state));
        output_text(table, channels);
        add_limit(table, vm->limits.sessions_max, "");
        add_limit(table, vm->limits.device_memory_mib, " MiB");
        output_text(table, vm->uuid);
        output_end_row(table);
    }
    output_print(table, count ? "No VM is like that."
                              : "No VM is registered: see vgpu-admin register-vm --help");
    output_free(table);
}

static void print_json(const struct input *input, const struct store_vm *vms, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; i < count; i++) {
        if (wanted(input, &vms[i]))
            json_array_append_new(array, output_vm(&vms[i]));
    }
    output_json(json_pack("{s:o}", "vms", array));
}

static int read_vms(struct input *input, struct store *store, struct store_vm **ret_vms,
                    size_t *ret_count, struct vgpu_error *error)
{
    struct store_pool pool;

    if (input->pool) {
        if (store_find_pool(store, input->pool, &pool, error) < 0)
            return -1;
        input->pool_id = pool.id;
    }
    return store_list_vms(store, ret_vms, ret_count, error);
}

int cmd_list_vms(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin};
    int result = admin_parse(admin, &argp, argc, argv, &input);
    struct store_vm *vms = NULL;
    struct vgpu_error error;
    struct store *store;
    size_t count;

    if (result)
        return result;
    if (admin_open_store(admin, STORE_READ, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = read_vms(&input, store, &vms, &count, &error);
    store_close(store);
    if (result < 0)
        return admin_fail(admin, &error);
    if (admin->json)
        print_json(&input, vms, count);
    else
        print_table(admin, &input, vms, count);
    free(vms);
    return ADMIN_OK;
}

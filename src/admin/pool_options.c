/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options that create-pool and update-pool share: what a pool is.
 */
#include "admin/pool_options.h"

#include <errno.h>
#include <string.h>

enum {
    KEY_NAME = 0x100,
    KEY_DESCRIPTION,
    KEY_ENABLED,
    KEY_SHARING,
    KEY_DEVICE,
    KEY_PLACEMENT,
    KEY_SESSION_DEVICES,
    KEY_POLICY,
    KEY_AGING,
    KEY_DEMAND,
    KEY_VMS_MAX,
    KEY_DEVICE_MEMORY_MAX,
};

static const struct argp_option options[] = {
    {"name", KEY_NAME, "NAME", 0, "Its name", 1},
    {"description", KEY_DESCRIPTION, "TEXT", 0, "What it is for", 1},
    {"enabled", KEY_ENABLED, "yes|no", 0, "no: no VM joins it, and its VMs' requests are refused",
     1},
    {"sharing", KEY_SHARING, "MODE", 0,
     "With other pools of its device: shared (one queue) or independent (in turn)", 1},
    {"device", KEY_DEVICE, "DEVICE", 0,
     "What computes: cpu, cpu:N, GPU-<uuid>, MIG-<uuid>; up to 8 with commas between", 1},
    {"placement", KEY_PLACEMENT, "MODE", 0,
     "Which of several devices a session gets: spread (the least loaded) or pack (fill one, then "
     "the next)",
     1},
    {"session-devices", KEY_SESSION_DEVICES, "N", 0,
     "How many of its devices each window session has, 1 to 8", 1},
    {"policy", KEY_POLICY, "POLICY", 0,
     "Who runs next: strict (by priority), wfq (by weight), fifo, round-robin, or default (the "
     "mediator's)",
     1},
    {"aging", KEY_AGING, "MS", 0,
     "strict: who has waited so long goes one priority up, or none for never", 1},
    {"demand", KEY_DEMAND, "yes|no", 0, "wfq: grants grow and shrink with what VMs ask for", 1},
    {"vms-max", KEY_VMS_MAX, "N", 0, "Most VMs, or none for no bound", 2},
    {"device-memory-max", KEY_DEVICE_MEMORY_MAX, "MIB", 0,
     "Most device memory of its VMs together, or none", 2},
    {0},
};

static int parse_capacity(struct pool_options *input, int key, const char *value,
                          struct vgpu_error *error)
{
    struct store_pool *values = &input->change.store.values;
    uint64_t number;

    if (value_number(value, key == KEY_VMS_MAX ? STORE_VM_ID_MAX : STORE_POOL_MEMORY_MIB_MAX,
                     "none", &number, error) < 0)
        return -1;
    if (key == KEY_VMS_MAX) {
        input->change.store.fields |= STORE_POOL_VMS_MAX;
        values->vms_max = (uint32_t)number;
    } else {
        input->change.store.fields |= STORE_POOL_DEVICE_MEMORY;
        values->device_memory_max_mib = number;
    }
    return 0;
}

static int parse_policy(struct pool_options *input, int key, const char *value,
                        struct vgpu_error *error)
{
    struct store_pool *values = &input->change.store.values;
    uint64_t number;

    if (key == KEY_POLICY) {
        input->change.store.fields |= STORE_POOL_POLICY;
        return store_check_policy(value, &values->policy, error);
    }
    if (key == KEY_DEMAND) {
        input->change.store.fields |= STORE_POOL_DEMAND;
        return value_yes_no(value, &values->demand, error);
    }
    if (value_number(value, STORE_AGING_MS_MAX, "none", &number, error) < 0)
        return -1;
    input->change.store.fields |= STORE_POOL_AGING;
    values->aging_ms = (uint32_t)number;
    return 0;
}

static int parse_device(struct pool_options *input, const char *value, struct vgpu_error *error)
{
    input->change.store.fields |= STORE_POOL_DEVICE;
    input->change.devices = true;
    return value_devices(value, input->change.store.values.device, error);
}

static int parse_description(struct pool_options *input, const char *value,
                             struct vgpu_error *error)
{
    char shown[2 * STORE_DESCRIPTION_BYTES];

    text_escape(shown, sizeof(shown), value, strlen(value));
    if (strlen(value) >= STORE_DESCRIPTION_BYTES || strcmp(shown, value) != 0)
        return error_set(error, EINVAL,
                         "'%.100s...': expected at most %d printable ASCII "
                         "characters",
                         shown, STORE_DESCRIPTION_BYTES - 1);
    input->change.store.fields |= STORE_POOL_DESCRIPTION;
    text_copy(input->change.store.values.description, STORE_DESCRIPTION_BYTES, value);
    return 0;
}

static int parse_value(struct pool_options *input, int key, const char *value,
                       struct vgpu_error *error)
{
    struct store_pool *values = &input->change.store.values;

    switch (key) {
    case KEY_NAME:
        input->change.store.fields |= STORE_POOL_NAME;
        text_copy(values->name, sizeof(values->name), value);
        return store_check_name(value, error);
    case KEY_DESCRIPTION:
        return parse_description(input, value, error);
    case KEY_ENABLED:
        input->change.store.fields |= STORE_POOL_ENABLED;
        return value_yes_no(value, &values->enabled, error);
    case KEY_SHARING:
        input->change.store.fields |= STORE_POOL_SHARING;
        return value_sharing(value, &values->sharing, error);
    case KEY_DEVICE:
        return parse_device(input, value, error);
    case KEY_PLACEMENT:
        input->change.store.fields |= STORE_POOL_PLACEMENT;
        return value_placement(value, &values->pack, error);
    case KEY_SESSION_DEVICES:
        input->change.store.fields |= STORE_POOL_SESSION_DEVICES;
        return value_session_devices(value, &values->session_devices, error);
    case KEY_POLICY:
    case KEY_AGING:
    case KEY_DEMAND:
        return parse_policy(input, key, value, error);
    default:
        return parse_capacity(input, key, value, error);
    }
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct pool_options *input = state->input;
    struct vgpu_error error;

    if (key < KEY_NAME || key > KEY_DEVICE_MEMORY_MAX)
        return ARGP_ERR_UNKNOWN;
    return parse_value(input, key, value, &error) < 0
               ? admin_usage(input->admin, "--%s: %s", options[key - KEY_NAME].name, error.message)
               : 0;
}

const struct argp pool_options_argp = {options, parse};

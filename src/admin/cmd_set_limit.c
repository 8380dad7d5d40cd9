/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin set-limit: what a VM may use at most; `default` is the mediator's. */
#include "admin/commands.h"
#include "admin/limit_options.h"

#define KEY_FIRST 0x100 /* in the order of store_limits */

static const struct argp_option options[] = {LIMIT_OPTIONS(KEY_FIRST, 1), {0}};

_Static_assert(VGPU_ARRAY_LENGTH(options) == STORE_LIMITS + 1, "one option a limit");

struct input {
    struct admin *admin;
    struct vm_change change;
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;
    struct vgpu_error error;
    unsigned index;

    if (key < KEY_FIRST || key >= KEY_FIRST + (int)STORE_LIMITS)
        return ARGP_ERR_UNKNOWN;
    index = (unsigned)(key - KEY_FIRST);
    if (limit_parse(&input->change.store.values.limits, index, value, &error) < 0)
        return admin_usage(input->admin, "--%s: %s", options[index].name, error.message);
    input->change.store.fields |= store_limits[index].field;
    return 0;
}

static const struct argp argp = {options, parse};

int cmd_set_limit(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin};
    int result = admin_parse(admin, &argp, argc, argv, &input);

    if (result)
        return result;
    if (!input.change.store.fields)
        return admin_refuse(admin, "which limit? Expected --sessions, --device-memory, "
                                   "--operation-limit, --weight, --request-rate, --request-burst, "
                                   "--device-share, --queue-depth, --inflight-ops or "
                                   "--inflight-kib");
    return change_vm(admin, &input.change);
}

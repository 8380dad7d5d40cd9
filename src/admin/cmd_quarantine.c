/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin quarantine: a VM's requests are refused, with the reason. */
#include "admin/commands.h"

#include <string.h>

enum { KEY_REASON = 0x100 };

static const struct argp_option options[] = {
    {"reason", KEY_REASON, "TEXT", 0, "What its guest is told (default: as it is, or by whom)", 1},
    {0}};

struct input {
    struct admin *admin;
    const char *reason;
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;
    char shown[2 * STORE_REASON_BYTES];

    if (key != KEY_REASON)
        return ARGP_ERR_UNKNOWN;
    text_escape(shown, sizeof(shown), value, strlen(value));
    if (!value[0] || strlen(value) >= STORE_REASON_BYTES || strcmp(shown, value) != 0)
        return admin_usage(input->admin,
                           "--reason '%s': expected 1 to %d printable ASCII characters", shown,
                           STORE_REASON_BYTES - 1);
    input->reason = value;
    return 0;
}

static const struct argp argp = {options, parse};

int cmd_quarantine(struct admin *admin, int argc, char **argv)
{
    struct vm_change change = {.store.fields = STORE_VM_STATE};
    struct store_vm *values = &change.store.values;
    struct input input = {.admin = admin, .reason = NULL};
    int result = admin_parse(admin, &argp, argc, argv, &input);

    if (result)
        return result;
    values->state = STORE_VM_QUARANTINED;
    change.keep_reason = !input.reason;
    text_copy(values->reason, sizeof(values->reason),
              input.reason ? input.reason : "by the administrator");
    return change_vm(admin, &change);
}

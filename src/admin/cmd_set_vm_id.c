/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin set-vm-id: another number for a VM.  What it means is shown and asked
 * for first; see renumber.c for what happens then.
 */
#include "admin/commands.h"

#include "admin/renumber.h"

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

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct renumber *renumber = state->input;
    uint64_t seconds;

    switch (key) {
    case KEY_TIMEOUT:
        if (!text_parse_u64(value, 1, TIMEOUT_MAX_S, &seconds))
            return admin_usage(renumber->admin, "--timeout '%s': expected seconds from 1 to %d",
                               value, TIMEOUT_MAX_S);
        renumber->timeout_ms = (unsigned)(seconds * MS_PER_S);
        return 0;
    case KEY_FORCE:
        renumber->force = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {options, parse};

static const char *guests_part(const struct renumber *renumber)
{
    bool off = renumber->machine.state == TOOLSTACK_OFF;

    if (!renumber->toolstack)
        return renumber->finishing ? "."
                                   : ". No toolstack here knows it: shut it down yourself first, "
                                     "and change its device's vm_id.";
    if (!renumber_restarts(renumber))
        return off ? ". It is off." : ". It runs.";
    return off ? ". It ran when an earlier call was interrupted: it is started again."
               : ". It runs: it is shut down and started again.";
}

/* Old and new, and what happens to the guest. */
static int ask(struct renumber *renumber, struct vgpu_error *error)
{
    const struct admin *admin = renumber->admin;
    char name[STORE_NAME_BYTES + 32], question[VGPU_ERROR_BYTES];
    size_t used;

    output_vm_name(&renumber->before, name, sizeof(name));
    used = (size_t)snprintf(question, sizeof(question), "%s %s VM %u", name,
                            renumber->finishing ? "became, by a call that was interrupted,"
                                                : "becomes",
                            renumber->vm_id);
    if (!renumber->finishing && admin->share[0] &&
        (renumber->before.channels & STORE_CHANNEL_FILE) && used < sizeof(question))
        used += (size_t)snprintf(question + used, sizeof(question) - used,
                                 ", directory vm%u becomes vm%u", renumber->before.vm_id,
                                 renumber->vm_id);
    if (used < sizeof(question))
        snprintf(question + used, sizeof(question) - used, "%s %s", guests_part(renumber),
                 renumber->finishing ? "Finish it?" : "Do it?");
    return ask_yes(renumber->admin, question, error);
}

static void answer(struct renumber *renumber)
{
    char name[STORE_NAME_BYTES + 32], sentence[256];

    output_vm_name(&renumber->before, name, sizeof(name));
    snprintf(sentence, sizeof(sentence), "%s is VM %u now%s", name, renumber->vm_id,
             renumber->stopped ? ", and runs again" : "");
    change_answer(renumber->admin,
                  json_pack("{s:o, s:o, s:b, s:s?}", "vm", output_vm(&renumber->after), "before",
                            output_vm(&renumber->before), "restarted", renumber->stopped,
                            "toolstack",
                            renumber->toolstack ? toolstack_name(renumber->toolstack) : NULL),
                  sentence);
}

static int renumber_asked(struct renumber *renumber)
{
    struct vgpu_error error;
    int yes;

    if (renumber_prepare(renumber, &error) < 0)
        return admin_fail(renumber->admin, &error);
    yes = ask(renumber, &error);
    if (yes < 0)
        return admin_fail(renumber->admin, &error);
    if (yes == 0)
        return admin_decline(renumber->admin);
    if (renumber_run(renumber, &error) < 0)
        return admin_fail(renumber->admin, &error);
    answer(renumber);
    return ADMIN_OK;
}

int cmd_set_vm_id(struct admin *admin, int argc, char **argv)
{
    struct renumber renumber = {.admin = admin, .timeout_ms = TIMEOUT_DEFAULT_MS, .turn = -1};
    int result = admin_parse(admin, &argp, argc, argv, &renumber);
    struct vgpu_error error;

    if (result)
        return result;
    if (store_check_vm_id(admin->words[1], &renumber.vm_id, &error) < 0)
        return admin_fail(admin, &error);
    result = renumber_asked(&renumber);
    renumber_free(&renumber);
    return result;
}

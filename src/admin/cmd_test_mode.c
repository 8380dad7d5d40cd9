/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin test-mode: hold requests until several VMs wait, and say in which order
 * they go. */
#include "admin/commands.h"
#include "admin/live_view.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_HOLD_UNTIL = 0x100, KEY_SIMULTANEOUS, KEY_WINNER };

static const struct argp_option options[] = {
    {"hold-until", KEY_HOLD_UNTIL, "N", 0, "With on: hold until so many VMs wait (default 2)", 1},
    {"simultaneous", KEY_SIMULTANEOUS, "yes|no", 0,
     "With answer: whether the requests that wait count as simultaneous", 1},
    {"winner", KEY_WINNER, "VM", 0, "With answer: who goes first among equals", 1},
    {0},
};

struct input {
    struct admin *admin;
    uint64_t hold_until;
    bool simultaneous, simultaneous_given;
    const char *winner;
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;
    struct vgpu_error error;

    switch (key) {
    case KEY_HOLD_UNTIL:
        return text_parse_u64(value, 1, 10000, &input->hold_until)
                   ? 0
                   : admin_usage(input->admin,
                                 "--hold-until: expected a whole number from 1 to "
                                 "10000, not '%s'",
                                 value);
    case KEY_SIMULTANEOUS:
        input->simultaneous_given = true;
        return value_yes_no(value, &input->simultaneous, &error) < 0
                   ? admin_usage(input->admin, "--simultaneous: %s", error.message)
                   : 0;
    case KEY_WINNER:
        input->winner = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {options, parse};

/* By id without the database, which the mediator may do without. */
static int find_winner(struct admin *admin, const char *text, uint32_t *ret_vm_id,
                       struct vgpu_error *error)
{
    struct store_vm vm;
    struct store *store;
    uint64_t vm_id;
    int result;

    if (text_parse_u64(text, 1, UINT32_MAX, &vm_id)) {
        *ret_vm_id = (uint32_t)vm_id;
        return 0;
    }
    if (admin_open_store(admin, STORE_READ, &store, error) < 0)
        return -1;
    result = store_find_vm(store, text, &vm, error);
    store_close(store);
    if (result == 0)
        *ret_vm_id = vm.vm_id;
    return result;
}

/* Returns the arguments of the command, or NULL with *exit_code. */
static json_t *answer_arguments(struct input *input, int *exit_code)
{
    struct admin *admin = input->admin;
    struct vgpu_error error;
    uint32_t winner = 0;
    int yes = input->simultaneous;

    if (!input->simultaneous_given)
        yes = input->winner ? 1 : ask_yes(admin, "Treat what waits as simultaneous?", &error);
    if (yes < 0 || (input->winner && find_winner(admin, input->winner, &winner, &error) < 0)) {
        *exit_code = admin_fail(admin, &error);
        return NULL;
    }
    json_t *arguments = json_pack("{s:s, s:b}", "action", "answer", "simultaneous", yes);

    if (winner)
        json_object_set_new(arguments, "winner", json_integer(winner));
    return arguments;
}

static json_t *make_arguments(struct input *input, const char *mode, int *exit_code)
{
    bool on = strcmp(mode, "on") == 0, answer = strcmp(mode, "answer") == 0;
    json_t *arguments;

    *exit_code = ADMIN_OK;
    if (!on && !answer && strcmp(mode, "off") != 0 && strcmp(mode, "show") != 0)
        *exit_code = admin_refuse(input->admin, "MODE: expected on, off, answer or show");
    else if (!on && input->hold_until)
        *exit_code = admin_refuse(input->admin, "--hold-until belongs to the mode on");
    else if (!answer && (input->winner || input->simultaneous_given))
        *exit_code =
            admin_refuse(input->admin, "--simultaneous and --winner belong to the mode answer");
    if (*exit_code)
        return NULL;
    if (answer)
        return answer_arguments(input, exit_code);
    arguments = json_pack("{s:s}", "action", mode);
    if (input->hold_until)
        json_object_set_new(arguments, "hold_until", json_integer((json_int_t)input->hold_until));
    return arguments;
}

static void print_state(struct admin *admin, const json_t *test)
{
    const json_t *vm;
    char list[256] = "";
    size_t i;

    json_array_foreach(json_object_get(test, "waiting"), i, vm)
    {
        size_t used = strlen(list);

        snprintf(list + used, sizeof(list) - used, " %llu",
                 (unsigned long long)json_integer_value(vm));
    }
    if (!view_flag(test, "on"))
        output_say(admin, "Test mode is off.");
    else if (view_flag(test, "asks"))
        output_say(admin,
                   "Test mode asks: VMs%s wait. Are their requests simultaneous? (vgpu-admin "
                   "test-mode answer)",
                   list);
    else if (view_flag(test, "holding"))
        output_say(admin, "Test mode is on: requests are held until %llu VMs wait.%s%s",
                   (unsigned long long)view_number(test, "hold_until"), list[0] ? " Waiting:" : "",
                   list);
    else
        output_say(admin, "Test mode is on: what waited runs; after it requests are held again.");
}

/* Who waits is not what was changed. */
static char *mode_text(const json_t *state)
{
    json_t *mode = json_pack("{s:O, s:O}", "on", json_object_get(state, "on"), "hold_until",
                             json_object_get(state, "hold_until"));
    char *text = mode ? json_dumps(mode, JSON_COMPACT) : NULL;

    json_decref(mode);
    return text;
}

static void put_on_record(struct admin *admin, const json_t *arguments, const json_t *before,
                          const json_t *after)
{
    bool answer = strcmp(admin->words[0], "answer") == 0;
    char *old = answer ? NULL : mode_text(before);
    char *new = answer ? json_dumps(arguments, JSON_COMPACT) : mode_text(after);

    if (answer || (old && new &&strcmp(old, new) != 0))
        admin_record(admin, old ? old : "", new ? new : "");
    free(old);
    free(new);
}

/* What it was is asked first, for the audit. */
static int drive(struct admin *admin, json_t *arguments, json_t **ret_state,
                 struct vgpu_error *error)
{
    json_t *show = json_pack("{s:s}", "action", "show"), *before = NULL;
    int result = live_call(admin, "test-mode", show, &before, error);

    json_decref(show);
    if (result == 0)
        result = live_call(admin, "test-mode", arguments, ret_state, error);
    if (result == 0)
        put_on_record(admin, arguments, before, *ret_state);
    json_decref(before);
    return result;
}

int cmd_test_mode(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin};
    int result = admin_parse(admin, &argp, argc, argv, &input);
    json_t *arguments, *state;
    struct vgpu_error error;

    if (result)
        return result;
    arguments = make_arguments(&input, admin->words[0], &result);
    if (!arguments)
        return result;
    result = drive(admin, arguments, &state, &error);
    json_decref(arguments);
    if (result < 0)
        return admin_fail(admin, &error);
    if (admin->json) {
        output_json(state);
        return ADMIN_OK;
    }
    print_state(admin, state);
    json_decref(state);
    return ADMIN_OK;
}

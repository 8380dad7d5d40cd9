/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can be asked on the control socket: one table, one function each.  A command
 * judges its arguments itself; one that it does not know is an error, not a wish that
 * nobody hears.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define HOLD_UNTIL_MAX 10000

struct call {
    struct mediator *mediator;
    const json_t *arguments; /* NULL: none */
    bool *ret_sync;
    struct control_failure *failure;
};

static json_t *fail(const struct call *call, const char *code, const char *format, ...)
    VGPU_PRINTF(3, 4);

static json_t *fail(const struct call *call, const char *code, const char *format, ...)
{
    va_list args;

    text_copy(call->failure->code, sizeof(call->failure->code), code);
    va_start(args, format);
    vsnprintf(call->failure->message, sizeof(call->failure->message), format, args);
    va_end(args);
    return NULL;
}

/* --- arguments ------------------------------------------------------------------------- */

/* A name that came from outside, for a message. */
static const char *shown(const char *name, char text[64])
{
    text_escape(text, 64, name, strlen(name));
    return text;
}

/* False, with the failure said, when there is an argument that is not in `known`, a list
 * ended by NULL. */
static bool arguments_are(const struct call *call, const char *command, const char *const *known)
{
    const char *name;
    json_t *value;
    char text[64];

    /* jansson has no iteration over what is const; nothing is changed. */
    json_object_foreach((json_t *)call->arguments, name, value)
    {
        const char *const *at = known;

        while (*at && strcmp(*at, name) != 0)
            at++;
        if (!*at) {
            fail(call, "bad-argument", "%s has no argument '%s'", command, shown(name, text));
            return false;
        }
    }
    return true;
}

/* A whole number; `missing` where there is none.  False, with the failure said, when it
 * is something else. */
static bool number_argument(const struct call *call, const char *name, uint32_t max,
                            uint32_t missing, uint32_t *ret_number)
{
    const json_t *value = json_object_get(call->arguments, name);
    json_int_t number = json_integer_value(value);

    if (!value) {
        *ret_number = missing;
        return true;
    }
    if (!json_is_integer(value) || number < 1 || number > (json_int_t)max) {
        fail(call, "bad-argument", "%s: expected a whole number from 1 to %u", name, max);
        return false;
    }
    *ret_number = (uint32_t)number;
    return true;
}

/* --- hello, status, queue ----------------------------------------------------------------- */

static json_t *run_hello(const struct call *call)
{
    static const char *const known[] = {NULL};

    return arguments_are(call, "hello", known) ? status_hello(call->mediator) : NULL;
}

static json_t *run_status(const struct call *call)
{
    static const char *const known[] = {"vm_id", "vms_from", NULL};
    uint32_t vm_id, vms_from;

    if (!arguments_are(call, "status", known) ||
        !number_argument(call, "vm_id", UINT32_MAX, 0, &vm_id) ||
        !number_argument(call, "vms_from", UINT32_MAX, 0, &vms_from))
        return NULL;
    if (vm_id && !vm_find(call->mediator, vm_id))
        return fail(call, "no-such-vm", "this mediator knows no VM %u", vm_id);
    return status_all(call->mediator, vm_id, vms_from);
}

static json_t *run_queue(const struct call *call)
{
    static const char *const known[] = {NULL};

    return arguments_are(call, "queue", known) ? status_queue(call->mediator) : NULL;
}

/* A pool's letter; '\0' where there is none. */
static bool pool_argument(const struct call *call, char *ret_pool)
{
    const json_t *value = json_object_get(call->arguments, "pool");
    const char *text = json_string_value(value);

    *ret_pool = '\0';
    if (!value)
        return true;
    if (!text || text[0] < 'A' || text[0] > 'Z' || text[1] != '\0') {
        fail(call, "bad-argument", "pool: expected one letter from A to Z");
        return false;
    }
    *ret_pool = text[0];
    return true;
}

static json_t *run_stats(const struct call *call)
{
    static const char *const known[] = {"vm_id", "pool", NULL};
    uint32_t vm_id;
    char pool;

    if (!arguments_are(call, "stats", known) ||
        !number_argument(call, "vm_id", UINT32_MAX, 0, &vm_id) || !pool_argument(call, &pool))
        return NULL;
    if (vm_id && !vm_find(call->mediator, vm_id))
        return fail(call, "no-such-vm", "this mediator knows no VM %u", vm_id);
    if (pool && !mediator_find_pool(call->mediator, pool))
        return fail(call, "no-such-pool", "this mediator knows no pool %c", pool);
    return stats_all(call->mediator, vm_id, pool);
}

/* --- reload --------------------------------------------------------------------------------- */

static json_t *describe_change(const struct reload_change *change)
{
    const char pool[2] = {change->pool, '\0'};
    json_t *object = json_pack("{s:s, s:s, s:s}", "what", change->what, "before", change->before,
                               "after", change->after);

    if (change->vm_id)
        json_object_set_new(object, "vm_id", json_integer(change->vm_id));
    else if (change->pool)
        json_object_set_new(object, "pool", json_string(pool));
    return object;
}

/* Who changed another database must know that it was not read. */
static json_t *database_name(const struct mediator *mediator)
{
    const char *path = mediator->config->database;

    return path[0] ? json_string(path) : json_null();
}

static json_t *describe_report(const struct mediator *mediator, const struct reload_report *report)
{
    json_t *changes = json_array(), *next_start = json_array();

    for (size_t i = 0; i < report->count && i < RELOAD_CHANGES_MAX; i++)
        json_array_append_new(changes, describe_change(&report->changes[i]));
    for (size_t i = 0; i < report->next_start_count; i++)
        json_array_append_new(next_start, json_string(report->next_start[i]));
    return json_pack("{s:I, s:o, s:o, s:o}", "count", (json_int_t)report->count, "changes", changes,
                     "next_start", next_start, "database", database_name(mediator));
}

static json_t *fail_reload(const struct call *call, const struct vgpu_error *error)
{
    if (error->code == EBUSY)
        return fail(call, "busy", "%s", error->message);
    if (error->code == EINVAL)
        return fail(call, "wrong-configuration", "%s", error->message);
    return fail(call, "not-read", "%s", error->message);
}

static json_t *run_reload(const struct call *call)
{
    static const char *const known[] = {NULL};
    struct reload_report report;
    struct vgpu_error error;
    json_t *result;

    if (!arguments_are(call, "reload", known))
        return NULL;
    if (call->mediator->stopping)
        return fail(call, "stopping", "the mediator is being stopped");
    if (!mediator_has_recovered(call->mediator)) {
        call->mediator->reload_pending = true; /* before anything runs */
        return json_pack("{s:i, s:[], s:[], s:b, s:o}", "count", 0, "changes", "next_start",
                         "pending", 1, "database", database_name(call->mediator));
    }
    if (reload_apply(call->mediator, &report, &error) < 0)
        return fail_reload(call, &error);
    result = describe_report(call->mediator, &report);
    reload_report_free(&report);
    *call->ret_sync = true;
    return result;
}

/* --- release -------------------------------------------------------------------------------- */

static struct vm *find_named(struct mediator *mediator, const char *word)
{
    struct vm *vm, *next;
    uint64_t vm_id;

    if (text_parse_u64(word, 1, UINT32_MAX, &vm_id) && vm_find(mediator, (uint32_t)vm_id))
        return vm_find(mediator, (uint32_t)vm_id);
    HASH_ITER (hh, mediator->vms, vm, next) {
        if ((vm->settings.name[0] && strcmp(vm->settings.name, word) == 0) ||
            (vm->settings.uuid[0] && strcmp(vm->settings.uuid, word) == 0))
            return vm;
    }
    return NULL;
}

/* Of a quarantine that is the mediator's own; one in the database ends there. */
static json_t *run_release(const struct call *call)
{
    static const char *const known[] = {"vm", NULL};
    const char *word = json_string_value(json_object_get(call->arguments, "vm"));
    struct vm *vm;
    char text[64];

    if (!arguments_are(call, "release", known))
        return NULL;
    if (!word)
        return fail(call, "bad-argument", "vm: expected the number, the name or the UUID of a VM");
    vm = find_named(call->mediator, word);
    if (!vm)
        return fail(call, "no-such-vm", "this mediator knows no VM '%s'", shown(word, text));
    return json_pack("{s:I, s:b}", "vm_id", (json_int_t)vm->vm_id, "released",
                     quarantine_release(vm));
}

/* --- test-mode ------------------------------------------------------------------------------ */

static json_t *answer_test_mode(const struct call *call)
{
    struct test_mode *test = &call->mediator->test;
    const json_t *simultaneous = json_object_get(call->arguments, "simultaneous");
    struct vgpu_error error;
    uint32_t winner;

    if (!json_is_boolean(simultaneous))
        return fail(call, "bad-argument", "simultaneous: expected true or false");
    if (!number_argument(call, "winner", UINT32_MAX, 0, &winner))
        return NULL;
    if (!test->active)
        return fail(call, "test-mode-off", "test mode is off");
    if (test_mode_answer(test, json_is_true(simultaneous), winner, &error) < 0)
        return fail(call, error.code == EAGAIN ? "not-asked" : "bad-argument", "%s", error.message);
    return status_test_mode(test);
}

static json_t *turn_on_test_mode(const struct call *call)
{
    struct test_mode *test = &call->mediator->test;
    uint32_t hold_until;

    if (!number_argument(call, "hold_until", HOLD_UNTIL_MAX, 0, &hold_until))
        return NULL;
    if (json_object_get(call->arguments, "simultaneous") ||
        json_object_get(call->arguments, "winner"))
        return fail(call, "bad-argument", "simultaneous and winner belong to the action 'answer'");
    test_mode_on(test, call->mediator, hold_until);
    return status_test_mode(test);
}

static json_t *run_test_mode(const struct call *call)
{
    static const char *const known[] = {"action", "hold_until", "simultaneous", "winner", NULL};
    const char *action = json_string_value(json_object_get(call->arguments, "action"));
    struct test_mode *test = &call->mediator->test;

    if (!arguments_are(call, "test-mode", known))
        return NULL;
    if (action && strcmp(action, "on") == 0)
        return turn_on_test_mode(call);
    if (action && strcmp(action, "answer") == 0)
        return answer_test_mode(call);
    if (action && strcmp(action, "off") == 0)
        test_mode_off(test);
    else if (!action || strcmp(action, "show") != 0)
        return fail(call, "bad-argument", "action: expected on, off, answer or show");
    return status_test_mode(test);
}

/* --- the table -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    json_t *(*run)(const struct call *call);
} commands[] = {
    {"hello", run_hello},     {"status", run_status}, {"queue", run_queue},
    {"stats", run_stats},     {"reload", run_reload}, {"test-mode", run_test_mode},
    {"release", run_release},
};

json_t *command_run(struct mediator *mediator, const char *command, const json_t *arguments,
                    bool *ret_sync, struct control_failure *failure)
{
    const struct call call = {mediator, arguments, ret_sync, failure};
    char text[64];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(commands); i++) {
        if (strcmp(commands[i].name, command) == 0)
            return commands[i].run(&call);
    }
    return fail(&call, "unknown-command",
                "there is no command '%s': hello, status, queue, stats, reload, test-mode and "
                "release are all",
                shown(command, text));
}

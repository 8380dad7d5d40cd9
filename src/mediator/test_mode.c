/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test mode: hold requests until several VMs wait, so that their order can be
 * seen and steered.
 *
 *   holding ── enough VMs wait ──▶ ask (or not) ──▶ released
 *      ▲                                              │
 *      └────────────── queue empty, nothing runs ─────┘
 *
 * Asked on the terminal, or by the control socket: are they simultaneous?  If so,
 * which VM wins ties?  With --hold-until and --prefer-vm the answers are given
 * beforehand.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define DEFAULT_HOLD_UNTIL 2

static void say(const char *format, ...) VGPU_PRINTF(1, 2);

static void say(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    fflush(stdout);
}

static void hold(struct test_mode *test)
{
    test->holding = true;
    sched_hold(test->mediator->sched, true);
    log_event("TEST", NULL, 0, "holding until %u VMs wait", test->hold_until);
}

static void release(struct test_mode *test, uint32_t prefer_vm)
{
    const struct log_field fields[] = {LOG_NUMBER("prefer_vm", prefer_vm)};

    test->holding = false;
    test->question = TEST_MODE_QUIET;
    sched_prefer(test->mediator->sched, prefer_vm);
    sched_hold(test->mediator->sched, false);
    if (prefer_vm)
        log_event("TEST", fields, 1, "released: vm=%u wins ties", prefer_vm);
    else
        log_event("TEST", fields, 1, "released: first come, first served");
}

/* VMs that wait, for the device or for a context of it. */
static uint32_t count_waiting(const struct test_mode *test)
{
    return sched_waiting(test->mediator->sched, 0) + contexts_waiting_vms(test->mediator);
}

/* --- the questions ------------------------------------------------------------------ */

static bool waits(struct test_mode *test, uint32_t vm_id)
{
    const struct vm *vm = vm_find(test->mediator, vm_id);

    return vm && vm_waiting(vm) > 0;
}

static void ask_simultaneous(struct test_mode *test)
{
    struct vm *vm, *next;
    char text[VGPU_COMMAND_MAX_BYTES + 1];

    test->question = TEST_MODE_ASKS_SIMULTANEOUS;
    if (!test->terminal_open) {
        log_event("TEST", NULL, 0, "%u VMs wait: simultaneous? (vgpu-admin test-mode answer)",
                  count_waiting(test));
        return;
    }
    say("\n%u VMs wait:\n", count_waiting(test));
    HASH_ITER (hh, test->mediator->vms, vm, next) {
        const struct session *first = vm_first_waiting(vm);

        if (!first)
            continue;
        first->ops->describe(first, text, sizeof(text));
        say("  vm=%u  pool %c  priority %s  %s\n", vm->vm_id, vm_pool(vm),
            protocol_priority_name(vm_priority(vm)), text);
    }
    say("Treat them as simultaneous? [YES/NO] ");
}

static void ask_winner(struct test_mode *test)
{
    say("Which VM wins ties? [id, or Enter for first come] ");
    test->question = TEST_MODE_ASKS_WINNER;
}

static void take_simultaneous(struct test_mode *test, const char *line)
{
    if (strcasecmp(line, "yes") == 0 || strcasecmp(line, "y") == 0) {
        ask_winner(test);
    } else if (strcasecmp(line, "no") == 0 || strcasecmp(line, "n") == 0) {
        release(test, 0);
    } else {
        say("'%s' is neither YES nor NO.\n", line);
        ask_simultaneous(test);
    }
}

static void take_winner(struct test_mode *test, const char *line)
{
    uint64_t vm_id;

    if (line[0] == '\0') {
        release(test, 0);
    } else if (text_parse_u64(line, 1, UINT32_MAX, &vm_id) && waits(test, (uint32_t)vm_id)) {
        release(test, (uint32_t)vm_id);
    } else {
        say("'%s' is not the id of a VM that waits.\n", line);
        ask_winner(test);
    }
}

static void take_line(struct test_mode *test, const char *line)
{
    if (test->question == TEST_MODE_ASKS_SIMULTANEOUS)
        take_simultaneous(test, line);
    else if (test->question == TEST_MODE_ASKS_WINNER)
        take_winner(test, line);
    /* else: nothing was asked */
}

/* --- the terminal ---------------------------------------------------------------------- */

static void lose_terminal(struct test_mode *test)
{
    log_warning("test mode: the terminal is gone; requests go on, first come, first served");
    uv_close((uv_handle_t *)&test->terminal, NULL);
    test->terminal_open = false;
    test_mode_off(test);
}

static void take_bytes(struct test_mode *test, const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != '\n') {
            if (bytes[i] != '\r' && test->line_bytes < sizeof(test->line) - 1)
                test->line[test->line_bytes++] = bytes[i];
            continue;
        }
        test->line[test->line_bytes] = '\0';
        test->line_bytes = 0;
        take_line(test, test->line);
    }
}

static void on_terminal(uv_poll_t *poll, int status, int events)
{
    struct test_mode *test = poll->data;
    char bytes[64];
    ssize_t count;

    (void)events;
    count = status < 0 ? 0 : read(STDIN_FILENO, bytes, sizeof(bytes));
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count <= 0)
        lose_terminal(test);
    else
        take_bytes(test, bytes, (size_t)count);
}

/* --- life --------------------------------------------------------------------------------- */

int test_mode_start(struct test_mode *test, struct mediator *mediator, struct vgpu_error *error)
{
    int failure;

    test->mediator = mediator;
    test->ask = test->hold_until == 0;
    if (test->ask) {
        test->hold_until = DEFAULT_HOLD_UNTIL;
        failure = isatty(STDIN_FILENO)
                      ? uv_poll_init(&mediator->loop, &test->terminal, STDIN_FILENO)
                      : UV_ENOTTY;
        if (failure < 0)
            return error_set(error, -failure,
                             "--test-mode asks on the terminal, and standard input is none (%s): "
                             "use --hold-until N, with --prefer-vm ID if wanted",
                             uv_strerror(failure));
        test->terminal.data = test;
        test->terminal_open = true;
        uv_poll_start(&test->terminal, UV_READABLE, on_terminal);
    }
    test->active = true;
    hold(test);
    return 0;
}

void test_mode_update(struct test_mode *test)
{
    uint32_t waiting = count_waiting(test);

    if (!test->holding) {
        if (waiting == 0 && test->mediator->running == 0)
            hold(test);
        return;
    }
    if (test->question != TEST_MODE_QUIET || waiting < test->hold_until)
        return;
    if (test->ask)
        ask_simultaneous(test);
    else
        release(test, test->prefer_vm);
}

/* --- by the control socket ------------------------------------------------------------- */

void test_mode_on(struct test_mode *test, struct mediator *mediator, uint32_t hold_until)
{
    test->mediator = mediator;
    test->hold_until = hold_until ? hold_until : DEFAULT_HOLD_UNTIL;
    test->ask = true;
    test->active = true;
    mediator_set_grants(mediator);
    if (!test->holding)
        hold(test);
}

void test_mode_off(struct test_mode *test)
{
    if (!test->active)
        return;
    test->active = false;
    test->mediator->options.test_mode = false;
    test->mediator->options.hold_until = 0;
    mediator_set_grants(test->mediator);
    release(test, 0);
}

int test_mode_answer(struct test_mode *test, bool simultaneous, uint32_t winner,
                     struct vgpu_error *error)
{
    if (test->question == TEST_MODE_QUIET)
        return error_set(error, EAGAIN, "test mode asks nothing now: %u of %u VMs wait",
                         test->mediator ? count_waiting(test) : 0, test->hold_until);
    if (winner && !simultaneous)
        return error_set(error, EINVAL,
                         "a winner (VM %u) is for simultaneous requests: first come, first served "
                         "has none",
                         winner);
    if (winner && !waits(test, winner))
        return error_set(error, EINVAL, "VM %u does not wait, so it cannot win", winner);
    release(test, winner);
    return 0;
}

void test_mode_stop(struct test_mode *test)
{
    if (test->terminal_open)
        uv_close((uv_handle_t *)&test->terminal, NULL);
    test->terminal_open = false;
    test->active = false;
}

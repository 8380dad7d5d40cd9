/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mediator's hold on a worker, with the real vgpu-worker (VGPU_WORKER) and
 * with one that misbehaves (VGPU_FAKE_WORKER, fake_worker.c).
 */
#include "unit.h"

#include "exec/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define HANG_MS 60000 /* a test that waits this long for an event has failed */
#define FOREVER "SPIN 600000"

enum in_callback { DO_NOTHING, DO_RUN_AGAIN, DO_STOP, DO_KILL, DO_DETACH };

struct bench {
    uv_loop_t loop;
    uv_timer_t guard;
    bool hung;
    char *directory;
    char record[512];
    char log[512];
    struct exec_worker *worker; /* NULL when there is none (any more) */
    enum in_callback when_completed, when_ended;
    unsigned completed;
    uint64_t completed_sequence, device_us;
    struct protocol_response response;
    unsigned ended;
    unsigned completed_at_end;
    uint64_t ended_sequence;
    char reason[512];
};

static const char *worker_program, *fake_program;

/* --- the loop ------------------------------------------------------------------------ */

static void on_guard(uv_timer_t *timer)
{
    struct bench *bench = timer->data;

    bench->hung = true;
}

static void act(struct bench *bench, enum in_callback action)
{
    struct vgpu_error error;

    switch (action) {
    case DO_NOTHING:
        break;
    case DO_RUN_AGAIN:
        if (bench->completed < 5)
            exec_worker_run(bench->worker, bench->completed_sequence + 1, "PING", &error);
        break;
    case DO_STOP:
        exec_worker_stop(bench->worker);
        break;
    case DO_KILL:
        exec_worker_kill(bench->worker);
        break;
    case DO_DETACH:
        exec_worker_detach(bench->worker);
        bench->worker = NULL;
        break;
    }
}

static void on_completed(struct exec_worker *worker, uint64_t sequence,
                         const struct protocol_response *response, uint64_t device_us,
                         void *context)
{
    struct bench *bench = context;

    if (worker != bench->worker)
        abort();
    bench->completed++;
    bench->completed_sequence = sequence;
    bench->response = *response;
    bench->device_us = device_us;
    act(bench, bench->when_completed);
}

static void on_ended(struct exec_worker *worker, uint64_t sequence, const char *reason,
                     void *context)
{
    struct bench *bench = context;

    if (worker != bench->worker)
        abort();
    bench->ended++;
    bench->completed_at_end = bench->completed;
    bench->ended_sequence = sequence;
    text_copy(bench->reason, sizeof(bench->reason), reason);
    act(bench, bench->when_ended);
    bench->worker = NULL;
}

static int bench_make(void **state)
{
    struct bench *bench = calloc(1, sizeof(*bench));

    bench->directory = unit_temporary_directory();
    snprintf(bench->record, sizeof(bench->record), "%s/record", bench->directory);
    snprintf(bench->log, sizeof(bench->log), "%s/executions", bench->directory);
    uv_loop_init(&bench->loop);
    uv_timer_init(&bench->loop, &bench->guard);
    bench->guard.data = bench;
    uv_timer_start(&bench->guard, on_guard, HANG_MS, 0);
    uv_unref((uv_handle_t *)&bench->guard);
    *state = bench;
    return 0;
}

static void turn(struct bench *bench)
{
    uv_ref((uv_handle_t *)&bench->guard);
    uv_run(&bench->loop, UV_RUN_ONCE);
    uv_unref((uv_handle_t *)&bench->guard);
    if (bench->hung)
        fail_msg("nothing happened for %d ms", HANG_MS);
}

/* Fails where a handle was left open. */
static int bench_remove(void **state)
{
    struct bench *bench = *state;
    int left;

    unsetenv("VGPU_FAULT");
    bench->when_completed = bench->when_ended = DO_NOTHING;
    if (bench->worker)
        exec_worker_kill(bench->worker);
    while (bench->worker)
        turn(bench);
    uv_close((uv_handle_t *)&bench->guard, NULL);
    uv_run(&bench->loop, UV_RUN_DEFAULT);
    left = uv_loop_close(&bench->loop);
    unit_remove_directory(bench->directory);
    free(bench);
    return left;
}

static void wait_completed(struct bench *bench, unsigned count)
{
    while (bench->completed < count && bench->ended == 0)
        turn(bench);
    assert_int_equal(bench->completed, count);
}

static void wait_ended(struct bench *bench)
{
    while (bench->ended == 0)
        turn(bench);
    assert_null(bench->worker);
    /* Turns that find nothing more to do, and no second event. */
    uv_run(&bench->loop, UV_RUN_NOWAIT);
    uv_run(&bench->loop, UV_RUN_NOWAIT);
    assert_int_equal(bench->ended, 1);
}

/* --- short forms ---------------------------------------------------------------------- */

static int start_program(struct bench *bench, const char *program, const char *backend,
                         struct vgpu_error *error)
{
    struct exec_worker_config config = {.program = program,
                                        .backend = backend,
                                        .vm_id = 7,
                                        .record_path = bench->record,
                                        .execution_log = bench->log};
    struct exec_worker_events events = {
        .completed = on_completed, .ended = on_ended, .context = bench};

    bench->ended = 0;
    error->message[0] = '\0';
    return exec_worker_start(&bench->loop, &config, &events, &bench->worker, error);
}

static void start(struct bench *bench)
{
    struct vgpu_error error;

    if (start_program(bench, worker_program, "cpu", &error) < 0)
        fail_msg("%s", error.message);
}

static void start_fake(struct bench *bench, const char *behaviour)
{
    struct vgpu_error error;

    if (start_program(bench, fake_program, behaviour, &error) < 0)
        fail_msg("%s", error.message);
}

static void run(struct bench *bench, uint64_t sequence, const char *command)
{
    struct vgpu_error error = {.message = ""};

    exec_worker_run(bench->worker, sequence, command, &error);
    assert_string_equal(error.message, "");
}

static struct exec_record record_read(struct bench *bench, int expected)
{
    struct exec_record record;
    struct vgpu_error error;

    assert_int_equal(exec_record_read(bench->record, &record, &error), expected);
    return record;
}

/* Until the record says that `sequence` began as often as `executions`. */
static void wait_started(struct bench *bench, uint64_t sequence, uint32_t executions)
{
    uint64_t give_up_ns = clock_monotonic_ns() + HANG_MS * NS_PER_MS;
    struct exec_record record = record_read(bench, 1);

    while (record.sequence != sequence || record.executions != executions) {
        if (clock_monotonic_ns() > give_up_ns)
            fail_msg("operation %d did not start", (int)sequence);
        usleep(1000);
        record = record_read(bench, 1);
    }
}

static void start_and_run_forever(struct bench *bench, uint64_t sequence, uint32_t executions)
{
    start(bench);
    run(bench, sequence, FOREVER);
    wait_started(bench, sequence, executions);
}

static void expect_end(struct bench *bench, uint64_t sequence, const char *reason)
{
    wait_ended(bench);
    assert_string_equal(bench->reason, reason);
    assert_int_equal(bench->ended_sequence, sequence);
}

static void expect_answer(struct bench *bench, uint64_t sequence, bool success, const char *message)
{
    wait_completed(bench, bench->completed + 1);
    assert_string_equal(bench->response.message, message);
    assert_int_equal(bench->response.success, success);
    assert_int_equal(bench->completed_sequence, sequence);
}

static unsigned open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* The end of a process that the loop does not know any more. */
static int reap(pid_t pid)
{
    int status = -1;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

/* --- work --------------------------------------------------------------------------------- */

static void a_result_comes_back_with_its_sequence(void **state)
{
    struct bench *bench = *state;

    start(bench);
    assert_false(exec_worker_busy(bench->worker));
    run(bench, 42, "VECTOR_ADD 3 4");
    assert_true(exec_worker_busy(bench->worker));
    expect_answer(bench, 42, true, "3 + 4 = 7");
    assert_false(exec_worker_busy(bench->worker));
    run(bench, 43, "NONSENSE");
    wait_completed(bench, 2);
    assert_false(bench->response.success);
    assert_int_equal(bench->completed_sequence, 43);
}

static void a_result_stands_in_the_record_before_it_is_sent(void **state)
{
    struct bench *bench = *state;
    struct exec_record record;

    start(bench);
    run(bench, 8, "SPIN 20");
    expect_answer(bench, 8, true, "Spun 20 ms");
    record = record_read(bench, 1);
    assert_int_equal(record.state, EXEC_RECORD_DONE);
    assert_int_equal(record.sequence, 8);
    assert_int_equal(record.executions, 1);
    assert_int_equal(record.worker_pid, exec_worker_pid(bench->worker));
    assert_string_equal(record.response.message, "Spun 20 ms");
    assert_int_equal(record.device_us, bench->device_us);
    assert_true(bench->device_us >= 20000);
}

static void the_next_operation_may_be_given_from_the_callback(void **state)
{
    struct bench *bench = *state;

    bench->when_completed = DO_RUN_AGAIN;
    start(bench);
    run(bench, 1, "PING");
    wait_completed(bench, 5);
    assert_int_equal(bench->completed_sequence, 5);
}

static void every_execution_is_one_line_of_the_log(void **state)
{
    struct bench *bench = *state;
    unsigned long long at_ns[2];
    int end = 0;
    char *log;

    start(bench);
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "PONG");
    run(bench, 2, "BAD");
    wait_completed(bench, 2);
    log = unit_read_file(bench->log);
    assert_int_equal(sscanf(log,
                            "%llu vm=7 sequence=1 execution=1\n"
                            "%llu vm=7 sequence=2 execution=1%n",
                            &at_ns[0], &at_ns[1], &end),
                     2);
    assert_string_equal(log + end, "\n");
    assert_true(at_ns[1] >= at_ns[0]);
    assert_true(at_ns[1] <= clock_realtime_ns());
    free(log);
}

static void a_command_that_is_too_long_is_refused(void **state)
{
    struct bench *bench = *state;
    char command[VGPU_COMMAND_MAX_BYTES + 2];
    struct vgpu_error error;

    memset(command, 'P', sizeof(command) - 1);
    command[sizeof(command) - 1] = '\0';
    start(bench);
    assert_int_equal(exec_worker_run(bench->worker, 1, command, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_false(exec_worker_busy(bench->worker));
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "PONG");
}

static unsigned long cpu_ticks(pid_t pid)
{
    unsigned long user = 0, kernel = 0;
    char path[64], *text, *after_name;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    text = unit_read_file(path);
    after_name = strrchr(text, ')');
    assert_non_null(after_name);
    assert_int_equal(
        sscanf(after_name, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel),
        2);
    free(text);
    return user + kernel;
}

static void a_spin_occupies_no_core(void **state)
{
    struct bench *bench = *state;
    unsigned long before, ticks;

    start(bench);
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "PONG");
    before = cpu_ticks(exec_worker_pid(bench->worker));
    run(bench, 2, "SPIN 300");
    expect_answer(bench, 2, true, "Spun 300 ms");
    ticks = cpu_ticks(exec_worker_pid(bench->worker)) - before;
    assert_true(ticks * 1000 / (unsigned long)sysconf(_SC_CLK_TCK) < 50);
}

/* --- the end of a worker ------------------------------------------------------------------- */

static void a_killed_worker_ends_once_and_the_next_one_works(void **state)
{
    struct bench *bench = *state;

    start_and_run_forever(bench, 5, 1);
    assert_int_equal(kill(exec_worker_pid(bench->worker), SIGKILL), 0);
    expect_end(bench, 5, "killed by signal 9 (SIGKILL)");
    assert_int_equal(bench->completed, 0);
    start(bench);
    run(bench, 6, "PING");
    expect_answer(bench, 6, true, "PONG");
}

static void a_start_without_an_end_is_counted_when_it_runs_again(void **state)
{
    struct bench *bench = *state;
    struct exec_record record;
    char *log;

    for (unsigned execution = 1; execution <= 2; execution++) {
        start_and_run_forever(bench, 5, execution);
        assert_int_equal(kill(exec_worker_pid(bench->worker), SIGKILL), 0);
        wait_ended(bench);
        record = record_read(bench, 0);
        assert_int_equal(record.state, EXEC_RECORD_STARTED);
        assert_int_equal(record.sequence, 5);
        assert_int_equal(record.executions, execution);
    }
    start(bench);
    run(bench, 5, "PING");
    expect_answer(bench, 5, true, "PONG");
    assert_int_equal(record_read(bench, 1).executions, 3);
    log = unit_read_file(bench->log);
    assert_non_null(strstr(log, "sequence=5 execution=1\n"));
    assert_non_null(strstr(log, "sequence=5 execution=2\n"));
    assert_non_null(strstr(log, "sequence=5 execution=3\n"));
    free(log);
}

static void the_mediator_can_kill_a_worker(void **state)
{
    struct bench *bench = *state;

    start_and_run_forever(bench, 3, 1);
    exec_worker_kill(bench->worker);
    exec_worker_kill(bench->worker);
    expect_end(bench, 3, "killed by the mediator");
}

static void an_administrator_can_terminate_a_worker(void **state)
{
    struct bench *bench = *state;

    start_and_run_forever(bench, 3, 1);
    assert_int_equal(kill(exec_worker_pid(bench->worker), SIGTERM), 0);
    expect_end(bench, 3, "killed by signal 15 (SIGTERM)");
}

static void interrupts_and_hangups_do_not_end_an_operation(void **state)
{
    struct bench *bench = *state;

    start(bench);
    run(bench, 1, "SPIN 100");
    wait_started(bench, 1, 1);
    assert_int_equal(kill(exec_worker_pid(bench->worker), SIGINT), 0);
    assert_int_equal(kill(exec_worker_pid(bench->worker), SIGHUP), 0);
    expect_answer(bench, 1, true, "Spun 100 ms");
}

static void an_idle_worker_stops_when_asked(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;

    start(bench);
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "PONG");
    exec_worker_stop(bench->worker);
    exec_worker_stop(bench->worker);
    assert_int_equal(exec_worker_run(bench->worker, 2, "PING", &error), -1);
    assert_int_equal(error.code, EPIPE);
    expect_end(bench, 0, "exited with status 0");
    assert_int_equal(bench->completed, 1);
}

static void a_busy_worker_answers_before_it_stops(void **state)
{
    struct bench *bench = *state;

    start(bench);
    run(bench, 1, "SPIN 50");
    exec_worker_stop(bench->worker);
    expect_end(bench, 0, "exited with status 0");
    assert_int_equal(bench->completed_at_end, 1);
    assert_string_equal(bench->response.message, "Spun 50 ms");
}

static void a_worker_may_be_stopped_killed_or_forgotten_from_its_callback(void **state)
{
    struct bench *bench = *state;
    pid_t pid;

    bench->when_completed = DO_STOP;
    start(bench);
    run(bench, 1, "PING");
    expect_end(bench, 0, "exited with status 0");
    bench->when_completed = DO_KILL;
    start(bench);
    run(bench, 2, "PING");
    expect_end(bench, 0, "killed by the mediator");
    bench->when_completed = DO_DETACH;
    start(bench);
    pid = exec_worker_pid(bench->worker);
    run(bench, 3, "PING");
    wait_completed(bench, 3);
    assert_int_equal(reap(pid), 0);
    assert_int_equal(bench->ended, 0);
}

static void the_end_may_be_answered_by_any_call(void **state)
{
    static const enum in_callback actions[] = {DO_STOP, DO_KILL, DO_DETACH};
    struct bench *bench = *state;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(actions); i++) {
        bench->when_ended = actions[i];
        start_and_run_forever(bench, i + 1, 1);
        assert_int_equal(kill(exec_worker_pid(bench->worker), SIGKILL), 0);
        expect_end(bench, i + 1, "killed by signal 9 (SIGKILL)");
    }
}

/* --- a worker that outlives its mediator -------------------------------------------------------
 */

static void a_forgotten_worker_finishes_records_and_goes(void **state)
{
    struct bench *bench = *state;
    struct exec_record record;
    struct vgpu_error error;
    char pid_text[32];
    pid_t pid;

    start(bench);
    pid = exec_worker_pid(bench->worker);
    run(bench, 11, "SPIN 200");
    wait_started(bench, 11, 1);
    /* Stopped, it lives for as long as this test looks at it. */
    assert_int_equal(kill(pid, SIGSTOP), 0);
    exec_worker_detach(bench->worker);
    bench->worker = NULL;
    uv_run(&bench->loop, UV_RUN_NOWAIT);
    assert_int_equal(record_read(bench, 1).worker_pid, pid);
    assert_int_equal(start_program(bench, worker_program, "cpu", &error), -1);
    assert_int_equal(error.code, EBUSY);
    snprintf(pid_text, sizeof(pid_text), "(pid %d)", (int)pid);
    assert_non_null(strstr(error.message, pid_text));
    assert_int_equal(kill(pid, SIGCONT), 0);
    assert_int_equal(reap(pid), 0);
    record = record_read(bench, 0);
    assert_int_equal(record.state, EXEC_RECORD_DONE);
    assert_int_equal(record.sequence, 11);
    assert_string_equal(record.response.message, "Spun 200 ms");
    assert_int_equal(bench->completed, 0);
    start(bench);
    run(bench, 12, "PING");
    expect_answer(bench, 12, true, "PONG");
}

static void an_operation_that_was_sent_runs_though_the_mediator_is_gone(void **state)
{
    struct bench *bench = *state;
    struct exec_record record;
    pid_t pid;

    start(bench);
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "PONG");
    pid = exec_worker_pid(bench->worker);
    assert_int_equal(kill(pid, SIGSTOP), 0);
    run(bench, 2, "PING sent");
    exec_worker_detach(bench->worker);
    bench->worker = NULL;
    assert_int_equal(kill(pid, SIGCONT), 0);
    assert_int_equal(reap(pid), 0);
    record = record_read(bench, 0);
    assert_int_equal(record.sequence, 2);
    assert_string_equal(record.response.message, "PONG sent");
}

/* --- the process -------------------------------------------------------------------------------
 */

static void a_worker_is_named_for_its_vm(void **state)
{
    struct bench *bench = *state;
    char path[64], *name;

    start(bench);
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "PONG");
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)exec_worker_pid(bench->worker));
    name = unit_read_file(path);
    assert_string_equal(name, "vgpu-w7\n");
    free(name);
}

static void a_worker_inherits_only_what_is_meant_for_it(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "report-descriptors");
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "0 1 2 3 4 5 ");
    exec_worker_kill(bench->worker);
    wait_ended(bench);
    setenv("VGPU_TEST_SECRET", "secret", 1);
    setenv("VGPU_FAULT", "nowhere:1", 1);
    start_fake(bench, "report-environment");
    run(bench, 1, "PING");
    wait_completed(bench, 2);
    unsetenv("VGPU_TEST_SECRET");
    assert_memory_equal(bench->response.message, "PATH LANG VGPU_FAULT ", 21);
    assert_null(strstr(bench->response.message, "SECRET"));
    assert_null(strstr(bench->response.message, "HOME"));
}

static void a_worker_leads_its_own_session_away_from_any_directory(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "report-process");
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "leader=1 directory=/");
}

static void a_worker_that_is_gone_leaves_no_descriptor(void **state)
{
    struct bench *bench = *state;
    unsigned before;
    struct vgpu_error error;

    /* The first one makes what the loop keeps. */
    start(bench);
    exec_worker_kill(bench->worker);
    wait_ended(bench);
    before = open_descriptors();
    start(bench);
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "PONG");
    exec_worker_stop(bench->worker);
    wait_ended(bench);
    assert_int_equal(open_descriptors(), before);
    start_fake(bench, "descriptor");
    run(bench, 2, "PING");
    expect_answer(bench, 2, true, "fake"); /* what came along is not ours */
    exec_worker_kill(bench->worker);
    wait_ended(bench);
    assert_int_equal(open_descriptors(), before);
    assert_int_equal(start_program(bench, "/nonexistent/vgpu-worker", "cpu", &error), -1);
    uv_run(&bench->loop, UV_RUN_NOWAIT);
    assert_int_equal(open_descriptors(), before);
}

static void a_program_that_cannot_run_is_an_error_and_frees_the_record(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;

    assert_int_equal(start_program(bench, "/nonexistent/vgpu-worker", "cpu", &error), -1);
    assert_int_equal(error.code, ENOENT);
    assert_non_null(strstr(error.message, "/nonexistent/vgpu-worker"));
    assert_int_equal(start_program(bench, bench->record, "cpu", &error), -1); /* no program */
    assert_int_equal(error.code, EACCES);
    record_read(bench, 0);
    start(bench);
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "PONG");
}

static void a_log_or_record_that_cannot_be_opened_is_an_error(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;

    assert_int_equal(symlink("/dev/null", bench->log), 0);
    assert_int_equal(start_program(bench, worker_program, "cpu", &error), -1);
    assert_non_null(strstr(error.message, bench->log));
    record_read(bench, 0);
    unlink(bench->log);
    unlink(bench->record);
    assert_int_equal(symlink("/dev/null", bench->record), 0);
    assert_int_equal(start_program(bench, worker_program, "cpu", &error), -1);
    assert_int_equal(error.code, ELOOP);
}

static void an_unknown_backend_ends_the_worker(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;

    assert_int_equal(start_program(bench, worker_program, "abacus", &error), 0);
    expect_end(bench, 0, "exited with status 2");
}

/* --- a worker that misbehaves
 * --------------------------------------------------------------------- */

static void a_worker_that_breaks_the_rules_is_killed_and_told_why(void **state)
{
    static const struct {
        const char *behaviour, *reason;
    } cases[] = {
        {"short", "killed by the mediator: it sent 7 bytes, expected a result of 1032"},
        {"long", "killed by the mediator: it sent 3000 bytes, expected a result of 1032"},
        {"empty", "killed by the mediator: it closed its connection"},
        {"close", "killed by the mediator: it closed its connection"},
        {"sequence", "killed by the mediator: it sent a result of operation 10, expected 9"},
        {"endless", "killed by the mediator: it sent a message without an end"},
        {"success", "killed by the mediator: it sent success=7, expected 0 or 1"},
    };
    struct bench *bench = *state;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++) {
        start_fake(bench, cases[i].behaviour);
        run(bench, 9, "PING");
        expect_end(bench, 9, cases[i].reason);
        assert_int_equal(bench->completed, 0);
    }
}

static void a_worker_of_another_release_is_named_as_such(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "version");
    run(bench, 9, "PING");
    wait_ended(bench);
    assert_non_null(strstr(bench->reason, "it speaks version 99"));
    assert_int_equal(bench->completed, 0);
}

static void a_result_that_nobody_asked_for_kills_its_worker(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "unasked");
    expect_end(bench, 0, "killed by the mediator: it sent a result while it had no operation");
    assert_int_equal(bench->completed, 0);
}

static void a_flood_of_results_is_one_result_and_the_end(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "flood");
    run(bench, 9, "PING");
    expect_end(bench, 0, "killed by the mediator: it sent a result while it had no operation");
    assert_int_equal(bench->completed, 1);
}

static void a_result_that_was_sent_is_delivered_before_the_end(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "result-exit");
    run(bench, 9, "PING");
    expect_end(bench, 0, "exited with status 0");
    assert_int_equal(bench->completed_at_end, 1);
    assert_string_equal(bench->response.message, "last words");
    start_fake(bench, "result-crash");
    run(bench, 10, "PING");
    expect_end(bench, 0, "killed by signal 11 (SIGSEGV)");
    assert_int_equal(bench->completed_at_end, 2);
    assert_int_equal(bench->completed_sequence, 10);
}

/* The exit is seen first, the result is still in the socket. */
static void a_result_is_delivered_though_the_kill_came_after_it(void **state)
{
    struct bench *bench = *state;
    siginfo_t info;
    pid_t pid;

    start_fake(bench, "result-exit");
    pid = exec_worker_pid(bench->worker);
    run(bench, 9, "PING");
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    exec_worker_kill(bench->worker);
    expect_end(bench, 0, "exited with status 0");
    assert_int_equal(bench->completed_at_end, 1);
}

static void a_worker_may_be_forgotten_while_its_last_result_is_delivered(void **state)
{
    struct bench *bench = *state;
    siginfo_t info;

    bench->when_completed = DO_DETACH;
    start_fake(bench, "result-exit");
    run(bench, 9, "PING");
    assert_int_equal(waitid(P_PID, (id_t)exec_worker_pid(bench->worker), &info, WEXITED | WNOWAIT),
                     0);
    wait_completed(bench, 1);
    uv_run(&bench->loop, UV_RUN_NOWAIT);
    assert_int_equal(bench->ended, 0);
}

static void garbage_before_an_exit_is_no_result(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "garbage-exit");
    run(bench, 9, "PING");
    wait_ended(bench); /* of either: our signal may come too late */
    assert_int_equal(bench->ended_sequence, 9);
    assert_int_equal(bench->completed, 0);
}

static void a_crash_and_an_exit_are_told_apart(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "crash");
    run(bench, 1, "PING");
    expect_end(bench, 1, "killed by signal 11 (SIGSEGV)");
    start_fake(bench, "exit3");
    run(bench, 2, "PING");
    expect_end(bench, 2, "exited with status 3");
}

static void device_time_is_never_more_than_the_time_that_passed(void **state)
{
    struct bench *bench = *state;
    uint64_t begin_ns = clock_monotonic_ns();

    start_fake(bench, "time");
    run(bench, 1, "PING");
    expect_answer(bench, 1, true, "fake");
    assert_true(bench->device_us <= (clock_monotonic_ns() - begin_ns) / NS_PER_US);
}

/* --- the worker's own side, without a mediator ---------------------------------------------------
 */

/* Starts vgpu-worker on a socket and a record of this test; returns its pid. */
static pid_t spawn_worker(int socket, int record)
{
    char name[] = "vgpu-worker", vm[] = "--vm=7", backend[] = "--backend=cpu";
    char *args[] = {name, vm, backend, NULL}, *environment[] = {NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid = -1;

    posix_spawn_file_actions_init(&actions);
    /* First out of the way of 3 and 4. */
    posix_spawn_file_actions_adddup2(&actions, socket, 50);
    posix_spawn_file_actions_adddup2(&actions, record, 51);
    posix_spawn_file_actions_adddup2(&actions, 50, EXEC_SOCKET_FD);
    posix_spawn_file_actions_adddup2(&actions, 51, EXEC_RECORD_FD);
    assert_int_equal(posix_spawn(&pid, worker_program, &actions, NULL, args, environment), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
}

static struct exec_result_message ask(int socket, uint64_t sequence)
{
    struct exec_operation_message operation = {.magic = EXEC_MESSAGE_MAGIC,
                                               .version = EXEC_MESSAGE_VERSION,
                                               .sequence = sequence,
                                               .command = "PING"};
    struct exec_result_message result = {0};

    assert_int_equal(send(socket, &operation, sizeof(operation), MSG_NOSIGNAL), sizeof(operation));
    assert_int_equal(recv(socket, &result, sizeof(result), 0), sizeof(result));
    return result;
}

static void nothing_runs_that_cannot_be_recorded(void **state)
{
    int pair[2], record = memfd_create("record", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct exec_result_message result;
    pid_t pid;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    pid = spawn_worker(pair[1], record);
    assert_string_equal(ask(pair[0], 1).message, "PONG");
    assert_int_equal(fcntl(record, F_ADD_SEALS, F_SEAL_WRITE), 0); /* as a dead disk */
    result = ask(pair[0], 2);
    assert_int_equal(result.success, 0);
    assert_int_equal(result.sequence, 2);
    assert_memory_equal(result.message, "not run: ", 9);
    close(pair[0]);
    close(pair[1]);
    close(record);
    assert_int_equal(reap(pid), 0);
}

static void a_worker_ends_at_a_message_of_another_release(void **state)
{
    struct exec_operation_message operation = {
        .magic = EXEC_MESSAGE_MAGIC, .version = EXEC_MESSAGE_VERSION + 1, .sequence = 1};
    int pair[2], record = memfd_create("record", MFD_CLOEXEC);
    pid_t pid;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    pid = spawn_worker(pair[1], record);
    send(pair[0], &operation, sizeof(operation), MSG_NOSIGNAL);
    assert_int_equal(reap(pid), 1 << 8);
    close(pair[0]);
    close(pair[1]);
    close(record);
}

static void by_hand_a_worker_says_what_it_is_and_exits_2(void **state)
{
    struct bench *bench = *state;
    char command[2048], path[600], *text;

    snprintf(path, sizeof(path), "%s/said", bench->directory);
    snprintf(command, sizeof(command), "'%s' 2>'%s' </dev/null", worker_program, path);
    assert_int_equal(WEXITSTATUS(system(command)), 2);
    text = unit_read_file(path);
    assert_non_null(strstr(text, "for vgpu-mediator"));
    free(text);
    snprintf(command, sizeof(command), "'%s' --vm 7 --backend cpu 2>/dev/null", worker_program);
    assert_int_equal(WEXITSTATUS(system(command)), 2);
    snprintf(command, sizeof(command), "'%s' --vm 0 2>/dev/null", worker_program);
    assert_int_equal(WEXITSTATUS(system(command)), 2);
    snprintf(command, sizeof(command), "'%s' --version >'%s'", worker_program, path);
    assert_int_equal(WEXITSTATUS(system(command)), 0);
    text = unit_read_file(path);
    assert_string_equal(text, "vgpu-worker " VGPU_PACKAGE_VERSION "\n");
    free(text);
    snprintf(command, sizeof(command), "'%s' --help >'%s'", worker_program, path);
    assert_int_equal(WEXITSTATUS(system(command)), 0);
    text = unit_read_file(path);
    assert_non_null(strstr(text, "Usage: vgpu-worker"));
    free(text);
}

/* --- killed at named points (built with -Dfault_points=true) ---------------------------------- */

#ifdef VGPU_FAULT_POINTS

static void the_record_tells_at_which_point_a_worker_died(void **state)
{
    static const struct {
        const char *fault;
        enum exec_record_state state;
        unsigned executions, lines;
    } cases[] = {
        {"worker_before_start:1", EXEC_RECORD_NONE, 0, 0},
        {"worker_started:1", EXEC_RECORD_STARTED, 1, 1},
        {"worker_before_done:1", EXEC_RECORD_STARTED, 2, 2},
        {"worker_done:1", EXEC_RECORD_DONE, 3, 3},
    };
    struct bench *bench = *state;
    struct exec_record record;
    unsigned lines;
    char *log;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++) {
        setenv("VGPU_FAULT", cases[i].fault, 1);
        start(bench);
        run(bench, 1, "PING");
        expect_end(bench, 1, "killed by signal 9 (SIGKILL)");
        record = record_read(bench, 0);
        assert_int_equal(record.state, cases[i].state);
        assert_int_equal(record.executions, cases[i].executions);
        log = unit_read_file(bench->log);
        lines = 0;
        for (const char *at = log; (at = strchr(at, '\n')); at++)
            lines++;
        assert_int_equal(lines, cases[i].lines);
        free(log);
    }
    assert_int_equal(bench->completed, 0);
    assert_string_equal(record.response.message, "PONG");
}

#endif

#define WORKER_TEST(function) cmocka_unit_test_setup_teardown(function, bench_make, bench_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORKER_TEST(a_result_comes_back_with_its_sequence),
        WORKER_TEST(a_result_stands_in_the_record_before_it_is_sent),
        WORKER_TEST(the_next_operation_may_be_given_from_the_callback),
        WORKER_TEST(every_execution_is_one_line_of_the_log),
        WORKER_TEST(a_command_that_is_too_long_is_refused),
        WORKER_TEST(a_spin_occupies_no_core),
        WORKER_TEST(a_killed_worker_ends_once_and_the_next_one_works),
        WORKER_TEST(a_start_without_an_end_is_counted_when_it_runs_again),
        WORKER_TEST(the_mediator_can_kill_a_worker),
        WORKER_TEST(an_administrator_can_terminate_a_worker),
        WORKER_TEST(interrupts_and_hangups_do_not_end_an_operation),
        WORKER_TEST(an_idle_worker_stops_when_asked),
        WORKER_TEST(a_busy_worker_answers_before_it_stops),
        WORKER_TEST(a_worker_may_be_stopped_killed_or_forgotten_from_its_callback),
        WORKER_TEST(the_end_may_be_answered_by_any_call),
        WORKER_TEST(a_forgotten_worker_finishes_records_and_goes),
        WORKER_TEST(an_operation_that_was_sent_runs_though_the_mediator_is_gone),
        WORKER_TEST(a_worker_is_named_for_its_vm),
        WORKER_TEST(a_worker_inherits_only_what_is_meant_for_it),
        WORKER_TEST(a_worker_leads_its_own_session_away_from_any_directory),
        WORKER_TEST(a_worker_that_is_gone_leaves_no_descriptor),
        WORKER_TEST(a_program_that_cannot_run_is_an_error_and_frees_the_record),
        WORKER_TEST(a_log_or_record_that_cannot_be_opened_is_an_error),
        WORKER_TEST(an_unknown_backend_ends_the_worker),
        WORKER_TEST(a_worker_that_breaks_the_rules_is_killed_and_told_why),
        WORKER_TEST(a_worker_of_another_release_is_named_as_such),
        WORKER_TEST(a_result_that_nobody_asked_for_kills_its_worker),
        WORKER_TEST(a_flood_of_results_is_one_result_and_the_end),
        WORKER_TEST(a_result_that_was_sent_is_delivered_before_the_end),
        WORKER_TEST(a_result_is_delivered_though_the_kill_came_after_it),
        WORKER_TEST(a_worker_may_be_forgotten_while_its_last_result_is_delivered),
        WORKER_TEST(garbage_before_an_exit_is_no_result),
        WORKER_TEST(a_crash_and_an_exit_are_told_apart),
        WORKER_TEST(device_time_is_never_more_than_the_time_that_passed),
        WORKER_TEST(nothing_runs_that_cannot_be_recorded),
        WORKER_TEST(a_worker_ends_at_a_message_of_another_release),
        WORKER_TEST(by_hand_a_worker_says_what_it_is_and_exits_2),
#ifdef VGPU_FAULT_POINTS
        WORKER_TEST(the_record_tells_at_which_point_a_worker_died),
#endif
    };

    worker_program = getenv("VGPU_WORKER");
    fake_program = getenv("VGPU_FAKE_WORKER");
    if (!worker_program || !fake_program) {
        fputs("set VGPU_WORKER and VGPU_FAKE_WORKER to the programs; `meson test` does\n", stderr);
        return 2;
    }
    /* What the caller of this test left open is no worker's fault. */
    for (int fd = 3; fd < 256; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return cmocka_run_group_tests_name("exec_worker", tests, NULL, NULL);
}

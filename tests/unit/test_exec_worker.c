/* SPDX-License-Identifier: Apache-2.0 */
/* The mediator's hold on a worker that does as it should, and that worker's own
 * side. */
#include "exec_bench.h"

#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define FOREVER "SPIN 600000"

static void start_and_run_forever(struct bench *bench, uint64_t sequence, uint32_t executions)
{
    start(bench);
    run(bench, sequence, FOREVER);
    wait_started(bench, sequence, executions);
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

static void a_worker_of_files_is_confined_too(void **state)
{
    struct bench *bench = *state;
    char path[64], *status;

    start(bench);
    run(bench, 1, "GPU_INFO");
    wait_completed(bench, 1);
    assert_true(bench->response.success);
    snprintf(path, sizeof(path), "/proc/%d/status", (int)exec_worker_pid(bench->worker));
    status = unit_read_file(path);
    assert_non_null(strstr(status, "\nNoNewPrivs:\t1\n"));
    assert_non_null(strstr(status, "\nCapEff:\t0000000000000000\n"));
#ifndef EXEC_SANITIZED
    assert_non_null(strstr(status, "\nSeccomp:\t2\n"));
#endif
    free(status);
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
    assert_int_equal(start_program(bench, getenv("VGPU_WORKER"), "cpu", &error), -1);
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
    assert_int_equal(start_program(bench, getenv("VGPU_WORKER"), "cpu", &error), -1);
    assert_non_null(strstr(error.message, bench->log));
    record_read(bench, 0);
    unlink(bench->log);
    unlink(bench->record);
    assert_int_equal(symlink("/dev/null", bench->record), 0);
    assert_int_equal(start_program(bench, getenv("VGPU_WORKER"), "cpu", &error), -1);
    assert_int_equal(error.code, ELOOP);
}

static void an_unknown_backend_ends_the_worker(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;

    assert_int_equal(start_program(bench, getenv("VGPU_WORKER"), "abacus", &error), 0);
    expect_end(bench, 0, "exited with status 2");
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
    assert_int_equal(posix_spawn(&pid, getenv("VGPU_WORKER"), &actions, NULL, args, environment),
                     0);
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
    snprintf(command, sizeof(command), "'%s' 2>'%s' </dev/null", getenv("VGPU_WORKER"), path);
    assert_int_equal(WEXITSTATUS(system(command)), 2);
    text = unit_read_file(path);
    assert_non_null(strstr(text, "for vgpu-mediator"));
    free(text);
    snprintf(command, sizeof(command), "'%s' --vm 7 --backend cpu 2>/dev/null",
             getenv("VGPU_WORKER"));
    assert_int_equal(WEXITSTATUS(system(command)), 2);
    snprintf(command, sizeof(command), "'%s' --vm 0 2>/dev/null", getenv("VGPU_WORKER"));
    assert_int_equal(WEXITSTATUS(system(command)), 2);
    snprintf(command, sizeof(command), "'%s' --version >'%s'", getenv("VGPU_WORKER"), path);
    assert_int_equal(WEXITSTATUS(system(command)), 0);
    text = unit_read_file(path);
    assert_string_equal(text, "vgpu-worker " VGPU_PACKAGE_VERSION "\n");
    free(text);
    snprintf(command, sizeof(command), "'%s' --help >'%s'", getenv("VGPU_WORKER"), path);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORKER_TEST(a_result_comes_back_with_its_sequence),
        WORKER_TEST(a_result_stands_in_the_record_before_it_is_sent),
        WORKER_TEST(the_next_operation_may_be_given_from_the_callback),
        WORKER_TEST(every_execution_is_one_line_of_the_log),
        WORKER_TEST(a_command_that_is_too_long_is_refused),
        WORKER_TEST(a_worker_of_files_is_confined_too),
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
        WORKER_TEST(nothing_runs_that_cannot_be_recorded),
        WORKER_TEST(a_worker_ends_at_a_message_of_another_release),
        WORKER_TEST(by_hand_a_worker_says_what_it_is_and_exits_2),
#ifdef VGPU_FAULT_POINTS
        WORKER_TEST(the_record_tells_at_which_point_a_worker_died),
#endif
    };

    bench_prepare();
    return cmocka_run_group_tests_name("exec_worker", tests, NULL, NULL);
}

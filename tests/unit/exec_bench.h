/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mediator's loop with one worker on it, for the tests of exec/: the real
 * vgpu-worker (environment variable VGPU_WORKER), or one that misbehaves
 * (VGPU_FAKE_WORKER, fake_worker.c).  Everything that the events said is noted.
 */
#ifndef VGPU_TESTS_EXEC_BENCH_H
#define VGPU_TESTS_EXEC_BENCH_H

#include "unit.h"

#include "exec/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#define HANG_MS 60000 /* a test that waits this long for an event has failed */

/* What an event's callback does to its worker. */
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

/* --- the loop ------------------------------------------------------------------------ */

static inline void on_guard(uv_timer_t *timer)
{
    struct bench *bench = timer->data;

    bench->hung = true;
}

static inline void act(struct bench *bench, enum in_callback action)
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

static inline void on_completed(struct exec_worker *worker, uint64_t sequence,
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

static inline void on_ended(struct exec_worker *worker, uint64_t sequence, const char *reason,
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

static inline int bench_make(void **state)
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

static inline void turn(struct bench *bench)
{
    uv_ref((uv_handle_t *)&bench->guard);
    uv_run(&bench->loop, UV_RUN_ONCE);
    uv_unref((uv_handle_t *)&bench->guard);
    if (bench->hung)
        fail_msg("nothing happened for %d ms", HANG_MS);
}

/* Fails where a handle was left open. */
static inline int bench_remove(void **state)
{
    struct bench *bench = *state;
    int left;

    unsetenv("VGPU_FAULT");
    bench->hung = false; /* a test that hung cleans up too */
    uv_timer_start(&bench->guard, on_guard, HANG_MS, 0);
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

static inline void wait_completed(struct bench *bench, unsigned count)
{
    while (bench->completed < count && bench->ended == 0)
        turn(bench);
    assert_int_equal(bench->completed, count);
}

static inline void wait_ended(struct bench *bench)
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

static inline int start_program(struct bench *bench, const char *program, const char *backend,
                                struct vgpu_error *error)
{
    struct exec_worker_config config = {.uid = (uid_t)-1,
                                        .program = program,
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

static inline void start(struct bench *bench)
{
    struct vgpu_error error;

    if (start_program(bench, getenv("VGPU_WORKER"), "cpu", &error) < 0)
        fail_msg("%s", error.message);
}

static inline void start_fake(struct bench *bench, const char *behaviour)
{
    struct vgpu_error error;

    if (start_program(bench, getenv("VGPU_FAKE_WORKER"), behaviour, &error) < 0)
        fail_msg("%s", error.message);
}

static inline void run(struct bench *bench, uint64_t sequence, const char *command)
{
    struct vgpu_error error = {.message = ""};

    exec_worker_run(bench->worker, sequence, command, &error);
    assert_string_equal(error.message, "");
}

static inline struct exec_record record_read(struct bench *bench, int expected)
{
    struct exec_record record;
    struct vgpu_error error;

    assert_int_equal(exec_record_read(bench->record, &record, &error), expected);
    return record;
}

/* Until record and log say that `sequence` began as often as `executions`; the
 * log comes second. */
static inline void wait_started(struct bench *bench, uint64_t sequence, uint32_t executions)
{
    uint64_t give_up_ns = clock_monotonic_ns() + HANG_MS * NS_PER_MS;
    bool started = false;
    char line[96];

    snprintf(line, sizeof(line), " vm=7 sequence=%llu execution=%u\n", (unsigned long long)sequence,
             executions);
    while (!started) {
        char *log = unit_read_file(bench->log);
        struct exec_record record = record_read(bench, 1);

        started =
            record.sequence == sequence && record.executions == executions && strstr(log, line);
        free(log);
        if (clock_monotonic_ns() > give_up_ns)
            fail_msg("operation %llu did not start", (unsigned long long)sequence);
        usleep(1000);
    }
}

static inline void expect_end(struct bench *bench, uint64_t sequence, const char *reason)
{
    wait_ended(bench);
    assert_string_equal(bench->reason, reason);
    assert_int_equal(bench->ended_sequence, sequence);
}

static inline void expect_answer(struct bench *bench, uint64_t sequence, bool success,
                                 const char *message)
{
    wait_completed(bench, bench->completed + 1);
    assert_string_equal(bench->response.message, message);
    assert_int_equal(bench->response.success, success);
    assert_int_equal(bench->completed_sequence, sequence);
}

static inline unsigned open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* Until the process has ended; the loop does not know of it yet. */
static inline void wait_exited(const struct exec_worker *worker)
{
    siginfo_t info;

    if (waitid(P_PID, (id_t)exec_worker_pid(worker), &info, WEXITED | WNOWAIT) < 0)
        abort();
}

/* The end of a process that the loop does not know any more. */
static inline int reap(pid_t pid)
{
    int status = -1;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

/* Before the first test. */
static inline void bench_prepare(void)
{
    if (!getenv("VGPU_WORKER") || !getenv("VGPU_FAKE_WORKER")) {
        fputs("set VGPU_WORKER and VGPU_FAKE_WORKER to the programs; `meson test` does\n", stderr);
        exit(2);
    }
    /* What the caller of this test left open is no worker's fault. */
    for (int fd = 3; fd < 256; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
}

#define WORKER_TEST(function) cmocka_unit_test_setup_teardown(function, bench_make, bench_remove)

#endif

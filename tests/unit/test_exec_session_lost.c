/* SPDX-License-Identifier: Apache-2.0 */
/* A window session whose worker or mediator dies: each operation is answered exactly
 * once, none runs twice, and a worker goes on without its mediator. */
#include "session_bench.h"

#ifdef VGPU_FAULT_POINTS
#define FAULT_TESTS 1
#else
#define FAULT_TESTS 0
#endif

/* --- a dead worker's successor --------------------------------------------------------------- */

static void succeed(struct bench *bench)
{
    unsetenv("VGPU_FAULT");
    session_start(bench, true);
    assert_int_equal(bench->host->state, VGPU_SESSION_LOST);
}

static unsigned executions_of(struct bench *bench, uint64_t cookie)
{
    char *log = unit_read_file(bench->log), needle[40];
    unsigned count = 0;

    snprintf(needle, sizeof(needle), " cookie=%llu ", (unsigned long long)cookie);
    for (const char *at = log; (at = strstr(at, needle)); at++)
        count++;
    free(log);
    return count;
}

static void a_loss_is_told_until_it_is_taken_note_of(void **state)
{
    struct bench *bench = *state;

    guest_run(bench, ping());
    session_end(bench);
    succeed(bench);
    assert_int_equal(bench->host->generation, 2);
    assert_int_equal(guest_run(bench, ping()).status, VGPU_DEVICE_LOST);
    assert_int_equal(guest_run(bench, text(bench, "PING")).status, VGPU_DEVICE_LOST);
    assert_int_equal(guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_RESET}).status,
                     VGPU_OK);
    assert_int_equal(bench->host->state, VGPU_SESSION_READY);
    assert_int_equal(guest_run(bench, ping()).status, VGPU_OK);
    assert_int_equal(guest_run(bench, ping()).generation, 2);
    session_end(bench);
    succeed(bench);
    assert_int_equal(bench->host->generation, 3);
}

static void what_ran_and_what_waited_is_answered_once_with_device_lost(void **state)
{
    struct bench *bench = *state;
    struct vgpu_completion completion;

    guest_run(bench, ping());
    guest_submit(bench, text(bench, "SPIN 600000"));
    for (int i = 0; i < 500; i++)
        guest_submit(bench, ping());
    while (exec_session_running(bench->session) == 0)
        usleep(100);
    for (int i = 0; i < 200; i++)
        guest_submit(bench, ping());
    session_end(bench);
    succeed(bench);
    for (uint64_t cookie = 2; cookie <= 702; cookie++) {
        assert_true(guest_take(bench, &completion));
        assert_int_equal(completion.cookie, cookie);
        assert_int_equal(completion.status, VGPU_DEVICE_LOST);
        assert_int_equal(completion.generation, 2);
    }
    assert_false(guest_take(bench, &completion));
    assert_int_equal(executions_of(bench, 2), 1);
    assert_int_equal(executions_of(bench, 3), 0);
}

static void a_lost_quiet_operation_gets_no_answer(void **state)
{
    struct bench *bench = *state;
    struct vgpu_descriptor quiet = ping();
    struct vgpu_completion completion;

    quiet.flags = VGPU_FLAG_QUIET;
    guest_submit(bench, text(bench, "SPIN 600000"));
    guest_submit(bench, quiet);
    WAIT_FOR(bench, bench->work);
    while (exec_session_running(bench->session) == 0)
        usleep(100);
    guest_submit(bench, quiet);
    guest_submit(bench, ping());
    session_end(bench);
    succeed(bench);
    assert_true(guest_take(bench, &completion));
    assert_int_equal(completion.cookie, 1);
    assert_true(guest_take(bench, &completion));
    assert_int_equal(completion.cookie, 4);
    assert_false(guest_take(bench, &completion));
    quiet.cookie = 0;
    guest_submit(bench, quiet); /* LOST: not run and not answered either */
    assert_int_equal(guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_RESET}).status,
                     VGPU_OK);
}

static void memory_and_handles_are_gone_with_the_worker(void **state)
{
    struct bench *bench = *state;
    const struct vgpu_descriptor sync = {.opcode = VGPU_OP_STREAM_SYNC, .object.handle = 5};
    struct vgpu_completion completion = guest_run(
        bench, (struct vgpu_descriptor){.opcode = VGPU_OP_ALLOC, .alloc.bytes = DEVICE_BYTES});
    uint64_t address = completion.result;

    guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_STREAM_CREATE, .object = {5}});
    session_end(bench);
    succeed(bench);
    assert_int_equal(guest_run(bench, sync).status, VGPU_DEVICE_LOST);
    guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_RESET});
    assert_int_equal(guest_run(bench, sync).status, VGPU_BAD_HANDLE);
    completion =
        guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_FREE, .free = {address}});
    assert_int_equal(completion.status, VGPU_BAD_ADDRESS);
}

static void a_sleeping_guest_is_woken_by_the_successor(void **state)
{
    struct bench *bench = *state;

    guest_submit(bench, text(bench, "SPIN 600000"));
    WAIT_FOR(bench, bench->work);
    while (exec_session_running(bench->session) == 0)
        usleep(100);
    session_end(bench);
    settle(bench);
    bench->interrupts = 0;
    succeed(bench);
    WAIT_FOR(bench, bench->interrupts);
    assert_int_equal(guest_wait(bench).status, VGPU_DEVICE_LOST);
}

/* The guest's words mean nothing to it: the memory does. */
static void a_successor_believes_no_word_of_the_slot(void **state)
{
    struct bench *bench = *state;
    struct vgpu_completion completion;

    for (int i = 0; i < 10; i++)
        guest_run(bench, ping());
    session_end(bench);
    memset(bench->host, 0xff, sizeof(*bench->host));
    succeed(bench);
    assert_int_equal(bench->host->cq_tail, 10);
    assert_int_equal(bench->host->sq_head, 10);
    assert_false(guest_take(bench, &completion));
    guest_run(bench, ping());
}

static void a_successor_of_a_scribbled_slot_ends_its_work_too(void **state)
{
    struct bench *bench = *state;

    guest_run(bench, ping());
    session_end(bench);
    memset(bench->slot, 0xff, bench->slot_bytes);
    bench->ready = 0;
    unsetenv("VGPU_FAULT");
    session_start(bench, true);
    WAIT_FOR(bench, bench->faulted);
    assert_int_equal(bench->host->state, VGPU_SESSION_FAULTED);
}

/* --- killed at each step ---------------------------------------------------------------------- */

#define KILL_OPERATIONS 40
#define KILL_ANSWERS 34 /* six of them are quiet */

/* Half are worth a measure, a few are quiet. */
static void submit_mixed(struct bench *bench)
{
    for (int i = 0; i < KILL_OPERATIONS; i++) {
        struct vgpu_descriptor one = i % 2 ? ping() : text(bench, "PING");

        one.flags = i % 7 == 3 ? VGPU_FLAG_QUIET : 0;
        guest_submit(bench, one);
    }
}

static void expect_each_answered_once(struct bench *bench)
{
    unsigned answers[KILL_OPERATIONS + 1] = {0};
    bool lost = false;
    struct vgpu_completion completion;

    while (guest_take(bench, &completion)) {
        assert_in_range(completion.cookie, 1, KILL_OPERATIONS);
        answers[completion.cookie]++;
        /* What was done is told as done, and all after it is lost. */
        lost = lost || completion.status == VGPU_DEVICE_LOST;
        assert_int_equal(completion.status, lost ? VGPU_DEVICE_LOST : VGPU_OK);
        assert_int_equal(completion.sequence, completion.cookie - 1);
    }
    for (uint64_t cookie = 1; cookie <= KILL_OPERATIONS; cookie++) {
        assert_int_equal(answers[cookie], (cookie - 1) % 7 == 3 ? 0 : 1);
        assert_true(executions_of(bench, cookie) <= 1);
    }
}

static void kill_at(void **state, const char *point)
{
    for (unsigned count = 1; count <= 33; count += count < 3 ? 1 : 10) {
        struct bench *bench;
        char fault[64];

        bench_make(state);
        bench = *state;
        snprintf(fault, sizeof(fault), "%s:%u", point, count);
        setenv("VGPU_FAULT", fault, 1);
        session_start(bench, false);
        bench->grants = false;
        submit_mixed(bench);
        WAIT_FOR(bench, bench->work);
        exec_session_grant(bench->session, &long_grant);
        /* A point may be passed less often than that. */
        while (bench->session && bench->host->cq_tail < KILL_ANSWERS) {
            uv_run(&bench->loop, UV_RUN_NOWAIT);
            usleep(100);
        }
        session_end(bench);
        succeed(bench);
        expect_each_answered_once(bench);
        assert_int_equal(bench_remove(state), 0);
    }
}

#define KILLED_AT(point)                                                                           \
    static void each_is_answered_once_when_killed_at_##point(void **state)                         \
    {                                                                                              \
        if (!FAULT_TESTS)                                                                          \
            skip();                                                                                \
        kill_at(state, #point);                                                                    \
    }

KILLED_AT(session_fetched)
KILLED_AT(session_started)
KILLED_AT(session_executed)
KILLED_AT(session_completed)
KILLED_AT(session_committed)
KILLED_AT(session_published)

static void a_successor_that_is_killed_too_answers_nothing_twice(void **state)
{
    static const char *const points[] = {"session_completed:3", "session_committed:5",
                                         "session_fetched:1", "session_committed:20"};

    if (!FAULT_TESTS)
        skip();
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(points); i++) {
        struct bench *bench;
        struct vgpu_error error;

        bench_make(state);
        bench = *state;
        setenv("VGPU_FAULT", "session_executed:1", 1);
        session_start(bench, false);
        submit_mixed(bench);
        while (bench->session)
            turn(bench);
        setenv("VGPU_FAULT", points[i], 1);
        assert_int_equal(session_try(bench, true, &error), 0);
        while (bench->session && !bench->ready)
            turn(bench);
        assert_null(bench->session); /* it died of it */
        succeed(bench);
        expect_each_answered_once(bench);
        assert_int_equal(bench_remove(state), 0);
    }
}

/* --- adoption ------------------------------------------------------------------------------------
 */

static void a_worker_goes_on_without_its_mediator_and_is_adopted(void **state)
{
    struct bench *bench = *state;
    pid_t pid = bench->pid;

    guest_run(bench, ping());
    session_detach(bench);
    guest_run(bench, ping()); /* it still has its grant */
    session_adopt(bench);
    assert_int_equal(bench->pid, pid);
    WAIT_FOR(bench, bench->ready);
    assert_int_equal(bench->identity.vm_id, 7);
    assert_int_equal(bench->identity.slot, SLOT);
    assert_int_equal(bench->identity.slot_offset, bench->slot_offset);
    if (bench->identity.granted)
        WAIT_FOR(bench, bench->returned);
    bench->returned = 0;
    guest_run(bench, ping());
    assert_int_equal(bench->host->generation, 1);
    session_end(bench);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void a_worker_that_is_busy_without_end_is_adopted_all_the_same(void **state)
{
    struct bench *bench = *state;
    struct vgpu_completion completion;
    struct vgpu_descriptor one = ping();
    pid_t pid = bench->pid;

    guest_run(bench, ping());
    session_detach(bench);
    one.cookie = 99;
    for (int i = 0; i < 1000; i++)
        guest_submit(bench, one);
    session_adopt(bench);
    while (bench->ready == 0) {
        if (bench->sq_tail - bench->cq_head < VGPU_RING_ENTRIES)
            guest_submit(bench, one);
        guest_take(bench, &completion);
        uv_run(&bench->loop, UV_RUN_NOWAIT);
    }
    session_end(bench);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void work_that_came_meanwhile_is_told_to_the_next_mediator(void **state)
{
    struct bench *bench = *state;
    pid_t pid = bench->pid;

    bench->grants = false;
    session_detach(bench);
    guest_submit(bench, ping());
    usleep(10000);
    assert_int_equal(bench->work, 0);
    bench->grants = true;
    session_adopt(bench);
    assert_int_equal(guest_wait(bench).status, VGPU_OK);
    assert_false(bench->identity.granted);
    session_end(bench);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void a_long_operation_is_finished_and_its_grant_comes_back(void **state)
{
    struct bench *bench = *state;
    pid_t pid = bench->pid;

    guest_submit(bench, text(bench, "SPIN 100"));
    WAIT_FOR(bench, bench->work);
    while (exec_session_running(bench->session) == 0)
        usleep(100);
    session_detach(bench);
    session_adopt(bench);
    assert_true(exec_session_running(bench->session) > 0);
    WAIT_FOR(bench, bench->ready);
    if (bench->identity.granted)
        WAIT_FOR(bench, bench->returned);
    assert_int_equal(guest_wait(bench).status, VGPU_OK);
    assert_int_equal(executions_of(bench, 1), 1);
    session_end(bench);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void an_adopted_worker_can_be_killed_also_before_it_answers(void **state)
{
    struct bench *bench = *state;
    pid_t pid = bench->pid;

    guest_submit(bench, text(bench, "SPIN 600000"));
    WAIT_FOR(bench, bench->work);
    while (exec_session_running(bench->session) == 0)
        usleep(100);
    session_detach(bench);
    session_adopt(bench);
    exec_session_kill(bench->session);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    WAIT_FOR(bench, bench->ended);
    settle(bench);
    assert_int_equal(bench->ready, 0);
    assert_int_equal(bench->ended, 1);
}

/* What a worker writes where it can must not decide which process is killed. */
static void who_is_killed_is_the_kernels_word(void **state)
{
    struct bench *bench = *state;
    struct session_memory *memory;
    int fd = open(bench->memory_path, O_RDWR | O_CLOEXEC);
    pid_t pid = bench->pid;

    memory = mmap(NULL, sizeof(*memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(memory != MAP_FAILED);
    session_detach(bench);
    memory->worker_pid = (uint32_t)getpid(); /* this very test */
    session_adopt(bench);
    assert_int_equal(bench->pid, pid);
    exec_session_kill(bench->session);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    WAIT_FOR(bench, bench->ended);
    munmap(memory, sizeof(*memory));
    close(fd);
}

static void an_adopted_workers_death_is_told_once(void **state)
{
    struct bench *bench = *state;
    pid_t pid = bench->pid;

    session_detach(bench);
    session_adopt(bench);
    WAIT_FOR(bench, bench->ready);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    WAIT_FOR(bench, bench->ended);
    settle(bench);
    assert_int_equal(bench->ended, 1);
    succeed(bench);
    assert_int_equal(guest_run(bench, ping()).status, VGPU_DEVICE_LOST);
}

static void an_adopted_worker_ends_with_its_owner(void **state)
{
    struct bench *bench = *state;
    pid_t pid = bench->pid;

    session_detach(bench);
    session_adopt(bench);
    WAIT_FOR(bench, bench->ready);
    close(bench->lifeline_fds[1]);
    bench->lifeline_fds[1] = -1;
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    WAIT_FOR(bench, bench->ended);
    assert_true(bench->owner_gone);
}

static int adopt_code(struct bench *bench)
{
    const struct exec_session_events events = session_events(bench);
    struct exec_session *session = NULL;
    struct vgpu_error error;

    assert_int_equal(exec_session_adopt(&bench->loop, bench->memory_path, bench->socket_path,
                                        &events, &session, &error),
                     -1);
    assert_null(session);
    return error.code;
}

static void a_dead_worker_cannot_be_adopted(void **state)
{
    struct bench *bench = *state;

    assert_int_equal(adopt_code(bench), ENOENT);
    session_start(bench, false);
    session_end(bench);
    assert_int_equal(adopt_code(bench), ENOENT);
    assert_int_equal(truncate(bench->memory_path, 100), 0);
    assert_int_equal(adopt_code(bench), EINVAL);
}

static void what_a_faulted_session_was_is_told_to_the_next_mediator(void **state)
{
    struct bench *bench = *state;
    pid_t pid = bench->pid;

    session_detach(bench);
    bench->guest->sq_tail = UINT32_MAX;
    guest_ring(bench);
    session_adopt(bench);
    WAIT_FOR(bench, bench->faulted);
    session_end(bench);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

#define FAULT_TEST(point) cmocka_unit_test(each_is_answered_once_when_killed_at_##point)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STARTED_TEST(a_loss_is_told_until_it_is_taken_note_of),
        STARTED_TEST(what_ran_and_what_waited_is_answered_once_with_device_lost),
        STARTED_TEST(a_lost_quiet_operation_gets_no_answer),
        STARTED_TEST(memory_and_handles_are_gone_with_the_worker),
        STARTED_TEST(a_sleeping_guest_is_woken_by_the_successor),
        STARTED_TEST(a_successor_believes_no_word_of_the_slot),
        STARTED_TEST(a_successor_of_a_scribbled_slot_ends_its_work_too),
        FAULT_TEST(session_fetched),
        FAULT_TEST(session_started),
        FAULT_TEST(session_executed),
        FAULT_TEST(session_completed),
        FAULT_TEST(session_committed),
        FAULT_TEST(session_published),
        cmocka_unit_test(a_successor_that_is_killed_too_answers_nothing_twice),
        STARTED_TEST(a_worker_goes_on_without_its_mediator_and_is_adopted),
        STARTED_TEST(a_worker_that_is_busy_without_end_is_adopted_all_the_same),
        STARTED_TEST(work_that_came_meanwhile_is_told_to_the_next_mediator),
        STARTED_TEST(a_long_operation_is_finished_and_its_grant_comes_back),
        STARTED_TEST(an_adopted_worker_can_be_killed_also_before_it_answers),
        STARTED_TEST(who_is_killed_is_the_kernels_word),
        STARTED_TEST(an_adopted_workers_death_is_told_once),
        STARTED_TEST(an_adopted_worker_ends_with_its_owner),
        SESSION_TEST(a_dead_worker_cannot_be_adopted),
        STARTED_TEST(what_a_faulted_session_was_is_told_to_the_next_mediator),
    };

    bench_prepare();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

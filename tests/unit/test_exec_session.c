/* SPDX-License-Identifier: Apache-2.0 */
/* A window session's life and grants: the mediator's hold on its worker, and when the
 * worker runs, waits, tells and wakes. */
#include "session_bench.h"

/* --- start -------------------------------------------------------------------------------- */

static void a_started_session_is_ready_and_empty(void **state)
{
    struct bench *bench = *state;

    memset(bench->slot, 0xa5, bench->slot_bytes); /* the last session's */
    session_start(bench, false);
    assert_int_equal(bench->identity.vm_id, 7);
    assert_int_equal(bench->identity.slot, SLOT);
    assert_int_equal(bench->identity.slot_offset, bench->slot_offset);
    assert_int_equal(bench->identity.slot_bytes, bench->slot_bytes);
    assert_false(bench->identity.granted);
    assert_int_equal(bench->host->state, VGPU_SESSION_READY);
    assert_int_equal(bench->host->generation, 1);
    assert_int_equal(bench->host->device_bytes, DEVICE_BYTES);
    assert_int_equal(bench->host->cq_tail, 0);
    assert_int_equal(bench->slot[VGPU_SLOT_HEAP + 77], 0);
    assert_int_equal(bench->work, 0);
}

static void the_other_slots_are_left_alone(void **state)
{
    struct bench *bench = *state;

    memset(bench->window, 0xa5, bench->slot_offset);
    session_start(bench, false);
    guest_run(bench, ping());
    for (uint64_t i = 0; i < bench->slot_offset; i++)
        assert_int_equal(bench->window[i], 0xa5);
}

static void a_window_that_is_not_sealed_ends_the_worker(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;
    int sealed = bench->window_fd;

    bench->window_fd = memfd_create("window", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(bench->window_fd, WINDOW_BYTES), 0);
    assert_int_equal(session_try(bench, false, &error), 0);
    WAIT_FOR(bench, bench->ended);
    assert_int_equal(bench->ready, 0);
    close(bench->window_fd);
    bench->window_fd = sealed;
}

static void a_window_that_is_too_short_ends_the_worker(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;

    bench->slot_bytes += VGPU_PAGE_BYTES * 2;
    assert_int_equal(session_try(bench, false, &error), 0);
    WAIT_FOR(bench, bench->ended);
    assert_int_equal(bench->ready, 0);
}

static void a_second_worker_for_the_same_memory_is_refused(void **state)
{
    struct bench *bench = *state;
    struct exec_session *first = bench->session;
    struct vgpu_error error;

    assert_int_equal(session_try(bench, true, &error), -1);
    assert_int_equal(error.code, EBUSY);
    assert_ptr_equal(bench->session, first);
    guest_run(bench, ping());
}

static void a_program_that_is_missing_is_an_error(void **state)
{
    struct bench *bench = *state;
    char *program = strdup(getenv("VGPU_WORKER"));
    struct vgpu_error error;

    setenv("VGPU_WORKER", "/nonexistent/vgpu-worker", 1);
    assert_int_equal(session_try(bench, false, &error), -1);
    assert_non_null(strstr(error.message, "/nonexistent/vgpu-worker"));
    setenv("VGPU_WORKER", program, 1);
    free(program);
    bench->session = NULL;
}

static void a_successor_without_a_predecessors_memory_is_refused(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;

    assert_int_equal(session_try(bench, true, &error), -1);
    assert_int_equal(error.code, EINVAL);
}

/* --- work and grants ----------------------------------------------------------------------- */

static void work_is_told_once_and_nothing_runs_without_a_grant(void **state)
{
    struct bench *bench = *state;
    struct vgpu_completion completion;

    bench->grants = false;
    guest_submit(bench, ping());
    WAIT_FOR(bench, bench->work);
    assert_int_equal(bench->depth, 1);
    for (int i = 0; i < 10; i++) {
        guest_submit(bench, ping());
        guest_ring(bench);
    }
    usleep(20000);
    settle(bench);
    assert_int_equal(bench->work, 1);
    assert_false(guest_take(bench, &completion));
    assert_int_equal(bench->host->sq_head, 0);
    exec_session_grant(bench->session, &short_grant);
    for (uint64_t i = 1; i <= 11; i++)
        assert_int_equal(guest_wait(bench).cookie, i);
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(bench->operations, 11);
    assert_int_equal(bench->depth_left, 0);
}

static void what_comes_after_a_return_is_told_again(void **state)
{
    struct bench *bench = *state;

    bench->grant = short_grant;
    for (unsigned i = 1; i <= 20; i++) {
        guest_run(bench, ping());
        WAIT_FOR(bench, bench->returned == i);
        assert_int_equal(bench->work, i);
    }
}

static void a_grant_of_so_many_operations_runs_no_more(void **state)
{
    struct bench *bench = *state;

    bench->grants = false;
    for (uint32_t i = 0; i < 10; i++) {
        const struct vgpu_descriptor one = {.opcode = VGPU_OP_PING, .cookie = i + 1};

        guest_write(bench, i, &one);
    }
    guest_publish(bench, 10);
    WAIT_FOR(bench, bench->work);
    bench->grant = (struct exec_session_grant){3, UINT32_MAX, 1000000};
    exec_session_grant(bench->session, &bench->grant);
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(bench->operations, 3);
    assert_int_equal(bench->depth_left, 7);
    assert_int_equal(bench->host->cq_tail, 3);
    bench->grants = true;
    exec_session_grant(bench->session, &bench->grant);
    WAIT_FOR(bench, bench->returned == 4);
    assert_int_equal(bench->operations, 10);
    assert_int_equal(bench->host->cq_tail, 10);
    assert_int_equal(bench->work, 1);
}

static void a_grant_of_device_time_ends_with_the_operation_that_uses_it_up(void **state)
{
    struct bench *bench = *state;

    bench->grants = false;
    for (int i = 0; i < 4; i++)
        guest_submit(bench, text(bench, "SPIN 5"));
    WAIT_FOR(bench, bench->work);
    exec_session_grant(bench->session, &(struct exec_session_grant){UINT32_MAX, UINT32_MAX, 1000});
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(bench->operations, 1);
    assert_int_equal(bench->depth_left, 3);
    assert_true(bench->used_us >= 5000);
    exec_session_grant(bench->session, &short_grant); /* a second: enough for the rest */
    WAIT_FOR(bench, bench->returned == 2);
    assert_true(bench->operations > 1);
}

static void a_long_grant_is_kept_while_idle_and_given_back_when_asked(void **state)
{
    struct bench *bench = *state;

    for (int i = 0; i < 50; i++)
        guest_run(bench, ping());
    assert_int_equal(bench->work, 1);
    assert_int_equal(bench->returned, 0);
    exec_session_revoke(bench->session);
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(bench->operations, 50);
    exec_session_revoke(bench->session); /* without a grant: nothing */
    guest_run(bench, ping());
    assert_int_equal(bench->work, 2);
    assert_int_equal(bench->returned, 1);
}

static void a_refusing_grant_answers_everything_and_keeps_the_sessions_state(void **state)
{
    struct bench *bench = *state;
    struct vgpu_descriptor alloc = {.opcode = VGPU_OP_ALLOC, .alloc.bytes = 4096}, set;
    struct exec_session_grant refusing = long_grant;
    uint64_t address;

    address = guest_run(bench, alloc).result;
    exec_session_revoke(bench->session);
    WAIT_FOR(bench, bench->returned);
    refusing.refuse = true;
    bench->grant = refusing;
    set = (struct vgpu_descriptor){.opcode = VGPU_OP_SET, .set = {address, 16, 7, 4}};
    assert_int_equal(guest_run(bench, ping()).status, VGPU_REFUSED);
    assert_int_equal(guest_run(bench, set).status, VGPU_REFUSED);
    assert_int_equal(guest_run(bench, text(bench, "PING")).status, VGPU_REFUSED);
    assert_int_equal(bench->host->state, VGPU_SESSION_READY);
    bench->grant = long_grant;
    exec_session_revoke(bench->session);
    WAIT_FOR(bench, bench->returned == 2);
    assert_int_equal(guest_run(bench, set).status, VGPU_OK);
    assert_int_equal(guest_run(bench, text(bench, "PING")).status, VGPU_OK);
}

static void a_revoked_worker_finishes_what_runs_and_begins_no_more(void **state)
{
    struct bench *bench = *state;

    bench->grants = false;
    for (int i = 0; i < 3; i++)
        guest_submit(bench, text(bench, "SPIN 50"));
    WAIT_FOR(bench, bench->work);
    exec_session_grant(bench->session, &long_grant);
    while (exec_session_running(bench->session) == 0)
        usleep(100);
    exec_session_revoke(bench->session);
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(bench->operations, 1);
    assert_int_equal(bench->depth_left, 2);
    assert_int_equal(exec_session_running(bench->session), 0);
}

static void a_busy_worker_gives_back_while_its_guest_never_stops(void **state)
{
    struct bench *bench = *state;
    struct vgpu_completion completion;
    struct vgpu_descriptor one = ping();

    guest_run(bench, ping());
    one.cookie = 99;
    for (unsigned round = 1; round <= 20000 && bench->returned == 0; round++) {
        guest_submit(bench, one);
        while (guest_take(bench, &completion))
            ;
        while (bench->sq_tail - bench->cq_head >= VGPU_RING_ENTRIES && bench->returned == 0) {
            guest_take(bench, &completion);
            uv_run(&bench->loop, UV_RUN_NOWAIT);
        }
        if (round == 1000)
            exec_session_revoke(bench->session);
        if (round > 1000)
            uv_run(&bench->loop, UV_RUN_NOWAIT);
    }
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(bench->returned, 1);
}

/* Which number runs is never told twice, whatever the grants. */
static void what_runs_has_a_number_of_its_own(void **state)
{
    struct bench *bench = *state;
    uint64_t last = 0;

    bench->grants = false;
    for (unsigned i = 1; i <= 3; i++) {
        uint64_t running;

        guest_submit(bench, text(bench, "SPIN 20"));
        WAIT_FOR(bench, bench->work == i);
        exec_session_grant(bench->session, &short_grant);
        while ((running = exec_session_running(bench->session)) == 0)
            usleep(100);
        assert_true(running > last);
        last = running;
        WAIT_FOR(bench, bench->returned == i);
    }
}

/* --- wake-ups ------------------------------------------------------------------------------- */

static void a_guest_and_a_worker_that_both_sleep_always_wake(void **state)
{
    struct bench *bench = *state;

    for (int i = 0; i < 20000; i++)
        guest_run(bench, ping());
    assert_int_equal(bench->work, 1);
}

static void they_wake_also_when_each_grant_is_one_turn(void **state)
{
    struct bench *bench = *state;

    bench->grant = short_grant;
    for (int i = 0; i < 3000; i++)
        guest_run(bench, ping());
}

static void a_guest_that_polls_gets_no_interrupt(void **state)
{
    struct bench *bench = *state;
    struct vgpu_completion completion;

    guest_run(bench, ping());
    settle(bench);
    bench->interrupts = 0;
    bench->guest->cq_event = bench->cq_head - 1; /* left behind */
    for (int i = 0; i < 1000; i++) {
        guest_submit(bench, ping());
        while (!guest_take(bench, &completion))
            ;
    }
    settle(bench);
    assert_int_equal(bench->interrupts, 0);
}

static void a_busy_worker_needs_no_doorbells(void **state)
{
    struct bench *bench = *state;

    bench->spin_us = 1000000;
    session_start(bench, false);
    guest_run(bench, ping());
    bench->doorbells = 0;
    for (int i = 0; i < 1000; i++)
        guest_run(bench, ping());
    assert_true(bench->doorbells < 100); /* a second without the processor is possible */
}

static unsigned long cpu_ticks(pid_t pid)
{
    unsigned long user = 0, kernel = 0;
    char path[64], *stat, *after_name;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    stat = unit_read_file(path);
    after_name = strrchr(stat, ')');
    assert_non_null(after_name);
    assert_int_equal(
        sscanf(after_name, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel),
        2);
    free(stat);
    return user + kernel;
}

static void an_idle_session_uses_no_processor(void **state)
{
    struct bench *bench = *state;
    unsigned long before;

    guest_run(bench, ping()); /* it holds a long grant */
    before = cpu_ticks(bench->pid);
    usleep(300000);
    assert_true(cpu_ticks(bench->pid) - before <= 1);
}

static void a_doorbell_without_work_wakes_a_waiting_worker_once(void **state)
{
    struct bench *bench = *state;
    unsigned long before;

    bench->grants = false;
    guest_submit(bench, ping());
    WAIT_FOR(bench, bench->work);
    before = cpu_ticks(bench->pid);
    for (int i = 0; i < 200000; i++)
        guest_ring(bench);
    assert_true(cpu_ticks(bench->pid) - before <= 2);
    exec_session_grant(bench->session, &long_grant);
    guest_wait(bench);
    guest_run(bench, ping()); /* and hears it again */
}

/* --- full rings ----------------------------------------------------------------------------- */

static void publish_pings(struct bench *bench, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct vgpu_descriptor one = {.opcode = VGPU_OP_PING, .cookie = ++bench->cookie};

        guest_write(bench, i, &one);
    }
    guest_publish(bench, count);
}

static void nothing_is_taken_while_the_completion_ring_is_full(void **state)
{
    struct bench *bench = *state;
    unsigned long before;

    publish_pings(bench, VGPU_RING_ENTRIES);
    while (vgpu_load_acquire(&bench->host->cq_tail) < VGPU_RING_ENTRIES)
        uv_run(&bench->loop, UV_RUN_NOWAIT);
    publish_pings(bench, 10);
    usleep(20000);
    settle(bench);
    assert_int_equal(bench->host->cq_tail, VGPU_RING_ENTRIES);
    assert_int_equal(bench->host->sq_head, VGPU_RING_ENTRIES);
    before = cpu_ticks(bench->pid);
    usleep(200000);
    assert_true(cpu_ticks(bench->pid) - before <= 1);
    /* The guest takes some, and the next thing that it publishes rings. */
    for (uint64_t i = 1; i <= VGPU_RING_ENTRIES; i++)
        assert_int_equal(guest_wait(bench).cookie, i);
    publish_pings(bench, 1);
    for (uint64_t i = 1; i <= 11; i++)
        assert_int_equal(guest_wait(bench).cookie, VGPU_RING_ENTRIES + i);
}

static void rings_wrap_many_times_in_order(void **state)
{
    struct bench *bench = *state;
    uint64_t taken = 0;

    for (int round = 0; round < 40; round++) {
        publish_pings(bench, 1 + (uint32_t)round * 25 % VGPU_RING_ENTRIES);
        while (taken < bench->cookie) {
            struct vgpu_completion completion = guest_wait(bench);

            assert_int_equal(completion.cookie, ++taken);
            assert_int_equal(completion.sequence, taken - 1);
            assert_int_equal(completion.status, VGPU_OK);
            assert_int_equal(completion.generation, 1);
        }
    }
}

static void what_is_done_is_seen_while_a_long_operation_runs(void **state)
{
    struct bench *bench = *state;
    struct vgpu_descriptor descriptor = ping();

    descriptor.cookie = 1;
    guest_write(bench, 0, &descriptor);
    descriptor = text(bench, "SPIN 600000");
    descriptor.cookie = 2;
    guest_write(bench, 1, &descriptor);
    guest_publish(bench, 2);
    assert_int_equal(guest_wait(bench).cookie, 1);
    while (exec_session_running(bench->session) == 0)
        usleep(100);
}

/* --- rings that make no sense ---------------------------------------------------------------- */

static void expect_fault(struct bench *bench, const char *word)
{
    WAIT_FOR(bench, bench->faulted);
    assert_non_null(strstr(bench->reason, word));
    assert_int_equal(bench->host->state, VGPU_SESSION_FAULTED);
    usleep(5000);
    settle(bench);
    assert_int_equal(bench->faulted, 1);
    assert_int_equal(bench->ended, 0);
}

static void a_tail_more_than_a_ring_ahead_ends_the_sessions_work(void **state)
{
    struct bench *bench = *state;
    struct vgpu_completion completion;

    bench->guest->sq_tail = VGPU_RING_ENTRIES + 1;
    guest_ring(bench);
    expect_fault(bench, "sq_tail is 1025");
    bench->sq_tail = 0;
    guest_submit(bench, ping());
    guest_ring(bench);
    usleep(20000);
    settle(bench);
    assert_false(guest_take(bench, &completion));
}

static void a_head_that_was_never_reached_ends_the_sessions_work(void **state)
{
    struct bench *bench = *state;

    guest_run(bench, ping());
    bench->guest->cq_head = 5;
    guest_submit(bench, ping());
    guest_ring(bench);
    expect_fault(bench, "cq_head is 5");
    assert_int_equal(bench->returned, 1); /* no grant stays with it */
}

static void a_faulted_session_gives_a_late_grant_back(void **state)
{
    struct bench *bench = *state;

    bench->grants = false;
    bench->guest->sq_tail = UINT32_MAX;
    guest_ring(bench);
    expect_fault(bench, "sq_tail");
    exec_session_grant(bench->session, &long_grant);
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(bench->operations, 0);
}

/* --- the end -----------------------------------------------------------------------------------
 */

static void a_killed_worker_ends_once(void **state)
{
    struct bench *bench = *state;

    exec_session_kill(bench->session);
    exec_session_kill(bench->session);
    WAIT_FOR(bench, bench->ended);
    settle(bench);
    assert_int_equal(bench->ended, 1);
    assert_false(bench->owner_gone);
    assert_non_null(strstr(bench->reason, "killed"));
}

static void a_grant_to_a_worker_that_is_dead_already_is_followed_by_its_end(void **state)
{
    struct bench *bench = *state;
    siginfo_t info;

    kill(bench->pid, SIGKILL);
    waitid(P_PID, (id_t)bench->pid, &info, WEXITED | WNOWAIT);
    exec_session_grant(bench->session, &long_grant);
    exec_session_revoke(bench->session);
    WAIT_FOR(bench, bench->ended);
    assert_int_equal(bench->returned, 0);
}

static void a_worker_ends_when_its_owner_is_gone(void **state)
{
    struct bench *bench = *state;

    close(bench->lifeline_fds[1]);
    bench->lifeline_fds[1] = -1;
    WAIT_FOR(bench, bench->ended);
    assert_true(bench->owner_gone);
}

static void it_ends_also_in_the_middle_of_an_operation(void **state)
{
    struct bench *bench = *state;

    guest_submit(bench, text(bench, "SPIN 600000"));
    WAIT_FOR(bench, bench->work);
    while (exec_session_running(bench->session) == 0)
        usleep(100);
    close(bench->lifeline_fds[1]);
    bench->lifeline_fds[1] = -1;
    WAIT_FOR(bench, bench->ended);
    assert_true(bench->owner_gone);
}

/* An interrupt that a peer filled: the worker waits, and can still be ended. */
static void a_full_interrupt_holds_up_this_worker_only(void **state)
{
    struct bench *bench = *state;

    uv_poll_stop(&bench->interrupted);
    fcntl(bench->interrupt_fd, F_SETFL, 0); /* a peer can clear O_NONBLOCK */
    eventfd_write(bench->interrupt_fd, UINT64_MAX - 1);
    bench->guest->cq_event = 0;
    guest_submit(bench, ping());
    WAIT_FOR(bench, bench->work);
    while (vgpu_load_acquire(&bench->host->cq_tail) == 0)
        usleep(100);
    exec_session_revoke(bench->session);
    exec_session_kill(bench->session);
    WAIT_FOR(bench, bench->ended);
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

static void sessions_leave_no_descriptors(void **state)
{
    struct bench *bench = *state;
    unsigned before = 0;

    for (int i = 0; i < 5; i++) {
        session_start(bench, false);
        session_end(bench);
        settle(bench);
        if (i == 0)
            before = open_descriptors(); /* the loop has its own by now */
    }
    assert_int_equal(open_descriptors(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SESSION_TEST(a_started_session_is_ready_and_empty),
        SESSION_TEST(the_other_slots_are_left_alone),
        SESSION_TEST(a_window_that_is_not_sealed_ends_the_worker),
        SESSION_TEST(a_window_that_is_too_short_ends_the_worker),
        STARTED_TEST(a_second_worker_for_the_same_memory_is_refused),
        SESSION_TEST(a_program_that_is_missing_is_an_error),
        SESSION_TEST(a_successor_without_a_predecessors_memory_is_refused),
        STARTED_TEST(work_is_told_once_and_nothing_runs_without_a_grant),
        STARTED_TEST(what_comes_after_a_return_is_told_again),
        STARTED_TEST(a_grant_of_so_many_operations_runs_no_more),
        STARTED_TEST(a_grant_of_device_time_ends_with_the_operation_that_uses_it_up),
        STARTED_TEST(a_long_grant_is_kept_while_idle_and_given_back_when_asked),
        STARTED_TEST(a_refusing_grant_answers_everything_and_keeps_the_sessions_state),
        STARTED_TEST(a_revoked_worker_finishes_what_runs_and_begins_no_more),
        STARTED_TEST(a_busy_worker_gives_back_while_its_guest_never_stops),
        STARTED_TEST(what_runs_has_a_number_of_its_own),
        STARTED_TEST(a_guest_and_a_worker_that_both_sleep_always_wake),
        STARTED_TEST(they_wake_also_when_each_grant_is_one_turn),
        STARTED_TEST(a_guest_that_polls_gets_no_interrupt),
        SESSION_TEST(a_busy_worker_needs_no_doorbells),
        STARTED_TEST(an_idle_session_uses_no_processor),
        STARTED_TEST(a_doorbell_without_work_wakes_a_waiting_worker_once),
        STARTED_TEST(nothing_is_taken_while_the_completion_ring_is_full),
        STARTED_TEST(rings_wrap_many_times_in_order),
        STARTED_TEST(what_is_done_is_seen_while_a_long_operation_runs),
        STARTED_TEST(a_tail_more_than_a_ring_ahead_ends_the_sessions_work),
        STARTED_TEST(a_head_that_was_never_reached_ends_the_sessions_work),
        STARTED_TEST(a_faulted_session_gives_a_late_grant_back),
        STARTED_TEST(a_killed_worker_ends_once),
        STARTED_TEST(a_grant_to_a_worker_that_is_dead_already_is_followed_by_its_end),
        STARTED_TEST(a_worker_ends_when_its_owner_is_gone),
        STARTED_TEST(it_ends_also_in_the_middle_of_an_operation),
        STARTED_TEST(a_full_interrupt_holds_up_this_worker_only),
        SESSION_TEST(sessions_leave_no_descriptors),
    };

    bench_prepare();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

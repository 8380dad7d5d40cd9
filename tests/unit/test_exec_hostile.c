/* SPDX-License-Identifier: Apache-2.0 */
/* A worker that guests' work has taken over, or that dies at a bad moment: what
 * reaches the mediator, and that nothing else does. */
#include "exec_bench.h"

/* --- a worker that misbehaves
 * --------------------------------------------------------------------- */

static void a_worker_that_breaks_the_rules_is_killed_and_told_why(void **state)
{
    static const struct {
        const char *behaviour, *reason;
    } cases[] = {
        {"short", "killed by the mediator: it sent 7 bytes, expected a result of 1040"},
        {"long", "killed by the mediator: it sent 3000 bytes, expected a result of 1040"},
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

static void a_result_is_delivered_though_the_kill_came_after_it(void **state)
{
    struct bench *bench = *state;

    start_fake(bench, "result-exit");
    run(bench, 9, "PING");
    wait_exited(bench->worker);
    exec_worker_kill(bench->worker);
    expect_end(bench, 0, "exited with status 0");
    assert_int_equal(bench->completed_at_end, 1);
}

/*
 * The loop may learn of a worker's exit before it looks at its socket: when the
 * worker ends in the very turn in which the loop collects another one.  So the
 * second worker here works and exits while the first one's result is delivered.
 */
struct pair {
    struct exec_worker *first, *second;
    unsigned first_ended, second_completed, second_ended, completed_at_end;
    bool forget; /* the second, when its result comes */
};

static void pair_completed(struct exec_worker *worker, uint64_t sequence,
                           const struct protocol_response *response, uint64_t device_us,
                           void *context)
{
    struct pair *pair = context;

    (void)sequence;
    (void)response;
    (void)device_us;
    if (worker == pair->first) {
        exec_worker_run(pair->second, 2, "PING", NULL);
        wait_exited(pair->second);
        return;
    }
    pair->second_completed++;
    if (pair->forget)
        exec_worker_detach(worker);
}

static void pair_ended(struct exec_worker *worker, uint64_t sequence, const char *reason,
                       void *context)
{
    struct pair *pair = context;

    (void)sequence;
    (void)reason;
    if (worker == pair->first) {
        pair->first_ended++;
    } else {
        pair->second_ended++;
        pair->completed_at_end = pair->second_completed;
    }
}

static struct pair pair_run(struct bench *bench, bool forget)
{
    struct pair pair = {.forget = forget};
    struct exec_worker_events events = {
        .completed = pair_completed, .ended = pair_ended, .context = &pair};
    struct exec_worker_config config = {.uid = (uid_t)-1,
                                        .program = getenv("VGPU_FAKE_WORKER"),
                                        .backend = "result-exit",
                                        .vm_id = 1,
                                        .record_path = bench->record};
    struct vgpu_error error;

    assert_int_equal(exec_worker_start(&bench->loop, &config, &events, &pair.first, &error), 0);
    config.record_path = bench->log; /* a place for another record */
    assert_int_equal(exec_worker_start(&bench->loop, &config, &events, &pair.second, &error), 0);
    assert_int_equal(exec_worker_run(pair.first, 1, "PING", &error), 0);
    wait_exited(pair.first);
    while (!pair.first_ended || !(pair.second_ended || pair.forget))
        turn(bench);
    uv_run(&bench->loop, UV_RUN_NOWAIT);
    assert_int_equal(pair.first_ended, 1);
    return pair;
}

static void a_result_is_delivered_though_the_exit_was_seen_first(void **state)
{
    struct pair pair = pair_run(*state, false);

    assert_int_equal(pair.completed_at_end, 1);
    assert_int_equal(pair.second_ended, 1);
}

static void a_worker_may_be_forgotten_while_its_last_result_is_delivered(void **state)
{
    struct pair pair = pair_run(*state, true);

    assert_int_equal(pair.second_completed, 1);
    assert_int_equal(pair.second_ended, 0);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORKER_TEST(a_worker_that_breaks_the_rules_is_killed_and_told_why),
        WORKER_TEST(a_worker_of_another_release_is_named_as_such),
        WORKER_TEST(a_result_that_nobody_asked_for_kills_its_worker),
        WORKER_TEST(a_flood_of_results_is_one_result_and_the_end),
        WORKER_TEST(a_result_that_was_sent_is_delivered_before_the_end),
        WORKER_TEST(a_result_is_delivered_though_the_kill_came_after_it),
        WORKER_TEST(a_result_is_delivered_though_the_exit_was_seen_first),
        WORKER_TEST(a_worker_may_be_forgotten_while_its_last_result_is_delivered),
        WORKER_TEST(garbage_before_an_exit_is_no_result),
        WORKER_TEST(a_crash_and_an_exit_are_told_apart),
        WORKER_TEST(device_time_is_never_more_than_the_time_that_passed),
    };

    bench_prepare();
    return cmocka_run_group_tests_name("exec_hostile", tests, NULL, NULL);
}

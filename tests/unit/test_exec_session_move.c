/* SPDX-License-Identifier: Apache-2.0 */
/* A session that holds nothing on its GPU works on another one from its next grant on, with the
 * same worker.  On a double of NVIDIA's library, whose one GPU has several names. */
#include "session_bench.h"

#define OTHER "0000:65:00.0"
#define MISSING "cuda:7"

static int make_started(void **state)
{
    struct bench *bench;

    bench_make(state);
    bench = *state;
    bench->backend = "cuda";
    bench->devices = "cuda:0";
    bench->cuda_library = getenv("VGPU_FAKE_CUDA");
    bench->grant = short_grant;
    session_start(bench, false);
    return 0;
}

#define MOVE_TEST(function) cmocka_unit_test_setup_teardown(function, make_started, bench_remove)

/* Needs a context; the grant is back afterwards. */
static void compute(struct bench *bench)
{
    unsigned before = bench->returned;

    assert_int_equal(guest_run(bench, text(bench, "VECTOR_ADD")).status, VGPU_OK);
    WAIT_FOR(bench, bench->returned > before);
}

static void rest(struct bench *bench)
{
    unsigned before = bench->rested;

    exec_session_rest(bench->session);
    WAIT_FOR(bench, bench->rested > before);
}

static void one_without_a_context_goes_on_elsewhere(void **state)
{
    struct bench *bench = *state;

    assert_true(exec_session_may_move(bench->session));
    exec_session_move(bench->session, OTHER);
    assert_string_equal(exec_session_devices(bench->session), OTHER);
    compute(bench);
    assert_int_equal(exec_session_contexts(bench->session), 1);
    rest(bench);
    assert_true(exec_session_may_move(bench->session));
    exec_session_move(bench->session, "cuda:0");
    compute(bench);
    assert_int_equal(exec_session_contexts(bench->session), 1);
}

static void one_with_a_context_may_not_move(void **state)
{
    struct bench *bench = *state;

    compute(bench);
    assert_false(exec_session_may_move(bench->session));
    rest(bench);
    assert_true(exec_session_may_move(bench->session));
}

static void one_with_a_grant_may_not_move(void **state)
{
    struct bench *bench = *state;

    bench->grant = long_grant;
    guest_run(bench, ping());
    assert_int_equal(bench->returned, 0);
    assert_false(exec_session_may_move(bench->session));
    exec_session_revoke(bench->session);
    WAIT_FOR(bench, bench->returned);
    assert_true(exec_session_may_move(bench->session));
}

static void the_next_mediator_finds_it_where_it_was_sent(void **state)
{
    struct bench *bench = *state;

    exec_session_move(bench->session, OTHER);
    session_detach(bench);
    session_adopt(bench);
    assert_string_equal(exec_session_devices(bench->session), OTHER);
    assert_false(exec_session_may_move(bench->session)); /* it has not said who it is */
    WAIT_FOR(bench, bench->ready);
    assert_true(exec_session_may_move(bench->session));
    compute(bench);
    assert_int_equal(exec_session_contexts(bench->session), 1);
}

static void one_that_is_refused_needs_no_device(void **state)
{
    struct bench *bench = *state;

    exec_session_move(bench->session, MISSING);
    bench->grant.refuse = true;
    assert_int_equal(guest_run(bench, ping()).status, VGPU_REFUSED);
    WAIT_FOR(bench, bench->returned);
    exec_session_move(bench->session, OTHER);
    bench->grant.refuse = false;
    compute(bench);
}

static void a_device_that_is_gone_is_lost_and_a_successor_tells(void **state)
{
    struct bench *bench = *state;
    uint64_t cookie;

    exec_session_move(bench->session, MISSING);
    cookie = guest_submit(bench, ping());
    while (!bench->ended)
        turn(bench);
    bench->devices = OTHER;
    session_start(bench, true);
    for (;;) {
        struct vgpu_completion completion = guest_wait(bench);

        if (completion.cookie != cookie)
            continue;
        assert_int_equal(completion.status, VGPU_DEVICE_LOST);
        break;
    }
    assert_int_equal(guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_RESET}).status,
                     VGPU_OK);
    compute(bench);
}

static void on_processors_it_is_another_name(void **state)
{
    struct bench *bench = *state;

    session_end(bench);
    bench->backend = "cpu";
    bench->devices = "cpu:0";
    session_start(bench, false);
    assert_true(exec_session_may_move(bench->session));
    exec_session_move(bench->session, "cpu:1");
    compute(bench);
    assert_string_equal(exec_session_devices(bench->session), "cpu:1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        MOVE_TEST(one_without_a_context_goes_on_elsewhere),
        MOVE_TEST(one_with_a_context_may_not_move),
        MOVE_TEST(one_with_a_grant_may_not_move),
        MOVE_TEST(the_next_mediator_finds_it_where_it_was_sent),
        MOVE_TEST(one_that_is_refused_needs_no_device),
        MOVE_TEST(a_device_that_is_gone_is_lost_and_a_successor_tells),
        MOVE_TEST(on_processors_it_is_another_name),
    };

    bench_prepare();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

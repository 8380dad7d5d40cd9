/* SPDX-License-Identifier: Apache-2.0 */
/* Somebody waits for a context of the GPU: a worker gives its own up when nothing of the
 * guest's is in it, and keeps it otherwise.  On a double of NVIDIA's library. */
#include "session_bench.h"

static int make_started(void **state)
{
    struct bench *bench;

    bench_make(state);
    bench = *state;
    bench->backend = "cuda";
    bench->devices = "cuda:0";
    bench->cuda_library = getenv("VGPU_FAKE_CUDA");
    session_start(bench, false);
    return 0;
}

#define REST_TEST(function) cmocka_unit_test_setup_teardown(function, make_started, bench_remove)

static void compute(struct bench *bench)
{
    assert_int_equal(guest_run(bench, text(bench, "VECTOR_ADD")).status, VGPU_OK);
}

static uint64_t alloc(struct bench *bench)
{
    struct vgpu_completion completion =
        guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_ALLOC, .alloc.bytes = 4096});

    assert_int_equal(completion.status, VGPU_OK);
    return completion.result;
}

static void free_it(struct bench *bench, uint64_t address)
{
    assert_int_equal(
        guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_FREE, .free.address = address})
            .status,
        VGPU_OK);
}

static uint32_t contexts(const struct bench *bench)
{
    return exec_session_contexts(bench->session);
}

static void one_without_a_grant_gives_an_empty_context_up(void **state)
{
    struct bench *bench = *state;

    bench->grant = short_grant;
    compute(bench);
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(contexts(bench), 1);
    exec_session_rest(bench->session);
    WAIT_FOR(bench, bench->rested);
    assert_int_equal(contexts(bench), 0);
    compute(bench);
    assert_int_equal(contexts(bench), 1);
}

static void one_with_a_long_grant_gives_both_up_when_it_is_idle(void **state)
{
    struct bench *bench = *state;

    compute(bench);
    assert_int_equal(bench->returned, 0);
    exec_session_rest(bench->session);
    WAIT_FOR(bench, bench->rested);
    assert_int_equal(bench->returned, 1);
    assert_int_equal(contexts(bench), 0);
}

static void one_that_has_made_no_context_gives_its_grant_up(void **state)
{
    struct bench *bench = *state;

    guest_run(bench, ping());
    exec_session_rest(bench->session);
    WAIT_FOR(bench, bench->returned);
    assert_int_equal(contexts(bench), 0);
    assert_int_equal(bench->rested, 0);
}

static void a_grant_says_that_somebody_waits(void **state)
{
    struct bench *bench = *state;

    bench->grant = short_grant;
    bench->grant.rest = true;
    compute(bench);
    WAIT_FOR(bench, bench->rested);
    assert_int_equal(bench->returned, 1);
    assert_int_equal(contexts(bench), 0);
    bench->grant.rest = false;
    compute(bench);
    WAIT_FOR(bench, bench->returned == 2);
    guest_run(bench, ping());
    assert_int_equal(bench->rested, 1);
    assert_int_equal(contexts(bench), 1);
}

static void one_with_memory_keeps_it_and_its_grant_until_that_is_freed(void **state)
{
    struct bench *bench = *state;
    uint64_t address = alloc(bench);

    exec_session_rest(bench->session);
    compute(bench);
    assert_int_equal(bench->returned + bench->rested, 0);
    free_it(bench, address);
    WAIT_FOR(bench, bench->rested);
    assert_int_equal(bench->returned, 1);
    assert_int_equal(contexts(bench), 0);
}

static void one_that_only_refuses_gives_it_up_and_goes_on_refusing(void **state)
{
    struct bench *bench = *state;

    bench->grant = short_grant;
    compute(bench);
    WAIT_FOR(bench, bench->returned);
    bench->grant = long_grant;
    bench->grant.refuse = true;
    assert_int_equal(guest_run(bench, ping()).status, VGPU_REFUSED);
    exec_session_rest(bench->session);
    WAIT_FOR(bench, bench->rested);
    assert_int_equal(contexts(bench), 0);
    assert_int_equal(guest_run(bench, ping()).status, VGPU_REFUSED);
}

/* What is left then comes as new work, so that others can go first. */
static void one_with_work_without_end_gives_it_up_in_between(void **state)
{
    struct bench *bench = *state;

    for (int i = 0; i < 200; i++)
        guest_submit(bench, text(bench, "SPIN 20"));
    WAIT_FOR(bench, contexts(bench) == 1);
    bench->grants = false;
    exec_session_rest(bench->session);
    WAIT_FOR(bench, bench->work == 2);
    assert_int_equal(bench->returned, 1);
    assert_int_equal(bench->depth_left, 0);
    assert_int_equal(bench->rested, 1);
    assert_in_range(bench->depth, 1, 199);
    assert_int_equal(contexts(bench), 0);
}

static void a_new_mediator_asks_anew(void **state)
{
    struct bench *bench = *state;
    uint64_t address = alloc(bench);

    exec_session_rest(bench->session);
    compute(bench);
    session_detach(bench);
    session_adopt(bench);
    WAIT_FOR(bench, bench->ready);
    bench->grant = short_grant;
    free_it(bench, address);
    compute(bench);
    guest_run(bench, ping());
    assert_int_equal(bench->rested, 0);
    assert_int_equal(contexts(bench), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        REST_TEST(one_without_a_grant_gives_an_empty_context_up),
        REST_TEST(one_with_a_long_grant_gives_both_up_when_it_is_idle),
        REST_TEST(one_that_has_made_no_context_gives_its_grant_up),
        REST_TEST(a_grant_says_that_somebody_waits),
        REST_TEST(one_with_memory_keeps_it_and_its_grant_until_that_is_freed),
        REST_TEST(one_that_only_refuses_gives_it_up_and_goes_on_refusing),
        REST_TEST(one_with_work_without_end_gives_it_up_in_between),
        REST_TEST(a_new_mediator_asks_anew),
    };

    bench_prepare();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Window sessions' workers that say what they should not: the mediator ends them, says
 * why, and nothing that they said out of turn reaches it. */
#include "session_bench.h"

static void expect_ended(struct bench *bench, const char *how, const char *why)
{
    struct vgpu_error error;

    setenv("VGPU_WORKER", getenv("VGPU_FAKE_SESSION_WORKER"), 1);
    bench->backend = how;
    bench->grants = false;
    assert_int_equal(session_try(bench, false, &error), 0);
    WAIT_FOR(bench, bench->ended);
    settle(bench);
    assert_int_equal(bench->ended, 1);
    if (!strstr(bench->reason, why))
        fail_msg("'%s' does not say '%s'", bench->reason, why);
}

static void half_a_message_ends_it(void **state)
{
    struct bench *bench = *state;

    expect_ended(bench, "half", "it sent something that is no message");
    assert_int_equal(bench->ready, 0);
}

static void a_wrong_magic_ends_it(void **state)
{
    expect_ended(*state, "magic", "it sent something that is no message");
}

static void another_release_ends_it(void **state)
{
    expect_ended(*state, "version", "it is of another release");
}

static void work_before_the_hello_ends_it(void **state)
{
    struct bench *bench = *state;

    expect_ended(bench, "early", "out of turn");
    assert_int_equal(bench->work, 0);
}

static void a_second_hello_ends_it(void **state)
{
    struct bench *bench = *state;

    expect_ended(bench, "hello-again", "out of turn");
    assert_int_equal(bench->ready, 1);
}

static void a_return_of_what_it_was_not_given_ends_it(void **state)
{
    struct bench *bench = *state;

    expect_ended(bench, "returns-nothing", "out of turn");
    assert_int_equal(bench->returned, 0);
}

static void a_message_that_does_not_exist_ends_it(void **state)
{
    expect_ended(*state, "unknown", "out of turn");
}

static void a_mediators_message_ends_it(void **state)
{
    expect_ended(*state, "grants", "out of turn");
}

static void work_that_is_told_twice_ends_it(void **state)
{
    struct bench *bench = *state;

    expect_ended(bench, "work-twice", "out of turn");
    assert_int_equal(bench->work, 1);
}

static void a_fault_that_is_told_twice_ends_it(void **state)
{
    struct bench *bench = *state;

    expect_ended(bench, "faults-twice", "out of turn");
    assert_int_equal(bench->faulted, 1);
}

static void a_faults_reason_is_made_printable(void **state)
{
    struct bench *bench = *state;
    struct vgpu_error error;

    setenv("VGPU_WORKER", getenv("VGPU_FAKE_SESSION_WORKER"), 1);
    bench->backend = "faults";
    assert_int_equal(session_try(bench, false, &error), 0);
    WAIT_FOR(bench, bench->faulted);
    assert_non_null(strstr(bench->reason, "\\x1b"));
    assert_null(strchr(bench->reason, 0x1b));
}

static void one_that_hangs_up_and_stays_is_ended(void **state)
{
    expect_ended(*state, "hangs-up", "it closed its connection");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SESSION_TEST(half_a_message_ends_it),
        SESSION_TEST(a_wrong_magic_ends_it),
        SESSION_TEST(another_release_ends_it),
        SESSION_TEST(work_before_the_hello_ends_it),
        SESSION_TEST(a_second_hello_ends_it),
        SESSION_TEST(a_return_of_what_it_was_not_given_ends_it),
        SESSION_TEST(a_message_that_does_not_exist_ends_it),
        SESSION_TEST(a_mediators_message_ends_it),
        SESSION_TEST(work_that_is_told_twice_ends_it),
        SESSION_TEST(a_fault_that_is_told_twice_ends_it),
        SESSION_TEST(a_faults_reason_is_made_printable),
        SESSION_TEST(one_that_hangs_up_and_stays_is_ended),
    };

    bench_prepare();
    if (!getenv("VGPU_FAKE_SESSION_WORKER"))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

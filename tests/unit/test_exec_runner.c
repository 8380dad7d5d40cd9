/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much a runner has in flight within a grant, on a device of this test's own: what is put
 * there is over when the test says so.
 */
#include "unit.h"

#include "exec/runner.h"

#include <sys/eventfd.h>

#define SLOT_BYTES VGPU_SLOT_MIN_BYTES
#define MASK (VGPU_RING_ENTRIES - 1)
#define OPERATION_US 400u

struct bench {
    struct runner runner;
    struct session_memory memory;
    struct account_memory account;
    struct account_share share;
    uint8_t *slot;
    int interrupt_fd;
};

/* --- the device ------------------------------------------------------------------------ */

static uint64_t put, over; /* numbers of what was put last, of what is over */

static int device_begin(const struct device_config *config, void **ret_state,
                        struct device_place *ret_place, struct vgpu_error *error)
{
    (void)config;
    (void)error;
    *ret_state = NULL;
    *ret_place = (struct device_place){.base = 0};
    put = over = 0;
    return 0;
}

static void device_end(void *state)
{
    (void)state;
}

static enum vgpu_status device_set(void *state, void *stream, uint64_t address, uint32_t value,
                                   uint32_t width, uint64_t count)
{
    (void)state, (void)stream, (void)address, (void)value, (void)width, (void)count;
    put++;
    return VGPU_OK;
}

static void device_mark(void *state, enum device_interest interest, struct device_wait *wait)
{
    (void)state, (void)interest;
    wait->number = put;
    wait->calls = 1;
}

static enum vgpu_status device_reached(void *state, const struct device_wait *wait)
{
    (void)state;
    return wait->number <= over ? VGPU_OK : VGPU_NOT_READY;
}

static enum vgpu_status device_is_drained(void *state)
{
    (void)state;
    return put == over ? VGPU_OK : VGPU_NOT_READY;
}

static const struct device_ops device = {.open = device_begin,
                                         .close = device_end,
                                         .set = device_set,
                                         .mark = device_mark,
                                         .reached = device_reached,
                                         .drained = device_is_drained};
static const struct exec_backend backend = {.name = "test", .device = &device};

/* --- the bench ------------------------------------------------------------------------- */

static int make(void **state)
{
    struct bench *bench = aligned_alloc(64, (sizeof(*bench) + 63) / 64 * 64);
    struct vgpu_error error;

    memset(bench, 0, sizeof(*bench));
    bench->share = (struct account_share){&bench->account, 0};
    bench->slot = aligned_alloc(VGPU_PAGE_BYTES, SLOT_BYTES);
    memset(bench->slot, 0, SLOT_BYTES);
    bench->interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(runner_open(&bench->runner, &backend, bench->slot, SLOT_BYTES, 1,
                                 &bench->share, 1000, &bench->memory, bench->interrupt_fd, -1,
                                 &error),
                     0);
    runner_begin(&bench->runner, false);
    bench->runner.pace_ns = OPERATION_US * NS_PER_US;
    *state = bench;
    return 0;
}

static int end(void **state)
{
    struct bench *bench = *state;

    runner_close(&bench->runner);
    close(bench->interrupt_fd);
    free(bench->slot);
    free(bench);
    return 0;
}

#define RUNNER_TEST(function) cmocka_unit_test_setup_teardown(function, make, end)

static void submit(struct bench *bench, uint32_t count)
{
    struct vgpu_slot_guest *guest = (void *)(bench->slot + VGPU_SLOT_GUEST);
    struct vgpu_descriptor *sq = (void *)(bench->slot + VGPU_SLOT_SQ);

    for (uint32_t i = 0; i < count; i++)
        sq[(guest->sq_tail + i) & MASK] = (struct vgpu_descriptor){
            .opcode = VGPU_OP_SET, .set = {.address = 4096, .count = 1, .width = 1}};
    guest->sq_tail += count;
}

/* A grant in which `used_us` of `device_us` have been used already. */
static void grant(struct bench *bench, uint64_t device_us, uint64_t used_us)
{
    runner_grant(&bench->runner, &(struct exec_session_grant){.max_ops = UINT32_MAX,
                                                              .max_inflight = UINT32_MAX,
                                                              .device_us = device_us});
    bench->runner.used_ns = used_us * NS_PER_US;
}

/* What is begun in one look. */
static uint64_t begun(struct bench *bench)
{
    uint64_t before = put;

    assert_true(runner_run(&bench->runner));
    return put - before;
}

/* --- tests ------------------------------------------------------------------------------ */

static void a_long_grant_lets_a_stream_have_two_milliseconds_in_flight(void **state)
{
    submit(*state, 64);
    grant(*state, EXEC_GRANT_LONG, 0);
    assert_int_equal(begun(*state), 2000 / OPERATION_US);
}

static void what_is_in_flight_is_no_more_than_what_is_left_of_a_grant(void **state)
{
    submit(*state, 64);
    grant(*state, 1000, 0);
    assert_int_equal(begun(*state), 3); /* the last one begins before the end */
}

static void at_the_end_of_a_grant_one_is_in_flight(void **state)
{
    submit(*state, 64);
    grant(*state, 1000, 700);
    assert_int_equal(begun(*state), 1);
}

static void a_grant_that_is_longer_than_a_streams_two_milliseconds_is_not_felt(void **state)
{
    submit(*state, 64);
    grant(*state, 100000, 0);
    assert_int_equal(begun(*state), 2000 / OPERATION_US);
}

static void the_next_one_begins_when_what_was_in_flight_is_over_and_time_is_left(void **state)
{
    struct bench *bench = *state;

    submit(bench, 64);
    grant(bench, 1000000000, 0);
    bench->runner.pace_ns = 3600 * NS_PER_S;
    assert_int_equal(begun(bench), 1);
    assert_false(runner_run(&bench->runner));
    over = put;
    assert_int_equal(begun(bench), 1);
    assert_false(runner_is_done(&bench->runner));
    over = put;
}

static void a_grant_is_over_when_its_time_is(void **state)
{
    struct bench *bench = *state;

    grant(bench, 1000, 999);
    assert_false(runner_is_done(&bench->runner));
    grant(bench, 1000, 1000);
    assert_true(runner_is_done(&bench->runner));
    grant(bench, EXEC_GRANT_LONG, 1000);
    assert_false(runner_is_done(&bench->runner));
}

static bool is_named(const char *one, const char *other)
{
    char names[2][DEVICE_NAME_BYTES] = {{0}};

    text_copy(names[0], sizeof(names[0]), one);
    text_copy(names[1], sizeof(names[1]), other);
    return device_name_is(names[0], names[1]);
}

static void a_kernel_is_named_by_all_of_its_name(void **state)
{
    char longest[VGPU_NAME_MAX_BYTES + 1] = {0}, other[VGPU_NAME_MAX_BYTES + 1] = {0};

    (void)state;
    for (size_t bytes = 1; bytes <= VGPU_NAME_MAX_BYTES; bytes++) {
        longest[bytes - 1] = other[bytes - 1] = 'k';
        assert_true(is_named(longest, other));
        other[bytes - 1] = 'l';
        assert_false(is_named(longest, other));
        other[bytes - 1] = '\0';
        assert_false(is_named(longest, other));
        assert_false(is_named(other, longest));
        other[bytes - 1] = 'k';
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RUNNER_TEST(a_long_grant_lets_a_stream_have_two_milliseconds_in_flight),
        RUNNER_TEST(what_is_in_flight_is_no_more_than_what_is_left_of_a_grant),
        RUNNER_TEST(at_the_end_of_a_grant_one_is_in_flight),
        RUNNER_TEST(a_grant_that_is_longer_than_a_streams_two_milliseconds_is_not_felt),
        RUNNER_TEST(the_next_one_begins_when_what_was_in_flight_is_over_and_time_is_left),
        RUNNER_TEST(a_grant_is_over_when_its_time_is),
        cmocka_unit_test(a_kernel_is_named_by_all_of_its_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

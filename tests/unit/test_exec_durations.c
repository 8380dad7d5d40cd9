/* SPDX-License-Identifier: Apache-2.0 */
/* Durations as a worker tells them: buckets, and what is new in counts that wrap. */
#include "unit.h"

#include "exec/durations.h"

static void a_bucket_stands_for_what_falls_there_within_3_2_percent(void **state)
{
    (void)state;
    for (uint64_t us = 0; us >> DURATION_BITS == 0; us += us / 40 + 1) {
        uint64_t told_us = exec_duration_us(duration_bucket(us));
        uint64_t apart_us = told_us > us ? told_us - us : us - told_us;

        assert_true(apart_us * 1000 <= us * 32);
    }
}

static void short_durations_are_exact(void **state)
{
    (void)state;
    for (uint64_t us = 0; us < 32; us++)
        assert_int_equal(exec_duration_us(duration_bucket(us)), us);
}

static void longer_ones_than_all_buckets_fall_into_the_last(void **state)
{
    (void)state;
    assert_int_equal(duration_bucket((1ull << DURATION_BITS) - 1), EXEC_DURATION_BUCKETS - 1);
    assert_int_equal(duration_bucket(1ull << DURATION_BITS), EXEC_DURATION_BUCKETS - 1);
    assert_int_equal(duration_bucket(UINT64_MAX), EXEC_DURATION_BUCKETS - 1);
}

static void an_operation_counts_once_in_each_kind(void **state)
{
    struct session_memory *memory = calloc(1, sizeof(*memory));

    (void)state;
    durations_record(memory, 7 * NS_PER_US, 9 * NS_PER_US);
    assert_int_equal(memory->durations.counts[EXEC_DURATION_RUN][7], 1);
    assert_int_equal(memory->durations.counts[EXEC_DURATION_TOTAL][9], 1);
    assert_int_equal(memory->timed, 1);
    free(memory);
}

static void what_is_new_is_counted_over_a_wrap(void **state)
{
    struct exec_durations seen = {0}, told = {0};

    (void)state;
    seen.counts[EXEC_DURATION_RUN][3] = UINT32_MAX;
    told.counts[EXEC_DURATION_RUN][3] = 1;
    told.counts[EXEC_DURATION_RUN][4] = 5;
    assert_int_equal(exec_durations_new(&told, &seen), 7);
}

static void of_two_kinds_that_differ_the_larger_one_counts(void **state)
{
    struct exec_durations seen = {0}, told = {0};

    (void)state;
    told.counts[EXEC_DURATION_RUN][1] = 2;
    told.counts[EXEC_DURATION_TOTAL][1] = UINT32_MAX;
    told.counts[EXEC_DURATION_TOTAL][2] = UINT32_MAX;
    assert_int_equal(exec_durations_new(&told, &seen), 2ull * UINT32_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bucket_stands_for_what_falls_there_within_3_2_percent),
        cmocka_unit_test(short_durations_are_exact),
        cmocka_unit_test(longer_ones_than_all_buckets_fall_into_the_last),
        cmocka_unit_test(an_operation_counts_once_in_each_kind),
        cmocka_unit_test(what_is_new_is_counted_over_a_wrap),
        cmocka_unit_test(of_two_kinds_that_differ_the_larger_one_counts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

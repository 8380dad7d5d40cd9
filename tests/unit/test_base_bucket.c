/* SPDX-License-Identifier: Apache-2.0 */
/* Token buckets: never more than the rate and the burst, never less, whatever the clock says. */
#include "unit.h"

#include "base/base.h"

#include <pthread.h>

#define START_NS (77 * NS_PER_S)

static void a_full_bucket_gives_its_burst_and_then_its_rate(void **state)
{
    struct bucket_rate rate = bucket_rate(1000, NS_PER_S, 10);
    uint64_t bucket = 0;

    (void)state;
    assert_int_equal(bucket_take(&bucket, &rate, 100, START_NS), 10);
    assert_int_equal(bucket_take(&bucket, &rate, 1, START_NS), 0);
    assert_int_equal(bucket_wait_ns(&bucket, &rate, 1, START_NS), NS_PER_MS);
    assert_int_equal(bucket_wait_ns(&bucket, &rate, 3, START_NS), 3 * NS_PER_MS);
    assert_int_equal(bucket_take(&bucket, &rate, 1, START_NS + NS_PER_MS - 1), 0);
    assert_int_equal(bucket_take(&bucket, &rate, 100, START_NS + NS_PER_MS), 1);
    /* It keeps no more than its burst. */
    assert_int_equal(bucket_take(&bucket, &rate, 100, START_NS + 3600 * NS_PER_S), 10);
}

static void a_bucket_without_a_rate_bounds_nothing(void **state)
{
    struct bucket_rate rate = bucket_rate(0, NS_PER_S, 0);
    uint64_t bucket = 0;

    (void)state;
    bucket_charge(&bucket, &rate, UINT64_MAX, START_NS);
    assert_int_equal(bucket_take(&bucket, &rate, UINT32_MAX, START_NS), UINT32_MAX);
    assert_int_equal(bucket_wait_ns(&bucket, &rate, UINT64_MAX, START_NS), 0);
}

/* Whoever asks at odd instants, for odd numbers, gets the rate. */
static uint64_t take_for(const struct bucket_rate *rate, uint64_t begin_ns, uint64_t lasts_ns)
{
    uint64_t bucket = begin_ns * 16, taken = 0, now_ns = begin_ns; /* full */

    for (uint64_t random = 1; now_ns - begin_ns < lasts_ns; now_ns += random >> 44) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        taken += bucket_take(&bucket, rate, random & 7, now_ns);
    }
    return taken;
}

static void the_rate_does_not_drift(void **state)
{
    static const uint64_t rates[] = {1, 3, 7, 999, 30011};
    uint64_t seconds = 3000;

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(rates); i++) {
        struct bucket_rate rate = bucket_rate(rates[i], NS_PER_S, rates[i]);
        uint64_t taken = take_for(&rate, START_NS, seconds * NS_PER_S / (1 + rates[i] / 100));
        uint64_t due = rates[i] * seconds / (1 + rates[i] / 100);

        assert_true(taken <= due + rates[i] + 1);
        /* A ten-thousandth is the rounding; the last ones may be there still. */
        assert_true(rates[i] > 7 || taken + rates[i] + 1 >= due - due / 10000);
    }
}

static void rounding_never_gives_more_than_the_rate(void **state)
{
    (void)state;
    for (uint64_t tokens = 1; tokens <= 10000000; tokens = tokens * 7 / 3 + 1) {
        struct bucket_rate rate = bucket_rate(tokens, NS_PER_S, 1000000000);
        uint64_t bucket = START_NS * 16, taken;

        while (bucket_take(&bucket, &rate, UINT32_MAX, START_NS))
            ;
        taken = bucket_take(&bucket, &rate, UINT32_MAX, START_NS + NS_PER_S);
        assert_true(taken <= tokens && taken + tokens / 1000 + 1 >= tokens);
    }
}

static void what_is_charged_beyond_the_bucket_is_owed(void **state)
{
    struct bucket_rate rate = bucket_rate(25, 100 * NS_PER_US, 2500); /* a quarter, in us */
    uint64_t bucket = 0;

    (void)state;
    bucket_charge(&bucket, &rate, 1000000, START_NS); /* a second of it */
    assert_int_equal(bucket_take(&bucket, &rate, 1, START_NS + 3 * NS_PER_S), 0);
    assert_int_equal(bucket_wait_ns(&bucket, &rate, 2500, START_NS), 4 * NS_PER_S);
    assert_true(bucket_take(&bucket, &rate, 1, START_NS + 4 * NS_PER_S) == 1);
}

static void a_huge_debt_ends(void **state)
{
    struct bucket_rate rate = bucket_rate(1, NS_PER_S, 1);
    uint64_t bucket = 0;

    (void)state;
    for (int i = 0; i < 3; i++)
        bucket_charge(&bucket, &rate, UINT64_MAX, START_NS);
    assert_true(bucket_wait_ns(&bucket, &rate, 1, START_NS) <= 2 * 86400 * NS_PER_S + NS_PER_S);
    assert_int_equal(bucket_take(&bucket, &rate, 1, START_NS + 3 * 86400 * NS_PER_S), 1);
}

static void a_bucket_works_where_its_clock_wraps(void **state)
{
    struct bucket_rate rate = bucket_rate(10, NS_PER_S, 10);
    uint64_t wrap_ns = UINT64_MAX / 16;
    uint64_t bucket = 0;

    (void)state;
    bucket = (wrap_ns - NS_PER_S) * 16;
    assert_int_equal(bucket_take(&bucket, &rate, 100, wrap_ns - NS_PER_S / 2), 10);
    assert_int_equal(bucket_take(&bucket, &rate, 100, wrap_ns + NS_PER_S / 2), 10);
    assert_int_equal(bucket_take(&bucket, &rate, 100, wrap_ns + NS_PER_S / 2), 0);
    assert_true(take_for(&rate, wrap_ns - 50 * NS_PER_S, 100 * NS_PER_S) <= 1010);
    assert_true(take_for(&rate, wrap_ns - 50 * NS_PER_S, 100 * NS_PER_S) >= 999);
}

static void a_bucket_that_makes_no_sense_is_full(void **state)
{
    struct bucket_rate rate = bucket_rate(10, NS_PER_S, 10);
    uint64_t bucket = (START_NS + 30 * 86400 * NS_PER_S) * 16; /* owes a month */

    (void)state;
    assert_int_equal(bucket_take(&bucket, &rate, 100, START_NS), 10);
}

static void a_new_rate_keeps_what_is_owed(void **state)
{
    struct bucket_rate slow = bucket_rate(1, NS_PER_S, 10), quick = bucket_rate(1000, NS_PER_S, 10);
    struct bucket_rate none = {0};
    uint64_t bucket = 0;

    (void)state;
    assert_int_equal(bucket_take(&bucket, &slow, 10, START_NS), 10);
    bucket_change(&bucket, &slow, &quick, START_NS);
    assert_int_equal(bucket_take(&bucket, &quick, 1, START_NS), 0);
    assert_int_equal(bucket_wait_ns(&bucket, &quick, 10, START_NS), 10 * NS_PER_MS);
    bucket_change(&bucket, &quick, &slow, START_NS);
    assert_int_equal(bucket_wait_ns(&bucket, &slow, 10, START_NS), 10 * NS_PER_S);
    bucket_change(&bucket, &slow, &none, START_NS);
    bucket_change(&bucket, &none, &slow, START_NS);
    assert_int_equal(bucket_take(&bucket, &slow, 10, START_NS), 10);
}

/* --- shared --------------------------------------------------------------------------------- */

struct shared {
    uint64_t bucket;
    uint64_t taken;
};

static void *take_all(void *argument)
{
    const struct bucket_rate rate = bucket_rate(1000000, NS_PER_S, 1000);
    struct shared *shared = argument;

    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t count = bucket_take(&shared->bucket, &rate, 3, START_NS + i * 10);

        __atomic_add_fetch(&shared->taken, count, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void many_that_take_at_once_get_no_more(void **state)
{
    struct shared shared = {.bucket = START_NS * 16};
    pthread_t threads[4];

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_all, &shared), 0);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(threads); i++)
        pthread_join(threads[i], NULL);
    assert_true(shared.taken <= 1000 + 200 + 1);
    assert_true(shared.taken >= 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_bucket_gives_its_burst_and_then_its_rate),
        cmocka_unit_test(a_bucket_without_a_rate_bounds_nothing),
        cmocka_unit_test(the_rate_does_not_drift),
        cmocka_unit_test(rounding_never_gives_more_than_the_rate),
        cmocka_unit_test(what_is_charged_beyond_the_bucket_is_owed),
        cmocka_unit_test(a_huge_debt_ends),
        cmocka_unit_test(a_bucket_works_where_its_clock_wraps),
        cmocka_unit_test(a_bucket_that_makes_no_sense_is_full),
        cmocka_unit_test(a_new_rate_keeps_what_is_owed),
        cmocka_unit_test(many_that_take_at_once_get_no_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

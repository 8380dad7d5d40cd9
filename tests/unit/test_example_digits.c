/* SPDX-License-Identifier: Apache-2.0 */
/* examples/digits/network.c: what the example does without a GPU. */
#include "unit.h"

#include "network.h"

#define TRAINING_SEED 12345u
#define TEST_SEED 98765u
#define COUNT 2000u

static struct network trained;

static int train(void **state)
{
    (void)state;
    network_train(&trained, TRAINING_SEED);
    return 0;
}

static void the_same_seed_draws_the_same_digits(void **state)
{
    uint32_t one = TEST_SEED, other = TEST_SEED;
    float points[2][POINTS];

    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(digit_draw(&one, points[0]), digit_draw(&other, points[1]));
        assert_memory_equal(points[0], points[1], sizeof(points[0]));
    }
}

static void points_are_between_dark_and_bright_and_all_digits_come(void **state)
{
    uint32_t seed = TEST_SEED, seen = 0;
    float points[POINTS];

    (void)state;
    for (unsigned i = 0; i < 1000; i++) {
        uint32_t digit = digit_draw(&seed, points);

        assert_true(digit < DIGITS);
        seen |= 1u << digit;
        for (unsigned k = 0; k < POINTS; k++)
            assert_true(points[k] >= 0 && points[k] <= 1);
    }
    assert_int_equal(seen, (1u << DIGITS) - 1);
}

static void the_same_seed_trains_the_same_network(void **state)
{
    static struct network again;

    (void)state;
    network_train(&again, TRAINING_SEED);
    assert_memory_equal(&again, &trained, sizeof(again));
}

static void a_trained_network_reads_digits_that_it_never_saw(void **state)
{
    float points[POINTS], hidden[HIDDEN], scores[DIGITS];
    uint32_t seed = TEST_SEED, right = 0;

    (void)state;
    for (unsigned i = 0; i < COUNT; i++) {
        uint32_t digit = digit_draw(&seed, points);

        network_scores(&trained, points, hidden, scores);
        right += network_choice(scores) == digit;
    }
    assert_true(right >= COUNT * 9 / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_seed_draws_the_same_digits),
        cmocka_unit_test(points_are_between_dark_and_bright_and_all_digits_come),
        cmocka_unit_test(the_same_seed_trains_the_same_network),
        cmocka_unit_test(a_trained_network_reads_digits_that_it_never_saw),
    };

    return cmocka_run_group_tests(tests, train, NULL);
}

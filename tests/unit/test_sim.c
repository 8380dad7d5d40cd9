/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator's parts: its random numbers, its order of events, its latencies, its scenarios.
 * What it shows about the scheduler is tests/unit/test_sim_schedules.c.
 */
#include "unit.h"

#include "sim/private.h"

#include <errno.h>
#include <math.h>

/* --- random numbers ---------------------------------------------------------------------- */

static void logarithm_and_exponential_are_those_of_the_library(void **state)
{
    struct draw draw;

    (void)state;
    draw_seed(&draw, 1, 1);
    for (unsigned i = 0; i < 10000; i++) {
        double x = (double)(draw_bits(&draw) >> 20) * 0x1p-30 + 1e-9;

        assert_true(fabs(draw_ln(x) - log(x)) < 1e-12 * (1 + fabs(log(x))));
        assert_true(fabs(draw_exp(log(x)) / x - 1) < 1e-12);
    }
}

static void streams_of_one_seed_differ_and_repeat(void **state)
{
    struct draw a, again, b;

    (void)state;
    draw_seed(&a, 5, 1);
    draw_seed(&again, 5, 1);
    draw_seed(&b, 5, 2);
    for (unsigned i = 0; i < 100; i++) {
        uint64_t bits = draw_bits(&a);

        assert_int_equal(bits, draw_bits(&again));
        assert_int_not_equal(bits, draw_bits(&b));
    }
}

static void exponential_numbers_have_their_mean(void **state)
{
    struct draw draw;
    double sum = 0;

    (void)state;
    draw_seed(&draw, 2, 3);
    for (unsigned i = 0; i < 200000; i++)
        sum += (double)draw_exponential(&draw, 10000);
    assert_true(fabs(sum / 200000 - 10000) < 100);
}

static void pareto_numbers_stay_within_bounds_and_have_their_tail(void **state)
{
    struct draw draw;
    unsigned above = 0;

    (void)state;
    draw_seed(&draw, 2, 3);
    for (unsigned i = 0; i < 200000; i++) {
        uint64_t value = draw_pareto(&draw, 100, 100000, 1.5);

        assert_in_range(value, 100, 100000);
        above += value > 1000;
    }
    /* P(X > 10 * least) of a Pareto distribution: 10^-1.5. */
    assert_true(fabs(above / 200000.0 - 0.0316) < 0.002);
}

/* --- events ------------------------------------------------------------------------------ */

static void events_come_by_time_then_type_then_as_they_were_added(void **state)
{
    struct events events = {0};
    struct event last = {0}, event;
    struct draw draw;
    unsigned taken = 0;

    (void)state;
    draw_seed(&draw, 1, 1);
    for (unsigned i = 0; i < 5000; i++)
        events_add(&events, draw_below(&draw, 300),
                   (enum event_type)draw_below(&draw, EVENT_END + 1), i);
    for (; events_take(&events, &event); taken++, last = event) {
        if (taken == 0)
            continue;
        assert_true(event.time_ns >= last.time_ns);
        if (event.time_ns == last.time_ns)
            assert_true(event_type(&event) >= event_type(&last));
        if (event.time_ns == last.time_ns && event_type(&event) == event_type(&last))
            assert_true(event.index > last.index);
    }
    assert_int_equal(taken, 5000);
    events_clear(&events);
}

/* --- latencies --------------------------------------------------------------------------- */

static void percentiles_are_told_within_one_percent(void **state)
{
    struct sim_latency *latency = NULL;

    (void)state;
    for (uint64_t i = 1; i <= 100000; i++)
        sim_latency_add(&latency, i * 1000);
    assert_in_range(sim_latency_at(latency, 500), 50000000, 50500000);
    assert_in_range(sim_latency_at(latency, 990), 99000000, 99990000);
    assert_in_range(sim_latency_at(latency, 999), 99900000, 100000000);
    assert_int_equal(sim_latency_at(latency, 1000), 100000000);
    assert_int_equal(sim_latency_max(latency), 100000000);
    free(latency);
}

static void any_value_can_be_counted(void **state)
{
    struct sim_latency *latency = NULL;

    (void)state;
    sim_latency_add(&latency, 0);
    assert_int_equal(sim_latency_at(latency, 500), 0);
    sim_latency_add(&latency, UINT64_MAX);
    assert_int_equal(sim_latency_at(latency, 500), 0);
    assert_int_equal(sim_latency_at(latency, 999), UINT64_MAX);
    free(latency);
}

static void latencies_that_never_came_are_zero(void **state)
{
    (void)state;
    assert_int_equal(sim_latency_at(NULL, 500), 0);
    assert_int_equal(sim_latency_max(NULL), 0);
    assert_int_equal(sim_latency_count(NULL), 0);
}

/* --- scenarios --------------------------------------------------------------------------- */

/* Reads `text` as a file; the message, or "" when it is right. */
static void expect_scenario(const char *text, const char *expected)
{
    struct sim_scenario *scenario = sim_scenario_new();
    char *directory = unit_temporary_directory(), path[256];
    struct vgpu_error error = {.message = ""};
    FILE *file;

    snprintf(path, sizeof(path), "%s/s.ini", directory);
    file = fopen(path, "we");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    if (sim_scenario_read(scenario, path, &error) == 0)
        sim_scenario_finish(scenario, &error);
    if (!strstr(error.message, expected) || (expected[0] == '\0') != (error.message[0] == '\0'))
        fail_msg("'%s' is not in '%s'", expected, error.message);
    sim_scenario_free(scenario);
    unit_remove_directory(directory);
}

static void a_wrong_scenario_is_refused_with_line_and_reason(void **state)
{
    (void)state;
    expect_scenario("", "nothing to simulate");
    expect_scenario("seed = 1\n", "line 1: a key stands before the first [section]");
    expect_scenario("[simulation]\nseed = x\n",
                    "line 2: seed = x: expected a whole number from 0 to 4294967295");
    expect_scenario("[simulation]\npolicy = best\n",
                    "line 2: policy = best: expected one of strict, wfq, fifo, round-robin");
    expect_scenario("[simulation]\nspeed = 1\n", "line 2: unknown key 'speed' in [simulation]");
    expect_scenario("[simulations]\n", "line 1: unknown section [simulations]");
    expect_scenario("[pool AB]\n", "[pool AB]: expected one letter, A to Z");
    expect_scenario("[pool A]\ndevices = 3-1\n", "devices = 3-1: expected a device 0 to 999");
    expect_scenario("[pool A]\n[pool A]\n", "line 2: pool A stands twice");
    expect_scenario("[load a]\n[load a]\n", "line 2: load a stands twice");
    expect_scenario("[load \"]\n", "expected a name of 1 to 47 letters");
    expect_scenario("[load a]\npool = a\n", "line 2: pool = a: expected one letter, A to Z");
    expect_scenario("[load a]\nvms = 0\n", "vms = 0: expected a whole number from 1 to 10000");
    expect_scenario("[pool A]\n[load a]\npool = B\n", "pool B does not exist: add [pool B]");
    expect_scenario("[load a]\nsizes = pareto\njob_us = 9\njob_max_us = 9\n",
                    "job_max_us = 9: expected more than job_us, which is 9");
    expect_scenario("[load a]\nstart_ms = 5\nstop_ms = 5\n", "expected 0 (never), or more than");
    expect_scenario("[simulation]\nqueue_max = 2\n[load a]\ndepth = 3\n", "at most queue_max");
    expect_scenario("[load a]\nvms = 9999\n[load b]\nvms = 2\n", "10001 VMs: expected at most");
    expect_scenario("[load a]\nwords\n", "line 2: expected [section] or key = value");
}

static void a_right_scenario_is_accepted(void **state)
{
    (void)state;
    expect_scenario("[load a]\n", "");
    expect_scenario("; comment\n[simulation]\npolicy = wfq\ndemand = yes\n\n[pool B]\n"
                    "devices = 0-999\n[load a 1.5 %]\npool = B\nvms = 10000\n",
                    "");
}

static void a_variant_is_the_settings_with_its_own_changes(void **state)
{
    struct sim_scenario *scenario = sim_scenario_new();
    struct vgpu_error error;

    (void)state;
    assert_int_equal(sim_scenario_set(scenario, "grant_us=300", &error), 0);
    assert_int_equal(sim_scenario_compare(scenario, "fifo,strict:aging_ms=7:grant_us=50", &error),
                     0);
    assert_int_equal(scenario->variant_count, 2);
    assert_int_equal(scenario->variants[0].settings.policy.type, SCHED_POLICY_FIFO);
    assert_int_equal(scenario->variants[0].settings.grant_us, 300);
    assert_int_equal(scenario->variants[1].settings.policy.aging_ms, 7);
    assert_int_equal(scenario->variants[1].settings.grant_us, 50);
    assert_string_equal(scenario->variants[1].label, "strict:aging_ms=7:grant_us=50");
    assert_int_equal(sim_scenario_compare(scenario, "strict:aging_ms", &error), -1);
    assert_non_null(strstr(error.message, "expected KEY=VALUE"));
    sim_scenario_free(scenario);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logarithm_and_exponential_are_those_of_the_library),
        cmocka_unit_test(streams_of_one_seed_differ_and_repeat),
        cmocka_unit_test(exponential_numbers_have_their_mean),
        cmocka_unit_test(pareto_numbers_stay_within_bounds_and_have_their_tail),
        cmocka_unit_test(events_come_by_time_then_type_then_as_they_were_added),
        cmocka_unit_test(percentiles_are_told_within_one_percent),
        cmocka_unit_test(any_value_can_be_counted),
        cmocka_unit_test(latencies_that_never_came_are_zero),
        cmocka_unit_test(a_wrong_scenario_is_refused_with_line_and_reason),
        cmocka_unit_test(a_right_scenario_is_accepted),
        cmocka_unit_test(a_variant_is_the_settings_with_its_own_changes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

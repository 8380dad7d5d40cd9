/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each policy promises over time, in simulated time: shares of the device under weighted
 * fair queueing, and how long one waits under strict priorities that age.
 */
#include "sched_sim.h"

#define GRANT_US 2000
#define WINDOWS 20
#define RUNS 1000

static const struct sched_policy_config wfq = {.type = SCHED_POLICY_WFQ};

static const struct sched_config ordinary = {
    .grant_max_ops = 64, .grant_max_inflight = 8, .grant_device_us = GRANT_US};

/* It always has work. */
static struct sim_vm *add_busy(struct sim *sim, uint32_t weight, uint32_t job_min_us,
                               uint32_t job_max_us)
{
    const struct sim_vm vm = {.pool = 'A',
                              .priority = 1,
                              .weight = weight,
                              .burst_max = SIM_ENDLESS,
                              .job_min_us = job_min_us,
                              .job_max_us = job_max_us};

    return sim_add(sim, &vm);
}

/* --- shares -------------------------------------------------------------------------------- */

static uint64_t used_by_all(const struct sim *sim)
{
    uint64_t used_us = 0;

    for (unsigned i = 0; i < sim->count; i++)
        used_us += sim->vms[i].used_us;
    return used_us;
}

/* In each second every VM gets its part of the device time that is used, give or take 2 % of
 * the whole. */
static void expect_shares(struct sim *sim, const uint64_t *percents)
{
    sim_run(sim, NS_PER_S);
    for (unsigned window = 0; window < WINDOWS; window++) {
        uint64_t before_us[SIM_VMS_MAX], all_us;

        for (unsigned i = 0; i < sim->count; i++)
            before_us[i] = sim->vms[i].used_us;
        all_us = used_by_all(sim);
        sim_run(sim, NS_PER_S);
        all_us = used_by_all(sim) - all_us;
        for (unsigned i = 0; i < sim->count; i++) {
            uint64_t used_us = sim->vms[i].used_us - before_us[i];

            assert_in_range(used_us * 100 + 2 * all_us, percents[i] * all_us,
                            (percents[i] + 4) * all_us);
        }
    }
}

/* (sum x)^2 >= 0.99 * n * sum x^2, in each second, of what each got for its weight. */
static void expect_fair(struct sim *sim)
{
    for (unsigned window = 0; window < WINDOWS; window++) {
        uint64_t before_us[SIM_VMS_MAX], sum = 0, squares = 0;

        for (unsigned i = 0; i < sim->count; i++)
            before_us[i] = sim->vms[i].used_us;
        sim_run(sim, NS_PER_S);
        for (unsigned i = 0; i < sim->count; i++) {
            uint64_t part = sim->vms[i].used_us - before_us[i];

            sum += part;
            squares += part * part;
        }
        assert_true(sum * sum / sim->count * 100 >= squares * 99);
    }
}

static void equal_weights_get_equal_shares_whatever_they_run(void **state)
{
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &wfq, 1);
    for (uint32_t i = 0; i < 10; i++)
        add_busy(&sim, 100, 10 + 150 * i, 20 + 500 * i);
    expect_fair(&sim);
    sim_free(&sim);
}

static void three_to_one_is_75_and_25_percent(void **state)
{
    static const uint64_t percents[] = {75, 25};
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &wfq, 2);
    add_busy(&sim, 300, 10, 300);
    add_busy(&sim, 100, 1000, 5000);
    expect_shares(&sim, percents);
    sim_free(&sim);
}

static void ninety_nine_and_one_are_kept_apart(void **state)
{
    static const uint64_t percents[] = {90, 9, 1};
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &wfq, 3);
    add_busy(&sim, 900, 100, 900);
    add_busy(&sim, 90, 2000, 4000);
    add_busy(&sim, 10, 5, 10);
    expect_shares(&sim, percents);
    sim_free(&sim);
}

static void classes_share_by_their_weights(void **state)
{
    static const uint64_t percents[] = {76, 19, 5}; /* 16 to 4 to 1 */
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &wfq, 4);
    for (unsigned i = 0; i < 3; i++) {
        const struct sim_vm vm = {.pool = 'A',
                                  .priority = 2 - i,
                                  .burst_max = SIM_ENDLESS,
                                  .job_min_us = 100,
                                  .job_max_us = 3000};

        sim_add(&sim, &vm);
    }
    expect_shares(&sim, percents);
    sim_free(&sim);
}

static void shares_hold_with_grants_by_demand_and_costly_changes(void **state)
{
    static const struct sched_policy_config demand = {.type = SCHED_POLICY_WFQ, .demand = true};
    static const uint64_t percents[] = {75, 25};
    struct sched_config config = ordinary;
    struct sim sim;

    (void)state;
    config.switch_us = 50;
    config.switch_share_percent = 5;
    sim_init(&sim, &config, &demand, 5);
    sim.switch_us = 50;
    add_busy(&sim, 300, 10, 300);
    add_busy(&sim, 100, 100, 2500);
    expect_shares(&sim, percents);
    sim_free(&sim);
}

static void who_sleeps_at_times_has_its_share_of_the_rest(void **state)
{
    const struct sim_vm sleepy = {.pool = 'A',
                                  .priority = 1,
                                  .burst_max = 1000,
                                  .job_min_us = 100,
                                  .job_max_us = 1000,
                                  .think_max_us = 5000000};
    uint64_t first_us, second_us;
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &wfq, 6);
    add_busy(&sim, 100, 100, 1000);
    add_busy(&sim, 100, 100, 1000);
    sim_add(&sim, &sleepy);
    sim_run(&sim, 100 * NS_PER_S);
    first_us = sim.vms[0].used_us;
    second_us = sim.vms[1].used_us;
    assert_in_range(first_us, second_us - 2 * 3000, second_us + 2 * 3000);
    assert_true(sim.vms[2].used_us < first_us); /* nothing is paid back for sleep */
    sim_free(&sim);
}

/* Of two that always have work, what each got for its weight never differs by more than one
 * grant of each (the theorem of start-time fair queueing), over hours and wrapping tags. */
static void shares_do_not_drift_in_hours(void **state)
{
    static const uint32_t weights[] = {7, 993};
    int64_t least = 0, most = 0, difference;
    const int64_t longest_us = GRANT_US + 1700;
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &wfq, 7);
    add_busy(&sim, weights[0], 3, 1700);
    add_busy(&sim, weights[1], 300, 1300);
    while (sim_step(&sim, 3 * 3600 * NS_PER_S)) {
        difference =
            (int64_t)(sim.vms[0].used_us * weights[1]) - (int64_t)(sim.vms[1].used_us * weights[0]);
        least = difference < least ? difference : least;
        most = difference > most ? difference : most;
    }
    assert_true(most - least <= longest_us * (weights[0] + weights[1]));
    assert_true(used_by_all(&sim) > UINT64_C(3) * 3599 * 1000 * 1000); /* it never rested */
    sim_free(&sim);
}

static void weights_that_change_have_their_effect_at_once(void **state)
{
    static const uint64_t before[] = {50, 50}, after[] = {80, 20};
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &wfq, 8);
    add_busy(&sim, 100, 100, 1000);
    add_busy(&sim, 100, 100, 1000);
    expect_shares(&sim, before);
    sched_set_weight(sim.sched, sim.vms[0].vm, 400);
    expect_shares(&sim, after);
    sim_free(&sim);
}

static void round_robin_shares_time_and_fifo_turns(void **state)
{
    static const struct sched_policy_config slices = {.type = SCHED_POLICY_ROUND_ROBIN};
    static const struct sched_policy_config fifo = {.type = SCHED_POLICY_FIFO};
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &slices, 9);
    add_busy(&sim, 100, 10, 10);
    add_busy(&sim, 100, 1000, 1000);
    expect_fair(&sim);
    sim_free(&sim);

    sim_init(&sim, &ordinary, &fifo, 9);
    add_busy(&sim, 100, 10, 10); /* 64 operations are 640 us */
    add_busy(&sim, 100, 1000, 1000);
    sim_run(&sim, NS_PER_S);
    assert_true(sim.vms[0].used_us * 3 < sim.vms[1].used_us);
    sim_free(&sim);
}

/* --- the longest wait ---------------------------------------------------------------------- */

struct bound {
    uint32_t aging_ms;
    uint64_t stretch_us; /* the longest that one VM holds the device */
    uint64_t waits;      /* that came near it */
};

static void expect_wait_in_bound(struct sim *sim, unsigned device, struct sim_vm *vm,
                                 const struct sched_grant *grant)
{
    struct bound *bound = sim->context;
    uint64_t waited_us = (sim->now_ns - vm->waits_since_ns) / NS_PER_US;
    uint64_t bound_us = (uint64_t)(SCHED_CLASS_HIGH - vm->priority) * bound->aging_ms * 1000 +
                        (uint64_t)vm->waiting_when_it_came * (bound->stretch_us + sim->switch_us);

    (void)device;
    (void)grant;
    assert_true(waited_us <= bound_us);
    bound->waits += waited_us > bound_us / 2;
}

static void add_random(struct sim *sim, unsigned count, uint32_t job_max_us)
{
    for (unsigned i = 0; i < count; i++) {
        const struct sim_vm vm = {
            .pool = 'A',
            .priority = (unsigned)sim_random(sim, 0, 2),
            .weight = (uint32_t)sim_random(sim, 1, 1000),
            .burst_max = sim_random(sim, 0, 2) ? (uint32_t)sim_random(sim, 1, 200) : SIM_ENDLESS,
            .job_min_us = 1,
            .job_max_us = (uint32_t)sim_random(sim, 1, job_max_us),
            .think_max_us = (uint32_t)sim_random(sim, 1, 200000),
        };

        sim_add(sim, &vm);
    }
}

static void run_aging(uint64_t seed, struct bound *bound)
{
    const uint32_t job_max_us = 3000;
    struct sched_config config = ordinary;
    struct sched_policy_config aging = {.type = SCHED_POLICY_STRICT};
    struct sim sim = {.random_state = seed * 0x9e3779b97f4a7c15u};

    aging.aging_ms = (uint32_t)sim_random(&sim, 1, 100);
    config.grant_device_us = sim_random(&sim, 100, 4000);
    config.switch_us = sim_random(&sim, 0, 1) * 100;
    config.switch_share_percent = (uint32_t)sim_random(&sim, 0, 20);
    bound->aging_ms = aging.aging_ms;
    bound->stretch_us = config.grant_device_us + job_max_us;
    sim_init(&sim, &config, &aging, seed);
    sim.switch_us = config.switch_us;
    sim.on_grant = expect_wait_in_bound;
    sim.context = bound;
    add_random(&sim, (unsigned)sim_random(&sim, 2, 30), job_max_us);
    sim_run(&sim, NS_PER_S / 2);
    for (unsigned i = 0; i < sim.count; i++) {
        if (sim.devices[0].running != &sim.vms[i] && sim.vms[i].backlog > 0)
            expect_wait_in_bound(&sim, 0, &sim.vms[i], NULL);
    }
    sim_free(&sim);
}

static void with_aging_the_longest_wait_is_bounded(void **state)
{
    struct bound bound = {0};

    (void)state;
    for (uint64_t seed = 1; seed <= RUNS; seed++)
        run_aging(seed, &bound);
    assert_true(bound.waits > RUNS); /* it is no bound that nothing comes near */
}

static void without_aging_low_priorities_may_starve(void **state)
{
    static const struct sched_policy_config strict = {.type = SCHED_POLICY_STRICT};
    struct sim sim;

    (void)state;
    sim_init(&sim, &ordinary, &strict, 10);
    add_busy(&sim, 100, 100, 1000);
    sim.vms[0].priority = 2;
    assert_int_equal(sched_update_vm(sim.sched, sim.vms[0].vm, 'A', 2, NULL), 0);
    add_busy(&sim, 100, 100, 1000);
    add_busy(&sim, 100, 100, 1000);
    assert_int_equal(sched_update_vm(sim.sched, sim.vms[2].vm, 'A', 2, NULL), 0);
    sim_run(&sim, 10 * NS_PER_S);
    assert_int_equal(sim.vms[1].used_us, 0);
    sim_free(&sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_weights_get_equal_shares_whatever_they_run),
        cmocka_unit_test(three_to_one_is_75_and_25_percent),
        cmocka_unit_test(ninety_nine_and_one_are_kept_apart),
        cmocka_unit_test(classes_share_by_their_weights),
        cmocka_unit_test(shares_hold_with_grants_by_demand_and_costly_changes),
        cmocka_unit_test(who_sleeps_at_times_has_its_share_of_the_rest),
        cmocka_unit_test(shares_do_not_drift_in_hours),
        cmocka_unit_test(weights_that_change_have_their_effect_at_once),
        cmocka_unit_test(round_robin_shares_time_and_fifo_turns),
        cmocka_unit_test(with_aging_the_longest_wait_is_bounded),
        cmocka_unit_test(without_aging_low_priorities_may_starve),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

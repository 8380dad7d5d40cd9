/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What holds in every life, whatever the policies, however they change: random VMs on random
 * schedules, from fixed seeds.  That each single decision is right is
 * tests/unit/test_sched_reference.c.
 */
#include "sched_sim.h"

#define SEEDS 200

static const struct sched_policy_config strict = {.type = SCHED_POLICY_STRICT};
static const struct sched_policy_config wfq = {.type = SCHED_POLICY_WFQ};

static struct sched_config random_config(struct sim *sim)
{
    return (struct sched_config){
        .pools_mode = sim_random(sim, 0, 1) ? SCHED_POOLS_SHARED : SCHED_POOLS_INDEPENDENT,
        .grant_max_ops = (uint32_t)sim_random(sim, 1, 64),
        .grant_max_inflight = (uint32_t)sim_random(sim, 1, 8),
        .grant_device_us = sim_random(sim, 1, 4000),
        .grant_min_us = sim_random(sim, 0, 400),
        .protect_us = sim_random(sim, 0, 2000),
        .protect_inflight = (uint32_t)sim_random(sim, 0, 3),
        .protect_ms = (uint32_t)sim_random(sim, 0, 50),
        .switch_us = sim_random(sim, 0, 1) * 80,
        .switch_share_percent = (uint32_t)sim_random(sim, 0, 20),
    };
}

static struct sched_policy_config random_policy(struct sim *sim)
{
    return (struct sched_policy_config){
        .type = (enum sched_policy)sim_random(sim, 0, SCHED_POLICIES - 1),
        .aging_ms = (uint32_t)sim_random(sim, 0, 1) * 20,
        .demand = sim_random(sim, 0, 1),
    };
}

static void add_random(struct sim *sim, unsigned count, unsigned pools)
{
    for (unsigned i = 0; i < count; i++) {
        const struct sim_vm vm = {
            .pool = (char)('A' + sim_random(sim, 0, pools - 1)),
            .priority = (unsigned)sim_random(sim, 0, 2),
            .weight = (uint32_t)sim_random(sim, 1, SCHED_WEIGHT_MAX),
            .burst_max = (uint32_t)sim_random(sim, 1, 100),
            .job_min_us = (uint32_t)sim_random(sim, 0, 10), /* some are too short to measure */
            .job_max_us = (uint32_t)sim_random(sim, 10, 3000),
            .think_max_us = (uint32_t)sim_random(sim, 1, 100000),
        };

        sim_add(sim, &vm);
    }
}

/* A scheduler and VMs that are random; `sim` is not used before. */
static void begin(struct sim *sim, uint64_t seed)
{
    struct sim dice = {.random_state = seed * 0x9e3779b97f4a7c15u};
    const struct sched_config config = random_config(&dice);
    const struct sched_policy_config policy = random_policy(&dice);

    sim_init(sim, &config, &policy, seed);
    sim->switch_us = config.switch_us;
    add_random(sim, (unsigned)sim_random(sim, 1, 30), SIM_DEVICES);
}

/* Who administers it changes what can be changed. */
static void meddle(struct sim *sim)
{
    struct sim_vm *vm = &sim->vms[sim_random(sim, 0, sim->count - 1)];
    const struct sched_policy_config policy = random_policy(sim);
    struct vgpu_error error;

    switch (sim_random(sim, 0, 3)) {
    case 0:
        assert_int_equal(
            sched_set_policy(sim->sched, (char)('A' + sim_random(sim, 0, 1)), &policy, &error), 0);
        break;
    case 1:
        sched_set_weight(sim->sched, vm->vm, (uint32_t)sim_random(sim, 1, SCHED_WEIGHT_MAX));
        break;
    case 2:
        vm->priority = (unsigned)sim_random(sim, 0, 2);
        assert_int_equal(sched_update_vm(sim->sched, vm->vm, vm->pool, vm->priority, &error), 0);
        break;
    default:
        sched_prefer(sim->sched, sched_vm_id(vm->vm));
    }
}

/* No device rests while somebody waits for it. */
static void expect_no_rest(const struct sim *sim)
{
    struct sched_vm *vm;

    for (unsigned device = 0; device < SIM_DEVICES; device++)
        assert_true(sched_running(sim->sched, device) ||
                    sched_list_waiting(sim->sched, device, &vm, 1) == 0);
}

static void nothing_is_lost_and_no_device_rests(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim sim;

        begin(&sim, seed);
        while (sim_step(&sim, NS_PER_S / 2)) {
            expect_no_rest(&sim);
            if (sim_random(&sim, 0, 9) == 0)
                meddle(&sim);
        }
        sim.ends = true;
        sim_run(&sim, 1000 * NS_PER_S);
        for (unsigned i = 0; i < sim.count; i++) {
            assert_int_equal(sim.vms[i].done, sim.vms[i].accepted);
            assert_int_equal(sim.vms[i].used_us, sched_vm_used_us(sim.vms[i].vm));
        }
        assert_int_equal(sched_waiting(sim.sched, 0), 0);
        sim_free(&sim);
    }
}

/* The list of who waits names each once, and begins with whom alone it would name. */
static void expect_listed(const struct sim *sim, unsigned device)
{
    struct sched_vm *vms[SIM_VMS_MAX], *first = NULL;
    size_t count = sched_list_waiting(sim->sched, device, vms, SIM_VMS_MAX);

    assert_int_equal(count, sched_waiting(sim->sched, (char)('A' + device)));
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < i; j++)
            assert_ptr_not_equal(vms[i], vms[j]);
    }
    sched_list_waiting(sim->sched, device, &first, 1);
    assert_ptr_equal(first, count > 0 ? vms[0] : NULL);
}

static void whoever_waits_is_listed_once_under_every_policy(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS / 4; seed++) {
        struct sim sim;

        begin(&sim, seed);
        while (sim_step(&sim, NS_PER_S / 4)) {
            for (unsigned device = 0; device < SIM_DEVICES; device++)
                expect_listed(&sim, device);
            if (sim_random(&sim, 0, 9) == 0)
                meddle(&sim);
        }
        sim_free(&sim);
    }
}

static void expect_highest(struct sim *sim, unsigned device, struct sim_vm *vm,
                           const struct sched_grant *grant)
{
    struct sched_vm *waiting[SIM_VMS_MAX];
    size_t count = sched_list_waiting(sim->sched, device, waiting, SIM_VMS_MAX);

    (void)grant;
    for (size_t i = 0; i < count; i++)
        assert_true(sched_vm_priority(waiting[i]) <= vm->priority);
}

static void strict_never_serves_a_lower_priority_first(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim dice = {.random_state = seed * 0x9e3779b97f4a7c15u}, sim;
        const struct sched_config config = random_config(&dice); /* also where changes cost */

        sim_init(&sim, &config, &strict, seed);
        sim.on_grant = expect_highest;
        add_random(&sim, 20, SIM_DEVICES);
        sim_run(&sim, NS_PER_S / 2);
        sim_free(&sim);
    }
}

/* --- fair queueing ------------------------------------------------------------------------- */

struct fair {
    int64_t least[SIM_VMS_MAX], most[SIM_VMS_MAX];
    int64_t parts[SIM_VMS_MAX];
};

static void fair_begin(struct sim *sim, struct fair *fair)
{
    static const int64_t class_weight[] = {1, 4, 16};

    *fair = (struct fair){.least = {0}};
    for (unsigned i = 0; i < sim->count; i++)
        fair->parts[i] = sim->vms[i].weight * class_weight[sim->vms[i].priority];
}

/* What the first one got for its weight, less what another one did, times both weights. */
static void fair_look(const struct sim *sim, struct fair *fair)
{
    for (unsigned i = 1; i < sim->count; i++) {
        int64_t difference = (int64_t)sim->vms[0].used_us * fair->parts[i] -
                             (int64_t)sim->vms[i].used_us * fair->parts[0];

        fair->least[i] = difference < fair->least[i] ? difference : fair->least[i];
        fair->most[i] = difference > fair->most[i] ? difference : fair->most[i];
    }
}

/* Always at work, of random weights and priorities: between any two moments what one got for
 * its weight and what another did differ by one grant of each at most. */
static void fair_shares_are_never_off_by_more_than_a_grant_of_each(void **state)
{
    const struct sched_config config = {
        .grant_max_ops = 64, .grant_max_inflight = 8, .grant_device_us = 2000};
    const int64_t longest_us = 2000 + 3000;

    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim sim;
        struct fair fair;

        sim_init(&sim, &config, &wfq, seed);
        add_random(&sim, 8, 1);
        for (unsigned i = 0; i < sim.count; i++)
            sim.vms[i].burst_max = SIM_ENDLESS;
        fair_begin(&sim, &fair);
        while (sim_step(&sim, 2 * NS_PER_S))
            fair_look(&sim, &fair);
        for (unsigned i = 1; i < sim.count; i++)
            assert_true(fair.most[i] - fair.least[i] <=
                        longest_us * (fair.parts[0] + fair.parts[i]));
        sim_free(&sim);
    }
}

/* Who uses less than its share waits for one grant of each of the others at most. */
static void expect_short_wait(struct sim *sim, unsigned device, struct sim_vm *vm,
                              const struct sched_grant *grant)
{
    const uint64_t *longest_us = sim->context;

    (void)device;
    (void)grant;
    if (vm == &sim->vms[0])
        assert_true(sim->now_ns - vm->waits_since_ns <= (sim->count - 1) * *longest_us * NS_PER_US);
}

static void under_fair_queueing_nobody_starves(void **state)
{
    const struct sched_config config = {
        .grant_max_ops = 64, .grant_max_inflight = 8, .grant_device_us = 2000};
    const struct sim_vm light = {.pool = 'A',
                                 .weight = 1,
                                 .burst_max = 1,
                                 .job_min_us = 1,
                                 .job_max_us = 2,
                                 .think_max_us = 2000000}; /* a thousandth of its share */
    uint64_t longest_us = 2000 + 3000;

    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim sim;

        sim_init(&sim, &config, &wfq, seed);
        sim.on_grant = expect_short_wait;
        sim.context = &longest_us;
        sim_add(&sim, &light);
        add_random(&sim, 15, 1);
        for (unsigned i = 1; i < sim.count; i++)
            sim.vms[i].burst_max = SIM_ENDLESS;
        sim_run(&sim, 3 * NS_PER_S);
        assert_true(sim.vms[0].done > 0);
        sim_free(&sim);
    }
}

/* --- devices ------------------------------------------------------------------------------- */

static void run_pool_a(struct sim *sim, uint64_t seed, bool with_b)
{
    begin(sim, seed);
    for (unsigned i = 0; i < sim->count; i++) {
        if (!with_b && sim->vms[i].pool == 'B')
            sim->vms[i].wakes_ns = SCHED_NEVER_NS;
    }
    sim_run(sim, NS_PER_S / 2);
}

static void pools_on_devices_of_their_own_do_not_feel_each_other(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim alone, both;

        run_pool_a(&alone, seed, false);
        run_pool_a(&both, seed, true);
        assert_int_equal(alone.devices[0].grants, both.devices[0].grants);
        assert_int_equal(alone.devices[0].changes, both.devices[0].changes);
        for (unsigned i = 0; i < both.count; i++) {
            if (both.vms[i].pool == 'A') {
                assert_int_equal(alone.vms[i].used_us, both.vms[i].used_us);
                assert_int_equal(alone.vms[i].accepted, both.vms[i].accepted);
            }
        }
        sim_free(&alone);
        sim_free(&both);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_lost_and_no_device_rests),
        cmocka_unit_test(whoever_waits_is_listed_once_under_every_policy),
        cmocka_unit_test(strict_never_serves_a_lower_priority_first),
        cmocka_unit_test(fair_shares_are_never_off_by_more_than_a_grant_of_each),
        cmocka_unit_test(under_fair_queueing_nobody_starves),
        cmocka_unit_test(pools_on_devices_of_their_own_do_not_feel_each_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

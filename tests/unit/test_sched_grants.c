/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a grant allows: by demand, while higher classes are at work, and where a change of VM
 * has a cost.  Bounded and long grants are test_sched.c.
 */
#include "sched_sim.h"
#include "sched_unit.h"

#define GRANT_US 2000
#define MIN_US 100

static const struct sched_config ordinary = {.grant_max_ops = 64,
                                             .grant_max_inflight = 8,
                                             .grant_device_us = GRANT_US,
                                             .grant_min_us = MIN_US};
static const struct sched_policy_config strict = {.type = SCHED_POLICY_STRICT};
static const struct sched_policy_config wfq = {.type = SCHED_POLICY_WFQ};
static const struct sched_policy_config demand = {.type = SCHED_POLICY_WFQ, .demand = true};

static struct sched *make(const struct sched_config *config,
                          const struct sched_policy_config *policy)
{
    struct sched *sched = make_pools(config);

    set_policy(sched, 'A', policy);
    set_policy(sched, 'B', policy);
    set_policy(sched, 'C', policy);
    return sched;
}

/* The grant of this VM, whose turn it is. */
static struct sched_grant grant_of(struct sched *sched, const struct sched_vm *vm, uint64_t now_us)
{
    struct sched_action action;

    assert_true(sched_next(sched, 0, now_us * NS_PER_US, &action));
    assert_int_equal(action.type, SCHED_ACTION_GRANT);
    assert_int_equal(sched_vm_id(action.vm), sched_vm_id(vm));
    return action.grant;
}

/* --- demand -------------------------------------------------------------------------------- */

/* What the VM's next grant allows, of which it uses so much, while another one waits that the
 * order puts behind it. */
static uint64_t demand_round(struct sched *sched, struct sched_vm *vm, uint64_t used_us,
                             uint32_t depth_left)
{
    struct sched_grant grant;

    sched_ready(sched, vm, 1, 0);
    sched_prefer(sched, sched_vm_id(vm));
    grant = grant_of(sched, vm, 0);
    sched_returned(sched, vm, used_us == UINT64_MAX ? grant.device_us : used_us, depth_left, 0);
    return grant.device_us;
}

static void who_needs_more_gets_longer_grants(void **state)
{
    static const uint64_t expected_us[] = {100, 200, 400, 800, 1600, 2000, 2000};
    struct sched *sched = make(&ordinary, &demand);
    struct sched_vm *vm = add(sched, 1, 'A', 1);

    (void)state;
    add_ready(sched, 2, 'A', 1);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(expected_us); i++)
        assert_int_equal(demand_round(sched, vm, UINT64_MAX, 1), expected_us[i]);
    sched_free(sched);
}

static void short_work_gets_grants_of_twice_its_length(void **state)
{
    struct sched *sched = make(&ordinary, &demand);
    struct sched_vm *vm = add(sched, 1, 'A', 1);

    (void)state;
    add_ready(sched, 2, 'A', 1);
    for (int i = 0; i < 6; i++)
        demand_round(sched, vm, UINT64_MAX, 1);
    assert_int_equal(demand_round(sched, vm, 300, 0), 2000);
    assert_int_equal(demand_round(sched, vm, 300, 0), 1300);
    assert_int_equal(demand_round(sched, vm, 300, 0), 950);
    for (int i = 0; i < 20; i++)
        demand_round(sched, vm, 300, 0);
    assert_in_range(demand_round(sched, vm, 300, 0), 590, 600);
    for (int i = 0; i < 20; i++)
        demand_round(sched, vm, 1, 0);
    assert_int_equal(demand_round(sched, vm, 1, 0), MIN_US);
    sched_free(sched);
}

static void a_grant_that_ends_by_its_operations_teaches_nothing(void **state)
{
    struct sched *sched = make(&ordinary, &demand);
    struct sched_vm *vm = add(sched, 1, 'A', 1);

    (void)state;
    add_ready(sched, 2, 'A', 1);
    demand_round(sched, vm, UINT64_MAX, 1);
    assert_int_equal(demand_round(sched, vm, 50, 1), 200);
    assert_int_equal(demand_round(sched, vm, 50, 1), 200);
    sched_free(sched);
}

static void the_more_wait_the_shorter_grants_are(void **state)
{
    struct sched *sched = make(&ordinary, &demand);
    struct sched_vm *vm = add(sched, 1, 'A', 1);

    (void)state;
    for (uint32_t i = 0; i < 8; i++)
        add_ready(sched, 2 + i, 'B', 1);
    for (int i = 0; i < 10; i++)
        demand_round(sched, vm, UINT64_MAX, 1);
    assert_int_equal(demand_round(sched, vm, UINT64_MAX, 1), GRANT_US / 8 * 4);
    for (uint32_t i = 0; i < 1000; i++)
        add_ready(sched, 100 + i, 'B', 1);
    assert_int_equal(demand_round(sched, vm, UINT64_MAX, 1), MIN_US);
    sched_free(sched);
}

static void who_is_alone_gets_a_full_grant_whatever_it_wants(void **state)
{
    struct sched *sched = make(&ordinary, &demand);
    struct sched_vm *vm = add_ready(sched, 1, 'A', 1);

    (void)state;
    assert_int_equal(grant_of(sched, vm, 0).device_us, GRANT_US);
    sched_free(sched);
}

static void without_demand_grants_are_all_alike(void **state)
{
    struct sched *sched = make(&ordinary, &wfq);
    struct sched_vm *vm = add(sched, 1, 'A', 1);

    (void)state;
    add_ready(sched, 2, 'A', 1);
    for (int i = 0; i < 4; i++)
        assert_int_equal(demand_round(sched, vm, 1, i % 2), GRANT_US);
    sched_free(sched);
}

static void the_shortest_grant_is_never_longer_than_the_longest(void **state)
{
    struct sched_config config = ordinary;
    struct sched *sched;
    struct sched_vm *vm;

    (void)state;
    for (int round = 0; round < 2; round++) {
        config.grant_min_us = round == 0 ? 0 : 10 * GRANT_US; /* 0: an eighth */
        sched = make(&config, &demand);
        vm = add(sched, 1, 'A', 1);
        add_ready(sched, 2, 'A', 1);
        assert_int_equal(demand_round(sched, vm, 1, 0), round == 0 ? GRANT_US / 8 : GRANT_US);
        sched_free(sched);
    }
}

/* --- protection ---------------------------------------------------------------------------- */

static struct sched_config protecting(bool long_grants)
{
    struct sched_config config = ordinary;

    config.protect_us = 500;
    config.protect_inflight = 2;
    config.protect_ms = 100;
    config.long_grants = long_grants;
    return config;
}

static void a_lower_class_is_held_short_while_a_higher_one_is_active(void **state)
{
    const struct sched_config config = protecting(true);
    struct sched *sched = make(&config, &strict);
    struct sched_vm *high = add_ready(sched, 1, 'A', 2), *low = add_ready(sched, 2, 'B', 0);
    struct sched_grant grant = grant_of(sched, high, 0);

    (void)state;
    assert_int_equal(grant.device_us, GRANT_US);
    assert_int_equal(grant.max_inflight, 8);
    sched_returned(sched, high, 100, 0, 100 * NS_PER_US);
    for (uint64_t now_us = 200; now_us < 100100; now_us += 10000) {
        grant = grant_of(sched, low, now_us); /* not long, though it is alone */
        assert_int_equal(grant.device_us, 500);
        assert_int_equal(grant.max_inflight, 2);
        assert_true(sched_deadline_ns(sched, 0) == (now_us + 500) * NS_PER_US);
        sched_returned(sched, low, 500, 1, now_us * NS_PER_US);
    }
    grant = grant_of(sched, low, 100101); /* the high one was last seen 100 ms ago */
    assert_true(grant.device_us == SCHED_GRANT_LONG_US);
    assert_int_equal(grant.max_inflight, 8);
    sched_free(sched);
}

static void queues_that_take_turns_have_equally_short_grants(void **state)
{
    const struct sched_config config = protecting(false);
    struct sched *sched = make(&config, &strict);
    struct sched_vm *high, *low;
    struct sched_grant grant;
    uint64_t used_us[2] = {0};

    (void)state;
    set_policy(sched, 'B', &wfq); /* a queue of its own, and turns with the other */
    high = add_ready(sched, 1, 'A', 2);
    low = add_ready(sched, 2, 'B', 0);
    for (uint64_t now_us = 0; now_us < 10000; now_us += 1000) {
        bool is_high = now_us % 2000 == 0;

        grant = grant_of(sched, is_high ? high : low, now_us);
        used_us[is_high] += grant.device_us;
        assert_int_equal(grant.max_inflight, is_high ? 8 : 2);
        sched_returned(sched, is_high ? high : low, grant.device_us, 1, now_us * NS_PER_US);
    }
    assert_true(used_us[0] == used_us[1]);
    sched_ready(sched, low, 0, 10000 * NS_PER_US);
    assert_int_equal(grant_of(sched, high, 10000).device_us, GRANT_US); /* nobody takes turns */
    sched_free(sched);
}

static void an_equal_or_lower_class_needs_no_protection(void **state)
{
    const struct sched_config config = protecting(false);
    struct sched *sched = make(&config, &strict);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1);

    (void)state;
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'A', 0);
    assert_int_equal(grant_of(sched, first, 0).device_us, GRANT_US);
    sched_free(sched);
}

static void a_higher_class_on_another_device_is_not_disturbed(void **state)
{
    const struct sched_config config = protecting(false);
    struct sched *sched = make(&config, &strict);
    struct sched_vm *low;

    (void)state;
    add_ready(sched, 1, 'C', 2);
    low = add_ready(sched, 2, 'A', 0);
    assert_int_equal(grant_of(sched, low, 0).device_us, GRANT_US);
    sched_free(sched);
}

static void a_class_that_waits_is_active_however_long_it_does(void **state)
{
    const struct sched_config config = protecting(false);
    struct sched *sched = make(&config, &wfq);
    struct sched_vm *low = add_ready(sched, 1, 'A', 0), *high;

    (void)state;
    high = add_ready(sched, 2, 'A', 2);
    sched_prefer(sched, 1);
    assert_int_equal(grant_of(sched, low, 3600000000).device_us, 500);
    sched_returned(sched, low, 500, 0, 3600000000);
    assert_int_equal(grant_of(sched, high, 3600000000).device_us, GRANT_US);
    sched_free(sched);
}

static void policies_without_priorities_protect_nobody(void **state)
{
    static const struct sched_policy_config fifo = {.type = SCHED_POLICY_FIFO};
    const struct sched_config config = protecting(false);
    struct sched *sched = make(&config, &fifo);
    struct sched_vm *low = add_ready(sched, 1, 'A', 0);

    (void)state;
    add_ready(sched, 2, 'A', 2);
    assert_int_equal(grant_of(sched, low, 0).device_us, GRANT_US);
    sched_free(sched);
}

static void protection_that_is_not_configured_changes_nothing(void **state)
{
    struct sched_config config = protecting(false);
    struct sched_grant grant;
    struct sched_vm *low;
    struct sched *sched;

    (void)state;
    config.protect_ms = 0;
    sched = make(&config, &wfq);
    low = add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 2);
    sched_prefer(sched, 1);
    assert_int_equal(grant_of(sched, low, 0).device_us, GRANT_US);
    sched_returned(sched, low, 0, 0, 0);

    config.protect_ms = 100;
    config.protect_us = 0;
    config.protect_inflight = 3;
    sched_set_grants(sched, &config);
    sched_ready(sched, low, 1, 0);
    sched_prefer(sched, 1);
    grant = grant_of(sched, low, 0);
    assert_int_equal(grant.device_us, GRANT_US);
    assert_int_equal(grant.max_inflight, 3);
    sched_free(sched);
}

/* A high-priority VM with short work beside low ones that never rest: it waits for one short
 * grant and no more. */
static void check_high_waits_for_one_grant(struct sim *sim, unsigned device, struct sim_vm *vm,
                                           const struct sched_grant *grant)
{
    const uint64_t *longest_us = sim->context;

    (void)device;
    if (vm->priority == SCHED_CLASS_HIGH)
        assert_true(sim->now_ns - vm->waits_since_ns <= *longest_us * NS_PER_US);
    else if (sim->now_ns > NS_PER_MS)
        assert_true(grant->device_us <= 500);
}

static void a_high_priority_vm_waits_for_one_short_grant(void **state)
{
    const struct sched_config config = protecting(true);
    const struct sim_vm busy = {
        .pool = 'A', .burst_max = SIM_ENDLESS, .job_min_us = 1, .job_max_us = 200};
    const struct sim_vm high = {.pool = 'A',
                                .priority = SCHED_CLASS_HIGH,
                                .burst_max = 3,
                                .job_min_us = 10,
                                .job_max_us = 50,
                                .think_max_us = 50000};
    uint64_t longest_us = 500 + 200;
    struct sim sim;

    (void)state;
    sim_init(&sim, &config, &strict, 1);
    sim.on_grant = check_high_waits_for_one_grant;
    sim.context = &longest_us;
    sim_add(&sim, &high);
    sim_add(&sim, &busy);
    sim_add(&sim, &busy);
    sim_run(&sim, 20 * NS_PER_S);
    assert_true(sim.vms[0].done > 500);
    sim_free(&sim);
}

/* --- the cost of a change ------------------------------------------------------------------ */

static struct sched_config costly(uint64_t switch_us, uint32_t percent)
{
    struct sched_config config = ordinary;

    config.switch_us = switch_us;
    config.switch_share_percent = percent;
    return config;
}

static void who_returned_goes_on_until_the_change_was_worth_it(void **state)
{
    const struct sched_config config = costly(50, 5); /* 950 us */
    struct sched *sched = make(&config, &strict);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1), *second;
    uint64_t now_us = 0;

    (void)state;
    second = add_ready(sched, 2, 'A', 1);
    assert_int_equal(grant_of(sched, first, 0).device_us, GRANT_US);
    sched_returned(sched, first, 400, 1, (now_us += 400) * NS_PER_US);
    assert_int_equal(grant_of(sched, first, now_us).device_us, GRANT_US - 400);
    sched_returned(sched, first, 549, 1, (now_us += 549) * NS_PER_US);
    assert_int_equal(grant_of(sched, first, now_us).device_us, GRANT_US - 949);
    sched_returned(sched, first, 1, 1, (now_us += 1) * NS_PER_US);
    assert_int_equal(grant_of(sched, second, now_us).device_us, GRANT_US);
    assert_int_equal(sched_switches(sched, 0), 1);
    sched_free(sched);
}

static void nobody_goes_on_while_a_higher_class_waits(void **state)
{
    const struct sched_config config = costly(50, 5);
    struct sched *sched = make(&config, &wfq);
    struct sched_vm *low = add_ready(sched, 1, 'A', 0), *high;

    (void)state;
    grant_of(sched, low, 0);
    high = add_ready(sched, 2, 'B', 2);
    sched_returned(sched, low, 1, 1, NS_PER_US);
    grant_of(sched, high, 1);
    sched_free(sched);
}

static void nobody_goes_on_longer_than_a_grant(void **state)
{
    const struct sched_config config = costly(1000, 1); /* 99 ms, if it were allowed */
    struct sched *sched = make(&config, &strict);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1), *second;

    (void)state;
    second = add_ready(sched, 2, 'A', 1);
    grant_of(sched, first, 0);
    sched_returned(sched, first, GRANT_US - 1, 1, (GRANT_US - 1) * NS_PER_US);
    assert_int_equal(grant_of(sched, first, GRANT_US - 1).device_us, 1);
    sched_returned(sched, first, 1, 1, GRANT_US * NS_PER_US);
    grant_of(sched, second, GRANT_US);
    sched_free(sched);
}

static void who_used_nothing_does_not_go_on(void **state)
{
    const struct sched_config config = costly(50, 5);
    struct sched *sched = make(&config, &strict);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1), *second;

    (void)state;
    second = add_ready(sched, 2, 'A', 1);
    grant_of(sched, first, 0);
    sched_returned(sched, first, 0, 1, 0); /* it could not run, and cannot now */
    grant_of(sched, second, 0);
    sched_free(sched);
}

static void time_that_goes_by_ends_a_stretch_too(void **state)
{
    const struct sched_config config = costly(50, 5);
    struct sched *sched = make(&config, &strict);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1), *second;

    (void)state;
    second = add_ready(sched, 2, 'A', 1);
    grant_of(sched, first, 0);
    sched_returned(sched, first, 1, 1, GRANT_US * NS_PER_US);
    grant_of(sched, second, GRANT_US);
    sched_free(sched);
}

static void who_has_no_work_or_left_does_not_go_on(void **state)
{
    const struct sched_config config = costly(50, 5);
    struct sched *sched = make(&config, &strict);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1);
    struct sched_vm *second = add_ready(sched, 2, 'A', 1), *third = add_ready(sched, 3, 'A', 1);
    struct vgpu_error error;

    (void)state;
    grant_of(sched, first, 0);
    sched_returned(sched, first, 10, 0, 0);
    grant_of(sched, second, 0);
    sched_returned(sched, second, 10, 1, 0);
    assert_int_equal(sched_update_vm(sched, second, 'C', 1, &error), 0);
    grant_of(sched, third, 0);
    sched_returned(sched, third, 10, 1, 0);
    sched_remove_vm(sched, third);
    sched_ready(sched, first, 1, 0);
    grant_of(sched, first, 0);
    assert_int_equal(sched_switches(sched, 0), 3);
    assert_int_equal(sched_switches(sched, 1), 0);
    sched_free(sched);
}

static void the_preferred_vm_ends_anothers_stretch(void **state)
{
    const struct sched_config config = costly(50, 5);
    struct sched *sched = make(&config, &strict);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1), *second;

    (void)state;
    second = add_ready(sched, 2, 'A', 1);
    grant_of(sched, first, 0);
    sched_returned(sched, first, 10, 1, 0);
    sched_prefer(sched, 2);
    grant_of(sched, second, 0);
    sched_free(sched);
}

static void without_a_known_cost_each_takes_its_turn(void **state)
{
    static const uint64_t costs_us[] = {0, 50};

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(costs_us); i++) {
        const struct sched_config config = costly(costs_us[i], costs_us[i] ? 0 : 5);
        struct sched *sched = make(&config, &strict);
        struct sched_vm *first = add_ready(sched, 1, 'A', 1);
        struct sched_vm *second = add_ready(sched, 2, 'A', 1);

        grant_of(sched, first, 0);
        sched_returned(sched, first, 1, 1, 0);
        grant_of(sched, second, 0);
        sched_free(sched);
    }
}

static void only_changes_of_vm_are_counted(void **state)
{
    struct sched *sched = make(&ordinary, &strict);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1), *second;

    (void)state;
    for (int i = 0; i < 3; i++) {
        grant_of(sched, first, 0);
        sched_returned(sched, first, 1, 1, 0);
    }
    assert_int_equal(sched_switches(sched, 0), 0);
    second = add_ready(sched, 2, 'A', 2);
    grant_of(sched, second, 0);
    sched_returned(sched, second, 1, 0, 0);
    grant_of(sched, first, 0);
    assert_int_equal(sched_switches(sched, 0), 2);
    sched_free(sched);
}

/* Two VMs whose grants end after a few short operations would change all the time. */
static void changes_keep_their_share_of_the_time(void **state)
{
    struct sched_config config = costly(50, 5);
    const struct sim_vm busy = {
        .pool = 'A', .priority = 1, .burst_max = SIM_ENDLESS, .job_min_us = 1, .job_max_us = 9};
    struct sim sim;

    (void)state;
    config.grant_max_ops = 4;
    sim_init(&sim, &config, &wfq, 3);
    sim.switch_us = 50;
    for (int i = 0; i < 3; i++)
        sim_add(&sim, &busy);
    sim_run(&sim, 10 * NS_PER_S);
    assert_true(sim.devices[0].changes * 50 <= 10 * 1000 * 1000 / 20); /* 5 % */
    assert_int_equal(sched_switches(sim.sched, 0), sim.devices[0].changes);
    sim_free(&sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_needs_more_gets_longer_grants),
        cmocka_unit_test(short_work_gets_grants_of_twice_its_length),
        cmocka_unit_test(a_grant_that_ends_by_its_operations_teaches_nothing),
        cmocka_unit_test(the_more_wait_the_shorter_grants_are),
        cmocka_unit_test(who_is_alone_gets_a_full_grant_whatever_it_wants),
        cmocka_unit_test(without_demand_grants_are_all_alike),
        cmocka_unit_test(the_shortest_grant_is_never_longer_than_the_longest),
        cmocka_unit_test(a_lower_class_is_held_short_while_a_higher_one_is_active),
        cmocka_unit_test(queues_that_take_turns_have_equally_short_grants),
        cmocka_unit_test(an_equal_or_lower_class_needs_no_protection),
        cmocka_unit_test(a_higher_class_on_another_device_is_not_disturbed),
        cmocka_unit_test(a_class_that_waits_is_active_however_long_it_does),
        cmocka_unit_test(policies_without_priorities_protect_nobody),
        cmocka_unit_test(protection_that_is_not_configured_changes_nothing),
        cmocka_unit_test(a_high_priority_vm_waits_for_one_short_grant),
        cmocka_unit_test(who_returned_goes_on_until_the_change_was_worth_it),
        cmocka_unit_test(nobody_goes_on_while_a_higher_class_waits),
        cmocka_unit_test(nobody_goes_on_longer_than_a_grant),
        cmocka_unit_test(who_used_nothing_does_not_go_on),
        cmocka_unit_test(time_that_goes_by_ends_a_stretch_too),
        cmocka_unit_test(who_has_no_work_or_left_does_not_go_on),
        cmocka_unit_test(the_preferred_vm_ends_anothers_stretch),
        cmocka_unit_test(without_a_known_cost_each_takes_its_turn),
        cmocka_unit_test(only_changes_of_vm_are_counted),
        cmocka_unit_test(changes_keep_their_share_of_the_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

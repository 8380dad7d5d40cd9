/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order inside a queue, policy by policy, and pools whose policies differ or change.
 * Shares and bounds over time are tests/unit/test_sched_shares.c.
 */
#include "sched_unit.h"

#include <errno.h>

#define AGING_MS 10

static struct sched *make_aging(void)
{
    const struct sched_policy_config aging = {.type = SCHED_POLICY_STRICT, .aging_ms = AGING_MS};
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);

    set_policy(sched, 'A', &aging);
    return sched;
}

static struct sched_vm *add_at(struct sched *sched, uint32_t vm_id, unsigned priority,
                               uint64_t now_ms)
{
    struct sched_vm *vm = add(sched, vm_id, 'A', priority);

    sched_ready(sched, vm, 1, now_ms * NS_PER_MS);
    return vm;
}

/* A grant to whom it is due, which uses so much and has more to do. */
static uint32_t serve(struct sched *sched, uint64_t used_us)
{
    struct sched_vm *vm = next(sched, 0);

    sched_returned(sched, vm, used_us, 1, 0);
    return sched_vm_id(vm);
}

static void set_pool(struct sched *sched, char pool, enum sched_policy type)
{
    const struct sched_policy_config policy = {.type = type};

    set_policy(sched, pool, &policy);
}

/* --- strict with aging --------------------------------------------------------------------- */

static void who_waits_long_is_as_good_as_a_higher_class(void **state)
{
    struct sched *sched = make_aging();

    (void)state;
    add_at(sched, 1, 0, 0);
    add_at(sched, 2, 1, 10);
    add_at(sched, 3, 2, 15);
    add_at(sched, 4, 1, 15); /* at 19 ms, all but 4 are of the class of 2: medium */
    add_at(sched, 5, 0, 19);
    expect_order(sched, 0, "3 1 2 4 5");
    sched_free(sched);
}

static void nobody_grows_beyond_the_highest_class(void **state)
{
    struct sched *sched = make_aging();

    (void)state;
    add_at(sched, 1, 2, 0);
    add_at(sched, 2, 0, 1);
    add_at(sched, 3, 2, 1000);
    expect_order(sched, 0, "1 2 3"); /* all high: by arrival */
    sched_free(sched);
}

static void without_aging_nobody_grows(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);

    (void)state;
    add_at(sched, 1, 0, 0);
    add_at(sched, 2, 1, 86400000);
    expect_order(sched, 0, "2 1");
    sched_free(sched);
}

static void a_grant_ends_what_was_gained_by_waiting(void **state)
{
    struct sched *sched = make_aging();
    struct sched_action action;

    (void)state;
    add_at(sched, 1, 0, 0);
    add_at(sched, 2, 1, 20);
    assert_true(sched_next(sched, 0, 20 * NS_PER_MS, &action));
    assert_int_equal(sched_vm_id(action.vm), 1);
    sched_returned(sched, action.vm, 5, 1, 21 * NS_PER_MS);
    expect_order(sched, 0, "2 1");
    sched_free(sched);
}

static void a_clock_that_steps_back_makes_nobody_older(void **state)
{
    struct sched *sched = make_aging();

    (void)state;
    add_at(sched, 1, 2, 100);
    add_at(sched, 2, 0, 5);
    expect_order(sched, 0, "1 2");
    sched_free(sched);
}

static void the_preferred_vm_goes_before_who_has_grown_to_its_class(void **state)
{
    struct sched *sched = make_aging();

    (void)state;
    add_at(sched, 1, 0, 0);
    add_at(sched, 2, 2, 19);
    add_at(sched, 3, 1, 19);
    add_at(sched, 4, 1, 19);
    sched_prefer(sched, 4);
    expect_order(sched, 0, "2 4 1 3");
    sched_free(sched);
}

/* --- weighted fair queueing ---------------------------------------------------------------- */

static void under_wfq_who_has_used_least_for_its_weight_goes_first(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);

    (void)state;
    sched_set_weight(sched, add_ready(sched, 1, 'A', 1), 200);
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'B', 1);
    assert_int_equal(serve(sched, 1000), 1); /* at 1000 / 200 */
    assert_int_equal(serve(sched, 400), 2);  /* at 400 / 100 */
    assert_int_equal(serve(sched, 600), 3);  /* at 600 / 100 */
    expect_forecast(sched, 0, "2 1 3");
    assert_int_equal(serve(sched, 10000), 2);
    assert_int_equal(serve(sched, 1000), 1); /* at 2000 / 200 */
    assert_int_equal(serve(sched, 1000), 3);
    expect_order(sched, 0, "1 3 2");
    sched_free(sched);
}

static void under_wfq_a_class_multiplies_the_weight(void **state)
{
    const struct sched_policy_config policy = {.type = SCHED_POLICY_WFQ,
                                               .class_weight = {1, 2, 1000}};
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);

    (void)state;
    set_policy(sched, 'A', &policy);
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 1);
    assert_int_equal(serve(sched, 2100), 2); /* at 1050 of what 1 pays */
    assert_int_equal(serve(sched, 1000), 1);
    assert_int_equal(serve(sched, 100), 1);
    assert_int_equal(serve(sched, 1), 2);
    sched_free(sched);
}

static void under_wfq_equal_ones_go_by_priority_and_then_by_arrival(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 2);
    add_ready(sched, 3, 'A', 1);
    add_ready(sched, 4, 'A', 2);
    expect_forecast(sched, 0, "2 4 3 1");
    expect_order(sched, 0, "2 4 3 1");
    sched_free(sched);
}

static void under_wfq_a_priority_overtakes_equal_ones_once(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 2);
    assert_int_equal(serve(sched, 1), 2);
    assert_int_equal(serve(sched, 1), 1);
    sched_free(sched);
}

static void under_wfq_who_was_idle_has_no_credit(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);
    struct sched_vm *idle = add(sched, 1, 'A', 1);

    (void)state;
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'A', 1);
    for (int i = 0; i < 100; i++)
        serve(sched, 1000);
    sched_ready(sched, idle, 1, 0);
    /* It begins where the last grant began, and from then on it is one of three. */
    assert_int_equal(serve(sched, 1000), 1);
    assert_int_equal(serve(sched, 1000), 2);
    assert_int_equal(serve(sched, 1000), 3);
    assert_int_equal(serve(sched, 1000), 1);
    sched_free(sched);
}

static void under_wfq_a_newcomer_does_not_wait_for_what_was_used_before(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    for (int i = 0; i < 1001; i++)
        serve(sched, 1000);
    add_ready(sched, 3, 'A', 1);
    assert_int_equal(serve(sched, 1000), 2);
    assert_int_equal(serve(sched, 1000), 3);
    sched_free(sched);
}

static void under_wfq_a_short_rest_does_not_clear_a_debt(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1);

    (void)state;
    add_ready(sched, 2, 'A', 1);
    assert_int_equal(serve(sched, 5000), 1);
    sched_ready(sched, first, 0, 0);
    sched_ready(sched, first, 1, 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(serve(sched, 1000), 2);
    assert_int_equal(serve(sched, 1000), 1);
    sched_free(sched);
}

static void under_wfq_debts_are_forgiven_when_nobody_has_work(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);
    struct sched_vm *first = add_ready(sched, 1, 'A', 1), *second = add(sched, 2, 'A', 1);

    (void)state;
    assert_ptr_equal(next(sched, 0), first);
    sched_returned(sched, first, 1000000, 0, 0);
    sched_ready(sched, first, 1, 0);
    sched_ready(sched, second, 1, 0);
    assert_int_equal(serve(sched, 1000), 1);
    assert_int_equal(serve(sched, 1000), 2);
    assert_int_equal(serve(sched, 1000), 1);
    sched_free(sched);
}

static void under_wfq_a_long_grant_takes_its_time_with_it(void **state)
{
    const struct sched_config config = {.policy = SCHED_POLICY_WFQ,
                                        .grant_max_ops = 64,
                                        .grant_max_inflight = 8,
                                        .grant_device_us = 2000,
                                        .long_grants = true};
    struct sched *sched = sched_new(&config);
    struct sched_vm *alone, *late;
    struct vgpu_error error;

    (void)state;
    assert_int_equal(sched_add_pool(sched, 'A', 0, &error), 0);
    alone = add_ready(sched, 1, 'A', 1);
    late = add(sched, 2, 'A', 1);
    assert_ptr_equal(next(sched, 0), alone);
    sched_ready(sched, late, 1, 60 * NS_PER_S); /* after a minute */
    sched_returned(sched, alone, 60 * 1000 * 1000 + 100, 1, 60 * NS_PER_S);
    assert_int_equal(serve(sched, 1000), 2);
    assert_int_equal(serve(sched, 1000), 1);
    assert_int_equal(serve(sched, 1000), 2);
    sched_free(sched);
}

static void under_wfq_no_measurement_can_lock_the_others_out(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);

    (void)state;
    sched_set_weight(sched, add_ready(sched, 1, 'A', 0), 1);
    add_ready(sched, 2, 'A', 2);
    for (int i = 0; i < 100; i++)
        serve(sched, UINT64_MAX);
    assert_int_equal(sched_waiting(sched, 0), 2);
    add_ready(sched, 3, 'A', 0);
    for (int i = 0; i < 3; i++)
        serve(sched, 0);
    expect_forecast(sched, 0, "3 2 1");
    sched_free(sched);
}

static void under_wfq_the_preferred_vm_goes_first_and_pays_for_it(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);

    (void)state;
    add_ready(sched, 1, 'A', 2);
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'A', 0);
    sched_prefer(sched, 3);
    expect_forecast(sched, 0, "3 1 2");
    assert_int_equal(serve(sched, 1000), 3);
    expect_order(sched, 0, "1 2 3");
    sched_free(sched);
}

static void under_wfq_a_new_weight_counts_from_the_next_return(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);
    struct sched_vm *vm = add_ready(sched, 1, 'A', 1);

    (void)state;
    assert_int_equal(sched_vm_weight(vm), SCHED_WEIGHT_DEFAULT);
    add_ready(sched, 2, 'A', 1);
    sched_set_weight(sched, vm, 1000);
    assert_int_equal(serve(sched, 1000), 1); /* at 100 */
    assert_int_equal(serve(sched, 150), 2);  /* at 150 */
    expect_forecast(sched, 0, "1 2");
    sched_set_weight(sched, vm, 5000);
    assert_int_equal(sched_vm_weight(vm), SCHED_WEIGHT_MAX);
    sched_set_weight(sched, vm, 0);
    assert_int_equal(sched_vm_weight(vm), SCHED_WEIGHT_DEFAULT);
    sched_free(sched);
}

/* --- round robin --------------------------------------------------------------------------- */

static void round_robin_gives_slices_of_time_in_turn(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_ROUND_ROBIN);
    struct sched_action action;

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 2);
    add_ready(sched, 3, 'B', 1);
    assert_true(sched_next(sched, 0, 0, &action));
    assert_int_equal(action.grant.max_ops, UINT32_MAX);
    assert_int_equal(action.grant.device_us, 2000);
    sched_returned(sched, action.vm, 2000, 1, 0);
    assert_int_equal(serve(sched, 2000), 2);
    assert_int_equal(serve(sched, 2000), 3);
    expect_order(sched, 0, "1 2 3");
    sched_free(sched);
}

/* --- pools and their policies -------------------------------------------------------------- */

static void shared_pools_of_different_policies_take_turns(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);

    (void)state;
    set_pool(sched, 'B', SCHED_POLICY_FIFO);
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 2);
    add_ready(sched, 3, 'B', 0);
    add_ready(sched, 4, 'B', 2);
    expect_order(sched, 0, "2 3 1 4");
    sched_free(sched);
}

static void pools_of_equal_policies_share_one_queue_again(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);

    (void)state;
    set_pool(sched, 'A', SCHED_POLICY_FIFO);
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'B', 0);
    add_ready(sched, 3, 'A', 2);
    add_ready(sched, 4, 'B', 2);
    expect_forecast(sched, 0, "1 4 3 2");
    set_pool(sched, 'A', SCHED_POLICY_STRICT);
    expect_order(sched, 0, "3 4 1 2");
    sched_free(sched);
}

static void what_a_policy_does_not_use_makes_no_difference(void **state)
{
    const struct sched_policy_config strict = {
        .type = SCHED_POLICY_STRICT, .class_weight = {1, 2, 3}, .demand = true};
    const struct sched_policy_config wfq = {
        .type = SCHED_POLICY_WFQ, .aging_ms = 5, .class_weight = {1, 4, 16}};
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);
    struct sched_policy_config now;

    (void)state;
    set_policy(sched, 'A', &strict);
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'B', 2);
    expect_order(sched, 0, "2 1"); /* one queue, not two in turn */
    set_policy(sched, 'A', &wfq);
    now = sched_pool_policy(sched, 'A');
    assert_int_equal(now.type, SCHED_POLICY_WFQ);
    assert_int_equal(now.aging_ms, 0);
    set_pool(sched, 'B', SCHED_POLICY_WFQ);
    now = sched_pool_policy(sched, 'B');
    assert_int_equal(now.class_weight[SCHED_CLASS_HIGH], 16);
    sched_free(sched);
}

static void a_policy_changes_while_vms_wait_and_run(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);
    struct sched_vm *running;

    (void)state;
    running = add_ready(sched, 9, 'A', 2);
    assert_ptr_equal(next(sched, 0), running);
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 2);
    add_ready(sched, 3, 'A', 1);
    for (unsigned type = SCHED_POLICIES; type-- > 0;) {
        set_pool(sched, 'A', (enum sched_policy)type);
        assert_int_equal(sched_waiting(sched, 'A'), 3);
        expect_forecast(
            sched, 0, type == SCHED_POLICY_STRICT || type == SCHED_POLICY_WFQ ? "2 3 1" : "1 2 3");
    }
    sched_returned(sched, running, 10, 1, 0);
    expect_order(sched, 0, "2 9 3 1");
    sched_free(sched);
}

static void a_vm_that_runs_when_its_pool_becomes_fair_begins_even(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);
    struct sched_vm *running = add_ready(sched, 1, 'A', 1);

    (void)state;
    assert_ptr_equal(next(sched, 0), running);
    add_ready(sched, 2, 'A', 1);
    set_pool(sched, 'A', SCHED_POLICY_WFQ);
    sched_returned(sched, running, 500, 1, 0); /* which is charged */
    assert_int_equal(serve(sched, 400), 2);
    assert_int_equal(serve(sched, 400), 2);
    assert_int_equal(serve(sched, 400), 1);
    sched_free(sched);
}

static void a_debt_goes_with_its_vm_to_another_fair_queue(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);
    struct sched_vm *vm = add_ready(sched, 1, 'A', 1);
    struct vgpu_error error;

    (void)state;
    add_ready(sched, 2, 'C', 1);
    add_ready(sched, 3, 'A', 1);
    assert_int_equal(serve(sched, 3000), 1);
    assert_int_equal(sched_update_vm(sched, vm, 'C', 1, &error), 0);
    for (int i = 0; i < 3; i++) {
        struct sched_vm *other = next(sched, 1);

        assert_int_equal(sched_vm_id(other), 2);
        sched_returned(sched, other, 1000, 1, 0);
    }
    assert_ptr_equal(next(sched, 1), vm);
    sched_free(sched);
}

static void a_preference_outlives_a_change_of_policy(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_FIFO);

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    sched_prefer(sched, 2);
    set_pool(sched, 'A', SCHED_POLICY_WFQ);
    expect_order(sched, 0, "2 1");
    sched_free(sched);
}

static void the_first_in_line_is_told_without_the_others(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);
    struct sched_vm *vm = NULL;

    (void)state;
    assert_int_equal(sched_list_waiting(sched, 0, &vm, 1), 0);
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    sched_prefer(sched, 2);
    assert_int_equal(sched_list_waiting(sched, 0, &vm, 1), 1);
    assert_int_equal(sched_vm_id(vm), 2);
    assert_int_equal(sched_list_waiting(sched, 0, &vm, 0), 0);
    sched_free(sched);
}

static void many_wait_in_the_order_of_their_tags_whoever_leaves(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);
    struct sched_vm *vms[200], *listed[200];
    size_t count;

    (void)state;
    for (uint32_t i = 0; i < 200; i++)
        vms[i] = add_ready(sched, i + 1, 'A', i % 3);
    for (uint64_t i = 0; i < 1000; i++)
        serve(sched, (i * 7919) % 1000);
    for (uint32_t i = 0; i < 200; i += 3)
        sched_ready(sched, vms[i], 0, 0);
    count = sched_list_waiting(sched, 0, listed, 200);
    assert_int_equal(count, 133);
    for (size_t i = 0; i < count; i++) {
        struct sched_vm *vm = next(sched, 0);

        assert_ptr_equal(vm, listed[i]);
        sched_returned(sched, vm, 0, 0, 0);
    }
    sched_free(sched);
}

static void a_policy_that_cannot_be_is_refused(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);
    const struct sched_policy_config bad[] = {
        {.type = SCHED_POLICIES},
        {.type = SCHED_POLICY_STRICT, .aging_ms = SCHED_AGING_MAX_MS + 1},
        {.type = SCHED_POLICY_WFQ, .class_weight = {1, 0, 16}},
        {.type = SCHED_POLICY_WFQ, .class_weight = {1, 4, SCHED_CLASS_WEIGHT_MAX + 1}},
    };
    const char *const messages[] = {"policy 4 is not one of 0 to 3",
                                    "aging_ms is 86400001 and not 0 to 86400000",
                                    "the weight of priority 1 is 0 and not 1 to 1000",
                                    "the weight of priority 2 is 1001 and not 1 to 1000"};
    struct vgpu_error error;

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        assert_int_equal(sched_set_policy(sched, 'A', &bad[i], &error), -1);
        assert_int_equal(error.code, EINVAL);
        assert_string_equal(error.message, messages[i]);
    }
    assert_int_equal(sched_set_policy(sched, 'Q', &bad[0], &error), -1);
    assert_string_equal(error.message, "pool \\x51 does not exist");
    assert_int_equal(sched_pool_policy(sched, 'A').type, SCHED_POLICY_STRICT);
    assert_int_equal(sched_pool_policy(sched, 'Q').type, SCHED_POLICY_STRICT);
    sched_free(sched);
}

static void each_policy_has_a_name(void **state)
{
    (void)state;
    assert_string_equal(sched_policy_name(SCHED_POLICY_STRICT), "strict");
    assert_string_equal(sched_policy_name(SCHED_POLICY_FIFO), "fifo");
    assert_string_equal(sched_policy_name(SCHED_POLICY_WFQ), "wfq");
    assert_string_equal(sched_policy_name(SCHED_POLICY_ROUND_ROBIN), "round-robin");
    assert_string_equal(sched_policy_name(SCHED_POLICIES), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_waits_long_is_as_good_as_a_higher_class),
        cmocka_unit_test(nobody_grows_beyond_the_highest_class),
        cmocka_unit_test(without_aging_nobody_grows),
        cmocka_unit_test(a_grant_ends_what_was_gained_by_waiting),
        cmocka_unit_test(a_clock_that_steps_back_makes_nobody_older),
        cmocka_unit_test(the_preferred_vm_goes_before_who_has_grown_to_its_class),
        cmocka_unit_test(under_wfq_who_has_used_least_for_its_weight_goes_first),
        cmocka_unit_test(under_wfq_a_class_multiplies_the_weight),
        cmocka_unit_test(under_wfq_equal_ones_go_by_priority_and_then_by_arrival),
        cmocka_unit_test(under_wfq_a_priority_overtakes_equal_ones_once),
        cmocka_unit_test(under_wfq_who_was_idle_has_no_credit),
        cmocka_unit_test(under_wfq_a_newcomer_does_not_wait_for_what_was_used_before),
        cmocka_unit_test(under_wfq_a_short_rest_does_not_clear_a_debt),
        cmocka_unit_test(under_wfq_debts_are_forgiven_when_nobody_has_work),
        cmocka_unit_test(under_wfq_a_long_grant_takes_its_time_with_it),
        cmocka_unit_test(under_wfq_no_measurement_can_lock_the_others_out),
        cmocka_unit_test(under_wfq_the_preferred_vm_goes_first_and_pays_for_it),
        cmocka_unit_test(under_wfq_a_new_weight_counts_from_the_next_return),
        cmocka_unit_test(round_robin_gives_slices_of_time_in_turn),
        cmocka_unit_test(shared_pools_of_different_policies_take_turns),
        cmocka_unit_test(pools_of_equal_policies_share_one_queue_again),
        cmocka_unit_test(what_a_policy_does_not_use_makes_no_difference),
        cmocka_unit_test(a_policy_changes_while_vms_wait_and_run),
        cmocka_unit_test(a_vm_that_runs_when_its_pool_becomes_fair_begins_even),
        cmocka_unit_test(a_debt_goes_with_its_vm_to_another_fair_queue),
        cmocka_unit_test(a_preference_outlives_a_change_of_policy),
        cmocka_unit_test(the_first_in_line_is_told_without_the_others),
        cmocka_unit_test(many_wait_in_the_order_of_their_tags_whoever_leaves),
        cmocka_unit_test(a_policy_that_cannot_be_is_refused),
        cmocka_unit_test(each_policy_has_a_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

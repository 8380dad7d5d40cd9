/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an operation costs, counted and not timed.
 *
 * The scheduler is compiled with -fsanitize-coverage=trace-pc: it calls
 * __sanitizer_cov_trace_pc() in every basic block, so the number of calls is
 * the number of blocks that ran.  A loop over waiting VMs shows as a number
 * that grows with the queue; constant time is no more with 10,000 VMs
 * waiting than with 10.
 */
#include "unit.h"

#include "sched/sched.h"

#define VMS_MAX 10000u
#define ROUNDS 500u

static uint64_t blocks;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    blocks++;
}

/* The most that one call of each operation took. */
struct cost {
    uint64_t ready, next, returned, leave;
};

static void cost_note(uint64_t *most)
{
    if (blocks > *most)
        *most = blocks;
    blocks = 0;
}

static const struct sched_policy_config strict = {.type = SCHED_POLICY_STRICT};

static struct sched *make(enum sched_pools_mode mode, const struct sched_policy_config *policy,
                          struct sched_vm **vms, unsigned count)
{
    const struct sched_config config = {
        .pools_mode = mode, .grant_max_ops = 1, .grant_max_inflight = 1, .grant_device_us = 1};
    struct sched *sched = sched_new(&config);
    struct vgpu_error error;

    assert_int_equal(sched_add_pool(sched, 'A', 0, &error), 0);
    assert_int_equal(sched_add_pool(sched, 'B', 0, &error), 0);
    assert_int_equal(sched_set_policy(sched, 'A', policy, &error), 0);
    assert_int_equal(sched_set_policy(sched, 'B', policy, &error), 0);
    for (unsigned i = 0; i < count; i++) {
        /* two in three are of the lowest priority, so that lists are deep */
        vms[i] =
            sched_add_vm(sched, i + 1, i % 2 ? 'A' : 'B', i % 3 == 0 ? i % 2 : 0, NULL, &error);
        assert_non_null(vms[i]);
    }
    return sched;
}

static struct cost measure(enum sched_pools_mode mode, const struct sched_policy_config *policy,
                           unsigned count, bool prefer)
{
    static struct sched_vm *vms[VMS_MAX];
    struct sched *sched = make(mode, policy, vms, count);
    struct cost cost = {0};

    blocks = 0;
    for (unsigned i = 0; i < count; i++) {
        sched_ready(sched, vms[i], 1, 0);
        cost_note(&cost.ready);
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct sched_vm *middle = vms[(i * 7919u) % count];
        struct sched_action action;

        sched_ready(sched, middle, 0, 0);
        cost_note(&cost.leave);
        sched_ready(sched, middle, 1, 0);
        cost_note(&cost.ready);
        if (prefer)
            sched_prefer(sched, (i * 31u) % count + 1);
        blocks = 0;
        assert_true(sched_next(sched, 0, i * NS_PER_MS, &action));
        cost_note(&cost.next);
        sched_returned(sched, action.vm, i * 7919u % 1000, 1, i * NS_PER_MS);
        cost_note(&cost.returned);
    }
    sched_free(sched);
    return cost;
}

/* `branches`: how much of its way depends on what just happens to wait. */
static void expect_constant_of(enum sched_pools_mode mode, bool prefer,
                               const struct sched_policy_config *policy, uint64_t branches)
{
    struct cost few = measure(mode, policy, 10, prefer);
    struct cost many = measure(mode, policy, VMS_MAX, prefer);

    assert_in_range(few.ready, 2, 100); /* it does count */
    assert_in_range(few.next, 2, 100);
    /* Fewer is possible: with 10 VMs a pool's queue runs empty at times. */
    assert_true(many.ready <= few.ready);
    assert_true(many.next <= few.next + branches);
    assert_true(many.returned <= few.returned);
    assert_true(many.leave <= few.leave);
}

static void expect_constant(enum sched_pools_mode mode, bool prefer)
{
    expect_constant_of(mode, prefer, &strict, 0);
}

static void shared_pools_cost_no_more_when_many_wait(void **state)
{
    (void)state;
    expect_constant(SCHED_POOLS_SHARED, false);
}

static void independent_pools_cost_no_more_when_many_wait(void **state)
{
    (void)state;
    expect_constant(SCHED_POOLS_INDEPENDENT, false);
}

static void a_preferred_vm_costs_no_more_when_many_wait(void **state)
{
    (void)state;
    expect_constant(SCHED_POOLS_SHARED, true);
    expect_constant(SCHED_POOLS_INDEPENDENT, true);
}

/* Three heads are compared, whether they have waited long or not; which of them is the first
 * decides on a few blocks more or less. */
static void aging_costs_no_more_when_many_wait(void **state)
{
    const struct sched_policy_config aging = {.type = SCHED_POLICY_STRICT, .aging_ms = 100};

    (void)state;
    expect_constant_of(SCHED_POOLS_SHARED, false, &aging, 8);
    expect_constant_of(SCHED_POOLS_INDEPENDENT, false, &aging, 8);
}

/* A thousand times as many are ten levels of the heap more, of a few blocks each. */
static void fair_queueing_costs_the_logarithm_of_those_that_wait(void **state)
{
    const struct sched_policy_config wfq = {.type = SCHED_POLICY_WFQ, .demand = true};
    const uint64_t levels = 10, level_blocks = 16;
    struct cost few = measure(SCHED_POOLS_SHARED, &wfq, 10, false);
    struct cost many = measure(SCHED_POOLS_SHARED, &wfq, VMS_MAX, false);

    (void)state;
    assert_in_range(few.next, 2, 200);
    assert_true(many.next > few.next); /* it does count */
    assert_true(many.ready <= few.ready + levels * level_blocks);
    assert_true(many.next <= few.next + levels * level_blocks);
    assert_true(many.returned <= few.returned + levels * level_blocks);
    assert_true(many.leave <= few.leave + levels * level_blocks);
}

/* The one operation that may walk does, and the count sees it: a loop cannot
 * hide from this test. */
static void a_walk_through_a_queue_shows_in_the_count(void **state)
{
    static struct sched_vm *vms[VMS_MAX];
    struct sched *sched = make(SCHED_POOLS_SHARED, &strict, vms, VMS_MAX);
    struct vgpu_error error;

    (void)state;
    for (unsigned i = 0; i < VMS_MAX; i++)
        sched_ready(sched, vms[i], 1, 0);
    blocks = 0;
    assert_int_equal(sched_update_vm(sched, vms[0], 'A', 0, &error), 0); /* same list: its head */
    assert_true(blocks > VMS_MAX / 2);
    sched_free(sched);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_pools_cost_no_more_when_many_wait),
        cmocka_unit_test(independent_pools_cost_no_more_when_many_wait),
        cmocka_unit_test(a_preferred_vm_costs_no_more_when_many_wait),
        cmocka_unit_test(aging_costs_no_more_when_many_wait),
        cmocka_unit_test(fair_queueing_costs_the_logarithm_of_those_that_wait),
        cmocka_unit_test(a_walk_through_a_queue_shows_in_the_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules of sched.h, one by one.  Whether they hold together, in any mixture,
 * is tests/unit/test_sched_reference.c; that they are cheap, test_sched_cost.c.
 */
#include "sched_unit.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Linked with --wrap=calloc: memory can be exhausted on demand. */
static bool memory_exhausted;

void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes)
{
    return memory_exhausted ? NULL : __real_calloc(count, bytes);
}

static struct sched *make_shared(void)
{
    return make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);
}

static struct sched *make_independent(void)
{
    return make_plain(SCHED_POOLS_INDEPENDENT, SCHED_POLICY_STRICT);
}

static void an_idle_device_has_nothing_to_do(void **state)
{
    struct sched *sched = make_shared();

    (void)state;
    add(sched, 1, 'A', 2);
    assert_null(next(sched, 0));
    assert_null(next(sched, SCHED_DEVICES_MAX - 1));
    sched_free(sched);
    sched_free(NULL);
}

static void higher_priorities_go_first(void **state)
{
    struct sched *sched = make_shared();

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'A', 2);
    expect_order(sched, 0, "3 2 1");
    sched_free(sched);
}

static void inside_a_priority_first_come_is_first_served(void **state)
{
    struct sched *sched = make_shared();

    (void)state;
    add_ready(sched, 5, 'A', 1);
    add_ready(sched, 9, 'B', 1);
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 7, 'B', 2);
    expect_order(sched, 0, "7 5 9 1");
    sched_free(sched);
}

static void work_that_arrives_while_a_vm_waits_keeps_its_place(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *first;

    (void)state;
    first = add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    sched_ready(sched, first, 5, 0);
    expect_order(sched, 0, "1 2");
    sched_free(sched);
}

static void a_vm_without_work_leaves_the_queue(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *first;

    (void)state;
    first = add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    sched_ready(sched, first, 0, 0);
    sched_ready(sched, first, 0, 0); /* nothing more happens */
    assert_int_equal(sched_waiting(sched, 'A'), 1);
    sched_ready(sched, first, 1, 0); /* a new arrival */
    expect_order(sched, 0, "2 1");
    sched_free(sched);
}

static void a_device_has_one_grant_at_a_time(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm;

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 2);
    vm = next(sched, 0);
    assert_int_equal(sched_vm_id(vm), 2);
    assert_null(next(sched, 0));
    sched_returned(sched, vm, 0, 0, 0);
    assert_int_equal(sched_vm_id(next(sched, 0)), 1);
    sched_free(sched);
}

static void a_returned_vm_with_work_left_joins_the_tail(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm;

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    vm = next(sched, 0);
    add_ready(sched, 3, 'A', 1);
    sched_returned(sched, vm, 0, 4, 0);
    expect_order(sched, 0, "2 3 1");
    sched_free(sched);
}

static void a_returned_vm_without_work_is_idle(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm;

    (void)state;
    vm = add_ready(sched, 1, 'A', 1);
    assert_ptr_equal(next(sched, 0), vm);
    sched_returned(sched, vm, 0, 0, 0);
    assert_null(next(sched, 0));
    assert_int_equal(sched_waiting(sched, 0), 0);
    sched_ready(sched, vm, 1, 0);
    assert_ptr_equal(next(sched, 0), vm);
    sched_free(sched);
}

static void ready_says_nothing_about_a_vm_that_holds_a_grant(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm;

    (void)state;
    vm = add_ready(sched, 1, 'A', 1);
    assert_ptr_equal(next(sched, 0), vm);
    sched_ready(sched, vm, 3, 0);
    sched_ready(sched, vm, 0, 0);
    assert_int_equal(sched_waiting(sched, 0), 0);
    sched_returned(sched, vm, 0, 1, 0);
    assert_int_equal(sched_waiting(sched, 0), 1);
    assert_ptr_equal(next(sched, 0), vm);
    sched_free(sched);
}

static void pools_on_different_devices_do_not_wait_for_each_other(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *a, *c;

    (void)state;
    a = add_ready(sched, 1, 'A', 2);
    c = add_ready(sched, 2, 'C', 0);
    assert_ptr_equal(next(sched, 0), a);
    assert_ptr_equal(next(sched, 1), c);
    sched_returned(sched, a, 0, 0, 0);
    assert_null(next(sched, 0)); /* C's work is not device 0's */
    sched_free(sched);
}

static void shared_pools_are_one_queue(void **state)
{
    struct sched *sched = make_shared();

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'B', 1);
    add_ready(sched, 4, 'B', 2);
    expect_order(sched, 0, "4 1 2 3");
    sched_free(sched);
}

static void independent_pools_are_served_in_turn(void **state)
{
    struct sched *sched = make_independent();

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 2);
    add_ready(sched, 3, 'A', 1);
    add_ready(sched, 4, 'B', 0);
    add_ready(sched, 5, 'B', 1);
    /* A was there first; B's medium does not wait for all of A */
    expect_order(sched, 0, "2 5 3 4 1");
    sched_free(sched);
}

static void an_independent_pool_that_gets_work_joins_the_round_at_its_end(void **state)
{
    struct sched *sched = make_independent();
    struct vgpu_error error;
    struct sched_vm *a;

    (void)state;
    assert_int_equal(sched_add_pool(sched, 'D', 0, &error), 0);
    a = add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'B', 0);
    assert_ptr_equal(next(sched, 0), a); /* A is empty: out of the round */
    add_ready(sched, 3, 'D', 2);
    sched_returned(sched, a, 0, 1, 0); /* A joins again, behind B and D */
    expect_order(sched, 0, "2 3 1");
    sched_free(sched);
}

static void a_busy_independent_pool_cannot_starve_the_other(void **state)
{
    struct sched *sched = make_independent();
    struct sched_vm *vm;
    unsigned turns[2] = {0, 0};

    (void)state;
    for (uint32_t i = 0; i < 10; i++)
        add_ready(sched, 1 + i, 'A', 2);
    add_ready(sched, 100, 'B', 0);
    for (int i = 0; i < 100; i++) {
        vm = next(sched, 0);
        turns[sched_vm_pool(vm) == 'B']++;
        sched_returned(sched, vm, 0, 1, 0);
    }
    assert_int_equal(turns[0], 50);
    assert_int_equal(turns[1], 50);
    sched_free(sched);
}

static void fifo_ignores_priorities(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_FIFO);
    struct sched_vm *vm;
    struct vgpu_error error;

    (void)state;
    add_ready(sched, 1, 'A', 0);
    vm = add_ready(sched, 2, 'B', 2);
    add_ready(sched, 3, 'A', 1);
    assert_int_equal(sched_update_vm(sched, vm, 'A', 0, &error), 0);
    expect_order(sched, 0, "1 2 3");
    sched_free(sched);
}

static void fifo_with_independent_pools_still_takes_turns(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_INDEPENDENT, SCHED_POLICY_FIFO);

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 2);
    add_ready(sched, 3, 'B', 1);
    expect_order(sched, 0, "1 3 2");
    sched_free(sched);
}

static void a_grant_carries_the_configured_limits(void **state)
{
    struct sched *sched = make_shared();
    struct sched_action action;
    struct sched_vm *vm;

    (void)state;
    vm = add_ready(sched, 1, 'A', 1);
    assert_true(sched_next(sched, 0, 0, &action));
    assert_ptr_equal(action.vm, vm);
    assert_int_equal(action.grant.max_ops, 64);
    assert_int_equal(action.grant.max_inflight, 8);
    assert_int_equal(action.grant.device_us, 2000);
    sched_free(sched);
}

static void the_deadline_is_the_end_of_the_grants_device_time(void **state)
{
    struct sched *sched = make_shared();
    struct sched_action action;
    struct sched_vm *vm;

    (void)state;
    vm = add_ready(sched, 1, 'A', 1);
    assert_true(sched_deadline_ns(sched, 0) == SCHED_NEVER_NS);
    assert_true(sched_next(sched, 0, 1000, &action));
    assert_int_equal(sched_deadline_ns(sched, 0), 1000 + 2000 * NS_PER_US);
    assert_true(sched_deadline_ns(sched, 1) == SCHED_NEVER_NS);
    sched_returned(sched, vm, 0, 1, 5000);
    assert_true(sched_deadline_ns(sched, 0) == SCHED_NEVER_NS);
    /* a clock near its end must not wrap round to the past */
    assert_true(sched_next(sched, 0, UINT64_MAX - 5, &action));
    assert_true(sched_deadline_ns(sched, 0) == SCHED_NEVER_NS);
    sched_free(sched);
}

static void an_endless_grant_has_no_deadline(void **state)
{
    const struct sched_config config = {
        .grant_max_ops = 1, .grant_max_inflight = 1, .grant_device_us = UINT64_MAX};
    struct sched *sched = sched_new(&config);
    struct vgpu_error error;

    (void)state;
    assert_int_equal(sched_add_pool(sched, 'A', 0, &error), 0);
    add_ready(sched, 1, 'A', 1);
    assert_non_null(next(sched, 0));
    assert_true(sched_deadline_ns(sched, 0) == SCHED_NEVER_NS);
    sched_free(sched);
}

static void device_time_is_charged_to_its_vm(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *a, *b;

    (void)state;
    a = add_ready(sched, 1, 'A', 2);
    b = add_ready(sched, 2, 'A', 1);
    assert_ptr_equal(next(sched, 0), a);
    sched_returned(sched, a, 150, 1, 0);
    assert_ptr_equal(next(sched, 0), a);
    sched_returned(sched, a, 100, 0, 0);
    assert_int_equal(sched_vm_used_us(a), 250);
    assert_int_equal(sched_vm_used_us(b), 0);
    sched_free(sched);
}

static void waiting_is_counted_by_pool_without_grant_holders(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm;

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'B', 1);
    add_ready(sched, 3, 'B', 2);
    add(sched, 4, 'B', 2);
    assert_int_equal(sched_waiting(sched, 'A'), 1);
    assert_int_equal(sched_waiting(sched, 'B'), 2);
    assert_int_equal(sched_waiting(sched, 'C'), 0);
    assert_int_equal(sched_waiting(sched, '?'), 0);
    assert_int_equal(sched_waiting(sched, 0), 3);
    vm = next(sched, 0);
    assert_int_equal(sched_vm_pool(vm), 'B');
    assert_int_equal(sched_waiting(sched, 'B'), 1);
    assert_int_equal(sched_waiting(sched, 0), 2);
    sched_free(sched);
}

/* --- changes while it runs -------------------------------------------------------- */

static void a_waiting_vm_moves_to_its_arrivals_place(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *first, *middle, *last;
    struct vgpu_error error;

    (void)state;
    first = add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 0);
    middle = add_ready(sched, 3, 'A', 2);
    add_ready(sched, 4, 'A', 0);
    last = add_ready(sched, 5, 'A', 1);
    assert_int_equal(sched_update_vm(sched, middle, 'B', 0, &error), 0);
    assert_int_equal(sched_update_vm(sched, last, 'A', 0, &error), 0);
    assert_int_equal(sched_update_vm(sched, first, 'A', 0, &error), 0);
    assert_int_equal(sched_waiting(sched, 'B'), 1);
    expect_order(sched, 0, "1 2 3 4 5");
    sched_free(sched);
}

static void a_waiting_vm_moves_between_independent_pools_and_devices(void **state)
{
    struct sched *sched = make_independent();
    struct sched_vm *vm;
    struct vgpu_error error;

    (void)state;
    add_ready(sched, 1, 'A', 1);
    vm = add_ready(sched, 2, 'A', 1);
    assert_int_equal(sched_update_vm(sched, vm, 'C', 2, &error), 0);
    assert_int_equal(sched_waiting(sched, 'A'), 1);
    assert_int_equal(sched_waiting(sched, 'C'), 1);
    assert_int_equal(sched_vm_pool(vm), 'C');
    assert_int_equal(sched_vm_priority(vm), 2);
    expect_order(sched, 1, "2");
    expect_order(sched, 0, "1");
    sched_free(sched);
}

static void a_new_priority_does_not_cost_an_independent_pool_its_turn(void **state)
{
    struct sched *sched = make_independent();
    struct sched_vm *vm;
    struct vgpu_error error;

    (void)state;
    vm = add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'B', 1);
    assert_int_equal(sched_update_vm(sched, vm, 'A', 0, &error), 0);
    expect_order(sched, 0, "1 2");
    sched_free(sched);
}

static void an_idle_vm_is_changed_for_its_next_arrival(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm = add(sched, 1, 'A', 0);
    struct vgpu_error error;

    (void)state;
    add_ready(sched, 2, 'A', 1);
    assert_int_equal(sched_update_vm(sched, vm, 'A', 2, &error), 0);
    assert_int_equal(sched_waiting(sched, 0), 1);
    sched_ready(sched, vm, 1, 0);
    expect_order(sched, 0, "1 2");
    sched_free(sched);
}

static void a_running_vm_moves_when_its_grant_returns(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm;
    struct vgpu_error error;

    (void)state;
    vm = add_ready(sched, 1, 'A', 2);
    assert_ptr_equal(next(sched, 0), vm);
    assert_int_equal(sched_update_vm(sched, vm, 'C', 0, &error), 0);
    add_ready(sched, 2, 'A', 0);
    add_ready(sched, 3, 'C', 0);
    assert_null(next(sched, 0)); /* it still holds device 0 */
    sched_returned(sched, vm, 0, 1, 0);
    expect_order(sched, 0, "2");
    expect_order(sched, 1, "3 1");
    sched_free(sched);
}

static void a_removed_vm_is_not_served(void **state)
{
    struct sched *sched = make_independent();
    struct sched_vm *a, *idle;

    (void)state;
    a = add_ready(sched, 1, 'A', 2);
    add_ready(sched, 2, 'A', 1);
    idle = add(sched, 3, 'A', 1);
    sched_prefer(sched, 1);
    sched_remove_vm(sched, a);
    sched_remove_vm(sched, idle);
    assert_int_equal(sched_waiting(sched, 0), 1);
    expect_order(sched, 0, "2");
    sched_free(sched);
}

static void a_vm_tells_what_it_was_added_with(void **state)
{
    struct sched *sched = make_shared();
    struct vgpu_error error;
    int context;
    struct sched_vm *vm = sched_add_vm(sched, 4294967295u, 'B', 2, &context, &error);

    (void)state;
    assert_int_equal(sched_vm_id(vm), 4294967295u);
    assert_int_equal(sched_vm_pool(vm), 'B');
    assert_int_equal(sched_vm_priority(vm), 2);
    assert_ptr_equal(sched_vm_context(vm), &context);
    sched_free(sched);
}

/* --- test mode ---------------------------------------------------------------------- */

static void nothing_is_granted_while_held(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *running;

    (void)state;
    running = add_ready(sched, 1, 'A', 2);
    assert_ptr_equal(next(sched, 0), running);
    sched_hold(sched, true);
    add_ready(sched, 2, 'A', 0);
    add_ready(sched, 3, 'A', 2);
    add_ready(sched, 4, 'C', 2);
    sched_returned(sched, running, 7, 0, 0); /* a grant that was out comes back */
    assert_null(next(sched, 0));
    assert_null(next(sched, 1));
    assert_int_equal(sched_waiting(sched, 0), 3);
    sched_hold(sched, false);
    expect_order(sched, 0, "3 2");
    expect_order(sched, 1, "4");
    sched_free(sched);
}

static void the_preferred_vm_goes_before_the_others_of_its_priority(void **state)
{
    struct sched *sched = make_shared();

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'B', 1);
    add_ready(sched, 4, 'B', 2);
    add_ready(sched, 5, 'B', 0);
    sched_prefer(sched, 3);
    expect_order(sched, 0, "4 3 1 2 5");
    sched_free(sched);
}

static void the_preferred_vms_pool_goes_first_with_independent_pools(void **state)
{
    struct sched *sched = make_independent();

    (void)state;
    add_ready(sched, 1, 'A', 2);
    add_ready(sched, 2, 'A', 2);
    add_ready(sched, 3, 'B', 0);
    add_ready(sched, 4, 'B', 0);
    sched_prefer(sched, 4);
    expect_order(sched, 0, "4 1 3 2");
    sched_free(sched);
}

static void the_preferred_vms_pool_goes_first_with_its_higher_priorities(void **state)
{
    struct sched *sched = make_independent();

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'B', 2);
    add_ready(sched, 3, 'B', 0);
    add_ready(sched, 4, 'B', 0);
    add_ready(sched, 5, 'A', 0);
    sched_prefer(sched, 4);
    /* one turn for the pool, then round robin; 4 still goes before 3 */
    expect_order(sched, 0, "2 1 4 5 3");
    sched_free(sched);
}

static void under_fifo_the_preferred_vm_goes_before_all(void **state)
{
    struct sched *sched = make_plain(SCHED_POOLS_SHARED, SCHED_POLICY_FIFO);

    (void)state;
    add_ready(sched, 1, 'A', 2);
    add_ready(sched, 2, 'A', 0);
    sched_prefer(sched, 2);
    expect_order(sched, 0, "2 1");
    sched_free(sched);
}

static void a_preference_is_taken_back_or_replaced(void **state)
{
    struct sched *sched = make_independent();

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'A', 1);
    add_ready(sched, 4, 'B', 1);
    sched_prefer(sched, 4);
    sched_prefer(sched, 0);
    assert_int_equal(sched_vm_id(next(sched, 0)), 1);
    sched_free(sched);

    sched = make_shared();
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    add_ready(sched, 3, 'A', 1);
    sched_prefer(sched, 2);
    sched_prefer(sched, 3);
    expect_order(sched, 0, "3 1 2");
    sched_free(sched);
}

static void a_preference_is_for_one_service(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm;

    (void)state;
    add_ready(sched, 1, 'A', 1);
    vm = add_ready(sched, 2, 'A', 1);
    sched_prefer(sched, 2);
    assert_ptr_equal(next(sched, 0), vm);
    sched_returned(sched, vm, 0, 1, 0);
    expect_order(sched, 0, "1 2");

    add_ready(sched, 3, 'A', 1);
    sched_ready(sched, vm, 1, 0);
    sched_prefer(sched, 2);
    sched_ready(sched, vm, 0, 0); /* no work any more: the preference is over */
    sched_ready(sched, vm, 1, 0);
    expect_order(sched, 0, "3 2");
    sched_free(sched);
}

static void preferring_a_vm_that_does_not_wait_prefers_nobody(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *late;

    (void)state;
    late = add(sched, 1, 'A', 1);
    add_ready(sched, 2, 'A', 1);
    sched_prefer(sched, 1);
    sched_ready(sched, late, 1, 0);
    sched_prefer(sched, 77);
    expect_order(sched, 0, "2 1");
    sched_free(sched);
}

static void a_preferred_vm_keeps_its_preference_when_it_is_moved(void **state)
{
    struct sched *sched = make_independent();
    struct sched_vm *vm;
    struct vgpu_error error;

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'B', 0);
    vm = add_ready(sched, 3, 'A', 1);
    sched_prefer(sched, 3);
    assert_int_equal(sched_update_vm(sched, vm, 'B', 0, &error), 0);
    expect_order(sched, 0, "3 1 2");
    sched_free(sched);
}

/* --- what is refused ------------------------------------------------------------------ */

/* Another place of a VM of pool A, which is on device 0. */
static struct sched_vm *add_on(struct sched *sched, uint32_t vm_id, unsigned device)
{
    struct sched_vm *vm = add(sched, vm_id, 'A', 1);
    struct vgpu_error error;

    assert_int_equal(sched_pin_vm(sched, vm, device, &error), 0);
    sched_ready(sched, vm, 1, 0);
    return vm;
}

static void a_vm_with_places_on_two_devices_runs_on_both_at_once(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *first = add_on(sched, 1, 0), *second = add_on(sched, 1, 3);
    struct sched_action action;

    (void)state;
    assert_true(sched_next(sched, 0, 0, &action));
    assert_ptr_equal(action.vm, first);
    assert_true(sched_next(sched, 3, 0, &action));
    assert_ptr_equal(action.vm, second);
    assert_ptr_equal(sched_running(sched, 3), second);
    sched_free(sched);
}

static void each_device_keeps_its_own_order(void **state)
{
    struct sched *sched = make_independent();

    (void)state;
    add_on(sched, 1, 0);
    add_on(sched, 2, 3);
    add_on(sched, 2, 0);
    add_on(sched, 1, 3);
    expect_order(sched, 0, "1 2");
    expect_order(sched, 3, "2 1");
    sched_free(sched);
}

static void a_preferred_vm_goes_first_on_all_of_its_devices(void **state)
{
    struct sched *sched = make_shared();

    (void)state;
    add_on(sched, 1, 0);
    add_on(sched, 1, 3);
    add_on(sched, 2, 0);
    add_on(sched, 2, 3);
    sched_prefer(sched, 2);
    expect_order(sched, 0, "2 1");
    expect_order(sched, 3, "2 1");
    sched_free(sched);
}

static void a_pinned_place_stays_when_its_pool_moves(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *place = add_on(sched, 1, 3);
    struct sched_action action;
    struct vgpu_error error;

    (void)state;
    assert_int_equal(sched_update_pool(sched, 'A', 5, SCHED_POOLS_INDEPENDENT, &error), 0);
    assert_false(sched_next(sched, 5, 0, &action));
    assert_int_equal(sched_pin_vm(sched, place, SCHED_DEVICE_OF_POOL, &error), 0);
    assert_true(sched_next(sched, 5, 0, &action));
    assert_ptr_equal(action.vm, place);
    sched_free(sched);
}

static void a_device_that_cannot_be_is_none_to_pin_to(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *place = add(sched, 7, 'A', 1);
    struct vgpu_error error;

    (void)state;
    assert_int_equal(sched_pin_vm(sched, place, SCHED_DEVICES_MAX, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_string_equal(error.message, "vm 7: device 64 is not 0 to 63");
    sched_free(sched);
}

static void pools_that_cannot_be_are_refused(void **state)
{
    struct sched *sched = make_shared();
    struct vgpu_error error;

    (void)state;
    assert_int_equal(sched_add_pool(sched, 'a', 0, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_string_equal(error.message, "pool \\x61 is not a letter of A to Z");
    assert_int_equal(sched_add_pool(sched, '\0', 0, &error), -1);
    assert_int_equal(sched_add_pool(sched, 'D', SCHED_DEVICES_MAX, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_string_equal(error.message, "pool D: device 64 is not 0 to 63");
    assert_int_equal(sched_add_pool(sched, 'A', 1, &error), -1);
    assert_int_equal(error.code, EEXIST);
    assert_string_equal(error.message, "pool A exists already");
    assert_int_equal(sched_add_pool(sched, 'Z', SCHED_DEVICES_MAX - 1, &error), 0);
    sched_free(sched);
}

static void vms_of_no_pool_or_priority_are_refused(void **state)
{
    struct sched *sched = make_shared();
    struct vgpu_error error;

    (void)state;
    assert_null(sched_add_vm(sched, 7, 'Q', 1, NULL, &error));
    assert_int_equal(error.code, EINVAL);
    assert_non_null(strstr(error.message, "vm 7"));
    assert_null(sched_add_vm(sched, 7, '\n', 1, NULL, &error));
    assert_null(sched_add_vm(sched, 7, 'A', 3, NULL, &error));
    assert_string_equal(error.message, "vm 7: priority 3 is not 0, 1 or 2");
    sched_free(sched);
}

static void a_refused_update_changes_nothing(void **state)
{
    struct sched *sched = make_shared();
    struct vgpu_error error;
    struct sched_vm *vm;

    (void)state;
    vm = add_ready(sched, 1, 'A', 1);
    assert_int_equal(sched_update_vm(sched, vm, 'Q', 2, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_int_equal(sched_update_vm(sched, vm, 'B', 3, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_int_equal(sched_vm_pool(vm), 'A');
    assert_int_equal(sched_vm_priority(vm), 1);
    assert_int_equal(sched_waiting(sched, 'A'), 1);
    expect_order(sched, 0, "1");
    sched_free(sched);
}

static void exhausted_memory_ends_the_process_with_a_message(void **state)
{
    const struct sched_config config = {1, 1, 1, 1, 1};
    const struct rlimit no_core = {0, 0};
    char message[256] = "";
    int ends[2], status;
    pid_t pid;

    (void)state;
    assert_int_equal(pipe(ends), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL); /* not the test runner's business */
        setrlimit(RLIMIT_CORE, &no_core);
        dup2(ends[1], STDERR_FILENO);
        memory_exhausted = true;
        sched_new(&config);
        _exit(0);
    }
    close(ends[1]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_true(read(ends[0], message, sizeof(message) - 1) > 0);
    assert_non_null(strstr(message, "sched: out of memory"));
    close(ends[0]);
}

/* --- long grants ----------------------------------------------------------------- */

static struct sched *make_long(void)
{
    const struct sched_config config = {
        .pools_mode = SCHED_POOLS_SHARED,
        .policy = SCHED_POLICY_STRICT,
        .grant_max_ops = 64,
        .grant_max_inflight = 8,
        .grant_device_us = 2000,
        .long_grants = true,
    };
    struct sched *sched = sched_new(&config);
    struct vgpu_error error;

    assert_int_equal(sched_add_pool(sched, 'A', 0, &error), 0);
    assert_int_equal(sched_add_pool(sched, 'B', 1, &error), 0);
    return sched;
}

static struct sched_action act(struct sched *sched, unsigned device, uint64_t now_ns)
{
    struct sched_action action = {.type = SCHED_ACTION_NONE};

    (void)sched_next(sched, device, now_ns, &action);
    return action;
}

static void a_vm_that_is_alone_gets_a_long_grant(void **state)
{
    struct sched *sched = make_long();
    struct sched_vm *vm = add_ready(sched, 1, 'A', 0);
    struct sched_action action = act(sched, 0, 5);

    (void)state;
    assert_int_equal(action.type, SCHED_ACTION_GRANT);
    assert_ptr_equal(action.vm, vm);
    assert_true(action.grant.device_us == SCHED_GRANT_LONG_US);
    assert_int_equal(action.grant.max_ops, UINT32_MAX);
    assert_true(sched_deadline_ns(sched, 0) == SCHED_NEVER_NS);
    assert_int_equal(act(sched, 0, 6).type, SCHED_ACTION_NONE);
    sched_free(sched);
}

static void a_vm_with_company_gets_a_bounded_grant(void **state)
{
    struct sched *sched = make_long();
    struct sched_action action;

    (void)state;
    add_ready(sched, 1, 'A', 0);
    add_ready(sched, 2, 'A', 0);
    action = act(sched, 0, 1000);
    assert_true(action.grant.device_us == 2000);
    assert_int_equal(action.grant.max_ops, 64);
    assert_true(sched_deadline_ns(sched, 0) == 1000 + 2000 * NS_PER_US);
    /* It is not taken back before its time. */
    assert_int_equal(act(sched, 0, 2000).type, SCHED_ACTION_NONE);
    sched_free(sched);
}

static void a_long_grant_is_revoked_once_when_another_vm_waits(void **state)
{
    struct sched *sched = make_long();
    struct sched_vm *first = add_ready(sched, 1, 'A', 2), *second = add(sched, 2, 'A', 0);
    struct sched_action action;

    (void)state;
    act(sched, 0, 0);
    sched_ready(sched, second, 1, 7); /* lower priority, and yet it will get its turn */
    action = act(sched, 0, 8);
    assert_int_equal(action.type, SCHED_ACTION_REVOKE);
    assert_ptr_equal(action.vm, first);
    assert_true(sched_deadline_ns(sched, 0) == 8);
    assert_int_equal(act(sched, 0, 9).type, SCHED_ACTION_NONE);
    sched_returned(sched, first, 3, 0, 10);
    action = act(sched, 0, 11);
    assert_int_equal(action.type, SCHED_ACTION_GRANT);
    assert_ptr_equal(action.vm, second);
    assert_true(action.grant.device_us == SCHED_GRANT_LONG_US); /* alone again */
    sched_free(sched);
}

static void a_vm_of_another_device_revokes_nothing(void **state)
{
    struct sched *sched = make_long();

    (void)state;
    add_ready(sched, 1, 'A', 0);
    act(sched, 0, 0);
    add_ready(sched, 2, 'B', 2);
    assert_int_equal(act(sched, 0, 1).type, SCHED_ACTION_NONE);
    assert_int_equal(act(sched, 1, 1).type, SCHED_ACTION_GRANT);
    sched_free(sched);
}

static void a_long_grant_is_revoked_when_its_vm_moves_to_another_device(void **state)
{
    struct sched *sched = make_long();
    struct sched_vm *vm = add_ready(sched, 1, 'A', 0);
    struct vgpu_error error;

    (void)state;
    act(sched, 0, 0);
    assert_int_equal(sched_update_vm(sched, vm, 'B', 0, &error), 0);
    assert_int_equal(act(sched, 0, 1).type, SCHED_ACTION_REVOKE);
    sched_returned(sched, vm, 0, 1, 2);
    assert_int_equal(act(sched, 0, 3).type, SCHED_ACTION_NONE);
    assert_ptr_equal(act(sched, 1, 3).vm, vm);
    sched_free(sched);
}

static void a_scheduler_that_is_held_takes_long_grants_back(void **state)
{
    struct sched *sched = make_long();
    struct sched_vm *vm = add_ready(sched, 1, 'A', 0);

    (void)state;
    act(sched, 0, 0);
    sched_hold(sched, true);
    assert_int_equal(act(sched, 0, 1).type, SCHED_ACTION_REVOKE);
    sched_returned(sched, vm, 0, 1, 2);
    assert_int_equal(act(sched, 0, 3).type, SCHED_ACTION_NONE);
    sched_hold(sched, false);
    assert_int_equal(act(sched, 0, 4).type, SCHED_ACTION_GRANT);
    sched_free(sched);
}

static void a_pool_that_changes_its_device_takes_its_waiting_vms_along(void **state)
{
    struct sched *sched = make_shared();
    struct vgpu_error error;

    (void)state;
    add_ready(sched, 1, 'A', 1);
    add_ready(sched, 2, 'B', 1);
    add_ready(sched, 3, 'C', 1);
    add_ready(sched, 4, 'B', 2);
    assert_int_equal(sched_update_pool(sched, 'B', 1, SCHED_POOLS_SHARED, &error), 0);
    assert_int_equal(sched_waiting(sched, 'B'), 2);
    expect_order(sched, 0, "1");
    expect_order(sched, 1, "4 2 3");
    sched_free(sched);
}

static void a_pool_can_begin_and_end_to_take_turns_of_its_own(void **state)
{
    struct sched *sched = make_shared();
    struct vgpu_error error;

    (void)state;
    add_ready(sched, 1, 'A', 2);
    add_ready(sched, 2, 'A', 2);
    add_ready(sched, 3, 'B', 0);
    add_ready(sched, 4, 'B', 0);
    assert_int_equal(sched_update_pool(sched, 'B', 0, SCHED_POOLS_INDEPENDENT, &error), 0);
    expect_forecast(sched, 0, "1 3 2 4");
    assert_int_equal(sched_update_pool(sched, 'B', 0, SCHED_POOLS_SHARED, &error), 0);
    expect_order(sched, 0, "1 2 3 4");
    sched_free(sched);
}

static void a_running_vms_grant_is_taken_back_when_its_pool_moves(void **state)
{
    struct sched *sched = make_long();
    struct sched_vm *vm = add_ready(sched, 1, 'A', 0);
    struct vgpu_error error;

    (void)state;
    act(sched, 0, 0);
    assert_int_equal(sched_update_pool(sched, 'A', 1, SCHED_POOLS_SHARED, &error), 0);
    assert_ptr_equal(sched_running(sched, 0), vm);
    assert_int_equal(act(sched, 0, 1).type, SCHED_ACTION_REVOKE);
    sched_returned(sched, vm, 0, 1, 2);
    assert_int_equal(act(sched, 0, 3).type, SCHED_ACTION_NONE);
    assert_ptr_equal(act(sched, 1, 3).vm, vm);
    assert_ptr_equal(sched_running(sched, 1), vm);
    sched_free(sched);
}

static void only_an_empty_pool_can_be_removed(void **state)
{
    struct sched *sched = make_shared();
    struct sched_vm *vm = add(sched, 1, 'B', 1);
    struct vgpu_error error;

    (void)state;
    assert_int_equal(sched_remove_pool(sched, 'B', &error), -1);
    assert_int_equal(error.code, EBUSY);
    assert_int_equal(sched_update_vm(sched, vm, 'A', 1, &error), 0);
    assert_int_equal(sched_remove_pool(sched, 'B', &error), 0);
    assert_int_equal(sched_remove_pool(sched, 'B', &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_int_equal(sched_update_pool(sched, 'B', 0, SCHED_POOLS_SHARED, &error), -1);
    assert_int_equal(sched_update_vm(sched, vm, 'B', 1, &error), -1);
    assert_int_equal(sched_add_pool(sched, 'B', 1, &error), 0);
    sched_remove_vm(sched, vm);
    assert_int_equal(sched_remove_pool(sched, 'A', &error), 0);
    sched_free(sched);
}

static void grants_can_be_set_anew(void **state)
{
    const struct sched_config config = {
        .grant_max_ops = 1, .grant_max_inflight = 1, .grant_device_us = 7};
    struct sched *sched = make_long();
    struct sched_action action;

    (void)state;
    add_ready(sched, 1, 'A', 0);
    sched_set_grants(sched, &config);
    action = act(sched, 0, 0);
    assert_int_equal(action.grant.max_ops, 1);
    assert_int_equal(action.grant.max_inflight, 1);
    assert_int_equal(action.grant.device_us, 7);
    sched_free(sched);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_idle_device_has_nothing_to_do),
        cmocka_unit_test(higher_priorities_go_first),
        cmocka_unit_test(inside_a_priority_first_come_is_first_served),
        cmocka_unit_test(work_that_arrives_while_a_vm_waits_keeps_its_place),
        cmocka_unit_test(a_vm_without_work_leaves_the_queue),
        cmocka_unit_test(a_device_has_one_grant_at_a_time),
        cmocka_unit_test(a_returned_vm_with_work_left_joins_the_tail),
        cmocka_unit_test(a_returned_vm_without_work_is_idle),
        cmocka_unit_test(ready_says_nothing_about_a_vm_that_holds_a_grant),
        cmocka_unit_test(pools_on_different_devices_do_not_wait_for_each_other),
        cmocka_unit_test(shared_pools_are_one_queue),
        cmocka_unit_test(independent_pools_are_served_in_turn),
        cmocka_unit_test(an_independent_pool_that_gets_work_joins_the_round_at_its_end),
        cmocka_unit_test(a_busy_independent_pool_cannot_starve_the_other),
        cmocka_unit_test(fifo_ignores_priorities),
        cmocka_unit_test(fifo_with_independent_pools_still_takes_turns),
        cmocka_unit_test(a_grant_carries_the_configured_limits),
        cmocka_unit_test(the_deadline_is_the_end_of_the_grants_device_time),
        cmocka_unit_test(an_endless_grant_has_no_deadline),
        cmocka_unit_test(device_time_is_charged_to_its_vm),
        cmocka_unit_test(waiting_is_counted_by_pool_without_grant_holders),
        cmocka_unit_test(a_waiting_vm_moves_to_its_arrivals_place),
        cmocka_unit_test(a_waiting_vm_moves_between_independent_pools_and_devices),
        cmocka_unit_test(a_new_priority_does_not_cost_an_independent_pool_its_turn),
        cmocka_unit_test(an_idle_vm_is_changed_for_its_next_arrival),
        cmocka_unit_test(a_running_vm_moves_when_its_grant_returns),
        cmocka_unit_test(a_removed_vm_is_not_served),
        cmocka_unit_test(a_vm_tells_what_it_was_added_with),
        cmocka_unit_test(nothing_is_granted_while_held),
        cmocka_unit_test(the_preferred_vm_goes_before_the_others_of_its_priority),
        cmocka_unit_test(the_preferred_vms_pool_goes_first_with_independent_pools),
        cmocka_unit_test(the_preferred_vms_pool_goes_first_with_its_higher_priorities),
        cmocka_unit_test(under_fifo_the_preferred_vm_goes_before_all),
        cmocka_unit_test(a_preference_is_taken_back_or_replaced),
        cmocka_unit_test(a_preference_is_for_one_service),
        cmocka_unit_test(preferring_a_vm_that_does_not_wait_prefers_nobody),
        cmocka_unit_test(a_preferred_vm_keeps_its_preference_when_it_is_moved),
        cmocka_unit_test(a_vm_with_places_on_two_devices_runs_on_both_at_once),
        cmocka_unit_test(each_device_keeps_its_own_order),
        cmocka_unit_test(a_preferred_vm_goes_first_on_all_of_its_devices),
        cmocka_unit_test(a_pinned_place_stays_when_its_pool_moves),
        cmocka_unit_test(a_device_that_cannot_be_is_none_to_pin_to),
        cmocka_unit_test(pools_that_cannot_be_are_refused),
        cmocka_unit_test(vms_of_no_pool_or_priority_are_refused),
        cmocka_unit_test(a_refused_update_changes_nothing),
        cmocka_unit_test(exhausted_memory_ends_the_process_with_a_message),
        cmocka_unit_test(a_vm_that_is_alone_gets_a_long_grant),
        cmocka_unit_test(a_vm_with_company_gets_a_bounded_grant),
        cmocka_unit_test(a_long_grant_is_revoked_once_when_another_vm_waits),
        cmocka_unit_test(a_vm_of_another_device_revokes_nothing),
        cmocka_unit_test(a_long_grant_is_revoked_when_its_vm_moves_to_another_device),
        cmocka_unit_test(a_scheduler_that_is_held_takes_long_grants_back),
        cmocka_unit_test(a_pool_that_changes_its_device_takes_its_waiting_vms_along),
        cmocka_unit_test(a_pool_can_begin_and_end_to_take_turns_of_its_own),
        cmocka_unit_test(a_running_vms_grant_is_taken_back_when_its_pool_moves),
        cmocka_unit_test(only_an_empty_pool_can_be_removed),
        cmocka_unit_test(grants_can_be_set_anew),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

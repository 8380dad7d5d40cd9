/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scheduler against a naive one, in the same random life.
 *
 * The reference below keeps no lists: it knows for each VM when it arrived, and
 * for each pool when its turn came last, and looks through all of them for
 * every decision.  It is the header's rules written as definitions.  Both are
 * driven by the same operations in random order from fixed seeds, and must
 * agree on every grant and every count.
 */
#include "unit.h"

#include "sched/sched.h"

#define VMS_MAX 40
#define POOLS 4 /* A and B share device 0, C and D device 1 */
#define DEVICES 2
#define STEPS 20000
#define SEEDS 8

enum reference_state { ABSENT, IDLE, WAITING, RUNNING };

struct reference_vm {
    enum reference_state state;
    struct sched_vm *vm; /* the same VM in the scheduler under test */
    unsigned pool, priority, device;
    uint64_t arrival, used_us;
};

struct reference {
    enum sched_pools_mode mode;
    enum sched_policy policy;
    struct reference_vm vms[VMS_MAX];
    uint64_t clock;        /* counts events */
    uint64_t turns[POOLS]; /* when the pool had its turn or joined the round */
    int preferred;         /* -1: nobody */
    bool preferred_pool_waits, held;
};

static unsigned pool_device(unsigned pool)
{
    return pool / 2;
}

static unsigned reference_waiting(const struct reference *reference, int pool)
{
    unsigned count = 0;

    for (int i = 0; i < VMS_MAX; i++)
        count += reference->vms[i].state == WAITING &&
                 (pool < 0 || reference->vms[i].pool == (unsigned)pool);
    return count;
}

/* A pool that had no work and gets some joins the round now. */
static void reference_wait(struct reference *reference, int i, unsigned pool)
{
    if (reference_waiting(reference, (int)pool) == 0)
        reference->turns[pool] = ++reference->clock;
    reference->vms[i].pool = pool;
    reference->vms[i].state = WAITING;
}

static void reference_unprefer(struct reference *reference, int i)
{
    if (i < 0 || reference->preferred == i) {
        reference->preferred = -1;
        reference->preferred_pool_waits = false;
    }
}

/* The pool whose turn it is; -1: all of the device's pools are one. */
static int reference_turn(const struct reference *reference, unsigned device)
{
    int best = -1;

    if (reference->mode == SCHED_POOLS_SHARED)
        return -1;
    if (reference->preferred_pool_waits &&
        pool_device(reference->vms[reference->preferred].pool) == device)
        return (int)reference->vms[reference->preferred].pool;
    for (int pool = 0; pool < POOLS; pool++) {
        if (pool_device((unsigned)pool) == device && reference_waiting(reference, pool) > 0 &&
            (best < 0 || reference->turns[pool] < reference->turns[best]))
            best = pool;
    }
    return best;
}

static bool reference_before(const struct reference *reference, int a, int b)
{
    const struct reference_vm *x = &reference->vms[a], *y = &reference->vms[b];

    if (reference->policy == SCHED_POLICY_STRICT && x->priority != y->priority)
        return x->priority > y->priority;
    if (reference->preferred == a || reference->preferred == b)
        return reference->preferred == a;
    return x->arrival < y->arrival;
}

/* Returns the VM that is granted, or -1. */
static int reference_next(struct reference *reference, unsigned device)
{
    int turn = reference_turn(reference, device);
    int best = -1;

    if (reference->held)
        return -1;
    for (int i = 0; i < VMS_MAX; i++) {
        const struct reference_vm *vm = &reference->vms[i];

        if (vm->state == RUNNING && vm->device == device)
            return -1;
        if (vm->state == WAITING && pool_device(vm->pool) == device &&
            (turn < 0 || vm->pool == (unsigned)turn) &&
            (best < 0 || reference_before(reference, i, best)))
            best = i;
    }
    if (best < 0)
        return -1;
    if (turn >= 0) {
        reference->turns[turn] = ++reference->clock;
        if (reference->preferred >= 0 &&
            reference->vms[reference->preferred].pool == (unsigned)turn)
            reference->preferred_pool_waits = false;
    }
    reference_unprefer(reference, best);
    reference->vms[best].state = RUNNING;
    reference->vms[best].device = device;
    return best;
}

/* --- the random life ------------------------------------------------------------ */

static uint64_t random_state;

static unsigned random_below(unsigned limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)((random_state >> 33) % limit);
}

static void life_add(struct sched *sched, struct reference *reference, int i)
{
    struct reference_vm *vm = &reference->vms[i];
    struct vgpu_error error;

    if (vm->state != ABSENT)
        return;
    *vm = (struct reference_vm){
        .state = IDLE, .pool = random_below(POOLS), .priority = random_below(3)};
    vm->vm = sched_add_vm(sched, (uint32_t)i + 1, (char)('A' + vm->pool), vm->priority, vm, &error);
    assert_non_null(vm->vm);
}

static void life_remove(struct sched *sched, struct reference *reference, int i)
{
    struct reference_vm *vm = &reference->vms[i];

    if (vm->state == ABSENT || vm->state == RUNNING)
        return;
    sched_remove_vm(sched, vm->vm);
    vm->state = ABSENT;
    reference_unprefer(reference, i);
}

static void life_ready(struct sched *sched, struct reference *reference, int i)
{
    struct reference_vm *vm = &reference->vms[i];
    unsigned depth = random_below(4);

    if (vm->state == ABSENT)
        return;
    sched_ready(sched, vm->vm, depth, reference->clock);
    if (vm->state == IDLE && depth > 0) {
        vm->arrival = ++reference->clock;
        reference_wait(reference, i, vm->pool);
    } else if (vm->state == WAITING && depth == 0) {
        vm->state = IDLE;
        reference_unprefer(reference, i);
    }
}

static void life_returned(struct sched *sched, struct reference *reference, int i)
{
    struct reference_vm *vm = &reference->vms[i];
    unsigned depth = random_below(2), used_us = random_below(1000);

    if (vm->state != RUNNING)
        return;
    sched_returned(sched, vm->vm, used_us, depth, reference->clock);
    vm->used_us += used_us;
    vm->state = IDLE;
    if (depth > 0) {
        vm->arrival = ++reference->clock;
        reference_wait(reference, i, vm->pool);
    }
}

static void life_update(struct sched *sched, struct reference *reference, int i)
{
    struct reference_vm *vm = &reference->vms[i];
    unsigned pool = random_below(POOLS), priority = random_below(3);
    struct vgpu_error error;

    if (vm->state == ABSENT)
        return;
    assert_int_equal(sched_update_vm(sched, vm->vm, (char)('A' + pool), priority, &error), 0);
    vm->priority = priority;
    if (vm->state == WAITING)
        reference_wait(reference, i, pool);
    vm->pool = pool;
}

static void life_prefer(struct sched *sched, struct reference *reference, int i)
{
    bool nobody = random_below(4) == 0;

    sched_prefer(sched, nobody ? 0 : (uint32_t)i + 1);
    reference_unprefer(reference, -1);
    if (!nobody && reference->vms[i].state == WAITING) {
        reference->preferred = i;
        reference->preferred_pool_waits = true;
    }
}

static void life_hold(struct sched *sched, struct reference *reference)
{
    reference->held = !reference->held && random_below(3) == 0;
    sched_hold(sched, reference->held);
}

/* Returns whether somebody was granted. */
static bool life_next(struct sched *sched, struct reference *reference)
{
    unsigned device = random_below(DEVICES);
    int expected = reference_next(reference, device);
    struct sched_action action = {.vm = NULL};
    bool granted = sched_next(sched, device, reference->clock, &action);

    assert_int_equal(granted, expected >= 0);
    assert_ptr_equal(action.vm, expected >= 0 ? reference->vms[expected].vm : NULL);
    return granted;
}

static void life_compare(struct sched *sched, const struct reference *reference)
{
    for (int pool = 0; pool < POOLS; pool++)
        assert_int_equal(sched_waiting(sched, (char)('A' + pool)),
                         reference_waiting(reference, pool));
    assert_int_equal(sched_waiting(sched, 0), reference_waiting(reference, -1));
    for (int i = 0; i < VMS_MAX; i++) {
        if (reference->vms[i].state != ABSENT) {
            assert_int_equal(sched_vm_used_us(reference->vms[i].vm), reference->vms[i].used_us);
            assert_int_equal(sched_vm_pool(reference->vms[i].vm), 'A' + reference->vms[i].pool);
        }
    }
}

static unsigned life_step(struct sched *sched, struct reference *reference)
{
    int i = (int)random_below(VMS_MAX);
    unsigned dice = random_below(100);

    if (dice < 5)
        life_add(sched, reference, i);
    else if (dice < 6)
        life_remove(sched, reference, i);
    else if (dice < 36)
        life_ready(sched, reference, i);
    else if (dice < 42)
        life_update(sched, reference, i);
    else if (dice < 44)
        life_prefer(sched, reference, i);
    else if (dice < 45)
        life_hold(sched, reference);
    else if (dice < 70)
        return life_next(sched, reference);
    else
        for (i = 0; i < VMS_MAX; i++) /* of the few that run, each at times */
            if (random_below(3) == 0)
                life_returned(sched, reference, i);
    return 0;
}

static void live(enum sched_pools_mode mode, enum sched_policy policy)
{
    const struct sched_config config = {.pools_mode = mode,
                                        .policy = policy,
                                        .grant_max_ops = 1,
                                        .grant_max_inflight = 1,
                                        .grant_device_us = 1};
    struct vgpu_error error;

    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct reference reference = {.mode = mode, .policy = policy, .preferred = -1};
        struct sched *sched = sched_new(&config);
        unsigned grants = 0;

        random_state = seed * 0x9e3779b97f4a7c15u;
        for (unsigned pool = 0; pool < POOLS; pool++)
            assert_int_equal(sched_add_pool(sched, (char)('A' + pool), pool_device(pool), &error),
                             0);
        for (int step = 0; step < STEPS; step++) {
            grants += life_step(sched, &reference);
            if (step % 16 == 0)
                life_compare(sched, &reference);
        }
        assert_true(grants > STEPS / 20); /* it was a life, not a standstill */
        sched_free(sched);
    }
}

static void shared_strict_grants_as_the_rules_define(void **state)
{
    (void)state;
    live(SCHED_POOLS_SHARED, SCHED_POLICY_STRICT);
}

static void independent_strict_grants_as_the_rules_define(void **state)
{
    (void)state;
    live(SCHED_POOLS_INDEPENDENT, SCHED_POLICY_STRICT);
}

static void shared_fifo_grants_as_the_rules_define(void **state)
{
    (void)state;
    live(SCHED_POOLS_SHARED, SCHED_POLICY_FIFO);
}

static void independent_fifo_grants_as_the_rules_define(void **state)
{
    (void)state;
    live(SCHED_POOLS_INDEPENDENT, SCHED_POLICY_FIFO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_strict_grants_as_the_rules_define),
        cmocka_unit_test(independent_strict_grants_as_the_rules_define),
        cmocka_unit_test(shared_fifo_grants_as_the_rules_define),
        cmocka_unit_test(independent_fifo_grants_as_the_rules_define),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

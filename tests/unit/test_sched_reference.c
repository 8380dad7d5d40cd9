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
    int pinned; /* to a device; -1: its pool's */
    uint64_t arrival, since_ns, used_us;
    int64_t start, finish; /* under fair queueing: tags, which do not wrap here */
    uint32_t weight;
};

/* Under fair queueing. */
struct reference_queue {
    int64_t virtual_time, latest_finish;
};

struct reference {
    enum sched_pools_mode mode;
    struct sched_policy_config policy;
    struct reference_vm vms[VMS_MAX];
    struct reference_queue queues[POOLS][DEVICES]; /* shared: the first of each device */
    uint64_t now_ns;
    uint64_t clock;                 /* counts events */
    uint64_t turns[POOLS][DEVICES]; /* when the pool had its turn or joined the round */
    int preferred[DEVICES];         /* -1: nobody */
    bool preferred_pool_waits[DEVICES], held;
};

static unsigned pool_device(unsigned pool)
{
    return pool / 2;
}

static unsigned vm_device(const struct reference_vm *vm)
{
    return vm->pinned < 0 ? pool_device(vm->pool) : (unsigned)vm->pinned;
}

/* Two places each are of one VM. */
static uint32_t vm_id(int i)
{
    return (uint32_t)i / 2 + 1;
}

static unsigned waiting_on(const struct reference *reference, unsigned pool, unsigned device)
{
    unsigned count = 0;

    for (int i = 0; i < VMS_MAX; i++)
        count += reference->vms[i].state == WAITING && reference->vms[i].pool == pool &&
                 vm_device(&reference->vms[i]) == device;
    return count;
}

static unsigned reference_waiting(const struct reference *reference, int pool)
{
    unsigned count = 0;

    for (int i = 0; i < VMS_MAX; i++)
        count += reference->vms[i].state == WAITING &&
                 (pool < 0 || reference->vms[i].pool == (unsigned)pool);
    return count;
}

/* --- fair queueing: what has been used is kept as a tag of the queue's time ------- */

static struct reference_queue *queue_of(struct reference *reference, const struct reference_vm *vm)
{
    unsigned pool = reference->mode == SCHED_POOLS_SHARED ? 0 : vm->pool;

    return &reference->queues[pool][vm_device(vm)];
}

/* Weights are powers of two, so nothing is rounded. */
static int64_t cost(const struct reference_vm *vm, uint64_t used_us)
{
    static const int64_t class_weight[] = {1, 4, 16};

    return ((int64_t)used_us << 16) / (vm->weight * class_weight[vm->priority]);
}

static int64_t latest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The least start of those that wait in a queue, or `least`. */
static int64_t least_start(struct reference *reference, const struct reference_queue *queue,
                           int64_t least)
{
    for (int i = 0; i < VMS_MAX; i++) {
        const struct reference_vm *vm = &reference->vms[i];

        if (vm->state == WAITING && queue_of(reference, vm) == queue && vm->start < least)
            least = vm->start;
    }
    return least;
}

static void fair_granted(struct reference *reference, struct reference_vm *vm)
{
    struct reference_queue *queue = queue_of(reference, vm);

    queue->virtual_time = latest(queue->virtual_time, least_start(reference, queue, vm->start));
}

static void fair_returned(struct reference *reference, struct reference_vm *vm, uint64_t used_us,
                          bool has_work)
{
    struct reference_queue *queue = queue_of(reference, vm);
    bool nobody_waits = least_start(reference, queue, INT64_MAX) == INT64_MAX;

    vm->finish = vm->start + cost(vm, used_us);
    queue->latest_finish = latest(queue->latest_finish, vm->finish);
    if (nobody_waits && !has_work)
        queue->virtual_time = latest(queue->virtual_time, queue->latest_finish);
}

/* A queue to which nobody belongs is none: it begins anew. */
static void fair_forget_empty(struct reference *reference, struct reference_queue *queue)
{
    for (int i = 0; i < VMS_MAX; i++) {
        if (reference->vms[i].state != ABSENT && queue_of(reference, &reference->vms[i]) == queue)
            return;
    }
    queue->latest_finish = queue->virtual_time;
}

/* What it is ahead or behind of goes with it. */
static void fair_moved(struct reference *reference, struct reference_vm *vm,
                       struct reference_queue *from)
{
    const struct reference_queue *to = queue_of(reference, vm);

    vm->start += to->virtual_time - from->virtual_time;
    vm->finish += to->virtual_time - from->virtual_time;
    fair_forget_empty(reference, from);
}

static void reference_arrive(struct reference *reference, struct reference_vm *vm)
{
    vm->arrival = ++reference->clock;
    vm->since_ns = reference->now_ns;
    vm->start = latest(queue_of(reference, vm)->virtual_time, vm->finish);
}

/* A pool that had no work and gets some joins the round now. */
static void reference_wait(struct reference *reference, int i, unsigned pool, int pinned)
{
    struct reference_vm *vm = &reference->vms[i];
    const struct reference_vm to = {.pool = pool, .pinned = pinned};
    unsigned device = vm_device(&to);

    if (waiting_on(reference, pool, device) == 0)
        reference->turns[pool][device] = ++reference->clock;
    vm->pool = pool;
    vm->pinned = pinned;
    vm->state = WAITING;
}

static void reference_unprefer(struct reference *reference, int i)
{
    for (unsigned device = 0; device < DEVICES; device++) {
        if (i < 0 || reference->preferred[device] == i) {
            reference->preferred[device] = -1;
            reference->preferred_pool_waits[device] = false;
        }
    }
}

/* A waiting one goes to its new place, and a preference for it with it. */
static void reference_move(struct reference *reference, int i, unsigned pool, int pinned)
{
    struct reference_vm *vm = &reference->vms[i];
    struct reference_queue *queue = queue_of(reference, vm);
    unsigned from = vm_device(vm), to;

    if (vm->state == WAITING)
        reference_wait(reference, i, pool, pinned);
    vm->pool = pool;
    vm->pinned = pinned;
    fair_moved(reference, vm, queue);
    to = vm_device(vm);
    if (reference->preferred[from] != i || from == to)
        return;
    reference->preferred[to] = i;
    reference->preferred_pool_waits[to] = reference->preferred_pool_waits[from];
    reference->preferred[from] = -1;
    reference->preferred_pool_waits[from] = false;
}

/* The pool whose turn it is; -1: all of the device's pools are one. */
static int reference_turn(const struct reference *reference, unsigned device)
{
    int best = -1;

    if (reference->mode == SCHED_POOLS_SHARED)
        return -1;
    if (reference->preferred_pool_waits[device])
        return (int)reference->vms[reference->preferred[device]].pool;
    for (int pool = 0; pool < POOLS; pool++) {
        if (waiting_on(reference, (unsigned)pool, device) > 0 &&
            (best < 0 || reference->turns[pool][device] < reference->turns[best][device]))
            best = pool;
    }
    return best;
}

/* Its priority, and what it has gained by waiting. */
static uint64_t class_now(const struct reference *reference, const struct reference_vm *vm)
{
    uint64_t waited_ms = (reference->now_ns - vm->since_ns) / NS_PER_MS, class = vm->priority;

    if (reference->policy.type != SCHED_POLICY_STRICT)
        return 0;
    if (reference->policy.aging_ms > 0)
        class += waited_ms / reference->policy.aging_ms;
    return class < 2 ? class : 2;
}

static bool reference_before(const struct reference *reference, int a, int b)
{
    const struct reference_vm *x = &reference->vms[a], *y = &reference->vms[b];

    if (class_now(reference, x) != class_now(reference, y))
        return class_now(reference, x) > class_now(reference, y);
    if (reference->preferred[vm_device(x)] == a || reference->preferred[vm_device(x)] == b)
        return reference->preferred[vm_device(x)] == a;
    if (reference->policy.type == SCHED_POLICY_WFQ && x->start != y->start)
        return x->start < y->start;
    if (reference->policy.type == SCHED_POLICY_WFQ && x->priority != y->priority)
        return x->priority > y->priority;
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
        if (vm->state == WAITING && vm_device(vm) == device &&
            (turn < 0 || vm->pool == (unsigned)turn) &&
            (best < 0 || reference_before(reference, i, best)))
            best = i;
    }
    if (best < 0)
        return -1;
    if (turn >= 0) {
        reference->turns[turn][device] = ++reference->clock;
        if (reference->preferred[device] >= 0 &&
            reference->vms[reference->preferred[device]].pool == (unsigned)turn)
            reference->preferred_pool_waits[device] = false;
    }
    reference_unprefer(reference, best);
    reference->vms[best].state = RUNNING;
    reference->vms[best].device = device;
    fair_granted(reference, &reference->vms[best]);
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
        .state = IDLE, .pool = random_below(POOLS), .priority = random_below(3), .pinned = -1};
    vm->weight = 1u << random_below(9);
    vm->start = vm->finish = queue_of(reference, vm)->virtual_time;
    vm->vm = sched_add_vm(sched, vm_id(i), (char)('A' + vm->pool), vm->priority, vm, &error);
    assert_non_null(vm->vm);
    sched_set_weight(sched, vm->vm, vm->weight);
}

static void life_remove(struct sched *sched, struct reference *reference, int i)
{
    struct reference_vm *vm = &reference->vms[i];

    if (vm->state == ABSENT || vm->state == RUNNING)
        return;
    sched_remove_vm(sched, vm->vm);
    vm->state = ABSENT;
    fair_forget_empty(reference, queue_of(reference, vm));
    reference_unprefer(reference, i);
}

static void life_ready(struct sched *sched, struct reference *reference, int i)
{
    struct reference_vm *vm = &reference->vms[i];
    unsigned depth = random_below(4);

    if (vm->state == ABSENT)
        return;
    sched_ready(sched, vm->vm, depth, reference->now_ns);
    if (vm->state == IDLE && depth > 0) {
        reference_arrive(reference, vm);
        reference_wait(reference, i, vm->pool, vm->pinned);
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
    sched_returned(sched, vm->vm, used_us, depth, reference->now_ns);
    vm->used_us += used_us;
    vm->state = IDLE;
    fair_returned(reference, vm, used_us, depth > 0);
    if (depth > 0) {
        reference_arrive(reference, vm);
        reference_wait(reference, i, vm->pool, vm->pinned);
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
    reference_move(reference, i, pool, vm->pinned);
}

static void life_pin(struct sched *sched, struct reference *reference, int i)
{
    struct reference_vm *vm = &reference->vms[i];
    int pinned = (int)random_below(DEVICES + 1) - 1;
    struct vgpu_error error;

    if (vm->state == ABSENT)
        return;
    assert_int_equal(
        sched_pin_vm(sched, vm->vm, pinned < 0 ? SCHED_DEVICE_OF_POOL : (unsigned)pinned, &error),
        0);
    reference_move(reference, i, vm->pool, pinned);
}

static void life_prefer(struct sched *sched, struct reference *reference, int i)
{
    bool nobody = random_below(4) == 0;

    sched_prefer(sched, nobody ? 0 : vm_id(i));
    reference_unprefer(reference, -1);
    for (int j = i & ~1; !nobody && j <= (i | 1); j++) {
        unsigned device = vm_device(&reference->vms[j]);
        int other = reference->preferred[device];

        if (reference->vms[j].state != WAITING ||
            (other >= 0 && reference->vms[other].arrival < reference->vms[j].arrival))
            continue;
        reference->preferred[device] = j;
        reference->preferred_pool_waits[device] = true;
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
    bool granted = sched_next(sched, device, reference->now_ns, &action);

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

    reference->now_ns += random_below(NS_PER_MS);

    if (dice < 5)
        life_add(sched, reference, i);
    else if (dice < 6)
        life_remove(sched, reference, i);
    else if (dice < 36)
        life_ready(sched, reference, i);
    else if (dice < 40)
        life_update(sched, reference, i);
    else if (dice < 42)
        life_pin(sched, reference, i);
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

static void live_with(enum sched_pools_mode mode, const struct sched_policy_config *policy)
{
    const struct sched_config config = {
        .pools_mode = mode, .grant_max_ops = 1, .grant_max_inflight = 1, .grant_device_us = 1};
    struct vgpu_error error;

    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct reference reference = {.mode = mode, .policy = *policy, .preferred = {-1, -1}};
        struct sched *sched = sched_new(&config);
        unsigned grants = 0;

        random_state = seed * 0x9e3779b97f4a7c15u;
        for (unsigned pool = 0; pool < POOLS; pool++) {
            assert_int_equal(sched_add_pool(sched, (char)('A' + pool), pool_device(pool), &error),
                             0);
            assert_int_equal(sched_set_policy(sched, (char)('A' + pool), policy, &error), 0);
        }
        for (int step = 0; step < STEPS; step++) {
            grants += life_step(sched, &reference);
            if (step % 16 == 0)
                life_compare(sched, &reference);
        }
        assert_true(grants > STEPS / 20); /* it was a life, not a standstill */
        sched_free(sched);
    }
}

static void live(enum sched_pools_mode mode, enum sched_policy type)
{
    const struct sched_policy_config policy = {.type = type};

    live_with(mode, &policy);
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

static void round_robin_grants_as_the_rules_define(void **state)
{
    (void)state;
    live(SCHED_POOLS_SHARED, SCHED_POLICY_ROUND_ROBIN);
    live(SCHED_POOLS_INDEPENDENT, SCHED_POLICY_ROUND_ROBIN);
}

static void aging_grants_as_the_rules_define(void **state)
{
    const struct sched_policy_config aging = {.type = SCHED_POLICY_STRICT, .aging_ms = 20};

    (void)state;
    live_with(SCHED_POOLS_SHARED, &aging);
    live_with(SCHED_POOLS_INDEPENDENT, &aging);
}

static void shared_fair_queueing_grants_as_the_rules_define(void **state)
{
    (void)state;
    live(SCHED_POOLS_SHARED, SCHED_POLICY_WFQ);
}

static void independent_fair_queueing_grants_as_the_rules_define(void **state)
{
    (void)state;
    live(SCHED_POOLS_INDEPENDENT, SCHED_POLICY_WFQ);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_strict_grants_as_the_rules_define),
        cmocka_unit_test(independent_strict_grants_as_the_rules_define),
        cmocka_unit_test(shared_fifo_grants_as_the_rules_define),
        cmocka_unit_test(independent_fifo_grants_as_the_rules_define),
        cmocka_unit_test(round_robin_grants_as_the_rules_define),
        cmocka_unit_test(aging_grants_as_the_rules_define),
        cmocka_unit_test(shared_fair_queueing_grants_as_the_rules_define),
        cmocka_unit_test(independent_fair_queueing_grants_as_the_rules_define),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

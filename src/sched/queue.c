/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who stands where, and whose turn it is.
 *
 *   device ─ turns ─▶ queue of pool B ─▶ queue of pool A      (round robin)
 *                       high    vm7 ─ vm3                     (its policy's order)
 *                       medium
 *                       low     vm9
 *
 * A device's `turns` holds the queues that have work.  The first is served;
 * after its turn it goes to the end, or leaves when it is empty; a queue that
 * gets work joins at the end.  A queue is made when the first VM belongs to it and
 * goes with the last: one for all pools that share it and are served alike, one
 * for each that is independent.  With one queue the turn changes nothing, so all
 * modes are one code.
 *
 * The order in a queue is its policy's (policy_*.c), which keeps who joins in the
 * order of `arrival`: the latest gets the highest number yet, and the one operation
 * that puts a VM elsewhere (queue_move) looks for its place.  The preferred VM is
 * not moved, it is remembered, so that a preference can be taken back.
 */
#include "sched/private.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* --- queues ------------------------------------------------------------------------------ */

static struct sched_queue *queue_new(struct sched_device *device, const struct sched_pool *pool,
                                     const struct sched_policy_config *policy)
{
    struct sched_queue *queue = sched_allocate(1, sizeof(*queue));

    for (unsigned i = 0; i < SCHED_CLASSES; i++)
        TAILQ_INIT(&queue->lists[i]);
    queue->ops = policy_ops_of(policy->type);
    queue->aging_ns = policy->aging_ms * NS_PER_MS;
    queue->policy = *policy;
    queue->device = device;
    queue->pool = pool;
    policy_wfq_init(queue);
    LIST_INSERT_HEAD(&device->queues, queue, link);
    return queue;
}

/* The device's queue for VMs of this pool. */
static struct sched_queue *queue_of(struct sched_device *device, const struct sched_pool *pool)
{
    const struct sched_pool *owner = pool->mode == SCHED_POOLS_SHARED ? NULL : pool;
    struct sched_queue *queue;

    LIST_FOREACH (queue, &device->queues, link) {
        if (queue->pool == owner && policy_equals(&queue->policy, &pool->policy))
            return queue;
    }
    return queue_new(device, owner, &pool->policy);
}

static void queue_release(struct sched_queue *queue)
{
    if (--queue->members > 0)
        return;
    assert(queue->count == 0);
    LIST_REMOVE(queue, link);
    free(queue->heap);
    free(queue);
}

/* --- who stands where -------------------------------------------------------------------- */

static void count_in(struct sched *sched, const struct sched_vm *vm)
{
    struct sched_queue *queue = vm->queue;

    if (queue->count++ == 0)
        TAILQ_INSERT_TAIL(&queue->device->turns, queue, turn);
    queue->device->waiting_count++;
    queue->device->waiting[vm->priority] += queue->ops->knows_classes;
    vm->pool->waiting++;
    sched->waiting++;
}

static void count_out(struct sched *sched, const struct sched_vm *vm)
{
    struct sched_queue *queue = vm->queue;

    if (--queue->count == 0)
        TAILQ_REMOVE(&queue->device->turns, queue, turn);
    queue->device->waiting_count--;
    queue->device->waiting[vm->priority] -= queue->ops->knows_classes;
    vm->pool->waiting--;
    sched->waiting--;
}

static void stand(struct sched *sched, struct sched_vm *vm)
{
    vm->queue->ops->insert(vm->queue, vm);
    count_in(sched, vm);
}

static void step_out(struct sched *sched, struct sched_vm *vm)
{
    vm->queue->ops->remove(vm->queue, vm);
    count_out(sched, vm);
}

void queue_join(struct sched *sched, struct sched_vm *vm)
{
    struct sched_queue *queue = vm->queue;

    assert(vm->state == VM_IDLE);
    vm->state = VM_WAITING;
    vm->arrival = ++sched->last_arrival;
    vm->waiting_since_ns = sched->now_ns;
    if (queue->ops->arrived)
        queue->ops->arrived(queue, vm, sched->now_ns);
    stand(sched, vm);
    grant_note_active(queue->device, vm, sched->now_ns);
}

void queue_leave(struct sched *sched, struct sched_vm *vm)
{
    assert(vm->state == VM_WAITING);
    vm->state = VM_IDLE;
    step_out(sched, vm);
}

void queue_unprefer(struct sched_device *device)
{
    device->preferred = NULL;
    device->preferred_pool_waits = false;
}

/* Where it goes, a preference for somebody else ends. */
static void preference_follows(struct sched_vm *vm, struct sched_device *from)
{
    struct sched_device *to = vm->queue->device;

    if (from == to || from->preferred != vm)
        return;
    to->preferred = vm;
    to->preferred_pool_waits = from->preferred_pool_waits;
    queue_unprefer(from);
}

void queue_find(struct sched *sched, struct sched_vm *vm)
{
    unsigned device = vm->pinned == SCHED_DEVICE_OF_POOL ? vm->pool->device : vm->pinned;
    struct sched_queue *before = vm->queue;
    struct sched_queue *queue = queue_of(&sched->devices[device], vm->pool);

    if (queue == before)
        return;
    policy_wfq_enter(before, queue, vm);
    vm->queue = queue;
    queue->members++;
    if (!before)
        return;
    preference_follows(vm, before->device);
    queue_release(before);
}

void queue_forget(struct sched_vm *vm)
{
    queue_release(vm->queue);
    vm->queue = NULL;
}

static void set_place(struct sched *sched, struct sched_vm *vm, const struct vm_place *to)
{
    vm->pool = to->pool;
    vm->priority = (uint8_t)to->priority;
    vm->pinned = to->pinned;
    queue_find(sched, vm);
}

/* In before out: a queue that keeps its only VM keeps its turn. */
static void move_waiting(struct sched *sched, struct sched_vm *vm, const struct vm_place *to)
{
    const struct sched_vm before = *vm;

    before.queue->ops->remove(before.queue, vm);
    before.queue->members++;
    set_place(sched, vm, to);
    vm->queue->ops->insert(vm->queue, vm);
    count_in(sched, vm);
    count_out(sched, &before);
    queue_release(before.queue);
}

void queue_move(struct sched *sched, struct sched_vm *vm, const struct vm_place *to)
{
    if (vm->state == VM_WAITING)
        move_waiting(sched, vm, to);
    else
        set_place(sched, vm, to);
}

static int compare_arrivals(const void *a, const void *b)
{
    const struct sched_vm *x = *(struct sched_vm *const *)a, *y = *(struct sched_vm *const *)b;

    return x->arrival < y->arrival ? -1 : 1; /* they are unique */
}

/* The pool's waiting VMs, out of their queues; as many as pool->waiting said. */
static struct sched_vm **take_waiting(struct sched *sched, const struct sched_pool *pool)
{
    struct sched_vm **waiting = sched_allocate(pool->waiting + 1u, sizeof(struct sched_vm *));
    struct sched_vm *vm;
    uint32_t count = 0;

    TAILQ_FOREACH (vm, &sched->vms, member) {
        if (vm->pool != pool || vm->state != VM_WAITING)
            continue;
        waiting[count++] = vm;
        step_out(sched, vm);
    }
    /* In this order each finds its place near the end. */
    qsort(waiting, count, sizeof(struct sched_vm *), compare_arrivals);
    return waiting;
}

void queue_move_pool(struct sched *sched, const struct sched_pool *pool)
{
    uint32_t count = pool->waiting;
    struct sched_vm **waiting = take_waiting(sched, pool), *vm;

    TAILQ_FOREACH (vm, &sched->vms, member) {
        if (vm->pool == pool)
            queue_find(sched, vm);
    }
    for (uint32_t i = 0; i < count; i++)
        stand(sched, waiting[i]);
    free(waiting);
}

/* --- whose turn it is -------------------------------------------------------------------- */

static struct sched_queue *device_turn(const struct sched_device *device)
{
    if (device->preferred_pool_waits)
        return device->preferred->queue;
    return TAILQ_FIRST(&device->turns);
}

/* The first in its policy's order, or the preferred VM where it may go before that. */
static struct sched_vm *queue_first(const struct sched_queue *queue, uint64_t now_ns)
{
    struct sched_vm *preferred = queue->device->preferred;
    struct sched_vm *first = queue->ops->first(queue, now_ns);

    if (preferred && preferred->queue == queue &&
        queue->ops->may_precede(queue, preferred, first, now_ns))
        return preferred;
    return first;
}

struct sched_vm *queue_take(struct sched *sched, struct sched_device *device)
{
    struct sched_queue *queue = device_turn(device);
    struct sched_vm *vm;

    if (!queue)
        return NULL;
    vm = queue_first(queue, sched->now_ns);
    if (device->preferred && device->preferred->queue == queue)
        device->preferred_pool_waits = false;
    /* To the end of the turns; leaving takes it out when it was the last VM. */
    TAILQ_REMOVE(&device->turns, queue, turn);
    TAILQ_INSERT_TAIL(&device->turns, queue, turn);
    queue_leave(sched, vm);
    return vm;
}

/* --- the order that is to be expected ---------------------------------------------------- */

/* How far the listing has come in one queue. */
struct cursor {
    const struct sched_queue *queue;
    struct sched_vm **vms; /* all of it, in order */
    uint32_t at;
};

struct forecast {
    struct cursor cursors[POOLS_MAX]; /* in order of turns; a queue is some pool's */
    unsigned count;
    struct sched_vm **orders[POOLS_MAX]; /* what the cursors walk through */
    unsigned order_count;
};

static uint32_t index_of(struct sched_vm *const *vms, const struct sched_vm *vm)
{
    uint32_t index = 0;

    while (vms[index] != vm)
        index++;
    return index;
}

/* The preferred VM, which is in the list, goes before the first that it may precede. */
static void put_preferred(const struct sched_queue *queue, struct sched_vm **vms,
                          struct sched_vm *preferred, uint64_t now_ns)
{
    uint32_t from = index_of(vms, preferred), to = 0;

    while (to < from && !queue->ops->may_precede(queue, preferred, vms[to], now_ns))
        to++;
    memmove(vms + to + 1, vms + to, (from - to) * sizeof(struct sched_vm *));
    vms[to] = preferred;
}

static struct sched_vm **queue_order(const struct sched_queue *queue, uint64_t now_ns)
{
    struct sched_vm **vms = sched_allocate(queue->count, sizeof(struct sched_vm *));
    struct sched_vm *preferred = queue->device->preferred;

    queue->ops->list(queue, vms, now_ns);
    if (preferred && preferred->queue == queue)
        put_preferred(queue, vms, preferred, now_ns);
    return vms;
}

static void forecast_init(struct forecast *forecast, const struct sched_device *device,
                          uint64_t now_ns)
{
    const struct sched_queue *queue;
    struct sched_vm **order;

    forecast->count = 0;
    TAILQ_FOREACH (queue, &device->turns, turn) {
        assert(forecast->count < POOLS_MAX);
        order = queue_order(queue, now_ns);
        forecast->orders[forecast->count] = order;
        forecast->cursors[forecast->count++] = (struct cursor){.queue = queue, .vms = order};
    }
    forecast->order_count = forecast->count;
}

/* The first turn may be the preferred VM's pool's; later ones go round. */
static unsigned first_turn(const struct forecast *forecast, const struct sched_device *device)
{
    for (unsigned i = 0; device->preferred_pool_waits && i < forecast->count; i++) {
        if (forecast->cursors[i].queue == device->preferred->queue)
            return i;
    }
    return 0;
}

/* One turn is over: to the end, or out when it was the last. */
static void pass_on(struct forecast *forecast, unsigned turn)
{
    struct cursor cursor = forecast->cursors[turn];

    for (unsigned i = turn; i + 1 < forecast->count; i++)
        forecast->cursors[i] = forecast->cursors[i + 1];
    forecast->cursors[forecast->count - 1] = cursor;
    if (cursor.at == cursor.queue->count)
        forecast->count--;
}

static void forecast_free(struct forecast *forecast)
{
    for (unsigned i = 0; i < forecast->order_count; i++)
        free(forecast->orders[i]);
}

/* Who is served next, whatever waits: no walk. */
static struct sched_vm *device_first(const struct sched *sched, const struct sched_device *device)
{
    const struct sched_queue *queue = device_turn(device);

    return queue ? queue_first(queue, sched->now_ns) : NULL;
}

size_t queue_list(const struct sched *sched, const struct sched_device *device,
                  struct sched_vm **vms, size_t room)
{
    struct forecast forecast;
    unsigned turn;
    size_t used = 0;

    if (room == 1) {
        *vms = device_first(sched, device);
        return *vms ? 1 : 0;
    }
    forecast_init(&forecast, device, sched->now_ns);
    turn = first_turn(&forecast, device);
    while (used < room && forecast.count > 0) {
        struct cursor *cursor = &forecast.cursors[turn];

        vms[used++] = cursor->vms[cursor->at++];
        pass_on(&forecast, turn);
        turn = 0;
    }
    forecast_free(&forecast);
    return used;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who stands where, and whose turn it is.
 *
 *   device ─ turns ─▶ queue of pool B ─▶ queue of pool A      (round robin)
 *                       high    vm7 ─ vm3                     (arrival order)
 *                       medium
 *                       low     vm9
 *
 * A device's `turns` holds the queues that have work.  The first is served;
 * after its turn it goes to the end, or leaves when it is empty; a queue that
 * gets work joins at the end.  With shared pools there is one queue a device
 * and the turn changes nothing, so both modes are one code.
 *
 * Every list is in the order of `arrival`: who joins gets the highest number
 * yet and stands last, and the one operation that puts a VM elsewhere
 * (queue_move) looks for its place.  The preferred VM is not moved, it is
 * remembered, so that a preference can be taken back.
 */
#include "sched/private.h"

#include <assert.h>

void queue_init(struct sched_queue *queue, struct sched_device *device)
{
    for (unsigned i = 0; i < PRIORITY_COUNT; i++)
        TAILQ_INIT(&queue->lists[i]);
    queue->device = device;
}

/* First come, first served knows no priorities: one list is enough. */
static struct vm_list *queue_list_of(struct sched *sched, const struct sched_vm *vm)
{
    unsigned list = sched->config.policy == SCHED_POLICY_FIFO ? 0 : vm->priority;

    return &vm->pool->queue->lists[list];
}

static void count_in(struct sched *sched, struct sched_pool *pool)
{
    struct sched_queue *queue = pool->queue;

    if (queue->count++ == 0)
        TAILQ_INSERT_TAIL(&queue->device->turns, queue, turn);
    pool->waiting++;
    sched->waiting++;
}

static void count_out(struct sched *sched, struct sched_pool *pool)
{
    struct sched_queue *queue = pool->queue;

    if (--queue->count == 0)
        TAILQ_REMOVE(&queue->device->turns, queue, turn);
    pool->waiting--;
    sched->waiting--;
}

void queue_join(struct sched *sched, struct sched_vm *vm)
{
    assert(vm->state == VM_IDLE);
    vm->state = VM_WAITING;
    vm->arrival = ++sched->last_arrival;
    TAILQ_INSERT_TAIL(queue_list_of(sched, vm), vm, place);
    count_in(sched, vm->pool);
}

void queue_leave(struct sched *sched, struct sched_vm *vm)
{
    assert(vm->state == VM_WAITING);
    vm->state = VM_IDLE;
    TAILQ_REMOVE(queue_list_of(sched, vm), vm, place);
    count_out(sched, vm->pool);
}

static void list_insert_by_arrival(struct vm_list *list, struct sched_vm *vm)
{
    struct sched_vm *before = TAILQ_LAST(list, vm_list);

    while (before && before->arrival > vm->arrival)
        before = TAILQ_PREV(before, vm_list, place);
    if (before)
        TAILQ_INSERT_AFTER(list, before, vm, place);
    else
        TAILQ_INSERT_HEAD(list, vm, place);
}

void queue_move(struct sched *sched, struct sched_vm *vm, struct sched_pool *pool,
                unsigned priority)
{
    struct sched_pool *old_pool = vm->pool;

    assert(vm->state == VM_WAITING);
    TAILQ_REMOVE(queue_list_of(sched, vm), vm, place);
    vm->pool = pool;
    vm->priority = (uint8_t)priority;
    list_insert_by_arrival(queue_list_of(sched, vm), vm);
    /* In before out: a queue that keeps its only VM keeps its turn. */
    count_in(sched, pool);
    count_out(sched, old_pool);
}

static struct sched_queue *device_turn(const struct sched *sched, struct sched_device *device)
{
    if (sched->preferred_pool_waits && sched->preferred->pool->queue->device == device)
        return sched->preferred->pool->queue;
    return TAILQ_FIRST(&device->turns);
}

/* The first of the highest list with work, or the preferred VM when it stands
 * in that list. */
static struct sched_vm *queue_first(struct sched *sched, struct sched_queue *queue)
{
    struct sched_vm *preferred = sched->preferred;
    unsigned list = PRIORITY_COUNT - 1;

    while (list > 0 && TAILQ_EMPTY(&queue->lists[list]))
        list--;
    if (preferred && queue_list_of(sched, preferred) == &queue->lists[list])
        return preferred;
    return TAILQ_FIRST(&queue->lists[list]);
}

struct sched_vm *queue_take(struct sched *sched, struct sched_device *device)
{
    struct sched_queue *queue = device_turn(sched, device);
    struct sched_vm *vm;

    if (!queue)
        return NULL;
    vm = queue_first(sched, queue);
    if (sched->preferred && sched->preferred->pool->queue == queue)
        sched->preferred_pool_waits = false;
    /* To the end of the turns; leaving takes it out when it was the last VM. */
    TAILQ_REMOVE(&device->turns, queue, turn);
    TAILQ_INSERT_TAIL(&device->turns, queue, turn);
    queue_leave(sched, vm);
    return vm;
}

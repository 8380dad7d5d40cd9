/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weighted fair queueing of device time, by start tags: P. Goyal, H. M. Vin, H. Cheng,
 * "Start-time Fair Queueing: A Scheduling Algorithm for Integrated Services Packet
 * Switching Networks", SIGCOMM 1996.
 *
 *   arrives    start  = max(virtual time, the finish of its last grant)
 *   next       the least start; of equal ones the highest priority, then by arrival
 *   granted    virtual time = that start; finish = start + estimate / weight
 *   returned   finish = start + used / weight
 *
 * A packet's length is known when it is queued.  A grant's is only known when it has come
 * back, and that is early enough: nobody's start depends on it but that of its own VM, which
 * waits again only then.  So what is measured counts, and the estimate stands in for it only
 * while the grant is out.
 *
 * Nobody gains by being idle (a start is never before the virtual time) and nobody who
 * comes late waits for what was used before (nor after it).  A grant that lasts until it is
 * revoked has no length that a newcomer could wait for: for these the virtual time passes
 * with the clock.  When nobody has work left, all debts are forgiven.
 *
 * Tags are 64-bit fixed-point numbers of device time for one part of weight.  They may wrap:
 * two of them are compared by their distance, which would have to be four years of one VM's
 * device time to be misread.  What a division leaves over is charged with the next grant, so
 * shares do not drift.  The waiting VMs are a binary heap, whose entries know their keys and
 * whose VMs know their entries: O(log n) for each step.
 */
#include "sched/private.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Fraction bits of a tag; the unit is a microsecond. */
#define TAG_SHIFT 16
/* No grant is worth more: a figure that cannot be would spoil the tags. */
#define CHARGE_MAX_US (UINT64_C(1) << 32)
/* Tags wrap in the first minutes of use: not a rare thing, which would be seen after years. */
#define TAG_FIRST (UINT64_MAX - (UINT64_C(100000) << TAG_SHIFT))
/* A new measurement counts for one in eight. */
#define AVERAGE_SHIFT 3
#define HEAP_ROOM_MIN 16u

static bool tag_is_before(uint64_t a, uint64_t b)
{
    return (int64_t)(a - b) < 0;
}

static uint64_t tag_latest(uint64_t a, uint64_t b)
{
    return tag_is_before(a, b) ? b : a;
}

/* --- the heap ---------------------------------------------------------------------------- */

/* Who comes from idle meets others with the same start.  A higher priority overtakes there, and
 * once: what it gets moves its own start. */
static bool goes_before(const struct heap_entry *a, const struct heap_entry *b)
{
    if (a->start != b->start)
        return tag_is_before(a->start, b->start);
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
}

static void heap_set(struct heap_entry *heap, uint32_t index, const struct heap_entry *entry)
{
    heap[index] = *entry;
    entry->vm->heap_index = index;
}

/* The entry goes to this index, or above it. */
static void heap_rise(struct heap_entry *heap, uint32_t index, const struct heap_entry *entry)
{
    while (index > 0 && goes_before(entry, &heap[(index - 1) / 2])) {
        heap_set(heap, index, &heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    heap_set(heap, index, entry);
}

static uint32_t heap_lesser_child(const struct heap_entry *heap, uint32_t count, uint32_t index)
{
    uint32_t child = 2 * index + 1;

    return child + 1 < count && goes_before(&heap[child + 1], &heap[child]) ? child + 1 : child;
}

/* The entry goes to this index, or below it. */
static void heap_sink(struct heap_entry *heap, uint32_t count, uint32_t index,
                      const struct heap_entry *entry)
{
    while (2 * index + 1 < count) {
        uint32_t child = heap_lesser_child(heap, count, index);

        if (!goes_before(&heap[child], entry))
            break;
        heap_set(heap, index, &heap[child]);
        index = child;
    }
    heap_set(heap, index, entry);
}

static void heap_make_room(struct sched_queue *queue)
{
    struct heap_entry *heap;

    if (queue->heap_count < queue->heap_room)
        return;
    queue->heap_room = queue->heap_room ? 2 * queue->heap_room : HEAP_ROOM_MIN;
    heap = sched_allocate(queue->heap_room, sizeof(*heap));
    if (queue->heap_count > 0)
        memcpy(heap, queue->heap, queue->heap_count * sizeof(*heap));
    free(queue->heap);
    queue->heap = heap;
}

static void wfq_insert(struct sched_queue *queue, struct sched_vm *vm)
{
    const struct heap_entry entry = {
        .start = vm->start, .arrival = vm->arrival, .priority = vm->priority, .vm = vm};

    heap_make_room(queue);
    heap_rise(queue->heap, queue->heap_count++, &entry);
}

static void wfq_remove(struct sched_queue *queue, struct sched_vm *vm)
{
    struct heap_entry last = queue->heap[--queue->heap_count];
    uint32_t index = vm->heap_index;

    assert(queue->heap[index].vm == vm);
    if (last.vm == vm)
        return;
    if (goes_before(&last, &queue->heap[index]))
        heap_rise(queue->heap, index, &last);
    else
        heap_sink(queue->heap, queue->heap_count, index, &last);
}

static struct sched_vm *wfq_first(const struct sched_queue *queue, uint64_t now_ns)
{
    (void)now_ns;
    return queue->heap[0].vm;
}

static bool wfq_may_precede(const struct sched_queue *queue, const struct sched_vm *preferred,
                            const struct sched_vm *other, uint64_t now_ns)
{
    (void)queue;
    (void)preferred;
    (void)other;
    (void)now_ns;
    return true;
}

static int compare_entries(const void *a, const void *b)
{
    return goes_before(a, b) ? -1 : 1; /* arrivals are unique */
}

static void wfq_list(const struct sched_queue *queue, struct sched_vm **vms, uint64_t now_ns)
{
    struct heap_entry *sorted;

    (void)now_ns;
    if (queue->heap_count == 0)
        return;
    sorted = sched_allocate(queue->heap_count, sizeof(*sorted));
    memcpy(sorted, queue->heap, queue->heap_count * sizeof(*sorted));
    qsort(sorted, queue->heap_count, sizeof(*sorted), compare_entries);
    for (uint32_t i = 0; i < queue->heap_count; i++)
        vms[i] = sorted[i].vm;
    free(sorted);
}

/* --- tags -------------------------------------------------------------------------------- */

/* Of all parts of a queue, how many are the VM's: at most 2^20. */
static uint64_t parts_of(const struct sched_queue *queue, const struct sched_vm *vm)
{
    return (uint64_t)vm->weight * queue->policy.class_weight[vm->priority];
}

static uint64_t scaled(uint64_t used_us)
{
    return min_u64(used_us, CHARGE_MAX_US) << TAG_SHIFT;
}

void policy_wfq_init(struct sched_queue *queue)
{
    queue->virtual_time = TAG_FIRST;
    queue->latest_finish = TAG_FIRST;
}

void policy_wfq_enter(const struct sched_queue *from, const struct sched_queue *to,
                      struct sched_vm *vm)
{
    bool keeps = from && from->ops == &policy_wfq_ops && to->ops == &policy_wfq_ops;

    vm->start = to->virtual_time + (keeps ? vm->start - from->virtual_time : 0);
    vm->finish = to->virtual_time + (keeps ? vm->finish - from->virtual_time : 0);
}

/* Who comes while a long grant is out begins where that has come to. */
static void pass_long_grant(struct sched_queue *queue, uint64_t now_ns)
{
    const struct sched_device *device = queue->device;
    const struct sched_vm *vm = device->running;
    uint64_t elapsed_us;

    if (!vm || vm->queue != queue || !device->running_long || now_ns < device->granted_ns)
        return;
    elapsed_us = (now_ns - device->granted_ns) / NS_PER_US;
    queue->virtual_time =
        tag_latest(queue->virtual_time, vm->start + scaled(elapsed_us) / parts_of(queue, vm));
}

static void wfq_arrived(struct sched_queue *queue, struct sched_vm *vm, uint64_t now_ns)
{
    pass_long_grant(queue, now_ns);
    vm->start = tag_latest(queue->virtual_time, vm->finish);
}

/* The VM need not be the first: a preferred one, or one that goes on, does not take the
 * virtual time past those who wait. */
static void wfq_granted(struct sched_queue *queue, struct sched_vm *vm)
{
    uint64_t now = vm->start;

    if (queue->heap_count > 0 && tag_is_before(queue->heap[0].start, now))
        now = queue->heap[0].start;
    queue->virtual_time = tag_latest(queue->virtual_time, now);
    vm->finish = vm->start + scaled(vm->average_us) / parts_of(queue, vm);
}

static void average_note(struct sched_vm *vm, uint64_t used_us)
{
    uint64_t used = min_u64(used_us, CHARGE_MAX_US);

    if (used >= vm->average_us)
        vm->average_us += (used - vm->average_us) >> AVERAGE_SHIFT;
    else
        vm->average_us -= (vm->average_us - used) >> AVERAGE_SHIFT;
}

static void wfq_returned(struct sched_queue *queue, struct sched_vm *vm, uint64_t used_us,
                         bool has_work)
{
    uint64_t parts = parts_of(queue, vm);
    uint64_t charge = scaled(used_us) + vm->unpaid;

    average_note(vm, used_us);
    vm->finish = vm->start + charge / parts;
    vm->unpaid = charge % parts;
    queue->latest_finish = tag_latest(queue->latest_finish, vm->finish);
    if (queue->heap_count == 0 && !has_work)
        queue->virtual_time = tag_latest(queue->virtual_time, queue->latest_finish);
}

const struct policy_ops policy_wfq_ops = {
    .name = "wfq",
    .knows_classes = true,
    .arrived = wfq_arrived,
    .insert = wfq_insert,
    .remove = wfq_remove,
    .first = wfq_first,
    .may_precede = wfq_may_precede,
    .granted = wfq_granted,
    .returned = wfq_returned,
    .list = wfq_list,
};

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Priority, then first come, first served; and who waits long enough is as good as a
 * higher one.
 *
 *   high    vm7 ─ vm3
 *   medium  vm1              the first of each list is the one of its class that waits
 *   low     vm9 ─ vm2        longest, so three are to be compared and no more
 */
#include "sched/private.h"

static unsigned class_now(const struct sched_queue *queue, const struct sched_vm *vm,
                          uint64_t now_ns)
{
    uint64_t steps;

    if (queue->aging_ns == 0 || now_ns <= vm->waiting_since_ns)
        return vm->priority;
    steps = (now_ns - vm->waiting_since_ns) / queue->aging_ns;
    return (unsigned)min_u64(SCHED_CLASS_HIGH, vm->priority + min_u64(steps, SCHED_CLASS_HIGH));
}

static bool goes_before(const struct sched_queue *queue, const struct sched_vm *a,
                        const struct sched_vm *b, uint64_t now_ns)
{
    unsigned class_a = class_now(queue, a, now_ns), class_b = class_now(queue, b, now_ns);

    return class_a != class_b ? class_a > class_b : a->arrival < b->arrival;
}

static void strict_insert(struct sched_queue *queue, struct sched_vm *vm)
{
    policy_list_insert(&queue->lists[vm->priority], vm);
}

static void strict_remove(struct sched_queue *queue, struct sched_vm *vm)
{
    TAILQ_REMOVE(&queue->lists[vm->priority], vm, place);
}

/* Of the heads of the lists; NULL when all are NULL. */
static struct sched_vm *best_of(const struct sched_queue *queue,
                                struct sched_vm *const heads[SCHED_CLASSES], uint64_t now_ns)
{
    struct sched_vm *best = NULL;

    for (unsigned i = SCHED_CLASSES; i-- > 0;) {
        if (heads[i] && (!best || goes_before(queue, heads[i], best, now_ns)))
            best = heads[i];
        if (best && queue->aging_ns == 0)
            break;
    }
    return best;
}

static void lists_begin(const struct sched_queue *queue, struct sched_vm *heads[SCHED_CLASSES])
{
    for (unsigned i = 0; i < SCHED_CLASSES; i++)
        heads[i] = TAILQ_FIRST(&queue->lists[i]);
}

static struct sched_vm *strict_first(const struct sched_queue *queue, uint64_t now_ns)
{
    struct sched_vm *heads[SCHED_CLASSES];

    lists_begin(queue, heads);
    return best_of(queue, heads, now_ns);
}

static bool strict_may_precede(const struct sched_queue *queue, const struct sched_vm *preferred,
                               const struct sched_vm *other, uint64_t now_ns)
{
    return class_now(queue, preferred, now_ns) >= class_now(queue, other, now_ns);
}

static void strict_list(const struct sched_queue *queue, struct sched_vm **vms, uint64_t now_ns)
{
    struct sched_vm *heads[SCHED_CLASSES];

    lists_begin(queue, heads);
    for (uint32_t i = 0; i < queue->count; i++) {
        vms[i] = best_of(queue, heads, now_ns);
        heads[vms[i]->priority] = TAILQ_NEXT(vms[i], place);
    }
}

const struct policy_ops policy_strict_ops = {
    .name = "strict",
    .knows_classes = true,
    .insert = strict_insert,
    .remove = strict_remove,
    .first = strict_first,
    .may_precede = strict_may_precede,
    .list = strict_list,
};

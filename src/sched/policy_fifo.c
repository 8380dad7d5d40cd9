/* SPDX-License-Identifier: Apache-2.0 */
/*
 * First come, first served: one list, and no priorities.
 *
 * Round robin is the same list, as who comes back with work joins its tail; the
 * difference is that its grants are slices of time, whatever is done in them.
 */
#include "sched/private.h"

static void fifo_insert(struct sched_queue *queue, struct sched_vm *vm)
{
    policy_list_insert(&queue->lists[0], vm);
}

static void fifo_remove(struct sched_queue *queue, struct sched_vm *vm)
{
    TAILQ_REMOVE(&queue->lists[0], vm, place);
}

static struct sched_vm *fifo_first(const struct sched_queue *queue, uint64_t now_ns)
{
    (void)now_ns;
    return TAILQ_FIRST(&queue->lists[0]);
}

static bool fifo_may_precede(const struct sched_queue *queue, const struct sched_vm *preferred,
                             const struct sched_vm *other, uint64_t now_ns)
{
    (void)queue;
    (void)preferred;
    (void)other;
    (void)now_ns;
    return true;
}

static void fifo_list(const struct sched_queue *queue, struct sched_vm **vms, uint64_t now_ns)
{
    struct sched_vm *vm;

    (void)now_ns;
    TAILQ_FOREACH (vm, &queue->lists[0], place)
        *vms++ = vm;
}

const struct policy_ops policy_fifo_ops = {
    .name = "fifo",
    .insert = fifo_insert,
    .remove = fifo_remove,
    .first = fifo_first,
    .may_precede = fifo_may_precede,
    .list = fifo_list,
};

const struct policy_ops policy_round_robin_ops = {
    .name = "round-robin",
    .time_only = true,
    .insert = fifo_insert,
    .remove = fifo_remove,
    .first = fifo_first,
    .may_precede = fifo_may_precede,
    .list = fifo_list,
};

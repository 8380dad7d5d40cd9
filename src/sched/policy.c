/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which policies there are, and what is to be said about all of them.
 */
#include "sched/private.h"

#include <errno.h>

static const struct policy_ops *const policies[SCHED_POLICIES] = {
    [SCHED_POLICY_STRICT] = &policy_strict_ops,
    [SCHED_POLICY_FIFO] = &policy_fifo_ops,
    [SCHED_POLICY_WFQ] = &policy_wfq_ops,
    [SCHED_POLICY_ROUND_ROBIN] = &policy_round_robin_ops,
};

static const uint32_t default_class_weight[SCHED_CLASSES] = {1, 4, 16};

static bool type_is_known(enum sched_policy type)
{
    return (unsigned)type < SCHED_POLICIES;
}

const struct policy_ops *policy_ops_of(enum sched_policy type)
{
    return policies[type];
}

const char *sched_policy_name(enum sched_policy type)
{
    return type_is_known(type) ? policies[type]->name : "unknown";
}

static bool all_zero(const uint32_t weights[SCHED_CLASSES])
{
    return weights[0] == 0 && weights[1] == 0 && weights[2] == 0;
}

static int class_weights_check(const uint32_t weights[SCHED_CLASSES], struct vgpu_error *error)
{
    for (unsigned i = 0; i < SCHED_CLASSES; i++) {
        if (weights[i] < 1 || weights[i] > SCHED_CLASS_WEIGHT_MAX)
            return error_set(error, EINVAL, "the weight of priority %u is %u and not 1 to %u", i,
                             weights[i], SCHED_CLASS_WEIGHT_MAX);
    }
    return 0;
}

int policy_complete(const struct sched_policy_config *policy,
                    struct sched_policy_config *ret_complete, struct vgpu_error *error)
{
    struct sched_policy_config complete = {.type = policy->type};
    const uint32_t *weights =
        all_zero(policy->class_weight) ? default_class_weight : policy->class_weight;

    if (!type_is_known(policy->type))
        return error_set(error, EINVAL, "policy %u is not one of 0 to %u", (unsigned)policy->type,
                         SCHED_POLICIES - 1);
    if (policy->aging_ms > SCHED_AGING_MAX_MS)
        return error_set(error, EINVAL, "aging_ms is %u and not 0 to %u", policy->aging_ms,
                         SCHED_AGING_MAX_MS);
    if (class_weights_check(weights, error) < 0)
        return -1;
    if (policy->type == SCHED_POLICY_STRICT)
        complete.aging_ms = policy->aging_ms;
    for (unsigned i = 0; policy->type == SCHED_POLICY_WFQ && i < SCHED_CLASSES; i++)
        complete.class_weight[i] = weights[i];
    complete.demand = policy->type == SCHED_POLICY_WFQ && policy->demand;
    *ret_complete = complete;
    return 0;
}

bool policy_equals(const struct sched_policy_config *a, const struct sched_policy_config *b)
{
    for (unsigned i = 0; i < SCHED_CLASSES; i++) {
        if (a->class_weight[i] != b->class_weight[i])
            return false;
    }
    return a->type == b->type && a->aging_ms == b->aging_ms && a->demand == b->demand;
}

void policy_list_insert(struct vm_list *list, struct sched_vm *vm)
{
    struct sched_vm *before = TAILQ_LAST(list, vm_list);

    while (before && before->arrival > vm->arrival)
        before = TAILQ_PREV(before, vm_list, place);
    if (before)
        TAILQ_INSERT_AFTER(list, before, vm, place);
    else
        TAILQ_INSERT_HEAD(list, vm, place);
}

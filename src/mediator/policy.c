/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who runs next: what the configuration says of it, in the scheduler's words.
 *
 *   [mediator] policy ─┬─▶ a pool's policy, aging_ms, demand ─▶ sched_set_policy()
 *   [pool X] policy ───┘
 *   [vm N] weight ─────────▶ each of its places ─────────────▶ sched_set_weight()
 *   [mediator] grant_*, protect_*, switch_* ─▶ sched_set_grants()
 */
#include "mediator/mediator.h"

/* Of these at once on the device. */
#define GRANT_MAX_INFLIGHT 1024

struct grant_rules policy_rules(const struct config *config)
{
    return (struct grant_rules){.grant_us = config->grant_us,
                                .grant_ops = config->grant_ops,
                                .grant_min_us = config->grant_min_us,
                                .protect_us = config->protect_us,
                                .protect_inflight = config->protect_inflight,
                                .protect_ms = config->protect_ms,
                                .switch_us = config->switch_us,
                                .switch_share_percent = config->switch_share_percent};
}

struct sched_config policy_grants(const struct mediator *mediator)
{
    const struct config *config = mediator->config;
    const struct grant_rules *rules = &mediator->grant_rules;
    /* Test mode shows the order of single operations. */
    bool one_by_one = mediator->options.test_mode || mediator->options.hold_until > 0 ||
                      mediator->test.active || rules->grant_ops == 1;

    return (struct sched_config){.pools_mode = config->pools_mode,
                                 .policy = config->policy,
                                 .grant_max_ops = one_by_one ? 1 : rules->grant_ops,
                                 .grant_max_inflight = one_by_one ? 1 : GRANT_MAX_INFLIGHT,
                                 .grant_device_us = rules->grant_us,
                                 .grant_min_us = rules->grant_min_us,
                                 .long_grants = !one_by_one,
                                 .protect_us = rules->protect_us,
                                 .protect_inflight = rules->protect_inflight,
                                 .protect_ms = rules->protect_ms,
                                 .switch_us = one_by_one ? 0 : rules->switch_us,
                                 .switch_share_percent = rules->switch_share_percent};
}

static enum sched_policy type_of(const struct mediator *mediator, const struct config_pool *pool)
{
    switch (pool->policy) {
    case CONFIG_POLICY_STRICT:
        return SCHED_POLICY_STRICT;
    case CONFIG_POLICY_WFQ:
        return SCHED_POLICY_WFQ;
    case CONFIG_POLICY_FIFO:
        return SCHED_POLICY_FIFO;
    case CONFIG_POLICY_ROUND_ROBIN:
        return SCHED_POLICY_ROUND_ROBIN;
    case CONFIG_POLICY_DEFAULT:
        break;
    }
    return mediator->config->policy;
}

/* The gates of contexts go by priority where the policy does. */
static void tell_gates(const struct mediator *mediator, char pool)
{
    struct vm *vm, *next;
    struct vm_place *place;

    HASH_ITER (hh, mediator->vms, vm, next) {
        STAILQ_FOREACH (place, &vm->places, in_vm) {
            if (vm_pool(vm) == pool)
                contexts_set_priority(place);
        }
    }
}

int policy_apply_pool(const struct mediator *mediator, const struct config_pool *pool,
                      struct vgpu_error *error)
{
    const struct sched_policy_config policy = {
        .type = type_of(mediator, pool), .aging_ms = pool->aging_ms, .demand = pool->demand};

    if (sched_set_policy(mediator->sched, pool->id, &policy, error) < 0)
        return -1;
    tell_gates(mediator, pool->id);
    return 0;
}

void policy_apply_vm(const struct vm *vm)
{
    struct vm_place *place;

    STAILQ_FOREACH (place, &vm->places, in_vm)
        sched_set_weight(vm->mediator->sched, place->queued, vm->settings.weight);
}

bool policy_is_strict(const struct vm *vm)
{
    return sched_pool_policy(vm->mediator->sched, vm_pool(vm)).type == SCHED_POLICY_STRICT;
}

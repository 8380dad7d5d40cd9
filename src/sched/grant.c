/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a grant allows, and whether the VM that had the last one goes on.
 *
 *                    alone?  long grants?  higher class at work?
 *                      │          │                 │
 *   grant_device_us ───┴──────────┴─────────────────┴──▶ least of what is left of it
 *                      ▲                                 since the change of VM, the
 *                      └ demand: what the VM uses        protected time, the demand
 */
#include "sched/private.h"

#include <assert.h>

/* A round of all who wait should take about so many full grants. */
#define DEMAND_ROUND_GRANTS 4u

/* --- protection -------------------------------------------------------------------------- */

void grant_note_active(struct sched_device *device, const struct sched_vm *vm, uint64_t now_ns)
{
    if (vm->queue->ops->knows_classes)
        device->active_ns[vm->priority] = now_ns;
}

static bool class_is_active(const struct sched *sched, const struct sched_device *device,
                            unsigned class, uint64_t now_ns)
{
    uint64_t last_ns = device->active_ns[class];

    if (device->waiting[class] > 0)
        return true;
    return last_ns != NEVER_YET_NS &&
           (now_ns <= last_ns || now_ns - last_ns <= sched->config.protect_ms * NS_PER_MS);
}

static bool is_held_short(const struct sched *sched, const struct sched_device *device,
                          const struct sched_vm *vm, uint64_t now_ns)
{
    bool active = false;

    if (sched->config.protect_ms == 0 || !vm->queue->ops->knows_classes)
        return false;
    for (unsigned class = vm->priority + 1u; class < SCHED_CLASSES; class ++)
        active = active || class_is_active(sched, device, class, now_ns);
    return active;
}

static bool takes_turns(const struct sched_device *device, const struct sched_queue *queue)
{
    const struct sched_queue *first = TAILQ_FIRST(&device->turns);

    return first && (first != queue || TAILQ_NEXT(first, turn));
}

/* Queues take turns grant by grant: where one's grants are held short for the sake of this VM's
 * class, this VM's are as short, or its queue would have more than its part of the device. */
static bool is_as_short(const struct sched *sched, const struct sched_device *device,
                        const struct sched_vm *vm)
{
    uint32_t lower = 0;

    if (sched->config.protect_ms == 0 || !vm->queue->ops->knows_classes ||
        !takes_turns(device, vm->queue))
        return false;
    for (unsigned class = 0; class < vm->priority; class ++)
        lower += device->waiting[class];
    return lower > 0;
}

static void bound_time(const struct sched_config *config, struct sched_grant *grant)
{
    if (config->protect_us > 0)
        grant->device_us = min_u64(grant->device_us, config->protect_us);
}

static void hold_short(const struct sched_config *config, struct sched_grant *grant)
{
    bound_time(config, grant);
    if (config->protect_inflight > 0)
        grant->max_inflight = (uint32_t)min_u64(grant->max_inflight, config->protect_inflight);
}

/* --- demand ------------------------------------------------------------------------------ */

static uint64_t shortest_us(const struct sched_config *config)
{
    uint64_t least_us = config->grant_min_us ? config->grant_min_us : config->grant_device_us / 8;

    return min_u64(max_u64(least_us, 1), config->grant_device_us);
}

static uint64_t want_us(const struct sched_config *config, const struct sched_vm *vm)
{
    return min_u64(max_u64(vm->want_us, shortest_us(config)), config->grant_device_us);
}

static uint64_t demand_us(const struct sched_config *config, const struct sched_device *device,
                          const struct sched_vm *vm)
{
    uint64_t share_us = config->grant_device_us;

    if (device->waiting_count > DEMAND_ROUND_GRANTS)
        share_us = config->grant_device_us / device->waiting_count * DEMAND_ROUND_GRANTS;
    return max_u64(min_u64(want_us(config, vm), share_us), shortest_us(config));
}

/* See grant_min_us in sched.h. */
void grant_learn(const struct sched *sched, struct sched_vm *vm, uint64_t used_us, bool has_work)
{
    uint64_t want = want_us(&sched->config, vm);
    uint64_t used = min_u64(used_us, sched->config.grant_device_us);

    if (!has_work)
        vm->want_us = want / 2 + used;
    else if (used >= want - want / 4)
        vm->want_us = min_u64(want, UINT64_MAX / 2) * 2;
    else
        vm->want_us = want;
}

/* --- switches ---------------------------------------------------------------------------- */

static bool higher_class_waits(const struct sched_device *device, const struct sched_vm *vm)
{
    uint32_t higher = 0;

    for (unsigned class = vm->priority + 1u; class < SCHED_CLASSES; class ++)
        higher += device->waiting[class];
    return higher > 0;
}

/* The device time that makes a change of VM worth its cost. */
static uint64_t stretch_target_us(const struct sched_config *config)
{
    uint64_t percent = config->switch_share_percent, target_us;

    if (percent == 0 || percent >= 100 ||
        __builtin_mul_overflow(config->switch_us, 100 - percent, &target_us))
        return 0;
    return target_us / percent;
}

/* What is left of a full grant since the change, in device time and in time that went by. */
static uint64_t stretch_left_us(const struct sched *sched, const struct sched_device *device,
                                uint64_t now_ns)
{
    uint64_t elapsed_ns = now_ns > device->stretch_began_ns ? now_ns - device->stretch_began_ns : 0;
    uint64_t stretch_us = max_u64(device->stretch_us, elapsed_ns / NS_PER_US);

    return sched->config.grant_device_us - min_u64(stretch_us, sched->config.grant_device_us);
}

bool grant_goes_on(const struct sched *sched, const struct sched_device *device, uint64_t now_ns)
{
    const struct sched_vm *vm = device->last;

    return vm && vm->state == VM_WAITING && vm->queue->device == device && !device->preferred &&
           device->stretch_us < stretch_target_us(&sched->config) &&
           stretch_left_us(sched, device, now_ns) > 0 &&
           !(vm->queue->ops->knows_classes && higher_class_waits(device, vm));
}

/* What has used nothing could go on for ever, or was given back because it cannot run. */
void grant_used(struct sched_device *device, uint64_t used_us)
{
    if (used_us == 0 || __builtin_add_overflow(device->stretch_us, used_us, &device->stretch_us))
        device->stretch_us = UINT64_MAX;
}

static void note_change(struct sched_device *device, struct sched_vm *vm, uint64_t now_ns)
{
    if (device->last == vm)
        return;
    if (device->granted_before)
        device->switches++;
    device->granted_before = true;
    device->last = vm;
    device->stretch_us = 0;
    device->stretch_began_ns = now_ns;
}

/* --- the grant --------------------------------------------------------------------------- */

static uint64_t grant_end_ns(uint64_t device_us, uint64_t now_ns)
{
    uint64_t device_ns, end_ns;

    if (__builtin_mul_overflow(device_us, NS_PER_US, &device_ns) ||
        __builtin_add_overflow(now_ns, device_ns, &end_ns))
        return SCHED_NEVER_NS;
    return end_ns;
}

static struct sched_grant bounded_grant(const struct sched *sched,
                                        const struct sched_device *device,
                                        const struct sched_vm *vm)
{
    const struct sched_config *config = &sched->config;
    struct sched_grant grant = {.max_ops = config->grant_max_ops,
                                .max_inflight = config->grant_max_inflight,
                                .device_us = config->grant_device_us};

    if (vm->queue->ops->time_only)
        grant.max_ops = UINT32_MAX;
    if (vm->queue->policy.demand && device->waiting_count > 0)
        grant.device_us = demand_us(config, device, vm);
    return grant;
}

struct sched_grant grant_make(const struct sched *sched, struct sched_device *device,
                              struct sched_vm *vm, bool goes_on, uint64_t now_ns)
{
    bool held_short = is_held_short(sched, device, vm, now_ns);
    struct sched_grant grant = bounded_grant(sched, device, vm);

    note_change(device, vm, now_ns);
    device->running_long = sched->config.long_grants && device->waiting_count == 0 && !held_short;
    if (device->running_long) {
        grant.max_ops = UINT32_MAX;
        grant.device_us = SCHED_GRANT_LONG_US;
    } else if (goes_on) {
        grant.device_us = min_u64(grant.device_us, stretch_left_us(sched, device, now_ns));
    }
    if (held_short)
        hold_short(&sched->config, &grant);
    else if (is_as_short(sched, device, vm))
        bound_time(&sched->config, &grant);
    device->granted_ns = now_ns;
    device->deadline_ns =
        device->running_long ? SCHED_NEVER_NS : grant_end_ns(grant.device_us, now_ns);
    return grant;
}

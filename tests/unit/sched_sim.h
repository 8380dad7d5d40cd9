/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices and VMs in simulated time, around a real scheduler.
 *
 *   a VM: ─ thinks ─▶ has a burst of operations ─▶ waits ─▶ is granted ─▶ ...
 *   a device: runs a grant's operations one by one, each to its end, until the grant is
 *   used up or none is left; a change of VM takes switch_us before that
 *
 * The same seed gives the same life.
 */
#ifndef VGPU_TESTS_SCHED_SIM_H
#define VGPU_TESTS_SCHED_SIM_H

#include "unit.h"

#include "sched/sched.h"

#define SIM_VMS_MAX 48
#define SIM_DEVICES 2
#define SIM_ENDLESS UINT32_MAX /* a burst that has no end */

struct sim_vm {
    /* What it is. */
    char pool; /* 'A' + its device */
    unsigned priority;
    uint32_t weight;
    uint32_t burst_max; /* operations at a time */
    uint32_t job_min_us, job_max_us;
    uint32_t think_max_us;
    /* What becomes of it. */
    struct sched_vm *vm;
    uint32_t backlog;
    uint64_t wakes_ns; /* SCHED_NEVER_NS: it has work */
    uint64_t accepted, done;
    uint64_t used_us;
    uint64_t random_state; /* its own: nobody else's life changes it */
    uint64_t waits_since_ns;
    uint32_t waiting_when_it_came; /* in its device's queues, itself too */
};

struct sim_device {
    struct sim_vm *running, *last;
    uint64_t began_ns, ends_ns;
    uint64_t used_us;
    uint64_t granted_us; /* 0 none */
    uint64_t grants, changes;
};

struct sim {
    struct sched *sched;
    struct sim_vm vms[SIM_VMS_MAX];
    unsigned count;
    bool ends; /* who has done its work does not wake again */
    struct sim_device devices[SIM_DEVICES];
    uint64_t now_ns;
    uint64_t switch_us;
    uint64_t random_state;
    /* Called with each grant, before the VM runs; may be NULL. */
    void (*on_grant)(struct sim *sim, unsigned device, struct sim_vm *vm,
                     const struct sched_grant *grant);
    void *context;
};

static inline uint64_t random_between(uint64_t *state, uint64_t least, uint64_t most)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return least + (*state >> 20) % (most - least + 1);
}

static inline uint64_t sim_random(struct sim *sim, uint64_t least, uint64_t most)
{
    return random_between(&sim->random_state, least, most);
}

/* Pool A has device 0, B device 1. */
static inline void sim_init(struct sim *sim, const struct sched_config *config,
                            const struct sched_policy_config *policy, uint64_t seed)
{
    struct vgpu_error error;

    *sim = (struct sim){.sched = sched_new(config), .random_state = seed * 0x9e3779b97f4a7c15u};
    for (unsigned i = 0; i < SIM_DEVICES; i++) {
        assert_int_equal(sched_add_pool(sim->sched, (char)('A' + i), i, &error), 0);
        assert_int_equal(sched_set_policy(sim->sched, (char)('A' + i), policy, &error), 0);
        sim->devices[i].ends_ns = SCHED_NEVER_NS;
    }
}

static inline struct sim_vm *sim_add(struct sim *sim, const struct sim_vm *what)
{
    struct sim_vm *vm = &sim->vms[sim->count++];
    struct vgpu_error error;

    assert_true(sim->count <= SIM_VMS_MAX);
    *vm = *what;
    vm->vm = sched_add_vm(sim->sched, sim->count, vm->pool, vm->priority, vm, &error);
    assert_non_null(vm->vm);
    sched_set_weight(sim->sched, vm->vm, vm->weight);
    vm->wakes_ns = sim->now_ns;
    vm->random_state = sim->count * 0x9e3779b97f4a7c15u;
    return vm;
}

static inline unsigned sim_device_of(const struct sim_vm *vm)
{
    return (unsigned)(vm->pool - 'A');
}

static inline void sim_waits(struct sim *sim, struct sim_vm *vm)
{
    vm->waits_since_ns = sim->now_ns;
    vm->waiting_when_it_came = sched_waiting(sim->sched, vm->pool);
}

static inline void sim_wake(struct sim *sim, struct sim_vm *vm)
{
    vm->wakes_ns = SCHED_NEVER_NS;
    vm->backlog = vm->burst_max == SIM_ENDLESS
                      ? SIM_ENDLESS
                      : (uint32_t)random_between(&vm->random_state, 1, vm->burst_max);
    vm->accepted += vm->backlog;
    sched_ready(sim->sched, vm->vm, vm->backlog, sim->now_ns);
    sim_waits(sim, vm);
}

/* What the grant's operations take, one after the other. */
static inline uint64_t sim_work(struct sim_vm *vm, const struct sched_grant *grant)
{
    uint64_t used_us = 0;

    for (uint32_t ops = 0; ops < grant->max_ops && used_us < grant->device_us && vm->backlog > 0;
         ops++) {
        used_us += random_between(&vm->random_state, vm->job_min_us, vm->job_max_us);
        if (vm->backlog != SIM_ENDLESS)
            vm->backlog--;
        vm->done++;
    }
    return used_us;
}

static inline void sim_grant(struct sim *sim, unsigned index, const struct sched_action *action)
{
    struct sim_device *device = &sim->devices[index];
    struct sim_vm *vm = sched_vm_context(action->vm);
    uint64_t switch_us = device->last && device->last != vm ? sim->switch_us : 0;

    assert_int_equal(action->type, SCHED_ACTION_GRANT);
    assert_true(vm->backlog > 0);
    assert_int_equal(sim_device_of(vm), index);
    if (sim->on_grant)
        sim->on_grant(sim, index, vm, &action->grant);
    device->changes += device->last && device->last != vm;
    device->running = vm;
    device->last = vm;
    device->grants++;
    device->began_ns = sim->now_ns;
    device->granted_us = action->grant.device_us;
    device->used_us = sim_work(vm, &action->grant);
    device->ends_ns = sim->now_ns + (switch_us + device->used_us) * NS_PER_US;
}

static inline void sim_return(struct sim *sim, struct sim_device *device)
{
    struct sim_vm *vm = device->running;

    device->running = NULL;
    device->ends_ns = SCHED_NEVER_NS;
    vm->used_us += device->used_us;
    if (vm->backlog == 0 && !sim->ends)
        vm->wakes_ns =
            sim->now_ns + random_between(&vm->random_state, 1, vm->think_max_us) * NS_PER_US;
    sched_returned(sim->sched, vm->vm, device->used_us, vm->backlog, sim->now_ns);
    if (vm->backlog > 0)
        sim_waits(sim, vm);
}

static inline uint64_t sim_next_event_ns(const struct sim *sim)
{
    uint64_t next_ns = SCHED_NEVER_NS;

    for (unsigned i = 0; i < SIM_DEVICES; i++) {
        if (sim->devices[i].ends_ns < next_ns)
            next_ns = sim->devices[i].ends_ns;
    }
    for (unsigned i = 0; i < sim->count; i++) {
        if (sim->vms[i].wakes_ns < next_ns)
            next_ns = sim->vms[i].wakes_ns;
    }
    return next_ns;
}

/* All that happens at one moment.  False: nothing will any more before `until_ns`. */
static inline bool sim_step(struct sim *sim, uint64_t until_ns)
{
    uint64_t next_ns = sim_next_event_ns(sim);
    struct sched_action action;

    if (next_ns >= until_ns)
        return false;
    sim->now_ns = next_ns;
    for (unsigned i = 0; i < sim->count; i++) {
        if (sim->vms[i].wakes_ns == next_ns)
            sim_wake(sim, &sim->vms[i]);
    }
    for (unsigned i = 0; i < SIM_DEVICES; i++) {
        if (sim->devices[i].ends_ns == next_ns)
            sim_return(sim, &sim->devices[i]);
        if (sched_next(sim->sched, i, next_ns, &action))
            sim_grant(sim, i, &action);
    }
    return true;
}

static inline void sim_run(struct sim *sim, uint64_t duration_ns)
{
    uint64_t until_ns = sim->now_ns + duration_ns;

    while (sim_step(sim, until_ns))
        ;
    sim->now_ns = until_ns;
}

static inline void sim_free(struct sim *sim)
{
    sched_free(sim->sched);
}

#endif

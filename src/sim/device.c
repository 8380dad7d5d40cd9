/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model of a device, which ends grants as a session's worker does:
 *
 *   sched_next() ─▶ [ switch ] ─▶ begin ─▶ op ─▶ op ─▶ … ─▶ in flight drains ─▶ sched_returned()
 *                                            │
 *                 nothing more begins: device_us is used up, max_ops have begun, the grant is
 *                 revoked, or (but for a long grant) there is no work
 *
 * Operations run one after the other, each to its end.  Some are in flight, which cannot be taken
 * back: as many as max_inflight and FLIGHT_TIME_NS let.
 */
#include "sim/private.h"

#include <assert.h>

/* As a session's worker: what waits on the device behind one stream's first two operations. */
#define FLIGHT_TIME_NS (2 * NS_PER_MS)
#define FLIGHTS_LET 2u

struct job *vm_job(struct vm *vm, size_t number)
{
    return &vm->jobs[(vm->job_first + number) & (vm->job_room - 1)];
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* --- who waits --------------------------------------------------------------------------- */

static uint32_t waiting_count(const struct device *device)
{
    uint32_t count = 0;

    for (unsigned i = 0; i < SIM_PRIORITIES; i++)
        count += device->waiting[i];
    return count;
}

static void joins(struct device *device, struct vm *vm)
{
    struct sim_result *result = device->run->result;

    if (waiting_count(device) == 0)
        device->wanted_ns = device->run->now_ns;
    vm->waiting = true;
    vm->waiting_since_ns = device->run->now_ns;
    device->waiting[vm->priority]++;
    if (waiting_count(device) > result->waiting_max)
        result->waiting_max = waiting_count(device);
}

/* Pools that take turns have nothing to do with each other's classes. */
static bool higher_waits(const struct device *device, const struct vm *vm)
{
    for (unsigned i = vm->priority + 1u; i < SIM_PRIORITIES; i++) {
        if (device->waiting[i] > 0)
            return device->run->settings->pools == SCHED_POOLS_SHARED;
    }
    return false;
}

static void note_turn(struct device *device, struct vm *vm)
{
    const struct run *run = device->run;
    uint64_t waited_ns = run->now_ns - vm->waiting_since_ns;
    struct sim_tally *load = result_load_tally(run, vm), *class = result_class_tally(run, vm);

    load->longest_turn_ns = most(load->longest_turn_ns, waited_ns);
    class->longest_turn_ns = most(class->longest_turn_ns, waited_ns);
    run->result->inversions += higher_waits(device, vm);
    if (run->observer && run->observer->granted)
        run->observer->granted(run->now_ns, device->index, vm->id, vm->priority, waited_ns,
                               run->observer->context);
}

/* A device without a grant while a VM waits: a scheduler must not let that last. */
static void note_idle(struct device *device)
{
    struct run *run = device->run;
    bool lazy = !device->holder && waiting_count(device) > 0;

    if (device->idle_since_ns != UINT64_MAX)
        run->result->idle_with_work_ns += run->now_ns - device->idle_since_ns;
    device->idle_since_ns = lazy ? run->now_ns : UINT64_MAX;
}

/* --- operations -------------------------------------------------------------------------- */

void device_charge(struct device *device)
{
    uint64_t now_ns = device->run->now_ns;

    if (device->runs) {
        uint64_t used_ns = now_ns - device->charged_ns;

        device->holder->used_ns += used_ns;
        device->holder->window_ns += used_ns;
        device->run->result->busy_ns += used_ns;
    }
    device->charged_ns = now_ns;
}

static void start_operation(struct device *device)
{
    struct run *run = device->run;
    struct vm *vm = device->holder;
    const struct job *job = vm_job(vm, 0);
    uint64_t waited_ns = run->now_ns - job->arrival_ns;
    struct sim_tally *load = result_load_tally(run, vm), *class = result_class_tally(run, vm);

    load->longest_wait_ns = most(load->longest_wait_ns, waited_ns);
    class->longest_wait_ns = most(class->longest_wait_ns, waited_ns);
    device_charge(device);
    device->runs = true;
    events_add(&run->events, run->now_ns + job->length_ns, EVENT_END, device->index);
}

static bool is_used_up(const struct device *device)
{
    return device->draining || device->begun >= device->grant.max_ops ||
           (!device->is_long && device->used_ns / NS_PER_US >= device->grant.device_us);
}

static bool may_begin(const struct device *device)
{
    const struct vm *vm = device->holder;

    if (is_used_up(device) || device->flying >= vm->job_count ||
        device->flying >= device->grant.max_inflight)
        return false;
    return device->flying < FLIGHTS_LET || device->flying * vm->pace_ns < FLIGHT_TIME_NS;
}

/* Short ones let more into flight, and a long one at once fewer. */
static void learn_pace(struct vm *vm, uint64_t length_ns)
{
    vm->pace_ns = length_ns > 2 * vm->pace_ns ? length_ns : (3 * vm->pace_ns + length_ns) / 4;
}

/* --- grants ------------------------------------------------------------------------------ */

/* What the scheduler is told may be wrong by so much, either way. */
static uint64_t told_us(struct device *device)
{
    uint64_t used_us = (device->used_ns + NS_PER_US / 2) / NS_PER_US;
    uint64_t error_us = used_us * device->run->settings->misread_percent / 100;

    if (error_us == 0)
        return used_us;
    return used_us - error_us + draw_below(&device->draw, 2 * error_us + 1);
}

/* How long nobody waits for its end does not matter. */
static void note_length(struct device *device)
{
    const struct run *run = device->run;

    if (waiting_count(device) > 0)
        run->result->longest_grant_ns =
            most(run->result->longest_grant_ns,
                 run->now_ns - most(device->granted_ns, device->wanted_ns));
}

static void give_back(struct device *device, struct vm *vm)
{
    struct run *run = device->run;

    note_length(device);
    device->holder = NULL;
    device->last = vm;
    if (vm->job_count > 0)
        joins(device, vm);
    sched_returned(device->sched, vm->place, told_us(device), (uint32_t)vm->job_count, run->now_ns);
}

/* Begins what may begin; the grant goes back when nothing did and nothing is in flight. */
static void feed(struct device *device)
{
    while (may_begin(device)) {
        device->flying++;
        device->begun++;
        device->run->depths[device->holder->priority]--;
    }
    if (device->flying == 0 && (!device->is_long || is_used_up(device)))
        give_back(device, device->holder);
    else if (device->flying > 0 && !device->runs)
        start_operation(device);
}

static void take(struct device *device, struct vm *vm, const struct sched_grant *grant)
{
    struct run *run = device->run;
    bool switches = device->last && device->last != vm;
    uint64_t cost_us = run->settings->turn_us + (switches ? run->settings->switch_us : 0);

    vm->waiting = false;
    device->waiting[vm->priority]--;
    note_turn(device, vm);
    device->holder = vm;
    device->grant = *grant;
    device->is_long = grant->device_us == SCHED_GRANT_LONG_US;
    device->draining = false;
    device->begun = device->flying = 0;
    device->used_ns = 0;
    device->granted_ns = run->now_ns;
    run->result->grants++;
    run->result->switches += switches;
    run->result->switch_ns += cost_us * NS_PER_US;
    device->beginning = cost_us > 0;
    if (device->beginning)
        events_add(&run->events, run->now_ns + cost_us * NS_PER_US, EVENT_BEGIN, device->index);
    else
        feed(device);
}

/* Does what the scheduler says until it has nothing to say. */
static void ask(struct device *device)
{
    struct sched_action action;

    while (sched_next(device->sched, device->slot, device->run->now_ns, &action)) {
        if (action.type == SCHED_ACTION_GRANT) {
            take(device, sched_vm_context(action.vm), &action.grant);
        } else {
            device->draining = true;
            if (!device->beginning && device->flying == 0)
                give_back(device, sched_vm_context(action.vm));
        }
    }
    note_idle(device);
}

/* --- what happens ------------------------------------------------------------------------ */

void device_arrived(struct device *device, struct vm *vm)
{
    if (device->holder == vm) {
        if (!device->beginning)
            feed(device);
    } else {
        if (!vm->waiting)
            joins(device, vm);
        sched_ready(device->sched, vm->place, (uint32_t)vm->job_count, device->run->now_ns);
    }
    ask(device);
}

void device_begin(struct device *device)
{
    device->beginning = false;
    feed(device);
    ask(device);
}

void device_end(struct device *device)
{
    struct vm *vm = device->holder;
    uint64_t length_ns = vm_job(vm, 0)->length_ns;

    device_charge(device);
    device->runs = false;
    device->flying--;
    device->used_ns += length_ns;
    learn_pace(vm, length_ns);
    run_completed(device->run, device, vm);
    feed(device);
    ask(device);
}

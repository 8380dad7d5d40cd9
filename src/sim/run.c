/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated time: VMs send operations, devices (device.c) run them.
 *
 * All that is drawn is in whole microseconds, as a trace is, so that a load that was recorded gives
 * the same result again.  Each VM draws from a stream of its own: what the others do, or which
 * policy is chosen, changes nothing in what an open load sends.
 */
#include "sim/private.h"

#include <stdlib.h>
#include <string.h>

#define PACE_FIRST_NS (250 * NS_PER_US) /* as a session's worker */
#define PROGRESS_EVENTS 0x10000u
#define GRID_NS NS_PER_US

/* --- operations -------------------------------------------------------------------------- */

static void grow_ring(struct vm *vm)
{
    size_t room = vm->job_room > 0 ? 2 * vm->job_room : 4;
    struct job *jobs = sim_allocate(room, sizeof(*jobs));

    for (size_t i = 0; i < vm->job_count; i++)
        jobs[i] = *vm_job(vm, i);
    free(vm->jobs);
    vm->jobs = jobs;
    vm->job_room = room;
    vm->job_first = 0;
}

static uint64_t draw_length_us(struct vm *vm)
{
    const struct sim_load *load = vm->source;
    uint64_t length_us = load->job_us;

    if (load->sizes == SIM_SIZES_EXPONENTIAL)
        length_us = draw_exponential(&vm->draw, load->job_us);
    else if (load->sizes == SIM_SIZES_PARETO)
        length_us =
            draw_pareto(&vm->draw, load->job_us, load->job_max_us, load->shape_percent / 100.0);
    return length_us > 0 ? length_us : 1;
}

/* The VM's next operation joins its ring.  False: the ring is full, it is refused. */
static bool push(struct run *run, struct vm *vm, uint64_t length_us)
{
    struct sim_tally *load = result_load_tally(run, vm), *class = result_class_tally(run, vm);

    if (run->observer && run->observer->arrived)
        run->observer->arrived(run->now_ns, vm->id, vm->pool, vm->priority, vm->weight, length_us,
                               run->observer->context);
    if (vm->job_count >= run->settings->queue_max) {
        load->refused++;
        class->refused++;
        return false;
    }
    if (vm->job_count == vm->job_room)
        grow_ring(vm);
    /* The stall is the device's, not the operation's: a trace does not have it. */
    if (run->settings->stall_per_million > draw_below(&vm->stalls, 1000000))
        length_us += run->settings->stall_us;
    vm->job_count++;
    *vm_job(vm, vm->job_count - 1) =
        (struct job){.arrival_ns = run->now_ns, .length_ns = length_us * NS_PER_US};
    run->depths[vm->priority]++;
    load->accepted++;
    class->accepted++;
    return true;
}

/* --- loads ------------------------------------------------------------------------------- */

static uint64_t think_ns(struct vm *vm)
{
    return draw_exponential(&vm->draw, vm->source->think_us) * GRID_NS;
}

/* While a burst lasts operations come as of a Poisson process; between bursts none do. */
static uint64_t after_bursts_ns(struct vm *vm, uint64_t next_ns)
{
    const struct sim_load *load = vm->source;

    while (next_ns > vm->burst_end_ns) {
        uint64_t pause_ns = draw_exponential(&vm->draw, load->off_ms * US_PER_MS) * GRID_NS;

        next_ns += pause_ns;
        vm->burst_end_ns +=
            pause_ns + draw_exponential(&vm->draw, load->on_ms * US_PER_MS) * GRID_NS;
    }
    return next_ns;
}

static void plan(struct run *run, struct vm *vm, uint64_t at_ns)
{
    uint64_t stop_ns = vm->source->stop_ms * NS_PER_MS;

    if (stop_ns == 0 || at_ns < stop_ns)
        events_add(&run->events, at_ns, EVENT_ARRIVAL, vm->index);
}

static void plan_next(struct run *run, struct vm *vm, uint64_t from_ns)
{
    uint64_t next_ns = from_ns + draw_exponential(&vm->draw, vm->source->every_us) * GRID_NS;

    if (vm->source->arrivals == SIM_ARRIVALS_BURSTS)
        next_ns = after_bursts_ns(vm, next_ns);
    plan(run, vm, next_ns);
}

static void start_load(struct run *run, struct vm *vm)
{
    const struct sim_load *load = vm->source;
    uint64_t start_ns = load->start_ms * NS_PER_MS;

    if (load->arrivals == SIM_ARRIVALS_CLOSED) {
        for (uint32_t i = 0; i < load->depth; i++)
            plan(run, vm, start_ns + think_ns(vm));
        return;
    }
    vm->burst_end_ns = start_ns + draw_exponential(&vm->draw, load->on_ms * US_PER_MS) * GRID_NS;
    plan_next(run, vm, start_ns);
}

void run_completed(struct run *run, struct device *device, struct vm *vm)
{
    uint64_t lasted_ns = run->now_ns - vm_job(vm, 0)->arrival_ns;
    struct sim_tally *load = result_load_tally(run, vm), *class = result_class_tally(run, vm);

    load->completed++;
    class->completed++;
    sim_latency_add(&load->total, lasted_ns);
    sim_latency_add(&class->total, lasted_ns);
    vm->job_first = (vm->job_first + 1) & (vm->job_room - 1);
    vm->job_count--;
    if (run->observer && run->observer->completed)
        run->observer->completed(run->now_ns, device->index, vm->id, run->observer->context);
    if (!vm->source || vm->source->arrivals != SIM_ARRIVALS_CLOSED)
        return;
    if (vm->source->think_us > 0)
        plan(run, vm, run->now_ns + think_ns(vm));
    else if (vm->source->stop_ms == 0 || run->now_ns < vm->source->stop_ms * NS_PER_MS)
        push(run, vm, draw_length_us(vm));
}

/* --- set up ------------------------------------------------------------------------------ */

static void fail(const struct vgpu_error *error)
{
    fprintf(stderr, "vgpu-sim: the scheduler refuses what was checked: %s\n", error->message);
    abort();
}

static const struct sim_pool *find_pool(const struct run *run, char name)
{
    const struct sim_pool *pool = run->scenario->pools;

    while (pool->name != name)
        pool++;
    return pool;
}

static const struct sched_policy_config *run_policy(const struct run *run,
                                                    const struct sim_pool *pool)
{
    return pool->has_policy ? &pool->policy : &run->settings->policy;
}

uint64_t run_part(const struct run *run, const struct vm *vm)
{
    const struct sim_pool *pool = find_pool(run, vm->pool);

    return (uint64_t)vm->weight * run_policy(run, pool)->class_weight[vm->priority];
}

static struct sched *make_sched(const struct run *run)
{
    const struct sim_settings *settings = run->settings;
    const struct sched_config config = {.pools_mode = settings->pools,
                                        .policy = settings->policy.type,
                                        .grant_max_ops = settings->grant_ops,
                                        .grant_max_inflight = settings->grant_inflight,
                                        .grant_device_us = settings->grant_us,
                                        .long_grants = settings->long_grants,
                                        .grant_min_us = settings->grant_min_us,
                                        .protect_us = settings->protect_us,
                                        .protect_inflight = settings->protect_inflight,
                                        .protect_ms = settings->protect_ms,
                                        .switch_us = settings->switch_us,
                                        .switch_share_percent = settings->switch_share_percent};
    struct sched *sched = sched_new(&config);
    struct vgpu_error error;

    for (unsigned i = 0; i < run->scenario->pool_count; i++) {
        const struct sim_pool *pool = &run->scenario->pools[i];

        if (sched_add_pool(sched, pool->name, 0, &error) < 0 ||
            sched_set_policy(sched, pool->name, run_policy(run, pool), &error) < 0)
            fail(&error);
    }
    return sched;
}

/* Devices have nothing to do with each other, so that many are many scheds. */
static void add_devices(struct run *run)
{
    for (unsigned i = 0; i < run->scenario->pool_count; i++) {
        if (run->scenario->pools[i].last_device >= run->device_count)
            run->device_count = run->scenario->pools[i].last_device + 1;
    }
    run->devices = sim_allocate(run->device_count, sizeof(*run->devices));
    run->sched_count = (run->device_count + SCHED_DEVICES_MAX - 1) / SCHED_DEVICES_MAX;
    run->scheds = sim_allocate(run->sched_count, sizeof(struct sched *));
    for (unsigned i = 0; i < run->sched_count; i++)
        run->scheds[i] = make_sched(run);
    for (unsigned i = 0; i < run->device_count; i++) {
        struct device *device = &run->devices[i];

        device->run = run;
        device->index = i;
        device->sched = run->scheds[i / SCHED_DEVICES_MAX];
        device->slot = i % SCHED_DEVICES_MAX;
        device->idle_since_ns = UINT64_MAX;
        draw_seed(&device->draw, run->settings->seed, ((uint64_t)1 << 62) + i);
    }
}

/* The VMs of a pool are dealt out to its devices in turn. */
static struct device *deal(struct run *run, char name, uint32_t dealt[SIM_POOLS_MAX])
{
    const struct sim_pool *pool = find_pool(run, name);
    uint32_t count = pool->last_device - pool->first_device + 1;

    return &run->devices[pool->first_device + dealt[pool - run->scenario->pools]++ % count];
}

static struct vm *add_vm(struct run *run, uint32_t id, const struct sim_load *like,
                         uint32_t dealt[SIM_POOLS_MAX])
{
    struct vm *vm = &run->vms[run->vm_count];
    struct vgpu_error error;

    vm->id = id;
    vm->index = run->vm_count++;
    vm->pool = like->pool;
    vm->priority = (uint8_t)like->priority;
    vm->weight = like->weight;
    vm->pace_ns = PACE_FIRST_NS;
    vm->device = deal(run, like->pool, dealt);
    vm->device->vms++;
    draw_seed(&vm->stalls, run->settings->seed, ((uint64_t)1 << 61) + id);
    vm->place = sched_add_vm(vm->device->sched, id, like->pool, like->priority, vm, &error);
    if (!vm->place || sched_pin_vm(vm->device->sched, vm->place, vm->device->slot, &error) < 0)
        fail(&error);
    sched_set_weight(vm->device->sched, vm->place, vm->weight);
    return vm;
}

static void add_load(struct run *run, unsigned number, uint32_t first_id,
                     uint32_t dealt[SIM_POOLS_MAX])
{
    const struct sim_load *load = &run->scenario->loads[number];

    for (uint32_t i = 0; i < load->vms; i++) {
        struct vm *vm = add_vm(run, first_id + i, load, dealt);

        vm->load = number;
        vm->source = load;
        draw_seed(&vm->draw, run->settings->seed, ((uint64_t)number << 32) + i);
    }
}

static void add_trace_vms(struct run *run, uint32_t dealt[SIM_POOLS_MAX])
{
    const struct sim_scenario *scenario = run->scenario;

    for (size_t i = 0; i < scenario->trace_vm_count; i++) {
        const struct sim_trace_vm *from = &scenario->trace_vms[i];
        const struct sim_load like = {
            .pool = from->pool, .priority = from->priority, .weight = from->weight};
        struct vm *vm = add_vm(run, from->id, &like, dealt);

        vm->load = scenario->load_count + from->priority;
    }
}

/* VMs of a trace first: their index is the trace's, and their ids are given. */
static void add_vms(struct run *run)
{
    const struct sim_scenario *scenario = run->scenario;
    uint32_t dealt[SIM_POOLS_MAX] = {0}, count = (uint32_t)scenario->trace_vm_count, id = 1;

    for (unsigned i = 0; i < scenario->load_count; i++)
        count += scenario->loads[i].vms;
    for (size_t i = 0; i < scenario->trace_vm_count; i++)
        id = scenario->trace_vms[i].id >= id ? scenario->trace_vms[i].id + 1 : id;
    run->vms = sim_allocate(count, sizeof(*run->vms));
    add_trace_vms(run, dealt);
    for (unsigned i = 0; i < scenario->load_count; i++) {
        add_load(run, i, id, dealt);
        id += scenario->loads[i].vms;
    }
}

static void plan_trace(struct run *run)
{
    if (run->next_arrival < run->scenario->arrival_count)
        events_add(&run->events, run->scenario->arrivals[run->next_arrival].time_us * NS_PER_US,
                   EVENT_TRACE, 0);
}

static void set_up(struct run *run)
{
    run->end_ns = run->settings->duration_ms * NS_PER_MS;
    add_devices(run);
    add_vms(run);
    result_begin(run);
    for (uint32_t i = 0; i < run->vm_count; i++) {
        if (run->vms[i].source)
            start_load(run, &run->vms[i]);
    }
    plan_trace(run);
}

static void tear_down(struct run *run)
{
    for (uint32_t i = 0; i < run->vm_count; i++)
        free(run->vms[i].jobs);
    for (unsigned i = 0; i < run->sched_count; i++)
        sched_free(run->scheds[i]);
    free(run->scheds);
    free(run->devices);
    free(run->vms);
    events_clear(&run->events);
}

/* --- time -------------------------------------------------------------------------------- */

static void arrival(struct run *run, struct vm *vm)
{
    bool accepted = push(run, vm, draw_length_us(vm));

    if (vm->source->arrivals != SIM_ARRIVALS_CLOSED)
        plan_next(run, vm, run->now_ns);
    if (accepted)
        device_arrived(vm->device, vm);
}

static void trace_arrival(struct run *run)
{
    const struct sim_arrival *next = &run->scenario->arrivals[run->next_arrival++];
    struct vm *vm = &run->vms[next->vm];

    plan_trace(run);
    if (push(run, vm, next->job_us))
        device_arrived(vm->device, vm);
}

static void happen(struct run *run, const struct event *event)
{
    switch (event_type(event)) {
    case EVENT_ARRIVAL:
        arrival(run, &run->vms[event->index]);
        break;
    case EVENT_TRACE:
        trace_arrival(run);
        break;
    case EVENT_BEGIN:
        device_begin(&run->devices[event->index]);
        break;
    default:
        device_end(&run->devices[event->index]);
    }
}

static uint64_t sample_ns(const struct run *run)
{
    if (run->next_sample == SIM_SAMPLES)
        return UINT64_MAX;
    return run->end_ns / SIM_SAMPLES * (run->next_sample + 1);
}

static void pass(struct run *run, uint64_t to_ns)
{
    double passed_ns = (double)(to_ns - run->now_ns);

    for (unsigned i = 0; i < SIM_PRIORITIES; i++)
        run->depth_sums[i] += run->depths[i] * passed_ns;
    run->now_ns = to_ns;
}

/* Windows and samples end on the way. */
static void advance(struct run *run, uint64_t to_ns)
{
    uint64_t next_sample_ns = sample_ns(run);

    while (next_sample_ns <= to_ns || run->next_window_ns <= to_ns) {
        bool is_sample = next_sample_ns <= run->next_window_ns;

        pass(run, is_sample ? next_sample_ns : run->next_window_ns);
        if (is_sample) {
            result_sample(run);
            run->next_sample++;
            next_sample_ns = sample_ns(run);
        } else {
            result_window(run);
            run->next_window_ns += run->settings->window_ms * NS_PER_MS;
        }
    }
    pass(run, to_ns);
}

static void tell_progress(const struct run *run)
{
    const struct sim_observer *observer = run->observer;

    if (observer && observer->progress)
        observer->progress(run->now_ns, run->end_ns, run->result->events, observer->context);
}

struct sim_result *sim_run(const struct sim_scenario *scenario, const struct sim_settings *settings,
                           const struct sim_observer *observer)
{
    struct run run = {.scenario = scenario, .settings = settings, .observer = observer};
    struct event event;

    set_up(&run);
    while (events_take(&run.events, &event) && event.time_ns < run.end_ns) {
        advance(&run, event.time_ns);
        happen(&run, &event);
        if (++run.result->events % PROGRESS_EVENTS == 0)
            tell_progress(&run);
    }
    advance(&run, run.end_ns);
    result_finish(&run);
    tell_progress(&run);
    tear_down(&run);
    return run.result;
}

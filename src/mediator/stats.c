/* SPDX-License-Identifier: Apache-2.0 */
/* The numbers on the control socket: pools at their priorities, devices, VMs. */
#include "mediator/mediator.h"

#include <stdlib.h>

#define VMS_MAX 1000u /* of an answer: more would hold up the loop */

static json_t *number(uint64_t value)
{
    return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

/* null where nothing was recorded: most of many VMs are idle. */
static json_t *describe_summary(const struct metrics_summary *summary)
{
    if (summary->count == 0)
        return json_null();
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "count", number(summary->count),
                     "mean_us", number(summary->sum_us / summary->count), "p50_us",
                     number(summary->p50_us), "p95_us", number(summary->p95_us), "p99_us",
                     number(summary->p99_us), "p999_us", number(summary->p999_us), "max_us",
                     number(summary->max_us));
}

static json_t *describe_durations(struct metrics_scope *scope, bool recent)
{
    static const char *const names[METRICS_DURATIONS] = {
        [METRICS_WAIT] = "wait", [METRICS_RUN] = "run", [METRICS_TOTAL] = "total"};
    uint64_t now_ns = clock_monotonic_ns();
    json_t *object = json_object();

    for (unsigned i = 0; i < METRICS_DURATIONS; i++) {
        struct metrics_summary summary = recent
                                             ? metrics_latency_recent(&scope->durations[i], now_ns)
                                             : metrics_latency_all(&scope->durations[i]);

        json_object_set_new(object, names[i], describe_summary(&summary));
    }
    return object;
}

/* Those that there were. */
static json_t *describe_refusals(const struct metrics_scope *scope)
{
    json_t *object = json_object();

    for (unsigned i = 0; i < METRICS_REFUSALS; i++) {
        if (scope->refusals[i] > 0)
            json_object_set_new(object, metrics_refusal_name(i), number(scope->refusals[i]));
    }
    return object;
}

static json_t *describe_faults(const struct metrics_scope *scope)
{
    json_t *object = json_object();

    for (unsigned i = 0; i < METRICS_FAULTS; i++)
        json_object_set_new(object, metrics_fault_name(i), number(scope->faults[i]));
    return object;
}

static void describe_scope(json_t *object, struct metrics_scope *scope)
{
    static const char *const names[METRICS_COUNTERS] = {
        [METRICS_OPERATIONS] = "operations",
        [METRICS_ANSWERS] = "answers",
        [METRICS_DEVICE_US] = "device_us",
        [METRICS_QUARANTINES] = "quarantines",
        [METRICS_WORKER_RESTARTS] = "worker_restarts",
        [METRICS_CONTEXT_WAITS] = "context_waits",
        [METRICS_THROTTLED_US] = "throttled_us",
        [METRICS_DIFFERENCES] = "claim_differences",
    };

    for (unsigned i = 0; i < METRICS_COUNTERS; i++)
        json_object_set_new(object, names[i], number(scope->counters[i]));
    json_object_set_new(object, "faults", describe_faults(scope));
    json_object_set_new(object, "refusals", describe_refusals(scope));
    json_object_set_new(object, "since_start", describe_durations(scope, false));
    json_object_set_new(object, "last_minute", describe_durations(scope, true));
}

static json_t *describe_group(struct mediator *mediator, unsigned pool, unsigned priority)
{
    const char letter[2] = {(char)('A' + pool), '\0'};
    json_t *object = json_pack("{s:s, s:i}", "pool", letter, "priority", (int)priority);

    describe_scope(object, mediator->numbers.groups[pool][priority]);
    return object;
}

static json_t *describe_groups(struct mediator *mediator, char wanted)
{
    json_t *list = json_array();

    for (unsigned pool = 0; pool < CONFIG_POOLS_MAX; pool++) {
        for (unsigned priority = MEDIATOR_PRIORITIES; priority-- > 0;) {
            if (mediator->numbers.groups[pool][priority] &&
                (!wanted || wanted == (char)('A' + pool)))
                json_array_append_new(list, describe_group(mediator, pool, priority));
        }
    }
    return list;
}

static json_t *describe_vm(struct vm *vm)
{
    const char letter[2] = {vm_pool(vm), '\0'};
    json_t *object =
        json_pack("{s:I, s:s, s:s, s:i, s:s, s:o, s:o}", "vm_id", (json_int_t)vm->vm_id, "name",
                  vm->settings.name, "pool", letter, "priority", (int)vm_priority(vm), "state",
                  status_state(vm), "depth", number(vm_depth(vm)), "device_memory_used_bytes",
                  number(account_used_bytes(vm)));

    describe_scope(object, &vm->statistics.scope);
    return object;
}

static uint64_t used_us(const struct vm *vm)
{
    return vm->statistics.scope.counters[METRICS_DEVICE_US];
}

static int compare_use(const void *left, const void *right)
{
    const struct vm *a = *(struct vm *const *)left, *b = *(struct vm *const *)right;

    if (used_us(a) != used_us(b))
        return used_us(a) > used_us(b) ? -1 : 1;
    return a->vm_id < b->vm_id ? -1 : a->vm_id > b->vm_id;
}

/* Those that used most of the devices, first.  What windows' workers did is told by them, before
 * all else, as it counts for pools too.  Returns how many there are. */
static size_t list_vms(struct mediator *mediator, uint32_t vm_id, char pool, struct vm **vms)
{
    struct vm *vm, *next;
    size_t count = 0;

    HASH_ITER (hh, mediator->vms, vm, next) {
        status_measure(vm);
        if ((!vm_id || vm->vm_id == vm_id) && (!pool || vm_pool(vm) == pool))
            vms[count++] = vm;
    }
    qsort(vms, count, sizeof(struct vm *), compare_use);
    return count;
}

static json_t *describe_vms(struct mediator *mediator, uint32_t vm_id, char pool,
                            size_t *ret_left_out)
{
    struct vm **vms = calloc(HASH_COUNT(mediator->vms) + 1, sizeof(struct vm *));
    json_t *list = json_array();
    size_t count = vms ? list_vms(mediator, vm_id, pool, vms) : 0;

    for (size_t i = 0; i < count && i < VMS_MAX; i++)
        json_array_append_new(list, describe_vm(vms[i]));
    free(vms);
    *ret_left_out = count > VMS_MAX ? count - VMS_MAX : 0;
    return list;
}

static json_t *describe_devices(struct mediator *mediator)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < mediator->device_count; i++) {
        const struct device_load *load = &mediator->loads[i];

        json_array_append_new(list,
                              json_pack("{s:s, s:o, s:o, s:o, s:o}", "name", mediator->devices[i],
                                        "busy_us", number(load->busy_us), "utilization_permille",
                                        number(metrics_device_permille(mediator, i)), "switches",
                                        number(sched_switches(mediator->sched, i)), "sessions",
                                        number(load->sessions)));
    }
    return list;
}

json_t *stats_all(struct mediator *mediator, uint32_t vm_id, char pool)
{
    size_t left_out;
    json_t *vms = describe_vms(mediator, vm_id, pool, &left_out);

    return json_pack("{s:I, s:o, s:I, s:o, s:o}", "uptime_s",
                     (json_int_t)((clock_monotonic_ns() - mediator->started_ns) / NS_PER_S), "vms",
                     vms, "vms_left_out", (json_int_t)left_out, "pools",
                     describe_groups(mediator, pool), "devices", describe_devices(mediator));
}

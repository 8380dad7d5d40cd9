/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The numbers as Prometheus reads them.
 *
 *   somebody asks ─▶ exposition_begin() ─▶ on_turn(): VMs, pools, devices, GPUs, one after
 *                                             │       the other, for SLICE_NS a turn of the loop
 *                                             ▼
 *                    a text a family ─▶ one text ─▶ metrics_server_answer()
 *
 * The format wants all samples of a family together, and a VM has samples in many families:
 * so each family has a text of its own until the end.  Work of VMs goes on between two turns,
 * so samples may be some milliseconds apart; those of one histogram never are.
 *
 * docs/monitoring.md lists the families; a test compares.
 */
#include "mediator/mediator.h"

#include "protocol/protocol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLICE_NS (200 * NS_PER_US)
#define LABELS_BYTES 512

enum family {
    INFO,
    START_TIME,
    READY,
    MEMORY,
    EXPOSITION_TIME,
    WAIT,
    RUN,
    TURN,
    OPERATIONS,
    ANSWERS,
    DEVICE_TIME,
    REFUSALS,
    FAULTS,
    QUARANTINES,
    WORKER_RESTARTS,
    CONTEXT_WAITS,
    THROTTLED_TIME,
    CLAIM_DIFFERENCES,
    POOL_ENABLED,
    POOL_VMS,
    POOL_WAITING,
    VM_INFO,
    VM_OPERATIONS,
    VM_ANSWERS,
    VM_DEVICE_TIME,
    VM_REFUSALS,
    VM_FAULTS,
    VM_WORKER_RESTARTS,
    VM_CONTEXT_WAITS,
    VM_THROTTLED_TIME,
    VM_DEPTH,
    VM_RUNNING,
    VM_SESSIONS,
    VM_MEMORY,
    VM_MEMORY_MAX,
    VM_WAIT,
    VM_RUN,
    VM_TURN,
    DEVICE_USABLE,
    DEVICE_BUSY,
    DEVICE_UTILIZATION,
    DEVICE_SWITCHES,
    DEVICE_SWITCH,
    DEVICE_SESSIONS,
    DEVICE_CONTEXTS,
    DEVICE_CONTEXTS_WAITING,
    GPU_INFO,
    GPU_UP,
    GPU_UTILIZATION,
    GPU_MEMORY,
    GPU_MEMORY_USED,
    GPU_TEMPERATURE,
    GPU_POWER,
    GPU_XIDS,
    GPU_LOSSES,
    GPU_RESETS,
    FAMILIES,
};

#define FAMILY(index, name_, type_, help_) [index] = {"vgpu_" name_, type_, help_}

static const struct {
    const char *name, *type, *help;
} families[FAMILIES] = {
    FAMILY(INFO, "mediator_info", "gauge", "The mediator's version; always 1."),
    FAMILY(START_TIME, "start_time_seconds", "gauge", "When the mediator began, since 1970."),
    FAMILY(READY, "ready", "gauge",
           "1 when work may run, 0 while an earlier mediator's is settled."),
    FAMILY(MEMORY, "resident_memory_bytes", "gauge", "Memory of the mediator itself."),
    FAMILY(EXPOSITION_TIME, "exposition_seconds_total", "counter",
           "Time of the mediator's loop that making this text took."),
    FAMILY(WAIT, "queue_wait_seconds", "histogram", "From work that waits to its grant."),
    FAMILY(RUN, "run_seconds", "histogram",
           "From a grant to its return; in a long grant, each operation."),
    FAMILY(TURN, "turn_seconds", "histogram",
           "From work that waits to its grant's return; in a long grant, each operation."),
    FAMILY(OPERATIONS, "operations_total", "counter", "Operations that ran."),
    FAMILY(ANSWERS, "answers_total", "counter", "Answers to file requests."),
    FAMILY(DEVICE_TIME, "device_time_seconds_total", "counter", "Device time used."),
    FAMILY(REFUSALS, "refusals_total", "counter", "Requests and sessions refused, by reason."),
    FAMILY(FAULTS, "faults_total", "counter", "What went wrong with VMs' work, by kind."),
    FAMILY(QUARANTINES, "quarantines_total", "counter", "Quarantines that began by themselves."),
    FAMILY(WORKER_RESTARTS, "worker_restarts_total", "counter", "Workers that died at work."),
    FAMILY(CONTEXT_WAITS, "context_waits_total", "counter",
           "Sessions that had to wait for a context of a GPU."),
    FAMILY(THROTTLED_TIME, "throttled_seconds_total", "counter",
           "Time for which its VM's limits kept a session's work waiting."),
    FAMILY(CLAIM_DIFFERENCES, "claim_differences_total", "counter",
           "File requests that claimed another pool or priority than the registry's."),
    FAMILY(POOL_ENABLED, "pool_enabled", "gauge", "1 for a pool whose VMs may work."),
    FAMILY(POOL_VMS, "pool_vms", "gauge", "VMs of a pool at a priority."),
    FAMILY(POOL_WAITING, "pool_waiting", "gauge", "Places of VMs that wait for their turn."),
    FAMILY(VM_INFO, "vm_info", "gauge", "A VM's name, pool, priority and state; always 1."),
    FAMILY(VM_OPERATIONS, "vm_operations_total", "counter", "Operations that ran."),
    FAMILY(VM_ANSWERS, "vm_answers_total", "counter", "Answers to file requests."),
    FAMILY(VM_DEVICE_TIME, "vm_device_time_seconds_total", "counter", "Device time used."),
    FAMILY(VM_REFUSALS, "vm_refusals_total", "counter", "Requests and sessions refused."),
    FAMILY(VM_FAULTS, "vm_faults_total", "counter", "What went wrong with its work."),
    FAMILY(VM_WORKER_RESTARTS, "vm_worker_restarts_total", "counter", "Workers that died at work."),
    FAMILY(VM_CONTEXT_WAITS, "vm_context_waits_total", "counter",
           "Sessions that had to wait for a context of a GPU."),
    FAMILY(VM_THROTTLED_TIME, "vm_throttled_seconds_total", "counter",
           "Time for which its limits kept a session's work waiting."),
    FAMILY(VM_DEPTH, "vm_queue_depth", "gauge", "Operations that are known to wait."),
    FAMILY(VM_RUNNING, "vm_running", "gauge", "VMs that hold a device's grant: 1 or 0."),
    FAMILY(VM_SESSIONS, "vm_sessions", "gauge", "Window sessions."),
    FAMILY(VM_MEMORY, "vm_device_memory_bytes", "gauge", "Device memory held."),
    FAMILY(VM_MEMORY_MAX, "vm_device_memory_limit_bytes", "gauge", "Device memory allowed."),
    FAMILY(VM_WAIT, "vm_queue_wait_seconds", "summary",
           "From work that waits to its grant; quantiles of the last minute."),
    FAMILY(VM_RUN, "vm_run_seconds", "summary",
           "From a grant to its return, or of each operation; quantiles of the last minute."),
    FAMILY(VM_TURN, "vm_turn_seconds", "summary",
           "From work that waits to its end; quantiles of the last minute."),
    FAMILY(DEVICE_USABLE, "device_usable", "gauge", "1 for a device that takes work."),
    FAMILY(DEVICE_BUSY, "device_busy_seconds_total", "counter", "Device time that VMs used."),
    FAMILY(DEVICE_UTILIZATION, "device_utilization_ratio", "gauge",
           "Share of the time since the look before in which VMs used the device."),
    FAMILY(DEVICE_SWITCHES, "device_switches_total", "counter",
           "Grants to another VM than the one before."),
    FAMILY(DEVICE_SWITCH, "device_switch_seconds", "histogram",
           "From a grant's return to the first operation of another VM that waited."),
    FAMILY(DEVICE_SESSIONS, "device_sessions", "gauge", "Sessions that are on the device."),
    FAMILY(DEVICE_CONTEXTS, "device_contexts", "gauge", "Contexts of a GPU."),
    FAMILY(DEVICE_CONTEXTS_WAITING, "device_contexts_waiting", "gauge",
           "Sessions that wait for a context."),
    FAMILY(GPU_INFO, "gpu_info", "gauge", "A GPU's name and address; always 1."),
    FAMILY(GPU_UP, "gpu_up", "gauge", "1 for a GPU that answers."),
    FAMILY(GPU_UTILIZATION, "gpu_utilization_ratio", "gauge",
           "Share of the time in which a kernel was at work, as the driver says."),
    FAMILY(GPU_MEMORY, "gpu_memory_bytes", "gauge", "Memory of a GPU."),
    FAMILY(GPU_MEMORY_USED, "gpu_memory_used_bytes", "gauge", "Of that, what cannot be allocated."),
    FAMILY(GPU_TEMPERATURE, "gpu_temperature_celsius", "gauge", "Heat of a GPU."),
    FAMILY(GPU_POWER, "gpu_power_watts", "gauge", "Power that a GPU takes."),
    FAMILY(GPU_XIDS, "gpu_xid_errors_total", "counter", "Errors that the driver reported."),
    FAMILY(GPU_LOSSES, "gpu_losses_total", "counter", "How often a GPU was lost."),
    FAMILY(GPU_RESETS, "gpu_resets_total", "counter", "How often a GPU came back after a loss."),
};

/* Gauges of the VMs that have no label of their own. */
struct others {
    uint64_t count, depth, running, sessions, memory_bytes, memory_max_bytes;
};

struct exposition {
    struct mediator *mediator;
    uv_idle_t idle;
    uint32_t *vm_ids; /* when it began; those that went since are passed over */
    size_t vm_count;
    size_t next; /* of all that there is to tell: VMs, groups, ... */
    struct others others;
    uint64_t pool_vms[CONFIG_POOLS_MAX][MEDIATOR_PRIORITIES];
    struct metrics_text texts[FAMILIES];
    uint64_t worked_ns;
};

static void put(struct exposition *exposition, enum family family, const char *labels,
                uint64_t value, unsigned decimals)
{
    metrics_text_sample(&exposition->texts[family], families[family].name, "", labels, value,
                        decimals);
}

/* --- VMs ------------------------------------------------------------------------------------ */

static void put_vm_counters(struct exposition *exposition, const char *labels,
                            const struct metrics_scope *scope)
{
    const uint64_t *counters = scope->counters;

    put(exposition, VM_OPERATIONS, labels, counters[METRICS_OPERATIONS], 0);
    put(exposition, VM_ANSWERS, labels, counters[METRICS_ANSWERS], 0);
    put(exposition, VM_DEVICE_TIME, labels, counters[METRICS_DEVICE_US], 6);
    put(exposition, VM_REFUSALS, labels, metrics_scope_refusals(scope), 0);
    put(exposition, VM_FAULTS, labels, metrics_scope_faults(scope), 0);
    put(exposition, VM_WORKER_RESTARTS, labels, counters[METRICS_WORKER_RESTARTS], 0);
    put(exposition, VM_CONTEXT_WAITS, labels, counters[METRICS_CONTEXT_WAITS], 0);
    put(exposition, VM_THROTTLED_TIME, labels, counters[METRICS_THROTTLED_US], 6);
}

static void put_vm_durations(struct exposition *exposition, const char *labels,
                             struct metrics_scope *scope)
{
    static const enum family of[METRICS_DURATIONS] = {
        [METRICS_WAIT] = VM_WAIT, [METRICS_RUN] = VM_RUN, [METRICS_TOTAL] = VM_TURN};

    for (unsigned i = 0; i < METRICS_DURATIONS; i++) {
        struct metrics_summary recent =
            metrics_latency_recent(&scope->durations[i], clock_monotonic_ns());

        metrics_text_summary(&exposition->texts[of[i]], families[of[i]].name, labels, &recent,
                             &scope->durations[i]);
    }
}

static void put_vm_gauges(struct exposition *exposition, const char *labels,
                          const struct others *gauges)
{
    put(exposition, VM_DEPTH, labels, gauges->depth, 0);
    put(exposition, VM_RUNNING, labels, gauges->running, 0);
    put(exposition, VM_SESSIONS, labels, gauges->sessions, 0);
    put(exposition, VM_MEMORY, labels, gauges->memory_bytes, 0);
    put(exposition, VM_MEMORY_MAX, labels, gauges->memory_max_bytes, 0);
}

static void add_gauges(struct others *gauges, const struct vm *vm)
{
    gauges->count++;
    gauges->depth += vm_depth(vm);
    gauges->running += vm_runs(vm);
    gauges->sessions += vm->window_count;
    gauges->memory_bytes += account_used_bytes(vm);
    gauges->memory_max_bytes += (uint64_t)vm_device_memory_mib(vm) << 20;
}

static void put_vm_info(struct exposition *exposition, const struct vm *vm, const char *labels)
{
    const char pool[2] = {vm_pool(vm), '\0'};
    char all[LABELS_BYTES];

    text_copy(all, sizeof(all), labels);
    metrics_label(all, sizeof(all), "name", vm->settings.name);
    metrics_label(all, sizeof(all), "pool", pool);
    metrics_label(all, sizeof(all), "priority", protocol_priority_name(vm_priority(vm)));
    metrics_label(all, sizeof(all), "state", status_state(vm));
    put(exposition, VM_INFO, all, 1, 0);
}

static void tell_vm(struct exposition *exposition, uint32_t vm_id)
{
    struct vm *vm = vm_find(exposition->mediator, vm_id);
    char labels[LABELS_BYTES] = "";
    struct others gauges = {0};

    if (!vm)
        return;
    status_measure(vm);
    exposition->pool_vms[vm_pool(vm) - 'A'][vm_priority(vm)]++;
    if (!vm->statistics.labelled) {
        add_gauges(&exposition->others, vm);
        return;
    }
    add_gauges(&gauges, vm);
    metrics_label_number(labels, sizeof(labels), "vm", vm_id);
    put_vm_info(exposition, vm, labels);
    put_vm_counters(exposition, labels, &vm->statistics.scope);
    put_vm_durations(exposition, labels, &vm->statistics.scope);
    put_vm_gauges(exposition, labels, &gauges);
}

/* Also when none is left of them: what they did counts. */
static void tell_others(struct exposition *exposition)
{
    struct metrics_scope *scope = &exposition->mediator->numbers.others;
    static const char labels[] = "vm=\"other\"";

    if (exposition->others.count == 0 && metrics_latency_count(&scope->durations[0]) == 0)
        return;
    put_vm_counters(exposition, labels, scope);
    put_vm_durations(exposition, labels, scope);
    put_vm_gauges(exposition, labels, &exposition->others);
}

/* --- pools ------------------------------------------------------------------------------------ */

static void put_refusals(struct exposition *exposition, const char *labels,
                         const struct metrics_scope *scope)
{
    for (unsigned i = 0; i < METRICS_REFUSALS; i++) {
        char all[LABELS_BYTES];

        text_copy(all, sizeof(all), labels);
        metrics_label(all, sizeof(all), "reason", metrics_refusal_name(i));
        put(exposition, REFUSALS, all, scope->refusals[i], 0);
    }
}

static void put_faults(struct exposition *exposition, const char *labels,
                       const struct metrics_scope *scope)
{
    for (unsigned i = 0; i < METRICS_FAULTS; i++) {
        char all[LABELS_BYTES];

        text_copy(all, sizeof(all), labels);
        metrics_label(all, sizeof(all), "kind", metrics_fault_name(i));
        put(exposition, FAULTS, all, scope->faults[i], 0);
    }
}

static void put_group(struct exposition *exposition, const char *labels,
                      const struct metrics_scope *scope)
{
    static const enum family durations[METRICS_DURATIONS] = {
        [METRICS_WAIT] = WAIT, [METRICS_RUN] = RUN, [METRICS_TOTAL] = TURN};
    const uint64_t *counters = scope->counters;

    for (unsigned i = 0; i < METRICS_DURATIONS; i++)
        metrics_text_histogram(&exposition->texts[durations[i]], families[durations[i]].name,
                               labels, &scope->durations[i]);
    put_refusals(exposition, labels, scope);
    put_faults(exposition, labels, scope);
    put(exposition, OPERATIONS, labels, counters[METRICS_OPERATIONS], 0);
    put(exposition, ANSWERS, labels, counters[METRICS_ANSWERS], 0);
    put(exposition, DEVICE_TIME, labels, counters[METRICS_DEVICE_US], 6);
    put(exposition, QUARANTINES, labels, counters[METRICS_QUARANTINES], 0);
    put(exposition, WORKER_RESTARTS, labels, counters[METRICS_WORKER_RESTARTS], 0);
    put(exposition, CONTEXT_WAITS, labels, counters[METRICS_CONTEXT_WAITS], 0);
    put(exposition, THROTTLED_TIME, labels, counters[METRICS_THROTTLED_US], 6);
    put(exposition, CLAIM_DIFFERENCES, labels, counters[METRICS_DIFFERENCES], 0);
}

static void tell_group(struct exposition *exposition, size_t index)
{
    unsigned pool = (unsigned)index / MEDIATOR_PRIORITIES, priority = index % MEDIATOR_PRIORITIES;
    const struct metrics_scope *scope = exposition->mediator->numbers.groups[pool][priority];
    const char letter[2] = {(char)('A' + pool), '\0'};
    char labels[LABELS_BYTES] = "";

    metrics_label(labels, sizeof(labels), "pool", letter);
    metrics_label(labels, sizeof(labels), "priority", protocol_priority_name(priority));
    if (mediator_find_pool(exposition->mediator, letter[0]))
        put(exposition, POOL_VMS, labels, exposition->pool_vms[pool][priority], 0);
    if (scope)
        put_group(exposition, labels, scope);
}

static void tell_pool(struct exposition *exposition, size_t index)
{
    const struct config_pool *pool;
    char letter[2] = "", labels[LABELS_BYTES] = "";

    if (index >= exposition->mediator->pool_count)
        return;
    pool = &exposition->mediator->pools[index];
    letter[0] = pool->id;
    metrics_label(labels, sizeof(labels), "pool", letter);
    put(exposition, POOL_ENABLED, labels, !pool->disabled, 0);
    put(exposition, POOL_WAITING, labels, sched_waiting(exposition->mediator->sched, pool->id), 0);
}

/* --- devices and GPUs ---------------------------------------------------------------------------
 */

static void tell_device(struct exposition *exposition, size_t index)
{
    struct mediator *mediator = exposition->mediator;
    const struct sched_gate *gate = &mediator->gates[index];
    struct device_load *load = &mediator->loads[index];
    char labels[LABELS_BYTES] = "";

    if (index >= mediator->device_count)
        return;
    metrics_label(labels, sizeof(labels), "device", mediator->devices[index]);
    put(exposition, DEVICE_USABLE, labels, devices_usable(mediator, mediator->devices[index], NULL),
        0);
    put(exposition, DEVICE_BUSY, labels, load->busy_us, 6);
    put(exposition, DEVICE_UTILIZATION, labels, metrics_device_permille(mediator, (unsigned)index),
        3);
    put(exposition, DEVICE_SWITCHES, labels, sched_switches(mediator->sched, (unsigned)index), 0);
    metrics_text_histogram(&exposition->texts[DEVICE_SWITCH], families[DEVICE_SWITCH].name, labels,
                           &load->switches);
    put(exposition, DEVICE_SESSIONS, labels, load->sessions, 0);
    if (strcmp(exec_backend_of(mediator->devices[index]), "cuda") != 0)
        return;
    put(exposition, DEVICE_CONTEXTS, labels, gate->held, 0);
    put(exposition, DEVICE_CONTEXTS_WAITING, labels, contexts_waiting(mediator, (unsigned)index),
        0);
}

/* What is not known is not told. */
static void put_known(struct exposition *exposition, enum family family, const char *labels,
                      const struct gpu_value *value, unsigned decimals)
{
    if (value->known)
        put(exposition, family, labels, value->value, decimals);
}

static void put_gpu(struct exposition *exposition, const struct gpu_status *gpu)
{
    const struct gpu_values *values = &gpu->values;
    char labels[LABELS_BYTES] = "", all[LABELS_BYTES];

    metrics_label(labels, sizeof(labels), "gpu", gpu->uuid);
    text_copy(all, sizeof(all), labels);
    metrics_label_number(all, sizeof(all), "index", gpu->index);
    metrics_label(all, sizeof(all), "name", gpu->name);
    metrics_label(all, sizeof(all), "pci_address", gpu->pci_address);
    put(exposition, GPU_INFO, all, 1, 0);
    put(exposition, GPU_UP, labels, gpu->sampled_ns > 0 && !gpu->lost && !gpu->silent, 0);
    put_known(exposition, GPU_UTILIZATION, labels, &values->utilization_percent, 2);
    put_known(exposition, GPU_MEMORY, labels, &values->memory_total_bytes, 0);
    put_known(exposition, GPU_MEMORY_USED, labels, &values->memory_used_bytes, 0);
    put_known(exposition, GPU_TEMPERATURE, labels, &values->temperature_c, 0);
    put_known(exposition, GPU_POWER, labels, &values->power_mw, 3);
    put(exposition, GPU_XIDS, labels, gpu->xid_count, 0);
    put(exposition, GPU_LOSSES, labels, gpu->losses, 0);
    put(exposition, GPU_RESETS, labels, gpu->returns, 0);
}

static void tell_gpu(struct exposition *exposition, size_t index)
{
    struct gpus *gpus = &exposition->mediator->gpus;

    if (!gpus->health)
        return;
    if (index == 0)
        gpu_health_read(gpus->health, gpus->snapshot);
    if (index < gpus->snapshot->count && gpus->snapshot->gpus[index].uuid[0])
        put_gpu(exposition, &gpus->snapshot->gpus[index]);
}

/* --- the mediator
 * ---------------------------------------------------------------------------------- */

/* 0: not known. */
static uint64_t resident_bytes(void)
{
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    if (file && fscanf(file, "%*u %llu", &pages) != 1) /* NOLINT: the kernel writes it */
        pages = 0;
    if (file)
        fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void tell_mediator(struct exposition *exposition)
{
    const struct mediator *mediator = exposition->mediator;
    uint64_t age_ns = clock_monotonic_ns() - mediator->started_ns;
    char labels[LABELS_BYTES] = "";

    metrics_label(labels, sizeof(labels), "version", VGPU_PACKAGE_VERSION);
    put(exposition, INFO, labels, 1, 0);
    put(exposition, START_TIME, "", (clock_realtime_ns() - age_ns) / NS_PER_MS, 3);
    put(exposition, READY, "", mediator_has_recovered(mediator), 0);
    put(exposition, MEMORY, "", resident_bytes(), 0);
    put(exposition, EXPOSITION_TIME, "", mediator->numbers.exposition_ns / NS_PER_US, 6);
}

/* --- one after the other
 * --------------------------------------------------------------------------- */

static const struct {
    void (*tell)(struct exposition *exposition, size_t index);
    size_t count;
} parts[] = {
    {tell_group, (size_t)CONFIG_POOLS_MAX *MEDIATOR_PRIORITIES},
    {tell_pool, CONFIG_POOLS_MAX},
    {tell_device, SCHED_DEVICES_MAX},
    {tell_gpu, GPU_HEALTH_GPUS_MAX},
};

/* One thing more; false when all is told. */
static bool step(struct exposition *exposition)
{
    size_t index = exposition->next++;

    if (index < exposition->vm_count) {
        tell_vm(exposition, exposition->vm_ids[index]);
        return true;
    }
    index -= exposition->vm_count;
    for (size_t part = 0; part < VGPU_ARRAY_LENGTH(parts); part++) {
        if (index < parts[part].count) {
            parts[part].tell(exposition, index);
            return true;
        }
        index -= parts[part].count;
    }
    tell_others(exposition);
    tell_mediator(exposition);
    return false;
}

static void on_closed(uv_handle_t *handle)
{
    struct exposition *exposition = handle->data;

    for (unsigned i = 0; i < FAMILIES; i++)
        metrics_text_clear(&exposition->texts[i]);
    free(exposition->vm_ids);
    free(exposition);
}

/* A family without a sample is not told. */
static void join(struct exposition *exposition, struct metrics_text *text)
{
    for (unsigned i = 0; i < FAMILIES; i++) {
        const struct metrics_text *part = &exposition->texts[i];

        text->failed = text->failed || part->failed;
        if (part->bytes == 0)
            continue;
        metrics_text_family(text, families[i].name, families[i].type, families[i].help);
        metrics_text_append(text, part->data, part->bytes);
    }
}

static void finish(struct exposition *exposition)
{
    struct numbers *numbers = &exposition->mediator->numbers;
    struct metrics_text text = {0};

    join(exposition, &text);
    numbers->exposition = NULL;
    uv_close((uv_handle_t *)&exposition->idle, on_closed);
    metrics_server_answer(numbers->server, &text);
}

static void on_turn(uv_idle_t *idle)
{
    struct exposition *exposition = idle->data;
    struct numbers *numbers = &exposition->mediator->numbers;
    uint64_t began_ns = clock_monotonic_ns(), now_ns = began_ns;
    bool more = true;

    while (more && now_ns - began_ns < SLICE_NS) {
        more = step(exposition);
        now_ns = clock_monotonic_ns();
    }
    if (!more)
        finish(exposition);
    numbers->exposition_ns += clock_monotonic_ns() - began_ns;
}

static void list_vms(struct exposition *exposition)
{
    struct vm *vm, *next;

    exposition->vm_ids = calloc(HASH_COUNT(exposition->mediator->vms) + 1, sizeof(uint32_t));
    if (!exposition->vm_ids)
        return;
    HASH_ITER (hh, exposition->mediator->vms, vm, next)
        exposition->vm_ids[exposition->vm_count++] = vm->vm_id;
}

void exposition_begin(struct mediator *mediator)
{
    struct exposition *exposition = calloc(1, sizeof(*exposition));

    if (!exposition)
        abort(); /* as in sched/: a few kilobytes */
    exposition->mediator = mediator;
    list_vms(exposition);
    uv_idle_init(&mediator->loop, &exposition->idle);
    exposition->idle.data = exposition;
    uv_idle_start(&exposition->idle, on_turn);
    mediator->numbers.exposition = exposition;
}

void exposition_cancel(struct exposition *exposition)
{
    if (exposition)
        uv_close((uv_handle_t *)&exposition->idle, on_closed);
}

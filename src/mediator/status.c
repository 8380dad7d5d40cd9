/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the mediator tells of itself: mediator, devices, pools, VMs, queues.  Nothing
 * here changes anything but the statistics' own marks.
 */
#include "mediator/mediator.h"

#include "control/control.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VMS_MAX 2000u /* of an answer: some two megabytes, and no longer a turn of the loop */

static json_t *letter(char pool)
{
    const char text[2] = {pool, '\0'};

    return json_string(text);
}

static json_t *number(uint64_t value)
{
    return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

static json_t *number_or_null(uint64_t value)
{
    return value ? number(value) : json_null();
}

/* null where it is not known. */
static json_t *known_number(uint64_t value)
{
    return value ? number(value) : json_null();
}

json_t *status_hello(const struct mediator *mediator)
{
    return json_pack("{s:i, s:s, s:I, s:I, s:b}", "version", CONTROL_VERSION, "mediator",
                     VGPU_PACKAGE_VERSION, "pid", (json_int_t)getpid(), "uptime_s",
                     (json_int_t)((clock_monotonic_ns() - mediator->started_ns) / NS_PER_S),
                     "ready", mediator->ready);
}

json_t *status_test_mode(const struct test_mode *test)
{
    json_t *waiting = json_array();
    struct vm *vm, *next;

    if (test->active) {
        HASH_ITER (hh, test->mediator->vms, vm, next) {
            if (vm_waiting(vm) > 0)
                json_array_append_new(waiting, json_integer(vm->vm_id));
        }
    }
    return json_pack("{s:b, s:b, s:b, s:I, s:o}", "on", test->active, "holding",
                     test->active && test->holding, "asks",
                     test->active && test->question != TEST_MODE_QUIET, "hold_until",
                     (json_int_t)(test->active ? test->hold_until : 0), "waiting", waiting);
}

static json_t *describe_mediator(const struct mediator *mediator)
{
    const struct config *config = mediator->config;
    json_t *object = status_hello(mediator);

    json_object_set_new(object, "database",
                        config->database[0] ? json_string(config->database) : json_null());
    json_object_set_new(object, "policy", json_string(sched_policy_name(config->policy)));
    json_object_set_new(object, "file_channel", json_boolean(mediator->channel != NULL));
    json_object_set_new(object, "window_channel", json_boolean(mediator->windows != NULL));
    json_object_set_new(object, "stopping", json_boolean(mediator->stopping));
    json_object_set_new(object, "test_mode", status_test_mode(&mediator->test));
    return object;
}

/* --- devices and pools ------------------------------------------------------------------- */

/* Those that are there or will be with a grant that is out; a processor has none. */
static void describe_contexts(const struct mediator *mediator, unsigned device, json_t *object)
{
    const struct sched_gate *gate = &mediator->gates[device];

    if (strcmp(exec_backend_of(mediator->devices[device]), "cuda") != 0)
        return;
    json_object_set_new(object, "contexts", json_integer(gate->held));
    json_object_set_new(object, "contexts_max", gate->cap ? json_integer(gate->cap) : json_null());
    json_object_set_new(object, "contexts_max_per_vm",
                        gate->owner_cap ? json_integer(gate->owner_cap) : json_null());
    json_object_set_new(object, "contexts_waiting",
                        json_integer(contexts_waiting(mediator, device)));
    json_object_set_new(object, "context_bytes",
                        known_number(devices_context_bytes(mediator, mediator->devices[device])));
}

static json_t *describe_device(const struct mediator *mediator, unsigned device)
{
    const struct sched_vm *running = sched_running(mediator->sched, device);
    char why[CONFIG_REASON_BYTES] = "";
    bool usable = devices_usable(mediator, mediator->devices[device], why);
    bool failed = devices_failed(mediator, mediator->devices[device]);
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:o, s:I, s:I}", "name", mediator->devices[device], "state",
        usable   ? "usable"
        : failed ? "unusable"
                 : "checking",
        "reason", why, "running", running ? json_integer(sched_vm_id(running)) : json_null(),
        "sessions", (json_int_t)mediator->loads[device].sessions, "switches",
        (json_int_t)sched_switches(mediator->sched, device));

    describe_contexts(mediator, device, object);
    return object;
}

static json_t *describe_devices(const struct mediator *mediator)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < mediator->device_count; i++)
        json_array_append_new(list, describe_device(mediator, i));
    return list;
}

struct pool_counts {
    uint32_t vms, running;
};

static void count_vms(const struct mediator *mediator, struct pool_counts counts[26])
{
    struct vm *vm, *next;

    HASH_ITER (hh, mediator->vms, vm, next) {
        struct pool_counts *at = &counts[vm_pool(vm) - 'A'];

        at->vms++;
        at->running += vm_runs(vm);
    }
}

static json_t *describe_pools(const struct mediator *mediator)
{
    struct pool_counts counts[26] = {0};
    json_t *list = json_array();

    count_vms(mediator, counts);
    for (size_t i = 0; i < mediator->pool_count; i++) {
        const struct config_pool *pool = &mediator->pools[i];
        struct sched_policy_config policy = sched_pool_policy(mediator->sched, pool->id);

        json_array_append_new(
            list, json_pack("{s:o, s:s, s:s, s:b, s:s, s:s, s:I, s:b, s:s, s:i, s:I, s:I, s:I}",
                            "id", letter(pool->id), "name", pool->name, "device", pool->device,
                            "enabled", !pool->disabled, "sharing",
                            pool->mode == SCHED_POOLS_SHARED ? "shared" : "independent", "policy",
                            sched_policy_name(policy.type), "aging_ms", (json_int_t)policy.aging_ms,
                            "demand", policy.demand, "placement", pool->pack ? "pack" : "spread",
                            "session_devices", (int)pool->session_devices, "vms",
                            (json_int_t)counts[pool->id - 'A'].vms, "waiting",
                            (json_int_t)sched_waiting(mediator->sched, pool->id), "running",
                            (json_int_t)counts[pool->id - 'A'].running));
    }
    return list;
}

/* --- VMs ---------------------------------------------------------------------------------- */

/* Operations that are known to wait.  A worker tells how many it sees when it asks for
 * its turn; more may have come since. */
/* Those that its sessions are on, its file session's with them. */
static json_t *describe_vm_devices(const struct vm *vm)
{
    json_t *list = json_array();
    const struct vm_place *place;

    STAILQ_FOREACH (place, &vm->places, in_vm) {
        if (place->sessions > 0)
            json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:b}", "device",
                                                  vm->mediator->devices[place->device], "sessions",
                                                  (json_int_t)place->sessions, "depth",
                                                  (json_int_t)vm_place_depth(place), "running",
                                                  place->running != NULL));
    }
    return list;
}

void status_measure(struct vm *vm)
{
    struct window_session *ws;

    TAILQ_FOREACH (ws, &vm->windows, in_vm)
        window_session_measure(ws);
}

static void measure_rate(struct vm *vm)
{
    struct vm_statistics *statistics = &vm->statistics;
    uint64_t now_ns = clock_monotonic_ns(), passed_ns = now_ns - statistics->look_ns;
    uint64_t operations = statistics->scope.counters[METRICS_OPERATIONS];

    if (passed_ns < NS_PER_S)
        return;
    statistics->rate = (operations - statistics->look_operations) * (NS_PER_S / NS_PER_MS) /
                       (passed_ns / NS_PER_MS);
    statistics->look_operations = operations;
    statistics->look_ns = now_ns;
}

static json_t *describe_times(struct metrics_latency *latency)
{
    struct metrics_summary recent = metrics_latency_recent(latency, clock_monotonic_ns());

    return json_pack("{s:o, s:o, s:o}", "count", number(recent.count), "p50_us",
                     number(recent.p50_us), "p99_us", number(recent.p99_us));
}

/* Of one of these devices, the most where they differ; 0: one's is not known. */
static uint64_t context_bytes_on(const struct mediator *mediator, const char *names)
{
    char name[CONFIG_DEVICE_BYTES];
    uint64_t most = 0;

    for (unsigned i = 0; text_word(names, i, name, sizeof(name)); i++) {
        uint64_t bytes = devices_context_bytes(mediator, name);

        if (bytes == 0)
            return 0;
        most = bytes > most ? bytes : most;
    }
    return most;
}

struct contexts {
    uint64_t count, bytes; /* what they take of their GPUs */
    bool unknown;          /* what one of them takes is not */
};

static void count_contexts(const struct session *session, const char *devices,
                           struct contexts *contexts)
{
    uint64_t count = session->ops->contexts(session);
    uint64_t bytes = context_bytes_on(session->vm->mediator, devices);

    contexts->count += count;
    contexts->bytes += count * bytes;
    contexts->unknown = contexts->unknown || (count > 0 && bytes == 0);
}

/* Of all its sessions' workers, which say so themselves. */
static void describe_vm_contexts(const struct vm *vm, json_t *object)
{
    const struct window_session *ws;
    struct contexts contexts = {0};

    TAILQ_FOREACH (ws, &vm->windows, in_vm)
        count_contexts(&ws->session, ws->devices, &contexts);
    count_contexts(&vm->file->session, vm->file->device, &contexts);
    json_object_set_new(object, "contexts", number(contexts.count));
    json_object_set_new(object, "context_bytes",
                        contexts.unknown ? json_null() : number(contexts.bytes));
}

/* Sessions that wait for a context, and those of them that wait as it has so many already. */
static void describe_contexts_waiting(const struct vm *vm, json_t *object)
{
    const struct vm_place *place;
    const struct session *session;
    uint64_t count = 0, own = 0;

    STAILQ_FOREACH (place, &vm->places, in_vm) {
        count += place->gated_count;
        TAILQ_FOREACH (session, &place->gated, in_order)
            own += contexts_waits_for_own(session);
    }
    json_object_set_new(object, "contexts_waiting", number(count));
    json_object_set_new(object, "contexts_waiting_own", number(own));
}

/* What it may do at a time; null is no bound. */
static json_t *describe_limits(const struct config_vm *settings)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "weight",
                     number_or_null(settings->weight), "request_rate",
                     number_or_null(settings->request_rate), "request_burst",
                     number_or_null(settings->request_burst), "device_share_percent",
                     number_or_null(settings->device_share_percent), "queue_depth_max",
                     number_or_null(settings->queue_depth_max), "inflight_ops_max",
                     number_or_null(settings->inflight_ops_max), "inflight_kib_max",
                     number_or_null(settings->inflight_kib_max));
}

static json_t *describe_refusals(const uint64_t *refusals)
{
    return json_pack("{s:o, s:o, s:o}", "rate", number(refusals[METRICS_REFUSED_RATE]),
                     "device_share", number(refusals[METRICS_REFUSED_DEVICE_SHARE]), "queue_depth",
                     number(refusals[METRICS_REFUSED_QUEUE_DEPTH]));
}

const char *status_state(const struct vm *vm)
{
    if (quarantine_is_on(vm))
        return "quarantined";
    return vm->refusal[0] ? "refused" : "active";
}

static json_t *describe_faults(const struct vm *vm)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "worker",
                     number(vm->statistics.scope.faults[METRICS_FAULT_WORKER]), "kernel",
                     number(vm->statistics.scope.faults[METRICS_FAULT_KERNEL]), "time_limit",
                     number(vm->statistics.scope.faults[METRICS_FAULT_TIME_LIMIT]), "rings",
                     number(vm->statistics.scope.faults[METRICS_FAULT_RINGS]));
}

static json_t *describe_vm(struct vm *vm)
{
    struct vm_statistics *statistics = &vm->statistics;
    const uint64_t *counters = statistics->scope.counters;
    json_t *object;

    status_measure(vm);
    measure_rate(vm);
    object = json_pack("{s:I, s:s, s:s, s:b, s:o, s:i, s:s, s:s, s:I, s:I, s:I, s:b}", "vm_id",
                       (json_int_t)vm->vm_id, "name", vm->settings.name, "uuid", vm->settings.uuid,
                       "registered", vm->registered, "pool", letter(vm_pool(vm)), "priority",
                       (int)vm_priority(vm), "state", status_state(vm), "reason", vm->refusal,
                       "sessions", (json_int_t)vm->window_count, "sessions_max",
                       (json_int_t)vm_sessions_max(vm), "depth", (json_int_t)vm_depth(vm),
                       "running", vm_runs(vm));
    json_object_set_new(object, "devices", describe_vm_devices(vm));
    json_object_set_new(object, "operations", number(counters[METRICS_OPERATIONS]));
    json_object_set_new(object, "device_us", number(counters[METRICS_DEVICE_US]));
    json_object_set_new(object, "rate", number(statistics->rate));
    json_object_set_new(object, "answers", number(counters[METRICS_ANSWERS]));
    json_object_set_new(object, "refusals", number(metrics_scope_refusals(&statistics->scope)));
    json_object_set_new(object, "refusals_by", describe_refusals(statistics->scope.refusals));
    json_object_set_new(object, "limits", describe_limits(&vm->settings));
    json_object_set_new(object, "faults", describe_faults(vm));
    json_object_set_new(object, "quarantine_until_us", number_or_null(quarantine_until_us(vm)));
    json_object_set_new(object, "claim_differences", number(counters[METRICS_DIFFERENCES]));
    json_object_set_new(object, "device_memory_mib", number(vm_device_memory_mib(vm)));
    json_object_set_new(object, "device_memory_used_bytes", number(account_used_bytes(vm)));
    describe_vm_contexts(vm, object);
    describe_contexts_waiting(vm, object);
    json_object_set_new(object, "operation_limit_ms", number(vm_operation_limit_ms(vm)));
    json_object_set_new(object, "answer", describe_times(&statistics->answer));
    json_object_set_new(object, "grant",
                        describe_times(&statistics->scope.durations[METRICS_WAIT]));
    return object;
}

static int compare_ids(struct vm *a, struct vm *b)
{
    return a->vm_id < b->vm_id ? -1 : a->vm_id > b->vm_id;
}

static json_t *describe_one_vm(struct mediator *mediator, uint32_t vm_id)
{
    json_t *list = json_array();

    json_array_append_new(list, describe_vm(vm_find(mediator, vm_id)));
    return list;
}

/* Those from a number on, in order, as many as an answer has room for. */
static json_t *describe_vms(struct mediator *mediator, uint32_t from, uint32_t *ret_left_out)
{
    json_t *list = json_array();
    struct vm *vm, *next;

    *ret_left_out = 0;
    HASH_SORT(mediator->vms, compare_ids);
    HASH_ITER (hh, mediator->vms, vm, next) {
        if (vm->vm_id < from)
            continue;
        if (json_array_size(list) < VMS_MAX)
            json_array_append_new(list, describe_vm(vm));
        else
            ++*ret_left_out;
    }
    return list;
}

json_t *status_all(struct mediator *mediator, uint32_t vm_id, uint32_t vms_from)
{
    uint32_t left_out = 0;
    json_t *vms =
        vm_id ? describe_one_vm(mediator, vm_id) : describe_vms(mediator, vms_from, &left_out);

    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:I}", "mediator", describe_mediator(mediator),
                     "devices", describe_devices(mediator), "gpus", gpus_describe(mediator),
                     "gpu_watch", gpus_describe_watch(mediator), "pools", describe_pools(mediator),
                     "vms", vms, "vms_left_out", (json_int_t)left_out);
}

/* --- the queue ------------------------------------------------------------------------------ */

static json_t *describe_work(const struct vm *vm, const struct session *session, uint64_t depth)
{
    char text[VGPU_COMMAND_MAX_BYTES + 1] = "", safe[2 * VGPU_COMMAND_MAX_BYTES + 1];

    if (session)
        session->ops->describe(session, text, sizeof(text));
    text_escape(safe, sizeof(safe), text, strlen(text));
    return json_pack("{s:I, s:s, s:o, s:i, s:I, s:s}", "vm_id", (json_int_t)vm->vm_id, "name",
                     vm->settings.name, "pool", letter(vm_pool(vm)), "priority",
                     (int)vm_priority(vm), "depth", (json_int_t)depth, "work", safe);
}

static json_t *describe_place(const struct vm_place *place, const struct session *session)
{
    return describe_work(place->vm, session, vm_place_depth(place));
}

static json_t *describe_gated_session(const struct session *session)
{
    json_t *object = describe_work(session->vm, session, session->depth);

    json_object_set_new(object, "limit", json_string(contexts_limit_of(session)));
    return object;
}

static json_t *describe_gated(const struct mediator *mediator, unsigned device)
{
    uint32_t room = contexts_waiting(mediator, device);
    struct session **sessions = calloc(room + 1, sizeof(struct session *));
    json_t *list = json_array();
    size_t count = sessions ? contexts_list_waiting(mediator, device, sessions, room) : 0;

    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, describe_gated_session(sessions[i]));
    free(sessions);
    return list;
}

static json_t *describe_waiting(const struct mediator *mediator, unsigned device)
{
    uint32_t room = sched_waiting(mediator->sched, 0);
    struct sched_vm **places = calloc(room + 1, sizeof(struct sched_vm *));
    json_t *list = json_array();
    size_t count = places ? sched_list_waiting(mediator->sched, device, places, room) : 0;

    for (size_t i = 0; i < count; i++) {
        const struct vm_place *place = sched_vm_context(places[i]);

        json_array_append_new(list, describe_place(place, TAILQ_FIRST(&place->waiting)));
    }
    free(places);
    return list;
}

json_t *status_queue(const struct mediator *mediator)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < mediator->device_count; i++) {
        const struct sched_vm *running = sched_running(mediator->sched, i);
        const struct vm_place *place = running ? sched_vm_context(running) : NULL;

        json_array_append_new(
            list, json_pack("{s:s, s:o, s:o, s:o}", "name", mediator->devices[i], "running",
                            place ? describe_place(place, place->running) : json_null(), "waiting",
                            describe_waiting(mediator, i), "waiting_for_context",
                            describe_gated(mediator, i)));
    }
    return json_pack("{s:o, s:o}", "devices", list, "test_mode", status_test_mode(&mediator->test));
}

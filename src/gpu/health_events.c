/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XIDs: what the driver reports of a GPU's errors, as they come.  A broken GPU or
 * program can report thousands a second: all are counted, few are told, and the next
 * one that is told says how many were not.
 */
#include "gpu/health_private.h"

#include <string.h>

/* Longest time in NVML, for a stop or a wanted sample to be noticed. */
#define WAIT_MS 200u

/* After so many at once the thread lets others have the processor. */
#define EVENTS_A_BATCH 64u
#define BATCH_PAUSE_NS (10 * NS_PER_MS)

/* --- the set ---------------------------------------------------------------------------- */

/* Some GPUs report nothing (virtual ones): the others still do. */
static bool enrol(struct gpu_health *health, struct nvml_event_set *set, const struct gpu *gpu)
{
    unsigned long long types = 0;

    return gpu->handle && health->nvml.supported_events(gpu->handle, &types) == NVML_CODE_SUCCESS &&
           (types & NVML_EVENT_XID) != 0 &&
           health->nvml.register_events(gpu->handle, NVML_EVENT_XID, set) == NVML_CODE_SUCCESS;
}

void health_events_open(struct gpu_health *health)
{
    struct nvml_event_set *set = NULL;
    unsigned enrolled = 0;

    if (health->nvml.event_set_create(&set) != NVML_CODE_SUCCESS)
        return;
    for (unsigned i = 0; i < health->count; i++)
        enrolled += enrol(health, set, &health->gpus[i]);
    health->events = set;
    if (enrolled == 0)
        health_events_close(health);
}

void health_events_close(struct gpu_health *health)
{
    if (health->events)
        health->nvml.event_set_free(health->events);
    health->events = NULL;
}

/* --- telling ------------------------------------------------------------------------------ */

/* Tells it, or counts it as untold. */
static void tell_xid(struct gpu_health *health, struct gpu *gpu, uint32_t xid)
{
    const struct gpu_event event = {.type = GPU_EVENT_XID,
                                    .gpu = (unsigned)(gpu - health->gpus),
                                    .xid = xid,
                                    .untold = gpu->untold,
                                    .time_ns = clock_realtime_ns()};
    uint64_t now_ns = clock_monotonic_ns();

    if (now_ns - gpu->told_since_ns >= NS_PER_S) {
        gpu->told_since_ns = now_ns;
        gpu->told = 0;
    }
    if (gpu->told < XIDS_TOLD_A_SECOND && health_tell(health, &event)) {
        gpu->told++;
        gpu->untold = 0;
        return;
    }
    gpu->untold++;
    gpu->untold_xid = xid;
}

/* The last ones of a storm have nobody behind them to tell of them. */
static void tell_rest(struct gpu_health *health, struct gpu *gpu)
{
    if (gpu->untold == 0 || clock_monotonic_ns() - gpu->told_since_ns < NS_PER_S)
        return;
    gpu->untold--;
    tell_xid(health, gpu, gpu->untold_xid);
}

static void tell_rests(struct gpu_health *health)
{
    for (unsigned i = 0; i < health->count; i++)
        tell_rest(health, &health->gpus[i]);
}

/* --- taking --------------------------------------------------------------------------------- */

/* NVML may use another handle for the GPU than the one that we have. */
static struct gpu *find_gpu(struct gpu_health *health, struct nvml_device *handle)
{
    char uuid[NVML_UUID_BYTES];

    for (unsigned i = 0; i < health->count; i++) {
        if (health->gpus[i].handle == handle)
            return &health->gpus[i];
    }
    if (!handle || health->nvml.device_uuid(handle, uuid, sizeof(uuid)) != NVML_CODE_SUCCESS)
        return NULL;
    for (unsigned i = 0; i < health->count; i++) {
        if (strcmp(health->gpus[i].status.uuid, uuid) == 0)
            return &health->gpus[i];
    }
    return NULL;
}

static void take_xid(struct gpu_health *health, const struct nvml_event *event)
{
    struct gpu *gpu = find_gpu(health, event->device);
    uint32_t xid = (uint32_t)event->data;
    const struct gpu_event nobodys = {.type = GPU_EVENT_XID,
                                      .gpu = GPU_HEALTH_GPUS_MAX,
                                      .xid = xid,
                                      .time_ns = clock_realtime_ns()};

    if (!gpu) {
        health_tell(health, &nobodys);
        return;
    }
    gpu->status.xid_count++;
    gpu->status.xid_last = (struct gpu_value){.known = true, .value = xid};
    gpu->status.xid_last_ns = nobodys.time_ns;
    health_publish(health, gpu);
    tell_xid(health, gpu, xid);
    if (gpu_xid_find(xid)->class == GPU_XID_FATAL)
        gpu_health_sample(health); /* is it lost? */
}

/* False: there is none now. */
static bool take_event(struct gpu_health *health, uint64_t until_ns)
{
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t left_ms = now_ns < until_ns ? (until_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS : 0;
    struct nvml_event event = {0};
    unsigned code;

    code = health->nvml.event_wait(health->events, &event,
                                   left_ms < WAIT_MS ? (unsigned)left_ms : WAIT_MS);
    if (code != NVML_CODE_SUCCESS && code != NVML_CODE_TIMEOUT)
        health_events_close(health); /* it would fail again and again, at once */
    if (code != NVML_CODE_SUCCESS)
        return false;
    if (event.type == NVML_EVENT_XID)
        take_xid(health, &event);
    return true;
}

static bool is_over(struct gpu_health *health, uint64_t until_ns)
{
    bool over;

    pthread_mutex_lock(&health->lock);
    over = health->stopping || health->sample_wanted || clock_monotonic_ns() >= until_ns;
    pthread_mutex_unlock(&health->lock);
    return over;
}

/* What is there already, so that samples that take long do not keep events waiting. */
static void take_batch(struct gpu_health *health)
{
    for (unsigned i = 0; i < EVENTS_A_BATCH && health->events && take_event(health, 0); i++)
        ;
}

void health_events_wait(struct gpu_health *health, uint64_t until_ns)
{
    unsigned batch = 0;

    take_batch(health);
    while (health->events && !is_over(health, until_ns)) {
        batch = take_event(health, until_ns) ? batch + 1 : 0;
        tell_rests(health);
        if (batch == EVENTS_A_BATCH) {
            health_pause(health, clock_monotonic_ns() + BATCH_PAUSE_NS);
            batch = 0;
        }
    }
    if (!health->events)
        health_pause(health, until_ns);
    tell_rests(health);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watch over the GPUs, from the first time that a pool is bound to one until the
 * mediator ends.  src/gpu/health.h has the thread; here its events get into the log, and
 * a GPU that is lost, or had an error that ends all on it, is checked before it gets more
 * work (devices.c).
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define NO_LIBRARY "none"

/* --- events ------------------------------------------------------------------------------ */

/* "GPU 0 (GPU-...)", or what is known of it. */
static void name_gpu(const struct gpu_snapshot *snapshot, unsigned gpu, char *text, size_t bytes)
{
    if (gpu >= snapshot->count)
        text_copy(text, bytes, "a GPU that the driver did not name");
    else
        snprintf(text, bytes, "GPU %u (%s)", snapshot->gpus[gpu].index,
                 snapshot->gpus[gpu].uuid[0] ? snapshot->gpus[gpu].uuid : "UUID not known");
}

static const char *uuid_of(const struct gpu_snapshot *snapshot, unsigned gpu)
{
    return gpu < snapshot->count ? snapshot->gpus[gpu].uuid : "";
}

static void log_xid(const struct gpu_snapshot *snapshot, const struct gpu_event *event,
                    const char *name)
{
    const struct gpu_xid *xid = gpu_xid_find(event->xid);
    const struct log_field fields[] = {
        LOG_TEXT("gpu", uuid_of(snapshot, event->gpu)), LOG_NUMBER("xid", event->xid),
        LOG_TEXT("class", gpu_xid_class_name(xid->class)), LOG_NUMBER("untold", event->untold)};
    char untold[64] = "";

    if (event->untold)
        snprintf(untold, sizeof(untold), " (%llu before it were not told)",
                 (unsigned long long)event->untold);
    log_event("XID", fields, VGPU_ARRAY_LENGTH(fields), "%s: XID %u: %s: %s%s", name, event->xid,
              xid->meaning, xid->remedy, untold);
}

static void log_state(const struct gpu_snapshot *snapshot, const struct gpu_event *event,
                      const char *name)
{
    const struct log_field fields[] = {LOG_TEXT("gpu", uuid_of(snapshot, event->gpu))};

    if (event->type == GPU_EVENT_LOST)
        log_event("GPU-LOST", fields, VGPU_ARRAY_LENGTH(fields),
                  "%s does not answer any more: what ran on it is lost; reset it (nvidia-smi "
                  "--gpu-reset) or restart the host",
                  name);
    else
        log_event("GPU-BACK", fields, VGPU_ARRAY_LENGTH(fields), "%s answers again", name);
}

/* Does a pool's device name this GPU?  Which MIG devices were on one that is lost is not
 * known any more: each may have been. */
static bool means(const char *device, const struct gpu_status *gpu)
{
    uint64_t index;

    if (strncmp(device, "cuda:", 5) == 0)
        return text_parse_u64(device + 5, 0, UINT32_MAX, &index) && index == gpu->index;
    return strncmp(device, "MIG-", 4) == 0 || strcasecmp(device, gpu->uuid) == 0 ||
           strcasecmp(device, gpu->pci_address) == 0;
}

/* Nothing new begins on it until it has shown that it computes. */
static void doubt(struct mediator *mediator, const struct gpu_snapshot *snapshot, unsigned gpu)
{
    for (unsigned i = 0; gpu < snapshot->count && i < mediator->device_count; i++) {
        if (means(mediator->devices[i], &snapshot->gpus[gpu]))
            devices_doubt(mediator, mediator->devices[i]);
    }
}

static void act(struct mediator *mediator, const struct gpu_snapshot *snapshot,
                const struct gpu_event *event)
{
    bool fatal = event->type == GPU_EVENT_XID && gpu_xid_find(event->xid)->class == GPU_XID_FATAL;

    if (fatal || event->type == GPU_EVENT_LOST)
        doubt(mediator, snapshot, event->gpu);
    else if (event->type == GPU_EVENT_BACK)
        devices_recheck(mediator);
}

static void log_one(const struct gpu_snapshot *snapshot, const struct gpu_event *event)
{
    char name[GPU_HEALTH_TEXT_BYTES + 32];

    name_gpu(snapshot, event->gpu, name, sizeof(name));
    if (event->type == GPU_EVENT_XID)
        log_xid(snapshot, event, name);
    else
        log_state(snapshot, event, name);
}

/* Once each, not at every sample. */
static void log_problem(struct gpus *gpus)
{
    if (strcmp(gpus->problem, gpus->snapshot->problem) == 0)
        return;
    text_copy(gpus->problem, sizeof(gpus->problem), gpus->snapshot->problem);
    if (gpus->problem[0])
        log_warning("nothing is known of the GPUs: %s", gpus->problem);
    else
        log_info("the GPUs are watched: driver %s, %u of them", gpus->snapshot->driver_version,
                 gpus->snapshot->count);
}

static void on_wake(uv_async_t *wake)
{
    struct mediator *mediator = wake->data;
    struct gpus *gpus = &mediator->gpus;
    struct gpu_event event;

    gpu_health_read(gpus->health, gpus->snapshot);
    log_problem(gpus);
    while (gpu_health_next_event(gpus->health, &event)) {
        log_one(gpus->snapshot, &event);
        act(mediator, gpus->snapshot, &event);
    }
}

/* In the watch's thread. */
static void wake_loop(void *context)
{
    struct gpus *gpus = context;

    uv_async_send(&gpus->wake);
}

/* --- beginning and ending ------------------------------------------------------------------ */

static bool is_wanted(const struct mediator *mediator)
{
    if (strcmp(mediator->config->nvml_library, NO_LIBRARY) == 0)
        return false;
    for (size_t i = 0; i < mediator->pool_count; i++) {
        char device[CONFIG_DEVICE_BYTES];

        for (unsigned j = 0; config_pool_device(&mediator->pools[i], j, device); j++) {
            if (strcmp(exec_backend_of(device), "cuda") == 0)
                return true;
        }
    }
    return false;
}

void gpus_init(struct mediator *mediator)
{
    uv_async_init(&mediator->loop, &mediator->gpus.wake, on_wake);
    mediator->gpus.wake.data = mediator;
}

static int open_watch(struct mediator *mediator, struct vgpu_error *error)
{
    struct gpus *gpus = &mediator->gpus;
    const struct gpu_health_config config = {.nvml_library = mediator->config->nvml_library,
                                             .interval_ms = mediator->config->health_interval_ms,
                                             .wake = wake_loop,
                                             .context = gpus};

    gpus->snapshot = calloc(1, sizeof(*gpus->snapshot));
    if (!gpus->snapshot)
        return error_set(error, ENOMEM, "no memory for what is known of the GPUs");
    text_copy(gpus->problem, sizeof(gpus->problem), "-"); /* what comes first is told */
    if (gpu_health_open(&config, &gpus->health, error) == 0)
        return 0;
    free(gpus->snapshot);
    gpus->snapshot = NULL;
    return -1;
}

void gpus_update(struct mediator *mediator)
{
    struct gpus *gpus = &mediator->gpus;
    struct vgpu_error error = {0};

    if (gpus->health || !is_wanted(mediator))
        return;
    if (open_watch(mediator, &error) < 0) {
        text_copy(gpus->problem, sizeof(gpus->problem), error.message);
        log_warning("the GPUs are not watched: %s", error.message);
    }
}

void gpus_stop(struct mediator *mediator)
{
    struct gpus *gpus = &mediator->gpus;

    gpu_health_close(gpus->health);
    gpus->health = NULL;
    free(gpus->snapshot);
    gpus->snapshot = NULL;
    uv_close((uv_handle_t *)&gpus->wake, NULL);
}

/* --- what is known -------------------------------------------------------------------------- */

/* Why there is no watch. */
static const char *reason(const struct mediator *mediator)
{
    if (strcmp(mediator->config->nvml_library, NO_LIBRARY) == 0)
        return "nvml_library = none";
    return is_wanted(mediator) ? mediator->gpus.problem : "no pool is bound to a GPU";
}

json_t *gpus_describe(struct mediator *mediator)
{
    struct gpus *gpus = &mediator->gpus;

    if (!gpus->health)
        return json_array();
    gpu_health_read(gpus->health, gpus->snapshot);
    return gpu_health_json_gpus(gpus->snapshot);
}

json_t *gpus_describe_watch(struct mediator *mediator)
{
    struct gpus *gpus = &mediator->gpus;

    if (!gpus->health)
        return json_pack("{s:b, s:s}", "on", false, "reason", reason(mediator));
    gpu_health_read(gpus->health, gpus->snapshot);
    return json_pack("{s:b, s:I, s:o}", "on", true, "interval_ms",
                     (json_int_t)mediator->config->health_interval_ms, "driver",
                     gpu_health_json_driver(gpus->snapshot));
}

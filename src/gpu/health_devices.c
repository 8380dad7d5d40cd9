/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which GPUs there are.  NVML finds them once, when it is initialized: to see one
 * again that was lost, it must be ended and begun anew.  A GPU keeps its place in our
 * list, whatever handle or index it has after that: it is known by its UUID, else by
 * its PCI address, else by its index.
 */
#include "gpu/health_private.h"

#include <stdio.h>
#include <string.h>

/* Renewals that were in vain come ever later, up to so many samples apart. */
#define RENEWAL_SAMPLES_MAX 16u

/* --- lost and back ---------------------------------------------------------------------- */

static void tell(struct gpu_health *health, const struct gpu *gpu, enum gpu_event_type type)
{
    const struct gpu_event event = {
        .type = type, .gpu = (unsigned)(gpu - health->gpus), .time_ns = clock_realtime_ns()};

    health_tell(health, &event);
}

void health_lose(struct gpu_health *health, struct gpu *gpu)
{
    bool known = gpu->status.lost;

    gpu->handle = NULL;
    gpu->failures = 0;
    gpu->status.lost = true;
    gpu->status.losses += !known;
    gpu->status.values = (struct gpu_values){0};
    health_publish(health, gpu);
    if (!known)
        tell(health, gpu, GPU_EVENT_LOST);
}

void health_find_again(struct gpu_health *health, struct gpu *gpu)
{
    gpu->failures = 0;
    if (!gpu->status.lost)
        return;
    gpu->status.lost = false;
    gpu->status.returns++;
    health_publish(health, gpu);
    tell(health, gpu, GPU_EVENT_BACK);
}

/* --- finding them ------------------------------------------------------------------------- */

static void read_identity(const struct nvml *nvml, struct nvml_device *handle,
                          struct gpu_status *ret_status)
{
    struct nvml_pci pci = {0};

    if (nvml->device_uuid(handle, ret_status->uuid, sizeof(ret_status->uuid)) != NVML_CODE_SUCCESS)
        ret_status->uuid[0] = '\0';
    if (nvml->device_name(handle, ret_status->name, sizeof(ret_status->name)) != NVML_CODE_SUCCESS)
        ret_status->name[0] = '\0';
    if (nvml->device_pci(handle, &pci) == NVML_CODE_SUCCESS)
        snprintf(ret_status->pci_address, sizeof(ret_status->pci_address), "%04x:%02x:%02x.0",
                 pci.domain, pci.bus, pci.device);
}

static bool is_same(const struct gpu_status *one, const struct gpu_status *other)
{
    if (one->uuid[0] && other->uuid[0])
        return strcmp(one->uuid, other->uuid) == 0;
    if (one->pci_address[0] && other->pci_address[0])
        return strcmp(one->pci_address, other->pci_address) == 0;
    return one->index == other->index;
}

/* The GPU that this is, or a new one; NULL when there are too many. */
static struct gpu *place_of(struct gpu_health *health, const struct gpu_status *found)
{
    struct gpu *gpu;

    for (unsigned i = 0; i < health->count; i++) {
        gpu = &health->gpus[i];
        if (!gpu->handle && is_same(&gpu->status, found))
            return gpu;
    }
    if (health->count == GPU_HEALTH_GPUS_MAX)
        return NULL;
    gpu = &health->gpus[health->count++];
    gpu->status.index = found->index;
    return gpu;
}

static void copy_known(char *target, size_t bytes, const char *text)
{
    if (text[0])
        text_copy(target, bytes, text);
}

static void take_handle(struct gpu_health *health, unsigned index, struct nvml_device *handle)
{
    struct gpu_status found = {.index = index};
    struct gpu *gpu;

    read_identity(&health->nvml, handle, &found);
    gpu = place_of(health, &found);
    if (!gpu)
        return;
    gpu->handle = handle;
    gpu->status.index = index;
    copy_known(gpu->status.uuid, sizeof(gpu->status.uuid), found.uuid);
    copy_known(gpu->status.name, sizeof(gpu->status.name), found.name);
    copy_known(gpu->status.pci_address, sizeof(gpu->status.pci_address), found.pci_address);
}

/* NVML counts it and gives no handle: it was lost before we came, or is known. */
static void note_without_handle(struct gpu_health *health, unsigned index)
{
    const struct gpu_status found = {.index = index};

    for (unsigned i = 0; i < health->count; i++) {
        if (health->gpus[i].status.index == index)
            return;
    }
    place_of(health, &found);
}

static void find_gpus(struct gpu_health *health, unsigned count)
{
    struct nvml_device *handles[GPU_HEALTH_GPUS_MAX] = {NULL};

    if (count > GPU_HEALTH_GPUS_MAX)
        count = GPU_HEALTH_GPUS_MAX;
    for (unsigned i = 0; i < count; i++) {
        if (health->nvml.device_by_index(i, &handles[i]) == NVML_CODE_SUCCESS)
            take_handle(health, i, handles[i]);
    }
    for (unsigned i = 0; i < count; i++) {
        if (!handles[i])
            note_without_handle(health, i);
    }
}

/* --- beginning and ending ------------------------------------------------------------------ */

static void read_versions(struct gpu_health *health)
{
    const struct nvml *nvml = &health->nvml;
    char driver[NVML_VERSION_BYTES] = "", own[NVML_VERSION_BYTES] = "";

    if (nvml->driver_version(driver, sizeof(driver)) != NVML_CODE_SUCCESS)
        driver[0] = '\0';
    if (nvml->nvml_version && nvml->nvml_version(own, sizeof(own)) != NVML_CODE_SUCCESS)
        own[0] = '\0';
    pthread_mutex_lock(&health->lock);
    text_copy(health->snapshot.driver_version, sizeof(health->snapshot.driver_version), driver);
    text_copy(health->snapshot.nvml_version, sizeof(health->snapshot.nvml_version), own);
    pthread_mutex_unlock(&health->lock);
}

/* Says what failed and is false, so that a chain of calls reads well. */
static bool succeeds(struct gpu_health *health, const char *function, unsigned code)
{
    char text[128], problem[VGPU_ERROR_BYTES];

    if (code == NVML_CODE_SUCCESS)
        return true;
    nvml_describe_code(&health->nvml, code, text, sizeof(text));
    snprintf(problem, sizeof(problem), "%s: %s; look at the driver: nvidia-smi, dmesg | grep NVRM",
             function, text);
    health_publish_problem(health, problem);
    return false;
}

static void begin(struct gpu_health *health)
{
    unsigned count = 0;

    if (!succeeds(health, "nvmlInit_v2", health->nvml.init()))
        return;
    health->initialized = true;
    if (!succeeds(health, "nvmlDeviceGetCount_v2", health->nvml.device_count(&count)))
        return;
    health_publish_problem(health, count ? "" : "the driver knows no GPU");
    read_versions(health);
    find_gpus(health, count);
    health_events_open(health);
}

void health_shut_down(struct gpu_health *health)
{
    health_events_close(health);
    for (unsigned i = 0; i < health->count; i++)
        health->gpus[i].handle = NULL; /* it ends with NVML */
    if (health->initialized)
        health->nvml.shutdown();
    health->initialized = false;
}

static bool is_complete(const struct gpu_health *health)
{
    for (unsigned i = 0; i < health->count; i++) {
        if (!health->gpus[i].handle)
            return false;
    }
    return health->initialized && health->count > 0;
}

void health_renew(struct gpu_health *health)
{
    if (is_complete(health)) {
        health->renewals = 0;
        health->samples_to_renewal = 0;
        return;
    }
    if (health->samples_to_renewal > 0) {
        health->samples_to_renewal--;
        return;
    }
    health->samples_to_renewal = (1u << health->renewals) - 1;
    if (health->samples_to_renewal < RENEWAL_SAMPLES_MAX)
        health->renewals++;
    health_shut_down(health);
    begin(health);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One look at every GPU.  What a GPU does not support or does not answer stays
 * unknown; the others count.  A GPU is lost when NVML says so, or when it has
 * answered nothing at all several times.
 */
#include "gpu/health_private.h"

/* Samples in which nothing was answered. */
#define FAILURES_MAX 3u

struct look {
    const struct nvml *nvml;
    struct nvml_device *handle;
    struct gpu_values *values;
    bool answered; /* something was, if only that it is not supported */
    bool lost;
};

/* True when the call brought a value. */
static bool got(struct look *look, unsigned code)
{
    look->lost |= code == NVML_CODE_GPU_IS_LOST;
    look->answered |= code == NVML_CODE_SUCCESS || code == NVML_CODE_NOT_SUPPORTED ||
                      code == NVML_CODE_NO_PERMISSION;
    return code == NVML_CODE_SUCCESS;
}

static struct gpu_value known(uint64_t value)
{
    return (struct gpu_value){.known = true, .value = value};
}

/* --- a value each ----------------------------------------------------------------------- */

static void read_utilization(struct look *look)
{
    struct nvml_utilization utilization = {0};

    if (got(look, look->nvml->utilization(look->handle, &utilization)))
        look->values->utilization_percent = known(utilization.gpu_percent);
}

/* The newer function knows what the driver keeps; the older is always there. */
static bool read_memory_v2(struct look *look)
{
    struct nvml_memory_v2 memory = {.version = NVML_MEMORY_V2};

    if (!look->nvml->memory_v2 || !got(look, look->nvml->memory_v2(look->handle, &memory)) ||
        memory.free_bytes > memory.total_bytes)
        return false;
    look->values->memory_total_bytes = known(memory.total_bytes);
    look->values->memory_used_bytes = known(memory.total_bytes - memory.free_bytes);
    look->values->memory_reserved_bytes = known(memory.reserved_bytes);
    return true;
}

static void read_memory(struct look *look)
{
    struct nvml_memory memory = {0};

    if (read_memory_v2(look) || look->lost)
        return;
    if (!got(look, look->nvml->memory(look->handle, &memory)) ||
        memory.free_bytes > memory.total_bytes)
        return;
    look->values->memory_total_bytes = known(memory.total_bytes);
    look->values->memory_used_bytes = known(memory.total_bytes - memory.free_bytes);
}

static void read_temperature(struct look *look)
{
    unsigned temperature_c = 0;

    if (got(look, look->nvml->temperature(look->handle, NVML_TEMPERATURE_OF_GPU, &temperature_c)))
        look->values->temperature_c = known(temperature_c);
}

static void read_power(struct look *look)
{
    unsigned power_mw = 0;

    if (got(look, look->nvml->power(look->handle, &power_mw)))
        look->values->power_mw = known(power_mw);
}

static void read_power_limit(struct look *look)
{
    unsigned limit_mw = 0;

    if (look->nvml->power_limit && got(look, look->nvml->power_limit(look->handle, &limit_mw)))
        look->values->power_limit_mw = known(limit_mw);
}

static struct gpu_value count_ecc(struct look *look, unsigned kind)
{
    unsigned long long count = 0;

    if (!got(look, look->nvml->ecc_errors(look->handle, kind, NVML_ECC_VOLATILE, &count)))
        return (struct gpu_value){0};
    return known(count);
}

static void read_ecc(struct look *look)
{
    look->values->ecc_corrected = count_ecc(look, NVML_ECC_CORRECTED);
    if (!look->lost)
        look->values->ecc_uncorrected = count_ecc(look, NVML_ECC_UNCORRECTED);
}

/* One function under two names: the older one goes some day. */
static bool got_throttle(struct look *look, unsigned long long *ret_reasons)
{
    const struct nvml *nvml = look->nvml;

    if (nvml->event_reasons && got(look, nvml->event_reasons(look->handle, ret_reasons)))
        return true;
    return !look->lost && nvml->throttle_reasons &&
           got(look, nvml->throttle_reasons(look->handle, ret_reasons));
}

static void read_throttle(struct look *look)
{
    unsigned long long reasons = 0;

    if (got_throttle(look, &reasons))
        look->values->throttle_reasons = known(reasons);
}

/* --- MIG ---------------------------------------------------------------------------------- */

/* Places of MIG devices that are not made have no handle. */
static void read_mig_devices(struct look *look)
{
    const struct nvml *nvml = look->nvml;
    struct gpu_values *values = look->values;
    unsigned count = 0;

    if (!nvml->mig_count_max || !nvml->mig_by_index ||
        !got(look, nvml->mig_count_max(look->handle, &count)))
        return;
    for (unsigned i = 0; i < count && values->mig_count < GPU_HEALTH_MIGS_MAX; i++) {
        char *uuid = values->migs[values->mig_count];
        struct nvml_device *mig = NULL;

        if (nvml->mig_by_index(look->handle, i, &mig) == NVML_CODE_SUCCESS &&
            nvml->device_uuid(mig, uuid, GPU_HEALTH_TEXT_BYTES) == NVML_CODE_SUCCESS)
            values->mig_count++;
    }
}

static void read_mig(struct look *look)
{
    unsigned now = 0, after_reset = 0;

    if (!look->nvml->mig_mode || !got(look, look->nvml->mig_mode(look->handle, &now, &after_reset)))
        return;
    look->values->mig_on = known(now == NVML_MIG_ON);
    if (now == NVML_MIG_ON)
        read_mig_devices(look);
}

/* --- all of them ------------------------------------------------------------------------------ */

static void (*const readers[])(struct look *look) = {
    read_memory,      read_utilization, read_temperature, read_power,
    read_power_limit, read_ecc,         read_throttle,    read_mig,
};

/* Each call to a lost GPU may take long: the first one that says so is the last. */
static void sample(struct gpu_health *health, struct gpu *gpu)
{
    struct gpu_values values = {0};
    struct look look = {.nvml = &health->nvml, .handle = gpu->handle, .values = &values};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(readers) && !look.lost; i++) {
        if (health_is_stopping(health))
            return;
        readers[i](&look);
    }
    gpu->failures = look.answered ? 0 : gpu->failures + 1;
    if (look.lost || gpu->failures == FAILURES_MAX) {
        health_lose(health, gpu);
        return;
    }
    gpu->status.values = values;
    gpu->status.sampled_ns = clock_monotonic_ns();
    health_publish(health, gpu);
    if (look.answered)
        health_find_again(health, gpu);
}

void health_sample_all(struct gpu_health *health)
{
    for (unsigned i = 0; i < health->count && !health_is_stopping(health); i++) {
        if (health->gpus[i].handle)
            sample(health, &health->gpus[i]);
        else
            health_lose(health, &health->gpus[i]);
    }
}

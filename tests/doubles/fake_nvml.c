/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libnvidia-ml without a GPU, for tests.  It does what the file beside it says, whose
 * name is the library's with ".conf" behind it; it is read at every call.  A line each:
 *
 *   devices N            how many there are (1)
 *   uuid I TEXT          of device I (GPU-00000000-0000-0000-0000-00000000000I)
 *   name I WORD          (Fake-GPU)
 *   value I KEY NUMBER   memory_total, memory_used, memory_reserved (bytes), utilization
 *                        (percent), temperature (C), power, power_limit (mW),
 *                        ecc_corrected, ecc_uncorrected, throttle (bits)
 *   mig I UUID           device I is in MIG mode and has this MIG device; or `none`
 *   lost I               device I is lost: stays so until NVML is initialized without it
 *   xid I NUMBER [COUNT] an event, or many of one kind, delivered once
 *   fail FUNCTION CODE   this function fails
 *   unsupported FUNCTION it fails with 3
 *   delay FUNCTION MS    it takes so long, or until the line is taken away
 *
 * A handle is good until NVML is ended, as the real ones are.  With FAKE_NVML_OLD it has
 * none of the optional functions; with FAKE_NVML_TOO_OLD it lacks a needed one.
 */
#include "gpu/nvml.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEVICES_MAX 64u
#define MIGS_MAX 7u
#define FIRST_BUS 0x65u
#define LOOK_NS (2 * NS_PER_MS)

#define PROTOTYPE(result, member, symbol, parameters, needed) result symbol parameters;
NVML_FUNCTIONS(PROTOTYPE)

/* --- the file ----------------------------------------------------------------------------- */

static char *conf_path(char path[PATH_MAX])
{
    Dl_info info;

    if (!dladdr((void *)conf_path, &info))
        abort();
    snprintf(path, PATH_MAX, "%s.conf", info.dli_fname);
    return path;
}

/* Calls `take` for each line, in order, until one returns true. */
static bool each_line(bool (*take)(const char *line, void *context), void *context)
{
    char path[PATH_MAX], line[256];
    FILE *file = fopen(conf_path(path), "re");
    bool found = false;

    while (file && !found && fgets(line, sizeof(line), file))
        found = take(line, context);
    if (file)
        fclose(file);
    return found;
}

struct question {
    const char *key;
    unsigned device;
    const char *name;
    unsigned long long number;
    char text[NVML_UUID_BYTES];
};

static bool take_function(const char *line, void *context)
{
    struct question *question = context;
    char key[32], function[64];
    int count = sscanf(line, "%31s %63s %llu", key, function, &question->number);

    return count >= 2 && strcmp(key, question->key) == 0 && strcmp(function, question->name) == 0;
}

static bool take_device(const char *line, void *context)
{
    struct question *question = context;
    char key[32];
    unsigned device;
    int count = sscanf(line, "%31s %u %95s", key, &device, question->text);

    return count >= 2 && strcmp(key, question->key) == 0 && device == question->device;
}

static bool take_value(const char *line, void *context)
{
    struct question *question = context;
    char name[32];
    unsigned device;

    return sscanf(line, "value %u %31s %llu", &device, name, &question->number) == 3 &&
           device == question->device && strcmp(name, question->name) == 0;
}

static bool take_count(const char *line, void *context)
{
    return sscanf(line, "devices %u", (unsigned *)context) == 1;
}

static unsigned count_devices(void)
{
    unsigned count = 1;

    each_line(take_count, &count);
    return count < DEVICES_MAX ? count : DEVICES_MAX;
}

/* --- states ------------------------------------------------------------------------------- */

/* Threads may call at the same time, as they may the real one: one that hung ends when the next
 * has begun long ago. */
static _Atomic unsigned initialized, generation; /* the latter: of handles */
static _Atomic bool was_lost[DEVICES_MAX];       /* since NVML was initialized */

static bool says_lost(unsigned device)
{
    struct question question = {.key = "lost", .device = device};

    return each_line(take_device, &question);
}

static bool is_lost(unsigned device)
{
    if (says_lost(device))
        was_lost[device] = true;
    return was_lost[device];
}

static void wait_as_told(const char *function)
{
    struct question question = {.key = "delay", .name = function};
    const struct timespec look = {.tv_nsec = LOOK_NS};
    uint64_t began_ns = clock_monotonic_ns();

    while (each_line(take_function, &question) &&
           clock_monotonic_ns() - began_ns < question.number * NS_PER_MS)
        nanosleep(&look, NULL);
}

/* What the file says of this function. */
static nvml_code judge(const char *function)
{
    struct question fail = {.key = "fail", .name = function};
    struct question unsupported = {.key = "unsupported", .name = function};

    wait_as_told(function);
    if (each_line(take_function, &fail))
        return (nvml_code)fail.number;
    return each_line(take_function, &unsupported) ? NVML_CODE_NOT_SUPPORTED : NVML_CODE_SUCCESS;
}

static nvml_code judge_ready(const char *function)
{
    nvml_code code = judge(function);

    return code == NVML_CODE_SUCCESS && !initialized ? NVML_CODE_UNINITIALIZED : code;
}

/* --- handles ------------------------------------------------------------------------------- */

static struct nvml_device *make_handle(unsigned device, unsigned mig)
{
    return (struct nvml_device *)(uintptr_t)(generation << 16 | mig << 8 | (device + 1));
}

static bool open_handle(const struct nvml_device *handle, unsigned *ret_device, unsigned *ret_mig)
{
    unsigned number = (unsigned)(uintptr_t)handle;

    *ret_device = (number & 0xff) - 1;
    *ret_mig = number >> 8 & 0xff;
    return handle && number >> 16 == generation && *ret_device < DEVICES_MAX;
}

/* As judge(), for a function of a device. */
static nvml_code judge_device(const char *function, const struct nvml_device *handle,
                              unsigned *ret_device)
{
    nvml_code code = judge_ready(function);
    unsigned mig;

    if (code == NVML_CODE_SUCCESS && !open_handle(handle, ret_device, &mig))
        return NVML_CODE_INVALID_ARGUMENT;
    if (code == NVML_CODE_SUCCESS && is_lost(*ret_device))
        return NVML_CODE_GPU_IS_LOST;
    return code;
}

static unsigned long long value_of(unsigned device, const char *key, unsigned long long otherwise)
{
    struct question question = {.device = device, .name = key};

    return each_line(take_value, &question) ? question.number : otherwise;
}

static nvml_code answer_value(const char *function, const struct nvml_device *handle,
                              const char *key, unsigned otherwise, unsigned *ret_value)
{
    unsigned device;
    nvml_code code = judge_device(function, handle, &device);

    if (code == NVML_CODE_SUCCESS)
        *ret_value = (unsigned)value_of(device, key, otherwise);
    return code;
}

/* --- the whole ------------------------------------------------------------------------------- */

nvml_code nvmlInit_v2(void)
{
    nvml_code code = judge("nvmlInit_v2");

    if (code == NVML_CODE_SUCCESS && initialized++ == 0)
        generation++;
    return code;
}

nvml_code nvmlShutdown(void)
{
    if (!initialized)
        return NVML_CODE_UNINITIALIZED;
    if (--initialized == 0) {
        for (unsigned device = 0; device < DEVICES_MAX; device++)
            was_lost[device] = false;
    }
    return judge("nvmlShutdown");
}

const char *nvmlErrorString(nvml_code code)
{
    return code == NVML_CODE_DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Fake Error";
}

static nvml_code answer_text(nvml_code code, const char *answer, char *text, unsigned bytes)
{
    if (code == NVML_CODE_SUCCESS)
        text_copy(text, bytes, answer);
    return code;
}

nvml_code nvmlSystemGetDriverVersion(char *text, unsigned bytes)
{
    return answer_text(judge_ready("nvmlSystemGetDriverVersion"), "550.54.15", text, bytes);
}

nvml_code nvmlDeviceGetCount_v2(unsigned *count)
{
    nvml_code code = judge_ready("nvmlDeviceGetCount_v2");

    if (code == NVML_CODE_SUCCESS)
        *count = count_devices();
    return code;
}

/* --- finding a device --------------------------------------------------------------------- */

static void uuid_of(unsigned device, char uuid[NVML_UUID_BYTES])
{
    struct question question = {.key = "uuid", .device = device};

    if (each_line(take_device, &question))
        text_copy(uuid, NVML_UUID_BYTES, question.text);
    else
        snprintf(uuid, NVML_UUID_BYTES, "GPU-00000000-0000-0000-0000-%012u", device);
}

static nvml_code find_device(unsigned device, struct nvml_device **ret_handle)
{
    if (device >= count_devices())
        return NVML_CODE_NOT_FOUND;
    if (is_lost(device))
        return NVML_CODE_GPU_IS_LOST;
    *ret_handle = make_handle(device, 0);
    return NVML_CODE_SUCCESS;
}

nvml_code nvmlDeviceGetHandleByIndex_v2(unsigned index, struct nvml_device **device)
{
    nvml_code code = judge_ready("nvmlDeviceGetHandleByIndex_v2");

    return code == NVML_CODE_SUCCESS ? find_device(index, device) : code;
}

nvml_code nvmlDeviceGetHandleByUUID(const char *uuid, struct nvml_device **device)
{
    nvml_code code = judge_ready("nvmlDeviceGetHandleByUUID");
    char text[NVML_UUID_BYTES];

    for (unsigned i = 0; code == NVML_CODE_SUCCESS && i < count_devices(); i++) {
        uuid_of(i, text);
        if (strcmp(text, uuid) == 0)
            return find_device(i, device);
    }
    return code == NVML_CODE_SUCCESS ? NVML_CODE_NOT_FOUND : code;
}

static void address_of(unsigned device, char address[NVML_PCI_BYTES])
{
    snprintf(address, NVML_PCI_BYTES, "00000000:%02X:00.0", FIRST_BUS + device);
}

nvml_code nvmlDeviceGetHandleByPciBusId_v2(const char *address, struct nvml_device **device)
{
    nvml_code code = judge_ready("nvmlDeviceGetHandleByPciBusId_v2");
    char text[NVML_PCI_BYTES];

    for (unsigned i = 0; code == NVML_CODE_SUCCESS && i < count_devices(); i++) {
        address_of(i, text);
        if (strcmp(text, address) == 0)
            return find_device(i, device);
    }
    return code == NVML_CODE_SUCCESS ? NVML_CODE_NOT_FOUND : code;
}

/* --- what a device is --------------------------------------------------------------------- */

struct mig_search {
    unsigned device, wanted, seen;
    bool any;
    char uuid[NVML_UUID_BYTES];
};

static bool take_mig(const char *line, void *context)
{
    struct mig_search *search = context;
    unsigned device;

    if (sscanf(line, "mig %u %95s", &device, search->uuid) != 2 || device != search->device)
        return false;
    search->any = true;
    return strcmp(search->uuid, "none") != 0 && search->seen++ == search->wanted;
}

nvml_code nvmlDeviceGetUUID(struct nvml_device *device, char *text, unsigned bytes)
{
    unsigned index, mig;
    nvml_code code = judge_device("nvmlDeviceGetUUID", device, &index);
    char uuid[NVML_UUID_BYTES] = "";

    if (code != NVML_CODE_SUCCESS)
        return code;
    open_handle(device, &index, &mig);
    uuid_of(index, uuid);
    if (mig) {
        struct mig_search search = {.device = index, .wanted = mig - 1};

        if (!each_line(take_mig, &search))
            return NVML_CODE_NOT_FOUND;
        text_copy(uuid, sizeof(uuid), search.uuid);
    }
    return answer_text(code, uuid, text, bytes);
}

nvml_code nvmlDeviceGetName(struct nvml_device *device, char *text, unsigned bytes)
{
    struct question question = {.key = "name"};
    nvml_code code = judge_device("nvmlDeviceGetName", device, &question.device);

    if (code != NVML_CODE_SUCCESS)
        return code;
    if (!each_line(take_device, &question))
        text_copy(question.text, sizeof(question.text), "Fake-GPU");
    return answer_text(code, question.text, text, bytes);
}

nvml_code nvmlDeviceGetPciInfo_v3(struct nvml_device *device, struct nvml_pci *pci)
{
    unsigned index;
    nvml_code code = judge_device("nvmlDeviceGetPciInfo_v3", device, &index);

    if (code != NVML_CODE_SUCCESS)
        return code;
    *pci = (struct nvml_pci){.bus = FIRST_BUS + index, .device_and_vendor_id = 0x233010de};
    address_of(index, pci->address);
    return code;
}

/* --- its values ------------------------------------------------------------------------------ */

nvml_code nvmlDeviceGetMemoryInfo(struct nvml_device *device, struct nvml_memory *memory)
{
    unsigned index;
    nvml_code code = judge_device("nvmlDeviceGetMemoryInfo", device, &index);

    if (code != NVML_CODE_SUCCESS)
        return code;
    memory->total_bytes = value_of(index, "memory_total", 80ull << 30);
    memory->used_bytes = value_of(index, "memory_used", 2ull << 30);
    memory->free_bytes = memory->total_bytes - memory->used_bytes;
    return code;
}

nvml_code nvmlDeviceGetUtilizationRates(struct nvml_device *device,
                                        struct nvml_utilization *utilization)
{
    return answer_value("nvmlDeviceGetUtilizationRates", device, "utilization", 0,
                        &utilization->gpu_percent);
}

nvml_code nvmlDeviceGetTemperature(struct nvml_device *device, nvml_sensor sensor,
                                   unsigned *temperature_c)
{
    if (sensor != NVML_TEMPERATURE_OF_GPU)
        return NVML_CODE_INVALID_ARGUMENT;
    return answer_value("nvmlDeviceGetTemperature", device, "temperature", 35, temperature_c);
}

nvml_code nvmlDeviceGetPowerUsage(struct nvml_device *device, unsigned *power_mw)
{
    return answer_value("nvmlDeviceGetPowerUsage", device, "power", 71000, power_mw);
}

nvml_code nvmlDeviceGetTotalEccErrors(struct nvml_device *device, nvml_ecc_kind kind,
                                      nvml_ecc_counter counter, unsigned long long *count)
{
    unsigned index;
    nvml_code code = judge_device("nvmlDeviceGetTotalEccErrors", device, &index);

    if (code == NVML_CODE_SUCCESS && counter != NVML_ECC_VOLATILE)
        return NVML_CODE_INVALID_ARGUMENT;
    if (code == NVML_CODE_SUCCESS)
        *count =
            value_of(index, kind == NVML_ECC_CORRECTED ? "ecc_corrected" : "ecc_uncorrected", 0);
    return code;
}

/* --- events -------------------------------------------------------------------------------------
 */

struct nvml_event_set {
    bool registered[DEVICES_MAX];
};

nvml_code nvmlEventSetCreate(struct nvml_event_set **set)
{
    nvml_code code = judge_ready("nvmlEventSetCreate");

    if (code == NVML_CODE_SUCCESS)
        *set = calloc(1, sizeof(**set));
    return code;
}

nvml_code nvmlDeviceGetSupportedEventTypes(struct nvml_device *device, unsigned long long *types)
{
    unsigned index;
    nvml_code code = judge_device("nvmlDeviceGetSupportedEventTypes", device, &index);

    if (code == NVML_CODE_SUCCESS)
        *types = NVML_EVENT_XID | NVML_EVENT_MIG_CHANGED;
    return code;
}

nvml_code nvmlDeviceRegisterEvents(struct nvml_device *device, unsigned long long types,
                                   struct nvml_event_set *set)
{
    unsigned index;
    nvml_code code = judge_device("nvmlDeviceRegisterEvents", device, &index);

    if (code == NVML_CODE_SUCCESS)
        set->registered[index] = (types & NVML_EVENT_XID) != 0;
    return code;
}

nvml_code nvmlEventSetFree(struct nvml_event_set *set)
{
    free(set);
    return judge("nvmlEventSetFree");
}

#ifndef FAKE_NVML_TOO_OLD

static unsigned long long delivered;

struct event_search {
    unsigned long long wanted, seen;
    unsigned device, xid;
};

static bool take_event(const char *line, void *context)
{
    struct event_search *search = context;
    unsigned long long count = 1;

    if (sscanf(line, "xid %u %u %llu", &search->device, &search->xid, &count) < 2)
        return false;
    search->seen += count;
    return search->seen > search->wanted;
}

static bool next_event(const struct nvml_event_set *set, struct nvml_event *ret_event)
{
    struct event_search search = {.wanted = delivered};

    if (!each_line(take_event, &search))
        return false;
    delivered++;
    if (search.device >= DEVICES_MAX || !set->registered[search.device])
        return false;
    *ret_event = (struct nvml_event){.device = make_handle(search.device, 0),
                                     .type = NVML_EVENT_XID,
                                     .data = search.xid,
                                     .gpu_instance = UINT_MAX,
                                     .compute_instance = UINT_MAX};
    return true;
}

nvml_code nvmlEventSetWait_v2(struct nvml_event_set *set, struct nvml_event *event,
                              unsigned timeout_ms)
{
    const struct timespec look = {.tv_nsec = LOOK_NS};
    uint64_t until_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
    nvml_code code = judge_ready("nvmlEventSetWait_v2");

    while (code == NVML_CODE_SUCCESS && !next_event(set, event)) {
        if (clock_monotonic_ns() >= until_ns)
            return NVML_CODE_TIMEOUT;
        nanosleep(&look, NULL);
    }
    return code;
}

#endif

/* --- what old libraries lack ------------------------------------------------------------------ */

#ifndef FAKE_NVML_OLD

nvml_code nvmlSystemGetNVMLVersion(char *text, unsigned bytes)
{
    return answer_text(judge_ready("nvmlSystemGetNVMLVersion"), "12.550.54.15", text, bytes);
}

nvml_code nvmlDeviceGetMemoryInfo_v2(struct nvml_device *device, struct nvml_memory_v2 *memory)
{
    unsigned index;
    nvml_code code = judge_device("nvmlDeviceGetMemoryInfo_v2", device, &index);

    if (code == NVML_CODE_SUCCESS && memory->version != NVML_MEMORY_V2)
        return NVML_CODE_INVALID_ARGUMENT;
    if (code != NVML_CODE_SUCCESS)
        return code;
    memory->total_bytes = value_of(index, "memory_total", 80ull << 30);
    memory->reserved_bytes = value_of(index, "memory_reserved", 1ull << 30);
    memory->free_bytes = memory->total_bytes - value_of(index, "memory_used", 2ull << 30);
    memory->used_bytes = memory->total_bytes - memory->free_bytes - memory->reserved_bytes;
    return code;
}

nvml_code nvmlDeviceGetEnforcedPowerLimit(struct nvml_device *device, unsigned *limit_mw)
{
    return answer_value("nvmlDeviceGetEnforcedPowerLimit", device, "power_limit", 700000, limit_mw);
}

static nvml_code answer_throttle(const char *function, const struct nvml_device *device,
                                 unsigned long long *reasons)
{
    unsigned value = 0;
    nvml_code code = answer_value(function, device, "throttle", 0, &value);

    if (code == NVML_CODE_SUCCESS)
        *reasons = value;
    return code;
}

nvml_code nvmlDeviceGetCurrentClocksThrottleReasons(struct nvml_device *device,
                                                    unsigned long long *reasons)
{
    return answer_throttle("nvmlDeviceGetCurrentClocksThrottleReasons", device, reasons);
}

nvml_code nvmlDeviceGetCurrentClocksEventReasons(struct nvml_device *device,
                                                 unsigned long long *reasons)
{
    return answer_throttle("nvmlDeviceGetCurrentClocksEventReasons", device, reasons);
}

nvml_code nvmlDeviceGetMigMode(struct nvml_device *device, unsigned *now, unsigned *after_reset)
{
    struct mig_search search = {.wanted = MIGS_MAX};
    nvml_code code = judge_device("nvmlDeviceGetMigMode", device, &search.device);

    if (code != NVML_CODE_SUCCESS)
        return code;
    each_line(take_mig, &search);
    *now = *after_reset = search.any ? NVML_MIG_ON : NVML_MIG_OFF;
    return code;
}

nvml_code nvmlDeviceGetMaxMigDeviceCount(struct nvml_device *device, unsigned *count)
{
    unsigned index;
    nvml_code code = judge_device("nvmlDeviceGetMaxMigDeviceCount", device, &index);

    if (code == NVML_CODE_SUCCESS)
        *count = MIGS_MAX;
    return code;
}

nvml_code nvmlDeviceGetMigDeviceHandleByIndex(struct nvml_device *device, unsigned index,
                                              struct nvml_device **mig)
{
    struct mig_search search = {.wanted = index};
    nvml_code code = judge_device("nvmlDeviceGetMigDeviceHandleByIndex", device, &search.device);

    if (code == NVML_CODE_SUCCESS && !each_line(take_mig, &search))
        return NVML_CODE_NOT_FOUND;
    if (code == NVML_CODE_SUCCESS)
        *mig = make_handle(search.device, index + 1);
    return code;
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of NVIDIA's management library (NVML) that the host uses, opened at run
 * time: a program that was built without it, on a host without it, still starts.
 *
 * These are our own words for NVML's stable ABI: numbers, layouts and signatures of
 * functions that keep their version behind their name.  tests/unit/test_nvml_abi.c
 * compares them with NVIDIA's header where one is installed.
 *
 * Any function may block for long when a GPU has failed: call them from a thread
 * that nobody waits for.  All are thread-safe, but nvml_unload() ends their use.
 */
#ifndef VGPU_GPU_NVML_H
#define VGPU_GPU_NVML_H

#include "base/base.h"

#define NVML_DEFAULT_LIBRARY "libnvidia-ml.so.1"

/* NVIDIA's enumerations. */
typedef unsigned nvml_code, nvml_sensor, nvml_ecc_kind, nvml_ecc_counter;

/* What a function returns. */
#define NVML_CODE_SUCCESS 0u
#define NVML_CODE_UNINITIALIZED 1u
#define NVML_CODE_INVALID_ARGUMENT 2u
#define NVML_CODE_NOT_SUPPORTED 3u
#define NVML_CODE_NO_PERMISSION 4u
#define NVML_CODE_NOT_FOUND 6u
#define NVML_CODE_DRIVER_NOT_LOADED 9u
#define NVML_CODE_TIMEOUT 10u
#define NVML_CODE_GPU_IS_LOST 15u
#define NVML_CODE_UNKNOWN 999u

/* Room that texts want, with their NUL. */
#define NVML_UUID_BYTES 96
#define NVML_NAME_BYTES 96
#define NVML_VERSION_BYTES 80
#define NVML_PCI_BYTES 32
#define NVML_PCI_LEGACY_BYTES 16

#define NVML_TEMPERATURE_OF_GPU 0u /* sensor */
#define NVML_ECC_CORRECTED 0u
#define NVML_ECC_UNCORRECTED 1u
#define NVML_ECC_VOLATILE 0u /* since the driver was loaded */
#define NVML_MIG_OFF 0u
#define NVML_MIG_ON 1u

#define NVML_EVENT_XID 0x8ull
#define NVML_EVENT_MIG_CHANGED 0x100ull

/* Bits of what keeps clocks down. */
#define NVML_THROTTLE_IDLE 0x1ull
#define NVML_THROTTLE_APPLICATION_CLOCKS 0x2ull
#define NVML_THROTTLE_POWER_CAP 0x4ull
#define NVML_THROTTLE_HW_SLOWDOWN 0x8ull
#define NVML_THROTTLE_SYNC_BOOST 0x10ull
#define NVML_THROTTLE_SW_THERMAL 0x20ull
#define NVML_THROTTLE_HW_THERMAL 0x40ull
#define NVML_THROTTLE_POWER_BRAKE 0x80ull
#define NVML_THROTTLE_DISPLAY_CLOCKS 0x100ull

struct nvml_device;    /* a GPU or MIG device: valid until nvmlShutdown */
struct nvml_event_set; /* freed by its own function */

struct nvml_pci {
    char legacy_address[NVML_PCI_LEGACY_BYTES];
    unsigned domain, bus, device;
    unsigned device_and_vendor_id, subsystem_id;
    char address[NVML_PCI_BYTES]; /* "00000000:65:00.0" */
};

struct nvml_memory {
    unsigned long long total_bytes, free_bytes, used_bytes; /* used: with what is reserved */
};

/* `version` is NVML_MEMORY_V2 before the call. */
struct nvml_memory_v2 {
    unsigned version;
    unsigned long long total_bytes, reserved_bytes, free_bytes, used_bytes;
};
#define NVML_MEMORY_V2 ((unsigned)sizeof(struct nvml_memory_v2) | 2u << 24)

struct nvml_utilization {
    unsigned gpu_percent, memory_percent; /* of the last sample period, 1 s or less */
};

struct nvml_event {
    struct nvml_device *device;
    unsigned long long type; /* one NVML_EVENT_ bit */
    unsigned long long data; /* NVML_EVENT_XID: its number */
    unsigned gpu_instance, compute_instance;
};

#define NVML_NEEDED true
#define NVML_OPTIONAL false

/* X(result, member of struct nvml, symbol, parameters, NEEDED or OPTIONAL) */
#define NVML_FUNCTIONS(X)                                                                          \
    X(nvml_code, init, nvmlInit_v2, (void), NVML_NEEDED)                                           \
    X(nvml_code, shutdown, nvmlShutdown, (void), NVML_NEEDED)                                      \
    X(const char *, error_string, nvmlErrorString, (nvml_code code), NVML_NEEDED)                  \
    X(nvml_code, driver_version, nvmlSystemGetDriverVersion, (char *text, unsigned bytes),         \
      NVML_NEEDED)                                                                                 \
    X(nvml_code, nvml_version, nvmlSystemGetNVMLVersion, (char *text, unsigned bytes),             \
      NVML_OPTIONAL)                                                                               \
    X(nvml_code, device_count, nvmlDeviceGetCount_v2, (unsigned *count), NVML_NEEDED)              \
    X(nvml_code, device_by_index, nvmlDeviceGetHandleByIndex_v2,                                   \
      (unsigned index, struct nvml_device **device), NVML_NEEDED)                                  \
    X(nvml_code, device_by_uuid, nvmlDeviceGetHandleByUUID,                                        \
      (const char *uuid, struct nvml_device **device), NVML_NEEDED)                                \
    X(nvml_code, device_by_pci_address, nvmlDeviceGetHandleByPciBusId_v2,                          \
      (const char *address, struct nvml_device **device), NVML_NEEDED)                             \
    X(nvml_code, device_uuid, nvmlDeviceGetUUID,                                                   \
      (struct nvml_device * device, char *text, unsigned bytes), NVML_NEEDED)                      \
    X(nvml_code, device_name, nvmlDeviceGetName,                                                   \
      (struct nvml_device * device, char *text, unsigned bytes), NVML_NEEDED)                      \
    X(nvml_code, device_pci, nvmlDeviceGetPciInfo_v3,                                              \
      (struct nvml_device * device, struct nvml_pci * pci), NVML_NEEDED)                           \
    X(nvml_code, memory, nvmlDeviceGetMemoryInfo,                                                  \
      (struct nvml_device * device, struct nvml_memory * memory), NVML_NEEDED)                     \
    X(nvml_code, memory_v2, nvmlDeviceGetMemoryInfo_v2,                                            \
      (struct nvml_device * device, struct nvml_memory_v2 * memory), NVML_OPTIONAL)                \
    X(nvml_code, utilization, nvmlDeviceGetUtilizationRates,                                       \
      (struct nvml_device * device, struct nvml_utilization * utilization), NVML_NEEDED)           \
    X(nvml_code, temperature, nvmlDeviceGetTemperature,                                            \
      (struct nvml_device * device, nvml_sensor sensor, unsigned *temperature_c), NVML_NEEDED)     \
    X(nvml_code, power, nvmlDeviceGetPowerUsage,                                                   \
      (struct nvml_device * device, unsigned *power_mw), NVML_NEEDED)                              \
    X(nvml_code, power_limit, nvmlDeviceGetEnforcedPowerLimit,                                     \
      (struct nvml_device * device, unsigned *limit_mw), NVML_OPTIONAL)                            \
    X(nvml_code, ecc_errors, nvmlDeviceGetTotalEccErrors,                                          \
      (struct nvml_device * device, nvml_ecc_kind kind, nvml_ecc_counter counter,                  \
       unsigned long long *count),                                                                 \
      NVML_NEEDED)                                                                                 \
    X(nvml_code, throttle_reasons, nvmlDeviceGetCurrentClocksThrottleReasons,                      \
      (struct nvml_device * device, unsigned long long *reasons), NVML_OPTIONAL)                   \
    X(nvml_code, event_reasons, nvmlDeviceGetCurrentClocksEventReasons,                            \
      (struct nvml_device * device, unsigned long long *reasons), NVML_OPTIONAL)                   \
    X(nvml_code, mig_mode, nvmlDeviceGetMigMode,                                                   \
      (struct nvml_device * device, unsigned *now, unsigned *after_reset), NVML_OPTIONAL)          \
    X(nvml_code, mig_count_max, nvmlDeviceGetMaxMigDeviceCount,                                    \
      (struct nvml_device * device, unsigned *count), NVML_OPTIONAL)                               \
    X(nvml_code, mig_by_index, nvmlDeviceGetMigDeviceHandleByIndex,                                \
      (struct nvml_device * device, unsigned index, struct nvml_device **mig), NVML_OPTIONAL)      \
    X(nvml_code, event_set_create, nvmlEventSetCreate, (struct nvml_event_set * *set),             \
      NVML_NEEDED)                                                                                 \
    X(nvml_code, register_events, nvmlDeviceRegisterEvents,                                        \
      (struct nvml_device * device, unsigned long long types, struct nvml_event_set *set),         \
      NVML_NEEDED)                                                                                 \
    X(nvml_code, supported_events, nvmlDeviceGetSupportedEventTypes,                               \
      (struct nvml_device * device, unsigned long long *types), NVML_NEEDED)                       \
    X(nvml_code, event_wait, nvmlEventSetWait_v2,                                                  \
      (struct nvml_event_set * set, struct nvml_event * event, unsigned timeout_ms), NVML_NEEDED)  \
    X(nvml_code, event_set_free, nvmlEventSetFree, (struct nvml_event_set * set), NVML_NEEDED)

/* NOLINTNEXTLINE(bugprone-macro-parentheses): it declares */
#define NVML_MEMBER(result, member, symbol, parameters, needed) result(*member) parameters;

/* The library with its functions; an OPTIONAL one that it lacks is NULL.  All zero:
 * not loaded. */
struct nvml {
    void *handle;
    NVML_FUNCTIONS(NVML_MEMBER)
};

/*
 * Loads `path` (NULL: NVML_DEFAULT_LIBRARY, by the loader's search), all NEEDED
 * functions or nothing.  Does not call nvmlInit_v2.  error.code: ENOENT when there is
 * no such library or it cannot be loaded, ENOSYS when it lacks a function.
 */
int nvml_load(const char *path, struct nvml *ret_nvml, struct vgpu_error *error);

/* Does not call nvmlShutdown.  Nothing for one that is not loaded. */
void nvml_unload(struct nvml *nvml);

/* "GPU is lost (15)"; never NULL, for any code. */
void nvml_describe_code(const struct nvml *nvml, nvml_code code, char *text, size_t bytes);

#endif /* VGPU_GPU_NVML_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu/nvml.h beside NVIDIA's own header, where that one is installed.  The compiler
 * compares: that this file was built with it is the proof.
 */
#include "unit.h"

#include "gpu/nvml.h"

#ifdef VGPU_HAVE_NVML_HEADER

/* Names that are to go some day still are what they were. */
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#define SAME(ours, theirs)                                                                         \
    _Static_assert((unsigned long long)(ours) == (unsigned long long)(theirs),                     \
                   #ours " is " #theirs);
#define SAME_STRUCT(ours, theirs)                                                                  \
    _Static_assert(sizeof(ours) == sizeof(theirs), #ours " is a " #theirs);
#define SAME_FIELD(ours, field, theirs, their_field)                                               \
    _Static_assert(offsetof(ours, field) == offsetof(theirs, their_field) &&                       \
                       sizeof(((ours *)NULL)->field) == sizeof(((theirs *)NULL)->their_field),     \
                   #ours "." #field " is " #their_field);

SAME(NVML_CODE_SUCCESS, NVML_SUCCESS)
SAME(NVML_CODE_UNINITIALIZED, NVML_ERROR_UNINITIALIZED)
SAME(NVML_CODE_INVALID_ARGUMENT, NVML_ERROR_INVALID_ARGUMENT)
SAME(NVML_CODE_NOT_SUPPORTED, NVML_ERROR_NOT_SUPPORTED)
SAME(NVML_CODE_NO_PERMISSION, NVML_ERROR_NO_PERMISSION)
SAME(NVML_CODE_NOT_FOUND, NVML_ERROR_NOT_FOUND)
SAME(NVML_CODE_DRIVER_NOT_LOADED, NVML_ERROR_DRIVER_NOT_LOADED)
SAME(NVML_CODE_TIMEOUT, NVML_ERROR_TIMEOUT)
SAME(NVML_CODE_GPU_IS_LOST, NVML_ERROR_GPU_IS_LOST)
SAME(NVML_CODE_UNKNOWN, NVML_ERROR_UNKNOWN)

SAME(NVML_UUID_BYTES, NVML_DEVICE_UUID_V2_BUFFER_SIZE)
SAME(NVML_NAME_BYTES, NVML_DEVICE_NAME_V2_BUFFER_SIZE)
SAME(NVML_VERSION_BYTES, NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE)
SAME(NVML_TEMPERATURE_OF_GPU, NVML_TEMPERATURE_GPU)
SAME(NVML_ECC_CORRECTED, NVML_MEMORY_ERROR_TYPE_CORRECTED)
SAME(NVML_ECC_UNCORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
SAME(NVML_ECC_VOLATILE, NVML_VOLATILE_ECC)
SAME(NVML_MIG_OFF, NVML_DEVICE_MIG_DISABLE)
SAME(NVML_MIG_ON, NVML_DEVICE_MIG_ENABLE)
SAME(NVML_EVENT_XID, nvmlEventTypeXidCriticalError)
SAME(NVML_THROTTLE_IDLE, nvmlClocksThrottleReasonGpuIdle)
SAME(NVML_THROTTLE_APPLICATION_CLOCKS, nvmlClocksThrottleReasonApplicationsClocksSetting)
SAME(NVML_THROTTLE_POWER_CAP, nvmlClocksThrottleReasonSwPowerCap)
SAME(NVML_THROTTLE_HW_SLOWDOWN, nvmlClocksThrottleReasonHwSlowdown)
SAME(NVML_THROTTLE_SYNC_BOOST, nvmlClocksThrottleReasonSyncBoost)
SAME(NVML_THROTTLE_SW_THERMAL, nvmlClocksThrottleReasonSwThermalSlowdown)
SAME(NVML_THROTTLE_HW_THERMAL, nvmlClocksThrottleReasonHwThermalSlowdown)
SAME(NVML_THROTTLE_POWER_BRAKE, nvmlClocksThrottleReasonHwPowerBrakeSlowdown)
SAME(NVML_THROTTLE_DISPLAY_CLOCKS, nvmlClocksThrottleReasonDisplayClockSetting)

SAME_STRUCT(struct nvml_pci, nvmlPciInfo_t)
SAME_FIELD(struct nvml_pci, domain, nvmlPciInfo_t, domain)
SAME_FIELD(struct nvml_pci, bus, nvmlPciInfo_t, bus)
SAME_FIELD(struct nvml_pci, device, nvmlPciInfo_t, device)
SAME_FIELD(struct nvml_pci, address, nvmlPciInfo_t, busId)
SAME_STRUCT(struct nvml_memory, nvmlMemory_t)
SAME_FIELD(struct nvml_memory, total_bytes, nvmlMemory_t, total)
SAME_FIELD(struct nvml_memory, free_bytes, nvmlMemory_t, free)
SAME_FIELD(struct nvml_memory, used_bytes, nvmlMemory_t, used)
SAME(NVML_MEMORY_V2, nvmlMemory_v2)
SAME_STRUCT(struct nvml_memory_v2, nvmlMemory_v2_t)
SAME_FIELD(struct nvml_memory_v2, total_bytes, nvmlMemory_v2_t, total)
SAME_FIELD(struct nvml_memory_v2, reserved_bytes, nvmlMemory_v2_t, reserved)
SAME_FIELD(struct nvml_memory_v2, free_bytes, nvmlMemory_v2_t, free)
SAME_FIELD(struct nvml_memory_v2, used_bytes, nvmlMemory_v2_t, used)
SAME_STRUCT(struct nvml_utilization, nvmlUtilization_t)
SAME_FIELD(struct nvml_utilization, gpu_percent, nvmlUtilization_t, gpu)
SAME_STRUCT(struct nvml_event, nvmlEventData_t)
SAME_FIELD(struct nvml_event, device, nvmlEventData_t, device)
SAME_FIELD(struct nvml_event, type, nvmlEventData_t, eventType)
SAME_FIELD(struct nvml_event, data, nvmlEventData_t, eventData)

/* The list once more, with their types in the place of ours. */
#define nvml_code nvmlReturn_t
#define nvml_sensor nvmlTemperatureSensors_t
#define nvml_ecc_kind nvmlMemoryErrorType_t
#define nvml_ecc_counter nvmlEccCounterType_t
#define nvml_device nvmlDevice_st
#define nvml_event_set nvmlEventSet_st
#define nvml_pci nvmlPciInfo_st
#define nvml_memory nvmlMemory_st
#define nvml_memory_v2 nvmlMemory_v2_st
#define nvml_utilization nvmlUtilization_st
#define nvml_event nvmlEventData_st

#define SAME_PROTOTYPE(result, member, symbol, parameters, needed)                                 \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&symbol), result(*) parameters),        \
                   #symbol " has other parameters");

NVML_FUNCTIONS(SAME_PROTOTYPE)

static void nvml_declarations_are_those_of_nvidias_header(void **state)
{
    (void)state;
    print_message("compared with the header of NVML %d\n", NVML_API_VERSION);
}

#else

static void nvml_declarations_are_those_of_nvidias_header(void **state)
{
    (void)state;
    print_message("# no nvml.h here: install the CUDA toolkit to compare with it\n");
    skip();
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nvml_declarations_are_those_of_nvidias_header),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

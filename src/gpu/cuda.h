/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVIDIA's driver library, libcuda.so.1, loaded at run time: one binary runs with or
 * without a GPU, and no CUDA header is needed to build it.
 *
 * The declarations are our own, of the part of the library's stable ABI that is used
 * here.  One list, CUDA_FUNCTIONS, names each function; struct cuda holds a pointer to
 * each, so that a call reads `cuda->mem_alloc(&address, bytes)`.  Names and meanings are
 * those of NVIDIA's "CUDA Driver API" manual: cuMemAlloc_v2 is documented as cuMemAlloc.
 * A test compares all of it with NVIDIA's header where that one is installed.
 */
#ifndef VGPU_GPU_CUDA_H
#define VGPU_GPU_CUDA_H

#include "base/base.h"

/* --- types ----------------------------------------------------------------------------- */

typedef int cuda_result; /* CUDA_SUCCESS or one of CUDA_RESULTS, or one that is newer */
typedef int cuda_device; /* what device_get() gave */
typedef int cuda_device_attribute;
typedef int cuda_function_attribute;
typedef int cuda_jit_option;
typedef int cuda_jit_input; /* CUDA_JIT_INPUT_* */
typedef int cuda_limit;
typedef unsigned long long cuda_pointer; /* an address on the device */

/* Opaque; the tags are those of the library's own handles. */
typedef struct CUctx_st *cuda_context;
typedef struct CUstream_st *cuda_stream; /* NULL: the default stream */
typedef struct CUevent_st *cuda_event;
typedef struct CUmod_st *cuda_module;
typedef struct CUfunc_st *cuda_function;
typedef struct CUlinkState_st *cuda_link;
typedef void (*cuda_host_function)(void *argument); /* must call nothing of CUDA */

typedef struct {
    char bytes[16];
} cuda_uuid;

/* --- constants --------------------------------------------------------------------------- */

/* X(name, value): each becomes CUDA_name; NVIDIA's text for it is "CUDA_ERROR_name". */
#define CUDA_RESULTS(X)                                                                            \
    X(INVALID_VALUE, 1)                                                                            \
    X(OUT_OF_MEMORY, 2)                                                                            \
    X(NOT_INITIALIZED, 3)                                                                          \
    X(DEINITIALIZED, 4)                                                                            \
    X(STUB_LIBRARY, 34)                                                                            \
    X(DEVICE_UNAVAILABLE, 46)                                                                      \
    X(NO_DEVICE, 100)                                                                              \
    X(INVALID_DEVICE, 101)                                                                         \
    X(DEVICE_NOT_LICENSED, 102)                                                                    \
    X(INVALID_IMAGE, 200)                                                                          \
    X(INVALID_CONTEXT, 201)                                                                        \
    X(NO_BINARY_FOR_GPU, 209)                                                                      \
    X(ECC_UNCORRECTABLE, 214)                                                                      \
    X(INVALID_PTX, 218)                                                                            \
    X(NVLINK_UNCORRECTABLE, 220)                                                                   \
    X(JIT_COMPILER_NOT_FOUND, 221)                                                                 \
    X(UNSUPPORTED_PTX_VERSION, 222)                                                                \
    X(JIT_COMPILATION_DISABLED, 223)                                                               \
    X(CONTAINED, 226)                                                                              \
    X(OPERATING_SYSTEM, 304)                                                                       \
    X(INVALID_HANDLE, 400)                                                                         \
    X(NOT_FOUND, 500)                                                                              \
    X(NOT_READY, 600)                                                                              \
    X(ILLEGAL_ADDRESS, 700)                                                                        \
    X(LAUNCH_OUT_OF_RESOURCES, 701)                                                                \
    X(LAUNCH_TIMEOUT, 702)                                                                         \
    X(CONTEXT_IS_DESTROYED, 709)                                                                   \
    X(ASSERT, 710)                                                                                 \
    X(HOST_MEMORY_ALREADY_REGISTERED, 712)                                                         \
    X(HOST_MEMORY_NOT_REGISTERED, 713)                                                             \
    X(HARDWARE_STACK_ERROR, 714)                                                                   \
    X(ILLEGAL_INSTRUCTION, 715)                                                                    \
    X(MISALIGNED_ADDRESS, 716)                                                                     \
    X(INVALID_ADDRESS_SPACE, 717)                                                                  \
    X(INVALID_PC, 718)                                                                             \
    X(LAUNCH_FAILED, 719)                                                                          \
    X(NOT_PERMITTED, 800)                                                                          \
    X(NOT_SUPPORTED, 801)                                                                          \
    X(SYSTEM_NOT_READY, 802)                                                                       \
    X(SYSTEM_DRIVER_MISMATCH, 803)                                                                 \
    X(COMPAT_NOT_SUPPORTED_ON_DEVICE, 804)                                                         \
    X(UNKNOWN, 999)

/* X(name, value): each becomes CUDA_DEVICE_name, for device_get_attribute(). */
#define CUDA_DEVICE_ATTRIBUTES(X)                                                                  \
    X(MAX_THREADS_PER_BLOCK, 1)                                                                    \
    X(MAX_BLOCK_DIM_X, 2)                                                                          \
    X(MAX_BLOCK_DIM_Y, 3)                                                                          \
    X(MAX_BLOCK_DIM_Z, 4)                                                                          \
    X(MAX_GRID_DIM_X, 5)                                                                           \
    X(MAX_GRID_DIM_Y, 6)                                                                           \
    X(MAX_GRID_DIM_Z, 7)                                                                           \
    X(MAX_SHARED_MEMORY_PER_BLOCK, 8) /* bytes */                                                  \
    X(WARP_SIZE, 10)                                                                               \
    X(MAX_REGISTERS_PER_BLOCK, 12)                                                                 \
    X(CLOCK_RATE, 13) /* kHz */                                                                    \
    X(MULTIPROCESSOR_COUNT, 16)                                                                    \
    X(INTEGRATED, 18)                                                                              \
    X(CAN_MAP_HOST_MEMORY, 19)                                                                     \
    X(COMPUTE_MODE, 20) /* CUDA_COMPUTE_MODE_* */                                                  \
    X(ECC_ENABLED, 32)                                                                             \
    X(PCI_BUS_ID, 33)                                                                              \
    X(PCI_DEVICE_ID, 34)                                                                           \
    X(MEMORY_CLOCK_RATE, 36)       /* kHz */                                                       \
    X(GLOBAL_MEMORY_BUS_WIDTH, 37) /* bits */                                                      \
    X(L2_CACHE_SIZE, 38)           /* bytes */                                                     \
    X(MAX_THREADS_PER_MULTIPROCESSOR, 39)                                                          \
    X(ASYNC_ENGINE_COUNT, 40)                                                                      \
    X(UNIFIED_ADDRESSING, 41)                                                                      \
    X(PCI_DOMAIN_ID, 50)                                                                           \
    X(COMPUTE_CAPABILITY_MAJOR, 75)                                                                \
    X(COMPUTE_CAPABILITY_MINOR, 76)                                                                \
    X(CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 91)                                                 \
    X(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 97) /* bytes */                                           \
    X(HOST_REGISTER_SUPPORTED, 99)                                                                 \
    X(CAN_USE_64_BIT_STREAM_MEM_OPS, 122) /* those of 32 bits are always there */

/* X(name, value): each becomes CUDA_FUNCTION_name, for func_get_attribute(). */
#define CUDA_FUNCTION_ATTRIBUTES(X)                                                                \
    X(MAX_THREADS_PER_BLOCK, 0)                                                                    \
    X(SHARED_SIZE_BYTES, 1)                                                                        \
    X(CONST_SIZE_BYTES, 2)                                                                         \
    X(LOCAL_SIZE_BYTES, 3)                                                                         \
    X(NUM_REGS, 4)                                                                                 \
    X(PTX_VERSION, 5)                                                                              \
    X(BINARY_VERSION, 6)                                                                           \
    X(MAX_DYNAMIC_SHARED_SIZE_BYTES, 8) /* the one that may be set */

#define CUDA_RESULT_CONSTANT(name, value) CUDA_##name = (value),
#define CUDA_DEVICE_CONSTANT(name, value) CUDA_DEVICE_##name = (value),
#define CUDA_FUNCTION_CONSTANT(name, value) CUDA_FUNCTION_##name = (value),

enum { CUDA_SUCCESS = 0, CUDA_RESULTS(CUDA_RESULT_CONSTANT) };
enum { CUDA_DEVICE_ATTRIBUTES(CUDA_DEVICE_CONSTANT) };
enum { CUDA_FUNCTION_ATTRIBUTES(CUDA_FUNCTION_CONSTANT) };

enum { /* of the attribute COMPUTE_MODE */
       CUDA_COMPUTE_MODE_DEFAULT = 0,
       CUDA_COMPUTE_MODE_PROHIBITED = 2,
       CUDA_COMPUTE_MODE_EXCLUSIVE_PROCESS = 3,
};

enum { /* flags of ctx_create(): how its synchronising calls wait */
       CUDA_CONTEXT_SCHED_AUTO = 0,
       CUDA_CONTEXT_SCHED_SPIN = 1,
       CUDA_CONTEXT_SCHED_YIELD = 2,
       CUDA_CONTEXT_SCHED_BLOCKING_SYNC = 4,
       CUDA_CONTEXT_MAP_HOST = 8,
};

enum { CUDA_LIMIT_STACK_SIZE = 0 }; /* of ctx_get_limit(): bytes of a thread */
enum { CUDA_STREAM_DEFAULT = 0, CUDA_STREAM_NON_BLOCKING = 1 };
enum { CUDA_STREAM_WRITE_VALUE_DEFAULT = 0, CUDA_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER = 1 };
enum { CUDA_EVENT_DEFAULT = 0, CUDA_EVENT_BLOCKING_SYNC = 1, CUDA_EVENT_DISABLE_TIMING = 2 };
enum { CUDA_HOST_ALLOC_PORTABLE = 1, CUDA_HOST_ALLOC_DEVICEMAP = 2 };
enum { CUDA_HOST_REGISTER_PORTABLE = 1, CUDA_HOST_REGISTER_DEVICEMAP = 2 };

enum { /* options of module_load_data_ex() */
       CUDA_JIT_INFO_LOG_BUFFER = 3,
       CUDA_JIT_INFO_LOG_BUFFER_SIZE_BYTES = 4,
       CUDA_JIT_ERROR_LOG_BUFFER = 5,
       CUDA_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
};

enum { /* what link_add_data() is given */
       CUDA_JIT_INPUT_CUBIN = 0,
       CUDA_JIT_INPUT_PTX = 1,
       CUDA_JIT_INPUT_FATBINARY = 2,
};

/* --- functions --------------------------------------------------------------------------- */

/* The oldest CUDA that has all that is NEEDED: major * 1000 + minor * 10. */
#define CUDA_VERSION_MIN 12040
#define CUDA_DRIVER_MIN "550" /* of NVIDIA's driver packages, which has that CUDA */

/*
 * X(member, symbol, need, parameters): a function that returns a cuda_result.  Without
 * one that is NEEDED nothing loads; the pointer of one that is OPTIONAL may be NULL.
 * clang-format would put each parameter on a line of its own.
 */
/* clang-format off */
#define CUDA_FUNCTIONS(X)                                                                          \
    X(init, cuInit, NEEDED, (unsigned flags))                                                      \
    X(driver_get_version, cuDriverGetVersion, NEEDED, (int *version))                              \
    X(get_error_name, cuGetErrorName, NEEDED, (cuda_result result, const char **name))             \
    X(get_error_string, cuGetErrorString, OPTIONAL, (cuda_result result, const char **text))       \
    X(device_get_count, cuDeviceGetCount, NEEDED, (int *count))                                    \
    X(device_get, cuDeviceGet, NEEDED, (cuda_device *device, int index))                           \
    X(device_get_name, cuDeviceGetName, NEEDED, (char *name, int bytes, cuda_device device))       \
    X(device_get_uuid, cuDeviceGetUuid_v2, NEEDED, (cuda_uuid *uuid, cuda_device device))          \
    X(device_total_mem, cuDeviceTotalMem_v2, NEEDED, (size_t *bytes, cuda_device device))          \
    X(device_get_attribute, cuDeviceGetAttribute, NEEDED,                                          \
      (int *value, cuda_device_attribute attribute, cuda_device device))                           \
    X(device_get_pci_bus_id, cuDeviceGetPCIBusId, NEEDED,                                          \
      (char *address, int bytes, cuda_device device))                                              \
    X(device_get_by_pci_bus_id, cuDeviceGetByPCIBusId, NEEDED,                                     \
      (cuda_device *device, const char *address))                                                  \
    X(ctx_create, cuCtxCreate_v2, NEEDED,                                                          \
      (cuda_context *context, unsigned flags, cuda_device device))                                 \
    X(ctx_destroy, cuCtxDestroy_v2, NEEDED, (cuda_context context))                                \
    X(ctx_set_current, cuCtxSetCurrent, NEEDED, (cuda_context context))                            \
    X(ctx_get_limit, cuCtxGetLimit, NEEDED, (size_t *value, cuda_limit limit))                     \
    X(ctx_enable_peer_access, cuCtxEnablePeerAccess, OPTIONAL,                                     \
      (cuda_context peer, unsigned flags))                                                         \
    X(ctx_synchronize, cuCtxSynchronize, NEEDED, (void))                                           \
    X(mem_get_info, cuMemGetInfo_v2, NEEDED, (size_t *free_bytes, size_t *total_bytes))            \
    X(mem_alloc, cuMemAlloc_v2, NEEDED, (cuda_pointer *address, size_t bytes))                     \
    X(mem_free, cuMemFree_v2, NEEDED, (cuda_pointer address))                                      \
    X(mem_host_alloc, cuMemHostAlloc, NEEDED, (void **memory, size_t bytes, unsigned flags))       \
    X(mem_free_host, cuMemFreeHost, NEEDED, (void *memory))                                        \
    X(mem_host_register, cuMemHostRegister_v2, NEEDED,                                             \
      (void *memory, size_t bytes, unsigned flags))                                                \
    X(mem_host_unregister, cuMemHostUnregister, NEEDED, (void *memory))                            \
    X(mem_host_get_device_pointer, cuMemHostGetDevicePointer_v2, NEEDED,                           \
      (cuda_pointer *address, void *memory, unsigned flags))                                       \
    X(memcpy_htod_async, cuMemcpyHtoDAsync_v2, NEEDED,                                             \
      (cuda_pointer target, const void *source, size_t bytes, cuda_stream stream))                 \
    X(memcpy_dtoh_async, cuMemcpyDtoHAsync_v2, NEEDED,                                             \
      (void *target, cuda_pointer source, size_t bytes, cuda_stream stream))                       \
    X(memcpy_dtod_async, cuMemcpyDtoDAsync_v2, NEEDED,                                             \
      (cuda_pointer target, cuda_pointer source, size_t bytes, cuda_stream stream))                \
    X(memcpy_peer_async, cuMemcpyPeerAsync, NEEDED,                                                \
      (cuda_pointer target, cuda_context target_context, cuda_pointer source,                      \
       cuda_context source_context, size_t bytes, cuda_stream stream))                             \
    X(memset_d8_async, cuMemsetD8Async, NEEDED,                                                    \
      (cuda_pointer target, unsigned char value, size_t count, cuda_stream stream))                \
    X(memset_d16_async, cuMemsetD16Async, NEEDED,                                                  \
      (cuda_pointer target, unsigned short value, size_t count, cuda_stream stream))               \
    X(memset_d32_async, cuMemsetD32Async, NEEDED,                                                  \
      (cuda_pointer target, unsigned value, size_t count, cuda_stream stream))                     \
    X(stream_create, cuStreamCreate, NEEDED, (cuda_stream *stream, unsigned flags))                \
    X(stream_destroy, cuStreamDestroy_v2, NEEDED, (cuda_stream stream))                            \
    X(stream_query, cuStreamQuery, NEEDED, (cuda_stream stream))                                   \
    X(stream_synchronize, cuStreamSynchronize, NEEDED, (cuda_stream stream))                       \
    X(stream_wait_event, cuStreamWaitEvent, NEEDED,                                                \
      (cuda_stream stream, cuda_event event, unsigned flags))                                      \
    X(stream_write_value32, cuStreamWriteValue32_v2, NEEDED,                                       \
      (cuda_stream stream, cuda_pointer address, uint32_t value, unsigned flags))                  \
    X(event_create, cuEventCreate, NEEDED, (cuda_event *event, unsigned flags))                    \
    X(event_destroy, cuEventDestroy_v2, NEEDED, (cuda_event event))                                \
    X(event_record, cuEventRecord, NEEDED, (cuda_event event, cuda_stream stream))                 \
    X(event_query, cuEventQuery, NEEDED, (cuda_event event))                                       \
    X(event_synchronize, cuEventSynchronize, NEEDED, (cuda_event event))                           \
    X(event_elapsed_time, cuEventElapsedTime, NEEDED,                                              \
      (float *ms, cuda_event start, cuda_event end))                                               \
    X(launch_host_func, cuLaunchHostFunc, NEEDED,                                                  \
      (cuda_stream stream, cuda_host_function function, void *argument))                           \
    X(module_load_data_ex, cuModuleLoadDataEx, NEEDED,                                             \
      (cuda_module *module, const void *image, unsigned option_count, cuda_jit_option *options,    \
       void **option_values))                                                                      \
    X(module_unload, cuModuleUnload, NEEDED, (cuda_module module))                                 \
    X(link_create, cuLinkCreate_v2, NEEDED,                                                        \
      (unsigned option_count, cuda_jit_option *options, void **option_values, cuda_link *link))    \
    X(link_add_data, cuLinkAddData_v2, NEEDED,                                                     \
      (cuda_link link, cuda_jit_input type, void *data, size_t bytes, const char *name,            \
       unsigned option_count, cuda_jit_option *options, void **option_values))                     \
    X(link_complete, cuLinkComplete, NEEDED, (cuda_link link, void **cubin, size_t *bytes))        \
    X(link_destroy, cuLinkDestroy, NEEDED, (cuda_link link))                                       \
    X(module_get_function, cuModuleGetFunction, NEEDED,                                            \
      (cuda_function *function, cuda_module module, const char *name))                             \
    X(func_get_attribute, cuFuncGetAttribute, NEEDED,                                              \
      (int *value, cuda_function_attribute attribute, cuda_function function))                     \
    X(func_set_attribute, cuFuncSetAttribute, NEEDED,                                              \
      (cuda_function function, cuda_function_attribute attribute, int value))                      \
    X(func_get_param_info, cuFuncGetParamInfo, NEEDED,                                             \
      (cuda_function function, size_t index, size_t *offset_bytes, size_t *size_bytes))            \
    X(launch_kernel, cuLaunchKernel, NEEDED,                                                       \
      (cuda_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,                  \
       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,                \
       cuda_stream stream, void **parameters, void **extra))
/* clang-format on */

/* NOLINTNEXTLINE(bugprone-macro-parentheses): the parameters have theirs */
#define CUDA_MEMBER(member, symbol, need, parameters) cuda_result(*member) parameters;

/* The library's functions; all zero: not loaded. */
struct cuda {
    void *handle; /* of dlopen(3) */
    int version;  /* of CUDA, as the driver says: 12040 is 12.4 */
    CUDA_FUNCTIONS(CUDA_MEMBER)
};

/*
 * Loads the library, all or nothing, and asks its version; cuInit() is not called and no
 * device is touched, but the library's own code runs: who cannot trust it does this in a
 * process of its own (see gpu_gate()).  `path` NULL is "libcuda.so.1".  The caller owns
 * *ret_cuda until cuda_unload().
 * Returns 0, or -1 with the code ENOENT (there is none), ELIBBAD (it cannot be loaded, or
 * is not whole) or ENOTSUP (older than CUDA_VERSION_MIN).
 */
int cuda_load(const char *path, struct cuda *ret_cuda, struct vgpu_error *error);

/* Forgets the functions; *cuda is as if never loaded.  NULL is allowed. */
void cuda_unload(struct cuda *cuda);

/* "CUDA_ERROR_OUT_OF_MEMORY"; never NULL, whatever the number, and never to be freed.
 * `cuda` may be NULL or not loaded: then the names of CUDA_RESULTS are known. */
const char *cuda_error_name(const struct cuda *cuda, cuda_result result);

#endif /* VGPU_GPU_CUDA_H */

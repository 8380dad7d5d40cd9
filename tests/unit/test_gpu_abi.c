/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu/cuda.h beside NVIDIA's own header, where that one is installed.  The compiler
 * compares: that this file was built with it is the proof.
 */
#include "unit.h"

#include "gpu/cuda.h"

#ifdef VGPU_HAVE_CUDA_HEADER

/* Prototypes by the names that the library exports, and the one name that both have. */
#define __CUDA_API_VERSION_INTERNAL
#define CUDA_SUCCESS NVIDIA_SUCCESS
#include <cuda.h>
#undef CUDA_SUCCESS

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours " is " #theirs);
#define SAME_RESULT(name, value) SAME(CUDA_##name, CUDA_ERROR_##name)
#define SAME_DEVICE(name, value) SAME(CUDA_DEVICE_##name, CU_DEVICE_ATTRIBUTE_##name)
#define SAME_FUNCTION(name, value) SAME(CUDA_FUNCTION_##name, CU_FUNC_ATTRIBUTE_##name)
#define SAME_SIZE(ours, theirs)                                                                    \
    _Static_assert(sizeof(ours) == sizeof(theirs), #ours " is a " #theirs);

SAME(CUDA_SUCCESS, NVIDIA_SUCCESS)
CUDA_RESULTS(SAME_RESULT)
CUDA_DEVICE_ATTRIBUTES(SAME_DEVICE)
CUDA_FUNCTION_ATTRIBUTES(SAME_FUNCTION)
SAME(CUDA_COMPUTE_MODE_DEFAULT, CU_COMPUTEMODE_DEFAULT)
SAME(CUDA_COMPUTE_MODE_PROHIBITED, CU_COMPUTEMODE_PROHIBITED)
SAME(CUDA_COMPUTE_MODE_EXCLUSIVE_PROCESS, CU_COMPUTEMODE_EXCLUSIVE_PROCESS)
SAME(CUDA_CONTEXT_SCHED_AUTO, CU_CTX_SCHED_AUTO)
SAME(CUDA_CONTEXT_SCHED_SPIN, CU_CTX_SCHED_SPIN)
SAME(CUDA_CONTEXT_SCHED_YIELD, CU_CTX_SCHED_YIELD)
SAME(CUDA_CONTEXT_SCHED_BLOCKING_SYNC, CU_CTX_SCHED_BLOCKING_SYNC)
SAME(CUDA_CONTEXT_MAP_HOST, CU_CTX_MAP_HOST)
SAME(CUDA_LIMIT_STACK_SIZE, CU_LIMIT_STACK_SIZE)
SAME(CUDA_STREAM_DEFAULT, CU_STREAM_DEFAULT)
SAME(CUDA_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING)
SAME(CUDA_STREAM_WRITE_VALUE_DEFAULT, CU_STREAM_WRITE_VALUE_DEFAULT)
SAME(CUDA_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER, CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER)
SAME(CUDA_EVENT_DEFAULT, CU_EVENT_DEFAULT)
SAME(CUDA_EVENT_BLOCKING_SYNC, CU_EVENT_BLOCKING_SYNC)
SAME(CUDA_EVENT_DISABLE_TIMING, CU_EVENT_DISABLE_TIMING)
SAME(CUDA_HOST_ALLOC_PORTABLE, CU_MEMHOSTALLOC_PORTABLE)
SAME(CUDA_HOST_ALLOC_DEVICEMAP, CU_MEMHOSTALLOC_DEVICEMAP)
SAME(CUDA_HOST_REGISTER_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE)
SAME(CUDA_HOST_REGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_DEVICEMAP)
SAME(CUDA_JIT_INFO_LOG_BUFFER, CU_JIT_INFO_LOG_BUFFER)
SAME(CUDA_JIT_INFO_LOG_BUFFER_SIZE_BYTES, CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES)
SAME(CUDA_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER)
SAME(CUDA_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
SAME(CUDA_JIT_INPUT_CUBIN, CU_JIT_INPUT_CUBIN)
SAME(CUDA_JIT_INPUT_PTX, CU_JIT_INPUT_PTX)
SAME(CUDA_JIT_INPUT_FATBINARY, CU_JIT_INPUT_FATBINARY)

SAME_SIZE(cuda_result, CUresult)
SAME_SIZE(cuda_device, CUdevice)
SAME_SIZE(cuda_device_attribute, CUdevice_attribute)
SAME_SIZE(cuda_function_attribute, CUfunction_attribute)
SAME_SIZE(cuda_jit_option, CUjit_option)
SAME_SIZE(cuda_jit_input, CUjitInputType)
SAME_SIZE(cuda_limit, CUlimit)
SAME_SIZE(cuda_pointer, CUdeviceptr)
SAME_SIZE(cuda_uuid, CUuuid)
SAME_SIZE(cuda_context, CUcontext)

/* The list once more with their types in the place of ours: enumerations are no int, and
 * a struct without a tag is another one. */
#define cuda_result CUresult
#define cuda_device_attribute CUdevice_attribute
#define cuda_function_attribute CUfunction_attribute
#define cuda_jit_option CUjit_option
#define cuda_jit_input CUjitInputType
#define cuda_limit CUlimit
#define cuda_uuid CUuuid

#define SAME_PROTOTYPE(member, symbol, need, parameters)                                           \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&symbol), CUresult(*) parameters),      \
                   #symbol " has other parameters");

CUDA_FUNCTIONS(SAME_PROTOTYPE)

static void cuda_declarations_are_those_of_nvidias_header(void **state)
{
    (void)state;
    print_message("# compared with the header of CUDA %d\n", CUDA_VERSION);
}

#else

static void cuda_declarations_are_those_of_nvidias_header(void **state)
{
    (void)state;
    print_message("# no cuda.h here: install the CUDA toolkit to compare with it\n");
    skip();
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuda_declarations_are_those_of_nvidias_header),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

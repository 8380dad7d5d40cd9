/* SPDX-License-Identifier: Apache-2.0 */
/* Devices, contexts, and the objects that have handles. */
#include "fake_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t fake_changed = PTHREAD_COND_INITIALIZER;

static struct fake_device devices[FAKE_DEVICES_MAX];
static struct fake_object *objects;
static bool initialised;
static __thread cuda_context current;

cuda_context fake_current(void)
{
    return current;
}

bool fake_is_initialised(void)
{
    return initialised;
}

/* --- objects
 * --------------------------------------------------------------------------------------- */

void *fake_object_new(enum fake_kind kind, cuda_context context, size_t bytes)
{
    struct fake_object *object = calloc(1, bytes);

    if (!object)
        abort();
    *object = (struct fake_object){.kind = kind, .context = context, .next = objects};
    objects = object;
    return object;
}

bool fake_object_is(enum fake_kind kind, const void *object)
{
    const struct fake_object *at = objects;

    while (at && at != object)
        at = at->next;
    return at && at->kind == kind;
}

void fake_object_free(void *object)
{
    struct fake_object **at = &objects;

    while (*at && *at != object)
        at = &(*at)->next;
    if (*at)
        *at = (*at)->next;
    free(object);
}

static void free_objects_of(cuda_context context)
{
    struct fake_object **at = &objects;

    while (*at) {
        struct fake_object *object = *at;

        if (object->context != context || object->kind == KIND_CONTEXT) {
            at = &object->next;
            continue;
        }
        *at = object->next;
        free(object);
    }
}

/* --- the library
 * -------------------------------------------------------------------------------------- */

cuda_result cuInit(unsigned flags)
{
    cuda_result result = fake_enter(__func__, NEEDS_NOTHING);

    if (result != CUDA_SUCCESS)
        return result;
    if (flags)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    initialised = true;
    result = fake_orders()->lost      ? fake_orders()->lost
             : fake_orders()->devices ? CUDA_SUCCESS
                                      : CUDA_NO_DEVICE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuDriverGetVersion(int *version)
{
    cuda_result result = fake_enter(__func__, NEEDS_NOTHING);

    if (result == CUDA_SUCCESS)
        *version = fake_orders()->version;
    return result;
}

#define FAKE_RESULT(name, value)                                                                   \
    case (value):                                                                                  \
        return "CUDA_ERROR_" #name;

static const char *result_name(cuda_result result)
{
    switch (result) {
    case CUDA_SUCCESS:
        return "CUDA_SUCCESS";
        CUDA_RESULTS(FAKE_RESULT)
    default:
        return NULL;
    }
}

cuda_result cuGetErrorName(cuda_result code, const char **name)
{
    cuda_result result = fake_enter(__func__, NEEDS_NOTHING);

    *name = result_name(code);
    return result != CUDA_SUCCESS ? result : *name ? CUDA_SUCCESS : CUDA_INVALID_VALUE;
}

cuda_result cuGetErrorString(cuda_result code, const char **text)
{
    cuda_result result = fake_enter(__func__, NEEDS_NOTHING);

    *text = result_name(code) ? "an error of the fake libcuda" : NULL;
    return result != CUDA_SUCCESS ? result : *text ? CUDA_SUCCESS : CUDA_INVALID_VALUE;
}

/* --- devices
 * -------------------------------------------------------------------------------------------- */

/* The UUID behind "MIG-" in the environment; NULL: whole GPUs are shown. */
static const char *mig_uuid(void)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");

    return visible && strncmp(visible, "MIG-", 4) == 0 ? visible + 4 : NULL;
}

static int device_count(void)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");

    if (visible && !visible[0])
        return 0;
    return mig_uuid() ? 1 : fake_orders()->devices;
}

static cuda_result enter_device(const char *function, cuda_device device)
{
    cuda_result result = fake_enter(function, NEEDS_INIT);

    if (result != CUDA_SUCCESS)
        return result;
    return device >= 0 && device < device_count() ? CUDA_SUCCESS : CUDA_INVALID_DEVICE;
}

cuda_result cuDeviceGetCount(int *count)
{
    cuda_result result = fake_enter(__func__, NEEDS_INIT);

    if (result == CUDA_SUCCESS)
        *count = device_count();
    return result;
}

cuda_result cuDeviceGet(cuda_device *device, int index)
{
    cuda_result result = enter_device(__func__, index);

    if (result == CUDA_SUCCESS)
        *device = index;
    return result;
}

cuda_result cuDeviceGetName(char *name, int bytes, cuda_device device)
{
    cuda_result result = enter_device(__func__, device);

    if (result == CUDA_SUCCESS && fake_orders()->models)
        snprintf(name, (size_t)bytes, "NVIDIA Fake %d", device);
    else if (result == CUDA_SUCCESS)
        snprintf(name, (size_t)bytes, "NVIDIA Fake%s", mig_uuid() ? " MIG 1g.18gb" : "");
    return result;
}

cuda_result cuDeviceGetUuid_v2(cuda_uuid *uuid, cuda_device device)
{
    cuda_result result = enter_device(__func__, device);
    const char *text = mig_uuid();

    if (result != CUDA_SUCCESS)
        return result;
    *uuid = (cuda_uuid){.bytes = {[15] = (char)device}};
    for (size_t i = 0; text && i < sizeof(uuid->bytes); text++) {
        unsigned byte;

        if (*text != '-' && sscanf(text, "%2x", &byte) == 1) {
            uuid->bytes[i++] = (char)byte;
            text++;
        }
        if (!*text)
            break;
    }
    return result;
}

cuda_result cuDeviceTotalMem_v2(size_t *bytes, cuda_device device)
{
    cuda_result result = enter_device(__func__, device);

    if (result == CUDA_SUCCESS)
        *bytes = fake_orders()->memory_bytes;
    return result;
}

/* Those of a H200. */
static const struct {
    cuda_device_attribute attribute;
    int value;
} attributes[] = {
    {CUDA_DEVICE_MAX_THREADS_PER_BLOCK, 1024},
    {CUDA_DEVICE_MAX_BLOCK_DIM_X, 1024},
    {CUDA_DEVICE_MAX_BLOCK_DIM_Y, 1024},
    {CUDA_DEVICE_MAX_BLOCK_DIM_Z, 64},
    {CUDA_DEVICE_MAX_GRID_DIM_X, 2147483647},
    {CUDA_DEVICE_MAX_GRID_DIM_Y, 65535},
    {CUDA_DEVICE_MAX_GRID_DIM_Z, 65535},
    {CUDA_DEVICE_MAX_SHARED_MEMORY_PER_BLOCK, 49152},
    {CUDA_DEVICE_WARP_SIZE, 32},
    {CUDA_DEVICE_MAX_REGISTERS_PER_BLOCK, 65536},
    {CUDA_DEVICE_CLOCK_RATE, 1980000},
    {CUDA_DEVICE_MULTIPROCESSOR_COUNT, FAKE_MULTIPROCESSORS},
    {CUDA_DEVICE_CAN_MAP_HOST_MEMORY, 1},
    {CUDA_DEVICE_ECC_ENABLED, 1},
    {CUDA_DEVICE_MEMORY_CLOCK_RATE, 3201000},
    {CUDA_DEVICE_GLOBAL_MEMORY_BUS_WIDTH, 6144},
    {CUDA_DEVICE_L2_CACHE_SIZE, 62914560},
    {CUDA_DEVICE_ASYNC_ENGINE_COUNT, 3},
    {CUDA_DEVICE_UNIFIED_ADDRESSING, 1},
    {CUDA_DEVICE_COMPUTE_CAPABILITY_MAJOR, 9},
    {CUDA_DEVICE_COMPUTE_CAPABILITY_MINOR, 0},
    {CUDA_DEVICE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1},
    {CUDA_DEVICE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 232448},
    {CUDA_DEVICE_HOST_REGISTER_SUPPORTED, 1},
    {CUDA_DEVICE_CAN_USE_64_BIT_STREAM_MEM_OPS, 1},
};

cuda_result cuDeviceGetAttribute(int *value, cuda_device_attribute attribute, cuda_device device)
{
    cuda_result result = enter_device(__func__, device);

    if (result != CUDA_SUCCESS)
        return result;
    *value = 0;
    if (attribute == CUDA_DEVICE_PCI_BUS_ID)
        *value = fake_orders()->bus + device;
    else if (attribute == CUDA_DEVICE_MAX_THREADS_PER_MULTIPROCESSOR)
        *value = fake_orders()->multiprocessor_threads;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(attributes); i++) {
        if (attributes[i].attribute == attribute)
            *value = attributes[i].value;
    }
    return CUDA_SUCCESS;
}

cuda_result cuDeviceGetPCIBusId(char *address, int bytes, cuda_device device)
{
    cuda_result result = enter_device(__func__, device);

    if (result == CUDA_SUCCESS)
        snprintf(address, (size_t)bytes, "0000:%02X:00.0", (unsigned)(fake_orders()->bus + device));
    return result;
}

cuda_result cuDeviceGetByPCIBusId(cuda_device *device, const char *address)
{
    cuda_result result = fake_enter(__func__, NEEDS_INIT);
    unsigned domain, bus, first_bus = (unsigned)fake_orders()->bus;

    if (result != CUDA_SUCCESS)
        return result;
    if (sscanf(address, "%x:%x:0.0", &domain, &bus) != 2 || domain || bus < first_bus ||
        bus >= first_bus + (unsigned)device_count())
        return CUDA_INVALID_DEVICE;
    *device = (cuda_device)(bus - first_bus);
    return CUDA_SUCCESS;
}

/* --- contexts
 * --------------------------------------------------------------------------------------------- */

/* With the lock. */
static void note_device(cuda_device device)
{
    char word[32];

    snprintf(word, sizeof(word), "device %d", device);
    if (fake_orders()->contexts)
        fake_note(word);
}

cuda_result cuCtxCreate_v2(cuda_context *context, unsigned flags, cuda_device device)
{
    cuda_result result = enter_device(__func__, device);
    cuda_context made;

    (void)flags;
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (!fake_memory_open(&devices[device])) {
        pthread_mutex_unlock(&fake_lock);
        return CUDA_OUT_OF_MEMORY;
    }
    made = fake_object_new(KIND_CONTEXT, NULL, sizeof(*made));
    made->device = &devices[device];
    made->local_bytes = FAKE_STACK_BYTES;
    if (!fake_memory_hold(made, fake_orders()->context_bytes)) {
        fake_object_free(made);
        pthread_mutex_unlock(&fake_lock);
        return CUDA_OUT_OF_MEMORY;
    }
    made->default_stream = fake_object_new(KIND_STREAM, made, sizeof(*made->default_stream));
    note_device(device);
    pthread_mutex_unlock(&fake_lock);
    current = made;
    *context = made;
    return CUDA_SUCCESS;
}

cuda_result cuCtxGetLimit(size_t *value, cuda_limit limit)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    if (limit != CUDA_LIMIT_STACK_SIZE)
        return CUDA_INVALID_VALUE;
    *value = FAKE_STACK_BYTES;
    return CUDA_SUCCESS;
}

cuda_result cuCtxDestroy_v2(cuda_context context)
{
    cuda_result result = fake_enter(__func__, NEEDS_INIT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result = CUDA_INVALID_CONTEXT;
    if (fake_object_is(KIND_CONTEXT, context))
        result = fake_wait(context, context->device->submitted);
    if (result == CUDA_SUCCESS) {
        fake_memory_free_all(context);
        fake_memory_let_go(context, context->held_bytes);
        free_objects_of(context);
        fake_object_free(context);
        if (current == context)
            current = NULL;
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuCtxSetCurrent(cuda_context context)
{
    cuda_result result = fake_enter(__func__, NEEDS_INIT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (context && !fake_object_is(KIND_CONTEXT, context))
        result = CUDA_INVALID_CONTEXT;
    else
        current = context;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* Copies between devices need none here. */
cuda_result cuCtxEnablePeerAccess(cuda_context peer, unsigned flags)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (!fake_object_is(KIND_CONTEXT, peer))
        result = CUDA_INVALID_CONTEXT;
    else if (flags || peer->device == current->device)
        result = CUDA_INVALID_VALUE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuCtxSynchronize(void)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result = fake_wait(current, current->device->submitted);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

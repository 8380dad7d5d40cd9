/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device memory: a range of addresses that the host cannot read, as a real device's, and
 * beside it the bytes.  What is freed keeps its content, as on a device.
 */
#include "fake_cuda.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* So that holes between allocations are never the reason why there is no memory. */
#define ARENA_FACTOR 2u

/* Host memory that devices know. */
struct range {
    uint8_t *memory;
    size_t bytes;
    bool allocated; /* by cuMemHostAlloc */
    struct range *next;
};

static struct range *ranges;

/* Where the bytes lie; -1: in memory of this process. */
static int storage_file(void)
{
    char path[PATH_MAX];
    int fd;

    if (!fake_orders()->keep || !fake_path(path, ".memory"))
        return -1;
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        fprintf(stderr, "fake libcuda: '%s' cannot be opened: %s\n", path, strerror(errno));
        abort();
    }
    return fd;
}

static void *map_storage(size_t bytes)
{
    int fd = storage_file();
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
    void *storage = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);

    if (fd >= 0)
        close(fd);
    return storage;
}

bool fake_memory_open(struct fake_device *device)
{
    size_t bytes = fake_orders()->memory_bytes * ARENA_FACTOR;
    void *base, *storage;

    if (device->base)
        return true;
    base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    storage = map_storage(bytes);
    if (base == MAP_FAILED || storage == MAP_FAILED)
        return false;
    device->base = base;
    device->storage = storage;
    device->arena_bytes = bytes;
    TAILQ_INIT(&device->works);
    return true;
}

/* --- device memory
 * ------------------------------------------------------------------------------------- */

static cuda_pointer end_of(const struct fake_allocation *allocation)
{
    return allocation->address + allocation->bytes;
}

/* The link behind which `bytes` have room; *ret_address is where. */
static struct fake_allocation **find_room(struct fake_device *device, size_t bytes,
                                          cuda_pointer *ret_address)
{
    struct fake_allocation **at = &device->allocations;
    cuda_pointer address = (cuda_pointer)(uintptr_t)device->base;
    cuda_pointer end = address + device->arena_bytes;

    while (*at && (*at)->address - address < bytes) {
        address = end_of(*at);
        at = &(*at)->next;
    }
    *ret_address = address;
    return end - address < bytes ? NULL : at;
}

static cuda_result allocate(struct fake_device *device, size_t bytes, cuda_pointer *ret_address)
{
    size_t granule_bytes = fake_orders()->granule_bytes;
    size_t whole_bytes = (bytes + granule_bytes - 1) / granule_bytes * granule_bytes;
    struct fake_allocation **at, *allocation;
    cuda_pointer address;

    if (whole_bytes < bytes || device->used_bytes > fake_orders()->memory_bytes ||
        whole_bytes > fake_orders()->memory_bytes - device->used_bytes)
        return CUDA_OUT_OF_MEMORY;
    at = find_room(device, whole_bytes, &address);
    if (!at)
        return CUDA_OUT_OF_MEMORY;
    allocation = calloc(1, sizeof(*allocation));
    if (!allocation)
        abort();
    *allocation = (struct fake_allocation){
        .address = address, .bytes = whole_bytes, .context = fake_current(), .next = *at};
    *at = allocation;
    device->used_bytes += whole_bytes;
    *ret_address = address;
    return CUDA_SUCCESS;
}

cuda_result cuMemAlloc_v2(cuda_pointer *address, size_t bytes)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    if (!bytes)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    result = allocate(fake_current()->device, bytes, address);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

static void remove_allocation(struct fake_device *device, struct fake_allocation **at)
{
    struct fake_allocation *allocation = *at;

    device->used_bytes -= allocation->bytes;
    *at = allocation->next;
    free(allocation);
}

/* Waits for the work that may use it, as the real one does. */
cuda_result cuMemFree_v2(cuda_pointer address)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    struct fake_allocation **at;
    struct fake_device *device;

    if (result != CUDA_SUCCESS || !address)
        return result;
    pthread_mutex_lock(&fake_lock);
    device = fake_current()->device;
    result = fake_wait(fake_current(), device->submitted);
    at = &device->allocations;
    while (*at && (*at)->address != address)
        at = &(*at)->next;
    if (result == CUDA_SUCCESS && !*at)
        result = CUDA_INVALID_VALUE;
    else if (result == CUDA_SUCCESS)
        remove_allocation(device, at);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

void fake_memory_free_all(cuda_context context)
{
    struct fake_allocation **at = &context->device->allocations;

    while (*at) {
        if ((*at)->context == context)
            remove_allocation(context->device, at);
        else
            at = &(*at)->next;
    }
}

bool fake_memory_hold(cuda_context context, size_t bytes)
{
    struct fake_device *device = context->device;
    size_t all_bytes = fake_orders()->memory_bytes;

    if (device->used_bytes > all_bytes || bytes > all_bytes - device->used_bytes)
        return false;
    device->used_bytes += bytes;
    context->held_bytes += bytes;
    return true;
}

void fake_memory_let_go(cuda_context context, size_t bytes)
{
    context->device->used_bytes -= bytes;
    context->held_bytes -= bytes;
}

/* What other processes have more now than at first, wraps where it is less. */
static size_t others_bytes(void)
{
    return fake_has_loaded() ? (size_t)-fake_orders()->others_free_bytes : 0;
}

cuda_result cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    size_t used_bytes, all_bytes;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    used_bytes = fake_current()->device->used_bytes + others_bytes();
    all_bytes = fake_orders()->memory_bytes;
    if ((ptrdiff_t)used_bytes < 0)
        used_bytes = 0;
    *free_bytes = used_bytes < all_bytes ? all_bytes - used_bytes : 0;
    *total_bytes = all_bytes;
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

/* --- host memory
 * --------------------------------------------------------------------------------------- */

static bool lies_in(uint64_t address, size_t bytes, uint64_t begin, size_t all_bytes)
{
    return address >= begin && address - begin <= all_bytes &&
           bytes <= all_bytes - (address - begin);
}

bool fake_is_registered(const void *memory, size_t bytes)
{
    for (const struct range *range = ranges; range; range = range->next) {
        if (lies_in((uintptr_t)memory, bytes, (uintptr_t)range->memory, range->bytes))
            return true;
    }
    return false;
}

void *fake_memory_at(cuda_context context, cuda_pointer address, size_t bytes)
{
    struct fake_device *device = context->device;

    for (struct fake_allocation *at = device->allocations; at; at = at->next) {
        if (at->context == context && lies_in(address, bytes, at->address, at->bytes))
            return device->storage + (address - (uintptr_t)device->base);
    }
    return fake_is_registered((void *)(uintptr_t)address, bytes) ? (void *)(uintptr_t)address
                                                                 : NULL;
}

static void add_range(void *memory, size_t bytes, bool allocated)
{
    struct range *range = calloc(1, sizeof(*range));

    if (!range)
        abort();
    *range = (struct range){memory, bytes, allocated, ranges};
    ranges = range;
}

/* *ret_bytes: how many they were; false when no such range begins there. */
static bool remove_range(const void *memory, bool allocated, size_t *ret_bytes)
{
    struct range **at = &ranges, *range;

    while (*at && ((*at)->memory != memory || (*at)->allocated != allocated))
        at = &(*at)->next;
    range = *at;
    if (!range)
        return false;
    *ret_bytes = range->bytes;
    *at = range->next;
    free(range);
    return true;
}

static bool is_apart(const uint8_t *memory, size_t bytes)
{
    for (const struct range *range = ranges; range; range = range->next) {
        if (memory < range->memory + range->bytes && range->memory < memory + bytes)
            return false;
    }
    return true;
}

cuda_result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    void *made;

    (void)flags;
    if (result != CUDA_SUCCESS)
        return result;
    if (!bytes)
        return CUDA_INVALID_VALUE;
    made = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED)
        return CUDA_OUT_OF_MEMORY;
    pthread_mutex_lock(&fake_lock);
    add_range(made, bytes, true);
    pthread_mutex_unlock(&fake_lock);
    *memory = made;
    return CUDA_SUCCESS;
}

cuda_result cuMemFreeHost(void *memory)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    size_t bytes;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result = fake_wait(fake_current(), fake_current()->device->submitted);
    if (result == CUDA_SUCCESS && !remove_range(memory, true, &bytes))
        result = CUDA_INVALID_VALUE;
    pthread_mutex_unlock(&fake_lock);
    if (result == CUDA_SUCCESS)
        munmap(memory, bytes);
    return result;
}

cuda_result cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    (void)flags;
    if (result != CUDA_SUCCESS)
        return result;
    if (!memory || !bytes)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    if (bytes > fake_orders()->pin_bytes)
        result = CUDA_OUT_OF_MEMORY;
    else if (is_apart(memory, bytes))
        add_range(memory, bytes, false);
    else
        result = CUDA_HOST_MEMORY_ALREADY_REGISTERED;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuMemHostUnregister(void *memory)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    size_t bytes;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result = fake_wait(fake_current(), fake_current()->device->submitted);
    if (result == CUDA_SUCCESS && !remove_range(memory, false, &bytes))
        result = CUDA_HOST_MEMORY_NOT_REGISTERED;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuMemHostGetDevicePointer_v2(cuda_pointer *address, void *memory, unsigned flags)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (flags || !fake_is_registered(memory, 1))
        result = CUDA_INVALID_VALUE;
    else
        *address = (uintptr_t)memory;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device of a window session on the cpu backend: memory.c says where bytes lie,
 * kernels.c computes; here the two get their common face.
 */
#include "exec/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int cpu_device_open(const struct device_config *config, void **ret_state,
                           struct device_place *ret_place, struct vgpu_error *error)
{
    struct device_memory *memory = calloc(1, sizeof(*memory));

    if (!memory)
        return error_set(error, ENOMEM, "no memory for a device");
    if (memory_open(memory, config->share, config->index, error) < 0) {
        free(memory);
        return -1;
    }
    *ret_state = memory;
    *ret_place = (struct device_place){.base = (uint64_t)(uintptr_t)memory->base,
                                       .bytes = share_limit_bytes(config->share)};
    return 0;
}

static void cpu_device_close(void *state)
{
    memory_close(state);
    free(state);
}

static void cpu_device_free_all(void *state)
{
    memory_free_all(state);
}

static enum vgpu_status cpu_device_alloc(void *state, uint64_t bytes, uint64_t *ret_address,
                                         struct device_wait *ret_wait)
{
    (void)ret_wait;
    return memory_alloc(state, bytes, ret_address);
}

static enum vgpu_status cpu_device_free(void *state, uint64_t address)
{
    return memory_free(state, address);
}

static enum vgpu_status cpu_device_set(void *state, void *stream, uint64_t address, uint32_t value,
                                       uint32_t width, uint64_t count)
{
    uint8_t *at = memory_at(state, address, count * width);

    (void)stream;
    if (!at)
        return VGPU_BAD_ADDRESS;
    if (width == 1)
        memset(at, (int)(value & 0xff), count);
    for (uint64_t i = 0; width == 2 && i < count; i++)
        ((uint16_t *)(void *)at)[i] = (uint16_t)value;
    for (uint64_t i = 0; width == 4 && i < count; i++)
        ((uint32_t *)(void *)at)[i] = value;
    return VGPU_OK;
}

/* A guest that changes what is copied meanwhile gets what it asked for. */
static enum vgpu_status cpu_device_copy_in(void *state, void *stream, uint64_t target,
                                           const void *source, uint64_t bytes)
{
    void *at = memory_at(state, target, bytes);

    (void)stream;
    if (!at)
        return VGPU_BAD_ADDRESS;
    memcpy(at, source, bytes);
    return VGPU_OK;
}

static enum vgpu_status cpu_device_copy_out(void *state, void *stream, void *target,
                                            uint64_t source, uint64_t bytes)
{
    const void *at = memory_at(state, source, bytes);

    (void)stream;
    if (!at)
        return VGPU_BAD_ADDRESS;
    memcpy(target, at, bytes);
    return VGPU_OK;
}

static enum vgpu_status cpu_device_copy(void *state, void *stream, uint64_t target, uint64_t source,
                                        uint64_t bytes)
{
    void *to = memory_at(state, target, bytes);
    const void *from = memory_at(state, source, bytes);

    (void)stream;
    if (!to || !from)
        return VGPU_BAD_ADDRESS;
    memmove(to, from, bytes);
    return VGPU_OK;
}

static enum vgpu_status cpu_device_copy_across(void *state, void *stream, void *target_state,
                                               uint64_t target, void *source_state, uint64_t source,
                                               uint64_t bytes)
{
    void *to = memory_at(target_state, target, bytes);
    const void *from = memory_at(source_state, source, bytes);

    (void)state;
    (void)stream;
    if (!to || !from)
        return VGPU_BAD_ADDRESS;
    memcpy(to, from, bytes);
    return VGPU_OK;
}

static bool cpu_device_has(void *state, uint64_t address, uint64_t bytes)
{
    return memory_at(state, address, bytes) != NULL;
}

/* Grid and block do not matter here: a kernel does its whole count. */
static enum vgpu_status cpu_device_launch(void *state, void *stream,
                                          const struct device_launch *launch)
{
    (void)stream;
    return kernel_launch(state, launch->name, launch->parameters, launch->count);
}

static enum vgpu_status cpu_device_query(void *state, uint32_t attribute, uint64_t *ret_value)
{
    const struct device_memory *memory = state;

    switch (attribute) {
    case VGPU_QUERY_MEMORY_BYTES:
        *ret_value = share_limit_bytes(memory->share);
        return VGPU_OK;
    case VGPU_QUERY_MEMORY_FREE_BYTES:
        *ret_value = share_free_bytes(memory->share);
        return VGPU_OK;
    case VGPU_QUERY_MULTIPROCESSORS:
        *ret_value = memory->cores;
        return VGPU_OK;
    case VGPU_QUERY_BACKEND:
        *ret_value = VGPU_BACKEND_CPU;
        return VGPU_OK;
    default:
        return VGPU_INVALID;
    }
}

const struct device_ops cpu_device_ops = {
    .open = cpu_device_open,
    .close = cpu_device_close,
    .free_all = cpu_device_free_all,
    .alloc = cpu_device_alloc,
    .free = cpu_device_free,
    .set = cpu_device_set,
    .copy_in = cpu_device_copy_in,
    .copy_out = cpu_device_copy_out,
    .copy = cpu_device_copy,
    .copy_across = cpu_device_copy_across,
    .has = cpu_device_has,
    .launch = cpu_device_launch,
    .query = cpu_device_query,
};

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device memory of the cpu backend.
 *
 *   base                                                     base + RESERVED
 *   | alloc 0 | guard | alloc 1 |   guard   | alloc 2 | ... nothing ...   |
 *
 * Each allocation has pages of its own, fresh from the kernel and so zeroed, with
 * an inaccessible page behind it; freeing gives them back.  Addresses are the
 * process's own, as a GPU's would be; every access is checked against the
 * allocations all the same.
 */
#include "exec/device.h"
#include "exec/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The same in every session, one device behind the other, far from where the kernel puts
 * things by itself; but there sanitizers have their own. */
#ifdef EXEC_SANITIZED
#define BASE 0ull
#define BASE_FLAGS 0
#define RESERVED_BYTES (1ull << 36)
#else
#define BASE 0x100000000000ull
#define BASE_FLAGS MAP_FIXED_NOREPLACE
#define RESERVED_BYTES (1ull << 40)
#endif

int memory_open(struct device_memory *memory, const struct account_share *share, unsigned index,
                struct vgpu_error *error)
{
    uint64_t place = BASE ? BASE + index * RESERVED_BYTES : 0;
    void *base = mmap((void *)(uintptr_t)place, RESERVED_BYTES, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | BASE_FLAGS, -1, 0);

    if (base == MAP_FAILED)
        return error_set_errno(error, "cannot reserve addresses for device memory");
    memory->allocations = calloc(DEVICE_ALLOCATIONS_MAX, sizeof(*memory->allocations));
    if (!memory->allocations) {
        munmap(base, RESERVED_BYTES);
        return error_set(error, ENOMEM, "no memory for the list of allocations");
    }
    memory->base = base;
    memory->share = share;
    memory->count = 0;
    memory->cores = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
    return 0;
}

void memory_close(struct device_memory *memory)
{
    if (!memory->base)
        return;
    memory_free_all(memory);
    munmap(memory->base, RESERVED_BYTES);
    free(memory->allocations);
    *memory = (struct device_memory){0};
}

static uint64_t page_up(uint64_t bytes)
{
    return (bytes + VGPU_PAGE_BYTES - 1) / VGPU_PAGE_BYTES * VGPU_PAGE_BYTES;
}

/* The first gap that takes `bytes` and a guard page; its place in the list. */
static bool find_gap(const struct device_memory *memory, uint64_t bytes, uint32_t *ret_at,
                     uint64_t *ret_address)
{
    uint64_t address = (uint64_t)(uintptr_t)memory->base, end = address + RESERVED_BYTES;

    for (uint32_t i = 0; i < memory->count; i++) {
        const struct allocation *next = &memory->allocations[i];

        if (next->address - address >= bytes + VGPU_PAGE_BYTES) {
            *ret_at = i;
            *ret_address = address;
            return true;
        }
        address = next->address + page_up(next->bytes) + VGPU_PAGE_BYTES;
    }
    if (end - address < bytes + VGPU_PAGE_BYTES)
        return false;
    *ret_at = memory->count;
    *ret_address = address;
    return true;
}

enum vgpu_status memory_alloc(struct device_memory *memory, uint64_t bytes, uint64_t *ret_address)
{
    uint64_t address;
    uint32_t at;

    if (bytes == 0)
        return VGPU_INVALID;
    if (memory->count == DEVICE_ALLOCATIONS_MAX)
        return VGPU_TOO_MANY;
    if (!share_reserve(memory->share, bytes))
        return VGPU_OUT_OF_MEMORY;
    if (!find_gap(memory, page_up(bytes), &at, &address) ||
        mprotect((void *)(uintptr_t)address, page_up(bytes), PROT_READ | PROT_WRITE) < 0) {
        share_release(memory->share, bytes);
        return VGPU_OUT_OF_MEMORY;
    }
    memmove(&memory->allocations[at + 1], &memory->allocations[at],
            (memory->count - at) * sizeof(*memory->allocations));
    memory->allocations[at] = (struct allocation){address, bytes};
    memory->count++;
    *ret_address = address;
    return VGPU_OK;
}

/* The allocation that begins at or below `address`; -1 when there is none. */
static int64_t find_below(const struct device_memory *memory, uint64_t address)
{
    uint32_t low = 0, high = memory->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (memory->allocations[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return (int64_t)low - 1;
}

enum vgpu_status memory_free(struct device_memory *memory, uint64_t address)
{
    int64_t at = find_below(memory, address);
    struct allocation *allocation = at < 0 ? NULL : &memory->allocations[at];

    if (!allocation || allocation->address != address)
        return VGPU_BAD_ADDRESS;
    madvise((void *)(uintptr_t)address, page_up(allocation->bytes), MADV_DONTNEED);
    mprotect((void *)(uintptr_t)address, page_up(allocation->bytes), PROT_NONE);
    share_release(memory->share, allocation->bytes);
    memory->count--;
    memmove(allocation, allocation + 1, (memory->count - (uint32_t)at) * sizeof(*allocation));
    return VGPU_OK;
}

void memory_free_all(struct device_memory *memory)
{
    while (memory->count > 0)
        memory_free(memory, memory->allocations[memory->count - 1].address);
}

void *memory_at(const struct device_memory *memory, uint64_t address, uint64_t bytes)
{
    int64_t at = find_below(memory, address);
    const struct allocation *allocation = at < 0 ? NULL : &memory->allocations[at];

    if (!allocation || address - allocation->address > allocation->bytes ||
        bytes > allocation->bytes - (address - allocation->address))
        return NULL;
    return (void *)(uintptr_t)address;
}

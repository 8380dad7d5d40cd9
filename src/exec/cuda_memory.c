/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device memory of a session: what the driver gives comes in whole granules, each one's
 * bytes are this session's alone, and are cleared before the guest knows of them.
 *
 *   more than CUDA_SMALL_BYTES ──▶ a block of its own: whole granules
 *   less                       ──▶ units of a granule that small ones share
 *
 *   a block that was not cleared ──▶ to the driver when it is freed
 *   freed whole block ──▶ spare, up to CUDA_SPARE_BYTES, for the next of that size;
 *                         to the driver when the limit would refuse somebody
 *
 * The VM's account (account.h) counts blocks as the GPU does, granules: what is refused is what
 * would be more than the limit in whole granules, to the byte.  Spare blocks are not in it, so
 * that one session's cannot refuse another's; where they would stand beyond the limit of the VM
 * this session's go to the driver.  Where the context counts as well (count_contexts) there are
 * none: then all that the session has of its GPU is counted.
 */
#include "exec/cuda_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BITS 64u
#define BITMAP_WORDS (CUDA_GRANULE_UNITS / WORD_BITS)

static uint64_t round_up(uint64_t value, uint64_t step)
{
    return (value + step - 1) / step * step;
}

int cuda_memory_open(struct cuda_memory *memory, const struct account_share *share,
                     struct vgpu_error *error)
{
    *memory = (struct cuda_memory){.share = share};
    LIST_INIT(&memory->shared);
    LIST_INIT(&memory->whole);
    LIST_INIT(&memory->spare);
    memory->allocations = calloc(DEVICE_ALLOCATIONS_MAX, sizeof(*memory->allocations));
    return memory->allocations ? 0 : error_set(error, ENOMEM, "no memory for a device");
}

void cuda_memory_close(struct cuda_memory *memory)
{
    free(memory->allocations);
    memory->allocations = NULL;
}

/* --- blocks ------------------------------------------------------------------------------- */

/* One that is not in use (any more). */
static void block_end(struct cuda_session *session, struct cuda_block *block)
{
    if (session->lost == VGPU_OK)
        cuda_demand(session, session->cuda.mem_free(block->address), "free device memory");
    LIST_REMOVE(block, link);
    free(block->units);
    free(block);
}

void cuda_memory_free_spares(struct cuda_session *session)
{
    while (!LIST_EMPTY(&session->memory.spare)) /* NOLINTNEXTLINE: the analyzer is lost in it */
        block_end(session, LIST_FIRST(&session->memory.spare));
    session->memory.spare_bytes = 0;
}

static struct cuda_block *spare_take(struct cuda_memory *memory, uint64_t bytes)
{
    struct cuda_block *block;

    LIST_FOREACH (block, &memory->spare, link) {
        if (block->bytes == bytes) {
            memory->spare_bytes -= bytes;
            LIST_REMOVE(block, link);
            return block;
        }
    }
    return NULL;
}

static void block_spare(struct cuda_session *session, struct cuda_block *block)
{
    struct cuda_memory *memory = &session->memory;

    free(block->units);
    block->units = NULL;
    share_release(memory->share, block->bytes);
    if (block->cleared == CUDA_NEVER || session->own_bytes > 0 ||
        memory->spare_bytes + block->bytes > CUDA_SPARE_BYTES) {
        block_end(session, block);
        return;
    }
    LIST_REMOVE(block, link);
    LIST_INSERT_HEAD(&memory->spare, block, link);
    memory->spare_bytes += block->bytes;
}

static enum vgpu_status block_ask(struct cuda_session *session, uint64_t bytes,
                                  cuda_pointer *ret_address)
{
    cuda_result result = session->cuda.mem_alloc(ret_address, bytes);

    if (result == CUDA_OUT_OF_MEMORY && session->memory.spare_bytes > 0) {
        cuda_memory_free_spares(session);
        result = session->cuda.mem_alloc(ret_address, bytes);
    }
    return cuda_status(session, result, "allocate device memory");
}

/* On all devices: the limit is theirs together. */
static uint64_t all_spare_bytes(void)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < cuda_session_count; i++)
        bytes += cuda_sessions[i].memory.spare_bytes;
    return bytes;
}

static void all_spares_end(struct cuda_session *session)
{
    for (unsigned i = 0; i < cuda_session_count; i++) {
        if (cuda_sessions[i].memory.spare_bytes > 0)
            cuda_memory_free_spares(cuda_use(&cuda_sessions[i]));
    }
    cuda_use(session);
}

/* This process's spare blocks must not stand beyond the limit of its VM. */
static enum vgpu_status trim_spares(struct cuda_session *session)
{
    if (share_free_bytes(session->memory.share) < all_spare_bytes())
        all_spares_end(session);
    return session->lost;
}

enum vgpu_status cuda_memory_reserve(struct cuda_session *session, uint64_t bytes)
{
    enum vgpu_status status;

    if (!share_reserve(session->memory.share, bytes))
        return VGPU_OUT_OF_MEMORY;
    status = trim_spares(session);
    if (status != VGPU_OK)
        share_release(session->memory.share, bytes);
    return status;
}

enum vgpu_status cuda_memory_reserve_own(struct cuda_session *session, uint64_t bytes)
{
    enum vgpu_status status = cuda_memory_reserve(session, bytes);

    if (status == VGPU_OK)
        session->own_bytes += bytes;
    return status;
}

static enum vgpu_status block_new(struct cuda_session *session, uint64_t bytes,
                                  struct cuda_block **ret_block)
{
    struct cuda_block *block;
    enum vgpu_status status = trim_spares(session);

    if (status != VGPU_OK)
        return status;
    block = calloc(1, sizeof(*block));
    if (!block)
        return VGPU_OUT_OF_MEMORY;
    status = block_ask(session, bytes, &block->address);
    if (status != VGPU_OK) {
        free(block);
        return status;
    }
    block->bytes = bytes;
    block->cleared = CUDA_NEVER;
    *ret_block = block;
    return VGPU_OK;
}

/* A block of `bytes`, whole granules, in `blocks`. */
static enum vgpu_status block_get(struct cuda_session *session, uint64_t bytes,
                                  struct cuda_blocks *blocks, struct cuda_block **ret_block)
{
    const struct account_share *share = session->memory.share;
    struct cuda_block *block;
    enum vgpu_status status;

    if (!share_reserve(share, bytes))
        return VGPU_OUT_OF_MEMORY;
    block = spare_take(&session->memory, bytes);
    status = block ? VGPU_OK : block_new(session, bytes, &block);
    if (status != VGPU_OK) {
        share_release(share, bytes);
        return status;
    }
    LIST_INSERT_HEAD(blocks, block, link);
    *ret_block = block;
    return VGPU_OK;
}

/* --- units of a shared block ------------------------------------------------------------------ */

static bool unit_is_used(const struct cuda_block *block, uint32_t unit)
{
    return block->units[unit / WORD_BITS] >> unit % WORD_BITS & 1;
}

static void units_set(struct cuda_block *block, uint32_t first, uint32_t count, bool used)
{
    for (uint32_t unit = first; unit < first + count; unit++) {
        uint64_t bit = 1ull << unit % WORD_BITS;

        if (used)
            block->units[unit / WORD_BITS] |= bit;
        else
            block->units[unit / WORD_BITS] &= ~bit;
    }
}

/* The first of `count` units in a row that are free; CUDA_GRANULE_UNITS: there are none. */
static uint32_t units_find(const struct cuda_block *block, uint32_t count)
{
    uint32_t run = 0;

    for (uint32_t unit = 0; unit < CUDA_GRANULE_UNITS; unit++) {
        if (run == 0 && unit % WORD_BITS == 0 && block->units[unit / WORD_BITS] == UINT64_MAX) {
            unit += WORD_BITS - 1;
            continue;
        }
        run = unit_is_used(block, unit) ? 0 : run + 1;
        if (run == count)
            return unit + 1 - count;
    }
    return CUDA_GRANULE_UNITS;
}

static enum vgpu_status shared_get(struct cuda_session *session, uint32_t count,
                                   struct cuda_block **ret_block, uint32_t *ret_unit)
{
    struct cuda_memory *memory = &session->memory;
    enum vgpu_status status;

    LIST_FOREACH (*ret_block, &memory->shared, link) {
        *ret_unit = units_find(*ret_block, count);
        if (*ret_unit < CUDA_GRANULE_UNITS)
            return VGPU_OK;
    }
    status = block_get(session, CUDA_GRANULE_BYTES, &memory->shared, ret_block);
    if (status != VGPU_OK)
        return status;
    (*ret_block)->units = calloc(BITMAP_WORDS, sizeof(uint64_t));
    if (!(*ret_block)->units) {
        block_spare(session, *ret_block);
        return VGPU_OUT_OF_MEMORY;
    }
    *ret_unit = 0;
    return VGPU_OK;
}

/* --- allocations --------------------------------------------------------------------------- */

/* Index of the first allocation behind `address`. */
static uint32_t find_behind(const struct cuda_memory *memory, uint64_t address)
{
    uint32_t low = 0, high = memory->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (memory->allocations[middle].address > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static const struct cuda_allocation *find(const struct cuda_memory *memory, uint64_t address)
{
    uint32_t behind = find_behind(memory, address);

    return behind > 0 ? &memory->allocations[behind - 1] : NULL;
}

bool cuda_memory_has(const struct cuda_memory *memory, uint64_t address, uint64_t bytes)
{
    const struct cuda_allocation *allocation = find(memory, address);

    return allocation && address - allocation->address < allocation->bytes &&
           bytes <= allocation->bytes - (address - allocation->address);
}

static void note(struct cuda_memory *memory, uint64_t address, uint64_t bytes,
                 struct cuda_block *block)
{
    uint32_t at = find_behind(memory, address);

    memmove(&memory->allocations[at + 1], &memory->allocations[at],
            (memory->count - at) * sizeof(*memory->allocations));
    memory->allocations[at] = (struct cuda_allocation){address, bytes, block};
    memory->count++;
}

static uint32_t units_of(uint64_t bytes)
{
    return (uint32_t)(round_up(bytes, CUDA_UNIT_BYTES) / CUDA_UNIT_BYTES);
}

enum vgpu_status cuda_memory_alloc(struct cuda_session *session, uint64_t bytes,
                                   uint64_t *ret_address, struct cuda_block **ret_block)
{
    struct cuda_memory *memory = &session->memory;
    struct cuda_block *block;
    enum vgpu_status status;
    uint32_t unit = 0;

    if (memory->count == DEVICE_ALLOCATIONS_MAX)
        return VGPU_TOO_MANY;
    if (bytes > share_limit_bytes(memory->share))
        return VGPU_OUT_OF_MEMORY; /* and no sum of it wraps */
    if (bytes <= CUDA_SMALL_BYTES) {
        status = shared_get(session, units_of(bytes), &block, &unit);
        if (status == VGPU_OK) {
            units_set(block, unit, units_of(bytes), true);
            block->small_count++;
        }
    } else {
        status = block_get(session, round_up(bytes, CUDA_GRANULE_BYTES), &memory->whole, &block);
    }
    if (status != VGPU_OK)
        return status;
    *ret_address = block->address + (uint64_t)unit * CUDA_UNIT_BYTES;
    note(memory, *ret_address, bytes, block);
    *ret_block = block;
    return VGPU_OK;
}

enum vgpu_status cuda_memory_free(struct cuda_session *session, uint64_t address)
{
    struct cuda_memory *memory = &session->memory;
    uint32_t behind = find_behind(memory, address);
    struct cuda_allocation freed;

    if (behind == 0 || memory->allocations[behind - 1].address != address)
        return VGPU_BAD_ADDRESS;
    memory->removals++;
    freed = memory->allocations[behind - 1];
    memmove(&memory->allocations[behind - 1], &memory->allocations[behind],
            (memory->count - behind) * sizeof(*memory->allocations));
    memory->count--;
    if (!freed.block->units) {
        block_spare(session, freed.block);
        return VGPU_OK;
    }
    units_set(freed.block, (uint32_t)((address - freed.block->address) / CUDA_UNIT_BYTES),
              units_of(freed.bytes), false);
    if (--freed.block->small_count == 0)
        block_spare(session, freed.block);
    return VGPU_OK;
}

/* Nothing of whoever had it before may be found. */
enum vgpu_status cuda_memory_clear(struct cuda_session *session, struct cuda_block *block)
{
    enum vgpu_status status = cuda_lane_ready(session, session->clear);

    if (status == VGPU_OK)
        status = cuda_status(
            session,
            session->cuda.memset_d8_async(block->address, 0, block->bytes, session->clear->stream),
            "clear device memory");
    if (status != VGPU_OK)
        return status;
    cuda_lane_put(session->clear);
    block->cleared = cuda_lane_mark(session, session->clear, DEVICE_ANSWER);
    return DEVICE_BEGUN;
}

static void blocks_end(struct cuda_session *session, struct cuda_blocks *blocks)
{
    while (!LIST_EMPTY(blocks)) {
        share_release(session->memory.share, LIST_FIRST(blocks)->bytes);
        block_end(session, LIST_FIRST(blocks));
    }
}

void cuda_memory_free_all(struct cuda_session *session)
{
    struct cuda_memory *memory = &session->memory;

    blocks_end(session, &memory->shared);
    blocks_end(session, &memory->whole);
    cuda_memory_free_spares(session);
    memory->removals++;
    memory->count = 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What a worker takes of its VM's device memory, and gives back: see account.h. */
#include "exec/account.h"

/* Two that meet just below the limit refuse each other: they try again, after pauses of
 * different length. */
#define TRIES 4u
#define PAUSE_STEPS 64u
#define PAUSES 8u

uint64_t share_limit_bytes(const struct account_share *share)
{
    return __atomic_load_n(&share->memory->limit_bytes, __ATOMIC_RELAXED);
}

uint64_t share_context_bytes(const struct account_share *share)
{
    return __atomic_load_n(&share->memory->budget.context_bytes, __ATOMIC_RELAXED);
}

uint64_t share_free_bytes(const struct account_share *share)
{
    uint64_t limit_bytes = share_limit_bytes(share);
    uint64_t used_bytes = account_used_bytes(share->memory);

    return used_bytes < limit_bytes ? limit_bytes - used_bytes : 0;
}

void share_add(const struct account_share *share, uint64_t bytes)
{
    __atomic_add_fetch(&share->memory->shares[share->index], bytes, __ATOMIC_SEQ_CST);
}

void share_release(const struct account_share *share, uint64_t bytes)
{
    __atomic_sub_fetch(&share->memory->shares[share->index], bytes, __ATOMIC_SEQ_CST);
}

/* The addition is seen by all before the sum is read, in both of two that meet: at least one
 * sees the other's. */
static bool try_once(const struct account_share *share, uint64_t bytes)
{
    if (bytes > share_free_bytes(share))
        return false; /* added for a moment only, it would refuse others what they may have */
    share_add(share, bytes);
    if (account_used_bytes(share->memory) <= share_limit_bytes(share))
        return true;
    share_release(share, bytes);
    return false;
}

static bool images_have_room(const struct account_memory *memory)
{
    uint64_t max_bytes = __atomic_load_n(&memory->budget.image_bytes_max, __ATOMIC_RELAXED);
    uint64_t sum_bytes = 0;

    for (uint32_t i = 0; max_bytes > 0 && i < EXEC_ACCOUNT_SHARES; i++) {
        uint64_t bytes = __atomic_load_n(&memory->work[i].image_bytes, __ATOMIC_SEQ_CST);

        if (__builtin_add_overflow(sum_bytes, bytes, &sum_bytes))
            return false;
    }
    return sum_bytes <= max_bytes;
}

bool share_reserve_image(const struct account_share *share, uint64_t bytes)
{
    __atomic_add_fetch(&share->memory->work[share->index].image_bytes, bytes, __ATOMIC_SEQ_CST);
    if (images_have_room(share->memory))
        return true;
    share_release_image(share, bytes);
    return false;
}

void share_release_image(const struct account_share *share, uint64_t bytes)
{
    __atomic_sub_fetch(&share->memory->work[share->index].image_bytes, bytes, __ATOMIC_SEQ_CST);
}

bool share_reserve(const struct account_share *share, uint64_t bytes)
{
    if (bytes > share_limit_bytes(share))
        return false; /* and no sum of it wraps */
    for (uint32_t i = 0; i < TRIES; i++) {
        if (try_once(share, bytes))
            return true;
        for (uint32_t pause = 0; pause < (share->index % PAUSES + 1) * PAUSE_STEPS; pause++)
            __builtin_ia32_pause();
    }
    return false;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM may do at a time, as its workers hold themselves to it: see account.h.  Where
 * nothing is bounded, each question is a look at one word.
 *
 * Bounds of what waits and what is in flight are of all sessions together; each session is let
 * one in any case, so that none stops for good behind another.
 */
#include "exec/account.h"

#define LOAD(word) __atomic_load_n(&(word), __ATOMIC_RELAXED)

/* Who has nothing left waits for as many as come in this time, not for each of them. */
#define WAIT_NS NS_PER_MS

static uint64_t others_queued(const struct account_share *share)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < EXEC_ACCOUNT_SHARES; i++)
        sum += i == share->index ? 0 : LOAD(share->memory->work[i].queued);
    return sum;
}

static uint32_t queue_room(const struct account_share *share, uint32_t most)
{
    uint32_t max = LOAD(share->memory->budget.queue_depth_max);
    uint32_t own = share->memory->work[share->index].queued;
    uint64_t queued;

    if (max == 0)
        return most;
    queued = own + others_queued(share);
    if (queued >= max)
        return own == 0 ? 1 : 0;
    return max - queued < most ? (uint32_t)(max - queued) : most;
}

uint32_t budget_take(const struct account_share *share, uint32_t most)
{
    struct bucket_rate rate = account_rate(&share->memory->budget.requests);
    uint32_t room = queue_room(share, most);

    if (rate.token_ticks == 0 || room == 0)
        return room;
    return bucket_take(&share->memory->request_bucket, &rate, room, clock_monotonic_ns());
}

uint64_t budget_wait_ns(const struct account_share *share)
{
    struct bucket_rate rate = account_rate(&share->memory->budget.requests);
    uint64_t now_ns, tokens;

    if (rate.token_ticks == 0)
        return 0;
    now_ns = clock_monotonic_ns();
    if (bucket_wait_ns(&share->memory->request_bucket, &rate, 1, now_ns) == 0)
        return 0;
    tokens = bucket_tokens(&rate, WAIT_NS);
    return bucket_wait_ns(&share->memory->request_bucket, &rate, tokens > 0 ? tokens : 1, now_ns);
}

void budget_charge(const struct account_share *share, uint64_t used_us)
{
    struct bucket_rate rate = account_rate(&share->memory->budget.device);

    if (rate.token_ticks > 0)
        bucket_charge(&share->memory->device_bucket, &rate, used_us, clock_monotonic_ns());
}

/* Whoever had to stop goes on with half a bucket, and not with each microsecond. */
uint64_t budget_device_wait_bounded_ns(const struct account_share *share)
{
    struct bucket_rate rate = account_rate(&share->memory->budget.device);
    uint64_t now_ns;

    if (rate.token_ticks == 0) /* no more: it may have gone since it was looked at */
        return 0;
    now_ns = clock_monotonic_ns();
    if (bucket_wait_ns(&share->memory->device_bucket, &rate, 0, now_ns) == 0)
        return 0;
    return bucket_wait_ns(&share->memory->device_bucket, &rate,
                          rate.burst_ticks / rate.token_ticks / 2, now_ns);
}

bool budget_allows(const struct account_share *share, uint64_t bytes)
{
    const struct account_memory *memory = share->memory;
    uint32_t ops_max = LOAD(memory->budget.inflight_ops_max);
    uint64_t bytes_max = LOAD(memory->budget.inflight_bytes_max), ops = 1;

    for (uint32_t i = 0; i < EXEC_ACCOUNT_SHARES; i++) {
        ops += LOAD(memory->work[i].inflight_ops);
        if (__builtin_add_overflow(bytes, LOAD(memory->work[i].inflight_bytes), &bytes))
            bytes = UINT64_MAX;
    }
    return (ops_max == 0 || ops <= ops_max) && (bytes_max == 0 || bytes <= bytes_max);
}

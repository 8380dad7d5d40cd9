/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The account of a VM, as its file is laid out, and a worker's part of it: what its sessions
 * hold of their devices' memory, and what they may do at a time.
 *
 *   run_dir/sessions/vm<id>.account      limits │ buckets │ share 0 │ share 1 │ … │ share 127
 *                                          ▲        ▲         ▲         ▲
 *   the mediator writes ───────────────────┘        │         │         │
 *   all take from them ─────────────────────────────┘         │         │
 *   each worker writes its own share, and reads all of them ──┴─────────┘
 *
 * Who wants more memory adds it to its share first and then sums all up: what is beyond the
 * limit is taken back.  So two that ask at the same time can never both pass it.
 *
 * The buckets (base.h) bound the requests and the device time of the whole VM: they outlive
 * grants, workers and sessions, so many short ones have no more than one long one.
 *
 * No guest sees it.  A worker that somebody else's code has taken over can write what it likes
 * here, of this VM only, and needs no account to take what its GPU has.
 */
#ifndef VGPU_EXEC_ACCOUNT_H
#define VGPU_EXEC_ACCOUNT_H

#include "exec/exec.h"

/* "ACC4" in memory: raise the digit with each change of the layout. */
#define ACCOUNT_MAGIC 0x34434341u

/* What the VM may do; 0 is no bound.  Each number is read by itself. */
struct account_budget {
    struct bucket_rate requests;
    struct bucket_rate device; /* microseconds of device time */
    uint32_t queue_depth_max;
    uint32_t inflight_ops_max;
    uint64_t inflight_bytes_max;
    uint64_t image_bytes_max;
    uint64_t context_bytes; /* that each context of a GPU counts; 0: none does */
};

/* What a session has to do at this moment.  Each operation writes there: no two sessions' may
 * share a line of the processors' caches. */
struct account_work {
    _Alignas(64) uint32_t queued; /* taken, and not begun */
    uint32_t inflight_ops;
    uint64_t inflight_bytes;
    uint64_t image_bytes; /* of the host's memory, for images of modules */
};

struct account_memory {
    uint32_t magic;
    uint32_t bytes;
    uint64_t limit_bytes; /* of all shares together */
    struct account_budget budget;
    uint64_t request_bucket, device_bucket;
    uint64_t shares[EXEC_ACCOUNT_SHARES];
    struct account_work work[EXEC_ACCOUNT_SHARES];
};

static inline struct bucket_rate account_rate(const struct bucket_rate *rate)
{
    return (struct bucket_rate){__atomic_load_n(&rate->token_ticks, __ATOMIC_RELAXED),
                                __atomic_load_n(&rate->burst_ticks, __ATOMIC_RELAXED)};
}

/* The sum of all shares; UINT64_MAX where it would be more. */
static inline uint64_t account_used_bytes(const struct account_memory *memory)
{
    uint64_t used_bytes = 0;

    for (uint32_t i = 0; i < EXEC_ACCOUNT_SHARES; i++) {
        if (__builtin_add_overflow(
                used_bytes, __atomic_load_n(&memory->shares[i], __ATOMIC_SEQ_CST), &used_bytes))
            return UINT64_MAX;
    }
    return used_bytes;
}

/* --- a worker's share (account_share.c) --------------------------------------------------- */

struct account_share {
    struct account_memory *memory;
    uint32_t index; /* below EXEC_ACCOUNT_SHARES */
};

/* False, and nothing changes: it would be more than the limit of the VM.  Only one thread of
 * a worker may reserve and release. */
bool share_reserve(const struct account_share *share, uint64_t bytes);

/* Counts what is there already, also beyond the limit; then nothing more can be reserved, not
 * even 0 bytes. */
void share_add(const struct account_share *share, uint64_t bytes);

/* Gives back what was reserved or added, in whatever pieces. */
void share_release(const struct account_share *share, uint64_t bytes);

/* The same of the host's memory that images of modules take, up to the bound of the VM.  False,
 * and nothing changes: it would be more.  Two that ask in the same moment may both be refused. */
bool share_reserve_image(const struct account_share *share, uint64_t bytes);
void share_release_image(const struct account_share *share, uint64_t bytes);

/* What a context of a GPU counts, that is made now; 0: nothing that belongs to one does. */
uint64_t share_context_bytes(const struct account_share *share);

/* What all of the VM may have, and what is left of it at this moment. */
uint64_t share_limit_bytes(const struct account_share *share);
uint64_t share_free_bytes(const struct account_share *share);

/* --- a worker's budget (budget.c) ----------------------------------------------------- */

/* How many of `most` operations may be taken now, which counts them as requests. */
uint32_t budget_take(const struct account_share *share, uint32_t most);

/* How long until some may be taken; 0: now. */
uint64_t budget_wait_ns(const struct account_share *share);

/* Device time that was used, also what there was not. */
void budget_charge(const struct account_share *share, uint64_t used_us);

/* How long until the VM may use its device again; 0: now.  As the next question it is asked
 * for each operation, and nearly always there is no bound. */
uint64_t budget_device_wait_bounded_ns(const struct account_share *share);

static inline uint64_t budget_device_wait_ns(const struct account_share *share)
{
    return account_rate(&share->memory->budget.device).token_ticks > 0
               ? budget_device_wait_bounded_ns(share)
               : 0;
}

/* Is what is in flight bounded? */
static inline bool budget_bounds_inflight(const struct account_share *share)
{
    const struct account_budget *budget = &share->memory->budget;

    return __atomic_load_n(&budget->inflight_ops_max, __ATOMIC_RELAXED) != 0 ||
           __atomic_load_n(&budget->inflight_bytes_max, __ATOMIC_RELAXED) != 0;
}

/* May it have one more in flight, of so many bytes, besides what it told?  It has others there
 * already. */
bool budget_allows(const struct account_share *share, uint64_t bytes);

/* For the bounds of all sessions together. */
static inline void budget_tell_queued(const struct account_share *share, uint32_t queued)
{
    __atomic_store_n(&share->memory->work[share->index].queued, queued, __ATOMIC_RELAXED);
}

static inline void budget_tell_inflight(const struct account_share *share, uint32_t ops,
                                        uint64_t bytes)
{
    struct account_work *work = &share->memory->work[share->index];

    __atomic_store_n(&work->inflight_ops, ops, __ATOMIC_RELAXED);
    __atomic_store_n(&work->inflight_bytes, bytes, __ATOMIC_RELAXED);
}

#endif /* VGPU_EXEC_ACCOUNT_H */

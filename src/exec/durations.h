/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long operations took, as a worker tells it in its session memory:
 *
 *   0 1 2 ... 31 | 32 34 ... 62 | 64 68 ... 124 | ... microseconds
 *   exactly        16 buckets for each power of two: 6.25 % wide at most
 *
 * Each count wraps.  Who reads them goes by what is new (durations.c); nothing is ever cleared,
 * so that neither side waits for the other.
 */
#ifndef VGPU_EXEC_DURATIONS_H
#define VGPU_EXEC_DURATIONS_H

#include "exec/session_private.h"

#define DURATION_SUB_LOG2 4u
#define DURATION_BITS 36u /* longer ones (19 hours) count as one of that */

_Static_assert((DURATION_BITS - DURATION_SUB_LOG2 + 1) << DURATION_SUB_LOG2 ==
                   EXEC_DURATION_BUCKETS,
               "the last bucket is that of the longest");

static inline unsigned duration_bucket(uint64_t duration_us)
{
    unsigned shift;

    if (duration_us >> DURATION_BITS)
        return EXEC_DURATION_BUCKETS - 1;
    /* Never below the first bit that shifts nothing out. */
    shift =
        63u - DURATION_SUB_LOG2 - (unsigned)__builtin_clzll(duration_us | 1u << DURATION_SUB_LOG2);
    return (shift << DURATION_SUB_LOG2) + (unsigned)(duration_us >> shift);
}

/* Only the session's worker writes there. */
static inline void duration_count(uint32_t *count)
{
    __atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
}

/* `total_ns` is from when the operation was taken from its ring; `run_ns` from its begin. */
static inline void durations_record(struct session_memory *memory, uint64_t run_ns,
                                    uint64_t total_ns)
{
    struct exec_durations *durations = &memory->durations;

    duration_count(&durations->counts[EXEC_DURATION_RUN][duration_bucket(run_ns / NS_PER_US)]);
    duration_count(&durations->counts[EXEC_DURATION_TOTAL][duration_bucket(total_ns / NS_PER_US)]);
    duration_count(&memory->timed);
}

#endif /* VGPU_EXEC_DURATIONS_H */

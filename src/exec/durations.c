/* SPDX-License-Identifier: Apache-2.0 */
/* What a worker tells of its operations' durations, read by who does not trust it. */
#include "exec/durations.h"

uint64_t exec_duration_us(unsigned bucket)
{
    unsigned shift = bucket >> DURATION_SUB_LOG2;

    if (shift <= 1)
        return bucket;
    shift--;
    return ((uint64_t)(bucket - (shift << DURATION_SUB_LOG2)) << shift) + (1ull << shift) / 2;
}

uint64_t exec_durations_new(const struct exec_durations *told, const struct exec_durations *seen)
{
    uint64_t most = 0;

    for (unsigned kind = 0; kind < EXEC_DURATIONS; kind++) {
        uint64_t sum = 0;

        for (unsigned i = 0; i < EXEC_DURATION_BUCKETS; i++)
            sum += (uint32_t)(told->counts[kind][i] - seen->counts[kind][i]);
        most = sum > most ? sum : most;
    }
    return most;
}

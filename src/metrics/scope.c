/* SPDX-License-Identifier: Apache-2.0 */
/* Counters and durations of one thing: a VM, or a pool at one priority. */
#include "metrics/metrics.h"

const char *metrics_refusal_name(enum metrics_refusal refusal)
{
    static const char *const names[METRICS_REFUSALS] = {
        [METRICS_REFUSED_MALFORMED] = "malformed",
        [METRICS_REFUSED_QUARANTINED] = "quarantined",
        [METRICS_REFUSED_POOL] = "pool",
        [METRICS_REFUSED_SESSIONS] = "sessions",
        [METRICS_REFUSED_RATE] = "rate",
        [METRICS_REFUSED_DEVICE_SHARE] = "device_share",
        [METRICS_REFUSED_QUEUE_DEPTH] = "queue_depth",
        [METRICS_REFUSED_STOPPING] = "stopping",
        [METRICS_REFUSED_FAILED] = "failed",
    };

    return names[refusal];
}

const char *metrics_fault_name(enum metrics_fault fault)
{
    static const char *const names[METRICS_FAULTS] = {
        [METRICS_FAULT_WORKER] = "worker",
        [METRICS_FAULT_KERNEL] = "kernel",
        [METRICS_FAULT_TIME_LIMIT] = "time_limit",
        [METRICS_FAULT_RINGS] = "rings",
    };

    return names[fault];
}

static uint64_t sum_of(const uint64_t *numbers, size_t count)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < count; i++)
        sum += numbers[i];
    return sum;
}

uint64_t metrics_scope_refusals(const struct metrics_scope *scope)
{
    return sum_of(scope->refusals, METRICS_REFUSALS);
}

uint64_t metrics_scope_faults(const struct metrics_scope *scope)
{
    return sum_of(scope->faults, METRICS_FAULTS);
}

void metrics_scope_clear(struct metrics_scope *scope)
{
    for (unsigned i = 0; i < METRICS_DURATIONS; i++)
        metrics_latency_clear(&scope->durations[i]);
    *scope = (struct metrics_scope){0};
}

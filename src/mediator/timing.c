/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What workers tell of times: how long operations took in long grants, and how long their VM's
 * budget kept them.
 *
 *   session memory, counts that wrap ── what is new ─▶ bounded ─▶ the VM's scopes (metrics.c)
 *
 * What a worker says is bounded by the time that has passed: one that somebody else's code has
 * taken over cannot make the numbers of its pool those of operations which nobody could have run.
 */
#include "mediator/mediator.h"

#include <stdlib.h>

/* No worker ends more in a microsecond. */
#define OPERATIONS_PER_US 10u

static struct exec_durations *read_durations(const struct window_session *ws)
{
    struct exec_durations *told = malloc(sizeof(*told));

    if (told)
        exec_session_durations(ws->worker, told);
    return told;
}

static void add_durations(struct vm *vm, enum metrics_duration duration, const uint32_t *told,
                          const uint32_t *counted)
{
    for (unsigned i = 0; i < EXEC_DURATION_BUCKETS; i++) {
        uint32_t count = told[i] - counted[i];

        if (count > 0)
            vm_time_operations(vm, duration, exec_duration_us(i), count);
    }
}

/* `counted` is of before. */
static void count_durations(struct window_session *ws, const struct exec_durations *told,
                            const struct exec_durations *counted, uint64_t passed_us)
{
    static const enum metrics_duration as[EXEC_DURATIONS] = {
        [EXEC_DURATION_RUN] = METRICS_RUN, [EXEC_DURATION_TOTAL] = METRICS_TOTAL};

    if (exec_durations_new(told, counted) / OPERATIONS_PER_US > passed_us)
        return;
    for (unsigned kind = 0; kind < EXEC_DURATIONS; kind++)
        add_durations(ws->session.vm, as[kind], told->counts[kind], counted->counts[kind]);
}

/* Most sessions have none that are new: they cost one look. */
static void measure_durations(struct window_session *ws, uint64_t now_ns)
{
    static const struct exec_durations none;
    struct timing *timing = &ws->timing;
    uint32_t timed = exec_session_timed(ws->worker);
    struct exec_durations *told;

    if (timed == timing->timed)
        return;
    told = read_durations(ws);
    if (!told)
        return; /* the next look has more */
    count_durations(ws, told, timing->counted ? timing->counted : &none,
                    (now_ns - timing->operations_ns) / NS_PER_US);
    free(timing->counted);
    timing->counted = told;
    timing->timed = timed;
    timing->operations_ns = now_ns;
}

static uint64_t at_most(uint64_t value, uint64_t most)
{
    return value < most ? value : most;
}

static void measure_throttled(struct window_session *ws, uint64_t now_ns)
{
    struct timing *timing = &ws->timing;
    uint64_t passed_us = (now_ns - timing->begin_ns) / NS_PER_US;
    uint64_t told_us = exec_session_throttled_us(ws->worker), new_us = 0;

    if (told_us > timing->throttled_us)
        new_us = at_most(told_us - timing->throttled_us, passed_us - timing->throttled_counted_us);
    if (new_us > 0)
        vm_count(ws->session.vm, METRICS_THROTTLED_US, new_us);
    timing->throttled_counted_us += new_us;
    timing->throttled_us = told_us;
}

void timing_free(struct timing *timing)
{
    free(timing->counted);
    *timing = (struct timing){0};
}

void timing_begin(struct window_session *ws)
{
    struct timing *timing = &ws->timing;

    timing_free(timing);
    timing->begin_ns = timing->operations_ns = clock_monotonic_ns();
    timing->throttled_us = exec_session_throttled_us(ws->worker);
    timing->timed = exec_session_timed(ws->worker);
    if (timing->timed != 0)
        timing->counted = read_durations(ws);
}

void timing_measure(struct window_session *ws)
{
    uint64_t now_ns = clock_monotonic_ns();

    measure_durations(ws, now_ns);
    measure_throttled(ws, now_ns);
}

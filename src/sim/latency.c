/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How often each duration came: 128 counters for each power of two, as HdrHistogram publishes it,
 * so that a value is told within 0.8 % whatever its size.  Unlike the mediator's, of which there
 * are thousands, it need not be small; and its counters can be read one by one, for plots.
 */
#include "sim/private.h"

#include <stdlib.h>

#define PART_BITS 7u
#define PARTS (1u << PART_BITS)
#define COUNTERS ((64 - PART_BITS + 1) * PARTS)

struct sim_latency {
    uint64_t count, most;
    uint64_t counters[COUNTERS];
};

static unsigned counter_of(uint64_t value)
{
    unsigned shift;

    if (value < PARTS)
        return (unsigned)value;
    shift = 63 - (unsigned)__builtin_clzll(value) - PART_BITS;
    return (shift + 1) * PARTS + (unsigned)((value >> shift) - PARTS);
}

/* The highest that its counter counts. */
static uint64_t value_of(unsigned counter)
{
    unsigned shift = counter / PARTS;

    if (shift == 0)
        return counter;
    return ((uint64_t)(counter % PARTS + PARTS + 1) << (shift - 1)) - 1;
}

void sim_latency_add(struct sim_latency **latency, uint64_t value_ns)
{
    if (!*latency)
        *latency = sim_allocate(1, sizeof(**latency));
    (*latency)->count++;
    (*latency)->counters[counter_of(value_ns)]++;
    if (value_ns > (*latency)->most)
        (*latency)->most = value_ns;
}

static uint64_t told(const struct sim_latency *latency, unsigned counter)
{
    uint64_t value = value_of(counter);

    return value < latency->most ? value : latency->most;
}

uint64_t sim_latency_at(const struct sim_latency *latency, unsigned per_mille)
{
    uint64_t wanted, seen = 0;

    if (!latency)
        return 0;
    wanted = (latency->count * per_mille + 999) / 1000;
    for (unsigned i = 0; i < COUNTERS; i++) {
        seen += latency->counters[i];
        if (seen >= wanted && seen > 0)
            return told(latency, i);
    }
    return latency->most;
}

uint64_t sim_latency_max(const struct sim_latency *latency)
{
    return latency ? latency->most : 0;
}

uint64_t sim_latency_count(const struct sim_latency *latency)
{
    return latency ? latency->count : 0;
}

void sim_latency_each(const struct sim_latency *latency,
                      void (*point)(uint64_t value_ns, uint64_t count, void *context),
                      void *context)
{
    uint64_t seen = 0;

    for (unsigned i = 0; latency && i < COUNTERS; i++) {
        if (latency->counters[i] == 0)
            continue;
        seen += latency->counters[i];
        point(told(latency, i), seen, context);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Durations in buckets that grow with the value, after HdrHistogram's published scheme with
 * two significant digits.
 *
 *   0 1 2 ... 255 | 256 258 ... 510 | 512 516 ... 1020 | ...
 *   exactly         128 buckets for each power of two: 0.8 % wide at most
 *
 * Most durations of one thing lie close together, so counts are kept in leaves of 64 buckets
 * that are made when something first falls there.
 */
#include "metrics/metrics.h"

#include <stdlib.h>
#include <string.h>

#define HALF_LOG2 7u
#define HALF (1u << HALF_LOG2)
#define EXACT (1u << (HALF_LOG2 + 1)) /* below, each value has a bucket of its own */
#define VALUE_BITS METRICS_DURATION_BITS
#define BUCKETS ((VALUE_BITS - HALF_LOG2 + 1) * HALF)
#define LEAF 64u
#define LEAVES (BUCKETS / LEAF)
#define TURN_NS (30 * NS_PER_S)

struct metrics_table {
    uint64_t *leaves[LEAVES];
};

_Static_assert(BUCKETS % LEAF == 0, "the last leaf would be cut");

static unsigned bucket_of(uint64_t value)
{
    unsigned shift;

    if (value > METRICS_DURATION_MAX_US)
        return BUCKETS - 1;
    if (value < EXACT)
        return (unsigned)value;
    shift = 63u - (unsigned)__builtin_clzll(value) - HALF_LOG2;
    return shift * HALF + (unsigned)(value >> shift);
}

/* The largest value of a bucket. */
static uint64_t bucket_end(unsigned bucket)
{
    unsigned shift;

    if (bucket < EXACT)
        return bucket;
    shift = bucket / HALF - 1;
    return ((uint64_t)(bucket - shift * HALF + 1) << shift) - 1;
}

/* --- one histogram ---------------------------------------------------------------------- */

/* NULL: no memory. */
static uint64_t *leaf_for(struct metrics_histogram *histogram, unsigned leaf)
{
    if (!histogram->table)
        histogram->table = calloc(1, sizeof(*histogram->table));
    if (!histogram->table)
        return NULL;
    if (!histogram->table->leaves[leaf])
        histogram->table->leaves[leaf] = calloc(LEAF, sizeof(uint64_t));
    return histogram->table->leaves[leaf];
}

static void add(struct metrics_histogram *histogram, uint64_t duration_us, uint64_t count)
{
    unsigned bucket = bucket_of(duration_us);
    uint64_t *leaf = histogram->table ? histogram->table->leaves[bucket / LEAF] : NULL;

    histogram->count += count;
    histogram->sum_us += duration_us * count;
    if (duration_us > histogram->max_us)
        histogram->max_us = duration_us;
    if (!leaf)
        leaf = leaf_for(histogram, bucket / LEAF);
    if (leaf)
        leaf[bucket % LEAF] += count;
}

void metrics_histogram_record(struct metrics_histogram *histogram, uint64_t duration_us)
{
    add(histogram, duration_us, 1);
}

/* What `from` has in one leaf. */
static void merge_leaf(struct metrics_histogram *into, unsigned leaf, const uint64_t *counts)
{
    uint64_t *sums = counts ? leaf_for(into, leaf) : NULL;

    for (unsigned i = 0; sums && i < LEAF; i++)
        sums[i] += counts[i];
}

void metrics_histogram_merge(struct metrics_histogram *into, const struct metrics_histogram *from)
{
    for (unsigned leaf = 0; from->table && leaf < LEAVES; leaf++)
        merge_leaf(into, leaf, from->table->leaves[leaf]);
    into->count += from->count;
    into->sum_us += from->sum_us;
    if (from->max_us > into->max_us)
        into->max_us = from->max_us;
}

void metrics_histogram_clear(struct metrics_histogram *histogram)
{
    for (unsigned leaf = 0; histogram->table && leaf < LEAVES; leaf++)
        free(histogram->table->leaves[leaf]);
    free(histogram->table);
    *histogram = (struct metrics_histogram){0};
}

static uint64_t leaf_sum(const uint64_t *counts, unsigned buckets)
{
    uint64_t sum = 0;

    for (unsigned i = 0; counts && i < buckets; i++)
        sum += counts[i];
    return sum;
}

/* A power of two begins a bucket, so that nothing is counted by half. */
uint64_t metrics_histogram_below(const struct metrics_histogram *histogram, uint64_t bound_us)
{
    unsigned end = bucket_of(bound_us);
    uint64_t count = 0;

    for (unsigned leaf = 0; histogram->table && leaf <= end / LEAF; leaf++)
        count += leaf_sum(histogram->table->leaves[leaf], leaf < end / LEAF ? LEAF : end % LEAF);
    return count;
}

size_t metrics_histogram_bytes(const struct metrics_histogram *histogram)
{
    size_t bytes = histogram->table ? sizeof(*histogram->table) : 0;

    for (unsigned leaf = 0; histogram->table && leaf < LEAVES; leaf++)
        bytes += histogram->table->leaves[leaf] ? LEAF * sizeof(uint64_t) : 0;
    return bytes;
}

/* --- percentiles of several -------------------------------------------------------------- */

#define PERCENTILES 4u

/* One walk over the buckets finds all of them, the smallest first. */
struct search {
    uint64_t wanted[PERCENTILES]; /* so many are not larger than what is looked for */
    uint64_t found_us[PERCENTILES];
    unsigned next;
    uint64_t seen;
};

static void search_bucket(struct search *search, uint64_t count, uint64_t end_us)
{
    search->seen += count;
    while (search->next < PERCENTILES && search->seen >= search->wanted[search->next])
        search->found_us[search->next++] = end_us;
}

static void search_leaf(struct search *search, const struct metrics_histogram *const *histograms,
                        size_t count, unsigned leaf)
{
    uint64_t sums[LEAF] = {0};
    bool any = false;

    for (size_t i = 0; i < count; i++) {
        const uint64_t *counts =
            histograms[i] && histograms[i]->table ? histograms[i]->table->leaves[leaf] : NULL;

        for (unsigned j = 0; counts && j < LEAF; j++)
            sums[j] += counts[j];
        any = any || counts;
    }
    for (unsigned j = 0; any && j < LEAF && search->next < PERCENTILES; j++)
        search_bucket(search, sums[j], bucket_end(leaf * LEAF + j));
}

/* What the buckets hold: less than was recorded where memory was missing. */
static uint64_t bucketed(const struct metrics_histogram *histogram)
{
    uint64_t count = 0;

    for (unsigned leaf = 0; histogram->table && leaf < LEAVES; leaf++)
        count += leaf_sum(histogram->table->leaves[leaf], LEAF);
    return count;
}

static uint64_t at_most(uint64_t value, uint64_t max)
{
    return value < max ? value : max;
}

struct metrics_summary metrics_summarize(const struct metrics_histogram *const *histograms,
                                         size_t count)
{
    static const unsigned thousandths[PERCENTILES] = {500, 950, 990, 999};
    struct metrics_summary summary = {0};
    struct search search = {0};
    uint64_t total = 0;

    for (size_t i = 0; i < count; i++) {
        if (!histograms[i])
            continue;
        summary.count += histograms[i]->count;
        summary.sum_us += histograms[i]->sum_us;
        if (histograms[i]->max_us > summary.max_us)
            summary.max_us = histograms[i]->max_us;
        total += bucketed(histograms[i]);
    }
    if (total == 0)
        return summary;
    for (unsigned i = 0; i < PERCENTILES; i++)
        search.wanted[i] = (total * thousandths[i] + 999) / 1000;
    for (unsigned leaf = 0; leaf < LEAVES && search.next < PERCENTILES; leaf++)
        search_leaf(&search, histograms, count, leaf);
    summary.p50_us = at_most(search.found_us[0], summary.max_us);
    summary.p95_us = at_most(search.found_us[1], summary.max_us);
    summary.p99_us = at_most(search.found_us[2], summary.max_us);
    summary.p999_us = at_most(search.found_us[3], summary.max_us);
    return summary;
}

/* --- the last minute ------------------------------------------------------------------------ */

/* `from` is empty then. */
static void settle(struct metrics_latency *latency, struct metrics_histogram *from)
{
    if (from->count > 0)
        metrics_histogram_merge(&latency->settled, from);
    metrics_histogram_clear(from);
}

static void turn(struct metrics_latency *latency, uint64_t now_ns)
{
    if (now_ns - latency->turned_ns < TURN_NS)
        return;
    settle(latency, &latency->older);
    if (now_ns - latency->turned_ns >= 2 * TURN_NS)
        settle(latency, &latency->newer); /* nothing came for so long */
    latency->older = latency->newer;
    latency->newer = (struct metrics_histogram){0};
    latency->turned_ns = now_ns;
}

void metrics_latency_record(struct metrics_latency *latency, uint64_t duration_us, uint64_t now_ns)
{
    metrics_latency_add(latency, duration_us, 1, now_ns);
}

void metrics_latency_add(struct metrics_latency *latency, uint64_t duration_us, uint64_t count,
                         uint64_t now_ns)
{
    turn(latency, now_ns);
    add(&latency->newer, duration_us, count);
}

uint64_t metrics_latency_count(const struct metrics_latency *latency)
{
    return latency->settled.count + latency->older.count + latency->newer.count;
}

uint64_t metrics_latency_sum_us(const struct metrics_latency *latency)
{
    return latency->settled.sum_us + latency->older.sum_us + latency->newer.sum_us;
}

uint64_t metrics_latency_below(const struct metrics_latency *latency, uint64_t bound_us)
{
    return metrics_histogram_below(&latency->settled, bound_us) +
           metrics_histogram_below(&latency->older, bound_us) +
           metrics_histogram_below(&latency->newer, bound_us);
}

size_t metrics_latency_bytes(const struct metrics_latency *latency)
{
    return metrics_histogram_bytes(&latency->settled) + metrics_histogram_bytes(&latency->older) +
           metrics_histogram_bytes(&latency->newer);
}

struct metrics_summary metrics_latency_all(const struct metrics_latency *latency)
{
    const struct metrics_histogram *const all[] = {&latency->settled, &latency->older,
                                                   &latency->newer};

    return metrics_summarize(all, VGPU_ARRAY_LENGTH(all));
}

struct metrics_summary metrics_latency_recent(struct metrics_latency *latency, uint64_t now_ns)
{
    const struct metrics_histogram *const recent[] = {&latency->older, &latency->newer};

    turn(latency, now_ns);
    return metrics_summarize(recent, VGPU_ARRAY_LENGTH(recent));
}

void metrics_latency_clear(struct metrics_latency *latency)
{
    metrics_histogram_clear(&latency->settled);
    metrics_histogram_clear(&latency->older);
    metrics_histogram_clear(&latency->newer);
    *latency = (struct metrics_latency){0};
}

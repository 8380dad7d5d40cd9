/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the scheduler's operations cost, in nanoseconds, with few and with very many VMs
 * waiting, each with few and with very many operations.
 *
 * N VMs wait all the time, in an order that has nothing to do with where they lie in memory,
 * and all in one priority, so that all are touched in turn.  A batch is timed as a whole, so
 * that the clock's own cost does not count; a run's figure is the median of many batches; what
 * is printed is the least of REPEATS runs, as what else the machine does only adds:
 *
 *   ready   an idle VM gets work                          (N .. N + BATCH wait)
 *   next    sched_next() and sched_returned(), work left  (the VM waits again)
 *   done    the same, nothing left                        (the VM becomes idle)
 *
 * Beside it stand, for the same work (take the first, put it back behind all of its priority),
 * what one would write first: a linked list that is kept sorted, and a binary heap.
 *
 * usage: bench_sched [--json]
 */
#include "sched/sched.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#define BATCH 64u
#define REPEATS 5u
#define ROUNDS 1001u
#define LIST_ROUNDS 11u /* a batch walks through a list of 10,000 entries, 64 times */
#define WAITING_MAX 10000u
#define PRIORITY 1u

struct figures {
    double ready_ns, next_ns, done_ns;
};

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static unsigned random_below(unsigned limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)((random_state >> 33) % limit);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare_doubles);
    return values[count / 2];
}

static void fail(const char *what)
{
    fprintf(stderr, "bench_sched: %s\n", what);
    exit(1);
}

static double batch_ns(uint64_t start_ns)
{
    return (double)(clock_monotonic_ns() - start_ns) / BATCH;
}

/* The numbers 0 to count - 1 in random order. */
static void shuffle(unsigned *order, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        order[i] = i;
    for (unsigned i = count - 1; i > 0; i--) {
        unsigned j = random_below(i + 1), other = order[i];

        order[i] = order[j];
        order[j] = other;
    }
}

/* --- the scheduler ----------------------------------------------------------------------- */

static struct sched *make(enum sched_pools_mode mode, const struct sched_policy_config *policy,
                          unsigned count, struct sched_vm **vms)
{
    const struct sched_config config = {
        .pools_mode = mode, .grant_max_ops = 64, .grant_max_inflight = 8, .grant_device_us = 2000};
    static unsigned order[WAITING_MAX + BATCH];
    struct sched *sched = sched_new(&config);
    struct vgpu_error error;

    for (char pool = 'A'; pool <= 'B'; pool++) {
        if (sched_add_pool(sched, pool, 0, &error) < 0 ||
            sched_set_policy(sched, pool, policy, &error) < 0)
            fail(error.message);
    }
    shuffle(order, count);
    for (unsigned i = 0; i < count; i++) {
        struct sched_vm *vm = sched_add_vm(sched, i + 1, i % 2 ? 'B' : 'A', PRIORITY, NULL, &error);

        if (!vm)
            fail(error.message);
        sched_set_weight(sched, vm, 1 + random_below(SCHED_WEIGHT_MAX));
        vms[order[i]] = vm;
    }
    return sched;
}

/* BATCH grants and returns; notes who was granted. */
static double time_grants(struct sched *sched, uint32_t depth_left, struct sched_vm **granted)
{
    uint64_t start_ns = clock_monotonic_ns();

    for (unsigned i = 0; i < BATCH; i++) {
        struct sched_action action;

        if (!sched_next(sched, 0, start_ns, &action))
            fail("nobody waits");
        sched_returned(sched, action.vm, 1000 + (i * 7919) % 1000, depth_left, start_ns);
        granted[i] = action.vm;
    }
    return batch_ns(start_ns);
}

static double time_ready(struct sched *sched, struct sched_vm **vms, uint32_t depth)
{
    uint64_t start_ns = clock_monotonic_ns();

    for (unsigned i = 0; i < BATCH; i++)
        sched_ready(sched, vms[i], depth, start_ns);
    return batch_ns(start_ns);
}

static struct figures measure(enum sched_pools_mode mode, const struct sched_policy_config *policy,
                              unsigned waiting, uint32_t depth)
{
    static double ready[ROUNDS], next[ROUNDS], done[ROUNDS];
    static struct sched_vm *vms[WAITING_MAX + BATCH];
    struct sched_vm *idle[BATCH], *granted[BATCH];
    struct sched *sched = make(mode, policy, waiting + BATCH, vms);

    for (unsigned i = 0; i < waiting; i++)
        sched_ready(sched, vms[i], depth, 0);
    for (unsigned i = 0; i < BATCH; i++)
        idle[i] = vms[waiting + i];
    for (unsigned i = 0; i < ROUNDS; i++) {
        ready[i] = time_ready(sched, idle, depth);
        next[i] = time_grants(sched, depth, granted);
        done[i] = time_grants(sched, 0, idle);
    }
    if (sched_waiting(sched, 0) != waiting)
        fail("VMs were lost");
    sched_free(sched);
    return (struct figures){median(ready, ROUNDS), median(next, ROUNDS), median(done, ROUNDS)};
}

static double least(double a, double b)
{
    return a < b ? a : b;
}

static struct figures measure_repeatedly(enum sched_pools_mode mode,
                                         const struct sched_policy_config *policy, unsigned waiting,
                                         uint32_t depth)
{
    struct figures best = measure(mode, policy, waiting, depth);

    for (unsigned i = 1; i < REPEATS; i++) {
        struct figures figures = measure(mode, policy, waiting, depth);

        best.ready_ns = least(best.ready_ns, figures.ready_ns);
        best.next_ns = least(best.next_ns, figures.next_ns);
        best.done_ns = least(best.done_ns, figures.done_ns);
    }
    return best;
}

/* --- what one would write first ---------------------------------------------------------- */

struct entry {
    TAILQ_ENTRY(entry) link;
    unsigned priority;
    uint64_t arrival;
};

TAILQ_HEAD(entries, entry);

static bool goes_before(const struct entry *a, const struct entry *b)
{
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
}

static struct entry **entries_make(unsigned count)
{
    static unsigned order[WAITING_MAX];
    struct entry **entries = calloc(count, sizeof(struct entry *));

    shuffle(order, count);
    for (unsigned i = 0; entries && i < count; i++) {
        struct entry *entry = calloc(1, sizeof(*entry));

        if (!entry)
            fail("out of memory");
        entry->priority = PRIORITY;
        entry->arrival = order[i] + 1;
        entries[order[i]] = entry;
    }
    if (!entries)
        fail("out of memory");
    return entries;
}

static void entries_free(struct entry **entries, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        free(entries[i]);
    free(entries);
}

static void list_insert(struct entries *list, struct entry *entry)
{
    struct entry *after = TAILQ_FIRST(list);

    while (after && goes_before(after, entry))
        after = TAILQ_NEXT(after, link);
    if (after)
        TAILQ_INSERT_BEFORE(after, entry, link);
    else
        TAILQ_INSERT_TAIL(list, entry, link);
}

static double measure_list(unsigned waiting)
{
    struct entry **entries = entries_make(waiting);
    struct entries list = TAILQ_HEAD_INITIALIZER(list);
    double times[LIST_ROUNDS];
    uint64_t arrival = waiting;

    for (unsigned i = waiting; i-- > 0;)
        TAILQ_INSERT_HEAD(&list, entries[i], link);
    for (unsigned i = 0; i < LIST_ROUNDS; i++) {
        uint64_t start_ns = clock_monotonic_ns();

        for (unsigned j = 0; j < BATCH; j++) {
            struct entry *first = TAILQ_FIRST(&list);

            TAILQ_REMOVE(&list, first, link);
            first->arrival = ++arrival;
            list_insert(&list, first);
        }
        times[i] = batch_ns(start_ns);
    }
    entries_free(entries, waiting);
    return median(times, LIST_ROUNDS);
}

/* The first got a new arrival: it goes to its place. */
static void heap_sink(struct entry **heap, unsigned count)
{
    struct entry *entry = heap[0];
    unsigned at = 0;

    for (unsigned child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && goes_before(heap[child + 1], heap[child]))
            child++;
        if (goes_before(entry, heap[child]))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = entry;
}

static double measure_heap(unsigned waiting)
{
    struct entry **heap = entries_make(waiting); /* sorted: a heap */
    static double times[ROUNDS];
    uint64_t arrival = waiting;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t start_ns = clock_monotonic_ns();

        for (unsigned j = 0; j < BATCH; j++) {
            heap[0]->arrival = ++arrival;
            heap_sink(heap, waiting);
        }
        times[i] = batch_ns(start_ns);
    }
    entries_free(heap, waiting);
    return median(times, ROUNDS);
}

/* --- the table --------------------------------------------------------------------------- */

static void print_figures(bool json, const char *what, const char *pools, unsigned waiting,
                          uint32_t depth, const struct figures *figures)
{
    printf(json ? "{\"what\":\"%s\",\"pools\":\"%s\",\"waiting\":%u,\"depth\":%u,"
                  "\"ready_ns\":%.1f,\"next_ns\":%.1f,\"done_ns\":%.1f}\n"
                : "%-12s %-12s %8u %8u %7.1f ns %9.1f ns %9.1f ns\n",
           what, pools, waiting, depth, figures->ready_ns, figures->next_ns, figures->done_ns);
}

static void measure_other(bool json, const char *what, unsigned waiting,
                          double (*measure_once)(unsigned waiting))
{
    double next_ns = measure_once(waiting);

    for (unsigned i = 1; i < REPEATS; i++)
        next_ns = least(next_ns, measure_once(waiting));
    printf(json ? "{\"what\":\"%s\",\"waiting\":%u,\"next_ns\":%.1f}\n" : "%-25s %8u %29.1f ns\n",
           what, waiting, next_ns);
}

static void measure_policy(bool json, const struct sched_policy_config *policy)
{
    static const struct {
        unsigned waiting;
        uint32_t depth;
    } sizes[] = {{10, 1}, {1000, 1}, {WAITING_MAX, 1}, {WAITING_MAX, 1000}, {WAITING_MAX, 1000000}};

    for (int mode = 0; mode < 2; mode++) {
        for (size_t i = 0; i < VGPU_ARRAY_LENGTH(sizes); i++) {
            struct figures figures = measure_repeatedly((enum sched_pools_mode)mode, policy,
                                                        sizes[i].waiting, sizes[i].depth);

            print_figures(json, sched_policy_name(policy->type),
                          mode == SCHED_POOLS_SHARED ? "shared" : "independent", sizes[i].waiting,
                          sizes[i].depth, &figures);
        }
    }
}

int main(int argc, char **argv)
{
    static const struct sched_policy_config policies[] = {{.type = SCHED_POLICY_STRICT},
                                                          {.type = SCHED_POLICY_WFQ}};
    static const unsigned counts[] = {10, 1000, WAITING_MAX};
    bool json = argc == 2 && strcmp(argv[1], "--json") == 0;

    if (argc > 1 && !json) {
        fprintf(stderr, "usage: bench_sched [--json]\n");
        return 2;
    }
    if (!json)
        printf("%-12s %-12s %8s %8s %10s %12s %12s\n", "policy", "pools", "waiting", "depth",
               "ready", "next", "done");
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(policies); i++)
        measure_policy(json, &policies[i]);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(counts); i++) {
        measure_other(json, json ? "list" : "a sorted list", counts[i], measure_list);
        measure_other(json, json ? "heap" : "a heap", counts[i], measure_heap);
    }
    return 0;
}

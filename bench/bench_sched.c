/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the scheduler's operations cost, in nanoseconds, with few and with very
 * many VMs waiting.
 *
 * N VMs wait all the time, in an order that has nothing to do with where they
 * lie in memory, and all in one priority, so that all are touched in turn.  Each
 * figure is the median of many batches; a batch is timed as a whole, so that the
 * clock's own cost does not count:
 *
 *   ready          an idle VM gets work           (N .. N + BATCH wait)
 *   next+returned  grant and return, work is left (the VM goes to the tail)
 *   next+returned, done   the same, nothing left  (the VM becomes idle)
 *
 * usage: bench_sched [--json]
 */
#include "sched/sched.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 64u
#define ROUNDS 4001u
#define WAITING_MAX 10000u

struct figures {
    double ready_ns, next_returned_ns, next_done_ns;
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

static struct sched *make(enum sched_pools_mode mode, unsigned count, struct sched_vm **vms)
{
    const struct sched_config config = {.pools_mode = mode,
                                        .policy = SCHED_POLICY_STRICT,
                                        .grant_max_ops = 64,
                                        .grant_max_inflight = 8,
                                        .grant_device_us = 2000};
    struct sched *sched = sched_new(&config);
    struct vgpu_error error;

    if (sched_add_pool(sched, 'A', 0, &error) < 0 || sched_add_pool(sched, 'B', 0, &error) < 0)
        fail(error.message);
    for (unsigned i = 0; i < count; i++) {
        vms[i] = sched_add_vm(sched, i + 1, i % 2 ? 'B' : 'A', 1, NULL, &error);
        if (!vms[i])
            fail(error.message);
    }
    for (unsigned i = count - 1; i > 0; i--) {
        unsigned j = random_below(i + 1);
        struct sched_vm *vm = vms[i];

        vms[i] = vms[j];
        vms[j] = vm;
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
        sched_returned(sched, action.vm, 10, depth_left, start_ns);
        granted[i] = action.vm;
    }
    return (double)(clock_monotonic_ns() - start_ns) / BATCH;
}

static double time_ready(struct sched *sched, struct sched_vm **vms)
{
    uint64_t start_ns = clock_monotonic_ns();

    for (unsigned i = 0; i < BATCH; i++)
        sched_ready(sched, vms[i], 1, start_ns);
    return (double)(clock_monotonic_ns() - start_ns) / BATCH;
}

static struct figures measure(enum sched_pools_mode mode, unsigned waiting)
{
    static double ready[ROUNDS], returned[ROUNDS], done[ROUNDS];
    unsigned count = waiting + BATCH;
    static struct sched_vm *vms[WAITING_MAX + BATCH];
    struct sched_vm *idle[BATCH], *granted[BATCH];
    struct sched *sched;

    sched = make(mode, count, vms);
    for (unsigned i = 0; i < waiting; i++)
        sched_ready(sched, vms[i], 1, 0);
    for (unsigned i = 0; i < BATCH; i++)
        idle[i] = vms[waiting + i];
    for (unsigned i = 0; i < ROUNDS; i++) {
        ready[i] = time_ready(sched, idle);
        returned[i] = time_grants(sched, 1, granted);
        done[i] = time_grants(sched, 0, idle);
    }
    if (sched_waiting(sched, 0) != waiting)
        fail("VMs were lost");
    sched_free(sched);
    return (struct figures){median(ready, ROUNDS), median(returned, ROUNDS), median(done, ROUNDS)};
}

int main(int argc, char **argv)
{
    static const unsigned depths[] = {10, 1000, WAITING_MAX};
    bool json = argc == 2 && strcmp(argv[1], "--json") == 0;

    if (argc > 1 && !json) {
        fprintf(stderr, "usage: bench_sched [--json]\n");
        return 2;
    }
    if (!json)
        printf("%-12s %8s %10s %14s %20s\n", "pools", "waiting", "ready", "next+returned",
               "next+returned, done");
    for (int mode = 0; mode < 2; mode++) {
        const char *name = mode == SCHED_POOLS_SHARED ? "shared" : "independent";

        for (size_t i = 0; i < VGPU_ARRAY_LENGTH(depths); i++) {
            struct figures figures = measure((enum sched_pools_mode)mode, depths[i]);

            printf(json ? "{\"pools\":\"%s\",\"waiting\":%u,\"ready_ns\":%.1f,"
                          "\"next_returned_ns\":%.1f,\"next_returned_done_ns\":%.1f}\n"
                        : "%-12s %8u %7.1f ns %11.1f ns %17.1f ns\n",
                   name, depths[i], figures.ready_ns, figures.next_returned_ns,
                   figures.next_done_ns);
        }
    }
    return 0;
}

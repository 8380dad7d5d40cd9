/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs to record a duration, in nanoseconds, in one histogram and over those of
 * 10,000 VMs in turn, where each lies in memory that the processor has long forgotten; what
 * a VM's histograms take of memory; what a line of text costs.
 *
 * Durations are spread as real ones are: most within a factor of ten, few far above.
 *
 * usage: bench_metrics [--json]
 */
#include "metrics/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RECORDS 4000000u
#define VMS 10000u
#define LINES 1000000u

static uint64_t random_state = 0x9e3779b97f4a7c15u;

/* Of this thread: others may want the processor too. */
static uint64_t cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t random_duration_us(void)
{
    uint64_t low;

    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    low = 100 + random_state % 900;
    return (random_state >> 40) % 100 == 0 ? low * 50 : low;
}

/* Nanoseconds a record; the durations are made before. */
static double time_records(struct metrics_latency *latencies, unsigned count,
                           const uint64_t *durations)
{
    uint64_t began_ns = cpu_ns();

    for (unsigned i = 0; i < RECORDS; i++)
        metrics_latency_record(&latencies[i % count], durations[i], 0);
    return (double)(cpu_ns() - began_ns) / RECORDS;
}

static double time_lines(void)
{
    struct metrics_text text = {0};
    uint64_t began_ns = cpu_ns();

    for (unsigned i = 0; i < LINES; i++)
        metrics_text_sample(&text, "vgpu_vm_device_time_seconds_total", "", "vm=\"4711\"",
                            (uint64_t)i * 7919, 6);
    began_ns = cpu_ns() - began_ns;
    metrics_text_clear(&text);
    return (double)began_ns / LINES;
}

int main(int argc, char **argv)
{
    struct metrics_latency *latencies = calloc(VMS, sizeof(*latencies));
    uint64_t *durations = calloc(RECORDS, sizeof(*durations));
    double one_ns, many_ns, line_ns;
    size_t bytes = 0;

    if (!latencies || !durations) {
        fputs("bench_metrics: no memory\n", stderr);
        return 1;
    }
    for (unsigned i = 0; i < RECORDS; i++)
        durations[i] = random_duration_us();
    time_records(latencies, VMS, durations); /* their memory is made now */
    one_ns = time_records(latencies, 1, durations);
    many_ns = time_records(latencies, VMS, durations);
    line_ns = time_lines();
    for (unsigned i = 0; i < VMS; i++)
        bytes += metrics_latency_bytes(&latencies[i]);
    if (argc > 1 && strcmp(argv[1], "--json") == 0)
        printf("{\"metrics.record_ns\": %.1f, \"metrics.record_10000_ns\": %.1f, "
               "\"metrics.line_ns\": %.1f, \"metrics.histogram_bytes\": %zu}\n",
               one_ns, many_ns, line_ns, bytes / VMS);
    else
        printf("record          %6.1f ns\nrecord, 10000   %6.1f ns\nline of text    %6.1f ns\n"
               "memory of one   %6zu bytes\n",
               one_ns, many_ns, line_ns, bytes / VMS);
    for (unsigned i = 0; i < VMS; i++)
        metrics_latency_clear(&latencies[i]);
    free(latencies);
    free(durations);
    return 0;
}

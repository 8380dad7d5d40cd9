/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One program at a VM's socket that does one thing for a while and tells how it went.
 *
 *   bench_load SOCKET [KEY=NUMBER]...
 *
 *   run_ms=1000     how long
 *   spin_us=-1      how long it looks for an answer before it sleeps; -1: the library's default
 *   pause_us=0      before each request
 *   depth=1         requests in flight; their answers are taken in order
 *   work_us=0       a request is a kernel that takes so long; 0: a ping
 *   copy_kib=0      a request is a copy to the device and back; not with depth and work_us
 *   heap=1          such a copy's memory is the session's heap; 0: the program's own
 *   window_kib=0    the window to make; 0: the library's default
 *
 * Prints one JSON object: p50_us and p99_us of the time from a request to its answer (without the
 * pause), per_s requests a second, cpu_pct of a processor that this process took, and gbps of
 * copies.  bench/tuning.py runs it.
 */
#include "vgpu/vgpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES_MAX (1u << 20)
#define DEPTH_MAX 512
#define WARM_UP 20
#define NS_PER_S 1000000000ll
#define NS_PER_MS 1000000ll
#define VALUES 8

struct load {
    long run_ms, spin_us, pause_us, depth, work_us, copy_kib, heap, window_kib;
    struct vgpu_session *session;
    struct vgpu_problem problem;
    vgpu_ticket tickets[DEPTH_MAX];
    int64_t begun_ns[DEPTH_MAX];
    uint32_t *samples_ns;
    size_t sample_count;
    uint64_t submitted, answered;
    uint64_t warm_up_answers; /* which do not count */
    uint64_t device_address;
    void *memory;
};

static int64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static double cpu_used_ns(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e9 +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e3;
}

/* --- arguments ------------------------------------------------------------------------- */

static int parse(struct load *load, char *word)
{
    const struct {
        const char *name;
        long *number;
    } keys[VALUES] = {{"run_ms", &load->run_ms},     {"spin_us", &load->spin_us},
                      {"pause_us", &load->pause_us}, {"depth", &load->depth},
                      {"work_us", &load->work_us},   {"copy_kib", &load->copy_kib},
                      {"heap", &load->heap},         {"window_kib", &load->window_kib}};
    char *equals = strchr(word, '='), *end;

    for (int i = 0; equals && i < VALUES; i++) {
        if (strncmp(word, keys[i].name, (size_t)(equals - word)) == 0 &&
            strlen(keys[i].name) == (size_t)(equals - word)) {
            *keys[i].number = strtol(equals + 1, &end, 10);
            return end != equals + 1 && *end == '\0' ? 0 : -1;
        }
    }
    return -1;
}

static bool is_sound(const struct load *load)
{
    return load->run_ms > 0 && load->pause_us >= 0 && load->depth >= 1 &&
           load->depth <= DEPTH_MAX && load->work_us >= 0 && load->copy_kib >= 0 &&
           load->window_kib >= 0;
}

/* --- requests -------------------------------------------------------------------------- */

/* A kernel is quiet: what is waited for is the end of all that came before. */
static int submit(struct load *load)
{
    const uint32_t one[3] = {1, 1, 1};
    const uint64_t work_us = (uint64_t)load->work_us;
    const struct vgpu_descriptor request = {.opcode = work_us ? VGPU_OP_DEVICE_SYNC : VGPU_OP_PING};
    uint64_t place = load->submitted % (uint64_t)load->depth;

    load->begun_ns[place] = clock_ns();
    if (work_us &&
        vgpu_launch(load->session, 0, "spin_us", one, one, &work_us, 1, &load->problem) < 0)
        return -1;
    if (vgpu_submit(load->session, &request, NULL, NULL, &load->tickets[place], &load->problem) < 0)
        return -1;
    load->submitted++;
    return 0;
}

static void take_sample(struct load *load, int64_t begun_ns)
{
    int64_t took_ns = clock_ns() - begun_ns;

    if (load->sample_count < SAMPLES_MAX)
        load->samples_ns[load->sample_count++] =
            took_ns < UINT32_MAX ? (uint32_t)took_ns : UINT32_MAX;
}

static int take_oldest(struct load *load)
{
    uint64_t place = load->answered % (uint64_t)load->depth;
    struct vgpu_result result;

    if (vgpu_wait(load->session, load->tickets[place], VGPU_FOREVER, &result, &load->problem) < 0)
        return -1;
    if (result.status != VGPU_OK) {
        snprintf(load->problem.text, sizeof(load->problem.text), "an operation ended with %u",
                 result.status);
        return -1;
    }
    take_sample(load, load->begun_ns[place]);
    load->answered++;
    return 0;
}

static int request(struct load *load)
{
    while (load->submitted - load->answered < (uint64_t)load->depth) {
        if (submit(load) < 0)
            return -1;
    }
    return take_oldest(load);
}

static int copy(struct load *load)
{
    uint64_t bytes = (uint64_t)load->copy_kib << 10;
    int64_t begun_ns = clock_ns();

    if (vgpu_copy_in(load->session, load->device_address, load->memory, bytes, &load->problem) <
            0 ||
        vgpu_copy_out(load->session, load->memory, load->device_address, bytes, &load->problem) < 0)
        return -1;
    take_sample(load, begun_ns);
    load->answered++;
    return 0;
}

static int prepare_copy(struct load *load)
{
    uint64_t bytes = (uint64_t)load->copy_kib << 10;

    if (vgpu_memory_alloc(load->session, bytes, &load->device_address, &load->problem) < 0)
        return -1;
    load->memory = load->heap ? vgpu_heap_alloc(load->session, bytes) : malloc(bytes);
    if (!load->memory) {
        snprintf(load->problem.text, sizeof(load->problem.text),
                 "no memory for a copy of %ld KiB: make the window larger (window_kib)",
                 load->copy_kib);
        return -1;
    }
    memset(load->memory, 1, bytes);
    return 0;
}

static void forget_memory(struct load *load)
{
    if (!load->heap)
        free(load->memory);
}

/* --- the whole ---------------------------------------------------------------------------- */

static int compare_samples(const void *a, const void *b)
{
    const uint32_t *first = a, *second = b;

    return (*first > *second) - (*first < *second);
}

static double quantile_us(const struct load *load, double part)
{
    size_t at = (size_t)((double)load->sample_count * part);

    return load->samples_ns[at < load->sample_count ? at : load->sample_count - 1] / 1e3;
}

static void print(struct load *load, int64_t took_ns, double used_ns)
{
    double answers = (double)(load->answered - load->warm_up_answers);

    qsort(load->samples_ns, load->sample_count, sizeof(*load->samples_ns), compare_samples);
    printf("{\"p50_us\": %.3f, \"p99_us\": %.3f, \"per_s\": %.1f, \"cpu_pct\": %.2f, "
           "\"gbps\": %.3f}\n",
           quantile_us(load, 0.5), quantile_us(load, 0.99), answers * 1e9 / (double)took_ns,
           used_ns * 100 / (double)took_ns,
           2.0 * 1024 * (double)load->copy_kib * answers / (double)took_ns);
}

static int run(struct load *load)
{
    int (*once)(struct load * load) = load->copy_kib ? copy : request;
    int64_t begin_ns;
    double before_ns;

    if (load->copy_kib && prepare_copy(load) < 0)
        return -1;
    for (int i = 0; i < WARM_UP; i++) {
        if (once(load) < 0)
            return -1;
    }
    load->warm_up_answers = load->answered;
    load->sample_count = 0;
    before_ns = cpu_used_ns();
    begin_ns = clock_ns();
    do {
        if (load->pause_us)
            usleep((useconds_t)load->pause_us);
        if (once(load) < 0)
            return -1;
    } while (clock_ns() - begin_ns < load->run_ms * NS_PER_MS);
    print(load, clock_ns() - begin_ns, cpu_used_ns() - before_ns);
    return 0;
}

static int open_and_run(struct load *load, const char *socket)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    int result;

    options.transport = VGPU_TRANSPORT_SOCKET;
    options.path = socket;
    options.spin_us = (int32_t)load->spin_us;
    options.window_bytes = (uint64_t)load->window_kib << 10;
    if (vgpu_open(&options, &load->session, &load->problem) < 0)
        return -1;
    result = run(load);
    forget_memory(load);
    vgpu_close(load->session);
    return result;
}

int main(int argc, char **argv)
{
    static struct load load = {.run_ms = 1000, .spin_us = -1, .depth = 1, .heap = 1};
    int result;

    for (int i = 2; i < argc; i++) {
        if (parse(&load, argv[i]) < 0) {
            fprintf(stderr,
                    "bench_load: expected KEY=NUMBER, got '%s'; the keys stand in its source\n",
                    argv[i]);
            return 2;
        }
    }
    if (argc < 2 || !is_sound(&load)) {
        fprintf(stderr, "usage: bench_load SOCKET [KEY=NUMBER]...   (depth: 1 to %d)\n", DEPTH_MAX);
        return 2;
    }
    load.samples_ns = malloc(SAMPLES_MAX * sizeof(*load.samples_ns));
    if (!load.samples_ns) {
        fprintf(stderr, "bench_load: out of memory\n");
        return 1;
    }
    result = open_and_run(&load, argv[1]);
    if (result < 0)
        fprintf(stderr, "bench_load: %s\n", load.problem.text);
    free(load.samples_ns);
    return result < 0;
}

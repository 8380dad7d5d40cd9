/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM's program does to a GPU, for tests/gpu/vms.py and bench/sharing.py:
 *
 *   vgpu-load latency SECONDS              a launch and the wait for it, one after the other,
 *                                          spinning for the answer: how long each takes
 *   vgpu-load saturate KERNEL_US SECONDS   kernels that take so long each, one behind the other:
 *                                          the next batch is there before one has ended
 *
 * With "asleep" as a last word it waits for answers without spinning: for hosts with few cores.
 *
 * Prints one JSON object.  Ends with 0 when all was answered, else it says what was not.
 */
#include "probe.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SAMPLES_MAX (1u << 20)
#define WARM_UP 100
#define SPIN_US 1000000
#define BATCH 64u /* kernels; two batches are in flight */

static const uint32_t one[3] = {1, 1, 1};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool asleep;

static struct vgpu_session *open_session(void)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    struct vgpu_session *session;

    options.spin_us = asleep ? 0 : SPIN_US;
    GOOD(vgpu_open(&options, &session, &problem));
    return session;
}

/* --- latency ------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    const uint32_t *first = a, *second = b;

    return (*first > *second) - (*first < *second);
}

static double quantile_us(const uint32_t *sorted_ns, uint32_t count, double part)
{
    return sorted_ns[(uint32_t)((count - 1) * part)] / 1e3;
}

static void launch_and_wait(struct vgpu_session *s, uint64_t address)
{
    const uint64_t parameters[] = {address, 1};

    GOOD(vgpu_launch(s, 0, "increment", one, one, parameters, 2, &problem));
    GOOD(vgpu_stream_sync(s, 0, &problem));
}

static uint32_t sample(struct vgpu_session *s, uint64_t until_ns, uint32_t *samples_ns)
{
    uint64_t address = allocate(s, 8), last_ns, this_ns, took_ns;
    uint32_t count = 0;

    for (unsigned i = 0; i < WARM_UP; i++)
        launch_and_wait(s, address);
    last_ns = now_ns();
    while (count < SAMPLES_MAX && (count == 0 || last_ns < until_ns)) {
        launch_and_wait(s, address);
        this_ns = now_ns();
        took_ns = this_ns - last_ns;
        samples_ns[count++] = took_ns < UINT32_MAX ? (uint32_t)took_ns : UINT32_MAX;
        last_ns = this_ns;
    }
    return count;
}

static void latency(double seconds)
{
    uint32_t *samples_ns = malloc(SAMPLES_MAX * sizeof(*samples_ns));
    struct vgpu_session *s = open_session();
    uint32_t count;

    MUST(samples_ns);
    count = sample(s, now_ns() + (uint64_t)(seconds * 1e9), samples_ns);
    qsort(samples_ns, count, sizeof(*samples_ns), compare);
    printf("{\"launch_sync_count\": %" PRIu32 ", \"launch_sync_p50_us\": %.3f, "
           "\"launch_sync_p99_us\": %.3f, \"launch_sync_max_us\": %.3f}\n",
           count, quantile_us(samples_ns, count, 0.5), quantile_us(samples_ns, count, 0.99),
           quantile_us(samples_ns, count, 1));
    free(samples_ns);
    vgpu_close(s);
}

/* --- saturating ----------------------------------------------------------------------------- */

/* Gives the ticket of what ends with the batch. */
static vgpu_ticket submit_batch(struct vgpu_session *s, uint64_t kernel_us)
{
    const struct vgpu_descriptor wait = {.opcode = VGPU_OP_STREAM_SYNC};
    vgpu_ticket ticket;

    vgpu_batch_begin(s);
    for (unsigned i = 0; i < BATCH; i++)
        GOOD(vgpu_launch(s, 0, "spin_us", one, one, &kernel_us, 1, &problem));
    GOOD(vgpu_submit(s, &wait, NULL, NULL, &ticket, &problem));
    vgpu_batch_end(s);
    return ticket;
}

static void wait_batch(struct vgpu_session *s, vgpu_ticket ticket)
{
    struct vgpu_result result;

    GOOD(vgpu_wait(s, ticket, VGPU_FOREVER, &result, &problem));
    MUST(result.status == VGPU_OK);
}

static void saturate(uint64_t kernel_us, double seconds)
{
    struct vgpu_session *s = open_session();
    uint64_t begin_ns = now_ns(), until_ns = begin_ns + (uint64_t)(seconds * 1e9), kernels = 0;
    vgpu_ticket earlier = submit_batch(s, kernel_us), later;

    while (now_ns() < until_ns) {
        later = submit_batch(s, kernel_us);
        wait_batch(s, earlier);
        kernels += BATCH;
        earlier = later;
    }
    wait_batch(s, earlier);
    printf("{\"kernels\": %" PRIu64 ", \"kernel_us\": %" PRIu64 ", \"seconds\": %.3f}\n",
           kernels + BATCH, kernel_us, (double)(now_ns() - begin_ns) / 1e9);
    vgpu_close(s);
}

int main(int argc, char **argv)
{
    asleep = argc > 1 && strcmp(argv[argc - 1], "asleep") == 0;
    argc -= asleep;
    if (argc == 3 && strcmp(argv[1], "latency") == 0 && atof(argv[2]) > 0) {
        latency(atof(argv[2]));
    } else if (argc == 4 && strcmp(argv[1], "saturate") == 0 && atof(argv[3]) > 0) {
        saturate(strtoull(argv[2], NULL, 10), atof(argv[3]));
    } else {
        fprintf(stderr, "usage: vgpu-load latency SECONDS | saturate KERNEL_US SECONDS [asleep]\n");
        return 2;
    }
    return 0;
}

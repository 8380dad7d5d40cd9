/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Xen's own library (libxenvchan) makes of the same pages and event channels, for
 * tests/xen/test_figures.py to print beside ours:
 *
 *   vgpu-vchan measure DOMAIN PATH SECONDS   in the guest, which grants the pages
 *   vgpu-vchan echo DOMAIN PATH              in Dom0, which maps them
 *
 * measure sends 64 bytes and waits for as many, again and again, then sends COPY_BYTES at
 * a time and waits for one such answer; both sides sleep while they wait, as ours do.
 * It prints one JSON object.  Ends with 1 and a line that says why when it could not.
 */
#include <libxenvchan.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RING_BYTES (256u << 10)
#define COPY_BYTES (1u << 20)
#define PIECE_BYTES (64u << 10)
#define SAMPLES_MAX 100000u

struct message {
    uint32_t bytes; /* that follow and are not sent back */
    uint8_t rest[60];
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int fail(const char *what)
{
    fprintf(stderr, "vgpu-vchan: %s failed\n", what);
    return EXIT_FAILURE;
}

static int order(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

/* One question and its answer; -1: the other side is gone. */
static int ask(struct libxenvchan *channel, uint32_t bytes)
{
    static uint8_t piece[PIECE_BYTES];
    struct message message = {.bytes = bytes};

    if (libxenvchan_send(channel, &message, sizeof(message)) != (int)sizeof(message))
        return -1;
    for (uint32_t sent = 0; sent < bytes; sent += PIECE_BYTES) {
        if (libxenvchan_send(channel, piece, PIECE_BYTES) != (int)PIECE_BYTES)
            return -1;
    }
    return libxenvchan_recv(channel, &message, sizeof(message)) == (int)sizeof(message) ? 0 : -1;
}

/* Nanoseconds of each, sorted; returns how many, or 0. */
static size_t take_samples(struct libxenvchan *channel, uint32_t bytes, uint64_t seconds,
                           uint64_t *samples)
{
    uint64_t until_ns;
    size_t count = 0;

    if (ask(channel, bytes) < 0) /* the first touches the pages */
        return 0;
    until_ns = now_ns() + seconds * 1000000000u;
    while (count < SAMPLES_MAX && now_ns() < until_ns) {
        uint64_t begin_ns = now_ns();

        if (ask(channel, bytes) < 0)
            return 0;
        samples[count++] = now_ns() - begin_ns;
    }
    qsort(samples, count, sizeof(*samples), order);
    return count;
}

static int measure(struct libxenvchan *channel, uint64_t seconds)
{
    static uint64_t samples[SAMPLES_MAX];
    size_t count = take_samples(channel, 0, seconds, samples);
    double p50_us, p99_us;

    if (count == 0)
        return fail("a round");
    p50_us = (double)samples[count / 2] / 1000;
    p99_us = (double)samples[count * 99 / 100] / 1000;
    count = take_samples(channel, COPY_BYTES, seconds, samples);
    if (count == 0)
        return fail("a copy");
    printf("{\"p50_us\": %.1f, \"p99_us\": %.1f, \"copy_gbps\": %.4f}\n", p50_us, p99_us,
           COPY_BYTES / (double)samples[count / 2]);
    return EXIT_SUCCESS;
}

static int echo(struct libxenvchan *channel)
{
    static uint8_t piece[PIECE_BYTES];
    struct message message;

    while (libxenvchan_recv(channel, &message, sizeof(message)) == (int)sizeof(message)) {
        for (uint32_t got = 0; got < message.bytes; got += PIECE_BYTES) {
            if (libxenvchan_recv(channel, piece, PIECE_BYTES) != (int)PIECE_BYTES)
                return EXIT_SUCCESS;
        }
        if (libxenvchan_send(channel, &message, sizeof(message)) != (int)sizeof(message))
            break;
    }
    return EXIT_SUCCESS; /* the other side has ended */
}

static int run(int domain, const char *path, const char *seconds)
{
    struct libxenvchan *channel =
        seconds ? libxenvchan_server_init(NULL, domain, path, RING_BYTES, RING_BYTES)
                : libxenvchan_client_init(NULL, domain, path);
    int status;

    if (!channel)
        return fail(seconds ? "libxenvchan_server_init" : "libxenvchan_client_init");
    channel->blocking = 1;
    if (seconds) {
        puts("offered");
        fflush(stdout);
    }
    status = seconds ? measure(channel, strtoul(seconds, NULL, 10)) : echo(channel);
    libxenvchan_close(channel);
    return status;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "measure") == 0)
        return run(atoi(argv[2]), argv[3], argv[4]);
    if (argc == 4 && strcmp(argv[1], "echo") == 0)
        return run(atoi(argv[2]), argv[3], NULL);
    fputs("usage: vgpu-vchan measure DOMAIN PATH SECONDS | echo DOMAIN PATH\n", stderr);
    return 2;
}

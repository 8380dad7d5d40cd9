/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closing what a peer gave us and nobody took.
 *
 * A close can wait for the peer: a file of a FUSE file system whose server is the
 * peer itself, a TCP socket that lingers.  So whatever is not one of the kernel's
 * own harmless kinds is closed by a thread that nobody waits for.
 *
 *   loop ── window_close_foreign() ──▶ thread: close(2) ── perhaps never ──▶ ends
 *             │ counted                                        │ uncounted
 *             └───────── window_closer_pending() ◀─────────────┘
 *
 * The count is a VM's; while it is high its socket lets nobody in, so a peer cannot
 * use up threads or descriptors either.
 */
#include "channel/window_private.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STACK_BYTES (64u << 10)
#define GONE_PATIENCE_NS NS_PER_S

struct window_closer {
    unsigned holders; /* threads, and the socket */
    unsigned pending;
};

struct job {
    struct window_closer *closer;
    int fd;
};

struct window_closer *window_closer_new(void)
{
    struct window_closer *closer = calloc(1, sizeof(*closer));

    if (closer)
        closer->holders = 1;
    return closer;
}

void window_closer_release(struct window_closer *closer)
{
    if (closer && __atomic_sub_fetch(&closer->holders, 1, __ATOMIC_ACQ_REL) == 0)
        free(closer);
}

unsigned window_closer_pending(const struct window_closer *closer)
{
    return closer ? __atomic_load_n(&closer->pending, __ATOMIC_ACQUIRE) : 0;
}

static void *run(void *argument)
{
    struct job job = *(struct job *)argument;

    free(argument);
    fd_close(&job.fd);
    __atomic_sub_fetch(&job.closer->pending, 1, __ATOMIC_ACQ_REL);
    window_closer_release(job.closer);
    return NULL;
}

void window_name_of(int fd, char name[WINDOW_NAME_BYTES])
{
    char path[32], raw[WINDOW_NAME_BYTES];
    ssize_t bytes;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    bytes = readlink(path, raw, sizeof(raw));
    text_escape(name, WINDOW_NAME_BYTES, raw, bytes > 0 ? (size_t)bytes : 0);
}

/* By what only the kernel answers: asking the file itself could wait.  No path begins
 * without a slash, and who has seals lies in memory. */
bool window_is_harmless(int fd)
{
    char name[WINDOW_NAME_BYTES];

    window_name_of(fd, name);
    return strcmp(name, "anon_inode:[eventfd]") == 0 || strncmp(name, "pipe:[", 6) == 0 ||
           fcntl(fd, F_GET_SEALS) >= 0;
}

/* A close takes the descriptor out of the table first, and waits then.  As long as it
 * stands there a child gets a copy, whose close at exec(2) waits as well, and the
 * mediator with it. */
static void wait_until_gone(int fd, const char *name)
{
    uint64_t until_ns = clock_monotonic_ns() + GONE_PATIENCE_NS;
    char now[WINDOW_NAME_BYTES];

    do {
        sched_yield();
        window_name_of(fd, now);
    } while (strcmp(now, name) == 0 && clock_monotonic_ns() < until_ns);
}

static bool start(struct job *job)
{
    pthread_attr_t attributes;
    pthread_t thread;
    bool started;

    if (pthread_attr_init(&attributes) != 0)
        return false;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    __atomic_add_fetch(&job->closer->holders, 1, __ATOMIC_ACQ_REL);
    __atomic_add_fetch(&job->closer->pending, 1, __ATOMIC_ACQ_REL);
    started = pthread_create(&thread, &attributes, run, job) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
        __atomic_sub_fetch(&job->closer->pending, 1, __ATOMIC_ACQ_REL);
        window_closer_release(job->closer);
    }
    return started;
}

void window_close_foreign(struct window_closer *closer, int *fd)
{
    char name[WINDOW_NAME_BYTES];
    struct job *job;

    if (*fd < 0)
        return;
    job = closer && !window_is_harmless(*fd) ? malloc(sizeof(*job)) : NULL;
    if (job) {
        *job = (struct job){closer, *fd};
        window_name_of(*fd, name);
        if (start(job)) {
            wait_until_gone(*fd, name);
            *fd = -1;
            return;
        }
        free(job);
    }
    fd_close(fd);
}

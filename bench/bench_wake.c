/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this machine needs for the two wake-ups of a ping between sleepers: one
 * process wakes another through an eventfd and is woken by it the same way, with
 * a pause before each, and nothing else.  Prints the median in microseconds.
 *
 *   bench_wake SECONDS
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PAUSE_US 1000
#define SAMPLES_MAX 100000

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int compare_samples(const void *a, const void *b)
{
    const double *first = a, *second = b;

    return (*first > *second) - (*first < *second);
}

static void answer(int asked_fd, int answered_fd)
{
    eventfd_t count;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (eventfd_read(asked_fd, &count) == 0)
        eventfd_write(answered_fd, 1);
    _exit(0);
}

int main(int argc, char **argv)
{
    static double samples[SAMPLES_MAX];
    int asked_fd = eventfd(0, EFD_CLOEXEC), answered_fd = eventfd(0, EFD_CLOEXEC);
    double seconds = argc == 2 ? strtod(argv[1], NULL) : 0, begin_us = now_us();
    eventfd_t got;
    int count = 0;

    if (seconds <= 0 || asked_fd < 0 || answered_fd < 0) {
        fprintf(stderr, "usage: bench_wake SECONDS\n");
        return 2;
    }
    if (fork() == 0)
        answer(asked_fd, answered_fd);
    do {
        double asked_us;

        usleep(PAUSE_US);
        asked_us = now_us();
        if (eventfd_write(asked_fd, 1) < 0 || eventfd_read(answered_fd, &got) < 0)
            return 1;
        samples[count++] = now_us() - asked_us;
    } while (count < SAMPLES_MAX && now_us() - begin_us < seconds * 1e6);
    qsort(samples, (size_t)count, sizeof(samples[0]), compare_samples);
    printf("%.3f\n", samples[count / 2]);
    return 0;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * share-latency - how long a message takes over the share: guest to host and
 * back.  The other side (test_share.py) answers each `ask.txt` with an
 * `answer.txt` of the same content.
 *
 *   share-latency DIRECTORY COUNT rename|place
 *
 * Prints one line: microseconds to create, write, fsync and close a file, and
 * from the beginning of that until the answer was read; median and worst.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define COUNT_MAX 10000
#define PATIENCE_US 20000000.0
#define PAUSE_US 1000

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void die(const char *what)
{
    fprintf(stderr, "share-latency: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void write_synced(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || write(fd, text, strlen(text)) < 0 || fsync(fd) < 0 || close(fd) < 0)
        die(path);
}

static int answer_is(const char *text)
{
    char buffer[64] = "";
    int fd = open("answer.txt", O_RDONLY);

    if (fd < 0)
        return 0;
    if (read(fd, buffer, sizeof(buffer) - 1) < 0)
        buffer[0] = '\0';
    close(fd);
    return strcmp(buffer, text) == 0;
}

static int by_size(const void *left, const void *right)
{
    double difference = *(const double *)left - *(const double *)right;

    return difference < 0 ? -1 : difference > 0;
}

int main(int argc, char **argv)
{
    static double written[COUNT_MAX], answered[COUNT_MAX];
    int count = argc == 4 ? atoi(argv[2]) : 0;

    if (count < 1 || count > COUNT_MAX || chdir(argv[1]) < 0) {
        fprintf(stderr, "usage: share-latency DIRECTORY COUNT rename|place\n");
        return 2;
    }
    for (int i = 0; i < count; i++) {
        char text[64];
        double start = now_us();

        snprintf(text, sizeof(text), "message %d\n", i);
        if (strcmp(argv[3], "rename") == 0) {
            write_synced("ask.new", text);
            if (rename("ask.new", "ask.txt") < 0)
                die("rename");
        } else {
            write_synced("ask.txt", text);
        }
        written[i] = now_us() - start;
        while (!answer_is(text)) {
            if (now_us() - start > PATIENCE_US) {
                fprintf(stderr, "share-latency: no answer to message %d\n", i);
                return 1;
            }
            usleep(PAUSE_US);
        }
        answered[i] = now_us() - start;
    }
    qsort(written, (size_t)count, sizeof(double), by_size);
    qsort(answered, (size_t)count, sizeof(double), by_size);
    printf("write_us=%.0f/%.0f round_us=%.0f/%.0f\n", written[count / 2], written[count - 1],
           answered[count / 2], answered[count - 1]);
    return 0;
}

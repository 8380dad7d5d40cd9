/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A message through XenStore: whoever reads takes nothing before `chunks` is there, which
 * is written last.  Dom0 removes question and answer, in this order, so that the worker
 * domain never sees a question without the answer's place a second time.
 */
#include "relay/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EVENTS_AT_ONCE 64

void relay_path(char path[XENBUS_PATH_BYTES], unsigned domain, const char *format, ...)
{
    int used = snprintf(path, XENBUS_PATH_BYTES, "/local/domain/%u/", domain);
    va_list args;

    va_start(args, format);
    vsnprintf(path + used, XENBUS_PATH_BYTES - (size_t)used, format, args);
    va_end(args);
}

static int write_below(struct xenbus *bus, const char *directory, const char *key,
                       const void *value, size_t bytes)
{
    char path[XENBUS_PATH_BYTES];

    snprintf(path, sizeof(path), "%.200s/%s", directory, key);
    return xenbus_write_bytes(bus, path, value, bytes);
}

int message_put(struct xenbus *bus, const char *directory, const char *kind, const void *data,
                size_t bytes)
{
    size_t chunks = (bytes + MESSAGE_CHUNK_BYTES - 1) / MESSAGE_CHUNK_BYTES;
    char key[24];

    for (size_t i = 0; i < chunks; i++) {
        size_t at = i * MESSAGE_CHUNK_BYTES;
        size_t part = bytes - at < MESSAGE_CHUNK_BYTES ? bytes - at : MESSAGE_CHUNK_BYTES;

        snprintf(key, sizeof(key), "%zu", i);
        if (write_below(bus, directory, key, (const char *)data + at, part) < 0)
            return -1;
    }
    if (kind && write_below(bus, directory, MESSAGE_KIND, kind, strlen(kind)) < 0)
        return -1;
    snprintf(key, sizeof(key), "%zu", chunks);
    return write_below(bus, directory, MESSAGE_CHUNKS, key, strlen(key));
}

static int read_chunks(struct xenbus *bus, const char *directory, uint64_t chunks, char *data,
                       size_t *ret_bytes)
{
    char path[XENBUS_PATH_BYTES];
    size_t at = 0;

    for (uint64_t i = 0; i < chunks; i++) {
        int got;

        snprintf(path, sizeof(path), "%.200s/%" PRIu64, directory, i);
        got = xenbus_read_bytes(bus, path, data + at, MESSAGE_CHUNK_BYTES);
        if (got < 0)
            return -1;
        at += (size_t)got;
    }
    data[at] = '\0';
    *ret_bytes = at;
    return 0;
}

int message_get(struct xenbus *bus, const char *directory, size_t bytes_max, char **ret_data,
                size_t *ret_bytes)
{
    char path[XENBUS_PATH_BYTES], word[16], *data;
    uint64_t chunks;

    snprintf(path, sizeof(path), "%.200s/" MESSAGE_CHUNKS, directory);
    if (xenbus_read(bus, path, word, sizeof(word)) < 0)
        return errno == ENOENT ? 0 : -1;
    if (!text_parse_u64(word, 0, bytes_max / MESSAGE_CHUNK_BYTES, &chunks)) {
        errno = EMSGSIZE;
        return -1;
    }
    data = malloc(chunks * MESSAGE_CHUNK_BYTES + 1);
    if (!data)
        return -1;
    if (read_chunks(bus, directory, chunks, data, ret_bytes) < 0) {
        free(data);
        return -1;
    }
    *ret_data = data;
    return 1;
}

/* --- question and answer --------------------------------------------------------------- */

static int choose_id(char id[RELAY_ID_BYTES])
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    uint64_t number = 0;
    ssize_t got = fd < 0 ? -1 : read(fd, &number, sizeof(number));

    fd_close(&fd);
    snprintf(id, RELAY_ID_BYTES, "%016" PRIx64, number);
    return got == (ssize_t)sizeof(number) ? 0 : -1;
}

/* Some at a time, so that a worker domain that never stops writing does not hold us beyond
 * the end.  Events tell nothing but that it is worth a look. */
static int drop_events(struct xenbus *bus)
{
    struct xenbus_event event;
    int got = 1;

    for (int i = 0; i < EVENTS_AT_ONCE && got > 0; i++)
        got = xenbus_next_event(bus, &event);
    return got < 0 ? -1 : 0;
}

/* Its relay takes its word back when it ends; and a domain's area goes with the domain. */
static bool is_gone(struct xenbus *bus, const struct relay_worker *worker)
{
    char path[XENBUS_PATH_BYTES], version[16];

    relay_path(path, worker->domain, WORKER_READY);
    return xenbus_read(bus, path, version, sizeof(version)) < 0 && errno == ENOENT;
}

/* As message_get(); 0 when the time is over, or the domain is gone. */
static int await_answer(struct xenbus *bus, const struct relay_worker *worker,
                        const char *directory, uint64_t end_ns, char **ret_answer)
{
    size_t bytes;

    for (;;) {
        struct pollfd wait = {.fd = bus->fd, .events = POLLIN};
        uint64_t now_ns = clock_monotonic_ns();
        bool ends =
            now_ns >= end_ns || is_gone(bus, worker); /* before its last answer is looked for */
        int got = message_get(bus, directory, MESSAGE_ANSWER_MAX_BYTES, ret_answer, &bytes);

        if (got != 0 || ends)
            return got;
        if (bus->event_count == 0)
            poll(&wait, 1, (int)((end_ns - now_ns) / NS_PER_MS) + 1);
        if (drop_events(bus) < 0)
            return -1;
    }
}

static int judge_answer(struct xenbus *bus, const struct relay_worker *worker, int got,
                        struct vgpu_error *error)
{
    if (got > 0)
        return 0;
    if (got == 0 && is_gone(bus, worker))
        return error_set(error, ETIMEDOUT,
                         "worker domain %s (domain %u) went away before it answered", worker->name,
                         worker->domain);
    if (got == 0)
        return error_set(error, ETIMEDOUT,
                         "worker domain %s (domain %u) did not answer within %d s: is vgpu-relay "
                         "running in it?",
                         worker->name, worker->domain, RELAY_ANSWER_MS / 1000);
    return error_set_errno(error, "the answer of worker domain %s cannot be read from XenStore",
                           worker->name);
}

int message_exchange(struct xenbus *bus, const struct relay_worker *worker,
                     const struct message *message, uint64_t end_ns, char **ret_answer,
                     struct vgpu_error *error)
{
    char id[RELAY_ID_BYTES], question[XENBUS_PATH_BYTES], answer[XENBUS_PATH_BYTES];
    char chunks[XENBUS_PATH_BYTES], ready[XENBUS_PATH_BYTES];
    int result;

    if (choose_id(id) < 0)
        return error_set_errno(error, "/dev/urandom");
    relay_path(question, worker->domain, WORKER_REQUESTS "/%s", id);
    relay_path(answer, worker->domain, WORKER_ANSWERS "/%s", id);
    relay_path(chunks, worker->domain, WORKER_ANSWERS "/%s/" MESSAGE_CHUNKS, id);
    relay_path(ready, worker->domain, WORKER_READY);
    if (xenbus_watch(bus, chunks, "answer") < 0 || xenbus_watch(bus, ready, "ready") < 0 ||
        message_put(bus, question, message->kind, message->data, message->bytes) < 0)
        result = error_set_errno(error, "cannot write %s into XenStore", question);
    else
        result =
            judge_answer(bus, worker, await_answer(bus, worker, answer, end_ns, ret_answer), error);
    xenbus_unwatch(bus, chunks, "answer");
    xenbus_unwatch(bus, ready, "ready");
    xenbus_remove(bus, question);
    xenbus_remove(bus, answer);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XenStore's wire protocol: a header of four numbers and at most 4096 bytes, in both
 * directions.  An answer has its question's number; events of watches come in between,
 * and are kept until they are asked for.
 */
#include "xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_TIMEOUT_MS 10000

enum request_type {
    XENBUS_DIRECTORY = 1,
    XENBUS_READ = 2,
    XENBUS_GET_PERMISSIONS = 3,
    XENBUS_WATCH = 4,
    XENBUS_UNWATCH = 5,
    XENBUS_WRITE = 11,
    XENBUS_MKDIR = 12,
    XENBUS_REMOVE = 13,
    XENBUS_SET_PERMISSIONS = 14,
    XENBUS_EVENT = 15,
    XENBUS_ERROR = 16,
};

static int open_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int xenbus_open(struct xenbus *bus, const char *path)
{
    struct stat info;

    memset(bus, 0, sizeof(*bus));
    bus->fd = -1;
    if (stat(path, &info) < 0)
        return -1;
    bus->fd =
        S_ISSOCK(info.st_mode) ? open_socket(path) : open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    return bus->fd < 0 ? -1 : 0;
}

void xenbus_close(struct xenbus *bus)
{
    if (bus->fd >= 0)
        close(bus->fd);
    bus->fd = -1;
}

/* --- messages ---------------------------------------------------------------------------- */

/* 1: a whole message stands in bus->message; 0: not yet; -1. */
static int receive(struct xenbus *bus)
{
    const size_t header_bytes = sizeof(bus->message.header);

    for (;;) {
        size_t wanted = header_bytes;
        ssize_t got;

        if (bus->received >= header_bytes) {
            if (bus->message.header.bytes > XENBUS_PAYLOAD_MAX) {
                errno = EPROTO;
                return -1;
            }
            wanted += bus->message.header.bytes;
            if (bus->received == wanted)
                break;
        }
        got = read(bus->fd, (char *)&bus->message + bus->received, wanted - bus->received);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno == EAGAIN ? 0 : -1;
        if (got == 0) {
            errno = EPIPE;
            return -1;
        }
        bus->received += (size_t)got;
    }
    bus->received = 0;
    bus->message.payload[bus->message.header.bytes] = '\0';
    return 1;
}

static void copy_text(char *target, size_t bytes, const char *text)
{
    size_t length = strnlen(text, bytes - 1);

    memcpy(target, text, length);
    target[length] = '\0';
}

/* The payload of an event is a path and a token, each with its NUL. */
static void keep_event(struct xenbus *bus)
{
    const char *path = bus->message.payload;
    size_t path_bytes = strlen(path) + 1;
    struct xenbus_event *event;

    if (path_bytes >= bus->message.header.bytes || bus->event_count == XENBUS_EVENTS_MAX) {
        bus->lost_events = true;
        return;
    }
    event = &bus->events[bus->event_count++];
    copy_text(event->path, sizeof(event->path), path);
    copy_text(event->token, sizeof(event->token), path + path_bytes);
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static int errno_of_name(const char *name)
{
    static const struct {
        const char *name;
        int error;
    } table[] = {{"ENOENT", ENOENT}, {"EACCES", EACCES}, {"EPERM", EPERM},   {"EEXIST", EEXIST},
                 {"EINVAL", EINVAL}, {"ENOSPC", ENOSPC}, {"ENOMEM", ENOMEM}, {"EBUSY", EBUSY},
                 {"EAGAIN", EAGAIN}, {"E2BIG", E2BIG},   {"EQUOTA", EDQUOT}, {"EROFS", EROFS}};

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (strcmp(name, table[i].name) == 0)
            return table[i].error;
    }
    return EIO;
}

/* Waits for the answer to the last question; events that come first are kept. */
static int await_answer(struct xenbus *bus)
{
    int64_t end_ms = now_ms() + ANSWER_TIMEOUT_MS;

    for (;;) {
        struct pollfd wait = {.fd = bus->fd, .events = POLLIN};
        int got = receive(bus);
        int64_t left_ms = end_ms - now_ms();

        if (got < 0)
            return -1;
        if (got == 0) {
            if (left_ms <= 0) {
                errno = ETIMEDOUT;
                return -1;
            }
            poll(&wait, 1, (int)left_ms);
        } else if (bus->message.header.type == XENBUS_EVENT) {
            keep_event(bus);
        } else if (bus->message.header.request == bus->request) {
            break;
        }
    }
    if (bus->message.header.type != XENBUS_ERROR)
        return (int)bus->message.header.bytes;
    errno = errno_of_name(bus->message.payload);
    return -1;
}

/* The bytes of the answer, which stands in bus->message.payload. */
static int ask(struct xenbus *bus, enum request_type type, const char *payload, size_t bytes)
{
    struct {
        struct xenbus_header header;
        char payload[XENBUS_PAYLOAD_MAX];
    } question = {.header = {.type = type, .request = ++bus->request, .bytes = (uint32_t)bytes}};
    size_t sent = 0, whole = sizeof(question.header) + bytes;

    if (bytes > XENBUS_PAYLOAD_MAX) {
        errno = E2BIG;
        return -1;
    }
    memcpy(question.payload, payload, bytes);
    while (sent < whole) {
        ssize_t got = write(bus->fd, (char *)&question + sent, whole - sent);
        struct pollfd wait = {.fd = bus->fd, .events = POLLOUT};

        if (got < 0 && errno == EAGAIN && poll(&wait, 1, ANSWER_TIMEOUT_MS) > 0)
            continue;
        if (got < 0 && errno != EINTR)
            return -1;
        sent += got > 0 ? (size_t)got : 0;
    }
    return await_answer(bus);
}

static int ask_of_path(struct xenbus *bus, enum request_type type, const char *path)
{
    return ask(bus, type, path, strlen(path) + 1);
}

/* `first` with its NUL, then `second_bytes` of `second`. */
static int ask_of_two(struct xenbus *bus, enum request_type type, const char *first,
                      const void *second, size_t second_bytes)
{
    char payload[XENBUS_PAYLOAD_MAX];
    size_t first_bytes = strlen(first) + 1;

    if (first_bytes + second_bytes > sizeof(payload)) {
        errno = E2BIG;
        return -1;
    }
    memcpy(payload, first, first_bytes);
    memcpy(payload + first_bytes, second, second_bytes);
    return ask(bus, type, payload, first_bytes + second_bytes);
}

/* --- nodes --------------------------------------------------------------------------------- */

static int fetch(struct xenbus *bus, enum request_type type, const char *path, void *ret,
                 size_t bytes)
{
    int got = ask_of_path(bus, type, path);

    if (got < 0)
        return -1;
    if ((size_t)got > bytes)
        got = (int)bytes;
    memcpy(ret, bus->message.payload, (size_t)got);
    return got;
}

int xenbus_read(struct xenbus *bus, const char *path, char *ret_value, size_t bytes)
{
    int got = fetch(bus, XENBUS_READ, path, ret_value, bytes - 1);

    if (got < 0)
        return -1;
    ret_value[got] = '\0';
    return 0;
}

int xenbus_read_bytes(struct xenbus *bus, const char *path, void *ret_value, size_t bytes)
{
    return fetch(bus, XENBUS_READ, path, ret_value, bytes);
}

int xenbus_list(struct xenbus *bus, const char *path, char *ret_names, size_t bytes)
{
    return fetch(bus, XENBUS_DIRECTORY, path, ret_names, bytes);
}

int xenbus_get_permissions(struct xenbus *bus, const char *path, char *ret_words, size_t bytes)
{
    return fetch(bus, XENBUS_GET_PERMISSIONS, path, ret_words, bytes);
}

/* Nobody else may do anything. */
static int give_rights(struct xenbus *bus, const char *path, unsigned owner, char right,
                       unsigned other)
{
    char words[32];
    size_t first = (size_t)snprintf(words, sizeof(words), "n%u", owner) + 1;
    size_t second =
        (size_t)snprintf(words + first, sizeof(words) - first, "%c%u", right, other) + 1;

    return ask_of_two(bus, XENBUS_SET_PERMISSIONS, path, words, first + second) < 0 ? -1 : 0;
}

int xenbus_set_permissions(struct xenbus *bus, const char *path, unsigned owner, unsigned reader)
{
    return give_rights(bus, path, owner, 'r', reader);
}

int xenbus_share(struct xenbus *bus, const char *path, unsigned owner, unsigned writer)
{
    return give_rights(bus, path, owner, 'b', writer);
}

int xenbus_write_bytes(struct xenbus *bus, const char *path, const void *value, size_t bytes)
{
    return ask_of_two(bus, XENBUS_WRITE, path, value, bytes) < 0 ? -1 : 0;
}

int xenbus_write(struct xenbus *bus, const char *path, const char *value)
{
    return xenbus_write_bytes(bus, path, value, strlen(value));
}

int xenbus_make_directory(struct xenbus *bus, const char *path)
{
    return ask_of_path(bus, XENBUS_MKDIR, path) < 0 ? -1 : 0;
}

int xenbus_remove(struct xenbus *bus, const char *path)
{
    return ask_of_path(bus, XENBUS_REMOVE, path) < 0 ? -1 : 0;
}

int xenbus_make_anew(struct xenbus *bus, const char *path, unsigned owner, unsigned reader)
{
    char names[XENBUS_PAYLOAD_MAX];

    xenbus_remove(bus, path); /* fails where there is none */
    if (xenbus_make_directory(bus, path) < 0 ||
        xenbus_set_permissions(bus, path, owner, reader) < 0)
        return -1;
    if (xenbus_list(bus, path, names, sizeof(names)) == 0)
        return 0;
    xenbus_remove(bus, path);
    errno = EEXIST;
    return -1;
}

/* --- watches ---------------------------------------------------------------------------------- */

int xenbus_watch(struct xenbus *bus, const char *path, const char *token)
{
    return ask_of_two(bus, XENBUS_WATCH, path, token, strlen(token) + 1) < 0 ? -1 : 0;
}

int xenbus_unwatch(struct xenbus *bus, const char *path, const char *token)
{
    return ask_of_two(bus, XENBUS_UNWATCH, path, token, strlen(token) + 1) < 0 ? -1 : 0;
}

int xenbus_next_event(struct xenbus *bus, struct xenbus_event *ret_event)
{
    int got = 1;

    while (bus->event_count == 0 && (got = receive(bus)) > 0) {
        if (bus->message.header.type == XENBUS_EVENT)
            keep_event(bus);
    }
    if (got < 0)
        return -1;
    if (bus->event_count == 0)
        return 0;
    *ret_event = bus->events[0];
    bus->event_count--;
    memmove(&bus->events[0], &bus->events[1], bus->event_count * sizeof(bus->events[0]));
    return 1;
}

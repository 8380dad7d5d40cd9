/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log.  A line is built on the stack or the heap and handed to the kernel
 * by one write(2) on an O_APPEND descriptor: no lock is held while writing, and
 * lines of several threads and processes do not mix.
 */
#include "base/base.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOG_MESSAGE_BYTES 2048
#define LOG_TIME_BYTES sizeof("2026-01-01T00:00:00.000000Z")

/* Written by log_open() and log_close() before and after other threads run,
 * and by log_reopen() under the lock. */
static struct {
    int fd;
    char path[PATH_MAX];
    enum log_format format;
    enum log_level level;
    pthread_rwlock_t lock; /* write: fd changes; read: fd is used */
} log_state = {.fd = STDERR_FILENO, .level = LOG_LEVEL_INFO, .lock = PTHREAD_RWLOCK_INITIALIZER};

static const char *const level_names[] = {"ERROR", "WARNING", "INFO", "DEBUG"};

static int open_file(const char *path, struct vgpu_error *error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0640);

    if (fd < 0)
        return error_set_errno(error, "cannot open log file '%s' for appending", path);
    return fd;
}

/* A process that was killed can leave half a line: what follows begins a new one. */
static void end_torn_line(int fd, const char *path)
{
    int reader = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    off_t end = reader < 0 ? 0 : lseek(reader, 0, SEEK_END);
    ssize_t ignored;
    char last;

    if (end > 0 && pread(reader, &last, 1, end - 1) == 1 && last != '\n') {
        ignored = write(fd, "\n", 1);
        (void)ignored;
    }
    if (reader >= 0)
        close(reader);
}

int log_open(const char *path, enum log_format format, enum log_level level,
             struct vgpu_error *error)
{
    int fd = STDERR_FILENO;

    if (path && strlen(path) >= sizeof(log_state.path))
        return error_set(error, ENAMETOOLONG, "path of log file is too long: '%s'", path);
    if (path) {
        fd = open_file(path, error);
        if (fd < 0)
            return -1;
        end_torn_line(fd, path);
    }
    log_close();
    log_state.fd = fd;
    log_state.format = format;
    log_state.level = level;
    text_copy(log_state.path, sizeof(log_state.path), path ? path : "");
    return 0;
}

int log_reopen(struct vgpu_error *error)
{
    int fd, old;

    if (log_state.path[0] == '\0')
        return 0;
    fd = open_file(log_state.path, error);
    if (fd < 0)
        return -1;
    pthread_rwlock_wrlock(&log_state.lock);
    old = log_state.fd;
    log_state.fd = fd;
    pthread_rwlock_unlock(&log_state.lock);
    close(old);
    return 0;
}

void log_close(void)
{
    if (log_state.fd != STDERR_FILENO)
        close(log_state.fd);
    log_state.fd = STDERR_FILENO;
    log_state.format = LOG_FORMAT_TEXT;
    log_state.path[0] = '\0';
}

static void format_time(char *text, size_t bytes)
{
    uint64_t now_ns = clock_realtime_ns();
    time_t seconds = (time_t)(now_ns / NS_PER_S);
    struct tm parts;
    size_t used;

    gmtime_r(&seconds, &parts);
    used = strftime(text, bytes, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(text + used, bytes - used, ".%06uZ", (unsigned)(now_ns % NS_PER_S / NS_PER_US));
}

static void write_line(const char *line, size_t bytes)
{
    ssize_t ignored;

    pthread_rwlock_rdlock(&log_state.lock);
    /* A log that cannot be written must not stop the work. */
    ignored = write(log_state.fd, line, bytes);
    pthread_rwlock_unlock(&log_state.lock);
    (void)ignored;
}

/* How many bytes at `at` begin a new line or steer a terminal: C0, DEL, and C1 as UTF-8 has
 * them. */
static size_t control_bytes(const char *at)
{
    const unsigned char *bytes = (const unsigned char *)at;

    if (bytes[0] < ' ' || bytes[0] == 0x7f)
        return bytes[0] != '\0';
    return bytes[0] == 0xc2 && bytes[1] >= 0x80 && bytes[1] < 0xa0 ? 2 : 0;
}

/* Whoever's words are in a message, it stays one line.  Words in other alphabets stay. */
static size_t put_escaped(char *target, size_t bytes, const char *text)
{
    size_t used = 0;

    while (*text && used + sizeof("\\x00\\x00") <= bytes) {
        size_t controls = control_bytes(text);

        if (controls == 0)
            target[used++] = *text++;
        for (; controls > 0; controls--)
            used +=
                (size_t)snprintf(target + used, bytes - used, "\\x%02x", (unsigned char)*text++);
    }
    return used;
}

static void write_text(const char *tag, const char *message)
{
    char line[LOG_MESSAGE_BYTES + 64];
    char when[LOG_TIME_BYTES];
    size_t used;

    format_time(when, sizeof(when));
    used = (size_t)snprintf(line, sizeof(line), "%s [%.32s] ", when, tag);
    used += put_escaped(line + used, sizeof(line) - used, message);
    line[used++] = '\n';
    write_line(line, used);
}

static void write_json(const char *kind, const char *tag, const char *message,
                       const struct log_field *fields, size_t field_count)
{
    char when[LOG_TIME_BYTES], lower[32];
    json_t *object = json_object();
    size_t used;
    char *text;

    text_copy(lower, sizeof(lower), tag);
    for (char *at = lower; *at; at++)
        *at = (char)tolower((unsigned char)*at);
    format_time(when, sizeof(when));
    json_object_set_new(object, "time", json_string(when));
    json_object_set_new(object, kind, json_string(lower));
    for (size_t i = 0; i < field_count; i++)
        json_object_set_new(object, fields[i].key,
                            fields[i].text ? json_string(fields[i].text)
                                           : json_integer((json_int_t)fields[i].number));
    json_object_set_new(object, "message", json_string(message));
    text = json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER);
    json_decref(object);
    if (!text)
        return;
    used = strlen(text);
    text[used] = '\n'; /* in place of the NUL: one write, no copy */
    write_line(text, used + 1);
    free(text);
}

void log_message(enum log_level level, const char *format, ...)
{
    char message[LOG_MESSAGE_BYTES];
    va_list args;

    if (level > log_state.level)
        return;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    if (log_state.format == LOG_FORMAT_JSON)
        write_json("level", level_names[level], message, NULL, 0);
    else
        write_text(level_names[level], message);
}

void log_event(const char *tag, const struct log_field *fields, size_t field_count,
               const char *format, ...)
{
    char message[LOG_MESSAGE_BYTES];
    va_list args;

    if (log_state.level < LOG_LEVEL_INFO)
        return;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    if (log_state.format == LOG_FORMAT_JSON)
        write_json("event", tag, message, fields, field_count);
    else
        write_text(tag, message);
}

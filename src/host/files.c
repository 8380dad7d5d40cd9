/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading below the root.  All names are the kernel's or the administrator's; what is
 * not there reads as nothing, because most hosts lack most of it.
 */
#include "host/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MORE "…"

static bool make_path(const struct host *host, char path[PATH_MAX], const char *format,
                      va_list args)
{
    int used = snprintf(path, PATH_MAX, "%s", host->root);
    int more;

    if (used < 0 || used >= PATH_MAX)
        return false;
    more = vsnprintf(path + used, (size_t)(PATH_MAX - used), format, args);
    return more >= 0 && more < PATH_MAX - used;
}

bool host_path(const struct host *host, char path[PATH_MAX], const char *format, ...)
{
    va_list args;
    bool fits;

    va_start(args, format);
    fits = make_path(host, path, format, args);
    va_end(args);
    return fits;
}

bool host_exists(const struct host *host, const char *format, ...)
{
    char path[PATH_MAX];
    va_list args;
    bool fits;

    va_start(args, format);
    fits = make_path(host, path, format, args);
    va_end(args);
    return fits && access(path, F_OK) == 0;
}

bool host_read_line(const struct host *host, char *text, size_t bytes, const char *format, ...)
{
    char path[PATH_MAX];
    va_list args;
    ssize_t got = -1;
    bool fits;
    int fd;

    text[0] = '\0';
    va_start(args, format);
    fits = make_path(host, path, format, args);
    va_end(args);
    fd = fits ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
    if (fd >= 0)
        got = read(fd, text, bytes - 1);
    fd_close(&fd);
    text[got > 0 ? got : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return got >= 0;
}

static char *read_all(int fd)
{
    size_t room = 16384, used = 0;
    char *text = malloc(room);

    while (text && used < HOST_FILE_MAX_BYTES) {
        ssize_t got;

        if (used + 1 >= room) {
            char *grown = realloc(text, room * 2);

            if (!grown)
                break;
            text = grown;
            room *= 2;
        }
        got = read(fd, text + used, room - used - 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    if (text)
        text[used] = '\0';
    return text;
}

char *host_read_file(const struct host *host, const char *format, ...)
{
    char path[PATH_MAX], *text;
    va_list args;
    bool fits;
    int fd;

    va_start(args, format);
    fits = make_path(host, path, format, args);
    va_end(args);
    if (!fits) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return NULL;
    text = read_all(fd);
    fd_close(&fd);
    return text;
}

bool host_link_name(const struct host *host, char *name, size_t bytes, const char *format, ...)
{
    char path[PATH_MAX], target[PATH_MAX];
    const char *slash;
    va_list args;
    ssize_t length;
    bool fits;

    name[0] = '\0';
    va_start(args, format);
    fits = make_path(host, path, format, args);
    va_end(args);
    length = fits ? readlink(path, target, sizeof(target) - 1) : -1;
    if (length < 0)
        return false;
    target[length] = '\0';
    slash = strrchr(target, '/');
    text_copy(name, bytes, slash ? slash + 1 : target);
    return true;
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

struct host_names host_list(const struct host *host, const char *format, ...)
{
    struct host_names result = {0};
    struct dirent **entries;
    char path[PATH_MAX];
    va_list args;
    bool fits;
    int count;

    va_start(args, format);
    fits = make_path(host, path, format, args);
    va_end(args);
    count = fits ? scandir(path, &entries, visible, alphasort) : -1;
    if (count < 0)
        return result;
    result.names = calloc((size_t)count + 1, sizeof(*result.names));
    for (int i = 0; i < count; i++) {
        char *name = result.names ? strdup(entries[i]->d_name) : NULL;

        if (name)
            result.names[result.count++] = name;
        free(entries[i]);
    }
    free(entries);
    return result;
}

void host_names_free(struct host_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->names[i]);
    free(names->names);
    *names = (struct host_names){0};
}

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t written;
    int code;

    if (fd < 0)
        return -1;
    written = write(fd, text, strlen(text));
    code = errno;
    fd_close(&fd);
    errno = code;
    return written < 0 ? -1 : 0;
}

int host_write(const struct host *host, const char *path, const char *text)
{
    if (host->ops && host->ops->write)
        return host->ops->write(host->ops->user, path, text);
    return write_file(path, text);
}

bool host_find_program(const struct host *host, const char *name, char path[PATH_MAX])
{
    static const char *const folders[] = {"/usr/sbin", "/usr/bin", "/sbin", "/bin",
                                          "/usr/local/sbin"};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(folders); i++) {
        if (host_path(host, path, "%s/%s", folders[i], name) && access(path, X_OK) == 0)
            return true;
    }
    return false;
}

void host_add(char *text, size_t bytes, const char *format, ...)
{
    size_t used = strlen(text), before = used;
    va_list args;
    int more;

    if (used >= sizeof(MORE) - 1 && strcmp(text + used - (sizeof(MORE) - 1), MORE) == 0)
        return;
    if (used)
        used += (size_t)snprintf(text + used, bytes - used, ", ");
    if (used >= bytes)
        used = bytes - 1;
    va_start(args, format);
    more = vsnprintf(text + used, bytes - used, format, args);
    va_end(args);
    if (more < 0 || (size_t)more + sizeof(MORE) >= bytes - used) {
        /* Always room for this: an addition that leaves none is not kept. */
        text[before] = '\0';
        if (before + sizeof(MORE) <= bytes)
            memcpy(text + before, MORE, sizeof(MORE));
    }
}

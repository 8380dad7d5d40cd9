/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

void fd_close(int *fd)
{
    int saved = errno;

    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    errno = saved;
}

int fd_pread_all(int fd, void *buffer, size_t bytes, off_t offset)
{
    char *at = buffer;

    while (bytes > 0) {
        ssize_t got = pread(fd, at, bytes, offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0) {
            errno = EIO;
            return -1;
        }
        at += got;
        offset += got;
        bytes -= (size_t)got;
    }
    return 0;
}

int fd_pwrite_all(int fd, const void *buffer, size_t bytes, off_t offset)
{
    const char *at = buffer;

    while (bytes > 0) {
        ssize_t put = pwrite(fd, at, bytes, offset);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -1;
        at += put;
        offset += put;
        bytes -= (size_t)put;
    }
    return 0;
}

int fd_lock(int fd)
{
    static const struct timespec pause = {.tv_nsec = (long)(10 * NS_PER_MS)};

    for (int tries = 0; tries < 100; tries++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return 0;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return -1;
        nanosleep(&pause, NULL);
    }
    errno = EWOULDBLOCK;
    return -1;
}

int fd_make_directories(const char *path, mode_t mode, struct vgpu_error *error)
{
    char part[PATH_MAX];
    size_t length = strlen(path);

    if (length == 0 || length >= sizeof(part))
        return error_set(error, ENAMETOOLONG, "cannot make directory '%s': bad length of path",
                         path);
    memcpy(part, path, length + 1);
    for (char *at = part + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        if (mkdir(part, mode) < 0 && errno != EEXIST)
            return error_set_errno(error, "cannot make directory '%s'", part);
        *at = '/';
    }
    if (mkdir(part, mode) < 0 && errno != EEXIST)
        return error_set_errno(error, "cannot make directory '%s'", part);
    return 0;
}

int fd_sync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    char parent[PATH_MAX];
    int fd, result;

    text_copy(parent, sizeof(parent), slash ? path : ".");
    if (slash && (size_t)(slash - path) < sizeof(parent))
        parent[slash == path ? 1 : slash - path] = '\0';
    fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    result = fsync(fd);
    fd_close(&fd);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client at a time for one directory: the file channel carries one request
 * a VM.  The lock is a local file, because locks on a network mount can hang
 * and because only this guest writes here.
 *
 * The file is removed by its holder, so a lock that was won on a name that is
 * gone is no lock: look again, and try again.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Decided by what all users see, so that root and others meet at one place. */
static const char *lock_place(void)
{
    struct stat info;

    if (stat("/run/lock", &info) == 0 && S_ISDIR(info.st_mode) && info.st_mode & S_IWOTH)
        return "/run/lock";
    return "/tmp";
}

static uint64_t hash_text(const char *text)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */

    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return hash;
}

static int open_lock(const char *path)
{
    const int flags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
    int fd = open(path, O_RDONLY | flags, 0);

    /* Not O_CREAT on a file that exists: kernels forbid that in sticky
     * directories (fs.protected_regular) when another user made it. */
    if (fd < 0 && errno == ENOENT) {
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | flags, 0666);
        if (fd >= 0)
            fchmod(fd, 0644);
    }
    return fd;
}

static bool is_still_named(int fd, const char *path)
{
    struct stat held, named;

    return fstat(fd, &held) == 0 && stat(path, &named) == 0 && held.st_ino == named.st_ino &&
           held.st_dev == named.st_dev;
}

enum lock_result lock_try(const char *directory, struct client_lock *lock)
{
    lock->fd = -1;
    snprintf(lock->path, sizeof(lock->path), "%s/vgpu-client-%016llx.lock", lock_place(),
             (unsigned long long)hash_text(directory));
    for (int attempt = 0; attempt < 20; attempt++) {
        int fd = open_lock(lock->path);

        if (fd < 0 && (errno == EEXIST || errno == ENOENT))
            continue;
        if (fd < 0)
            return LOCK_UNAVAILABLE;
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            bool busy = errno == EWOULDBLOCK;

            close(fd);
            return busy ? LOCK_BUSY : LOCK_UNAVAILABLE;
        }
        if (is_still_named(fd, lock->path)) {
            lock->fd = fd;
            return LOCK_TAKEN;
        }
        close(fd);
    }
    return LOCK_UNAVAILABLE;
}

void lock_release(struct client_lock *lock)
{
    if (lock->fd < 0)
        return;
    unlink(lock->path);
    close(lock->fd);
    lock->fd = -1;
}

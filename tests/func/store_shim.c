/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk that fails once, put under store_probe by LD_PRELOAD.
 *
 *   STORE_SHIM=COUNT:ERRNO:FILE    the COUNT-th call that changes a file or its directory
 *                                  fails with ERRNO, or, a write with 0, writes half and
 *                                  the next one fails with ENOSPC; FILE is made then
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long left = -1;
static int code;
static char mark[256];
static bool half_done;

static void __attribute__((constructor)) parse(void)
{
    const char *text = getenv("STORE_SHIM");

    if (text && sscanf(text, "%ld:%d:%255s", &left, &code, mark) != 3)
        abort();
}

/* True when this call is the one. */
static bool hit(void)
{
    if (half_done) {
        half_done = false;
        errno = ENOSPC;
        return true;
    }
    if (left <= 0 || --left > 0)
        return false;
    close(open(mark, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    errno = code ? code : ENOSPC;
    return true;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    if (!hit())
        return REAL(pwrite64)(fd, data, bytes, offset);
    if (code || bytes < 2 || left < 0)
        return -1;
    half_done = true;
    left = -1;
    return REAL(pwrite64)(fd, data, bytes / 2, offset);
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    return fd > 2 && hit() ? -1 : REAL(write)(fd, data, bytes);
}

int fsync(int fd)
{
    return hit() ? -1 : REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    return hit() ? -1 : REAL(fdatasync)(fd);
}

int ftruncate64(int fd, off64_t bytes)
{
    return hit() ? -1 : REAL(ftruncate64)(fd, bytes);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    return hit() ? -1 : REAL(linkat)(from_fd, from, to_fd, to, flags);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files in the share: one careful read, and what an error means.
 *
 * Every file is opened anew for each look (a network file system promises a
 * fresh view at open, and at nothing else), without blocking and without
 * following a link, and must be a regular file.
 */
#include "client.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef EJUKEBOX
#define EJUKEBOX 528 /* the NFS server says "later"; the kernel's own header has it */
#endif

bool share_is_transient(int error)
{
    switch (error) {
    case ESTALE:
    case EIO:
    case EAGAIN:
    case EINTR:
    case ETIMEDOUT:
    case EREMOTEIO:
    case EJUKEBOX:
    case ECONNREFUSED:
    case ECONNRESET:
    case ENOTCONN:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETUNREACH:
        return true;
    default:
        return false;
    }
}

static void say_remedy(const char *path, int error, struct failure *failure)
{
    switch (error) {
    case EACCES:
    case EPERM:
        failure_remedy(failure,
                       "this process has uid %u, gid %u: run it as the user that owns the "
                       "directory; under NFS the export maps users (anonuid, anongid on the host) "
                       "and that user must own vm<id>/ there",
                       geteuid(), getegid());
        break;
    case EROFS:
        failure_remedy(failure, "the share is mounted read-only: mount -o remount,rw (and export "
                                "it read-write on the host)");
        break;
    case ENOSPC:
    case EDQUOT:
        failure_remedy(failure, "make room on the host, in the file system of the share");
        break;
    case ELOOP:
    case ENXIO:
    case EISDIR:
        failure_remedy(failure,
                       "remove what stands at %.200s (on the host), the mediator makes a "
                       "regular file there",
                       path);
        break;
    default:
        failure_remedy(failure, "run `vgpu-client doctor`, and look at `dmesg` for the share's "
                                "file system");
    }
}

enum share_result share_classify(const char *action, const char *path, int error,
                                 struct failure *failure)
{
    enum failure_code code = FAILURE_SHARE_BROKEN;

    if (share_is_transient(error)) {
        failure_set(failure, FAILURE_SHARE_BROKEN, "cannot %s %.300s: %s", action, path,
                    strerror(error));
        return SHARE_TRANSIENT;
    }
    if (error == EACCES || error == EPERM || error == EROFS || error == ENOSPC || error == EDQUOT)
        code = FAILURE_SHARE_DENIED;
    else if (error == ENOENT || error == ENOTDIR)
        code = FAILURE_SHARE_MISSING;
    failure_set(failure, code, "cannot %s %.300s: %s", action, path,
                error == ELOOP || error == ENXIO ? "expected a regular file, found a link, FIFO, "
                                                   "socket or device"
                                                 : strerror(error));
    say_remedy(path, error, failure);
    return SHARE_FAILED;
}

/* "vm7, vm9, …": what is there instead of the directory that was wanted. */
static unsigned list_entries(const char *path, char *out, size_t bytes)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    unsigned count = 0;

    out[0] = '\0';
    if (!directory)
        return 0;
    while ((entry = readdir(directory))) {
        size_t used = strlen(out);

        if (entry->d_name[0] == '.')
            continue;
        if (++count <= 5)
            text_show(out + used, bytes - used, ", ", used ? 2 : 0);
        used = strlen(out);
        if (count <= 5)
            text_show(out + used, bytes - used, entry->d_name, strlen(entry->d_name));
    }
    closedir(directory);
    return count;
}

int share_missing(const char *directory, struct failure *failure)
{
    char share[PATH_MAX], found[256];
    const char *name = strrchr(directory, '/');
    struct stat info;
    unsigned count;

    snprintf(share, sizeof(share), "%.*s", (int)(name - directory), directory);
    if (name == directory)
        snprintf(share, sizeof(share), "/");
    if (stat(share, &info) < 0) {
        failure_set(failure, FAILURE_SHARE_MISSING,
                    "looked for the VM's directory %.300s: %.300s is not there (%s)", directory,
                    share, strerror(errno));
        return failure_remedy(failure,
                              "mount the share: mkdir -p %.200s && mount -t nfs4 HOST:/EXPORT "
                              "%.200s; or name another place with --share or --dir",
                              share, share);
    }
    count = list_entries(share, found, sizeof(found));
    if (count == 0) {
        failure_set(failure, FAILURE_SHARE_MISSING,
                    "looked for the VM's directory %.300s: %.300s is empty or unreadable, so "
                    "probably nothing is mounted there",
                    directory, share);
        return failure_remedy(failure,
                              "mount the share: mount -t nfs4 HOST:/EXPORT %.200s; or name "
                              "another place with --share or --dir",
                              share);
    }
    failure_set(failure, FAILURE_SHARE_MISSING,
                "looked for the VM's directory %.300s: %.300s has no '%.100s', only %.200s%s",
                directory, share, name + 1, found, count > 5 ? ", …" : "");
    return failure_remedy(failure,
                          "register this VM with the mediator on the host, which makes "
                          "the directory; or check that the VM's id is right (`vgpu-client "
                          "info`)");
}

static enum share_result read_open_file(int fd, const char *path, struct share_text *text,
                                        struct failure *failure)
{
    struct stat info;

    if (fstat(fd, &info) < 0)
        return share_classify("look at", path, errno, failure);
    if (!S_ISREG(info.st_mode))
        return share_classify("read", path, S_ISDIR(info.st_mode) ? EISDIR : ENXIO, failure);
    text->exists = true;
    text->mode = info.st_mode;
    text->gid = info.st_gid;
    text->modified = info.st_mtim;
    while (text->length < sizeof(text->bytes)) {
        ssize_t got = read(fd, text->bytes + text->length, sizeof(text->bytes) - text->length);

        if (got < 0)
            return share_classify("read", path, errno, failure);
        if (got == 0)
            break;
        text->length += (size_t)got;
    }
    return SHARE_DONE;
}

enum share_result share_read(const char *path, struct share_text *ret_text, struct failure *failure)
{
    struct share_text text = {0};
    enum share_result result;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, 0);

    if (fd < 0 && errno != ENOENT)
        return share_classify("open", path, errno, failure);
    if (fd >= 0) {
        result = read_open_file(fd, path, &text, failure);
        close(fd);
        if (result != SHARE_DONE)
            return result;
    }
    *ret_text = text;
    return SHARE_DONE;
}

bool share_is_blank(const struct share_text *text)
{
    for (size_t i = 0; i < text->length; i++) {
        if (!strchr(" \t\r\n", text->bytes[i]) || !text->bytes[i])
            return false;
    }
    return true;
}

/* A network file system may show a file's new length before its new bytes, as
 * zeros: a line with a NUL in it is not whole yet. */
bool share_find_answer(const struct share_text *text, size_t *ret_length)
{
    const char *end = memchr(text->bytes, '\n', text->length);
    size_t length;

    if (!end)
        return false;
    length = (size_t)(end - text->bytes);
    if (length > 0 && text->bytes[length - 1] == '\r')
        length--;
    if (length == 0 || memchr(text->bytes, '\0', length))
        return false;
    if (length >= 2 && text->bytes[0] == VGPU_STATUS_CHAR_READY && text->bytes[1] == ':')
        return false;
    *ret_length = length;
    return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VM's directory.  Its owner is the guest: any name in it may be missing,
 * a link, a pipe, a directory, a file with a second name elsewhere, and may
 * change between two system calls.  Hence:
 *
 * - every open is relative to the directory's descriptor, follows no link and
 *   never blocks (O_NOFOLLOW | O_NONBLOCK);
 * - what was opened is looked at (fstat) before it is read or written;
 * - a file that has a second name is never written or cut: it is replaced.
 *
 * Answers are written in place, not by rename: NFS clients go on reading the
 * file that they know, some for half a minute.
 */
#include "channel/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SAFE_OPEN (O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)

static struct file_identity identity_of(const struct stat *info)
{
    return (struct file_identity){.inode = info->st_ino,
                                  .size_bytes = info->st_size,
                                  .mtime_ns = (int64_t)info->st_mtim.tv_sec * (int64_t)NS_PER_S +
                                              info->st_mtim.tv_nsec};
}

static int apply_owner(int fd, const struct directory_owner *owner, mode_t mode)
{
    struct stat info;

    if (fstat(fd, &info) < 0)
        return -1;
    if ((owner->uid != (uid_t)-1 && owner->uid != info.st_uid) ||
        (owner->gid != (gid_t)-1 && owner->gid != info.st_gid)) {
        if (fchown(fd, owner->uid, owner->gid) < 0)
            return -1;
    }
    if ((info.st_mode & 07777) != mode && fchmod(fd, mode) < 0)
        return -1;
    return 0;
}

int directory_make(int share_fd, const char *name, const struct directory_owner *owner,
                   struct vgpu_error *error)
{
    int fd;

    if (mkdirat(share_fd, name, 0700) < 0 && errno != EEXIST)
        return error_set_errno(error, "cannot make directory '%s' in the share", name);
    fd = openat(share_fd, name, O_RDONLY | O_DIRECTORY | SAFE_OPEN);
    if (fd < 0)
        return error_set_errno(error, "cannot open directory '%s' in the share", name);
    if (apply_owner(fd, owner, owner->mode) < 0) {
        error_set_errno(error, "cannot give directory '%s' owner %ld:%ld and mode %04o", name,
                        (long)(int)owner->uid, (long)(int)owner->gid, (unsigned)owner->mode);
        fd_close(&fd);
        return -1;
    }
    fd_close(&fd);
    return 0;
}

int directory_open(struct directory *directory, int share_fd, const char *name,
                   const struct directory_owner *owner, struct vgpu_error *error)
{
    struct stat info;
    int fd = openat(share_fd, name, O_RDONLY | O_DIRECTORY | SAFE_OPEN);

    if (fd < 0)
        return error_set_errno(error, "cannot open directory '%s' in the share", name);
    if (fstat(fd, &info) < 0) {
        error_set_errno(error, "cannot look at directory '%s' in the share", name);
        fd_close(&fd);
        return -1;
    }
    *directory = (struct directory){.fd = fd, .inode = info.st_ino, .owner = *owner};
    return 0;
}

void directory_close(struct directory *directory)
{
    fd_close(&directory->fd);
}

bool directory_is_below(int fd, int ancestor_fd)
{
    struct stat ancestor, here, parent;
    int at = dup(fd);
    bool below = false;

    if (at < 0 || fstat(ancestor_fd, &ancestor) < 0 || fstat(at, &here) < 0) {
        fd_close(&at);
        return false;
    }
    for (;;) {
        int up = openat(at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);

        fd_close(&at);
        at = up;
        below = here.st_dev == ancestor.st_dev && here.st_ino == ancestor.st_ino;
        if (below || up < 0 || fstat(up, &parent) < 0 ||
            (parent.st_dev == here.st_dev && parent.st_ino == here.st_ino))
            break; /* the root is its own parent */
        here = parent;
    }
    fd_close(&at);
    return below;
}

bool directory_replaced(const struct directory *directory, int share_fd, const char *name)
{
    struct stat info;

    if (fstatat(share_fd, name, &info, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT || errno == ENOTDIR;
    return !S_ISDIR(info.st_mode) || info.st_ino != directory->inode;
}

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a directory";
    case S_IFLNK:
        return "a symbolic link";
    case S_IFIFO:
        return "a named pipe";
    case S_IFSOCK:
        return "a socket";
    default:
        return "a device node";
    }
}

static enum directory_look hostile_type(const char *name, const struct stat *info,
                                        struct file_identity *ret_identity,
                                        struct vgpu_error *error)
{
    *ret_identity = identity_of(info);
    error_set(error, EINVAL, "%s is %s: put a plain file there", name, type_name(info->st_mode));
    return DIRECTORY_HOSTILE;
}

/* ENOENT is a file that is not there; the rest is the share's trouble. */
static enum directory_look look_failed(const char *name, struct vgpu_error *error)
{
    if (errno == ENOENT || errno == ELOOP)
        return DIRECTORY_ABSENT;
    error_set_errno(error, "cannot read '%s'", name);
    return DIRECTORY_FAILED;
}

static enum directory_look read_open_file(int fd, const char *name,
                                          char text[DIRECTORY_READ_MAX_BYTES], size_t *ret_bytes,
                                          struct file_identity *ret_identity,
                                          struct vgpu_error *error)
{
    struct stat info;
    ssize_t bytes;

    if (fstat(fd, &info) < 0)
        return look_failed(name, error);
    if (!S_ISREG(info.st_mode))
        return hostile_type(name, &info, ret_identity, error);
    bytes = pread(fd, text, DIRECTORY_READ_MAX_BYTES, 0);
    if (bytes < 0)
        return look_failed(name, error);
    if (bytes == 0)
        return DIRECTORY_ABSENT;
    *ret_identity = identity_of(&info);
    if (bytes == (ssize_t)DIRECTORY_READ_MAX_BYTES) {
        error_set(error, EFBIG, "%s has %lld bytes: a request has at most %d and a newline", name,
                  (long long)info.st_size, VGPU_REQUEST_MAX_BYTES);
        return DIRECTORY_HOSTILE;
    }
    *ret_bytes = (size_t)bytes;
    return DIRECTORY_DATA;
}

enum directory_look directory_read(const struct directory *directory, const char *name,
                                   bool force_open, char text[DIRECTORY_READ_MAX_BYTES],
                                   size_t *ret_bytes, struct file_identity *ret_identity,
                                   struct vgpu_error *error)
{
    enum directory_look look;
    struct stat info;
    int fd;

    if (fstatat(directory->fd, name, &info, AT_SYMLINK_NOFOLLOW) < 0)
        return look_failed(name, error);
    /* Before opening: to open a device can do things. */
    if (!S_ISREG(info.st_mode))
        return hostile_type(name, &info, ret_identity, error);
    if (info.st_size == 0 && !force_open)
        return DIRECTORY_ABSENT;
    fd = openat(directory->fd, name, O_RDONLY | SAFE_OPEN);
    if (fd < 0)
        return look_failed(name, error);
    look = read_open_file(fd, name, text, ret_bytes, ret_identity, error);
    fd_close(&fd);
    return look;
}

bool directory_identify(const struct directory *directory, const char *name, bool force_open,
                        struct file_identity *ret_identity)
{
    struct stat info;
    int fd = -1, result;

    if (force_open)
        fd = openat(directory->fd, name, O_RDONLY | SAFE_OPEN);
    result = fd >= 0 ? fstat(fd, &info) : fstatat(directory->fd, name, &info, AT_SYMLINK_NOFOLLOW);
    fd_close(&fd);
    if (result < 0)
        return false;
    *ret_identity = identity_of(&info);
    return true;
}

/* A file that we may not write to can still be ours to remove. */
static int take_by_removing(const struct directory *directory, const char *name,
                            const struct file_identity *identity, struct vgpu_error *error)
{
    struct file_identity now;

    if (!directory_identify(directory, name, false, &now) || !file_identity_equal(&now, identity))
        return 0;
    if (unlinkat(directory->fd, name, 0) < 0)
        return error_set_errno(error, "cannot empty or remove '%s'", name);
    return 0;
}

int directory_take(const struct directory *directory, const char *name,
                   const struct file_identity *identity, struct vgpu_error *error)
{
    struct file_identity now;
    struct stat info;
    int fd = openat(directory->fd, name, O_WRONLY | SAFE_OPEN);
    int result = 0;

    if (fd < 0 && errno == EACCES)
        return take_by_removing(directory, name, identity, error);
    if (fd < 0 && (errno == ENOENT || errno == ELOOP || errno == EISDIR || errno == ENXIO))
        return 0; /* something else stands there now: the next look sees it */
    if (fd < 0)
        return error_set_errno(error, "cannot open '%s' to empty it", name);
    if (fstat(fd, &info) < 0) {
        result = error_set_errno(error, "cannot look at '%s'", name);
        fd_close(&fd);
        return result;
    }
    now = identity_of(&info);
    if (S_ISREG(info.st_mode) && file_identity_equal(&now, identity))
        result = info.st_nlink > 1 ? unlinkat(directory->fd, name, 0) : ftruncate(fd, 0);
    if (result < 0)
        error_set_errno(error, "cannot empty '%s'", name);
    fd_close(&fd);
    return result;
}

int directory_remove_hostile(const struct directory *directory, const char *name)
{
    int result = unlinkat(directory->fd, name, 0);

    if (result < 0 && (errno == EISDIR || errno == EPERM))
        result = unlinkat(directory->fd, name, AT_REMOVEDIR);
    return result < 0 && errno == ENOENT ? 0 : result;
}

/* Opens `name` for writing if it is a plain file with one name; -1 with ENOENT
 * when it is missing, EINVAL when something else stands there, or one that is
 * not for us to write to. */
static int open_plain(const struct directory *directory, const char *name)
{
    struct stat info;
    int fd = openat(directory->fd, name, O_WRONLY | SAFE_OPEN);

    if (fd < 0) {
        if (errno == ELOOP || errno == EISDIR || errno == ENXIO || errno == ENODEV ||
            errno == EACCES)
            errno = EINVAL;
        return -1;
    }
    if (fstat(fd, &info) < 0) {
        fd_close(&fd);
        return -1;
    }
    if (!S_ISREG(info.st_mode) || info.st_nlink > 1) {
        fd_close(&fd);
        errno = EINVAL;
        return -1;
    }
    return fd;
}

void directory_give(const struct directory *directory, const char *name)
{
    int fd = open_plain(directory, name);

    if (fd >= 0 && apply_owner(fd, &directory->owner, directory->owner.mode & 0666) < 0)
        log_warning("cannot give '%s' to owner %ld:%ld: %s", name, (long)(int)directory->owner.uid,
                    (long)(int)directory->owner.gid, strerror(errno));
    fd_close(&fd);
}

static int create_plain(const struct directory *directory, const char *name)
{
    int fd = openat(directory->fd, name, O_WRONLY | O_CREAT | O_EXCL | SAFE_OPEN, 0600);

    if (fd >= 0 && apply_owner(fd, &directory->owner, directory->owner.mode & 0666) < 0)
        fd_close(&fd);
    return fd;
}

static int open_for_writing(const struct directory *directory, const char *name)
{
    int fd = open_plain(directory, name);

    if (fd < 0 && errno == EINVAL) {
        if (directory_remove_hostile(directory, name) < 0)
            return -1;
        errno = ENOENT;
    }
    if (fd < 0 && errno == ENOENT)
        fd = create_plain(directory, name);
    return fd;
}

/*
 * The text first and the cut second: in between a reader sees the new first line
 * and perhaps the rest of an older, longer one behind it.  A client that has read
 * it by then may have written something shorter, which must not be made longer.
 */
static int replace_contents(int fd, const char *text, struct stat *info)
{
    off_t bytes = (off_t)strlen(text);

    if (fd_pwrite_all(fd, text, (size_t)bytes, 0) < 0 || fstat(fd, info) < 0)
        return -1;
    if (info->st_size <= bytes)
        return 0;
    return ftruncate(fd, bytes) < 0 ? -1 : fstat(fd, info);
}

int directory_write(const struct directory *directory, const char *name, const char *text,
                    struct file_identity *ret_identity, struct vgpu_error *error)
{
    struct stat info;
    int fd = open_for_writing(directory, name);

    if (fd < 0)
        return error_set_errno(error, "cannot open '%s' for writing", name);
    if (replace_contents(fd, text, &info) < 0) {
        error_set_errno(error, "cannot write '%s'", name);
        fd_close(&fd);
        return -1;
    }
    /* On NFS an error of the write may come only now. */
    if (close(fd) < 0)
        return error_set_errno(error, "cannot write '%s'", name);
    *ret_identity = identity_of(&info);
    return 0;
}

int directory_furnish(const struct directory *directory, const char *name, const char *contents,
                      struct vgpu_error *error)
{
    int result, fd = create_plain(directory, name);

    if (fd < 0 && errno == EEXIST)
        return 0;
    result = fd < 0 ? -1 : fd_pwrite_all(fd, contents, strlen(contents), 0);
    if (result < 0)
        error_set_errno(error, "cannot make '%s'", name);
    fd_close(&fd);
    return result;
}

int directory_empty(const struct directory *directory, const char *name, struct vgpu_error *error)
{
    int fd = open_plain(directory, name);
    int result = 0;

    if (fd < 0 && (errno == ENOENT || errno == EINVAL))
        return 0;
    if (fd < 0)
        return error_set_errno(error, "cannot open '%s' to empty it", name);
    if (ftruncate(fd, 0) < 0)
        result = error_set_errno(error, "cannot empty '%s'", name);
    fd_close(&fd);
    return result;
}

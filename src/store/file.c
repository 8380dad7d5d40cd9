/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new file that is there whole or not at all: written without a name, synced, then
 * given its name, which fails when the name is taken.  Where a file system cannot have
 * files without names, it is a temporary name next to it.
 */
#include "store/private.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MODE 0640

struct new_file {
    char directory[PATH_MAX];
    char temporary[PATH_MAX]; /* "": it has no name yet */
    int fd;
};

static int set_directory(struct new_file *file, const char *path, struct vgpu_error *error)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;

    if (length >= sizeof(file->directory))
        return error_set(error, ENAMETOOLONG, "a path of %zu characters is too long", length);
    if (!slash)
        text_copy(file->directory, sizeof(file->directory), ".");
    else
        text_copy(file->directory, slash == path ? 2 : length + 1, path);
    return 0;
}

/* Next to where it will be, so that to rename it moves no data. */
static int open_temporary(struct new_file *file)
{
    int length =
        snprintf(file->temporary, sizeof(file->temporary), "%s/.vgpu-new-XXXXXX", file->directory);
    int fd;

    if (length < 0 || (size_t)length >= sizeof(file->temporary)) {
        file->temporary[0] = '\0';
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = mkostemp(file->temporary, O_CLOEXEC);
    if (fd < 0)
        file->temporary[0] = '\0';
    return fd;
}

static int open_new(struct new_file *file, struct vgpu_error *error)
{
    file->fd = open(file->directory, O_TMPFILE | O_RDWR | O_CLOEXEC, FILE_MODE);
    if (file->fd >= 0)
        return 0;
    if (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)
        file->fd = open_temporary(file);
    if (file->fd < 0)
        return error_set_errno(error, "cannot make a file in %s", file->directory);
    return 0;
}

/* The group that administrators may have given the directory can read its files. */
static void set_access(struct new_file *file)
{
    struct stat info;

    if (stat(file->directory, &info) == 0 && fchown(file->fd, (uid_t)-1, info.st_gid) < 0) {
        /* Not root, and not of that group: the file stays with ours. */
    }
    fchmod(file->fd, FILE_MODE);
}

static int give_name(struct new_file *file, const char *path)
{
    char link_path[64];

    if (file->temporary[0])
        return renameat2(AT_FDCWD, file->temporary, AT_FDCWD, path, RENAME_NOREPLACE);
    snprintf(link_path, sizeof(link_path), "/proc/self/fd/%d", file->fd);
    return linkat(AT_FDCWD, link_path, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}

static int write_new(struct new_file *file, const char *path, const void *data, size_t bytes,
                     struct vgpu_error *error)
{
    int directory_fd, result;

    if (open_new(file, error) < 0)
        return -1;
    set_access(file);
    if (fd_pwrite_all(file->fd, data, bytes, 0) < 0 || fsync(file->fd) < 0)
        return error_set_errno(error, "%s: cannot write it; nothing was made", path);
    if (give_name(file, path) < 0) {
        if (errno == EEXIST)
            return error_set(error, EEXIST, "%s: a file of this name is there; it stays as it is",
                             path);
        return error_set_errno(error, "%s: cannot make it", path);
    }
    directory_fd = open(file->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    result = directory_fd >= 0 && fsync(directory_fd) < 0 ? -1 : 0;
    if (result < 0) {
        error_fill_errno(error, "%s: cannot sync its directory", path);
        unlink(path);
    }
    fd_close(&directory_fd);
    return result;
}

int file_publish(const char *path, const void *data, size_t bytes, struct vgpu_error *error)
{
    struct new_file file = {.fd = -1};
    int result;

    if (set_directory(&file, path, error) < 0)
        return -1;
    result = write_new(&file, path, data, bytes, error);
    if (result < 0 && file.temporary[0])
        unlink(file.temporary);
    fd_close(&file.fd);
    return result;
}

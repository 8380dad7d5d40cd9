/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's socket in the file system.
 *
 *   bind vm7.sock.new ─▶ owner ─▶ mode ─▶ listen ─▶ rename to vm7.sock
 *
 * Nobody can connect before the rename has put the name in place, or finds an older
 * one there; the directory is the mediator's alone.
 */
#include "channel/window_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 16
#define NAME_BYTES 32

static void socket_name(uint32_t vm_id, const char *suffix, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "vm%u.sock%s", vm_id, suffix);
}

/* A path that is too long for a socket's address goes by the directory's descriptor. */
static void fill_address(const struct window_channel *channel, const char *name,
                         struct sockaddr_un *address)
{
    int length;

    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    length =
        snprintf(address->sun_path, sizeof(address->sun_path), "%s/%s", channel->run_dir, name);
    if (length >= (int)sizeof(address->sun_path))
        snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s",
                 channel->run_dir_fd, name);
}

static int give_to_owner(struct window_socket *at, const char *name, struct vgpu_error *error)
{
    int directory = at->channel->run_dir_fd;
    bool owned = at->owner_uid != (uid_t)-1 || at->owner_gid != (gid_t)-1;
    struct stat status;

    /* Owner first: with the mode first, the mediator's own group would be let in. */
    if (owned && fchownat(directory, name, at->owner_uid, at->owner_gid, AT_SYMLINK_NOFOLLOW) < 0)
        return error_set_errno(error, "cannot give socket '%s/%s' to owner %ld:%ld",
                               at->channel->run_dir, name, (long)(int)at->owner_uid,
                               (long)(int)at->owner_gid);
    if (fchmodat(directory, name, at->mode, 0) < 0 ||
        fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return error_set_errno(error, "cannot set the mode of socket '%s/%s'", at->channel->run_dir,
                               name);
    at->device = status.st_dev;
    at->inode = status.st_ino;
    return 0;
}

static int put_in_place(struct window_socket *at, struct vgpu_error *error)
{
    struct window_channel *channel = at->channel;
    char made[NAME_BYTES], name[NAME_BYTES];
    struct sockaddr_un address;

    socket_name(at->vm_id, ".new", made);
    socket_name(at->vm_id, "", name);
    fill_address(channel, made, &address);
    if (unlinkat(channel->run_dir_fd, made, 0) < 0 && errno != ENOENT)
        return error_set_errno(error, "cannot remove '%s/%s'", channel->run_dir, made);
    if (bind(at->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return error_set_errno(error, "cannot make socket '%s/%s'", channel->run_dir, made);
    if (give_to_owner(at, made, error) < 0)
        return -1;
    if (listen(at->fd, BACKLOG) < 0 ||
        renameat(channel->run_dir_fd, made, channel->run_dir_fd, name) < 0)
        return error_set_errno(error, "cannot put socket '%s/%s' in place", channel->run_dir, name);
    return 0;
}

int window_socket_listen(struct window_socket *at, struct vgpu_error *error)
{
    char made[NAME_BYTES];

    at->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (at->fd < 0)
        return error_set_errno(error, "cannot make a socket for VM %u", at->vm_id);
    if (put_in_place(at, error) < 0) {
        socket_name(at->vm_id, ".new", made);
        unlinkat(at->channel->run_dir_fd, made, 0);
        fd_close(&at->fd);
        return -1;
    }
    return 0;
}

int window_socket_give(struct window_socket *at, struct vgpu_error *error)
{
    char name[NAME_BYTES];

    socket_name(at->vm_id, "", name);
    /* Nobody is let in by the old owner's mode and the new owner's name. */
    if (fchmodat(at->channel->run_dir_fd, name, 0, 0) < 0)
        return error_set_errno(error, "cannot set the mode of socket '%s/%s'", at->channel->run_dir,
                               name);
    return give_to_owner(at, name, error);
}

void window_socket_close(struct window_socket *at)
{
    int directory = at->channel->run_dir_fd;
    char name[NAME_BYTES];
    struct stat status;

    if (at->fd < 0)
        return;
    socket_name(at->vm_id, "", name);
    if (fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        status.st_dev == at->device && status.st_ino == at->inode)
        unlinkat(directory, name, 0);
    fd_close(&at->fd);
}

/* --- what an earlier mediator left ---------------------------------------------------- */

static bool is_registered(const struct window_channel *channel, const char *name)
{
    const struct window_socket *at;
    char known[NAME_BYTES];

    LIST_FOREACH (at, &channel->sockets, in_channel) {
        socket_name(at->vm_id, "", known);
        if (strcmp(name, known) == 0)
            return true;
    }
    return false;
}

static bool is_ours(const char *name)
{
    unsigned vm_id;
    int end = 0;

    /* NOLINTNEXTLINE(cert-err34-c): the number does not matter */
    if (sscanf(name, "vm%u.sock%n", &vm_id, &end) != 1 || end == 0)
        return false;
    return name[end] == '\0' || strcmp(name + end, ".new") == 0;
}

void window_sockets_sweep(struct window_channel *channel)
{
    int fd = openat(channel->run_dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;
    struct stat status;

    if (!directory) {
        fd_close(&fd);
        return;
    }
    while ((entry = readdir(directory))) {
        if (is_ours(entry->d_name) && !is_registered(channel, entry->d_name) &&
            fstatat(channel->run_dir_fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISSOCK(status.st_mode))
            unlinkat(channel->run_dir_fd, entry->d_name, 0);
    }
    closedir(directory);
}

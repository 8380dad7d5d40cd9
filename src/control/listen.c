/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's socket and who may use it: root, the server's own user and members of a
 * group.  The socket's mode says the same; that can be changed by accident, so each peer's
 * credentials are looked at.
 */
#include "control/control.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BACKLOG 16
#define GROUPS_MAX 4096

/* --- who may connect ------------------------------------------------------------------- */

static bool is_in_group(int fd, gid_t primary, gid_t group)
{
    gid_t groups[GROUPS_MAX];
    socklen_t bytes = sizeof(groups);

    if (group == (gid_t)-1)
        return false;
    if (primary == group)
        return true;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &bytes) < 0)
        return false;
    for (size_t i = 0; i < bytes / sizeof(groups[0]); i++) {
        if (groups[i] == group)
            return true;
    }
    return false;
}

bool control_is_allowed(const struct control_listener *listener, int fd, struct ucred *ret_peer)
{
    socklen_t bytes = sizeof(*ret_peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ret_peer, &bytes) < 0)
        return false;
    return ret_peer->uid == 0 || ret_peer->uid == geteuid() ||
           is_in_group(fd, ret_peer->gid, listener->group);
}

/* --- the socket --------------------------------------------------------------------------- */

/* Owner and mode are right before the name is: nobody connects in between. */
static int put_in_place(struct control_listener *listener, const char *made,
                        struct vgpu_error *error)
{
    struct stat status;

    if (listener->group != (gid_t)-1 && geteuid() == 0 &&
        chown(made, (uid_t)-1, listener->group) < 0)
        return error_set_errno(error, "cannot give socket '%s' to group %u", made,
                               (unsigned)listener->group);
    if (chmod(made, listener->group != (gid_t)-1 ? 0660 : 0600) < 0 || stat(made, &status) < 0)
        return error_set_errno(error, "cannot set the mode of socket '%s'", made);
    listener->device = status.st_dev;
    listener->inode = status.st_ino;
    if (listen(listener->fd, BACKLOG) < 0 || rename(made, listener->path) < 0)
        return error_set_errno(error, "cannot put socket '%s' in place", listener->path);
    return 0;
}

static int make_socket(struct control_listener *listener, struct vgpu_error *error)
{
    char made[PATH_MAX + 24];
    struct sockaddr_un address;
    int directory_fd, result;

    snprintf(made, sizeof(made), "%s.new", listener->path);
    if (unlink(made) < 0 && errno != ENOENT)
        return error_set_errno(error, "cannot remove '%s'", made);
    listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener->fd < 0)
        return error_set_errno(error, "cannot make the control socket");
    if (control_address(made, &address, &directory_fd, error) < 0)
        return -1;
    result = bind(listener->fd, (struct sockaddr *)&address, sizeof(address));
    fd_close(&directory_fd);
    if (result < 0)
        return error_set_errno(error, "cannot make socket '%s'", made);
    if (put_in_place(listener, made, error) < 0) {
        unlink(made);
        return -1;
    }
    return 0;
}

int control_listen(struct control_listener *listener, const char *directory, const char *group,
                   struct vgpu_error *error)
{
    *listener = (struct control_listener){.fd = -1, .group = (gid_t)-1};
    account_parse_group(group, &listener->group); /* or it stays root's alone */
    snprintf(listener->path, sizeof(listener->path), "%s/%s", directory, CONTROL_SOCKET_NAME);
    if (fd_make_directories(directory, 0755, error) == 0 && make_socket(listener, error) == 0)
        return 0;
    fd_close(&listener->fd);
    return -1;
}

void control_listen_end(struct control_listener *listener)
{
    struct stat status;

    if (listener->fd >= 0 && stat(listener->path, &status) == 0 &&
        status.st_dev == listener->device && status.st_ino == listener->inode)
        unlink(listener->path);
    fd_close(&listener->fd);
}

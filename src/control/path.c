/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A socket's address holds 107 bytes of path.  A longer one goes by a descriptor of
 * its directory: both sides of the control socket live in directories that an
 * administrator names.
 */
#include "control/control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int open_parent(const char *path, struct vgpu_error *error)
{
    const char *slash = strrchr(path, '/');
    size_t bytes = slash ? (size_t)(slash - path) : 0;
    char parent[4096];
    int fd;

    if (bytes >= sizeof(parent))
        return error_set(error, ENAMETOOLONG, "'%.64s...' is too long for a socket's path", path);
    memcpy(parent, path, bytes);
    parent[bytes] = '\0';
    fd = open(bytes > 0 ? parent : slash ? "/" : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, "cannot open directory '%s'", parent);
    return fd;
}

int control_address(const char *path, struct sockaddr_un *ret_address, int *ret_directory_fd,
                    struct vgpu_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *slash = strrchr(path, '/');
    int fd = -1, length;

    if (strlen(path) < sizeof(address.sun_path)) {
        text_copy(address.sun_path, sizeof(address.sun_path), path);
    } else {
        fd = open_parent(path, error);
        if (fd < 0)
            return -1;
        length = snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", fd,
                          slash ? slash + 1 : path);
        if (length < 0 || (size_t)length >= sizeof(address.sun_path)) {
            fd_close(&fd);
            return error_set(error, ENAMETOOLONG, "'%.64s...' is too long for a socket's path",
                             path);
        }
    }
    *ret_address = address;
    *ret_directory_fd = fd;
    return 0;
}

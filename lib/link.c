/* SPDX-License-Identifier: Apache-2.0 */
/* The link protocol (include/vgpu/link.h) as its owner speaks it: messages of one
 * size over a socket that never blocks. */
#include "link.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct vgpu_link_message link_message(uint16_t type)
{
    return (struct vgpu_link_message){
        .magic = VGPU_LINK_MAGIC, .version = VGPU_LINK_VERSION, .type = type};
}

void link_hang_up(struct link *link)
{
    if (link->fd >= 0)
        close(link->fd); /* leaves the epoll set by that */
    link->fd = -1;
    link->inbox_bytes = 0;
    link->is_welcome = false;
}

int link_send(struct link *link, struct vgpu_link_message *message, const int *fds,
              uint32_t fd_count)
{
    char control[CMSG_SPACE(VGPU_LINK_FDS_MAX * sizeof(int))] = {0};
    struct iovec part = {.iov_base = message, .iov_len = sizeof(*message)};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

    message->fd_count = fd_count;
    if (fd_count > 0) {
        struct cmsghdr *rights;

        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
    }
    /* A few small messages always fit; if not, the mediator hangs. */
    return sendmsg(link->fd, &header, MSG_NOSIGNAL) == (ssize_t)sizeof(*message) ? 0 : -1;
}

static int say_hello(struct link *link)
{
    struct vgpu_link_message hello = link_message(VGPU_LINK_HELLO);
    struct vgpu_link_message doorbells = link_message(VGPU_LINK_DOORBELLS);
    const int fds[VGPU_LINK_HELLO_FDS] = {
        [VGPU_LINK_FD_WINDOW] = link->window_fd,
        [VGPU_LINK_FD_INTERRUPT] = link->interrupt_fd,
        [VGPU_LINK_FD_LIFELINE] = link->lifeline[0],
    };

    hello.hello.owner = VGPU_LINK_OWNER_LOCAL;
    hello.hello.window_bytes = link->window_bytes;
    hello.hello.slot_count = 1;
    hello.hello.open_slots = link->is_open ? 1 : 0;
    hello.hello.min_version = VGPU_LINK_VERSION;
    if (link_send(link, &hello, fds, VGPU_LINK_HELLO_FDS) < 0)
        return -1;
    return link_send(link, &doorbells, &link->doorbell_fd, 1);
}

static int connect_failed(struct link *link, int error, struct vgpu_problem *problem)
{
    const char *advice = "is vgpu-mediator running, and does its configuration name this machine?";
    int status = VGPU_PROBLEM_NO_HOST;

    link_hang_up(link);
    if (error == EACCES || error == EPERM) {
        status = VGPU_PROBLEM_DENIED;
        advice = "the machine's owner and mode in the mediator's configuration say who may";
    }
    return problem_set(problem, status, "cannot connect to the mediator at %s: %s; %s", link->path,
                       strerror(error), advice);
}

int link_connect(struct link *link, struct vgpu_problem *problem)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct epoll_event event = {.events = EPOLLIN};

    if (strlen(link->path) >= sizeof(address.sun_path))
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "the path of the socket has more than %zu bytes: %s",
                           sizeof(address.sun_path) - 1, link->path);
    memcpy(address.sun_path, link->path, strlen(link->path) + 1);
    link->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (link->fd < 0)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM, "cannot make a socket: %s",
                           strerror(errno));
    if (connect(link->fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        epoll_ctl(link->epoll_fd, EPOLL_CTL_ADD, link->fd, &event) < 0 || say_hello(link) < 0)
        return connect_failed(link, errno, problem);
    return 0;
}

int link_receive(struct link *link, struct vgpu_link_message *ret_message)
{
    uint8_t *at = (uint8_t *)&link->inbox + link->inbox_bytes;
    ssize_t got;

    do {
        got = recv(link->fd, at, sizeof(link->inbox) - link->inbox_bytes, 0);
    } while (got < 0 && errno == EINTR);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (got <= 0)
        return -1;
    link->inbox_bytes += (size_t)got;
    if (link->inbox_bytes < sizeof(link->inbox))
        return 0;
    link->inbox_bytes = 0;
    if (link->inbox.magic != VGPU_LINK_MAGIC)
        return -1;
    *ret_message = link->inbox;
    return 1;
}

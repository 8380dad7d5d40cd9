/* SPDX-License-Identifier: Apache-2.0 */
/* The link of one local session to its mediator: see link.c. */
#ifndef VGPU_LIB_LINK_H
#define VGPU_LIB_LINK_H

#include "private.h"

struct link {
    char path[256];
    int fd;       /* the socket; -1 while there is no mediator */
    int epoll_fd; /* interrupt, socket, timer: what an event loop watches */
    int timer_fd; /* the next attempt, while there is no mediator */
    int window_fd, interrupt_fd, doorbell_fd;
    int lifeline[2]; /* the host gets [0]; that [1] closes tells that we are gone */
    uint64_t window_bytes;
    uint32_t state; /* of slot 0, as the mediator said last */
    bool is_open;   /* slot 0 has been READY */
    bool is_welcome;
    int64_t retry_ns, pause_ns;
    struct vgpu_link_message inbox;
    size_t inbox_bytes;
    struct vgpu_problem refusal;
};

/* Connects, says HELLO and DOORBELLS.  -1: not there; *problem says why. */
int link_connect(struct link *link, struct vgpu_problem *problem);
int link_send(struct link *link, struct vgpu_link_message *message, const int *fds,
              uint32_t fd_count);
void link_hang_up(struct link *link);

/* Reads one message if a whole one is there: 1, 0 none, -1 the link is gone. */
int link_receive(struct link *link, struct vgpu_link_message *ret_message);

struct vgpu_link_message link_message(uint16_t type);

#endif

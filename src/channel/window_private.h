/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside channel/: the parts of the window channel.
 *
 *   window.c          the channel: a socket a VM, who may connect
 *   window_socket.c   one VM's socket in the file system
 *   window_link.c     one link: what it says in which order, how it ends
 *   window_receive.c  bytes and descriptors of one message
 *   window_check.c    what came with HELLO and DOORBELLS is what it has to be
 */
#ifndef VGPU_CHANNEL_WINDOW_PRIVATE_H
#define VGPU_CHANNEL_WINDOW_PRIVATE_H

#include "channel/channel.h"
#include "vgpu/link.h"

#include <sys/queue.h>
#include <sys/stat.h>

/* --- window_receive.c ---------------------------------------------------------- */

/* The message that is coming in, and the descriptors that came with it.  All zero
 * is empty. */
#define WINDOW_NAME_BYTES 64

struct window_inbox {
    struct vgpu_link_message message;
    size_t bytes;               /* of it, that are here */
    int fds[VGPU_LINK_FDS_MAX]; /* -1: of a kind that is kept nowhere, closed already */
    char names[VGPU_LINK_FDS_MAX][WINDOW_NAME_BYTES]; /* what the kernel calls them */
    uint32_t fd_count;
    struct window_closer *closer; /* of what nobody takes; NULL: closed at once */
};

/* Takes all that still lies in the socket, so that its descriptors are closed
 * with care and not by the kernel, here. */
void window_drain(struct window_inbox *inbox, int fd);

/*
 * Takes what the socket has for this message, at most one system call.  Returns 1
 * when the message is whole, 0 when more has to come, -1 with *error when the
 * peer has hung up (code 0) or sent what is no message.  Never blocks.
 */
int window_receive(struct window_inbox *inbox, int fd, struct vgpu_error *error);

/* Ready for the next message; descriptors that nobody took are closed. */
void window_inbox_clear(struct window_inbox *inbox);

/* --- window_close.c ------------------------------------------------------------- */

/* What a VM's peers gave and nobody took.  Ends with the last close. */
struct window_closer *window_closer_new(void); /* NULL: no memory */
void window_closer_release(struct window_closer *closer);

/* `anon_inode:[eventfd]`, `pipe:[123]`, or a path, escaped. */
void window_name_of(int fd, char name[WINDOW_NAME_BYTES]);

/* An eventfd, a pipe or a memfd: nobody can make its close wait. */
bool window_is_harmless(int fd);

/* Closes it without waiting for whoever is behind it; *fd is -1 then, and no child
 * that is started now has it. */
void window_close_foreign(struct window_closer *closer, int *fd);

/* Closes that have not ended. */
unsigned window_closer_pending(const struct window_closer *closer);

/* --- window_check.c ------------------------------------------------------------- */

/* All descriptors -1. */
void window_info_init(struct window_link_info *info, uint32_t vm_id);
void window_info_close(struct window_link_info *info);

/* HELLO: fills *info and takes its three descriptors out of the inbox. */
int window_check_hello(struct window_inbox *inbox, struct window_link_info *info,
                       struct vgpu_error *error);

/* DOORBELLS: takes its descriptors into *info. */
int window_check_doorbells(struct window_inbox *inbox, struct window_link_info *info,
                           struct vgpu_error *error);

bool window_has_all_doorbells(const struct window_link_info *info);

/* --- how often: a bound a second ------------------------------------------------- */

struct window_rate {
    uint64_t began_ns;
    uint32_t used;
};

/* Takes one of `limit` a second; false when this second has none left. */
static inline bool window_rate_take(struct window_rate *rate, uint32_t limit, uint64_t now_ns)
{
    if (now_ns - rate->began_ns >= NS_PER_S)
        *rate = (struct window_rate){.began_ns = now_ns};
    if (rate->used >= limit)
        return false;
    rate->used++;
    return true;
}

/* --- window.c, window_socket.c ------------------------------------------------------ */

/* One VM's socket. */
struct window_socket {
    struct window_channel *channel;
    uint32_t vm_id;
    uid_t owner_uid; /* (uid_t)-1: leave */
    gid_t owner_gid;
    mode_t mode; /* of the socket */
    int fd;      /* -1: not there */
    dev_t device;
    ino_t inode; /* of the name, so that only our own is removed */
    uv_poll_t poll;
    uv_timer_t pause; /* too many came: nobody is let in for a moment */
    LIST_HEAD(, window_link) links;
    uint32_t link_count;
    struct window_rate accepted, reported;
    uint32_t unreported; /* refusals that were too many to tell */
    uint32_t links_max;
    struct window_closer *closer;
    uint32_t handles; /* of libuv, its own and its links', that are not closed yet */
    bool removed;     /* goes with the last of them */
    LIST_ENTRY(window_socket) in_channel;
};

struct window_channel {
    char *run_dir;
    int run_dir_fd;
    uint32_t hello_timeout_ms, links_max;
    uv_loop_t *loop;
    struct window_channel_events events;
    LIST_HEAD(, window_socket) sockets;
    uint32_t handles; /* of libuv, that are not closed yet, of all sockets */
    bool freed;
};

/* Makes socket->fd: listening, with its name in the directory, owner and mode set
 * before anybody can connect.  An older one of the name is replaced. */
int window_socket_listen(struct window_socket *at, struct vgpu_error *error);

/* Gives the socket that is there to another owner, with another mode. */
int window_socket_give(struct window_socket *at, struct vgpu_error *error);

/* Removes the name, if it still is this socket's, and closes it. */
void window_socket_close(struct window_socket *at);

/* Removes sockets of VMs that are not registered any more. */
void window_sockets_sweep(struct window_channel *channel);

/* A handle has begun, or was closed: then the socket may be gone. */
void window_socket_hold(struct window_socket *at);
void window_socket_release(struct window_socket *at);

/* A peer was refused: tells the mediator, but not more than a few a second. */
void window_report_refusal(struct window_socket *at, const char *reason);

/* --- window_link.c --------------------------------------------------------------------- */

/* Takes over `fd`, a connection that was accepted.  Closes it on failure. */
int window_link_new(struct window_socket *at, int fd, struct vgpu_error *error);

/* Ends it without a word to the mediator. */
void window_link_drop(struct window_link *link);

/* Says REFUSED, as well as it goes without waiting. */
void window_send_refused(int fd, int code, const char *text);

#endif /* VGPU_CHANNEL_WINDOW_PRIVATE_H */

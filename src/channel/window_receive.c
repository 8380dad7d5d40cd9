/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One message of a link: 256 bytes on a stream, and descriptors that come with its
 * first byte.  A read never asks for more than what this message lacks, so the
 * descriptors that come with it are this message's.
 *
 * A peer can send more descriptors than a message may have: all are taken, and
 * closed; see window_close.c.
 */
#include "channel/window_private.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* As many as one sendmsg(2) can pass: what has no room here the kernel would close. */
#define FDS_MAX 253
#define DRAIN_MAX 1024 /* reads; a socket's buffer holds fewer messages */

void window_inbox_clear(struct window_inbox *inbox)
{
    for (uint32_t i = 0; i < inbox->fd_count; i++)
        window_close_foreign(inbox->closer, &inbox->fds[i]);
    inbox->fd_count = 0;
    inbox->bytes = 0;
}

/* What is of no kind that we use is not kept for a moment: see window_close.c. */
static void keep(struct window_inbox *inbox, int fd)
{
    uint32_t at = inbox->fd_count;

    if (at < VGPU_LINK_FDS_MAX) {
        window_name_of(fd, inbox->names[at]);
        inbox->fds[at] = fd;
        inbox->fd_count++;
        if (!window_is_harmless(fd))
            window_close_foreign(inbox->closer, &inbox->fds[at]);
    } else {
        window_close_foreign(inbox->closer, &fd);
    }
}

/* Every descriptor is taken, even when there are too many: what is not in the inbox
 * would be lost. */
static uint32_t take_descriptors(struct window_inbox *inbox, struct msghdr *header)
{
    uint32_t came = 0;

    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part; part = CMSG_NXTHDR(header, part)) {
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
            came++;
            keep(inbox, fd);
        }
    }
    return came;
}

static int hung_up(const struct window_inbox *inbox, struct vgpu_error *error)
{
    if (inbox->bytes > 0)
        return error_set(error, 0, "it hung up in the middle of a message (%zu of %u bytes)",
                         inbox->bytes, VGPU_LINK_MESSAGE_BYTES);
    return error_set(error, 0, "it hung up");
}

static int check_start(const struct window_inbox *inbox, struct vgpu_error *error)
{
    if (inbox->bytes >= sizeof(inbox->message.magic) && inbox->message.magic != VGPU_LINK_MAGIC)
        return error_set(error, EPROTO,
                         "it does not speak the link protocol: a message begins with 0x%08x, "
                         "not with 0x%08x",
                         inbox->message.magic, VGPU_LINK_MAGIC);
    return 0;
}

/* At most `bytes` to `target`, and all descriptors. */
static ssize_t receive(struct window_inbox *inbox, int fd, void *target, size_t bytes,
                       struct msghdr *ret_header, uint32_t *ret_came)
{
    union {
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {.iov_base = target, .iov_len = bytes};
    ssize_t got;

    *ret_header = (struct msghdr){.msg_iov = &part,
                                  .msg_iovlen = 1,
                                  .msg_control = control.bytes,
                                  .msg_controllen = sizeof(control.bytes)};
    got = recvmsg(fd, ret_header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    *ret_came = got > 0 ? take_descriptors(inbox, ret_header) : 0;
    return got;
}

int window_receive(struct window_inbox *inbox, int fd, struct vgpu_error *error)
{
    bool in_the_middle = inbox->bytes > 0;
    struct msghdr header;
    uint32_t came;
    ssize_t got = receive(inbox, fd, (char *)&inbox->message + inbox->bytes,
                          sizeof(inbox->message) - inbox->bytes, &header, &came);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got < 0 && errno != ECONNRESET)
        return error_set_errno(error, "cannot read from it");
    if (got <= 0)
        return hung_up(inbox, error);
    inbox->bytes += (size_t)got;
    if (came > VGPU_LINK_FDS_MAX || (header.msg_flags & MSG_CTRUNC))
        return error_set(error, EPROTO,
                         "more descriptors came with a message than the %u that "
                         "one may have (or than this process has room for)",
                         VGPU_LINK_FDS_MAX);
    if (came > 0 && in_the_middle)
        return error_set(error, EPROTO,
                         "descriptors came in the middle of a message: they go "
                         "with its first byte");
    if (check_start(inbox, error) < 0)
        return -1;
    if (inbox->bytes < sizeof(inbox->message))
        return 0;
    if (inbox->message.fd_count != inbox->fd_count)
        return error_set(error, EPROTO, "a message says that %u descriptors come with it; %u came",
                         inbox->message.fd_count, inbox->fd_count);
    return 1;
}

void window_drain(struct window_inbox *inbox, int fd)
{
    struct msghdr header;
    uint32_t came;

    shutdown(fd, SHUT_RD);
    window_inbox_clear(inbox);
    for (int i = 0; i < DRAIN_MAX; i++) {
        if (receive(inbox, fd, &inbox->message, sizeof(inbox->message), &header, &came) <= 0)
            break;
        window_inbox_clear(inbox);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is what came with HELLO and DOORBELLS what it has to be?
 *
 * A descriptor can be of anything, also of a file system whose server is the peer
 * itself, where even fstat(2) waits for the peer.  What is no eventfd, pipe or memfd
 * was let go of when it came, and has only its name here.
 *
 *   window     has seals (so it is a memfd), among them SHRINK: no page of it can go
 *              away under a worker; not against writing; not of huge pages, whose
 *              pool can run dry under a worker's feet
 *   eventfds   by name: nobody here reads or writes them, the worker waits on them
 *   lifeline   an anonymous pipe's read end
 */
#include "channel/window_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

void window_info_init(struct window_link_info *info, uint32_t vm_id)
{
    *info = (struct window_link_info){
        .vm_id = vm_id, .window_fd = -1, .interrupt_fd = -1, .lifeline_fd = -1};
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(info->doorbell_fds); i++)
        info->doorbell_fds[i] = -1;
}

void window_info_close(struct window_link_info *info)
{
    fd_close(&info->window_fd);
    fd_close(&info->interrupt_fd);
    fd_close(&info->lifeline_fd);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(info->doorbell_fds); i++)
        fd_close(&info->doorbell_fds[i]);
}

/* --- one descriptor --------------------------------------------------------------- */

static int check_eventfd(const struct window_inbox *inbox, uint32_t at, const char *which,
                         struct vgpu_error *error)
{
    const char *name = inbox->names[at];

    if (strcmp(name, "anon_inode:[eventfd]") != 0)
        return error_set(error, EINVAL, "the %s has to be an eventfd; what came is '%s'", which,
                         name);
    return 0;
}

static int check_lifeline(const struct window_inbox *inbox, uint32_t at, struct vgpu_error *error)
{
    const char *name = inbox->names[at];
    int flags = fcntl(inbox->fds[at], F_GETFL);

    if (strncmp(name, "pipe:[", 6) != 0)
        return error_set(error, EINVAL, "the lifeline has to be a pipe; what came is '%s'", name);
    if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY)
        return error_set(error, EINVAL, "the lifeline has to be the read end of its pipe");
    return 0;
}

static int check_seals(const struct window_inbox *inbox, uint32_t at, struct vgpu_error *error)
{
    int seals = fcntl(inbox->fds[at], F_GET_SEALS), flags = fcntl(inbox->fds[at], F_GETFL);

    if (seals < 0)
        return error_set(error, EINVAL, "the window has to be a memfd; what came is '%s'",
                         inbox->names[at]);
    if (!(seals & F_SEAL_SHRINK))
        return error_set(error, EINVAL,
                         "the window has to be sealed against shrinking "
                         "(F_SEAL_SHRINK): a part of it could go away while it is used");
    if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
        return error_set(error, EINVAL,
                         "the window is sealed against writing (seals 0x%x): "
                         "seal it against shrinking and growing only",
                         (unsigned)seals);
    if (flags < 0 || (flags & O_ACCMODE) != O_RDWR)
        return error_set(error, EINVAL, "the window has to be open for reading and writing");
    return 0;
}

/* After check_seals(): it lies in memory, so that these calls ask nobody. */
static int check_memory(int fd, struct window_link_info *info, struct vgpu_error *error)
{
    struct stat status;
    struct statfs system;

    if (fstat(fd, &status) < 0 || fstatfs(fd, &system) < 0)
        return error_set_errno(error, "cannot look at the window");
    if (!S_ISREG(status.st_mode))
        return error_set(error, EINVAL, "the window has to be a memfd, not a directory");
    /* Not by st_blksize: that tells transparent huge pages too, which do no harm. */
    if (system.f_type != TMPFS_MAGIC)
        return error_set(error, EINVAL,
                         "the window has to be a memfd of ordinary pages; this one "
                         "has pages of %ld bytes (huge pages are not supported)",
                         (long)system.f_bsize);
    if (status.st_size < 0 || (uint64_t)status.st_size < info->window_bytes)
        return error_set(error, EINVAL,
                         "the window is said to have %" PRIu64 " bytes; its memfd "
                         "has %lld",
                         info->window_bytes, (long long)status.st_size);
    info->window_device = status.st_dev;
    info->window_inode = status.st_ino;
    return 0;
}

/* --- HELLO --------------------------------------------------------------------------- */

static int check_versions(const struct vgpu_link_message *message, struct vgpu_error *error)
{
    uint32_t oldest = message->hello.min_version, newest = message->version;

    if (oldest < 1 || oldest > newest)
        return error_set(error, EPROTO, "HELLO says link versions %u to %u, which is no range",
                         oldest, newest);
    if (oldest > VGPU_LINK_VERSION)
        return error_set(error, EPROTO,
                         "it speaks link versions %u to %u, this mediator speaks "
                         "%u: update the mediator",
                         oldest, newest, VGPU_LINK_VERSION);
    return 0;
}

static int check_numbers(const struct vgpu_link_message *message, uint32_t vm_id,
                         struct vgpu_error *error)
{
    uint32_t slots = message->hello.slot_count;

    if (message->hello.owner != VGPU_LINK_OWNER_DEVICE &&
        message->hello.owner != VGPU_LINK_OWNER_LOCAL)
        return error_set(error, EPROTO,
                         "HELLO says owner %u; there are %u (device) and %u "
                         "(process)",
                         message->hello.owner, VGPU_LINK_OWNER_DEVICE, VGPU_LINK_OWNER_LOCAL);
    if (message->hello.vm_id != 0 && message->hello.vm_id != vm_id)
        return error_set(error, EPERM,
                         "it says that it is VM %u, but this is the socket of VM %u: "
                         "correct vm_id or the path of the socket",
                         message->hello.vm_id, vm_id);
    if (vgpu_window_slot_bytes(message->hello.window_bytes, slots) == 0)
        return error_set(error, EINVAL,
                         "a window of %" PRIu64 " bytes cannot have %u slots: it "
                         "has %u..%llu bytes in whole pages, 1..%u slots of at least %u bytes",
                         message->hello.window_bytes, slots, VGPU_WINDOW_MIN_BYTES,
                         VGPU_WINDOW_MAX_BYTES, VGPU_SLOTS_MAX, VGPU_SLOT_MIN_BYTES);
    if (message->hello.open_slots >> slots)
        return error_set(error, EPROTO, "HELLO says that slots 0x%x are open; there are only %u",
                         message->hello.open_slots, slots);
    return 0;
}

static int check_hello_fds(const struct window_inbox *inbox, struct window_link_info *info,
                           struct vgpu_error *error)
{
    if (inbox->fd_count != VGPU_LINK_HELLO_FDS)
        return error_set(error, EPROTO,
                         "HELLO comes with %u descriptors (window, interrupt, "
                         "lifeline); %u came",
                         VGPU_LINK_HELLO_FDS, inbox->fd_count);
    if (check_seals(inbox, VGPU_LINK_FD_WINDOW, error) < 0 ||
        check_memory(inbox->fds[VGPU_LINK_FD_WINDOW], info, error) < 0 ||
        check_eventfd(inbox, VGPU_LINK_FD_INTERRUPT, "interrupt", error) < 0)
        return -1;
    return check_lifeline(inbox, VGPU_LINK_FD_LIFELINE, error);
}

static int take(struct window_inbox *inbox, uint32_t which)
{
    int fd = inbox->fds[which];

    inbox->fds[which] = -1;
    return fd;
}

int window_check_hello(struct window_inbox *inbox, struct window_link_info *info,
                       struct vgpu_error *error)
{
    const struct vgpu_link_message *message = &inbox->message;

    if (check_versions(message, error) < 0 || check_numbers(message, info->vm_id, error) < 0)
        return -1;
    info->owner = message->hello.owner;
    info->window_bytes = message->hello.window_bytes;
    info->slot_count = message->hello.slot_count;
    info->slot_bytes = vgpu_window_slot_bytes(info->window_bytes, info->slot_count);
    info->open_slots = message->hello.open_slots;
    info->resetting = message->hello.flags & VGPU_LINK_HELLO_RESETTING;
    if (check_hello_fds(inbox, info, error) < 0)
        return -1;
    info->window_fd = take(inbox, VGPU_LINK_FD_WINDOW);
    info->interrupt_fd = take(inbox, VGPU_LINK_FD_INTERRUPT);
    info->lifeline_fd = take(inbox, VGPU_LINK_FD_LIFELINE);
    return 0;
}

/* --- DOORBELLS ------------------------------------------------------------------------- */

int window_check_doorbells(struct window_inbox *inbox, struct window_link_info *info,
                           struct vgpu_error *error)
{
    uint32_t first = inbox->message.doorbells.first_slot, count = inbox->fd_count;

    if (count < 1)
        return error_set(error, EPROTO, "DOORBELLS came without a descriptor");
    if (first >= info->slot_count || count > info->slot_count - first)
        return error_set(error, EPROTO, "DOORBELLS are for %u slots from %u on; there are only %u",
                         count, first, info->slot_count);
    for (uint32_t i = 0; i < count; i++) {
        if (info->doorbell_fds[first + i] >= 0)
            return error_set(error, EPROTO, "a second doorbell came for slot %u", first + i);
        if (check_eventfd(inbox, i, "doorbell", error) < 0)
            return -1;
    }
    for (uint32_t i = 0; i < count; i++)
        info->doorbell_fds[first + i] = take(inbox, i);
    return 0;
}

bool window_has_all_doorbells(const struct window_link_info *info)
{
    for (uint32_t slot = 0; slot < info->slot_count; slot++) {
        if (info->doorbell_fds[slot] < 0)
            return false;
    }
    return true;
}

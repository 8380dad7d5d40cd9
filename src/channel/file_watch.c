/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When to look at the directories again.
 *
 * inotify tells of changes made through this kernel, which includes those of an
 * NFS server on this machine; it says nothing of changes that other clients of
 * a network file system make.  So a timer always runs besides: after a look
 * that found work it fires soon, and each look that found none doubles the
 * wait, up to a bound.
 */
#include "channel/private.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Directories come and go rarely: list the share this often without inotify. */
#define LISTING_INTERVAL_NS (500 * NS_PER_MS)

struct file_watch {
    struct file_watch_events events;
    uv_timer_t timer;
    uv_poll_t poll;
    unsigned open_handles;
    int inotify_fd; /* -1: polling only */
    int share_watch;
    uint32_t poll_min_ms, poll_max_ms, interval_ms;
    uint64_t listed_ns;
};

static bool is_network_file_system(const char *path)
{
    struct statfs info;

    if (statfs(path, &info) < 0)
        return true;
    switch ((uint32_t)info.f_type) {
    case NFS_SUPER_MAGIC:
    case SMB_SUPER_MAGIC:
    case CIFS_SUPER_MAGIC:
    case FUSE_SUPER_MAGIC:
        return true;
    default:
        return false;
    }
}

static void look(struct file_watch *watch, bool listing)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (now_ns - watch->listed_ns >= LISTING_INTERVAL_NS)
        listing = true;
    if (listing)
        watch->listed_ns = now_ns;
    watch->events.look(listing, watch->events.context);
}

static void on_timer(uv_timer_t *timer)
{
    look(timer->data, false);
}

static bool name_is(const struct inotify_event *event, const char *name)
{
    return event->len > 0 && strcmp(event->name, name) == 0;
}

/* Returns true when the event calls for a look; `*listing` when for a listing. */
static bool judge_event(struct file_watch *watch, const struct inotify_event *event, bool *listing)
{
    if (event->mask & IN_Q_OVERFLOW || event->wd == watch->share_watch) {
        *listing = true;
        return true;
    }
    if (event->mask & IN_ACCESS) {
        watch->events.answer_read(event->wd, watch->events.context);
        return false;
    }
    return name_is(event, VGPU_FILE_REQUEST) || name_is(event, VGPU_FILE_COMMAND);
}

static void on_inotify(uv_poll_t *poll, int status, int uv_events)
{
    struct file_watch *watch = poll->data;
    char buffer[16384] __attribute__((aligned(__alignof__(struct inotify_event))));
    bool wanted = false, listing = false;
    ssize_t bytes;

    (void)uv_events;
    if (status < 0)
        return;
    bytes = read(watch->inotify_fd, buffer, sizeof(buffer));
    for (char *at = buffer; bytes > 0 && at < buffer + bytes;) {
        const struct inotify_event *event = (const struct inotify_event *)at;

        wanted |= judge_event(watch, event, &listing);
        at += sizeof(*event) + event->len;
    }
    if (wanted)
        look(watch, listing);
}

static void start_inotify(struct file_watch *watch, uv_loop_t *loop, const char *share)
{
    watch->inotify_fd = -1;
    watch->share_watch = -1;
    if (is_network_file_system(share))
        return;
    watch->inotify_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watch->inotify_fd < 0) {
        log_warning("no inotify (%s): the share is polled only", strerror(errno));
        return;
    }
    watch->share_watch =
        inotify_add_watch(watch->inotify_fd, share, IN_CREATE | IN_MOVED_TO | IN_ONLYDIR);
    uv_poll_init(loop, &watch->poll, watch->inotify_fd);
    watch->poll.data = watch;
    watch->open_handles++;
    uv_poll_start(&watch->poll, UV_READABLE, on_inotify);
}

int file_watch_new(uv_loop_t *loop, const char *share, uint32_t poll_min_ms, uint32_t poll_max_ms,
                   const struct file_watch_events *events, struct file_watch **ret_watch,
                   struct vgpu_error *error)
{
    struct file_watch *watch = calloc(1, sizeof(*watch));

    if (!watch)
        return error_set(error, ENOMEM, "no memory to watch the share");
    watch->events = *events;
    watch->poll_min_ms = watch->interval_ms = poll_min_ms;
    watch->poll_max_ms = poll_max_ms;
    start_inotify(watch, loop, share);
    uv_timer_init(loop, &watch->timer);
    watch->timer.data = watch;
    watch->open_handles++;
    uv_timer_start(&watch->timer, on_timer, 0, 0);
    *ret_watch = watch;
    return 0;
}

bool file_watch_is_local(const struct file_watch *watch)
{
    return watch->inotify_fd >= 0;
}

static void descriptor_path(char path[32], int fd)
{
    /* By descriptor: the name may be another directory by now. */
    snprintf(path, 32, "/proc/self/fd/%d", fd);
}

int file_watch_add(struct file_watch *watch, int fd, uint32_t vm_id)
{
    char path[32];
    int handle;

    if (watch->inotify_fd < 0)
        return -1;
    descriptor_path(path, fd);
    handle =
        inotify_add_watch(watch->inotify_fd, path,
                          IN_CLOSE_WRITE | IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_EXCL_UNLINK);
    if (handle < 0) {
        log_warning("cannot watch vm%u/ (%s): it is polled only; "
                    "fs.inotify.max_user_watches may be too low",
                    vm_id, strerror(errno));
        return -1;
    }
    return handle;
}

int file_watch_answer(struct file_watch *watch, int fd)
{
    char path[64];

    if (watch->inotify_fd < 0)
        return -1;
    /* The file itself, not its directory: an NFS server opens files by handle,
     * and the kernel then knows no directory to tell. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d/" VGPU_FILE_RESPONSE, fd);
    return inotify_add_watch(watch->inotify_fd, path, IN_ACCESS | IN_ONESHOT | IN_DONT_FOLLOW);
}

void file_watch_remove(struct file_watch *watch, int handle)
{
    if (handle >= 0)
        inotify_rm_watch(watch->inotify_fd, handle);
}

void file_watch_looked(struct file_watch *watch, bool busy, uint32_t limit_ms)
{
    uint32_t wait_ms;

    if (busy)
        watch->interval_ms = watch->poll_min_ms;
    else
        watch->interval_ms = watch->interval_ms > watch->poll_max_ms / 2 ? watch->poll_max_ms
                                                                         : watch->interval_ms * 2;
    wait_ms = watch->interval_ms < limit_ms ? watch->interval_ms : limit_ms;
    uv_timer_start(&watch->timer, on_timer, wait_ms, 0);
}

static void on_closed(uv_handle_t *handle)
{
    struct file_watch *watch = handle->data;

    if (--watch->open_handles > 0)
        return;
    fd_close(&watch->inotify_fd);
    free(watch);
}

void file_watch_stop(struct file_watch *watch)
{
    if (!watch)
        return;
    if (watch->inotify_fd >= 0)
        uv_close((uv_handle_t *)&watch->poll, on_closed);
    uv_close((uv_handle_t *)&watch->timer, on_closed);
}

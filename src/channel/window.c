/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The window channel: a socket for each registered VM, and who may connect there.
 *
 *   vm7.sock ── accept ─▶ link: HELLO, DOORBELLS ─▶ opened() ─▶ the mediator
 *               │
 *               └ too many links, too many a second: refused, or asked to wait
 *
 * Each VM has its own bounds, so what one does costs the others nothing: at most
 * links_max links, ACCEPTS_A_SECOND new ones, REPORTS_A_SECOND lines about refusals,
 * CLOSING_MAX descriptors that do not close.
 */
#include "channel/window_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPTS_A_VISIT 4
#define ACCEPTS_A_SECOND 64
#define REPORTS_A_SECOND 8
#define PAUSE_MS 250
#define CLOSING_MAX 32

static void free_socket(struct window_socket *at)
{
    LIST_REMOVE(at, in_channel);
    window_closer_release(at->closer);
    free(at);
}

static void destroy(struct window_channel *channel)
{
    while (!LIST_EMPTY(&channel->sockets))
        free_socket(LIST_FIRST(&channel->sockets)); /* NOLINT: the analyzer is lost in the macro */
    fd_close(&channel->run_dir_fd);
    free(channel->run_dir);
    free(channel);
}

void window_socket_hold(struct window_socket *at)
{
    at->handles++;
    at->channel->handles++;
}

void window_socket_release(struct window_socket *at)
{
    struct window_channel *channel = at->channel;

    at->handles--;
    channel->handles--;
    if (at->removed && at->handles == 0)
        free_socket(at);
    if (channel->freed && channel->handles == 0)
        destroy(channel);
}

void window_report_refusal(struct window_socket *at, const char *reason)
{
    const struct window_channel_events *events = &at->channel->events;
    char text[VGPU_ERROR_BYTES + 64];

    if (!window_rate_take(&at->reported, REPORTS_A_SECOND, clock_monotonic_ns())) {
        at->unreported++;
        return;
    }
    if (at->unreported > 0)
        snprintf(text, sizeof(text), "%s (%u refusals before were too many to tell)", reason,
                 at->unreported);
    else
        text_copy(text, sizeof(text), reason);
    at->unreported = 0;
    events->refused(at->vm_id, text, events->context);
}

/* --- accepting -------------------------------------------------------------------------- */

static void refuse(struct window_socket *at, int fd, const struct vgpu_error *error)
{
    struct window_inbox inbox = {.closer = at->closer};

    window_send_refused(fd, error->code, error->message);
    window_drain(&inbox, fd);
    fd_close(&fd);
    window_report_refusal(at, error->message);
}

static void on_readable(uv_poll_t *poll, int status, int events);

static void on_pause_over(uv_timer_t *timer)
{
    struct window_socket *at = timer->data;

    uv_poll_start(&at->poll, UV_READABLE, on_readable);
}

/* Those who wait outside wait in the kernel's queue, which is bounded. */
static void pause_socket(struct window_socket *at)
{
    uv_poll_stop(&at->poll);
    uv_timer_start(&at->pause, on_pause_over, PAUSE_MS, 0);
}

/* False when there is nobody more, or nobody may come in now. */
static bool accept_one(struct window_socket *at)
{
    struct vgpu_error error;
    int fd;

    if (!window_rate_take(&at->accepted, ACCEPTS_A_SECOND, clock_monotonic_ns())) {
        pause_socket(at);
        return false;
    }
    fd = accept4(at->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
            return false;
        log_warning("vm%u: cannot accept a link: %s", at->vm_id, strerror(errno));
        pause_socket(at); /* no descriptors left: it would come back at once */
        return false;
    }
    if (window_closer_pending(at->closer) >= CLOSING_MAX) {
        error_fill(&error, EBUSY,
                   "%u descriptors that came from VM %u do not close: let go of them first",
                   window_closer_pending(at->closer), at->vm_id);
        refuse(at, fd, &error);
    } else if (at->link_count >= at->links_max) {
        error_fill(&error, EBUSY, "VM %u has its %u links already: end one first", at->vm_id,
                   at->links_max);
        refuse(at, fd, &error);
    } else if (window_link_new(at, fd, &error) < 0) {
        window_report_refusal(at, error.message);
    }
    return true;
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct window_socket *at = poll->data;

    (void)events;
    if (status < 0) {
        log_error("vm%u: its socket failed: %s", at->vm_id, uv_strerror(status));
        pause_socket(at);
        return;
    }
    for (int i = 0; i < ACCEPTS_A_VISIT; i++) {
        if (!accept_one(at))
            return;
    }
}

/* --- start and stop ------------------------------------------------------------------------ */

static int start_socket(struct window_socket *at, struct vgpu_error *error)
{
    struct window_channel *channel = at->channel;
    int result;

    if (window_socket_listen(at, error) < 0)
        return -1;
    result = uv_poll_init(channel->loop, &at->poll, at->fd);
    if (result < 0) {
        window_socket_close(at);
        return error_set(error, -result, "cannot watch the socket of VM %u: %s", at->vm_id,
                         uv_strerror(result));
    }
    uv_timer_init(channel->loop, &at->pause);
    at->poll.data = at->pause.data = at;
    window_socket_hold(at);
    window_socket_hold(at);
    uv_poll_start(&at->poll, UV_READABLE, on_readable);
    return 0;
}

int window_channel_start(struct window_channel *channel, uv_loop_t *loop,
                         const struct window_channel_events *events, struct vgpu_error *error)
{
    struct window_socket *at;

    if (fd_make_directories(channel->run_dir, 0755, error) < 0)
        return -1;
    channel->run_dir_fd = open(channel->run_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (channel->run_dir_fd < 0)
        return error_set_errno(error, "cannot open directory '%s'", channel->run_dir);
    channel->loop = loop;
    channel->events = *events;
    window_sockets_sweep(channel);
    LIST_FOREACH (at, &channel->sockets, in_channel) {
        if (start_socket(at, error) < 0) {
            window_channel_stop(channel);
            return -1;
        }
    }
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    window_socket_release(handle->data);
}

static void stop_socket(struct window_socket *at)
{
    while (!LIST_EMPTY(&at->links))
        window_link_drop(LIST_FIRST(&at->links));
    if (at->fd < 0)
        return;
    uv_close((uv_handle_t *)&at->poll, on_closed);
    uv_close((uv_handle_t *)&at->pause, on_closed);
    window_socket_close(at);
}

void window_channel_stop(struct window_channel *channel)
{
    struct window_socket *at;

    LIST_FOREACH (at, &channel->sockets, in_channel)
        stop_socket(at);
}

static int add_socket(struct window_channel *channel, const struct file_channel_vm *vm,
                      struct window_socket **ret_socket)
{
    struct window_socket *at = calloc(1, sizeof(*at));

    if (!at)
        return -1;
    *at = (struct window_socket){.channel = channel,
                                 .vm_id = vm->vm_id,
                                 .owner_uid = vm->owner_uid,
                                 .owner_gid = vm->owner_gid,
                                 .mode = vm->mode & 0666,
                                 .links_max = vm->links_max ? vm->links_max : channel->links_max,
                                 .closer = window_closer_new(),
                                 .fd = -1};
    if (!at->closer) {
        free(at);
        return -1;
    }
    LIST_INIT(&at->links);
    LIST_INSERT_HEAD(&channel->sockets, at, in_channel);
    *ret_socket = at;
    return 0;
}

int window_channel_new(const struct window_channel_config *config,
                       struct window_channel **ret_channel, struct vgpu_error *error)
{
    struct window_channel *channel = calloc(1, sizeof(*channel));
    bool complete = channel;
    struct window_socket *at;

    if (channel) {
        channel->run_dir_fd = -1;
        channel->hello_timeout_ms = config->hello_timeout_ms;
        channel->links_max = config->links_max;
        LIST_INIT(&channel->sockets);
        channel->run_dir = strdup(config->run_dir);
        complete = channel->run_dir;
    }
    for (size_t i = 0; complete && i < config->vm_count; i++)
        complete = add_socket(channel, &config->vms[i], &at) == 0;
    if (!complete) {
        if (channel)
            destroy(channel);
        return error_set(error, ENOMEM, "no memory for the window channel");
    }
    *ret_channel = channel;
    return 0;
}

void window_channel_free(struct window_channel *channel)
{
    if (!channel)
        return;
    channel->freed = true;
    if (channel->handles == 0)
        destroy(channel);
}

/* --- live changes --------------------------------------------------------------------- */

static struct window_socket *find_socket(struct window_channel *channel, uint32_t vm_id)
{
    struct window_socket *at;

    LIST_FOREACH (at, &channel->sockets, in_channel) {
        if (at->vm_id == vm_id && !at->removed)
            return at;
    }
    return NULL;
}

/* No handle of it may be left open, or there is none. */
static void remove_socket(struct window_socket *at)
{
    at->removed = true;
    stop_socket(at);
    if (at->handles == 0)
        free_socket(at);
}

static int change_socket(struct window_socket *at, const struct file_channel_vm *vm,
                         struct vgpu_error *error)
{
    uid_t uid = vm->owner_uid;
    gid_t gid = vm->owner_gid;

    /* Where an owner was named and is not any more, it is the mediator's user. */
    if (uid == (uid_t)-1 && at->owner_uid != (uid_t)-1)
        uid = geteuid();
    if (gid == (gid_t)-1 && at->owner_gid != (gid_t)-1)
        gid = getegid();
    if (uid == at->owner_uid && gid == at->owner_gid && (vm->mode & 0666) == at->mode)
        return 0;
    at->owner_uid = uid;
    at->owner_gid = gid;
    at->mode = vm->mode & 0666;
    return window_socket_give(at, error);
}

int window_channel_set_vm(struct window_channel *channel, const struct file_channel_vm *vm,
                          struct vgpu_error *error)
{
    struct window_socket *at = find_socket(channel, vm->vm_id);

    if (at) {
        at->links_max = vm->links_max ? vm->links_max : channel->links_max;
        return change_socket(at, vm, error);
    }
    if (add_socket(channel, vm, &at) < 0)
        return error_set(error, ENOMEM, "no memory for the socket of VM %u", vm->vm_id);
    if (start_socket(at, error) < 0) {
        remove_socket(at);
        return -1;
    }
    return 0;
}

void window_channel_remove_vm(struct window_channel *channel, uint32_t vm_id)
{
    struct window_socket *at = find_socket(channel, vm_id);

    if (at)
        remove_socket(at);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One link.
 *
 *   accepted ─▶ HELLO ─▶ DOORBELLS... ─▶ opened() ─▶ OPEN ⇄ STATE, CLOSE, RESET
 *      │          │          │              │                │
 *      └──────────┴──────────┴── refused() ─┘                └─▶ closed()
 *
 * Whatever is wrong ends the link, with the reason to the peer (REFUSED) and to the
 * mediator.  The mediator may call back into the link from each of its events, so
 *
 * - a message that cannot be sent ends the link at the loop's next turn, not at once;
 * - memory goes when libuv has closed both handles.
 *
 * Time: HELLO and all doorbells within hello_timeout_ms of the accept, later each
 * message within hello_timeout_ms of its first byte.  A peer that says more than
 * MESSAGES_A_SECOND is not listened to for the rest of the second.
 */
#include "channel/window_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MESSAGES_A_VISIT 8
#define MESSAGES_A_SECOND 256
#define PAUSE_MS 100

enum link_state {
    LINK_HELLO,     /* nothing said yet */
    LINK_DOORBELLS, /* some are missing */
    LINK_OPEN,      /* opened() was called and said yes */
    LINK_ENDED,     /* its handles are being closed */
};

struct window_link {
    LIST_ENTRY(window_link) links;
    struct window_socket *at;
    enum link_state state;
    int fd;
    uv_poll_t poll;
    uv_timer_t timer; /* a message's deadline */
    uv_timer_t pause; /* after too many messages; and to end it soon */
    unsigned handles;
    bool breaking; /* ends at the loop's next turn */
    struct window_link_info info;
    struct window_inbox inbox;
    struct window_rate rate;
    void *data;
    struct vgpu_error reason; /* breaking: why */
};

/* --- the end -------------------------------------------------------------------------- */

static void on_handle_closed(uv_handle_t *handle)
{
    struct window_link *link = handle->data;

    window_socket_release(link->at);
    if (--link->handles == 0)
        free(link);
}

void window_link_drop(struct window_link *link)
{
    if (link->state == LINK_ENDED)
        return;
    link->state = LINK_ENDED;
    LIST_REMOVE(link, links);
    link->at->link_count--;
    uv_close((uv_handle_t *)&link->poll, on_handle_closed);
    uv_close((uv_handle_t *)&link->timer, on_handle_closed);
    uv_close((uv_handle_t *)&link->pause, on_handle_closed);
    window_drain(&link->inbox, link->fd);
    fd_close(&link->fd);
    window_info_close(&link->info);
}

/* Ends it and tells both sides why; error->code 0: the peer has gone by itself. */
static void end_link(struct window_link *link, const struct vgpu_error *error)
{
    const struct window_channel_events *events = &link->at->channel->events;
    struct window_socket *at = link->at;
    bool opened = link->state == LINK_OPEN;

    if (link->state == LINK_ENDED)
        return;
    if (error->code != 0)
        window_send_refused(link->fd, error->code, error->message);
    link->breaking = true; /* nothing is sent any more */
    if (opened)
        events->closed(link, error->message, link->data, events->context);
    window_link_drop(link);
    if (!opened)
        window_report_refusal(at, error->message);
}

void window_link_close(struct window_link *link, const char *reason)
{
    if (link->state == LINK_ENDED)
        return;
    window_send_refused(link->fd, ECANCELED, reason);
    window_link_drop(link);
}

static void on_break(uv_timer_t *timer)
{
    struct window_link *link = timer->data;

    end_link(link, &link->reason);
}

/* Ends it soon: the caller may stand in the middle of something. */
static void break_link(struct window_link *link, const char *why)
{
    if (link->breaking || link->state == LINK_ENDED)
        return;
    link->breaking = true;
    error_fill(&link->reason, 0, "%s", why);
    uv_poll_stop(&link->poll);
    uv_timer_start(&link->pause, on_break, 0, 0);
}

/* --- what the mediator says ----------------------------------------------------------- */

static struct vgpu_link_message new_message(enum vgpu_link_type type)
{
    return (struct vgpu_link_message){
        .magic = VGPU_LINK_MAGIC, .version = VGPU_LINK_VERSION, .type = type};
}

/* A message is one piece of the socket's buffer: it goes whole or not at all. */
static bool send_message(int fd, const struct vgpu_link_message *message)
{
    return send(fd, message, sizeof(*message), MSG_DONTWAIT | MSG_NOSIGNAL) ==
           (ssize_t)sizeof(*message);
}

void window_send_refused(int fd, int code, const char *text)
{
    struct vgpu_link_message message = new_message(VGPU_LINK_REFUSED);

    message.refused.code = (uint32_t)code;
    text_copy(message.refused.text, sizeof(message.refused.text), text);
    send_message(fd, &message);
}

static void tell(struct window_link *link, const struct vgpu_link_message *message)
{
    if (link->breaking || link->state == LINK_ENDED || send_message(link->fd, message))
        return;
    if (errno == EAGAIN)
        break_link(link, "it does not read what it is told");
    else
        break_link(link, "it hung up");
}

static void tell_config(struct window_link *link, enum vgpu_link_type type, char pool,
                        unsigned priority, uint32_t sessions_max)
{
    struct vgpu_link_message message = new_message(type);

    message.config.vm_id = link->info.vm_id;
    message.config.pool = (unsigned char)pool;
    message.config.priority = priority;
    message.config.sessions_max = sessions_max;
    tell(link, &message);
}

void window_link_welcome(struct window_link *link, char pool, unsigned priority,
                         uint32_t sessions_max)
{
    tell_config(link, VGPU_LINK_WELCOME, pool, priority, sessions_max);
}

void window_link_config(struct window_link *link, char pool, unsigned priority,
                        uint32_t sessions_max)
{
    tell_config(link, VGPU_LINK_CONFIG, pool, priority, sessions_max);
}

void window_link_state(struct window_link *link, uint32_t slot, uint32_t state, int code,
                       const char *text)
{
    struct vgpu_link_message message = new_message(VGPU_LINK_STATE);

    message.state.slot = slot;
    message.state.state = state;
    message.state.code = (uint32_t)code;
    text_copy(message.state.text, sizeof(message.state.text), text ? text : "");
    tell(link, &message);
}

void window_link_reset_done(struct window_link *link)
{
    struct vgpu_link_message message = new_message(VGPU_LINK_RESET_DONE);

    tell(link, &message);
}

/* --- what the peer says ------------------------------------------------------------------ */

static int open_link(struct window_link *link, struct vgpu_error *error)
{
    const struct window_channel_events *events = &link->at->channel->events;

    uv_timer_stop(&link->timer);
    if (events->opened(link, &link->info, &link->data, events->context, error) < 0)
        return -1;
    if (link->state != LINK_ENDED)
        link->state = LINK_OPEN;
    return 0;
}

static int take_doorbells(struct window_link *link, struct vgpu_error *error)
{
    if (link->inbox.message.type != VGPU_LINK_DOORBELLS)
        return error_set(error, EPROTO, "message %u came where DOORBELLS (%u) were expected",
                         link->inbox.message.type, VGPU_LINK_DOORBELLS);
    if (window_check_doorbells(&link->inbox, &link->info, error) < 0)
        return -1;
    return window_has_all_doorbells(&link->info) ? open_link(link, error) : 0;
}

static int take_hello(struct window_link *link, struct vgpu_error *error)
{
    if (link->inbox.message.type != VGPU_LINK_HELLO)
        return error_set(error, EPROTO, "message %u came where HELLO (%u) was expected",
                         link->inbox.message.type, VGPU_LINK_HELLO);
    if (window_check_hello(&link->inbox, &link->info, error) < 0)
        return -1;
    link->state = LINK_DOORBELLS;
    return 0;
}

static int check_slot(const struct window_link *link, uint32_t slot, struct vgpu_error *error)
{
    if (slot >= link->info.slot_count)
        return error_set(error, EPROTO, "slot %u was asked for; there are only %u", slot,
                         link->info.slot_count);
    return 0;
}

static int take_order(struct window_link *link, struct vgpu_error *error)
{
    const struct window_channel_events *events = &link->at->channel->events;
    const struct vgpu_link_message *message = &link->inbox.message;
    uint32_t slot = message->open.slot;

    if (message->fd_count > 0)
        return error_set(error, EPROTO, "message %u came with descriptors", message->type);
    switch (message->type) {
    case VGPU_LINK_OPEN:
        if (check_slot(link, slot, error) < 0)
            return -1;
        events->open_session(link, slot, link->data, events->context);
        return 0;
    case VGPU_LINK_CLOSE:
        if (check_slot(link, slot, error) < 0)
            return -1;
        events->close_session(link, slot, link->data, events->context);
        return 0;
    case VGPU_LINK_RESET:
        events->reset(link, link->data, events->context);
        return 0;
    default:
        return error_set(error, EPROTO, "message %u came where OPEN, CLOSE or RESET was expected",
                         message->type);
    }
}

static int take_message(struct window_link *link, struct vgpu_error *error)
{
    switch (link->state) {
    case LINK_HELLO:
        return take_hello(link, error);
    case LINK_DOORBELLS:
        return take_doorbells(link, error);
    case LINK_OPEN:
        return take_order(link, error);
    default:
        return 0;
    }
}

/* --- the loop ------------------------------------------------------------------------------ */

static void on_readable(uv_poll_t *poll, int status, int events);

static void on_pause_over(uv_timer_t *timer)
{
    struct window_link *link = timer->data;

    uv_poll_start(&link->poll, UV_READABLE, on_readable);
}

static void on_late(uv_timer_t *timer)
{
    struct window_link *link = timer->data;
    uint32_t timeout_ms = link->at->channel->hello_timeout_ms;
    struct vgpu_error error;

    if (link->state == LINK_OPEN)
        error_fill(&error, ETIMEDOUT, "the rest of a message did not come within %u ms",
                   timeout_ms);
    else
        error_fill(&error, ETIMEDOUT, "HELLO and DOORBELLS did not come within %u ms", timeout_ms);
    end_link(link, &error);
}

/* An open link owes nothing between messages, and the rest of one that has begun. */
static void watch_the_rest(struct window_link *link)
{
    if (link->state != LINK_OPEN || link->breaking)
        return;
    if (link->inbox.bytes == 0)
        uv_timer_stop(&link->timer);
    else if (!uv_is_active((uv_handle_t *)&link->timer))
        uv_timer_start(&link->timer, on_late, link->at->channel->hello_timeout_ms, 0);
}

/* False when the visit is over. */
static bool take_one(struct window_link *link)
{
    struct vgpu_error error;
    int result = window_receive(&link->inbox, link->fd, &error);

    if (result == 0)
        return false;
    if (result > 0 && !window_rate_take(&link->rate, MESSAGES_A_SECOND, clock_monotonic_ns())) {
        uv_poll_stop(&link->poll);
        uv_timer_start(&link->pause, on_pause_over, PAUSE_MS, 0);
        /* This one is still taken: the bound is soft by one message a pause. */
    }
    if (result < 0 || take_message(link, &error) < 0) {
        end_link(link, &error);
        return false;
    }
    if (link->state == LINK_ENDED)
        return false;
    window_inbox_clear(&link->inbox);
    return !link->breaking && uv_is_active((uv_handle_t *)&link->poll);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct window_link *link = poll->data;
    int visits = MESSAGES_A_VISIT;

    (void)status, (void)events; /* a failed socket says so when it is read */
    while (visits-- > 0 && take_one(link))
        continue;
    watch_the_rest(link);
}

/* --- the beginning ---------------------------------------------------------------------------- */

static void init_handle(struct window_link *link, uv_handle_t *handle)
{
    handle->data = link;
    link->handles++;
    window_socket_hold(link->at);
}

static void fill_peer(struct window_link *link)
{
    struct ucred peer = {.pid = 0, .uid = (uid_t)-1};
    socklen_t bytes = sizeof(peer);

    getsockopt(link->fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes);
    link->info.peer_pid = peer.pid;
    link->info.peer_uid = peer.uid;
}

int window_link_new(struct window_socket *at, int fd, struct vgpu_error *error)
{
    struct window_link *link = calloc(1, sizeof(*link));
    uv_loop_t *loop = at->channel->loop;
    int result = link ? uv_poll_init(loop, &link->poll, fd) : UV_ENOMEM;

    if (result < 0) {
        free(link);
        fd_close(&fd);
        return error_set(error, -result, "no room for a link: %s", uv_strerror(result));
    }
    uv_timer_init(loop, &link->timer);
    uv_timer_init(loop, &link->pause);
    link->at = at;
    link->fd = fd;
    link->inbox.closer = at->closer;
    window_info_init(&link->info, at->vm_id);
    fill_peer(link);
    init_handle(link, (uv_handle_t *)&link->poll);
    init_handle(link, (uv_handle_t *)&link->timer);
    init_handle(link, (uv_handle_t *)&link->pause);
    LIST_INSERT_HEAD(&at->links, link, links);
    at->link_count++;
    uv_timer_start(&link->timer, on_late, at->channel->hello_timeout_ms, 0);
    uv_poll_start(&link->poll, UV_READABLE, on_readable);
    return 0;
}

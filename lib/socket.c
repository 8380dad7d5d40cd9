/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session of a process on the host: makes its own window, of one slot, and
 * hands it to the mediator through a VM's socket.
 *
 *   memfd, doorbell, interrupt, lifeline ── HELLO, DOORBELLS ──▶ mediator
 *                                        ◀── WELCOME
 *                                         ── OPEN 0 ──▶
 *                                        ◀── STATE 0 READY
 *
 * When the mediator goes, the worker stays and the session with it.  While the
 * library sleeps it connects again, with the same descriptors and the slot as
 * open.  The session has ended when a mediator says so, not before.
 */
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define WINDOW_BYTES (16u << 20)
#define RETRY_MIN_NS (10 * NS_PER_MS)
#define RETRY_MAX_NS (500 * NS_PER_MS)

/* --- what the mediator says ----------------------------------------------------------- */

static int status_of_code(uint32_t code)
{
    switch (code) {
    case EBUSY:
    case EAGAIN:
        return VGPU_PROBLEM_BUSY;
    case EACCES:
    case EPERM:
        return VGPU_PROBLEM_DENIED;
    default:
        return VGPU_PROBLEM_NO_HOST;
    }
}

static void refuse(struct link *link, uint32_t code, const char *text)
{
    link->state = VGPU_SESSION_REFUSED;
    problem_set(&link->refusal, status_of_code(code), "the mediator at %s refused: %.*s",
                link->path, (int)VGPU_LINK_TEXT_BYTES,
                text[0] ? text : strerror(code < INT32_MAX ? (int)code : 0));
}

static void take_message(struct link *link, struct vgpu_link_message *message)
{
    message->bytes[sizeof(message->bytes) - 1] = '\0';
    switch (message->type) {
    case VGPU_LINK_WELCOME:
        link->is_welcome = true;
        break;
    case VGPU_LINK_REFUSED:
        refuse(link, message->refused.code, message->refused.text);
        break;
    case VGPU_LINK_STATE:
        if (message->state.slot != 0)
            break;
        link->state = message->state.state;
        if (link->state == VGPU_SESSION_REFUSED)
            refuse(link, message->state.code, message->state.text);
        break;
    default:
        break; /* what a later version says besides */
    }
}

static void tell_configuration(struct vgpu_session *session,
                               const struct vgpu_link_message *message)
{
    if (message->type != VGPU_LINK_WELCOME && message->type != VGPU_LINK_CONFIG)
        return;
    session->info.vm_id = message->config.vm_id;
    session->info.pool = (char)(message->config.pool & 0x7f);
    session->info.priority = message->config.priority;
}

static void try_later(struct link *link)
{
    const struct itimerspec when = {
        .it_value = {.tv_sec = link->pause_ns / NS_PER_S, .tv_nsec = link->pause_ns % NS_PER_S}};

    link->retry_ns = clock_ns() + link->pause_ns;
    timerfd_settime(link->timer_fd, 0, &when, NULL);
    link->pause_ns = link->pause_ns * 2 < RETRY_MAX_NS ? link->pause_ns * 2 : RETRY_MAX_NS;
}

/* Reads all that is there.  True: the mediator is gone. */
static bool read_link(struct vgpu_session *session, struct link *link)
{
    struct vgpu_link_message message;
    int got;

    while ((got = link_receive(link, &message)) > 0) {
        take_message(link, &message);
        tell_configuration(session, &message);
        if (link->is_welcome)
            link->pause_ns = RETRY_MIN_NS;
    }
    return got < 0;
}

static void check_state(struct vgpu_session *session, const struct link *link)
{
    if (!link->is_open || link->state == VGPU_SESSION_READY || link->state == VGPU_SESSION_LOST ||
        link->state == VGPU_SESSION_OPENING)
        return;
    if (link->state == VGPU_SESSION_REFUSED)
        session_end(session, VGPU_PROBLEM_CLOSED, "%.400s: open a new session", link->refusal.text);
    else if (link->state == VGPU_SESSION_FAULTED)
        session_end(session, VGPU_PROBLEM_CLOSED,
                    "the host ended the session's work because its rings made no sense to it; "
                    "open a new session");
    else
        session_end(session, VGPU_PROBLEM_CLOSED,
                    "the mediator at %s has closed the session: open a new one", link->path);
}

/* Messages, and a new connection when it is time. */
static void see_to_link(struct vgpu_session *session, struct link *link)
{
    uint64_t ticks;

    if (link->fd < 0 && clock_ns() >= link->retry_ns) {
        if (read(link->timer_fd, &ticks, sizeof(ticks)) < 0 && errno != EAGAIN)
            return;
        if (link_connect(link, NULL) < 0)
            try_later(link);
    }
    if (link->fd >= 0 && read_link(session, link)) {
        link_hang_up(link);
        try_later(link);
    }
    check_state(session, link);
}

/* --- the transport's functions --------------------------------------------------------------- */

static void socket_ring(struct vgpu_session *session)
{
    const struct link *link = session->way;
    const uint64_t one = 1;

    /* It can only fail where it is full, and then the host has been told. */
    if (write(link->doorbell_fd, &one, sizeof(one)) < 0)
        return;
}

static void socket_sleep(struct vgpu_session *session, int64_t timeout_ns)
{
    struct link *link = session->way;
    struct pollfd waits[2] = {{.fd = link->interrupt_fd, .events = POLLIN},
                              {.fd = link->fd, .events = POLLIN}};
    struct timespec time;
    uint64_t count;

    if (link->fd < 0) {
        int64_t retry_ns = link->retry_ns - clock_ns();

        if (timeout_ns < 0 || retry_ns < timeout_ns)
            timeout_ns = retry_ns > 0 ? retry_ns : 0;
    }
    time.tv_sec = timeout_ns / NS_PER_S;
    time.tv_nsec = timeout_ns % NS_PER_S;
    ppoll(waits, 2, timeout_ns < 0 ? NULL : &time, NULL);
    if (waits[0].revents && read(link->interrupt_fd, &count, sizeof(count)) < 0 &&
        errno != EAGAIN && errno != EINTR)
        session_end(session, VGPU_PROBLEM_CLOSED, "the interrupt's eventfd cannot be read: %s",
                    strerror(errno));
    if (waits[1].revents || link->fd < 0)
        see_to_link(session, link);
}

static uint32_t socket_state(struct vgpu_session *session)
{
    const struct link *link = session->way;

    return session_state(session, link->state);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_fds(struct vgpu_session *session)
{
    struct link *link = session->way;
    int *const fds[] = {&link->fd,          &link->epoll_fd,     &link->timer_fd,
                        &link->window_fd,   &link->interrupt_fd, &link->doorbell_fd,
                        &link->lifeline[0], &link->lifeline[1]};

    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        close_fd(fds[i]);
}

static void socket_close(struct vgpu_session *session)
{
    struct link *link = session->way;
    struct vgpu_link_message message = link_message(VGPU_LINK_CLOSE);

    if (link->fd >= 0)
        link_send(link, &message, NULL, 0);
    close_fds(session);
}

/* --- opening -------------------------------------------------------------------------------------
 */

static int system_problem(const char *what, struct vgpu_problem *problem)
{
    return problem_set(problem, VGPU_PROBLEM_SYSTEM, "cannot make %s: %s", what, strerror(errno));
}

static int make_window(struct link *link, struct vgpu_problem *problem)
{
    struct vgpu_window_header header = {.magic = VGPU_WINDOW_MAGIC,
                                        .version = VGPU_WINDOW_VERSION,
                                        .window_bytes = link->window_bytes,
                                        .slot_count = 1,
                                        .ring_entries = VGPU_RING_ENTRIES};

    header.slot_bytes = vgpu_window_slot_bytes(link->window_bytes, 1);
    if (!header.slot_bytes)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "a window has %u to %llu bytes in whole pages of %u, not %llu",
                           VGPU_WINDOW_MIN_BYTES, (unsigned long long)VGPU_WINDOW_MAX_BYTES,
                           VGPU_PAGE_BYTES, (unsigned long long)link->window_bytes);
    link->window_fd = memfd_create("vgpu-window", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (link->window_fd < 0 || ftruncate(link->window_fd, (off_t)link->window_bytes) < 0 ||
        pwrite(link->window_fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header) ||
        fcntl(link->window_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return system_problem("a window in shared memory", problem);
    return 0;
}

static int make_fds(struct link *link, struct vgpu_problem *problem)
{
    struct epoll_event event = {.events = EPOLLIN};

    link->doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    link->interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    link->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    link->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (link->doorbell_fd < 0 || link->interrupt_fd < 0 || link->timer_fd < 0 ||
        link->epoll_fd < 0 || pipe2(link->lifeline, O_CLOEXEC) < 0 ||
        epoll_ctl(link->epoll_fd, EPOLL_CTL_ADD, link->interrupt_fd, &event) < 0 ||
        epoll_ctl(link->epoll_fd, EPOLL_CTL_ADD, link->timer_fd, &event) < 0)
        return system_problem("the session's descriptors", problem);
    return 0;
}

/* Until the mediator has said what `is_done` waits for. */
static int converse(struct vgpu_session *session, struct link *link, const char *what,
                    bool (*is_done)(const struct link *link), struct vgpu_problem *problem)
{
    for (;;) {
        struct pollfd wait = {.fd = link->fd, .events = POLLIN};
        int64_t left_ns = session->deadline_ns - clock_ns();
        bool is_gone;

        if (left_ns <= 0)
            return problem_set(problem, VGPU_PROBLEM_TIMEOUT,
                               "the mediator at %s did not %s in time: look at its log", link->path,
                               what);
        if (left_ns > NS_PER_S)
            left_ns = NS_PER_S;
        if (poll(&wait, 1, (int)(left_ns / NS_PER_MS) + 1) <= 0)
            continue;
        is_gone = read_link(session, link);
        if (link->state == VGPU_SESSION_REFUSED)
            return problem_copy(problem, &link->refusal);
        if (is_done(link))
            return 0;
        if (is_gone)
            return problem_set(problem, VGPU_PROBLEM_NO_HOST,
                               "the mediator at %s hung up before it did %s: look at its log",
                               link->path, what);
    }
}

static bool is_welcome(const struct link *link)
{
    return link->is_welcome;
}

static bool is_decided(const struct link *link)
{
    return link->state == VGPU_SESSION_READY || link->state == VGPU_SESSION_LOST;
}

static int open_link(struct vgpu_session *session, struct link *link, struct vgpu_problem *problem)
{
    struct vgpu_link_message open_message = link_message(VGPU_LINK_OPEN);

    if (make_window(link, problem) < 0 || make_fds(link, problem) < 0 ||
        link_connect(link, problem) < 0 ||
        converse(session, link, "say WELCOME", is_welcome, problem) < 0)
        return -1;
    link->state = VGPU_SESSION_OPENING;
    if (link_send(link, &open_message, NULL, 0) < 0)
        return system_problem("the session: its link is full", problem);
    if (converse(session, link, "start a worker", is_decided, problem) < 0)
        return -1;
    link->is_open = true;
    return session_map(session, link->window_fd, VGPU_WINDOW_HEADER_BYTES,
                       vgpu_window_slot_bytes(link->window_bytes, 1), problem);
}

static int socket_open(struct vgpu_session *session, const struct vgpu_options *options,
                       const char *path, struct vgpu_problem *problem)
{
    struct link *link;

    if (!path)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "no socket was named: give its path, or set VGPU_SOCKET");
    link = calloc(1, sizeof(*link));
    if (!link)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM, "out of memory");
    link->fd = link->epoll_fd = link->timer_fd = link->window_fd = -1;
    link->interrupt_fd = link->doorbell_fd = link->lifeline[0] = link->lifeline[1] = -1;
    link->window_bytes = options->window_bytes ? options->window_bytes : WINDOW_BYTES;
    link->pause_ns = RETRY_MIN_NS;
    snprintf(link->path, sizeof(link->path), "%s", path);
    snprintf(session->info.path, sizeof(session->info.path), "%s", path);
    session->info.cached = true;
    session->way = link;
    if (open_link(session, link, problem) < 0) {
        close_fds(session);
        free(link);
        session->way = NULL;
        return -1;
    }
    session->fd = link->epoll_fd;
    return 0;
}

const struct transport socket_transport = {
    .kind = VGPU_TRANSPORT_SOCKET,
    .open = socket_open,
    .ring = socket_ring,
    .sleep = socket_sleep,
    .state = socket_state,
    .close = socket_close,
    .forked = close_fds,
};

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session of a program in a Xen guest: grants the pages of a slot of its own to the
 * host's domain, and tells vgpu-xen there of them through XenStore (vgpu/xen.h).
 *
 *   pages of gntalloc, a port, data/vgpu/frontend/<name>/ ──▶ vgpu-xen
 *                         data/vgpu/backend/<name>/state ◀── connected
 *
 * The kernel's own interfaces are used, not Xen's libraries: nothing but the C library
 * is below libvgpu.  The kernel takes the pages back when the program dies, and tells
 * the host; pages that the host still maps stay granted until it has let them go.
 *
 * A VM that was saved and restored is a new domain, with nothing of the old one's grants and
 * ports: the session is lost, and reconnecting makes all three anew.
 */
#include "xen_guest.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#define REASON_TIMEOUT_NS (1 * NS_PER_S)

/* Our byte in `slot` says that we are here. */
static int announce_life(const struct xen *xen, uint8_t *slot, struct vgpu_problem *problem)
{
    slot[VGPU_SLOT_GUEST + VGPU_XEN_ALIVE] = 1;
    return xen_slot_notify(&xen->slot, xen->port) < 0
               ? xen_problem("ask the kernel to tell the host of our end", problem)
               : 0;
}

static bool is_host_there(const struct vgpu_session *session)
{
    return __atomic_load_n(session->slot + VGPU_SLOT_HOST + VGPU_XEN_ALIVE, __ATOMIC_ACQUIRE) == 1;
}

/* --- the transport's functions ------------------------------------------------------------------
 */

static void xen_ring(struct vgpu_session *session)
{
    const struct xen *xen = session->way;

    evtchn_notify(xen->events_fd, xen->port);
}

/* A domain that was saved and restored is a new one to Xen: its kernel forgets our port before
 * any program runs again. */
static bool is_port_forgotten(const struct xen *xen)
{
    return xen->slot.fd >= 0 && xen_slot_notify(&xen->slot, xen->port) < 0 && errno == EINVAL;
}

/* Where another program has the port's number by now, the domain's tells. */
static bool is_in_another_domain(struct xen *xen)
{
    if (is_port_forgotten(xen))
        return true;
    return xen_host_sees_other_domain(xen);
}

/* A port that is another's by now must not be closed at all, and the pages would close it too. */
static void leave_lost_port(struct xen *xen)
{
    int lock;

    if (xen->events_fd < 0)
        return;
    epoll_ctl(xen->epoll_fd, EPOLL_CTL_DEL, xen->events_fd, NULL);
    lock = evtchn_lock();
    if (evtchn_is_free(xen->port)) {
        xen_slot_notify_nobody(&xen->slot);
        evtchn_abandon(xen->events_fd);
    } else {
        xen->slot.fd = -1;
    }
    evtchn_unlock(lock);
    xen->events_fd = -1;
}

static void lose_session(struct vgpu_session *session, struct xen *xen)
{
    leave_lost_port(xen);
    xen->is_connected = xen->is_told = false; /* those nodes were the old domain's */
    session_lose(
        session,
        "the VM was saved and restored, or moved, and its GPU session did not come with it: device "
        "memory, streams and events are gone; vgpu_reset() connects it again, then begin "
        "anew");
}

/* That the broker is gone is seen before vgpu-xen can have written why. */
static void end_session(struct vgpu_session *session, struct xen *xen)
{
    char error[300];

    xen->is_connected = false;
    if (is_in_another_domain(xen)) {
        lose_session(session, xen);
        return;
    }
    xen_host_await_end(xen, clock_ns() + REASON_TIMEOUT_NS);
    xen_host_read_error(xen, error, sizeof(error));
    session_end(session, VGPU_PROBLEM_CLOSED,
                "the Xen host has ended the session%s%s: open a new one", error[0] ? ": " : "",
                error);
}

/* The host's byte says most; XenStore also what happened while this VM was saved. */
static void check_host(struct vgpu_session *session, struct xen *xen, bool has_news)
{
    if (!is_host_there(session) || (has_news && !xen_host_is_serving(xen)))
        end_session(session, xen);
}

static void xen_sleep(struct vgpu_session *session, int64_t timeout_ns)
{
    struct xen *xen = session->way;
    struct pollfd waits[2] = {{.fd = xen->events_fd, .events = POLLIN},
                              {.fd = xen->bus.fd, .events = POLLIN}};
    struct timespec time = {.tv_sec = timeout_ns / NS_PER_S, .tv_nsec = timeout_ns % NS_PER_S};
    struct xenbus_event event;
    bool has_news = false;

    ppoll(waits, 2, timeout_ns < 0 ? NULL : &time, NULL);
    if (waits[0].revents)
        evtchn_drain(xen->events_fd);
    /* Some may have come before the answer to what check_host() asked. */
    while ((waits[1].revents || xen->bus.event_count) && xenbus_next_event(&xen->bus, &event) > 0)
        has_news = true;
    if (session_usable(session))
        check_host(session, xen, has_news);
}

/* Asking XenStore takes longer than most answers: only where it has something to tell. */
static bool xen_confirm(struct vgpu_session *session)
{
    struct xen *xen = session->way;
    struct pollfd news = {.fd = xen->bus.fd, .events = POLLIN};

    if (!session_usable(session))
        return false;
    written_touch(session);
    if (!is_port_forgotten(xen) && (poll(&news, 1, 0) <= 0 || !is_in_another_domain(xen)))
        return true;
    lose_session(session, xen);
    return false;
}

static uint32_t xen_state(struct vgpu_session *session)
{
    const struct xen *xen = session->way;

    return session_state(session, xen->is_connected ? VGPU_SESSION_READY : VGPU_SESSION_CLOSED);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_fds(struct vgpu_session *session)
{
    struct xen *xen = session->way;

    xen_slot_close(&xen->slot);
    close_fd(&xen->events_fd);
    close_fd(&xen->epoll_fd);
    xenbus_close(&xen->bus);
}

/* Gives back all but the descriptor for event loops. */
static void hang_up(struct xen *xen)
{
    if (xen->is_told)
        xen_host_leave(xen);
    if (xen->events_fd >= 0 && is_in_another_domain(xen))
        leave_lost_port(xen); /* nobody has waited since the restore */
    xen_slot_close(&xen->slot);
    close_fd(&xen->events_fd);
    xenbus_close(&xen->bus);
}

static void xen_close(struct vgpu_session *session)
{
    hang_up(session->way);
    close_fds(session);
}

/* --- opening
 * ------------------------------------------------------------------------------------------
 */

static int open_events(struct xen *xen, struct vgpu_problem *problem)
{
    struct epoll_event readable = {.events = EPOLLIN};
    int port;

    xen->events_fd = evtchn_open();
    if (xen->events_fd < 0)
        return problem_set(problem, errno == EACCES ? VGPU_PROBLEM_DENIED : VGPU_PROBLEM_NO_DEVICE,
                           "/dev/xen/evtchn: %s; load the guest's module (modprobe xen-evtchn), "
                           "and run as a user that may use it",
                           strerror(errno));
    port = evtchn_offer(xen->events_fd, xen->domain, xen->port);
    if (port < 0)
        return xen_problem("get an event channel", problem);
    xen->port = (unsigned)port;
    if (xen->epoll_fd < 0)
        xen->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (xen->epoll_fd < 0 ||
        epoll_ctl(xen->epoll_fd, EPOLL_CTL_ADD, xen->events_fd, &readable) < 0 ||
        epoll_ctl(xen->epoll_fd, EPOLL_CTL_ADD, xen->bus.fd, &readable) < 0)
        return xen_problem("make the session's descriptors", problem);
    return 0;
}

static int open_channel(struct vgpu_session *session, struct xen *xen,
                        const struct vgpu_options *options, struct vgpu_problem *problem)
{
    if (xen_host_open_store(xen, problem) < 0 || xen_host_find(xen, problem) < 0 ||
        open_events(xen, problem) < 0 ||
        xen_slot_grant(&xen->slot, xen->domain, options->window_bytes, problem) < 0 ||
        session_map(session, xen->slot.fd, xen->slot.index, xen->slot.bytes, problem) < 0 ||
        announce_life(xen, session->slot, problem) < 0)
        return -1;
    if (written_open(session) < 0)
        return xen_problem("note pages", problem);
    return xen_host_connect(session, xen, problem);
}

static int xen_open(struct vgpu_session *session, const struct vgpu_options *options,
                    const char *path, struct vgpu_problem *problem)
{
    struct xen *xen = calloc(1, sizeof(*xen));

    (void)path;
    if (!xen)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM, "out of memory");
    xen->bus.fd = xen->slot.fd = xen->events_fd = xen->epoll_fd = -1;
    session->way = xen;
    snprintf(session->info.path, sizeof(session->info.path), "%s", GNTALLOC);
    session->info.cached = true;
    if (open_channel(session, xen, options, problem) < 0) {
        if (session->slot)
            munmap(session->slot, session->slot_bytes);
        session->slot = NULL;
        xen_close(session);
        free(xen);
        session->way = NULL;
        return -1;
    }
    session->fd = xen->epoll_fd;
    return 0;
}

/* --- connecting again ------------------------------------------------------------------------ */

static uint8_t *map_slot(const struct xen_slot *slot, struct vgpu_problem *problem)
{
    uint8_t *memory =
        mmap(NULL, slot->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, slot->fd, (off_t)slot->index);

    if (memory == MAP_FAILED) {
        xen_problem("map pages of " GNTALLOC, problem);
        return NULL;
    }
    madvise(memory, slot->bytes, MADV_DONTFORK);
    return memory;
}

/* A slot with the heap's bytes, which the host serves; it is mapped where there is room. */
static uint8_t *connect_slot(struct vgpu_session *session, struct xen *xen,
                             struct vgpu_problem *problem)
{
    uint8_t *memory;

    if (xen_host_open_store(xen, problem) < 0 ||
        xen_host_await(xen, session->deadline_ns, problem) < 0 || open_events(xen, problem) < 0 ||
        xen_slot_grant(&xen->slot, xen->domain, session->slot_bytes, problem) < 0)
        return NULL;
    memory = map_slot(&xen->slot, problem);
    if (!memory)
        return NULL;
    /* The arena too: a command may lie there that waits for room. */
    memcpy(memory + VGPU_SLOT_ARENA, session->slot + VGPU_SLOT_ARENA,
           session->slot_bytes - VGPU_SLOT_ARENA);
    if (announce_life(xen, memory, problem) == 0 && xen_host_connect(session, xen, problem) == 0)
        return memory;
    munmap(memory, session->slot_bytes);
    return NULL;
}

/* The old pages count among those that the kernel lets a VM share until they are given back, so
 * the heap waits in private memory. */
static int xen_reconnect(struct vgpu_session *session, struct vgpu_problem *problem)
{
    struct xen *xen = session->way;
    uint8_t *memory;

    if (!xen->has_left && xen_slot_leave(session) < 0)
        return xen_problem("keep the heap's bytes", problem);
    xen->has_left = true;
    hang_up(xen);
    memory = connect_slot(session, xen, problem);
    if (memory && xen_slot_take_place(session, memory) == 0) {
        xen->has_left = false;
        return 0;
    }
    if (memory) {
        xen_problem("map the slot at its address", problem);
        munmap(memory, session->slot_bytes);
    }
    hang_up(xen);
    return -1;
}

const struct transport xen_transport = {
    .kind = VGPU_TRANSPORT_XEN,
    .open = xen_open,
    .ring = xen_ring,
    .sleep = xen_sleep,
    .confirm = xen_confirm,
    .state = xen_state,
    .reconnect = xen_reconnect,
    .close = xen_close,
    .forked = close_fds,
};

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One session of one domain, in a process of its own.
 *
 *   guest's pages  ── core_round() ──▶ private slot: a session of libvgpu on the VM's
 *   event channel  ◀── notify            socket, used as memory, not by its calls
 *
 * libvgpu keeps the way to the mediator: it connects again when that is started anew, and
 * says when the session has ended.  To the mediator and its worker this is a process on
 * the host like any other.
 */
#include "xen/core.h"
#include "xen/xen.h"

#include "raw.h"
#include "xenbus.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROUNDS_BEFORE_LOOK 64u
#define ROOM_WAIT_MS 5
#define SLEEP_MS 1000

struct broker {
    const struct broker_order *order;
    int control_fd;
    int events_fd;
    unsigned port;
    struct xen_grants grants;
    struct vgpu_session *session;
    struct broker_report end;
    struct core core;
};

static int report(const struct broker *broker, const struct broker_report *told)
{
    return send(broker->control_fd, told, sizeof(*told), MSG_NOSIGNAL) == (ssize_t)sizeof(*told)
               ? 0
               : -1;
}

static int refuse(struct broker *broker, int code, const char *why)
{
    struct broker_report told = {.state = BROKER_REFUSED, .code = code};

    text_copy(told.text, sizeof(told.text), why);
    report(broker, &told);
    return -1;
}

static int end(struct broker *broker, bool guest_is_gone, const char *why)
{
    broker->end.state = BROKER_CLOSED;
    broker->end.guest_is_gone = guest_is_gone;
    text_copy(broker->end.text, sizeof(broker->end.text), why);
    return -1;
}

static void end_with_watcher(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* --- opening --------------------------------------------------------------------------- */

static int open_events(struct broker *broker)
{
    char text[200];
    int port;

    broker->events_fd = evtchn_open();
    if (broker->events_fd < 0) {
        snprintf(text, sizeof(text), "the host's /dev/xen/evtchn: %s", strerror(errno));
        return refuse(broker, VGPU_PROBLEM_NO_HOST, text);
    }
    port = evtchn_bind(broker->events_fd, broker->order->domain, broker->order->request.port);
    if (port < 0) {
        snprintf(text, sizeof(text), "event channel %u cannot be bound: %s",
                 broker->order->request.port, strerror(errno));
        return refuse(broker, VGPU_PROBLEM_ARGUMENT, text);
    }
    broker->port = (unsigned)port;
    return 0;
}

static int open_grants(struct broker *broker)
{
    struct vgpu_error error;

    if (xen_grants_map(&broker->grants, broker->order->domain, &broker->order->request,
                       broker->port, &error) == 0)
        return 0;
    return refuse(broker, VGPU_PROBLEM_ARGUMENT, error.message);
}

/* From here on it opens nothing that the VM's socket's owner could not. */
static int become_owner(struct broker *broker)
{
    struct vgpu_error error;

    if (xen_become_owner(broker->order->socket_path, &error) < 0)
        return refuse(broker, VGPU_PROBLEM_NO_HOST, error.message);
    end_with_watcher(); /* which another user's process does not, unless it says so again */
    return 0;
}

static int open_session(struct broker *broker)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    struct vgpu_problem problem;
    uint64_t bytes = broker->order->request.slot_bytes + VGPU_WINDOW_HEADER_BYTES;

    options.transport = VGPU_TRANSPORT_SOCKET;
    options.path = broker->order->socket_path;
    options.window_bytes = bytes > VGPU_WINDOW_MIN_BYTES ? bytes : VGPU_WINDOW_MIN_BYTES;
    if (vgpu_open(&options, &broker->session, &problem) == 0)
        return 0;
    return refuse(broker, problem.status, problem.text);
}

/* All is open: from now on its guest's bytes are looked at. */
static int confine(struct broker *broker)
{
    struct vgpu_error error;

    return xen_confine(&error) == 0 ? 0 : refuse(broker, VGPU_PROBLEM_NO_HOST, error.message);
}

static uint8_t *alive_byte(const struct broker *broker, uint32_t page)
{
    return broker->grants.memory + page + VGPU_XEN_ALIVE;
}

static bool is_guest_there(const struct broker *broker)
{
    return __atomic_load_n(alive_byte(broker, VGPU_SLOT_GUEST), __ATOMIC_ACQUIRE) == 1;
}

static int tell_connected(struct broker *broker)
{
    const struct raw_slot own = raw_slot(broker->session);
    struct vgpu_session_info info;
    struct broker_report told = {.state = BROKER_CONNECTED};

    core_open(&broker->core, broker->grants.memory, broker->order->request.slot_bytes, own.memory,
              own.bytes);
    __atomic_store_n(alive_byte(broker, VGPU_SLOT_HOST), 1, __ATOMIC_RELEASE);
    vgpu_session_info(broker->session, &info);
    told.vm_id = info.vm_id;
    told.pool = info.pool;
    told.priority = info.priority;
    return report(broker, &told);
}

static void close_all(struct broker *broker)
{
    vgpu_close(broker->session);
    core_show_state(&broker->core, VGPU_SESSION_CLOSED);
    xen_grants_unmap(&broker->grants);
    fd_close(&broker->events_fd);
}

/* --- serving ------------------------------------------------------------------------------ */

/* The watcher says nothing: that its end is closed is what it has to say. */
static bool is_watcher_there(const struct broker *broker)
{
    struct pollfd look = {.fd = broker->control_fd, .events = POLLIN};

    return poll(&look, 1, 0) == 0;
}

static int check_ends(struct broker *broker)
{
    const char *why;

    if (!is_watcher_there(broker))
        return end(broker, false, "vgpu-xen has ended it");
    if (!is_guest_there(broker))
        return end(broker, true, "the guest's program is gone");
    why = raw_look(broker->session);
    return why ? end(broker, false, why) : 0;
}

static void tell_sides(struct broker *broker, const struct core_work *work)
{
    if (work->ring_worker)
        raw_ring(broker->session);
    if (work->notify_guest)
        evtchn_notify(broker->events_fd, broker->port);
}

static void sleep_until_told(struct broker *broker)
{
    struct pollfd waits[3] = {{.fd = broker->events_fd, .events = POLLIN},
                              {.fd = vgpu_fd(broker->session), .events = POLLIN},
                              {.fd = broker->control_fd, .events = POLLIN}};

    if (core_arm(&broker->core))
        return;
    /* Not for ever: libvgpu looks for the mediator, and a lost wake-up costs a second. */
    poll(waits, 3, broker->core.waits_for_room ? ROOM_WAIT_MS : SLEEP_MS);
    if (waits[0].revents)
        evtchn_drain(broker->events_fd);
}

static void serve(struct broker *broker)
{
    struct core_work work;

    for (unsigned round = 1;; round++) {
        if (core_round(&broker->core, &work) < 0) {
            end(broker, false, broker->core.reason);
            return;
        }
        tell_sides(broker, &work);
        if (work.moved && round % ROUNDS_BEFORE_LOOK != 0)
            continue;
        if (check_ends(broker) < 0)
            return;
        if (!work.moved)
            sleep_until_told(broker);
    }
}

int broker_run(const struct broker_order *order, int control_fd)
{
    struct broker *broker = calloc(1, sizeof(*broker));
    int result = EXIT_FAILURE;

    if (!broker)
        return EXIT_FAILURE;
    prctl(PR_SET_NAME, "vgpu-xen-broker");
    end_with_watcher();
    broker->order = order;
    broker->control_fd = control_fd;
    broker->events_fd = broker->grants.fd = -1;
    if (open_events(broker) == 0 && open_grants(broker) == 0 && become_owner(broker) == 0 &&
        open_session(broker) == 0 && confine(broker) == 0 && tell_connected(broker) == 0) {
        serve(broker);
        close_all(broker); /* before it is told: who reads that may have the pages again */
        report(broker, &broker->end);
        result = EXIT_SUCCESS;
    } else {
        close_all(broker);
    }
    free(broker);
    return result;
}

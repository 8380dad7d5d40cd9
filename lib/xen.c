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
 */
#include "vgpu/xen.h"
#include "private.h"
#include "xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xen/gntalloc.h>

#define GNTALLOC "/dev/xen/gntalloc"
#define TOKEN "vgpu"
#define CLOSE_TIMEOUT_NS (2 * NS_PER_S)
#define REASON_TIMEOUT_NS (1 * NS_PER_S)

/* Whole slots of windows of 2, 1 and 1/2 MiB: the first that the kernel gives. */
static const uint64_t default_slot_bytes[] = {
    (2u << 20) - VGPU_PAGE_BYTES, (1u << 20) - VGPU_PAGE_BYTES, (1u << 19) - VGPU_PAGE_BYTES};

struct xen {
    struct xenbus bus;
    int grants_fd, events_fd, epoll_fd;
    unsigned domain; /* the host's */
    unsigned port;   /* ours */
    uint64_t slot_index;
    uint64_t slot_bytes;
    uint32_t directory_count;
    uint32_t directory[VGPU_XEN_DIRECTORY_PAGES_MAX]; /* references */
    bool is_told;                                     /* XenStore has nodes of ours */
    bool is_connected;
    char name[VGPU_XEN_NAME_CHARS + 1];
};

/* --- XenStore -------------------------------------------------------------------------- */

static void path_of(const struct xen *xen, const char *side, const char *key,
                    char path[XENBUS_PATH_BYTES])
{
    snprintf(path, XENBUS_PATH_BYTES, "%s/%s%s%s", side, xen->name, key[0] ? "/" : "", key);
}

static int read_key(struct xen *xen, const char *key, char *ret_value, size_t bytes)
{
    char path[XENBUS_PATH_BYTES];

    path_of(xen, VGPU_XEN_BACKEND, key, path);
    return xenbus_read(&xen->bus, path, ret_value, bytes);
}

static int write_key(struct xen *xen, const char *key, const char *value)
{
    char path[XENBUS_PATH_BYTES];

    path_of(xen, VGPU_XEN_FRONTEND, key, path);
    return xenbus_write(&xen->bus, path, value);
}

static unsigned long read_number(struct xen *xen, const char *key)
{
    char value[32];

    return read_key(xen, key, value, sizeof(value)) < 0 ? 0 : strtoul(value, NULL, 10);
}

static int system_problem(const char *what, struct vgpu_problem *problem)
{
    int error = errno;

    return problem_set(
        problem, error == EACCES || error == EPERM ? VGPU_PROBLEM_DENIED : VGPU_PROBLEM_SYSTEM,
        "cannot %s: %s", what, strerror(error));
}

/* Which domain the host's program is in. */
static int find_host(struct xen *xen, struct vgpu_problem *problem)
{
    char domain[16], version[16];

    if (xenbus_open(&xen->bus, XENBUS_DEVICE) < 0)
        return problem_set(problem, errno == EACCES ? VGPU_PROBLEM_DENIED : VGPU_PROBLEM_NO_DEVICE,
                           XENBUS_DEVICE ": %s", strerror(errno));
    if (xenbus_read(&xen->bus, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, domain, sizeof(domain)) < 0)
        return problem_set(problem, VGPU_PROBLEM_NO_DEVICE,
                           "the Xen host offers no channel (XenStore has no " VGPU_XEN_BACKEND
                           "/" VGPU_XEN_DOMAIN ": %s): is vgpu-xen running there, and is this VM "
                           "registered with its UUID?",
                           strerror(errno));
    if (xenbus_read(&xen->bus, VGPU_XEN_BACKEND "/" VGPU_XEN_PROTOCOL, version, sizeof(version)) <
            0 ||
        strcmp(version, VGPU_XEN_VERSION) != 0)
        return problem_set(problem, VGPU_PROBLEM_NO_HOST,
                           "the Xen host speaks another version of the channel, expected "
                           "" VGPU_XEN_VERSION ": install this library in the host's version");
    xen->domain = (unsigned)strtoul(domain, NULL, 10);
    return 0;
}

/* --- pages ------------------------------------------------------------------------------- */

/* Grants `pages`: returns their references, which the caller frees; NULL with errno. */
static uint32_t *grant_pages(struct xen *xen, uint32_t pages, uint64_t *ret_index)
{
    struct ioctl_gntalloc_alloc_gref *request =
        calloc(1, sizeof(*request) + pages * sizeof(request->gref_ids[0]));
    uint32_t *references = malloc(pages * sizeof(*references));

    if (request && references) {
        request->domid = (uint16_t)xen->domain;
        request->flags = GNTALLOC_FLAG_WRITABLE;
        request->count = pages;
        if (ioctl(xen->grants_fd, IOCTL_GNTALLOC_ALLOC_GREF, request) == 0) {
            memcpy(references, request->gref_ids, pages * sizeof(*references));
            *ret_index = request->index;
            free(request);
            return references;
        }
    }
    free(references);
    free(request);
    return NULL;
}

/* Pages that list `references`. */
static int make_directory(struct xen *xen, const uint32_t *references, uint32_t pages)
{
    uint32_t count = (pages - 1) / VGPU_XEN_REFERENCES_A_PAGE + 1;
    size_t bytes = (size_t)count * VGPU_PAGE_BYTES;
    uint64_t index;
    uint32_t *own = grant_pages(xen, count, &index), *list;

    if (!own)
        return -1;
    memcpy(xen->directory, own, count * sizeof(*own));
    xen->directory_count = count;
    free(own);
    list = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, xen->grants_fd, (off_t)index);
    if (list == MAP_FAILED)
        return -1;
    memcpy(list, references, pages * sizeof(*references));
    munmap(list, bytes);
    return 0;
}

static int open_grants(struct xen *xen)
{
    xen->grants_fd = open(GNTALLOC, O_RDWR | O_CLOEXEC);
    return xen->grants_fd < 0 ? -1 : 0;
}

/* A slot of `bytes` with its directory, or nothing. */
static int grant_slot(struct xen *xen, uint64_t bytes)
{
    uint32_t pages = (uint32_t)(bytes / VGPU_PAGE_BYTES);
    uint32_t *references;
    int result = -1, error;

    if (open_grants(xen) < 0)
        return -1;
    references = grant_pages(xen, pages, &xen->slot_index);
    if (references)
        result = make_directory(xen, references, pages);
    error = errno;
    free(references);
    if (result < 0) {
        close(xen->grants_fd); /* gives back what was granted */
        xen->grants_fd = -1;
    }
    xen->slot_bytes = bytes;
    errno = error;
    return result;
}

static int no_pages(uint64_t bytes, struct vgpu_problem *problem)
{
    if (errno == ENOENT || errno == ENODEV)
        return problem_set(problem, VGPU_PROBLEM_NO_DEVICE,
                           GNTALLOC ": %s; load the guest's module: modprobe xen-gntalloc",
                           strerror(errno));
    if (errno != ENOSPC)
        return system_problem("open " GNTALLOC ", or grant its pages to the host", problem);
    return problem_set(problem, VGPU_PROBLEM_BUSY,
                       "this VM's kernel shares no further %llu pages with the host: let other "
                       "sessions end, or raise the limit (module parameter `limit` of "
                       "xen-gntalloc, in pages: now in "
                       "/sys/module/xen_gntalloc/parameters/limit)",
                       (unsigned long long)(bytes / VGPU_PAGE_BYTES));
}

static int share_slot(struct xen *xen, uint64_t wanted_bytes, struct vgpu_problem *problem)
{
    size_t count = sizeof(default_slot_bytes) / sizeof(default_slot_bytes[0]);
    const uint64_t *sizes = default_slot_bytes;

    if (wanted_bytes) {
        if (wanted_bytes % VGPU_PAGE_BYTES != 0 || wanted_bytes < VGPU_SLOT_MIN_BYTES ||
            wanted_bytes > VGPU_XEN_SLOT_MAX_BYTES)
            return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                               "a slot under Xen has %u to %u bytes in whole pages of %u, not "
                               "%" PRIu64,
                               VGPU_SLOT_MIN_BYTES, VGPU_XEN_SLOT_MAX_BYTES, VGPU_PAGE_BYTES,
                               wanted_bytes);
        sizes = &wanted_bytes;
        count = 1;
    }
    for (size_t i = 0; i < count; i++) {
        if (grant_slot(xen, sizes[i]) == 0)
            return 0;
        if (errno != ENOSPC)
            break;
    }
    return no_pages(xen->slot_bytes ? xen->slot_bytes : sizes[0], problem);
}

/* The kernel shall clear our byte, and tell the host, when the pages are given back, by
 * whatever end.  EINVAL: our port is not one that it knows. */
static int ask_for_notice(const struct xen *xen)
{
    struct ioctl_gntalloc_unmap_notify notify = {
        .index = xen->slot_index + VGPU_SLOT_GUEST + VGPU_XEN_ALIVE,
        .action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
        .event_channel_port = xen->port,
    };

    return ioctl(xen->grants_fd, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &notify);
}

/* Our byte says that we are here. */
static int announce_life(struct vgpu_session *session, const struct xen *xen)
{
    session->slot[VGPU_SLOT_GUEST + VGPU_XEN_ALIVE] = 1;
    return ask_for_notice(xen);
}

static bool is_host_there(const struct vgpu_session *session)
{
    return __atomic_load_n(session->slot + VGPU_SLOT_HOST + VGPU_XEN_ALIVE, __ATOMIC_ACQUIRE) == 1;
}

/* --- the conversation ------------------------------------------------------------------------ */

static int choose_name(struct xen *xen)
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    uint64_t number;
    ssize_t got;

    if (fd < 0)
        return -1;
    got = read(fd, &number, sizeof(number));
    close(fd);
    if (got != (ssize_t)sizeof(number))
        return -1;
    snprintf(xen->name, sizeof(xen->name), "%016" PRIx64, number);
    return 0;
}

static int tell_host(struct xen *xen)
{
    char text[VGPU_XEN_DIRECTORY_PAGES_MAX * 11 + 1], path[XENBUS_PATH_BYTES];
    size_t at = 0;

    path_of(xen, VGPU_XEN_BACKEND, VGPU_XEN_STATE, path);
    if (xenbus_watch(&xen->bus, path, TOKEN) < 0)
        return -1;
    xen->is_told = true;
    for (uint32_t i = 0; i < xen->directory_count; i++)
        at +=
            (size_t)snprintf(text + at, sizeof(text) - at, "%s%u", i ? " " : "", xen->directory[i]);
    if (write_key(xen, VGPU_XEN_PROTOCOL, VGPU_XEN_VERSION) < 0 ||
        write_key(xen, VGPU_XEN_DIRECTORY, text) < 0)
        return -1;
    snprintf(text, sizeof(text), "%" PRIu64, xen->slot_bytes);
    if (write_key(xen, VGPU_XEN_SLOT_BYTES, text) < 0)
        return -1;
    snprintf(text, sizeof(text), "%u", xen->port);
    if (write_key(xen, VGPU_XEN_EVENT_CHANNEL, text) < 0)
        return -1;
    return write_key(xen, VGPU_XEN_STATE, VGPU_XEN_INITIALISING);
}

static int refused(struct xen *xen, struct vgpu_problem *problem)
{
    char error[300] = "it does not say why; look at its log";
    unsigned long code = read_number(xen, VGPU_XEN_CODE);

    read_key(xen, VGPU_XEN_ERROR, error, sizeof(error));
    if (code < VGPU_PROBLEM_NO_DEVICE || code > VGPU_PROBLEM_SYSTEM)
        code = VGPU_PROBLEM_NO_HOST;
    return problem_set(problem, (int)code, "the Xen host refused: %s", error);
}

/* Until the host says something of this session, or `end_ns`.  False: the time is over. */
static bool await_state(struct xen *xen, int64_t end_ns, char *ret_state, size_t bytes)
{
    for (;;) {
        struct pollfd wait = {.fd = xen->bus.fd, .events = POLLIN};
        struct xenbus_event event;
        int64_t left_ns;

        while (xenbus_next_event(&xen->bus, &event) > 0)
            ;
        if (read_key(xen, VGPU_XEN_STATE, ret_state, bytes) == 0)
            return true;
        left_ns = end_ns - clock_ns();
        if (left_ns <= 0)
            return false;
        poll(&wait, 1, (int)((left_ns < NS_PER_S ? left_ns : NS_PER_S) / NS_PER_MS) + 1);
    }
}

/* Until the host says of the session that it has ended, or forgets it, or `end_ns`. */
static void await_end(struct xen *xen, int64_t end_ns)
{
    char state[32];

    while (read_key(xen, VGPU_XEN_STATE, state, sizeof(state)) == 0 &&
           strcmp(state, VGPU_XEN_CONNECTED) == 0 && clock_ns() < end_ns) {
        struct pollfd wait = {.fd = xen->bus.fd, .events = POLLIN};
        struct xenbus_event event;

        poll(&wait, 1, 100);
        while (xenbus_next_event(&xen->bus, &event) > 0)
            ;
    }
}

static int connect_host(struct vgpu_session *session, struct xen *xen, struct vgpu_problem *problem)
{
    char state[32], pool[4] = "";

    if (choose_name(xen) < 0 || tell_host(xen) < 0)
        return system_problem("tell the host of the session: write into XenStore below "
                              "" VGPU_XEN_FRONTEND,
                              problem);
    if (!await_state(xen, session->open_deadline_ns, state, sizeof(state)))
        return problem_set(problem, VGPU_PROBLEM_TIMEOUT,
                           "vgpu-xen on the Xen host said nothing in time: look at its log");
    if (strcmp(state, VGPU_XEN_CONNECTED) != 0)
        return refused(xen, problem);
    xen->is_connected = true;
    session->info.vm_id = (uint32_t)read_number(xen, VGPU_XEN_VM_ID);
    session->info.priority = (uint32_t)read_number(xen, VGPU_XEN_PRIORITY);
    if (read_key(xen, VGPU_XEN_POOL, pool, sizeof(pool)) == 0)
        session->info.pool = pool[0];
    return 0;
}

/* --- the transport's functions ------------------------------------------------------------------
 */

static void xen_ring(struct vgpu_session *session)
{
    const struct xen *xen = session->way;

    evtchn_notify(xen->events_fd, xen->port);
}

/* A domain that was saved and restored is a new one to Xen: its kernel has forgotten our port.
 * One that is another's by now must not be closed at all, and the pages would close it too. */
static void leave_lost_port(struct xen *xen)
{
    if (xen->events_fd < 0 || xen->grants_fd < 0 || ask_for_notice(xen) == 0 || errno != EINVAL)
        return;
    if (evtchn_is_free(xen->port))
        evtchn_abandon(xen->events_fd);
    else
        xen->grants_fd = -1;
    xen->events_fd = -1;
}

/* That the broker is gone is seen before vgpu-xen can have written why. */
static void end_session(struct vgpu_session *session, struct xen *xen)
{
    char error[300] = "";

    xen->is_connected = false;
    leave_lost_port(xen);
    await_end(xen, clock_ns() + REASON_TIMEOUT_NS);
    read_key(xen, VGPU_XEN_ERROR, error, sizeof(error));
    session_end(session, VGPU_PROBLEM_CLOSED,
                "the Xen host has ended the session%s%s: open a new one", error[0] ? ": " : "",
                error);
}

/* The host's byte says most; XenStore also what happened while this VM was saved. */
static void check_host(struct vgpu_session *session, struct xen *xen, bool has_news)
{
    char state[32];
    bool is_there = is_host_there(session);

    if (is_there && has_news)
        is_there = read_key(xen, VGPU_XEN_STATE, state, sizeof(state)) == 0 &&
                   strcmp(state, VGPU_XEN_CONNECTED) == 0;
    if (!is_there)
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
    while (waits[1].revents && xenbus_next_event(&xen->bus, &event) > 0)
        has_news = true;
    if (session_usable(session))
        check_host(session, xen, has_news);
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

    close_fd(&xen->grants_fd);
    close_fd(&xen->events_fd);
    close_fd(&xen->epoll_fd);
    xenbus_close(&xen->bus);
}

/* Asks the host to let the pages go, and takes back what stands in XenStore.  Without its
 * answer the kernel keeps the pages until they are let go. */
static void say_goodbye(struct xen *xen)
{
    char path[XENBUS_PATH_BYTES];

    if (xen->is_connected && write_key(xen, VGPU_XEN_STATE, VGPU_XEN_CLOSING) == 0)
        await_end(xen, clock_ns() + CLOSE_TIMEOUT_NS);
    path_of(xen, VGPU_XEN_FRONTEND, "", path);
    xenbus_remove(&xen->bus, path);
}

static void xen_close(struct vgpu_session *session)
{
    struct xen *xen = session->way;

    if (xen->is_told)
        say_goodbye(xen);
    leave_lost_port(xen);
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
    port = evtchn_offer(xen->events_fd, xen->domain, 0);
    if (port < 0)
        return system_problem("get an event channel", problem);
    xen->port = (unsigned)port;
    xen->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (xen->epoll_fd < 0 ||
        epoll_ctl(xen->epoll_fd, EPOLL_CTL_ADD, xen->events_fd, &readable) < 0 ||
        epoll_ctl(xen->epoll_fd, EPOLL_CTL_ADD, xen->bus.fd, &readable) < 0)
        return system_problem("make the session's descriptors", problem);
    return 0;
}

static int open_channel(struct vgpu_session *session, struct xen *xen,
                        const struct vgpu_options *options, struct vgpu_problem *problem)
{
    if (find_host(xen, problem) < 0 || open_events(xen, problem) < 0 ||
        share_slot(xen, options->window_bytes, problem) < 0 ||
        session_map(session, xen->grants_fd, xen->slot_index, xen->slot_bytes, problem) < 0)
        return -1;
    if (announce_life(session, xen) < 0)
        return system_problem("ask the kernel to tell the host of our end", problem);
    return connect_host(session, xen, problem);
}

static int xen_open(struct vgpu_session *session, const struct vgpu_options *options,
                    const char *path, struct vgpu_problem *problem)
{
    struct xen *xen = calloc(1, sizeof(*xen));

    (void)path;
    if (!xen)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM, "out of memory");
    xen->bus.fd = xen->grants_fd = xen->events_fd = xen->epoll_fd = -1;
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

const struct transport xen_transport = {
    .kind = VGPU_TRANSPORT_XEN,
    .open = xen_open,
    .ring = xen_ring,
    .sleep = xen_sleep,
    .state = xen_state,
    .close = xen_close,
    .forked = close_fds,
};

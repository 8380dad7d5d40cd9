/* SPDX-License-Identifier: Apache-2.0 */
/* The conversation with vgpu-xen through XenStore (vgpu/xen.h has its words). */
#include "xen_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OWN_DOMAIN "domid" /* of the guest's area; the toolstack's */
#define TOKEN "vgpu"
#define CLOSE_TIMEOUT_NS (2 * NS_PER_S)

int xen_problem(const char *what, struct vgpu_problem *problem)
{
    int error = errno;

    return problem_set(
        problem, error == EACCES || error == EPERM ? VGPU_PROBLEM_DENIED : VGPU_PROBLEM_SYSTEM,
        "cannot %s: %s", what, strerror(error));
}

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

int xen_host_open_store(struct xen *xen, struct vgpu_problem *problem)
{
    if (xenbus_open(&xen->bus, XENBUS_DEVICE) < 0)
        return problem_set(problem, errno == EACCES ? VGPU_PROBLEM_DENIED : VGPU_PROBLEM_NO_DEVICE,
                           XENBUS_DEVICE ": %s", strerror(errno));
    if (xenbus_read(&xen->bus, OWN_DOMAIN, xen->own_domain, sizeof(xen->own_domain)) < 0)
        xen->own_domain[0] = '\0';
    return 0;
}

bool xen_host_sees_other_domain(struct xen *xen)
{
    char domain[sizeof(xen->own_domain)];

    return xen->own_domain[0] && xenbus_read(&xen->bus, OWN_DOMAIN, domain, sizeof(domain)) == 0 &&
           strcmp(domain, xen->own_domain) != 0;
}

int xen_host_find(struct xen *xen, struct vgpu_problem *problem)
{
    char domain[16], version[16];

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

/* Until something that is watched changes, for a second, or until `end_ns`: false, it is over. */
static bool await_news(struct xen *xen, int64_t end_ns)
{
    struct pollfd wait = {.fd = xen->bus.fd, .events = POLLIN};
    int64_t left_ns = end_ns - clock_ns();
    struct xenbus_event event;

    if (left_ns <= 0)
        return false;
    poll(&wait, 1, (int)((left_ns < NS_PER_S ? left_ns : NS_PER_S) / NS_PER_MS) + 1);
    while (xenbus_next_event(&xen->bus, &event) > 0)
        ;
    return true;
}

/* The host learns of a restored VM later than the VM itself. */
int xen_host_await(struct xen *xen, int64_t end_ns, struct vgpu_problem *problem)
{
    struct vgpu_problem why;

    if (xenbus_watch(&xen->bus, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, TOKEN) < 0)
        return xen_problem("watch " VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, problem);
    while (xen_host_find(xen, &why) < 0) {
        if (why.status != VGPU_PROBLEM_NO_DEVICE)
            return problem_copy(problem, &why);
        if (!await_news(xen, end_ns))
            return problem_set(problem, VGPU_PROBLEM_NO_HOST, "%s", why.text);
    }
    return 0;
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
    for (uint32_t i = 0; i < xen->slot.directory_count; i++)
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%u", i ? " " : "",
                               xen->slot.directory[i]);
    if (write_key(xen, VGPU_XEN_PROTOCOL, VGPU_XEN_VERSION) < 0 ||
        write_key(xen, VGPU_XEN_DIRECTORY, text) < 0)
        return -1;
    snprintf(text, sizeof(text), "%" PRIu64, xen->slot.bytes);
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

/* It said nothing of this session; of all of them it may. */
static int unanswered(struct xen *xen, struct vgpu_problem *problem)
{
    char error[300];

    if (xenbus_read(&xen->bus, VGPU_XEN_BACKEND "/" VGPU_XEN_ERROR, error, sizeof(error)) == 0)
        return problem_set(problem, VGPU_PROBLEM_BUSY, "the Xen host lets the session wait: %s",
                           error);
    return problem_set(problem, VGPU_PROBLEM_TIMEOUT,
                       "vgpu-xen on the Xen host said nothing in time: look at its log");
}

/* Until the host says something of this session, or `end_ns`.  False: the time is over. */
static bool await_state(struct xen *xen, int64_t end_ns, char *ret_state, size_t bytes)
{
    while (read_key(xen, VGPU_XEN_STATE, ret_state, bytes) < 0) {
        if (!await_news(xen, end_ns))
            return false;
    }
    return true;
}

bool xen_host_is_serving(struct xen *xen)
{
    char state[32];

    return read_key(xen, VGPU_XEN_STATE, state, sizeof(state)) == 0 &&
           strcmp(state, VGPU_XEN_CONNECTED) == 0;
}

void xen_host_read_error(struct xen *xen, char *ret_text, size_t bytes)
{
    if (read_key(xen, VGPU_XEN_ERROR, ret_text, bytes) < 0)
        ret_text[0] = '\0';
}

void xen_host_await_end(struct xen *xen, int64_t end_ns)
{
    while (xen_host_is_serving(xen) && clock_ns() < end_ns) {
        struct pollfd wait = {.fd = xen->bus.fd, .events = POLLIN};
        struct xenbus_event event;

        poll(&wait, 1, 100);
        while (xenbus_next_event(&xen->bus, &event) > 0)
            ;
    }
}

int xen_host_connect(struct vgpu_session *session, struct xen *xen, struct vgpu_problem *problem)
{
    char state[32], pool[4] = "";

    if (choose_name(xen) < 0 || tell_host(xen) < 0)
        return xen_problem("tell the host of the session: write into XenStore below "
                           "" VGPU_XEN_FRONTEND,
                           problem);
    if (!await_state(xen, session->deadline_ns, state, sizeof(state)))
        return unanswered(xen, problem);
    if (strcmp(state, VGPU_XEN_CONNECTED) != 0)
        return refused(xen, problem);
    xen->is_connected = true;
    session->info.vm_id = (uint32_t)read_number(xen, VGPU_XEN_VM_ID);
    session->info.priority = (uint32_t)read_number(xen, VGPU_XEN_PRIORITY);
    if (read_key(xen, VGPU_XEN_POOL, pool, sizeof(pool)) == 0)
        session->info.pool = pool[0];
    return 0;
}

void xen_host_leave(struct xen *xen)
{
    char path[XENBUS_PATH_BYTES];

    if (xen->is_connected && write_key(xen, VGPU_XEN_STATE, VGPU_XEN_CLOSING) == 0)
        xen_host_await_end(xen, clock_ns() + CLOSE_TIMEOUT_NS);
    path_of(xen, VGPU_XEN_FRONTEND, "", path);
    xenbus_remove(&xen->bus, path);
    xen->is_told = xen->is_connected = false;
}

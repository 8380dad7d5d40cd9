/* SPDX-License-Identifier: Apache-2.0 */
/* A session of a guest's process through vgpu_guest.ko: one open /dev/vgpu<n> is
 * one session; the kernel sees to its end. */
#include "private.h"
#include "vgpu/guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NODES_MAX 64u

static int open_failed(const char *path, int error, struct vgpu_problem *problem)
{
    static const struct {
        int error;
        int status;
        const char *text;
    } known[] = {
        {ENOENT, VGPU_PROBLEM_NO_DEVICE,
         "there is no such device: is vgpu_guest.ko loaded, and does the VM have a vgpu-stub?"},
        {ENXIO, VGPU_PROBLEM_NO_DEVICE, "the VM's device has no window: its host gives it none"},
        {ENODEV, VGPU_PROBLEM_NO_DEVICE, "the device is gone"},
        {EACCES, VGPU_PROBLEM_DENIED,
         "this user may not: join the group vgpu (udev rule), or "
         "run as root"},
        {EPERM, VGPU_PROBLEM_DENIED,
         "the host's administrator has quarantined this VM or disabled its pool, or this process "
         "may not open devices; the mediator's log says"},
        {EBUSY, VGPU_PROBLEM_BUSY, "all sessions of this VM are taken: end another program"},
        {EHOSTDOWN, VGPU_PROBLEM_NO_HOST, "no mediator is connected on the host: is it running?"},
        {ECONNREFUSED, VGPU_PROBLEM_NO_HOST, "the mediator refused the session: its log says why"},
        {ETIMEDOUT, VGPU_PROBLEM_NO_HOST, "the host did not answer in time (open_timeout_ms)"},
    };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (known[i].error == error)
            return problem_set(problem, known[i].status, "%s: %s (%s)", path, known[i].text,
                               strerror(error));
    }
    return problem_set(problem, VGPU_PROBLEM_SYSTEM, "%s: cannot open a session: %s", path,
                       strerror(error));
}

static int take_info(struct vgpu_session *session, int fd, struct vgpu_problem *problem)
{
    struct vgpu_guest_info info;

    if (ioctl(fd, VGPU_IOCTL_INFO, &info) < 0)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM,
                           "%s does not answer like a vgpu device: %s; is the module of this "
                           "version loaded?",
                           session->info.path, strerror(errno));
    session->info.vm_id = info.vm_id;
    session->info.pool = (char)(info.pool & 0x7f);
    session->info.priority = info.priority;
    session->info.slot = info.slot;
    session->info.cached = info.cached;
    return session_map(session, fd, 0, info.slot_bytes, problem);
}

static int open_path(struct vgpu_session *session, const char *path, struct vgpu_problem *problem)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return open_failed(path, errno, problem);
    snprintf(session->info.path, sizeof(session->info.path), "%s", path);
    if (take_info(session, fd, problem) < 0) {
        close(fd);
        return -1;
    }
    session->fd = fd;
    return 0;
}

static int compare_numbers(const void *a, const void *b)
{
    const unsigned *first = a, *second = b;

    return (*first > *second) - (*first < *second);
}

static unsigned list_nodes(unsigned numbers[NODES_MAX])
{
    DIR *directory = opendir("/dev");
    const struct dirent *entry;
    unsigned count = 0;
    char end;

    while (directory && count < NODES_MAX && (entry = readdir(directory))) {
        /* NOLINTNEXTLINE(cert-err34-c): the kernel makes these names */
        if (sscanf(entry->d_name, "vgpu%u%c", &numbers[count], &end) == 1)
            count++;
    }
    if (directory)
        closedir(directory);
    qsort(numbers, count, sizeof(numbers[0]), compare_numbers);
    return count;
}

/* The first that has a free session. */
static int open_any(struct vgpu_session *session, struct vgpu_problem *problem)
{
    unsigned numbers[NODES_MAX], count = list_nodes(numbers);
    struct vgpu_problem first = {0}, now;
    char path[32];

    for (unsigned i = 0; i < count; i++) {
        snprintf(path, sizeof(path), "/dev/vgpu%u", numbers[i]);
        if (open_path(session, path, &now) == 0)
            return 0;
        if (!first.status)
            first = now;
    }
    return count ? problem_copy(problem, &first) : open_failed("/dev/vgpu0", ENOENT, problem);
}

static int module_open(struct vgpu_session *session, const struct vgpu_options *options,
                       const char *path, struct vgpu_problem *problem)
{
    (void)options;
    return path ? open_path(session, path, problem) : open_any(session, problem);
}

static void module_ring(struct vgpu_session *session)
{
    if (ioctl(session->fd, VGPU_IOCTL_RING) < 0)
        session_end(session, VGPU_PROBLEM_CLOSED, "the doorbell of %s does not ring: %s",
                    session->info.path, strerror(errno));
}

static uint32_t module_state(struct vgpu_session *session)
{
    struct vgpu_guest_info info;

    if (ioctl(session->fd, VGPU_IOCTL_INFO, &info) < 0)
        return VGPU_SESSION_CLOSED;
    return session_state(session, info.state);
}

static void module_sleep(struct vgpu_session *session, int64_t timeout_ns)
{
    struct pollfd wait = {.fd = session->fd, .events = POLLIN};
    const struct timespec time = {.tv_sec = timeout_ns / NS_PER_S,
                                  .tv_nsec = timeout_ns % NS_PER_S};
    uint64_t count;

    if (ppoll(&wait, 1, timeout_ns < 0 ? NULL : &time, NULL) <= 0)
        return;
    if (wait.revents & POLLIN && read(session->fd, &count, sizeof(count)) < 0 && errno != EAGAIN &&
        errno != EINTR)
        session_end(session, VGPU_PROBLEM_CLOSED, "%s cannot be read: %s", session->info.path,
                    strerror(errno));
    if (wait.revents & (POLLHUP | POLLERR | POLLNVAL))
        session_end(session, VGPU_PROBLEM_CLOSED,
                    "the session of %s was ended by the host (state %u): open a new one; "
                    "the mediator's log says why",
                    session->info.path, module_state(session));
}

static void module_close(struct vgpu_session *session)
{
    if (session->fd >= 0)
        close(session->fd);
    session->fd = -1;
}

const struct transport module_transport = {
    .kind = VGPU_TRANSPORT_MODULE,
    .open = module_open,
    .ring = module_ring,
    .sleep = module_sleep,
    .state = module_state,
    .close = module_close,
    .forked = module_close,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* Event channels by the kernel's /dev/xen/evtchn: reading a port masks it, writing it
 * back lets it come again. */
#include "xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint16_t domid_t; /* which the next header of some versions needs */
#include <xen/evtchn.h>

#define PORTS_AT_ONCE 16
#define LOCK_TRIES 1000u
#define LOCK_PAUSE_NS 1000000
#define LAST_WAIT_MS 1000

int evtchn_open(void)
{
    return open("/dev/xen/evtchn", O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

static int offer(int fd, unsigned domain)
{
    struct ioctl_evtchn_bind_unbound_port bind = {.remote_domain = domain};

    return ioctl(fd, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &bind);
}

/* `port`, or another one where somebody has it: Xen gives the lowest that is free, so those
 * below are asked for and given back. */
static int offer_number(int fd, unsigned domain, unsigned port)
{
    int first = offer(fd, domain), next = first;

    while (next >= 0 && (unsigned)next < port)
        next = offer(fd, domain);
    for (int i = first; i >= 0 && i < (int)port; i++) {
        struct ioctl_evtchn_unbind unbind = {.port = (unsigned)i};

        ioctl(fd, IOCTL_EVTCHN_UNBIND, &unbind); /* fails for those that are not ours */
    }
    return next < 0 ? offer(fd, domain) : next;
}

int evtchn_offer(int fd, unsigned domain, unsigned wanted_port)
{
    int lock = evtchn_lock(), given = offer_number(fd, domain, wanted_port);

    evtchn_unlock(lock);
    return given;
}

int evtchn_bind(int fd, unsigned domain, unsigned port)
{
    struct ioctl_evtchn_bind_interdomain bind = {.remote_domain = domain, .remote_port = port};

    return ioctl(fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, &bind);
}

void evtchn_notify(int fd, unsigned port)
{
    struct ioctl_evtchn_notify notify = {.port = port};

    ioctl(fd, IOCTL_EVTCHN_NOTIFY, &notify); /* fails where the other side has gone */
}

void evtchn_drain(int fd)
{
    uint32_t ports[PORTS_AT_ONCE];
    ssize_t got;

    do {
        got = read(fd, ports, sizeof(ports));
    } while (got < 0 && errno == EINTR);
    if (got > 0 && write(fd, ports, (size_t)got) != got)
        return; /* a port that was closed meanwhile */
}

/* --- ports that a kernel has forgotten ------------------------------------------------------ */

int evtchn_lock(void)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    int fd = evtchn_open();

    for (unsigned i = 0; fd >= 0 && i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
            break;
        nanosleep(&pause, NULL);
    }
    return fd;
}

void evtchn_unlock(int lock)
{
    if (lock < 0)
        return;
    flock(lock, LOCK_UN); /* a child may have it open still */
    close(lock);
}

bool evtchn_is_free(unsigned port)
{
    int fd = evtchn_open();
    int given = fd < 0 ? -1 : offer_number(fd, 0, port);

    if (fd >= 0)
        close(fd);
    return given >= 0 && (unsigned)given == port;
}

/* Whether the kernel's own bug ends the machine, and not only who ran into it. */
static bool panics_on_bugs(void)
{
    FILE *file = fopen("/proc/sys/kernel/panic_on_oops", "re");
    int first = file ? fgetc(file) : '0';

    if (file)
        fclose(file);
    return first != '0';
}

/* When nobody else has `fd` open any more, which the pipe's end says; or in a while: a child
 * that another thread makes meanwhile has both. */
static _Noreturn void close_last(int fd, const int pipe_fds[2])
{
    struct pollfd end = {.fd = pipe_fds[0]};

    close(pipe_fds[1]);
    poll(&end, 1, LAST_WAIT_MS);
    close(fd);
    _exit(0);
}

void evtchn_abandon(int fd)
{
    int pipe_fds[2];
    long child;

    if (panics_on_bugs() || pipe2(pipe_fds, O_CLOEXEC) < 0)
        return;
    /* Not fork(): the program gets no SIGCHLD, and none of its handlers run. */
    child = syscall(SYS_clone, 0L, NULL, NULL, NULL, 0L);
    if (child == 0)
        close_last(fd, pipe_fds);
    if (child > 0)
        close(fd);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    while (child > 0 && waitpid((pid_t)child, NULL, __WCLONE) < 0 && errno == EINTR)
        ;
}

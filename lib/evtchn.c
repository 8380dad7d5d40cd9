/* SPDX-License-Identifier: Apache-2.0 */
/* Event channels by the kernel's /dev/xen/evtchn: reading a port masks it, writing it
 * back lets it come again. */
#include "xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

typedef uint16_t domid_t; /* which the next header of some versions needs */
#include <xen/evtchn.h>

#define PORTS_AT_ONCE 16

int evtchn_open(void)
{
    return open("/dev/xen/evtchn", O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

int evtchn_offer(int fd, unsigned domain)
{
    struct ioctl_evtchn_bind_unbound_port bind = {.remote_domain = domain};

    return ioctl(fd, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &bind);
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

bool evtchn_is_free(unsigned port)
{
    int fd = evtchn_open();
    int next = fd < 0 ? -1 : evtchn_offer(fd, 0);

    if (fd >= 0)
        close(fd);
    return next >= 0 && (unsigned)next <= port; /* Xen gives the lowest that is free */
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

/* When nobody else has `fd` open any more, which the pipe's end says. */
static _Noreturn void close_last(int fd, const int pipe_fds[2])
{
    char byte;

    close(pipe_fds[1]);
    while (read(pipe_fds[0], &byte, 1) < 0 && errno == EINTR)
        ;
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

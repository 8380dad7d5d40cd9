/* SPDX-License-Identifier: Apache-2.0 */
/* Event channels by the kernel's /dev/xen/evtchn: reading a port masks it, writing it
 * back lets it come again. */
#include "xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
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

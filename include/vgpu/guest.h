/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * vgpu/guest.h - what /dev/vgpu<n> of vgpu_guest.ko offers to programs.
 *
 *   open(2)   takes a free session slot and has the host start its worker;
 *             returns when the session is ready.  EBUSY: all slots are taken.
 *             EHOSTDOWN: no mediator.  ECONNREFUSED, or another code that the
 *             mediator gave: it refused.  ETIMEDOUT: it did not answer.  ENXIO:
 *             the device has no window.  EINTR: a signal came; nothing is open.
 *             Module parameter open_timeout_ms bounds the wait, also the wait
 *             for a slot whose last worker still ends.  O_NONBLOCK changes only
 *             read(2).
 *   mmap(2)   any part of this session's slot, cached; offset 0 is its start.
 *             Shared and not executable only.  Not inherited by fork(2), not
 *             in core dumps.  A mapping keeps the session, as a descriptor does.
 *             After a reset of the device it is memory without a worker; after
 *             an unplug or unbind touching it raises SIGBUS.
 *   read(2)   8 bytes, a uint64_t: how often an interrupt found new completions
 *             since the last read, at least 1; waits while 0, EAGAIN with
 *             O_NONBLOCK.  EPIPE: 0, and the session ended.
 *   poll(2)   POLLIN when completions were found since the last read; POLLHUP
 *             when the session ended (not READY, LOST or OPENING any more).
 *   write(2)  8 bytes of anything, or VGPU_IOCTL_RING: rings the doorbell.
 *   ioctl(2)  below.
 *   close(2)  of the last descriptor and mapping ends the session, and tells
 *             the host.  dup(2) and fork(2) share a session.
 *
 * When the device is gone every call gives ENODEV, and poll POLLHUP | POLLERR.
 */
#ifndef VGPU_GUEST_H
#define VGPU_GUEST_H

#ifdef __KERNEL__
#include <linux/ioctl.h>
#include <linux/types.h>
#else
#include <stdint.h>
#include <sys/ioctl.h>
#endif

struct vgpu_guest_info {
    uint32_t version; /* device's, VGPU_REG_VERSION */
    uint32_t vm_id;
    uint32_t pool;     /* ASCII letter */
    uint32_t priority; /* 0..2 */
    uint64_t slot_bytes;
    uint32_t slot;
    uint32_t slot_count;
    uint32_t state;  /* VGPU_SESSION_*, as the device says now */
    uint32_t code;   /* errno value, with VGPU_SESSION_REFUSED */
    uint32_t cached; /* 1: the mapping is cached; 0: the kernel gave an uncached one */
    uint32_t reserved;
};

#define VGPU_IOCTL_INFO _IOR('V', 0xa0, struct vgpu_guest_info)
#define VGPU_IOCTL_RING _IO('V', 0xa1)

#endif /* VGPU_GUEST_H */

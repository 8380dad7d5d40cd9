/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xen_guest.h - a session of a program in a Xen guest.
 *
 *   xen.c        the transport: opens, waits, sees the end, connects again
 *   xen_host.c   what is said to vgpu-xen, and by it, in XenStore
 *   xen_slot.c   the pages that are granted, and what stands at their address
 */
#ifndef VGPU_LIB_XEN_GUEST_H
#define VGPU_LIB_XEN_GUEST_H

#include "private.h"
#include "vgpu/xen.h"
#include "xenbus.h"

#define GNTALLOC "/dev/xen/gntalloc"

struct xen_slot {
    int fd;         /* whose pages they are; -1: none */
    uint64_t index; /* where mmap(2) finds them */
    uint64_t bytes;
    uint32_t directory_count;
    uint32_t directory[VGPU_XEN_DIRECTORY_PAGES_MAX]; /* references */
};

struct xen {
    struct xenbus bus;
    struct xen_slot slot;
    int events_fd, epoll_fd;
    unsigned domain;     /* the host's */
    char own_domain[16]; /* "": not told */
    unsigned port;       /* ours; 0: none yet */
    bool is_told;        /* XenStore has nodes of ours */
    bool is_connected;
    bool has_left; /* private memory stands in the slot's place */
    char name[VGPU_XEN_NAME_CHARS + 1];
};

/* What errno says: DENIED or SYSTEM, "cannot `what`"; -1. */
int xen_problem(const char *what, struct vgpu_problem *problem);

/* --- xen_host.c ------------------------------------------------------------------------- */

/* XenStore, and which domain this is. */
int xen_host_open_store(struct xen *xen, struct vgpu_problem *problem);

/* This VM is another domain than when the store was opened. */
bool xen_host_sees_other_domain(struct xen *xen);

/* Which domain the host's program is in; NO_DEVICE: it has not said so. */
int xen_host_find(struct xen *xen, struct vgpu_problem *problem);

/* The same, and waits for it until `end_ns`; NO_HOST: the time is over. */
int xen_host_await(struct xen *xen, int64_t end_ns, struct vgpu_problem *problem);

/* Tells it of slot and port, and waits until session->deadline_ns for its answer. */
int xen_host_connect(struct vgpu_session *session, struct xen *xen, struct vgpu_problem *problem);

/* It says that the session is connected. */
bool xen_host_is_serving(struct xen *xen);

/* Why it ended the session; "": it does not say. */
void xen_host_read_error(struct xen *xen, char *ret_text, size_t bytes);

/* Until it says of the session that it has ended, or forgets it, or `end_ns`. */
void xen_host_await_end(struct xen *xen, int64_t end_ns);

/* Asks it to let the pages go, and takes back what stands in XenStore.  Without its answer the
 * kernel keeps the pages until they are let go. */
void xen_host_leave(struct xen *xen);

/* --- xen_slot.c ------------------------------------------------------------------------- */

/* Grants a slot with its directory to `domain`: of `wanted_bytes`; 0: the first of the usual
 * sizes that the kernel gives. */
int xen_slot_grant(struct xen_slot *slot, unsigned domain, uint64_t wanted_bytes,
                   struct vgpu_problem *problem);

/* Gives up the descriptor.  The kernel takes the pages back once they are mapped nowhere. */
void xen_slot_close(struct xen_slot *slot);

/* The kernel shall clear our byte, and tell the host through `port`, when the pages are given
 * back, by whatever end.  -1 with EINVAL: the port is not one that it knows. */
int xen_slot_notify(const struct xen_slot *slot, unsigned port);

/* It shall do neither. */
void xen_slot_notify_nobody(const struct xen_slot *slot);

/* Private memory with the slot's bytes takes its place: its own pages are mapped no more. */
int xen_slot_leave(struct vgpu_session *session);

/* `memory`, mapped elsewhere and as large, takes the place of the session's slot. */
int xen_slot_take_place(struct vgpu_session *session, uint8_t *memory);

#endif

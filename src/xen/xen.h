/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xen/ - vgpu-xen: brings sessions of Xen domains to the mediator, which knows nothing of
 * Xen.  docs/xen.md has the whole picture.
 *
 *   watch*.c    XenStore: which domain is which VM; starts and ends brokers (watch.h)
 *      │ forks one a session: broker_run()
 *      ▼
 *   broker.c    a session: pages and event channel here, the VM's socket there
 *   grants.c    maps what a guest granted
 *   confine.c   what it cannot do from then on
 *   core.c      what is copied when (core.h), pure
 *   request.c   what a guest wrote into XenStore, checked; pure
 *
 * The kernel's interfaces are used as they are, like in lib/xen.c: no library of Xen is
 * needed to build or to run.  It runs in Dom0, or in a worker domain to which vgpu-relay in
 * Dom0 gives places in the guests' areas of XenStore (worker.h).
 */
#ifndef VGPU_XEN_ROOM_H
#define VGPU_XEN_ROOM_H

#include "base/base.h"
#include "vgpu/xen.h"

#include <limits.h>

#define XEN_SESSIONS_MAX 32u /* a domain: those that are over and not yet forgotten too */

/* --- request.c -------------------------------------------------------------------- */

/* What a guest asks for, in words of its own. */
struct xen_words {
    char version[16];
    char slot_bytes[16];
    char directory[256];
    char event_channel[16];
};

/* What it asks for, checked. */
struct xen_request {
    uint32_t slot_bytes; /* whole pages, VGPU_SLOT_MIN_BYTES to VGPU_XEN_SLOT_MAX_BYTES */
    uint32_t port;
    uint32_t directory_count; /* as many as the slot's pages need */
    uint32_t directory[VGPU_XEN_DIRECTORY_PAGES_MAX];
};

/* -1 and EINVAL: the error says what was expected and what came. */
int xen_request_parse(const struct xen_words *words, struct xen_request *ret_request,
                      struct vgpu_error *error);

/* Is it a session's name? */
bool xen_name_is_valid(const char *name);

/* The UUID in the value of a domain's `vm` node: "/vm/<uuid>". */
bool xen_uuid_of_path(const char *path, char ret_uuid[37]);

/* Whether nobody but `host` (and Dom0) can write a node with these permissions: words
 * with their NULs ("n0", "r7"), `bytes` of them. */
bool xen_only_host_writes(const char *words, size_t bytes, unsigned host);

/* --- grants.c ----------------------------------------------------------------------- */

/* Pages of a domain, mapped. */
struct xen_grants {
    int fd;
    uint32_t pages;
    uint64_t index;
    uint8_t *memory;
};

/* Maps the slot that `request` describes; the references are read once.  The kernel
 * clears the host's byte in it, and sends an event through `port` (ours), when it is
 * unmapped, by whatever end. */
int xen_grants_map(struct xen_grants *grants, unsigned domain, const struct xen_request *request,
                   unsigned port, struct vgpu_error *error);
void xen_grants_unmap(struct xen_grants *grants);

/* --- broker.c ------------------------------------------------------------------------- */

struct broker_order {
    unsigned domain;
    uint32_t vm_id;
    char socket_path[PATH_MAX];
    struct xen_request request;
};

enum broker_state { BROKER_CONNECTED = 1, BROKER_REFUSED, BROKER_CLOSED };

/* From the broker to the watcher, one datagram. */
struct broker_report {
    enum broker_state state;
    int32_t code; /* REFUSED: VGPU_PROBLEM_* */
    uint32_t vm_id;
    uint32_t priority;
    char pool;
    bool guest_is_gone; /* CLOSED: nobody is there who would read why */
    char text[256];     /* REFUSED, CLOSED: why, for a person */
};

/* A broker's whole life, in a process of its own: until the guest, the mediator or the
 * watcher (who closes its end of `control_fd`) ends it.  Returns the exit status. */
int broker_run(const struct broker_order *order, int control_fd);

/* --- confine.c ------------------------------------------------------------------------ */

#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define XEN_SANITIZED /* there is no list of system calls */
#endif

/* Of root's process, for good: the user and the group that own the socket, and no others.
 * -1: there is none, or it is root's. */
int xen_become_owner(const char *socket_path, struct vgpu_error *error);

/* For good, without any capability: only what a session needs that is open already. */
int xen_confine(struct vgpu_error *error);

/* --- watch.c -------------------------------------------------------------------------- */

struct watch_options {
    const char *config_path; /* of the mediator */
    const char *xenbus_path;
};

/* Serves until SIGTERM or SIGINT: 0; -1 when it cannot. */
int watch_run(const struct watch_options *options, struct vgpu_error *error);

#endif /* VGPU_XEN_ROOM_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* What the watcher knows (watch.c). */
#ifndef VGPU_XEN_WATCH_H
#define VGPU_XEN_WATCH_H

#include "mediator/mediator.h"
#include "store/store.h"
#include "vgpu/vgpu.h"
#include "xen/xen.h"
#include "xenbus.h"

#include <sys/queue.h>
#include <sys/types.h>

struct watch_session {
    LIST_ENTRY(watch_session) link;
    struct watch_domain *domain;
    char name[VGPU_XEN_NAME_CHARS + 1];
    pid_t pid;      /* of its broker; 0: none */
    int control_fd; /* to it; -1: none */
    bool is_over;   /* the guest has been told, and is to take it back */
    uint64_t over_ns;
};

struct watch_domain {
    LIST_ENTRY(watch_domain) link;
    unsigned id;
    bool is_watched; /* its sessions are: it is a VM of ours, or was */
    bool is_offered; /* it is a VM of ours, and has been told so */
    bool is_cleared; /* an offer of an earlier vgpu-xen was looked for */
    bool is_full;    /* and that has been told */
    bool has_news;   /* it is to be looked at */
    bool has_complained;
    uint32_t vm_id;
    uint64_t starts, questions, lines; /* buckets */
    uint32_t lines_left_out;           /* of the log, and not told yet */
    uint32_t session_count;
    LIST_HEAD(, watch_session) sessions;
};

struct watch {
    struct xenbus bus;
    int signal_fd;
    unsigned own_domain;
    struct config config;
    struct bucket_rate start_rate;    /* of sessions, each domain's */
    struct bucket_rate question_rate; /* of what is asked of XenStore for each domain */
    struct bucket_rate line_rate;     /* of what the log says of each domain's sessions */
    uint64_t looked_ns, look_ns;      /* at everything: last, and when again */
    struct store *store;              /* open while domains are looked at */
    bool is_registry_away;
    bool is_awaiting_mediator; /* a worker domain's has no socket for a VM yet */
    LIST_HEAD(, watch_domain) domains;
};

#endif /* VGPU_XEN_WATCH_H */

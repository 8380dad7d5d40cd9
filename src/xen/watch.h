/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watcher: what it knows, and its parts.  One thread.
 *
 *   watch.c          the loop: what comes from XenStore, brokers, signals and the clock
 *      ▼
 *   watch_domain.c   which domain is which VM; offers the channel
 *      ▼
 *   watch_session.c  a guest's sessions, and their brokers
 *      ▼
 *   watch_nodes.c    nodes of XenStore, and the log
 */
#ifndef VGPU_XEN_WATCH_H
#define VGPU_XEN_WATCH_H

#include "mediator/mediator.h"
#include "store/store.h"
#include "vgpu/vgpu.h"
#include "xen/xen.h"
#include "xenbus.h"

#include <limits.h>
#include <sys/queue.h>
#include <sys/types.h>

#define DOMAINS "/local/domain"

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
    bool is_full;    /* a session waits for the end of another */
    bool says_full;  /* to the guest, as far as we know */
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

/* --- watch_nodes.c: `below` is relative to the domain's own area ------------------------- */

void watch_node(const struct watch_domain *domain, const char *below, char path[XENBUS_PATH_BYTES]);

/* The mediator's, of a VM. */
void watch_socket(const struct watch *watch, uint32_t vm_id, char path[PATH_MAX]);

void watch_remove(struct watch *watch, const struct watch_domain *domain, const char *below);
void watch_remove_if_empty(struct watch *watch, const struct watch_domain *domain,
                           const char *below);

/* A session's node, of the side VGPU_XEN_FRONTEND or VGPU_XEN_BACKEND. */
void watch_remove_session(struct watch *watch, const struct watch_domain *domain, const char *side,
                          const char *name);

/* The names below a node, each with its NUL, and one more NUL: their bytes, or -1. */
int watch_list(struct watch *watch, const struct watch_domain *domain, const char *below,
               char ret_names[XENBUS_PAYLOAD_MAX + 1]);

/* What the guest says of a session: -1 with ENOENT where it says nothing. */
int watch_read_guest_state(struct watch *watch, const struct watch_domain *domain, const char *name,
                           char *ret_state, size_t bytes);

/* Whether a line about a domain's sessions may be logged: a guest decides how often
 * something is to be said.  Those left out are counted, and told now and then. */
bool watch_may_log(const struct watch *watch, struct watch_domain *domain);
void watch_tell_left_out(struct watch_domain *domain);

/* --- watch_session.c ---------------------------------------------------------------------- */

/* What the guest's sessions and new names say now.  Charged to the domain. */
void session_look(struct watch *watch, struct watch_domain *domain);

/* Its broker said something, or died; frees the session when the guest is gone. */
void session_hear(struct watch *watch, struct watch_session *session);

/* Those that are over, and that the guest does not take back: their programs died. */
void session_forget_old(struct watch *watch, struct watch_domain *domain);

/* Ends all; who still listens is told `why`. */
void session_end_all(struct watch *watch, struct watch_domain *domain, const char *why);

/* Ends and frees all of a domain that is gone. */
void session_forget_all(struct watch_domain *domain);

/* --- watch_domain.c ----------------------------------------------------------------------- */

/* In a worker domain Dom0 says which domains are ours, and who they are. */
bool watch_is_worker_domain(const struct watch *watch);

/* Asks XenStore to tell of domains that come and go. */
int domain_watch_all(struct watch *watch, struct vgpu_error *error);

/* NULL: none of that number. */
struct watch_domain *domain_find(struct watch *watch, unsigned id);

/* Takes note of domains that came or went. */
void domain_find_all(struct watch *watch);

/* Which VM it is now: offers it the channel, or withdraws the offer. */
void domain_settle(struct watch *watch, struct watch_domain *domain);

/* domain_find_all(), and settles those without an offer. */
void domain_look_at_all(struct watch *watch);

/* After some were settled. */
void domain_close_registry(struct watch *watch);

/* The offer is there as long as the guest does not remove it, with all of its area; one that
 * the guest made itself is none. */
bool domain_is_offer_there(struct watch *watch, const struct watch_domain *domain);

/* vgpu-xen ends: no offer stays, only what those are told that still listen. */
void domain_withdraw(struct watch *watch, struct watch_domain *domain);

/* Ends its sessions and frees it. */
void domain_forget(struct watch *watch, struct watch_domain *domain);

#endif /* VGPU_XEN_WATCH_H */

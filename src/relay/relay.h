/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay/ - vgpu-relay: Dom0 and a worker domain, which has the GPU and the mediator, in
 * agreement.  docs/xen.md has the whole picture, xen/worker.h the nodes.
 *
 *   Dom0                                        worker domain
 *   domains.c   which domain serves which pool
 *   guests.c    which domain is which VM ──────▶ vgpu-xen
 *   registry.c  a copy of the database ────────▶ registry.c: puts it in place
 *   control.c   the control socket ────────────▶ worker.c ──▶ the mediator's socket
 *
 *   dom0.c  the loop in Dom0, worker.c that in the worker domain
 *   message.c  what both say to each other, in chunks, through XenStore
 *   clean.c    what a worker domain says, fit to be shown
 *
 * A process a connection and a message: whoever waits keeps nobody else waiting.
 */
#ifndef VGPU_RELAY_H
#define VGPU_RELAY_H

#include "control/control.h"
#include "mediator/mediator.h"
#include "store/store.h"
#include "xen/worker.h"
#include "xenbus.h"

#define RELAY_WORKERS_MAX 8u
#define RELAY_NAME_BYTES 64u
#define RELAY_ID_BYTES 17u       /* 16 of 0-9 and a-f, NUL */
#define RELAY_SEATS 16u          /* a socket in Dom0; the questions in a worker domain */
#define RELAY_LOOK_PAUSE_MS 1000 /* however often a worker domain says that it has started */
#define RELAY_ANSWER_MS 25000    /* to one line, all in all; vgpu-admin waits for 30 s */

struct relay_options {
    const char *config_path; /* of the mediator */
    bool is_worker;          /* in Dom0: the worker domain's side of a pool that it serves itself */
    const char *domains_path;
    const char *xenbus_path;
};

/* Processes of ours that are at work for one socket, so that its peers wait for each other
 * and for nobody else.  0: free. */
struct relay_seats {
    pid_t pids[RELAY_SEATS];
};

/* --- domains.c --------------------------------------------------------------------- */

struct relay_worker {
    char name[RELAY_NAME_BYTES];      /* as xl has it, or its UUID */
    char pools[CONFIG_POOLS_MAX + 1]; /* letters */
    bool runs;
    unsigned domain;                  /* while it runs; 0: Dom0 itself */
    bool is_ambiguous;                /* and that has been told */
    bool has_news;                    /* what it says of itself is to be looked at */
    uint64_t looked_ns;               /* when that was last */
    pid_t refresher;                  /* sends it the registry; 0: nobody does */
    struct control_listener listener; /* its own control socket */
    struct relay_seats seats;         /* that one's connections */
};

struct relay_domains {
    struct relay_worker workers[RELAY_WORKERS_MAX];
    unsigned count;
};

/* The error says file, line, what was expected and what came. */
int relay_domains_read(struct relay_domains *domains, const char *path, struct vgpu_error *error);

/* NULL: none serves it. */
struct relay_worker *relay_domains_find(struct relay_domains *domains, char pool);

/* --- both sides ----------------------------------------------------------------------- */

struct relay {
    struct xenbus bus;
    int signal_fd;
    unsigned own_domain;
    bool is_worker;
    uint8_t complained[UINT16_MAX / 8 + 1]; /* a bit a domain: of its nodes' rights */
    const char *xenbus_path;
    struct config config;
    bool has_settled;                 /* what an earlier one left is in order */
    uint64_t looked_ns, look_ns;      /* at all domains: last, and when again */
    struct relay_domains domains;     /* Dom0 */
    int late[2];                      /* Dom0: a pipe; children say the index of a worker
                                         domain that did not answer to a change */
    struct control_listener listener; /* Dom0 */
    struct relay_seats seats;         /* of its connections; the worker domain: of questions */
};

int relay_open_xenbus(struct xenbus *bus, const char *path, struct vgpu_error *error);

/* NULL: none is free. */
pid_t *relay_find_seat(struct relay_seats *seats);

/* Ends and continues as a child does: 0 in the child, its pid, or -1.  It has `seat` until it
 * ends. */
pid_t relay_fork(struct relay *relay, pid_t *seat);

/* Takes the signals that came: true when it is told to end. */
bool relay_take_signals(struct relay *relay);

int relay_dom0_run(struct relay *relay, const struct relay_options *options,
                   struct vgpu_error *error);
int relay_worker_run(struct relay *relay, struct vgpu_error *error);

/* --- message.c ------------------------------------------------------------------------- */

/* A path below the area of a domain. */
void relay_path(char path[XENBUS_PATH_BYTES], unsigned domain, const char *format, ...)
    VGPU_PRINTF(3, 4);

/* Writes a message into `directory`; `kind` may be NULL. */
int message_put(struct xenbus *bus, const char *directory, const char *kind, const void *data,
                size_t bytes);

/* 1: *ret_data, with a NUL behind it, is the caller's; 0: it is not complete yet; -1. */
int message_get(struct xenbus *bus, const char *directory, size_t bytes_max, char **ret_data,
                size_t *ret_bytes);

struct message {
    const char *kind;
    const void *data;
    size_t bytes;
};

/* Dom0: says it, and waits for the answer until `end_ns`; then the error is ETIMEDOUT. */
int message_exchange(struct xenbus *bus, const struct relay_worker *worker,
                     const struct message *message, uint64_t end_ns, char **ret_answer,
                     struct vgpu_error *error);

/* --- registry.c -------------------------------------------------------------------------- */

/* Dom0: pools and VMs of this worker as a database, without their history. */
int registry_copy(const struct relay *relay, const struct relay_worker *worker, char **ret_data,
                  size_t *ret_bytes, struct vgpu_error *error);

/* Dom0: copies it and sends it.  One at a time, so that the newest is the last.  ETIMEDOUT:
 * until `end_ns` the worker domain took neither this nor an earlier one. */
int registry_send(const struct relay *relay, struct xenbus *bus, const struct relay_worker *worker,
                  uint64_t end_ns, struct vgpu_error *error);

/* The worker domain: an empty one where there is none; what came, in its place, but for
 * quarantines that the mediator began by itself; the end of such a one. */
int registry_prepare(const struct relay *relay, struct vgpu_error *error);
int registry_put(const struct relay *relay, const void *data, size_t bytes,
                 struct vgpu_error *error);
int registry_release(const struct relay *relay, const char *word, struct vgpu_error *error);

/* --- guests.c ---------------------------------------------------------------------------- */

/* Finds worker domains and guests, and makes XenStore say what is so. */
void guests_look(struct relay *relay);

/* --- clean.c ----------------------------------------------------------------------------- */

/* What would steer a terminal becomes '?'; members with such a name go. */
void relay_clean(json_t *value);

/* --- control.c --------------------------------------------------------------------------- */

int control_open(struct relay *relay, struct vgpu_error *error);
void control_end(struct relay *relay);

/* Takes a connection, and serves it in a child; `worker` NULL: the socket of all. */
void control_accept(struct relay *relay, struct relay_worker *worker);

/* Sends the registry and has the mediator apply it; for the log.  One at a time. */
void control_refresh(struct relay *relay, struct relay_worker *worker);

#endif /* VGPU_RELAY_H */

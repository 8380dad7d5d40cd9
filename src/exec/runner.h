/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A slot at work: takes descriptors from the ring, runs them on the device, answers
 * (runner.c).  It knows neither mediator nor process: session_worker.c gives it both.
 */
#ifndef VGPU_EXEC_RUNNER_H
#define VGPU_EXEC_RUNNER_H

#include "exec/device.h"
#include "exec/ring.h"
#include "trace/trace.h"

#include <sys/queue.h>

/* The most that is in flight at once, whatever a grant says.  With the calls of the driver that
 * one more operation can take (200) it stays below what a driver queues before it makes its
 * caller wait (1024). */
#define RUNNER_FLIGHTS_MAX 512u
#define RUNNER_CALLS_MAX 768u

/* Streams are told apart by so many places; two that share one are paced together. */
#define RUNNER_PACES 64u

/* An operation that has begun and not ended; or one that was answered, and takes room in the
 * driver's queue still. */
struct flight {
    TAILQ_ENTRY(flight) link;
    SLIST_ENTRY(flight) next_unused;
    struct device_wait wait;
    uint32_t sequence;
    uint64_t number;   /* of runner.started */
    uint64_t begin_ns; /* 0 where nobody asks for it */
    uint64_t result;
    uint64_t bytes; /* that it moves */
    uint16_t *pace; /* that it is counted in; NULL: it keeps no device busy */
    uint32_t calls; /* of the driver, that it queued */
    bool answered;  /* its place in the ring may be another's */
};

struct runner {
    struct session_memory *memory;
    struct ring ring;
    struct device device;
    const struct account_share *share;
    uint64_t slot_bytes;
    int log_fd; /* execution log, or -1 */
    struct exec_session_grant grant;
    uint64_t grant_ns;            /* device time of it; UINT64_MAX: without bound */
    uint64_t rest_after_ns;       /* see runner_must_rest(); 0: not yet known */
    uint64_t used_ns;             /* of this grant ... */
    uint64_t operations;          /* ... run in it ... */
    uint64_t first_ns;            /* ... and when the first of them began, if there was one */
    uint64_t started;             /* since this process began */
    TAILQ_HEAD(, flight) flights; /* in the order of their beginning ... */
    SLIST_HEAD(, flight) unused;
    struct flight places[RUNNER_FLIGHTS_MAX];
    uint64_t ask_from; /* a look at them begins with this number; 0: the first */
    uint32_t flight_count;
    uint64_t flight_bytes;            /* that they move */
    uint32_t flight_calls;            /* of the driver, that they queued */
    uint32_t answered_count;          /* of them, those that are answered */
    uint32_t arrived;                 /* when they came is known of those before */
    bool is_partial;                  /* one is a copy that has not been put as a whole */
    uint64_t uncharged_ns;            /* of device time: less than the VM's account counts */
    struct trace trace;               /* the decision log; the caller's, all zeros: none */
    uint32_t trace_seen;              /* arrivals up to here stand there */
    uint64_t trace_ns;                /* of device time, since its last completion */
    uint32_t work_count;              /* of them, those that keep the device busy ... */
    uint16_t in_stream[RUNNER_PACES]; /* ... by their stream */
    uint64_t pace_ns;                 /* how long one lasts, about ... */
    uint64_t pace_from_ns;            /* ... and since when the next one has */
    bool times_operations;            /* in this grant, for the session memory */
    bool unverified;       /* work was begun since the device was last known to have none ... */
    bool outlasts;         /* ... and it has some, though nothing seems to be in flight */
    uint64_t verify_at_ns; /* when it is asked next, if nothing is in flight then */
    enum vgpu_status lost; /* not VGPU_OK: the device works no more in this process */
    uint32_t next;         /* sequence of the next one to run; those up to ring.sq_head are taken */
    struct vgpu_descriptor taken[VGPU_RING_ENTRIES]; /* private copies, by sequence */
    enum vgpu_status verdicts[VGPU_RING_ENTRIES];    /* of their checks; VGPU_CANCELLED */
    uint64_t arrived_ns[VGPU_RING_ENTRIES];          /* when they were taken, about */
};

/* `memory` says where the last worker was, or is all zeros.  The runner must be all
 * zeros too.  `share` must live as long as it. */
int runner_open(struct runner *runner, const struct exec_backend *backend, uint8_t *slot,
                uint64_t slot_bytes, unsigned devices, const struct account_share *share,
                uint32_t operation_limit_ms, struct session_memory *memory, int interrupt_fd,
                int log_fd, struct vgpu_error *error);
void runner_close(struct runner *runner);

/* Tells the guest that the session can be used.  A successor first answers what the
 * last worker left: then the device's state is LOST. */
void runner_begin(struct runner *runner, bool successor);

/* Operations were taken from the ring and have not begun. */
bool runner_has_taken(const struct runner *runner);

/* Operations that wait, taken or not. */
uint32_t runner_depth(struct runner *runner);

/* So many wait now: those of them that are new come into the decision log. */
void runner_trace_arrivals(struct runner *runner, uint32_t depth);

/* A new grant. */
void runner_grant(struct runner *runner, const struct exec_session_grant *grant);

/* Runs what is there, at most one batch, within the grant, and ends what is over.  False:
 * there was nothing to do. */
bool runner_run(struct runner *runner);

/* Ends what is over, and begins nothing.  False: nothing was. */
bool runner_poll(struct runner *runner);

/* Nothing that was begun is still at work, by the device's own word. */
bool runner_is_drained(struct runner *runner);

/* Nothing seems to be in flight, and the device is to be asked soon, by runner_run(): its
 * caller must not sleep for long. */
bool runner_is_unsure(const struct runner *runner);

/* The device works no more in this process: all that was in flight has been answered, and
 * the process must end. */
bool runner_is_lost(const struct runner *runner);

/* Gives up what costs much and holds nothing of the guest's. */
void runner_rest(struct runner *runner);

/* Nothing of the guest's is on the device, but for what may be in flight. */
bool runner_is_empty(const struct runner *runner);

/* As runner_is_empty(), and somebody waits for a context (memory->rest) for so long that work
 * which goes on coming is no reason any more to keep one. */
bool runner_must_rest(struct runner *runner);

/* How long its VM's budget keeps what waits from being run; 0: it does not, or nothing waits. */
uint64_t runner_throttled_ns(struct runner *runner);

/* Nothing more may run in this grant. */
bool runner_is_done(struct runner *runner);

#endif /* VGPU_EXEC_RUNNER_H */

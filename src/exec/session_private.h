/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two sides of a window session share: the descriptors that its worker is
 * born with, their messages, and the session memory.
 */
#ifndef VGPU_EXEC_SESSION_PRIVATE_H
#define VGPU_EXEC_SESSION_PRIVATE_H

#include "exec/exec.h"
#include "vgpu/window.h"

/* --- a session worker's descriptors ------------------------------------------------ */

#define SESSION_LISTENER_FD 3 /* SOCK_SEQPACKET: mediators connect, one after the other */
#define SESSION_MEMORY_FD 4   /* session memory, already locked */
#define SESSION_WINDOW_FD 5
#define SESSION_DOORBELL_FD 6
#define SESSION_INTERRUPT_FD 7
#define SESSION_LIFELINE_FD 8
#define SESSION_ACCOUNT_FD 9 /* its VM's */
#define SESSION_LOG_FD 10    /* execution log, or not open */
#define SESSION_CGROUP_FD 11 /* cgroup.procs, or not open */
#define SESSION_TRACE_FD 12  /* its file of the decision log, or not open */
#define SESSION_FD_COUNT 13

/* The exit status of a worker whose device works no more: another one may go on. */
#define SESSION_EXIT_LOST 3

/* A worker in a long operation accepts nobody; each mediator that dies meanwhile
 * leaves a connection behind. */
#define SESSION_BACKLOG 1024

/* --- messages, one packet each, always of this size ---------------------------------- */

#define SESSION_MESSAGE_MAGIC 0x53555047u /* "GPUS" in memory */
#define SESSION_MESSAGE_VERSION 2u

enum session_message_type {
    SESSION_HELLO = 1, /* worker: who it is; first on each connection */
    SESSION_WORK,      /* worker: it has work and no grant */
    SESSION_RETURNED,  /* worker: the grant is back */
    SESSION_FAULTED,   /* worker: the rings made no sense */
    SESSION_GRANT,     /* mediator */
    SESSION_REVOKE,    /* mediator */
    SESSION_REST,      /* mediator: look at `rest` of the session memory */
    SESSION_RESTED,    /* worker: it has given one up */
    SESSION_WAKE,      /* mediator: the VM's budget has changed; older workers skip it */
};

struct session_message {
    uint32_t magic;
    uint16_t version;
    uint16_t type;
    union {
        struct {
            uint32_t vm_id, slot;
            uint64_t window_device, window_inode, slot_offset, slot_bytes;
            uint32_t granted;
            uint32_t moves; /* looks with each grant where it is to work; 0: an older worker */
        } hello;
        struct {
            uint32_t depth;
        } work;
        struct {
            uint64_t used_us, operations;
            uint32_t depth_left;
            uint64_t first_ns; /* when its first operation began; 0: not known, or none did */
        } returned;
        struct {
            char reason[104];
        } faulted;
        struct {
            uint32_t max_ops, max_inflight;
            uint64_t device_us;
            uint32_t refuse;
        } grant;
        uint8_t bytes[104];
    };
};

_Static_assert(sizeof(struct session_message) == 112, "all alike");

/* --- the session memory ---------------------------------------------------------------- */

/* "SES9" in memory: raise the digit with each change of the layout. */
#define SESSION_MEMORY_MAGIC 0x39534553u

/*
 * Commit order of an operation, each step one store, the process may die between any
 * two:
 *   fetch     entry.cookie, entry.commit = ACCEPTED, then memory.sq_head
 *   complete  the completion in the slot, then entry.commit = ANSWERED | its number,
 *             then memory.cq_tail, then the slot's cq_tail
 * A successor takes the larger of memory.cq_tail and the highest number committed, so
 * what was committed is published (again), and what was not is answered.
 */
#define SESSION_ENTRY_FREE 0u
#define SESSION_ENTRY_ACCEPTED 1u
#define SESSION_ENTRY_ANSWERED 2u /* completion number in the upper half */
#define SESSION_ENTRY_QUIET 3u    /* done, without a completion */

struct session_entry {
    uint64_t cookie;
    uint64_t commit; /* SESSION_ENTRY_* | completion number << 32 */
    uint32_t sequence;
    uint32_t flags;
};

/* Why the mediator kills the worker: session_memory.over_limit. */
enum session_over_limit {
    SESSION_OVER_NONE = 0,
    SESSION_OVER_RUNNING,  /* what runs took too long ... */
    SESSION_OVER_BLOCKING, /* ... or what holds up all else */
};

struct session_memory {
    uint32_t magic;
    uint32_t bytes;
    uint32_t vm_id;
    uint32_t slot;
    uint64_t window_device, window_inode, slot_offset, slot_bytes;
    uint32_t worker_pid; /* 0: the worker does not listen yet */
    uint32_t generation;
    uint32_t lost; /* DEVICE_LOST until VGPU_OP_RESET */
    uint32_t sq_head;
    uint32_t cq_tail;
    uint32_t owner_gone;        /* the worker ended because its lifeline hung up */
    uint32_t revoke;            /* the mediator's: give the grant back */
    uint64_t running;           /* what runs now, the oldest of it: a number from 1, 0: nothing */
    uint64_t blocking;          /* what holds up the worker, by such a number; 0: nothing does */
    uint64_t blocking_ns;       /* since when, on the monotonic clock: `running` was seen then */
    uint64_t used_ns;           /* device time of all workers so far; what runs now comes later */
    uint64_t counted_ns;        /* on the monotonic clock: of what runs it is in used_ns so far */
    uint32_t running_sequence;  /* the descriptor of what runs, or ran last ... */
    uint32_t blocking_sequence; /* ... and of what holds up the worker, or did last */
    uint32_t over_limit;        /* the mediator's: enum session_over_limit */
    uint32_t device_lost;       /* the worker's: its device works no more, or did not start */
    uint32_t lost_status;       /* why it was lost, until an operation has been told; 0: no more */
    uint32_t rest;              /* the mediator's: somebody waits for a context */
    uint32_t contexts;          /* the worker's: contexts of GPUs that it has now */
    uint32_t share;             /* of the VM's account */
    /* That the mediator chose, as it names them, one space apart; cut where it is longer.  Without
     * a grant and without a context it may choose anew: the worker looks when it is granted. */
    char devices[VGPU_SESSION_DEVICES_MAX * EXEC_DEVICE_BYTES];
    uint64_t throttled_ns;           /* the worker's: how long its VM's budget kept what waited */
    struct exec_durations durations; /* the worker's, of long grants: durations.h ... */
    uint32_t timed;                  /* ... and how many operations those are; it wraps */
    struct session_entry entries[VGPU_RING_ENTRIES];
};

static inline uint64_t session_commit(uint32_t state, uint32_t number)
{
    return (uint64_t)number << 32 | state;
}

#endif /* VGPU_EXEC_SESSION_PRIVATE_H */

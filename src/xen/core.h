/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core - a broker's work on memory, and nothing else: moves operations and data between
 * a guest's slot, whose pages the guest can write at any time, and a private slot that
 * a worker serves.  Pure: no system calls, no clock, no allocation.
 *
 *   guest's slot (hostile)                     private slot (ours and the worker's)
 *   descriptors ── read once, checked ───────▶ descriptors
 *   what they name in arena and heap ── copy ▶ the same places
 *   completions ◀───────────────────────────── completions
 *   answers, copied-out data ◀── copy ──────── the same places
 *
 * What the core knows, it knows by itself: nothing that it wrote into the guest's slot is
 * ever read back, no index of the guest's is used before it is checked, and where data
 * goes when an operation ends was noted when it began.  Pages of the guest's slot may
 * even be one page: nothing depends on their being different.
 */
#ifndef VGPU_XEN_CORE_H
#define VGPU_XEN_CORE_H

#include "base/base.h"
#include "vgpu/window.h"

/* A worker takes nothing further than a ring from its oldest operation, and a ring of
 * descriptors can wait before it: no two of these share a place. */
#define CORE_FLIGHTS (2 * VGPU_RING_ENTRIES)
#define CORE_OUTPUTS_MAX 256u /* operations in flight that write into the slot */
#define CORE_QUIET_MAX 64u    /* streams with an error that nobody has been told */
#define CORE_ROUND_BYTES (8u << 20)

/* An operation that will have a completion. */
struct core_flight {
    bool used;
    bool is_quiet; /* the guest asked for none: see core_round() */
    uint8_t device;
    uint16_t opcode;
    uint16_t output; /* its place in outputs[]; CORE_OUTPUTS_MAX: none */
    uint32_t sequence;
    uint32_t stream; /* of the operation; STREAM_SYNC: that it waits for */
};

/* Where an operation in flight writes: offsets in bytes from the slot's start. */
struct core_output {
    uint64_t offset;
    uint64_t bytes;
    uint32_t flight;
};

/* The first error of a stream's quiet copies. */
struct core_quiet {
    uint8_t device;
    uint32_t stream;
    uint32_t status;
};

struct core {
    uint8_t *guest;
    uint64_t guest_bytes;
    uint8_t *own;
    uint64_t own_bytes;
    uint32_t sq_taken;   /* descriptors of the guest's, moved */
    uint32_t sq_seen;    /* its tail, as last read */
    uint32_t cq_taken;   /* completions of the worker's, moved */
    uint32_t cq_seen;    /* its tail, as last read */
    uint32_t cq_tail;    /* completions of the guest's, published */
    uint64_t bytes_left; /* of this round */
    uint32_t output_count;
    uint32_t quiet_count;
    bool waits_for_room; /* the private ring is full: nobody tells when it is not */
    char reason[160];    /* why core_round() failed */
    struct core_flight flights[CORE_FLIGHTS];
    struct core_output outputs[CORE_OUTPUTS_MAX];
    struct core_quiet quiet[CORE_QUIET_MAX];
};

/* What is to be done after a round. */
struct core_work {
    bool moved;        /* something was: there may be more */
    bool ring_worker;  /* the private slot's doorbell */
    bool notify_guest; /* the event channel */
};

/*
 * Begins a session: both slots are new, and nobody else looks at either yet.  Each has
 * whole pages, at least VGPU_SLOT_MIN_BYTES, and own_bytes is at least guest_bytes.  The
 * memory stays the caller's.
 */
void core_open(struct core *core, void *guest, uint64_t guest_bytes, void *own, uint64_t own_bytes);

/*
 * Moves what is there, at most a ring each way and little more than CORE_ROUND_BYTES.
 * Returns 0, or -1 with core->reason when one side's indices cannot be: then the guest has
 * been shown VGPU_SESSION_FAULTED, and the session is to be ended.
 *
 * A copy from the device that wants no completion gets one all the same, so that its data
 * can be moved in time; the guest does not see it, and its error becomes that of the
 * stream's next synchronisation, as window.h promises.
 */
int core_round(struct core *core, struct core_work *ret_work);

/* Before sleeping: asks both sides to tell.  True: something came meanwhile, do not sleep.
 * While core->waits_for_room a sleep must be short. */
bool core_arm(struct core *core);

/* Shows the guest a state (VGPU_SESSION_*), e.g. at the end; nothing before core_open(). */
void core_show_state(struct core *core, uint32_t state);

#endif /* VGPU_XEN_CORE_H */

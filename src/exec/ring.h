/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's end of a slot's two rings (ring.c).
 */
#ifndef VGPU_EXEC_RING_H
#define VGPU_EXEC_RING_H

#include "exec/session_private.h"

/* Everything of the guest's is read once, into private memory. */
struct ring {
    uint8_t *slot;
    uint64_t slot_bytes;
    struct vgpu_slot_guest *guest;
    struct vgpu_slot_host *host;
    struct session_memory *memory;
    int interrupt_fd;
    uint32_t sq_head; /* descriptors taken */
    uint32_t cq_tail; /* completions written ... */
    uint32_t cq_published;
    uint32_t inflight; /* taken and not yet answered: each may need a place */
    uint32_t oldest;   /* all before it are answered; looked for when it matters */
    bool faulted;
    char reason[104];
};

void ring_init(struct ring *ring, uint8_t *slot, uint64_t slot_bytes, struct session_memory *memory,
               int interrupt_fd);

/* How many descriptors can be taken now: what waits, and the completion ring has room
 * for besides what is in flight, and no further than VGPU_RING_ENTRIES from the oldest of
 * those, whose place is still needed; 0 also where the rings make no sense
 * (ring->faulted). */
uint32_t ring_depth(struct ring *ring);

/* Takes `count` <= ring_depth() descriptors; the one with number n goes to
 * operations[n % VGPU_RING_ENTRIES], where nothing in flight stands. */
void ring_fetch(struct ring *ring, struct vgpu_descriptor operations[VGPU_RING_ENTRIES],
                uint32_t count);

/* Answers one, in any order; the guest sees it after ring_publish(). */
void ring_complete(struct ring *ring, uint32_t sequence, const struct vgpu_completion *completion);

/* It has ended and gets no completion.  Most launches do. */
static inline void ring_complete_quietly(struct ring *ring, uint32_t sequence)
{
    ring->inflight--;
    __atomic_store_n(&ring->memory->entries[sequence & (VGPU_RING_ENTRIES - 1)].commit,
                     session_commit(SESSION_ENTRY_QUIET, 0), __ATOMIC_RELEASE);
}

/* Lets the guest see what was answered, and wakes it if it asked for that. */
void ring_publish(struct ring *ring);

/* Asks for a doorbell at the next publication.  Returns true when something came
 * meanwhile: do not sleep. */
bool ring_arm(struct ring *ring);

/* For a successor: answers everything that the last worker left with DEVICE_LOST, what
 * it was killed for with TIME_LIMIT; quiet operations get no answer.  `operations` is room to work
 * in. */
void ring_recover(struct ring *ring, struct vgpu_descriptor operations[VGPU_RING_ENTRIES]);

#endif /* VGPU_EXEC_RING_H */

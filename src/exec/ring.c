/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's end of a slot's two rings.
 *
 *   guest ── sq_tail ─▶ depth ─▶ fetch ─▶ (run) ─▶ complete ─▶ publish ── cq_tail ─▶ guest
 *                                  │                  │
 *                        session memory: accepted   committed
 *
 * The private indices count; those in the slot only inform the guest, who may
 * write anything there.  What the session memory says survives this process:
 * session_private.h has the order of its stores.
 */
#include "exec/ring.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MASK (VGPU_RING_ENTRIES - 1)

static void keep32(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static void keep64(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

void ring_init(struct ring *ring, uint8_t *slot, uint64_t slot_bytes, struct session_memory *memory,
               int interrupt_fd)
{
    *ring = (struct ring){
        .slot = slot,
        .slot_bytes = slot_bytes,
        .guest = (struct vgpu_slot_guest *)(void *)(slot + VGPU_SLOT_GUEST),
        .host = (struct vgpu_slot_host *)(void *)(slot + VGPU_SLOT_HOST),
        .memory = memory,
        .interrupt_fd = interrupt_fd,
        .sq_head = memory->sq_head,
        .oldest = memory->sq_head,
        .cq_tail = memory->cq_tail,
        .cq_published = memory->cq_tail,
    };
}

static void ring_fault(struct ring *ring, const char *what, uint32_t value, uint32_t own)
{
    ring->faulted = true;
    snprintf(ring->reason, sizeof(ring->reason), "%s is %u, at most %u away from %u expected", what,
             value, VGPU_RING_ENTRIES, own);
}

static bool is_unanswered(const struct ring *ring, uint32_t sequence)
{
    const struct session_entry *entry = &ring->memory->entries[sequence & MASK];

    return (uint32_t)entry->commit == SESSION_ENTRY_ACCEPTED && entry->sequence == sequence;
}

static void find_oldest(struct ring *ring)
{
    while (ring->oldest != ring->sq_head && !is_unanswered(ring, ring->oldest))
        ring->oldest++;
}

uint32_t ring_depth(struct ring *ring)
{
    uint32_t sq_tail = vgpu_load_acquire(&ring->guest->sq_tail);
    uint32_t cq_head = vgpu_load_acquire(&ring->guest->cq_head);
    uint32_t waiting = sq_tail - ring->sq_head, untaken = ring->cq_tail - cq_head, room, span;

    if (ring->faulted)
        return 0;
    if (waiting > VGPU_RING_ENTRIES) {
        ring_fault(ring, "sq_tail", sq_tail, ring->sq_head);
        return 0;
    }
    if (untaken > VGPU_RING_ENTRIES) {
        ring_fault(ring, "cq_head", cq_head, ring->cq_tail);
        return 0;
    }
    room = VGPU_RING_ENTRIES - untaken;
    room = room > ring->inflight ? room - ring->inflight : 0;
    find_oldest(ring);
    span = ring->sq_head - ring->oldest; /* places between the oldest and the next */
    if (room > VGPU_RING_ENTRIES - span)
        room = VGPU_RING_ENTRIES - span;
    return waiting < room ? waiting : room;
}

void ring_fetch(struct ring *ring, struct vgpu_descriptor operations[VGPU_RING_ENTRIES],
                uint32_t count)
{
    const struct vgpu_descriptor *shared =
        (const struct vgpu_descriptor *)(const void *)(ring->slot + VGPU_SLOT_SQ);

    for (uint32_t i = 0; i < count; i++) {
        uint32_t sequence = ring->sq_head + i;
        struct session_entry *entry = &ring->memory->entries[sequence & MASK];
        struct vgpu_descriptor *own = &operations[sequence & MASK];

        memcpy(own, &shared[sequence & MASK], sizeof(*own));
        /* From here on only the copy counts: nothing is read again. */
        __asm__ volatile("" ::: "memory");
        entry->cookie = own->cookie;
        entry->sequence = sequence;
        entry->flags = own->flags;
        keep64(&entry->commit, session_commit(SESSION_ENTRY_ACCEPTED, 0));
    }
    ring->inflight += count;
    ring->sq_head += count;
    keep32(&ring->memory->sq_head, ring->sq_head);
    vgpu_store_release(&ring->host->sq_head, ring->sq_head);
    fault_point("session_fetched");
}

void ring_complete(struct ring *ring, uint32_t sequence, const struct vgpu_completion *completion)
{
    struct vgpu_completion *shared = (struct vgpu_completion *)(void *)(ring->slot + VGPU_SLOT_CQ);

    memcpy(&shared[ring->cq_tail & MASK], completion, sizeof(*completion));
    fault_point("session_completed");
    keep64(&ring->memory->entries[sequence & MASK].commit,
           session_commit(SESSION_ENTRY_ANSWERED, ring->cq_tail));
    ring->inflight--;
    ring->cq_tail++;
    keep32(&ring->memory->cq_tail, ring->cq_tail);
    fault_point("session_committed");
}

static void ring_interrupt(struct ring *ring)
{
    const uint64_t one = 1;
    ssize_t written;

    /* Full means that it is signalled already.  A peer can make this wait: the
     * mediator then ends us, as we give no grant back. */
    do {
        written = write(ring->interrupt_fd, &one, sizeof(one));
    } while (written < 0 && errno == EINTR);
}

void ring_publish(struct ring *ring)
{
    uint32_t old = ring->cq_published;

    if (ring->cq_tail == old)
        return;
    vgpu_store_release(&ring->host->cq_tail, ring->cq_tail);
    ring->cq_published = ring->cq_tail;
    fault_point("session_published");
    vgpu_fence_full(); /* the tail is seen before we look whether the guest sleeps */
    if (vgpu_event_passed(vgpu_load_acquire(&ring->guest->cq_event), ring->cq_tail, old))
        ring_interrupt(ring);
}

bool ring_arm(struct ring *ring)
{
    /* The tail, not our head: where the completion ring is full there are descriptors
     * in between, and the next one published has to ring none the less. */
    uint32_t seen = vgpu_load_acquire(&ring->guest->sq_tail);

    vgpu_store_release(&ring->host->sq_event, seen);
    vgpu_fence_full(); /* the wish is seen before we look at the tail */
    return ring_depth(ring) > 0 || ring->faulted ||
           vgpu_load_acquire(&ring->guest->sq_tail) != seen;
}

/* --- after a worker's death ---------------------------------------------------------- */

static bool was_over_limit(const struct ring *ring, uint32_t sequence)
{
    const struct session_memory *memory = ring->memory;

    switch (memory->over_limit) {
    case SESSION_OVER_RUNNING:
        return memory->running_sequence == sequence;
    case SESSION_OVER_BLOCKING:
        return memory->blocking_sequence == sequence;
    default:
        return false;
    }
}

/* Why it is lost: the first one that is answered is told, if what is to blame was not. */
static uint32_t take_status(struct ring *ring, uint32_t sequence)
{
    uint32_t status = ring->memory->lost_status;

    if (was_over_limit(ring, sequence))
        return VGPU_TIME_LIMIT;
    ring->memory->lost_status = 0;
    return status ? status : VGPU_DEVICE_LOST;
}

static void answer_lost(struct ring *ring, uint32_t sequence)
{
    const struct session_entry *entry = &ring->memory->entries[sequence & MASK];
    bool quiet = entry->flags & VGPU_FLAG_QUIET;
    const struct vgpu_completion completion = {.cookie = entry->cookie,
                                               .status = quiet ? VGPU_DEVICE_LOST
                                                               : take_status(ring, sequence),
                                               .sequence = sequence,
                                               .generation = ring->memory->generation};

    if (quiet && was_over_limit(ring, sequence))
        ring->memory->lost_status = VGPU_TIME_LIMIT;
    if (quiet)
        ring_complete_quietly(ring, sequence);
    else
        ring_complete(ring, sequence, &completion);
}

/* It may have died between a commit and the count of it. */
static void find_tail(struct ring *ring)
{
    for (uint32_t i = 0; i < VGPU_RING_ENTRIES; i++) {
        uint64_t commit = __atomic_load_n(&ring->memory->entries[i].commit, __ATOMIC_ACQUIRE);
        uint32_t number = (uint32_t)(commit >> 32);

        if ((uint32_t)commit == SESSION_ENTRY_ANSWERED && number == ring->cq_tail)
            ring->cq_tail = number + 1;
    }
    keep32(&ring->memory->cq_tail, ring->cq_tail);
}

/* Publishes all, and wakes the guest in any case: what the last worker did of this
 * is not known. */
static void publish_anew(struct ring *ring)
{
    vgpu_store_release(&ring->host->sq_head, ring->sq_head);
    vgpu_store_release(&ring->host->cq_tail, ring->cq_tail);
    ring->cq_published = ring->cq_tail;
    ring_interrupt(ring);
}

void ring_recover(struct ring *ring, struct vgpu_descriptor operations[VGPU_RING_ENTRIES])
{
    uint32_t first = ring->sq_head - VGPU_RING_ENTRIES;

    find_tail(ring);
    ring->oldest = first;
    find_oldest(ring);
    for (uint32_t i = 0; i < VGPU_RING_ENTRIES; i++)
        ring->inflight += is_unanswered(ring, first + i);
    /* Nothing is published before the ring was looked at: what the guest submits
     * once it knows of the loss (VGPU_OP_RESET) is not of before. */
    ring_fetch(ring, operations, ring_depth(ring));
    for (; first != ring->sq_head; first++) {
        if (is_unanswered(ring, first))
            answer_lost(ring, first);
    }
    publish_anew(ring);
}

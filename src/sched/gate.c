/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cap with a queue before it: so many may hold a seat, the others wait for one.
 *
 *   enter() ─▶ (passed) ── take(): the grant ──▶ HELD ── release() ─▶ NONE
 *      │            │ none is left any more          ▲
 *      ▼            ▼                                │
 *   WAITING ──── admit() ──▶ ADMITTED ──── take() ───┘
 *
 * A seat is taken with the grant and not before: who has passed waits for the device in
 * another queue, in which a higher priority that comes later may go first and take what was
 * the last seat.  Then who had passed waits here again, where it would stand by its arrival.
 *
 * One whose owner has as many as it may have stands in the owner's list and not in the
 * queue, so that nobody else waits behind it.  When its owner has room again it joins the
 * queue as one that comes then: an owner whose seats come and go has no claim to each that
 * is given back.  In the queue an owner may have more than it has room for; those are kept
 * back when they come to its head.
 */
#include "sched/sched.h"

#include <assert.h>

void sched_gate_init(struct sched_gate *gate)
{
    *gate = (struct sched_gate){.cap = 0};
    TAILQ_INIT(&gate->waiting);
    TAILQ_INIT(&gate->holders);
}

void sched_gate_owner_init(struct sched_gate_owner *owner)
{
    *owner = (struct sched_gate_owner){.held = 0};
    TAILQ_INIT(&owner->kept_back);
}

/* One is kept for another one, which does not have to give way to it. */
static bool is_kept_from(const struct sched_gate *gate, const struct sched_seat *seat)
{
    const struct sched_seat *reserved = gate->reserved;

    return reserved && reserved != seat && reserved->state == SCHED_SEAT_ADMITTED &&
           seat->priority <= reserved->priority;
}

static bool is_full(const struct sched_gate *gate, const struct sched_seat *seat)
{
    return gate->cap > 0 && gate->held + is_kept_from(gate, seat) >= gate->cap;
}

bool sched_gate_owner_is_full(const struct sched_gate *gate, const struct sched_seat *seat)
{
    const struct sched_gate_owner *owner = seat->owner;
    bool is_admitted = seat->state == SCHED_SEAT_ADMITTED;

    return owner && gate->owner_cap > 0 &&
           owner->held + owner->admitted - is_admitted >= gate->owner_cap;
}

/* Highest priority first; who reserves before the others of its priority; first come first. */
static bool goes_before(const struct sched_seat *a, const struct sched_seat *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    return a->reserves != b->reserves ? a->reserves : a->arrival < b->arrival;
}

static void insert(struct sched_seats *seats, struct sched_seat *seat)
{
    struct sched_seat *before = TAILQ_LAST(seats, sched_seats);

    while (before && goes_before(seat, before))
        before = TAILQ_PREV(before, sched_seats, link);
    if (before)
        TAILQ_INSERT_AFTER(seats, before, seat, link);
    else
        TAILQ_INSERT_HEAD(seats, seat, link);
}

static void stand(struct sched_gate *gate, struct sched_seat *seat)
{
    seat->state = SCHED_SEAT_WAITING;
    seat->kept_back = sched_gate_owner_is_full(gate, seat);
    if (seat->kept_back) {
        insert(&seat->owner->kept_back, seat);
        seat->owner->kept_back_count++;
        gate->kept_back_count++;
        return;
    }
    insert(&gate->waiting, seat);
    gate->waiting_count++;
    if (seat->owner)
        seat->owner->standing++;
}

static void stop_waiting(struct sched_gate *gate, struct sched_seat *seat)
{
    seat->state = SCHED_SEAT_NONE;
    if (seat->kept_back) {
        TAILQ_REMOVE(&seat->owner->kept_back, seat, link);
        seat->owner->kept_back_count--;
        gate->kept_back_count--;
        return;
    }
    TAILQ_REMOVE(&gate->waiting, seat, link);
    gate->waiting_count--;
    if (seat->owner)
        seat->owner->standing--;
}

static void count_admitted(struct sched_gate *gate, struct sched_seat *seat, int change)
{
    gate->admitted += (uint32_t)change;
    if (seat->owner)
        seat->owner->admitted += (uint32_t)change;
}

static void count_held(struct sched_gate *gate, struct sched_seat *seat, int change)
{
    gate->held += (uint32_t)change;
    if (seat->owner)
        seat->owner->held += (uint32_t)change;
}

/* Neither waiting nor admitted. */
static void withdraw(struct sched_gate *gate, struct sched_seat *seat)
{
    if (seat->state == SCHED_SEAT_WAITING) {
        stop_waiting(gate, seat);
    } else if (seat->state == SCHED_SEAT_ADMITTED) {
        count_admitted(gate, seat, -1);
        seat->state = SCHED_SEAT_NONE;
    }
}

static bool has_room_for_more(const struct sched_gate *gate, const struct sched_gate_owner *owner)
{
    return gate->owner_cap == 0 ||
           owner->held + owner->admitted + owner->standing < gate->owner_cap;
}

void sched_gate_let_in(struct sched_gate *gate, struct sched_gate_owner *owner)
{
    struct sched_seat *seat;

    while ((seat = TAILQ_FIRST(&owner->kept_back)) && has_room_for_more(gate, owner)) {
        stop_waiting(gate, seat);
        seat->arrival = ++gate->last_arrival;
        stand(gate, seat);
    }
}

static void let_in_its_owners(struct sched_gate *gate, const struct sched_seat *seat)
{
    if (seat->owner)
        sched_gate_let_in(gate, seat->owner);
}

/* Of those that may be admitted when a seat is free. */
static struct sched_seat *first_in_line(struct sched_gate *gate)
{
    struct sched_seat *first;

    while ((first = TAILQ_FIRST(&gate->waiting)) && sched_gate_owner_is_full(gate, first)) {
        stop_waiting(gate, first);
        stand(gate, first);
    }
    return first;
}

bool sched_gate_enter(struct sched_gate *gate, struct sched_seat *seat, unsigned priority)
{
    const struct sched_seat *first = first_in_line(gate);

    assert(seat->state == SCHED_SEAT_NONE || seat->state == SCHED_SEAT_HELD);
    if (seat->state == SCHED_SEAT_HELD)
        return true;
    seat->priority = priority;
    seat->arrival = ++gate->last_arrival;
    if (sched_gate_may_take(gate, seat) && (!first || goes_before(seat, first)))
        return true;
    stand(gate, seat);
    return false;
}

/* What is kept for a lower priority is not kept from `first`. */
static bool may_admit(const struct sched_gate *gate, const struct sched_seat *first)
{
    const struct sched_seat *reserved = gate->reserved;
    bool passes_by =
        reserved && reserved->state == SCHED_SEAT_ADMITTED && first->priority > reserved->priority;

    return gate->cap == 0 || gate->held + gate->admitted - passes_by < gate->cap;
}

struct sched_seat *sched_gate_admit(struct sched_gate *gate)
{
    struct sched_seat *first = first_in_line(gate);

    if (!first || !may_admit(gate, first))
        return NULL;
    stop_waiting(gate, first);
    first->state = SCHED_SEAT_ADMITTED;
    count_admitted(gate, first, 1);
    return first;
}

static void hold(struct sched_gate *gate, struct sched_seat *seat)
{
    sched_gate_unreserve(gate, seat);
    withdraw(gate, seat);
    TAILQ_INSERT_TAIL(&gate->holders, seat, link);
    seat->state = SCHED_SEAT_HELD;
    count_held(gate, seat, 1);
}

bool sched_gate_may_take(const struct sched_gate *gate, const struct sched_seat *seat)
{
    return seat->state == SCHED_SEAT_HELD ||
           (!is_full(gate, seat) && !sched_gate_owner_is_full(gate, seat));
}

bool sched_gate_take(struct sched_gate *gate, struct sched_seat *seat)
{
    assert(seat->state != SCHED_SEAT_WAITING);
    if (seat->state == SCHED_SEAT_HELD)
        return true;
    if (sched_gate_may_take(gate, seat)) {
        hold(gate, seat);
        return true;
    }
    withdraw(gate, seat);
    stand(gate, seat);
    let_in_its_owners(gate, seat);
    return false;
}

void sched_gate_hold(struct sched_gate *gate, struct sched_seat *seat)
{
    if (seat->state != SCHED_SEAT_HELD)
        hold(gate, seat);
}

void sched_gate_leave(struct sched_gate *gate, struct sched_seat *seat)
{
    if (seat->state == SCHED_SEAT_HELD)
        return;
    sched_gate_unreserve(gate, seat);
    withdraw(gate, seat);
    let_in_its_owners(gate, seat);
}

void sched_gate_release(struct sched_gate *gate, struct sched_seat *seat)
{
    if (seat->state != SCHED_SEAT_HELD)
        return;
    TAILQ_REMOVE(&gate->holders, seat, link);
    count_held(gate, seat, -1);
    seat->state = SCHED_SEAT_NONE;
    seat->arrival = ++gate->last_arrival; /* it may have passed already, as a holder */
    let_in_its_owners(gate, seat);
}

/* Where it belongs now, if it waits. */
static void stand_anew(struct sched_gate *gate, struct sched_seat *seat, unsigned priority,
                       bool reserves)
{
    bool waits = seat->state == SCHED_SEAT_WAITING;

    if (waits)
        stop_waiting(gate, seat);
    seat->priority = priority;
    seat->reserves = reserves;
    if (waits)
        stand(gate, seat);
}

void sched_gate_set_priority(struct sched_gate *gate, struct sched_seat *seat, unsigned priority)
{
    if (seat->priority != priority)
        stand_anew(gate, seat, priority, seat->reserves);
}

void sched_gate_reserve(struct sched_gate *gate, struct sched_seat *seat, unsigned priority)
{
    assert(!gate->reserved || gate->reserved == seat);
    if (seat->state == SCHED_SEAT_HELD)
        return;
    gate->reserved = seat;
    stand_anew(gate, seat, priority, true);
    if (seat->state != SCHED_SEAT_NONE)
        return;
    seat->arrival = ++gate->last_arrival;
    stand(gate, seat);
}

void sched_gate_unreserve(struct sched_gate *gate, struct sched_seat *seat)
{
    if (gate->reserved != seat)
        return;
    gate->reserved = NULL;
    stand_anew(gate, seat, seat->priority, false);
}

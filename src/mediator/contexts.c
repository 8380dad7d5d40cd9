/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many contexts a GPU has, and who waits for one.
 *
 * Each costs half a gigabyte of the GPU's memory, so only contexts_per_device exist at a
 * time.  A session that has none gets one with its grant; where none is left it stands in the
 * device's gate (sched/gate.c), and not in its queue.
 *
 *   session_wait() ─▶ contexts_enter() ─┬─ room ─▶ queue ─ grant ─▶ contexts_take()
 *                            ▲          └─ none ─▶ SESSION_GATED ─ contexts_admit() ─▶ queue
 *                            │
 *   grant is back, RESTED, worker gone ─▶ contexts_settle(): has none any more? there is room
 *
 * Of these only contexts_per_vm are one VM's, all of its sessions together.  A session whose VM
 * has as many waits as well, but nobody waits behind it.
 *
 * A session with several devices has a seat on each, or on none: while it has a context
 * anywhere all are counted.  It needs room at all gates at the same moment, and where others
 * come and go that moment may never come.  So one such session at a time gathers: what becomes
 * free on its devices is kept for it until it has all.  Whose turn it is says sched/gangs.c.
 *
 * Who keeps something on the device keeps its context.  The others give theirs up when they
 * have nothing to do, once somebody waits who could have it: they are told when the first one
 * begins to wait, and with each grant.
 */
#include "mediator/mediator.h"

#include <assert.h>
#include <stdlib.h>

/* A place that waits again and again is logged so often. */
#define TELL_EVERY_NS (10 * NS_PER_S)

static struct session *of_seat(struct sched_seat *seat)
{
    return ((struct session_seat *)(void *)seat)->session; /* its first member */
}

/* Where the seat is, which may not be where its session works next. */
static struct sched_gate *gate_of(const struct session *session, unsigned index)
{
    return &session->vm->mediator->gates[session->seats[index].device];
}

/* Where priorities are not all that counts, who came first is first here. */
static unsigned priority_of(const struct session *session)
{
    return policy_is_strict(session->vm) ? vm_priority(session->vm) : 0;
}

/* What is not needed should be given up. */
static bool is_wanted(const struct sched_gate *gate)
{
    return gate->waiting_count > 0 || (gate->cap > 0 && gate->held > gate->cap);
}

/* The same for what the VM's own sessions do not need. */
static bool is_wanted_by_owner(const struct sched_gate *gate, const struct sched_gate_owner *owner)
{
    return owner &&
           (owner->kept_back_count > 0 || (gate->owner_cap > 0 && owner->held > gate->owner_cap));
}

/* All that hold one, or this owner's.  One that waits for the device is told with its grant. */
static void ask_holders(struct sched_gate *gate, const struct sched_gate_owner *owner)
{
    struct sched_seat *seat, *next;

    for (seat = TAILQ_FIRST(&gate->holders); seat; seat = next) {
        struct session *session = of_seat(seat);

        next = TAILQ_NEXT(seat, link);
        if (session->state != SESSION_WAITING && (!owner || seat->owner == owner))
            session->ops->rest(session);
    }
}

/* The first that waits asks. */
static void ask_for_room(const struct session *session, unsigned index)
{
    const struct sched_seat *seat = &session->seats[index].seat;
    struct sched_gate *gate = gate_of(session, index);

    if (seat->kept_back && seat->owner->kept_back_count == 1)
        ask_holders(gate, seat->owner);
    else if (!seat->kept_back && gate->waiting_count == 1)
        ask_holders(gate, NULL);
}

/* --- seats --------------------------------------------------------------------------------- */

/* Its VM may have room now for one that was kept back, which nobody has been asked for yet. */
static void leave_seat(struct session *session, unsigned index)
{
    struct sched_gate *gate = gate_of(session, index);
    bool was_wanted = is_wanted(gate);

    sched_gate_leave(gate, &session->seats[index].seat);
    if (!was_wanted && is_wanted(gate))
        ask_holders(gate, NULL);
}

static void release_seat(struct session *session, unsigned index)
{
    struct sched_gate *gate = gate_of(session, index);
    bool was_wanted = is_wanted(gate);

    sched_gate_release(gate, &session->seats[index].seat);
    if (!was_wanted && is_wanted(gate))
        ask_holders(gate, NULL);
}

static struct vm_contexts *make_count(struct vm *vm, unsigned device)
{
    struct vm_contexts *contexts = calloc(1, sizeof(*contexts));

    if (!contexts)
        return NULL;
    contexts->device = device;
    sched_gate_owner_init(&contexts->owner);
    SLIST_INSERT_HEAD(&vm->contexts, contexts, in_vm);
    return contexts;
}

/* NULL: it has asked for none there yet. */
static struct sched_gate_owner *find_owner(const struct vm *vm, unsigned device)
{
    struct vm_contexts *contexts;

    SLIST_FOREACH (contexts, &vm->contexts, in_vm) {
        if (contexts->device == device)
            return &contexts->owner;
    }
    return NULL;
}

/* NULL: there is no memory to count them, so that only the device's cap bounds them. */
static struct sched_gate_owner *owner_of(struct vm *vm, unsigned device)
{
    struct sched_gate_owner *owner = find_owner(vm, device);
    struct vm_contexts *contexts = owner ? NULL : make_count(vm, device);

    return contexts ? &contexts->owner : owner;
}

void contexts_forget(struct vm *vm)
{
    struct vm_contexts *contexts;

    while ((contexts = SLIST_FIRST(&vm->contexts))) {
        SLIST_REMOVE_HEAD(&vm->contexts, in_vm);
        free(contexts);
    }
}

/* What it has on another device than its place's goes with the worker there. */
static void move_seat(struct session *session, unsigned index)
{
    struct session_seat *seat = &session->seats[index];

    seat->session = session;
    if (seat->device != session->places[index]->device) {
        leave_seat(session, index);
        release_seat(session, index);
        seat->device = session->places[index]->device;
        seat->seat.owner = NULL;
    }
    if (!seat->seat.owner && seat->seat.state == SCHED_SEAT_NONE)
        seat->seat.owner = owner_of(session->vm, seat->device);
}

static void move_seats(struct session *session)
{
    for (unsigned i = 0; i < session->place_count; i++)
        move_seat(session, i);
}

/* One on each of its devices, or on none. */
bool contexts_are_held(const struct session *session)
{
    return session->seats[0].seat.state == SCHED_SEAT_HELD;
}

static void release_all(struct session *session)
{
    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(session->seats); i++)
        release_seat(session, i);
}

static void leave_all(struct session *session)
{
    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(session->seats); i++)
        leave_seat(session, i);
}

/* --- waiting ------------------------------------------------------------------------------ */

bool contexts_waits_for_own(const struct session *session)
{
    return session->state == SESSION_GATED && session->seats[session->gated_at].seat.kept_back;
}

const char *contexts_limit_of(const struct session *session)
{
    return contexts_waits_for_own(session) ? "contexts_per_vm" : "contexts_per_device";
}

static void log_waiting(const struct session *session, unsigned index)
{
    const struct vm *vm = session->vm;
    const struct sched_gate *gate = gate_of(session, index);
    const char *device = vm->mediator->devices[session->seats[index].device];
    const struct log_field fields[] = {LOG_NUMBER("vm", vm->vm_id),
                                       LOG_TEXT("device", device),
                                       LOG_TEXT("limit", "contexts_per_device"),
                                       LOG_NUMBER("contexts", gate->held),
                                       LOG_NUMBER("contexts_max", gate->cap),
                                       LOG_NUMBER("waiting", gate->waiting_count)};

    log_event("CONTEXT", fields, VGPU_ARRAY_LENGTH(fields),
              "vm%u waits for a context of %s: %u of %u are there (contexts_per_device), and %u "
              "sessions wait",
              vm->vm_id, device, gate->held, gate->cap, gate->waiting_count);
}

/* Its VM has as many as it may have. */
static void log_waiting_for_own(const struct session *session, unsigned index)
{
    const struct vm *vm = session->vm;
    const struct sched_gate_owner *owner = session->seats[index].seat.owner;
    uint32_t cap = gate_of(session, index)->owner_cap;
    const char *device = vm->mediator->devices[session->seats[index].device];
    const struct log_field fields[] = {
        LOG_NUMBER("vm", vm->vm_id),          LOG_TEXT("device", device),
        LOG_TEXT("limit", "contexts_per_vm"), LOG_NUMBER("contexts", owner->held),
        LOG_NUMBER("contexts_max", cap),      LOG_NUMBER("waiting", owner->kept_back_count)};

    log_event(
        "CONTEXT", fields, VGPU_ARRAY_LENGTH(fields),
        "vm%u waits for a context of %s: it has %u of %u of its own (contexts_per_vm), and %u "
        "of its sessions wait",
        vm->vm_id, device, owner->held, cap, owner->kept_back_count);
}

static void tell_waiting(const struct session *session, unsigned index)
{
    struct vm_place *place = session->places[index];
    uint64_t now_ns = clock_monotonic_ns();

    if (place->gate_told_ns != 0 && now_ns - place->gate_told_ns < TELL_EVERY_NS)
        return;
    if (!vm_may_tell(session->vm))
        return;
    place->gate_told_ns = now_ns;
    if (session->seats[index].seat.kept_back)
        log_waiting_for_own(session, index);
    else
        log_waiting(session, index);
}

/* It gathers contexts of several devices: what it has been given of them is kept for it. */
static bool is_gathering(const struct session *session)
{
    return session->vm->mediator->gathering == session;
}

/* Its seat waits; so does the session, which takes part in no other queue meanwhile. */
static void stand_aside(struct session *session, unsigned index)
{
    struct vm_place *place = session->places[index];

    for (unsigned i = 0; i < session->place_count && !is_gathering(session); i++) {
        if (i != index)
            leave_seat(session, i);
    }
    session->state = SESSION_GATED;
    session->place = place;
    session->gated_at = index;
    TAILQ_INSERT_TAIL(&place->gated, session, in_order);
    place->gated_count++;
    if (session->place_count > 1) {
        session->gang.session = session;
        sched_gangs_join(&session->vm->mediator->gangs, &session->gang.gang, priority_of(session));
    }
    tell_waiting(session, index);
    ask_for_room(session, index);
}

static void step_forward(struct session *session)
{
    session->state = SESSION_IDLE;
    TAILQ_REMOVE(&session->place->gated, session, in_order);
    session->place->gated_count--;
    session->place = session->places[0];
}

/* A seat is kept on each of its devices, or waits for one.  Returns the first that waits,
 * place_count: none. */
static unsigned gather(struct session *session)
{
    unsigned first = session->place_count;

    for (unsigned i = session->place_count; i-- > 0;) {
        struct sched_seat *seat = &session->seats[i].seat;
        bool waited = seat->state == SCHED_SEAT_WAITING;

        sched_gate_reserve(gate_of(session, i), seat, priority_of(session));
        if (seat->state != SCHED_SEAT_WAITING)
            continue;
        first = i;
        if (!waited)
            ask_for_room(session, i);
    }
    return first;
}

/* Returns the first that has to wait, place_count: none has. */
static unsigned enter_all(struct session *session)
{
    for (unsigned i = 0; i < session->place_count; i++) {
        struct sched_seat *seat = &session->seats[i].seat;

        if (seat->state != SCHED_SEAT_ADMITTED &&
            !sched_gate_enter(gate_of(session, i), seat, priority_of(session)))
            return i;
    }
    return session->place_count;
}

bool contexts_enter(struct session *session)
{
    unsigned waits_at;

    assert(session->state == SESSION_IDLE);
    move_seats(session);
    if (!session->ops->needs_context(session))
        return true;
    waits_at = is_gathering(session) ? gather(session) : enter_all(session);
    if (waits_at < session->place_count)
        stand_aside(session, waits_at);
    return waits_at == session->place_count;
}

/* Returns the first for which there is no room, which waits then; place_count: all are HELD. */
static unsigned take_all(struct session *session)
{
    for (unsigned i = 0; i < session->place_count; i++) {
        if (!sched_gate_may_take(gate_of(session, i), &session->seats[i].seat)) {
            sched_gate_take(gate_of(session, i), &session->seats[i].seat);
            return i;
        }
    }
    for (unsigned i = 0; i < session->place_count; i++) {
        if (!sched_gate_take(gate_of(session, i), &session->seats[i].seat))
            return i;
    }
    return session->place_count;
}

/* It has what it needs, or wants nothing. */
static void leave_line(struct session *session)
{
    struct mediator *mediator = session->vm->mediator;

    sched_gangs_leave(&mediator->gangs, &session->gang.gang);
    if (is_gathering(session))
        mediator->gathering = NULL;
}

bool contexts_take(struct session *session)
{
    unsigned lacks;

    assert(session->state == SESSION_IDLE);
    if (!session->ops->needs_context(session)) {
        contexts_leave(session);
        return true;
    }
    move_seats(session);
    lacks = take_all(session);
    if (lacks == session->place_count) {
        leave_line(session);
        return true;
    }
    release_all(session); /* all or none; who had them before has them all */
    stand_aside(session, is_gathering(session) ? gather(session) : lacks);
    return false;
}

bool contexts_has_room(const struct session *session, unsigned device)
{
    const struct sched_gate *gate = &session->vm->mediator->gates[device];
    const struct sched_seat seat = {.owner = find_owner(session->vm, device),
                                    .priority = priority_of(session)};

    return !session->ops->needs_context(session) ||
           (gate->waiting_count == 0 && sched_gate_may_take(gate, &seat));
}

void contexts_leave(struct session *session)
{
    leave_line(session);
    leave_all(session);
    if (session->state == SESSION_GATED)
        step_forward(session);
}

bool contexts_are_wanted(const struct session *session)
{
    for (unsigned i = 0; contexts_are_held(session) && i < session->place_count; i++) {
        const struct sched_gate *gate = gate_of(session, i);

        if (is_wanted(gate) || is_wanted_by_owner(gate, session->seats[i].seat.owner))
            return true;
    }
    return false;
}

/* --- gathering ------------------------------------------------------------------------------ */

static struct session *of_gang(struct sched_gang *gang)
{
    return ((struct session_gang *)(void *)gang)->session; /* its first member */
}

/* What its own VM may not have it would keep from the others in vain. */
static bool may_gather(const struct session *session)
{
    if (is_gathering(session))
        return true;
    for (unsigned i = 0; i < session->place_count; i++) {
        if (sched_gate_owner_is_full(gate_of(session, i), &session->seats[i].seat))
            return false;
    }
    return session->state == SESSION_GATED;
}

/* It stands as any other: where it waits, with nothing kept elsewhere. */
static void stop_gathering(struct session *session)
{
    for (unsigned i = 0; i < session->place_count; i++) {
        sched_gate_unreserve(gate_of(session, i), &session->seats[i].seat);
        if (session->state == SESSION_GATED && i != session->gated_at)
            leave_seat(session, i);
    }
}

static void take_turns(struct mediator *mediator)
{
    struct session *last = mediator->gathering;
    struct sched_gang *gang;

    TAILQ_FOREACH (gang, &mediator->gangs.line, link)
        gang->able = may_gather(of_gang(gang));
    gang = sched_gangs_turn(&mediator->gangs, clock_monotonic_ns());
    mediator->gathering = gang ? of_gang(gang) : NULL;
    if (mediator->gathering == last)
        return;
    if (last)
        stop_gathering(last);
    if (mediator->gathering)
        gather(mediator->gathering);
}

void contexts_progress(const struct session *session)
{
    sched_gangs_progress(&session->vm->mediator->gangs, &session->gang.gang, clock_monotonic_ns());
}

bool contexts_admit(struct mediator *mediator)
{
    bool admitted = false;

    if (!TAILQ_EMPTY(&mediator->gangs.line))
        take_turns(mediator);
    for (unsigned device = 0; device < mediator->device_count; device++) {
        struct sched_gate *gate = &mediator->gates[device];
        struct sched_seat *seat;

        while ((seat = sched_gate_admit(gate))) {
            struct session *session = of_seat(seat);

            contexts_progress(session);
            step_forward(session);
            admitted = true;
            if (contexts_enter(session)) /* on its other devices */
                session_join(session);
        }
    }
    return admitted;
}

uint64_t contexts_deadline_ns(const struct mediator *mediator)
{
    return sched_gangs_deadline_ns(&mediator->gangs);
}

/* --- having ---------------------------------------------------------------------------------- */

/* It may have come by one without a grant of ours: under an earlier mediator's. */
static void hold(struct session *session)
{
    if (session->place_count == 0 || contexts_are_held(session) || session->state != SESSION_IDLE)
        return;
    for (unsigned i = 0; i < session->place_count; i++) {
        move_seat(session, i);
        sched_gate_hold(gate_of(session, i), &session->seats[i].seat);
    }
    if (contexts_are_wanted(session))
        session->ops->rest(session);
}

void contexts_settle(struct session *session)
{
    if (session->ops->contexts(session) > 0)
        hold(session);
    else
        release_all(session);
}

/* --- changes --------------------------------------------------------------------------------- */

void contexts_init(struct mediator *mediator, uint32_t cap, uint32_t vm_cap)
{
    for (unsigned i = 0; i < SCHED_DEVICES_MAX; i++)
        sched_gate_init(&mediator->gates[i]);
    sched_gangs_init(&mediator->gangs);
    contexts_set_cap(mediator, cap);
    contexts_set_vm_cap(mediator, vm_cap);
}

void contexts_set_cap(struct mediator *mediator, uint32_t cap)
{
    for (unsigned i = 0; i < SCHED_DEVICES_MAX; i++) {
        mediator->gates[i].cap = cap;
        if (is_wanted(&mediator->gates[i]))
            ask_holders(&mediator->gates[i], NULL);
    }
}

/* Those that were kept back stand in the queue, or its own sessions have more than they may. */
static void apply_vm_cap(struct vm *vm)
{
    struct vm_contexts *contexts;

    SLIST_FOREACH (contexts, &vm->contexts, in_vm) {
        struct sched_gate *gate = &vm->mediator->gates[contexts->device];

        sched_gate_let_in(gate, &contexts->owner);
        if (is_wanted_by_owner(gate, &contexts->owner))
            ask_holders(gate, &contexts->owner);
    }
}

void contexts_set_vm_cap(struct mediator *mediator, uint32_t cap)
{
    struct vm *vm, *next;

    for (unsigned i = 0; i < SCHED_DEVICES_MAX; i++)
        mediator->gates[i].owner_cap = cap;
    HASH_ITER (hh, mediator->vms, vm, next)
        apply_vm_cap(vm);
    for (unsigned i = 0; i < SCHED_DEVICES_MAX; i++) {
        if (is_wanted(&mediator->gates[i]))
            ask_holders(&mediator->gates[i], NULL);
    }
}

uint32_t contexts_cap(const struct mediator *mediator)
{
    return mediator->gates[0].cap;
}

uint32_t contexts_vm_cap(const struct mediator *mediator)
{
    return mediator->gates[0].owner_cap;
}

static void set_priority(struct session *session)
{
    unsigned priority = priority_of(session);

    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(session->seats); i++)
        sched_gate_set_priority(gate_of(session, i), &session->seats[i].seat, priority);
    session->gang.gang.priority = priority;
}

void contexts_set_priority(struct vm_place *place)
{
    struct session *session;

    TAILQ_FOREACH (session, &place->gated, in_order)
        set_priority(session);
    TAILQ_FOREACH (session, &place->waiting, in_order)
        set_priority(session); /* what is kept for it is kept by its priority */
}

/* --- telling --------------------------------------------------------------------------------- */

uint32_t contexts_waiting_vms(const struct mediator *mediator)
{
    struct vm *vm, *next;
    uint32_t count = 0;

    HASH_ITER (hh, mediator->vms, vm, next) {
        const struct vm_place *place;

        STAILQ_FOREACH (place, &vm->places, in_vm)
            count += place->gated_count > 0 && place->waiting_count == 0;
    }
    return count;
}

uint32_t contexts_waiting(const struct mediator *mediator, unsigned device)
{
    return mediator->gates[device].waiting_count + mediator->gates[device].kept_back_count;
}

struct list {
    struct session **sessions;
    size_t room, count;
};

static void add_seats(const struct sched_seats *seats, struct list *list)
{
    struct sched_seat *seat;

    TAILQ_FOREACH (seat, seats, link) {
        if (list->count < list->room)
            list->sessions[list->count++] = of_seat(seat);
    }
}

static void add_kept_back(const struct vm *vm, unsigned device, struct list *list)
{
    const struct vm_contexts *contexts;

    SLIST_FOREACH (contexts, &vm->contexts, in_vm) {
        if (contexts->device == device)
            add_seats(&contexts->owner.kept_back, list);
    }
}

size_t contexts_list_waiting(const struct mediator *mediator, unsigned device,
                             struct session **sessions, size_t room)
{
    struct list list = {.sessions = sessions, .room = room};
    struct vm *vm, *next;

    add_seats(&mediator->gates[device].waiting, &list);
    HASH_ITER (hh, mediator->vms, vm, next)
        add_kept_back(vm, device, &list);
    return list.count;
}

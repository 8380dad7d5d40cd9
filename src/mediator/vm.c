/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VM: one place in a device's queue for all of its sessions there.
 *
 *   session_wait() ─▶ place->waiting: s2 ─ s5 ─ s1 ─▶ sched_ready(place, 3)
 *                          │ first
 *   sched_next() ─ GRANT ─▶ vm_grant() ─▶ s2 runs ─▶ session_returned()
 *                                                       └─▶ sched_returned(place, …, 2)
 *
 * A session that needs a context which is not to be had stands in place->gated before all
 * this (contexts.c).
 *
 * The scheduler shares the device between VMs; inside a VM its sessions on it take
 * turns.  So a long grant ends also when another session of the same VM waits.
 *
 * A session on several devices goes through this once for each, and runs with the last:
 *
 *   place 0: wait ─ GRANT ─▶ holds it ─▶ place 1: wait ─ GRANT ─▶ runs ─▶ returns both
 */
#include "mediator/mediator.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define LINES_A_SECOND 50 /* of the log, that a guest can bring about */

static unsigned first_device(struct mediator *mediator, char pool_id)
{
    const struct config_pool *pool = mediator_find_pool(mediator, pool_id);
    unsigned devices[CONFIG_POOL_DEVICES_MAX];

    return pool && placement_devices(mediator, pool, devices) > 0 ? devices[0] : 0;
}

static void leave_queues(struct vm *vm)
{
    struct vm_place *place;

    STAILQ_FOREACH (place, &vm->places, in_vm)
        sched_remove_vm(vm->mediator->sched, place->queued);
}

static void free_places(struct vm *vm)
{
    struct vm_place *place;

    while ((place = STAILQ_FIRST(&vm->places))) {
        STAILQ_REMOVE_HEAD(&vm->places, in_vm);
        free(place);
    }
}

struct vm *vm_new(struct mediator *mediator, uint32_t vm_id, char pool, unsigned priority,
                  bool registered, struct vgpu_error *error)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    if (!vm) {
        error_set(error, ENOMEM, "no memory for VM %u", vm_id);
        return NULL;
    }
    vm->mediator = mediator;
    vm->vm_id = vm_id;
    vm->registered = registered;
    STAILQ_INIT(&vm->places);
    TAILQ_INIT(&vm->windows);
    vm->statistics.look_ns = clock_monotonic_ns();
    if (placement_add(vm, first_device(mediator, pool), pool, priority, error))
        vm->file = file_session_new(vm, error);
    if (!vm->file) {
        leave_queues(vm);
        free_places(vm);
        free(vm);
        return NULL;
    }
    HASH_ADD(hh, mediator->vms, vm_id, sizeof(vm_id), vm);
    metrics_add_vm(vm);
    return vm;
}

void vm_free(struct vm *vm)
{
    if (vm->removed)
        LIST_REMOVE(vm, in_removed);
    else
        HASH_DEL(vm->mediator->vms, vm); /* NOLINT: the analyzer is lost in the macro */
    metrics_remove_vm(vm);
    account_close(vm);
    quarantine_free(vm);
    free_places(vm);
    free(vm->file);
    contexts_forget(vm);
    free(vm);
}

struct vm *vm_find(struct mediator *mediator, uint32_t vm_id)
{
    struct vm *vm;

    HASH_FIND(hh, mediator->vms, &vm_id, sizeof(vm_id), vm);
    return vm;
}

int vm_update(struct vm *vm, char pool, unsigned priority, struct vgpu_error *error)
{
    struct vm_place *place;

    STAILQ_FOREACH (place, &vm->places, in_vm) {
        if (sched_update_vm(vm->mediator->sched, place->queued, pool, priority, error) < 0)
            return -1; /* at the first: what one refuses, all do */
        contexts_set_priority(place);
    }
    return 0;
}

void vm_push(struct vm *vm)
{
    struct window *window;

    LIST_FOREACH (window, &vm->mediator->links, in_mediator) {
        if (window->vm == vm)
            window_push_config(window);
    }
}

bool vm_uses(const struct vm *vm, int channel)
{
    return vm->registered && (vm->settings.channels == 0 || (vm->settings.channels & channel));
}

uint32_t vm_sessions_max(const struct vm *vm)
{
    return vm->settings.sessions_max ? vm->settings.sessions_max
                                     : vm->mediator->config->sessions_max;
}

uint32_t vm_device_memory_mib(const struct vm *vm)
{
    return vm->settings.device_memory_mib ? vm->settings.device_memory_mib
                                          : vm->mediator->config->device_memory_mib;
}

char vm_pool(const struct vm *vm)
{
    return sched_vm_pool(STAILQ_FIRST(&vm->places)->queued);
}

unsigned vm_priority(const struct vm *vm)
{
    return sched_vm_priority(STAILQ_FIRST(&vm->places)->queued);
}

uint32_t vm_waiting(const struct vm *vm)
{
    const struct vm_place *place;
    uint32_t count = 0;

    STAILQ_FOREACH (place, &vm->places, in_vm)
        count += place->waiting_count + place->gated_count;
    return count;
}

uint64_t vm_place_depth(const struct vm_place *place)
{
    const struct session *session;
    uint64_t depth = 0;

    TAILQ_FOREACH (session, &place->waiting, in_order)
        depth += session->depth;
    TAILQ_FOREACH (session, &place->gated, in_order)
        depth += session->depth;
    return depth;
}

uint64_t vm_depth(const struct vm *vm)
{
    const struct vm_place *place;
    uint64_t depth = 0;

    STAILQ_FOREACH (place, &vm->places, in_vm)
        depth += vm_place_depth(place);
    return depth;
}

static bool waits_longer(const struct session *session, const struct session *than)
{
    return session && (!than || session->waiting_since_ns < than->waiting_since_ns);
}

const struct session *vm_first_waiting(const struct vm *vm)
{
    const struct session *first = NULL;
    const struct vm_place *place;

    STAILQ_FOREACH (place, &vm->places, in_vm) {
        if (waits_longer(TAILQ_FIRST(&place->waiting), first))
            first = TAILQ_FIRST(&place->waiting);
        if (waits_longer(TAILQ_FIRST(&place->gated), first))
            first = TAILQ_FIRST(&place->gated);
    }
    return first;
}

bool vm_runs(const struct vm *vm)
{
    const struct vm_place *place;

    STAILQ_FOREACH (place, &vm->places, in_vm) {
        if (place->running)
            return true;
    }
    return false;
}

void vm_check_device(struct vm *vm)
{
    struct window_session *ws, *next;

    placement_update(vm);
    file_session_check_device(vm->file);
    for (ws = TAILQ_FIRST(&vm->windows); ws; ws = next) {
        next = TAILQ_NEXT(ws, in_vm);
        if (vm->refusal[0])
            window_session_leave_device(ws); /* nothing runs, and what it holds is kept */
        else
            window_session_check_device(ws);
    }
}

uint32_t vm_operation_limit_ms(const struct vm *vm)
{
    return vm->settings.operation_limit_ms ? vm->settings.operation_limit_ms
                                           : vm->mediator->config->operation_limit_ms;
}

bool vm_may_tell(struct vm *vm)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (now_ns - vm->told_ns >= NS_PER_S) {
        if (vm->untold > 0)
            log_warning("vm%u: %u lines about its links and sessions were too many to tell",
                        vm->vm_id, vm->untold);
        vm->told_ns = now_ns;
        vm->told = vm->untold = 0;
    }
    if (vm->told < LINES_A_SECOND) {
        vm->told++;
        return true;
    }
    vm->untold++;
    return false;
}

/* --- sessions -------------------------------------------------------------------- */

void session_init(struct session *session, struct vm *vm, const struct session_ops *ops)
{
    session->vm = vm;
    session->ops = ops;
    session->state = SESSION_IDLE;
}

static bool has_many(const struct session *session)
{
    return session->place_count > 1;
}

/* Into the line of the place that comes next. */
static void step_in(struct session *session)
{
    struct vm_place *place = session->places[session->held];

    session->place = place;
    TAILQ_INSERT_TAIL(&place->waiting, session, in_order);
    place->waiting_count++;
}

static void step_out(struct session *session)
{
    TAILQ_REMOVE(&session->place->waiting, session, in_order);
    session->place->waiting_count--;
}

static void join(struct session *session)
{
    session->state = SESSION_WAITING;
    step_in(session);
}

/* Stands where it must: before its devices' queues, or in the first one. */
static void stand(struct session *session, uint32_t depth)
{
    session->depth = depth;
    session->bounded = false;
    placement_expect(session, depth);
    session->waiting_since_ns = clock_monotonic_ns();
    if (contexts_enter(session))
        join(session);
    else
        vm_count(session->vm, METRICS_CONTEXT_WAITS, 1);
}

/* The scheduler hears how many wait here. */
static void tell_queue(struct vm_place *place)
{
    decisions_wait(place);
    sched_ready(place->vm->mediator->sched, place->queued, place->waiting_count,
                clock_monotonic_ns());
}

static void tell_joined(struct session *session)
{
    tell_queue(session->place);
    if (session->place->running && session->place->running_long)
        /* The scheduler knows places only: it will not. */
        vm_revoke(session->place, TRACE_REASON_OWN_WAITS);
}

/* All grants that it has go back; who waits in their places is told to the scheduler. */
static void give_back(struct session *session, uint64_t used_us)
{
    for (unsigned i = 0; i < session->held; i++) {
        struct vm_place *place = session->places[i];

        assert(place->running == session);
        place->running = NULL;
        decisions_return(place, used_us,
                         session->cut_short ? TRACE_REASON_WORKER : TRACE_REASON_NONE);
        place_time_return(place);
        sched_returned(session->vm->mediator->sched, place->queued, used_us, place->waiting_count,
                       clock_monotonic_ns());
    }
    session->held = 0;
    session->cut_short = false;
}

static void leave(struct session *session)
{
    struct vm_place *place = session->place;

    session->state = SESSION_IDLE;
    placement_expect(session, 0);
    step_out(session);
    give_back(session, 0);
    session->place = session->places[0];
    contexts_leave(session);
    tell_queue(place);
}

static void leave_gate(struct session *session)
{
    contexts_leave(session);
    placement_expect(session, 0);
}

void session_join(struct session *session)
{
    session->bounded = false;
    join(session);
    tell_joined(session);
}

void session_wait(struct session *session, uint32_t depth)
{
    struct vm *vm = session->vm;

    assert(session->state == SESSION_IDLE);
    if (vm->refusal[0]) {
        session->depth = depth;
        session->ops->refuse(session);
        return;
    }
    if (!placement_stands(session))
        placement_choose(session);
    else
        placement_rebalance(session);
    stand(session, depth);
    if (session->state == SESSION_WAITING)
        tell_joined(session);
}

void session_returned(struct session *session, uint64_t used_us, uint32_t depth_left)
{
    struct vm *vm = session->vm;
    bool again = depth_left > 0 && (vm->refusal[0] || !placement_stands(session));
    unsigned held = session->held;

    assert(session->state == SESSION_RUNNING && held == session->place_count);
    session_time_run(session);
    session->state = SESSION_IDLE;
    placement_expect(session, 0);
    vm->mediator->running--;
    contexts_settle(session);
    session->held = 0;
    if (depth_left > 0 && !again)
        stand(session, depth_left); /* so that the scheduler hears of both together */
    session->held = held;
    give_back(session, used_us);
    if (again)
        session_wait(session, depth_left);
    mediator_session_idle(vm->mediator);
}

void session_withdraw(struct session *session)
{
    if (session->state == SESSION_RUNNING)
        session_returned(session, 0, 0);
    else if (session->state == SESSION_WAITING)
        leave(session);
    else if (session->state == SESSION_GATED)
        leave_gate(session);
}

/* --- the scheduler's word --------------------------------------------------------- */

/* What it needs of contexts, with the last of its grants.  False: others took them, so it
 * stands before the queues again. */
static bool take_contexts(struct session *session)
{
    session->state = SESSION_IDLE;
    return contexts_take(session);
}

/* Whose turn it is in this place.  NULL: others took the contexts that they need. */
static struct session *take_next(struct vm_place *place)
{
    struct session *session;

    while ((session = TAILQ_FIRST(&place->waiting))) {
        step_out(session);
        if (has_many(session) || take_contexts(session))
            return session;
    }
    return NULL;
}

/* It has the grants of all its places, of which `grant` is the last.  Long are all or none. */
static void run(struct session *session, const struct sched_grant *grant)
{
    struct sched_grant given = *grant;

    if (session->bounded && given.device_us == SCHED_GRANT_LONG_US)
        given.device_us = session->vm->mediator->grant_rules.grant_us;
    for (unsigned i = 0; i < session->place_count; i++)
        session->places[i]->running_long = !session->bounded;
    session_time_wait(session, &given);
    session->state = SESSION_RUNNING;
    session->place = session->places[0];
    session->vm->mediator->running++;
    session->ops->run(session, &given);
}

void vm_grant(struct vm_place *place, const struct sched_grant *grant)
{
    struct session *session = take_next(place);

    assert(!place->running);
    if (!session) {
        sched_returned(place->vm->mediator->sched, place->queued, 0, 0, clock_monotonic_ns());
        return;
    }
    place->running = session;
    decisions_grant(place, grant);
    session->held++;
    place->running_long = grant->device_us == SCHED_GRANT_LONG_US && place->waiting_count == 0;
    session->bounded = session->bounded || !place->running_long;
    if (session->held < session->place_count) {
        contexts_progress(session);
        step_in(session);
        tell_joined(session);
    } else if (!has_many(session) || take_contexts(session)) {
        run(session, grant);
    } else {
        give_back(session, 0);
    }
}

/* A session that still waits for the rest of its devices gets it, and then a bounded grant:
 * one that was revoked before it began would be lost time for all.  And one on several devices
 * that has a bounded one keeps it to its end, which comes soon. */
void vm_revoke(struct vm_place *place, enum trace_reason reason)
{
    struct session *session = place->running;

    if (session)
        decisions_revoke(place, reason);
    if (session && session->state == SESSION_WAITING)
        session->bounded = true;
    else if (session && (!has_many(session) || place->running_long))
        session->ops->revoke(session);
}

/* It has this device's grant, and not all that it needs to run. */
static struct session *gathers_on(const struct mediator *mediator, unsigned device)
{
    const struct sched_vm *queued = sched_running(mediator->sched, device);
    const struct vm_place *place = queued ? sched_vm_context(queued) : NULL;

    return place && place->running && place->running->state == SESSION_WAITING ? place->running
                                                                               : NULL;
}

bool vm_yield(struct mediator *mediator)
{
    bool yielded = false;

    for (unsigned device = 0; device < mediator->device_count; device++) {
        struct session *session = gathers_on(mediator, device);
        struct sched_vm *next;

        if (!session || !policy_is_strict(session->vm) ||
            sched_list_waiting(mediator->sched, device, &next, 1) == 0 ||
            sched_vm_priority(next) <= vm_priority(session->vm))
            continue;
        session_withdraw(session);
        session_wait(session, session->depth);
        yielded = true;
    }
    return yielded;
}

void vm_revoke_all(struct vm *vm)
{
    struct vm_place *place;

    STAILQ_FOREACH (place, &vm->places, in_vm)
        vm_revoke(place, TRACE_REASON_STOP);
}

/* --- refused, removed --------------------------------------------------------------- */

/* What waits is answered at once.  What runs comes to its end: a session with a long
 * grant gives it back. */
static void refuse_waiting(struct vm *vm)
{
    struct vm_place *place;
    struct session *session;

    STAILQ_FOREACH (place, &vm->places, in_vm) {
        while ((session = TAILQ_FIRST(&place->waiting))) {
            leave(session);
            session->ops->refuse(session);
        }
        while ((session = TAILQ_FIRST(&place->gated))) {
            leave_gate(session);
            session->ops->refuse(session);
        }
        vm_revoke(place, TRACE_REASON_STOP);
    }
}

void vm_set_refusal(struct vm *vm, const char *text)
{
    struct window_session *ws;
    bool refused = vm->refusal[0] != '\0';

    text_copy(vm->refusal, sizeof(vm->refusal), text);
    if (text[0] != '\0') {
        refuse_waiting(vm); /* nothing waits when it was refused before */
        return;
    }
    TAILQ_FOREACH (ws, &vm->windows, in_vm) {
        if (refused)
            window_session_accept(ws);
    }
}

void vm_end_windows(struct vm *vm, const char *reason)
{
    struct window_session *ws, *next_ws;
    struct window *window, *next;

    for (window = LIST_FIRST(&vm->mediator->links); window; window = next) {
        next = LIST_NEXT(window, in_mediator);
        if (window->vm == vm)
            window_drop(window, reason);
    }
    window_channel_remove_vm(vm->mediator->windows, vm->vm_id);
    for (ws = TAILQ_FIRST(&vm->windows); ws; ws = next_ws) {
        next_ws = TAILQ_NEXT(ws, in_vm);
        window_session_end(ws);
    }
}

void vm_remove(struct vm *vm)
{
    struct mediator *mediator = vm->mediator;
    struct file_channel_vm gone = {.vm_id = vm->vm_id};
    char text[CONFIG_REFUSAL_BYTES];

    snprintf(text, sizeof(text), "VM %u was removed by the administrator", vm->vm_id);
    vm->removed = true;
    HASH_DEL(mediator->vms, vm); /* NOLINT: the analyzer is lost in the macro */
    LIST_INSERT_HEAD(&mediator->removed, vm, in_removed);
    if (mediator->channel)
        channel_set_vm(mediator->channel, &gone, false);
    vm_set_refusal(vm, text);
    if (mediator->windows)
        vm_end_windows(vm, vm->refusal);
    file_session_end(vm->file);
}

static bool has_ended(const struct vm *vm)
{
    return !vm_runs(vm) && vm_waiting(vm) == 0 && TAILQ_EMPTY(&vm->windows) &&
           file_session_has_ended(vm->file);
}

void vm_free_removed(struct mediator *mediator)
{
    struct vm *vm, *next;

    for (vm = LIST_FIRST(&mediator->removed); vm; vm = next) {
        next = LIST_NEXT(vm, in_removed);
        if (!has_ended(vm))
            continue;
        placement_leave(&vm->file->session);
        leave_queues(vm);
        file_session_free(vm->file);
        vm->file = NULL;
        vm_free(vm);
    }
    if (LIST_EMPTY(&mediator->removed))
        control_server_removed(mediator->control);
}

bool vm_is_ending(const struct mediator *mediator, uint32_t vm_id)
{
    const struct vm *vm;

    LIST_FOREACH (vm, &mediator->removed, in_removed) {
        if (vm->vm_id == vm_id)
            return true;
    }
    return false;
}

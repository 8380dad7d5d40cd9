/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting: looks, spins for `spin_us`, then sleeps until the interrupt.
 *
 *   look ──▶ spin ──▶ cq_event := what to be woken for
 *    ▲                FULL fence
 *    │                cq_tail moved? ──yes──┐
 *    └─────────── sleep ◀──no               │
 *    └──────────────────────────────────────┘
 *
 * While it spins or works, cq_event stays behind and the host raises nothing.
 *
 * The two fences make sure that no wake-up is lost, where fences are fences.  There
 * are emulated processors on which they are not; so a sleep ends after a second, and
 * both sides' indices are looked at again.
 */
#include "private.h"

#define LOOKS_BEFORE_PAUSE 512u
#define LOOKS_BEFORE_CLOCK 64u /* the clock costs as much as a dozen looks */
#define ROOM_LOOK_US 10000
#define LOOK_AROUND_EACH 1024u
#define SLEEP_NS NS_PER_S

static bool is_nothing_new(const struct vgpu_session *session)
{
    return __atomic_load_n(&session->host->cq_tail, __ATOMIC_RELAXED) == session->cq_head;
}

/* True: something came.  A worker that polls answers within the first looks, where
 * a pause would only cost: under emulation as much as the whole answer. */
static bool spin(const struct vgpu_session *session)
{
    int64_t end_ns = 0;

    if (session->spin_ns == 0)
        return !is_nothing_new(session);
    for (uint32_t i = 0; i < LOOKS_BEFORE_PAUSE; i++) {
        if (!is_nothing_new(session))
            return true;
    }
    for (;;) {
        for (uint32_t i = 0; i < LOOKS_BEFORE_CLOCK; i++) {
            if (!is_nothing_new(session))
                return true;
            cpu_relax();
        }
        if (end_ns == 0)
            end_ns = clock_ns() + session->spin_ns;
        else if (clock_ns() >= end_ns)
            return false;
    }
}

/* Asks to be woken when `count` more completions are there.  False: there is
 * one already. */
static bool arm(struct vgpu_session *session, uint32_t count)
{
    __atomic_store_n(&session->guest->cq_event, session->cq_head + count - 1, __ATOMIC_RELAXED);
    vgpu_fence_full(); /* the event before the tail is read */
    return is_nothing_new(session);
}

static int timed_out(int64_t timeout_us, struct vgpu_problem *problem)
{
    return problem_set(problem, VGPU_PROBLEM_TIMEOUT,
                       "no answer within %lld us; the operation goes on and can be waited for "
                       "again",
                       (long long)timeout_us);
}

static void look(struct vgpu_session *session)
{
    take_completions(session);
    take_dispatch(session);
}

/* The rings' state matters only when nothing comes. */
static void check_host(struct vgpu_session *session)
{
    if (__atomic_load_n(&session->host->state, __ATOMIC_RELAXED) == VGPU_SESSION_FAULTED)
        session_end(session, VGPU_PROBLEM_CLOSED,
                    "the host ended the session's work because its rings made no sense to it; "
                    "open a new session");
}

/* A session that never sleeps must see its end, a new mediator, and a host that sleeps
 * on what it was given, all the same. */
static __attribute__((noinline, cold)) void do_look_around(struct vgpu_session *session)
{
    session->transport->sleep(session, 0);
    if (session_usable(session))
        submit_ring_again(session);
}

static inline void look_around(struct vgpu_session *session)
{
    if (__builtin_expect(++session->looks % LOOK_AROUND_EACH == 0, 0))
        do_look_around(session);
}

/* When `timeout_us` is over; INT64_MAX: never. */
static int64_t deadline_of(int64_t timeout_us)
{
    int64_t now_ns = clock_ns();

    if (timeout_us >= (INT64_MAX - now_ns) / NS_PER_US)
        return INT64_MAX;
    return now_ns + timeout_us * NS_PER_US;
}

/* Until the interrupt, or for `left_ns`; not for ever, whatever the host does. */
static void nap(struct vgpu_session *session, int64_t left_ns)
{
    session->transport->sleep(session, left_ns < SLEEP_NS ? left_ns : SLEEP_NS);
    if (is_nothing_new(session) && session_usable(session))
        submit_ring_again(session);
}

int wait_until(struct vgpu_session *session, wait_condition condition, uint64_t argument,
               bool wake_at_last, int64_t timeout_us, struct vgpu_problem *problem)
{
    int64_t deadline_ns = 0, left_ns = INT64_MAX;

    if (!session_usable(session))
        return session_refuse(session, problem);
    submit_publish(session);
    look_around(session);
    for (;;) {
        look(session);
        if (condition(session, argument))
            return 0;
        if (!session_usable(session))
            return session_refuse(session, problem);
        if (timeout_us == 0)
            return timed_out(timeout_us, problem);
        if (timeout_us > 0 && deadline_ns == 0)
            deadline_ns = deadline_of(timeout_us);
        if (spin(session))
            continue;
        if (timeout_us > 0) {
            left_ns = deadline_ns - clock_ns();
            if (left_ns <= 0)
                return timed_out(timeout_us, problem);
        }
        if (!arm(session, wake_at_last ? session->sent : 1))
            continue;
        check_host(session);
        if (session_usable(session))
            nap(session, left_ns);
    }
}

/* --- room in the ring --------------------------------------------------------------- */

static bool has_room(struct vgpu_session *session, uint64_t argument)
{
    uint32_t head = vgpu_load_acquire(&session->host->sq_head);

    (void)argument;
    /* Beyond the tail it cannot be: then it is not believed. */
    if (session->sq_tail - head <= VGPU_RING_ENTRIES)
        session->sq_head = head;
    return session->sq_tail - session->sq_head < VGPU_RING_ENTRIES;
}

int wait_for_room(struct vgpu_session *session, struct vgpu_problem *problem)
{
    struct vgpu_problem late;

    if (has_room(session, 0))
        return 0;
    /* sq_head may become visible after the completion that woke us. */
    while (wait_until(session, has_room, 0, false, ROOM_LOOK_US, &late) < 0) {
        if (late.status != VGPU_PROBLEM_TIMEOUT)
            return problem_copy(problem, &late);
    }
    return 0;
}

/* --- results --------------------------------------------------------------------------- */

/* Or a callback has fetched it meanwhile, and its entry may be another's. */
static bool is_answered(struct vgpu_session *session, uint64_t ticket)
{
    const struct pending *entry = &session->pending[ticket % PENDING_COUNT];

    return entry->ticket != ticket || entry->state != PENDING_SENT;
}

static struct vgpu_result result_of(const struct pending *entry)
{
    return (struct vgpu_result){.ticket = entry->ticket,
                                .value = entry->value,
                                .status = entry->status,
                                .run_us = entry->run_us};
}

static void fetch(struct vgpu_session *session, uint16_t index, struct vgpu_result *ret_result)
{
    if (ret_result)
        *ret_result = result_of(&session->pending[index]);
    pending_remove(session, &session->kept, index);
    pending_free(session, index);
}

static int no_such_ticket(vgpu_ticket ticket, struct vgpu_problem *problem)
{
    return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                       "ticket %llu cannot be waited for: expected one of an operation without "
                       "callback and without VGPU_FLAG_QUIET whose result was not fetched before",
                       (unsigned long long)ticket);
}

int vgpu_wait(struct vgpu_session *session, vgpu_ticket ticket, int64_t timeout_us,
              struct vgpu_result *ret_result, struct vgpu_problem *problem)
{
    uint16_t index = ticket % PENDING_COUNT;
    const struct pending *entry = &session->pending[index];

    if (*session->use == SESSION_FORKED)
        return session_refuse(session, problem);
    if (entry->ticket != ticket || entry->callback || entry->is_own ||
        (entry->state != PENDING_SENT && entry->state != PENDING_KEPT))
        return no_such_ticket(ticket, problem);
    if (entry->state == PENDING_SENT &&
        wait_until(session, is_answered, ticket, false, timeout_us, problem) < 0)
        return -1;
    /* A callback that ran meanwhile may have fetched it. */
    if (entry->ticket != ticket || entry->state != PENDING_KEPT)
        return no_such_ticket(ticket, problem);
    fetch(session, index, ret_result);
    return 0;
}

int own_wait(struct vgpu_session *session, vgpu_ticket ticket, struct vgpu_result *ret_result,
             struct vgpu_problem *problem)
{
    uint16_t index = ticket % PENDING_COUNT;

    /* A session that was lost meanwhile has answered it. */
    if (!is_answered(session, ticket) &&
        wait_until(session, is_answered, ticket, false, VGPU_FOREVER, problem) < 0)
        return -1;
    *ret_result = result_of(&session->pending[index]);
    pending_free(session, index);
    return 0;
}

static bool is_all_answered(struct vgpu_session *session, uint64_t argument)
{
    (void)argument;
    return session->sent == 0;
}

int vgpu_wait_all(struct vgpu_session *session, int64_t timeout_us, struct vgpu_problem *problem)
{
    /* Nobody looks at them before the last: one wake-up for all. */
    return wait_until(session, is_all_answered, 0, session->sent_callbacks == 0, timeout_us,
                      problem);
}

int vgpu_poll(struct vgpu_session *session, struct vgpu_result *ret_results, int most,
              struct vgpu_problem *problem)
{
    int count = 0;

    if (*session->use == SESSION_FORKED)
        return session_refuse(session, problem);
    if (session_usable(session)) {
        submit_publish(session);
        if (session->armed) {
            session->armed = false;
            session->transport->sleep(session, 0);
        }
        look_around(session);
        if (session_usable(session))
            look(session);
        else
            take_dispatch(session); /* what it has lost */
    }
    while (count < most && session->kept.first != PENDING_NONE)
        fetch(session, session->kept.first, &ret_results[count++]);
    return count > 0 || session_usable(session) ? count : session_refuse(session, problem);
}

int vgpu_cancel(struct vgpu_session *session, vgpu_ticket ticket, bool *ret_cancelled,
                struct vgpu_problem *problem)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_CANCEL, .cancel.cookie = ticket};
    uint64_t cancelled;

    if (submit_and_wait(session, &descriptor, "cancel", &cancelled, problem) < 0)
        return -1;
    if (ret_cancelled)
        *ret_cancelled = cancelled > 0;
    return 0;
}

/* --- event loops -------------------------------------------------------------------------- */

int vgpu_fd(const struct vgpu_session *session)
{
    return *session->use == SESSION_FORKED ? -1 : session->fd;
}

int vgpu_arm(struct vgpu_session *session)
{
    if (!session_usable(session) || session->kept.first != PENDING_NONE)
        return 1;
    submit_publish(session);
    session->armed = true;
    return arm(session, 1) ? 0 : 1;
}

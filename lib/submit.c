/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Submitting: one descriptor into the ring, one entry into the table.  No
 * allocation, and no system call but the doorbell, which is rung only when the
 * host's event index asks for it.
 *
 * A full ring empties without telling: only completions raise the interrupt.  So
 * that a sleeper for room is always woken, a ping of the library's own stands
 * among each QUIET_RUN_MAX quiet operations.
 */
#include "private.h"

#define QUIET_RUN_MAX (VGPU_RING_ENTRIES / 2)

void submit_publish(struct vgpu_session *session)
{
    uint32_t tail = session->sq_tail, old_tail = session->sq_published;

    if (tail == old_tail)
        return;
    vgpu_store_release(&session->guest->sq_tail, tail);
    session->sq_published = tail;
    vgpu_fence_full(); /* tail before the event is read */
    if (vgpu_event_passed(__atomic_load_n(&session->host->sq_event, __ATOMIC_RELAXED), tail,
                          old_tail))
        session->transport->ring(session);
}

void submit_ring_again(struct vgpu_session *session)
{
    uint32_t tail = session->sq_published;
    int64_t now_ns;

    if (__atomic_load_n(&session->host->sq_head, __ATOMIC_RELAXED) == tail ||
        !vgpu_event_passed(__atomic_load_n(&session->host->sq_event, __ATOMIC_RELAXED), tail,
                           tail - VGPU_RING_ENTRIES))
        return;
    now_ns = clock_ns();
    if (now_ns - session->rung_again_ns < NS_PER_S)
        return;
    session->rung_again_ns = now_ns;
    session->transport->ring(session);
}

static void nothing(struct vgpu_session *session, const struct vgpu_result *result, void *context)
{
    (void)session;
    (void)result;
    (void)context;
}

static int no_entry(struct vgpu_problem *problem)
{
    return problem_set(problem, VGPU_PROBLEM_FULL,
                       "%u operations have no answer, or one that nobody fetched: fetch results "
                       "with vgpu_wait() or vgpu_poll() first",
                       PENDING_COUNT);
}

/* Entries become free by themselves only where a callback takes the answer. */
static bool is_entry_or_hopeless(struct vgpu_session *session, uint64_t argument)
{
    (void)argument;
    return session->free_count > 0 || session->sent_callbacks == 0 || session->dispatching;
}

/* The rare cases before a descriptor can be written.  Callbacks run in both waits
 * and may submit, so each wait may undo the other's success; either may find the session
 * lost. */
static __attribute__((noinline, cold)) int make_room(struct vgpu_session *session, bool is_quiet,
                                                     struct vgpu_problem *problem)
{
    for (;;) {
        if (!session_usable(session))
            return session_refuse(session, problem);
        if (session->sq_tail - session->sq_head >= VGPU_RING_ENTRIES) {
            if (wait_for_room(session, problem) < 0)
                return -1;
        } else if (is_quiet || session->free_count > 0) {
            return 0;
        } else {
            if (wait_until(session, is_entry_or_hopeless, 0, false, VGPU_FOREVER, problem) < 0)
                return -1;
            if (session->free_count == 0)
                return no_entry(problem);
        }
    }
}

static inline void write_descriptor(struct vgpu_session *session,
                                    const struct vgpu_descriptor *descriptor, uint64_t cookie)
{
    struct vgpu_descriptor *place = &session->descriptors[session->sq_tail % VGPU_RING_ENTRIES];

    *place = *descriptor;
    place->cookie = cookie;
    session->sq_tail++;
}

static inline bool is_short_of_room(const struct vgpu_session *session)
{
    return __builtin_expect(
        session->sq_tail - session->sq_head >= VGPU_RING_ENTRIES || session->free_count == 0, 0);
}

/* The path of all but quiet operations: nothing here may be slow. */
static inline int submit(struct vgpu_session *session, const struct vgpu_descriptor *descriptor,
                         vgpu_callback callback, void *context, bool is_own,
                         vgpu_ticket *ret_ticket, struct vgpu_problem *problem)
{
    struct pending *entry;
    vgpu_ticket ticket;
    uint16_t index;

    if (!session_usable(session))
        return session_refuse(session, problem);
    if (is_short_of_room(session) && make_room(session, false, problem) < 0)
        return -1;
    if (__builtin_expect(session->written != NULL, 0))
        written_note(session, descriptor);
    index = session->free_entries[--session->free_count];
    ticket = ++session->serial * PENDING_COUNT + index;
    entry = &session->pending[index];
    entry->ticket = ticket;
    entry->callback = callback;
    entry->context = context;
    entry->state = PENDING_SENT;
    entry->is_own = is_own;
    session->sent++;
    session->sent_callbacks += callback != NULL;
    session->quiet_run = 0;
    write_descriptor(session, descriptor, ticket);
    if (is_own)
        session->descriptors[(session->sq_tail - 1) % VGPU_RING_ENTRIES].device = session->device;
    if (ret_ticket)
        *ret_ticket = ticket;
    if (session->batches == 0)
        submit_publish(session);
    return 0;
}

static __attribute__((noinline)) int submit_marker(struct vgpu_session *session,
                                                   struct vgpu_problem *problem)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};

    return submit(session, &ping, nothing, NULL, false, NULL, problem);
}

int submit_prepare_quiet(struct vgpu_session *session, struct vgpu_problem *problem)
{
    int result = 0;

    while (result == 0) {
        if (!session_usable(session))
            return session_refuse(session, problem);
        if (session->quiet_run >= QUIET_RUN_MAX)
            result = submit_marker(session, problem);
        else if (session->sq_tail - session->sq_head >= VGPU_RING_ENTRIES)
            result = make_room(session, true, problem);
        else
            return 0;
    }
    return -1;
}

static __attribute__((noinline)) int submit_quiet(struct vgpu_session *session,
                                                  const struct vgpu_descriptor *descriptor,
                                                  vgpu_ticket *ret_ticket,
                                                  struct vgpu_problem *problem)
{
    vgpu_ticket ticket;

    if (submit_prepare_quiet(session, problem) < 0)
        return -1;
    if (session->written)
        written_note(session, descriptor);
    session->quiet_run++;
    ticket = ++session->serial * PENDING_COUNT;
    write_descriptor(session, descriptor, ticket);
    if (ret_ticket)
        *ret_ticket = ticket;
    if (session->batches == 0)
        submit_publish(session);
    return 0;
}

int vgpu_submit(struct vgpu_session *session, const struct vgpu_descriptor *descriptor,
                vgpu_callback callback, void *context, vgpu_ticket *ret_ticket,
                struct vgpu_problem *problem)
{
    if (descriptor->flags & VGPU_FLAG_QUIET)
        return submit_quiet(session, descriptor, ret_ticket, problem);
    return submit(session, descriptor, callback, context, false, ret_ticket, problem);
}

int own_submit(struct vgpu_session *session, const struct vgpu_descriptor *descriptor,
               vgpu_ticket *ret_ticket, struct vgpu_problem *problem)
{
    return submit(session, descriptor, NULL, NULL, true, ret_ticket, problem);
}

int submit_and_wait(struct vgpu_session *session, const struct vgpu_descriptor *descriptor,
                    const char *what, uint64_t *ret_value, struct vgpu_problem *problem)
{
    struct vgpu_result result;
    vgpu_ticket ticket = 0;

    if (own_submit(session, descriptor, &ticket, problem) < 0 ||
        own_wait(session, ticket, &result, problem) < 0)
        return -1;
    if (result.status != VGPU_OK)
        return session_problem_of(session, problem, result.status, what);
    if (ret_value)
        *ret_value = result.value;
    return 0;
}

void vgpu_batch_begin(struct vgpu_session *session)
{
    session->batches++;
}

void vgpu_batch_end(struct vgpu_session *session)
{
    if (session->batches > 0)
        session->batches--;
    if (session->batches == 0 && session_usable(session))
        submit_publish(session);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions: from the ring into the table of pending operations.
 *
 *   ring ──▶ entry SENT ─┬─▶ KEPT      list in order of answers, until fetched
 *                        ├─▶ CALLBACK  list, until take_dispatch() has run it
 *                        └─▶ OWN       no list: the library's call that waits knows it
 *
 * The ticket is the cookie and carries its entry's index; an answer whose cookie
 * is not exactly that of a sent operation is dropped.  Callbacks run after the
 * ring was emptied and never inside one another, so that one that waits for
 * something cannot pile up stack.
 */
#include "private.h"

#include <stdlib.h>

void pending_open(struct vgpu_session *session)
{
    for (uint32_t i = 0; i < PENDING_COUNT; i++)
        session->free_entries[i] = (uint16_t)(PENDING_COUNT - 1 - i);
    session->free_count = PENDING_COUNT;
    session->kept = session->callbacks = (struct pending_list){PENDING_NONE, PENDING_NONE};
}

void pending_append(struct vgpu_session *session, struct pending_list *list, uint16_t index)
{
    struct pending *entry = &session->pending[index];

    entry->next = PENDING_NONE;
    entry->previous = list->last;
    if (list->last == PENDING_NONE)
        list->first = index;
    else
        session->pending[list->last].next = index;
    list->last = index;
}

void pending_remove(struct vgpu_session *session, struct pending_list *list, uint16_t index)
{
    const struct pending *entry = &session->pending[index];

    if (entry->previous == PENDING_NONE)
        list->first = entry->next;
    else
        session->pending[entry->previous].next = entry->next;
    if (entry->next == PENDING_NONE)
        list->last = entry->previous;
    else
        session->pending[entry->next].previous = entry->previous;
}

/* To whom it belongs that was SENT and has its answer now. */
static void hand_over(struct vgpu_session *session, uint16_t index)
{
    struct pending *entry = &session->pending[index];

    session->sent--;
    if (entry->callback) {
        session->sent_callbacks--;
        entry->state = PENDING_CALLBACK;
        pending_append(session, &session->callbacks, index);
    } else if (entry->is_own) {
        entry->state = PENDING_OWN;
    } else {
        entry->state = PENDING_KEPT;
        pending_append(session, &session->kept, index);
    }
}

static void take_one(struct vgpu_session *session, const struct vgpu_completion *completion)
{
    uint64_t cookie = completion->cookie;
    uint16_t index = cookie % PENDING_COUNT;
    struct pending *entry = &session->pending[index];

    if ((int32_t)(completion->sequence + 1 - session->sequence_seen) > 0)
        session->sequence_seen = completion->sequence + 1;
    if (entry->ticket != cookie || entry->state != PENDING_SENT)
        return;
    entry->value = completion->result;
    entry->status = completion->status;
    entry->run_us = completion->run_us;
    hand_over(session, index);
}

void take_completions(struct vgpu_session *session)
{
    uint32_t tail = vgpu_load_acquire(&session->host->cq_tail);
    uint32_t head = session->cq_head;

    if (tail == head)
        return;
    if (session->transport->confirm && !session->transport->confirm(session))
        return;
    if (tail - head > VGPU_RING_ENTRIES) {
        session_end(session, VGPU_PROBLEM_CLOSED,
                    "the host published %u completions at once where %u fit: the window is "
                    "broken; open a new session",
                    tail - head, VGPU_RING_ENTRIES);
        return;
    }
    for (; head != tail; head++)
        take_one(session, &session->completions[head % VGPU_RING_ENTRIES]);
    session->cq_head = head;
    vgpu_store_release(&session->guest->cq_head, head);
}

static int compare_tickets(const void *a, const void *b)
{
    const vgpu_ticket *first = a, *second = b;

    return (*first > *second) - (*first < *second);
}

void take_losses(struct vgpu_session *session)
{
    vgpu_ticket tickets[PENDING_COUNT];
    uint32_t count = 0;

    for (uint32_t i = 0; i < PENDING_COUNT; i++) {
        if (session->pending[i].state == PENDING_SENT)
            tickets[count++] = session->pending[i].ticket;
    }
    qsort(tickets, count, sizeof(tickets[0]), compare_tickets);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t index = tickets[i] % PENDING_COUNT;

        session->pending[index].value = session->pending[index].run_us = 0;
        session->pending[index].status = VGPU_DEVICE_LOST;
        hand_over(session, index);
    }
}

static void run_callback(struct vgpu_session *session, uint16_t index)
{
    struct pending *entry = &session->pending[index];
    const struct vgpu_result result = {.ticket = entry->ticket,
                                       .value = entry->value,
                                       .status = entry->status,
                                       .run_us = entry->run_us};
    vgpu_callback callback = entry->callback;
    void *context = entry->context;

    pending_remove(session, &session->callbacks, index);
    pending_free(session, index);
    callback(session, &result, context);
}

void take_dispatch(struct vgpu_session *session)
{
    if (session->dispatching)
        return;
    session->dispatching = true;
    while (session->callbacks.first != PENDING_NONE)
        run_callback(session, session->callbacks.first);
    session->dispatching = false;
}

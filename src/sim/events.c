/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is to happen, earliest first: a heap of four children a node, which touches fewer lines
 * of cache than one of two.
 */
#include "sim/private.h"

#include <stdlib.h>

#define CHILDREN 4u

static bool is_earlier(const struct event *a, const struct event *b)
{
    return a->time_ns != b->time_ns ? a->time_ns < b->time_ns : a->order < b->order;
}

void events_add(struct events *events, uint64_t time_ns, enum event_type type, uint32_t index)
{
    const struct event event = {.time_ns = time_ns,
                                .order =
                                    ((uint64_t)type << EVENT_TYPE_SHIFT) + ++events->last_number,
                                .index = index};
    size_t at = events->count++;

    events->heap = sim_grow(events->heap, events->count, &events->room, sizeof(event));
    while (at > 0 && is_earlier(&event, &events->heap[(at - 1) / CHILDREN])) {
        events->heap[at] = events->heap[(at - 1) / CHILDREN];
        at = (at - 1) / CHILDREN;
    }
    events->heap[at] = event;
}

enum event_type event_type(const struct event *event)
{
    return (enum event_type)(event->order >> EVENT_TYPE_SHIFT);
}

static size_t earliest_child(const struct events *events, size_t at)
{
    size_t best = at * CHILDREN + 1, end = best + CHILDREN;

    end = end < events->count ? end : events->count;
    for (size_t child = best + 1; child < end; child++) {
        if (is_earlier(&events->heap[child], &events->heap[best]))
            best = child;
    }
    return best;
}

bool events_take(struct events *events, struct event *ret_event)
{
    struct event last;
    size_t at = 0, child;

    if (events->count == 0)
        return false;
    *ret_event = events->heap[0];
    last = events->heap[--events->count];
    while ((child = earliest_child(events, at)) < events->count &&
           is_earlier(&events->heap[child], &last)) {
        events->heap[at] = events->heap[child];
        at = child;
    }
    events->heap[at] = last;
    return true;
}

void events_clear(struct events *events)
{
    free(events->heap);
    *events = (struct events){0};
}

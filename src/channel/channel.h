/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel/ - how requests of VMs arrive and how answers go back.
 *
 * One vtable, so that the mediator knows no difference between a directory on
 * NFS (file.c), and later shared memory (window.c) or granted pages (xen.c).
 *
 *   mediator's thread                     the channel's own thread
 *   ─────────────────                     ─────────────────────────
 *   channel_start() ───────────────────▶  recover: journal, unanswered requests
 *   events.request() ◀── uv_async ──────  accept: read, journal, truncate, Ready
 *   channel_answer() ─── queue ────────▶  answer: response file, journal
 *   events.answered() ◀── uv_async ─────
 *   channel_stop() ─────────────────────▶ end
 *
 * Identity comes from the channel: `vm_id` in an event is whose directory it
 * was, never what the request said.
 *
 * All functions and all events belong to the thread of the mediator's loop;
 * the channel's own thread is nobody's business, and a share that hangs blocks
 * that thread only.
 */
#ifndef VGPU_CHANNEL_H
#define VGPU_CHANNEL_H

#include "base/base.h"
#include "protocol/protocol.h"

#include <uv.h>

struct channel;

/* A request that was accepted: it stands in the journal and will be answered
 * exactly once. */
struct channel_request {
    uint32_t vm_id;
    uint64_t sequence;   /* grows with every request of this VM, from 1 */
    uint64_t arrival_ns; /* CLOCK_REALTIME when the mediator saw it */
    bool has_claim;      /* false: came without one (command.txt) */
    char claimed_pool;
    uint8_t claimed_priority;
    bool recovered; /* accepted by an earlier mediator, unanswered */
    char command[VGPU_COMMAND_MAX_BYTES + 1];
};

struct channel_events {
    /* Several requests found at once come in order of service. */
    void (*request)(const struct channel_request *request, void *context);

    /* The answer stands where the client reads it, or was withheld because
     * the client had already put a newer request in the old one's place
     * (`withheld`).  `line` is what was written, without the newline. */
    void (*answered)(uint32_t vm_id, uint64_t sequence, const char *line, bool withheld,
                     void *context);

    /* A malformed request was refused with this answer; it never had a
     * sequence. */
    void (*refused)(uint32_t vm_id, const char *line, void *context);

    /* All requests of an earlier mediator have been delivered by request(). */
    void (*recovered)(void *context);

    /* channel_stop() is through; the channel may be freed. */
    void (*stopped)(void *context);

    void *context;
};

struct channel_ops {
    const char *name;
    int (*start)(struct channel *channel, uv_loop_t *loop, const struct channel_events *events,
                 struct vgpu_error *error);
    void (*answer)(struct channel *channel, uint32_t vm_id, uint64_t sequence,
                   const struct protocol_response *response);
    void (*stop)(struct channel *channel, bool cleanup);
    void (*free)(struct channel *channel);
};

struct channel {
    const struct channel_ops *ops;
};

static inline int channel_start(struct channel *channel, uv_loop_t *loop,
                                const struct channel_events *events, struct vgpu_error *error)
{
    return channel->ops->start(channel, loop, events, error);
}

static inline void channel_answer(struct channel *channel, uint32_t vm_id, uint64_t sequence,
                                  const struct protocol_response *response)
{
    channel->ops->answer(channel, vm_id, sequence, response);
}

/* Takes no further requests; answers already given are still written.  With
 * `cleanup` requests that wait are answered with an error, and the files are
 * emptied once clients have read their answers, or after 5 s. */
static inline void channel_stop(struct channel *channel, bool cleanup)
{
    channel->ops->stop(channel, cleanup);
}

static inline void channel_free(struct channel *channel)
{
    if (channel)
        channel->ops->free(channel);
}

/* --- the file channel (file.c) ---------------------------------------------- */

struct file_channel_vm {
    uint32_t vm_id;
    uid_t owner_uid; /* (uid_t)-1: leave as the mediator's user */
    gid_t owner_gid;
    mode_t mode; /* of the directory; files get it without execute bits */
};

struct file_channel_config {
    const char *share;     /* directory of the vm<id>/ directories */
    const char *state_dir; /* journals; outside the share */
    const char *pools;     /* letters of the pools that exist */
    const struct file_channel_vm *vms;
    size_t vm_count;
    bool accept_unregistered;      /* else a request of an unknown vm<id>/ is refused */
    uint32_t poll_min_ms;          /* between looks while requests come */
    uint32_t poll_max_ms;          /* between looks while nothing happens */
    uint32_t response_hold_ms;     /* answer stands so long before 0:Ready returns */
    uint32_t unterminated_hold_ms; /* a line without newline is refused after it */
};

int file_channel_new(const struct file_channel_config *config, struct channel **ret_channel,
                     struct vgpu_error *error);

#endif /* VGPU_CHANNEL_H */

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
    uint64_t identity;   /* of the VM that had this number when it was accepted */
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

    /* All that was said before channel_sync(token) is done. */
    void (*synced)(uint64_t token, void *context);

    /* channel_stop() is through; the channel may be freed. */
    void (*stopped)(void *context);

    void *context;
};

/* A VM as its channel needs to know it. */
struct file_channel_vm {
    uint32_t vm_id;
    uid_t owner_uid; /* (uid_t)-1: leave as the mediator's user */
    gid_t owner_gid;
    mode_t mode;        /* of the directory; files get it without execute bits */
    uint32_t links_max; /* window: further ones are refused; 0: the channel's */
    uint64_t identity;  /* tells it from an earlier VM of this number; 0: the number does */
};

struct channel_ops {
    const char *name;
    int (*start)(struct channel *channel, uv_loop_t *loop, const struct channel_events *events,
                 struct vgpu_error *error);
    void (*answer)(struct channel *channel, uint32_t vm_id, uint64_t sequence,
                   const struct protocol_response *response);
    void (*set_vm)(struct channel *channel, const struct file_channel_vm *vm, bool registered);
    void (*set_pools)(struct channel *channel, const char *pools);
    void (*sync)(struct channel *channel, uint64_t token);
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

/* Live changes.  A VM is new, has another owner or mode, or is registered no more: then
 * its requests are those of an unregistered one; one that waits is the caller's to
 * answer.  Its directory and its journal stay.  Where the number goes to a VM of another
 * identity, what the earlier one is owed is answered with an error, in the directory
 * that it had; later answers to it are dropped. */
static inline void channel_set_vm(struct channel *channel, const struct file_channel_vm *vm,
                                  bool registered)
{
    channel->ops->set_vm(channel, vm, registered);
}

/* The letters of the pools that exist now. */
static inline void channel_set_pools(struct channel *channel, const char *pools)
{
    channel->ops->set_pools(channel, pools);
}

/* synced(token) comes when all before it was done; not before a share that hangs
 * answers. */
static inline void channel_sync(struct channel *channel, uint64_t token)
{
    channel->ops->sync(channel, token);
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

/* --- the window channel (window.c) ------------------------------------------- */

/*
 * The sockets of the VMs and the links on them (include/vgpu/link.h).  Control
 * only: it checks what a peer says and passes, and tells the mediator in words;
 * operations go from the window straight to the session's worker, which is why
 * this is not behind the vtable above.
 *
 *   run_dir/vm<id>.sock, that VM's owner and mode: the socket decides who it is
 *
 * A peer can send anything, half of anything, nothing, or stop reading: bytes
 * and descriptors are bounded, answers that do not fit its socket end the link,
 * and a link that has not said HELLO within hello_timeout_ms is closed.
 *
 * Everything belongs to the thread of the loop.  Links are valid until closed()
 * has returned.
 */
struct window_channel;
struct window_link;

/* One link's window; descriptors are the link's own until closed() returns. */
struct window_link_info {
    uint32_t vm_id; /* the socket's */
    uint32_t owner; /* VGPU_LINK_OWNER_* */
    pid_t peer_pid; /* by SO_PEERCRED, for logs */
    uid_t peer_uid;
    uint64_t window_bytes;
    uint64_t window_device, window_inode; /* of the memfd: the same window again */
    uint64_t slot_bytes;
    uint32_t slot_count;
    uint32_t open_slots; /* sessions that it held before */
    bool resetting;
    int window_fd, interrupt_fd, lifeline_fd;
    int doorbell_fds[16]; /* VGPU_SLOTS_MAX */
};

struct window_channel_events {
    /* HELLO and DOORBELLS came and were good.  Return 0 to welcome it (then
     * window_link_welcome() was called), -1 to refuse with *error. */
    int (*opened)(struct window_link *link, const struct window_link_info *info, void **ret_data,
                  void *context, struct vgpu_error *error);
    /* `slot` < slot_count; that it is open, or not, is the mediator's to know. */
    void (*open_session)(struct window_link *link, uint32_t slot, void *data, void *context);
    void (*close_session)(struct window_link *link, uint32_t slot, void *data, void *context);
    void (*reset)(struct window_link *link, void *data, void *context);
    /* The owner hung up, or broke the rules (`reason`). */
    void (*closed)(struct window_link *link, const char *reason, void *data, void *context);
    /* A peer was refused before it was a link. */
    void (*refused)(uint32_t vm_id, const char *reason, void *context);
    void *context;
};

struct window_channel_config {
    const char *run_dir; /* made with 0755 when missing */
    const struct file_channel_vm *vms;
    size_t vm_count;
    uint32_t hello_timeout_ms;
    uint32_t links_max; /* a VM */
};

int window_channel_new(const struct window_channel_config *config,
                       struct window_channel **ret_channel, struct vgpu_error *error);
int window_channel_start(struct window_channel *channel, uv_loop_t *loop,
                         const struct window_channel_events *events, struct vgpu_error *error);

/* Live changes.  A VM is new, or its socket gets another owner or mode: links that are
 * there stay. */
int window_channel_set_vm(struct window_channel *channel, const struct file_channel_vm *vm,
                          struct vgpu_error *error);

/* Removes its socket and ends its links, without closed(). */
void window_channel_remove_vm(struct window_channel *channel, uint32_t vm_id);

/* Closes all links without closed(), removes the sockets. */
void window_channel_stop(struct window_channel *channel);
void window_channel_free(struct window_channel *channel);

void window_link_welcome(struct window_link *link, char pool, unsigned priority,
                         uint32_t sessions_max);
void window_link_state(struct window_link *link, uint32_t slot, uint32_t state, int code,
                       const char *text);
void window_link_config(struct window_link *link, char pool, unsigned priority,
                        uint32_t sessions_max);
void window_link_reset_done(struct window_link *link);

/* Refuses it afterwards: says why, then hangs up; closed() does not come. */
void window_link_close(struct window_link *link, const char *reason);

#endif /* VGPU_CHANNEL_H */

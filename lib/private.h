/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib/ - libvgpu: see include/vgpu/vgpu.h for what it offers.
 *
 *   operations.c  copy.c  text.c  launch.c      one operation a function
 *        │           │       │       │
 *        ▼           ▼       ▼       ▼
 *   submit.c ── descriptors ──▶ ring      heap.c   the slot's memory, shared out
 *   take.c   ◀── completions ── ring      written.c  pages that the host writes
 *   wait.c       spins, then sleeps       session.c  open, close, fork
 *        │
 *        ▼
 *   module.c  socket.c + link.c  sysfs.c        where the slot comes from, how to
 *   xen.c + xen_host.c, xen_slot.c,             ring, how to sleep (struct transport)
 *           xenbus.c, evtchn.c
 *
 * What the library knows lies in private memory; from the slot it reads
 * completions and the host's indices.  The host is the authority over what
 * happened, but not over this process' memory: each value is checked before it
 * is used as an index.
 */
#ifndef VGPU_LIB_PRIVATE_H
#define VGPU_LIB_PRIVATE_H

#include "vgpu/link.h"
#include "vgpu/vgpu.h"

#include <stdarg.h>
#include <sys/queue.h>
#include <sys/types.h>

#define NS_PER_US 1000LL
#define NS_PER_MS 1000000LL
#define NS_PER_S 1000000000LL

#define PENDING_COUNT 1024u /* operations without an answer, or with one not yet fetched */
#define PENDING_NONE UINT16_MAX

/* --- problem.c ------------------------------------------------------------------- */

/* Both return -1; `problem` may be NULL. */
int problem_set(struct vgpu_problem *problem, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int problem_copy(struct vgpu_problem *problem, const struct vgpu_problem *from);

/* The host's answer to operation `what` was `status`: 0 or -1. */
int problem_of_status(struct vgpu_problem *problem, uint32_t status, const char *what);

/* --- heap.c: shares out a range; its book-keeping lies elsewhere -------------------- */

struct heap_block {
    uint64_t offset;
    uint64_t bytes;
    bool used;
};

/* Blocks in the order of their offsets; together they are the whole range. */
struct heap {
    struct heap_block *blocks;
    size_t count;
    size_t room;
};

#define HEAP_ALIGNMENT 64u

int heap_open(struct heap *heap, uint64_t offset, uint64_t bytes);
void heap_close(struct heap *heap);

/* The offset of `bytes` in a row, 0 when there is no such place (0 is none: a
 * slot starts with its control pages). */
uint64_t heap_take(struct heap *heap, uint64_t bytes);

/* False: nothing that was taken begins at `offset`. */
bool heap_give(struct heap *heap, uint64_t offset);
uint64_t heap_largest(const struct heap *heap);

/* --- a session ------------------------------------------------------------------------- */

/* Where it comes from.  After open() the session's slot is mapped. */
struct transport {
    enum vgpu_transport kind;
    int (*open)(struct vgpu_session *session, const struct vgpu_options *options, const char *path,
                struct vgpu_problem *problem);
    void (*ring)(struct vgpu_session *session);
    /* Waits for an interrupt at most `timeout_ns` (0: looks; -1: no bound), and sees
     * to the way to the host meanwhile.  May return for no reason.  Calls
     * session_end() when the session has ended, session_lose() when reconnect() helps. */
    void (*sleep)(struct vgpu_session *session, int64_t timeout_ns);
    /* Before answers are taken: whether they are this session's; session_lose() when they are
     * not any more.  NULL: always.  Who has it calls written_open() too. */
    bool (*confirm)(struct vgpu_session *session);
    /* The session's state as the transport knows it. */
    uint32_t (*state)(struct vgpu_session *session);
    /* After session_lose(), until session->deadline_ns: another slot, of the same size, at
     * the same address and with the heap's bytes.  When it fails the heap stays, and the next
     * call tries again.  NULL: never calls session_lose(). */
    int (*reconnect)(struct vgpu_session *session, struct vgpu_problem *problem);
    void (*close)(struct vgpu_session *session);
    /* In a child: gives up all descriptors, and nothing else. */
    void (*forked)(struct vgpu_session *session);
};

extern const struct transport module_transport, socket_transport, sysfs_transport, xen_transport;

enum pending_state {
    PENDING_FREE = 0,
    PENDING_SENT,     /* no answer yet */
    PENDING_KEPT,     /* answered; waits for vgpu_wait() or vgpu_poll() */
    PENDING_OWN,      /* answered; waits for the call of the library that submitted it */
    PENDING_CALLBACK, /* answered; its callback has not run yet */
};

struct pending {
    vgpu_ticket ticket; /* serial << 10 | index here; also the cookie */
    vgpu_callback callback;
    void *context;
    uint64_t value;
    uint32_t status;
    uint32_t run_us;
    uint16_t next, previous; /* of its list */
    uint8_t state;           /* enum pending_state */
    bool is_own;             /* a call of the library waits for it: no one else gets it */
};

/* Answered operations in the order of their answers. */
struct pending_list {
    uint16_t first, last;
};

/* Parameters of a launch, until its descriptor has certainly been read. */
struct launch_chunk {
    uint32_t sequence;
    uint32_t end; /* where the next one begins */
};

/* In a page that the kernel clears in a child of fork(2). */
enum session_use {
    SESSION_FORKED = 0,
    SESSION_USABLE,
    SESSION_LOST,  /* until vgpu_reset(); session->end says why */
    SESSION_ENDED, /* for good; session->end says why */
};

struct vgpu_session {
    uint32_t *use; /* enum session_use; each call looks here first */

    /* rings: shared memory and private indices */
    struct vgpu_slot_guest *guest;
    const struct vgpu_slot_host *host;
    struct vgpu_descriptor *descriptors;
    const struct vgpu_completion *completions;
    uint32_t sq_tail;        /* descriptors written */
    uint32_t sq_published;   /* of them, those that the host may see */
    uint32_t sq_head;        /* descriptors taken, as last read */
    uint32_t cq_head;        /* completions taken */
    uint32_t sent;           /* entries in state SENT */
    uint32_t sent_callbacks; /* of them, those with a callback */
    uint32_t batches;        /* vgpu_batch_begin() without its end */
    uint32_t looks;          /* vgpu_wait*() and vgpu_poll() */
    uint8_t device;          /* that calls of the library are for */
    uint32_t quiet_run;      /* quiet descriptors since the last other one */
    uint32_t sequence_seen;  /* one more than the highest that was completed */
    int64_t rung_again_ns;   /* when submit_ring_again() has done so last */
    bool dispatching;        /* callbacks run */
    bool armed;              /* vgpu_arm() since the last look at the descriptor */
    bool writes_quietly;     /* noted pages: some by operations whose end nobody tells */
    uint64_t serial;         /* of the last operation */
    uint32_t free_count;
    struct pending_list kept, callbacks;
    uint16_t free_entries[PENDING_COUNT];
    struct pending pending[PENDING_COUNT];

    /* memory of the slot */
    uint8_t *slot;
    uint64_t slot_bytes;
    uint64_t *written; /* a bit a page: written.c; NULL: nobody moves a session of this kind */
    struct heap heap;
    struct heap texts;                 /* first half of the arena */
    uint32_t launch_head, launch_tail; /* second half: a ring of chunks */
    uint32_t chunk_head, chunk_tail;
    struct launch_chunk chunks[VGPU_RING_ENTRIES];

    /* life */
    const struct transport *transport;
    void *way; /* the transport's own */
    int fd;    /* for event loops; -1: none */
    int64_t spin_ns;
    int64_t open_timeout_ns;
    int64_t deadline_ns;         /* of open() and reconnect() */
    uint32_t generations_before; /* of slots that were lost */
    uint32_t generation_told;
    struct vgpu_session_info info;
    struct vgpu_problem end;
    LIST_ENTRY(vgpu_session) entry;
};

/* --- session.c ----------------------------------------------------------------------------- */

int64_t clock_ns(void);

/* Notes why the session has ended; the first reason stays. */
void session_end(struct vgpu_session *session, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Ends what is in flight with VGPU_DEVICE_LOST, and refuses the rest until vgpu_reset(). */
void session_lose(struct vgpu_session *session, const char *text);

/* Why no call is possible: -1. */
int session_refuse(struct vgpu_session *session, struct vgpu_problem *problem)
    __attribute__((cold));

/* As problem_of_status(), and says why the session is lost where it is. */
int session_problem_of(struct vgpu_session *session, struct vgpu_problem *problem, uint32_t status,
                       const char *what);

static inline bool session_usable(const struct vgpu_session *session)
{
    return __builtin_expect(*session->use == SESSION_USABLE, 1);
}

/* For transports: maps `fd` from `offset` as the slot. */
int session_map(struct vgpu_session *session, int fd, uint64_t offset, uint64_t slot_bytes,
                struct vgpu_problem *problem);

/* The transport's word, and where it says alive the worker's, which is newer. */
uint32_t session_state(const struct vgpu_session *session, uint32_t told);

static inline bool session_in_heap(const struct vgpu_session *session, const void *memory,
                                   uint64_t bytes)
{
    uintptr_t first = (uintptr_t)session->slot + VGPU_SLOT_HEAP;
    uintptr_t at = (uintptr_t)memory;

    return at >= first && at - first <= session->info.heap_bytes &&
           bytes <= session->info.heap_bytes - (at - first);
}

/* --- submit.c ------------------------------------------------------------------------------- */

/* Shows the host what was written; rings when it asked for that. */
void submit_publish(struct vgpu_session *session);

/* Rings once more where the host waits for what it has been shown already, at most once
 * a second: it should have been told. */
void submit_ring_again(struct vgpu_session *session);

/* Waits, and runs callbacks, until a quiet operation can be submitted without. */
int submit_prepare_quiet(struct vgpu_session *session, struct vgpu_problem *problem);

/* Submits one that only own_wait() gets the result of. */
int own_submit(struct vgpu_session *session, const struct vgpu_descriptor *descriptor,
               vgpu_ticket *ret_ticket, struct vgpu_problem *problem);

/* Both.  `what` names it in a problem. */
int submit_and_wait(struct vgpu_session *session, const struct vgpu_descriptor *descriptor,
                    const char *what, uint64_t *ret_value, struct vgpu_problem *problem);

/* --- written.c ------------------------------------------------------------------------------- */

int written_open(struct vgpu_session *session);
void written_close(struct vgpu_session *session);

/* Nothing is in flight. */
void written_forget(struct vgpu_session *session);

/* Before `descriptor` is submitted. */
void written_note(struct vgpu_session *session, const struct vgpu_descriptor *descriptor);

/* Answers are there: what they tell of is to be this guest's own memory. */
void written_touch(struct vgpu_session *session);

/* --- take.c ------------------------------------------------------------------------------------
 */

/* Takes all completions that are there into the table. */
void take_completions(struct vgpu_session *session);

/* Runs the callbacks of those taken, unless one runs already. */
void take_dispatch(struct vgpu_session *session);

/* Answers what is in flight with VGPU_DEVICE_LOST, in the order of its submission. */
void take_losses(struct vgpu_session *session);

void pending_open(struct vgpu_session *session);
void pending_append(struct vgpu_session *session, struct pending_list *list, uint16_t index);
void pending_remove(struct vgpu_session *session, struct pending_list *list, uint16_t index);

static inline void pending_free(struct vgpu_session *session, uint16_t index)
{
    session->pending[index].state = PENDING_FREE;
    session->free_entries[session->free_count++] = index;
}

/* --- wait.c
 * --------------------------------------------------------------------------------------- */

typedef bool (*wait_condition)(struct vgpu_session *session, uint64_t argument);

/* Until `condition` holds.  `timeout_us` below 0, or too large to add: no bound.  `wake_at_last`:
 * sleep until nothing is unanswered, not until the next answer. */
int wait_until(struct vgpu_session *session, wait_condition condition, uint64_t argument,
               bool wake_at_last, int64_t timeout_us, struct vgpu_problem *problem);

/* For the answer to what own_submit() submitted, as long as it takes. */
int own_wait(struct vgpu_session *session, vgpu_ticket ticket, struct vgpu_result *ret_result,
             struct vgpu_problem *problem);

/* Until a descriptor can be written. */
int wait_for_room(struct vgpu_session *session, struct vgpu_problem *problem);

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    __asm__ __volatile__("" ::: "memory");
#endif
}

#endif /* VGPU_LIB_PRIVATE_H */

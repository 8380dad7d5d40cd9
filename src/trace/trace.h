/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace/ - the decision log: what arrived, what was granted, what completed, and when.
 *
 *   worker   ── ARRIVE, COMPLETE ──────────────────▶ run_dir/trace/vm<id>-<inode>-<slot>.trace
 *   mediator ── WAIT, GRANT, REVOKE, RETURN, … ────▶ run_dir/trace/mediator.trace
 *                                                      │ trace_read_directory()
 *   vgpu-admin trace ◀── trace_write_chrome(), _csv() ─┘
 *
 * A file is a ring of records of 32 bytes behind a header: who writes never waits and makes no
 * system call, and the oldest are written over.  One process writes a file at a time, through
 * its own mapping; who reads takes a copy and drops what was, or may have been, written over
 * meanwhile.
 *
 *   header: position ──────────────┐  a count of all records ever written
 *   ┌───┬───┬───┬───┬───┬───┬───┬──▼┬───┬───┐
 *   │ 8 │ 9 │10 │ … │   │   │   │   │ 6 │ 7 │   record n stands in place n mod capacity
 *   └───┴───┴───┴───┴───┴───┴───┴───┴───┴───┘
 *
 * Order of writing: the record, then `position` (release).  A record that its writer did not
 * finish is as if it had never been.  No guest sees a file.  What a worker writes is believed
 * for its VM only: a reader takes the VM from the file's name, and each value is checked.
 */
#ifndef VGPU_TRACE_H
#define VGPU_TRACE_H

#include "base/base.h"

#include <stdio.h>

#define TRACE_DIRECTORY "trace"              /* in run_dir */
#define TRACE_MEDIATOR_FILE "mediator.trace" /* in there */
#define TRACE_KIB_MAX 65536u
#define TRACE_WEIGHT_DEFAULT 100u
#define TRACE_DEVICES_MAX 1024u

enum trace_kind {
    TRACE_NONE,     /* a place that was never written */
    TRACE_ARRIVE,   /* `count` operations were seen, the first is `number` */
    TRACE_COMPLETE, /* operation `number` has ended, `time_ns` is then */
    TRACE_WAIT,     /* `count` sessions of a VM wait for a device, 0: none any more; `number` is
                       the VM's weight */
    TRACE_GRANT,    /* a VM has a device; device_ns: what it may use (TRACE_LONG) */
    TRACE_REVOKE,   /* it is to give it back */
    TRACE_RETURN,   /* it has; device_ns: what was used */
    TRACE_SWITCH,   /* the device goes to another VM than before, which was `number` */
    TRACE_KINDS,
};

/* Why a grant was revoked, or what became of it. */
enum trace_reason {
    TRACE_REASON_NONE,
    TRACE_REASON_OTHERS_WAIT, /* by the policy: other VMs wait */
    TRACE_REASON_OWN_WAITS,   /* another session of the same VM waits */
    TRACE_REASON_STOP,        /* the VM is refused or removed, or the mediator stops */
    TRACE_REASON_WORKER,      /* the grant ended with its worker */
    TRACE_REASONS,
};

#define TRACE_LONG UINT64_MAX /* device_ns of a grant without bound */

/* In host order; zeros where a kind has no such value. */
struct trace_record {
    uint64_t time_ns;   /* clock_monotonic_ns() */
    uint64_t device_ns; /* device time; COMPLETE: since the session's last COMPLETE */
    uint32_t vm_id;
    uint32_t number; /* an operation's, which wraps; GRANT: the operations that it allows */
    uint16_t count;  /* GRANT, RETURN: sessions that wait besides, at most UINT16_MAX */
    uint16_t what;   /* the device's number; COMPLETE: the operation code */
    uint8_t kind;
    uint8_t pool;     /* a letter, or 0: not known here */
    uint8_t priority; /* 0 to 2 */
    uint8_t reason;   /* enum trace_reason; COMPLETE: the status */
};

_Static_assert(sizeof(struct trace_record) == 32, "two to a cache line");

struct trace_header {
    uint32_t magic;
    uint32_t version;
    uint64_t capacity; /* of records, a power of two */
    uint64_t position;
    uint32_t vm_id; /* 0: the mediator's */
    uint32_t weight;
    uint8_t pool, priority; /* the VM's when the file was made */
    uint8_t padding[30];
};

_Static_assert(sizeof(struct trace_header) == 64, "records stand aligned behind it");

/* --- writing (file.c) ------------------------------------------------------------------- */

/* Whose file it is; `pool` is a letter, or 0 with the other values for the mediator's. */
struct trace_owner {
    uint32_t vm_id;
    uint32_t weight; /* 1 to 1000 */
    char pool;
    uint8_t priority;
};

/*
 * Opens the file at `path` for a writer, made anew (mode 0600) where there is none, or one of
 * another size or release; what stands in it otherwise is kept.  `kib` is the size of its
 * records, 1 to TRACE_KIB_MAX, rounded down to a power of two.  Returns a descriptor, the
 * caller's, or -1.
 */
int trace_open(const char *path, uint32_t kib, const struct trace_owner *owner,
               struct vgpu_error *error);

/* A writer's hold on a file; all zeros: there is none, and what is written is forgotten. */
struct trace {
    struct trace_header *header;
    struct trace_record *records;
    uint64_t mask;
};

/* Maps the file, whose descriptor stays the caller's.  -1 with EINVAL when it is none of ours. */
int trace_attach(struct trace *trace, int fd, struct vgpu_error *error);

/* Lets go of it; all zeros are allowed. */
void trace_detach(struct trace *trace);

static inline bool trace_is_on(const struct trace *trace)
{
    return trace->records != NULL;
}

/* Where the next record goes, if there is a file: to be filled, and ended with trace_end(). */
static inline struct trace_record *trace_begin(struct trace *trace)
{
    return &trace->records[__atomic_load_n(&trace->header->position, __ATOMIC_RELAXED) &
                           trace->mask];
}

static inline void trace_end(struct trace *trace)
{
    uint64_t position = __atomic_load_n(&trace->header->position, __ATOMIC_RELAXED);

    /* The record before its number: who sees this sees that. */
    __atomic_store_n(&trace->header->position, position + 1, __ATOMIC_RELEASE);
    /* The number before the next record, which stands where an old one is still read; the
     * compiler must keep that, and the processor's stores keep their order. */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* A few nanoseconds, no system call. */
static inline void trace_write(struct trace *trace, const struct trace_record *record)
{
    if (!trace->records)
        return;
    *trace_begin(trace) = *record;
    trace_end(trace);
}

/* --- reading (read.c) ------------------------------------------------------------------- */

/* One file's part of a log. */
struct trace_source {
    struct trace_owner owner; /* vm_id 0: the mediator */
    uint64_t lost;            /* records that were written over */
    uint64_t rejected;        /* that made no sense */
};

struct trace_entry {
    struct trace_record record;
    uint32_t source; /* index */
    uint32_t order;  /* as it was read */
};

/* Several files', in the order of time; those of one file in the order of writing. */
struct trace_log {
    struct trace_source *sources;
    size_t source_count;
    struct trace_entry *entries;
    size_t entry_count;
};

struct trace_filter {
    uint32_t vm_id;    /* 0: all */
    uint64_t since_ns; /* of clock_monotonic_ns(); 0: all */
};

/* Adds one file's records.  `vm_id` 0: the mediator's, which may tell of any VM.  -1 when it
 * cannot be read, EINVAL when it is none of ours; then nothing is added. */
int trace_read_file(struct trace_log *log, const char *path, uint32_t vm_id,
                    const struct trace_filter *filter, struct vgpu_error *error);

/* Fills an empty log from run_dir/trace, and sorts it.  A file that cannot be read is left out
 * with a warning in the log of the process; -1 with ENOENT where there is no such directory, or no
 * file of a mediator's in it. */
int trace_read_directory(struct trace_log *log, const char *run_dir,
                         const struct trace_filter *filter, struct vgpu_error *error);

/* In the order of time, as trace_read_directory() leaves it. */
void trace_sort(struct trace_log *log);

/* Frees what it holds. */
void trace_log_clear(struct trace_log *log);

/* "arrive", "complete", …; "others-wait", …. */
const char *trace_kind_name(enum trace_kind kind);
const char *trace_reason_name(enum trace_reason reason);

/* --- for others' eyes (chrome.c, csv.c) --------------------------------------------------------
 */

/* Chrome's Trace Event Format, which Perfetto reads: a track a device with its grants; a group
 * a VM with its waits by device and its operations by session.  Look at ferror(3) behind it. */
void trace_write_chrome(const struct trace_log *log, FILE *file);

/* As vgpu-sim(1) replays it: see there for its columns.  Look at ferror(3) behind it.  Returns how
 * many grants used a device although no operation of their VM ended in them: the records of the
 * session went with it, or were written over. */
size_t trace_write_csv(const struct trace_log *log, FILE *file);

#endif /* VGPU_TRACE_H */

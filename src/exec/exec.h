/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec/ - one process a session that computes, and the mediator's hold on it.
 *
 *   mediator                             vgpu-worker (one a session)
 *   exec_worker_start()  ── spawn ──▶    main loop
 *   exec_worker_run()    ── operation ─▶ commands.c ─▶ backend (cpu.c, …)
 *                                        writes its session record
 *   events.completed()   ◀── result ───
 *   events.ended()       ◀── exit
 *
 * The worker shares nothing with other sessions: its own process, a socket to
 * the mediator, its session record.  It is not the mediator's child in spirit:
 * when the mediator is killed, the worker finishes the operation that it runs,
 * writes the result into the record, and ends.  It holds a lock on the record
 * while it lives, so the next mediator knows whether to wait for a result, to
 * take it from the record, or to run the operation (again).
 *
 * Record (one file a session, outside the share, never seen by a guest):
 *   order of writing: STARTED before the first instruction of an operation,
 *   DONE with the result after the last, each one pwrite(2) with a checksum;
 *   only then is the result sent.  A repeat of the send is harmless.
 *
 * All functions on the mediator's side belong to the thread of the loop.  They
 * may be called from within the events; only ended() is a worker's last.
 */
#ifndef VGPU_EXEC_H
#define VGPU_EXEC_H

#include "base/base.h"
#include "protocol/protocol.h"

#include <string.h>
#include <uv.h>

/* --- the session record (record.c) ----------------------------------------- */

enum exec_record_state {
    EXEC_RECORD_NONE = 0, /* no operation yet, or the file is new */
    EXEC_RECORD_STARTED,  /* operation `sequence` began, no result */
    EXEC_RECORD_DONE,     /* operation `sequence` ended with `response` */
};

struct exec_record {
    enum exec_record_state state;
    uint64_t sequence;   /* which operation */
    uint32_t executions; /* how often `sequence` was started, all workers counted */
    pid_t worker_pid;    /* who wrote it; meaningful only while locked */
    uint64_t device_us;  /* DONE: device time used */
    struct protocol_response response;
};

/*
 * Reads the record at `path`.  Returns 1 when a living worker holds it (what
 * was read may still change), 0 when nobody does, -1 on failure.  A missing,
 * empty or torn file is state NONE.
 */
int exec_record_read(const char *path, struct exec_record *ret_record, struct vgpu_error *error);

/* --- a worker, seen from the mediator (worker.c) ---------------------------- */

struct exec_worker;

struct exec_worker_config {
    const char *program; /* path of vgpu-worker */
    const char *backend; /* "cpu" or "cuda" */
    const char *device;  /* NULL, or see struct exec_backend_config, as the next */
    const char *cuda_library;
    uint32_t vm_id;            /* for its name in ps and its log */
    const char *record_path;   /* made when missing, mode 0600 */
    const char *execution_log; /* NULL, or a file that gets one line an execution */
    uid_t uid;                 /* to run as; (uid_t)-1: as the mediator */
    gid_t gid;
    const char *cgroup; /* directory of its cgroup, NULL: none */
};

struct exec_worker_events {
    /* The operation that ran has ended; the worker is idle again. */
    void (*completed)(struct exec_worker *worker, uint64_t sequence,
                      const struct protocol_response *response, uint64_t device_us, void *context);
    /* The process is gone.  `sequence` is the operation that it ran, 0 if
     * none; `reason` says how it ended ("killed by signal 11 (SIGSEGV)").
     * Called exactly once, also after exec_worker_kill(); the worker is
     * freed after it returns. */
    void (*ended)(struct exec_worker *worker, uint64_t sequence, const char *reason, void *context);
    void *context;
};

/*
 * Starts the process.  Fails when the record is held by a living worker of an
 * earlier mediator (EBUSY; also for the instant in which another process reads
 * it), or the program cannot be run.
 */
int exec_worker_start(uv_loop_t *loop, const struct exec_worker_config *config,
                      const struct exec_worker_events *events, struct exec_worker **ret_worker,
                      struct vgpu_error *error);

/* Runs one operation.  The worker must be idle.  `sequence` is never 0 and
 * never used again for another operation of this VM.  EPIPE: the worker is
 * ending and did not get it; events.ended() follows, then another can. */
int exec_worker_run(struct exec_worker *worker, uint64_t sequence, const char *command,
                    struct vgpu_error *error);

/* How many contexts of GPUs it had when it answered last: its own word. */
uint32_t exec_worker_contexts(const struct exec_worker *worker);

pid_t exec_worker_pid(const struct exec_worker *worker);
bool exec_worker_busy(const struct exec_worker *worker);

/* Asks an idle worker to end (closes its socket); events.ended() follows.  A
 * busy one ends after its operation, and its result still arrives. */
void exec_worker_stop(struct exec_worker *worker);

/* Ends it at once (SIGKILL); events.ended() follows, after the result if that
 * was already sent. */
void exec_worker_kill(struct exec_worker *worker);

/* Forgets the worker without ending it and without further events: the
 * mediator leaves, the worker finishes by itself.  Frees it, at the loop's next
 * turn. */
void exec_worker_detach(struct exec_worker *worker);

/* --- the account of a VM (account.c) --------------------------------------------- */

/*
 * What the workers of a VM's window sessions hold of their devices' memory, together, and how
 * much they may; how much they may do at a time.  A file of the mediator's (run_dir, never seen by
 * a guest), which outlives it; each worker has a share in it, maps it and counts by itself
 * (account.h).  What a worker writes there is believed for its VM only.
 */
struct exec_account;

#define EXEC_ACCOUNT_SHARES 128u /* a VM has no more sessions with workers at once */

/*
 * Makes the account at `path`, or with `adopt` opens the one that an earlier mediator left
 * there, whose workers live: then claim their shares, and settle.  The limit is of all shares
 * together.  The caller owns *ret_account, until exec_account_close() or exec_account_end().
 * Adopting fails with ENOENT when there is none, EINVAL when it is of another release.
 */
int exec_account_open(const char *path, uint64_t limit_bytes, bool adopt,
                      struct exec_account **ret_account, struct vgpu_error *error);

/* Lets go of it; the file stays for workers that live.  NULL is allowed. */
void exec_account_close(struct exec_account *account);

/* As exec_account_close(), when no worker that has it lives: the file goes.  NULL is allowed. */
void exec_account_end(struct exec_account *account);

/* Gives a share that nobody has, empty.  -1 with EUSERS: all are taken. */
int exec_account_take(struct exec_account *account, uint32_t *ret_share, struct vgpu_error *error);

/* This one is a living worker's.  False: it cannot be, or another session has it. */
bool exec_account_claim(struct exec_account *account, uint32_t share);

/* All living workers' shares are claimed: what others left in theirs is gone with them. */
void exec_account_settle(struct exec_account *account);

/* The worker that had it is dead, and so is what it held: its successor begins with nothing. */
void exec_account_clear(struct exec_account *account, uint32_t share);

/* As exec_account_clear(), and its session has ended: another may take it. */
void exec_account_give(struct exec_account *account, uint32_t share);

/* Live.  One below what is held refuses what is wanted from now on, and takes nothing away. */
void exec_account_set_limit(struct exec_account *account, uint64_t limit_bytes);

/* What all workers hold now, by their own word. */
uint64_t exec_account_used_bytes(const struct exec_account *account);

/* The worker that has this share holds neither memory of its device nor images of modules, by its
 * own word. */
bool exec_account_is_empty(const struct exec_account *account, uint32_t share);

/* What a VM may do, over all its sessions; 0 is no bound. */
struct exec_budget {
    uint32_t request_rate;         /* requests and operations a second, to 10,000,000 */
    uint32_t request_burst;        /* of them at once; 0: a tenth of a second's, at least one */
    uint32_t device_share_percent; /* of a device's time, to 100; bursts last 10 ms */
    uint32_t queue_depth_max;      /* that wait, taken from their rings */
    uint32_t inflight_ops_max;     /* on its devices; each session is let one in any case */
    uint64_t inflight_bytes_max;   /* that those move */
    uint64_t image_bytes_max;      /* of the host's memory, for images of modules in its workers */
    uint64_t context_bytes;        /* of device memory, that each context made from now on counts */
};

/* Live, also while grants are out; sleeping workers are to be woken (exec_session_wake()).
 * `now_ns` is clock_monotonic_ns(), as below. */
void exec_account_set_budget(struct exec_account *account, const struct exec_budget *budget,
                             uint64_t now_ns);

/* A request that comes another way than through a worker.  False: it is one too many, and
 * another can be taken in *ret_wait_ns, if nobody else takes it. */
bool exec_account_take_request(struct exec_account *account, uint64_t now_ns,
                               uint64_t *ret_wait_ns);

/* Device time that was used another way, and how long until there is some again; 0: now. */
void exec_account_charge(struct exec_account *account, uint64_t used_us, uint64_t now_ns);
uint64_t exec_account_device_wait_ns(const struct exec_account *account, uint64_t now_ns);

/* --- a window session, seen from the mediator (session.c) -------------------- */

/*
 * One worker process on one slot of a window.  It reads descriptors and writes
 * completions by itself; the mediator only says how much it may run.  To its VM's budget it
 * holds itself, also in a long grant: beyond it the worker takes nothing from the ring, sleeps
 * until it may, and without a long grant gives its grant back meanwhile.
 *
 *   exec_session_start()  ── spawn ──▶  maps its slot, confines itself
 *   events.ready()        ◀── HELLO
 *   events.work()         ◀── READY      it has no grant and sees work
 *   exec_session_grant()  ── GRANT ──▶   runs operations
 *   exec_session_revoke() ── REVOKE ─▶   stops fetching, drains
 *   events.returned()     ◀── RETURNED   exactly one a grant
 *   exec_session_rest()   ── REST ────▶  gives up a GPU context that holds nothing
 *   events.rested()       ◀── RESTED
 *   events.ended()        ◀── death
 *
 * The mediator maps no guest memory and touches no descriptor that a guest or
 * another peer holds: the worker watches the doorbell also while it has no
 * grant, and says so once (work) until it is granted.
 *
 * Session memory: a file of the mediator's (run_dir, never seen by a guest),
 * mapped by both.  It holds the in-flight table, so that a successor of a dead
 * worker knows what to answer with DEVICE_LOST, and who lives (a lock, as with
 * the record).  What the worker writes there is believed for this session only.
 *
 * The worker outlives the mediator: it goes on with the grant that it has, then
 * waits.  The next mediator connects to the same socket path (exec_session_adopt)
 * and revokes before it grants anything.  The worker ends by itself when its
 * owner's lifeline hangs up.
 */
struct exec_session;

struct exec_session_config {
    const char *program; /* path of vgpu-worker */
    const char *backend; /* "cpu" or "cuda" */
    const char *devices; /* NULL, or see struct exec_backend_config, as the next */
    const char *cuda_library;
    uint32_t vm_id;
    uint32_t slot;
    uint64_t slot_offset; /* in the window, page-aligned */
    uint64_t slot_bytes;
    const char *memory_path; /* session memory; made when missing, mode 0600 */
    const char *socket_path; /* made by start, listens for this and later mediators */
    int window_fd;           /* checked by the caller; all four stay the caller's */
    int doorbell_fd;
    int interrupt_fd;
    int lifeline_fd;
    bool successor; /* answer what the last worker of this memory left, DEVICE_LOST;
                       false: the slot is cleared and the memory begins anew */
    uid_t uid;      /* to run as; (uid_t)-1: as the mediator */
    gid_t gid;
    const char *cgroup;                 /* directory of its cgroup, NULL: none */
    const struct exec_account *account; /* its VM's; the caller's, as its share */
    uint32_t share;
    uint32_t operation_limit_ms;
    uint32_t spin_us;          /* polls so long before it sleeps, while granted */
    uint32_t idle_ms;          /* without work so long it gives up an empty GPU context */
    const char *execution_log; /* NULL, or a file that gets one line an execution */
    const char *trace;         /* NULL, or its file of the decision log, made by trace_open() */
};

struct exec_session_grant {
    uint32_t max_ops; /* UINT32_MAX: no bound */
    uint32_t max_inflight;
    uint64_t device_us; /* EXEC_GRANT_LONG: until it is revoked, idle or not */
    bool refuse;        /* answer with VGPU_REFUSED what comes, and touch no device */
    bool rest;          /* somebody waits for a context: see exec_session_rest() */
};

#define EXEC_GRANT_LONG UINT64_MAX

/* Who a worker of an earlier mediator says that it is. */
struct exec_session_identity {
    uint32_t vm_id;
    uint32_t slot;
    uint64_t window_device; /* st_dev and st_ino of the window's memfd */
    uint64_t window_inode;
    uint64_t slot_offset;
    uint64_t slot_bytes;
    bool granted; /* it holds a grant of the earlier mediator: revoke it */
};

struct exec_session_events {
    /* Started: the slot's state is READY (or LOST for a successor), it holds no
     * grant.  Adopted: as `identity` says.  Comes once, first. */
    void (*ready)(struct exec_session *session, const struct exec_session_identity *identity,
                  void *context);
    /* It sees `depth` >= 1 operations.  Not again before the next grant. */
    void (*work)(struct exec_session *session, uint32_t depth, void *context);
    /* The grant is back and drained. */
    void (*returned)(struct exec_session *session, uint64_t used_us, uint64_t operations,
                     uint32_t depth_left, void *context);
    /* It has given a context up (exec_session_contexts() says what is left): for good, or
     * until the next grant. */
    void (*rested)(struct exec_session *session, void *context);
    /* The guest's rings made no sense; the session does nothing any more. */
    void (*faulted)(struct exec_session *session, const char *reason, void *context);
    /* The process is gone (a grant that it held is gone with it).  Exactly
     * once; the session is freed after it returns.  `owner_gone`: it ended by
     * itself because its lifeline hung up. */
    void (*ended)(struct exec_session *session, const char *reason, bool owner_gone, void *context);
    void *context;
};

/* EBUSY: a living worker holds the session memory. */
int exec_session_start(uv_loop_t *loop, const struct exec_session_config *config,
                       const struct exec_session_events *events, struct exec_session **ret_session,
                       struct vgpu_error *error);

/* Takes over a worker of an earlier mediator.  ENOENT, ECONNREFUSED: none lives
 * there; the caller removes the files, or starts a successor.  The worker gives a grant
 * that it holds back at once: before ready(), or by returned() if it was `granted`. */
int exec_session_adopt(uv_loop_t *loop, const char *memory_path, const char *socket_path,
                       const struct exec_session_events *events, struct exec_session **ret_session,
                       struct vgpu_error *error);

void exec_session_grant(struct exec_session *session, const struct exec_session_grant *grant);

/* Asks for the grant; returned() follows when what runs has drained.  Without a
 * grant nothing happens. */
void exec_session_revoke(struct exec_session *session);

/*
 * Somebody waits for a context of its device: it is to give up one that holds nothing of the
 * guest's, at once without a grant, else when it runs out of work, or after a second in any
 * case.  rested() follows when it did.  In force until the next grant, which says anew
 * whether somebody waits.
 */
void exec_session_rest(struct exec_session *session);

/* Once it has ended: it did so because a kernel did what the GPU forbids.  Not known of a worker
 * that was adopted. */
bool exec_session_kernel_faulted(const struct exec_session *session);

/* Its VM's budget has changed: who waits for more looks again. */
void exec_session_wake(struct exec_session *session);

/* When the first operation of the grant that came back last began, on the monotonic clock and by
 * its own word; 0: there was none, or a worker of an earlier release does not tell. */
uint64_t exec_session_first_ns(const struct exec_session *session);

/* A number (from 1) for what it runs at this moment, the oldest of it, 0 when nothing: so that a
 * deadline can tell a long operation from a worker that hangs.  Also not 0 while its device is at
 * work on something that seemed to have ended. */
uint64_t exec_session_running(const struct exec_session *session);

/* Such a number for an operation that holds up the worker itself (a module that is compiled),
 * 0 when none does; what else runs is not looked at meanwhile.  *ret_since_ns: its begin by the
 * worker's word, on the monotonic clock; exec_session_running() had not ended then. */
uint64_t exec_session_blocking(const struct exec_session *session, uint64_t *ret_since_ns);

/* What its workers have done so far: descriptors taken (a number that wraps), and device
 * time in microseconds.  Their own word: only for statistics. */
void exec_session_progress(const struct exec_session *session, uint32_t *ret_taken,
                           uint64_t *ret_used_us);

/*
 * How long each operation took in long grants, where a grant's own length tells nothing: as
 * counts in buckets, each of which wraps.  The worker's own word: only for statistics, and bounded
 * by who counts it (exec_durations_new()).
 */
enum exec_duration {
    EXEC_DURATION_RUN,   /* from its begin to its end */
    EXEC_DURATION_TOTAL, /* from when it was taken from the ring to its end */
    EXEC_DURATIONS,
};

#define EXEC_DURATION_BUCKETS 528u

struct exec_durations {
    uint32_t counts[EXEC_DURATIONS][EXEC_DURATION_BUCKETS];
};

/* How many operations are in them, a number that wraps: cheap to ask whether there are any new. */
uint32_t exec_session_timed(const struct exec_session *session);

void exec_session_durations(const struct exec_session *session,
                            struct exec_durations *ret_durations);

/* Microseconds that a bucket (below EXEC_DURATION_BUCKETS) stands for: exact below 32, then its
 * middle, 3.2 % wrong at most. */
uint64_t exec_duration_us(unsigned bucket);

/* How many are in `told` and not in `seen`, of that kind of which there are more. */
uint64_t exec_durations_new(const struct exec_durations *told, const struct exec_durations *seen);

/* Device time of what runs, or ran when its worker died, that is not counted there yet. */
uint64_t exec_session_uncounted_us(const struct exec_session *session);

/* How long its VM's budget has kept from running what waited, all workers so far, in
 * microseconds; what lasts at this moment comes later.  Their own word: only for statistics. */
uint64_t exec_session_throttled_us(const struct exec_session *session);

/* The devices that it was started for or moved to, one space apart, valid as long as the session;
 * "": its backend's first.  Its workers could have changed it. */
const char *exec_session_devices(const struct exec_session *session);

/* Its worker has nothing on a device that it could not have on another one.  Holds until the next
 * grant; false while there is one. */
bool exec_session_may_move(const struct exec_session *session);

/* Where exec_session_may_move(): from its next grant on it works on this device, which is of the
 * same kind as its own.  For mediators to come it is there at once. */
void exec_session_move(struct exec_session *session, const char *device);

/* The share of its VM's account that it was started with; its workers could have changed it. */
uint32_t exec_session_share(const struct exec_session *session);

/* Its worker says that its device is lost, or could not be had: a new one may find it well. */
bool exec_session_device_lost(const struct exec_session *session);

/* How many contexts of GPUs its worker has at this moment; always 0 on the cpu backend.  Its
 * own word: only for statistics, and for what it could as well take by making contexts. */
uint32_t exec_session_contexts(const struct exec_session *session);

/* Ends a worker that cannot be adopted, and waits for that (at most two seconds): no
 * two workers ever have one slot, and none works whom no mediator watches.  Returns
 * 0 when none lives, -1 when it cannot be ended. */
int exec_session_end_holder(const char *memory_path, struct vgpu_error *error);

/* A worker lives that has this session memory. */
bool exec_session_is_held(const char *memory_path);

/* Since it was told to give its grant back it has had no processor, or waits for a disk, by the
 * kernel's word: it cannot have answered. */
bool exec_session_is_starved(const struct exec_session *session);

/* Kills it at once; ended() follows. */
void exec_session_kill(struct exec_session *session);

/* The same, for what it runs, or for what holds it up (`blocking`): that is answered with
 * TIME_LIMIT, the rest with DEVICE_LOST. */
void exec_session_kill_over_limit(struct exec_session *session, bool blocking);

/* Forgets it without ending it and without further events. */
void exec_session_detach(struct exec_session *session);

pid_t exec_session_pid(const struct exec_session *session);

/* --- the worker's own side (commands.c, worker_main.c) ---------------------- */

struct device_ops;

#define EXEC_DEVICE_BYTES 64 /* a device's name, with its NUL */

struct exec_backend_config {
    const char *device;       /* as the pool names it: "cpu:0", "cuda:0", "GPU-...", "MIG-...",
                                 or a PCI address; several stand one space apart */
    const char *cuda_library; /* NULL: libcuda.so.1 */
};

/* A backend: how a worker computes.  See cpu.c for the reference. */
struct exec_backend {
    const char *name;
    bool driver; /* it is a driver's library: its confinement is wider */
    int (*open)(const struct exec_backend_config *config, struct vgpu_error *error);
    void (*close)(void);
    bool (*lost)(void);             /* it works no more in this process; NULL: never */
    void (*choose)(unsigned index); /* the device that texts run on from now on, at first the
                                       first; NULL: they are all alike */
    /* It has one device and no context: works on this one from now on, -1 when that cannot be
     * had, and then on none.  NULL: they are all alike. */
    int (*move)(const char *device, struct vgpu_error *error);
    uint32_t (*contexts)(void); /* of GPUs, that this process has now; NULL: never any */
    /* -1 with a message for the guest when it cannot; that it computed right is checked by
     * the caller. */
    int (*vector_add)(const float *a, const float *b, float *sum, size_t count,
                      struct vgpu_error *error);
    int (*matrix_mul)(const float *a, const float *b, float *product, size_t n,
                      struct vgpu_error *error);
    int (*reduce)(const float *x, size_t count, double *ret_sum, struct vgpu_error *error);
    int (*spin)(uint32_t spin_ms, struct vgpu_error *error);
    void (*describe)(char *text, size_t bytes); /* GPU_INFO */
    const struct device_ops *device;            /* window sessions: exec/device.h */
};

extern const struct exec_backend exec_backend_cpu;
extern const struct exec_backend exec_backend_cuda;

/* What stands in for a device that cannot be had: all that needs it is DEVICE_LOST. */
extern const struct exec_backend exec_backend_none;

/* The backend of a pool's device: "cpu" or "cuda". */
static inline const char *exec_backend_of(const char *device)
{
    return strcmp(device, "cpu") == 0 || strncmp(device, "cpu:", 4) == 0 ? "cpu" : "cuda";
}

/* Runs one text command on the backend: never fails, an error is an answer. */
void exec_run_command(const struct exec_backend *backend, const char *command,
                      struct protocol_response *ret_response);

#endif /* VGPU_EXEC_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mediator/ - the daemon: it wires the rooms together and decides nothing that
 * another room can decide.
 *
 *              request            ready / next             run
 *   channel ───────────▶ mediator ─────────────▶ sched   ───────▶ exec (workers)
 *   channel ◀─────────── mediator ◀───────────────────────────── completed / ended
 *              answer
 *
 *   main.c            options, signals
 *   config.c          the configuration file and its defaults
 *   mediator.c        requests in, answers out, start and stop
 *   vm.c              one VM: its places in the queues, which of its sessions have grants
 *   contexts.c        how many contexts a GPU has, and who waits for one
 *   placement.c       which device of its pool a session works on
 *   file_session.c    the file channel's session of a VM: one request, one operation
 *   window.c          links: the windows of a VM and the slots in them
 *   window_session.c  one slot at work: its worker, its grants, its deadlines
 *   account.c         what a VM has of device memory, and may do, over all its sessions
 *   adoption.c        window sessions whose workers outlived an earlier mediator
 *   quarantine.c      VMs whose work goes wrong too often are put aside for a while
 *   recovery.c        file requests that an earlier mediator accepted
 *   registry.c        pools and VMs from the database
 *   reload.c          what has changed in database or configuration, applied live
 *   control.c         the control socket: who may connect, lines in and out
 *   commands.c        what can be asked there
 *   status.c          what the mediator tells of itself
 *   timing.c          what workers tell of the time that operations took or had to wait
 *   metrics.c         what is counted and timed, of VMs, pools and devices
 *   exposition.c      these numbers as Prometheus reads them
 *   stats.c           these numbers on the control socket
 *   gpus.c            the watch over the GPUs, and its events in the log
 *   cgroup.c          bounds what workers may take of the host
 *   test_mode.c       hold requests until several VMs wait, then let a person decide
 *
 * One thread, one libuv loop; the file channel has its own thread behind its
 * queues.
 */
#ifndef VGPU_MEDIATOR_H
#define VGPU_MEDIATOR_H

#include "base/base.h"
#include "channel/channel.h"
#include "exec/exec.h"
#include "gpu/gpu.h"
#include "metrics/metrics.h"
#include "sched/sched.h"
#include "trace/trace.h"
#include "vgpu/link.h"
#include "vgpu/regs.h"

#include <jansson.h>
#include <limits.h>
#include <sys/queue.h>
#include <uthash.h>

#define CONFIG_POOLS_MAX 26
#define CONFIG_DEVICE_BYTES 64
#define CONFIG_POOL_DEVICES_MAX 8u
#define CONFIG_POOL_DEVICE_BYTES ((size_t)CONFIG_POOL_DEVICES_MAX * CONFIG_DEVICE_BYTES)
#define CONFIG_NAME_BYTES 64
#define CONFIG_UUID_BYTES 37
#define CONFIG_REASON_BYTES 256
#define CONFIG_REFUSAL_BYTES (CONFIG_REASON_BYTES + 128)

/* --- config.c -------------------------------------------------------------------- */

enum config_policy {
    CONFIG_POLICY_DEFAULT, /* a pool's: that of [mediator] */
    CONFIG_POLICY_STRICT,
    CONFIG_POLICY_WFQ,
    CONFIG_POLICY_FIFO,
    CONFIG_POLICY_ROUND_ROBIN,
};

struct config_pool {
    char id; /* 'A'..'Z' */
    char name[CONFIG_NAME_BYTES];
    /* "cuda:0 cuda:1": names as in config_device_is_known(), each once, one space between;
     * "": none.  Pools that name the same device share it. */
    char device[CONFIG_POOL_DEVICE_BYTES];
    bool pack;                /* sessions fill one device after the other */
    uint32_t session_devices; /* that a window session has of them, 1..CONFIG_POOL_DEVICES_MAX */
    bool disabled;            /* its VMs' requests are refused */
    enum sched_pools_mode mode;
    enum config_policy policy;
    uint32_t aging_ms; /* strict: so long a wait raises the priority by one; 0: never */
    bool demand;       /* wfq: grants grow and shrink with what is asked for */
};

struct config_vm {
    uint32_t vm_id;
    char name[CONFIG_NAME_BYTES];
    char pool;
    uint8_t priority;
    uid_t owner_uid; /* of its directory; (uid_t)-1: the mediator's */
    gid_t owner_gid;
    mode_t mode;
    unsigned line; /* where the section begins, for messages */
    char uuid[CONFIG_UUID_BYTES];
    int channels;          /* CONFIG_CHANNEL_* of its own; 0: all that are on */
    uint32_t sessions_max; /* 0: the configuration's, as the next two */
    uint32_t device_memory_mib;
    uint32_t operation_limit_ms;
    uint32_t weight;               /* under wfq; 0: 100 */
    uint32_t request_rate;         /* a second; 0: no bound, as all that follow */
    uint32_t request_burst;        /* 0: a tenth of a second's, at least one */
    uint32_t device_share_percent; /* of a device's time */
    uint32_t queue_depth_max;      /* requests that wait */
    uint32_t inflight_ops_max;     /* on its devices */
    uint32_t inflight_kib_max;
    bool quarantined;
    char reason[CONFIG_REASON_BYTES]; /* of its quarantine */
    uint64_t quarantine_until_us;     /* since 1970; 0: until somebody releases it */
    uint64_t identity; /* tells it from an earlier VM of its number: when it was registered, */
                       /* in microseconds since 1970; 0: of a configuration file */
};

/* Bits of config.channels. */
#define CONFIG_CHANNEL_FILE 1
#define CONFIG_CHANNEL_WINDOW 2
#define CONFIG_CHANNEL_NONE 4 /* a VM's: none of the two */

struct config {
    int channels; /* CONFIG_CHANNEL_* */
    char share[PATH_MAX];
    char state_dir[PATH_MAX];
    char run_dir[PATH_MAX];       /* sockets and session memory: gone with the host's next boot */
    char worker_cgroup[PATH_MAX]; /* directory; "": below the mediator's own, if that can be had */
    char worker_user[CONFIG_NAME_BYTES];   /* "": the mediator's, or nobody for root */
    char log[PATH_MAX];                    /* "": standard error */
    char worker[PATH_MAX];                 /* path of vgpu-worker */
    char execution_log[PATH_MAX];          /* "": none */
    char cuda_library[PATH_MAX];           /* "": libcuda.so.1, as the loader finds it */
    char database[PATH_MAX];               /* "": pools and VMs stand in the file */
    char control_group[CONFIG_NAME_BYTES]; /* who may use the control socket */
    char nvml_library[PATH_MAX];           /* "none": GPUs are not watched */
    enum log_format log_format;
    enum log_level log_level;
    enum sched_pools_mode pools_mode;
    enum sched_policy policy;
    bool accept_unregistered;
    uint8_t max_priority; /* cap of an unregistered VM's claim */
    uint32_t poll_min_ms;
    uint32_t poll_max_ms;
    uint32_t response_hold_ms;
    uint32_t unterminated_hold_ms;
    uint32_t operation_limit_ms;
    uint32_t worker_idle_ms;
    uint32_t health_interval_ms;    /* between two looks at the GPUs */
    uint32_t sessions_max;          /* a VM, window sessions */
    uint32_t grant_us;              /* device time of a grant while others wait */
    uint32_t grant_ops;             /* operations of a grant; 1: each is scheduled by itself */
    uint32_t grant_min_us;          /* the shortest grant by demand; 0: an eighth of grant_us */
    uint32_t protect_us;            /* a grant while a higher priority is at work; 0: grant_us */
    uint32_t protect_inflight;      /* operations at once meanwhile; 0: as many as ever */
    uint32_t protect_ms;            /* so long after it was last seen; 0: no protection */
    uint32_t switch_us;             /* what a change of VM costs a device; 0: not known */
    uint32_t switch_share_percent;  /* of the time that changes may take; 0: any */
    uint32_t spin_us;               /* a worker with a grant polls so long before it sleeps */
    uint32_t worker_memory_mib;     /* of a worker's cgroup; 0: no bound */
    uint32_t device_memory_mib;     /* that a VM may have on its devices, all sessions together */
    uint32_t image_memory_mib;      /* of the host, that its sessions' images may take together */
    uint32_t contexts_per_device;   /* of a GPU at a time, 0: no cap */
    uint32_t contexts_per_vm;       /* of these, 0: only the cap */
    uint32_t quarantine_faults;     /* so many of a VM ...; 0: it is never put aside by itself */
    uint32_t quarantine_window_s;   /* ... in so long */
    uint32_t quarantine_cooldown_s; /* and how long that lasts; 0: until somebody releases it */
    uint32_t sessions_per_device;   /* from so many on a device has no room for `pack` */
    uint32_t gpu_check_ms;          /* a GPU has so long to show that it computes */
    uint32_t metrics_port;          /* where Prometheus may ask, on loopback; 0: only the socket */
    uint32_t metrics_vms;           /* that are told one by one; the others together */
    uint32_t trace_kib;             /* of the mediator's decision log; 0: there is none ... */
    uint32_t trace_session_kib;     /* ... and of each session's; 0: operations are not in it */
    bool count_contexts;            /* against device_memory_mib, with all that is theirs */
    bool gpu_missing_cpu;           /* pools of one that does not work on the CPU meanwhile */
    struct config_pool pools[CONFIG_POOLS_MAX];
    size_t pool_count;
    struct config_vm *vms; /* owned */
    size_t vm_count;
};

/* Keys of [mediator] about grants that a reload changes. */
struct grant_rules {
    uint32_t grant_us;
    uint32_t grant_ops;
    uint32_t grant_min_us;
    uint32_t protect_us;
    uint32_t protect_inflight;
    uint32_t protect_ms;
    uint32_t switch_us;
    uint32_t switch_share_percent;
};

/* Keys of [mediator] about faults that a reload changes. */
struct quarantine_rules {
    uint32_t faults;     /* 0: none is too much */
    uint32_t window_s;   /* of these */
    uint32_t cooldown_s; /* 0: no end by itself */
};

#define CONFIG_KEYS_MAX 64u /* of [mediator] */

/* Defaults: no VMs, pools A and B on one `cpu` device once completed. */
void config_init(struct config *config);
void config_free(struct config *config);

/* Reads `path` over what is there.  The error names file and line, what was
 * expected and what came. */
int config_read(struct config *config, const char *path, struct vgpu_error *error);

/* "cpu", "cpu:0" to "cpu:63"; "cuda:0" to "cuda:63", "GPU-<uuid>", "MIG-<uuid>" or a PCI
 * address such as "0000:65:00.0": the GPU of NVIDIA's driver library. */
bool config_device_is_known(const char *device);

/* The pool's device number `index` (from 0), written to `name`; NULL: it has not so many. */
const char *config_pool_device(const struct config_pool *pool, unsigned index,
                               char name[CONFIG_DEVICE_BYTES]);

/* "strict", "wfq", "fifo", "round-robin"; "default". */
const char *config_policy_name(enum config_policy policy);

/* Sets one key of [mediator], as the command line does. */
int config_set(struct config *config, const char *key, const char *value, struct vgpu_error *error);

/* Keys of [mediator] that two complete configurations have other values of, and that are read at
 * the start only.  Their names, which live for ever; returns how many. */
size_t config_next_start(const struct config *now, const struct config *wanted,
                         const char *ret_names[CONFIG_KEYS_MAX]);

/* Fills in what depends on other keys and checks what spans several. */
int config_complete(struct config *config, struct vgpu_error *error);

/* Who workers run as; (uid_t)-1: whoever we are. */
int config_worker_user(const struct config *config, uid_t *ret_uid, gid_t *ret_gid,
                       struct vgpu_error *error);

/* --- registry.c ------------------------------------------------------------------------ */

/* Fills in pools and VMs from config->database. */
int registry_read(struct config *config, struct vgpu_error *error);

struct device;
struct mediator;

/* --- devices.c ----------------------------------------------------------------------- */

/* A device that pools name has number `index`, now or again.  When the mediator runs and it is
 * not known to be usable, its check begins.  -1: no memory. */
int devices_add(struct mediator *mediator, unsigned index);

/* Checks all GPUs, and waits for it. */
void devices_start(struct mediator *mediator);

/* Checks again those that could not be used. */
void devices_recheck(struct mediator *mediator);

/* Pools have changed: those that none names are not checked until one does. */
void devices_pause(struct mediator *mediator);

/* The driver says that it is in trouble: until a check has passed nothing new begins on it. */
void devices_doubt(struct mediator *mediator, const char *name);

/* A session says that it lost one of them, whose names stand one space apart: they are checked
 * while work goes on, no more often than every 10 s. */
void devices_suspect(struct mediator *mediator, const char *names);

/* May work be given to it?  If not, *why (may be NULL). */
bool devices_usable(const struct mediator *mediator, const char *name,
                    char why[CONFIG_REASON_BYTES]);

/* What a context takes of its memory, as its check has measured; 0: not known. */
uint64_t devices_context_bytes(const struct mediator *mediator, const char *name);

/* The same for all of a list, one space apart. */
bool devices_all_usable(const struct mediator *mediator, const char *names);

/* A worker for the one can go on for the other: the processors are one device by all their
 * names, whatever the scheduler makes of them. */
bool devices_are_one(const char *a, const char *b);

/* Does a guest that has nothing on the one see no difference on the other, and can its worker go
 * there?  Processors; whole GPUs of one model, by what their checks have found. */
bool devices_are_alike(const struct mediator *mediator, const char *a, const char *b);

/* Has its check failed?  One that is just being checked has not. */
bool devices_failed(const struct mediator *mediator, const char *name);

/* Ends checks and timers; devices_free() when the loop has ended. */
void devices_stop(struct mediator *mediator);
void devices_free(struct mediator *mediator);

/* --- vm.c ---------------------------------------------------------------------------- */

struct session;

enum session_state {
    SESSION_IDLE,    /* nothing to do */
    SESSION_GATED,   /* it has work, and waits for a context of its device */
    SESSION_WAITING, /* it has work; its place is in the queue */
    SESSION_RUNNING, /* holds its place's grant */
};

struct session_ops {
    bool takes_many; /* as many devices as its pool gives to one */
    /* Run now.  session_returned() follows, perhaps before this returns. */
    void (*run)(struct session *session, const struct sched_grant *grant);
    /* Give a long grant back as soon as what runs has drained. */
    void (*revoke)(struct session *session);
    /* It has work, and its VM may not work: answer with vm->refusal. */
    void (*refuse)(struct session *session);
    /* Does its worker compute on a GPU?  How many contexts may it have now? */
    bool (*needs_context)(const struct session *session);
    uint32_t (*contexts)(const struct session *session);
    /* Somebody waits for a context: what is not needed is to be given up.  Not while it
     * waits for its turn. */
    void (*rest)(struct session *session);
    /* Idle: it holds nothing on its device, so that its next work can run on another one. */
    bool (*may_move)(const struct session *session);
    /* It has been placed on another one, which is like its last; NULL: it asks when it runs. */
    void (*moved)(struct session *session);
    /* RUNNING: there is something that runs.  What is known of its times is up to date then. */
    bool (*is_at_work)(struct session *session);
    /* For the log and test mode: "PING", "window slot 3". */
    void (*describe)(const struct session *session, char *text, size_t bytes);
};

/* HELD while its session may have contexts of this device. */
struct session_seat {
    struct sched_seat seat;
    struct session *session;
    unsigned device;
};

/* Where its session stands in line to gather contexts of several devices. */
struct session_gang {
    struct sched_gang gang;
    struct session *session;
};

/* Something of a VM that can hold its grant: the file channel's session or a
 * window session, which begin with it. */
struct session {
    struct vm *vm;
    /* On its devices, in the order of their numbers; all different. */
    struct vm_place *places[CONFIG_POOL_DEVICES_MAX];
    unsigned place_count;   /* 0: it has none yet */
    unsigned held;          /* WAITING: of the first so many it has the grants already ... */
    bool bounded;           /* ... and what it will have of all is not a long grant */
    struct vm_place *place; /* where it waits now or next, places[held]; RUNNING: the first */
    bool lacks_devices;     /* its pool had fewer than it gives to one */
    bool lifted;            /* out of the queues, while places are moved */
    bool cut_short;         /* its grant ended with its worker */
    const struct session_ops *ops;
    enum session_state state;
    uint32_t depth;             /* GATED, WAITING: operations that it is known to have */
    uint64_t expected_us;       /* not IDLE: how long its devices will have to do for it, about */
    uint64_t lately_us;         /* placement.c: what its last operations used ... */
    uint64_t lately_operations; /* ... and how many they were; ... */
    uint64_t begun_operations;  /* ... those that have used none yet as far as is known */
    uint64_t waiting_since_ns;
    uint64_t switched_ns; /* RUNNING: when another VM gave it the device; 0: none did ... */
    uint64_t granted_ns;  /* ... since when ... */
    bool timed;           /* ... and how long it runs is to be told */
    TAILQ_ENTRY(session) in_order; /* WAITING: of place->waiting; GATED: of place->gated */
    struct session_seat seats[CONFIG_POOL_DEVICES_MAX]; /* contexts.c's, as `places` */
    unsigned gated_at;                                  /* GATED: of which it waits for one */
    struct session_gang gang;                           /* contexts.c's too */
};

/* What a VM did and had to wait for; each number since it is known. */
struct vm_statistics {
    struct metrics_scope scope;
    struct metrics_latency answer; /* file requests: from their acceptance to the answer */
    bool labelled;                 /* Prometheus is told of it by its number */
    uint64_t look_ns;              /* of the rate's last measure ... */
    uint64_t look_operations;
    uint64_t rate; /* ... operations a second then */
};

/*
 * A VM on one device: the unit of the queue.  Of its sessions there one holds its grant;
 * those that wait are served in turn, so that a VM with many sessions has no larger share.
 *
 * A session on several devices runs when it holds the grants of all its places.  It waits
 * for one after the other, in the order of the devices' numbers, so that no two sessions
 * ever hold what the other one waits for.  What it then gets is a long grant only where
 * nobody has waited for any of them meanwhile.
 */
struct vm_place {
    struct vm *vm;
    unsigned device; /* of mediator->devices */
    struct sched_vm *queued;
    TAILQ_HEAD(, session) waiting;
    uint32_t waiting_count;
    TAILQ_HEAD(, session) gated; /* they wait for a context, not for their turn */
    uint32_t gated_count;
    uint64_t gate_told_ns; /* when the log told of it last; 0: never */
    struct session *running;
    bool running_long;    /* its grant lasts until revoked */
    bool left;            /* its device is not to be used: sessions wait elsewhere */
    uint32_t sessions;    /* that are on this device, whatever they do ... */
    uint64_t expected_us; /* ... and what that is, as session.expected_us */
    STAILQ_ENTRY(vm_place) in_vm;
};

/* What a VM has of one device's contexts, and who of it waits for these. */
struct vm_contexts {
    unsigned device;
    struct sched_gate_owner owner;
    SLIST_ENTRY(vm_contexts) in_vm;
};

/*
 * One VM, with a place for each device that its sessions have been on.
 * Lives as long as the mediator, or until it is removed and all of it has ended.
 */
struct vm {
    struct mediator *mediator;
    uint32_t vm_id;
    bool registered;
    bool removed;                       /* from the registry: what is left of it ends */
    bool listed;                        /* the registry that is being applied has it */
    struct config_vm settings;          /* registered: as the registry says */
    char refusal[CONFIG_REFUSAL_BYTES]; /* why nothing of it may run now; "": it may */
    struct vm_statistics statistics;
    STAILQ_HEAD(, vm_place) places; /* at least one */
    uint64_t window_sequence;       /* numbers the turns of its window sessions, for the log */
    uint64_t refusals_ns;           /* of sessions: the second that counts ... */
    uint32_t refusals;              /* ... how many there were in it ... */
    uint32_t refusals_untold;       /* ... and how many since the last that was logged */
    uint64_t told_ns;               /* of what its guest can make the log say: as above */
    uint32_t told;
    uint32_t untold;
    struct file_session *file;
    TAILQ_HEAD(, window_session) windows;
    uint32_t window_count;
    SLIST_HEAD(, vm_contexts) contexts; /* of devices whose contexts it has asked for */
    struct exec_account *account;       /* NULL: nothing has needed it yet */
    struct {
        bool on;           /* by the mediator, and not in the database (yet) */
        bool writing;      /* the database is being told ... */
        bool release_next; /* ... and then of its end */
        uint64_t until_us; /* since 1970; 0: until somebody releases it */
        char reason[CONFIG_REASON_BYTES];
        uint64_t *times_ns; /* of the last faults; NULL: there was none */
        uint64_t count;     /* of them, since it was last forgiven */
    } quarantine;
    UT_hash_handle hh; /* by vm_id, unless removed */
    LIST_ENTRY(vm) in_removed;
};

struct vm *vm_new(struct mediator *mediator, uint32_t vm_id, char pool, unsigned priority,
                  bool registered, struct vgpu_error *error);
void vm_free(struct vm *vm);
struct vm *vm_find(struct mediator *mediator, uint32_t vm_id);

/* Changes pool and priority, live, in the queue. */
int vm_update(struct vm *vm, char pool, unsigned priority, struct vgpu_error *error);

/* Tells its guests' registers and links what it is now. */
void vm_push(struct vm *vm);

/* From now on, and for what waits, all is answered with this text; "" ends that. */
void vm_set_refusal(struct vm *vm, const char *text);

/* Its window socket goes, its links and sessions end. */
void vm_end_windows(struct vm *vm, const char *reason);

/* Ends all that it has; it is freed when that is so. */
void vm_remove(struct vm *vm);

/* Frees those of which nothing is left. */
void vm_free_removed(struct mediator *mediator);

/* A VM of this id was removed, and its end is not through yet. */
bool vm_is_ending(const struct mediator *mediator, uint32_t vm_id);

/* Is this channel (CONFIG_CHANNEL_*) one of a registered VM's?  Whether it is on at all is
 * the mediator's. */
bool vm_uses(const struct vm *vm, int channel);

/* Its own limits, or the configuration's. */
uint32_t vm_sessions_max(const struct vm *vm);
uint32_t vm_device_memory_mib(const struct vm *vm);
uint32_t vm_operation_limit_ms(const struct vm *vm);

char vm_pool(const struct vm *vm);
unsigned vm_priority(const struct vm *vm);

/* Of all its places: sessions that wait, for a context too, the first of them (NULL), whether one
 * runs. */
uint32_t vm_waiting(const struct vm *vm);
uint64_t vm_depth(const struct vm *vm); /* their operations, as far as these are known */
uint64_t vm_place_depth(const struct vm_place *place);
const struct session *vm_first_waiting(const struct vm *vm);
bool vm_runs(const struct vm *vm);

/* The devices of its pool may be others, or be usable again. */
void vm_check_device(struct vm *vm);

/* May the log have one more line that a guest can bring about?  Counts; what was too
 * much for a second is summed up in the next one. */
bool vm_may_tell(struct vm *vm);

void session_init(struct session *session, struct vm *vm, const struct session_ops *ops);

/* It has work: the scheduler decides when it runs. */
void session_wait(struct session *session, uint32_t depth);

/* The same for one that has waited for a context, and may have it. */
void session_join(struct session *session);

/* What vm_grant() began has drained; `depth_left` > 0 makes it wait again. */
void session_returned(struct session *session, uint64_t used_us, uint32_t depth_left);

/* Leaves the queue or gives its grant up, whatever it was doing. */
void session_withdraw(struct session *session);

/* The scheduler's word for this place. */
void vm_grant(struct vm_place *place, const struct sched_grant *grant);
void vm_revoke(struct vm_place *place, enum trace_reason reason);

/* Sessions that hold some of their devices and wait for others give up what a VM of higher
 * priority waits for, and wait anew: they could wait long.  True: there was such a one. */
bool vm_yield(struct mediator *mediator);

/* All grants of the VM are to come back. */
void vm_revoke_all(struct vm *vm);

/* --- policy.c ------------------------------------------------------------------------- */

struct grant_rules policy_rules(const struct config *config);

/* What grants allow, as the configuration, the rules and the test mode have it. */
struct sched_config policy_grants(const struct mediator *mediator);

/* Tells the scheduler, live.  -1: it does not know the pool. */
int policy_apply_pool(const struct mediator *mediator, const struct config_pool *pool,
                      struct vgpu_error *error);
void policy_apply_vm(const struct vm *vm);

/* Whether priorities alone say who of its pool is next. */
bool policy_is_strict(const struct vm *vm);

/* --- contexts.c ----------------------------------------------------------------------- */

/* Before all else; `cap` is contexts_per_device, `vm_cap` contexts_per_vm, 0: none. */
void contexts_init(struct mediator *mediator, uint32_t cap, uint32_t vm_cap);
void contexts_set_cap(struct mediator *mediator, uint32_t cap);
void contexts_set_vm_cap(struct mediator *mediator, uint32_t cap);
uint32_t contexts_cap(const struct mediator *mediator);
uint32_t contexts_vm_cap(const struct mediator *mediator);

/* The VM is freed, after all of its sessions. */
void contexts_forget(struct vm *vm);

/* It may have contexts of its devices. */
bool contexts_are_held(const struct session *session);

/* It has work and places.  False: it is GATED, and session_join() follows. */
bool contexts_enter(struct session *session);

/* Its grant has come.  False: another one took the last context, it is GATED. */
bool contexts_take(struct session *session);

/* It does not wait any more; what it has it keeps. */
void contexts_leave(struct session *session);

/* If it stood in line for a context of this device now, it would have one with its grant. */
bool contexts_has_room(const struct session *session, unsigned device);

/* Has its worker contexts or not?  Not while it runs. */
void contexts_settle(struct session *session);

/* Those for whom there is room join their queues.  False: there were none. */
bool contexts_admit(struct mediator *mediator);

/* It has the grant of one more of its devices. */
void contexts_progress(const struct session *session);

/* When contexts_admit() must be called again by itself; SCHED_NEVER_NS, or a time that has gone
 * by: it must not. */
uint64_t contexts_deadline_ns(const struct mediator *mediator);

/* Does anybody wait for one of the device that it has one of? */
bool contexts_are_wanted(const struct session *session);

/* Its VM's priority is another one. */
void contexts_set_priority(struct vm_place *place);

/* VMs that wait for a context and on the same device for nothing else. */
uint32_t contexts_waiting_vms(const struct mediator *mediator);

/* GATED: because its VM has as many as it may have?  And the configuration's key that bounds it. */
bool contexts_waits_for_own(const struct session *session);
const char *contexts_limit_of(const struct session *session);

/* Sessions that wait for one of this device. */
uint32_t contexts_waiting(const struct mediator *mediator, unsigned device);

/* Those, in the order in which they will have one; at the end those whose VM has as many as it
 * may have.  Fills at most `room`, returns how many. */
size_t contexts_list_waiting(const struct mediator *mediator, unsigned device,
                             struct session **sessions, size_t room);

/* --- placement.c ---------------------------------------------------------------------- */

/* What a device has to do, for all VMs. */
struct device_load {
    uint32_t sessions;
    uint64_t expected_us; /* device time that those that wait or run there will take, about */
    uint64_t used_us;     /* device time, less by half every 10 s ... */
    uint64_t used_since_ns;
    uint64_t busy_us; /* device time since the start */
    uint64_t look_ns; /* of the last measure of its share ... */
    uint64_t look_busy_us;
    uint64_t busy_permille;          /* ... of the time that had passed */
    uint64_t returned_ns;            /* when its last grant came back, ... */
    uint32_t returned_vm;            /* ... and whose it was; 0: there was none */
    struct metrics_latency switches; /* from there to the next VM's first operation */
};

/* The scheduler's numbers of the pool's devices, in its order; returns how many. */
unsigned placement_devices(struct mediator *mediator, const struct config_pool *pool,
                           unsigned ret_devices[CONFIG_POOL_DEVICES_MAX]);

/* One of its VM's sessions can have as many of them as it is given. */
bool placement_is_possible(struct mediator *mediator, const struct config_pool *pool);

/* A new place of a VM; it is freed with the VM.  NULL: no memory, or no such pool. */
struct vm_place *placement_add(struct vm *vm, unsigned device, char pool, unsigned priority,
                               struct vgpu_error *error);

/* Puts a session that does not wait or run onto the devices that are to be chosen now. */
void placement_choose(struct session *session);

/* As placement_choose(), for one whose worker is on devices already: their names, one space
 * apart, as in all that follows. */
void placement_adopt(struct session *session, const char *names);

/* An idle session has work again: where it holds nothing on its device (and its pool spreads) it
 * goes where there is least to do. */
void placement_rebalance(struct session *session);

/* So many operations of it wait or run on its devices now; 0: none does. */
void placement_expect(struct session *session, uint32_t operations);

/* It is on no device any more. */
void placement_leave(struct session *session);

/* May it wait in its places?  Not where one was left, or their order is another now. */
bool placement_stands(const struct session *session);

/* May what runs on its devices stay there?  May something begin there? */
bool placement_holds(const struct session *session);
bool placement_takes(const struct session *session);

/* May the session's worker, which was started for these devices, go on? */
bool placement_fits(const struct session *session, const char *names);

/* May sessions of this VM be on these devices, whether they work or not? */
bool placement_allows(const struct vm *vm, const char *names);

/* The devices of a session that has places, as its worker is told. */
void placement_devices_of(const struct session *session, char names[CONFIG_POOL_DEVICE_BYTES]);

/* The VM's pool or its devices have changed: places on others move, with what waits there. */
void placement_update(struct vm *vm);

/* Its VM has used so much time of each of its devices, which were busy so long, and has begun so
 * many operations. */
void placement_charge(struct session *session, uint64_t used_us, uint64_t operations);

/* --- file_session.c ------------------------------------------------------------------- */

struct file_session {
    struct session session;
    struct channel_request request;   /* WAITING, RUNNING */
    struct exec_worker *worker;       /* NULL: none */
    char device[CONFIG_DEVICE_BYTES]; /* that it was started for */
    unsigned workers;                 /* whose end has not come, that one counted */
    bool limit_exceeded;              /* the worker was killed for its time */
    uint64_t spawn_until_ns;          /* an old worker still ends: try so long */
    unsigned tries_left;              /* workers that may be started for this request */
    uint64_t began_ns;                /* what runs, on its worker */
    uv_timer_t timer;                 /* operation limit, idle worker, spawn again */
    struct file_session *next_recovering;
};

struct file_session *file_session_new(struct vm *vm, struct vgpu_error *error);

/* Queues the request: the scheduler decides when it runs. */
void file_session_queue(struct file_session *file, const struct channel_request *request);

/* What becomes of a recovered request that is to run: it waits, or is refused. */
void file_session_resume(struct file_session *file);

/* Its VM is removed: ends its worker, and what runs is answered with the reason. */
void file_session_end(struct file_session *file);

/* Its VM's work belongs on another device now: the worker ends when it is idle. */
void file_session_check_device(struct file_session *file);

/* Its VM's operation limit has changed, for what runs too. */
void file_session_limit_changed(struct file_session *file);

/* True when nothing of it is to come. */
bool file_session_has_ended(const struct file_session *file);

/* Frees it when the loop has turned. */
void file_session_free(struct file_session *file);

/* Answers the waiting or running request and leaves the queue or the device. */
void file_session_answer(struct file_session *file, const struct protocol_response *response,
                         uint64_t device_us);

/* As file_session_answer(), for one that ran longer than it may. */
void file_session_answer_limit(struct file_session *file);

/* Where this VM's workers keep their record. */
void file_session_record_path(const struct file_session *file, char *path, size_t bytes);

/* Lets go of the worker and closes the timer; the memory stays the caller's. */
void file_session_close(struct file_session *file);

/* --- window.c ---------------------------------------------------------------------------- */

/* One link: a device's or a process's window. */
struct window {
    struct vm *vm;
    struct window_link *link;
    struct window_link_info info;
    int lifeline_fd; /* a copy that outlives the link, for the sessions */
    struct window_session *slots[VGPU_SLOTS_MAX]; /* NULL: closed */
    bool resetting;                               /* RESET_DONE is owed */
    LIST_ENTRY(window) in_mediator;
};

extern const struct window_channel_events window_events;

/* Tells the guest's registers what the VM is now. */
void window_push_config(struct window *window);

/* Its owner wants a session in this slot: a worker is started, or it is told why not;
 * when an old session there still ends, after that. */
void window_open(struct window *window, uint32_t slot);

/* Ends its link with this reason; its sessions become orphans. */
void window_drop(struct window *window, const char *reason);

/* A session of this window is gone: tells the owner. */
void window_session_gone(struct window *window, uint32_t slot);

void window_free_all(struct mediator *mediator);

/* --- window_session.c ------------------------------------------------------------------------ */

/*
 *            open                ready                  worker dies
 *   (none) ───────▶ STARTING ───────────▶ OPEN ─────────────────────▶ STARTING (successor)
 *                      │                   │ ▲                            (DEVICE_LOST)
 *                      │ cannot start      │ └ a link of its window came
 *                      ▼                   │ the link went, its owner lives
 *                    (none)              ORPHAN
 *   any ── close, reset ──▶ ENDING ── the worker is gone ──▶ (none)
 *   OPEN ── the rings made no sense ──▶ FAULTED ── close ──▶ (none)
 */
enum window_session_state {
    WINDOW_SESSION_STARTING,
    WINDOW_SESSION_OPEN,
    WINDOW_SESSION_FAULTED, /* no worker; waits for its owner to close it */
    WINDOW_SESSION_ENDING,
};

/* What a session's worker told of times, as far as it was counted.  All zero: nothing. */
struct timing {
    uint64_t begin_ns;
    uint64_t throttled_us;          /* that its VM's budget kept it, by its word ... */
    uint64_t throttled_counted_us;  /* ... and what was counted: never more than has passed */
    uint64_t operations_ns;         /* when operations were counted last ... */
    uint32_t timed;                 /* ... how many it had timed, a number that wraps ... */
    struct exec_durations *counted; /* ... and how long they took; NULL: there were none */
};

struct window_session {
    struct session session;
    enum window_session_state state;
    struct window *window; /* NULL: orphan, its owner has no link now */
    uint32_t slot;
    struct exec_session *worker;            /* NULL: dead; a successor comes */
    char devices[CONFIG_POOL_DEVICE_BYTES]; /* that it was started for, one space apart */
    struct exec_session_identity identity;
    char memory_path[PATH_MAX];
    char socket_path[PATH_MAX];
    uint32_t share;        /* of its VM's account ... */
    bool has_share;        /* ... which it has, until it ends */
    bool successor;        /* the next worker answers for a dead one */
    struct window *opener; /* ENDING and unclaimed: who opens the slot anew when it is gone */
    bool adopting;         /* it may hold a grant of an earlier mediator: nothing runs yet */
    bool revoked;
    unsigned deaths;     /* in a row, each soon after its start */
    uint64_t started_ns; /* the worker */
    uint64_t granted_ns;
    uint64_t revoked_ns;
    uint64_t grant_us;   /* of the current grant; SCHED_GRANT_LONG_US */
    uint64_t running;    /* what it ran at the last look ... */
    uint64_t running_ns; /* ... and since when */
    uint64_t blocking;   /* the same of what held it up */
    uint64_t blocking_ns;
    bool doubted;       /* it overstayed at the last look */
    int lifeline_fd;    /* of an orphan: tells whether its owner still lives; -1 */
    uint64_t orphan_ns; /* ... and since when */
    uint64_t sequence;  /* of its turn, for the log */
    uint64_t used_us;   /* device time of its worker, as far as it was counted ... */
    uint32_t taken;     /* ... and operations */
    struct timing timing;
    bool measured;    /* the three say where this mediator began */
    bool refusing;    /* the worker answers all with REFUSED, until that is revoked */
    bool killed;      /* the worker is to die: its end is waited for */
    bool over_limit;  /* the worker was ended for an operation that took too long ... */
    bool blameless;   /* ... or for something that is not its VM's doing */
    uv_timer_t timer; /* deadlines while granted; the next try after a death */
    TAILQ_ENTRY(window_session) in_vm;
};

/* Starts a worker on the window's slot.  On failure the caller tells the owner. */
int window_session_open(struct window *window, uint32_t slot, struct vgpu_error *error);

/* Starts a successor for a slot whose worker died with an earlier mediator. */
int window_session_reopen(struct window *window, uint32_t slot, struct vgpu_error *error);

/* Takes over a living worker of an earlier mediator.  -1: none lives there. */
int window_session_adopt(struct vm *vm, uint32_t slot, uint64_t inode, struct vgpu_error *error);

/* The mediator leaves, the worker lives on. */
void window_session_detach(struct window_session *ws);

/* Its VM's work belongs on another device now, or its device is well again: what it holds is
 * lost, and a successor goes on there. */
void window_session_check_device(struct window_session *ws);

/* As window_session_check_device() while its VM is refused: only a device that is not the
 * pool's any more ends it. */
void window_session_leave_device(struct window_session *ws);

/* Its VM may work again. */
void window_session_accept(struct window_session *ws);

/* Its VM's operation limit has changed, for what runs too. */
void window_session_limit_changed(struct window_session *ws);

/* Adds what the worker did since the last look to its VM's statistics. */
void window_session_measure(struct window_session *ws);

/* Its owner's link is here (again). */
void window_session_attach(struct window_session *ws, struct window *window);

/* Its owner's link is gone; the owner may live. */
void window_session_orphan(struct window_session *ws);

/* Ends it: no answer is wanted any more. */
void window_session_end(struct window_session *ws);

/* Takes what is left of it out of its VM and window, and frees it when the loop
 * has turned. */
void window_session_free(struct window_session *ws);

/* The session of `window`'s memory in `slot`, attached or not. */
struct window_session *window_session_find(struct vm *vm, const struct window_link_info *info,
                                           uint32_t slot);

/* --- account.c ------------------------------------------------------------------------------ */

/* Gives the session its share, unless it has one. */
int account_join(struct window_session *ws, struct vgpu_error *error);

/* As account_join(), for one whose worker is an earlier mediator's: it has its share already. */
int account_adopt(struct window_session *ws, struct vgpu_error *error);

/* All workers that live are adopted: what others held is free. */
void account_settle(struct vm *vm);

/* The session's worker is dead, and what it held is free; the session keeps its share. */
void account_worker_ended(struct window_session *ws);

/* The session ends, and has left its VM's list. */
void account_leave(struct window_session *ws);

/* The VM's limits may have changed; counts at once, for grants that are out as well. */
void account_limit_changed(struct vm *vm);

/* The VM goes, or the mediator does. */
void account_close(struct vm *vm);

/* Device time that was used, which no worker has counted. */
void account_charge(struct vm *vm, uint64_t used_us);

/* Counts a file request.  False: it is too much for the VM's limits, as *ret_text says, with
 * when another one will not be. */
bool account_admits(struct vm *vm, char ret_text[CONFIG_REFUSAL_BYTES]);

/* Device memory that counts against the VM's limit, of all its window sessions. */
uint64_t account_used_bytes(const struct vm *vm);

/* --- quarantine.c --------------------------------------------------------------------------- */

/* Counts it; when they are too many, the VM is refused from now on.  The last that a caller does
 * in its own matter: what waits is answered. */
void quarantine_fault(struct vm *vm, enum metrics_fault fault);

/* By an administrator, or by itself. */
bool quarantine_is_on(const struct vm *vm);
uint64_t quarantine_until_us(const struct vm *vm); /* since 1970; 0: not by itself, or it is not */

/* Ends one that is not in the database.  False: there was none. */
bool quarantine_release(struct vm *vm);

/* What was is not counted any more. */
void quarantine_forgive(struct vm *vm);

struct quarantine_rules quarantine_rules(const struct config *config);

/* From the next fault on; where their number is another one, they are counted anew. */
void quarantine_set_rules(struct mediator *mediator, const struct quarantine_rules *rules);

/* VMs or their quarantines have changed: when does the next one end? */
void quarantine_update(struct mediator *mediator);

void quarantine_free(struct vm *vm);

/* --- adoption.c ----------------------------------------------------------------------------- */

/* Finds the workers that live, has them give back their grants; until all have,
 * nothing is dispatched.  Calls mediator_recovered() when that is so. */
int adoption_start(struct mediator *mediator, struct vgpu_error *error);

/* One worker less is waited for. */
void adoption_settled(struct mediator *mediator);

/* --- cgroup.c ------------------------------------------------------------------------------- */

/* Makes the directory below which workers get theirs; a failure is a warning: the
 * workers run without bounds of this kind. */
void cgroup_start(struct mediator *mediator);

/* The directory of a VM's workers, "" when there is none. */
void cgroup_of_vm(struct mediator *mediator, uint32_t vm_id, char path[PATH_MAX]);
void cgroup_stop(struct mediator *mediator);

/* --- gpus.c --------------------------------------------------------------------------------- */

/* All zero: nothing is watched. */
struct gpus {
    struct gpu_health *health;
    struct gpu_snapshot *snapshot;  /* owned; the latest that was read */
    uv_async_t wake;                /* from the watch's thread */
    char problem[VGPU_ERROR_BYTES]; /* that was logged last */
};

void gpus_init(struct mediator *mediator);

/* Begins the watch when a pool is bound to a GPU; a failure is a warning, and is tried
 * again at the next call. */
void gpus_update(struct mediator *mediator);
void gpus_stop(struct mediator *mediator);

/* "gpus" and "gpu_watch" of the status. */
json_t *gpus_describe(struct mediator *mediator);
json_t *gpus_describe_watch(struct mediator *mediator);

/* --- recovery.c ----------------------------------------------------------------------- */

/*
 * A request that an earlier mediator accepted may still run, may have run, or
 * may have been cut off.  It is queued, and:
 *   - while a living worker holds its record, nothing is dispatched;
 *   - a result in its record becomes the answer, nothing runs again;
 *   - otherwise it runs in its turn; if it had begun, that is logged.
 */
void recovery_add(struct file_session *file);

/* All recovered requests are known; calls mediator_recovered() when each is
 * settled, at once if there are none.  Again when one comes later. */
void recovery_start(struct mediator *mediator);

/* --- test_mode.c ------------------------------------------------------------------------ */

struct test_mode {
    bool active;
    bool ask;            /* a person, on the terminal or by the control socket; else release */
    uint32_t hold_until; /* VMs that must wait */
    uint32_t prefer_vm;  /* 0: none */
    struct mediator *mediator;
    bool holding;
    enum { TEST_MODE_QUIET, TEST_MODE_ASKS_SIMULTANEOUS, TEST_MODE_ASKS_WINNER } question;
    uv_poll_t terminal;
    bool terminal_open;
    char line[64];
    size_t line_bytes;
};

int test_mode_start(struct test_mode *test, struct mediator *mediator, struct vgpu_error *error);

/* At run time, by the control socket: a person is asked there (and on the terminal, when
 * there is one). */
void test_mode_on(struct test_mode *test, struct mediator *mediator, uint32_t hold_until);
void test_mode_off(struct test_mode *test);

/* EAGAIN: nothing is asked now; EINVAL: the winner does not wait. */
int test_mode_answer(struct test_mode *test, bool simultaneous, uint32_t winner,
                     struct vgpu_error *error);

/* The queue changed. */
void test_mode_update(struct test_mode *test);
void test_mode_stop(struct test_mode *test);

/* --- reload.c --------------------------------------------------------------------------- */

/* What a reload did, for who asked for it. */
struct reload_change {
    uint32_t vm_id;   /* 0: a pool's, or the mediator's */
    char pool;        /* '\0': the mediator's, where there is no vm_id */
    const char *what; /* "priority" */
    char before[64];  /* "": it is new */
    char after[64];   /* "": it is gone */
};

struct reload_report {
    struct reload_change *changes;           /* the first RELOAD_CHANGES_MAX; owned */
    size_t count;                            /* of all */
    const char *next_start[CONFIG_KEYS_MAX]; /* keys of [mediator] that changed and wait for that */
    size_t next_start_count;
};

#define RELOAD_CHANGES_MAX 1000u

/* At the start: pools and VMs of mediator->config. */
int reload_begin(struct mediator *mediator, struct vgpu_error *error);

/* Reads database and configuration again and applies pools and VMs, live.  -1:
 * nothing has changed.  *ret_report is for reload_report_free(). */
int reload_apply(struct mediator *mediator, struct reload_report *ret_report,
                 struct vgpu_error *error);
void reload_report_free(struct reload_report *report);

/* As reload_apply(), with the outcome in the log; as soon as that can be. */
void mediator_reload(struct mediator *mediator);

/* Gives all VMs, or one, the refusal that their state and pool ask for. */
void reload_judge(struct mediator *mediator);
void reload_judge_vm(struct vm *vm);

/* --- control.c ---------------------------------------------------------------------------- */

struct control_server;

/* Makes run_dir/control.sock and listens. */
int control_server_start(struct mediator *mediator, struct vgpu_error *error);
void control_server_stop(struct control_server *server);

/* Whose members may use it; (gid_t)-1: there is no such group. */
gid_t control_server_group(const struct control_server *server);

/* Nothing is left of VMs that were removed. */
void control_server_removed(struct control_server *server);

/* The file channel has done what was said before `token`. */
void control_server_synced(struct control_server *server, uint64_t token);

/* --- commands.c ----------------------------------------------------------------------------- */

struct control_failure {
    char code[32];
    char message[VGPU_ERROR_BYTES];
};

/* Runs one command.  Returns its result, or NULL with *failure.  With *ret_sync true
 * the result is to be told when the file channel has done what it was told. */
json_t *command_run(struct mediator *mediator, const char *command, const json_t *arguments,
                    bool *ret_sync, struct control_failure *failure);

/* --- status.c ------------------------------------------------------------------------------- */

json_t *status_hello(const struct mediator *mediator);

/* vm_id 0: VMs from the number `vms_from` on, as many as an answer has room for. */
json_t *status_all(struct mediator *mediator, uint32_t vm_id, uint32_t vms_from);
json_t *status_queue(const struct mediator *mediator);

/* Takes what its workers have done since the last look. */
void status_measure(struct vm *vm);

/* "active", "quarantined", "refused". */
const char *status_state(const struct vm *vm);
json_t *status_test_mode(const struct test_mode *test);

/* --- metrics.c ------------------------------------------------------------------------------ */

#define MEDIATOR_PRIORITIES 3u

/* All zero: nothing was counted. */
struct numbers {
    /* By pool and priority; NULL: nothing was counted there yet. */
    struct metrics_scope *groups[CONFIG_POOLS_MAX][MEDIATOR_PRIORITIES];
    struct metrics_scope others; /* all VMs that are not labelled, gone ones too */
    uint32_t labels;             /* VMs that are */
    struct metrics_server *server;
    struct exposition *exposition; /* NULL: nobody asks */
    uint64_t exposition_ns;        /* of the loop's time, for all of them */
};

/* A VM that is new is labelled when there is room; one that goes makes room. */
void metrics_add_vm(struct vm *vm);
void metrics_remove_vm(struct vm *vm);

/* Counts for the VM, its pool at its priority, and all that are not labelled together. */
void vm_count(struct vm *vm, enum metrics_counter counter, uint64_t number);
void vm_count_refusals(struct vm *vm, enum metrics_refusal refusal, uint64_t number);
void vm_count_fault(struct vm *vm, enum metrics_fault fault);

/* The same, with what it is refused for now. */
void vm_count_refused(struct vm *vm, uint64_t number);

/* The session has its grant; the grant is back. */
void session_time_wait(struct session *session, const struct sched_grant *grant);
void session_time_run(struct session *session);

/* In its grant the first operation began at `first_ns`; 0: none did.  Before the grant is back. */
void session_time_first(struct session *session, uint64_t first_ns);

/* The grant of one of its places is back. */
void place_time_return(const struct vm_place *place);

/* So many operations of the VM took about so long. */
void vm_time_operations(struct vm *vm, enum metrics_duration duration, uint64_t duration_us,
                        uint64_t count);

/* What it has told so far is another mediator's. */
void timing_begin(struct window_session *ws);

/* Adds what is new to its VM's statistics.  It has a worker. */
void timing_measure(struct window_session *ws);

void timing_free(struct timing *timing);

/* A device's share of busy time, in thousandths, since a look at least a second ago. */
uint64_t metrics_device_permille(struct mediator *mediator, unsigned device);

/* Sockets of which one cannot be had are missed, with a warning: work goes on without. */
void metrics_start(struct mediator *mediator);
void metrics_stop(struct mediator *mediator);

/* When nothing is counted any more. */
void metrics_free(struct mediator *mediator);

/* --- decisions.c ---------------------------------------------------------------------------- */

/* The decision log, as configured; one that cannot be had is missed, with a warning. */
void decisions_start(struct mediator *mediator);
void decisions_stop(struct mediator *mediator);

/* Makes the file that the session's worker writes, or finds the last worker's.  Returns its
 * path, NULL: it has none. */
const char *decisions_open_session(struct window_session *ws, char path[PATH_MAX + 64]);

/* The session is gone, and its file with it. */
void decisions_end_session(const struct window_session *ws);

/* So many sessions of the VM wait there now; it has the device; it is to give it back; it has. */
void decisions_wait(const struct vm_place *place);
void decisions_grant(const struct vm_place *place, const struct sched_grant *grant);
void decisions_revoke(const struct vm_place *place, enum trace_reason reason);
void decisions_return(const struct vm_place *place, uint64_t used_us, enum trace_reason reason);

/* A file request is accepted, and has run. */
void decisions_arrive(const struct vm *vm, uint64_t sequence);
void decisions_complete(const struct vm *vm, uint64_t sequence, uint64_t device_us, bool success);

/* --- exposition.c --------------------------------------------------------------------------- */

struct exposition;

/* Makes the text for those who ask mediator->numbers.server, a little in each turn of the
 * loop. */
void exposition_begin(struct mediator *mediator);
void exposition_cancel(struct exposition *exposition);

/* --- stats.c -------------------------------------------------------------------------------- */

/* Of one VM where vm_id is not 0, of one pool where `pool` is not 0. */
json_t *stats_all(struct mediator *mediator, uint32_t vm_id, char pool);

/* --- mediator.c -------------------------------------------------------------------------- */

struct mediator_options {
    bool cleanup;
    bool test_mode;
    uint32_t hold_until; /* 0: not given */
    uint32_t prefer_vm;  /* 0: not given */
    /* Reads the configuration as at the start, for a reload. */
    int (*load)(struct config *ret_config, const void *context, struct vgpu_error *error);
    const void *load_context;
};

struct mediator {
    uv_loop_t loop;
    const struct config *config;
    struct mediator_options options;
    struct sched *sched;
    struct grant_rules grant_rules;             /* as they are now, and so ... */
    struct quarantine_rules quarantine_rules;   /* ... are these ... */
    struct config_pool pools[CONFIG_POOLS_MAX]; /* ... and these */
    size_t pool_count;
    char devices[SCHED_DEVICES_MAX][CONFIG_DEVICE_BYTES];
    struct device_load loads[SCHED_DEVICES_MAX];
    struct sched_gate gates[SCHED_DEVICES_MAX]; /* before contexts */
    struct sched_gangs gangs;                   /* sessions with several devices before these */
    struct session *gathering;                  /* the one whose turn it is; NULL: nobody's */
    struct device *checks[SCHED_DEVICES_MAX];   /* of GPUs; NULL for what needs none */
    unsigned device_count;
    struct trace trace;                   /* decisions.c; all zeros: none */
    uint32_t last_vms[SCHED_DEVICES_MAX]; /* decisions.c: that had them last; 0: nobody */
    bool started;                         /* devices_start() is through */
    struct channel *channel;              /* NULL: the file channel is off */
    struct window_channel *windows;       /* NULL: the window channel is off */
    LIST_HEAD(, window) links;
    struct vm *vms; /* uthash */
    LIST_HEAD(, vm) removed;
    struct control_server *control;
    uint64_t started_ns;
    bool reload_pending; /* asked for before the recovery was through */
    uid_t worker_uid;
    gid_t worker_gid;
    char cgroup[PATH_MAX];  /* "": none */
    uv_prepare_t dispatch;  /* after all that one round of the loop brought */
    uv_signal_t signals[3]; /* SIGINT, SIGTERM, SIGHUP */
    uv_timer_t stop_timer;
    uv_timer_t recovery_timer;
    uv_timer_t sweep_timer; /* adoption.c */
    uv_timer_t quarantine_timer;
    uv_timer_t contexts_timer;
    uint64_t contexts_timer_ns; /* when it is to fire; 0: it does not run */
    struct file_session *recovering;
    uint64_t recovery_until_ns;
    bool files_recovered; /* all recovered file requests are settled */
    unsigned adopting;    /* workers whose grants must come back first */
    bool ready;           /* for the first time */
    unsigned running;     /* sessions in SESSION_RUNNING */
    bool stopping, channel_stopping, closed;
    int lock_fd;
    struct test_mode test;
    struct gpus gpus;
    struct numbers numbers;
};

/* Runs until SIGINT or SIGTERM.  Returns 0, or -1 when it could not start. */
int mediator_run(const struct config *config, const struct mediator_options *options,
                 struct vgpu_error *error);

/* The scheduler's number for a device that pools name; makes one for a new name.
 * -1: there are too many, or no backend can drive it. */
int mediator_device_index(struct mediator *mediator, const char *name, struct vgpu_error *error);

/* How a VM's channels know it. */
struct file_channel_vm mediator_channel_vm(const struct mediator *mediator,
                                           const struct config_vm *settings);

/* One by one where the order is to be seen, else as configured. */
void mediator_set_grants(struct mediator *mediator);

/* The pool of this letter, NULL. */
const struct config_pool *mediator_find_pool(const struct mediator *mediator, char id);

/* Nothing of an earlier mediator's holds a device: requests may run. */
bool mediator_has_recovered(const struct mediator *mediator);

/* One of the two recoveries (files, windows) is through. */
void mediator_recovered(struct mediator *mediator);

/* What the scheduler says now, for all devices. */
void mediator_dispatch(struct mediator *mediator);

/* A session came back to IDLE. */
void mediator_session_idle(struct mediator *mediator);

#endif /* VGPU_MEDIATOR_H */

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
 *   main.c       options, signals
 *   config.c     the configuration file and its defaults
 *   mediator.c   requests in, answers out, start and stop
 *   session.c    one VM at work: its place in the queue, its worker
 *   recovery.c   what workers of an earlier mediator still do or have done
 *   test_mode.c  hold requests until several VMs wait, then let a person decide
 *
 * One thread, one libuv loop; the file channel has its own thread behind its
 * queues.
 */
#ifndef VGPU_MEDIATOR_H
#define VGPU_MEDIATOR_H

#include "base/base.h"
#include "channel/channel.h"
#include "exec/exec.h"
#include "sched/sched.h"
#include "vgpu/regs.h"

#include <limits.h>
#include <uthash.h>

#define CONFIG_POOLS_MAX 26
#define CONFIG_DEVICE_BYTES 32
#define CONFIG_NAME_BYTES 64

/* --- config.c -------------------------------------------------------------------- */

struct config_pool {
    char id; /* 'A'..'Z' */
    char name[CONFIG_NAME_BYTES];
    char device[CONFIG_DEVICE_BYTES]; /* "cpu" or "cpu:<n>": pools that name one share it */
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
};

struct config {
    char share[PATH_MAX];
    char state_dir[PATH_MAX];
    char log[PATH_MAX];           /* "": standard error */
    char worker[PATH_MAX];        /* path of vgpu-worker */
    char execution_log[PATH_MAX]; /* "": none */
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
    struct config_pool pools[CONFIG_POOLS_MAX];
    size_t pool_count;
    struct config_vm *vms; /* owned */
    size_t vm_count;
};

/* Defaults: no VMs, pools A and B on one `cpu` device once completed. */
void config_init(struct config *config);
void config_free(struct config *config);

/* Reads `path` over what is there.  The error names file and line, what was
 * expected and what came. */
int config_read(struct config *config, const char *path, struct vgpu_error *error);

/* Sets one key of [mediator], as the command line does. */
int config_set(struct config *config, const char *key, const char *value, struct vgpu_error *error);

/* Fills in what depends on other keys and checks what spans several. */
int config_complete(struct config *config, struct vgpu_error *error);

/* --- session.c --------------------------------------------------------------------- */

struct mediator;

enum session_state {
    SESSION_IDLE,    /* no request */
    SESSION_WAITING, /* in the queue */
    SESSION_RUNNING, /* holds its device's grant */
};

/* One VM at work.  Lives as long as the mediator. */
struct session {
    struct mediator *mediator;
    uint32_t vm_id;
    bool registered;
    enum session_state state;
    struct sched_vm *place;
    struct channel_request request; /* WAITING, RUNNING */
    struct exec_worker *worker;     /* NULL: none */
    bool limit_exceeded;            /* the worker was killed for its time */
    uint64_t spawn_until_ns;        /* an old worker still ends: try so long */
    unsigned tries_left;            /* workers that may be started for this request */
    uint64_t claim_differences;     /* requests whose claim was not the registry's */
    uv_timer_t timer;               /* operation limit, idle worker, spawn again */
    struct session *next_recovering;
    UT_hash_handle hh; /* by vm_id */
};

struct session *session_new(struct mediator *mediator, uint32_t vm_id, char pool, unsigned priority,
                            bool registered, struct vgpu_error *error);

/* Queues the request: the scheduler decides when it runs. */
void session_queue(struct session *session, const struct channel_request *request);

/* The grant came: runs the request. */
void session_run(struct session *session);

/* Answers the waiting or running request and leaves the queue or the device. */
void session_answer(struct session *session, const struct protocol_response *response,
                    uint64_t device_us);

/* As session_answer(), for one that ran longer than it may. */
void session_answer_limit(struct session *session);

/* Where this VM's workers keep their record. */
void session_record_path(const struct session *session, char *path, size_t bytes);

/* Lets go of the worker and closes the timer. */
void session_close(struct session *session);

/* --- recovery.c ----------------------------------------------------------------------- */

/*
 * A request that an earlier mediator accepted may still run, may have run, or
 * may have been cut off.  It is queued, and:
 *   - while a living worker holds its record, nothing is dispatched;
 *   - a result in its record becomes the answer, nothing runs again;
 *   - otherwise it runs in its turn; if it had begun, that is logged.
 */
void recovery_add(struct session *session);

/* All recovered requests are known; calls mediator_recovered() when each is
 * settled, at once if there are none.  Again when one comes later. */
void recovery_start(struct mediator *mediator);

/* --- test_mode.c ------------------------------------------------------------------------ */

struct test_mode {
    bool active;
    bool ask;            /* on the terminal; else release by itself */
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

/* The queue changed. */
void test_mode_update(struct test_mode *test);
void test_mode_stop(struct test_mode *test);

/* --- mediator.c -------------------------------------------------------------------------- */

struct mediator_options {
    bool cleanup;
    bool test_mode;
    uint32_t hold_until; /* 0: not given */
    uint32_t prefer_vm;  /* 0: not given */
};

struct mediator {
    uv_loop_t loop;
    const struct config *config;
    struct mediator_options options;
    struct sched *sched;
    char devices[SCHED_DEVICES_MAX][CONFIG_DEVICE_BYTES];
    unsigned device_count;
    struct channel *channel;
    struct session *sessions; /* uthash */
    uv_prepare_t dispatch;    /* after all that one round of the loop brought */
    uv_signal_t signals[3];   /* SIGINT, SIGTERM, SIGHUP */
    uv_timer_t stop_timer;
    uv_timer_t recovery_timer;
    struct session *recovering;
    uint64_t recovery_until_ns;
    bool recovered;   /* all recovered requests are settled */
    bool ready;       /* for the first time */
    unsigned running; /* sessions in SESSION_RUNNING */
    bool stopping, channel_stopping, closed;
    int lock_fd;
    struct test_mode test;
};

/* Runs until SIGINT or SIGTERM.  Returns 0, or -1 when it could not start. */
int mediator_run(const struct config *config, const struct mediator_options *options,
                 struct vgpu_error *error);

/* Recovery is through: requests may run. */
void mediator_recovered(struct mediator *mediator);

/* A session came back to IDLE. */
void mediator_session_idle(struct mediator *mediator);

#endif /* VGPU_MEDIATOR_H */

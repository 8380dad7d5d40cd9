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
    const char *program;       /* path of vgpu-worker */
    const char *backend;       /* "cpu" */
    uint32_t vm_id;            /* for its name in ps and its log */
    const char *record_path;   /* made when missing, mode 0600 */
    const char *execution_log; /* NULL, or a file that gets one line an execution */
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

/* --- the worker's own side (commands.c, worker_main.c) ---------------------- */

/* A backend: how a worker computes.  See cpu.c for the reference. */
struct exec_backend {
    const char *name;
    int (*open)(struct vgpu_error *error);
    void (*close)(void);
    /* Each fills *response; computing wrong or failing is an error answer. */
    void (*vector_add)(const float *a, const float *b, float *sum, size_t count);
    void (*matrix_mul)(const float *a, const float *b, float *product, size_t n);
    void (*spin)(uint32_t spin_ms);
    void (*describe)(char *text, size_t bytes); /* GPU_INFO */
};

extern const struct exec_backend exec_backend_cpu;

/* Runs one text command on the backend: never fails, an error is an answer. */
void exec_run_command(const struct exec_backend *backend, const char *command,
                      struct protocol_response *ret_response);

#endif /* VGPU_EXEC_H */

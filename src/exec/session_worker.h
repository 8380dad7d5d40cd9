/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's side of a window session (session_worker.c, sandbox.c).
 */
#ifndef VGPU_EXEC_SESSION_WORKER_H
#define VGPU_EXEC_SESSION_WORKER_H

#include "exec/session_private.h"

struct session_arguments {
    uint32_t vm_id;
    uint32_t slot;
    uint64_t slot_offset;
    uint64_t slot_bytes;
    uint32_t share; /* of its VM's account */
    uint32_t operation_limit_ms;
    uint32_t spin_us;
    uint32_t idle_ms;
    uint32_t uid, gid; /* UINT32_MAX: stay who we are */
    bool successor;
    bool has_log;
    bool has_cgroup;
    bool has_trace;
    const struct exec_backend *backend;
    struct exec_backend_config backend_config;
};

/* How many devices are named, one space apart; 1 where none is. */
unsigned session_count_devices(const char *names);

/* Runs the session; the process ends when its owner is gone.  Returns the exit status
 * when it cannot start. */
int session_serve(const struct session_arguments *arguments);

/* --- sandbox.c --------------------------------------------------------------------- */

/* Joins the cgroup whose cgroup.procs is open as `fd`, and closes it. */
void sandbox_join_cgroup(int fd);

/* Becomes `uid`, `gid` (UINT32_MAX: stays who it is), without any capability.  Before
 * there are other threads, NVIDIA's among them: they would keep theirs. */
int sandbox_drop_user(uint32_t uid, uint32_t gid, struct vgpu_error *error);

/* No network of its own to reach; where that is not allowed, none by the list. */
void sandbox_leave_network(void);

/* From here on only the calls that a worker makes are allowed; others fail with
 * EPERM.  `driver`: also those of NVIDIA's driver library, which opens the GPU's nodes and
 * starts threads when it makes a context.  Nothing in builds with a sanitizer, which makes
 * calls of its own. */
int sandbox_enter(bool driver, struct vgpu_error *error);

#endif /* VGPU_EXEC_SESSION_WORKER_H */

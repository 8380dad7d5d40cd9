/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sched/ - who may run next, on which device, and how much.
 *
 * Pure: no I/O, no threads, no clock (time is an argument, in nanoseconds of
 * any monotonic clock), no knowledge of what an operation does.  The mediator
 * feeds it arrivals and returns; it answers with grants.  The simulator and
 * the tests drive the very same code.
 *
 *   sched_ready()  ──▶ ┌───────────────────────────────────────────┐
 *                      │ device 0                                  │
 *                      │   queue (one, or one a pool)              │
 *                      │     high   vm7 ─ vm3                      │ ──▶ sched_next():
 *                      │     medium vm1                            │     grant vm7
 *                      │     low    vm9 ─ vm2 ─ vm4                │
 *                      └───────────────────────────────────────────┘
 *   sched_returned() ◀── the grant came back, its device work drained
 *
 * Rules:
 * - A VM is idle, waiting, or holds a grant.
 * - A VM is in its priority's list from the moment when it is seen to become
 *   ready; work that arrives while it waits keeps its place.
 * - Higher priorities go first; first come, first served inside one.
 * - At most one VM a device holds a grant.  A VM whose grant came back with
 *   work left joins the tail of its list.
 * - Pools that share a device share one queue (SCHED_POOLS_SHARED: the pool is
 *   a label) or have one each, served in turn (SCHED_POOLS_INDEPENDENT: round
 *   robin between the pools that have work; one that gets work joins the round
 *   at its end).
 * - Pools on different devices never wait for each other.
 *
 * Cost: sched_ready(), sched_next() and sched_returned() take constant time,
 * whatever the number of VMs and the depth of their queues.
 *
 * Not thread-safe: one thread owns a struct sched.
 */
#ifndef VGPU_SCHED_H
#define VGPU_SCHED_H

#include "base/base.h"

#define SCHED_NEVER_NS UINT64_MAX
#define SCHED_DEVICES_MAX 64u

struct sched;
struct sched_vm; /* a VM's place; owned by the sched, valid until sched_remove_vm() */

enum sched_pools_mode { SCHED_POOLS_SHARED, SCHED_POOLS_INDEPENDENT };

enum sched_policy {
    SCHED_POLICY_STRICT, /* priority, then first come, first served */
    SCHED_POLICY_FIFO,   /* first come, first served; for comparison */
};

struct sched_config {
    enum sched_pools_mode pools_mode;
    enum sched_policy policy;
    uint32_t grant_max_ops;      /* operations a grant allows, >= 1 */
    uint32_t grant_max_inflight; /* of these at once on the device, >= 1 */
    uint64_t grant_device_us;    /* device time a grant allows, >= 1 */
};

/* What a grant allows its holder. */
struct sched_grant {
    uint32_t max_ops;
    uint32_t max_inflight;
    uint64_t device_us;
};

enum sched_action_type { SCHED_ACTION_NONE, SCHED_ACTION_GRANT, SCHED_ACTION_REVOKE };

struct sched_action {
    enum sched_action_type type;
    struct sched_vm *vm; /* NULL for NONE */
    struct sched_grant grant;
};

/* Never fails: memory exhaustion ends the process (as everywhere in sched/). */
struct sched *sched_new(const struct sched_config *config);
void sched_free(struct sched *sched);

/* Binds a pool ('A'..'Z') to a device (0..SCHED_DEVICES_MAX-1).  Several
 * pools may name one device.  Returns 0, or -1 with EINVAL or EEXIST. */
int sched_add_pool(struct sched *sched, char pool, unsigned device, struct vgpu_error *error);

/* Adds an idle VM to a pool that exists.  `context` is handed back by
 * sched_vm_context().  Returns NULL when pool or priority do not exist.  That
 * vm_id is not another VM's is the caller's to know. */
struct sched_vm *sched_add_vm(struct sched *sched, uint32_t vm_id, char pool, unsigned priority,
                              void *context, struct vgpu_error *error);

/* Takes a VM out.  It must not hold a grant (asserted). */
void sched_remove_vm(struct sched *sched, struct sched_vm *vm);

/*
 * Changes pool and priority, live.  A waiting VM moves at once to the place
 * that its arrival time gives it in the new list (this may walk the list); a
 * running one keeps its device until its grant returns and then joins the new
 * list's tail.  sched_vm_pool() and sched_vm_priority() tell the new values at
 * once.  Returns 0, or -1 with EINVAL and nothing changed.
 */
int sched_update_vm(struct sched *sched, struct sched_vm *vm, char pool, unsigned priority,
                    struct vgpu_error *error);

uint32_t sched_vm_id(const struct sched_vm *vm);
char sched_vm_pool(const struct sched_vm *vm);
unsigned sched_vm_priority(const struct sched_vm *vm);
void *sched_vm_context(const struct sched_vm *vm);

/*
 * The VM has `depth` operations to run (0: it has none any more and leaves the
 * queue).  A VM that is already waiting keeps its place.  Nothing happens
 * while the VM holds a grant: how much is left then is what sched_returned()
 * says.
 */
void sched_ready(struct sched *sched, struct sched_vm *vm, uint32_t depth, uint64_t now_ns);

/*
 * The VM's grant came back and its device work has drained.  `used_us` is
 * device time; `depth_left` > 0 puts it at its list's tail.
 */
void sched_returned(struct sched *sched, struct sched_vm *vm, uint64_t used_us, uint32_t depth_left,
                    uint64_t now_ns);

/*
 * What the device should do now: grant to the VM returned (which then holds
 * the device until sched_returned()), or nothing.  Fills *ret_action and
 * returns true when there is something to do; it is untouched otherwise.
 * SCHED_ACTION_REVOKE is kept for policies to come: none revokes yet.
 */
bool sched_next(struct sched *sched, unsigned device, uint64_t now_ns,
                struct sched_action *ret_action);

/* When the mediator must look at the device again by itself: the end of the
 * current grant's device time, or SCHED_NEVER_NS when none is out. */
uint64_t sched_deadline_ns(const struct sched *sched, unsigned device);

/*
 * Test mode.  While held, sched_next() grants nothing.  The preferred VM goes
 * before the others of its priority (before all under SCHED_POLICY_FIFO, where
 * all are equal), and with independent pools the next turn is its pool's.  The
 * preference is for the VMs waiting now: it ends when the VM is served or has no
 * work any more, and preferring a VM that does not wait prefers nobody.  vm_id 0
 * clears the preference; a new one replaces it.  (Walks the VMs.)
 */
void sched_hold(struct sched *sched, bool held);
void sched_prefer(struct sched *sched, uint32_t vm_id);

/* Waiting VMs of a pool (0: of all pools), not counting grant holders. */
uint32_t sched_waiting(const struct sched *sched, char pool);

/* Device time charged to the VM since it was added. */
uint64_t sched_vm_used_us(const struct sched_vm *vm);

#endif /* VGPU_SCHED_H */

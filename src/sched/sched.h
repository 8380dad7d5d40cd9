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
 *                      │   queue (one, or one a pool or policy)    │
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
 * - Who goes first is the pool's policy (enum sched_policy), which can change at any
 *   time.  By default higher priorities go first; first come, first served inside one.
 * - At most one VM a device holds a grant.  A VM whose grant came back with
 *   work left joins the tail of its list.
 * - A VM that is alone on its device gets a long grant (if they are configured):
 *   it lasts, idle or not, until another VM waits there; then it is revoked, once.
 * - Pools that share a device share one queue (SCHED_POOLS_SHARED: the pool is
 *   a label) or have one each, served in turn (SCHED_POOLS_INDEPENDENT: round
 *   robin between the pools that have work; one that gets work joins the round
 *   at its end).  Pools of different policies cannot share a queue: those of equal
 *   policies do, and these queues are served in turn.
 * - Pools on different devices never wait for each other.
 * - A VM that works on several devices has a place for each (sched_pin_vm()): places
 *   wait, are granted and return as if they were VMs of their own.
 *
 * - Where a grant needs what only so many may have, a gate stands before the queue.
 *
 * Cost: sched_ready(), sched_next() and sched_returned() take constant time,
 * whatever the number of VMs and the depth of their queues; under SCHED_POLICY_WFQ
 * time in the logarithm of the VMs that wait.
 *
 * Not thread-safe: one thread owns a struct sched.
 */
#ifndef VGPU_SCHED_H
#define VGPU_SCHED_H

#include "base/base.h"

#include <sys/queue.h>

#define SCHED_NEVER_NS UINT64_MAX
#define SCHED_DEVICES_MAX 64u
#define SCHED_DEVICE_OF_POOL UINT32_MAX

struct sched;
struct sched_vm; /* a VM's place; owned by the sched, valid until sched_remove_vm() */

enum sched_pools_mode { SCHED_POOLS_SHARED, SCHED_POOLS_INDEPENDENT };

/* A VM's priority: the class that it is in. */
enum sched_class { SCHED_CLASS_LOW, SCHED_CLASS_MEDIUM, SCHED_CLASS_HIGH, SCHED_CLASSES };

enum sched_policy {
    /* Priority, then first come, first served. */
    SCHED_POLICY_STRICT,
    /* First come, first served, without priorities; for comparison. */
    SCHED_POLICY_FIFO,
    /* Weighted fair queueing of device time: a VM that has work all the time gets
     * weight * class_weight[priority] parts of it. */
    SCHED_POLICY_WFQ,
    /* Each VM the same slice of time (grant_device_us, whatever the number of operations),
     * in turn, without priorities; for comparison: what others call equal share. */
    SCHED_POLICY_ROUND_ROBIN,
    SCHED_POLICIES,
};

#define SCHED_AGING_MAX_MS 86400000u
#define SCHED_CLASS_WEIGHT_MAX 1000u
#define SCHED_WEIGHT_MAX 1000u
#define SCHED_WEIGHT_DEFAULT 100u

/* How a pool's queue is served.  {.type = ...} alone is complete: zeros are the defaults. */
struct sched_policy_config {
    enum sched_policy type;
    /*
     * STRICT: having waited so long raises a VM by one class, 0 (never) to
     * SCHED_AGING_MAX_MS.  The longest wait is then bounded: a VM of priority p waits at
     * most (high - p) * aging_ms, after which it is as high as one can be and only those
     * go before it that came earlier, and then one stretch of each of the N VMs that wait
     * in its queue: (high - p) * aging_ms + N * (longest grant + switch).  Where Q queues
     * take turns on its device, N * Q instead of N.  (docs/scheduling.md derives it.)
     */
    uint32_t aging_ms;
    /* WFQ: the factor of low, medium, high, 1 to SCHED_CLASS_WEIGHT_MAX; all 0: 1, 4, 16. */
    uint32_t class_weight[SCHED_CLASSES];
    /* WFQ: grants grow and shrink with what their VM needs; see grant_min_us. */
    bool demand;
};

struct sched_config {
    enum sched_pools_mode pools_mode;
    enum sched_policy policy;    /* of pools that are added; sched_set_policy() changes it */
    uint32_t grant_max_ops;      /* operations a grant allows, >= 1 */
    uint32_t grant_max_inflight; /* of these at once on the device, >= 1 */
    uint64_t grant_device_us;    /* device time a grant allows, >= 1 */
    bool long_grants;            /* a VM that is alone on its device keeps it until revoked */
    /*
     * The shortest grant of a pool with `demand`; 0: an eighth of grant_device_us.  While
     * others wait for the device, a grant there is
     *     min(want, 4 * grant_device_us / others), from grant_min_us to grant_device_us,
     * where `want` starts at grant_min_us and learns when a grant comes back: without work
     * left it becomes (want + 2 * used) / 2, so that it tends to twice the length of what
     * the VM has to do at a time; with work left, of a grant that was used (3/4 of want), it
     * doubles.  The second term keeps a round of all who wait at about four full grants.
     */
    uint64_t grant_min_us;
    /*
     * Protection of higher priorities.  While a VM of a higher class waits, runs or did so
     * on the device in the last protect_ms (0: never), a grant there is never long, and has
     * at most protect_us device time and protect_inflight operations at once (0: what grants
     * have anyway).  So who comes waits for the rest of one such grant and for what is in
     * flight at its end; the first one after protect_ms without such work for the rest of an
     * ordinary or long grant and its operations in flight.  Where queues take turns on the
     * device, the higher class's grants have protect_us, too, while a lower one waits, so that
     * turns stay even.  Policies without priorities protect nobody.
     */
    uint64_t protect_us;
    uint32_t protect_inflight;
    uint32_t protect_ms;
    /*
     * What a change from one VM to another costs on a device (0: unknown), and the share of
     * the time that changes may take, 1 to 99 percent (0: any).  A VM whose grant came back
     * with work left goes on, before the others of its class, until its device time since
     * the change is switch_us * (100 / percent - 1); never beyond grant_device_us since the
     * change, nor while a higher class waits on the device.
     */
    uint64_t switch_us;
    uint32_t switch_share_percent;
};

/* device_us of a grant that lasts until it is revoked. */
#define SCHED_GRANT_LONG_US UINT64_MAX

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

/*
 * Changes a pool's device (which is that of its VMs that are not pinned) and mode, live; pools of
 * both modes may share a device: those that share its queue then take one turn together.  Its
 * waiting VMs move at once to the places that their arrival gives them there (walks the VMs); one
 * that runs keeps its device until its grant returns.
 */
int sched_update_pool(struct sched *sched, char pool, unsigned device, enum sched_pools_mode mode,
                      struct vgpu_error *error);

/*
 * Changes how a pool is served, live.  Its waiting VMs move at once to the queue of pools that
 * are served so, each where its arrival puts it (walks the VMs); who runs goes on.  Under
 * SCHED_POLICY_WFQ a VM begins without credit or debt, and keeps what it has between queues that
 * are both served so.  Returns 0, or -1 with EINVAL and nothing changed.
 */
int sched_set_policy(struct sched *sched, char pool, const struct sched_policy_config *policy,
                     struct vgpu_error *error);

/* A pool's policy, with its defaults filled in; that of sched_new() when there is no such pool. */
struct sched_policy_config sched_pool_policy(const struct sched *sched, char pool);

/* "strict", "fifo", "wfq" or "round-robin". */
const char *sched_policy_name(enum sched_policy type);

/* Takes a pool out.  EBUSY while VMs are in it. */
int sched_remove_pool(struct sched *sched, char pool, struct vgpu_error *error);

/* What grants allow from the next one on (all of `config` but its mode and policy, which are not
 * looked at). */
void sched_set_grants(struct sched *sched, const struct sched_config *config);

/* Adds an idle VM to a pool that exists.  `context` is handed back by
 * sched_vm_context().  Returns NULL when pool or priority do not exist.  A vm_id can
 * be added again: another place of the same VM, which is to be pinned elsewhere. */
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

/*
 * Gives this place a device of its own (0..SCHED_DEVICES_MAX-1), whatever its pool's is, or
 * takes it back (SCHED_DEVICE_OF_POOL).  As with sched_update_vm() a waiting one moves at
 * once to where its arrival puts it, a running one keeps its device until its grant
 * returns.  Returns 0, or -1 with EINVAL and nothing changed.
 */
int sched_pin_vm(struct sched *sched, struct sched_vm *vm, unsigned device,
                 struct vgpu_error *error);

/* The VM's part under SCHED_POLICY_WFQ, live: 1 to SCHED_WEIGHT_MAX (more is taken as that); 0:
 * SCHED_WEIGHT_DEFAULT.  It counts from the grant that runs or comes next. */
void sched_set_weight(struct sched *sched, struct sched_vm *vm, uint32_t weight);
uint32_t sched_vm_weight(const struct sched_vm *vm);

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
 * device time (0 when it is not known, which costs nothing); `depth_left` > 0 puts it at its
 * list's tail.
 */
void sched_returned(struct sched *sched, struct sched_vm *vm, uint64_t used_us, uint32_t depth_left,
                    uint64_t now_ns);

/*
 * What the device should do now: GRANT to the VM returned (which then holds the
 * device until sched_returned()), REVOKE the long grant of the VM returned (told
 * once; sched_returned() is to follow), or nothing.  A long grant is revoked when
 * another VM waits for the device, when the scheduler is held, and when its VM
 * belongs on another device now.  Fills *ret_action and returns true when
 * there is something to do; it is untouched otherwise.
 */
bool sched_next(struct sched *sched, unsigned device, uint64_t now_ns,
                struct sched_action *ret_action);

/* When the mediator must look at the device again by itself: the end of the
 * current grant's device time, the moment in which a long grant was revoked, or
 * SCHED_NEVER_NS when none is out or nobody wants it back. */
uint64_t sched_deadline_ns(const struct sched *sched, unsigned device);

/*
 * Test mode.  While held, sched_next() grants nothing.  The preferred VM goes
 * before the others of its priority (before all where the policy knows no order
 * of priorities), and with independent pools the next turn is its pool's.  The
 * preference is for the VMs waiting now: it ends when the VM is served or has no
 * work any more, and preferring a VM that does not wait prefers nobody.  vm_id 0
 * clears the preference; a new one replaces it.  Of a VM with several places each is
 * preferred on its own device.  (Walks the VMs.)
 */
void sched_hold(struct sched *sched, bool held);
void sched_prefer(struct sched *sched, uint32_t vm_id);

/* The VMs that wait for a device, in the order in which they would be served if
 * nothing more came and each took one turn.  Fills at most `room`, returns how many.
 * (Walks them, but for
 * `room` 1.)  What depends on time is as it was in the last call that told the time. */
size_t sched_list_waiting(const struct sched *sched, unsigned device, struct sched_vm **vms,
                          size_t room);

/* Who holds the device's grant; NULL when nobody does. */
struct sched_vm *sched_running(const struct sched *sched, unsigned device);

/* How often a device was granted to another VM than the one before. */
uint64_t sched_switches(const struct sched *sched, unsigned device);

/* Waiting VMs of a pool (0: of all pools), not counting grant holders. */
uint32_t sched_waiting(const struct sched *sched, char pool);

/* Device time charged to the VM since it was added. */
uint64_t sched_vm_used_us(const struct sched_vm *vm);

/* --- gate.c: what only so many may have at a time --------------------------------------- */

/*
 * A gate stands before a device's queue where a grant needs a thing that is scarce: only
 * `cap` may hold it at a time, and of these only `owner_cap` may be one owner's.  It knows
 * seats and nothing of what they are for.  A seat belongs to one gate at a time, and must be
 * all zeros at first; its owner is set while its state is NONE, belongs to the same gate, and
 * lives as long as it has seats.
 */
enum sched_seat_state {
    SCHED_SEAT_NONE,     /* wants none, or has passed and has no grant yet */
    SCHED_SEAT_WAITING,  /* stands in the gate's queue, or is kept back from it */
    SCHED_SEAT_ADMITTED, /* has stood there; one is kept for it */
    SCHED_SEAT_HELD,
};

struct sched_gate_owner;

struct sched_seat {
    TAILQ_ENTRY(sched_seat) link;
    struct sched_gate_owner *owner; /* NULL: of nobody, whom only the cap bounds */
    enum sched_seat_state state;
    bool kept_back; /* WAITING: its owner has as many as it may have */
    bool reserves;
    unsigned priority;
    uint64_t arrival;
};

TAILQ_HEAD(sched_seats, sched_seat);

/* Whose seats are counted together. */
struct sched_gate_owner {
    uint32_t held, admitted;
    uint32_t standing; /* in the gate's queue */
    uint32_t kept_back_count;
    struct sched_seats kept_back; /* in the order in which they will stand there */
};

struct sched_gate {
    uint32_t cap;       /* 0: none; the caller's to change */
    uint32_t owner_cap; /* the same; sched_gate_let_in() is to follow for each owner */
    uint32_t held, admitted, waiting_count;
    uint32_t kept_back_count; /* of all owners; not in waiting_count */
    uint64_t last_arrival;
    struct sched_seats waiting; /* in the order in which they are admitted */
    struct sched_seats holders;
    struct sched_seat *reserved; /* NULL: none */
};

void sched_gate_init(struct sched_gate *gate);
void sched_gate_owner_init(struct sched_gate_owner *owner);

/* True: it may join the device's queue.  False: it is WAITING now, for sched_gate_admit().
 * Not for one that waits or is admitted already. */
bool sched_gate_enter(struct sched_gate *gate, struct sched_seat *seat, unsigned priority);

/* The next that may join the device's queue, which is ADMITTED then; NULL: there is none. */
struct sched_seat *sched_gate_admit(struct sched_gate *gate);

/* Would sched_gate_take() be true?  Not for one that waits. */
bool sched_gate_may_take(const struct sched_gate *gate, const struct sched_seat *seat);

/* Its grant has come.  True: it is HELD.  False: another one was quicker, and it is WAITING
 * where it would stand by its arrival. */
bool sched_gate_take(struct sched_gate *gate, struct sched_seat *seat);

/* It has what the gate counts already, whatever the caps. */
void sched_gate_hold(struct sched_gate *gate, struct sched_seat *seat);

/* It does not want one any more; one that is HELD stays so. */
void sched_gate_leave(struct sched_gate *gate, struct sched_seat *seat);

/* HELD no more. */
void sched_gate_release(struct sched_gate *gate, struct sched_seat *seat);

/* Live, also while it waits. */
void sched_gate_set_priority(struct sched_gate *gate, struct sched_seat *seat, unsigned priority);

/* Has its owner as many as it may have, this one not counted? */
bool sched_gate_owner_is_full(const struct sched_gate *gate, const struct sched_seat *seat);

/* Those that were kept back stand in the queue, as far as their owner may have more. */
void sched_gate_let_in(struct sched_gate *gate, struct sched_gate_owner *owner);

/*
 * Keeps a seat for one that needs more than this gate's: it waits before all others of its
 * priority, and once it is ADMITTED nobody of its priority or a lower one takes what is kept for
 * it, however long it takes to come.  One a gate (asserted).  WAITING follows, or it is ADMITTED
 * or HELD already.  Ends by itself when it is HELD or leaves; sched_gate_unreserve() makes it an
 * ordinary one that stands where it would stand by its arrival.
 */
void sched_gate_reserve(struct sched_gate *gate, struct sched_seat *seat, unsigned priority);
void sched_gate_unreserve(struct sched_gate *gate, struct sched_seat *seat);

/* --- gangs.c: whose turn it is to reserve ------------------------------------------------ */

/*
 * A gang needs seats of several gates at the same moment.  Where others come and go at each of
 * them that moment may never come, so one gang at a time reserves: the first of the highest
 * priority of those that stand in line here.  A turn ends when it has what it needs or leaves;
 * when one of a higher priority is there that has had no turn in this round; or after
 * SCHED_GANG_TURN_NS without progress, as what it waits for may never be given up.  When all
 * have had theirs nobody reserves for as long as a turn, and then the next round begins.
 *
 *   round 1                     pause   round 2
 *   ├─ high ─┼─ low 1 ─┼─ low 2 ─┼───────┼─ high ─┼─ ...
 */
#define SCHED_GANG_TURN_NS (10 * NS_PER_S)

/* All zeros at first. */
struct sched_gang {
    TAILQ_ENTRY(sched_gang) link;
    bool able; /* it would reserve now if it were its turn; the caller's to change */
    unsigned priority;
    uint64_t number;      /* 0: it does not stand in line; counts up from its first to its last */
    uint64_t tried_round; /* in which it had its turn last */
};

struct sched_gangs {
    TAILQ_HEAD(, sched_gang) line; /* in the order of their arrival */
    struct sched_gang *turn;       /* whose it is; NULL: nobody's */
    uint64_t last_number;
    uint64_t round, round_last_number; /* the round is for those up to this one */
    uint64_t progress_ns;              /* when the turn began, or brought something last */
    uint64_t pause_ends_ns;
};

void sched_gangs_init(struct sched_gangs *gangs);

/* At the end of the line; one that stands there keeps its place. */
void sched_gangs_join(struct sched_gangs *gangs, struct sched_gang *gang, unsigned priority);
void sched_gangs_leave(struct sched_gangs *gangs, struct sched_gang *gang);

/* Something was given to it; counts where it is its turn. */
void sched_gangs_progress(struct sched_gangs *gangs, const struct sched_gang *gang,
                          uint64_t now_ns);

/* Whose turn it is now; NULL: nobody's.  (Walks the line.) */
struct sched_gang *sched_gangs_turn(struct sched_gangs *gangs, uint64_t now_ns);

/* When it may be another's by itself; SCHED_NEVER_NS, or a time that has gone by: it may not. */
uint64_t sched_gangs_deadline_ns(const struct sched_gangs *gangs);

#endif /* VGPU_SCHED_H */

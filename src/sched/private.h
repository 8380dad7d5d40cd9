/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sched/private.h - what the files of this room share: sched.c (VMs, pools), grant.c
 * (what a grant allows), queue.c (who stands where, whose turn it is) and the policies
 * (policy_*.c: the order inside a queue).
 */
#ifndef VGPU_SCHED_PRIVATE_H
#define VGPU_SCHED_PRIVATE_H

#include "sched/sched.h"

#include <sys/queue.h>

#define POOLS_MAX 26u
#define NEVER_YET_NS UINT64_MAX

TAILQ_HEAD(vm_list, sched_vm);
TAILQ_HEAD(queue_list, sched_queue);

enum vm_state { VM_IDLE, VM_WAITING, VM_RUNNING };

struct sched_vm {
    /* What sched_ready() and sched_next() touch stands together. */
    TAILQ_ENTRY(sched_vm) place; /* in a list of its queue, while waiting */
    uint64_t arrival;            /* when it joined, as a number; unique */
    uint64_t waiting_since_ns;   /* the same as a time; never less than an earlier one's */
    struct sched_pool *pool;
    struct sched_queue *queue;   /* where it waits when it does */
    struct sched_device *device; /* while running: who granted */
    unsigned pinned;             /* its device, or SCHED_DEVICE_OF_POOL */
    enum vm_state state;
    uint8_t priority;
    uint32_t vm_id;
    uint64_t used_us;
    void *context;
    /* Weighted fair queueing: policy_wfq.c. */
    uint64_t start, finish; /* tags */
    uint64_t unpaid;        /* what division left over of its last charge */
    uint64_t average_us;    /* what it uses of a grant */
    uint64_t want_us;       /* what it would use of one: grant.c */
    uint32_t weight;
    uint32_t heap_index;          /* while waiting */
    TAILQ_ENTRY(sched_vm) member; /* of sched->vms */
};

/* An entry holds its key: what is compared lies together. */
struct heap_entry {
    uint64_t start, arrival;
    uint8_t priority;
    struct sched_vm *vm;
};

/* Waiting VMs whose pools are served alike. */
struct sched_queue {
    const struct policy_ops *ops;
    struct vm_list lists[SCHED_CLASSES]; /* each in the order of arrival */
    uint32_t count;
    struct sched_device *device;
    TAILQ_ENTRY(sched_queue) turn; /* in device->turns while count > 0 */
    uint64_t aging_ns;
    /* Weighted fair queueing. */
    struct heap_entry *heap;
    uint32_t heap_count, heap_room;
    uint64_t virtual_time;  /* a tag: what the next service begins at, at least */
    uint64_t latest_finish; /* the highest tag of a service that has ended */
    /* Which queue it is. */
    struct sched_policy_config policy;
    const struct sched_pool *pool; /* that has it for itself; NULL: it is shared */
    uint32_t members;              /* places that wait here when they do */
    LIST_ENTRY(sched_queue) link;  /* in device->queues */
};

/*
 * A policy is an order in a queue.  `insert` puts a VM where its arrival belongs: at the
 * end, in constant time, when it arrives now.  `first` is whom it serves next (count > 0).
 */
struct policy_ops {
    const char *name;
    bool knows_classes; /* a higher priority is worth protecting */
    bool time_only;     /* a grant is bounded by time and by no number of operations */
    void (*arrived)(struct sched_queue *queue, struct sched_vm *vm, uint64_t now_ns);
    void (*insert)(struct sched_queue *queue, struct sched_vm *vm);
    void (*remove)(struct sched_queue *queue, struct sched_vm *vm);
    struct sched_vm *(*first)(const struct sched_queue *queue, uint64_t now_ns);
    /* Whether a preferred VM may go before another one. */
    bool (*may_precede)(const struct sched_queue *queue, const struct sched_vm *preferred,
                        const struct sched_vm *other, uint64_t now_ns);
    void (*granted)(struct sched_queue *queue, struct sched_vm *vm);
    void (*returned)(struct sched_queue *queue, struct sched_vm *vm, uint64_t used_us,
                     bool has_work);
    /* All of `count`, in order. */
    void (*list)(const struct sched_queue *queue, struct sched_vm **vms, uint64_t now_ns);
};

extern const struct policy_ops policy_strict_ops;
extern const struct policy_ops policy_fifo_ops;
extern const struct policy_ops policy_round_robin_ops;
extern const struct policy_ops policy_wfq_ops;

struct sched_device {
    struct queue_list turns; /* queues with work; the first is the next served */
    LIST_HEAD(, sched_queue) queues;
    uint32_t waiting[SCHED_CLASSES]; /* in queues that know classes */
    uint32_t waiting_count;          /* in all */
    struct sched_vm *running;
    bool running_long; /* its grant lasts until revoked ... */
    bool revoked;      /* ... which was said */
    uint64_t granted_ns;
    uint64_t deadline_ns;
    struct sched_vm *last;     /* who was granted last, or NULL; may be elsewhere now */
    bool granted_before;       /* to anybody */
    uint64_t stretch_us;       /* device time that `last` has used since the change to it ... */
    uint64_t stretch_began_ns; /* ... which was then */
    uint64_t switches;
    uint64_t active_ns[SCHED_CLASSES]; /* when one of the class was last seen; NEVER_YET_NS */
    struct sched_vm *preferred;        /* waiting here, or NULL */
    bool preferred_pool_waits;         /* its pool has not had its first turn yet */
};

struct sched_pool {
    char name; /* 0: does not exist */
    uint32_t waiting;
    uint32_t members; /* places in it, whatever they do */
    enum sched_pools_mode mode;
    unsigned device; /* of its VMs that are not pinned */
    struct sched_policy_config policy;
};

struct sched {
    struct sched_config config;
    struct sched_pool pools[POOLS_MAX];
    struct sched_device devices[SCHED_DEVICES_MAX];
    TAILQ_HEAD(, sched_vm) vms;
    uint64_t last_arrival;
    uint64_t now_ns; /* the latest time that was told */
    uint32_t waiting;
    bool held;
};

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* A scheduler that forgot a VM would be worse than one that ends: never NULL. */
void *sched_allocate(size_t count, size_t bytes);

/* --- policy.c -------------------------------------------------------------------------- */

/* With the defaults in place of zeros, and without what the type does not use: equal ones
 * are served alike.  -1 with EINVAL. */
int policy_complete(const struct sched_policy_config *policy,
                    struct sched_policy_config *ret_complete, struct vgpu_error *error);
bool policy_equals(const struct sched_policy_config *a, const struct sched_policy_config *b);
const struct policy_ops *policy_ops_of(enum sched_policy type);

/* Most policies have one list in the order of arrival, or several. */
void policy_list_insert(struct vm_list *list, struct sched_vm *vm);

/* A new queue's tags, and those of a VM that goes to another queue (from NULL: it is new). */
void policy_wfq_init(struct sched_queue *queue);
void policy_wfq_enter(const struct sched_queue *from, const struct sched_queue *to,
                      struct sched_vm *vm);

/* --- queue.c --------------------------------------------------------------------------- */

/* Joins the tail of its list as the latest arrival. */
void queue_join(struct sched *sched, struct sched_vm *vm);

/* What a VM's place is made of. */
struct vm_place {
    struct sched_pool *pool;
    unsigned priority;
    unsigned pinned;
};

/* Changes it; a waiting VM stands where its arrival puts it: walks past the later
 * arrivals.  A preference for it goes with it. */
void queue_move(struct sched *sched, struct sched_vm *vm, const struct vm_place *to);

/* All places of a pool go where it has changed to. */
void queue_move_pool(struct sched *sched, const struct sched_pool *pool);

/* Which queue is its, for one that does not wait: a new one's, after a change of its pool's
 * or its place. */
void queue_find(struct sched *sched, struct sched_vm *vm);

/* The VM is no more: it has no queue. */
void queue_forget(struct sched_vm *vm);

void queue_unprefer(struct sched_device *device);

/* Leaves its queue, idle. */
void queue_leave(struct sched *sched, struct sched_vm *vm);

/* Takes out whom the device serves next and passes the turn on; NULL when
 * nobody waits. */
struct sched_vm *queue_take(struct sched *sched, struct sched_device *device);

/* The device's waiting VMs in the order that is to be expected. */
size_t queue_list(const struct sched *sched, const struct sched_device *device,
                  struct sched_vm **vms, size_t room);

/* --- grant.c --------------------------------------------------------------------------- */

/* A VM of this class is at work on the device, or wants to be. */
void grant_note_active(struct sched_device *device, const struct sched_vm *vm, uint64_t now_ns);

/* Whether who returned last goes on, so that the change to it was worth its cost. */
bool grant_goes_on(const struct sched *sched, const struct sched_device *device, uint64_t now_ns);

/* Gives the device to the VM, which waits nowhere any more. */
struct sched_grant grant_make(const struct sched *sched, struct sched_device *device,
                              struct sched_vm *vm, bool goes_on, uint64_t now_ns);

/* A grant of the device's `last` VM came back. */
void grant_used(struct sched_device *device, uint64_t used_us);

/* Takes note of what a grant that came back has used. */
void grant_learn(const struct sched *sched, struct sched_vm *vm, uint64_t used_us, bool has_work);

#endif /* VGPU_SCHED_PRIVATE_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sched/private.h - what sched.c (VMs, pools, grants) and queue.c (who stands
 * where, whose turn it is) share.
 */
#ifndef VGPU_SCHED_PRIVATE_H
#define VGPU_SCHED_PRIVATE_H

#include "sched/sched.h"

#include <sys/queue.h>

#define PRIORITY_COUNT 3u
#define POOLS_MAX 26u

TAILQ_HEAD(vm_list, sched_vm);
TAILQ_HEAD(queue_list, sched_queue);

enum vm_state { VM_IDLE, VM_WAITING, VM_RUNNING };

struct sched_vm {
    /* What sched_ready() and sched_next() touch stands together. */
    TAILQ_ENTRY(sched_vm) place; /* in a list of its queue, while waiting */
    uint64_t arrival;            /* when it joined, as a number; unique */
    struct sched_pool *pool;
    struct sched_device *device; /* while running: who granted */
    enum vm_state state;
    uint8_t priority;
    uint32_t vm_id;
    uint64_t used_us;
    void *context;
    TAILQ_ENTRY(sched_vm) member; /* of sched->vms */
};

/* Waiting VMs, each list in the order of arrival. */
struct sched_queue {
    struct vm_list lists[PRIORITY_COUNT];
    uint32_t count;
    struct sched_device *device;
    TAILQ_ENTRY(sched_queue) turn; /* in device->turns while count > 0 */
};

struct sched_device {
    struct queue_list turns; /* queues with work; the first is the next served */
    struct sched_queue shared;
    struct sched_vm *running;
    uint64_t deadline_ns;
};

struct sched_pool {
    char name; /* 0: does not exist */
    uint32_t waiting;
    struct sched_queue *queue; /* its device's, or its own */
    struct sched_queue own;
};

struct sched {
    struct sched_config config;
    struct sched_pool pools[POOLS_MAX];
    struct sched_device devices[SCHED_DEVICES_MAX];
    TAILQ_HEAD(, sched_vm) vms;
    uint64_t last_arrival;
    uint32_t waiting;
    bool held;
    struct sched_vm *preferred; /* waiting, or NULL */
    bool preferred_pool_waits;  /* its pool has not had its first turn yet */
};

void queue_init(struct sched_queue *queue, struct sched_device *device);

/* Joins the tail of its list as the latest arrival: constant time. */
void queue_join(struct sched *sched, struct sched_vm *vm);

/* Changes pool and priority of a waiting VM; it stands where its arrival puts
 * it: walks past the later arrivals. */
void queue_move(struct sched *sched, struct sched_vm *vm, struct sched_pool *pool,
                unsigned priority);

/* Leaves its queue, idle. */
void queue_leave(struct sched *sched, struct sched_vm *vm);

/* Takes out whom the device serves next and passes the turn on; NULL when
 * nobody waits.  Constant time. */
struct sched_vm *queue_take(struct sched *sched, struct sched_device *device);

#endif /* VGPU_SCHED_PRIVATE_H */

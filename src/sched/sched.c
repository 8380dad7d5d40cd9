/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VMs, pools and grants.  A VM is in one of three states, and each function
 * of the interface is one arrow:
 *
 *            ready(depth > 0)             next()
 *      IDLE ─────────────────▶ WAITING ───────────▶ RUNNING
 *       ▲ ◀───────────────────  │  ▲                 │  │
 *       │       ready(0)        └──┘                 │  │
 *       │                      ready, update:        │  │
 *       │                      keeps its arrival     │  │
 *       │                                            │  │
 *       │             WAITING ◀──────────────────────┘  │
 *       │              (tail)   returned(depth > 0)     │
 *       └───────────────────────────────────────────────┘
 *                               returned(0)
 *
 * Where a waiting VM stands is queue.c's business.
 */
#include "sched/private.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* A scheduler that forgot a VM would be worse than one that ends. */
static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (!memory) {
        fprintf(stderr, "sched: out of memory: %zu bytes are not to be had\n", bytes);
        abort();
    }
    return memory;
}

struct sched *sched_new(const struct sched_config *config)
{
    struct sched *sched;

    assert(config->grant_max_ops >= 1);
    assert(config->grant_max_inflight >= 1);
    assert(config->grant_device_us >= 1);
    sched = allocate(sizeof(*sched));
    sched->config = *config;
    TAILQ_INIT(&sched->vms);
    for (unsigned i = 0; i < SCHED_DEVICES_MAX; i++) {
        struct sched_device *device = &sched->devices[i];

        TAILQ_INIT(&device->turns);
        queue_init(&device->shared, device);
        device->deadline_ns = SCHED_NEVER_NS;
    }
    return sched;
}

void sched_free(struct sched *sched)
{
    struct sched_vm *vm;

    if (!sched)
        return;
    while ((vm = TAILQ_FIRST(&sched->vms))) {
        TAILQ_REMOVE(&sched->vms, vm, member);
        free(vm);
    }
    free(sched);
}

/* NULL when the name is no pool's or the pool was never added. */
static struct sched_pool *pool_find(struct sched *sched, char name)
{
    if (name < 'A' || name > 'Z' || sched->pools[name - 'A'].name == '\0')
        return NULL;
    return &sched->pools[name - 'A'];
}

int sched_add_pool(struct sched *sched, char pool, unsigned device, struct vgpu_error *error)
{
    struct sched_pool *place;

    if (pool < 'A' || pool > 'Z')
        return error_set(error, EINVAL, "pool \\x%02x is not a letter of A to Z",
                         (unsigned char)pool);
    if (device >= SCHED_DEVICES_MAX)
        return error_set(error, EINVAL, "pool %c: device %u is not 0 to %u", pool, device,
                         SCHED_DEVICES_MAX - 1);
    if (pool_find(sched, pool))
        return error_set(error, EEXIST, "pool %c exists already", pool);
    place = &sched->pools[pool - 'A'];
    place->name = pool;
    queue_init(&place->own, &sched->devices[device]);
    place->queue = sched->config.pools_mode == SCHED_POOLS_SHARED ? &sched->devices[device].shared
                                                                  : &place->own;
    return 0;
}

static int assignment_check(struct sched *sched, uint32_t vm_id, char pool, unsigned priority,
                            struct vgpu_error *error)
{
    if (!pool_find(sched, pool))
        return error_set(error, EINVAL, "vm %u: its pool (\\x%02x) does not exist", vm_id,
                         (unsigned char)pool);
    if (priority >= PRIORITY_COUNT)
        return error_set(error, EINVAL, "vm %u: priority %u is not 0, 1 or 2", vm_id, priority);
    return 0;
}

struct sched_vm *sched_add_vm(struct sched *sched, uint32_t vm_id, char pool, unsigned priority,
                              void *context, struct vgpu_error *error)
{
    struct sched_vm *vm;

    if (assignment_check(sched, vm_id, pool, priority, error) < 0)
        return NULL;
    vm = allocate(sizeof(*vm));
    vm->vm_id = vm_id;
    vm->pool = pool_find(sched, pool);
    vm->priority = (uint8_t)priority;
    vm->context = context;
    TAILQ_INSERT_TAIL(&sched->vms, vm, member);
    return vm;
}

static void prefer_nobody(struct sched *sched)
{
    sched->preferred = NULL;
    sched->preferred_pool_waits = false;
}

/* A preference is for one service: it ends with the VM's wait. */
static void prefer_ended(struct sched *sched, const struct sched_vm *vm)
{
    if (sched->preferred == vm)
        prefer_nobody(sched);
}

void sched_remove_vm(struct sched *sched, struct sched_vm *vm)
{
    assert(vm->state != VM_RUNNING);
    prefer_ended(sched, vm);
    if (vm->state == VM_WAITING)
        queue_leave(sched, vm);
    TAILQ_REMOVE(&sched->vms, vm, member);
    free(vm);
}

int sched_update_vm(struct sched *sched, struct sched_vm *vm, char pool, unsigned priority,
                    struct vgpu_error *error)
{
    struct sched_pool *new_pool;

    if (assignment_check(sched, vm->vm_id, pool, priority, error) < 0)
        return -1;
    new_pool = pool_find(sched, pool);
    if (vm->state == VM_WAITING) {
        queue_move(sched, vm, new_pool, priority);
    } else {
        vm->pool = new_pool;
        vm->priority = (uint8_t)priority;
    }
    return 0;
}

uint32_t sched_vm_id(const struct sched_vm *vm)
{
    return vm->vm_id;
}

char sched_vm_pool(const struct sched_vm *vm)
{
    return vm->pool->name;
}

unsigned sched_vm_priority(const struct sched_vm *vm)
{
    return vm->priority;
}

void *sched_vm_context(const struct sched_vm *vm)
{
    return vm->context;
}

void sched_ready(struct sched *sched, struct sched_vm *vm, uint32_t depth, uint64_t now_ns)
{
    (void)now_ns; /* arrivals are ordered by the calls, which no clock can tie */
    if (vm->state == VM_IDLE && depth > 0) {
        queue_join(sched, vm);
    } else if (vm->state == VM_WAITING && depth == 0) {
        prefer_ended(sched, vm);
        queue_leave(sched, vm);
    }
}

void sched_returned(struct sched *sched, struct sched_vm *vm, uint64_t used_us, uint32_t depth_left,
                    uint64_t now_ns)
{
    (void)now_ns;
    assert(vm->state == VM_RUNNING);
    assert(vm->device->running == vm);
    vm->device->running = NULL;
    vm->device->deadline_ns = SCHED_NEVER_NS;
    vm->device = NULL;
    vm->state = VM_IDLE;
    vm->used_us += used_us;
    if (depth_left > 0)
        queue_join(sched, vm);
}

static uint64_t grant_end_ns(const struct sched *sched, uint64_t now_ns)
{
    uint64_t device_ns, end_ns;

    if (__builtin_mul_overflow(sched->config.grant_device_us, NS_PER_US, &device_ns) ||
        __builtin_add_overflow(now_ns, device_ns, &end_ns))
        return SCHED_NEVER_NS;
    return end_ns;
}

bool sched_next(struct sched *sched, unsigned device_index, uint64_t now_ns,
                struct sched_action *ret_action)
{
    struct sched_device *device;
    struct sched_vm *vm;

    assert(device_index < SCHED_DEVICES_MAX);
    device = &sched->devices[device_index];
    if (sched->held || device->running)
        return false;
    vm = queue_take(sched, device);
    if (!vm)
        return false;
    prefer_ended(sched, vm);
    vm->state = VM_RUNNING;
    vm->device = device;
    device->running = vm;
    device->deadline_ns = grant_end_ns(sched, now_ns);
    *ret_action = (struct sched_action){
        .type = SCHED_ACTION_GRANT,
        .vm = vm,
        .grant = {.max_ops = sched->config.grant_max_ops,
                  .max_inflight = sched->config.grant_max_inflight,
                  .device_us = sched->config.grant_device_us},
    };
    return true;
}

uint64_t sched_deadline_ns(const struct sched *sched, unsigned device)
{
    assert(device < SCHED_DEVICES_MAX);
    return sched->devices[device].deadline_ns;
}

void sched_hold(struct sched *sched, bool held)
{
    sched->held = held;
}

void sched_prefer(struct sched *sched, uint32_t vm_id)
{
    struct sched_vm *vm;

    prefer_nobody(sched);
    TAILQ_FOREACH (vm, &sched->vms, member) {
        if (vm_id != 0 && vm->vm_id == vm_id && vm->state == VM_WAITING) {
            sched->preferred = vm;
            sched->preferred_pool_waits = true;
            return;
        }
    }
}

uint32_t sched_waiting(const struct sched *sched, char pool)
{
    if (pool == '\0')
        return sched->waiting;
    return pool < 'A' || pool > 'Z' ? 0 : sched->pools[pool - 'A'].waiting;
}

uint64_t sched_vm_used_us(const struct sched_vm *vm)
{
    return vm->used_us;
}

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
 * Where a waiting VM stands is queue.c's business, what a grant allows is grant.c's.
 */
#include "sched/private.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

void *sched_allocate(size_t count, size_t bytes)
{
    void *memory = calloc(count, bytes);

    if (!memory) {
        fprintf(stderr, "sched: out of memory: %zu bytes are not to be had\n", count * bytes);
        abort();
    }
    return memory;
}

static void config_check(const struct sched_config *config)
{
    assert(config->grant_max_ops >= 1);
    assert(config->grant_max_inflight >= 1);
    assert(config->grant_device_us >= 1);
    assert(config->switch_share_percent <= 99);
    (void)config;
}

static void device_init(struct sched_device *device)
{
    TAILQ_INIT(&device->turns);
    LIST_INIT(&device->queues);
    device->deadline_ns = SCHED_NEVER_NS;
    for (unsigned i = 0; i < SCHED_CLASSES; i++)
        device->active_ns[i] = NEVER_YET_NS;
}

struct sched *sched_new(const struct sched_config *config)
{
    struct sched *sched;

    config_check(config);
    sched = sched_allocate(1, sizeof(*sched));
    sched->config = *config;
    TAILQ_INIT(&sched->vms);
    for (unsigned i = 0; i < SCHED_DEVICES_MAX; i++)
        device_init(&sched->devices[i]);
    return sched;
}

void sched_free(struct sched *sched)
{
    struct sched_vm *vm, *following;

    if (!sched)
        return;
    for (vm = TAILQ_FIRST(&sched->vms); vm; vm = following) {
        following = TAILQ_NEXT(vm, member);
        if (vm->state == VM_WAITING)
            queue_leave(sched, vm);
        queue_forget(vm);
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
    const struct sched_policy_config standard = {.type = sched->config.policy};
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
    place->mode = sched->config.pools_mode;
    place->device = device;
    return policy_complete(&standard, &place->policy, error);
}

int sched_update_pool(struct sched *sched, char pool, unsigned device, enum sched_pools_mode mode,
                      struct vgpu_error *error)
{
    struct sched_pool *place = pool_find(sched, pool);

    if (!place)
        return error_set(error, EINVAL, "pool \\x%02x does not exist", (unsigned char)pool);
    if (device >= SCHED_DEVICES_MAX)
        return error_set(error, EINVAL, "pool %c: device %u is not 0 to %u", pool, device,
                         SCHED_DEVICES_MAX - 1);
    place->device = device;
    place->mode = mode;
    queue_move_pool(sched, place);
    return 0;
}

int sched_set_policy(struct sched *sched, char pool, const struct sched_policy_config *policy,
                     struct vgpu_error *error)
{
    struct sched_pool *place = pool_find(sched, pool);
    struct sched_policy_config complete;

    if (!place)
        return error_set(error, EINVAL, "pool \\x%02x does not exist", (unsigned char)pool);
    if (policy_complete(policy, &complete, error) < 0)
        return -1;
    if (policy_equals(&complete, &place->policy))
        return 0;
    place->policy = complete;
    queue_move_pool(sched, place);
    return 0;
}

struct sched_policy_config sched_pool_policy(const struct sched *sched, char pool)
{
    const struct sched_pool *place = pool_find((struct sched *)sched, pool);

    return place ? place->policy : (struct sched_policy_config){.type = sched->config.policy};
}

int sched_remove_pool(struct sched *sched, char pool, struct vgpu_error *error)
{
    struct sched_pool *place = pool_find(sched, pool);

    if (!place)
        return error_set(error, EINVAL, "pool \\x%02x does not exist", (unsigned char)pool);
    if (place->members > 0)
        return error_set(error, EBUSY, "pool %c still has %u VMs", pool, place->members);
    place->name = '\0';
    return 0;
}

void sched_set_grants(struct sched *sched, const struct sched_config *config)
{
    const struct sched_config before = sched->config;

    config_check(config);
    sched->config = *config;
    sched->config.pools_mode = before.pools_mode;
    sched->config.policy = before.policy;
}

static int assignment_check(struct sched *sched, uint32_t vm_id, char pool, unsigned priority,
                            struct vgpu_error *error)
{
    if (!pool_find(sched, pool))
        return error_set(error, EINVAL, "vm %u: its pool (\\x%02x) does not exist", vm_id,
                         (unsigned char)pool);
    if (priority >= SCHED_CLASSES)
        return error_set(error, EINVAL, "vm %u: priority %u is not 0, 1 or 2", vm_id, priority);
    return 0;
}

struct sched_vm *sched_add_vm(struct sched *sched, uint32_t vm_id, char pool, unsigned priority,
                              void *context, struct vgpu_error *error)
{
    struct sched_vm *vm;

    if (assignment_check(sched, vm_id, pool, priority, error) < 0)
        return NULL;
    vm = sched_allocate(1, sizeof(*vm));
    vm->vm_id = vm_id;
    vm->pool = pool_find(sched, pool);
    vm->priority = (uint8_t)priority;
    vm->pinned = SCHED_DEVICE_OF_POOL;
    vm->weight = SCHED_WEIGHT_DEFAULT;
    vm->context = context;
    queue_find(sched, vm);
    vm->pool->members++;
    TAILQ_INSERT_TAIL(&sched->vms, vm, member);
    return vm;
}

/* A preference is for one service: it ends with the VM's wait. */
static void prefer_ended(const struct sched_vm *vm)
{
    if (vm->queue->device->preferred == vm)
        queue_unprefer(vm->queue->device);
}

/* It may have been the last one that several devices were granted to. */
static void forget_last(struct sched *sched, const struct sched_vm *vm)
{
    for (unsigned i = 0; i < SCHED_DEVICES_MAX; i++) {
        if (sched->devices[i].last == vm)
            sched->devices[i].last = NULL;
    }
}

void sched_remove_vm(struct sched *sched, struct sched_vm *vm)
{
    assert(vm->state != VM_RUNNING);
    prefer_ended(vm);
    if (vm->state == VM_WAITING)
        queue_leave(sched, vm);
    forget_last(sched, vm);
    queue_forget(vm);
    TAILQ_REMOVE(&sched->vms, vm, member);
    vm->pool->members--;
    free(vm);
}

int sched_update_vm(struct sched *sched, struct sched_vm *vm, char pool, unsigned priority,
                    struct vgpu_error *error)
{
    struct vm_place to = {.priority = priority, .pinned = vm->pinned};

    if (assignment_check(sched, vm->vm_id, pool, priority, error) < 0)
        return -1;
    to.pool = pool_find(sched, pool);
    vm->pool->members--;
    to.pool->members++;
    queue_move(sched, vm, &to);
    return 0;
}

int sched_pin_vm(struct sched *sched, struct sched_vm *vm, unsigned device,
                 struct vgpu_error *error)
{
    const struct vm_place to = {.pool = vm->pool, .priority = vm->priority, .pinned = device};

    if (device >= SCHED_DEVICES_MAX && device != SCHED_DEVICE_OF_POOL)
        return error_set(error, EINVAL, "vm %u: device %u is not 0 to %u", vm->vm_id, device,
                         SCHED_DEVICES_MAX - 1);
    queue_move(sched, vm, &to);
    return 0;
}

void sched_set_weight(struct sched *sched, struct sched_vm *vm, uint32_t weight)
{
    (void)sched;
    vm->weight = weight == 0                 ? SCHED_WEIGHT_DEFAULT
                 : weight > SCHED_WEIGHT_MAX ? SCHED_WEIGHT_MAX
                                             : weight;
}

uint32_t sched_vm_weight(const struct sched_vm *vm)
{
    return vm->weight;
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

/* Never back: who arrives later has not waited longer. */
static void time_passes(struct sched *sched, uint64_t now_ns)
{
    sched->now_ns = max_u64(sched->now_ns, now_ns);
}

void sched_ready(struct sched *sched, struct sched_vm *vm, uint32_t depth, uint64_t now_ns)
{
    time_passes(sched, now_ns);
    if (vm->state == VM_IDLE && depth > 0) {
        queue_join(sched, vm);
    } else if (vm->state == VM_WAITING && depth == 0) {
        prefer_ended(vm);
        queue_leave(sched, vm);
    }
}

void sched_returned(struct sched *sched, struct sched_vm *vm, uint64_t used_us, uint32_t depth_left,
                    uint64_t now_ns)
{
    struct sched_device *device = vm->device;

    assert(vm->state == VM_RUNNING);
    assert(device->running == vm);
    time_passes(sched, now_ns);
    device->running = NULL;
    device->running_long = false;
    device->deadline_ns = SCHED_NEVER_NS;
    vm->device = NULL;
    vm->state = VM_IDLE;
    vm->used_us += used_us;
    grant_note_active(device, vm, sched->now_ns);
    grant_used(device, used_us);
    if (vm->queue->policy.demand)
        grant_learn(sched, vm, used_us, depth_left > 0);
    if (vm->queue->ops->returned)
        vm->queue->ops->returned(vm->queue, vm, used_us, depth_left > 0);
    if (depth_left > 0)
        queue_join(sched, vm);
}

/* Somebody else waits for the device, or its holder must not have it any more. */
static bool device_is_wanted(const struct sched *sched, const struct sched_device *device)
{
    return sched->held || !TAILQ_EMPTY(&device->turns) || device->running->queue->device != device;
}

static bool device_revoke(const struct sched *sched, struct sched_device *device, uint64_t now_ns,
                          struct sched_action *ret_action)
{
    if (!device->running_long || device->revoked || !device_is_wanted(sched, device))
        return false;
    device->revoked = true;
    device->deadline_ns = now_ns;
    *ret_action = (struct sched_action){.type = SCHED_ACTION_REVOKE, .vm = device->running};
    return true;
}

/* Who is served now, out of its queue; NULL: nobody waits. */
static struct sched_vm *device_take(struct sched *sched, struct sched_device *device,
                                    bool *ret_goes_on)
{
    *ret_goes_on = grant_goes_on(sched, device, sched->now_ns);
    if (!*ret_goes_on)
        return queue_take(sched, device);
    queue_leave(sched, device->last);
    return device->last;
}

static struct sched_grant device_grant(struct sched *sched, struct sched_device *device,
                                       struct sched_vm *vm, bool goes_on, uint64_t now_ns)
{
    vm->state = VM_RUNNING;
    vm->device = device;
    device->running = vm;
    device->revoked = false;
    if (vm->queue->ops->granted)
        vm->queue->ops->granted(vm->queue, vm);
    return grant_make(sched, device, vm, goes_on, now_ns);
}

bool sched_next(struct sched *sched, unsigned device_index, uint64_t now_ns,
                struct sched_action *ret_action)
{
    struct sched_device *device;
    struct sched_vm *vm;
    bool goes_on;

    assert(device_index < SCHED_DEVICES_MAX);
    time_passes(sched, now_ns);
    device = &sched->devices[device_index];
    if (device->running)
        return device_revoke(sched, device, now_ns, ret_action);
    if (sched->held)
        return false;
    vm = device_take(sched, device, &goes_on);
    if (!vm)
        return false;
    prefer_ended(vm);
    *ret_action = (struct sched_action){.type = SCHED_ACTION_GRANT, .vm = vm};
    ret_action->grant = device_grant(sched, device, vm, goes_on, now_ns);
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

    for (unsigned i = 0; i < SCHED_DEVICES_MAX; i++)
        queue_unprefer(&sched->devices[i]);
    TAILQ_FOREACH (vm, &sched->vms, member) {
        struct sched_device *device = vm->queue->device;

        if (vm_id == 0 || vm->vm_id != vm_id || vm->state != VM_WAITING ||
            (device->preferred && device->preferred->arrival < vm->arrival))
            continue;
        device->preferred = vm;
        device->preferred_pool_waits = true;
    }
}

size_t sched_list_waiting(const struct sched *sched, unsigned device, struct sched_vm **vms,
                          size_t room)
{
    assert(device < SCHED_DEVICES_MAX);
    return queue_list(sched, &sched->devices[device], vms, room);
}

struct sched_vm *sched_running(const struct sched *sched, unsigned device)
{
    assert(device < SCHED_DEVICES_MAX);
    return sched->devices[device].running;
}

uint64_t sched_switches(const struct sched *sched, unsigned device)
{
    assert(device < SCHED_DEVICES_MAX);
    return sched->devices[device].switches;
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

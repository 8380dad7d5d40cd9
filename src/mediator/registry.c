/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry, read: pools and VMs from the database that vgpu-admin keeps.
 *
 * It is opened for each reading and closed again, so a database that was put in the
 * place of another one (a restore by copying) is seen, and no lock is held.
 */
#include "mediator/mediator.h"

#include "store/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_withdrawn(const char *name, const struct store_device *devices, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(devices[i].name, name) == 0)
            return devices[i].withdrawn;
    }
    return false;
}

/* A device that is withdrawn is none of the pool's meanwhile. */
static void take_devices(struct config_pool *pool, const char *names,
                         const struct store_device *devices, size_t count)
{
    char text[STORE_POOL_DEVICE_BYTES], *rest = text;
    const char *name;
    size_t used = 0;

    text_copy(text, sizeof(text), names);
    while ((name = strtok_r(rest, " ", &rest))) {
        if (!is_withdrawn(name, devices, count))
            used += (size_t)snprintf(pool->device + used, sizeof(pool->device) - used, "%s%s",
                                     used ? " " : "", name);
    }
}

static void take_policy(struct config_pool *pool, const struct store_pool *row)
{
    static const enum config_policy policies[] = {[STORE_POLICY_DEFAULT] = CONFIG_POLICY_DEFAULT,
                                                  [STORE_POLICY_STRICT] = CONFIG_POLICY_STRICT,
                                                  [STORE_POLICY_WFQ] = CONFIG_POLICY_WFQ,
                                                  [STORE_POLICY_FIFO] = CONFIG_POLICY_FIFO,
                                                  [STORE_POLICY_ROUND_ROBIN] =
                                                      CONFIG_POLICY_ROUND_ROBIN};

    pool->policy = policies[row->policy];
    pool->aging_ms = row->aging_ms;
    pool->demand = row->demand;
}

static void take_pool(struct config_pool *pool, const struct store_pool *row)
{
    *pool = (struct config_pool){
        .id = row->id,
        .disabled = !row->enabled,
        .mode = row->sharing == STORE_SHARED ? SCHED_POOLS_SHARED : SCHED_POOLS_INDEPENDENT,
    };
    text_copy(pool->name, sizeof(pool->name), row->name);
    pool->pack = row->pack;
    pool->session_devices = row->session_devices;
    take_policy(pool, row);
}

static int read_pools(struct store *store, struct config *config, struct vgpu_error *error)
{
    struct store_device *devices;
    struct store_pool *rows;
    size_t count, device_count;

    if (store_list_devices(store, &devices, &device_count, error) < 0)
        return -1;
    if (store_list_pools(store, &rows, &count, error) < 0) {
        free(devices);
        return -1;
    }
    for (size_t i = 0; i < count && i < CONFIG_POOLS_MAX; i++) {
        struct config_pool *pool = &config->pools[config->pool_count++];

        take_pool(pool, &rows[i]);
        take_devices(pool, rows[i].device, devices, device_count);
    }
    free(rows);
    free(devices);
    if (config->pool_count == 0)
        return error_set(error, EINVAL,
                         "database '%s' has no pool: create one (vgpu-admin "
                         "create-pool)",
                         config->database);
    return 0;
}

/* A VM that the database gives neither channel that this mediator has gets none. */
static int channels_of(uint32_t bits)
{
    int channels = (bits & STORE_CHANNEL_FILE ? CONFIG_CHANNEL_FILE : 0) |
                   (bits & STORE_CHANNEL_WINDOW ? CONFIG_CHANNEL_WINDOW : 0);

    return channels ? channels : CONFIG_CHANNEL_NONE;
}

static void take_vm(struct config_vm *vm, const struct store_vm *row)
{
    *vm = (struct config_vm){
        .vm_id = row->vm_id,
        .pool = row->pool,
        .priority = row->priority,
        .owner_uid = row->owner_uid < 0 ? (uid_t)-1 : (uid_t)row->owner_uid,
        .owner_gid = row->owner_gid < 0 ? (gid_t)-1 : (gid_t)row->owner_gid,
        .mode = (mode_t)row->mode,
        .channels = channels_of(row->channels),
        .sessions_max = row->limits.sessions_max,
        .device_memory_mib = row->limits.device_memory_mib,
        .operation_limit_ms = row->limits.operation_limit_ms,
        .weight = row->limits.weight,
        .request_rate = row->limits.request_rate,
        .request_burst = row->limits.request_burst,
        .device_share_percent = row->limits.device_share_percent,
        .queue_depth_max = row->limits.queue_depth_max,
        .inflight_ops_max = row->limits.inflight_ops_max,
        .inflight_kib_max = row->limits.inflight_kib_max,
        .quarantined = row->state == STORE_VM_QUARANTINED,
        .quarantine_until_us = row->quarantine_until_us,
        .identity = row->created_us,
    };
    text_copy(vm->name, sizeof(vm->name), row->name);
    text_copy(vm->uuid, sizeof(vm->uuid), row->uuid);
    text_copy(vm->reason, sizeof(vm->reason), row->reason);
}

static int compare_identity(const void *left, const void *right)
{
    const struct config_vm *a = *(struct config_vm *const *)left;
    const struct config_vm *b = *(struct config_vm *const *)right;

    return a->identity < b->identity ? -1 : a->identity > b->identity;
}

/* VMs of one instant, which a clock that was set back can bring about, are told apart by
 * their numbers: two must not share what is kept by identity. */
static int tell_apart(struct config *config, struct vgpu_error *error)
{
    struct config_vm **vms = calloc(config->vm_count + 1, sizeof(struct config_vm *));
    size_t end;

    if (!vms)
        return error_set(error, ENOMEM, "no memory for the %zu VMs of database '%s'",
                         config->vm_count, config->database);
    for (size_t i = 0; i < config->vm_count; i++)
        vms[i] = &config->vms[i];
    qsort(vms, config->vm_count, sizeof(struct config_vm *), compare_identity);
    for (size_t i = 0; i < config->vm_count; i = end) {
        end = i + 1;
        while (end < config->vm_count && vms[end]->identity == vms[i]->identity)
            end++;
        for (size_t j = end; end - i > 1 && j > i; j--)
            vms[j - 1]->identity = 0;
    }
    free(vms);
    return 0;
}

static int read_vms(struct store *store, struct config *config, struct vgpu_error *error)
{
    struct store_vm *rows;
    size_t count;

    if (store_list_vms(store, &rows, &count, error) < 0)
        return -1;
    config->vms = calloc(count + 1, sizeof(*config->vms));
    for (size_t i = 0; config->vms && i < count; i++)
        take_vm(&config->vms[config->vm_count++], &rows[i]);
    free(rows);
    if (!config->vms)
        return error_set(error, ENOMEM, "no memory for the %zu VMs of database '%s'", count,
                         config->database);
    return tell_apart(config, error);
}

int registry_read(struct config *config, struct vgpu_error *error)
{
    struct store *store;
    int result;

    if (store_open(config->database, STORE_READ_BRIEFLY, &store, error) < 0)
        return -1;
    result = store_begin(store, error);
    if (result == 0)
        result = read_pools(store, config, error);
    if (result == 0)
        result = read_vms(store, config, error);
    store_close(store);
    return result;
}

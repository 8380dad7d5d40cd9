/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the scheduler's rules share: short words for its calls. */
#ifndef VGPU_TESTS_SCHED_UNIT_H
#define VGPU_TESTS_SCHED_UNIT_H

#include "unit.h"

#include "sched/sched.h"

/* A and B share device 0, C has device 1. */
static inline struct sched *make_pools(const struct sched_config *config)
{
    struct sched *sched = sched_new(config);
    struct vgpu_error error;

    assert_int_equal(sched_add_pool(sched, 'A', 0, &error), 0);
    assert_int_equal(sched_add_pool(sched, 'B', 0, &error), 0);
    assert_int_equal(sched_add_pool(sched, 'C', 1, &error), 0);
    return sched;
}

/* The same with grants of 2 ms. */
static inline struct sched *make_plain(enum sched_pools_mode mode, enum sched_policy policy)
{
    const struct sched_config config = {
        .pools_mode = mode,
        .policy = policy,
        .grant_max_ops = 64,
        .grant_max_inflight = 8,
        .grant_device_us = 2000,
    };

    return make_pools(&config);
}

static inline struct sched_vm *add(struct sched *sched, uint32_t vm_id, char pool,
                                   unsigned priority)
{
    struct vgpu_error error;
    struct sched_vm *vm = sched_add_vm(sched, vm_id, pool, priority, NULL, &error);

    assert_non_null(vm);
    return vm;
}

/* A VM that waits with one operation. */
static inline struct sched_vm *add_ready(struct sched *sched, uint32_t vm_id, char pool,
                                         unsigned priority)
{
    struct sched_vm *vm = add(sched, vm_id, pool, priority);

    sched_ready(sched, vm, 1, 0);
    return vm;
}

/* Whom the device grants next; NULL when there is nothing to do. */
static inline struct sched_vm *next(struct sched *sched, unsigned device)
{
    struct sched_action action, before;

    memset(&action, 0x5a, sizeof(action));
    before = action;
    if (!sched_next(sched, device, 0, &action)) {
        assert_memory_equal(&action, &before, sizeof(action));
        return NULL;
    }
    assert_int_equal(action.type, SCHED_ACTION_GRANT);
    assert_non_null(action.vm);
    return action.vm;
}

static inline void expect_forecast(const struct sched *sched, unsigned device, const char *expected)
{
    struct sched_vm *vms[64];
    size_t count = sched_list_waiting(sched, device, vms, VGPU_ARRAY_LENGTH(vms));
    char order[256] = "";

    for (size_t i = 0; i < count; i++) {
        size_t used = strlen(order);

        snprintf(order + used, sizeof(order) - used, "%s%u", used ? " " : "", sched_vm_id(vms[i]));
    }
    assert_string_equal(order, expected);
}

/* Serves the device until nobody waits, and compares the order of vm_ids; it was
 * foretold. */
static inline void expect_order(struct sched *sched, unsigned device, const char *expected)
{
    char order[256] = "";
    struct sched_vm *vm;

    if (expected[0] != '\0')
        expect_forecast(sched, device, expected);

    while ((vm = next(sched, device))) {
        size_t used = strlen(order);

        snprintf(order + used, sizeof(order) - used, "%s%u", used ? " " : "", sched_vm_id(vm));
        sched_returned(sched, vm, 0, 0, 0);
    }
    assert_string_equal(order, expected);
}

static inline void set_policy(struct sched *sched, char pool,
                              const struct sched_policy_config *policy)
{
    struct vgpu_error error;

    assert_int_equal(sched_set_policy(sched, pool, policy, &error), 0);
}

#endif

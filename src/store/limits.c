/* SPDX-License-Identifier: Apache-2.0 */
/* The limits that a VM can have, one line each. */
#include "store/store.h"

#include <string.h>

#define LIMIT(field_, words_, unit_, unset_, max_, bit_)                                           \
    {                                                                                              \
        .name = #field_, .words = (words_), .unit = (unit_), .unset = (unset_),                    \
        .offset = offsetof(struct store_limits, field_), .max = (max_), .field = (bit_)            \
    }

#define NONE "no bound"

const struct store_limit store_limits[STORE_LIMITS] = {
    LIMIT(sessions_max, "sessions", "", "default", STORE_SESSIONS_MAX, STORE_VM_SESSIONS_MAX),
    LIMIT(device_memory_mib, "device memory", " MiB", "default", STORE_DEVICE_MEMORY_MIB_MAX,
          STORE_VM_DEVICE_MEMORY),
    LIMIT(operation_limit_ms, "operation limit", " ms", "default", STORE_OPERATION_LIMIT_MS_MAX,
          STORE_VM_OPERATION_LIMIT),
    LIMIT(weight, "weight", "", "default", STORE_WEIGHT_MAX, STORE_VM_WEIGHT),
    LIMIT(request_rate, "request rate", "/s", NONE, STORE_REQUEST_RATE_MAX, STORE_VM_REQUEST_RATE),
    LIMIT(request_burst, "request burst", "", "default", STORE_REQUEST_RATE_MAX,
          STORE_VM_REQUEST_BURST),
    LIMIT(device_share_percent, "device share", " %", NONE, 100, STORE_VM_DEVICE_SHARE),
    LIMIT(queue_depth_max, "queue depth", "", NONE, STORE_QUEUE_DEPTH_MAX, STORE_VM_QUEUE_DEPTH),
    LIMIT(inflight_ops_max, "in flight", " operations", NONE, STORE_INFLIGHT_OPS_MAX,
          STORE_VM_INFLIGHT_OPS),
    LIMIT(inflight_kib_max, "in flight bytes", " KiB", NONE, STORE_INFLIGHT_KIB_MAX,
          STORE_VM_INFLIGHT_KIB),
};

uint32_t store_limit_get(const struct store_limits *limits, const struct store_limit *limit)
{
    uint32_t value;

    memcpy(&value, (const char *)limits + limit->offset, sizeof(value));
    return value;
}

void store_limit_set(struct store_limits *limits, const struct store_limit *limit, uint32_t value)
{
    memcpy((char *)limits + limit->offset, &value, sizeof(value));
}

const struct store_limit *store_limit_find(const char *name)
{
    for (unsigned i = 0; i < STORE_LIMITS; i++) {
        if (strcmp(store_limits[i].name, name) == 0)
            return &store_limits[i];
    }
    return NULL;
}

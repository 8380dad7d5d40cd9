/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options that register-vm and set-limit share: what a VM may use at most.
 */
#ifndef VGPU_ADMIN_LIMIT_OPTIONS_H
#define VGPU_ADMIN_LIMIT_OPTIONS_H

#include "admin/admin.h"

#define LIMIT_OPTION(first, index, name, value, help, group)                                       \
    {                                                                                              \
        name, (first) + (index), value, 0, help, group                                             \
    }

/* Entries for struct argp_option, STORE_LIMITS of them in the order of store_limits, with keys
 * from `first` on. */
#define LIMIT_OPTIONS(first, group)                                                                \
    LIMIT_OPTION(first, 0, "sessions", "N", "Most sessions at a time, or default", group),         \
        LIMIT_OPTION(first, 1, "device-memory", "MIB",                                             \
                     "Most device memory, of all its sessions, or default", group),                \
        LIMIT_OPTION(first, 2, "operation-limit", "MS",                                            \
                     "Longest device time of an operation, or default", group),                    \
        LIMIT_OPTION(                                                                              \
            first, 3, "weight", "N",                                                               \
            "Of its share of device time in a pool with policy wfq, 1 to 1000, or default (100)",  \
            group),                                                                                \
        LIMIT_OPTION(first, 4, "request-rate", "N",                                                \
                     "Most requests a second, of both channels together, or none", group),         \
        LIMIT_OPTION(first, 5, "request-burst", "N",                                               \
                     "Of them at once, or default (a tenth of a second's)", group),                \
        LIMIT_OPTION(first, 6, "device-share", "PERCENT",                                          \
                     "Most of a device's time, also while nobody else wants it, or none", group),  \
        LIMIT_OPTION(first, 7, "queue-depth", "N", "Most requests that wait, or none", group),     \
        LIMIT_OPTION(first, 8, "inflight-ops", "N",                                                \
                     "Most operations in flight on its devices, or none", group),                  \
        LIMIT_OPTION(first, 9, "inflight-kib", "KIB", "Most that those may move, or none", group)

/* The limit of number `index` in store_limits, as somebody wrote it. */
int limit_parse(struct store_limits *limits, unsigned index, const char *value,
                struct vgpu_error *error);

#endif /* VGPU_ADMIN_LIMIT_OPTIONS_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options that create-pool and update-pool share.
 */
#ifndef VGPU_ADMIN_POOL_OPTIONS_H
#define VGPU_ADMIN_POOL_OPTIONS_H

#include "admin/admin.h"

struct pool_options {
    struct admin *admin;
    struct pool_change change;
};

/* Its input is a struct pool_options. */
extern const struct argp pool_options_argp;

#endif /* VGPU_ADMIN_POOL_OPTIONS_H */

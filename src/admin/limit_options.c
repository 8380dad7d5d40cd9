/* SPDX-License-Identifier: Apache-2.0 */
/* The options that register-vm and set-limit share: what a VM may use at most. */
#include "admin/limit_options.h"

#include <string.h>

int limit_parse(struct store_limits *limits, unsigned index, const char *value,
                struct vgpu_error *error)
{
    const struct store_limit *limit = &store_limits[index];
    const char *zero = strcmp(limit->unset, "default") == 0 ? "default" : "none";
    uint64_t number;

    if (value_number(value, limit->max, zero, &number, error) < 0)
        return -1;
    store_limit_set(limits, limit, (uint32_t)number);
    return 0;
}

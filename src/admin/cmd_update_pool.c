/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin update-pool: enabled, sharing, capacity, description, name, device. */
#include "admin/commands.h"

#include "admin/pool_options.h"

int cmd_update_pool(struct admin *admin, int argc, char **argv)
{
    struct pool_options input = {.admin = admin};
    int result = admin_parse(admin, &pool_options_argp, argc, argv, &input);

    if (result)
        return result;
    if (!input.change.store.fields)
        return admin_refuse(admin, "what is to change? Expected --name, --description, --enabled, "
                                   "--sharing, --device, --placement, --session-devices, "
                                   "--policy, --aging, --demand, --vms-max or "
                                   "--device-memory-max");
    return change_pool(admin, &input.change);
}

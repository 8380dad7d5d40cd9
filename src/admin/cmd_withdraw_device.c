/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin withdraw-device: no session is on this device any more, whatever pools name
 * it, until return-device.
 */
#include "admin/commands.h"

int cmd_withdraw_device(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);

    return result ? result : change_device(admin, true);
}

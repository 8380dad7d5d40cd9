/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin return-device: a withdrawn device is used again. */
#include "admin/commands.h"

int cmd_return_device(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);

    return result ? result : change_device(admin, false);
}

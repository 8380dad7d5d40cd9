/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin unbind-vfio: a PCI device goes back from vfio-pci to the driver that it had. */
#include "admin/commands.h"
#include "admin/host_commands.h"

int cmd_unbind_vfio(struct admin *admin, int argc, char **argv)
{
    return host_move_command(admin, argc, argv, host_unbind_vfio, "was moved already");
}

/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin bind-vfio: a PCI device goes to vfio-pci, to be given to a VM. */
#include "admin/commands.h"
#include "admin/host_commands.h"

int cmd_bind_vfio(struct admin *admin, int argc, char **argv)
{
    return host_move_command(admin, argc, argv, host_bind_vfio, "is bound to vfio-pci already");
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands' functions, one a file.  A command whose file this build leaves out
 * (meson.build says which and why) is not offered.
 */
#ifndef VGPU_ADMIN_COMMANDS_H
#define VGPU_ADMIN_COMMANDS_H

#include "admin/admin.h"

#define ADMIN_COMMAND(name)                                                                        \
    __attribute__((weak)) int cmd_##name(struct admin *admin, int argc, char **argv)

ADMIN_COMMAND(backup);
ADMIN_COMMAND(bind_device);
ADMIN_COMMAND(bind_vfio);
ADMIN_COMMAND(complete);
ADMIN_COMMAND(create_pool);
ADMIN_COMMAND(events);
ADMIN_COMMAND(init);
ADMIN_COMMAND(list_devices);
ADMIN_COMMAND(list_pools);
ADMIN_COMMAND(list_vms);
ADMIN_COMMAND(preflight);
ADMIN_COMMAND(publish);
ADMIN_COMMAND(quarantine);
ADMIN_COMMAND(queue);
ADMIN_COMMAND(register_vm);
ADMIN_COMMAND(release);
ADMIN_COMMAND(reload);
ADMIN_COMMAND(remove_pool);
ADMIN_COMMAND(remove_vm);
ADMIN_COMMAND(restore);
ADMIN_COMMAND(return_device);
ADMIN_COMMAND(scan_vms);
ADMIN_COMMAND(set_limit);
ADMIN_COMMAND(set_pool);
ADMIN_COMMAND(set_pool_name);
ADMIN_COMMAND(set_priority);
ADMIN_COMMAND(set_vm_id);
ADMIN_COMMAND(show_gpus);
ADMIN_COMMAND(show_iommu_status);
ADMIN_COMMAND(show_pool);
ADMIN_COMMAND(show_vm);
ADMIN_COMMAND(start_vm);
ADMIN_COMMAND(stats);
ADMIN_COMMAND(status);
ADMIN_COMMAND(stop_vm);
ADMIN_COMMAND(test_mode);
ADMIN_COMMAND(top);
ADMIN_COMMAND(trace);
ADMIN_COMMAND(unbind_vfio);
ADMIN_COMMAND(update_pool);
ADMIN_COMMAND(update_vm);
ADMIN_COMMAND(vm_startup);
ADMIN_COMMAND(withdraw_device);

#endif /* VGPU_ADMIN_COMMANDS_H */

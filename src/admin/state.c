/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the mediator keeps of a VM in its state directory, by the VM's identity
 * (src/channel/journal.c): the last request and its answer.  They are a tenant's, so
 * they go with the VM.
 */
#include "admin/admin.h"

#include <limits.h>
#include <stdio.h>
#include <unistd.h>

void state_forget(const struct admin *admin, const struct store_vm *vm)
{
    static const char *const kinds[] = {"journal", "session"};
    char path[PATH_MAX + 64];

    for (size_t i = 0; admin->state_dir[0] && i < VGPU_ARRAY_LENGTH(kinds); i++) {
        snprintf(path, sizeof(path), "%s/vm-%llu.%s", admin->state_dir,
                 (unsigned long long)vm->created_us, kinds[i]);
        unlink(path);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin complete WHAT: words for the shell's completion, one a line: commands,
 * vms, pools, devices.  What cannot be read is no words: completion never complains.
 */
#include "admin/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void complete_commands(void)
{
    for (const struct admin_command *at = admin_commands; at->name; at++) {
        if (at->run && at->group)
            puts(at->name);
    }
}

static void complete_vms(struct store *store)
{
    struct vgpu_error ignored;
    struct store_vm *vms;
    size_t count;

    if (store_list_vms(store, &vms, &count, &ignored) < 0)
        return;
    for (size_t i = 0; i < count; i++) {
        printf("%u\n", vms[i].vm_id);
        if (vms[i].name[0])
            puts(vms[i].name);
    }
    free(vms);
}

static void complete_pools(struct store *store)
{
    struct vgpu_error ignored;
    struct store_pool *pools;
    size_t count;

    if (store_list_pools(store, &pools, &count, &ignored) < 0)
        return;
    for (size_t i = 0; i < count; i++) {
        printf("%c\n", pools[i].id);
        if (pools[i].name[0])
            puts(pools[i].name);
    }
    free(pools);
}

static void complete_devices(struct store *store)
{
    struct vgpu_error ignored;
    struct store_device *devices;
    size_t count;

    if (store_list_devices(store, &devices, &count, &ignored) < 0)
        return;
    for (size_t i = 0; i < count; i++)
        puts(devices[i].name);
    free(devices);
}

int cmd_complete(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error ignored;
    struct store *store;

    if (result)
        return result;
    if (strcmp(admin->words[0], "commands") == 0) {
        complete_commands();
        return ADMIN_OK;
    }
    if (admin_open_store(admin, STORE_READ, &store, &ignored) < 0)
        return ADMIN_OK;
    if (strcmp(admin->words[0], "vms") == 0)
        complete_vms(store);
    else if (strcmp(admin->words[0], "pools") == 0)
        complete_pools(store);
    else if (strcmp(admin->words[0], "devices") == 0)
        complete_devices(store);
    store_close(store);
    return ADMIN_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin remove-vm: the VM is forgotten, its export withdrawn, its directory moved
 * aside with all that is in it.
 */
#include "admin/commands.h"

#include "admin/renumber.h"

#include <stdio.h>

static int try_row(const struct admin *admin, struct store *store, struct store_vm *ret_vm,
                   struct vgpu_error *error)
{
    int result;

    if (store_find_vm(store, admin->words[0], ret_vm, error) < 0 || store_begin(store, error) < 0)
        return -1;
    result = store_remove_vm(store, ret_vm->vm_id, ret_vm, error);
    store_rollback(store);
    return result;
}

static int write_row(struct store *store, const struct store_vm *tried, struct vgpu_error *error)
{
    struct store_vm vm;

    if (store_begin(store, error) < 0)
        return -1;
    if (store_remove_vm(store, tried->vm_id, &vm, error) < 0 ||
        share_check_row(tried, &vm, error) < 0 || store_commit(store, error) < 0) {
        store_rollback(store);
        return -1;
    }
    return 0;
}

static int forget_row_and_share(struct admin *admin, struct store *store, struct store_vm *ret_vm,
                                char ret_aside[64], struct vgpu_error *error)
{
    struct share_undo undo = {0};
    struct vgpu_error ignored;

    if (try_row(admin, store, ret_vm, error) < 0 || share_retire(admin, ret_vm, &undo, error) < 0)
        return -1;
    if (write_row(store, ret_vm, error) < 0) {
        share_undo(admin, &undo, &ignored);
        return -1;
    }
    text_copy(ret_aside, 64, undo.aside);
    share_done(&undo);
    return 0;
}

static int forget_whole(struct admin *admin, struct store *store, struct store_vm *ret_vm,
                        char ret_aside[64], struct vgpu_error *error)
{
    int turn, result;

    if (share_lock(admin, &turn, error) < 0)
        return -1;
    result = forget_row_and_share(admin, store, ret_vm, ret_aside, error);
    fd_close(&turn);
    return result;
}

static void answer(struct admin *admin, const struct store_vm *vm, const char *aside)
{
    char machine[TOOLSTACK_NAME_BYTES], quoted[4 * TOOLSTACK_NAME_BYTES + 4];
    char name[STORE_NAME_BYTES + 32], path[4200] = "", sentence[8192];

    if (aside[0])
        snprintf(path, sizeof(path), "%s/%s", admin->share, aside);
    output_vm_name(vm, name, sizeof(name));
    publish_find_removed(admin, vm, machine);
    output_quote(machine, quoted, sizeof(quoted));
    snprintf(sentence, sizeof(sentence), "%s is removed%s%s%s%s%s", name,
             path[0] ? "; its directory is now " : "", path,
             machine[0] ? "; its definition still has a vgpu-stub: vgpu-admin publish --remove "
                        : "",
             machine[0] ? quoted : "", machine[0] ? " takes it out" : "");
    change_answer(admin,
                  json_pack("{s:o, s:s?, s:s?}", "vm", output_vm(vm), "retired",
                            path[0] ? path : NULL, "definition", machine[0] ? machine : NULL),
                  sentence);
}

int cmd_remove_vm(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;
    struct store *store;
    struct store_vm vm;
    char aside[64];

    if (result)
        return result;
    if (admin_open_store(admin, STORE_WRITE, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = forget_whole(admin, store, &vm, aside, &error);
    store_close(store);
    if (result < 0)
        return live_fail(admin, &error);
    if (live_apply(admin, &error) < 0)
        return admin_fail_applied(admin, &error);
    if (vm.channels & STORE_CHANNEL_FILE)
        share_sweep(admin, vm.vm_id);
    renumber_journal_remove(admin, vm.created_us);
    state_forget(admin, &vm);
    answer(admin, &vm, aside);
    return ADMIN_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin restore: a backup takes the place of pools and VMs, at once and whole.
 * Directories and exports follow: of VMs that come back they are made, of those that go
 * they are retired, and a VM that has another number takes them along.  From before the
 * commit until each directory is its VM's, a copy of the earlier database stands beside
 * it (vgpu.db.restoring): who finds it finishes what was interrupted.  Definitions are
 * compared and not written, as that may be many programs' work: the answer tells which
 * differ.
 *
 * A file that is no database any more, or that is gone, gives way to a copy of the
 * backup: it is moved aside with its -wal and -shm, never deleted.
 */
#include "admin/commands.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char question[] =
    "All pools and VMs of the database give way to those of the backup. Restore it?";

/* What the registry held before and holds now. */
struct restored {
    struct store_vm *before, *after;
    size_t before_count, after_count;
    bool before_known; /* the database could be read */
    bool moved;        /* each directory is its VM's */
    json_t *failed;    /* [{"vm_id", "error"}]: what is not right in the share; NULL: all is */
};

static bool is_one(const struct store_vm *one, const struct store_vm *other)
{
    return one->created_us == other->created_us &&
           (one->vm_id == other->vm_id || (one->uuid[0] && strcmp(one->uuid, other->uuid) == 0) ||
            (one->name[0] && strcmp(one->name, other->name) == 0));
}

/* The same VM in the other list; NULL: it is not there. */
static const struct store_vm *find(const struct store_vm *vms, size_t count,
                                   const struct store_vm *vm)
{
    for (size_t i = 0; i < count; i++) {
        if (is_one(&vms[i], vm))
            return &vms[i];
    }
    return NULL;
}

static bool has_files(const struct store_vm *vm)
{
    return vm && (vm->channels & STORE_CHANNEL_FILE);
}

static void note_failure(struct restored *restored, uint32_t vm_id, const struct vgpu_error *error)
{
    fprintf(stderr, "vgpu-admin: note: VM %u: %s\n", vm_id, error->message);
    if (!restored->failed)
        restored->failed = json_array();
    json_array_append_new(restored->failed,
                          json_pack("{s:i, s:s}", "vm_id", (int)vm_id, "error", error->message));
}

static void note_exchange(struct restored *restored, const struct vgpu_error *error)
{
    fprintf(stderr, "vgpu-admin: note: %s\n", error->message);
    if (!restored->failed)
        restored->failed = json_array();
    json_array_append_new(restored->failed,
                          json_pack("{s:n, s:s}", "vm_id", "error", error->message));
}

/* NULL: it goes, or has the file channel no more. */
static const struct store_vm *find_after(const struct restored *restored, const struct store_vm *vm)
{
    const struct store_vm *now = find(restored->after, restored->after_count, vm);

    return has_files(now) ? now : NULL;
}

static bool changes_place(const struct restored *restored, const struct store_vm *vm)
{
    const struct store_vm *now = find_after(restored, vm);

    return has_files(vm) && (!now || now->vm_id != vm->vm_id);
}

static void park_shares(struct admin *admin, struct restored *restored)
{
    struct vgpu_error error;

    for (size_t i = 0; i < restored->before_count; i++) {
        const struct store_vm *vm = &restored->before[i];

        if (changes_place(restored, vm) && share_park(admin, vm, &error) < 0)
            note_failure(restored, vm->vm_id, &error);
        fault_point("restore-parked");
    }
}

static void settle_shares(struct admin *admin, struct restored *restored)
{
    struct vgpu_error error;

    for (size_t i = 0; i < restored->before_count; i++) {
        const struct store_vm *vm = &restored->before[i];

        if (changes_place(restored, vm) &&
            share_settle(admin, vm, find_after(restored, vm), &error) < 0)
            note_failure(restored, vm->vm_id, &error);
        fault_point("restore-settled");
    }
}

/* Numbers may have been exchanged, so all leave their places before one takes another's.
 * Where one could not leave, nobody settles: its place is not free. */
static void move_shares(struct admin *admin, struct restored *restored)
{
    struct vgpu_error error;

    park_shares(admin, restored);
    if (restored->failed)
        return;
    if (share_turn_exchange(admin, &error) < 0) {
        note_exchange(restored, &error);
        return;
    }
    settle_shares(admin, restored);
    if (!restored->failed && share_end_exchange(admin, &error) < 0)
        note_exchange(restored, &error);
}

/* Who came back gets nothing that another VM of the number left. */
static void make_shares(struct admin *admin, struct restored *restored)
{
    for (size_t i = 0; i < restored->after_count; i++) {
        const struct store_vm *vm = &restored->after[i];
        bool new = restored->before_known &&
                   !has_files(find(restored->before, restored->before_count, vm));
        struct share_undo undo = {0};
        struct vgpu_error error;

        if ((new ? share_make_new : share_make)(admin, vm, NULL, &undo, &error) < 0)
            note_failure(restored, vm->vm_id, &error);
        share_done(&undo);
    }
}

/* The rows are restored, so what fails does not end it; but nobody gets a directory that
 * may still be another's. */
static void restore_shares(struct admin *admin, struct restored *restored)
{
    move_shares(admin, restored);
    restored->moved = !restored->failed;
    if (restored->moved)
        make_shares(admin, restored);
}

/* Journals of those that are gone. */
static void forget_gone(const struct admin *admin, const struct restored *restored)
{
    for (size_t i = 0; i < restored->before_count; i++) {
        if (!find(restored->after, restored->after_count, &restored->before[i]))
            state_forget(admin, &restored->before[i]);
    }
}

/* --- after an interrupted restore: beside the database, a copy of what it held ----------- */

static int copy_path(const struct admin *admin, char path[PATH_MAX], struct vgpu_error *error)
{
    if (snprintf(path, PATH_MAX, "%s.restoring", admin->database_path) < PATH_MAX)
        return 0;
    return error_set(error, ENAMETOOLONG, "%s: its name is too long", admin->database_path);
}

/* Before the first row is changed. */
static int keep_copy(struct admin *admin, struct store *store, struct vgpu_error *error)
{
    char path[PATH_MAX];

    if (copy_path(admin, path, error) < 0 || share_begin_exchange(admin, error) < 0)
        return -1;
    return store_backup(store, path, error);
}

static void drop_copy(const struct admin *admin)
{
    struct vgpu_error ignored;
    char path[PATH_MAX];

    if (copy_path(admin, path, &ignored) == 0)
        unlink(path);
}

static int list_copy(const char *path, struct restored *earlier, struct vgpu_error *error)
{
    struct store *copy;
    int result;

    if (store_open(path, STORE_READ, &copy, error) < 0)
        return -1;
    result = store_list_vms(copy, &earlier->before, &earlier->before_count, error);
    store_close(copy);
    return result;
}

/* An earlier restore that was killed: its directories first, by the rows as they are. */
static int finish_earlier(struct admin *admin, struct store *store, struct vgpu_error *error)
{
    struct restored earlier = {.before_known = true};
    char path[PATH_MAX];
    int result;

    if (copy_path(admin, path, error) < 0)
        return -1;
    if (access(path, F_OK) < 0)
        return 0;
    result = list_copy(path, &earlier, error);
    if (result == 0)
        result = store_list_vms(store, &earlier.after, &earlier.after_count, error);
    if (result == 0)
        restore_shares(admin, &earlier);
    if (result == 0 && !earlier.moved)
        result = error_set(error, EIO,
                           "an earlier restore was interrupted and cannot be finished: put the "
                           "share in order, and give the command again");
    if (result == 0)
        forget_gone(admin, &earlier);
    free(earlier.before);
    free(earlier.after);
    json_decref(earlier.failed);
    if (result == 0)
        drop_copy(admin);
    return result;
}

/* A mediator that still knew them has made their directories anew. */
static void sweep_shares(struct admin *admin, const struct restored *restored)
{
    if (restored->failed)
        return;
    for (size_t i = 0; i < restored->before_count; i++) {
        const struct store_vm *vm = &restored->before[i];
        size_t j = 0;

        while (j < restored->after_count && restored->after[j].vm_id != vm->vm_id)
            j++;
        if (has_files(vm) && (j == restored->after_count || !has_files(&restored->after[j])))
            share_sweep(admin, vm->vm_id);
    }
}

static int move_aside(const char *path, struct vgpu_error *error)
{
    static const char *const ends[] = {"", "-wal", "-shm"};
    char from[PATH_MAX], to[PATH_MAX], when[32];
    time_t now = time(NULL);
    struct tm broken;

    strftime(when, sizeof(when), "%Y%m%dT%H%M%SZ", gmtime_r(&now, &broken));
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(ends); i++) {
        if (snprintf(from, sizeof(from), "%s%s", path, ends[i]) >= (int)sizeof(from) ||
            snprintf(to, sizeof(to), "%s.damaged-%s-%d%s", path, when, getpid(), ends[i]) >=
                (int)sizeof(to))
            return error_set(error, ENAMETOOLONG, "%s: its name is too long", path);
        if (rename(from, to) < 0) {
            if (errno != ENOENT)
                return error_set_errno(error, "cannot move '%s' aside", from);
        } else if (i == 0)
            fprintf(stderr, "vgpu-admin: note: the unusable database is now %s\n", to);
    }
    return 0;
}

static int replace_unusable(struct admin *admin, struct vgpu_error *error)
{
    struct store *backup;
    int result;

    admin->failed_exit = ADMIN_FAILED;
    if (store_open(admin->words[0], STORE_READ, &backup, error) < 0)
        return -1;
    result = store_verify(backup, error);
    if (result == 0)
        result = move_aside(admin->database_path, error);
    if (result == 0)
        result = store_backup(backup, admin->database_path, error);
    store_close(backup);
    return result;
}

/* Opens the database; *ret_replaced: it was unusable and is the backup now. */
static int open_or_replace(struct admin *admin, struct store **ret_store, bool *ret_replaced,
                           struct vgpu_error *error)
{
    struct store *store;
    int result = admin_open_store(admin, STORE_WRITE, &store, error);

    if (result == 0 && store_verify(store, error) < 0) {
        store_close(store);
        result = -1;
    }
    *ret_replaced = result < 0 && (error->code == EBADMSG || error->code == ENOENT);
    if (*ret_replaced) {
        if (replace_unusable(admin, error) < 0)
            return -1;
        result = admin_open_store(admin, STORE_WRITE, &store, error);
    }
    if (result == 0)
        *ret_store = store;
    return result;
}

static int replace_rows(struct admin *admin, struct store *store, struct vgpu_error *error)
{
    if (keep_copy(admin, store, error) == 0 && store_restore(store, admin->words[0], error) == 0)
        return 0;
    drop_copy(admin);
    share_cancel_exchange(admin);
    return -1;
}

static int restore(struct admin *admin, struct restored *restored, struct vgpu_error *error)
{
    const struct store_event event = {.action = "restore"};
    struct store *store = NULL;
    bool replaced;
    int result;

    if (open_or_replace(admin, &store, &replaced, error) < 0)
        return -1;
    restored->before_known = !replaced;
    if (!replaced && (finish_earlier(admin, store, error) < 0)) {
        store_close(store);
        return -1;
    }
    result = replaced ? store_add_event(store, &event, error)
                      : store_list_vms(store, &restored->before, &restored->before_count, error);
    if (result == 0 && !replaced)
        result = replace_rows(admin, store, error);
    if (result < 0 && error->code == ENOENT)
        admin->failed_exit = ADMIN_FAILED; /* a path, no VM */
    if (result == 0)
        result = store_list_vms(store, &restored->after, &restored->after_count, error);
    store_close(store);
    return result;
}

static int restore_in_turn(struct admin *admin, struct restored *restored, struct vgpu_error *error)
{
    int turn, result;

    if (settings_read(admin, error) < 0 || share_lock(admin, &turn, error) < 0)
        return -1;
    result = restore(admin, restored, error);
    fault_point("restore-committed");
    if (result == 0)
        restore_shares(admin, restored);
    if (restored->moved)
        drop_copy(admin);
    fd_close(&turn);
    return result;
}

static void answer(struct admin *admin, const struct restored *restored)
{
    struct publish_left left;
    char sentence[128];

    publish_find_left(admin, restored->after, restored->after_count, &left);
    publish_note_left(admin, &left);
    snprintf(sentence, sizeof(sentence), "The backup is restored: %zu VMs.", restored->after_count);
    change_answer(admin,
                  json_pack("{s:s, s:i, s:o, s:o, s:o}", "restored", admin->words[0], "vms",
                            (int)restored->after_count, "stale", left.stale, "unregistered",
                            left.unregistered, "failed",
                            restored->failed ? json_incref(restored->failed) : json_array()),
                  sentence);
}

static int restore_whole(struct admin *admin, struct restored *restored)
{
    struct vgpu_error error;

    if (restore_in_turn(admin, restored, &error) < 0)
        return admin_fail(admin, &error);
    if (live_apply(admin, &error) < 0)
        return admin_fail_applied(admin, &error);
    sweep_shares(admin, restored);
    forget_gone(admin, restored);
    answer(admin, restored);
    return restored->failed ? ADMIN_FAILED : ADMIN_OK;
}

int cmd_restore(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL), yes;
    struct restored restored = {0};
    struct vgpu_error error;

    if (result)
        return result;
    yes = ask_yes(admin, question, &error);
    if (yes < 0)
        return admin_fail(admin, &error);
    if (yes == 0)
        return admin_decline(admin);
    result = restore_whole(admin, &restored);
    free(restored.before);
    free(restored.after);
    json_decref(restored.failed);
    return result;
}

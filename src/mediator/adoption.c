/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Window sessions whose workers outlived an earlier mediator.
 *
 * Their files tell which there were: run_dir/sessions/vm<id>-<inode>-<slot>.session.
 * A worker that lives is connected to (or ended, when it cannot be: all of this is
 * before anything runs, and before any owner is heard) and, if it holds a grant of the old
 * mediator's, asked for it; nothing is dispatched until all have given theirs
 * back, so no two sessions ever share a device.  A worker that died leaves its
 * files: when its owner connects and still holds the slot open, a successor
 * answers from them.  What nobody asks for is removed after a while.
 */
#include "mediator/mediator.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Since a mediator saw it dead: long enough for every owner to connect again. */
#define DEAD_FILES_S 600
#define SWEEP_MS 5000

struct name {
    uint32_t vm_id;
    uint64_t inode;
    uint32_t slot;
};

static bool parse_name(const char *text, struct name *ret_name)
{
    unsigned vm_id, slot;
    unsigned long long inode;
    int end = 0;

    /* NOLINTNEXTLINE(cert-err34-c): a name that is not ours names no VM */
    if (sscanf(text, "vm%u-%llx-%u.session%n", &vm_id, &inode, &slot, &end) != 3 || end == 0 ||
        text[end] != '\0' || vm_id == 0 || slot >= VGPU_SLOTS_MAX)
        return false;
    *ret_name = (struct name){vm_id, inode, slot};
    return true;
}

static bool is_old(int directory, const char *name)
{
    struct stat info;

    return fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
           (uint64_t)info.st_mtime + DEAD_FILES_S < clock_realtime_ns() / NS_PER_S;
}

static int end_holder(struct mediator *mediator, const char *file, struct vgpu_error *error)
{
    char path[PATH_MAX + 300];

    snprintf(path, sizeof(path), "%s/sessions/%s", mediator->config->run_dir, file);
    return exec_session_end_holder(path, error);
}

static void remove_pair(int directory, const char *file)
{
    char socket[NAME_MAX + 1], trace[NAME_MAX + 16];

    unlinkat(directory, file, 0);
    snprintf(socket, sizeof(socket), "%.*s.sock", (int)(strlen(file) - strlen(".session")), file);
    unlinkat(directory, socket, 0);
    snprintf(trace, sizeof(trace), "../" TRACE_DIRECTORY "/%.*s.trace",
             (int)(strlen(file) - strlen(".session")), file);
    unlinkat(directory, trace, 0);
}

/* Whoever lives is adopted or ended before anything runs: nobody works unwatched. */
static int adopt(struct mediator *mediator, int directory, const char *file,
                 const struct name *name, struct vgpu_error *error)
{
    struct vm *vm = vm_find(mediator, name->vm_id);
    struct vgpu_error why;

    if (!vm) {
        log_warning("vm%u is not registered any more: its session '%s' is ended", name->vm_id,
                    file);
        if (end_holder(mediator, file, error) < 0)
            return -1;
        remove_pair(directory, file);
        return 0;
    }
    if (window_session_adopt(vm, name->slot, name->inode, &why) == 0) {
        log_info("vm%u: slot %u: its worker lives: going on", name->vm_id, name->slot);
        return 0;
    }
    if (why.code != ENOENT)
        log_warning("vm%u: slot %u: its worker lives and cannot be taken over: ending it: %s",
                    name->vm_id, name->slot, why.message);
    /* From now on its owner has DEAD_FILES_S to come and ask what was answered. */
    utimensat(directory, file, NULL, AT_SYMLINK_NOFOLLOW);
    return end_holder(mediator, file, error);
}

/* --- files that nobody asked for --------------------------------------------------------- */

/* "vm7.account", of a VM that has no session any more. */
static bool is_unused_account(struct mediator *mediator, const char *file)
{
    unsigned vm_id;
    int end = 0;
    const struct vm *vm;

    /* NOLINTNEXTLINE(cert-err34-c): a name that is not ours names no VM */
    if (sscanf(file, "vm%u.account%n", &vm_id, &end) != 1 || end == 0 || file[end] != '\0')
        return false;
    vm = vm_find(mediator, vm_id);
    return !vm || !vm->account;
}

static bool is_in_use(struct mediator *mediator, const char *file, const struct name *name)
{
    struct vm *vm = vm_find(mediator, name->vm_id);
    char path[PATH_MAX + 300];
    struct window_session *ws;

    if (vm) {
        TAILQ_FOREACH (ws, &vm->windows, in_vm) {
            if (ws->slot == name->slot && ws->identity.window_inode == name->inode)
                return true;
        }
    }
    snprintf(path, sizeof(path), "%s/sessions/%s", mediator->config->run_dir, file);
    return exec_session_is_held(path);
}

static void sweep_one(struct mediator *mediator, int directory, const char *file)
{
    const char *end = strstr(file, ".sock");
    char memory[NAME_MAX + 1];
    struct name name;

    if (!is_old(directory, file))
        return;
    if (is_unused_account(mediator, file)) {
        unlinkat(directory, file, 0);
    } else if (parse_name(file, &name) && !is_in_use(mediator, file, &name)) {
        remove_pair(directory, file);
    } else if (end && strcmp(end, ".sock") == 0) {
        snprintf(memory, sizeof(memory), "%.*s.session", (int)(end - file), file);
        if (parse_name(memory, &name) && faccessat(directory, memory, F_OK, 0) < 0)
            unlinkat(directory, file, 0);
    }
}

static void on_sweep(uv_timer_t *timer)
{
    struct mediator *mediator = timer->data;
    char path[PATH_MAX + 16];
    struct dirent *entry;
    DIR *directory;

    snprintf(path, sizeof(path), "%s/sessions", mediator->config->run_dir);
    directory = opendir(path);
    if (!directory)
        return;
    while ((entry = readdir(directory)))
        sweep_one(mediator, dirfd(directory), entry->d_name);
    closedir(directory);
}

static void settle_accounts(struct mediator *mediator)
{
    struct vm *vm, *next;

    HASH_ITER (hh, mediator->vms, vm, next)
        account_settle(vm);
}

int adoption_start(struct mediator *mediator, struct vgpu_error *error)
{
    char path[PATH_MAX + 16];
    struct dirent *entry;
    struct name name;
    DIR *directory;
    int result = 0;

    snprintf(path, sizeof(path), "%s/sessions", mediator->config->run_dir);
    if (fd_make_directories(mediator->config->run_dir, 0755, error) < 0 ||
        fd_make_directories(path, 0700, error) < 0)
        return -1;
    directory = opendir(path);
    if (!directory)
        return error_set_errno(error, "cannot read '%s'", path);
    while (result == 0 && (entry = readdir(directory))) {
        if (parse_name(entry->d_name, &name))
            result = adopt(mediator, dirfd(directory), entry->d_name, &name, error);
    }
    closedir(directory);
    settle_accounts(mediator);
    mediator->sweep_timer.data = mediator;
    uv_timer_start(&mediator->sweep_timer, on_sweep, SWEEP_MS, SWEEP_MS);
    return result;
}

void adoption_settled(struct mediator *mediator)
{
    if (--mediator->adopting == 0)
        mediator_recovered(mediator);
}

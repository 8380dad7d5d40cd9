/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's directory in the share, as the mediator makes it too (src/channel/), with
 * its export:
 *
 *   share/vm7/                               owner and mode of the registry
 *   share/.retired/vm7-20260131T120000Z/     of VMs that are gone: for root alone
 *
 * The guest owns what is in its directory and may change it at any time: names are
 * opened without following links and looked at before they are changed.  All this
 * happens under share_lock(), so two administrators take turns.
 */
#include "admin/exports.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SAFE_OPEN (O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)
#define RETIRED ".retired"
#define SAME_SECOND_MAX 1000

/* Those that the protocol knows. */
static const char *const file_names[] = {"request.txt", "response.txt", "command.txt"};

static bool has_share(const struct admin *admin, const struct store_vm *vm)
{
    return admin->share[0] && (vm->channels & STORE_CHANNEL_FILE);
}

static void directory_name(uint32_t vm_id, char name[24])
{
    snprintf(name, 24, "vm%u", vm_id);
}

/* Never over another.  By number: older C libraries have no function for it. */
static int rename_new(int share_fd, const char *from, const char *to)
{
    return (int)syscall(SYS_renameat2, share_fd, from, share_fd, to, RENAME_NOREPLACE);
}

static int open_share(struct admin *admin, struct vgpu_error *error)
{
    int fd;

    if (fd_make_directories(admin->share, 0711, error) < 0) {
        admin->failed_exit = ADMIN_FAILED;
        return -1;
    }
    fd = open(admin->share, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        admin->failed_exit = ADMIN_FAILED;
        return error_set_errno(error, "cannot open the share '%s'", admin->share);
    }
    return fd;
}

/* --- turns ------------------------------------------------------------------------------- */

int share_lock(struct admin *admin, int *ret_fd, struct vgpu_error *error)
{
    char path[sizeof(admin->database_path)];
    int fd;

    /* The database's directory: it is always there, also where there is no share yet. */
    text_copy(path, sizeof(path), admin->database_path);
    fd = open(dirname(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX) < 0) {
        admin->failed_exit = ADMIN_DATABASE;
        error_set_errno(error, "cannot take a turn at the directory of '%s'", admin->database_path);
        fd_close(&fd);
        return -1;
    }
    *ret_fd = fd;
    return 0;
}

int share_check_row(const struct store_vm *tried, const struct store_vm *now,
                    struct vgpu_error *error)
{
    if (tried->vm_id == now->vm_id && tried->created_us == now->created_us &&
        tried->changed_us == now->changed_us)
        return 0;
    return error_set(error, EBUSY,
                     "VM %u was changed by somebody else meanwhile: look at it, and "
                     "give the command again",
                     tried->vm_id);
}

/* --- the directory ------------------------------------------------------------------------- */

static int apply_owner(int fd, uid_t uid, gid_t gid, mode_t mode)
{
    struct stat info;

    if (fstat(fd, &info) < 0)
        return -1;
    if (((uid != (uid_t)-1 && uid != info.st_uid) || (gid != (gid_t)-1 && gid != info.st_gid)) &&
        fchown(fd, uid, gid) < 0)
        return -1;
    if ((info.st_mode & 07777) != mode && fchmod(fd, mode) < 0)
        return -1;
    return 0;
}

static int open_directory(int share_fd, uint32_t vm_id, struct vgpu_error *error)
{
    char name[24];
    int fd;

    directory_name(vm_id, name);
    fd = openat(share_fd, name, O_RDONLY | O_DIRECTORY | SAFE_OPEN);
    if (fd < 0)
        return error_set_errno(error, "cannot open directory '%s' in the share", name);
    return fd;
}

/* They belong to the directory's owner. */
static void give_files(int fd, uid_t uid, gid_t gid, mode_t mode)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(file_names); i++) {
        int file = openat(fd, file_names[i], O_RDONLY | SAFE_OPEN);
        struct stat info;

        /* What cannot be given, the mediator makes anew when it meets it. */
        if (file >= 0 && fstat(file, &info) == 0 && S_ISREG(info.st_mode) && info.st_nlink == 1 &&
            apply_owner(file, uid, gid, mode & 0666) < 0)
            errno = 0;
        fd_close(&file);
    }
}

static int give_directory(int share_fd, const struct store_vm *vm, struct share_undo *undo,
                          struct vgpu_error *error)
{
    uid_t uid = vm->owner_uid < 0 ? (uid_t)-1 : (uid_t)vm->owner_uid;
    gid_t gid = vm->owner_gid < 0 ? (gid_t)-1 : (gid_t)vm->owner_gid;
    int fd = open_directory(share_fd, vm->vm_id, error);
    struct stat info;

    if (fd < 0)
        return -1;
    if (fstat(fd, &info) < 0 || apply_owner(fd, uid, gid, vm->mode) < 0) {
        error_set_errno(error, "cannot give directory 'vm%u' owner %lld:%lld and mode %04o",
                        vm->vm_id, (long long)vm->owner_uid, (long long)vm->owner_gid, vm->mode);
        fd_close(&fd);
        return -1;
    }
    if (!undo->made) {
        undo->mended = true;
        undo->uid = info.st_uid;
        undo->gid = info.st_gid;
        undo->mode = info.st_mode & 07777;
        give_files(fd, uid, gid, vm->mode);
    }
    fd_close(&fd);
    return 0;
}

static int make_directory(int share_fd, const struct store_vm *vm, struct share_undo *undo,
                          struct vgpu_error *error)
{
    char name[24];

    directory_name(vm->vm_id, name);
    if (mkdirat(share_fd, name, 0700) == 0)
        undo->made = true;
    else if (errno != EEXIST)
        return error_set_errno(error, "cannot make directory '%s' in the share", name);
    return give_directory(share_fd, vm, undo, error);
}

/* --- its export --------------------------------------------------------------------------------
 */

static bool same_text(const char *one, const char *other)
{
    return one && other ? strcmp(one, other) == 0 : one == other;
}

/* The export of `from` goes, that of `vm` (when there is one) comes.  The address of a
 * fresh one is never that of a file which an earlier VM of this number left. */
static int change_exports(struct admin *admin, const struct store_vm *vm, uint32_t from,
                          const char *address, bool fresh, struct share_undo *undo,
                          struct vgpu_error *error)
{
    uint32_t to = vm ? vm->vm_id : from;
    char *text = NULL;
    int result = 0;

    if (admin->exports_kind == EXPORTS_NONE)
        return address ? error_set(error, EINVAL,
                                   "--address is for exports, and [admin] exports_kind in the "
                                   "configuration is none: set it to ganesha or kernel")
                       : 0;
    undo->export_from = exports_read(admin, from);
    undo->export_to = to != from ? exports_read(admin, to) : NULL;
    if (vm) {
        text = exports_text(admin, vm, address, fresh ? NULL : undo->export_from, error);
        if (!text)
            return -1;
    }
    undo->exported = true;
    if (!same_text(text, to == from ? undo->export_from : undo->export_to))
        result = exports_write(admin, to, text, error);
    fault_point("share-exported");
    if (result == 0 && to != from) /* last: it alone knows the address until then */
        result = exports_write(admin, from, NULL, error);
    if (result == 0 && !(to == from && same_text(text, undo->export_from)))
        result = exports_reload(admin, error);
    free(text);
    return result;
}

/* --- make, move, retire
 * ---------------------------------------------------------------------------- */

void share_done(struct share_undo *undo)
{
    free(undo->export_from);
    free(undo->export_to);
    *undo = (struct share_undo){0};
}

/* What was done before the failure is undone; the failure is what is told. */
static int fail_undone(struct admin *admin, int share_fd, struct share_undo *undo,
                       struct vgpu_error *error)
{
    struct vgpu_error second;

    admin->failed_exit = ADMIN_FAILED; /* a missing file is no missing VM */
    fd_close(&share_fd);
    if (share_undo(admin, undo, &second) < 0 && error) {
        struct vgpu_error first = *error;

        error_set(error, first.code, "%.300s (and could not be undone: %.150s)", first.message,
                  second.message);
    }
    return -1;
}

static int refuse_existing(const char *name, struct vgpu_error *error)
{
    return error_set(error, EEXIST,
                     "directory '%s' is in the share already: move it away, or choose another id",
                     name);
}

static int move_directory(int share_fd, uint32_t from, uint32_t to, struct vgpu_error *error)
{
    char old[24], new[24];

    directory_name(from, old);
    directory_name(to, new);
    if (rename_new(share_fd, old, new) == 0)
        return 0;
    if (errno == EEXIST)
        return refuse_existing(new, error);
    return error_set_errno(error, "cannot rename directory '%s' to '%s' in the share", old, new);
}

/* What stands there is another's. */
static int check_free(int share_fd, uint32_t vm_id, struct vgpu_error *error)
{
    char name[24];

    directory_name(vm_id, name);
    return faccessat(share_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0 ? refuse_existing(name, error)
                                                                     : 0;
}

int share_move(struct admin *admin, const struct store_vm *before, const struct store_vm *after,
               struct share_undo *undo, struct vgpu_error *error)
{
    char old[24];
    int share_fd;

    *undo = (struct share_undo){.from = before->vm_id, .to = after->vm_id};
    if (!has_share(admin, after))
        return 0;
    directory_name(before->vm_id, old);
    share_fd = open_share(admin, error);
    if (share_fd < 0)
        return -1;
    if (faccessat(share_fd, old, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
        if (move_directory(share_fd, before->vm_id, after->vm_id, error) < 0)
            return fail_undone(admin, share_fd, undo, error);
        undo->moved = true;
    } else if (check_free(share_fd, after->vm_id, error) < 0 ||
               make_directory(share_fd, after, undo, error) < 0) {
        return fail_undone(admin, share_fd, undo, error);
    }
    fault_point("share-moved");
    if (change_exports(admin, after, before->vm_id, NULL, false, undo, error) < 0)
        return fail_undone(admin, share_fd, undo, error);
    fd_close(&share_fd);
    return 0;
}

static int retire_path(int share_fd, const char *from, uint32_t vm_id, char aside[64],
                       struct vgpu_error *error)
{
    time_t now = (time_t)(clock_realtime_ns() / NS_PER_S);
    char name[24], when[24];
    struct tm broken;

    directory_name(vm_id, name);
    if (mkdirat(share_fd, RETIRED, 0700) < 0 && errno != EEXIST)
        return error_set_errno(error, "cannot make directory '" RETIRED "' in the share");
    gmtime_r(&now, &broken);
    strftime(when, sizeof(when), "%Y%m%dT%H%M%SZ", &broken);
    for (unsigned i = 1; i < SAME_SECOND_MAX; i++) {
        char path[64];

        snprintf(path, sizeof(path), i == 1 ? RETIRED "/%s-%s" : RETIRED "/%s-%s-%u", name, when,
                 i);
        if (rename_new(share_fd, from, path) == 0) {
            text_copy(aside, 64, path);
            return 0;
        }
        if (errno != EEXIST)
            break;
    }
    return error_set_errno(error, "cannot move directory '%s' of the share to '%s/'", from,
                           RETIRED);
}

static int retire_directory(int share_fd, uint32_t vm_id, char aside[64], struct vgpu_error *error)
{
    char name[24];

    directory_name(vm_id, name);
    return retire_path(share_fd, name, vm_id, aside, error);
}

int share_retire(struct admin *admin, const struct store_vm *vm, struct share_undo *undo,
                 struct vgpu_error *error)
{
    char name[24];
    int share_fd;

    *undo = (struct share_undo){.from = vm->vm_id, .to = vm->vm_id};
    if (!has_share(admin, vm))
        return 0;
    directory_name(vm->vm_id, name);
    share_fd = open_share(admin, error);
    if (share_fd < 0)
        return -1;
    if (change_exports(admin, NULL, vm->vm_id, NULL, false, undo, error) < 0)
        return fail_undone(admin, share_fd, undo, error);
    if (faccessat(share_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
        if (retire_directory(share_fd, vm->vm_id, undo->aside, error) < 0)
            return fail_undone(admin, share_fd, undo, error);
        undo->retired = true;
    }
    fd_close(&share_fd);
    return 0;
}

/* Only what the mediator puts into a directory that it makes, before any guest was
 * there: nothing that anybody could miss. */
static bool is_fresh(int fd, const char *name)
{
    int file = openat(fd, name, O_RDONLY | SAFE_OPEN);
    char text[16] = "";
    struct stat info;
    bool fresh = file >= 0 && fstat(file, &info) == 0 && S_ISREG(info.st_mode) &&
                 info.st_size < (off_t)sizeof(text) &&
                 fd_pread_all(file, text, (size_t)info.st_size, 0) == 0 &&
                 (text[0] == '\0' || strcmp(text, "0:Ready\n") == 0);

    fd_close(&file);
    return fresh || (file < 0 && errno == ENOENT);
}

/* All that is in it is as the mediator made it. */
static bool is_fresh_directory(int fd)
{
    DIR *names = fdopendir(openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    const struct dirent *entry;
    bool fresh = names != NULL;

    while (fresh && (entry = readdir(names))) {
        bool known = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;

        for (size_t i = 0; !known && i < VGPU_ARRAY_LENGTH(file_names); i++)
            known = strcmp(entry->d_name, file_names[i]) == 0 && is_fresh(fd, file_names[i]);
        fresh = known;
    }
    if (names)
        closedir(names);
    return fresh;
}

/* What an earlier VM of this number left is none of the new one's business. */
static int clear_foreign(int share_fd, uint32_t vm_id, struct share_undo *undo,
                         struct vgpu_error *error)
{
    char name[24];
    bool fresh;
    int fd;

    directory_name(vm_id, name);
    if (faccessat(share_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    fd = open_directory(share_fd, vm_id, error);
    if (fd < 0)
        return -1;
    fresh = is_fresh_directory(fd);
    fd_close(&fd);
    if (fresh)
        return 0;
    if (retire_directory(share_fd, vm_id, undo->aside, error) < 0)
        return -1;
    undo->retired = true;
    return 0;
}

static int make_share(struct admin *admin, const struct store_vm *vm, const char *address,
                      bool fresh, struct share_undo *undo, struct vgpu_error *error)
{
    int share_fd;

    *undo = (struct share_undo){.from = vm->vm_id, .to = vm->vm_id};
    if (!has_share(admin, vm))
        return address ? error_set(error, EINVAL,
                                   "--address is for the file channel's export, and VM %u has %s",
                                   vm->vm_id,
                                   admin->share[0] ? "no file channel" : "no share on this host")
                       : 0;
    share_fd = open_share(admin, error);
    if (share_fd < 0)
        return -1;
    if ((fresh && clear_foreign(share_fd, vm->vm_id, undo, error) < 0) ||
        make_directory(share_fd, vm, undo, error) < 0 ||
        change_exports(admin, vm, vm->vm_id, address, fresh, undo, error) < 0)
        return fail_undone(admin, share_fd, undo, error);
    fd_close(&share_fd);
    return 0;
}

int share_make(struct admin *admin, const struct store_vm *vm, const char *address,
               struct share_undo *undo, struct vgpu_error *error)
{
    return make_share(admin, vm, address, false, undo, error);
}

int share_make_new(struct admin *admin, const struct store_vm *vm, const char *address,
                   struct share_undo *undo, struct vgpu_error *error)
{
    return make_share(admin, vm, address, true, undo, error);
}

/* Removes a directory that is as the mediator made it a moment ago. */
static bool discard_fresh(int share_fd, uint32_t vm_id)
{
    struct vgpu_error ignored;
    int fd = open_directory(share_fd, vm_id, &ignored);
    bool fresh = fd >= 0;
    char name[24];

    for (size_t i = 0; fresh && i < VGPU_ARRAY_LENGTH(file_names); i++)
        fresh = is_fresh(fd, file_names[i]);
    for (size_t i = 0; fresh && i < VGPU_ARRAY_LENGTH(file_names); i++)
        fresh = unlinkat(fd, file_names[i], 0) == 0 || errno == ENOENT;
    fd_close(&fd);
    directory_name(vm_id, name);
    /* Whatever else is in it keeps it. */
    return fresh && unlinkat(share_fd, name, AT_REMOVEDIR) == 0;
}

/* A mediator that still knows the VM has made it anew meanwhile. */
static int clear_directory(int share_fd, uint32_t vm_id, struct vgpu_error *error)
{
    char aside[64], name[24];

    directory_name(vm_id, name);
    if (faccessat(share_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0 || discard_fresh(share_fd, vm_id))
        return 0;
    return retire_directory(share_fd, vm_id, aside, error);
}

void share_sweep(struct admin *admin, uint32_t vm_id)
{
    struct vgpu_error ignored;
    int share_fd = admin->share[0] ? open_share(admin, &ignored) : -1;

    if (share_fd >= 0)
        clear_directory(share_fd, vm_id, &ignored);
    fd_close(&share_fd);
}

/* --- many at once ------------------------------------------------------------------------------
 *
 *   vm90 ─┐ park                     settle ┌─▶ vm91
 *   vm91 ─┴──▶ .moving/WHO ═▶ .moved/WHO ───┴─▶ .retired/
 *
 * The name of the directory between tells how far an interrupted exchange came; beside
 * each VM's directory its export waits.
 */

#define MOVING ".moving"
#define MOVED ".moved"

static void parked_name(const char *place, const struct store_vm *vm, const char *end,
                        char name[96])
{
    snprintf(name, 96, "%s/%llu-%u%s", place, (unsigned long long)vm->created_us, vm->vm_id, end);
}

static bool is_there(int share_fd, const char *name)
{
    return faccessat(share_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* The file of an export lies in the share meanwhile, where root alone comes. */
static int park_export(const struct admin *admin, int share_fd, const struct store_vm *vm,
                       struct vgpu_error *error)
{
    char name[96], *text = exports_read(admin, vm->vm_id);
    int fd, result = 0;

    parked_name(MOVING, vm, ".export", name);
    if (text && !is_there(share_fd, name)) {
        fd = openat(share_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        result = fd < 0 ? -1 : fd_pwrite_all(fd, text, strlen(text), 0);
        if (result < 0)
            error_set_errno(error, "cannot keep the export of VM %u in the share", vm->vm_id);
        fd_close(&fd);
    }
    if (text && result == 0)
        result = exports_write(admin, vm->vm_id, NULL, error);
    free(text);
    return result;
}

int share_park(struct admin *admin, const struct store_vm *vm, struct vgpu_error *error)
{
    char name[24], parked[96];
    int share_fd, result = 0;

    if (!has_share(admin, vm))
        return 0;
    share_fd = open_share(admin, error);
    if (share_fd < 0)
        return -1;
    directory_name(vm->vm_id, name);
    parked_name(MOVING, vm, "", parked);
    if (is_there(share_fd, MOVING) && !is_there(share_fd, parked) &&
        rename_new(share_fd, name, parked) < 0 && errno != ENOENT)
        result = error_set_errno(error, "cannot move directory '%s' of the share aside", name);
    if (result == 0 && is_there(share_fd, MOVING) && admin->exports_kind != EXPORTS_NONE)
        result = park_export(admin, share_fd, vm, error);
    fd_close(&share_fd);
    return result;
}

/* The export as it was parked; NULL: it had none. */
static char *parked_export(int share_fd, const struct store_vm *vm)
{
    char name[96], *text = calloc(1, 8192);
    int fd;

    parked_name(MOVED, vm, ".export", name);
    fd = openat(share_fd, name, O_RDONLY | SAFE_OPEN);
    if (fd < 0 || !text || read(fd, text, 8191) < 0) {
        free(text);
        text = NULL;
    }
    fd_close(&fd);
    return text;
}

static int settle_export(const struct admin *admin, int share_fd, const struct store_vm *before,
                         const struct store_vm *after, struct vgpu_error *error)
{
    char name[96], *old = parked_export(share_fd, before), *text = NULL;
    int result = 0;

    if (old && after) {
        text = exports_text(admin, after, NULL, old, error);
        result = text ? exports_write(admin, after->vm_id, text, error) : -1;
    }
    if (old && result == 0)
        result = exports_reload(admin, error);
    parked_name(MOVED, before, ".export", name);
    if (result == 0)
        unlinkat(share_fd, name, 0);
    free(text);
    free(old);
    return result;
}

int share_settle(struct admin *admin, const struct store_vm *before, const struct store_vm *after,
                 struct vgpu_error *error)
{
    char name[24], parked[96], aside[64];
    int share_fd, result = 0;

    if (!has_share(admin, before))
        return 0;
    share_fd = open_share(admin, error);
    if (share_fd < 0)
        return -1;
    parked_name(MOVED, before, "", parked);
    if (is_there(share_fd, parked) && after) {
        directory_name(after->vm_id, name);
        result = clear_directory(share_fd, after->vm_id, error);
        if (result == 0 && rename_new(share_fd, parked, name) < 0)
            result = error_set_errno(error, "cannot move '%s' of the share to '%s'", parked, name);
    } else if (is_there(share_fd, parked)) {
        result = retire_path(share_fd, parked, before->vm_id, aside, error);
    }
    if (result == 0)
        result = settle_export(admin, share_fd, before, after, error);
    fd_close(&share_fd);
    return result;
}

/* Nothing where there is no share. */
static int change_exchange(struct admin *admin, int (*change)(int share_fd),
                           struct vgpu_error *error)
{
    int share_fd, result;

    if (!admin->share[0])
        return 0;
    share_fd = open_share(admin, error);
    if (share_fd < 0)
        return -1;
    result = change(share_fd);
    if (result < 0)
        error_set_errno(error, "cannot exchange directories in the share '%s'", admin->share);
    fd_close(&share_fd);
    return result;
}

static int begin_exchange(int share_fd)
{
    return mkdirat(share_fd, MOVING, 0700) == 0 || errno == EEXIST ? 0 : -1;
}

static int cancel_exchange(int share_fd)
{
    return unlinkat(share_fd, MOVING, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : -1;
}

static int turn_exchange(int share_fd)
{
    return rename_new(share_fd, MOVING, MOVED) == 0 || errno == ENOENT ? 0 : -1;
}

static int end_exchange(int share_fd)
{
    return unlinkat(share_fd, MOVED, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : -1;
}

int share_begin_exchange(struct admin *admin, struct vgpu_error *error)
{
    return change_exchange(admin, begin_exchange, error);
}

void share_cancel_exchange(struct admin *admin)
{
    struct vgpu_error ignored;

    change_exchange(admin, cancel_exchange, &ignored);
}

int share_turn_exchange(struct admin *admin, struct vgpu_error *error)
{
    return change_exchange(admin, turn_exchange, error);
}

int share_end_exchange(struct admin *admin, struct vgpu_error *error)
{
    return change_exchange(admin, end_exchange, error);
}

/* --- after a move that was killed --------------------------------------------------------------
 */

uint64_t share_inode(const struct admin *admin, const struct store_vm *vm)
{
    char path[sizeof(admin->share) + 32];
    struct stat info;

    if (!has_share(admin, vm))
        return 0;
    snprintf(path, sizeof(path), "%s/vm%u", admin->share, vm->vm_id);
    return lstat(path, &info) == 0 && S_ISDIR(info.st_mode) ? info.st_ino : 0;
}

static bool is_moved(int share_fd, uint32_t vm_id, uint64_t inode)
{
    struct vgpu_error ignored;
    int fd = open_directory(share_fd, vm_id, &ignored);
    struct stat info;
    bool moved =
        fd >= 0 && fstat(fd, &info) == 0 && (inode ? info.st_ino == inode : is_fresh_directory(fd));

    fd_close(&fd);
    return moved;
}

static int rewind_directory(int share_fd, uint32_t from, uint32_t to, uint64_t inode,
                            struct vgpu_error *error)
{
    if (!is_moved(share_fd, to, inode))
        return 0;
    /* A mediator that knows the old number may have made that one anew. */
    return clear_directory(share_fd, from, error) < 0 ? -1
                                                      : move_directory(share_fd, to, from, error);
}

/* The address stands in either, or in both. */
static int rewind_export(const struct admin *admin, const struct store_vm *before,
                         const struct store_vm *after, struct vgpu_error *error)
{
    char *from = exports_read(admin, before->vm_id), *to = exports_read(admin, after->vm_id);
    char *text = to && !from ? exports_text(admin, before, NULL, to, error) : NULL;
    int result = to && !from && !text ? -1 : 0;

    if (text)
        result = exports_write(admin, before->vm_id, text, error);
    if (to && result == 0)
        result = exports_write(admin, after->vm_id, NULL, error);
    if (to && result == 0)
        result = exports_reload(admin, error);
    free(from);
    free(to);
    free(text);
    return result;
}

int share_rewind(struct admin *admin, const struct store_vm *before, const struct store_vm *after,
                 uint64_t inode, struct vgpu_error *error)
{
    int share_fd, result;

    if (!has_share(admin, before))
        return 0;
    share_fd = open_share(admin, error);
    if (share_fd < 0)
        return -1;
    result = rewind_directory(share_fd, before->vm_id, after->vm_id, inode, error);
    fd_close(&share_fd);
    if (result == 0 && admin->exports_kind != EXPORTS_NONE)
        result = rewind_export(admin, before, after, error);
    return result;
}

/* --- the way back --------------------------------------------------------------------------------
 */

static int undo_directory(int share_fd, struct share_undo *undo, struct vgpu_error *error)
{
    char name[24], to[24];

    directory_name(undo->from, name);
    directory_name(undo->to, to);
    if (undo->made && unlinkat(share_fd, to, AT_REMOVEDIR) < 0 && errno != ENOENT &&
        errno != ENOTEMPTY) /* the mediator has files in it by now */
        return error_set_errno(error, "cannot remove directory '%s' in the share", to);
    if (undo->mended) {
        int fd = open_directory(share_fd, undo->to, error);

        if (fd < 0)
            return -1;
        if (apply_owner(fd, undo->uid, undo->gid, undo->mode) == 0)
            give_files(fd, undo->uid, undo->gid, undo->mode);
        fd_close(&fd);
    }
    if ((undo->moved || undo->retired) && clear_directory(share_fd, undo->from, error) < 0)
        return -1;
    if (undo->moved)
        return move_directory(share_fd, undo->to, undo->from, error);
    if (undo->retired && rename_new(share_fd, undo->aside, name) < 0)
        return error_set_errno(error, "cannot move '%s' of the share back to '%s'", undo->aside,
                               name);
    return 0;
}

static int undo_exports(struct admin *admin, struct share_undo *undo, struct vgpu_error *error)
{
    struct vgpu_error ignored;

    if (!undo->exported)
        return 0;
    if (exports_write(admin, undo->from, undo->export_from, error) < 0 ||
        (undo->to != undo->from && exports_write(admin, undo->to, undo->export_to, error) < 0))
        return -1;
    exports_reload(admin, &ignored); /* why it failed is told already */
    return 0;
}

int share_undo(struct admin *admin, struct share_undo *undo, struct vgpu_error *error)
{
    bool directory = undo->made || undo->mended || undo->moved || undo->retired;
    int share_fd, result = 0;

    if (directory) {
        share_fd = open_share(admin, error);
        result = share_fd < 0 ? -1 : undo_directory(share_fd, undo, error);
        fd_close(&share_fd);
    }
    if (undo_exports(admin, undo, result < 0 ? NULL : error) < 0)
        result = -1;
    share_done(undo);
    return result;
}

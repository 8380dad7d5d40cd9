/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a renumbering that is killed cannot say itself: beside the database, one small
 * file a VM that is being renumbered,
 *
 *   vgpu.db.renumber-CREATED    from, to, the directory's inode, whether the VM ran
 *
 * A VM is known by the instant of its registration, which no change touches.  The file
 * is there from before the first step to behind the last one: who finds it finds an
 * interrupted call.
 */
#include "admin/renumber.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define KIND 0x4d554e52u /* "RNUM" */

static int journal_path(const struct admin *admin, uint64_t created_us, char path[PATH_MAX],
                        struct vgpu_error *error)
{
    if (snprintf(path, PATH_MAX, "%s.renumber-%llu", admin->database_path,
                 (unsigned long long)created_us) < PATH_MAX)
        return 0;
    return error_set(error, ENAMETOOLONG, "%s: its name is too long", admin->database_path);
}

int renumber_journal_write(const struct admin *admin, uint64_t created_us,
                           const struct renumber_journal *journal, struct vgpu_error *error)
{
    struct renumber_journal ignored;
    struct record_file file;
    char path[PATH_MAX];
    int fd, result;

    if (journal_path(admin, created_us, path, error) < 0)
        return -1;
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set_errno(error, "cannot write '%s'", path);
    result = record_file_load(&file, fd, KIND, &ignored, sizeof(ignored), error);
    if (result >= 0)
        result = record_file_store(&file, KIND, journal, true, error);
    if (result == 0 && fd_sync_parent(path) < 0)
        result = error_set_errno(error, "cannot sync the directory of '%s'", path);
    fd_close(&fd);
    return result;
}

bool renumber_journal_read(const struct admin *admin, uint64_t created_us,
                           struct renumber_journal *ret_journal)
{
    struct vgpu_error ignored;
    struct record_file file;
    char path[PATH_MAX];
    bool found;
    int fd;

    if (journal_path(admin, created_us, path, &ignored) < 0)
        return false;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    found = fd >= 0 &&
            record_file_load(&file, fd, KIND, ret_journal, sizeof(*ret_journal), &ignored) > 0;
    fd_close(&fd);
    return found;
}

void renumber_journal_remove(const struct admin *admin, uint64_t created_us)
{
    struct vgpu_error ignored;
    char path[PATH_MAX];

    if (journal_path(admin, created_us, path, &ignored) == 0)
        unlink(path);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal of one VM: the request that is owed an answer.
 *
 *   IDLE ── accept (synced) ──▶ ACCEPTED ── answer known ──▶ ANSWERING
 *    ▲                                                          │
 *    └──────────── answer stands in response.txt ───────────────┘
 *
 * A malformed request goes to ANSWERING at once.  The file lies outside the
 * share, so no guest can reach it.
 *
 * A VM of the registry is known by its identity and not by its number, which may be
 * another VM's tomorrow: its journal is vm-IDENTITY.journal.  So nobody meets what an
 * earlier VM of the number was owed, and who gets another number keeps the own.
 */
#include "channel/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define JOURNAL_KIND 0x4a524e4cu /* "JRNL" */

/* A journal's first record goes to the second place: until it is there, the file
 * is empty or, when that write was cut off, begins with nothing. */
static bool is_unwritten(int fd)
{
    char bytes[sizeof(struct journal_entry)] = {0};
    static const char nothing[sizeof(bytes)];
    ssize_t got = pread(fd, bytes, sizeof(bytes), 0);
    struct stat info;

    return got >= 0 && memcmp(bytes, nothing, (size_t)got) == 0 && fstat(fd, &info) == 0 &&
           info.st_size < (off_t)(2 * sizeof(struct journal_entry));
}

/* A VM with an identity may have had another number when this was written. */
static bool entry_is_sane(const struct journal_entry *entry, uint32_t vm_id, uint64_t identity)
{
    return (identity || entry->vm_id == vm_id) && entry->state <= JOURNAL_ANSWERING &&
           memchr(entry->command, '\0', sizeof(entry->command)) &&
           memchr(entry->answer, '\0', sizeof(entry->answer));
}

static void journal_name(uint32_t vm_id, uint64_t identity, char name[40])
{
    if (identity)
        snprintf(name, 40, "vm-%llu.journal", (unsigned long long)identity);
    else
        snprintf(name, 40, "vm%u.journal", vm_id);
}

int journal_open(struct journal *journal, int state_fd, uint32_t vm_id, uint64_t identity,
                 struct vgpu_error *error)
{
    struct journal_entry entry = {.vm_id = vm_id};
    struct record_file file;
    char name[40];
    int fd, found;

    journal_name(vm_id, identity, name);
    fd = openat(state_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set_errno(error, "cannot open journal '%s' in the state directory", name);
    found = record_file_load(&file, fd, JOURNAL_KIND, &entry, sizeof(entry), error);
    if (found < 0)
        goto failed;
    if (found == 0 && !is_unwritten(fd)) {
        error_set(error, EBADMSG, "journal '%s' holds no valid entry: move it away to go on", name);
        goto failed;
    }
    if (found > 0 && !entry_is_sane(&entry, vm_id, identity)) {
        error_set(error, EBADMSG, "journal '%s' is not VM %u's: move it away to go on", name,
                  vm_id);
        goto failed;
    }
    if (found == 0)
        fsync(state_fd); /* the file's name must outlive a power cut as its contents do */
    journal->file = file;
    journal->entry = entry;
    journal->entry.vm_id = vm_id;
    return 0;

failed:
    fd_close(&fd);
    return -1;
}

int journal_store(struct journal *journal, bool sync, struct vgpu_error *error)
{
    return record_file_store(&journal->file, JOURNAL_KIND, &journal->entry, sync, error);
}

void journal_close(struct journal *journal)
{
    fd_close(&journal->file.fd);
}

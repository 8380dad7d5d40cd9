/* SPDX-License-Identifier: Apache-2.0 */
/* The journal of one VM: what is written is read again, what is foreign is left alone. */
#include "unit.h"

#include "channel/private.h"

#include <errno.h>
#include <fcntl.h>

struct place {
    char *directory;
    char path[512]; /* of VM 7's journal */
    int state_fd;
};

static int place_make(void **state)
{
    struct place *place = calloc(1, sizeof(*place));

    place->directory = unit_temporary_directory();
    snprintf(place->path, sizeof(place->path), "%s/vm7.journal", place->directory);
    place->state_fd = open(place->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *state = place;
    return 0;
}

static int place_remove(void **state)
{
    struct place *place = *state;

    close(place->state_fd);
    unit_remove_directory(place->directory);
    free(place);
    return 0;
}

static struct journal open_journal(const struct place *place)
{
    struct journal journal;
    struct vgpu_error error = {.message = ""};

    journal_open(&journal, place->state_fd, 7, 0, &error);
    assert_string_equal(error.message, "");
    return journal;
}

static void store(struct journal *journal, enum journal_state state, uint64_t sequence)
{
    struct vgpu_error error = {.message = ""};

    journal->entry.state = state;
    journal->entry.sequence = sequence;
    snprintf(journal->entry.command, sizeof(journal->entry.command), "PING %d", (int)sequence);
    journal_store(journal, true, &error);
    assert_string_equal(error.message, "");
}

static void write_file(const struct place *place, off_t offset, const void *bytes, size_t count)
{
    int fd = open(place->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_int_equal(fd_pwrite_all(fd, bytes, count, offset), 0);
    close(fd);
}

/* The journal must be refused with `reason` and stay as it is. */
static void assert_refused(const struct place *place, uint32_t vm_id, const char *reason)
{
    struct journal journal;
    struct vgpu_error error;
    struct stat before, after;

    assert_int_equal(stat(place->path, &before), 0);
    assert_int_equal(journal_open(&journal, place->state_fd, vm_id, 0, &error), -1);
    if (!strstr(error.message, reason))
        fail_msg("'%s' is not in '%s'", reason, error.message);
    assert_int_equal(stat(place->path, &after), 0);
    assert_int_equal(before.st_size, after.st_size);
    assert_memory_equal(&before.st_mtim, &after.st_mtim, sizeof(before.st_mtim));
}

static void new_journal_owes_nothing(void **state)
{
    struct place *place = *state;
    struct journal journal = open_journal(place);
    struct stat info;

    assert_int_equal(journal.entry.state, JOURNAL_IDLE);
    assert_int_equal(journal.entry.sequence, 0);
    assert_int_equal(journal.entry.vm_id, 7);
    assert_int_equal(stat(place->path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    journal_close(&journal);
}

static void newest_entry_is_read_again(void **state)
{
    struct journal journal = open_journal(*state);

    for (unsigned i = 1; i <= 5; i++) {
        store(&journal, JOURNAL_ACCEPTED, i);
        journal_close(&journal);
        journal = open_journal(*state);
        assert_int_equal(journal.entry.state, JOURNAL_ACCEPTED);
        assert_int_equal(journal.entry.sequence, i);
    }
    assert_string_equal(journal.entry.command, "PING 5");
    journal_close(&journal);
}

static void torn_newest_entry_leaves_the_one_before(void **state)
{
    struct place *place = *state;
    struct journal journal = open_journal(place);
    struct stat info;

    store(&journal, JOURNAL_ACCEPTED, 1); /* the second place */
    store(&journal, JOURNAL_ACCEPTED, 2); /* the first one */
    journal_close(&journal);
    assert_int_equal(stat(place->path, &info), 0);
    write_file(place, info.st_size / 4, "torn", 4);
    journal = open_journal(place);
    assert_int_equal(journal.entry.sequence, 1);
    journal_close(&journal);
}

static void first_entry_cut_off_is_a_new_journal(void **state)
{
    struct place *place = *state;
    struct journal journal = open_journal(place);

    store(&journal, JOURNAL_ACCEPTED, 1);
    journal_close(&journal);
    for (off_t size = 2 * sizeof(struct journal_entry) - 1; size >= 0; size -= 100) {
        assert_int_equal(truncate(place->path, size), 0);
        journal = open_journal(place);
        assert_int_equal(journal.entry.sequence, 0);
        journal_close(&journal);
    }
}

static void damaged_journal_is_refused_and_left_alone(void **state)
{
    struct place *place = *state;
    struct journal journal = open_journal(place);
    struct stat info;

    store(&journal, JOURNAL_ACCEPTED, 1);
    store(&journal, JOURNAL_ACCEPTED, 2);
    journal_close(&journal);
    assert_int_equal(stat(place->path, &info), 0);
    write_file(place, 100, "damage", 6);
    write_file(place, info.st_size / 2 + 100, "damage", 6);
    assert_refused(place, 7, "journal 'vm7.journal' holds no valid entry: move it away to go on");
}

static void foreign_file_is_refused_whatever_its_size(void **state)
{
    static const size_t sizes[] = {1, 10, 1000, 2500, 5000, 100000};
    struct place *place = *state;
    char *bytes = malloc(100000);

    memset(bytes, 'x', 100000);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(sizes); i++) {
        write_file(place, 0, bytes, sizes[i]);
        assert_refused(place, 7, "holds no valid entry");
    }
    free(bytes);
}

static void journal_of_another_vm_is_refused(void **state)
{
    struct place *place = *state;
    struct journal journal = open_journal(place);
    char other[600];

    store(&journal, JOURNAL_ACCEPTED, 1);
    journal_close(&journal);
    snprintf(other, sizeof(other), "%s/vm8.journal", place->directory);
    assert_int_equal(rename(place->path, other), 0);
    text_copy(place->path, sizeof(place->path), other);
    assert_refused(place, 8, "journal 'vm8.journal' is not VM 8's: move it away to go on");
}

static void journal_follows_a_vms_identity_and_not_its_number(void **state)
{
    struct place *place = *state;
    struct journal journal;
    struct vgpu_error error;

    assert_int_equal(journal_open(&journal, place->state_fd, 7, 1234, &error), 0);
    store(&journal, JOURNAL_ACCEPTED, 5);
    journal_close(&journal);
    assert_int_equal(journal_open(&journal, place->state_fd, 7, 1235, &error), 0);
    assert_int_equal(journal.entry.state, JOURNAL_IDLE);
    journal_close(&journal);
    assert_int_equal(journal_open(&journal, place->state_fd, 8, 1234, &error), 0);
    assert_int_equal(journal.entry.state, JOURNAL_ACCEPTED);
    assert_int_equal(journal.entry.vm_id, 8);
    journal_close(&journal);
}

static void journal_with_an_unknown_state_is_refused(void **state)
{
    struct place *place = *state;
    struct journal journal = open_journal(place);

    store(&journal, 77, 1);
    journal_close(&journal);
    assert_refused(place, 7, "is not VM 7's");
}

static void link_in_the_place_of_a_journal_is_not_followed(void **state)
{
    struct place *place = *state;
    struct journal journal;
    struct vgpu_error error;
    char target[600];

    snprintf(target, sizeof(target), "%s/target", place->directory);
    assert_int_equal(symlink(target, place->path), 0);
    assert_int_equal(journal_open(&journal, place->state_fd, 7, 0, &error), -1);
    assert_int_equal(access(target, F_OK), -1);
}

static void failed_write_keeps_the_entry_before(void **state)
{
    struct place *place = *state;
    struct journal journal = open_journal(place);
    struct vgpu_error error;
    int writable = journal.file.fd;

    store(&journal, JOURNAL_ACCEPTED, 1);
    journal.file.fd = open(place->path, O_RDONLY | O_CLOEXEC);
    journal.entry.sequence = 2;
    assert_int_equal(journal_store(&journal, true, &error), -1);
    close(journal.file.fd);
    journal.file.fd = writable;
    journal_close(&journal);
    journal = open_journal(place);
    assert_int_equal(journal.entry.sequence, 1);
    store(&journal, JOURNAL_IDLE, 3);
    journal_close(&journal);
    journal = open_journal(place);
    assert_int_equal(journal.entry.sequence, 3);
    journal_close(&journal);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, place_make, place_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(new_journal_owes_nothing),
        CASE(newest_entry_is_read_again),
        CASE(torn_newest_entry_leaves_the_one_before),
        CASE(first_entry_cut_off_is_a_new_journal),
        CASE(damaged_journal_is_refused_and_left_alone),
        CASE(foreign_file_is_refused_whatever_its_size),
        CASE(journal_of_another_vm_is_refused),
        CASE(journal_follows_a_vms_identity_and_not_its_number),
        CASE(journal_with_an_unknown_state_is_refused),
        CASE(link_in_the_place_of_a_journal_is_not_followed),
        CASE(failed_write_keeps_the_entry_before),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

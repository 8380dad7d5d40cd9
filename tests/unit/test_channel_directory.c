/* SPDX-License-Identifier: Apache-2.0 */
/* One VM's directory, whatever a guest has put into it. */
#include "unit.h"

#include "channel/private.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

struct place {
    char *share;
    int share_fd;
    struct directory directory; /* vm7 */
    char text[DIRECTORY_READ_MAX_BYTES];
    size_t bytes;
    struct file_identity identity;
    struct vgpu_error error;
};

static const struct directory_owner plain_owner = {(uid_t)-1, (gid_t)-1, 0700};

static int place_make(void **state)
{
    struct place *place = calloc(1, sizeof(*place));

    place->share = unit_temporary_directory();
    place->share_fd = open(place->share, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *state = place;
    if (directory_make(place->share_fd, "vm7", &plain_owner, &place->error) < 0)
        return -1;
    return directory_open(&place->directory, place->share_fd, "vm7", &plain_owner, &place->error);
}

static int place_remove(void **state)
{
    struct place *place = *state;

    directory_close(&place->directory);
    close(place->share_fd);
    unit_remove_directory(place->share);
    free(place);
    return 0;
}

static void put(struct place *place, const char *name, const char *text)
{
    int fd = openat(place->directory.fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(fd_pwrite_all(fd, text, strlen(text), 0), 0);
    close(fd);
}

static void assert_contents(struct place *place, const char *name, const char *text)
{
    char path[600], *contents;

    snprintf(path, sizeof(path), "%s/vm7/%s", place->share, name);
    assert_int_equal(faccessat(place->directory.fd, name, F_OK, AT_SYMLINK_NOFOLLOW), 0);
    contents = unit_read_file(path);
    assert_string_equal(contents, text);
    free(contents);
}

static bool exists(struct place *place, const char *name)
{
    return faccessat(place->directory.fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static enum directory_look look(struct place *place, const char *name)
{
    memset(&place->error, 0, sizeof(place->error));
    return directory_read(&place->directory, name, false, place->text, &place->bytes,
                          &place->identity, &place->error);
}

/* --- the directory itself ---------------------------------------------------------- */

static void directory_is_made_with_its_mode_and_corrected_when_it_differs(void **state)
{
    struct place *place = *state;
    struct directory_owner owner = plain_owner;
    struct stat info;

    owner.mode = 0750;
    assert_int_equal(directory_make(place->share_fd, "vm7", &owner, &place->error), 0);
    assert_int_equal(fstatat(place->share_fd, "vm7", &info, 0), 0);
    assert_int_equal(info.st_mode & 07777, 0750);
}

static void link_in_the_place_of_a_directory_is_neither_made_nor_opened(void **state)
{
    struct place *place = *state;
    struct directory other;

    assert_int_equal(symlinkat("vm7", place->share_fd, "vm8"), 0);
    assert_int_equal(directory_make(place->share_fd, "vm8", &plain_owner, &place->error), -1);
    assert_int_equal(directory_open(&other, place->share_fd, "vm8", &plain_owner, &place->error),
                     -1);
}

static void replaced_directory_is_noticed(void **state)
{
    struct place *place = *state;

    assert_false(directory_replaced(&place->directory, place->share_fd, "vm7"));
    assert_int_equal(renameat(place->share_fd, "vm7", place->share_fd, "old"), 0);
    assert_true(directory_replaced(&place->directory, place->share_fd, "vm7"));
    assert_int_equal(mkdirat(place->share_fd, "vm7", 0700), 0);
    assert_true(directory_replaced(&place->directory, place->share_fd, "vm7"));
    assert_int_equal(unlinkat(place->share_fd, "vm7", AT_REMOVEDIR), 0);
    assert_int_equal(symlinkat("old", place->share_fd, "vm7"), 0);
    assert_true(directory_replaced(&place->directory, place->share_fd, "vm7"));
}

static void directory_knows_what_it_lies_below(void **state)
{
    struct place *place = *state;
    int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    assert_true(directory_is_below(place->directory.fd, place->share_fd));
    assert_true(directory_is_below(place->share_fd, place->share_fd));
    assert_false(directory_is_below(place->share_fd, place->directory.fd));
    assert_true(directory_is_below(place->directory.fd, root));
    assert_false(directory_is_below(root, place->share_fd));
    close(root);
}

/* --- reading ---------------------------------------------------------------------------- */

static void missing_and_empty_files_are_absent(void **state)
{
    assert_int_equal(look(*state, "request.txt"), DIRECTORY_ABSENT);
    put(*state, "request.txt", "");
    assert_int_equal(look(*state, "request.txt"), DIRECTORY_ABSENT);
}

static void contents_and_identity_are_read(void **state)
{
    struct place *place = *state;
    struct stat info;

    put(place, "request.txt", "A:1:7:PING\n");
    assert_int_equal(look(place, "request.txt"), DIRECTORY_DATA);
    assert_int_equal(place->bytes, 11);
    assert_memory_equal(place->text, "A:1:7:PING\n", 11);
    assert_int_equal(fstatat(place->directory.fd, "request.txt", &info, 0), 0);
    assert_int_equal(place->identity.inode, info.st_ino);
    assert_int_equal(place->identity.size_bytes, 11);
    assert_int_equal(place->identity.mtime_ns % 1000000000, info.st_mtim.tv_nsec);
}

static void everything_but_a_plain_file_is_hostile_and_named(void **state)
{
    struct place *place = *state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(mkdirat(place->directory.fd, "d", 0700), 0);
    assert_int_equal(look(place, "d"), DIRECTORY_HOSTILE);
    assert_string_equal(place->error.message, "d is a directory: put a plain file there");
    assert_int_equal(symlinkat("/dev/zero", place->directory.fd, "l"), 0);
    assert_int_equal(look(place, "l"), DIRECTORY_HOSTILE);
    assert_string_equal(place->error.message, "l is a symbolic link: put a plain file there");
    assert_int_equal(mkfifoat(place->directory.fd, "p", 0600), 0);
    assert_int_equal(look(place, "p"), DIRECTORY_HOSTILE);
    assert_string_equal(place->error.message, "p is a named pipe: put a plain file there");
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/s", place->directory.fd);
    assert_int_equal(bind(made, (struct sockaddr *)&address, sizeof(address)), 0);
    close(made);
    assert_int_equal(look(place, "s"), DIRECTORY_HOSTILE);
    assert_string_equal(place->error.message, "s is a socket: put a plain file there");
}

static void file_that_is_too_long_is_hostile_and_its_size_told(void **state)
{
    struct place *place = *state;
    char text[DIRECTORY_READ_MAX_BYTES + 1] = "";

    memset(text, 'x', DIRECTORY_READ_MAX_BYTES - 1);
    put(place, "request.txt", text);
    assert_int_equal(look(place, "request.txt"), DIRECTORY_DATA);
    text[DIRECTORY_READ_MAX_BYTES - 1] = 'x';
    put(place, "request.txt", text);
    assert_int_equal(look(place, "request.txt"), DIRECTORY_HOSTILE);
    assert_non_null(strstr(place->error.message, "has 1024 bytes"));
}

/* --- taking --------------------------------------------------------------------------- */

static void taken_file_is_emptied_and_keeps_its_inode(void **state)
{
    struct place *place = *state;
    struct stat info;

    put(place, "request.txt", "A:1:7:PING\n");
    look(place, "request.txt");
    assert_int_equal(
        directory_take(&place->directory, "request.txt", &place->identity, &place->error), 0);
    assert_contents(place, "request.txt", "");
    assert_int_equal(fstatat(place->directory.fd, "request.txt", &info, 0), 0);
    assert_int_equal(info.st_ino, place->identity.inode);
}

static void file_that_changed_since_is_not_taken(void **state)
{
    struct place *place = *state;
    struct timespec times[2];
    struct stat info;

    put(place, "request.txt", "A:1:7:PING\n");
    look(place, "request.txt");
    assert_int_equal(fstatat(place->directory.fd, "request.txt", &info, 0), 0);
    put(place, "request.txt", "A:1:7:PING longer\n");
    times[0] = times[1] = info.st_mtim; /* within one tick */
    assert_int_equal(utimensat(place->directory.fd, "request.txt", times, 0), 0);
    assert_int_equal(
        directory_take(&place->directory, "request.txt", &place->identity, &place->error), 0);
    assert_contents(place, "request.txt", "A:1:7:PING longer\n");
}

static void missing_file_is_taken_without_an_error(void **state)
{
    struct place *place = *state;

    put(place, "request.txt", "A:1:7:PING\n");
    look(place, "request.txt");
    assert_int_equal(unlinkat(place->directory.fd, "request.txt", 0), 0);
    assert_int_equal(
        directory_take(&place->directory, "request.txt", &place->identity, &place->error), 0);
    assert_false(exists(place, "request.txt"));
}

static void other_name_of_a_taken_file_keeps_its_contents(void **state)
{
    struct place *place = *state;

    put(place, "other", "A:1:7:PING\n");
    assert_int_equal(linkat(place->directory.fd, "other", place->directory.fd, "request.txt", 0),
                     0);
    look(place, "request.txt");
    assert_int_equal(
        directory_take(&place->directory, "request.txt", &place->identity, &place->error), 0);
    assert_false(exists(place, "request.txt"));
    assert_contents(place, "other", "A:1:7:PING\n");
}

static void hostile_things_are_removed_but_not_what_is_in_them(void **state)
{
    struct place *place = *state;

    put(place, "target", "kept");
    assert_int_equal(symlinkat("target", place->directory.fd, "l"), 0);
    assert_int_equal(directory_remove_hostile(&place->directory, "l"), 0);
    assert_false(exists(place, "l"));
    assert_contents(place, "target", "kept");
    assert_int_equal(mkdirat(place->directory.fd, "d", 0700), 0);
    assert_int_equal(mkdirat(place->directory.fd, "d/e", 0700), 0);
    assert_int_equal(directory_remove_hostile(&place->directory, "d"), -1);
    assert_true(exists(place, "d/e"));
    assert_int_equal(unlinkat(place->directory.fd, "d/e", AT_REMOVEDIR), 0);
    assert_int_equal(directory_remove_hostile(&place->directory, "d"), 0);
    assert_int_equal(directory_remove_hostile(&place->directory, "d"), 0);
}

/* --- writing --------------------------------------------------------------------------- */

static int write_response(struct place *place, const char *text)
{
    return directory_write(&place->directory, "response.txt", text, &place->identity,
                           &place->error);
}

static void file_is_written_in_place_and_never_longer_than_the_text(void **state)
{
    struct place *place = *state;
    struct stat before, after;

    assert_int_equal(write_response(place, "1:a long answer\n"), 0);
    assert_contents(place, "response.txt", "1:a long answer\n");
    assert_int_equal(fstatat(place->directory.fd, "response.txt", &before, 0), 0);
    assert_int_equal(before.st_mode & 07777, 0600);
    assert_int_equal(write_response(place, "0:Ready\n"), 0);
    assert_contents(place, "response.txt", "0:Ready\n");
    assert_int_equal(fstatat(place->directory.fd, "response.txt", &after, 0), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_int_equal(place->identity.inode, after.st_ino);
    assert_int_equal(place->identity.size_bytes, 8);
}

static void hostile_things_are_replaced_not_written_through(void **state)
{
    struct place *place = *state;

    put(place, "target", "kept");
    assert_int_equal(symlinkat("target", place->directory.fd, "response.txt"), 0);
    assert_int_equal(write_response(place, "1:a\n"), 0);
    assert_contents(place, "response.txt", "1:a\n");
    assert_int_equal(unlinkat(place->directory.fd, "response.txt", 0), 0);
    assert_int_equal(linkat(place->directory.fd, "target", place->directory.fd, "response.txt", 0),
                     0);
    assert_int_equal(write_response(place, "1:b\n"), 0);
    assert_contents(place, "response.txt", "1:b\n");
    assert_int_equal(unlinkat(place->directory.fd, "response.txt", 0), 0);
    assert_int_equal(mkfifoat(place->directory.fd, "response.txt", 0600), 0);
    assert_int_equal(write_response(place, "1:c\n"), 0);
    assert_contents(place, "response.txt", "1:c\n");
    assert_contents(place, "target", "kept");
}

static void full_directory_in_the_way_is_an_error_that_says_so(void **state)
{
    struct place *place = *state;

    assert_int_equal(mkdirat(place->directory.fd, "response.txt", 0700), 0);
    assert_int_equal(mkdirat(place->directory.fd, "response.txt/leaf", 0700), 0);
    assert_int_equal(write_response(place, "1:a\n"), -1);
    assert_string_equal(place->error.message,
                        "cannot open 'response.txt' for writing: Directory not empty");
}

static void furnishing_leaves_what_is_there(void **state)
{
    struct place *place = *state;

    assert_int_equal(directory_furnish(&place->directory, "a", "new\n", &place->error), 0);
    assert_contents(place, "a", "new\n");
    assert_int_equal(directory_furnish(&place->directory, "a", "other\n", &place->error), 0);
    assert_contents(place, "a", "new\n");
    assert_int_equal(symlinkat("nowhere", place->directory.fd, "l"), 0);
    assert_int_equal(directory_furnish(&place->directory, "l", "x\n", &place->error), 0);
    assert_false(exists(place, "nowhere"));
}

static void emptying_touches_plain_files_only(void **state)
{
    struct place *place = *state;

    put(place, "response.txt", "1:a\n");
    assert_int_equal(directory_empty(&place->directory, "response.txt", &place->error), 0);
    assert_contents(place, "response.txt", "");
    put(place, "target", "kept");
    assert_int_equal(symlinkat("target", place->directory.fd, "l"), 0);
    assert_int_equal(directory_empty(&place->directory, "l", &place->error), 0);
    assert_int_equal(linkat(place->directory.fd, "target", place->directory.fd, "h", 0), 0);
    assert_int_equal(directory_empty(&place->directory, "h", &place->error), 0);
    assert_contents(place, "target", "kept");
    assert_int_equal(directory_empty(&place->directory, "missing", &place->error), 0);
}

static void identity_is_told_without_opening(void **state)
{
    struct place *place = *state;
    struct file_identity by_name, by_opening;

    assert_false(directory_identify(&place->directory, "response.txt", false, &by_name));
    put(place, "response.txt", "1:a\n");
    assert_true(directory_identify(&place->directory, "response.txt", false, &by_name));
    assert_true(directory_identify(&place->directory, "response.txt", true, &by_opening));
    assert_true(file_identity_equal(&by_name, &by_opening));
    assert_int_equal(by_name.size_bytes, 4);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, place_make, place_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(directory_is_made_with_its_mode_and_corrected_when_it_differs),
        CASE(link_in_the_place_of_a_directory_is_neither_made_nor_opened),
        CASE(replaced_directory_is_noticed),
        CASE(directory_knows_what_it_lies_below),
        CASE(missing_and_empty_files_are_absent),
        CASE(contents_and_identity_are_read),
        CASE(everything_but_a_plain_file_is_hostile_and_named),
        CASE(file_that_is_too_long_is_hostile_and_its_size_told),
        CASE(taken_file_is_emptied_and_keeps_its_inode),
        CASE(file_that_changed_since_is_not_taken),
        CASE(missing_file_is_taken_without_an_error),
        CASE(other_name_of_a_taken_file_keeps_its_contents),
        CASE(hostile_things_are_removed_but_not_what_is_in_them),
        CASE(file_is_written_in_place_and_never_longer_than_the_text),
        CASE(hostile_things_are_replaced_not_written_through),
        CASE(full_directory_in_the_way_is_an_error_that_says_so),
        CASE(furnishing_leaves_what_is_there),
        CASE(emptying_touches_plain_files_only),
        CASE(identity_is_told_without_opening),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

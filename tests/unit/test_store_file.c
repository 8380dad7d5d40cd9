/* SPDX-License-Identifier: Apache-2.0 */
/* A backup where the file system knows no files without names: the same promises. */
#include "store_unit.h"

#include <dirent.h>
#include <fcntl.h>

static int refused_opens;

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);

int __wrap_open64(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)) ? va_arg(args, mode_t) : 0;
    va_end(args);
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        refused_opens++;
        errno = EOPNOTSUPP;
        return -1;
    }
    return __real_open64(path, flags, mode);
}

static unsigned count_files(const char *directory)
{
    DIR *stream = opendir(directory);
    unsigned count = 0;

    assert_non_null(stream);
    while (readdir(stream))
        count++;
    closedir(stream);
    return count;
}

static void a_backup_needs_no_nameless_file(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "backup.db");
    unsigned before = count_files(place->directory);
    struct store *backup;
    struct stat info;

    refused_opens = 0;
    DONE(place, store_backup(place->store, path, &place->error));
    assert_int_equal(refused_opens, 1);
    assert_int_equal(count_files(place->directory), before + 1);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0640);
    DONE(place, store_open(path, STORE_READ, &backup, &place->error));
    DONE(place, store_verify(backup, &place->error));
    store_close(backup);
}

static void what_is_there_is_kept_and_nothing_else_is_left(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "backup.db");
    FILE *file = fopen(path, "we");
    unsigned before;
    char *text;

    fputs("mine", file);
    fclose(file);
    before = count_files(place->directory);
    REFUSED(place, EEXIST, "it stays as it is", store_backup(place->store, path, &place->error));
    assert_int_equal(count_files(place->directory), before);
    text = unit_read_file(path);
    assert_string_equal(text, "mine");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(a_backup_needs_no_nameless_file),
        PLACE_TEST(what_is_there_is_kept_and_nothing_else_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

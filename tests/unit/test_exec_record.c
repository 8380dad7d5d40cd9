/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "exec/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>

struct place {
    char *directory;
    char path[512];
};

static int place_make(void **state)
{
    struct place *place = calloc(1, sizeof(*place));

    place->directory = unit_temporary_directory();
    snprintf(place->path, sizeof(place->path), "%s/record", place->directory);
    *state = place;
    return 0;
}

static int place_remove(void **state)
{
    struct place *place = *state;

    unit_remove_directory(place->directory);
    free(place);
    return 0;
}

static void file_write(const char *path, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(fd_pwrite_all(fd, data, bytes, 0), 0);
    close(fd);
}

/* A worker's side of the record, in this process. */
static struct exec_record_writer writer_open(const char *path)
{
    struct exec_record_writer writer;
    struct vgpu_error error = {.message = ""};
    int fd = exec_record_lock(path, &error);

    assert_string_equal(error.message, "");
    assert_int_equal(exec_record_attach(&writer, fd, &error), 0);
    return writer;
}

static void writer_close(struct exec_record_writer *writer)
{
    fd_close(&writer->file.fd);
}

static void writer_start(struct exec_record_writer *writer, uint64_t sequence)
{
    struct vgpu_error error;

    assert_int_equal(exec_record_start(writer, sequence, &error), 0);
}

static void writer_finish(struct exec_record_writer *writer, bool success, const char *message,
                          uint64_t device_us)
{
    struct protocol_response response = {.success = success};
    struct vgpu_error error;

    text_copy(response.message, sizeof(response.message), message);
    assert_int_equal(exec_record_finish(writer, &response, device_us, &error), 0);
}

static struct exec_record record_read(const char *path, int expected)
{
    struct exec_record record;
    struct vgpu_error error = {.message = ""};

    assert_int_equal(exec_record_read(path, &record, &error), expected);
    assert_string_equal(error.message, "");
    return record;
}

static void a_missing_record_is_none(void **state)
{
    struct place *place = *state;

    assert_int_equal(record_read(place->path, 0).state, EXEC_RECORD_NONE);
    assert_int_equal(access(place->path, F_OK), -1); /* and reading makes none */
}

static void an_empty_short_or_senseless_file_is_none(void **state)
{
    struct place *place = *state;
    char noise[8192];

    file_write(place->path, "", 0);
    assert_int_equal(record_read(place->path, 0).state, EXEC_RECORD_NONE);
    file_write(place->path, "abc", 3);
    assert_int_equal(record_read(place->path, 0).state, EXEC_RECORD_NONE);
    memset(noise, 0xa5, sizeof(noise));
    file_write(place->path, noise, sizeof(noise));
    assert_int_equal(record_read(place->path, 0).state, EXEC_RECORD_NONE);
    memset(noise, 0, sizeof(noise));
    file_write(place->path, noise, sizeof(noise));
    assert_int_equal(record_read(place->path, 0).state, EXEC_RECORD_NONE);
}

/* A worker that was taken over can write a right checksum. */
static void a_checked_record_that_no_worker_would_write_is_none(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);
    char payload[EXEC_RECORD_PAYLOAD_BYTES];
    struct vgpu_error error;

    writer_start(&writer, 3);
    assert_int_equal(record_read(place->path, 1).state, EXEC_RECORD_STARTED);
    memset(payload, 0xff, sizeof(payload));
    assert_int_equal(record_file_store(&writer.file, EXEC_RECORD_KIND, payload, false, &error), 0);
    assert_int_equal(record_read(place->path, 1).state, EXEC_RECORD_NONE);
    writer_close(&writer);
}

static void a_start_and_its_end_are_read_back(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);
    struct exec_record record;

    writer_start(&writer, 41);
    record = record_read(place->path, 1);
    assert_int_equal(record.state, EXEC_RECORD_STARTED);
    assert_int_equal(record.sequence, 41);
    assert_int_equal(record.executions, 1);
    assert_int_equal(record.worker_pid, getpid());
    writer_finish(&writer, true, "3 + 4 = 7", 1234);
    writer_close(&writer);
    record = record_read(place->path, 0);
    assert_int_equal(record.state, EXEC_RECORD_DONE);
    assert_int_equal(record.sequence, 41);
    assert_int_equal(record.executions, 1);
    assert_int_equal(record.device_us, 1234);
    assert_true(record.response.success);
    assert_string_equal(record.response.message, "3 + 4 = 7");
}

static void an_error_answer_of_full_length_is_read_back(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);
    char message[VGPU_MESSAGE_MAX_BYTES + 1];
    struct exec_record record;

    memset(message, 'm', sizeof(message) - 1);
    message[sizeof(message) - 1] = '\0';
    writer_start(&writer, 1);
    writer_finish(&writer, false, message, 0);
    writer_close(&writer);
    record = record_read(place->path, 0);
    assert_false(record.response.success);
    assert_string_equal(record.response.message, message);
}

static void executions_count_the_starts_of_one_sequence_over_all_workers(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);

    writer_start(&writer, 5);
    writer_close(&writer); /* died while it ran */
    writer = writer_open(place->path);
    writer_start(&writer, 5);
    writer_close(&writer);
    writer = writer_open(place->path);
    writer_start(&writer, 5);
    writer_finish(&writer, true, "at last", 1);
    assert_int_equal(record_read(place->path, 1).executions, 3);
    writer_start(&writer, 6);
    assert_int_equal(record_read(place->path, 1).executions, 1);
    writer_close(&writer);
}

static void a_new_worker_keeps_the_record_and_adds_its_pid(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer;
    struct exec_record record;
    pid_t child = fork();

    if (child == 0) {
        writer = writer_open(place->path);
        writer_start(&writer, 9);
        writer_finish(&writer, true, "kept", 77);
        _exit(0);
    }
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(record_read(place->path, 0).worker_pid, child);
    writer = writer_open(place->path);
    record = record_read(place->path, 1);
    assert_int_equal(record.worker_pid, getpid());
    assert_int_equal(record.state, EXEC_RECORD_DONE);
    assert_int_equal(record.sequence, 9);
    assert_int_equal(record.device_us, 77);
    assert_string_equal(record.response.message, "kept");
    writer_close(&writer);
}

static void same_record(const struct exec_record *a, const struct exec_record *b)
{
    assert_int_equal(a->state, b->state);
    assert_int_equal(a->sequence, b->sequence);
    assert_int_equal(a->executions, b->executions);
    assert_int_equal(a->device_us, b->device_us);
    assert_string_equal(a->response.message, b->response.message);
}

/* `before` and `after` are the file around one write.  Whatever prefix of the
 * bytes that it changes arrives, the older state is read. */
static void tear(const char *path, const char *before, const char *after)
{
    size_t first = 0, end = EXEC_RECORD_FILE_BYTES;
    struct exec_record older, newer, found;
    char image[EXEC_RECORD_FILE_BYTES];

    while (before[first] == after[first])
        first++;
    while (before[end - 1] == after[end - 1])
        end--;
    file_write(path, before, EXEC_RECORD_FILE_BYTES);
    older = record_read(path, 0);
    file_write(path, after, EXEC_RECORD_FILE_BYTES);
    newer = record_read(path, 0);
    assert_false(older.state == newer.state && older.sequence == newer.sequence);
    memcpy(image, before, sizeof(image));
    for (size_t at = first; at < end; at++) {
        file_write(path, image, sizeof(image));
        found = record_read(path, 0);
        same_record(&found, &older);
        image[at] = after[at];
    }
    file_write(path, image, sizeof(image));
    found = record_read(path, 0);
    same_record(&found, &newer);
}

static void file_read(const char *path, char image[EXEC_RECORD_FILE_BYTES])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    assert_int_equal(fd_pread_all(fd, image, EXEC_RECORD_FILE_BYTES, 0), 0);
    close(fd);
}

static void a_torn_write_leaves_the_older_state(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);
    char images[4][EXEC_RECORD_FILE_BYTES];

    /* Long answers, so that a write changes as much as it can. */
    writer_start(&writer, 1);
    writer_finish(&writer, true, "the first answer, of some length", 10);
    file_read(place->path, images[0]);
    writer_start(&writer, 2);
    file_read(place->path, images[1]);
    writer_finish(&writer, false, "another answer altogether, longer than the first", 20);
    file_read(place->path, images[2]);
    writer_start(&writer, 3);
    file_read(place->path, images[3]);
    writer_close(&writer);
    for (unsigned i = 0; i + 1 < VGPU_ARRAY_LENGTH(images); i++)
        tear(place->path, images[i], images[i + 1]);
}

static void a_held_record_is_busy_for_others_and_names_its_worker(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);
    struct vgpu_error error;
    char pid[32];

    assert_int_equal(exec_record_lock(place->path, &error), -1);
    assert_int_equal(error.code, EBUSY);
    snprintf(pid, sizeof(pid), "(pid %d)", (int)getpid());
    assert_non_null(strstr(error.message, pid));
    record_read(place->path, 1);
    writer_close(&writer);
    record_read(place->path, 0);
    writer = writer_open(place->path);
    writer_close(&writer);
}

static void a_reader_is_not_taken_for_a_worker(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);
    int reader;

    writer_start(&writer, 1);
    writer_close(&writer);
    reader = open(place->path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(flock(reader, LOCK_SH | LOCK_NB), 0); /* another one, at this instant */
    assert_int_equal(record_read(place->path, 0).state, EXEC_RECORD_STARTED);
    close(reader);
}

static void links_fifos_and_directories_are_refused(void **state)
{
    struct place *place = *state;
    struct exec_record record;
    struct vgpu_error error;
    char target[512];

    snprintf(target, sizeof(target), "%s/target", place->directory);
    file_write(target, "", 0);
    assert_int_equal(symlink(target, place->path), 0);
    assert_int_equal(exec_record_read(place->path, &record, &error), -1);
    assert_int_equal(error.code, ELOOP);
    assert_int_equal(exec_record_lock(place->path, &error), -1);
    assert_int_equal(error.code, ELOOP);
    unlink(place->path);
    assert_int_equal(mkfifo(place->path, 0600), 0);
    assert_int_equal(exec_record_read(place->path, &record, &error), -1);
    assert_int_equal(exec_record_lock(place->path, &error), -1);
    unlink(place->path);
    assert_int_equal(mkdir(place->path, 0700), 0);
    assert_int_equal(exec_record_read(place->path, &record, &error), -1);
    assert_int_equal(exec_record_lock(place->path, &error), -1);
    assert_non_null(strstr(error.message, place->path));
}

static void a_new_record_is_private_to_its_owner(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);
    struct stat info;

    assert_int_equal(stat(place->path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    assert_int_equal(fcntl(writer.file.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    writer_close(&writer);
}

static unsigned open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void reading_and_failing_leave_no_descriptor(void **state)
{
    struct place *place = *state;
    struct exec_record_writer writer = writer_open(place->path);
    unsigned before = open_descriptors();
    struct vgpu_error error;

    record_read(place->path, 1);
    assert_int_equal(exec_record_lock(place->path, &error), -1);
    assert_int_equal(exec_record_lock(place->directory, &error), -1);
    assert_int_equal(open_descriptors(), before);
    writer_close(&writer);
}

#define RECORD_TEST(function) cmocka_unit_test_setup_teardown(function, place_make, place_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RECORD_TEST(a_missing_record_is_none),
        RECORD_TEST(an_empty_short_or_senseless_file_is_none),
        RECORD_TEST(a_checked_record_that_no_worker_would_write_is_none),
        RECORD_TEST(a_start_and_its_end_are_read_back),
        RECORD_TEST(an_error_answer_of_full_length_is_read_back),
        RECORD_TEST(executions_count_the_starts_of_one_sequence_over_all_workers),
        RECORD_TEST(a_new_worker_keeps_the_record_and_adds_its_pid),
        RECORD_TEST(a_torn_write_leaves_the_older_state),
        RECORD_TEST(a_held_record_is_busy_for_others_and_names_its_worker),
        RECORD_TEST(a_reader_is_not_taken_for_a_worker),
        RECORD_TEST(links_fifos_and_directories_are_refused),
        RECORD_TEST(a_new_record_is_private_to_its_owner),
        RECORD_TEST(reading_and_failing_leave_no_descriptor),
    };

    return cmocka_run_group_tests_name("exec_record", tests, NULL, NULL);
}

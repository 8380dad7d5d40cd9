/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- other processes --------------------------------------------------------------------- */

/* Forks a process that does this until it is killed, and waits until it is seen in that state. */
static pid_t make_process(void (*work)(void), char state)
{
    struct process_sight sight = {0};
    pid_t pid = fork();

    if (pid == 0) {
        work();
        _exit(1);
    }
    assert_true(pid > 0);
    while (sight.state != state)
        assert_true(process_look(pid, &sight));
    return pid;
}

static void end_process(pid_t pid)
{
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void sleep_on(void)
{
    for (;;)
        pause();
}

static void spin_on(void)
{
    for (;;)
        ;
}

static void a_process_that_sleeps_is_seen_to(void **state)
{
    pid_t pid = make_process(sleep_on, 'S');

    (void)state;
    end_process(pid);
}

static void the_processor_time_of_a_process_grows_while_it_runs(void **state)
{
    struct process_sight sight = {0};
    pid_t pid = make_process(spin_on, 'R');

    (void)state;
    while (sight.cpu_us < 20000)
        assert_true(process_look(pid, &sight));
    end_process(pid);
}

static void a_process_that_is_gone_is_not_seen(void **state)
{
    struct process_sight sight;
    pid_t pid = make_process(sleep_on, 'S');

    (void)state;
    end_process(pid);
    assert_false(process_look(pid, &sight));
}

static void error_keeps_code_and_message(void **state)
{
    struct vgpu_error error;

    (void)state;
    assert_int_equal(error_set(&error, EINVAL, "pool '%c' does not exist", 'Q'), -1);
    assert_int_equal(error.code, EINVAL);
    assert_string_equal(error.message, "pool 'Q' does not exist");
    assert_int_equal(error_set(NULL, EINVAL, "nobody listens"), -1);
}

static void error_from_errno_names_the_cause(void **state)
{
    struct vgpu_error error;

    (void)state;
    errno = ENOENT;
    assert_int_equal(error_set_errno(&error, "cannot open '%s'", "/x"), -1);
    assert_int_equal(error.code, ENOENT);
    assert_string_equal(error.message, "cannot open '/x': No such file or directory");
}

static void error_cuts_what_is_too_long(void **state)
{
    struct vgpu_error error;
    char huge[2 * VGPU_ERROR_BYTES];

    (void)state;
    memset(huge, 'x', sizeof(huge) - 1);
    huge[sizeof(huge) - 1] = '\0';
    errno = EIO;
    error_set_errno(&error, "%s", huge);
    assert_int_equal(strlen(error.message), VGPU_ERROR_BYTES - 1);
}

static void error_is_cut_at_a_characters_end(void **state)
{
    char huge[2 * VGPU_ERROR_BYTES + 1] = "x";
    struct vgpu_error error;

    (void)state;
    for (size_t bytes = 1; bytes < 2 * VGPU_ERROR_BYTES; bytes += 3)
        memcpy(huge + bytes, "\xe2\x82\xac", 4);
    for (unsigned shift = 0; shift < 4; shift++) {
        error_set(&error, EIO, "%s%s", &"xxx"[3 - shift], huge);
        assert_int_equal((strlen(error.message) - shift) % 3, 1);
        assert_true(strlen(error.message) > VGPU_ERROR_BYTES - 4);
    }
}

/* --- accounts ---------------------------------------------------------------------------- */

static const char *as_utf8(const char *text, size_t bytes)
{
    static char copy[32];

    text_copy_utf8(copy, bytes, text);
    return copy;
}

static void utf8_is_cut_at_a_characters_end(void **state)
{
    (void)state;
    assert_string_equal(as_utf8("a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 32),
                        "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80");
    assert_string_equal(as_utf8("a\xc3\xa4\xe2\x82\xac", 7), "a\xc3\xa4\xe2\x82\xac");
    assert_string_equal(as_utf8("a\xc3\xa4\xe2\x82\xac", 6), "a\xc3\xa4");
    assert_string_equal(as_utf8("a\xc3\xa4", 3), "a");
    assert_string_equal(as_utf8("\xc3\xa4", 1), "");
}

static void the_beginning_of_a_cut_character_goes(void **state)
{
    static const char *const cases[][2] = {{"a\xe2\x82\xac", "a\xe2\x82\xac"},
                                           {"a\xe2\x82", "a"},
                                           {"a\xe2", "a"},
                                           {"\xf0\x9f\x98", ""},
                                           {"a", "a"},
                                           {"", ""},
                                           {"\x82", "\x82"}}; /* the last was none before */

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++) {
        char text[16];

        text_copy(text, sizeof(text), cases[i][0]);
        text_end_whole(text);
        assert_string_equal(text, cases[i][1]);
    }
}

static void what_is_no_utf8_is_shown_escaped(void **state)
{
    static const struct {
        const char *text, *shown;
    } cases[] = {{"a\xff", "a\\xff"},
                 {"\xc3", "\\xc3"}, /* its rest is missing */
                 {"\xc3"
                  "a",
                  "\\xc3"
                  "a"},
                 {"\xc0\xaf", "\\xc0\\xaf"},                   /* too long a form */
                 {"\xed\xa0\x80", "\\xed\\xa0\\x80"},          /* half of a pair */
                 {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"}, /* beyond what there is */
                 {"\xa4\xc3\xa4", "\\xa4\xc3\xa4"}};

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++)
        assert_string_equal(as_utf8(cases[i].text, 32), cases[i].shown);
    assert_string_equal(as_utf8("ab\xff", 6), "ab"); /* its escape does not fit */
}

static void owners_are_names_or_numbers(void **state)
{
    uid_t uid = 1;
    gid_t gid = 1;

    (void)state;
    assert_true(account_parse_owner("root", &uid, &gid));
    assert_int_equal(uid, 0);
    assert_int_equal(gid, 0);
    assert_true(account_parse_owner("100007", &uid, &gid));
    assert_int_equal(uid, 100007);
    assert_int_equal(gid, 100007);
    assert_true(account_parse_owner("100007:root", &uid, &gid));
    assert_int_equal(uid, 100007);
    assert_int_equal(gid, 0);
}

static void an_owner_that_is_not_there_changes_nothing(void **state)
{
    char huge[300];
    const char *const wrong[] = {
        "",      ":", "nobody-has-this-name", "0:no-such-group", "-1", "4294967295", "7:",
        "0:0:0", huge};
    uid_t uid = 5;
    gid_t gid = 6;

    (void)state;
    memset(huge, '1', sizeof(huge) - 1);
    huge[sizeof(huge) - 1] = '\0';
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_false(account_parse_owner(wrong[i], &uid, &gid));
    assert_false(account_parse_group("no-such-group", &gid));
    assert_int_equal(uid, 5);
    assert_int_equal(gid, 6);
}

static void numbers_are_decimal_whole_and_in_range(void **state)
{
    uint64_t value = 7;

    (void)state;
    assert_true(text_parse_u64("0", 0, 10, &value));
    assert_int_equal(value, 0);
    assert_true(text_parse_u64("18446744073709551615", 0, UINT64_MAX, &value));
    assert_true(value == UINT64_MAX);
    value = 7;
    assert_false(text_parse_u64("18446744073709551616", 0, UINT64_MAX, &value));
    assert_false(text_parse_u64("", 0, 10, &value));
    assert_false(text_parse_u64("11", 0, 10, &value));
    assert_false(text_parse_u64("1", 2, 10, &value));
    assert_false(text_parse_u64("+1", 0, 10, &value));
    assert_false(text_parse_u64(" 1", 0, 10, &value));
    assert_false(text_parse_u64("0x1", 0, 10, &value));
    assert_int_equal(value, 7); /* untouched on failure */
}

static void escaping_shows_every_byte_and_never_overflows(void **state)
{
    char text[32], small[6];

    (void)state;
    text_escape(text, sizeof(text), "a\n\0\xff", 4);
    assert_string_equal(text, "a\\x0a\\x00\\xff");
    text_escape(small, sizeof(small), "ab\ncd", 5);
    assert_string_equal(small, "ab"); /* the escape does not fit: cut before it */
    text_escape(small, sizeof(small), "abcdefgh", 8);
    assert_string_equal(small, "abcde");
}

static void a_word_of_a_list_is_found_by_its_number(void **state)
{
    char word[6] = "";

    (void)state;
    assert_true(text_word("cpu:0 cpu:1", 0, word, sizeof(word)));
    assert_string_equal(word, "cpu:0");
    assert_true(text_word("cpu:0 cpu:1", 1, word, sizeof(word)));
    assert_string_equal(word, "cpu:1");
    assert_false(text_word("cpu:0 cpu:1", 2, word, sizeof(word)));
    assert_false(text_word("", 0, word, sizeof(word)));
    assert_false(text_word("cpu:10", 0, word, sizeof(word)));
    assert_string_equal(word, "cpu:1");
}

static void crc32_matches_the_published_check_value(void **state)
{
    (void)state;
    assert_int_equal(text_crc32("123456789", 9), 0xcbf43926u);
    assert_int_equal(text_crc32("", 0), 0);
}

static void directories_are_made_with_their_parents(void **state)
{
    char *top = unit_temporary_directory();
    char path[512];
    struct vgpu_error error;
    struct stat info;

    (void)state;
    snprintf(path, sizeof(path), "%s/a/b/c", top);
    assert_int_equal(fd_make_directories(path, 0750, &error), 0);
    assert_int_equal(stat(path, &info), 0);
    assert_true(S_ISDIR(info.st_mode));
    assert_int_equal(fd_make_directories(path, 0750, &error), 0); /* again: fine */
    unit_remove_directory(top);
}

static void a_parent_is_synced_and_a_missing_one_is_an_error(void **state)
{
    char *top = unit_temporary_directory();
    char path[512];

    (void)state;
    snprintf(path, sizeof(path), "%s/any", top);
    assert_int_equal(fd_sync_parent(path), 0);
    assert_int_equal(fd_sync_parent("/any"), 0);
    assert_int_equal(fd_sync_parent("any"), 0);
    snprintf(path, sizeof(path), "%s/none/any", top);
    assert_int_equal(fd_sync_parent(path), -1);
    assert_int_equal(errno, ENOENT);
    unit_remove_directory(top);
}

static void reading_past_the_end_is_an_error(void **state)
{
    char *top = unit_temporary_directory();
    char path[512], data[8];
    int fd;

    (void)state;
    snprintf(path, sizeof(path), "%s/f", top);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(fd_pwrite_all(fd, "abcd", 4, 0), 0);
    assert_int_equal(fd_pread_all(fd, data, 4, 0), 0);
    assert_memory_equal(data, "abcd", 4);
    assert_int_equal(fd_pread_all(fd, data, 8, 0), -1);
    assert_int_equal(errno, EIO);
    fd_close(&fd);
    assert_int_equal(fd, -1);
    unit_remove_directory(top);
}

static int open_record(const char *path)
{
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static void record_file_returns_the_newest_record(void **state)
{
    char *top = unit_temporary_directory();
    char path[512], payload[16] = "untouched";
    struct record_file file;
    struct vgpu_error error;

    (void)state;
    snprintf(path, sizeof(path), "%s/r", top);
    assert_int_equal(record_file_load(&file, open_record(path), 7, payload, 16, &error), 0);
    assert_string_equal(payload, "untouched");
    for (int i = 0; i < 5; i++) {
        char next[16];

        memset(next, 'a' + i, sizeof(next));
        assert_int_equal(record_file_store(&file, 7, next, i % 2, &error), 0);
        close(file.fd);
        assert_int_equal(record_file_load(&file, open_record(path), 7, payload, 16, &error), 1);
        assert_memory_equal(payload, next, 16);
    }
    assert_int_equal(file.generation, 5);
    close(file.fd);
    /* another kind, another size: not ours */
    assert_int_equal(record_file_load(&file, open_record(path), 8, payload, 16, &error), 0);
    close(file.fd);
    unit_remove_directory(top);
}

/* A writer that was killed leaves a prefix of the new slot over the old one. */
static void record_file_survives_every_torn_write(void **state)
{
    enum { PAYLOAD = 32 };
    char *top = unit_temporary_directory();
    char path[512], whole[4096], older[4096], payload[PAYLOAD], first[PAYLOAD], second[PAYLOAD];
    struct record_file file;
    struct vgpu_error error;
    ssize_t bytes;
    int fd;

    (void)state;
    memset(first, '1', PAYLOAD);
    memset(second, '2', PAYLOAD);
    snprintf(path, sizeof(path), "%s/r", top);
    fd = open_record(path);
    record_file_load(&file, fd, 7, payload, PAYLOAD, &error);
    record_file_store(&file, 7, "older than the first record....", false, &error);
    record_file_store(&file, 7, first, false, &error);
    bytes = pread(fd, older, sizeof(older), 0);
    record_file_store(&file, 7, second, false, &error);
    assert_int_equal(pread(fd, whole, sizeof(whole), 0), bytes);
    for (ssize_t cut = bytes / 2 + 1; cut < bytes; cut++) {
        assert_int_equal(pwrite(fd, older, (size_t)bytes, 0), bytes);
        assert_int_equal(pwrite(fd, whole + bytes / 2, (size_t)(cut - bytes / 2), bytes / 2),
                         cut - bytes / 2);
        assert_int_equal(record_file_load(&file, fd, 7, payload, PAYLOAD, &error), 1);
        assert_memory_equal(payload, first, PAYLOAD);
    }
    assert_int_equal(pwrite(fd, whole, (size_t)bytes, 0), bytes);
    assert_int_equal(record_file_load(&file, fd, 7, payload, PAYLOAD, &error), 1);
    assert_memory_equal(payload, second, PAYLOAD);
    close(fd);
    unit_remove_directory(top);
}

static void record_file_reports_what_it_cannot_write(void **state)
{
    char payload[16] = {0};
    struct record_file file;
    struct vgpu_error error;
    int fd = open("/dev/full", O_RDWR | O_CLOEXEC);

    (void)state;
    assert_true(fd >= 0);
    file = (struct record_file){.fd = fd, .payload_bytes = sizeof(payload)};
    assert_int_equal(record_file_store(&file, 7, payload, false, &error), -1);
    assert_int_equal(error.code, ENOSPC);
    assert_int_equal(file.generation, 0);
    close(fd);
}

static void log_writes_text_events_behind_a_time_stamp(void **state)
{
    char *top = unit_temporary_directory();
    char path[512], *text;
    struct vgpu_error error;

    (void)state;
    snprintf(path, sizeof(path), "%s/log", top);
    assert_int_equal(log_open(path, LOG_FORMAT_TEXT, LOG_LEVEL_INFO, &error), 0);
    log_event("QUEUE", NULL, 0, "Pool %c: Added priority=%d, vm=%d, count=%d", 'A', 2, 2, 3);
    log_debug("not at this level");
    log_close();
    text = unit_read_file(path);
    /* 2026-11-21T03:31:20.123456Z, a blank, the event */
    assert_int_equal(text[10], 'T');
    assert_int_equal(text[26], 'Z');
    assert_string_equal(text + 28, "[QUEUE] Pool A: Added priority=2, vm=2, count=3\n");
    free(text);
    unit_remove_directory(top);
}

static void log_writes_a_message_as_one_line_whatever_is_in_it(void **state)
{
    char *top = unit_temporary_directory();
    char path[512], many[4000], *text;
    struct vgpu_error error;

    (void)state;
    memset(many, '\033', sizeof(many) - 1);
    many[sizeof(many) - 1] = '\0';
    snprintf(path, sizeof(path), "%s/log", top);
    assert_int_equal(log_open(path, LOG_FORMAT_TEXT, LOG_LEVEL_INFO, &error), 0);
    log_info("%s", "a\n2026 [INFO] forged\033[2J\x7f\xc2\x9b gr\xc3\xbc\xc3\x9f");
    log_event("QUEUE", NULL, 0, "%s", many);
    log_close();
    text = unit_read_file(path);
    assert_non_null(strstr(text, "[INFO] a\\x0a2026 [INFO] forged\\x1b[2J\\x7f\\xc2\\x9b "
                                 "gr\xc3\xbc\xc3\x9f\n"));
    assert_non_null(strstr(text, "[QUEUE] \\x1b\\x1b"));
    assert_null(strchr(text, '\033'));
    assert_ptr_equal(strchr(strchr(text, '\n') + 1, '\n'), text + strlen(text) - 1);
    free(text);
    unit_remove_directory(top);
}

static void log_writes_json_events_with_their_fields(void **state)
{
    const struct log_field fields[] = {LOG_TEXT("pool", "A"), LOG_NUMBER("vm", 7)};
    char *top = unit_temporary_directory();
    char path[512], *text;
    struct vgpu_error error;
    json_t *object;

    (void)state;
    snprintf(path, sizeof(path), "%s/log", top);
    assert_int_equal(log_open(path, LOG_FORMAT_JSON, LOG_LEVEL_INFO, &error), 0);
    log_event("QUEUE", fields, VGPU_ARRAY_LENGTH(fields), "said \"%s\"", "hello");
    log_close();
    text = unit_read_file(path);
    object = json_loads(text, 0, NULL);
    assert_non_null(object);
    assert_string_equal(json_string_value(json_object_get(object, "event")), "queue");
    assert_string_equal(json_string_value(json_object_get(object, "pool")), "A");
    assert_int_equal(json_integer_value(json_object_get(object, "vm")), 7);
    assert_string_equal(json_string_value(json_object_get(object, "message")), "said \"hello\"");
    json_decref(object);
    free(text);
    unit_remove_directory(top);
}

static void log_follows_its_path_after_rotation(void **state)
{
    char *top = unit_temporary_directory();
    char path[512], moved[512], *text;
    struct vgpu_error error;

    (void)state;
    snprintf(path, sizeof(path), "%s/log", top);
    snprintf(moved, sizeof(moved), "%s/log.1", top);
    assert_int_equal(log_open(path, LOG_FORMAT_TEXT, LOG_LEVEL_INFO, &error), 0);
    log_info("before");
    assert_int_equal(rename(path, moved), 0);
    assert_int_equal(log_reopen(&error), 0);
    log_info("after");
    log_close();
    text = unit_read_file(path);
    assert_non_null(strstr(text, "after"));
    assert_null(strstr(text, "before"));
    free(text);
    unit_remove_directory(top);
}

static void log_begins_a_new_line_behind_half_a_line(void **state)
{
    char *directory = unit_temporary_directory();
    char path[512], *text;
    struct vgpu_error error;
    FILE *file;

    (void)state;
    snprintf(path, sizeof(path), "%s/log", directory);
    file = fopen(path, "we");
    assert_non_null(file);
    fputs("{\"time\":\"20", file);
    fclose(file);
    assert_int_equal(log_open(path, LOG_FORMAT_TEXT, LOG_LEVEL_INFO, &error), 0);
    log_info("after");
    log_close();
    text = unit_read_file(path);
    assert_memory_equal(text, "{\"time\":\"20\n", strlen("{\"time\":\"20\n"));
    assert_non_null(strstr(text, "[INFO] after\n"));
    free(text);
    unit_remove_directory(directory);
}

static void log_that_cannot_be_opened_says_which(void **state)
{
    struct vgpu_error error;

    (void)state;
    assert_int_equal(log_open("/nonexistent/x/log", LOG_FORMAT_TEXT, LOG_LEVEL_INFO, &error), -1);
    assert_non_null(strstr(error.message, "/nonexistent/x/log"));
    assert_int_equal(error.code, ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_process_that_sleeps_is_seen_to),
        cmocka_unit_test(the_processor_time_of_a_process_grows_while_it_runs),
        cmocka_unit_test(a_process_that_is_gone_is_not_seen),
        cmocka_unit_test(error_keeps_code_and_message),
        cmocka_unit_test(error_from_errno_names_the_cause),
        cmocka_unit_test(error_cuts_what_is_too_long),
        cmocka_unit_test(error_is_cut_at_a_characters_end),
        cmocka_unit_test(utf8_is_cut_at_a_characters_end),
        cmocka_unit_test(the_beginning_of_a_cut_character_goes),
        cmocka_unit_test(what_is_no_utf8_is_shown_escaped),
        cmocka_unit_test(owners_are_names_or_numbers),
        cmocka_unit_test(an_owner_that_is_not_there_changes_nothing),
        cmocka_unit_test(numbers_are_decimal_whole_and_in_range),
        cmocka_unit_test(escaping_shows_every_byte_and_never_overflows),
        cmocka_unit_test(a_word_of_a_list_is_found_by_its_number),
        cmocka_unit_test(crc32_matches_the_published_check_value),
        cmocka_unit_test(directories_are_made_with_their_parents),
        cmocka_unit_test(a_parent_is_synced_and_a_missing_one_is_an_error),
        cmocka_unit_test(reading_past_the_end_is_an_error),
        cmocka_unit_test(record_file_returns_the_newest_record),
        cmocka_unit_test(record_file_survives_every_torn_write),
        cmocka_unit_test(record_file_reports_what_it_cannot_write),
        cmocka_unit_test(log_writes_text_events_behind_a_time_stamp),
        cmocka_unit_test(log_writes_a_message_as_one_line_whatever_is_in_it),
        cmocka_unit_test(log_writes_json_events_with_their_fields),
        cmocka_unit_test(log_follows_its_path_after_rotation),
        cmocka_unit_test(log_begins_a_new_line_behind_half_a_line),
        cmocka_unit_test(log_that_cannot_be_opened_says_which),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

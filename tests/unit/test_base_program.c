/* SPDX-License-Identifier: Apache-2.0 */
/* Programs run without a shell, with a deadline and bounded output. */
#include "unit.h"

#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>

static int shell(const char *script, unsigned timeout_ms, struct program_result *result,
                 struct vgpu_error *error)
{
    char *const argv[] = {(char *)"/bin/sh", (char *)"-c", (char *)script, NULL};

    return program_run(argv, timeout_ms, result, error);
}

static void arguments_arrive_as_they_are(void **state)
{
    char *const argv[] = {(char *)"/usr/bin/printf", (char *)"[%s]", (char *)"$HOME `id`; a 'b'\n",
                          (char *)"*", NULL};
    struct program_result result;

    (void)state;
    assert_int_equal(program_run(argv, 30000, &result, NULL), 0);
    assert_int_equal(result.status, 0);
    assert_string_equal(result.output, "[$HOME `id`; a 'b'\n][*]");
    program_clear(&result);
}

static void the_environment_is_a_fixed_one(void **state)
{
    char *const argv[] = {(char *)"/usr/bin/env", NULL};
    struct program_result result;

    (void)state;
    setenv("VGPU_SECRET", "x", 1);
    assert_int_equal(program_run(argv, 30000, &result, NULL), 0);
    assert_string_equal(result.output, "PATH=/opt/xensource/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
                                       "LC_ALL=C\nHOME=/nonexistent\n");
    program_clear(&result);
}

static void input_is_empty(void **state)
{
    struct program_result result;

    (void)state;
    assert_int_equal(shell("cat; echo end", 30000, &result, NULL), 0);
    assert_string_equal(result.output, "end\n");
    program_clear(&result);
}

static void blocked_and_ignored_signals_are_not_inherited(void **state)
{
    struct program_result result;
    sigset_t set, before;

    (void)state;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, &before);
    signal(SIGPIPE, SIG_IGN);
    /* Above 31 are those that the C library keeps for itself. */
    assert_int_equal(shell("while read name mask; do case $name in SigBlk:|SigIgn:) "
                           "echo $name $((0x$mask & 0x7fffffff));; esac; done </proc/$$/status",
                           30000, &result, NULL),
                     0);
    assert_string_equal(result.output, "SigBlk: 0\nSigIgn: 0\n");
    program_clear(&result);
    sigprocmask(SIG_SETMASK, &before, NULL);
}

static void a_status_and_the_last_words_are_told(void **state)
{
    struct program_result result;
    struct vgpu_error error;
    char *const argv[] = {(char *)"/bin/sh", (char *)"-c",
                          (char *)"printf 'first\\n  second\\033\\n' >&2; exit 7", NULL};

    (void)state;
    assert_int_equal(program_run(argv, 30000, &result, &error), 0);
    assert_int_equal(result.status, 7);
    assert_string_equal(result.problem, "first second\\x1b");
    program_clear(&result);
    assert_int_equal(program_check(argv, 30000, &result, &error), -1);
    assert_int_equal(error.code, EIO);
    assert_string_equal(error.message, "/bin/sh -c failed with status 7: first second\\x1b");
}

static void a_signal_is_a_status_above_128(void **state)
{
    struct program_result result;

    (void)state;
    assert_int_equal(shell("kill -9 $$", 30000, &result, NULL), 0);
    assert_int_equal(result.status, 128 + SIGKILL);
    program_clear(&result);
}

/* Waits until the writers of a FIFO are gone: the processes that had it open. */
static void wait_gone(const char *fifo)
{
    char buffer[16];
    int fd = open(fifo, O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    while (read(fd, buffer, sizeof(buffer)) > 0)
        ;
    close(fd);
}

static void after_the_deadline_it_and_what_it_started_are_gone(void **state)
{
    char *directory = unit_temporary_directory();
    struct program_result result = {.status = 99};
    struct vgpu_error error;
    char fifo[256], script[600];
    int hold;

    (void)state;
    snprintf(fifo, sizeof(fifo), "%s/fifo", directory);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    hold = open(fifo, O_RDWR | O_CLOEXEC);
    snprintf(script, sizeof(script), "exec 3>%s; echo why >&2; sleep 1000 & sleep 1000", fifo);
    assert_int_equal(shell(script, 300, &result, &error), -1);
    assert_int_equal(error.code, ETIMEDOUT);
    assert_non_null(strstr(error.message, "did not end within 300 ms and was killed: why"));
    assert_int_equal(result.status, 99); /* untouched */
    /* Nobody else writes there any more once our own end is closed. */
    {
        int reader = open(fifo, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

        close(hold);
        fcntl(reader, F_SETFL, 0);
        assert_int_equal(read(reader, script, sizeof(script)), 0);
        close(reader);
    }
    unit_remove_directory(directory);
}

static void output_beyond_the_bound_is_refused(void **state)
{
    struct program_result result;
    struct vgpu_error error;

    (void)state;
    assert_int_equal(shell("yes", 60000, &result, &error), -1);
    assert_int_equal(error.code, EIO);
    assert_non_null(strstr(error.message, "wrote more than 8388608 bytes and was killed"));
}

static void a_long_answer_arrives_whole(void **state)
{
    struct program_result result;

    (void)state;
    assert_int_equal(shell("head -c 3000000 /dev/zero | tr '\\0' x", 60000, &result, NULL), 0);
    assert_int_equal(result.output_bytes, 3000000);
    assert_int_equal(strspn(result.output, "x"), 3000000);
    program_clear(&result);
}

static void many_complaints_keep_their_end(void **state)
{
    struct program_result result;

    (void)state;
    assert_int_equal(shell("seq 1 20000 >&2; echo the end >&2", 60000, &result, NULL), 0);
    assert_non_null(strstr(result.problem, "19999 20000 the end"));
    assert_true(strlen(result.problem) < sizeof(result.problem));
    program_clear(&result);
}

/* xl create leaves a daemon behind that keeps what it inherited. */
static void a_program_that_left_a_child_with_its_output_has_ended(void **state)
{
    char *directory = unit_temporary_directory();
    struct program_result result;
    char fifo[256], script[600];

    (void)state;
    snprintf(fifo, sizeof(fifo), "%s/fifo", directory);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    /* The child ends when somebody opens the FIFO: after program_run() is back. */
    snprintf(script, sizeof(script), "{ echo x >%s; } & echo done", fifo);
    assert_int_equal(shell(script, 60000, &result, NULL), 0);
    assert_string_equal(result.output, "done\n");
    program_clear(&result);
    wait_gone(fifo);
    unit_remove_directory(directory);
}

static void a_program_that_is_not_there_is_an_error(void **state)
{
    char *const argv[] = {(char *)"/nonexistent/xe", (char *)"vm-list", NULL};
    struct program_result result;
    struct vgpu_error error;

    (void)state;
    assert_int_equal(program_run(argv, 1000, &result, &error), -1);
    assert_int_equal(error.code, ENOENT);
    assert_string_equal(error.message,
                        "/nonexistent/xe cannot be started: No such file or directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arguments_arrive_as_they_are),
        cmocka_unit_test(the_environment_is_a_fixed_one),
        cmocka_unit_test(input_is_empty),
        cmocka_unit_test(blocked_and_ignored_signals_are_not_inherited),
        cmocka_unit_test(a_status_and_the_last_words_are_told),
        cmocka_unit_test(a_signal_is_a_status_above_128),
        cmocka_unit_test(after_the_deadline_it_and_what_it_started_are_gone),
        cmocka_unit_test(output_beyond_the_bound_is_refused),
        cmocka_unit_test(a_long_answer_arrives_whole),
        cmocka_unit_test(many_complaints_keep_their_end),
        cmocka_unit_test(a_program_that_left_a_child_with_its_output_has_ended),
        cmocka_unit_test(a_program_that_is_not_there_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

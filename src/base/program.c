/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a program: an argument vector, no shell, a fixed environment, a deadline,
 * and no more output than was agreed.
 *
 *   poll ──▶ stdout ──▶ kept, bounded
 *        ──▶ stderr ──▶ its last words, for the message
 *        ──▶ pidfd  ──▶ the program has ended, even if something that it started
 *                       still holds its output
 *
 * The program leads a process group of its own, so that what it started ends with
 * it when the deadline passes.
 */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROGRAM_PATH "/opt/xensource/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define PROBLEM_KEPT_BYTES 4096
#define READ_BYTES 16384
#define WAIT_SLICE_MS 20 /* where the kernel has no pidfd (before 5.3) */

/* xe reads ~/.xe; with one that names another host we would change that one. */
static char *const environment[] = {
    (char *)"PATH=" PROGRAM_PATH,
    (char *)"LC_ALL=C",
    (char *)"HOME=/nonexistent",
    NULL,
};

struct running {
    pid_t pid;
    int pidfd; /* -1: not there */
    int output_fd;
    int problem_fd;
    uint64_t deadline_ns;
    struct program_result *result;
    char problem[PROBLEM_KEPT_BYTES];
    size_t problem_bytes;
    bool reaped;
};

static int set_up_actions(posix_spawn_file_actions_t *actions, int output_fd, int problem_fd)
{
    int code = posix_spawn_file_actions_init(actions);

    if (code != 0)
        return code;
    code = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(actions, output_fd, STDOUT_FILENO);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(actions, problem_fd, STDERR_FILENO);
    if (code != 0)
        posix_spawn_file_actions_destroy(actions);
    return code;
}

static int set_up_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none, all;
    int code = posix_spawnattr_init(attributes);

    if (code != 0)
        return code;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                             POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(attributes, 0);
    posix_spawnattr_setsigmask(attributes, &none);
    posix_spawnattr_setsigdefault(attributes, &all);
    return 0;
}

static int spawn(char *const argv[], int output_fd, int problem_fd, pid_t *ret_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int code = set_up_actions(&actions, output_fd, problem_fd);

    if (code != 0)
        return code;
    code = set_up_attributes(&attributes);
    if (code == 0) {
        code = posix_spawn(ret_pid, argv[0], &actions, &attributes, argv, environment);
        posix_spawnattr_destroy(&attributes);
    }
    posix_spawn_file_actions_destroy(&actions);
    return code;
}

static int start(char *const argv[], struct running *run, struct vgpu_error *error)
{
    int output[2], problem[2];
    int code;

    if (pipe2(output, O_CLOEXEC) < 0)
        return error_set_errno(error, "%s: making a pipe", argv[0]);
    if (pipe2(problem, O_CLOEXEC) < 0) {
        error_set_errno(error, "%s: making a pipe", argv[0]);
        fd_close(&output[0]);
        fd_close(&output[1]);
        return -1;
    }
    code = spawn(argv, output[1], problem[1], &run->pid);
    fd_close(&output[1]);
    fd_close(&problem[1]);
    run->output_fd = output[0];
    run->problem_fd = problem[0];
    if (code != 0) {
        fd_close(&run->output_fd);
        fd_close(&run->problem_fd);
        return error_set(error, code, "%s cannot be started: %s", argv[0], strerror(code));
    }
    fcntl(run->output_fd, F_SETFL, O_NONBLOCK);
    fcntl(run->problem_fd, F_SETFL, O_NONBLOCK);
#ifdef SYS_pidfd_open
    run->pidfd = (int)syscall(SYS_pidfd_open, run->pid, 0);
#endif
    return 0;
}

/* Takes what is there; closes the descriptor at its end.  -1: more than agreed. */
static int take_output(struct running *run)
{
    struct program_result *result = run->result;
    char buffer[READ_BYTES];
    ssize_t got;

    while ((got = read(run->output_fd, buffer, sizeof(buffer))) > 0) {
        char *grown;

        if (result->output_bytes + (size_t)got > PROGRAM_OUTPUT_MAX_BYTES)
            return -1;
        grown = realloc(result->output, result->output_bytes + (size_t)got + 1);
        if (!grown)
            return -1;
        memcpy(grown + result->output_bytes, buffer, (size_t)got);
        result->output = grown;
        result->output_bytes += (size_t)got;
        grown[result->output_bytes] = '\0';
    }
    if (got == 0 || (errno != EAGAIN && errno != EINTR))
        fd_close(&run->output_fd);
    return 0;
}

/* Keeps the end: that is where programs say what went wrong. */
static void take_problem(struct running *run)
{
    char buffer[READ_BYTES];
    ssize_t got;

    while ((got = read(run->problem_fd, buffer, sizeof(buffer))) > 0) {
        size_t bytes = (size_t)got, from = 0, keep;

        if (bytes > sizeof(run->problem)) {
            from = bytes - sizeof(run->problem);
            bytes = sizeof(run->problem);
        }
        keep = sizeof(run->problem) - bytes;
        if (keep > run->problem_bytes)
            keep = run->problem_bytes;
        memmove(run->problem, run->problem + run->problem_bytes - keep, keep);
        memcpy(run->problem + keep, buffer + from, bytes);
        run->problem_bytes = keep + bytes;
    }
    if (got == 0 || (errno != EAGAIN && errno != EINTR))
        fd_close(&run->problem_fd);
}

static bool has_ended(struct running *run)
{
    int status;

    if (run->reaped)
        return true;
    if (waitpid(run->pid, &status, WNOHANG) != run->pid)
        return false;
    run->reaped = true;
    run->result->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return true;
}

/* How long poll() may sleep; -1: the deadline has passed. */
static int sleep_ms(const struct running *run)
{
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t left_ms;

    if (now_ns >= run->deadline_ns)
        return -1;
    left_ms = (run->deadline_ns - now_ns) / NS_PER_MS + 1;
    if (run->pidfd < 0 && left_ms > WAIT_SLICE_MS)
        left_ms = WAIT_SLICE_MS;
    return left_ms > INT32_MAX ? INT32_MAX : (int)left_ms;
}

/* 0 it ended, else an errno value. */
static int follow(struct running *run)
{
    for (;;) {
        struct pollfd fds[3] = {
            {.fd = run->output_fd, .events = POLLIN},
            {.fd = run->problem_fd, .events = POLLIN},
            {.fd = run->pidfd, .events = POLLIN},
        };
        bool ended = has_ended(run);
        int wait_ms = sleep_ms(run);

        /* In this order: what it wrote before its end is there after it. */
        if (run->output_fd >= 0 && take_output(run) < 0)
            return EFBIG;
        if (run->problem_fd >= 0)
            take_problem(run);
        if (ended)
            return 0;
        if (wait_ms < 0)
            return ETIMEDOUT;
        fds[0].fd = run->output_fd;
        fds[1].fd = run->problem_fd;
        poll(fds, 3, wait_ms);
    }
}

static void end(struct running *run)
{
    if (!run->reaped) {
        kill(-run->pid, SIGKILL);
        while (waitpid(run->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    fd_close(&run->output_fd);
    fd_close(&run->problem_fd);
    fd_close(&run->pidfd);
}

/* Its last words in one line. */
static void describe_problem(const struct running *run)
{
    struct program_result *result = run->result;
    const char *text = run->problem;
    size_t bytes = run->problem_bytes;
    char line[PROBLEM_KEPT_BYTES];
    size_t used = 0;

    for (size_t i = 0; i < bytes; i++) {
        bool blank = text[i] == '\n' || text[i] == '\r' || text[i] == '\t' || text[i] == ' ';

        if (!blank)
            line[used++] = text[i];
        else if (used > 0 && line[used - 1] != ' ')
            line[used++] = ' ';
    }
    while (used > 0 && line[used - 1] == ' ')
        used--;
    if (used >= sizeof(result->problem)) {
        memmove(line, line + used - (sizeof(result->problem) - 1), sizeof(result->problem) - 1);
        used = sizeof(result->problem) - 1;
    }
    text_escape(result->problem, sizeof(result->problem), line, used);
}

int program_run(char *const argv[], unsigned timeout_ms, struct program_result *ret_result,
                struct vgpu_error *error)
{
    struct program_result result = {.output = calloc(1, 1)};
    struct running run = {.pidfd = -1, .output_fd = -1, .problem_fd = -1, .result = &result};
    int code;

    if (!result.output)
        return error_set(error, ENOMEM, "%s: no memory", argv[0]);
    run.deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
    if (start(argv, &run, error) < 0) {
        program_clear(&result);
        return -1;
    }
    code = follow(&run);
    describe_problem(&run);
    end(&run);
    if (code == 0) {
        *ret_result = result;
        return 0;
    }
    if (code == ETIMEDOUT)
        error_set(error, code, "%s %s did not end within %u ms and was killed%s%s", argv[0],
                  argv[1] ? argv[1] : "", timeout_ms, *result.problem ? ": " : "", result.problem);
    else
        error_set(error, EIO, "%s %s wrote more than %u bytes and was killed", argv[0],
                  argv[1] ? argv[1] : "", PROGRAM_OUTPUT_MAX_BYTES);
    program_clear(&result);
    return -1;
}

void program_clear(struct program_result *result)
{
    free(result->output);
    *result = (struct program_result){0};
}

int program_check(char *const argv[], unsigned timeout_ms, struct program_result *ret_result,
                  struct vgpu_error *error)
{
    struct program_result result;

    if (program_run(argv, timeout_ms, &result, error) < 0)
        return -1;
    if (result.status == 0) {
        *ret_result = result;
        return 0;
    }
    error_set(error, EIO, "%s %s failed with status %d: %s", argv[0], argv[1] ? argv[1] : "",
              result.status, *result.problem ? result.problem : "it said nothing");
    program_clear(&result);
    return -1;
}

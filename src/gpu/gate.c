/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts vgpu-gpu-check, reads what it prints, and kills it at the deadline.  Not by
 * program_run(): what came before the deadline tells where it was, and our environment says
 * where the loader looks.  A process that a driver holds in the kernel cannot be killed at once:
 * it is waited for no longer than a while, and init gets it when we end.
 */
#include "gpu/gpu.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define REAP_WAIT_MS 2000u
#define REAP_STEP_MS 5u

void gpu_gate_program(char *path, size_t bytes)
{
    static const char *const places[] = {"vgpu-gpu-check", "../gpu/vgpu-gpu-check",
                                         "../../src/gpu/vgpu-gpu-check"};
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;

    self[length > 0 ? length : 0] = '\0';
    slash = strrchr(self, '/');
    for (size_t i = 0; slash && i < VGPU_ARRAY_LENGTH(places); i++) {
        *slash = '\0';
        if (snprintf(path, bytes, "%s/%s", self, places[i]) < (int)bytes && access(path, X_OK) == 0)
            return;
    }
    text_copy(path, bytes, VGPU_LIBEXEC_DIR "/vgpu-gpu-check");
}

void gpu_gate_arguments(const struct gpu_gate_config *config, const char *program,
                        const char *ret_arguments[GPU_GATE_ARGUMENTS_MAX])
{
    size_t count = 0;

    ret_arguments[count++] = program;
    if (config->cuda_library) {
        ret_arguments[count++] = "--library";
        ret_arguments[count++] = config->cuda_library;
    }
    if (config->selector && config->selector[0]) {
        ret_arguments[count++] = "--device";
        ret_arguments[count++] = config->selector;
    }
    if (config->user) {
        ret_arguments[count++] = "--user";
        ret_arguments[count++] = config->user;
    }
    ret_arguments[count] = NULL;
}

/* Its output goes to `output`; what the driver complains of goes nowhere. */
static int start(const char *const arguments[], int output, pid_t *ret_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    int code;

    if (posix_spawn_file_actions_init(&actions) != 0)
        return ENOMEM;
    if (posix_spawnattr_init(&attributes) != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return ENOMEM;
    }
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    code = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (code == 0)
        code = posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    if (code == 0)
        code = posix_spawn(ret_pid, arguments[0], &actions, &attributes, (char *const *)arguments,
                           environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return code;
}

/* Until all writers have closed it; false when the time is over. */
static bool read_output(int fd, uint64_t deadline_ns, char *output, size_t bytes)
{
    size_t used = 0;

    for (;;) {
        struct pollfd one = {.fd = fd, .events = POLLIN};
        uint64_t now_ns = clock_monotonic_ns();
        char part[1024];
        ssize_t got;

        output[used] = '\0';
        if (now_ns >= deadline_ns ||
            poll(&one, 1, (int)((deadline_ns - now_ns) / NS_PER_MS) + 1) == 0)
            return false;
        got = read(fd, part, sizeof(part));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return true;
        for (ssize_t i = 0; i < got && used + 1 < bytes; i++)
            output[used++] = part[i];
    }
}

/* Waits for who has closed its output, or was killed; gives its status. */
static int reap(pid_t pid)
{
    int status = 0;

    for (unsigned waited_ms = 0; waited_ms < REAP_WAIT_MS; waited_ms += REAP_STEP_MS) {
        pid_t ended = waitpid(pid, &status, WNOHANG);

        if (ended == pid || (ended < 0 && errno != EINTR))
            return status;
        poll(NULL, 0, REAP_STEP_MS); /* a pidfd is not in every kernel that we run on */
    }
    kill(-pid, SIGKILL);
    return waitpid(pid, &status, WNOHANG) == pid ? status : SIGKILL;
}

static int refuse(struct gpu_gate_report *report, const char *program, int code)
{
    *report = (struct gpu_gate_report){.step = GPU_STEP_START, .code = GPU_GATE_REFUSED};
    snprintf(report->message, sizeof(report->message), "cannot run %.300s: %s", program,
             strerror(code));
    gpu_gate_explain(NULL, report);
    return -1;
}

int gpu_gate(const struct gpu_gate_config *config, struct gpu_gate_report *ret_report)
{
    uint32_t deadline_ms = config->deadline_ms ? config->deadline_ms : GPU_GATE_DEADLINE_MS;
    uint64_t deadline_ns = clock_monotonic_ns() + deadline_ms * NS_PER_MS;
    const char *arguments[GPU_GATE_ARGUMENTS_MAX], *program = config->program;
    char output[GPU_GATE_OUTPUT_BYTES], path[PATH_MAX];
    int fds[2], code;
    bool in_time;
    pid_t pid;

    if (!program) {
        gpu_gate_program(path, sizeof(path));
        program = path;
    }
    gpu_gate_arguments(config, program, arguments);
    if (pipe2(fds, O_CLOEXEC) < 0)
        return refuse(ret_report, program, errno);
    code = start(arguments, fds[1], &pid);
    fd_close(&fds[1]);
    if (code != 0) {
        fd_close(&fds[0]);
        return refuse(ret_report, program, code);
    }
    in_time = read_output(fds[0], deadline_ns, output, sizeof(output));
    if (!in_time)
        kill(-pid, SIGKILL);
    fd_close(&fds[0]);
    gpu_gate_judge(output, reap(pid), !in_time, deadline_ms, ret_report);
    return ret_report->ok ? 0 : -1;
}

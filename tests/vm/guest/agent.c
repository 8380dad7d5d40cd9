/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * agent - runs commands inside a guest for tests/vm/harness/guest.py.
 *
 *   harness                    virtio-serial                  agent (this)
 *   "RUN 7 12\nuname -a; id"   ───────────▶   sh -c 'uname -a; id' in the background
 *                              ◀───────────   "OUT 7 230\n" and 230 bytes, as they come
 *                              ◀───────────   "END 7 0\n"      its exit status, or 128 + signal
 *   "KILL 7 15\n"              ───────────▶   signal to the command's process group
 *
 * A port of its own, not the console: kernel messages never mix with answers,
 * and lengths instead of end markers let a command print any bytes.  The port
 * is reliable and in order, so nothing is ever resent.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define JOBS_MAX 64
#define SCRIPT_MAX_BYTES 65536
#define POLL_MS 1000

struct job {
    unsigned id;
    pid_t pid; /* 0: this entry is free */
    int output_fd;
};

static struct job jobs[JOBS_MAX];
static int port_fd;
static int child_pipe[2]; /* SIGCHLD wakes poll() through it */

static void on_child(int signal_number)
{
    int saved_errno = errno;

    (void)signal_number;
    if (write(child_pipe[1], "", 1) < 0)
        errno = 0; /* full: a wake-up is pending already */
    errno = saved_errno;
}

static void die(const char *what)
{
    fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void port_write(const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(port_fd, data, bytes);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            die("writing to the port");
        data += written;
        bytes -= (size_t)written;
    }
}

static void port_printf(const char *format, ...)
{
    char line[128];
    va_list arguments;
    int bytes;

    va_start(arguments, format);
    bytes = vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    if (bytes > 0 && (size_t)bytes < sizeof(line))
        port_write(line, (size_t)bytes);
}

/* Reads exactly `bytes`; the harness never sends half a message for long. */
static void port_read(char *buffer, size_t bytes)
{
    while (bytes > 0) {
        ssize_t got = read(port_fd, buffer, bytes);

        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got <= 0)
            die("reading from the port");
        buffer += got;
        bytes -= (size_t)got;
    }
}

static bool port_read_line(char *line, size_t size)
{
    for (size_t length = 0; length + 1 < size; length++) {
        port_read(line + length, 1);
        if (line[length] == '\n') {
            line[length] = '\0';
            return true;
        }
    }
    return false;
}

static void job_exec(const char *script, const int output[2])
{
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    setsid();
    signal(SIGCHLD, SIG_DFL);
    dup2(null_fd, 0);
    dup2(output[1], 1);
    dup2(output[1], 2);
    execl("/bin/sh", "sh", "-c", script, (char *)NULL);
    _exit(127);
}

static void job_start(unsigned id, const char *script)
{
    struct job *job = NULL;
    int output[2];

    for (int i = 0; i < JOBS_MAX && !job; i++)
        if (jobs[i].pid == 0)
            job = &jobs[i];
    if (!job || pipe2(output, O_CLOEXEC) < 0) {
        port_printf("END %u 126\n", id);
        return;
    }
    pid_t pid = fork();
    if (pid == 0)
        job_exec(script, output);
    close(output[1]);
    if (pid < 0) {
        close(output[0]);
        port_printf("END %u 126\n", id);
        return;
    }
    fcntl(output[0], F_SETFL, O_NONBLOCK);
    *job = (struct job){.id = id, .pid = pid, .output_fd = output[0]};
}

static void job_drain(struct job *job)
{
    char buffer[4096];
    ssize_t got;

    while (job->output_fd >= 0 && (got = read(job->output_fd, buffer, sizeof(buffer))) != 0) {
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return;
        port_printf("OUT %u %zd\n", job->id, got);
        port_write(buffer, (size_t)got);
    }
    if (job->output_fd >= 0)
        close(job->output_fd);
    job->output_fd = -1;
}

/* The end of the shell is the end of the job, even when something that it left
 * in the background still holds its output. */
static void jobs_reap(void)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (int i = 0; i < JOBS_MAX; i++) {
            struct job *job = &jobs[i];

            if (job->pid != pid)
                continue;
            job_drain(job);
            if (job->output_fd >= 0)
                close(job->output_fd);
            port_printf("END %u %d\n", job->id,
                        WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
            job->pid = 0;
        }
    }
}

static void job_kill(unsigned id, int signal_number)
{
    for (int i = 0; i < JOBS_MAX; i++)
        if (jobs[i].pid != 0 && jobs[i].id == id)
            kill(-jobs[i].pid, signal_number);
}

static void port_handle(void)
{
    static char script[SCRIPT_MAX_BYTES + 1];
    char line[128];
    unsigned id;
    size_t bytes;
    int signal_number;

    if (!port_read_line(line, sizeof(line)))
        die("a line from the harness");
    if (sscanf(line, "RUN %u %zu", &id, &bytes) == 2 && bytes <= SCRIPT_MAX_BYTES) {
        port_read(script, bytes);
        script[bytes] = '\0';
        job_start(id, script);
    } else if (sscanf(line, "KILL %u %d", &id, &signal_number) == 2) {
        job_kill(id, signal_number);
    } else {
        fprintf(stderr, "agent: what is '%s'?\n", line);
    }
}

static void agent_poll(void)
{
    struct pollfd fds[JOBS_MAX + 2] = {{.fd = port_fd, .events = POLLIN},
                                       {.fd = child_pipe[0], .events = POLLIN}};
    char drop[64];

    for (int i = 0; i < JOBS_MAX; i++) {
        fds[i + 2].fd = jobs[i].pid != 0 ? jobs[i].output_fd : -1;
        fds[i + 2].events = POLLIN;
    }
    if (poll(fds, JOBS_MAX + 2, POLL_MS) < 0 && errno != EINTR)
        die("poll");
    for (int i = 0; i < JOBS_MAX; i++)
        if (fds[i + 2].revents)
            job_drain(&jobs[i]);
    while (read(child_pipe[0], drop, sizeof(drop)) > 0)
        continue;
    jobs_reap();
    if (fds[0].revents & POLLIN)
        port_handle();
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: agent PORT\n");
        return 2;
    }
    port_fd = open(argv[1], O_RDWR | O_CLOEXEC);
    if (port_fd < 0)
        die(argv[1]);
    if (pipe2(child_pipe, O_CLOEXEC | O_NONBLOCK) < 0)
        die("pipe");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, on_child);
    port_printf("HELLO\n");
    for (;;)
        agent_poll();
}

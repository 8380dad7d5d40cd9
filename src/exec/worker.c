/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker, seen from the mediator: one child process, one socket to it.
 *
 *           exec_worker_run()
 *   idle ───────────────────────▶ busy (sequence != 0)
 *    ▲                             │ a result of this very sequence:
 *    └─────────────────────────────┘ events.completed()
 *
 *   either ── process exits ──▶ read what is still in the socket
 *                               (completed), events.ended(), free
 *
 * The worker runs guests' work, so its messages are believed no more than a
 * guest's: anything that is not the one expected message, whole, in its turn,
 * ends the worker.  One message is read a visit of the loop, so a worker that
 * floods its socket stops at its second message.
 *
 * The memory lives until both handles are closed, later than every callback;
 * so a callback may stop, kill or detach its worker.
 */
#include "exec/private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define REASON_BYTES 256

/* From the end of its socket to the end of a process. */
#define EXIT_GRACE_MS 1000

struct exec_worker {
    uv_process_t process;
    uv_poll_t poll;
    uv_timer_t grace; /* runs when the socket ended before the process */
    struct exec_worker_events events;
    int socket;
    unsigned open_handles;
    uint64_t sequence;        /* what it runs, 0 when idle */
    uint64_t sent_ns;         /* when it got that, CLOCK_MONOTONIC */
    uint32_t contexts;        /* that it said to have when it answered last */
    bool spawned;             /* the process handle is the loop's, even where spawning failed */
    bool exited;              /* the process is gone */
    bool stopping;            /* it was asked to end: no more operations */
    bool killed;              /* we sent SIGKILL */
    bool distrusted;          /* it broke the rules: nothing that it says counts */
    bool forgotten;           /* the handles are closing: no more events */
    char fault[REASON_BYTES]; /* what it did, when we killed it for that */
};

/* --- life and death ----------------------------------------------------------- */

static void worker_on_closed(uv_handle_t *handle)
{
    struct exec_worker *worker = handle->data;

    if (--worker->open_handles == 0)
        free(worker);
}

/* Lets go of everything; the memory follows when the loop has turned. */
static void worker_close(struct exec_worker *worker)
{
    worker->forgotten = true;
    worker->open_handles = worker->spawned ? 3 : 2;
    uv_close((uv_handle_t *)&worker->poll, worker_on_closed);
    uv_close((uv_handle_t *)&worker->grace, worker_on_closed);
    if (worker->spawned)
        uv_close((uv_handle_t *)&worker->process, worker_on_closed);
    fd_close(&worker->socket);
}

static void worker_signal_kill(struct exec_worker *worker)
{
    if (worker->exited || worker->killed)
        return;
    worker->killed = true;
    uv_process_kill(&worker->process, SIGKILL);
}

/* Ends a worker that broke the rules. */
static void worker_condemn(struct exec_worker *worker, const char *fault)
{
    uv_poll_stop(&worker->poll);
    worker->distrusted = true;
    text_copy(worker->fault, sizeof(worker->fault), fault);
    worker_signal_kill(worker);
}

static const char *signal_name(int number)
{
    static const struct {
        int number;
        const char *name;
    } names[] = {
        {SIGABRT, "SIGABRT"}, {SIGALRM, "SIGALRM"}, {SIGBUS, "SIGBUS"},   {SIGFPE, "SIGFPE"},
        {SIGHUP, "SIGHUP"},   {SIGILL, "SIGILL"},   {SIGINT, "SIGINT"},   {SIGKILL, "SIGKILL"},
        {SIGPIPE, "SIGPIPE"}, {SIGQUIT, "SIGQUIT"}, {SIGSEGV, "SIGSEGV"}, {SIGSYS, "SIGSYS"},
        {SIGTERM, "SIGTERM"}, {SIGTRAP, "SIGTRAP"}, {SIGXCPU, "SIGXCPU"}, {SIGXFSZ, "SIGXFSZ"},
    };

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(names); i++) {
        if (names[i].number == number)
            return names[i].name;
    }
    return "no common one";
}

void exec_describe_end(bool killed, const char *fault, int64_t status, int number, char *reason,
                       size_t bytes)
{
    const char *separator = fault[0] ? ": " : "";

    /* It may have died of something else before our signal came. */
    if (killed && number == SIGKILL)
        snprintf(reason, bytes, "killed by the mediator%s%s", separator, fault);
    else if (number)
        snprintf(reason, bytes, "killed by signal %d (%s)", number, signal_name(number));
    else
        snprintf(reason, bytes, "exited with status %lld", (long long)status);
}

/* --- results ------------------------------------------------------------------- */

/* Checks a message of `bytes`; fills `reason` and returns false if it is not the
 * one that must come now. */
static bool result_is_expected(const struct exec_worker *worker,
                               const struct exec_result_message *result, size_t bytes, char *reason,
                               size_t reason_bytes)
{
    if (bytes != sizeof(*result))
        snprintf(reason, reason_bytes, "it sent %zu bytes, expected a result of %zu", bytes,
                 sizeof(*result));
    else if (result->magic != EXEC_MESSAGE_MAGIC || result->version != EXEC_MESSAGE_VERSION)
        snprintf(reason, reason_bytes,
                 "it speaks version %u (magic 0x%08x), expected version %u (magic 0x%08x): "
                 "install worker and mediator of one release",
                 result->version, result->magic, EXEC_MESSAGE_VERSION, EXEC_MESSAGE_MAGIC);
    else if (worker->sequence == 0)
        snprintf(reason, reason_bytes, "it sent a result while it had no operation");
    else if (result->sequence != worker->sequence)
        snprintf(reason, reason_bytes, "it sent a result of operation %llu, expected %llu",
                 (unsigned long long)result->sequence, (unsigned long long)worker->sequence);
    else if (result->success > 1)
        snprintf(reason, reason_bytes, "it sent success=%u, expected 0 or 1", result->success);
    else if (!memchr(result->message, '\0', sizeof(result->message)))
        snprintf(reason, reason_bytes, "it sent a message without an end");
    else
        return true;
    return false;
}

static void worker_complete(struct exec_worker *worker, const struct exec_result_message *result)
{
    struct protocol_response response = {.success = result->success == 1};
    uint64_t sequence = worker->sequence;
    uint64_t elapsed_us = (clock_monotonic_ns() - worker->sent_ns) / NS_PER_US;
    /* It cannot have used the device for longer than it had the operation. */
    uint64_t device_us = result->device_us < elapsed_us ? result->device_us : elapsed_us;

    text_copy(response.message, sizeof(response.message), result->message);
    worker->sequence = 0;
    worker->contexts = result->contexts;
    worker->events.completed(worker, sequence, &response, device_us, worker->events.context);
}

/* It lives on without its socket: it must not. */
static void worker_on_grace_over(uv_timer_t *grace)
{
    worker_condemn(grace->data, "it closed its connection");
}

/* Reads one message, if there is one. */
static void worker_receive(struct exec_worker *worker)
{
    struct exec_result_message result;
    char reason[REASON_BYTES];
    ssize_t got;

    /* MSG_TRUNC: the length that was sent, also where it is too much for us.
     * Descriptors that came along are closed by the kernel: we take none. */
    got = recv(worker->socket, &result, sizeof(result), MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        /* Its end closes when it exits, however it exits, and how it did comes
         * next.  Killing it now would hide that. */
        uv_poll_stop(&worker->poll);
        if (!worker->exited)
            uv_timer_start(&worker->grace, worker_on_grace_over, EXIT_GRACE_MS, 0);
        return;
    }
    if (!result_is_expected(worker, &result, (size_t)got, reason, sizeof(reason)))
        worker_condemn(worker, reason);
    else
        worker_complete(worker, &result);
}

static void worker_on_readable(uv_poll_t *poll, int status, int events)
{
    (void)status; /* recv() finds the same error, and says it better */
    (void)events;
    worker_receive(poll->data);
}

static void worker_on_exit(uv_process_t *process, int64_t status, int number)
{
    struct exec_worker *worker = process->data;
    char reason[REASON_BYTES + 32];

    worker->exited = true;
    /* A result that it sent before it went is a result; it owes at most one. */
    if (worker->sequence && !worker->distrusted)
        worker_receive(worker);
    if (worker->forgotten)
        return; /* completed() detached it */
    exec_describe_end(worker->killed, worker->fault, status, number, reason, sizeof(reason));
    worker->events.ended(worker, worker->sequence, reason, worker->events.context);
    if (!worker->forgotten)
        worker_close(worker);
}

/* --- start ---------------------------------------------------------------------- */

char **exec_environment_new(void)
{
    static const char *const passed[] = {"VGPU_FAULT", "ASAN_OPTIONS", "LSAN_OPTIONS",
                                         "TSAN_OPTIONS", "UBSAN_OPTIONS"};
    char **environment = calloc(VGPU_ARRAY_LENGTH(passed) + 3, sizeof(*environment));
    size_t count = 0;

    if (!environment)
        return NULL;
    environment[count++] =
        strdup("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    environment[count++] = strdup("LANG=C");
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(passed); i++) {
        const char *value = getenv(passed[i]);

        if (value && asprintf(&environment[count], "%s=%s", passed[i], value) >= 0)
            count++;
    }
    return environment;
}

void exec_environment_free(char **environment)
{
    for (char **at = environment; at && *at; at++)
        free(*at);
    free(environment);
}

int exec_execution_log_open(const char *path, struct vgpu_error *error)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, 0640);

    if (fd < 0)
        return error_set_errno(error, "cannot open execution log '%s'", path);
    return fd;
}

int exec_cgroup_open(const char *path, struct vgpu_error *error)
{
    char procs[PATH_MAX];
    int fd;

    if (snprintf(procs, sizeof(procs), "%s/cgroup.procs", path) >= (int)sizeof(procs))
        return error_set(error, ENAMETOOLONG, "cgroup '%s' is too long", path);
    fd = open(procs, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, "cannot open '%s'", procs);
    return fd;
}

/* The process starts in `/`, so a relative path must be made whole before. */
static int program_resolve(const char *program, char path[PATH_MAX], struct vgpu_error *error)
{
    if (!realpath(program, path))
        return error_set_errno(error, "cannot run worker program '%s'", program);
    return 0;
}

struct arguments {
    char vm[16], uid[16], gid[16];
    char *list[16];
    size_t count;
};

static void add_word(struct arguments *arguments, const char *word)
{
    arguments->list[arguments->count++] = (char *)(uintptr_t)word; /* argv is not const */
}

static void make_arguments(struct arguments *arguments, const struct exec_worker_config *config)
{
    *arguments = (struct arguments){.count = 0};
    snprintf(arguments->vm, sizeof(arguments->vm), "%u", config->vm_id);
    add_word(arguments, "vgpu-worker");
    add_word(arguments, "--vm");
    add_word(arguments, arguments->vm);
    add_word(arguments, "--backend");
    add_word(arguments, config->backend);
    if (config->device) {
        add_word(arguments, "--device");
        add_word(arguments, config->device);
    }
    if (config->cuda_library) {
        add_word(arguments, "--cuda-library");
        add_word(arguments, config->cuda_library);
    }
    if (config->execution_log)
        add_word(arguments, "--execution-log");
    if (config->cgroup)
        add_word(arguments, "--cgroup");
    if (config->uid == (uid_t)-1)
        return;
    snprintf(arguments->uid, sizeof(arguments->uid), "%u", config->uid);
    snprintf(arguments->gid, sizeof(arguments->gid), "%u", config->gid);
    add_word(arguments, "--uid");
    add_word(arguments, arguments->uid);
    add_word(arguments, "--gid");
    add_word(arguments, arguments->gid);
}

/* `fds`: what becomes the worker's descriptor of that number; -1: nothing. */
static int worker_spawn(uv_loop_t *loop, struct exec_worker *worker,
                        const struct exec_worker_config *config, const int fds[EXEC_FD_COUNT],
                        struct vgpu_error *error)
{
    char program[PATH_MAX];
    struct arguments arguments;
    uv_stdio_container_t stdio[EXEC_FD_COUNT] = {
        [STDERR_FILENO] = {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO}};
    uv_process_options_t options = {
        .exit_cb = worker_on_exit,
        .file = program,
        .cwd = "/",
        .flags = UV_PROCESS_DETACHED,
        .stdio = stdio,
        .stdio_count = EXEC_FD_COUNT,
    };
    int code;

    if (program_resolve(config->program, program, error) < 0)
        return -1;
    make_arguments(&arguments, config);
    options.args = arguments.list;
    for (int i = EXEC_SOCKET_FD; i < EXEC_FD_COUNT; i++) {
        if (fds[i] >= 0)
            stdio[i] = (uv_stdio_container_t){.flags = UV_INHERIT_FD, .data.fd = fds[i]};
    }
    options.env = exec_environment_new();
    if (!options.env)
        return error_set(error, ENOMEM, "cannot run worker program '%s'", config->program);
    worker->spawned = true;
    code = uv_spawn(loop, &worker->process, &options);
    exec_environment_free(options.env);
    if (code < 0)
        return error_set(error, -code, "cannot run worker program '%s': %s", config->program,
                         uv_strerror(code));
    return 0;
}

/* Makes the object around `socket`, which is its own from here on.  Watching starts before
 * there is a process, as after it nothing may fail. */
static struct exec_worker *worker_new(uv_loop_t *loop, const struct exec_worker_events *events,
                                      int socket, struct vgpu_error *error)
{
    struct exec_worker *worker = calloc(1, sizeof(*worker));
    int code = worker ? uv_poll_init(loop, &worker->poll, socket) : UV_ENOMEM;

    if (code < 0) {
        free(worker);
        fd_close(&socket);
        error_set(error, -code, "cannot watch a worker's socket: %s", uv_strerror(code));
        return NULL;
    }
    worker->events = *events;
    worker->socket = socket;
    worker->poll.data = worker;
    worker->grace.data = worker;
    worker->process.data = worker;
    uv_timer_init(loop, &worker->grace);
    code = uv_poll_start(&worker->poll, UV_READABLE, worker_on_readable);
    if (code < 0) {
        worker_close(worker);
        error_set(error, -code, "cannot watch a worker's socket: %s", uv_strerror(code));
        return NULL;
    }
    return worker;
}

static int worker_launch(uv_loop_t *loop, const struct exec_worker_config *config,
                         const struct exec_worker_events *events, int fds[EXEC_FD_COUNT],
                         struct exec_worker **ret_worker, struct vgpu_error *error)
{
    struct exec_worker *worker;
    int pair[2], result = -1;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(error, "cannot make a worker's socket");
    worker = worker_new(loop, events, pair[0], error);
    if (worker) {
        fds[EXEC_SOCKET_FD] = pair[1];
        result = worker_spawn(loop, worker, config, fds, error);
        if (result < 0)
            worker_close(worker);
        else
            *ret_worker = worker;
    }
    fd_close(&pair[1]);
    return result;
}

int exec_worker_start(uv_loop_t *loop, const struct exec_worker_config *config,
                      const struct exec_worker_events *events, struct exec_worker **ret_worker,
                      struct vgpu_error *error)
{
    int fds[EXEC_FD_COUNT], result;

    for (int i = 0; i < EXEC_FD_COUNT; i++)
        fds[i] = -1;
    fds[EXEC_RECORD_FD] = exec_record_lock(config->record_path, error);
    result = fds[EXEC_RECORD_FD] < 0 ? -1 : 0;
    if (result == 0 && config->execution_log) {
        fds[EXEC_LOG_FD] = exec_execution_log_open(config->execution_log, error);
        result = fds[EXEC_LOG_FD] < 0 ? -1 : 0;
    }
    if (result == 0 && config->cgroup) {
        fds[EXEC_CGROUP_FD] = exec_cgroup_open(config->cgroup, error);
        result = fds[EXEC_CGROUP_FD] < 0 ? -1 : 0;
    }
    if (result == 0)
        result = worker_launch(loop, config, events, fds, ret_worker, error);
    /* The worker has copies now, the lock among them. */
    fd_close(&fds[EXEC_RECORD_FD]);
    fd_close(&fds[EXEC_LOG_FD]);
    fd_close(&fds[EXEC_CGROUP_FD]);
    return result;
}

/* --- use ------------------------------------------------------------------------- */

int exec_worker_run(struct exec_worker *worker, uint64_t sequence, const char *command,
                    struct vgpu_error *error)
{
    struct exec_operation_message operation = {
        .magic = EXEC_MESSAGE_MAGIC, .version = EXEC_MESSAGE_VERSION, .sequence = sequence};
    uint64_t sent_ns = clock_monotonic_ns(); /* before: it may be done before send() returns */
    ssize_t sent;

    assert(sequence != 0 && worker->sequence == 0);
    if (worker->exited || worker->stopping || worker->killed)
        return error_set(error, EPIPE, "the worker is ending and takes no operation");
    if (strlen(command) > VGPU_COMMAND_MAX_BYTES)
        return error_set(error, EINVAL, "command of %zu bytes, expected at most %d",
                         strlen(command), VGPU_COMMAND_MAX_BYTES);
    text_copy(operation.command, sizeof(operation.command), command);
    sent = send(worker->socket, &operation, sizeof(operation), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        return error_set_errno(error, "cannot send an operation to worker %d",
                               (int)worker->process.pid);
    worker->sequence = sequence;
    worker->sent_ns = sent_ns;
    return 0;
}

uint32_t exec_worker_contexts(const struct exec_worker *worker)
{
    return worker->contexts;
}

pid_t exec_worker_pid(const struct exec_worker *worker)
{
    return worker->process.pid;
}

bool exec_worker_busy(const struct exec_worker *worker)
{
    return worker->sequence != 0;
}

void exec_worker_stop(struct exec_worker *worker)
{
    /* Only our sending half: a result that is on its way still arrives. */
    if (!worker->stopping && !worker->forgotten)
        shutdown(worker->socket, SHUT_WR);
    worker->stopping = true;
}

void exec_worker_kill(struct exec_worker *worker)
{
    if (!worker->forgotten)
        worker_signal_kill(worker);
}

void exec_worker_detach(struct exec_worker *worker)
{
    if (!worker->forgotten)
        worker_close(worker);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-worker: runs the operations of one session, one after the other.
 *
 *   receive {sequence, command}
 *     ├─ record: STARTED, executions + 1       ─┐ killed here: the record says
 *     ├─ execution log: one line                │ that the operation began
 *     ├─ exec_run_command() on the backend     ─┘
 *     ├─ record: DONE with the answer          ── killed from here on: the
 *     └─ send the answer                          answer stands in the record
 *
 * End of the socket means that the mediator is gone, or wants us to go.  Either
 * is seen between operations only, so what runs is finished and recorded first.
 *
 * Signals: the process leads a session of its own, so a terminal's Ctrl-C and a
 * signal to the mediator's group do not reach it; SIGINT and SIGHUP sent to it
 * all the same are ignored.  SIGTERM ends it at once: an administrator's way to
 * abort an operation, which its VM then gets told as an error.
 */
#include "exec/private.h"
#include "exec/session_worker.h"

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXIT_USAGE 2
#define DESCRIPTORS_MAX 64
#define TIMER_SLACK_NS 1000ul      /* naps are some microseconds: session_worker.c */
#define DRIVER_DESCRIPTORS_MAX 256 /* NVIDIA's library holds some fifty for a context ... */
#define DEVICE_DESCRIPTORS_MAX 128 /* ... so that many more for each further device */

struct worker {
    uint32_t vm_id;
    bool has_log;
    struct session_arguments session; /* slot_bytes > 0: a window session's worker */
    const struct exec_backend *backend;
    struct exec_backend_config backend_config;
    struct exec_record_writer record;
};

enum option_key {
    OPTION_UID = 256,
    OPTION_GID,
    OPTION_CGROUP,
    OPTION_TRACE,
    OPTION_SLOT,
    OPTION_SLOT_OFFSET,
    OPTION_SLOT_BYTES,
    OPTION_SHARE,
    OPTION_LIMIT,
    OPTION_SPIN,
    OPTION_IDLE,
    OPTION_SUCCESSOR,
    OPTION_CUDA_LIBRARY,
};

static const struct exec_backend *const backends[] = {&exec_backend_cpu, &exec_backend_cuda};

/* --- command line ----------------------------------------------------------------- */

const char *argp_program_version = "vgpu-worker " VGPU_PACKAGE_VERSION;

static const struct argp_option options[] = {
    {"vm", 'v', "ID", 0, "The VM whose operations it runs", 0},
    {"backend", 'b', "NAME", 0, "What computes: cpu or cuda", 0},
    {"device", 'd', "DEVICE", 0,
     "Which one: cuda:N, GPU-UUID, MIG-UUID or a PCI address; several with spaces between", 0},
    {"cuda-library", OPTION_CUDA_LIBRARY, "PATH", 0, "NVIDIA's driver library", 0},
    {"execution-log", 'l', NULL, 0, "Its descriptor gets a line for each execution", 0},
    {"uid", OPTION_UID, "ID", 0, "Run as this user", 0},
    {"gid", OPTION_GID, "ID", 0, "Run as this group", 0},
    {"cgroup", OPTION_CGROUP, NULL, 0, "Join the cgroup of its descriptor", 0},
    {"trace", OPTION_TRACE, NULL, 0, "Write the decision log of its descriptor", 1},
    {"slot", OPTION_SLOT, "N", 0, "A window session's slot", 1},
    {"slot-offset", OPTION_SLOT_OFFSET, "BYTES", 0, "Where it begins in the window", 1},
    {"slot-bytes", OPTION_SLOT_BYTES, "BYTES", 0, "Its size", 1},
    {"share", OPTION_SHARE, "N", 0, "Its share of its VM's account of device memory", 1},
    {"operation-limit-ms", OPTION_LIMIT, "N", 0, "For the guest's information", 1},
    {"spin-us", OPTION_SPIN, "N", 0, "Poll so long before it sleeps", 1},
    {"idle-ms", OPTION_IDLE, "N", 0, "Without work so long it gives up an empty context", 1},
    {"successor", OPTION_SUCCESSOR, NULL, 0, "Answer what the last worker left", 1},
    {0},
};

/* Where each number of a session goes. */
static bool session_number(struct session_arguments *session, int key, uint64_t number)
{
    switch (key) {
    case OPTION_UID:
        session->uid = (uint32_t)number;
        return true;
    case OPTION_GID:
        session->gid = (uint32_t)number;
        return true;
    case OPTION_SLOT:
        session->slot = (uint32_t)number;
        return true;
    case OPTION_SLOT_OFFSET:
        session->slot_offset = number;
        return true;
    case OPTION_SLOT_BYTES:
        session->slot_bytes = number;
        return true;
    case OPTION_SHARE:
        session->share = (uint32_t)number;
        return true;
    case OPTION_LIMIT:
        session->operation_limit_ms = (uint32_t)number;
        return true;
    case OPTION_SPIN:
        session->spin_us = (uint32_t)number;
        return true;
    case OPTION_IDLE:
        session->idle_ms = number < INT_MAX ? (uint32_t)number : INT_MAX;
        return true;
    default:
        return false;
    }
}

static const struct exec_backend *backend_find(const char *name)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(backends); i++) {
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i];
    }
    return NULL;
}

static error_t option_parse(int key, char *argument, struct argp_state *state)
{
    struct worker *worker = state->input;
    uint64_t id;

    switch (key) {
    case 'v':
        if (!text_parse_u64(argument, 1, UINT32_MAX, &id))
            argp_error(state, "--vm '%s': expected a number of 1 to %u", argument, UINT32_MAX);
        else
            worker->vm_id = (uint32_t)id;
        return 0;
    case 'b':
        worker->backend = backend_find(argument);
        if (!worker->backend)
            argp_error(state, "--backend '%s': expected cpu or cuda", argument);
        return 0;
    case 'l':
        worker->has_log = true;
        return 0;
    case OPTION_CGROUP:
        worker->session.has_cgroup = true;
        return 0;
    case OPTION_TRACE:
        worker->session.has_trace = true;
        return 0;
    case 'd':
        worker->backend_config.device = argument;
        return 0;
    case OPTION_CUDA_LIBRARY:
        worker->backend_config.cuda_library = argument;
        return 0;
    case OPTION_SUCCESSOR:
        worker->session.successor = true;
        return 0;
    default:
        if (!argument || key < OPTION_UID)
            return ARGP_ERR_UNKNOWN;
        if (!text_parse_u64(argument, 0, UINT64_MAX, &id))
            argp_error(state, "'%s': expected a number", argument);
        else
            session_number(&worker->session, key, id);
        return 0;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = option_parse,
    .doc = "Runs the GPU work of one VM for vgpu-mediator, which starts it as needed.\v"
           "It is not started by hand: it expects its socket as descriptor 3 and its locked "
           "session record as descriptor 4.  See vgpu-worker(8).",
};

static bool descriptor_is_socket(int fd)
{
    int type = 0;
    socklen_t bytes = sizeof(type);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) == 0 && type == SOCK_SEQPACKET;
}

static bool is_session(const struct worker *worker)
{
    return worker->session.slot_bytes > 0;
}

static bool has_session_descriptors(const struct worker *worker)
{
    for (int fd = SESSION_LISTENER_FD; fd <= SESSION_ACCOUNT_FD; fd++) {
        if (fcntl(fd, F_GETFD) < 0)
            return false;
    }
    return descriptor_is_socket(SESSION_LISTENER_FD) &&
           worker->session.share < EXEC_ACCOUNT_SHARES &&
           (!worker->has_log || fcntl(SESSION_LOG_FD, F_GETFD) >= 0) &&
           (!worker->session.has_cgroup || fcntl(SESSION_CGROUP_FD, F_GETFD) >= 0) &&
           (!worker->session.has_trace || fcntl(SESSION_TRACE_FD, F_GETFD) >= 0);
}

static bool was_started_by_mediator(const struct worker *worker)
{
    if (is_session(worker))
        return worker->vm_id != 0 && worker->backend && has_session_descriptors(worker);
    return worker->vm_id != 0 && worker->backend && descriptor_is_socket(EXEC_SOCKET_FD) &&
           fcntl(EXEC_RECORD_FD, F_GETFD) >= 0 &&
           (!worker->session.has_cgroup || fcntl(EXEC_CGROUP_FD, F_GETFD) >= 0) &&
           (!worker->has_log || fcntl(EXEC_LOG_FD, F_GETFD) >= 0);
}

/* --- the process -------------------------------------------------------------------- */

/* Whatever the mediator's libraries left open without O_CLOEXEC. */
static void close_others(int first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, ~0u, 0) == 0)
        return;
#endif
    for (long fd = sysconf(_SC_OPEN_MAX) - 1; fd >= first; fd--)
        close((int)fd);
}

static void process_confine(const struct worker *worker)
{
    const struct rlimit no_core = {0, 0};
    /* A session can go to all devices of its pool, and what the library opened for the last one
     * may stay open. */
    const unsigned more = is_session(worker) ? VGPU_SESSION_DEVICES_MAX - 1 : 0;
    const rlim_t files = worker->backend->driver
                             ? DRIVER_DESCRIPTORS_MAX + more * DEVICE_DESCRIPTORS_MAX
                             : DESCRIPTORS_MAX;
    const struct rlimit descriptors = {files, files};
    char name[32];

    if (is_session(worker))
        close_others(SESSION_FD_COUNT);
    else
        close_others(EXEC_FD_COUNT);
    setrlimit(RLIMIT_NOFILE, &descriptors);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    /* A core would hold a guest's data, and RLIMIT_CORE alone does not stop one
     * that is piped to a program.  The leak checker must trace its own process,
     * so its builds stay dumpable. */
    setrlimit(RLIMIT_CORE, &no_core);
#ifndef EXEC_LEAKS_ARE_CHECKED
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
    /* The kernel keeps 15 characters: an id of ten digits loses its last. */
    snprintf(name, sizeof(name), "vgpu-w%u", worker->vm_id);
    prctl(PR_SET_NAME, name, 0, 0, 0);
    prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

/* --- operations ---------------------------------------------------------------------- */

/* Returns 1 with an operation, 0 when the mediator is gone, -1 for nonsense. */
static int operation_receive(struct exec_operation_message *ret_operation)
{
    ssize_t got;

    do {
        got = recv(EXEC_SOCKET_FD, ret_operation, sizeof(*ret_operation), MSG_TRUNC);
    } while (got < 0 && errno == EINTR);
    if (got == 0 || (got < 0 && errno == ECONNRESET))
        return 0;
    if (got < 0) {
        log_error("worker: cannot receive an operation: %s", strerror(errno));
        return -1;
    }
    if (got != (ssize_t)sizeof(*ret_operation) || ret_operation->magic != EXEC_MESSAGE_MAGIC ||
        ret_operation->version != EXEC_MESSAGE_VERSION || ret_operation->sequence == 0 ||
        !memchr(ret_operation->command, '\0', sizeof(ret_operation->command))) {
        log_error("worker: got %zd bytes that are no operation of version %u: worker and mediator "
                  "are of different releases, restart the mediator",
                  got, EXEC_MESSAGE_VERSION);
        return -1;
    }
    return 1;
}

/* Returns false when the mediator is gone; then the record has the answer. */
static bool result_send(const struct worker *worker, uint64_t sequence,
                        const struct protocol_response *response, uint64_t device_us)
{
    struct exec_result_message result = {
        .magic = EXEC_MESSAGE_MAGIC,
        .version = EXEC_MESSAGE_VERSION,
        .sequence = sequence,
        .device_us = device_us,
        .success = response->success ? 1 : 0,
        .contexts = worker->backend->contexts ? worker->backend->contexts() : 0,
    };
    ssize_t sent;

    text_copy(result.message, sizeof(result.message), response->message);
    do {
        sent = send(EXEC_SOCKET_FD, &result, sizeof(result), MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)sizeof(result);
}

static void execution_log_write(const struct worker *worker)
{
    char line[128];
    int bytes;

    if (!worker->has_log)
        return;
    bytes = snprintf(line, sizeof(line), "%llu vm=%u sequence=%llu execution=%u\n",
                     (unsigned long long)clock_realtime_ns(), worker->vm_id,
                     (unsigned long long)worker->record.record.sequence,
                     worker->record.record.executions);
    if (write(EXEC_LOG_FD, line, (size_t)bytes) != bytes)
        log_warning("worker: cannot write the execution log: %s", strerror(errno));
}

/* Runs it between its two records; returns device time in microseconds. */
static uint64_t operation_run(struct worker *worker, const struct exec_operation_message *operation,
                              struct protocol_response *response)
{
    struct vgpu_error error;
    uint64_t begin_ns, device_us;

    fault_point("worker_before_start");
    if (exec_record_start(&worker->record, operation->sequence, &error) < 0) {
        log_error("worker: vm=%u: %s", worker->vm_id, error.message);
        response->success = false;
        text_copy(response->message, sizeof(response->message),
                  "not run: the host cannot write its session record, tell its administrator");
        return 0;
    }
    execution_log_write(worker);
    fault_point("worker_started");
    begin_ns = clock_monotonic_ns();
    exec_run_command(worker->backend, operation->command, response);
    device_us = (clock_monotonic_ns() - begin_ns) / NS_PER_US;
    fault_point("worker_before_done");
    if (exec_record_finish(&worker->record, response, device_us, &error) < 0)
        log_error("worker: vm=%u: %s", worker->vm_id, error.message);
    fault_point("worker_done");
    return device_us;
}

static int worker_serve(struct worker *worker)
{
    struct exec_operation_message operation;
    struct protocol_response response;
    int got;

    while ((got = operation_receive(&operation)) > 0) {
        uint64_t device_us = operation_run(worker, &operation, &response);

        if (!result_send(worker, operation.sequence, &response, device_us))
            return EXIT_SUCCESS;
        if (worker->backend->lost && worker->backend->lost())
            return SESSION_EXIT_LOST; /* the next one may find it well */
    }
    return got < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* The guest's text comes after this. */
static int confine(const struct worker *worker, struct vgpu_error *error)
{
    if (worker->session.has_cgroup)
        sandbox_join_cgroup(EXEC_CGROUP_FD);
    sandbox_leave_network();
    if (sandbox_drop_user(worker->session.uid, worker->session.gid, error) < 0 ||
        worker->backend->open(&worker->backend_config, error) < 0)
        return -1;
    return sandbox_enter(worker->backend->driver, error);
}

static int serve_session(struct worker *worker)
{
    int status;

    worker->session.vm_id = worker->vm_id;
    worker->session.backend = worker->backend;
    worker->session.backend_config = worker->backend_config;
    worker->session.has_log = worker->has_log;
    sandbox_leave_network();
    status = session_serve(&worker->session);
    worker->backend->close();
    return status;
}

int main(int argc, char **argv)
{
    struct worker worker = {.session = {.uid = UINT32_MAX, .gid = UINT32_MAX},
                            .backend_config = {.device = ""}};
    struct vgpu_error error;
    int status;

    argp_err_exit_status = EXIT_USAGE;
    argp_parse(&parser, argc, argv, 0, NULL, &worker);
    if (!was_started_by_mediator(&worker)) {
        fprintf(stderr,
                "vgpu-worker: runs the GPU work of one VM for vgpu-mediator, which starts "
                "it as needed; it does nothing when started by hand.  See vgpu-worker(8).\n");
        return EXIT_USAGE;
    }
    process_confine(&worker);
    if (is_session(&worker))
        return serve_session(&worker);
    if (exec_record_attach(&worker.record, EXEC_RECORD_FD, &error) < 0 ||
        confine(&worker, &error) < 0) {
        log_error("worker: vm=%u: %s", worker.vm_id, error.message);
        return EXIT_FAILURE;
    }
    status = worker_serve(&worker);
    worker.backend->close();
    return status;
}

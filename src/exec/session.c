/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A window session's worker, seen from the mediator.
 *
 *   started:  listener ─ spawn ─ connect ─▶ HELLO ─▶ ready()
 *   adopted:             a connection   ─▶ HELLO ─▶ ready(granted?)
 *
 * The worker is believed no more than a guest: each message must be one whole packet
 * that makes sense now, or the worker is ended.  Its socket's end is not yet its
 * death: a child's is told by the loop, an adopted one's by its lock on the session
 * memory, which only the end of the process frees.
 *
 * The memory lives until all handles are closed, later than every callback; so a
 * callback may grant, kill or detach.
 */
#include "exec/private.h"
#include "exec/session_private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sockios.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define REASON_BYTES 256

/* With so much of a processor any worker has given its grant back. */
#define ANSWER_CPU_US 30000u

/* From the end of its socket to the end of a process; between looks for it. */
#define EXIT_GRACE_MS 1000
#define EXIT_LOOK_MS 5

/* From the start of a process to its listening; between looks for that. */
#define START_GRACE_MS 2000u
#define START_LOOK_MS 2u

struct exec_session {
    uv_process_t process;
    uv_poll_t poll;
    uv_timer_t grace;
    struct exec_session_events events;
    int socket;
    int memory_fd; /* adopted: to test the lock */
    struct session_memory *memory;
    unsigned open_handles;
    pid_t pid;               /* by the kernel's word */
    uint64_t revoked_cpu_us; /* processor time that it had had when it was to give its grant back */
    uint64_t first_ns;
    unsigned looks; /* adopted: since its socket ended */
    bool spawned;
    bool adopted;
    bool exited;
    bool killed;
    bool hello;
    bool moves; /* its worker can go to another GPU */
    bool granted;
    bool told_work;
    bool faulted;
    bool forgotten;
    bool exit_lost;           /* its device works no more in that process, by its exit status */
    char fault[REASON_BYTES]; /* what it did, when it was killed for that */
};

/* --- life and death ------------------------------------------------------------------ */

static void on_closed(uv_handle_t *handle)
{
    struct exec_session *session = handle->data;

    if (--session->open_handles > 0)
        return;
    munmap(session->memory, sizeof(*session->memory));
    free(session);
}

static void session_close(struct exec_session *session)
{
    session->forgotten = true;
    session->open_handles = session->spawned ? 3 : 2;
    uv_close((uv_handle_t *)&session->poll, on_closed);
    uv_close((uv_handle_t *)&session->grace, on_closed);
    if (session->spawned)
        uv_close((uv_handle_t *)&session->process, on_closed);
    fd_close(&session->socket);
    fd_close(&session->memory_fd);
}

static void end(struct exec_session *session, const char *reason)
{
    if (session->forgotten)
        return;
    session->exited = true;
    session->events.ended(session, reason, session->memory->owner_gone != 0,
                          session->events.context);
    if (!session->forgotten)
        session_close(session);
}

static bool lives(const struct exec_session *session)
{
    if (flock(session->memory_fd, LOCK_SH | LOCK_NB) < 0)
        return true;
    flock(session->memory_fd, LOCK_UN);
    return false;
}

/* The process that says of itself, by a lock of its own, that it is the worker; the
 * kernel's word.  0: none, or one that does not run our program yet. */
static pid_t holder_of(int memory_fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(memory_fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK ? lock.l_pid : 0;
}

static void send_kill(struct exec_session *session)
{
    if (session->exited || session->killed)
        return;
    session->killed = true;
    if (session->spawned)
        uv_process_kill(&session->process, SIGKILL);
    else if (holder_of(session->memory_fd) == session->pid)
        kill(session->pid, SIGKILL); /* it holds the lock, so the number is still its */
}

static void condemn(struct exec_session *session, const char *fault)
{
    uv_poll_stop(&session->poll);
    text_copy(session->fault, sizeof(session->fault), fault);
    send_kill(session);
}

static void on_exit_status(uv_process_t *process, int64_t status, int number)
{
    struct exec_session *session = process->data;
    char reason[REASON_BYTES + 64];

    session->exit_lost = status == SESSION_EXIT_LOST && number == 0;
    exec_describe_end(session->killed, session->fault, status, number, reason, sizeof(reason));
    end(session, reason);
}

/* Its socket has ended: a child's exit is told; an adopted one's is looked for. */
static void on_grace(uv_timer_t *timer)
{
    struct exec_session *session = timer->data;

    if (session->adopted && !lives(session)) {
        end(session, session->killed ? "killed by the mediator" : "ended");
        return;
    }
    if (++session->looks * EXIT_LOOK_MS >= EXIT_GRACE_MS)
        condemn(session, "it closed its connection");
}

/* --- messages ---------------------------------------------------------------------------- */

static void hear_hello(struct exec_session *session, const struct session_message *message)
{
    const struct exec_session_identity identity = {
        .vm_id = message->hello.vm_id,
        .slot = message->hello.slot,
        .window_device = message->hello.window_device,
        .window_inode = message->hello.window_inode,
        .slot_offset = message->hello.slot_offset,
        .slot_bytes = message->hello.slot_bytes,
        .granted = message->hello.granted != 0,
    };

    session->hello = true;
    session->moves = message->hello.moves != 0;
    session->granted = identity.granted;
    session->events.ready(session, &identity, session->events.context);
}

static void hear_returned(struct exec_session *session, const struct session_message *message)
{
    uint32_t left = message->returned.depth_left;

    session->granted = false;
    session->told_work = left > 0;
    session->first_ns = message->returned.first_ns;
    session->events.returned(session, message->returned.used_us, message->returned.operations,
                             left <= VGPU_RING_ENTRIES * 2 ? left : VGPU_RING_ENTRIES * 2,
                             session->events.context);
}

static void hear_faulted(struct exec_session *session, const struct session_message *message)
{
    char reason[sizeof(message->faulted.reason) * 4];

    session->faulted = true;
    text_escape(reason, sizeof(reason), message->faulted.reason,
                strnlen(message->faulted.reason, sizeof(message->faulted.reason)));
    session->events.faulted(session, reason, session->events.context);
}

/* False for a message that cannot come now. */
static bool hear(struct exec_session *session, const struct session_message *message)
{
    if (message->type != SESSION_HELLO && !session->hello)
        return false;
    switch (message->type) {
    case SESSION_HELLO:
        if (session->hello)
            return false;
        hear_hello(session, message);
        return true;
    case SESSION_WORK:
        if (session->granted || session->told_work || message->work.depth == 0)
            return false;
        session->told_work = true;
        session->events.work(session, message->work.depth, session->events.context);
        return true;
    case SESSION_RETURNED:
        if (!session->granted)
            return false;
        hear_returned(session, message);
        return true;
    case SESSION_RESTED: /* it may have crossed a grant */
        session->events.rested(session, session->events.context);
        return true;
    case SESSION_FAULTED:
        if (session->faulted)
            return false;
        hear_faulted(session, message);
        return true;
    default:
        return false;
    }
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct exec_session *session = poll->data;
    struct session_message message;
    ssize_t got = recv(session->socket, &message, sizeof(message), MSG_DONTWAIT | MSG_TRUNC);

    (void)status;
    (void)events;
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        uv_poll_stop(&session->poll);
        uv_timer_start(&session->grace, on_grace, session->adopted ? 0 : EXIT_LOOK_MS,
                       EXIT_LOOK_MS);
        return;
    }
    if (got != (ssize_t)sizeof(message) || message.magic != SESSION_MESSAGE_MAGIC)
        condemn(session, "it sent something that is no message");
    else if (message.version != SESSION_MESSAGE_VERSION)
        condemn(session, "it is of another release");
    else if (!hear(session, &message) && !session->forgotten)
        condemn(session, "it sent a message out of turn");
}

static void tell(struct exec_session *session, const struct session_message *message)
{
    if (session->exited || session->killed)
        return; /* ended() follows */
    if (send(session->socket, message, sizeof(*message), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
        errno == EAGAIN)
        condemn(session, "it does not read what it is told");
}

/* --- sockets and memory --------------------------------------------------------------------- */

/* Paths of any length: a socket's address holds 107 bytes only, so its directory is
 * named by a descriptor. */
static int address_of(const char *path, struct sockaddr_un *address, int *ret_directory,
                      struct vgpu_error *error)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int fd;

    snprintf(directory, sizeof(directory), "%.*s", (int)(slash - path), path);
    fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, "cannot open directory '%s'", directory);
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d%s", fd, slash) >=
        (int)sizeof(address->sun_path)) {
        fd_close(&fd);
        return error_set(error, ENAMETOOLONG, "the name of socket '%s' is too long", path);
    }
    *ret_directory = fd;
    return 0;
}

static int listen_at(const char *path, struct vgpu_error *error)
{
    struct sockaddr_un address;
    int directory, fd;

    if (address_of(path, &address, &directory, error) < 0)
        return -1;
    unlink(path);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(fd, SESSION_BACKLOG) < 0) {
        error_set_errno(error, "cannot make a worker's socket '%s'", path);
        fd_close(&fd);
    }
    fd_close(&directory);
    return fd;
}

static int connect_to(const char *path, struct vgpu_error *error)
{
    struct sockaddr_un address;
    int directory, fd;

    if (address_of(path, &address, &directory, error) < 0)
        return -1;
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        error_set_errno(error, "cannot connect to worker at '%s'", path);
        fd_close(&fd);
    }
    fd_close(&directory);
    return fd;
}

/* Opens the memory at `path` and locks it for a worker; -1 with EBUSY when one lives. */
static int memory_lock(const char *path, bool keep, struct vgpu_error *error)
{
    int code, fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return error_set_errno(error, "cannot open session memory '%s'", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        error_set(error, errno == EWOULDBLOCK ? EBUSY : errno,
                  "session memory '%s' is held by a living worker", path);
        fd_close(&fd);
        return -1;
    }
    code = keep || ftruncate(fd, 0) == 0 ? 0 : errno;
    if (code == 0)
        code = posix_fallocate(fd, 0, sizeof(struct session_memory));
    if (code != 0) {
        error_set(error, code, "cannot make room for session memory '%s': %s", path,
                  strerror(code));
        fd_close(&fd);
    }
    return fd;
}

static struct session_memory *memory_map(int fd, struct vgpu_error *error)
{
    void *memory =
        mmap(NULL, sizeof(struct session_memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory == MAP_FAILED) {
        error_set_errno(error, "cannot map the session memory");
        return NULL;
    }
    return memory;
}

static bool memory_makes_sense(const struct session_memory *memory)
{
    return memory->magic == SESSION_MEMORY_MAGIC && memory->bytes == sizeof(*memory);
}

static void memory_describe(struct session_memory *memory, const struct exec_session_config *config)
{
    struct stat info = {0};

    fstat(config->window_fd, &info);
    memory->magic = SESSION_MEMORY_MAGIC;
    memory->bytes = sizeof(*memory);
    memory->vm_id = config->vm_id;
    memory->slot = config->slot;
    memory->window_device = info.st_dev;
    memory->window_inode = info.st_ino;
    memory->slot_offset = config->slot_offset;
    memory->slot_bytes = config->slot_bytes;
    memory->worker_pid = 0;
    memory->revoke = 0;
    memory->owner_gone = 0;
    memory->device_lost = 0;
    memory->rest = 0;
    memory->contexts = 0;
    memory->share = config->share;
    text_copy(memory->devices, sizeof(memory->devices), config->devices ? config->devices : "");
}

/* --- start ------------------------------------------------------------------------------------ */

static struct exec_session *session_new(uv_loop_t *loop, const struct exec_session_events *events,
                                        int socket, struct session_memory *memory,
                                        struct vgpu_error *error)
{
    struct exec_session *session = calloc(1, sizeof(*session));
    int code = session ? uv_poll_init(loop, &session->poll, socket) : UV_ENOMEM;

    if (code < 0) {
        free(session);
        error_set(error, -code, "cannot watch a worker's socket: %s", uv_strerror(code));
        return NULL;
    }
    session->events = *events;
    session->socket = socket;
    session->memory = memory;
    session->memory_fd = -1;
    session->poll.data = session->grace.data = session->process.data = session;
    uv_timer_init(loop, &session->grace);
    uv_poll_start(&session->poll, UV_READABLE, on_readable);
    return session;
}

struct arguments {
    char text[12][32];
    char *list[40];
    size_t count;
    size_t texts;
};

static void add_word(struct arguments *arguments, const char *word)
{
    arguments->list[arguments->count++] = (char *)(uintptr_t)word; /* argv is not const */
}

static void add_number(struct arguments *arguments, const char *option, uint64_t value)
{
    char *text = arguments->text[arguments->texts++];

    snprintf(text, sizeof(arguments->text[0]), "%llu", (unsigned long long)value);
    add_word(arguments, option);
    add_word(arguments, text);
}

static void make_arguments(struct arguments *arguments, const struct exec_session_config *config)
{
    *arguments = (struct arguments){.count = 0};
    add_word(arguments, "vgpu-worker");
    add_number(arguments, "--vm", config->vm_id);
    add_word(arguments, "--backend");
    add_word(arguments, config->backend);
    if (config->devices) {
        add_word(arguments, "--device");
        add_word(arguments, config->devices);
    }
    if (config->cuda_library) {
        add_word(arguments, "--cuda-library");
        add_word(arguments, config->cuda_library);
    }
    add_number(arguments, "--slot", config->slot);
    add_number(arguments, "--slot-offset", config->slot_offset);
    add_number(arguments, "--slot-bytes", config->slot_bytes);
    add_number(arguments, "--share", config->share);
    add_number(arguments, "--operation-limit-ms", config->operation_limit_ms);
    add_number(arguments, "--spin-us", config->spin_us);
    add_number(arguments, "--idle-ms", config->idle_ms);
    if (config->uid != (uid_t)-1) {
        add_number(arguments, "--uid", config->uid);
        add_number(arguments, "--gid", config->gid);
    }
    if (config->successor)
        add_word(arguments, "--successor");
    if (config->execution_log)
        add_word(arguments, "--execution-log");
    if (config->cgroup)
        add_word(arguments, "--cgroup");
    if (config->trace)
        add_word(arguments, "--trace");
}

static int spawn(uv_loop_t *loop, struct exec_session *session,
                 const struct exec_session_config *config, const int fds[SESSION_FD_COUNT],
                 struct vgpu_error *error)
{
    char program[PATH_MAX];
    struct arguments arguments;
    uv_stdio_container_t stdio[SESSION_FD_COUNT] = {
        [STDERR_FILENO] = {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO}};
    uv_process_options_t options = {.exit_cb = on_exit_status,
                                    .file = program,
                                    .cwd = "/",
                                    .flags = UV_PROCESS_DETACHED,
                                    .stdio = stdio,
                                    .stdio_count = SESSION_FD_COUNT};
    int code;

    if (!realpath(config->program, program))
        return error_set_errno(error, "cannot run worker program '%s'", config->program);
    make_arguments(&arguments, config);
    options.args = arguments.list;
    for (int i = SESSION_LISTENER_FD; i < SESSION_FD_COUNT; i++) {
        if (fds[i] >= 0)
            stdio[i] = (uv_stdio_container_t){.flags = UV_INHERIT_FD, .data.fd = fds[i]};
    }
    options.env = exec_environment_new();
    if (!options.env)
        return error_set(error, ENOMEM, "cannot run worker program '%s'", config->program);
    session->spawned = true;
    code = uv_spawn(loop, &session->process, &options);
    exec_environment_free(options.env);
    if (code < 0)
        return error_set(error, -code, "cannot run worker program '%s': %s", config->program,
                         uv_strerror(code));
    session->pid = session->process.pid;
    return 0;
}

static int open_trace(const char *path, struct vgpu_error *error)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

    return fd >= 0 ? fd : error_set_errno(error, "cannot open trace '%s'", path);
}

/* Opens what only this worker needs: its VM's account, execution log, cgroup and trace. */
static int open_extras(const struct exec_session_config *config, int fds[SESSION_FD_COUNT],
                       struct vgpu_error *error)
{
    fds[SESSION_ACCOUNT_FD] = exec_account_descriptor(config->account, error);
    if (fds[SESSION_ACCOUNT_FD] < 0)
        return -1;
    if (config->execution_log) {
        fds[SESSION_LOG_FD] = exec_execution_log_open(config->execution_log, error);
        if (fds[SESSION_LOG_FD] < 0)
            return -1;
    }
    if (config->cgroup) {
        fds[SESSION_CGROUP_FD] = exec_cgroup_open(config->cgroup, error);
        if (fds[SESSION_CGROUP_FD] < 0)
            return -1;
    }
    if (config->trace) {
        fds[SESSION_TRACE_FD] = open_trace(config->trace, error);
        if (fds[SESSION_TRACE_FD] < 0)
            return -1;
    }
    return 0;
}

static int launch(uv_loop_t *loop, const struct exec_session_config *config,
                  const struct exec_session_events *events, const int fds[SESSION_FD_COUNT],
                  struct exec_session **ret_session, struct vgpu_error *error)
{
    struct session_memory *memory = memory_map(fds[SESSION_MEMORY_FD], error);
    struct exec_session *session;
    int socket;

    if (!memory)
        return -1;
    if (config->successor && !memory_makes_sense(memory)) {
        munmap(memory, sizeof(*memory));
        return error_set(error, EINVAL, "session memory '%s' is not of this release, or empty",
                         config->memory_path);
    }
    memory_describe(memory, config);
    socket = connect_to(config->socket_path, error);
    session = socket < 0 ? NULL : session_new(loop, events, socket, memory, error);
    if (!session) {
        fd_close(&socket);
        munmap(memory, sizeof(*memory));
        return -1;
    }
    if (spawn(loop, session, config, fds, error) < 0) {
        session_close(session);
        return -1;
    }
    *ret_session = session;
    return 0;
}

int exec_session_start(uv_loop_t *loop, const struct exec_session_config *config,
                       const struct exec_session_events *events, struct exec_session **ret_session,
                       struct vgpu_error *error)
{
    int fds[SESSION_FD_COUNT], result = -1;

    for (int i = 0; i < SESSION_FD_COUNT; i++)
        fds[i] = -1;
    fds[SESSION_MEMORY_FD] = memory_lock(config->memory_path, config->successor, error);
    if (fds[SESSION_MEMORY_FD] < 0)
        return -1;
    fds[SESSION_LISTENER_FD] = listen_at(config->socket_path, error);
    fds[SESSION_WINDOW_FD] = config->window_fd;
    fds[SESSION_DOORBELL_FD] = config->doorbell_fd;
    fds[SESSION_INTERRUPT_FD] = config->interrupt_fd;
    fds[SESSION_LIFELINE_FD] = config->lifeline_fd;
    if (fds[SESSION_LISTENER_FD] >= 0 && open_extras(config, fds, error) == 0)
        result = launch(loop, config, events, fds, ret_session, error);
    /* The worker has copies now, the lock among them. */
    fd_close(&fds[SESSION_MEMORY_FD]);
    fd_close(&fds[SESSION_LISTENER_FD]);
    fd_close(&fds[SESSION_ACCOUNT_FD]);
    fd_close(&fds[SESSION_LOG_FD]);
    fd_close(&fds[SESSION_CGROUP_FD]);
    fd_close(&fds[SESSION_TRACE_FD]);
    return result;
}

/* --- adoption ------------------------------------------------------------------------------- */

static int open_living(const char *path, struct vgpu_error *error)
{
    struct stat info;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return error_set_errno(error, "cannot open session memory '%s'", path);
    if (fstat(fd, &info) < 0 || !S_ISREG(info.st_mode) ||
        (size_t)info.st_size != sizeof(struct session_memory)) {
        error_set(error, EINVAL, "session memory '%s' is not of this release", path);
        fd_close(&fd);
        return -1;
    }
    if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
        flock(fd, LOCK_UN);
        error_set(error, ENOENT, "no worker lives that holds '%s'", path);
        fd_close(&fd);
    }
    return fd;
}

int exec_session_end_holder(const char *memory_path, struct vgpu_error *error)
{
    const struct timespec pause = {.tv_nsec = START_LOOK_MS * NS_PER_MS};
    int fd = open(memory_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    bool held = true;

    if (fd < 0)
        return errno == ENOENT ? 0 : error_set_errno(error, "cannot open '%s'", memory_path);
    for (unsigned looks = 0; held && looks < START_GRACE_MS / START_LOOK_MS; looks++) {
        pid_t pid = holder_of(fd);

        if (pid > 0)
            kill(pid, SIGKILL);
        held = flock(fd, LOCK_EX | LOCK_NB) < 0;
        if (held)
            nanosleep(&pause, NULL);
    }
    fd_close(&fd);
    return held ? error_set(error, EBUSY, "the worker that holds '%s' cannot be ended", memory_path)
                : 0;
}

bool exec_session_is_held(const char *memory_path)
{
    int fd = open(memory_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    bool held = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) < 0;

    fd_close(&fd);
    return held;
}

/* A worker that its mediator had only just started, when that was killed, does not
 * listen yet. */
static bool wait_until_it_listens(const struct session_memory *memory)
{
    const struct timespec pause = {.tv_nsec = START_LOOK_MS * NS_PER_MS};

    for (unsigned looks = 0; looks < START_GRACE_MS / START_LOOK_MS; looks++) {
        if (__atomic_load_n(&memory->worker_pid, __ATOMIC_ACQUIRE) != 0)
            return true;
        nanosleep(&pause, NULL);
    }
    return false;
}

/* The pid is the kernel's word, not what a worker wrote somewhere: it is killed by
 * it.  Connecting tells who called listen(2) last, which the worker does before it
 * has read a guest's first byte. */
static int connect_to_living(const struct session_memory *memory, const char *path, pid_t *ret_pid,
                             struct vgpu_error *error)
{
    struct ucred peer;
    socklen_t bytes = sizeof(peer);
    int fd;

    if (!wait_until_it_listens(memory))
        return error_set(error, ETIMEDOUT, "the worker at '%s' does not start", path);
    fd = connect_to(path, error);
    if (fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0) {
        error_set_errno(error, "cannot tell who listens at '%s'", path);
        fd_close(&fd);
    } else if (fd >= 0) {
        *ret_pid = peer.pid;
    }
    return fd;
}

int exec_session_adopt(uv_loop_t *loop, const char *memory_path, const char *socket_path,
                       const struct exec_session_events *events, struct exec_session **ret_session,
                       struct vgpu_error *error)
{
    int memory_fd = open_living(memory_path, error), socket;
    struct session_memory *memory;
    struct exec_session *session = NULL;
    pid_t pid = 0;

    if (memory_fd < 0)
        return -1;
    memory = memory_map(memory_fd, error);
    socket = memory ? connect_to_living(memory, socket_path, &pid, error) : -1;
    if (socket >= 0)
        session = session_new(loop, events, socket, memory, error);
    if (!session) {
        fd_close(&socket);
        fd_close(&memory_fd);
        if (memory)
            munmap(memory, sizeof(*memory));
        return -1;
    }
    session->adopted = true;
    session->memory_fd = memory_fd;
    session->pid = pid;
    /* One that is busy without end under its old grant would not see who connects, and one
     * that sleeps may have looked before this: the word wakes it. */
    __atomic_store_n(&memory->revoke, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&memory->rest, 0, __ATOMIC_RELEASE); /* who waited waits anew */
    tell(session, &(struct session_message){.magic = SESSION_MESSAGE_MAGIC,
                                            .version = SESSION_MESSAGE_VERSION,
                                            .type = SESSION_REVOKE});
    *ret_session = session;
    return 0;
}

/* --- use ------------------------------------------------------------------------------------ */

void exec_session_grant(struct exec_session *session, const struct exec_session_grant *grant)
{
    struct session_message message = {
        .magic = SESSION_MESSAGE_MAGIC, .version = SESSION_MESSAGE_VERSION, .type = SESSION_GRANT};

    assert(session->hello && !session->granted);
    __atomic_store_n(&session->memory->revoke, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&session->memory->rest, grant->rest, __ATOMIC_RELEASE);
    session->granted = true;
    session->told_work = false;
    message.grant.max_ops = grant->max_ops;
    message.grant.max_inflight = grant->max_inflight;
    message.grant.device_us = grant->device_us;
    message.grant.refuse = grant->refuse;
    tell(session, &message);
}

void exec_session_revoke(struct exec_session *session)
{
    const struct session_message message = {
        .magic = SESSION_MESSAGE_MAGIC, .version = SESSION_MESSAGE_VERSION, .type = SESSION_REVOKE};

    struct process_sight sight;

    if (!session->granted)
        return;
    __atomic_store_n(&session->memory->revoke, 1, __ATOMIC_RELEASE);
    tell(session, &message);
    session->revoked_cpu_us = process_look(session->pid, &sight) ? sight.cpu_us : 0;
}

bool exec_session_is_starved(const struct exec_session *session)
{
    struct process_sight sight;

    return process_look(session->pid, &sight) && (sight.state == 'R' || sight.state == 'D') &&
           sight.cpu_us - session->revoked_cpu_us <= ANSWER_CPU_US;
}

void exec_session_rest(struct exec_session *session)
{
    const struct session_message message = {
        .magic = SESSION_MESSAGE_MAGIC, .version = SESSION_MESSAGE_VERSION, .type = SESSION_REST};

    if (!session->hello)
        return;
    /* One that is busy without end reads no message. */
    __atomic_store_n(&session->memory->rest, 1, __ATOMIC_RELEASE);
    tell(session, &message);
}

/* What it has not read yet wakes it as well: however often its VM's budget changes while an
 * operation lasts, its socket keeps room for what must be told. */
static bool has_unread(const struct exec_session *session)
{
    int bytes = 0;

    return ioctl(session->socket, SIOCOUTQ, &bytes) == 0 && bytes > 0;
}

void exec_session_wake(struct exec_session *session)
{
    const struct session_message message = {
        .magic = SESSION_MESSAGE_MAGIC, .version = SESSION_MESSAGE_VERSION, .type = SESSION_WAKE};

    if (session->hello && !has_unread(session))
        tell(session, &message);
}

uint64_t exec_session_first_ns(const struct exec_session *session)
{
    return session->first_ns;
}

uint64_t exec_session_running(const struct exec_session *session)
{
    return __atomic_load_n(&session->memory->running, __ATOMIC_RELAXED);
}

uint64_t exec_session_blocking(const struct exec_session *session, uint64_t *ret_since_ns)
{
    uint64_t blocking = __atomic_load_n(&session->memory->blocking, __ATOMIC_ACQUIRE);

    /* Behind it: a later one's is as good, as what runs was seen then, too. */
    *ret_since_ns = __atomic_load_n(&session->memory->blocking_ns, __ATOMIC_RELAXED);
    return blocking;
}

const char *exec_session_devices(const struct exec_session *session)
{
    /* The worker could have changed it. */
    session->memory->devices[sizeof(session->memory->devices) - 1] = '\0';
    return session->memory->devices;
}

bool exec_session_may_move(const struct exec_session *session)
{
    return session->hello && session->moves && !session->granted && !session->exited &&
           exec_session_contexts(session) == 0 && !exec_session_device_lost(session);
}

void exec_session_move(struct exec_session *session, const char *device)
{
    assert(!session->granted);
    text_copy(session->memory->devices, sizeof(session->memory->devices), device);
}

uint32_t exec_session_share(const struct exec_session *session)
{
    return session->memory->share;
}

bool exec_session_device_lost(const struct exec_session *session)
{
    return __atomic_load_n(&session->memory->device_lost, __ATOMIC_ACQUIRE) != 0;
}

bool exec_session_kernel_faulted(const struct exec_session *session)
{
    return session->exit_lost && !exec_session_device_lost(session);
}

uint32_t exec_session_contexts(const struct exec_session *session)
{
    return __atomic_load_n(&session->memory->contexts, __ATOMIC_ACQUIRE);
}

void exec_session_kill_over_limit(struct exec_session *session, bool blocking)
{
    __atomic_store_n(&session->memory->over_limit,
                     blocking ? SESSION_OVER_BLOCKING : SESSION_OVER_RUNNING, __ATOMIC_RELEASE);
    exec_session_kill(session);
}

void exec_session_progress(const struct exec_session *session, uint32_t *ret_taken,
                           uint64_t *ret_used_us)
{
    *ret_taken = __atomic_load_n(&session->memory->sq_head, __ATOMIC_RELAXED);
    *ret_used_us = __atomic_load_n(&session->memory->used_ns, __ATOMIC_RELAXED) / NS_PER_US;
}

uint64_t exec_session_throttled_us(const struct exec_session *session)
{
    return __atomic_load_n(&session->memory->throttled_ns, __ATOMIC_RELAXED) / NS_PER_US;
}

uint32_t exec_session_timed(const struct exec_session *session)
{
    return __atomic_load_n(&session->memory->timed, __ATOMIC_RELAXED);
}

void exec_session_durations(const struct exec_session *session,
                            struct exec_durations *ret_durations)
{
    const struct exec_durations *durations = &session->memory->durations;

    for (unsigned kind = 0; kind < EXEC_DURATIONS; kind++) {
        for (unsigned i = 0; i < EXEC_DURATION_BUCKETS; i++)
            ret_durations->counts[kind][i] =
                __atomic_load_n(&durations->counts[kind][i], __ATOMIC_RELAXED);
    }
}

uint64_t exec_session_uncounted_us(const struct exec_session *session)
{
    uint64_t counted_ns = __atomic_load_n(&session->memory->counted_ns, __ATOMIC_RELAXED);
    uint64_t now_ns = clock_monotonic_ns();

    return exec_session_running(session) != 0 && now_ns > counted_ns
               ? (now_ns - counted_ns) / NS_PER_US
               : 0;
}

void exec_session_kill(struct exec_session *session)
{
    if (!session->forgotten)
        send_kill(session);
}

void exec_session_detach(struct exec_session *session)
{
    if (!session->forgotten)
        session_close(session);
}

pid_t exec_session_pid(const struct exec_session *session)
{
    return session->pid;
}

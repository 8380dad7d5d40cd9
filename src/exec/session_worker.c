/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A window session's worker.
 *
 *              ┌────────────────────────────────────────────────┐
 *              ▼                                                │
 *   ungranted, watching ── work is seen: WORK ──▶ ungranted, told
 *              ▲                                       │ GRANT
 *              │ RETURNED, nothing left                ▼
 *              └──────────────────────────────────── granted ──▶ RETURNED, work is left
 *                                                    (runs, spins, sleeps)
 *
 * One epoll: the doorbell (edge-triggered and never read: the peer can
 * do nothing to it that would hold us up), the listener and the mediator's
 * connection.  Before each sleep the ring is armed and looked at once
 * more; while work would be no news, the doorbell is not heard.  Where its VM's budget is used
 * up that is so until a timer rings: meanwhile a long grant is kept, as nobody else wants it,
 * and another one goes back as if nothing were left.  A second thread waits for the end of the
 * owner's lifeline, and ends the process.
 *
 * Without a mediator the worker goes on with the grant that it has.
 */
#include "exec/session_worker.h"

#include "exec/account.h"
#include "exec/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define LIFELINE_STACK_BYTES ((size_t)256 * 1024)

/* While the device works it is polled so long, then looked at after naps that grow with
 * the time that it takes: the end is seen a percent or two late, and costs little of a
 * core. */
#define FLIGHT_SPIN_US 500u
#define FLIGHT_NAP_PART 64u
#define FLIGHT_NAP_MAX_US 500u

struct session_worker {
    const struct session_arguments *arguments;
    struct session_memory *memory;
    struct account_share share;
    struct runner runner;
    char devices[sizeof(((struct session_memory *)NULL)->devices)]; /* where it works */
    int epoll_fd;
    int timer_fd;   /* rings when what is throttled may go on */
    int connection; /* -1: no mediator */
    bool told;      /* the mediator knows that there is work */
    bool fault_told;
    bool granted;
    bool draining; /* the grant is over, what was begun in it is not */
    bool hears_doorbell;
    bool throttled;              /* its VM's budget lets nothing of it run now */
    uint64_t throttled_since_ns; /* 0: it is not */
    uint64_t idle_since_ns;      /* 0: something has just been done */
    bool rested;                 /* since then it has given up what it could */
};

/* --- the mediator's connection ------------------------------------------------------- */

static struct session_message new_message(enum session_message_type type)
{
    return (struct session_message){
        .magic = SESSION_MESSAGE_MAGIC, .version = SESSION_MESSAGE_VERSION, .type = (uint16_t)type};
}

static void disconnect(struct session_worker *worker)
{
    fd_close(&worker->connection);
    worker->told = false;
    worker->fault_told = false;
}

static void say(struct session_worker *worker, const struct session_message *message)
{
    if (worker->connection >= 0 && send(worker->connection, message, sizeof(*message),
                                        MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof(*message))
        disconnect(worker);
}

static void say_hello(struct session_worker *worker)
{
    struct session_message message = new_message(SESSION_HELLO);

    message.hello.vm_id = worker->memory->vm_id;
    message.hello.slot = worker->memory->slot;
    message.hello.window_device = worker->memory->window_device;
    message.hello.window_inode = worker->memory->window_inode;
    message.hello.slot_offset = worker->memory->slot_offset;
    message.hello.slot_bytes = worker->memory->slot_bytes;
    message.hello.granted = worker->granted;
    message.hello.moves = 1;
    say(worker, &message);
}

static void watch(const struct session_worker *worker, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

/* The device works no more in this process: a successor tells the rest. */
static _Noreturn void end_lost(const struct session_worker *worker)
{
    if (worker->runner.lost != VGPU_KERNEL_FAULT)
        __atomic_store_n(&worker->memory->device_lost, 1, __ATOMIC_RELEASE);
    log_error("worker: vm=%u, slot=%u: the device works no more in this session: %s",
              worker->memory->vm_id, worker->memory->slot,
              worker->runner.lost == VGPU_KERNEL_FAULT
                  ? "one of its kernels did what the GPU forbids"
                  : "the device is lost");
    _exit(SESSION_EXIT_LOST);
}

/* A context of the GPU costs half a gigabyte there. */
static void rest(struct session_worker *worker)
{
    uint32_t before = worker->memory->contexts;
    struct session_message message = new_message(SESSION_RESTED);

    runner_rest(&worker->runner);
    if (runner_is_lost(&worker->runner))
        end_lost(worker);
    worker->rested = true;
    if (!worker->granted)
        worker->runner.rest_after_ns = 0; /* its next turn may last as long */
    if (worker->memory->contexts != before)
        say(worker, &message);
}

/* Somebody waits for a context, and its own holds nothing, or may not even be there. */
static bool should_rest(const struct session_worker *worker)
{
    return __atomic_load_n(&worker->memory->rest, __ATOMIC_ACQUIRE) &&
           runner_is_empty(&worker->runner);
}

/* Adds what has passed of the time in which it is throttled, which goes on or is over. */
static void count_throttled(struct session_worker *worker, bool goes_on)
{
    uint64_t *total_ns = &worker->memory->throttled_ns, now_ns;

    if (worker->throttled_since_ns == 0 && !goes_on)
        return;
    now_ns = clock_monotonic_ns();
    if (worker->throttled_since_ns != 0)
        __atomic_store_n(total_ns, *total_ns + now_ns - worker->throttled_since_ns,
                         __ATOMIC_RELAXED);
    worker->throttled_since_ns = goes_on ? now_ns : 0;
}

/* What waits may not run yet; a timer rings when it may. */
static bool is_throttled(struct session_worker *worker)
{
    uint64_t wait_ns = runner_throttled_ns(&worker->runner);
    const struct itimerspec in = {
        .it_value = {(time_t)(wait_ns / NS_PER_S), (long)(wait_ns % NS_PER_S)}};

    worker->throttled = wait_ns > 0;
    count_throttled(worker, worker->throttled);
    if (worker->throttled)
        timerfd_settime(worker->timer_fd, 0, &in, NULL);
    return worker->throttled;
}

/* The newest mediator is the one. */
static void accept_mediator(struct session_worker *worker)
{
    int fd = accept4(SESSION_LISTENER_FD, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    disconnect(worker);
    worker->connection = fd;
    watch(worker, fd, EPOLLIN);
    say_hello(worker);
}

/* The device is another's before the context is given up, which takes time; so what is left
 * then is told as new work, behind SESSION_RESTED.  What may not run yet is no work so far. */
static void give_back(struct session_worker *worker)
{
    struct session_message message = new_message(SESSION_RETURNED);
    uint32_t depth = runner_depth(&worker->runner);
    bool rests = runner_must_rest(&worker->runner) || (depth == 0 && should_rest(worker));

    worker->granted = false;
    runner_trace_arrivals(&worker->runner, depth);
    message.returned.used_us = worker->runner.used_ns / NS_PER_US;
    message.returned.operations = worker->runner.operations;
    message.returned.first_ns = worker->runner.operations > 0 ? worker->runner.first_ns : 0;
    message.returned.depth_left = rests || is_throttled(worker) ? 0 : depth;
    worker->told = message.returned.depth_left > 0 && worker->connection >= 0;
    say(worker, &message);
    if (rests)
        rest(worker);
}

/* The mediator writes it before it gives the grant, and only while there is no context. */
static void go_where_told(struct session_worker *worker)
{
    const struct exec_backend *backend = worker->runner.device.backend;
    struct session_memory *memory = worker->memory;
    char devices[sizeof(memory->devices)];
    struct vgpu_error error;

    text_copy(devices, sizeof(devices), memory->devices);
    if (strcmp(devices, worker->devices) == 0)
        return;
    if (backend->move && backend->move(devices, &error) < 0) {
        log_error("worker: vm=%u, slot=%u: %s", memory->vm_id, memory->slot, error.message);
        __atomic_store_n(&memory->device_lost, 1, __ATOMIC_RELEASE);
        _exit(SESSION_EXIT_LOST); /* a successor goes on */
    }
    text_copy(worker->devices, sizeof(worker->devices), devices);
}

static void take_grant(struct session_worker *worker, const struct session_message *message)
{
    const struct exec_session_grant grant = {.max_ops = message->grant.max_ops,
                                             .max_inflight = message->grant.max_inflight,
                                             .device_us = message->grant.device_us,
                                             .refuse = message->grant.refuse != 0};

    worker->granted = true;
    worker->draining = false;
    worker->told = false;
    worker->idle_since_ns = 0;
    if (!grant.refuse)
        go_where_told(worker);
    runner_grant(&worker->runner, &grant);
}

static void hear_mediator(struct session_worker *worker)
{
    struct session_message message;
    ssize_t got = recv(worker->connection, &message, sizeof(message), MSG_DONTWAIT | MSG_TRUNC);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got != (ssize_t)sizeof(message) || message.magic != SESSION_MESSAGE_MAGIC ||
        message.version != SESSION_MESSAGE_VERSION) {
        disconnect(worker);
        return;
    }
    if (message.type == SESSION_GRANT && !worker->granted)
        take_grant(worker, &message);
    else if (message.type == SESSION_REVOKE)
        worker->draining = worker->granted;
    else if (message.type == SESSION_REST && !worker->granted)
        rest(worker); /* else when it runs out of work: stay() */
}

static void tell_fault(struct session_worker *worker)
{
    struct session_message message = new_message(SESSION_FAULTED);

    vgpu_store_release(&worker->runner.ring.host->state, VGPU_SESSION_FAULTED);
    text_copy(message.faulted.reason, sizeof(message.faulted.reason), worker->runner.ring.reason);
    worker->fault_told = worker->connection >= 0;
    say(worker, &message);
}

static void tell_work(struct session_worker *worker, uint32_t depth)
{
    struct session_message message = new_message(SESSION_WORK);

    runner_trace_arrivals(&worker->runner, depth);
    message.work.depth = depth;
    worker->told = true;
    say(worker, &message);
}

/* The grant is over: it is back when all that was begun has ended.  False: not yet. */
static bool drain(struct session_worker *worker)
{
    bool progress = runner_poll(&worker->runner);

    if (!runner_is_drained(&worker->runner))
        return progress;
    if (!runner_is_lost(&worker->runner))
        give_back(worker);
    return true;
}

/* One step within the grant.  False: there was nothing to do. */
static bool step(struct session_worker *worker)
{
    struct runner *runner = &worker->runner;

    worker->draining = worker->draining || runner_is_done(runner) || runner->ring.faulted;
    if (worker->draining)
        return drain(worker);
    return runner_run(runner) || runner->ring.faulted; /* with a fault it is over */
}

static bool is_at_work(const struct session_worker *worker)
{
    return worker->granted &&
           (worker->draining || worker->runner.flight_count > 0 || worker->runner.outlasts);
}

/* Its device may be at work. */
static bool is_unsure(const struct session_worker *worker)
{
    return worker->granted && runner_is_unsure(&worker->runner);
}

static void take_nap(uint64_t idle_ns)
{
    uint64_t nap_ns = idle_ns / FLIGHT_NAP_PART, most_ns = FLIGHT_NAP_MAX_US * NS_PER_US;
    const struct timespec nap = {.tv_nsec = (long)(nap_ns < most_ns ? nap_ns : most_ns)};

    nanosleep(&nap, NULL);
}

/* There was nothing to do.  Soon something may be, so it is polled for first; then less
 * often while the device works, and not at all while nothing does.  False: peers should
 * be heard. */
static bool stay(struct session_worker *worker)
{
    bool at_work = is_at_work(worker), unsure = is_unsure(worker);
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t spin_us = at_work || unsure ? FLIGHT_SPIN_US : worker->arguments->spin_us;

    if (!at_work && (worker->runner.grant.device_us != EXEC_GRANT_LONG || should_rest(worker))) {
        worker->draining = true;
        return true;
    }
    if (!at_work && !unsure && is_throttled(worker))
        return false;
    if (worker->idle_since_ns == 0)
        worker->idle_since_ns = now_ns;
    if (now_ns < worker->idle_since_ns + spin_us * NS_PER_US) {
        __builtin_ia32_pause();
        return true;
    }
    if (at_work)
        take_nap(now_ns - worker->idle_since_ns);
    return false;
}

/* Runs until the grant is given back, or peers should be heard. */
static void run_granted(struct session_worker *worker)
{
    while (worker->granted) {
        bool progress = step(worker);

        if (runner_is_lost(&worker->runner))
            end_lost(worker);
        if (progress) {
            count_throttled(worker, false);
            worker->idle_since_ns = 0;
            worker->rested = false;
        } else if (!stay(worker)) {
            return;
        }
    }
}

/* --- the loop -------------------------------------------------------------------------- */

static void hear_doorbell(struct session_worker *worker, bool hears)
{
    struct epoll_event event = {.events = hears ? EPOLLIN | EPOLLET : 0,
                                .data.fd = SESSION_DOORBELL_FD};

    epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, SESSION_DOORBELL_FD, &event);
    worker->hears_doorbell = hears;
}

/* Work would be news: it may run, or the mediator would want to know. */
static bool waits_for_work(const struct session_worker *worker)
{
    return !worker->runner.ring.faulted && !worker->throttled &&
           (worker->granted || (worker->connection >= 0 && !worker->told));
}

static void hear(struct session_worker *worker, const struct epoll_event *event)
{
    if (event->data.fd == SESSION_LISTENER_FD)
        accept_mediator(worker);
    else if (event->data.fd == worker->connection)
        hear_mediator(worker);
    else if (event->data.fd == SESSION_DOORBELL_FD && !waits_for_work(worker))
        hear_doorbell(worker, false); /* a guest that goes on ringing wakes nobody */
}

/* True when there is nothing to do before something happens.  What kept taken operations from
 * beginning may just have ended, a device that was at work or a time for which the VM is
 * throttled: then no doorbell rings for them any more. */
static bool may_sleep(struct session_worker *worker)
{
    if (is_at_work(worker) || is_unsure(worker))
        return false;
    worker->throttled = false;
    if (!waits_for_work(worker) || is_throttled(worker))
        return true;
    if (worker->granted && runner_has_taken(&worker->runner))
        return false;
    if (!worker->hears_doorbell)
        hear_doorbell(worker, true);
    return !ring_arm(&worker->runner.ring);
}

static void look(struct session_worker *worker)
{
    uint32_t depth;

    run_granted(worker);
    if (!worker->granted && worker->connection >= 0 && !worker->told) {
        depth = runner_depth(&worker->runner);
        if (depth > 0 && !is_throttled(worker))
            tell_work(worker, depth);
    }
    if (worker->runner.ring.faulted && !worker->fault_told)
        tell_fault(worker);
}

/* How long to wait for something, before a rest; -1: without end. */
static int patience_ms(struct session_worker *worker)
{
    if (!may_sleep(worker))
        return 0;
    if (worker->rested || worker->told || worker->arguments->idle_ms == 0)
        return -1;
    return (int)worker->arguments->idle_ms;
}

static _Noreturn void serve(struct session_worker *worker)
{
    struct epoll_event events[8];

    for (;;) {
        int count, timeout_ms;

        look(worker);
        timeout_ms = patience_ms(worker);
        count = epoll_wait(worker->epoll_fd, events, VGPU_ARRAY_LENGTH(events), timeout_ms);
        if (count == 0 && timeout_ms > 0)
            rest(worker);
        for (int i = 0; i < count; i++)
            hear(worker, &events[i]);
    }
}

/* --- the owner's life ----------------------------------------------------------------------- */

/* A thread of its own, as the other one may be in the middle of an operation that
 * nobody waits for any more. */
static void *watch_lifeline(void *argument)
{
    struct session_memory *memory = argument;
    struct pollfd lifeline = {.fd = SESSION_LIFELINE_FD};

    while (poll(&lifeline, 1, -1) < 1 || !(lifeline.revents & (POLLHUP | POLLERR | POLLNVAL)))
        ;
    __atomic_store_n(&memory->owner_gone, 1, __ATOMIC_RELEASE);
    _exit(EXIT_SUCCESS);
}

static int start_lifeline(struct session_worker *worker, struct vgpu_error *error)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int code;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, LIFELINE_STACK_BYTES);
    code = pthread_create(&thread, &attributes, watch_lifeline, worker->memory);
    pthread_attr_destroy(&attributes);
    if (code != 0)
        return error_set(error, code, "cannot watch its owner: %s", strerror(code));
    pthread_detach(thread);
    return 0;
}

/* --- start ---------------------------------------------------------------------------------- */

static int map_memory(struct session_worker *worker, struct vgpu_error *error)
{
    const struct flock owned = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    void *memory = mmap(NULL, sizeof(*worker->memory), PROT_READ | PROT_WRITE, MAP_SHARED,
                        SESSION_MEMORY_FD, 0);

    if (memory == MAP_FAILED)
        return error_set_errno(error, "cannot map the session memory");
    worker->memory = memory;
    /* The flock(2) came with the descriptor; this one names its holder to a mediator. */
    if (fcntl(SESSION_MEMORY_FD, F_SETLK, &owned) < 0)
        return error_set_errno(error, "cannot lock the session memory");
    /* From here on the kernel names this process to who connects; only then is there a
     * pid in the memory, as a sign of that. */
    if (listen(SESSION_LISTENER_FD, SESSION_BACKLOG) < 0)
        return error_set_errno(error, "cannot listen for mediators");
    worker->memory->device_lost = 0;
    worker->memory->contexts = 0; /* those of the last worker went with it */
    text_copy(worker->devices, sizeof(worker->devices), worker->memory->devices);
    __atomic_store_n(&worker->memory->worker_pid, (uint32_t)getpid(), __ATOMIC_RELEASE);
    return 0;
}

static int map_account(struct session_worker *worker, struct vgpu_error *error)
{
    struct stat info;
    void *memory;

    if (fstat(SESSION_ACCOUNT_FD, &info) < 0 ||
        info.st_size != (off_t)sizeof(struct account_memory))
        return error_set(error, EINVAL, "its VM's account is not of this release");
    memory = mmap(NULL, sizeof(struct account_memory), PROT_READ | PROT_WRITE, MAP_SHARED,
                  SESSION_ACCOUNT_FD, 0);
    if (memory == MAP_FAILED)
        return error_set_errno(error, "cannot map its VM's account");
    close(SESSION_ACCOUNT_FD);
    worker->share = (struct account_share){memory, worker->arguments->share};
    return 0;
}

/* Without it all goes on as well. */
static void map_trace(struct session_worker *worker)
{
    struct vgpu_error error;

    if (!worker->arguments->has_trace)
        return;
    if (trace_attach(&worker->runner.trace, SESSION_TRACE_FD, &error) < 0)
        log_warning("worker: vm=%u, slot=%u: %s", worker->arguments->vm_id, worker->arguments->slot,
                    error.message);
    close(SESSION_TRACE_FD);
}

static int map_slot(const struct session_arguments *arguments, uint8_t **ret_slot,
                    struct vgpu_error *error)
{
    int fd = SESSION_WINDOW_FD, seals = fcntl(fd, F_GET_SEALS);
    struct stat info;
    void *slot;

    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &info) < 0 ||
        (uint64_t)info.st_size < arguments->slot_offset + arguments->slot_bytes)
        return error_set(error, EINVAL, "the window is not sealed, or too short");
    if (!arguments->successor &&
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)arguments->slot_offset,
                  (off_t)arguments->slot_bytes) < 0)
        return error_set_errno(error, "cannot clear the slot");
    slot = mmap(NULL, arguments->slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                (off_t)arguments->slot_offset);
    if (slot == MAP_FAILED)
        return error_set_errno(error, "cannot map the slot");
    fd_close(&fd); /* this slot is all that can be reached from here */
    *ret_slot = slot;
    return 0;
}

static int start_watching(struct session_worker *worker, struct vgpu_error *error)
{
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (worker->epoll_fd < 0)
        return error_set_errno(error, "cannot watch anything");
    worker->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (worker->timer_fd < 0)
        return error_set_errno(error, "cannot have a timer");
    watch(worker, SESSION_LISTENER_FD, EPOLLIN);
    watch(worker, SESSION_DOORBELL_FD, EPOLLIN | EPOLLET);
    watch(worker, worker->timer_fd, EPOLLIN | EPOLLET); /* each ring is news, read or not */
    worker->hears_doorbell = true;
    return 0;
}

/* A successor serves also without a device: its guest has to be told what was lost. */
static int open_backend(const struct session_worker *worker,
                        const struct exec_backend **ret_backend, struct vgpu_error *error)
{
    const struct session_arguments *arguments = worker->arguments;

    *ret_backend = arguments->backend;
    if (arguments->backend->open(&arguments->backend_config, error) == 0)
        return 0;
    __atomic_store_n(&worker->memory->device_lost, 1, __ATOMIC_RELEASE);
    if (!arguments->successor)
        return -1;
    log_error("worker: vm=%u, slot=%u: goes on without a device: %s", arguments->vm_id,
              arguments->slot, error->message);
    *ret_backend = &exec_backend_none;
    return 0;
}

unsigned session_count_devices(const char *names)
{
    char name[EXEC_DEVICE_BYTES];
    unsigned count = 0;

    while (count < VGPU_SESSION_DEVICES_MAX && text_word(names, count, name, sizeof(name)))
        count++;
    return count > 0 ? count : 1;
}

static int start(struct session_worker *worker, struct vgpu_error *error)
{
    const struct session_arguments *arguments = worker->arguments;
    const struct exec_backend *backend;
    int log_fd = arguments->has_log ? SESSION_LOG_FD : -1;
    uint8_t *slot;

    if (arguments->has_cgroup)
        sandbox_join_cgroup(SESSION_CGROUP_FD);
    if (map_memory(worker, error) < 0 || map_account(worker, error) < 0 ||
        map_slot(arguments, &slot, error) < 0 || start_watching(worker, error) < 0 ||
        sandbox_drop_user(arguments->uid, arguments->gid, error) < 0)
        return -1;
    map_trace(worker);
    if (open_backend(worker, &backend, error) < 0 ||
        runner_open(&worker->runner, backend, slot, arguments->slot_bytes,
                    session_count_devices(arguments->backend_config.device), &worker->share,
                    arguments->operation_limit_ms, worker->memory, SESSION_INTERRUPT_FD, log_fd,
                    error) < 0 ||
        start_lifeline(worker, error) < 0 || sandbox_enter(arguments->backend->driver, error) < 0)
        return -1;
    runner_begin(&worker->runner, arguments->successor);
    return 0;
}

int session_serve(const struct session_arguments *arguments)
{
    static struct session_worker worker;
    struct vgpu_error error;

    worker.arguments = arguments;
    worker.connection = -1;
    if (start(&worker, &error) < 0) {
        log_error("worker: vm=%u, slot=%u: %s", arguments->vm_id, arguments->slot, error.message);
        return EXIT_FAILURE;
    }
    serve(&worker);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mediator's loop with one window session on it, and the guest at its slot: the
 * real vgpu-worker (environment variable VGPU_WORKER), a window, eventfds and a
 * lifeline of the test's own.  Everything that the events said is noted.
 *
 *   guest_*    what a guest does: submit, take, sleep until the interrupt comes
 *   session_*  what a mediator does; with `grants` it gives `grant` when asked
 */
#ifndef VGPU_TESTS_SESSION_BENCH_H
#define VGPU_TESTS_SESSION_BENCH_H

#include "unit.h"

#include "exec/session_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define HANG_MS 60000 /* a test that waits this long for an event has failed */

#define SLOTS 2u /* of which the second is used: an offset is not 0 by chance */
#define SLOT 1u
#define WINDOW_BYTES (4u << 20)
#define DEVICE_BYTES (64u << 20)
#define LIMIT_MS 5000u

#define ARENA VGPU_SLOT_ARENA
#define HEAP VGPU_SLOT_HEAP

static const struct exec_session_grant long_grant = {UINT32_MAX, UINT32_MAX, EXEC_GRANT_LONG};
static const struct exec_session_grant short_grant = {UINT32_MAX, UINT32_MAX, 1000000};

struct bench {
    uv_loop_t loop;
    uv_timer_t guard;
    uv_poll_t interrupted; /* what the guest sleeps on */
    bool hung;
    char *directory;
    char memory_path[512], socket_path[512], log[512];
    /* the guest's */
    int window_fd, doorbell_fd, interrupt_fd, lifeline_fds[2];
    uint8_t *window, *slot;
    uint64_t slot_bytes, slot_offset;
    struct vgpu_slot_guest *guest;
    struct vgpu_slot_host *host;
    uint32_t sq_tail, cq_head;
    uint64_t cookie, doorbells, interrupts;
    /* the mediator's */
    struct exec_account *account;
    struct exec_session *session; /* NULL when there is none (any more) */
    pid_t pid;
    const char *backend;
    const char *devices; /* NULL: the backend's first */
    const char *cuda_library;
    bool grants;
    struct exec_session_grant grant;
    uid_t uid;
    uint32_t spin_us;
    unsigned ready, work, returned, rested, faulted, ended;
    struct exec_session_identity identity;
    uint32_t depth, depth_left;
    uint64_t used_us, operations; /* of all grants */
    char reason[512];
    bool owner_gone;
};

/* --- the loop ------------------------------------------------------------------------ */

static inline void on_guard(uv_timer_t *timer)
{
    struct bench *bench = timer->data;

    bench->hung = true;
}

static inline void turn(struct bench *bench)
{
    uv_ref((uv_handle_t *)&bench->guard);
    uv_run(&bench->loop, UV_RUN_ONCE);
    uv_unref((uv_handle_t *)&bench->guard);
    if (bench->hung)
        fail_msg("nothing happened for %d ms: state %u, granted %u returned %u ended %u '%s'",
                 HANG_MS, bench->host->state, bench->work, bench->returned, bench->ended,
                 bench->reason);
}

#define WAIT_FOR(bench, condition)                                                                 \
    do {                                                                                           \
        while (!(condition)) {                                                                     \
            if (bench->ended > 0)                                                                  \
                fail_msg("the worker %s", bench->reason);                                          \
            turn(bench);                                                                           \
        }                                                                                          \
    } while (0)

/* Turns that find no more than was there already. */
static inline void settle(struct bench *bench)
{
    for (int i = 0; i < 3; i++)
        uv_run(&bench->loop, UV_RUN_NOWAIT);
}

static inline void on_interrupted(uv_poll_t *poll, int status, int events)
{
    struct bench *bench = poll->data;
    uint64_t count;

    (void)status;
    (void)events;
    if (read(bench->interrupt_fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
        bench->interrupts += count;
}

/* --- the mediator ----------------------------------------------------------------------- */

static inline void on_ready(struct exec_session *session,
                            const struct exec_session_identity *identity, void *context)
{
    struct bench *bench = context;

    if (session != bench->session)
        abort();
    bench->ready++;
    bench->identity = *identity;
}

static inline void on_work(struct exec_session *session, uint32_t depth, void *context)
{
    struct bench *bench = context;

    bench->work++;
    bench->depth = depth;
    if (bench->grants)
        exec_session_grant(session, &bench->grant);
}

static inline void on_returned(struct exec_session *session, uint64_t used_us, uint64_t operations,
                               uint32_t depth_left, void *context)
{
    struct bench *bench = context;

    bench->returned++;
    bench->used_us += used_us;
    bench->operations += operations;
    bench->depth_left = depth_left;
    if (bench->grants && depth_left > 0)
        exec_session_grant(session, &bench->grant);
}

static inline void on_rested(struct exec_session *session, void *context)
{
    struct bench *bench = context;

    (void)session;
    bench->rested++;
}

static inline void on_faulted(struct exec_session *session, const char *reason, void *context)
{
    struct bench *bench = context;

    (void)session;
    bench->faulted++;
    text_copy(bench->reason, sizeof(bench->reason), reason);
}

static inline void on_ended(struct exec_session *session, const char *reason, bool owner_gone,
                            void *context)
{
    struct bench *bench = context;

    if (session != bench->session)
        abort();
    bench->ended++;
    exec_account_clear(bench->account, 0);
    bench->owner_gone = owner_gone;
    text_copy(bench->reason, sizeof(bench->reason), reason);
    bench->session = NULL;
}

static inline struct exec_session_events session_events(struct bench *bench)
{
    return (struct exec_session_events){.ready = on_ready,
                                        .work = on_work,
                                        .returned = on_returned,
                                        .rested = on_rested,
                                        .faulted = on_faulted,
                                        .ended = on_ended,
                                        .context = bench};
}

static inline int session_try(struct bench *bench, bool successor, struct vgpu_error *error)
{
    const struct exec_session_config config = {.program = getenv("VGPU_WORKER"),
                                               .backend = bench->backend,
                                               .devices = bench->devices,
                                               .cuda_library = bench->cuda_library,
                                               .vm_id = 7,
                                               .slot = SLOT,
                                               .slot_offset = bench->slot_offset,
                                               .slot_bytes = bench->slot_bytes,
                                               .memory_path = bench->memory_path,
                                               .socket_path = bench->socket_path,
                                               .window_fd = bench->window_fd,
                                               .doorbell_fd = bench->doorbell_fd,
                                               .interrupt_fd = bench->interrupt_fd,
                                               .lifeline_fd = bench->lifeline_fds[0],
                                               .successor = successor,
                                               .uid = bench->uid,
                                               .gid = bench->uid,
                                               .account = bench->account,
                                               .operation_limit_ms = LIMIT_MS,
                                               .spin_us = bench->spin_us,
                                               .execution_log = bench->log};
    const struct exec_session_events events = session_events(bench);
    int result;

    bench->ready = bench->ended = 0;
    error->message[0] = '\0';
    result = exec_session_start(&bench->loop, &config, &events, &bench->session, error);
    if (result == 0)
        bench->pid = exec_session_pid(bench->session);
    return result;
}

static inline void session_start(struct bench *bench, bool successor)
{
    struct vgpu_error error;

    if (session_try(bench, successor, &error) < 0)
        fail_msg("%s", error.message);
    WAIT_FOR(bench, bench->ready || bench->ended);
    if (bench->ended)
        fail_msg("the worker %s", bench->reason);
}

/* As another mediator would: nothing is known but the paths. */
static inline void session_adopt(struct bench *bench)
{
    const struct exec_session_events events = session_events(bench);
    struct vgpu_error error;

    bench->ready = bench->ended = 0;
    if (exec_session_adopt(&bench->loop, bench->memory_path, bench->socket_path, &events,
                           &bench->session, &error) < 0)
        fail_msg("%s", error.message);
    bench->pid = exec_session_pid(bench->session);
}

static inline void session_detach(struct bench *bench)
{
    exec_session_detach(bench->session);
    bench->session = NULL;
    settle(bench);
}

static inline void session_end(struct bench *bench)
{
    if (bench->session)
        exec_session_kill(bench->session);
    WAIT_FOR(bench, !bench->session);
}

/* --- the guest ---------------------------------------------------------------------------- */

static inline uint64_t guest_ring(struct bench *bench)
{
    bench->doorbells++;
    return eventfd_write(bench->doorbell_fd, 1) == 0;
}

/* Writes it where the next one stands; nothing is published. */
static inline void guest_write(struct bench *bench, uint32_t ahead,
                               const struct vgpu_descriptor *descriptor)
{
    struct vgpu_descriptor *ring = (struct vgpu_descriptor *)(void *)(bench->slot + VGPU_SLOT_SQ);

    ring[(bench->sq_tail + ahead) % VGPU_RING_ENTRIES] = *descriptor;
}

static inline void guest_publish(struct bench *bench, uint32_t count)
{
    uint32_t old = bench->sq_tail;

    bench->sq_tail += count;
    vgpu_store_release(&bench->guest->sq_tail, bench->sq_tail);
    vgpu_fence_full();
    if (vgpu_event_passed(vgpu_load_acquire(&bench->host->sq_event), bench->sq_tail, old))
        guest_ring(bench);
}

/* Its cookie is the next number, unless it has one; returns that. */
static inline uint64_t guest_submit(struct bench *bench, struct vgpu_descriptor descriptor)
{
    if (descriptor.cookie == 0)
        descriptor.cookie = ++bench->cookie;
    guest_write(bench, 0, &descriptor);
    guest_publish(bench, 1);
    return descriptor.cookie;
}

static inline bool guest_take(struct bench *bench, struct vgpu_completion *ret_completion)
{
    const struct vgpu_completion *ring =
        (const struct vgpu_completion *)(void *)(bench->slot + VGPU_SLOT_CQ);

    if (vgpu_load_acquire(&bench->host->cq_tail) == bench->cq_head)
        return false;
    *ret_completion = ring[bench->cq_head % VGPU_RING_ENTRIES];
    vgpu_store_release(&bench->guest->cq_head, ++bench->cq_head);
    return true;
}

/* Sleeps until there is one. */
static inline struct vgpu_completion guest_wait(struct bench *bench)
{
    struct vgpu_completion completion;

    for (;;) {
        if (guest_take(bench, &completion))
            return completion;
        vgpu_store_release(&bench->guest->cq_event, bench->cq_head);
        vgpu_fence_full();
        WAIT_FOR(bench, vgpu_load_acquire(&bench->host->cq_tail) != bench->cq_head);
    }
}

/* One operation alone. */
static inline struct vgpu_completion guest_run(struct bench *bench,
                                               struct vgpu_descriptor descriptor)
{
    uint64_t cookie = guest_submit(bench, descriptor);
    struct vgpu_completion completion = guest_wait(bench);

    assert_int_equal(completion.cookie, cookie);
    assert_int_equal(completion.sequence, bench->sq_tail - 1);
    return completion;
}

static inline struct vgpu_descriptor ping(void)
{
    return (struct vgpu_descriptor){.opcode = VGPU_OP_PING};
}

#define TEXT_ANSWER (ARENA + 4096)

static inline struct vgpu_descriptor text(struct bench *bench, const char *command)
{
    memcpy(bench->slot + ARENA, command, strlen(command));
    return (struct vgpu_descriptor){.opcode = VGPU_OP_TEXT,
                                    .text = {.command_offset = ARENA,
                                             .answer_offset = TEXT_ANSWER,
                                             .command_bytes = (uint32_t)strlen(command),
                                             .answer_bytes = VGPU_TEXT_MAX_BYTES}};
}

/* --- a bench -------------------------------------------------------------------------------- */

static inline void guest_make(struct bench *bench)
{
    bench->window_fd = memfd_create("window", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (bench->window_fd < 0 || ftruncate(bench->window_fd, WINDOW_BYTES) < 0 ||
        fcntl(bench->window_fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ||
        pipe2(bench->lifeline_fds, O_CLOEXEC) < 0)
        abort();
    bench->doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bench->interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bench->window =
        mmap(NULL, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, bench->window_fd, 0);
    if (bench->window == MAP_FAILED)
        abort();
    bench->slot_bytes = vgpu_window_slot_bytes(WINDOW_BYTES, SLOTS);
    bench->slot_offset = vgpu_window_slot_offset(bench->slot_bytes, SLOT);
    bench->slot = bench->window + bench->slot_offset;
    bench->guest = (struct vgpu_slot_guest *)(void *)(bench->slot + VGPU_SLOT_GUEST);
    bench->host = (struct vgpu_slot_host *)(void *)(bench->slot + VGPU_SLOT_HOST);
    uv_poll_init(&bench->loop, &bench->interrupted, bench->interrupt_fd);
    bench->interrupted.data = bench;
    uv_poll_start(&bench->interrupted, UV_READABLE, on_interrupted);
    uv_unref((uv_handle_t *)&bench->interrupted);
}

/* Share 0 is the session's. */
static inline void account_make(struct bench *bench)
{
    struct vgpu_error error;
    char path[512];

    snprintf(path, sizeof(path), "%s/account", bench->directory);
    if (exec_account_open(path, DEVICE_BYTES, false, &bench->account, &error) < 0)
        fail_msg("%s", error.message);
}

static inline int bench_make(void **state)
{
    struct bench *bench = calloc(1, sizeof(*bench));

    bench->directory = unit_temporary_directory();
    snprintf(bench->memory_path, sizeof(bench->memory_path), "%s/session", bench->directory);
    snprintf(bench->socket_path, sizeof(bench->socket_path), "%s/socket", bench->directory);
    snprintf(bench->log, sizeof(bench->log), "%s/executions", bench->directory);
    account_make(bench);
    uv_loop_init(&bench->loop);
    uv_timer_init(&bench->loop, &bench->guard);
    bench->guard.data = bench;
    uv_timer_start(&bench->guard, on_guard, HANG_MS, 0);
    uv_unref((uv_handle_t *)&bench->guard);
    guest_make(bench);
    bench->backend = "cpu";
    bench->grants = true;
    bench->grant = long_grant;
    bench->uid = (uid_t)-1;
    *state = bench;
    return 0;
}

/* Fails where a handle was left open. */
static inline int bench_remove(void **state)
{
    struct bench *bench = *state;
    int left;

    unsetenv("VGPU_FAULT");
    bench->hung = false; /* a test that hung cleans up too */
    uv_timer_start(&bench->guard, on_guard, HANG_MS, 0);
    session_end(bench);
    uv_close((uv_handle_t *)&bench->guard, NULL);
    uv_close((uv_handle_t *)&bench->interrupted, NULL);
    uv_run(&bench->loop, UV_RUN_DEFAULT);
    left = uv_loop_close(&bench->loop);
    exec_account_end(bench->account);
    munmap(bench->window, WINDOW_BYTES);
    close(bench->window_fd);
    close(bench->doorbell_fd);
    close(bench->interrupt_fd);
    close(bench->lifeline_fds[0]);
    if (bench->lifeline_fds[1] >= 0)
        close(bench->lifeline_fds[1]);
    unit_remove_directory(bench->directory);
    free(bench);
    return left;
}

static inline int bench_make_started(void **state)
{
    bench_make(state);
    session_start(*state, false);
    return 0;
}

/* Before the first test. */
static inline void bench_prepare(void)
{
    if (!getenv("VGPU_WORKER")) {
        fputs("set VGPU_WORKER to the program; `meson test` does\n", stderr);
        exit(2);
    }
    /* What the caller of this test left open is no worker's fault. */
    for (int fd = 3; fd < 256; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* A bench without worker; one with a worker that has said that it is ready. */
#define SESSION_TEST(function) cmocka_unit_test_setup_teardown(function, bench_make, bench_remove)
#define STARTED_TEST(function)                                                                     \
    cmocka_unit_test_setup_teardown(function, bench_make_started, bench_remove)

#endif

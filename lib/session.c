/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session's life: open, its end, close; and fork(2).
 *
 *   page cleared in a child (MADV_WIPEONFORK):  *use = USABLE | LOST | ENDED | FORKED
 *
 * Each call looks at that word, so a child is told apart without a system call.
 * The slot is not mapped in a child (MADV_DONTFORK).  Descriptors would be there:
 * a handler closes them, because the host holds a session alive for as long as
 * anybody holds its lifeline.
 */
#include "private.h"
#include "xenbus.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define OPEN_TIMEOUT_MS 10000u
#define SPIN_US 50

static pthread_mutex_t sessions_lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD(, vgpu_session) sessions = LIST_HEAD_INITIALIZER(sessions);

int64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* --- fork ------------------------------------------------------------------------------ */

static void before_fork(void)
{
    pthread_mutex_lock(&sessions_lock);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&sessions_lock);
}

static void after_fork_in_child(void)
{
    struct vgpu_session *session;

    LIST_FOREACH (session, &sessions, entry) {
        *session->use = SESSION_FORKED; /* also where the kernel knows no WIPEONFORK */
        session->transport->forked(session);
        session->fd = -1;
    }
    LIST_INIT(&sessions);
    pthread_mutex_unlock(&sessions_lock);
}

static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static void remember(struct vgpu_session *session)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&sessions_lock);
    LIST_INSERT_HEAD(&sessions, session, entry);
    pthread_mutex_unlock(&sessions_lock);
}

static void forget(struct vgpu_session *session)
{
    pthread_mutex_lock(&sessions_lock);
    LIST_REMOVE(session, entry);
    pthread_mutex_unlock(&sessions_lock);
}

/* --- the end ------------------------------------------------------------------------------ */

void session_end(struct vgpu_session *session, int status, const char *format, ...)
{
    va_list args;

    if (*session->use != SESSION_USABLE)
        return;
    *session->use = SESSION_ENDED;
    session->end.status = status;
    va_start(args, format);
    vsnprintf(session->end.text, sizeof(session->end.text), format, args);
    va_end(args);
}

void session_lose(struct vgpu_session *session, const char *text)
{
    if (*session->use != SESSION_USABLE)
        return;
    *session->use = SESSION_LOST;
    problem_set(&session->end, VGPU_DEVICE_LOST, "%s", text);
    session->generations_before += session->host->generation;
    /* A page that was moved with the guest may be older than what was read of it. */
    if (session->generations_before < session->generation_told)
        session->generations_before = session->generation_told;
    take_losses(session);
}

int session_refuse(struct vgpu_session *session, struct vgpu_problem *problem)
{
    if (*session->use == SESSION_ENDED || *session->use == SESSION_LOST)
        return problem_copy(problem, &session->end);
    return problem_set(problem, VGPU_PROBLEM_FORKED,
                       "the session belongs to the process that opened it, and this is a child "
                       "of it: open one here");
}

int session_problem_of(struct vgpu_session *session, struct vgpu_problem *problem, uint32_t status,
                       const char *what)
{
    if (status == VGPU_DEVICE_LOST && *session->use == SESSION_LOST)
        return session_refuse(session, problem);
    return problem_of_status(problem, status, what);
}

/* --- open ------------------------------------------------------------------------------------ */

int session_map(struct vgpu_session *session, int fd, uint64_t offset, uint64_t slot_bytes,
                struct vgpu_problem *problem)
{
    uint8_t *slot;

    if (slot_bytes < VGPU_SLOT_MIN_BYTES)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM,
                           "%s offers a slot of %llu bytes, expected at least %u",
                           session->info.path, (unsigned long long)slot_bytes, VGPU_SLOT_MIN_BYTES);
    slot = mmap(NULL, slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (slot == MAP_FAILED)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM, "cannot map %llu bytes of %s: %s",
                           (unsigned long long)slot_bytes, session->info.path, strerror(errno));
    madvise(slot, slot_bytes, MADV_DONTFORK);
    session->slot = slot;
    session->slot_bytes = session->info.slot_bytes = slot_bytes;
    session->info.heap_bytes = slot_bytes - VGPU_SLOT_HEAP;
    session->guest = (struct vgpu_slot_guest *)(slot + VGPU_SLOT_GUEST);
    session->host = (const struct vgpu_slot_host *)(slot + VGPU_SLOT_HOST);
    session->descriptors = (struct vgpu_descriptor *)(slot + VGPU_SLOT_SQ);
    session->completions = (const struct vgpu_completion *)(slot + VGPU_SLOT_CQ);
    return 0;
}

/* Where the host of a slot in which nothing was submitted begins to count. */
static void open_rings(struct vgpu_session *session)
{
    session->sq_tail = session->sq_published = session->sq_head =
        vgpu_load_acquire(&session->host->sq_head);
    session->sequence_seen = session->sq_tail;
    session->cq_head = vgpu_load_acquire(&session->host->cq_tail);
    session->quiet_run = 0;
    session->launch_head = session->launch_tail = 0;
    session->chunk_tail = session->chunk_head;
    written_forget(session);
}

static int open_memory(struct vgpu_session *session, struct vgpu_problem *problem)
{
    if (heap_open(&session->heap, VGPU_SLOT_HEAP, session->info.heap_bytes) < 0 ||
        heap_open(&session->texts, VGPU_SLOT_ARENA, VGPU_ARENA_BYTES / 2) < 0)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM, "out of memory");
    pending_open(session);
    open_rings(session);
    return 0;
}

/* What `path` is says which transport it wants. */
static int choose_by_path(const char *path, const struct transport **ret_transport,
                          struct vgpu_problem *problem)
{
    struct stat info;

    if (stat(path, &info) < 0)
        return problem_set(problem, errno == EACCES ? VGPU_PROBLEM_DENIED : VGPU_PROBLEM_NO_DEVICE,
                           "%s: %s; expected a device like /dev/vgpu0, a VM's socket, or a PCI "
                           "device's directory in /sys",
                           path, strerror(errno));
    if (S_ISSOCK(info.st_mode))
        *ret_transport = &socket_transport;
    else if (S_ISCHR(info.st_mode))
        *ret_transport = &module_transport;
    else if (S_ISDIR(info.st_mode))
        *ret_transport = &sysfs_transport;
    else
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "%s is neither a device like /dev/vgpu0, nor a socket, nor a PCI "
                           "device's directory in /sys",
                           path);
    return 0;
}

static int open_with(struct vgpu_session *session, const struct transport *transport,
                     const struct vgpu_options *options, const char *path,
                     struct vgpu_problem *problem)
{
    session->transport = transport;
    session->info.transport = transport->kind;
    if (transport->open(session, options, path, problem) == 0)
        return 0;
    session->transport = NULL;
    return -1;
}

/* Where a Xen host is, it is the way that can be had: its devices have no window. */
static int open_without_device(struct vgpu_session *session, const struct vgpu_options *options,
                               struct vgpu_problem *problem)
{
    struct vgpu_problem xen;

    if (access(XENBUS_DEVICE, F_OK) < 0)
        return -1;
    if (open_with(session, &xen_transport, options, NULL, &xen) == 0)
        return 0;
    return problem_copy(problem, &xen);
}

/* The module; without one the registers, if that is possible.  The problem told
 * is the module's: that is the way to be repaired. */
static int open_device(struct vgpu_session *session, const struct vgpu_options *options,
                       struct vgpu_problem *problem)
{
    struct vgpu_problem first = {0}, second;

    if (open_with(session, &module_transport, options, NULL, &first) == 0)
        return 0;
    if (first.status == VGPU_PROBLEM_NO_DEVICE &&
        open_with(session, &sysfs_transport, options, NULL, &second) == 0)
        return 0;
    if (first.status != VGPU_PROBLEM_NO_DEVICE)
        return problem_copy(problem, &first);
    problem_set(problem, second.status, "%.200s; and without the module: %.280s", first.text,
                second.text);
    return open_without_device(session, options, problem);
}

static int open_transport(struct vgpu_session *session, const struct vgpu_options *options,
                          struct vgpu_problem *problem)
{
    static const struct transport *const by_kind[] = {
        [VGPU_TRANSPORT_MODULE] = &module_transport,
        [VGPU_TRANSPORT_SYSFS] = &sysfs_transport,
        [VGPU_TRANSPORT_SOCKET] = &socket_transport,
        [VGPU_TRANSPORT_XEN] = &xen_transport,
    };
    const struct transport *transport = NULL;
    const char *path = options->path;

    if (options->transport > VGPU_TRANSPORT_XEN)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT, "there is no transport %d",
                           (int)options->transport);
    transport = by_kind[options->transport];
    if (!path && (transport == &socket_transport || !transport)) {
        path = getenv("VGPU_SOCKET");
        path = path && path[0] ? path : NULL;
        if (path)
            transport = &socket_transport;
    } else if (path && !transport && choose_by_path(path, &transport, problem) < 0) {
        return -1;
    }
    if (!transport)
        return open_device(session, options, problem);
    return open_with(session, transport, options, path, problem);
}

static int cores(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 2;
}

static struct vgpu_session *session_new(const struct vgpu_options *options,
                                        struct vgpu_problem *problem)
{
    struct vgpu_session *session = calloc(1, sizeof(*session));
    uint32_t timeout_ms = options->open_timeout_ms ? options->open_timeout_ms : OPEN_TIMEOUT_MS;
    void *page;

    if (!session) {
        problem_set(problem, VGPU_PROBLEM_SYSTEM, "out of memory");
        return NULL;
    }
    page = mmap(NULL, VGPU_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        problem_set(problem, VGPU_PROBLEM_SYSTEM, "cannot map a page: %s", strerror(errno));
        free(session);
        return NULL;
    }
    madvise(page, VGPU_PAGE_BYTES, MADV_WIPEONFORK);
    session->use = page;
    *session->use = SESSION_USABLE;
    session->fd = -1;
    session->spin_ns =
        (options->spin_us >= 0 ? options->spin_us : (cores() > 1 ? SPIN_US : 0)) * NS_PER_US;
    session->open_timeout_ns = timeout_ms * NS_PER_MS;
    session->deadline_ns = clock_ns() + session->open_timeout_ns;
    return session;
}

/* All but the transport. */
static void session_free(struct vgpu_session *session)
{
    heap_close(&session->heap);
    heap_close(&session->texts);
    written_close(session);
    munmap(session->use, VGPU_PAGE_BYTES);
    free(session);
}

int vgpu_open(const struct vgpu_options *options, struct vgpu_session **ret_session,
              struct vgpu_problem *problem)
{
    const struct vgpu_options defaults = VGPU_OPTIONS_DEFAULT;
    struct vgpu_session *session;

    if (!options)
        options = &defaults;
    session = session_new(options, problem);
    if (!session)
        return -1;
    if (open_transport(session, options, problem) < 0) {
        session_free(session);
        return -1;
    }
    if (open_memory(session, problem) < 0) {
        session->transport->close(session);
        munmap(session->slot, session->slot_bytes);
        free(session->way);
        session_free(session);
        return -1;
    }
    remember(session);
    *ret_session = session;
    return 0;
}

void vgpu_close(struct vgpu_session *session)
{
    if (!session)
        return;
    if (*session->use == SESSION_FORKED) {
        /* The slot was never mapped here; descriptors are closed, unless the
         * child was made without fork(3)'s handlers. */
        session->transport->forked(session);
    } else {
        forget(session);
        munmap(session->slot, session->slot_bytes);
        session->transport->close(session);
    }
    free(session->way);
    session_free(session);
}

uint32_t session_state(const struct vgpu_session *session, uint32_t told)
{
    uint32_t state = __atomic_load_n(&session->host->state, __ATOMIC_RELAXED);
    bool is_alive = told == VGPU_SESSION_READY || told == VGPU_SESSION_LOST;

    return is_alive && (state == VGPU_SESSION_READY || state == VGPU_SESSION_LOST) ? state : told;
}

void vgpu_session_info(struct vgpu_session *session, struct vgpu_session_info *ret_info)
{
    *ret_info = session->info;
    if (*session->use == SESSION_FORKED) {
        ret_info->state = VGPU_SESSION_CLOSED;
        return;
    }
    ret_info->features = __atomic_load_n(&session->host->features, __ATOMIC_RELAXED);
    if (*session->use == SESSION_LOST) {
        ret_info->state = VGPU_SESSION_LOST;
        ret_info->generation = session->generation_told = session->generations_before + 1;
        return;
    }
    ret_info->generation = session->generation_told =
        session->generations_before + __atomic_load_n(&session->host->generation, __ATOMIC_RELAXED);
    ret_info->state =
        *session->use == SESSION_ENDED ? VGPU_SESSION_CLOSED : session->transport->state(session);
}

static int reconnect(struct vgpu_session *session, struct vgpu_problem *problem)
{
    session->deadline_ns = clock_ns() + session->open_timeout_ns;
    if (session->transport->reconnect(session, problem) < 0)
        return -1;
    open_rings(session);
    *session->use = SESSION_USABLE;
    return 0;
}

int vgpu_reset(struct vgpu_session *session, struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_RESET};

    struct vgpu_problem why;

    session->device = 0; /* there may be fewer now */
    if (*session->use != SESSION_LOST &&
        submit_and_wait(session, &descriptor, "reset", NULL, &why) == 0)
        return 0;
    /* It may have been lost long since, and this call the first to notice. */
    return *session->use == SESSION_LOST ? reconnect(session, problem)
                                         : problem_copy(problem, &why);
}

/* --- the heap ----------------------------------------------------------------------------------
 */

void *vgpu_heap_alloc(struct vgpu_session *session, uint64_t bytes)
{
    bool has_heap = session_usable(session) || *session->use == SESSION_LOST;
    uint64_t offset = has_heap ? heap_take(&session->heap, bytes) : 0;

    return offset ? session->slot + offset : NULL;
}

void vgpu_heap_free(struct vgpu_session *session, void *memory)
{
    if (memory && *session->use != SESSION_FORKED)
        heap_give(&session->heap, (uint64_t)((uint8_t *)memory - session->slot));
}

uint64_t vgpu_heap_offset(const struct vgpu_session *session, const void *memory)
{
    return session_in_heap(session, memory, 0) ? (uint64_t)((const uint8_t *)memory - session->slot)
                                               : 0;
}

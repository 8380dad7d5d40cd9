/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One slot at work: its worker, its grants, its deadlines.
 *
 * The worker does the work by itself; here is only what it may and for how long.
 * A grant has come back, or its worker is dead, before another is given: so two
 * sessions never share a device.  Deadlines while a grant is out:
 *   - one operation runs, or holds up the worker, longer than operation_limit_ms;
 *   - a bounded grant lasts longer than its device time and that limit;
 *   - a revoked worker that runs nothing does not answer (it hangs: perhaps its
 *     peer filled the interrupt's eventfd), though the host let it.
 * Each ends the worker.  Its successor answers what it left with DEVICE_LOST, and the
 * operation that ran too long with TIME_LIMIT.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REVOKE_PATIENCE_MS 1000
#define REVOKE_LOOK_MS 250
#define LOOK_MIN_MS 5
#define LOOKS_A_LIMIT 4       /* at an operation, before it has run too long; and one every ... */
#define LOOK_MAX_MS 500       /* ... as those who wait are to wait for no more than the limit */
#define START_LIMIT_MS 10000u /* until a new worker is ready */

/* A worker that lived so long did not die of its start. */
#define HEALTHY_NS (10 * NS_PER_S)
#define RESTART_MIN_MS 50
#define RESTART_MAX_MS 5000

/* A session without worker and link: how long its owner may take to connect. */
#define DEAD_ORPHAN_MS 60000
#define ORPHAN_LOOK_MS 20

static void on_timer(uv_timer_t *timer);

static struct window_session *of_session(struct session *session)
{
    return (struct window_session *)session; /* its first member */
}

static const struct config *config_of(const struct window_session *ws)
{
    return ws->session.vm->mediator->config;
}

static uint32_t limit_ms_of(const struct window_session *ws)
{
    return vm_operation_limit_ms(ws->session.vm);
}

/* --- the log ------------------------------------------------------------------------ */

static bool grants_are_logged(const struct window_session *ws)
{
    return ws->session.vm->mediator->test.active || config_of(ws)->log_level == LOG_LEVEL_DEBUG;
}

static void describe(const struct session *session, char *text, size_t bytes)
{
    const struct window_session *ws = (const struct window_session *)session;

    snprintf(text, bytes, "window slot %u, %u operation%s", ws->slot, session->depth,
             session->depth == 1 ? "" : "s");
}

static void log_grant(struct window_session *ws, const char *tag, const char *what, uint64_t count)
{
    struct vm *vm = ws->session.vm;
    char pool = vm_pool(vm);
    const char pool_text[2] = {pool, '\0'};
    unsigned priority = vm_priority(vm);
    const struct log_field fields[] = {
        LOG_TEXT("pool", pool_text),
        LOG_NUMBER("priority", priority),
        LOG_NUMBER("vm", vm->vm_id),
        LOG_TEXT("channel", "window"),
        LOG_NUMBER("slot", ws->slot),
        LOG_NUMBER("sequence", ws->sequence),
        LOG_NUMBER("operations", count),
        LOG_NUMBER("count", sched_waiting(vm->mediator->sched, pool)),
        LOG_NUMBER("worker_pid", (uint64_t)(ws->worker ? exec_session_pid(ws->worker) : 0))};

    if (grants_are_logged(ws))
        log_event(tag, fields, VGPU_ARRAY_LENGTH(fields),
                  "Pool %c: %s priority=%u, vm=%u, window slot %u, operations=%llu", pool, what,
                  priority, vm->vm_id, ws->slot, (unsigned long long)count);
}

/* --- the scheduler's word --------------------------------------------------------------- */

/* It has work: it joins its VM's queue, with a number for its turn. */
static void wait_for_turn(struct window_session *ws, uint32_t depth)
{
    ws->sequence = ++ws->session.vm->window_sequence;
    session_wait(&ws->session, depth);
    if (!ws->refusing)
        log_grant(ws, "QUEUE", "Added", depth);
}

static void look_every(struct window_session *ws, uint64_t period_ms)
{
    if (period_ms < LOOK_MIN_MS)
        period_ms = LOOK_MIN_MS;
    if (period_ms > LOOK_MAX_MS)
        period_ms = LOOK_MAX_MS;
    uv_timer_start(&ws->timer, on_timer, period_ms, period_ms);
}

static void run(struct session *session, const struct sched_grant *grant)
{
    struct window_session *ws = of_session(session);
    const struct exec_session_grant given = {.max_ops = grant->max_ops,
                                             .max_inflight = grant->max_inflight,
                                             .device_us = grant->device_us,
                                             .rest = contexts_are_wanted(session)};

    ws->granted_ns = clock_monotonic_ns();
    ws->grant_us = grant->device_us;
    ws->revoked = ws->doubted = false;
    ws->running = ws->blocking = 0;
    log_grant(ws, "PROCESS", "Granted", session->depth);
    look_every(ws, limit_ms_of(ws) / LOOKS_A_LIMIT);
    fault_point("window_grant");
    exec_session_grant(ws->worker, &given);
}

static void take_back(struct session *session)
{
    struct window_session *ws = of_session(session);

    if (ws->revoked || !ws->worker)
        return;
    ws->revoked = true;
    ws->doubted = false;
    ws->revoked_ns = clock_monotonic_ns();
    look_every(ws, limit_ms_of(ws) / LOOKS_A_LIMIT < REVOKE_LOOK_MS
                       ? limit_ms_of(ws) / LOOKS_A_LIMIT
                       : REVOKE_LOOK_MS);
    exec_session_revoke(ws->worker);
}

/* The worker answers, without a turn on the device, until it is told otherwise. */
static void refuse(struct session *session)
{
    static const struct exec_session_grant refusing = {
        .max_ops = UINT32_MAX, .max_inflight = 1, .device_us = EXEC_GRANT_LONG, .refuse = true};
    struct window_session *ws = of_session(session);

    if (ws->state != WINDOW_SESSION_OPEN || !ws->worker || ws->refusing)
        return;
    window_session_measure(ws);
    ws->refusing = true;
    ws->revoked = false;
    ws->running = ws->blocking = 0;
    ws->grant_us = SCHED_GRANT_LONG_US;
    exec_session_grant(ws->worker, &refusing);
}

static bool needs_context(const struct session *session)
{
    const struct window_session *ws = (const struct window_session *)session;

    return strcmp(exec_backend_of(ws->devices), "cuda") == 0;
}

static uint32_t contexts(const struct session *session)
{
    const struct window_session *ws = (const struct window_session *)session;

    return ws->worker ? exec_session_contexts(ws->worker) : 0;
}

static void rest(struct session *session)
{
    const struct window_session *ws = of_session(session);

    if (ws->worker)
        exec_session_rest(ws->worker);
}

/* Nothing of its guest's is there: on a GPU that is so without a context. */
static bool may_move(const struct session *session)
{
    const struct window_session *ws = (const struct window_session *)session;
    const char *device = session->vm->mediator->devices[session->place->device];

    return ws->worker && ws->state == WINDOW_SESSION_OPEN && ws->has_share &&
           devices_are_one(ws->devices, device) && /* not on the processor in its GPU's stead */
           exec_session_may_move(ws->worker) &&
           exec_account_is_empty(session->vm->account, ws->share);
}

/* Its worker sees it with the next grant. */
static void moved(struct session *session)
{
    struct window_session *ws = of_session(session);
    const struct vm *vm = session->vm;
    const char *device = vm->mediator->devices[session->place->device];
    const struct log_field fields[] = {LOG_NUMBER("vm", vm->vm_id), LOG_NUMBER("slot", ws->slot),
                                       LOG_TEXT("device", device)};

    text_copy(ws->devices, sizeof(ws->devices), device);
    exec_session_move(ws->worker, device);
    if (grants_are_logged(ws))
        log_event("MOVED", fields, VGPU_ARRAY_LENGTH(fields),
                  "vm%u: slot %u: it holds nothing and goes to device %s", vm->vm_id, ws->slot,
                  device);
}

static bool is_at_work(struct session *session)
{
    const struct window_session *ws = of_session(session);

    window_session_measure(of_session(session));
    return ws->worker && exec_session_running(ws->worker) != 0;
}

static const struct session_ops window_session_ops = {.takes_many = true,
                                                      .run = run,
                                                      .revoke = take_back,
                                                      .refuse = refuse,
                                                      .needs_context = needs_context,
                                                      .contexts = contexts,
                                                      .rest = rest,
                                                      .may_move = may_move,
                                                      .moved = moved,
                                                      .is_at_work = is_at_work,
                                                      .describe = describe};

void window_session_accept(struct window_session *ws)
{
    if (ws->refusing)
        take_back(&ws->session);
}

/* For what its VM has no part in. */
static void end_blameless(struct window_session *ws)
{
    ws->blameless = true;
    exec_session_kill(ws->worker);
}

void window_session_check_device(struct window_session *ws)
{
    bool well = devices_all_usable(ws->session.vm->mediator, ws->devices);

    if (!ws->worker || ws->state != WINDOW_SESSION_OPEN)
        return;
    if ((well && exec_session_device_lost(ws->worker)) ||
        (ws->devices[0] && !placement_fits(&ws->session, ws->devices)))
        end_blameless(ws);
}

void window_session_leave_device(struct window_session *ws)
{
    if (ws->worker && ws->state == WINDOW_SESSION_OPEN &&
        !placement_allows(ws->session.vm, ws->devices))
        end_blameless(ws);
}

void window_session_limit_changed(struct window_session *ws)
{
    if (ws->session.state == SESSION_RUNNING)
        look_every(ws, limit_ms_of(ws) / LOOKS_A_LIMIT < REVOKE_LOOK_MS || !ws->revoked
                           ? limit_ms_of(ws) / LOOKS_A_LIMIT
                           : REVOKE_LOOK_MS);
}

/* What earlier workers did was another mediator's to count. */
static void begin_measuring(struct window_session *ws)
{
    ws->measured = true;
    exec_session_progress(ws->worker, &ws->taken, &ws->used_us);
    timing_begin(ws);
}

void window_session_measure(struct window_session *ws)
{
    uint32_t taken;
    uint64_t used_us;

    if (!ws->worker)
        return;
    exec_session_progress(ws->worker, &taken, &used_us);
    if (ws->refusing)
        vm_count_refused(ws->session.vm, (uint32_t)(taken - ws->taken));
    else
        vm_count(ws->session.vm, METRICS_OPERATIONS, (uint32_t)(taken - ws->taken));
    placement_charge(&ws->session, used_us > ws->used_us ? used_us - ws->used_us : 0,
                     ws->refusing ? 0 : (uint32_t)(taken - ws->taken));
    ws->taken = taken;
    ws->used_us = used_us;
    timing_measure(ws);
}

/* What is to blame when a worker is ended. */
enum blame { BLAME_NONE, BLAME_RUNNING, BLAME_BLOCKING };

/* How long `number` has been seen; 0: it is news, or nothing. */
static uint64_t seen_ns(uint64_t number, uint64_t *last, uint64_t *since_ns, uint64_t now_ns)
{
    if (number == 0 || number != *last)
        *since_ns = now_ns;
    *last = number;
    return now_ns - *since_ns;
}

/* The operation that took too long.  What runs beside one that holds up the worker may have ended
 * unseen: it is judged by what was known when that one began, so many of those, one behind the
 * other, hide nothing. */
static enum blame look_at_operations(struct window_session *ws, uint64_t now_ns, uint64_t limit_ns)
{
    uint64_t began_ns, running = exec_session_running(ws->worker);
    uint64_t blocking = exec_session_blocking(ws->worker, &began_ns);
    uint64_t blocking_ns = seen_ns(blocking, &ws->blocking, &ws->blocking_ns, now_ns);
    uint64_t running_ns = seen_ns(running, &ws->running, &ws->running_ns, now_ns);

    if (blocking && blocking_ns >= limit_ns)
        return BLAME_BLOCKING;
    if (blocking && began_ns < now_ns)
        running_ns = began_ns > ws->running_ns ? began_ns - ws->running_ns : 0;
    return running && running_ns >= limit_ns ? BLAME_RUNNING : BLAME_NONE;
}

/* Why the grant's holder has overstayed; NULL when it has not.  *ret_blame: the operation, also
 * one that was first seen after the grant's begin. */
static const char *overstays(struct window_session *ws, uint64_t now_ns, enum blame *ret_blame)
{
    uint64_t limit_ns = limit_ms_of(ws) * NS_PER_MS;

    *ret_blame = look_at_operations(ws, now_ns, limit_ns);
    if (*ret_blame != BLAME_NONE)
        return "an operation ran longer than operation_limit_ms";
    *ret_blame = ws->blocking ? BLAME_BLOCKING : ws->running ? BLAME_RUNNING : BLAME_NONE;
    if (ws->grant_us != SCHED_GRANT_LONG_US &&
        now_ns - ws->granted_ns >= ws->grant_us * NS_PER_US + limit_ns)
        return "it kept its grant beyond its time and operation_limit_ms";
    /* What it says of its operations may be a lie: a revoked grant ends in any case. */
    if (ws->revoked && now_ns - ws->revoked_ns >= limit_ns + REVOKE_PATIENCE_MS * NS_PER_MS)
        return "it kept its revoked grant beyond operation_limit_ms";
    if (ws->revoked && *ret_blame == BLAME_NONE &&
        now_ns - ws->revoked_ns >= REVOKE_PATIENCE_MS * NS_PER_MS &&
        !exec_session_is_starved(ws->worker))
        return "it did not give its grant back and runs nothing";
    return NULL;
}

/* --- the worker's life ---------------------------------------------------------------------- */

static void tell_owner(struct window_session *ws, uint32_t state)
{
    if (ws->window)
        window_link_state(ws->window->link, ws->slot, state, 0, NULL);
}

/* It holds no grant of an earlier mediator any more; a context of then it may hold. */
static void settle_adopted(struct window_session *ws)
{
    ws->adopting = false;
    contexts_settle(&ws->session);
    adoption_settled(ws->session.vm->mediator);
}

static void on_ready(struct exec_session *worker, const struct exec_session_identity *identity,
                     void *context)
{
    struct window_session *ws = context;

    if (ws->state == WINDOW_SESSION_ENDING)
        return;
    if (identity->vm_id != ws->session.vm->vm_id || identity->slot != ws->slot ||
        identity->window_inode != ws->identity.window_inode) {
        log_error("vm%u: slot %u: its worker says that it is of vm%u, slot %u: ending it",
                  ws->session.vm->vm_id, ws->slot, identity->vm_id, identity->slot);
        exec_session_kill(worker);
        return;
    }
    ws->identity = *identity;
    ws->state = WINDOW_SESSION_OPEN;
    if (ws->adopting && identity->granted) {
        exec_session_revoke(worker); /* returned() settles it */
        return;
    }
    uv_timer_stop(&ws->timer);
    if (ws->adopting)
        settle_adopted(ws);
    tell_owner(ws, ws->successor ? VGPU_SESSION_LOST : VGPU_SESSION_READY);
    ws->successor = false;
    if (!ws->session.vm->refusal[0])
        window_session_check_device(ws); /* the device came back while it started */
}

static void on_work(struct exec_session *worker, uint32_t depth, void *context)
{
    struct window_session *ws = context;

    (void)worker;
    if (ws->state != WINDOW_SESSION_OPEN || ws->session.state != SESSION_IDLE)
        return;
    wait_for_turn(ws, depth);
}

static void on_returned(struct exec_session *worker, uint64_t used_us, uint64_t operations,
                        uint32_t depth_left, void *context)
{
    struct window_session *ws = context;

    uv_timer_stop(&ws->timer);
    window_session_measure(ws);
    if (ws->refusing) {
        ws->refusing = false;
        if (depth_left > 0 && ws->state == WINDOW_SESSION_OPEN)
            wait_for_turn(ws, depth_left);
        return;
    }
    if (ws->adopting) {
        settle_adopted(ws);
        if (depth_left > 0 && ws->state == WINDOW_SESSION_OPEN)
            wait_for_turn(ws, depth_left);
        return;
    }
    if (ws->session.state != SESSION_RUNNING)
        return;
    log_grant(ws, "RETURNED", "Returned", operations);
    if (ws->state != WINDOW_SESSION_OPEN)
        depth_left = 0;
    if (depth_left > 0)
        ws->sequence = ++ws->session.vm->window_sequence;
    session_time_first(&ws->session, exec_session_first_ns(worker));
    session_returned(&ws->session, used_us, depth_left);
    if (depth_left > 0 && !ws->refusing)
        log_grant(ws, "QUEUE", "Added", depth_left);
}

static void on_rested(struct exec_session *worker, void *context)
{
    struct window_session *ws = context;

    (void)worker;
    if (ws->session.state != SESSION_RUNNING) /* else it crossed the grant, whose return tells */
        contexts_settle(&ws->session);
}

static void on_faulted(struct exec_session *worker, const char *reason, void *context)
{
    struct window_session *ws = context;
    const struct log_field fields[] = {LOG_NUMBER("vm", ws->session.vm->vm_id),
                                       LOG_NUMBER("slot", ws->slot), LOG_TEXT("reason", reason)};

    if (ws->state == WINDOW_SESSION_ENDING || ws->state == WINDOW_SESSION_FAULTED)
        return;
    if (vm_may_tell(ws->session.vm))
        log_event("FAULT", fields, VGPU_ARRAY_LENGTH(fields),
                  "vm%u: slot %u: %s: the session is ended", ws->session.vm->vm_id, ws->slot,
                  reason);
    ws->state = WINDOW_SESSION_FAULTED;
    tell_owner(ws, VGPU_SESSION_FAULTED);
    exec_session_kill(worker);
    quarantine_fault(ws->session.vm, METRICS_FAULT_RINGS);
}

/* Its owner has let go of the other end: nobody comes back for it. */
static bool owner_is_gone(const struct window_session *ws)
{
    struct pollfd lifeline = {.fd = ws->lifeline_fd};

    return ws->lifeline_fd >= 0 && poll(&lifeline, 1, 0) == 1 &&
           (lifeline.revents & (POLLHUP | POLLERR | POLLNVAL));
}

/* Without worker and link: an owner that lives may connect again, for a while. */
static void wait_for_owner(struct window_session *ws)
{
    ws->orphan_ns = clock_monotonic_ns();
    uv_timer_start(&ws->timer, on_timer, ORPHAN_LOOK_MS, ORPHAN_LOOK_MS);
}

static void look_for_owner(struct window_session *ws)
{
    if (owner_is_gone(ws) || clock_monotonic_ns() - ws->orphan_ns >= DEAD_ORPHAN_MS * NS_PER_MS)
        window_session_free(ws);
}

static int start_worker(struct window_session *ws, struct vgpu_error *error);

static void restart(struct window_session *ws)
{
    struct vgpu_error error;
    uint64_t wait_ms = RESTART_MIN_MS;

    if (!ws->window) {
        wait_for_owner(ws);
        return;
    }
    if (ws->deaths <= 1 && start_worker(ws, &error) == 0)
        return;
    for (unsigned i = 1; i < ws->deaths && wait_ms < RESTART_MAX_MS; i++)
        wait_ms *= 2;
    uv_timer_start(&ws->timer, on_timer, wait_ms, 0);
}

/* What the VM has done to its worker; METRICS_FAULTS: nothing. */
static enum metrics_fault fault_of(const struct window_session *ws,
                                   const struct exec_session *worker)
{
    if (ws->over_limit)
        return METRICS_FAULT_TIME_LIMIT;
    if (exec_session_kernel_faulted(worker))
        return METRICS_FAULT_KERNEL;
    return ws->blameless || exec_session_device_lost(worker) ? METRICS_FAULTS
                                                             : METRICS_FAULT_WORKER;
}

static void on_died(struct window_session *ws, const char *reason, enum metrics_fault fault)
{
    const struct log_field fields[] = {LOG_NUMBER("vm", ws->session.vm->vm_id),
                                       LOG_NUMBER("slot", ws->slot), LOG_TEXT("reason", reason)};

    if (vm_may_tell(ws->session.vm))
        log_event("LOST", fields, VGPU_ARRAY_LENGTH(fields),
                  "vm%u: slot %u: its worker %s; what it left is answered with DEVICE_LOST",
                  ws->session.vm->vm_id, ws->slot, reason);
    if (clock_monotonic_ns() - ws->started_ns >= HEALTHY_NS)
        ws->deaths = 0;
    ws->deaths++;
    vm_count(ws->session.vm, METRICS_WORKER_RESTARTS, 1);
    ws->successor = true;
    ws->state = WINDOW_SESSION_STARTING;
    restart(ws);
    if (fault != METRICS_FAULTS)
        quarantine_fault(ws->session.vm, fault);
}

/* A grant that ended with its worker: what was used is not known, so a bounded one is
 * charged with the time that it was out; a guest that ends its sessions early gains
 * nothing by it. */
static void settle_grant(struct window_session *ws)
{
    uint64_t used_us = (clock_monotonic_ns() - ws->granted_ns) / NS_PER_US;

    if (ws->session.state != SESSION_RUNNING) {
        session_withdraw(&ws->session);
        contexts_settle(&ws->session);
        return;
    }
    log_grant(ws, "RETURNED", "Ended with its worker,", 0);
    ws->session.cut_short = true;
    session_returned(&ws->session, ws->grant_us == SCHED_GRANT_LONG_US ? 0 : used_us, 0);
}

/* Device time that its worker used and could not count any more: whoever ends its workers in
 * the middle of its operations has no more of it than others. */
static uint64_t uncounted_us(const struct window_session *ws, const struct exec_session *worker)
{
    uint64_t held_us = (clock_monotonic_ns() - ws->granted_ns) / NS_PER_US;
    uint64_t uncounted_us = exec_session_uncounted_us(worker);

    if (ws->session.state != SESSION_RUNNING)
        return 0;
    return uncounted_us < held_us ? uncounted_us : held_us;
}

static void on_ended(struct exec_session *worker, const char *reason, bool owner_gone,
                     void *context)
{
    struct window_session *ws = context;
    /* One that is adopted may have died before it said a word, in an operation. */
    bool was_starting = ws->state == WINDOW_SESSION_STARTING && !ws->successor && !ws->adopting;
    enum metrics_fault fault = fault_of(ws, worker);

    window_session_measure(ws);
    account_charge(ws->session.vm, uncounted_us(ws, worker));
    if (exec_session_device_lost(worker))
        devices_suspect(ws->session.vm->mediator, ws->devices);
    ws->refusing = ws->killed = ws->over_limit = ws->blameless = false;
    ws->worker = NULL;
    account_worker_ended(ws);
    uv_timer_stop(&ws->timer);
    if (ws->adopting) {
        ws->adopting = false;
        adoption_settled(ws->session.vm->mediator);
    }
    settle_grant(ws);
    if (ws->state == WINDOW_SESSION_FAULTED && ws->window)
        return; /* its owner closes it */
    if (ws->state == WINDOW_SESSION_ENDING || ws->state == WINDOW_SESSION_FAULTED || owner_gone) {
        window_session_free(ws);
    } else if (was_starting) {
        log_error("vm%u: slot %u: worker %s before it was ready", ws->session.vm->vm_id, ws->slot,
                  reason);
        if (ws->window)
            window_link_state(ws->window->link, ws->slot, VGPU_SESSION_REFUSED, EIO,
                              "its worker could not start; the mediator's log says why");
        if (ws->window)
            ws->window->slots[ws->slot] = NULL;
        ws->window = NULL;
        window_session_free(ws);
    } else {
        on_died(ws, reason, fault);
    }
}

static const struct exec_session_events *events_of(struct window_session *ws,
                                                   struct exec_session_events *events)
{
    *events = (struct exec_session_events){.ready = on_ready,
                                           .work = on_work,
                                           .returned = on_returned,
                                           .rested = on_rested,
                                           .faulted = on_faulted,
                                           .ended = on_ended,
                                           .context = ws};
    return events;
}

/* Those that it has, while they are to be had. */
static void find_devices(struct window_session *ws)
{
    if (!placement_takes(&ws->session))
        placement_choose(&ws->session);
    placement_devices_of(&ws->session, ws->devices);
}

/* Its share stands in the VM's account already. */
static int start_counted(struct window_session *ws, struct vgpu_error *error)
{
    struct mediator *mediator = ws->session.vm->mediator;
    const struct config *config = mediator->config;
    const struct window_link_info *info = &ws->window->info;
    struct exec_session_events events;
    char cgroup[PATH_MAX], trace[PATH_MAX + 64];
    struct exec_session_config worker = {
        .program = config->worker,
        .devices = ws->devices,
        .cuda_library = config->cuda_library[0] ? config->cuda_library : NULL,
        .vm_id = ws->session.vm->vm_id,
        .slot = ws->slot,
        .slot_offset = vgpu_window_slot_offset(info->slot_bytes, ws->slot),
        .slot_bytes = info->slot_bytes,
        .memory_path = ws->memory_path,
        .socket_path = ws->socket_path,
        .window_fd = info->window_fd,
        .doorbell_fd = info->doorbell_fds[ws->slot],
        .interrupt_fd = info->interrupt_fd,
        .lifeline_fd = info->lifeline_fd,
        .successor = ws->successor,
        .uid = mediator->worker_uid,
        .gid = mediator->worker_gid,
        .account = ws->session.vm->account,
        .share = ws->share,
        .operation_limit_ms = limit_ms_of(ws),
        .spin_us = config->spin_us,
        .idle_ms = config->worker_idle_ms,
        .execution_log = config->execution_log[0] ? config->execution_log : NULL,
    };

    find_devices(ws);
    worker.backend = exec_backend_of(ws->devices);
    cgroup_of_vm(mediator, worker.vm_id, cgroup);
    worker.cgroup = cgroup[0] ? cgroup : NULL;
    worker.trace = decisions_open_session(ws, trace);
    ws->state = WINDOW_SESSION_STARTING;
    ws->started_ns = clock_monotonic_ns();
    if (exec_session_start(&mediator->loop, &worker, events_of(ws, &events), &ws->worker, error) <
        0)
        return -1;
    if (!ws->measured)
        begin_measuring(ws);
    uv_timer_start(&ws->timer, on_timer, START_LIMIT_MS, 0);
    return 0;
}

static int start_worker(struct window_session *ws, struct vgpu_error *error)
{
    return account_join(ws, error) < 0 ? -1 : start_counted(ws, error);
}

/* ended() follows, however long that takes. */
static void kill_worker(struct window_session *ws, enum blame blame)
{
    ws->killed = true;
    ws->over_limit = blame != BLAME_NONE;
    if (ws->over_limit)
        exec_session_kill_over_limit(ws->worker, blame == BLAME_BLOCKING);
    else
        exec_session_kill(ws->worker);
}

static void on_timer(uv_timer_t *timer)
{
    struct window_session *ws = timer->data;
    struct vgpu_error error;
    const char *reason;
    enum blame blame = BLAME_NONE;

    if (ws->worker && ws->killed)
        return; /* said once; a process that a driver holds can take long to die */
    if (ws->worker && ws->adopting) {
        log_warning("vm%u: slot %u: the worker of an earlier mediator keeps its grant beyond its "
                    "time: ending it",
                    ws->session.vm->vm_id, ws->slot);
        kill_worker(ws, BLAME_NONE);
    } else if (ws->worker && ws->state == WINDOW_SESSION_STARTING) {
        log_warning("vm%u: slot %u: its worker is not ready after %u s: ending it",
                    ws->session.vm->vm_id, ws->slot, START_LIMIT_MS / 1000);
        kill_worker(ws, BLAME_NONE);
    } else if (ws->worker) {
        reason = ws->session.state == SESSION_RUNNING || ws->refusing
                     ? overstays(ws, clock_monotonic_ns(), &blame)
                     : NULL;
        /* Where this process did not run for a while, what the worker has said meanwhile is
         * still unread: it is heard before it is judged. */
        if (!reason || !ws->doubted) {
            if (ws->doubted != (reason != NULL))
                look_every(ws, reason ? LOOK_MIN_MS : REVOKE_LOOK_MS);
            ws->doubted = reason != NULL;
            return;
        }
        log_warning("vm%u: slot %u: %s: ending its worker", ws->session.vm->vm_id, ws->slot,
                    reason);
        kill_worker(ws, blame);
    } else if (!ws->window) {
        look_for_owner(ws);
    } else if (start_worker(ws, &error) < 0) {
        log_error("vm%u: slot %u: %s", ws->session.vm->vm_id, ws->slot, error.message);
        ws->deaths++;
        restart(ws);
    }
}

/* --- life ---------------------------------------------------------------------------------------
 */

static int find_paths(const struct config *config, uint32_t vm_id, uint64_t inode, uint32_t slot,
                      char memory_path[PATH_MAX], char socket_path[PATH_MAX],
                      struct vgpu_error *error)
{
    char base[PATH_MAX];
    int bytes = snprintf(base, sizeof(base), "%s/sessions/vm%u-%llx-%u", config->run_dir, vm_id,
                         (unsigned long long)inode, slot);

    if (bytes < 0 || (size_t)bytes >= PATH_MAX - sizeof(".session"))
        return error_set(error, ENAMETOOLONG, "run_dir = %s is too long", config->run_dir);
    snprintf(memory_path, PATH_MAX, "%.*s.session", PATH_MAX - 16, base);
    snprintf(socket_path, PATH_MAX, "%.*s.sock", PATH_MAX - 16, base);
    return 0;
}

static struct window_session *window_session_new(struct vm *vm, uint32_t slot, uint64_t inode,
                                                 struct vgpu_error *error)
{
    struct window_session *ws = calloc(1, sizeof(*ws));

    if (!ws) {
        error_set(error, ENOMEM, "no memory for a session of VM %u", vm->vm_id);
        return NULL;
    }
    if (find_paths(vm->mediator->config, vm->vm_id, inode, slot, ws->memory_path, ws->socket_path,
                   error) < 0) {
        free(ws);
        return NULL;
    }
    session_init(&ws->session, vm, &window_session_ops);
    ws->lifeline_fd = -1;
    ws->slot = slot;
    ws->identity.window_inode = inode;
    uv_timer_init(&vm->mediator->loop, &ws->timer);
    ws->timer.data = ws;
    TAILQ_INSERT_TAIL(&vm->windows, ws, in_vm);
    vm->window_count++;
    return ws;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct window_session *ws = handle->data;

    timing_free(&ws->timing);
    free(ws);
}

void window_session_free(struct window_session *ws)
{
    struct vm *vm = ws->session.vm;
    struct window *window = ws->window, *opener = ws->opener;
    uint32_t slot = ws->slot;

    session_withdraw(&ws->session);
    placement_leave(&ws->session);
    TAILQ_REMOVE(&vm->windows, ws, in_vm);
    vm->window_count--;
    account_leave(ws);
    fd_close(&ws->lifeline_fd);
    unlink(ws->memory_path);
    unlink(ws->socket_path);
    decisions_end_session(ws);
    uv_close((uv_handle_t *)&ws->timer, on_timer_closed);
    if (window)
        window_session_gone(window, slot);
    if (opener)
        window_open(opener, slot);
}

static int open_slot(struct window *window, uint32_t slot, bool successor, struct vgpu_error *error)
{
    struct window_session *ws =
        window_session_new(window->vm, slot, window->info.window_inode, error);

    if (!ws)
        return -1;
    ws->window = window;
    ws->successor = successor;
    ws->identity.window_device = window->info.window_device;
    if (start_worker(ws, error) < 0 && successor && error->code == EBUSY) {
        /* A dying worker lets go of its files last of all. */
        uv_timer_start(&ws->timer, on_timer, RESTART_MIN_MS, 0);
    } else if (!ws->worker) {
        ws->window = NULL; /* the caller tells the owner */
        window_session_free(ws);
        return -1;
    }
    window->slots[slot] = ws;
    return 0;
}

int window_session_open(struct window *window, uint32_t slot, struct vgpu_error *error)
{
    return open_slot(window, slot, false, error);
}

int window_session_reopen(struct window *window, uint32_t slot, struct vgpu_error *error)
{
    char memory_path[PATH_MAX], socket_path[PATH_MAX];

    if (find_paths(window->vm->mediator->config, window->vm->vm_id, window->info.window_inode, slot,
                   memory_path, socket_path, error) < 0)
        return -1;
    if (access(memory_path, F_OK) < 0)
        return error_set_errno(error, "its session memory '%s' is gone", memory_path);
    return open_slot(window, slot, true, error);
}

void window_session_attach(struct window_session *ws, struct window *window)
{
    fd_close(&ws->lifeline_fd);
    ws->window = window;
    window->slots[ws->slot] = ws;
    if (ws->state == WINDOW_SESSION_FAULTED)
        tell_owner(ws, VGPU_SESSION_FAULTED);
    else if (ws->state == WINDOW_SESSION_OPEN)
        tell_owner(ws, VGPU_SESSION_READY);
    else if (ws->state == WINDOW_SESSION_STARTING && !ws->worker)
        restart(ws);
}

void window_session_orphan(struct window_session *ws)
{
    ws->lifeline_fd = fcntl(ws->window->lifeline_fd, F_DUPFD_CLOEXEC, 0);
    ws->window = NULL;
    if (!ws->worker && ws->state == WINDOW_SESSION_FAULTED)
        window_session_free(ws);
    else if (!ws->worker)
        wait_for_owner(ws);
}

void window_session_end(struct window_session *ws)
{
    if (ws->state == WINDOW_SESSION_ENDING)
        return;
    ws->state = WINDOW_SESSION_ENDING;
    if (ws->worker)
        exec_session_kill(ws->worker);
    else
        window_session_free(ws);
}

struct window_session *window_session_find(struct vm *vm, const struct window_link_info *info,
                                           uint32_t slot)
{
    struct window_session *ws;

    TAILQ_FOREACH (ws, &vm->windows, in_vm) {
        if (ws->slot == slot && ws->identity.window_inode == info->window_inode)
            return ws;
    }
    return NULL;
}

int window_session_adopt(struct vm *vm, uint32_t slot, uint64_t inode, struct vgpu_error *error)
{
    struct window_session *ws = window_session_new(vm, slot, inode, error);
    struct exec_session_events events;

    if (!ws)
        return -1;
    ws->adopting = true;
    ws->started_ns = clock_monotonic_ns();
    if (exec_session_adopt(&vm->mediator->loop, ws->memory_path, ws->socket_path,
                           events_of(ws, &events), &ws->worker, error) < 0 ||
        account_adopt(ws, error) < 0) {
        if (ws->worker)
            exec_session_detach(ws->worker); /* the caller ends it */
        /* The files stay: the owner may come and want to know what was answered. */
        TAILQ_REMOVE(&vm->windows, ws, in_vm);
        vm->window_count--;
        account_leave(ws);
        uv_close((uv_handle_t *)&ws->timer, on_timer_closed);
        return -1;
    }
    vm->mediator->adopting++;
    text_copy(ws->devices, sizeof(ws->devices), exec_session_devices(ws->worker));
    placement_adopt(&ws->session, ws->devices);
    begin_measuring(ws);
    uv_timer_start(&ws->timer, on_timer, limit_ms_of(ws) + REVOKE_PATIENCE_MS, 0);
    return 0;
}

void window_session_detach(struct window_session *ws)
{
    if (ws->worker)
        exec_session_detach(ws->worker);
    ws->worker = NULL;
    fd_close(&ws->lifeline_fd);
    TAILQ_REMOVE(&ws->session.vm->windows, ws, in_vm);
    uv_close((uv_handle_t *)&ws->timer, on_timer_closed);
}

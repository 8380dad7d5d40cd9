/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VM at work.
 *
 *              session_queue()           grant
 *      IDLE ──────────────────▶ WAITING ───────▶ RUNNING
 *       ▲                          │                │  result, the worker's
 *       └──────────────────────────┴────────────────┘  death, or its time limit
 *                     session_answer()
 *
 * The worker is made when the first request runs and kept for the next ones
 * until it was idle for worker_idle_ms.  A worker that dies costs its VM one
 * error answer; the next request gets a new one.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A worker whose mediator died ends by itself as soon as it notices. */
#define SPAWN_PATIENCE_NS (5 * NS_PER_S)
#define SPAWN_AGAIN_MS 10

/* Workers that end before they begin their first request: more would not help. */
#define SPAWN_TRIES 3

static void on_timer(uv_timer_t *timer);
static void try_to_run(struct session *session);

struct session *session_new(struct mediator *mediator, uint32_t vm_id, char pool, unsigned priority,
                            bool registered, struct vgpu_error *error)
{
    struct session *session = calloc(1, sizeof(*session));

    if (!session) {
        error_set(error, ENOMEM, "no memory for VM %u", vm_id);
        return NULL;
    }
    session->mediator = mediator;
    session->vm_id = vm_id;
    session->registered = registered;
    session->place = sched_add_vm(mediator->sched, vm_id, pool, priority, session, error);
    if (!session->place) {
        free(session);
        return NULL;
    }
    uv_timer_init(&mediator->loop, &session->timer);
    session->timer.data = session;
    return session;
}

void session_record_path(const struct session *session, char *path, size_t bytes)
{
    snprintf(path, bytes, "%s/vm%u.session", session->mediator->config->state_dir, session->vm_id);
}

void session_queue(struct session *session, const struct channel_request *request)
{
    struct sched *sched = session->mediator->sched;
    char pool = sched_vm_pool(session->place);
    unsigned priority = sched_vm_priority(session->place);
    char pool_text[2] = {pool, '\0'};

    session->request = *request;
    session->state = SESSION_WAITING;
    sched_ready(sched, session->place, 1, clock_monotonic_ns());

    unsigned count = sched_waiting(sched, pool);
    const struct log_field fields[] = {
        LOG_TEXT("pool", pool_text),      LOG_NUMBER("priority", priority),
        LOG_NUMBER("vm", session->vm_id), LOG_TEXT("command", request->command),
        LOG_NUMBER("count", count),       LOG_NUMBER("sequence", request->sequence)};

    log_event("QUEUE", fields, VGPU_ARRAY_LENGTH(fields),
              "Pool %c: Added priority=%u, vm=%u, count=%u", pool, priority, session->vm_id, count);
}

/* --- running -------------------------------------------------------------------- */

static void answer_error(struct session *session, const char *format, ...) VGPU_PRINTF(2, 3);

static void answer_error(struct session *session, const char *format, ...)
{
    struct protocol_response response = {.success = false};
    va_list args;

    va_start(args, format);
    vsnprintf(response.message, sizeof(response.message), format, args);
    va_end(args);
    session_answer(session, &response, 0);
}

void session_answer_limit(struct session *session)
{
    answer_error(session,
                 "operation ran longer than its limit of %u ms and was ended; the next request "
                 "works",
                 session->mediator->config->operation_limit_ms);
}

static void on_completed(struct exec_worker *worker, uint64_t sequence,
                         const struct protocol_response *response, uint64_t device_us,
                         void *context)
{
    struct session *session = context;

    if (worker != session->worker || session->state != SESSION_RUNNING ||
        session->request.sequence != sequence) {
        log_error("vm%u: worker answered request %llu, which does not run", session->vm_id,
                  (unsigned long long)sequence);
        return;
    }
    session_answer(session, response, device_us);
}

/* The record tells how far the worker came.  What it did not begin can run on
 * another one; what it had done is the answer; the rest is not run twice. */
static void settle_dead_worker(struct session *session, const char *reason)
{
    char path[PATH_MAX + 32];
    struct exec_record record;
    struct vgpu_error ignored;
    bool known, began;

    session_record_path(session, path, sizeof(path));
    known = exec_record_read(path, &record, &ignored) == 0;
    began = !known ||
            (record.state != EXEC_RECORD_NONE && record.sequence == session->request.sequence);
    if (!began)
        try_to_run(session);
    else if (known && began && record.state == EXEC_RECORD_DONE)
        session_answer(session, &record.response, record.device_us);
    else
        answer_error(session,
                     "worker %s while it ran this request; it was not run again, the "
                     "next request works",
                     reason);
}

static void on_ended(struct exec_worker *worker, uint64_t sequence, const char *reason,
                     void *context)
{
    struct session *session = context;
    bool limit_exceeded = session->limit_exceeded;

    if (worker != session->worker) {
        log_debug("vm%u: worker %d %s", session->vm_id, (int)exec_worker_pid(worker), reason);
        return; /* let go of before */
    }
    session->worker = NULL;
    session->limit_exceeded = false;
    if (session->state != SESSION_RUNNING || sequence == 0) {
        log_debug("vm%u: worker %d %s", session->vm_id, (int)exec_worker_pid(worker), reason);
        return;
    }
    uv_timer_stop(&session->timer);
    log_warning("vm%u: worker %d %s while it had request %llu", session->vm_id,
                (int)exec_worker_pid(worker), reason, (unsigned long long)sequence);
    if (limit_exceeded)
        session_answer_limit(session);
    else
        settle_dead_worker(session, reason);
}

static int start_worker(struct session *session, struct vgpu_error *error)
{
    const struct config *config = session->mediator->config;
    const struct exec_worker_events events = {on_completed, on_ended, session};
    char record_path[PATH_MAX + 32];
    const struct exec_worker_config worker = {
        .program = config->worker,
        .backend = "cpu",
        .vm_id = session->vm_id,
        .record_path = record_path,
        .execution_log = config->execution_log[0] ? config->execution_log : NULL,
    };

    if (session->tries_left == 0)
        return error_set(error, ECHILD, "%d ended before they could be used", SPAWN_TRIES);
    session_record_path(session, record_path, sizeof(record_path));
    if (exec_worker_start(&session->mediator->loop, &worker, &events, &session->worker, error) < 0)
        return -1;
    session->tries_left--;
    return 0;
}

static void log_process(const struct session *session)
{
    char pool = sched_vm_pool(session->place);
    unsigned priority = sched_vm_priority(session->place);
    const char pool_text[2] = {pool, '\0'};
    const struct log_field fields[] = {
        LOG_TEXT("pool", pool_text),
        LOG_NUMBER("priority", priority),
        LOG_NUMBER("vm", session->vm_id),
        LOG_TEXT("command", session->request.command),
        LOG_NUMBER("sequence", session->request.sequence),
        LOG_NUMBER("worker_pid", (uint64_t)exec_worker_pid(session->worker))};

    log_event("PROCESS", fields, VGPU_ARRAY_LENGTH(fields),
              "Pool %c: vm=%u, priority=%u, command=%s", pool, session->vm_id, priority,
              session->request.command);
}

/* Returns -1 when the worker turns out to be gone or going. */
static int run_on_worker(struct session *session)
{
    struct vgpu_error error;

    fault_point("dispatch");
    if (exec_worker_run(session->worker, session->request.sequence, session->request.command,
                        &error) < 0) {
        log_debug("vm%u: %s; starting another worker", session->vm_id, error.message);
        session->worker = NULL; /* ended() follows */
        return -1;
    }
    log_process(session);
    uv_timer_start(&session->timer, on_timer, session->mediator->config->operation_limit_ms, 0);
    return 0;
}

/* Tries until an earlier worker of this VM has let go of the record. */
static void try_to_run(struct session *session)
{
    struct vgpu_error error = {EBUSY, "the last one is ending"};

    if ((session->worker || start_worker(session, &error) == 0) && run_on_worker(session) == 0)
        return;
    if (error.code == EBUSY && clock_monotonic_ns() < session->spawn_until_ns) {
        uv_timer_start(&session->timer, on_timer, SPAWN_AGAIN_MS, 0);
        return;
    }
    /* The reason is the host's business: paths and process ids stay in the log. */
    log_error("vm%u: no worker could be started: %s", session->vm_id, error.message);
    answer_error(session, "no worker could be started for this VM; the mediator's log says why");
}

void session_run(struct session *session)
{
    session->state = SESSION_RUNNING;
    session->mediator->running++;
    session->limit_exceeded = false;
    session->spawn_until_ns = clock_monotonic_ns() + SPAWN_PATIENCE_NS;
    session->tries_left = SPAWN_TRIES;
    try_to_run(session);
}

static void on_timer(uv_timer_t *timer)
{
    struct session *session = timer->data;

    if (session->state != SESSION_RUNNING) {
        if (session->worker)
            exec_worker_stop(session->worker); /* idle for long enough */
        session->worker = NULL;
    } else if (!session->worker) {
        try_to_run(session);
    } else {
        session->limit_exceeded = true;
        exec_worker_kill(session->worker);
    }
}

/* --- answering --------------------------------------------------------------------- */

void session_answer(struct session *session, const struct protocol_response *response,
                    uint64_t device_us)
{
    struct mediator *mediator = session->mediator;
    uint64_t now_ns = clock_monotonic_ns();

    uv_timer_stop(&session->timer);
    if (session->state == SESSION_RUNNING) {
        mediator->running--;
        sched_returned(mediator->sched, session->place, device_us, 0, now_ns);
    } else {
        sched_ready(mediator->sched, session->place, 0, now_ns);
    }
    session->state = SESSION_IDLE;
    fault_point("result");
    channel_answer(mediator->channel, session->vm_id, session->request.sequence, response);
    if (session->worker)
        uv_timer_start(&session->timer, on_timer, mediator->config->worker_idle_ms, 0);
    mediator_session_idle(mediator);
}

void session_close(struct session *session)
{
    if (session->worker)
        exec_worker_detach(session->worker);
    session->worker = NULL;
    uv_close((uv_handle_t *)&session->timer, NULL);
}

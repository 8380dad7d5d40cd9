/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file channel's session of a VM: one request at a time.
 *
 *           file_session_queue()           grant
 *      IDLE ──────────────────▶ WAITING ───────▶ RUNNING
 *       ▲                          │                │  result, the worker's
 *       └──────────────────────────┴────────────────┘  death, or its time limit
 *                   file_session_answer()
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
static void try_to_run(struct file_session *file);

static struct vm *vm_of(const struct file_session *file)
{
    return file->session.vm;
}

static const struct config *config_of(const struct file_session *file)
{
    return vm_of(file)->mediator->config;
}

static void run(struct session *session, const struct sched_grant *grant)
{
    struct file_session *file = (struct file_session *)session; /* its first member */

    (void)grant; /* one operation fits every grant */
    file->limit_exceeded = false;
    file->spawn_until_ns = clock_monotonic_ns() + SPAWN_PATIENCE_NS;
    file->tries_left = SPAWN_TRIES;
    try_to_run(file);
}

/* The grant comes back with the answer. */
static void take_back(struct session *session)
{
    (void)session;
}

static void describe(const struct session *session, char *text, size_t bytes)
{
    text_copy(text, bytes, ((const struct file_session *)session)->request.command);
}

static void answer_error(struct file_session *file, const char *format, ...) VGPU_PRINTF(2, 3);

static void refuse_with(struct file_session *file, const char *why)
{
    struct vm *vm = vm_of(file);
    const struct log_field fields[] = {LOG_NUMBER("vm", vm->vm_id),
                                       LOG_NUMBER("sequence", file->request.sequence),
                                       LOG_TEXT("answer", why)};

    if (vm_may_tell(vm))
        log_event("REFUSED", fields, VGPU_ARRAY_LENGTH(fields), "vm%u: request %llu: %s", vm->vm_id,
                  (unsigned long long)file->request.sequence, why);
    answer_error(file, "%s", why);
}

static void refuse(struct session *session)
{
    struct file_session *file = (struct file_session *)session;

    vm_count_refused(vm_of(file), 1);
    refuse_with(file, vm_of(file)->refusal);
}

static bool needs_context(const struct session *session)
{
    char device[CONFIG_POOL_DEVICE_BYTES];

    placement_devices_of(session, device);
    return strcmp(exec_backend_of(device), "cuda") == 0;
}

/* One that is ending has what it had. */
static uint32_t contexts(const struct session *session)
{
    const struct file_session *file = (const struct file_session *)session;

    if (file->worker)
        return exec_worker_contexts(file->worker);
    return contexts_are_held(session) ? file->workers : 0;
}

static void end_idle_worker(struct file_session *file);

static void rest(struct session *session)
{
    struct file_session *file = (struct file_session *)session;

    if (session->state == SESSION_IDLE && contexts(session) > 0)
        end_idle_worker(file);
}

/* Between two requests it holds nothing but a context. */
static bool may_move(const struct session *session)
{
    return !needs_context(session);
}

static bool is_at_work(struct session *session)
{
    return session->state == SESSION_RUNNING;
}

static const struct session_ops file_session_ops = {.run = run,
                                                    .revoke = take_back,
                                                    .refuse = refuse,
                                                    .needs_context = needs_context,
                                                    .contexts = contexts,
                                                    .rest = rest,
                                                    .may_move = may_move,
                                                    .is_at_work = is_at_work,
                                                    .describe = describe};

struct file_session *file_session_new(struct vm *vm, struct vgpu_error *error)
{
    struct file_session *file = calloc(1, sizeof(*file));

    if (!file) {
        error_set(error, ENOMEM, "no memory for VM %u", vm->vm_id);
        return NULL;
    }
    session_init(&file->session, vm, &file_session_ops);
    uv_timer_init(&vm->mediator->loop, &file->timer);
    file->timer.data = file;
    return file;
}

void file_session_record_path(const struct file_session *file, char *path, size_t bytes)
{
    const struct vm *vm = vm_of(file);

    if (vm->settings.identity) /* as its journal */
        snprintf(path, bytes, "%s/vm-%llu.session", config_of(file)->state_dir,
                 (unsigned long long)vm->settings.identity);
    else
        snprintf(path, bytes, "%s/vm%u.session", config_of(file)->state_dir, vm->vm_id);
}

void file_session_queue(struct file_session *file, const struct channel_request *request)
{
    struct sched *sched = vm_of(file)->mediator->sched;
    char pool = vm_pool(vm_of(file));
    unsigned priority = vm_priority(vm_of(file));
    char pool_text[2] = {pool, '\0'}, why[CONFIG_REFUSAL_BYTES];

    file->request = *request;
    if (request->recovered && vm_of(file)->refusal[0])
        return; /* it may have run: file_session_resume() knows */
    if (!request->recovered && !vm_of(file)->refusal[0] && !account_admits(vm_of(file), why)) {
        refuse_with(file, why);
        return;
    }
    decisions_arrive(vm_of(file), request->sequence);
    session_wait(&file->session, 1);
    if (file->session.state == SESSION_IDLE)
        return; /* refused */

    unsigned count = sched_waiting(sched, pool);
    const struct log_field fields[] = {
        LOG_TEXT("pool", pool_text),          LOG_NUMBER("priority", priority),
        LOG_NUMBER("vm", vm_of(file)->vm_id), LOG_TEXT("command", request->command),
        LOG_NUMBER("count", count),           LOG_NUMBER("sequence", request->sequence)};

    log_event("QUEUE", fields, VGPU_ARRAY_LENGTH(fields),
              "Pool %c: Added priority=%u, vm=%u, count=%u", pool, priority, vm_of(file)->vm_id,
              count);
}

void file_session_resume(struct file_session *file)
{
    if (file->session.state == SESSION_IDLE)
        session_wait(&file->session, 1);
}

static bool is_on_its_device(const struct file_session *file)
{
    return placement_fits(&file->session, file->device);
}

/* Its next request chooses one anew. */
static void leave_device(struct file_session *file)
{
    if (file->session.state == SESSION_IDLE)
        placement_leave(&file->session);
}

/* --- running -------------------------------------------------------------------- */

static void answer_error(struct file_session *file, const char *format, ...)
{
    struct protocol_response response = {.success = false};
    va_list args;

    va_start(args, format);
    vsnprintf(response.message, sizeof(response.message), format, args);
    va_end(args);
    file_session_answer(file, &response, 0);
}

void file_session_answer_limit(struct file_session *file)
{
    answer_error(file,
                 "operation ran longer than its limit of %u ms and was ended; the next request "
                 "works",
                 vm_operation_limit_ms(vm_of(file)));
}

static void on_completed(struct exec_worker *worker, uint64_t sequence,
                         const struct protocol_response *response, uint64_t device_us,
                         void *context)
{
    struct file_session *file = context;

    if (worker != file->worker || file->session.state != SESSION_RUNNING ||
        file->request.sequence != sequence) {
        log_error("vm%u: worker answered request %llu, which does not run", vm_of(file)->vm_id,
                  (unsigned long long)sequence);
        return;
    }
    file_session_answer(file, response, device_us);
}

/* The record tells how far the worker came.  What it did not begin can run on
 * another one; what it had done is the answer; the rest is not run twice. */
static void settle_dead_worker(struct file_session *file, const char *reason)
{
    char path[PATH_MAX + 32];
    struct exec_record record;
    struct vgpu_error ignored;
    bool known, began;

    file_session_record_path(file, path, sizeof(path));
    known = exec_record_read(path, &record, &ignored) == 0;
    began =
        !known || (record.state != EXEC_RECORD_NONE && record.sequence == file->request.sequence);
    if (!began)
        try_to_run(file);
    else if (known && began && record.state == EXEC_RECORD_DONE)
        file_session_answer(file, &record.response, record.device_us);
    else
        answer_error(file,
                     "worker %s while it ran this request; it was not run again, the "
                     "next request works",
                     reason);
}

static void on_ended(struct exec_worker *worker, uint64_t sequence, const char *reason,
                     void *context)
{
    struct file_session *file = context;
    bool limit_exceeded = file->limit_exceeded;
    enum metrics_fault fault;

    file->workers--;
    if (worker != file->worker) {
        log_debug("vm%u: worker %d %s", vm_of(file)->vm_id, (int)exec_worker_pid(worker), reason);
        if (file->session.state != SESSION_RUNNING)
            contexts_settle(&file->session);
        return; /* let go of before */
    }
    file->worker = NULL;
    file->limit_exceeded = false;
    if (file->session.state != SESSION_RUNNING || sequence == 0) {
        log_debug("vm%u: worker %d %s", vm_of(file)->vm_id, (int)exec_worker_pid(worker), reason);
        contexts_settle(&file->session);
        leave_device(file);
        return;
    }
    uv_timer_stop(&file->timer);
    vm_count(vm_of(file), METRICS_WORKER_RESTARTS, 1);
    fault = limit_exceeded ? METRICS_FAULT_TIME_LIMIT : METRICS_FAULT_WORKER;
    account_charge(vm_of(file), (clock_monotonic_ns() - file->began_ns) / NS_PER_US);
    log_warning("vm%u: worker %d %s while it had request %llu", vm_of(file)->vm_id,
                (int)exec_worker_pid(worker), reason, (unsigned long long)sequence);
    if (limit_exceeded)
        file_session_answer_limit(file);
    else if (vm_of(file)->removed)
        answer_error(file, "%s", vm_of(file)->refusal);
    else
        settle_dead_worker(file, reason);
    quarantine_fault(vm_of(file), fault);
}

static int start_worker(struct file_session *file, struct vgpu_error *error)
{
    const struct config *config = config_of(file);
    const struct exec_worker_events events = {on_completed, on_ended, file};
    char record_path[PATH_MAX + 32], cgroup[PATH_MAX], device[CONFIG_POOL_DEVICE_BYTES];
    struct exec_worker_config worker = {
        .program = config->worker,
        .device = file->device,
        .cuda_library = config->cuda_library[0] ? config->cuda_library : NULL,
        .vm_id = vm_of(file)->vm_id,
        .record_path = record_path,
        .execution_log = config->execution_log[0] ? config->execution_log : NULL,
        .uid = vm_of(file)->mediator->worker_uid,
        .gid = vm_of(file)->mediator->worker_gid,
    };

    placement_devices_of(&file->session, device); /* one, as it has one place */
    text_copy(file->device, sizeof(file->device), device);
    worker.backend = exec_backend_of(file->device);
    if (file->tries_left == 0)
        return error_set(error, ECHILD, "%d ended before they could be used", SPAWN_TRIES);
    file_session_record_path(file, record_path, sizeof(record_path));
    cgroup_of_vm(vm_of(file)->mediator, worker.vm_id, cgroup);
    worker.cgroup = cgroup[0] ? cgroup : NULL;
    if (exec_worker_start(&vm_of(file)->mediator->loop, &worker, &events, &file->worker, error) < 0)
        return -1;
    file->tries_left--;
    file->workers++;
    return 0;
}

static void log_process(const struct file_session *file)
{
    char pool = vm_pool(vm_of(file));
    unsigned priority = vm_priority(vm_of(file));
    const char pool_text[2] = {pool, '\0'};
    const struct log_field fields[] = {
        LOG_TEXT("pool", pool_text),
        LOG_NUMBER("priority", priority),
        LOG_NUMBER("vm", vm_of(file)->vm_id),
        LOG_TEXT("command", file->request.command),
        LOG_NUMBER("sequence", file->request.sequence),
        LOG_NUMBER("worker_pid", (uint64_t)exec_worker_pid(file->worker))};

    log_event("PROCESS", fields, VGPU_ARRAY_LENGTH(fields),
              "Pool %c: vm=%u, priority=%u, command=%s", pool, vm_of(file)->vm_id, priority,
              file->request.command);
}

/* Returns -1 when the worker turns out to be gone or going. */
static int run_on_worker(struct file_session *file)
{
    struct vgpu_error error;

    fault_point("dispatch");
    if (exec_worker_run(file->worker, file->request.sequence, file->request.command, &error) < 0) {
        log_debug("vm%u: %s; starting another worker", vm_of(file)->vm_id, error.message);
        file->worker = NULL; /* ended() follows */
        return -1;
    }
    log_process(file);
    file->began_ns = clock_monotonic_ns();
    uv_timer_start(&file->timer, on_timer, vm_operation_limit_ms(vm_of(file)), 0);
    return 0;
}

/* Tries until an earlier worker of this VM has let go of the record. */
static void try_to_run(struct file_session *file)
{
    struct vgpu_error error = {EBUSY, "the last one is ending"};

    if (file->worker && !is_on_its_device(file)) {
        exec_worker_stop(file->worker);
        file->worker = NULL;
    }

    if (vm_of(file)->removed) {
        answer_error(file, "%s", vm_of(file)->refusal);
        return;
    }
    if ((file->worker || start_worker(file, &error) == 0) && run_on_worker(file) == 0)
        return;
    if (error.code == EBUSY && clock_monotonic_ns() < file->spawn_until_ns) {
        uv_timer_start(&file->timer, on_timer, SPAWN_AGAIN_MS, 0);
        return;
    }
    /* The reason is the host's business: paths and process ids stay in the log. */
    log_error("vm%u: no worker could be started: %s", vm_of(file)->vm_id, error.message);
    answer_error(file, "no worker could be started for this VM; the mediator's log says why");
}

void file_session_check_device(struct file_session *file)
{
    if (!file->worker || file->session.state == SESSION_RUNNING || is_on_its_device(file))
        return;
    exec_worker_stop(file->worker);
    file->worker = NULL;
    leave_device(file);
}

/* What it has of the device goes with it. */
static void end_idle_worker(struct file_session *file)
{
    uv_timer_stop(&file->timer);
    if (file->worker)
        exec_worker_stop(file->worker);
    file->worker = NULL;
    leave_device(file);
}

static void on_timer(uv_timer_t *timer)
{
    struct file_session *file = timer->data;

    if (file->session.state != SESSION_RUNNING) {
        end_idle_worker(file); /* idle for long enough */
    } else if (!file->worker) {
        try_to_run(file);
    } else {
        file->limit_exceeded = true;
        exec_worker_kill(file->worker);
    }
}

/* --- answering --------------------------------------------------------------------- */

static void count_answer(struct file_session *file, uint64_t device_us)
{
    struct vm *vm = vm_of(file);
    uint64_t now_ns = clock_realtime_ns(); /* as the arrival's */

    vm_count(vm, METRICS_ANSWERS, 1);
    placement_charge(&file->session, device_us, 1);
    account_charge(vm_of(file), device_us);
    if (file->session.state == SESSION_RUNNING)
        vm_count(vm, METRICS_OPERATIONS, 1);
    if (!file->request.recovered && now_ns > file->request.arrival_ns)
        metrics_latency_record(&vm->statistics.answer,
                               (now_ns - file->request.arrival_ns) / NS_PER_US,
                               clock_monotonic_ns());
}

void file_session_answer(struct file_session *file, const struct protocol_response *response,
                         uint64_t device_us)
{
    count_answer(file, device_us);
    if (file->session.state == SESSION_RUNNING)
        decisions_complete(vm_of(file), file->request.sequence, device_us, response->success);
    uv_timer_stop(&file->timer);
    fault_point("result");
    channel_answer(vm_of(file)->mediator->channel, vm_of(file)->vm_id, file->request.sequence,
                   response);
    if (file->worker)
        uv_timer_start(
            &file->timer, on_timer,
            vm_of(file)->removed || !is_on_its_device(file) ? 0 : config_of(file)->worker_idle_ms,
            0);
    if (file->session.state == SESSION_RUNNING) {
        session_time_first(&file->session, file->began_ns);
        session_returned(&file->session, device_us, 0);
    } else {
        session_withdraw(&file->session);
    }
    if (contexts_are_wanted(&file->session))
        rest(&file->session);
    if (!file->worker)
        leave_device(file);
}

void file_session_close(struct file_session *file)
{
    if (file->worker)
        exec_worker_detach(file->worker);
    file->worker = NULL;
    uv_close((uv_handle_t *)&file->timer, NULL);
}

/* --- removed, changed ---------------------------------------------------------------- */

void file_session_end(struct file_session *file)
{
    if (!file->worker)
        return;
    if (file->session.state == SESSION_RUNNING)
        exec_worker_kill(file->worker); /* on_ended() answers */
    else
        on_timer(&file->timer); /* as one that was idle for long enough */
}

bool file_session_has_ended(const struct file_session *file)
{
    return file->workers == 0 && file->session.state == SESSION_IDLE;
}

static void on_timer_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void file_session_free(struct file_session *file)
{
    uv_close((uv_handle_t *)&file->timer, on_timer_closed);
}

void file_session_limit_changed(struct file_session *file)
{
    uint64_t limit_ms = vm_operation_limit_ms(vm_of(file));
    uint64_t used_ms = (clock_monotonic_ns() - file->began_ns) / NS_PER_MS;

    if (file->session.state == SESSION_RUNNING && file->worker)
        uv_timer_start(&file->timer, on_timer, used_ms < limit_ms ? limit_ms - used_ms : 0, 0);
}

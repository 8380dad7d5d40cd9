/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon.  Everything happens in callbacks of one loop:
 *
 *   channel: request   ─▶ session_queue() ─▶ sched_ready()
 *   before each wait   ─▶ dispatch: sched_next() for every device ─▶ session_run()
 *   worker: completed  ─▶ session_answer() ─▶ sched_returned(), channel_answer()
 *   channel: answered  ─▶ log
 *
 * Dispatching once a round, after all events of the round, means that requests
 * that were found together are queued together before one of them is chosen.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The file channel holds one operation a VM; the grant's time is the bound that
 * DESIGN gives a default grant. */
#define GRANT_MAX_OPS 1
#define GRANT_MAX_INFLIGHT 1
#define GRANT_DEVICE_US 2000

/* A share that hangs keeps the channel's thread; leave without it. */
#define STOP_PATIENCE_MS 10000

static struct session *find_session(struct mediator *mediator, uint32_t vm_id)
{
    struct session *session;

    HASH_FIND(hh, mediator->sessions, &vm_id, sizeof(vm_id), session);
    return session;
}

static struct session *add_session(struct mediator *mediator, uint32_t vm_id, char pool,
                                   unsigned priority, bool registered, struct vgpu_error *error)
{
    struct session *session = session_new(mediator, vm_id, pool, priority, registered, error);

    if (session)
        HASH_ADD(hh, mediator->sessions, vm_id, sizeof(vm_id), session);
    return session;
}

/* --- dispatching ------------------------------------------------------------------- */

static void dispatch(uv_prepare_t *prepare)
{
    struct mediator *mediator = prepare->data;
    struct sched_action action;

    if (!mediator->recovered || mediator->stopping)
        return;
    if (mediator->test.active)
        test_mode_update(&mediator->test);
    for (unsigned device = 0; device < mediator->device_count; device++) {
        /* A grant whose worker cannot be started comes back at once: go on. */
        while (sched_next(mediator->sched, device, clock_monotonic_ns(), &action))
            session_run(sched_vm_context(action.vm));
    }
}

/* --- the channel's events ------------------------------------------------------------- */

/* A registered VM is what the registry says.  Its claim may be stale, so a
 * difference is counted, and told once. */
static void compare_claim(struct session *session, const struct channel_request *request)
{
    if (!request->has_claim || (request->claimed_pool == sched_vm_pool(session->place) &&
                                request->claimed_priority == sched_vm_priority(session->place)))
        return;
    if (session->claim_differences++ == 0)
        log_info("vm%u claims pool %c, priority %u; the registry says pool %c, priority %u, and "
                 "counts",
                 session->vm_id, request->claimed_pool, request->claimed_priority,
                 sched_vm_pool(session->place), sched_vm_priority(session->place));
}

/* An unregistered VM is what it claims to be, up to max_priority. */
static int believe_claim(struct mediator *mediator, struct session **session,
                         const struct channel_request *request, struct vgpu_error *error)
{
    uint8_t max_priority = mediator->config->max_priority;
    char pool = request->has_claim ? request->claimed_pool : mediator->config->pools[0].id;
    uint8_t priority = request->has_claim ? request->claimed_priority : VGPU_PRIORITY_LOW;

    if (priority > max_priority)
        priority = max_priority;
    if (*session)
        return sched_update_vm(mediator->sched, (*session)->place, pool, priority, error);
    *session = add_session(mediator, request->vm_id, pool, priority, false, error);
    return *session ? 0 : -1;
}

static void on_request(const struct channel_request *request, void *context)
{
    struct mediator *mediator = context;
    struct session *session = find_session(mediator, request->vm_id);
    struct vgpu_error error;

    if (session && session->registered) {
        compare_claim(session, request);
    } else if (believe_claim(mediator, &session, request, &error) < 0) {
        struct protocol_response response = {.success = false};

        text_copy(response.message, sizeof(response.message), error.message);
        channel_answer(mediator->channel, request->vm_id, request->sequence, &response);
        return;
    }
    session_queue(session, request);
    if (request->recovered)
        recovery_add(session);
}

static void on_answered(uint32_t vm_id, uint64_t sequence, const char *line, bool withheld,
                        void *context)
{
    const char status[2] = {line[0], '\0'};
    const struct log_field fields[] = {LOG_NUMBER("vm", vm_id), LOG_NUMBER("sequence", sequence),
                                       LOG_TEXT("status", status), LOG_TEXT("answer", line)};

    (void)context;
    if (withheld)
        log_event("WITHHELD", fields, VGPU_ARRAY_LENGTH(fields),
                  "vm%u has put a new request in the place of number %llu, so its answer was not "
                  "written: %s",
                  vm_id, (unsigned long long)sequence, line);
    else
        log_event("RESPONSE", fields, VGPU_ARRAY_LENGTH(fields), "Sent to vm%u: %s", vm_id, line);
}

static void on_refused(uint32_t vm_id, const char *line, void *context)
{
    const struct log_field fields[] = {LOG_NUMBER("vm", vm_id), LOG_TEXT("answer", line)};

    (void)context;
    log_event("REFUSED", fields, VGPU_ARRAY_LENGTH(fields), "vm%u: %s", vm_id, line);
}

static void on_channel_recovered(void *context)
{
    recovery_start(context);
}

static void log_ready(const struct mediator *mediator)
{
    const struct config *config = mediator->config;
    char pools[CONFIG_POOLS_MAX * (CONFIG_DEVICE_BYTES + 8)] = "";
    const struct log_field fields[] = {LOG_TEXT("share", config->share),
                                       LOG_NUMBER("vms", config->vm_count),
                                       LOG_NUMBER("pid", (uint64_t)getpid())};

    for (size_t i = 0; i < config->pool_count; i++) {
        size_t used = strlen(pools);

        snprintf(pools + used, sizeof(pools) - used, "%s%c on %s", i ? ", " : "",
                 config->pools[i].id, config->pools[i].device);
    }
    log_event("READY", fields, VGPU_ARRAY_LENGTH(fields),
              "vgpu-mediator %s takes requests: share %s, %zu VMs, pools %s (%s, %s)",
              VGPU_PACKAGE_VERSION, config->share, config->vm_count, pools,
              config->pools_mode == SCHED_POOLS_SHARED ? "shared" : "independent",
              config->policy == SCHED_POLICY_STRICT ? "strict" : "fifo");
}

void mediator_recovered(struct mediator *mediator)
{
    mediator->recovered = true;
    if (!mediator->ready)
        log_ready(mediator);
    mediator->ready = true;
}

/* --- stopping ---------------------------------------------------------------------------- */

static void close_handle(uv_handle_t *handle, void *context)
{
    (void)context;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

/* From here on another signal has nothing to say: its default is to kill. */
static void ignore_signals(void)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
}

static void close_everything(struct mediator *mediator)
{
    struct session *session, *next;

    mediator->closed = true;
    ignore_signals();
    test_mode_stop(&mediator->test);
    HASH_ITER (hh, mediator->sessions, session, next)
        session_close(session);
    uv_close((uv_handle_t *)&mediator->dispatch, NULL);
    uv_close((uv_handle_t *)&mediator->stop_timer, NULL);
    uv_close((uv_handle_t *)&mediator->recovery_timer, NULL);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(mediator->signals); i++)
        close_handle((uv_handle_t *)&mediator->signals[i], NULL);
}

static void on_channel_stopped(void *context)
{
    close_everything(context);
}

static void on_stop_timer(uv_timer_t *timer)
{
    struct mediator *mediator = timer->data;

    log_error("share '%s' has not answered for %d s: leaving without it; what was accepted is in "
              "the journal",
              mediator->config->share, STOP_PATIENCE_MS / 1000);
    _exit(EXIT_FAILURE);
}

/* Running work is answered first; what waits is in the journal. */
static void stop_when_idle(struct mediator *mediator)
{
    if (!mediator->stopping || mediator->channel_stopping || mediator->running > 0)
        return;
    mediator->channel_stopping = true;
    channel_stop(mediator->channel, mediator->options.cleanup);
    uv_timer_start(&mediator->stop_timer, on_stop_timer, STOP_PATIENCE_MS, 0);
}

void mediator_session_idle(struct mediator *mediator)
{
    stop_when_idle(mediator);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct mediator *mediator = handle->data;
    struct vgpu_error error;

    if (number == SIGHUP) {
        if (log_reopen(&error) < 0)
            log_error("%s", error.message);
        return;
    }
    if (mediator->stopping)
        return;
    log_info("%s: stopping; %u running, %u waiting", strsignal(number), mediator->running,
             sched_waiting(mediator->sched, 0));
    mediator->stopping = true;
    stop_when_idle(mediator);
}

/* --- starting ------------------------------------------------------------------------------ */

/* A VM's directory and journal are held open; its worker has a socket, and libuv
 * and the record need two more while it starts. */
#define DESCRIPTORS_A_VM 5u
#define DESCRIPTORS_BESIDES 64u

static int raise_descriptor_limit(const struct config *config, struct vgpu_error *error)
{
    rlim_t wanted = DESCRIPTORS_A_VM * config->vm_count + DESCRIPTORS_BESIDES;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return error_set_errno(error, "cannot read the limit of open files");
    if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < wanted)
        return error_set(error, EMFILE,
                         "%zu VMs need %llu open files, and the hard limit is %llu: raise it "
                         "(ulimit -Hn, LimitNOFILE= in the unit)",
                         config->vm_count, (unsigned long long)wanted,
                         (unsigned long long)limit.rlim_max);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit); /* unregistered VMs want some too */
    return 0;
}

/* Two mediators on one state directory would answer each request twice. */
static int take_lock(struct mediator *mediator, struct vgpu_error *error)
{
    const char *state_dir = mediator->config->state_dir;
    char path[PATH_MAX + 16];

    if (fd_make_directories(state_dir, 0700, error) < 0)
        return -1;
    snprintf(path, sizeof(path), "%s/lock", state_dir);
    mediator->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (mediator->lock_fd < 0)
        return error_set_errno(error, "cannot open lock file '%s'", path);
    if (fd_lock(mediator->lock_fd) == 0)
        return 0;
    if (errno == EWOULDBLOCK)
        return error_set(error, EBUSY,
                         "another vgpu-mediator uses the state directory '%s': stop it, or give "
                         "this one its own state_dir and share",
                         state_dir);
    return error_set_errno(error, "cannot lock '%s'", path);
}

static unsigned device_index(struct mediator *mediator, const char *name)
{
    unsigned index = 0;

    while (index < mediator->device_count && strcmp(mediator->devices[index], name) != 0)
        index++;
    if (index == mediator->device_count)
        text_copy(mediator->devices[mediator->device_count++], CONFIG_DEVICE_BYTES, name);
    return index;
}

static int start_sched(struct mediator *mediator, struct vgpu_error *error)
{
    const struct config *config = mediator->config;
    const struct sched_config sched = {.pools_mode = config->pools_mode,
                                       .policy = config->policy,
                                       .grant_max_ops = GRANT_MAX_OPS,
                                       .grant_max_inflight = GRANT_MAX_INFLIGHT,
                                       .grant_device_us = GRANT_DEVICE_US};

    mediator->sched = sched_new(&sched);
    for (size_t i = 0; i < config->pool_count; i++) {
        if (sched_add_pool(mediator->sched, config->pools[i].id,
                           device_index(mediator, config->pools[i].device), error) < 0)
            return -1;
    }
    for (size_t i = 0; i < config->vm_count; i++) {
        const struct config_vm *vm = &config->vms[i];

        if (!add_session(mediator, vm->vm_id, vm->pool, vm->priority, true, error))
            return -1;
    }
    return 0;
}

static int make_channel(struct mediator *mediator, struct vgpu_error *error)
{
    const struct config *config = mediator->config;
    struct file_channel_vm *vms = calloc(config->vm_count + 1, sizeof(*vms));
    char pools[CONFIG_POOLS_MAX + 1] = "";
    int result;

    if (!vms)
        return error_set(error, ENOMEM, "no memory for %zu VMs", config->vm_count);
    for (size_t i = 0; i < config->pool_count; i++)
        pools[i] = config->pools[i].id;
    for (size_t i = 0; i < config->vm_count; i++)
        vms[i] = (struct file_channel_vm){config->vms[i].vm_id, config->vms[i].owner_uid,
                                          config->vms[i].owner_gid, config->vms[i].mode};
    const struct file_channel_config channel = {
        .share = config->share,
        .state_dir = config->state_dir,
        .pools = pools,
        .vms = vms,
        .vm_count = config->vm_count,
        .accept_unregistered = config->accept_unregistered,
        .poll_min_ms = config->poll_min_ms,
        .poll_max_ms = config->poll_max_ms,
        .response_hold_ms = config->response_hold_ms,
        .unterminated_hold_ms = config->unterminated_hold_ms,
    };

    result = file_channel_new(&channel, &mediator->channel, error);
    free(vms);
    return result;
}

static void start_handles(struct mediator *mediator)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};

    uv_prepare_init(&mediator->loop, &mediator->dispatch);
    mediator->dispatch.data = mediator;
    uv_prepare_start(&mediator->dispatch, dispatch);
    uv_timer_init(&mediator->loop, &mediator->stop_timer);
    mediator->stop_timer.data = mediator;
    uv_timer_init(&mediator->loop, &mediator->recovery_timer);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(numbers); i++) {
        uv_signal_init(&mediator->loop, &mediator->signals[i]);
        mediator->signals[i].data = mediator;
        uv_signal_start(&mediator->signals[i], on_signal, numbers[i]);
    }
}

static int start_all(struct mediator *mediator, struct vgpu_error *error)
{
    const struct channel_events events = {
        .request = on_request,
        .answered = on_answered,
        .refused = on_refused,
        .recovered = on_channel_recovered,
        .stopped = on_channel_stopped,
        .context = mediator,
    };
    const struct mediator_options *options = &mediator->options;

    if (raise_descriptor_limit(mediator->config, error) < 0 || take_lock(mediator, error) < 0 ||
        start_sched(mediator, error) < 0 || make_channel(mediator, error) < 0)
        return -1;
    if (options->hold_until > mediator->config->vm_count && !mediator->config->accept_unregistered)
        log_warning("--hold-until %u: only %zu VMs are registered, so nothing will ever run",
                    options->hold_until, mediator->config->vm_count);
    if (options->test_mode || options->hold_until > 0) {
        mediator->test.hold_until = options->hold_until;
        mediator->test.prefer_vm = options->prefer_vm;
        if (test_mode_start(&mediator->test, mediator, error) < 0)
            return -1;
    }
    return channel_start(mediator->channel, &mediator->loop, &events, error);
}

static void free_all(struct mediator *mediator)
{
    struct session *session, *next;

    channel_free(mediator->channel);
    HASH_ITER (hh, mediator->sessions, session, next) {
        HASH_DEL(mediator->sessions, session); /* NOLINT: the analyzer is lost in the macro */
        free(session);
    }
    sched_free(mediator->sched);
    fd_close(&mediator->lock_fd);
    uv_loop_close(&mediator->loop);
}

int mediator_run(const struct config *config, const struct mediator_options *options,
                 struct vgpu_error *error)
{
    struct mediator mediator = {.config = config, .options = *options, .lock_fd = -1};
    int result;

    signal(SIGPIPE, SIG_IGN);
    uv_loop_init(&mediator.loop);
    start_handles(&mediator);
    result = start_all(&mediator, error);
    if (result < 0)
        close_everything(&mediator);
    uv_run(&mediator.loop, UV_RUN_DEFAULT);
    if (result == 0)
        log_info("stopped");
    free_all(&mediator);
    return result;
}

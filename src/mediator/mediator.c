/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon.  Everything happens in callbacks of one loop:
 *
 *   file request       ─▶ file_session_queue() ─▶ session_wait() ─▶ sched_ready()
 *   a window has work  ─▶ session_wait()       ─▶ sched_ready()
 *   before each wait   ─▶ dispatch: sched_next() for every device ─▶ vm_grant(), vm_revoke()
 *   grant is back      ─▶ session_returned()   ─▶ sched_returned()
 *   file answered      ─▶ log
 *
 * Dispatching once a round, after all events of the round, means that requests
 * that were found together are queued together before one of them is chosen.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* From connect to HELLO. */
#define HELLO_TIMEOUT_MS 5000

/* A share that hangs keeps the channel's thread; leave without it. */
#define STOP_PATIENCE_MS 10000

/* --- dispatching ------------------------------------------------------------------- */

/* In the order of the devices' numbers, in which a session waits that wants several.  False:
 * there was nothing to do. */
static bool grant_all(struct mediator *mediator)
{
    struct sched_action action;
    bool done = false;

    for (unsigned device = 0; device < mediator->device_count; device++) {
        /* A grant whose worker cannot be started comes back at once: go on. */
        while (sched_next(mediator->sched, device, clock_monotonic_ns(), &action)) {
            done = true;
            if (action.type == SCHED_ACTION_GRANT)
                vm_grant(sched_vm_context(action.vm), &action.grant);
            else
                vm_revoke(sched_vm_context(action.vm), TRACE_REASON_OTHERS_WAIT);
        }
    }
    return done;
}

/* What has passed may find too few contexts on one of its devices: it gives the others back,
 * which were looked at before, and leaves room at their gates. */
void mediator_dispatch(struct mediator *mediator)
{
    while (grant_all(mediator) || vm_yield(mediator) || contexts_admit(mediator))
        ;
}

/* The loop comes round, with which contexts_admit() is called. */
static void on_contexts_timer(uv_timer_t *timer)
{
    struct mediator *mediator = timer->data;

    mediator->contexts_timer_ns = 0;
}

static void wake_for_contexts(struct mediator *mediator)
{
    uint64_t deadline_ns = contexts_deadline_ns(mediator), now_ns = clock_monotonic_ns();

    if (deadline_ns == SCHED_NEVER_NS || deadline_ns <= now_ns ||
        deadline_ns == mediator->contexts_timer_ns)
        return;
    mediator->contexts_timer_ns = deadline_ns;
    uv_timer_start(&mediator->contexts_timer, on_contexts_timer,
                   (deadline_ns - now_ns) / NS_PER_MS + 1, 0);
}

static void dispatch(uv_prepare_t *prepare)
{
    struct mediator *mediator = prepare->data;

    if (!LIST_EMPTY(&mediator->removed))
        vm_free_removed(mediator);
    if (!mediator_has_recovered(mediator) || mediator->stopping)
        return;
    if (mediator->reload_pending)
        mediator_reload(mediator);
    contexts_admit(mediator);
    if (mediator->test.active)
        test_mode_update(&mediator->test);
    mediator_dispatch(mediator);
    wake_for_contexts(mediator);
}

/* --- the channel's events ------------------------------------------------------------- */

/* A registered VM is what the registry says.  Its claim may be stale, so a
 * difference is counted, and told once. */
static void compare_claim(struct vm *vm, const struct channel_request *request)
{
    if (!request->has_claim ||
        (request->claimed_pool == vm_pool(vm) && request->claimed_priority == vm_priority(vm)))
        return;
    vm_count(vm, METRICS_DIFFERENCES, 1);
    if (vm->statistics.scope.counters[METRICS_DIFFERENCES] == 1)
        log_info("vm%u claims pool %c, priority %u; the registry says pool %c, priority %u, and "
                 "counts",
                 vm->vm_id, request->claimed_pool, request->claimed_priority, vm_pool(vm),
                 vm_priority(vm));
}

/* An unregistered VM is what it claims to be, up to max_priority. */
static int believe_claim(struct mediator *mediator, struct vm **vm,
                         const struct channel_request *request, struct vgpu_error *error)
{
    uint8_t max_priority = mediator->config->max_priority;
    char pool = request->has_claim ? request->claimed_pool : mediator->pools[0].id;
    uint8_t priority = request->has_claim ? request->claimed_priority : VGPU_PRIORITY_LOW;

    if (!mediator->config->accept_unregistered)
        return error_set(error, ENOENT, "VM %u is not registered any more", request->vm_id);
    if (priority > max_priority)
        priority = max_priority;
    if (*vm)
        return vm_update(*vm, pool, priority, error);
    *vm = vm_new(mediator, request->vm_id, pool, priority, false, error);
    return *vm ? 0 : -1;
}

static void on_request(const struct channel_request *request, void *context)
{
    struct mediator *mediator = context;
    struct vm *vm = vm_find(mediator, request->vm_id);
    struct vgpu_error error;

    if (vm && vm_uses(vm, CONFIG_CHANNEL_FILE) && request->identity != vm->settings.identity)
        return; /* an earlier VM's: the channel is told of this one, and answers that one */
    if (vm && vm->registered) {
        compare_claim(vm, request);
    } else if (believe_claim(mediator, &vm, request, &error) < 0) {
        struct protocol_response response = {.success = false};

        text_copy(response.message, sizeof(response.message), error.message);
        channel_answer(mediator->channel, request->vm_id, request->sequence, &response);
        return;
    } else {
        reload_judge_vm(vm); /* the pool that it claims this time may be disabled */
    }
    file_session_queue(vm->file, request);
    if (request->recovered)
        recovery_add(vm->file);
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
    struct vm *vm = vm_find(context, vm_id);

    if (vm)
        vm_count_refusals(vm, METRICS_REFUSED_MALFORMED, 1);
    log_event("REFUSED", fields, VGPU_ARRAY_LENGTH(fields), "vm%u: %s", vm_id, line);
}

static void on_channel_recovered(void *context)
{
    recovery_start(context);
}

static void on_synced(uint64_t token, void *context)
{
    struct mediator *mediator = context;

    control_server_synced(mediator->control, token);
}

static void log_ready(const struct mediator *mediator)
{
    const struct config *config = mediator->config;
    char pools[CONFIG_POOLS_MAX * (CONFIG_POOL_DEVICE_BYTES + 8)] = "";
    const struct log_field fields[] = {LOG_TEXT("share", config->share),
                                       LOG_NUMBER("vms", HASH_COUNT(mediator->vms)),
                                       LOG_NUMBER("pid", (uint64_t)getpid())};

    for (size_t i = 0; i < mediator->pool_count; i++) {
        size_t used = strlen(pools);

        snprintf(pools + used, sizeof(pools) - used, "%s%c on %s", i ? ", " : "",
                 mediator->pools[i].id,
                 mediator->pools[i].device[0] ? mediator->pools[i].device : "nothing");
    }
    log_event("READY", fields, VGPU_ARRAY_LENGTH(fields),
              "vgpu-mediator %s takes requests: share %s, %zu VMs, pools %s (%s, %s)",
              VGPU_PACKAGE_VERSION, config->share, (size_t)HASH_COUNT(mediator->vms), pools,
              config->pools_mode == SCHED_POOLS_SHARED ? "shared" : "independent",
              sched_policy_name(config->policy));
}

bool mediator_has_recovered(const struct mediator *mediator)
{
    return mediator->files_recovered && mediator->adopting == 0;
}

void mediator_recovered(struct mediator *mediator)
{
    if (!mediator_has_recovered(mediator))
        return;
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

static void let_go(struct vm *vm)
{
    while (!TAILQ_EMPTY(&vm->windows))
        window_session_detach(TAILQ_FIRST(&vm->windows));
    file_session_close(vm->file);
}

static void close_everything(struct mediator *mediator)
{
    struct vm *vm, *next;

    mediator->closed = true;
    ignore_signals();
    control_server_stop(mediator->control);
    mediator->control = NULL;
    metrics_stop(mediator);
    test_mode_stop(&mediator->test);
    if (mediator->windows)
        window_channel_stop(mediator->windows);
    window_free_all(mediator);
    devices_stop(mediator);
    gpus_stop(mediator);
    HASH_ITER (hh, mediator->vms, vm, next)
        let_go(vm);
    LIST_FOREACH (vm, &mediator->removed, in_removed)
        let_go(vm);
    uv_close((uv_handle_t *)&mediator->dispatch, NULL);
    uv_close((uv_handle_t *)&mediator->stop_timer, NULL);
    uv_close((uv_handle_t *)&mediator->recovery_timer, NULL);
    uv_close((uv_handle_t *)&mediator->sweep_timer, NULL);
    uv_close((uv_handle_t *)&mediator->quarantine_timer, NULL);
    uv_close((uv_handle_t *)&mediator->contexts_timer, NULL);
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

static void on_stopped(uv_timer_t *timer)
{
    close_everything(timer->data);
}

/* Running work is answered first; what waits is in the journal or in its ring. */
static void stop_when_idle(struct mediator *mediator)
{
    if (!mediator->stopping || mediator->channel_stopping || mediator->running > 0)
        return;
    mediator->channel_stopping = true;
    if (!mediator->channel) {
        /* At the loop's next turn: the caller stands in the middle of something. */
        uv_timer_start(&mediator->stop_timer, on_stopped, 0, 0);
        return;
    }
    channel_stop(mediator->channel, mediator->options.cleanup);
    uv_timer_start(&mediator->stop_timer, on_stop_timer, STOP_PATIENCE_MS, 0);
}

/* A worker with a long grant gives it back; with --cleanup it ends. */
static void stop_windows(struct mediator *mediator)
{
    struct window_session *ws, *next_ws;
    struct vm *vm, *next;

    HASH_ITER (hh, mediator->vms, vm, next) {
        vm_revoke_all(vm);
        for (ws = TAILQ_FIRST(&vm->windows); ws && mediator->options.cleanup; ws = next_ws) {
            next_ws = TAILQ_NEXT(ws, in_vm);
            window_session_end(ws);
        }
    }
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
        devices_recheck(mediator);
        mediator_reload(mediator);
        return;
    }
    if (mediator->stopping)
        return;
    log_info("%s: stopping; %u running, %u waiting", strsignal(number), mediator->running,
             sched_waiting(mediator->sched, 0));
    mediator->stopping = true;
    stop_windows(mediator);
    stop_when_idle(mediator);
}

/* --- starting ------------------------------------------------------------------------------ */

/* A VM's directory and journal are held open; its worker has a socket, and libuv
 * and the record need two more while it starts.  Its socket and a device's link:
 * the connection, window, interrupt, lifeline twice and a doorbell a slot; a worker a
 * session. */
#define DESCRIPTORS_A_VM (5u + 6u + 2u * VGPU_SLOTS_DEFAULT)
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

int mediator_device_index(struct mediator *mediator, const char *name, struct vgpu_error *error)
{
    unsigned index = 0;

    if (!config_device_is_known(name))
        return error_set(error, ENODEV, "device '%s' is none that this mediator can use", name);
    while (index < mediator->device_count && strcmp(mediator->devices[index], name) != 0)
        index++;
    if (index == SCHED_DEVICES_MAX)
        return error_set(error, ENOSPC, "device '%s': %u are in use already", name,
                         SCHED_DEVICES_MAX);
    if (index == mediator->device_count) {
        text_copy(mediator->devices[index], CONFIG_DEVICE_BYTES, name);
        if (devices_add(mediator, index) < 0)
            return error_set(error, ENOMEM, "no memory for device '%s'", name);
        mediator->device_count++;
    } else if (devices_add(mediator, index) < 0) {
        return error_set(error, ENOMEM, "no memory for device '%s'", name);
    }
    return (int)index;
}

const struct config_pool *mediator_find_pool(const struct mediator *mediator, char id)
{
    for (size_t i = 0; i < mediator->pool_count; i++) {
        if (mediator->pools[i].id == id)
            return &mediator->pools[i];
    }
    return NULL;
}

void mediator_set_grants(struct mediator *mediator)
{
    const struct sched_config sched = policy_grants(mediator);

    sched_set_grants(mediator->sched, &sched);
}

static int start_sched(struct mediator *mediator, struct vgpu_error *error)
{
    struct sched_config sched;

    mediator->grant_rules = policy_rules(mediator->config);
    mediator->quarantine_rules = quarantine_rules(mediator->config);
    sched = policy_grants(mediator);
    mediator->sched = sched_new(&sched);
    contexts_init(mediator, mediator->config->contexts_per_device,
                  mediator->config->contexts_per_vm);
    return reload_begin(mediator, error);
}

struct file_channel_vm mediator_channel_vm(const struct mediator *mediator,
                                           const struct config_vm *settings)
{
    uint32_t sessions_max =
        settings->sessions_max ? settings->sessions_max : mediator->config->sessions_max;

    return (struct file_channel_vm){
        .vm_id = settings->vm_id,
        .owner_uid = settings->owner_uid,
        .owner_gid = settings->owner_gid,
        .mode = settings->mode,
        .links_max = sessions_max + 1, /* a process a session, and a device */
        .identity = settings->identity,
    };
}

static int make_file_channel(struct mediator *mediator, const struct file_channel_vm *vms,
                             size_t count, struct vgpu_error *error)
{
    const struct config *config = mediator->config;
    char pools[CONFIG_POOLS_MAX + 1] = "";

    for (size_t i = 0; i < mediator->pool_count; i++)
        pools[i] = mediator->pools[i].id;
    const struct file_channel_config channel = {
        .share = config->share,
        .state_dir = config->state_dir,
        .pools = pools,
        .vms = vms,
        .vm_count = count,
        .accept_unregistered = config->accept_unregistered,
        .poll_min_ms = config->poll_min_ms,
        .poll_max_ms = config->poll_max_ms,
        .response_hold_ms = config->response_hold_ms,
        .unterminated_hold_ms = config->unterminated_hold_ms,
    };

    return file_channel_new(&channel, &mediator->channel, error);
}

static int make_window_channel(struct mediator *mediator, const struct file_channel_vm *vms,
                               size_t count, struct vgpu_error *error)
{
    const struct window_channel_config channel = {
        .run_dir = mediator->config->run_dir,
        .vms = vms,
        .vm_count = count,
        .hello_timeout_ms = HELLO_TIMEOUT_MS,
        .links_max = mediator->config->sessions_max + 1,
    };

    return window_channel_new(&channel, &mediator->windows, error);
}

/* The VMs that use a channel; returns how many. */
static size_t list_vms(const struct mediator *mediator, int channel, struct file_channel_vm *vms)
{
    struct vm *vm, *next;
    size_t count = 0;

    HASH_ITER (hh, mediator->vms, vm, next) {
        if (vm_uses(vm, channel))
            vms[count++] = mediator_channel_vm(mediator, &vm->settings);
    }
    return count;
}

static int make_channels(struct mediator *mediator, struct vgpu_error *error)
{
    const struct config *config = mediator->config;
    struct file_channel_vm *vms = calloc(config->vm_count + 1, sizeof(*vms));
    int result = 0;

    if (!vms)
        return error_set(error, ENOMEM, "no memory for %zu VMs", config->vm_count);
    if (config->channels & CONFIG_CHANNEL_FILE)
        result =
            make_file_channel(mediator, vms, list_vms(mediator, CONFIG_CHANNEL_FILE, vms), error);
    if (result == 0 && (config->channels & CONFIG_CHANNEL_WINDOW))
        result = make_window_channel(mediator, vms, list_vms(mediator, CONFIG_CHANNEL_WINDOW, vms),
                                     error);
    free(vms);
    return result;
}

static int start_windows(struct mediator *mediator, struct vgpu_error *error)
{
    struct window_channel_events events = window_events;

    events.context = mediator;
    if (adoption_start(mediator, error) < 0)
        return -1;
    return window_channel_start(mediator->windows, &mediator->loop, &events, error);
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
    uv_timer_init(&mediator->loop, &mediator->sweep_timer);
    uv_timer_init(&mediator->loop, &mediator->quarantine_timer);
    uv_timer_init(&mediator->loop, &mediator->contexts_timer);
    mediator->contexts_timer.data = mediator;
    gpus_init(mediator);
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
        .synced = on_synced,
        .stopped = on_channel_stopped,
        .context = mediator,
    };
    const struct mediator_options *options = &mediator->options;

    if (raise_descriptor_limit(mediator->config, error) < 0 || take_lock(mediator, error) < 0 ||
        config_worker_user(mediator->config, &mediator->worker_uid, &mediator->worker_gid, error) <
            0 ||
        start_sched(mediator, error) < 0)
        return -1;
    devices_start(mediator);
    if (make_channels(mediator, error) < 0)
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
    cgroup_start(mediator);
    gpus_update(mediator);
    decisions_start(mediator);
    if (mediator->windows && start_windows(mediator, error) < 0)
        return -1;
    if (control_server_start(mediator, error) < 0)
        return -1;
    metrics_start(mediator);
    if (mediator->channel)
        return channel_start(mediator->channel, &mediator->loop, &events, error);
    mediator->files_recovered = true;
    mediator_recovered(mediator);
    return 0;
}

static void free_all(struct mediator *mediator)
{
    struct vm *vm, *next;

    channel_free(mediator->channel);
    window_channel_free(mediator->windows);
    cgroup_stop(mediator);
    HASH_ITER (hh, mediator->vms, vm, next)
        vm_free(vm);
    while (!LIST_EMPTY(&mediator->removed))
        vm_free(LIST_FIRST(&mediator->removed)); /* NOLINT: the analyzer is lost in the macro */
    metrics_free(mediator);
    decisions_stop(mediator);
    sched_free(mediator->sched);
    devices_free(mediator);
    fd_close(&mediator->lock_fd);
    uv_loop_close(&mediator->loop);
}

int mediator_run(const struct config *config, const struct mediator_options *options,
                 struct vgpu_error *error)
{
    struct mediator mediator = {
        .config = config, .options = *options, .lock_fd = -1, .started_ns = clock_monotonic_ns()};
    int result;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is told as a full disk is */
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

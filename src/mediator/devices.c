/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices that pools name, and whether each can be used.
 *
 *   cpu   always
 *   GPU   when it has computed something, in a process of its own with a deadline
 *         (the sanity gate, src/gpu/gpu.h)
 *
 *               start: waited for           the driver says that it is in trouble
 *   UNKNOWN ───────────────────────▶ USABLE ───────────────────────────────┐
 *      │ a pool that is bound later:   ▲ ▲                                 ▼
 *      └──────────────────────▶ CHECKING │ passes                      CHECKING
 *                                 │ fails└───────── every RETRY_MS ────────┤
 *                                 ▼                                        │
 *                              UNUSABLE ◀──────────── fails ───────────────┘
 *
 * While one is not usable its pools' VMs are refused with the reason, or work on the CPU
 * where `gpu_missing = cpu` says so.  The log tells each change.
 *
 * That a session lost its device is no reason to stop the others: a guest may have brought
 * that about.  The device is then checked while it is USABLE, and only when that fails it is
 * not any more.
 *
 * A check has a process group of its own.  At the deadline all of it is killed and the check
 * has failed, also when the driver holds the process in the kernel; until that is gone no
 * other check of this device begins.
 */
#include "mediator/mediator.h"

#include "gpu/gpu.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define RETRY_MS 30000u
#define SUSPECT_EVERY_MS 10000u /* at most, on sessions' word */
#define USER_BYTES 32

enum device_state { DEVICE_UNKNOWN, DEVICE_CHECKING, DEVICE_USABLE, DEVICE_UNUSABLE };

struct device {
    struct mediator *mediator;
    const char *name;
    enum device_state state;
    char why[CONFIG_REASON_BYTES]; /* UNUSABLE: what was wrong */
    uv_timer_t timer;              /* a check's deadline, or when the next one begins */
    uv_process_t process;
    uv_pipe_t output;
    unsigned handles;                 /* of `process` and `output`, not closed yet */
    char text[GPU_GATE_OUTPUT_BYTES]; /* what the process has printed */
    size_t text_bytes;
    int status;             /* as waitpid(2) tells it */
    uint64_t context_bytes; /* that a context takes; 0: not known */
    struct gpu_device gpu;  /* as its last check that passed has found it */
    bool settled;           /* the last check has passed or failed */
    bool again;             /* that which is under way began before something that it must see */
    uint64_t began_ns;      /* the last check */
    bool closed;
};

/* Its handles are in use. */
static bool is_under_way(const struct device *device)
{
    return device->handles > 0;
}

/* A device that no pool names any more is nobody's business, until one does. */
static bool is_bound(const struct device *device)
{
    const struct mediator *mediator = device->mediator;
    char name[CONFIG_DEVICE_BYTES];

    for (size_t pool = 0; pool < mediator->pool_count; pool++) {
        for (unsigned i = 0; config_pool_device(&mediator->pools[pool], i, name); i++) {
            if (strcmp(name, device->name) == 0)
                return true;
        }
    }
    return false;
}

static bool is_gpu(const char *name)
{
    return strcmp(exec_backend_of(name), "cuda") == 0;
}

/* "cuda:1" is index 1 to the gate; the other names are its own. */
static const char *selector_of(const char *name)
{
    return strncmp(name, "cuda:", 5) == 0 ? name + 5 : name;
}

/* As a worker would be. */
static const char *user_of(const struct mediator *mediator, char text[USER_BYTES])
{
    if (mediator->worker_uid == (uid_t)-1)
        return NULL;
    snprintf(text, USER_BYTES, "%u:%u", (unsigned)mediator->worker_uid,
             (unsigned)mediator->worker_gid);
    return text;
}

static struct gpu_gate_config gate_config(const struct device *device, char user[USER_BYTES])
{
    const struct config *config = device->mediator->config;

    return (struct gpu_gate_config){
        .cuda_library = config->cuda_library[0] ? config->cuda_library : NULL,
        .selector = selector_of(device->name),
        .deadline_ms = config->gpu_check_ms,
        .user = user_of(device->mediator, user),
    };
}

/* --- what came of it ------------------------------------------------------------------------- */

static void log_state(const struct device *device, const struct gpu_gate_report *report)
{
    const struct log_field fields[] = {LOG_TEXT("device", device->name),
                                       LOG_TEXT("step", gpu_step_name(report->step)),
                                       LOG_TEXT("error", report->name)};

    if (report->ok)
        log_event("GPU", fields, 1, "device %s works: %s, CUDA %d.%d", device->name,
                  report->device.name, report->driver_version / 1000,
                  report->driver_version % 1000 / 10);
    else
        log_event("NO-GPU", fields, VGPU_ARRAY_LENGTH(fields),
                  "device %s does not work: step %s: %s; %s", device->name,
                  gpu_step_name(report->step), report->message, report->remedy);
}

static void log_fallback(const struct device *device)
{
    const struct log_field fields[] = {LOG_TEXT("device", device->name)};

    if (device->mediator->config->gpu_missing_cpu)
        log_event("FALLBACK", fields, VGPU_ARRAY_LENGTH(fields),
                  "what is bound to device %s works on the CPU until it does", device->name);
}

static void settle(struct device *device, const struct gpu_gate_report *report)
{
    bool was_known = device->state == DEVICE_UNUSABLE;

    device->state = report->ok ? DEVICE_USABLE : DEVICE_UNUSABLE;
    if (report->ok)
        device->gpu = report->device;
    if (report->context_bytes) /* one that could not be measured once more is as it was */
        device->context_bytes = report->context_bytes;
    snprintf(device->why, sizeof(device->why), "%.60s: %.120s", report->name, report->message);
    if (report->ok || !was_known)
        log_state(device, report);
    if (!report->ok && !was_known)
        log_fallback(device);
}

/* --- a check in the background ------------------------------------------------------------------
 */

static void start_check(struct device *device);

static void on_time(uv_timer_t *timer)
{
    start_check(timer->data);
}

static void check_later(struct device *device, uint64_t wait_ms)
{
    uv_timer_start(&device->timer, on_time, wait_ms, 0);
}

static void finish(struct device *device, const struct gpu_gate_report *report)
{
    device->settled = true;
    if (device->again && report->ok) { /* of what was before the trouble */
        check_later(device, 0);
        return;
    }
    settle(device, report);
    uv_timer_stop(&device->timer);
    if (!report->ok)
        check_later(device, RETRY_MS);
    reload_judge(device->mediator);
}

static void judge(struct device *device, bool timed_out)
{
    struct gpu_gate_report report;

    device->text[device->text_bytes] = '\0';
    gpu_gate_judge(device->text, device->status, timed_out, device->mediator->config->gpu_check_ms,
                   &report);
    finish(device, &report);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct device *device = handle->data;

    device->handles--;
    if (!is_under_way(device) && !device->settled && !device->closed)
        judge(device, false);
}

static void close_handle(uv_handle_t *handle)
{
    if (!uv_is_closing(handle))
        uv_close(handle, on_handle_closed);
}

static void on_exit_status(uv_process_t *process, int64_t status, int number)
{
    struct device *device = process->data;

    device->status = number ? number : W_EXITCODE((int)status, 0);
    kill(-process->pid, SIGKILL); /* what it has left behind */
    close_handle((uv_handle_t *)process);
}

static void on_room(uv_handle_t *handle, size_t wanted, uv_buf_t *buffer)
{
    struct device *device = handle->data;

    (void)wanted;
    buffer->base = device->text + device->text_bytes;
    buffer->len = sizeof(device->text) - 1 - device->text_bytes;
}

static void on_output(uv_stream_t *stream, ssize_t got, const uv_buf_t *buffer)
{
    struct device *device = stream->data;

    (void)buffer;
    if (got > 0)
        device->text_bytes += (size_t)got;
    else if (got < 0)
        close_handle((uv_handle_t *)stream);
}

/* Who left the group may still hold the output: nobody listens any more. */
static void end_process(struct device *device)
{
    if (!uv_is_closing((uv_handle_t *)&device->process))
        kill(-device->process.pid, SIGKILL);
    close_handle((uv_handle_t *)&device->output);
}

static void on_deadline(uv_timer_t *timer)
{
    struct device *device = timer->data;

    if (!uv_is_closing((uv_handle_t *)&device->process))
        device->status = SIGKILL;
    end_process(device);
    judge(device, true);
}

static int spawn_check(struct device *device)
{
    char user[USER_BYTES];
    const struct gpu_gate_config config = gate_config(device, user);
    const char *arguments[GPU_GATE_ARGUMENTS_MAX];
    uv_stdio_container_t stdio[] = {
        {.flags = UV_IGNORE},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&device->output},
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO}};
    char program[PATH_MAX];
    uv_process_options_t options = {.exit_cb = on_exit_status,
                                    .file = program,
                                    .args = (char **)(uintptr_t)arguments,
                                    .flags = UV_PROCESS_DETACHED, /* a group of its own */
                                    .stdio = stdio,
                                    .stdio_count = VGPU_ARRAY_LENGTH(stdio)};

    gpu_gate_program(program, sizeof(program));
    gpu_gate_arguments(&config, program, arguments);
    return uv_spawn(&device->mediator->loop, &device->process, &options);
}

/* Where it cannot be started at all. */
static void refuse(struct device *device, int code)
{
    struct gpu_gate_report report = {.step = GPU_STEP_START, .code = GPU_GATE_REFUSED};

    snprintf(report.message, sizeof(report.message), "cannot start vgpu-gpu-check: %s",
             uv_strerror(code));
    gpu_gate_explain(NULL, &report);
    close_handle((uv_handle_t *)&device->output);
    close_handle((uv_handle_t *)&device->process);
    finish(device, &report);
}

static void start_check(struct device *device)
{
    int code;

    if (!is_bound(device))
        return; /* devices_add() begins anew */
    if (is_under_way(device)) {
        check_later(device, RETRY_MS);
        return;
    }
    device->settled = device->again = false;
    device->began_ns = clock_monotonic_ns();
    device->text_bytes = 0;
    device->handles = 2;
    uv_pipe_init(&device->mediator->loop, &device->output, 0);
    device->output.data = device->process.data = device;
    code = spawn_check(device);
    if (code != 0) {
        refuse(device, code);
        return;
    }
    uv_read_start((uv_stream_t *)&device->output, on_room, on_output);
    uv_timer_start(&device->timer, on_deadline, device->mediator->config->gpu_check_ms, 0);
}

/* --- the table ---------------------------------------------------------------------------------
 */

static struct device *find(const struct mediator *mediator, const char *name)
{
    for (unsigned i = 0; i < mediator->device_count; i++) {
        if (strcmp(mediator->devices[i], name) == 0)
            return mediator->checks[i];
    }
    return NULL;
}

/* A pool names it again: what was let be is looked at. */
static void resume(struct device *device)
{
    if (device->state != DEVICE_USABLE && !is_under_way(device) &&
        !uv_is_active((uv_handle_t *)&device->timer))
        check_later(device, 0);
}

int devices_add(struct mediator *mediator, unsigned index)
{
    const char *name = mediator->devices[index];
    struct device *device = mediator->checks[index];

    if (device && mediator->started)
        resume(device);
    if (!is_gpu(name) || device)
        return 0;
    device = calloc(1, sizeof(*device));
    if (!device)
        return -1;
    device->mediator = mediator;
    device->name = name;
    device->settled = true;
    uv_timer_init(&mediator->loop, &device->timer);
    device->timer.data = device;
    mediator->checks[index] = device;
    if (mediator->started) {
        device->state = DEVICE_CHECKING;
        check_later(device, 0); /* when its pool has it */
    }
    return 0;
}

void devices_start(struct mediator *mediator)
{
    for (unsigned i = 0; i < mediator->device_count; i++) {
        struct device *device = mediator->checks[i];
        struct gpu_gate_config config;
        struct gpu_gate_report report;
        char user[USER_BYTES];

        if (!device)
            continue;
        config = gate_config(device, user);
        gpu_gate(&config, &report);
        finish(device, &report);
    }
    mediator->started = true;
}

void devices_recheck(struct mediator *mediator)
{
    for (unsigned i = 0; i < mediator->device_count; i++) {
        struct device *device = mediator->checks[i];

        if (device && device->state == DEVICE_UNUSABLE && !is_under_way(device))
            start_check(device);
    }
}

void devices_pause(struct mediator *mediator)
{
    for (unsigned i = 0; i < mediator->device_count; i++) {
        struct device *device = mediator->checks[i];

        if (device && !device->closed && !is_under_way(device) && !is_bound(device))
            uv_timer_stop(&device->timer);
    }
}

void devices_doubt(struct mediator *mediator, const char *name)
{
    struct device *device = find(mediator, name);

    if (!device || device->state != DEVICE_USABLE)
        return;
    device->state = DEVICE_CHECKING;
    if (is_under_way(device))
        device->again = true;
    else
        start_check(device);
    reload_judge(mediator);
}

static void suspect(struct device *device)
{
    uint64_t since_ms;

    if (!device || device->state != DEVICE_USABLE || is_under_way(device) ||
        uv_is_active((uv_handle_t *)&device->timer))
        return;
    since_ms = (clock_monotonic_ns() - device->began_ns) / NS_PER_MS;
    check_later(device, since_ms < SUSPECT_EVERY_MS ? SUSPECT_EVERY_MS - since_ms : 0);
}

void devices_suspect(struct mediator *mediator, const char *names)
{
    char name[CONFIG_DEVICE_BYTES];

    for (unsigned i = 0; text_word(names, i, name, sizeof(name)); i++)
        suspect(find(mediator, name));
}

bool devices_usable(const struct mediator *mediator, const char *name,
                    char why[CONFIG_REASON_BYTES])
{
    const struct device *device = find(mediator, name);

    if (!device || device->state == DEVICE_USABLE)
        return true;
    if (why && device->state == DEVICE_UNUSABLE)
        text_copy(why, CONFIG_REASON_BYTES, device->why);
    else if (why)
        text_copy(why, CONFIG_REASON_BYTES, "it is being checked, try again in some seconds");
    return false;
}

uint64_t devices_context_bytes(const struct mediator *mediator, const char *name)
{
    const struct device *device = find(mediator, name);

    return device ? device->context_bytes : 0;
}

bool devices_all_usable(const struct mediator *mediator, const char *names)
{
    char name[CONFIG_DEVICE_BYTES];

    for (unsigned i = 0; text_word(names, i, name, sizeof(name)); i++) {
        if (!devices_usable(mediator, name, NULL))
            return false;
    }
    return true;
}

bool devices_are_one(const char *a, const char *b)
{
    return (!is_gpu(a) && !is_gpu(b)) || strcmp(a, b) == 0;
}

/* A part of a GPU is all that the process sees which has it. */
static bool are_of_one_model(const struct gpu_device *a, const struct gpu_device *b)
{
    return !a->mig && !b->mig && strcmp(a->name, b->name) == 0 &&
           a->capability_major == b->capability_major &&
           a->capability_minor == b->capability_minor && a->multiprocessors == b->multiprocessors;
}

bool devices_are_alike(const struct mediator *mediator, const char *a, const char *b)
{
    const struct device *first = find(mediator, a), *second = find(mediator, b);

    if (!is_gpu(a) || !is_gpu(b))
        return !is_gpu(a) && !is_gpu(b);
    return first && second && first->gpu.name[0] && are_of_one_model(&first->gpu, &second->gpu);
}

bool devices_failed(const struct mediator *mediator, const char *name)
{
    const struct device *device = find(mediator, name);

    return device && device->state == DEVICE_UNUSABLE;
}

void devices_stop(struct mediator *mediator)
{
    for (unsigned i = 0; i < mediator->device_count; i++) {
        struct device *device = mediator->checks[i];

        if (!device || device->closed)
            continue;
        device->closed = true;
        uv_close((uv_handle_t *)&device->timer, NULL);
        if (!is_under_way(device))
            continue;
        end_process(device);
        close_handle((uv_handle_t *)&device->process);
    }
}

void devices_free(struct mediator *mediator)
{
    for (unsigned i = 0; i < mediator->device_count; i++)
        free(mediator->checks[i]);
}

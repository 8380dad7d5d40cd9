/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which channel, and a session on the window.
 *
 *   --channel file                          ─▶ files
 *   --channel window, --socket              ─▶ window, or the failure
 *   auto: an option that only files know    ─▶ files
 *         the window opens                  ─▶ window
 *         it does not                       ─▶ files; the reason is told
 *
 * What opens the session is libvgpu: the module, without it the registers of the
 * device as root, or a VM's socket on its host.
 */
#include "client.h"

#include <errno.h>
#include <glob.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

const char *window_file_option(const struct options *options)
{
    if (options->directory)
        return "--dir";
    if (options->share_given)
        return "--share";
    if (options->in_place)
        return "--in-place";
    if (options->pool)
        return "--pool";
    if (options->priority >= 0)
        return "--priority";
    return options->vm_id ? "--vm-id" : NULL;
}

/* /dev/vgpu<n> of the device at a PCI address, or its directory in sysfs. */
static void find_path(const struct options *options, char *path, size_t bytes)
{
    char pattern[PATH_MAX];
    glob_t found;

    snprintf(pattern, sizeof(pattern), "%.3000s/bus/pci/devices/%s%.64s/*/vgpu[0-9]*",
             options->sysfs, strlen(options->device) == 7 ? "0000:" : "", options->device);
    if (glob(pattern, 0, NULL, &found) == 0)
        snprintf(path, bytes, "/dev/%s", strrchr(found.gl_pathv[0], '/') + 1);
    else
        snprintf(path, bytes, "%.*s", (int)(strlen(pattern) - strlen("/*/vgpu[0-9]*")), pattern);
    globfree(&found);
}

int window_failure(const struct vgpu_problem *problem, struct failure *failure)
{
    static const struct {
        int status;
        enum failure_code code;
        const char *remedy;
    } table[] = {
        {VGPU_PROBLEM_DENIED, FAILURE_WINDOW_DENIED, "see `vgpu-client doctor`"},
        {VGPU_PROBLEM_BUSY, FAILURE_WINDOW_BUSY,
         "wait for another program of this VM, or let the host give more (sessions_max)"},
        {VGPU_PROBLEM_NO_HOST, FAILURE_WINDOW_HOST,
         "on the host: systemctl status vgpu-mediator, and look at its log"},
        {VGPU_PROBLEM_TIMEOUT, FAILURE_WINDOW_HOST,
         "on the host: systemctl status vgpu-mediator, and look at its log"},
        {VGPU_PROBLEM_CLOSED, FAILURE_WINDOW_ENDED,
         "try again; the mediator's log on the host says why it ended"},
        {VGPU_PROBLEM_SYSTEM, FAILURE_SYSTEM, "look at `dmesg`"},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (table[i].status != problem->status)
            continue;
        failure_set(failure, table[i].code, "%s", problem->text);
        return failure_remedy(failure, "%s", table[i].remedy);
    }
    if (problem->status < VGPU_PROBLEM_NO_DEVICE) {
        failure_set(failure, FAILURE_WINDOW_STATUS, "the host answered: %s", problem->text);
        return failure_remedy(failure, "try again; the mediator's log on the host says more");
    }
    failure_set(failure, FAILURE_WINDOW_MISSING, "%s", problem->text);
    return failure_remedy(failure, "see `vgpu-client doctor`, or use --channel file");
}

/* --- opening, within the timeout -------------------------------------------------------- */

static void interrupt_open(int number)
{
    (void)number; /* open(2) of the device ends with EINTR */
}

static void set_alarm(int64_t ns)
{
    const struct itimerval when = {
        .it_value = {.tv_sec = ns / CLIENT_NS_PER_S, .tv_usec = ns % CLIENT_NS_PER_S / 1000 + 1}};
    const struct sigaction action = {.sa_handler = ns ? interrupt_open : SIG_DFL};

    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, ns ? &when : &(const struct itimerval){0}, NULL);
}

/* Of an HVM guest, which has a device without a window beside the pages that it grants. */
static int check_identity(const struct options *options, struct window *window,
                          struct failure *failure)
{
    struct device_list *list = calloc(1, sizeof(*list));
    struct failure no_bus;
    int result;

    if (!list)
        return failure_set(failure, FAILURE_SYSTEM, "out of memory");
    /* A PV guest may have no PCI bus to look at: then there is no device. */
    device_scan(options->sysfs, NULL, list, &no_bus);
    result = identity_compare(list, window->info.vm_id, window->identity, sizeof(window->identity),
                              failure);
    free(list);
    return result;
}

int window_open(const struct options *options, struct window *ret_window, struct failure *failure)
{
    struct vgpu_options way = VGPU_OPTIONS_DEFAULT;
    struct vgpu_problem problem;
    struct window window = {0};
    char path[PATH_MAX];
    int result;

    way.spin_us = options->spin_us;
    way.open_timeout_ms = (uint32_t)(options->timeout_ns / CLIENT_NS_PER_MS) + 1;
    way.path = options->socket;
    if (options->socket) {
        way.transport = VGPU_TRANSPORT_SOCKET;
    } else if (options->device) {
        find_path(options, path, sizeof(path));
        way.path = path;
    }
    set_alarm(options->timeout_ns);
    result = vgpu_open(&way, &window.session, &problem);
    set_alarm(0);
    if (result < 0)
        return window_failure(&problem, failure);
    vgpu_session_info(window.session, &window.info);
    if (window.info.transport == VGPU_TRANSPORT_XEN &&
        check_identity(options, &window, failure) < 0) {
        window_close(&window);
        return -1;
    }
    *ret_window = window;
    return 0;
}

static const char *why_window(const struct options *options)
{
    if (options->socket)
        return options->socket_is_environment ? "VGPU_SOCKET names it" : "--socket was given";
    if (options->channel == CHANNEL_WINDOW)
        return "--channel window was given";
    return "the best that is there";
}

int window_choose(const struct options *options, struct window *ret_window, struct failure *failure)
{
    struct window window = {0};
    const char *option = window_file_option(options);

    if (options->channel == CHANNEL_FILE) {
        snprintf(window.reason, sizeof(window.reason), "--channel file was given");
    } else if (options->channel == CHANNEL_AUTO && !options->socket && option) {
        snprintf(window.reason, sizeof(window.reason), "%s was given", option);
    } else if (window_open(options, &window, failure) == 0) {
        snprintf(window.reason, sizeof(window.reason), "%s", why_window(options));
    } else if (options->channel == CHANNEL_WINDOW || options->socket ||
               failure->code == FAILURE_DEVICE_VALUES) {
        return -1; /* who does not know who it is asks nobody */
    } else {
        window.code = failure->code;
        snprintf(window.reason, sizeof(window.reason), "no window: %.400s", failure->text);
        *failure = (struct failure){0};
    }
    *ret_window = window;
    return 0;
}

void window_close(struct window *window)
{
    vgpu_close(window->session);
    window->session = NULL;
}

/* --- who and where --------------------------------------------------------------------------- */

void window_print(const struct window *window, FILE *out)
{
    const struct vgpu_session_info *info = &window->info;
    const char *transport = info->transport == VGPU_TRANSPORT_SYSFS
                                ? "without the module: slow, one process at a time"
                                : vgpu_transport_name(info->transport);

    bool is_xen = info->transport == VGPU_TRANSPORT_XEN;

    fprintf(out, "session  slot %u of %s, pool %c, priority %s (%u), vm %u\n", info->slot,
            info->path, info->pool ? info->pool : '?', text_priority_name(info->priority),
            info->priority, info->vm_id);
    fprintf(out, "channel  %s of %.1f MiB, %s, %s (%s)\n", is_xen ? "granted pages" : "window",
            (double)info->slot_bytes / (1 << 20), transport, info->cached ? "cached" : "uncached",
            window->reason);
    if (window->identity[0])
        fprintf(out, "identity %s\n", window->identity);
}

void window_json(const struct window *window, struct json *json)
{
    const struct vgpu_session_info *info = &window->info;
    const char pool[2] = {info->pool, '\0'};

    json_open(json, "device", '{');
    json_null(json, "address");
    json_null(json, "version");
    json_string(json, "pool", pool);
    json_integer(json, "priority", info->priority);
    json_string(json, "priority_name", text_priority_name(info->priority));
    json_integer(json, "vm_id", info->vm_id);
    json_close(json, '}');
    window_json_channel(window, json);
}

void window_json_channel(const struct window *window, struct json *json)
{
    const struct vgpu_session_info *info = &window->info;

    json_open(json, "channel", '{');
    json_string(json, "kind", info->transport == VGPU_TRANSPORT_XEN ? "xen" : "window");
    json_string(json, "transport", vgpu_transport_name(info->transport));
    json_string(json, "path", info->path);
    json_integer(json, "slot", info->slot);
    json_integer(json, "slot_bytes", (int64_t)info->slot_bytes);
    json_integer(json, "generation", info->generation);
    json_bool(json, "cached", info->cached);
    json_string(json, "reason", window->reason);
    if (window->identity[0])
        json_string(json, "identity", window->identity);
    json_close(json, '}');
}

/* --- one request ---------------------------------------------------------------------------------
 */

static int answer_of(const struct vgpu_result *result, const char *answer, uint32_t room,
                     struct window_exchange *exchange, const char *command, struct failure *failure)
{
    bool is_error = result->status == VGPU_COMMAND_FAILED;
    uint32_t bytes = result->value < room ? (uint32_t)result->value : room;

    if (result->status != VGPU_OK && !is_error) {
        failure_set(failure, FAILURE_WINDOW_STATUS, "the host answered: %s",
                    vgpu_status_text((int)result->status));
        return failure_remedy(failure, "try again; the mediator's log on the host says more");
    }
    exchange->answered = true;
    exchange->answer[0] = is_error ? VGPU_STATUS_CHAR_ERROR : VGPU_STATUS_CHAR_SUCCESS;
    exchange->answer[1] = ':';
    text_show(exchange->answer + 2, sizeof(exchange->answer) - 2, answer, bytes);
    if (!is_error)
        return 0;
    failure_set(failure, FAILURE_ERROR_ANSWER, "the mediator answered: %.1400s",
                exchange->answer + 2);
    return failure_remedy(failure, "the answer says what was wrong with the request '%s'", command);
}

static int wait_answer(const struct options *options, struct vgpu_session *session,
                       vgpu_ticket ticket, struct vgpu_result *ret_result, struct failure *failure)
{
    struct vgpu_problem problem;

    if (vgpu_wait(session, ticket, options->timeout_ns / 1000, ret_result, &problem) == 0)
        return 0;
    if (problem.status != VGPU_PROBLEM_TIMEOUT)
        return window_failure(&problem, failure);
    failure_set(failure, FAILURE_TIMEOUT_NO_ANSWER,
                "no answer came through the window within %.3g s; the request is queued or running",
                (double)options->timeout_ns / 1e9);
    return failure_remedy(failure, "wait longer with --timeout, or see what runs before it in the "
                                   "mediator's log on the host");
}

int window_exchange(const struct options *options, const struct window *window,
                    struct window_exchange *exchange, struct failure *failure)
{
    const uint32_t command_bytes = (uint32_t)strlen(options->command);
    char *memory =
        vgpu_heap_alloc(window->session, VGPU_COMMAND_MAX_BYTES + 1 + WINDOW_ANSWER_BYTES);
    char *answer = memory + VGPU_COMMAND_MAX_BYTES + 1;
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_TEXT};
    struct vgpu_problem problem;
    struct vgpu_result result;
    vgpu_ticket ticket;
    int64_t begin_ns = clock_now_ns();

    if (!memory)
        return failure_set(failure, FAILURE_SYSTEM, "the window has no room for a command");
    memcpy(memory, options->command, command_bytes);
    descriptor.text.command_offset = vgpu_heap_offset(window->session, memory);
    descriptor.text.command_bytes = command_bytes;
    descriptor.text.answer_offset = vgpu_heap_offset(window->session, answer);
    descriptor.text.answer_bytes = WINDOW_ANSWER_BYTES;
    if (vgpu_submit(window->session, &descriptor, NULL, NULL, &ticket, &problem) < 0)
        return window_failure(&problem, failure);
    if (wait_answer(options, window->session, ticket, &result, failure) < 0)
        return -1;
    exchange->took_ns = clock_now_ns() - begin_ns;
    return answer_of(&result, answer, WINDOW_ANSWER_BYTES, exchange, options->command, failure);
}

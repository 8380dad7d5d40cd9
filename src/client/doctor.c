/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `vgpu-client doctor`: one line a check, in the order in which a request needs
 * them; what is wrong comes with its remedy.
 *
 *   device, memory space, registers     here: sysfs does not hang
 *   window, module, session, answer     doctor_window.c
 *   share, directory, files, clock      doctor_share.c, in a child
 *   mediator                            a real PING through exchange.c
 */
#include "client.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define DOCTOR_TIMEOUT_NS (5 * CLIENT_NS_PER_S)
#define DOCTOR_CHECKS_MAX 24

struct check {
    enum check_status status;
    char name[32];
    char text[1536];
    char remedy[768];
};

struct doctor {
    const struct options *options;
    struct identity identity;
    struct check checks[DOCTOR_CHECKS_MAX];
    unsigned count;
    unsigned tally[CHECK_FAIL + 1];
    int exit_code; /* of the first failed check */
    /* what the child said last */
    char step[32];
    enum doctor_share_state state;
    bool stopped;
    bool window_works; /* what is wrong with files is then no more than a warning */
};

static const char *const status_words[] = {"pass", "warn", "fail"};

static void add(void *context, enum check_status status, int exit_code, const char *name,
                const char *remedy, const char *format, ...) __attribute__((format(printf, 6, 7)));

static void add(void *context, enum check_status status, int exit_code, const char *name,
                const char *remedy, const char *format, ...)
{
    struct doctor *doctor = context;
    struct check *check = &doctor->checks[doctor->count];
    va_list args;

    if (doctor->count == DOCTOR_CHECKS_MAX)
        return;
    doctor->count++;
    if (status == CHECK_FAIL && doctor->window_works)
        status = CHECK_WARN;
    doctor->tally[status]++;
    check->status = status;
    snprintf(check->name, sizeof(check->name), "%s", name);
    snprintf(check->remedy, sizeof(check->remedy), "%.767s", remedy);
    va_start(args, format);
    vsnprintf(check->text, sizeof(check->text), format, args);
    va_end(args);
    if (status == CHECK_FAIL && doctor->exit_code == 0)
        doctor->exit_code = exit_code;
    if (doctor->options->json || (doctor->options->quiet && status == CHECK_PASS))
        return;
    printf("%s  %-13s  %s\n", status_words[status], check->name, check->text);
    if (status != CHECK_PASS && check->remedy[0])
        printf("      %-13s  %s\n", "remedy", check->remedy);
    fflush(stdout);
}

static void add_failure(struct doctor *doctor, const char *name, const struct failure *failure)
{
    add(doctor, CHECK_FAIL, failure->exit_code, name, failure->remedy, "%s", failure->text);
}

/* --- the device -------------------------------------------------------------------- */

static void check_memory_space(struct doctor *doctor, const struct device *device)
{
    static const char name[] = "memory space";

    if (device->memory_space == MEMORY_SPACE_SWITCHED_ON)
        add(doctor, CHECK_PASS, 0, name, "",
            "was off in the PCI command register; switched on by writing 1 to enable of %s",
            device->address);
    else if (device->memory_space == MEMORY_SPACE_ON)
        add(doctor, CHECK_PASS, 0, name, "", "on (bit 1 of the PCI command register of %s)",
            device->address);
    else
        add(doctor, CHECK_WARN, 0, name, "none is needed if the registers below are right",
            "looked at the PCI command register in config of %s: cannot read it", device->address);
}

static void check_registers(struct doctor *doctor, const struct device *device)
{
    static const char name[] = "registers";
    uint32_t status = device_register(device, VGPU_REG_STATUS);

    if (!(status & VGPU_STATUS_READY))
        add(doctor, CHECK_WARN, 0, name,
            "wait a second and look again; start the VM again if it stays",
            "status 0x%08x: the device does not say that its registers are valid", status);
    else
        add(doctor, CHECK_PASS, 0, name, "", "pool %c, priority %s (%u), vm %u",
            doctor->identity.pool, text_priority_name(doctor->identity.priority),
            doctor->identity.priority, doctor->identity.vm_id);
}

static int check_device(struct doctor *doctor, const struct device_list *list)
{
    struct failure failure;
    const struct device *device = device_choose(list, doctor->options->device, &failure);
    uint32_t version;

    if (!device) {
        add_failure(doctor, "device", &failure);
        return -1;
    }
    add(doctor, CHECK_PASS, 0, "device", "", "%s in %.300s, class 0x%06x", device->address,
        list->path, device->class_code);
    version = device_register(device, VGPU_REG_VERSION);
    add(doctor, CHECK_PASS, 0, "magic", "", "0x%08x, version %u.%u",
        device_register(device, VGPU_REG_MAGIC), version >> 16, version & 0xffff);
    check_memory_space(doctor, device);
    if (identity_from(doctor->options, list, &doctor->identity, &failure) < 0) {
        add_failure(doctor, "registers", &failure);
        return -1;
    }
    check_registers(doctor, device);
    return 0;
}

/* With --vm-id or --dir the share can be looked at even without a device. */
static int find_identity(struct doctor *doctor)
{
    const struct options *options = doctor->options;
    struct options assumed = *options;
    struct failure failure;
    struct device_list *list = calloc(1, sizeof(*list));
    int result = -1;

    if (!identity_needs_device(options)) {
        add(doctor, CHECK_WARN, 0, "device", "none is needed with these three options",
            "not looked for: --pool, --priority and --vm-id are given");
        result = identity_from(options, NULL, &doctor->identity, &failure);
    } else if (!list) {
        failure_set(&failure, FAILURE_SYSTEM, "out of memory");
        add_failure(doctor, "device", &failure);
    } else if (device_scan(options->sysfs, options->device, list, &failure) < 0) {
        add_failure(doctor, "device", &failure);
    } else {
        result = check_device(doctor, list);
    }
    free(list);
    if (result == 0 || !(options->vm_id || options->directory))
        return result;
    assumed.pool = options->pool ? options->pool : 'A';
    assumed.priority = options->priority < 0 ? 0 : options->priority;
    assumed.vm_id = options->vm_id ? options->vm_id : 1;
    return identity_from(&assumed, NULL, &doctor->identity, &failure) < 0 ? -1 : 1;
}

/* --- the share ----------------------------------------------------------------------- */

static void take_report(const struct report *report, void *context)
{
    struct doctor *doctor = context;

    switch (report->kind) {
    case REPORT_STEP:
        snprintf(doctor->step, sizeof(doctor->step), "%s", report->name);
        break;
    case REPORT_CHECK:
        add(doctor, (enum check_status)report->value, CLIENT_EXIT_SHARE, report->name,
            report->remedy, "%s", report->text);
        break;
    case REPORT_STOPPED:
        doctor->stopped = true;
        doctor->state = (enum doctor_share_state)report->value;
        break;
    default:
        break;
    }
}

static void work(struct guard *guard, void *context)
{
    const struct doctor *doctor = context;
    char share[PATH_MAX];
    struct doctor_share job = {.directory = doctor->identity.directory};

    if (!doctor->options->directory &&
        text_normalize_path(doctor->options->share, share, sizeof(share)))
        job.share = share;
    doctor_share_work(guard, &job);
}

static int64_t timeout_of(const struct options *options)
{
    return options->timeout_given ? options->timeout_ns : DOCTOR_TIMEOUT_NS;
}

static int check_share(struct doctor *doctor)
{
    int64_t timeout_ns = timeout_of(doctor->options);
    struct failure failure;
    enum guard_end end;

    if (guard_run(work, take_report, doctor, clock_now_ns() + timeout_ns, &end, &failure) < 0) {
        add_failure(doctor, "share", &failure);
        return -1;
    }
    if (doctor->stopped)
        return doctor->state == DOCTOR_SHARE_UNUSABLE ? -1 : 0;
    if (end == GUARD_HUNG)
        add(doctor, CHECK_FAIL, CLIENT_EXIT_TIMEOUT, doctor->step,
            "check the network and the NFS server on the host, and `dmesg` here for \"server not "
            "responding\"",
            "the share at %.300s did not respond within %.3g s", doctor->identity.directory,
            (double)timeout_ns / 1e9);
    else
        add(doctor, CHECK_FAIL, CLIENT_EXIT_SYSTEM, doctor->step, "look at `dmesg`",
            "the process that looks at the share died");
    return -1;
}

/* --- the mediator ---------------------------------------------------------------------- */

static void ask_mediator(struct doctor *doctor)
{
    static const char name[] = "mediator";
    char line[VGPU_REQUEST_MAX_BYTES + 2];
    struct failure failure;
    struct exchange exchange = {.directory = doctor->identity.directory,
                                .line = line,
                                .timeout_ns = timeout_of(doctor->options),
                                .in_place = doctor->options->in_place,
                                .verbose = doctor->options->verbose,
                                .quiet = true,
                                .try_lock_once = true};

    exchange_format_line(&doctor->identity, "PING", line, sizeof(line));
    if (exchange_run(&exchange, &failure) == 0)
        add(doctor, CHECK_PASS, 0, name, "", "answered PING in %.1f ms: %.300s",
            (double)(exchange.answered_ns - exchange.sent_ns) / 1e6, exchange.answer);
    else if (failure.code == FAILURE_TIMEOUT_BUSY)
        add(doctor, CHECK_WARN, 0, name, "run the doctor again when it is through",
            "not asked: %.1000s", failure.text);
    else
        add_failure(doctor, name, &failure);
}

static void check_mediator(struct doctor *doctor, bool share_works, bool identity_known)
{
    static const char name[] = "mediator";

    if (guard_wait_signal(0))
        return;
    if (!share_works)
        add(doctor, CHECK_WARN, 0, name, "see the failed check above", "not asked");
    else if (!identity_known)
        add(doctor, CHECK_WARN, 0, name, "give --pool, --priority and --vm-id",
            "not asked: it is not known who this VM is");
    else if (doctor->state == DOCTOR_SHARE_PENDING)
        add(doctor, CHECK_WARN, 0, name,
            "run the doctor again; if it stays, the mediator does not take requests: is it "
            "running? On the host: systemctl status vgpu-mediator",
            "not asked: a request or an answer waits in %.300s for its reader",
            doctor->identity.directory);
    else
        ask_mediator(doctor);
}

/* --- the whole --------------------------------------------------------------------------- */

static void print_json(const struct doctor *doctor, int exit_code)
{
    struct json json;

    json_begin(&json, stdout);
    json_open(&json, "checks", '[');
    for (unsigned i = 0; i < doctor->count; i++) {
        json_open(&json, NULL, '{');
        json_string(&json, "name", doctor->checks[i].name);
        json_string(&json, "status", status_words[doctor->checks[i].status]);
        json_string(&json, "text", doctor->checks[i].text);
        json_string(&json, "remedy", doctor->checks[i].remedy);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    for (unsigned i = CHECK_PASS; i <= CHECK_FAIL; i++)
        json_integer(&json, status_words[i], doctor->tally[i]);
    json_end(&json, exit_code, NULL);
}

static void check_window(struct doctor *doctor)
{
    const struct options *options = doctor->options;
    struct options limited = *options;
    struct doctor_window job = {
        .options = &limited,
        .device = doctor->identity.has_device ? &doctor->identity.device : NULL,
        .severity = options->channel == CHANNEL_WINDOW || options->socket ? CHECK_FAIL : CHECK_WARN,
        .add = add,
        .context = doctor};

    doctor->window_works = false;
    limited.timeout_ns = timeout_of(options);
    doctor->window_works = doctor_window_work(&job);
}

static bool wants_window(const struct options *options)
{
    return options->socket || options->channel == CHANNEL_WINDOW ||
           (options->channel == CHANNEL_AUTO && !window_file_option(options));
}

/* Where a session opens, registers that this user cannot read are no failure. */
static void try_window(struct doctor *doctor)
{
    struct options limited = *doctor->options;
    struct failure failure;
    struct window window;

    limited.timeout_ns = timeout_of(doctor->options);
    if (window_open(&limited, &window, &failure) < 0)
        return;
    doctor->window_works = true;
    window_close(&window);
}

static int examine(struct doctor *doctor)
{
    int identity = 0;
    int signal_number;

    if (wants_window(doctor->options))
        try_window(doctor);
    if (!doctor->options->socket)
        identity = find_identity(doctor);
    if (wants_window(doctor->options))
        check_window(doctor);
    if (doctor->options->socket || doctor->options->channel == CHANNEL_WINDOW)
        return doctor->exit_code;
    if (identity < 0)
        add(doctor, CHECK_WARN, 0, "share",
            "give --vm-id or --dir to look at the share all the same",
            "not looked at: the VM's id is not known");
    else
        check_mediator(doctor, check_share(doctor) == 0, identity == 0);
    signal_number = guard_wait_signal(0);
    return signal_number ? 128 + signal_number : doctor->exit_code;
}

int command_doctor(const struct options *options)
{
    struct doctor *doctor = calloc(1, sizeof(*doctor));
    struct failure failure = {0};
    int result;

    if (!doctor)
        failure_set(&failure, FAILURE_SYSTEM, "out of memory");
    if (!doctor || guard_catch_signals(&failure) < 0) {
        free(doctor);
        return command_fail(options, &failure);
    }
    doctor->options = options;
    result = examine(doctor);
    if (options->json)
        print_json(doctor, result);
    else
        printf("doctor: %u passed, %u warnings, %u failed\n", doctor->tally[CHECK_PASS],
               doctor->tally[CHECK_WARN], doctor->tally[CHECK_FAIL]);
    free(doctor);
    return result;
}

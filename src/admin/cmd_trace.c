/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin trace: the decision log, for Perfetto and chrome://tracing or as CSV for vgpu-sim.
 * It is read from the mediator's files, so it can be had while the mediator is down, too.
 */
#include "admin/commands.h"
#include "trace/trace.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LAST_MAX_S 604800u

enum { KEY_FORMAT = 0x100, KEY_VM, KEY_LAST, KEY_OUTPUT };

static const struct argp_option options[] = {
    {"format", KEY_FORMAT, "FORMAT", 0, "chrome (for Perfetto; the default) or csv (for vgpu-sim)",
     1},
    {"vm", KEY_VM, "VM", 0, "Only this VM", 1},
    {"last", KEY_LAST, "SECONDS", 0, "Only the last so many seconds", 1},
    {"output", KEY_OUTPUT, "FILE", 0, "Write it there, and say how much it is", 1},
    {0},
};

struct input {
    struct admin *admin;
    const char *vm, *output;
    bool csv;
    uint64_t last_s; /* 0: all */
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;

    switch (key) {
    case KEY_FORMAT:
        input->csv = strcmp(value, "csv") == 0;
        if (!input->csv && strcmp(value, "chrome") != 0)
            return admin_usage(input->admin, "--format: '%s': expected chrome or csv", value);
        return 0;
    case KEY_VM:
        input->vm = value;
        return 0;
    case KEY_LAST:
        if (!text_parse_u64(value, 1, LAST_MAX_S, &input->last_s))
            return admin_usage(input->admin, "--last: '%s': expected seconds from 1 to %u", value,
                               LAST_MAX_S);
        return 0;
    case KEY_OUTPUT:
        input->output = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {options, parse};

/* --- reading ------------------------------------------------------------------------------ */

/* A number needs no database, which may not know the VM any more. */
static int find_vm(struct admin *admin, const char *word, uint32_t *ret_vm_id,
                   struct vgpu_error *error)
{
    struct store_vm vm = {0};
    struct store *store;
    uint64_t number;
    int result;

    if (text_parse_u64(word, 1, UINT32_MAX, &number)) {
        *ret_vm_id = (uint32_t)number;
        return 0;
    }
    if (admin_open_store(admin, STORE_READ, &store, error) < 0)
        return -1;
    result = store_find_vm(store, word, &vm, error);
    store_close(store);
    if (result == 0)
        *ret_vm_id = vm.vm_id;
    return result;
}

/* A VM with nothing in the log: whether database or mediator knows it, or neither can say. */
static int check_known(struct admin *admin, uint32_t vm_id, struct vgpu_error *error)
{
    json_t *arguments = json_pack("{s:I}", "vm_id", (json_int_t)vm_id), *status;
    struct vgpu_error inner;
    struct store_vm vm;
    struct store *store;
    bool is_unknown = false, is_known;

    is_known = live_call(admin, "status", arguments, &status, &inner) == 0;
    json_decref(arguments);
    if (is_known)
        json_decref(status);
    else
        is_unknown = inner.code == ENOENT && admin->failed_exit != ADMIN_NOT_RUNNING;
    if (!is_known && admin_open_store(admin, STORE_READ, &store, &inner) == 0) {
        is_known = store_get_vm(store, vm_id, &vm, &inner) == 0;
        is_unknown |= !is_known && inner.code == ENOENT;
        store_close(store);
    }
    admin->failed_exit = 0; /* of a mediator or database that is not there */
    if (is_known || !is_unknown)
        return 0;
    return error_set(
        error, ENOENT,
        "no VM %u is registered, and the log has nothing of one; 'vgpu-admin list-vms' "
        "shows those that are",
        vm_id);
}

static int read_log(const struct input *input, struct trace_log *log, struct vgpu_error *error)
{
    struct trace_filter filter = {0};
    uint64_t now_ns = clock_monotonic_ns();
    struct vgpu_error inner;

    if (settings_read(input->admin, error) < 0 ||
        (input->vm && find_vm(input->admin, input->vm, &filter.vm_id, error) < 0))
        return -1;
    if (input->last_s > 0 && now_ns > input->last_s * NS_PER_S)
        filter.since_ns = now_ns - input->last_s * NS_PER_S;
    if (trace_read_directory(log, input->admin->run_dir, &filter, &inner) == 0)
        return filter.vm_id != 0 && log->entry_count == 0
                   ? check_known(input->admin, filter.vm_id, error)
                   : 0;
    input->admin->failed_exit = ADMIN_FAILED;
    if (inner.code == ENOENT)
        return error_set(error, ENOENT,
                         "there is no decision log in '%s': has a mediator run since this host "
                         "started, and is trace_kib more than 0 in its configuration?",
                         input->admin->run_dir);
    return error_set(error, inner.code, "%s", inner.message);
}

/* --- writing ------------------------------------------------------------------------------- */

static void write_log(const struct input *input, const struct trace_log *log, FILE *file)
{
    size_t bare;

    if (!input->csv) {
        trace_write_chrome(log, file);
        return;
    }
    bare = trace_write_csv(log, file);
    if (bare > 0)
        fprintf(stderr,
                "vgpu-admin: note: %zu grants without operations: their sessions have ended, or "
                "the records were written over; vgpu-sim replays the others only\n",
                bare);
}

static int write_file(const struct input *input, const struct trace_log *log,
                      struct vgpu_error *error)
{
    FILE *file = fopen(input->output, "we");
    int code = 0;

    input->admin->failed_exit = ADMIN_FAILED;
    if (!file)
        return error_set_errno(error, "cannot make '%s'", input->output);
    errno = 0;
    write_log(input, log, file);
    if (ferror(file) || fflush(file) != 0)
        code = errno ? errno : EIO;
    if (fclose(file) != 0 && code == 0)
        code = errno;
    return code == 0
               ? 0
               : error_set(error, code, "cannot write '%s': %s", input->output, strerror(code));
}

/* How much there is, and how much was missed. */
static void say_summary(struct admin *admin, const struct trace_log *log)
{
    unsigned long long lost = 0, rejected = 0, records = log->entry_count;
    size_t files = log->source_count;

    for (size_t i = 0; i < log->source_count; i++) {
        lost += log->sources[i].lost;
        rejected += log->sources[i].rejected;
    }
    if (admin->json) {
        output_json(json_pack("{s:I, s:I, s:I, s:I}", "records", (json_int_t)records, "files",
                              (json_int_t)files, "overwritten", (json_int_t)lost, "rejected",
                              (json_int_t)rejected));
        return;
    }
    output_say(admin, "%llu records of %zu files; %llu older ones were written over.", records,
               files, lost);
    if (rejected > 0)
        output_say(admin, "%llu made no sense, and are left out.", rejected);
}

int cmd_trace(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin};
    int result = admin_parse(admin, &argp, argc, argv, &input);
    struct trace_log log = {0};
    struct vgpu_error error;

    if (result)
        return result;
    if (read_log(&input, &log, &error) < 0 ||
        (input.output && write_file(&input, &log, &error) < 0))
        result = admin_fail(admin, &error);
    else if (input.output)
        say_summary(admin, &log);
    else
        write_log(&input, &log, stdout);
    trace_log_clear(&log);
    return result;
}

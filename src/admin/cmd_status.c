/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin status: mediator, pools, VMs and their queues on one screen. */
#include "admin/commands.h"
#include "admin/gpu_view.h"
#include "admin/live_view.h"

#include <stdio.h>

#define VMS_SHOWN 100u /* that a person may still want to see */

static const struct argp_option options[] = {
    {"all", 'a', NULL, 0, "Show all VMs, not only the first 100", 1},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    bool *all = state->input;

    (void)value;
    if (key != 'a')
        return ARGP_ERR_UNKNOWN;
    *all = true;
    return 0;
}

static const struct argp argp = {options, parse};

static const struct output_column pool_columns[] = {
    {"id", "POOL", false},         {"name", "NAME", false},      {"device", "DEVICE", false},
    {"sharing", "SHARING", false}, {"state", "STATE", false},    {"vms", "VMS", true},
    {"waiting", "WAITING", true},  {"running", "RUNNING", true},
};

static const struct output_column vm_columns[] = {
    {"vm_id", "VM", true},         {"name", "NAME", false},
    {"pool", "POOL", false},       {"priority", "PRIORITY", false},
    {"state", "STATE", false},     {"sessions", "SESSIONS", true},
    {"depth", "QUEUE", true},      {"runs", "RUNS", false},
    {"operations", "DONE", true},  {"p50", "P50", true},
    {"p99", "P99", true},          {"time", "DEVICE TIME", true},
    {"refusals", "REFUSED", true},
};

static void print_pools(struct admin *admin, const json_t *pools)
{
    struct output *table = output_new(admin, pool_columns, VGPU_ARRAY_LENGTH(pool_columns));
    const json_t *pool;
    size_t i;

    json_array_foreach(pools, i, pool)
    {
        output_text(table, view_text(pool, "id"));
        output_text(table, view_text(pool, "name"));
        output_text(table, view_text(pool, "device"));
        output_text(table, view_text(pool, "sharing"));
        output_text(table, view_flag(pool, "enabled") ? "enabled" : "disabled");
        output_number(table, view_number(pool, "vms"));
        output_number(table, view_number(pool, "waiting"));
        output_number(table, view_number(pool, "running"));
        output_end_row(table);
    }
    output_print(table, "There is no pool.");
    output_free(table);
}

static void print_gpus(struct admin *admin, const json_t *status)
{
    const json_t *driver = json_object_get(json_object_get(status, "gpu_watch"), "driver");
    const char *problem = view_text(driver, "problem");

    gpu_view_print(admin, json_object_get(status, "gpus"), "The driver has told of no GPU yet.");
    if (problem[0])
        output_say(admin, "Problem: %s.", problem);
}

static const char *runs_of(const json_t *vm)
{
    if (view_flag(vm, "running"))
        return "yes";
    if (view_number(vm, "contexts_waiting") > view_number(vm, "contexts_waiting_own"))
        return "waits for a context";
    return view_number(vm, "contexts_waiting") > 0 ? "has its share of contexts" : "no";
}

static void add_vm(struct output *table, const json_t *vm)
{
    const json_t *times = view_times(vm);
    char text[VIEW_TEXT_BYTES];

    output_number(table, view_number(vm, "vm_id"));
    output_text(table, view_text(vm, "name"));
    output_text(table, view_text(vm, "pool"));
    output_text(table, output_priority((unsigned)view_number(vm, "priority")));
    output_text(table, view_text(vm, "state"));
    output_number(table, view_number(vm, "sessions"));
    output_number(table, view_number(vm, "depth"));
    output_text(table, runs_of(vm));
    output_number(table, view_number(vm, "operations"));
    view_duration(view_number(times, "p50_us"), text);
    output_text(table, text);
    view_duration(view_number(times, "p99_us"), text);
    output_text(table, text);
    view_duration(view_number(vm, "device_us"), text);
    output_text(table, text);
    output_number(table, view_number(vm, "refusals"));
    output_end_row(table);
}

static void print_vms(struct admin *admin, const json_t *vms, bool all)
{
    struct output *table = output_new(admin, vm_columns, VGPU_ARRAY_LENGTH(vm_columns));
    size_t count = json_array_size(vms), shown = all || count < VMS_SHOWN ? count : VMS_SHOWN;

    for (size_t i = 0; i < shown; i++)
        add_vm(table, json_array_get(vms, i));
    output_print(table, "The mediator knows no VM.");
    output_free(table);
    if (shown < count)
        output_say(admin, "... and %zu more: --all shows them.", count - shown);
}

int cmd_status(struct admin *admin, int argc, char **argv)
{
    bool all = false;
    int result = admin_parse(admin, &argp, argc, argv, &all);
    struct vgpu_error error;
    json_t *status;

    if (result)
        return result;
    if (live_status(admin, &status, &error) < 0)
        return admin_fail(admin, &error);
    if (admin->json) {
        output_json(status);
        return ADMIN_OK;
    }
    view_say_mediator(admin, json_object_get(status, "mediator"));
    putchar('\n');
    print_pools(admin, json_object_get(status, "pools"));
    if (view_flag(json_object_get(status, "gpu_watch"), "on")) {
        putchar('\n');
        print_gpus(admin, status);
    }
    view_say_devices(admin, json_object_get(status, "devices"));
    putchar('\n');
    print_vms(admin, json_object_get(status, "vms"), all);
    json_decref(status);
    return ADMIN_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin stats: what was done, what was refused, and how long it took. */
#include "admin/commands.h"
#include "admin/live_view.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { KEY_VM = 0x100, KEY_POOL };

static const struct argp_option options[] = {
    {"vm", KEY_VM, "VM", 0, "Only this VM", 1},
    {"pool", KEY_POOL, "POOL", 0, "Only this pool and its VMs", 1},
    {0},
};

struct input {
    const char *vm, *pool;
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;

    switch (key) {
    case KEY_VM:
        input->vm = value;
        return 0;
    case KEY_POOL:
        input->pool = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {options, parse};

/* --- what is asked for --------------------------------------------------------------------- */

/* Numbers and letters need no database, which the mediator may do without. */
static int add_vm(struct admin *admin, const char *word, json_t *arguments,
                  struct vgpu_error *error)
{
    struct store_vm vm = {0};
    struct store *store;
    uint64_t vm_id;
    int result;

    if (text_parse_u64(word, 1, UINT32_MAX, &vm_id)) {
        json_object_set_new(arguments, "vm_id", json_integer((json_int_t)vm_id));
        return 0;
    }
    if (admin_open_store(admin, STORE_READ, &store, error) < 0)
        return -1;
    result = store_find_vm(store, word, &vm, error);
    store_close(store);
    if (result == 0)
        json_object_set_new(arguments, "vm_id", json_integer(vm.vm_id));
    return result;
}

static int add_pool(struct admin *admin, const char *word, json_t *arguments,
                    struct vgpu_error *error)
{
    struct store_pool pool = {0};
    char letter[2] = {word[0], '\0'};
    struct store *store;
    int result;

    if (word[0] == '\0' || word[1] != '\0') {
        if (admin_open_store(admin, STORE_READ, &store, error) < 0)
            return -1;
        result = store_find_pool(store, word, &pool, error);
        store_close(store);
        if (result < 0)
            return -1;
        letter[0] = pool.id;
    }
    json_object_set_new(arguments, "pool", json_string(letter));
    return 0;
}

static int make_arguments(struct admin *admin, const struct input *input, json_t *arguments,
                          struct vgpu_error *error)
{
    if (input->vm && add_vm(admin, input->vm, arguments, error) < 0)
        return -1;
    return input->pool ? add_pool(admin, input->pool, arguments, error) : 0;
}

/* --- tables ---------------------------------------------------------------------------------- */

static const struct output_column pool_columns[] = {
    {"pool", "POOL", false},          {"priority", "PRIORITY", false},
    {"operations", "DONE", true},     {"time", "DEVICE TIME", true},
    {"wait_p50", "WAIT P50", true},   {"wait_p99", "WAIT P99", true},
    {"run_p50", "RUN P50", true},     {"run_p99", "RUN P99", true},
    {"total_p50", "TOTAL P50", true}, {"total_p99", "TOTAL P99", true},
    {"total_p999", "P99.9", true},    {"total_max", "MAX", true},
    {"refusals", "REFUSED", true},    {"faults", "FAULTS", true},
};

static const struct output_column vm_columns[] = {
    {"vm_id", "VM", true},
    {"name", "NAME", false},
    {"pool", "POOL", false},
    {"priority", "PRIORITY", false},
    {"operations", "DONE", true},
    {"time", "DEVICE TIME", true},
    {"depth", "QUEUE", true},
    {"wait_p50", "WAIT P50", true},
    {"wait_p99", "WAIT P99", true},
    {"total_p50", "TOTAL P50", true},
    {"total_p99", "TOTAL P99", true},
    {"total_max", "MAX", true},
    {"refusals", "REFUSED", true},
    {"faults", "FAULTS", true},
    {"restarts", "RESTARTS", true},
};

static const struct output_column device_columns[] = {
    {"device", "DEVICE", false},    {"busy", "BUSY", true},         {"used", "USED", true},
    {"switches", "SWITCHES", true}, {"sessions", "SESSIONS", true},
};

static void add_duration(struct output *table, uint64_t us)
{
    char text[VIEW_TEXT_BYTES];

    view_duration(us, text);
    output_text(table, text);
}

static void add_percentile(struct output *table, const json_t *durations, const char *which,
                           const char *key)
{
    add_duration(table, view_number(json_object_get(durations, which), key));
}

/* Of all reasons or kinds. */
static uint64_t sum_of(const json_t *object, const char *key)
{
    json_t *numbers = json_object_get(object, key), *number;
    const char *reason;
    uint64_t sum = 0;

    json_object_foreach(numbers, reason, number) sum += (uint64_t)json_integer_value(number);
    return sum;
}

static void add_pool_row(struct output *table, const json_t *pool)
{
    const json_t *durations = json_object_get(pool, "since_start");

    output_text(table, view_text(pool, "pool"));
    output_text(table, output_priority((unsigned)view_number(pool, "priority")));
    output_number(table, view_number(pool, "operations"));
    add_duration(table, view_number(pool, "device_us"));
    add_percentile(table, durations, "wait", "p50_us");
    add_percentile(table, durations, "wait", "p99_us");
    add_percentile(table, durations, "run", "p50_us");
    add_percentile(table, durations, "run", "p99_us");
    add_percentile(table, durations, "total", "p50_us");
    add_percentile(table, durations, "total", "p99_us");
    add_percentile(table, durations, "total", "p999_us");
    add_percentile(table, durations, "total", "max_us");
    output_number(table, sum_of(pool, "refusals"));
    output_number(table, sum_of(pool, "faults"));
    output_end_row(table);
}

static void add_vm_row(struct output *table, const json_t *vm)
{
    const json_t *durations = json_object_get(vm, "last_minute");

    output_number(table, view_number(vm, "vm_id"));
    output_text(table, view_text(vm, "name"));
    output_text(table, view_text(vm, "pool"));
    output_text(table, output_priority((unsigned)view_number(vm, "priority")));
    output_number(table, view_number(vm, "operations"));
    add_duration(table, view_number(vm, "device_us"));
    output_number(table, view_number(vm, "depth"));
    add_percentile(table, durations, "wait", "p50_us");
    add_percentile(table, durations, "wait", "p99_us");
    add_percentile(table, durations, "total", "p50_us");
    add_percentile(table, durations, "total", "p99_us");
    add_percentile(table, durations, "total", "max_us");
    output_number(table, sum_of(vm, "refusals"));
    output_number(table, sum_of(vm, "faults"));
    output_number(table, view_number(vm, "worker_restarts"));
    output_end_row(table);
}

static void add_device_row(struct output *table, const json_t *device)
{
    uint64_t permille = view_number(device, "utilization_permille");
    char text[VIEW_TEXT_BYTES];

    output_text(table, view_text(device, "name"));
    add_duration(table, view_number(device, "busy_us"));
    snprintf(text, sizeof(text), "%llu.%llu %%", (unsigned long long)permille / 10,
             (unsigned long long)permille % 10);
    output_text(table, text);
    output_number(table, view_number(device, "switches"));
    output_number(table, view_number(device, "sessions"));
    output_end_row(table);
}

static void print_table(struct admin *admin, const json_t *rows,
                        const struct output_column *columns, size_t count,
                        void (*add)(struct output *table, const json_t *row), const char *none)
{
    struct output *table = output_new(admin, columns, count);
    const json_t *row;
    size_t i;

    json_array_foreach(rows, i, row) add(table, row);
    output_print(table, none);
    output_free(table);
}

static void print_stats(struct admin *admin, const json_t *stats)
{
    char uptime[VIEW_TEXT_BYTES];

    view_uptime(view_number(stats, "uptime_s"), uptime);
    output_say(admin, "Pools since the mediator began, %s ago; VMs' times of the last minute.\n",
               uptime);
    print_table(admin, json_object_get(stats, "pools"), pool_columns,
                VGPU_ARRAY_LENGTH(pool_columns), add_pool_row, "No pool has done anything yet.");
    output_say(admin, "%s", "");
    print_table(admin, json_object_get(stats, "vms"), vm_columns, VGPU_ARRAY_LENGTH(vm_columns),
                add_vm_row, "There is no such VM.");
    if (view_number(stats, "vms_left_out") > 0)
        output_say(admin, "%llu more VMs used less device time: --vm shows one of them.",
                   (unsigned long long)view_number(stats, "vms_left_out"));
    output_say(admin, "%s", "");
    print_table(admin, json_object_get(stats, "devices"), device_columns,
                VGPU_ARRAY_LENGTH(device_columns), add_device_row, "There is no device.");
}

int cmd_stats(struct admin *admin, int argc, char **argv)
{
    struct input input = {0};
    int result = admin_parse(admin, &argp, argc, argv, &input);
    json_t *arguments, *stats;
    struct vgpu_error error;

    if (result)
        return result;
    arguments = json_object();
    if (make_arguments(admin, &input, arguments, &error) < 0)
        result = -1;
    else
        result = live_call(admin, "stats", arguments, &stats, &error);
    json_decref(arguments);
    if (result < 0)
        return admin_fail(admin, &error);
    if (admin->json) {
        output_json(stats);
        return ADMIN_OK;
    }
    print_stats(admin, stats);
    json_decref(stats);
    return ADMIN_OK;
}

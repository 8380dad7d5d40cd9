/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPUs as a person reads them: one line each, and below it what is special.  A value
 * that is not known is "-", never 0.
 */
#include "admin/gpu_view.h"
#include "admin/live_view.h"

#include <stdio.h>
#include <string.h>

#define CELL_BYTES 64
#define MIB (1024.0 * 1024.0)
#define MW_PER_W 1000.0

static const struct output_column columns[] = {
    {"index", "GPU", true},      {"name", "NAME", false},    {"state", "STATE", false},
    {"load", "LOAD", true},      {"memory", "MEMORY", true}, {"temperature", "TEMP", true},
    {"power", "POWER", true},    {"ecc", "ECC", true},       {"xids", "XIDS", true},
    {"clocks", "CLOCKS", false}, {"mig", "MIG", false},      {"pci", "PCI", false},
    {"uuid", "UUID", false},
};

/* --- cells -------------------------------------------------------------------------------- */

/* "12 %": a number with its unit. */
static void add_number(struct output *table, const json_t *gpu, const char *key, const char *unit)
{
    const json_t *value = json_object_get(gpu, key);
    char text[CELL_BYTES];

    snprintf(text, sizeof(text), "%lld %s", (long long)json_integer_value(value), unit);
    output_text(table, json_is_integer(value) ? text : "-");
}

static void format_share(const json_t *value, double unit, char text[32])
{
    if (json_is_integer(value))
        snprintf(text, 32, "%.0f", (double)json_integer_value(value) / unit);
    else
        text_copy(text, 32, "-");
}

/* "2048/81920 MiB": a part and the whole, each perhaps unknown. */
static void add_share(struct output *table, const json_t *part, const json_t *whole, double unit,
                      const char *unit_name)
{
    char text[CELL_BYTES + 32], used[32], all[32];

    format_share(part, unit, used);
    format_share(whole, unit, all);
    snprintf(text, sizeof(text), "%s/%s %s", used, all, unit_name);
    output_text(table, json_is_integer(part) || json_is_integer(whole) ? text : "-");
}

/* "0+1": corrected and not. */
static void add_ecc(struct output *table, const json_t *gpu)
{
    char text[CELL_BYTES + 32], corrected[32], uncorrected[32];
    const json_t *one = json_object_get(gpu, "ecc_corrected");
    const json_t *other = json_object_get(gpu, "ecc_uncorrected");

    format_share(one, 1, corrected);
    format_share(other, 1, uncorrected);
    snprintf(text, sizeof(text), "%s+%s", corrected, uncorrected);
    output_text(table, json_is_integer(one) || json_is_integer(other) ? text : "-");
}

static void add_clocks(struct output *table, const json_t *reasons)
{
    char text[CELL_BYTES] = "";
    const json_t *reason;
    size_t i;

    json_array_foreach(reasons, i, reason)
    {
        size_t used = strlen(text);

        snprintf(text + used, sizeof(text) - used, "%s%s", i ? " " : "", json_string_value(reason));
    }
    if (json_is_array(reasons) && !text[0])
        text_copy(text, sizeof(text), "free");
    output_text(table, text[0] ? text : "-");
}

static void add_mig(struct output *table, const json_t *gpu)
{
    const json_t *mig = json_object_get(gpu, "mig");
    char text[CELL_BYTES];

    snprintf(text, sizeof(text), "on: %zu", json_array_size(json_object_get(gpu, "mig_devices")));
    if (json_is_true(mig))
        output_text(table, text);
    else
        output_text(table, json_is_false(mig) ? "off" : "-");
}

static void add_text(struct output *table, const json_t *gpu, const char *key)
{
    const char *text = view_text(gpu, key);

    output_text(table, text[0] ? text : "-");
}

static void add_gpu(struct output *table, const json_t *gpu)
{
    output_number(table, view_number(gpu, "index"));
    add_text(table, gpu, "name");
    add_text(table, gpu, "state");
    add_number(table, gpu, "utilization_percent", "%");
    add_share(table, json_object_get(gpu, "memory_used_bytes"),
              json_object_get(gpu, "memory_total_bytes"), MIB, "MiB");
    add_number(table, gpu, "temperature_c", "C");
    add_share(table, json_object_get(gpu, "power_mw"), json_object_get(gpu, "power_limit_mw"),
              MW_PER_W, "W");
    add_ecc(table, gpu);
    output_number(table, view_number(json_object_get(gpu, "xids"), "count"));
    add_clocks(table, json_object_get(gpu, "throttle"));
    add_mig(table, gpu);
    add_text(table, gpu, "pci_address");
    add_text(table, gpu, "uuid");
    output_end_row(table);
}

/* --- below the table ------------------------------------------------------------------------ */

static void say_xid(struct admin *admin, const json_t *gpu)
{
    const json_t *xids = json_object_get(gpu, "xids");

    if (view_number(xids, "count") == 0)
        return;
    output_say(admin, "GPU %llu: the last XID is %llu (%s): %s, %s.",
               (unsigned long long)view_number(gpu, "index"),
               (unsigned long long)view_number(xids, "last"), view_text(xids, "last_class"),
               view_text(xids, "last_meaning"), view_text(xids, "last_time"));
}

static void say_state(struct admin *admin, const json_t *gpu)
{
    const char *state = view_text(gpu, "state");
    unsigned long long index = view_number(gpu, "index");

    if (strcmp(state, "lost") == 0)
        output_say(admin,
                   "GPU %llu is lost: it does not answer any more; reset it (nvidia-smi "
                   "--gpu-reset) or restart the host.",
                   index);
    else if (strcmp(state, "silent") == 0)
        output_say(admin,
                   "GPU %llu: the driver has not answered for %llu s; look at dmesg | grep NVRM.",
                   index, (unsigned long long)view_number(gpu, "age_ms") / MS_PER_S);
}

static void say_migs(struct admin *admin, const json_t *gpu)
{
    const json_t *mig;
    size_t i;

    json_array_foreach(json_object_get(gpu, "mig_devices"), i, mig)
    {
        output_say(admin, "GPU %llu has %s.", (unsigned long long)view_number(gpu, "index"),
                   json_is_string(mig) ? json_string_value(mig) : "a MIG device without UUID");
    }
}

void gpu_view_print(struct admin *admin, const json_t *gpus, const char *none)
{
    struct output *table = output_new(admin, columns, VGPU_ARRAY_LENGTH(columns));
    const json_t *gpu;
    size_t i;

    json_array_foreach(gpus, i, gpu) add_gpu(table, gpu);
    output_print(table, none);
    output_free(table);
    json_array_foreach(gpus, i, gpu)
    {
        say_state(admin, gpu);
        say_xid(admin, gpu);
        say_migs(admin, gpu);
    }
}

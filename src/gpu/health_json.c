/* SPDX-License-Identifier: Apache-2.0 */
/* The snapshot as JSON, one shape for the mediator's status and for programs. */
#include "gpu/health.h"

#include <stdio.h>
#include <time.h>

static json_t *number(uint64_t value)
{
    return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

static json_t *value_or_null(struct gpu_value value)
{
    return value.known ? number(value.value) : json_null();
}

/* The driver's texts are not ours: what is no UTF-8 is not known. */
static json_t *text_or_null(const char *text)
{
    json_t *string = text[0] ? json_string(text) : NULL;

    return string ? string : json_null();
}

static json_t *flag_or_null(struct gpu_value value)
{
    return value.known ? json_boolean(value.value != 0) : json_null();
}

static json_t *describe_throttle(struct gpu_value reasons)
{
    json_t *list = reasons.known ? json_array() : json_null();
    const char *word;

    while (reasons.known && (word = gpu_throttle_next(&reasons.value)))
        json_array_append_new(list, json_string(word));
    return list;
}

static json_t *describe_migs(const struct gpu_values *values)
{
    json_t *list = values->mig_on.known ? json_array() : json_null();

    for (unsigned i = 0; values->mig_on.known && i < values->mig_count; i++)
        json_array_append_new(list, text_or_null(values->migs[i]));
    return list;
}

static json_t *describe_time(uint64_t time_ns)
{
    time_t time_s = (time_t)(time_ns / NS_PER_S);
    struct tm parts;
    char text[32];

    if (time_ns == 0 || !gmtime_r(&time_s, &parts) ||
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
        return json_null();
    return json_string(text);
}

static json_t *describe_xids(const struct gpu_status *gpu)
{
    const struct gpu_xid *xid = gpu_xid_find((uint32_t)gpu->xid_last.value);
    bool any = gpu->xid_last.known;

    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "count", number(gpu->xid_count), "last",
                     value_or_null(gpu->xid_last), "last_class",
                     any ? json_string(gpu_xid_class_name(xid->class)) : json_null(),
                     "last_meaning", any ? json_string(xid->meaning) : json_null(), "last_time",
                     describe_time(gpu->xid_last_ns));
}

static const char *state_of(const struct gpu_status *gpu)
{
    if (gpu->lost)
        return "lost";
    if (gpu->silent)
        return "silent";
    return gpu->sampled_ns ? "ok" : "unknown";
}

static json_t *describe_age(const struct gpu_status *gpu)
{
    if (gpu->sampled_ns == 0)
        return json_null();
    return number((clock_monotonic_ns() - gpu->sampled_ns) / NS_PER_MS);
}

static json_t *describe_gpu(const struct gpu_status *gpu)
{
    const struct gpu_values *values = &gpu->values;
    json_t *object = json_pack("{s:i, s:o, s:o, s:o, s:s, s:o}", "index", (int)gpu->index, "uuid",
                               text_or_null(gpu->uuid), "name", text_or_null(gpu->name),
                               "pci_address", text_or_null(gpu->pci_address), "state",
                               state_of(gpu), "age_ms", describe_age(gpu));

    json_object_set_new(object, "utilization_percent", value_or_null(values->utilization_percent));
    json_object_set_new(object, "memory_total_bytes", value_or_null(values->memory_total_bytes));
    json_object_set_new(object, "memory_used_bytes", value_or_null(values->memory_used_bytes));
    json_object_set_new(object, "memory_reserved_bytes",
                        value_or_null(values->memory_reserved_bytes));
    json_object_set_new(object, "temperature_c", value_or_null(values->temperature_c));
    json_object_set_new(object, "power_mw", value_or_null(values->power_mw));
    json_object_set_new(object, "power_limit_mw", value_or_null(values->power_limit_mw));
    json_object_set_new(object, "ecc_corrected", value_or_null(values->ecc_corrected));
    json_object_set_new(object, "ecc_uncorrected", value_or_null(values->ecc_uncorrected));
    json_object_set_new(object, "throttle", describe_throttle(values->throttle_reasons));
    json_object_set_new(object, "mig", flag_or_null(values->mig_on));
    json_object_set_new(object, "mig_devices", describe_migs(values));
    json_object_set_new(object, "xids", describe_xids(gpu));
    json_object_set_new(object, "losses", number(gpu->losses));
    json_object_set_new(object, "returns", number(gpu->returns));
    return object;
}

json_t *gpu_health_json_gpus(const struct gpu_snapshot *snapshot)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < snapshot->count; i++)
        json_array_append_new(list, describe_gpu(&snapshot->gpus[i]));
    return list;
}

json_t *gpu_health_json_driver(const struct gpu_snapshot *snapshot)
{
    return json_pack("{s:o, s:o, s:o}", "version", text_or_null(snapshot->driver_version),
                     "nvml_version", text_or_null(snapshot->nvml_version), "problem",
                     text_or_null(snapshot->problem));
}

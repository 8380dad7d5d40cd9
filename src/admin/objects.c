/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How VMs, pools, devices and events look in JSON: one shape each, whichever command
 * shows them.  What is not set is null, never a made-up value.
 */
#include "admin/admin.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct {
    uint32_t bit;
    const char *name;
} channel_names[] = {
    {STORE_CHANNEL_FILE, "file"}, {STORE_CHANNEL_WINDOW, "window"}, {STORE_CHANNEL_XEN, "xen"}};

const char *output_priority(unsigned priority)
{
    static const char *const names[] = {"low", "medium", "high"};

    return priority < VGPU_ARRAY_LENGTH(names) ? names[priority] : "?";
}

const char *output_state(enum store_vm_state state)
{
    return state == STORE_VM_QUARANTINED ? "quarantined" : "active";
}

const char *output_placement(const struct store_pool *pool)
{
    return pool->pack ? "pack" : "spread";
}

const char *output_sharing(enum store_sharing sharing)
{
    return sharing == STORE_INDEPENDENT ? "independent" : "shared";
}

void output_channels(uint32_t channels, char *text, size_t bytes)
{
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(channel_names); i++) {
        if ((channels & channel_names[i].bit) && used < bytes)
            used += (size_t)snprintf(text + used, bytes - used, "%s%s", used ? " " : "",
                                     channel_names[i].name);
    }
}

void output_time(uint64_t time_us, char text[32])
{
    time_t seconds = (time_t)(time_us / 1000000);
    struct tm broken;

    gmtime_r(&seconds, &broken);
    strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", &broken);
}

void output_vm_name(const struct store_vm *vm, char *text, size_t bytes)
{
    if (vm->name[0])
        snprintf(text, bytes, "VM %u (%s)", vm->vm_id, vm->name);
    else
        snprintf(text, bytes, "VM %u", vm->vm_id);
}

static json_t *text_or_null(const char *text)
{
    json_t *string = text[0] ? json_string(text) : NULL;

    return string ? string : json_null();
}

static json_t *number_or_null(uint64_t number)
{
    return number ? json_integer((json_int_t)number) : json_null();
}

static json_t *time_json(uint64_t time_us)
{
    char text[32];

    output_time(time_us, text);
    return time_us ? json_string(text) : json_null();
}

static json_t *channels_json(uint32_t channels)
{
    json_t *array = json_array();

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(channel_names); i++) {
        if (channels & channel_names[i].bit)
            json_array_append_new(array, json_string(channel_names[i].name));
    }
    return array;
}

static json_t *owner_json(const struct store_vm *vm)
{
    if (vm->owner_uid < 0)
        return json_null();
    return json_pack("{s:I, s:I}", "uid", (json_int_t)vm->owner_uid, "gid",
                     (json_int_t)vm->owner_gid);
}

static json_t *limits_json(const struct store_limits *limits)
{
    json_t *object = json_object();

    for (unsigned i = 0; i < STORE_LIMITS; i++)
        json_object_set_new(object, store_limits[i].name,
                            number_or_null(store_limit_get(limits, &store_limits[i])));
    return object;
}

json_t *output_vm(const struct store_vm *vm)
{
    char pool[2] = {vm->pool, '\0'}, mode[8];

    snprintf(mode, sizeof(mode), "%04o", vm->mode & 07777);
    return json_pack("{s:I, s:o, s:o, s:s, s:s, s:o, s:s, s:o, s:o, s:o, s:o, s:s, s:o, s:o}",
                     "vm_id", (json_int_t)vm->vm_id, "name", text_or_null(vm->name), "uuid",
                     text_or_null(vm->uuid), "pool", pool, "priority",
                     output_priority(vm->priority), "limits", limits_json(&vm->limits), "state",
                     output_state(vm->state), "reason", text_or_null(vm->reason),
                     "quarantine_until", time_json(vm->quarantine_until_us), "channels",
                     channels_json(vm->channels), "owner", owner_json(vm), "mode", mode, "created",
                     time_json(vm->created_us), "changed", time_json(vm->changed_us));
}

json_t *output_pool(const struct store_pool *pool)
{
    char id[2] = {pool->id, '\0'};

    return json_pack("{s:s, s:o, s:o, s:b, s:s, s:o, s:s, s:I, s:o, s:o, s:s, s:o, s:b, s:I}", "id",
                     id, "name", text_or_null(pool->name), "description",
                     text_or_null(pool->description), "enabled", pool->enabled, "sharing",
                     output_sharing(pool->sharing), "device", text_or_null(pool->device),
                     "placement", output_placement(pool), "session_devices",
                     (json_int_t)pool->session_devices, "vms_max", number_or_null(pool->vms_max),
                     "device_memory_max_mib", number_or_null(pool->device_memory_max_mib), "policy",
                     store_policy_name(pool->policy), "aging_ms", number_or_null(pool->aging_ms),
                     "demand", pool->demand, "vm_count", (json_int_t)pool->vm_count);
}

json_t *output_device(const struct store_device *device)
{
    static const char *const kinds[] = {
        [STORE_DEVICE_CPU] = "cpu", [STORE_DEVICE_GPU] = "gpu", [STORE_DEVICE_MIG] = "mig"};

    return json_pack("{s:s, s:s, s:o, s:b}", "name", device->name, "kind", kinds[device->kind],
                     "description", text_or_null(device->description), "withdrawn",
                     device->withdrawn);
}

/* An event keeps what was before and after as JSON. */
static json_t *state_json(const char *text)
{
    json_t *object = text[0] ? json_loads(text, 0, NULL) : NULL;

    return object ? object : text_or_null(text);
}

json_t *output_event(const struct store_event *event)
{
    char pool[2] = {event->pool, '\0'};

    return json_pack("{s:I, s:o, s:s, s:s, s:o, s:o, s:o, s:o}", "id", (json_int_t)event->id,
                     "time", time_json(event->time_us), "actor", event->actor, "action",
                     event->action, "vm_id", number_or_null(event->vm_id), "pool",
                     text_or_null(pool), "before", state_json(event->before), "after",
                     state_json(event->after));
}

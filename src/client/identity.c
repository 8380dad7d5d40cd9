/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who this VM is: what the device's registers say, unless options say it.
 * A guest without the device (a Xen PV guest) gives all three by options.
 */
#include "client.h"

#include <stdlib.h>
#include <string.h>

bool identity_needs_device(const struct options *options)
{
    return !options->pool || options->priority < 0 || !options->vm_id || options->device;
}

static int check_values(const struct identity *identity, struct failure *failure)
{
    const char *address = identity->device.address;
    const char *wrong = NULL;
    uint32_t value = 0;

    if (identity->pool < 'A' || identity->pool > 'Z') {
        wrong = "pool_id: expected a letter A to Z";
        value = device_register(&identity->device, VGPU_REG_POOL_ID);
    } else if (identity->priority >= VGPU_PRIORITY_COUNT) {
        wrong = "priority: expected 0 to 2";
        value = identity->priority;
    } else if (identity->vm_id == 0) {
        wrong = "vm_id: expected 1 or more";
    }
    if (!wrong)
        return 0;
    failure_set(failure, FAILURE_DEVICE_VALUES,
                "device %s holds a bad value in register %s, "
                "came 0x%08x",
                address, wrong, value);
    return failure_remedy(failure, "set the device's property on the host and start the VM again, "
                                   "or give --pool, --priority and --vm-id");
}

static int find_directory(const struct options *options, struct identity *identity,
                          struct failure *failure)
{
    char path[PATH_MAX];
    int length;

    if (options->directory)
        length = snprintf(path, sizeof(path), "%s", options->directory);
    else
        length = snprintf(path, sizeof(path), "%s/vm%u", options->share, identity->vm_id);
    /* Room for the files' names behind it. */
    if (length < (int)sizeof(path) &&
        text_normalize_path(path, identity->directory, sizeof(identity->directory) - 64))
        return 0;
    failure_set(failure, FAILURE_USAGE, "the path of the share is too long or empty: '%.200s'",
                options->directory ? options->directory : options->share);
    return failure_remedy(failure, "mount the share at a shorter path");
}

int identity_from(const struct options *options, const struct device_list *list,
                  struct identity *ret_identity, struct failure *failure)
{
    struct identity identity = {0};

    if (list) {
        const struct device *device = device_choose(list, options->device, failure);
        uint32_t pool;

        if (!device)
            return -1;
        identity.has_device = true;
        identity.device = *device;
        pool = device_register(device, VGPU_REG_POOL_ID);
        identity.pool = pool < 0x80 ? (char)pool : 0;
        identity.priority = device_register(device, VGPU_REG_PRIORITY);
        identity.vm_id = device_register(device, VGPU_REG_VM_ID);
    }
    if (options->pool)
        identity.pool = options->pool;
    if (options->priority >= 0)
        identity.priority = (unsigned)options->priority;
    if (options->vm_id)
        identity.vm_id = options->vm_id;
    if (check_values(&identity, failure) < 0 || find_directory(options, &identity, failure) < 0)
        return -1;
    *ret_identity = identity;
    return 0;
}

int identity_find(const struct options *options, struct identity *ret_identity,
                  struct failure *failure)
{
    struct device_list *list;
    int result;

    if (!identity_needs_device(options))
        return identity_from(options, NULL, ret_identity, failure);
    list = calloc(1, sizeof(*list));
    if (!list)
        return failure_set(failure, FAILURE_SYSTEM, "out of memory");
    result = device_scan(options->sysfs, options->device, list, failure);
    if (result == 0)
        result = identity_from(options, list, ret_identity, failure);
    free(list);
    return result;
}

static int disagree(const struct device *device, uint32_t vm_id, struct failure *failure)
{
    uint32_t said = device_register(device, VGPU_REG_VM_ID);

    failure_set(failure, FAILURE_DEVICE_VALUES,
                "device %s says that this is vm %u, but the host takes these pages for vm %u's",
                device->address, said, vm_id);
    return failure_remedy(failure,
                          "on the host: `vgpu-admin show-vm %u` and `vgpu-admin show-vm %u` tell "
                          "which is right; a new number counts from the VM's next start",
                          said, vm_id);
}

int identity_compare(const struct device_list *list, uint32_t vm_id, char *text, size_t bytes,
                     struct failure *failure)
{
    const struct device *other = NULL;
    bool is_denied = false;

    for (unsigned i = 0; i < list->count; i++) {
        const struct device *device = &list->devices[i];

        is_denied |= device->denied;
        if (!device->usable)
            continue;
        if (device_register(device, VGPU_REG_VM_ID) == vm_id) {
            snprintf(text, bytes, "device %s says vm %u too", device->address, vm_id);
            return 0;
        }
        other = device;
    }
    if (other)
        return disagree(other, vm_id, failure);
    snprintf(text, bytes, "%s; the host's word alone",
             is_denied ? "this user may not read the device's registers" : "no device here");
    return 0;
}

void identity_explain(struct identity *identity, const char *reason)
{
    if (!identity->has_device)
        reason = "no device was looked for";
    else if (!device_offers_window(&identity->device))
        reason = "window not offered by this device";
    snprintf(identity->channel_reason, sizeof(identity->channel_reason), "%s", reason);
}

void identity_print(const struct identity *identity, FILE *out)
{
    uint32_t version = device_register(&identity->device, VGPU_REG_VERSION);

    if (identity->has_device)
        fprintf(out, "device   %s vgpu-stub %u.%u, pool %c, priority %s (%u), vm %u\n",
                identity->device.address, version >> 16, version & 0xffff, identity->pool,
                text_priority_name(identity->priority), identity->priority, identity->vm_id);
    else
        fprintf(out, "device   none (by options), pool %c, priority %s (%u), vm %u\n",
                identity->pool, text_priority_name(identity->priority), identity->priority,
                identity->vm_id);
    fprintf(out, "channel  file %s (%s)\n", identity->directory, identity->channel_reason);
}

void identity_json(const struct identity *identity, struct json *json)
{
    const struct device *device = &identity->device;
    char text[32];

    json_open(json, "device", '{');
    if (identity->has_device) {
        uint32_t version = device_register(device, VGPU_REG_VERSION);

        json_string(json, "address", device->address);
        snprintf(text, sizeof(text), "%u.%u", version >> 16, version & 0xffff);
        json_string(json, "version", text);
    } else {
        json_null(json, "address");
        json_null(json, "version");
    }
    snprintf(text, sizeof(text), "%c", identity->pool);
    json_string(json, "pool", text);
    json_integer(json, "priority", identity->priority);
    json_string(json, "priority_name", text_priority_name(identity->priority));
    json_integer(json, "vm_id", identity->vm_id);
    json_close(json, '}');
    json_open(json, "channel", '{');
    json_string(json, "kind", "file");
    json_string(json, "directory", identity->directory);
    json_string(json, "reason", identity->channel_reason);
    json_close(json, '}');
}

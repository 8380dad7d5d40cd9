/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XAPI (XCP-ng, XenServer), by its command line `xe`.
 *
 * A VM's device is three keys of its `platform` map, which XAPI writes to xenstore
 * below /local/domain/N/platform when the VM starts; the guest can write neither:
 *
 *   platform:vgpu-id=100  platform:vgpu-pool=A  platform:vgpu-priority=high
 *
 * There is no window under Xen: the device has its registers only.
 *
 * A tenant may have named his VM.  A name with line breaks in it could pass for more
 * fields or for another VM, so a record counts only when each field that we asked for
 * is there once, each line is one of them, and no other record has its UUID.
 */
#include "toolstack/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define START_TIMEOUT_MS 300000u
#define KEY_COUNT 3
#define VALUE_BYTES 64

/* In the order of struct keys. */
static const char *const key_names[KEY_COUNT] = {"vgpu-id", "vgpu-pool", "vgpu-priority"};
static const char *const priority_names[] = {"low", "medium", "high"};

struct keys {
    char value[KEY_COUNT][VALUE_BYTES]; /* "" not there */
    bool twice;
};

struct xapi_data {
    char *xe;
};

static int xapi_open(const char *uri, void **ret_data, struct vgpu_error *error)
{
    struct xapi_data *data;

    if (uri)
        return error_set(error, EINVAL, "--connect belongs to libvirt, and this host has XAPI");
    data = calloc(1, sizeof(*data));
    if (!data)
        return error_set(error, ENOMEM, "no memory");
    data->xe = toolstack_find_program("xe", toolstack_program_path());
    if (!data->xe) {
        free(data);
        return error_set(error, ENOENT, "there is no program 'xe' in %s", toolstack_program_path());
    }
    *ret_data = data;
    return 0;
}

static void xapi_close(void *opaque)
{
    struct xapi_data *data = opaque;

    free(data->xe);
    free(data);
}

/* Gives what xe said the code that callers look at. */
static int xe(char *const argv[], unsigned timeout_ms, struct program_result *ret_result,
              struct vgpu_error *error)
{
    struct vgpu_error problem;

    if (program_check(argv, timeout_ms, ret_result, &problem) == 0)
        return 0;
    if (strstr(problem.message, "uuid you supplied was invalid"))
        problem.code = ENOENT;
    else if (strstr(problem.message, "not in an appropriate power state"))
        problem.code = EBUSY;
    return error_set(error, problem.code, "%s", problem.message);
}

static int check_uuid(const char *uuid, struct vgpu_error *error)
{
    if (toolstack_is_uuid(uuid))
        return 0;
    return error_set(error, EINVAL, "XAPI names VMs by UUID, which '%.64s' is not", uuid);
}

/* --- reading ------------------------------------------------------------------------- */

/* "acpi: true; vgpu-id: 7; ...": the values of our keys. */
static void read_platform(const char *text, struct keys *ret_keys)
{
    struct keys keys = {.twice = false};

    while (*text) {
        size_t length = strcspn(text, ";\n");

        for (int i = 0; i < KEY_COUNT; i++) {
            size_t name = strlen(key_names[i]);

            if (length < name + 2 || strncmp(text, key_names[i], name) != 0 ||
                strncmp(text + name, ": ", 2) != 0)
                continue;
            keys.twice |= keys.value[i][0] != '\0';
            snprintf(keys.value[i], VALUE_BYTES, "%.*s", (int)(length - name - 2), text + name + 2);
        }
        text += length;
        text += strspn(text, "; \n");
    }
    *ret_keys = keys;
}

static bool read_priority(const char *text, uint8_t *ret_priority)
{
    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(priority_names); i++) {
        if (!strcmp(text, priority_names[i]) || (text[0] == (char)('0' + i) && !text[1])) {
            *ret_priority = (uint8_t)i;
            return true;
        }
    }
    return false;
}

static void describe_device(const struct keys *keys, struct toolstack_vm *vm)
{
    uint64_t vm_id = 0;
    const char *pool = keys->value[1];

    vm->has_device = *keys->value[0] || *keys->value[1] || *keys->value[2];
    if (!vm->has_device)
        return;
    if (keys->twice)
        text_copy(vm->device_problem, sizeof(vm->device_problem),
                  "its platform map seems to have a vgpu key twice");
    else if (!text_parse_u64(keys->value[0], 1, UINT32_MAX, &vm_id))
        text_copy(vm->device_problem, sizeof(vm->device_problem),
                  "platform:vgpu-id is not a VM's number");
    else if (pool[0] < 'A' || pool[0] > 'Z' || pool[1])
        text_copy(vm->device_problem, sizeof(vm->device_problem),
                  "platform:vgpu-pool is not one letter from A to Z");
    else if (!read_priority(keys->value[2], &vm->device.priority))
        text_copy(vm->device_problem, sizeof(vm->device_problem),
                  "platform:vgpu-priority is not low, medium or high");
    vm->device.vm_id = (uint32_t)vm_id;
    vm->device.pool = pool[0] && !pool[1] ? pool[0] : 'A';
}

static enum toolstack_state read_state(const char *text)
{
    if (!strcmp(text, "running"))
        return TOOLSTACK_RUNNING;
    if (!strcmp(text, "halted"))
        return TOOLSTACK_OFF;
    return !strcmp(text, "paused") ? TOOLSTACK_PAUSED : TOOLSTACK_OTHER;
}

enum { FIELD_UUID = 1, FIELD_NAME = 2, FIELD_STATE = 4, FIELD_PLATFORM = 8, FIELD_ALL = 15 };

struct record {
    struct toolstack_vm vm;
    unsigned seen;
    bool strange;
};

/* "          name-label ( RW): test": the value, or NULL when it is not this field. */
static const char *field_value(const char *line, const char *name)
{
    size_t length = strlen(name);

    line += strspn(line, " ");
    if (strncmp(line, name, length) != 0 || strncmp(line + length, " (", 2) != 0)
        return NULL;
    line = strchr(line + length, ')');
    if (!line)
        return NULL;
    line++;
    line += strspn(line, " ");
    if (*line != ':')
        return NULL;
    return line[1] == ' ' ? line + 2 : line + 1;
}

static void read_line(struct record *record, const char *line)
{
    static const struct {
        const char *name;
        unsigned bit;
    } fields[] = {{"uuid", FIELD_UUID},
                  {"name-label", FIELD_NAME},
                  {"power-state", FIELD_STATE},
                  {"platform", FIELD_PLATFORM}};
    struct keys keys;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(fields); i++) {
        const char *value = field_value(line, fields[i].name);

        if (!value)
            continue;
        record->strange |= record->seen & fields[i].bit;
        record->seen |= fields[i].bit;
        if (fields[i].bit == FIELD_UUID) {
            record->strange |= !toolstack_is_uuid(value);
            text_copy(record->vm.uuid, sizeof(record->vm.uuid), value);
        } else if (fields[i].bit == FIELD_NAME) {
            text_copy(record->vm.name, sizeof(record->vm.name), value);
        } else if (fields[i].bit == FIELD_STATE) {
            record->vm.state = read_state(value);
        } else {
            read_platform(value, &keys);
            describe_device(&keys, &record->vm);
        }
        return;
    }
    record->strange = true;
}

/* Ends the record at hand; 1 taken, 0 there was none. */
static size_t end_record(struct record *record, struct toolstack_vm *vms, size_t count)
{
    struct toolstack_vm *vm = &vms[count];
    bool strange = record->strange || record->seen != FIELD_ALL;

    if (record->seen == 0 && !record->strange)
        return 0;
    *vm = record->vm;
    if (strange) {
        /* What it says of its device could be its name's doing. */
        vm->has_device = false;
        text_copy(vm->device_problem, sizeof(vm->device_problem),
                  "xe's answer about it cannot be read: give it a name without line breaks");
    }
    *record = (struct record){.seen = 0};
    return 1;
}

static void mark_doubles(struct toolstack_vm *vms, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < i; j++) {
            if (strcmp(vms[i].uuid, vms[j].uuid) != 0)
                continue;
            vms[i].has_device = vms[j].has_device = false;
            text_copy(vms[i].device_problem, sizeof(vms[i].device_problem),
                      "xe names its UUID twice: give VMs names without line breaks");
            text_copy(vms[j].device_problem, sizeof(vms[j].device_problem), vms[i].device_problem);
        }
    }
}

static size_t count_lines(const char *text)
{
    size_t lines = 1;

    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

/* Records are apart by empty lines.  Those without a UUID are dropped. */
static size_t read_records(char *text, struct toolstack_vm *vms)
{
    struct record record = {.seen = 0};
    size_t count = 0;
    char *line;

    while ((line = strsep(&text, "\n"))) {
        if (*line) {
            read_line(&record, line);
            continue;
        }
        count += end_record(&record, vms, count);
        if (count > 0 && !toolstack_is_uuid(vms[count - 1].uuid))
            count--;
    }
    count += end_record(&record, vms, count);
    if (count > 0 && !toolstack_is_uuid(vms[count - 1].uuid))
        count--;
    mark_doubles(vms, count);
    return count;
}

static int xapi_list(void *opaque, struct toolstack_vm **ret_vms, size_t *ret_count,
                     struct vgpu_error *error)
{
    struct xapi_data *data = opaque;
    char *const argv[] = {data->xe,
                          (char *)"vm-list",
                          (char *)"is-control-domain=false",
                          (char *)"is-a-template=false",
                          (char *)"is-a-snapshot=false",
                          (char *)"params=uuid,name-label,power-state,platform",
                          NULL};
    struct program_result result;
    struct toolstack_vm *vms;

    if (xe(argv, COMMAND_TIMEOUT_MS, &result, error) < 0)
        return -1;
    vms = calloc(count_lines(result.output) + 1, sizeof(*vms));
    if (!vms) {
        program_clear(&result);
        return error_set(error, ENOMEM, "no memory for the list of VMs");
    }
    *ret_count = read_records(result.output, vms);
    *ret_vms = vms;
    program_clear(&result);
    return 0;
}

/* --- start and stop --------------------------------------------------------------------- */

static int run_uuid(struct xapi_data *data, const char *command, const char *uuid, bool force,
                    unsigned timeout_ms, struct vgpu_error *error)
{
    char argument[64];
    char *const argv[] = {data->xe, (char *)command, argument, force ? (char *)"force=true" : NULL,
                          NULL};
    struct program_result result;

    if (check_uuid(uuid, error) < 0)
        return -1;
    snprintf(argument, sizeof(argument), "uuid=%s", uuid);
    if (xe(argv, timeout_ms, &result, error) < 0)
        return -1;
    program_clear(&result);
    return 0;
}

static int xapi_start(void *opaque, const char *uuid, struct vgpu_error *error)
{
    return run_uuid(opaque, "vm-start", uuid, false, START_TIMEOUT_MS, error);
}

/* "halted" and the like. */
static int read_power_state(struct xapi_data *data, const char *uuid,
                            enum toolstack_state *ret_state, struct vgpu_error *error)
{
    char argument[64];
    char *const argv[] = {data->xe, (char *)"vm-param-get", argument,
                          (char *)"param-name=power-state", NULL};
    struct program_result result;

    if (check_uuid(uuid, error) < 0)
        return -1;
    snprintf(argument, sizeof(argument), "uuid=%s", uuid);
    if (xe(argv, COMMAND_TIMEOUT_MS, &result, error) < 0)
        return -1;
    result.output[strcspn(result.output, "\n")] = '\0';
    *ret_state = read_state(result.output);
    program_clear(&result);
    return 0;
}

static int xapi_stop(void *opaque, const char *uuid, unsigned timeout_ms, bool force,
                     struct vgpu_error *error)
{
    struct xapi_data *data = opaque;
    enum toolstack_state state;

    if (read_power_state(data, uuid, &state, error) < 0)
        return -1;
    if (state == TOOLSTACK_OFF)
        return 0;
    if (run_uuid(data, "vm-shutdown", uuid, false, timeout_ms, error) == 0)
        return 0;
    if (!force)
        return -1;
    return run_uuid(data, "vm-shutdown", uuid, true, COMMAND_TIMEOUT_MS, error);
}

/* --- publish -------------------------------------------------------------------------------- */

static int get_keys(struct xapi_data *data, const char *uuid, struct keys *ret_keys,
                    struct vgpu_error *error)
{
    char argument[64];
    char *const argv[] = {data->xe, (char *)"vm-param-get", argument, (char *)"param-name=platform",
                          NULL};
    struct program_result result;

    snprintf(argument, sizeof(argument), "uuid=%s", uuid);
    if (xe(argv, COMMAND_TIMEOUT_MS, &result, error) < 0)
        return -1;
    read_platform(result.output, ret_keys);
    program_clear(&result);
    return 0;
}

/* Those that have a value. */
static int set_keys(struct xapi_data *data, const char *uuid, const struct keys *keys,
                    struct vgpu_error *error)
{
    char text[1 + KEY_COUNT][VALUE_BYTES + 32];
    char *argv[4 + KEY_COUNT] = {data->xe, (char *)"vm-param-set", text[0]};
    struct program_result result;
    int count = 0;

    snprintf(text[0], sizeof(text[0]), "uuid=%s", uuid);
    for (int i = 0; i < KEY_COUNT; i++) {
        if (!*keys->value[i])
            continue;
        count++;
        snprintf(text[count], sizeof(text[count]), "platform:%s=%s", key_names[i], keys->value[i]);
        argv[2 + count] = text[count];
    }
    if (count == 0)
        return 0;
    if (xe(argv, COMMAND_TIMEOUT_MS, &result, error) < 0)
        return -1;
    program_clear(&result);
    return 0;
}

static int remove_key(struct xapi_data *data, const char *uuid, const char *key,
                      struct vgpu_error *error)
{
    char uuid_text[64], key_text[64];
    char *const argv[] = {data->xe,  (char *)"vm-param-remove",
                          uuid_text, (char *)"param-name=platform",
                          key_text,  NULL};
    struct program_result result;

    snprintf(uuid_text, sizeof(uuid_text), "uuid=%s", uuid);
    snprintf(key_text, sizeof(key_text), "param-key=%s", key);
    if (xe(argv, COMMAND_TIMEOUT_MS, &result, error) < 0)
        return -1;
    program_clear(&result);
    return 0;
}

static bool keys_equal(const struct keys *a, const struct keys *b)
{
    for (int i = 0; i < KEY_COUNT; i++) {
        if (strcmp(a->value[i], b->value[i]) != 0)
            return false;
    }
    return true;
}

/* From `now` to `wanted`, then looked at: xe sets keys one after the other. */
static int apply_keys(struct xapi_data *data, const char *uuid, const struct keys *now,
                      const struct keys *wanted, struct vgpu_error *error)
{
    struct keys found;

    if (set_keys(data, uuid, wanted, error) < 0)
        return -1;
    for (int i = 0; i < KEY_COUNT; i++) {
        if (*now->value[i] && !*wanted->value[i] && remove_key(data, uuid, key_names[i], error) < 0)
            return -1;
    }
    if (get_keys(data, uuid, &found, error) < 0)
        return -1;
    if (!keys_equal(&found, wanted))
        return error_set(error, EIO, "xe changed the platform keys, but then shows other values");
    return 0;
}

static void restore_keys(struct xapi_data *data, const char *uuid, const struct keys *before,
                         struct vgpu_error *error)
{
    struct vgpu_error problem, cause = *error;
    struct keys now;

    if (get_keys(data, uuid, &now, &problem) < 0 ||
        (!keys_equal(&now, before) && apply_keys(data, uuid, &now, before, &problem) < 0))
        error_fill(error, cause.code,
                   "%.280s; and the earlier keys could not be put back (%.100s): look with xe "
                   "vm-param-get uuid=%s param-name=platform",
                   cause.message, problem.message, uuid);
}

static int xapi_publish(void *opaque, const char *uuid, const struct toolstack_device *device,
                        struct vgpu_error *error)
{
    struct keys before, wanted = {.twice = false};
    struct vgpu_error problem;

    if (check_uuid(uuid, error) < 0 || get_keys(opaque, uuid, &before, error) < 0)
        return -1;
    if (device) {
        snprintf(wanted.value[0], VALUE_BYTES, "%u", device->vm_id);
        snprintf(wanted.value[1], VALUE_BYTES, "%c", device->pool);
        snprintf(wanted.value[2], VALUE_BYTES, "%s", priority_names[device->priority]);
    }
    if (keys_equal(&before, &wanted) || apply_keys(opaque, uuid, &before, &wanted, &problem) == 0)
        return 0;
    restore_keys(opaque, uuid, &before, &problem);
    return error_set(error, problem.code, "%s", problem.message);
}

const struct toolstack_ops toolstack_xapi = {
    .name = "xapi",
    .open = xapi_open,
    .close = xapi_close,
    .list = xapi_list,
    .start = xapi_start,
    .stop = xapi_stop,
    .publish = xapi_publish,
};

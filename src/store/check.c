/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a value may be.  The schema says the same in its CHECKs; here it is said so
 * that a person knows what to type instead.  All pure.
 */
#include "store/private.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OWNER_MAX (UINT32_MAX - 1ll) /* -1 is no user */

struct shown {
    char text[80];
};

static struct shown show(const char *text)
{
    struct shown shown;

    text_escape(shown.text, sizeof(shown.text), text, strlen(text));
    return shown;
}

static bool all_digits(const char *text)
{
    return text[0] && text[strspn(text, "0123456789")] == '\0';
}

static bool is_uuid(const char *text)
{
    for (int i = 0; i < STORE_UUID_BYTES - 1; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;

        if (dash ? text[i] != '-' : !isxdigit((unsigned char)text[i]))
            return false;
    }
    return text[STORE_UUID_BYTES - 1] == '\0';
}

/* Names of VMs and pools: what a terminal can show and a person can type. */
static int check_plain_name(const char *name, struct vgpu_error *error)
{
    size_t length = strlen(name);

    if (length == 0 || length >= STORE_NAME_BYTES)
        return error_set(error, EINVAL, "name '%s' has %zu characters; expected 1 to %d",
                         show(name).text, length, STORE_NAME_BYTES - 1);
    for (size_t i = 0; i < length; i++) {
        if (name[i] < ' ' || name[i] > '~')
            return error_set(error, EINVAL, "name '%s': expected printable ASCII characters only",
                             show(name).text);
    }
    if (name[0] == ' ' || name[0] == '-' || name[length - 1] == ' ')
        return error_set(error, EINVAL,
                         "name '%s': it may not begin with a blank or '-', nor end with a blank",
                         name);
    return 0;
}

int store_check_name(const char *name, struct vgpu_error *error)
{
    if (check_plain_name(name, error) < 0)
        return -1;
    if (all_digits(name) || is_uuid(name))
        return error_set(error, EINVAL,
                         "name '%s' could be taken for an id or a UUID; add a letter to it", name);
    return 0;
}

int store_check_uuid(const char *uuid, char ret_uuid[STORE_UUID_BYTES], struct vgpu_error *error)
{
    if (!is_uuid(uuid))
        return error_set(error, EINVAL,
                         "UUID '%s': expected 8-4-4-4-12 hexadecimal digits, as "
                         "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
                         show(uuid).text);
    if (strspn(uuid, "0-") == STORE_UUID_BYTES - 1)
        return error_set(error, EINVAL, "UUID '%s': all zero is no VM's", uuid);
    for (int i = 0; i < STORE_UUID_BYTES; i++)
        ret_uuid[i] = (char)tolower((unsigned char)uuid[i]);
    return 0;
}

int store_check_vm_id(const char *text, uint32_t *ret_vm_id, struct vgpu_error *error)
{
    uint64_t number;

    if (!text_parse_u64(text, 1, STORE_VM_ID_MAX, &number))
        return error_set(error, EINVAL, "VM id '%s': expected a whole number from 1 to %u",
                         show(text).text, STORE_VM_ID_MAX);
    *ret_vm_id = (uint32_t)number;
    return 0;
}

int store_check_priority(const char *text, uint8_t *ret_priority, struct vgpu_error *error)
{
    static const char *const words[][2] = {{"low", "0"}, {"medium", "1"}, {"high", "2"}};

    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(words); i++) {
        if (strcmp(text, words[i][0]) == 0 || strcmp(text, words[i][1]) == 0) {
            *ret_priority = (uint8_t)i;
            return 0;
        }
    }
    return error_set(error, EINVAL, "priority '%s': expected low, medium or high (or 0, 1, 2)",
                     show(text).text);
}

int store_check_pool_id(const char *text, char *ret_pool, struct vgpu_error *error)
{
    if (text[0] < 'A' || text[0] > 'Z' || text[1])
        return error_set(error, EINVAL, "pool id '%s': expected one letter from A to Z",
                         show(text).text);
    *ret_pool = text[0];
    return 0;
}

int store_check_policy(const char *text, enum store_policy *ret_policy, struct vgpu_error *error)
{
    for (unsigned i = 0; i <= STORE_POLICY_ROUND_ROBIN; i++) {
        if (strcmp(text, store_policy_name((enum store_policy)i)) == 0) {
            *ret_policy = (enum store_policy)i;
            return 0;
        }
    }
    return error_set(error, EINVAL,
                     "policy '%s': expected strict, wfq, fifo, round-robin or default",
                     show(text).text);
}

/* --- devices -------------------------------------------------------------------------- */

static bool is_pci_address(const char *text)
{
    static const char form[] = "xxxx:xx:xx.o";

    for (size_t i = 0; i < sizeof(form); i++) {
        bool good = form[i] == 'x'   ? isxdigit((unsigned char)text[i])
                    : form[i] == 'o' ? text[i] >= '0' && text[i] <= '7'
                                     : text[i] == form[i];

        if (!good)
            return false;
    }
    return true;
}

int store_check_device(const char *name, struct vgpu_error *error)
{
    uint64_t index;

    if (strcmp(name, "cpu") == 0 ||
        (strncmp(name, "cpu:", 4) == 0 && text_parse_u64(name + 4, 0, 63, &index)) ||
        ((strncmp(name, "GPU-", 4) == 0 || strncmp(name, "MIG-", 4) == 0) && is_uuid(name + 4)) ||
        is_pci_address(name))
        return 0;
    return error_set(error, EINVAL,
                     "device '%s': expected cpu, cpu:0 to cpu:63, GPU-<uuid>, MIG-<uuid> or a PCI "
                     "address as 0000:01:00.0",
                     show(name).text);
}

/* --- texts ---------------------------------------------------------------------------- */

int check_text(const char *what, const char *text, size_t bytes, struct vgpu_error *error)
{
    json_t *string;
    size_t length = strlen(text);

    if (length >= bytes)
        return error_set(error, EINVAL, "%s has %zu bytes; expected at most %zu", what, length,
                         bytes - 1);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
            return error_set(error, EINVAL, "%s: expected one line without control characters",
                             what);
    }
    string = json_string(text); /* jansson knows what UTF-8 is */
    if (!string)
        return error_set(error, EINVAL, "%s: expected UTF-8 text", what);
    json_decref(string);
    return 0;
}

/* --- rows ----------------------------------------------------------------------------- */

static int check_range(const char *what, uint64_t number, uint64_t max, struct vgpu_error *error)
{
    if (number <= max)
        return 0;
    return error_set(error, EINVAL, "%s %llu: expected at most %llu", what,
                     (unsigned long long)number, (unsigned long long)max);
}

static int check_owner(const struct store_vm *vm, struct vgpu_error *error)
{
    if (vm->owner_uid < -1 || vm->owner_uid > OWNER_MAX || vm->owner_gid < -1 ||
        vm->owner_gid > OWNER_MAX)
        return error_set(error, EINVAL,
                         "owner %lld:%lld: expected numbers of a user and a group, -1 the default",
                         (long long)vm->owner_uid, (long long)vm->owner_gid);
    if (vm->mode > 0777 || (vm->mode & 0700) != 0700 || (vm->mode & 0002))
        return error_set(error, EINVAL,
                         "mode 0%03o: expected 0700 to 0775, writable for the owner and never for "
                         "everybody",
                         vm->mode);
    return 0;
}

static int check_limits(const struct store_limits *limits, struct vgpu_error *error)
{
    for (unsigned i = 0; i < STORE_LIMITS; i++) {
        if (check_range(store_limits[i].name, store_limit_get(limits, &store_limits[i]),
                        store_limits[i].max, error) < 0)
            return -1;
    }
    return 0;
}

int check_vm(const struct store_vm *vm, struct vgpu_error *error)
{
    char uuid[STORE_UUID_BYTES], pool[] = {vm->pool, '\0'}, checked;

    if (vm->vm_id < 1 || vm->vm_id > STORE_VM_ID_MAX)
        return error_set(error, EINVAL, "VM id %u: expected 1 to %u", vm->vm_id, STORE_VM_ID_MAX);
    if ((vm->name[0] && store_check_name(vm->name, error) < 0) ||
        (vm->uuid[0] && store_check_uuid(vm->uuid, uuid, error) < 0) ||
        store_check_pool_id(pool, &checked, error) < 0 ||
        check_range("priority", vm->priority, 2, error) < 0 ||
        check_limits(&vm->limits, error) < 0 ||
        check_range("state", vm->state, STORE_VM_QUARANTINED, error) < 0 ||
        check_range("channels", vm->channels,
                    STORE_CHANNEL_FILE | STORE_CHANNEL_WINDOW | STORE_CHANNEL_XEN, error) < 0)
        return -1;
    if (vm->quarantine_until_us > INT64_MAX)
        return error_set(error, EINVAL,
                         "quarantine_until_us %llu: expected microseconds since 1970",
                         (unsigned long long)vm->quarantine_until_us);
    if (check_text("the reason", vm->reason, sizeof(vm->reason), error) < 0)
        return -1;
    return check_owner(vm, error);
}

static int check_devices(const char *devices, struct vgpu_error *error)
{
    char text[STORE_POOL_DEVICE_BYTES], *rest = text, *name;
    const char *seen[STORE_POOL_DEVICES_MAX];
    size_t count = 0;

    text_copy(text, sizeof(text), devices);
    while ((name = strtok_r(rest, " ", &rest))) {
        if (store_check_device(name, error) < 0)
            return -1;
        if (count == STORE_POOL_DEVICES_MAX)
            return error_set(error, EINVAL, "a pool has at most %d devices",
                             STORE_POOL_DEVICES_MAX);
        for (size_t i = 0; i < count; i++) {
            if (strcmp(seen[i], name) == 0)
                return error_set(error, EINVAL, "device '%s' is named twice", name);
        }
        seen[count++] = name;
    }
    return 0;
}

/* As many as one session has must be there, of one kind; of MIG instances a process sees one. */
static int check_session_devices(const struct store_pool *pool, struct vgpu_error *error)
{
    unsigned cpus = 0, gpus = 0;
    char name[STORE_DEVICE_BYTES];
    bool mig = false;

    for (unsigned i = 0; text_word(pool->device, i, name, sizeof(name)); i++) {
        if (strncmp(name, "cpu", 3) == 0)
            cpus++;
        else
            gpus++;
        mig = mig || strncmp(name, "MIG-", 4) == 0;
    }
    if (pool->session_devices < 1 || pool->session_devices > STORE_POOL_DEVICES_MAX)
        return error_set(error, EINVAL, "session_devices %u: expected 1 to %d",
                         pool->session_devices, STORE_POOL_DEVICES_MAX);
    if (pool->session_devices == 1)
        return 0;
    if (mig)
        return error_set(error, EINVAL,
                         "session_devices %u: a session can have one MIG instance only, and pool "
                         "%c has such; use 1",
                         pool->session_devices, pool->id);
    if (pool->session_devices > cpus && pool->session_devices > gpus)
        return error_set(error, EINVAL,
                         "session_devices %u: pool %c has %u GPUs and %u processors, expected at "
                         "most as many as it has of one kind; bind more to it or use less",
                         pool->session_devices, pool->id, gpus, cpus);
    return 0;
}

int check_pool(const struct store_pool *pool, struct vgpu_error *error)
{
    char id[] = {pool->id, '\0'}, checked;

    if (store_check_pool_id(id, &checked, error) < 0 || check_plain_name(pool->name, error) < 0)
        return -1;
    if (!pool->name[1] && pool->name[0] >= 'A' && pool->name[0] <= 'Z')
        return error_set(error, EINVAL,
                         "pool name '%s' could be taken for a pool's id; add a letter to it",
                         pool->name);
    if (check_text("the description", pool->description, sizeof(pool->description), error) < 0 ||
        check_range("sharing", pool->sharing, STORE_INDEPENDENT, error) < 0 ||
        check_range("device_memory_max_mib", pool->device_memory_max_mib, STORE_POOL_MEMORY_MIB_MAX,
                    error) < 0 ||
        check_range("vms_max", pool->vms_max, STORE_VM_ID_MAX, error) < 0 ||
        check_range("policy", pool->policy, STORE_POLICY_ROUND_ROBIN, error) < 0 ||
        check_range("aging_ms", pool->aging_ms, STORE_AGING_MS_MAX, error) < 0)
        return -1;
    if (pool->device[0] && check_devices(pool->device, error) < 0)
        return -1;
    return check_session_devices(pool, error);
}

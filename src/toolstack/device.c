/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device as QEMU's arguments, written and read:
 *
 *   -object  memory-backend-memfd,id=vgpuwin,size=64M,share=on
 *   -chardev socket,id=vgpu,path=/run/vgpu-mediator/vm100.sock,reconnect=1
 *   -device  vgpu-stub,vm_id=100,pool_id=A,priority=high,memdev=vgpuwin,chardev=vgpu,sessions=8
 *
 * Recognised as ours: a -device vgpu-stub, and the -object and -chardev that it
 * names or that carry our ids.  Properties that are not ours (addr=, bus=, id=)
 * stay with the device when it is written anew.  docs/device.md has them all.
 *
 * A place on the bus is named (addr=).  QEMU makes the devices that are written so
 * before those that libvirt writes as JSON: left to itself ours would take the first
 * slot, which libvirt has given to another.
 */
#include "toolstack/private.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DRIVER "vgpu-stub"
#define WINDOW_MIB_MIN 2u
#define WINDOW_MIB_MAX 65536u
#define SLOTS_MAX 16u
#define SLOTS_DEFAULT 8u

static const char *const priority_names[] = {"low", "medium", "high"};

/* --- writing ---------------------------------------------------------------------- */

/* A comma would begin another property. */
static bool is_plain_path(const char *path)
{
    if (path[0] != '/')
        return false;
    for (; *path; path++) {
        if (!isalnum((unsigned char)*path) && !strchr("/._-+@", *path))
            return false;
    }
    return true;
}

static int check_window(const struct toolstack_device *device, struct vgpu_error *error)
{
    if (device->window_mib < WINDOW_MIB_MIN || device->window_mib > WINDOW_MIB_MAX ||
        (device->window_mib & (device->window_mib - 1)))
        return error_set(error, EINVAL,
                         "the window of VM %u has %u MiB: use a power of two from %u to %u",
                         device->vm_id, device->window_mib, WINDOW_MIB_MIN, WINDOW_MIB_MAX);
    if (device->slots < 1 || device->slots > SLOTS_MAX)
        return error_set(error, EINVAL, "the window of VM %u has %u sessions: use 1 to %u",
                         device->vm_id, device->slots, SLOTS_MAX);
    if (!memchr(device->socket_path, '\0', sizeof(device->socket_path)) ||
        !is_plain_path(device->socket_path))
        return error_set(error, EINVAL,
                         "the socket '%.107s' of VM %u is no absolute path of letters, digits and "
                         "/._-+@: set run_dir to such a path",
                         device->socket_path, device->vm_id);
    return 0;
}

int device_check(const struct toolstack_device *device, struct vgpu_error *error)
{
    if (device->vm_id < 1 || device->vm_id > INT32_MAX)
        return error_set(error, EINVAL, "VM id %u cannot be: use 1 to %d", device->vm_id,
                         INT32_MAX);
    if (device->pool < 'A' || device->pool > 'Z')
        return error_set(error, EINVAL,
                         "the pool of VM %u (character %d) is not one letter from A to Z",
                         device->vm_id, device->pool);
    if (device->priority >= VGPU_ARRAY_LENGTH(priority_names))
        return error_set(error, EINVAL, "priority %u of VM %u is not 0, 1 or 2", device->priority,
                         device->vm_id);
    return device->window ? check_window(device, error) : 0;
}

void device_format(const struct toolstack_device *device, const char *extra,
                   char text[DEVICE_TEXT_BYTES])
{
    char window[128] = "";

    if (device->window)
        snprintf(window, sizeof(window),
                 ",memdev=" DEVICE_MEMORY_ID ",chardev=" DEVICE_CHARDEV_ID ",sessions=%u",
                 device->slots);
    snprintf(text, DEVICE_TEXT_BYTES, DRIVER ",vm_id=%u,pool_id=%c,priority=%s%s%.300s",
             device->vm_id, device->pool, priority_names[device->priority], window,
             strlen(extra) <= 300 ? extra : "");
}

void device_format_memory(const struct toolstack_device *device, char text[DEVICE_TEXT_BYTES])
{
    snprintf(text, DEVICE_TEXT_BYTES,
             "memory-backend-memfd,id=" DEVICE_MEMORY_ID ",size=%uM,share=on", device->window_mib);
}

void device_format_chardev(const struct toolstack_device *device, char text[DEVICE_TEXT_BYTES])
{
    snprintf(text, DEVICE_TEXT_BYTES, "socket,id=" DEVICE_CHARDEV_ID ",path=%s,reconnect=1",
             device->socket_path);
}

/* --- reading ---------------------------------------------------------------------- */

/* Copies the next part of QEMU's comma list, ",," being a comma; returns its end. */
static const char *take_property(const char *at, char *property, size_t bytes)
{
    size_t used = 0;

    while (*at && !(*at == ',' && at[1] != ',')) {
        at += *at == ',';
        if (used + 1 < bytes)
            property[used++] = *at;
        at++;
    }
    property[used] = '\0';
    return at;
}

/* The value of `key` in a comma list; false when it is not there. */
static bool find_property(const char *text, const char *key, char *value, size_t bytes)
{
    char property[DEVICE_TEXT_BYTES] = "";
    size_t length = strlen(key);

    while (*text) {
        text = take_property(text, property, sizeof(property));
        text += *text == ',';
        if (!strncmp(property, key, length) && property[length] == '=') {
            text_copy(value, bytes, property + length + 1);
            return true;
        }
    }
    return false;
}

static bool begins_list(const char *text, const char *first)
{
    size_t length = strlen(first);

    return !strncmp(text, first, length) && (text[length] == '\0' || text[length] == ',');
}

static bool is_option(const char *argument, const char *name)
{
    return argument[0] == '-' && !strcmp(argument + 1 + (argument[1] == '-'), name);
}

/* {"driver":"vgpu-stub",...}: the other way to write a device. */
static bool is_json_stub(const char *value)
{
    return value[0] == '{' && strstr(value, "\"" DRIVER "\"");
}

/* driver=vgpu-stub at any place: QEMU reads that too. */
static bool is_keyed_stub(const char *value)
{
    const char *at = value;

    while ((at = strstr(at, "driver=" DRIVER))) {
        if ((at == value || at[-1] == ',') && begins_list(at, "driver=" DRIVER))
            return true;
        at++;
    }
    return false;
}

static bool is_stub(const char *const *arguments, size_t count, size_t at)
{
    return at + 1 < count && is_option(arguments[at], "device") &&
           (begins_list(arguments[at + 1], DRIVER) || is_json_stub(arguments[at + 1]) ||
            is_keyed_stub(arguments[at + 1]));
}

/* -set GROUP.ID.KEY=VALUE, of the device or of the socket and memory that it names. */
static bool set_changes_stubs(const char *value)
{
    static const char *const keys[] = {
        ".driver=", ".vm_id=", ".pool_id=", ".priority=", ".sessions=", ".chardev=", ".memdev="};

    if (!strncmp(value, "chardev.", 8) || !strncmp(value, "object.", 7))
        return true;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(keys); i++) {
        if (!strncmp(value, "device.", 7) && strstr(value, keys[i]))
            return true;
    }
    return false;
}

/* Why the argument at `at` makes what stands in -device worthless; NULL: it does not. */
static const char *override_problem(const char *const *arguments, size_t count, size_t at,
                                    bool has_stub)
{
    const char *value = at + 1 < count ? arguments[at + 1] : "";

    if (is_option(arguments[at], "readconfig"))
        return "its -readconfig names a file that may make or change a vgpu-stub";
    if (is_option(arguments[at], "set") && strstr(value, ".driver=" DRIVER))
        return "a -set makes a vgpu-stub of another device";
    if (has_stub && is_option(arguments[at], "set") && set_changes_stubs(value))
        return "a -set beside its vgpu-stub changes it";
    if (has_stub && is_option(arguments[at], "global") && strstr(value, DRIVER))
        return "a -global beside its vgpu-stub changes it";
    return NULL;
}

static void find_override(struct device_arguments *found, const char *const *arguments,
                          size_t count)
{
    const char *problem = NULL;

    for (size_t i = 0; i < count && !problem; i++)
        problem = override_problem(arguments, count, i, found->count > 0);
    if (!problem)
        return;
    found->overridden = true;
    text_copy(found->problem, sizeof(found->problem), problem);
}

static bool read_number(const char *text, uint64_t max, uint32_t *ret_number)
{
    uint64_t number;

    if (!text_parse_u64(text, 1, max, &number))
        return false;
    *ret_number = (uint32_t)number;
    return true;
}

static bool read_priority(const char *text, uint8_t *ret_priority)
{
    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(priority_names); i++) {
        if (!strcmp(text, priority_names[i]) || (text[0] == (char)('0' + i) && text[1] == '\0')) {
            *ret_priority = (uint8_t)i;
            return true;
        }
    }
    return false;
}

static void note_problem(struct device_arguments *found, const char *key, const char *value)
{
    char shown[96];

    text_escape(shown, sizeof(shown), value, strlen(value));
    if (!*found->problem)
        snprintf(found->problem, sizeof(found->problem),
                 "its vgpu-stub has %.32s '%s', which cannot be", key, shown);
}

/* One "key=value" of the device; false: not one of ours. */
static bool read_property(struct device_arguments *found, const char *key, const char *value)
{
    struct toolstack_device *device = &found->device;
    bool right = true;

    if (!strcmp(key, "vm_id"))
        right = read_number(value, UINT32_MAX, &device->vm_id);
    else if (!strcmp(key, "pool_id"))
        right = value[0] >= 'A' && value[0] <= 'Z' && value[1] == '\0' && (device->pool = value[0]);
    else if (!strcmp(key, "priority"))
        right = read_priority(value, &device->priority);
    else if (!strcmp(key, "sessions"))
        right = read_number(value, SLOTS_MAX, &device->slots);
    else if (!strcmp(key, "memdev"))
        text_copy(found->memory_id, sizeof(found->memory_id), value);
    else if (!strcmp(key, "chardev"))
        text_copy(found->chardev_id, sizeof(found->chardev_id), value);
    else
        return false;
    if (!right)
        note_problem(found, key, value);
    return true;
}

static void read_stub(struct device_arguments *found, const char *text)
{
    char property[DEVICE_TEXT_BYTES];

    found->device = (struct toolstack_device){.pool = 'A', .priority = 1, .slots = SLOTS_DEFAULT};
    if (is_json_stub(text) || is_keyed_stub(text)) {
        snprintf(found->problem, sizeof(found->problem),
                 "its vgpu-stub is written %s, which is not read here",
                 is_json_stub(text) ? "as JSON" : "with driver=");
        return;
    }
    text = take_property(text, property, sizeof(property));
    while (*text == ',') {
        const char *start = text;
        size_t used = strlen(found->extra);
        char *equals;

        text = take_property(text + 1, property, sizeof(property));
        equals = strchr(property, '=');
        if (equals)
            *equals = '\0';
        if (*property && !read_property(found, property, equals ? equals + 1 : "on"))
            snprintf(found->extra + used, sizeof(found->extra) - used, "%.*s", (int)(text - start),
                     start);
    }
    if (found->device.vm_id == 0 && !*found->problem)
        snprintf(found->problem, sizeof(found->problem), "its vgpu-stub has no vm_id");
}

static bool owns_object(const struct device_arguments *found, const char *value)
{
    char id[64];

    if (strncmp(value, "memory-backend-", strlen("memory-backend-")) != 0 ||
        !find_property(value, "id", id, sizeof(id)))
        return false;
    return !strcmp(id, DEVICE_MEMORY_ID) || (*found->memory_id && !strcmp(id, found->memory_id));
}

static bool owns_chardev(const struct device_arguments *found, const char *value)
{
    char id[64];

    if (!begins_list(value, "socket") || !find_property(value, "id", id, sizeof(id)))
        return false;
    return !strcmp(id, DEVICE_CHARDEV_ID) || (*found->chardev_id && !strcmp(id, found->chardev_id));
}

bool device_owns_argument(const struct device_arguments *found, const char *const *arguments,
                          size_t count, size_t at)
{
    if (at + 1 >= count)
        return false;
    if (is_stub(arguments, count, at))
        return true;
    if (is_option(arguments[at], "object"))
        return owns_object(found, arguments[at + 1]);
    return is_option(arguments[at], "chardev") && owns_chardev(found, arguments[at + 1]);
}

/* "64M" and the like; 0: not whole MiB. */
static uint32_t read_mib(const char *text)
{
    char digits[24];
    size_t length = strspn(text, "0123456789");
    uint64_t number;

    if (length == 0 || length >= sizeof(digits))
        return 0;
    memcpy(digits, text, length);
    digits[length] = '\0';
    if (!text_parse_u64(digits, 1, UINT32_MAX, &number))
        return 0;
    text += length;
    if (!strcmp(text, "G"))
        number *= 1024;
    else if (!strcmp(text, "K"))
        number /= 1024;
    else if (strcmp(text, "M") != 0 && *text)
        return 0;
    return number <= WINDOW_MIB_MAX ? (uint32_t)number : 0;
}

static void read_window(struct device_arguments *found, const char *const *arguments, size_t count)
{
    struct toolstack_device *device = &found->device;
    char size[24] = "";

    for (size_t i = 0; i + 1 < count; i++) {
        if (is_option(arguments[i], "object") && owns_object(found, arguments[i + 1]))
            find_property(arguments[i + 1], "size", size, sizeof(size));
        if (is_option(arguments[i], "chardev") && owns_chardev(found, arguments[i + 1]))
            find_property(arguments[i + 1], "path", device->socket_path,
                          sizeof(device->socket_path));
    }
    device->window = true;
    device->window_mib = read_mib(size);
    if (*found->problem)
        return;
    if (!*device->socket_path)
        snprintf(found->problem, sizeof(found->problem),
                 "its vgpu-stub names chardev '%s', which is not there", found->chardev_id);
    else if (device->window_mib == 0)
        snprintf(found->problem, sizeof(found->problem),
                 "its vgpu-stub names memory '%s', which is not there with a size in MiB",
                 found->memory_id);
}

void device_read_arguments(const char *const *arguments, size_t count,
                           struct device_arguments *ret_found)
{
    struct device_arguments found = {0};

    for (size_t i = 0; i < count; i++) {
        if (!is_stub(arguments, count, i))
            continue;
        if (found.count++ == 0)
            read_stub(&found, arguments[i + 1]);
        i++;
    }
    if (found.count > 1 && !*found.problem)
        snprintf(found.problem, sizeof(found.problem), "it has %u vgpu-stub devices, not one",
                 found.count);
    if (found.count > 0 && (*found.memory_id || *found.chardev_id))
        read_window(&found, arguments, count);
    find_override(&found, arguments, count); /* whatever else is wrong: this one comes first */
    *ret_found = found;
}

void device_describe(const struct device_arguments *found, struct toolstack_vm *vm)
{
    vm->has_device = found->count > 0;
    vm->device_overridden = found->overridden;
    if (vm->has_device)
        vm->device = found->device;
    text_copy(vm->device_problem, sizeof(vm->device_problem), found->problem);
}

/* --- its place on the bus ------------------------------------------------------------ */

/* From the top, and not where chipsets have devices of their own (0x1a, 0x1b, 0x1d up). */
static const uint8_t slots_for_us[] = {0x1c, 0x19, 0x18, 0x17, 0x16, 0x15, 0x14,
                                       0x13, 0x12, 0x11, 0x10, 0x0f, 0x0e};

/* Takes "addr=..." out of a list of ",key=value". */
static void drop_address(char *extra)
{
    char property[DEVICE_TEXT_BYTES];
    const char *next;

    while (*extra == ',') {
        next = take_property(extra + 1, property, sizeof(property));
        if (!strncmp(property, "addr=", 5))
            memmove(extra, next, strlen(next) + 1);
        else
            extra += next - extra;
    }
}

int device_place(struct device_arguments *found, uint32_t used_slots, struct vgpu_error *error)
{
    char value[32];
    size_t length;

    if (find_property(found->extra, "bus", value, sizeof(value)))
        return 0; /* the administrator's own choice, on a bus that we know nothing of */
    if (find_property(found->extra, "addr", value, sizeof(value))) {
        unsigned long slot = strtoul(value, NULL, 16);

        if (slot < 32 && !(used_slots & 1u << slot))
            return 0;
        drop_address(found->extra);
    }
    for (size_t i = 0; i < sizeof(slots_for_us); i++) {
        if (used_slots & 1u << slots_for_us[i])
            continue;
        length = strlen(found->extra);
        snprintf(found->extra + length, sizeof(found->extra) - length, ",addr=0x%x",
                 slots_for_us[i]);
        return 0;
    }
    return error_set(error, ENOSPC, "the VM's PCI bus 0 has no slot left for the device");
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Which GPUs there are, and which of them a name means. */
#include "gpu/gpu.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define PREFIX_MIN 8u /* characters of a UUID, "GPU-" among them */

#define EXPECTED                                                                                   \
    "expected an index as 0, GPU-UUID or its first 8 characters, a PCI address as 65:00.0, or "    \
    "MIG-UUID"

/* --- what there is ------------------------------------------------------------------------------
 */

static void print_uuid(const cuda_uuid *uuid, bool mig, char text[GPU_UUID_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    char *at = text + snprintf(text, GPU_UUID_BYTES, mig ? "MIG-" : "GPU-");

    for (size_t i = 0; i < sizeof(uuid->bytes); i++) {
        unsigned char byte = (unsigned char)uuid->bytes[i];

        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = digits[byte >> 4];
        *at++ = digits[byte & 0xf];
    }
    *at = '\0';
}

static cuda_result read_attributes(const struct cuda *cuda, cuda_device handle,
                                   struct gpu_device *device)
{
    const struct {
        cuda_device_attribute attribute;
        int *value;
    } wanted[] = {
        {CUDA_DEVICE_COMPUTE_CAPABILITY_MAJOR, &device->capability_major},
        {CUDA_DEVICE_COMPUTE_CAPABILITY_MINOR, &device->capability_minor},
        {CUDA_DEVICE_MULTIPROCESSOR_COUNT, &device->multiprocessors},
    };
    cuda_result result = CUDA_SUCCESS;

    for (size_t i = 0; result == CUDA_SUCCESS && i < VGPU_ARRAY_LENGTH(wanted); i++)
        result = cuda->device_get_attribute(wanted[i].value, wanted[i].attribute, handle);
    return result;
}

/* A MIG device says so in its name alone: "NVIDIA H100 80GB HBM3 MIG 1g.10gb". */
static cuda_result describe(const struct cuda *cuda, int index, struct gpu_device *device)
{
    cuda_device handle;
    cuda_uuid uuid;
    size_t memory_bytes;
    cuda_result result = cuda->device_get(&handle, index);

    *device = (struct gpu_device){.index = index};
    if (result == CUDA_SUCCESS)
        result = cuda->device_get_name(device->name, sizeof(device->name), handle);
    if (result == CUDA_SUCCESS)
        result = cuda->device_get_uuid(&uuid, handle);
    if (result == CUDA_SUCCESS)
        result = cuda->device_get_pci_bus_id(device->address, sizeof(device->address), handle);
    if (result == CUDA_SUCCESS)
        result = cuda->device_total_mem(&memory_bytes, handle);
    if (result == CUDA_SUCCESS)
        result = read_attributes(cuda, handle, device);
    if (result != CUDA_SUCCESS)
        return result;
    device->memory_bytes = memory_bytes;
    device->mig = strstr(device->name, " MIG ") != NULL;
    print_uuid(&uuid, device->mig, device->uuid);
    for (char *at = device->address; *at; at++)
        *at = (char)tolower((unsigned char)*at);
    return CUDA_SUCCESS;
}

cuda_result gpu_list_devices(const struct cuda *cuda, struct gpu_device devices[GPU_DEVICES_MAX],
                             size_t *ret_count)
{
    struct gpu_device found[GPU_DEVICES_MAX];
    int count = 0;
    cuda_result result = cuda->device_get_count(&count);

    if (count > GPU_DEVICES_MAX)
        count = GPU_DEVICES_MAX;
    for (int i = 0; result == CUDA_SUCCESS && i < count; i++)
        result = describe(cuda, i, &found[i]);
    if (result != CUDA_SUCCESS)
        return result;
    for (int i = 0; i < count; i++)
        devices[i] = found[i];
    *ret_count = (size_t)count;
    return CUDA_SUCCESS;
}

/* --- selectors
 * -------------------------------------------------------------------------------------- */

enum selector_kind { BY_INDEX, BY_UUID, BY_ADDRESS, BY_MIG };

struct selector {
    enum selector_kind kind;
    uint64_t index;
    char text[GPU_ENVIRONMENT_BYTES]; /* of a UUID, as given */
    char address[GPU_ADDRESS_BYTES];
};

static bool has_prefix(const char *text, const char *prefix)
{
    return strncasecmp(text, prefix, strlen(prefix)) == 0;
}

/* A hexadecimal number up to `max` and the letter behind it; false when it is not so. */
static bool read_hex(const char **at, unsigned max, char behind, unsigned *ret_number)
{
    char *end;
    unsigned long number;

    if (!isxdigit((unsigned char)**at))
        return false;
    number = strtoul(*at, &end, 16);
    if (number > max || *end != behind)
        return false;
    *ret_number = (unsigned)number;
    *at = end + 1; /* behind the end nobody looks */
    return true;
}

/* "65:00.0", "0000:65:00.0", "00000000:65:00.0" */
static bool parse_address(const char *text, char address[GPU_ADDRESS_BYTES])
{
    const char *colon = strchr(text, ':');
    unsigned domain = 0, bus, slot, function;

    if (colon && strchr(colon + 1, ':') && !read_hex(&text, 0xffff, ':', &domain))
        return false;
    if (!read_hex(&text, 0xff, ':', &bus) || !read_hex(&text, 0x1f, '.', &slot) ||
        !read_hex(&text, 7, '\0', &function))
        return false;
    snprintf(address, GPU_ADDRESS_BYTES, "%04x:%02x:%02x.%x", domain, bus, slot, function);
    return true;
}

/* Older drivers name MIG devices "MIG-GPU-UUID/1/0". */
static bool is_uuid_text(const char *text)
{
    return strlen(text) < GPU_ENVIRONMENT_BYTES - sizeof("CUDA_VISIBLE_DEVICES=") &&
           strspn(text, "0123456789abcdefABCDEFGPUMIgpumi-/") == strlen(text);
}

static int parse_selector(const char *text, struct selector *wanted, struct vgpu_error *error)
{
    char shown[64];

    *wanted = (struct selector){.kind = BY_INDEX};
    if (!text || !text[0] || text_parse_u64(text, 0, GPU_DEVICES_MAX - 1, &wanted->index))
        return 0;
    if (parse_address(text, wanted->address)) {
        wanted->kind = BY_ADDRESS;
        return 0;
    }
    if (is_uuid_text(text) && strlen(text) >= PREFIX_MIN &&
        (has_prefix(text, "GPU-") || has_prefix(text, "MIG-"))) {
        wanted->kind = has_prefix(text, "GPU-") ? BY_UUID : BY_MIG;
        text_copy(wanted->text, sizeof(wanted->text), text);
        return 0;
    }
    text_escape(shown, sizeof(shown), text, strlen(text));
    return error_set(error, EINVAL, "'%s' names no GPU: " EXPECTED, shown);
}

int gpu_check_selector(const char *selector, struct vgpu_error *error)
{
    struct selector wanted;

    return parse_selector(selector, &wanted, error);
}

const char *gpu_select_environment(const char *selector, char buffer[GPU_ENVIRONMENT_BYTES])
{
    struct selector wanted;

    if (parse_selector(selector, &wanted, NULL) < 0 || wanted.kind != BY_MIG)
        return NULL;
    snprintf(buffer, GPU_ENVIRONMENT_BYTES, "CUDA_VISIBLE_DEVICES=%.136s", wanted.text);
    return buffer;
}

/* --- finding
 * ------------------------------------------------------------------------------------------ */

static bool is_meant(const struct gpu_device *device, const struct selector *wanted)
{
    switch (wanted->kind) {
    case BY_INDEX:
        return (uint64_t)device->index == wanted->index;
    case BY_ADDRESS:
        return strcmp(device->address, wanted->address) == 0;
    case BY_MIG: /* the old kind of name has no UUID of the part; CUDA shows no other then */
        return device->mig &&
               (has_prefix(device->uuid, wanted->text) || has_prefix(wanted->text, "MIG-GPU-"));
    case BY_UUID:
    default:
        return !device->mig && has_prefix(device->uuid, wanted->text);
    }
}

/* "0 NVIDIA H100 GPU-… 0000:65:00.0; 1 …", as many as there is room for. */
static void list(const struct gpu_device *devices, size_t count, char *text, size_t bytes)
{
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; i < count && used < bytes; i++) {
        int length =
            snprintf(text + used, bytes - used, "%s%d %.48s %s %s", i ? "; " : "", devices[i].index,
                     devices[i].name, devices[i].uuid, devices[i].address);

        used += length > 0 ? (size_t)length : 0;
    }
}

int gpu_find(const struct gpu_device *devices, size_t count, const char *selector,
             struct vgpu_error *error)
{
    const char *shown = selector && selector[0] ? selector : "0";
    struct selector wanted;
    char there[320];
    int found = -1;

    if (parse_selector(selector, &wanted, error) < 0)
        return -1;
    list(devices, count, there, sizeof(there));
    for (size_t i = 0; i < count; i++) {
        if (!is_meant(&devices[i], &wanted))
            continue;
        if (found >= 0)
            return error_set(error, EINVAL,
                             "'%.48s' means several GPUs, give more of it; there are: %s", shown,
                             there);
        found = (int)i;
    }
    if (found >= 0)
        return found;
    if (count == 0)
        return error_set(error, ENODEV, "there is no GPU '%.48s': CUDA shows none", shown);
    return error_set(
        error, ENODEV, "there is no GPU '%.48s'; there are: %s%s", shown, there,
        wanted.kind == BY_MIG ? " (a MIG device needs CUDA_VISIBLE_DEVICES before the start)" : "");
}

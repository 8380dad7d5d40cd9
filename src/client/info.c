/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `vgpu-client info`: every device with all its registers in words, which channel
 * requests take and why, and what else of the class was seen and why it is not
 * ours.  To know what the window is like it opens a session and closes it.
 */
#include "client.h"

#include <stdlib.h>
#include <string.h>

static bool find_place(const struct options *options, const struct device *device, char *directory,
                       size_t bytes)
{
    char path[PATH_MAX];

    if (options->directory)
        snprintf(path, sizeof(path), "%.4000s", options->directory);
    else
        snprintf(path, sizeof(path), "%.4000s/vm%u", options->share,
                 options->vm_id ? options->vm_id : device_register(device, VGPU_REG_VM_ID));
    return text_normalize_path(path, directory, bytes);
}

static const char *memory_space_words(const struct device *device)
{
    switch (device->memory_space) {
    case MEMORY_SPACE_ON:
        return "on";
    case MEMORY_SPACE_OFF:
        return "off";
    case MEMORY_SPACE_SWITCHED_ON:
        return "switched on now";
    default:
        return "unknown";
    }
}

static const char *file_reason(const struct device *device, const struct window *window)
{
    return device_offers_window(device) ? window->reason : "window not offered by this device";
}

static void print_device(const struct options *options, const struct device *device,
                         const struct window *window)
{
    struct device_register_text texts[DEVICE_REGISTER_COUNT];
    unsigned count = device_describe(device, texts, DEVICE_REGISTER_COUNT);
    uint32_t version = device_register(device, VGPU_REG_VERSION);
    char directory[PATH_MAX] = "?";

    find_place(options, device, directory, sizeof(directory));
    printf("device   %s vgpu-stub %u.%u (%04x:%04x, class 0x%06x, memory space %s)\n",
           device->address, version >> 16, version & 0xffff, device->vendor_id, device->device_id,
           device->class_code, memory_space_words(device));
    if (!window->session)
        printf("channel  file %s (%s)\n", directory, file_reason(device, window));
    for (unsigned i = 0; i < count; i++)
        printf("  0x%03x  %-10s  0x%08x  %s\n", texts[i].offset, texts[i].name, texts[i].value,
               texts[i].meaning);
}

static void json_file_channel(const struct options *options, const struct device *device,
                              const struct window *window, struct json *json)
{
    char directory[PATH_MAX] = "";

    find_place(options, device, directory, sizeof(directory));
    json_open(json, "channel", '{');
    json_string(json, "kind", "file");
    json_string(json, "directory", directory);
    json_string(json, "reason", file_reason(device, window));
    json_close(json, '}');
}

static void json_device(const struct options *options, const struct device *device,
                        const struct window *window, struct json *json)
{
    struct device_register_text texts[DEVICE_REGISTER_COUNT];
    unsigned count = device_describe(device, texts, DEVICE_REGISTER_COUNT);

    json_open(json, NULL, '{');
    json_string(json, "address", device->address);
    json_integer(json, "vendor_id", device->vendor_id);
    json_integer(json, "device_id", device->device_id);
    json_integer(json, "class", device->class_code);
    json_string(json, "memory_space", memory_space_words(device));
    json_open(json, "registers", '[');
    for (unsigned i = 0; i < count; i++) {
        json_open(json, NULL, '{');
        json_integer(json, "offset", texts[i].offset);
        json_string(json, "name", texts[i].name);
        json_integer(json, "value", texts[i].value);
        json_string(json, "meaning", texts[i].meaning);
        json_close(json, '}');
    }
    json_close(json, ']');
    if (window->session)
        window_json_channel(window, json);
    else
        json_file_channel(options, device, window, json);
    json_close(json, '}');
}

static void print_json(const struct options *options, const struct device_list *list,
                       const struct window *window, const struct failure *failure)
{
    struct json json;

    json_begin(&json, stdout);
    if (window->session)
        window_json_channel(window, &json);
    json_open(&json, "devices", '[');
    for (unsigned i = 0; i < list->count; i++) {
        if (list->devices[i].usable)
            json_device(options, &list->devices[i], window, &json);
    }
    json_close(&json, ']');
    json_open(&json, "not_ours", '[');
    for (unsigned i = 0; i < list->count; i++) {
        if (list->devices[i].usable)
            continue;
        json_open(&json, NULL, '{');
        json_string(&json, "address", list->devices[i].address);
        json_string(&json, "problem", list->devices[i].problem);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_end(&json, failure ? failure->exit_code : 0, failure);
}

/* Without readable registers a session is enough to know who we are. */
static int show(const struct options *options, const struct device_list *list,
                const struct window *window)
{
    struct failure failure = {0};
    bool none = !window->session && !device_choose(list, options->device, &failure) &&
                failure.code != FAILURE_SEVERAL_DEVICES;

    if (options->json) {
        print_json(options, list, window, none ? &failure : NULL);
        return none ? failure.exit_code : 0;
    }
    if (none)
        return command_fail(options, &failure);
    if (window->session)
        window_print(window, stdout);
    for (unsigned i = 0; i < list->count; i++) {
        if (list->devices[i].usable)
            print_device(options, &list->devices[i], window);
        else
            printf("other    %s: %s\n", list->devices[i].address, list->devices[i].problem);
    }
    return 0;
}

static int look(const struct options *options, struct device_list *list, struct failure *failure)
{
    struct window window;
    int result;

    if (window_choose(options, &window, failure) < 0)
        return command_fail(options, failure);
    /* A socket's machine is not the one that we are on. */
    if (!(window.session && window.info.transport == VGPU_TRANSPORT_SOCKET) &&
        device_scan(options->sysfs, options->device, list, failure) < 0 && !window.session)
        return command_fail(options, failure);
    result = show(options, list, &window);
    window_close(&window);
    return result;
}

int command_info(const struct options *options)
{
    struct device_list *list = calloc(1, sizeof(*list));
    struct failure failure = {0};
    int result;

    if (!list) {
        failure_set(&failure, FAILURE_SYSTEM, "out of memory");
        return command_fail(options, &failure);
    }
    result = look(options, list, &failure);
    free(list);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin queue: what runs and what waits, device by device, in the order in which
 * it is served if nothing more comes; what waits for a context of a GPU comes last. */
#include "admin/commands.h"
#include "admin/live_view.h"

#include <stdio.h>
#include <string.h>

static const struct output_column columns[] = {
    {"device", "DEVICE", false}, {"place", "PLACE", true}, {"vm_id", "VM", true},
    {"name", "NAME", false},     {"pool", "POOL", false},  {"priority", "PRIORITY", false},
    {"depth", "QUEUE", true},    {"work", "WORK", false},
};

static void add_row(struct output *table, const json_t *device, const char *place, const json_t *vm)
{
    output_text(table, view_text(device, "name"));
    output_text(table, place);
    output_number(table, view_number(vm, "vm_id"));
    output_text(table, view_text(vm, "name"));
    output_text(table, view_text(vm, "pool"));
    output_text(table, output_priority((unsigned)view_number(vm, "priority")));
    output_number(table, view_number(vm, "depth"));
    output_text(table, view_text(vm, "work"));
    output_end_row(table);
}

/* Its own VM's share of contexts is all taken, or those of the device. */
static const char *context_of(const json_t *vm)
{
    return strcmp(view_text(vm, "limit"), "contexts_per_vm") == 0 ? "own-context" : "context";
}

static void add_device(struct output *table, const json_t *device)
{
    const json_t *running = json_object_get(device, "running"), *vm;
    char text[24];
    size_t place;

    if (json_is_object(running))
        add_row(table, device, "runs", running);
    json_array_foreach(json_object_get(device, "waiting"), place, vm)
    {
        snprintf(text, sizeof(text), "%zu", place + 1);
        add_row(table, device, text, vm);
    }
    json_array_foreach(json_object_get(device, "waiting_for_context"), place, vm)
        add_row(table, device, context_of(vm), vm);
}

static void print_queue(struct admin *admin, const json_t *devices)
{
    struct output *table = output_new(admin, columns, VGPU_ARRAY_LENGTH(columns));
    const json_t *device;
    size_t i;

    json_array_foreach(devices, i, device) add_device(table, device);
    output_print(table, "Nothing runs and nothing waits.");
    output_free(table);
}

int cmd_queue(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;
    json_t *queue;

    if (result)
        return result;
    if (live_call(admin, "queue", NULL, &queue, &error) < 0)
        return admin_fail(admin, &error);
    if (admin->json) {
        output_json(queue);
        return ADMIN_OK;
    }
    print_queue(admin, json_object_get(queue, "devices"));
    json_decref(queue);
    return ADMIN_OK;
}

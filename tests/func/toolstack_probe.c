/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls src/toolstack/ as vgpu-admin does, for the tests:
 *
 *   toolstack_probe [-t NAME] [-c URI] name
 *   toolstack_probe ... list
 *   toolstack_probe ... find VM
 *   toolstack_probe ... start VM
 *   toolstack_probe ... stop VM MILLISECONDS [force]
 *   toolstack_probe ... publish VM ID POOL PRIORITY [WINDOW_MIB SLOTS SOCKET]
 *   toolstack_probe ... unpublish VM
 *   toolstack_probe ... check VM [ID POOL PRIORITY]
 *
 * Prints JSON.  A failure is {"error": MESSAGE, "code": NAME} and exit status 1.
 */
#include "toolstack/toolstack.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const state_names[] = {"off", "running", "paused", "other"};

static int print(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(1) | JSON_SORT_KEYS);
    putchar('\n');
    json_decref(value);
    return 0;
}

static int fail(const struct vgpu_error *error)
{
    print(json_pack("{s:s, s:s}", "error", error->message, "code", strerrorname_np(error->code)));
    return 1;
}

static json_t *vm_object(const struct toolstack_vm *vm)
{
    const struct toolstack_device *device = &vm->device;
    json_t *object = json_pack("{s:s, s:s, s:s, s:s}", "uuid", vm->uuid, "name", vm->name, "state",
                               state_names[vm->state], "problem", vm->device_problem);

    if (!vm->has_device)
        return object;
    json_object_set_new(object, "device",
                        json_pack("{s:i, s:s%, s:i, s:b, s:i, s:i, s:s}", "vm_id",
                                  (int)device->vm_id, "pool", &device->pool, (size_t)1, "priority",
                                  (int)device->priority, "window", device->window, "window_mib",
                                  (int)device->window_mib, "slots", (int)device->slots, "socket",
                                  device->socket_path));
    return object;
}

static int list(struct toolstack *toolstack, struct vgpu_error *error)
{
    json_t *array = json_array();
    struct toolstack_vm *vms;
    size_t count;

    if (toolstack_list(toolstack, &vms, &count, error) < 0) {
        json_decref(array);
        return -1;
    }
    for (size_t i = 0; i < count; i++)
        json_array_append_new(array, vm_object(&vms[i]));
    free(vms);
    return print(array);
}

static int find(struct toolstack *toolstack, const char *text, struct vgpu_error *error)
{
    struct toolstack_vm vm;

    return toolstack_find(toolstack, text, &vm, error) < 0 ? -1 : print(vm_object(&vm));
}

static struct toolstack_device read_device(char **argv)
{
    return (struct toolstack_device){
        .vm_id = (uint32_t)strtoul(argv[2], NULL, 10),
        .pool = argv[3][0],
        .priority = (uint8_t)atoi(argv[4]),
    };
}

static int check(struct toolstack *toolstack, int argc, char **argv, struct vgpu_error *error)
{
    struct toolstack_device device;

    if (argc < 5)
        return toolstack_check(toolstack, argv[1], NULL, error);
    device = read_device(argv);
    return toolstack_check(toolstack, argv[1], &device, error);
}

static int publish(struct toolstack *toolstack, int argc, char **argv, struct vgpu_error *error)
{
    struct toolstack_device device = read_device(argv);

    if (argc > 7) {
        device.window = true;
        device.window_mib = (uint32_t)strtoul(argv[5], NULL, 10);
        device.slots = (uint32_t)strtoul(argv[6], NULL, 10);
        text_copy(device.socket_path, sizeof(device.socket_path), argv[7]);
    }
    return toolstack_publish(toolstack, argv[1], &device, error);
}

static int run(struct toolstack *toolstack, int argc, char **argv, struct vgpu_error *error)
{
    const char *command = argv[0];

    if (!strcmp(command, "name"))
        return print(json_pack("{s:s}", "name", toolstack_name(toolstack)));
    if (!strcmp(command, "list"))
        return list(toolstack, error);
    if (!strcmp(command, "find") && argc == 2)
        return find(toolstack, argv[1], error);
    if (!strcmp(command, "start") && argc == 2)
        return toolstack_start(toolstack, argv[1], error);
    if (!strcmp(command, "stop") && argc >= 3)
        return toolstack_stop(toolstack, argv[1], (unsigned)atoi(argv[2]), argc > 3, error);
    if (!strcmp(command, "unpublish") && argc == 2)
        return toolstack_publish(toolstack, argv[1], NULL, error);
    if (!strcmp(command, "publish") && argc >= 5)
        return publish(toolstack, argc, argv, error);
    if (!strcmp(command, "check") && (argc == 2 || argc == 5))
        return check(toolstack, argc, argv, error);
    return error_set(error, 22, "toolstack_probe: no such command");
}

int main(int argc, char **argv)
{
    const char *name = NULL, *uri = NULL;
    struct toolstack *toolstack;
    struct vgpu_error error;
    int option, result;

    while ((option = getopt(argc, argv, "+t:c:")) != -1) {
        if (option == 't')
            name = optarg;
        else if (option == 'c')
            uri = optarg;
        else
            return 2;
    }
    if (optind == argc)
        return 2;
    if (toolstack_open(name, uri, &toolstack, &error) < 0)
        return fail(&error);
    result = run(toolstack, argc - optind, argv + optind, &error);
    toolstack_close(toolstack);
    return result < 0 ? fail(&error) : result;
}

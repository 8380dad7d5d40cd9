/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin list-devices: the known devices and the pools on each. */
#include "admin/commands.h"

#include <stdlib.h>
#include <string.h>

static const struct output_column columns[] = {
    {"name", "DEVICE", false},
    {"kind", "KIND", false},
    {"pools", "POOLS", false},
    {"withdrawn", "STATE", false},
    {"description", "DESCRIPTION", false},
};

struct lists {
    struct store_device *devices;
    struct store_pool *pools;
    size_t device_count, pool_count;
};

static bool names_device(const struct store_pool *pool, const char *name)
{
    char text[STORE_POOL_DEVICE_BYTES], *rest = text, *device;

    text_copy(text, sizeof(text), pool->device);
    while ((device = strtok_r(rest, " ", &rest))) {
        if (strcmp(device, name) == 0)
            return true;
    }
    return false;
}

/* "A B" */
static void pools_text(const struct lists *lists, const char *device, char text[64])
{
    size_t used = 0;

    for (size_t i = 0; i < lists->pool_count && used + 2 < 64; i++) {
        if (!names_device(&lists->pools[i], device))
            continue;
        if (used)
            text[used++] = ' ';
        text[used++] = lists->pools[i].id;
    }
    text[used] = '\0';
}

static const char *state_word(const struct store_device *device, const char *pools)
{
    if (device->withdrawn)
        return "withdrawn";
    return pools[0] ? "in use" : "free";
}

static void print_table(struct admin *admin, const struct lists *lists)
{
    static const char *const kinds[] = {
        [STORE_DEVICE_CPU] = "cpu", [STORE_DEVICE_GPU] = "gpu", [STORE_DEVICE_MIG] = "mig"};
    struct output *table = output_new(admin, columns, VGPU_ARRAY_LENGTH(columns));

    for (size_t i = 0; i < lists->device_count; i++) {
        char pools[64];

        pools_text(lists, lists->devices[i].name, pools);
        output_text(table, lists->devices[i].name);
        output_text(table, kinds[lists->devices[i].kind]);
        output_text(table, pools);
        output_text(table, state_word(&lists->devices[i], pools));
        output_text(table, lists->devices[i].description);
        output_end_row(table);
    }
    output_print(table, "No device is known.");
    output_free(table);
}

static void print_json(const struct lists *lists)
{
    json_t *array = json_array();

    for (size_t i = 0; i < lists->device_count; i++) {
        json_t *device = output_device(&lists->devices[i]), *pools = json_array();

        for (size_t j = 0; j < lists->pool_count; j++) {
            const char id[2] = {lists->pools[j].id, '\0'};

            if (names_device(&lists->pools[j], lists->devices[i].name))
                json_array_append_new(pools, json_string(id));
        }
        json_object_set_new(device, "pools", pools);
        json_array_append_new(array, device);
    }
    output_json(json_pack("{s:o}", "devices", array));
}

int cmd_list_devices(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct lists lists = {0};
    struct vgpu_error error;
    struct store *store;

    if (result)
        return result;
    if (admin_open_store(admin, STORE_READ, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = store_list_devices(store, &lists.devices, &lists.device_count, &error);
    if (result == 0)
        result = store_list_pools(store, &lists.pools, &lists.pool_count, &error);
    store_close(store);
    if (result < 0)
        result = admin_fail(admin, &error);
    else if (admin->json)
        print_json(&lists);
    else
        print_table(admin, &lists);
    free(lists.devices);
    free(lists.pools);
    return result;
}

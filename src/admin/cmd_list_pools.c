/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin list-pools */
#include "admin/commands.h"

#include <stdio.h>
#include <stdlib.h>

static const struct output_column columns[] = {
    {"id", "POOL", false},         {"name", "NAME", false},     {"enabled", "ENABLED", false},
    {"sharing", "SHARING", false}, {"policy", "POLICY", false}, {"device", "DEVICE", false},
    {"vm_count", "VMS", true},     {"vms_max", "MOST", true},   {"memory_max", "MEMORY", true},
};

static void add_row(struct output *table, const struct store_pool *pool)
{
    const char id[2] = {pool->id, '\0'};
    char text[32];

    output_text(table, id);
    output_text(table, pool->name);
    output_text(table, pool->enabled ? "yes" : "no");
    output_text(table, output_sharing(pool->sharing));
    output_text(table, store_policy_name(pool->policy));
    output_text(table, pool->device);
    output_number(table, pool->vm_count);
    snprintf(text, sizeof(text), "%u", pool->vms_max);
    output_text(table, pool->vms_max ? text : NULL);
    snprintf(text, sizeof(text), "%llu MiB", (unsigned long long)pool->device_memory_max_mib);
    output_text(table, pool->device_memory_max_mib ? text : NULL);
    output_end_row(table);
}

static void print_table(struct admin *admin, const struct store_pool *pools, size_t count)
{
    struct output *table = output_new(admin, columns, VGPU_ARRAY_LENGTH(columns));

    for (size_t i = 0; i < count; i++)
        add_row(table, &pools[i]);
    output_print(table, "There is no pool.");
    output_free(table);
}

static void print_json(const struct store_pool *pools, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; i < count; i++)
        json_array_append_new(array, output_pool(&pools[i]));
    output_json(json_pack("{s:o}", "pools", array));
}

int cmd_list_pools(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct store_pool *pools = NULL;
    struct vgpu_error error;
    struct store *store;
    size_t count;

    if (result)
        return result;
    if (admin_open_store(admin, STORE_READ, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = store_list_pools(store, &pools, &count, &error);
    store_close(store);
    if (result < 0)
        return admin_fail(admin, &error);
    if (admin->json)
        print_json(pools, count);
    else
        print_table(admin, pools, count);
    free(pools);
    return ADMIN_OK;
}

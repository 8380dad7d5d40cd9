/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin show-pool: a pool and the VMs that are in it. */
#include "admin/commands.h"

#include <stdio.h>
#include <stdlib.h>

static const struct output_column columns[] = {
    {"vm_id", "VM", true},
    {"name", "NAME", false},
    {"priority", "PRIORITY", false},
    {"state", "STATE", false},
};

static void line(const char *what, const char *value)
{
    printf("%-16s %s\n", what, value && value[0] ? value : "-");
}

static void number_line(const char *what, const char *unit, uint64_t number)
{
    char text[48] = "no bound";

    if (number)
        snprintf(text, sizeof(text), "%llu%s", (unsigned long long)number, unit);
    line(what, text);
}

static void aging_line(uint32_t aging_ms)
{
    char text[32];

    snprintf(text, sizeof(text), "%u ms", aging_ms);
    line("Aging", aging_ms ? text : "never");
}

static void print_pool(const struct store_pool *pool)
{
    const char id[2] = {pool->id, '\0'};

    line("Pool", id);
    line("Name", pool->name);
    line("Description", pool->description);
    line("Enabled", pool->enabled ? "yes" : "no");
    line("Sharing", output_sharing(pool->sharing));
    line("Device", pool->device);
    line("Placement", output_placement(pool));
    printf("%-16s %u\n", "Session devices", pool->session_devices);
    line("Policy", store_policy_name(pool->policy));
    aging_line(pool->aging_ms);
    line("Demand", pool->demand ? "yes" : "no");
    number_line("Most VMs", "", pool->vms_max);
    number_line("Device memory", " MiB", pool->device_memory_max_mib);
    printf("%-16s %u\n", "VMs", pool->vm_count);
}

static void print_vms(struct admin *admin, const struct store_pool *pool,
                      const struct store_vm *vms, size_t count)
{
    struct output *table = output_new(admin, columns, VGPU_ARRAY_LENGTH(columns));

    for (size_t i = 0; i < count; i++) {
        if (vms[i].pool != pool->id)
            continue;
        output_number(table, vms[i].vm_id);
        output_text(table, vms[i].name);
        output_text(table, output_priority(vms[i].priority));
        output_text(table, output_state(vms[i].state));
        output_end_row(table);
    }
    if (pool->vm_count)
        putchar('\n');
    output_print(table, NULL);
    output_free(table);
}

static void print_json(const struct store_pool *pool, const struct store_vm *vms, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; i < count; i++) {
        if (vms[i].pool == pool->id)
            json_array_append_new(array, output_vm(&vms[i]));
    }
    output_json(json_pack("{s:o, s:o}", "pool", output_pool(pool), "vms", array));
}

int cmd_show_pool(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct store_vm *vms = NULL;
    struct vgpu_error error;
    struct store_pool pool = {0};
    struct store *store;
    size_t count = 0;

    if (result)
        return result;
    if (admin_open_store(admin, STORE_READ, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = store_find_pool(store, admin->words[0], &pool, &error);
    if (result == 0)
        result = store_list_vms(store, &vms, &count, &error);
    store_close(store);
    if (result < 0)
        return admin_fail(admin, &error);
    if (admin->json) {
        print_json(&pool, vms, count);
    } else {
        print_pool(&pool);
        print_vms(admin, &pool, vms, count);
    }
    free(vms);
    return ADMIN_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin show-iommu-status: the IOMMU, its groups and faults, and what protects a
 * VM's channel: which is not the IOMMU, and this says so.
 */
#include "admin/commands.h"
#include "admin/host_commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_VM_ID = HOST_KEY_ROOT + 1 };

struct options {
    struct host_options host;
    const char *vm;
};

struct status {
    struct admin *admin;
    struct host host;
    struct host_iommu iommu;
    enum host_mode mode;
    struct host_pci_device *devices;
    size_t count;
    bool has_vm;
    struct store_vm vm;
    struct host_sentence sentences[HOST_SENTENCES_MAX];
    size_t sentence_count;
};

static const struct argp_option argp_options[] = {
    {"vm-id", KEY_VM_ID, "N", 0, "What protects this VM; the same as the word VM", 0},
    HOST_ROOT_OPTION,
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct options *options = state->input;

    if (key == KEY_VM_ID)
        options->vm = value;
    else if (key == HOST_KEY_ROOT)
        options->host.root = value;
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

/* --- for people ------------------------------------------------------------------------- */

static void print_iommu(const struct status *status)
{
    const struct host_iommu *iommu = &status->iommu;

    printf("%-20s %s: %s\n", "Host", host_mode_name(status->mode), host_mode_text(status->mode));
    if (iommu->enabled)
        printf("%-20s on (%s)\n", "IOMMU", iommu->kind);
    else
        printf("%-20s off\n", "IOMMU");
    printf("%-20s %s\n", "Interrupt remapping", iommu->interrupt_remapping ? "on" : "not seen");
    if (!iommu->log_read)
        printf("%-20s not known: %s\n", "Faults", iommu->log_problem);
    else if (iommu->fault_count)
        printf("%-20s %u, the last one: %s\n", "Faults", iommu->fault_count, iommu->last_fault);
    else
        printf("%-20s none in the log since boot\n", "Faults");
}

static int by_group(const void *one, const void *other)
{
    const struct host_pci_device *a = one, *b = other;

    if (a->iommu_group != b->iommu_group)
        return a->iommu_group < b->iommu_group ? -1 : 1;
    return strcmp(a->address, b->address);
}

static const char *kind_of(const struct host_pci_device *device)
{
    if (device->gpu)
        return "NVIDIA GPU";
    if (device->stub)
        return "vgpu-stub";
    return device->bridge ? "bridge" : "";
}

static void print_groups(const struct status *status)
{
    static const struct output_column columns[] = {
        {"group", "GROUP", true}, {"type", "TYPE", false},     {"address", "DEVICE", false},
        {"device", "ID", false},  {"driver", "DRIVER", false}, {"kind", "KIND", false},
    };
    struct output *table = output_new(status->admin, columns, VGPU_ARRAY_LENGTH(columns));

    for (size_t i = 0; i < status->count; i++) {
        const struct host_pci_device *device = &status->devices[i];
        char type[32], id[16];

        if (device->iommu_group < 0)
            continue;
        host_group_type(&status->host, device->iommu_group, type);
        snprintf(id, sizeof(id), "%04x:%04x", device->vendor, device->device);
        output_number(table, (uint64_t)device->iommu_group);
        output_text(table, type);
        output_text(table, device->address);
        output_text(table, id);
        output_text(table, device->driver);
        output_text(table, kind_of(device));
        output_end_row(table);
    }
    putchar('\n');
    output_print(table, "There are no IOMMU groups.");
    output_free(table);
}

static void print_protection(const struct status *status)
{
    char name[128] = "any VM", channels[64] = "";

    if (status->has_vm) {
        output_vm_name(&status->vm, name, sizeof(name));
        output_channels(status->vm.channels, channels, sizeof(channels));
    }
    printf("\nWhat protects %s%s%s:\n", name, channels[0] ? ", which may use: " : "", channels);
    for (size_t i = 0; i < status->sentence_count; i++)
        printf("  %-8s %s\n", status->sentences[i].subject, status->sentences[i].text);
    if (!status->has_vm)
        printf("  %-8s %s\n", "channel", "name a VM to see what protects its channels");
}

/* --- for programs ------------------------------------------------------------------------- */

static json_t *iommu_json(const struct host_iommu *iommu)
{
    json_t *object =
        json_pack("{s:b, s:s, s:i, s:i, s:b, s:b}", "enabled", iommu->enabled, "kind", iommu->kind,
                  "groups", iommu->group_count, "noiommu_groups", iommu->noiommu_count,
                  "interrupt_remapping", iommu->interrupt_remapping, "log_read", iommu->log_read);

    json_object_set_new(object, "command_line", host_json_text(iommu->command_line));
    if (!iommu->log_read)
        return object;
    json_object_set_new(object, "faults", json_integer(iommu->fault_count));
    json_object_set_new(object, "last_fault",
                        iommu->fault_count ? host_json_text(iommu->last_fault) : json_null());
    json_object_set_new(object, "last_fault_device",
                        iommu->last_fault_address[0] ? json_string(iommu->last_fault_address)
                                                     : json_null());
    return object;
}

static json_t *devices_json(const struct status *status)
{
    json_t *array = json_array();

    for (size_t i = 0; i < status->count; i++) {
        const struct host_pci_device *device = &status->devices[i];
        json_t *object;
        char type[32];

        if (device->iommu_group < 0)
            continue;
        host_group_type(&status->host, device->iommu_group, type);
        object = json_pack("{s:i, s:s, s:s, s:i, s:i, s:i, s:s, s:s}", "group", device->iommu_group,
                           "type", type, "address", device->address, "vendor", device->vendor,
                           "device", device->device, "class", (int)device->class_code, "driver",
                           device->driver, "kind", kind_of(device));
        json_array_append_new(array, object);
    }
    return array;
}

static void print_json(const struct status *status)
{
    json_t *protection = json_array();
    json_t *object = json_pack("{s:s, s:s, s:o, s:o}", "mode", host_mode_name(status->mode),
                               "mode_text", host_mode_text(status->mode), "iommu",
                               iommu_json(&status->iommu), "devices", devices_json(status));

    for (size_t i = 0; i < status->sentence_count; i++)
        json_array_append_new(
            protection, json_pack("{s:s, s:s, s:s}", "subject", status->sentences[i].subject, "by",
                                  status->sentences[i].by, "text", status->sentences[i].text));
    json_object_set_new(object, "protection", protection);
    json_object_set_new(object, "vm", status->has_vm ? output_vm(&status->vm) : json_null());
    output_json(object);
}

/* --- the command --------------------------------------------------------------------------- */

static int find_vm(struct status *status, const char *name, struct vgpu_error *error)
{
    struct store *store;
    int result;

    if (admin_open_store(status->admin, STORE_READ, &store, error) < 0)
        return -1;
    result = store_find_vm(store, name, &status->vm, error);
    store_close(store);
    status->has_vm = result == 0;
    return result;
}

static int look(struct status *status, const struct options *options, struct vgpu_error *error)
{
    if (options->vm && find_vm(status, options->vm, error) < 0)
        return -1;
    if (host_settings(&options->host, &status->host, error) < 0 ||
        host_list_pci(&status->host, &status->devices, &status->count, error) < 0)
        return -1;
    qsort(status->devices, status->count, sizeof(*status->devices), by_group);
    host_read_iommu(&status->host, &status->iommu);
    status->mode = host_mode(&status->host);
    status->sentence_count =
        host_protection(&status->host, status->has_vm ? status->vm.channels : 0, status->sentences);
    return 0;
}

int cmd_show_iommu_status(struct admin *admin, int argc, char **argv)
{
    const struct argp argp = {argp_options, parse};
    struct options options = {.host = {.admin = admin}};
    int result = admin_parse(admin, &argp, argc, argv, &options);
    struct status status = {.admin = admin};
    struct vgpu_error error;

    if (result)
        return result;
    if (options.vm && admin->word_count)
        return admin_refuse(admin, "name the VM once: as a word or with --vm-id");
    if (admin->word_count)
        options.vm = admin->words[0];
    if (look(&status, &options, &error) < 0)
        return admin_fail(admin, &error);
    if (admin->json) {
        print_json(&status);
    } else {
        print_iommu(&status);
        print_groups(&status);
        print_protection(&status);
    }
    free(status.devices);
    return ADMIN_OK;
}

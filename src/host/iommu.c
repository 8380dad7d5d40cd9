/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is there an IOMMU, is it on, does it remap interrupts?
 *
 *   /sys/class/iommu/dmar0, ivhd0, smmu3.0...   units that translate
 *   /sys/kernel/iommu_groups/                   what they keep apart
 *   /sys/firmware/acpi/tables/DMAR, IVRS        the firmware offers one
 *   /proc/interrupts: IR-...                    interrupts go through it
 *
 * Below Xen the hypervisor has it and Dom0 sees nothing of this: `xl info` tells.
 * Groups named vfio-noiommu are VFIO without an IOMMU and protect nothing.
 */
#include "host/private.h"

#include <stdlib.h>
#include <string.h>

static void find_kind(const struct host *host, struct host_iommu *iommu)
{
    static const struct {
        const char *prefix, *kind;
    } kinds[] = {
        {"dmar", "intel"}, {"ivhd", "amd"}, {"smmu", "arm-smmu"}, {"arm-smmu", "arm-smmu"}};
    struct host_names units = host_list(host, "/sys/class/iommu");

    iommu->enabled = units.count > 0;
    for (size_t i = 0; i < units.count && !iommu->kind[0]; i++) {
        for (size_t j = 0; j < VGPU_ARRAY_LENGTH(kinds); j++) {
            if (strncmp(units.names[i], kinds[j].prefix, strlen(kinds[j].prefix)) == 0)
                text_copy(iommu->kind, sizeof(iommu->kind), kinds[j].kind);
        }
    }
    if (iommu->enabled && !iommu->kind[0])
        text_copy(iommu->kind, sizeof(iommu->kind), "other");
    host_names_free(&units);
}

static void count_groups(const struct host *host, struct host_iommu *iommu)
{
    struct host_names groups = host_list(host, "/sys/kernel/iommu_groups");

    for (size_t i = 0; i < groups.count; i++) {
        char name[64];

        host_read_line(host, name, sizeof(name), "/sys/kernel/iommu_groups/%s/name",
                       groups.names[i]);
        if (strcmp(name, "vfio-noiommu") == 0)
            iommu->noiommu_count++;
        else
            iommu->group_count++;
    }
    host_names_free(&groups);
}

static bool is_off_word(const char *word)
{
    static const char *const off[] = {"intel_iommu=off", "amd_iommu=off", "iommu=off"};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(off); i++) {
        if (strcmp(word, off[i]) == 0)
            return true;
    }
    return false;
}

static void read_command_line(const struct host *host, struct host_iommu *iommu)
{
    char *text = host_read_file(host, "/proc/cmdline");
    char *state;

    if (!text)
        return;
    for (char *word = strtok_r(text, " \n", &state); word; word = strtok_r(NULL, " \n", &state)) {
        if (strstr(word, "iommu") || strncmp(word, "intremap=", 9) == 0)
            host_add(iommu->command_line, sizeof(iommu->command_line), "%s", word);
        iommu->switched_off |= is_off_word(word);
    }
    free(text);
}

static bool file_has(const struct host *host, const char *path, const char *word)
{
    char *text = host_read_file(host, "%s", path);
    bool found = text && strstr(text, word);

    free(text);
    return found;
}

static bool is_yes(const struct host *host, const char *path)
{
    char text[8];

    host_read_line(host, text, sizeof(text), "%s", path);
    return text[0] == 'Y' || text[0] == '1';
}

static void ask_xen(const struct host *host, struct host_iommu *iommu)
{
    char caps[256];

    text_copy(iommu->kind, sizeof(iommu->kind), "xen");
    if (host_virt_caps(host, caps, sizeof(caps), NULL) == 0)
        iommu->enabled = strstr(caps, "directio");
}

void host_read_iommu(const struct host *host, struct host_iommu *ret_iommu)
{
    struct host_iommu iommu = {0};

    find_kind(host, &iommu);
    count_groups(host, &iommu);
    read_command_line(host, &iommu);
    iommu.firmware_table = host_exists(host, "/sys/firmware/acpi/tables/DMAR") ||
                           host_exists(host, "/sys/firmware/acpi/tables/IVRS");
    iommu.intel_cpu = file_has(host, "/proc/cpuinfo", "GenuineIntel");
    iommu.in_vm = file_has(host, "/proc/cpuinfo", " hypervisor") && !host_is_dom0(host);
    iommu.interrupt_remapping = file_has(host, "/proc/interrupts", " IR-");
    iommu.unsafe_interrupts =
        is_yes(host, "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts");
    if (host_is_dom0(host))
        ask_xen(host, &iommu);
    host_read_faults(host, &iommu);
    *ret_iommu = iommu;
}

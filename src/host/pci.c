/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCI devices as sysfs shows them:
 *
 *   /sys/bus/pci/devices/0000:01:00.0/vendor, device, class     0x10de ...
 *                                     driver       ──▶ .../drivers/nvidia
 *                                     iommu_group  ──▶ .../iommu_groups/14
 */
#include "host/private.h"

#include "vgpu/regs.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICES "/sys/bus/pci/devices"
#define VENDOR_NVIDIA 0x10de
#define CLASS_VGA 0x0300
#define CLASS_3D 0x0302
#define CLASS_BRIDGE 0x06

/* Hexadecimal digits in the places of 'h'. */
static bool matches(const char *text, const char *pattern)
{
    for (; *pattern; pattern++, text++) {
        if (*pattern == 'h' ? !isxdigit((unsigned char)*text) : *pattern != *text)
            return false;
    }
    return !*text;
}

static bool is_address(const char *text)
{
    return matches(text, "hhhh:hh:hh.h");
}

int host_check_address(const char *text, char ret_address[HOST_ADDRESS_BYTES],
                       struct vgpu_error *error)
{
    char shown[64];

    if (!is_address(text) && !matches(text, "hh:hh.h")) {
        text_escape(shown, sizeof(shown), text, strlen(text));
        return error_set(error, EINVAL,
                         "'%s' is no PCI address: expected one as 0000:01:00.0 (lspci -D lists "
                         "them)",
                         shown);
    }
    snprintf(ret_address, HOST_ADDRESS_BYTES, "%s%s", is_address(text) ? "" : "0000:", text);
    for (char *at = ret_address; *at; at++)
        *at = (char)tolower((unsigned char)*at);
    return 0;
}

static uint32_t read_number(const struct host *host, const char *address, const char *name)
{
    char text[32];

    host_read_line(host, text, sizeof(text), DEVICES "/%s/%s", address, name);
    return (uint32_t)strtoul(text, NULL, 16);
}

static void read_device(const struct host *host, const char *address,
                        struct host_pci_device *device)
{
    char text[32];
    uint64_t group;

    *device = (struct host_pci_device){.iommu_group = -1};
    text_copy(device->address, sizeof(device->address), address);
    device->vendor = (uint16_t)read_number(host, address, "vendor");
    device->device = (uint16_t)read_number(host, address, "device");
    device->class_code = read_number(host, address, "class") & 0xffffff;
    host_link_name(host, device->driver, sizeof(device->driver), DEVICES "/%s/driver", address);
    if (host_link_name(host, text, sizeof(text), DEVICES "/%s/iommu_group", address) &&
        text_parse_u64(text, 0, INT32_MAX, &group))
        device->iommu_group = (int)group;
    device->gpu = device->vendor == VENDOR_NVIDIA &&
                  (device->class_code >> 8 == CLASS_VGA || device->class_code >> 8 == CLASS_3D);
    device->stub = device->vendor == VGPU_PCI_VENDOR_ID && device->device == VGPU_PCI_DEVICE_ID &&
                   device->class_code >> 8 == VGPU_PCI_CLASS;
    device->bridge = device->class_code >> 16 == CLASS_BRIDGE;
}

int host_list_pci(const struct host *host, struct host_pci_device **ret_devices, size_t *ret_count,
                  struct vgpu_error *error)
{
    struct host_names names = host_list(host, DEVICES);
    struct host_pci_device *devices = calloc(names.count + 1, sizeof(*devices));
    size_t count = 0;

    if (!devices) {
        host_names_free(&names);
        return error_set(error, ENOMEM, "no memory for the list of PCI devices");
    }
    for (size_t i = 0; i < names.count; i++) {
        if (is_address(names.names[i]))
            read_device(host, names.names[i], &devices[count++]);
    }
    host_names_free(&names);
    *ret_devices = devices;
    *ret_count = count;
    return 0;
}

void host_group_type(const struct host *host, int group, char type[32])
{
    host_read_line(host, type, 32, "/sys/kernel/iommu_groups/%d/type", group);
}

bool host_same_group(const struct host_pci_device *one, const struct host_pci_device *other)
{
    return one->iommu_group >= 0 && one->iommu_group == other->iommu_group;
}

bool host_is_for_vms(const struct host_pci_device *device)
{
    static const char *const drivers[] = {"vfio-pci", "pci-stub", "pciback", "xen-pciback"};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(drivers); i++) {
        if (strcmp(device->driver, drivers[i]) == 0)
            return true;
    }
    return false;
}

bool host_is_neighbour_in_use(const struct host_pci_device *device)
{
    return !device->bridge && device->driver[0] && !host_is_for_vms(device);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding and reading the PCI device.
 *
 *   /sys/bus/pci/devices/<address>/class      0x1200xx?           a candidate
 *                                 /config     memory space on?    else `enable`
 *                                 /resource0  4096 bytes, magic   ours
 *
 * No fixed slot and no vendor id decides: the id is a loan, and the slot is
 * the host's choice.  Other vendors' accelerators share the class, so a
 * stranger is asked for no more than the size of its BAR0 and one word, and is
 * never switched on.
 */
#include "client.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PCI_COMMAND_OFFSET 4
#define PCI_COMMAND_MEMORY 0x2

static int problem(struct device *device, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static int problem(struct device *device, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(device->problem, sizeof(device->problem), format, args);
    va_end(args);
    return -1;
}

static void advise(struct device *device, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void advise(struct device *device, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(device->remedy, sizeof(device->remedy), format, args);
    va_end(args);
}

static int open_attribute(const char *path, const char *address, const char *name, int flags)
{
    char whole[PATH_MAX + 128];

    snprintf(whole, sizeof(whole), "%s/%s/%s", path, address, name);
    return open(whole, flags | O_CLOEXEC | O_NONBLOCK, 0);
}

static ssize_t read_attribute(const char *path, const char *address, const char *name, char *buffer,
                              size_t bytes)
{
    int fd = open_attribute(path, address, name, O_RDONLY);
    ssize_t got;

    if (fd < 0)
        return -1;
    got = read(fd, buffer, bytes - 1);
    close(fd);
    buffer[got > 0 ? got : 0] = '\0';
    return got;
}

/* An unreadable number reads as 0, which is no class and no vendor of ours. */
static unsigned read_number(const char *path, const char *address, const char *name)
{
    char text[64];

    if (read_attribute(path, address, name, text, sizeof(text)) <= 0)
        return 0;
    return (unsigned)strtoul(text, NULL, 0);
}

static enum device_memory_space read_memory_space(const char *path, const char *address)
{
    char config[PCI_COMMAND_OFFSET + 2 + 1];
    ssize_t got = read_attribute(path, address, "config", config, sizeof(config));

    if (got < PCI_COMMAND_OFFSET + 2)
        return MEMORY_SPACE_UNKNOWN;
    return config[PCI_COMMAND_OFFSET] & PCI_COMMAND_MEMORY ? MEMORY_SPACE_ON : MEMORY_SPACE_OFF;
}

/* Firmware leaves a device without a driver off now and then; its registers
 * then read as all ones. */
static int switch_on(struct device *device, const char *path)
{
    int fd = open_attribute(path, device->address, "enable", O_WRONLY);
    int error = 0;

    if (fd < 0 || write(fd, "1", 1) != 1)
        error = errno;
    if (fd >= 0)
        close(fd);
    if (!error) {
        device->memory_space = MEMORY_SPACE_SWITCHED_ON;
        return 0;
    }
    device->denied = error == EACCES || error == EPERM;
    advise(device, "as root: echo 1 > %.200s/%s/enable, or run this program as root once", path,
           device->address);
    return problem(device,
                   "its memory space is disabled (bit 1 of the PCI command register) and could "
                   "not be enabled: %s",
                   strerror(error));
}

static int map_failed(struct device *device, int error)
{
    device->denied = error == EACCES || error == EPERM;
    if (error == EACCES)
        advise(device, "run as root, or let this user read the device's resource0 (a udev rule)");
    else if (error == EPERM)
        advise(device, "kernel lockdown forbids it: give --pool, --priority and --vm-id instead");
    else if (error == ENOENT)
        advise(device, "the kernel gave it no BAR0: look at `dmesg | grep %s`", device->address);
    return problem(device, "BAR0 (resource0) cannot be mapped: %s", strerror(error));
}

static volatile uint32_t *map_registers(struct device *device, const char *path)
{
    int fd = open_attribute(path, device->address, "resource0", O_RDONLY);
    struct stat info;
    void *map;

    if (fd < 0) {
        map_failed(device, errno);
        return NULL;
    }
    if (fstat(fd, &info) < 0 || info.st_size != VGPU_BAR0_BYTES) {
        problem(device, "its BAR0 has %lld bytes, a vgpu-stub has %d", (long long)info.st_size,
                VGPU_BAR0_BYTES);
        close(fd);
        return NULL;
    }
    map = mmap(NULL, VGPU_BAR0_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        map_failed(device, errno);
    close(fd);
    return map == MAP_FAILED ? NULL : map;
}

/* Of the guest module, which has BAR0 to itself while it is loaded: the registers as
 * a file.  False where there is none. */
static bool read_module_file(const struct device *device, const char *path,
                             uint32_t registers[VGPU_REG_END / 4])
{
    int fd = open_attribute(path, device->address, "vgpu_registers", O_RDONLY);
    bool whole = fd >= 0 && read(fd, registers, VGPU_REG_END) == VGPU_REG_END;

    if (fd >= 0)
        close(fd);
    return whole;
}

static int read_registers(struct device *device, const volatile uint32_t *map)
{
    uint32_t magic = le32toh(map[VGPU_REG_MAGIC / 4]);
    uint32_t version;

    if (magic != VGPU_MAGIC)
        return problem(device, "its magic (BAR0 offset 0x%03x) is 0x%08x, a vgpu-stub has 0x%08x%s",
                       VGPU_REG_MAGIC, magic, VGPU_MAGIC,
                       magic == UINT32_MAX ? "; all ones: the device does not respond" : "");
    version = le32toh(map[VGPU_REG_VERSION / 4]);
    if (version >> 16 != VGPU_VERSION_MAJOR) {
        advise(device, "install the vgpu-client that belongs to the host's version");
        return problem(device, "its register version is %u.%u, this program knows %u.x",
                       version >> 16, version & 0xffff, VGPU_VERSION_MAJOR);
    }
    for (unsigned i = VGPU_REG_STATUS / 4; i < DEVICE_REGISTER_COUNT; i++)
        device->registers[i] = le32toh(map[i]);
    return 0;
}

static void probe(struct device *device, const char *path, bool named)
{
    uint32_t registers[VGPU_REG_END / 4];
    volatile uint32_t *map;
    bool our_id;

    device->vendor_id = read_number(path, device->address, "vendor");
    device->device_id = read_number(path, device->address, "device");
    device->memory_space = read_memory_space(path, device->address);
    our_id = device->vendor_id == VGPU_PCI_VENDOR_ID && device->device_id == VGPU_PCI_DEVICE_ID;
    if (device->class_code >> 8 != VGPU_PCI_CLASS) {
        problem(device, "its class is 0x%06x, a vgpu-stub has 0x%06x", device->class_code,
                VGPU_PCI_CLASS_CODE);
        return;
    }
    if (device->memory_space == MEMORY_SPACE_OFF && (our_id || named) &&
        switch_on(device, path) < 0)
        return;
    if (read_module_file(device, path, registers)) {
        device->usable = read_registers(device, registers) == 0;
        return;
    }
    map = map_registers(device, path);
    if (!map)
        return;
    device->usable = read_registers(device, map) == 0;
    munmap((void *)map, VGPU_BAR0_BYTES);
}

/* "00:04.0" is short for "0000:00:04.0". */
static bool is_address(const char *address, const char *wanted)
{
    size_t length = strlen(address), short_length = strlen(wanted);

    if (strcasecmp(address, wanted) == 0)
        return true;
    return short_length == 7 && length == 12 && strncmp(address, "0000:", 5) == 0 &&
           strcasecmp(address + 5, wanted) == 0;
}

static void consider(struct device_list *list, const char *path, const char *address,
                     const char *only)
{
    struct device *device = &list->devices[list->count];

    list->looked_at++;
    if (list->count == DEVICE_LIST_MAX || (only && !is_address(address, only)))
        return;
    memset(device, 0, sizeof(*device));
    snprintf(device->address, sizeof(device->address), "%.63s", address);
    device->class_code = read_number(path, address, "class");
    if (!only && device->class_code >> 8 != VGPU_PCI_CLASS)
        return;
    probe(device, path, only != NULL);
    list->count++;
}

int device_scan(const char *sysfs, const char *only, struct device_list *ret_list,
                struct failure *failure)
{
    char path[PATH_MAX];
    struct dirent **entries;
    int count;

    ret_list->looked_at = ret_list->count = 0;
    snprintf(path, sizeof(path), "%.3900s/bus/pci/devices", sysfs);
    memcpy(ret_list->path, path, sizeof(path));
    count = scandir(path, &entries, NULL, alphasort);
    if (count < 0) {
        failure_set(failure, FAILURE_NO_DEVICE, "looked for a vgpu-stub device in %.300s: %s", path,
                    strerror(errno));
        return failure_remedy(failure, "mount sysfs (mount -t sysfs sysfs /sys) in a guest with a "
                                       "PCI bus, or give --pool, --priority and --vm-id");
    }
    for (int i = 0; i < count; i++) {
        if (entries[i]->d_name[0] != '.')
            consider(ret_list, path, entries[i]->d_name, only);
        free(entries[i]);
    }
    free(entries);
    return 0;
}

/* None is usable: tell what was seen of each that might have been. */
static void choose_failed(const struct device_list *list, const char *only, struct failure *failure)
{
    const char *remedy = NULL;
    enum failure_code code = FAILURE_NO_DEVICE;
    size_t used;

    for (unsigned i = 0; i < list->count; i++) {
        if (list->devices[i].denied)
            code = FAILURE_DEVICE_ACCESS;
        if (!remedy && list->devices[i].remedy[0])
            remedy = list->devices[i].remedy;
    }
    failure_set(failure, code,
                "no vgpu-stub device%s%s: looked at %u devices in %.300s, %u of class 0x%04xxx",
                only ? " at " : "", only ? only : "", list->looked_at, list->path, list->count,
                VGPU_PCI_CLASS);
    if (only)
        failure_set(failure, code, "no vgpu-stub device at %.63s: looked at %u devices in %.300s",
                    only, list->looked_at, list->path);
    for (unsigned i = 0; i < list->count; i++) {
        used = strlen(failure->text);
        snprintf(failure->text + used, sizeof(failure->text) - used, "; %s: %s",
                 list->devices[i].address, list->devices[i].problem);
    }
    if (remedy)
        failure_remedy(failure, "%s", remedy);
    else
        failure_remedy(failure, "give the VM the device on its host (QEMU: -device "
                                "vgpu-stub,pool_id=A,priority=2,vm_id=100), or run with --pool, "
                                "--priority and --vm-id");
}

const struct device *device_choose(const struct device_list *list, const char *only,
                                   struct failure *failure)
{
    const struct device *found = NULL;
    char names[512] = "";
    unsigned usable = 0;

    for (unsigned i = 0; i < list->count; i++) {
        size_t used = strlen(names);

        if (!list->devices[i].usable)
            continue;
        usable++;
        found = &list->devices[i];
        snprintf(names + used, sizeof(names) - used, "%s%s (pool %c, vm %u)",
                 usable > 1 ? ", " : "", found->address,
                 (char)device_register(found, VGPU_REG_POOL_ID),
                 device_register(found, VGPU_REG_VM_ID));
    }
    if (usable == 1)
        return found;
    if (usable == 0) {
        choose_failed(list, only, failure);
        return NULL;
    }
    failure_set(failure, FAILURE_SEVERAL_DEVICES, "%u vgpu-stub devices in %.300s: %s", usable,
                list->path, names);
    failure_remedy(failure, "say which: --device ADDRESS");
    return NULL;
}

bool device_offers_window(const struct device *device)
{
    return device_register(device, VGPU_REG_CAPS) & VGPU_CAP_WINDOW;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vfio-dma - lets QEMU's `edu` device do DMA from a program, through VFIO: first where
 * it may, then where it may not, so that the IOMMU has a fault to report.
 *
 *   vfio-dma GROUP ADDRESS
 *
 *   container ── group ── device: BAR0 0x80 source, 0x88 target, 0x90 bytes, 0x98 command
 *   one page mapped at 0x100000: in and out again      "mapped: the same"
 *   0x900000, which is not mapped                      "unmapped: done"
 *
 * Then it keeps the device open until it is killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define MAPPED_AT 0x100000u
#define UNMAPPED_AT 0x900000u
#define BUFFER_AT 0x40000u /* the device's own */
#define DMA_SOURCE 0x80
#define DMA_TARGET 0x88
#define DMA_BYTES 0x90
#define DMA_COMMAND 0x98
#define DMA_START 1u
#define DMA_TO_MEMORY 2u
#define COUNT 64

static int device_fd;
static uint64_t bar_at, config_at;
static char *page;

static void die(const char *what)
{
    fprintf(stderr, "vfio-dma: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t region_offset(unsigned index)
{
    struct vfio_region_info region = {.argsz = sizeof(region), .index = index};

    if (ioctl(device_fd, VFIO_DEVICE_GET_REGION_INFO, &region) < 0)
        die("asking for a region");
    return region.offset;
}

static void open_device(const char *group_name, const char *address)
{
    struct vfio_group_status status = {.argsz = sizeof(status)};
    int container = open("/dev/vfio/vfio", O_RDWR);
    char path[64];
    int group;

    snprintf(path, sizeof(path), "/dev/vfio/%s", group_name);
    group = open(path, O_RDWR);
    if (container < 0 || group < 0)
        die(path);
    if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) < 0 ||
        !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
        die("the group is not viable");
    if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) < 0 ||
        ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
        die("setting up the container");
    device_fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
    if (device_fd < 0)
        die(address);
    bar_at = region_offset(VFIO_PCI_BAR0_REGION_INDEX);
    config_at = region_offset(VFIO_PCI_CONFIG_REGION_INDEX);

    page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)page,
        .iova = MAPPED_AT,
        .size = PAGE_BYTES,
    };

    if (page == MAP_FAILED || ioctl(container, VFIO_IOMMU_MAP_DMA, &map) < 0)
        die("mapping a page");
    strcpy(page, "through the device and back");

    uint16_t command;

    if (pread(device_fd, &command, 2, (off_t)config_at + PCI_COMMAND) != 2)
        die("reading the command register");
    command |= PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY;
    if (pwrite(device_fd, &command, 2, (off_t)config_at + PCI_COMMAND) != 2)
        die("switching DMA on");
}

static void set(unsigned offset, uint32_t value)
{
    if (pwrite(device_fd, &value, 4, (off_t)bar_at + offset) != 4)
        die("writing a register");
}

/* Until the device says that it is done. */
static void transfer(uint32_t source, uint32_t target, uint32_t direction)
{
    uint32_t command;

    set(DMA_SOURCE, source);
    set(DMA_TARGET, target);
    set(DMA_BYTES, COUNT);
    set(DMA_COMMAND, DMA_START | direction);
    do {
        usleep(10000);
        if (pread(device_fd, &command, 4, (off_t)bar_at + DMA_COMMAND) != 4)
            die("reading a register");
    } while (command & DMA_START);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fputs("usage: vfio-dma GROUP ADDRESS\n", stderr);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    open_device(argv[1], argv[2]);
    transfer(MAPPED_AT, BUFFER_AT, 0);
    transfer(BUFFER_AT, MAPPED_AT + COUNT, DMA_TO_MEMORY);
    puts(memcmp(page, page + COUNT, COUNT) == 0 && page[0] ? "mapped: the same" : "mapped: lost");
    transfer(UNMAPPED_AT, BUFFER_AT, 0);
    puts("unmapped: done");
    pause();
    return 0;
}

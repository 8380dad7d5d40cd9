/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * regs - reads and writes registers of vgpu-stub from inside a guest, one access
 * a call, so that tests/vm/test_device.py holds the expectations and this
 * program none.
 *
 *   /sys/bus/pci/devices/<address>/class       which devices are accelerators
 *                                 /config      is memory access switched on?
 *                                 /resource0   BAR0, mapped; one load or store
 *                                              of exactly the asked width
 *                                 /resource2   BAR2, the window: bytes, as hex
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vgpu/regs.h"

#define PCI_DEVICES "/sys/bus/pci/devices"
#define PCI_COMMAND 4
#define PCI_COMMAND_MEMORY 0x2

static const char usage_text[] = "usage: regs list\n"
                                 "       regs read ADDRESS OFFSET WIDTH [OFFSET WIDTH]...\n"
                                 "       regs write ADDRESS OFFSET WIDTH VALUE\n"
                                 "       regs peek ADDRESS OFFSET BYTES\n"
                                 "       regs poke ADDRESS OFFSET HEX\n"
                                 "       regs reset ADDRESS\n"
                                 "ADDRESS: 0000:00:05.0; WIDTH: 1, 2, 4 or 8 bytes\n";

static void die(const char *what)
{
    fprintf(stderr, "regs: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void usage(void)
{
    fputs(usage_text, stderr);
    exit(2);
}

static int open_attribute(const char *address, const char *name, int flags)
{
    char path[256];

    snprintf(path, sizeof(path), PCI_DEVICES "/%.64s/%s", address, name);
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        die(path);
    return fd;
}

static void write_attribute(const char *address, const char *name, const char *text)
{
    int fd = open_attribute(address, name, O_WRONLY);

    if (write(fd, text, strlen(text)) < 0)
        die(name);
    close(fd);
}

/* A device without a driver has its memory switched off, or not: that is the
 * firmware's choice.  The kernel switches it on when asked. */
static void enable_memory(const char *address)
{
    int fd = open_attribute(address, "config", O_RDONLY);
    uint8_t command;

    if (pread(fd, &command, 1, PCI_COMMAND) != 1)
        die("reading the configuration space");
    close(fd);
    if (!(command & PCI_COMMAND_MEMORY))
        write_attribute(address, "enable", "1");
}

static volatile uint8_t *map_bar(const char *address, const char *name, size_t *ret_bytes)
{
    enable_memory(address);
    int fd = open_attribute(address, name, O_RDWR | O_SYNC);
    struct stat status;

    if (fstat(fd, &status) < 0)
        die(name);
    void *map = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        die(name);
    close(fd);
    *ret_bytes = (size_t)status.st_size;
    return map;
}

static volatile uint8_t *map_registers(const char *address)
{
    size_t bytes;

    return map_bar(address, "resource0", &bytes);
}

static uint64_t load(const volatile uint8_t *at, unsigned width)
{
    switch (width) {
    case 1:
        return *at;
    case 2:
        return *(const volatile uint16_t *)at;
    case 4:
        return *(const volatile uint32_t *)at;
    default:
        return *(const volatile uint64_t *)at;
    }
}

static void store(volatile uint8_t *at, unsigned width, uint64_t value)
{
    switch (width) {
    case 1:
        *at = (uint8_t)value;
        break;
    case 2:
        *(volatile uint16_t *)at = (uint16_t)value;
        break;
    case 4:
        *(volatile uint32_t *)at = (uint32_t)value;
        break;
    default:
        *(volatile uint64_t *)at = value;
        break;
    }
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);

    if (!*text || *end)
        usage();
    return value;
}

static void parse_place(char **words, uint64_t *ret_offset, unsigned *ret_width)
{
    uint64_t offset = number(words[0]);
    uint64_t width = number(words[1]);

    if (width != 1 && width != 2 && width != 4 && width != 8)
        usage();
    if (offset > VGPU_BAR0_BYTES - width)
        usage();
    *ret_offset = offset;
    *ret_width = (unsigned)width;
}

static void command_read(const char *address, int count, char **words)
{
    volatile uint8_t *registers = map_registers(address);

    for (int i = 0; i + 1 < count; i += 2) {
        uint64_t offset;
        unsigned width;

        parse_place(words + i, &offset, &width);
        printf("0x%llx\n", (unsigned long long)load(registers + offset, width));
    }
}

static void command_write(const char *address, char **words)
{
    volatile uint8_t *registers = map_registers(address);
    uint64_t offset;
    unsigned width;

    parse_place(words, &offset, &width);
    store(registers + offset, width, number(words[2]));
}

static void command_peek(const char *address, char **words)
{
    size_t bytes;
    volatile uint8_t *window = map_bar(address, "resource2", &bytes);
    uint64_t offset = number(words[0]), count = number(words[1]);

    if (offset > bytes || count > bytes - offset)
        usage();
    for (uint64_t i = 0; i < count; i++)
        printf("%02x", window[offset + i]);
    printf("\n");
}

static void command_poke(const char *address, char **words)
{
    size_t bytes;
    volatile uint8_t *window = map_bar(address, "resource2", &bytes);
    uint64_t offset = number(words[0]), count = strlen(words[1]) / 2;
    unsigned value;

    if (offset > bytes || count > bytes - offset)
        usage();
    for (uint64_t i = 0; i < count; i++) {
        if (sscanf(words[1] + 2 * i, "%2x", &value) != 1)
            usage();
        window[offset + i] = (uint8_t)value;
    }
}

static bool is_accelerator(const char *address)
{
    int fd = open_attribute(address, "class", O_RDONLY);
    char text[32] = "";
    bool read_any = read(fd, text, sizeof(text) - 1) > 0;

    close(fd);
    return read_any && strtoul(text, NULL, 0) == VGPU_PCI_CLASS_CODE;
}

static void command_list(void)
{
    DIR *devices = opendir(PCI_DEVICES);
    struct dirent *entry;

    if (!devices)
        die(PCI_DEVICES);
    while ((entry = readdir(devices)) != NULL) {
        if (entry->d_name[0] == '.' || !is_accelerator(entry->d_name))
            continue;
        volatile uint8_t *registers = map_registers(entry->d_name);
        if (load(registers + VGPU_REG_MAGIC, 4) == VGPU_MAGIC)
            printf("%s\n", entry->d_name);
        munmap((void *)registers, VGPU_BAR0_BYTES);
    }
    closedir(devices);
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";

    if (!strcmp(command, "list") && argc == 2)
        command_list();
    else if (!strcmp(command, "read") && argc >= 5 && argc % 2 == 1)
        command_read(argv[2], argc - 3, argv + 3);
    else if (!strcmp(command, "write") && argc == 6)
        command_write(argv[2], argv + 3);
    else if (!strcmp(command, "peek") && argc == 5)
        command_peek(argv[2], argv + 3);
    else if (!strcmp(command, "poke") && argc == 5)
        command_poke(argv[2], argv + 3);
    else if (!strcmp(command, "reset") && argc == 3)
        write_attribute(argv[2], "reset", "1");
    else
        usage();
    return 0;
}

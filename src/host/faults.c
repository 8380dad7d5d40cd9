/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DMA that the IOMMU stopped, as the kernel's log tells it:
 *
 *   DMAR: [DMA Read NO_PASID] Request device [00:04.0] fault addr 0xdeadb000 ...
 *   vfio-pci 0000:01:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000f ...
 *   arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:
 *   (XEN) [VT-D]DMAR:[DMA Write] Request device [0000:00:02.0] fault addr ...   (xl dmesg)
 *
 * The kernel limits the rate of these lines, so their number is a lower bound; and
 * its log is a ring, so old ones are lost.  A file in the place of /dev/kmsg is read
 * line by line, with or without kmsg's prefix "4,815,161234,-;".
 */
#include "host/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORD_BYTES 8192 /* the kernel's largest is smaller */
#define RECORDS_MAX 200000
#define XL_TIMEOUT_MS 10000

bool host_is_fault(const char *line)
{
    static const char *const both[][2] = {
        {"DMAR:", "[DMA "},
        {"DMAR:", "[INTR-REMAP]"},
        {"AMD-Vi:", "IO_PAGE_FAULT"},
        {"AMD-Vi:", "INVALID_DEVICE_REQUEST"},
        {"AMD-Vi:", "ILLEGAL_DEV_TABLE_ENTRY"},
        {"arm-smmu", "context fault"},
        {"arm-smmu-v3", ": event 0x"},
    };

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(both); i++) {
        const char *at = strstr(line, both[i][0]);

        if (at && strstr(at, both[i][1]))
            return true;
    }
    return false;
}

/* The first "00:04.0" or "0000:00:04.0" of the line. */
static void find_address(const char *line, char address[HOST_ADDRESS_BYTES])
{
    address[0] = '\0';
    for (const char *at = line; *at; at++) {
        size_t length = strspn(at, "0123456789abcdefABCDEF:.");
        char word[HOST_ADDRESS_BYTES];

        if (!length)
            continue;
        while (length && (at[length - 1] == ':' || at[length - 1] == '.'))
            length--;
        if (length && length < sizeof(word)) {
            text_copy(word, length + 1, at);
            if (host_check_address(word, address, NULL) == 0)
                return;
        }
        at += strspn(at, "0123456789abcdefABCDEF:.") - 1;
    }
}

static void see_line(void *user, const char *line)
{
    struct host_iommu *iommu = user;

    if (!host_is_fault(line))
        return;
    iommu->fault_count++;
    text_escape(iommu->last_fault, sizeof(iommu->last_fault), line, strlen(line));
    find_address(line, iommu->last_fault_address);
}

/* Behind kmsg's prefix, where there is one. */
static const char *message_of(const char *line)
{
    size_t priority = strspn(line, "0123456789");
    size_t prefix = strcspn(line, "; ");

    return priority && line[priority] == ',' && line[prefix] == ';' ? line + prefix + 1 : line;
}

/* Each read(2) of the device gives one record. */
static int read_device(int fd, void (*line)(void *user, const char *text), void *user)
{
    char record[RECORD_BYTES];

    for (unsigned i = 0; i < RECORDS_MAX; i++) {
        ssize_t got = read(fd, record, sizeof(record) - 1);

        if (got < 0 && (errno == EPIPE || errno == EINTR))
            continue; /* overwritten meanwhile: the next one follows */
        if (got < 0 && errno != EAGAIN)
            return -1;
        if (got <= 0)
            break;
        record[got] = '\0';
        record[strcspn(record, "\n")] = '\0';
        line(user, message_of(record));
    }
    return 0;
}

static void each_line(char *text, void (*line)(void *user, const char *text), void *user)
{
    char *state;

    for (char *at = strtok_r(text, "\n", &state); at; at = strtok_r(NULL, "\n", &state))
        line(user, message_of(at));
}

static int read_stream(int fd, void (*line)(void *user, const char *text), void *user)
{
    FILE *file = fdopen(dup(fd), "r");
    char *text = NULL;
    size_t bytes = 0;

    if (!file)
        return -1;
    for (unsigned i = 0; i < RECORDS_MAX && getline(&text, &bytes, file) > 0; i++) {
        text[strcspn(text, "\n")] = '\0';
        line(user, message_of(text));
    }
    free(text);
    fclose(file);
    return 0;
}

int host_read_kernel_log(const struct host *host, void (*line)(void *user, const char *text),
                         void *user, struct vgpu_error *error)
{
    const char *name = host->kernel_log ? host->kernel_log : "/dev/kmsg";
    char path[PATH_MAX];
    struct stat info;
    int fd, result;

    if (!host_path(host, path, "%s", name))
        return error_set(error, ENAMETOOLONG, "the path of the kernel's log is too long");
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_set_errno(error, "the kernel's log %s cannot be read", name);
    result = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) ? read_stream(fd, line, user)
                                                            : read_device(fd, line, user);
    if (result < 0)
        error_set_errno(error, "the kernel's log %s cannot be read", name);
    fd_close(&fd);
    return result;
}

/* The hypervisor has the IOMMU, and a log of its own. */
static int read_xen_log(const struct host *host, struct host_iommu *iommu, struct vgpu_error *error)
{
    char path[PATH_MAX];
    char *argv[] = {path, (char *)"dmesg", NULL};
    struct program_result result;

    if (!host_find_program(host, "xl", path))
        return error_set(error, ENOENT, "Xen's log: there is no program xl on this host");
    if (program_check(argv, XL_TIMEOUT_MS, &result, error) < 0)
        return -1;
    iommu->interrupt_remapping |= strstr(result.output, "Interrupt remapping enabled") != NULL;
    each_line(result.output, see_line, iommu);
    program_clear(&result);
    return 0;
}

void host_read_faults(const struct host *host, struct host_iommu *iommu)
{
    struct vgpu_error error;
    int result = host_is_dom0(host) ? read_xen_log(host, iommu, &error)
                                    : host_read_kernel_log(host, see_line, iommu, &error);

    iommu->log_read = result == 0;
    if (result < 0)
        text_copy(iommu->log_problem, sizeof(iommu->log_problem), error.message);
}

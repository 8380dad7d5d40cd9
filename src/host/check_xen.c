/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether an XCP-ng host gives VMs their device: QEMU has it built in, and xenopsd
 * starts QEMU through our wrapper.  An update of the platform brings a QEMU without it.
 * And whether Xen's VMs have owners, as vgpu-xen asks.
 */
#include "host/private.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define QEMU "/usr/lib64/xen/bin/qemu-system-i386"
#define DEVICE_MARK "virtual GPU of vgpu-mediator" /* the device's description */
#define WRAPPER_NAME "/qemu-wrapper-vgpu"
#define WRAPPER_KEY "upstream-compat-qemu-dm-wrapper"

/* -1: it cannot be read. */
static int file_contains(const char *path, const char *words)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), result = -1;
    struct stat info;
    void *bytes;

    if (fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
        bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes != MAP_FAILED) {
            result = memmem(bytes, (size_t)info.st_size, words, strlen(words)) != NULL;
            munmap(bytes, (size_t)info.st_size);
        }
    }
    fd_close(&fd);
    return result;
}

/* The key's last value in the text, if there is one: "key = value". */
static void read_wrapper(char *text, char wrapper[PATH_MAX])
{
    char *line;

    while (text && (line = strsep(&text, "\n"))) {
        line += strspn(line, " \t");
        if (strncmp(line, WRAPPER_KEY, strlen(WRAPPER_KEY)) != 0)
            continue;
        line += strlen(WRAPPER_KEY);
        line += strspn(line, " \t");
        if (*line != '=')
            continue;
        line++;
        line += strspn(line, " \t");
        line[strcspn(line, " \t\r")] = '\0';
        text_copy(wrapper, PATH_MAX, line);
    }
}

/* As xenopsd is told; "" when it takes the platform's. */
static void find_wrapper(const struct host *host, char wrapper[PATH_MAX])
{
    struct host_names names = host_list(host, "/etc/xenopsd.conf.d");
    char *text = host_read_file(host, "/etc/xenopsd.conf");

    wrapper[0] = '\0';
    read_wrapper(text, wrapper);
    free(text);
    for (size_t i = 0; i < names.count; i++) {
        text = host_read_file(host, "/etc/xenopsd.conf.d/%s", names.names[i]);
        read_wrapper(text, wrapper);
        free(text);
    }
    host_names_free(&names);
}

static bool is_ours(const char *wrapper)
{
    size_t length = strlen(wrapper), ours = strlen(WRAPPER_NAME);

    return length > ours && strcmp(wrapper + length - ours, WRAPPER_NAME) == 0;
}

static void judge_device_model(struct host_check *check, bool has_device, bool wrapped)
{
    if (has_device && wrapped) {
        check_pass(check, "QEMU has the device, and xenopsd starts it through our wrapper");
    } else if (has_device) {
        check_fail(check, "QEMU has the device, but xenopsd starts it without our wrapper: VMs "
                          "start without their device");
        check_remedy(check, "put xenopsd-vgpu.conf into /etc/xenopsd.conf.d/vgpu.conf, then "
                            "xe-toolstack-restart (docs/xcp-ng.md)");
    } else if (wrapped) {
        check_fail(check, QEMU " has no vgpu-stub: VMs with platform:vgpu-* keys do not start; an "
                               "update of the platform has replaced it?");
        check_remedy(check, "install the qemu package with the device again: docs/xcp-ng.md, "
                            "After an update of the platform");
    } else {
        check_warn(check, "QEMU has no vgpu-stub and xenopsd starts it without our wrapper: guests "
                          "have the file channel, and no device to know themselves by");
        check_remedy(check, "docs/xcp-ng.md says how to install both; a host for no VMs with a "
                            "device can do without");
    }
}

void check_xen_device_model(const struct survey *survey, struct host_check *check)
{
    const struct host *host = survey->host;
    char wrapper[PATH_MAX], path[PATH_MAX];
    int has_device = -1;

    if (!host_exists(host, "/etc/xensource-inventory")) {
        check_skip(check, "this is no XCP-ng host");
        return;
    }
    find_wrapper(host, wrapper);
    if (host_path(host, path, QEMU))
        has_device = file_contains(path, DEVICE_MARK);
    if (is_ours(wrapper) && (!host_path(host, path, "%s", wrapper) || access(path, X_OK) != 0)) {
        check_fail(check, "xenopsd is told to start %.256s, which is no program: no VM starts",
                   wrapper);
        check_remedy(check, "install vgpu-mediator-xcp-ng again, or remove "
                            "/etc/xenopsd.conf.d/vgpu.conf and run xe-toolstack-restart");
    } else if (has_device < 0) {
        check_fail(check, QEMU " cannot be read");
        check_remedy(check, "run it as root; rpm -V qemu says what else is wrong");
    } else {
        judge_device_model(check, has_device > 0, is_ours(wrapper));
    }
}

void check_xen_owners(const struct survey *survey, struct host_check *check)
{
    const struct registered *registered = &survey->registered;

    if (!host_is_dom0(survey->host)) {
        check_skip(check, "this is no Xen control domain");
    } else if (!registered->known) {
        check_skip(check, "no registry can be read here");
    } else if (registered->ownerless[0]) {
        check_fail(check,
                   "VMs without an owner: %s: their sockets are root's, so vgpu-xen refuses "
                   "their sessions",
                   registered->ownerless);
        check_remedy(check, "vgpu-admin update-vm VM --owner default, for each");
    } else {
        check_pass(check, "each VM with the window channel has an owner");
    }
}

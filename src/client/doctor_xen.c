/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The doctor's look at a Xen guest, whose programs share pages with the host instead of a
 * device's window: the kernel's three devices here, and what the host must do.
 */
#include "client.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define UUID_CHARS 36

static const struct {
    const char *path;
    const char *module;
    const char *purpose;
} devices[] = {
    {"/dev/xen/xenbus", "xenfs", "XenStore cannot be asked for the host"},
    {"/dev/xen/evtchn", "xen-evtchn", "the host cannot be woken"},
    {"/dev/xen/gntalloc", "xen-gntalloc", "no pages can be shared with the host"},
};

/* A line of sysfs below hypervisor/; empty where there is none. */
static void read_word(const struct options *options, const char *name, char *ret_word, size_t bytes)
{
    char path[PATH_MAX];
    FILE *file;

    ret_word[0] = '\0';
    snprintf(path, sizeof(path), "%.3900s/hypervisor/%s", options->sysfs, name);
    file = fopen(path, "re");
    if (!file)
        return;
    if (!fgets(ret_word, (int)bytes, file))
        ret_word[0] = '\0';
    ret_word[strcspn(ret_word, "\n")] = '\0';
    fclose(file);
}

bool doctor_is_xen(const struct options *options)
{
    char type[16];

    read_word(options, "type", type, sizeof(type));
    return strcmp(type, "xen") == 0;
}

void doctor_xen_devices(const struct doctor_window *job)
{
    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
        char remedy[256];

        if (access(devices[i].path, R_OK | W_OK) == 0)
            continue;
        if (errno == ENOENT)
            snprintf(remedy, sizeof(remedy),
                     "load the guest's module: modprobe %s (a line in /etc/modules-load.d/ loads "
                     "it at each start)",
                     devices[i].module);
        else
            snprintf(remedy, sizeof(remedy), "run this as root, or let this user use %s",
                     devices[i].path);
        job->add(job->context, job->severity, CLIENT_EXIT_DEVICE, "xen", remedy, "%s: %s; %s",
                 devices[i].path, strerror(errno), devices[i].purpose);
        return;
    }
    job->add(job->context, CHECK_PASS, 0, "xen", "", "xenbus, evtchn and gntalloc are there");
}

void doctor_xen_remedy(const struct options *options, struct failure *failure)
{
    char uuid[UUID_CHARS + 2];

    read_word(options, "uuid", uuid, sizeof(uuid));
    failure_remedy(failure,
                   "on the host: systemctl status vgpu-xen, and vgpu-admin list-vms must show this "
                   "VM with its UUID%s%s (vgpu-admin register-vm --uuid)",
                   uuid[0] ? " " : "", uuid);
}

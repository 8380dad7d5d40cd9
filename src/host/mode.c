/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of the supported set-ups this host is.  Asked in this order:
 *
 *   is there a GPU at all?   PCI, or device nodes alone (a container, a sandbox)
 *   whose is it?             pciback or vfio-pci: a worker VM's; else this host's
 *   below what do we run?    Xen (PV or PVH) or nothing that matters: KVM
 *
 * In a worker VM itself the GPU has its driver: it reads as KVM with the GPU in the
 * host, or, below Xen, as a worker VM.
 */
#include "host/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XL_TIMEOUT_MS 10000
#define FEATURE_AUTO_TRANSLATED (1u << 2) /* Xen's: the guest's page tables are real ones */

bool host_is_dom0(const struct host *host)
{
    char text[64];

    host_read_line(host, text, sizeof(text), "/proc/xen/capabilities");
    return strstr(text, "control_d");
}

bool host_is_xen(const struct host *host)
{
    char text[32];

    host_read_line(host, text, sizeof(text), "/sys/hypervisor/type");
    return strcmp(text, "xen") == 0 || host_is_dom0(host);
}

/* Kernels before 4.13 do not say it in a word. */
static bool is_pv(const struct host *host)
{
    char text[64];

    if (host_read_line(host, text, sizeof(text), "/sys/hypervisor/guest_type"))
        return strcmp(text, "PV") == 0;
    if (host_read_line(host, text, sizeof(text), "/sys/hypervisor/properties/features"))
        return !(strtoul(text, NULL, 16) & FEATURE_AUTO_TRANSLATED);
    return true;
}

static void count_gpus(const struct host *host, size_t *ret_here, size_t *ret_for_vms)
{
    struct host_pci_device *devices;
    size_t count;

    *ret_here = *ret_for_vms = 0;
    if (host_list_pci(host, &devices, &count, NULL) < 0)
        return;
    for (size_t i = 0; i < count; i++) {
        if (devices[i].gpu)
            ++*(host_is_for_vms(&devices[i]) ? ret_for_vms : ret_here);
    }
    free(devices);
    if (!*ret_here && !*ret_for_vms && host_exists(host, "/dev/nvidia0"))
        *ret_here = 1;
}

enum host_mode host_mode(const struct host *host)
{
    size_t here, for_vms;

    count_gpus(host, &here, &for_vms);
    if (!here && !for_vms)
        return HOST_MODE_NO_GPU;
    if (!host_is_xen(host))
        return here ? HOST_MODE_KVM_GPU : HOST_MODE_KVM_WORKER_VM;
    if (!here || !host_is_dom0(host))
        return HOST_MODE_XEN_WORKER_VM;
    return is_pv(host) ? HOST_MODE_XEN_PV_DOM0 : HOST_MODE_XEN_PVH_DOM0;
}

static const struct {
    const char *name, *text;
} modes[] = {
    [HOST_MODE_NO_GPU] = {"no-gpu", "no NVIDIA GPU is visible here: work runs on the CPU backend"},
    [HOST_MODE_KVM_GPU] = {"kvm-gpu-in-host", "the GPU belongs to this host and its driver; VMs "
                                              "reach it through the mediator (KVM/QEMU)"},
    [HOST_MODE_KVM_WORKER_VM] = {"kvm-worker-vm",
                                 "the GPU is on VFIO for a worker VM (KVM/QEMU); the mediator's "
                                 "workers run in that VM"},
    [HOST_MODE_XEN_PVH_DOM0] = {"xen-pvh-dom0",
                                "the GPU belongs to a PVH Dom0; no device can be passed through "
                                "to VMs in this mode (Xen)"},
    [HOST_MODE_XEN_PV_DOM0] = {"xen-pv-dom0",
                               "the GPU belongs to a PV Dom0 (Xen): CUDA cannot work there, as a "
                               "PV kernel does not control the page attributes (PAT) that the "
                               "driver needs"},
    [HOST_MODE_XEN_WORKER_VM] = {"xen-worker-vm", "the GPU is passed through to a worker VM (Xen)"},
};

const char *host_mode_name(enum host_mode mode)
{
    return modes[mode].name;
}

const char *host_mode_text(enum host_mode mode)
{
    return modes[mode].text;
}

int host_virt_caps(const struct host *host, char *text, size_t bytes, struct vgpu_error *error)
{
    char path[PATH_MAX];
    char *argv[] = {path, (char *)"info", NULL};
    struct program_result result;
    char *at;

    if (!host_find_program(host, "xl", path))
        return error_set(error, ENOENT, "there is no program xl on this host");
    if (program_check(argv, XL_TIMEOUT_MS, &result, error) < 0)
        return -1;
    at = strstr(result.output, "virt_caps");
    at = at ? strchr(at, ':') : NULL;
    if (at) {
        at += 1 + strspn(at + 1, " \t");
        at[strcspn(at, "\n")] = '\0';
        text_copy(text, bytes, at);
    }
    program_clear(&result);
    return at ? 0 : error_set(error, EPROTO, "xl info says nothing of virt_caps");
}

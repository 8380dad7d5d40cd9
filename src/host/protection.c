/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What keeps whom apart, said so that nobody takes one thing for another: an IOMMU
 * confines a device's DMA, and nothing else.  Channels are kept apart by who may map
 * or open what, and by our own checks.  docs/iommu.md is these sentences at length.
 */
#include "host/private.h"

#include "store/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct writer {
    struct host_sentence *sentences;
    size_t count;
};

static char *add(struct writer *writer, const char *subject, const char *by)
{
    struct host_sentence *sentence = &writer->sentences[writer->count++];

    *sentence = (struct host_sentence){.subject = subject, .by = by};
    return sentence->text;
}

/* "translated", "identity" or "" for the first GPU that this host's driver has. */
static const char *gpu_dma(const struct host *host, char type[32])
{
    struct host_pci_device *devices;
    size_t count;

    type[0] = '\0';
    if (host_list_pci(host, &devices, &count, NULL) < 0)
        return "";
    for (size_t i = 0; i < count; i++) {
        if (devices[i].gpu && !host_is_for_vms(&devices[i]) && devices[i].iommu_group >= 0) {
            host_group_type(host, devices[i].iommu_group, type);
            break;
        }
    }
    free(devices);
    if (strncmp(type, "DMA", 3) == 0)
        return "translated";
    return type[0] ? "identity" : "";
}

#define TENANTS                                                                                    \
    "VMs are kept apart on the GPU by its own page tables: a worker process and a GPU context "    \
    "for each session. The IOMMU has no part in that."

static void say_gpu_in_host(struct writer *writer, const struct host *host,
                            const struct host_iommu *iommu)
{
    char type[32];
    const char *dma = gpu_dma(host, type);

    if (!iommu->enabled)
        snprintf(
            add(writer, "gpu", "nothing"), HOST_TEXT_BYTES,
            "The IOMMU is off: nothing here confines the GPU's DMA, which may reach all memory "
            "of this machine%s. %s",
            iommu->in_vm ? " (itself a VM: what its own host confines is not seen from here)" : "",
            TENANTS);
    else if (strcmp(dma, "translated") == 0)
        snprintf(add(writer, "gpu", "iommu"), HOST_TEXT_BYTES,
                 "The IOMMU confines the GPU's DMA to what its driver in this host has mapped%s. "
                 "%s",
                 strcmp(type, "DMA-FQ") == 0 ? " (and, for some milliseconds, to what it has just "
                                               "unmapped: type DMA-FQ)"
                                             : "",
                 TENANTS);
    else
        snprintf(
            add(writer, "gpu", "nothing"), HOST_TEXT_BYTES,
            "The IOMMU is on, but it is not seen to translate the GPU's DMA (type '%s'), which "
            "may then reach all memory of this host. %s",
            type[0] ? type : "unknown", TENANTS);
}

static void say_gpu(struct writer *writer, const struct host *host, enum host_mode mode,
                    const struct host_iommu *iommu)
{
    switch (mode) {
    case HOST_MODE_NO_GPU:
        snprintf(add(writer, "gpu", "processes"), HOST_TEXT_BYTES,
                 "There is no GPU here: work runs in worker processes on the CPU, and no device "
                 "does DMA for a VM. VMs are kept apart as processes are.");
        return;
    case HOST_MODE_KVM_GPU:
        say_gpu_in_host(writer, host, iommu);
        return;
    case HOST_MODE_KVM_WORKER_VM:
        snprintf(add(writer, "gpu", iommu->enabled ? "iommu" : "nothing"), HOST_TEXT_BYTES,
                 iommu->enabled
                     ? "The GPU is on VFIO: the IOMMU confines its DMA to the memory of the worker "
                       "VM that has it. %s"
                     : "The GPU is set aside for a worker VM, but the IOMMU is off: nothing "
                       "confines its DMA. %s",
                 TENANTS);
        return;
    case HOST_MODE_XEN_PVH_DOM0:
    case HOST_MODE_XEN_PV_DOM0:
        snprintf(add(writer, "gpu", iommu->enabled ? "iommu" : "nothing"), HOST_TEXT_BYTES,
                 iommu->enabled ? "The IOMMU confines the GPU's DMA to Dom0 and the pages that "
                                  "guests have granted to it: all of Dom0's memory is in reach. %s"
                                : "The IOMMU is off, or xl does not say that it is on: nothing is "
                                  "known to confine the GPU's DMA. %s",
                 TENANTS);
        return;
    case HOST_MODE_XEN_WORKER_VM:
        snprintf(add(writer, "gpu", "iommu"), HOST_TEXT_BYTES,
                 "The GPU is passed through: Xen's IOMMU confines its DMA to the memory of the "
                 "worker VM. %s",
                 TENANTS);
        return;
    }
}

static void say_channels(struct writer *writer, const struct host *host, unsigned channels)
{
    bool xen = host_is_xen(host);

    if (channels & STORE_CHANNEL_FILE && !host->share[0])
        snprintf(add(writer, "file", "nothing"), HOST_TEXT_BYTES,
                 "Files: the VM is registered for them, but this host's configuration has no file "
                 "channel, so there is nothing to protect.");
    else if (channels & STORE_CHANNEL_FILE)
        snprintf(
            add(writer, "file", "nfs-server"), HOST_TEXT_BYTES,
            "Files: the NFS server lets the VM's address alone into its one directory, as one "
            "user; what the mediator reads there is checked. No memory is shared, and the "
            "IOMMU has no part in it. It is as good as the network's protection of addresses.");
    if (channels & STORE_CHANNEL_WINDOW && xen)
        snprintf(add(writer, "window", "nothing"), HOST_TEXT_BYTES,
                 "Window: there is none below Xen, whose QEMU has no shared memory to give.");
    else if (channels & STORE_CHANNEL_WINDOW)
        snprintf(add(writer, "window", "host-checks"), HOST_TEXT_BYTES,
                 "Window: one shared memory for this VM alone, sealed against shrinking; it holds "
                 "no other VM's data. All that the guest writes there is checked before use. The "
                 "IOMMU has no part in it: QEMU and the workers are processes, not devices.");
    if (channels & STORE_CHANNEL_XEN)
        snprintf(
            add(writer, "xen", "grants"), HOST_TEXT_BYTES,
            "Xen: the guest grants single pages, chosen by itself, and Xen enforces that no "
            "others are mapped; what it writes there is checked. The IOMMU has no part in it.");
}

size_t host_protection(const struct host *host, unsigned channels,
                       struct host_sentence sentences[HOST_SENTENCES_MAX])
{
    struct writer writer = {.sentences = sentences};
    struct host_iommu iommu;

    host_read_iommu(host, &iommu);
    say_gpu(&writer, host, host_mode(host), &iommu);
    snprintf(add(&writer, "device", "no-dma"), HOST_TEXT_BYTES,
             "The VM's vgpu-stub is emulated and does no DMA, so there is nothing for an IOMMU to "
             "confine.");
    say_channels(&writer, host, channels);
    return writer.count;
}

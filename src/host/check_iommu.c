/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of what the host is and of its IOMMU. */
#include "host/private.h"

#include <stdlib.h>
#include <string.h>

static bool is_for_worker_vm(const struct survey *survey)
{
    return survey->mode == HOST_MODE_KVM_WORKER_VM || survey->mode == HOST_MODE_XEN_WORKER_VM;
}

void check_host_mode(const struct survey *survey, struct host_check *check)
{
    const char *name = host_mode_name(survey->mode), *text = host_mode_text(survey->mode);

    if (survey->mode == HOST_MODE_XEN_PV_DOM0) {
        check_fail(check, "%s: %s", name, text);
        check_remedy(check, "boot a PVH Dom0 (dom0=pvh on Xen's command line), or pass the GPU to "
                            "a worker VM");
    } else if (survey->mode == HOST_MODE_NO_GPU) {
        check_warn(check, "%s: %s", name, text);
        check_remedy(check, "nothing, if that is meant; else see that lspci shows the GPU and that "
                            "its driver is installed");
    } else if (survey->gpu_vfio_count && survey->gpu_vfio_count < survey->gpu_count) {
        check_pass(check, "%s: %s; %zu of %zu GPUs are set aside for VMs", name, text,
                   survey->gpu_vfio_count, survey->gpu_count);
    } else {
        check_pass(check, "%s: %s%s", name, text,
                   survey->iommu.in_vm ? "; this machine is itself a VM" : "");
    }
}

static void remedy_for_off(const struct survey *survey, struct host_check *check)
{
    const struct host_iommu *iommu = &survey->iommu;

    if (strcmp(iommu->kind, "xen") == 0)
        check_remedy(check,
                     "switch VT-d or AMD-Vi on in the firmware's setup, and remove iommu=off "
                     "from Xen's command line; xl dmesg says why it is off");
    else if (iommu->switched_off)
        check_remedy(check, "remove it from the kernel's command line (%s) and boot again",
                     iommu->command_line);
    else if (iommu->in_vm && !iommu->firmware_table)
        check_remedy(check, "this machine is itself a VM without an IOMMU of its own: whether its "
                            "host confines its devices is not seen from here; needed only where "
                            "devices go on from here to other VMs");
    else if (!iommu->firmware_table)
        check_remedy(check,
                     "switch %s on in the firmware's setup (no ACPI table DMAR or IVRS is "
                     "there)%s",
                     iommu->intel_cpu ? "VT-d" : "AMD-Vi, also called IOMMU,",
                     iommu->intel_cpu ? ", then add intel_iommu=on to the kernel's command line"
                                      : "");
    else
        check_remedy(check, "add %s to the kernel's command line and boot again",
                     iommu->intel_cpu ? "intel_iommu=on" : "amd_iommu=on");
}

void check_iommu_enabled(const struct survey *survey, struct host_check *check)
{
    const struct host_iommu *iommu = &survey->iommu;
    const char *words = iommu->command_line[0] ? iommu->command_line : "nothing";

    if (iommu->enabled) {
        check_pass(check, "on (%s); the kernel's command line says %s", iommu->kind, words);
        return;
    }
    if (is_for_worker_vm(survey))
        check_fail(check,
                   "off, but the GPU is meant for a worker VM; ACPI tables: %s; the "
                   "kernel's command line says %s",
                   iommu->firmware_table ? "there" : "none", words);
    else
        check_warn(check,
                   "off: nothing%s confines what devices write by DMA; ACPI tables: %s; the "
                   "kernel's command line says %s",
                   iommu->in_vm ? " in this VM" : "", iommu->firmware_table ? "there" : "none",
                   words);
    remedy_for_off(survey, check);
}

void check_interrupt_remapping(const struct survey *survey, struct host_check *check)
{
    const struct host_iommu *iommu = &survey->iommu;

    if (!iommu->enabled) {
        check_skip(check, "the IOMMU is off");
    } else if (iommu->unsafe_interrupts) {
        check_fail(check, "VFIO was told to do without: allow_unsafe_interrupts is on, so a VM "
                          "with a device could forge interrupts of this host");
        check_remedy(check, "remove allow_unsafe_interrupts from /etc/modprobe.d and the kernel's "
                            "command line, and switch interrupt remapping on in the firmware");
    } else if (iommu->interrupt_remapping) {
        check_pass(check, "on");
    } else if (is_for_worker_vm(survey)) {
        check_fail(check, "not seen: a VM with a device could forge interrupts of this host");
        check_remedy(check, "switch it on in the firmware's setup (with VT-d or AMD-Vi; x2APIC may "
                            "be needed), and remove intremap=off from the command line");
    } else {
        check_warn(check, "not seen");
        check_remedy(check, "needed only before a device is given to a VM: switch it on in the "
                            "firmware's setup, and remove intremap=off from the command line");
    }
}

static bool is_ours(const struct survey *survey, const char *address)
{
    for (size_t i = 0; i < survey->device_count; i++) {
        if (strcmp(survey->devices[i].address, address) == 0)
            return survey->devices[i].gpu || survey->devices[i].stub;
    }
    return false;
}

void check_iommu_faults(const struct survey *survey, struct host_check *check)
{
    const struct host_iommu *iommu = &survey->iommu;

    if (!iommu->log_read) {
        check_skip(check, "%s", iommu->log_problem);
        check_remedy(check, "run it as root");
    } else if (!iommu->fault_count) {
        check_pass(check, "none in the log since boot, as far as it reaches back");
    } else if (is_ours(survey, iommu->last_fault_address)) {
        check_fail(check, "%u, the last one of a device that VMs use: %s", iommu->fault_count,
                   iommu->last_fault);
        check_remedy(check, "the IOMMU stopped this DMA; quarantine who used the device then, "
                            "look at the log (dmesg) and at the device's driver and firmware");
    } else {
        check_warn(check, "%u, the last one: %s", iommu->fault_count, iommu->last_fault);
        check_remedy(check, "the IOMMU stopped this DMA; look at the driver and firmware of %s",
                     iommu->last_fault_address[0] ? iommu->last_fault_address : "that device");
    }
}

void check_iommu_groups(const struct survey *survey, struct host_check *check)
{
    const struct host_iommu *iommu = &survey->iommu;

    if (iommu->noiommu_count) {
        check_fail(check,
                   "%u of VFIO without an IOMMU (enable_unsafe_noiommu_mode): whoever has "
                   "such a device can write all memory of this host",
                   iommu->noiommu_count);
        check_remedy(check, "set enable_unsafe_noiommu_mode=0 of the module vfio, and switch the "
                            "IOMMU on");
    } else if (!iommu->enabled) {
        check_skip(check, "the IOMMU is off");
    } else if (strcmp(iommu->kind, "xen") == 0) {
        check_skip(check, "the hypervisor has the IOMMU; Dom0 sees no groups");
    } else if (!iommu->group_count) {
        check_warn(check, "none, though the IOMMU is on");
        check_remedy(check, "look for DMAR or AMD-Vi in the kernel's log (dmesg)");
    } else {
        check_pass(check, "%u", iommu->group_count);
    }
}

void check_xen_virt_caps(const struct survey *survey, struct host_check *check)
{
    struct vgpu_error error;
    char caps[256];

    if (!host_is_dom0(survey->host)) {
        check_skip(check, "this is no Xen Dom0");
        return;
    }
    if (host_virt_caps(survey->host, caps, sizeof(caps), &error) < 0) {
        check_skip(check, "%s", error.message);
        check_remedy(check, "install xen-utils, or run it as root");
    } else if (!strstr(caps, "hvm")) {
        check_fail(check, "%s: no hardware virtualisation, so no HVM guests", caps);
        check_remedy(check, "switch VT-x or AMD-V on in the firmware's setup");
    } else if (strstr(caps, "directio")) {
        check_pass(check, "%s", caps);
    } else if (is_for_worker_vm(survey)) {
        check_fail(check,
                   "%s: no hvm_directio, so the IOMMU is off and the GPU cannot be passed "
                   "through",
                   caps);
        check_remedy(check, "switch VT-d or AMD-Vi on in the firmware's setup");
    } else {
        check_warn(check, "%s: no hvm_directio, so the IOMMU is off", caps);
        check_remedy(check, "switch VT-d or AMD-Vi on in the firmware's setup");
    }
}

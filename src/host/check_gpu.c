/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of the GPU, its driver, and the device nodes that it and VMs need. */
#include "gpu/gpu.h"
#include "host/private.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORLD 0007

static bool gpu_is_here(const struct survey *survey)
{
    return survey->mode == HOST_MODE_KVM_GPU || survey->mode == HOST_MODE_XEN_PVH_DOM0 ||
           survey->mode == HOST_MODE_XEN_PV_DOM0;
}

/* --- its driver and its group ------------------------------------------------------------ */

static void judge_driver(const struct host_pci_device *gpu, struct findings *findings, char *well,
                         size_t bytes)
{
    if (!gpu->driver[0])
        host_add(findings->failed, sizeof(findings->failed), "%s has no driver", gpu->address);
    else if (strcmp(gpu->driver, "nvidia") == 0 || host_is_for_vms(gpu))
        host_add(well, bytes, "%s: %s", gpu->address, gpu->driver);
    else
        host_add(findings->failed, sizeof(findings->failed), "%s has %s, which cannot compute",
                 gpu->address, gpu->driver);
}

void check_gpu_driver(const struct survey *survey, struct host_check *check)
{
    struct findings findings = {.failed = ""};
    char well[HOST_TEXT_BYTES] = "";

    if (!survey->gpu_count) {
        check_skip(check, "no NVIDIA GPU on the PCI bus");
        return;
    }
    for (size_t i = 0; i < survey->device_count; i++) {
        if (survey->devices[i].gpu)
            judge_driver(&survey->devices[i], &findings, well, sizeof(well));
    }
    check_findings(check, &findings, well);
    if (findings.failed[0])
        check_remedy(check, "install NVIDIA's driver and keep nouveau out (blacklist nouveau in "
                            "/etc/modprobe.d); for a worker VM: vgpu-admin bind-vfio ADDRESS");
}

void check_gpu_dma(const struct survey *survey, struct host_check *check)
{
    struct findings findings = {.failed = ""};
    char well[HOST_TEXT_BYTES] = "";

    if (!survey->gpu_count || !survey->iommu.enabled || strcmp(survey->iommu.kind, "xen") == 0) {
        check_skip(check, "%s",
                   !survey->gpu_count       ? "no NVIDIA GPU on the PCI bus"
                   : !survey->iommu.enabled ? "the IOMMU is off"
                                            : "the hypervisor has the IOMMU");
        return;
    }
    for (size_t i = 0; i < survey->device_count; i++) {
        const struct host_pci_device *gpu = &survey->devices[i];
        char type[32];

        if (!gpu->gpu)
            continue;
        host_group_type(survey->host, gpu->iommu_group, type);
        if (host_is_for_vms(gpu))
            host_add(well, sizeof(well), "%s: confined to its VM by VFIO", gpu->address);
        else if (strncmp(type, "DMA", 3) == 0)
            host_add(well, sizeof(well), "%s: translated (%s)", gpu->address, type);
        else
            host_add(findings.warned, sizeof(findings.warned),
                     "%s: not confined, its group's type is '%s'", gpu->address,
                     type[0] ? type : "unknown");
    }
    check_findings(check, &findings, well);
    if (findings.warned[0])
        check_remedy(check, "remove iommu=pt (and iommu.passthrough=1) from the kernel's command "
                            "line, if the GPU's DMA is to be confined to what its driver mapped");
}

static void judge_group(const struct survey *survey, const struct host_pci_device *gpu,
                        struct findings *findings, char *well, size_t bytes)
{
    char names[256] = "";

    for (size_t i = 0; i < survey->device_count; i++) {
        const struct host_pci_device *other = &survey->devices[i];

        if (other != gpu && host_same_group(gpu, other) && host_is_neighbour_in_use(other))
            host_add(names, sizeof(names), "%s (%s)", other->address, other->driver);
    }
    if (!names[0])
        host_add(well, bytes, "%s: alone in group %d, or with unused devices", gpu->address,
                 gpu->iommu_group);
    else if (host_is_for_vms(gpu))
        host_add(findings->failed, sizeof(findings->failed),
                 "%s is for a VM, but its group %d has devices that this host uses: %s",
                 gpu->address, gpu->iommu_group, names);
    else
        host_add(well, bytes, "%s: shares group %d with %s", gpu->address, gpu->iommu_group, names);
}

void check_gpu_neighbours(const struct survey *survey, struct host_check *check)
{
    struct findings findings = {.failed = ""};
    char well[HOST_TEXT_BYTES] = "";
    size_t grouped = 0;

    for (size_t i = 0; i < survey->device_count; i++) {
        if (!survey->devices[i].gpu || survey->devices[i].iommu_group < 0)
            continue;
        grouped++;
        judge_group(survey, &survey->devices[i], &findings, well, sizeof(well));
    }
    if (!grouped) {
        check_skip(check, "no NVIDIA GPU in an IOMMU group");
        return;
    }
    check_findings(check, &findings, well);
    if (findings.failed[0])
        check_remedy(check, "vgpu-admin bind-vfio ADDRESS --group moves the whole group; or put "
                            "the GPU into another slot");
}

/* --- driver and library --------------------------------------------------------------------- */

/* The first word of the line that is a number with a point in it. */
static bool find_version(const char *line, char *version, size_t bytes)
{
    while (*line) {
        size_t length = strcspn(line, " \t");

        if (length && strspn(line, "0123456789.") == length && memchr(line, '.', length)) {
            snprintf(version, bytes, "%.*s", (int)length, line);
            return true;
        }
        line += length;
        line += strspn(line, " \t");
    }
    return false;
}

void check_nvidia_driver(const struct survey *survey, struct host_check *check)
{
    char line[256], version[64];

    if (!gpu_is_here(survey)) {
        check_skip(check, "no GPU is used by this host itself");
    } else if (!host_read_line(survey->host, line, sizeof(line), "/proc/driver/nvidia/version")) {
        check_fail(check, "NVIDIA's kernel module is not loaded");
        check_remedy(check, "install NVIDIA's driver; then: modprobe nvidia");
    } else if (!find_version(line, version, sizeof(version))) {
        check_warn(check, "/proc/driver/nvidia/version names no version: %.100s", line);
        check_remedy(check, "see that NVIDIA's driver is whole: nvidia-smi");
    } else {
        check_pass(check, "version %s", version);
    }
}

/* What the configuration names; else below another root in its usual places, of which the
 * first is told when there is none; NULL: where the linker finds it. */
static const char *find_libcuda(const struct host *host, char path[PATH_MAX])
{
    static const char *const folders[] = {"/usr/lib/x86_64-linux-gnu", "/usr/lib64",
                                          "/usr/lib/aarch64-linux-gnu"};

    if (host->cuda_library && host->cuda_library[0])
        return host_path(host, path, "%s", host->cuda_library) ? path : NULL;
    for (size_t i = VGPU_ARRAY_LENGTH(folders); host->root[0] && i-- > 0;) {
        if (host_path(host, path, "%s/libcuda.so.1", folders[i]) && access(path, R_OK) == 0)
            return path;
    }
    return host->root[0] ? path : NULL;
}

/* Its messages end with what to do. */
static void fail_by(struct host_check *check, struct vgpu_error *error)
{
    char *remedy = strstr(error->message, ": install ");

    if (remedy) {
        check_remedy(check, "%s", remedy + 2);
        *remedy = '\0';
    }
    check_fail(check, "%s", error->message);
}

void check_cuda(const struct survey *survey, struct host_check *check)
{
    struct vgpu_error error;
    struct cuda cuda;
    char path[PATH_MAX];

    if (!gpu_is_here(survey)) {
        check_skip(check, "no GPU is used by this host itself");
        return;
    }
    if (cuda_load(find_libcuda(survey->host, path), &cuda, &error) < 0) {
        fail_by(check, &error);
        return;
    }
    check_pass(check, "CUDA %d.%d", cuda.version / 1000, cuda.version % 1000 / 10);
    cuda_unload(&cuda);
}

/* --- does it compute? ----------------------------------------------------------------------- */

/* In a process of its own, with a deadline; the remedy of the first that does not is told. */
static void judge_compute(const char *library, const char *address, struct findings *findings,
                          char *well, size_t bytes, struct host_check *check)
{
    struct gpu_gate_config config = {.cuda_library = library, .selector = address};
    struct gpu_gate_report report;
    char text[HOST_TEXT_BYTES];

    if (gpu_gate(&config, &report) == 0) {
        host_add(well, bytes, "%s: %s computes", address, report.device.name);
        return;
    }
    gpu_gate_describe(&report, text, sizeof(text));
    host_add(findings->failed, sizeof(findings->failed), "%s: %s", address, text);
    if (!check->remedy[0])
        check_remedy(check, "%s", report.remedy);
}

void check_gpu_compute(const struct survey *survey, struct host_check *check)
{
    struct findings findings = {.failed = ""};
    char path[PATH_MAX], well[HOST_TEXT_BYTES] = "";
    const char *library = find_libcuda(survey->host, path);
    struct cuda cuda;

    if (!gpu_is_here(survey)) {
        check_skip(check, "no GPU is used by this host itself");
        return;
    }
    if (cuda_load(library, &cuda, NULL) < 0) {
        check_skip(check, "there is no libcuda to compute with: see the check 'cuda'");
        return;
    }
    cuda_unload(&cuda);
    for (size_t i = 0; i < survey->device_count; i++) {
        const struct host_pci_device *gpu = &survey->devices[i];

        if (gpu->gpu && strcmp(gpu->driver, "nvidia") == 0)
            judge_compute(library, gpu->address, &findings, well, sizeof(well), check);
    }
    if (!well[0] && !findings.failed[0])
        check_skip(check, "no GPU has NVIDIA's driver: see the check 'gpu-driver'");
    else
        check_findings(check, &findings, well);
}

/* --- device nodes ------------------------------------------------------------------------------
 */

static bool node_mode(const struct host *host, const char *name, mode_t *ret_mode)
{
    struct stat info;
    char path[PATH_MAX];

    if (!host_path(host, path, "/dev/%s", name) || stat(path, &info) < 0)
        return false;
    *ret_mode = info.st_mode & 07777;
    return true;
}

static bool is_gpu_node(const char *name)
{
    return strncmp(name, "nvidia", 6) == 0 && isdigit((unsigned char)name[6]);
}

static void judge_nodes(const struct host *host, const struct host_names *names,
                        struct findings *findings, unsigned *ret_gpus)
{
    char open_nodes[256] = "";
    mode_t mode;

    for (size_t i = 0; i < names->count; i++) {
        if (!is_gpu_node(names->names[i]) && strcmp(names->names[i], "nvidiactl") != 0)
            continue;
        *ret_gpus += is_gpu_node(names->names[i]);
        if (node_mode(host, names->names[i], &mode) && mode & WORLD)
            host_add(open_nodes, sizeof(open_nodes), "/dev/%s (%04o)", names->names[i],
                     (unsigned)mode);
    }
    if (!*ret_gpus)
        host_add(findings->failed, sizeof(findings->failed), "there is no /dev/nvidia0");
    if (!node_mode(host, "nvidiactl", &mode))
        host_add(findings->failed, sizeof(findings->failed), "there is no /dev/nvidiactl");
    if (!node_mode(host, "nvidia-uvm", &mode))
        host_add(findings->failed, sizeof(findings->failed), "there is no /dev/nvidia-uvm");
    if (open_nodes[0])
        host_add(findings->warned, sizeof(findings->warned),
                 "all users of this host may use the GPU past the mediator: %s", open_nodes);
}

void check_nvidia_nodes(const struct survey *survey, struct host_check *check)
{
    struct findings findings = {.failed = ""};
    struct host_names names;
    unsigned gpus = 0;
    char well[64];

    if (!gpu_is_here(survey)) {
        check_skip(check, "no GPU is used by this host itself");
        return;
    }
    names = host_list(survey->host, "/dev");
    judge_nodes(survey->host, &names, &findings, &gpus);
    host_names_free(&names);
    snprintf(well, sizeof(well), "%u GPU%s, for root and one group", gpus, gpus == 1 ? "" : "s");
    check_findings(check, &findings, well);
    if (findings.failed[0])
        check_remedy(check, "nvidia-modprobe -c 0 -u makes the nodes; nvidia-persistenced keeps "
                            "them");
    else if (findings.warned[0])
        check_remedy(check, "options nvidia NVreg_DeviceFileMode=0660 NVreg_DeviceFileGID=<group "
                            "vgpu> in /etc/modprobe.d, if other users have accounts here");
}

/* --- host memory -------------------------------------------------------------------------------
 */

/* With heterogeneous memory management a kernel reads and writes all memory of the process that
 * launched it: a guest's kernel its worker's, where the slot and one page would do. */
void check_gpu_host_memory(const struct survey *survey, struct host_check *check)
{
    char off[8];

    if (!gpu_is_here(survey)) {
        check_skip(check, "no GPU is used by this host itself");
    } else if (!host_read_line(survey->host, off, sizeof(off),
                               "/sys/module/nvidia_uvm/parameters/uvm_disable_hmm")) {
        check_skip(check, "the module nvidia_uvm is not loaded, or knows no such memory");
    } else if (off[0] == 'Y' || off[0] == '1') {
        check_pass(check, "a kernel reaches what its worker maps for it");
    } else {
        check_warn(check, "a guest's kernel may reach all memory of its own worker (heterogeneous "
                          "memory management)");
        check_remedy(check,
                     "options nvidia_uvm uvm_disable_hmm=1 in /etc/modprobe.d, then load the "
                     "module again; no other VM's worker is within reach either way");
    }
}

static void judge_vfio_node(const struct host *host, const struct host_pci_device *device,
                            struct findings *findings)
{
    char name[32];
    mode_t mode;

    snprintf(name, sizeof(name), "vfio/%d", device->iommu_group);
    if (!node_mode(host, name, &mode))
        host_add(findings->failed, sizeof(findings->failed), "there is no /dev/%s for %s", name,
                 device->address);
    else if (mode & WORLD)
        host_add(findings->failed, sizeof(findings->failed), "all users may open /dev/%s (%04o)",
                 name, (unsigned)mode);
}

void check_vfio_nodes(const struct survey *survey, struct host_check *check)
{
    struct findings findings = {.failed = ""};
    unsigned bound = 0;
    char well[64];

    for (size_t i = 0; i < survey->device_count; i++) {
        if (strcmp(survey->devices[i].driver, "vfio-pci") != 0)
            continue;
        bound++;
        judge_vfio_node(survey->host, &survey->devices[i], &findings);
    }
    if (!bound) {
        check_skip(check, "no device is bound to vfio-pci");
        return;
    }
    if (!host_exists(survey->host, "/dev/vfio/vfio") && !host_exists(survey->host, "/dev/iommu"))
        host_add(findings.failed, sizeof(findings.failed), "there is no /dev/vfio/vfio");
    snprintf(well, sizeof(well), "%u device%s, for root or one user alone", bound,
             bound == 1 ? "" : "s");
    check_findings(check, &findings, well);
    if (findings.failed[0])
        check_remedy(check, "modprobe vfio-pci; a group's node belongs to root or to QEMU's user, "
                            "with mode 0600");
}

/* --- KVM -----------------------------------------------------------------------------------------
 */

static int try_kvm(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    int version, code, vm = -1;

    if (fd < 0)
        return -1;
    version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version == KVM_API_VERSION)
        vm = ioctl(fd, KVM_CREATE_VM, 0);
    else if (version >= 0)
        errno = ENOTSUP;
    code = vm < 0 ? errno : 0;
    fd_close(&vm);
    fd_close(&fd);
    errno = code;
    return code ? -1 : 0;
}

/* A host can offer /dev/kvm by other means than its processor's; guests' kernels may
 * then stop at instructions that those means do not know. */
static bool has_virtualisation(const struct host *host)
{
    char *text = host_read_file(host, "/proc/cpuinfo");
    bool found = !text || strstr(text, " vmx") || strstr(text, " svm") ||
                 !strstr(text, "\nflags"); /* another architecture */

    free(text);
    return found;
}

void check_kvm(const struct survey *survey, struct host_check *check)
{
    const struct host_ops *ops = survey->host->ops;
    char path[PATH_MAX];
    int result;

    if (host_is_xen(survey->host) || !host_path(survey->host, path, "/dev/kvm")) {
        check_skip(check, "VMs are Xen's here");
        return;
    }
    if (access(path, F_OK) < 0) {
        check_warn(check, "there is no /dev/kvm: VMs run emulated, which is slow");
        check_remedy(check, "switch VT-x or AMD-V on in the firmware's setup; modprobe kvm_intel "
                            "or kvm_amd");
        return;
    }
    result = ops && ops->try_kvm ? ops->try_kvm(ops->user, path) : try_kvm(path);
    if (result < 0) {
        check_fail(check, "/dev/kvm makes no VM: %s", strerror(errno));
        check_remedy(check, "%s",
                     errno == EACCES || errno == EPERM
                         ? "run it as root, or as a member of the group kvm"
                         : "look for kvm in the kernel's log (dmesg); another "
                           "hypervisor may have the processor");
    } else if (!has_virtualisation(survey->host)) {
        check_warn(check, "/dev/kvm makes VMs, but the processor shows neither vmx nor svm: "
                          "kernels of guests may die under it");
        check_remedy(check, "boot a guest with -accel kvm before you rely on it; -accel tcg always "
                            "works");
    } else {
        check_pass(check, "/dev/kvm makes VMs");
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* host/: each check in each of its verdicts, on machines made of files. */
#include "gpu_double.h"
#include "host_tree.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

#define WITH(make, tree)                                                                           \
    struct tree tree;                                                                              \
    (void)state;                                                                                   \
    make(&tree)

/* --- the table ------------------------------------------------------------------------- */

static void all_checks_run_in_the_tables_order(void **state)
{
    struct host_check checks[HOST_CHECKS_MAX];
    size_t count;

    WITH(tree_begin, tree);
    count = host_preflight(&tree.host, NULL, checks);
    for (size_t i = 0; i < count; i++) {
        assert_string_equal(checks[i].name, host_check_name(i));
        assert_true(checks[i].found[0]);
    }
    assert_null(host_check_name(count));
    assert_int_equal(host_preflight(&tree.host, "no-such", checks), 0);
    tree_end(&tree);
}

/* --- the set-up and the IOMMU -------------------------------------------------------------- */

static void host_mode_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    tree_expect(&tree, "host-mode", HOST_PASS, "kvm-gpu-in-host");
    tree_pci(&tree, "0000:81:00.0", "0x10de\n", "0x030200\n", "vfio-pci", 15);
    tree_expect(&tree, "host-mode", HOST_PASS, "1 of 2 GPUs are set aside");
    tree_driver(&tree, GPU, "vfio-pci");
    tree_expect(&tree, "host-mode", HOST_PASS, "kvm-worker-vm");
    tree_end(&tree);
    tree_begin(&tree);
    tree_expect(&tree, "host-mode", HOST_WARN, "no-gpu");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "hvm");
    tree_expect(&tree, "host-mode", HOST_PASS, "xen-pvh-dom0");
    tree_write(&tree, "/sys/hypervisor/guest_type", "PV\n");
    tree_expect(&tree, "host-mode", HOST_FAIL, "CUDA cannot work");
    tree_driver(&tree, GPU, "pciback");
    tree_expect(&tree, "host-mode", HOST_PASS, "xen-worker-vm");
    tree_end(&tree);
}

static void iommu_enabled_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    tree_expect(&tree, "iommu-enabled", HOST_PASS, "on (intel)");
    tree_remove(&tree, "/sys/class/iommu/dmar0");
    tree_expect(&tree, "iommu-enabled", HOST_WARN, "ACPI tables: there");
    tree_driver(&tree, GPU, "vfio-pci");
    tree_expect(&tree, "iommu-enabled", HOST_FAIL, "worker VM");
    tree_end(&tree);
    tree_amd(&tree);
    tree_expect(&tree, "iommu-enabled", HOST_PASS, "on (amd)");
    tree_end(&tree);
}

static void expect_remedy(const struct tree *tree, const char *name, const char *words)
{
    struct host_check check = tree_check(tree, name);

    if (!strstr(check.remedy, words))
        print_error("%s\n", check.remedy);
    assert_non_null(strstr(check.remedy, words));
}

static void the_remedy_for_an_iommu_that_is_off_fits_the_machine(void **state)
{
    WITH(tree_intel, tree);
    tree_remove(&tree, "/sys/class/iommu/dmar0");
    tree_write(&tree, "/proc/cmdline", "quiet\n");
    expect_remedy(&tree, "iommu-enabled", "add intel_iommu=on");
    tree_write(&tree, "/proc/cmdline", "quiet intel_iommu=off\n");
    expect_remedy(&tree, "iommu-enabled",
                  "remove it from the kernel's command line (intel_iommu=off");
    tree_remove(&tree, "/sys/firmware/acpi/tables/DMAR");
    tree_write(&tree, "/proc/cmdline", "quiet\n");
    expect_remedy(&tree, "iommu-enabled", "VT-d on in the firmware");
    tree_write(&tree, "/proc/cpuinfo", "vendor_id : AuthenticAMD\n");
    expect_remedy(&tree, "iommu-enabled", "AMD-Vi");
    tree_write(&tree, "/proc/cpuinfo", "flags : fpu hypervisor lm\n");
    expect_remedy(&tree, "iommu-enabled", "itself a VM");
    tree_expect(&tree, "iommu-enabled", HOST_WARN, "nothing in this VM");
    tree_expect(&tree, "host-mode", HOST_PASS, "this machine is itself a VM");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "hvm");
    expect_remedy(&tree, "iommu-enabled", "Xen's command line");
    tree_end(&tree);
}

static void interrupt_remapping_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    tree_expect(&tree, "interrupt-remapping", HOST_PASS, "on");
    tree_write(&tree, "/proc/interrupts", " 24:  0  PCI-MSI  0-edge  nvidia\n");
    tree_expect(&tree, "interrupt-remapping", HOST_WARN, "not seen");
    tree_driver(&tree, GPU, "vfio-pci");
    tree_expect(&tree, "interrupt-remapping", HOST_FAIL, "forge interrupts");
    tree_write(&tree, "/proc/interrupts", " 24:  0  IR-PCI-MSI  0-edge  nvidia\n");
    tree_write(&tree, "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    tree_expect(&tree, "interrupt-remapping", HOST_FAIL, "allow_unsafe_interrupts");
    tree_remove(&tree, "/sys/class/iommu/dmar0");
    tree_expect(&tree, "interrupt-remapping", HOST_SKIP, "off");
    tree_end(&tree);
}

static void iommu_faults_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    tree_expect(&tree, "iommu-faults", HOST_PASS, "none");
    tree_write(&tree, "/dev/kmsg", "4,1,1,-;DMAR: [DMA Read] Request device [00:1f.2] fault\n");
    tree_expect(&tree, "iommu-faults", HOST_WARN, "1, the last one: DMAR");
    tree_write(&tree, "/dev/kmsg", "4,1,1,-;" FAULT "\n");
    tree_expect(&tree, "iommu-faults", HOST_FAIL, "a device that VMs use");
    tree_end(&tree);
}

static void iommu_groups_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    tree_expect(&tree, "iommu-groups", HOST_PASS, "1");
    tree_write(&tree, "/sys/kernel/iommu_groups/14/name", "vfio-noiommu\n");
    tree_expect(&tree, "iommu-groups", HOST_FAIL, "enable_unsafe_noiommu_mode");
    tree_remove(&tree, "/sys/kernel/iommu_groups");
    tree_expect(&tree, "iommu-groups", HOST_WARN, "none");
    tree_remove(&tree, "/sys/class/iommu/dmar0");
    tree_expect(&tree, "iommu-groups", HOST_SKIP, "off");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "hvm hvm_directio");
    tree_expect(&tree, "iommu-groups", HOST_SKIP, "hypervisor");
    tree_end(&tree);
}

static void xen_virt_caps_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    tree_expect(&tree, "xen-virt-caps", HOST_SKIP, "no Xen Dom0");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "pv hvm hvm_directio");
    tree_expect(&tree, "xen-virt-caps", HOST_PASS, "pv hvm hvm_directio");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "pv hvm");
    tree_expect(&tree, "xen-virt-caps", HOST_WARN, "no hvm_directio");
    tree_driver(&tree, GPU, "pciback");
    tree_expect(&tree, "xen-virt-caps", HOST_FAIL, "cannot be passed through");
    tree_remove(&tree, "/usr/sbin/xl");
    tree_expect(&tree, "xen-virt-caps", HOST_SKIP, "no program xl");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "pv");
    tree_expect(&tree, "xen-virt-caps", HOST_FAIL, "no hardware virtualisation");
    tree_end(&tree);
}

/* --- the GPU --------------------------------------------------------------------------------- */

static void xen_device_model_in_each_verdict(void **state)
{
    const char *check = "xen-device-model", *qemu = "/usr/lib64/xen/bin/qemu-system-i386";
    const char *ours = "/usr/libexec/vgpu-mediator/qemu-wrapper-vgpu";

    WITH(tree_begin, tree);
    tree_expect(&tree, check, HOST_SKIP, "no XCP-ng host");
    tree_write(&tree, "/etc/xensource-inventory", "PRODUCT_BRAND='XCP-ng'\n");
    tree_expect(&tree, check, HOST_FAIL, "cannot be read");
    tree_write(&tree, qemu, "");
    tree_expect(&tree, check, HOST_FAIL, "cannot be read");
    tree_write(&tree, qemu, "of the platform");
    tree_expect(&tree, check, HOST_WARN, "has no vgpu-stub and xenopsd");
    tree_write(&tree, qemu, "with the virtual GPU of vgpu-mediator in it");
    tree_expect(&tree, check, HOST_FAIL, "VMs start without their device");
    tree_write(&tree, "/etc/xenopsd.conf",
               "upstream-compat-qemu-dm-wrapper-not=/x\n"
               "upstream-compat-qemu-dm-wrapper = /other/qemu-wrapper\n");
    tree_expect(&tree, check, HOST_FAIL, "VMs start without their device");
    tree_write(&tree, "/etc/xenopsd.conf.d/vgpu.conf",
               "# ours\nupstream-compat-qemu-dm-wrapper="
               "/usr/libexec/vgpu-mediator/qemu-wrapper-vgpu\n");
    tree_expect(&tree, check, HOST_FAIL, "which is no program: no VM starts");
    tree_program(&tree, ours, "#!/bin/sh\n");
    tree_expect(&tree, check, HOST_PASS, "through our wrapper");
    tree_write(&tree, qemu, "of an update");
    tree_expect(&tree, check, HOST_FAIL, "has replaced it?");
    tree_write(&tree, "/etc/xenopsd.conf.d/zz.conf",
               "upstream-compat-qemu-dm-wrapper=/other/qemu-wrapper\n");
    tree_expect(&tree, check, HOST_WARN, "has no vgpu-stub and xenopsd");
    tree_end(&tree);
}

static void gpu_driver_in_each_verdict(void **state)
{
    WITH(tree_begin, tree);
    tree_expect(&tree, "gpu-driver", HOST_SKIP, "no NVIDIA GPU");
    tree_end(&tree);
    tree_intel(&tree);
    tree_expect(&tree, "gpu-driver", HOST_PASS, GPU ": nvidia");
    tree_driver(&tree, GPU, "vfio-pci");
    tree_expect(&tree, "gpu-driver", HOST_PASS, GPU ": vfio-pci");
    tree_driver(&tree, GPU, "nouveau");
    tree_expect(&tree, "gpu-driver", HOST_FAIL, "nouveau");
    tree_remove(&tree, DEVICES "/" GPU "/driver");
    tree_expect(&tree, "gpu-driver", HOST_FAIL, "has no driver");
    tree_end(&tree);
}

static void gpu_dma_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    tree_expect(&tree, "gpu-dma", HOST_PASS, "translated (DMA-FQ)");
    tree_group_type(&tree, 14, "identity\n");
    tree_expect(&tree, "gpu-dma", HOST_WARN, "not confined");
    tree_driver(&tree, GPU, "vfio-pci");
    tree_expect(&tree, "gpu-dma", HOST_PASS, "confined to its VM");
    tree_remove(&tree, "/sys/class/iommu/dmar0");
    tree_expect(&tree, "gpu-dma", HOST_SKIP, "off");
    tree_end(&tree);
}

static void gpu_neighbours_in_each_verdict(void **state)
{
    WITH(tree_begin, tree);
    tree_expect(&tree, "gpu-neighbours", HOST_SKIP, "no NVIDIA GPU");
    tree_end(&tree);
    tree_intel(&tree);
    tree_pci(&tree, PORT, "0x8086\n", "0x060400\n", "pcieport", 14);
    tree_expect(&tree, "gpu-neighbours", HOST_PASS, "alone in group 14");
    tree_pci(&tree, NIC, "0x8086\n", "0x020000\n", "e1000e", 14);
    tree_expect(&tree, "gpu-neighbours", HOST_PASS, "shares group 14 with " NIC " (e1000e)");
    tree_driver(&tree, GPU, "vfio-pci");
    tree_expect(&tree, "gpu-neighbours", HOST_FAIL, NIC " (e1000e)");
    tree_end(&tree);
}

static void nvidia_driver_in_each_verdict(void **state)
{
    WITH(tree_begin, tree);
    tree_expect(&tree, "nvidia-driver", HOST_SKIP, "no GPU");
    tree_end(&tree);
    tree_intel(&tree);
    tree_expect(&tree, "nvidia-driver", HOST_FAIL, "not loaded");
    tree_write(&tree, "/proc/driver/nvidia/version",
               "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\n");
    tree_expect(&tree, "nvidia-driver", HOST_PASS, "version 580.65.06");
    tree_write(&tree, "/proc/driver/nvidia/version", "nonsense\n");
    tree_expect(&tree, "nvidia-driver", HOST_WARN, "names no version");
    tree_end(&tree);
}

static void cuda_in_each_verdict(void **state)
{
    char path[PATH_MAX];

    WITH(tree_begin, tree);
    tree_expect(&tree, "cuda", HOST_SKIP, "no GPU");
    tree_end(&tree);
    tree_intel(&tree);
    tree_expect(&tree, "cuda", HOST_FAIL, "there is no");
    tree_link(&tree, "/usr/lib/x86_64-linux-gnu/libcuda.so.1", getenv("VGPU_FAKE_CUDA_OLD"));
    tree_expect(&tree, "cuda", HOST_FAIL, "has CUDA 12.2, expected 12.4");
    tree_path(&tree, path, "/usr/lib/x86_64-linux-gnu/libcuda.so.1");
    unlink(path); /* at another path: a loader that knows a path does not look again */
    tree_path(&tree, path, "/usr/lib64/libcuda.so.1");
    gpu_double_copy(getenv("VGPU_FAKE_CUDA"), path);
    tree_write(&tree, "/usr/lib64/libcuda.so.1.conf", "version 12040\n");
    tree_expect(&tree, "cuda", HOST_PASS, "CUDA 12.4");
    tree_write(&tree, "/usr/lib64/libcuda.so.1.conf", "fail cuDriverGetVersion * 3\n");
    tree_expect(&tree, "cuda", HOST_FAIL, "does not say");
    tree_end(&tree);
}

static void gpu_compute_in_each_verdict(void **state)
{
    char path[PATH_MAX];

    WITH(tree_begin, tree);
    tree_expect(&tree, "gpu-compute", HOST_SKIP, "no GPU");
    tree_end(&tree);
    tree_intel(&tree);
    tree_expect(&tree, "gpu-compute", HOST_SKIP, "see the check 'cuda'");
    tree_path(&tree, path, "/usr/lib64/libcuda.so.1");
    gpu_double_copy(getenv("VGPU_FAKE_CUDA"), path);
    tree_write(&tree, "/usr/lib64/libcuda.so.1.conf", "bus 1\n");
    tree_expect(&tree, "gpu-compute", HOST_PASS, "0000:01:00.0: NVIDIA Fake computes");
    tree_write(&tree, "/usr/lib64/libcuda.so.1.conf", "bus 1\nskip gate\n");
    tree_expect(&tree, "gpu-compute", HOST_FAIL, "0000:01:00.0: step 'compare'");
    tree_write(&tree, "/usr/lib64/libcuda.so.1.conf", "bus 2\n");
    tree_expect(&tree, "gpu-compute", HOST_FAIL, "there is no GPU '0000:01:00.0'");
    tree_write(&tree, "/usr/lib64/libcuda.so.1.conf", "bus 1\ncrash cuInit\n");
    tree_expect(&tree, "gpu-compute", HOST_FAIL, "step 'init'");
    tree_end(&tree);
}

static void nvidia_nodes_in_each_verdict(void **state)
{
    static const char *const nodes[] = {"/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"};

    WITH(tree_begin, tree);
    tree_expect(&tree, "nvidia-nodes", HOST_SKIP, "no GPU");
    tree_end(&tree);
    tree_intel(&tree);
    tree_expect(&tree, "nvidia-nodes", HOST_FAIL, "no /dev/nvidia0");
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(nodes); i++) {
        tree_write(&tree, nodes[i], "");
        tree_mode(&tree, nodes[i], 0660);
    }
    tree_expect(&tree, "nvidia-nodes", HOST_PASS, "1 GPU,");
    tree_mode(&tree, "/dev/nvidia0", 0666);
    tree_expect(&tree, "nvidia-nodes", HOST_WARN, "/dev/nvidia0 (0666)");
    tree_remove(&tree, "/dev/nvidia-uvm");
    tree_expect(&tree, "nvidia-nodes", HOST_FAIL, "no /dev/nvidia-uvm");
    tree_end(&tree);
}

static void gpu_host_memory_in_each_verdict(void **state)
{
    WITH(tree_begin, tree);
    tree_expect(&tree, "gpu-host-memory", HOST_SKIP, "no GPU");
    tree_end(&tree);
    tree_intel(&tree);
    tree_expect(&tree, "gpu-host-memory", HOST_SKIP, "not loaded");
    tree_write(&tree, "/sys/module/nvidia_uvm/parameters/uvm_disable_hmm", "N\n");
    tree_expect(&tree, "gpu-host-memory", HOST_WARN, "all memory of its own worker");
    tree_write(&tree, "/sys/module/nvidia_uvm/parameters/uvm_disable_hmm", "Y\n");
    tree_expect(&tree, "gpu-host-memory", HOST_PASS, "what its worker maps");
    tree_end(&tree);
}

static void vfio_nodes_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    tree_expect(&tree, "vfio-nodes", HOST_SKIP, "no device");
    tree_driver(&tree, GPU, "vfio-pci");
    tree_expect(&tree, "vfio-nodes", HOST_FAIL, "no /dev/vfio/14");
    tree_write(&tree, "/dev/vfio/14", "");
    tree_mode(&tree, "/dev/vfio/14", 0600);
    tree_expect(&tree, "vfio-nodes", HOST_FAIL, "no /dev/vfio/vfio");
    tree_write(&tree, "/dev/vfio/vfio", "");
    tree_expect(&tree, "vfio-nodes", HOST_PASS, "1 device");
    tree_mode(&tree, "/dev/vfio/14", 0666);
    tree_expect(&tree, "vfio-nodes", HOST_FAIL, "all users may open /dev/vfio/14");
    tree_end(&tree);
}

static int kvm_answer;

static int answer_kvm(void *user, const char *path)
{
    (void)user;
    (void)path;
    errno = kvm_answer;
    return kvm_answer ? -1 : 0;
}

static void kvm_in_each_verdict(void **state)
{
    const struct host_ops ops = {.try_kvm = answer_kvm};

    WITH(tree_intel, tree);
    tree_expect(&tree, "kvm", HOST_WARN, "no /dev/kvm");
    tree_write(&tree, "/dev/kvm", "");
    tree_expect(&tree, "kvm", HOST_FAIL, "makes no VM"); /* a plain file */
    tree.host.ops = &ops;
    kvm_answer = 0;
    tree_expect(&tree, "kvm", HOST_PASS, "makes VMs");
    kvm_answer = EBUSY;
    tree_expect(&tree, "kvm", HOST_FAIL, "makes no VM");
    kvm_answer = EACCES;
    expect_remedy(&tree, "kvm", "group kvm");
    kvm_answer = 0;
    tree_write(&tree, "/proc/cpuinfo", "vendor_id : GenuineIntel\nflags\t: fpu lm\n");
    tree_expect(&tree, "kvm", HOST_WARN, "neither vmx nor svm");
    tree_write(&tree, "/sys/hypervisor/type", "xen\n");
    tree_expect(&tree, "kvm", HOST_SKIP, "Xen");
    tree_end(&tree);
}

/* --- files and services ------------------------------------------------------------------------
 */

static void memory_cgroup_in_each_verdict(void **state)
{
    WITH(tree_begin, tree);
    tree_expect(&tree, "memory-cgroup", HOST_WARN, "without a bound");
    tree_write(&tree, "/sys/fs/cgroup/cgroup.controllers", "cpu memory_like io\n");
    tree_expect(&tree, "memory-cgroup", HOST_WARN, "without a bound");
    tree_write(&tree, "/sys/fs/cgroup/cgroup.controllers", "cpu io memory\n");
    tree_expect(&tree, "memory-cgroup", HOST_PASS, "version 2");
    tree_remove(&tree, "/sys/fs/cgroup/cgroup.controllers");
    tree_write(&tree, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "0\n");
    tree_expect(&tree, "memory-cgroup", HOST_PASS, "version 1");
    tree_end(&tree);
}

static void group_in_each_verdict(void **state)
{
    WITH(tree_begin, tree);
    tree_expect(&tree, "group-vgpu", HOST_WARN, "no group vgpu");
    tree_write(&tree, "/etc/group", "root:x:0:\nvgpu2:x:1:\n");
    tree_expect(&tree, "group-vgpu", HOST_WARN, "no group vgpu");
    tree_write(&tree, "/etc/group", "root:x:0:\nvgpu:x:990:alice\n");
    tree_expect(&tree, "group-vgpu", HOST_PASS, "number 990");
    tree_end(&tree);
}

static void configuration_in_each_verdict(void **state)
{
    WITH(tree_begin, tree);
    tree_expect(&tree, "configuration", HOST_WARN, "there is no");
    tree_write(&tree, "/etc/vgpu/mediator.conf", "[mediator]\n");
    tree_expect(&tree, "configuration", HOST_PASS, "only root");
    tree_mode(&tree, "/etc/vgpu/mediator.conf", 0666);
    tree_expect(&tree, "configuration", HOST_FAIL, "mode 0666, at most 0644");
    tree_link(&tree, "/etc/vgpu/mediator.conf", "/tmp/elsewhere");
    tree_expect(&tree, "configuration", HOST_FAIL, "is a link");
    tree_end(&tree);
}

static void files_of_another_user_are_not_roots(void **state)
{
    char path[PATH_MAX];

    if (geteuid() != 0)
        skip();
    WITH(tree_begin, tree);
    tree_write(&tree, "/etc/vgpu/mediator.conf", "[mediator]\n");
    tree_path(&tree, path, "/etc/vgpu/mediator.conf");
    assert_int_equal(chown(path, 1234, 0), 0);
    tree_expect(&tree, "configuration", HOST_FAIL, "belongs to user 1234");
    tree_end(&tree);
}

/* Where this may not be done all is this user's, who is not root. */
static void own(const struct tree *tree, const char *below, uid_t uid)
{
    char path[PATH_MAX];

    tree_path(tree, path, below);
    if (geteuid() == 0)
        assert_int_equal(chown(path, uid, 0), 0);
}

static void two_vms_of_one_owner_and_one_of_root_are_told(void **state)
{
    if (geteuid() != 0)
        skip();
    WITH(tree_begin, tree);
    tree_directory(&tree, "/var/vgpu/vm7", 0700);
    tree_directory(&tree, "/var/vgpu/vm8", 0700);
    tree_expect(&tree, "share", HOST_WARN, "vm7 belongs to root");
    own(&tree, "/var/vgpu/vm7", 100007);
    own(&tree, "/var/vgpu/vm8", 100007);
    tree_expect(&tree, "share", HOST_WARN, "vm7 and vm8 have one owner, user 100007");
    own(&tree, "/var/vgpu/vm8", 100008);
    tree_expect(&tree, "share", HOST_PASS, "2 directories");
    tree_end(&tree);
}

static void share_in_each_verdict(void **state)
{
    WITH(tree_begin, tree);
    tree_expect(&tree, "share", HOST_SKIP, "there is no /var/vgpu yet");
    tree_directory(&tree, "/var/vgpu", 0711);
    tree_directory(&tree, "/var/vgpu/vm7", 0700);
    own(&tree, "/var/vgpu/vm7", 100007);
    tree_directory(&tree, "/var/vgpu/other", 0777);
    tree_write(&tree, "/proc/mounts", "/dev/sdb /var/vgpu ext4 rw,nosuid,nodev,noexec 0 0\n");
    tree_expect(&tree, "share", HOST_PASS, "1 directories");
    tree_write(&tree, "/proc/mounts", "/dev/sdb /var/vgpu ext4 rw,nosuid 0 0\n");
    tree_expect(&tree, "share", HOST_WARN, "without nosuid,nodev,noexec");
    tree_write(&tree, "/proc/mounts", "/dev/sda / ext4 rw 0 0\n");
    tree_expect(&tree, "share", HOST_WARN, "no file system of its own");
    tree_directory(&tree, "/var/vgpu/vm8", 0777);
    own(&tree, "/var/vgpu/vm8", 100008);
    tree_expect(&tree, "share", HOST_FAIL, "/var/vgpu/vm8 has mode 0777, at most 0770");
    tree_directory(&tree, "/var/vgpu/vm8", 0700);
    tree_directory(&tree, "/var/vgpu", 0777);
    tree_expect(&tree, "share", HOST_FAIL, "/var/vgpu has mode 0777");
    tree.host.share = "";
    tree_expect(&tree, "share", HOST_SKIP, "the file channel is off");
    tree_end(&tree);
}

static int listen_at(const struct tree *tree, const char *below, mode_t mode)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char path[PATH_MAX];

    tree_path(tree, path, below);
    assert_true(strlen(path) < sizeof(address.sun_path));
    strcpy(address.sun_path, path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(chmod(path, mode), 0);
    assert_int_equal(listen(fd, 1), 0);
    return fd;
}

static void run_dir_in_each_verdict(void **state)
{
    int fd;

    WITH(tree_begin, tree);
    tree_expect(&tree, "run-dir", HOST_SKIP, "yet");
    tree_directory(&tree, "/run/vgpu", 0755);
    fd = listen_at(&tree, "/run/vgpu/control.sock", 0660);
    tree_expect(&tree, "run-dir", HOST_PASS, "1 sockets");
    tree_mode(&tree, "/run/vgpu/control.sock", 0666);
    tree_expect(&tree, "run-dir", HOST_FAIL, "control.sock has mode 0666, at most 0660");
    tree_mode(&tree, "/run/vgpu/control.sock", 0660);
    tree_mode(&tree, "/run/vgpu", 0777);
    tree_expect(&tree, "run-dir", HOST_FAIL, "/run/vgpu has mode 0777");
    close(fd);
    tree_end(&tree);
}

static void mediator_in_each_verdict(void **state)
{
    int fd;

    WITH(tree_begin, tree);
    tree_expect(&tree, "mediator", HOST_WARN, "does not run");
    fd = listen_at(&tree, "/run/vgpu/control.sock", 0660);
    tree_expect(&tree, "mediator", HOST_PASS, "answers");
    close(fd);
    tree_expect(&tree, "mediator", HOST_WARN, "does not run");
    tree.host.socket = "";
    tree_expect(&tree, "mediator", HOST_SKIP, "no control socket");
    tree_end(&tree);
}

static void database_in_each_verdict(void **state)
{
    const struct store_actor actor = {"test", "init"};
    struct vgpu_error error;
    char path[PATH_MAX];

    WITH(tree_begin, tree);
    tree_expect(&tree, "database", HOST_SKIP, "there is no database");
    tree_expect(&tree, "database-file", HOST_SKIP, "there is no database");
    tree_path(&tree, path, "/var/lib/vgpu/vgpu.db");
    assert_int_equal(store_create(path, &actor, &error), 0);
    tree_expect(&tree, "database", HOST_PASS, "whole");
    tree_expect(&tree, "database-file", HOST_PASS, "only root");
    tree_mode(&tree, "/var/lib/vgpu/vgpu.db", 0644);
    tree_expect(&tree, "database-file", HOST_FAIL, "mode 0644, at most 0640");
    tree_write(&tree, "/var/lib/vgpu/vgpu.db", "this is no database, whatever its name says\n");
    tree_expect(&tree, "database", HOST_FAIL, "");
    tree_end(&tree);
}

static void register_vm(const struct tree *tree, uint32_t vm_id, const char *name, int64_t owner)
{
    struct store_vm vm;

    store_vm_init(&vm);
    vm.vm_id = vm_id;
    vm.owner_uid = vm.owner_gid = owner;
    text_copy(vm.name, sizeof(vm.name), name);
    tree_register(tree, &vm);
}

static void xen_owners_in_each_verdict(void **state)
{
    WITH(tree_intel, tree);
    register_vm(&tree, 7, "", -1);
    tree_expect(&tree, "xen-owners", HOST_SKIP, "no Xen control domain");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "hvm");
    tree_expect(&tree, "xen-owners", HOST_SKIP, "no registry");
    register_vm(&tree, 7, "web1", 2100000007);
    tree_expect(&tree, "xen-owners", HOST_PASS, "has an owner");
    register_vm(&tree, 8, "web2", -1);
    register_vm(&tree, 9, "", -1);
    tree_expect(&tree, "xen-owners", HOST_FAIL, "without an owner: 8 (web2), 9: their");
    expect_remedy(&tree, "xen-owners", "vgpu-admin update-vm VM --owner default");
    tree_end(&tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_checks_run_in_the_tables_order),
        cmocka_unit_test(host_mode_in_each_verdict),
        cmocka_unit_test(iommu_enabled_in_each_verdict),
        cmocka_unit_test(the_remedy_for_an_iommu_that_is_off_fits_the_machine),
        cmocka_unit_test(interrupt_remapping_in_each_verdict),
        cmocka_unit_test(iommu_faults_in_each_verdict),
        cmocka_unit_test(iommu_groups_in_each_verdict),
        cmocka_unit_test(xen_virt_caps_in_each_verdict),
        cmocka_unit_test(xen_device_model_in_each_verdict),
        cmocka_unit_test(xen_owners_in_each_verdict),
        cmocka_unit_test(gpu_driver_in_each_verdict),
        cmocka_unit_test(gpu_dma_in_each_verdict),
        cmocka_unit_test(gpu_neighbours_in_each_verdict),
        cmocka_unit_test(nvidia_driver_in_each_verdict),
        cmocka_unit_test(cuda_in_each_verdict),
        cmocka_unit_test(gpu_compute_in_each_verdict),
        cmocka_unit_test(nvidia_nodes_in_each_verdict),
        cmocka_unit_test(gpu_host_memory_in_each_verdict),
        cmocka_unit_test(vfio_nodes_in_each_verdict),
        cmocka_unit_test(kvm_in_each_verdict),
        cmocka_unit_test(memory_cgroup_in_each_verdict),
        cmocka_unit_test(group_in_each_verdict),
        cmocka_unit_test(configuration_in_each_verdict),
        cmocka_unit_test(files_of_another_user_are_not_roots),
        cmocka_unit_test(two_vms_of_one_owner_and_one_of_root_are_told),
        cmocka_unit_test(share_in_each_verdict),
        cmocka_unit_test(run_dir_in_each_verdict),
        cmocka_unit_test(mediator_in_each_verdict),
        cmocka_unit_test(database_in_each_verdict),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

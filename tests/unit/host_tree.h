/* SPDX-License-Identifier: Apache-2.0 */
/* Another machine's files in a temporary directory, for tests of host/. */
#ifndef VGPU_TESTS_HOST_TREE_H
#define VGPU_TESTS_HOST_TREE_H

#include "unit.h"

#include "host/host.h"
#include "store/store.h"

#include <limits.h>
#include <stdarg.h>

#define DEVICES "/sys/bus/pci/devices"
#define DRIVERS "/sys/bus/pci/drivers"
#define GPU "0000:01:00.0"
#define AUDIO "0000:01:00.1"
#define NIC "0000:02:00.0"
#define PORT "0000:00:01.0"
#define FAULT "DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0xdead000"

struct tree {
    char *root;
    struct host host;
};

static inline void tree_make_parents(char *path)
{
    for (char *at = strchr(path + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(path, 0755);
        *at = '/';
    }
}

static inline void tree_path(const struct tree *tree, char path[PATH_MAX], const char *below)
{
    snprintf(path, PATH_MAX, "%s%s", tree->root, below);
    tree_make_parents(path);
}

static inline void tree_write(const struct tree *tree, const char *below, const char *text)
{
    char path[PATH_MAX];
    FILE *file;

    tree_path(tree, path, below);
    file = fopen(path, "we");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, 0644), 0);
}

static inline void tree_mode(const struct tree *tree, const char *below, mode_t mode)
{
    char path[PATH_MAX];

    tree_path(tree, path, below);
    assert_int_equal(chmod(path, mode), 0);
}

static inline void tree_directory(const struct tree *tree, const char *below, mode_t mode)
{
    char path[PATH_MAX];

    tree_path(tree, path, below);
    mkdir(path, 0755);
    assert_int_equal(chmod(path, mode), 0);
}

static inline void tree_link(const struct tree *tree, const char *below, const char *target)
{
    char path[PATH_MAX];

    tree_path(tree, path, below);
    unlink(path);
    assert_int_equal(symlink(target, path), 0);
}

static inline void tree_remove(const struct tree *tree, const char *below)
{
    char path[PATH_MAX];

    tree_path(tree, path, below);
    nftw(path, unit_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void tree_program(const struct tree *tree, const char *below, const char *script)
{
    tree_write(tree, below, script);
    tree_mode(tree, below, 0755);
}

static inline void tree_driver(const struct tree *tree, const char *address, const char *driver)
{
    char below[256], target[128];

    snprintf(below, sizeof(below), DRIVERS "/%s", driver);
    tree_directory(tree, below, 0755);
    snprintf(below, sizeof(below), DEVICES "/%s/driver", address);
    snprintf(target, sizeof(target), "../../drivers/%s", driver);
    tree_link(tree, below, target);
}

static inline void tree_attribute(const struct tree *tree, const char *address, const char *name,
                                  const char *text)
{
    char below[256];

    snprintf(below, sizeof(below), DEVICES "/%s/%s", address, name);
    tree_write(tree, below, text);
}

/* `driver` NULL: none; `group` -1: none. */
static inline void tree_pci(const struct tree *tree, const char *address, const char *vendor,
                            const char *class_code, const char *driver, int group)
{
    char below[256], target[64];

    tree_attribute(tree, address, "vendor", vendor);
    tree_attribute(tree, address, "device", "0x2330\n");
    tree_attribute(tree, address, "class", class_code);
    if (driver)
        tree_driver(tree, address, driver);
    if (group < 0)
        return;
    snprintf(below, sizeof(below), DEVICES "/%s/iommu_group", address);
    snprintf(target, sizeof(target), "../../../kernel/iommu_groups/%d", group);
    tree_link(tree, below, target);
    snprintf(below, sizeof(below), "/sys/kernel/iommu_groups/%d/type", group);
    tree_write(tree, below, "DMA-FQ\n");
}

static inline void tree_group_type(const struct tree *tree, int group, const char *type)
{
    char below[64];

    snprintf(below, sizeof(below), "/sys/kernel/iommu_groups/%d/type", group);
    tree_write(tree, below, type);
}

/* --- whole machines ---------------------------------------------------------------- */

static inline void tree_begin(struct tree *tree)
{
    *tree = (struct tree){.root = unit_temporary_directory()};
    tree->host = (struct host){.root = tree->root,
                               .config = "/etc/vgpu/mediator.conf",
                               .database = "/var/lib/vgpu/vgpu.db",
                               .share = "/var/vgpu",
                               .run_dir = "/run/vgpu",
                               .exports_dir = "",
                               .socket = "/run/vgpu/control.sock"};
    tree_write(tree, "/proc/cmdline", "root=/dev/sda1 quiet\n");
    tree_write(tree, "/proc/cpuinfo", "vendor_id\t: GenuineIntel\nflags\t\t: fpu vmx lm\n");
    tree_write(tree, "/proc/interrupts", " 16:  1  IO-APIC  16-fasteoi  ehci\n");
    tree_write(tree, "/dev/kmsg", "6,1,1,-;Linux version 6.1.0\n");
}

static inline void tree_end(struct tree *tree)
{
    unit_remove_directory(tree->root);
}

/* Intel's IOMMU on, the GPU with NVIDIA's driver alone in its group. */
static inline void tree_intel(struct tree *tree)
{
    tree_begin(tree);
    tree_directory(tree, "/sys/class/iommu/dmar0", 0755);
    tree_write(tree, "/sys/firmware/acpi/tables/DMAR", "DMAR");
    tree_write(tree, "/proc/cmdline", "root=/dev/sda1 intel_iommu=on\n");
    tree_write(tree, "/proc/interrupts", " 24:  0  IR-PCI-MSI-0000:01:00.0  0-edge  nvidia\n");
    tree_pci(tree, GPU, "0x10de\n", "0x030200\n", "nvidia", 14);
}

static inline void tree_amd(struct tree *tree)
{
    tree_begin(tree);
    tree_directory(tree, "/sys/class/iommu/ivhd0", 0755);
    tree_write(tree, "/sys/firmware/acpi/tables/IVRS", "IVRS");
    tree_write(tree, "/proc/cpuinfo", "vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm lm\n");
    tree_pci(tree, GPU, "0x10de\n", "0x030000\n", "nvidia", 20);
}

/* Dom0; `xl info` says these capabilities. */
static inline void tree_xen(struct tree *tree, const char *guest_type, const char *caps)
{
    char script[512];

    tree_begin(tree);
    tree_write(tree, "/sys/hypervisor/type", "xen\n");
    tree_write(tree, "/sys/hypervisor/guest_type", guest_type);
    tree_write(tree, "/proc/xen/capabilities", "control_d\n");
    tree_pci(tree, GPU, "0x10de\n", "0x030200\n", "nvidia", -1);
    snprintf(script, sizeof(script),
             "#!/bin/sh\n[ \"$1\" = info ] && echo 'host : x' && echo 'virt_caps              : %s'"
             "\n[ \"$1\" = dmesg ] && echo '(XEN) Interrupt remapping enabled'\nexit 0\n",
             caps);
    tree_program(tree, "/usr/sbin/xl", script);
}

/* A VM in the registry, which is made for the first. */
static inline void tree_register(const struct tree *tree, struct store_vm *vm)
{
    const struct store_actor actor = {"test", "register-vm"};
    struct vgpu_error error;
    struct store *store;
    char path[PATH_MAX];

    tree_path(tree, path, "/var/lib/vgpu/vgpu.db");
    if (access(path, F_OK) != 0)
        assert_int_equal(store_create(path, &actor, &error), 0);
    assert_int_equal(store_open(path, STORE_WRITE, &store, &error), 0);
    store_set_actor(store, &actor);
    assert_int_equal(store_add_vm(store, vm, &error), 0);
    store_close(store);
}

/* --- one check -------------------------------------------------------------------------- */

static inline struct host_check tree_check(const struct tree *tree, const char *name)
{
    struct host_check checks[HOST_CHECKS_MAX];

    assert_int_equal(host_preflight(&tree->host, name, checks), 1);
    return checks[0];
}

/* The verdict, and words of what was found; what is not well has a remedy. */
static inline void tree_expect_at(const struct tree *tree, const char *name,
                                  enum host_verdict verdict, const char *found, const char *file,
                                  int line)
{
    struct host_check check = tree_check(tree, name);

    if (check.verdict != verdict || !strstr(check.found, found))
        print_error("%s: %s: %s\n", name, host_verdict_name(check.verdict), check.found);
    _assert_int_equal(check.verdict, verdict, file, line);
    _assert_true(strstr(check.found, found) != NULL, found, file, line);
    if (verdict == HOST_WARN || verdict == HOST_FAIL)
        _assert_true(check.remedy[0] != '\0', "a remedy", file, line);
    if (verdict == HOST_PASS)
        _assert_true(check.remedy[0] == '\0', "no remedy", file, line);
}

#define tree_expect(tree, name, verdict, found)                                                    \
    tree_expect_at(tree, name, verdict, found, __FILE__, __LINE__)

#endif

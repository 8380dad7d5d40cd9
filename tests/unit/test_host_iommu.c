/* SPDX-License-Identifier: Apache-2.0 */
/* host/: what a machine is, its PCI devices, its IOMMU, and what the IOMMU stopped. */
#include "host_tree.h"

#include "host/private.h"
#include "store/store.h"

#include <errno.h>

/* --- devices ------------------------------------------------------------------------- */

static void devices_are_listed_by_address_with_driver_and_group(void **state)
{
    struct host_pci_device *devices;
    struct tree tree;
    size_t count;

    (void)state;
    tree_intel(&tree);
    tree_pci(&tree, PORT, "0x8086\n", "0x060400\n", "pcieport", 1);
    tree_pci(&tree, NIC, "0x8086\n", "0x020000\n", NULL, -1);
    tree_pci(&tree, "0000:03:00.0", "0x1af4\n", "0x120000\n", NULL, 3);
    tree_attribute(&tree, "0000:03:00.0", "device", "0x10f1\n");
    tree_directory(&tree, DEVICES "/nonsense", 0755);
    assert_int_equal(host_list_pci(&tree.host, &devices, &count, NULL), 0);
    assert_int_equal(count, 4);
    assert_string_equal(devices[0].address, PORT);
    assert_true(devices[0].bridge && !devices[0].gpu);
    assert_string_equal(devices[1].address, GPU);
    assert_string_equal(devices[1].driver, "nvidia");
    assert_int_equal(devices[1].iommu_group, 14);
    assert_int_equal(devices[1].vendor, 0x10de);
    assert_true(devices[1].gpu && !devices[1].bridge);
    assert_string_equal(devices[2].driver, "");
    assert_int_equal(devices[2].iommu_group, -1);
    assert_true(devices[3].stub && !devices[3].gpu);
    free(devices);
    tree_end(&tree);
}

static void nvidias_audio_function_is_no_gpu(void **state)
{
    struct host_pci_device *devices;
    struct tree tree;
    size_t count;

    (void)state;
    tree_begin(&tree);
    tree_pci(&tree, AUDIO, "0x10de\n", "0x040300\n", NULL, -1);
    assert_int_equal(host_list_pci(&tree.host, &devices, &count, NULL), 0);
    assert_false(devices[0].gpu);
    free(devices);
    tree_end(&tree);
}

static void an_address_is_completed_and_nonsense_refused(void **state)
{
    static const char *const bad[] = {
        "",           "1:0.0",         "0000:01:00",   "0000:01:00.0x",
        "../../etc/", "0000:01:00.00", "000g:01:00.0", "01:00.0\n"};
    char address[HOST_ADDRESS_BYTES];
    struct vgpu_error error;

    (void)state;
    assert_int_equal(host_check_address("0A:1f.3", address, NULL), 0);
    assert_string_equal(address, "0000:0a:1f.3");
    assert_int_equal(host_check_address("0001:02:03.4", address, NULL), 0);
    assert_string_equal(address, "0001:02:03.4");
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        assert_int_equal(host_check_address(bad[i], address, &error), -1);
        assert_int_equal(error.code, EINVAL);
        assert_string_equal(address, "0001:02:03.4");
    }
}

/* --- the set-up --------------------------------------------------------------------------- */

static void each_set_up_is_known(void **state)
{
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    assert_int_equal(host_mode(&tree.host), HOST_MODE_NO_GPU);
    tree_write(&tree, "/dev/nvidia0", "");
    assert_int_equal(host_mode(&tree.host), HOST_MODE_KVM_GPU);
    tree_end(&tree);
    tree_intel(&tree);
    assert_int_equal(host_mode(&tree.host), HOST_MODE_KVM_GPU);
    tree_driver(&tree, GPU, "vfio-pci");
    assert_int_equal(host_mode(&tree.host), HOST_MODE_KVM_WORKER_VM);
    tree_pci(&tree, "0000:81:00.0", "0x10de\n", "0x030200\n", "nvidia", 30);
    assert_int_equal(host_mode(&tree.host), HOST_MODE_KVM_GPU);
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "pv hvm hvm_directio");
    assert_int_equal(host_mode(&tree.host), HOST_MODE_XEN_PVH_DOM0);
    tree_write(&tree, "/sys/hypervisor/guest_type", "PV\n");
    assert_int_equal(host_mode(&tree.host), HOST_MODE_XEN_PV_DOM0);
    tree_driver(&tree, GPU, "pciback");
    assert_int_equal(host_mode(&tree.host), HOST_MODE_XEN_WORKER_VM);
    tree_end(&tree);
}

static void an_old_kernel_below_xen_is_judged_by_its_features(void **state)
{
    struct tree tree;

    (void)state;
    tree_xen(&tree, "PV\n", "hvm");
    tree_remove(&tree, "/sys/hypervisor/guest_type");
    tree_write(&tree, "/sys/hypervisor/properties/features", "00000705\n");
    assert_int_equal(host_mode(&tree.host), HOST_MODE_XEN_PVH_DOM0);
    tree_write(&tree, "/sys/hypervisor/properties/features", "00000701\n");
    assert_int_equal(host_mode(&tree.host), HOST_MODE_XEN_PV_DOM0);
    tree_end(&tree);
}

static void a_guest_of_xen_with_a_gpu_is_the_worker_vm(void **state)
{
    struct tree tree;

    (void)state;
    tree_xen(&tree, "HVM\n", "");
    tree_write(&tree, "/proc/xen/capabilities", "");
    assert_int_equal(host_mode(&tree.host), HOST_MODE_XEN_WORKER_VM);
    tree_end(&tree);
}

static void each_mode_has_a_name_and_a_sentence(void **state)
{
    (void)state;
    for (int mode = HOST_MODE_NO_GPU; mode <= HOST_MODE_XEN_WORKER_VM; mode++) {
        assert_non_null(host_mode_name((enum host_mode)mode));
        assert_true(strlen(host_mode_text((enum host_mode)mode)) > 20);
    }
    assert_non_null(strstr(host_mode_text(HOST_MODE_XEN_PV_DOM0), "CUDA cannot work"));
    assert_non_null(strstr(host_mode_text(HOST_MODE_XEN_PV_DOM0), "PAT"));
}

/* --- the IOMMU ------------------------------------------------------------------------------- */

static void intels_iommu_is_read(void **state)
{
    struct host_iommu iommu;
    struct tree tree;

    (void)state;
    tree_intel(&tree);
    host_read_iommu(&tree.host, &iommu);
    assert_true(iommu.enabled && iommu.firmware_table && iommu.interrupt_remapping);
    assert_true(iommu.intel_cpu && !iommu.switched_off && !iommu.unsafe_interrupts);
    assert_string_equal(iommu.kind, "intel");
    assert_string_equal(iommu.command_line, "intel_iommu=on");
    assert_int_equal(iommu.group_count, 1);
    assert_true(iommu.log_read);
    assert_int_equal(iommu.fault_count, 0);
    tree_end(&tree);
}

static void amds_and_arms_iommu_are_known_by_their_units(void **state)
{
    struct host_iommu iommu;
    struct tree tree;

    (void)state;
    tree_amd(&tree);
    host_read_iommu(&tree.host, &iommu);
    assert_string_equal(iommu.kind, "amd");
    tree_end(&tree);
    tree_begin(&tree);
    tree_directory(&tree, "/sys/class/iommu/smmu3.0x2b400000", 0755);
    host_read_iommu(&tree.host, &iommu);
    assert_string_equal(iommu.kind, "arm-smmu");
    tree_end(&tree);
}

static void groups_without_an_iommu_are_counted_apart(void **state)
{
    struct host_iommu iommu;
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    tree_write(&tree, "/sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
    tree_write(&tree, "/sys/kernel/iommu_groups/1/type", "DMA\n");
    host_read_iommu(&tree.host, &iommu);
    assert_int_equal(iommu.noiommu_count, 1);
    assert_int_equal(iommu.group_count, 1);
    assert_false(iommu.enabled);
    tree_end(&tree);
}

static void below_xen_xl_tells(void **state)
{
    struct host_iommu iommu;
    struct tree tree;

    (void)state;
    tree_xen(&tree, "PVH\n", "pv hvm hvm_directio pv_directio hap");
    host_read_iommu(&tree.host, &iommu);
    assert_true(iommu.enabled && iommu.interrupt_remapping);
    assert_string_equal(iommu.kind, "xen");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "pv hvm hap");
    host_read_iommu(&tree.host, &iommu);
    assert_false(iommu.enabled);
    tree_end(&tree);
}

static void an_xl_that_fails_leaves_the_iommu_off_and_says_why(void **state)
{
    struct host_iommu iommu;
    struct tree tree;

    (void)state;
    tree_xen(&tree, "PVH\n", "hvm");
    tree_program(&tree, "/usr/sbin/xl", "#!/bin/sh\necho 'cannot open' >&2\nexit 3\n");
    host_read_iommu(&tree.host, &iommu);
    assert_false(iommu.enabled || iommu.log_read);
    assert_non_null(strstr(iommu.log_problem, "status 3: cannot open"));
    tree_end(&tree);
}

/* --- faults
 * --------------------------------------------------------------------------------------- */

static void each_kind_of_fault_is_recognised(void **state)
{
    static const char *const faults[] = {
        FAULT,
        "DMAR: [DMA Read] Request device [00:04.0] PASID ffffffff fault addr 900000 [fault reason "
        "06]",
        "DMAR: [INTR-REMAP] Request device [f0:1f.7] fault index 0x0",
        "AMD-Vi: Event logged [IO_PAGE_FAULT device=01:00.0 domain=0x0013 address=0x1 flags=0x0]",
        "vfio-pci 0000:01:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000f address=0x0]",
        "arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:",
        "arm-smmu 5000000.iommu: Unhandled context fault: fsr=0x402, iova=0x00000000",
        "(XEN) [VT-D]DMAR:[DMA Write] Request device [0000:01:00.0] fault addr 0",
    };
    static const char *const others[] = {
        "DMAR: DRHD: handling fault status reg 2",
        "DMAR: Intel(R) Virtualization Technology for Directed I/O",
        "AMD-Vi: Interrupt remapping enabled",
        "DMAR-IR: Enabled IRQ remapping in x2apic mode",
        "nvidia 0000:01:00.0: enabling device",
        "",
    };

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(faults); i++)
        assert_true(host_is_fault(faults[i]));
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(others); i++)
        assert_false(host_is_fault(others[i]));
}

static void faults_are_counted_and_the_last_is_kept_with_its_device(void **state)
{
    struct host_iommu iommu;
    struct tree tree;

    (void)state;
    tree_intel(&tree);
    tree_write(&tree, "/dev/kmsg",
               "4,10,100,-;DMAR: [DMA Read] Request device [00:1f.2] fault addr 1000\n"
               "6,11,101,-;usb 1-1: new device\n"
               "4,12,102,-,caller=T1;" FAULT "\n");
    host_read_iommu(&tree.host, &iommu);
    assert_int_equal(iommu.fault_count, 2);
    assert_string_equal(iommu.last_fault, FAULT);
    assert_string_equal(iommu.last_fault_address, GPU);
    tree_end(&tree);
}

static void what_a_device_wrote_into_the_log_cannot_steer_a_terminal(void **state)
{
    struct host_iommu iommu;
    struct tree tree;

    (void)state;
    tree_intel(&tree);
    tree_write(&tree, "/dev/kmsg", "4,1,1,-;DMAR: [DMA Read] \033[2J [01:00.0] fault\n");
    host_read_iommu(&tree.host, &iommu);
    assert_int_equal(iommu.fault_count, 1);
    assert_null(strchr(iommu.last_fault, '\033'));
    tree_end(&tree);
}

static void a_log_that_cannot_be_read_is_not_a_log_without_faults(void **state)
{
    struct tree tree;

    (void)state;
    tree_intel(&tree);
    tree_remove(&tree, "/dev/kmsg");
    tree_expect(&tree, "iommu-faults", HOST_SKIP, "cannot be read");
    tree_end(&tree);
}

/* --- protection
 * ---------------------------------------------------------------------------------------- */

static const struct host_sentence *sentence_of(const struct host_sentence *sentences, size_t count,
                                               const char *subject)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(sentences[i].subject, subject) == 0)
            return &sentences[i];
    }
    fail_msg("nothing is said of %s", subject);
    return sentences;
}

static const char *gpu_by(const struct tree *tree)
{
    struct host_sentence sentences[HOST_SENTENCES_MAX];
    size_t count = host_protection(&tree->host, 0, sentences);

    return sentence_of(sentences, count, "gpu")->by;
}

static void a_gpu_in_the_host_is_confined_only_where_it_is_translated(void **state)
{
    struct tree tree;

    (void)state;
    tree_intel(&tree);
    assert_string_equal(gpu_by(&tree), "iommu");
    tree_group_type(&tree, 14, "identity\n");
    assert_string_equal(gpu_by(&tree), "nothing");
    tree_remove(&tree, "/sys/class/iommu/dmar0");
    assert_string_equal(gpu_by(&tree), "nothing");
    tree_end(&tree);
}

static void a_gpu_of_a_worker_vm_is_confined_by_the_iommu_or_by_nothing(void **state)
{
    struct tree tree;

    (void)state;
    tree_intel(&tree);
    tree_driver(&tree, GPU, "vfio-pci");
    assert_string_equal(gpu_by(&tree), "iommu");
    tree_remove(&tree, "/sys/class/iommu/dmar0");
    assert_string_equal(gpu_by(&tree), "nothing");
    tree_end(&tree);
    tree_xen(&tree, "PV\n", "pv hvm hvm_directio");
    tree_driver(&tree, GPU, "pciback");
    assert_string_equal(gpu_by(&tree), "iommu");
    tree_end(&tree);
}

static void below_xen_a_gpu_of_dom0_reaches_all_of_dom0(void **state)
{
    struct host_sentence sentences[HOST_SENTENCES_MAX];
    struct tree tree;
    size_t count;

    (void)state;
    tree_xen(&tree, "PVH\n", "pv hvm hvm_directio");
    count = host_protection(&tree.host, STORE_CHANNEL_WINDOW | STORE_CHANNEL_XEN, sentences);
    assert_non_null(strstr(sentence_of(sentences, count, "gpu")->text, "all of Dom0's memory"));
    assert_string_equal(sentence_of(sentences, count, "window")->by, "nothing");
    assert_string_equal(sentence_of(sentences, count, "xen")->by, "grants");
    tree_end(&tree);
    tree_xen(&tree, "PVH\n", "pv hvm");
    assert_string_equal(gpu_by(&tree), "nothing");
    tree_end(&tree);
}

static void no_channel_is_said_to_be_protected_by_the_iommu(void **state)
{
    static const char *const subjects[] = {"file", "window", "xen", "device"};
    struct host_sentence sentences[HOST_SENTENCES_MAX];
    struct tree tree;
    size_t count;

    (void)state;
    tree_intel(&tree);
    count = host_protection(
        &tree.host, STORE_CHANNEL_FILE | STORE_CHANNEL_WINDOW | STORE_CHANNEL_XEN, sentences);
    assert_int_equal(count, 5);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(subjects); i++) {
        assert_string_not_equal(sentence_of(sentences, count, subjects[i])->by, "iommu");
    }
    assert_non_null(strstr(sentence_of(sentences, count, "gpu")->text, "its own page tables"));
    tree.host.share = "";
    count = host_protection(&tree.host, STORE_CHANNEL_FILE, sentences);
    assert_string_equal(sentence_of(sentences, count, "file")->by, "nothing");
    tree_end(&tree);
}

static void without_a_gpu_processes_are_what_keeps_apart(void **state)
{
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    assert_string_equal(gpu_by(&tree), "processes");
    tree_end(&tree);
}

/* --- the rest ------------------------------------------------------------------------ */

static void programs_are_looked_for_below_the_root(void **state)
{
    struct tree tree;
    char path[PATH_MAX], right[PATH_MAX];

    (void)state;
    tree_begin(&tree);
    tree_program(&tree, "/bin/talk", "#!/bin/sh\n");
    tree_path(&tree, right, "/bin/talk");
    assert_true(host_find_program(&tree.host, "talk", path));
    assert_string_equal(path, right);
    assert_false(host_find_program(&tree.host, "nowhere", path));
    tree_end(&tree);
}

static void a_list_that_has_no_more_room_ends_with_a_mark(void **state)
{
    char text[24] = "";

    (void)state;
    host_add(text, sizeof(text), "%s", "one");
    host_add(text, sizeof(text), "%s", "two");
    assert_string_equal(text, "one, two");
    host_add(text, sizeof(text), "%s", "three hundred and forty");
    assert_string_equal(text, "one, two…");
    host_add(text, sizeof(text), "%s", "x");
    assert_string_equal(text, "one, two…");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_are_listed_by_address_with_driver_and_group),
        cmocka_unit_test(nvidias_audio_function_is_no_gpu),
        cmocka_unit_test(an_address_is_completed_and_nonsense_refused),
        cmocka_unit_test(each_set_up_is_known),
        cmocka_unit_test(an_old_kernel_below_xen_is_judged_by_its_features),
        cmocka_unit_test(a_guest_of_xen_with_a_gpu_is_the_worker_vm),
        cmocka_unit_test(each_mode_has_a_name_and_a_sentence),
        cmocka_unit_test(intels_iommu_is_read),
        cmocka_unit_test(amds_and_arms_iommu_are_known_by_their_units),
        cmocka_unit_test(groups_without_an_iommu_are_counted_apart),
        cmocka_unit_test(below_xen_xl_tells),
        cmocka_unit_test(an_xl_that_fails_leaves_the_iommu_off_and_says_why),
        cmocka_unit_test(each_kind_of_fault_is_recognised),
        cmocka_unit_test(faults_are_counted_and_the_last_is_kept_with_its_device),
        cmocka_unit_test(what_a_device_wrote_into_the_log_cannot_steer_a_terminal),
        cmocka_unit_test(a_log_that_cannot_be_read_is_not_a_log_without_faults),
        cmocka_unit_test(a_gpu_in_the_host_is_confined_only_where_it_is_translated),
        cmocka_unit_test(a_gpu_of_a_worker_vm_is_confined_by_the_iommu_or_by_nothing),
        cmocka_unit_test(below_xen_a_gpu_of_dom0_reaches_all_of_dom0),
        cmocka_unit_test(no_channel_is_said_to_be_protected_by_the_iommu),
        cmocka_unit_test(without_a_gpu_processes_are_what_keeps_apart),
        cmocka_unit_test(programs_are_looked_for_below_the_root),
        cmocka_unit_test(a_list_that_has_no_more_room_ends_with_a_mark),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

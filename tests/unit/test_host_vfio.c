/* SPDX-License-Identifier: Apache-2.0 */
/*
 * host/vfio.c: to vfio-pci and back.  A small kernel stands behind sysfs here: it moves
 * the driver links as the real one does, and fails at whatever write a test says.
 */
#include "host_tree.h"

#include <errno.h>
#include <libgen.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define OVERRIDES_MAX 8
#define DIED 99 /* exit status */

struct kernel {
    struct tree tree;
    struct host_ops ops;
    struct {
        char address[HOST_ADDRESS_BYTES];
        char own[64]; /* the driver that takes it when nobody says otherwise */
        char override[64];
    } devices[OVERRIDES_MAX];
    unsigned count;
    unsigned writes;
    unsigned fail_at;   /* the n-th write fails, 0 none */
    unsigned fail_from; /* and all from this one on, 0 none */
    unsigned ignore_at; /* does nothing, and says that it went well */
    unsigned die_at;    /* before the n-th write who writes is killed, 0 none */
};

/* --- the kernel --------------------------------------------------------------------------- */

static unsigned number_of(struct kernel *kernel, const char *address)
{
    for (unsigned i = 0; i < kernel->count; i++) {
        if (strcmp(kernel->devices[i].address, address) == 0)
            return i;
    }
    fail_msg("no device %s", address);
    return 0;
}

static void driver_of(const struct kernel *kernel, const char *address, char driver[64])
{
    char path[PATH_MAX], target[PATH_MAX];
    ssize_t length;

    snprintf(path, sizeof(path), "%s" DEVICES "/%s/driver", kernel->tree.root, address);
    length = readlink(path, target, sizeof(target) - 1);
    target[length > 0 ? length : 0] = '\0';
    snprintf(driver, 64, "%s", length > 0 ? basename(target) : "");
}

static int release(struct kernel *kernel, const char *address, const char *driver)
{
    char now[64], below[128];

    driver_of(kernel, address, now);
    if (strcmp(now, driver) != 0) {
        errno = ENODEV;
        return -1;
    }
    snprintf(below, sizeof(below), DEVICES "/%s/driver", address);
    tree_remove(&kernel->tree, below);
    return 0;
}

static int take(struct kernel *kernel, const char *address, const char *driver)
{
    char below[128], path[PATH_MAX], now[64];

    snprintf(below, sizeof(below), DRIVERS "/%s", driver);
    tree_path(&kernel->tree, path, below);
    driver_of(kernel, address, now);
    if (access(path, F_OK) == 0 && !now[0])
        tree_driver(&kernel->tree, address, driver);
    return 0;
}

static int bind_by_name(struct kernel *kernel, const char *address, const char *driver)
{
    unsigned number = number_of(kernel, address);
    const char *override = kernel->devices[number].override;
    const char *fits = override[0] ? override : kernel->devices[number].own;

    if (strcmp(fits, driver) != 0) {
        errno = ENODEV;
        return -1;
    }
    return take(kernel, address, driver);
}

static int act(struct kernel *kernel, char *path, const char *text)
{
    char *name = basename(path);
    char folder[PATH_MAX];

    snprintf(folder, sizeof(folder), "%s", path);
    if (strcmp(name, "driver_override") == 0) {
        unsigned number = number_of(kernel, basename(dirname(folder)));

        snprintf(kernel->devices[number].override, 64, "%.*s", (int)strcspn(text, "\n"), text);
        return 0;
    }
    if (strcmp(name, "unbind") == 0)
        return release(kernel, text, basename(dirname(folder)));
    if (strcmp(name, "bind") == 0)
        return bind_by_name(kernel, text, basename(dirname(folder)));
    assert_string_equal(name, "drivers_probe");

    unsigned number = number_of(kernel, text);
    const char *override = kernel->devices[number].override;

    return take(kernel, text, override[0] ? override : kernel->devices[number].own);
}

static int kernel_write(void *user, const char *path, const char *text)
{
    struct kernel *kernel = user;
    char copy[PATH_MAX];

    kernel->writes++;
    if (kernel->writes == kernel->die_at)
        _exit(DIED);
    if (kernel->writes == kernel->fail_at ||
        (kernel->fail_from && kernel->writes >= kernel->fail_from)) {
        errno = EIO;
        return -1;
    }
    if (kernel->writes == kernel->ignore_at)
        return 0;
    snprintf(copy, sizeof(copy), "%s", path);
    return act(kernel, copy, text);
}

static void add_device(struct kernel *kernel, const char *address, const char *class_code,
                       const char *driver, int group)
{
    unsigned number = kernel->count++;

    snprintf(kernel->devices[number].address, HOST_ADDRESS_BYTES, "%s", address);
    snprintf(kernel->devices[number].own, 64, "%s", driver ? driver : "");
    tree_pci(&kernel->tree, address, "0x10de\n", class_code, driver, group);
}

/* A GPU whose audio function shares its group. */
static void begin(struct kernel *kernel)
{
    *kernel = (struct kernel){.count = 0};
    tree_begin(&kernel->tree);
    kernel->ops = (struct host_ops){.user = kernel, .write = kernel_write};
    kernel->tree.host.ops = &kernel->ops;
    tree_directory(&kernel->tree, DRIVERS "/vfio-pci", 0755);
    add_device(kernel, PORT, "0x060400\n", "pcieport", 14);
    add_device(kernel, GPU, "0x030200\n", "nvidia", 14);
    add_device(kernel, NIC, "0x020000\n", "e1000e", 15);
}

static void add_audio(struct kernel *kernel)
{
    add_device(kernel, AUDIO, "0x040300\n", "snd_hda_intel", 14);
}

static void end(struct kernel *kernel)
{
    tree_end(&kernel->tree);
}

static void expect_driver(const struct kernel *kernel, const char *address, const char *expected)
{
    char driver[64];

    driver_of(kernel, address, driver);
    assert_string_equal(driver, expected);
}

static bool has_record(const struct kernel *kernel, const char *address)
{
    char below[64], path[PATH_MAX];

    snprintf(below, sizeof(below), "/run/vgpu/vfio/%s", address);
    tree_path(&kernel->tree, path, below);
    return access(path, F_OK) == 0;
}

static void expect_untouched(struct kernel *kernel, const char *address, const char *driver)
{
    expect_driver(kernel, address, driver);
    assert_string_equal(kernel->devices[number_of(kernel, address)].override, "");
    assert_false(has_record(kernel, address));
}

static int to_vfio(struct kernel *kernel, const char *address, bool whole, struct vgpu_error *error)
{
    struct host_binding binding;

    return host_bind_vfio(&kernel->tree.host, address, whole, &binding, error);
}

static int from_vfio(struct kernel *kernel, const char *address, bool whole,
                     struct vgpu_error *error)
{
    struct host_binding binding;

    return host_unbind_vfio(&kernel->tree.host, address, whole, &binding, error);
}

/* --- there and back --------------------------------------------------------------------------- */

static void a_device_moves_to_vfio_and_back_to_its_driver(void **state)
{
    struct host_binding binding;
    struct vgpu_error error;
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    assert_int_equal(host_bind_vfio(&kernel.tree.host, "01:00.0", false, &binding, &error), 0);
    assert_int_equal(binding.group, 14);
    assert_int_equal(binding.count, 1);
    assert_string_equal(binding.moved[0].address, GPU);
    assert_string_equal(binding.moved[0].before, "nvidia");
    assert_string_equal(binding.moved[0].after, "vfio-pci");
    expect_driver(&kernel, GPU, "vfio-pci");
    assert_true(has_record(&kernel, GPU));
    assert_int_equal(host_unbind_vfio(&kernel.tree.host, GPU, false, &binding, &error), 0);
    assert_string_equal(binding.moved[0].after, "nvidia");
    expect_untouched(&kernel, GPU, "nvidia");
    end(&kernel);
}

static void a_device_that_is_there_already_is_no_failure(void **state)
{
    struct host_binding binding;
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    assert_int_equal(to_vfio(&kernel, GPU, false, NULL), 0);
    kernel.writes = 0;
    assert_int_equal(host_bind_vfio(&kernel.tree.host, GPU, false, &binding, NULL), 0);
    assert_int_equal(binding.count, 0);
    assert_int_equal(kernel.writes, 0);
    end(&kernel);
}

static void a_device_without_driver_has_none_again(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_remove(&kernel.tree, DEVICES "/" GPU "/driver");
    assert_int_equal(to_vfio(&kernel, GPU, false, NULL), 0);
    expect_driver(&kernel, GPU, "vfio-pci");
    assert_int_equal(from_vfio(&kernel, GPU, false, NULL), 0);
    expect_untouched(&kernel, GPU, "");
    end(&kernel);
}

static void without_a_record_the_kernel_chooses_the_driver(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_driver(&kernel.tree, GPU, "vfio-pci");
    assert_int_equal(from_vfio(&kernel, GPU, false, NULL), 0);
    expect_untouched(&kernel, GPU, "nvidia");
    end(&kernel);
}

static void a_record_that_is_no_drivers_name_is_not_believed(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_driver(&kernel.tree, GPU, "vfio-pci");
    tree_write(&kernel.tree, "/run/vgpu/vfio/" GPU, "../../../etc\n");
    assert_int_equal(from_vfio(&kernel, GPU, false, NULL), 0);
    expect_driver(&kernel, GPU, "nvidia");
    end(&kernel);
}

/* --- killed in the middle ----------------------------------------------------------------------
 */

typedef int move_function(struct kernel *kernel, const char *address, bool whole,
                          struct vgpu_error *error);

/* In a process of its own, which dies before the n-th write; false: there was none. */
static bool move_and_die(struct kernel *kernel, move_function *move, unsigned die_at)
{
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) {
        kernel->writes = 0;
        kernel->die_at = die_at;
        move(kernel, GPU, false, NULL);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    kernel->die_at = 0;
    return WEXITSTATUS(status) == DIED;
}

static struct kernel *begin_shared(void)
{
    struct kernel *kernel =
        mmap(NULL, sizeof(*kernel), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(kernel, MAP_FAILED);
    begin(kernel);
    return kernel;
}

static void end_shared(struct kernel *kernel)
{
    end(kernel);
    munmap(kernel, sizeof(*kernel));
}

static void a_move_that_was_killed_is_finished_by_the_same_command(void **state)
{
    bool died = true;

    (void)state;
    for (unsigned at = 1; died; at++) {
        struct kernel *kernel = begin_shared();

        died = move_and_die(kernel, to_vfio, at);
        assert_int_equal(to_vfio(kernel, GPU, false, NULL), 0);
        expect_driver(kernel, GPU, "vfio-pci");
        assert_int_equal(from_vfio(kernel, GPU, false, NULL), 0);
        expect_untouched(kernel, GPU, "nvidia");
        end_shared(kernel);
    }
}

static void a_move_that_was_killed_can_be_taken_back(void **state)
{
    bool died = true;

    (void)state;
    for (unsigned at = 1; died; at++) {
        struct kernel *kernel = begin_shared();
        char driver[64];

        died = move_and_die(kernel, to_vfio, at);
        driver_of(kernel, GPU, driver);
        /* Killed before it let go of its driver, it is not bound to vfio-pci. */
        assert_int_equal(from_vfio(kernel, GPU, false, NULL),
                         strcmp(driver, "nvidia") == 0 ? -1 : 0);
        expect_driver(kernel, GPU, "nvidia");
        end_shared(kernel);
    }
}

static void a_way_back_that_was_killed_is_finished_by_the_same_command(void **state)
{
    bool died = true;

    (void)state;
    for (unsigned at = 1; died; at++) {
        struct kernel *kernel = begin_shared();

        assert_int_equal(to_vfio(kernel, GPU, false, NULL), 0);
        died = move_and_die(kernel, from_vfio, at);
        assert_int_equal(from_vfio(kernel, GPU, false, NULL), died ? 0 : -1);
        expect_untouched(kernel, GPU, "nvidia");
        end_shared(kernel);
    }
}

static void a_whole_group_moves_together(void **state)
{
    struct host_binding binding;
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    add_audio(&kernel);
    assert_int_equal(host_bind_vfio(&kernel.tree.host, GPU, true, &binding, NULL), 0);
    assert_int_equal(binding.count, 2);
    expect_driver(&kernel, GPU, "vfio-pci");
    expect_driver(&kernel, AUDIO, "vfio-pci");
    expect_driver(&kernel, PORT, "pcieport");
    expect_driver(&kernel, NIC, "e1000e");
    assert_int_equal(from_vfio(&kernel, AUDIO, true, NULL), 0);
    expect_untouched(&kernel, GPU, "nvidia");
    expect_untouched(&kernel, AUDIO, "snd_hda_intel");
    end(&kernel);
}

/* --- what is refused before anything moves
 * --------------------------------------------------------- */

static void expect_refused(struct kernel *kernel, const char *address, int code, const char *words)
{
    struct vgpu_error error;

    kernel->writes = 0;
    assert_int_equal(to_vfio(kernel, address, false, &error), -1);
    if (error.code != code || !strstr(error.message, words))
        print_error("%s\n", error.message);
    assert_int_equal(error.code, code);
    assert_non_null(strstr(error.message, words));
    assert_int_equal(kernel->writes, 0);
}

static void neighbours_in_use_are_named(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    add_audio(&kernel);
    expect_refused(&kernel, GPU, EBUSY, AUDIO " (driver snd_hda_intel)");
    expect_refused(&kernel, GPU, EBUSY, "--group");
    expect_untouched(&kernel, GPU, "nvidia");
    end(&kernel);
}

static void an_unused_neighbour_and_a_bridge_are_no_obstacle(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    add_device(&kernel, AUDIO, "0x040300\n", NULL, 14);
    assert_int_equal(to_vfio(&kernel, GPU, false, NULL), 0);
    expect_driver(&kernel, AUDIO, "");
    end(&kernel);
}

static void what_cannot_go_to_a_vm_is_refused(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    expect_refused(&kernel, PORT, EINVAL, "is a bridge");
    expect_refused(&kernel, "0000:7f:00.0", ENOENT, "there is no PCI device");
    expect_refused(&kernel, "01:00", EINVAL, "is no PCI address");
    add_device(&kernel, "0000:03:00.0", "0x030200\n", "nvidia", -1);
    expect_refused(&kernel, "0000:03:00.0", ENOTSUP, "has no IOMMU group");
    add_device(&kernel, "0000:04:00.0", "0x010802\n", "nvme", 16);
    expect_refused(&kernel, "0000:04:00.0", EBUSY, "storage controller");
    tree_write(&kernel.tree, "/proc/xen/capabilities", "control_d\n");
    expect_refused(&kernel, GPU, ENOTSUP, "xl pci-assignable-add");
    end(&kernel);
}

static void a_network_interface_that_is_up_is_in_use(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_write(&kernel.tree, DEVICES "/" NIC "/net/eth7/flags", "0x1003\n");
    expect_refused(&kernel, NIC, EBUSY, "eth7");
    tree_write(&kernel.tree, DEVICES "/" NIC "/net/eth7/flags", "0x1002\n");
    assert_int_equal(to_vfio(&kernel, NIC, false, NULL), 0);
    end(&kernel);
}

static void a_gpu_that_a_program_computes_on_is_in_use(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_write(&kernel.tree, "/proc/driver/nvidia/gpus/" GPU "/information",
               "Model: \t\t NVIDIA\nDevice Minor: \t 3\n");
    tree_write(&kernel.tree, "/proc/4711/comm", "vgpu-worker\n");
    tree_link(&kernel.tree, "/proc/4711/fd/9", "/dev/nvidia3");
    expect_refused(&kernel, GPU, EBUSY, "vgpu-worker (process 4711) has /dev/nvidia3 open");
    tree_link(&kernel.tree, "/proc/4711/fd/9", "/dev/nvidia2");
    assert_int_equal(to_vfio(&kernel, GPU, false, NULL), 0);
    end(&kernel);
}

static void a_gpu_of_unknown_number_is_in_use_when_any_is(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_write(&kernel.tree, "/proc/12/comm", "python3\n");
    tree_link(&kernel.tree, "/proc/12/fd/3", "/dev/nvidiactl");
    tree_link(&kernel.tree, "/proc/12/fd/4", "/dev/nvidia0");
    expect_refused(&kernel, GPU, EBUSY, "python3 (process 12)");
    tree_remove(&kernel.tree, "/proc/12/fd/4");
    assert_int_equal(to_vfio(&kernel, GPU, false, NULL), 0);
    end(&kernel);
}

static void a_device_of_a_running_vm_stays_there(void **state)
{
    static const char *const nodes[] = {"/dev/vfio/14", "/dev/vfio/devices/vfio0"};
    struct vgpu_error error;
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    assert_int_equal(to_vfio(&kernel, GPU, false, NULL), 0);
    tree_directory(&kernel.tree, DEVICES "/" GPU "/vfio-dev/vfio0", 0755);
    tree_write(&kernel.tree, "/proc/99/comm", "qemu-system-x86\n");
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(nodes); i++) {
        tree_link(&kernel.tree, "/proc/99/fd/20", nodes[i]);
        kernel.writes = 0;
        assert_int_equal(from_vfio(&kernel, GPU, false, &error), -1);
        assert_int_equal(error.code, EBUSY);
        assert_non_null(strstr(error.message, "qemu-system-x86 (process 99)"));
        assert_int_equal(kernel.writes, 0);
    }
    end(&kernel);
}

static void with_the_group_a_used_neighbour_keeps_all_where_they_are(void **state)
{
    struct vgpu_error error;
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    add_audio(&kernel);
    tree_write(&kernel.tree, DEVICES "/" AUDIO "/net/eth0/flags", "0x1003\n");
    assert_int_equal(to_vfio(&kernel, GPU, true, &error), -1);
    assert_int_equal(error.code, EBUSY);
    assert_int_equal(kernel.writes, 0);
    end(&kernel);
}

static void only_what_vfio_has_can_be_given_back(void **state)
{
    struct vgpu_error error;
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    assert_int_equal(from_vfio(&kernel, GPU, false, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_non_null(strstr(error.message, "it has nvidia"));
    end(&kernel);
}

/* --- the driver is loaded
 * ------------------------------------------------------------------------------ */

static void a_missing_driver_is_loaded_first(void **state)
{
    char script[PATH_MAX + 128];
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_remove(&kernel.tree, DRIVERS "/vfio-pci");
    snprintf(script, sizeof(script), "#!/bin/sh\n[ $# = 1 ] && mkdir '%s" DRIVERS "/'\"$1\"\n",
             kernel.tree.root);
    tree_program(&kernel.tree, "/sbin/modprobe", script);
    assert_int_equal(to_vfio(&kernel, GPU, false, NULL), 0);
    expect_driver(&kernel, GPU, "vfio-pci");
    end(&kernel);
}

static void a_driver_that_cannot_be_loaded_moves_nothing(void **state)
{
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_remove(&kernel.tree, DRIVERS "/vfio-pci");
    expect_refused(&kernel, GPU, ENOENT, "there is no program modprobe");
    tree_program(&kernel.tree, "/sbin/modprobe", "#!/bin/sh\necho no such module >&2\nexit 1\n");
    expect_refused(&kernel, GPU, ENOENT, "no such module");
    expect_untouched(&kernel, GPU, "nvidia");
    end(&kernel);
}

static void where_the_old_driver_cannot_be_kept_nothing_moves(void **state)
{
    struct vgpu_error error;
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    tree_write(&kernel.tree, "/run/vgpu", "a file\n");
    assert_int_equal(to_vfio(&kernel, GPU, false, &error), -1);
    expect_driver(&kernel, GPU, "nvidia");
    assert_string_equal(kernel.devices[number_of(&kernel, GPU)].override, "");
    end(&kernel);
}

/* --- undone
 * -----------------------------------------------------------------------------------------------
 */

static void binding_that_fails_at_any_step_is_undone(void **state)
{
    (void)state;
    for (unsigned step = 1; step <= 3; step++) {
        struct vgpu_error error;
        struct kernel kernel;

        begin(&kernel);
        kernel.fail_at = step;
        assert_int_equal(to_vfio(&kernel, GPU, false, &error), -1);
        assert_int_equal(error.code, EIO);
        assert_non_null(strstr(error.message, "all is as it was before"));
        expect_untouched(&kernel, GPU, "nvidia");
        end(&kernel);
    }
}

static void a_kernel_that_does_nothing_is_noticed(void **state)
{
    (void)state;
    for (unsigned step = 1; step <= 3; step++) {
        struct vgpu_error error;
        struct kernel kernel;

        begin(&kernel);
        kernel.ignore_at = step;
        assert_int_equal(to_vfio(&kernel, GPU, false, &error), -1);
        assert_non_null(strstr(error.message, "the kernel did not bind it to vfio-pci"));
        expect_untouched(&kernel, GPU, "nvidia");
        end(&kernel);
    }
}

static void a_group_that_fails_at_any_step_is_undone_as_a_whole(void **state)
{
    (void)state;
    for (unsigned step = 1; step <= 6; step++) {
        struct vgpu_error error;
        struct kernel kernel;

        begin(&kernel);
        add_audio(&kernel);
        kernel.fail_at = step;
        assert_int_equal(to_vfio(&kernel, GPU, true, &error), -1);
        assert_non_null(strstr(error.message, "all is as it was before"));
        expect_untouched(&kernel, GPU, "nvidia");
        expect_untouched(&kernel, AUDIO, "snd_hda_intel");
        end(&kernel);
    }
}

static void giving_back_that_fails_at_any_step_is_undone(void **state)
{
    (void)state;
    for (unsigned step = 1; step <= 3; step++) {
        struct vgpu_error error;
        struct kernel kernel;

        begin(&kernel);
        assert_int_equal(to_vfio(&kernel, GPU, false, NULL), 0);
        kernel.writes = 0;
        kernel.fail_at = step;
        assert_int_equal(from_vfio(&kernel, GPU, false, &error), -1);
        assert_non_null(strstr(error.message, "all is as it was before"));
        expect_driver(&kernel, GPU, "vfio-pci");
        assert_string_equal(kernel.devices[number_of(&kernel, GPU)].override, "vfio-pci");
        assert_true(has_record(&kernel, GPU));
        kernel.fail_at = 0;
        assert_int_equal(from_vfio(&kernel, GPU, false, NULL), 0);
        expect_untouched(&kernel, GPU, "nvidia");
        end(&kernel);
    }
}

static void what_cannot_be_undone_is_said(void **state)
{
    struct vgpu_error error;
    struct kernel kernel;

    (void)state;
    begin(&kernel);
    kernel.fail_from = 3;
    assert_int_equal(to_vfio(&kernel, GPU, false, &error), -1);
    assert_non_null(strstr(error.message, "could not all be taken back"));
    assert_true(has_record(&kernel, GPU));
    end(&kernel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_moves_to_vfio_and_back_to_its_driver),
        cmocka_unit_test(a_device_that_is_there_already_is_no_failure),
        cmocka_unit_test(a_device_without_driver_has_none_again),
        cmocka_unit_test(without_a_record_the_kernel_chooses_the_driver),
        cmocka_unit_test(a_record_that_is_no_drivers_name_is_not_believed),
        cmocka_unit_test(a_move_that_was_killed_is_finished_by_the_same_command),
        cmocka_unit_test(a_move_that_was_killed_can_be_taken_back),
        cmocka_unit_test(a_way_back_that_was_killed_is_finished_by_the_same_command),
        cmocka_unit_test(a_whole_group_moves_together),
        cmocka_unit_test(neighbours_in_use_are_named),
        cmocka_unit_test(an_unused_neighbour_and_a_bridge_are_no_obstacle),
        cmocka_unit_test(what_cannot_go_to_a_vm_is_refused),
        cmocka_unit_test(a_network_interface_that_is_up_is_in_use),
        cmocka_unit_test(a_gpu_that_a_program_computes_on_is_in_use),
        cmocka_unit_test(a_gpu_of_unknown_number_is_in_use_when_any_is),
        cmocka_unit_test(a_device_of_a_running_vm_stays_there),
        cmocka_unit_test(with_the_group_a_used_neighbour_keeps_all_where_they_are),
        cmocka_unit_test(only_what_vfio_has_can_be_given_back),
        cmocka_unit_test(a_missing_driver_is_loaded_first),
        cmocka_unit_test(a_driver_that_cannot_be_loaded_moves_nothing),
        cmocka_unit_test(where_the_old_driver_cannot_be_kept_nothing_moves),
        cmocka_unit_test(binding_that_fails_at_any_step_is_undone),
        cmocka_unit_test(a_kernel_that_does_nothing_is_noticed),
        cmocka_unit_test(a_group_that_fails_at_any_step_is_undone_as_a_whole),
        cmocka_unit_test(giving_back_that_fails_at_any_step_is_undone),
        cmocka_unit_test(what_cannot_be_undone_is_said),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

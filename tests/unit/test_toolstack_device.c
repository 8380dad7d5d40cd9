/* SPDX-License-Identifier: Apache-2.0 */
/* The device as QEMU's arguments, in a libvirt domain and in an xl configuration. */
#include "unit.h"

#include "toolstack/private.h"

#include <errno.h>

static const struct toolstack_device plain = {.vm_id = 7, .pool = 'B', .priority = 2};
static const struct toolstack_device windowed = {
    .vm_id = 100,
    .pool = 'A',
    .priority = 0,
    .window = true,
    .window_mib = 64,
    .slots = 8,
    .socket_path = "/run/vgpu-mediator/vm100.sock",
};

static struct device_arguments read_list(const char *const *arguments, size_t count)
{
    struct device_arguments found;

    device_read_arguments(arguments, count, &found);
    return found;
}

#define READ(...)                                                                                  \
    ({                                                                                             \
        const char *list_[] = {__VA_ARGS__};                                                       \
        read_list(list_, VGPU_ARRAY_LENGTH(list_));                                                \
    })

/* --- values ------------------------------------------------------------------------ */

static void assert_refused(struct toolstack_device device, const char *words)
{
    struct vgpu_error error = {.message = ""};

    assert_int_equal(device_check(&device, &error), -1);
    assert_int_equal(error.code, EINVAL);
    if (!strstr(error.message, words))
        fail_msg("'%s' does not say '%s'", error.message, words);
}

#define WITH(field_, value_)                                                                       \
    ({                                                                                             \
        struct toolstack_device device_ = windowed;                                                \
        device_.field_ = (value_);                                                                 \
        device_;                                                                                   \
    })

static struct toolstack_device with_socket(const char *path)
{
    struct toolstack_device device = windowed;

    snprintf(device.socket_path, sizeof(device.socket_path), "%s", path);
    return device;
}

static void what_cannot_be_a_device_is_refused_with_words(void **state)
{
    struct toolstack_device unended = windowed;

    (void)state;
    assert_int_equal(device_check(&plain, NULL), 0);
    assert_int_equal(device_check(&windowed, NULL), 0);
    assert_refused(WITH(vm_id, 0), "VM id 0 cannot be");
    assert_refused(WITH(vm_id, 0x80000000u), "VM id 2147483648 cannot be");
    assert_refused(WITH(pool, 'a'), "not one letter from A to Z");
    assert_refused(WITH(pool, ','), "not one letter from A to Z");
    assert_refused(WITH(priority, 3), "priority 3");
    assert_refused(WITH(window_mib, 1), "has 1 MiB");
    assert_refused(WITH(window_mib, 48), "has 48 MiB");
    assert_refused(WITH(window_mib, 131072), "has 131072 MiB");
    assert_refused(WITH(slots, 0), "has 0 sessions");
    assert_refused(WITH(slots, 17), "has 17 sessions");
    assert_refused(with_socket("run/vm.sock"), "is no absolute path");
    assert_refused(with_socket("/run/vm.sock,server=on"), "is no absolute path");
    assert_refused(with_socket("/run/a b"), "is no absolute path");
    assert_refused(with_socket("/run/\"x"), "is no absolute path");
    assert_refused(with_socket(""), "is no absolute path");
    memset(unended.socket_path, '/', sizeof(unended.socket_path));
    assert_refused(unended, "is no absolute path");
}

static void what_is_written_is_read_again(void **state)
{
    char device[DEVICE_TEXT_BYTES], memory[DEVICE_TEXT_BYTES], chardev[DEVICE_TEXT_BYTES];
    struct device_arguments found;

    (void)state;
    device_format(&windowed, "", device);
    device_format_memory(&windowed, memory);
    device_format_chardev(&windowed, chardev);
    assert_string_equal(device, "vgpu-stub,vm_id=100,pool_id=A,priority=low,memdev=vgpuwin,"
                                "chardev=vgpu,sessions=8");
    assert_string_equal(memory, "memory-backend-memfd,id=vgpuwin,size=64M,share=on");
    assert_string_equal(chardev, "socket,id=vgpu,path=/run/vgpu-mediator/vm100.sock,reconnect=1");
    found = READ("-object", memory, "-chardev", chardev, "-device", device);
    assert_int_equal(found.count, 1);
    assert_string_equal(found.problem, "");
    assert_memory_equal(&found.device, &windowed, sizeof(windowed));
    device_format(&plain, ",addr=0x10", device);
    assert_string_equal(device, "vgpu-stub,vm_id=7,pool_id=B,priority=high,addr=0x10");
}

static void a_device_that_people_wrote_is_read(void **state)
{
    struct device_arguments found;

    (void)state;
    found = READ("--device", "vgpu-stub,addr=0x05,priority=1,vm_id=4294967295,id=a,,b");
    assert_string_equal(found.problem, "");
    assert_int_equal(found.device.vm_id, 4294967295u);
    assert_int_equal(found.device.pool, 'A');
    assert_int_equal(found.device.priority, 1);
    assert_false(found.device.window);
    assert_string_equal(found.extra, ",addr=0x05,id=a,,b");
    found = READ("-chardev", "socket,path=/a,,b.sock,id=c", "-object",
                 "memory-backend-file,id=m,size=2G,mem-path=/x", "-device",
                 "vgpu-stub,vm_id=1,memdev=m,chardev=c");
    assert_string_equal(found.problem, "");
    assert_string_equal(found.device.socket_path, "/a,b.sock");
    assert_int_equal(found.device.window_mib, 2048);
}

static void what_is_no_device_of_ours_is_none(void **state)
{
    (void)state;
    assert_int_equal(READ("-device", "vgpu-stubborn,vm_id=1").count, 0);
    assert_int_equal(READ("-device", "edu", "vgpu-stub,vm_id=1").count, 0);
    assert_int_equal(READ("-device").count, 0);
    assert_int_equal(READ("-chardev", "vgpu-stub,vm_id=1").count, 0);
    assert_int_equal(READ("device", "vgpu-stub,vm_id=1").count, 0);
}

static void what_cannot_be_read_is_said(void **state)
{
    (void)state;
    assert_string_equal(READ("-device", "vgpu-stub").problem, "its vgpu-stub has no vm_id");
    assert_string_equal(READ("-device", "vgpu-stub,vm_id=x\n").problem,
                        "its vgpu-stub has vm_id 'x\\x0a', which cannot be");
    assert_string_equal(READ("-device", "vgpu-stub,vm_id=1,pool_id=AB").problem,
                        "its vgpu-stub has pool_id 'AB', which cannot be");
    assert_string_equal(READ("-device", "vgpu-stub,vm_id=1,priority=3").problem,
                        "its vgpu-stub has priority '3', which cannot be");
    assert_string_equal(READ("-device", "vgpu-stub,vm_id=1,sessions=99").problem,
                        "its vgpu-stub has sessions '99', which cannot be");
    assert_string_equal(
        READ("-device", "vgpu-stub,vm_id=1", "-device", "vgpu-stub,vm_id=2").problem,
        "it has 2 vgpu-stub devices, not one");
    assert_string_equal(READ("-device", "{\"driver\":\"vgpu-stub\",\"vm_id\":1}").problem,
                        "its vgpu-stub is written as JSON, which is not read here");
    assert_string_equal(READ("-device", "vgpu-stub,vm_id=1,memdev=m,chardev=c").problem,
                        "its vgpu-stub names chardev 'c', which is not there");
    assert_string_equal(
        READ("-chardev", "socket,id=c,path=/c", "-device", "vgpu-stub,vm_id=1,memdev=m,chardev=c")
            .problem,
        "its vgpu-stub names memory 'm', which is not there with a size in MiB");
}

static void a_place_is_kept_while_it_is_free_and_else_found(void **state)
{
    struct device_arguments found = {.extra = ""};
    struct vgpu_error error;

    (void)state;
    assert_int_equal(device_place(&found, 0, NULL), 0);
    assert_string_equal(found.extra, ",addr=0x1c");
    assert_int_equal(device_place(&found, 0, NULL), 0);
    assert_string_equal(found.extra, ",addr=0x1c");
    snprintf(found.extra, sizeof(found.extra), ",x=1,addr=0x1c,y=2");
    assert_int_equal(device_place(&found, 1u << 0x1c | 1u << 0x19, NULL), 0);
    assert_string_equal(found.extra, ",x=1,y=2,addr=0x18");
    snprintf(found.extra, sizeof(found.extra), ",addr=5.1");
    assert_int_equal(device_place(&found, 0, NULL), 0);
    assert_string_equal(found.extra, ",addr=5.1");
    snprintf(found.extra, sizeof(found.extra), ",bus=pci.3,addr=0");
    assert_int_equal(device_place(&found, UINT32_MAX, NULL), 0);
    assert_string_equal(found.extra, ",bus=pci.3,addr=0");
    found.extra[0] = '\0';
    assert_int_equal(device_place(&found, UINT32_MAX, &error), -1);
    assert_int_equal(error.code, ENOSPC);
}

/* --- xl ---------------------------------------------------------------------------- */

static char *xl_written(const char *text, const struct toolstack_device *device)
{
    struct vgpu_error error = {.message = ""};
    char *made = NULL;

    if (xl_config_write(text, device, &made, &error) < 0)
        fail_msg("%s", error.message);
    return made;
}

static void assert_written(const char *before, const struct toolstack_device *device,
                           const char *after)
{
    char *made = xl_written(before, device);

    assert_string_equal(made, after);
    free(made);
}

#define OURS "\"-device\", \"vgpu-stub,vm_id=7,pool_id=B,priority=high\""

static void an_xl_file_keeps_all_but_our_device(void **state)
{
    (void)state;
    assert_written("name='a' # first\nvcpus=1", &plain,
                   "name='a' # first\nvcpus=1\ndevice_model_args_hvm = [ " OURS " ]\n");
    assert_written("device_model_args_hvm = [ '-device', \"edu,addr=0x10\",  # mine\n"
                   "   \"-device\", \"vgpu-stub,vm_id=1\" ]; name = \"b\"\n# the end",
                   &plain,
                   "device_model_args_hvm = [ '-device', \"edu,addr=0x10\", " OURS
                   " ]; name = \"b\"\n# the end");
    assert_written("name='a'\ndevice_model_args_hvm=[" OURS "]\nmemory=1\n", NULL,
                   "name='a'\ndevice_model_args_hvm=[  ]\nmemory=1\n");
    assert_written("name='a'\n", NULL, "name='a'\n");
    assert_written("device_model_args_hvm=['-device','vgpu-stub,vm_id=1,addr=0x8']\n", &plain,
                   "device_model_args_hvm=[ \"-device\", "
                   "\"vgpu-stub,vm_id=7,pool_id=B,priority=high,addr=0x8\" ]\n");
}

static void writing_twice_changes_nothing_more(void **state)
{
    char *once = xl_written("name='a'\ndevice_model_args_hvm = [ \"-s\" ]\n", &plain);

    (void)state;
    assert_written(once, &plain, once);
    free(once);
}

static void an_xl_file_is_read(void **state)
{
    struct toolstack_vm vm;

    (void)state;
    assert_int_equal(xl_config_read("# device_model_args_hvm = [ \"-device\", \"vgpu-stub\" ]\n"
                                    "name = \"web # 1\"\n"
                                    "uuid='59e1cf6c-6ab9-4879-90e7-adc8d1c63bf5';vif=[ 'x, y' ]\n"
                                    "disk = [ [ 1, 'a' ], 2 ]\nvcpus = 0x2 # two\n"
                                    "device_model_args_hvm=[" OURS "]",
                                    &vm, NULL),
                     0);
    assert_string_equal(vm.name, "web # 1");
    assert_string_equal(vm.uuid, "59e1cf6c-6ab9-4879-90e7-adc8d1c63bf5");
    assert_true(vm.has_device);
    assert_int_equal(vm.device.vm_id, 7);
    assert_string_equal(vm.device_problem, "");
}

static void an_xl_list_that_is_added_to_is_read_and_not_written(void **state)
{
    static const char text[] = "name = 'a'\nvif += [ 'x' ]\nextra += \"y\"\n"
                               "device_model_args_hvm = [ '-s' ]\n"
                               "device_model_args_hvm += [" OURS "]\n";
    static const char others[] = "name = 'a'\nvif = [ 'x' ]\nvif += [ 'y' ]\n";
    struct vgpu_error error;
    struct toolstack_vm vm;
    char *made = NULL;

    (void)state;
    assert_int_equal(xl_config_read(text, &vm, NULL), 0);
    assert_string_equal(vm.name, "a");
    assert_true(vm.has_device);
    assert_int_equal(vm.device.vm_id, 7);
    assert_int_equal(xl_config_write(text, &plain, &made, &error), -1);
    assert_int_equal(error.code, ENOTSUP);
    assert_non_null(strstr(error.message, "write it as one list"));
    assert_int_equal(xl_config_write(others, &plain, &made, &error), 0);
    assert_non_null(strstr(made, "vif += [ 'y' ]\n"));
    free(made);
}

static void an_xl_file_that_makes_no_sense_is_not_touched(void **state)
{
    static const char *const bad[] = {
        "name = 'a\n'",
        "name = 'a'\ndevice_model_args_hvm = [ \"-s\"",
        "device_model_args_hvm = [ [ \"-s\" ] ]",
        "hello",
        "= 1",
        "a b = 1",
    };
    char *made = (char *)"untouched";
    struct vgpu_error error;

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        assert_int_equal(xl_config_write(bad[i], &plain, &made, &error), -1);
        assert_int_equal(error.code, EBADMSG);
    }
    assert_string_equal(made, "untouched");
}

#ifdef VGPU_WITH_LIBVIRT
/* --- libvirt ------------------------------------------------------------------------- */

#define WRAPPER "/usr/bin/qemu-with-vgpu"
#define XML_NS " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"

static char *xml_written(const char *xml, const struct toolstack_device *device)
{
    struct vgpu_error error = {.message = ""};
    char *made = NULL;

    if (libvirt_xml_write(xml, device, WRAPPER, &made, &error) < 0)
        fail_msg("%s", error.message);
    return made;
}

static void assert_has(const char *text, const char *part)
{
    if (!text || !strstr(text, part))
        fail_msg("no '%s' in:\n%s", part, text ? text : "nothing");
}

static void assert_lacks(const char *text, const char *part)
{
    if (!text || strstr(text, part))
        fail_msg("'%s' is in:\n%s", part, text ? text : "nothing");
}

static void a_domain_gets_the_device_and_the_wrapper(void **state)
{
    struct toolstack_vm vm;
    char *made = xml_written("<domain type='kvm'><name>a</name>"
                             "<uuid>59e1cf6c-6ab9-4879-90e7-adc8d1c63bf5</uuid><devices>"
                             "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
                             "<disk><address type='pci' bus='0x00' slot='0x1c'/></disk>"
                             "</devices></domain>",
                             &windowed);

    (void)state;
    assert_has(made, "<emulator>" WRAPPER "</emulator>");
    assert_has(made, "<qemu:arg value=\"memory-backend-memfd,id=vgpuwin,size=64M,share=on\"/>");
    assert_has(made, ",addr=0x19\"/>"); /* the disk has 0x1c */
    assert_int_equal(libvirt_xml_read(made, &vm, NULL), 0);
    assert_string_equal(vm.name, "a");
    assert_string_equal(vm.uuid, "59e1cf6c-6ab9-4879-90e7-adc8d1c63bf5");
    assert_true(vm.has_device);
    assert_string_equal(vm.device_problem, "");
    assert_memory_equal(&vm.device, &windowed, sizeof(windowed));
    free(made);
}

static void the_arguments_of_others_stay_and_ours_are_replaced(void **state)
{
    char *first, *second;

    (void)state;
    first = xml_written(
        "<domain" XML_NS "><devices/><qemu:commandline>"
        "<qemu:arg value='-device'/><qemu:arg value='edu'/>"
        "<qemu:arg value='-chardev'/><qemu:arg value='socket,id=mine,path=/m'/>"
        "<qemu:arg value='-object'/><qemu:arg value='memory-backend-ram,id=m,size=1M'/>"
        "<qemu:arg value='-chardev'/><qemu:arg value='socket,id=old,path=/o'/>"
        "<qemu:arg value='-object'/><qemu:arg value='memory-backend-memfd,id=w,size=4M'/>"
        "<qemu:arg value='-device'/>"
        "<qemu:arg value='vgpu-stub,vm_id=1,memdev=w,chardev=old,irqfd=on'/>"
        "<qemu:env name='A' value='b'/></qemu:commandline></domain>",
        &plain);
    assert_has(first, "value=\"edu\"");
    assert_has(first, "id=mine");
    assert_has(first, "memory-backend-ram,id=m");
    assert_has(first, "<qemu:env name=\"A\" value=\"b\"/>");
    assert_lacks(first, "id=old");
    assert_lacks(first, "id=w,");
    assert_has(first, "vgpu-stub,vm_id=7,pool_id=B,priority=high,irqfd=on,addr=0x1c");
    second = xml_written(first, &plain);
    assert_string_equal(first, second);
    free(first);
    free(second);
}

static void without_a_device_the_domain_is_as_before(void **state)
{
    const char *before = "<domain type=\"kvm\"><devices>"
                         "<emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>";
    char *with = xml_written(before, &windowed);
    char *without = xml_written(with, NULL);

    (void)state;
    assert_lacks(without, "vgpu");
    assert_lacks(without, "commandline");
    assert_has(without, "<emulator>/usr/bin/qemu-system-x86_64</emulator>");
    free(with);
    free(without);
}

static void another_emulator_is_left_alone(void **state)
{
    char *made = xml_written("<domain><devices><emulator>/opt/qemu/bin/qemu</emulator></devices>"
                             "</domain>",
                             &plain);

    (void)state;
    assert_has(made, "<emulator>/opt/qemu/bin/qemu</emulator>");
    free(made);
}

/* The prefix is the document's choice, the namespace is not. */
static void arguments_are_known_by_namespace_not_by_prefix(void **state)
{
    struct toolstack_vm vm;

    (void)state;
    assert_int_equal(
        libvirt_xml_read("<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
                         "<q:commandline><q:arg value='-device'/>"
                         "<q:arg value='vgpu-stub,vm_id=3'/></q:commandline></domain>",
                         &vm, NULL),
        0);
    assert_true(vm.has_device);
    assert_int_equal(
        libvirt_xml_read("<domain xmlns:qemu='urn:other'><qemu:commandline>"
                         "<qemu:arg value='-device'/><qemu:arg value='vgpu-stub,vm_id=3'/>"
                         "</qemu:commandline></domain>",
                         &vm, NULL),
        0);
    assert_false(vm.has_device);
}

static void what_is_no_domain_is_refused(void **state)
{
    static const char *const bad[] = {"", "<domain>", "<network/>", "hello"};
    struct toolstack_vm vm = {.name = "untouched"};
    char *made = (char *)"untouched";
    struct vgpu_error error;

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        assert_int_equal(libvirt_xml_read(bad[i], &vm, &error), -1);
        assert_int_equal(error.code, EBADMSG);
        assert_int_equal(libvirt_xml_write(bad[i], &plain, WRAPPER, &made, &error), -1);
    }
    assert_string_equal(vm.name, "untouched");
    assert_string_equal(made, "untouched");
}
#endif

/* --- choosing ------------------------------------------------------------------------ */

static void a_vm_is_chosen_by_uuid_or_by_a_name_that_is_one_vms_only(void **state)
{
    static const struct toolstack_vm vms[] = {
        {.uuid = "11111111-1111-1111-1111-11111111111a", .name = "a"},
        {.uuid = "22222222-2222-2222-2222-222222222222", .name = "b"},
        {.uuid = "33333333-3333-3333-3333-333333333333", .name = "b"},
    };
    struct toolstack_vm vm;
    struct vgpu_error error;

    (void)state;
    assert_int_equal(toolstack_choose(vms, 3, "a", &vm, NULL), 0);
    assert_string_equal(vm.name, "a");
    assert_int_equal(toolstack_choose(vms, 3, "11111111-1111-1111-1111-11111111111A", &vm, NULL),
                     0);
    assert_int_equal(toolstack_choose(vms, 3, "b", &vm, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_string_equal(error.message, "two VMs have the name 'b': give the UUID, "
                                       "22222222-2222-2222-2222-222222222222 or "
                                       "33333333-3333-3333-3333-333333333333");
    assert_int_equal(toolstack_choose(vms, 3, "c\n", &vm, &error), -1);
    assert_int_equal(error.code, ENOENT);
    assert_string_equal(error.message, "the host has no VM with the UUID or name 'c\\x0a'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_a_device_is_refused_with_words),
        cmocka_unit_test(what_is_written_is_read_again),
        cmocka_unit_test(a_device_that_people_wrote_is_read),
        cmocka_unit_test(what_is_no_device_of_ours_is_none),
        cmocka_unit_test(what_cannot_be_read_is_said),
        cmocka_unit_test(a_place_is_kept_while_it_is_free_and_else_found),
        cmocka_unit_test(an_xl_file_keeps_all_but_our_device),
        cmocka_unit_test(writing_twice_changes_nothing_more),
        cmocka_unit_test(an_xl_file_is_read),
        cmocka_unit_test(an_xl_list_that_is_added_to_is_read_and_not_written),
        cmocka_unit_test(an_xl_file_that_makes_no_sense_is_not_touched),
#ifdef VGPU_WITH_LIBVIRT
        cmocka_unit_test(a_domain_gets_the_device_and_the_wrapper),
        cmocka_unit_test(the_arguments_of_others_stay_and_ours_are_replaced),
        cmocka_unit_test(without_a_device_the_domain_is_as_before),
        cmocka_unit_test(another_emulator_is_left_alone),
        cmocka_unit_test(arguments_are_known_by_namespace_not_by_prefix),
        cmocka_unit_test(what_is_no_domain_is_refused),
#endif
        cmocka_unit_test(a_vm_is_chosen_by_uuid_or_by_a_name_that_is_one_vms_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Which toolstack a host has, and where its programs are looked for. */
#include "unit.h"

#include "toolstack/private.h"

#include <errno.h>

static void programs_are_looked_for_in_absolute_places_only(void **state)
{
    char *found = toolstack_find_program("sh", "relative:.:/nonexistent:/bin");

    (void)state;
    assert_string_equal(found, "/bin/sh");
    free(found);
    assert_null(toolstack_find_program("sh", "bin:.:"));
    assert_null(toolstack_find_program("no-such-program", "/bin:/usr/bin"));
}

static void put(const char *root, const char *path, const char *text, mode_t mode)
{
    char whole[512];
    FILE *file;

    snprintf(whole, sizeof(whole), "%s%s", root, path);
    *strrchr(whole, '/') = '\0';
    assert_int_equal(fd_make_directories(whole, 0755, NULL), 0);
    snprintf(whole, sizeof(whole), "%s%s", root, path);
    file = fopen(whole, "we");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    chmod(whole, mode);
}

static const char *detected(const char *root)
{
    char path[256];
    const struct toolstack_ops *ops;

    snprintf(path, sizeof(path), "%s/usr/sbin", root);
    ops = toolstack_detect(root, path);
    return ops ? ops->name : "none";
}

static void the_host_tells_which_toolstack_it_has(void **state)
{
    char *root = unit_temporary_directory();

    (void)state;
    assert_string_equal(detected(root), "none");
    put(root, "/usr/sbin/xl", "", 0755);
    assert_string_equal(detected(root), "none"); /* a program alone makes no control domain */
    put(root, "/proc/xen/capabilities", "\n", 0644);
    assert_string_equal(detected(root), "none"); /* a guest */
    put(root, "/proc/xen/capabilities", "control_d\n", 0644);
    assert_string_equal(detected(root), "xl");
    put(root, "/usr/sbin/xe", "", 0755);
    assert_string_equal(detected(root), "xl"); /* xe alone may speak for another host */
    put(root, "/etc/xensource-inventory", "", 0644);
    assert_string_equal(detected(root), "xapi");
    unit_remove_directory(root);
}

static void libvirt_is_taken_where_it_is_and_xen_is_not(void **state)
{
#ifdef VGPU_WITH_LIBVIRT
    char *root = unit_temporary_directory();

    (void)state;
    put(root, "/run/libvirt/libvirt-sock", "", 0644);
    assert_string_equal(detected(root), "libvirt");
    put(root, "/etc/xensource-inventory", "", 0644);
    put(root, "/usr/sbin/xe", "", 0755);
    assert_string_equal(detected(root), "xapi");
    unit_remove_directory(root);
#else
    (void)state;
    skip();
#endif
}

static void a_name_that_is_none_is_refused(void **state)
{
    struct toolstack *toolstack = NULL;
    struct vgpu_error error;

    (void)state;
    assert_int_equal(toolstack_open("vmware", NULL, &toolstack, &error), -1);
    assert_int_equal(error.code, EINVAL);
    assert_string_equal(error.message, "'vmware' is no toolstack: use libvirt, xapi or xl");
    assert_null(toolstack);
}

static void a_program_that_is_missing_is_named(void **state)
{
    struct toolstack *toolstack = NULL;
    struct vgpu_error error;

    (void)state;
    setenv("VGPU_TOOLSTACK_PATH", "/nonexistent", 1);
    assert_int_equal(toolstack_open("xl", NULL, &toolstack, &error), -1);
    assert_int_equal(error.code, ENOENT);
    assert_string_equal(error.message, "there is no program 'xl' in /nonexistent");
    assert_int_equal(toolstack_open("xapi", NULL, &toolstack, &error), -1);
    assert_string_equal(error.message, "there is no program 'xe' in /nonexistent");
    unsetenv("VGPU_TOOLSTACK_PATH");
}

static void xl_and_xapi_are_xens(void **state)
{
    (void)state;
    assert_true(toolstack_is_xen("xl", NULL));
    assert_true(toolstack_is_xen("xapi", NULL));
    assert_false(toolstack_is_xen("libvirt", NULL));
    assert_false(toolstack_is_xen(NULL, "qemu:///system"));
    assert_false(toolstack_is_xen("none", NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(programs_are_looked_for_in_absolute_places_only),
        cmocka_unit_test(the_host_tells_which_toolstack_it_has),
        cmocka_unit_test(libvirt_is_taken_where_it_is_and_xen_is_not),
        cmocka_unit_test(a_name_that_is_none_is_refused),
        cmocka_unit_test(xl_and_xapi_are_xens),
        cmocka_unit_test(a_program_that_is_missing_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "client/client.h"

#include <errno.h>

static void expect_shown(const char *text, size_t bytes, const char *wanted)
{
    char out[64];

    text_show(out, sizeof(out), text, bytes);
    assert_string_equal(out, wanted);
}

static void only_valid_utf8_counts_as_a_character(void **state)
{
    (void)state;
    assert_int_equal(text_utf8_length("a", 1), 1);
    assert_int_equal(text_utf8_length("\xc3\xa9", 2), 2);
    assert_int_equal(text_utf8_length("\xe2\x80\xa6", 3), 3);
    assert_int_equal(text_utf8_length("\xf0\x9f\x98\x80", 4), 4);
    assert_int_equal(text_utf8_length("\xf4\x8f\xbf\xbf", 4), 4);
    assert_int_equal(text_utf8_length("", 0), 0);
    assert_int_equal(text_utf8_length("\xc3", 1), 0);             /* cut */
    assert_int_equal(text_utf8_length("\xc3\x28", 2), 0);         /* no continuation */
    assert_int_equal(text_utf8_length("\x80", 1), 0);             /* continuation alone */
    assert_int_equal(text_utf8_length("\xc0\xaf", 2), 0);         /* overlong */
    assert_int_equal(text_utf8_length("\xe0\x80\xaf", 3), 0);     /* overlong */
    assert_int_equal(text_utf8_length("\xf0\x80\x80\xaf", 4), 0); /* overlong */
    assert_int_equal(text_utf8_length("\xed\xa0\x80", 3), 0);     /* surrogate */
    assert_int_equal(text_utf8_length("\xf4\x90\x80\x80", 4), 0); /* beyond Unicode */
}

static void shown_text_holds_no_control_character(void **state)
{
    (void)state;
    expect_shown("plain", 5, "plain");
    expect_shown("a\x1b[2J\n\0b", 8, "a\\x1b[2J\\x0a\\x00b");
    expect_shown("\x7f\xc2\x9b\xff", 4, "\\x7f\\xc2\\x9b\\xff");
    expect_shown("caf\xc3\xa9", 5, "caf\xc3\xa9");
}

static void shown_text_is_cut_between_characters(void **state)
{
    char out[6];

    (void)state;
    text_show(out, sizeof(out), "abcdefgh", 8);
    assert_string_equal(out, "abcde");
    text_show(out, sizeof(out), "abcd\xc3\xa9", 6);
    assert_string_equal(out, "abcd");
    text_show(out, sizeof(out), "ab\n", 3);
    assert_string_equal(out, "ab");
}

static void seconds_are_decimal_and_bounded(void **state)
{
    int64_t ns = 7;

    (void)state;
    assert_true(text_parse_seconds("30", &ns));
    assert_true(ns == 30 * CLIENT_NS_PER_S);
    assert_true(text_parse_seconds("0.25", &ns));
    assert_true(ns == CLIENT_NS_PER_S / 4);
    assert_true(text_parse_seconds(".001", &ns));
    assert_true(ns == CLIENT_NS_PER_MS);
    assert_true(text_parse_seconds("1.0000000001", &ns)); /* finer than a nanosecond */
    assert_true(ns == CLIENT_NS_PER_S);
    assert_true(text_parse_seconds("86400", &ns));
    ns = 7;
    assert_false(text_parse_seconds("86400.1", &ns));
    assert_false(text_parse_seconds("0.0009", &ns));
    assert_false(text_parse_seconds("0", &ns));
    assert_false(text_parse_seconds("", &ns));
    assert_false(text_parse_seconds(".", &ns));
    assert_false(text_parse_seconds("1e3", &ns));
    assert_false(text_parse_seconds("-1", &ns));
    assert_false(text_parse_seconds("18446744073709551617", &ns));
    assert_true(ns == 7); /* untouched on failure */
}

static void paths_become_absolute_and_plain(void **state)
{
    char out[PATH_MAX], here[PATH_MAX], wanted[PATH_MAX + 8], tiny[5];

    (void)state;
    assert_true(text_normalize_path("//mnt/./vgpu///vm1/", out, sizeof(out)));
    assert_string_equal(out, "/mnt/vgpu/vm1");
    assert_true(text_normalize_path("/", out, sizeof(out)));
    assert_string_equal(out, "/");
    assert_true(text_normalize_path("/a/..b/.c", out, sizeof(out)));
    assert_string_equal(out, "/a/..b/.c");
    assert_non_null(getcwd(here, sizeof(here)));
    snprintf(wanted, sizeof(wanted), "%s/x", here);
    assert_true(text_normalize_path("x", out, sizeof(out)));
    assert_string_equal(out, wanted);
    assert_false(text_normalize_path("", out, sizeof(out)));
    assert_true(text_normalize_path("/abc", tiny, sizeof(tiny)));
    assert_false(text_normalize_path("/abcd", tiny, sizeof(tiny)));
}

static void json_is_valid_whatever_the_bytes(void **state)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    struct json json = {.out = out};

    (void)state;
    json_open(&json, NULL, '{');
    json_string(&json, "a\"\\", "\x01\n\x7f\xff\xc3\xa9");
    json_open(&json, "list", '[');
    json_close(&json, ']');
    json_open(&json, "more", '[');
    json_integer(&json, NULL, -1);
    json_bool(&json, NULL, true);
    json_null(&json, NULL);
    json_close(&json, ']');
    json_milliseconds(&json, "ms", 1234567);
    json_close(&json, '}');
    fclose(out);
    assert_string_equal(text, "{\"a\\\"\\\\\": \"\\u0001\\u000a\\u007f\\ufffd\xc3\xa9\", "
                              "\"list\": [], \"more\": [-1, true, null], \"ms\": 1.235}");
    free(text);
}

static struct share_text text_of(const char *bytes, size_t length)
{
    struct share_text text = {.length = length, .exists = true};

    memcpy(text.bytes, bytes, length);
    return text;
}

static void only_a_whole_line_that_is_not_ready_is_an_answer(void **state)
{
    static const struct {
        const char *bytes;
        size_t length;
        int wanted; /* -1: no answer */
    } cases[] = {
        {"1:fine\n", 7, 6},  {"2:no\nmore", 9, 4},  {"1:fine\r\n", 8, 6}, {"what\n", 5, 4},
        {"00:x\n", 5, 4},    {"1:fine", 6, -1},     {"", 0, -1},          {"\n", 1, -1},
        {"\r\n", 2, -1},     {"0:Ready\n", 8, -1},  {"0:\n", 3, -1},      {"1:\0\n", 4, -1},
        {"\0\0\0\n", 4, -1}, {"\n1:fine\n", 8, -1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct share_text text = text_of(cases[i].bytes, cases[i].length);
        size_t length = 0;

        assert_int_equal(share_find_answer(&text, &length), cases[i].wanted >= 0);
        if (cases[i].wanted >= 0)
            assert_int_equal(length, cases[i].wanted);
    }
}

static void blank_is_white_space_only(void **state)
{
    struct share_text blank = text_of(" \r\n\t", 4), zero = text_of("\0", 1),
                      text = text_of("A", 1), none = text_of("", 0);

    (void)state;
    assert_true(share_is_blank(&blank));
    assert_true(share_is_blank(&none));
    assert_false(share_is_blank(&zero));
    assert_false(share_is_blank(&text));
}

static void errors_are_sorted_by_what_to_do(void **state)
{
    struct failure failure;

    (void)state;
    assert_int_equal(share_classify("open", "/x", ESTALE, &failure), SHARE_TRANSIENT);
    assert_int_equal(share_classify("open", "/x", 528, &failure), SHARE_TRANSIENT);
    assert_int_equal(share_classify("open", "/x", EACCES, &failure), SHARE_FAILED);
    assert_int_equal(failure.code, FAILURE_SHARE_DENIED);
    assert_int_equal(share_classify("open", "/x", ENOENT, &failure), SHARE_FAILED);
    assert_int_equal(failure.code, FAILURE_SHARE_MISSING);
    assert_int_equal(share_classify("open", "/x", ELOOP, &failure), SHARE_FAILED);
    assert_int_equal(failure.code, FAILURE_SHARE_BROKEN);
    assert_non_null(strstr(failure.text, "cannot open /x"));
    assert_int_not_equal(failure.remedy[0], '\0');
}

static const char mountinfo[] =
    "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "22 21 0:20 / /mnt rw - tmpfs tmpfs rw\n"
    "30 22 0:45 / /mnt/vgpu rw,relatime shared:1 master:2 - nfs4 10.0.2.2:/exp rw,vers=4.2\n"
    "31 22 0:46 / /mnt/with\\040space ro,relatime - 9p share\\011tag rw\n"
    "32 22 0:47 / /mnt/twice rw - ext4 /dev/first rw\n"
    "33 22 0:48 / /mnt/twice rw - virtiofs second ro\n"
    "garbage\n"
    "34 22 0:49 / /mnt/vgpu/broken rw - \n";

static void expect_mount(const char *file, const char *path, const char *point, const char *type,
                         bool read_only)
{
    struct mount_entry entry;

    assert_true(mount_find(file, path, &entry));
    assert_string_equal(entry.point, point);
    assert_string_equal(entry.type, type);
    assert_int_equal(entry.read_only, read_only);
}

static void a_path_lies_on_its_deepest_and_latest_mount(void **state)
{
    char *top = unit_temporary_directory();
    char file[512];
    struct mount_entry entry;
    FILE *out;

    (void)state;
    snprintf(file, sizeof(file), "%s/mountinfo", top);
    out = fopen(file, "we");
    assert_non_null(out);
    fputs(mountinfo, out);
    fclose(out);
    expect_mount(file, "/mnt/vgpu/vm100", "/mnt/vgpu", "nfs4", false);
    expect_mount(file, "/mnt/vgpu", "/mnt/vgpu", "nfs4", false);
    expect_mount(file, "/mnt/vgpu2/vm100", "/mnt", "tmpfs", false);
    expect_mount(file, "/srv", "/", "ext4", false);
    expect_mount(file, "/mnt/with space/vm1", "/mnt/with space", "9p", true);
    expect_mount(file, "/mnt/twice/x", "/mnt/twice", "virtiofs", true);
    expect_mount(file, "/mnt/vgpu/broken", "/mnt/vgpu", "nfs4", false);
    assert_true(mount_find(file, "/mnt/vgpu", &entry));
    assert_true(mount_is_network(&entry));
    assert_true(mount_find(file, "/", &entry));
    assert_false(mount_is_network(&entry));
    assert_false(mount_find("/nonexistent/mountinfo", "/", &entry));
    unit_remove_directory(top);
}

static void every_failure_has_a_name_of_its_own(void **state)
{
    (void)state;
    for (int i = 0; i < FAILURE_COUNT; i++) {
        assert_non_null(failure_name((enum failure_code)i));
        for (int k = 0; k < i; k++)
            assert_string_not_equal(failure_name((enum failure_code)i),
                                    failure_name((enum failure_code)k));
    }
}

/* A device whose registers name a VM; 0: one that cannot be read. */
static void add_device(struct device_list *list, uint32_t vm_id)
{
    struct device *device = &list->devices[list->count++];

    snprintf(device->address, sizeof(device->address), "0000:00:0%u.0", list->count);
    device->usable = vm_id > 0;
    device->denied = vm_id == 0;
    device->registers[VGPU_REG_VM_ID / 4] = vm_id;
}

static int compare(const uint32_t vm_ids[2], uint32_t served, char text[256],
                   struct failure *failure)
{
    struct device_list *list = calloc(1, sizeof(*list));
    int result;

    assert_non_null(list);
    for (int i = 0; i < 2; i++) {
        if (vm_ids[i] != UINT32_MAX)
            add_device(list, vm_ids[i]);
    }
    result = identity_compare(list, served, text, 256, failure);
    free(list);
    return result;
}

static void a_device_that_names_another_vm_than_the_host_is_an_error(void **state)
{
    struct failure failure = {0};
    char text[256];

    (void)state;
    assert_int_equal(compare((uint32_t[]){7, UINT32_MAX}, 9, text, &failure), -1);
    assert_int_equal(failure.code, FAILURE_DEVICE_VALUES);
    assert_non_null(strstr(failure.text, "0000:00:01.0 says that this is vm 7"));
    assert_non_null(strstr(failure.text, "for vm 9's"));
    assert_non_null(strstr(failure.remedy, "vgpu-admin show-vm 9"));
}

static void a_device_that_names_the_same_vm_is_said_to(void **state)
{
    struct failure failure = {0};
    char text[256];

    (void)state;
    assert_int_equal(compare((uint32_t[]){7, UINT32_MAX}, 7, text, &failure), 0);
    assert_string_equal(text, "device 0000:00:01.0 says vm 7 too");
    /* Of two, one is for another channel. */
    assert_int_equal(compare((uint32_t[]){3, 7}, 7, text, &failure), 0);
    assert_string_equal(text, "device 0000:00:02.0 says vm 7 too");
}

static void without_a_device_to_compare_the_host_is_believed_and_it_is_said(void **state)
{
    struct failure failure = {0};
    char text[256];

    (void)state;
    assert_int_equal(compare((uint32_t[]){UINT32_MAX, UINT32_MAX}, 7, text, &failure), 0);
    assert_string_equal(text, "no device here; the host's word alone");
    assert_int_equal(compare((uint32_t[]){0, UINT32_MAX}, 7, text, &failure), 0);
    assert_string_equal(text,
                        "this user may not read the device's registers; the host's word alone");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_valid_utf8_counts_as_a_character),
        cmocka_unit_test(shown_text_holds_no_control_character),
        cmocka_unit_test(shown_text_is_cut_between_characters),
        cmocka_unit_test(seconds_are_decimal_and_bounded),
        cmocka_unit_test(paths_become_absolute_and_plain),
        cmocka_unit_test(json_is_valid_whatever_the_bytes),
        cmocka_unit_test(only_a_whole_line_that_is_not_ready_is_an_answer),
        cmocka_unit_test(blank_is_white_space_only),
        cmocka_unit_test(errors_are_sorted_by_what_to_do),
        cmocka_unit_test(a_path_lies_on_its_deepest_and_latest_mount),
        cmocka_unit_test(every_failure_has_a_name_of_its_own),
        cmocka_unit_test(a_device_that_names_another_vm_than_the_host_is_an_error),
        cmocka_unit_test(a_device_that_names_the_same_vm_is_said_to),
        cmocka_unit_test(without_a_device_to_compare_the_host_is_believed_and_it_is_said),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

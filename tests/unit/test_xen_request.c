/* SPDX-License-Identifier: Apache-2.0 */
/* What stands in XenStore: a guest's words about a session, the host's about a domain. */
#include "unit.h"

#include "xen/xen.h"

static struct vgpu_error error;

static struct xen_words good_words(void)
{
    return (struct xen_words){.version = VGPU_XEN_VERSION,
                              .slot_bytes = "2093056",
                              .directory = "1234",
                              .event_channel = "17"};
}

static void a_slot_and_its_port_are_understood(void **state)
{
    const struct xen_words words = good_words();
    struct xen_request request;

    (void)state;
    assert_int_equal(xen_request_parse(&words, &request, &error), 0);
    assert_int_equal(request.slot_bytes, 511 * 4096);
    assert_int_equal(request.port, 17);
    assert_int_equal(request.directory_count, 1);
    assert_int_equal(request.directory[0], 1234);
}

static void a_large_slot_has_a_directory_of_several_pages(void **state)
{
    struct xen_words words = good_words();
    struct xen_request request;

    (void)state;
    strcpy(words.slot_bytes, "8388608");
    strcpy(words.directory, "1 4294967295");
    assert_int_equal(xen_request_parse(&words, &request, &error), 0);
    assert_int_equal(request.directory_count, 2);
    assert_int_equal(request.directory[1], UINT32_MAX);
}

static void refused(const struct xen_words *words, const char *expected)
{
    struct xen_request request = {.port = 99};

    assert_int_equal(xen_request_parse(words, &request, &error), -1);
    if (!strstr(error.message, expected))
        fail_msg("expected '%s' in '%s'", expected, error.message);
    assert_int_equal(request.port, 99);
}

static void another_version_is_refused(void **state)
{
    struct xen_words words = good_words();

    (void)state;
    strcpy(words.version, "2");
    refused(&words, "version is '2', expected 1");
}

static void sizes_that_no_slot_has_are_refused(void **state)
{
    static const char *const sizes[] = {"",        "0",        "434175",   "434177",
                                        "-4096",   "67112960", "0x100000", "18446744073709551615",
                                        " 2093056"};
    struct xen_words words = good_words();

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(sizes); i++) {
        text_copy(words.slot_bytes, sizeof(words.slot_bytes), sizes[i]);
        refused(&words, "434176 to 67108864 bytes");
    }
}

static void ports_that_are_none_are_refused(void **state)
{
    static const char *const ports[] = {"", "0", "x", "4294967296", "1 2"};
    struct xen_words words = good_words();

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(ports); i++) {
        strcpy(words.event_channel, ports[i]);
        refused(&words, "a port's number");
    }
}

static void directories_of_another_length_are_refused(void **state)
{
    static const char *const directories[] = {"", "1 2", "x", "4294967296", "1  2", "-1"};
    struct xen_words words = good_words();

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(directories); i++) {
        strcpy(words.directory, directories[i]);
        refused(&words, "a grant reference for each 1024 pages");
    }
    memset(words.directory, '1', sizeof(words.directory) - 1);
    refused(&words, "a grant reference for each 1024 pages");
}

static void what_a_guest_wrote_is_shown_safely(void **state)
{
    struct xen_words words = good_words();

    (void)state;
    strcpy(words.version, "\n\x1b[2J");
    refused(&words, "version is '\\x0a\\x1b[2J'");
}

static void names_are_sixteen_hexadecimal_digits(void **state)
{
    (void)state;
    assert_true(xen_name_is_valid("0123456789abcdef"));
    assert_false(xen_name_is_valid(""));
    assert_false(xen_name_is_valid("0123456789abcde"));
    assert_false(xen_name_is_valid("0123456789abcdef0"));
    assert_false(xen_name_is_valid("0123456789ABCDEF"));
    assert_false(xen_name_is_valid("../../0/name1234"));
}

static void a_vms_path_gives_its_uuid(void **state)
{
    char uuid[37] = "";

    (void)state;
    assert_true(xen_uuid_of_path("/vm/8AAAAAAA-bbbb-4ccc-8ddd-eeeeeeeeeeee", uuid));
    assert_string_equal(uuid, "8aaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee");
    assert_false(xen_uuid_of_path("8aaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", uuid));
    assert_false(xen_uuid_of_path("/vm/8aaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee/..", uuid));
    assert_false(xen_uuid_of_path("/vm/8aaaaaaa+bbbb-4ccc-8ddd-eeeeeeeeeeee", uuid));
    assert_false(xen_uuid_of_path("/vm/", uuid));
}

#define ONLY_HOST(words) xen_only_host_writes(words, sizeof(words), 3)

static void a_node_that_a_guest_may_write_says_nothing_of_it(void **state)
{
    (void)state;
    assert_true(ONLY_HOST("n0\0r5"));
    assert_true(ONLY_HOST("n3\0r5"));
    assert_true(ONLY_HOST("r0\0w3"));
    assert_false(ONLY_HOST("n5\0r0"));
    assert_false(ONLY_HOST("n0\0w5"));
    assert_false(ONLY_HOST("n0\0r4\0b5"));
    assert_false(ONLY_HOST("w0"));
    assert_false(ONLY_HOST("b0\0r5"));
    assert_false(ONLY_HOST("n"));
    assert_false(xen_only_host_writes("", 0, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slot_and_its_port_are_understood),
        cmocka_unit_test(a_large_slot_has_a_directory_of_several_pages),
        cmocka_unit_test(another_version_is_refused),
        cmocka_unit_test(sizes_that_no_slot_has_are_refused),
        cmocka_unit_test(ports_that_are_none_are_refused),
        cmocka_unit_test(directories_of_another_length_are_refused),
        cmocka_unit_test(what_a_guest_wrote_is_shown_safely),
        cmocka_unit_test(names_are_sixteen_hexadecimal_digits),
        cmocka_unit_test(a_vms_path_gives_its_uuid),
        cmocka_unit_test(a_node_that_a_guest_may_write_says_nothing_of_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

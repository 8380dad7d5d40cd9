/* SPDX-License-Identifier: Apache-2.0 */
/* What a person may type for the registry. */
#include "unit.h"

#include "store/store.h"

#include <errno.h>

static struct vgpu_error error;

static void names_are_printable_and_cannot_be_taken_for_something_else(void **state)
{
    static const char *const good[] = {
        "a", "Windows 10 (64-bit) (1)", "web-1.example", "7zip", "_x", "0f1e2d3c"};
    static const char *const bad[] = {
        "", " a", "a ", "-a", "12", "a\tb", "a\xc3\xa9", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"};
    char longest[STORE_NAME_BYTES + 1];

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(good); i++)
        assert_int_equal(store_check_name(good[i], &error), 0);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        assert_int_equal(store_check_name(bad[i], &error), -1);
        assert_int_equal(error.code, EINVAL);
    }
    memset(longest, 'x', sizeof(longest));
    longest[STORE_NAME_BYTES - 1] = '\0';
    assert_int_equal(store_check_name(longest, &error), 0);
    longest[STORE_NAME_BYTES - 1] = 'x';
    longest[STORE_NAME_BYTES] = '\0';
    assert_int_equal(store_check_name(longest, &error), -1);
}

static void uuids_are_made_lower_case(void **state)
{
    static const char *const bad[] = {"",
                                      "0f1e2d3c",
                                      "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f",
                                      "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f00",
                                      "0f1e2d3c-4b5a-6978-8796_a5b4c3d2e1f0",
                                      "gf1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
                                      "00000000-0000-0000-0000-000000000000"};
    char uuid[STORE_UUID_BYTES] = "untouched";

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++)
        assert_int_equal(store_check_uuid(bad[i], uuid, &error), -1);
    assert_string_equal(uuid, "untouched");
    assert_int_equal(store_check_uuid("0F1E2D3C-4b5a-6978-8796-A5B4C3D2E1F0", uuid, &error), 0);
    assert_string_equal(uuid, "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0");
}

static void ids_priorities_and_pools_are_what_they_say(void **state)
{
    static const char *const bad_ids[] = {"", "0", "-1", "1x", "2147483648", " 1", "0x1"};
    static const char *const bad_priorities[] = {"", "3", "-1", "HIGH", "urgent", "1 "};
    static const char *const bad_pools[] = {"", "a", "AB", "1", "\xc3\x84"};
    uint32_t vm_id = 0;
    uint8_t priority = 9;
    char pool = '?';

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad_ids); i++)
        assert_int_equal(store_check_vm_id(bad_ids[i], &vm_id, &error), -1);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad_priorities); i++)
        assert_int_equal(store_check_priority(bad_priorities[i], &priority, &error), -1);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad_pools); i++)
        assert_int_equal(store_check_pool_id(bad_pools[i], &pool, &error), -1);
    assert_true(vm_id == 0 && priority == 9 && pool == '?');
    assert_int_equal(store_check_vm_id("2147483647", &vm_id, &error), 0);
    assert_int_equal(vm_id, STORE_VM_ID_MAX);
    assert_int_equal(store_check_priority("high", &priority, &error), 0);
    assert_int_equal(priority, 2);
    assert_int_equal(store_check_priority("0", &priority, &error), 0);
    assert_int_equal(priority, 0);
    assert_int_equal(store_check_pool_id("Z", &pool, &error), 0);
    assert_int_equal(pool, 'Z');
}

static void devices_have_one_of_four_forms(void **state)
{
    static const char *const good[] = {"cpu",
                                       "cpu:0",
                                       "cpu:63",
                                       "0000:01:00.0",
                                       "abcd:EF:1f.7",
                                       "GPU-0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
                                       "MIG-0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"};
    static const char *const bad[] = {
        "",     "cpu:",         "cpu:64", "gpu", "01:00.0", "0000:01:00.8", "0000:01:00.00",
        "GPU-", "GPU-0f1e2d3c", "../cpu"};

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(good); i++)
        assert_int_equal(store_check_device(good[i], &error), 0);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++)
        assert_int_equal(store_check_device(bad[i], &error), -1);
}

static void what_came_is_shown_without_control_characters(void **state)
{
    char name[2000];

    (void)state;
    memset(name, '\x1b', sizeof(name));
    name[sizeof(name) - 1] = '\0';
    assert_int_equal(store_check_device(name, &error), -1);
    assert_null(strchr(error.message, '\x1b'));
    assert_non_null(strstr(error.message, "expected cpu"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_printable_and_cannot_be_taken_for_something_else),
        cmocka_unit_test(uuids_are_made_lower_case),
        cmocka_unit_test(ids_priorities_and_pools_are_what_they_say),
        cmocka_unit_test(devices_have_one_of_four_forms),
        cmocka_unit_test(what_came_is_shown_without_control_characters),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

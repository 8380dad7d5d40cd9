/* SPDX-License-Identifier: Apache-2.0 */
/* gpu/devices.c: which GPUs there are, and which of them a name means. */
#include "gpu_double.h"

#include "gpu/gpu.h"

#include <errno.h>

#define MIG "MIG-01234567-89ab-cdef-0123-456789abcdef"

static struct gpu_device three[] = {
    {0, "NVIDIA H100", "GPU-aaaaaaaa-0000-0000-0000-000000000001", "0000:65:00.0"},
    {1, "NVIDIA H100", "GPU-aaaaaaaa-1111-0000-0000-000000000002", "0000:b3:00.0"},
    {2, "NVIDIA H100", "GPU-bbbbbbbb-0000-0000-0000-000000000003", "0001:65:00.0"},
};

static struct gpu_device part[] = {
    {0, "NVIDIA H100 MIG 1g.10gb", MIG, "0000:65:00.0", .mig = true},
};

static void expect_found(const char *selector, int index)
{
    struct vgpu_error error = {.message = ""};
    int found = gpu_find(three, 3, selector, &error);

    if (found != index)
        fail_msg("'%s' gave %d, expected %d: %s", selector, found, index, error.message);
}

static void expect_none(const char *selector, int code, const char *words)
{
    struct vgpu_error error = {.message = ""};

    assert_int_equal(gpu_find(three, 3, selector, &error), -1);
    if (error.code != code || !strstr(error.message, words))
        fail_msg("expected %d and '%s', got %d: %s", code, words, error.code, error.message);
}

static void load(struct gpu_double *own, struct cuda *cuda, const char *orders)
{
    struct vgpu_error error = {.message = ""};

    gpu_double_begin(own, "VGPU_FAKE_CUDA");
    gpu_double_order(own, orders);
    if (cuda_load(own->path, cuda, &error) < 0)
        fail_msg("%s", error.message);
    cuda->init(0);
}

static void end(struct gpu_double *own, struct cuda *cuda)
{
    cuda_unload(cuda);
    gpu_double_end(own);
}

static void devices_are_described(void **state)
{
    struct gpu_device devices[GPU_DEVICES_MAX];
    struct gpu_double own;
    struct cuda cuda;
    size_t count = 0;

    (void)state;
    load(&own, &cuda, "devices 2\nmemory_bytes 4294967296\n");
    assert_int_equal(gpu_list_devices(&cuda, devices, &count), CUDA_SUCCESS);
    assert_int_equal(count, 2);
    assert_int_equal(devices[1].index, 1);
    assert_string_equal(devices[1].name, "NVIDIA Fake");
    assert_string_equal(devices[1].uuid, "GPU-00000000-0000-0000-0000-000000000001");
    assert_string_equal(devices[1].address, "0000:66:00.0");
    assert_int_equal(devices[1].memory_bytes, 4294967296);
    assert_int_equal(devices[1].capability_major, 9);
    assert_int_equal(devices[1].capability_minor, 0);
    assert_int_equal(devices[1].multiprocessors, 132);
    assert_false(devices[1].mig);
    end(&own, &cuda);
}

static void a_mig_device_is_known_as_one(void **state)
{
    struct gpu_device devices[GPU_DEVICES_MAX];
    struct gpu_double own;
    struct cuda cuda;
    size_t count = 0;

    (void)state;
    setenv("CUDA_VISIBLE_DEVICES", MIG, 1);
    load(&own, &cuda, "devices 2\n");
    assert_int_equal(gpu_list_devices(&cuda, devices, &count), CUDA_SUCCESS);
    unsetenv("CUDA_VISIBLE_DEVICES");
    assert_int_equal(count, 1);
    assert_true(devices[0].mig);
    assert_string_equal(devices[0].uuid, MIG);
    end(&own, &cuda);
}

static void each_failing_question_is_the_result(void **state)
{
    static const char *const questions[] = {
        "cuDeviceGetCount",    "cuDeviceGet",         "cuDeviceGetName",      "cuDeviceGetUuid_v2",
        "cuDeviceGetPCIBusId", "cuDeviceTotalMem_v2", "cuDeviceGetAttribute",
    };
    struct gpu_device devices[GPU_DEVICES_MAX];
    struct gpu_double own;
    struct cuda cuda;
    size_t count = 77;
    char orders[128];

    (void)state;
    load(&own, &cuda, "");
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(questions); i++) {
        snprintf(orders, sizeof(orders), "fail %s * %zu\n", questions[i], 700 + i);
        gpu_double_order(&own, orders);
        assert_int_equal(gpu_list_devices(&cuda, devices, &count), 700 + i);
        assert_int_equal(count, 77);
    }
    end(&own, &cuda);
}

static void an_index_an_address_and_a_uuid_find_a_device(void **state)
{
    (void)state;
    expect_found(NULL, 0);
    expect_found("", 0);
    expect_found("2", 2);
    expect_found("65:00.0", 0);
    expect_found("b3:00.0", 1);
    expect_found("0000:B3:00.0", 1);
    expect_found("00000001:65:00.0", 2);
    expect_found("GPU-bbbbbbbb-0000-0000-0000-000000000003", 2);
    expect_found("gpu-BBBBBBBB", 2);
    expect_found("GPU-bbbb", 2);
    expect_found("GPU-aaaaaaaa-1", 1);
}

static void what_is_not_there_is_answered_with_what_is(void **state)
{
    struct vgpu_error error = {.message = ""};

    (void)state;
    expect_none("3", ENODEV, "there are: 0 NVIDIA H100 GPU-aaaaaaaa-0000");
    expect_none("66:00.0", ENODEV, "0001:65:00.0");
    expect_none("GPU-cccccccc", ENODEV, "there is no GPU 'GPU-cccccccc'");
    expect_none(MIG, ENODEV, "CUDA_VISIBLE_DEVICES");
    expect_none("GPU-aaaaaaaa", EINVAL, "means several GPUs");
    assert_int_equal(gpu_find(three, 0, "0", &error), -1);
    assert_non_null(strstr(error.message, "CUDA shows none"));
}

static void what_is_no_selector_is_told_what_one_is(void **state)
{
    static const char *const wrong[] = {"-1",      "64",      "first",       "GPU-aaa",
                                        "65:00",   "65:20.0", "1:65:00.0.0", "MIG-x; rm -r /",
                                        "GPU-\n1", "0 ",      "65:00.0 "};

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(wrong); i++) {
        struct vgpu_error error = {.message = ""};

        if (gpu_check_selector(wrong[i], &error) != -1)
            fail_msg("'%s' was taken", wrong[i]);
        assert_int_equal(error.code, EINVAL);
        assert_non_null(strstr(error.message, "expected an index as 0"));
        assert_null(strchr(error.message, '\n'));
    }
}

static void a_mig_device_is_found_where_its_environment_was_set(void **state)
{
    struct vgpu_error error;
    char buffer[GPU_ENVIRONMENT_BYTES];

    (void)state;
    assert_string_equal(gpu_select_environment(MIG, buffer), "CUDA_VISIBLE_DEVICES=" MIG);
    assert_null(gpu_select_environment(NULL, buffer));
    assert_null(gpu_select_environment("0", buffer));
    assert_null(gpu_select_environment("GPU-aaaaaaaa", buffer));
    assert_null(gpu_select_environment("MIG-$(reboot)", buffer));
    assert_int_equal(gpu_find(part, 1, MIG, &error), 0);
    assert_int_equal(gpu_find(part, 1, "MIG-GPU-aaaaaaaa-0000-0000-0000-000000000001/1/0", &error),
                     0);
    assert_int_equal(gpu_find(part, 1, "GPU-01234567", &error), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_are_described),
        cmocka_unit_test(a_mig_device_is_known_as_one),
        cmocka_unit_test(each_failing_question_is_the_result),
        cmocka_unit_test(an_index_an_address_and_a_uuid_find_a_device),
        cmocka_unit_test(what_is_not_there_is_answered_with_what_is),
        cmocka_unit_test(what_is_no_selector_is_told_what_one_is),
        cmocka_unit_test(a_mig_device_is_found_where_its_environment_was_set),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* gpu/cuda.c: all of libcuda or none of it, and why. */
#include "gpu_double.h"

#include <errno.h>

static void expect_refused(const char *path, int code, const char *words)
{
    struct cuda cuda = {.version = 7};
    struct vgpu_error error;

    assert_int_equal(cuda_load(path, &cuda, &error), -1);
    if (error.code != code || !strstr(error.message, words))
        fail_msg("expected %d and '%s', got %d: %s", code, words, error.code, error.message);
    assert_non_null(strstr(error.message, "install NVIDIA's driver"));
    assert_int_equal(cuda.version, 7);
    assert_null(cuda.handle);
}

#define IS_LOADED(member, symbol, need, parameters) assert_non_null(cuda.member);

static void a_whole_library_gives_every_function_and_its_version(void **state)
{
    struct vgpu_error error = {.message = ""};
    struct gpu_double own;
    struct cuda cuda;
    int count;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    assert_int_equal(cuda_load(own.path, &cuda, &error), 0);
    CUDA_FUNCTIONS(IS_LOADED)
    assert_int_equal(cuda.version, 13000);
    assert_int_equal(cuda.device_get_count(&count), CUDA_NOT_INITIALIZED); /* nobody did it */
    cuda_unload(&cuda);
    assert_null(cuda.handle);
    assert_null(cuda.init);
    cuda_unload(&cuda);
    cuda_unload(NULL);
    gpu_double_end(&own);
}

static void an_absent_library_is_told_with_what_to_install(void **state)
{
    (void)state;
    expect_refused("/nowhere/libcuda.so.1", ENOENT, "there is no /nowhere/libcuda.so.1");
    expect_refused("libcuda-that-nobody-has.so.1", ENOENT, "there is no libcuda-that-nobody-has");
}

static void a_file_that_is_no_library_cannot_be_loaded(void **state)
{
    struct gpu_double own;
    FILE *file;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    file = fopen(own.path, "we");
    assert_non_null(file);
    fputs("no library\n", file);
    fclose(file);
    expect_refused(own.path, ELIBBAD, "cannot be loaded");
    gpu_double_end(&own);
}

static void an_old_library_is_told_with_its_version_and_what_it_lacks(void **state)
{
    struct gpu_double own;

    (void)state;
    expect_refused(getenv("VGPU_FAKE_CUDA_OLD"), ENOTSUP,
                   "has CUDA 12.2, expected 12.4 or newer (it has no cuFuncGetParamInfo)");
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    gpu_double_order(&own, "version 11080\n");
    expect_refused(own.path, ENOTSUP, "has CUDA 11.8, expected 12.4 or newer: ");
    gpu_double_end(&own);
}

static void a_new_library_without_a_needed_function_is_refused(void **state)
{
    (void)state;
    expect_refused(getenv("VGPU_FAKE_CUDA_INCOMPLETE"), ELIBBAD, "but no cuFuncGetParamInfo");
}

static void a_library_that_is_no_libcuda_is_refused(void **state)
{
    (void)state;
    expect_refused("libm.so.6", ELIBBAD, "no cuDriverGetVersion");
}

static void a_library_that_hides_its_version_is_refused(void **state)
{
    struct gpu_double own;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    gpu_double_order(&own, "fail cuDriverGetVersion * 3\n");
    expect_refused(own.path, ELIBBAD, "CUDA_ERROR_NOT_INITIALIZED (3)");
    gpu_double_end(&own);
}

static void every_result_has_a_name(void **state)
{
    struct gpu_double own;
    struct cuda cuda = {.handle = NULL};
    struct vgpu_error error;

    (void)state;
    assert_string_equal(cuda_error_name(NULL, CUDA_SUCCESS), "CUDA_SUCCESS");
    assert_string_equal(cuda_error_name(NULL, 700), "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_string_equal(cuda_error_name(&cuda, 999), "CUDA_ERROR_UNKNOWN");
    assert_string_equal(cuda_error_name(NULL, -5), "an unknown CUDA error");
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    assert_int_equal(cuda_load(own.path, &cuda, &error), 0);
    assert_string_equal(cuda_error_name(&cuda, 2), "CUDA_ERROR_OUT_OF_MEMORY");
    assert_string_equal(cuda_error_name(&cuda, 12345), "an unknown CUDA error");
    gpu_double_order(&own, "fail cuGetErrorName * 999\n");
    assert_string_equal(cuda_error_name(&cuda, 2), "CUDA_ERROR_OUT_OF_MEMORY");
    cuda_unload(&cuda);
    gpu_double_end(&own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_library_gives_every_function_and_its_version),
        cmocka_unit_test(an_absent_library_is_told_with_what_to_install),
        cmocka_unit_test(a_file_that_is_no_library_cannot_be_loaded),
        cmocka_unit_test(an_old_library_is_told_with_its_version_and_what_it_lacks),
        cmocka_unit_test(a_new_library_without_a_needed_function_is_refused),
        cmocka_unit_test(a_library_that_is_no_libcuda_is_refused),
        cmocka_unit_test(a_library_that_hides_its_version_is_refused),
        cmocka_unit_test(every_result_has_a_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

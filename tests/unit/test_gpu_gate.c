/* SPDX-License-Identifier: Apache-2.0 */
/* gpu/gate*.c and vgpu-gpu-check: every way in which a GPU can fail to compute is told. */
#include "gpu_double.h"

#include "gpu/gpu.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

/* Longer than any step takes on a machine that is busy with other things. */
#define PATIENCE_MS 120000u

/* A step, what makes it fail, and with which result. */
static const struct {
    enum gpu_gate_step step;
    const char *orders;
    int code;
    const char *remedy;
} failures[] = {
    {GPU_STEP_LOAD, "version 12020", GPU_GATE_REFUSED, "install NVIDIA's driver"},
    {GPU_STEP_INIT, "fail cuInit * 100", CUDA_NO_DEVICE, "CUDA_VISIBLE_DEVICES"},
    {GPU_STEP_INIT, "fail cuInit * 999", CUDA_UNKNOWN, "modprobe nvidia-uvm"},
    {GPU_STEP_INIT, "fail cuInit * 803", CUDA_SYSTEM_DRIVER_MISMATCH, "different versions"},
    {GPU_STEP_INIT, "lost 1 214", CUDA_ECC_UNCORRECTABLE, "memory is damaged"},
    {GPU_STEP_COUNT, "fail cuDeviceGetCount * 802", CUDA_SYSTEM_NOT_READY, "fabricmanager"},
    {GPU_STEP_COUNT, "fail cuDeviceGetName * 101", CUDA_INVALID_DEVICE, "nvidia-smi"},
    {GPU_STEP_CONTEXT, "fail cuCtxCreate_v2 * 46", CUDA_DEVICE_UNAVAILABLE, "-c DEFAULT"},
    {GPU_STEP_CONTEXT, "fail cuCtxCreate_v2 * 2", CUDA_OUT_OF_MEMORY, "other processes"},
    {GPU_STEP_ALLOCATE, "memory_bytes 4096", CUDA_OUT_OF_MEMORY, "other processes"},
    {GPU_STEP_COPY_IN, "fail cuMemcpyHtoDAsync_v2 * 719", CUDA_LAUNCH_FAILED, "Xid"},
    {GPU_STEP_COPY_IN, "fail cuCtxSynchronize 1 719", CUDA_LAUNCH_FAILED, "Xid"},
    {GPU_STEP_MODULE, "fail cuModuleLoadDataEx * 221", CUDA_JIT_COMPILER_NOT_FOUND,
     "libnvidia-ptxjitcompiler1"},
    {GPU_STEP_MODULE, "fail cuModuleLoadDataEx * 222", CUDA_UNSUPPORTED_PTX_VERSION, "compile"},
    {GPU_STEP_LAUNCH, "fail cuModuleGetFunction * 500", CUDA_NOT_FOUND, "Xid"},
    {GPU_STEP_LAUNCH, "fail cuLaunchKernel * 701", CUDA_LAUNCH_OUT_OF_RESOURCES, "Xid"},
    {GPU_STEP_LAUNCH, "fail cuCtxSynchronize 2 700", CUDA_ILLEGAL_ADDRESS, "Xid"},
    {GPU_STEP_COPY_OUT, "fail cuMemcpyDtoHAsync_v2 * 716", CUDA_MISALIGNED_ADDRESS, "Xid"},
    {GPU_STEP_COMPARE, "skip gate", GPU_GATE_REFUSED, "computes wrongly"},
    {GPU_STEP_FREE, "fail cuModuleUnload * 4", CUDA_DEINITIALIZED, "Xid"},
    {GPU_STEP_FREE, "fail cuMemFree_v2 * 1", CUDA_INVALID_VALUE, "Xid"},
    {GPU_STEP_DESTROY, "fail cuCtxDestroy_v2 * 201", CUDA_INVALID_CONTEXT, "Xid"},
};

static struct gpu_gate_config config_of(const struct gpu_double *own)
{
    return (struct gpu_gate_config){
        .program = getenv("VGPU_GPU_CHECK"), .cuda_library = own->path, .deadline_ms = PATIENCE_MS};
}

static void expect_failure(const struct gpu_gate_report *report, enum gpu_gate_step step, int code,
                           const char *remedy)
{
    if (report->ok || report->step != step || report->code != code ||
        !strstr(report->remedy, remedy) || !report->message[0])
        fail_msg("expected %s %d '%s', got %s %d (%s): %s; %s", gpu_step_name(step), code, remedy,
                 gpu_step_name(report->step), report->code, report->name, report->message,
                 report->remedy);
}

static void no_child_is_left(void)
{
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

static void a_gpu_that_computes_passes_with_all_that_is_known(void **state)
{
    struct gpu_gate_report report = {.ok = false};
    struct gpu_gate_config config;
    struct gpu_double own;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    gpu_double_order(&own, "devices 3\n");
    config = config_of(&own);
    config.selector = "66:00.0";
    if (gpu_gate(&config, &report) < 0)
        fail_msg("%s: %s", gpu_step_name(report.step), report.message);
    assert_true(report.ok);
    assert_int_equal(report.code, CUDA_SUCCESS);
    assert_string_equal(report.remedy, "");
    assert_int_equal(report.driver_version, 13000);
    assert_true(report.has_device);
    assert_int_equal(report.device.index, 1);
    assert_string_equal(report.device.uuid, "GPU-00000000-0000-0000-0000-000000000001");
    assert_int_equal(report.device.capability_major, 9);
    for (int step = GPU_STEP_LOAD; step < GPU_STEPS; step++)
        assert_true(report.took_us[step] > 0);
    no_child_is_left();
    gpu_double_end(&own);
}

#define ROOM "memory_bytes 4294967296\n"

static void what_a_context_takes_is_measured_where_the_device_has_room_for_two(void **state)
{
    static const struct {
        const char *orders;
        uint64_t bytes;
    } cases[] = {
        {ROOM "context_bytes 549453824\n", 549453824},
        {"context_bytes 0\n", 0},
        {"context_bytes 549453824\n", 0}, /* of 1 GiB */
        {ROOM "context_bytes 549453824\nfail cuMemGetInfo_v2 * 1\n", 0},
        {ROOM "context_bytes 549453824\nfail cuCtxCreate_v2 2 46\n", 549453824} /* tried again */};
    struct gpu_gate_report report = {.ok = false};
    struct gpu_gate_config config;
    struct gpu_double own;
    char text[512];

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    config = config_of(&own);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++) {
        gpu_double_order(&own, cases[i].orders);
        assert_int_equal(gpu_gate(&config, &report), 0);
        assert_int_equal(report.context_bytes, cases[i].bytes);
        gpu_gate_describe(&report, text, sizeof(text));
        assert_true(!strstr(text, "a context takes 524 MiB") == !cases[i].bytes);
    }
    gpu_double_end(&own);
}

static void every_step_that_fails_is_told_with_its_remedy(void **state)
{
    struct gpu_gate_report report;
    struct gpu_gate_config config;
    struct gpu_double own;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    config = config_of(&own);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(failures); i++) {
        gpu_double_order(&own, failures[i].orders);
        assert_int_equal(gpu_gate(&config, &report), -1);
        expect_failure(&report, failures[i].step, failures[i].code, failures[i].remedy);
        if (failures[i].code > 0)
            assert_string_equal(report.name, cuda_error_name(NULL, failures[i].code));
        assert_true(report.has_device == (failures[i].step > GPU_STEP_SELECT));
    }
    no_child_is_left();
    gpu_double_end(&own);
}

static void a_gpu_that_is_not_there_is_told_at_select(void **state)
{
    struct gpu_gate_report report;
    struct gpu_gate_config config;
    struct gpu_double own;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    config = config_of(&own);
    config.selector = "5";
    assert_int_equal(gpu_gate(&config, &report), -1);
    expect_failure(&report, GPU_STEP_SELECT, GPU_GATE_REFUSED, "nvidia-smi -L");
    assert_non_null(strstr(report.message, "there are: 0 NVIDIA Fake"));
    gpu_double_end(&own);
}

static void a_mig_device_is_checked_alone(void **state)
{
    struct gpu_gate_report report = {.ok = false};
    struct gpu_gate_config config;
    struct gpu_double own;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    config = config_of(&own);
    config.selector = "MIG-01234567-89ab-cdef-0123-456789abcdef";
    assert_int_equal(gpu_gate(&config, &report), 0);
    assert_true(report.device.mig);
    assert_string_equal(report.device.uuid, config.selector);
    assert_null(getenv("CUDA_VISIBLE_DEVICES"));
    gpu_double_end(&own);
}

static void a_step_that_hangs_is_killed_and_named(void **state)
{
    static const struct {
        const char *orders;
        enum gpu_gate_step step;
    } hangs[] = {{"hang cuInit", GPU_STEP_INIT}, {"busy cuLaunchKernel 10000s", GPU_STEP_LAUNCH}};
    struct gpu_gate_report report;
    struct gpu_gate_config config;
    struct gpu_double own;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    config = config_of(&own);
    config.deadline_ms = 5000; /* enough to get there on a busy machine */
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(hangs); i++) {
        gpu_double_order(&own, hangs[i].orders);
        assert_int_equal(gpu_gate(&config, &report), -1);
        expect_failure(&report, hangs[i].step, GPU_GATE_TIMEOUT, "the driver hangs");
        assert_string_equal(report.name, "timeout");
        assert_non_null(strstr(report.message, "5000 ms"));
    }
    no_child_is_left();
    gpu_double_end(&own);
}

static void a_library_that_crashes_harms_nobody_else(void **state)
{
    struct gpu_gate_report report;
    struct gpu_gate_config config;
    struct gpu_double own;

    (void)state;
    gpu_double_begin(&own, "VGPU_FAKE_CUDA");
    gpu_double_order(&own, "crash cuModuleLoadDataEx\n");
    config = config_of(&own);
    assert_int_equal(gpu_gate(&config, &report), -1);
    expect_failure(&report, GPU_STEP_MODULE, GPU_GATE_CRASHED, "crashes");
    no_child_is_left();
    gpu_double_end(&own);
}

static void an_absent_library_is_told_at_load(void **state)
{
    struct gpu_gate_config config = {.program = getenv("VGPU_GPU_CHECK"),
                                     .cuda_library = "/nowhere/libcuda.so.1"};
    struct gpu_gate_report report;

    (void)state;
    assert_int_equal(gpu_gate(&config, &report), -1);
    expect_failure(&report, GPU_STEP_LOAD, GPU_GATE_REFUSED, "install NVIDIA's driver");
    assert_non_null(strstr(report.message, "there is no /nowhere/libcuda.so.1"));
}

static void a_program_that_cannot_run_is_told_at_start(void **state)
{
    struct gpu_gate_config config = {.program = "/nowhere/vgpu-gpu-check"};
    struct gpu_gate_report report;

    (void)state;
    assert_int_equal(gpu_gate(&config, &report), -1);
    expect_failure(&report, GPU_STEP_START, GPU_GATE_REFUSED, "vgpu-gpu-check is installed");
    config.program = "/bin/true"; /* another one */
    assert_int_equal(gpu_gate(&config, &report), -1);
    expect_failure(&report, GPU_STEP_START, GPU_GATE_CRASHED, "vgpu-gpu-check is installed");
    no_child_is_left();
}

static void a_report_survives_printing_and_reading(void **state)
{
    struct gpu_gate_report in = {
        .step = GPU_STEP_LAUNCH,
        .code = 700,
        .message = "a \"word\" and \xff",
        .has_device = true,
        .device = {1, "NVIDIA H100", "GPU-1", "0000:65:00.0", 85899345920, 9, 0, 132},
        .driver_version = 12040,
        .context_bytes = 549453824,
        .took_us = {[GPU_STEP_INIT] = 123456}};
    struct gpu_gate_report out = {.ok = true};
    struct vgpu_error error;
    char *line;

    (void)state;
    gpu_gate_explain(NULL, &in);
    line = gpu_gate_print(&in);
    assert_non_null(line);
    assert_null(strchr(line, '\n'));
    assert_int_equal(gpu_gate_parse(line, &out, &error), 0);
    free(line);
    assert_false(out.ok);
    assert_int_equal(out.step, GPU_STEP_LAUNCH);
    assert_int_equal(out.code, 700);
    assert_string_equal(out.name, "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_string_equal(out.message, "a \"word\" and \\xff");
    assert_string_equal(out.remedy, in.remedy);
    assert_int_equal(out.device.memory_bytes, in.device.memory_bytes);
    assert_int_equal(out.device.capability_major, 9);
    assert_int_equal(out.context_bytes, 549453824);
    assert_int_equal(out.took_us[GPU_STEP_INIT], 123456);
}

static void lines_that_are_no_report_are_refused(void **state)
{
    static const char *const wrong[] = {"",
                                        "hello",
                                        "[]",
                                        "{}",
                                        "{\"step\": \"dance\"}",
                                        "{\"ok\": true}",
                                        "\"init\"",
                                        "{\"step\": 7, \"ok\": true}"};
    struct gpu_gate_report report = {.driver_version = 7};
    struct vgpu_error error;

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(wrong); i++) {
        assert_int_equal(gpu_gate_parse(wrong[i], &report, &error), -1);
        assert_int_equal(error.code, EINVAL);
        assert_int_equal(report.driver_version, 7);
    }
    assert_int_equal(gpu_gate_parse("{\"step\":\"init\"}", &report, &error), 0);
    assert_false(report.ok);
    assert_int_equal(report.step, GPU_STEP_INIT);
}

static void a_process_of_ones_own_is_judged_the_same_way(void **state)
{
    struct gpu_gate_config config = {.cuda_library = "/lib", .selector = "1"};
    const char *arguments[GPU_GATE_ARGUMENTS_MAX];
    struct gpu_gate_report report;

    (void)state;
    gpu_gate_arguments(&config, "/program", arguments);
    assert_string_equal(arguments[0], "/program");
    assert_string_equal(arguments[2], "/lib");
    assert_string_equal(arguments[4], "1");
    assert_null(arguments[5]);
    gpu_gate_judge("{\"step\":\"load\"}\n{\"step\":\"init\"}\n{\"st", SIGKILL, true, 9, &report);
    expect_failure(&report, GPU_STEP_INIT, GPU_GATE_TIMEOUT, "hangs");
    gpu_gate_judge("", SIGSEGV, false, 9, &report);
    expect_failure(&report, GPU_STEP_START, GPU_GATE_CRASHED, "");
    gpu_gate_judge("{\"ok\":true,\"step\":\"destroy\"}\n", SIGKILL, true, 9, &report);
    assert_true(report.ok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gpu_that_computes_passes_with_all_that_is_known),
        cmocka_unit_test(what_a_context_takes_is_measured_where_the_device_has_room_for_two),
        cmocka_unit_test(every_step_that_fails_is_told_with_its_remedy),
        cmocka_unit_test(a_gpu_that_is_not_there_is_told_at_select),
        cmocka_unit_test(a_mig_device_is_checked_alone),
        cmocka_unit_test(a_step_that_hangs_is_killed_and_named),
        cmocka_unit_test(a_library_that_crashes_harms_nobody_else),
        cmocka_unit_test(an_absent_library_is_told_at_load),
        cmocka_unit_test(a_program_that_cannot_run_is_told_at_start),
        cmocka_unit_test(a_report_survives_printing_and_reading),
        cmocka_unit_test(lines_that_are_no_report_are_refused),
        cmocka_unit_test(a_process_of_ones_own_is_judged_the_same_way),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

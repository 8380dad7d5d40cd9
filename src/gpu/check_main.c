/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-gpu-check: one after the other the steps that any use of a GPU takes, told before each.
 * Started by the sanity gate (gate.c), which bounds its time; see gpu.h for what it prints.
 */
#include "gpu/gpu.h"

#include <argp.h>
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define WORDS 4096u
#define THREADS 256u
#define LOG_BYTES 256
#define MEASURES_MAX 2 /* of what a context takes, where others are at work */

const char *argp_program_version = "vgpu-gpu-check " VGPU_PACKAGE_VERSION;

/* x[i] = x[i] * 7 + 3, for any GPU from Volta on. */
static const char program_ptx[] = ".version 6.4\n"
                                  ".target sm_70\n"
                                  ".address_size 64\n"
                                  ".visible .entry gate(.param .u64 x, .param .u64 count)\n"
                                  "{\n"
                                  "    .reg .pred %done;\n"
                                  "    .reg .u32 %block, %threads, %thread, %value;\n"
                                  "    .reg .u64 %address, %index, %limit, %offset;\n"
                                  "    ld.param.u64 %address, [x];\n"
                                  "    ld.param.u64 %limit, [count];\n"
                                  "    mov.u32 %block, %ctaid.x;\n"
                                  "    mov.u32 %threads, %ntid.x;\n"
                                  "    mov.u32 %thread, %tid.x;\n"
                                  "    mad.lo.u32 %value, %block, %threads, %thread;\n"
                                  "    cvt.u64.u32 %index, %value;\n"
                                  "    setp.ge.u64 %done, %index, %limit;\n"
                                  "    @%done bra END;\n"
                                  "    cvta.to.global.u64 %address, %address;\n"
                                  "    shl.b64 %offset, %index, 2;\n"
                                  "    add.u64 %address, %address, %offset;\n"
                                  "    ld.global.u32 %value, [%address];\n"
                                  "    mad.lo.u32 %value, %value, 7, 3;\n"
                                  "    st.global.u32 [%address], %value;\n"
                                  "END:\n"
                                  "    ret;\n"
                                  "}\n";

struct check {
    const char *library, *selector;
    struct cuda cuda;
    struct gpu_gate_report report;
    struct gpu_device devices[GPU_DEVICES_MAX];
    size_t device_count;
    cuda_context context;
    cuda_pointer address;
    cuda_module module;
    uint32_t words[WORDS];
};

/* Each gives a result of CUDA's, or GPU_GATE_REFUSED with a message. */
typedef int step_function(struct check *check);

/* --- the steps
 * ---------------------------------------------------------------------------------------- */

static int refuse(struct check *check, const struct vgpu_error *error)
{
    text_copy(check->report.message, sizeof(check->report.message), error->message);
    return GPU_GATE_REFUSED;
}

static int load(struct check *check)
{
    struct vgpu_error error;

    if (cuda_load(check->library, &check->cuda, &error) < 0)
        return refuse(check, &error);
    check->report.driver_version = check->cuda.version;
    return CUDA_SUCCESS;
}

static int init(struct check *check)
{
    return check->cuda.init(0);
}

static int count(struct check *check)
{
    cuda_result result = gpu_list_devices(&check->cuda, check->devices, &check->device_count);

    return result == CUDA_SUCCESS && check->device_count == 0 ? CUDA_NO_DEVICE : result;
}

static int select_device(struct check *check)
{
    struct vgpu_error error;
    int found = gpu_find(check->devices, check->device_count, check->selector, &error);

    if (found < 0)
        return refuse(check, &error);
    check->report.has_device = true;
    check->report.device = check->devices[found];
    return CUDA_SUCCESS;
}

/* 0: it does not say. */
static size_t free_bytes(const struct check *check)
{
    size_t bytes, all_bytes;

    return check->cuda.mem_get_info(&bytes, &all_bytes) == CUDA_SUCCESS ? bytes : 0;
}

/* What the GPU has less of while there is another context; 0: it cannot be had, or others took
 * or gave back something meanwhile. */
static size_t measure_context(const struct check *check, cuda_device device)
{
    size_t before = free_bytes(check), during;
    cuda_context other;

    if (check->cuda.ctx_create(&other, CUDA_CONTEXT_SCHED_BLOCKING_SYNC | CUDA_CONTEXT_MAP_HOST,
                               device) != CUDA_SUCCESS)
        return 0;
    during = free_bytes(check);
    if (check->cuda.ctx_destroy(other) != CUDA_SUCCESS ||
        check->cuda.ctx_set_current(check->context) != CUDA_SUCCESS)
        return 0;
    return during > 0 && during < before && free_bytes(check) == before ? before - during : 0;
}

static int make_context(struct check *check)
{
    cuda_device device;
    cuda_result result = check->cuda.device_get(&device, check->report.device.index);

    if (result != CUDA_SUCCESS)
        return result;
    result = check->cuda.ctx_create(&check->context, CUDA_CONTEXT_SCHED_BLOCKING_SYNC, device);
    for (int i = 0; result == CUDA_SUCCESS && i < MEASURES_MAX && !check->report.context_bytes; i++)
        check->report.context_bytes = measure_context(check, device);
    return result == CUDA_SUCCESS ? check->cuda.ctx_set_current(check->context) : result;
}

static int allocate(struct check *check)
{
    return check->cuda.mem_alloc(&check->address, sizeof(check->words));
}

static int copy_in(struct check *check)
{
    cuda_result result;

    for (uint32_t i = 0; i < WORDS; i++)
        check->words[i] = i;
    result =
        check->cuda.memcpy_htod_async(check->address, check->words, sizeof(check->words), NULL);
    return result == CUDA_SUCCESS ? check->cuda.ctx_synchronize() : result;
}

static int load_module(struct check *check)
{
    char log[LOG_BYTES] = "";
    cuda_jit_option options[] = {CUDA_JIT_ERROR_LOG_BUFFER, CUDA_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void *values[] = {log, (void *)(uintptr_t)sizeof(log)};
    cuda_result result = check->cuda.module_load_data_ex(
        &check->module, program_ptx, VGPU_ARRAY_LENGTH(options), options, values);

    log[sizeof(log) - 1] = '\0';
    if (result != CUDA_SUCCESS && log[0])
        text_escape(check->report.message, sizeof(check->report.message), log, strlen(log));
    return result;
}

static int launch(struct check *check)
{
    uint64_t word_count = WORDS;
    void *parameters[] = {&check->address, &word_count};
    cuda_function function;
    cuda_result result = check->cuda.module_get_function(&function, check->module, "gate");

    if (result == CUDA_SUCCESS)
        result = check->cuda.launch_kernel(function, WORDS / THREADS, 1, 1, THREADS, 1, 1, 0, NULL,
                                           parameters, NULL);
    return result == CUDA_SUCCESS ? check->cuda.ctx_synchronize() : result;
}

static int copy_out(struct check *check)
{
    cuda_result result =
        check->cuda.memcpy_dtoh_async(check->words, check->address, sizeof(check->words), NULL);

    return result == CUDA_SUCCESS ? check->cuda.ctx_synchronize() : result;
}

static int compare(struct check *check)
{
    for (uint32_t i = 0; i < WORDS; i++) {
        if (check->words[i] == i * 7 + 3)
            continue;
        snprintf(check->report.message, sizeof(check->report.message),
                 "the GPU computed %u * 7 + 3 = %u, expected %u", i, check->words[i], i * 7 + 3);
        return GPU_GATE_REFUSED;
    }
    return CUDA_SUCCESS;
}

static int free_memory(struct check *check)
{
    cuda_result result = check->cuda.module_unload(check->module);

    return result == CUDA_SUCCESS ? check->cuda.mem_free(check->address) : result;
}

static int destroy(struct check *check)
{
    return check->cuda.ctx_destroy(check->context);
}

static step_function *const steps[GPU_STEPS] = {
    [GPU_STEP_LOAD] = load,
    [GPU_STEP_INIT] = init,
    [GPU_STEP_COUNT] = count,
    [GPU_STEP_SELECT] = select_device,
    [GPU_STEP_CONTEXT] = make_context,
    [GPU_STEP_ALLOCATE] = allocate,
    [GPU_STEP_COPY_IN] = copy_in,
    [GPU_STEP_MODULE] = load_module,
    [GPU_STEP_LAUNCH] = launch,
    [GPU_STEP_COPY_OUT] = copy_out,
    [GPU_STEP_COMPARE] = compare,
    [GPU_STEP_FREE] = free_memory,
    [GPU_STEP_DESTROY] = destroy,
};

/* --- running them
 * --------------------------------------------------------------------------------------- */

static void describe(struct check *check, int code)
{
    struct gpu_gate_report *report = &check->report;
    const char *text = NULL;

    report->code = code;
    gpu_gate_explain(&check->cuda, report);
    if (report->message[0])
        return;
    if (check->cuda.get_error_string && check->cuda.get_error_string(code, &text) != CUDA_SUCCESS)
        text = NULL;
    snprintf(report->message, sizeof(report->message), "the step '%s' failed: %s (%d)%s%s",
             gpu_step_name(report->step), report->name, code, text ? ": " : "", text ? text : "");
}

static void run(struct check *check)
{
    struct gpu_gate_report *report = &check->report;

    for (int step = GPU_STEP_LOAD; step < GPU_STEPS; step++) {
        uint64_t begin_ns = clock_monotonic_ns();
        int code;

        report->step = (enum gpu_gate_step)step;
        printf("{\"step\":\"%s\"}\n", gpu_step_name(report->step));
        fflush(stdout);
        code = steps[step](check);
        report->took_us[step] = (clock_monotonic_ns() - begin_ns) / NS_PER_US + 1;
        if (code != CUDA_SUCCESS) {
            describe(check, code);
            return;
        }
    }
    report->ok = true;
    gpu_gate_explain(&check->cuda, report);
}

/* --- options
 * ---------------------------------------------------------------------------------------------- */

static const struct argp_option option_table[] = {
    {"library", 'l', "FILE", 0, "Load FILE (default: libcuda.so.1)", 0},
    {"user", 'u', "UID:GID", 0, "Become this user and group, and no other group", 0},
    {"device", 'd', "GPU", 0, "Index, GPU-UUID, PCI address or MIG-UUID (default: the first)", 0},
    {0},
};

/* As the workers are, who may be allowed less than who asks. */
static int become(const char *user, struct vgpu_error *error)
{
    const char *colon = strchr(user, ':');
    char text[16] = "";
    uint64_t uid, gid;

    if (colon && (size_t)(colon - user) < sizeof(text))
        memcpy(text, user, (size_t)(colon - user));
    if (!colon || !text_parse_u64(text, 0, UINT32_MAX - 1, &uid) ||
        !text_parse_u64(colon + 1, 0, UINT32_MAX - 1, &gid))
        return error_set(error, EINVAL, "--user '%s': expected two numbers, such as 65534:65534",
                         user);
    if (setgroups(0, NULL) < 0 || setresgid((gid_t)gid, (gid_t)gid, (gid_t)gid) < 0 ||
        setresuid((uid_t)uid, (uid_t)uid, (uid_t)uid) < 0)
        return error_set_errno(error, "cannot become user and group %s", user);
    return 0;
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct check *check = state->input;
    struct vgpu_error error;

    switch (key) {
    case 'l':
        check->library = value;
        return 0;
    case 'd':
        if (gpu_check_selector(value, &error) < 0)
            argp_error(state, "%s", error.message);
        check->selector = value;
        return 0;
    case 'u':
        if (become(value, &error) < 0)
            argp_error(state, "%s", error.message);
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s': this program takes only options", value);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = option_table,
    .parser = parse_option,
    .doc = "Does on a GPU what any use of it takes, and prints how that went, as JSON lines.  "
           "vgpu-mediator --check-gpu starts it, with a deadline.",
};

/* Before the library reads them. */
static void set_environment(const char *selector)
{
    static char order[] = GPU_ORDER_ENVIRONMENT;
    static char buffer[GPU_ENVIRONMENT_BYTES];

    putenv(order);
    if (gpu_select_environment(selector, buffer))
        putenv(buffer);
}

int main(int argc, char **argv)
{
    static struct check check;
    char *line;

    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &check);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody would read it */
    prctl(PR_SET_DUMPABLE, 0);
    set_environment(check.selector);
    run(&check);
    line = gpu_gate_print(&check.report);
    if (!line)
        return 3;
    puts(line);
    fflush(stdout);
    free(line);
    /* Not through exit(): a driver's own last words may hang. */
    _Exit(check.report.ok ? EXIT_SUCCESS : EXIT_FAILURE);
}

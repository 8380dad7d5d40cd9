/* SPDX-License-Identifier: Apache-2.0 */
/* What the sanity gate found, as one line of JSON and back, and what to do about it. */
#include "gpu/gpu.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static const char *const step_names[GPU_STEPS] = {
    "start",   "load",   "init",   "count",    "select",  "context", "allocate",
    "copy-in", "module", "launch", "copy-out", "compare", "free",    "destroy",
};

const char *gpu_step_name(enum gpu_gate_step step)
{
    return step_names[step];
}

static int find_step(const char *name)
{
    for (int step = 0; step < GPU_STEPS; step++) {
        if (strcmp(step_names[step], name) == 0)
            return step;
    }
    return -1;
}

/* --- what to do
 * ------------------------------------------------------------------------------------- */

#define ANY_STEP (-1)
#define ANY_CODE (-100)

#define DMESG "look for Xid and NVRM in dmesg"

/* The first line that fits counts. */
static const struct {
    int step, code;
    const char *text;
} remedies[] = {
    {GPU_STEP_START, ANY_CODE, "see that vgpu-gpu-check is installed and may be run by this user"},
    {ANY_STEP, GPU_GATE_TIMEOUT,
     "the driver hangs: " DMESG "; reset the GPU (nvidia-smi --gpu-reset) or restart the machine. "
     "A first start without nvidia-persistenced can take 10 s: give it a longer deadline"},
    {ANY_STEP, GPU_GATE_CRASHED,
     "NVIDIA's library crashes: " DMESG "; install driver and library of one version"},
    {GPU_STEP_LOAD, ANY_CODE,
     "install NVIDIA's driver " CUDA_DRIVER_MIN " or newer with its CUDA library (Debian: "
     "libcuda1), of the same version as its kernel module"},
    {ANY_STEP, CUDA_ECC_UNCORRECTABLE,
     "the GPU's memory is damaged: nvidia-smi -q -d ECC,ROW_REMAPPER; reset the GPU; replace it "
     "when it comes again"},
    {ANY_STEP, CUDA_NVLINK_UNCORRECTABLE,
     "a link between GPUs is damaged: nvidia-smi nvlink -e; reset the GPUs"},
    {ANY_STEP, CUDA_STUB_LIBRARY,
     "this is the CUDA toolkit's stub: take its stubs/ folder out of the library path"},
    {ANY_STEP, CUDA_SYSTEM_DRIVER_MISMATCH,
     "library and kernel module are of different versions: restart the machine, or load the "
     "module anew, after an update of the driver"},
    {ANY_STEP, CUDA_COMPAT_NOT_SUPPORTED_ON_DEVICE,
     "the library is one of a compatibility package: use that of the driver itself"},
    {ANY_STEP, CUDA_SYSTEM_NOT_READY,
     "GPUs that are joined by NVSwitch need their service: systemctl start nvidia-fabricmanager"},
    {ANY_STEP, CUDA_NO_DEVICE,
     "see what nvidia-smi lists, that CUDA_VISIBLE_DEVICES hides nothing, and that /dev/nvidia* "
     "are there and may be opened (nvidia-modprobe -u -c 0)"},
    {ANY_STEP, CUDA_NOT_PERMITTED,
     "this user may not use the GPU: look at the owner and mode of /dev/nvidia*, and at AppArmor"},
    {ANY_STEP, CUDA_OPERATING_SYSTEM,
     "the system refused the driver something: look at /dev/nvidia*, limits of memory and of open "
     "files, AppArmor; " DMESG},
    {ANY_STEP, CUDA_DEVICE_NOT_LICENSED, "this is a vGPU of NVIDIA's without a licence"},
    {GPU_STEP_INIT, ANY_CODE,
     "see that all of the driver's modules are loaded: modprobe "
     "nvidia-uvm; then nvidia-smi; " DMESG},
    {GPU_STEP_COUNT, ANY_CODE, "see what nvidia-smi lists; " DMESG},
    {GPU_STEP_SELECT, ANY_CODE, "name a GPU that is there: nvidia-smi -L lists them"},
    {GPU_STEP_CONTEXT, CUDA_OUT_OF_MEMORY,
     "other processes fill the GPU's memory: nvidia-smi lists them"},
    {GPU_STEP_CONTEXT, CUDA_DEVICE_UNAVAILABLE,
     "the GPU is kept for one process or for none: nvidia-smi -c DEFAULT"},
    {GPU_STEP_CONTEXT, CUDA_INVALID_DEVICE,
     "the GPU is kept for one process or for none: nvidia-smi -c DEFAULT"},
    {ANY_STEP, CUDA_OUT_OF_MEMORY, "other processes fill the GPU's memory: nvidia-smi lists them"},
    {GPU_STEP_MODULE, CUDA_JIT_COMPILER_NOT_FOUND,
     "install the driver's PTX compiler (Debian: libnvidia-ptxjitcompiler1), of the same version"},
    {GPU_STEP_MODULE, CUDA_JIT_COMPILATION_DISABLED,
     "take CUDA_DISABLE_PTX_JIT out of the environment"},
    {GPU_STEP_MODULE, CUDA_NO_BINARY_FOR_GPU, "the GPU is older than Volta (compute 7.0)"},
    {GPU_STEP_MODULE, ANY_CODE,
     "the driver does not compile a small program: is the GPU older than Volta (compute 7.0)? "
     "Else install the driver anew"},
    {GPU_STEP_COMPARE, ANY_CODE,
     "the GPU computes wrongly: use it for nothing; " DMESG "; reset it; replace it when it comes "
     "again"},
    {ANY_STEP, ANY_CODE, DMESG "; reset the GPU (nvidia-smi --gpu-reset) or restart the machine"},
};

static const char *find_remedy(const struct gpu_gate_report *report)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(remedies); i++) {
        if ((remedies[i].step == ANY_STEP || remedies[i].step == (int)report->step) &&
            (remedies[i].code == ANY_CODE || remedies[i].code == report->code))
            return remedies[i].text;
    }
    return "";
}

static const char *name_of(const struct cuda *cuda, int code)
{
    switch (code) {
    case GPU_GATE_REFUSED:
        return "refused";
    case GPU_GATE_CRASHED:
        return "crash";
    case GPU_GATE_TIMEOUT:
        return "timeout";
    default:
        return cuda_error_name(cuda, code);
    }
}

void gpu_gate_explain(const struct cuda *cuda, struct gpu_gate_report *report)
{
    text_copy(report->name, sizeof(report->name), name_of(cuda, report->code));
    text_copy(report->remedy, sizeof(report->remedy), report->ok ? "" : find_remedy(report));
}

/* --- printing
 * ------------------------------------------------------------------------------------------ */

/* A driver's text need not be UTF-8. */
static json_t *safe_string(const char *text)
{
    json_t *string = json_string(text);
    char escaped[4 * VGPU_ERROR_BYTES];

    if (string)
        return string;
    text_escape(escaped, sizeof(escaped), text, strlen(text));
    return json_string(escaped);
}

static json_t *device_json(const struct gpu_device *device)
{
    char capability[24];

    snprintf(capability, sizeof(capability), "%d.%d", device->capability_major,
             device->capability_minor);
    return json_pack("{s:i, s:o, s:s, s:s, s:I, s:s, s:i, s:b}", "index", device->index, "name",
                     safe_string(device->name), "uuid", device->uuid, "address", device->address,
                     "memory_bytes", (json_int_t)device->memory_bytes, "compute_capability",
                     capability, "multiprocessors", device->multiprocessors, "mig", device->mig);
}

static json_t *times_json(const struct gpu_gate_report *report)
{
    json_t *times = json_object();

    for (int step = 0; step < GPU_STEPS; step++) {
        if (report->took_us[step])
            json_object_set_new(times, step_names[step],
                                json_real((double)report->took_us[step] / (double)US_PER_MS));
    }
    return times;
}

char *gpu_gate_print(const struct gpu_gate_report *report)
{
    json_t *object = json_pack(
        "{s:b, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "ok", report->ok, "step",
        step_names[report->step], "error",
        report->ok ? json_null()
                   : json_pack("{s:i, s:s, s:o}", "code", report->code, "name", report->name,
                               "message", safe_string(report->message)),
        "remedy", report->ok ? json_null() : safe_string(report->remedy), "driver_version",
        report->driver_version ? json_integer(report->driver_version) : json_null(), "device",
        report->has_device ? device_json(&report->device) : json_null(), "context_bytes",
        report->context_bytes ? json_integer((json_int_t)report->context_bytes) : json_null(),
        "took_ms", times_json(report));
    char *line = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;

    json_decref(object);
    return line;
}

void gpu_gate_describe(const struct gpu_gate_report *report, char *text, size_t bytes)
{
    const struct gpu_device *device = &report->device;
    uint64_t all_us = 0;
    char context[64] = "";

    if (report->context_bytes)
        snprintf(context, sizeof(context), "; a context takes %.0f MiB",
                 (double)report->context_bytes / (double)(1u << 20));
    for (int step = 0; step < GPU_STEPS; step++)
        all_us += report->took_us[step];
    if (!report->ok)
        snprintf(text, bytes, "step '%s' of the check: %s (%s)", step_names[report->step],
                 report->message, report->name);
    else
        snprintf(text, bytes,
                 "GPU %d, %s, %s, at %s: %.1f GiB, compute %d.%d, %d multiprocessors, CUDA %d.%d; "
                 "it computes (%.0f ms)%s",
                 device->index, device->name, device->uuid, device->address,
                 (double)device->memory_bytes / (double)(1ull << 30), device->capability_major,
                 device->capability_minor, device->multiprocessors, report->driver_version / 1000,
                 report->driver_version % 1000 / 10, (double)all_us / (double)US_PER_MS, context);
}

/* --- reading
 * ------------------------------------------------------------------------------------------- */

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* 0: not known. */
static uint64_t read_bytes(const json_t *object, const char *key)
{
    json_int_t bytes = json_integer_value(json_object_get(object, key));

    return bytes > 0 ? (uint64_t)bytes : 0;
}

static void read_device(const json_t *object, struct gpu_device *device)
{
    char *minor;

    *device = (struct gpu_device){
        .index = (int)json_integer_value(json_object_get(object, "index")),
        .memory_bytes = (uint64_t)json_integer_value(json_object_get(object, "memory_bytes")),
        .multiprocessors = (int)json_integer_value(json_object_get(object, "multiprocessors")),
        .mig = json_is_true(json_object_get(object, "mig")),
    };
    text_copy(device->name, sizeof(device->name), text_of(object, "name"));
    text_copy(device->uuid, sizeof(device->uuid), text_of(object, "uuid"));
    text_copy(device->address, sizeof(device->address), text_of(object, "address"));
    device->capability_major = (int)strtol(text_of(object, "compute_capability"), &minor, 10);
    device->capability_minor = *minor == '.' ? (int)strtol(minor + 1, NULL, 10) : 0;
}

static void read_report(const json_t *object, struct gpu_gate_report *report)
{
    const json_t *device = json_object_get(object, "device");
    const json_t *problem = json_object_get(object, "error");

    report->ok = json_is_true(json_object_get(object, "ok"));
    report->code = (int)json_integer_value(json_object_get(problem, "code"));
    if (!report->ok && report->code == CUDA_SUCCESS)
        report->code = GPU_GATE_REFUSED;
    text_copy(report->name, sizeof(report->name),
              report->ok ? "CUDA_SUCCESS" : text_of(problem, "name"));
    text_copy(report->message, sizeof(report->message), text_of(problem, "message"));
    text_copy(report->remedy, sizeof(report->remedy), text_of(object, "remedy"));
    report->driver_version = (int)json_integer_value(json_object_get(object, "driver_version"));
    report->context_bytes = read_bytes(object, "context_bytes");
    report->has_device = json_is_object(device);
    if (report->has_device)
        read_device(device, &report->device);
    for (int step = 0; step < GPU_STEPS; step++) {
        const json_t *took = json_object_get(json_object_get(object, "took_ms"), step_names[step]);

        report->took_us[step] = (uint64_t)(json_number_value(took) * (double)US_PER_MS);
    }
}

int gpu_gate_parse(const char *line, struct gpu_gate_report *ret_report, struct vgpu_error *error)
{
    struct gpu_gate_report report = {.code = GPU_GATE_CRASHED};
    json_error_t problem;
    json_t *object = json_loads(line, JSON_REJECT_DUPLICATES, &problem);
    int step = object ? find_step(text_of(object, "step")) : -1;

    if (step < 0) {
        json_decref(object);
        return error_set(error, EINVAL,
                         "vgpu-gpu-check printed no report, expected {\"ok\": …, \"step\": …}, "
                         "got: %.200s",
                         line);
    }
    report.step = (enum gpu_gate_step)step;
    if (json_object_get(object, "ok"))
        read_report(object, &report);
    json_decref(object);
    *ret_report = report;
    return 0;
}

/* --- judging a process that has ended
 * ----------------------------------------------------------------- */

/* The last whole line; NULL when there is none. */
static char *last_line(char *text)
{
    char *end = strrchr(text, '\n'), *line;

    if (!end)
        return NULL;
    *end = '\0';
    line = strrchr(text, '\n');
    return line ? line + 1 : text;
}

static void tell_end(struct gpu_gate_report *report, int status, bool timed_out,
                     uint32_t deadline_ms)
{
    report->ok = false;
    report->code = timed_out ? GPU_GATE_TIMEOUT : GPU_GATE_CRASHED;
    if (timed_out)
        snprintf(report->message, sizeof(report->message), "the step '%s' was not over after %u ms",
                 step_names[report->step], deadline_ms);
    else if (WIFSIGNALED(status))
        snprintf(report->message, sizeof(report->message), "the step '%s' ended the process: %s",
                 step_names[report->step], strsignal(WTERMSIG(status)));
    else
        snprintf(report->message, sizeof(report->message),
                 "the step '%s' ended the process with status %d and no report",
                 step_names[report->step], WEXITSTATUS(status));
    gpu_gate_explain(NULL, report);
}

void gpu_gate_judge(const char *output, int status, bool timed_out, uint32_t deadline_ms,
                    struct gpu_gate_report *ret_report)
{
    struct gpu_gate_report report = {.code = GPU_GATE_CRASHED};
    char *copy = strdup(output), *line = copy ? last_line(copy) : NULL;

    if (line && gpu_gate_parse(line, &report, NULL) < 0)
        report = (struct gpu_gate_report){.code = GPU_GATE_CRASHED};
    free(copy);
    /* A report that came counts, whatever the driver did when the process ended. */
    if (!report.ok && report.code == GPU_GATE_CRASHED)
        tell_end(&report, status, timed_out, deadline_ms);
    *ret_report = report;
}

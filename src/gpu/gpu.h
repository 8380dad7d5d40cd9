/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu/ - NVIDIA's GPUs as this host sees them, through libraries that are loaded at run time.
 *
 *   cuda.h, cuda.c      libcuda's functions
 *   devices.c           which GPUs there are, and which of them a name means
 *   gate.c              the sanity gate: does a GPU compute?  Asked in another process
 *   gate_report.c       what that process says, and what to do about it
 *   check_main.c        vgpu-gpu-check, the process
 *   nvml.h, nvml.c      libnvidia-ml's functions
 *   health.h, health*.c how the GPUs are: a thread that watches them
 *   xid.c               what the errors mean that the driver reports
 */
#ifndef VGPU_GPU_H
#define VGPU_GPU_H

#include "gpu/cuda.h"
#include "gpu/health.h"

/* --- devices (devices.c) ----------------------------------------------------------------- */

#define GPU_DEVICES_MAX 64
#define GPU_NAME_BYTES 128
#define GPU_UUID_BYTES 48    /* "GPU-" or "MIG-" and 36 characters */
#define GPU_ADDRESS_BYTES 16 /* "0000:65:00.0" */
#define GPU_ENVIRONMENT_BYTES 160

struct gpu_device {
    int index; /* as CUDA counts: see GPU_ORDER_ENVIRONMENT */
    char name[GPU_NAME_BYTES];
    char uuid[GPU_UUID_BYTES];
    char address[GPU_ADDRESS_BYTES]; /* on the PCI bus, lower case; a MIG device has its GPU's */
    uint64_t memory_bytes;
    int capability_major, capability_minor; /* of computing: 9 and 0 are an H100's */
    int multiprocessors;
    bool mig; /* a part of a GPU */
};

/* What to put into the environment before init(): GPUs are counted by PCI address, as
 * nvidia-smi counts them, and not the fastest first. */
#define GPU_ORDER_ENVIRONMENT "CUDA_DEVICE_ORDER=PCI_BUS_ID"

/* All that CUDA shows to this process, after init(); *ret_count is 0..GPU_DEVICES_MAX.
 * Gives the first result that is not CUDA_SUCCESS; the outputs are untouched then. */
cuda_result gpu_list_devices(const struct cuda *cuda, struct gpu_device devices[GPU_DEVICES_MAX],
                             size_t *ret_count);

/*
 * Which of `count` devices the selector means: NULL or "" the first, "1" an index, "GPU-…" a
 * UUID or its unique beginning of at least 8 characters, "65:00.0" or "0000:65:00.0" a PCI
 * address, "MIG-…" a MIG device.  Returns its place in `devices`, or -1 with ENODEV (there is
 * none such: the message lists what there is) or EINVAL (the selector is none, or means
 * several).
 */
int gpu_find(const struct gpu_device *devices, size_t count, const char *selector,
             struct vgpu_error *error);

/* Whether the text can be a selector at all, without looking at devices; -1 with EINVAL. */
int gpu_check_selector(const char *selector, struct vgpu_error *error);

/*
 * CUDA shows a MIG device only to a process that had CUDA_VISIBLE_DEVICES=MIG-… in its
 * environment before init(), and then shows nothing else.  So a MIG selector has to be known
 * when a process is started: gives the "NAME=VALUE" to put into its environment, in `buffer`,
 * or NULL when the selector needs none.
 */
const char *gpu_select_environment(const char *selector, char buffer[GPU_ENVIRONMENT_BYTES]);

/* --- the sanity gate (gate.c, gate_report.c) ------------------------------------------------ */

/*
 * Loads the driver's library, makes a context, computes a little, compares, and frees all of
 * it, in a process of its own: a driver that hangs or crashes harms nobody else.  The process
 * is vgpu-gpu-check.  It prints one JSON object a line: before each step {"step": NAME}, at
 * last the report (so the last line that came tells where one that hangs was):
 *
 *   {"ok": false, "step": "init", "error": {"code": 100, "name": "CUDA_ERROR_NO_DEVICE",
 *    "message": "…"}, "remedy": "…", "driver_version": 12040, "device": null or {"index",
 *    "name", "uuid", "address", "memory_bytes", "compute_capability", "multiprocessors",
 *    "mig"}, "context_bytes": null or 549000000, "took_ms": {"load": 0.8, …}}
 */
enum gpu_gate_step {
    GPU_STEP_START, /* of the process */
    GPU_STEP_LOAD,
    GPU_STEP_INIT,
    GPU_STEP_COUNT,
    GPU_STEP_SELECT,
    GPU_STEP_CONTEXT,
    GPU_STEP_ALLOCATE,
    GPU_STEP_COPY_IN,
    GPU_STEP_MODULE,
    GPU_STEP_LAUNCH,
    GPU_STEP_COPY_OUT,
    GPU_STEP_COMPARE,
    GPU_STEP_FREE,
    GPU_STEP_DESTROY,
    GPU_STEPS,
};

/* Codes of a report besides CUDA's, which are from 0 up. */
enum {
    GPU_GATE_REFUSED = -1, /* no result of CUDA's: the message says what */
    GPU_GATE_CRASHED = -2, /* the process was ended by a signal or without a report */
    GPU_GATE_TIMEOUT = -3, /* it was not ready at the deadline */
};

#define GPU_REMEDY_BYTES 320
#define GPU_GATE_ARGUMENTS_MAX 12
#define GPU_GATE_OUTPUT_BYTES 8192  /* more is not printed */
#define GPU_GATE_DEADLINE_MS 30000u /* for who has no better one: a first start can take 10 s */

struct gpu_gate_config {
    const char *program;      /* vgpu-gpu-check; NULL: gpu_gate_program()'s */
    const char *cuda_library; /* NULL: libcuda.so.1 */
    const char *selector;     /* NULL: the first */
    uint32_t deadline_ms;     /* 0: GPU_GATE_DEADLINE_MS */
    const char *user;         /* "65534:65534": becomes that user and group; NULL: stays */
};

struct gpu_gate_report {
    bool ok;
    enum gpu_gate_step step; /* that failed; the last when ok */
    int code;                /* a cuda_result or GPU_GATE_*; CUDA_SUCCESS when ok */
    char name[64];           /* of the code: "CUDA_ERROR_NO_DEVICE", "timeout", … */
    char message[VGPU_ERROR_BYTES];
    char remedy[GPU_REMEDY_BYTES]; /* "" when ok */
    bool has_device;
    struct gpu_device device;
    int driver_version;          /* of CUDA; 0 not known */
    uint64_t context_bytes;      /* of the GPU's memory, that a context takes; 0 not known */
    uint64_t took_us[GPU_STEPS]; /* 0: the step was not reached */
};

const char *gpu_step_name(enum gpu_gate_step step); /* "copy-in" */

/* Asks and waits, at most for the deadline; then the process is killed.  *ret_report is always
 * filled.  Returns 0 when the GPU computes, -1 when not. */
int gpu_gate(const struct gpu_gate_config *config, struct gpu_gate_report *ret_report);

/* For who starts the process by itself: its arguments, NULL behind the last; they point into
 * `config` and `program`. */
void gpu_gate_arguments(const struct gpu_gate_config *config, const char *program,
                        const char *ret_arguments[GPU_GATE_ARGUMENTS_MAX]);

/* Where vgpu-gpu-check is: beside the calling program's build, or where it is installed. */
void gpu_gate_program(char *path, size_t bytes);

/* What the process printed until it ended; `status` is of waitpid(2).  A line that was printed
 * before it was killed at the deadline still counts as far as it goes. */
void gpu_gate_judge(const char *output, int status, bool timed_out, uint32_t deadline_ms,
                    struct gpu_gate_report *ret_report);

/* One line: a report, or a step that has begun (ok false, code GPU_GATE_CRASHED).  -1 with
 * EINVAL when it is neither; *ret_report is untouched then. */
int gpu_gate_parse(const char *line, struct gpu_gate_report *ret_report, struct vgpu_error *error);

/* The report as one JSON line without its end, to be freed; NULL without memory. */
char *gpu_gate_print(const struct gpu_gate_report *report);

/* The same in a sentence for people, without the remedy. */
void gpu_gate_describe(const struct gpu_gate_report *report, char *text, size_t bytes);

/* Name and remedy of what has step, code and message. */
void gpu_gate_explain(const struct cuda *cuda, struct gpu_gate_report *report);

#endif /* VGPU_GPU_H */

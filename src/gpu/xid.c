/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What XIDs and throttle reasons mean, in our words; the numbers are NVIDIA's, as
 * published.  An XID that is not here is one that nobody has judged: it is told with
 * its number.
 */
#include "gpu/health.h"
#include "gpu/nvml.h"

#define OF_THE_PROGRAM "look at the program that ran; the GPU needs nothing"
#define OF_THE_GPU                                                                                 \
    "end the work on this GPU and reset it (nvidia-smi --gpu-reset) or restart the host; if it "   \
    "comes again, have the GPU checked"
#define OF_THE_MEMORY                                                                              \
    "reset the GPU when its work can be moved, so that bad memory is taken out of use; if it "     \
    "comes again, have the GPU checked"
#define OF_THE_LINK "check the links (nvidia-smi nvlink --status) and cables; reset the GPU"

/* Sorted by number. */
static const struct gpu_xid xids[] = {
    {8, GPU_XID_APPLICATION, "a program's work did not end in time", OF_THE_PROGRAM},
    {13, GPU_XID_APPLICATION, "a program's kernel did something that is not allowed",
     OF_THE_PROGRAM},
    {31, GPU_XID_APPLICATION, "a program used memory that is not its own", OF_THE_PROGRAM},
    {32, GPU_XID_APPLICATION, "a program's commands could not be read", OF_THE_PROGRAM},
    {38, GPU_XID_ATTENTION, "the driver's firmware failed", "update the driver"},
    {43, GPU_XID_APPLICATION, "a program's work was stopped after an error", OF_THE_PROGRAM},
    {44, GPU_XID_ATTENTION, "an engine failed while it changed from one program to another",
     "if it comes again, update the driver"},
    {45, GPU_XID_APPLICATION, "a program's work was cleaned up after an error or its end",
     OF_THE_PROGRAM},
    {46, GPU_XID_FATAL, "the GPU stopped", OF_THE_GPU},
    {48, GPU_XID_FATAL, "memory had an error that could not be corrected", OF_THE_MEMORY},
    {61, GPU_XID_FATAL, "a controller inside the GPU stopped", OF_THE_GPU},
    {62, GPU_XID_FATAL, "a controller inside the GPU halted", OF_THE_GPU},
    {63, GPU_XID_ATTENTION, "bad memory is to be taken out of use", OF_THE_MEMORY},
    {64, GPU_XID_FATAL, "bad memory could not be taken out of use", OF_THE_GPU},
    {68, GPU_XID_APPLICATION, "the video decoder failed in a program's work", OF_THE_PROGRAM},
    {69, GPU_XID_APPLICATION, "a program's commands were not understood", OF_THE_PROGRAM},
    {74, GPU_XID_ATTENTION, "a link between GPUs had an error", OF_THE_LINK},
    {79, GPU_XID_FATAL, "the GPU has fallen off the bus",
     "restart the host; if it comes again, check the GPU's seat, power and cooling"},
    {92, GPU_XID_ATTENTION, "memory needs very many corrections", OF_THE_MEMORY},
    {94, GPU_XID_ATTENTION, "a memory error was contained: only the program that met it ended",
     OF_THE_MEMORY},
    {95, GPU_XID_FATAL, "a memory error was not contained: all programs on the GPU ended",
     OF_THE_GPU},
    {109, GPU_XID_ATTENTION, "an engine did not change from one program to another in time",
     "if it comes again, reset the GPU and update the driver"},
    {110, GPU_XID_FATAL, "the GPU refused something for its security", OF_THE_GPU},
    {119, GPU_XID_FATAL, "the GPU's system processor did not answer in time", OF_THE_GPU},
    {120, GPU_XID_FATAL, "the GPU's system processor failed", OF_THE_GPU},
    {121, GPU_XID_ATTENTION, "the link between processor and GPU corrected an error",
     "nothing at once; if it comes again, have the board checked"},
    {136, GPU_XID_FATAL, "the link to other GPUs could not be trained", OF_THE_LINK},
    {137, GPU_XID_APPLICATION, "a program used another GPU's memory that is not its own",
     OF_THE_PROGRAM},
    {140, GPU_XID_FATAL, "memory inside the GPU had an error that could not be corrected",
     OF_THE_GPU},
    {143, GPU_XID_FATAL, "the GPU could not be started", OF_THE_GPU},
    {154, GPU_XID_ATTENTION, "the driver says that the GPU needs a recovery",
     "nvidia-smi -q shows which: GPU Recovery Action"},
};

const struct gpu_xid *gpu_xid_find(uint32_t number)
{
    static const struct gpu_xid unknown = {
        .class = GPU_XID_UNKNOWN,
        .meaning = "an error that is not in our table",
        .remedy = "look it up in NVIDIA's list of XIDs, and in the kernel's log (dmesg)"};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(xids); i++) {
        if (xids[i].number == number)
            return &xids[i];
    }
    return &unknown;
}

const char *gpu_xid_class_name(enum gpu_xid_class class)
{
    static const char *const names[] = {
        [GPU_XID_UNKNOWN] = "unknown",
        [GPU_XID_APPLICATION] = "application",
        [GPU_XID_ATTENTION] = "attention",
        [GPU_XID_FATAL] = "fatal",
    };

    return names[class];
}

/* --- why the clocks are down ----------------------------------------------------------- */

static const struct {
    uint64_t bit;
    const char *word;
} reasons[] = {
    {NVML_THROTTLE_IDLE, "idle"},
    {NVML_THROTTLE_APPLICATION_CLOCKS, "set-clocks"},
    {NVML_THROTTLE_POWER_CAP, "power-cap"},
    {NVML_THROTTLE_HW_SLOWDOWN, "hw-slowdown"},
    {NVML_THROTTLE_SYNC_BOOST, "sync-boost"},
    {NVML_THROTTLE_SW_THERMAL, "sw-thermal"},
    {NVML_THROTTLE_HW_THERMAL, "hw-thermal"},
    {NVML_THROTTLE_POWER_BRAKE, "power-brake"},
    {NVML_THROTTLE_DISPLAY_CLOCKS, "display-clocks"},
};

const char *gpu_throttle_next(uint64_t *bits)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(reasons); i++) {
        if (*bits & reasons[i].bit) {
            *bits &= ~reasons[i].bit;
            return reasons[i].word;
        }
    }
    if (*bits == 0)
        return NULL;
    *bits = 0;
    return "other";
}

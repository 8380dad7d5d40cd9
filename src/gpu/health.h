/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the GPUs of this host are: load, memory, heat, errors, and which of them are
 * lost, told by NVIDIA's management library.
 *
 *      a thread of its own                        the reader, any thread
 *   NVML ─▶ values  ─▶ snapshot  ──(copied under a lock)──▶ gpu_health_read()
 *        ─▶ XIDs    ─▶ events    ──────────────────────────▶ gpu_health_next_event()
 *                   └─ wake(context)
 *
 * NVML may block for a minute when a GPU has failed.  Only the thread is held up then:
 * the reader gets the last values, and once these are too old to count, unknown ones.
 */
#ifndef VGPU_GPU_HEALTH_H
#define VGPU_GPU_HEALTH_H

#include "base/base.h"

#include <jansson.h>

#define GPU_HEALTH_GPUS_MAX 32
#define GPU_HEALTH_MIGS_MAX 8 /* of a GPU; today's have at most 7 */
#define GPU_HEALTH_TEXT_BYTES 96

/* Not known is not 0. */
struct gpu_value {
    bool known;
    uint64_t value;
};

struct gpu_values {
    struct gpu_value utilization_percent;   /* of the time, a kernel was at work: 0..100 */
    struct gpu_value memory_total_bytes;    /* all that it has */
    struct gpu_value memory_used_bytes;     /* all that cannot be allocated now */
    struct gpu_value memory_reserved_bytes; /* of these, the driver's own */
    struct gpu_value temperature_c;
    struct gpu_value power_mw;
    struct gpu_value power_limit_mw;
    struct gpu_value ecc_corrected; /* errors since the driver was loaded */
    struct gpu_value ecc_uncorrected;
    struct gpu_value throttle_reasons;                     /* bits for gpu_throttle_next() */
    struct gpu_value mig_on;                               /* 0 or 1 */
    char migs[GPU_HEALTH_MIGS_MAX][GPU_HEALTH_TEXT_BYTES]; /* "MIG-..." */
    unsigned mig_count;
};

struct gpu_status {
    unsigned index;                   /* as NVML counts */
    char uuid[GPU_HEALTH_TEXT_BYTES]; /* "GPU-..."; "": not known, as the next two */
    char name[GPU_HEALTH_TEXT_BYTES]; /* "NVIDIA H100 80GB HBM3" */
    char pci_address[32];             /* "0000:65:00.0" */
    bool lost;                        /* it does not answer any more */
    bool silent;                      /* its last values are too old to count: the driver hangs */
    uint64_t sampled_ns;              /* when these were read, monotonic; 0: never */
    struct gpu_values values;         /* unknown, all of them, while it is lost or silent */
    uint64_t xid_count;               /* since the watch began */
    struct gpu_value xid_last;        /* the number of the last one ... */
    uint64_t xid_last_ns;             /* ... and its time, CLOCK_REALTIME */
    uint64_t losses;                  /* how often it was lost ... */
    uint64_t returns;                 /* ... and came back: reset, or its driver loaded anew */
};

struct gpu_snapshot {
    uint64_t samples;                           /* that were completed; 0: none yet */
    char driver_version[GPU_HEALTH_TEXT_BYTES]; /* "": not known */
    char nvml_version[GPU_HEALTH_TEXT_BYTES];
    char problem[VGPU_ERROR_BYTES]; /* why nothing can be told of any GPU; "": it can */
    unsigned count;
    struct gpu_status gpus[GPU_HEALTH_GPUS_MAX]; /* never fewer, never in another order */
};

enum gpu_event_type {
    GPU_EVENT_XID,  /* the driver reports an error */
    GPU_EVENT_LOST, /* a GPU does not answer any more */
    GPU_EVENT_BACK, /* it does again: nothing that was on it is left */
};

struct gpu_event {
    enum gpu_event_type type;
    unsigned gpu;     /* of the snapshot; GPU_HEALTH_GPUS_MAX: NVML did not say which */
    uint32_t xid;     /* GPU_EVENT_XID */
    uint64_t untold;  /* XIDs of this GPU before this one that are counted and not told */
    uint64_t time_ns; /* CLOCK_REALTIME */
};

struct gpu_health_config {
    const char *nvml_library; /* NULL: libnvidia-ml.so.1 */
    uint32_t interval_ms;     /* between two samples, from 1 */
    /*
     * Says that there is something new.  Called in the watch's thread with its lock
     * held: it must return at once and call nothing of this header (uv_async_send() is
     * made for this).  Not called any more once gpu_health_close() has returned.  May
     * be NULL.
     */
    void (*wake)(void *context);
    void *context;
};

struct gpu_health;

/*
 * Loads the library and starts the thread.  A driver that is not there or does not
 * answer is no failure: the snapshot says so, and it is tried again.  error.code is
 * nvml_load()'s, or EAGAIN without a thread.
 */
int gpu_health_open(const struct gpu_health_config *config, struct gpu_health **ret_health,
                    struct vgpu_error *error);

/*
 * Ends the thread and frees all; waits at most 2 s.  When NVML holds the thread for
 * longer, that thread frees all when it comes back: nothing of the caller's is used.
 * NULL is fine.
 */
void gpu_health_close(struct gpu_health *health);

/* The latest values, at once, from any thread.  *ret_snapshot is large (about 50 KiB):
 * keep it off small stacks. */
void gpu_health_read(struct gpu_health *health, struct gpu_snapshot *ret_snapshot);

/* The oldest event that was not taken yet, at once, from any thread; false: none. */
bool gpu_health_next_event(struct gpu_health *health, struct gpu_event *ret_event);

/* Asks for a sample before its time; does not wait for it. */
void gpu_health_sample(struct gpu_health *health);

/* Waits until `samples` samples are complete, for programs that want one look.  False:
 * not within `timeout_ms`. */
bool gpu_health_wait(struct gpu_health *health, uint64_t samples, uint32_t timeout_ms);

/* --- words (xid.c) ----------------------------------------------------------------- */

enum gpu_xid_class {
    GPU_XID_UNKNOWN,     /* not in the table */
    GPU_XID_APPLICATION, /* ends the program that caused it, no more */
    GPU_XID_ATTENTION,   /* the GPU works on, and wants to be looked at */
    GPU_XID_FATAL,       /* the GPU, or all programs on it, cannot go on */
};

struct gpu_xid {
    uint32_t number;
    enum gpu_xid_class class;
    const char *meaning; /* "the GPU has fallen off the bus" */
    const char *remedy;  /* what to do */
};

/* Never NULL; any number. */
const struct gpu_xid *gpu_xid_find(uint32_t number);

/* "application", "attention", "fatal", "unknown". */
const char *gpu_xid_class_name(enum gpu_xid_class class);

/* The word for the lowest of the bits of throttle_reasons ("power-cap"), which *bits
 * loses; "other" for all that have no word; NULL when no bit is left. */
const char *gpu_throttle_next(uint64_t *bits);

/* --- JSON (health_json.c); new references --------------------------------------------- */

/* An array, an object each; null for what is not known.  docs/control.md has the members. */
json_t *gpu_health_json_gpus(const struct gpu_snapshot *snapshot);

/* {"version":..., "nvml_version":..., "problem":...} */
json_t *gpu_health_json_driver(const struct gpu_snapshot *snapshot);

#endif /* VGPU_GPU_HEALTH_H */

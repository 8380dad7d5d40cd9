/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the health watch share among themselves. */
#ifndef VGPU_GPU_HEALTH_PRIVATE_H
#define VGPU_GPU_HEALTH_PRIVATE_H

#include "gpu/health.h"
#include "gpu/nvml.h"

#include <pthread.h>

/* XIDs of one GPU that are told in a second; more are counted. */
#define XIDS_TOLD_A_SECOND 8u

/* What can wait for the reader; XIDs leave room for losses and returns. */
#define EVENTS_MAX 128u
#define EVENTS_XID_MAX 96u

/* A GPU as the thread knows it. */
struct gpu {
    struct nvml_device *handle; /* NULL: NVML gives none now */
    struct gpu_status status;
    unsigned failures;      /* samples in a row in which nothing was answered */
    uint64_t told_since_ns; /* the second that counts ... */
    unsigned told;          /* ... XIDs that were told in it ... */
    uint64_t untold;        /* ... and that were not, since the last that was ... */
    uint32_t untold_xid;    /* ... the last of these */
};

struct gpu_health {
    struct nvml nvml;
    uint32_t interval_ms;
    void (*wake)(void *context);
    void *context;

    /* The thread's own. */
    bool initialized; /* nvmlInit_v2 was called and counts */
    struct gpu gpus[GPU_HEALTH_GPUS_MAX];
    unsigned count;
    struct nvml_event_set *events; /* NULL: NVML tells none */
    unsigned renewals;             /* in vain, in a row */
    unsigned samples_to_renewal;

    /* Below the lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* by the monotonic clock */
    bool stopping;
    bool ended; /* the thread uses nothing of the caller's any more */
    bool sample_wanted;
    unsigned references; /* the owner and the thread: the last one frees */
    struct gpu_snapshot snapshot;
    struct gpu_event ring[EVENTS_MAX];
    unsigned ring_first, ring_count;
};

/* --- health.c ------------------------------------------------------------------------- */

bool health_is_stopping(struct gpu_health *health);

/* Waits until `until_ns` (monotonic), or shorter: for a stop or a wanted sample. */
void health_pause(struct gpu_health *health, uint64_t until_ns);

/* Lets the reader see this GPU as it is now. */
void health_publish(struct gpu_health *health, const struct gpu *gpu);

/* Why nothing can be told; "" when it can. */
void health_publish_problem(struct gpu_health *health, const char *problem);

/* Hands an event to the reader; false when too many wait. */
bool health_tell(struct gpu_health *health, const struct gpu_event *event);

/* Makes values unknown that were read longer than `old_ns` ago. */
void health_judge_age(struct gpu_status *status, uint64_t now_ns, uint64_t old_ns);

/* --- health_devices.c ----------------------------------------------------------------- */

/* Initializes NVML and finds the GPUs, or does so anew, when that may help and is due. */
void health_renew(struct gpu_health *health);
void health_shut_down(struct gpu_health *health);

/* It does not answer any more; told once. */
void health_lose(struct gpu_health *health, struct gpu *gpu);

/* It answers (again). */
void health_find_again(struct gpu_health *health, struct gpu *gpu);

/* --- health_sample.c ------------------------------------------------------------------ */

/* Reads and publishes the values of all GPUs. */
void health_sample_all(struct gpu_health *health);

/* --- health_events.c ------------------------------------------------------------------ */

void health_events_open(struct gpu_health *health);
void health_events_close(struct gpu_health *health);

/* Takes events until `until_ns`, or shorter, when a sample is wanted first. */
void health_events_wait(struct gpu_health *health, uint64_t until_ns);

#endif /* VGPU_GPU_HEALTH_PRIVATE_H */

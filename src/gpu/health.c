/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watch's thread, and what its reader sees:
 *
 *   renew (when GPUs are missing) ─▶ sample all ─▶ take events until the next sample ─┐
 *     ▲                                                                               │
 *     └───────────────────────────────────────────────────────────────────────────────┘
 *
 * The lock is never held over a call of NVML, so a reader never waits for the driver.
 */
#include "gpu/health_private.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define CLOSE_PATIENCE_NS (2 * NS_PER_S)

/* Values count so long after their time, which is late when the driver is slow. */
#define OLD_INTERVALS 3u
#define OLD_BESIDES_NS (2 * NS_PER_S)

static uint64_t interval_ns(const struct gpu_health *health)
{
    return health->interval_ms * NS_PER_MS;
}

static struct timespec timespec_of(uint64_t time_ns)
{
    return (struct timespec){.tv_sec = (time_t)(time_ns / NS_PER_S),
                             .tv_nsec = (long)(time_ns % NS_PER_S)};
}

/* --- what the thread's parts use ---------------------------------------------------- */

bool health_is_stopping(struct gpu_health *health)
{
    bool stopping;

    pthread_mutex_lock(&health->lock);
    stopping = health->stopping;
    pthread_mutex_unlock(&health->lock);
    return stopping;
}

void health_pause(struct gpu_health *health, uint64_t until_ns)
{
    const struct timespec until = timespec_of(until_ns);

    pthread_mutex_lock(&health->lock);
    while (!health->stopping && !health->sample_wanted &&
           pthread_cond_timedwait(&health->changed, &health->lock, &until) == 0)
        ;
    pthread_mutex_unlock(&health->lock);
}

/* Below the lock, so that none comes after gpu_health_close(). */
static void wake_reader(struct gpu_health *health)
{
    if (health->wake && !health->stopping)
        health->wake(health->context);
}

void health_publish(struct gpu_health *health, const struct gpu *gpu)
{
    pthread_mutex_lock(&health->lock);
    health->snapshot.gpus[gpu - health->gpus] = gpu->status;
    health->snapshot.count = health->count;
    pthread_mutex_unlock(&health->lock);
}

void health_publish_problem(struct gpu_health *health, const char *problem)
{
    pthread_mutex_lock(&health->lock);
    text_copy(health->snapshot.problem, sizeof(health->snapshot.problem), problem);
    pthread_mutex_unlock(&health->lock);
}

bool health_tell(struct gpu_health *health, const struct gpu_event *event)
{
    unsigned room = event->type == GPU_EVENT_XID ? EVENTS_XID_MAX : EVENTS_MAX;
    bool told = false;

    pthread_mutex_lock(&health->lock);
    if (health->ring_count < room) {
        health->ring[(health->ring_first + health->ring_count++) % EVENTS_MAX] = *event;
        wake_reader(health);
        told = true;
    }
    pthread_mutex_unlock(&health->lock);
    return told;
}

/* --- the thread ----------------------------------------------------------------------- */

static void free_health(struct gpu_health *health)
{
    nvml_unload(&health->nvml);
    pthread_cond_destroy(&health->changed);
    pthread_mutex_destroy(&health->lock);
    free(health);
}

static void release(struct gpu_health *health)
{
    bool last;

    pthread_mutex_lock(&health->lock);
    last = --health->references == 0;
    pthread_mutex_unlock(&health->lock);
    if (last)
        free_health(health);
}

static void finish_sample(struct gpu_health *health)
{
    pthread_mutex_lock(&health->lock);
    health->snapshot.samples++;
    pthread_cond_broadcast(&health->changed);
    wake_reader(health);
    pthread_mutex_unlock(&health->lock);
}

static void begin_sample(struct gpu_health *health)
{
    pthread_mutex_lock(&health->lock);
    health->sample_wanted = false;
    pthread_mutex_unlock(&health->lock);
}

static void *watch(void *context)
{
    struct gpu_health *health = context;

    while (!health_is_stopping(health)) {
        uint64_t next_ns = clock_monotonic_ns() + interval_ns(health);

        begin_sample(health);
        health_renew(health);
        health_sample_all(health);
        finish_sample(health);
        health_events_wait(health, next_ns);
    }
    health_shut_down(health);
    pthread_mutex_lock(&health->lock);
    health->ended = true;
    pthread_cond_broadcast(&health->changed);
    pthread_mutex_unlock(&health->lock);
    release(health);
    return NULL;
}

/* --- the owner and the reader ----------------------------------------------------------- */

static struct gpu_health *make_health(const struct gpu_health_config *config)
{
    struct gpu_health *health = calloc(1, sizeof(*health));
    pthread_condattr_t monotonic;

    if (!health)
        return NULL;
    health->interval_ms = config->interval_ms;
    health->wake = config->wake;
    health->context = config->context;
    health->references = 2;
    pthread_mutex_init(&health->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&health->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return health;
}

/* Signals are the program's, not this thread's. */
static int start_thread(struct gpu_health *health, struct vgpu_error *error)
{
    sigset_t all, before;
    pthread_t thread;
    int code;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(&thread, NULL, watch, health);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        return error_set(error, EAGAIN, "cannot start the thread that watches the GPUs: %s",
                         strerror(code));
    pthread_detach(thread);
    return 0;
}

int gpu_health_open(const struct gpu_health_config *config, struct gpu_health **ret_health,
                    struct vgpu_error *error)
{
    struct gpu_health *health = make_health(config);

    if (!health)
        return error_set(error, ENOMEM, "no memory to watch the GPUs");
    if (nvml_load(config->nvml_library, &health->nvml, error) < 0 ||
        start_thread(health, error) < 0) {
        free_health(health);
        return -1;
    }
    *ret_health = health;
    return 0;
}

void gpu_health_close(struct gpu_health *health)
{
    struct timespec until = timespec_of(clock_monotonic_ns() + CLOSE_PATIENCE_NS);

    if (!health)
        return;
    pthread_mutex_lock(&health->lock);
    health->stopping = true;
    pthread_cond_broadcast(&health->changed);
    while (!health->ended && pthread_cond_timedwait(&health->changed, &health->lock, &until) == 0)
        ;
    pthread_mutex_unlock(&health->lock);
    release(health);
}

void health_judge_age(struct gpu_status *status, uint64_t now_ns, uint64_t old_ns)
{
    if (status->lost || status->sampled_ns == 0 || now_ns - status->sampled_ns <= old_ns)
        return;
    status->silent = true;
    status->values = (struct gpu_values){0};
}

void gpu_health_read(struct gpu_health *health, struct gpu_snapshot *ret_snapshot)
{
    uint64_t old_ns = OLD_INTERVALS * interval_ns(health) + OLD_BESIDES_NS;

    pthread_mutex_lock(&health->lock);
    *ret_snapshot = health->snapshot;
    pthread_mutex_unlock(&health->lock);
    for (unsigned i = 0; i < ret_snapshot->count; i++)
        health_judge_age(&ret_snapshot->gpus[i], clock_monotonic_ns(), old_ns);
}

bool gpu_health_next_event(struct gpu_health *health, struct gpu_event *ret_event)
{
    bool found = false;

    pthread_mutex_lock(&health->lock);
    if (health->ring_count > 0) {
        *ret_event = health->ring[health->ring_first];
        health->ring_first = (health->ring_first + 1) % EVENTS_MAX;
        health->ring_count--;
        found = true;
    }
    pthread_mutex_unlock(&health->lock);
    return found;
}

void gpu_health_sample(struct gpu_health *health)
{
    pthread_mutex_lock(&health->lock);
    health->sample_wanted = true;
    pthread_cond_broadcast(&health->changed);
    pthread_mutex_unlock(&health->lock);
}

bool gpu_health_wait(struct gpu_health *health, uint64_t samples, uint32_t timeout_ms)
{
    struct timespec until = timespec_of(clock_monotonic_ns() + timeout_ms * NS_PER_MS);
    bool complete;

    pthread_mutex_lock(&health->lock);
    while (health->snapshot.samples < samples &&
           pthread_cond_timedwait(&health->changed, &health->lock, &until) == 0)
        ;
    complete = health->snapshot.samples >= samples;
    pthread_mutex_unlock(&health->lock);
    return complete;
}

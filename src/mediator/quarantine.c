/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM whose work goes wrong again and again is put aside by itself.
 *
 *   worker died, kernel faulted, time limit, rings ─▶ quarantine_fault()
 *        quarantine_faults of them in quarantine_window_s ─▶ refused at once
 *             registered in a database: the row, with an event ─▶ reload
 *   vgpu-admin release, or quarantine_cooldown_s later        ─▶ served again
 *
 * The database is written by a thread of the loop's, as its disk or another writer can make
 * that last; until it is, and where there is none, the quarantine is the mediator's own.
 */
#include "mediator/mediator.h"

#include "store/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_MS 1000u
#define LOOK_MAX_MS 3600000u /* the host's clock may be set meanwhile */

struct job {
    uv_work_t work;
    struct mediator *mediator;
    const char *path; /* of the configuration, which outlives it */
    uint32_t vm_id;
    uint64_t identity;
    bool release;
    uint64_t until_us; /* of the quarantine that begins or ends */
    char reason[CONFIG_REASON_BYTES];
    int result;
    struct vgpu_error error;
};

static uint64_t now_us(void)
{
    return clock_realtime_ns() / NS_PER_US;
}

static void announce(const struct vm *vm, const char *tag, const char *text)
{
    const struct log_field fields[] = {LOG_NUMBER("vm", vm->vm_id), LOG_TEXT("reason", text)};

    log_event(tag, fields, VGPU_ARRAY_LENGTH(fields), "vm%u: %s", vm->vm_id, text);
}

/* --- the database -------------------------------------------------------------------------- */

/* Somebody may have changed the row since. */
static bool still_counts(const struct job *job, const struct store_vm *vm)
{
    if (job->identity && vm->created_us != job->identity)
        return false;
    return job->release
               ? vm->state == STORE_VM_QUARANTINED && vm->quarantine_until_us == job->until_us
               : vm->state == STORE_VM_ACTIVE;
}

static int change_row(const struct job *job, struct store *store, struct vgpu_error *error)
{
    struct store_vm_change change = {.fields = STORE_VM_STATE};
    struct store_vm vm;

    if (store_get_vm(store, job->vm_id, &vm, error) < 0)
        return -1;
    if (!still_counts(job, &vm))
        return 0;
    change.values.state = job->release ? STORE_VM_ACTIVE : STORE_VM_QUARANTINED;
    change.values.quarantine_until_us = job->until_us;
    text_copy(change.values.reason, sizeof(change.values.reason), job->reason);
    return store_change_vm(store, job->vm_id, &change, NULL, NULL, error);
}

static int write_row(const struct job *job, struct vgpu_error *error)
{
    const struct store_actor actor = {"vgpu-mediator", job->release ? "release" : "quarantine"};
    struct store *store;
    int result;

    if (store_open(job->path, STORE_WRITE, &store, error) < 0)
        return -1;
    store_set_actor(store, &actor);
    result = store_begin(store, error);
    if (result == 0)
        result = change_row(job, store, error);
    if (result == 0)
        result = store_commit(store, error);
    else
        store_rollback(store);
    store_close(store);
    return result;
}

static void on_work(uv_work_t *work)
{
    struct job *job = work->data;

    job->result = write_row(job, &job->error);
}

static void on_written(uv_work_t *work, int status);

static void begin_writing(struct vm *vm, bool release, uint64_t until_us)
{
    struct job *job = calloc(1, sizeof(*job));

    if (!job)
        return; /* it stays the mediator's own, or is tried again */
    job->work.data = job;
    job->mediator = vm->mediator;
    job->path = vm->mediator->config->database;
    job->vm_id = vm->vm_id;
    job->identity = vm->settings.identity;
    job->release = release;
    job->until_us = until_us;
    text_copy(job->reason, sizeof(job->reason), vm->quarantine.reason);
    vm->quarantine.writing = true;
    uv_queue_work(&vm->mediator->loop, &job->work, on_work, on_written);
}

static struct vm *vm_of(const struct job *job)
{
    struct vm *vm = vm_find(job->mediator, job->vm_id);

    return vm && vm->settings.identity == job->identity ? vm : NULL;
}

static void on_written(uv_work_t *work, int status)
{
    struct job *job = work->data;
    struct mediator *mediator = job->mediator;
    struct vm *vm = mediator->closed ? NULL : vm_of(job);

    (void)status;
    if (job->result < 0 && !mediator->closed)
        log_warning("vm%u: its %s is not in the database: %s", job->vm_id,
                    job->release ? "release" : "quarantine", job->error.message);
    if (vm) {
        vm->quarantine.writing = false;
        if (vm->quarantine.release_next)
            begin_writing(vm, true, job->until_us);
        vm->quarantine.release_next = false;
    }
    if (job->result == 0 && !mediator->closed && !mediator->stopping)
        mediator_reload(mediator);
    else if (!mediator->closed)
        quarantine_update(mediator);
    free(job);
}

/* --- the rules ------------------------------------------------------------------------------ */

struct quarantine_rules quarantine_rules(const struct config *config)
{
    return (struct quarantine_rules){.faults = config->quarantine_faults,
                                     .window_s = config->quarantine_window_s,
                                     .cooldown_s = config->quarantine_cooldown_s};
}

/* There is room for as many as count. */
static void forget_faults(struct vm *vm)
{
    free(vm->quarantine.times_ns);
    vm->quarantine.times_ns = NULL;
    vm->quarantine.count = 0;
}

void quarantine_set_rules(struct mediator *mediator, const struct quarantine_rules *rules)
{
    bool other_number = mediator->quarantine_rules.faults != rules->faults;
    struct vm *vm, *next;

    mediator->quarantine_rules = *rules;
    if (!other_number)
        return;
    HASH_ITER (hh, mediator->vms, vm, next)
        forget_faults(vm);
}

/* --- too many faults ------------------------------------------------------------------------ */

bool quarantine_is_on(const struct vm *vm)
{
    return vm->quarantine.on || (vm->registered && vm->settings.quarantined);
}

/* Of the last so many, the first is no longer ago than the window. */
static bool is_too_much(struct vm *vm, uint64_t now_ns)
{
    const struct quarantine_rules *rules = &vm->mediator->quarantine_rules;
    uint32_t most = rules->faults, at;

    if (most == 0)
        return false;
    if (!vm->quarantine.times_ns)
        vm->quarantine.times_ns = calloc(most, sizeof(*vm->quarantine.times_ns));
    if (!vm->quarantine.times_ns)
        return false;
    at = vm->quarantine.count++ % most;
    vm->quarantine.times_ns[at] = now_ns;
    return vm->quarantine.count >= most &&
           now_ns - vm->quarantine.times_ns[(at + 1) % most] <= rules->window_s * NS_PER_S;
}

static void begin(struct vm *vm, enum metrics_fault last)
{
    static const char *const words[METRICS_FAULTS] = {
        [METRICS_FAULT_WORKER] = "a worker died",
        [METRICS_FAULT_KERNEL] = "a kernel did what the GPU forbids",
        [METRICS_FAULT_TIME_LIMIT] = "an operation ran too long",
        [METRICS_FAULT_RINGS] = "its rings made no sense",
    };
    const struct quarantine_rules *rules = &vm->mediator->quarantine_rules;
    uint64_t until_us = rules->cooldown_s ? now_us() + rules->cooldown_s * NS_PER_S / NS_PER_US : 0;

    snprintf(vm->quarantine.reason, sizeof(vm->quarantine.reason), "%u faults in %u s, last %s",
             rules->faults, rules->window_s, words[last]);
    vm->quarantine.on = true;
    vm->quarantine.until_us = until_us;
    vm_count(vm, METRICS_QUARANTINES, 1);
    announce(vm, "QUARANTINE", vm->quarantine.reason);
    if (vm->registered && vm->mediator->config->database[0] && !vm->quarantine.writing)
        begin_writing(vm, false, until_us);
    reload_judge_vm(vm);
    quarantine_update(vm->mediator);
}

void quarantine_fault(struct vm *vm, enum metrics_fault fault)
{
    vm_count_fault(vm, fault);
    if (!vm->removed && is_too_much(vm, clock_monotonic_ns()) && !quarantine_is_on(vm))
        begin(vm, fault);
}

/* --- its end -------------------------------------------------------------------------------- */

void quarantine_forgive(struct vm *vm)
{
    vm->quarantine.count = 0;
    vm->quarantine.on = false;
    vm->quarantine.until_us = 0;
}

bool quarantine_release(struct vm *vm)
{
    bool was_on = vm->quarantine.on;

    vm->quarantine.release_next = vm->quarantine.writing;
    quarantine_forgive(vm);
    if (was_on) {
        announce(vm, "RELEASED", "released by the administrator");
        reload_judge_vm(vm);
    }
    return was_on;
}

static uint64_t until_us_of(const struct vm *vm)
{
    if (vm->quarantine.on)
        return vm->quarantine.until_us;
    return vm->registered && vm->settings.quarantined ? vm->settings.quarantine_until_us : 0;
}

uint64_t quarantine_until_us(const struct vm *vm)
{
    return quarantine_is_on(vm) ? until_us_of(vm) : 0;
}

static void cool_down(struct vm *vm)
{
    bool in_database = vm->registered && vm->settings.quarantined;

    if (vm->quarantine.writing)
        return;
    if (in_database) {
        begin_writing(vm, true, vm->settings.quarantine_until_us);
        return;
    }
    quarantine_forgive(vm);
    announce(vm, "RELEASED", "its quarantine is over");
    reload_judge_vm(vm);
}

static void on_timer(uv_timer_t *timer)
{
    struct mediator *mediator = timer->data;
    struct vm *vm, *next;

    HASH_ITER (hh, mediator->vms, vm, next) {
        uint64_t until_us = until_us_of(vm);

        if (until_us && until_us <= now_us())
            cool_down(vm);
    }
    quarantine_update(mediator);
}

/* Whoever could not be written is tried again. */
static uint64_t wait_ms(uint64_t until_us)
{
    uint64_t now = now_us(), ms;

    if (until_us <= now)
        return RETRY_MS;
    ms = (until_us - now) / US_PER_MS + 1;
    return ms < LOOK_MAX_MS ? ms : LOOK_MAX_MS;
}

void quarantine_update(struct mediator *mediator)
{
    uint64_t first_us = UINT64_MAX;
    struct vm *vm, *next;

    HASH_ITER (hh, mediator->vms, vm, next) {
        uint64_t until_us = until_us_of(vm);

        if (until_us && until_us < first_us)
            first_us = until_us;
    }
    mediator->quarantine_timer.data = mediator;
    if (first_us == UINT64_MAX)
        uv_timer_stop(&mediator->quarantine_timer);
    else
        uv_timer_start(&mediator->quarantine_timer, on_timer, wait_ms(first_us), 0);
}

void quarantine_free(struct vm *vm)
{
    free(vm->quarantine.times_ns);
}

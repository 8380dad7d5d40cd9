/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM holds of device memory, and what it may do at a time, over all its sessions: one
 * account a VM, in which each window session's workers have a share.  It is made with its first
 * session and gone with its last; that of a VM which is bounded by rate or share stays, so that
 * nobody gets a full bucket by opening a session anew, and is for its file requests as well.
 *
 *   run_dir/sessions/vm<id>.account
 *
 * It outlives the mediator as the workers do.  The next one claims the shares of those that
 * live; what others left in theirs went with their processes.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* On whichever of its pool's devices it is: the most that one takes there.  What the check of a
 * GPU could not measure does not count. */
static uint64_t context_bytes_of(const struct vm *vm)
{
    const struct config_pool *pool = mediator_find_pool(vm->mediator, vm_pool(vm));
    char name[CONFIG_DEVICE_BYTES];
    uint64_t most_bytes = 0;

    if (!vm->mediator->config->count_contexts || !pool)
        return 0;
    for (unsigned i = 0; config_pool_device(pool, i, name); i++) {
        uint64_t bytes = devices_context_bytes(vm->mediator, name);

        if (bytes > most_bytes)
            most_bytes = bytes;
    }
    return most_bytes;
}

static struct exec_budget budget_of(const struct vm *vm)
{
    const struct config_vm *settings = &vm->settings;

    return (struct exec_budget){
        .request_rate = settings->request_rate,
        .request_burst = settings->request_burst,
        .device_share_percent = settings->device_share_percent,
        .queue_depth_max = settings->queue_depth_max,
        .inflight_ops_max = settings->inflight_ops_max,
        .inflight_bytes_max = (uint64_t)settings->inflight_kib_max << 10,
        .image_bytes_max = (uint64_t)vm->mediator->config->image_memory_mib << 20,
        .context_bytes = context_bytes_of(vm),
    };
}

/* By what outlives a session. */
static bool is_bounded(const struct vm *vm)
{
    return !vm->removed && (vm->settings.request_rate || vm->settings.device_share_percent);
}

static void apply_budget(struct vm *vm)
{
    const struct exec_budget budget = budget_of(vm);

    exec_account_set_budget(vm->account, &budget, clock_monotonic_ns());
}

static int open_account(struct vm *vm, bool adopt, struct vgpu_error *error)
{
    char path[PATH_MAX + 40];

    if (vm->account)
        return 0;
    snprintf(path, sizeof(path), "%s/sessions/vm%u.account", vm->mediator->config->run_dir,
             vm->vm_id);
    if (exec_account_open(path, (uint64_t)vm_device_memory_mib(vm) << 20, adopt, &vm->account,
                          error) < 0)
        return -1;
    apply_budget(vm);
    return 0;
}

static void end_unused(struct vm *vm)
{
    if (vm->window_count > 0 || is_bounded(vm))
        return;
    exec_account_end(vm->account);
    vm->account = NULL;
}

int account_join(struct window_session *ws, struct vgpu_error *error)
{
    struct vm *vm = ws->session.vm;

    if (ws->has_share)
        return 0;
    if (open_account(vm, false, error) < 0 || exec_account_take(vm->account, &ws->share, error) < 0)
        return -1;
    apply_budget(vm); /* a GPU may have been checked since */
    ws->has_share = true;
    return 0;
}

int account_adopt(struct window_session *ws, struct vgpu_error *error)
{
    struct vm *vm = ws->session.vm;
    uint32_t share = exec_session_share(ws->worker);

    if (open_account(vm, true, error) < 0) {
        error->code = ESTALE; /* not that there is no worker */
        return -1;
    }
    if (!exec_account_claim(vm->account, share))
        return error_set(error, ESTALE, "its share %u of its VM's device memory is not its own",
                         share);
    ws->share = share;
    ws->has_share = true;
    return 0;
}

void account_settle(struct vm *vm)
{
    if (vm->account)
        exec_account_settle(vm->account);
}

void account_worker_ended(struct window_session *ws)
{
    if (ws->has_share)
        exec_account_clear(ws->session.vm->account, ws->share);
}

void account_leave(struct window_session *ws)
{
    if (ws->has_share)
        exec_account_give(ws->session.vm->account, ws->share);
    ws->has_share = false;
    end_unused(ws->session.vm);
}

void account_limit_changed(struct vm *vm)
{
    struct window_session *ws;

    if (!vm->account)
        return;
    exec_account_set_limit(vm->account, (uint64_t)vm_device_memory_mib(vm) << 20);
    apply_budget(vm);
    TAILQ_FOREACH (ws, &vm->windows, in_vm) {
        if (ws->worker)
            exec_session_wake(ws->worker);
    }
    end_unused(vm);
}

void account_close(struct vm *vm)
{
    if (vm->window_count > 0)
        exec_account_close(vm->account); /* workers that live go on with it */
    else
        exec_account_end(vm->account);
    vm->account = NULL;
}

void account_charge(struct vm *vm, uint64_t used_us)
{
    if (vm->account)
        exec_account_charge(vm->account, used_us, clock_monotonic_ns());
}

/* --- file requests ----------------------------------------------------------------------- */

/* Nobody can know when a queue will be shorter: a guess. */
#define DEPTH_RETRY_NS (100 * NS_PER_MS)

/* Rounded up: who comes then is not refused for it again. */
static uint64_t retry_ms(uint64_t wait_ns)
{
    return wait_ns / NS_PER_MS + 1;
}

static bool refuse(struct vm *vm, enum metrics_refusal reason, uint64_t wait_ns,
                   char text[CONFIG_REFUSAL_BYTES])
{
    const struct config_vm *settings = &vm->settings;
    unsigned long long after_ms = retry_ms(wait_ns);

    vm_count_refusals(vm, reason, 1);
    if (reason == METRICS_REFUSED_RATE)
        snprintf(text, CONFIG_REFUSAL_BYTES,
                 "too many requests: VM %u may send %u a second; retry after %llu ms", vm->vm_id,
                 settings->request_rate, after_ms);
    else if (reason == METRICS_REFUSED_DEVICE_SHARE)
        snprintf(text, CONFIG_REFUSAL_BYTES,
                 "too much device time: VM %u may use %u percent of a device; retry after %llu ms",
                 vm->vm_id, settings->device_share_percent, after_ms);
    else
        snprintf(text, CONFIG_REFUSAL_BYTES,
                 "too many requests wait: VM %u may have %u; retry after %llu ms", vm->vm_id,
                 settings->queue_depth_max, after_ms);
    return false;
}

bool account_admits(struct vm *vm, char ret_text[CONFIG_REFUSAL_BYTES])
{
    struct vgpu_error error;
    uint64_t now_ns, wait_ns;

    if (vm->settings.queue_depth_max && vm_depth(vm) >= vm->settings.queue_depth_max)
        return refuse(vm, METRICS_REFUSED_QUEUE_DEPTH, DEPTH_RETRY_NS, ret_text);
    if (!is_bounded(vm))
        return true;
    if (open_account(vm, false, &error) < 0) {
        log_error("vm%u: its limits do not hold for file requests: %s", vm->vm_id, error.message);
        return true;
    }
    now_ns = clock_monotonic_ns(); /* a new account is full as of now */
    wait_ns = exec_account_device_wait_ns(vm->account, now_ns);
    if (wait_ns > 0)
        return refuse(vm, METRICS_REFUSED_DEVICE_SHARE, wait_ns, ret_text);
    if (!exec_account_take_request(vm->account, now_ns, &wait_ns))
        return refuse(vm, METRICS_REFUSED_RATE, wait_ns, ret_text);
    return true;
}

uint64_t account_used_bytes(const struct vm *vm)
{
    return vm->account ? exec_account_used_bytes(vm->account) : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pools and VMs as the registry has them, applied to what runs.
 *
 *   database or configuration ─▶ struct config ── compared with ──▶ mediator->pools, vm->settings
 *                                                     │ differences, in this order
 *     pools that are new or changed ─▶ sched (VMs that wait move at once)
 *     VMs: new, changed, gone       ─▶ sched, both channels, guests' registers
 *     pools that are gone
 *     who may not work (quarantine, disabled pool) ─▶ refused at once, or works again
 *
 * What cannot be read changes nothing.  What cannot be applied to one VM (its socket
 * cannot be made) is logged, and the others go on.  Keys of [mediator] count from the
 * next start on and are named, but for contexts_per_* and those of struct grant_rules and
 * struct quarantine_rules.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reload {
    struct mediator *mediator;
    const struct config *config;
    struct reload_report *report; /* NULL: at the start, when all is new */
};

/* --- what has changed ----------------------------------------------------------------- */

static void keep_change(struct reload_report *report, const struct reload_change *change)
{
    struct reload_change *changes;

    if (report->count++ >= RELOAD_CHANGES_MAX)
        return;
    changes = reallocarray(report->changes, report->count, sizeof(*changes));
    if (!changes) {
        report->count--;
        return;
    }
    report->changes = changes;
    changes[report->count - 1] = *change;
}

static void note(struct reload *reload, uint32_t vm_id, char pool, const char *what,
                 const char *before, const char *after)
{
    struct reload_change change = {.vm_id = vm_id, .pool = pool, .what = what};
    const char pool_text[2] = {pool, '\0'};
    const struct log_field fields[] = {LOG_TEXT("pool", pool_text), LOG_TEXT("what", what),
                                       LOG_TEXT("before", before), LOG_TEXT("after", after),
                                       LOG_NUMBER("vm", vm_id)};
    char who[32];

    if (!reload->report)
        return;
    text_copy(change.before, sizeof(change.before), before);
    text_copy(change.after, sizeof(change.after), after);
    keep_change(reload->report, &change);
    if (vm_id)
        snprintf(who, sizeof(who), "vm%u", vm_id);
    else if (!pool)
        text_copy(who, sizeof(who), "Mediator");
    else
        snprintf(who, sizeof(who), "Pool %c", pool);
    log_event("CHANGED", fields, VGPU_ARRAY_LENGTH(fields) - (vm_id ? 0 : 1), "%s: %s: %s%s%s", who,
              what, before, before[0] && after[0] ? " -> " : "", after);
}

static void note_number(struct reload *reload, uint32_t vm_id, char pool, const char *what,
                        uint64_t before, uint64_t after)
{
    char old[24], new[24];

    snprintf(old, sizeof(old), "%llu", (unsigned long long)before);
    snprintf(new, sizeof(new), "%llu", (unsigned long long)after);
    note(reload, vm_id, pool, what, old, new);
}

static const char *mode_name(enum sched_pools_mode mode)
{
    return mode == SCHED_POOLS_SHARED ? "shared" : "independent";
}

static const char *placement_name(const struct config_pool *pool)
{
    return pool->pack ? "pack" : "spread";
}

static void apply_contexts(struct reload *reload)
{
    struct mediator *mediator = reload->mediator;
    uint32_t cap = contexts_cap(mediator), new_cap = reload->config->contexts_per_device;
    uint32_t vm_cap = contexts_vm_cap(mediator), new_vm_cap = reload->config->contexts_per_vm;

    if (cap != new_cap) {
        contexts_set_cap(mediator, new_cap);
        note_number(reload, 0, '\0', "contexts_per_device", cap, new_cap);
    }
    if (vm_cap != new_vm_cap) {
        contexts_set_vm_cap(mediator, new_vm_cap);
        note_number(reload, 0, '\0', "contexts_per_vm", vm_cap, new_vm_cap);
    }
}

/* Returns whether it is another one now. */
static bool change_rule(struct reload *reload, const char *key, uint32_t *now, uint32_t wanted)
{
    if (*now == wanted)
        return false;
    note_number(reload, 0, '\0', key, *now, wanted);
    *now = wanted;
    return true;
}

/* They count from the next grant on. */
static void apply_grant_rules(struct reload *reload)
{
    const struct grant_rules wanted = policy_rules(reload->config);
    struct grant_rules *now = &reload->mediator->grant_rules;
    bool changed = false;

    changed |= change_rule(reload, "grant_us", &now->grant_us, wanted.grant_us);
    changed |= change_rule(reload, "grant_ops", &now->grant_ops, wanted.grant_ops);
    changed |= change_rule(reload, "grant_min_us", &now->grant_min_us, wanted.grant_min_us);
    changed |= change_rule(reload, "protect_us", &now->protect_us, wanted.protect_us);
    changed |=
        change_rule(reload, "protect_inflight", &now->protect_inflight, wanted.protect_inflight);
    changed |= change_rule(reload, "protect_ms", &now->protect_ms, wanted.protect_ms);
    changed |= change_rule(reload, "switch_us", &now->switch_us, wanted.switch_us);
    changed |= change_rule(reload, "switch_share_percent", &now->switch_share_percent,
                           wanted.switch_share_percent);
    if (changed)
        mediator_set_grants(reload->mediator);
}

static void apply_quarantine_rules(struct reload *reload)
{
    const struct quarantine_rules wanted = quarantine_rules(reload->config);
    struct quarantine_rules now = reload->mediator->quarantine_rules;

    change_rule(reload, "quarantine_faults", &now.faults, wanted.faults);
    change_rule(reload, "quarantine_window_s", &now.window_s, wanted.window_s);
    change_rule(reload, "quarantine_cooldown_s", &now.cooldown_s, wanted.cooldown_s);
    quarantine_set_rules(reload->mediator, &wanted);
}

/* --- pools ---------------------------------------------------------------------------- */

/* A pool without a device that can be used has a place on the first one, which no work
 * of its VMs reaches: they are refused. */
static unsigned device_of(struct mediator *mediator, const struct config_pool *pool)
{
    unsigned devices[CONFIG_POOL_DEVICES_MAX];
    struct vgpu_error error;

    if (placement_devices(mediator, pool, devices) > 0)
        return devices[0];
    if (mediator->device_count == 0)
        mediator_device_index(mediator, "cpu", &error);
    return 0;
}

static void add_pool(struct reload *reload, const struct config_pool *pool)
{
    struct mediator *mediator = reload->mediator;
    unsigned device = device_of(mediator, pool);
    struct vgpu_error error;

    if (sched_add_pool(mediator->sched, pool->id, device, &error) < 0 ||
        sched_update_pool(mediator->sched, pool->id, device, pool->mode, &error) < 0 ||
        policy_apply_pool(mediator, pool, &error) < 0) {
        log_error("%s", error.message);
        return;
    }
    mediator->pools[mediator->pool_count++] = *pool;
    note(reload, 0, pool->id, "pool", "", pool->device[0] ? pool->device : "no device");
}

static void change_pool(struct reload *reload, struct config_pool *now,
                        const struct config_pool *wanted)
{
    struct sched *sched = reload->mediator->sched;
    struct vgpu_error error;

    if (strcmp(now->device, wanted->device) != 0)
        note(reload, 0, now->id, "device", now->device, wanted->device);
    if (now->pack != wanted->pack)
        note(reload, 0, now->id, "placement", placement_name(now), placement_name(wanted));
    if (now->session_devices != wanted->session_devices)
        note_number(reload, 0, now->id, "session_devices", now->session_devices,
                    wanted->session_devices);
    if (now->mode != wanted->mode)
        note(reload, 0, now->id, "sharing", mode_name(now->mode), mode_name(wanted->mode));
    if (now->policy != wanted->policy)
        note(reload, 0, now->id, "policy", config_policy_name(now->policy),
             config_policy_name(wanted->policy));
    if (now->aging_ms != wanted->aging_ms)
        note_number(reload, 0, now->id, "aging_ms", now->aging_ms, wanted->aging_ms);
    if (now->demand != wanted->demand)
        note(reload, 0, now->id, "demand", now->demand ? "yes" : "no",
             wanted->demand ? "yes" : "no");
    if (now->disabled != wanted->disabled)
        note(reload, 0, now->id, "state", now->disabled ? "disabled" : "enabled",
             wanted->disabled ? "disabled" : "enabled");
    if (strcmp(now->name, wanted->name) != 0)
        note(reload, 0, now->id, "name", now->name, wanted->name);
    if ((strcmp(now->device, wanted->device) != 0 || now->mode != wanted->mode) &&
        sched_update_pool(sched, now->id, device_of(reload->mediator, wanted), wanted->mode,
                          &error) < 0)
        log_error("%s", error.message);
    if (policy_apply_pool(reload->mediator, wanted, &error) < 0)
        log_error("%s", error.message);
    *now = *wanted;
}

static void apply_pools(struct reload *reload)
{
    struct mediator *mediator = reload->mediator;
    struct config_pool *now;

    for (size_t i = 0; i < reload->config->pool_count; i++) {
        const struct config_pool *wanted = &reload->config->pools[i];

        now = (struct config_pool *)mediator_find_pool(mediator, wanted->id);
        if (now)
            change_pool(reload, now, wanted);
        else
            add_pool(reload, wanted);
    }
}

static bool config_has_pool(const struct config *config, char id)
{
    for (size_t i = 0; i < config->pool_count; i++) {
        if (config->pools[i].id == id)
            return true;
    }
    return false;
}

/* After the VMs: whoever was in it is elsewhere now, or gone. */
static void remove_pools(struct reload *reload)
{
    struct mediator *mediator = reload->mediator;
    struct vgpu_error error;
    size_t kept = 0;

    for (size_t i = 0; i < mediator->pool_count; i++) {
        struct config_pool *pool = &mediator->pools[i];

        if (!config_has_pool(reload->config, pool->id) &&
            sched_remove_pool(mediator->sched, pool->id, &error) == 0) {
            note(reload, 0, pool->id, "pool", pool->device, "");
            continue;
        }
        mediator->pools[kept++] = *pool;
    }
    mediator->pool_count = kept;
}

static void tell_pools(struct mediator *mediator)
{
    char letters[CONFIG_POOLS_MAX + 1] = "";

    for (size_t i = 0; i < mediator->pool_count; i++)
        letters[i] = mediator->pools[i].id;
    channel_set_pools(mediator->channel, letters);
}

/* --- VMs ------------------------------------------------------------------------------- */

static const char *pool_text(char pool, char text[2])
{
    text[0] = pool;
    text[1] = '\0';
    return text;
}

/* A change of owner or mode, or a VM that is new, or has another channel than before. */
static void tell_channels(struct vm *vm, const struct config_vm *before)
{
    struct mediator *mediator = vm->mediator;
    const struct file_channel_vm known = mediator_channel_vm(mediator, &vm->settings);
    struct vgpu_error error;
    bool was_window =
        !before || before->channels == 0 || (before->channels & CONFIG_CHANNEL_WINDOW);

    if (mediator->channel)
        channel_set_vm(mediator->channel, &known, vm_uses(vm, CONFIG_CHANNEL_FILE));
    if (!mediator->windows)
        return;
    if (!vm_uses(vm, CONFIG_CHANNEL_WINDOW)) {
        if (was_window)
            vm_end_windows(vm, "this VM has no window channel any more");
    } else if (window_channel_set_vm(mediator->windows, &known, &error) < 0) {
        log_error("vm%u: %s", vm->vm_id, error.message);
    }
}

static void add_vm(struct reload *reload, const struct config_vm *wanted)
{
    struct mediator *mediator = reload->mediator;
    struct vm *vm = vm_find(mediator, wanted->vm_id);
    struct vgpu_error error;
    char pool[2];

    if (vm)
        vm_update(vm, wanted->pool, wanted->priority, &error); /* it was not registered */
    else
        vm = vm_new(mediator, wanted->vm_id, wanted->pool, wanted->priority, true, &error);
    if (!vm) {
        log_error("vm%u: %s", wanted->vm_id, error.message);
        return;
    }
    vm->registered = true;
    vm->listed = true;
    vm->settings = *wanted;
    policy_apply_vm(vm);
    if (!reload->report)
        return;
    note(reload, wanted->vm_id, wanted->pool, "vm", "", pool_text(wanted->pool, pool));
    reload_judge_vm(vm);
    tell_channels(vm, NULL);
}

static void change_place(struct reload *reload, struct vm *vm, const struct config_vm *wanted)
{
    char before = vm_pool(vm), old[2], new[2];
    unsigned priority = vm_priority(vm);
    const struct log_field fields[] = {LOG_NUMBER("vm", vm->vm_id),
                                       LOG_TEXT("pool", pool_text(wanted->pool, new)),
                                       LOG_NUMBER("priority", wanted->priority)};
    struct vgpu_error error;

    if (wanted->pool == before && wanted->priority == priority)
        return;
    if (vm_update(vm, wanted->pool, wanted->priority, &error) < 0) {
        log_error("vm%u stays in pool %c with priority %u: %s", vm->vm_id, before, priority,
                  error.message);
        return;
    }
    log_event("CONFIG", fields, VGPU_ARRAY_LENGTH(fields),
              "vm%u: pool %c, priority %u (was pool %c, priority %u)", vm->vm_id, wanted->pool,
              wanted->priority, before, priority);
    if (wanted->pool != before)
        note(reload, vm->vm_id, wanted->pool, "pool", pool_text(before, old), new);
    if (wanted->priority != priority)
        note(reload, vm->vm_id, wanted->pool, "priority", protocol_priority_name(priority),
             protocol_priority_name(wanted->priority));
}

/* One that is a number and nobody has to be told of. */
static void note_limit(struct reload *reload, const struct vm *vm, const char *what,
                       uint32_t before, uint32_t now)
{
    if (before != now)
        note_number(reload, vm->vm_id, '\0', what, before, now);
}

static void note_budget(struct reload *reload, const struct vm *vm, const struct config_vm *before)
{
    const struct config_vm *now = &vm->settings;

    note_limit(reload, vm, "weight", before->weight, now->weight);
    note_limit(reload, vm, "request_rate", before->request_rate, now->request_rate);
    note_limit(reload, vm, "request_burst", before->request_burst, now->request_burst);
    note_limit(reload, vm, "device_share_percent", before->device_share_percent,
               now->device_share_percent);
    note_limit(reload, vm, "queue_depth_max", before->queue_depth_max, now->queue_depth_max);
    note_limit(reload, vm, "inflight_ops_max", before->inflight_ops_max, now->inflight_ops_max);
    note_limit(reload, vm, "inflight_kib_max", before->inflight_kib_max, now->inflight_kib_max);
}

static void change_limits(struct reload *reload, struct vm *vm, const struct config_vm *before)
{
    struct window_session *ws;
    const struct config_vm *now = &vm->settings;

    note_limit(reload, vm, "sessions_max", before->sessions_max, now->sessions_max);
    note_limit(reload, vm, "device_memory_mib", before->device_memory_mib, now->device_memory_mib);
    note_budget(reload, vm, before);
    account_limit_changed(vm);
    if (before->operation_limit_ms == now->operation_limit_ms)
        return;
    note_number(reload, vm->vm_id, '\0', "operation_limit_ms", before->operation_limit_ms,
                now->operation_limit_ms);
    file_session_limit_changed(vm->file);
    TAILQ_FOREACH (ws, &vm->windows, in_vm)
        window_session_limit_changed(ws);
}

static void describe_access(const struct config_vm *vm, char text[64])
{
    snprintf(text, 64, "%ld:%ld %04o%s%s", (long)(int)vm->owner_uid, (long)(int)vm->owner_gid,
             (unsigned)vm->mode,
             vm->channels == 0 || (vm->channels & CONFIG_CHANNEL_FILE) ? " file" : "",
             vm->channels == 0 || (vm->channels & CONFIG_CHANNEL_WINDOW) ? " window" : "");
}

static bool has_other_owner(const struct config_vm *before, const struct config_vm *after)
{
    return before->owner_uid != after->owner_uid || before->owner_gid != after->owner_gid ||
           before->mode != after->mode;
}

/* A connection was let in by the old owner and mode, so it ends with them. */
static void change_access(struct reload *reload, struct vm *vm, const struct config_vm *before)
{
    char old[64], new[64];

    describe_access(before, old);
    describe_access(&vm->settings, new);
    if (strcmp(old, new) != 0)
        note(reload, vm->vm_id, '\0', "access", old, new);
    if (has_other_owner(before, &vm->settings) && vm->mediator->windows)
        vm_end_windows(vm, "who may use this VM was changed: connect again");
    if (strcmp(old, new) != 0 || before->sessions_max != vm->settings.sessions_max)
        tell_channels(vm, before);
}

static void change_vm(struct reload *reload, struct vm *vm, const struct config_vm *wanted)
{
    struct config_vm before = vm->settings;

    vm->listed = true;
    change_place(reload, vm, wanted);
    vm->settings = *wanted;
    policy_apply_vm(vm);
    if (strcmp(before.name, wanted->name) != 0)
        note(reload, vm->vm_id, '\0', "name", before.name, wanted->name);
    if (wanted->quarantined)
        vm->quarantine.on = false; /* the database has it */
    else if (before.quarantined)
        quarantine_forgive(vm);
    if (before.quarantined != wanted->quarantined)
        note(reload, vm->vm_id, '\0', "state", before.quarantined ? "quarantined" : "active",
             wanted->quarantined ? "quarantined" : "active");
    change_limits(reload, vm, &before);
    change_access(reload, vm, &before);
    if (before.pool != wanted->pool || before.priority != wanted->priority ||
        before.sessions_max != wanted->sessions_max)
        vm_push(vm);
}

/* The number was an earlier VM's: what that one had is not this one's. */
static bool is_another(const struct vm *vm, const struct config_vm *wanted)
{
    return vm && vm->settings.identity != wanted->identity;
}

static void replace_vm(struct reload *reload, struct vm *vm, const struct config_vm *wanted)
{
    char pool[2];

    if (vm->registered)
        note(reload, vm->vm_id, vm_pool(vm), "vm", pool_text(vm_pool(vm), pool), "");
    vm_remove(vm);
    add_vm(reload, wanted);
}

static void apply_vms(struct reload *reload)
{
    for (size_t i = 0; i < reload->config->vm_count; i++) {
        const struct config_vm *wanted = &reload->config->vms[i];
        struct vm *vm = vm_find(reload->mediator, wanted->vm_id);

        if (is_another(vm, wanted))
            replace_vm(reload, vm, wanted);
        else if (vm && vm->registered)
            change_vm(reload, vm, wanted);
        else
            add_vm(reload, wanted);
    }
}

static void remove_vms(struct reload *reload)
{
    struct vm *vm, *next;
    char pool[2];

    HASH_ITER (hh, reload->mediator->vms, vm, next) {
        if (vm->registered && !vm->listed) {
            note(reload, vm->vm_id, vm_pool(vm), "vm", pool_text(vm_pool(vm), pool), "");
            vm_remove(vm);
            continue;
        }
        vm->listed = false; /* for the next time */
    }
}

/* --- who may not work --------------------------------------------------------------------- */

/* Why there are not enough devices for a session, which is so. */
static void explain(struct mediator *mediator, const struct config_pool *pool,
                    char text[CONFIG_REFUSAL_BYTES])
{
    unsigned devices[CONFIG_POOL_DEVICES_MAX], at = 0;
    unsigned count = placement_devices(mediator, pool, devices);
    char why[CONFIG_REASON_BYTES];

    while (at < count && devices_usable(mediator, mediator->devices[devices[at]], why))
        at++;
    if (at < count)
        snprintf(text, CONFIG_REFUSAL_BYTES, "pool %c: its device %s does not work: %.200s",
                 pool->id, mediator->devices[devices[at]], why);
    else
        snprintf(
            text, CONFIG_REFUSAL_BYTES,
            "pool %c: a session needs %u devices of one kind, and it has %u: the administrator "
            "binds more to it, or lowers session_devices",
            pool->id, pool->session_devices, count);
}

static bool lacks_devices(struct mediator *mediator, const struct config_pool *pool)
{
    unsigned devices[CONFIG_POOL_DEVICES_MAX];

    if (placement_is_possible(mediator, pool))
        return false;
    return !mediator->config->gpu_missing_cpu ||
           placement_devices(mediator, pool, devices) < pool->session_devices;
}

static const char *quarantine_reason(const struct vm *vm)
{
    if (!vm->settings.quarantined)
        return vm->quarantine.reason;
    return vm->settings.reason[0] ? vm->settings.reason : "ask the administrator";
}

static void judge(const struct vm *vm, char text[CONFIG_REFUSAL_BYTES])
{
    struct mediator *mediator = vm->mediator;
    const struct config_pool *pool = mediator_find_pool(mediator, vm_pool(vm));
    unsigned devices[CONFIG_POOL_DEVICES_MAX];

    text[0] = '\0';
    if (quarantine_is_on(vm))
        snprintf(text, CONFIG_REFUSAL_BYTES, "VM %u is quarantined: %s", vm->vm_id,
                 quarantine_reason(vm));
    else if (pool && pool->disabled)
        snprintf(text, CONFIG_REFUSAL_BYTES,
                 "pool %c is disabled: the administrator enables it, or puts VM %u into another",
                 pool->id, vm->vm_id);
    else if (pool && placement_devices(mediator, pool, devices) == 0)
        snprintf(text, CONFIG_REFUSAL_BYTES,
                 "pool %c has no device that can be used: the administrator binds one to it",
                 pool->id);
    else if (pool && lacks_devices(mediator, pool))
        explain(mediator, pool, text);
}

void reload_judge_vm(struct vm *vm)
{
    char text[CONFIG_REFUSAL_BYTES];

    judge(vm, text);
    if (strcmp(text, vm->refusal) != 0)
        vm_set_refusal(vm, text);
    vm_check_device(vm);
}

void reload_judge(struct mediator *mediator)
{
    struct vm *vm, *next;

    devices_pause(mediator);
    HASH_ITER (hh, mediator->vms, vm, next)
        reload_judge_vm(vm);
    quarantine_update(mediator);
}

/* --- the whole ------------------------------------------------------------------------------ */

int reload_begin(struct mediator *mediator, struct vgpu_error *error)
{
    struct reload reload = {.mediator = mediator, .config = mediator->config};

    apply_pools(&reload);
    apply_vms(&reload);
    if (HASH_COUNT(mediator->vms) != mediator->config->vm_count)
        return error_set(error, EINVAL, "not all of the %zu VMs could be taken: the log says why",
                         mediator->config->vm_count);
    remove_vms(&reload); /* none: the marks go */
    reload_judge(mediator);
    return 0;
}

int reload_apply(struct mediator *mediator, struct reload_report *ret_report,
                 struct vgpu_error *error)
{
    struct reload_report report = {0};
    struct config config;
    struct reload reload = {.mediator = mediator, .config = &config, .report = &report};

    if (mediator->options.load(&config, mediator->options.load_context, error) < 0) {
        config_free(&config);
        return -1;
    }
    apply_contexts(&reload);
    apply_grant_rules(&reload);
    apply_quarantine_rules(&reload);
    report.next_start_count = config_next_start(mediator->config, &config, report.next_start);
    apply_pools(&reload);
    if (mediator->channel)
        tell_pools(mediator); /* before a VM of a new one asks */
    apply_vms(&reload);
    remove_vms(&reload);
    remove_pools(&reload);
    if (mediator->channel)
        tell_pools(mediator);
    reload_judge(mediator);
    gpus_update(mediator);
    config_free(&config);
    *ret_report = report;
    return 0;
}

void reload_report_free(struct reload_report *report)
{
    free(report->changes);
    *report = (struct reload_report){0};
}

void mediator_reload(struct mediator *mediator)
{
    struct reload_report report;
    struct vgpu_error error;

    mediator->reload_pending = !mediator_has_recovered(mediator);
    if (mediator->reload_pending)
        return; /* what an earlier mediator left is settled first */
    if (reload_apply(mediator, &report, &error) < 0) {
        log_error("the configuration was not read again, nothing changes: %s", error.message);
        return;
    }
    log_info("the configuration was read again: %zu changes", report.count);
    for (size_t i = 0; i < report.next_start_count; i++)
        log_info("%s has changed, from the next start on", report.next_start[i]);
    reload_report_free(&report);
}

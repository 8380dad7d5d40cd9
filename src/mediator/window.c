/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links: what the owners of windows ask for, and what they are told.
 *
 *   HELLO  ─▶ on_opened: known VM?  slots that it holds: attach their sessions
 *   OPEN   ─▶ a session, if the VM may have one more
 *   CLOSE  ─▶ the session's end ─▶ CLOSED
 *   RESET  ─▶ the end of all ─▶ RESET_DONE
 *   hang-up ─▶ sessions become orphans: when the owner lives it connects again and
 *              finds them; when it is dead its lifeline ends their workers
 *
 * Slots are the owner's to number; a session belongs to a window by the identity
 * of the memory (device and inode of the memfd), not by the link.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REFUSALS_A_SECOND 8 /* that are logged, of a VM */

void window_push_config(struct window *window)
{
    const struct vm *vm = window->vm;

    window_link_config(window->link, vm_pool(vm), vm_priority(vm), vm_sessions_max(window->vm));
}

static bool window_is_empty(const struct window *window)
{
    for (uint32_t slot = 0; slot < window->info.slot_count; slot++) {
        if (window->slots[slot])
            return false;
    }
    return true;
}

static void finish_reset(struct window *window)
{
    if (!window->resetting || !window_is_empty(window))
        return;
    window->resetting = false;
    window_link_reset_done(window->link);
}

void window_session_gone(struct window *window, uint32_t slot)
{
    window->slots[slot] = NULL;
    if (!window->resetting)
        window_link_state(window->link, slot, VGPU_SESSION_CLOSED, 0, NULL);
    finish_reset(window);
}

/* --- opening and closing slots ----------------------------------------------------- */

/* A guest can be refused as often as it likes to ask: the log tells of some. */
static bool may_tell_refusal(struct vm *vm)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (now_ns - vm->refusals_ns >= NS_PER_S) {
        vm->refusals_ns = now_ns;
        vm->refusals = 0;
    }
    return vm->refusals++ < REFUSALS_A_SECOND;
}

/* What the codes of refuse_session() mean for the counters. */
static enum metrics_refusal refusal_of(int code)
{
    if (code == EAGAIN)
        return METRICS_REFUSED_STOPPING;
    return code == EIO ? METRICS_REFUSED_FAILED : METRICS_REFUSED_SESSIONS;
}

static void refuse_session(struct window *window, uint32_t slot, int code, const char *text)
{
    struct vm *vm = window->vm;
    const struct log_field fields[] = {LOG_NUMBER("vm", vm->vm_id), LOG_NUMBER("slot", slot),
                                       LOG_TEXT("reason", text),
                                       LOG_NUMBER("untold", vm->refusals_untold)};

    if (code == EPERM)
        vm_count_refused(vm, 1);
    else
        vm_count_refusals(vm, refusal_of(code), 1);
    window_link_state(window->link, slot, VGPU_SESSION_REFUSED, code, text);
    if (!may_tell_refusal(vm)) {
        vm->refusals_untold++;
        return;
    }
    if (vm->refusals_untold > 0)
        log_event("REFUSED", fields, VGPU_ARRAY_LENGTH(fields),
                  "vm%u: no session in slot %u: %s (%u refusals before were too many to tell)",
                  vm->vm_id, slot, text, vm->refusals_untold);
    else
        log_event("REFUSED", fields, VGPU_ARRAY_LENGTH(fields) - 1,
                  "vm%u: no session in slot %u: %s", vm->vm_id, slot, text);
    vm->refusals_untold = 0;
}

void window_open(struct window *window, uint32_t slot)
{
    struct mediator *mediator = window->vm->mediator;
    struct window_session *old = window_session_find(window->vm, &window->info, slot);
    struct vgpu_error error;
    char text[VGPU_LINK_TEXT_BYTES];

    if (window->resetting || mediator->stopping) {
        refuse_session(window, slot, EAGAIN, "not now: try again in a moment");
    } else if (old && old->state == WINDOW_SESSION_ENDING && !old->window) {
        old->opener = window; /* its owner need not know of it: the answer comes later */
    } else if (old) {
        refuse_session(window, slot, EEXIST, "this slot's session has not ended yet");
    } else if (window->vm->refusal[0]) {
        refuse_session(window, slot, EPERM, window->vm->refusal);
    } else if (window->vm->window_count >= vm_sessions_max(window->vm)) {
        snprintf(text, sizeof(text), "VM %u has its %u sessions (sessions_max): end one first",
                 window->vm->vm_id, vm_sessions_max(window->vm));
        refuse_session(window, slot, EBUSY, text);
    } else if (window_session_open(window, slot, &error) < 0) {
        log_error("vm%u: slot %u: %s", window->vm->vm_id, slot, error.message);
        refuse_session(window, slot, EIO,
                       "no worker could be started for this VM; the mediator's log says why");
    }
}

static void on_open_session(struct window_link *link, uint32_t slot, void *data, void *context)
{
    (void)link, (void)context;
    window_open(data, slot);
}

static void claim(struct window *window, struct window_session *ws)
{
    fd_close(&ws->lifeline_fd);
    ws->window = window;
    ws->opener = NULL;
    window->slots[ws->slot] = ws;
}

static void on_close_session(struct window_link *link, uint32_t slot, void *data, void *context)
{
    struct window *window = data;
    struct window_session *ws = window_session_find(window->vm, &window->info, slot);

    (void)context;
    if (ws) {
        claim(window, ws); /* one that ends unclaimed, too: CLOSED comes after it */
        window_session_end(ws);
    } else {
        window_link_state(link, slot, VGPU_SESSION_CLOSED, 0, NULL);
    }
}

static void end_all(struct window *window)
{
    window->resetting = true;
    for (uint32_t slot = 0; slot < window->info.slot_count; slot++) {
        struct window_session *ws = window_session_find(window->vm, &window->info, slot);

        if (ws) {
            claim(window, ws); /* RESET_DONE waits for it */
            window_session_end(ws);
        }
    }
    finish_reset(window);
}

static void on_reset(struct window_link *link, void *data, void *context)
{
    struct window *window = data;

    (void)link, (void)context;
    if (vm_may_tell(window->vm))
        log_info("vm%u: the guest was reset: its sessions end", window->vm->vm_id);
    end_all(window);
}

/* --- links ---------------------------------------------------------------------------- */

/* For its owner the slot is closed, so it hears nothing of this end: it may open the
 * slot anew already, and would take the word for an answer. */
static void end_unclaimed(struct window *window, struct window_session *ws)
{
    if (window->resetting)
        claim(window, ws); /* RESET_DONE waits for it */
    window_session_end(ws);
}

/* A slot that the owner held before: its worker lives, or died with a mediator, or
 * nothing is known of it any more. */
static void reclaim_slot(struct window *window, uint32_t slot)
{
    struct window_session *ws = window_session_find(window->vm, &window->info, slot);
    bool wanted = (window->info.open_slots & (1u << slot)) && !window->resetting;
    struct vgpu_error error;

    if (ws && !ws->window && !wanted) {
        end_unclaimed(window, ws);
    } else if (ws && !ws->window) {
        window_session_attach(ws, window);
    } else if (wanted && window_session_reopen(window, slot, &error) < 0) {
        if (vm_may_tell(window->vm))
            log_warning("vm%u: slot %u cannot go on: %s", window->vm->vm_id, slot, error.message);
        window_link_state(window->link, slot, VGPU_SESSION_FAULTED, 0, NULL);
    }
}

static void window_free(struct window *window)
{
    struct window_session *ws;

    TAILQ_FOREACH (ws, &window->vm->windows, in_vm) {
        if (ws->opener == window)
            ws->opener = NULL;
    }
    for (uint32_t slot = 0; slot < window->info.slot_count; slot++) {
        if (window->slots[slot])
            window_session_orphan(window->slots[slot]);
    }
    fd_close(&window->lifeline_fd);
    LIST_REMOVE(window, in_mediator);
    free(window);
}

void window_drop(struct window *window, const char *reason)
{
    window_link_close(window->link, reason);
    window_free(window);
}

/* The owner connected again before the end of its last link was seen, which was
 * of the same memory. */
static void drop_older_link(struct mediator *mediator, const struct window_link_info *info)
{
    struct window *window, *next;

    for (window = LIST_FIRST(&mediator->links); window; window = next) {
        next = LIST_NEXT(window, in_mediator);
        if (window->vm->vm_id != info->vm_id || window->info.window_inode != info->window_inode ||
            window->info.window_device != info->window_device)
            continue;
        window_drop(window, "its owner connected again");
    }
}

static void log_link(const struct window *window, const char *tag, const char *what)
{
    const struct window_link_info *info = &window->info;
    const char *owner = info->owner == VGPU_LINK_OWNER_DEVICE ? "device" : "process";
    const struct log_field fields[] = {LOG_NUMBER("vm", window->vm->vm_id),
                                       LOG_TEXT("owner", owner),
                                       LOG_NUMBER("pid", (uint64_t)info->peer_pid),
                                       LOG_NUMBER("uid", info->peer_uid),
                                       LOG_NUMBER("window_bytes", info->window_bytes),
                                       LOG_NUMBER("slots", info->slot_count)};

    if (vm_may_tell(window->vm))
        log_event(tag, fields, VGPU_ARRAY_LENGTH(fields), "vm%u: %s %d: %s", window->vm->vm_id,
                  owner, (int)info->peer_pid, what);
}

static int on_opened(struct window_link *link, const struct window_link_info *info, void **ret_data,
                     void *context, struct vgpu_error *error)
{
    struct mediator *mediator = context;
    struct vm *vm = vm_find(mediator, info->vm_id);
    struct window *window;

    if (!vm)
        return error_set(error, ENOENT, "VM %u is not registered", info->vm_id);
    if (vm_is_ending(mediator, info->vm_id))
        return error_set(error, EAGAIN, "VM %u was removed a moment ago and still ends: try again",
                         info->vm_id);
    window = calloc(1, sizeof(*window));
    if (!window)
        return error_set(error, ENOMEM, "no memory for a window of VM %u", info->vm_id);
    drop_older_link(mediator, info);
    window->vm = vm;
    window->link = link;
    window->info = *info;
    window->lifeline_fd = fcntl(info->lifeline_fd, F_DUPFD_CLOEXEC, 0);
    window->resetting = info->resetting;
    LIST_INSERT_HEAD(&mediator->links, window, in_mediator);
    *ret_data = window;
    log_link(window, "LINK", "window connected");
    window_link_welcome(link, vm_pool(vm), vm_priority(vm), vm_sessions_max(vm));
    for (uint32_t slot = 0; slot < info->slot_count; slot++)
        reclaim_slot(window, slot);
    finish_reset(window);
    return 0;
}

static void on_closed(struct window_link *link, const char *reason, void *data, void *context)
{
    (void)link, (void)context;
    log_link(data, "UNLINK", reason);
    window_free(data);
}

static void on_refused(uint32_t vm_id, const char *reason, void *context)
{
    const struct log_field fields[] = {LOG_NUMBER("vm", vm_id), LOG_TEXT("reason", reason)};

    (void)context;
    log_event("REFUSED", fields, VGPU_ARRAY_LENGTH(fields), "vm%u: link refused: %s", vm_id,
              reason);
}

const struct window_channel_events window_events = {
    .opened = on_opened,
    .open_session = on_open_session,
    .close_session = on_close_session,
    .reset = on_reset,
    .closed = on_closed,
    .refused = on_refused,
};

void window_free_all(struct mediator *mediator)
{
    while (!LIST_EMPTY(&mediator->links))
        window_free(LIST_FIRST(&mediator->links)); /* NOLINT: the analyzer is lost in the macro */
}

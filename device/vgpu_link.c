/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The link of vgpu-stub: what the device and the mediator tell each other
 * (include/vgpu/link.h), and the sessions, which are all that the link is for.
 *
 *   chardev                 link                         sessions
 *   OPENED  ──────────▶ HELLO, DOORBELLS ──▶
 *                       ◀── WELCOME                  ──▶ STATUS.HOST
 *   SESSION_OPEN ─────▶ OPEN ──▶   ◀── STATE         ──▶ SESSION_STATE[slot]
 *   CLOSED  ──────────▶                              ──▶ no HOST; OPENING fails
 *
 * A session's state, as SESSION_STATE shows it (guest's writes in capitals):
 *
 *   CLOSED ──OPEN──▶ OPENING ──▶ READY ◀──▶ LOST, FAULTED
 *     ▲ ▲               │          │ CLOSE     │ CLOSE
 *     │ └─CLOSE─ REFUSED◀┘         ▼           ▼
 *     └─────────────────────── RESETTING ◀─ reset of the guest (all slots)
 *
 * In each state a guest has at most two messages to send (OPEN, then CLOSE), so
 * what stands in the socket is bounded.  A mediator that does not read, or says
 * what cannot be, loses its connection; QEMU never waits for it.  After each
 * reconnect HELLO tells which sessions are open, and what the mediator may have
 * missed is said again.
 */
#include "vgpu_stub.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"

/* --- the connection --- */

/* For the administrator, once: a link that fails is tried again each second. */
static void G_GNUC_PRINTF(2, 3)
vgpu_link_warn(VgpuStubState *s, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list words;

    if (s->link.warned) {
        return;
    }
    s->link.warned = true;
    va_start(words, format);
    text = g_strdup_vprintf(format, words);
    va_end(words);
    warn_report("vgpu-stub: VM %" PRIu32 ": %s", s->vm_id, text);
}

/* Later, because the chardev is in the middle of something. */
static void vgpu_link_drop(VgpuStubState *s)
{
    if (s->link.up && !s->link.dropping) {
        s->link.dropping = true;
        qemu_bh_schedule(s->link.drop);
    }
}

static void vgpu_link_on_drop(void *opaque)
{
    VgpuStubState *s = opaque;

    if (s->link.dropping) {
        qemu_chr_fe_disconnect(&s->chardev);
    }
}

/*
 * A message fits the socket's buffer whole, or the mediator has not read for a
 * long time: then the link ends.  Whatever is lost so is said again after the
 * next HELLO.
 */
static void vgpu_link_send(VgpuStubState *s, struct vgpu_link_message *message,
                           int *fds, uint32_t fd_count)
{
    int written;

    if (!s->link.up || s->link.dropping) {
        return;
    }
    message->magic = VGPU_LINK_MAGIC;
    message->version = VGPU_LINK_VERSION;
    message->fd_count = fd_count;
    if (qemu_chr_fe_set_msgfds(&s->chardev, fds, fd_count) < 0) {
        vgpu_link_warn(s, "the mediator's socket takes no descriptors");
        vgpu_link_drop(s);
        return;
    }
    written = qemu_chr_fe_write(&s->chardev, (const uint8_t *)message,
                                sizeof(*message));
    if (written != sizeof(*message)) {
        vgpu_link_drop(s);
    }
}

static void vgpu_link_send_slot(VgpuStubState *s, enum vgpu_link_type type,
                                uint32_t slot)
{
    struct vgpu_link_message message = { .type = type, .open.slot = slot };

    vgpu_link_send(s, &message, NULL, 0);
}

/* --- sessions --- */

static uint32_t vgpu_session_state(VgpuStubState *s, uint32_t slot)
{
    return s->session[slot] & VGPU_SESSION_STATE_MASK;
}

static bool vgpu_session_is_held(uint32_t state)
{
    return state == VGPU_SESSION_READY || state == VGPU_SESSION_LOST ||
           state == VGPU_SESSION_FAULTED;
}

static uint32_t vgpu_session_refused(uint32_t code)
{
    return VGPU_SESSION_REFUSED | code << VGPU_SESSION_CODE_SHIFT;
}

bool vgpu_session_open(VgpuStubState *s, uint32_t slot)
{
    uint32_t state;

    if (slot >= s->slot_count) {
        return false;
    }
    state = vgpu_session_state(s, slot);
    if (state != VGPU_SESSION_CLOSED && state != VGPU_SESSION_REFUSED) {
        return false;
    }
    if (!s->link.welcome) {
        s->session[slot] = vgpu_session_refused(EHOSTDOWN);
        return true;
    }
    s->session[slot] = VGPU_SESSION_OPENING;
    vgpu_link_send_slot(s, VGPU_LINK_OPEN, slot);
    return true;
}

bool vgpu_session_close(VgpuStubState *s, uint32_t slot)
{
    if (slot >= s->slot_count) {
        return false;
    }
    switch (vgpu_session_state(s, slot)) {
    case VGPU_SESSION_REFUSED: /* the guest has taken note */
        s->session[slot] = VGPU_SESSION_CLOSED;
        return true;
    case VGPU_SESSION_OPENING:
    case VGPU_SESSION_READY:
    case VGPU_SESSION_LOST:
    case VGPU_SESSION_FAULTED:
        s->session[slot] = VGPU_SESSION_RESETTING;
        if (s->link.welcome) { /* else after the next WELCOME */
            vgpu_link_send_slot(s, VGPU_LINK_CLOSE, slot);
        }
        return true;
    default:
        return false;
    }
}

static void vgpu_session_set_all(VgpuStubState *s, uint32_t state)
{
    uint32_t slot;

    for (slot = 0; slot < s->slot_count; slot++) {
        s->session[slot] = state;
    }
}

void vgpu_session_reset_all(VgpuStubState *s)
{
    bool used = false;
    uint32_t slot, state;

    if (s->resetting) {
        return;
    }
    for (slot = 0; slot < s->slot_count; slot++) {
        state = vgpu_session_state(s, slot);
        used = used || (state != VGPU_SESSION_CLOSED &&
                        state != VGPU_SESSION_REFUSED);
    }
    if (used) {
        s->resetting = true;
        vgpu_session_set_all(s, VGPU_SESSION_RESETTING);
        /* Without a link the next HELLO says it. */
        vgpu_link_send_slot(s, VGPU_LINK_RESET, 0);
    } else {
        vgpu_session_set_all(s, VGPU_SESSION_CLOSED);
    }
}

/* --- what the device says when a link begins --- */

static void vgpu_link_say_hello(VgpuStubState *s)
{
    struct vgpu_link_message message = {
        .type = VGPU_LINK_HELLO,
        .hello = {
            .owner = VGPU_LINK_OWNER_DEVICE,
            .vm_id = s->vm_id,
            .window_bytes = s->window_bytes,
            .slot_count = s->slot_count,
            .flags = s->resetting ? VGPU_LINK_HELLO_RESETTING : 0,
            .min_version = VGPU_LINK_VERSION,
        },
    };
    int fds[VGPU_LINK_HELLO_FDS] = {
        [VGPU_LINK_FD_WINDOW] = memory_region_get_fd(s->window),
        [VGPU_LINK_FD_INTERRUPT] = event_notifier_get_fd(&s->interrupt),
        [VGPU_LINK_FD_LIFELINE] = s->lifeline[0],
    };
    uint32_t slot;

    for (slot = 0; slot < s->slot_count; slot++) {
        if (vgpu_session_is_held(vgpu_session_state(s, slot))) {
            message.hello.open_slots |= 1u << slot;
        }
    }
    vgpu_link_send(s, &message, fds, VGPU_LINK_HELLO_FDS);
}

static void vgpu_link_say_doorbells(VgpuStubState *s)
{
    uint32_t first, i, count;

    for (first = 0; first < s->slot_count; first += VGPU_LINK_FDS_MAX) {
        struct vgpu_link_message message = {
            .type = VGPU_LINK_DOORBELLS,
            .doorbells.first_slot = first,
        };
        int fds[VGPU_LINK_FDS_MAX];

        count = MIN(s->slot_count - first, VGPU_LINK_FDS_MAX);
        for (i = 0; i < count; i++) {
            fds[i] = event_notifier_get_fd(&s->doorbell[first + i]);
        }
        vgpu_link_send(s, &message, fds, count);
    }
}

/* --- what the mediator says; false: it cannot be --- */

static bool vgpu_link_take_config(VgpuStubState *s,
                                  const struct vgpu_link_message *message)
{
    uint32_t pool = message->config.pool;
    uint32_t priority = message->config.priority;

    if (message->config.vm_id != s->vm_id || pool < 'A' || pool > 'Z' ||
        priority >= VGPU_PRIORITY_COUNT) {
        return false;
    }
    if (pool != s->pool_id || priority != s->priority) {
        s->pool_id = pool;
        s->priority = priority;
        vgpu_irq_raise(s, VGPU_IRQ_CONFIG);
    }
    return true;
}

static bool vgpu_link_take_welcome(VgpuStubState *s,
                                   const struct vgpu_link_message *message)
{
    uint32_t slot;

    if (s->link.welcome || !vgpu_link_take_config(s, message)) {
        return false;
    }
    s->link.welcome = true;
    s->link.warned = false;
    for (slot = 0; slot < s->slot_count && !s->resetting; slot++) {
        if (vgpu_session_state(s, slot) == VGPU_SESSION_RESETTING) {
            vgpu_link_send_slot(s, VGPU_LINK_CLOSE, slot);
        }
    }
    vgpu_irq_raise(s, VGPU_IRQ_CONFIG);
    return true;
}

/* The text is for a terminal: nothing in it may steer one. */
static bool vgpu_link_take_refused(VgpuStubState *s,
                                   const struct vgpu_link_message *message)
{
    g_autofree char *text = g_strndup(message->refused.text,
                                      VGPU_LINK_TEXT_BYTES);
    char *at;

    for (at = text; *at; at++) {
        if ((unsigned char)*at < ' ' || *at == 0x7f) {
            *at = '?';
        }
    }
    vgpu_link_warn(s, "the mediator refused the link: %s", text);
    vgpu_link_drop(s);
    return true;
}

static bool vgpu_link_state_known(uint32_t state)
{
    return vgpu_session_is_held(state) || state == VGPU_SESSION_CLOSED ||
           state == VGPU_SESSION_REFUSED;
}

static bool vgpu_link_take_state(VgpuStubState *s,
                                 const struct vgpu_link_message *message)
{
    uint32_t slot = message->state.slot, state = message->state.state;
    uint32_t code = message->state.code;
    uint32_t now, value = state;

    if (slot >= s->slot_count || !vgpu_link_state_known(state)) {
        return false;
    }
    now = vgpu_session_state(s, slot);
    if (now == VGPU_SESSION_CLOSED || now == VGPU_SESSION_REFUSED) {
        return true; /* nobody's: what it says interests no one */
    }
    if (now == VGPU_SESSION_RESETTING &&
        (s->resetting || state != VGPU_SESSION_CLOSED)) {
        return true; /* said before the mediator heard of the end */
    }
    if (state == VGPU_SESSION_REFUSED) {
        value = vgpu_session_refused(code >= 1 && code <= 4095 ? code : EIO);
    }
    if (value != s->session[slot]) {
        s->session[slot] = value;
        vgpu_irq_raise(s, VGPU_IRQ_CONFIG);
    }
    return true;
}

static bool vgpu_link_take_reset_done(VgpuStubState *s)
{
    if (s->resetting) {
        s->resetting = false;
        vgpu_session_set_all(s, VGPU_SESSION_CLOSED);
        vgpu_irq_raise(s, VGPU_IRQ_CONFIG);
    }
    return true;
}

static bool vgpu_link_take(VgpuStubState *s,
                           const struct vgpu_link_message *message)
{
    if (message->magic != VGPU_LINK_MAGIC ||
        message->version != VGPU_LINK_VERSION || message->fd_count != 0) {
        return false;
    }
    if (message->type == VGPU_LINK_WELCOME) {
        return vgpu_link_take_welcome(s, message);
    }
    if (message->type == VGPU_LINK_REFUSED) {
        return vgpu_link_take_refused(s, message);
    }
    if (!s->link.welcome) {
        return false;
    }
    switch (message->type) {
    case VGPU_LINK_STATE:
        return vgpu_link_take_state(s, message);
    case VGPU_LINK_CONFIG:
        return vgpu_link_take_config(s, message);
    case VGPU_LINK_RESET_DONE:
        return vgpu_link_take_reset_done(s);
    default:
        return false;
    }
}

/* --- the chardev --- */

static int vgpu_link_can_read(void *opaque)
{
    VgpuStubState *s = opaque;

    return VGPU_LINK_MESSAGE_BYTES - s->link.inbox_bytes;
}

/* Never more than was asked for, so a message ends where the bytes end.
 * Descriptors that nobody asked for are closed by the chardev. */
static void vgpu_link_read(void *opaque, const uint8_t *bytes, int count)
{
    VgpuStubState *s = opaque;
    VgpuLink *link = &s->link;

    if (link->dropping) {
        return;
    }
    memcpy(link->inbox.bytes + link->inbox_bytes, bytes, count);
    link->inbox_bytes += count;
    if (link->inbox_bytes < VGPU_LINK_MESSAGE_BYTES) {
        return;
    }
    link->inbox_bytes = 0;
    if (!vgpu_link_take(s, &link->inbox.message)) {
        vgpu_link_warn(s, "the mediator's message (type %u, version %u) makes "
                       "no sense: connecting anew",
                       link->inbox.message.type, link->inbox.message.version);
        vgpu_link_drop(s);
    }
}

static void vgpu_link_begin(VgpuStubState *s)
{
    s->link.up = true;
    s->link.dropping = false;
    s->link.welcome = false;
    s->link.inbox_bytes = 0;
    vgpu_link_say_hello(s);
    vgpu_link_say_doorbells(s);
}

/* Sessions that are open stay so: their workers may live, and the next HELLO
 * names them. */
static void vgpu_link_end(VgpuStubState *s)
{
    bool changed = s->link.welcome;
    uint32_t slot;

    s->link.up = false;
    s->link.dropping = false;
    s->link.welcome = false;
    for (slot = 0; slot < s->slot_count; slot++) {
        if (vgpu_session_state(s, slot) == VGPU_SESSION_OPENING) {
            s->session[slot] = vgpu_session_refused(EHOSTDOWN);
            changed = true;
        }
    }
    if (changed) {
        vgpu_irq_raise(s, VGPU_IRQ_CONFIG);
    }
}

static void vgpu_link_on_event(void *opaque, VgpuChardevEvent event)
{
    if (event == CHR_EVENT_OPENED) {
        vgpu_link_begin(opaque);
    } else if (event == CHR_EVENT_CLOSED) {
        vgpu_link_end(opaque);
    }
}

/* --- life --- */

void vgpu_link_start(VgpuStubState *s)
{
    if (!s->slot_count) {
        return;
    }
    s->link.drop = qemu_bh_new(vgpu_link_on_drop, s);
    qemu_chr_fe_set_handlers(&s->chardev, vgpu_link_can_read, vgpu_link_read,
                             vgpu_link_on_event, NULL, s, NULL, true);
}

void vgpu_link_stop(VgpuStubState *s)
{
    if (!s->slot_count) {
        return;
    }
    qemu_chr_fe_set_handlers(&s->chardev, NULL, NULL, NULL, NULL, NULL, NULL,
                             false);
    qemu_chr_fe_disconnect(&s->chardev);
    qemu_chr_fe_deinit(&s->chardev, false);
    qemu_bh_delete(s->link.drop);
    memset(&s->link, 0, sizeof(s->link));
}

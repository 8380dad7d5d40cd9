/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of vgpu-stub share: its state, and what each does for
 * the others.
 *
 *   vgpu_stub.c    registers, properties, life      asks the others
 *   vgpu_window.c  BAR2, doorbells, interrupts      asks vgpu_irqfd.c
 *   vgpu_irqfd.c   completions without QEMU (KVM)   asks nobody
 *   vgpu_link.c    talk with the mediator, sessions asks vgpu_window.c
 *
 * All of it runs under QEMU's big lock: register accesses in the processor's
 * thread, the rest in the main loop.
 */
#ifndef VGPU_DEVICE_STUB_H
#define VGPU_DEVICE_STUB_H

#include "compat.h"
#include "qemu/event_notifier.h"
#include "vgpu/link.h"
#include "vgpu/regs.h"

#define TYPE_VGPU_STUB "vgpu-stub"
#define VGPU_STUB(obj) OBJECT_CHECK(VgpuStubState, (obj), TYPE_VGPU_STUB)

#define VGPU_BAR_REGISTERS 0
#define VGPU_BAR_MSIX 1
#define VGPU_BAR_WINDOW 2

/* The connection to the mediator. */
typedef struct VgpuLink {
    QEMUBH *drop;
    bool up;       /* HELLO was said */
    bool dropping; /* it broke the rules: nothing is heard or said until it ends */
    bool welcome;  /* the mediator said WELCOME: STATUS bit HOST */
    bool warned;   /* once is enough until the next WELCOME */
    uint32_t inbox_bytes;
    union {
        struct vgpu_link_message message;
        uint8_t bytes[VGPU_LINK_MESSAGE_BYTES];
    } inbox;
} VgpuLink;

typedef struct VgpuStubState {
    PCIDevice parent_obj;

    MemoryRegion registers;
    Error *migration_blocker;

    /* As the user wrote them; checked and turned into numbers by realize. */
    char *pool_text;
    char *priority_text;
    HostMemoryBackend *memdev; /* NULL: registers only, no window, no link */
    VgpuChardev chardev;
    uint32_t sessions;
    bool irqfd;

    /* Identity: survives a reset. */
    uint32_t pool_id;
    uint32_t priority;
    uint32_t vm_id;

    /* The window; all of it for the device's life. */
    MemoryRegion *window;
    uint64_t window_bytes;
    uint32_t slot_count; /* 0 without a window */
    bool has_msix;
    bool irqfd_started, irqfd_open, irqfd_attached;
    int irqfd_virq; /* while attached */
    EventNotifier doorbell[VGPU_SLOTS_MAX];
    EventNotifier interrupt;
    int lifeline[2]; /* read end, write end */
    VgpuLink link;

    /* Sessions, as SESSION_STATE shows them. */
    uint32_t session[VGPU_SLOTS_MAX];
    bool resetting; /* the mediator has not said RESET_DONE yet */

    /* What the guest can change: back to zero at each reset. */
    uint32_t error;
    uint32_t irq_mask;
    uint32_t irq_status;
    uint32_t doorbells;
    uint32_t scratch;
} VgpuStubState;

/* --- vgpu_window.c --- */

/* Without side effects; true also when there is no window and none is asked. */
bool vgpu_window_check(VgpuStubState *s, Error **errp);

/* After the registers are there.  False: nothing is left behind. */
bool vgpu_window_realize(VgpuStubState *s, Error **errp);
void vgpu_window_exit(VgpuStubState *s);
void vgpu_window_write_header(VgpuStubState *s);

void vgpu_window_ring(VgpuStubState *s, uint32_t slot);
void vgpu_window_ring_all(VgpuStubState *s);

/* `cause`: one VGPU_IRQ_*. */
void vgpu_irq_raise(VgpuStubState *s, uint32_t cause);
void vgpu_irq_set_mask(VgpuStubState *s, uint32_t mask);

/* QEMU's main loop hears completions, or leaves them to KVM. */
void vgpu_irq_listen(VgpuStubState *s, bool listen);

/* --- vgpu_irqfd.c --- */

bool vgpu_irqfd_check(VgpuStubState *s, Error **errp);
void vgpu_irqfd_start(VgpuStubState *s);
void vgpu_irqfd_stop(VgpuStubState *s);

/* IRQ_MASK has changed, or MSI-X perhaps. */
void vgpu_irqfd_update(VgpuStubState *s);

/* --- vgpu_link.c --- */

void vgpu_link_start(VgpuStubState *s);
void vgpu_link_stop(VgpuStubState *s);

/* False: the slot cannot do it now, or there is no such slot. */
bool vgpu_session_open(VgpuStubState *s, uint32_t slot);
bool vgpu_session_close(VgpuStubState *s, uint32_t slot);

/* The guest was reset: no old work may touch what the new guest opens. */
void vgpu_session_reset_all(VgpuStubState *s);

#endif /* VGPU_DEVICE_STUB_H */

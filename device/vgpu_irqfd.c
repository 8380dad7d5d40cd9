/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Completions without QEMU (irqfd): under KVM the host's kernel can turn the
 * interrupt's eventfd into the guest's MSI itself.
 *
 *   irqfd=off   worker ─▶ eventfd ─▶ QEMU's main loop ─▶ msix_notify()
 *   irqfd=on    worker ─▶ eventfd ─▶ KVM ─▶ vector 0    while vector 0 is open
 *
 * "Open" means unmasked in MSI-X and in IRQ_MASK; else the main loop has the
 * eventfd, and what it counted meanwhile becomes pending there.  With irqfd the
 * completion bit of IRQ_STATUS is not set, as nobody in QEMU sees the completion.
 *
 * After a reset QEMU (7.2) takes vectors for open while MSI-X is still off, and
 * tells nothing when it is switched on: the first completion looks again.
 *
 * Off by default: tested under KVM with a processor that never runs, but not with
 * a guest, for want of a machine whose KVM runs one.
 */
#include "vgpu_stub.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "qemu/error-report.h"

/* False: the main loop goes on with it. */
static bool vgpu_irqfd_attach(VgpuStubState *s)
{
    int virq = vgpu_compat_add_msi_route(VGPU_VECTOR_COMPLETION, PCI_DEVICE(s));
    int result;

    if (virq < 0) {
        warn_report_once("vgpu-stub: no MSI route (%s): completions go "
                         "through QEMU", strerror(-virq));
        return false;
    }
    result = kvm_irqchip_add_irqfd_notifier_gsi(kvm_state, &s->interrupt, NULL,
                                                virq);
    if (result < 0) {
        kvm_irqchip_release_virq(kvm_state, virq);
        warn_report_once("vgpu-stub: no irqfd (%s): completions go through "
                         "QEMU", strerror(-result));
        return false;
    }
    s->irqfd_virq = virq;
    return true;
}

static void vgpu_irqfd_detach(VgpuStubState *s)
{
    kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state, &s->interrupt,
                                          s->irqfd_virq);
    kvm_irqchip_release_virq(kvm_state, s->irqfd_virq);
}

void vgpu_irqfd_update(VgpuStubState *s)
{
    bool wanted = s->irqfd_open && (s->irq_mask & VGPU_IRQ_COMPLETION) &&
                  msix_enabled(PCI_DEVICE(s));

    if (wanted == s->irqfd_attached) {
        return;
    }
    if (!wanted) {
        vgpu_irqfd_detach(s);
        s->irqfd_attached = false;
        vgpu_irq_listen(s, true);
    } else if (vgpu_irqfd_attach(s)) {
        s->irqfd_attached = true;
        vgpu_irq_listen(s, false);
    } else {
        s->irqfd_open = false; /* not tried again before its next opening */
    }
}

/* The guest has opened a vector, with a message that is new perhaps: it was
 * masked before, so there is no older route. */
static int vgpu_irqfd_on_open(PCIDevice *pci, unsigned vector, MSIMessage message)
{
    VgpuStubState *s = VGPU_STUB(pci);

    if (vector == VGPU_VECTOR_COMPLETION) {
        s->irqfd_open = true;
        vgpu_irqfd_update(s);
    }
    return 0;
}

static void vgpu_irqfd_on_mask(PCIDevice *pci, unsigned vector)
{
    VgpuStubState *s = VGPU_STUB(pci);

    if (vector == VGPU_VECTOR_COMPLETION) {
        s->irqfd_open = false;
        vgpu_irqfd_update(s);
    }
}

bool vgpu_irqfd_check(VgpuStubState *s, Error **errp)
{
    if (s->irqfd && !s->memdev) {
        error_setg(errp, "vgpu-stub: irqfd=on is given without memdev: there "
                   "are no completions without a window");
        return false;
    }
    if (s->irqfd && !kvm_msi_via_irqfd_enabled()) {
        error_setg(errp, "vgpu-stub: irqfd=on needs -accel kvm with its "
                   "in-kernel irqchip: use irqfd=off");
        return false;
    }
    return true;
}

void vgpu_irqfd_start(VgpuStubState *s)
{
    if (s->irqfd && s->has_msix) {
        msix_set_vector_notifiers(PCI_DEVICE(s), vgpu_irqfd_on_open,
                                  vgpu_irqfd_on_mask, NULL);
        s->irqfd_started = true;
    }
}

/* Masks all vectors, as far as we are concerned. */
void vgpu_irqfd_stop(VgpuStubState *s)
{
    if (s->irqfd_started) {
        msix_unset_vector_notifiers(PCI_DEVICE(s));
        s->irqfd_started = false;
    }
}

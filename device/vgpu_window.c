/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The window of vgpu-stub: memory that the guest and the workers share, and the
 * two ways to wake each other.
 *
 *   guest                      QEMU                      worker
 *   BAR2  ─────────────────── memfd ───────────────────▶ maps one slot
 *   SLOT_DOORBELL[n] ──▶ eventfd n (no exit to us) ────▶ epoll
 *   DOORBELL ──────────▶ all eventfds, and counted
 *   MSI-X vector 0 ◀──── fd handler ◀── eventfd ◀─────── completion
 *
 * QEMU reads and writes nothing in the window but its header, which informs
 * only: what a guest puts there cannot harm this process.
 */
#include "vgpu_stub.h"
#include <linux/magic.h>
#include <sys/vfs.h>
#include "hw/pci/msix.h"
#include "qemu/main-loop.h"

/* --- what can be a window --- */

static bool vgpu_window_check_pair(VgpuStubState *s, Error **errp)
{
    bool has_chardev = qemu_chr_fe_backend_connected(&s->chardev);

    if (s->sessions < 1 || s->sessions > VGPU_SLOTS_MAX) {
        error_setg(errp, "vgpu-stub: sessions is %" PRIu32 ": "
                   "use a whole number from 1 to %u", s->sessions,
                   VGPU_SLOTS_MAX);
        return false;
    }
    if (s->memdev && !has_chardev) {
        error_setg(errp, "vgpu-stub: memdev is given without chardev: add "
                   "chardev=ID, the ID of a -chardev socket to the mediator");
        return false;
    }
    if (!s->memdev && has_chardev) {
        error_setg(errp, "vgpu-stub: chardev is given without memdev: add "
                   "memdev=ID, the ID of a -object memory-backend-memfd");
        return false;
    }
    return true;
}

static bool vgpu_window_check_chardev(VgpuStubState *s, Error **errp)
{
    Chardev *chardev = qemu_chr_fe_get_driver(&s->chardev);

    if (!qemu_chr_has_feature(chardev, QEMU_CHAR_FEATURE_FD_PASS)) {
        error_setg(errp, "vgpu-stub: chardev '%s' cannot pass descriptors: use "
                   "-chardev socket,id=%s,path=PATH,reconnect=1 with the path "
                   "of the VM's unix socket", chardev->label, chardev->label);
        return false;
    }
    return true;
}

/* The mediator refuses what workers could not rely on; better said here, once
 * and before the guest runs. */
static bool vgpu_window_check_memfd(VgpuStubState *s, MemoryRegion *window,
                                    const char *id, Error **errp)
{
    int fd = memory_region_get_fd(window);
    int seals = fd < 0 ? -1 : fcntl(fd, F_GET_SEALS);
    struct statfs system;

    if (!s->memdev->share || seals < 0 || !(seals & F_SEAL_SHRINK)) {
        error_setg(errp, "vgpu-stub: memdev '%s' is not shared memory of fixed "
                   "size: use -object memory-backend-memfd,id=%s,size=64M,"
                   "share=on", id, id);
        return false;
    }
    if (fstatfs(fd, &system) < 0 || system.f_type != TMPFS_MAGIC) {
        error_setg(errp, "vgpu-stub: memdev '%s' has huge pages: "
                   "leave hugetlb and hugetlbsize out", id);
        return false;
    }
    return true;
}

static bool vgpu_window_check_size(VgpuStubState *s, uint64_t bytes,
                                   const char *id, Error **errp)
{
    if (!is_power_of_2(bytes) || bytes < VGPU_WINDOW_MIN_BYTES ||
        bytes > VGPU_WINDOW_MAX_BYTES) {
        error_setg(errp, "vgpu-stub: memdev '%s' has %" PRIu64 " bytes: use a "
                   "power of two from 2M to 64G", id, bytes);
        return false;
    }
    if (!vgpu_window_slot_bytes(bytes, s->sessions)) {
        error_setg(errp, "vgpu-stub: memdev '%s' has %" PRIu64 " bytes, too few "
                   "for %" PRIu32 " sessions: use size=8M or more, or fewer "
                   "sessions", id, bytes, s->sessions);
        return false;
    }
    return true;
}

static bool vgpu_window_check_memdev(VgpuStubState *s, Error **errp)
{
    MemoryRegion *window = host_memory_backend_get_memory(s->memdev);
    g_autofree char *id = vgpu_compat_id(OBJECT(s->memdev));

    if (host_memory_backend_is_mapped(s->memdev)) {
        error_setg(errp, "vgpu-stub: memdev '%s' is in use: "
                   "give each device a memory backend of its own", id);
        return false;
    }
    return vgpu_window_check_memfd(s, window, id, errp) &&
           vgpu_window_check_size(s, memory_region_size(window), id, errp);
}

bool vgpu_window_check(VgpuStubState *s, Error **errp)
{
    if (!vgpu_window_check_pair(s, errp) || !vgpu_irqfd_check(s, errp)) {
        return false;
    }
    return !s->memdev || (vgpu_window_check_chardev(s, errp) &&
                          vgpu_window_check_memdev(s, errp));
}

/* --- interrupts --- */

static void vgpu_irq_send(VgpuStubState *s, uint32_t causes)
{
    PCIDevice *pci = PCI_DEVICE(s);

    if (!s->has_msix) {
        return;
    }
    if (causes & VGPU_IRQ_COMPLETION) {
        msix_notify(pci, VGPU_VECTOR_COMPLETION);
    }
    if (causes & VGPU_IRQ_CONFIG) {
        msix_notify(pci, VGPU_VECTOR_CONFIG);
    }
}

/* Each event interrupts, also when its bit is still pending: a driver may leave
 * IRQ_STATUS alone. */
void vgpu_irq_raise(VgpuStubState *s, uint32_t cause)
{
    s->irq_status |= cause;
    vgpu_irq_send(s, cause & s->irq_mask);
}

/* What became pending while it was masked interrupts now. */
void vgpu_irq_set_mask(VgpuStubState *s, uint32_t mask)
{
    uint32_t opened = mask & ~s->irq_mask & VGPU_IRQ_ALL;

    s->irq_mask = mask & VGPU_IRQ_ALL;
    vgpu_irqfd_update(s);
    vgpu_irq_send(s, opened & s->irq_status);
}

static void vgpu_irq_on_completion(void *opaque)
{
    VgpuStubState *s = opaque;

    if (event_notifier_test_and_clear(&s->interrupt)) {
        vgpu_irq_raise(s, VGPU_IRQ_COMPLETION);
        vgpu_irqfd_update(s);
    }
}

void vgpu_irq_listen(VgpuStubState *s, bool listen)
{
    qemu_set_fd_handler(event_notifier_get_fd(&s->interrupt),
                        listen ? vgpu_irq_on_completion : NULL, NULL, s);
}

/* A machine without MSI has a device without it: its guest can poll. */
static bool vgpu_msix_realize(VgpuStubState *s, Error **errp)
{
    PCIDevice *pci = PCI_DEVICE(s);
    Error *cause = NULL;
    int result = msix_init_exclusive_bar(pci, VGPU_VECTOR_COUNT, VGPU_BAR_MSIX,
                                         &cause);
    unsigned i;

    if (result == -ENOTSUP) {
        error_free(cause);
        return true;
    }
    if (result) {
        error_propagate(errp, cause);
        return false;
    }
    for (i = 0; i < VGPU_VECTOR_COUNT; i++) {
        msix_vector_use(pci, i);
    }
    s->has_msix = true;
    return true;
}

/* --- doorbells --- */

void vgpu_window_ring(VgpuStubState *s, uint32_t slot)
{
    event_notifier_set(&s->doorbell[slot]);
}

void vgpu_window_ring_all(VgpuStubState *s)
{
    uint32_t slot;

    for (slot = 0; slot < s->slot_count; slot++) {
        vgpu_window_ring(s, slot);
    }
}

static void vgpu_window_close_fds(VgpuStubState *s, uint32_t doorbells)
{
    while (doorbells-- > 0) {
        event_notifier_cleanup(&s->doorbell[doorbells]);
    }
    event_notifier_cleanup(&s->interrupt);
    close(s->lifeline[0]);
    close(s->lifeline[1]);
}

/* The write end of the lifeline is never handed out, nor inherited by programs
 * that QEMU starts: when it hangs up, this QEMU has gone. */
static bool vgpu_window_open_fds(VgpuStubState *s, Error **errp)
{
    uint32_t made = 0;
    int result;

    if (pipe2(s->lifeline, O_CLOEXEC) < 0) {
        error_setg_errno(errp, errno, "vgpu-stub: cannot make a pipe");
        return false;
    }
    result = event_notifier_init(&s->interrupt, 0);
    if (result < 0) {
        error_setg_errno(errp, -result, "vgpu-stub: cannot make an eventfd");
        close(s->lifeline[0]);
        close(s->lifeline[1]);
        return false;
    }
    while (made < s->sessions) {
        result = event_notifier_init(&s->doorbell[made], 0);
        if (result < 0) {
            error_setg_errno(errp, -result, "vgpu-stub: cannot make an eventfd");
            vgpu_window_close_fds(s, made);
            return false;
        }
        made++;
    }
    return true;
}

/* --- life --- */

void vgpu_window_write_header(VgpuStubState *s)
{
    struct vgpu_window_header *header;

    if (!s->slot_count) {
        return;
    }
    header = memory_region_get_ram_ptr(s->window);
    *header = (struct vgpu_window_header) {
        .magic = VGPU_WINDOW_MAGIC,
        .version = VGPU_WINDOW_VERSION,
        .window_bytes = s->window_bytes,
        .slot_bytes = vgpu_window_slot_bytes(s->window_bytes, s->slot_count),
        .slot_count = s->slot_count,
        .ring_entries = VGPU_RING_ENTRIES,
    };
}

bool vgpu_window_realize(VgpuStubState *s, Error **errp)
{
    uint32_t slot;

    if (!s->memdev) {
        return true;
    }
    if (!vgpu_window_open_fds(s, errp)) {
        return false;
    }
    if (!vgpu_msix_realize(s, errp)) {
        vgpu_window_close_fds(s, s->sessions);
        return false;
    }
    s->slot_count = s->sessions;
    s->window = host_memory_backend_get_memory(s->memdev);
    s->window_bytes = memory_region_size(s->window);
    host_memory_backend_set_mapped(s->memdev, true);
    vgpu_window_write_header(s);
    pci_register_bar(PCI_DEVICE(s), VGPU_BAR_WINDOW,
                     PCI_BASE_ADDRESS_SPACE_MEMORY |
                         PCI_BASE_ADDRESS_MEM_PREFETCH |
                         PCI_BASE_ADDRESS_MEM_TYPE_64,
                     s->window);
    for (slot = 0; slot < s->slot_count; slot++) {
        memory_region_add_eventfd(&s->registers,
                                  VGPU_REG_SLOT_DOORBELL + 4 * slot, 4, false,
                                  0, &s->doorbell[slot]);
    }
    vgpu_irq_listen(s, true);
    vgpu_irqfd_start(s);
    return true;
}

void vgpu_window_exit(VgpuStubState *s)
{
    uint32_t slot;

    if (!s->slot_count) {
        return;
    }
    vgpu_irqfd_stop(s);
    vgpu_irq_listen(s, false);
    for (slot = 0; slot < s->slot_count; slot++) {
        memory_region_del_eventfd(&s->registers,
                                  VGPU_REG_SLOT_DOORBELL + 4 * slot, 4, false,
                                  0, &s->doorbell[slot]);
    }
    if (s->has_msix) {
        msix_uninit_exclusive_bar(PCI_DEVICE(s));
        s->has_msix = false;
    }
    vgpu_window_close_fds(s, s->slot_count);
    host_memory_backend_set_mapped(s->memdev, false);
    s->slot_count = 0;
}

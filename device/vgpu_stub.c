/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vgpu-stub - the PCI device by which a guest knows its virtual GPU.
 *
 * The device computes nothing.  It tells the guest who it is (pool, priority
 * and VM id, as the VM was started with) and takes doorbell writes.
 * include/vgpu/regs.h names the registers, docs/device.md specifies them,
 * tests/vm/test_device.py reads each of them from a real guest: three views of
 * one contract.
 *
 *   -device vgpu-stub,pool_id=B,priority=high,vm_id=200
 *                          |
 *                     realize: identity --> POOL_ID, PRIORITY, VM_ID
 *                          |
 *   BAR0  4 KiB registers  |  read/write --> check width --> one register
 *
 * and, with memdev= and chardev=, also (vgpu_window.c, vgpu_link.c):
 *
 *   BAR1  MSI-X            |  completion, configuration changed
 *   BAR2  window           |  shared with the workers on the host
 *
 * Guests are hostile: any access of any width at any offset has a defined
 * result, costs constant time and can harm only the guest's own registers.
 */
#include "vgpu_stub.h"

/* --- registers --- */

static void vgpu_stub_note_error(VgpuStubState *s, uint32_t error,
                                 const char *what, hwaddr offset, unsigned size)
{
    s->error |= error;
    qemu_log_mask(LOG_GUEST_ERROR,
                  "vgpu-stub: vm %" PRIu32 ": %s: offset 0x%" HWADDR_PRIx
                  ", %u bytes\n", s->vm_id, what, offset, size);
}

/*
 * The memory core hands every access down as the guest made it, so that a bad
 * one has the result that docs/device.md promises, not that of the QEMU version
 * at hand.
 */
static bool vgpu_stub_access_ok(VgpuStubState *s, hwaddr offset, unsigned size)
{
    if (size == 4 && offset % 4 == 0) {
        return true;
    }
    vgpu_stub_note_error(s, VGPU_DEVERR_ACCESS,
                         "access is not 32 bits wide and aligned", offset,
                         size);
    return false;
}

/* Registers that come once a slot exist for the slots that there are. */
static bool vgpu_stub_slot_of(VgpuStubState *s, hwaddr offset, hwaddr first,
                              uint32_t *ret_slot)
{
    if (offset < first || offset >= first + 4 * s->slot_count) {
        return false;
    }
    *ret_slot = (offset - first) / 4;
    return true;
}

static uint32_t vgpu_stub_status(VgpuStubState *s)
{
    return VGPU_STATUS_READY | (s->link.welcome ? VGPU_STATUS_HOST : 0) |
           (s->resetting ? VGPU_STATUS_RESETTING : 0);
}

static uint32_t vgpu_stub_caps(VgpuStubState *s)
{
    return (s->slot_count ? VGPU_CAP_WINDOW : 0) |
           (s->has_msix ? VGPU_CAP_MSIX : 0);
}

static uint64_t vgpu_stub_read(void *opaque, hwaddr offset, unsigned size)
{
    VgpuStubState *s = opaque;
    uint32_t slot;

    if (!vgpu_stub_access_ok(s, offset, size)) {
        return UINT64_MAX;
    }
    switch (offset) {
    case VGPU_REG_DOORBELL:
    case VGPU_REG_SESSION_OPEN:
    case VGPU_REG_SESSION_CLOSE:
        return 0;
    case VGPU_REG_STATUS:
        return vgpu_stub_status(s);
    case VGPU_REG_POOL_ID:
        return s->pool_id;
    case VGPU_REG_PRIORITY:
        return s->priority;
    case VGPU_REG_VM_ID:
        return s->vm_id;
    case VGPU_REG_MAGIC:
        return VGPU_MAGIC;
    case VGPU_REG_VERSION:
        return VGPU_VERSION;
    case VGPU_REG_CAPS:
        return vgpu_stub_caps(s);
    case VGPU_REG_WINDOW_LO:
        return (uint32_t)s->window_bytes;
    case VGPU_REG_WINDOW_HI:
        return s->window_bytes >> 32;
    case VGPU_REG_ERROR:
        return s->error;
    case VGPU_REG_IRQ_MASK:
        return s->irq_mask;
    case VGPU_REG_IRQ_STATUS:
        return s->irq_status;
    case VGPU_REG_DOORBELLS:
        return s->doorbells;
    case VGPU_REG_SCRATCH:
        return s->scratch;
    case VGPU_REG_SLOTS:
        return s->slot_count;
    default:
        if (vgpu_stub_slot_of(s, offset, VGPU_REG_SESSION_STATE, &slot)) {
            return s->session[slot];
        }
        if (vgpu_stub_slot_of(s, offset, VGPU_REG_SLOT_DOORBELL, &slot)) {
            return 0;
        }
        vgpu_stub_note_error(s, VGPU_DEVERR_OFFSET, "read of no register",
                             offset, size);
        return 0;
    }
}

static bool vgpu_stub_is_read_only(VgpuStubState *s, hwaddr offset)
{
    uint32_t slot;

    return offset <= VGPU_REG_SLOTS ||
           vgpu_stub_slot_of(s, offset, VGPU_REG_SESSION_STATE, &slot);
}

/* A write that changes nothing: to a slot's doorbell (where no eventfd caught
 * it), to a register that can only be read, or to none. */
static void vgpu_stub_write_other(VgpuStubState *s, hwaddr offset, unsigned size)
{
    uint32_t slot;

    if (vgpu_stub_slot_of(s, offset, VGPU_REG_SLOT_DOORBELL, &slot)) {
        s->doorbells++;
        vgpu_window_ring(s, slot);
    } else if (vgpu_stub_is_read_only(s, offset)) {
        vgpu_stub_note_error(s, VGPU_DEVERR_READ_ONLY,
                             "write to a read-only register", offset, size);
    } else {
        vgpu_stub_note_error(s, VGPU_DEVERR_OFFSET, "write to no register",
                             offset, size);
    }
}

static void vgpu_stub_write(void *opaque, hwaddr offset, uint64_t value,
                            unsigned size)
{
    VgpuStubState *s = opaque;
    bool session_ok = true;

    if (!vgpu_stub_access_ok(s, offset, size)) {
        return;
    }
    switch (offset) {
    case VGPU_REG_DOORBELL:
        s->doorbells++;
        vgpu_window_ring_all(s);
        break;
    case VGPU_REG_ERROR:
        s->error &= ~(uint32_t)value;
        break;
    case VGPU_REG_IRQ_MASK:
        vgpu_irq_set_mask(s, value);
        break;
    case VGPU_REG_IRQ_STATUS:
        s->irq_status &= ~(uint32_t)value;
        break;
    case VGPU_REG_SCRATCH:
        s->scratch = value;
        break;
    case VGPU_REG_SESSION_OPEN:
        session_ok = vgpu_session_open(s, value);
        break;
    case VGPU_REG_SESSION_CLOSE:
        session_ok = vgpu_session_close(s, value);
        break;
    default:
        vgpu_stub_write_other(s, offset, size);
        break;
    }
    if (!session_ok) {
        vgpu_stub_note_error(s, VGPU_DEVERR_SESSION,
                             "no such slot, or it cannot do this now", offset,
                             size);
    }
}

static const MemoryRegionOps vgpu_stub_register_ops = {
    .read = vgpu_stub_read,
    .write = vgpu_stub_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 8, .unaligned = true },
    .impl = { .min_access_size = 1, .max_access_size = 8, .unaligned = true },
};

/* --- properties --- */

static bool vgpu_stub_parse_pool(VgpuStubState *s, Error **errp)
{
    const char *text = s->pool_text;

    if (text[0] < 'A' || text[0] > 'Z' || text[1] != '\0') {
        error_setg(errp, "vgpu-stub: pool_id '%s' is not a pool: "
                   "use one letter from A to Z", text);
        return false;
    }
    s->pool_id = text[0];
    return true;
}

static bool vgpu_stub_parse_priority(VgpuStubState *s, Error **errp)
{
    static const char *const names[VGPU_PRIORITY_COUNT][2] = {
        [VGPU_PRIORITY_LOW] = { "0", "low" },
        [VGPU_PRIORITY_MEDIUM] = { "1", "medium" },
        [VGPU_PRIORITY_HIGH] = { "2", "high" },
    };
    uint32_t i;

    for (i = 0; i < VGPU_PRIORITY_COUNT; i++) {
        if (!strcmp(s->priority_text, names[i][0]) ||
            !strcmp(s->priority_text, names[i][1])) {
            s->priority = i;
            return true;
        }
    }
    error_setg(errp, "vgpu-stub: priority '%s' is not a priority: "
               "use 0, 1, 2 or low, medium, high", s->priority_text);
    return false;
}

/*
 * A number of its own kind, because QEMU's own kinds answer a bad value with
 * the name of a C type.
 */
static void vgpu_stub_set_vm_id(Object *obj, Visitor *v, const char *name,
                                void *opaque, Error **errp)
{
    Error *cause = NULL;
    uint64_t value = 0;

    if (!vgpu_compat_may_set(obj, name, errp)) {
        return;
    }
    visit_type_uint64(v, name, &value, &cause);
    if (cause || value < 1 || value > UINT32_MAX) {
        error_free(cause);
        error_setg(errp, "vgpu-stub: vm_id is not a VM's number: "
                   "use a whole number from 1 to 4294967295");
        return;
    }
    VGPU_STUB(obj)->vm_id = value;
}

static void vgpu_stub_get_vm_id(Object *obj, Visitor *v, const char *name,
                                void *opaque, Error **errp)
{
    visit_type_uint32(v, name, &VGPU_STUB(obj)->vm_id, errp);
}

static const PropertyInfo vgpu_stub_vm_id_info = {
    .VGPU_PROPERTY_TYPE = "uint32",
    .description = "the VM's number, 1 to 4294967295 (required)",
    .get = vgpu_stub_get_vm_id,
    .set = vgpu_stub_set_vm_id,
};

static VGPU_PROPERTIES vgpu_stub_properties[] = {
    DEFINE_PROP_STRING("pool_id", VgpuStubState, pool_text),
    DEFINE_PROP_STRING("priority", VgpuStubState, priority_text),
    DEFINE_PROP("vm_id", VgpuStubState, vm_id, vgpu_stub_vm_id_info, uint32_t),
    DEFINE_PROP_LINK("memdev", VgpuStubState, memdev, TYPE_MEMORY_BACKEND,
                     HostMemoryBackend *),
    DEFINE_PROP_CHR("chardev", VgpuStubState, chardev),
    DEFINE_PROP_UINT32("sessions", VgpuStubState, sessions, VGPU_SLOTS_DEFAULT),
    DEFINE_PROP_BOOL("irqfd", VgpuStubState, irqfd, false),
    VGPU_PROPERTIES_END
};

static bool vgpu_stub_check_properties(VgpuStubState *s, Error **errp)
{
    if (!s->vm_id) {
        error_setg(errp, "vgpu-stub: vm_id is missing: "
                   "add vm_id=N, a whole number from 1 to 4294967295");
        return false;
    }
    return vgpu_stub_parse_pool(s, errp) && vgpu_stub_parse_priority(s, errp) &&
           vgpu_window_check(s, errp);
}

/* --- migration --- */

static bool vgpu_stub_block_migration(VgpuStubState *s, Error **errp)
{
    error_setg(&s->migration_blocker,
               "vgpu-stub: VM %" PRIu32 " cannot be migrated, saved or "
               "snapshotted, because its GPU work lives on this host: "
               "shut the VM down or unplug the device first", s->vm_id);
    return vgpu_compat_block_migration(&s->migration_blocker, errp);
}

/* Xen's toolstack saves devices without asking for blockers. */
static int vgpu_stub_pre_save(void *opaque)
{
    return -EPERM;
}

static const VMStateDescription vgpu_stub_vmstate = {
    .name = TYPE_VGPU_STUB,
    .pre_save = vgpu_stub_pre_save,
    .fields = (VMStateField[]) { VMSTATE_END_OF_LIST() },
};

/* --- life --- */

static void vgpu_stub_init(Object *obj)
{
    VgpuStubState *s = VGPU_STUB(obj);

    s->pool_text = g_strdup("A");
    s->priority_text = g_strdup("medium");
}

static void vgpu_stub_realize(PCIDevice *pci, Error **errp)
{
    VgpuStubState *s = VGPU_STUB(pci);

    if (!vgpu_stub_check_properties(s, errp) ||
        !vgpu_stub_block_migration(s, errp)) {
        return;
    }
    memory_region_init_io(&s->registers, OBJECT(s), &vgpu_stub_register_ops, s,
                          "vgpu-stub-registers", VGPU_BAR0_BYTES);
    pci_register_bar(pci, VGPU_BAR_REGISTERS, PCI_BASE_ADDRESS_SPACE_MEMORY,
                     &s->registers);
    if (!vgpu_window_realize(s, errp)) {
        vgpu_compat_unblock_migration(&s->migration_blocker);
        return;
    }
    vgpu_link_start(s);
}

static void vgpu_stub_exit(PCIDevice *pci)
{
    VgpuStubState *s = VGPU_STUB(pci);

    vgpu_link_stop(s);
    vgpu_window_exit(s);
    vgpu_compat_unblock_migration(&s->migration_blocker);
}

static void vgpu_stub_reset(DeviceState *dev)
{
    VgpuStubState *s = VGPU_STUB(dev);

    s->error = 0;
    vgpu_irq_set_mask(s, 0);
    s->irq_status = 0;
    s->doorbells = 0;
    s->scratch = 0;
    vgpu_window_write_header(s);
    vgpu_session_reset_all(s);
}

static void vgpu_stub_class_init(ObjectClass *klass, VGPU_CLASS_DATA *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *k = PCI_DEVICE_CLASS(klass);

    k->realize = vgpu_stub_realize;
    k->exit = vgpu_stub_exit;
    k->vendor_id = VGPU_PCI_VENDOR_ID;
    k->device_id = VGPU_PCI_DEVICE_ID;
    k->revision = VGPU_VERSION_MAJOR;
    k->class_id = VGPU_PCI_CLASS;

    dc->desc = "virtual GPU of vgpu-mediator";
    dc->vmsd = &vgpu_stub_vmstate;
    vgpu_compat_set_reset(dc, vgpu_stub_reset);
    vgpu_compat_set_properties(dc, vgpu_stub_properties);
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
}

static const TypeInfo vgpu_stub_info = {
    .name = TYPE_VGPU_STUB,
    .parent = TYPE_PCI_DEVICE,
    .instance_size = sizeof(VgpuStubState),
    .instance_init = vgpu_stub_init,
    .class_init = vgpu_stub_class_init,
    .interfaces = (InterfaceInfo[]) {
        { INTERFACE_CONVENTIONAL_PCI_DEVICE },
        { },
    },
};

static void vgpu_stub_register_types(void)
{
    if (vgpu_preload_fits()) {
        type_register_static(&vgpu_stub_info);
    }
}

type_init(vgpu_stub_register_types)

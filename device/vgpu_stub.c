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
 *   BAR1  MSI-X            (not yet: CAPS has no VGPU_CAP_MSIX)
 *   BAR2  window           (not yet: CAPS has no VGPU_CAP_WINDOW)
 *
 * Guests are hostile: any access of any width at any offset has a defined
 * result, costs constant time and can harm only the guest's own registers.
 */
#include "compat.h"
#include "vgpu/regs.h"

#define TYPE_VGPU_STUB "vgpu-stub"
#define VGPU_STUB(obj) OBJECT_CHECK(VgpuStubState, (obj), TYPE_VGPU_STUB)

#define VGPU_BAR_REGISTERS 0

typedef struct VgpuStubState {
    PCIDevice parent_obj;

    MemoryRegion registers;
    Error *migration_blocker;

    /* As the user wrote them; checked and turned into numbers by realize. */
    char *pool_text;
    char *priority_text;

    /* Identity: survives a reset. */
    uint32_t pool_id;
    uint32_t priority;
    uint32_t vm_id;

    /* What the guest can change: back to zero at each reset. */
    uint32_t error;
    uint32_t irq_mask;
    uint32_t irq_status;
    uint32_t doorbells;
    uint32_t scratch;
} VgpuStubState;

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

static uint64_t vgpu_stub_read(void *opaque, hwaddr offset, unsigned size)
{
    VgpuStubState *s = opaque;

    if (!vgpu_stub_access_ok(s, offset, size)) {
        return UINT64_MAX;
    }
    switch (offset) {
    case VGPU_REG_DOORBELL:
        return 0;
    case VGPU_REG_STATUS:
        return VGPU_STATUS_READY;
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
    case VGPU_REG_WINDOW_LO:
    case VGPU_REG_WINDOW_HI:
        return 0;
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
    default:
        vgpu_stub_note_error(s, VGPU_DEVERR_OFFSET, "read beyond the registers",
                             offset, size);
        return 0;
    }
}

static void vgpu_stub_write(void *opaque, hwaddr offset, uint64_t value,
                            unsigned size)
{
    VgpuStubState *s = opaque;

    if (!vgpu_stub_access_ok(s, offset, size)) {
        return;
    }
    switch (offset) {
    case VGPU_REG_DOORBELL:
        s->doorbells++;
        break;
    case VGPU_REG_ERROR:
        s->error &= ~(uint32_t)value;
        break;
    case VGPU_REG_IRQ_MASK:
        s->irq_mask = value & VGPU_IRQ_ALL;
        break;
    case VGPU_REG_IRQ_STATUS:
        s->irq_status &= ~(uint32_t)value;
        break;
    case VGPU_REG_SCRATCH:
        s->scratch = value;
        break;
    default:
        if (offset < VGPU_REG_END) {
            vgpu_stub_note_error(s, VGPU_DEVERR_READ_ONLY,
                                 "write to a read-only register", offset, size);
        } else {
            vgpu_stub_note_error(s, VGPU_DEVERR_OFFSET,
                                 "write beyond the registers", offset, size);
        }
        break;
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
    VGPU_PROPERTIES_END
};

static bool vgpu_stub_check_properties(VgpuStubState *s, Error **errp)
{
    if (!s->vm_id) {
        error_setg(errp, "vgpu-stub: vm_id is missing: "
                   "add vm_id=N, a whole number from 1 to 4294967295");
        return false;
    }
    return vgpu_stub_parse_pool(s, errp) && vgpu_stub_parse_priority(s, errp);
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
}

static void vgpu_stub_exit(PCIDevice *pci)
{
    vgpu_compat_unblock_migration(&VGPU_STUB(pci)->migration_blocker);
}

static void vgpu_stub_reset(DeviceState *dev)
{
    VgpuStubState *s = VGPU_STUB(dev);

    s->error = 0;
    s->irq_mask = 0;
    s->irq_status = 0;
    s->doorbells = 0;
    s->scratch = 0;
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

    dc->desc = "virtual GPU of vgpu-mediator: identity and doorbell";
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

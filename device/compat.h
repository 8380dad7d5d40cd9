/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs between the QEMUs that the device is built for: 4.2 (XCP-ng),
 * 7.2 (Debian 12) and 10.x.  The device's files ask for a name from here and
 * never for a version.
 */
#ifndef VGPU_DEVICE_COMPAT_H
#define VGPU_DEVICE_COMPAT_H

#include "qemu/osdep.h"

#define VGPU_QEMU_AT_LEAST(major, minor)                                       \
    (QEMU_VERSION_MAJOR > (major) ||                                           \
     (QEMU_VERSION_MAJOR == (major) && QEMU_VERSION_MINOR >= (minor)))

/* Since 8.0 devices include pci_device.h; pci.h alone no longer has the type */
#if VGPU_QEMU_AT_LEAST(8, 0)
#include "hw/pci/pci_device.h"
#else
#include "hw/pci/pci.h"
#endif
#include "chardev/char-fe.h"
#include "hw/qdev-properties.h"
#if VGPU_QEMU_AT_LEAST(5, 2)
#include "hw/qdev-properties-system.h"
#endif
#if VGPU_QEMU_AT_LEAST(10, 0)
#include "system/hostmem.h"
#include "system/kvm.h"
#else
#include "sysemu/hostmem.h"
#include "sysemu/kvm.h"
#endif
#include "migration/blocker.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/log.h"
#include "qemu/module.h"

/* --- the C library of XCP-ng's build (glibc 2.17) does not know sealed files --- */

#ifndef F_GET_SEALS
#define F_GET_SEALS 1034
#define F_SEAL_SHRINK 0x0002
#endif

/* --- properties: constant and without an end mark since 10.0 --- */

#if VGPU_QEMU_AT_LEAST(10, 0)
#define VGPU_PROPERTIES const Property
#define VGPU_PROPERTIES_END
#define VGPU_PROPERTY_TYPE type
#else
#define VGPU_PROPERTIES Property
#define VGPU_PROPERTIES_END DEFINE_PROP_END_OF_LIST(),
#define VGPU_PROPERTY_TYPE name
#endif

#if VGPU_QEMU_AT_LEAST(5, 0)
#define vgpu_compat_set_properties(dc, list) device_class_set_props(dc, list)
#else
#define vgpu_compat_set_properties(dc, list) ((dc)->props = (list))
#endif

/* Before 6.0 each property's setter had to refuse a change after realize. */
static inline bool vgpu_compat_may_set(Object *obj, const char *name,
                                       Error **errp)
{
#if !VGPU_QEMU_AT_LEAST(6, 0)
    if (DEVICE(obj)->realized) {
        qdev_prop_set_after_realize(DEVICE(obj), name, errp);
        return false;
    }
#endif
    return true;
}

/* --- chardevs and objects --- */

#if VGPU_QEMU_AT_LEAST(10, 2)
#define VgpuChardev CharFrontend
#else
#define VgpuChardev CharBackend
#endif

#if VGPU_QEMU_AT_LEAST(5, 0)
#define VgpuChardevEvent QEMUChrEvent
#else
#define VgpuChardevEvent int
#endif

/* The id that the user gave it; g_free it. */
static inline char *vgpu_compat_id(Object *obj)
{
#if VGPU_QEMU_AT_LEAST(5, 1)
    return g_strdup(object_get_canonical_path_component(obj));
#else
    return object_get_canonical_path_component(obj);
#endif
}

/* --- classes --- */

#if VGPU_QEMU_AT_LEAST(10, 1)
#define VGPU_CLASS_DATA const void
#else
#define VGPU_CLASS_DATA void
#endif

#if VGPU_QEMU_AT_LEAST(9, 2)
#define vgpu_compat_set_reset(dc, fn) device_class_set_legacy_reset(dc, fn)
#else
#define vgpu_compat_set_reset(dc, fn) ((dc)->reset = (fn))
#endif

/* --- migration blockers: the callee owns the reason since 8.2 --- */

/* Takes *reason in any case; where it returns false, *reason is NULL. */
static inline bool vgpu_compat_block_migration(Error **reason, Error **errp)
{
#if VGPU_QEMU_AT_LEAST(8, 2)
    return migrate_add_blocker(reason, errp) >= 0;
#else
    if (migrate_add_blocker(*reason, errp) < 0) {
        error_free(*reason);
        *reason = NULL;
        return false;
    }
    return true;
#endif
}

static inline void vgpu_compat_unblock_migration(Error **reason)
{
    if (!*reason) {
        return;
    }
#if VGPU_QEMU_AT_LEAST(8, 2)
    migrate_del_blocker(reason);
#else
    migrate_del_blocker(*reason);
    error_free(*reason);
    *reason = NULL;
#endif
}

/* --- MSI routes of KVM: in batches since 7.0 --- */

/* The new route's number, or -errno; it counts at once. */
static inline int vgpu_compat_add_msi_route(int vector, PCIDevice *pci)
{
#if VGPU_QEMU_AT_LEAST(7, 0)
    KVMRouteChange change = kvm_irqchip_begin_route_changes(kvm_state);
    int virq = kvm_irqchip_add_msi_route(&change, vector, pci);

    kvm_irqchip_commit_route_changes(&change);
    return virq;
#else
    return kvm_irqchip_add_msi_route(kvm_state, vector, pci);
#endif
}

/* --- how the device came into this QEMU --- */

#ifdef VGPU_PRELOAD
/* preload.c: false, and said so, in a QEMU of another version. */
bool vgpu_preload_fits(void);
#else
static inline bool vgpu_preload_fits(void)
{
    return true;
}
#endif

#endif /* VGPU_DEVICE_COMPAT_H */

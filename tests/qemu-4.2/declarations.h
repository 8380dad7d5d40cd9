/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What vgpu-stub uses of QEMU 4.2, declared as that version's documentation and users
 * describe it: names, argument types and results, no more.  This is not QEMU's code and
 * nothing can run with it: sizes and contents of structures are not QEMU's.
 *
 * tests/func/test_device_4_2.py compiles the device against it, each of 4.2's headers
 * being one line that includes this file.  What later versions have is missing here on
 * purpose, so that the device cannot use it by accident.
 */
#ifndef VGPU_TESTS_QEMU_4_2_DECLARATIONS_H
#define VGPU_TESTS_QEMU_4_2_DECLARATIONS_H

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* glibc 2.17's <fcntl.h> has no seals. */
#undef F_GET_SEALS
#undef F_SEAL_SHRINK

#ifndef QEMU_VERSION_MAJOR
#define QEMU_VERSION_MAJOR 4
#endif
#define QEMU_VERSION_MINOR 2
#define QEMU_VERSION_MICRO 1

#define HWADDR_PRIx PRIx64
typedef uint64_t hwaddr;

bool is_power_of_2(uint64_t value);
void set_bit(long bit, unsigned long *bits);

/* --- errors and logs --- */

typedef struct Error Error;
void error_setg(Error **errp, const char *format, ...) G_GNUC_PRINTF(2, 3);
void error_setg_errno(Error **errp, int code, const char *format, ...) G_GNUC_PRINTF(3, 4);
void error_propagate(Error **to, Error *error);
void error_free(Error *error);
void warn_report(const char *format, ...) G_GNUC_PRINTF(1, 2);
bool warn_report_once(const char *format, ...) G_GNUC_PRINTF(1, 2);
#define LOG_GUEST_ERROR (1 << 11)
int qemu_log_mask(int mask, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* --- objects and classes --- */

typedef struct ObjectClass {
    int opaque;
} ObjectClass;
typedef struct Object {
    int opaque;
} Object;
typedef struct Visitor Visitor;
typedef struct InterfaceInfo {
    const char *type;
} InterfaceInfo;
typedef struct TypeInfo {
    const char *name;
    const char *parent;
    size_t instance_size;
    void (*instance_init)(Object *obj);
    void (*class_init)(ObjectClass *klass, void *data);
    InterfaceInfo *interfaces;
} TypeInfo;

#define OBJECT(obj) ((Object *)(obj))
Object *object_dynamic_cast_assert(Object *obj, const char *name);
#define OBJECT_CHECK(type, obj, name) ((type *)object_dynamic_cast_assert(OBJECT(obj), name))
gchar *object_get_canonical_path_component(Object *obj);
void type_register_static(const TypeInfo *info);
#define type_init(function)                                                                        \
    static void __attribute__((constructor)) do_init_##function(void)                              \
    {                                                                                              \
        function();                                                                                \
    }

/* Before 5.1 nothing came back. */
void visit_type_uint32(Visitor *v, const char *name, uint32_t *value, Error **errp);
void visit_type_uint64(Visitor *v, const char *name, uint64_t *value, Error **errp);

/* --- devices and properties --- */

typedef struct VMStateField {
    const char *name;
} VMStateField;
typedef struct VMStateDescription {
    const char *name;
    int (*pre_save)(void *opaque);
    VMStateField *fields;
} VMStateDescription;
#define VMSTATE_END_OF_LIST()                                                                      \
    {                                                                                              \
        0                                                                                          \
    }

typedef struct PropertyInfo {
    const char *name; /* `type` since 10.0 */
    const char *description;
    void (*get)(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp);
    void (*set)(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp);
} PropertyInfo;
typedef struct Property {
    const char *name;
    const PropertyInfo *info;
    ptrdiff_t offset;
    const char *link_type;
    union {
        uint64_t u;
        bool b;
    } defval;
} Property;
typedef struct DeviceState {
    Object parent_obj;
    bool realized;
} DeviceState;
typedef struct DeviceClass {
    ObjectClass parent_class;
    unsigned long categories[1];
    const char *desc;
    Property *props; /* device_class_set_props() since 5.0 */
    void (*reset)(DeviceState *dev);
    const VMStateDescription *vmsd;
} DeviceClass;
enum { DEVICE_CATEGORY_MISC = 7 };
#define DEVICE(obj) ((DeviceState *)(obj))
#define DEVICE_CLASS(klass) ((DeviceClass *)(klass))

extern const PropertyInfo qdev_prop_bool, qdev_prop_chr, qdev_prop_link, qdev_prop_string,
    qdev_prop_uint32;
#define FIELD_OF(_type, _state, _field)                                                            \
    (offsetof(_state, _field) +                                                                    \
     0 * sizeof(                                                                                   \
             char[__builtin_types_compatible_p(_type, __typeof__(((_state *)0)->_field)) ? 1       \
                                                                                         : -1]))
#define DEFINE_PROP(_name, _state, _field, _prop, _type)                                           \
    {                                                                                              \
        .name = (_name), .info = &(_prop), .offset = FIELD_OF(_type, _state, _field)               \
    }
#define DEFINE_PROP_STRING(_name, _state, _field)                                                  \
    DEFINE_PROP(_name, _state, _field, qdev_prop_string, char *)
#define DEFINE_PROP_CHR(_name, _state, _field)                                                     \
    DEFINE_PROP(_name, _state, _field, qdev_prop_chr, CharBackend)
#define DEFINE_PROP_UINT32(_name, _state, _field, _default)                                        \
    {                                                                                              \
        .name = (_name), .info = &qdev_prop_uint32, .defval.u = (_default),                        \
        .offset = FIELD_OF(uint32_t, _state, _field)                                               \
    }
#define DEFINE_PROP_BOOL(_name, _state, _field, _default)                                          \
    {                                                                                              \
        .name = (_name), .info = &qdev_prop_bool, .defval.b = (_default),                          \
        .offset = FIELD_OF(bool, _state, _field)                                                   \
    }
#define DEFINE_PROP_LINK(_name, _state, _field, _type, _pointer)                                   \
    {                                                                                              \
        .name = (_name), .info = &qdev_prop_link, .link_type = (_type),                            \
        .offset = FIELD_OF(_pointer, _state, _field)                                               \
    }
#define DEFINE_PROP_END_OF_LIST()                                                                  \
    {                                                                                              \
        0                                                                                          \
    }
void qdev_prop_set_after_realize(DeviceState *dev, const char *name, Error **errp);

int migrate_add_blocker(Error *reason, Error **errp); /* takes Error ** since 8.2 */
void migrate_del_blocker(Error *reason);

/* --- memory --- */

typedef struct EventNotifier {
    int descriptor;
} EventNotifier;
int event_notifier_init(EventNotifier *notifier, int active);
void event_notifier_cleanup(EventNotifier *notifier);
int event_notifier_get_fd(const EventNotifier *notifier);
int event_notifier_set(EventNotifier *notifier);
int event_notifier_test_and_clear(EventNotifier *notifier);

enum device_endian { DEVICE_NATIVE_ENDIAN, DEVICE_BIG_ENDIAN, DEVICE_LITTLE_ENDIAN };
typedef struct MemoryRegion {
    int opaque;
} MemoryRegion;
typedef struct MemoryRegionOps {
    uint64_t (*read)(void *opaque, hwaddr offset, unsigned size);
    void (*write)(void *opaque, hwaddr offset, uint64_t value, unsigned size);
    enum device_endian endianness;
    struct {
        unsigned min_access_size, max_access_size;
        bool unaligned;
    } valid, impl;
} MemoryRegionOps;
void memory_region_init_io(MemoryRegion *region, Object *owner, const MemoryRegionOps *ops,
                           void *opaque, const char *name, uint64_t size);
void memory_region_add_eventfd(MemoryRegion *region, hwaddr offset, unsigned size, bool match,
                               uint64_t value, EventNotifier *notifier);
void memory_region_del_eventfd(MemoryRegion *region, hwaddr offset, unsigned size, bool match,
                               uint64_t value, EventNotifier *notifier);
uint64_t memory_region_size(MemoryRegion *region);
int memory_region_get_fd(MemoryRegion *region);
void *memory_region_get_ram_ptr(MemoryRegion *region);

#define TYPE_MEMORY_BACKEND "memory-backend"
typedef struct HostMemoryBackend {
    Object parent;
    bool share;
} HostMemoryBackend;
MemoryRegion *host_memory_backend_get_memory(HostMemoryBackend *backend);
bool host_memory_backend_is_mapped(HostMemoryBackend *backend);
void host_memory_backend_set_mapped(HostMemoryBackend *backend, bool mapped);

/* --- PCI --- */

#define TYPE_PCI_DEVICE "pci-device"
#define INTERFACE_CONVENTIONAL_PCI_DEVICE "conventional-pci-device"
#define PCI_BASE_ADDRESS_SPACE_MEMORY 0x00
#define PCI_BASE_ADDRESS_MEM_TYPE_64 0x04
#define PCI_BASE_ADDRESS_MEM_PREFETCH 0x08
typedef struct PCIDevice {
    DeviceState qdev;
} PCIDevice;
typedef struct PCIDeviceClass {
    DeviceClass parent_class;
    void (*realize)(PCIDevice *dev, Error **errp);
    void (*exit)(PCIDevice *dev);
    uint16_t vendor_id, device_id;
    uint8_t revision;
    uint16_t class_id;
} PCIDeviceClass;
#define PCI_DEVICE(obj) ((PCIDevice *)(obj))
#define PCI_DEVICE_CLASS(klass) ((PCIDeviceClass *)(klass))
void pci_register_bar(PCIDevice *dev, int number, uint8_t attributes, MemoryRegion *memory);

typedef struct MSIMessage {
    uint64_t address;
    uint32_t data;
} MSIMessage;
typedef int (*MSIVectorUseNotifier)(PCIDevice *dev, unsigned vector, MSIMessage message);
typedef void (*MSIVectorReleaseNotifier)(PCIDevice *dev, unsigned vector);
typedef void (*MSIVectorPollNotifier)(PCIDevice *dev, unsigned from, unsigned to);
int msix_init_exclusive_bar(PCIDevice *dev, unsigned short vectors, uint8_t bar, Error **errp);
void msix_uninit_exclusive_bar(PCIDevice *dev);
int msix_vector_use(PCIDevice *dev, unsigned vector); /* void since 7.2 */
void msix_notify(PCIDevice *dev, unsigned vector);
int msix_enabled(PCIDevice *dev);
int msix_set_vector_notifiers(PCIDevice *dev, MSIVectorUseNotifier use,
                              MSIVectorReleaseNotifier release, MSIVectorPollNotifier poll);
void msix_unset_vector_notifiers(PCIDevice *dev);

/* --- KVM: never there under Xen, but its stubs are --- */

typedef struct KVMState KVMState;
extern KVMState *kvm_state;
extern bool kvm_msi_via_irqfd_allowed;
#define kvm_msi_via_irqfd_enabled() (kvm_msi_via_irqfd_allowed)
int kvm_irqchip_add_msi_route(KVMState *state, int vector, PCIDevice *dev);
void kvm_irqchip_release_virq(KVMState *state, int virq);
int kvm_irqchip_add_irqfd_notifier_gsi(KVMState *state, EventNotifier *notifier,
                                       EventNotifier *resample, int virq);
int kvm_irqchip_remove_irqfd_notifier_gsi(KVMState *state, EventNotifier *notifier, int virq);

/* --- the main loop and character devices --- */

typedef struct QEMUBH QEMUBH;
typedef void QEMUBHFunc(void *opaque);
QEMUBH *qemu_bh_new(QEMUBHFunc *function, void *opaque);
void qemu_bh_schedule(QEMUBH *bh);
void qemu_bh_delete(QEMUBH *bh);
typedef void IOHandler(void *opaque);
void qemu_set_fd_handler(int fd, IOHandler *read, IOHandler *write, void *opaque);

typedef enum { CHR_EVENT_BREAK, CHR_EVENT_OPENED, CHR_EVENT_CLOSED = 5 } QEMUChrEvent;
typedef void IOEventHandler(void *opaque, int event); /* QEMUChrEvent since 5.0 */
typedef int IOCanReadHandler(void *opaque);
typedef void IOReadHandler(void *opaque, const uint8_t *bytes, int size);
typedef int BackendChangeHandler(void *opaque);
enum { QEMU_CHAR_FEATURE_FD_PASS = 1 };
typedef struct Chardev {
    Object parent_obj;
    char *label;
} Chardev;
typedef struct CharBackend { /* CharFrontend since 10.2 */
    Chardev *chr;
} CharBackend;
bool qemu_chr_has_feature(Chardev *chardev, int feature);
bool qemu_chr_fe_backend_connected(CharBackend *backend);
Chardev *qemu_chr_fe_get_driver(CharBackend *backend);
int qemu_chr_fe_set_msgfds(CharBackend *backend, int *fds, int count);
int qemu_chr_fe_write(CharBackend *backend, const uint8_t *bytes, int size);
void qemu_chr_fe_disconnect(CharBackend *backend);
void qemu_chr_fe_deinit(CharBackend *backend, bool remove);
void qemu_chr_fe_set_handlers(CharBackend *backend, IOCanReadHandler *can_read, IOReadHandler *read,
                              IOEventHandler *event, BackendChangeHandler *change, void *opaque,
                              GMainContext *context, bool set_open);

#endif

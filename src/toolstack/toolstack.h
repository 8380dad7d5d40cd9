/* SPDX-License-Identifier: Apache-2.0 */
/*
 * toolstack/ - the host's way to list, start and stop VMs and to give them their
 * device: libvirt, XAPI (xe) or xl, behind one table of functions.
 *
 *   toolstack.c   finds out which one this host has
 *   device.c      the device as QEMU's arguments, written and read
 *   libvirt.c, libvirt_xml.c    the library libvirt; the device in the domain's XML
 *   xapi.c        `xe`: platform keys (not guest-writable) and parameters
 *   xl.c, xl_config.c    `xl`: the domain's configuration file
 *
 * Every value is validated before it becomes an argument, an XML attribute or a key.
 * error.code: ENOENT no such VM, EBUSY its state forbids it, ETIMEDOUT, ENOTSUP this
 * toolstack cannot, EACCES, EIO the toolstack failed (the message has its words).
 *
 * Not thread-safe.
 */
#ifndef VGPU_TOOLSTACK_H
#define VGPU_TOOLSTACK_H

#include "base/base.h"

#define TOOLSTACK_NAME_BYTES 256
#define TOOLSTACK_UUID_BYTES 37

enum toolstack_state {
    TOOLSTACK_OFF,
    TOOLSTACK_RUNNING,
    TOOLSTACK_PAUSED,
    TOOLSTACK_OTHER, /* starting, stopping, crashed */
};

/* What a VM's device is started with. */
struct toolstack_device {
    uint32_t vm_id;
    char pool;
    uint8_t priority;
    bool window;           /* with BAR2 and the mediator's socket, where the toolstack can */
    uint32_t window_mib;   /* power of two */
    uint32_t slots;        /* 1..16 */
    char socket_path[108]; /* the mediator's socket of this VM */
};

struct toolstack_vm {
    char uuid[TOOLSTACK_UUID_BYTES];
    char name[TOOLSTACK_NAME_BYTES];
    enum toolstack_state state;
    bool has_device;
    struct toolstack_device device; /* as its definition says; where has_device */
    char device_problem[256];       /* "" or why the definition's device cannot be read */
    bool device_overridden;         /* by other arguments, also where has_device is false:
                                       publishing does not mend it, a person has to */
};

struct toolstack;

/* `name`: "libvirt", "xapi", "xl", or NULL to find out.  `uri`: libvirt's, NULL for
 * its default.  ENOENT when there is none, with what was looked for. */
int toolstack_open(const char *name, const char *uri, struct toolstack **ret_toolstack,
                   struct vgpu_error *error);
void toolstack_close(struct toolstack *toolstack);

/* Whether what toolstack_open() would open with these starts Xen's domains; nothing is
 * opened or asked. */
bool toolstack_is_xen(const char *name, const char *uri);

const char *toolstack_name(const struct toolstack *toolstack);

/* All VMs by name, running or not, without XAPI's templates and snapshots and without
 * Dom0; free() them. */
int toolstack_list(struct toolstack *toolstack, struct toolstack_vm **ret_vms, size_t *ret_count,
                   struct vgpu_error *error);

/* By UUID or name. */
int toolstack_find(struct toolstack *toolstack, const char *text, struct toolstack_vm *ret_vm,
                   struct vgpu_error *error);

/* In these four `uuid` is the VM's name where it has no UUID of its own (xl). */
int toolstack_start(struct toolstack *toolstack, const char *uuid, struct vgpu_error *error);

/* Asks the guest to shut down; after `timeout_ms` -1 with ETIMEDOUT, or with `force`
 * it is powered off.  One that is off already is no failure. */
int toolstack_stop(struct toolstack *toolstack, const char *uuid, unsigned timeout_ms, bool force,
                   struct vgpu_error *error);

/* Writes the device into the VM's definition in the place of any that is there;
 * counts from its next start on.  With NULL it is taken out. */
int toolstack_publish(struct toolstack *toolstack, const char *uuid,
                      const struct toolstack_device *device, struct vgpu_error *error);

/* Whether the toolstack takes the definition that toolstack_publish() would write (NULL: the
 * one that is there), as far as it can say before a start; nothing is changed. */
int toolstack_check(struct toolstack *toolstack, const char *uuid,
                    const struct toolstack_device *device, struct vgpu_error *error);

/* The device in a libvirt domain's XML, for its hook, which may not ask libvirt.
 * ENOTSUP where this was built without libxml2. */
int toolstack_read_domain_xml(const char *xml, struct toolstack_vm *ret_vm,
                              struct vgpu_error *error);

#endif /* VGPU_TOOLSTACK_H */

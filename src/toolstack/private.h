/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of toolstack/ share among themselves. */
#ifndef VGPU_TOOLSTACK_PRIVATE_H
#define VGPU_TOOLSTACK_PRIVATE_H

#include "toolstack/toolstack.h"

/* One adapter.  `data` is its own; the functions are toolstack.h's. */
struct toolstack_ops {
    const char *name;
    int (*open)(const char *uri, void **ret_data, struct vgpu_error *error);
    void (*close)(void *data);
    int (*list)(void *data, struct toolstack_vm **ret_vms, size_t *ret_count,
                struct vgpu_error *error);
    int (*start)(void *data, const char *vm, struct vgpu_error *error);
    int (*stop)(void *data, const char *vm, unsigned timeout_ms, bool force,
                struct vgpu_error *error);
    int (*publish)(void *data, const char *vm, const struct toolstack_device *device,
                   struct vgpu_error *error);
    int (*check)(void *data, const char *vm, const struct toolstack_device *device,
                 struct vgpu_error *error); /* NULL: it takes what it is given, or not */
};

struct toolstack {
    const struct toolstack_ops *ops;
    void *data;
};

extern const struct toolstack_ops toolstack_libvirt;
extern const struct toolstack_ops toolstack_xapi;
extern const struct toolstack_ops toolstack_xl;

/* Which one the machine below `root` has ("" is this one), its programs being looked
 * for in `path`; NULL: none. */
const struct toolstack_ops *toolstack_detect(const char *root, const char *path);

/* The one that `text` means by UUID (letters of either case) or name. */
int toolstack_choose(const struct toolstack_vm *vms, size_t count, const char *text,
                     struct toolstack_vm *ret_vm, struct vgpu_error *error);

bool toolstack_is_uuid(const char *text); /* 8-4-4-4-12, hexadecimal */

/* Where programs are looked for: VGPU_TOOLSTACK_PATH or a fixed list, never PATH. */
const char *toolstack_program_path(void);

/* The program's file in `path`; NULL when there is none.  Freed by the caller. */
char *toolstack_find_program(const char *name, const char *path);

#define COMMAND_TIMEOUT_MS 60000u

/* --- device.c ------------------------------------------------------------------------- */

#define DEVICE_TEXT_BYTES 512
#define DEVICE_MEMORY_ID "vgpuwin"
#define DEVICE_CHARDEV_ID "vgpu"

/* EINVAL with the words for what cannot be. */
int device_check(const struct toolstack_device *device, struct vgpu_error *error);

/* The values of QEMU's options.  `extra` goes behind the device's own properties. */
void device_format(const struct toolstack_device *device, const char *extra,
                   char text[DEVICE_TEXT_BYTES]);
void device_format_memory(const struct toolstack_device *device, char text[DEVICE_TEXT_BYTES]);
void device_format_chardev(const struct toolstack_device *device, char text[DEVICE_TEXT_BYTES]);

/* What a list of QEMU's arguments says about our device. */
struct device_arguments {
    unsigned count; /* of vgpu-stub devices */
    struct toolstack_device device;
    char memory_id[64];
    char chardev_id[64];
    char extra[DEVICE_TEXT_BYTES]; /* ",addr=0x10": properties that are not ours */
    char problem[256];             /* "" or why it cannot be read */
    bool overridden;               /* by arguments that are not ours to replace */
};

/* arguments[0..count): QEMU's command line, or a part of it. */
void device_read_arguments(const char *const *arguments, size_t count,
                           struct device_arguments *ret_found);

/* The argument at `at` and the one behind it make our device, its memory or its
 * chardev, and are to be replaced. */
bool device_owns_argument(const struct device_arguments *found, const char *const *arguments,
                          size_t count, size_t at);

/* Sees to it that `extra` names a slot of PCI bus 0 that is not in `used_slots` (bit N:
 * slot N): the one that the device has, or else a free one. */
int device_place(struct device_arguments *found, uint32_t used_slots, struct vgpu_error *error);

/* Puts what was read into a VM's description. */
void device_describe(const struct device_arguments *found, struct toolstack_vm *vm);

/* --- libvirt_xml.c ---------------------------------------------------------------------- */

/* uuid, name and device of a <domain>. */
int libvirt_xml_read(const char *xml, struct toolstack_vm *ret_vm, struct vgpu_error *error);

/*
 * The same domain with this device in the place of what was there, or with none.
 * <emulator> becomes `wrapper` where it names the distribution's QEMU, and is that
 * again when the device is taken out; another program there is left alone: it is
 * taken to have the device built in.
 */
int libvirt_xml_write(const char *xml, const struct toolstack_device *device, const char *wrapper,
                      char **ret_xml, struct vgpu_error *error);

/* --- xl_config.c -------------------------------------------------------------------------- */

/* Name, UUID and device of the configuration file's text. */
int xl_config_read(const char *text, struct toolstack_vm *ret_vm, struct vgpu_error *error);

/* The same text with this device in device_model_args_hvm, or without; all else,
 * comments included, stays as it is. */
int xl_config_write(const char *text, const struct toolstack_device *device, char **ret_text,
                    struct vgpu_error *error);

#endif

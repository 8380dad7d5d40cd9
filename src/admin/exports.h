/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exports.c for share.c: one file a VM below exports_dir, and the NFS server told.
 * Nothing happens where exports_kind is none.
 */
#ifndef VGPU_ADMIN_EXPORTS_H
#define VGPU_ADMIN_EXPORTS_H

#include "admin/admin.h"

/* The export's text of this VM; `address` NULL: the one that it had, of `old` (NULL:
 * none).  free() it; NULL with *error when there cannot be one. */
char *exports_text(const struct admin *admin, const struct store_vm *vm, const char *address,
                   const char *old, struct vgpu_error *error);

/* NULL when it has no file. */
char *exports_read(const struct admin *admin, uint32_t vm_id);

/* A VM's export by its file's name, and whose. */
bool exports_is_file(const struct admin *admin, const char *name, uint32_t *ret_vm_id);

/* Writes it whole or not at all; `text` NULL removes it. */
int exports_write(const struct admin *admin, uint32_t vm_id, const char *text,
                  struct vgpu_error *error);

/* Tells the NFS server. */
int exports_reload(const struct admin *admin, struct vgpu_error *error);

/* "" when the export has none yet. */
void exports_address(const char *text, char ret_address[64]);

#endif /* VGPU_ADMIN_EXPORTS_H */

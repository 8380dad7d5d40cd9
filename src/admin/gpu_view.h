/* SPDX-License-Identifier: Apache-2.0 */
/* What status and show-gpus share: the GPUs as a table. */
#ifndef VGPU_ADMIN_GPU_VIEW_H
#define VGPU_ADMIN_GPU_VIEW_H

#include "admin/admin.h"

/* The array "gpus" of the mediator's status; `none` is said when it is empty. */
void gpu_view_print(struct admin *admin, const json_t *gpus, const char *none);

#endif /* VGPU_ADMIN_GPU_VIEW_H */

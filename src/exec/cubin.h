/* SPDX-License-Identifier: Apache-2.0 */
/* What a cubin, the GPU's machine code as an ELF file, takes of a GPU's memory (cubin.c). */
#ifndef VGPU_EXEC_CUBIN_H
#define VGPU_EXEC_CUBIN_H

#include "vgpu/window.h"

#include <stdbool.h>
#include <stdint.h>

/* The image of `bytes` begins as an ELF file does. */
bool cubin_is(const void *image, uint64_t bytes);

/*
 * *ret_bytes: what it takes at least once it is loaded, by its own word: all of its sections, or
 * of its segments where those are more, also what is not in the file (arrays that begin as
 * zeros).  UINT64_MAX where that would be more.  Never less than `bytes`.
 * Reads nothing beyond the image, whatever that says.  VGPU_BAD_IMAGE, and *ret_bytes is
 * untouched: it is no ELF file of 64 bits, or a part of it would lie outside.
 */
enum vgpu_status cubin_bytes(const void *image, uint64_t bytes, uint64_t *ret_bytes);

#endif /* VGPU_EXEC_CUBIN_H */

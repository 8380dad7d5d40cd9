/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the examples share: how each begins, and what it does when something fails.
 *
 * Exit statuses: 0, the GPU's result is the CPU's; 1, it is not, or something failed; 77,
 * this session's GPU takes no kernels of a program's own (the cpu backend).
 */
#ifndef VGPU_EXAMPLE_H
#define VGPU_EXAMPLE_H

#include <vgpu/vgpu.h>

#define EXAMPLE_MODULE 1u /* the handle that example_open() loads a module under */
#define EXAMPLE_NO_MODULES 77

extern struct vgpu_problem example_problem; /* of the last call that failed */

/* Opens a session, the one of $VGPU_SOCKET or of this guest's device, and loads `ptx`, text
 * of `ptx_bytes` with a NUL behind it.  Ends the program where that cannot be. */
struct vgpu_session *example_open(const char *ptx, size_t ptx_bytes);

/* Ends the program with example_problem when `result` is no success: -1. */
void example_must(int result, const char *what);

/* Device memory with these bytes in it; a session's end frees it. */
uint64_t example_upload(struct vgpu_session *session, const void *data, uint64_t bytes);

/* Device memory of `bytes`, with nothing defined in it. */
uint64_t example_alloc(struct vgpu_session *session, uint64_t bytes);

/* How many blocks of `threads` do `count` elements. */
static inline uint32_t example_blocks(uint32_t count, uint32_t threads)
{
    return (count + threads - 1) / threads;
}

#endif

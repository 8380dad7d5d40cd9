/* SPDX-License-Identifier: Apache-2.0 */
/*
 * raw.h - a session of libvgpu as memory, for vgpu-xen: who uses it so submits and takes
 * by itself, and calls nothing else of the session's but vgpu_session_info() and
 * vgpu_close().
 */
#ifndef VGPU_LIB_RAW_H
#define VGPU_LIB_RAW_H

#include "vgpu/vgpu.h"

struct raw_slot {
    uint8_t *memory; /* until vgpu_close() */
    uint64_t bytes;
};

struct raw_slot raw_slot(const struct vgpu_session *session);

/* Rings its doorbell. */
void raw_ring(struct vgpu_session *session);

/* Takes interrupts and sees to the way to the mediator, without waiting; to be called when
 * vgpu_fd() is readable, and once a second.  NULL, or why the session has ended. */
const char *raw_look(struct vgpu_session *session);

#endif

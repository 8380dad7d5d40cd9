/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * vgpu/link.h - the link: how a window's owner and the mediator speak.
 *
 * The owner is the device in QEMU (one link a VM, kept for the VM's life) or
 * libvgpu in a process on the host (one link a process).  It connects to the
 * VM's socket (SOCK_STREAM); the socket decides which VM that is.
 *
 *   owner                                     mediator
 *   HELLO  + window, interrupt, lifeline ──▶
 *   DOORBELLS + one eventfd a slot ────────▶  checks every descriptor
 *            ◀── WELCOME, or REFUSED and the end
 *   OPEN slot ─────────────────────────────▶  starts a worker on the slot
 *            ◀── STATE slot READY (or REFUSED)
 *            ◀── CONFIG pool, priority        whenever they change
 *   CLOSE slot ────────────────────────────▶  ends the worker
 *            ◀── STATE slot CLOSED
 *   RESET ─────────────────────────────────▶  ends all workers
 *            ◀── RESET_DONE
 *
 * Control only: operations and their data never pass here.  When the mediator
 * is restarted the owner connects again and says the same HELLO, with the slots
 * that it holds open; sessions whose workers live go on as if nothing had been.
 *
 * Descriptors go with the first byte of their message, at most
 * VGPU_LINK_FDS_MAX a message.  What they must be:
 *   window     memfd of window_bytes, sealed against shrinking, not of huge pages
 *   interrupt  eventfd: the worker adds 1 when a completion should wake the owner
 *   lifeline   read end of a pipe whose only write end the owner holds: its
 *              hang-up says that the owner is gone, whoever else has died
 *   doorbells  eventfds, one a slot: the owner adds 1; never read by the host
 *
 * Every message has the same size, so that a half one is easy to tell.
 */
#ifndef VGPU_LINK_H
#define VGPU_LINK_H

#include "vgpu/window.h"

#define VGPU_LINK_MAGIC 0x4b4e4c56u /* "VLNK" as it stands in memory */
#define VGPU_LINK_VERSION 1u
#define VGPU_LINK_MESSAGE_BYTES 256u
#define VGPU_LINK_FDS_MAX 8u /* QEMU passes at most 16 at once */
#define VGPU_LINK_TEXT_BYTES 200u

enum vgpu_link_type {
    VGPU_LINK_HELLO = 1,
    VGPU_LINK_DOORBELLS = 2,
    VGPU_LINK_OPEN = 3,
    VGPU_LINK_CLOSE = 4,
    VGPU_LINK_RESET = 5,
    VGPU_LINK_WELCOME = 16,
    VGPU_LINK_REFUSED = 17,
    VGPU_LINK_STATE = 18,
    VGPU_LINK_CONFIG = 19,
    VGPU_LINK_RESET_DONE = 20,
};

/* Order of the descriptors of HELLO. */
#define VGPU_LINK_FD_WINDOW 0
#define VGPU_LINK_FD_INTERRUPT 1
#define VGPU_LINK_FD_LIFELINE 2
#define VGPU_LINK_HELLO_FDS 3

#define VGPU_LINK_OWNER_DEVICE 1u /* vgpu-stub in QEMU */
#define VGPU_LINK_OWNER_LOCAL 2u  /* libvgpu on the host */

#define VGPU_LINK_HELLO_RESETTING 0x1u /* the guest was reset, its workers may still run */

struct vgpu_link_message {
    uint32_t magic;    /* VGPU_LINK_MAGIC */
    uint16_t version;  /* VGPU_LINK_VERSION of the sender */
    uint16_t type;     /* enum vgpu_link_type */
    uint32_t fd_count; /* descriptors that come with it */
    uint32_t reserved; /* 0 */
    union {
        struct {
            uint32_t owner; /* VGPU_LINK_OWNER_* */
            uint32_t vm_id; /* as its device says; 0: as the socket says */
            uint64_t window_bytes;
            uint32_t slot_count;  /* 1..VGPU_SLOTS_MAX */
            uint32_t open_slots;  /* bit i: slot i is a session since an earlier link */
            uint32_t flags;       /* VGPU_LINK_HELLO_* */
            uint32_t min_version; /* oldest link version that the owner speaks */
        } hello;
        struct {
            uint32_t first_slot; /* of fd_count slots in a row */
        } doorbells;
        struct {
            uint32_t slot;
        } open, close;
        struct {
            uint32_t vm_id;
            uint32_t pool;     /* ASCII letter */
            uint32_t priority; /* 0..2 */
            uint32_t sessions_max;
        } welcome, config;
        struct {
            uint32_t code;                   /* errno value */
            char text[VGPU_LINK_TEXT_BYTES]; /* for a person, with its NUL */
        } refused;
        struct {
            uint32_t slot;
            uint32_t state; /* VGPU_SESSION_CLOSED, READY, LOST, FAULTED or REFUSED */
            uint32_t code;  /* REFUSED: errno value */
            uint32_t reserved;
            char text[VGPU_LINK_TEXT_BYTES]; /* REFUSED: why */
        } state;
        uint8_t bytes[VGPU_LINK_MESSAGE_BYTES - 16];
    };
};

VGPU_ASSERT(sizeof(struct vgpu_link_message) == VGPU_LINK_MESSAGE_BYTES, "all alike");
VGPU_ASSERT(offsetof(struct vgpu_link_message, bytes) == 16, "layout");
VGPU_ASSERT(offsetof(struct vgpu_link_message, hello.window_bytes) == 24, "layout");
VGPU_ASSERT(offsetof(struct vgpu_link_message, hello.min_version) == 44, "layout");
VGPU_ASSERT(offsetof(struct vgpu_link_message, state.text) == 32, "layout");

#endif /* VGPU_LINK_H */

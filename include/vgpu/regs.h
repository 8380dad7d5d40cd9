/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * vgpu/regs.h - registers of the PCI device `vgpu-stub`, as guest and device
 * agree on them.
 *
 * BAR0 is 4 KiB of MMIO.  Every register is 32 bits wide, little-endian and
 * naturally aligned; docs/device.md is the specification (offset, access,
 * reset value, meaning), device/ implements it, and tests/vm reads every
 * register from a real guest.
 *
 * The registers inform the guest and decide nothing: the host knows a VM by
 * its channel, never by what a register or a message says.
 */
#ifndef VGPU_REGS_H
#define VGPU_REGS_H

/*
 * Until an id has been assigned to the project.  Software must therefore find
 * the device by class (VGPU_PCI_CLASS) and then check VGPU_REG_MAGIC.
 */
#define VGPU_PCI_VENDOR_ID 0x1af4
#define VGPU_PCI_DEVICE_ID 0x10f1

/* Base class 0x12, subclass 0x00, interface 0x00: `Processing accelerators`. */
#define VGPU_PCI_CLASS 0x1200
#define VGPU_PCI_CLASS_CODE 0x120000

#define VGPU_BAR0_BYTES 4096

/* --- register offsets in BAR0, in bytes --------------------------------- */

#define VGPU_REG_DOORBELL 0x000      /* W:  some ring has work; reads as 0 */
#define VGPU_REG_STATUS 0x004        /* R:  VGPU_STATUS_* */
#define VGPU_REG_POOL_ID 0x008       /* R:  pool letter, ASCII, 'A'..'Z' */
#define VGPU_REG_PRIORITY 0x00c      /* R:  0 low, 1 medium, 2 high */
#define VGPU_REG_VM_ID 0x010         /* R:  1..0xffffffff */
#define VGPU_REG_MAGIC 0x014         /* R:  VGPU_MAGIC */
#define VGPU_REG_VERSION 0x018       /* R:  major << 16 | minor */
#define VGPU_REG_CAPS 0x01c          /* R:  VGPU_CAP_* */
#define VGPU_REG_WINDOW_LO 0x020     /* R:  window size in bytes, low half */
#define VGPU_REG_WINDOW_HI 0x024     /* R:  window size in bytes, high half */
#define VGPU_REG_ERROR 0x028         /* R/W1C: VGPU_DEVERR_* since cleared */
#define VGPU_REG_IRQ_MASK 0x02c      /* R/W: VGPU_IRQ_* that may interrupt */
#define VGPU_REG_IRQ_STATUS 0x030    /* R/W1C: VGPU_IRQ_* that are pending */
#define VGPU_REG_DOORBELLS 0x034     /* R:  doorbells seen since reset, wraps */
#define VGPU_REG_SCRATCH 0x038       /* R/W: the guest's own, reset to 0 */
#define VGPU_REG_SLOTS 0x03c         /* R:  sessions that the window has room for, 0 without one */
#define VGPU_REG_SESSION_OPEN 0x040  /* W:  slot: start a session there */
#define VGPU_REG_SESSION_CLOSE 0x044 /* W:  slot: end the session there */
/* 0x048 to 0x07c: unused */
#define VGPU_REG_SESSION_STATE 0x080 /* R:  + 4 * slot: VGPU_SESSION_* | errno << 8 */
#define VGPU_REG_SLOT_DOORBELL 0x0c0 /* W:  + 4 * slot: that ring has work (value ignored) */
#define VGPU_REG_END 0x100           /* first unused offset; rest reads as 0 */

/* Of VGPU_REG_SESSION_STATE. */
#define VGPU_SESSION_STATE_MASK 0xffu
#define VGPU_SESSION_CODE_SHIFT 8

/* "VGPU" as it stands in memory. */
#define VGPU_MAGIC 0x55504756u

#define VGPU_VERSION_MAJOR 1
#define VGPU_VERSION_MINOR 1
#define VGPU_VERSION ((VGPU_VERSION_MAJOR << 16) | VGPU_VERSION_MINOR)

/* --- VGPU_REG_STATUS ------------------------------------------------------ */

#define VGPU_STATUS_READY 0x00000001u     /* registers are valid */
#define VGPU_STATUS_HOST 0x00000002u      /* a mediator is connected */
#define VGPU_STATUS_RESETTING 0x00000004u /* old work is being fenced */

/* --- VGPU_REG_CAPS: what this device has (0: registers and identity only) - */

#define VGPU_CAP_WINDOW 0x00000001u /* BAR2 is a shared-memory window */
#define VGPU_CAP_MSIX 0x00000002u   /* BAR1 holds MSI-X vectors */

/* --- VGPU_REG_IRQ_* ------------------------------------------------------- */

#define VGPU_IRQ_COMPLETION 0x00000001u
#define VGPU_IRQ_CONFIG 0x00000002u
#define VGPU_IRQ_ALL (VGPU_IRQ_COMPLETION | VGPU_IRQ_CONFIG)

/* MSI-X vectors. */
#define VGPU_VECTOR_COMPLETION 0
#define VGPU_VECTOR_CONFIG 1
#define VGPU_VECTOR_COUNT 2

/* --- VGPU_REG_ERROR: bits, so that a second error does not hide the first - */

#define VGPU_DEVERR_ACCESS 0x00000001u    /* not 32 bits wide and aligned */
#define VGPU_DEVERR_READ_ONLY 0x00000002u /* write to a read-only register */
#define VGPU_DEVERR_OFFSET 0x00000004u    /* access at or beyond VGPU_REG_END */
#define VGPU_DEVERR_SESSION 0x00000008u   /* open or close of a slot that cannot do it now */
#define VGPU_DEVERR_ALL                                                                            \
    (VGPU_DEVERR_ACCESS | VGPU_DEVERR_READ_ONLY | VGPU_DEVERR_OFFSET | VGPU_DEVERR_SESSION)

/* --- priorities, as everywhere in this project ---------------------------- */

#define VGPU_PRIORITY_LOW 0u
#define VGPU_PRIORITY_MEDIUM 1u
#define VGPU_PRIORITY_HIGH 2u
#define VGPU_PRIORITY_COUNT 3u

#endif /* VGPU_REGS_H */

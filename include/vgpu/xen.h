/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * vgpu/xen.h - the Xen channel: how a guest's program (libvgpu) and the host's program
 * (vgpu-xen) find each other through XenStore and share a session's slot.
 *
 *   guest domain                              host (Dom0 or a worker domain)
 *   gntalloc: pages of one slot  ── grants ─▶ gntdev: the same pages, mapped by a broker
 *   evtchn: a port for the host  ◀─ event ──▶ evtchn: bound to it
 *   data/vgpu/frontend/<name>/   ── watch ──▶ starts the broker
 *   data/vgpu/backend/<name>/    ◀─ answer ── state, error, vm-id, pool, priority
 *
 * Paths are those of the guest's own area, /local/domain/<N>/.  The guest writes below
 * `frontend`, `state` last; the host writes below `backend`, and `backend/domain` says
 * to whom pages are to be granted.  What is in a slot is vgpu/window.h's.
 *
 * A slot's references stand in directory pages, which are granted too: 1024 numbers of
 * 32 bits a page, in the order of the slot's pages.  XenStore has the references of the
 * directory pages only.
 */
#ifndef VGPU_XEN_H
#define VGPU_XEN_H

#include "vgpu/window.h"

#define VGPU_XEN_VERSION "1"
#define VGPU_XEN_AREA "data/vgpu"
#define VGPU_XEN_FRONTEND VGPU_XEN_AREA "/frontend"
#define VGPU_XEN_BACKEND VGPU_XEN_AREA "/backend"

/* Keys of the host: of the area, then of a session. */
#define VGPU_XEN_DOMAIN "domain"    /* backend/domain: decimal */
#define VGPU_XEN_PROTOCOL "version" /* backend/version, frontend/<name>/version */
#define VGPU_XEN_STATE "state"
#define VGPU_XEN_ERROR "error" /* backend/error: why sessions wait that nothing is said of */
#define VGPU_XEN_CODE "code"   /* beside error: VGPU_PROBLEM_* of vgpu/vgpu.h, decimal */
#define VGPU_XEN_VM_ID "vm-id"
#define VGPU_XEN_POOL "pool"
#define VGPU_XEN_PRIORITY "priority"

/* Keys of the guest. */
#define VGPU_XEN_SLOT_BYTES "slot-bytes"       /* decimal, whole pages */
#define VGPU_XEN_DIRECTORY "directory"         /* references, decimal, one blank between */
#define VGPU_XEN_EVENT_CHANNEL "event-channel" /* the guest's port, decimal */

/* States. */
#define VGPU_XEN_INITIALISING "initialising" /* the guest's: all is written */
#define VGPU_XEN_CONNECTED "connected"       /* the host's: the slot works */
#define VGPU_XEN_CLOSING "closing"           /* the guest's: please end */
#define VGPU_XEN_CLOSED "closed"             /* the host's: ended; `error` says why */
#define VGPU_XEN_REFUSED "refused"           /* the host's: never began; `error` says why */

/* A session's name: so many characters of 0-9 and a-f, chosen at random by the guest. */
#define VGPU_XEN_NAME_CHARS 16u

#define VGPU_XEN_SLOT_MAX_BYTES (64u << 20)
#define VGPU_XEN_REFERENCES_A_PAGE (VGPU_PAGE_BYTES / 4u)
#define VGPU_XEN_DIRECTORY_PAGES_MAX                                                               \
    (VGPU_XEN_SLOT_MAX_BYTES / VGPU_PAGE_BYTES / VGPU_XEN_REFERENCES_A_PAGE)

/* Each side's last byte but three of its control page is 1 while it is there.  Its kernel
 * clears it, and sends an event, when the side unmaps the page or dies. */
#define VGPU_XEN_ALIVE 0xffcu

#endif /* VGPU_XEN_H */

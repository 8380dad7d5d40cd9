/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Dom0 (vgpu-relay) and a worker domain (vgpu-relay and vgpu-xen there) agree on:
 * nodes of XenStore, relative to the worker domain's own area, /local/domain/<W>/.
 *
 *   vgpu/guest/<N>          Dom0's: domain N is this VM, and may be served
 *   vgpu/request/<id>/      Dom0's: a message, in chunks
 *   data/vgpu-worker/...    the worker domain's: that its relay is there, and its answers
 *
 * The worker domain cannot write below `vgpu`, no other guest can read there.  A message is
 * nodes 0, 1, ... and at last `chunks`, their number.
 */
#ifndef VGPU_XEN_WORKER_H
#define VGPU_XEN_WORKER_H

#include <stddef.h>

#define WORKER_VERSION "1"
#define WORKER_AREA "vgpu" /* Dom0's, below the worker domain's */
#define WORKER_GUESTS WORKER_AREA "/guest"
#define WORKER_REQUESTS WORKER_AREA "/request"
#define WORKER_OWN "data/vgpu-worker"
#define WORKER_READY WORKER_OWN "/version" /* written anew when its relay starts */
#define WORKER_ANSWERS WORKER_OWN "/answer"

#define MESSAGE_CHUNKS "chunks"
#define MESSAGE_KIND "kind"
#define MESSAGE_REGISTRY "registry" /* a database; the answer is empty, or what went wrong */
#define MESSAGE_COMMAND "command"   /* JSON, for the mediator's control socket */

/* XenStore gives a domain nodes of 2048 bytes with their names and rights, and 1000 of them. */
#define MESSAGE_CHUNK_BYTES 1792u
#define MESSAGE_CHUNKS_MAX 256u
#define MESSAGE_ANSWER_MAX_BYTES ((size_t)MESSAGE_CHUNK_BYTES * MESSAGE_CHUNKS_MAX)
#define MESSAGE_REGISTRY_MAX_BYTES (4u << 20)

#endif /* VGPU_XEN_WORKER_H */

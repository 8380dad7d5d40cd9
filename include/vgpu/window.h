/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * vgpu/window.h - the window: shared memory between one VM (or one local
 * process) and the workers that run its operations.
 *
 *   window                          slot (one session)
 *   +--------------------+          +-------------------------------------+
 *   | header      4 KiB  |   0x0000 | guest page: sq_tail cq_head cq_event|
 *   +--------------------+   0x1000 | host page:  cq_tail sq_head sq_event|
 *   | slot 0             |   0x2000 | submission ring  1024 x 64 bytes    |
 *   +--------------------+  0x12000 | completion ring  1024 x 32 bytes    |
 *   | slot 1             |  0x1a000 | payload arena    256 KiB            |
 *   +--------------------+  0x5a000 | heap             to the slot's end  |
 *   | ...                |          +-------------------------------------+
 *
 * Indices are 32-bit counters that run freely; entry i stands at i % entries.
 * The producer writes entries, then publishes the new tail; the consumer never
 * takes more than lies between its own head and the tail that it read.
 *
 * Wake-ups are suppressed by event indices, as in virtio: each consumer says
 * which entry it wants to be told about (sq_event: ring the doorbell, cq_event:
 * raise the interrupt), and a producer that publishes past it, and only then,
 * tells.  A consumer that polls leaves its index behind and is not told.
 *
 * Trust: the guest can write every byte at any time.  The host keeps private
 * copies of geometry and of its own indices (what it writes here only informs),
 * reads each descriptor once into private memory and validates the copy.  An
 * index that cannot be (a tail more than a ring ahead) ends the session's work:
 * VGPU_SESSION_FAULTED.
 *
 * docs/window.md tells the same with the lifetime rules.  Numbers are
 * little-endian; both sides are x86-64.
 */
#ifndef VGPU_WINDOW_H
#define VGPU_WINDOW_H

#ifdef __KERNEL__
#include <linux/build_bug.h>
#include <linux/types.h>
#define VGPU_ASSERT(condition, text) static_assert(condition, text)
#else
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
#define VGPU_ASSERT(condition, text) static_assert(condition, text)
#else
#define VGPU_ASSERT(condition, text) _Static_assert(condition, text)
#endif
#endif

#define VGPU_WINDOW_MAGIC 0x4e495756u /* "VWIN" as it stands in memory */
#define VGPU_WINDOW_VERSION 1u

#define VGPU_PAGE_BYTES 4096u
#define VGPU_WINDOW_HEADER_BYTES VGPU_PAGE_BYTES
#define VGPU_WINDOW_MIN_BYTES (2u << 20)
#define VGPU_WINDOW_MAX_BYTES (64ull << 30)
#define VGPU_WINDOW_DEFAULT_BYTES (64u << 20)
#define VGPU_SLOTS_MAX 16u
#define VGPU_SLOTS_DEFAULT 8u

#define VGPU_RING_ENTRIES 1024u /* of both rings; a power of two */

/* --- a slot, offsets in bytes -------------------------------------------------- */

#define VGPU_SLOT_GUEST 0x00000u
#define VGPU_SLOT_HOST 0x01000u
#define VGPU_SLOT_SQ 0x02000u
#define VGPU_SLOT_CQ 0x12000u
#define VGPU_SLOT_ARENA 0x1a000u
#define VGPU_SLOT_HEAP 0x5a000u
#define VGPU_ARENA_BYTES (VGPU_SLOT_HEAP - VGPU_SLOT_ARENA)
#define VGPU_SLOT_MIN_BYTES (VGPU_SLOT_HEAP + 0x10000u) /* at least 64 KiB of heap */

/* --- the header: page 0, written by who made the window; informs only ------------- */

struct vgpu_window_header {
    uint32_t magic;   /* VGPU_WINDOW_MAGIC */
    uint32_t version; /* VGPU_WINDOW_VERSION */
    uint64_t features;
    uint64_t window_bytes;
    uint64_t slot_bytes;
    uint32_t slot_count;
    uint32_t ring_entries;
};

VGPU_ASSERT(sizeof(struct vgpu_window_header) == 40, "no holes");

/* Bytes of each of `slot_count` slots, a multiple of VGPU_PAGE_BYTES; 0 when the
 * window is no window: size or count out of range, slots too small. */
static inline uint64_t vgpu_window_slot_bytes(uint64_t window_bytes, uint32_t slot_count)
{
    uint64_t slot_bytes;

    if (window_bytes < VGPU_WINDOW_MIN_BYTES || window_bytes > VGPU_WINDOW_MAX_BYTES ||
        window_bytes % VGPU_PAGE_BYTES != 0 || slot_count < 1 || slot_count > VGPU_SLOTS_MAX)
        return 0;
    slot_bytes = (window_bytes - VGPU_WINDOW_HEADER_BYTES) / slot_count;
    slot_bytes -= slot_bytes % VGPU_PAGE_BYTES;
    return slot_bytes >= VGPU_SLOT_MIN_BYTES ? slot_bytes : 0;
}

static inline uint64_t vgpu_window_slot_offset(uint64_t slot_bytes, uint32_t slot)
{
    return VGPU_WINDOW_HEADER_BYTES + slot * slot_bytes;
}

/* --- the control pages: one cache line a word that changes ------------------------ */

struct vgpu_slot_guest {
    uint32_t sq_tail; /* descriptors published */
    uint32_t pad0[15];
    uint32_t cq_head; /* completions taken */
    uint32_t pad1[15];
    uint32_t cq_event; /* interrupt when completion number cq_event is published */
    uint32_t pad2[15];
};

struct vgpu_slot_host {
    uint32_t cq_tail; /* completions published */
    uint32_t pad0[15];
    uint32_t sq_head; /* descriptors taken: their places may be used again */
    uint32_t pad1[15];
    uint32_t sq_event; /* ring when descriptor number sq_event is published */
    uint32_t pad2[15];
    uint32_t state;        /* VGPU_SESSION_* */
    uint32_t generation;   /* rises each time the session lost its device state; from 1 */
    uint64_t device_base;  /* device addresses lie in device_base.. */
    uint64_t device_bytes; /* ..+device_bytes; for information */
    uint64_t features;     /* VGPU_FEATURE_* of the backend */
};

VGPU_ASSERT(offsetof(struct vgpu_slot_guest, sq_tail) == 0x00, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_guest, cq_head) == 0x40, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_guest, cq_event) == 0x80, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_host, cq_tail) == 0x00, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_host, sq_head) == 0x40, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_host, sq_event) == 0x80, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_host, state) == 0xc0, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_host, generation) == 0xc4, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_host, device_base) == 0xc8, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_host, device_bytes) == 0xd0, "layout");
VGPU_ASSERT(offsetof(struct vgpu_slot_host, features) == 0xd8, "layout");

/* A session as the worker (host page), the mediator (link) and the device
 * (registers) tell it. */
#define VGPU_SESSION_CLOSED 0u    /* nobody's */
#define VGPU_SESSION_OPENING 1u   /* its worker starts */
#define VGPU_SESSION_READY 2u     /* takes operations */
#define VGPU_SESSION_LOST 3u      /* device state is gone: DEVICE_LOST until VGPU_OP_RESET */
#define VGPU_SESSION_FAULTED 4u   /* the rings made no sense: close it */
#define VGPU_SESSION_RESETTING 5u /* the guest was reset; its old worker still ends */
#define VGPU_SESSION_REFUSED 6u   /* cannot be opened; the reason goes with it */

/* --- descriptors: 64 bytes, written by the guest ------------------------------------ */

/*
 * Offsets count from the slot's start and must lie, with their bytes, in the
 * arena or the heap.  Device addresses are what VGPU_OP_ALLOC returned.
 * Handles are 32-bit ids that the guest chooses, per session; 0 is no handle,
 * and stream 0 is the stream that always exists.  Unused words are zero.
 *
 * A session has one device, or several where its pool says so: `device` names the one
 * that an operation is for.  Each has a stream 0 and memory of its own; addresses are
 * one device's only.  Streams, events and modules are their device's that made them:
 * what is put into a stream, and the module of a launch, must be of the descriptor's
 * device (VGPU_BAD_HANDLE), and so must memory that is set or copied (VGPU_BAD_ADDRESS)
 * - but a VGPU_OP_COPY may have one end on another device, and a stream may wait for
 * any device's event.  To sync, ask or end what a handle names, and to free, any
 * device will do.  VGPU_OP_RESET is for all.
 */
struct vgpu_descriptor {
    uint16_t opcode; /* VGPU_OP_* */
    uint8_t flags;   /* VGPU_FLAG_* */
    uint8_t device;  /* 0 to VGPU_QUERY_DEVICES - 1; else VGPU_BAD_HANDLE */
    uint32_t stream;
    uint64_t cookie; /* comes back in the completion */
    union {
        uint64_t words[6];
        struct {
            uint64_t command_offset; /* 1..VGPU_TEXT_MAX_BYTES bytes, no NUL needed */
            uint64_t answer_offset;
            uint32_t command_bytes;
            uint32_t answer_bytes; /* room for the answer; longer ones are cut */
        } text;
        struct {
            uint64_t bytes; /* result: device address, aligned to 256 */
        } alloc;
        struct {
            uint64_t address;
        } free;
        struct {
            uint64_t address;
            uint64_t count; /* of elements */
            uint32_t value;
            uint32_t width; /* bytes of an element: 1, 2 or 4 */
        } set;
        struct {
            uint64_t target; /* device address; COPY_OUT: offset */
            uint64_t source; /* device address; COPY_IN: offset */
            uint64_t bytes;  /* 0 is nothing to do */
        } copy;
        struct {
            uint32_t handle; /* stream, event or module */
            uint32_t other;  /* EVENT_ELAPSED: the later event */
        } object;
        struct {
            uint32_t handle;
            uint32_t reserved;
            uint64_t image_offset; /* MODULE_LOAD: 0 is the parts that came under this handle */
            uint64_t image_bytes;  /* MODULE_PART: of this part */
            uint64_t part_at;      /* MODULE_PART: where in the image; 0 begins anew */
            uint64_t whole_bytes;  /* MODULE_PART: up to VGPU_IMAGE_MAX_BYTES, in each the same */
        } module;
        struct {
            uint32_t module;      /* 0: a built-in kernel */
            uint32_t name_offset; /* of the kernel's name, in the arena */
            uint32_t name_bytes;
            uint32_t parameters_offset; /* in the arena: see VGPU_OP_LAUNCH */
            uint32_t parameters_bytes;
            uint32_t shared_bytes;
            uint32_t grid[3];
            uint32_t block[3];
        } launch;
        struct {
            uint32_t attribute; /* VGPU_QUERY_*; result: its value */
        } query;
        struct {
            uint64_t cookie; /* of the operations to cancel; result: how many were */
        } cancel;
    };
};

VGPU_ASSERT(sizeof(struct vgpu_descriptor) == 64, "a descriptor is one cache line");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, flags) == 2, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, device) == 3, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, stream) == 4, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, cookie) == 8, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, words) == 16, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, text.answer_offset) == 24, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, text.command_bytes) == 32, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, text.answer_bytes) == 36, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, set.count) == 24, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, set.value) == 32, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, set.width) == 36, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, copy.source) == 24, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, copy.bytes) == 32, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, object.other) == 20, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, module.image_offset) == 24, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, module.image_bytes) == 32, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, module.part_at) == 40, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, module.whole_bytes) == 48, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, launch.name_offset) == 20, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, launch.name_bytes) == 24, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, launch.parameters_offset) == 28, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, launch.parameters_bytes) == 32, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, launch.shared_bytes) == 36, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, launch.grid) == 40, "layout");
VGPU_ASSERT(offsetof(struct vgpu_descriptor, launch.block) == 52, "layout");

/* No completion when it succeeds.  When it fails, none either: the error is
 * kept and is the status of the next synchronisation of its stream (or of the
 * device), as in the CUDA driver API. */
#define VGPU_FLAG_QUIET 0x01u
#define VGPU_FLAG_ALL VGPU_FLAG_QUIET

#define VGPU_TEXT_MAX_BYTES 1024u
#define VGPU_NAME_MAX_BYTES 256u
#define VGPU_PARAMETERS_MAX_BYTES 4096u
#define VGPU_IMAGE_MAX_BYTES (256ull << 20) /* of all that a session has under way */

enum vgpu_opcode {
    VGPU_OP_NONE = 0, /* not an operation: refused */
    VGPU_OP_PING = 1,
    VGPU_OP_TEXT = 2,   /* a text command; result: bytes of the answer */
    VGPU_OP_RESET = 3,  /* takes note of a loss: from here on the session is new and empty */
    VGPU_OP_CANCEL = 4, /* ends operations that have not begun with VGPU_CANCELLED */
    VGPU_OP_QUERY = 5,
    VGPU_OP_ALLOC = 16,
    VGPU_OP_FREE = 17,
    VGPU_OP_SET = 18,
    VGPU_OP_COPY_IN = 19,  /* slot -> device */
    VGPU_OP_COPY_OUT = 20, /* device -> slot */
    VGPU_OP_COPY = 21,     /* device -> device; ranges may overlap */
    VGPU_OP_STREAM_CREATE = 32,
    VGPU_OP_STREAM_DESTROY = 33,
    VGPU_OP_STREAM_SYNC = 34, /* object.handle; 0: the default stream */
    VGPU_OP_STREAM_WAIT = 35, /* descriptor's stream waits for event object.handle */
    VGPU_OP_EVENT_CREATE = 36,
    VGPU_OP_EVENT_DESTROY = 37,
    VGPU_OP_EVENT_RECORD = 38, /* in the descriptor's stream */
    VGPU_OP_EVENT_SYNC = 39,
    VGPU_OP_EVENT_QUERY = 40,   /* OK: reached, or never recorded; else VGPU_NOT_READY */
    VGPU_OP_EVENT_ELAPSED = 41, /* result: ns from handle to other */
    VGPU_OP_DEVICE_SYNC = 42,   /* the descriptor's device */
    VGPU_OP_MODULE_LOAD = 48,
    VGPU_OP_MODULE_UNLOAD = 49,
    /*
     * launch.parameters: the kernel's parameters in order.  Each begins at a multiple of 8
     * bytes and takes as many 8-byte words as it needs: an address or a 64-bit number one, an
     * int or a float the low bytes of one, a structure of 20 bytes three.  What a word has
     * beyond its parameter is ignored.  parameters_bytes is 8 bytes for each word.
     */
    VGPU_OP_LAUNCH = 50,
    /* A part of a module's image, for one that has no room in the slot: the parts in their order,
     * then MODULE_LOAD.  MODULE_UNLOAD forgets them. */
    VGPU_OP_MODULE_PART = 51,
};

#define VGPU_QUERY_MEMORY_BYTES 1u      /* that the VM may have, all sessions together */
#define VGPU_QUERY_MEMORY_FREE_BYTES 2u /* of it, those that are left now */
#define VGPU_QUERY_MULTIPROCESSORS 3u   /* cpu backend: cores */
#define VGPU_QUERY_BACKEND 4u           /* VGPU_BACKEND_* */
#define VGPU_QUERY_OPERATION_LIMIT_MS 5u
#define VGPU_QUERY_DEVICES 6u /* that the session has: 1 to VGPU_SESSION_DEVICES_MAX */

#define VGPU_SESSION_DEVICES_MAX 8u

#define VGPU_BACKEND_CPU 1u
#define VGPU_BACKEND_CUDA 2u

#define VGPU_FEATURE_MODULES 0x1u      /* module load and launch of own kernels */
#define VGPU_FEATURE_MODULE_PARTS 0x2u /* VGPU_OP_MODULE_PART */

/* --- completions: 32 bytes, written by the worker ------------------------------------ */

/* A completion also says that all descriptors up to its own were read, with what
 * their launches and texts name in the arena: the guest may use those places
 * again.  (Heap ranges are the operation's until its own completion, or a sync.) */
struct vgpu_completion {
    uint64_t cookie;
    uint64_t result;
    uint32_t status;   /* enum vgpu_status */
    uint32_t run_us;   /* time on the device, saturating */
    uint32_t sequence; /* number of the descriptor in its ring, from 0, wrapping */
    uint32_t generation;
};

VGPU_ASSERT(sizeof(struct vgpu_completion) == 32, "two completions are one cache line");
VGPU_ASSERT(offsetof(struct vgpu_completion, result) == 8, "layout");
VGPU_ASSERT(offsetof(struct vgpu_completion, status) == 16, "layout");
VGPU_ASSERT(offsetof(struct vgpu_completion, run_us) == 20, "layout");
VGPU_ASSERT(offsetof(struct vgpu_completion, sequence) == 24, "layout");
VGPU_ASSERT(offsetof(struct vgpu_completion, generation) == 28, "layout");

VGPU_ASSERT(VGPU_SLOT_SQ + VGPU_RING_ENTRIES * 64 == VGPU_SLOT_CQ, "layout");
VGPU_ASSERT(VGPU_SLOT_CQ + VGPU_RING_ENTRIES * 32 == VGPU_SLOT_ARENA, "layout");
VGPU_ASSERT(VGPU_ARENA_BYTES == 256 * 1024, "layout");
VGPU_ASSERT((VGPU_RING_ENTRIES & (VGPU_RING_ENTRIES - 1)) == 0, "a power of two");

/* Numbers are part of the protocol: never renumber. */
enum vgpu_status {
    VGPU_OK = 0,
    VGPU_INVALID = 1,         /* a field of the descriptor has a value that it cannot have */
    VGPU_BAD_OPCODE = 2,      /* no such operation */
    VGPU_NOT_SUPPORTED = 3,   /* not by this backend */
    VGPU_OUT_OF_MEMORY = 4,   /* device memory, or the VM's limit of it */
    VGPU_BAD_ADDRESS = 5,     /* outside of what was allocated, or of the slot */
    VGPU_BAD_HANDLE = 6,      /* no such stream, event, module or device */
    VGPU_HANDLE_EXISTS = 7,   /* the guest uses this handle already */
    VGPU_NOT_FOUND = 8,       /* no kernel of this name */
    VGPU_TOO_MANY = 9,        /* handles or allocations: a bound of the session */
    VGPU_COMMAND_FAILED = 10, /* text: the answer says why */
    VGPU_CANCELLED = 11,
    VGPU_DEVICE_LOST = 12, /* worker or device is gone; it may have begun, and is not run again */
    VGPU_NOT_READY = 13,
    VGPU_TIME_LIMIT = 14,   /* ran longer than the operation limit: its worker was ended for it */
    VGPU_REFUSED = 15,      /* the VM may not work now: quarantined, or its pool is disabled */
    VGPU_KERNEL_FAULT = 16, /* a kernel did what the GPU forbids (an address, an instruction):
                               it and all that was in flight ended, the session is LOST */
    VGPU_BAD_IMAGE = 17,    /* this GPU can run nothing of the module's image */
    VGPU_STATUS_COUNT
};

/* --- the one rule of event indices ------------------------------------------------------ */

/* True when publishing entries old_tail..new_tail-1 passes the one that the
 * consumer wants to be told about. */
static inline bool vgpu_event_passed(uint32_t event, uint32_t new_tail, uint32_t old_tail)
{
    return (uint32_t)(new_tail - event - 1) < (uint32_t)(new_tail - old_tail);
}

/*
 * Barriers, the same for both directions (tests/model/ring.pml checks them):
 *   producer: entries, release-store of tail, FULL fence, load of the event
 *   consumer that sleeps: store of the event, FULL fence, load of the tail
 * so one of the two always sees the other.
 *
 * Full rings: the host takes nothing, quiet or not, while VGPU_RING_ENTRIES
 * completions are untaken, and it is not told when the guest takes some; then its
 * sq_event is the sq_tail that it saw, so the next publication rings.  For a guest
 * that sleeps this is enough when it publishes at most VGPU_RING_ENTRIES operations
 * without QUIET whose completions it has not taken, and never VGPU_RING_ENTRIES
 * quiet ones in a row.
 */
static inline void vgpu_store_release(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline uint32_t vgpu_load_acquire(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* A locked instruction: on x86-64 the same as mfence for memory of this kind, and
 * cheaper. */
static inline void vgpu_fence_full(void)
{
    __asm__ volatile("lock; addl $0, -4(%%rsp)" ::: "memory", "cc");
}

#endif /* VGPU_WINDOW_H */

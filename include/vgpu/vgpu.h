/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu/vgpu.h - libvgpu: a program's way to its virtual GPU.
 *
 *   struct vgpu_session *session;
 *   struct vgpu_problem problem;
 *
 *   if (vgpu_open(NULL, &session, &problem) < 0)
 *       errx(1, "%s", problem.text);
 *   vgpu_text(session, "VECTOR_ADD", answer, sizeof(answer), &problem);
 *   vgpu_close(session);
 *
 * A session is one ring pair, one part of the window and one worker on the
 * host.  vgpu_submit() submits an operation without waiting and gives a ticket
 * to wait for, to poll for, or a callback; functions named for an operation
 * submit it and wait.  Those that are asynchronous say so.
 *
 * Errors: functions return 0 (or what they say) or -1 and fill *problem, which
 * may be NULL and is untouched on success: `status` is an enum vgpu_status or
 * one of VGPU_PROBLEM_*, `text` says what was expected, what came and what to do.
 * Outputs ret_* are untouched on failure.  Every function that takes a session
 * and a problem can fail with
 *
 *   VGPU_PROBLEM_CLOSED   the session has ended: results that had come can be
 *                         fetched still, then only vgpu_close() is left
 *   VGPU_PROBLEM_FORKED   it is another process's
 *
 * and every function that runs an operation with
 *
 *   VGPU_PROBLEM_FULL     1024 operations have no answer, or one not yet fetched
 *   VGPU_DEVICE_LOST      the worker or the device died, now or before and no
 *                         vgpu_reset() since: device memory, streams and events are
 *                         gone; what had not ended may have begun, and is not run
 *                         again.  So too after a Xen VM was saved and restored, or
 *                         moved while it ran: there vgpu_wait_all() says it as well, and
 *                         vgpu_wait() and vgpu_poll() once nothing is left to fetch
 *   VGPU_TIME_LIMIT       this one ran longer than the host allows
 *                         (VGPU_QUERY_OPERATION_LIMIT_MS): its worker was ended for
 *                         it, the others in flight get VGPU_DEVICE_LOST, and so does
 *                         what comes before vgpu_reset()
 *   VGPU_REFUSED          the VM is quarantined or its pool is disabled: nothing
 *                         was run, what the session holds is kept; try later
 *
 * Below, `errors` names what a function adds to these.
 *
 * Order: operations run one after the other, in the order of their submission,
 * also those of different streams where the backend is cpu.
 *
 * Threads: a session belongs to one thread at a time: who shares it holds a lock
 * of its own around each call, also around a wait.  vgpu_open(), and calls for
 * different sessions, are independent of each other: one session a thread is the
 * fast way.  Callbacks run in the thread that waits, polls or submits to a full
 * ring or table, never in another, and never inside one another.  They may use the
 * session, but not close it; they get no results but those of the program's own
 * vgpu_submit().  Nothing here may be called in a signal handler; a signal does not
 * end a wait.
 *
 * fork(2) ends the session in the child: there every call fails with
 * VGPU_PROBLEM_FORKED, the heap is not mapped, and the parent's session goes on.
 *
 * Waiting spins for `spin_us`, then sleeps: never more than one core.  A program
 * that waits for nothing costs nothing; one that sleeps looks again once a second,
 * in case its wake-up was lost (some emulated processors lose them).
 */
#ifndef VGPU_VGPU_H
#define VGPU_VGPU_H

#include "vgpu/window.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VGPU_API __attribute__((visibility("default")))

#define VGPU_PROBLEM_TEXT_BYTES 512 /* with the NUL */

/* Beyond enum vgpu_status: problems of the way there, not of an operation. */
#define VGPU_PROBLEM_NO_DEVICE 64 /* no device with a window, no socket */
#define VGPU_PROBLEM_DENIED 65    /* not this user, or the VM is quarantined */
#define VGPU_PROBLEM_NO_HOST 66   /* no mediator is there, or it refused */
#define VGPU_PROBLEM_BUSY 67      /* all sessions are taken */
#define VGPU_PROBLEM_CLOSED 68    /* the session ended: guest reset, VM removed, rings broken */
#define VGPU_PROBLEM_TIMEOUT 69   /* the time given is over; the operation goes on */
#define VGPU_PROBLEM_FULL 70      /* ring or heap is full: wait for something first */
#define VGPU_PROBLEM_FORKED 71    /* the session is the parent's */
#define VGPU_PROBLEM_ARGUMENT 72  /* the caller's mistake */
#define VGPU_PROBLEM_SYSTEM 73    /* the system refused something */

struct vgpu_problem {
    int status; /* enum vgpu_status (below 64) or VGPU_PROBLEM_* */
    char text[VGPU_PROBLEM_TEXT_BYTES];
};

struct vgpu_session;

/* Names a submitted operation in its session; never 0, never used again, larger than
 * those submitted before. */
typedef uint64_t vgpu_ticket;

/* --- sessions ------------------------------------------------------------------- */

enum vgpu_transport {
    VGPU_TRANSPORT_AUTO,   /* the best there is: socket if named, module, sysfs, xen */
    VGPU_TRANSPORT_MODULE, /* in a guest: /dev/vgpu<n> of vgpu_guest.ko */
    VGPU_TRANSPORT_SYSFS,  /* in a guest: root only, one process, no interrupts: slow */
    VGPU_TRANSPORT_SOCKET, /* on the host: a VM's socket */
    VGPU_TRANSPORT_XEN,    /* in a Xen guest: pages granted to the host's vgpu-xen */
};

struct vgpu_options {
    enum vgpu_transport transport;
    /* A socket, a device like /dev/vgpu0, a PCI device's directory in /sys; with AUTO
     * it says which transport it wants.  NULL: with SOCKET $VGPU_SOCKET; with MODULE the
     * first device that has a free session; with SYSFS the first of its class; with AUTO
     * $VGPU_SOCKET where that is set, else MODULE, else SYSFS, else XEN.  Copied; XEN
     * does not look at it. */
    const char *path;
    uint64_t window_bytes;    /* SOCKET: of the window to make, in whole pages of 4096;
                               * 2 MiB to 64 GiB, 0: 16 MiB.  XEN: of the slot to grant,
                               * 424 KiB to 64 MiB; 0: of 2 MiB, 1 MiB and 512 KiB the
                               * first that the kernel's limit lets, less a page */
    int32_t spin_us;          /* microseconds; below 0: 50, and 0 where there is one core */
    uint32_t open_timeout_ms; /* SOCKET, SYSFS, XEN: how long vgpu_open() may wait for the host;
                               * 0: 10000.  MODULE: the module's parameter says.  XEN: also
                               * vgpu_reset() when it connects again */
};

/* Options with every default. */
#ifdef __cplusplus
#define VGPU_OPTIONS_DEFAULT (vgpu_options{VGPU_TRANSPORT_AUTO, nullptr, 0, -1, 0})
#else
#define VGPU_OPTIONS_DEFAULT ((struct vgpu_options){.spin_us = -1})
#endif

/*
 * Opens a session, and waits until its worker is there.  `options` NULL: the
 * defaults.  *ret_session is the caller's, to be given to vgpu_close().  Any thread.
 *
 * Errors: NO_DEVICE; DENIED (this user may not, or the VM is quarantined or its pool
 * disabled); NO_HOST (no mediator, or it refused); BUSY (the VM has its sessions:
 * sessions_max); TIMEOUT (the host said nothing); ARGUMENT; SYSTEM.
 */
VGPU_API int vgpu_open(const struct vgpu_options *options, struct vgpu_session **ret_session,
                       struct vgpu_problem *problem);

/* Ends the session and frees it: its tickets, its heap and all that it has on the device
 * are gone.  What is unanswered may run or not; callbacks do not run any more.  Does not
 * wait; under Xen at most 2 s, for the host to let the pages go.  NULL is nothing; not inside a
 * callback.  In a child of fork(2) it frees the child's memory and leaves the parent's session
 * alone. */
VGPU_API void vgpu_close(struct vgpu_session *session);

struct vgpu_session_info {
    enum vgpu_transport transport; /* never AUTO */
    char path[256];                /* device or socket */
    uint32_t vm_id;                /* 0: not told */
    char pool;                     /* 'A'..'Z'; 0: not told */
    uint32_t priority;             /* 0 low, 1 medium, 2 high */
    uint32_t slot;                 /* of the window */
    uint64_t slot_bytes;           /* of rings, arena and heap together */
    uint64_t heap_bytes;
    uint32_t generation; /* from 1; rises with each loss */
    uint32_t state;      /* VGPU_SESSION_*; CLOSED also when it ended otherwise */
    uint64_t features;   /* VGPU_FEATURE_* */
    bool cached;         /* the mapping is (all but an uncached fallback) */
};

/* Cannot fail, whatever became of the session; runs no operation. */
VGPU_API void vgpu_session_info(struct vgpu_session *session, struct vgpu_session_info *ret_info);

/* After VGPU_DEVICE_LOST or VGPU_TIME_LIMIT, VGPU_KERNEL_FAULT, or at any time: begins anew,
 * without device memory, streams, events and errors kept for a synchronisation; their addresses and
 * handles are invalid from here on.  The heap and unfetched results stay.  Waits.
 *
 * Under Xen, in a VM that was saved and restored or moved, it connects to the host again, with new
 * pages at the slot's address: no other thread may write into the heap meanwhile.  That can fail as
 * vgpu_open() can; the heap stays, and the next call tries again.  Errors then: NO_HOST (it has
 * not offered the channel within open_timeout_ms, or it refused); DENIED; BUSY; TIMEOUT; SYSTEM;
 * NO_DEVICE. */
VGPU_API int vgpu_reset(struct vgpu_session *session, struct vgpu_problem *problem);

/* A descriptor that is readable (POLLIN) when vgpu_poll() may have something; for event
 * loops.  It is the session's: poll it, also in another thread, and nothing else.  -1:
 * there is none (SYSFS, a child). */
VGPU_API int vgpu_fd(const struct vgpu_session *session);

/* Before each wait on vgpu_fd(): publishes what a batch holds and asks to be woken by the
 * next answer.  0: wait.  1: do not, vgpu_poll() has something already, be it the
 * session's end.  What wakes may be the mediator's return, and then nothing has come. */
VGPU_API int vgpu_arm(struct vgpu_session *session);

/* --- the heap: memory of this session's slot, seen by both sides -------------------- */

/* `bytes` (0 counts as 1) of memory aligned to 64, not cleared; NULL when there is no such
 * place left, or the session is over.  Data that lies here is copied by one step less.
 * vgpu_heap_free() gives it back; else it lives as long as the session. */
VGPU_API void *vgpu_heap_alloc(struct vgpu_session *session, uint64_t bytes);

/* Not before every operation that names it is answered, quiet ones synchronised.  What
 * vgpu_heap_alloc() did not give, and NULL, is left alone. */
VGPU_API void vgpu_heap_free(struct vgpu_session *session, void *memory);

/* Where heap memory (any byte of it) stands in the slot, as descriptors name it: bytes from
 * the slot's start; 0: it is not in the heap. */
VGPU_API uint64_t vgpu_heap_offset(const struct vgpu_session *session, const void *memory);

/* --- submitting ----------------------------------------------------------------------- */

struct vgpu_result {
    vgpu_ticket ticket;
    uint64_t value;  /* what the operation gives: an address, bytes, ns; see enum vgpu_opcode */
    uint32_t status; /* enum vgpu_status */
    uint32_t run_us; /* microseconds on the device */
};

/* `result` lives until the callback returns; `context` is the submitter's. */
typedef void (*vgpu_callback)(struct vgpu_session *session, const struct vgpu_result *result,
                              void *context);

/*
 * Submits one descriptor as it is (vgpu/window.h), cookie excepted (the library's).  It
 * is copied; the heap memory that it names is the operation's until it is answered.
 * A field that is wrong is no error here but the result's status.
 *
 * With `callback` its result goes there, and cannot be waited for; with NULL it is kept
 * for vgpu_wait() or vgpu_poll().  VGPU_FLAG_QUIET operations are asynchronous: `callback`
 * is ignored, the ticket's result never comes, and an error is told by the next
 * synchronisation of the stream or the device.  *ret_ticket: may be NULL.
 *
 * When the ring is full it waits for room; VGPU_PROBLEM_FULL: 1024 operations are
 * unanswered or not fetched, and no callback is on its way to make room.
 */
VGPU_API int vgpu_submit(struct vgpu_session *session, const struct vgpu_descriptor *descriptor,
                         vgpu_callback callback, void *context, vgpu_ticket *ret_ticket,
                         struct vgpu_problem *problem);

/* Between the two, submitted operations are published (and the doorbell is rung)
 * together: at the last vgpu_batch_end(), when the ring is full, or before a wait, a poll
 * or an operation that waits.  They nest; an end without its begin is nothing. */
VGPU_API void vgpu_batch_begin(struct vgpu_session *session);

/* See vgpu_batch_begin(). */
VGPU_API void vgpu_batch_end(struct vgpu_session *session);

/* --- waiting -------------------------------------------------------------------------- */

/* A timeout, in microseconds: 0 looks once and does not wait; below 0, or more than the
 * clock can count (292 years), is for ever. */
#define VGPU_FOREVER (-1)

/* Waits for one operation, and runs callbacks of others.  Returns 0 with its result,
 * whatever its status; *ret_result may be NULL.  A ticket can be waited for once.
 *
 * Errors: TIMEOUT (the operation goes on: wait again, or cancel it); ARGUMENT (the ticket
 * has a callback or is quiet, was fetched before, also by a callback that ran meanwhile, or
 * is none). */
VGPU_API int vgpu_wait(struct vgpu_session *session, vgpu_ticket ticket, int64_t timeout_us,
                       struct vgpu_result *ret_result, struct vgpu_problem *problem);

/* Waits until nothing that was submitted is unanswered, and runs callbacks, also of what
 * they submit.  Results without callback are kept for vgpu_poll().  Quiet operations are
 * not waited for: vgpu_device_sync() does.  Errors: TIMEOUT. */
VGPU_API int vgpu_wait_all(struct vgpu_session *session, int64_t timeout_us,
                           struct vgpu_problem *problem);

/* Takes up to `most` results that are there, without waiting, in the order of their
 * answers, and runs callbacks of others.  `ret_results` has room for `most`; 0 and NULL: only
 * callbacks.  Returns how many were taken; -1 only when there are none. */
VGPU_API int vgpu_poll(struct vgpu_session *session, struct vgpu_result *ret_results, int most,
                       struct vgpu_problem *problem);

/* Ends an operation that has not begun: its status becomes VGPU_CANCELLED, and its result
 * is fetched or told as any other.  One that runs or has ended is left alone, and so is a
 * ticket that is none.  *ret_cancelled (may be NULL) says which.  Waits for the host's
 * answer, which comes in its turn, after what was submitted before. */
VGPU_API int vgpu_cancel(struct vgpu_session *session, vgpu_ticket ticket, bool *ret_cancelled,
                         struct vgpu_problem *problem);

/* --- operations, submitted and waited for -------------------------------------------------- */

/* Each submits one operation and waits for its answer, as long as it takes; callbacks of
 * others run meanwhile.  Failure is -1 with problem->status the operation's enum
 * vgpu_status.  Those marked asynchronous do not wait: they return 0 when the operation is
 * submitted, and what goes wrong later is told by the next synchronisation. */

/* Nothing, there and back: the host answers.  In its turn, so what was submitted before
 * has ended too. */
VGPU_API int vgpu_ping(struct vgpu_session *session, struct vgpu_problem *problem);

/*
 * Runs a text command: 1 to 255 bytes and a NUL (docs/protocol.md has them all).  `answer` gets at
 * most answer_bytes - 1 bytes and a NUL; longer answers are cut, and at 16384 bytes in any case.
 * Returns 0 for success, 1 when the command answered with an error (both: with the answer), -1 on a
 * problem.
 *
 * Errors: VGPU_INVALID, ARGUMENT (a command or an answer without room); FULL (more
 * commands at once than the arena holds, from callbacks).
 */
VGPU_API int vgpu_text(struct vgpu_session *session, const char *command, char *answer,
                       size_t answer_bytes, struct vgpu_problem *problem);

/*
 * One number of the device, `attribute` is VGPU_QUERY_*:
 *
 *   MEMORY_BYTES         bytes of device memory that the VM may have, all its sessions together
 *   MEMORY_FREE_BYTES    of them, those that are left at this moment
 *   MULTIPROCESSORS      a count; of cores where the backend is cpu
 *   BACKEND              VGPU_BACKEND_*
 *   OPERATION_LIMIT_MS   milliseconds that one operation may run: VGPU_TIME_LIMIT
 *   DEVICES              how many devices the session has
 *
 * Errors: VGPU_INVALID (no such attribute).
 */
VGPU_API int vgpu_query(struct vgpu_session *session, uint32_t attribute, uint64_t *ret_value,
                        struct vgpu_problem *problem);

/*
 * How many devices the session has: 1 to 8, as its pool says (session_devices) when its worker
 * starts; after VGPU_DEVICE_LOST it may be another number.
 */
VGPU_API int vgpu_device_count(struct vgpu_session *session, uint32_t *ret_count,
                               struct vgpu_problem *problem);

/*
 * From here on the functions of this session are for this device, from 0: at first, and after
 * vgpu_reset(), the first.  What vgpu_submit() gets says itself which.  Runs no operation: one
 * that the session has not is told by each that follows, VGPU_BAD_HANDLE.
 *
 * Each device has a memory, a stream 0, and streams, events and modules of its own, made while
 * it is the one set.  They are used there only: memory of another one is VGPU_BAD_ADDRESS, a
 * stream, an event to record or a module VGPU_BAD_HANDLE.  But vgpu_copy() may have one of its
 * two ranges on another device, vgpu_stream_wait() takes events of any, and what is freed,
 * destroyed, unloaded, or synchronised by its handle may be anybody's.  vgpu_device_sync() is
 * for the one that is set, vgpu_reset() for all.  A kernel reaches its own device's memory, and
 * another's only where the GPUs can reach each other.
 *
 * Errors: ARGUMENT (more than a session can have).
 */
VGPU_API int vgpu_device_set(struct vgpu_session *session, uint32_t device,
                             struct vgpu_problem *problem);

/* The one that is set.  Cannot fail. */
VGPU_API uint32_t vgpu_device(const struct vgpu_session *session);

/*
 * `bytes` (1 or more) of device memory.  *ret_address is a device address, a multiple of
 * 256 and never 0: a number that only operations understand, with which one may calculate
 * inside of its bytes.  What is in there is not defined, but nobody else's.  It lives until
 * vgpu_memory_free(), vgpu_reset(), a loss or the session's end.
 *
 * Errors: VGPU_INVALID (0 bytes); VGPU_OUT_OF_MEMORY (of the device, or the session's
 * limit of it); VGPU_TOO_MANY (4096 allocations a session).
 */
VGPU_API int vgpu_memory_alloc(struct vgpu_session *session, uint64_t bytes, uint64_t *ret_address,
                               struct vgpu_problem *problem);

/* `address` as vgpu_memory_alloc() gave it.  What was submitted before may use it still.
 * Errors: VGPU_BAD_ADDRESS. */
VGPU_API int vgpu_memory_free(struct vgpu_session *session, uint64_t address,
                              struct vgpu_problem *problem);

/*
 * Writes `value` `count` times from `address` on.  `width` is the bytes of one element: 1, 2
 * or 4, and the lowest `width` bytes of `value` count, little-endian; `count` is elements, so
 * count * width bytes are written.
 *
 * Errors: VGPU_INVALID (another width, or an address that is no multiple of it);
 * VGPU_BAD_ADDRESS (not all of it inside one allocation).
 */
VGPU_API int vgpu_memory_set(struct vgpu_session *session, uint64_t address, uint32_t value,
                             uint32_t width, uint64_t count, struct vgpu_problem *problem);

/*
 * Copies `bytes` from this process's memory to the device; `target` is a device address.
 * 0 bytes is nothing to do.  `source` is the caller's again when it returns.  In the heap
 * it is one operation; elsewhere it goes through the heap in pieces of up to 512 KiB, two in
 * flight, and what failed may be there in part.
 *
 * Errors: VGPU_BAD_ADDRESS (not all of it inside one allocation); FULL (the heap has no
 * room for its pieces, two of 4096 bytes at least).
 */
VGPU_API int vgpu_copy_in(struct vgpu_session *session, uint64_t target, const void *source,
                          uint64_t bytes, struct vgpu_problem *problem);

/* Copies `bytes` from the device to this process's memory; `source` is a device address.
 * All else as vgpu_copy_in(). */
VGPU_API int vgpu_copy_out(struct vgpu_session *session, void *target, uint64_t source,
                           uint64_t bytes, struct vgpu_problem *problem);

/* Copies `bytes` from one device address to another; the ranges may overlap, and one may be
 * another device's (vgpu_device_set()).  0 bytes is nothing to do.  Errors: VGPU_BAD_ADDRESS
 * (each inside one allocation). */
VGPU_API int vgpu_copy(struct vgpu_session *session, uint64_t target, uint64_t source,
                       uint64_t bytes, struct vgpu_problem *problem);

/*
 * Asynchronous: runs built-in kernel `name` (1 to 256 bytes and a NUL) in `stream`, with `grid`
 * blocks of `block` threads, each number 1 or more, and `count` (0 to 512) parameters of 64
 * bits: addresses, numbers, a float's bits in the low half.  All is copied before it
 * returns; `parameters` may be NULL where count is 0.  Built-in kernels do their whole count
 * whatever grid and block say:
 *
 *   vector_add  c a b count    c[i] = a[i] + b[i]           floats
 *   saxpy       y x a count    y[i] = a * x[i] + y[i]       floats, a is one
 *   fill        y value count  y[i] = value                 32-bit words
 *   increment   y count        y[i] = y[i] + 1              64-bit words
 *   reduce_sum  sum x count    *sum = x[0] + x[1] + ...     floats, sum a double
 *   matrix_mul  c a b n        c = a b                      n x n floats, n to 16384, c apart
 *   spin_us     us             takes so many microseconds   to 10 minutes
 *
 * Errors: ARGUMENT (name, count).  Later: VGPU_NOT_FOUND (no such kernel); VGPU_INVALID (a
 * 0 in grid or block, or not this kernel's parameters); VGPU_BAD_ADDRESS (not inside one
 * allocation, or not aligned to its elements); VGPU_BAD_HANDLE (no such stream, told by
 * vgpu_device_sync()).
 */
VGPU_API int vgpu_launch(struct vgpu_session *session, uint32_t stream, const char *name,
                         const uint32_t grid[3], const uint32_t block[3],
                         const uint64_t *parameters, uint32_t count, struct vgpu_problem *problem);

/*
 * Asynchronous: runs kernel `name` (1 to 256 bytes and a NUL) of a module that
 * vgpu_module_load() has loaded, in `stream`, with `grid` blocks of `block` threads, each
 * number 1 or more, and `shared_bytes` (0 or more) of dynamic shared memory for each block.
 * What the device can do bounds all three.  Module 0 has the built-in kernels.
 *
 * `parameters` is `parameters_bytes` (0 to 4096, a multiple of 8) of the kernel's parameters
 * in order: each begins at a multiple of 8 and takes as many words of 8 bytes as it needs, so
 * an int or a float stands in the low half of its word.  In C that is a structure whose members are
 * each _Alignas(8):
 *
 *   __global__ void scale(float *y, float by, int count);
 *   const struct { _Alignas(8) uint64_t y; _Alignas(8) float by; _Alignas(8) int count; } p = ...
 *
 * All is copied before it returns; `parameters` may be NULL where there are 0 bytes.
 *
 * Errors: ARGUMENT (name, parameters_bytes).  Later: VGPU_BAD_HANDLE (no such module; no such
 * stream, told by vgpu_device_sync()); VGPU_NOT_FOUND (no such kernel in it); VGPU_INVALID (a
 * 0 in grid or block, more than the device can do, or not this kernel's parameters);
 * VGPU_NOT_SUPPORTED (by the cpu backend, where module is not 0).  A kernel that touches
 * memory which is not the session's ends with VGPU_KERNEL_FAULT.
 */
VGPU_API int vgpu_launch_kernel(struct vgpu_session *session, uint32_t stream, uint32_t module,
                                const char *name, const uint32_t grid[3], const uint32_t block[3],
                                uint32_t shared_bytes, const void *parameters,
                                uint64_t parameters_bytes, struct vgpu_problem *problem);

/*
 * Loads a module image of `bytes` (1 or more) under handle `module`, a number of the caller's
 * choice, not 0: PTX text with its NUL, a cubin or a fatbin, as the CUDA driver on the host takes
 * it.  The image is copied, and the caller's again when it returns.  One for which the heap has
 * no room goes in parts, up to VGPU_IMAGE_MAX_BYTES, where the host tells
 * VGPU_FEATURE_MODULE_PARTS; each session sends its own, whatever others have loaded.  Only
 * where vgpu_session_info() tells VGPU_FEATURE_MODULES.  A module lives until it is unloaded,
 * vgpu_reset(), a loss or the session's end.
 *
 * Errors: VGPU_NOT_SUPPORTED (by the cpu backend, always); VGPU_INVALID (handle 0, no bytes);
 * VGPU_BAD_IMAGE (the driver cannot load it); VGPU_HANDLE_EXISTS; VGPU_TOO_MANY;
 * VGPU_OUT_OF_MEMORY (an image counts against the VM's device memory); FULL (an image outside of
 * the heap needs 8 KiB of room in there, or as much as it has where the host takes no parts; one
 * in the heap needs none).
 */
VGPU_API int vgpu_module_load(struct vgpu_session *session, uint32_t module, const void *image,
                              uint64_t bytes, struct vgpu_problem *problem);

/* Errors: VGPU_NOT_SUPPORTED (by the cpu backend, always); VGPU_BAD_HANDLE. */
VGPU_API int vgpu_module_unload(struct vgpu_session *session, uint32_t module,
                                struct vgpu_problem *problem);

/*
 * Streams and events are handles of 32 bits that the caller chooses, each kind its own, not
 * 0; stream 0 is there without being created.  A session has up to 4096 of both together.
 * They live until they are destroyed, vgpu_reset(), a loss or the session's end.
 *
 * Errors: VGPU_INVALID (0); VGPU_HANDLE_EXISTS; VGPU_TOO_MANY.
 */
VGPU_API int vgpu_stream_create(struct vgpu_session *session, uint32_t stream,
                                struct vgpu_problem *problem);

/* What it was given before has run; an error that no synchronisation has told is forgotten.
 * Errors: VGPU_BAD_HANDLE, also for stream 0. */
VGPU_API int vgpu_stream_destroy(struct vgpu_session *session, uint32_t stream,
                                 struct vgpu_problem *problem);

/* Waits until everything in `stream` (0: the one that is always there) has ended.  Errors:
 * VGPU_BAD_HANDLE, or the first error of its asynchronous operations since the last
 * synchronisation; it is told once. */
VGPU_API int vgpu_stream_sync(struct vgpu_session *session, uint32_t stream,
                              struct vgpu_problem *problem);

/* Asynchronous: what comes later in `stream` waits until `event`, as it was recorded last, is
 * reached; never recorded, it does not wait.  Later: VGPU_BAD_HANDLE. */
VGPU_API int vgpu_stream_wait(struct vgpu_session *session, uint32_t stream, uint32_t event,
                              struct vgpu_problem *problem);

/* As vgpu_stream_create(); the event is not recorded.  Errors: the same. */
VGPU_API int vgpu_event_create(struct vgpu_session *session, uint32_t event,
                               struct vgpu_problem *problem);

/* Errors: VGPU_BAD_HANDLE. */
VGPU_API int vgpu_event_destroy(struct vgpu_session *session, uint32_t event,
                                struct vgpu_problem *problem);

/* Asynchronous: `event` is reached, and has its time, when all that is in `stream` now has
 * ended.  An earlier record is forgotten.  Later: VGPU_BAD_HANDLE. */
VGPU_API int vgpu_event_record(struct vgpu_session *session, uint32_t stream, uint32_t event,
                               struct vgpu_problem *problem);

/* Waits until `event`, as it was recorded last, is reached; never recorded, it is no wait and
 * no error.  (VGPU_OP_EVENT_QUERY asks without waiting.)  Errors: VGPU_BAD_HANDLE. */
VGPU_API int vgpu_event_sync(struct vgpu_session *session, uint32_t event,
                             struct vgpu_problem *problem);

/* Nanoseconds on the host from one event to the other, as they were recorded last; 0 where
 * `later` was reached first.  Errors: VGPU_BAD_HANDLE; VGPU_NOT_READY (one was not recorded, or
 * is not reached). */
VGPU_API int vgpu_event_elapsed_ns(struct vgpu_session *session, uint32_t earlier, uint32_t later,
                                   uint64_t *ret_ns, struct vgpu_problem *problem);

/* Waits until everything that was submitted has ended.  Errors: the first error of any
 * stream's asynchronous operations since the last synchronisation, stream 0's first; all are
 * told by that. */
VGPU_API int vgpu_device_sync(struct vgpu_session *session, struct vgpu_problem *problem);

/* --- words ------------------------------------------------------------------------------------ */

/* All three: strings that stay, from any thread. */

/* "out of memory" and the like, for an enum vgpu_status or VGPU_PROBLEM_*; for a number that
 * is none, "unknown status". */
VGPU_API const char *vgpu_status_text(int status);

/* "auto", "module", "sysfs", "socket"; else "unknown". */
VGPU_API const char *vgpu_transport_name(enum vgpu_transport transport);

/* Of the library that runs, like "1.2.0". */
VGPU_API const char *vgpu_version(void);

#ifdef __cplusplus
}
#endif

#endif /* VGPU_VGPU_H */

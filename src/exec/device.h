/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session's device as its operations see it: memory, streams, events, kernels.
 *
 *   operations.c   what an operation means: handles, errors that are kept, texts
 *   device_ops     what a backend does with memory and kernels
 *     cpu_device.c   on the cpu backend, with memory.c and kernels.c
 */
#ifndef VGPU_EXEC_DEVICE_H
#define VGPU_EXEC_DEVICE_H

#include "exec/account.h"
#include "exec/session_private.h"

#include <string.h>

#define DEVICE_ALLOCATIONS_MAX 4096u
#define DEVICE_HANDLES_MAX 4096u

/* The status of an operation that has begun and not ended; of one that has, while what it put
 * into its stream is there still. */
#define DEVICE_BEGUN VGPU_STATUS_COUNT
#define DEVICE_PUT (VGPU_STATUS_COUNT + 1)

/* --- what a backend does (struct exec_backend's `device`) ------------------------------- */

struct device_config {
    uint8_t *slot; /* what copies name lies in here */
    uint64_t slot_bytes;
    const struct account_share *share; /* of the VM's device memory: what counts is there */
    uint32_t *contexts; /* counts the contexts that the session has; NULL: nobody asks */
    unsigned index;     /* of the backend's devices, from 0 */
};

struct device_place {
    uint64_t base; /* device addresses lie in base..base + bytes; 0, 0: anywhere */
    uint64_t bytes;
    uint64_t features; /* VGPU_FEATURE_* */
};

/* Room for a kernel's name that has zeros behind it, to the end of a word: two of them are
 * compared word by word. */
#define DEVICE_NAME_BYTES ((VGPU_NAME_MAX_BYTES / sizeof(uint64_t) + 1) * sizeof(uint64_t))

/* As strcmp() == 0, and each launch asks. */
static inline bool device_name_is(const char *one, const char *other)
{
    uint64_t a, b;

    do {
        memcpy(&a, one, sizeof(a));
        memcpy(&b, other, sizeof(b));
        one += sizeof(a);
        other += sizeof(b);
    } while (a == b && a >> 56 != 0); /* its last byte: 0 is the end of both, or a part of it */
    return a == b;
}

/* A launch; `name` and `parameters` are private copies. */
struct device_launch {
    void *module;     /* NULL: a built-in kernel */
    const char *name; /* in DEVICE_NAME_BYTES */
    const uint64_t *parameters;
    uint32_t count; /* of words */
    uint32_t shared_bytes;
    const uint32_t *grid, *block; /* three each */
};

#define DEVICE_ALL UINT32_MAX

/* What an operation that has begun waits for: all that was put into `stream` (NULL: the
 * one that always is), or into any, up to this number. */
struct device_wait {
    unsigned device; /* by its index, or DEVICE_ALL: `everything`, on all of them */
    void *stream;
    uint64_t number;
    const uint64_t *done; /* all up to there is over, while the stream is; NULL: only ask */
    bool everything;
    uint32_t calls;      /* of the driver, that were queued for it */
    void *object;        /* operations.c's: what is closed when it is over ... */
    uint64_t left_bytes; /* ... and of a copy, what is to be put then: see device_go_on() */
};

/* How soon its end must be seen. */
enum device_interest {
    DEVICE_QUIET,  /* nobody waits for it by itself */
    DEVICE_ANSWER, /* an operation's answer waits for it */
    DEVICE_SYNC,   /* somebody waits, and does nothing else */
};

/*
 * `state` is the backend's own.  Addresses are checked by the backend: a range that is
 * not all in one allocation is VGPU_BAD_ADDRESS.  Numbers that a guest gave have passed
 * protocol_check_descriptor() and nothing else.  Calls come in the order of the ring, and
 * their effects are those of running them in it.  A session with several devices has a state
 * for each.
 *
 * A backend whose `mark` is NULL is done when a call returns, and knows no streams.  With
 * one that has it, calls only put work into a stream; what has ended is asked with
 * reached(), and a stream is closed when all in it has.  Numbers rise over all devices.
 * VGPU_DEVICE_LOST, or VGPU_KERNEL_FAULT, from reached(): nothing works any more in this process.
 */
struct device_ops {
    int (*open)(const struct device_config *config, void **ret_state,
                struct device_place *ret_place, struct vgpu_error *error);
    void (*close)(void *state);
    void (*free_all)(void *state); /* nothing is in flight */
    /* DEVICE_BEGUN, with *ret_wait: the address may be told when that is over. */
    enum vgpu_status (*alloc)(void *state, uint64_t bytes, uint64_t *ret_address,
                              struct device_wait *ret_wait);
    enum vgpu_status (*free)(void *state, uint64_t address); /* nothing before is in flight */
    enum vgpu_status (*set)(void *state, void *stream, uint64_t address, uint32_t value,
                            uint32_t width, uint64_t count);
    enum vgpu_status (*copy_in)(void *state, void *stream, uint64_t target, const void *source,
                                uint64_t bytes);
    enum vgpu_status (*copy_out)(void *state, void *stream, void *target, uint64_t source,
                                 uint64_t bytes);
    enum vgpu_status (*copy)(void *state, void *stream, uint64_t target, uint64_t source,
                             uint64_t bytes);
    /* Of such a copy, how many bytes may be put at once: more would fill the driver's queue, which
     * makes its caller wait.  NULL: all. */
    uint64_t (*copy_most)(void *state, uint16_t opcode, uint64_t target, uint64_t source,
                          uint64_t bytes);
    /* Several devices; NULL where nothing can be allocated.  Between two of them, of which one
     * is `state`'s; the ranges are there. */
    enum vgpu_status (*copy_across)(void *state, void *stream, void *target_state, uint64_t target,
                                    void *source_state, uint64_t source, uint64_t bytes);
    bool (*has)(void *state, uint64_t address, uint64_t bytes); /* all in one allocation */
    enum vgpu_status (*launch)(void *state, void *stream, const struct device_launch *launch);
    /* VGPU_QUERY_*, but for the operation limit and the number of devices. */
    enum vgpu_status (*query)(void *state, uint32_t attribute, uint64_t *ret_value);

    /* Own kernels; NULL: not supported. */
    enum vgpu_status (*module_load)(void *state, const void *image, uint64_t bytes,
                                    void **ret_module);
    void (*module_unload)(void *state, void *module); /* nothing before is in flight */

    /* Asynchronous backends; NULL elsewhere.  Stream NULL is the one that always is. */
    /* Fills `number`, of all that is in wait->stream, or in any (`everything`), now, `done`, and
     * `calls`, those since the last time. */
    void (*mark)(void *state, enum device_interest interest, struct device_wait *wait);
    enum vgpu_status (*reached)(void *state, const struct device_wait *wait); /* or NOT_READY */
    enum vgpu_status (*drained)(void *state); /* nothing is at work, by the device's own word */
    enum vgpu_status (*stream_open)(void *state, void **ret_stream);
    void (*stream_close)(void *state, void *stream);
    enum vgpu_status (*event_open)(void *state, void **ret_event);
    void (*event_close)(void *state, void *event);
    enum vgpu_status (*event_record)(void *state, void *stream, void *event);
    enum vgpu_status (*event_wait)(void *state, void *stream, void *event);
    enum vgpu_status (*event_elapsed)(void *state, void *from, void *to, uint64_t *ret_ns);
    void (*rest)(void *state); /* gives up what costs much and holds nothing of the guest's */
    bool (*is_empty)(const void *state); /* nothing of the guest's is on it */
};

extern const struct device_ops cpu_device_ops;

/* --- memory.c: device memory of the cpu backend --------------------------------------- */

struct allocation {
    uint64_t address;
    uint64_t bytes; /* as asked for */
};

/* Address space is reserved at once; pages come with the allocations, zeroed by
 * the kernel, and go with them. */
struct device_memory {
    uint8_t *base;
    const struct account_share *share; /* counts all allocations, byte by byte */
    uint64_t cores;                    /* asked when it is opened: later no file may be */
    struct allocation *allocations;    /* by address */
    uint32_t count;
};

/* `index` tells the address spaces of one process apart. */
int memory_open(struct device_memory *memory, const struct account_share *share, unsigned index,
                struct vgpu_error *error);
void memory_close(struct device_memory *memory);
enum vgpu_status memory_alloc(struct device_memory *memory, uint64_t bytes, uint64_t *ret_address);
enum vgpu_status memory_free(struct device_memory *memory, uint64_t address);
void memory_free_all(struct device_memory *memory);

/* Where `bytes` at `address` lie, all in one allocation; NULL when they do not. */
void *memory_at(const struct device_memory *memory, uint64_t address, uint64_t bytes);

/* --- kernels.c: built-in kernels by name ------------------------------------------------ */

/* `parameters` is a private copy of `count` words. */
enum vgpu_status kernel_launch(struct device_memory *memory, const char *name,
                               const uint64_t *parameters, uint32_t count);

/* --- image.c: images of modules, whole or part by part ------------------------------------ */

#define IMAGES_MAX 16u /* of a session, that have begun and are not loaded */

struct image {
    uint32_t handle;
    uint8_t *bytes; /* room for the whole; NULL: none here */
    uint64_t gathered_bytes, whole_bytes;
};

struct images {
    const struct account_share *share; /* counts the whole of each */
    uint64_t whole_bytes;              /* of all that are here or taken, to VGPU_IMAGE_MAX_BYTES */
    struct image all[IMAGES_MAX];
};

/* Copies the part that belongs `at`; 0 begins anew.  VGPU_INVALID: not the one that is next;
 * VGPU_OUT_OF_MEMORY, VGPU_TOO_MANY: no more can begin. */
enum vgpu_status images_add(struct images *images, uint32_t handle, const uint8_t *part,
                            uint64_t part_bytes, uint64_t at, uint64_t whole_bytes);

/* *ret_bytes, with a NUL behind them, are the caller's to images_free(), and no longer here; as
 * memory of the device they do not count any more.  VGPU_BAD_HANDLE: nothing has begun;
 * VGPU_INVALID: it is not so many, or not whole. */
enum vgpu_status images_take(struct images *images, uint32_t handle, uint64_t whole_bytes,
                             uint8_t **ret_bytes);

/* The same, as a private copy of what is not gathered.  VGPU_OUT_OF_MEMORY: that would be more
 * than the session or its VM may have. */
enum vgpu_status images_copy(struct images *images, const uint8_t *source, uint64_t whole_bytes,
                             uint8_t **ret_bytes);
void images_free(struct images *images, uint8_t *bytes, uint64_t whole_bytes);

/* False: there was nothing. */
bool images_drop(struct images *images, uint32_t handle);
void images_clear(struct images *images);

/* --- operations.c ------------------------------------------------------------------------- */

struct handle;

#define DEVICE_HANDLE_KINDS 4u /* and one that is none */

struct device_part {
    void *state;            /* the backend's */
    enum vgpu_status error; /* of QUIET operations in its default stream since the last sync */
};

/* A session's devices. */
struct device {
    const struct exec_backend *backend;
    uint8_t *slot;
    uint64_t slot_bytes;
    uint32_t operation_limit_ms;
    const struct device_ops *ops;
    unsigned count; /* of `parts`, by the index that descriptors name */
    struct device_part parts[VGPU_SESSION_DEVICES_MAX];
    struct device_place place;                  /* several devices: anywhere */
    struct handle *handles;                     /* uthash */
    struct handle *recent[DEVICE_HANDLE_KINDS]; /* that was looked for last, by its kind */
    uint32_t handle_count;
    struct images images;
};

/* `config` is copied, for each of `count` devices; what it points to lives as long as they. */
int device_open(struct device *device, const struct exec_backend *backend,
                const struct device_config *config, unsigned count, uint32_t operation_limit_ms,
                struct vgpu_error *error);
void device_close(struct device *device);

/* Forgets everything: the session begins anew.  Nothing is in flight. */
void device_reset(struct device *device);

/* Runs one operation, which was read once, is private and has passed
 * protocol_check_descriptor(); fills *ret_result.  DEVICE_BEGUN: device_poll() says
 * when *ret_wait is over, and then device_finish() must be called.  DEVICE_PUT: it is VGPU_OK, and
 * needs nothing more, but until *ret_wait is over it takes room in the driver's queue.  Not for
 * VGPU_OP_CANCEL and VGPU_OP_RESET, which are the runner's. */
enum vgpu_status device_run(struct device *device, const struct vgpu_descriptor *operation,
                            uint64_t *ret_result, struct device_wait *ret_wait);

/* Where wait->left_bytes is not 0, when it is over: goes on with the copy, and fills *wait anew.
 * Until all of it was put nothing else may begin: as device_run(). */
enum vgpu_status device_go_on(struct device *device, const struct vgpu_descriptor *operation,
                              struct device_wait *wait);

/* VGPU_NOT_READY: still at work; VGPU_OK: over; else the device is lost. */
enum vgpu_status device_poll(struct device *device, const struct device_wait *wait);

/* Ends what has begun; `wait` is what it waited for, and is over.  Not needed for work: see
 * device_is_work(). */
enum vgpu_status device_finish(struct device *device, const struct vgpu_descriptor *operation,
                               const struct device_wait *wait);

/* All that was ever begun has ended: VGPU_OK, VGPU_NOT_READY, or the device is lost. */
enum vgpu_status device_drained(struct device *device);

/* Gives up what costs much and holds nothing of the guest's. */
void device_rest(struct device *device);

/* There is nothing of the guest's on any; not for backends to which that makes no difference. */
bool device_is_empty(const struct device *device);

/* An operation with VGPU_FLAG_QUIET failed, perhaps as what it names is not. */
void device_note_error(struct device *device, const struct vgpu_descriptor *operation,
                       enum vgpu_status status);

/* Operations that take no time worth measuring. */
static inline bool device_is_trivial(uint16_t opcode)
{
    return opcode < VGPU_OP_ALLOC && opcode != VGPU_OP_TEXT;
}

/* Operations that keep the device busy when they have begun; others only wait. */
static inline bool device_is_work(uint16_t opcode)
{
    return (opcode >= VGPU_OP_SET && opcode <= VGPU_OP_COPY) || opcode == VGPU_OP_LAUNCH;
}

#endif /* VGPU_EXEC_DEVICE_H */

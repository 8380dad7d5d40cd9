/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cuda backend inside, one session's:
 *
 *   cuda_device.c   struct device_ops: what operations.c asks for
 *   cuda_lane.c     streams, and how far each has come
 *   cuda_memory.c   device memory: granules, blocks, the limit
 *   cuda_stage.c    copies, where the slot could not be pinned
 *   cuda_launch.c   modules and kernels; cubin.c: what one takes of the device
 *   cuda.c          the context, text commands, GPU_INFO
 *
 * All of it belongs to the worker's one thread that talks to the device.  A context costs
 * half a gigabyte of the GPU's memory: it is made when something needs it, and given up
 * when nothing of the session's is in it (cuda_rest()).
 *
 * A session may have several devices, and on each a struct cuda_session: a context, lanes,
 * memory.  What comes from outside of these files begins with cuda_use(), so that the calls
 * that follow go to that device's context.
 *
 * What a kernel can reach.  The slot (or the chunks of cuda_stage.c) and the page of marks are
 * mapped for the GPU, and on some hosts (heterogeneous memory management) all memory of this
 * process is; so a guest's kernel can change what is in here, and nothing of any other
 * session's.  That a grant is drained is therefore asked of the driver, never read from the
 * marks, and so is what seems to have ended while a grant goes on (runner.c).
 */
#ifndef VGPU_EXEC_CUDA_PRIVATE_H
#define VGPU_EXEC_CUDA_PRIVATE_H

#include "exec/device.h"
#include "gpu/cuda.h"
#include "kernels/kernels.h"

#include <sys/queue.h>

/* --- lanes: a stream, and how far it has come (cuda_lane.c) -------------------------------- */

/*
 * Everything put into a lane has a number, one counter for all lanes of all devices.
 *
 *   awaited   somebody waits for all up to here
 *   marked    behind this the GPU writes the number into the lane's word of the page
 *   done      all up to here has ended: by the word, or as the stream was found empty
 *
 * A mark costs a third of a launch, so it is put only between what is waited for and what
 * comes behind it; the last thing in a stream needs none, since an empty stream says it.
 * But behind a kernel that a synchronisation waits for one is put at once: it costs no time
 * while the kernel runs, and looking at a word is quicker than asking the driver.
 */
struct cuda_lane {
    LIST_ENTRY(cuda_lane) link;
    cuda_stream stream; /* NULL: the default stream */
    uint32_t word;      /* its index in the page of marks */
    uint64_t last, awaited, marked, done;
    uint64_t verified;      /* as `done`, by the driver's own word */
    bool kernel_last;       /* what was put last is a kernel ... */
    uint32_t looks;         /* ... since a mark was put, at it alone */
    uint32_t lazy_count;    /* put since the last mark and not waited for by anybody ... */
    uint32_t lazy_most;     /* ... which gets one after so many */
    uint64_t mark_begin_ns; /* when work before `marked` began; 0: it was reached */
};

#define CUDA_LANES_MAX (DEVICE_HANDLES_MAX + 2)

/* --- memory (cuda_memory.c) ----------------------------------------------------------------- */

#define CUDA_GRANULE_BYTES (2ull << 20)
#define CUDA_SMALL_BYTES (1ull << 20) /* up to this, several share a granule ... */
#define CUDA_UNIT_BYTES 512u          /* ... in units of this */
#define CUDA_GRANULE_UNITS (CUDA_GRANULE_BYTES / CUDA_UNIT_BYTES)
#define CUDA_SPARE_BYTES (64ull << 20) /* freed blocks kept for the next allocation, at most */

/* Memory that the driver gave: one allocation's, or small ones' together. */
struct cuda_block {
    LIST_ENTRY(cuda_block) link;
    cuda_pointer address;
    uint64_t bytes;       /* whole granules */
    uint32_t small_count; /* allocations in it, where it is shared */
    uint64_t *units;      /* bitmap of those in use; NULL: one allocation's */
    uint64_t cleared;     /* when the lane `clear` has come so far; CUDA_NEVER: not begun */
};

#define CUDA_NEVER UINT64_MAX

/* What ranges that overlap are copied through.  It is the context's own: counted where that is. */
#define CUDA_SCRATCH_BYTES (2ull << 20)

/* A copy takes two calls of the driver for each such piece, and one through pinned chunks six for
 * each of these (cuda_stage.c): so much of it is put into a stream at once. */
#define CUDA_SCRATCH_AT_ONCE_BYTES (32 * CUDA_SCRATCH_BYTES)
#define CUDA_STAGE_AT_ONCE_BYTES (16 * CUDA_STAGE_BYTES)

struct cuda_allocation {
    uint64_t address;
    uint64_t bytes; /* as asked for */
    struct cuda_block *block;
};

LIST_HEAD(cuda_blocks, cuda_block);

struct cuda_memory {
    const struct account_share *share; /* counts blocks in use */
    uint64_t spare_bytes;
    struct cuda_blocks shared, whole, spare;
    struct cuda_allocation *allocations; /* by address; room for DEVICE_ALLOCATIONS_MAX */
    uint32_t count;
    uint64_t removals; /* of allocations so far: what lay in one may do so no more */
};

/* --- copies through pinned chunks (cuda_stage.c) --------------------------------------------- */

#define CUDA_STAGE_CHUNKS 2u
#define CUDA_STAGE_BYTES (4ull << 20) /* of a chunk */

struct cuda_stage {
    uint8_t *memory; /* pinned: the chunks; NULL: not needed yet */
    bool failed;     /* it cannot be pinned either */
    unsigned next;   /* chunk, modulo their number */
    cuda_stream stream;
    cuda_event begun, ready[CUDA_STAGE_CHUNKS], freed[CUDA_STAGE_CHUNKS];
};

/* --- the session on one device -------------------------------------------------------------- */

/* A built-in kernel's launch that was checked: the same again is as good, as long as no
 * allocation has gone. */
struct cuda_known_launch {
    const struct kernels_entry *entry; /* that a guest launched last; NULL: none yet */
    char name[DEVICE_NAME_BYTES];      /* its name */
    cuda_function function;            /* NULL: only `entry` and `name` are known */
    uint64_t parameters[KERNELS_PARAMETERS_MAX];
    uint64_t removals; /* of the session's memory, then */
    uint32_t grid[3];
};

struct cuda_session {
    struct cuda cuda;
    uint64_t thread_count; /* that the device can hold at once */
    cuda_device device;
    int multiprocessors;
    int shared_bytes_max;  /* a block may have, by asking for it */
    char description[256]; /* GPU_INFO */

    struct device_config config;
    cuda_context context; /* NULL: none now */
    uint64_t own_bytes;   /* that are counted for the context itself; 0: it is not counted */
    uint32_t *marks;      /* pinned: a word a lane */
    cuda_pointer marks_address;
    uint16_t words[CUDA_LANES_MAX]; /* free words of `marks` */
    uint32_t word_count;
    LIST_HEAD(, cuda_lane) lanes;
    struct cuda_lane *first; /* the default stream's */
    struct cuda_lane *clear; /* of memory, before its owner knows it */
    struct cuda_memory memory;
    cuda_pointer scratch;    /* 0: not needed yet; one for all streams ... */
    cuda_event scratch_free; /* ... its last use has ended; NULL: none yet */
    uint64_t stack_bytes;    /* of local memory, that each thread has with the context ... */
    uint64_t local_bytes; /* ... and what all of them have more, for the kernel that needs most */
    struct cuda_stage stage;
    uint32_t event_count, module_count;
    cuda_module builtin; /* NULL: not loaded */
    cuda_function *builtin_functions;
    struct cuda_known_launch known;
    enum vgpu_status lost; /* VGPU_OK: it works */
    bool slot_pinned;      /* by this context, for those of all devices */
    bool odd_is_told;      /* a code that nobody knows has been logged */
};

/* The lane that a stream of operations.c's is. */
static inline struct cuda_lane *cuda_lane_of(const struct cuda_session *session, void *stream)
{
    return stream ? stream : session->first;
}

/* One for each device that the process was started for, in their order. */
extern struct cuda_session cuda_sessions[VGPU_SESSION_DEVICES_MAX];
extern unsigned cuda_session_count;

/* Whose context the driver's calls go to. */
extern struct cuda_session *cuda_current;
void cuda_switch(struct cuda_session *session);

/* From here on they go to this one's, which may not be made yet.  Where that fails it is lost,
 * and they would go to another's: nothing of the driver's may be called for a session that is
 * lost. */
static inline struct cuda_session *cuda_use(void *state)
{
    if (cuda_current != state)
        cuda_switch(state);
    return state;
}

/* What a result means to a guest.  One that ends the context is noted (session->lost) and
 * logged once, with `what` was tried.  A code that nobody knows is `odd`, unless the context
 * does not work after it. */
enum vgpu_status cuda_status_or(struct cuda_session *session, cuda_result result, const char *what,
                                enum vgpu_status odd);

/* With VGPU_INVALID for a code that nobody knows. */
static inline enum vgpu_status cuda_status(struct cuda_session *session, cuda_result result,
                                           const char *what)
{
    return result == CUDA_SUCCESS ? VGPU_OK : cuda_status_or(session, result, what, VGPU_INVALID);
}

/* As cuda_status(), where any error but CUDA_SUCCESS leaves the session in no known state. */
enum vgpu_status cuda_demand(struct cuda_session *session, cuda_result result, const char *what);

/* The slot is known to the driver, in the context of one of the process' devices. */
bool cuda_slot_is_pinned(void);

/* Makes the context, which there must not be.  As all below, of the session in use. */
enum vgpu_status cuda_make(struct cuda_session *session);

/* Makes it if there is none: each operation asks, and nearly always there is one. */
static inline enum vgpu_status cuda_need(struct cuda_session *session)
{
    return session->context || session->lost != VGPU_OK ? session->lost : cuda_make(session);
}

/* Nothing of the guest's is in the context, if there is one. */
bool cuda_is_empty(const struct cuda_session *session);

/* Gives it up then; spare memory goes to the driver in any case. */
void cuda_rest(struct cuda_session *session);

/* Ends the context with all that is in it; then no session is in use. */
void cuda_drop(struct cuda_session *session);

/* --- cuda_lane.c ------------------------------------------------------------------------------ */

enum vgpu_status cuda_lane_open(struct cuda_session *session, unsigned flags, bool is_default,
                                struct cuda_lane **ret_lane);
void cuda_lane_close(struct cuda_session *session, struct cuda_lane *lane);

/* Of what was put into any lane last. */
extern uint64_t cuda_last_number;

/* That were queued, and nobody has asked for yet. */
extern uint32_t cuda_untold_calls;

/* The same as cuda_lane_ready(), where a mark is due, or the session is lost. */
enum vgpu_status cuda_lane_make_ready(struct cuda_session *session, struct cuda_lane *lane);

/* Call this before something is put into the lane, and cuda_lane_put() when it was.  Each launch
 * does both, and the mark for what it put: what nearly always happens stands here. */
static inline enum vgpu_status cuda_lane_ready(struct cuda_session *session, struct cuda_lane *lane)
{
    bool marks = lane->awaited > lane->marked && lane->awaited > lane->done;

    return marks || session->lost != VGPU_OK ? cuda_lane_make_ready(session, lane) : VGPU_OK;
}

/* Besides the one that cuda_lane_put() and the one that a mark stands for, so many calls of the
 * driver were queued. */
static inline void cuda_lane_count(uint32_t calls)
{
    cuda_untold_calls += calls;
}

static inline void cuda_lane_put(struct cuda_lane *lane)
{
    lane->last = ++cuda_last_number;
    lane->kernel_last = false;
    cuda_lane_count(1);
}

/* How many all were since this was asked last, on all devices. */
static inline uint32_t cuda_lanes_take_calls(void)
{
    uint32_t calls = cuda_untold_calls;

    cuda_untold_calls = 0;
    return calls;
}

/* As cuda_lane_mark(), of whatever is put; without a lane: of all. */
uint64_t cuda_lane_await(struct cuda_session *session, struct cuda_lane *lane,
                         enum device_interest interest);

/* See struct device_ops. */
static inline uint64_t cuda_lane_mark(struct cuda_session *session, struct cuda_lane *lane,
                                      enum device_interest interest)
{
    if (!lane || interest != DEVICE_QUIET || lane->lazy_count + 1 >= lane->lazy_most)
        return cuda_lane_await(session, lane, interest);
    lane->lazy_count++;
    return lane->last;
}

enum vgpu_status cuda_lane_reached(struct cuda_session *session, struct cuda_lane *lane,
                                   uint64_t number);
enum vgpu_status cuda_lanes_reached(struct cuda_session *session, uint64_t number);

/* Of whatever session: it is used where there is something to ask for. */
enum vgpu_status cuda_lanes_drained(struct cuda_session *session);

/* --- cuda_memory.c ------------------------------------------------------------------------------
 */

int cuda_memory_open(struct cuda_memory *memory, const struct account_share *share,
                     struct vgpu_error *error);
void cuda_memory_close(struct cuda_memory *memory);

/* *ret_block: where it lies.  One whose `cleared` is CUDA_NEVER must be cleared, or the
 * allocation be freed again. */
enum vgpu_status cuda_memory_alloc(struct cuda_session *session, uint64_t bytes,
                                   uint64_t *ret_address, struct cuda_block **ret_block);
enum vgpu_status cuda_memory_free(struct cuda_session *session, uint64_t address);

/* Begins to clear a block, in the lane `clear`: DEVICE_BEGUN. */
enum vgpu_status cuda_memory_clear(struct cuda_session *session, struct cuda_block *block);
void cuda_memory_free_all(struct cuda_session *session);    /* to the driver ... */
void cuda_memory_free_spares(struct cuda_session *session); /* ... or only what is spare */

/* For what is no allocation: share_reserve(), where spare memory makes room.  VGPU_OK,
 * VGPU_OUT_OF_MEMORY, or the session is lost; then nothing is reserved. */
enum vgpu_status cuda_memory_reserve(struct cuda_session *session, uint64_t bytes);

/* The same for what is the context's own, where that counts: until the context is given up. */
enum vgpu_status cuda_memory_reserve_own(struct cuda_session *session, uint64_t bytes);

/* `bytes` at `address` are all in one allocation. */
bool cuda_memory_has(const struct cuda_memory *memory, uint64_t address, uint64_t bytes);

/* --- cuda_launch.c -------------------------------------------------------------------------------
 */

/* struct device_ops' launch. */
enum vgpu_status cuda_launch(void *state, void *stream, const struct device_launch *launch);
enum vgpu_status cuda_launch_builtin(struct cuda_session *session, struct cuda_lane *lane,
                                     const char *name, const uint64_t *parameters);
enum vgpu_status cuda_module_open(struct cuda_session *session, const void *image,
                                  uint64_t image_bytes, void **ret_module);
void cuda_module_close(struct cuda_session *session, void *argument);

/* --- cuda_stage.c --------------------------------------------------------------------------------
 */

/* Makes the chunks if there are none.  False: they cannot be had, in this context. */
bool cuda_stage_need(struct cuda_session *session);
void cuda_stage_end(struct cuda_session *session);

/* As struct device_ops' copy_in and copy_out, of 1 byte or more that lie in the slot and in an
 * allocation; cuda_lane_ready() was called. */
enum vgpu_status cuda_stage_in(struct cuda_session *session, struct cuda_lane *lane,
                               uint64_t target, const void *source, uint64_t bytes);
enum vgpu_status cuda_stage_out(struct cuda_session *session, struct cuda_lane *lane, void *target,
                                uint64_t source, uint64_t bytes);

extern const struct device_ops cuda_device_ops;

#endif /* VGPU_EXEC_CUDA_PRIVATE_H */

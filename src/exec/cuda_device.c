/* SPDX-License-Identifier: Apache-2.0 */
/* The device of a window session on the cuda backend: see cuda_private.h. */
#include "exec/cuda_private.h"

#include <stdlib.h>

static int open_session(const struct device_config *config, void **ret_state,
                        struct device_place *ret_place, struct vgpu_error *error)
{
    struct cuda_session *session = &cuda_sessions[config->index];

    session->config = *config;
    if (cuda_memory_open(&session->memory, config->share, error) < 0)
        return -1;
    *ret_state = session;
    *ret_place =
        (struct device_place){.features = VGPU_FEATURE_MODULES | VGPU_FEATURE_MODULE_PARTS};
    return 0;
}

static void close_session(void *state)
{
    struct cuda_session *session = cuda_use(state);

    cuda_drop(session);
    cuda_memory_close(&session->memory);
}

static void free_all(void *state)
{
    cuda_memory_free_all(cuda_use(state));
}

/* --- memory ---------------------------------------------------------------------------- */

static enum vgpu_status alloc(void *state, uint64_t bytes, uint64_t *ret_address,
                              struct device_wait *ret_wait)
{
    struct cuda_session *session = cuda_use(state);
    enum vgpu_status status = cuda_need(session);
    struct cuda_block *block;

    if (status == VGPU_OK)
        status = cuda_memory_alloc(session, bytes, ret_address, &block);
    if (status != VGPU_OK)
        return status;
    if (block->cleared == CUDA_NEVER)
        status = cuda_memory_clear(session, block);
    else /* one that it shares may still be at it */
        status = cuda_lane_reached(session, session->clear, block->cleared);
    if (status == DEVICE_BEGUN || status == VGPU_NOT_READY) {
        *ret_wait = (struct device_wait){
            .stream = session->clear, .number = block->cleared, .calls = cuda_lanes_take_calls()};
        return DEVICE_BEGUN;
    }
    if (status != VGPU_OK) {
        cuda_memory_free(session, *ret_address);
        *ret_address = 0;
    }
    return status;
}

static enum vgpu_status free_one(void *state, uint64_t address)
{
    struct cuda_session *session = cuda_use(state);

    return session->lost == VGPU_OK ? cuda_memory_free(session, address) : session->lost;
}

/* --- into a lane ----------------------------------------------------------------------------- */

static enum vgpu_status put(struct cuda_session *session, struct cuda_lane *lane,
                            cuda_result result, const char *what)
{
    enum vgpu_status status = cuda_status(session, result, what);

    if (status == VGPU_OK)
        cuda_lane_put(lane);
    return status;
}

static enum vgpu_status set(void *state, void *stream, uint64_t address, uint32_t value,
                            uint32_t width, uint64_t count)
{
    struct cuda_session *session = cuda_use(state);
    struct cuda_lane *lane = cuda_lane_of(session, stream);
    enum vgpu_status status;
    cuda_result result;

    if (!cuda_memory_has(&session->memory, address, count * width))
        return VGPU_BAD_ADDRESS;
    status = cuda_lane_ready(session, lane);
    if (status != VGPU_OK || count == 0)
        return status;
    if (width == 1)
        result = session->cuda.memset_d8_async(address, (uint8_t)value, count, lane->stream);
    else if (width == 2)
        result = session->cuda.memset_d16_async(address, (uint16_t)value, count, lane->stream);
    else
        result = session->cuda.memset_d32_async(address, value, count, lane->stream);
    return put(session, lane, result, "set device memory");
}

static bool must_stage(struct cuda_session *session, uint64_t bytes)
{
    return bytes > 0 && session->config.slot && !cuda_slot_is_pinned() && cuda_stage_need(session);
}

static enum vgpu_status copy_in(void *state, void *stream, uint64_t target, const void *source,
                                uint64_t bytes)
{
    struct cuda_session *session = cuda_use(state);
    struct cuda_lane *lane = cuda_lane_of(session, stream);
    enum vgpu_status status;

    if (!cuda_memory_has(&session->memory, target, bytes))
        return VGPU_BAD_ADDRESS;
    status = cuda_lane_ready(session, lane);
    if (status != VGPU_OK)
        return status;
    if (must_stage(session, bytes))
        return cuda_stage_in(session, lane, target, source, bytes);
    return put(session, lane, session->cuda.memcpy_htod_async(target, source, bytes, lane->stream),
               "copy to the device");
}

static enum vgpu_status copy_out(void *state, void *stream, void *target, uint64_t source,
                                 uint64_t bytes)
{
    struct cuda_session *session = cuda_use(state);
    struct cuda_lane *lane = cuda_lane_of(session, stream);
    enum vgpu_status status;

    if (!cuda_memory_has(&session->memory, source, bytes))
        return VGPU_BAD_ADDRESS;
    status = cuda_lane_ready(session, lane);
    if (status != VGPU_OK)
        return status;
    if (must_stage(session, bytes))
        return cuda_stage_out(session, lane, target, source, bytes);
    return put(session, lane, session->cuda.memcpy_dtoh_async(target, source, bytes, lane->stream),
               "copy from the device");
}

/* The memory is the driver's again, or never was ours. */
static void scratch_release(struct cuda_session *session)
{
    session->scratch = 0;
    if (session->own_bytes == 0)
        return;
    session->own_bytes -= CUDA_SCRATCH_BYTES;
    share_release(session->memory.share, CUDA_SCRATCH_BYTES);
}

static enum vgpu_status scratch_take(struct cuda_session *session)
{
    enum vgpu_status status = VGPU_OK;

    if (session->own_bytes > 0)
        status = cuda_memory_reserve_own(session, CUDA_SCRATCH_BYTES);
    if (status != VGPU_OK)
        return status;
    status = cuda_status(session, session->cuda.mem_alloc(&session->scratch, CUDA_SCRATCH_BYTES),
                         "copy on the device");
    if (status != VGPU_OK)
        scratch_release(session);
    return status;
}

/* Kernels can read all memory of the context, so it is clear before anything uses it. */
static enum vgpu_status scratch_make(struct cuda_session *session, struct cuda_lane *lane)
{
    const struct cuda *cuda = &session->cuda;
    enum vgpu_status status = VGPU_OK;

    if (!session->scratch_free)
        status = cuda_status(session,
                             cuda->event_create(&session->scratch_free, CUDA_EVENT_DISABLE_TIMING),
                             "create an event");
    if (status == VGPU_OK)
        status = scratch_take(session);
    if (status != VGPU_OK)
        return status;
    status = cuda_status(
        session, cuda->memset_d8_async(session->scratch, 0, CUDA_SCRATCH_BYTES, lane->stream),
        "clear device memory");
    if (status != VGPU_OK && session->lost == VGPU_OK) {
        cuda_demand(session, cuda->mem_free(session->scratch), "free device memory");
        scratch_release(session);
    }
    return status;
}

/* What comes into the lane may use it: behind its last use, in whichever lane that was. */
static enum vgpu_status scratch_need(struct cuda_session *session, struct cuda_lane *lane)
{
    if (!session->scratch)
        return scratch_make(session, lane);
    return cuda_status(session,
                       session->cuda.stream_wait_event(lane->stream, session->scratch_free, 0),
                       "wait for an event");
}

/* Up to CUDA_SCRATCH_BYTES. */
static enum vgpu_status copy_piece(struct cuda_session *session, struct cuda_lane *lane,
                                   uint64_t target, uint64_t source, uint64_t bytes)
{
    const struct cuda *cuda = &session->cuda;
    cuda_result result = cuda->memcpy_dtod_async(session->scratch, source, bytes, lane->stream);

    cuda_lane_count(2);
    if (result == CUDA_SUCCESS)
        result = cuda->memcpy_dtod_async(target, session->scratch, bytes, lane->stream);
    return cuda_status(session, result, "copy on the device");
}

/* Ranges that overlap go through scratch memory: the driver's copy does not say what comes
 * of them.  Piece by piece, from the end where no piece is written over before it is read. */
static enum vgpu_status copy_overlapping(struct cuda_session *session, struct cuda_lane *lane,
                                         uint64_t target, uint64_t source, uint64_t bytes)
{
    enum vgpu_status status = scratch_need(session, lane), noted;

    if (status != VGPU_OK)
        return status;
    for (uint64_t done = 0, piece; status == VGPU_OK && done < bytes; done += piece) {
        uint64_t at;

        piece = bytes - done < CUDA_SCRATCH_BYTES ? bytes - done : CUDA_SCRATCH_BYTES;
        at = target < source ? done : bytes - done - piece;
        status = copy_piece(session, lane, target + at, source + at, piece);
    }
    if (session->lost != VGPU_OK)
        return session->lost;
    /* Also when not all of it was put into the lane: who comes next must wait for the rest. */
    noted = cuda_demand(session, session->cuda.event_record(session->scratch_free, lane->stream),
                        "record an event");
    cuda_lane_put(lane);
    return status == VGPU_OK ? noted : status;
}

static enum vgpu_status copy(void *state, void *stream, uint64_t target, uint64_t source,
                             uint64_t bytes)
{
    struct cuda_session *session = cuda_use(state);
    struct cuda_lane *lane = cuda_lane_of(session, stream);
    enum vgpu_status status;

    if (!cuda_memory_has(&session->memory, target, bytes) ||
        !cuda_memory_has(&session->memory, source, bytes))
        return VGPU_BAD_ADDRESS;
    status = cuda_lane_ready(session, lane);
    if (status != VGPU_OK || target == source)
        return status;
    if (target < source + bytes && source < target + bytes)
        return copy_overlapping(session, lane, target, source, bytes);
    return put(session, lane, session->cuda.memcpy_dtod_async(target, source, bytes, lane->stream),
               "copy on the device");
}

static uint64_t copy_most(void *state, uint16_t opcode, uint64_t target, uint64_t source,
                          uint64_t bytes)
{
    struct cuda_session *session = state;

    if (opcode == VGPU_OP_COPY)
        return target < source + bytes && source < target + bytes ? CUDA_SCRATCH_AT_ONCE_BYTES
                                                                  : bytes;
    if (bytes <= CUDA_STAGE_AT_ONCE_BYTES || !session->context || session->lost != VGPU_OK)
        return bytes;
    return must_stage(cuda_use(session), bytes) ? CUDA_STAGE_AT_ONCE_BYTES : bytes;
}

static enum vgpu_status copy_across(void *state, void *stream, void *target_state, uint64_t target,
                                    void *source_state, uint64_t source, uint64_t bytes)
{
    struct cuda_session *session = cuda_use(state);
    const struct cuda_session *to = target_state, *from = source_state;
    struct cuda_lane *lane = cuda_lane_of(session, stream);
    enum vgpu_status status = cuda_lane_ready(session, lane);

    if (status != VGPU_OK)
        return status;
    return put(session, lane,
               session->cuda.memcpy_peer_async(target, to->context, source, from->context, bytes,
                                               lane->stream),
               "copy between devices");
}

static bool has(void *state, uint64_t address, uint64_t bytes)
{
    const struct cuda_session *session = state;

    return cuda_memory_has(&session->memory, address, bytes);
}

/* --- modules, queries ------------------------------------------------------------------------- */

static enum vgpu_status module_load(void *state, const void *image, uint64_t bytes,
                                    void **ret_module)
{
    return cuda_module_open(cuda_use(state), image, bytes, ret_module);
}

static void module_unload(void *state, void *module)
{
    cuda_module_close(cuda_use(state), module);
}

static enum vgpu_status query(void *state, uint32_t attribute, uint64_t *ret_value)
{
    const struct cuda_session *session = state;
    const struct account_share *share = session->config.share;

    switch (attribute) {
    case VGPU_QUERY_MEMORY_BYTES:
        *ret_value = share_limit_bytes(share);
        return VGPU_OK;
    case VGPU_QUERY_MEMORY_FREE_BYTES:
        /* what can be had in one piece */
        *ret_value = share_free_bytes(share) / CUDA_GRANULE_BYTES * CUDA_GRANULE_BYTES;
        return VGPU_OK;
    case VGPU_QUERY_MULTIPROCESSORS:
        *ret_value = (uint64_t)session->multiprocessors;
        return VGPU_OK;
    case VGPU_QUERY_BACKEND:
        *ret_value = VGPU_BACKEND_CUDA;
        return VGPU_OK;
    default:
        return VGPU_INVALID;
    }
}

/* --- streams and events ---------------------------------------------------------------------- */

static void mark(void *state, enum device_interest interest, struct device_wait *wait)
{
    struct cuda_session *session = cuda_use(state);
    struct cuda_lane *lane = wait->everything ? NULL : cuda_lane_of(session, wait->stream);

    wait->number = cuda_lane_mark(session, lane, interest);
    wait->done = lane ? &lane->done : NULL;
    wait->calls = cuda_lanes_take_calls();
}

static enum vgpu_status reached(void *state, const struct device_wait *wait)
{
    struct cuda_session *session = cuda_use(state);
    struct cuda_lane *lane = cuda_lane_of(session, wait->stream);

    if (wait->everything)
        return cuda_lanes_reached(session, wait->number);
    return lane ? cuda_lane_reached(session, lane, wait->number) : session->lost;
}

static enum vgpu_status drained(void *state)
{
    return cuda_lanes_drained(state);
}

static enum vgpu_status stream_open(void *state, void **ret_stream)
{
    enum vgpu_status status = cuda_need(cuda_use(state));
    struct cuda_lane *lane;

    if (status == VGPU_OK)
        status = cuda_lane_open(state, CUDA_STREAM_DEFAULT, false, &lane);
    if (status == VGPU_OK)
        *ret_stream = lane;
    return status;
}

static void stream_close(void *state, void *stream)
{
    cuda_lane_close(cuda_use(state), stream);
}

static enum vgpu_status event_open(void *state, void **ret_event)
{
    struct cuda_session *session = cuda_use(state);
    enum vgpu_status status = cuda_need(session);
    cuda_event event;

    if (status == VGPU_OK)
        status = cuda_status(session, session->cuda.event_create(&event, CUDA_EVENT_DEFAULT),
                             "create an event");
    if (status != VGPU_OK)
        return status;
    session->event_count++;
    *ret_event = event;
    return VGPU_OK;
}

static void event_close(void *state, void *event)
{
    struct cuda_session *session = cuda_use(state);

    session->event_count--;
    if (session->lost == VGPU_OK)
        cuda_status(session, session->cuda.event_destroy(event), "destroy an event");
}

static enum vgpu_status event_record(void *state, void *stream, void *event)
{
    struct cuda_session *session = cuda_use(state);
    struct cuda_lane *lane = cuda_lane_of(session, stream);
    enum vgpu_status status = cuda_lane_ready(session, lane);

    if (status != VGPU_OK)
        return status;
    return put(session, lane, session->cuda.event_record(event, lane->stream), "record an event");
}

/* The event may be another device's, and this the first that comes to this one. */
static enum vgpu_status event_wait(void *state, void *stream, void *event)
{
    struct cuda_session *session = cuda_use(state);
    enum vgpu_status status = cuda_need(session);
    struct cuda_lane *lane = cuda_lane_of(session, stream);

    if (status == VGPU_OK)
        status = cuda_lane_ready(session, lane);
    if (status != VGPU_OK)
        return status;
    return put(session, lane, session->cuda.stream_wait_event(lane->stream, event, 0),
               "wait for an event");
}

/* The driver counts in milliseconds, half a microsecond exactly. */
static enum vgpu_status event_elapsed(void *state, void *from, void *to, uint64_t *ret_ns)
{
    struct cuda_session *session = cuda_use(state);
    float ms = 0;
    enum vgpu_status status = session->lost;

    if (status == VGPU_OK)
        status =
            cuda_status(session, session->cuda.event_elapsed_time(&ms, from, to), "compare events");
    if (status == VGPU_OK)
        *ret_ns = ms > 0 ? (uint64_t)((double)ms * (double)NS_PER_MS) : 0;
    return status;
}

static void rest(void *state)
{
    cuda_rest(cuda_use(state));
}

static bool is_empty(const void *state)
{
    return cuda_is_empty(state);
}

const struct device_ops cuda_device_ops = {
    .open = open_session,
    .close = close_session,
    .free_all = free_all,
    .alloc = alloc,
    .free = free_one,
    .set = set,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .copy = copy,
    .copy_most = copy_most,
    .copy_across = copy_across,
    .has = has,
    .launch = cuda_launch,
    .query = query,
    .module_load = module_load,
    .module_unload = module_unload,
    .mark = mark,
    .reached = reached,
    .drained = drained,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .event_open = event_open,
    .event_close = event_close,
    .event_record = event_record,
    .event_wait = event_wait,
    .event_elapsed = event_elapsed,
    .rest = rest,
    .is_empty = is_empty,
};

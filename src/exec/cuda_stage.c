/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies from and to a slot that could not be pinned: through chunks of pinned memory, piece
 * by piece.  The driver calls functions of the host's when a stream comes to them, so a copy is
 * put into streams at once, up to CUDA_STAGE_AT_ONCE_BYTES, and nothing waits for it here:
 *
 *   in     stage   (begun) ─ freed? ─ fill the chunk ─ ready!
 *          lane    begun!                      ready? ─ chunk to device ─ freed!
 *
 *   out    lane    freed? ─ device to chunk ─ ready!                (the last freed?)
 *          stage                       ready? ─ empty the chunk ─ freed!
 *
 * While one chunk moves by DMA, the next is filled or emptied.  The chunks and the stream
 * `stage` are one for all lanes; each wait is for what was put somewhere before, so a copy may
 * wait for another lane's.  A guest whose kernel waits for what a copy of another lane brings
 * can wait for itself then, which a pinned slot spares it: the time limit ends that.
 *
 * The driver has one thread for such functions, which is what bounds the rate: on an H200 this
 * moves 9 to 11 GB/s in and 11 to 15 out in pieces of 4 MiB and more, where the driver's own
 * staging moves 8 to 14 and 14 to 16, but makes its caller wait.
 */
#include "exec/cuda_private.h"

#include <emmintrin.h>
#include <stdlib.h>
#include <string.h>

#define CALLS_A_PIECE 6u

/* What the host has to do between the slot and a chunk. */
struct piece {
    uint8_t *target;
    const uint8_t *source;
    size_t bytes;
    bool streamed;
};

/* --- functions of the host's ------------------------------------------------------------------ */

/* Past the processor's cache: that saves reading what is overwritten. */
static void copy_streamed(uint8_t *target, const uint8_t *source, size_t bytes)
{
    size_t at = -(uintptr_t)target % sizeof(__m128i);

    memcpy(target, source, at);
    for (; at + sizeof(__m128i) <= bytes; at += sizeof(__m128i))
        _mm_stream_si128((__m128i *)(void *)(target + at),
                         _mm_loadu_si128((const __m128i *)(const void *)(source + at)));
    memcpy(target + at, source + at, bytes - at);
    _mm_sfence(); /* what is streamed is ordered by nothing else */
}

/* The driver's thread runs it; nothing of CUDA may be called here. */
static void move_piece(void *argument)
{
    struct piece *piece = argument;

    if (piece->streamed)
        copy_streamed(piece->target, piece->source, piece->bytes);
    else
        memcpy(piece->target, piece->source, piece->bytes);
    free(piece);
}

static cuda_result put_move(const struct cuda *cuda, cuda_stream stream, uint8_t *target,
                            const uint8_t *source, size_t bytes, bool streamed)
{
    struct piece *piece = malloc(sizeof(*piece));
    cuda_result result;

    if (!piece)
        return CUDA_OUT_OF_MEMORY;
    *piece = (struct piece){target, source, bytes, streamed};
    result = cuda->launch_host_func(stream, move_piece, piece);
    if (result != CUDA_SUCCESS)
        free(piece);
    return result;
}

/* --- the chunks ------------------------------------------------------------------------------ */

static cuda_result make_events(struct cuda_session *session)
{
    const struct cuda *cuda = &session->cuda;
    struct cuda_stage *stage = &session->stage;
    cuda_result result = cuda->event_create(&stage->begun, CUDA_EVENT_DISABLE_TIMING);

    for (unsigned i = 0; result == CUDA_SUCCESS && i < CUDA_STAGE_CHUNKS; i++) {
        result = cuda->event_create(&stage->ready[i], CUDA_EVENT_DISABLE_TIMING);
        if (result == CUDA_SUCCESS)
            result = cuda->event_create(&stage->freed[i], CUDA_EVENT_DISABLE_TIMING);
    }
    return result;
}

static void end_event(struct cuda_session *session, cuda_event event)
{
    if (event)
        session->cuda.event_destroy(event);
}

void cuda_stage_end(struct cuda_session *session)
{
    struct cuda_stage *stage = &session->stage;

    end_event(session, stage->begun);
    for (unsigned i = 0; i < CUDA_STAGE_CHUNKS; i++) {
        end_event(session, stage->ready[i]);
        end_event(session, stage->freed[i]);
    }
    if (stage->stream)
        session->cuda.stream_destroy(stage->stream);
    if (stage->memory)
        session->cuda.mem_free_host(stage->memory);
    *stage = (struct cuda_stage){.memory = NULL};
}

/* Whether functions of the host's run here is better known before a copy needs them. */
static cuda_result try_function(struct cuda_session *session)
{
    const struct cuda *cuda = &session->cuda;
    struct cuda_stage *stage = &session->stage;
    cuda_result result = put_move(cuda, stage->stream, stage->memory, stage->memory + 1, 1, false);

    return result == CUDA_SUCCESS ? cuda->stream_synchronize(stage->stream) : result;
}

static cuda_result make(struct cuda_session *session)
{
    const struct cuda *cuda = &session->cuda;
    struct cuda_stage *stage = &session->stage;
    void *memory;
    cuda_result result = cuda->mem_host_alloc(&memory, CUDA_STAGE_CHUNKS * CUDA_STAGE_BYTES,
                                              CUDA_HOST_ALLOC_PORTABLE);

    if (result != CUDA_SUCCESS)
        return result;
    stage->memory = memory;
    result = cuda->stream_create(&stage->stream, CUDA_STREAM_NON_BLOCKING);
    if (result == CUDA_SUCCESS)
        result = make_events(session);
    return result == CUDA_SUCCESS ? try_function(session) : result;
}

bool cuda_stage_need(struct cuda_session *session)
{
    struct cuda_stage *stage = &session->stage;
    cuda_result result;

    if (stage->memory || stage->failed)
        return !stage->failed;
    result = make(session);
    if (result == CUDA_SUCCESS)
        return true;
    log_warning("worker: cannot pin memory for copies: %s (%d); the driver's own is used",
                cuda_error_name(&session->cuda, result), result);
    cuda_stage_end(session);
    stage->failed = true;
    return false;
}

/* --- steps ------------------------------------------------------------------------------------ */

/* What comes into `to` is behind what is in `from` now. */
static cuda_result order(const struct cuda *cuda, cuda_stream from, cuda_event event,
                         cuda_stream to)
{
    cuda_result result = cuda->event_record(event, from);

    return result == CUDA_SUCCESS ? cuda->stream_wait_event(to, event, 0) : result;
}

static uint8_t *chunk_at(const struct cuda_stage *stage, unsigned chunk)
{
    return stage->memory + (size_t)chunk * CUDA_STAGE_BYTES;
}

static cuda_result piece_in(struct cuda_session *session, cuda_stream lane, unsigned chunk,
                            cuda_pointer target, const uint8_t *source, size_t bytes)
{
    const struct cuda *cuda = &session->cuda;
    const struct cuda_stage *stage = &session->stage;
    cuda_result result = cuda->stream_wait_event(stage->stream, stage->freed[chunk], 0);

    if (result == CUDA_SUCCESS)
        result = put_move(cuda, stage->stream, chunk_at(stage, chunk), source, bytes, false);
    if (result == CUDA_SUCCESS)
        result = order(cuda, stage->stream, stage->ready[chunk], lane);
    if (result == CUDA_SUCCESS)
        result = cuda->memcpy_htod_async(target, chunk_at(stage, chunk), bytes, lane);
    return result == CUDA_SUCCESS ? cuda->event_record(stage->freed[chunk], lane) : result;
}

static cuda_result piece_out(struct cuda_session *session, cuda_stream lane, unsigned chunk,
                             uint8_t *target, cuda_pointer source, size_t bytes)
{
    const struct cuda *cuda = &session->cuda;
    const struct cuda_stage *stage = &session->stage;
    /* So much is not in the cache any more when the guest comes to it.  A chunk that is filled
     * is: the device reads it from there. */
    bool streamed = bytes == CUDA_STAGE_BYTES;
    cuda_result result = cuda->stream_wait_event(lane, stage->freed[chunk], 0);

    if (result == CUDA_SUCCESS)
        result = cuda->memcpy_dtoh_async(chunk_at(stage, chunk), source, bytes, lane);
    if (result == CUDA_SUCCESS)
        result = order(cuda, lane, stage->ready[chunk], stage->stream);
    if (result == CUDA_SUCCESS)
        result = put_move(cuda, stage->stream, target, chunk_at(stage, chunk), bytes, streamed);
    return result == CUDA_SUCCESS ? cuda->event_record(stage->freed[chunk], stage->stream) : result;
}

/* --- copies ----------------------------------------------------------------------------------- */

static unsigned next_chunk(struct cuda_stage *stage)
{
    cuda_lane_count(CALLS_A_PIECE);
    return stage->next++ % CUDA_STAGE_CHUNKS;
}

static size_t piece_bytes(uint64_t left)
{
    return left < CUDA_STAGE_BYTES ? left : CUDA_STAGE_BYTES;
}

/* Also when not all of it was put into the lane: who comes next is behind the rest. */
static enum vgpu_status finish(struct cuda_session *session, struct cuda_lane *lane,
                               cuda_result result, const char *what)
{
    enum vgpu_status status = cuda_status(session, result, what);

    if (session->lost == VGPU_OK)
        cuda_lane_put(lane);
    return status;
}

enum vgpu_status cuda_stage_in(struct cuda_session *session, struct cuda_lane *lane,
                               uint64_t target, const void *source, uint64_t bytes)
{
    struct cuda_stage *stage = &session->stage;
    cuda_result result = order(&session->cuda, lane->stream, stage->begun, stage->stream);

    for (uint64_t done = 0; result == CUDA_SUCCESS && done < bytes; done += CUDA_STAGE_BYTES)
        result = piece_in(session, lane->stream, next_chunk(stage), target + done,
                          (const uint8_t *)source + done, piece_bytes(bytes - done));
    return finish(session, lane, result, "copy to the device");
}

enum vgpu_status cuda_stage_out(struct cuda_session *session, struct cuda_lane *lane, void *target,
                                uint64_t source, uint64_t bytes)
{
    struct cuda_stage *stage = &session->stage;
    cuda_result result = CUDA_SUCCESS, last;
    unsigned chunk = 0;

    for (uint64_t done = 0; result == CUDA_SUCCESS && done < bytes; done += CUDA_STAGE_BYTES) {
        chunk = next_chunk(stage);
        result = piece_out(session, lane->stream, chunk, (uint8_t *)target + done, source + done,
                           piece_bytes(bytes - done));
    }
    last = session->cuda.stream_wait_event(lane->stream, stage->freed[chunk], 0);
    return finish(session, lane, result == CUDA_SUCCESS ? last : result, "copy from the device");
}

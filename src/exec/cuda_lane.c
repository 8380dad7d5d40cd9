/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, and how far each has come: see struct cuda_lane. */
#include "exec/cuda_private.h"

#include <stdlib.h>

/* Of what nobody waits for by itself: a mark behind so many.  As one mark's work is one
 * operation to the mediator's deadline, there are few while they take long. */
#define LAZY_MAX 64u
#define LOOKS_A_QUERY 32u
#define SHORT_NS (2 * NS_PER_MS)
#define LONG_NS (20 * NS_PER_MS)

uint64_t cuda_last_number;
uint32_t cuda_untold_calls;

enum vgpu_status cuda_lane_open(struct cuda_session *session, unsigned flags, bool is_default,
                                struct cuda_lane **ret_lane)
{
    struct cuda_lane *lane = session->word_count > 0 ? calloc(1, sizeof(*lane)) : NULL;
    enum vgpu_status status = VGPU_OK;

    if (!lane)
        return VGPU_TOO_MANY;
    if (!is_default)
        status = cuda_status(session, session->cuda.stream_create(&lane->stream, flags),
                             "create a stream");
    if (status != VGPU_OK) {
        free(lane);
        return status;
    }
    lane->word = session->words[--session->word_count];
    lane->last = lane->awaited = lane->marked = lane->done = lane->verified = cuda_last_number;
    lane->lazy_most = 1;
    __atomic_store_n(&session->marks[lane->word], (uint32_t)cuda_last_number, __ATOMIC_RELAXED);
    LIST_INSERT_HEAD(&session->lanes, lane, link);
    *ret_lane = lane;
    return VGPU_OK;
}

void cuda_lane_close(struct cuda_session *session, struct cuda_lane *lane)
{
    if (!lane)
        return;
    /* A stream that is destroyed goes on with what is in it, and nobody can ask for that any
     * more: where only a mark says that it is empty it is waited for. */
    if (lane->stream && session->lost == VGPU_OK && lane->verified < lane->last)
        cuda_demand(session, session->cuda.stream_synchronize(lane->stream),
                    "run what was put into a stream");
    if (lane->stream && session->lost == VGPU_OK)
        cuda_status(session, session->cuda.stream_destroy(lane->stream), "destroy a stream");
    session->words[session->word_count++] = (uint16_t)lane->word;
    LIST_REMOVE(lane, link);
    free(lane);
}

/* --- marks -------------------------------------------------------------------------------- */

enum vgpu_status cuda_lane_make_ready(struct cuda_session *session, struct cuda_lane *lane)
{
    cuda_result result;

    if (session->lost != VGPU_OK)
        return session->lost;
    if (lane->awaited <= lane->marked || lane->awaited <= lane->done)
        return VGPU_OK;
    result = session->cuda.stream_write_value32(
        lane->stream, session->marks_address + lane->word * sizeof(uint32_t),
        (uint32_t)cuda_last_number, CUDA_STREAM_WRITE_VALUE_DEFAULT);
    if (result != CUDA_SUCCESS)
        return cuda_status(session, result, "mark a stream");
    cuda_lane_count(1);
    lane->marked = cuda_last_number;
    lane->lazy_count = lane->looks = 0;
    if (lane->mark_begin_ns == 0)
        lane->mark_begin_ns = clock_monotonic_ns();
    return VGPU_OK;
}

/* Marks come closer together while work takes long. */
static void learn(struct cuda_lane *lane)
{
    uint64_t took_ns;

    if (lane->mark_begin_ns == 0 || lane->done < lane->marked)
        return;
    took_ns = clock_monotonic_ns() - lane->mark_begin_ns;
    lane->mark_begin_ns = 0;
    if (took_ns > LONG_NS)
        lane->lazy_most = 1;
    else if (took_ns < SHORT_NS && lane->lazy_most < LAZY_MAX)
        lane->lazy_most *= 2;
}

static void read_mark(struct cuda_session *session, struct cuda_lane *lane)
{
    uint32_t word = __atomic_load_n(&session->marks[lane->word], __ATOMIC_ACQUIRE);
    uint32_t ahead = word - (uint32_t)lane->done;

    /* A kernel may write anything there: nothing beyond what was put is believed. */
    if (ahead != 0 && lane->done + ahead <= lane->marked) {
        lane->done += ahead;
        learn(lane);
    }
}

/* True when the stream is empty, by the driver's own word. */
static enum vgpu_status query(struct cuda_session *session, struct cuda_lane *lane)
{
    cuda_result result = session->cuda.stream_query(lane->stream);

    if (result == CUDA_NOT_READY)
        return VGPU_NOT_READY;
    if (result != CUDA_SUCCESS)
        return cuda_demand(session, result, "run what was put into a stream");
    lane->done = lane->verified = cuda_last_number;
    learn(lane);
    return VGPU_OK;
}

/* --- waiting ------------------------------------------------------------------------------ */

static void await(struct cuda_session *session, struct cuda_lane *lane,
                  enum device_interest interest)
{
    if (interest == DEVICE_QUIET && ++lane->lazy_count < lane->lazy_most)
        return;
    lane->awaited = lane->last;
    if (interest == DEVICE_SYNC && lane->kernel_last)
        (void)cuda_lane_ready(session, lane); /* a loss is seen when it is waited for */
}

uint64_t cuda_lane_await(struct cuda_session *session, struct cuda_lane *lane,
                         enum device_interest interest)
{
    struct cuda_lane *each;

    if (lane) {
        await(session, lane, interest);
        return lane->last;
    }
    LIST_FOREACH (each, &session->lanes, link)
        await(session, each, interest);
    return cuda_last_number;
}

enum vgpu_status cuda_lane_reached(struct cuda_session *session, struct cuda_lane *lane,
                                   uint64_t number)
{
    if (session->lost != VGPU_OK)
        return session->lost;
    if (lane->done >= number || lane->done >= lane->last)
        return VGPU_OK;
    read_mark(session, lane);
    if (lane->done >= number)
        return VGPU_OK;
    /* A fault puts no mark: the driver is asked now and then. */
    if (number <= lane->marked && ++lane->looks % LOOKS_A_QUERY != 0)
        return VGPU_NOT_READY;
    return query(session, lane);
}

enum vgpu_status cuda_lanes_reached(struct cuda_session *session, uint64_t number)
{
    struct cuda_lane *lane;
    enum vgpu_status status = session->lost;

    LIST_FOREACH (lane, &session->lanes, link) {
        if (status != VGPU_OK)
            break;
        status = cuda_lane_reached(session, lane, number);
    }
    return status;
}

enum vgpu_status cuda_lanes_drained(struct cuda_session *session)
{
    struct cuda_lane *lane;
    enum vgpu_status status = session->lost;

    LIST_FOREACH (lane, &session->lanes, link) {
        if (status != VGPU_OK)
            break;
        if (lane->verified < lane->last)
            status = query(cuda_use(session), lane);
    }
    return status;
}

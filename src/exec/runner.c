/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A slot at work.
 *
 *   ring ──▶ taken[], verdicts[] ──▶ device_run() ──▶ completion ──▶ publish
 *            by sequence:  ... answered | next ... | sq_head ... not taken
 *
 * On a backend with streams of its own an operation may only begin here:
 *
 *   device_run() ─ begun ─▶ flights ─ device_poll(): over ─▶ device_finish() ─▶ completion
 *
 * They end in any order.  Time is charged while any is in flight, by the clock.  What only puts
 * a mark or a wait into its stream is answered at once, and stays in flight until it is reached:
 * so what a driver has queued is bounded, and no call of it waits.  A copy that is too long to be
 * queued as a whole goes on when a piece of it has ended; meanwhile nothing else begins.
 *
 * All that may wait is taken before something that lasts is begun, so that a
 * VGPU_OP_CANCEL reaches what has not begun; the rest runs in the order of the ring.
 *
 * A ping costs nanoseconds, a look at the clock or at who sleeps as much again.  So
 * operations that take no time share one look at the clock a batch and one
 * publication in PUBLISH_EVERY; before anything that may last, and when nothing is
 * left, all that is done is published.
 */
#include "exec/runner.h"

#include "exec/durations.h"
#include "exec/private.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MASK (VGPU_RING_ENTRIES - 1)
#define BATCH 256u
#define PUBLISH_EVERY 32u
/* What is in flight in a stream may last about so long, whatever the grant says: who is
 * given the device next waits for it.  Two are always let, so that the device need not
 * wait for us. */
#define FLIGHT_TIME_NS (2 * NS_PER_MS)
#define FLIGHTS_LET 2u
#define PACE_FIRST_NS (250 * NS_PER_US)
#define PACES_A_DEVICE (RUNNER_PACES / VGPU_SESSION_DEVICES_MAX)

/* While somebody waits for a context, one that holds nothing is kept for so long at most. */
#define REST_PATIENCE_NS NS_PER_S

/* The device is asked whether all has ended when that has seemed so for so long, and again while
 * it has not. */
#define VERIFY_FIRST_NS (20 * NS_PER_US)
#define VERIFY_AGAIN_NS (2 * NS_PER_MS)

#define TAKE_EVERY 16u   /* on such a device */
#define STREAMS_ASKED 8u /* in one look at what is in flight */

static inline bool is_lost(const struct runner *runner)
{
    return runner->lost != VGPU_OK;
}

/* --- taking ---------------------------------------------------------------------------- */

/* Ends what has not begun.  Operations with one cookie are all meant; a cancel and
 * a reset cannot be cancelled. */
static uint64_t cancel(struct runner *runner, uint64_t cookie, uint32_t before)
{
    uint64_t count = 0;

    for (uint32_t sequence = runner->next; sequence != before; sequence++) {
        const struct vgpu_descriptor *operation = &runner->taken[sequence & MASK];
        enum vgpu_status *verdict = &runner->verdicts[sequence & MASK];

        if (operation->cookie == cookie && *verdict == VGPU_OK &&
            operation->opcode != VGPU_OP_CANCEL && operation->opcode != VGPU_OP_RESET) {
            *verdict = VGPU_CANCELLED;
            count++;
        }
    }
    return count;
}

/* They were written on another core, which still has them: they come here while what was taken
 * before is run. */
static inline void prefetch_arguments(const struct runner *runner,
                                      const struct vgpu_descriptor *operation)
{
    const uint8_t *slot = runner->device.slot;

    __builtin_prefetch(slot + operation->launch.parameters_offset);
    __builtin_prefetch(slot + operation->launch.name_offset);
}

/* Checks what was just taken.  A cancel comes after what it cancels, so it acts here
 * and not when its turn comes; its result waits where its argument was. */
static void check(struct runner *runner, uint32_t first)
{
    for (uint32_t sequence = first; sequence != runner->ring.sq_head; sequence++) {
        struct vgpu_descriptor *operation = &runner->taken[sequence & MASK];
        enum vgpu_status verdict =
            protocol_check_descriptor(operation, runner->slot_bytes, runner->device.count);

        runner->verdicts[sequence & MASK] = verdict;
        if (operation->opcode == VGPU_OP_LAUNCH && verdict == VGPU_OK)
            prefetch_arguments(runner, operation);
        if (operation->opcode == VGPU_OP_CANCEL && verdict == VGPU_OK)
            operation->words[0] = cancel(runner, operation->cancel.cookie, sequence);
    }
}

static void tell_queued(const struct runner *runner)
{
    budget_tell_queued(runner->share, runner->ring.sq_head - runner->next);
}

/* Takes up to `most`; false when there are none, or the VM may have no more of them now. */
static bool take(struct runner *runner, uint32_t most)
{
    uint32_t first = runner->ring.sq_head, depth = ring_depth(&runner->ring);

    if (depth < most)
        most = depth;
    if (most > 0 && !runner->grant.refuse)
        most = budget_take(runner->share, most);
    if (most == 0)
        return false;
    ring_fetch(&runner->ring, runner->taken, most);
    check(runner, first);
    tell_queued(runner);
    return true;
}

uint64_t runner_throttled_ns(struct runner *runner)
{
    uint64_t wait_ns;

    if (runner->grant.refuse || runner_depth(runner) == 0)
        return 0;
    wait_ns = budget_device_wait_ns(runner->share);
    return wait_ns > 0 || runner->next != runner->ring.sq_head ? wait_ns
                                                               : budget_wait_ns(runner->share);
}

/* --- running ---------------------------------------------------------------------------- */

static void log_execution(const struct runner *runner, uint32_t sequence,
                          const struct vgpu_descriptor *operation)
{
    char line[160];
    int bytes;

    bytes = snprintf(line, sizeof(line),
                     "%llu vm=%u slot=%u generation=%u sequence=%u cookie=%llu opcode=%u\n",
                     (unsigned long long)clock_realtime_ns(), runner->memory->vm_id,
                     runner->memory->slot, runner->memory->generation, sequence,
                     (unsigned long long)operation->cookie, operation->opcode);
    if (write(runner->log_fd, line, (size_t)bytes) != bytes)
        log_warning("worker: cannot write the execution log: %s", strerror(errno));
}

/* What frees everything may find that the device is lost. */
static enum vgpu_status reset(struct runner *runner)
{
    const struct device_wait nothing = {.device = DEVICE_ALL, .everything = true};
    enum vgpu_status status;

    if (runner->memory->device_lost)
        return VGPU_DEVICE_LOST; /* there is none to begin anew with */
    device_reset(&runner->device);
    runner->memory->lost = 0;
    runner->memory->lost_status = 0;
    status = device_poll(&runner->device, &nothing);
    if (status != VGPU_OK)
        return status;
    vgpu_store_release(&runner->ring.host->state, VGPU_SESSION_READY);
    return VGPU_OK;
}

static enum vgpu_status execute(struct runner *runner, uint32_t sequence, uint64_t *ret_result,
                                struct device_wait *ret_wait)
{
    const struct vgpu_descriptor *operation = &runner->taken[sequence & MASK];
    enum vgpu_status verdict = runner->verdicts[sequence & MASK];

    *ret_result = 0;
    if (runner->grant.refuse)
        return VGPU_REFUSED;
    if (operation->opcode == VGPU_OP_RESET && verdict == VGPU_OK)
        return reset(runner);
    if (runner->memory->lost)
        return runner->memory->lost_status ? (enum vgpu_status)runner->memory->lost_status
                                           : VGPU_DEVICE_LOST;
    if (verdict != VGPU_OK)
        return verdict;
    if (operation->opcode != VGPU_OP_CANCEL)
        return device_run(&runner->device, operation, ret_result, ret_wait);
    *ret_result = operation->words[0];
    return VGPU_OK;
}

static __attribute__((noinline)) void answer_aloud(struct runner *runner, uint32_t sequence,
                                                   enum vgpu_status status, uint64_t result,
                                                   uint64_t run_ns)
{
    const struct vgpu_descriptor *operation = &runner->taken[sequence & MASK];
    uint64_t run_us = run_ns / NS_PER_US;
    const struct vgpu_completion completion = {
        .cookie = operation->cookie,
        .result = result,
        .status = (uint32_t)status,
        .run_us = run_us > UINT32_MAX ? UINT32_MAX : (uint32_t)run_us,
        .sequence = sequence,
        .generation = runner->memory->generation,
    };

    if (status == runner->memory->lost_status)
        runner->memory->lost_status = 0; /* the guest is told */
    ring_complete(&runner->ring, sequence, &completion);
}

static inline void answer(struct runner *runner, uint32_t sequence, enum vgpu_status status,
                          uint64_t result, uint64_t run_ns)
{
    const struct vgpu_descriptor *operation = &runner->taken[sequence & MASK];

    if (!(operation->flags & VGPU_FLAG_QUIET)) {
        answer_aloud(runner, sequence, status, result, run_ns);
        return;
    }
    if (status != VGPU_OK)
        device_note_error(&runner->device, operation, status);
    ring_complete_quietly(&runner->ring, sequence);
}

/* --- when they came, how long they took --------------------------------------------------- */

/* What was taken since the last time came now: one look at the clock is for many. */
static inline void note_arrivals(struct runner *runner, uint64_t now_ns)
{
    uint32_t end = runner->ring.sq_head;

    for (uint32_t i = runner->arrived; runner->times_operations && i != end; i++)
        runner->arrived_ns[i & MASK] = now_ns;
    runner->arrived = end;
}

/* Of one that began at a time which nobody noted nothing is known. */
static inline void note_durations(struct runner *runner, uint32_t sequence, uint64_t begin_ns,
                                  uint64_t now_ns)
{
    if (begin_ns != 0 && runner->times_operations)
        durations_record(runner->memory, now_ns - begin_ns,
                         now_ns - runner->arrived_ns[sequence & MASK]);
}

/* --- the decision log ------------------------------------------------------------------- */

/* All before `end` have been seen; a place in the ring is a place in the order of arrival. */
static void trace_arrivals(struct runner *runner, uint32_t end, uint64_t now_ns)
{
    uint32_t count = end - runner->trace_seen;

    if (!trace_is_on(&runner->trace) || count == 0 || count > 2 * VGPU_RING_ENTRIES)
        return;
    trace_write(&runner->trace, &(struct trace_record){.time_ns = now_ns,
                                                       .vm_id = runner->memory->vm_id,
                                                       .number = runner->trace_seen,
                                                       .count = (uint16_t)count,
                                                       .kind = TRACE_ARRIVE});
    runner->trace_seen = end;
}

void runner_trace_arrivals(struct runner *runner, uint32_t depth)
{
    if (trace_is_on(&runner->trace) && runner->next + depth != runner->trace_seen)
        trace_arrivals(runner, runner->next + depth, clock_monotonic_ns());
}

/* It has the device time since the last one of this session; on a device that works on several
 * at once that is its part of what they used together. */
static inline void trace_completion(struct runner *runner, uint32_t sequence,
                                    enum vgpu_status status, uint64_t now_ns)
{
    if (!trace_is_on(&runner->trace))
        return;
    *trace_begin(&runner->trace) =
        (struct trace_record){.time_ns = now_ns,
                              .device_ns = runner->trace_ns,
                              .vm_id = runner->memory->vm_id,
                              .number = sequence,
                              .what = runner->taken[sequence & MASK].opcode,
                              .kind = TRACE_COMPLETE,
                              .reason = (uint8_t)status};
    trace_end(&runner->trace);
    runner->trace_ns = 0;
}

static void charge(struct runner *runner, uint64_t used_ns)
{
    uint64_t *total_ns = &runner->memory->used_ns;

    runner->used_ns += used_ns;
    runner->trace_ns += used_ns;
    if (runner->grant.refuse)
        return;
    __atomic_store_n(total_ns, *total_ns + used_ns, __ATOMIC_RELAXED);
    runner->uncharged_ns += used_ns;
    if (runner->uncharged_ns >= NS_PER_US) {
        budget_charge(runner->share, runner->uncharged_ns / NS_PER_US);
        runner->uncharged_ns %= NS_PER_US;
    }
}

/* --- in flight -------------------------------------------------------------------------- */

/* That are not answered. */
static uint32_t awaited_count(const struct runner *runner)
{
    return runner->flight_count - runner->answered_count;
}

/* What runs at this moment, for the mediator's deadline: the oldest that has not ended.  The last
 * one stays there until the device has been asked (ask_device()). */
static void tell_running(struct runner *runner)
{
    const struct flight *oldest;

    if (awaited_count(runner) == 0)
        return;
    oldest = TAILQ_FIRST(&runner->flights);
    while (oldest->answered)
        oldest = TAILQ_NEXT(oldest, link);
    __atomic_store_n(&runner->memory->running_sequence, oldest->sequence, __ATOMIC_RELAXED);
    __atomic_store_n(&runner->memory->running, oldest->number, __ATOMIC_RELAXED);
}

/* Where streams are told apart; device's default streams always are. */
static uint16_t *pace_of(struct runner *runner, const struct vgpu_descriptor *operation)
{
    return &runner->in_stream[(operation->stream + operation->device * PACES_A_DEVICE) %
                              RUNNER_PACES];
}

/* Of a quiet one nobody is told how long it took: a look at the clock costs as much as all
 * else here, so it is for what an account begins with. */
static bool is_timed(const struct runner *runner, uint32_t sequence)
{
    return runner->flight_count == 0 || runner->work_count == 0 ||
           !(runner->taken[sequence & MASK].flags & VGPU_FLAG_QUIET);
}

/* What it moves, by its own word. */
static uint64_t bytes_of(const struct vgpu_descriptor *operation)
{
    uint64_t bytes;

    switch (operation->opcode) {
    case VGPU_OP_COPY_IN:
    case VGPU_OP_COPY_OUT:
    case VGPU_OP_COPY:
        return operation->copy.bytes;
    case VGPU_OP_SET:
        return __builtin_mul_overflow(operation->set.count, operation->set.width, &bytes)
                   ? UINT64_MAX
                   : bytes;
    default:
        return 0;
    }
}

/* For the bounds of all sessions together: before these are looked at, and behind a batch. */
static void tell_inflight(const struct runner *runner)
{
    budget_tell_inflight(runner->share, runner->flight_count, runner->flight_bytes);
}

static void count_begun(struct runner *runner, struct flight *flight,
                        const struct vgpu_descriptor *operation)
{
    flight->bytes = bytes_of(operation);
    flight->pace = device_is_work(operation->opcode) ? pace_of(runner, operation) : NULL;
    runner->flight_count++;
    runner->answered_count += flight->answered;
    flight->calls = flight->wait.calls;
    runner->flight_calls += flight->calls;
    runner->is_partial = flight->wait.left_bytes > 0;
    runner->flight_bytes += flight->bytes; /* may wrap ... */
    if (flight->pace) {
        runner->work_count++;
        ++*flight->pace;
    }
}

static void count_ended(struct runner *runner, const struct flight *flight)
{
    runner->flight_count--;
    runner->answered_count -= flight->answered;
    runner->flight_calls -= flight->calls;
    runner->flight_bytes -= flight->bytes; /* ... and wraps back */
    if (flight->pace) {
        runner->work_count--;
        --*flight->pace;
    }
}

/* The first of those that are unused, of which flight->wait is filled. */
static void begin_flight(struct runner *runner, uint32_t sequence, uint64_t result, bool answered)
{
    struct flight *flight = SLIST_FIRST(&runner->unused);
    uint64_t now_ns = is_timed(runner, sequence) ? clock_monotonic_ns() : 0;

    SLIST_REMOVE_HEAD(&runner->unused, next_unused);
    flight->sequence = sequence;
    flight->number = runner->started;
    flight->begin_ns = now_ns;
    flight->result = result;
    flight->answered = answered;
    TAILQ_INSERT_TAIL(&runner->flights, flight, link);
    if (runner->flight_count == 0)
        __atomic_store_n(&runner->memory->counted_ns, now_ns, __ATOMIC_RELAXED);
    if (runner->work_count == 0)
        runner->pace_from_ns = now_ns;
    runner->unverified = true;
    count_begun(runner, flight, &runner->taken[sequence & MASK]);
}

/* A stream ends: all that was in it is over, so it is not asked any more by who waits for
 * an event that was recorded in it. */
static void forget_stream(struct runner *runner, const void *stream)
{
    struct flight *flight;

    TAILQ_FOREACH (flight, &runner->flights, link) {
        if (flight->wait.stream == stream)
            flight->wait =
                (struct device_wait){.device = flight->wait.device, .object = flight->wait.object};
    }
}

static inline void tell_end(struct runner *runner, const struct flight *flight,
                            enum vgpu_status status, uint64_t now_ns)
{
    const struct vgpu_descriptor *operation = &runner->taken[flight->sequence & MASK];

    if (status == VGPU_OK && operation->opcode == VGPU_OP_STREAM_DESTROY)
        forget_stream(runner, flight->wait.object);
    if (status == VGPU_OK && !flight->pace) /* work has nothing more to do */
        status = device_finish(&runner->device, operation, &flight->wait);
    trace_completion(runner, flight->sequence, status, now_ns);
    note_durations(runner, flight->sequence, flight->begin_ns, now_ns);
    answer(runner, flight->sequence, status, flight->result, now_ns - flight->begin_ns);
}

static inline void end_flight(struct runner *runner, struct flight *flight, enum vgpu_status status,
                              uint64_t now_ns)
{
    if (!flight->answered)
        tell_end(runner, flight, status, now_ns);
    TAILQ_REMOVE(&runner->flights, flight, link);
    SLIST_INSERT_HEAD(&runner->unused, flight, next_unused);
    count_ended(runner, flight);
}

/* Nothing works any more: who was in flight is told, and the rest by the successor. */
static void lose_device(struct runner *runner, enum vgpu_status status)
{
    uint64_t now_ns = clock_monotonic_ns();

    runner->lost = status;
    runner->memory->lost_status = status;
    runner->unverified = runner->outlasts = false;
    while (!TAILQ_EMPTY(&runner->flights))
        end_flight(runner, TAILQ_FIRST(&runner->flights), status, now_ns);
    tell_inflight(runner);
    __atomic_store_n(&runner->memory->running, 0, __ATOMIC_RELAXED);
}

/* A stream that has not come to its first flight's place has not come to a later one's
 * either, so it is not asked again. */
static bool is_behind(const struct flight *flight, const struct flight *const *waiting,
                      unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (waiting[i]->wait.device == flight->wait.device &&
            waiting[i]->wait.stream == flight->wait.stream &&
            waiting[i]->wait.everything == flight->wait.everything &&
            waiting[i]->wait.number <= flight->wait.number)
            return true;
    }
    return false;
}

/* The first that the last look did not come to. */
static struct flight *first_to_ask(struct runner *runner)
{
    struct flight *flight;

    TAILQ_FOREACH (flight, &runner->flights, link) {
        if (flight->number >= runner->ask_from)
            return flight;
    }
    return TAILQ_FIRST(&runner->flights);
}

/* Most have ended as the one before them was asked for. */
static enum vgpu_status poll_flight(struct runner *runner, const struct device_wait *wait)
{
    return wait->done && *wait->done >= wait->number ? VGPU_OK : device_poll(&runner->device, wait);
}

/* `memory->lost`: the guest has not begun anew, so no device was asked. */
static bool is_loss(const struct runner *runner, enum vgpu_status status)
{
    return (status == VGPU_KERNEL_FAULT || status == VGPU_DEVICE_LOST) && !runner->memory->lost &&
           !runner->grant.refuse;
}

/* DEVICE_BEGUN: it waits for that. */
static __attribute__((noinline)) enum vgpu_status put_next_piece(struct runner *runner,
                                                                 struct flight *flight)
{
    enum vgpu_status status;

    runner->flight_calls -= flight->calls;
    status = device_go_on(&runner->device, &runner->taken[flight->sequence & MASK], &flight->wait);
    flight->calls = status == DEVICE_BEGUN ? flight->wait.calls : 0;
    runner->flight_calls += flight->calls;
    runner->is_partial = status == DEVICE_BEGUN && flight->wait.left_bytes > 0;
    return status;
}

/* It is over, as far as its wait goes: the end of it, or of a piece of it. */
static inline void end_or_go_on(struct runner *runner, struct flight *flight, uint64_t now_ns)
{
    enum vgpu_status status =
        flight->wait.left_bytes == 0 ? VGPU_OK : put_next_piece(runner, flight);

    if (is_loss(runner, status))
        lose_device(runner, status);
    else if (status != DEVICE_BEGUN)
        end_flight(runner, flight, status, now_ns);
}

/* A look goes round: where many streams take long, the next look goes on with the others. */
static bool poll_flights(struct runner *runner, uint64_t now_ns)
{
    const struct flight *waiting[STREAMS_ASKED];
    unsigned count = 0;
    bool progress = false;
    struct flight *flight = first_to_ask(runner), *next;
    uint32_t left = runner->flight_count;

    for (; left > 0 && count < STREAMS_ASKED; left--, flight = next) {
        enum vgpu_status status = VGPU_NOT_READY;

        next = TAILQ_NEXT(flight, link);
        if (!next)
            next = TAILQ_FIRST(&runner->flights);
        if (is_behind(flight, waiting, count))
            continue;
        status = poll_flight(runner, &flight->wait);
        if (status == VGPU_NOT_READY) {
            waiting[count++] = flight;
            continue;
        }
        progress = true;
        if (status != VGPU_OK) {
            lose_device(runner, status);
            return true;
        }
        end_or_go_on(runner, flight, now_ns);
        if (is_lost(runner))
            return true;
    }
    runner->ask_from = left > 0 ? flight->number : 0;
    return progress;
}

/* Short ones let more into flight, and a long one at once fewer. */
static void learn_pace(struct runner *runner, uint32_t ended, uint64_t now_ns)
{
    uint64_t lasted_ns = now_ns - runner->pace_from_ns;

    if (ended > 0) {
        runner->pace_ns = (3 * runner->pace_ns + lasted_ns / ended) / 4;
        runner->pace_from_ns = now_ns;
    } else if (lasted_ns > 2 * runner->pace_ns) {
        runner->pace_ns = lasted_ns;
    }
}

bool runner_poll(struct runner *runner)
{
    uint32_t before = runner->work_count;
    uint64_t now_ns;
    bool progress;

    if (runner->flight_count == 0)
        return false;
    now_ns = clock_monotonic_ns();
    charge(runner,
           now_ns - runner->memory->counted_ns); /* before the log is told who ended by it */
    __atomic_store_n(&runner->memory->counted_ns, now_ns, __ATOMIC_RELAXED);
    progress = poll_flights(runner, now_ns);
    if (before > 0)
        learn_pace(runner, before - runner->work_count, now_ns);
    if (runner->flight_count == 0)
        runner->verify_at_ns = now_ns + VERIFY_FIRST_NS;
    if (progress) {
        tell_running(runner);
        tell_inflight(runner);
        ring_publish(&runner->ring);
    }
    return progress;
}

/* --- by the device's own word ------------------------------------------------------------- */

/*
 * That something has ended is read where the GPU writes it, and a kernel can write there too: one
 * that lies goes on while nothing seems to be in flight.  So the device itself is asked then,
 * which costs as much as a quarter of a launch and is therefore done when the guest has
 * had nothing to do for a moment.  What it is still at work on is charged, runs for
 * the mediator's deadline, and has nothing begun behind it.
 */
static void note_at_work(struct runner *runner, uint64_t now_ns)
{
    charge(runner, now_ns - runner->memory->counted_ns);
    __atomic_store_n(&runner->memory->counted_ns, now_ns, __ATOMIC_RELAXED);
    if (!runner->outlasts) /* its time begins now, not that of what was in flight last */
        __atomic_store_n(&runner->memory->running, ++runner->started, __ATOMIC_RELAXED);
}

/* Nothing is in flight.  False: the device is at work. */
static bool ask_device(struct runner *runner)
{
    enum vgpu_status status = device_drained(&runner->device);
    uint64_t now_ns = runner->unverified ? clock_monotonic_ns() : 0;

    if (status != VGPU_OK && status != VGPU_NOT_READY)
        lose_device(runner, status);
    if (!runner->unverified)
        return status != VGPU_NOT_READY;
    if (status == VGPU_NOT_READY || runner->outlasts)
        note_at_work(runner, now_ns);
    runner->verify_at_ns = now_ns + VERIFY_AGAIN_NS;
    runner->outlasts = runner->unverified = status == VGPU_NOT_READY;
    if (!runner->unverified)
        __atomic_store_n(&runner->memory->running, 0, __ATOMIC_RELAXED);
    return !runner->unverified;
}

bool runner_is_unsure(const struct runner *runner)
{
    return runner->unverified && runner->flight_count == 0;
}

static void verify(struct runner *runner)
{
    if (runner_is_unsure(runner) && clock_monotonic_ns() >= runner->verify_at_ns)
        (void)ask_device(runner);
}

bool runner_is_drained(struct runner *runner)
{
    return runner->flight_count == 0 && ask_device(runner);
}

bool runner_is_lost(const struct runner *runner)
{
    return is_lost(runner);
}

static bool frees(const struct runner *runner)
{
    const struct flight *flight;

    TAILQ_FOREACH (flight, &runner->flights, link) {
        if (!flight->answered && runner->taken[flight->sequence & MASK].opcode == VGPU_OP_FREE)
            return true;
    }
    return false;
}

static __attribute__((noinline, cold)) bool
is_over_flight_bounds(const struct runner *runner, const struct vgpu_descriptor *operation)
{
    tell_inflight(runner);
    return !budget_allows(runner->share, bytes_of(operation));
}

/* What keeps no device busy, and may not begin next to what is in flight.  A new beginning needs
 * an empty device; how much memory there is depends on what was to be freed before. */
static __attribute__((noinline, cold)) bool must_wait_alone(const struct runner *runner,
                                                            uint16_t opcode)
{
    return opcode == VGPU_OP_RESET ||
           ((opcode == VGPU_OP_ALLOC || opcode == VGPU_OP_QUERY) && frees(runner));
}

/* Its stream has enough to do. */
static bool is_paced(struct runner *runner, const struct vgpu_descriptor *operation)
{
    uint32_t in_stream = *pace_of(runner, operation);

    return in_stream >= FLIGHTS_LET && in_stream * runner->pace_ns >= FLIGHT_TIME_NS;
}

/* What is in flight fills what is left of the grant: the next one would only begin when that is
 * over, and whoever is given the device then would wait for all of it.  What has run of the oldest
 * counts twice, so a grant ends early rather than late. */
static inline bool fills_grant(const struct runner *runner)
{
    return runner->used_ns + runner->work_count * runner->pace_ns >= runner->grant_ns;
}

/* Asked before each operation. */
static inline bool must_wait(struct runner *runner)
{
    const struct vgpu_descriptor *operation = &runner->taken[runner->next & MASK];
    uint32_t count = runner->flight_count;

    if (count == 0)
        return runner->outlasts;
    if (count >= runner->grant.max_inflight || count >= RUNNER_FLIGHTS_MAX ||
        runner->flight_calls >= RUNNER_CALLS_MAX || runner->is_partial)
        return true;
    if (device_is_work(operation->opcode) ? fills_grant(runner) || is_paced(runner, operation)
                                          : must_wait_alone(runner, operation->opcode))
        return true;
    return budget_bounds_inflight(runner->share) && is_over_flight_bounds(runner, operation);
}

/* --- one after the other ------------------------------------------------------------------ */

/* What begins there does not last, so nothing need be known before it. */
static bool is_asynchronous(const struct runner *runner)
{
    return runner->device.ops->mark != NULL;
}

/* It may last while it begins, so that nothing else is looked at: it answers for its time, and
 * what is in flight for what it had taken before. */
static bool blocks(uint16_t opcode)
{
    return opcode == VGPU_OP_MODULE_LOAD || opcode == VGPU_OP_MODULE_PART || opcode == VGPU_OP_TEXT;
}

/* Before and behind such a one what is in flight is looked at, the oldest in any case, so that its
 * time is known; *now_ns is when that was. */
static void look_around(struct runner *runner, uint64_t *now_ns)
{
    if (runner->flight_count == 0)
        return;
    runner->ask_from = 0;
    runner_poll(runner);
    *now_ns = clock_monotonic_ns();
}

/* False: the device is lost. */
static bool begin_block(struct runner *runner, uint64_t *now_ns)
{
    look_around(runner, now_ns);
    __atomic_store_n(&runner->memory->blocking_ns, *now_ns, __ATOMIC_RELAXED);
    return !runner_is_lost(runner);
}

static void end_block(struct runner *runner, uint64_t *now_ns)
{
    look_around(runner, now_ns);
    __atomic_store_n(&runner->memory->blocking, 0, __ATOMIC_RELAXED);
}

static inline void note_start(struct runner *runner, uint32_t sequence, uint64_t now_ns,
                              bool is_blocking)
{
    struct session_memory *memory = runner->memory;

    runner->started++;
    if (runner->flight_count == 0)
        __atomic_store_n(&memory->counted_ns, now_ns, __ATOMIC_RELAXED);
    if (awaited_count(runner) == 0) {
        __atomic_store_n(&memory->running_sequence, sequence, __ATOMIC_RELAXED);
        __atomic_store_n(&memory->running, runner->started, __ATOMIC_RELAXED);
    }
    if (is_blocking) {
        __atomic_store_n(&memory->blocking_sequence, sequence, __ATOMIC_RELAXED);
        __atomic_store_n(&memory->blocking, runner->started, __ATOMIC_RELEASE);
    }
    fault_point("session_started");
    if (runner->log_fd >= 0 && !runner->grant.refuse)
        log_execution(runner, sequence, &runner->taken[sequence & MASK]);
}

/* It has ended as it began: at *now_ns, unless that is measured. */
static __attribute__((noinline)) void end_at_once(struct runner *runner, uint32_t sequence,
                                                  enum vgpu_status status, uint64_t result,
                                                  uint64_t *now_ns)
{
    uint64_t begin_ns = *now_ns;

    if (!device_is_trivial(runner->taken[sequence & MASK].opcode)) {
        *now_ns = clock_monotonic_ns();
        if (runner->flight_count == 0)
            charge(runner, *now_ns - begin_ns);
        note_durations(runner, sequence, begin_ns, *now_ns);
    }
    if (is_loss(runner, status))
        lose_device(runner, status);
    trace_completion(runner, sequence, status, *now_ns);
    answer(runner, sequence, status, result, *now_ns - begin_ns);
}

/* Runs the next one; *now_ns is when the last one ended. */
static void run_next(struct runner *runner, uint64_t *now_ns)
{
    uint32_t sequence = runner->next;
    uint16_t opcode = runner->taken[sequence & MASK].opcode;
    bool measured = !device_is_trivial(opcode), is_blocking = blocks(opcode);
    uint64_t result;
    enum vgpu_status status;

    if (is_blocking && !begin_block(runner, now_ns))
        return;
    if (measured && (!is_asynchronous(runner) || sequence % TAKE_EVERY == 0)) {
        ring_publish(&runner->ring);
        while (take(runner, VGPU_RING_ENTRIES))
            ;
        note_arrivals(runner, *now_ns);
        trace_arrivals(runner, runner->ring.sq_head, *now_ns);
    }
    note_start(runner, sequence, *now_ns, is_blocking);
    status = execute(runner, sequence, &result, &SLIST_FIRST(&runner->unused)->wait);
    fault_point("session_executed");
    runner->next++;
    runner->operations++;
    if (status == DEVICE_BEGUN || status == DEVICE_PUT)
        begin_flight(runner, sequence, result, status == DEVICE_PUT);
    if (status != DEVICE_BEGUN)
        end_at_once(runner, sequence, status == DEVICE_PUT ? VGPU_OK : status, result, now_ns);
    if (is_blocking)
        end_block(runner, now_ns);
    if (runner->flight_count == 0 && !runner->unverified)
        __atomic_store_n(&runner->memory->running, 0, __ATOMIC_RELAXED);
    if (runner->next % PUBLISH_EVERY == 0)
        ring_publish(&runner->ring);
}

/* Somebody waits for a context: for so long that none is kept any more? */
static bool was_patient(struct runner *runner)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (runner->rest_after_ns == 0)
        runner->rest_after_ns = now_ns + REST_PATIENCE_NS;
    return now_ns >= runner->rest_after_ns && runner_is_empty(runner);
}

/* Asked for each operation, and nearly always nobody waits. */
static inline bool must_rest(struct runner *runner)
{
    if (__atomic_load_n(&runner->memory->rest, __ATOMIC_ACQUIRE))
        return was_patient(runner);
    runner->rest_after_ns = 0;
    return false;
}

bool runner_must_rest(struct runner *runner)
{
    return must_rest(runner);
}

static inline bool is_done(struct runner *runner)
{
    return runner->operations >= runner->grant.max_ops || runner->used_ns >= runner->grant_ns ||
           __atomic_load_n(&runner->memory->revoke, __ATOMIC_ACQUIRE) || must_rest(runner);
}

bool runner_is_done(struct runner *runner)
{
    return is_done(runner);
}

/* It may have been what failed on the way and was no operation's answer: closing something, or
 * going to another device. */
static void see_loss(struct runner *runner)
{
    const struct exec_backend *backend = runner->device.backend;
    enum vgpu_status status;

    if (runner_is_lost(runner) || !backend->lost || !backend->lost())
        return;
    status = device_drained(&runner->device);
    lose_device(runner, status == VGPU_KERNEL_FAULT ? status : VGPU_DEVICE_LOST);
    ring_publish(&runner->ring);
}

/* The VM has used what it may of its device's time. */
static bool is_over_share(const struct runner *runner)
{
    return !runner->grant.refuse && budget_device_wait_ns(runner->share) > 0;
}

/* What was taken, and is not begun at once. */
static void see_arrivals(struct runner *runner)
{
    uint64_t now_ns;

    if (runner->arrived == runner->ring.sq_head)
        return;
    now_ns = clock_monotonic_ns();
    note_arrivals(runner, now_ns);
    trace_arrivals(runner, runner->ring.sq_head, now_ns);
}

/* What comes while the next one must wait is taken, so that a cancel reaches it. */
static void take_meanwhile(struct runner *runner)
{
    while (take(runner, VGPU_RING_ENTRIES))
        ;
    see_arrivals(runner);
}

static bool run_some(struct runner *runner)
{
    bool ended = runner_poll(runner);
    uint64_t now_ns;
    uint32_t end;

    if (runner_is_lost(runner) || (runner->next == runner->ring.sq_head && !take(runner, BATCH)))
        return ended;
    if (must_wait(runner)) {
        take_meanwhile(runner);
        return ended;
    }
    if (is_over_share(runner)) {
        see_arrivals(runner);
        return ended;
    }
    now_ns = clock_monotonic_ns();
    note_arrivals(runner, now_ns);
    trace_arrivals(runner, runner->ring.sq_head, now_ns);
    end = runner->next + BATCH;
    if (runner->operations == 0)
        runner->first_ns = now_ns;
    while (runner->next != runner->ring.sq_head && runner->next != end && !is_done(runner) &&
           !must_wait(runner) && !is_lost(runner) && !is_over_share(runner))
        run_next(runner, &now_ns);
    ring_publish(&runner->ring);
    tell_queued(runner);
    tell_inflight(runner);
    /* What was not worth a measure each is measured together. */
    if (runner->flight_count == 0)
        charge(runner, clock_monotonic_ns() - now_ns);
    return true;
}

bool runner_run(struct runner *runner)
{
    bool progress = run_some(runner);

    if (progress)
        see_loss(runner);
    verify(runner);
    return progress;
}

void runner_rest(struct runner *runner)
{
    if (runner->flight_count > 0)
        return;
    device_rest(&runner->device);
    see_loss(runner);
}

bool runner_is_empty(const struct runner *runner)
{
    return device_is_empty(&runner->device);
}

/* --- the rest ----------------------------------------------------------------------------- */

bool runner_has_taken(const struct runner *runner)
{
    return runner->next != runner->ring.sq_head;
}

uint32_t runner_depth(struct runner *runner)
{
    return runner->ring.sq_head - runner->next + ring_depth(&runner->ring);
}

void runner_grant(struct runner *runner, const struct exec_session_grant *grant)
{
    bool times = grant->device_us == EXEC_GRANT_LONG && !grant->refuse;

    if (times && !runner->times_operations)
        runner->arrived = runner->next; /* what waits comes now */
    runner->times_operations = times;
    runner->grant = *grant;
    runner->grant_ns =
        grant->device_us < UINT64_MAX / NS_PER_US ? grant->device_us * NS_PER_US : UINT64_MAX;
    runner->used_ns = 0;
    runner->operations = runner->first_ns = 0;
}

void runner_begin(struct runner *runner, bool successor)
{
    struct session_memory *memory = runner->memory;
    struct vgpu_slot_host *host = runner->ring.host;

    memory->generation = successor ? memory->generation + 1 : 1;
    memory->lost = successor;
    host->generation = memory->generation;
    host->device_base = runner->device.place.base;
    host->device_bytes = runner->device.place.bytes;
    host->features = runner->device.place.features;
    if (successor)
        ring_recover(&runner->ring, runner->taken);
    memory->over_limit = SESSION_OVER_NONE;
    runner->next = runner->arrived = runner->trace_seen = runner->ring.sq_head;
    vgpu_store_release(&host->state, successor ? VGPU_SESSION_LOST : VGPU_SESSION_READY);
}

int runner_open(struct runner *runner, const struct exec_backend *backend, uint8_t *slot,
                uint64_t slot_bytes, unsigned devices, const struct account_share *share,
                uint32_t operation_limit_ms, struct session_memory *memory, int interrupt_fd,
                int log_fd, struct vgpu_error *error)
{
    runner->pace_ns = PACE_FIRST_NS;
    TAILQ_INIT(&runner->flights);
    SLIST_INIT(&runner->unused);
    for (uint32_t i = 0; i < RUNNER_FLIGHTS_MAX; i++)
        SLIST_INSERT_HEAD(&runner->unused, &runner->places[i], next_unused);
    runner->memory = memory;
    runner->share = share;
    runner->slot_bytes = slot_bytes;
    runner->log_fd = log_fd;
    memory->running = memory->blocking = 0;
    ring_init(&runner->ring, slot, slot_bytes, memory, interrupt_fd);
    return device_open(
        &runner->device, backend,
        &(struct device_config){
            .slot = slot, .slot_bytes = slot_bytes, .share = share, .contexts = &memory->contexts},
        devices, operation_limit_ms, error);
}

void runner_close(struct runner *runner)
{
    device_close(&runner->device);
}

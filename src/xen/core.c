/* SPDX-License-Identifier: Apache-2.0 */
/* A broker's work on memory: see core.h. */
#include "xen/core.h"

#include "protocol/protocol.h"

#include <stdio.h>
#include <string.h>

#define MASK (VGPU_RING_ENTRIES - 1)
#define NO_OUTPUT CORE_OUTPUTS_MAX
#define OUTSIDE UINT64_MAX /* an offset that no slot has */

static struct vgpu_slot_guest *control_of_guest(uint8_t *slot)
{
    return (struct vgpu_slot_guest *)(void *)(slot + VGPU_SLOT_GUEST);
}

static struct vgpu_slot_host *control_of_host(uint8_t *slot)
{
    return (struct vgpu_slot_host *)(void *)(slot + VGPU_SLOT_HOST);
}

static struct vgpu_descriptor *descriptors_of(uint8_t *slot)
{
    return (struct vgpu_descriptor *)(void *)(slot + VGPU_SLOT_SQ);
}

static struct vgpu_completion *completions_of(uint8_t *slot)
{
    return (struct vgpu_completion *)(void *)(slot + VGPU_SLOT_CQ);
}

void core_show_state(struct core *core, uint32_t state)
{
    if (core->guest)
        __atomic_store_n(&control_of_host(core->guest)->state, state, __ATOMIC_RELEASE);
}

static int cannot_be(struct core *core, const char *what, uint32_t value, uint32_t own)
{
    snprintf(core->reason, sizeof(core->reason),
             "%s is %u, which is more than %u entries away from %u", what, value, VGPU_RING_ENTRIES,
             own);
    core_show_state(core, VGPU_SESSION_FAULTED);
    return -1;
}

/* --- what the host's page tells beside the indices ------------------------------------ */

static void mirror(struct core *core)
{
    const struct vgpu_slot_host *from = control_of_host(core->own);
    struct vgpu_slot_host *to = control_of_host(core->guest);

    __atomic_store_n(&to->device_base, __atomic_load_n(&from->device_base, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
    __atomic_store_n(&to->device_bytes, __atomic_load_n(&from->device_bytes, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
    __atomic_store_n(&to->features, __atomic_load_n(&from->features, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
    __atomic_store_n(&to->generation, __atomic_load_n(&from->generation, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
    core_show_state(core, __atomic_load_n(&from->state, __ATOMIC_RELAXED));
}

void core_open(struct core *core, void *guest, uint64_t guest_bytes, void *own, uint64_t own_bytes)
{
    const struct vgpu_slot_host *host = control_of_host(own);

    memset(core, 0, sizeof(*core));
    core->guest = guest;
    core->guest_bytes = guest_bytes;
    core->own = own;
    core->own_bytes = own_bytes;
    core->sq_taken = core->sq_seen = vgpu_load_acquire(&host->sq_head);
    core->cq_taken = core->cq_seen = core->cq_tail = vgpu_load_acquire(&host->cq_tail);
    control_of_guest(core->own)->sq_tail = core->sq_taken;
    control_of_guest(core->own)->cq_head = core->cq_taken;
    control_of_guest(core->guest)->sq_tail = core->sq_taken;
    control_of_guest(core->guest)->cq_head = core->cq_tail;
    control_of_host(core->guest)->cq_tail = core->cq_tail;
    control_of_host(core->guest)->sq_event = core->sq_taken;
    mirror(core);
    vgpu_store_release(&control_of_host(core->guest)->sq_head, core->sq_taken);
}

/* --- errors of quiet copies ------------------------------------------------------------- */

static void keep_quiet_error(struct core *core, const struct core_flight *flight, uint32_t status)
{
    for (uint32_t i = 0; i < core->quiet_count; i++) {
        if (core->quiet[i].device == flight->device && core->quiet[i].stream == flight->stream)
            return;
    }
    /* Too many to tell apart: the last place's is told in the place of this one. */
    if (core->quiet_count < CORE_QUIET_MAX)
        core->quiet[core->quiet_count++] = (struct core_quiet){
            .device = flight->device, .stream = flight->stream, .status = status};
}

/* The status of a synchronisation that the worker ended with `status`. */
static uint32_t tell_quiet_error(struct core *core, const struct core_flight *flight,
                                 uint32_t status)
{
    uint32_t kept = 0, told = VGPU_OK;

    for (uint32_t i = 0; i < core->quiet_count; i++) {
        const struct core_quiet quiet = core->quiet[i];
        bool is_its = flight->opcode == VGPU_OP_RESET || quiet.device == flight->device;

        if (is_its && (flight->opcode != VGPU_OP_STREAM_SYNC || quiet.stream == flight->stream))
            told = told == VGPU_OK ? quiet.status : told;
        else
            core->quiet[kept++] = quiet;
    }
    core->quiet_count = kept;
    return status == VGPU_OK && flight->opcode != VGPU_OP_RESET ? told : status;
}

static bool tells_quiet_errors(const struct core_flight *flight)
{
    return flight->opcode == VGPU_OP_STREAM_SYNC || flight->opcode == VGPU_OP_DEVICE_SYNC ||
           flight->opcode == VGPU_OP_RESET;
}

/* --- worker to guest -------------------------------------------------------------------- */

static void spend(struct core *core, uint64_t bytes)
{
    core->bytes_left -= bytes < core->bytes_left ? bytes : core->bytes_left;
}

static void forget_output(struct core *core, struct core_flight *flight)
{
    struct core_output *last = &core->outputs[core->output_count - 1];

    core->flights[last->flight].output = flight->output;
    core->outputs[flight->output] = *last;
    core->output_count--;
    flight->output = NO_OUTPUT;
}

/* Moves what the operation wrote; only into the place that was noted at its beginning. */
static void deliver(struct core *core, const struct core_flight *flight,
                    const struct vgpu_completion *completion)
{
    const struct core_output *output = &core->outputs[flight->output];
    uint64_t bytes = output->bytes;

    if (flight->opcode == VGPU_OP_TEXT) {
        if (completion->status != VGPU_OK && completion->status != VGPU_COMMAND_FAILED)
            return;
        bytes = completion->result < bytes ? completion->result : bytes;
    } else if (completion->status != VGPU_OK) {
        return;
    }
    memcpy(core->guest + output->offset, core->own + output->offset, bytes);
    spend(core, bytes);
}

/* False: the guest is not to see it. */
static bool end_flight(struct core *core, struct vgpu_completion *completion)
{
    struct core_flight *flight = &core->flights[completion->sequence % CORE_FLIGHTS];

    if (!flight->used || flight->sequence != completion->sequence)
        return true; /* the worker's mistake; nothing of ours depends on it */
    if (flight->output != NO_OUTPUT) {
        deliver(core, flight, completion);
        forget_output(core, flight);
    }
    flight->used = false;
    if (flight->is_quiet) {
        if (completion->status != VGPU_OK)
            keep_quiet_error(core, flight, completion->status);
        return false;
    }
    if (tells_quiet_errors(flight))
        completion->status = tell_quiet_error(core, flight, completion->status);
    return true;
}

/* Places for completions in the guest's ring; -1: its head cannot be. */
static int guest_room(struct core *core)
{
    uint32_t head = vgpu_load_acquire(&control_of_guest(core->guest)->cq_head);
    uint32_t untaken = core->cq_tail - head;

    if (untaken > VGPU_RING_ENTRIES)
        return cannot_be(core, "cq_head", head, core->cq_tail);
    return (int)(VGPU_RING_ENTRIES - untaken);
}

static void publish_completions(struct core *core, uint32_t old_tail, struct core_work *work)
{
    vgpu_store_release(&control_of_host(core->guest)->cq_tail, core->cq_tail);
    vgpu_fence_full(); /* the tail before the event is read */
    if (vgpu_event_passed(
            __atomic_load_n(&control_of_guest(core->guest)->cq_event, __ATOMIC_RELAXED),
            core->cq_tail, old_tail))
        work->notify_guest = true;
}

static int move_completions(struct core *core, struct core_work *work)
{
    uint32_t tail = vgpu_load_acquire(&control_of_host(core->own)->cq_tail);
    uint32_t old_taken = core->cq_taken, old_tail = core->cq_tail;
    int room = guest_room(core);

    if (room < 0)
        return -1;
    if (tail - core->cq_taken > VGPU_RING_ENTRIES)
        return cannot_be(core, "the worker's cq_tail", tail, core->cq_taken);
    core->cq_seen = tail;
    while (core->cq_taken != tail && room > 0 && core->bytes_left > 0) {
        struct vgpu_completion completion = completions_of(core->own)[core->cq_taken & MASK];

        core->cq_taken++;
        if (!end_flight(core, &completion))
            continue;
        completions_of(core->guest)[core->cq_tail & MASK] = completion;
        core->cq_tail++;
        room--;
    }
    if (core->cq_taken != old_taken) {
        vgpu_store_release(&control_of_guest(core->own)->cq_head, core->cq_taken);
        work->moved = true;
    }
    if (core->cq_tail != old_tail)
        publish_completions(core, old_tail, work);
    return 0;
}

/* --- guest to worker -------------------------------------------------------------------- */

/* Where from `at` on the guest's bytes count, or the private slot's: those of an operation
 * in flight are not the guest's before it has ended.  Returns the piece's end. */
static uint64_t piece_end(const struct core *core, uint64_t at, uint64_t end, bool *ret_is_guests)
{
    uint64_t next = end, skip = at;

    for (uint32_t i = 0; i < core->output_count; i++) {
        const struct core_output *output = &core->outputs[i];
        uint64_t output_end = output->offset + output->bytes;

        if (output->offset <= at && output_end > skip)
            skip = output_end;
        else if (output->offset > at && output->offset < next)
            next = output->offset;
    }
    *ret_is_guests = skip == at;
    if (skip == at)
        return next;
    return skip < end ? skip : end;
}

static void fetch_range(struct core *core, uint64_t offset, uint64_t bytes)
{
    uint64_t at = offset, end = offset + bytes;

    while (at < end) {
        bool is_guests;
        uint64_t to = piece_end(core, at, end, &is_guests);

        if (is_guests)
            memcpy(core->own + at, core->guest + at, to - at);
        at = to;
    }
    spend(core, bytes);
}

static void note_output(struct core *core, struct core_flight *flight, uint64_t offset,
                        uint64_t bytes)
{
    if (bytes == 0)
        return;
    flight->output = (uint16_t)core->output_count;
    core->outputs[core->output_count++] = (struct core_output){
        .offset = offset, .bytes = bytes, .flight = flight->sequence % CORE_FLIGHTS};
}

/* Fetches what an operation reads, notes where it writes; its places have been checked. */
static void move_data(struct core *core, const struct vgpu_descriptor *descriptor,
                      struct core_flight *flight)
{
    switch (descriptor->opcode) {
    case VGPU_OP_TEXT:
        fetch_range(core, descriptor->text.command_offset, descriptor->text.command_bytes);
        note_output(core, flight, descriptor->text.answer_offset, descriptor->text.answer_bytes);
        break;
    case VGPU_OP_COPY_IN:
        if (descriptor->copy.bytes > 0)
            fetch_range(core, descriptor->copy.source, descriptor->copy.bytes);
        break;
    case VGPU_OP_COPY_OUT:
        note_output(core, flight, descriptor->copy.target, descriptor->copy.bytes);
        break;
    case VGPU_OP_MODULE_LOAD:
        if (descriptor->module.image_offset == 0)
            break; /* of parts that came before */
        /* fall through */
    case VGPU_OP_MODULE_PART:
        fetch_range(core, descriptor->module.image_offset, descriptor->module.image_bytes);
        break;
    case VGPU_OP_LAUNCH:
        fetch_range(core, descriptor->launch.name_offset, descriptor->launch.name_bytes);
        if (descriptor->launch.parameters_bytes > 0)
            fetch_range(core, descriptor->launch.parameters_offset,
                        descriptor->launch.parameters_bytes);
        break;
    default:
        break;
    }
}

/* What lies outside of the guest's slot could lie inside of the private one, which can be
 * larger: made such that the worker sees what we saw. */
static void point_outside(struct vgpu_descriptor *descriptor)
{
    switch (descriptor->opcode) {
    case VGPU_OP_TEXT:
        descriptor->text.command_offset = OUTSIDE;
        break;
    case VGPU_OP_COPY_IN:
        descriptor->copy.source = OUTSIDE;
        break;
    case VGPU_OP_COPY_OUT:
        descriptor->copy.target = OUTSIDE;
        break;
    case VGPU_OP_MODULE_LOAD:
    case VGPU_OP_MODULE_PART:
        descriptor->module.image_offset = OUTSIDE;
        break;
    case VGPU_OP_LAUNCH:
        descriptor->launch.name_offset = UINT32_MAX;
        break;
    default:
        break;
    }
}

static void begin_flight(struct core *core, struct vgpu_descriptor *descriptor)
{
    struct core_flight *flight = &core->flights[core->sq_taken % CORE_FLIGHTS];
    enum vgpu_status status =
        protocol_check_descriptor(descriptor, core->guest_bytes, VGPU_SESSION_DEVICES_MAX);
    bool is_sync = descriptor->opcode == VGPU_OP_STREAM_SYNC;

    *flight = (struct core_flight){
        .device = descriptor->device,
        .opcode = descriptor->opcode,
        .output = NO_OUTPUT,
        .sequence = core->sq_taken,
        .stream = is_sync ? descriptor->object.handle : descriptor->stream,
    };
    if (status == VGPU_OK)
        move_data(core, descriptor, flight);
    else if (status == VGPU_BAD_ADDRESS)
        point_outside(descriptor);
    flight->is_quiet = (descriptor->flags & VGPU_FLAG_QUIET) && flight->output != NO_OUTPUT;
    if (flight->is_quiet)
        descriptor->flags &= (uint8_t)~VGPU_FLAG_QUIET;
    flight->used = !(descriptor->flags & VGPU_FLAG_QUIET);
}

/* Can descriptor number sq_taken be moved now? */
static bool has_place(const struct core *core)
{
    return core->bytes_left > 0 && core->output_count < CORE_OUTPUTS_MAX &&
           !core->flights[core->sq_taken % CORE_FLIGHTS].used;
}

static uint32_t own_room(struct core *core)
{
    uint32_t untaken = core->sq_taken - vgpu_load_acquire(&control_of_host(core->own)->sq_head);

    return untaken < VGPU_RING_ENTRIES ? VGPU_RING_ENTRIES - untaken : 0;
}

static void publish_descriptors(struct core *core, uint32_t old_taken, struct core_work *work)
{
    vgpu_store_release(&control_of_guest(core->own)->sq_tail, core->sq_taken);
    vgpu_fence_full(); /* the tail before the event is read */
    if (vgpu_event_passed(__atomic_load_n(&control_of_host(core->own)->sq_event, __ATOMIC_RELAXED),
                          core->sq_taken, old_taken))
        work->ring_worker = true;
    vgpu_store_release(&control_of_host(core->guest)->sq_head, core->sq_taken);
    work->moved = true;
}

static int move_descriptors(struct core *core, struct core_work *work)
{
    uint32_t tail = vgpu_load_acquire(&control_of_guest(core->guest)->sq_tail);
    uint32_t old_taken = core->sq_taken, room = own_room(core);

    if (tail - core->sq_taken > VGPU_RING_ENTRIES)
        return cannot_be(core, "sq_tail", tail, core->sq_taken);
    core->sq_seen = tail;
    for (; core->sq_taken != tail && room > 0 && has_place(core); room--) {
        struct vgpu_descriptor descriptor;

        memcpy(&descriptor, &descriptors_of(core->guest)[core->sq_taken & MASK],
               sizeof(descriptor));
        /* From here on only the copy counts: nothing is read again. */
        __asm__ volatile("" ::: "memory");
        begin_flight(core, &descriptor);
        descriptors_of(core->own)[core->sq_taken & MASK] = descriptor;
        core->sq_taken++;
    }
    core->waits_for_room = core->sq_taken != tail && room == 0;
    if (core->sq_taken != old_taken)
        publish_descriptors(core, old_taken, work);
    return 0;
}

/* --- a round ---------------------------------------------------------------------------- */

int core_round(struct core *core, struct core_work *ret_work)
{
    struct core_work work = {0};

    core->bytes_left = CORE_ROUND_BYTES;
    mirror(core);
    if (move_completions(core, &work) < 0 || move_descriptors(core, &work) < 0)
        return -1;
    /* Nothing is left of this round: there may be more to do. */
    work.moved = work.moved || core->bytes_left == 0;
    *ret_work = work;
    return 0;
}

bool core_arm(struct core *core)
{
    const struct vgpu_slot_host *worker = control_of_host(core->own);

    __atomic_store_n(&control_of_host(core->guest)->sq_event, core->sq_seen, __ATOMIC_RELAXED);
    __atomic_store_n(&control_of_guest(core->own)->cq_event, core->cq_seen, __ATOMIC_RELAXED);
    vgpu_fence_full(); /* both events before the tails are read */
    return vgpu_load_acquire(&control_of_guest(core->guest)->sq_tail) != core->sq_seen ||
           vgpu_load_acquire(&worker->cq_tail) != core->cq_seen;
}

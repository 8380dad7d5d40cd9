/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Launches: quiet operations, so nothing says when one was taken, and its name
 * and parameters must lie in the arena until then.  The arena's second half is a
 * ring of them; a completion says that all descriptors up to its own have been
 * read, with what they name in the arena, and frees them.
 *
 *   tail (oldest that may still be read)        head
 *   |  name, parameters  |  name, parameters  |  free ...
 */
#include "private.h"

#include <string.h>

#define LAUNCH_OFFSET (VGPU_SLOT_ARENA + VGPU_ARENA_BYTES / 2)
#define LAUNCH_BYTES (VGPU_ARENA_BYTES / 2)
#define NO_PLACE UINT32_MAX

static void reclaim(struct vgpu_session *session)
{
    while (session->chunk_tail != session->chunk_head) {
        const struct launch_chunk *chunk =
            &session->chunks[session->chunk_tail % VGPU_RING_ENTRIES];

        if ((int32_t)(session->sequence_seen - chunk->sequence) <= 0)
            return;
        session->launch_tail = chunk->end;
        session->chunk_tail++;
    }
    session->launch_head = session->launch_tail = 0;
}

/* Where `bytes` in a row can stand; head never catches up with tail. */
static uint32_t find_place(const struct vgpu_session *session, uint32_t bytes)
{
    uint32_t head = session->launch_head, tail = session->launch_tail;

    if (session->chunk_head - session->chunk_tail == VGPU_RING_ENTRIES)
        return NO_PLACE;
    if (head >= tail) {
        if (bytes <= LAUNCH_BYTES - head)
            return head;
        head = 0;
        return bytes < tail ? head : NO_PLACE;
    }
    return bytes < tail - head ? head : NO_PLACE;
}

/* Any wait may run callbacks, which may launch: so a place is taken only when
 * nothing more must be waited for. */
static int make_place(struct vgpu_session *session, uint32_t bytes, uint32_t *ret_place,
                      struct vgpu_problem *problem)
{
    struct vgpu_problem failure;
    uint32_t place;

    for (;;) {
        if (submit_prepare_quiet(session, problem) < 0)
            return -1;
        place = find_place(session, bytes);
        if (place == NO_PLACE) {
            reclaim(session);
            place = find_place(session, bytes);
        }
        if (place != NO_PLACE) {
            *ret_place = place;
            return 0;
        }
        /* That it is answered is all that matters, whatever the answer. */
        if (vgpu_ping(session, &failure) < 0 && failure.status >= VGPU_PROBLEM_NO_DEVICE)
            return problem_copy(problem, &failure);
    }
}

static int check(const char *name, size_t name_bytes, uint64_t parameters_bytes,
                 struct vgpu_problem *problem)
{
    if (name_bytes < 1 || name_bytes > VGPU_NAME_MAX_BYTES)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "a kernel's name has 1 to %u bytes, '%.40s' has %zu",
                           VGPU_NAME_MAX_BYTES, name, name_bytes);
    if (parameters_bytes > VGPU_PARAMETERS_MAX_BYTES)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "a launch has at most %zu words of parameters, this one %llu",
                           VGPU_PARAMETERS_MAX_BYTES / sizeof(uint64_t),
                           (unsigned long long)parameters_bytes / sizeof(uint64_t));
    if (parameters_bytes % sizeof(uint64_t) != 0)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "parameters are whole words of %zu bytes, %llu bytes are not: each "
                           "parameter begins at a multiple of 8",
                           sizeof(uint64_t), (unsigned long long)parameters_bytes);
    return 0;
}

/* Puts name and parameters into the arena at `place` and names them in the descriptor. */
static void write_arguments(struct vgpu_session *session, struct vgpu_descriptor *descriptor,
                            uint32_t place, const char *name, const void *parameters)
{
    descriptor->launch.parameters_offset = LAUNCH_OFFSET + place;
    descriptor->launch.name_offset = LAUNCH_OFFSET + place + descriptor->launch.parameters_bytes;
    if (descriptor->launch.parameters_bytes > 0)
        memcpy(session->slot + descriptor->launch.parameters_offset, parameters,
               descriptor->launch.parameters_bytes);
    memcpy(session->slot + descriptor->launch.name_offset, name, descriptor->launch.name_bytes);
}

/* `descriptor` lacks only what lies in the arena. */
static int launch(struct vgpu_session *session, struct vgpu_descriptor *descriptor,
                  const char *name, const void *parameters, uint64_t parameters_bytes,
                  struct vgpu_problem *problem)
{
    size_t name_bytes = strlen(name);
    uint32_t bytes, place = 0;

    if (!session_usable(session))
        return session_refuse(session, problem);
    if (check(name, name_bytes, parameters_bytes, problem) < 0)
        return -1;
    bytes = (uint32_t)((parameters_bytes + name_bytes + 7) / 8 * 8);
    if (make_place(session, bytes, &place, problem) < 0)
        return -1;
    descriptor->launch.name_bytes = (uint32_t)name_bytes;
    descriptor->launch.parameters_bytes = (uint32_t)parameters_bytes;
    write_arguments(session, descriptor, place, name, parameters);
    if (vgpu_submit(session, descriptor, NULL, NULL, NULL, problem) < 0)
        return -1;
    session->chunks[session->chunk_head++ % VGPU_RING_ENTRIES] =
        (struct launch_chunk){.sequence = session->sq_tail - 1, .end = place + bytes};
    session->launch_head = place + bytes;
    return 0;
}

int vgpu_launch(struct vgpu_session *session, uint32_t stream, const char *name,
                const uint32_t grid[3], const uint32_t block[3], const uint64_t *parameters,
                uint32_t count, struct vgpu_problem *problem)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_LAUNCH,
                                         .flags = VGPU_FLAG_QUIET,
                                         .device = session->device,
                                         .stream = stream};

    memcpy(descriptor.launch.grid, grid, sizeof(descriptor.launch.grid));
    memcpy(descriptor.launch.block, block, sizeof(descriptor.launch.block));
    return launch(session, &descriptor, name, parameters, count * (uint64_t)sizeof(uint64_t),
                  problem);
}

int vgpu_launch_kernel(struct vgpu_session *session, uint32_t stream, uint32_t module,
                       const char *name, const uint32_t grid[3], const uint32_t block[3],
                       uint32_t shared_bytes, const void *parameters, uint64_t parameters_bytes,
                       struct vgpu_problem *problem)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_LAUNCH,
                                         .flags = VGPU_FLAG_QUIET,
                                         .device = session->device,
                                         .stream = stream};

    descriptor.launch.module = module;
    descriptor.launch.shared_bytes = shared_bytes;
    memcpy(descriptor.launch.grid, grid, sizeof(descriptor.launch.grid));
    memcpy(descriptor.launch.block, block, sizeof(descriptor.launch.block));
    return launch(session, &descriptor, name, parameters, parameters_bytes, problem);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies between this process' memory and the device.  What lies in the heap is
 * one operation.  Other memory goes through two pieces of the heap, so that the
 * host moves one while this side fills or empties the other:
 *
 *   memory ─memcpy─▶ piece 0 ─host─▶ device
 *          ─memcpy─▶ piece 1 ─host─▶
 *
 * An image of a module for which the heap has no room goes to the host in the same way.
 */
#include "private.h"

#include <emmintrin.h>
#include <stdio.h>
#include <string.h>

#define PIECE_MAX_BYTES (512u << 10)
#define PIECE_MIN_BYTES 4096u

/* What is this large will not be in the processor's cache when somebody looks at it, so it
 * is written past it: that saves reading what is overwritten. */
#define STREAMED_BYTES (32u << 20)

struct piece {
    uint64_t offset; /* 0: none */
    vgpu_ticket ticket;
    uint8_t *target; /* copy_out: where it goes when it has come */
    uint64_t bytes;
    bool in_flight;
};

struct staging {
    struct vgpu_session *session;
    uint16_t opcode;
    const char *what;
    struct piece pieces[2];
    uint64_t piece_bytes;
    bool streamed;
    uint32_t module; /* MODULE_PART: its handle ... */
    uint64_t module_bytes;
};

static void copy_streamed(uint8_t *target, const uint8_t *source, uint64_t bytes)
{
    uint64_t head = -(uintptr_t)target % sizeof(__m128i);

    head = head < bytes ? head : bytes;
    memcpy(target, source, head);
    for (; head + sizeof(__m128i) <= bytes; head += sizeof(__m128i))
        _mm_stream_si128((__m128i *)(void *)(target + head),
                         _mm_loadu_si128((const __m128i *)(const void *)(source + head)));
    memcpy(target + head, source + head, bytes - head);
    _mm_sfence(); /* what is streamed is ordered by nothing else */
}

static void staging_close(struct staging *staging)
{
    for (int i = 0; i < 2; i++) {
        if (staging->pieces[i].offset)
            heap_give(&staging->session->heap, staging->pieces[i].offset);
        staging->pieces[i].offset = 0;
    }
}

/* Two pieces as large as is useful and possible; one will do for a small copy. */
static int staging_open(struct staging *staging, uint64_t bytes, struct vgpu_problem *problem)
{
    struct heap *heap = &staging->session->heap;
    uint64_t most = bytes < PIECE_MIN_BYTES ? PIECE_MIN_BYTES : bytes;

    for (uint64_t piece = PIECE_MAX_BYTES; piece >= PIECE_MIN_BYTES; piece /= 2) {
        if (piece > most && piece / 2 >= most)
            continue;
        staging->pieces[0].offset = heap_take(heap, piece);
        staging->pieces[1].offset = bytes > piece ? heap_take(heap, piece) : 0;
        if (staging->pieces[0].offset && (staging->pieces[1].offset || bytes <= piece)) {
            staging->piece_bytes = piece;
            return 0;
        }
        staging_close(staging);
    }
    return problem_set(problem, VGPU_PROBLEM_FULL,
                       "%s: the heap has no two pieces of %u bytes left for data that lies "
                       "outside of it (largest free: %llu): free heap memory first",
                       staging->what, PIECE_MIN_BYTES, (unsigned long long)heap_largest(heap));
}

/* Waits for what is in flight there, and takes it out. */
static int settle(struct staging *staging, struct piece *piece, struct vgpu_problem *problem)
{
    struct vgpu_result result;

    if (!piece->in_flight)
        return 0;
    piece->in_flight = false;
    if (own_wait(staging->session, piece->ticket, &result, problem) < 0)
        return -1;
    if (result.status != VGPU_OK)
        return session_problem_of(staging->session, problem, result.status, staging->what);
    if (piece->target && staging->streamed)
        copy_streamed(piece->target, staging->session->slot + piece->offset, piece->bytes);
    else if (piece->target)
        memcpy(piece->target, staging->session->slot + piece->offset, piece->bytes);
    return 0;
}

/* What a piece is to the host; `device`: its address there, or its place in an image. */
static struct vgpu_descriptor describe(const struct staging *staging, const struct piece *piece,
                                       uint64_t device)
{
    struct vgpu_descriptor descriptor = {.opcode = staging->opcode};

    if (staging->opcode == VGPU_OP_MODULE_PART) {
        descriptor.module.handle = staging->module;
        descriptor.module.image_offset = piece->offset;
        descriptor.module.image_bytes = piece->bytes;
        descriptor.module.part_at = device;
        descriptor.module.whole_bytes = staging->module_bytes;
        return descriptor;
    }
    descriptor.copy.bytes = piece->bytes;
    descriptor.copy.target = staging->opcode == VGPU_OP_COPY_IN ? device : piece->offset;
    descriptor.copy.source = staging->opcode == VGPU_OP_COPY_IN ? piece->offset : device;
    return descriptor;
}

static int send(struct staging *staging, struct piece *piece, uint64_t device, uint8_t *memory,
                struct vgpu_problem *problem)
{
    struct vgpu_descriptor descriptor = describe(staging, piece, device);

    piece->target = staging->opcode == VGPU_OP_COPY_OUT ? memory : NULL;
    if (staging->opcode != VGPU_OP_COPY_OUT)
        memcpy(staging->session->slot + piece->offset, memory, piece->bytes);
    if (own_submit(staging->session, &descriptor, &piece->ticket, problem) < 0)
        return -1;
    submit_publish(staging->session);
    piece->in_flight = true;
    return 0;
}

static int copy_staged(struct staging *staging, uint64_t device, uint8_t *memory, uint64_t bytes,
                       struct vgpu_problem *problem)
{
    uint64_t done = 0;
    int result = 0;

    staging->streamed = bytes >= STREAMED_BYTES;
    if (bytes > 0 && staging_open(staging, bytes, problem) < 0)
        return -1;
    for (unsigned i = 0; result == 0 && done < bytes; i++) {
        struct piece *piece = &staging->pieces[i % 2];

        result = settle(staging, piece, problem);
        piece->bytes = bytes - done < staging->piece_bytes ? bytes - done : staging->piece_bytes;
        if (result == 0)
            result = send(staging, piece, device + done, memory + done, problem);
        done += piece->bytes;
    }
    /* The first problem is the one that counts; the host must be through. */
    for (int i = 0; i < 2; i++) {
        if (settle(staging, &staging->pieces[i], result == 0 ? problem : NULL) < 0)
            result = -1;
    }
    staging_close(staging);
    return result;
}

int vgpu_copy_in(struct vgpu_session *session, uint64_t target, const void *source, uint64_t bytes,
                 struct vgpu_problem *problem)
{
    struct staging staging = {
        .session = session, .opcode = VGPU_OP_COPY_IN, .what = "copy to the device"};
    const struct vgpu_descriptor descriptor = {
        .opcode = VGPU_OP_COPY_IN,
        .copy = {.target = target, .source = vgpu_heap_offset(session, source), .bytes = bytes}};

    if (!session_usable(session))
        return session_refuse(session, problem);
    if (session_in_heap(session, source, bytes))
        return submit_and_wait(session, &descriptor, staging.what, NULL, problem);
    return copy_staged(&staging, target, (uint8_t *)(uintptr_t)source, bytes, problem);
}

int vgpu_copy_out(struct vgpu_session *session, void *target, uint64_t source, uint64_t bytes,
                  struct vgpu_problem *problem)
{
    struct staging staging = {
        .session = session, .opcode = VGPU_OP_COPY_OUT, .what = "copy from the device"};
    const struct vgpu_descriptor descriptor = {
        .opcode = VGPU_OP_COPY_OUT,
        .copy = {.target = vgpu_heap_offset(session, target), .source = source, .bytes = bytes}};

    if (!session_usable(session))
        return session_refuse(session, problem);
    if (session_in_heap(session, target, bytes))
        return submit_and_wait(session, &descriptor, staging.what, NULL, problem);
    return copy_staged(&staging, source, target, bytes, problem);
}

static bool takes_parts(const struct vgpu_session *session)
{
    return __atomic_load_n(&session->host->features, __ATOMIC_RELAXED) & VGPU_FEATURE_MODULE_PARTS;
}

/* An image for which the heap has no room goes to the host piece by piece. */
static int load_parts(struct vgpu_session *session, uint32_t module, const void *image,
                      uint64_t bytes, struct vgpu_problem *problem)
{
    struct staging staging = {.session = session,
                              .opcode = VGPU_OP_MODULE_PART,
                              .what = "sending of a module",
                              .module = module,
                              .module_bytes = bytes};
    const struct vgpu_descriptor load = {.opcode = VGPU_OP_MODULE_LOAD,
                                         .module = {.handle = module, .image_bytes = bytes}};
    const struct vgpu_descriptor forget = {.opcode = VGPU_OP_MODULE_UNLOAD,
                                           .object = {.handle = module}};
    struct vgpu_problem own;

    if (copy_staged(&staging, 0, (uint8_t *)(uintptr_t)image, bytes, &own) == 0)
        return submit_and_wait(session, &load, "loading of a module", NULL, problem);
    if (own.status != VGPU_HANDLE_EXISTS && session_usable(session)) /* that one is another's */
        submit_and_wait(session, &forget, staging.what, NULL, NULL);
    return problem_copy(problem, &own);
}

int vgpu_module_load(struct vgpu_session *session, uint32_t module, const void *image,
                     uint64_t bytes, struct vgpu_problem *problem)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_MODULE_LOAD,
                                         .module = {.handle = module, .image_bytes = bytes}};
    uint64_t staged = 0;
    int result;

    if (!session_usable(session))
        return session_refuse(session, problem);
    if (!session_in_heap(session, image, bytes)) {
        staged = heap_take(&session->heap, bytes);
        if (!staged && takes_parts(session))
            return load_parts(session, module, image, bytes, problem);
        if (!staged)
            return problem_set(problem, VGPU_PROBLEM_FULL,
                               "the heap has no room for a module image of %llu bytes (largest "
                               "free: %llu): free heap memory, or open a larger window",
                               (unsigned long long)bytes,
                               (unsigned long long)heap_largest(&session->heap));
        memcpy(session->slot + staged, image, bytes);
    }
    descriptor.module.image_offset = staged ? staged : vgpu_heap_offset(session, image);
    result = submit_and_wait(session, &descriptor, "loading of a module", NULL, problem);
    if (staged)
        heap_give(&session->heap, staged);
    return result;
}

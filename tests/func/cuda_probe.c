/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program on libvgpu for tests/func/test_cuda.py: its one argument names a behaviour of
 * the cuda backend.  The session comes from VGPU_SOCKET.  Ends with 0 when everything was
 * as it must be, else it says what was not.
 */
#include "probe.h"

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GRANULE (2u << 20)
#define COUNT 100000u
#define HANDLE 7u
#define LAUNCHES 500 /* the ring takes them at once */

static const uint32_t one[3] = {1, 1, 1};

/* --- what behaviours share ---------------------------------------------------------------- */

static uint64_t free_bytes(struct vgpu_session *s)
{
    uint64_t bytes;

    GOOD(vgpu_query(s, VGPU_QUERY_MEMORY_FREE_BYTES, &bytes, &problem));
    return bytes;
}

static void launch(struct vgpu_session *s, uint32_t stream, const char *name, uint64_t a,
                   uint64_t b, uint64_t c, uint64_t d, uint32_t count)
{
    const uint64_t parameters[] = {a, b, c, d};

    GOOD(vgpu_launch(s, stream, name, one, one, parameters, count, &problem));
}

/* PTX of two kernels: `store` writes `value` to *target, `wild` to an address that is none. */
static const char store_ptx[] =
    ".version 7.0\n.target sm_75\n.address_size 64\n"
    ".visible .entry store(.param .u64 target, .param .u32 value)\n"
    "{ .reg .b64 a; .reg .b32 v;\n"
    "ld.param.u64 a, [target]; ld.param.u32 v, [value]; cvta.to.global.u64 a, a;\n"
    "st.global.u32 [a], v; ret; }\n"
    ".visible .entry fault()\n"
    "{ .reg .b64 a; .reg .b32 v; mov.u64 a, 16; mov.u32 v, 1; st.global.u32 [a], v; ret; }\n";

static void launch_own(struct vgpu_session *s, const char *name, const uint64_t *parameters,
                       uint32_t bytes)
{
    GOOD(vgpu_launch_kernel(s, 0, HANDLE, name, one, one, 0, parameters, bytes, &problem));
}

/* --- behaviours --------------------------------------------------------------------------- */

static void info(struct vgpu_session *s)
{
    struct vgpu_session_info told;
    uint64_t value;

    vgpu_session_info(s, &told);
    MUST(told.state == VGPU_SESSION_READY && (told.features & VGPU_FEATURE_MODULES));
    GOOD(vgpu_query(s, VGPU_QUERY_BACKEND, &value, &problem));
    MUST(value == VGPU_BACKEND_CUDA);
    GOOD(vgpu_query(s, VGPU_QUERY_MULTIPROCESSORS, &value, &problem));
    MUST(value >= 1);
}

static void memory(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 1000), b = allocate(s, 1 << 20), all;

    MUST(a % 256 == 0 && b % 256 == 0 && a != b);
    GOOD(vgpu_memory_free(s, a, &problem));
    FAILS(vgpu_memory_free(s, a, &problem), VGPU_BAD_ADDRESS);
    FAILS(vgpu_memory_set(s, a, 0, 1, 10, &problem), VGPU_BAD_ADDRESS);
    FAILS(vgpu_memory_free(s, b + 256, &problem), VGPU_BAD_ADDRESS);
    GOOD(vgpu_query(s, VGPU_QUERY_MEMORY_BYTES, &all, &problem));
    FAILS(vgpu_memory_alloc(s, all + 1, &a, &problem), VGPU_OUT_OF_MEMORY);
    GOOD(vgpu_memory_free(s, b, &problem));
}

/* The limit counts whole granules, to the byte. */
static void granules(struct vgpu_session *s)
{
    uint64_t all, rest, address, small;

    GOOD(vgpu_query(s, VGPU_QUERY_MEMORY_BYTES, &all, &problem));
    MUST(free_bytes(s) == all && all % GRANULE == 0);
    small = allocate(s, 1);
    MUST(free_bytes(s) == all - GRANULE);
    MUST(allocate(s, 512) == small + 512 && free_bytes(s) == all - GRANULE);
    rest = all - GRANULE;
    FAILS(vgpu_memory_alloc(s, rest + 1, &address, &problem), VGPU_OUT_OF_MEMORY);
    address = allocate(s, rest);
    MUST(free_bytes(s) == 0);
    FAILS(vgpu_memory_alloc(s, GRANULE, &rest, &problem), VGPU_OUT_OF_MEMORY);
    allocate(s, 1 << 20); /* there is room in the small ones' granule */
    GOOD(vgpu_memory_free(s, address, &problem));
    MUST(free_bytes(s) == all - GRANULE);
    for (int i = 0; i < 100; i++) {
        address = allocate(s, (uint64_t)(i + 1) << 16);
        GOOD(vgpu_memory_free(s, address, &problem));
    }
    MUST(free_bytes(s) == all - GRANULE);
}

static void copies(struct vgpu_session *s)
{
    static const uint64_t sizes[] = {1, 4, 4095, 4097, 1 << 20, 3 << 20};
    uint64_t a = allocate(s, 4 << 20), b = allocate(s, 4 << 20);
    uint8_t *out = malloc(4 << 20), *back = malloc(4 << 20);

    MUST(out && back);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (uint64_t k = 0; k < sizes[i]; k++)
            out[k] = (uint8_t)(k * 7 + i);
        GOOD(vgpu_copy_in(s, a + i, out, sizes[i], &problem));
        GOOD(vgpu_copy(s, b, a + i, sizes[i], &problem));
        memset(back, 0xee, sizes[i]);
        GOOD(vgpu_copy_out(s, back, b, sizes[i], &problem));
        GOOD(memcmp(out, back, sizes[i]));
    }
    FAILS(vgpu_copy_in(s, a + 1, out, 4 << 20, &problem), VGPU_BAD_ADDRESS);
    FAILS(vgpu_copy(s, a, 16, 4, &problem), VGPU_BAD_ADDRESS);
    free(out);
    free(back);
}

static void overlap(struct vgpu_session *s)
{
    uint64_t a = allocate(s, COUNT);
    uint8_t out[1000], back[1000];

    for (unsigned i = 0; i < sizeof(out); i++)
        out[i] = (uint8_t)(i * 3);
    for (int shift = -10; shift <= 10; shift += 5) {
        GOOD(vgpu_copy_in(s, a + 100, out, sizeof(out), &problem));
        GOOD(vgpu_copy(s, (uint64_t)((int64_t)a + 100 + shift), a + 100, sizeof(out), &problem));
        GOOD(vgpu_copy_out(s, back, (uint64_t)((int64_t)a + 100 + shift), sizeof(back), &problem));
        GOOD(memcmp(out, back, sizeof(out)));
    }
}

static void check_words(struct vgpu_session *s, uint64_t address, uint32_t *words, uint32_t count,
                        uint32_t first)
{
    memset(words, 0, count * sizeof(*words));
    GOOD(vgpu_copy_out(s, words, address, count * sizeof(*words), &problem));
    for (uint32_t i = 0; i < count; i++)
        MUST(words[i] == first + i);
}

/* Nearly all of the device's memory, both ways, by more and less than the scratch has. */
static void overlap_big(struct vgpu_session *s)
{
    static const int64_t shifts[] = {-4096, 4096, -(3 << 20), 3 << 20};
    uint32_t count = (20u << 20) / 4, *words = malloc(count * sizeof(*words));
    uint64_t a = allocate(s, 26 << 20) + (3 << 20);

    MUST(words != NULL);
    for (unsigned i = 0; i < sizeof(shifts) / sizeof(shifts[0]); i++) {
        for (uint32_t at = 0; at < count; at++)
            words[at] = at + i;
        GOOD(vgpu_copy_in(s, a, words, count * sizeof(*words), &problem));
        GOOD(vgpu_copy(s, a + (uint64_t)shifts[i], a, count * sizeof(*words), &problem));
        check_words(s, a + (uint64_t)shifts[i], words, count, i);
    }
    free(words);
}

/* Two streams at once have one scratch. */
static void overlap_streams(struct vgpu_session *s)
{
    uint32_t count = (5u << 20) / 4, *words = malloc(count * sizeof(*words));
    uint64_t at[] = {allocate(s, 6 << 20), allocate(s, 6 << 20)};
    struct vgpu_descriptor move = {.opcode = VGPU_OP_COPY, .flags = VGPU_FLAG_QUIET};

    MUST(words != NULL);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t word = 0; word < count; word++)
            words[word] = word + i * count;
        GOOD(vgpu_stream_create(s, i + 1, &problem));
        GOOD(vgpu_copy_in(s, at[i], words, count * sizeof(*words), &problem));
    }
    vgpu_batch_begin(s);
    for (uint32_t i = 0; i < 2; i++) {
        move.stream = i + 1;
        move.copy.source = at[i];
        move.copy.target = at[i] + 4096;
        move.copy.bytes = count * sizeof(*words);
        GOOD(vgpu_submit(s, &move, NULL, NULL, NULL, &problem));
    }
    vgpu_batch_end(s);
    GOOD(vgpu_device_sync(s, &problem));
    for (uint32_t i = 0; i < 2; i++)
        check_words(s, at[i] + 4096, words, count, i * count);
    free(words);
}

static void set(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 4096);
    uint32_t words[1024];

    GOOD(vgpu_copy_out(s, words, a, sizeof(words), &problem));
    for (unsigned i = 0; i < 1024; i++)
        MUST(words[i] == 0); /* nobody's before */
    GOOD(vgpu_memory_set(s, a, 0x01020304, 4, 1024, &problem));
    GOOD(vgpu_memory_set(s, a, 0xaabb, 2, 2, &problem));
    GOOD(vgpu_memory_set(s, a, 0x77, 1, 1, &problem));
    GOOD(vgpu_copy_out(s, words, a, sizeof(words), &problem));
    MUST(words[0] == 0xaabbaa77 && words[1] == 0x01020304 && words[1023] == 0x01020304);
}

static void kernels(struct vgpu_session *s)
{
    uint64_t a = allocate(s, COUNT * 4), b = allocate(s, COUNT * 4), c = allocate(s, COUNT * 4);
    float *x = malloc(COUNT * sizeof(*x));
    double sum;

    MUST(x);
    for (unsigned i = 0; i < COUNT; i++)
        x[i] = (float)(i % 1000);
    GOOD(vgpu_copy_in(s, a, x, COUNT * 4, &problem));
    launch(s, 0, "fill", b, 0x40000000 /* 2.0f */, COUNT, 0, 3);
    launch(s, 0, "vector_add", c, a, b, COUNT, 4);
    launch(s, 0, "saxpy", c, a, 0x40400000 /* 3.0f */, COUNT, 4);
    GOOD(vgpu_copy_out(s, x, c, COUNT * 4, &problem));
    for (unsigned i = 0; i < COUNT; i++)
        MUST(x[i] == (float)(i % 1000) * 4 + 2);
    launch(s, 0, "reduce_sum", b, a, COUNT, 0, 3);
    GOOD(vgpu_copy_out(s, &sum, b, sizeof(sum), &problem));
    MUST(sum == 49950000.0);
    launch(s, 0, "no_such", 0, 0, 0, 0, 0);
    FAILS(vgpu_device_sync(s, &problem), VGPU_NOT_FOUND);
    launch(s, 0, "fill", b, 0, COUNT + (8 << 20), 0, 3);
    FAILS(vgpu_device_sync(s, &problem), VGPU_BAD_ADDRESS);
    launch(s, 0, "touch", a, 1, 0, 0, 2); /* the host's own */
    FAILS(vgpu_device_sync(s, &problem), VGPU_NOT_FOUND);
    free(x);
}

static void must_fail(struct vgpu_session *s, const char *name, uint64_t a, uint64_t b,
                      uint32_t count, int status)
{
    launch(s, 0, name, a, b, 0, 0, count);
    FAILS(vgpu_device_sync(s, &problem), status);
}

/* What was good once is so only as long as nothing of it changes. */
static void repeats(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 4096), value;

    GOOD(vgpu_memory_set(s, a, 0, 4, 1024, &problem));
    for (unsigned i = 0; i < 3; i++) {
        launch(s, 0, "increment", a, 2, 0, 0, 2);
        launch(s, 0, "increment", a, 2, 0, 0, 2);
        must_fail(s, "increment", a, 513, 2, VGPU_BAD_ADDRESS);
        must_fail(s, "increment", a, 2, 3, VGPU_INVALID);
        must_fail(s, "incremen", a, 2, 2, VGPU_NOT_FOUND);
        must_fail(s, "increment2", a, 2, 2, VGPU_NOT_FOUND);
        must_fail(s, "increment-and-so-on", a, 2, 2, VGPU_NOT_FOUND);
    }
    GOOD(vgpu_copy_out(s, &value, a + 8, 8, &problem));
    MUST(value == 6);
    GOOD(vgpu_stream_create(s, 1, &problem));
    launch(s, 1, "increment", a, 2, 0, 0, 2);
    GOOD(vgpu_stream_destroy(s, 1, &problem));
    launch(s, 1, "increment", a, 2, 0, 0, 2);
    FAILS(vgpu_device_sync(s, &problem), VGPU_BAD_HANDLE);
    GOOD(vgpu_stream_create(s, 1, &problem));
    launch(s, 1, "increment", a, 2, 0, 0, 2);
    GOOD(vgpu_device_sync(s, &problem));
    GOOD(vgpu_copy_out(s, &value, a + 8, 8, &problem));
    MUST(value == 8);
    GOOD(vgpu_memory_free(s, a, &problem));
    must_fail(s, "increment", a, 2, 2, VGPU_BAD_ADDRESS);
}

static void streams(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 1 << 20), value;

    for (uint32_t stream = 1; stream <= 20; stream++) {
        GOOD(vgpu_stream_create(s, stream, &problem));
        GOOD(vgpu_memory_set(s, a + stream * 8, 0, 4, 2, &problem));
    }
    FAILS(vgpu_stream_create(s, 3, &problem), VGPU_HANDLE_EXISTS);
    for (int round = 0; round < 50; round++) {
        for (uint32_t stream = 1; stream <= 20; stream++)
            launch(s, stream, "increment", a + stream * 8, 1, 0, 0, 2);
    }
    for (uint32_t stream = 1; stream <= 20; stream++) {
        GOOD(vgpu_stream_sync(s, stream, &problem));
        GOOD(vgpu_copy_out(s, &value, a + stream * 8, 8, &problem));
        MUST(value == 50);
        launch(s, stream, "spin_us", 1000, 0, 0, 0, 1);
        GOOD(vgpu_stream_destroy(s, stream, &problem));
        FAILS(vgpu_stream_sync(s, stream, &problem), VGPU_BAD_HANDLE);
    }
    GOOD(vgpu_stream_create(s, 3, &problem));
}

static void events(struct vgpu_session *s)
{
    struct vgpu_descriptor ask = {.opcode = VGPU_OP_EVENT_QUERY, .object = {.handle = 1}};
    struct vgpu_result result;
    vgpu_ticket ticket;
    uint64_t ns;

    GOOD(vgpu_event_create(s, 1, &problem));
    GOOD(vgpu_event_create(s, 2, &problem));
    GOOD(vgpu_stream_create(s, 5, &problem));
    GOOD(vgpu_event_sync(s, 1, &problem)); /* never recorded */
    FAILS(vgpu_event_elapsed_ns(s, 1, 2, &ns, &problem), VGPU_NOT_READY);
    GOOD(vgpu_event_record(s, 5, 2, &problem));
    launch(s, 5, "spin_us", 1000000, 0, 0, 0, 1);
    GOOD(vgpu_event_record(s, 5, 1, &problem));
    GOOD(vgpu_submit(s, &ask, NULL, NULL, &ticket, &problem));
    GOOD(vgpu_wait(s, ticket, VGPU_FOREVER, &result, &problem));
    MUST(result.status == VGPU_NOT_READY);
    GOOD(vgpu_event_sync(s, 2, &problem)); /* was before the spin: not waited for */
    GOOD(vgpu_event_sync(s, 1, &problem));
    GOOD(vgpu_event_elapsed_ns(s, 2, 1, &ns, &problem));
    MUST(ns >= 990000000);
    GOOD(vgpu_stream_destroy(s, 5, &problem));
    GOOD(vgpu_event_sync(s, 1, &problem));
    GOOD(vgpu_event_destroy(s, 1, &problem));
    FAILS(vgpu_event_sync(s, 1, &problem), VGPU_BAD_HANDLE);
}

static void modules(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 4096), parameters[2] = {a, 0xffffffff12345678};
    uint32_t value;

    GOOD(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
    FAILS(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem),
          VGPU_HANDLE_EXISTS);
    launch_own(s, "store", parameters, sizeof(parameters));
    GOOD(vgpu_copy_out(s, &value, a, 4, &problem));
    MUST(value == 0x12345678);
    launch_own(s, "no_such", parameters, sizeof(parameters));
    FAILS(vgpu_device_sync(s, &problem), VGPU_NOT_FOUND);
    GOOD(vgpu_module_unload(s, HANDLE, &problem));
    launch_own(s, "store", parameters, sizeof(parameters));
    FAILS(vgpu_device_sync(s, &problem), VGPU_BAD_HANDLE);
    FAILS(vgpu_module_load(s, HANDLE, "no image at all", 15, &problem), VGPU_BAD_IMAGE);
    GOOD(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
}

/* More than the window has, with a heap that is nearly full and one that is not. */
static void large_module(struct vgpu_session *s)
{
    struct vgpu_session_info told;
    uint64_t a = allocate(s, 4096), parameters[2] = {a, 77}, bytes;
    uint32_t value;
    char *image;
    void *room;

    vgpu_session_info(s, &told);
    MUST(told.features & VGPU_FEATURE_MODULE_PARTS);
    bytes = told.heap_bytes + (1 << 20);
    image = malloc(bytes);
    MUST(image);
    /* Of as many blanks a driver's PTX compiler looks at each again and again. */
    memset(image, '\n', bytes);
    memcpy(image, store_ptx, sizeof(store_ptx) - 1);
    image[bytes - 1] = '\0';
    for (int round = 0; round < 2; round++) {
        GOOD(vgpu_module_load(s, HANDLE, image, bytes, &problem));
        FAILS(vgpu_module_load(s, HANDLE, image, bytes, &problem), VGPU_HANDLE_EXISTS);
        launch_own(s, "store", parameters, sizeof(parameters));
        GOOD(vgpu_copy_out(s, &value, a, 4, &problem));
        MUST(value == parameters[1]);
        GOOD(vgpu_module_unload(s, HANDLE, &problem));
        room = vgpu_heap_alloc(s, told.heap_bytes - (64 << 10));
        MUST(room != NULL || round > 0);
    }
    memset(image, 'x', 16);
    FAILS(vgpu_module_load(s, HANDLE, image, bytes, &problem), VGPU_BAD_IMAGE);
    FAILS(vgpu_module_unload(s, HANDLE, &problem), VGPU_BAD_HANDLE);
    FAILS(vgpu_module_load(s, 0, image, bytes, &problem), VGPU_INVALID);
    free(image);
    GOOD(vgpu_device_sync(s, &problem));
}

static void parameters(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 4096), words[3] = {a, 1, 2};

    GOOD(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
    launch_own(s, "store", words, 8);
    FAILS(vgpu_device_sync(s, &problem), VGPU_INVALID);
    launch_own(s, "store", words, 24);
    FAILS(vgpu_device_sync(s, &problem), VGPU_INVALID);
    GOOD(vgpu_launch_kernel(s, 0, HANDLE, "store", one, (const uint32_t[]){5000, 1, 1}, 0, words,
                            16, &problem));
    FAILS(vgpu_device_sync(s, &problem), VGPU_INVALID);
    GOOD(vgpu_launch_kernel(s, 0, HANDLE, "store", one, one, 100u << 20, words, 16, &problem));
    FAILS(vgpu_device_sync(s, &problem), VGPU_INVALID);
    launch_own(s, "store", words, 16);
    GOOD(vgpu_device_sync(s, &problem));
}

/* A wait for one stream is none for another. */
static void apart(struct vgpu_session *s)
{
    struct vgpu_descriptor wait = {.opcode = VGPU_OP_STREAM_SYNC, .object = {.handle = 1}};
    vgpu_ticket slow, quick;
    struct vgpu_result results[2];

    GOOD(vgpu_stream_create(s, 1, &problem));
    GOOD(vgpu_stream_create(s, 2, &problem));
    launch(s, 2, "spin_us", 100, 0, 0, 0, 1);
    launch(s, 1, "spin_us", 2000000, 0, 0, 0, 1);
    GOOD(vgpu_submit(s, &wait, NULL, NULL, &slow, &problem));
    wait.object.handle = 2;
    GOOD(vgpu_submit(s, &wait, NULL, NULL, &quick, &problem));
    GOOD(vgpu_wait(s, quick, VGPU_FOREVER, &results[0], &problem));
    MUST(results[0].status == VGPU_OK);
    MUST(vgpu_wait(s, slow, 0, &results[1], &problem) == -1 &&
         problem.status == VGPU_PROBLEM_TIMEOUT);
    GOOD(vgpu_ping(s, &problem)); /* nor for the ring */
    MUST(vgpu_wait(s, slow, 0, &results[1], &problem) == -1);
    GOOD(vgpu_wait(s, slow, VGPU_FOREVER, &results[1], &problem));
    MUST(results[1].status == VGPU_OK);
}

/* Between streams an event orders. */
static void order(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 8), value;

    GOOD(vgpu_stream_create(s, 1, &problem));
    GOOD(vgpu_stream_create(s, 2, &problem));
    GOOD(vgpu_event_create(s, 1, &problem));
    for (uint64_t round = 1; round <= 20; round++) {
        launch(s, 1, "spin_us", 500, 0, 0, 0, 1);
        launch(s, 1, "fill", a, round, 1, 0, 3);
        GOOD(vgpu_event_record(s, 1, 1, &problem));
        GOOD(vgpu_stream_wait(s, 2, 1, &problem));
        launch(s, 2, "increment", a, 1, 0, 0, 2);
        GOOD(vgpu_stream_sync(s, 2, &problem));
        GOOD(vgpu_copy_out(s, &value, a, 8, &problem));
        MUST(value == round + 1);
    }
}

static void reset(struct vgpu_session *s)
{
    uint64_t all = free_bytes(s), a = allocate(s, 5 << 20);

    GOOD(vgpu_stream_create(s, 1, &problem));
    GOOD(vgpu_event_create(s, 1, &problem));
    GOOD(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
    launch(s, 1, "spin_us", 20000, 0, 0, 0, 1);
    GOOD(vgpu_reset(s, &problem));
    MUST(free_bytes(s) == all);
    FAILS(vgpu_memory_free(s, a, &problem), VGPU_BAD_ADDRESS);
    GOOD(vgpu_stream_create(s, 1, &problem));
    GOOD(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
    set(s);
}

/* More than any queue holds, and each of them runs. */
static void many(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 8), value;

    for (int i = 0; i < 20000; i++)
        launch(s, 0, "increment", a, 1, 0, 0, 2);
    GOOD(vgpu_copy_out(s, &value, a, 8, &problem));
    MUST(value == 20000);
}

/* What was submitted before may use memory that is freed. */
static void free_in_flight(struct vgpu_session *s)
{
    uint64_t bytes = 4 << 20, a, b, all = free_bytes(s);

    GOOD(vgpu_stream_create(s, 1, &problem));
    for (int i = 0; i < 20; i++) {
        a = allocate(s, bytes);
        launch(s, 1, "spin_us", 500, 0, 0, 0, 1);
        launch(s, 1, "fill", a, 5, bytes / 4, 0, 3);
        GOOD(vgpu_memory_free(s, a, &problem));
        b = allocate(s, bytes);
        GOOD(vgpu_memory_set(s, b, 9, 4, 1, &problem));
        GOOD(vgpu_device_sync(s, &problem));
        GOOD(vgpu_copy_out(s, &a, b, 4, &problem));
        MUST((uint32_t)a == 9);
        GOOD(vgpu_memory_free(s, b, &problem));
    }
    MUST(free_bytes(s) == all);
}

static void text(struct vgpu_session *s)
{
    char answer[1024];

    GOOD(vgpu_text(s, "VECTOR_ADD", answer, sizeof(answer), &problem));
    MUST(strstr(answer, "PASSED") && strstr(answer, "cuda"));
    GOOD(vgpu_text(s, "MATRIX_MUL 65", answer, sizeof(answer), &problem));
    MUST(strstr(answer, "PASSED"));
    GOOD(vgpu_text(s, "GPU_INFO", answer, sizeof(answer), &problem));
    MUST(strstr(answer, "compute capability"));
}

static void fault(struct vgpu_session *s)
{
    struct vgpu_session_info told;
    uint64_t a = allocate(s, 4096);

    GOOD(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
    launch_own(s, "fault", NULL, 0);
    FAILS(vgpu_device_sync(s, &problem), VGPU_KERNEL_FAULT);
    FAILS(vgpu_memory_free(s, a, &problem), VGPU_DEVICE_LOST);
    GOOD(vgpu_reset(s, &problem));
    vgpu_session_info(s, &told);
    MUST(told.state == VGPU_SESSION_READY && told.generation == 2);
    set(s);
    kernels(s);
}

/* The second load and the second launch get codes that no table has. */
static void odd_codes(struct vgpu_session *s)
{
    struct vgpu_session_info told;
    uint64_t a = allocate(s, 4096), parameters[] = {a, 1};

    GOOD(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
    FAILS(vgpu_module_load(s, HANDLE + 1, store_ptx, sizeof(store_ptx) - 1, &problem),
          VGPU_BAD_IMAGE);
    GOOD(vgpu_memory_set(s, a, 0, 4, 2, &problem));
    launch(s, 0, "increment", parameters[0], parameters[1], 0, 0, 2);
    launch(s, 0, "increment", parameters[0], parameters[1], 0, 0, 2);
    FAILS(vgpu_device_sync(s, &problem), VGPU_INVALID);
    GOOD(vgpu_device_sync(s, &problem));
    vgpu_session_info(s, &told);
    MUST(told.state == VGPU_SESSION_READY && told.generation == 1);
}

static void wait_until_lost(struct vgpu_session *s)
{
    struct vgpu_session_info told;

    do {
        usleep(10000);
        vgpu_session_info(s, &told);
    } while (told.state != VGPU_SESSION_LOST);
}

/* The worker has seen it, and ended for it, before anybody asks. */
static void late_fault(struct vgpu_session *s)
{
    allocate(s, 4096);
    GOOD(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
    launch_own(s, "fault", NULL, 0);
    wait_until_lost(s);
    FAILS(vgpu_device_sync(s, &problem), VGPU_KERNEL_FAULT);
    FAILS(vgpu_device_sync(s, &problem), VGPU_DEVICE_LOST);
    GOOD(vgpu_reset(s, &problem));
    set(s);
}

/* A launch that lasts too long is told by the wait for it. */
static void endless(struct vgpu_session *s)
{
    launch(s, 0, "spin_us", 600000000, 0, 0, 0, 1);
    FAILS(vgpu_device_sync(s, &problem), VGPU_TIME_LIMIT);
    FAILS(vgpu_device_sync(s, &problem), VGPU_DEVICE_LOST);
    GOOD(vgpu_reset(s, &problem));
    launch(s, 0, "spin_us", 600000000, 0, 0, 0, 1);
    wait_until_lost(s);
    FAILS(vgpu_device_sync(s, &problem), VGPU_TIME_LIMIT);
    GOOD(vgpu_reset(s, &problem));
    set(s);
}

/* Operations without waiting, as a ring takes them. */
static vgpu_ticket submit(struct vgpu_session *s, const struct vgpu_descriptor *operation)
{
    vgpu_ticket ticket;

    GOOD(vgpu_submit(s, operation, NULL, NULL, &ticket, &problem));
    return ticket;
}

static struct vgpu_result answer(struct vgpu_session *s, vgpu_ticket ticket)
{
    struct vgpu_result result;

    GOOD(vgpu_wait(s, ticket, VGPU_FOREVER, &result, &problem));
    return result;
}

/* Who waits for an event may do so when its stream is about to end. */
static void late_event(struct vgpu_session *s)
{
    const struct vgpu_descriptor end = {.opcode = VGPU_OP_STREAM_DESTROY, .object = {.handle = 1}};
    const struct vgpu_descriptor wait = {.opcode = VGPU_OP_EVENT_SYNC, .object = {.handle = 1}};
    vgpu_ticket tickets[9];

    GOOD(vgpu_event_create(s, 1, &problem));
    for (int round = 0; round < 20; round++) {
        GOOD(vgpu_stream_create(s, 1, &problem));
        vgpu_batch_begin(s);
        launch(s, 1, "spin_us", 2000, 0, 0, 0, 1);
        GOOD(vgpu_event_record(s, 1, 1, &problem));
        tickets[0] = submit(s, &end);
        for (int i = 1; i < 9; i++)
            tickets[i] = submit(s, &wait);
        vgpu_batch_end(s);
        for (int i = 0; i < 9; i++)
            MUST(answer(s, tickets[i]).status == VGPU_OK);
    }
}

/* The second one lies in a granule that is being cleared for the first. */
static void two_small(struct vgpu_session *s)
{
    const struct vgpu_descriptor ask = {.opcode = VGPU_OP_ALLOC, .alloc = {.bytes = 4096}};
    vgpu_ticket first, second;
    uint32_t value = 77, got;
    uint64_t address;

    vgpu_batch_begin(s);
    first = submit(s, &ask);
    second = submit(s, &ask);
    vgpu_batch_end(s);
    address = answer(s, second).value;
    GOOD(vgpu_copy_in(s, address, &value, sizeof(value), &problem));
    MUST(answer(s, first).status == VGPU_OK);
    GOOD(vgpu_copy_out(s, &got, address, sizeof(got), &problem));
    MUST(got == value);
}

static unsigned answered, place_of_first;

static void note_place(struct vgpu_session *s, const struct vgpu_result *result, void *context)
{
    (void)s;
    MUST(result->status == VGPU_OK);
    answered++;
    if (context)
        place_of_first = answered;
}

/* More than a ring overtakes one that takes long: up to a ring's length, and no further. */
static void overtake(struct vgpu_session *s)
{
    struct vgpu_descriptor set_one = {.opcode = VGPU_OP_SET, .stream = 2};
    struct vgpu_descriptor wait = {.opcode = VGPU_OP_STREAM_SYNC, .object = {.handle = 1}};

    set_one.set.address = allocate(s, 4096);
    set_one.set.width = 4;
    set_one.set.count = 1;
    GOOD(vgpu_stream_create(s, 1, &problem));
    GOOD(vgpu_stream_create(s, 2, &problem));
    launch(s, 1, "spin_us", 300000, 0, 0, 0, 1);
    GOOD(vgpu_submit(s, &wait, note_place, &wait, NULL, &problem));
    for (int i = 0; i < 3000; i++)
        GOOD(vgpu_submit(s, &set_one, note_place, NULL, NULL, &problem));
    GOOD(vgpu_wait_all(s, VGPU_FOREVER, &problem));
    MUST(answered == 3001);
    MUST(place_of_first > 1 && place_of_first <= VGPU_RING_ENTRIES + 1);
    printf("%u\n", place_of_first);
}

/* Streams that take long keep no other's end from being seen. */
static void many_streams(struct vgpu_session *s)
{
    struct vgpu_descriptor wait = {.opcode = VGPU_OP_STREAM_SYNC};
    static const unsigned count = 12;

    launch(s, 0, "spin_us", 1, 0, 0, 0, 1);
    GOOD(vgpu_device_sync(s, &problem));
    answered = place_of_first = 0;
    for (unsigned i = 1; i <= count; i++)
        GOOD(vgpu_stream_create(s, i, &problem));
    for (unsigned i = 1; i <= count; i++) {
        launch(s, i, "spin_us", i < count ? 1000000 : 1000, 0, 0, 0, 1);
        wait.object.handle = i;
        GOOD(vgpu_submit(s, &wait, note_place, i < count ? NULL : &wait, NULL, &problem));
    }
    GOOD(vgpu_wait_all(s, VGPU_FOREVER, &problem));
    MUST(answered == count && place_of_first == 1);
}

/* What has begun ends, what has not is cancelled, each is answered once. */
static void cancel(struct vgpu_session *s)
{
    struct vgpu_descriptor spin = {.opcode = VGPU_OP_SET};
    unsigned count[VGPU_STATUS_COUNT] = {0};
    vgpu_ticket tickets[50];
    bool cancelled;

    spin.set.address = allocate(s, 4096);
    spin.set.width = 4;
    spin.set.count = 1;
    vgpu_batch_begin(s);
    for (int i = 0; i < 50; i++) {
        launch(s, 0, "spin_us", 10000, 0, 0, 0, 1);
        tickets[i] = submit(s, &spin);
    }
    vgpu_batch_end(s);
    MUST(answer(s, tickets[0]).status == VGPU_OK);
    GOOD(vgpu_cancel(s, tickets[49], &cancelled, &problem));
    for (int i = 1; i < 50; i++)
        count[answer(s, tickets[i]).status]++;
    MUST(count[VGPU_OK] + count[VGPU_CANCELLED] == 49 && count[VGPU_CANCELLED] == cancelled);
}

/* What is freed before is there for who comes next. */
static void free_then_allocate(struct vgpu_session *s)
{
    struct vgpu_descriptor release = {.opcode = VGPU_OP_FREE};
    struct vgpu_descriptor ask = {.opcode = VGPU_OP_ALLOC};
    vgpu_ticket ticket;

    GOOD(vgpu_query(s, VGPU_QUERY_MEMORY_BYTES, &ask.alloc.bytes, &problem));
    release.free.address = allocate(s, ask.alloc.bytes);
    for (int round = 0; round < 5; round++) {
        struct vgpu_result result;

        vgpu_batch_begin(s);
        launch(s, 0, "spin_us", 2000, 0, 0, 0, 1);
        submit(s, &release);
        ticket = submit(s, &ask);
        vgpu_batch_end(s);
        result = answer(s, ticket);
        MUST(result.status == VGPU_OK);
        release.free.address = result.value;
    }
}

/* With the second clearing that fails. */
static void uncleared(struct vgpu_session *s)
{
    uint64_t bytes = 4 << 20, address = allocate(s, bytes);
    uint8_t *data = malloc(bytes);

    MUST(data);
    memset(data, 0xa5, bytes);
    GOOD(vgpu_copy_in(s, address, data, bytes, &problem));
    GOOD(vgpu_reset(s, &problem));
    MUST(vgpu_memory_alloc(s, bytes, &address, &problem) == -1);
    address = allocate(s, bytes);
    GOOD(vgpu_copy_out(s, data, address, bytes, &problem));
    for (uint64_t i = 0; i < bytes; i++)
        MUST(data[i] == 0);
    free(data);
}

/* On a device that has 32 MiB, less than the session may have. */
static void device_full(struct vgpu_session *s)
{
    uint64_t addresses[8], more, count = 0;

    MUST(free_bytes(s) > 64 << 20);
    while (count < 8 && vgpu_memory_alloc(s, 8 << 20, &addresses[count], &problem) == 0)
        count++;
    MUST(count == 4 && problem.status == VGPU_OUT_OF_MEMORY);
    FAILS(vgpu_memory_alloc(s, 1, &more, &problem), VGPU_OUT_OF_MEMORY);
    GOOD(vgpu_memory_set(s, addresses[3], 1, 4, 1000, &problem));
    GOOD(vgpu_memory_free(s, addresses[0], &problem));
    FAILS(vgpu_memory_alloc(s, 16 << 20, &more, &problem), VGPU_OUT_OF_MEMORY);
    GOOD(vgpu_memory_free(s, addresses[1], &problem));
    allocate(s, 16 << 20); /* spares go to the driver for it */
    GOOD(vgpu_device_sync(s, &problem));
}

/* --- with faults in the driver ------------------------------------------------------------- */

/* The test says when to go on. */
static void stop(const char *word)
{
    char line[16];

    printf("%s\n", word);
    MUST(fflush(stdout) == 0 && fgets(line, sizeof(line), stdin));
}

/* The load gets a code that no table has, and the context does not work any more. */
static void odd_code_of_a_loss(struct vgpu_session *s)
{
    allocate(s, 4096);
    stop("ready");
    FAILS(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem),
          VGPU_KERNEL_FAULT);
    FAILS(vgpu_device_sync(s, &problem), VGPU_DEVICE_LOST); /* told once */
    GOOD(vgpu_reset(s, &problem));
    set(s);
}

/* A load that never ends, behind a kernel that does. */
static void blocked(struct vgpu_session *s)
{
    struct vgpu_descriptor wait = {.opcode = VGPU_OP_STREAM_SYNC, .object = {.handle = 1}};
    vgpu_ticket ticket;

    launch(s, 0, "spin_us", 1, 0, 0, 0, 1);
    GOOD(vgpu_stream_create(s, 1, &problem));
    GOOD(vgpu_device_sync(s, &problem));
    stop("ready");
    launch(s, 1, "spin_us", 300000, 0, 0, 0, 1);
    ticket = submit(s, &wait);
    FAILS(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem), VGPU_TIME_LIMIT);
    MUST(answer(s, ticket).status == VGPU_DEVICE_LOST);
}

static bool is_told(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};

    return poll(&input, 1, 0) > 0;
}

/* An error is an answer, too: of the operation, not of the library. */
#define ATTEMPT(call) MUST((call) >= 0 || is_of_operation())

static bool is_of_operation(void)
{
    return problem.status > VGPU_OK && problem.status < VGPU_STATUS_COUNT;
}

static void attempt_launch(struct vgpu_session *s, uint32_t stream, uint64_t address)
{
    const uint64_t parameters[] = {address, 1};

    ATTEMPT(vgpu_launch(s, stream, "increment", one, one, parameters, 2, &problem));
}

static void attempt_memory(struct vgpu_session *s, uint64_t a, uint64_t b)
{
    char data[4096] = "";

    ATTEMPT(vgpu_copy_in(s, a, data, sizeof(data), &problem));
    ATTEMPT(vgpu_memory_set(s, b, 1, 1, 3, &problem));
    ATTEMPT(vgpu_memory_set(s, b, 1, 2, 3, &problem));
    ATTEMPT(vgpu_memory_set(s, b, 1, 4, 3, &problem));
    ATTEMPT(vgpu_copy(s, b, a, sizeof(data), &problem));
    ATTEMPT(vgpu_copy(s, a + 16, a, sizeof(data), &problem));
    ATTEMPT(vgpu_copy_out(s, data, b, sizeof(data), &problem));
}

static void attempt_streams(struct vgpu_session *s, uint64_t a)
{
    uint64_t ns;

    for (uint32_t i = 1; i <= 2; i++) {
        ATTEMPT(vgpu_stream_create(s, i, &problem));
        ATTEMPT(vgpu_event_create(s, i, &problem));
        attempt_launch(s, i, a);
        ATTEMPT(vgpu_event_record(s, i, i, &problem));
    }
    ATTEMPT(vgpu_stream_wait(s, 2, 1, &problem));
    for (int i = 0; i < 100; i++)
        attempt_launch(s, (uint32_t)i % 3, a);
    ATTEMPT(vgpu_stream_sync(s, 2, &problem));
    ATTEMPT(vgpu_event_sync(s, 1, &problem));
    ATTEMPT(vgpu_event_elapsed_ns(s, 1, 2, &ns, &problem));
    ATTEMPT(vgpu_device_sync(s, &problem));
    for (uint32_t i = 1; i <= 2; i++) {
        ATTEMPT(vgpu_stream_destroy(s, i, &problem));
        ATTEMPT(vgpu_event_destroy(s, i, &problem));
    }
}

static void attempt_module(struct vgpu_session *s, uint64_t a)
{
    const uint64_t parameters[] = {a, 5};

    ATTEMPT(vgpu_module_load(s, HANDLE, store_ptx, sizeof(store_ptx) - 1, &problem));
    for (uint32_t shared_bytes = 0; shared_bytes <= 150000; shared_bytes += 50000)
        ATTEMPT(vgpu_launch_kernel(s, 0, HANDLE, "store", one, one, shared_bytes, parameters,
                                   sizeof(parameters), &problem));
    ATTEMPT(vgpu_device_sync(s, &problem));
    ATTEMPT(vgpu_module_unload(s, HANDLE, &problem));
}

static void count_answer(struct vgpu_session *s, const struct vgpu_result *result, void *context)
{
    (void)s;
    MUST(result->status < VGPU_STATUS_COUNT);
    ++*(unsigned *)context;
}

/* Many in flight: each is answered once. */
static void attempt_many(struct vgpu_session *s, uint64_t a)
{
    static unsigned counts[300];
    struct vgpu_descriptor operation = {.opcode = VGPU_OP_SET};

    memset(counts, 0, sizeof(counts));
    operation.set.address = a;
    operation.set.width = 4;
    operation.set.count = 1;
    vgpu_batch_begin(s);
    for (unsigned i = 0; i < 300; i++)
        GOOD(vgpu_submit(s, &operation, count_answer, &counts[i], NULL, &problem));
    vgpu_batch_end(s);
    GOOD(vgpu_wait_all(s, VGPU_FOREVER, &problem));
    for (unsigned i = 0; i < 300; i++)
        MUST(counts[i] == 1);
}

static void attempt_device(struct vgpu_session *s)
{
    uint64_t small = 0, big = 0, huge = 0;
    char text[1024];

    ATTEMPT(vgpu_memory_alloc(s, 100000, &small, &problem));
    ATTEMPT(vgpu_memory_alloc(s, 3 << 20, &big, &problem));
    attempt_memory(s, small, big);
    attempt_streams(s, small);
    attempt_module(s, big);
    attempt_many(s, small);
    ATTEMPT(vgpu_text(s, "VECTOR_ADD", text, sizeof(text), &problem));
    ATTEMPT(vgpu_memory_free(s, big, &problem));
    ATTEMPT(vgpu_memory_alloc(s, 70 << 20, &huge, &problem));
    ATTEMPT(vgpu_memory_free(s, huge, &problem));
    ATTEMPT(vgpu_memory_alloc(s, 3 << 20, &big, &problem));
    attempt_memory(s, big, small);
    ATTEMPT(vgpu_memory_free(s, big, &problem));
    ATTEMPT(vgpu_memory_free(s, small, &problem));
}

#define MESS_BYTES (6u << 20) /* more than a chunk of what is staged */

/* What one device of two has; its stream and its event have the same number. */
struct half {
    uint32_t device, handle;
    uint64_t memory;
    uint8_t *data;
};

static void attempt_begin(struct vgpu_session *s, struct half *own, const struct half *other)
{
    (void)other;
    ATTEMPT(vgpu_memory_alloc(s, MESS_BYTES, &own->memory, &problem));
    ATTEMPT(vgpu_stream_create(s, own->handle, &problem));
    ATTEMPT(vgpu_event_create(s, own->handle, &problem));
}

static void attempt_copies(struct vgpu_session *s, struct half *own, const struct half *other)
{
    ATTEMPT(vgpu_copy_in(s, own->memory, own->data, MESS_BYTES, &problem));
    ATTEMPT(vgpu_copy(s, own->memory, other->memory, 4096, &problem));
    ATTEMPT(vgpu_copy(s, other->memory, own->memory, MESS_BYTES, &problem));
    ATTEMPT(vgpu_copy_out(s, own->data, own->memory, MESS_BYTES, &problem));
}

static void attempt_order(struct vgpu_session *s, struct half *own, const struct half *other)
{
    attempt_launch(s, own->handle, own->memory);
    ATTEMPT(vgpu_event_record(s, own->handle, own->handle, &problem));
    ATTEMPT(vgpu_stream_wait(s, own->handle, other->handle, &problem));
    attempt_launch(s, own->handle, own->memory);
    ATTEMPT(vgpu_stream_sync(s, other->handle, &problem));
    ATTEMPT(vgpu_device_sync(s, &problem));
}

static void attempt_command(struct vgpu_session *s, struct half *own, const struct half *other)
{
    char text[1024];

    (void)own;
    (void)other;
    ATTEMPT(vgpu_text(s, "VECTOR_ADD", text, sizeof(text), &problem));
}

static void attempt_end(struct vgpu_session *s, struct half *own, const struct half *other)
{
    (void)other;
    ATTEMPT(vgpu_stream_destroy(s, own->handle, &problem));
    ATTEMPT(vgpu_event_destroy(s, own->handle, &problem));
    ATTEMPT(vgpu_memory_free(s, own->memory, &problem));
}

/* The devices in turn. */
static void attempt_both(struct vgpu_session *s)
{
    static void (*const steps[])(struct vgpu_session *, struct half *, const struct half *) = {
        attempt_begin, attempt_copies, attempt_order, attempt_command, attempt_end,
    };
    struct half halves[2] = {{.device = 0, .handle = 1}, {.device = 1, .handle = 2}};
    uint8_t *data = calloc(1, MESS_BYTES);

    MUST(data != NULL);
    halves[0].data = halves[1].data = data;
    for (size_t step = 0; step < sizeof(steps) / sizeof(steps[0]); step++) {
        for (unsigned i = 0; i < 2; i++) {
            GOOD(vgpu_device_set(s, halves[i].device, &problem));
            steps[step](s, &halves[i], &halves[1 - i]);
        }
    }
    free(data);
}

static void attempt_all(struct vgpu_session *s, uint32_t devices)
{
    for (uint32_t device = 0; device < devices; device++) {
        GOOD(vgpu_device_set(s, device, &problem));
        attempt_device(s);
    }
    if (devices == 2)
        attempt_both(s);
}

/* Until there is a device for it again. */
static void begin_anew(struct vgpu_session *s)
{
    while (vgpu_reset(s, &problem) < 0) {
        MUST(problem.status == VGPU_DEVICE_LOST || problem.status == VGPU_REFUSED);
        usleep(5000);
    }
}

/* Everything, whatever fails; then all is as ever. */
static void mess(struct vgpu_session *s)
{
    uint32_t devices;

    GOOD(vgpu_device_count(s, &devices, &problem));
    stop("open");
    attempt_all(s, devices);
    stop("done");
    begin_anew(s);
    for (uint32_t device = 0; device < devices; device++) {
        GOOD(vgpu_device_set(s, device, &problem));
        set(s);
    }
    modules(s);
}

/* Something of each kind, of which only the memory is left. */
static uint64_t attempt_and_keep(struct vgpu_session *s)
{
    char data[4096] = "";
    uint64_t address = 0;

    ATTEMPT(vgpu_memory_alloc(s, 3 << 20, &address, &problem));
    ATTEMPT(vgpu_copy_in(s, address, data, sizeof(data), &problem));
    attempt_streams(s, address);
    attempt_module(s, address);
    return address;
}

/* Twice; between them nothing is left, and the contexts may be given up. */
static void rests(struct vgpu_session *s)
{
    uint64_t addresses[2];
    uint32_t devices;

    GOOD(vgpu_device_count(s, &devices, &problem));
    MUST(devices <= 2);
    for (int round = 0; round < 2; round++) {
        for (uint32_t device = 0; device < devices; device++) {
            GOOD(vgpu_device_set(s, device, &problem));
            addresses[device] = attempt_and_keep(s);
        }
        stop("full");
        for (uint32_t device = 0; device < devices; device++)
            ATTEMPT(vgpu_memory_free(s, addresses[device], &problem));
        stop("empty");
    }
    begin_anew(s);
    for (uint32_t device = 0; device < devices; device++) {
        GOOD(vgpu_device_set(s, device, &problem));
        set(s);
    }
}

/* One round of a program that wants no fault: refused it may be, while the GPU is checked. */
static int try_round(struct vgpu_session *s)
{
    uint64_t parameters[] = {0, 1}, value = 0;
    int result = vgpu_memory_alloc(s, 8, &parameters[0], &problem);

    if (result == 0)
        result = vgpu_memory_set(s, parameters[0], 0, 4, 2, &problem);
    if (result == 0)
        result = vgpu_launch(s, 0, "increment", one, one, parameters, 2, &problem);
    if (result == 0)
        result = vgpu_device_sync(s, &problem);
    if (result == 0)
        result = vgpu_copy_out(s, &value, parameters[0], 8, &problem);
    MUST(result < 0 || value == 1);
    if (result == 0)
        result = vgpu_memory_free(s, parameters[0], &problem);
    return result;
}

/* What another VM's session does meanwhile. */
static void neighbour(struct vgpu_session *s)
{
    unsigned long good = 0, refused = 0;

    stop("open");
    while (getppid() != 1 && !is_told()) {
        if (try_round(s) == 0) {
            good++;
        } else {
            MUST(problem.status == VGPU_REFUSED);
            refused++;
        }
        usleep(1000);
    }
    printf("%lu %lu\n", good, refused);
}

/* --- several devices ------------------------------------------------------------------- */

#define WORDS 4096u

static void must_have(struct vgpu_session *s, uint64_t address, uint32_t value)
{
    uint32_t words[WORDS];

    memset(words, 0, sizeof(words));
    GOOD(vgpu_copy_out(s, words, address, sizeof(words), &problem));
    for (unsigned i = 0; i < WORDS; i++)
        MUST(words[i] == value);
}

static void fill_device(struct vgpu_session *s, uint64_t address, uint32_t value)
{
    const uint64_t parameters[] = {address, value, WORDS};

    GOOD(vgpu_launch(s, 0, "fill", one, one, parameters, 3, &problem));
    GOOD(vgpu_device_sync(s, &problem));
}

/* Each of two devices has what is its own, and one is copied to the other. */
static void devices(struct vgpu_session *s)
{
    const struct vgpu_descriptor raw = {.opcode = VGPU_OP_PING, .device = 2};
    struct vgpu_result result;
    uint64_t addresses[2];
    vgpu_ticket ticket;
    uint32_t count = 0;

    GOOD(vgpu_device_count(s, &count, &problem));
    MUST(count == 2 && vgpu_device(s) == 0);
    for (uint32_t device = 0; device < 2; device++) {
        GOOD(vgpu_device_set(s, device, &problem));
        addresses[device] = allocate(s, WORDS * sizeof(uint32_t));
        fill_device(s, addresses[device], 100 + device);
        GOOD(vgpu_stream_create(s, 1 + device, &problem));
        GOOD(vgpu_event_create(s, 1 + device, &problem));
        GOOD(vgpu_event_record(s, 1 + device, 1 + device, &problem));
    }
    for (uint32_t device = 0; device < 2; device++) {
        GOOD(vgpu_device_set(s, device, &problem));
        must_have(s, addresses[device], 100 + device);
        FAILS(vgpu_memory_set(s, addresses[1 - device], 0, 4, 1, &problem), VGPU_BAD_ADDRESS);
        GOOD(vgpu_stream_wait(s, 1 + device, 2 - device, &problem));
        GOOD(vgpu_stream_sync(s, 2 - device, &problem));
    }
    GOOD(vgpu_copy(s, addresses[0], addresses[1], WORDS * sizeof(uint32_t), &problem));
    GOOD(vgpu_device_set(s, 0, &problem));
    must_have(s, addresses[0], 101);
    GOOD(vgpu_submit(s, &raw, NULL, NULL, &ticket, &problem));
    GOOD(vgpu_wait(s, ticket, VGPU_FOREVER, &result, &problem));
    MUST(result.status == VGPU_BAD_HANDLE);
    FAILS(vgpu_device_set(s, VGPU_SESSION_DEVICES_MAX, &problem), VGPU_PROBLEM_ARGUMENT);
    GOOD(vgpu_device_set(s, 7, &problem));
    FAILS(vgpu_ping(s, &problem), VGPU_BAD_HANDLE);
    GOOD(vgpu_device_count(s, &count, &problem));
    MUST(count == 2 && vgpu_device(s) == 7);
    GOOD(vgpu_reset(s, &problem));
    MUST(vgpu_device(s) == 0);
    GOOD(vgpu_ping(s, &problem));
}

static void launch_together(struct vgpu_session *s, uint64_t a)
{
    vgpu_batch_begin(s);
    for (int i = 0; i < LAUNCHES; i++)
        launch(s, 0, "increment", a, 1, 0, 0, 2);
    vgpu_batch_end(s);
    GOOD(vgpu_stream_sync(s, 0, &problem));
}

/* Launches in a row, once the worker has learnt how long they take. */
static void launches(struct vgpu_session *s)
{
    uint64_t a = allocate(s, 8);

    launch_together(s, a);
    stop("ready");
    launch_together(s, a);
    stop("done");
}

static const struct {
    const char *name;
    void (*run)(struct vgpu_session *session);
} behaviours[] = {
    {"devices", devices},
    {"info", info},
    {"memory", memory},
    {"granules", granules},
    {"copies", copies},
    {"overlap", overlap},
    {"overlap_big", overlap_big},
    {"overlap_streams", overlap_streams},
    {"set", set},
    {"kernels", kernels},
    {"repeats", repeats},
    {"streams", streams},
    {"events", events},
    {"modules", modules},
    {"large_module", large_module},
    {"parameters", parameters},
    {"sync", apart},
    {"order", order},
    {"reset", reset},
    {"many", many},
    {"text", text},
    {"fault", fault},
    {"late_fault", late_fault},
    {"odd_codes", odd_codes},
    {"odd_code_of_a_loss", odd_code_of_a_loss},
    {"endless", endless},
    {"free_in_flight", free_in_flight},
    {"late_event", late_event},
    {"two_small", two_small},
    {"uncleared", uncleared},
    {"free_then_allocate", free_then_allocate},
    {"mess", mess},
    {"rests", rests},
    {"overtake", overtake},
    {"many_streams", many_streams},
    {"blocked", blocked},
    {"cancel", cancel},
    {"device_full", device_full},
    {"neighbour", neighbour},
    {"launches", launches},
};

int main(int argc, char **argv)
{
    struct vgpu_session *session;

    for (size_t i = 0; argc == 2 && i < sizeof(behaviours) / sizeof(behaviours[0]); i++) {
        if (strcmp(argv[1], behaviours[i].name) != 0)
            continue;
        GOOD(vgpu_open(NULL, &session, &problem));
        behaviours[i].run(session);
        vgpu_close(session);
        return 0;
    }
    fprintf(stderr, "cuda_probe: no such behaviour\n");
    return 2;
}

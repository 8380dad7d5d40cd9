/* SPDX-License-Identifier: Apache-2.0 */
/* Every operation of a window session, right and wrong, as a guest sees it: in a real
 * worker, confined as in service. */
#include "session_bench.h"

#include <math.h>

static uint32_t status_of(struct bench *bench, struct vgpu_descriptor descriptor)
{
    return guest_run(bench, descriptor).status;
}

#define EXPECT(bench, wanted, ...)                                                                 \
    assert_int_equal(status_of(bench, (struct vgpu_descriptor){__VA_ARGS__}), wanted)

static uint64_t alloc(struct bench *bench, uint64_t bytes)
{
    struct vgpu_completion completion =
        guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_ALLOC, .alloc.bytes = bytes});

    assert_int_equal(completion.status, VGPU_OK);
    assert_int_equal(completion.result % 256, 0);
    assert_true(completion.result >= bench->host->device_base);
    return completion.result;
}

static void copy_in(struct bench *bench, uint64_t target, const void *data, uint64_t bytes)
{
    memcpy(bench->slot + HEAP, data, bytes);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_COPY_IN,
           .copy = {.target = target, .source = HEAP, .bytes = bytes});
}

static const void *copy_out(struct bench *bench, uint64_t source, uint64_t bytes)
{
    memset(bench->slot + HEAP, 0xee, bytes);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_COPY_OUT,
           .copy = {.target = HEAP, .source = source, .bytes = bytes});
    return bench->slot + HEAP;
}

/* --- all alike ------------------------------------------------------------------------------ */

static void what_is_no_operation_is_refused(void **state)
{
    struct bench *bench = *state;
    const uint16_t opcodes[] = {VGPU_OP_NONE, 6, 15, 22, 43, 52, 255, 256, UINT16_MAX};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(opcodes); i++)
        EXPECT(bench, VGPU_BAD_OPCODE, .opcode = opcodes[i]);
    EXPECT(bench, VGPU_INVALID, .opcode = VGPU_OP_PING, .flags = 0x80);
    EXPECT(bench, VGPU_INVALID, .opcode = VGPU_OP_PING, .words = {0, 0, 0, 0, 0, 1});
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_PING, .device = 1);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_PING, .stream = 77);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_PING);
}

static void the_device_says_what_it_is(void **state)
{
    struct bench *bench = *state;
    static const struct {
        uint32_t attribute;
        uint64_t value;
    } known[] = {{VGPU_QUERY_MEMORY_BYTES, DEVICE_BYTES},
                 {VGPU_QUERY_MEMORY_FREE_BYTES, DEVICE_BYTES},
                 {VGPU_QUERY_BACKEND, VGPU_BACKEND_CPU},
                 {VGPU_QUERY_OPERATION_LIMIT_MS, LIMIT_MS},
                 {VGPU_QUERY_DEVICES, 1}};
    struct vgpu_descriptor query = {.opcode = VGPU_OP_QUERY};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(known); i++) {
        query.query.attribute = known[i].attribute;
        assert_int_equal(guest_run(bench, query).result, known[i].value);
    }
    query.query.attribute = VGPU_QUERY_MULTIPROCESSORS;
    assert_int_equal(guest_run(bench, query).result, sysconf(_SC_NPROCESSORS_ONLN));
    query.query.attribute = 99;
    assert_int_equal(status_of(bench, query), VGPU_INVALID);
}

/* --- text ------------------------------------------------------------------------------------ */

static void expect_text(struct bench *bench, const char *command, uint32_t status,
                        const char *answer)
{
    struct vgpu_completion completion;

    memset(bench->slot + TEXT_ANSWER, '#', VGPU_TEXT_MAX_BYTES);
    completion = guest_run(bench, text(bench, command));
    assert_int_equal(completion.status, status);
    assert_int_equal(bench->slot[TEXT_ANSWER + completion.result], '#');
    bench->slot[TEXT_ANSWER + completion.result] = '\0';
    assert_non_null(strstr((const char *)bench->slot + TEXT_ANSWER, answer));
}

static void text_commands_answer_as_through_files(void **state)
{
    struct bench *bench = *state;

    expect_text(bench, "PING", VGPU_OK, "PONG");
    expect_text(bench, "VECTOR_ADD 3 4", VGPU_OK, "3 + 4 = 7");
    expect_text(bench, "VECTOR_ADD", VGPU_OK, "");
    expect_text(bench, "MATRIX_MUL 32", VGPU_OK, "");
    expect_text(bench, "GPU_INFO", VGPU_OK, "CPU backend: ");
    expect_text(bench, "SPIN 1", VGPU_OK, "Spun 1 ms");
    expect_text(bench, "TEST_X", VGPU_OK, "TEST_X");
    expect_text(bench, "NONSENSE", VGPU_COMMAND_FAILED, "VECTOR_ADD");
}

static void a_long_answer_is_cut_to_its_room(void **state)
{
    struct bench *bench = *state;
    struct vgpu_descriptor descriptor = text(bench, "NONSENSE");
    struct vgpu_completion completion;

    memset(bench->slot + TEXT_ANSWER, '#', 16);
    descriptor.text.answer_bytes = 5;
    completion = guest_run(bench, descriptor);
    assert_int_equal(completion.result, 5);
    assert_int_not_equal(bench->slot[TEXT_ANSWER + 4], '#');
    assert_int_equal(bench->slot[TEXT_ANSWER + 5], '#');
    descriptor.text.answer_bytes = 0;
    assert_int_equal(guest_run(bench, descriptor).result, 0);
}

static void texts_outside_of_arena_and_heap_are_refused(void **state)
{
    struct bench *bench = *state;
    const struct vgpu_descriptor good = text(bench, "PING");
    const uint64_t offsets[] = {
        0,          VGPU_SLOT_HOST, ARENA - 1, bench->slot_bytes - 3, bench->slot_bytes,
        UINT64_MAX, UINT64_MAX - 3, 1ull << 63};
    struct vgpu_descriptor bad;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(offsets); i++) {
        bad = good;
        bad.text.command_offset = offsets[i];
        assert_int_equal(status_of(bench, bad), VGPU_BAD_ADDRESS);
        bad = good;
        bad.text.answer_offset = offsets[i];
        assert_int_equal(status_of(bench, bad), VGPU_BAD_ADDRESS);
    }
    bad = good;
    bad.text.answer_bytes = UINT32_MAX;
    assert_int_equal(status_of(bench, bad), VGPU_BAD_ADDRESS);
    bad = good;
    bad.text.command_bytes = 0;
    assert_int_equal(status_of(bench, bad), VGPU_INVALID);
    bad.text.command_bytes = VGPU_TEXT_MAX_BYTES + 1;
    assert_int_equal(status_of(bench, bad), VGPU_INVALID);
    bad.text.command_bytes = 8; /* "PING" and NULs */
    assert_int_equal(status_of(bench, bad), VGPU_INVALID);
}

/* --- memory ---------------------------------------------------------------------------------- */

static void memory_is_empty_when_it_comes_and_holds_what_is_copied(void **state)
{
    struct bench *bench = *state;
    uint64_t a = alloc(bench, 10000), b = alloc(bench, 10000);
    uint8_t data[10000], zeros[10000] = {0};

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7);
    assert_memory_equal(copy_out(bench, a, sizeof(data)), zeros, sizeof(data));
    copy_in(bench, a, data, sizeof(data));
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_COPY,
           .copy = {.target = b + 1, .source = a, .bytes = 9999});
    assert_memory_equal(copy_out(bench, b + 1, 9999), data, 9999);
    /* overlapping, as memmove(3) */
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_COPY,
           .copy = {.target = a + 100, .source = a, .bytes = 9000});
    assert_memory_equal(copy_out(bench, a + 100, 9000), data, 9000);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_FREE, .free.address = a);
    a = alloc(bench, 10000); /* the same place, and empty again */
    assert_memory_equal(copy_out(bench, a, sizeof(data)), zeros, sizeof(data));
}

static void device_memory_has_an_exact_limit(void **state)
{
    struct bench *bench = *state;
    const struct vgpu_descriptor one = {.opcode = VGPU_OP_ALLOC, .alloc.bytes = 1};
    uint64_t most = alloc(bench, DEVICE_BYTES - 1), last = alloc(bench, 1);

    assert_int_equal(status_of(bench, one), VGPU_OUT_OF_MEMORY);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_FREE, .free.address = last);
    assert_int_equal(status_of(bench, one), VGPU_OK);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_FREE, .free.address = most);
    EXPECT(bench, VGPU_INVALID, .opcode = VGPU_OP_ALLOC, .alloc.bytes = 0);
    EXPECT(bench, VGPU_OUT_OF_MEMORY, .opcode = VGPU_OP_ALLOC, .alloc.bytes = UINT64_MAX);
    EXPECT(bench, VGPU_OUT_OF_MEMORY, .opcode = VGPU_OP_ALLOC, .alloc.bytes = DEVICE_BYTES);
    alloc(bench, DEVICE_BYTES - 1);
}

static void allocations_have_a_bound_in_number(void **state)
{
    struct bench *bench = *state;
    uint64_t address = 0;
    uint32_t status = VGPU_OK, count;

    for (count = 0; count < 10000 && status == VGPU_OK; count++) {
        struct vgpu_completion completion =
            guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_ALLOC, .alloc.bytes = 1});

        status = completion.status;
        if (status == VGPU_OK)
            address = completion.result;
    }
    assert_int_equal(status, VGPU_TOO_MANY);
    assert_int_equal(count, 4097);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_FREE, .free.address = address);
    alloc(bench, 1);
}

static void addresses_that_were_not_allocated_are_refused(void **state)
{
    struct bench *bench = *state;
    uint64_t a = alloc(bench, 1000);
    const uint64_t bad[] = {0,
                            1,
                            a - 1,
                            a + 1,
                            a + 1000,
                            bench->host->device_base - 4096,
                            UINT64_MAX,
                            UINT64_MAX - 999,
                            (uint64_t)(uintptr_t)bench->slot};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_FREE, .free.address = bad[i]);
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_SET,
               .set = {.address = bad[i], .count = 1000, .width = 1});
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_COPY_IN,
               .copy = {.target = bad[i], .source = HEAP, .bytes = 1000});
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_COPY_OUT,
               .copy = {.target = HEAP, .source = bad[i], .bytes = 1000});
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_COPY,
               .copy = {.target = a, .source = bad[i], .bytes = 1000});
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_COPY,
               .copy = {.target = bad[i], .source = a, .bytes = 1000});
    }
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_FREE, .free.address = a);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_FREE, .free.address = a);
}

static void copies_beyond_the_slot_are_refused(void **state)
{
    struct bench *bench = *state;
    uint64_t a = alloc(bench, 1000);
    const uint64_t bad[] = {0, VGPU_SLOT_SQ, ARENA - 1, bench->slot_bytes - 999, UINT64_MAX - 10};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_COPY_IN,
               .copy = {.target = a, .source = bad[i], .bytes = 1000});
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_COPY_OUT,
               .copy = {.target = bad[i], .source = a, .bytes = 1000});
    }
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_COPY_IN,
           .copy = {.target = a, .source = bench->slot_bytes - 1000, .bytes = 1000});
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_COPY); /* nothing, from nowhere */
}

static void set_fills_elements_of_one_two_and_four_bytes(void **state)
{
    struct bench *bench = *state;
    uint64_t a = alloc(bench, 4096);
    static const uint8_t wanted[12] = {0x78, 0x78, 0x78, 0x78, 0x78, 0x56,
                                       0x78, 0x56, 0x78, 0x56, 0x34, 0x12};

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_SET,
           .set = {.address = a, .count = 4, .value = 0x12345678, .width = 1});
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_SET,
           .set = {.address = a + 4, .count = 2, .value = 0x12345678, .width = 2});
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_SET,
           .set = {.address = a + 8, .count = 1, .value = 0x12345678, .width = 4});
    assert_memory_equal(copy_out(bench, a, sizeof(wanted)), wanted, sizeof(wanted));
    EXPECT(bench, VGPU_INVALID, .opcode = VGPU_OP_SET,
           .set = {.address = a, .count = 1, .width = 3});
    EXPECT(bench, VGPU_INVALID, .opcode = VGPU_OP_SET,
           .set = {.address = a, .count = 1, .width = 0});
    EXPECT(bench, VGPU_INVALID, .opcode = VGPU_OP_SET,
           .set = {.address = a + 1, .count = 1, .width = 2});
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_SET,
           .set = {.address = a, .count = 1ull << 62, .width = 4});
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_SET,
           .set = {.address = a, .count = 1025, .width = 4});
}

/* --- kernels -----------------------------------------------------------------------------------
 */

static struct vgpu_descriptor launch(struct bench *bench, const char *name,
                                     const uint64_t *parameters, uint32_t count)
{
    memcpy(bench->slot + ARENA, name, strlen(name));
    memcpy(bench->slot + ARENA + 1024, parameters, count * sizeof(*parameters));
    return (struct vgpu_descriptor){.opcode = VGPU_OP_LAUNCH,
                                    .launch = {.name_offset = ARENA,
                                               .name_bytes = (uint32_t)strlen(name),
                                               .parameters_offset = ARENA + 1024,
                                               .parameters_bytes = count * 8,
                                               .grid = {1, 1, 1},
                                               .block = {1, 1, 1}}};
}

#define LAUNCH(bench, name, ...)                                                                   \
    ({                                                                                             \
        const uint64_t parameters_[] = {__VA_ARGS__};                                              \
        status_of(bench, launch(bench, name, parameters_, VGPU_ARRAY_LENGTH(parameters_)));        \
    })

static uint64_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static void built_in_kernels_compute(void **state)
{
    struct bench *bench = *state;
    const float x[4] = {1, 2, 3, 4}, y[4] = {10, 20, 30, 40};
    uint64_t a = alloc(bench, 16), b = alloc(bench, 16), c = alloc(bench, 16);
    const float *floats;
    const uint64_t *words;

    copy_in(bench, a, x, sizeof(x));
    copy_in(bench, b, y, sizeof(y));
    assert_int_equal(LAUNCH(bench, "vector_add", c, a, b, 4), VGPU_OK);
    floats = copy_out(bench, c, 16);
    assert_memory_equal(floats, ((const float[]){11, 22, 33, 44}), 16);
    assert_int_equal(LAUNCH(bench, "saxpy", b, a, bits_of(2), 4), VGPU_OK);
    floats = copy_out(bench, b, 16);
    assert_memory_equal(floats, ((const float[]){12, 24, 36, 48}), 16);
    assert_int_equal(LAUNCH(bench, "matrix_mul", c, a, a, 2), VGPU_OK);
    floats = copy_out(bench, c, 16);
    assert_memory_equal(floats, ((const float[]){7, 10, 15, 22}), 16);
    assert_int_equal(LAUNCH(bench, "reduce_sum", c, a, 4), VGPU_OK);
    assert_memory_equal(copy_out(bench, c, 8), &(const double){10}, 8);
    assert_int_equal(LAUNCH(bench, "fill", c, 0xabcd, 4), VGPU_OK);
    assert_int_equal(((const uint32_t *)copy_out(bench, c, 16))[3], 0xabcd);
    assert_int_equal(LAUNCH(bench, "increment", c, 2), VGPU_OK);
    words = copy_out(bench, c, 16);
    assert_int_equal(words[1], 0x0000abcd0000abceull);
    assert_int_equal(LAUNCH(bench, "spin_us", 1), VGPU_OK);
}

static void a_launch_that_lasts_is_measured(void **state)
{
    struct bench *bench = *state;
    const uint64_t us = 3000;
    struct vgpu_completion completion = guest_run(bench, launch(bench, "spin_us", &us, 1));

    assert_true(completion.run_us >= us);
    exec_session_revoke(bench->session);
    WAIT_FOR(bench, bench->returned);
    assert_true(bench->used_us >= us);
}

static void kernels_stay_within_what_was_allocated(void **state)
{
    struct bench *bench = *state;
    uint64_t a = alloc(bench, 4000);
    static const char *const names[] = {"vector_add", "saxpy", "matrix_mul"};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(names); i++) {
        assert_int_equal(LAUNCH(bench, names[i], a, a, 0, 1001), VGPU_BAD_ADDRESS);
        assert_int_equal(LAUNCH(bench, names[i], 0, a, a, 10), VGPU_BAD_ADDRESS);
        assert_int_not_equal(LAUNCH(bench, names[i], a, a, a, UINT64_MAX), VGPU_OK);
        assert_int_not_equal(LAUNCH(bench, names[i], a, a, a, 1ull << 62), VGPU_OK);
        assert_int_equal(LAUNCH(bench, names[i], a + 1, a, a, 1), VGPU_BAD_ADDRESS);
    }
    assert_int_equal(LAUNCH(bench, "fill", a, 0, 1001), VGPU_BAD_ADDRESS);
    assert_int_equal(LAUNCH(bench, "increment", a, 501), VGPU_BAD_ADDRESS);
    assert_int_equal(LAUNCH(bench, "increment", a, 1ull << 61), VGPU_BAD_ADDRESS);
    assert_int_equal(LAUNCH(bench, "reduce_sum", a + 3996, a, 4), VGPU_BAD_ADDRESS);
    assert_int_equal(LAUNCH(bench, "matrix_mul", a, a, a, 2), VGPU_INVALID); /* onto itself */
    assert_int_equal(LAUNCH(bench, "spin_us", UINT64_MAX), VGPU_INVALID);
}

static void launches_that_name_nothing_are_refused(void **state)
{
    struct bench *bench = *state;
    const uint64_t us = 1;
    const struct vgpu_descriptor good = launch(bench, "spin_us", &us, 1);
    struct vgpu_descriptor bad;

    assert_int_equal(LAUNCH(bench, "no_such_kernel", 1), VGPU_NOT_FOUND);
    assert_int_equal(LAUNCH(bench, "spin_us", 1, 2), VGPU_INVALID);
    assert_int_equal(LAUNCH(bench, "spin", 1), VGPU_NOT_FOUND);
    bad = good;
    bad.launch.name_offset = HEAP; /* the arena is meant */
    assert_int_equal(status_of(bench, bad), VGPU_BAD_ADDRESS);
    bad = good;
    bad.launch.parameters_offset = HEAP - 4;
    assert_int_equal(status_of(bench, bad), VGPU_BAD_ADDRESS);
    bad = good;
    bad.launch.name_bytes = 0;
    assert_int_equal(status_of(bench, bad), VGPU_INVALID);
    bad.launch.name_bytes = VGPU_NAME_MAX_BYTES + 1;
    assert_int_equal(status_of(bench, bad), VGPU_INVALID);
    bad = good;
    bad.launch.parameters_bytes = 4;
    assert_int_equal(status_of(bench, bad), VGPU_INVALID);
    bad.launch.parameters_bytes = VGPU_PARAMETERS_MAX_BYTES + 8;
    assert_int_equal(status_of(bench, bad), VGPU_INVALID);
    bad = good;
    bad.launch.block[2] = 0;
    assert_int_equal(status_of(bench, bad), VGPU_INVALID);
    bad = good;
    bad.launch.module = 1;
    assert_int_equal(status_of(bench, bad), VGPU_NOT_SUPPORTED);
}

static void modules_are_not_supported_by_the_cpu_backend(void **state)
{
    struct bench *bench = *state;

    EXPECT(bench, VGPU_NOT_SUPPORTED, .opcode = VGPU_OP_MODULE_LOAD,
           .module = {.handle = 1, .image_offset = HEAP, .image_bytes = 100});
    EXPECT(bench, VGPU_NOT_SUPPORTED, .opcode = VGPU_OP_MODULE_UNLOAD, .object.handle = 1);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_MODULE_LOAD,
           .module = {.handle = 1, .image_offset = 1, .image_bytes = 100});
    EXPECT(bench, VGPU_NOT_SUPPORTED, .opcode = VGPU_OP_MODULE_LOAD,
           .module = {.handle = 1, .image_offset = 0, .image_bytes = 100});
    EXPECT(bench, VGPU_NOT_SUPPORTED, .opcode = VGPU_OP_MODULE_PART,
           .module = {.handle = 1, .image_offset = HEAP, .image_bytes = 1, .whole_bytes = 1});
    assert_int_equal(bench->host->features & VGPU_FEATURE_MODULES, 0);
}

/* --- streams and events ---------------------------------------------------------------------- */

static void handles_are_the_guests_to_choose(void **state)
{
    struct bench *bench = *state;
    static const uint16_t create[] = {VGPU_OP_STREAM_CREATE, VGPU_OP_EVENT_CREATE};
    static const uint16_t destroy[] = {VGPU_OP_STREAM_DESTROY, VGPU_OP_EVENT_DESTROY};

    for (int i = 0; i < 2; i++) {
        EXPECT(bench, VGPU_INVALID, .opcode = create[i], .object.handle = 0);
        EXPECT(bench, VGPU_OK, .opcode = create[i], .object.handle = UINT32_MAX);
        EXPECT(bench, VGPU_HANDLE_EXISTS, .opcode = create[i], .object.handle = UINT32_MAX);
        EXPECT(bench, VGPU_OK, .opcode = destroy[i], .object.handle = UINT32_MAX);
        EXPECT(bench, VGPU_BAD_HANDLE, .opcode = destroy[i], .object.handle = UINT32_MAX);
        EXPECT(bench, VGPU_BAD_HANDLE, .opcode = destroy[i], .object.handle = 0);
    }
}

static void handles_have_a_bound_in_number(void **state)
{
    struct bench *bench = *state;
    uint32_t handle, status = VGPU_OK;

    for (handle = 1; handle < 10000 && status == VGPU_OK; handle++)
        status = status_of(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_EVENT_CREATE,
                                                           .object.handle = handle});
    assert_int_equal(status, VGPU_TOO_MANY);
    assert_int_equal(handle - 2, 4096);
}

static void events_tell_the_time_between_them(void **state)
{
    struct bench *bench = *state;
    struct vgpu_completion elapsed;
    const struct vgpu_descriptor ask = {.opcode = VGPU_OP_EVENT_ELAPSED,
                                        .object = {.handle = 1, .other = 2}};

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_CREATE, .object.handle = 9);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_CREATE, .object.handle = 1);
    assert_int_equal(status_of(bench, ask), VGPU_BAD_HANDLE);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_CREATE, .object.handle = 2);
    assert_int_equal(status_of(bench, ask), VGPU_NOT_READY);
    /* Nothing is to be waited for where nothing was recorded, as in the CUDA driver API. */
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_QUERY, .object.handle = 1);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_SYNC, .object.handle = 1);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_WAIT, .object.handle = 1);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_RECORD, .stream = 9, .object.handle = 1);
    guest_run(bench, text(bench, "SPIN 5"));
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_RECORD, .object.handle = 2);
    elapsed = guest_run(bench, ask);
    assert_int_equal(elapsed.status, VGPU_OK);
    assert_true(elapsed.result >= 5000000);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_WAIT, .stream = 9, .object.handle = 2);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_SYNC, .object.handle = 2);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_QUERY, .object.handle = 2);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_EVENT_QUERY, .object.handle = 3);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_EVENT_SYNC, .object.handle = 3);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_STREAM_WAIT, .object.handle = 3);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_EVENT_RECORD, .object.handle = 3);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_EVENT_RECORD, .stream = 3, .object.handle = 1);
}

/* --- quiet operations ---------------------------------------------------------------------------
 */

static void quiet(struct bench *bench, struct vgpu_descriptor descriptor)
{
    descriptor.flags = VGPU_FLAG_QUIET;
    guest_submit(bench, descriptor);
}

static void a_quiet_operation_is_silent_and_done(void **state)
{
    struct bench *bench = *state;
    uint64_t a = alloc(bench, 16);

    quiet(bench,
          (struct vgpu_descriptor){.opcode = VGPU_OP_SET,
                                   .set = {.address = a, .count = 16, .value = 5, .width = 1}});
    assert_int_equal(((const uint8_t *)copy_out(bench, a, 16))[15], 5);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_DEVICE_SYNC);
}

static void its_error_is_told_by_the_next_synchronisation_of_its_stream(void **state)
{
    struct bench *bench = *state;
    const struct vgpu_descriptor bad = {.opcode = VGPU_OP_FREE, .free.address = 1};
    struct vgpu_descriptor other = bad;

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_CREATE, .object.handle = 3);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_CREATE, .object.handle = 4);
    other.stream = 3;
    quiet(bench, other);
    quiet(bench, (struct vgpu_descriptor){.opcode = 99, .stream = 3}); /* the first one counts */
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_SYNC, .object.handle = 0);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_SYNC, .object.handle = 4);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_STREAM_SYNC, .object.handle = 3);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_SYNC, .object.handle = 3);
    quiet(bench, bad);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_STREAM_SYNC, .object.handle = 0);
    quiet(bench, other);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_DEVICE_SYNC);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_DEVICE_SYNC);
    other.stream = 55; /* no such stream: somebody has to know */
    quiet(bench, other);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_DEVICE_SYNC);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_STREAM_SYNC, .object.handle = 55);
}

/* --- cancel and reset
 * ----------------------------------------------------------------------------- */

static void a_cancel_ends_all_that_has_not_begun(void **state)
{
    struct bench *bench = *state;
    struct vgpu_descriptor spin = text(bench, "SPIN 100"), one = ping();
    struct vgpu_completion completion;
    unsigned cancelled = 0, count = 0;

    spin.cookie = 1000;
    guest_submit(bench, spin);
    while (bench->work == 0 || exec_session_running(bench->session) == 0) {
        uv_run(&bench->loop, UV_RUN_NOWAIT);
        usleep(100);
    }
    spin.cookie = one.cookie = 2000;
    for (int i = 0; i < 300; i++) /* more than are taken at once */
        guest_submit(bench, spin);
    guest_submit(bench, one);
    one.cookie = 3000;
    guest_submit(bench, one);
    guest_submit(bench, (struct vgpu_descriptor){
                            .opcode = VGPU_OP_CANCEL, .cookie = 4000, .cancel.cookie = 2000});
    do {
        completion = guest_wait(bench);
        count++;
        cancelled += completion.status == VGPU_CANCELLED;
        assert_int_equal(completion.status == VGPU_CANCELLED, completion.cookie == 2000);
    } while (completion.cookie != 4000);
    assert_int_equal(count, 304);
    assert_int_equal(cancelled, 301);
    assert_int_equal(completion.status, VGPU_OK);
    assert_int_equal(completion.result, 301);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_CANCEL, .cancel.cookie = 2000); /* too late: none */
}

static void a_cancel_that_is_wrong_cancels_nothing(void **state)
{
    struct bench *bench = *state;
    struct vgpu_descriptor spin = text(bench, "SPIN 20");

    bench->grants = false;
    spin.cookie = 5;
    guest_submit(bench, spin);
    guest_submit(bench, (struct vgpu_descriptor){
                            .opcode = VGPU_OP_CANCEL, .cookie = 6, .device = 1, .cancel = {5}});
    WAIT_FOR(bench, bench->work);
    exec_session_grant(bench->session, &long_grant);
    assert_int_equal(guest_wait(bench).status, VGPU_OK);
    assert_int_equal(guest_wait(bench).status, VGPU_BAD_HANDLE);
}

static void a_reset_begins_anew(void **state)
{
    struct bench *bench = *state;
    uint64_t a = alloc(bench, DEVICE_BYTES);

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_CREATE, .object.handle = 3);
    quiet(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_FREE, .free.address = 1});
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_RESET);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_DEVICE_SYNC);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_FREE, .free.address = a);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_CREATE, .object.handle = 3);
    alloc(bench, DEVICE_BYTES);
    assert_int_equal(bench->host->generation, 1);
    assert_int_equal(bench->host->state, VGPU_SESSION_READY);
}

/* --- what is logged and measured -------------------------------------------------------------- */

static void every_execution_is_one_line_of_the_log(void **state)
{
    struct bench *bench = *state;
    char *log;

    guest_run(bench, ping());
    guest_run(bench, text(bench, "PING"));
    log = unit_read_file(bench->log);
    assert_non_null(strstr(log, " vm=7 slot=1 generation=1 sequence=0 cookie=1 opcode=1\n"));
    assert_non_null(strstr(log, " vm=7 slot=1 generation=1 sequence=1 cookie=2 opcode=2\n"));
    free(log);
}

/* How many of that kind took so long, up to a bucket's width. */
static uint64_t timed_at_least(struct bench *bench, enum exec_duration kind, uint64_t least_us)
{
    struct exec_durations durations;
    uint64_t count = 0;

    exec_session_durations(bench->session, &durations);
    for (unsigned i = 0; i < EXEC_DURATION_BUCKETS; i++) {
        if (exec_duration_us(i) >= least_us - least_us / 16)
            count += durations.counts[kind][i];
    }
    return count;
}

static void each_operation_of_a_long_grant_is_timed(void **state)
{
    struct bench *bench = *state;
    const struct vgpu_descriptor spin = text(bench, "SPIN 20");

    guest_run(bench, text(bench, "PING"));
    guest_run(bench, ping()); /* takes no time, nor does it take the worker's */
    assert_int_equal(exec_session_timed(bench->session), 1);
    text(bench, "SPIN 20");
    guest_write(bench, 0, &spin);
    guest_write(bench, 1, &spin);
    guest_publish(bench, 2);
    guest_wait(bench);
    guest_wait(bench);
    assert_int_equal(exec_session_timed(bench->session), 3);
    assert_int_equal(timed_at_least(bench, EXEC_DURATION_RUN, 0), 3);
    assert_true(timed_at_least(bench, EXEC_DURATION_RUN, 20000) >= 2);
    assert_true(timed_at_least(bench, EXEC_DURATION_TOTAL, 40000) >= 1); /* it waited for one */
}

static void operations_of_a_short_grant_are_not_timed(void **state)
{
    struct bench *bench = *state;

    bench->grant = short_grant;
    guest_run(bench, text(bench, "PING"));
    assert_int_equal(exec_session_timed(bench->session), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STARTED_TEST(what_is_no_operation_is_refused),
        STARTED_TEST(the_device_says_what_it_is),
        STARTED_TEST(text_commands_answer_as_through_files),
        STARTED_TEST(a_long_answer_is_cut_to_its_room),
        STARTED_TEST(texts_outside_of_arena_and_heap_are_refused),
        STARTED_TEST(memory_is_empty_when_it_comes_and_holds_what_is_copied),
        STARTED_TEST(device_memory_has_an_exact_limit),
        STARTED_TEST(allocations_have_a_bound_in_number),
        STARTED_TEST(addresses_that_were_not_allocated_are_refused),
        STARTED_TEST(copies_beyond_the_slot_are_refused),
        STARTED_TEST(set_fills_elements_of_one_two_and_four_bytes),
        STARTED_TEST(built_in_kernels_compute),
        STARTED_TEST(a_launch_that_lasts_is_measured),
        STARTED_TEST(kernels_stay_within_what_was_allocated),
        STARTED_TEST(launches_that_name_nothing_are_refused),
        STARTED_TEST(modules_are_not_supported_by_the_cpu_backend),
        STARTED_TEST(handles_are_the_guests_to_choose),
        STARTED_TEST(handles_have_a_bound_in_number),
        STARTED_TEST(events_tell_the_time_between_them),
        STARTED_TEST(a_quiet_operation_is_silent_and_done),
        STARTED_TEST(its_error_is_told_by_the_next_synchronisation_of_its_stream),
        STARTED_TEST(a_cancel_ends_all_that_has_not_begun),
        STARTED_TEST(a_cancel_that_is_wrong_cancels_nothing),
        STARTED_TEST(a_reset_begins_anew),
        STARTED_TEST(every_execution_is_one_line_of_the_log),
        STARTED_TEST(each_operation_of_a_long_grant_is_timed),
        STARTED_TEST(operations_of_a_short_grant_are_not_timed),
    };

    bench_prepare();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

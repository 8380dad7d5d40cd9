/* SPDX-License-Identifier: Apache-2.0 */
/* A session with three devices of the cpu backend: what belongs to one of them, and what may
 * go between two. */
#include "session_bench.h"

#define DEVICES 3u
#define STREAM 5u
#define EVENT 6u

static int make_started(void **state)
{
    struct bench *bench;

    bench_make(state);
    bench = *state;
    bench->devices = "cpu:0 cpu:1 cpu:2";
    session_start(bench, false);
    return 0;
}

#define DEVICES_TEST(function) cmocka_unit_test_setup_teardown(function, make_started, bench_remove)

static uint32_t status_of(struct bench *bench, struct vgpu_descriptor descriptor)
{
    return guest_run(bench, descriptor).status;
}

#define EXPECT(bench, wanted, ...)                                                                 \
    assert_int_equal(status_of(bench, (struct vgpu_descriptor){__VA_ARGS__}), wanted)

static uint64_t query(struct bench *bench, uint8_t device, uint32_t attribute)
{
    struct vgpu_completion completion = guest_run(
        bench, (struct vgpu_descriptor){
                   .opcode = VGPU_OP_QUERY, .device = device, .query.attribute = attribute});

    assert_int_equal(completion.status, VGPU_OK);
    return completion.result;
}

static uint64_t alloc(struct bench *bench, uint8_t device, uint64_t bytes)
{
    struct vgpu_completion completion = guest_run(
        bench,
        (struct vgpu_descriptor){.opcode = VGPU_OP_ALLOC, .device = device, .alloc.bytes = bytes});

    assert_int_equal(completion.status, VGPU_OK);
    return completion.result;
}

static void set(struct bench *bench, uint8_t device, uint64_t address, uint32_t value)
{
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_SET, .device = device,
           .set = {.address = address, .value = value, .width = 4, .count = 16});
}

/* What stands at an address of this device. */
static uint32_t word_at(struct bench *bench, uint8_t device, uint64_t address)
{
    uint32_t word;

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_COPY_OUT, .device = device,
           .copy = {.target = HEAP, .source = address, .bytes = 4});
    memcpy(&word, bench->slot + HEAP, sizeof(word));
    return word;
}

static uint32_t copy(struct bench *bench, uint8_t device, uint64_t target, uint64_t source)
{
    return status_of(
        bench, (struct vgpu_descriptor){.opcode = VGPU_OP_COPY,
                                        .device = device,
                                        .copy = {.target = target, .source = source, .bytes = 64}});
}

static void each_device_says_how_many_there_are(void **state)
{
    for (uint8_t device = 0; device < DEVICES; device++) {
        assert_int_equal(query(*state, device, VGPU_QUERY_DEVICES), DEVICES);
        assert_int_equal(query(*state, device, VGPU_QUERY_BACKEND), VGPU_BACKEND_CPU);
    }
}

static void no_operation_takes_a_device_that_is_not(void **state)
{
    struct bench *bench = *state;

    for (unsigned opcode = 0; opcode < 64; opcode++) {
        for (unsigned device = 0; device < 256; device += device < DEVICES ? 1 : 84) {
            struct vgpu_descriptor descriptor = {.opcode = (uint16_t)opcode,
                                                 .device = (uint8_t)device};
            uint32_t status = status_of(bench, descriptor);

            if (device >= DEVICES)
                assert_true(status == VGPU_BAD_HANDLE || status == VGPU_BAD_OPCODE);
        }
        EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_PING, .device = 255);
    }
}

static void a_quiet_one_for_a_device_that_is_not_is_told_at_a_sync(void **state)
{
    struct bench *bench = *state;

    guest_submit(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_SET,
                                                 .device = 255,
                                                 .flags = VGPU_FLAG_QUIET,
                                                 .set = {.width = 4}});
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_DEVICE_SYNC);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_DEVICE_SYNC);
}

static void memory_is_its_devices_alone(void **state)
{
    struct bench *bench = *state;
    uint64_t addresses[DEVICES];

    for (uint8_t device = 0; device < DEVICES; device++) {
        addresses[device] = alloc(bench, device, 64);
        set(bench, device, addresses[device], 0x1000u + device);
    }
    for (uint8_t device = 0; device < DEVICES; device++) {
        assert_int_equal(word_at(bench, device, addresses[device]), 0x1000u + device);
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_SET, .device = device,
               .set = {.address = addresses[(device + 1) % DEVICES], .width = 4, .count = 1});
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_COPY_IN, .device = device,
               .copy = {.target = addresses[(device + 1) % DEVICES], .source = HEAP, .bytes = 4});
        EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_COPY_OUT, .device = device,
               .copy = {.target = HEAP, .source = addresses[(device + 1) % DEVICES], .bytes = 4});
    }
}

static void memory_is_freed_from_whichever_device(void **state)
{
    struct bench *bench = *state;
    uint64_t address = alloc(bench, 1, 4096);

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_FREE, .device = 2, .free.address = address);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_FREE, .device = 1, .free.address = address);
}

static void the_limit_is_for_all_devices_together(void **state)
{
    struct bench *bench = *state;
    uint64_t half = DEVICE_BYTES / 2;
    uint64_t first = alloc(bench, 0, half);

    alloc(bench, 1, half);
    assert_int_equal(query(bench, 2, VGPU_QUERY_MEMORY_BYTES), DEVICE_BYTES);
    assert_int_equal(query(bench, 2, VGPU_QUERY_MEMORY_FREE_BYTES), 0);
    EXPECT(bench, VGPU_OUT_OF_MEMORY, .opcode = VGPU_OP_ALLOC, .device = 2, .alloc.bytes = 4096);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_FREE, .free.address = first);
    alloc(bench, 2, half);
}

static void a_copy_goes_from_one_device_to_another(void **state)
{
    struct bench *bench = *state;
    uint64_t zero = alloc(bench, 0, 64), one = alloc(bench, 1, 64), two = alloc(bench, 2, 64);

    set(bench, 0, zero, 0xabcd);
    assert_int_equal(copy(bench, 0, one, zero), VGPU_OK);
    assert_int_equal(word_at(bench, 1, one), 0xabcd);
    assert_int_equal(copy(bench, 2, two, one), VGPU_OK);
    assert_int_equal(word_at(bench, 2, two), 0xabcd);
    assert_int_equal(copy(bench, 0, two, one), VGPU_BAD_ADDRESS); /* it has neither */
    assert_int_equal(copy(bench, 0, one, one), VGPU_BAD_ADDRESS);
    assert_int_equal(copy(bench, 0, one + 1, zero), VGPU_BAD_ADDRESS); /* beyond its end */
    assert_int_equal(copy(bench, 0, zero, 4096), VGPU_BAD_ADDRESS);
}

static void a_stream_is_its_devices_alone(void **state)
{
    struct bench *bench = *state;
    uint64_t address = alloc(bench, 0, 64);

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_CREATE, .device = 1, .object.handle = STREAM);
    EXPECT(bench, VGPU_HANDLE_EXISTS, .opcode = VGPU_OP_STREAM_CREATE, .object.handle = STREAM);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_SET, .stream = STREAM,
           .set = {.address = address, .width = 4, .count = 1});
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_SET, .set = {.address = address, .width = 4});
    /* What only names it may come from anywhere. */
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_SYNC, .device = 2, .object.handle = STREAM);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_DESTROY, .object.handle = STREAM);
}

static void an_event_is_waited_for_everywhere(void **state)
{
    struct bench *bench = *state;

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_CREATE, .device = 1, .object.handle = EVENT);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_CREATE, .object.handle = EVENT + 1);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_EVENT_RECORD, .object.handle = EVENT);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_RECORD, .device = 1, .object.handle = EVENT);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_RECORD, .object.handle = EVENT + 1);
    for (uint8_t device = 0; device < DEVICES; device++) {
        EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_WAIT, .device = device,
               .object.handle = EVENT);
        EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_EVENT_SYNC, .device = device,
               .object.handle = EVENT);
    }
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_EVENT_ELAPSED,
           .object = {.handle = EVENT, .other = EVENT + 1});
}

static void an_error_is_told_by_its_devices_sync(void **state)
{
    struct bench *bench = *state;

    guest_submit(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_SET,
                                                 .device = 1,
                                                 .flags = VGPU_FLAG_QUIET,
                                                 .set = {.address = 4096, .width = 4, .count = 1}});
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_DEVICE_SYNC);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_SYNC, .device = 2);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_DEVICE_SYNC, .device = 1);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_DEVICE_SYNC, .device = 1);
}

static void a_kernel_runs_on_its_devices_memory(void **state)
{
    struct bench *bench = *state;
    uint64_t address = alloc(bench, 2, 64);
    const uint64_t parameters[] = {address, 0x3f800000, 16};
    struct vgpu_descriptor launch = {.opcode = VGPU_OP_LAUNCH,
                                     .device = 2,
                                     .launch = {.name_offset = ARENA,
                                                .name_bytes = 4,
                                                .parameters_offset = ARENA + 64,
                                                .parameters_bytes = sizeof(parameters),
                                                .grid = {1, 1, 1},
                                                .block = {1, 1, 1}}};

    memcpy(bench->slot + ARENA, "fill", 4);
    memcpy(bench->slot + ARENA + 64, parameters, sizeof(parameters));
    assert_int_equal(status_of(bench, launch), VGPU_OK);
    assert_int_equal(word_at(bench, 2, address), 0x3f800000);
    launch.device = 0;
    assert_int_equal(status_of(bench, launch), VGPU_BAD_ADDRESS);
}

static void a_reset_empties_all_devices(void **state)
{
    struct bench *bench = *state;
    uint64_t address = alloc(bench, 2, 4096);

    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_STREAM_CREATE, .device = 1, .object.handle = STREAM);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_RESET, .device = 1);
    EXPECT(bench, VGPU_BAD_ADDRESS, .opcode = VGPU_OP_FREE, .free.address = address);
    EXPECT(bench, VGPU_BAD_HANDLE, .opcode = VGPU_OP_STREAM_SYNC, .object.handle = STREAM);
    assert_int_equal(query(bench, 0, VGPU_QUERY_MEMORY_FREE_BYTES), DEVICE_BYTES);
}

static void a_successor_has_as_many(void **state)
{
    struct bench *bench = *state;

    alloc(bench, 1, 4096);
    session_end(bench);
    session_start(bench, true);
    EXPECT(bench, VGPU_DEVICE_LOST, .opcode = VGPU_OP_PING, .device = 2);
    EXPECT(bench, VGPU_OK, .opcode = VGPU_OP_RESET);
    assert_int_equal(query(bench, 2, VGPU_QUERY_DEVICES), DEVICES);
    alloc(bench, 2, DEVICE_BYTES);
}

static void the_mediator_is_told_the_devices_of_who_is_adopted(void **state)
{
    struct bench *bench = *state;

    session_detach(bench);
    session_adopt(bench);
    WAIT_FOR(bench, bench->ready);
    assert_string_equal(exec_session_devices(bench->session), "cpu:0 cpu:1 cpu:2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICES_TEST(each_device_says_how_many_there_are),
        DEVICES_TEST(no_operation_takes_a_device_that_is_not),
        DEVICES_TEST(a_quiet_one_for_a_device_that_is_not_is_told_at_a_sync),
        DEVICES_TEST(memory_is_its_devices_alone),
        DEVICES_TEST(memory_is_freed_from_whichever_device),
        DEVICES_TEST(the_limit_is_for_all_devices_together),
        DEVICES_TEST(a_copy_goes_from_one_device_to_another),
        DEVICES_TEST(a_stream_is_its_devices_alone),
        DEVICES_TEST(an_event_is_waited_for_everywhere),
        DEVICES_TEST(an_error_is_told_by_its_devices_sync),
        DEVICES_TEST(a_kernel_runs_on_its_devices_memory),
        DEVICES_TEST(a_reset_empties_all_devices),
        DEVICES_TEST(a_successor_has_as_many),
        DEVICES_TEST(the_mediator_is_told_the_devices_of_who_is_adopted),
    };

    bench_prepare();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

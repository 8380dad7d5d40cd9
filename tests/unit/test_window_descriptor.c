/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors of the window channel as they are checked before anything looks at what
 * they name. */
#include "unit.h"

#include "protocol/protocol.h"

#define SLOT_BYTES (VGPU_SLOT_MIN_BYTES + 4096u)
#define ARENA VGPU_SLOT_ARENA
#define HEAP VGPU_SLOT_HEAP

static enum vgpu_status check(struct vgpu_descriptor descriptor)
{
    return protocol_check_descriptor(&descriptor, SLOT_BYTES, 1);
}

#define CHECK(...) check((struct vgpu_descriptor){__VA_ARGS__})

/* One of each operation, with all that it needs and nothing else; the table's order
 * is that of the numbers. */
static const struct {
    struct vgpu_descriptor good;
    unsigned used_bytes;
} operations[] = {
    {{.opcode = VGPU_OP_PING}, 0},
    {{.opcode = VGPU_OP_TEXT,
      .text = {.command_offset = ARENA, .answer_offset = HEAP, .command_bytes = 1}},
     24},
    {{.opcode = VGPU_OP_RESET}, 0},
    {{.opcode = VGPU_OP_CANCEL}, 8},
    {{.opcode = VGPU_OP_QUERY}, 4},
    {{.opcode = VGPU_OP_ALLOC, .alloc = {1}}, 8},
    {{.opcode = VGPU_OP_FREE}, 8},
    {{.opcode = VGPU_OP_SET, .set = {.width = 4}}, 24},
    {{.opcode = VGPU_OP_COPY_IN, .copy = {.source = HEAP, .bytes = 1}}, 24},
    {{.opcode = VGPU_OP_COPY_OUT, .copy = {.target = HEAP, .bytes = 1}}, 24},
    {{.opcode = VGPU_OP_COPY, .copy = {.bytes = UINT64_MAX}}, 24},
    {{.opcode = VGPU_OP_STREAM_CREATE, .object = {1}}, 4},
    {{.opcode = VGPU_OP_STREAM_DESTROY, .object = {1}}, 4},
    {{.opcode = VGPU_OP_STREAM_SYNC, .object = {0}}, 4},
    {{.opcode = VGPU_OP_STREAM_WAIT, .object = {1}}, 4},
    {{.opcode = VGPU_OP_EVENT_CREATE, .object = {1}}, 4},
    {{.opcode = VGPU_OP_EVENT_DESTROY, .object = {1}}, 4},
    {{.opcode = VGPU_OP_EVENT_RECORD, .object = {1}}, 4},
    {{.opcode = VGPU_OP_EVENT_SYNC, .object = {1}}, 4},
    {{.opcode = VGPU_OP_EVENT_QUERY, .object = {1}}, 4},
    {{.opcode = VGPU_OP_EVENT_ELAPSED, .object = {1, 2}}, 8},
    {{.opcode = VGPU_OP_DEVICE_SYNC}, 0},
    {{.opcode = VGPU_OP_MODULE_LOAD,
      .module = {.handle = 1, .image_offset = HEAP, .image_bytes = 1}},
     24},
    {{.opcode = VGPU_OP_MODULE_UNLOAD, .object = {1}}, 4},
    {{.opcode = VGPU_OP_LAUNCH,
      .launch = {.name_offset = ARENA, .name_bytes = 1, .grid = {1, 1, 1}, .block = {1, 1, 1}}},
     48},
    {{.opcode = VGPU_OP_MODULE_PART,
      .module = {.handle = 1, .image_offset = HEAP, .image_bytes = 1, .whole_bytes = 1}},
     40},
};

#define LAUNCH (VGPU_ARRAY_LENGTH(operations) - 2)

static void every_operation_has_a_right_form(void **state)
{
    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(operations); i++)
        assert_int_equal(check(operations[i].good), VGPU_OK);
}

static void all_other_opcodes_are_refused(void **state)
{
    size_t next = 0;

    (void)state;
    for (uint32_t opcode = 0; opcode <= UINT16_MAX; opcode++) {
        if (next < VGPU_ARRAY_LENGTH(operations) && operations[next].good.opcode == opcode)
            next++;
        else
            assert_int_equal(CHECK(.opcode = (uint16_t)opcode), VGPU_BAD_OPCODE);
    }
    assert_int_equal(next, VGPU_ARRAY_LENGTH(operations));
}

static void a_device_that_the_session_has_not_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(operations); i++) {
        struct vgpu_descriptor descriptor = operations[i].good;

        for (unsigned device = 0; device < 256; device++) {
            descriptor.device = (uint8_t)device;
            assert_int_equal(protocol_check_descriptor(&descriptor, SLOT_BYTES, 1),
                             device < 1 ? VGPU_OK : VGPU_BAD_HANDLE);
            assert_int_equal(protocol_check_descriptor(&descriptor, SLOT_BYTES, 3),
                             device < 3 ? VGPU_OK : VGPU_BAD_HANDLE);
        }
    }
}

static void unknown_flags_are_refused(void **state)
{
    (void)state;
    for (unsigned flags = 0; flags < 256; flags++)
        assert_int_equal(CHECK(.opcode = VGPU_OP_PING, .flags = (uint8_t)flags),
                         flags <= VGPU_FLAG_QUIET ? VGPU_OK : VGPU_INVALID);
}

static void every_byte_that_is_not_used_is_zero(void **state)
{
    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(operations); i++) {
        for (unsigned at = operations[i].used_bytes; at < 48; at++) {
            struct vgpu_descriptor descriptor = operations[i].good;

            ((uint8_t *)descriptor.words)[at] = 0x80;
            assert_int_equal(check(descriptor), VGPU_INVALID);
        }
    }
}

/* `bytes` at `offset`, as the issue of overflow has it. */
static void ranges_lie_in_arena_or_heap(void **state)
{
    static const struct {
        uint64_t offset, bytes;
        enum vgpu_status status;
    } ranges[] = {
        {ARENA, 1, VGPU_OK},
        {ARENA, SLOT_BYTES - ARENA, VGPU_OK},
        {SLOT_BYTES - 1, 1, VGPU_OK},
        {ARENA, SLOT_BYTES - ARENA + 1, VGPU_BAD_ADDRESS},
        {ARENA - 1, 1, VGPU_BAD_ADDRESS},
        {0, 1, VGPU_BAD_ADDRESS},
        {SLOT_BYTES, 1, VGPU_BAD_ADDRESS},
        {SLOT_BYTES - 1, 2, VGPU_BAD_ADDRESS},
        {UINT64_MAX, 1, VGPU_BAD_ADDRESS},
        {UINT64_MAX, UINT64_MAX, VGPU_BAD_ADDRESS},
        {ARENA, UINT64_MAX, VGPU_BAD_ADDRESS},
        {ARENA, UINT64_MAX - ARENA + 1, VGPU_BAD_ADDRESS},
    };

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(ranges); i++) {
        uint64_t offset = ranges[i].offset, bytes = ranges[i].bytes;

        assert_int_equal(
            CHECK(.opcode = VGPU_OP_COPY_IN, .copy = {.source = offset, .bytes = bytes}),
            ranges[i].status);
        assert_int_equal(
            CHECK(.opcode = VGPU_OP_COPY_OUT, .copy = {.target = offset, .bytes = bytes}),
            ranges[i].status);
        if (offset != 0) /* that is what came in parts */
            assert_int_equal(
                CHECK(.opcode = VGPU_OP_MODULE_LOAD,
                      .module = {.handle = 1, .image_offset = offset, .image_bytes = bytes}),
                ranges[i].status);
        if (bytes <= VGPU_IMAGE_MAX_BYTES)
            assert_int_equal(CHECK(.opcode = VGPU_OP_MODULE_PART, .module = {.handle = 1,
                                                                             .image_offset = offset,
                                                                             .image_bytes = bytes,
                                                                             .whole_bytes = bytes}),
                             ranges[i].status);
    }
}

static void a_part_lies_in_its_image(void **state)
{
    static const struct {
        uint64_t at, bytes, whole_bytes;
        enum vgpu_status status;
    } parts[] = {
        {0, 1, 1, VGPU_OK},
        {1, 1, 2, VGPU_OK},
        {VGPU_IMAGE_MAX_BYTES - 1, 1, VGPU_IMAGE_MAX_BYTES, VGPU_OK},
        {VGPU_IMAGE_MAX_BYTES, 1, VGPU_IMAGE_MAX_BYTES, VGPU_INVALID},
        {0, 1, VGPU_IMAGE_MAX_BYTES + 1, VGPU_INVALID},
        {0, 1, UINT64_MAX, VGPU_INVALID},
        {0, 0, 1, VGPU_INVALID},
        {0, 1, 0, VGPU_INVALID},
        {0, 2, 1, VGPU_INVALID},
        {1, 1, 1, VGPU_INVALID},
        {UINT64_MAX, 1, 1, VGPU_INVALID},
        {UINT64_MAX, 2, 1, VGPU_INVALID},
        {1, UINT64_MAX, 1, VGPU_INVALID},
    };

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(parts); i++)
        assert_int_equal(
            CHECK(.opcode = VGPU_OP_MODULE_PART, .module = {.handle = 1,
                                                            .image_offset = HEAP,
                                                            .image_bytes = parts[i].bytes,
                                                            .part_at = parts[i].at,
                                                            .whole_bytes = parts[i].whole_bytes}),
            parts[i].status);
}

static void an_image_is_loaded_up_to_a_bound(void **state)
{
    const struct vgpu_descriptor in_slot = {
        .opcode = VGPU_OP_MODULE_LOAD,
        .module = {.handle = 1, .image_offset = HEAP, .image_bytes = VGPU_IMAGE_MAX_BYTES + 1}};

    (void)state;
    assert_int_equal(protocol_check_descriptor(&in_slot, 4 * VGPU_IMAGE_MAX_BYTES, 1),
                     VGPU_INVALID);
    assert_int_equal(CHECK(.opcode = VGPU_OP_MODULE_LOAD,
                           .module = {.handle = 1, .image_bytes = VGPU_IMAGE_MAX_BYTES}),
                     VGPU_OK);
    assert_int_equal(CHECK(.opcode = VGPU_OP_MODULE_LOAD,
                           .module = {.handle = 1, .image_bytes = VGPU_IMAGE_MAX_BYTES + 1}),
                     VGPU_INVALID);
    assert_int_equal(CHECK(.opcode = VGPU_OP_MODULE_LOAD, .module = {.handle = 1}), VGPU_INVALID);
}

static void names_and_parameters_lie_in_the_arena(void **state)
{
    struct vgpu_descriptor launch = operations[LAUNCH].good;

    (void)state;
    launch.launch.name_offset = HEAP - 1;
    assert_int_equal(check(launch), VGPU_OK);
    launch.launch.name_offset = HEAP;
    assert_int_equal(check(launch), VGPU_BAD_ADDRESS);
    launch.launch.name_offset = UINT32_MAX;
    assert_int_equal(check(launch), VGPU_BAD_ADDRESS);
    launch.launch.name_offset = ARENA;
    launch.launch.parameters_bytes = 8;
    launch.launch.parameters_offset = HEAP - 8;
    assert_int_equal(check(launch), VGPU_OK);
    launch.launch.parameters_offset = HEAP - 7;
    assert_int_equal(check(launch), VGPU_BAD_ADDRESS);
}

static void sizes_have_their_bounds(void **state)
{
    struct vgpu_descriptor text = operations[1].good;
    struct vgpu_descriptor launch = operations[LAUNCH].good;

    (void)state;
    text.text.command_bytes = VGPU_TEXT_MAX_BYTES;
    assert_int_equal(check(text), VGPU_OK);
    text.text.command_bytes++;
    assert_int_equal(check(text), VGPU_INVALID);
    text.text.command_bytes = 0;
    assert_int_equal(check(text), VGPU_INVALID);
    launch.launch.name_bytes = VGPU_NAME_MAX_BYTES;
    launch.launch.parameters_offset = ARENA;
    launch.launch.parameters_bytes = VGPU_PARAMETERS_MAX_BYTES;
    assert_int_equal(check(launch), VGPU_OK);
    launch.launch.name_bytes++;
    assert_int_equal(check(launch), VGPU_INVALID);
    launch.launch.name_bytes = 1;
    launch.launch.parameters_bytes += 8;
    assert_int_equal(check(launch), VGPU_INVALID);
    launch.launch.parameters_bytes = 12;
    assert_int_equal(check(launch), VGPU_INVALID);
    assert_int_equal(CHECK(.opcode = VGPU_OP_ALLOC), VGPU_INVALID);
    assert_int_equal(CHECK(.opcode = VGPU_OP_STREAM_CREATE), VGPU_INVALID);
    assert_int_equal(CHECK(.opcode = VGPU_OP_EVENT_CREATE), VGPU_INVALID);
}

static void grids_and_blocks_are_not_empty(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct vgpu_descriptor launch = operations[LAUNCH].good;

        launch.launch.grid[i] = 0;
        assert_int_equal(check(launch), VGPU_INVALID);
        launch.launch.grid[i] = 1;
        launch.launch.block[i] = 0;
        assert_int_equal(check(launch), VGPU_INVALID);
    }
}

static void elements_are_whole_and_their_bytes_can_be_counted(void **state)
{
    (void)state;
    for (uint32_t width = 0; width <= 16; width++)
        assert_int_equal(CHECK(.opcode = VGPU_OP_SET, .set = {.width = width}),
                         width == 1 || width == 2 || width == 4 ? VGPU_OK : VGPU_INVALID);
    assert_int_equal(CHECK(.opcode = VGPU_OP_SET, .set = {.address = 2, .width = 4}), VGPU_INVALID);
    assert_int_equal(CHECK(.opcode = VGPU_OP_SET, .set = {.count = UINT64_MAX, .width = 1}),
                     VGPU_OK); /* the device knows its end */
    assert_int_equal(CHECK(.opcode = VGPU_OP_SET, .set = {.count = 1ull << 62, .width = 4}),
                     VGPU_BAD_ADDRESS);
    assert_int_equal(CHECK(.opcode = VGPU_OP_SET, .set = {.count = 1ull << 63, .width = 2}),
                     VGPU_BAD_ADDRESS);
}

static void a_copy_of_nothing_goes_anywhere(void **state)
{
    (void)state;
    assert_int_equal(CHECK(.opcode = VGPU_OP_COPY_IN, .copy = {.source = UINT64_MAX}), VGPU_OK);
    assert_int_equal(CHECK(.opcode = VGPU_OP_COPY_OUT, .copy = {.target = 0}), VGPU_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_operation_has_a_right_form),
        cmocka_unit_test(all_other_opcodes_are_refused),
        cmocka_unit_test(a_device_that_the_session_has_not_is_refused),
        cmocka_unit_test(unknown_flags_are_refused),
        cmocka_unit_test(every_byte_that_is_not_used_is_zero),
        cmocka_unit_test(ranges_lie_in_arena_or_heap),
        cmocka_unit_test(a_part_lies_in_its_image),
        cmocka_unit_test(an_image_is_loaded_up_to_a_bound),
        cmocka_unit_test(names_and_parameters_lie_in_the_arena),
        cmocka_unit_test(sizes_have_their_bounds),
        cmocka_unit_test(grids_and_blocks_are_not_empty),
        cmocka_unit_test(elements_are_whole_and_their_bytes_can_be_counted),
        cmocka_unit_test(a_copy_of_nothing_goes_anywhere),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* lib/heap.c: the slot's memory, shared out. */
#include "unit.h"

#include "private.h"

#define FIRST 4096u
#define WHOLE (64u << 10)

static void what_is_taken_is_aligned_inside_and_apart(void **state)
{
    struct heap heap;
    uint64_t previous_end = FIRST;

    (void)state;
    assert_int_equal(heap_open(&heap, FIRST, WHOLE), 0);
    for (uint64_t bytes = 1; bytes < 300; bytes += 7) {
        uint64_t offset = heap_take(&heap, bytes);

        assert_int_equal(offset % HEAP_ALIGNMENT, 0);
        assert_true(offset >= previous_end && offset + bytes <= FIRST + WHOLE);
        previous_end = offset + bytes;
    }
    heap_close(&heap);
}

static void nothing_is_given_beyond_the_end(void **state)
{
    struct heap heap;
    uint64_t all;

    (void)state;
    assert_int_equal(heap_open(&heap, FIRST, WHOLE), 0);
    assert_int_equal(heap_take(&heap, WHOLE + 1), 0);
    assert_int_equal(heap_take(&heap, UINT64_MAX), 0);
    assert_int_equal(heap_take(&heap, UINT64_MAX - 63), 0);
    all = heap_take(&heap, WHOLE);
    assert_int_equal(all, FIRST);
    assert_int_equal(heap_take(&heap, 1), 0);
    assert_true(heap_give(&heap, all));
    assert_int_equal(heap_largest(&heap), WHOLE);
    heap_close(&heap);
}

static void what_was_given_back_is_one_piece_again(void **state)
{
    struct heap heap;
    uint64_t offsets[8];

    (void)state;
    assert_int_equal(heap_open(&heap, FIRST, WHOLE), 0);
    for (int i = 0; i < 8; i++)
        offsets[i] = heap_take(&heap, WHOLE / 8);
    for (int i = 0; i < 8; i += 2)
        assert_true(heap_give(&heap, offsets[i]));
    assert_int_equal(heap_largest(&heap), WHOLE / 8);
    for (int i = 7; i > 0; i -= 2)
        assert_true(heap_give(&heap, offsets[i]));
    assert_int_equal(heap_largest(&heap), WHOLE);
    assert_int_equal(heap.count, 1);
    heap_close(&heap);
}

static void what_was_not_taken_cannot_be_given_back(void **state)
{
    struct heap heap;
    uint64_t offset;

    (void)state;
    assert_int_equal(heap_open(&heap, FIRST, WHOLE), 0);
    offset = heap_take(&heap, 128);
    assert_false(heap_give(&heap, offset + 64));
    assert_false(heap_give(&heap, FIRST + WHOLE));
    assert_true(heap_give(&heap, offset));
    assert_false(heap_give(&heap, offset));
    heap_close(&heap);
}

/* Against a map with one byte a granule. */
static void random_use_never_overlaps_and_ends_whole(void **state)
{
    struct heap heap;
    uint64_t offsets[64] = {0}, sizes[64] = {0};
    uint8_t map[WHOLE / HEAP_ALIGNMENT] = {0};
    unsigned seed = 1;

    (void)state;
    assert_int_equal(heap_open(&heap, FIRST, WHOLE), 0);
    for (int round = 0; round < 20000; round++) {
        unsigned i = (unsigned)rand_r(&seed) % 64;

        if (offsets[i]) {
            memset(map + (offsets[i] - FIRST) / HEAP_ALIGNMENT, 0, sizes[i]);
            assert_true(heap_give(&heap, offsets[i]));
            offsets[i] = 0;
            continue;
        }
        sizes[i] = 1 + (unsigned)rand_r(&seed) % 40;
        offsets[i] = heap_take(&heap, sizes[i] * HEAP_ALIGNMENT);
        for (uint64_t k = 0; offsets[i] && k < sizes[i]; k++) {
            assert_int_equal(map[(offsets[i] - FIRST) / HEAP_ALIGNMENT + k], 0);
            map[(offsets[i] - FIRST) / HEAP_ALIGNMENT + k] = 1;
        }
    }
    for (int i = 0; i < 64; i++) {
        if (offsets[i])
            assert_true(heap_give(&heap, offsets[i]));
    }
    assert_int_equal(heap_largest(&heap), WHOLE);
    heap_close(&heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_taken_is_aligned_inside_and_apart),
        cmocka_unit_test(nothing_is_given_beyond_the_end),
        cmocka_unit_test(what_was_given_back_is_one_piece_again),
        cmocka_unit_test(what_was_not_taken_cannot_be_given_back),
        cmocka_unit_test(random_use_never_overlaps_and_ends_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

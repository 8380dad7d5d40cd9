/* SPDX-License-Identifier: Apache-2.0 */
/* Images of modules that come in parts: their order, their bounds, and what they count. */
#include "unit.h"

#include "exec/device.h"

#include <stdalign.h>

#define LIMIT (1ull << 30)

struct bench {
    struct account_memory memory;
    struct account_share share;
    struct images images;
};

static int bench_make(void **state)
{
    struct bench *bench = aligned_alloc(alignof(struct bench), sizeof(*bench));

    assert_non_null(bench);
    *bench = (struct bench){.images = {0}};
    bench->memory.limit_bytes = LIMIT;
    bench->share = (struct account_share){&bench->memory, 0};
    bench->images.share = &bench->share;
    *state = bench;
    return 0;
}

/* Whatever a test leaves is given back. */
static int bench_end(void **state)
{
    struct bench *bench = *state;

    images_clear(&bench->images);
    assert_int_equal(bench->images.whole_bytes, 0);
    assert_int_equal(account_used_bytes(&bench->memory), 0);
    assert_int_equal(bench->memory.work[0].image_bytes, 0);
    free(bench);
    return 0;
}

static enum vgpu_status add(struct bench *bench, uint32_t handle, const char *part, uint64_t at,
                            uint64_t whole_bytes)
{
    return images_add(&bench->images, handle, (const uint8_t *)part, strlen(part), at, whole_bytes);
}

static void must_take(struct bench *bench, uint32_t handle, const char *text)
{
    uint8_t *bytes = NULL;

    assert_int_equal(images_take(&bench->images, handle, strlen(text), &bytes), VGPU_OK);
    assert_string_equal((char *)bytes, text);
    images_free(&bench->images, bytes, strlen(text));
}

static enum vgpu_status take(struct bench *bench, uint32_t handle, uint64_t whole_bytes)
{
    uint8_t *bytes;

    return images_take(&bench->images, handle, whole_bytes, &bytes);
}

static void parts_in_their_order_are_the_image(void **state)
{
    struct bench *bench = *state;

    assert_int_equal(add(bench, 1, "abc", 0, 6), VGPU_OK);
    assert_int_equal(add(bench, 2, "xy", 0, 3), VGPU_OK);
    assert_int_equal(account_used_bytes(&bench->memory), 9);
    assert_int_equal(add(bench, 1, "de", 3, 6), VGPU_OK);
    assert_int_equal(add(bench, 2, "z", 2, 3), VGPU_OK);
    assert_int_equal(add(bench, 1, "f", 5, 6), VGPU_OK);
    must_take(bench, 2, "xyz");
    must_take(bench, 1, "abcdef");
    assert_int_equal(take(bench, 1, 6), VGPU_BAD_HANDLE);
    assert_int_equal(account_used_bytes(&bench->memory), 0);
}

static void a_part_that_is_not_the_next_is_refused_and_harms_nothing(void **state)
{
    struct bench *bench = *state;

    assert_int_equal(add(bench, 1, "bc", 1, 6), VGPU_INVALID); /* nothing has begun */
    assert_int_equal(add(bench, 1, "abc", 0, 6), VGPU_OK);
    assert_int_equal(add(bench, 1, "f", 5, 6), VGPU_INVALID);
    assert_int_equal(add(bench, 1, "b", 1, 6), VGPU_INVALID);
    assert_int_equal(add(bench, 1, "de", 3, 7), VGPU_INVALID);
    assert_int_equal(add(bench, 1, "defg", 3, 6), VGPU_INVALID);
    assert_int_equal(add(bench, 1, "x", UINT64_MAX, 6), VGPU_INVALID);
    assert_int_equal(add(bench, 3, "de", 3, 6), VGPU_INVALID);
    assert_int_equal(add(bench, 1, "def", 3, 6), VGPU_OK);
    assert_int_equal(add(bench, 1, "g", 6, 6), VGPU_INVALID);
    must_take(bench, 1, "abcdef");
}

static void only_a_whole_image_is_taken(void **state)
{
    struct bench *bench = *state;

    assert_int_equal(take(bench, 1, 6), VGPU_BAD_HANDLE);
    assert_int_equal(add(bench, 1, "abc", 0, 6), VGPU_OK);
    assert_int_equal(take(bench, 1, 6), VGPU_INVALID);
    assert_int_equal(take(bench, 1, 3), VGPU_INVALID);
    assert_int_equal(add(bench, 1, "def", 3, 6), VGPU_OK);
    assert_int_equal(take(bench, 1, 5), VGPU_INVALID);
    must_take(bench, 1, "abcdef");
}

static void a_first_part_begins_anew(void **state)
{
    struct bench *bench = *state;

    assert_int_equal(add(bench, 1, "abc", 0, 1000), VGPU_OK);
    assert_int_equal(add(bench, 1, "xy", 0, 2), VGPU_OK);
    assert_int_equal(account_used_bytes(&bench->memory), 2);
    must_take(bench, 1, "xy");
}

static void what_is_dropped_is_gone_and_counts_no_more(void **state)
{
    struct bench *bench = *state;

    assert_false(images_drop(&bench->images, 1));
    assert_int_equal(add(bench, 1, "abc", 0, 3), VGPU_OK);
    assert_true(images_drop(&bench->images, 1));
    assert_false(images_drop(&bench->images, 1));
    assert_int_equal(account_used_bytes(&bench->memory), 0);
    assert_int_equal(take(bench, 1, 3), VGPU_BAD_HANDLE);
}

static void a_session_has_so_many_bytes_under_way_and_no_more(void **state)
{
    struct bench *bench = *state;

    assert_int_equal(add(bench, 1, "a", 0, VGPU_IMAGE_MAX_BYTES + 1), VGPU_OUT_OF_MEMORY);
    assert_int_equal(add(bench, 1, "a", 0, UINT64_MAX), VGPU_OUT_OF_MEMORY);
    assert_int_equal(add(bench, 1, "a", 0, VGPU_IMAGE_MAX_BYTES - 1), VGPU_OK);
    assert_int_equal(add(bench, 2, "bc", 0, 2), VGPU_OUT_OF_MEMORY);
    assert_int_equal(add(bench, 2, "b", 0, 1), VGPU_OK);
    assert_int_equal(add(bench, 3, "c", 0, 1), VGPU_OUT_OF_MEMORY);
    assert_true(images_drop(&bench->images, 1));
    assert_int_equal(add(bench, 3, "c", 0, 1), VGPU_OK);
}

static void so_many_images_are_under_way_and_no_more(void **state)
{
    struct bench *bench = *state;

    for (uint32_t handle = 1; handle <= IMAGES_MAX; handle++)
        assert_int_equal(add(bench, handle, "ab", 0, 2), VGPU_OK);
    assert_int_equal(add(bench, IMAGES_MAX + 1, "ab", 0, 2), VGPU_TOO_MANY);
    assert_int_equal(add(bench, 1, "x", 0, 1), VGPU_OK); /* instead of what it had */
    must_take(bench, 2, "ab");
    assert_int_equal(add(bench, IMAGES_MAX + 1, "ab", 0, 2), VGPU_OK);
}

static void all_sessions_of_a_vm_share_its_limit(void **state)
{
    struct bench *bench = *state;
    const struct account_share other = {&bench->memory, 1};

    bench->memory.limit_bytes = 100;
    assert_true(share_reserve(&other, 60));
    assert_int_equal(add(bench, 1, "a", 0, 41), VGPU_OUT_OF_MEMORY);
    assert_int_equal(add(bench, 1, "a", 0, 40), VGPU_OK);
    assert_false(share_reserve(&other, 1));
    share_release(&other, 60);
}

static void an_image_in_one_piece_has_the_same_bounds(void **state)
{
    static const uint8_t source[] = "abcdef";
    struct bench *bench = *state;
    uint8_t *bytes = NULL;

    bench->memory.limit_bytes = 100;
    assert_int_equal(images_copy(&bench->images, source, 101, &bytes), VGPU_OUT_OF_MEMORY);
    bench->memory.limit_bytes = 2 * VGPU_IMAGE_MAX_BYTES;
    assert_int_equal(images_copy(&bench->images, source, VGPU_IMAGE_MAX_BYTES + 1, &bytes),
                     VGPU_OUT_OF_MEMORY);
    assert_null(bytes);
    assert_int_equal(add(bench, 1, "a", 0, VGPU_IMAGE_MAX_BYTES - 6), VGPU_OK);
    assert_int_equal(images_copy(&bench->images, source, 7, &bytes), VGPU_OUT_OF_MEMORY);
    assert_int_equal(images_copy(&bench->images, source, 6, &bytes), VGPU_OK);
    assert_string_equal((char *)bytes, "abcdef");
    assert_int_equal(add(bench, 2, "b", 0, 1), VGPU_OUT_OF_MEMORY); /* until it is loaded */
    images_free(&bench->images, bytes, 6);
    assert_int_equal(add(bench, 2, "b", 0, 1), VGPU_OK);
}

static void all_sessions_of_a_vm_share_the_hosts_memory_for_images(void **state)
{
    struct bench *bench = *state;
    const struct account_share other = {&bench->memory, 1};
    uint8_t *bytes = NULL;

    bench->memory.budget.image_bytes_max = 100;
    assert_true(share_reserve_image(&other, 60));
    assert_int_equal(add(bench, 1, "a", 0, 41), VGPU_OUT_OF_MEMORY);
    assert_int_equal(images_copy(&bench->images, (const uint8_t *)"a", 41, &bytes),
                     VGPU_OUT_OF_MEMORY);
    assert_int_equal(add(bench, 1, "a", 0, 40), VGPU_OK);
    assert_false(share_reserve_image(&other, 1));
    assert_true(images_drop(&bench->images, 1));
    assert_true(share_reserve_image(&other, 40));
    share_release_image(&other, 100);
    assert_int_equal(bench->memory.work[1].image_bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, bench_make, bench_end)
        TEST(parts_in_their_order_are_the_image),
        TEST(a_part_that_is_not_the_next_is_refused_and_harms_nothing),
        TEST(only_a_whole_image_is_taken),
        TEST(a_first_part_begins_anew),
        TEST(what_is_dropped_is_gone_and_counts_no_more),
        TEST(a_session_has_so_many_bytes_under_way_and_no_more),
        TEST(so_many_images_are_under_way_and_no_more),
        TEST(all_sessions_of_a_vm_share_its_limit),
        TEST(an_image_in_one_piece_has_the_same_bounds),
        TEST(all_sessions_of_a_vm_share_the_hosts_memory_for_images),
#undef TEST
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

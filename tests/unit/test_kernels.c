/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/: the table says what the PTX says, and how each kernel is launched. */
#include "unit.h"

#include "kernels/kernels.h"

static const struct kernels_entry *found(const char *name)
{
    const struct kernels_entry *entry = kernels_find(name);

    if (!entry)
        fail_msg("there is no kernel %s", name);
    return entry;
}

/* Where the PTX declares `name`'s parameters; NULL: nowhere. */
static const char *ptx_parameters(const char *name)
{
    char wanted[64];
    const char *at;

    snprintf(wanted, sizeof(wanted), ".entry %s(", name);
    at = strstr(kernels_ptx, wanted);
    return at ? at + strlen(wanted) : NULL;
}

static const char *ptx_type(enum kernels_parameter_kind kind)
{
    switch (kind) {
    case KERNELS_WORD:
        return "u32";
    case KERNELS_FLOAT:
        return "f32";
    default:
        return "u64";
    }
}

static void the_embedded_ptx_is_text_of_the_length_that_is_told(void **state)
{
    (void)state;
    assert_int_equal(strlen(kernels_ptx), kernels_ptx_bytes);
    assert_non_null(strstr(kernels_ptx, "\n.version 7.0\n.target sm_75\n.address_size 64\n"));
}

static void every_kernel_of_the_table_is_in_the_ptx_with_its_parameters(void **state)
{
    (void)state;
    for (size_t i = 0; i < kernels_count; i++) {
        const struct kernels_entry *entry = &kernels_table[i];
        const char *at = ptx_parameters(entry->name);

        if (!at)
            fail_msg("the PTX has no kernel %s", entry->name);
        for (uint32_t p = 0; p < entry->parameter_count; p++) {
            char type[8] = "";

            at += strspn(at, " \t\n,");
            assert_int_equal(sscanf(at, ".param .%7s", type), 1);
            assert_string_equal(type, ptx_type(entry->parameters[p].kind));
            at += strcspn(at, ",\n)");
        }
        at += strspn(at, " \t\n");
        assert_int_equal(*at, ')');
    }
}

static void every_kernel_of_the_ptx_is_in_the_table(void **state)
{
    size_t count = 0;

    (void)state;
    for (const char *at = kernels_ptx; (at = strstr(at, ".entry ")) != NULL; at++)
        count++;
    assert_int_equal(count, kernels_count);
}

static void every_parameter_of_the_table_makes_sense(void **state)
{
    (void)state;
    for (size_t i = 0; i < kernels_count; i++) {
        const struct kernels_entry *entry = &kernels_table[i];

        assert_true(entry->parameter_count <= KERNELS_PARAMETERS_MAX);
        assert_true(entry->count_index < entry->parameter_count);
        for (uint32_t p = 0; p < entry->parameter_count; p++) {
            const struct kernels_parameter *parameter = &entry->parameters[p];

            if (parameter->kind != KERNELS_ADDRESS)
                continue;
            assert_true(parameter->element_bytes == 4 || parameter->element_bytes == 8);
            if (parameter->count_power > 0)
                assert_int_equal(entry->parameters[parameter->count_index].kind, KERNELS_NUMBER);
        }
    }
}

static void a_name_that_is_none_is_not_found(void **state)
{
    (void)state;
    assert_null(kernels_find(""));
    assert_null(kernels_find("vector_add "));
    assert_null(kernels_find("vector"));
    assert_string_equal(found("spin_us")->name, "spin_us");
}

static void guests_may_name_the_documented_kernels_and_no_other(void **state)
{
    static const char *const names[] = {"vector_add", "saxpy",      "fill",   "increment",
                                        "reduce_sum", "matrix_mul", "spin_us"};
    size_t count = 0;

    (void)state;
    for (size_t i = 0; i < kernels_count; i++)
        count += kernels_table[i].for_guests;
    assert_int_equal(count, sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; i < count; i++)
        assert_true(found(names[i])->for_guests);
}

static void elements_are_the_count_its_square_or_one(void **state)
{
    const uint64_t words[] = {4096, 8192, 100, 1000};

    (void)state;
    assert_int_equal(kernels_elements(found("vector_add"), 0, words), 1000);
    assert_int_equal(kernels_elements(found("matrix_mul"), 2, words), 1000000);
    assert_int_equal(kernels_elements(found("reduce_sum"), 0, words), 1);
    assert_int_equal(kernels_elements(found("reduce_sum"), 1, words), 100);
    assert_int_equal(kernels_elements(found("increment"), 0, (uint64_t[]){4096, 0}), 0);
}

static void counts_that_no_range_has_are_told(void **state)
{
    uint64_t words[] = {4096, KERNELS_COUNT_MAX, 0, 1ull << 20};

    (void)state;
    assert_int_equal(kernels_elements(found("increment"), 0, words), KERNELS_COUNT_MAX);
    assert_int_equal(kernels_elements(found("matrix_mul"), 0, words), KERNELS_COUNT_MAX);
    words[1]++;
    words[3]++;
    assert_int_equal(kernels_elements(found("increment"), 0, words), UINT64_MAX);
    assert_int_equal(kernels_elements(found("matrix_mul"), 0, words), UINT64_MAX);
    words[3] = UINT64_MAX;
    assert_int_equal(kernels_elements(found("matrix_mul"), 0, words), UINT64_MAX);
    assert_int_equal(kernels_elements(found("vector_add"), 0, words), UINT64_MAX);
}

static void assert_grid(const char *name, const uint64_t *words, uint32_t x, uint32_t y)
{
    uint32_t grid[3] = {0, 0, 0};

    kernels_grid(found(name), words, 132, grid);
    assert_int_equal(grid[0], x);
    assert_int_equal(grid[1], y);
    assert_int_equal(grid[2], 1);
}

static void a_grid_is_enough_for_the_count_or_for_the_device(void **state)
{
    (void)state;
    assert_grid("increment", (uint64_t[]){4096, 0}, 1, 1);
    assert_grid("increment", (uint64_t[]){4096, 256}, 1, 1);
    assert_grid("increment", (uint64_t[]){4096, 257}, 2, 1);
    assert_grid("increment", (uint64_t[]){4096, UINT64_MAX}, 132 * 8, 1);
    assert_grid("reduce_sum", (uint64_t[]){4096, 8192, 1 << 30}, 1, 1);
    assert_grid("spin_us", (uint64_t[]){500}, 1, 1);
    assert_grid("probe_shared", (uint64_t[]){4096, 7, 12288}, 132, 1);
    assert_grid("probe_local", (uint64_t[]){4096, 7}, 132 * 8, 1);
}

static void a_matrix_has_a_block_a_tile(void **state)
{
    (void)state;
    assert_grid("matrix_mul", (uint64_t[]){0, 0, 0, 0}, 1, 1);
    assert_grid("matrix_mul", (uint64_t[]){0, 0, 0, 32}, 1, 1);
    assert_grid("matrix_mul", (uint64_t[]){0, 0, 0, 33}, 2, 2);
    assert_grid("matrix_mul", (uint64_t[]){0, 0, 0, 16384}, 512, 512);
    assert_grid("matrix_mul", (uint64_t[]){0, 0, 0, UINT64_MAX}, 512, 512);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_embedded_ptx_is_text_of_the_length_that_is_told),
        cmocka_unit_test(every_kernel_of_the_table_is_in_the_ptx_with_its_parameters),
        cmocka_unit_test(every_kernel_of_the_ptx_is_in_the_table),
        cmocka_unit_test(every_parameter_of_the_table_makes_sense),
        cmocka_unit_test(a_name_that_is_none_is_not_found),
        cmocka_unit_test(guests_may_name_the_documented_kernels_and_no_other),
        cmocka_unit_test(elements_are_the_count_its_square_or_one),
        cmocka_unit_test(counts_that_no_range_has_are_told),
        cmocka_unit_test(a_grid_is_enough_for_the_count_or_for_the_device),
        cmocka_unit_test(a_matrix_has_a_block_a_tile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

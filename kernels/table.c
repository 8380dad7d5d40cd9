/* SPDX-License-Identifier: Apache-2.0 */
/* What vgpu_kernels.cu's kernels take, and how each is launched; one entry a kernel, in the
 * order of the source. */
#include "kernels/kernels.h"

#include <string.h>

#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define MATRIX_MAX 16384u /* rows; as the cpu backend */
#define SPIN_MAX_US 600000000u
#define TILE 32u
#define THREADS 256u
#define THREADS_MAX 1024u

/* Eight blocks of 256 are all the threads that a multiprocessor can hold. */
#define RESIDENT_BLOCKS 8u

/* clang-format off */
#define READS(bytes, index)  {.kind = KERNELS_ADDRESS, .element_bytes = (bytes), .count_index = (index), .count_power = 1}
#define WRITES(bytes, index) {.kind = KERNELS_ADDRESS, .element_bytes = (bytes), .count_index = (index), .count_power = 1, .written = true}
#define WRITES_ONE(bytes)    {.kind = KERNELS_ADDRESS, .element_bytes = (bytes), .written = true}
#define MATRIX(index)        {.kind = KERNELS_ADDRESS, .element_bytes = 4, .count_index = (index), .count_power = 2}
#define OWN_MATRIX(index)    {.kind = KERNELS_ADDRESS, .element_bytes = 4, .count_index = (index), .count_power = 2, .written = true, .apart = true}
#define COUNT                {.kind = KERNELS_NUMBER, .number_max = UINT64_MAX}
#define NUMBER_TO(max)       {.kind = KERNELS_NUMBER, .number_max = (max)}
#define WORD                 {.kind = KERNELS_WORD}
#define FLOAT                {.kind = KERNELS_FLOAT}

#define PARAMETERS(n, ...) .parameter_count = (n), .parameters = {__VA_ARGS__}
#define EACH_ELEMENT(index) .grid_rule = KERNELS_GRID_ELEMENTS, .count_index = (index), \
    .multiprocessor_blocks = RESIDENT_BLOCKS, .block = {THREADS, 1, 1}
#define EACH_TILE(index) .grid_rule = KERNELS_GRID_TILES, .count_index = (index), .block = {TILE, 8, 1}
#define ONE_BLOCK(threads) .grid_rule = KERNELS_GRID_ONE, .block = {(threads), 1, 1}
#define WHOLE_DEVICE(blocks) .grid_rule = KERNELS_GRID_DEVICE, \
    .multiprocessor_blocks = (blocks), .block = {THREADS, 1, 1}

const struct kernels_entry kernels_table[] = {
    {"vector_add", true, PARAMETERS(4, WRITES(4, 3), READS(4, 3), READS(4, 3), COUNT), EACH_ELEMENT(3)},
    {"saxpy", true, PARAMETERS(4, WRITES(4, 3), READS(4, 3), FLOAT, COUNT), EACH_ELEMENT(3)},
    {"fill", true, PARAMETERS(3, WRITES(4, 2), WORD, COUNT), EACH_ELEMENT(2)},
    {"increment", true, PARAMETERS(2, WRITES(8, 1), COUNT), EACH_ELEMENT(1)},
    {"reduce_sum", true, PARAMETERS(3, WRITES_ONE(8), READS(4, 2), COUNT), ONE_BLOCK(THREADS_MAX)},
    {"reduce_partials", false, PARAMETERS(3, WRITES_ONE(8), READS(8, 2), COUNT), ONE_BLOCK(THREADS_MAX)},
    {"matrix_mul", true, PARAMETERS(4, OWN_MATRIX(3), MATRIX(3), MATRIX(3), NUMBER_TO(MATRIX_MAX)), EACH_TILE(3)},
    {"spin_us", true, PARAMETERS(1, NUMBER_TO(SPIN_MAX_US)), ONE_BLOCK(1)},
    {"touch", false, PARAMETERS(2, WRITES(8, 1), COUNT), EACH_ELEMENT(1)},
    {"fill_shared", false, PARAMETERS(3, WRITES_ONE(8), WORD, COUNT), WHOLE_DEVICE(1)},
    {"probe_shared", false, PARAMETERS(3, WRITES_ONE(8), WORD, COUNT), WHOLE_DEVICE(1)},
    {"fill_local", false, PARAMETERS(2, WRITES_ONE(8), WORD), WHOLE_DEVICE(RESIDENT_BLOCKS)},
    {"probe_local", false, PARAMETERS(2, WRITES_ONE(8), WORD), WHOLE_DEVICE(RESIDENT_BLOCKS)},
};
/* clang-format on */

const size_t kernels_count = ARRAY_LENGTH(kernels_table);

const struct kernels_entry *kernels_find(const char *name)
{
    for (size_t i = 0; i < kernels_count; i++) {
        const char *one = kernels_table[i].name;

        if (one[0] == name[0] && strcmp(one, name) == 0) /* each launch asks: few calls */
            return &kernels_table[i];
    }
    return NULL;
}

uint64_t kernels_elements(const struct kernels_entry *entry, uint32_t index,
                          const uint64_t *parameters)
{
    const struct kernels_parameter *parameter = &entry->parameters[index];
    uint64_t elements = 1;

    for (uint8_t i = 0; i < parameter->count_power; i++) {
        if (__builtin_mul_overflow(elements, parameters[parameter->count_index], &elements) ||
            elements > KERNELS_COUNT_MAX)
            return UINT64_MAX;
    }
    return elements;
}

/* Blocks for the launch's count, `most` at most, and one where there is nothing to do. */
static uint32_t blocks_for(const struct kernels_entry *entry, const uint64_t *parameters,
                           uint32_t most)
{
    uint64_t count = parameters[entry->count_index];
    uint64_t blocks = count > 0 ? (count - 1) / entry->block[0] + 1 : 1;

    return blocks < most ? (uint32_t)blocks : most;
}

void kernels_grid(const struct kernels_entry *entry, const uint64_t *parameters,
                  uint32_t multiprocessors, uint32_t ret_grid[3])
{
    uint32_t most = multiprocessors * entry->multiprocessor_blocks;

    ret_grid[0] = ret_grid[1] = ret_grid[2] = 1;
    switch (entry->grid_rule) {
    case KERNELS_GRID_ELEMENTS:
        ret_grid[0] = blocks_for(entry, parameters, most);
        break;
    case KERNELS_GRID_TILES:
        ret_grid[0] = ret_grid[1] = blocks_for(entry, parameters, MATRIX_MAX / TILE);
        break;
    case KERNELS_GRID_DEVICE:
        ret_grid[0] = most;
        break;
    case KERNELS_GRID_ONE:
        break;
    }
}

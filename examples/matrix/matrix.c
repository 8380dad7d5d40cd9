/* SPDX-License-Identifier: Apache-2.0 */
/*
 * matrix: a product of two matrices, tile by tile in shared memory.
 *
 *   c (ROWS x COLUMNS) = a (ROWS x INNER) b (INNER x COLUMNS)
 *
 * No size is a multiple of the tile.  The matrices lie in the program's own memory; the
 * library takes them through the heap.
 */
#include "example.h"

#include <err.h>
#include <stdio.h>
#include <stdlib.h>

#define ROWS 300u
#define INNER 200u
#define COLUMNS 250u
#define TILE 16u
#define SHARED_BYTES (2 * TILE * TILE * (uint32_t)sizeof(float))

extern const char matrix_ptx[];
extern const size_t matrix_ptx_bytes;

static float a[ROWS * INNER], b[INNER * COLUMNS], c[ROWS * COLUMNS];

/* Digits: all sums are exact. */
static void fill(float *matrix, uint32_t count, uint32_t step)
{
    for (uint32_t i = 0; i < count; i++)
        matrix[i] = (float)(i * step % 10);
}

static void multiply(struct vgpu_session *session)
{
    const uint32_t grid[3] = {example_blocks(COLUMNS, TILE), example_blocks(ROWS, TILE), 1};
    const uint32_t block[3] = {TILE, TILE, 1};
    const struct {
        _Alignas(8) uint64_t c, a, b;
        _Alignas(8) uint32_t rows;
        _Alignas(8) uint32_t inner;
        _Alignas(8) uint32_t columns;
    } parameters = {.c = example_alloc(session, sizeof(c)),
                    .a = example_upload(session, a, sizeof(a)),
                    .b = example_upload(session, b, sizeof(b)),
                    .rows = ROWS,
                    .inner = INNER,
                    .columns = COLUMNS};

    example_must(vgpu_launch_kernel(session, 0, EXAMPLE_MODULE, "matrix_product", grid, block,
                                    SHARED_BYTES, &parameters, sizeof(parameters),
                                    &example_problem),
                 "launch");
    example_must(vgpu_stream_sync(session, 0, &example_problem), "matrix_product");
    example_must(vgpu_copy_out(session, c, parameters.c, sizeof(c), &example_problem), "copy back");
}

static float on_cpu(uint32_t row, uint32_t column)
{
    float total = 0;

    for (uint32_t k = 0; k < INNER; k++)
        total += a[row * INNER + k] * b[k * COLUMNS + column];
    return total;
}

static void check(void)
{
    for (uint32_t i = 0; i < ROWS * COLUMNS; i++) {
        float expected = on_cpu(i / COLUMNS, i % COLUMNS);

        if (c[i] != expected)
            errx(1, "row %u, column %u is %g on the GPU, expected %g", i / COLUMNS, i % COLUMNS,
                 (double)c[i], (double)expected);
    }
}

int main(void)
{
    struct vgpu_session *session = example_open(matrix_ptx, matrix_ptx_bytes);

    fill(a, ROWS * INNER, 7);
    fill(b, INNER * COLUMNS, 3);
    multiply(session);
    vgpu_close(session);
    check();
    printf("matrix: %u x %u times %u x %u, as on the CPU\n", ROWS, INNER, INNER, COLUMNS);
    return 0;
}

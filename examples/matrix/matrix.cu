/* SPDX-License-Identifier: Apache-2.0 */
/*
 * c = a b for matrices of any size, stored row by row.
 *
 * A block of 16 x 16 threads computes one tile of c.  Both factors pass through shared memory
 * tile by tile, so that the block reads each of their elements once and not 16 times.  The
 * shared memory is dynamic: the launch gives room for two tiles, MATRIX_SHARED_BYTES.
 */
#include <stdint.h>

#define TILE 16u

extern "C" __global__ void matrix_product(float *c, const float *a, const float *b, uint32_t rows,
                                          uint32_t inner, uint32_t columns)
{
    extern __shared__ float tiles[];
    float *tile_a = tiles, *tile_b = tiles + TILE * TILE;
    uint32_t x = threadIdx.x, y = threadIdx.y;
    uint32_t row = blockIdx.y * TILE + y, column = blockIdx.x * TILE + x;
    float total = 0;

    for (uint32_t k = 0; k < inner; k += TILE) {
        /* What lies outside of a matrix counts as 0. */
        tile_a[y * TILE + x] = row < rows && k + x < inner ? a[row * inner + k + x] : 0;
        tile_b[y * TILE + x] =
            k + y < inner && column < columns ? b[(k + y) * columns + column] : 0;
        __syncthreads();
        for (uint32_t i = 0; i < TILE; i++)
            total += tile_a[y * TILE + i] * tile_b[i * TILE + x];
        __syncthreads();
    }
    if (row < rows && column < columns)
        c[row * columns + column] = total;
}

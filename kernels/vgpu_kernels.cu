/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The product's own kernels.  Compiled to vgpu_kernels.ptx, which stands beside this
 * file and in the worker; kernels.h tells their names, parameters and how each is
 * launched, README.md the same for people.
 *
 * Every kernel does its whole count whatever the grid is: a thread takes element i, then
 * i + all threads, and so on.  Parameters are 64-bit words: addresses and counts fill
 * theirs, a float or a 32-bit number stands in the low half.
 *
 * Ranges are the launcher's to check: nothing here knows how much memory there is.
 */
#include <stdint.h>

#define THREADS_MAX 1024u
#define TILE 32u          /* matrix_mul: side of a tile */
#define TILE_ROWS 8u      /* matrix_mul: rows of threads, each has TILE / TILE_ROWS rows */
#define LOCAL_WORDS 1024u /* KERNELS_LOCAL_WORDS of kernels.h */
#define SPIN_MAX_US 600000000ull
#define CYCLES_A_US 4000ull /* faster than any GPU's clock */

inline __device__ uint64_t first_index(void)
{
    return (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

inline __device__ uint64_t all_threads(void)
{
    return (uint64_t)gridDim.x * blockDim.x;
}

/* --- arithmetic ----------------------------------------------------------------------- */

/* c[i] = a[i] + b[i] */
extern "C" __global__ void vector_add(float *c, const float *a, const float *b, uint64_t count)
{
    for (uint64_t i = first_index(); i < count; i += all_threads())
        c[i] = a[i] + b[i];
}

/* y[i] = a * x[i] + y[i], in two roundings, as the cpu backend does */
extern "C" __global__ void saxpy(float *y, const float *x, float a, uint64_t count)
{
    for (uint64_t i = first_index(); i < count; i += all_threads())
        y[i] = __fadd_rn(__fmul_rn(a, x[i]), y[i]);
}

/* y[i] = value */
extern "C" __global__ void fill(uint32_t *y, uint32_t value, uint64_t count)
{
    for (uint64_t i = first_index(); i < count; i += all_threads())
        y[i] = value;
}

/* y[i] = y[i] + 1 */
extern "C" __global__ void increment(uint64_t *y, uint64_t count)
{
    for (uint64_t i = first_index(); i < count; i += all_threads())
        y[i]++;
}

/* --- sums: the same launch always gives the same bits ----------------------------------- */

/* The sum of all threads' `value`, in thread 0.  Each adds in an order of its own: no
 * atomics. */
inline __device__ double sum_of_block(double value)
{
    __shared__ double partial[THREADS_MAX];

    partial[threadIdx.x] = value;
    for (uint32_t half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    return partial[0];
}

/* sum[block] = what this block's threads find of x.  One block: sum[0] is all of it. */
extern "C" __global__ void reduce_sum(double *sum, const float *x, uint64_t count)
{
    double total = 0;

#pragma unroll 8
    for (uint64_t i = first_index(); i < count; i += all_threads())
        total += (double)x[i];
    total = sum_of_block(total);
    if (threadIdx.x == 0)
        sum[blockIdx.x] = total;
}

/* *sum = partials[0] + partials[1] + ...; one block */
extern "C" __global__ void reduce_partials(double *sum, const double *partials, uint64_t count)
{
    double total = 0;

    for (uint64_t i = threadIdx.x; i < count; i += blockDim.x)
        total += partials[i];
    total = sum_of_block(total);
    if (threadIdx.x == 0)
        *sum = total;
}

/* --- matrices --------------------------------------------------------------------------- */

/* Element (row, column) of an n x n matrix; outside of it 0. */
inline __device__ float element(const float *matrix, uint64_t row, uint64_t column, uint64_t n)
{
    return row < n && column < n ? matrix[row * n + column] : 0.0f;
}

/* One tile of c at (row, column): both factors pass through shared memory, tile by tile,
 * so each of their elements is read n / TILE times instead of n times. */
inline __device__ void multiply_tile(float *c, const float *a, const float *b, uint64_t n,
                                     uint64_t row, uint64_t column)
{
    __shared__ float tile_a[TILE][TILE], tile_b[TILE][TILE];
    float total[TILE / TILE_ROWS] = {0};

    for (uint64_t k = 0; k < n; k += TILE) {
        for (uint32_t y = threadIdx.y; y < TILE; y += TILE_ROWS) {
            tile_a[y][threadIdx.x] = element(a, row + y, k + threadIdx.x, n);
            tile_b[y][threadIdx.x] = element(b, k + y, column + threadIdx.x, n);
        }
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < TILE; i++) {
#pragma unroll
            for (uint32_t r = 0; r < TILE / TILE_ROWS; r++)
                total[r] += tile_a[threadIdx.y + r * TILE_ROWS][i] * tile_b[i][threadIdx.x];
        }
        __syncthreads();
    }
    for (uint32_t r = 0; r < TILE / TILE_ROWS; r++) {
        uint64_t y = row + threadIdx.y + r * TILE_ROWS, x = column + threadIdx.x;

        if (y < n && x < n)
            c[y * n + x] = total[r];
    }
}

/* c = a b, n x n each, row by row; blocks of exactly 32 x 8 threads */
extern "C" __global__ void matrix_mul(float *c, const float *a, const float *b, uint64_t n)
{
    for (uint64_t y = (uint64_t)blockIdx.y * TILE; y < n; y += (uint64_t)gridDim.y * TILE)
        for (uint64_t x = (uint64_t)blockIdx.x * TILE; x < n; x += (uint64_t)gridDim.x * TILE)
            multiply_tile(c, a, b, n, y, x);
}

/* --- time ------------------------------------------------------------------------------- */

inline __device__ uint64_t clock_ns(void)
{
    uint64_t ns;

    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

/* Is busy for so many microseconds, and for 10 minutes at most.  It comes back too where
 * the timer stands still: then the cycles that a very fast GPU would need end it.  They are
 * those of one multiprocessor: a block that was set aside for another program and went on
 * elsewhere may find fewer than before, so their difference has a sign. */
extern "C" __global__ void spin_us(uint64_t us)
{
    uint64_t wait_us = us < SPIN_MAX_US ? us : SPIN_MAX_US;
    uint64_t begin_ns = clock_ns(), begin_cycles = (uint64_t)clock64();

    while (clock_ns() - begin_ns < wait_us * 1000 &&
           (int64_t)((uint64_t)clock64() - begin_cycles) < (int64_t)(wait_us * CYCLES_A_US))
        continue;
}

/* --- is the device what it seems, is it clean --------------------------------------------- */

/* x[i] = i * 7 + 3: what a device must get right before it is given work */
extern "C" __global__ void touch(uint64_t *x, uint64_t count)
{
    for (uint64_t i = first_index(); i < count; i += all_threads())
        x[i] = i * 7 + 3;
}

inline __device__ void count_up(uint64_t *counter, uint64_t by)
{
    atomicAdd((unsigned long long *)counter, (unsigned long long)by);
}

/* Volatile: what nobody wrote may be anything to the compiler, and here it is the point. */
inline __device__ volatile uint32_t *shared_words(void)
{
    extern __shared__ uint32_t words[];

    return words;
}

/* Writes `pattern` into the block's first `words` words of shared memory; *counter grows by
 * `words` a block. */
extern "C" __global__ void fill_shared(uint64_t *counter, uint32_t pattern, uint64_t words)
{
    volatile uint32_t *own = shared_words();
    uint64_t count = 0;

    for (uint64_t i = threadIdx.x; i < words; i += blockDim.x, count++)
        own[i] = pattern;
    count_up(counter, count);
}

/* *counter grows by the words that are `pattern` in shared memory that nobody wrote. */
extern "C" __global__ void probe_shared(uint64_t *counter, uint32_t pattern, uint64_t words)
{
    const volatile uint32_t *own = shared_words();
    uint64_t count = 0;

    for (uint64_t i = threadIdx.x; i < words; i += blockDim.x)
        count += own[i] == pattern;
    count_up(counter, count);
}

/* Where a thread's own array lies in its local memory.  Reads and writes go through assembly:
 * the compiler would keep such an array in registers, or leave it out. */
inline __device__ uint64_t local_address(uint32_t *words)
{
    uint64_t address;

    asm volatile("cvta.to.local.u64 %0, %1;" : "=l"(address) : "l"(words) : "memory");
    return address;
}

/* Writes `pattern` into LOCAL_WORDS words of each thread's local memory; *counter grows by
 * what is read back. */
extern "C" __global__ void fill_local(uint64_t *counter, uint32_t pattern)
{
    uint32_t words[LOCAL_WORDS], word;
    uint64_t at = local_address(words), count = 0;

    for (uint32_t i = 0; i < LOCAL_WORDS; i++)
        asm volatile("st.local.u32 [%0], %1;" ::"l"(at + i * 4), "r"(pattern) : "memory");
    for (uint32_t i = 0; i < LOCAL_WORDS; i++) {
        asm volatile("ld.local.u32 %0, [%1];" : "=r"(word) : "l"(at + i * 4) : "memory");
        count += word == pattern;
    }
    count_up(counter, count);
}

/* *counter grows by the words that are `pattern` in local memory that nobody wrote. */
extern "C" __global__ void probe_local(uint64_t *counter, uint32_t pattern)
{
    uint32_t words[LOCAL_WORDS], word;
    uint64_t at = local_address(words), count = 0;

    for (uint32_t i = 0; i < LOCAL_WORDS; i++) {
        asm volatile("ld.local.u32 %0, [%1];" : "=r"(word) : "l"(at + i * 4) : "memory");
        count += word == pattern;
    }
    count_up(counter, count);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Built-in kernels of the cpu backend, by name.  Parameters are 64-bit words:
 * device addresses, counts, or a float's bits in the low half.  Grid and block do
 * not matter here: a kernel does its whole count.
 *
 *   vector_add  c a b count      c[i] = a[i] + b[i]            floats
 *   saxpy       y x a count      y[i] = a * x[i] + y[i]        floats, a is one
 *   fill        y value count    y[i] = value                  32-bit words
 *   increment   y count          y[i] = y[i] + 1               64-bit words
 *   reduce_sum  sum x count      *sum = x[0] + x[1] + ...      floats, sum a double
 *   matrix_mul  c a b n          c = a b                       n x n floats, c apart
 *   spin_us     us               lasts so long                 at most 10 minutes
 */
#include "exec/device.h"

#include <string.h>

#define COUNT_MAX (1ull << 40)
#define MATRIX_MAX 16384u
#define SPIN_MAX_US (PROTOCOL_SPIN_MAX_MS * US_PER_MS)

typedef enum vgpu_status (*kernel_function)(struct device_memory *memory, const uint64_t *p);

static float as_float(uint64_t word)
{
    uint32_t bits = (uint32_t)word;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* `count` elements of `bytes` at `address`; NULL also where that is no range. */
static void *array_at(struct device_memory *memory, uint64_t address, uint64_t count, size_t bytes)
{
    if (count > COUNT_MAX || address % bytes != 0)
        return NULL;
    return memory_at(memory, address, count * bytes);
}

static enum vgpu_status vector_add(struct device_memory *memory, const uint64_t *p)
{
    uint64_t count = p[3];
    float *c = array_at(memory, p[0], count, sizeof(*c));
    const float *a = array_at(memory, p[1], count, sizeof(*a));
    const float *b = array_at(memory, p[2], count, sizeof(*b));

    if (!a || !b || !c)
        return VGPU_BAD_ADDRESS;
    for (uint64_t i = 0; i < count; i++)
        c[i] = a[i] + b[i];
    return VGPU_OK;
}

static enum vgpu_status saxpy(struct device_memory *memory, const uint64_t *p)
{
    uint64_t count = p[3];
    float *y = array_at(memory, p[0], count, sizeof(*y));
    const float *x = array_at(memory, p[1], count, sizeof(*x));
    float a = as_float(p[2]);

    if (!x || !y)
        return VGPU_BAD_ADDRESS;
    for (uint64_t i = 0; i < count; i++)
        y[i] = a * x[i] + y[i];
    return VGPU_OK;
}

static enum vgpu_status fill(struct device_memory *memory, const uint64_t *p)
{
    uint32_t *y = array_at(memory, p[0], p[2], sizeof(*y));

    if (!y)
        return VGPU_BAD_ADDRESS;
    for (uint64_t i = 0; i < p[2]; i++)
        y[i] = (uint32_t)p[1];
    return VGPU_OK;
}

static enum vgpu_status increment(struct device_memory *memory, const uint64_t *p)
{
    uint64_t *y = array_at(memory, p[0], p[1], sizeof(*y));

    if (!y)
        return VGPU_BAD_ADDRESS;
    for (uint64_t i = 0; i < p[1]; i++)
        y[i]++;
    return VGPU_OK;
}

static enum vgpu_status reduce_sum(struct device_memory *memory, const uint64_t *p)
{
    double *sum = array_at(memory, p[0], 1, sizeof(*sum)), total = 0;
    const float *x = array_at(memory, p[1], p[2], sizeof(*x));

    if (!sum || !x)
        return VGPU_BAD_ADDRESS;
    for (uint64_t i = 0; i < p[2]; i++)
        total += (double)x[i];
    *sum = total;
    return VGPU_OK;
}

static bool overlap(const float *a, const float *b, uint64_t count)
{
    return a < b + count && b < a + count;
}

static enum vgpu_status matrix_mul(struct device_memory *memory, const uint64_t *p)
{
    uint64_t n = p[3];
    float *c;
    const float *a, *b;

    if (n > MATRIX_MAX)
        return VGPU_INVALID;
    c = array_at(memory, p[0], n * n, sizeof(*c));
    a = array_at(memory, p[1], n * n, sizeof(*a));
    b = array_at(memory, p[2], n * n, sizeof(*b));
    if (!a || !b || !c)
        return VGPU_BAD_ADDRESS;
    if (overlap(c, a, n * n) || overlap(c, b, n * n))
        return VGPU_INVALID;
    exec_backend_cpu.matrix_mul(a, b, c, n, NULL);
    return VGPU_OK;
}

/* Occupies the device, as a kernel that computes would, and for a whole millisecond or
 * more no core. */
static enum vgpu_status spin_us(struct device_memory *memory, const uint64_t *p)
{
    uint64_t end_ns = clock_monotonic_ns() + p[0] * NS_PER_US;

    (void)memory;
    if (p[0] > SPIN_MAX_US)
        return VGPU_INVALID;
    if (p[0] >= US_PER_MS)
        exec_backend_cpu.spin((uint32_t)(p[0] / US_PER_MS), NULL);
    while (clock_monotonic_ns() < end_ns)
        __builtin_ia32_pause();
    return VGPU_OK;
}

static const struct {
    const char *name;
    uint32_t parameters;
    kernel_function function;
} kernels[] = {
    {"vector_add", 4, vector_add}, {"saxpy", 4, saxpy},           {"fill", 3, fill},
    {"increment", 2, increment},   {"reduce_sum", 3, reduce_sum}, {"matrix_mul", 4, matrix_mul},
    {"spin_us", 1, spin_us},
};

enum vgpu_status kernel_launch(struct device_memory *memory, const char *name,
                               const uint64_t *parameters, uint32_t count)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(kernels); i++) {
        if (strcmp(kernels[i].name, name) != 0)
            continue;
        return count == kernels[i].parameters ? kernels[i].function(memory, parameters)
                                              : VGPU_INVALID;
    }
    return VGPU_NOT_FOUND;
}

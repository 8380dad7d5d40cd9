/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cpu backend: the reference that other backends are measured against, and
 * what computes on a host without a GPU.
 *
 * The matrix product goes through B in blocks that stay in the second-level
 * cache while every row of A passes over them.  The innermost loop runs along a
 * row of B and of the product, four rows of B at a time, so it reads memory in
 * order and the compiler makes vector instructions of it.
 */
#include "exec/device.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_ROWS 64     /* of B; a multiple of the four taken at a time */
#define BLOCK_COLUMNS 256 /* BLOCK_ROWS × BLOCK_COLUMNS floats are 64 KiB */

/* Read at the start: later a worker may open no file. */
static char cpu_model[256] = "unknown model";
static long cpu_cores = 1;

static void read_model(char *model, size_t bytes);

static int cpu_open(const struct exec_backend_config *config, struct vgpu_error *error)
{
    (void)config;
    (void)error;
    read_model(cpu_model, sizeof(cpu_model));
    cpu_cores = sysconf(_SC_NPROCESSORS_ONLN);
    return 0;
}

static void cpu_close(void)
{
}

static int cpu_vector_add(const float *a, const float *b, float *sum, size_t count,
                          struct vgpu_error *error)
{
    (void)error;
    for (size_t i = 0; i < count; i++)
        sum[i] = a[i] + b[i];
    return 0;
}

static int cpu_reduce(const float *x, size_t count, double *ret_sum, struct vgpu_error *error)
{
    (void)error;
    *ret_sum = 0;
    for (size_t i = 0; i < count; i++)
        *ret_sum += (double)x[i];
    return 0;
}

/* product[0..columns) += a[0..rows) × the block of B at `b`, whose rows are
 * `stride` apart. */
static void block_row_multiply(const float *restrict a, const float *restrict b,
                               float *restrict product, size_t rows, size_t columns, size_t stride)
{
    size_t k = 0;

    for (; k + 4 <= rows; k += 4) {
        const float *restrict b0 = b + k * stride, *restrict b1 = b0 + stride;
        const float *restrict b2 = b1 + stride, *restrict b3 = b2 + stride;

        for (size_t j = 0; j < columns; j++)
            product[j] += a[k] * b0[j] + a[k + 1] * b1[j] + a[k + 2] * b2[j] + a[k + 3] * b3[j];
    }
    for (; k < rows; k++) {
        for (size_t j = 0; j < columns; j++)
            product[j] += a[k] * b[k * stride + j];
    }
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static int cpu_matrix_mul(const float *a, const float *b, float *product, size_t n,
                          struct vgpu_error *error)
{
    (void)error;
    memset(product, 0, n * n * sizeof(*product));
    for (size_t k = 0; k < n; k += BLOCK_ROWS) {
        for (size_t j = 0; j < n; j += BLOCK_COLUMNS) {
            for (size_t i = 0; i < n; i++)
                block_row_multiply(a + i * n + k, b + k * n + j, product + i * n + j,
                                   smaller(BLOCK_ROWS, n - k), smaller(BLOCK_COLUMNS, n - j), n);
        }
    }
    return 0;
}

/* Occupies the device, not a core: to the scheduler a worker that sleeps is as
 * busy as one that computes. */
static int cpu_spin(uint32_t spin_ms, struct vgpu_error *error)
{
    uint64_t end_ns = clock_monotonic_ns() + spin_ms * NS_PER_MS;
    struct timespec end = {.tv_sec = (time_t)(end_ns / NS_PER_S),
                           .tv_nsec = (long)(end_ns % NS_PER_S)};

    (void)error;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == EINTR)
        ;
    return 0;
}

/* The value of the first `model name : …` line, "unknown model" elsewhere. */
static void read_model(char *model, size_t bytes)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[512];

    text_copy(model, bytes, "unknown model");
    while (file && fgets(line, sizeof(line), file)) {
        const char *value = strchr(line, ':');

        if (strncmp(line, "model name", strlen("model name")) != 0 || !value)
            continue;
        value += strspn(value, ": \t");
        text_escape(model, bytes, value, strcspn(value, "\n"));
        break;
    }
    if (file)
        fclose(file);
}

static void cpu_describe(char *text, size_t bytes)
{
    snprintf(text, bytes, "CPU backend: %s, %ld core%s, no GPU", cpu_model, cpu_cores,
             cpu_cores == 1 ? "" : "s");
}

const struct exec_backend exec_backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .vector_add = cpu_vector_add,
    .matrix_mul = cpu_matrix_mul,
    .reduce = cpu_reduce,
    .spin = cpu_spin,
    .describe = cpu_describe,
    .device = &cpu_device_ops,
};

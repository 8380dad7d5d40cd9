/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels by name, with what those of kernels/ compute: vector_add, saxpy, fill, increment,
 * reduce_sum, reduce_partials, matrix_mul, spin_us, touch, fill_shared, fill_local and what
 * looks for their leftovers, of which there never are any; `gate` is the sanity gate's, `store`
 * a test's.
 * `fault`, `assert_fail` and `hang` are faults.  One of any other name takes its time and does
 * nothing.  An address that is not the context's is an illegal one, as on a device.
 */
#include "fake_cuda.h"

#include <string.h>
#include <unistd.h>

typedef cuda_result (*kernel_function)(const struct fake_launch *launch);

/* `count` elements behind parameter `index`; NULL when they are not all the context's. */
static void *array_at(const struct fake_launch *launch, size_t index, uint64_t count, size_t bytes)
{
    size_t all_bytes;
    void *at;

    if (launch->words[index] % bytes != 0 || __builtin_mul_overflow(count, bytes, &all_bytes))
        return NULL;
    pthread_mutex_lock(&fake_lock);
    at = fake_memory_at(launch->context, launch->words[index], all_bytes);
    pthread_mutex_unlock(&fake_lock);
    return at;
}

static float as_float(uint64_t word)
{
    uint32_t bits = (uint32_t)word;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static cuda_result vector_add(const struct fake_launch *launch)
{
    uint64_t count = launch->words[3];
    float *c = array_at(launch, 0, count, sizeof(*c));
    const float *a = array_at(launch, 1, count, sizeof(*a));
    const float *b = array_at(launch, 2, count, sizeof(*b));

    if (!a || !b || !c)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t i = 0; i < count; i++)
        c[i] = a[i] + b[i];
    return CUDA_SUCCESS;
}

static cuda_result saxpy(const struct fake_launch *launch)
{
    uint64_t count = launch->words[3];
    float *y = array_at(launch, 0, count, sizeof(*y));
    const float *x = array_at(launch, 1, count, sizeof(*x));
    float a = as_float(launch->words[2]);

    if (!x || !y)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t i = 0; i < count; i++)
        y[i] = a * x[i] + y[i];
    return CUDA_SUCCESS;
}

static cuda_result fill(const struct fake_launch *launch)
{
    uint64_t count = launch->words[2];
    uint32_t *y = array_at(launch, 0, count, sizeof(*y));

    if (!y)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t i = 0; i < count; i++)
        y[i] = (uint32_t)launch->words[1];
    return CUDA_SUCCESS;
}

static cuda_result increment(const struct fake_launch *launch)
{
    uint64_t *y = array_at(launch, 0, launch->words[1], sizeof(*y));

    if (!y)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t i = 0; i < launch->words[1]; i++)
        y[i]++;
    return CUDA_SUCCESS;
}

/* Each block writes a sum; here all is in the first block's. */
static cuda_result reduce_sum(const struct fake_launch *launch)
{
    double *sum = array_at(launch, 0, launch->blocks, sizeof(*sum)), total = 0;
    const float *x = array_at(launch, 1, launch->words[2], sizeof(*x));

    if (!sum || !x)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t i = 0; i < launch->words[2]; i++)
        total += (double)x[i];
    memset(sum, 0, launch->blocks * sizeof(*sum));
    sum[0] = total;
    return CUDA_SUCCESS;
}

static cuda_result reduce_partials(const struct fake_launch *launch)
{
    double *sum = array_at(launch, 0, 1, sizeof(*sum)), total = 0;
    const double *x = array_at(launch, 1, launch->words[2], sizeof(*x));

    if (!sum || !x)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t i = 0; i < launch->words[2]; i++)
        total += x[i];
    *sum = total;
    return CUDA_SUCCESS;
}

static cuda_result matrix_mul(const struct fake_launch *launch)
{
    uint64_t n = launch->words[3], elements;
    float *c;
    const float *a, *b;

    if (__builtin_mul_overflow(n, n, &elements))
        return CUDA_ILLEGAL_ADDRESS;
    c = array_at(launch, 0, elements, sizeof(*c));
    a = array_at(launch, 1, elements, sizeof(*a));
    b = array_at(launch, 2, elements, sizeof(*b));
    if (!a || !b || !c)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t row = 0; row < n; row++) {
        for (uint64_t column = 0; column < n; column++) {
            float total = 0;

            for (uint64_t i = 0; i < n; i++)
                total += a[row * n + i] * b[i * n + column];
            c[row * n + column] = total;
        }
    }
    return CUDA_SUCCESS;
}

static cuda_result spin_us(const struct fake_launch *launch)
{
    fake_sleep_ns(launch->words[0] * NS_PER_US);
    return CUDA_SUCCESS;
}

static cuda_result touch(const struct fake_launch *launch)
{
    uint64_t *x = array_at(launch, 0, launch->words[1], sizeof(*x));

    if (!x)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t i = 0; i < launch->words[1]; i++)
        x[i] = i * 7 + 3;
    return CUDA_SUCCESS;
}

static cuda_result gate(const struct fake_launch *launch)
{
    uint32_t *x = array_at(launch, 0, launch->words[1], sizeof(*x));

    if (!x)
        return CUDA_ILLEGAL_ADDRESS;
    for (uint64_t i = 0; i < launch->words[1]; i++)
        x[i] = x[i] * 7 + 3;
    return CUDA_SUCCESS;
}

/* As the PTX of tests/func/cuda_probe.c: one 32-bit word. */
static cuda_result store(const struct fake_launch *launch)
{
    uint32_t *target = array_at(launch, 0, 1, sizeof(*target));

    if (!target)
        return CUDA_ILLEGAL_ADDRESS;
    *target = (uint32_t)launch->words[1];
    return CUDA_SUCCESS;
}

/* How many 32-bit words fill_local writes a thread. */
#define LOCAL_WORDS 1024u

static cuda_result count_up(const struct fake_launch *launch, uint64_t words)
{
    uint64_t *counter = array_at(launch, 0, 1, sizeof(*counter));

    if (!counter)
        return CUDA_ILLEGAL_ADDRESS;
    *counter += words;
    return CUDA_SUCCESS;
}

static cuda_result fill_shared(const struct fake_launch *launch)
{
    return count_up(launch, launch->words[2] * launch->blocks);
}

static cuda_result fill_local(const struct fake_launch *launch)
{
    return count_up(launch, (uint64_t)LOCAL_WORDS * launch->blocks * launch->threads);
}

static cuda_result probe(const struct fake_launch *launch)
{
    return count_up(launch, 0);
}

static cuda_result fault(const struct fake_launch *launch)
{
    (void)launch;
    return CUDA_ILLEGAL_ADDRESS;
}

static cuda_result assert_fail(const struct fake_launch *launch)
{
    (void)launch;
    return CUDA_ASSERT;
}

static cuda_result hang(const struct fake_launch *launch)
{
    (void)launch;
    while (pause() < 0)
        ;
    return CUDA_SUCCESS; /* never */
}

static const struct {
    const char *name;
    size_t count; /* parameters */
    kernel_function function;
} kernels[] = {
    {"vector_add", 4, vector_add},
    {"saxpy", 4, saxpy},
    {"fill", 3, fill},
    {"increment", 2, increment},
    {"reduce_sum", 3, reduce_sum},
    {"reduce_partials", 3, reduce_partials},
    {"matrix_mul", 4, matrix_mul},
    {"spin_us", 1, spin_us},
    {"touch", 2, touch},
    {"gate", 2, gate},
    {"store", 2, store},
    {"fill_shared", 3, fill_shared},
    {"probe_shared", 3, probe},
    {"fill_local", 2, fill_local},
    {"probe_local", 2, probe},
    {"fault", 0, fault},
    {"assert_fail", 0, assert_fail},
    {"hang", 0, hang},
};

cuda_result fake_kernel_run(const struct fake_launch *launch)
{
    uint64_t time_us;
    bool skipped;

    pthread_mutex_lock(&fake_lock);
    time_us = fake_orders()->kernel_us;
    skipped = fake_is_ordered(RULE_SKIP, launch->name);
    pthread_mutex_unlock(&fake_lock);
    for (size_t i = 0; !skipped && i < VGPU_ARRAY_LENGTH(kernels); i++) {
        if (strcmp(kernels[i].name, launch->name) == 0)
            return launch->count < kernels[i].count ? CUDA_ILLEGAL_ADDRESS
                                                    : kernels[i].function(launch);
    }
    fake_sleep_ns(time_us * NS_PER_US);
    return CUDA_SUCCESS;
}

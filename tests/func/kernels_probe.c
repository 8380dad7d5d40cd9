/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs every kernel of kernels/ on a device, with several sizes, and compares with the host's
 * own results.  Uses NVIDIA's library directly, so that compute-sanitizer can watch it:
 *
 *   compute-sanitizer --tool memcheck kernels_probe [LIBRARY]
 *
 * Allocations are exactly as large as the kernel may touch.  Prints a line a kernel; ends with
 * 0 when all was right.
 */
#include "gpu/cuda.h"
#include "kernels/kernels.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define SPIN_US 3000u
#define SHARED_WORDS 12288u
#define PATTERN 0x5a5a5a5au

static struct cuda cuda;
static cuda_module module;
static int multiprocessors;
static unsigned launches;

static const uint64_t counts[] = {1, 2, 31, 32, 33, 255, 256, 257, 1000, 65537, 1000003};
static const uint64_t sides[] = {1, 2, 31, 32, 33, 100, 257};

static void __attribute__((noreturn, format(printf, 2, 3))) wrong(int line, const char *format, ...)
{
    va_list args;

    fprintf(stderr, "kernels_probe.c:%d: ", line);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    _exit(1);
}

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            wrong(__LINE__, "not true: %s", #condition);                                           \
    } while (0)

#define GOOD(call)                                                                                 \
    do {                                                                                           \
        cuda_result result_ = (call);                                                              \
        if (result_ != CUDA_SUCCESS)                                                               \
            wrong(__LINE__, "%s: %s", #call, cuda_error_name(&cuda, result_));                     \
    } while (0)

/* --- memory of the device ----------------------------------------------------------------------
 */

static uint64_t give(const void *data, uint64_t bytes)
{
    cuda_pointer address;

    GOOD(cuda.mem_alloc(&address, bytes));
    if (data)
        GOOD(cuda.memcpy_htod_async(address, data, bytes, NULL));
    else
        GOOD(cuda.memset_d8_async(address, 0, bytes, NULL));
    GOOD(cuda.stream_synchronize(NULL));
    return address;
}

static void take(void *data, uint64_t address, uint64_t bytes)
{
    GOOD(cuda.memcpy_dtoh_async(data, address, bytes, NULL));
    GOOD(cuda.stream_synchronize(NULL));
}

static void drop(uint64_t address)
{
    GOOD(cuda.mem_free(address));
}

static void *fresh(uint64_t bytes)
{
    void *memory = calloc(1, bytes);

    MUST(memory);
    return memory;
}

/* Numbers that are exact as floats, and so are their sums and products. */
static float *numbers(uint64_t count, unsigned seed)
{
    float *made = fresh(count * sizeof(*made));

    for (uint64_t i = 0; i < count; i++)
        made[i] = (float)((i * 7 + seed) % 19) - 9;
    return made;
}

/* --- launches ------------------------------------------------------------------------------------
 */

/* `blocks` 0: as kernels_grid() says. */
static void launch(const char *name, const uint64_t *words, uint32_t blocks, uint32_t shared_bytes)
{
    const struct kernels_entry *entry = kernels_find(name);
    void *parameters[KERNELS_PARAMETERS_MAX];
    cuda_function function;
    uint32_t grid[3];

    MUST(entry);
    for (uint32_t i = 0; i < entry->parameter_count; i++)
        parameters[i] = (void *)(uintptr_t)&words[i];
    kernels_grid(entry, words, (uint32_t)multiprocessors, grid);
    GOOD(cuda.module_get_function(&function, module, name));
    GOOD(cuda.launch_kernel(function, blocks ? blocks : grid[0], grid[1], grid[2], entry->block[0],
                            entry->block[1], entry->block[2], shared_bytes, NULL, parameters,
                            NULL));
    GOOD(cuda.stream_synchronize(NULL));
    launches++;
}

static uint64_t float_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* --- the kernels
 * ----------------------------------------------------------------------------------- */

static void vector_add(uint64_t count)
{
    float *a = numbers(count, 1), *b = numbers(count, 2), *c = fresh(count * 4);
    const uint64_t words[] = {give(NULL, count * 4), give(a, count * 4), give(b, count * 4), count};

    launch("vector_add", words, 0, 0);
    take(c, words[0], count * 4);
    for (uint64_t i = 0; i < count; i++)
        MUST(c[i] == a[i] + b[i]);
    for (int i = 0; i < 3; i++)
        drop(words[i]);
    free(a);
    free(b);
    free(c);
}

static void saxpy(uint64_t count)
{
    float *x = numbers(count, 3), *y = numbers(count, 4), *out = fresh(count * 4);
    const uint64_t words[] = {give(y, count * 4), give(x, count * 4), float_bits(3), count};

    launch("saxpy", words, 0, 0);
    take(out, words[0], count * 4);
    for (uint64_t i = 0; i < count; i++)
        MUST(out[i] == 3 * x[i] + y[i]);
    drop(words[0]);
    drop(words[1]);
    free(x);
    free(y);
    free(out);
}

static void fill(uint64_t count)
{
    uint32_t *out = fresh(count * 4);
    const uint64_t words[] = {give(NULL, count * 4), PATTERN, count};

    launch("fill", words, 0, 0);
    take(out, words[0], count * 4);
    for (uint64_t i = 0; i < count; i++)
        MUST(out[i] == PATTERN);
    drop(words[0]);
    free(out);
}

static void increment(uint64_t count)
{
    uint64_t *out = fresh(count * 8);
    const uint64_t words[] = {give(NULL, count * 8), count};

    launch("increment", words, 0, 0);
    launch("increment", words, 0, 0);
    take(out, words[0], count * 8);
    for (uint64_t i = 0; i < count; i++)
        MUST(out[i] == 2);
    drop(words[0]);
    free(out);
}

static double sum_of(const float *x, uint64_t count)
{
    double sum = 0;

    for (uint64_t i = 0; i < count; i++)
        sum += (double)x[i];
    return sum;
}

static void reduce_sum(uint64_t count)
{
    float *x = numbers(count, 5);
    const uint64_t words[] = {give(NULL, 8), give(x, count * 4), count};
    double sum;

    launch("reduce_sum", words, 0, 0);
    take(&sum, words[0], 8);
    MUST(sum == sum_of(x, count));
    drop(words[0]);
    drop(words[1]);
    free(x);
}

/* A sum by the whole device: partial sums, then theirs. */
static void reduce_partials(uint64_t count)
{
    static const uint32_t blocks[] = {1, 7, KERNELS_PARTIALS_MAX};
    float *x = numbers(count, 6);
    uint64_t at = give(x, count * 4), sum_at = give(NULL, 8);
    double sum;

    for (size_t i = 0; i < ARRAY_LENGTH(blocks); i++) {
        uint64_t scratch = give(NULL, blocks[i] * 8);
        const uint64_t first[] = {scratch, at, count}, second[] = {sum_at, scratch, blocks[i]};

        launch("reduce_sum", first, blocks[i], 0);
        launch("reduce_partials", second, 0, 0);
        take(&sum, sum_at, 8);
        MUST(sum == sum_of(x, count));
        drop(scratch);
    }
    drop(at);
    drop(sum_at);
    free(x);
}

static void matrix_mul(uint64_t n)
{
    const uint64_t bytes = n * n * 4;
    float *a = numbers(n * n, 7), *b = numbers(n * n, 8), *c = fresh(bytes);
    const uint64_t words[] = {give(NULL, bytes), give(a, bytes), give(b, bytes), n};

    launch("matrix_mul", words, 0, 0);
    take(c, words[0], bytes);
    for (uint64_t y = 0; y < n; y++) {
        for (uint64_t x = 0; x < n; x++) {
            float total = 0;

            for (uint64_t k = 0; k < n; k++)
                total += a[y * n + k] * b[k * n + x];
            MUST(c[y * n + x] == total);
        }
    }
    for (int i = 0; i < 3; i++)
        drop(words[i]);
    free(a);
    free(b);
    free(c);
}

static void touch(uint64_t count)
{
    uint64_t *out = fresh(count * 8);
    const uint64_t words[] = {give(NULL, count * 8), count};

    launch("touch", words, 0, 0);
    take(out, words[0], count * 8);
    for (uint64_t i = 0; i < count; i++)
        MUST(out[i] == i * 7 + 3);
    drop(words[0]);
    free(out);
}

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void spin_us(uint64_t us)
{
    double begin_us = now_us();

    launch("spin_us", &us, 0, 0);
    MUST(now_us() - begin_us >= (double)us);
}

static uint64_t count_words(const char *name, uint64_t words_each)
{
    uint64_t counter = give(NULL, 8), count;
    const uint64_t words[] = {counter, PATTERN, words_each};

    launch(name, words, 0, (uint32_t)words_each * 4);
    take(&count, counter, 8);
    drop(counter);
    return count;
}

static void fill_shared(uint64_t words_each)
{
    MUST(count_words("fill_shared", words_each) == words_each * (uint64_t)multiprocessors);
}

/* What it finds is the device's affair; more than there is, is wrong. */
static void probe_shared(uint64_t words_each)
{
    MUST(count_words("probe_shared", words_each) <= words_each * (uint64_t)multiprocessors);
}

static uint64_t local_words(const struct kernels_entry *entry)
{
    return (uint64_t)multiprocessors * entry->multiprocessor_blocks * entry->block[0] *
           KERNELS_LOCAL_WORDS;
}

static void fill_local(uint64_t unused)
{
    (void)unused;
    MUST(count_words("fill_local", 0) == local_words(kernels_find("fill_local")));
}

static void probe_local(uint64_t unused)
{
    (void)unused;
    MUST(count_words("probe_local", 0) <= local_words(kernels_find("probe_local")));
}

static const uint64_t spins[] = {0, 1, SPIN_US}, shares[] = {0, 1, 256, 1000, SHARED_WORDS};
static const uint64_t once[] = {0};

#define SIZES(array) (array), ARRAY_LENGTH(array)

static const struct {
    const char *name;
    void (*check)(uint64_t size);
    const uint64_t *sizes;
    size_t size_count;
} checks[] = {
    {"vector_add", vector_add, SIZES(counts)},
    {"saxpy", saxpy, SIZES(counts)},
    {"fill", fill, SIZES(counts)},
    {"increment", increment, SIZES(counts)},
    {"reduce_sum", reduce_sum, SIZES(counts)},
    {"reduce_partials", reduce_partials, SIZES(counts)},
    {"matrix_mul", matrix_mul, SIZES(sides)},
    {"touch", touch, SIZES(counts)},
    {"spin_us", spin_us, SIZES(spins)},
    {"fill_shared", fill_shared, SIZES(shares)},
    {"probe_shared", probe_shared, SIZES(shares)},
    {"fill_local", fill_local, SIZES(once)},
    {"probe_local", probe_local, SIZES(once)},
};

/* A kernel without a check is a mistake here. */
static void check_all(void)
{
    MUST(ARRAY_LENGTH(checks) == kernels_count);
    for (size_t i = 0; i < ARRAY_LENGTH(checks); i++) {
        unsigned before = launches;

        MUST(kernels_find(checks[i].name));
        for (size_t k = 0; k < checks[i].size_count; k++)
            checks[i].check(checks[i].sizes[k]);
        printf("%s: %u launches, right\n", checks[i].name, launches - before);
    }
}

int main(int argc, char **argv)
{
    struct vgpu_error error = {.code = 0};
    cuda_context context;
    cuda_device device;

    if (cuda_load(argc > 1 ? argv[1] : NULL, &cuda, &error) < 0)
        wrong(__LINE__, "%s", error.message);
    GOOD(cuda.init(0));
    GOOD(cuda.device_get(&device, 0));
    GOOD(cuda.device_get_attribute(&multiprocessors, CUDA_DEVICE_MULTIPROCESSOR_COUNT, device));
    GOOD(cuda.ctx_create(&context, 0, device));
    GOOD(cuda.module_load_data_ex(&module, kernels_ptx, 0, NULL, NULL));
    check_all();
    printf("kernels: %zu, launches: %u\n", kernels_count, launches);
    GOOD(cuda.module_unload(module));
    GOOD(cuda.ctx_destroy(context));
    cuda_unload(&cuda);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a GPU does through a session, beside the same by NVIDIA's library alone:
 *
 *   bench_gpu [--library FILE] [--rounds N] [--max-mib N] [--quick 1]
 *
 * The session comes from VGPU_SOCKET, with the same GPU (the first) behind it.  Both sides
 * are measured by this process, in turn: in each round one side, then the other, for every
 * measure; while one is measured the other has no work on the device.  Both wait by
 * spinning.  Prints one JSON object: flat keys, medians over all samples of all rounds.
 *
 * --quick is for tests of this program: a few samples each, of few launches.
 *
 * Needs a window of more than twice the largest copy (--max-mib, default 1024); it makes it.
 */
#include "gpu/cuda.h"
#include "kernels/kernels.h"

#include "probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define MIB (1ull << 20)
#define SPIN_US 1000000
#define THREADS 256u
#define ASYNC_COUNT 5000u /* launches between two synchronisations: more than any queue has */
#define CLIENT_COUNT 256u /* launches that the ring takes at once */
#define QUICK_COUNT 20u
#define COPY_BUDGET (4096 * MIB) /* bytes that a measure of copies moves a round, about */
#define KEY_BYTES 96

static struct cuda cuda;
static uint64_t largest_bytes = 1024 * MIB;
static unsigned rounds = 5;
static bool quick;

/* The library's side. */
static struct {
    cuda_stream stream;
    cuda_function increment;
    cuda_pointer memory;
    void *pinned;
} native;

/* The session's. */
static struct {
    struct vgpu_session *session;
    uint64_t memory;
    void *window;
} guest;

static void *pageable; /* both copy it: the program's own memory */

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* --- launches ------------------------------------------------------------------------------------
 */

static void native_launch(void)
{
    static uint64_t count = 1;
    void *parameters[] = {&native.memory, &count};

    GOOD(cuda.launch_kernel(native.increment, 1, 1, 1, THREADS, 1, 1, 0, native.stream, parameters,
                            NULL));
}

static void native_sync(uint64_t unused)
{
    (void)unused;
    GOOD(cuda.stream_synchronize(native.stream));
}

static void guest_launch(void)
{
    static const uint32_t grid[3] = {1, 1, 1}, block[3] = {THREADS, 1, 1};
    const uint64_t parameters[] = {guest.memory, 1};

    GOOD(vgpu_launch(guest.session, 0, "increment", grid, block, parameters, 2, &problem));
}

static void guest_sync(uint64_t unused)
{
    (void)unused;
    GOOD(vgpu_stream_sync(guest.session, 0, &problem));
}

static void native_launch_sync(uint64_t unused)
{
    native_launch();
    native_sync(unused);
}

static void guest_launch_sync(uint64_t unused)
{
    guest_launch();
    guest_sync(unused);
}

static void native_launch_many(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        native_launch();
    native_sync(0);
}

static void guest_launch_many(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        guest_launch();
    guest_sync(0);
}

static void native_launch_only(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        native_launch();
}

static void guest_launch_only(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        guest_launch();
}

static void guest_launch_batch(uint64_t count)
{
    vgpu_batch_begin(guest.session);
    guest_launch_only(count);
    vgpu_batch_end(guest.session);
}

/* --- memory
 * ---------------------------------------------------------------------------------------- */

static void native_alloc_free(uint64_t bytes)
{
    cuda_pointer address;

    GOOD(cuda.mem_alloc(&address, bytes));
    GOOD(cuda.mem_free(address));
}

static void guest_alloc_free(uint64_t bytes)
{
    uint64_t address;

    GOOD(vgpu_memory_alloc(guest.session, bytes, &address, &problem));
    GOOD(vgpu_memory_free(guest.session, address, &problem));
}

static void native_in(const void *source, uint64_t bytes)
{
    GOOD(cuda.memcpy_htod_async(native.memory, source, bytes, native.stream));
    native_sync(0);
}

static void native_out(void *target, uint64_t bytes)
{
    GOOD(cuda.memcpy_dtoh_async(target, native.memory, bytes, native.stream));
    native_sync(0);
}

static void native_in_pinned(uint64_t bytes)
{
    native_in(native.pinned, bytes);
}

static void native_out_pinned(uint64_t bytes)
{
    native_out(native.pinned, bytes);
}

static void native_in_pageable(uint64_t bytes)
{
    native_in(pageable, bytes);
}

static void native_out_pageable(uint64_t bytes)
{
    native_out(pageable, bytes);
}

static void guest_in_window(uint64_t bytes)
{
    GOOD(vgpu_copy_in(guest.session, guest.memory, guest.window, bytes, &problem));
}

static void guest_out_window(uint64_t bytes)
{
    GOOD(vgpu_copy_out(guest.session, guest.window, guest.memory, bytes, &problem));
}

static void guest_in_pageable(uint64_t bytes)
{
    GOOD(vgpu_copy_in(guest.session, guest.memory, pageable, bytes, &problem));
}

static void guest_out_pageable(uint64_t bytes)
{
    GOOD(vgpu_copy_out(guest.session, pageable, guest.memory, bytes, &problem));
}

/* --- measuring
 * --------------------------------------------------------------------------------------- */

typedef void (*work)(uint64_t size);

/* One side of a measure: what is timed, what comes after it untimed, and its name. */
struct side {
    const char *key;
    work run, after;
    double *samples_us;
    unsigned count;
};

struct measure {
    struct side native, guest;
    uint64_t size;
    unsigned times;  /* a round */
    unsigned divide; /* a sample is so many of them; 0: one */
    bool is_copy;
};

static int compare(const void *a, const void *b)
{
    const double *first = a, *second = b;

    return (*first > *second) - (*first < *second);
}

static void sample(const struct measure *measure, struct side *side)
{
    if (!side->run)
        return;
    if (!side->samples_us)
        side->samples_us = calloc((size_t)measure->times * rounds, sizeof(double));
    MUST(side->samples_us);
    side->run(measure->size); /* once for whatever is only made now */
    if (side->after)
        side->after(0);
    for (unsigned i = 0; i < measure->times; i++) {
        double begin_us = now_us(), end_us;

        side->run(measure->size);
        end_us = now_us();
        if (side->after)
            side->after(0);
        side->samples_us[side->count++] =
            (end_us - begin_us) / (measure->divide ? measure->divide : 1);
    }
}

static double quantile(struct side *side, double part)
{
    unsigned at = (unsigned)(side->count * part);

    qsort(side->samples_us, side->count, sizeof(double), compare);
    return side->samples_us[at < side->count ? at : side->count - 1];
}

/* --- what is told
 * ---------------------------------------------------------------------------------------- */

static bool told; /* something before: a comma is needed */

static void tell(const char *prefix, const char *key, const char *suffix, double value)
{
    printf("%s\n \"%s%s%s\": %.6g", told ? "," : "", prefix, key, suffix, value);
    told = true;
}

static void size_name(uint64_t bytes, char name[KEY_BYTES])
{
    if (bytes >= MIB)
        snprintf(name, KEY_BYTES, ".%lluMiB", (unsigned long long)(bytes / MIB));
    else if (bytes >= 1024)
        snprintf(name, KEY_BYTES, ".%lluKiB", (unsigned long long)(bytes / 1024));
    else
        snprintf(name, KEY_BYTES, ".%lluB", (unsigned long long)bytes);
}

static void tell_side(const struct measure *measure, struct side *side, const char *prefix)
{
    char name[KEY_BYTES], bare[KEY_BYTES * 2];

    if (!side->run)
        return;
    size_name(measure->size, name);
    if (measure->is_copy) {
        snprintf(bare, sizeof(bare), "%s%s", side->key, name);
        tell(prefix, bare, ".us", quantile(side, 0.5));
        tell(prefix, bare, ".gbps", (double)measure->size / quantile(side, 0.5) / 1e3);
        return;
    }
    snprintf(bare, sizeof(bare), "%s%s", side->key,
             measure->divide || measure->size == 0 ? "" : name);
    tell(prefix, bare, ".p50", quantile(side, 0.5));
    tell(prefix, bare, ".p99", quantile(side, 0.99));
}

static void run_and_tell(struct measure *measure)
{
    if (quick) {
        measure->times = 3;
        if (measure->divide)
            measure->size = measure->divide = QUICK_COUNT;
    }
    for (unsigned i = 0; i < rounds; i++) {
        sample(measure, &measure->native);
        sample(measure, &measure->guest);
    }
    tell_side(measure, &measure->native, "native.");
    tell_side(measure, &measure->guest, "gpu.");
    fflush(stdout);
    free(measure->native.samples_us);
    free(measure->guest.samples_us);
}

static void measure_launches(void)
{
    struct measure all[] = {
        {.native = {"launch_sync_us", native_launch_sync},
         .guest = {"launch_sync_us", guest_launch_sync},
         .times = 3000},
        {.native = {"launch_async_us", native_launch_many},
         .guest = {"launch_async_us", guest_launch_many},
         .size = ASYNC_COUNT,
         .divide = ASYNC_COUNT,
         .times = 8},
        {.native = {"launch_async_client_us", native_launch_only, native_sync},
         .guest = {"launch_async_client_us", guest_launch_only, guest_sync},
         .size = CLIENT_COUNT,
         .divide = CLIENT_COUNT,
         .times = 100},
        {.guest = {"launch_async_client_batch_us", guest_launch_batch, guest_sync},
         .size = CLIENT_COUNT,
         .divide = CLIENT_COUNT,
         .times = 100},
        {.native = {"alloc_free_us", native_alloc_free},
         .guest = {"alloc_free_us", guest_alloc_free},
         .size = MIB,
         .times = 400},
        {.native = {"alloc_free_us", native_alloc_free},
         .guest = {"alloc_free_us", guest_alloc_free},
         .size = 64 * MIB,
         .times = 200},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(all); i++)
        run_and_tell(&all[i]);
}

static unsigned copies_of(uint64_t bytes)
{
    uint64_t times = COPY_BUDGET / rounds / bytes;

    return times < 2 ? 2 : times > 500 ? 500 : (unsigned)times;
}

static void measure_copies(uint64_t bytes)
{
    struct measure all[] = {
        {.native = {"copy_h2d.pinned", native_in_pinned},
         .guest = {"copy_h2d.window", guest_in_window}},
        {.native = {"copy_d2h.pinned", native_out_pinned},
         .guest = {"copy_d2h.window", guest_out_window}},
        {.native = {"copy_h2d.pageable", native_in_pageable},
         .guest = {"copy_h2d.malloc", guest_in_pageable}},
        {.native = {"copy_d2h.pageable", native_out_pageable},
         .guest = {"copy_d2h.malloc", guest_out_pageable}},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(all); i++) {
        all[i].size = bytes;
        all[i].times = copies_of(bytes);
        all[i].is_copy = true;
        run_and_tell(&all[i]);
    }
}

/* --- set-up
 * -------------------------------------------------------------------------------------------- */

static void open_native(const char *library)
{
    struct vgpu_error error = {.code = 0};
    cuda_context context;
    cuda_module module;
    cuda_device device;

    if (cuda_load(library, &cuda, &error) < 0)
        wrong(__FILE__, __LINE__, "%s", error.message);
    GOOD(cuda.init(0));
    GOOD(cuda.device_get(&device, 0));
    GOOD(cuda.ctx_create(&context, CUDA_CONTEXT_SCHED_SPIN, device));
    GOOD(cuda.module_load_data_ex(&module, kernels_ptx, 0, NULL, NULL));
    GOOD(cuda.module_get_function(&native.increment, module, "increment"));
    GOOD(cuda.stream_create(&native.stream, CUDA_STREAM_NON_BLOCKING));
    GOOD(cuda.mem_alloc(&native.memory, largest_bytes));
    GOOD(cuda.memset_d8_async(native.memory, 0, largest_bytes, native.stream));
    GOOD(cuda.mem_host_alloc(&native.pinned, largest_bytes, CUDA_HOST_ALLOC_PORTABLE));
    memset(native.pinned, 1, largest_bytes);
    native_sync(0);
}

static void open_guest(void)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    uint64_t backend;

    options.spin_us = SPIN_US;
    options.window_bytes = 2 * largest_bytes + 64 * MIB;
    options.open_timeout_ms = 60000;
    GOOD(vgpu_open(&options, &guest.session, &problem));
    GOOD(vgpu_query(guest.session, VGPU_QUERY_BACKEND, &backend, &problem));
    if (backend != VGPU_BACKEND_CUDA)
        wrong(__FILE__, __LINE__, "the session's pool is no GPU: give it `device = cuda:0`");
    GOOD(vgpu_memory_alloc(guest.session, largest_bytes, &guest.memory, &problem));
    guest.window = vgpu_heap_alloc(guest.session, largest_bytes);
    MUST(guest.window);
    memset(guest.window, 2, largest_bytes);
}

static void read_options(int argc, char **argv, const char **ret_library)
{
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            wrong(__FILE__, __LINE__,
                  "usage: bench_gpu [--library FILE] [--rounds N] [--max-mib N] [--quick 1]");
        if (strcmp(argv[i], "--library") == 0)
            *ret_library = argv[i + 1];
        else if (strcmp(argv[i], "--rounds") == 0)
            rounds = (unsigned)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--max-mib") == 0)
            largest_bytes = strtoull(argv[i + 1], NULL, 10) * MIB;
        else if (strcmp(argv[i], "--quick") == 0)
            quick = true;
        else
            wrong(__FILE__, __LINE__, "no such option: %s", argv[i]);
    }
    if (rounds < 1 || rounds > 100 || largest_bytes < 64 * MIB)
        wrong(__FILE__, __LINE__, "--rounds is 1 to 100, --max-mib 64 or more");
}

int main(int argc, char **argv)
{
    static const uint64_t sizes[] = {4,        4096,     65536,     MIB,
                                     16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB};
    const char *library = NULL;

    read_options(argc, argv, &library);
    pageable = malloc(largest_bytes);
    MUST(pageable);
    memset(pageable, 3, largest_bytes);
    open_native(library);
    open_guest();
    printf("{");
    measure_launches();
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
        if (sizes[i] <= largest_bytes)
            measure_copies(sizes[i]);
    }
    printf("\n}\n");
    vgpu_close(guest.session);
    return 0;
}

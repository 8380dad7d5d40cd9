/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's program for tests/func/test_gpu.py: sessions that share a GPU, on purpose or by
 * mistake.  The session comes from VGPU_SOCKET.
 *
 *   gpu_probe leftovers PTX    looks for others' data in all the memory that it can get, in
 *                              shared and in local memory; then fills all three and stays
 *   gpu_probe right SECONDS    computes and compares with its own results
 *   gpu_probe image FILE       loads PTX, a cubin or a fatbin of kernels/vgpu_kernels.cu, and
 *                              runs a kernel of it
 *   gpu_probe fault            launches a kernel that touches memory which is not there
 *   gpu_probe hang             launches a kernel that never ends
 *   gpu_probe delay SECONDS    how long an answer took at most
 *
 * PTX is kernels/vgpu_kernels.ptx, loaded as a module of the VM's own: so the grid is the
 * VM's to choose, and the kernels that look for leftovers can be launched.
 *
 * Prints one JSON object.  Ends with 0 when that could be found out, else it says why not.
 */
#include "probe.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define GRANULE (2ull << 20)
#define COUNT 50000u
#define HANDLE 7u
#define IMAGE_BYTES_MAX (16u << 20)
#define THREADS 256u
#define SUM_BLOCKS 1024u
#define SUM_THREADS 1024u
#define LOCAL_WORDS 1024u
#define SHARED_WORDS 12288u /* 48 KiB: what a launch has without asking for more */
#define PATTERN 0x3f800000u /* 1.0f: a sum of such words counts them */

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void launch(struct vgpu_session *s, uint32_t module, const char *name, uint32_t blocks,
                   uint32_t threads, uint32_t shared_bytes, const uint64_t *parameters,
                   uint32_t count)
{
    GOOD(vgpu_launch_kernel(s, 0, module, name, (const uint32_t[]){blocks, 1, 1},
                            (const uint32_t[]){threads, 1, 1}, shared_bytes, parameters, count * 8,
                            &problem));
}

/* --- leftovers ----------------------------------------------------------------------------- */

struct leftovers {
    struct vgpu_session *session;
    uint64_t memory, memory_bytes;
    uint64_t partials; /* SUM_BLOCKS doubles, one for the sum and a counter */
    uint32_t blocks;   /* of a launch that is everywhere */
};

/* As it is, without a NUL behind it: a text gets one on its way.  Gives its bytes. */
static size_t load_image(struct vgpu_session *s, const char *path)
{
    FILE *file = fopen(path, "re");
    char *image = malloc(IMAGE_BYTES_MAX);
    size_t bytes;

    if (!file || !image)
        wrong(__FILE__, __LINE__, "cannot read '%s'", path);
    bytes = fread(image, 1, IMAGE_BYTES_MAX, file);
    fclose(file);
    MUST(bytes > 0 && bytes < IMAGE_BYTES_MAX);
    GOOD(vgpu_module_load(s, HANDLE, image, bytes, &problem));
    free(image);
    return bytes;
}

/* All that the session can get: the device may have less than its limit. */
static void take_all(struct leftovers *all)
{
    uint64_t bytes;

    GOOD(vgpu_query(all->session, VGPU_QUERY_MEMORY_FREE_BYTES, &bytes, &problem));
    while (vgpu_memory_alloc(all->session, bytes, &all->memory, &problem) < 0) {
        MUST(problem.status == VGPU_OUT_OF_MEMORY && bytes > 64 * GRANULE);
        bytes -= bytes / 64 / GRANULE * GRANULE + GRANULE;
    }
    all->memory_bytes = bytes;
}

/* The sum of all words of the memory: 0 where nothing is in it. */
static double sum_of_memory(struct leftovers *all)
{
    uint64_t sum = all->partials + SUM_BLOCKS * 8;
    const uint64_t first[] = {all->partials, all->memory, all->memory_bytes / 4};
    const uint64_t second[] = {sum, all->partials, SUM_BLOCKS};
    double result;

    launch(all->session, HANDLE, "reduce_sum", SUM_BLOCKS, SUM_THREADS, 0, first, 3);
    launch(all->session, HANDLE, "reduce_partials", 1, SUM_THREADS, 0, second, 3);
    GOOD(vgpu_copy_out(all->session, &result, sum, sizeof(result), &problem));
    return result;
}

/* What one of the counting kernels counts. */
static uint64_t count_words(struct leftovers *all, const char *kernel, uint32_t shared_words)
{
    uint64_t counter = all->partials + SUM_BLOCKS * 8 + 8, count;
    const uint64_t parameters[] = {counter, PATTERN, shared_words};

    GOOD(vgpu_memory_set(all->session, counter, 0, 4, 2, &problem));
    launch(all->session, HANDLE, kernel, all->blocks, THREADS, shared_words * 4, parameters,
           shared_words ? 3 : 2);
    GOOD(vgpu_copy_out(all->session, &count, counter, sizeof(count), &problem));
    return count;
}

/* Fills all and sees it: what looks for leftovers can find them. */
static void fill_all(struct leftovers *all)
{
    const uint64_t words = all->memory_bytes / 4;

    GOOD(vgpu_memory_set(all->session, all->memory, PATTERN, 4, words, &problem));
    MUST(sum_of_memory(all) == (double)words);
    MUST(count_words(all, "fill_shared", SHARED_WORDS) == (uint64_t)all->blocks * SHARED_WORDS);
    printf("\"own_shared_words\": %" PRIu64 ", ", count_words(all, "probe_shared", SHARED_WORDS));
    MUST(count_words(all, "fill_local", 0) == (uint64_t)all->blocks * THREADS * LOCAL_WORDS);
    printf("\"own_local_words\": %" PRIu64 "}\n", count_words(all, "probe_local", 0));
}

static void leftovers(struct vgpu_session *s, const char *path)
{
    struct leftovers all = {.session = s, .partials = allocate(s, (SUM_BLOCKS + 2) * 8)};
    uint64_t multiprocessors;

    GOOD(vgpu_query(s, VGPU_QUERY_MULTIPROCESSORS, &multiprocessors, &problem));
    all.blocks = (uint32_t)multiprocessors * 8;
    load_image(s, path);
    printf("{\"shared_words\": %" PRIu64 ", ", count_words(&all, "probe_shared", SHARED_WORDS));
    printf("\"local_words\": %" PRIu64 ", ", count_words(&all, "probe_local", 0));
    take_all(&all);
    printf("\"memory_bytes\": %" PRIu64 ", \"memory_sum\": %.17g, ", all.memory_bytes,
           sum_of_memory(&all));
    fill_all(&all);
    fflush(stdout);
    pause(); /* to be killed */
}

/* --- sessions side by side -------------------------------------------------------------------- */

static void compute(struct vgpu_session *s, uint32_t module, unsigned round, const uint64_t at[3],
                    float *x)
{
    const uint64_t add[] = {at[2], at[0], at[1], COUNT}, fill[] = {at[1], 0x40000000, COUNT};

    for (unsigned i = 0; i < COUNT; i++)
        x[i] = (float)((i + round) % 1000);
    GOOD(vgpu_copy_in(s, at[0], x, COUNT * sizeof(*x), &problem));
    launch(s, module, "fill", 1, 1, 0, fill, 3); /* 2.0f */
    launch(s, module, "vector_add", 1, 1, 0, add, 4);
    GOOD(vgpu_copy_out(s, x, at[2], COUNT * sizeof(*x), &problem));
    for (unsigned i = 0; i < COUNT; i++)
        MUST(x[i] == (float)((i + round) % 1000) + 2);
}

static void right(struct vgpu_session *s, const char *seconds)
{
    const uint64_t at[3] = {allocate(s, COUNT * 4), allocate(s, COUNT * 4), allocate(s, COUNT * 4)};
    float *x = malloc(COUNT * sizeof(*x));
    double end_s = now_s() + atof(seconds);
    unsigned rounds = 0;

    MUST(x);
    while (now_s() < end_s)
        compute(s, 0, rounds++, at, x);
    printf("{\"rounds\": %u}\n", rounds);
    free(x);
}

static void image(struct vgpu_session *s, const char *path)
{
    const uint64_t at[3] = {allocate(s, COUNT * 4), allocate(s, COUNT * 4), allocate(s, COUNT * 4)};
    float *x = malloc(COUNT * sizeof(*x));
    size_t bytes = load_image(s, path);

    MUST(x);
    compute(s, HANDLE, 1, at, x);
    GOOD(vgpu_module_unload(s, HANDLE, &problem));
    printf("{\"image_bytes\": %zu, \"right\": %u}\n", bytes, COUNT);
    free(x);
}

static const char misdeeds_ptx[] =
    ".version 7.0\n.target sm_75\n.address_size 64\n"
    ".visible .entry fault()\n"
    "{ .reg .b64 a; .reg .b32 v; mov.u64 a, 16; mov.u32 v, 1; st.global.u32 [a], v; ret; }\n"
    ".visible .entry hang()\n"
    "{ again: bra again; }\n";

static void misdeed(struct vgpu_session *s, const char *kernel)
{
    double begin_s;

    GOOD(vgpu_module_load(s, HANDLE, misdeeds_ptx, sizeof(misdeeds_ptx), &problem));
    puts("{\"launched\": true}");
    fflush(stdout);
    begin_s = now_s();
    launch(s, HANDLE, kernel, 1, 1, 0, NULL, 0);
    MUST(vgpu_device_sync(s, &problem) == -1);
    printf("{\"status\": \"%s\", \"after_s\": %.3f}\n", vgpu_status_text(problem.status),
           now_s() - begin_s);
}

static void delay(struct vgpu_session *s, const char *seconds)
{
    const uint64_t parameters[] = {allocate(s, 8), 1};
    double begin_s = now_s(), last_s = begin_s, end_s = begin_s + atof(seconds), worst_s = 0;
    unsigned count = 0;

    puts("{\"began\": true}");
    fflush(stdout);
    for (; last_s < end_s; count++) {
        double before_s = last_s;

        launch(s, 0, "increment", 1, 1, 0, parameters, 2);
        GOOD(vgpu_device_sync(s, &problem));
        last_s = now_s();
        if (last_s - before_s > worst_s)
            worst_s = last_s - before_s;
    }
    printf("{\"answers\": %u, \"worst_s\": %.6f, \"mean_s\": %.9f}\n", count, worst_s,
           (last_s - begin_s) / count);
}

static int run(struct vgpu_session *s, const char *behaviour, const char *argument)
{
    if (strcmp(behaviour, "fault") == 0 || strcmp(behaviour, "hang") == 0)
        misdeed(s, behaviour);
    else if (argument && strcmp(behaviour, "leftovers") == 0)
        leftovers(s, argument);
    else if (argument && strcmp(behaviour, "right") == 0)
        right(s, argument);
    else if (argument && strcmp(behaviour, "image") == 0)
        image(s, argument);
    else if (argument && strcmp(behaviour, "delay") == 0)
        delay(s, argument);
    else
        return 2;
    return 0;
}

int main(int argc, char **argv)
{
    struct vgpu_session *session;
    int status;

    if (argc < 2) {
        fprintf(stderr, "usage: gpu_probe leftovers PTX | right S | image FILE | fault | hang | "
                        "delay S\n");
        return 2;
    }
    GOOD(vgpu_open(NULL, &session, &problem));
    status = run(session, argv[1], argc > 2 ? argv[2] : NULL);
    vgpu_close(session);
    return status;
}

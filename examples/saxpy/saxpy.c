/* SPDX-License-Identifier: Apache-2.0 */
/*
 * saxpy: the smallest program with a kernel of its own.
 *
 *   heap: x, y ──copy in──▶ device: x, y ──saxpy──▶ y ──copy out──▶ heap: y
 *
 * The data lies in the session's heap, memory that both sides see, so that each copy is one
 * step.  Events around the launch tell how long the kernel took.
 */
#include "example.h"

#include <err.h>
#include <stdio.h>

#define COUNT (256u << 10)
#define A 2.5f
#define THREADS 256u

extern const char saxpy_ptx[];
extern const size_t saxpy_ptx_bytes;

/* Small whole numbers, so that the result is exact, and the same in any order. */
static float x_of(uint32_t i)
{
    return (float)(i % 1000);
}

static float y_of(uint32_t i)
{
    return (float)(i % 7);
}

static uint64_t launch(struct vgpu_session *session, uint64_t y, uint64_t x)
{
    const uint32_t grid[3] = {example_blocks(COUNT, THREADS), 1, 1}, block[3] = {THREADS, 1, 1};
    /* Each parameter begins at a multiple of 8 bytes. */
    const struct {
        _Alignas(8) uint64_t y, x;
        _Alignas(8) float a;
        _Alignas(8) uint32_t count;
    } parameters = {.y = y, .x = x, .a = A, .count = COUNT};
    enum { BEGIN = 1, END };
    uint64_t run_ns = 0;

    example_must(vgpu_event_create(session, BEGIN, &example_problem), "event");
    example_must(vgpu_event_create(session, END, &example_problem), "event");
    example_must(vgpu_event_record(session, 0, BEGIN, &example_problem), "record");
    example_must(vgpu_launch_kernel(session, 0, EXAMPLE_MODULE, "saxpy", grid, block, 0,
                                    &parameters, sizeof(parameters), &example_problem),
                 "launch");
    example_must(vgpu_event_record(session, 0, END, &example_problem), "record");
    /* A launch does not wait: what was wrong with it is told here. */
    example_must(vgpu_stream_sync(session, 0, &example_problem), "saxpy");
    example_must(vgpu_event_elapsed_ns(session, BEGIN, END, &run_ns, &example_problem), "time");
    return run_ns;
}

static void check(const float *y)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        float expected = A * x_of(i) + y_of(i);

        if (y[i] != expected)
            errx(1, "y[%u] is %g on the GPU, expected %g", i, (double)y[i], (double)expected);
    }
}

int main(void)
{
    const uint64_t bytes = COUNT * sizeof(float);
    struct vgpu_session *session = example_open(saxpy_ptx, saxpy_ptx_bytes);
    float *x = vgpu_heap_alloc(session, bytes), *y = vgpu_heap_alloc(session, bytes);
    uint64_t device_y, run_ns;

    if (!x || !y)
        errx(1, "the heap has no room for two arrays of %llu bytes", (unsigned long long)bytes);
    for (uint32_t i = 0; i < COUNT; i++) {
        x[i] = x_of(i);
        y[i] = y_of(i);
    }
    device_y = example_upload(session, y, bytes);
    run_ns = launch(session, device_y, example_upload(session, x, bytes));
    example_must(vgpu_copy_out(session, y, device_y, bytes, &example_problem), "copy back");
    check(y);
    printf("saxpy: y = %g x + y for %u floats, as on the CPU; %.1f us on the GPU\n", (double)A,
           COUNT, (double)run_ns / 1000);
    vgpu_close(session);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * digits: a trained network reads digits on the GPU.
 *
 *   CPU: learns from digits of one seed          network.c
 *   GPU: scores COUNT digits of another seed     two launches, a layer each
 *   CPU: scores the same digits; the two must agree
 *
 * The second launch needs the first one's result and is not told so: launches of one stream
 * run one after the other.
 */
#include "example.h"
#include "network.h"

#include <err.h>
#include <math.h>
#include <stdio.h>

#define COUNT 2000u
#define TRAINING_SEED 12345u
#define TEST_SEED 98765u
#define DIFFERENCE_MAX 1e-3f /* of a score: the GPU sums in another order, and rounds less */
#define SHARE_MIN 0.9f       /* of digits read right: else the network has learned nothing */

extern const char digits_ptx[];
extern const size_t digits_ptx_bytes;

static struct network network;
static float points[COUNT][POINTS], scores[COUNT][DIGITS];
static uint32_t digits[COUNT];

/* --- on the GPU ----------------------------------------------------------------------------- */

/* The parameters of kernel `dense`. */
struct layer {
    _Alignas(8) uint64_t out, in, weights, bias;
    _Alignas(8) uint32_t images;
    _Alignas(8) uint32_t inputs;
    _Alignas(8) uint32_t outputs;
    _Alignas(8) uint32_t rectify;
};

static void launch_layer(struct vgpu_session *session, const struct layer *layer)
{
    const uint32_t block[3] = {32, 8, 1};
    const uint32_t grid[3] = {example_blocks(layer->outputs, block[0]),
                              example_blocks(layer->images, block[1]), 1};

    example_must(vgpu_launch_kernel(session, 0, EXAMPLE_MODULE, "dense", grid, block, 0, layer,
                                    sizeof(*layer), &example_problem),
                 "launch");
}

static struct layer hidden_layer(struct vgpu_session *session)
{
    return (struct layer){
        .out = example_alloc(session, sizeof(float[COUNT][HIDDEN])),
        .in = example_upload(session, points, sizeof(points)),
        .weights = example_upload(session, network.hidden_weights, sizeof(network.hidden_weights)),
        .bias = example_upload(session, network.hidden_bias, sizeof(network.hidden_bias)),
        .images = COUNT,
        .inputs = POINTS,
        .outputs = HIDDEN,
        .rectify = 1,
    };
}

static struct layer score_layer(struct vgpu_session *session, uint64_t hidden)
{
    return (struct layer){
        .out = example_alloc(session, sizeof(scores)),
        .in = hidden,
        .weights = example_upload(session, network.weights, sizeof(network.weights)),
        .bias = example_upload(session, network.bias, sizeof(network.bias)),
        .images = COUNT,
        .inputs = HIDDEN,
        .outputs = DIGITS,
        .rectify = 0,
    };
}

static void score_on_gpu(struct vgpu_session *session)
{
    const struct layer first = hidden_layer(session);
    const struct layer second = score_layer(session, first.out);

    launch_layer(session, &first);
    launch_layer(session, &second);
    example_must(vgpu_stream_sync(session, 0, &example_problem), "dense");
    example_must(vgpu_copy_out(session, scores, second.out, sizeof(scores), &example_problem),
                 "copy back");
}

/* --- the comparison --------------------------------------------------------------------------- */

struct verdict {
    uint32_t right_on_gpu, right_on_cpu; /* digits read right */
    float difference;                    /* of a score, the largest */
};

/* The largest; or the first that is too large, or no number at all. */
static float difference_of(const float one[DIGITS], const float other[DIGITS])
{
    float largest = 0;

    for (uint32_t d = 0; d < DIGITS; d++) {
        float difference = fabsf(one[d] - other[d]);

        if (!(difference <= DIFFERENCE_MAX))
            return difference;
        largest = fmaxf(largest, difference);
    }
    return largest;
}

static struct verdict compare(void)
{
    struct verdict verdict = {0};

    for (uint32_t i = 0; i < COUNT; i++) {
        float hidden[HIDDEN], expected[DIGITS], difference;

        network_scores(&network, points[i], hidden, expected);
        difference = difference_of(scores[i], expected);
        if (!(difference <= DIFFERENCE_MAX))
            errx(1, "the scores of digit %u are apart by %g, at most %g was expected", i,
                 (double)difference, (double)DIFFERENCE_MAX);
        verdict.difference = fmaxf(verdict.difference, difference);
        verdict.right_on_gpu += network_choice(scores[i]) == digits[i];
        verdict.right_on_cpu += network_choice(expected) == digits[i];
    }
    return verdict;
}

int main(void)
{
    struct vgpu_session *session = example_open(digits_ptx, digits_ptx_bytes);
    uint32_t seed = TEST_SEED;
    struct verdict verdict;

    network_train(&network, TRAINING_SEED);
    for (uint32_t i = 0; i < COUNT; i++)
        digits[i] = digit_draw(&seed, points[i]);
    score_on_gpu(session);
    vgpu_close(session);
    verdict = compare();
    if ((float)verdict.right_on_gpu < SHARE_MIN * (float)COUNT)
        errx(1, "the GPU read %u of %u digits right, at least %.0f %% were expected",
             verdict.right_on_gpu, COUNT, 100 * (double)SHARE_MIN);
    printf(
        "digits: of %u digits the GPU read %.1f %% right, the CPU %.1f %%; scores differ by %.1g "
        "at most\n",
        COUNT, 100.0 * verdict.right_on_gpu / COUNT, 100.0 * verdict.right_on_cpu / COUNT,
        (double)verdict.difference);
    return 0;
}

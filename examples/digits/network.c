/* SPDX-License-Identifier: Apache-2.0 */
/* See network.h. */
#include "network.h"

#include <math.h>
#include <string.h>

#define SAMPLES 40000u
#define STEP_FIRST 0.05f /* how far one sample moves the weights; it falls to a tenth */
#define NOISE 0.4f       /* brightness that is chance */
#define FLIPPED 0.02f    /* share of points that are bright for dark, or dark for bright */

/* --- chance ------------------------------------------------------------------------------- */

static uint32_t chance(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* 0 to 1 */
static float chance_float(uint32_t *state)
{
    return (float)(chance(state) >> 8) / (float)(1u << 24);
}

/* --- digits ------------------------------------------------------------------------------- */

/* The parts of the field of 7 x 4 points that a segment lights, in the order a to g:
 *
 *   aaaa
 *   f  b
 *   gggg
 *   e  c
 *   dddd  */
static const struct segment {
    uint8_t top, bottom, left, right;
} segments[] = {
    {0, 0, 0, 3}, {0, 3, 3, 3}, {3, 6, 3, 3}, {6, 6, 0, 3},
    {3, 6, 0, 0}, {0, 3, 0, 0}, {3, 3, 0, 3},
};

/* Bit 0 is segment a. */
static const uint8_t lit[DIGITS] = {0x3f, 0x06, 0x5b, 0x4f, 0x66, 0x6d, 0x7d, 0x07, 0x7f, 0x6f};

static void draw_segment(const struct segment *segment, uint32_t y, uint32_t x,
                         float points[POINTS])
{
    for (uint32_t row = segment->top; row <= segment->bottom; row++)
        for (uint32_t column = segment->left; column <= segment->right; column++)
            points[(y + row) * SIDE + x + column] = 1;
}

uint32_t digit_draw(uint32_t *state, float points[POINTS])
{
    uint32_t digit = chance(state) % DIGITS;
    uint32_t y = chance(state) % 2, x = 1 + chance(state) % 3;

    memset(points, 0, sizeof(float[POINTS]));
    for (uint32_t i = 0; i < sizeof(segments) / sizeof(segments[0]); i++) {
        if (lit[digit] >> i & 1)
            draw_segment(&segments[i], y, x, points);
    }
    for (uint32_t i = 0; i < POINTS; i++) {
        float bright = chance_float(state) < FLIPPED ? 1 - points[i] : points[i];

        points[i] = bright * (1 - NOISE) + chance_float(state) * NOISE;
    }
    return digit;
}

/* --- the network ------------------------------------------------------------------------------ */

void network_scores(const struct network *network, const float points[POINTS], float hidden[HIDDEN],
                    float scores[DIGITS])
{
    memcpy(hidden, network->hidden_bias, sizeof(network->hidden_bias));
    for (uint32_t i = 0; i < POINTS; i++)
        for (uint32_t h = 0; h < HIDDEN; h++)
            hidden[h] += points[i] * network->hidden_weights[i][h];
    memcpy(scores, network->bias, sizeof(network->bias));
    for (uint32_t h = 0; h < HIDDEN; h++) {
        hidden[h] = hidden[h] > 0 ? hidden[h] : 0;
        for (uint32_t d = 0; d < DIGITS; d++)
            scores[d] += hidden[h] * network->weights[h][d];
    }
}

uint32_t network_choice(const float scores[DIGITS])
{
    uint32_t best = 0;

    for (uint32_t d = 1; d < DIGITS; d++) {
        if (scores[d] > scores[best])
            best = d;
    }
    return best;
}

/* How much too high each score is: its probability, less 1 for the right one. */
static void blame_of(const float scores[DIGITS], uint32_t digit, float blame[DIGITS])
{
    float highest = scores[network_choice(scores)], sum = 0;

    for (uint32_t d = 0; d < DIGITS; d++)
        sum += blame[d] = expf(scores[d] - highest);
    for (uint32_t d = 0; d < DIGITS; d++)
        blame[d] = blame[d] / sum - (d == digit ? 1 : 0);
}

/* The last layer learns; returns in `hidden` how much too high each hidden value was. */
static void learn_scores(struct network *network, const float blame[DIGITS], float step,
                         float hidden[HIDDEN])
{
    for (uint32_t h = 0; h < HIDDEN; h++) {
        float value = hidden[h], too_high = 0;

        for (uint32_t d = 0; d < DIGITS; d++) {
            too_high += blame[d] * network->weights[h][d];
            network->weights[h][d] -= step * blame[d] * value;
        }
        hidden[h] = value > 0 ? too_high : 0;
    }
    for (uint32_t d = 0; d < DIGITS; d++)
        network->bias[d] -= step * blame[d];
}

static void learn_hidden(struct network *network, const float points[POINTS],
                         const float blame[HIDDEN], float step)
{
    for (uint32_t i = 0; i < POINTS; i++)
        for (uint32_t h = 0; h < HIDDEN; h++)
            network->hidden_weights[i][h] -= step * blame[h] * points[i];
    for (uint32_t h = 0; h < HIDDEN; h++)
        network->hidden_bias[h] -= step * blame[h];
}

static void begin_by_chance(struct network *network, uint32_t *state)
{
    memset(network, 0, sizeof(*network));
    for (uint32_t i = 0; i < POINTS; i++)
        for (uint32_t h = 0; h < HIDDEN; h++)
            network->hidden_weights[i][h] = 0.3f * (chance_float(state) - 0.5f);
    for (uint32_t h = 0; h < HIDDEN; h++)
        for (uint32_t d = 0; d < DIGITS; d++)
            network->weights[h][d] = 0.4f * (chance_float(state) - 0.5f);
}

void network_train(struct network *network, uint32_t seed)
{
    float points[POINTS], hidden[HIDDEN], scores[DIGITS], blame[DIGITS];
    uint32_t state = seed;

    begin_by_chance(network, &state);
    for (uint32_t i = 0; i < SAMPLES; i++) {
        float step = STEP_FIRST * (1 - 0.9f * (float)i / (float)SAMPLES);
        uint32_t digit = digit_draw(&state, points);

        network_scores(network, points, hidden, scores);
        blame_of(scores, digit, blame);
        learn_scores(network, blame, step, hidden);
        learn_hidden(network, points, hidden, step);
    }
}

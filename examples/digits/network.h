/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Digits of seven segments, 8 x 8 points with noise, and a network of two layers that learns
 * on the CPU to tell them.
 *
 *   64 points ──weights, bias──▶ 32 hidden, never below 0 ──weights, bias──▶ 10 scores
 *
 * All chance comes from seeds: the same seeds give the same digits and the same network.
 */
#ifndef VGPU_EXAMPLE_NETWORK_H
#define VGPU_EXAMPLE_NETWORK_H

#include <stdint.h>

#define DIGITS 10u
#define SIDE 8u
#define POINTS (SIDE * SIDE)
#define HIDDEN 32u

struct network {
    float hidden_weights[POINTS][HIDDEN];
    float hidden_bias[HIDDEN];
    float weights[HIDDEN][DIGITS];
    float bias[DIGITS];
};

/* A digit's points, 0 dark to 1 bright, somewhere near the middle; returns which digit it is.
 * `state` is the seed, not 0, and moves on. */
uint32_t digit_draw(uint32_t *state, float points[POINTS]);

/* Learns from 40000 digits of the seed: a fraction of a second. */
void network_train(struct network *network, uint32_t seed);

/* The network's score for each digit; `hidden` is for the caller who trains. */
void network_scores(const struct network *network, const float points[POINTS], float hidden[HIDDEN],
                    float scores[DIGITS]);

/* The digit with the highest score. */
uint32_t network_choice(const float scores[DIGITS]);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One layer of a network, for many images at once: each output is a weighted sum of all inputs
 * and a bias, and where `rectify` is not 0, never below 0.
 *
 *   in: images x inputs     weights: inputs x outputs     out: images x outputs
 *
 * A thread computes one output of one image: x counts outputs, y images.  Neighbouring threads
 * read neighbouring weights.
 */
#include <stdint.h>

extern "C" __global__ void dense(float *out, const float *in, const float *weights,
                                 const float *bias, uint32_t images, uint32_t inputs,
                                 uint32_t outputs, uint32_t rectify)
{
    uint32_t output = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t image = blockIdx.y * blockDim.y + threadIdx.y;

    if (output >= outputs || image >= images)
        return;
    float total = bias[output];

    for (uint32_t i = 0; i < inputs; i++)
        total += in[image * inputs + i] * weights[i * outputs + output];
    out[image * outputs + output] = rectify && total < 0 ? 0 : total;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* y[i] = a * x[i] + y[i], one element a thread. */
#include <stdint.h>

extern "C" __global__ void saxpy(float *y, const float *x, float a, uint32_t count)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    if (i < count)
        y[i] = a * x[i] + y[i];
}

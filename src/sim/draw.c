/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random numbers that are the same everywhere.  The generator is SplitMix64 (Steele, Lea and
 * Flood, 2014).  Logarithm and exponential are series of plain additions and multiplications,
 * which IEEE 754 defines to the last bit; libm's differ from one processor to the next.
 */
#include "sim/private.h"

#include <math.h>

#define LN_2 0.693147180559945309417
#define SQRT_HALF 0.707106781186547524401
#define LN_TERMS 12  /* |s| < 0.172: below 2^-60 */
#define EXP_TERMS 16 /* |x| < 0.35 */

void draw_seed(struct draw *draw, uint64_t seed, uint64_t stream)
{
    draw->state = seed * 0xd1342543de82ef95u + stream * 0x9e3779b97f4a7c15u;
    draw_bits(draw);
}

uint64_t draw_bits(struct draw *draw)
{
    uint64_t bits = draw->state += 0x9e3779b97f4a7c15u;

    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return bits ^ (bits >> 31);
}

uint64_t draw_below(struct draw *draw, uint64_t limit)
{
    return (uint64_t)(((unsigned __int128)draw_bits(draw) * limit) >> 64);
}

/* Above 0, up to 1. */
static double unit(struct draw *draw)
{
    return (double)((draw_bits(draw) >> 11) + 1) * 0x1p-53;
}

double draw_ln(double x)
{
    int exponent;
    double mantissa = frexp(x, &exponent), s, power, sum = 0;

    if (mantissa < SQRT_HALF) {
        mantissa *= 2;
        exponent--;
    }
    s = (mantissa - 1) / (mantissa + 1);
    power = s;
    for (int i = 0; i < LN_TERMS; i++) {
        sum += power / (2 * i + 1);
        power *= s * s;
    }
    return 2 * sum + exponent * LN_2;
}

double draw_exp(double x)
{
    int exponent = (int)(x / LN_2 + (x < 0 ? -0.5 : 0.5));
    double rest = x - exponent * LN_2, term = 1, sum = 1;

    for (int i = 1; i < EXP_TERMS; i++) {
        term *= rest / i;
        sum += term;
    }
    return ldexp(sum, exponent);
}

uint64_t draw_exponential(struct draw *draw, uint64_t mean)
{
    return (uint64_t)(-draw_ln(unit(draw)) * (double)mean);
}

/* Solved for x: P(X > x) = ((least/x)^a - (least/most)^a) / (1 - (least/most)^a). */
uint64_t draw_pareto(struct draw *draw, uint64_t least, uint64_t most, double shape)
{
    double bound = draw_exp(shape * draw_ln((double)least / (double)most));
    double tail = 1 - (1 - unit(draw)) * (1 - bound);
    double value = (double)least * draw_exp(-draw_ln(tail) / shape);

    return value < (double)most ? (uint64_t)value : most;
}

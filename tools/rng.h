/* SPDX-License-Identifier: Apache-2.0 */
/* rng.h - random numbers that are the same for the same seed: splitmix64. */
#ifndef MOE_RNG_H
#define MOE_RNG_H

#include <math.h>
#include <stdint.h>

static inline uint64_t rng_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The start of the seed's n-th stream. */
static inline uint64_t rng_stream(uint64_t seed, uint64_t n)
{
    uint64_t state = seed ^ n * 0xd1342543de82ef95u;
    return rng_next(&state);
}

/* Uniform in (0, 1). */
static inline double rng_unit(uint64_t *state)
{
    return ((double)(rng_next(state) >> 11) + 0.5) * 0x1p-53;
}

/* Uniform in [0, n), n at least 1: n is so small that the bias cannot be seen. */
static inline uint64_t rng_below(uint64_t *state, uint64_t n)
{
    return rng_next(state) % n;
}

/* Normal, mean 0, variance 1. */
static inline double rng_normal(uint64_t *state)
{
    double radius = sqrt(-2 * log(rng_unit(state)));
    return radius * cos(6.283185307179586 * rng_unit(state));
}

#endif

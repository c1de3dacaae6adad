/* SPDX-License-Identifier: Apache-2.0 */
/* numeric.h - number formats and elementary functions, in the one way that canon 1 allows
 * (docs/numerics.md).
 *
 * Owns every conversion between the formats of the operator and f32, and the activations.  All
 * functions assume the canonical floating-point environment (fpenv.h): round to nearest even,
 * subnormal f32 operands count as zero, subnormal f32 results become zero.  The widening
 * conversions, and the roundings to bf16 and f16, work on integers and hold in any environment. */
#ifndef MOE_NUMERIC_H
#define MOE_NUMERIC_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t num_bits(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static inline float num_float(uint32_t b)
{
    float x;
    memcpy(&x, &b, sizeof x);
    return x;
}

#define NUM_NAN_BITS 0x7FC00000u /* the canonical NaN of f32; bf16's is 0x7FC0, f16's 0x7E00 */
#define NUM_ABS_MASK 0x7FFFFFFFu
#define NUM_INF_BITS 0x7F800000u

static inline float num_nan(void)
{
    return num_float(NUM_NAN_BITS);
}

/* 2^n for n in [-126, 127]. */
static inline float num_pow2(int n)
{
    return num_float((uint32_t)(n + 127) << 23);
}

/* ---- widening: exact ------------------------------------------------------------------------- */

static inline float num_from_bf16(uint16_t b)
{
    return num_float((uint32_t)b << 16);
}

static inline float num_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u,
             mantissa = h & 0x3FFu;
    if (exponent == 31) return num_float(sign | NUM_INF_BITS | mantissa << 13);
    if (exponent != 0) return num_float(sign | (exponent + 112) << 23 | mantissa << 13);
    if (mantissa == 0) return num_float(sign);
    uint32_t shift = (uint32_t)__builtin_clz(mantissa) - 21; /* brings the leading one to bit 10 */
    return num_float(sign | (113 - shift) << 23 | ((mantissa << shift) & 0x3FFu) << 13);
}

/* e4m3 below exponent field 15, which both kinds share: +-(1 + m/8) 2^(e-7), or +-(m/8) 2^-6 if
 * e = 0. */
static inline float num_from_e4m3_finite(uint8_t c)
{
    uint32_t sign = (uint32_t)(c & 0x80u) << 24, exponent = (c >> 3) & 15u, mantissa = c & 7u;
    if (exponent != 0) return num_float(sign | (exponent + 120) << 23 | mantissa << 20);
    if (mantissa == 0) return num_float(sign);
    uint32_t shift = (uint32_t)__builtin_clz(mantissa) - 28; /* brings the leading one to bit 3 */
    return num_float(sign | (121 - shift) << 23 | ((mantissa << shift) & 7u) << 20);
}

/* e4m3fn: 0x7F and 0xFF are NaN, largest 448, no infinity. */
static inline float num_from_e4m3fn(uint8_t c)
{
    return (c & 0x7F) == 0x7F ? num_nan() : num_from_e4m3_finite(c);
}

/* e4m3 as IEEE would have it: exponent field 15 is infinity (mantissa 0) or NaN, largest finite
 * 240. */
static inline float num_from_e4m3_ieee(uint8_t c)
{
    if ((c & 0x78) != 0x78) return num_from_e4m3_finite(c);
    if ((c & 7) != 0) return num_nan();
    return num_float((uint32_t)(c & 0x80u) << 24 | NUM_INF_BITS);
}

/* Twice the value of an e2m1 code (0, 1, 2, 3, 4, 6, 8, 12 and the negatives): an integer. */
static inline int num_e2m1_doubled(unsigned code)
{
    static const int8_t table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return table[code & 15];
}

static inline float num_from_e2m1(unsigned code)
{
    static const float table[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    return table[code & 15];
}

/* An e8m0 scale s is applied to x as (x * num_e8m0_low(s)) * num_e8m0(s): 2^-127 is no normal
 * f32, so that s = 0 is taken in two steps of 1/2 and 2^-126.  s = 255 is NaN. */
static inline float num_e8m0_low(uint8_t s)
{
    return s == 0 ? 0.5f : 1.0f;
}

static inline float num_e8m0(uint8_t s)
{
    if (s == 255) return num_nan();
    return num_pow2((s == 0 ? 1 : s) - 127);
}

/* ---- rounding: to nearest, ties to even; every NaN becomes the canonical one ----------------- */

static inline bool num_is_nan(float x)
{
    return (num_bits(x) & NUM_ABS_MASK) > NUM_INF_BITS;
}

static inline uint16_t num_to_bf16(float x)
{
    if (num_is_nan(x)) return NUM_NAN_BITS >> 16;
    uint32_t b = num_bits(x);
    return (uint16_t)((b + 0x7FFFu + (b >> 16 & 1u)) >> 16);
}

/* f16 subnormals are kept: they are ordinary numbers of f32. */
static inline uint16_t num_to_f16(float x)
{
    uint32_t b = num_bits(x), sign = b >> 16 & 0x8000u, a = b & NUM_ABS_MASK;
    if (a > NUM_INF_BITS) return 0x7E00;
    if (a >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and more round to infinity */
    if (a >= 0x38800000u) {                                  /* 2^-14: normal in f16 */
        a -= 112u << 23;
        return (uint16_t)(sign | (a + 0xFFFu + (a >> 13 & 1u)) >> 13);
    }
    if (a < 0x33000000u) return (uint16_t)sign;                                /* below 2^-25 */
    uint32_t mantissa = (a & 0x7FFFFFu) | 0x800000u, shift = 126u - (a >> 23); /* units of 2^-24 */
    uint32_t half = 1u << (shift - 1), rest = mantissa & ((1u << shift) - 1u);
    uint32_t q = mantissa >> shift;
    if (rest > half || (rest == half && (q & 1u))) q++;
    return (uint16_t)(sign | q);
}

/* f32 is stored as it is but for NaN. */
static inline float num_to_f32(float x)
{
    return num_is_nan(x) ? num_nan() : x;
}

/* The e4m3fn code nearest to y, |y| <= 448. */
static inline uint8_t num_to_e4m3fn(float y)
{
    uint32_t b = num_bits(y), sign = b >> 24 & 0x80u, a = b & NUM_ABS_MASK;
    if (a < 0x3C800000u) { /* below 2^-6: multiples of 2^-9, rounded by adding 2^14 */
        float q = num_float(a) + 16384.0f;
        return (uint8_t)(sign | (num_bits(q) & 0xFu));
    }
    a -= 120u << 23;
    return (uint8_t)(sign | (a + 0x7FFFFu + (a >> 20 & 1u)) >> 20);
}

/* ---- elementary functions -------------------------------------------------------------------- */

/* exp(hi + lo) for a small lo (the rounding error of hi): 2^n * p(r), n = round(hi / ln 2), r
 * the rest, p of degree 6, within 1.6 units of 2^-24.  Above 88.73 infinity, below -87.34 zero. */
static inline float num_exp(float hi, float lo)
{
    const float log2e = 0x1.715476p+0f, ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7d1cp-20f;
    const float magic = 0x1.8p+23f; /* adding it rounds to an integer */
    float z = hi > 110.0f ? 110.0f : hi;
    z = z < -110.0f ? -110.0f : z;
    float e =
        z == hi ? lo : 0.0f; /* lo has no meaning where hi was cut, and may be infinite there */
    float t = fmaf(z, log2e, magic), n = t - magic;
    float r = fmaf(n, -ln2_lo, fmaf(n, -ln2_hi, z)) + e;
    float p = fmaf(r, 0x1.6a234cp-10f, 0x1.123a6cp-7f);
    p = fmaf(r, p, 0x1.5558f4p-5f);
    p = fmaf(r, p, 0x1.55549p-3f);
    p = fmaf(r, p, 0x1.fffffcp-2f);
    p = fmaf(r * r, p, r) + 1.0f;
    int32_t k = (int32_t)(num_bits(t) - num_bits(magic)),
            half = k >> 1; /* NaN: p is NaN, k of no account */
    return (p * num_pow2(half)) * num_pow2(k - half);
}

/* max(g, +0); NaN passes. */
static inline float num_relu(float g)
{
    return g > 0.0f || num_is_nan(g) ? g : 0.0f;
}

/* exp(a - b), the rounding error of the difference included. */
static inline float num_exp_difference(float a, float b)
{
    float d = a - b, back = d + b, lost = (a - back) - (b - (back - d));
    return num_exp(d, lost);
}

/* 1 / (1 + exp(-v)). */
static inline float num_sigmoid(float v)
{
    return 1.0f / (1.0f + num_exp(-v, 0.0f));
}

/* log(1 + x) for x in [0, 1], within 1.3 units of 2^-24: from 1/2 on log 2 + log(1 + f), f = (x -
 * 1) / 2; log(1 + f) = f - h + s (h + R), h = f^2 / 2, s = f / (2 + f), R a polynomial in s^2. */
static inline float num_log1p(float x)
{
    const bool upper = x >= 0.5f;
    float f = upper ? (x - 1.0f) * 0.5f : x;
    float high = upper ? 0x1.62e4p-1f : 0.0f, low = upper ? 0x1.7f7d1cp-20f : 0.0f; /* log 2 */
    float s = f / (2.0f + f), z = s * s, h = 0.5f * f * f;
    float p = fmaf(z, 0x1.ed89a2p-3f, 0x1.23e9bap-2f);
    p = fmaf(z, p, 0x1.999bdcp-2f);
    p = fmaf(z, p, 0x1.555554p-1f);
    return high + (f - (h - fmaf(s, fmaf(z, p, h), low)));
}

/* sqrt(log(1 + exp(v))); below -87.3, where exp is zero, zero. */
static inline float num_sqrt_softplus(float v)
{
    return sqrtf((v > 0.0f ? v : 0.0f) + num_log1p(num_exp(-fabsf(v), 0.0f)));
}

/* g / (1 + exp(-alpha g)). */
static inline float num_swish(float g, float alpha)
{
    float z = alpha * g;
    return g / (1.0f + num_exp(-z, -fmaf(alpha, g, -z)));
}

/* g * Phi(g), Phi the normal distribution: with a = |g|, Phi(-a) = exp(-a^2/2) * R(a), R a
 * polynomial in (a-4)/(a+4). */
static inline float num_gelu(float g)
{
    float a = fabsf(g);
    a = a > 20.0f ? 20.0f : a;
    float q = (a - 4.0f) / (a + 4.0f);
    float p = fmaf(q, 0x1.09556cp-17f, 0x1.b4dd1p-16f);
    p = fmaf(q, p, -0x1.9bef06p-15f);
    p = fmaf(q, p, -0x1.87cadap-13f);
    p = fmaf(q, p, 0x1.4fa0a6p-11f);
    p = fmaf(q, p, 0x1.0a22aep-11f);
    p = fmaf(q, p, -0x1.1646dp-7f);
    p = fmaf(q, p, 0x1.f9b052p-6f);
    p = fmaf(q, p, -0x1.25b6a6p-4f);
    p = fmaf(q, p, 0x1.fd751ap-4f);
    p = fmaf(q, p, -0x1.5cf97cp-3f);
    p = fmaf(q, p, 0x1.82b4bcp-4f);
    float s = a * a, low = fmaf(a, a, -s);
    float tail = num_exp(-0.5f * s, -0.5f * low) * p;
    return g < 0.0f ? g * tail : fmaf(-a, tail, g);
}

/* 0.5 g (1 + tanh(y)) = g / (1 + exp(-2y)), 2y = g (c1 + c3 g^2). */
static inline float num_gelu_tanh(float g)
{
    float w = fmaf(0x1.2444f2p-4f, g * g, 0x1.988454p+0f);
    return g / (1.0f + num_exp(-(g * w), 0.0f));
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* quantize_block.h - one block of values to operand words: docs/numerics.md section 6.
 *
 * Written as loops over KERNEL_BLOCK values without branches between them, and included by each
 * instruction set's file, whose compiler makes vectors of them: every operation is one of IEEE's,
 * so the bits are the same. */
#ifndef MOE_QUANTIZE_BLOCK_H
#define MOE_QUANTIZE_BLOCK_H

#include "kernel.h"
#include "numeric.h"

/* The largest magnitude of a block, as bits; above NUM_INF_BITS if there is a NaN. */
static inline uint32_t quantize_largest(const float *v)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < KERNEL_BLOCK; i++) {
        uint32_t a = num_bits(v[i]) & NUM_ABS_MASK;
        largest = a > largest ? a : largest;
    }
    return largest;
}

/* v: rounded to bf16; every NaN becomes the canonical one. */
static inline void quantize_bf16(float *v)
{
    for (size_t i = 0; i < KERNEL_BLOCK; i++) {
        uint32_t b = num_bits(v[i]), rounded = (b + 0x7FFFu + (b >> 16 & 1u)) & 0xFFFF0000u;
        v[i] = num_float((b & NUM_ABS_MASK) > NUM_INF_BITS ? NUM_NAN_BITS : rounded);
    }
}

/* The multiple of the e4m3 step at y that is nearest to it, ties to even; |y| <= 448. */
static inline float quantize_e4m3(float y)
{
    uint32_t b = num_bits(y), a = b & NUM_ABS_MASK;
    uint32_t small = num_bits((num_float(a) + 16384.0f) - 16384.0f); /* below 2^-6 */
    uint32_t large = (a + 0x7FFFFu + (a >> 20 & 1u)) & 0xFFF00000u;
    return num_float((b ^ a) | (a < 0x3C800000u ? small : large));
}

/* v: what MXFP8 makes of it. */
static inline void quantize_mxfp8(float *v)
{
    uint32_t largest = quantize_largest(v), be = largest >> 23;
    const bool no_number = largest >= NUM_INF_BITS; /* then every value is NaN, the canonical one */
    be = be < 8 ? 8 : be > 254 ? 254 : be;
    const uint8_t scale = (uint8_t)(be - 8);
    float factor = num_pow2(135 - (int)be), low = num_e8m0_low(scale), power = num_e8m0(scale);
    for (size_t i = 0; i < KERNEL_BLOCK; i++) {
        float y = v[i] * factor;
        y = y > 448.0f ? 448.0f : y;
        y = y < -448.0f ? -448.0f : y;
        float x = quantize_e4m3(y) * low * power;
        v[i] = no_number ? num_nan() : x;
    }
}

/* q = the int8 codes of v; returns their scale. */
static inline float quantize_int8(const float *v, int32_t *q)
{
    const float magic = 0x1.8p+23f; /* adding and subtracting it rounds to an integer */
    uint32_t largest = quantize_largest(v);
    float scale = largest >= NUM_INF_BITS ? num_nan() : num_float(largest) / 127.0f;
    if (!(scale > 0.0f)) {
        memset(q, 0, KERNEL_BLOCK * sizeof *q);
        return scale;
    }
    for (size_t i = 0; i < KERNEL_BLOCK; i++) q[i] = (int32_t)((v[i] / scale + magic) - magic);
    return scale;
}

/* The sum of a block, in the order of docs/numerics.md section 4. */
static inline float quantize_sum(const float *v)
{
    float a[8];
    for (size_t j = 0; j < 8; j++) a[j] = ((v[j] + v[8 + j]) + v[16 + j]) + v[24 + j];
    for (size_t j = 0; j < 4; j++) a[j] = a[j] + a[j + 4];
    for (size_t j = 0; j < 2; j++) a[j] = a[j] + a[j + 2];
    return a[0] + a[1];
}

/* ---- operand words --------------------------------------------------------------------------- */

/* Block number `block` of an int8 row of k terms, its words `width` apart. */
static inline void quantize_put_int8(const float *v, size_t block, size_t k, uint32_t *row,
                                     size_t width)
{
    int32_t q[KERNEL_BLOCK], sum[2] = {0};
    float scale = quantize_int8(v, q);
    for (size_t i = 0; i < KERNEL_BLOCK; i += 4) {
        uint32_t word = 0;
        for (size_t n = 0; n < 4; n++)
            word |= (uint32_t)(uint8_t)q[i / 8 * 8 + kernel_int8_k(i % 8 + n)] << 8 * n;
        row[(block * (KERNEL_BLOCK / 4) + i / 4) * width] = word;
    }
    for (size_t i = 0; i < KERNEL_BLOCK; i++) sum[i / 16] += q[i];
    sum[1] += sum[0];
    row += (k / 4 + block) * width;
    memcpy(row, &scale, sizeof scale);
    memcpy(row + k / KERNEL_BLOCK * width, &sum[1], sizeof sum[1]);
    memcpy(row + 2 * (k / KERNEL_BLOCK) * width, &sum[0], sizeof sum[0]);
}

static inline void quantize_put(const float *v, size_t terms, size_t block, size_t k,
                                kernel_operand o, uint32_t *row, size_t width)
{
    uint32_t word[KERNEL_BLOCK];
    const bool bf16 = o == OPERAND_BF16 || o == OPERAND_BF16_SUMS;
    const size_t words = bf16 ? terms / 2 : terms, all = bf16 ? k / 2 : k;
    if (bf16)
        for (size_t i = 0; i < KERNEL_BLOCK / 2; i++)
            word[i] = num_bits(v[2 * i]) >> 16 | (num_bits(v[2 * i + 1]) & 0xFFFF0000u);
    else
        memcpy(word, v, sizeof word);
    uint32_t *to = row + block * (bf16 ? KERNEL_BLOCK / 2 : KERNEL_BLOCK) * width;
    for (size_t i = 0; i < words; i++) to[i * width] = word[i];
    if (o != OPERAND_SUMS && o != OPERAND_BF16_SUMS) return;
    float sum = quantize_sum(v);
    memcpy(row + (all + block) * width, &sum, sizeof sum);
}

/* The kernel_quantize_fn of every table. */
static inline void quantize_tokens(const kernel_quantize *a, kernel_rounding r, kernel_operand o)
{
    for (size_t t = 0; t < a->tokens; t++) {
        float v[KERNEL_BLOCK] = {0};
        memcpy(v, a->v + t * a->stride, a->terms * sizeof *v);
        if (r == ROUND_INT8) {
            quantize_put_int8(v, a->block, a->k, a->tile + t, a->width);
            continue;
        }
        if (r == ROUND_MXFP8) quantize_mxfp8(v);
        if (r == ROUND_BF16) quantize_bf16(v);
        quantize_put(v, a->terms, a->block, a->k, o, a->tile + t, a->width);
    }
}

/* The kernel_reduce_fn of every table. */
static inline void reduce_terms(const kernel_reduce *a)
{
    enum { STEP = 256 };
    for (size_t h = 0; h < a->n; h += STEP) {
        size_t n = a->n - h < STEP ? a->n - h : STEP;
        float *out = a->out + h;
        for (size_t i = 0; i < a->terms; i++) {
            const float *y = a->y[i] + h;
            if (a->affinity != NULL)
                for (size_t j = 0; j < n; j++) out[j] = fmaf(a->affinity[i], y[j], out[j]);
            else
                for (size_t j = 0; j < n; j++) out[j] = out[j] + y[j];
        }
    }
}

#endif

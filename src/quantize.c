/* SPDX-License-Identifier: Apache-2.0 */
/* quantize.c - hidden and intermediate values to operands: the modes of docs/numerics.md section 6.
 *
 * Owns the reading of hidden_input in all its layouts and the order of k in operands.  Runs in the canonical environment. */
#include "quantize.h"

#include "axis.h"
#include "numeric.h"

enum { CODE_NAN = 0x7F };

kernel_operand quantize_operand(const problem *p)
{
    return p->act == MOE_ACT_INT8 ? OPERAND_INT8 : OPERAND_F32;
}

size_t quantize_bytes(kernel_operand o, size_t k)
{
    size_t bytes = o == OPERAND_INT8 ? k + k / KERNEL_BLOCK * sizeof(float) : k * sizeof(float);
    return (bytes + KERNEL_ALIGN - 1) / KERNEL_ALIGN * KERNEL_ALIGN;
}

/* ---- one block ------------------------------------------------------------------------------------------------------- */

static uint32_t largest_abs(const float *v)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < KERNEL_BLOCK; i++) {
        uint32_t a = num_bits(v[i]) & NUM_ABS_MASK;
        largest = a > largest ? a : largest;
    }
    return largest;
}

uint8_t quantize_mxfp8(const float *v, uint8_t *code)
{
    uint32_t largest = largest_abs(v), be = largest >> 23;
    if (largest >= NUM_INF_BITS) {
        memset(code, CODE_NAN, KERNEL_BLOCK);
        return 255;
    }
    if (be < 8) be = 8;
    float factor = num_pow2(135 - (int)be);
    for (size_t i = 0; i < KERNEL_BLOCK; i++) {
        float y = v[i] * factor;
        y = y > 448.0f ? 448.0f : y;
        y = y < -448.0f ? -448.0f : y;
        code[i] = num_to_e4m3fn(y);
    }
    return (uint8_t)(be - 8);
}

float quantize_int8(const float *v, int8_t *q)
{
    const float magic =
        0x1.8p+23f; /* adding and subtracting it rounds to an integer, ties to even */
    uint32_t largest = largest_abs(v);
    float scale = largest >= NUM_INF_BITS ? num_nan() : num_float(largest) / 127.0f;
    if (!(scale > 0.0f)) {
        memset(q, 0, KERNEL_BLOCK);
        return scale;
    }
    for (size_t i = 0; i < KERNEL_BLOCK; i++) q[i] = (int8_t)((v[i] / scale + magic) - magic);
    return scale;
}

static float mxfp8_value(uint8_t code, uint8_t scale)
{
    return num_from_e4m3fn(code) * num_e8m0_low(scale) * num_e8m0(scale);
}

/* One block of an operand row from its 32 values. */
static void put_block(moe_act_mode act, const float *v, size_t block, size_t k, void *row)
{
    if (act == MOE_ACT_INT8) {
        int8_t *codes = row;
        float *scales = (float *)(void *)(codes + k);
        scales[block] = quantize_int8(v, codes + block * KERNEL_BLOCK);
        return;
    }
    uint8_t code[KERNEL_BLOCK];
    uint8_t scale = quantize_mxfp8(v, code);
    float *dst = (float *)row + block * KERNEL_BLOCK;
    for (size_t i = 0; i < KERNEL_BLOCK; i++) dst[i] = mxfp8_value(code[i], scale);
}

/* ---- hidden ---------------------------------------------------------------------------------------------------------- */

/* The k-th value of a pre-quantised row: the scale of block b of 8 partitions is at partition 32 (b / 4) + b % 4. */
static float prequantised_at(const problem *p, size_t t, size_t k)
{
    axis_place a = axis_place_of(k, 128);
    size_t b = a.partition / 8, scale_partition = b / 4 * 32 + b % 4;
    const uint32_t *words = p->args->hidden_input->data;
    const uint8_t *scales = p->args->hidden_input_scale->data;
    uint32_t word = words[(a.partition * p->tiles_h + a.tile) * p->T + t];
    uint8_t scale = scales[(scale_partition * p->tiles_h + a.tile) * p->T + t];
    return mxfp8_value((uint8_t)(word >> 8 * a.q), scale);
}

static float operand_at(const problem *p, size_t t, size_t k)
{
    if (p->prequantised) return prequantised_at(p, t, k);
    if (k >= p->H) return 0.0f; /* padding to even; MX has none */
    const moe_tensor *x = p->args->hidden_input;
    size_t h = p->mx ? axis_h(p, axis_place_of(k, 128)) : k;
    return problem_float(x, axis_row_element(p, x->layout == MOE_LAYOUT_SBUF, t, h));
}

void quantize_hidden(const problem *p, size_t t, size_t k, void *dst)
{
    if (p->act == MOE_ACT_EXACT || (p->act == MOE_ACT_MXFP8 && p->prequantised)) {
        for (size_t i = 0; i < k; i++) ((float *)dst)[i] = operand_at(p, t, i);
        return;
    }
    for (size_t block = 0; block < k / KERNEL_BLOCK; block++) {
        float v[KERNEL_BLOCK];
        for (size_t i = 0; i < KERNEL_BLOCK; i++) v[i] = operand_at(p, t, block * KERNEL_BLOCK + i);
        put_block(p->act, v, block, k, dst);
    }
}

/* ---- intermediate ---------------------------------------------------------------------------------------------------- */

/* Whether m is rounded to bf16: hidden is, and the down weights are exact in bf16. */
static bool rounds_mid(const problem *p)
{
    return p->hidden == MOE_BF16 && p->down != FORMAT_F16 && p->down != FORMAT_F32;
}

void quantize_mid(const problem *p, const float *m, size_t k, void *dst)
{
    if (p->act != MOE_ACT_EXACT) {
        for (size_t block = 0; block < k / KERNEL_BLOCK; block++)
            put_block(p->act, m + block * KERNEL_BLOCK, block, k, dst);
        return;
    }
    float *row = dst;
    bool rounds = rounds_mid(p);
    for (size_t i = 0; i < k; i++) {
        float v = p->mx || i < p->I ? m[i] : 0.0f;
        row[i] = rounds ? num_from_bf16(num_to_bf16(v)) : v;
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* quantize.c - hidden and intermediate values to operands: the modes of docs/numerics.md section
 * 6.
 *
 * Owns the reading of hidden_input in all its layouts and the order of k in operands.  Runs in
 * the canonical environment. */
#include "quantize.h"

#include "axis.h"
#include "numeric.h"

enum { CODE_NAN = 0x7F };

/* ---- operands -------------------------------------------------------------------------------- */

/* Whether m is rounded to bf16: hidden is, and the down weights are exact in bf16. */
static bool rounds_mid(const problem *p)
{
    return p->act == MOE_ACT_EXACT && p->hidden == MOE_BF16 && p->down != FORMAT_F16 &&
           p->down != FORMAT_F32;
}

/* bf16 operands lose nothing if `exact` says that every value is one, and need kernels that take
 * them. */
static kernel_operand operand(const problem *p, bool exact, bool kernel)
{
    if (p->act == MOE_ACT_INT8) return OPERAND_INT8;
    return exact && kernel ? OPERAND_BF16 : OPERAND_F32;
}

kernel_operand quantize_hidden_operand(const problem *p, const kernel_table *kernels)
{
    bool exact = p->hidden == MOE_BF16 || p->prequantised || p->act == MOE_ACT_MXFP8;
    return operand(p, exact, kernels->gate_up[p->gate_up][OPERAND_BF16] != NULL);
}

kernel_operand quantize_mid_operand(const problem *p, const kernel_table *kernels)
{
    bool exact = rounds_mid(p) || p->act == MOE_ACT_MXFP8;
    return operand(p, exact, kernels->down[p->down][OPERAND_BF16] != NULL);
}

size_t quantize_words(kernel_operand o, size_t k)
{
    if (o == OPERAND_INT8) return k / 4 + k / KERNEL_BLOCK * 2;
    return o == OPERAND_BF16 ? k / 2 : k;
}

void quantize_tile(const uint32_t *const *rows, size_t width, size_t words, uint32_t *tile)
{
    for (size_t n = 0; n < words; n++)
        for (size_t t = 0; t < width; t++) tile[n * width + t] = rows[t][n];
}

/* ---- one block ------------------------------------------------------------------------------- */

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

/* v: what MXFP8 makes of it. */
static void round_mxfp8(float *v)
{
    uint8_t code[KERNEL_BLOCK];
    uint8_t scale = quantize_mxfp8(v, code);
    for (size_t i = 0; i < KERNEL_BLOCK; i++) v[i] = mxfp8_value(code[i], scale);
}

/* Block number `block` of an int8 operand row. */
static void put_int8(const float *v, size_t block, size_t k, uint32_t *row)
{
    int8_t q[KERNEL_BLOCK];
    float half = quantize_int8(v, q) * 0.5f;
    int32_t sum = 0;
    uint8_t *codes = (uint8_t *)(row + block * (KERNEL_BLOCK / 4));
    for (size_t i = 0; i < KERNEL_BLOCK; i++) {
        codes[i] = (uint8_t)q[i / 8 * 8 + kernel_int8_k(i % 8)];
        sum += q[i];
    }
    sum *= -12;
    memcpy(row + k / 4 + block, &half, sizeof half);
    memcpy(row + k / 4 + k / KERNEL_BLOCK + block, &sum, sizeof sum);
}

/* Terms [first, first + n) of an f32 or bf16 operand row; n is even. */
static void put(kernel_operand o, const float *v, size_t first, size_t n, uint32_t *row)
{
    if (o == OPERAND_F32) {
        memcpy(row + first, v, n * sizeof *v);
        return;
    }
    for (size_t i = 0; i < n; i += 2)
        row[(first + i) / 2] = num_bits(v[i]) >> 16 | (num_bits(v[i + 1]) & 0xFFFF0000u);
}

/* ---- hidden ---------------------------------------------------------------------------------- */

/* The k-th value of a pre-quantised row: the scale of block b of 8 partitions is at partition 32
 * (b / 4) + b % 4. */
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

void quantize_hidden(const problem *p, kernel_operand o, size_t t, size_t k, uint32_t *row)
{
    for (size_t first = 0; first < k; first += KERNEL_BLOCK) {
        size_t n = k - first < KERNEL_BLOCK ? k - first : KERNEL_BLOCK;
        float v[KERNEL_BLOCK];
        for (size_t i = 0; i < n; i++) v[i] = operand_at(p, t, first + i);
        if (o == OPERAND_INT8) {
            put_int8(v, first / KERNEL_BLOCK, k, row);
            continue;
        }
        if (p->act == MOE_ACT_MXFP8 && !p->prequantised) round_mxfp8(v);
        put(o, v, first, n, row);
    }
}

/* ---- intermediate ---------------------------------------------------------------------------- */

void quantize_mid(const problem *p, kernel_operand o, const float *m, size_t k, uint32_t *row)
{
    bool rounds = rounds_mid(p);
    for (size_t first = 0; first < k; first += KERNEL_BLOCK) {
        size_t n = k - first < KERNEL_BLOCK ? k - first : KERNEL_BLOCK;
        float v[KERNEL_BLOCK];
        for (size_t i = 0; i < n; i++) {
            v[i] = p->mx || first + i < p->I ? m[first + i] : 0.0f; /* past I: padding to even */
            if (rounds) v[i] = num_from_bf16(num_to_bf16(v[i]));
        }
        if (o == OPERAND_INT8) {
            put_int8(v, first / KERNEL_BLOCK, k, row);
            continue;
        }
        if (p->act == MOE_ACT_MXFP8) round_mxfp8(v);
        put(o, v, first, n, row);
    }
}

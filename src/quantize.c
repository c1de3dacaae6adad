/* SPDX-License-Identifier: Apache-2.0 */
/* quantize.c - which operands a call uses, and hidden values into them: docs/numerics.md
 * section 6.
 *
 * Owns the reading of hidden_input in all its layouts and the order of k in operands; the rounding
 * itself is the kernels'.  Runs in the canonical environment. */
#include "quantize.h"

#include "numeric.h"

/* ---- kinds ----------------------------------------------------------------------------------- */

/* Whether m is rounded to bf16: hidden is, and the down weights are exact in bf16. */
static bool rounds_mid(const problem *p)
{
    return p->act == MOE_ACT_EXACT && p->hidden == MOE_BF16 && p->down != FORMAT_F16 &&
           p->down != FORMAT_F32;
}

/* Operands of weights f.  bf16 ones lose nothing if `exact` says that every value is a bf16, and need
 * a kernel that takes them. */
static kernel_operand operand(const problem *p, kernel_format f, bool exact, bool bf16,
                              bool bf16_sums)
{
    if (p->act == MOE_ACT_INT8) return OPERAND_INT8;
    if (kernel_formats[f].minima) return exact && bf16_sums ? OPERAND_BF16_SUMS : OPERAND_SUMS;
    return exact && bf16 ? OPERAND_BF16 : OPERAND_F32;
}

quantize_kind quantize_hidden_kind(const problem *p, const kernel_table *kernels)
{
    bool exact = p->hidden == MOE_BF16 || p->prequantised || p->act == MOE_ACT_MXFP8;
    kernel_rounding r = p->act == MOE_ACT_INT8                        ? ROUND_INT8
                        : p->act == MOE_ACT_MXFP8 && !p->prequantised ? ROUND_MXFP8
                                                                      : ROUND_NONE;
    kernel_gate_up_fn *const *slot = kernels->gate_up[p->gate_up];
    return (quantize_kind){
        operand(p, p->gate_up, exact, slot[OPERAND_BF16] != NULL, slot[OPERAND_BF16_SUMS] != NULL),
        r};
}

quantize_kind quantize_mid_kind(const problem *p, const kernel_table *kernels)
{
    bool exact = rounds_mid(p) || p->act == MOE_ACT_MXFP8;
    kernel_rounding r = p->act == MOE_ACT_INT8    ? ROUND_INT8
                        : p->act == MOE_ACT_MXFP8 ? ROUND_MXFP8
                        : rounds_mid(p)           ? ROUND_BF16
                                                  : ROUND_NONE;
    kernel_down_fn *const *slot = kernels->down[p->down];
    return (quantize_kind){
        operand(p, p->down, exact, slot[OPERAND_BF16] != NULL, slot[OPERAND_BF16_SUMS] != NULL), r};
}

void quantize_tile(const uint32_t *const *rows, size_t width, size_t words, uint32_t *tile)
{
    enum { STEP = 16 }; /* words of a row at a time: a cache line */
    for (size_t first = 0; first < words; first += STEP) {
        size_t n = words - first < STEP ? words - first : STEP;
        for (size_t t = 0; t < width; t++)
            for (size_t i = 0; i < n; i++) tile[(first + i) * width + t] = rows[t][first + i];
    }
}

/* ---- hidden ---------------------------------------------------------------------------------- */

/* The k-th value of a pre-quantised row: the scale of block b of 8 partitions is at partition 32
 * (b / 4) + b % 4. */
static float prequantised_at(const problem *p, size_t t, size_t k)
{
    axis_place a = axis_place_of(k, 128);
    size_t b = a.partition / 8, scale_partition = b / 4 * 32 + b % 4, tiles = p->axis.tiles_h;
    const uint32_t *words = p->args->hidden_input->data;
    const uint8_t *scales = p->args->hidden_input_scale->data;
    uint32_t word = words[(a.partition * tiles + a.tile) * p->T + t];
    uint8_t scale = scales[(scale_partition * tiles + a.tile) * p->T + t];
    return num_from_e4m3fn((uint8_t)(word >> 8 * a.q)) * num_e8m0_low(scale) * num_e8m0(scale);
}

/* n neighbouring elements of a tensor, as f32. */
static void read_run(const moe_tensor *x, size_t at, size_t n, float *v)
{
    const uint16_t *half = x->data;
    switch (x->dtype) {
    case MOE_BF16:
        for (size_t i = 0; i < n; i++) v[i] = num_from_bf16(half[at + i]);
        break;
    case MOE_F16:
        for (size_t i = 0; i < n; i++) v[i] = num_from_f16(half[at + i]);
        break;
    default: memcpy(v, (const float *)x->data + at, n * sizeof *v);
    }
}

/* The n terms from k = first on, at most a block of them. */
static void read_block(const problem *p, size_t t, size_t first, size_t n, float *v)
{
    const moe_tensor *x = p->args->hidden_input;
    const axis *a = &p->axis;
    bool sbuf = x->layout == MOE_LAYOUT_SBUF;
    if (p->prequantised) {
        for (size_t i = 0; i < n; i++) v[i] = prequantised_at(p, t, first + i);
        return;
    }
    size_t run = sbuf ? 1 : a->strided ? 8 : n; /* terms that are neighbours in memory */
    for (size_t i = 0; i < n; i += run) {
        size_t h = a->strided ? axis_h(a, axis_place_of(first + i, 128)) : first + i;
        size_t there = h < a->H ? a->H - h : 0; /* past H: padding to even; strided has none */
        if (there < run) v[i + run - 1] = 0.0f;
        read_run(x, axis_row_element(a, sbuf, p->T, t, h), there < run ? there : run, v + i);
    }
}

void quantize_hidden(const problem *p, const kernel_table *kernels, quantize_kind kind, size_t t,
                     size_t k, uint32_t *row)
{
    for (size_t first = 0; first < k; first += KERNEL_BLOCK) {
        size_t n = k - first < KERNEL_BLOCK ? k - first : KERNEL_BLOCK;
        float v[KERNEL_BLOCK] = {0};
        read_block(p, t, first, n, v);
        kernel_quantize a = {v, KERNEL_BLOCK, 1, n, first / KERNEL_BLOCK, k, row, 1};
        kernels->quantize(&a, kind.rounding, kind.operand);
    }
}

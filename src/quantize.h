/* SPDX-License-Identifier: Apache-2.0 */
/* quantize.h - operands: which kind a call uses, and hidden rows on their way into it. */
#ifndef MOE_QUANTIZE_H
#define MOE_QUANTIZE_H

#include "problem.h"

/* An operand and what its values are rounded to. */
typedef struct quantize_kind {
    kernel_operand operand;
    kernel_rounding rounding;
} quantize_kind;

/* What the call's mode and the kernels make of hidden and of the intermediate. */
quantize_kind quantize_hidden_kind(const problem *p, const kernel_table *kernels);
quantize_kind quantize_mid_kind(const problem *p, const kernel_table *kernels);

/* row: the operand row of token t, k (even) terms. */
void quantize_hidden(const problem *p, const kernel_table *kernels, quantize_kind kind, size_t t,
                     size_t k, uint32_t *row);

/* tile: `width` rows of `words` words, interleaved word by word. */
void quantize_tile(const uint32_t *const *rows, size_t width, size_t words, uint32_t *tile);

#endif

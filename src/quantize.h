/* SPDX-License-Identifier: Apache-2.0 */
/* quantize.h - operands: hidden rows and intermediate rows in the form that kernels eat
 * (kernel.h). */
#ifndef MOE_QUANTIZE_H
#define MOE_QUANTIZE_H

#include "problem.h"

/* Which operand the call's mode and the kernels make of hidden and of the intermediate. */
kernel_operand quantize_hidden_operand(const problem *p, const kernel_table *kernels);
kernel_operand quantize_mid_operand(const problem *p, const kernel_table *kernels);

/* Words of an operand row of k terms. */
size_t quantize_words(kernel_operand o, size_t k);

/* row: the operand row of token t, k (even) terms. */
void quantize_hidden(const problem *p, kernel_operand o, size_t t, size_t k, uint32_t *row);

/* row: the operand row of an intermediate row m of k terms in the order of the down product. */
void quantize_mid(const problem *p, kernel_operand o, const float *m, size_t k, uint32_t *row);

/* tile: `width` rows of `words` words, interleaved word by word. */
void quantize_tile(const uint32_t *const *rows, size_t width, size_t words, uint32_t *tile);

/* One block of 32 as MXFP8: fills code, returns the scale byte. */
uint8_t quantize_mxfp8(const float *v, uint8_t *code);

/* One block of 32 as int8: fills q, returns the scale. */
float quantize_int8(const float *v, int8_t *q);

#endif

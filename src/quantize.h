/* SPDX-License-Identifier: Apache-2.0 */
/* quantize.h - operands: hidden rows and intermediate rows in the form that kernels eat (kernel.h). */
#ifndef MOE_QUANTIZE_H
#define MOE_QUANTIZE_H

#include "problem.h"

/* Which operand the call's mode makes of hidden and of the intermediate. */
kernel_operand quantize_operand(const problem *p);

/* Bytes of an operand row of k terms, a multiple of KERNEL_ALIGN. */
size_t quantize_bytes(kernel_operand o, size_t k);

/* dst: the operand row of token t, k (even) terms. */
void quantize_hidden(const problem *p, size_t t, size_t k, void *dst);

/* dst: the operand row of an intermediate row m of k terms in the order of the down product. */
void quantize_mid(const problem *p, const float *m, size_t k, void *dst);

/* One block of 32 as MXFP8: fills code, returns the scale byte. */
uint8_t quantize_mxfp8(const float *v, uint8_t *code);

/* One block of 32 as int8: fills q, returns the scale. */
float quantize_int8(const float *v, int8_t *q);

#endif

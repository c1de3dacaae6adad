/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_bound.h - numbers with the error that the operator may have made (docs/bounds.md). */
#ifndef MOE_ORACLE_BOUND_H
#define MOE_ORACLE_BOUND_H

#include "oracle_tensor.h"

#define ORACLE_LAMBDA 6.0
/* One rounding of f32, 2^-24, and a little more for what the oracle's own arithmetic loses. */
#define ORACLE_U 0x1.00001p-24
/* What an f32 operation loses by making zero of a result below 2^-126. */
#define ORACLE_ETA 0x1p-126

/* A number of the operator: v as the definition has it, the computed one within v +- tight probably
 * and v +- proof surely.
 *
 *     v infinite or NaN   the computed number is that too, for certain: both errors are 0
 *     lost                the computed number may be anything: v = 0, both errors infinite */
typedef struct bounded {
    double v, tight, proof;
} bounded;

bounded oracle_exact(double v);
bounded oracle_lost(void);
bool oracle_is_lost(bounded a);

/* {v, tight, proof} in this form: lost if the computed number may lie outside f32's range. */
bounded oracle_settle(double v, double tight, double proof);

/* n roundings of one sign each: gamma_n = n u / (1 - n u); and of random signs, with lambda = 6. */
double oracle_gamma(size_t n);
double oracle_gamma_tight(size_t n);

/* One operation of f32. */
bounded oracle_add(bounded a, bounded b);
bounded oracle_mul(bounded a, bounded b);

/* g = g > upper ? upper : g; g = g < lower ? lower : g, each limit if given. */
bounded oracle_clamp(bounded g, moe_optional_float upper, moe_optional_float lower);

/* Rounded to bf16. */
bounded oracle_to_bf16(bounded a);

/* alpha: of MOE_SWIGLU, else not read. */
bounded oracle_act(moe_activation fn, double alpha, bounded g);

/* The operands of one block of n lanes: x[i] = the value that Q gives v[i]; joint: whether more
 * than one shared scale is possible, so that the errors of the lanes hang together.  v and x may be
 * the same. */
void oracle_quantise_mx(const bounded *v, size_t n, bounded *x, bool *joint);

/* The same for int8: the operand is q[i] * *scale. */
void oracle_quantise_int8(const bounded *v, size_t n, bounded *q, bounded *scale);

#endif

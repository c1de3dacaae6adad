/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_dot.h - a row of operands times a matrix, every column with its bound (docs/bounds.md). */
#ifndef MOE_ORACLE_DOT_H
#define MOE_ORACLE_DOT_H

#include "oracle_bound.h"

/* How the operator adds the terms up. */
typedef struct oracle_order {
    size_t terms, block; /* terms of a sum, of a block */
    bool integer;        /* the sum over a block is one of integers, and exact */
} oracle_order;

/* Sums over the terms so far, one a column: those of the block at hand, and of the blocks folded
 * into the total. */
typedef struct oracle_dot {
    size_t columns;
    double *memory;
    double *sum, *size;         /* of x w, |x w|; infinite and NaN terms are in sum alone */
    double *tight, *proof;      /* of the operands' errors times |w| */
    double *square;             /* of the squares of the tight ones */
    double *total, *total_size; /* the same of the blocks, times their scales */
    double *total_tight, *total_proof, *total_square;
    double *floor; /* what the blocks may lose below 2^-126 */
} oracle_dot;

bool oracle_dot_make(oracle_dot *d, size_t columns); /* false: no memory */
void oracle_dot_free(oracle_dot *d);
void oracle_dot_clear(oracle_dot *d,
                      size_t columns); /* starts sums for so many columns, at most those made */

/* Adds x w[c] to column c.  finite: whether all w are. */
void oracle_dot_term(oracle_dot *d, bounded x, const double *w, bool finite);

/* Ends a block of so many terms: total += sum * factor * scale[c].  scale NULL: 1.  joint: the
 * errors of the operands of this block hang together. */
void oracle_dot_fold(oracle_dot *d, const oracle_order *order, size_t terms, const double *scale,
                     bounded factor, bool joint);

/* Column c after all blocks. */
bounded oracle_dot_result(const oracle_dot *d, const oracle_order *order, size_t c);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* weights_ref.h - what weights are, as real numbers: decoded from a checkpoint's matrix, and from a
 * packed panel, by plain C that shares nothing with src/ but, for panels, the contract.
 *
 * double holds every value of every format exactly.  A NaN is any NaN. */
#ifndef MOE_TEST_WEIGHTS_REF_H
#define MOE_TEST_WEIGHTS_REF_H

#include "kernel.h"

/* Weight [row, k] of expert e, times the scale of its block; row scales are left out. */
double weights_ref_value(const moe_matrix *m, size_t e, size_t row, size_t k);

/* Term k of row r of a half (but for bf12), likewise. */
double weights_ref_packed(const kernel_panel *p, size_t half, size_t r, size_t k);

/* Its code alone. */
uint32_t weights_ref_code(const kernel_panel *p, size_t half, size_t r, size_t k);

/* One element of a type that is a number. */
double weights_ref_number(const void *at, moe_dtype dtype);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* neon_i8mm.c - the kernels for Advanced SIMD with SDOT and SMMLA: Armv8.2 with FEAT_DotProd and
 * FEAT_I8MM. */
#define VEC_DOTPROD 1
#define VEC_MATRIX  1
#include "vec_neon.h"

#include "../kernel_tmpl.h"

const kernel_table kernel_table_neon_i8mm = KERNEL_TABLE("neon_i8mm");

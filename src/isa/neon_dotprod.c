/* SPDX-License-Identifier: Apache-2.0 */
/* neon_dotprod.c - the kernels for Advanced SIMD with SDOT: Armv8.2 with FEAT_DotProd. */
#define VEC_DOTPROD 1
#include "vec_neon.h"

#include "../kernel_tmpl.h"

const kernel_table kernel_table_neon_dotprod = KERNEL_TABLE("neon_dotprod");

/* SPDX-License-Identifier: Apache-2.0 */
/* avx2.c - the kernels for AVX2, FMA and F16C. */
#include "vec_avx2.h"

#include "../kernel_tmpl.h"

const kernel_table kernel_table_avx2 = KERNEL_TABLE("avx2");

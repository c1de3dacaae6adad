/* SPDX-License-Identifier: Apache-2.0 */
/* avx512.c - the kernels for AVX-512 F, BW, DQ, VL. */
#include "vec_avx512.h"

#include "../kernel_tmpl.h"

const kernel_table kernel_table_avx512 = KERNEL_TABLE("avx512");

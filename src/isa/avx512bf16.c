/* SPDX-License-Identifier: Apache-2.0 */
/* avx512bf16.c - the kernels for AVX-512 with VNNI, VBMI, VBMI2 and BF16. */
#define VEC_VNNI 1
#define VEC_VBMI 1
#define VEC_BF16 1
#include "vec_avx512.h"

#include "../kernel_tmpl.h"

const kernel_table kernel_table_avx512bf16 = KERNEL_TABLE("avx512bf16");

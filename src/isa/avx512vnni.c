/* SPDX-License-Identifier: Apache-2.0 */
/* avx512vnni.c - the kernels for AVX-512 with VNNI, VBMI, VBMI2. */
#define VEC_VNNI 1
#define VEC_VBMI 1
#include "vec_avx512.h"

#include "../kernel_tmpl.h"

const kernel_table kernel_table_avx512vnni = KERNEL_TABLE("avx512vnni");

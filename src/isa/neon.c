/* SPDX-License-Identifier: Apache-2.0 */
/* neon.c - the kernels for Advanced SIMD, which every AArch64 has. */
#include "vec_neon.h"

#include "../kernel_tmpl.h"

const kernel_table kernel_table_neon = KERNEL_TABLE("neon");

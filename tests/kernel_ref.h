/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_ref.h - the sums of docs/numerics.md section 4 for scaled weights, from the codes of a
 * kernel_case: reads no panel, decodes by the formats' definitions, and shares no code with src/. */
#ifndef MOE_TEST_KERNEL_REF_H
#define MOE_TEST_KERNEL_REF_H

#include "kernel_case.h"

/* out[t][half][row], f32 rows applied, in the canonical environment.  The operands are those that
 * kernel_table_scalar takes. */
void kernel_ref_sums(const kernel_case *c, float *out);

#endif

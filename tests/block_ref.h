/* SPDX-License-Identifier: Apache-2.0 */
/* block_ref.h - section 10 of docs/numerics.md written down a second time, from the document alone,
 * over canon_ref.h and router_ref.h. */
#ifndef MOE_TEST_BLOCK_REF_H
#define MOE_TEST_BLOCK_REF_H

#include <moe_tkg.h>

/* Writes to output what moe_block writes, for args that it accepts; the weights of args->experts
 * are tensors, or NULL and then those of `rows`.  shared: what args->shared was packed from, or
 * NULL. */
void block_ref(const moe_block_args *args, const moe_experts_args *rows,
               const moe_experts_args *shared, void *output);

#endif

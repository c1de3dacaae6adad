/* SPDX-License-Identifier: Apache-2.0 */
/* router_ref.h - section 9 of docs/numerics.md written down a second time, from the document alone.
 *
 * Shares with the library only src/numeric.h and the public header. */
#ifndef MOE_TEST_ROUTER_REF_H
#define MOE_TEST_ROUTER_REF_H

#include <moe_tkg.h>

/* Writes what moe_router_topk writes, for args that it accepts. */
void router_ref(const moe_router_args *args, const moe_router_output *output);

/* The canonical sum of n products, and element (row, column) of an array.  In the canonical
 * environment (canon_enter). */
float router_ref_dot(const float *x, const float *w, size_t n);
float router_ref_element(const moe_array *a, size_t row, size_t column);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* router_case.h - random routers of every kind, in exact-sized blocks of malloc. */
#ifndef MOE_TEST_ROUTER_CASE_H
#define MOE_TEST_ROUTER_CASE_H

#include <moe_tkg.h>

typedef struct router_case {
    moe_tensor x;
    moe_router_args args; /* points into this structure */
    void *memory[4];      /* of x, weights, bias, selection bias */
} router_case;

/* T tokens; all else is drawn from the seed. */
void router_case_make(router_case *s, uint64_t seed, size_t T);
void router_case_free(router_case *s);

/* An array [rows, columns], row-major or transposed, with gaps or without as draw says, in *memory,
 * which is exactly as long as it spans.  Values of (seed, which); wild: about one in so many is
 * special, 0 for none. */
moe_array router_case_array(void **memory, moe_dtype dtype, size_t rows, size_t columns,
                            uint64_t draw, uint64_t seed, size_t which, unsigned wild);

/* v as an element of bf16, f16 or f32. */
void router_case_store(moe_dtype dtype, void *at, float v);

#endif

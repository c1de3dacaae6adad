/* SPDX-License-Identifier: Apache-2.0 */
/* router.h - which experts a token goes to: docs/numerics.md section 9. */
#ifndef MOE_ROUTER_H
#define MOE_ROUTER_H

#include "kernel.h"
#include "threads.h"

/* Tokens that are routed together: the weights are read once for them. */
enum { ROUTER_TOKENS = 128, ROUTER_MOST_E = 4096, ROUTER_MOST_K = 128 };

/* A router, checked. */
typedef struct router {
    const moe_router_args *args;
    size_t H, E, K;
    size_t groups, kept; /* 1, 1: none */
} router;

/* The scratch of ROUTER_TOKENS tokens, or of T if they are fewer: offsets into one block. */
typedef struct router_scratch {
    size_t tokens;
    size_t rows, row;             /* [tokens] of f32, zeros past H; floats of one */
    size_t logits, scores, score; /* [tokens] of E floats; floats of one */
    size_t bytes;
} router_scratch;

/* False if a size does not fit. */
bool router_size(const router *r, size_t T, router_scratch *s);

/* Floats of a row of H values, zeros past the last. */
size_t router_row(size_t H);

/* The canonical sum of x[k] * w[k] over a row. */
float router_dot(const kernel_table *kernels, const float *x, const float *w, size_t row);

/* Element (row, column) of an array of bf16, f16 or f32, as f32. */
float router_element(const moe_array *a, size_t row, size_t column);

/* out[0 .. row): n values that lie `stride` bytes apart, zeros past the last. */
void router_widen(const kernel_table *kernels, const void *v, moe_dtype dtype, size_t stride,
                  size_t n, float *out, size_t row);

/* Routes `tokens` tokens, whose rows are in memory + s->rows, number `first` and up of the outputs;
 * own and out (either may be NULL) get the same results. */
void router_run(const router *r, const router_scratch *s, const kernel_table *kernels,
                threads *team, uint8_t *memory, size_t first, size_t tokens,
                const moe_router_output *own, const moe_router_output *out);

#endif

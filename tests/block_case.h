/* SPDX-License-Identifier: Apache-2.0 */
/* block_case.h - random blocks: a layer of any kind (random_layer.h) with a norm, a router and a
 * shared expert, or without one of them. */
#ifndef MOE_TEST_BLOCK_CASE_H
#define MOE_TEST_BLOCK_CASE_H

#include "layer.h"
#include "source.h"

typedef struct block_case {
    layer layer; /* its args, but for what the router makes */
    moe_block_args args;
    source source;       /* of the shared expert */
    moe_experts *shared; /* packed; NULL: none */
    void *memory[5];     /* of gamma, the router's weights and biases, the gate */
} block_case;

/* For a layer whose hidden input is in HBM; all else is drawn from the layer's seed. */
void block_case_make(block_case *b, layer_spec s);
void block_case_free(block_case *b);

/* A description as block_case_make wants it. */
layer_spec block_case_spec(layer_spec s);

/* Runs the block into a block of malloc; aborts if the library refuses.  Its size in *bytes. */
void *block_case_run(moe_context *context, const moe_block_args *args, size_t *bytes);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* block.h - norm, router, experts and shared expert as one call: docs/numerics.md section 10. */
#ifndef MOE_BLOCK_H
#define MOE_BLOCK_H

#include "plan.h"
#include "router.h"

/* A block, checked.  Its parts point to each other: it stays where it was filled. */
typedef struct block {
    const moe_block_args *args;
    size_t T, H;
    moe_dtype x, output;
    bool norm, gate, shared;
    float norm_H; /* what the sum of squares is divided by */
    router router;
    /* What the parts are called with: the block's own tensors, whose data the run sets. */
    moe_tkg_args experts_args, shared_args;
    moe_tensor hidden, index, weights, affinities;
    problem experts_problem, shared_problem;
} block;

/* Fills *b with what args say. */
moe_status block_check(const moe_block_args *args, const void *output, size_t output_bytes,
                       block *b);

/* The scratch of a block, offsets into one block of memory; the plans of its two calls. */
typedef struct block_scratch {
    router_scratch router;
    size_t router_at;
    size_t hidden;       /* [T, H] normalised, as x */
    size_t gamma, gate;  /* [H] as f32 rows */
    size_t factor;       /* [T] of the shared expert */
    size_t index;        /* [T, K] */
    size_t weights;      /* [T, K], all-expert [T, E] */
    size_t sums, shared; /* [T, H] of f32: of the experts, of the shared expert */
    size_t plan;         /* of both calls, one after the other */
    size_t bytes;
    call_plan experts_plan, shared_plan;
} block_scratch;

/* False if a size does not fit. */
bool block_size(const block *b, const kernel_table *kernels, block_scratch *s);

void block_run(block *b, block_scratch *s, const kernel_table *kernels, threads *team,
               uint8_t *memory, void *output);

#endif

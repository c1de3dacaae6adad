/* SPDX-License-Identifier: Apache-2.0 */
/* problem.h - one call, checked: what validate.c makes of moe_tkg_args and everything below
 * works from.
 *
 * Nothing in it can be wrong any more; functions that take one cannot fail but for memory. */
#ifndef MOE_PROBLEM_H
#define MOE_PROBLEM_H

#include "pack.h"

typedef struct problem {
    const moe_tkg_args *args;
    size_t T, E_L;
    size_t K;    /* columns of expert_index; 0 if there is none */
    size_t E;    /* columns of expert_affinities; 0 if there are none */
    size_t rank; /* rank_id, 0 if it is not read */
    axis axis;   /* of the experts: H, I, the order of k */
    kernel_format gate_up, down;
    bool all_expert;
    bool scaled;       /* POST_SCALE or INPUT_SCALE: affinities are read */
    bool input_scaled; /* INPUT_SCALE */
    bool masked;
    bool routed; /* the call itself makes expert_index and the affinities: no data of theirs yet */
    bool prequantised;
    moe_dtype hidden; /* MOE_MXFP8_X4 if pre-quantised */
    moe_dtype output;
    moe_act_mode act; /* never MOE_ACT_DEFAULT */
    kernel_point point;
    const moe_experts *experts; /* packed, or NULL: source says what each call packs */
    pack_source source;
} problem;

/* Checks all that can be checked without reading tensor data and fills *p (rank is 0 then). */
moe_status problem_shape(const moe_tkg_args *args, problem *p);

/* After problem_shape the data: pointers, alignment, aliasing, rank_id, expert_index.  After
 * MOE_OK every index that the call will use is in range. */
moe_status problem_data(const void *output, size_t output_bytes, problem *p);

/* Both. */
moe_status problem_check(const moe_tkg_args *args, const void *output, size_t output_bytes,
                         problem *p);

/* Whether the weights of a problem take this numerics mode. */
bool problem_takes(const problem *p, moe_act_mode mode);

/* The tensor that the problem's output is, data NULL, and its bytes. */
moe_tensor problem_output(const problem *p, size_t *bytes);

/* Element i of an i32, u32 or i64 tensor. */
int64_t problem_integer(const moe_tensor *t, size_t i);

/* Element i of a bf16, f16 or f32 tensor, as f32. */
float problem_float(const moe_tensor *t, size_t i);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* demo_layer.h - the experts of one gpt-oss-20b layer with random weights, and tokens for them. */
#ifndef MOE_DEMO_LAYER_H
#define MOE_DEMO_LAYER_H

#include <moe_tkg.h>
#include <stdbool.h>

/* The operator's MX layouts need H in multiples of 512: hidden, and the weights along it, are
 * padded with zeros. */
enum {
    DEMO_H_MODEL = 2880,
    DEMO_H = 3072,
    DEMO_I = 2880,
    DEMO_E = 32,
    DEMO_K = 4,
    DEMO_MAX_T = 128
};

typedef struct demo_layer {
    uint64_t seed;
    moe_tensor gate_up, down;             /* MXFP4 */
    moe_tensor gate_up_scale, down_scale; /* e8m0 */
    moe_tensor gate_up_bias, down_bias;   /* bf16 */
    float *router;                        /* [DEMO_E, DEMO_H_MODEL] */
    void *memory;                         /* of all the above */
    size_t expert_bytes;                  /* what there is of one expert: weights, scales, biases */
} demo_layer;

/* Makes everything but the experts, each of which must then be made.  False if there is no
 * memory. */
bool demo_layer_init(demo_layer *layer, uint64_t seed);
void demo_layer_make_expert(const demo_layer *layer, size_t e);
void demo_layer_free(demo_layer *layer);

/* A batch of tokens, routed by the layer's router: the K experts of the largest logits, softmax
 * over them. */
typedef struct demo_batch {
    size_t T, experts;                    /* experts: how many different ones were chosen */
    moe_tensor hidden, index, affinities; /* bf16, i32, f32; of the arrays below */
    uint16_t x[DEMO_MAX_T][DEMO_H];
    int32_t chosen[DEMO_MAX_T][DEMO_K];
    float affinity[DEMO_MAX_T][DEMO_E];
} demo_batch;

/* T from 1 to DEMO_MAX_T.  Token t is the same in every batch of the layer.  Must stay where it
 * is: see hidden etc. */
void demo_batch_make(demo_batch *batch, const demo_layer *layer, size_t T);

/* The call: selective, affinities applied, SwiGLU clamped as gpt-oss does. */
moe_tkg_args demo_args(const demo_layer *layer, const demo_batch *batch);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* layer.h - the layer and the tokens that every side of the comparison is given: random, row-major,
 * in no library's own layout; and what the layer computes, in double. */
#ifndef PEERS_LAYER_H
#define PEERS_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PEERS_MAX_T = 128, PEERS_BLOCK = 32 };

typedef struct peers_shape {
    const char *name;
    size_t H, I, E, K;
    /* gpt-oss: biases, and (u + 1) * g / (1 + exp(-1.702 g)) with g <= 7 and -7 <= u <= 7; else
     * silu(g) * u */
    bool oai;
    const char *weights; /* the format that the model is published in */
} peers_shape;

extern const peers_shape peers_shapes[]; /* ends with a name NULL */

typedef enum peers_format { PEERS_BF16, PEERS_MXFP4 } peers_format;

/* All experts of one of the three matrices, row-major [E, rows, k].  MXFP4 as in OCP's definition
 * and the published checkpoints: blocks of 32 neighbours along k. */
typedef struct peers_matrix {
    size_t rows, k;
    uint16_t *bf16; /* PEERS_BF16, else NULL */
    uint8_t *codes; /* PEERS_MXFP4: [E, rows, k / 2], element 2 j in the low nibble of byte j */
    uint8_t *scale; /* PEERS_MXFP4: e8m0 [E, rows, k / 32] */
    float *bias;    /* [E, rows], of bf16 values, or NULL */
} peers_matrix;

typedef struct peers_layer {
    const peers_shape *shape;
    peers_format format;
    peers_matrix gate, up, down; /* [E, I, H], [E, I, H], [E, H, I] */
} peers_layer;

/* False, and nothing to free, if there is no memory. */
bool peers_layer_make(peers_layer *layer, const peers_shape *shape, peers_format format,
                      uint64_t seed);
void peers_layer_free(peers_layer *layer);

/* Row `row` of expert e. */
void peers_row(const peers_matrix *m, size_t e, size_t row, float *values);

/* T tokens, each with K different experts of its own, drawn evenly. */
typedef struct peers_batch {
    size_t T, experts; /* experts: how many different ones were drawn */
    uint16_t *bf16;    /* [T, H] */
    float *x;          /* the same */
    int32_t *chosen;   /* [T, K] */
    float *affinity;   /* [T, K]; a token's sum to 1 */
} peers_batch;

bool peers_batch_init(peers_batch *batch, const peers_shape *shape); /* room for PEERS_MAX_T */
void peers_batch_draw(peers_batch *batch, const peers_shape *shape, size_t T, uint64_t *state);
void peers_batch_free(peers_batch *batch);

/* y [H]: token t's output.  False if there is no memory. */
bool peers_reference(const peers_layer *layer, const peers_batch *batch, size_t t, double *y);

uint64_t peers_random(uint64_t *state);

#endif

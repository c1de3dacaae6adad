/* SPDX-License-Identifier: Apache-2.0 */
/* source.h - weights to pack: from a short description, complete and valid arguments of
 * moe_experts_create in any layout that checkpoints have.
 *
 * A code, scale or bias is a function of (seed, matrix, expert, row, k) and of nothing else, so
 * that all layouts of one description hold the same numbers. */
#ifndef MOE_TEST_SOURCE_H
#define MOE_TEST_SOURCE_H

#include <moe_tkg.h>
#include <stdbool.h>

/* Names are gate's and up's; down is like gate. */
typedef enum source_layout {
    SOURCE_DENSE,                  /* [E, I, H] each */
    SOURCE_FUSED,                  /* [E, 2 I, H], gate first */
    SOURCE_INTERLEAVED,            /* [E, 2 I, H], even rows gate */
    SOURCE_TRANSPOSED,             /* [E, H, I] */
    SOURCE_TRANSPOSED_FUSED,       /* [E, H, 2 I], gate first: as the operator's */
    SOURCE_TRANSPOSED_INTERLEAVED, /* [E, H, 2 I], even columns gate */
    SOURCE_POINTERS,               /* [I, H] for each expert */
    SOURCE_GAPS,                   /* [E, I, H] in larger arrays */
    SOURCE_OPERATOR,               /* the operator's tensors; mx: of x4 words */
    SOURCE_LAYOUTS
} source_layout;

enum { SOURCE_GATE, SOURCE_UP, SOURCE_DOWN };

typedef struct source_spec {
    uint64_t seed;
    moe_dtype gate_up, down; /* of the weights; SOURCE_OPERATOR mx: MOE_MXFP4_X4, MOE_MXFP8_X4 */
    bool mx;                 /* scales are e8m0 bytes of 32 k; e2m1_x2 without: e4m3fn of 16 */
    bool ungated;            /* gate is not given */
    /* of e4m3fn with scale_rows (a grid) and of int4_x2; 0: of f32 or bf16, and of 32 k */
    moe_dtype block_scale;
    int32_t scale_k, scale_rows;
    moe_dtype row_scale; /* beside scales of blocks, or none */
    source_layout layout;
    int64_t E_L, H, I;
    int64_t lanes_p; /* of x4 words: I_p */
    moe_dtype scale; /* plain: of the rows' scales, or none */
    bool one_scale;  /* row_stride 0 */
    moe_dtype bias;  /* or none */
    moe_packing packing;
    uint32_t (*code)(const struct source_spec *s, size_t matrix, size_t e, size_t row, size_t k);
} source_spec;

enum { SOURCE_ARRAYS = 128 };

typedef struct source {
    moe_experts_args args;
    source_spec spec;
    moe_tensor tensor[6];
    size_t arrays, bytes; /* bytes of the weights, scales and biases */
    void *array[SOURCE_ARRAYS];
} source;

/* Exact-sized blocks of malloc, so that ASan sees every step outside. */
void source_make(source *s, const source_spec *spec);
void source_free(source *s);

/* The values.  k of an x4 down matrix and the rows of an x4 gate and up bias count lanes, pads
 * included, in the order of docs/numerics.md section 3. */
uint32_t source_code(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k);
uint8_t source_block_scale(const source_spec *s, size_t matrix, size_t e, size_t row, size_t block);
float source_scale(const source_spec *s, size_t matrix, size_t e, size_t row);
float source_bias(const source_spec *s, size_t matrix, size_t e, size_t row);

/* Whether the weights have scales of blocks, beside them or in them. */
bool source_is_scaled(const source_spec *s, size_t matrix);

/* Bits of an element's code, and lanes of the down product. */
size_t source_bits(moe_dtype dtype);
size_t source_lanes(const source_spec *s);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* layer.h - where one layer's weights lie: found by names, checked by shapes, before any is read. */
#ifndef MOE_IO_LAYER_H
#define MOE_IO_LAYER_H

#include "io/checkpoint.h"
#include "io/family.h"

/* The bytes of one array of every expert, as they are read: all of one tensor's share of an expert. */
typedef enum layer_conversion {
    LAYER_COPY,
    LAYER_E8M0_TO_F32,   /* scales of FP8 blocks that are powers of two */
    LAYER_F32_RECIPROCAL /* divisors that serve as factors */
} layer_conversion;

typedef struct layer_piece {
    ck_tensor *tensors; /* one of all experts, or one for each */
    bool each;
    size_t file_bytes; /* of one expert */
    layer_conversion conversion;
    size_t bytes; /* of one expert, converted */
    size_t at;    /* in the buffer of one expert */
} layer_piece;

/* An array of a moe_matrix: where it lies in the buffer of one expert.  MOE_DTYPE_NONE: none. */
typedef struct layer_array {
    moe_dtype dtype;
    int piece;
    size_t offset; /* in the piece */
    int64_t row_stride, column_stride;
} layer_array;

typedef struct layer_matrix {
    layer_array weights, scale, bias, row_scale;
    int32_t scale_k, scale_rows;
    char format[24];
} layer_matrix;

/* A tensor of two numbers that must be rows and k: what packed integers say of themselves. */
typedef struct layer_shape {
    ck_tensor *tensors;
    bool each;
    int64_t rows, k;
} layer_shape;

enum { LAYER_PIECES = 12, LAYER_SHAPES = 3 }; /* four arrays and a shape for each matrix */

/* The experts of a layer, or its shared expert (E = 1). */
typedef struct layer_experts {
    int64_t E, H, I;
    layer_matrix gate, up, down; /* gate.weights.dtype MOE_DTYPE_NONE: without */
    layer_piece pieces[LAYER_PIECES];
    int piece_count;
    layer_shape shapes[LAYER_SHAPES];
    int shape_count;
    size_t expert_bytes;        /* the buffer of one expert */
    uint64_t file_bytes;        /* of all tensors, and ... */
    uint64_t expert_file_bytes; /* ... of one expert */
} layer_experts;

/* A small tensor that is kept as it is: the router's, the shared gate. */
typedef struct layer_vector {
    bool given;
    ck_tensor tensor;
    moe_dtype dtype;
} layer_vector;

typedef struct layer_plan {
    moe_layer_info info;
    layer_experts experts, shared; /* shared.E = 0: none */
    layer_vector router, router_bias, selection_bias, shared_gate;
} layer_plan;

/* A layer of a model: what its names are made of. */
typedef struct layer_place {
    const checkpoint *ck;
    const family_rules *rules;
    const layout *layout;
    const char *prefix;
    int64_t number;
} layer_place;

/* The number in a tensor's name, if it is of a layer of this layout; else -1. */
int64_t layer_number(const char *name, const layout *l, const char *prefix);

/* Which of the family's layouts layer `number` is in; NULL: it has no experts. */
const layout *layer_layout(const checkpoint *ck, const family_rules *rules, const char *prefix,
                           int64_t number);

/* Finds and checks all of a layer.  *plan is to be freed in any case. */
moe_status layer_resolve(const layer_place *place, layer_plan *plan);
void layer_plan_free(layer_plan *plan);

/* ---- names ----------------------------------------------------------------------------------- */

enum { LAYER_NAME_BYTES = 256 };

/* The whole name behind stem (a layout's), of expert e, with a suffix. */
void layer_name(const layer_place *place, const char *stem, int64_t e, const char *suffix,
                char name[LAYER_NAME_BYTES]);

/* ---- parts, for layer.c ---------------------------------------------------------------------- */

/* A matrix [rows, k], or one of all experts, of which nothing is known but its stem. */
typedef struct layer_search {
    const layer_place *place;
    layer_experts *experts;
    const char *stem;
    bool stacked;    /* one tensor for all experts, which are its first dimension */
    bool transposed; /* plain weights [k, rows] */
    int64_t rows, k;
} layer_search;

/* Finds the matrix in whatever format it is, checks each tensor of it, and says in *m where it lies. */
moe_status layer_find_matrix(const layer_search *search, layer_matrix *m);

/* The shape of a matrix's weights as they are in the file (expert 0's); *found: it is there. */
moe_status layer_weights_shape(const layer_search *search, ck_tensor *t, bool *found);

/* Whether there are weights behind a stem, of expert 0; opens no file. */
bool layer_has_weights(const layer_place *place, const char *stem);

/* MOE_E_MODEL about a tensor. */
__attribute__((format(printf, 3, 4))) moe_status layer_refuse(const layer_place *place,
                                                              const ck_tensor *t,
                                                              const char *format, ...);

/* Checks that t has exactly this shape. */
moe_status layer_shape_is(const layer_place *place, const ck_tensor *t, int rank,
                          const int64_t *shape);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* layer.h - test layers: from a short description, complete and valid arguments with all their
 * tensors.
 *
 * A value is a function of (seed, tensor, logical coordinates) and of nothing else, so that
 *   - the same description gives the same bytes everywhere;
 *   - a layer of T tokens is the first T tokens of the same layer with more;
 *   - HBM and SBUF hidden inputs of one description hold the same numbers.
 *
 *     layer l;
 *     layer_make(&l, &(layer_spec){.hidden = MOE_BF16, .weights = MOE_MXFP4_X4, .T = 3, .H = 512,
 *                                  .I = 96, .E_L = 4, .K = 2, .scaling = MOE_POST_SCALE});
 *     void *output = layer_run(NULL, &l, NULL);
 *     ...
 *     free(output);
 *     layer_free(&l); */
#ifndef MOE_TEST_LAYER_H
#define MOE_TEST_LAYER_H

#include <moe_tkg.h>
#include <stdbool.h>

/* The tensors of moe_tkg_args, in its order. */
typedef enum layer_tensor {
    LAYER_HIDDEN,
    LAYER_GATE_UP,
    LAYER_DOWN,
    LAYER_AFFINITIES,
    LAYER_INDEX,
    LAYER_RANK,
    LAYER_GATE_UP_BIAS,
    LAYER_DOWN_BIAS,
    LAYER_GATE_UP_SCALE,
    LAYER_DOWN_SCALE,
    LAYER_HIDDEN_SCALE,
    LAYER_GATE_UP_INPUT_SCALE,
    LAYER_DOWN_INPUT_SCALE,
    LAYER_EAGER,
    LAYER_TENSORS
} layer_tensor;

/* The parameter's name, "hidden_input" ..., and its place in args. */
const char *layer_tensor_name(layer_tensor which);
const moe_tensor **layer_tensor_slot(moe_tkg_args *args, layer_tensor which);

typedef enum layer_place {
    LAYER_HBM = 0, /* [T, H] */
    LAYER_HBM_BSH, /* [T, 1, H] */
    LAYER_SBUF,    /* [128, T, H / 128]: H % 128 = 0 */
    LAYER_PREQUANT /* MXFP8 words [128, H / 512, T] and their scale: MX weights, all-expert */
} layer_place;

typedef enum layer_scales { LAYER_UNSCALED = 0, LAYER_ROW, LAYER_STATIC } layer_scales;

/* Data that are legal and unusual; default are values around 1. */
enum {
    /* hidden: NaN, an infinity, subnormals or zeros in every third token, one kind a token */
    LAYER_WILD_SPECIAL = 1,
    /* hidden: token t times a power of two in 2^-20 to 2^20; weights: so column by column */
    LAYER_WILD_WIDE = 2,
    /* runs of zeros of either sign in hidden and weights, whole blocks of MX */
    LAYER_WILD_ZERO_RUNS = 4,
    /* one scale byte in 8 is 0, 1, 254 or 255 */
    LAYER_WILD_SCALE_BYTES = 8,
    /* weights: subnormals, in the last expert NaN and infinities too, in the columns c % 16 = 7 */
    LAYER_WILD_WEIGHTS = 16,
    /* affinities and biases: a NaN, infinity or subnormal in one of 32 */
    LAYER_WILD_ROUTING = 32
};

typedef struct layer_spec {
    uint64_t seed;
    moe_dtype hidden;  /* bf16, f16, f32; of LAYER_PREQUANT: not read */
    moe_dtype weights; /* of gate/up: bf16, f16, f32, e4m3_ieee, e4m3fn, mxfp4_x4, mxfp8_x4 */
    moe_dtype down;    /* of down; MOE_DTYPE_NONE: as weights */
    int64_t T, H, I;   /* MX: H % 512 = 0 */
    int64_t E_L, E, K; /* E 0: E_L; K 0: 1 */
    layer_place place;
    bool all_expert;
    moe_affinity_scale scaling;
    uint32_t rank; /* all-expert with affinities: (rank + 1) * E_L <= E */
    bool mask;     /* mask_unselected_experts */
    bool eager; /* selective, with affinities: the eager affinities in place of expert_affinities */
    layer_scales scales; /* of plain weights; MX always has its own */
    bool gate_up_bias, down_bias;
    bool clamp; /* gate <= 1.5, gate >= -2, up <= 1, up >= -1.25: most rows hit them somewhere */
    bool act_clamp;            /* act <= 0.25 */
    moe_activation activation; /* MOE_SWIGLU: alpha 1.702, up_offset 1 */
    moe_act_mode act_mode;
    moe_dtype output; /* output_dtype */
    bool output_in_sbuf;
    moe_dtype index_type;    /* of expert_index and rank_id; MOE_DTYPE_NONE: i32 */
    moe_dtype affinity_type; /* of both affinities and both biases; MOE_DTYPE_NONE: f32 */
    bool no_zero_affinity;   /* default: one affinity in 8 is a zero of either sign */
    unsigned wild;           /* sum of LAYER_WILD_* */
} layer_spec;

/* Where tensors come from: bytes bytes aligned to element (a power of two, the size of one
 * element), NULL if there are none.  give takes them back. */
typedef struct layer_memory {
    void *(*take)(size_t bytes, size_t element, void *user);
    void (*give)(void *memory, size_t bytes, void *user);
    void *user;
} layer_memory;

typedef struct layer {
    moe_tkg_args args; /* its tensors are those below: do not copy a layer */
    layer_spec spec;   /* with the defaults filled in */
    moe_tensor tensor[LAYER_TENSORS];
    size_t bytes[LAYER_TENSORS]; /* 0: not given */
    void *data[LAYER_TENSORS];   /* as tensor[].data, to write to */
    layer_memory memory;
} layer;

/* Makes the layer; the caller frees it.  Exact-sized blocks of malloc, so that ASan sees every
 * step outside; the second takes memory elsewhere.  Out of memory ends the program (abort): a
 * test cannot go on. */
void layer_make(layer *l, const layer_spec *spec);
void layer_make_in(layer *l, const layer_spec *spec, const layer_memory *memory);
void layer_free(layer *l);

/* What the tensor is in a layer of this description: data NULL. */
moe_tensor layer_shape(const layer *l, layer_tensor which);

/* Gives which the shape, type and data of a tensor that the description does not have (an extra
 * input scale, an affinity tensor in NO_SCALE ...) or takes one away. */
void layer_add(layer *l, layer_tensor which);
void layer_drop(layer *l, layer_tensor which);

/* Writes the tensor's values, as layer_make and layer_add do. */
void layer_fill(layer *l, layer_tensor which);

bool layer_is_mx(const layer *l);

/* Runs the layer into a block of malloc, filled with 0xA5 before, and returns it; its size in
 * *bytes if not NULL. Aborts with moe_last_error() on stderr if the library refuses. */
void *layer_run(moe_context *context, const layer *l, size_t *bytes);

/* Packs the layer's experts on context; the caller destroys them.  Aborts if the library refuses. */
moe_experts *layer_pack(moe_context *context, const layer *l, moe_packing packing);

/* layer_run with packed experts. */
void *layer_run_packed(moe_context *context, const layer *l, const moe_experts *experts,
                       size_t *bytes);

/* splitmix64 of (seed, a, b): the generator of everything above. */
uint64_t layer_random(uint64_t seed, uint64_t a, uint64_t b);

#endif

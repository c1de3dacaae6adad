/* SPDX-License-Identifier: Apache-2.0 */
/* moe_tkg_io.h - the Mixture-of-Experts layers of checkpoints: Hugging Face (safetensors) and GGUF.
 *
 *     moe_model *model;
 *     moe_layer *layer;
 *     moe_block_args args;
 *     if (moe_model_open("path/to/model", NULL, &model) != MOE_OK ||
 *         moe_model_load(model, 3, NULL, NULL, &layer) != MOE_OK)
 *         puts(moe_io_last_error());
 *     moe_layer_args(layer, &args);
 *     args.experts.hidden_input = &hidden;
 *     moe_block(NULL, &args, output, output_bytes);
 *
 * Needs libmoe_tkg.  Files are of any origin: nothing in them is believed before it was checked, and
 * no error leaves anything behind.  Functions return a moe_status; moe_io_last_error() says, for the
 * calling thread, which file, rule, offset or tensor. */
#ifndef MOE_TKG_IO_H
#define MOE_TKG_IO_H

#include <moe_tkg.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What went wrong in this thread's last call of this header that failed: one line.  Never NULL. */
MOE_API const char *moe_io_last_error(void);

/* ---- a model --------------------------------------------------------------------------------- */

typedef struct moe_model moe_model;

typedef struct moe_model_options {
    size_t struct_size; /* sizeof(moe_model_options) */
    /* config.json of a safetensors model; NULL: the one beside the files. */
    const char *config;
} moe_model_options;

static inline moe_model_options moe_model_options_init(void)
{
    moe_model_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    return options;
}

/* Opens a directory, a model.safetensors.index.json, a safetensors file, a GGUF file (the first of a
 * split: the others are found beside it), or the directory that moe_layer_save wrote to.  What a file
 * is, its content says.  Reads headers, not weights.
 *
 * MOE_E_OPEN, MOE_E_READ, MOE_E_FORMAT: no sound file.  MOE_E_STALE: packed layers of another layout of
 * this library.  MOE_E_MODEL: sound, and no model that is known here; the message says what was looked
 * for.  options: NULL for all defaults. */
MOE_API moe_status moe_model_open(const char *path, const moe_model_options *options,
                                  moe_model **model);
MOE_API void moe_model_close(moe_model *model); /* NULL is fine.  Loaded layers live on. */

typedef struct moe_model_info {
    size_t struct_size;    /* in: sizeof(moe_model_info) */
    const char *family;    /* "gpt-oss", "qwen3-moe", ...; owned by the model */
    const char *container; /* "safetensors", "gguf", "packed" */
    int64_t layers;        /* decoder layers in all, dense ones included */
    int64_t moe_layers;
} moe_model_info;

MOE_API moe_status moe_model_describe(const moe_model *model, moe_model_info *info);

/* One MoE layer, from headers alone. */
typedef struct moe_layer_info {
    size_t struct_size; /* in: sizeof(moe_layer_info) */
    int64_t layer;      /* its number among all layers */
    int64_t H, I, E, K;
    char gate_up_format[24], down_format[24]; /* "mxfp4", "fp8-block", "q4_k", ... */
    moe_activation activation;
    moe_optional_float swiglu_alpha, swiglu_up_offset;
    moe_optional_float gate_clamp_upper_limit, up_clamp_upper_limit, up_clamp_lower_limit;
    moe_optional_float act_clamp_upper_limit;
    int32_t has_gate, has_bias;
    moe_affinity_scale scaling; /* MOE_POST_SCALE, or MOE_INPUT_SCALE (Llama-4) */
    /* NULL: the router is this library's, as follows.  Else its rule, which this library does not
     * have ("sparsemixer"): the experts run with given ids, moe_layer_args leaves the router out.
     * Owned by the model or layer that was asked. */
    const char *foreign_router;
    moe_router_score score;
    moe_group_rank group_rank;
    int32_t normalize, n_group, topk_group, has_router_bias, has_selection_bias;
    float normalize_epsilon, scale;
    int64_t shared_I; /* 0: no shared expert */
    char shared_format[24];
    int32_t has_shared_gate;
    uint64_t bytes;        /* of the layer's tensors in the files: experts, router, shared expert */
    uint64_t expert_bytes; /* of one expert's */
} moe_layer_info;

/* MoE layer number i of moe_layers, in ascending order. */
MOE_API moe_status moe_model_layer(const moe_model *model, int64_t i, moe_layer_info *info);

/* ---- a layer --------------------------------------------------------------------------------- */

typedef struct moe_layer moe_layer;

typedef struct moe_load_options {
    size_t struct_size; /* sizeof(moe_load_options) */
    /* MOE_PACK_LOSSLESS: bf16 experts in 12 bits.  A packed cache gives what was packed; LOSSLESS of
     * what was packed plain is refused. */
    moe_packing packing;
    /* Called on the calling thread now and then: bytes of the layer read so far, and of all, which the
     * last call of a load that succeeds says.  Not 0: stop, MOE_E_READ.  NULL: not called. */
    int (*progress)(void *user, uint64_t done, uint64_t all);
    void *user;
} moe_load_options;

static inline moe_load_options moe_load_options_init(void)
{
    moe_load_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    return options;
}

/* Reads and packs the layer whose number is `layer` (moe_layer_info.layer), on context's threads
 * (NULL: the calling one).  Beside the result memory for some experts is taken, not for all.  Any
 * number of threads may load from one model at once. */
MOE_API moe_status moe_model_load(const moe_model *model, int64_t layer, moe_context *context,
                                  const moe_load_options *options, moe_layer **loaded);

/* Frees.  MOE_E_BUSY, and nothing happens, while moe_block or a call of its routed experts runs on it
 * (while one of its shared expert's alone runs: all that can be done with it is to free it again).
 * NULL is fine. */
MOE_API moe_status moe_layer_free(moe_layer *layer);

/* *args = all that the layer says: experts, activation, limits, router (unless foreign), shared
 * expert.  hidden_input and what else the caller chooses (output_dtype, act_mode) remain to be set.
 * The layer is referred to, and must outlive the calls.  For the experts alone, with ids and weights
 * of the caller's own, use args->experts with moe_tkg. */
MOE_API moe_status moe_layer_args(const moe_layer *layer, moe_block_args *args);
MOE_API moe_status moe_layer_describe(const moe_layer *layer, moe_layer_info *info);

/* ---- a cache of packed layers ---------------------------------------------------------------- */

/* Writes the layer, packed, to `directory` (made if it is not there), in a file of its own that
 * comes into being complete or not at all; temporary files (.moe-PROCESS-N.tmp) of processes that were
 * killed are removed from there.  MOE_E_MODEL if a checkpoint lies there: then neither could
 * be opened by the directory's name.  moe_model_open opens the directory, moe_model_load reads at the
 * speed of the disk and refuses what is damaged (MOE_E_FORMAT) or was packed by another layout of this
 * library (MOE_E_STALE). */
MOE_API moe_status moe_layer_save(const moe_layer *layer, const char *directory);

/* MOE_OK if every layer in packed `cache` was made from `model` as its files are now: sizes, times and
 * headers.  Else MOE_E_STALE. */
MOE_API moe_status moe_model_matches(const moe_model *cache, const moe_model *model);

#ifdef __cplusplus
}
#endif
#endif

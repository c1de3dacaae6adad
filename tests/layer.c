/* SPDX-License-Identifier: Apache-2.0 */
/* layer.c - the tensors of test layers: shapes and memory. */
#include "layer.h"

#include "../tools/paths.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- the tensors of args --------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t slot;
} TENSORS[LAYER_TENSORS] = {
    {"hidden_input", offsetof(moe_tkg_args, hidden_input)},
    {"expert_gate_up_weights", offsetof(moe_tkg_args, expert_gate_up_weights)},
    {"expert_down_weights", offsetof(moe_tkg_args, expert_down_weights)},
    {"expert_affinities", offsetof(moe_tkg_args, expert_affinities)},
    {"expert_index", offsetof(moe_tkg_args, expert_index)},
    {"rank_id", offsetof(moe_tkg_args, rank_id)},
    {"expert_gate_up_bias", offsetof(moe_tkg_args, expert_gate_up_bias)},
    {"expert_down_bias", offsetof(moe_tkg_args, expert_down_bias)},
    {"expert_gate_up_weights_scale", offsetof(moe_tkg_args, expert_gate_up_weights_scale)},
    {"expert_down_weights_scale", offsetof(moe_tkg_args, expert_down_weights_scale)},
    {"hidden_input_scale", offsetof(moe_tkg_args, hidden_input_scale)},
    {"gate_up_input_scale", offsetof(moe_tkg_args, gate_up_input_scale)},
    {"down_input_scale", offsetof(moe_tkg_args, down_input_scale)},
    {"expert_affinities_eager", offsetof(moe_tkg_args, expert_affinities_eager)},
};

const char *layer_tensor_name(layer_tensor which)
{
    return TENSORS[which].name;
}

const moe_tensor **layer_tensor_slot(moe_tkg_args *args, layer_tensor which)
{
    return (const moe_tensor **)(void *)((char *)args + TENSORS[which].slot);
}

bool layer_is_mx(const layer *l)
{
    return l->spec.weights == MOE_MXFP4_X4 || l->spec.weights == MOE_MXFP8_X4;
}

/* ---- layers ---------------------------------------------------------------------------------- */

static moe_tensor described(moe_dtype dtype, int32_t rank, int64_t d0, int64_t d1, int64_t d2,
                            int64_t d3, int64_t d4)
{
    moe_tensor t = moe_tensor_2d(NULL, dtype, d0, d1);
    t.rank = rank;
    t.shape[2] = d2;
    t.shape[3] = d3;
    t.shape[4] = d4;
    return t;
}

static moe_tensor hidden_shape(const layer_spec *s)
{
    moe_tensor t = moe_tensor_2d(NULL, s->hidden, s->T, s->H);
    if (s->place == LAYER_HBM_BSH) t = described(s->hidden, 3, s->T, 1, s->H, 0, 0);
    if (s->place == LAYER_SBUF) t = described(s->hidden, 3, 128, s->T, s->H / 128, 0, 0);
    if (s->place == LAYER_PREQUANT) t = described(MOE_MXFP8_X4, 3, 128, s->H / 512, s->T, 0, 0);
    t.layout = s->place >= LAYER_SBUF ? MOE_LAYOUT_SBUF : MOE_LAYOUT_HBM;
    return t;
}

moe_tensor layer_shape(const layer *l, layer_tensor which)
{
    const layer_spec *s = &l->spec;
    int64_t T = s->T, H = s->H, I = s->I, E_L = s->E_L, nH = H / 512, nI = (I + 511) / 512;
    int64_t I_p = I >= 512 ? 128 : (I + 31) / 32 * 8;
    bool mx = layer_is_mx(l), row = s->scales != LAYER_STATIC;
    moe_dtype number = s->affinity_type;
    switch (which) {
    case LAYER_HIDDEN: return hidden_shape(s);
    case LAYER_GATE_UP:
        if (mx) return described(s->weights, 5, E_L, 128, 2, nH, I);
        return described(s->weights, 4, E_L, H, 2, I, 0);
    case LAYER_DOWN:
        if (mx) return described(s->down, 4, E_L, I_p, nI, H, 0);
        return described(s->down, 3, E_L, I, H, 0, 0);
    case LAYER_AFFINITIES: return moe_tensor_2d(NULL, number, T, s->E);
    case LAYER_INDEX: return moe_tensor_2d(NULL, s->index_type, T, s->K);
    case LAYER_RANK: return moe_tensor_2d(NULL, s->index_type, 1, 1);
    case LAYER_GATE_UP_BIAS:
        if (mx) return described(number, 5, E_L, I_p, 2, nI, 4);
        return described(number, 3, E_L, 2, I, 0, 0);
    case LAYER_DOWN_BIAS: return moe_tensor_2d(NULL, number, E_L, H);
    case LAYER_GATE_UP_SCALE:
        if (mx) return described(MOE_E8M0, 5, E_L, 16, 2, nH, I);
        return described(MOE_F32, 3, E_L, 2, row ? I : 1, 0, 0);
    case LAYER_DOWN_SCALE:
        if (mx) return described(MOE_E8M0, 4, E_L, I_p / 8, nI, H, 0);
        return moe_tensor_2d(NULL, MOE_F32, E_L, row ? H : 1);
    case LAYER_HIDDEN_SCALE: return described(MOE_E8M0, 3, 128, nH, T, 0, 0);
    case LAYER_GATE_UP_INPUT_SCALE:
    case LAYER_DOWN_INPUT_SCALE: return moe_tensor_2d(NULL, MOE_F32, E_L, 1);
    case LAYER_EAGER: return moe_tensor_2d(NULL, number, T, s->K);
    case LAYER_TENSORS: break;
    }
    abort();
}

void layer_add(layer *l, layer_tensor which)
{
    moe_tensor *t = &l->tensor[which];
    *t = layer_shape(l, which);
    size_t bytes = moe_dtype_size(t->dtype);
    for (int d = 0; d < t->rank; d++) bytes *= (size_t)t->shape[d];
    *layer_tensor_slot(&l->args, which) = t;
    if (bytes == 0) return;
    t->data = l->data[which] = l->memory.take(bytes, moe_dtype_size(t->dtype), l->memory.user);
    if (t->data == NULL) abort();
    l->bytes[which] = bytes;
    layer_fill(l, which);
}

void layer_drop(layer *l, layer_tensor which)
{
    if (l->data[which] != NULL) l->memory.give(l->data[which], l->bytes[which], l->memory.user);
    l->data[which] = NULL;
    l->bytes[which] = 0;
    *layer_tensor_slot(&l->args, which) = NULL;
}

void layer_free(layer *l)
{
    for (int which = 0; which < LAYER_TENSORS; which++) layer_drop(l, (layer_tensor)which);
}

static void set_scalars(moe_tkg_args *args, const layer_spec *s)
{
    args->is_all_expert = s->all_expert;
    args->mask_unselected_experts = s->mask;
    args->expert_affinities_scaling_mode = s->scaling;
    args->activation_fn = s->activation;
    args->act_mode = s->act_mode;
    args->output_dtype = s->output;
    args->output_in_sbuf = s->output_in_sbuf;
    if (s->activation == MOE_SWIGLU) {
        args->swiglu_alpha = moe_given_float(1.702f);
        args->swiglu_up_offset = moe_given_float(1.0f);
    }
    if (s->clamp) {
        args->gate_clamp_upper_limit = moe_given_float(1.5f);
        args->gate_clamp_lower_limit = moe_given_float(-2.0f);
        args->up_clamp_upper_limit = moe_given_float(1.0f);
        args->up_clamp_lower_limit = moe_given_float(-1.25f);
    }
    if (s->act_clamp) args->act_clamp_upper_limit = moe_given_float(0.25f);
}

void layer_make_in(layer *l, const layer_spec *spec, const layer_memory *memory)
{
    memset(l, 0, sizeof *l);
    l->args = moe_tkg_args_init();
    l->memory = *memory;
    l->spec = *spec;
    layer_spec *s = &l->spec;
    if (s->down == MOE_DTYPE_NONE) s->down = s->weights;
    if (s->E == 0) s->E = s->E_L;
    if (s->K == 0) s->K = 1;
    if (s->index_type == MOE_DTYPE_NONE) s->index_type = MOE_I32;
    if (s->affinity_type == MOE_DTYPE_NONE) s->affinity_type = MOE_F32;
    set_scalars(&l->args, s);

    bool affinities = s->scaling != MOE_NO_SCALE,
         scaled = layer_is_mx(l) || s->scales != LAYER_UNSCALED;
    const bool given[LAYER_TENSORS] = {
        [LAYER_HIDDEN] = true,
        [LAYER_GATE_UP] = true,
        [LAYER_DOWN] = true,
        [LAYER_AFFINITIES] = affinities && !s->eager,
        [LAYER_INDEX] = !s->all_expert || s->mask,
        [LAYER_RANK] = affinities && s->all_expert,
        [LAYER_GATE_UP_BIAS] = s->gate_up_bias,
        [LAYER_DOWN_BIAS] = s->down_bias,
        [LAYER_GATE_UP_SCALE] = scaled,
        [LAYER_DOWN_SCALE] = scaled,
        [LAYER_HIDDEN_SCALE] = s->place == LAYER_PREQUANT,
        [LAYER_EAGER] = s->eager,
    };
    for (int which = 0; which < LAYER_TENSORS; which++)
        if (given[which]) layer_add(l, (layer_tensor)which);
}

static void *take_malloc(size_t bytes, size_t element, void *user)
{
    (void)element;
    (void)user;
    return malloc(bytes);
}

static void give_malloc(void *memory, size_t bytes, void *user)
{
    (void)bytes;
    (void)user;
    free(memory);
}

void layer_make(layer *l, const layer_spec *spec)
{
    layer_make_in(l, spec, &(layer_memory){take_malloc, give_malloc, NULL});
}

static void *run_args(moe_context *context, const moe_tkg_args *args, size_t *bytes)
{
    moe_tensor shape;
    size_t n = 0;
    unsigned char *output = NULL;
    moe_status status = moe_tkg_output(args, &shape, &n);
    if (status == MOE_OK) {
        output = malloc(n > 0 ? n : 1);
        if (output == NULL) abort();
        memset(output, 0xA5, n);
        status = moe_tkg(context, args, output, n);
    }
    if (status != MOE_OK) {
        fprintf(stderr, "%s: %s\n", moe_status_name(status), moe_last_error());
        abort();
    }
    if (bytes != NULL) *bytes = n;
    return output;
}

void *layer_run(moe_context *context, const layer *l, size_t *bytes)
{
    return run_args(context, &l->args, bytes);
}

/* ---- packed experts -------------------------------------------------------------------------- */

moe_experts *layer_pack(moe_context *context, const layer *l, moe_packing packing)
{
    moe_experts *experts;
    moe_experts_args args = path_experts_args(&l->args);
    args.packing = packing;
    moe_status status = moe_experts_create(context, &args, &experts);
    if (status == MOE_OK) return experts;
    fprintf(stderr, "%s: %s\n", moe_status_name(status), moe_last_error());
    abort();
}

void *layer_run_packed(moe_context *context, const layer *l, const moe_experts *experts,
                       size_t *bytes)
{
    moe_tkg_args args = path_with_experts(&l->args, experts);
    return run_args(context, &args, bytes);
}

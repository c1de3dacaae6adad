/* SPDX-License-Identifier: Apache-2.0 */
/* load.c - layers in memory: loaded, described, handed to moe_block.  A failed load leaves nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/cache.h"
#include "io/load_read.h"
#include "io/loaded.h"
#include "io/model.h"
#include "io/model_error.h"

/* ---- loading --------------------------------------------------------------------------------- */

static moe_status keep_vector(const layer_vector *v, load_progress *progress, moe_array *a)
{
    void *data;
    moe_status s = load_vector(v, progress, &data);
    if (s != MOE_OK || !v->given) return s;
    const int64_t *shape = v->tensor.shape;
    bool row = v->tensor.rank == 2 && shape[0] == 1; /* [1, H] as [H] */
    *a = v->tensor.rank == 2 && !row
             ? moe_array_dense(data, v->dtype, shape[0], shape[1])
             : moe_array_dense(data, v->dtype, row ? shape[1] : shape[0], 1);
    return MOE_OK;
}

static moe_status fill(moe_layer *layer, const layer_place *place, const layer_plan *plan,
                       moe_context *context, const moe_load_options *options)
{
    bool lossless = options->packing == MOE_PACK_LOSSLESS;
    load_progress progress = {options->progress, options->user, 0, plan->info.bytes,
                              ck_path(place->ck)};
    moe_packing shared_packing = lossless && strcmp(plan->info.shared_format, "bf16") == 0
                                     ? MOE_PACK_LOSSLESS
                                     : MOE_PACK_PLAIN;
    /* Lossless packing reads the weights twice. */
    if (lossless) progress.all += plan->experts.file_bytes;
    if (shared_packing == MOE_PACK_LOSSLESS) progress.all += plan->shared.file_bytes;
    layer->info = plan->info;
    layer->layers = place->rules->layers;
    snprintf(layer->family, sizeof layer->family, "%s", place->rules->family);
    moe_status s = origin_of(plan, false, &layer->origin);
    if (s == MOE_OK) s = load_check_shapes(place, &plan->experts, &progress);
    if (s == MOE_OK) s = load_check_shapes(place, &plan->shared, &progress);
    if (s == MOE_OK)
        s = load_experts(&plan->experts, context, options->packing, &progress, &layer->experts);
    if (s == MOE_OK && plan->shared.E > 0)
        s = load_experts(&plan->shared, context, shared_packing, &progress, &layer->shared);
    if (s == MOE_OK) s = keep_vector(&plan->router, &progress, &layer->router);
    if (s == MOE_OK) s = keep_vector(&plan->router_bias, &progress, &layer->router_bias);
    if (s == MOE_OK) s = keep_vector(&plan->selection_bias, &progress, &layer->selection_bias);
    if (s == MOE_OK) s = keep_vector(&plan->shared_gate, &progress, &layer->shared_gate);
    return s;
}

static moe_status load(const layer_place *place, moe_context *context,
                       const moe_load_options *options, moe_layer **loaded)
{
    layer_plan plan;
    moe_layer *layer = NULL;
    moe_status s = layer_resolve(place, &plan);
    if (s == MOE_OK) {
        layer = calloc(1, sizeof *layer);
        s = layer ? fill(layer, place, &plan, context, options)
                  : model_fail(MOE_E_NOMEM, ck_path(place->ck), "out of memory");
    }
    layer_plan_free(&plan);
    if (s == MOE_OK)
        *loaded = layer;
    else
        moe_layer_free(layer);
    return s;
}

moe_status moe_model_load(const moe_model *model, int64_t layer, moe_context *context,
                          const moe_load_options *options, moe_layer **loaded)
{
    moe_load_options plain = moe_load_options_init();
    if (loaded == NULL) return model_argument(MOE_E_NULL_ARG, "loaded = NULL: required");
    *loaded = NULL;
    if (model == NULL) return model_argument(MOE_E_NULL_ARG, "model = NULL: required");
    if (options == NULL) options = &plain;
    moe_status s = model_struct_size(options, sizeof *options, "moe_load_options");
    if (s != MOE_OK) return s;
    if (options->packing != MOE_PACK_PLAIN && options->packing != MOE_PACK_LOSSLESS)
        return model_argument(MOE_E_BAD_ENUM, "packing = %d: must be 0 or 1",
                              (int)options->packing);
    if (model->cache) return cache_load(model->cache, layer, context, options, loaded);
    for (int64_t i = 0; i < model->count; i++) {
        if (model->layers[i].number != layer) continue;
        layer_place place = model_place(model, i);
        return load(&place, context, options, loaded);
    }
    return model_argument(
        MOE_E_VALUE,
        "layer = %lld: has no experts; the %lld layers that have lie from %lld to "
        "%lld",
        (long long)layer, (long long)model->count, (long long)model->layers[0].number,
        (long long)model->layers[model->count - 1].number);
}

moe_status moe_layer_free(moe_layer *layer)
{
    if (layer == NULL) return MOE_OK;
    moe_status s = moe_experts_destroy(layer->experts);
    if (s == MOE_OK) {
        layer->experts = NULL;
        s = moe_experts_destroy(layer->shared);
    }
    if (s != MOE_OK) return model_argument(s, "%s", moe_last_error());
    loaded_forget(layer);
    free(layer);
    return MOE_OK;
}

void loaded_drop_arrays(moe_layer *layer)
{
    moe_array *const arrays[] = {&layer->router, &layer->router_bias, &layer->selection_bias,
                                 &layer->shared_gate};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        free((void *)arrays[i]->data);
        arrays[i]->data = NULL;
    }
}

void loaded_forget(moe_layer *layer)
{
    loaded_drop_arrays(layer);
    origin_free(&layer->origin);
}

/* ---- what is loaded -------------------------------------------------------------------------- */

static void experts_args(const moe_layer *layer, moe_tkg_args *a)
{
    const moe_layer_info *info = &layer->info;
    a->experts = layer->experts;
    a->activation_fn = info->activation;
    a->swiglu_alpha = info->swiglu_alpha;
    a->swiglu_up_offset = info->swiglu_up_offset;
    a->gate_clamp_upper_limit = info->gate_clamp_upper_limit;
    a->up_clamp_upper_limit = info->up_clamp_upper_limit;
    a->up_clamp_lower_limit = info->up_clamp_lower_limit;
    a->act_clamp_upper_limit = info->act_clamp_upper_limit;
    a->expert_affinities_scaling_mode = info->scaling;
}

static void router_args(const moe_layer *layer, moe_router_args *r)
{
    const moe_layer_info *info = &layer->info;
    r->E = info->E;
    r->K = info->K;
    r->weights = layer->router;
    r->bias = layer->router_bias;
    r->selection_bias = layer->selection_bias;
    r->score = info->score;
    r->normalize = info->normalize;
    r->normalize_epsilon = info->normalize_epsilon;
    r->scale = info->scale;
    r->n_group = info->n_group;
    r->topk_group = info->topk_group;
    r->group_rank = info->group_rank;
}

moe_status moe_layer_args(const moe_layer *layer, moe_block_args *args)
{
    if (layer == NULL) return model_argument(MOE_E_NULL_ARG, "layer = NULL: required");
    if (args == NULL) return model_argument(MOE_E_NULL_ARG, "args = NULL: required");
    *args = moe_block_args_init();
    experts_args(layer, &args->experts);
    if (!layer->info.foreign_router) router_args(layer, &args->router);
    args->shared = layer->shared;
    args->shared_gate = layer->shared_gate;
    return MOE_OK;
}

moe_status moe_layer_describe(const moe_layer *layer, moe_layer_info *info)
{
    if (layer == NULL) return model_argument(MOE_E_NULL_ARG, "layer = NULL: required");
    if (info == NULL) return model_argument(MOE_E_NULL_ARG, "info = NULL: required");
    moe_status s = model_struct_size(info, sizeof *info, "moe_layer_info");
    if (s != MOE_OK) return s;
    size_t size = info->struct_size;
    *info = layer->info;
    info->struct_size = size;
    return MOE_OK;
}

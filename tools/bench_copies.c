/* SPDX-License-Identifier: Apache-2.0 */
/* bench_copies.c - packs a layer, random or a model's, as often as makes it larger than the caches.
 *
 * Owns the copies: each is packed, or read from its files, anew. */
#include "bench_layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where copies come from. */
typedef struct origin {
    moe_context *context;
    const bench_source *source; /* NULL: the model's layer */
    const moe_model *model;
    int64_t layer;
    cli_error *error;
} origin;

static int refused(cli_error *error, moe_status status)
{
    if (status == MOE_E_NOMEM) return cli_fail(error, CLI_FAILED, "out of memory");
    return cli_fail(error, CLI_REFUSED, "%s", moe_last_error());
}

static int pack_copy(const origin *o, const moe_experts **packed)
{
    moe_experts *experts;
    moe_status status = moe_experts_create(o->context, &o->source->args, &experts);
    *packed = experts;
    return status == MOE_OK ? CLI_OK : refused(o->error, status);
}

static int load_copy(const origin *o, moe_layer **loaded, const moe_experts **packed)
{
    moe_block_args args;
    int code = cli_model_load(o->model, o->layer, MOE_PACK_PLAIN, o->context, loaded, o->error);
    if (code != CLI_OK) return code;
    moe_status status = moe_layer_args(*loaded, &args);
    *packed = args.experts.experts;
    if (status == MOE_OK) return CLI_OK;
    moe_layer_free(*loaded);
    return cli_model_failure(o->error, status);
}

/* One more, in room that was made for it. */
static int add_copy(bench_layer *l, const origin *o)
{
    size_t n = l->copies;
    int code =
        o->source ? pack_copy(o, &l->experts[n]) : load_copy(o, &l->loaded[n], &l->experts[n]);
    if (code == CLI_OK) l->copies++;
    return code;
}

static size_t copies_for(size_t bytes, size_t working_set)
{
    size_t copies = bytes < working_set ? (working_set - 1) / bytes + 1 : 1;
    return copies < BENCH_MAX_COPIES ? copies : BENCH_MAX_COPIES;
}

static int make_copies(bench_layer *l, const origin *o, size_t working_set)
{
    l->experts = calloc(BENCH_MAX_COPIES, sizeof *l->experts);
    l->loaded = o->source ? NULL : calloc(BENCH_MAX_COPIES, sizeof *l->loaded);
    if (!l->experts || (!l->loaded && !o->source)) return refused(o->error, MOE_E_NOMEM);
    double begin = team_seconds();
    int code = add_copy(l, o);
    if (code != CLI_OK) return code;
    l->pack_seconds = team_seconds() - begin;
    l->info.struct_size = sizeof l->info;
    moe_status status = moe_experts_describe(l->experts[0], &l->info);
    if (status != MOE_OK) return refused(o->error, status);
    size_t copies = copies_for(l->info.bytes, working_set);
    while (code == CLI_OK && l->copies < copies) code = add_copy(l, o);
    return code;
}

int bench_layer_pack(bench_layer *l, moe_context *context, const bench_source *source,
                     size_t working_set, cli_error *error)
{
    origin o = {.context = context, .source = source, .error = error};
    *l = (bench_layer){.call = moe_tkg_args_init()};
    snprintf(l->weights, sizeof l->weights, "%s", bench_format_name(source->format));
    l->call.expert_affinities_scaling_mode = MOE_POST_SCALE;
    shape_set_activation(source->shape, &l->call);
    l->source_bytes = (double)source->image_bytes * (double)source->shape->E;
    return make_copies(l, &o, working_set);
}

int bench_layer_load(bench_layer *l, moe_context *context, const moe_model *model,
                     const moe_layer_info *info, size_t working_set, cli_error *error)
{
    origin o = {.context = context, .model = model, .layer = info->layer, .error = error};
    char words[CLI_MODEL_WORDS];
    moe_block_args args;
    *l = (bench_layer){.source_bytes = (double)info->bytes};
    cli_model_format_words(info, words);
    snprintf(l->weights, sizeof l->weights, "%.60s", words);
    int code = make_copies(l, &o, working_set);
    if (code != CLI_OK) return code;
    moe_status status = moe_layer_args(l->loaded[0], &args);
    if (status != MOE_OK) return cli_model_failure(error, status);
    l->call = args.experts;
    return CLI_OK;
}

void bench_layer_free(bench_layer *l)
{
    for (size_t i = 0; i < l->copies; i++) {
        if (l->loaded)
            moe_layer_free(l->loaded[i]);
        else
            moe_experts_destroy((moe_experts *)l->experts[i]);
    }
    free(l->experts);
    free(l->loaded);
    *l = (bench_layer){0};
}

/* SPDX-License-Identifier: Apache-2.0 */
/* block_case.c - see block_case.h. */
#include "block_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router_case.h"

static uint64_t dice(const layer_spec *s, uint64_t n)
{
    return layer_random(s->seed, n, 0xB10C) >> 8;
}

layer_spec block_case_spec(layer_spec s)
{
    if (s.place >= LAYER_SBUF) s.place = LAYER_HBM;
    s.output_in_sbuf = s.mask = s.eager = false;
    return s;
}

static moe_dtype type_of(uint64_t draw)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32};
    return types[draw % 3];
}

static void make_router(block_case *b, const layer_spec *s)
{
    moe_router_args *r = &b->args.router;
    const uint64_t d = dice(s, 1);
    const size_t H = (size_t)s->H;
    r->E = s->all_expert ? s->E : s->E_L;
    if (!s->all_expert && d & 1) {
        r->E += 2;
        b->args.experts.skip_invalid_experts = 1;
    }
    r->K = 1 + (int64_t)(d >> 4) % r->E;
    r->score = (moe_router_score)(d >> 12 & 3);
    r->normalize = d >> 16 & 1;
    r->scale = d >> 17 & 1 ? 2.5f : 1.0f;
    r->weights =
        router_case_array(&b->memory[1], type_of(d >> 20), (size_t)r->E, H, d >> 24, s->seed, 2, 0);
    if (d >> 32 & 1)
        r->bias = router_case_array(&b->memory[2], type_of(d >> 34), (size_t)r->E, 1, d >> 36,
                                    s->seed, 3, 0);
    if ((d >> 33 & 1) && r->score != MOE_SCORE_TOPK_SOFTMAX)
        r->selection_bias = router_case_array(&b->memory[3], type_of(d >> 38), (size_t)r->E, 1,
                                              d >> 40, s->seed, 4, 0);
}

static void make_shared(block_case *b, const layer_spec *s)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F32, MOE_E4M3FN, MOE_E2M1_X2, MOE_F16};
    const uint64_t d = dice(s, 2);
    const bool mx = s->H % 32 == 0 && d & 1;
    source_spec spec = {.seed = s->seed,
                        .gate_up = mx ? MOE_E2M1_X2 : types[d >> 4 & 1 ? 0 : (d >> 8) % 3],
                        .down = mx ? (d >> 2 & 1 ? MOE_E2M1_X2 : MOE_E4M3FN) : types[(d >> 12) % 3],
                        .mx = mx,
                        .layout = (source_layout)((d >> 16) % SOURCE_OPERATOR),
                        .E_L = 1,
                        .H = s->H,
                        .I =
                            mx ? 32 + 32 * (int64_t)((d >> 20) % 3) : 1 + (int64_t)((d >> 20) % 70),
                        .bias = d >> 28 & 1 ? MOE_F32 : MOE_DTYPE_NONE};
    source_make(&b->source, &spec);
    moe_status status = moe_experts_create(NULL, &b->source.args, &b->shared);
    if (status != MOE_OK) {
        fprintf(stderr, "shared: %s\n", moe_last_error());
        abort();
    }
    b->args.shared = b->shared;
    if (d >> 30 & 1)
        b->args.shared_gate = router_case_array(&b->memory[4], type_of(d >> 32), (size_t)s->H, 1,
                                                d >> 36, s->seed, 5, 0);
}

void block_case_make(block_case *b, layer_spec s)
{
    memset(b, 0, sizeof *b);
    layer_make(&b->layer, &s);
    layer_drop(&b->layer, LAYER_INDEX);
    layer_drop(&b->layer, LAYER_AFFINITIES);
    layer_drop(&b->layer, LAYER_EAGER);
    if (s.all_expert && b->layer.args.rank_id == NULL) layer_add(&b->layer, LAYER_RANK);
    s = b->layer.spec;
    b->args = moe_block_args_init();
    b->args.experts = b->layer.args;
    const uint64_t d = dice(&s, 0);
    if (d & 3) {
        b->args.gamma =
            router_case_array(&b->memory[0], type_of(d >> 4), (size_t)s.H, 1, d >> 8, s.seed, 1, 0);
        b->args.norm_epsilon = d >> 16 & 1 ? 1e-6f : 0.5f;
        if (d >> 17 & 1) b->args.norm_H = 1 + (int64_t)(d >> 20) % s.H;
    }
    make_router(b, &s);
    if (d >> 30 & 1) make_shared(b, &s);
}

void block_case_free(block_case *b)
{
    if (b->shared != NULL) {
        moe_experts_destroy(b->shared);
        source_free(&b->source);
    }
    for (size_t i = 0; i < sizeof b->memory / sizeof b->memory[0]; i++) free(b->memory[i]);
    layer_free(&b->layer);
}

void *block_case_run(moe_context *context, const moe_block_args *args, size_t *bytes)
{
    const moe_tensor *x = args->experts.hidden_input;
    size_t n = moe_dtype_size(
        args->experts.output_dtype != MOE_DTYPE_NONE ? args->experts.output_dtype : x->dtype);
    for (int d = 0; d < x->rank; d++) n *= (size_t)x->shape[d];
    void *output = malloc(n + 1);
    if (output == NULL) abort();
    memset(output, 0xA5, n);
    moe_status status = moe_block(context, args, output, n);
    if (status != MOE_OK) {
        fprintf(stderr, "%s: %s\n", moe_status_name(status), moe_last_error());
        abort();
    }
    if (bytes != NULL) *bytes = n;
    return output;
}

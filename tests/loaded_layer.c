/* SPDX-License-Identifier: Apache-2.0 */
#include "loaded_layer.h"

#include "layer.h"

#include <stdio.h>
#include <stdlib.h>

static moe_experts *pack(source_spec spec)
{
    source s;
    moe_experts *x;
    source_make(&s, &spec);
    if (moe_experts_create(NULL, &s.args, &x) != MOE_OK) {
        fprintf(stderr, "loaded_layer: %s\n", moe_last_error());
        abort();
    }
    source_free(&s);
    return x;
}

/* bf16 weights near 1: few exponents, so that they can be coded. */
static uint32_t moderate(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    uint64_t r = layer_random(s->seed + matrix, e << 32 | row, k);
    return (uint32_t)(r & 0x807F) | (120 + (uint32_t)(r >> 20 & 7)) << 7;
}

static const source_spec experts[LOADED_LAYER_KINDS] = {
    {.gate_up = MOE_BF16,
     .down = MOE_BF16,
     .E_L = 4,
     .H = 40,
     .I = 24,
     .code = moderate,
     .packing = MOE_PACK_LOSSLESS},
    {.gate_up = MOE_E2M1_X2,
     .down = MOE_E2M1_X2,
     .mx = true,
     .E_L = 6,
     .H = 64,
     .I = 96,
     .bias = MOE_BF16},
    {.gate_up = MOE_BF16, .down = MOE_BF16, .E_L = 3, .H = 33, .I = 17, .code = moderate},
    {.gate_up = MOE_BF16, .down = MOE_BF16, .E_L = 8, .H = 512, .I = 160, .code = moderate},
};

/* All fields but numbers of the kind. */
static void describe(moe_layer_info *i, unsigned kind)
{
    snprintf(i->gate_up_format, sizeof i->gate_up_format, "%s", kind == 1 ? "mxfp4" : "bf16");
    snprintf(i->down_format, sizeof i->down_format, "%s", i->gate_up_format);
    i->activation = kind == 1 ? MOE_SWIGLU : MOE_SILU;
    if (kind == 1) {
        i->swiglu_alpha = moe_given_float(1.702f);
        i->swiglu_up_offset = moe_given_float(1.0f);
        i->gate_clamp_upper_limit = moe_given_float(7.0f);
        i->up_clamp_upper_limit = moe_given_float(7.0f);
        i->up_clamp_lower_limit = moe_given_float(-7.0f);
    }
    i->has_gate = 1;
    i->has_bias = kind == 1;
    i->scaling = kind == 2 ? MOE_INPUT_SCALE : MOE_POST_SCALE;
    i->foreign_router = kind == 2 ? "sparsemixer" : NULL;
    i->score = kind == 1 ? MOE_SCORE_TOPK_SOFTMAX : MOE_SCORE_SIGMOID;
    i->normalize = kind == 0;
    i->normalize_epsilon = 1e-20f;
    i->scale = 2.5f;
    i->n_group = i->topk_group = kind == 0 ? 2 : 0;
    i->group_rank = kind == 0 ? MOE_GROUP_BEST : MOE_GROUP_TWO_BEST;
    i->has_router_bias = kind == 1;
    i->has_selection_bias = kind == 0;
    i->bytes = 123456789;
    i->expert_bytes = 1234;
}

static moe_array floats(moe_dtype dtype, int64_t rows, int64_t columns, uint64_t seed)
{
    size_t bytes = (size_t)(rows * columns) * moe_dtype_size(dtype);
    unsigned char *data = malloc(bytes);
    if (data == NULL) abort();
    for (size_t n = 0; n < bytes; n++)
        data[n] = n % 2 ? 0x3C : (unsigned char)layer_random(seed, 5, n);
    return moe_array_dense(data, dtype, rows, columns);
}

moe_layer *loaded_layer_make(unsigned kind, int64_t number)
{
    moe_layer *l = calloc(1, sizeof *l);
    source_spec spec = experts[kind];
    if (l == NULL) abort();
    spec.seed = (uint64_t)number;
    describe(&l->info, kind);
    l->info.layer = number;
    l->info.E = spec.E_L;
    l->info.H = spec.H;
    l->info.I = spec.I;
    l->info.K = 2;
    l->experts = pack(spec);
    l->layers = 12;
    snprintf(l->family, sizeof l->family, "a-family");
    if (kind != 2) l->router = floats(kind == 0 ? MOE_F32 : MOE_BF16, spec.E_L, spec.H, 1);
    if (l->info.has_router_bias) l->router_bias = floats(MOE_BF16, spec.E_L, 1, 2);
    if (l->info.has_selection_bias) l->selection_bias = floats(MOE_F32, spec.E_L, 1, 3);
    if (kind % 2 == 0) {
        l->info.shared_I = spec.I + 8;
        snprintf(l->info.shared_format, sizeof l->info.shared_format, "bf16");
        spec.E_L = 1;
        spec.I += 8;
        spec.packing = MOE_PACK_PLAIN;
        l->shared = pack(spec);
    }
    if (kind == 0) {
        l->info.has_shared_gate = 1;
        l->shared_gate = floats(MOE_F16, spec.H, 1, 4);
    }
    l->origin.count = 2;
    l->origin.files = calloc(2, sizeof *l->origin.files);
    if (l->origin.files == NULL) abort();
    for (size_t i = 0; i < 2; i++) {
        origin_file *f = &l->origin.files[i];
        snprintf(f->name, sizeof f->name, "model-%zu.safetensors", i);
        f->size = 1000 + i;
        f->seconds = 1700000000;
        f->nanoseconds = 999999999;
        f->headers = UINT64_MAX - i;
    }
    return l;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* demo_layer.c - makes the demo's layer and its tokens: random, but the same for the same seed.
 *
 * Owns the data and their distribution: scales are drawn so that gate and up come out near 3 in
 * size, some past the clamp at 7.  Knows nothing of how the operator is run or timed. */
#include "demo_layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The tiles of the MX layouts (docs/operator.md), and the elements of one expert's tensors. */
enum {
    P = 128,
    NH = DEMO_H / 512,
    NI = (DEMO_I + 511) / 512,
    GATE_UP = P * 2 * NH * DEMO_I,
    GATE_UP_SCALE = P / 8 * 2 * NH * DEMO_I,
    GATE_UP_BIAS = P * 2 * NI * 4,
    DOWN = P * NI * DEMO_H,
    DOWN_SCALE = P / 8 * NI * DEMO_H,
    DOWN_BIAS = DEMO_H,
};

/* ---- random numbers: splitmix64 ------------------------------------------------------------ */

static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The start of the seed's n-th stream. */
static uint64_t stream(uint64_t seed, uint64_t n)
{
    uint64_t state = seed ^ n * 0xd1342543de82ef95u;
    return next(&state);
}

enum { STREAM_ROUTER, STREAM_EXPERT, STREAM_TOKEN = STREAM_EXPERT + DEMO_E };

/* Nearly normal, mean 0, variance 1: four uniform numbers, added. */
static float normal(uint64_t *state)
{
    uint64_t r = next(state);
    uint64_t sum = (r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48);
    return ((float)sum - 131070.0f) / 65536.0f * 1.7320508f;
}

static uint16_t bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* n words (n % 4 = 0) of four random codes each; only the bits in mask can be set. */
static void fill_codes(uint64_t *state, uint16_t *word, size_t n, uint16_t mask)
{
    for (size_t i = 0; i < n; i += 4) {
        uint64_t r = next(state) & mask * 0x0001000100010001u;
        memcpy(word + i, &r, sizeof r);
    }
}

/* Each scale is 2^low, 2^(low + 1) or 2^(low + 2). */
static void fill_scales(uint64_t *state, uint8_t *byte, size_t n, int low)
{
    for (size_t i = 0; i < n; i++) byte[i] = (uint8_t)(127 + low + (int)(next(state) % 3));
}

/* ---- the layer ----------------------------------------------------------------------------- */

/* Whether position q of a word (tile, p) along H holds an h of the model; else it is padding. */
static bool holds_h(size_t tile, size_t p, size_t q)
{
    return q * (DEMO_H / 4) + tile * P + p < DEMO_H_MODEL;
}

/* The same along I, where the four quarters are those of each tile, and the last tile is short. */
static bool holds_i(size_t tile, size_t p, size_t q)
{
    size_t rest = DEMO_I - tile * 512, quarter = rest < 512 ? (rest + 7) / 8 * 2 : P;
    return p < quarter && q * quarter + p < rest;
}

static uint16_t word_mask(bool (*holds)(size_t, size_t, size_t), size_t tile, size_t p)
{
    unsigned mask = 0;
    for (size_t q = 0; q < 4; q++)
        if (holds(tile, p, q)) mask |= 0xfu << 4 * q;
    return (uint16_t)mask;
}

static void make_gate_up(const demo_layer *l, size_t e, uint64_t *state)
{
    uint16_t *word = (uint16_t *)l->gate_up.data + e * GATE_UP; /* [P, 2, NH, I] */
    uint8_t *scale = (uint8_t *)l->gate_up_scale.data + e * GATE_UP_SCALE;
    uint16_t *bias = (uint16_t *)l->gate_up_bias.data + e * GATE_UP_BIAS; /* [P, 2, NI, 4] */
    for (size_t row = 0; row < P * 2 * NH; row++)
        fill_codes(state, word + row * DEMO_I, DEMO_I,
                   word_mask(holds_h, row % NH, row / (2 * NH)));
    fill_scales(state, scale, GATE_UP_SCALE, -7);
    for (size_t i = 0; i < GATE_UP_BIAS; i++)
        if (holds_i(i / 4 % NI, i / (8 * NI), i % 4)) bias[i] = bf16(0.5f * normal(state));
}

static void make_down(const demo_layer *l, size_t e, uint64_t *state)
{
    uint16_t *word = (uint16_t *)l->down.data + e * DOWN; /* [P, NI, H] */
    uint8_t *scale = (uint8_t *)l->down_scale.data + e * DOWN_SCALE;
    uint16_t *bias = (uint16_t *)l->down_bias.data + e * DOWN_BIAS;
    for (size_t row = 0; row < P * NI; row++)
        fill_codes(state, word + row * DEMO_H, DEMO_H_MODEL,
                   word_mask(holds_i, row % NI, row / NI));
    fill_scales(state, scale, DOWN_SCALE, -9);
    for (size_t h = 0; h < DEMO_H_MODEL; h++) bias[h] = bf16(0.5f * normal(state));
}

void demo_layer_make_expert(const demo_layer *layer, size_t e)
{
    uint64_t state = stream(layer->seed, STREAM_EXPERT + e);
    make_gate_up(layer, e, &state);
    make_down(layer, e, &state);
}

static void make_router(const demo_layer *layer)
{
    uint64_t state = stream(layer->seed, STREAM_ROUTER);
    float scale = 2.0f / sqrtf(DEMO_H_MODEL); /* logits near 2 */
    for (size_t i = 0; i < (size_t)DEMO_E * DEMO_H_MODEL; i++)
        layer->router[i] = scale * normal(&state);
}

/* Gives the tensor the next bytes of *memory, `bytes` for each expert. */
static void place(demo_layer *layer, char **memory, moe_tensor *tensor, size_t bytes)
{
    tensor->data = *memory;
    tensor->shape[0] = DEMO_E;
    *memory += DEMO_E * bytes;
    layer->expert_bytes += bytes;
}

bool demo_layer_init(demo_layer *layer, uint64_t seed)
{
    const size_t router_bytes = sizeof(float) * DEMO_E * DEMO_H_MODEL;
    const size_t words = GATE_UP + GATE_UP_BIAS + DOWN + DOWN_BIAS,
                 bytes = GATE_UP_SCALE + DOWN_SCALE;
    *layer = (demo_layer){
        .seed = seed,
        .gate_up = {.dtype = MOE_MXFP4_X4, .rank = 5, .shape = {0, P, 2, NH, DEMO_I}},
        .down = {.dtype = MOE_MXFP4_X4, .rank = 4, .shape = {0, P, NI, DEMO_H}},
        .gate_up_scale = {.dtype = MOE_E8M0, .rank = 5, .shape = {0, P / 8, 2, NH, DEMO_I}},
        .down_scale = {.dtype = MOE_E8M0, .rank = 4, .shape = {0, P / 8, NI, DEMO_H}},
        .gate_up_bias = {.dtype = MOE_BF16, .rank = 5, .shape = {0, P, 2, NI, 4}},
        .down_bias = {.dtype = MOE_BF16, .rank = 2, .shape = {0, DEMO_H}},
    };
    layer->memory = calloc(1, router_bytes + DEMO_E * (2 * words + bytes)); /* zero: the padding */
    if (!layer->memory) return false;
    layer->router = layer->memory;
    char *memory = (char *)layer->memory + router_bytes;
    place(layer, &memory, &layer->gate_up, sizeof(uint16_t) * GATE_UP);
    place(layer, &memory, &layer->down, sizeof(uint16_t) * DOWN);
    place(layer, &memory, &layer->gate_up_bias, sizeof(uint16_t) * GATE_UP_BIAS);
    place(layer, &memory, &layer->down_bias, sizeof(uint16_t) * DOWN_BIAS);
    place(layer, &memory, &layer->gate_up_scale, GATE_UP_SCALE);
    place(layer, &memory, &layer->down_scale, DOWN_SCALE);
    make_router(layer);
    return true;
}

void demo_layer_free(demo_layer *layer)
{
    free(layer->memory);
    layer->memory = NULL;
}

/* ---- tokens -------------------------------------------------------------------------------- */

/* The DEMO_K largest logits, largest first (of equal ones the lower expert), and their softmax. */
static void route(const float *logit, int32_t *chosen, float *affinity)
{
    float sum = 0;
    bool taken[DEMO_E] = {false};
    for (size_t k = 0; k < DEMO_K; k++) {
        size_t best = DEMO_E;
        for (size_t e = 0; e < DEMO_E; e++)
            if (!taken[e] && (best == DEMO_E || logit[e] > logit[best])) best = e;
        taken[best] = true;
        chosen[k] = (int32_t)best;
        affinity[best] = expf(logit[best] - logit[chosen[0]]);
        sum += affinity[best];
    }
    for (size_t k = 0; k < DEMO_K; k++) affinity[chosen[k]] /= sum;
}

static void make_token(demo_batch *b, const demo_layer *layer, size_t t)
{
    uint64_t state = stream(layer->seed, STREAM_TOKEN + t);
    float logit[DEMO_E] = {0};
    for (size_t h = 0; h < DEMO_H_MODEL; h++) {
        float x = normal(&state);
        b->x[t][h] = bf16(x);
        for (size_t e = 0; e < DEMO_E; e++) logit[e] += x * layer->router[e * DEMO_H_MODEL + h];
    }
    route(logit, b->chosen[t], b->affinity[t]);
}

void demo_batch_make(demo_batch *batch, const demo_layer *layer, size_t T)
{
    bool chosen[DEMO_E] = {false};
    memset(batch, 0, sizeof *batch);
    batch->T = T;
    for (size_t t = 0; t < T; t++) {
        make_token(batch, layer, t);
        for (size_t k = 0; k < DEMO_K; k++) chosen[batch->chosen[t][k]] = true;
    }
    for (size_t e = 0; e < DEMO_E; e++) batch->experts += chosen[e];
    batch->hidden = moe_tensor_2d(batch->x, MOE_BF16, (int64_t)T, DEMO_H);
    batch->index = moe_tensor_2d(batch->chosen, MOE_I32, (int64_t)T, DEMO_K);
    batch->affinities = moe_tensor_2d(batch->affinity, MOE_F32, (int64_t)T, DEMO_E);
}

moe_tkg_args demo_args(const demo_layer *layer, const demo_batch *batch)
{
    moe_tkg_args args = moe_tkg_args_init();
    args.hidden_input = &batch->hidden;
    args.expert_gate_up_weights = &layer->gate_up;
    args.expert_down_weights = &layer->down;
    args.expert_affinities = &batch->affinities;
    args.expert_index = &batch->index;
    args.expert_gate_up_bias = &layer->gate_up_bias;
    args.expert_down_bias = &layer->down_bias;
    args.expert_gate_up_weights_scale = &layer->gate_up_scale;
    args.expert_down_weights_scale = &layer->down_scale;
    args.expert_affinities_scaling_mode = MOE_POST_SCALE;
    args.activation_fn = MOE_SWIGLU;
    args.swiglu_alpha = moe_given_float(1.702f);
    args.swiglu_up_offset = moe_given_float(1.0f);
    args.gate_clamp_upper_limit = moe_given_float(7.0f);
    args.up_clamp_upper_limit = moe_given_float(7.0f);
    args.up_clamp_lower_limit = moe_given_float(-7.0f);
    return args;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* demo_check.c - writes a token's experts in the operator's own layouts, which the oracle reads.
 *
 * A scale of row-major MXFP4 is that of 32 neighbours; one of the operator's that of 32 positions
 * which lie apart.  Hidden and intermediate are therefore put into another order, in which the
 * operator's blocks are the row-major ones: every sum has the same terms in the same blocks, so
 * that the oracle's value and its bounds, in every mode, are those of the row-major call.  The
 * operator's layouts ask for H in multiples of 512: the rest is zero. */
#include "demo_check.h"

#include <stdlib.h>
#include <string.h>

enum { P = 128, TILE = 512, BLOCK = 32 };

/* The sizes of the layouts, and a tensor of each kind. */
typedef struct twin {
    const bench_source *source;
    size_t K, H, I, padded, nh, ni;
    uint16_t *gate_up, *down, *gate_up_bias, *down_bias, *hidden, *output;
    uint8_t *gate_up_scale, *down_scale;
} twin;

/* Which k of the row-major axis position q of partition p in a tile is. */
static size_t k_at(size_t tile, size_t p, size_t q)
{
    return tile * TILE + p / 8 * BLOCK + q * 8 + p % 8;
}

/* Partitions in use of a tile of the intermediate; I is a multiple of BLOCK, so that it holds whole
 * blocks. */
static size_t width_of(const twin *w, size_t tile)
{
    size_t rest = w->I - tile * TILE;
    return rest < TILE ? rest / 4 : P;
}

/* The same of a position of the intermediate in the operator's order. */
static size_t k_of_i(const twin *w, size_t i)
{
    size_t tile = i / TILE, width = width_of(w, tile);
    return k_at(tile, i % TILE % width, i % TILE / width);
}

static unsigned code_at(const uint8_t *row, size_t k)
{
    return (unsigned)row[k / 2] >> k % 2 * 4 & 15u;
}

/* The word of a row: its four codes at (tile, p), those below `terms`. */
static uint16_t word_at(const uint8_t *row, size_t tile, size_t p, size_t terms)
{
    unsigned word = 0;
    for (size_t q = 0; q < 4; q++) {
        size_t k = k_at(tile, p, q);
        if (k < terms) word |= code_at(row, k) << 4 * q;
    }
    return (uint16_t)word;
}

/* One row of a matrix: column c of the operator's, whose tiles are `stride` elements apart. */
static void write_row(const uint8_t *weights, const uint8_t *scale, size_t terms, size_t tiles,
                      uint16_t *words, size_t between_p, uint8_t *scales, size_t columns)
{
    for (size_t tile = 0; tile < tiles; tile++)
        for (size_t p = 0; p < P; p++) {
            words[p * between_p + tile * columns] = word_at(weights, tile, p, terms);
            size_t block = k_at(tile, p, 0) / BLOCK;
            if (p % 8 == 0 && block < terms / BLOCK)
                scales[p / 8 * between_p + tile * columns] = scale[block];
        }
}

/* [P, 2, nh, I] and [P / 8, 2, nh, I] from gate and up [I, H]. */
static void write_gate_up(const twin *w, const bench_image *image, size_t slot)
{
    size_t between_p = 2 * w->nh * w->I;
    for (size_t g = 0; g < 2; g++)
        for (size_t i = 0; i < w->I; i++) {
            size_t row = k_of_i(w, i), at = g * w->nh * w->I + i;
            write_row(image->array[g][BENCH_WEIGHTS] + row * (w->H / 2),
                      image->array[g][BENCH_SCALE] + row * (w->H / BLOCK), w->H, w->nh,
                      w->gate_up + slot * P * between_p + at, between_p,
                      w->gate_up_scale + slot * (P / 8) * between_p + at, w->I);
        }
}

/* [P, ni, padded] and [P / 8, ni, padded] from down [H, I]. */
static void write_down(const twin *w, const bench_image *image, size_t slot)
{
    size_t between_p = w->ni * w->padded;
    for (size_t h = 0; h < w->H; h++)
        write_row(image->array[2][BENCH_WEIGHTS] + h * (w->I / 2),
                  image->array[2][BENCH_SCALE] + h * (w->I / BLOCK), w->I, w->ni,
                  w->down + slot * P * between_p + h, between_p,
                  w->down_scale + slot * (P / 8) * between_p + h, w->padded);
}

/* [P, 2, ni, 4] from [I] each, and [padded] from [H]. */
static void write_biases(const twin *w, const bench_image *image, size_t slot)
{
    uint16_t *bias = w->gate_up_bias + slot * P * 2 * w->ni * 4;
    for (size_t g = 0; g < 2; g++)
        for (size_t i = 0; i < w->I; i++) {
            size_t tile = i / TILE, width = width_of(w, tile), p = i % TILE % width,
                   q = i % TILE / width;
            memcpy(&bias[((p * 2 + g) * w->ni + tile) * 4 + q],
                   image->array[g][BENCH_BIAS] + k_at(tile, p, q) * sizeof *bias, sizeof *bias);
        }
    memcpy(w->down_bias + slot * w->padded, image->array[2][BENCH_BIAS], w->H * sizeof *bias);
}

static void write_token(const twin *w, const demo_token *t)
{
    for (size_t tile = 0; tile < w->nh; tile++)
        for (size_t p = 0; p < P; p++)
            for (size_t q = 0; q < 4; q++) {
                size_t k = k_at(tile, p, q);
                if (k < w->H) w->hidden[q * (w->padded / 4) + tile * P + p] = t->hidden[k];
            }
    memcpy(w->output, t->output, w->H * sizeof *w->output);
}

static void *take(uint8_t **at, size_t bytes)
{
    uint8_t *p = *at;
    *at += (bytes + 63) / 64 * 64;
    return p;
}

/* Zeros for all tensors, scales of 1; NULL: no memory. */
static void *make_twin(twin *w, const bench_source *source)
{
    const shape *s = source->shape;
    *w = (twin){.source = source, .K = (size_t)s->K, .H = (size_t)s->H, .I = (size_t)s->I};
    w->nh = (w->H + TILE - 1) / TILE;
    w->ni = (w->I + TILE - 1) / TILE;
    w->padded = w->nh * TILE;
    size_t gate_up = w->K * P * 2 * w->nh * w->I, down = w->K * P * w->ni * w->padded,
           gate_up_bias = w->K * P * 2 * w->ni * 4, down_bias = w->K * w->padded;
    size_t words = gate_up + down + gate_up_bias + down_bias + 2 * w->padded;
    uint8_t *memory = calloc(1, 2 * words + (gate_up + down) / 8 + 8 * 64), *at = memory;
    if (!memory) return NULL;
    w->gate_up = take(&at, 2 * gate_up);
    w->down = take(&at, 2 * down);
    w->gate_up_bias = take(&at, 2 * gate_up_bias);
    w->down_bias = take(&at, 2 * down_bias);
    w->hidden = take(&at, 2 * w->padded);
    w->output = take(&at, 2 * w->padded);
    w->gate_up_scale = take(&at, gate_up / 8);
    w->down_scale = take(&at, down / 8);
    memset(w->gate_up_scale, 127, gate_up / 8);
    memset(w->down_scale, 127, down / 8);
    return memory;
}

bool demo_check(const bench_source *source, moe_act_mode act, demo_token *token)
{
    twin w;
    void *memory = make_twin(&w, source);
    if (!memory) return false;
    int32_t slots[DEMO_MAX_K];
    for (size_t k = 0; k < w.K; k++) {
        const bench_image *image = &source->image[(size_t)token->chosen[k] % source->images];
        write_gate_up(&w, image, k);
        write_down(&w, image, k);
        if (source->shape->bias) write_biases(&w, image, k);
        slots[k] = (int32_t)k;
    }
    write_token(&w, token);
    int64_t K = (int64_t)w.K, I = (int64_t)w.I, H = (int64_t)w.padded, nh = (int64_t)w.nh,
            ni = (int64_t)w.ni;
    moe_tensor hidden = moe_tensor_2d(w.hidden, MOE_BF16, 1, H),
               index = moe_tensor_2d(slots, MOE_I32, 1, K),
               affinities = moe_tensor_2d(token->affinity, MOE_F32, 1, K),
               gate_up = moe_tensor_nd(w.gate_up, MOE_MXFP4_X4, 5, (int64_t[]){K, P, 2, nh, I}),
               down = moe_tensor_nd(w.down, MOE_MXFP4_X4, 4, (int64_t[]){K, P, ni, H}),
               gate_up_scale =
                   moe_tensor_nd(w.gate_up_scale, MOE_E8M0, 5, (int64_t[]){K, P / 8, 2, nh, I}),
               down_scale = moe_tensor_nd(w.down_scale, MOE_E8M0, 4, (int64_t[]){K, P / 8, ni, H}),
               gate_up_bias =
                   moe_tensor_nd(w.gate_up_bias, MOE_BF16, 5, (int64_t[]){K, P, 2, ni, 4}),
               down_bias = moe_tensor_2d(w.down_bias, MOE_BF16, K, H),
               output = moe_tensor_2d(w.output, MOE_BF16, 1, H);
    moe_tkg_args args = moe_tkg_args_init();
    args.hidden_input = &hidden;
    args.expert_index = &index;
    args.expert_affinities_eager = &affinities;
    args.expert_affinities_scaling_mode = MOE_POST_SCALE;
    args.expert_gate_up_weights = &gate_up;
    args.expert_down_weights = &down;
    args.expert_gate_up_weights_scale = &gate_up_scale;
    args.expert_down_weights_scale = &down_scale;
    if (source->shape->bias) args.expert_gate_up_bias = &gate_up_bias;
    if (source->shape->bias) args.expert_down_bias = &down_bias;
    args.act_mode = act;
    shape_set_activation(source->shape, &args);
    oracle_status status = judge_bound(&args, NULL, 0, &output, &token->verdict);
    free(memory);
    return status == ORACLE_OK;
}

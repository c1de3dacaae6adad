/* SPDX-License-Identifier: Apache-2.0 */
/* our_layer.c - the layer in this library: the row-major weights in the operator's own tensors,
 * which a call packs first (its time contains that). */
#include "our_layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { P = 128 };

struct our_layer {
    const peers_shape *shape;
    peers_format format;
    moe_context *context;
    size_t H, nH, nI; /* H: the operator's, which MX weights pad to a multiple of 512 */
    moe_tensor gate_up, gate_up_scale, gate_up_bias, down, down_scale, down_bias;
    uint16_t *x;
    float *output;
    moe_tensor hidden, index, affinities;
    moe_tkg_args args;
};

static moe_tensor zeros(moe_dtype dtype, int32_t rank, const int64_t *shape)
{
    size_t n = 1;
    for (int32_t i = 0; i < rank; i++) n *= (size_t)shape[i];
    return moe_tensor_nd(calloc(n, moe_dtype_size(dtype)), dtype, rank, shape);
}

/* ---- plain weights: [E, I, H] to [E, H, 2, I], [E, H, I] to [E, I, H] ------------------------ */

/* to[column * step + row] = from[row][column], in squares that stay in cache. */
static void transpose(const uint16_t *from, size_t rows, size_t columns, uint16_t *to, size_t step)
{
    for (size_t r0 = 0; r0 < rows; r0 += 64)
        for (size_t c0 = 0; c0 < columns; c0 += 64)
            for (size_t c = c0; c < c0 + 64 && c < columns; c++)
                for (size_t r = r0; r < r0 + 64 && r < rows; r++)
                    to[c * step + r] = from[r * columns + c];
}

static bool make_plain(our_layer *l, const peers_layer *raw)
{
    const size_t E = raw->shape->E, H = raw->shape->H, I = raw->shape->I;
    l->gate_up = zeros(MOE_BF16, 4, (int64_t[]){(int64_t)E, (int64_t)H, 2, (int64_t)I});
    l->down = zeros(MOE_BF16, 3, (int64_t[]){(int64_t)E, (int64_t)I, (int64_t)H});
    uint16_t *gate_up = (uint16_t *)l->gate_up.data, *down = (uint16_t *)l->down.data;
    if (!gate_up || !down) return false;
    for (size_t e = 0; e < E; e++) {
        transpose(raw->gate.bf16 + e * I * H, I, H, gate_up + e * H * 2 * I, 2 * I);
        transpose(raw->up.bf16 + e * I * H, I, H, gate_up + e * H * 2 * I + I, 2 * I);
        transpose(raw->down.bf16 + e * I * H, H, I, down + e * I * H, H);
    }
    return true;
}

/* ---- MX weights ---------------------------------------------------------------------------- */

/* The operator's blocks of 32 are four runs of 8 (docs/operator.md).  A model's block j of 32
 * neighbours is put into the operator's block j % 16 of tile j / 16, so that its scale stays
 * one; as nothing else depends on the order of h and i inside, only the input and the gate and
 * up columns follow. */
static size_t operator_h(const our_layer *l, size_t h)
{
    return h % 32 / 8 * (l->H / 4) + h / 512 * P + h % 512 / 32 * 8 + h % 8;
}

static size_t operator_i(const our_layer *l, size_t i)
{
    const size_t rest = l->shape->I - i / 512 * 512, width = rest < 512 ? (rest + 7) / 8 * 2 : P;
    return i / 512 * 512 + i % 32 / 8 * width + i % 512 / 32 * 8 + i % 8;
}

/* Puts one row of e2m1 codes along the words of partitions p, tiles n: word (p, n) is at word[p
 * * p_step + n * n_step], likewise the scale of its block. */
static void put_row(const peers_matrix *m, size_t e, size_t row, uint16_t *word, size_t p_step,
                    uint8_t *scale, size_t scale_step, size_t n_step)
{
    const size_t at = (e * m->rows + row) * m->k;
    for (size_t j = 0; j < m->k / 32; j++) {
        const uint8_t *code = m->codes + at / 2 + j * 16;
        const size_t tile = j / 16, block = j % 16;
        scale[block * scale_step + tile * n_step] = m->scale[at / 32 + j];
        for (size_t r = 0; r < 8; r++) {
            unsigned w = 0;
            for (size_t q = 0; q < 4; q++)
                w |= (code[(q * 8 + r) / 2] >> 4 * (r % 2) & 15u) << 4 * q;
            word[(block * 8 + r) * p_step + tile * n_step] = (uint16_t)w;
        }
    }
}

static void put_expert(our_layer *l, const peers_layer *raw, size_t e)
{
    const size_t H = l->H, I = l->shape->I, nH = l->nH, nI = l->nI;
    uint16_t *gate_up = (uint16_t *)l->gate_up.data + e * P * 2 * nH * I; /* [P, 2, nH, I] */
    uint8_t *gate_up_scale = (uint8_t *)l->gate_up_scale.data + e * (P / 8) * 2 * nH * I;
    float *gate_up_bias = (float *)l->gate_up_bias.data + e * P * 2 * nI * 4; /* [P, 2, nI, 4] */
    uint16_t *down = (uint16_t *)l->down.data + e * P * nI * H;               /* [P, nI, H] */
    uint8_t *down_scale = (uint8_t *)l->down_scale.data + e * (P / 8) * nI * H;
    float *down_bias = (float *)l->down_bias.data + e * H;

    for (size_t i = 0; i < I; i++) {
        const size_t to = operator_i(l, i), p = i % 512 / 32 * 8 + i % 8, q = i % 32 / 8;
        for (size_t g = 0; g < 2; g++) {
            const peers_matrix *m = g ? &raw->up : &raw->gate;
            put_row(m, e, i, gate_up + g * nH * I + to, 2 * nH * I, gate_up_scale + g * nH * I + to,
                    2 * nH * I, I);
            if (m->bias) gate_up_bias[((p * 2 + g) * nI + i / 512) * 4 + q] = m->bias[e * I + i];
        }
    }
    for (size_t h = 0; h < l->shape->H; h++) {
        put_row(&raw->down, e, h, down + h, nI * H, down_scale + h, nI * H, H);
        if (raw->down.bias) down_bias[h] = raw->down.bias[e * l->shape->H + h];
    }
}

static bool make_mx(our_layer *l, const peers_layer *raw)
{
    const int64_t E = (int64_t)l->shape->E, H = (int64_t)l->H, I = (int64_t)l->shape->I;
    const int64_t nH = (int64_t)l->nH, nI = (int64_t)l->nI;
    l->gate_up = zeros(MOE_MXFP4_X4, 5, (int64_t[]){E, P, 2, nH, I});
    l->gate_up_scale = zeros(MOE_E8M0, 5, (int64_t[]){E, P / 8, 2, nH, I});
    l->gate_up_bias = zeros(MOE_F32, 5, (int64_t[]){E, P, 2, nI, 4});
    l->down = zeros(MOE_MXFP4_X4, 4, (int64_t[]){E, P, nI, H});
    l->down_scale = zeros(MOE_E8M0, 4, (int64_t[]){E, P / 8, nI, H});
    l->down_bias = zeros(MOE_F32, 2, (int64_t[]){E, H});
    if (!l->gate_up.data || !l->gate_up_scale.data || !l->gate_up_bias.data || !l->down.data ||
        !l->down_scale.data || !l->down_bias.data)
        return false;
    for (size_t e = 0; e < l->shape->E; e++) put_expert(l, raw, e);
    return true;
}

/* ---- calls --------------------------------------------------------------------------------- */

our_layer *our_layer_create(moe_context *context, const peers_layer *raw)
{
    our_layer *l = calloc(1, sizeof *l);
    const bool mx = raw->format == PEERS_MXFP4;
    if (l) {
        l->shape = raw->shape;
        l->format = raw->format;
        l->context = context;
        l->nH = (raw->shape->H + 511) / 512;
        l->nI = (raw->shape->I + 511) / 512;
        l->H = mx ? l->nH * 512 : raw->shape->H;
        l->x = calloc(PEERS_MAX_T * l->H, sizeof *l->x);
        l->output = malloc(PEERS_MAX_T * l->H * sizeof *l->output);
        if (l->x && l->output && (mx ? make_mx(l, raw) : make_plain(l, raw))) return l;
    }
    fprintf(stderr, "moe_tkg: no memory for the layer\n");
    our_layer_destroy(l);
    return NULL;
}

void our_layer_destroy(our_layer *l)
{
    if (!l) return;
    const moe_tensor *tensors[] = {&l->gate_up, &l->gate_up_scale, &l->gate_up_bias,
                                   &l->down,    &l->down_scale,    &l->down_bias};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) free((void *)tensors[i]->data);
    free(l->x);
    free(l->output);
    free(l);
}

void our_layer_prepare(our_layer *l, const peers_batch *batch, moe_act_mode act)
{
    const size_t H = l->shape->H;
    const bool mx = l->format == PEERS_MXFP4;
    const int64_t T = (int64_t)batch->T, K = (int64_t)l->shape->K;
    for (size_t t = 0; t < batch->T; t++)
        for (size_t h = 0; h < H; h++)
            l->x[t * l->H + (mx ? operator_h(l, h) : h)] = batch->bf16[t * H + h];
    l->hidden = moe_tensor_2d(l->x, MOE_BF16, T, (int64_t)l->H);
    l->index = moe_tensor_2d(batch->chosen, MOE_I32, T, K);
    l->affinities = moe_tensor_2d(batch->affinity, MOE_F32, T, K);

    l->args = moe_tkg_args_init();
    l->args.hidden_input = &l->hidden;
    l->args.expert_gate_up_weights = &l->gate_up;
    l->args.expert_down_weights = &l->down;
    if (mx) {
        l->args.expert_gate_up_weights_scale = &l->gate_up_scale;
        l->args.expert_down_weights_scale = &l->down_scale;
    }
    l->args.expert_index = &l->index;
    l->args.expert_affinities_eager = &l->affinities;
    l->args.expert_affinities_scaling_mode = MOE_POST_SCALE;
    l->args.output_dtype = MOE_F32;
    l->args.act_mode = act;
    l->args.activation_fn = MOE_SILU;
    if (!l->shape->oai) return;
    l->args.expert_gate_up_bias = &l->gate_up_bias;
    l->args.expert_down_bias = &l->down_bias;
    l->args.activation_fn = MOE_SWIGLU;
    l->args.swiglu_alpha = moe_given_float(1.702f);
    l->args.swiglu_up_offset = moe_given_float(1.0f);
    l->args.gate_clamp_upper_limit = moe_given_float(7.0f);
    l->args.up_clamp_upper_limit = moe_given_float(7.0f);
    l->args.up_clamp_lower_limit = moe_given_float(-7.0f);
}

bool our_layer_run(our_layer *l)
{
    if (moe_tkg(l->context, &l->args, l->output, PEERS_MAX_T * l->H * sizeof *l->output) == MOE_OK)
        return true;
    fprintf(stderr, "moe_tkg: %s\n", moe_last_error());
    return false;
}

const float *our_layer_output(const our_layer *l)
{
    return l->output;
}

size_t our_layer_output_stride(const our_layer *l)
{
    return l->H;
}

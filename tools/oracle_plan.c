/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_plan.c - what the arguments of a call mean (specification, sections 1 to 8).
 *
 * Owns all index arithmetic of hidden_input, the affinities and the lanes.  Refuses what would be
 * read outside a tensor; all else that the operator refuses is the operator's business. */
#include "oracle_plan.h"

#include <math.h>

enum { PARTITIONS = 128, TILE = 512, BLOCKS = 16 };

/* ---- axes ----------------------------------------------------------------------------------- */

oracle_place oracle_place_of(size_t k, size_t per_tile)
{
    return (oracle_place){k / 32 / per_tile, k / 32 % per_tile, k % 32 / 8, k % 8};
}

/* w = R / 4 partitions of a tile are in use, R = 512, or the rest of I rounded up to 8. */
size_t oracle_lane(const oracle_plan *p, oracle_place at)
{
    size_t rest = p->I - at.tile * TILE, R = rest >= TILE ? TILE : 8 * ((rest + 7) / 8), w = R / 4;
    size_t partition = 8 * at.b + at.r, i = at.tile * TILE + at.q * w + partition;
    return partition < w && i < p->I ? i : p->I;
}

double oracle_hidden(const oracle_plan *p, size_t t, size_t k)
{
    const moe_tensor *x = p->args->hidden_input, *scale = p->args->hidden_input_scale;
    oracle_place at = oracle_place_of(k, BLOCKS);
    size_t partition = 8 * at.b + at.r, H1 = p->H / PARTITIONS, h = k;
    if (p->mx) h = at.q * (p->H / 4) + at.tile * PARTITIONS + partition;

    if (p->prequantised) {
        size_t sparse = 32 * (at.b / 4) + at.b % 4;
        double code = oracle_code_at(x, (partition * p->nH + at.tile) * p->T + t, at.q);
        double s = oracle_at(scale, (sparse * p->nH + at.tile) * p->T + t);
        return oracle_f32(code * s);
    }
    if (x->layout == MOE_LAYOUT_HBM) return oracle_at(x, t * p->H + h);
    size_t row = p->mx ? h % PARTITIONS : h / H1, j = p->mx ? h / PARTITIONS : h % H1;
    return oracle_at(x, (row * p->T + t) * H1 + j);
}

/* ---- routing -------------------------------------------------------------------------------- */

static bool is_masked(const oracle_plan *p, size_t t, int64_t column)
{
    if (!p->args->mask_unselected_experts) return false;
    for (size_t k = 0; k < p->K; k++)
        if (oracle_integer_at(p->args->expert_index, t * p->K + k) == column) return false;
    return true;
}

size_t oracle_affinities(const oracle_plan *p, size_t t, size_t e, double *a)
{
    const moe_tkg_args *args = p->args;
    bool scaled = args->expert_affinities_scaling_mode != MOE_NO_SCALE;
    if (args->is_all_expert) {
        int64_t column = p->column + (int64_t)e;
        a[0] = 1;
        if (scaled && is_masked(p, t, column)) return 0;
        if (scaled) a[0] = oracle_at(args->expert_affinities, t * p->E + (size_t)column);
        return a[0] != 0;
    }
    size_t n = 0;
    for (size_t k = 0; k < p->K; k++) {
        if (oracle_integer_at(args->expert_index, t * p->K + k) != (int64_t)e) continue;
        a[n] = 1;
        if (scaled && args->expert_affinities_eager)
            a[n] = oracle_at(args->expert_affinities_eager, t * p->K + k);
        else if (scaled)
            a[n] = oracle_at(args->expert_affinities, t * p->E + e);
        n += a[n] != 0;
    }
    return n;
}

/* ---- checks --------------------------------------------------------------------------------- */

#define SHAPE(t, ...)                                                                              \
    oracle_has_shape(t, sizeof((size_t[]){__VA_ARGS__}) / sizeof(size_t), (size_t[]){__VA_ARGS__})

/* Dimension i of a tensor; 0 where that is not there or negative. */
static size_t dim(const moe_tensor *t, int32_t i)
{
    return t && i < t->rank && t->rank <= MOE_MAX_RANK && t->shape[i] > 0 ? (size_t)t->shape[i] : 0;
}

static bool read_hidden(oracle_plan *p)
{
    const moe_tensor *x = p->args->hidden_input, *scale = p->args->hidden_input_scale;
    if (p->prequantised) {
        p->T = dim(x, 2);
        return p->mx && x->dtype == MOE_MXFP8_X4 && SHAPE(x, PARTITIONS, p->nH, p->T) &&
               scale->dtype == MOE_E8M0 && SHAPE(scale, PARTITIONS, p->nH, p->T);
    }
    if (!oracle_is_float(x)) return false;
    if (x->layout == MOE_LAYOUT_SBUF) {
        p->T = dim(x, 1);
        return p->H % PARTITIONS == 0 && SHAPE(x, PARTITIONS, p->T, p->H / PARTITIONS);
    }
    if (x->rank == 2) {
        p->T = dim(x, 0);
        return SHAPE(x, p->T, p->H);
    }
    size_t B = dim(x, 0), S = dim(x, 1);
    return SHAPE(x, B, S, p->H) && !__builtin_mul_overflow(B, S, &p->T);
}

static bool has_scale(const moe_tensor *t, size_t rank, const size_t *dims, size_t last)
{
    size_t shape[MOE_MAX_RANK];
    for (size_t i = 0; i < rank; i++) shape[i] = dims[i];
    shape[rank] = last;
    return oracle_has_shape(t, rank + 1, shape) && t->dtype == MOE_F32;
}

static bool check_plain_weights(const oracle_plan *p)
{
    const moe_tkg_args *a = p->args;
    const moe_tensor *gs = a->expert_gate_up_weights_scale, *ds = a->expert_down_weights_scale;
    const moe_tensor *gb = a->expert_gate_up_bias;
    size_t rows[2] = {p->E_L, p->ungated ? 1 : 2};
    if (!SHAPE(a->expert_gate_up_weights, p->E_L, p->H, rows[1], p->I)) return false;
    if (!SHAPE(a->expert_down_weights, p->E_L, p->I, p->H)) return false;
    if (!gs != !ds) return false;
    if (gs && !has_scale(gs, 2, rows, p->I) && !has_scale(gs, 2, rows, 1)) return false;
    if (ds && !has_scale(ds, 1, rows, p->H) && !has_scale(ds, 1, rows, 1)) return false;
    return !gb || (oracle_is_float(gb) && SHAPE(gb, p->E_L, rows[1], p->I));
}

static bool check_mx_weights(const oracle_plan *p)
{
    const moe_tkg_args *a = p->args;
    const moe_tensor *gs = a->expert_gate_up_weights_scale, *ds = a->expert_down_weights_scale;
    const moe_tensor *gb = a->expert_gate_up_bias;
    size_t rest = p->I % TILE, w = p->I >= TILE ? PARTITIONS : 2 * ((rest + 7) / 8);
    if (p->H % TILE != 0 || p->I_p % 8 != 0 || p->I_p > PARTITIONS || p->I_p < w) return false;
    if (!SHAPE(a->expert_gate_up_weights, p->E_L, PARTITIONS, 2, p->nH, p->I)) return false;
    if (!SHAPE(a->expert_down_weights, p->E_L, p->I_p, p->nI, p->H)) return false;
    if (!SHAPE(gs, p->E_L, BLOCKS, 2, p->nH, p->I) || gs->dtype != MOE_E8M0) return false;
    if (!SHAPE(ds, p->E_L, p->I_p / 8, p->nI, p->H) || ds->dtype != MOE_E8M0) return false;
    return !gb || (oracle_is_float(gb) && SHAPE(gb, p->E_L, p->I_p, 2, p->nI, 4));
}

static bool is_weight(const moe_tensor *t)
{
    return oracle_is_float(t) || oracle_is_mx(t) || t->dtype == MOE_E4M3_IEEE ||
           t->dtype == MOE_E4M3FN;
}

static bool read_weights(oracle_plan *p)
{
    const moe_tkg_args *a = p->args;
    const moe_tensor *gate_up = a->expert_gate_up_weights, *down = a->expert_down_weights;
    if (!a->hidden_input || !gate_up || !down || !is_weight(gate_up) || !is_weight(down))
        return false;
    p->mx = oracle_is_mx(gate_up);
    if (p->mx != oracle_is_mx(down)) return false;
    p->prequantised = a->hidden_input_scale != NULL;
    p->ungated = !p->mx && dim(gate_up, 2) == 1;
    p->E_L = dim(gate_up, 0);
    p->I = dim(gate_up, p->mx ? 4 : 3);
    p->H = p->mx ? dim(down, 3) : dim(gate_up, 1);
    if (p->E_L == 0 || p->I == 0 || p->H == 0) return false;
    p->nH = p->H / TILE;
    p->nI = p->I / TILE + (p->I % TILE != 0);
    p->I_p = p->mx ? dim(down, 1) : 0;
    if (!(p->mx ? check_mx_weights(p) : check_plain_weights(p))) return false;
    p->lanes = p->mx ? p->nI * p->I_p * 4
                     : p->I; /* fits: the down weights hold so many elements or more */
    const moe_tensor *bias = a->expert_down_bias;
    return !bias || (oracle_is_float(bias) && SHAPE(bias, p->E_L, p->H));
}

static bool has_index(const oracle_plan *p)
{
    const moe_tensor *index = p->args->expert_index;
    return index && oracle_is_integer(index) && SHAPE(index, p->T, p->K);
}

static bool check_affinities(const oracle_plan *p)
{
    const moe_tensor *aff = p->args->expert_affinities;
    return aff && oracle_is_float(aff) && SHAPE(aff, p->T, p->E);
}

static bool read_all_expert(oracle_plan *p)
{
    const moe_tkg_args *a = p->args;
    if (a->expert_affinities_scaling_mode == MOE_NO_SCALE) return true;
    const moe_tensor *rank = a->rank_id;
    if (!rank || !oracle_is_integer(rank) || !SHAPE(rank, 1, 1)) return false;
    int64_t last, E_L = (int64_t)p->E_L;
    if (__builtin_mul_overflow(oracle_integer_at(rank, 0), E_L, &p->column)) return false;
    if (p->column < 0 || __builtin_add_overflow(p->column, E_L, &last)) return false;
    if ((uint64_t)last > p->E || !check_affinities(p)) return false;
    return !a->mask_unselected_experts || has_index(p);
}

static bool check_selective(const oracle_plan *p)
{
    const moe_tkg_args *a = p->args;
    bool scaled = a->expert_affinities_scaling_mode != MOE_NO_SCALE;
    const moe_tensor *eager = a->expert_affinities_eager;
    if (!has_index(p)) return false;
    if (scaled && eager && !(oracle_is_float(eager) && SHAPE(eager, p->T, p->K))) return false;
    bool gathers = scaled && !eager;
    if (gathers && !check_affinities(p)) return false;
    for (size_t n = 0; n < p->T * p->K; n++) {
        int64_t e = oracle_integer_at(a->expert_index, n);
        bool inside = e >= 0 && (uint64_t)e < p->E_L;
        if (inside ? gathers && (uint64_t)e >= p->E : !a->skip_invalid_experts) return false;
    }
    return true;
}

static bool read_mode(oracle_plan *p)
{
    const moe_tkg_args *a = p->args;
    moe_dtype gate_up = a->expert_gate_up_weights->dtype, down = a->expert_down_weights->dtype;
    p->mode = a->act_mode;
    if (p->mode == MOE_ACT_DEFAULT) p->mode = p->mx ? MOE_ACT_MXFP8 : MOE_ACT_EXACT;
    if (p->mode == MOE_ACT_MXFP8 && !p->mx) return false;
    if (p->mode == MOE_ACT_INT8 && (gate_up != MOE_MXFP4_X4 || down != MOE_MXFP4_X4)) return false;
    p->round_m = p->mode == MOE_ACT_EXACT && a->hidden_input->dtype == MOE_BF16 &&
                 down != MOE_F16 && down != MOE_F32;
    if ((unsigned)p->mode > MOE_ACT_INT8 || (unsigned)a->activation_fn > MOE_RELU2) return false;
    bool swiglu = a->swiglu_alpha.given && a->swiglu_up_offset.given && !p->ungated;
    return a->activation_fn != MOE_SWIGLU || swiglu;
}

bool oracle_plan_make(oracle_plan *p, const moe_tkg_args *args)
{
    *p = (oracle_plan){.args = args};
    if (args->expert_affinities_scaling_mode != MOE_NO_SCALE &&
        args->expert_affinities_scaling_mode != MOE_POST_SCALE &&
        args->expert_affinities_scaling_mode != MOE_INPUT_SCALE)
        return false;
    p->E = dim(args->expert_affinities, 1);
    p->K = dim(args->expert_index, 1);
    if (!read_weights(p) || !read_hidden(p) || !read_mode(p)) return false;
    return args->is_all_expert ? read_all_expert(p) : check_selective(p);
}

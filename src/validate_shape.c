/* SPDX-License-Identifier: Apache-2.0 */
/* validate_shape.c - the descriptions of a call's tensors: element types, layouts, ranks,
 * dimensions, and how they fit together. */
#include "checked.h"
#include "error.h"
#include "validate.h"

#include <stdio.h>

enum { MAX_TOKENS_SELECTIVE = 128, TEXT = 160 };

#define BIT(dtype) (1u << (dtype))
enum {
    FLOATS = BIT(MOE_BF16) | BIT(MOE_F16) | BIT(MOE_F32),
    MX = BIT(MOE_MXFP4_X4) | BIT(MOE_MXFP8_X4),
    WEIGHTS = FLOATS | BIT(MOE_E4M3_IEEE) | BIT(MOE_E4M3FN) | MX,
    INTEGERS = BIT(MOE_I32) | BIT(MOE_U32) | BIT(MOE_I64),
    SCALES = BIT(MOE_F32) | BIT(MOE_E8M0)
};

/* ---- one tensor ------------------------------------------------------------------------------ */

static const char *shape_text(const int64_t *shape, int rank, char *text)
{
    size_t n = 0;
    for (int i = 0; i < rank && n < TEXT; i++)
        n += (size_t)snprintf(text + n, TEXT - n, "%s%lld", i == 0 ? "[" : ", ",
                              (long long)shape[i]);
    if (n < TEXT) snprintf(text + n, TEXT - n, "]");
    return text;
}

/* What any tensor must be: known enumerators, an element type of the set, a sane rank,
 * dimensions whose bytes fit. */
static moe_status check_tensor(const char *name, const moe_tensor *t, unsigned dtypes, bool sbuf)
{
    char text[TEXT];
    if ((int)t->dtype <= MOE_DTYPE_NONE || (int)t->dtype > MOE_I64)
        return error_set(MOE_E_BAD_ENUM, "%s: dtype = %d: must be in [1, %d]", name, (int)t->dtype,
                         MOE_I64);
    if ((int)t->layout != MOE_LAYOUT_HBM && (int)t->layout != MOE_LAYOUT_SBUF)
        return error_set(MOE_E_BAD_ENUM, "%s: layout = %d: must be 0 or 1", name, (int)t->layout);
    if ((dtypes & BIT(t->dtype)) == 0)
        return error_set(MOE_E_DTYPE, "%s: dtype = %s: this parameter does not take it", name,
                         moe_dtype_name(t->dtype));
    if (t->layout == MOE_LAYOUT_SBUF && !sbuf)
        return error_set(MOE_E_LAYOUT, "%s: layout = SBUF: must be HBM", name);
    if (t->rank < 1 || t->rank > MOE_MAX_RANK)
        return error_set(MOE_E_DIM, "%s: rank = %d: must be in [1, %d]", name, (int)t->rank,
                         MOE_MAX_RANK);
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] < 0)
            return error_set(MOE_E_DIM, "%s: shape[%d] = %lld: must not be negative", name, i,
                             (long long)t->shape[i]);
    size_t bytes;
    if (!checked_shape(t->shape, (size_t)t->rank, moe_dtype_size(t->dtype), &bytes))
        return error_set(MOE_E_OVERFLOW, "%s: shape %s: its bytes do not fit in size_t", name,
                         shape_text(t->shape, t->rank, text));
    return MOE_OK;
}

/* The parameters that are tensors, in the order in which they are judged. */
static const struct spec {
    const char *name;
    size_t offset;
    unsigned dtypes;
    bool required, sbuf;
} specs[] = {
#define SPEC(field, dtypes, required, sbuf)                                                        \
    {                                                                                              \
#field, offsetof(moe_tkg_args, field), dtypes, required, sbuf                              \
    }
    SPEC(hidden_input, FLOATS | BIT(MOE_MXFP8_X4), true, true),
    SPEC(expert_gate_up_weights, WEIGHTS, true, false),
    SPEC(expert_down_weights, WEIGHTS, true, false),
    SPEC(expert_affinities, FLOATS, false, false),
    SPEC(expert_index, INTEGERS, false, false),
    SPEC(rank_id, INTEGERS, false, false),
    SPEC(expert_gate_up_bias, FLOATS, false, false),
    SPEC(expert_down_bias, FLOATS, false, false),
    SPEC(expert_gate_up_weights_scale, SCALES, false, false),
    SPEC(expert_down_weights_scale, SCALES, false, false),
    SPEC(hidden_input_scale, BIT(MOE_E8M0), false, true),
    SPEC(expert_affinities_eager, FLOATS, false, false),
#undef SPEC
};

moe_status validate_tensors(const moe_tkg_args *a)
{
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        const moe_tensor *t;
        memcpy(&t, (const char *)a + specs[i].offset, sizeof t);
        if (t == NULL && specs[i].required)
            return error_set(MOE_E_NULL_ARG, "%s = NULL: required", specs[i].name);
        if (t == NULL) continue;
        moe_status s = check_tensor(specs[i].name, t, specs[i].dtypes, specs[i].sbuf);
        if (s != MOE_OK) return s;
    }
    return MOE_OK;
}

/* t's shape must be want[0..rank); meaning spells it in letters. */
static moe_status shape_is(const char *name, const moe_tensor *t, int rank, const int64_t *want,
                           const char *meaning)
{
    char got_text[TEXT], want_text[TEXT];
    if (t->rank == rank && memcmp(t->shape, want, (size_t)rank * sizeof *want) == 0) return MOE_OK;
    return error_set(t->rank == rank ? MOE_E_SHAPE : MOE_E_DIM, "%s: shape %s: must be %s = %s",
                     name, shape_text(t->shape, t->rank, got_text), meaning,
                     shape_text(want, rank, want_text));
}

static moe_status at_least_one(const char *name, const char *dimension, int64_t value)
{
    if (value >= 1) return MOE_OK;
    return error_set(MOE_E_DIM, "%s: %s = %lld: must be at least 1", name, dimension,
                     (long long)value);
}

/* ---- all of them ----------------------------------------------------------------------------- */

static bool is_mx(moe_dtype dtype)
{
    return (BIT(dtype) & MX) != 0;
}

static kernel_format format_of(moe_dtype dtype)
{
    switch (dtype) {
    case MOE_BF16: return FORMAT_BF16;
    case MOE_F16: return FORMAT_F16;
    case MOE_F32: return FORMAT_F32;
    case MOE_E4M3_IEEE: return FORMAT_E4M3_IEEE;
    case MOE_E4M3FN: return FORMAT_E4M3FN;
    case MOE_MXFP8_X4: return FORMAT_MXFP8;
    default: return FORMAT_MXFP4;
    }
}

/* T and H of hidden_input in any of its layouts. */
static moe_status hidden_shape(const moe_tensor *x, problem *p)
{
    char text[TEXT];
    int64_t T, H;
    p->hidden = x->dtype;
    p->prequantised = is_mx(x->dtype);
    if (p->prequantised && x->layout != MOE_LAYOUT_SBUF)
        return error_set(MOE_E_LAYOUT,
                         "hidden_input: layout = HBM: pre-quantised words must be in SBUF");
    if (x->layout == MOE_LAYOUT_HBM) {
        if (x->rank != 2 && x->rank != 3)
            return error_set(MOE_E_DIM, "hidden_input: rank = %d: must be 2 or 3", (int)x->rank);
        T = x->rank == 2 ? x->shape[0] : x->shape[0] * x->shape[1]; /* fits: check_tensor */
        H = x->shape[x->rank - 1];
    } else {
        if (x->rank != 3 || x->shape[0] != 128)
            return error_set(x->rank != 3 ? MOE_E_DIM : MOE_E_SHAPE,
                             "hidden_input: shape %s: must be %s in SBUF",
                             shape_text(x->shape, x->rank, text),
                             p->prequantised ? "[128, H / 512, T]" : "[128, T, H / 128]");
        T = p->prequantised ? x->shape[2] : x->shape[1];
        H = p->prequantised ? x->shape[1] * 512 : x->shape[2] * 128;
    }
    moe_status s = at_least_one("hidden_input", "H", H);
    if (s != MOE_OK) return s;
    if (T > INT32_MAX)
        return error_set(MOE_E_OVERFLOW, "hidden_input: T = %lld: must be at most %d", (long long)T,
                         INT32_MAX);
    p->T = (size_t)T;
    p->H = (size_t)H;
    return MOE_OK;
}

/* Both weight matrices; they say E_L and I, and in MX the tile counts and I_p. */
static moe_status weight_shapes(const moe_tensor *gu, const moe_tensor *down, problem *p)
{
    if (is_mx(gu->dtype) != is_mx(down->dtype))
        return error_set(
            MOE_E_DTYPE,
            "expert_down_weights: dtype = %s with %s gate/up weights: both must be MX or neither",
            moe_dtype_name(down->dtype), moe_dtype_name(gu->dtype));
    p->mx = is_mx(gu->dtype);
    p->gate_up = format_of(gu->dtype);
    p->down = format_of(down->dtype);
    int rank = p->mx ? 5 : 4;
    const char *meaning = p->mx ? "[E_L, 128, 2, H / 512, I]" : "[E_L, H, 2, I]";
    if (gu->rank != rank)
        return error_set(MOE_E_DIM, "expert_gate_up_weights: rank = %d: must be %d, %s",
                         (int)gu->rank, rank, meaning);
    int64_t E_L = gu->shape[0], I = gu->shape[rank - 1], H = (int64_t)p->H;
    moe_status s = at_least_one("expert_gate_up_weights", "E_L", E_L);
    if (s == MOE_OK) s = at_least_one("expert_gate_up_weights", "I", I);
    if (s != MOE_OK) return s;
    p->E_L = (size_t)E_L;
    p->I = (size_t)I;
    if (!p->mx) {
        s = shape_is("expert_gate_up_weights", gu, 4, (int64_t[]){E_L, H, 2, I}, meaning);
        if (s != MOE_OK) return s;
        return shape_is("expert_down_weights", down, 3, (int64_t[]){E_L, I, H}, "[E_L, I, H]");
    }
    if (p->H % 512 != 0)
        return error_set(MOE_E_SHAPE,
                         "hidden_input: H = %zu: must be a multiple of 512 with MX weights", p->H);
    p->tiles_h = p->H / 512;
    p->tiles_i = (p->I - 1) / 512 + 1;
    s = shape_is("expert_gate_up_weights", gu, 5, (int64_t[]){E_L, 128, 2, H / 512, I}, meaning);
    if (s != MOE_OK) return s;
    if (down->rank != 4)
        return error_set(MOE_E_DIM,
                         "expert_down_weights: rank = %d: must be 4, [E_L, I_p, ceil(I / 512), H]",
                         (int)down->rank);
    int64_t I_p = down->shape[1], last = (I - 1) % 512 + 1,
            need = I > 512 ? 128 : (last + 7) / 8 * 2;
    if (I_p < need || I_p > 128 || I_p % 8 != 0)
        return error_set(
            MOE_E_SHAPE,
            "expert_down_weights: I_p = %lld: must be a multiple of 8 in [%lld, 128] for I = %lld",
            (long long)I_p, (long long)need, (long long)I);
    p->lanes_p = (size_t)I_p;
    return shape_is("expert_down_weights", down, 4, (int64_t[]){E_L, I_p, (int64_t)p->tiles_i, H},
                    "[E_L, I_p, ceil(I / 512), H]");
}

/* Row or static scales of plain weights: the last dimension is the row count or 1. */
static moe_status plain_scale(const char *name, const moe_tensor *t, int rank, const int64_t *row,
                              const char *meaning)
{
    int64_t want[3];
    memcpy(want, row, (size_t)rank * sizeof *want);
    if (t->rank == rank && t->shape[rank - 1] == 1) want[rank - 1] = 1;
    return shape_is(name, t, rank, want, meaning);
}

static moe_status scale_shapes(const moe_tkg_args *a, const problem *p)
{
    const moe_tensor *gu = a->expert_gate_up_weights_scale, *down = a->expert_down_weights_scale;
    const char *gu_name = "expert_gate_up_weights_scale", *down_name = "expert_down_weights_scale";
    if (gu == NULL && down == NULL && !p->mx) return MOE_OK;
    if (gu == NULL || down == NULL)
        return error_set(MOE_E_NULL_ARG, "%s = NULL: %s", gu == NULL ? gu_name : down_name,
                         p->mx ? "MX weights require both weight scales"
                               : "both weight scales are required, or neither");
    moe_dtype dtype = p->mx ? MOE_E8M0 : MOE_F32;
    if (gu->dtype != dtype || down->dtype != dtype)
        return error_set(
            MOE_E_DTYPE, "%s: dtype = %s: must be %s", gu->dtype != dtype ? gu_name : down_name,
            moe_dtype_name(gu->dtype != dtype ? gu->dtype : down->dtype), moe_dtype_name(dtype));
    int64_t E_L = (int64_t)p->E_L, H = (int64_t)p->H, I = (int64_t)p->I;
    if (!p->mx) {
        moe_status s =
            plain_scale(gu_name, gu, 3, (int64_t[]){E_L, 2, I}, "[E_L, 2, I] or [E_L, 2, 1]");
        if (s != MOE_OK) return s;
        return plain_scale(down_name, down, 2, (int64_t[]){E_L, H}, "[E_L, H] or [E_L, 1]");
    }
    moe_status s =
        shape_is(gu_name, gu, 5, (int64_t[]){E_L, 16, 2, H / 512, I}, "[E_L, 16, 2, H / 512, I]");
    if (s != MOE_OK) return s;
    return shape_is(down_name, down, 4,
                    (int64_t[]){E_L, (int64_t)p->lanes_p / 8, (int64_t)p->tiles_i, H},
                    "[E_L, I_p / 8, ceil(I / 512), H]");
}

static moe_status bias_shapes(const moe_tkg_args *a, const problem *p)
{
    int64_t E_L = (int64_t)p->E_L;
    moe_status s = MOE_OK;
    if (a->expert_gate_up_bias != NULL && p->mx)
        s = shape_is("expert_gate_up_bias", a->expert_gate_up_bias, 5,
                     (int64_t[]){E_L, (int64_t)p->lanes_p, 2, (int64_t)p->tiles_i, 4},
                     "[E_L, I_p, 2, ceil(I / 512), 4]");
    else if (a->expert_gate_up_bias != NULL)
        s = shape_is("expert_gate_up_bias", a->expert_gate_up_bias, 3,
                     (int64_t[]){E_L, 2, (int64_t)p->I}, "[E_L, 2, I]");
    if (s == MOE_OK && a->expert_down_bias != NULL)
        s = shape_is("expert_down_bias", a->expert_down_bias, 2, (int64_t[]){E_L, (int64_t)p->H},
                     "[E_L, H]");
    return s;
}

/* [T, n] with n free, at least 1. */
static moe_status token_rows(const char *name, const moe_tensor *t, size_t T, const char *letter)
{
    if (t->rank != 2)
        return error_set(MOE_E_DIM, "%s: rank = %d: must be 2, [T, %s]", name, (int)t->rank,
                         letter);
    if (t->shape[0] != (int64_t)T)
        return error_set(MOE_E_SHAPE, "%s: shape[0] = %lld: must be T = %zu", name,
                         (long long)t->shape[0], T);
    return at_least_one(name, letter, t->shape[1]);
}

static moe_status routing_shapes(const moe_tkg_args *a, problem *p)
{
    moe_status s = MOE_OK;
    if (a->expert_index != NULL) s = token_rows("expert_index", a->expert_index, p->T, "K");
    if (s == MOE_OK && a->expert_affinities != NULL)
        s = token_rows("expert_affinities", a->expert_affinities, p->T, "E");
    if (s == MOE_OK && a->expert_affinities_eager != NULL)
        s = token_rows("expert_affinities_eager", a->expert_affinities_eager, p->T, "K");
    if (s == MOE_OK && a->rank_id != NULL)
        s = shape_is("rank_id", a->rank_id, 2, (int64_t[]){1, 1}, "[1, 1]");
    if (s != MOE_OK) return s;
    p->K = a->expert_index != NULL ? (size_t)a->expert_index->shape[1] : 0;
    p->E = a->expert_affinities != NULL ? (size_t)a->expert_affinities->shape[1] : 0;
    if (a->expert_affinities_eager != NULL && (size_t)a->expert_affinities_eager->shape[1] != p->K)
        return error_set(MOE_E_SHAPE,
                         "expert_affinities_eager: K = %lld: must be expert_index's %zu",
                         (long long)a->expert_affinities_eager->shape[1], p->K);
    if (!p->all_expert && p->T > MAX_TOKENS_SELECTIVE)
        return error_set(MOE_E_UNSUPPORTED,
                         "hidden_input: T = %zu: must be at most %d in selective mode", p->T,
                         MAX_TOKENS_SELECTIVE);
    if (p->scaled && a->expert_affinities != NULL && a->expert_affinities_eager == NULL &&
        p->E < p->E_L)
        return error_set(MOE_E_SHAPE, "expert_affinities: E = %zu: must be at least E_L = %zu",
                         p->E, p->E_L);
    return MOE_OK;
}

static moe_status hidden_scale(const moe_tkg_args *a, const problem *p)
{
    const moe_tensor *scale = a->hidden_input_scale;
    if (scale == NULL && !p->prequantised) return MOE_OK;
    if (!p->mx || !p->all_expert)
        return error_set(MOE_E_UNSUPPORTED, "%s: only with MX weights in all-expert mode",
                         scale != NULL ? "hidden_input_scale is given"
                                       : "hidden_input: dtype = mxfp8_x4, pre-quantised");
    if (scale == NULL)
        return error_set(MOE_E_NULL_ARG,
                         "hidden_input_scale = NULL: a pre-quantised hidden_input requires it");
    if (!p->prequantised)
        return error_set(MOE_E_UNSUPPORTED,
                         "hidden_input_scale is given: hidden_input must be mxfp8_x4, not %s",
                         moe_dtype_name(p->hidden));
    return shape_is("hidden_input_scale", scale, 3,
                    (int64_t[]){128, (int64_t)p->tiles_h, (int64_t)p->T}, "[128, H / 512, T]");
}

static moe_status check_output(const moe_tkg_args *a, problem *p)
{
    p->output = a->output_dtype != MOE_DTYPE_NONE ? a->output_dtype
                : p->prequantised                 ? MOE_BF16
                                                  : p->hidden;
    if ((BIT(p->output) & FLOATS) == 0)
        return error_set(MOE_E_DTYPE, "output_dtype = %s: must be bf16, f16 or f32",
                         moe_dtype_name(p->output));
    if (a->output_in_sbuf && a->hidden_input->layout != MOE_LAYOUT_SBUF)
        return error_set(
            MOE_E_UNSUPPORTED,
            "output_in_sbuf = 1: hidden_input must be in SBUF, its layout is the output's");
    size_t bytes;
    if (!checked_mul(p->T * moe_dtype_size(p->output), p->H, &bytes) || bytes > PTRDIFF_MAX)
        return error_set(MOE_E_OVERFLOW,
                         "hidden_input: T = %zu, H = %zu: the output's bytes do not fit in size_t",
                         p->T, p->H);
    return MOE_OK;
}

moe_status validate_shapes(const moe_tkg_args *a, problem *p)
{
    moe_status s = hidden_shape(a->hidden_input, p);
    if (s == MOE_OK) s = weight_shapes(a->expert_gate_up_weights, a->expert_down_weights, p);
    if (s == MOE_OK) s = hidden_scale(a, p);
    if (s == MOE_OK) s = scale_shapes(a, p);
    if (s == MOE_OK) s = bias_shapes(a, p);
    if (s == MOE_OK) s = routing_shapes(a, p);
    if (s == MOE_OK) s = check_output(a, p);
    return s;
}

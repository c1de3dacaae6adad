/* SPDX-License-Identifier: Apache-2.0 */
/* validate_shape.c - the descriptions of a call's tensors: element types, layouts, ranks,
 * dimensions, and how they fit together. */
#include "checked.h"
#include "error.h"
#include "validate.h"

#include <stdio.h>

enum { MAX_TOKENS_SELECTIVE = 128, TEXT = VALIDATE_TEXT };

#define BIT VALIDATE_BIT
enum {
    FLOATS = VALIDATE_FLOATS,
    WEIGHTS = FLOATS | BIT(MOE_E4M3_IEEE) | BIT(MOE_E4M3FN) | VALIDATE_X4,
    INTEGERS = BIT(MOE_I32) | BIT(MOE_U32) | BIT(MOE_I64),
    SCALES = BIT(MOE_F32) | BIT(MOE_E8M0)
};

/* ---- one tensor ------------------------------------------------------------------------------ */

const char *validate_shape_text(const int64_t *shape, int rank, char *text)
{
    size_t n = 0;
    for (int i = 0; i < rank && n < TEXT; i++)
        n += (size_t)snprintf(text + n, TEXT - n, "%s%lld", i == 0 ? "[" : ", ",
                              (long long)shape[i]);
    if (n < TEXT) snprintf(text + n, TEXT - n, "]");
    return text;
}

moe_status validate_tensor(const char *name, const moe_tensor *t, unsigned dtypes, bool sbuf)
{
    char text[TEXT];
    if ((int)t->dtype <= MOE_DTYPE_NONE || (int)t->dtype > VALIDATE_LAST_DTYPE)
        return error_set(MOE_E_BAD_ENUM, "%s: dtype = %d: must be in [1, %d]", name, (int)t->dtype,
                         VALIDATE_LAST_DTYPE);
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
                         validate_shape_text(t->shape, t->rank, text));
    return MOE_OK;
}

/* The parameters that are tensors, in the order in which they are judged. */
typedef struct spec {
    const char *name;
    size_t offset;
    unsigned dtypes;
    bool required, sbuf;
} spec;

#define SPEC(structure, field, name, dtypes, required, sbuf)                                       \
    {                                                                                              \
        name, offsetof(structure, field), dtypes, required, sbuf                                   \
    }

static const spec call_specs[] = {
#define CALL(field, dtypes, required, sbuf)                                                        \
    SPEC(moe_tkg_args, field, #field, dtypes, required, sbuf)
    CALL(hidden_input, FLOATS | BIT(MOE_MXFP8_X4), true, true),
    CALL(expert_affinities, FLOATS, false, false),
    CALL(expert_index, INTEGERS, false, false),
    CALL(rank_id, INTEGERS, false, false),
    CALL(hidden_input_scale, BIT(MOE_E8M0), false, true),
    CALL(expert_affinities_eager, FLOATS, false, false),
#undef CALL
};

static const spec weight_specs[] = {
#define WEIGHT(field, name, dtypes, required)                                                      \
    SPEC(operator_weights, field, name, dtypes, required, false)
    WEIGHT(gate_up, "expert_gate_up_weights", WEIGHTS, true),
    WEIGHT(down, "expert_down_weights", WEIGHTS, true),
    WEIGHT(gate_up_bias, "expert_gate_up_bias", FLOATS, false),
    WEIGHT(down_bias, "expert_down_bias", FLOATS, false),
    WEIGHT(gate_up_scale, "expert_gate_up_weights_scale", SCALES, false),
    WEIGHT(down_scale, "expert_down_weights_scale", SCALES, false),
#undef WEIGHT
};

static moe_status check_tensors(const void *structure, const spec *specs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const moe_tensor *t;
        memcpy(&t, (const char *)structure + specs[i].offset, sizeof t);
        if (t == NULL && specs[i].required)
            return error_set(MOE_E_NULL_ARG, "%s = NULL: required", specs[i].name);
        if (t == NULL) continue;
        moe_status s = validate_tensor(specs[i].name, t, specs[i].dtypes, specs[i].sbuf);
        if (s != MOE_OK) return s;
    }
    return MOE_OK;
}

moe_status validate_operator_tensors(const operator_weights *w)
{
    return check_tensors(w, weight_specs, sizeof weight_specs / sizeof weight_specs[0]);
}

static operator_weights weights_of(const moe_tkg_args *a)
{
    return (operator_weights){a->expert_gate_up_weights,       a->expert_down_weights,
                              a->expert_gate_up_bias,          a->expert_down_bias,
                              a->expert_gate_up_weights_scale, a->expert_down_weights_scale};
}

moe_status validate_tensors(const moe_tkg_args *a)
{
    operator_weights w = weights_of(a);
    moe_status s = check_tensors(a, call_specs, sizeof call_specs / sizeof call_specs[0]);
    return s != MOE_OK || a->experts != NULL ? s : validate_operator_tensors(&w);
}

moe_status validate_shape_is(const char *name, const moe_tensor *t, int rank, const int64_t *want,
                             const char *meaning)
{
    char got_text[TEXT], want_text[TEXT];
    if (t->rank == rank && memcmp(t->shape, want, (size_t)rank * sizeof *want) == 0) return MOE_OK;
    return error_set(t->rank == rank ? MOE_E_SHAPE : MOE_E_DIM, "%s: shape %s: must be %s = %s",
                     name, validate_shape_text(t->shape, t->rank, got_text), meaning,
                     validate_shape_text(want, rank, want_text));
}

moe_status validate_at_least_one(const char *name, const char *dimension, int64_t value)
{
    if (value >= 1) return MOE_OK;
    return error_set(MOE_E_DIM, "%s: %s = %lld: must be at least 1", name, dimension,
                     (long long)value);
}

/* ---- all of them ----------------------------------------------------------------------------- */

moe_status validate_rows(const char *name, const moe_tensor *x, size_t *T, size_t *H)
{
    if (x->rank != 2 && x->rank != 3)
        return error_set(MOE_E_DIM, "%s: rank = %d: must be 2 or 3", name, (int)x->rank);
    *T = (size_t)(x->rank == 2 ? x->shape[0]
                               : x->shape[0] * x->shape[1]); /* fits: validate_tensor */
    *H = (size_t)x->shape[x->rank - 1];
    return MOE_OK;
}

moe_status validate_rows_sizes(const char *name, size_t T, size_t H)
{
    moe_status s = validate_at_least_one(name, "H", (int64_t)H);
    if (s == MOE_OK && T > INT32_MAX)
        return error_set(MOE_E_OVERFLOW, "%s: T = %zu: must be at most %d", name, T, INT32_MAX);
    return s;
}

/* T and H of hidden_input in any of its layouts. */
static moe_status hidden_shape(const moe_tensor *x, problem *p)
{
    char text[TEXT];
    size_t T = 0, H = 0;
    p->hidden = x->dtype;
    p->prequantised = validate_is_x4(x->dtype);
    if (p->prequantised && x->layout != MOE_LAYOUT_SBUF)
        return error_set(MOE_E_LAYOUT,
                         "hidden_input: layout = HBM: pre-quantised words must be in SBUF");
    if (x->layout == MOE_LAYOUT_HBM) {
        moe_status s = validate_rows("hidden_input", x, &T, &H);
        if (s != MOE_OK) return s;
    } else {
        if (x->rank != 3 || x->shape[0] != 128)
            return error_set(x->rank != 3 ? MOE_E_DIM : MOE_E_SHAPE,
                             "hidden_input: shape %s: must be %s in SBUF",
                             validate_shape_text(x->shape, x->rank, text),
                             p->prequantised ? "[128, H / 512, T]" : "[128, T, H / 128]");
        T = (size_t)(p->prequantised ? x->shape[2] : x->shape[1]);
        H = (size_t)(p->prequantised ? x->shape[1] * 512 : x->shape[2] * 128);
    }
    p->T = T;
    p->axis.H = H;
    return validate_rows_sizes("hidden_input", T, H);
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
    return validate_at_least_one(name, letter, t->shape[1]);
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
        s = validate_shape_is("rank_id", a->rank_id, 2, (int64_t[]){1, 1}, "[1, 1]");
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
    if (!p->axis.strided || !p->all_expert)
        return error_set(MOE_E_UNSUPPORTED,
                         "%s: only with MX weights in the operator's layout, in all-expert mode",
                         scale != NULL ? "hidden_input_scale is given"
                                       : "hidden_input: dtype = mxfp8_x4, pre-quantised");
    if (scale == NULL)
        return error_set(MOE_E_NULL_ARG,
                         "hidden_input_scale = NULL: a pre-quantised hidden_input requires it");
    if (!p->prequantised)
        return error_set(MOE_E_UNSUPPORTED,
                         "hidden_input_scale is given: hidden_input must be mxfp8_x4, not %s",
                         moe_dtype_name(p->hidden));
    return validate_shape_is("hidden_input_scale", scale, 3,
                             (int64_t[]){128, (int64_t)p->axis.tiles_h, (int64_t)p->T},
                             "[128, H / 512, T]");
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
    if (!checked_mul(p->T * moe_dtype_size(p->output), p->axis.H, &bytes) || bytes > PTRDIFF_MAX)
        return error_set(MOE_E_OVERFLOW,
                         "hidden_input: T = %zu, H = %zu: the output's bytes do not fit in size_t",
                         p->T, p->axis.H);
    return MOE_OK;
}

/* The experts' side of the problem: packed, or the call's own tensors. */
static moe_status expert_shapes(const moe_tkg_args *a, problem *p)
{
    operator_weights w = weights_of(a);
    size_t H = p->axis.H;
    moe_status s =
        a->experts != NULL ? validate_packed(a, p) : validate_operator_weights(&w, H, &p->source);
    if (s != MOE_OK || a->experts != NULL) return s;
    p->E_L = p->source.E_L;
    p->axis = p->source.axis;
    p->gate_up = p->source.gate_up;
    p->down = p->source.down;
    return MOE_OK;
}

moe_status validate_shapes(const moe_tkg_args *a, problem *p)
{
    moe_status s = hidden_shape(a->hidden_input, p);
    if (s == MOE_OK) s = expert_shapes(a, p);
    if (s == MOE_OK) s = hidden_scale(a, p);
    if (s == MOE_OK) s = routing_shapes(a, p);
    if (s == MOE_OK) s = check_output(a, p);
    return s;
}

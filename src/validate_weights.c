/* SPDX-License-Identifier: Apache-2.0 */
/* validate_weights.c - the operator's tensors of an expert's parameters: how they fit together,
 * and where pack.c finds each element.
 *
 * Plain tensors are matrices with strides; the x4 words of MX weights, whose lanes lie strided,
 * stay tensors. */
#include "error.h"
#include "validate.h"

static const char gate_up_name[] = "expert_gate_up_weights", down_name[] = "expert_down_weights",
                  gate_up_scale_name[] = "expert_gate_up_weights_scale",
                  down_scale_name[] = "expert_down_weights_scale";

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

/* ---- shapes ---------------------------------------------------------------------------------- */

static moe_status x4_shapes(const operator_weights *w, pack_source *s)
{
    const axis *a = &s->axis;
    int64_t E_L = (int64_t)s->E_L, H = (int64_t)a->H, I = (int64_t)a->I;
    moe_status status =
        validate_shape_is(gate_up_name, w->gate_up, 5, (int64_t[]){E_L, 128, 2, H / 512, I},
                          "[E_L, 128, 2, H / 512, I]");
    if (status != MOE_OK) return status;
    if (w->down->rank != 4)
        return error_set(MOE_E_DIM, "%s: rank = %d: must be 4, [E_L, I_p, ceil(I / 512), H]",
                         down_name, (int)w->down->rank);
    int64_t I_p = w->down->shape[1], last = (I - 1) % 512 + 1,
            need = I > 512 ? 128 : (last + 7) / 8 * 2;
    if (I_p < need || I_p > 128 || I_p % 8 != 0)
        return error_set(MOE_E_SHAPE,
                         "%s: I_p = %lld: must be a multiple of 8 in [%lld, 128] for I = %lld",
                         down_name, (long long)I_p, (long long)need, (long long)I);
    s->axis.lanes_p = (size_t)I_p;
    return validate_shape_is(down_name, w->down, 4, (int64_t[]){E_L, I_p, (int64_t)a->tiles_i, H},
                             "[E_L, I_p, ceil(I / 512), H]");
}

/* Both weight matrices; they say E_L and I, and in MX the tile counts and I_p. */
static moe_status weight_shapes(const operator_weights *w, size_t hidden, pack_source *s)
{
    const moe_tensor *gu = w->gate_up, *down = w->down;
    if (validate_is_x4(gu->dtype) != validate_is_x4(down->dtype))
        return error_set(MOE_E_DTYPE,
                         "%s: dtype = %s with %s gate/up weights: both must be MX or neither",
                         down_name, moe_dtype_name(down->dtype), moe_dtype_name(gu->dtype));
    bool x4 = validate_is_x4(gu->dtype);
    s->gate_up = format_of(gu->dtype);
    s->down = format_of(down->dtype);
    int rank = x4 ? 5 : 4;
    const char *meaning = x4 ? "[E_L, 128, 2, H / 512, I]" : "[E_L, H, 2, I]";
    if (gu->rank != rank)
        return error_set(MOE_E_DIM, "%s: rank = %d: must be %d, %s", gate_up_name, (int)gu->rank,
                         rank, meaning);
    int64_t E_L = gu->shape[0], I = gu->shape[rank - 1];
    int64_t H = hidden != 0 ? (int64_t)hidden : x4 ? gu->shape[3] * 512 : gu->shape[1];
    moe_status status = validate_at_least_one(gate_up_name, "E_L", E_L);
    if (status == MOE_OK) status = validate_at_least_one(gate_up_name, "I", I);
    if (status == MOE_OK) status = validate_at_least_one(gate_up_name, "H", H);
    if (status != MOE_OK) return status;
    s->E_L = (size_t)E_L;
    s->axis = (axis){.H = (size_t)H, .I = (size_t)I, .strided = x4};
    if (!x4) {
        status = validate_shape_is(gate_up_name, gu, 4, (int64_t[]){E_L, H, 2, I}, meaning);
        if (status != MOE_OK) return status;
        return validate_shape_is(down_name, down, 3, (int64_t[]){E_L, I, H}, "[E_L, I, H]");
    }
    if (H % 512 != 0)
        return error_set(MOE_E_SHAPE,
                         "hidden_input: H = %lld: must be a multiple of 512 with MX weights",
                         (long long)H);
    s->axis.tiles_h = (size_t)H / 512;
    s->axis.tiles_i = ((size_t)I - 1) / 512 + 1;
    return x4_shapes(w, s);
}

/* Row or static scales of plain weights: the last dimension is the row count or 1. */
static moe_status plain_scale(const char *name, const moe_tensor *t, int rank, const int64_t *row,
                              const char *meaning)
{
    int64_t want[3];
    memcpy(want, row, (size_t)rank * sizeof *want);
    if (t->rank == rank && t->shape[rank - 1] == 1) want[rank - 1] = 1;
    return validate_shape_is(name, t, rank, want, meaning);
}

static moe_status scale_shapes(const operator_weights *w, const pack_source *s)
{
    const axis *a = &s->axis;
    const moe_tensor *gu = w->gate_up_scale, *down = w->down_scale;
    if (gu == NULL && down == NULL && !a->strided) return MOE_OK;
    if (gu == NULL || down == NULL)
        return error_set(MOE_E_NULL_ARG, "%s = NULL: %s",
                         gu == NULL ? gate_up_scale_name : down_scale_name,
                         a->strided ? "MX weights require both weight scales"
                                    : "both weight scales are required, or neither");
    moe_dtype dtype = a->strided ? MOE_E8M0 : MOE_F32;
    if (gu->dtype != dtype || down->dtype != dtype)
        return error_set(MOE_E_DTYPE, "%s: dtype = %s: must be %s",
                         gu->dtype != dtype ? gate_up_scale_name : down_scale_name,
                         moe_dtype_name(gu->dtype != dtype ? gu->dtype : down->dtype),
                         moe_dtype_name(dtype));
    int64_t E_L = (int64_t)s->E_L, H = (int64_t)a->H, I = (int64_t)a->I;
    moe_status status;
    if (!a->strided) {
        status = plain_scale(gate_up_scale_name, gu, 3, (int64_t[]){E_L, 2, I},
                             "[E_L, 2, I] or [E_L, 2, 1]");
        if (status != MOE_OK) return status;
        return plain_scale(down_scale_name, down, 2, (int64_t[]){E_L, H}, "[E_L, H] or [E_L, 1]");
    }
    status = validate_shape_is(gate_up_scale_name, gu, 5, (int64_t[]){E_L, 16, 2, H / 512, I},
                               "[E_L, 16, 2, H / 512, I]");
    if (status != MOE_OK) return status;
    return validate_shape_is(down_scale_name, down, 4,
                             (int64_t[]){E_L, (int64_t)a->lanes_p / 8, (int64_t)a->tiles_i, H},
                             "[E_L, I_p / 8, ceil(I / 512), H]");
}

static moe_status bias_shapes(const operator_weights *w, const pack_source *s)
{
    const axis *a = &s->axis;
    int64_t E_L = (int64_t)s->E_L;
    moe_status status = MOE_OK;
    if (w->gate_up_bias != NULL && a->strided)
        status = validate_shape_is("expert_gate_up_bias", w->gate_up_bias, 5,
                                   (int64_t[]){E_L, (int64_t)a->lanes_p, 2, (int64_t)a->tiles_i, 4},
                                   "[E_L, I_p, 2, ceil(I / 512), 4]");
    else if (w->gate_up_bias != NULL)
        status = validate_shape_is("expert_gate_up_bias", w->gate_up_bias, 3,
                                   (int64_t[]){E_L, 2, (int64_t)a->I}, "[E_L, 2, I]");
    if (status == MOE_OK && w->down_bias != NULL)
        status = validate_shape_is("expert_down_bias", w->down_bias, 2,
                                   (int64_t[]){E_L, (int64_t)a->H}, "[E_L, H]");
    return status;
}

/* ---- matrices -------------------------------------------------------------------------------- */

/* Element `at` of a tensor [E_L, per_expert elements], which may have no data. */
static moe_array array_of(const moe_tensor *t, size_t at, size_t per_expert, size_t row,
                          size_t column)
{
    moe_array a;
    memset(&a, 0, sizeof a);
    if (t == NULL) return a;
    size_t element = moe_dtype_size(t->dtype);
    a.dtype = t->dtype;
    a.data = t->data == NULL ? NULL : (const char *)t->data + at * element;
    a.expert_stride = (int64_t)(per_expert * element);
    a.row_stride = (int64_t)(row * element);
    a.column_stride = (int64_t)(column * element);
    return a;
}

static void fill_matrices(const operator_weights *w, pack_source *s)
{
    size_t H = s->axis.H, I = s->axis.I;
    size_t one = w->gate_up_scale != NULL && w->gate_up_scale->shape[2] == 1;
    size_t rows = one ? 1 : I;
    for (size_t g = 0; g < 2; g++) {
        s->matrix[g].weights = array_of(w->gate_up, g * I, H * 2 * I, 1, 2 * I);
        s->matrix[g].scale = array_of(w->gate_up_scale, g * rows, 2 * rows, !one, 0);
        s->matrix[g].bias = array_of(w->gate_up_bias, g * I, 2 * I, 1, 0);
    }
    one = w->down_scale != NULL && w->down_scale->shape[1] == 1;
    s->matrix[2].weights = array_of(w->down, 0, I * H, 1, H);
    s->matrix[2].scale = array_of(w->down_scale, 0, one ? 1 : H, !one, 0);
    s->matrix[2].bias = array_of(w->down_bias, 0, H, 1, 0);
}

moe_status validate_operator_weights(const operator_weights *w, size_t H, pack_source *s)
{
    memset(s, 0, sizeof *s);
    moe_status status = weight_shapes(w, H, s);
    if (status == MOE_OK) status = scale_shapes(w, s);
    if (status == MOE_OK) status = bias_shapes(w, s);
    if (status != MOE_OK) return status;
    if (!s->axis.strided) {
        fill_matrices(w, s);
        return MOE_OK;
    }
    s->words[0] = w->gate_up;
    s->words[1] = w->down;
    s->word_scale[0] = w->gate_up_scale;
    s->word_scale[1] = w->down_scale;
    s->word_bias[0] = w->gate_up_bias;
    s->word_bias[1] = w->down_bias;
    return MOE_OK;
}

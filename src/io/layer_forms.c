/* SPDX-License-Identifier: Apache-2.0 */
/* layer_forms.c - one matrix of the experts in whichever format it is stored.
 *
 * Formats are told by element type and shape; what is behind a stem only says where to look.  Refuses
 * types that no moe_matrix takes, and every tensor whose shape does not follow from rows and k. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "io/layer.h"
#include "io/layer_pieces.h"
#include "io/model_error.h"

/* What may stand behind a stem.  Of those with one suffix of the weights, the first whose scale is
 * there counts; without a scale, the last. */
typedef struct form {
    const char *weights, *scale, *row_scale;
    bool divisor; /* row_scale divides */
    const char *shape, *bias;
    const char *const *refused; /* makes it a format that is not read here */
} form;

static const char *const asymmetric[] = {".weight_zero_point", ".weight_g_idx", NULL};

static const form forms[] = {
    /* compressed-tensors */
    {".weight_packed", ".weight_scale", ".weight_global_scale", true, ".weight_shape", ".bias",
     asymmetric},
    {.weights = ".weight", .scale = ".weight_scale_inv", .bias = ".bias"},
    {.weights = ".weight",
     .scale = ".weight_scale",
     .row_scale = ".weight_scale_2",
     .bias = ".bias"},
    {.weights = ".weight", .scale = ".scale", .bias = ".bias"}, /* GGUF; DeepSeek-V4 */
    {.weights = ".weight", .bias = ".bias"},
    {.weights = "_blocks", .scale = "_scales", .bias = "_bias"},
    {.weights = "_weight.blocks", .scale = "_weight.scales", .bias = "_bias"},
    {.weights = "", .scale = "_scale_inv", .bias = "_bias"},
    {.weights = "", .scale = "_scale", .bias = "_bias"},
    {.weights = "", .bias = "_bias"},
};

enum { FORMS = sizeof forms / sizeof forms[0] };

/* A matrix that is being looked at. */
typedef struct looking {
    const layer_search *search;
    layer_matrix *m;
    const form *form;
    ck_tensor weights, scale; /* of expert 0 */
    bool has_scale;
} looking;

static moe_dtype float_dtype(ck_type type)
{
    return type == CK_F32    ? MOE_F32
           : type == CK_F16  ? MOE_F16
           : type == CK_BF16 ? MOE_BF16
                             : MOE_DTYPE_NONE;
}

static void name_format(layer_matrix *m, const char *name)
{
    snprintf(m->format, sizeof m->format, "%s", name);
}

static moe_status refuse_type(const looking *l, const ck_tensor *t)
{
    return layer_refuse(l->search->place, t, "elements of type %s are not read here",
                        t->type_name ? t->type_name : "(unknown)");
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* One value for the matrix. */
static bool is_single(const looking *l, const ck_tensor *t)
{
    return piece_fits(l->search, t, 0, NULL) || piece_fits(l->search, t, 1, (int64_t[]){1}) ||
           piece_fits(l->search, t, 2, (int64_t[]){1, 1});
}

/* One value for each row. */
static bool is_column(const looking *l, const ck_tensor *t)
{
    int64_t rows = l->search->rows;
    return piece_fits(l->search, t, 1, &rows) ||
           piece_fits(l->search, t, 2,
                      l->search->transposed ? (int64_t[]){1, rows} : (int64_t[]){rows, 1});
}

/* A factor of the whole matrix or of each row: `a` is scale or row_scale. */
static moe_status row_factor(const looking *l, const char *suffix, const ck_tensor *t,
                             layer_conversion conversion, layer_array *a)
{
    a->dtype = float_dtype(t->type);
    if (a->dtype == MOE_DTYPE_NONE || (conversion == LAYER_F32_RECIPROCAL && t->type != CK_F32))
        return refuse_type(l, t);
    int64_t element = (int64_t)moe_dtype_size(a->dtype);
    bool single = is_single(l, t);
    if (!single && !is_column(l, t)) return piece_refuse_shape(l->search, t, 1, &l->search->rows);
    a->row_stride = single ? 0 : element;
    a->column_stride = element;
    return piece_add(l->search, suffix, t, conversion, a);
}

/* Blocks of FP8 weights: grid_rows by 128. */
static moe_status block_scale(const looking *l, layer_matrix *m)
{
    const layer_search *s = l->search;
    int64_t grid_rows = s->place->rules->grid_rows;
    int64_t R = (s->rows + grid_rows - 1) / grid_rows, C = (s->k + 127) / 128;
    int64_t shape[2] = {s->transposed ? C : R, s->transposed ? R : C};
    bool power = l->scale.type == CK_E8M0;
    if (!piece_fits(s, &l->scale, 2, shape)) return piece_refuse_shape(s, &l->scale, 2, shape);
    m->scale.dtype = power ? MOE_F32 : float_dtype(l->scale.type);
    if (m->scale.dtype == MOE_DTYPE_NONE) return refuse_type(l, &l->scale);
    int64_t element = (int64_t)moe_dtype_size(m->scale.dtype);
    m->scale.row_stride = s->transposed ? element : C * element;
    m->scale.column_stride = s->transposed ? R * element : element;
    m->scale_k = 128;
    m->scale_rows = (int32_t)grid_rows;
    name_format(m, "fp8-block");
    return piece_add(s, l->form->scale, &l->scale, power ? LAYER_E8M0_TO_F32 : LAYER_COPY,
                     &m->scale);
}

/* A scale for each `group` of a row. */
static moe_status group_scale(const looking *l, moe_dtype dtype, int64_t group, const char *format,
                              layer_matrix *m)
{
    const layer_search *s = l->search;
    int64_t shape[2] = {s->rows, s->k / group};
    if (s->k % group != 0)
        return layer_refuse(s->place, &l->weights, "%lld columns are no whole groups of %lld",
                            (long long)s->k, (long long)group);
    if (!piece_fits(s, &l->scale, 2, shape)) return piece_refuse_shape(s, &l->scale, 2, shape);
    m->scale.dtype = dtype;
    m->scale.column_stride = (int64_t)moe_dtype_size(dtype);
    m->scale.row_stride = s->k / group * m->scale.column_stride;
    m->scale_k = (int32_t)group;
    name_format(m, format);
    return piece_add(s, l->form->scale, &l->scale, LAYER_COPY, &m->scale);
}

static moe_status no_scale(const looking *l)
{
    if (l->form->scale) return piece_missing(l->search, l->form->scale, 0);
    return layer_refuse(l->search->place, &l->weights,
                        "%s weights without a scale (looked for weight_scale_inv, weight_scale and "
                        "scale)",
                        l->weights.type_name);
}

/* ---- formats --------------------------------------------------------------------------------- */

/* Elements that lie one by one: [rows, k], or [k, rows]. */
static moe_status dense(const looking *l, moe_dtype dtype)
{
    const layer_search *s = l->search;
    layer_array *a = &l->m->weights;
    int64_t element = (int64_t)moe_dtype_size(dtype);
    int64_t shape[2] = {s->transposed ? s->k : s->rows, s->transposed ? s->rows : s->k};
    if (!piece_fits(s, &l->weights, 2, shape)) return piece_refuse_shape(s, &l->weights, 2, shape);
    a->dtype = dtype;
    a->row_stride = s->transposed ? element : s->k * element;
    a->column_stride = s->transposed ? s->rows * element : element;
    return piece_add(s, l->form->weights, &l->weights, LAYER_COPY, a);
}

/* A row of `bytes` bytes, in units of `unit`. */
static moe_status packed_rows(const looking *l, moe_dtype dtype, int64_t bytes, int64_t unit)
{
    layer_array *a = &l->m->weights;
    if (l->search->transposed)
        return layer_refuse(l->search->place, &l->weights,
                            "%s weights must lie row by row, not transposed", l->weights.type_name);
    a->dtype = dtype;
    a->row_stride = bytes;
    a->column_stride = unit;
    return piece_add(l->search, l->form->weights, &l->weights, LAYER_COPY, a);
}

static moe_status plain(const looking *l)
{
    moe_dtype dtype = float_dtype(l->weights.type);
    moe_status s = dense(l, dtype);
    name_format(l->m, dtype == MOE_F32 ? "f32" : dtype == MOE_F16 ? "f16" : "bf16");
    if (s != MOE_OK || !l->has_scale) return s;
    if (!l->weights.gguf)
        return layer_refuse(l->search->place, &l->scale, "a scale of %s weights",
                            l->weights.type_name);
    return row_factor(l, l->form->scale, &l->scale, LAYER_COPY, &l->m->scale);
}

static moe_status fp8(const looking *l)
{
    moe_status s = dense(l, MOE_E4M3FN);
    const ck_tensor *t = &l->scale;
    if (s != MOE_OK) return s;
    if (!l->has_scale) return no_scale(l);
    int64_t groups[2] = {l->search->rows, l->search->k / 32};
    bool bytes = t->type == CK_U8 || t->type == CK_E8M0;
    if (bytes && !l->search->transposed && l->search->k % 32 == 0 &&
        piece_fits(l->search, t, 2, groups))
        return group_scale(l, MOE_E8M0, 32, "mxfp8", l->m);
    if (!bytes && (is_single(l, t) || is_column(l, t))) {
        name_format(l->m, is_single(l, t) ? "fp8-tensor" : "fp8-channel");
        return row_factor(l, l->form->scale, t, LAYER_COPY, &l->m->scale);
    }
    return block_scale(l, l->m);
}

/* MXFP4 and NVFP4: two e2m1 codes in a byte. */
static moe_status four_bits(const looking *l)
{
    const layer_search *f = l->search;
    int64_t blocks[3] = {f->rows, f->k / 32, 16}, row[2] = {f->rows, f->k / 2};
    if (l->weights.type == CK_F4) row[1] = f->k;
    bool in_blocks =
        l->weights.type == CK_U8 && f->k % 32 == 0 && piece_fits(f, &l->weights, 3, blocks);
    if (f->k % 2 != 0 || (!in_blocks && !piece_fits(f, &l->weights, 2, row)))
        return piece_refuse_shape(f, &l->weights, 2, row);
    moe_status s = packed_rows(l, MOE_E2M1_X2, f->k / 2, 1);
    if (s != MOE_OK) return s;
    if (!l->has_scale) return no_scale(l);
    if (l->scale.type == CK_U8 || l->scale.type == CK_E8M0)
        return group_scale(l, MOE_E8M0, 32, "mxfp4", l->m);
    if (l->scale.type != CK_E4M3) return refuse_type(l, &l->scale);
    s = group_scale(l, MOE_E4M3FN, 16, "nvfp4", l->m);
    if (s != MOE_OK || !l->form->row_scale) return s;
    ck_tensor factor;
    bool found;
    s = piece_find(f, l->form->row_scale, 0, &factor, &found);
    if (s != MOE_OK) return s;
    if (!found) return piece_missing(f, l->form->row_scale, 0);
    return row_factor(l, l->form->row_scale, &factor,
                      l->form->divisor ? LAYER_F32_RECIPROCAL : LAYER_COPY, &l->m->row_scale);
}

/* Eight codes of four bits in a word. */
static moe_status int4(const looking *l)
{
    static const int64_t groups[] = {32, 64, 128};
    static const char *const formats[] = {"int4-g32", "int4-g64", "int4-g128"};
    const layer_search *f = l->search;
    int64_t words[2] = {f->rows, f->k / 8};
    if (f->k % 8 != 0 || !piece_fits(f, &l->weights, 2, words))
        return piece_refuse_shape(f, &l->weights, 2, words);
    moe_status s = packed_rows(l, MOE_INT4_X2, f->k / 2, 1);
    if (s == MOE_OK && l->form->shape) s = piece_add_shape(f, l->form->shape);
    if (s != MOE_OK) return s;
    if (!l->has_scale) return no_scale(l);
    if (l->scale.type != CK_BF16 && l->scale.type != CK_F16) return refuse_type(l, &l->scale);
    moe_dtype dtype = float_dtype(l->scale.type);
    for (int i = 0; i < 3; i++) {
        int64_t shape[2] = {f->rows, f->k / groups[i]};
        if (f->k % groups[i] == 0 && piece_fits(f, &l->scale, 2, shape))
            return group_scale(l, dtype, groups[i], formats[i], l->m);
    }
    return piece_refuse_shape(f, &l->scale, 2, (int64_t[]){f->rows, f->k / 32});
}

static moe_status blocks(const looking *l)
{
    static const struct {
        moe_dtype dtype;
        const char *format;
    } names[] = {{MOE_Q8_0, "q8_0"},       {MOE_Q4_0, "q4_0"}, {MOE_Q4_K, "q4_k"},
                 {MOE_Q5_K, "q5_k"},       {MOE_Q6_K, "q6_k"}, {MOE_GGML_MXFP4, "mxfp4"},
                 {MOE_GGML_NVFP4, "nvfp4"}};
    const layer_search *f = l->search;
    int64_t shape[2] = {f->rows, f->k}, block = (int64_t)l->weights.block_k;
    if (!piece_fits(f, &l->weights, 2, shape)) return piece_refuse_shape(f, &l->weights, 2, shape);
    if (f->k % block != 0)
        return layer_refuse(f->place, &l->weights, "%lld columns are no whole blocks of %lld",
                            (long long)f->k, (long long)block);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].dtype == l->weights.blocks) name_format(l->m, names[i].format);
    int64_t bytes = (int64_t)l->weights.block_bytes;
    moe_status s = packed_rows(l, l->weights.blocks, f->k / block * bytes, bytes);
    if (s != MOE_OK || !l->has_scale) return s;
    return row_factor(l, l->form->scale, &l->scale, LAYER_COPY, &l->m->row_scale);
}

static moe_status weights(const looking *l)
{
    switch (l->weights.type) {
    case CK_BF16:
    case CK_F16:
    case CK_F32: return plain(l);
    case CK_E4M3: return fp8(l);
    case CK_U8:
    case CK_I8:
    case CK_F4: return four_bits(l);
    case CK_I32: return int4(l);
    case CK_BLOCKS: return blocks(l);
    default: return refuse_type(l, &l->weights);
    }
}

static moe_status bias(const looking *l)
{
    ck_tensor t;
    bool found;
    layer_array *a = &l->m->bias;
    moe_status s = piece_find(l->search, l->form->bias, 0, &t, &found);
    if (s != MOE_OK || !found) return s;
    if (!piece_fits(l->search, &t, 1, &l->search->rows))
        return piece_refuse_shape(l->search, &t, 1, &l->search->rows);
    a->dtype = float_dtype(t.type);
    if (a->dtype == MOE_DTYPE_NONE) return refuse_type(l, &t);
    a->row_stride = a->column_stride = (int64_t)moe_dtype_size(a->dtype);
    return piece_add(l->search, l->form->bias, &t, LAYER_COPY, a);
}

/* ---- which form ------------------------------------------------------------------------------ */

/* *found: the weights are there, and l->form says how. */
static moe_status choose_form(looking *l, bool *found)
{
    *found = false;
    for (size_t i = 0; i < FORMS; i++) {
        const form *one = &forms[i];
        bool same = *found && strcmp(one->weights, l->form->weights) == 0;
        if (*found && !same) break;
        moe_status s = same ? MOE_OK : piece_find(l->search, one->weights, 0, &l->weights, found);
        if (s != MOE_OK) return s;
        if (!*found) continue;
        l->form = one;
        if (one->scale) s = piece_find(l->search, one->scale, 0, &l->scale, &l->has_scale);
        if (s != MOE_OK || l->has_scale) return s;
    }
    return MOE_OK;
}

static moe_status check_refused(const looking *l)
{
    for (size_t i = 0; l->form->refused && l->form->refused[i]; i++) {
        ck_tensor t;
        bool found;
        moe_status s = piece_find(l->search, l->form->refused[i], 0, &t, &found);
        if (s != MOE_OK) return s;
        if (found)
            return layer_refuse(l->search->place, &t,
                                "integers with zero points or in another order are not read here");
    }
    return MOE_OK;
}

bool layer_has_weights(const layer_place *place, const char *stem)
{
    char name[LAYER_NAME_BYTES];
    for (size_t i = 0; stem && i < FORMS; i++) {
        layer_name(place, stem, 0, forms[i].weights, name);
        if (ck_has(place->ck, name)) return true;
    }
    return false;
}

moe_status layer_weights_shape(const layer_search *search, ck_tensor *t, bool *found)
{
    looking l = {.search = search};
    moe_status s = choose_form(&l, found);
    *t = l.weights;
    return s;
}

moe_status layer_find_matrix(const layer_search *search, layer_matrix *m)
{
    looking l = {.search = search, .m = m};
    bool found;
    memset(m, 0, sizeof *m);
    moe_status s = choose_form(&l, &found);
    if (s != MOE_OK) return s;
    if (!found) return piece_missing(search, search->place->layout->suffix, 0);
    s = check_refused(&l);
    if (s == MOE_OK) s = weights(&l);
    return s == MOE_OK ? bias(&l) : s;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* validate_router.c - the arguments of a router, by itself or in a block: scalars, descriptions,
 * then pointers and what overlaps.
 *
 * Arrays have one expert: data, and the strides of rows and columns. */
#include "validate_router.h"
#include "checked.h"
#include "error.h"
#include "validate.h"

#include <math.h>
#include <stdio.h>

/* ---- arrays ---------------------------------------------------------------------------------- */

static moe_status check_stride(const char *name, const char *field, int64_t stride, size_t element,
                               bool apart)
{
    size_t least = apart ? element : 0;
    if (stride < 0 || (uint64_t)stride < least)
        return error_set(MOE_E_VALUE, "%s.%s = %lld: must be at least %zu", name, field,
                         (long long)stride, least);
    if ((uint64_t)stride % element != 0)
        return error_set(MOE_E_ALIGN, "%s.%s = %lld: must be a multiple of the element's %zu bytes",
                         name, field, (long long)stride, element);
    return MOE_OK;
}

/* From the first byte of an array to the end of its last element. */
static bool extent(const moe_array *a, size_t rows, size_t columns, size_t *bytes)
{
    size_t row, column;
    return checked_mul(rows - 1, (size_t)a->row_stride, &row) &&
           checked_mul(columns - 1, columns > 1 ? (size_t)a->column_stride : 0, &column) &&
           checked_add(row, column, bytes) &&
           checked_add(*bytes, moe_dtype_size(a->dtype), bytes) && *bytes <= PTRDIFF_MAX;
}

moe_status validate_one_array(const char *name, const moe_array *a, bool required, size_t rows,
                              size_t columns)
{
    char field[96];
    snprintf(field, sizeof field, "%s.dtype", name);
    moe_status s = validate_enumerator(field, (int)a->dtype, MOE_DTYPE_NONE, VALIDATE_LAST_DTYPE);
    if (s != MOE_OK) return s;
    if (a->dtype == MOE_DTYPE_NONE)
        return required ? error_set(MOE_E_NULL_ARG, "%s = none: required", field) : MOE_OK;
    if ((VALIDATE_BIT(a->dtype) & VALIDATE_FLOATS) == 0)
        return error_set(MOE_E_DTYPE, "%s = %s: must be bf16, f16 or f32", field,
                         moe_dtype_name(a->dtype));
    if (a->experts != NULL)
        return error_set(MOE_E_UNSUPPORTED, "%s.experts is given: there is one array, at data",
                         name);
    size_t element = moe_dtype_size(a->dtype), bytes;
    s = check_stride(name, "row_stride", a->row_stride, element, columns > 0 && rows > 1);
    if (s == MOE_OK && columns > 0)
        s = check_stride(name, "column_stride", a->column_stride, element, columns > 1);
    if (s == MOE_OK && !extent(a, rows, columns > 0 ? columns : 1, &bytes))
        return error_set(MOE_E_OVERFLOW,
                         "%s: [%zu, %zu] with strides %lld, %lld: its bytes do not fit in size_t",
                         name, rows, columns, (long long)a->row_stride,
                         (long long)a->column_stride);
    return s;
}

moe_status validate_span(validate_spans *spans, const char *name, const void *at, size_t bytes,
                         size_t element, bool written)
{
    if (at == NULL) return error_set(MOE_E_NULL_ARG, "%s = NULL: required", name);
    if ((uintptr_t)at % element != 0)
        return error_set(MOE_E_ALIGN, "%s = %p: must be aligned to %zu bytes", name, at, element);
    const uintptr_t first = (uintptr_t)at;
    for (size_t i = 0; i < spans->n; i++) {
        const validate_bytes *b = &spans->span[i];
        if ((written || b->written) && first < b->first + b->bytes && b->first < first + bytes)
            return error_set(MOE_E_ALIAS, "%s = %p: its %zu bytes overlap %s (%zu bytes at %p)",
                             name, at, bytes, b->name, b->bytes, (void *)b->first);
    }
    spans->span[spans->n++] = (validate_bytes){name, first, bytes, written};
    return MOE_OK;
}

moe_status validate_array_span(validate_spans *spans, const char *name, const moe_array *a,
                               size_t rows, size_t columns)
{
    size_t bytes = 0;
    if (a->dtype == MOE_DTYPE_NONE) return MOE_OK;
    extent(a, rows, columns, &bytes); /* fits: validate_one_array */
    return validate_span(spans, name, a->data, bytes, moe_dtype_size(a->dtype), false);
}

/* ---- scalars --------------------------------------------------------------------------------- */

static moe_status in_range(const char *name, int64_t value, int64_t least, int64_t most)
{
    if (value >= least && value <= most) return MOE_OK;
    return error_set(MOE_E_VALUE, "%s = %lld: must be in [%lld, %lld]", name, (long long)value,
                     (long long)least, (long long)most);
}

static moe_status check_groups(const moe_router_args *a, router *r)
{
    r->groups = r->kept = 1;
    if (a->n_group == 0 && a->topk_group == 0) return MOE_OK;
    moe_status s = in_range("n_group", a->n_group, 1, a->E);
    if (s == MOE_OK) s = in_range("topk_group", a->topk_group, 1, a->n_group);
    if (s != MOE_OK) return s;
    if (a->E % a->n_group != 0)
        return error_set(MOE_E_SHAPE, "n_group = %d: must divide E = %lld", (int)a->n_group,
                         (long long)a->E);
    r->groups = (size_t)a->n_group;
    r->kept = (size_t)a->topk_group;
    if (a->K > (int64_t)(r->kept * (r->E / r->groups)))
        return error_set(MOE_E_VALUE, "K = %lld: topk_group = %d groups have %zu experts",
                         (long long)a->K, (int)a->topk_group, r->kept * (r->E / r->groups));
    return MOE_OK;
}

static moe_status check_numbers(const moe_router_args *a)
{
    if (!(a->normalize_epsilon >= 0.0f) || isinf(a->normalize_epsilon))
        return error_set(MOE_E_VALUE, "normalize_epsilon = %g: must be 0 or more, and finite",
                         (double)a->normalize_epsilon);
    if (!isfinite(a->scale))
        return error_set(MOE_E_VALUE, "scale = %g: must be finite", (double)a->scale);
    if (a->selection_bias.dtype != MOE_DTYPE_NONE && a->score == MOE_SCORE_TOPK_SOFTMAX)
        return error_set(MOE_E_UNSUPPORTED,
                         "selection_bias is given: not with MOE_SCORE_TOPK_SOFTMAX");
    return MOE_OK;
}

moe_status validate_router(const moe_router_args *a, router *r)
{
    memset(r, 0, sizeof *r);
    moe_status s = error_struct_size(a, sizeof *a, "moe_router_args");
    if (s == MOE_OK) s = validate_enumerator("score", (int)a->score, 0, MOE_SCORE_SQRT_SOFTPLUS);
    if (s == MOE_OK) s = validate_enumerator("normalize", a->normalize, 0, 1);
    if (s == MOE_OK) s = validate_enumerator("group_rank", (int)a->group_rank, 0, MOE_GROUP_BEST);
    if (s == MOE_OK) s = in_range("E", a->E, 1, ROUTER_MOST_E);
    if (s == MOE_OK) s = in_range("K", a->K, 1, a->E < ROUTER_MOST_K ? a->E : ROUTER_MOST_K);
    if (s != MOE_OK) return s;
    r->args = a;
    r->E = (size_t)a->E;
    r->K = (size_t)a->K;
    s = check_groups(a, r);
    return s == MOE_OK ? check_numbers(a) : s;
}

static const char *const array_names[2][3] = {
    {"weights", "bias", "selection_bias"},
    {"router.weights", "router.bias", "router.selection_bias"}};

static const char *const output_names[2][5] = {
    {"output.index", "output.weights", "output.logits", "output.affinities", "output.scores"},
    {"routed.index", "routed.weights", "routed.logits", "routed.affinities", "routed.scores"}};

moe_status validate_router_arrays(const moe_router_args *a, router *r, size_t H, bool in_block)
{
    const char *const *names = array_names[in_block];
    r->H = H;
    moe_status s = validate_one_array(names[0], &a->weights, true, r->E, H);
    if (s == MOE_OK) s = validate_one_array(names[1], &a->bias, false, r->E, 0);
    if (s == MOE_OK) s = validate_one_array(names[2], &a->selection_bias, false, r->E, 0);
    return s;
}

moe_status validate_router_data(const router *r, size_t T, const moe_router_output *out,
                                bool in_block, validate_spans *spans)
{
    const moe_router_args *a = r->args;
    const char *const *names = array_names[in_block];
    moe_status s = validate_array_span(spans, names[0], &a->weights, r->E, r->H);
    if (s == MOE_OK) s = validate_array_span(spans, names[1], &a->bias, r->E, 1);
    if (s == MOE_OK) s = validate_array_span(spans, names[2], &a->selection_bias, r->E, 1);
    names = output_names[in_block];
    const struct {
        const void *at;
        size_t columns;
    } outputs[] = {{out->index, r->K},
                   {out->weights, r->K},
                   {out->logits, r->E},
                   {out->affinities, r->E},
                   {out->scores, r->E}};
    for (size_t i = 0; s == MOE_OK && i < sizeof outputs / sizeof outputs[0]; i++) {
        size_t bytes;
        if (outputs[i].at == NULL) continue;
        if (!checked_mul(T, outputs[i].columns * sizeof(float), &bytes) || bytes > PTRDIFF_MAX)
            return error_set(MOE_E_OVERFLOW, "%s: T = %zu: its bytes do not fit in size_t",
                             names[i], T);
        s = validate_span(spans, names[i], outputs[i].at, bytes, sizeof(float), true);
    }
    return s;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* validate_matrix.c - the row-major description of what is to be packed: arrays with strides, and the
 * element types and scales that make one matrix.
 *
 * An array's strides are free: they are judged only where they would leave the address space,
 * break the element's alignment, or are plainly not filled in. */
#include "checked.h"
#include "error.h"
#include "sizes.h"
#include "validate.h"

#include <stdio.h>

#define BIT VALIDATE_BIT
enum {
    FLOATS = VALIDATE_FLOATS,
    NONE = BIT(MOE_DTYPE_NONE),
    BLOCKS = BIT(MOE_Q8_0) | BIT(MOE_Q4_0) | BIT(MOE_Q4_K) | BIT(MOE_Q5_K) | BIT(MOE_Q6_K) |
             BIT(MOE_GGML_MXFP4) | BIT(MOE_GGML_NVFP4),
    PAIRS = BIT(MOE_E2M1_X2) | BIT(MOE_INT4_X2),
    WEIGHTS = FLOATS | BIT(MOE_E4M3_IEEE) | BIT(MOE_E4M3FN) | PAIRS | BLOCKS
};

/* ---- one array ------------------------------------------------------------------------------- */

/* What an array has to be, beside its element type. */
typedef struct array_shape {
    size_t experts, rows, columns; /* columns in elements of memory; 0: an array [rows] */
} array_shape;

/* Blocks lie at any byte. */
static size_t alignment(moe_dtype dtype)
{
    return (BIT(dtype) & BLOCKS) != 0 ? 1 : moe_dtype_size(dtype);
}

/* "none, bf16 or f16" in text[VALIDATE_TEXT]. */
static const char *dtypes_text(unsigned dtypes, char *text)
{
    size_t n = 0;
    for (unsigned d = 0; dtypes >> d != 0; d++) {
        if ((dtypes >> d & 1) == 0) continue;
        bool last = dtypes >> d >> 1 == 0;
        n += (size_t)snprintf(text + n, n < VALIDATE_TEXT ? VALIDATE_TEXT - n : 0, "%s%s",
                              n == 0 ? ""
                              : last ? " or "
                                     : ", ",
                              moe_dtype_name((moe_dtype)d));
        if (n > VALIDATE_TEXT) n = VALIDATE_TEXT;
    }
    return text;
}

static moe_status check_dtype(const char *name, moe_dtype dtype, unsigned dtypes)
{
    char field[64];
    snprintf(field, sizeof field, "%s.dtype", name);
    moe_status s = validate_enumerator(field, (int)dtype, MOE_DTYPE_NONE, VALIDATE_LAST_DTYPE);
    if (s != MOE_OK || (dtypes & BIT(dtype)) != 0) return s;
    if (dtype == MOE_DTYPE_NONE) return error_set(MOE_E_NULL_ARG, "%s = none: required", field);
    return error_set(MOE_E_DTYPE, "%s = %s: this array does not take it", field,
                     moe_dtype_name(dtype));
}

static moe_status check_stride(const char *name, const char *field, int64_t stride, size_t step,
                               size_t least)
{
    if (stride < 0 || (uint64_t)stride < least)
        return error_set(MOE_E_VALUE, "%s.%s = %lld: must be at least %zu", name, field,
                         (long long)stride, least);
    if ((uint64_t)stride % step != 0)
        return error_set(MOE_E_ALIGN, "%s.%s = %lld: must be a multiple of the element's %zu bytes",
                         name, field, (long long)stride, step);
    return MOE_OK;
}

/* The bytes from an array's first element to the end of its last fit. */
static bool extent_fits(const moe_array *a, const array_shape *s, size_t element)
{
    const struct {
        size_t steps;
        int64_t stride;
    } ways[] = {
        {a->data != NULL ? s->experts - 1 : 0, a->expert_stride},
        {s->rows - 1, a->row_stride},
        {s->columns == 0 ? 0 : s->columns - 1, a->column_stride},
    };
    size_t end = element, way;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        if (!checked_mul(ways[i].steps, (size_t)ways[i].stride, &way) ||
            !checked_add(end, way, &end))
            return false;
    return end <= PTRDIFF_MAX;
}

static moe_status check_array(const char *name, const moe_array *a, const array_shape *shape)
{
    size_t element = moe_dtype_size(a->dtype), step = alignment(a->dtype);
    /* neighbours overlap in no matrix: a stride of 0 was forgotten */
    size_t row = shape->columns != 0 && shape->rows > 1 ? element : 0;
    size_t column = shape->columns > 1 ? element : 0;
    moe_status s = MOE_OK;
    if (a->data != NULL) s = check_stride(name, "expert_stride", a->expert_stride, step, 0);
    if (s == MOE_OK) s = check_stride(name, "row_stride", a->row_stride, step, row);
    if (s == MOE_OK && shape->columns != 0)
        s = check_stride(name, "column_stride", a->column_stride, step, column);
    if (s != MOE_OK) return s;
    if ((BIT(a->dtype) & PAIRS) != 0 && a->column_stride != 1)
        return error_set(MOE_E_VALUE, "%s.column_stride = %lld: must be 1 with %s", name,
                         (long long)a->column_stride, moe_dtype_name(a->dtype));
    if (!extent_fits(a, shape, element))
        return error_set(MOE_E_OVERFLOW,
                         "%s: %zu experts of [%zu, %zu] with strides %lld, %lld, %lld: its bytes "
                         "do not fit in size_t",
                         name, shape->experts, shape->rows, shape->columns,
                         (long long)a->expert_stride, (long long)a->row_stride,
                         (long long)a->column_stride);
    return MOE_OK;
}

static moe_status check_address(const char *name, const void *at, size_t step)
{
    if (at == NULL) return error_set(MOE_E_NULL_ARG, "%s = NULL: required", name);
    if ((uintptr_t)at % step != 0)
        return error_set(MOE_E_ALIGN, "%s = %p: must be aligned to %zu bytes", name, at, step);
    return MOE_OK;
}

static moe_status check_array_data(const char *name, const moe_array *a, size_t experts)
{
    char field[96];
    size_t step = alignment(a->dtype);
    if (a->dtype == MOE_DTYPE_NONE) return MOE_OK;
    if (a->data != NULL && a->experts != NULL)
        return error_set(MOE_E_UNSUPPORTED, "%s.data and %s.experts are both given: one says it",
                         name, name);
    snprintf(field, sizeof field, "%s.data", name);
    if (a->experts == NULL) return check_address(field, a->data, step);
    for (size_t e = 0; e < experts; e++) {
        snprintf(field, sizeof field, "%s.experts[%zu]", name, e);
        moe_status s = check_address(field, a->experts[e], step);
        if (s != MOE_OK) return s;
    }
    return MOE_OK;
}

/* ---- the arrays of the description ----------------------------------------------------------- */

static const char *const matrix_names[] = {"gate", "up", "down"};

static const moe_matrix *matrix_of(const moe_experts_args *a, size_t i)
{
    return i == 0 ? &a->gate : i == 1 ? &a->up : &a->down;
}

enum { WEIGHTS_ARRAY, SCALE_ARRAY, BIAS_ARRAY, ROW_SCALE_ARRAY, ARRAYS };

static const char *const array_names[ARRAYS] = {"weights", "scale", "bias", "row_scale"};

static const moe_array *array_of(const moe_matrix *m, size_t i)
{
    const moe_array *const arrays[ARRAYS] = {&m->weights, &m->scale, &m->bias, &m->row_scale};
    return arrays[i];
}

enum { NAME = 32 };

/* "gate.weights" in text[NAME]. */
static const char *array_text(size_t matrix, size_t array, char *text)
{
    snprintf(text, NAME, "%s.%s", matrix_names[matrix], array_names[array]);
    return text;
}

bool validate_given_array(const moe_experts_args *a, char *text)
{
    for (size_t i = 0; i < 3 * ARRAYS; i++)
        if (array_of(matrix_of(a, i / ARRAYS), i % ARRAYS)->dtype != MOE_DTYPE_NONE) {
            array_text(i / ARRAYS, i % ARRAYS, text);
            return true;
        }
    return false;
}

/* ---- element types and scales ---------------------------------------------------------------- */

/* What scales there are: the rows of the table at moe_matrix. */
typedef struct scale_rule {
    unsigned weights, scale; /* element types */
    int32_t k[3];            /* scale_k, the last one repeated */
    const char *k_text;
    bool grid;     /* scale_rows is 1 or more, else 0 */
    bool blocks;   /* the scales are of blocks, so that a row_scale can lie beside them */
    size_t step_k; /* k is a multiple of it; 0: of scale_k; 1: of an element's k */
} scale_rule;

static const scale_rule rules[] = {
    {FLOATS | BIT(MOE_E4M3_IEEE) | BIT(MOE_E4M3FN), FLOATS | NONE, {0, 0, 0}, "0", false, false, 1},
    {BIT(MOE_E4M3FN), FLOATS, {128, 128, 128}, "128, or 0 for scales of rows", true, true, 1},
    {BIT(MOE_E4M3FN) | BIT(MOE_E2M1_X2), BIT(MOE_E8M0), {0, 32, 32}, "32 or 0", false, true, 32},
    {BIT(MOE_E2M1_X2), BIT(MOE_E4M3FN), {16, 16, 16}, "16", false, true, 0},
    {BIT(MOE_INT4_X2),
     BIT(MOE_BF16) | BIT(MOE_F16),
     {32, 64, 128},
     "32, 64 or 128",
     false,
     true,
     0},
    {BLOCKS, NONE, {0, 0, 0}, "0", false, true, 1},
};

kernel_format validate_matrix_format(const moe_matrix *m)
{
    const kernel_format int4[2][3] = {
        {FORMAT_INT4_BF16_32, FORMAT_INT4_BF16_64, FORMAT_INT4_BF16_128},
        {FORMAT_INT4_F16_32, FORMAT_INT4_F16_64, FORMAT_INT4_F16_128},
    };
    switch (m->weights.dtype) {
    case MOE_BF16: return FORMAT_BF16;
    case MOE_F16: return FORMAT_F16;
    case MOE_F32: return FORMAT_F32;
    case MOE_E4M3_IEEE: return FORMAT_E4M3_IEEE;
    case MOE_E4M3FN:
        return m->scale.dtype == MOE_E8M0 ? FORMAT_MXFP8
               : m->scale_k != 0          ? FORMAT_FP8_BLOCK
                                          : FORMAT_E4M3FN;
    case MOE_E2M1_X2: return m->scale.dtype == MOE_E8M0 ? FORMAT_MXFP4 : FORMAT_NVFP4;
    case MOE_INT4_X2: return int4[m->scale.dtype == MOE_F16][m->scale_k / 64];
    case MOE_Q8_0: return FORMAT_Q8_0;
    case MOE_Q4_0: return FORMAT_INT4_F16_32;
    case MOE_Q4_K: return FORMAT_Q4_K;
    case MOE_Q5_K: return FORMAT_Q5_K;
    case MOE_Q6_K: return FORMAT_Q6_K;
    case MOE_GGML_MXFP4: return FORMAT_MXFP4;
    default: return FORMAT_NVFP4; /* MOE_GGML_NVFP4 */
    }
}

/* The rule for a matrix whose element types are known ones, or an error. */
static moe_status find_rule(const char *matrix, const moe_matrix *m, const scale_rule **found)
{
    char text[VALIDATE_TEXT];
    const scale_rule *fits = NULL;
    unsigned scales = 0;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        const scale_rule *r = &rules[i];
        if ((r->weights & BIT(m->weights.dtype)) == 0) continue;
        scales |= r->scale;
        if ((r->scale & BIT(m->scale.dtype)) == 0) continue;
        fits = r;
        if (m->scale_k == r->k[0] || m->scale_k == r->k[1] || m->scale_k == r->k[2]) break;
    }
    if (fits == NULL)
        return error_set(m->scale.dtype == MOE_DTYPE_NONE ? MOE_E_NULL_ARG : MOE_E_DTYPE,
                         "%s.scale.dtype = %s: must be %s with %s weights", matrix,
                         moe_dtype_name(m->scale.dtype), dtypes_text(scales, text),
                         moe_dtype_name(m->weights.dtype));
    if (m->scale_k != fits->k[0] && m->scale_k != fits->k[1] && m->scale_k != fits->k[2])
        return error_set(MOE_E_VALUE, "%s.scale_k = %d: must be %s with %s weights and %s scales",
                         matrix, (int)m->scale_k, fits->k_text, moe_dtype_name(m->weights.dtype),
                         moe_dtype_name(m->scale.dtype));
    if (fits->grid ? m->scale_rows < 1 : m->scale_rows != 0)
        return error_set(MOE_E_VALUE, "%s.scale_rows = %d: must be %s with scale_k = %d", matrix,
                         (int)m->scale_rows, fits->grid ? "at least 1" : "0", (int)m->scale_k);
    if (!fits->blocks && m->row_scale.dtype != MOE_DTYPE_NONE)
        return error_set(MOE_E_UNSUPPORTED,
                         "%s.row_scale.dtype = %s: only beside scales of blocks; %s.scale is what "
                         "scales rows here",
                         matrix, moe_dtype_name(m->row_scale.dtype), matrix);
    *found = fits;
    return MOE_OK;
}

static moe_status check_dtypes(size_t matrix, const moe_matrix *m, const scale_rule **rule)
{
    static const unsigned takes[ARRAYS] = {WEIGHTS, FLOATS | BIT(MOE_E8M0) | BIT(MOE_E4M3FN) | NONE,
                                           FLOATS | NONE, FLOATS | NONE};
    char name[NAME];
    for (size_t i = 0; i < ARRAYS; i++) {
        moe_status s = check_dtype(array_text(matrix, i, name), array_of(m, i)->dtype, takes[i]);
        if (s != MOE_OK) return s;
    }
    return find_rule(matrix_names[matrix], m, rule);
}

/* Experts without a gate have nothing of one. */
static moe_status check_no_gate(const moe_matrix *m)
{
    char name[NAME];
    for (size_t i = 1; i < ARRAYS; i++)
        if (array_of(m, i)->dtype != MOE_DTYPE_NONE)
            return error_set(MOE_E_NULL_ARG, "gate.weights.dtype = none: required with %s",
                             array_text(0, i, name));
    if (m->scale_k == 0 && m->scale_rows == 0) return MOE_OK;
    return error_set(MOE_E_NULL_ARG, "gate.weights.dtype = none: required with gate.scale_%s",
                     m->scale_k != 0 ? "k" : "rows");
}

/* The halves of one panel. */
static moe_status check_alike(const moe_matrix *gate, const moe_matrix *up)
{
    if (up->weights.dtype != gate->weights.dtype)
        return error_set(MOE_E_DTYPE, "up.weights.dtype = %s: must be gate's %s",
                         moe_dtype_name(up->weights.dtype), moe_dtype_name(gate->weights.dtype));
    for (size_t i = 1; i < ARRAYS; i++) {
        bool has = array_of(gate, i)->dtype != MOE_DTYPE_NONE;
        if (has == (array_of(up, i)->dtype != MOE_DTYPE_NONE)) continue;
        return error_set(MOE_E_NULL_ARG,
                         "%s.%s.dtype = none: gate and up both have one, or neither",
                         has ? "up" : "gate", array_names[i]);
    }
    if (validate_matrix_format(up) != validate_matrix_format(gate))
        return error_set(
            MOE_E_DTYPE,
            "up.scale.dtype = %s, scale_k = %d: must be of one kind with gate's %s, %d",
            moe_dtype_name(up->scale.dtype), (int)up->scale_k, moe_dtype_name(gate->scale.dtype),
            (int)gate->scale_k);
    return MOE_OK;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static size_t rows_of(const moe_experts_args *a, size_t matrix)
{
    return (size_t)(matrix == 2 ? a->H : a->I);
}

static size_t k_of(const moe_experts_args *a, size_t matrix)
{
    return (size_t)(matrix == 2 ? a->I : a->H);
}

static moe_status check_k(const moe_experts_args *a, size_t matrix, const scale_rule *r)
{
    const moe_matrix *m = matrix_of(a, matrix);
    size_t element = moe_dtype_k(m->weights.dtype),
           step = r->step_k == 0 ? (size_t)m->scale_k : r->step_k, k = k_of(a, matrix);
    if (step < element) step = element;
    if (k % step == 0) return MOE_OK;
    return error_set(MOE_E_SHAPE, "%s = %zu: must be a multiple of %zu, as %s.weights are %s%s%s",
                     matrix == 2 ? "I" : "H", k, step, matrix_names[matrix],
                     moe_dtype_name(m->weights.dtype),
                     m->scale.dtype != MOE_DTYPE_NONE ? " by " : "",
                     m->scale.dtype != MOE_DTYPE_NONE ? moe_dtype_name(m->scale.dtype) : "");
}

static moe_status check_arrays(const moe_experts_args *a, size_t matrix, const scale_rule *r)
{
    char name[NAME];
    const moe_matrix *m = matrix_of(a, matrix);
    size_t E_L = (size_t)a->E_L, rows = rows_of(a, matrix), k = k_of(a, matrix);
    size_t scale_k = r->scale == BIT(MOE_E8M0) ? KERNEL_BLOCK : (size_t)m->scale_k;
    const array_shape shapes[ARRAYS] = {
        {E_L, rows, k / moe_dtype_k(m->weights.dtype)},
        {E_L, r->grid ? size_pieces(rows, (size_t)m->scale_rows) : rows,
         scale_k == 0 ? 0 : k / scale_k + (k % scale_k != 0)},
        {E_L, rows, 0},
        {E_L, rows, 0},
    };
    moe_status s = MOE_OK;
    for (size_t i = 0; s == MOE_OK && i < ARRAYS; i++)
        if (array_of(m, i)->dtype != MOE_DTYPE_NONE)
            s = check_array(array_text(matrix, i, name), array_of(m, i), &shapes[i]);
    return s;
}

static moe_status check_sizes(const moe_experts_args *a)
{
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"E_L", a->E_L}, {"H", a->H}, {"I", a->I}};
    for (size_t i = 0; i < 3; i++)
        if (sizes[i].value < 1)
            return error_set(MOE_E_DIM, "%s = %lld: must be at least 1", sizes[i].name,
                             (long long)sizes[i].value);
    return MOE_OK;
}

/* ---- the whole ------------------------------------------------------------------------------- */

moe_status validate_matrices(const moe_experts_args *a, bool strides, pack_source *s)
{
    const scale_rule *rule[3] = {NULL};
    bool has_gate = a->gate.weights.dtype != MOE_DTYPE_NONE;
    size_t first = has_gate ? 0 : 1;
    moe_status status = has_gate ? MOE_OK : check_no_gate(&a->gate);
    for (size_t i = first; status == MOE_OK && i < 3; i++)
        status = check_dtypes(i, matrix_of(a, i), &rule[i]);
    if (status == MOE_OK && has_gate) status = check_alike(&a->gate, &a->up);
    if (status == MOE_OK) status = check_sizes(a);
    for (size_t i = first; status == MOE_OK && i < 3; i++) status = check_k(a, i, rule[i]);
    for (size_t i = first; status == MOE_OK && strides && i < 3; i++)
        status = check_arrays(a, i, rule[i]);
    if (status != MOE_OK) return status;
    memset(s, 0, sizeof *s);
    s->E_L = (size_t)a->E_L;
    s->axis = (axis){.H = (size_t)a->H, .I = (size_t)a->I};
    s->ungated = !has_gate;
    s->gate_up = validate_matrix_format(&a->up);
    s->down = validate_matrix_format(&a->down);
    for (size_t i = 0; i < 3; i++) s->matrix[i] = *matrix_of(a, i);
    return MOE_OK;
}

moe_status validate_matrices_data(const moe_experts_args *a, size_t E_L)
{
    char name[NAME];
    moe_status status = MOE_OK;
    for (size_t i = 0; status == MOE_OK && i < 3 * ARRAYS; i++)
        status = check_array_data(array_text(i / ARRAYS, i % ARRAYS, name),
                                  array_of(matrix_of(a, i / ARRAYS), i % ARRAYS), E_L);
    return status;
}

moe_status validate_matrices_no_data(const moe_experts_args *a)
{
    char name[NAME];
    for (size_t i = 0; i < 3 * ARRAYS; i++) {
        const moe_array *array = array_of(matrix_of(a, i / ARRAYS), i % ARRAYS);
        if (array->data == NULL && array->experts == NULL) continue;
        return error_set(
            MOE_E_UNSUPPORTED, "%s.%s is given: not together with fetch, which says it",
            array_text(i / ARRAYS, i % ARRAYS, name), array->data != NULL ? "data" : "experts");
    }
    return MOE_OK;
}

/* ---- what fetch says ------------------------------------------------------------------------- */

/* Everything but the places is as it was described. */
static moe_status check_same(const moe_experts_args *a, size_t count, const moe_experts_args *part)
{
    char name[NAME];
    const struct {
        const char *name;
        int64_t got, want;
    } sizes[] = {
        {"E_L", part->E_L, (int64_t)count},
        {"H", part->H, a->H},
        {"I", part->I, a->I},
        {"packing", part->packing, a->packing},
        {"gate.scale_k", part->gate.scale_k, a->gate.scale_k},
        {"gate.scale_rows", part->gate.scale_rows, a->gate.scale_rows},
        {"up.scale_k", part->up.scale_k, a->up.scale_k},
        {"up.scale_rows", part->up.scale_rows, a->up.scale_rows},
        {"down.scale_k", part->down.scale_k, a->down.scale_k},
        {"down.scale_rows", part->down.scale_rows, a->down.scale_rows},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].got != sizes[i].want)
            return error_set(MOE_E_VALUE, "part->%s = %lld: must stay %lld", sizes[i].name,
                             (long long)sizes[i].got, (long long)sizes[i].want);
    for (size_t i = 0; i < 3 * ARRAYS; i++) {
        moe_dtype got = array_of(matrix_of(part, i / ARRAYS), i % ARRAYS)->dtype,
                  want = array_of(matrix_of(a, i / ARRAYS), i % ARRAYS)->dtype;
        if (got != want)
            return error_set(MOE_E_DTYPE, "part->%s.dtype = %s: must stay %s",
                             array_text(i / ARRAYS, i % ARRAYS, name), moe_dtype_name(got),
                             moe_dtype_name(want));
    }
    return MOE_OK;
}

moe_status validate_fetched(const moe_experts_args *a, size_t count, const moe_experts_args *part,
                            pack_source *s)
{
    moe_status status = check_same(a, count, part);
    if (status == MOE_OK) status = validate_matrices(part, true, s);
    return status != MOE_OK ? status : validate_matrices_data(part, count);
}

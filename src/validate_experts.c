/* SPDX-License-Identifier: Apache-2.0 */
/* validate_experts.c - what is to be packed, in either of its descriptions, and packed experts in
 * a call.
 *
 * An array's strides are free: they are judged only where they would leave the address space,
 * break the element's alignment, or are plainly not filled in. */
#include "checked.h"
#include "error.h"
#include "experts.h"
#include "validate.h"

#include <stdio.h>

#define BIT VALIDATE_BIT
enum {
    FLOATS = VALIDATE_FLOATS,
    WEIGHTS = FLOATS | BIT(MOE_E4M3_IEEE) | BIT(MOE_E4M3FN) | BIT(MOE_E2M1_X2)
};

/* ---- one array ------------------------------------------------------------------------------- */

/* What an array has to be, beside its element type. */
typedef struct array_shape {
    size_t experts, rows, columns; /* columns in elements of memory; 0: an array [rows] */
} array_shape;

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

static moe_status check_stride(const char *name, const char *field, int64_t stride, size_t element,
                               size_t least)
{
    if (stride < 0 || (uint64_t)stride < least)
        return error_set(MOE_E_VALUE, "%s.%s = %lld: must be at least %zu", name, field,
                         (long long)stride, least);
    if ((uint64_t)stride % element != 0)
        return error_set(MOE_E_ALIGN, "%s.%s = %lld: must be a multiple of the element's %zu bytes",
                         name, field, (long long)stride, element);
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
    size_t element = moe_dtype_size(a->dtype);
    /* neighbours overlap in no matrix: a stride of 0 was forgotten */
    size_t row = shape->columns != 0 && shape->rows > 1 ? element : 0;
    size_t column = shape->columns > 1 ? element : 0;
    moe_status s = MOE_OK;
    if (a->data != NULL) s = check_stride(name, "expert_stride", a->expert_stride, element, 0);
    if (s == MOE_OK) s = check_stride(name, "row_stride", a->row_stride, element, row);
    if (s == MOE_OK && shape->columns != 0)
        s = check_stride(name, "column_stride", a->column_stride, element, column);
    if (s != MOE_OK) return s;
    if (a->dtype == MOE_E2M1_X2 && a->column_stride != 1)
        return error_set(MOE_E_VALUE, "%s.column_stride = %lld: must be 1 with e2m1_x2", name,
                         (long long)a->column_stride);
    if (!extent_fits(a, shape, element))
        return error_set(MOE_E_OVERFLOW,
                         "%s: %zu experts of [%zu, %zu] with strides %lld, %lld, %lld: its bytes "
                         "do not fit in size_t",
                         name, shape->experts, shape->rows, shape->columns,
                         (long long)a->expert_stride, (long long)a->row_stride,
                         (long long)a->column_stride);
    return MOE_OK;
}

static moe_status check_address(const char *name, const void *at, size_t element)
{
    if (at == NULL) return error_set(MOE_E_NULL_ARG, "%s = NULL: required", name);
    if ((uintptr_t)at % element != 0)
        return error_set(MOE_E_ALIGN, "%s = %p: must be aligned to %zu bytes", name, at, element);
    return MOE_OK;
}

static moe_status check_array_data(const char *name, const moe_array *a, size_t experts)
{
    char field[96];
    size_t element = moe_dtype_size(a->dtype);
    if (a->dtype == MOE_DTYPE_NONE) return MOE_OK;
    if (a->data != NULL && a->experts != NULL)
        return error_set(MOE_E_UNSUPPORTED, "%s.data and %s.experts are both given: one says it",
                         name, name);
    snprintf(field, sizeof field, "%s.data", name);
    if (a->experts == NULL) return check_address(field, a->data, element);
    for (size_t e = 0; e < experts; e++) {
        snprintf(field, sizeof field, "%s.experts[%zu]", name, e);
        moe_status s = check_address(field, a->experts[e], element);
        if (s != MOE_OK) return s;
    }
    return MOE_OK;
}

/* ---- matrices -------------------------------------------------------------------------------- */

static const char *const matrix_names[] = {"gate", "up", "down"};

static const moe_matrix *matrix_of(const moe_experts_args *a, size_t i)
{
    return i == 0 ? &a->gate : i == 1 ? &a->up : &a->down;
}

static bool is_mx(const moe_matrix *m)
{
    return m->weights.dtype == MOE_E2M1_X2 || m->scale.dtype == MOE_E8M0;
}

static kernel_format format_of(const moe_matrix *m)
{
    switch (m->weights.dtype) {
    case MOE_BF16: return FORMAT_BF16;
    case MOE_F16: return FORMAT_F16;
    case MOE_F32: return FORMAT_F32;
    case MOE_E4M3_IEEE: return FORMAT_E4M3_IEEE;
    case MOE_E4M3FN: return is_mx(m) ? FORMAT_MXFP8 : FORMAT_E4M3FN;
    default: return FORMAT_MXFP4;
    }
}

/* Element types: of each array alone, and of a matrix's three. */
static moe_status check_matrix_dtypes(const char *matrix, const moe_matrix *m)
{
    char name[32];
    snprintf(name, sizeof name, "%s.weights", matrix);
    moe_status s = check_dtype(name, m->weights.dtype, WEIGHTS);
    snprintf(name, sizeof name, "%s.bias", matrix);
    if (s == MOE_OK) s = check_dtype(name, m->bias.dtype, FLOATS | BIT(MOE_DTYPE_NONE));
    snprintf(name, sizeof name, "%s.scale", matrix);
    if (s == MOE_OK)
        s = check_dtype(name, m->scale.dtype, FLOATS | BIT(MOE_E8M0) | BIT(MOE_DTYPE_NONE));
    if (s != MOE_OK) return s;
    if (m->weights.dtype == MOE_E2M1_X2 && m->scale.dtype != MOE_E8M0)
        return error_set(m->scale.dtype == MOE_DTYPE_NONE ? MOE_E_NULL_ARG : MOE_E_DTYPE,
                         "%s.dtype = %s: must be e8m0 with e2m1_x2 weights", name,
                         moe_dtype_name(m->scale.dtype));
    if (m->scale.dtype == MOE_E8M0 && m->weights.dtype != MOE_E2M1_X2 &&
        m->weights.dtype != MOE_E4M3FN)
        return error_set(MOE_E_DTYPE, "%s.dtype = e8m0: needs e2m1_x2 or e4m3fn weights, not %s",
                         name, moe_dtype_name(m->weights.dtype));
    return MOE_OK;
}

static moe_status both_or_neither(const char *array, moe_dtype gate, moe_dtype up)
{
    if ((gate == MOE_DTYPE_NONE) == (up == MOE_DTYPE_NONE)) return MOE_OK;
    return error_set(MOE_E_NULL_ARG, "%s.%s.dtype = none: gate and up both have one, or neither",
                     gate == MOE_DTYPE_NONE ? "gate" : "up", array);
}

/* The three matrices' element types together. */
static moe_status check_dtypes(const moe_experts_args *a)
{
    for (size_t i = 0; i < 3; i++) {
        moe_status s = check_matrix_dtypes(matrix_names[i], matrix_of(a, i));
        if (s != MOE_OK) return s;
    }
    if (a->up.weights.dtype != a->gate.weights.dtype)
        return error_set(MOE_E_DTYPE, "up.weights.dtype = %s: must be gate's %s",
                         moe_dtype_name(a->up.weights.dtype),
                         moe_dtype_name(a->gate.weights.dtype));
    moe_status s = both_or_neither("scale", a->gate.scale.dtype, a->up.scale.dtype);
    if (s == MOE_OK) s = both_or_neither("bias", a->gate.bias.dtype, a->up.bias.dtype);
    if (s != MOE_OK) return s;
    for (size_t i = 1; i < 3; i++)
        if (is_mx(matrix_of(a, i)) != is_mx(&a->gate))
            return error_set(MOE_E_DTYPE,
                             "%s.scale.dtype = %s with gate's %s: all three are MX or none is",
                             matrix_names[i], moe_dtype_name(matrix_of(a, i)->scale.dtype),
                             moe_dtype_name(a->gate.scale.dtype));
    return MOE_OK;
}

static moe_status check_matrix(const moe_experts_args *a, size_t i)
{
    char name[32];
    const moe_matrix *m = matrix_of(a, i);
    size_t E_L = (size_t)a->E_L, rows = (size_t)(i == 2 ? a->H : a->I),
           k = (size_t)(i == 2 ? a->I : a->H);
    size_t columns = m->weights.dtype == MOE_E2M1_X2 ? k / 2 : k;
    snprintf(name, sizeof name, "%s.weights", matrix_names[i]);
    moe_status s = check_array(name, &m->weights, &(array_shape){E_L, rows, columns});
    snprintf(name, sizeof name, "%s.scale", matrix_names[i]);
    if (s == MOE_OK && m->scale.dtype != MOE_DTYPE_NONE)
        s = check_array(name, &m->scale,
                        &(array_shape){E_L, rows, is_mx(m) ? k / KERNEL_BLOCK : 0});
    snprintf(name, sizeof name, "%s.bias", matrix_names[i]);
    if (s == MOE_OK && m->bias.dtype != MOE_DTYPE_NONE)
        s = check_array(name, &m->bias, &(array_shape){E_L, rows, 0});
    return s;
}

static moe_status check_sizes(const moe_experts_args *a)
{
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"E_L", a->E_L}, {"H", a->H}, {"I", a->I}};
    for (size_t i = 0; i < 3; i++) {
        if (sizes[i].value < 1)
            return error_set(MOE_E_DIM, "%s = %lld: must be at least 1", sizes[i].name,
                             (long long)sizes[i].value);
        if (i > 0 && is_mx(&a->gate) && sizes[i].value % KERNEL_BLOCK != 0)
            return error_set(MOE_E_SHAPE, "%s = %lld: must be a multiple of %d with MX weights",
                             sizes[i].name, (long long)sizes[i].value, KERNEL_BLOCK);
    }
    return MOE_OK;
}

static moe_status matrices(const moe_experts_args *a, pack_source *s)
{
    moe_status status = check_dtypes(a);
    if (status == MOE_OK) status = check_sizes(a);
    for (size_t i = 0; status == MOE_OK && i < 3; i++) status = check_matrix(a, i);
    if (status != MOE_OK) return status;
    memset(s, 0, sizeof *s);
    s->E_L = (size_t)a->E_L;
    s->axis = (axis){.H = (size_t)a->H, .I = (size_t)a->I};
    s->gate_up = format_of(&a->gate);
    s->down = format_of(&a->down);
    for (size_t i = 0; i < 3; i++) s->matrix[i] = *matrix_of(a, i);
    return MOE_OK;
}

/* ---- either description ---------------------------------------------------------------------- */

/* The first array of the row-major description that is given, or NULL. */
static const char *given_array(const moe_experts_args *a)
{
    static const char *const names[3][3] = {{"gate.weights", "gate.scale", "gate.bias"},
                                            {"up.weights", "up.scale", "up.bias"},
                                            {"down.weights", "down.scale", "down.bias"}};
    for (size_t i = 0; i < 3; i++) {
        const moe_matrix *m = matrix_of(a, i);
        if (m->weights.dtype != MOE_DTYPE_NONE) return names[i][0];
        if (m->scale.dtype != MOE_DTYPE_NONE) return names[i][1];
        if (m->bias.dtype != MOE_DTYPE_NONE) return names[i][2];
    }
    return NULL;
}

static operator_weights tensors_of(const moe_experts_args *a)
{
    return (operator_weights){a->expert_gate_up_weights,       a->expert_down_weights,
                              a->expert_gate_up_bias,          a->expert_down_bias,
                              a->expert_gate_up_weights_scale, a->expert_down_weights_scale};
}

static bool has_tensors(const operator_weights *w)
{
    return w->gate_up != NULL || w->down != NULL || w->gate_up_bias != NULL ||
           w->down_bias != NULL || w->gate_up_scale != NULL || w->down_scale != NULL;
}

static moe_status tensors(const moe_experts_args *a, const operator_weights *w, pack_source *s)
{
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"E_L", a->E_L}, {"H", a->H}, {"I", a->I}};
    for (size_t i = 0; i < 3; i++)
        if (sizes[i].value != 0)
            return error_set(MOE_E_UNSUPPORTED,
                             "%s = %lld: must be 0 with the operator's tensors, which say it",
                             sizes[i].name, (long long)sizes[i].value);
    moe_status status = validate_operator_tensors(w);
    return status != MOE_OK ? status : validate_operator_weights(w, 0, s);
}

static moe_status check_packing(const moe_experts_args *a, const pack_source *s)
{
    if (a->packing != MOE_PACK_LOSSLESS || (s->gate_up == FORMAT_BF16 && s->down == FORMAT_BF16))
        return MOE_OK;
    bool down = s->gate_up == FORMAT_BF16;
    moe_dtype dtype =
        a->expert_gate_up_weights == NULL
            ? (down ? a->down.weights.dtype : a->gate.weights.dtype)
            : (down ? a->expert_down_weights->dtype : a->expert_gate_up_weights->dtype);
    return error_set(MOE_E_UNSUPPORTED, "packing = LOSSLESS: needs bf16 weights, not %s",
                     moe_dtype_name(dtype));
}

moe_status validate_experts(const moe_experts_args *a, pack_source *s)
{
    if (a == NULL) return error_set(MOE_E_NULL_ARG, "args = NULL: required");
    moe_status status = error_struct_size(a, sizeof *a, "moe_experts_args");
    if (status == MOE_OK)
        status = validate_enumerator("packing", (int)a->packing, 0, MOE_PACK_LOSSLESS);
    if (status != MOE_OK) return status;
    operator_weights w = tensors_of(a);
    const char *array = given_array(a);
    if (array != NULL && has_tensors(&w))
        return error_set(MOE_E_UNSUPPORTED,
                         "%s is given together with the operator's tensors: one says it", array);
    if (array == NULL && !has_tensors(&w))
        return error_set(MOE_E_NULL_ARG,
                         "gate.weights.dtype = none and expert_gate_up_weights = NULL: one of them "
                         "is required");
    status = array != NULL ? matrices(a, s) : tensors(a, &w, s);
    return status != MOE_OK ? status : check_packing(a, s);
}

moe_status validate_experts_data(const moe_experts_args *a, const pack_source *s)
{
    operator_weights w = tensors_of(a);
    const struct {
        const char *name;
        const moe_tensor *t;
    } given[] = {
        {"expert_gate_up_weights", w.gate_up},
        {"expert_down_weights", w.down},
        {"expert_gate_up_bias", w.gate_up_bias},
        {"expert_down_bias", w.down_bias},
        {"expert_gate_up_weights_scale", w.gate_up_scale},
        {"expert_down_weights_scale", w.down_scale},
    };
    moe_status status = MOE_OK;
    for (size_t i = 0; status == MOE_OK && i < sizeof given / sizeof given[0]; i++)
        if (given[i].t != NULL) status = validate_pointer(given[i].name, given[i].t, 0, 0, false);
    for (size_t i = 0; status == MOE_OK && i < 3 && w.gate_up == NULL; i++) {
        char name[32];
        const moe_matrix *m = matrix_of(a, i);
        snprintf(name, sizeof name, "%s.weights", matrix_names[i]);
        status = check_array_data(name, &m->weights, s->E_L);
        snprintf(name, sizeof name, "%s.scale", matrix_names[i]);
        if (status == MOE_OK) status = check_array_data(name, &m->scale, s->E_L);
        snprintf(name, sizeof name, "%s.bias", matrix_names[i]);
        if (status == MOE_OK) status = check_array_data(name, &m->bias, s->E_L);
    }
    return status;
}

/* ---- a call with packed experts -------------------------------------------------------------- */

moe_status validate_handle(const moe_tkg_args *a)
{
    if (a->experts == NULL) return MOE_OK;
    const struct {
        const char *name;
        const moe_tensor *t;
    } packed[] = {
        {"expert_gate_up_weights", a->expert_gate_up_weights},
        {"expert_down_weights", a->expert_down_weights},
        {"expert_gate_up_bias", a->expert_gate_up_bias},
        {"expert_down_bias", a->expert_down_bias},
        {"expert_gate_up_weights_scale", a->expert_gate_up_weights_scale},
        {"expert_down_weights_scale", a->expert_down_weights_scale},
    };
    for (size_t i = 0; i < sizeof packed / sizeof packed[0]; i++)
        if (packed[i].t != NULL)
            return error_set(MOE_E_UNSUPPORTED,
                             "%s is given: not together with experts, which hold it",
                             packed[i].name);
    return experts_check(a->experts);
}

moe_status validate_packed(const moe_tkg_args *a, problem *p)
{
    const moe_experts *x = a->experts;
    if (p->axis.H != x->axis.H)
        return error_set(MOE_E_SHAPE, "hidden_input: H = %zu: must be %zu, that of experts",
                         p->axis.H, x->axis.H);
    p->experts = x;
    p->E_L = x->E_L;
    p->axis = x->axis;
    p->gate_up = x->layout.gate_up;
    p->down = x->layout.down;
    p->mx = kernel_is_mx(p->gate_up);
    if (p->mx && !p->axis.strided && a->hidden_input->layout == MOE_LAYOUT_SBUF)
        return error_set(MOE_E_UNSUPPORTED,
                         "hidden_input: layout = SBUF: with MX weights only in the operator's own "
                         "layout, experts were row-major");
    return MOE_OK;
}

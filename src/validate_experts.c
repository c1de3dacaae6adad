/* SPDX-License-Identifier: Apache-2.0 */
/* validate_experts.c - what is to be packed, in either of its descriptions, and packed experts in
 * a call.  validate_matrix.c judges the row-major one. */
#include "error.h"
#include "experts.h"
#include "validate.h"

/* ---- either description ---------------------------------------------------------------------- */

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
    if (a->fetch != NULL)
        return error_set(MOE_E_UNSUPPORTED,
                         "fetch is given: not together with the operator's tensors");
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
            ? (down ? a->down.weights.dtype : a->up.weights.dtype)
            : (down ? a->expert_down_weights->dtype : a->expert_gate_up_weights->dtype);
    return error_set(MOE_E_UNSUPPORTED, "packing = LOSSLESS: needs bf16 weights, not %s",
                     moe_dtype_name(dtype));
}

/* The row-major description; with fetch, of arrays whose places are not said yet. */
static moe_status matrices(const moe_experts_args *a, pack_source *s)
{
    if (a->fetch == NULL) return validate_matrices(a, true, s);
    if (a->fetch_count < 1)
        return error_set(MOE_E_VALUE, "fetch_count = %lld: must be at least 1 with fetch",
                         (long long)a->fetch_count);
    moe_status status = validate_matrices(a, false, s);
    return status != MOE_OK ? status : validate_matrices_no_data(a);
}

moe_status validate_experts(const moe_experts_args *a, pack_source *s)
{
    if (a == NULL) return error_set(MOE_E_NULL_ARG, "args = NULL: required");
    moe_status status = error_struct_size(a, sizeof *a, "moe_experts_args");
    if (status == MOE_OK)
        status = validate_enumerator("packing", (int)a->packing, 0, MOE_PACK_LOSSLESS);
    if (status != MOE_OK) return status;
    operator_weights w = tensors_of(a);
    char array[VALIDATE_TEXT];
    bool given = validate_given_array(a, array);
    if (given && has_tensors(&w))
        return error_set(MOE_E_UNSUPPORTED,
                         "%s is given together with the operator's tensors: one says it", array);
    if (!given && !has_tensors(&w))
        return error_set(MOE_E_NULL_ARG,
                         "up.weights.dtype = none and expert_gate_up_weights = NULL: one of them "
                         "is required");
    status = given ? matrices(a, s) : tensors(a, &w, s);
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
    return status == MOE_OK && w.gate_up == NULL ? validate_matrices_data(a, s->E_L) : status;
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
    bool mx = kernel_is_mx(p->gate_up) || kernel_is_mx(p->down);
    if (mx && !p->axis.strided && a->hidden_input->layout == MOE_LAYOUT_SBUF)
        return error_set(MOE_E_UNSUPPORTED,
                         "hidden_input: layout = SBUF: with MX weights only in the operator's own "
                         "layout, experts were row-major");
    return MOE_OK;
}

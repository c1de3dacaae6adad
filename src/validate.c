/* SPDX-License-Identifier: Apache-2.0 */
/* validate.c - the arguments of a call, judged without reading a tensor: flags, enumerators,
 * scalars, combinations.
 *
 * The rules are those of the operator (docs/operator.md); each refusal names the parameter, its
 * value and what it must be. validate_shape.c and validate_weights.c judge the tensors'
 * descriptions, validate_data.c what their pointers point to; validate_experts.c what is packed. */
#include "validate.h"
#include "error.h"
#include "experts.h"

#include <math.h>

/* ---- single values --------------------------------------------------------------------------- */

static moe_status flag(const char *name, int32_t value)
{
    if (value == 0 || value == 1) return MOE_OK;
    return error_set(MOE_E_BAD_ENUM, "%s = %d: must be 0 or 1", name, (int)value);
}

moe_status validate_enumerator(const char *name, int value, int first, int last)
{
    if (value >= first && value <= last) return MOE_OK;
    return error_set(MOE_E_BAD_ENUM, "%s = %d: must be in [%d, %d]", name, value, first, last);
}

static moe_status check_flags(const moe_tkg_args *a)
{
    const struct {
        const char *name;
        int32_t value;
    } flags[] = {
        {"is_all_expert", a->is_all_expert},
        {"mask_unselected_experts", a->mask_unselected_experts},
        {"output_in_sbuf", a->output_in_sbuf},
        {"is_all_expert_dynamic", a->is_all_expert_dynamic},
        {"skip_invalid_experts", a->skip_invalid_experts},
        {"gate_clamp_upper_limit.given", a->gate_clamp_upper_limit.given},
        {"gate_clamp_lower_limit.given", a->gate_clamp_lower_limit.given},
        {"up_clamp_upper_limit.given", a->up_clamp_upper_limit.given},
        {"up_clamp_lower_limit.given", a->up_clamp_lower_limit.given},
        {"block_size.given", a->block_size.given},
        {"swiglu_alpha.given", a->swiglu_alpha.given},
        {"swiglu_up_offset.given", a->swiglu_up_offset.given},
        {"act_clamp_upper_limit.given", a->act_clamp_upper_limit.given},
    };
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        moe_status s = flag(flags[i].name, flags[i].value);
        if (s != MOE_OK) return s;
    }
    const struct {
        const char *name;
        int value, last;
    } enums[] = {
        {"expert_affinities_scaling_mode", (int)a->expert_affinities_scaling_mode, MOE_INPUT_SCALE},
        {"activation_fn", (int)a->activation_fn, MOE_RELU2},
        {"act_mode", (int)a->act_mode, MOE_ACT_INT8},
        {"output_dtype", (int)a->output_dtype, VALIDATE_LAST_DTYPE},
    };
    for (size_t i = 0; i < sizeof enums / sizeof enums[0]; i++) {
        moe_status s = validate_enumerator(enums[i].name, enums[i].value, 0, enums[i].last);
        if (s != MOE_OK) return s;
    }
    return MOE_OK;
}

/* ---- combinations ---------------------------------------------------------------------------- */

static moe_status check_modes(const moe_tkg_args *a)
{
    int mode = (int)a->expert_affinities_scaling_mode;
    bool scaled = mode != MOE_NO_SCALE;
    if (a->gate_up_input_scale != NULL || a->down_input_scale != NULL)
        return error_set(MOE_E_UNSUPPORTED, "%s is given: static input scales are not supported",
                         a->gate_up_input_scale != NULL ? "gate_up_input_scale"
                                                        : "down_input_scale");
    if (mode == MOE_PRE_SCALE || mode == MOE_PRE_SCALE_DELAYED)
        return error_set(MOE_E_UNSUPPORTED,
                         "expert_affinities_scaling_mode = %d (%s): must be NO_SCALE, POST_SCALE "
                         "or INPUT_SCALE",
                         mode, mode == MOE_PRE_SCALE ? "PRE_SCALE" : "PRE_SCALE_DELAYED");
    if (a->is_all_expert && scaled && a->rank_id == NULL)
        return error_set(MOE_E_NULL_ARG,
                         "rank_id = NULL: all-expert mode with affinity scaling requires it");
    if (a->is_all_expert && a->expert_affinities_eager != NULL)
        return error_set(MOE_E_UNSUPPORTED,
                         "expert_affinities_eager is given: not in all-expert mode");
    if (a->is_all_expert_dynamic && !a->is_all_expert)
        return error_set(MOE_E_UNSUPPORTED, "is_all_expert_dynamic = 1: only in all-expert mode");
    if (!a->is_all_expert && a->expert_index == NULL)
        return error_set(MOE_E_NULL_ARG, "expert_index = NULL: selective mode requires it");
    if (scaled && a->expert_affinities == NULL && a->expert_affinities_eager == NULL)
        return error_set(MOE_E_NULL_ARG, "expert_affinities = NULL: required with %s",
                         mode == MOE_POST_SCALE ? "POST_SCALE" : "INPUT_SCALE");
    if (a->is_all_expert && scaled && a->mask_unselected_experts && a->expert_index == NULL)
        return error_set(MOE_E_NULL_ARG,
                         "expert_index = NULL: mask_unselected_experts requires it");
    return MOE_OK;
}

static moe_status limit(const char *name, moe_optional_float o, float absent, float *value)
{
    if (o.given && isnan(o.value))
        return error_set(MOE_E_VALUE, "%s = nan: must be a number", name);
    *value = o.given ? o.value : absent;
    return MOE_OK;
}

static moe_status swiglu_parameter(const char *name, bool swiglu, moe_optional_float o)
{
    if (swiglu && !o.given)
        return error_set(MOE_E_NULL_ARG, "%s is not given: MOE_SWIGLU requires it", name);
    if (!swiglu && o.given)
        return error_set(MOE_E_UNSUPPORTED, "%s = %g: only with activation_fn = MOE_SWIGLU", name,
                         (double)o.value);
    if (swiglu && !isfinite(o.value))
        return error_set(MOE_E_VALUE, "%s = %g: must be finite", name, (double)o.value);
    return MOE_OK;
}

/* Fills p->point: SiLU and SwiGLU become Swish with their alpha, a limit that is not given
 * infinite, and no offset -0. */
static moe_status check_point(const moe_tkg_args *a, kernel_point *point)
{
    bool swiglu = a->activation_fn == MOE_SWIGLU;
    moe_status s = swiglu_parameter("swiglu_alpha", swiglu, a->swiglu_alpha);
    if (s == MOE_OK) s = swiglu_parameter("swiglu_up_offset", swiglu, a->swiglu_up_offset);
    if (s == MOE_OK)
        s = limit("gate_clamp_upper_limit", a->gate_clamp_upper_limit, INFINITY,
                  &point->gate_upper);
    if (s == MOE_OK)
        s = limit("gate_clamp_lower_limit", a->gate_clamp_lower_limit, -INFINITY,
                  &point->gate_lower);
    if (s == MOE_OK)
        s = limit("up_clamp_upper_limit", a->up_clamp_upper_limit, INFINITY, &point->up_upper);
    if (s == MOE_OK)
        s = limit("up_clamp_lower_limit", a->up_clamp_lower_limit, -INFINITY, &point->up_lower);
    if (s == MOE_OK)
        s = limit("act_clamp_upper_limit", a->act_clamp_upper_limit, INFINITY, &point->act_upper);
    if (s != MOE_OK) return s;
    bool swish = swiglu || a->activation_fn == MOE_SILU || a->activation_fn == MOE_SWISH;
    point->activation = swish ? MOE_SWISH : a->activation_fn;
    point->alpha = swiglu ? a->swiglu_alpha.value : a->activation_fn == MOE_SWISH ? 1.702f : 1.0f;
    point->up_offset =
        swiglu && a->swiglu_up_offset.value != 0.0f ? a->swiglu_up_offset.value : -0.0f;
    return MOE_OK;
}

/* The operator's rule for the block size of its dynamic mode.  No tokens, no blocks: T = 0
 * leaves the rules on T out. */
static moe_status check_block_size(const moe_tkg_args *a, int64_t T)
{
    if (!a->block_size.given) return MOE_OK;
    int64_t b = a->block_size.value, step = b < 32 ? 8 : b < 128 ? 32 : 128;
    if (b >= 1 && b % step == 0 && (T == 0 || (T % b == 0 && b <= T / 2))) return MOE_OK;
    return error_set(
        MOE_E_VALUE,
        "block_size = %lld: must divide T = %lld, be at most T / 2, and be a multiple of 8 "
        "below 32, of 32 below 128, of 128 from there",
        (long long)b, (long long)T);
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* The element types of the weights, as they were given. */
static const char *weights_text(const problem *p, bool down)
{
    const moe_experts *x = p->experts;
    if (x != NULL) return moe_dtype_name(down ? x->down : x->gate_up);
    return moe_dtype_name(down ? p->args->expert_down_weights->dtype
                               : p->args->expert_gate_up_weights->dtype);
}

bool problem_takes(const problem *p, moe_act_mode mode)
{
    return mode == MOE_ACT_MXFP8  ? kernel_is_mx(p->gate_up) && kernel_is_mx(p->down)
           : mode == MOE_ACT_INT8 ? kernel_takes_int8(p->gate_up) && kernel_takes_int8(p->down)
                                  : true;
}

static moe_status check_act(const moe_tkg_args *a, problem *p)
{
    p->act = a->act_mode != MOE_ACT_DEFAULT ? a->act_mode
             : p->axis.strided              ? MOE_ACT_MXFP8
                                            : MOE_ACT_EXACT;
    if (problem_takes(p, p->act)) return MOE_OK;
    if (p->act == MOE_ACT_MXFP8)
        return error_set(MOE_E_UNSUPPORTED, "act_mode = MXFP8: needs MX weights, not %s and %s",
                         weights_text(p, false), weights_text(p, true));
    return error_set(MOE_E_UNSUPPORTED,
                     "act_mode = INT8: needs MXFP4, NVFP4 or integer weights, not %s and %s",
                     weights_text(p, false), weights_text(p, true));
}

/* What says something of a gate, where the experts have none. */
static moe_status check_gate(const moe_tkg_args *a, problem *p)
{
    p->point.ungated = p->experts != NULL && p->experts->layout.ungated;
    if (!p->point.ungated) return MOE_OK;
    const struct {
        const char *name;
        moe_optional_float limit;
    } limits[] = {{"gate_clamp_upper_limit", a->gate_clamp_upper_limit},
                  {"gate_clamp_lower_limit", a->gate_clamp_lower_limit}};
    for (size_t i = 0; i < 2; i++)
        if (limits[i].limit.given)
            return error_set(MOE_E_UNSUPPORTED, "%s = %g: experts have no gate", limits[i].name,
                             (double)limits[i].limit.value);
    if (a->activation_fn == MOE_SWIGLU)
        return error_set(MOE_E_UNSUPPORTED, "activation_fn = %d (MOE_SWIGLU): experts have no gate",
                         MOE_SWIGLU);
    return MOE_OK;
}

moe_status problem_shape(const moe_tkg_args *args, problem *p)
{
    memset(p, 0, sizeof *p);
    if (args == NULL) return error_set(MOE_E_NULL_ARG, "args = NULL: required");
    moe_status s = error_struct_size(args, sizeof *args, "moe_tkg_args");
    if (s == MOE_OK) s = check_flags(args);
    if (s == MOE_OK) s = validate_handle(args);
    if (s == MOE_OK) s = validate_tensors(args);
    if (s == MOE_OK) s = check_modes(args);
    if (s == MOE_OK) s = check_point(args, &p->point);
    if (s != MOE_OK) return s;
    p->args = args;
    p->all_expert = args->is_all_expert;
    p->scaled = args->expert_affinities_scaling_mode != MOE_NO_SCALE;
    p->input_scaled = args->expert_affinities_scaling_mode == MOE_INPUT_SCALE;
    p->masked = p->all_expert && p->scaled && args->mask_unselected_experts;
    s = validate_shapes(args, p);
    if (s == MOE_OK) s = check_gate(args, p);
    if (s == MOE_OK) s = check_block_size(args, (int64_t)p->T);
    if (s == MOE_OK) s = check_act(args, p);
    return s;
}

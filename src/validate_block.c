/* SPDX-License-Identifier: Apache-2.0 */
/* validate_block.c - the arguments of a block: each part's own rules, what the parts have to agree
 * in, and what memory they share.
 *
 * Experts and shared expert are judged as calls of their own (validate.c), with tensors that the
 * router will fill in place of those that are not given. */
#include "block.h"
#include "error.h"
#include "experts.h"
#include "validate.h"
#include "validate_router.h"

#include <math.h>

/* ---- the experts ----------------------------------------------------------------------------- */

/* What the router makes is not given. */
static moe_status check_routing(const moe_block_args *a)
{
    const moe_tkg_args *e = &a->experts;
    const struct {
        const char *name;
        bool given;
    } made[] = {{"experts.expert_index", e->expert_index != NULL},
                {"experts.expert_affinities", e->expert_affinities != NULL},
                {"experts.expert_affinities_eager", e->expert_affinities_eager != NULL},
                {"experts.mask_unselected_experts", e->mask_unselected_experts == 1},
                {"router.x", a->router.x != NULL}};
    for (size_t i = 0; i < sizeof made / sizeof made[0]; i++)
        if (made[i].given)
            return error_set(MOE_E_UNSUPPORTED, "%s is given: the block makes it", made[i].name);
    return MOE_OK;
}

/* T of a hidden input that has not been judged; of one that is refused any number. */
static int64_t tokens_of(const moe_tensor *x)
{
    if (x == NULL || (x->rank != 2 && x->rank != 3)) return 0;
    return x->rank == 2 ? x->shape[0] : (int64_t)((uint64_t)x->shape[0] * (uint64_t)x->shape[1]);
}

static moe_status check_experts(block *b)
{
    moe_tkg_args *e = &b->experts_args;
    const moe_tensor *x = b->args->experts.hidden_input;
    if (x != NULL && x->layout == MOE_LAYOUT_SBUF)
        return error_set(MOE_E_LAYOUT, "hidden_input: layout = SBUF: must be HBM in a block");
    const int64_t T = tokens_of(x), E = (int64_t)b->router.E, K = (int64_t)b->router.K;
    *e = b->args->experts;
    e->struct_size = sizeof *e;
    if (e->expert_affinities_scaling_mode == MOE_NO_SCALE)
        e->expert_affinities_scaling_mode = MOE_POST_SCALE;
    b->index = moe_tensor_2d(NULL, MOE_I32, T, K);
    b->weights = moe_tensor_2d(NULL, MOE_F32, T, K);
    b->affinities = moe_tensor_2d(NULL, MOE_F32, T, E);
    if (e->is_all_expert == 1) {
        e->expert_affinities = &b->affinities; /* zero where not chosen */
    } else {
        e->expert_index = &b->index;
        e->expert_affinities_eager = &b->weights;
    }
    moe_status s = problem_shape(e, &b->experts_problem);
    if (s != MOE_OK) return s;
    b->experts_problem.routed = true;
    const problem *p = &b->experts_problem;
    if (!p->all_expert && b->router.E != p->E_L &&
        !(e->skip_invalid_experts && b->router.E > p->E_L))
        return error_set(MOE_E_SHAPE,
                         "router.E = %zu: must be E_L = %zu, or more with skip_invalid_experts",
                         b->router.E, p->E_L);
    b->T = p->T;
    b->H = p->axis.H;
    b->x = p->hidden;
    b->output = p->output;
    return MOE_OK;
}

/* ---- the shared expert ----------------------------------------------------------------------- */

static moe_status check_shared(block *b)
{
    const moe_block_args *a = b->args;
    moe_tkg_args *s = &b->shared_args;
    const moe_tkg_args *e = &b->experts_args;
    b->shared = a->shared != NULL;
    b->gate = a->shared_gate.dtype != MOE_DTYPE_NONE;
    if (!b->shared && b->gate)
        return error_set(MOE_E_NULL_ARG, "shared = NULL: shared_gate is given");
    if (!b->shared) return MOE_OK;
    if (a->shared->E_L != 1)
        return error_set(MOE_E_SHAPE, "shared: E_L = %zu: must be 1", a->shared->E_L);
    if (a->shared->axis.H != b->H)
        return error_set(MOE_E_SHAPE, "shared: H = %zu: must be hidden_input's %zu",
                         a->shared->axis.H, b->H);
    *s = moe_tkg_args_init();
    s->hidden_input = e->hidden_input;
    s->experts = a->shared;
    s->is_all_expert = 1;
    s->activation_fn = e->activation_fn;
    s->swiglu_alpha = e->swiglu_alpha;
    s->swiglu_up_offset = e->swiglu_up_offset;
    s->gate_clamp_upper_limit = e->gate_clamp_upper_limit;
    s->gate_clamp_lower_limit = e->gate_clamp_lower_limit;
    s->up_clamp_upper_limit = e->up_clamp_upper_limit;
    s->up_clamp_lower_limit = e->up_clamp_lower_limit;
    s->act_clamp_upper_limit = e->act_clamp_upper_limit;
    problem *p = &b->shared_problem;
    moe_status status = problem_shape(s, p);
    if (status != MOE_OK) return status;
    /* the experts' mode where the weights take it, else their own */
    if (e->act_mode != MOE_ACT_DEFAULT)
        p->act = problem_takes(p, e->act_mode) ? e->act_mode : MOE_ACT_EXACT;
    return validate_one_array("shared_gate", &a->shared_gate, false, b->H, 0);
}

/* ---- the norm -------------------------------------------------------------------------------- */

static moe_status check_norm(block *b)
{
    const moe_block_args *a = b->args;
    b->norm = a->gamma.dtype != MOE_DTYPE_NONE;
    if (a->norm_H < 0 || (a->norm_H > 0 && !b->norm))
        return error_set(MOE_E_VALUE, "norm_H = %lld: must be %s", (long long)a->norm_H,
                         b->norm ? "0 or more" : "0 without gamma");
    b->norm_H = (float)(a->norm_H > 0 ? a->norm_H : (int64_t)b->H);
    if (!b->norm) return MOE_OK;
    if (!(a->norm_epsilon >= 0.0f) || isinf(a->norm_epsilon))
        return error_set(MOE_E_VALUE, "norm_epsilon = %g: must be 0 or more, and finite",
                         (double)a->norm_epsilon);
    return validate_one_array("gamma", &a->gamma, false, b->H, 0);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* What the experts are read from, which problem_data has found sound. */
static moe_status add_experts(const block *b, validate_spans *spans)
{
    const moe_tkg_args *e = &b->args->experts;
    const moe_tensor *tensors[] = {e->expert_gate_up_weights,
                                   e->expert_down_weights,
                                   e->expert_gate_up_bias,
                                   e->expert_down_bias,
                                   e->expert_gate_up_weights_scale,
                                   e->expert_down_weights_scale,
                                   b->experts_problem.all_expert ? e->rank_id : NULL};
    const moe_experts *packed[] = {e->experts, b->args->shared};
    moe_status s = MOE_OK;
    for (size_t i = 0; s == MOE_OK && i < sizeof tensors / sizeof tensors[0]; i++) {
        if (tensors[i] == NULL) continue;
        size_t bytes = moe_dtype_size(tensors[i]->dtype);
        for (int d = 0; d < tensors[i]->rank; d++) bytes *= (size_t)tensors[i]->shape[d];
        s = validate_span(spans, "a tensor of experts", tensors[i]->data, bytes, 1, false);
    }
    for (size_t i = 0; s == MOE_OK && i < 2; i++)
        if (packed[i] != NULL)
            s = validate_span(spans, i == 0 ? "experts" : "shared", packed[i], packed[i]->bytes, 1,
                              false);
    return s;
}

static moe_status check_memory(const block *b, const void *output)
{
    const moe_block_args *a = b->args;
    validate_spans spans = {.n = 0};
    const void *x = a->experts.hidden_input->data;
    const size_t n = b->T * b->H, x_bytes = n * moe_dtype_size(b->x),
                 out_bytes = n * moe_dtype_size(b->output);
    moe_status s = MOE_OK;
    if (x != output || x_bytes != out_bytes)
        s = validate_span(&spans, "hidden_input", x, x_bytes, 1, false);
    if (s == MOE_OK) s = validate_span(&spans, "output", output, out_bytes, 1, true);
    if (s == MOE_OK) s = add_experts(b, &spans);
    if (s == MOE_OK && b->norm) s = validate_array_span(&spans, "gamma", &a->gamma, b->H, 1);
    if (s == MOE_OK && b->gate)
        s = validate_array_span(&spans, "shared_gate", &a->shared_gate, b->H, 1);
    return s == MOE_OK ? validate_router_data(&b->router, b->T, &a->routed, true, &spans) : s;
}

moe_status block_check(const moe_block_args *args, const void *output, size_t output_bytes,
                       block *b)
{
    memset(b, 0, sizeof *b);
    if (args == NULL) return error_set(MOE_E_NULL_ARG, "args = NULL: required");
    moe_status s = error_struct_size(args, sizeof *args, "moe_block_args");
    if (s == MOE_OK) s = error_struct_size(&args->experts, sizeof args->experts, "moe_tkg_args");
    if (s == MOE_OK) s = validate_router(&args->router, &b->router);
    if (s == MOE_OK) s = check_routing(args);
    if (s != MOE_OK) return s;
    b->args = args;
    s = check_experts(b);
    if (s == MOE_OK) s = check_shared(b);
    if (s == MOE_OK) s = check_norm(b);
    if (s == MOE_OK) s = validate_router_arrays(&args->router, &b->router, b->H, true);
    if (s == MOE_OK) s = problem_data(output, output_bytes, &b->experts_problem);
    return s == MOE_OK && b->T > 0 ? check_memory(b, output) : s;
}

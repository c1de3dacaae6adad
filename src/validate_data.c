/* SPDX-License-Identifier: Apache-2.0 */
/* validate_data.c - what the tensors of a call point to: presence, alignment, overlap with the
 * output, rank_id and the expert indices.  Reads no other data. */
#include "checked.h"
#include "error.h"
#include "experts.h"
#include "numeric.h"
#include "validate.h"

int64_t problem_integer(const moe_tensor *t, size_t i)
{
    switch (t->dtype) {
    case MOE_I32: return ((const int32_t *)t->data)[i];
    case MOE_U32: return ((const uint32_t *)t->data)[i];
    default: return ((const int64_t *)t->data)[i];
    }
}

float problem_float(const moe_tensor *t, size_t i)
{
    switch (t->dtype) {
    case MOE_BF16: return num_from_bf16(((const uint16_t *)t->data)[i]);
    case MOE_F16: return num_from_f16(((const uint16_t *)t->data)[i]);
    default: return ((const float *)t->data)[i];
    }
}

moe_tensor problem_output(const problem *p, size_t *bytes)
{
    moe_tensor t;
    memset(&t, 0, sizeof t);
    t.dtype = p->output;
    if (p->args->output_in_sbuf) {
        t.layout = MOE_LAYOUT_SBUF;
        t.rank = 3;
        t.shape[0] = 128;
        t.shape[1] = (int64_t)p->T;
        t.shape[2] = (int64_t)(p->axis.H / 128);
    } else {
        t.rank = 2;
        t.shape[0] = (int64_t)p->T;
        t.shape[1] = (int64_t)p->axis.H;
    }
    *bytes = p->T * p->axis.H * moe_dtype_size(p->output);
    return t;
}

moe_status validate_apart(const char *name, const void *at, size_t bytes, uintptr_t out,
                          size_t out_bytes)
{
    uintptr_t first = (uintptr_t)at;
    if (first < out + out_bytes && out < first + bytes)
        return error_set(MOE_E_ALIAS, "output = %p: its %zu bytes overlap %s (%zu bytes at %p)",
                         (void *)out, out_bytes, name, bytes, at);
    return MOE_OK;
}

moe_status validate_pointer(const char *name, const moe_tensor *t, uintptr_t out, size_t out_bytes,
                            bool in_place)
{
    size_t bytes = 0, element = moe_dtype_size(t->dtype);
    checked_shape(t->shape, (size_t)t->rank, element, &bytes); /* fits: check_tensor */
    uintptr_t at = (uintptr_t)t->data;
    if (bytes == 0) return MOE_OK;
    if (t->data == NULL) return error_set(MOE_E_NULL_ARG, "%s: data = NULL: required", name);
    if (at % element != 0)
        return error_set(MOE_E_ALIGN, "%s: data = %p: must be aligned to %zu bytes", name, t->data,
                         element);
    if (in_place && at == out && bytes == out_bytes) return MOE_OK;
    return validate_apart(name, t->data, bytes, out, out_bytes);
}

static moe_status check_pointers(const problem *p, uintptr_t out, size_t out_bytes)
{
    const moe_tkg_args *a = p->args;
    bool eager = a->expert_affinities_eager != NULL, scaled = p->scaled && !p->routed;
    const struct {
        const char *name;
        const moe_tensor *t;
        bool used;
    } tensors[] = {
        {"expert_gate_up_weights", a->expert_gate_up_weights, true},
        {"expert_down_weights", a->expert_down_weights, true},
        {"expert_gate_up_bias", a->expert_gate_up_bias, true},
        {"expert_down_bias", a->expert_down_bias, true},
        {"expert_gate_up_weights_scale", a->expert_gate_up_weights_scale, true},
        {"expert_down_weights_scale", a->expert_down_weights_scale, true},
        {"hidden_input_scale", a->hidden_input_scale, true},
        {"expert_affinities", a->expert_affinities, scaled && !eager},
        {"expert_affinities_eager", a->expert_affinities_eager, scaled},
        {"expert_index", a->expert_index, (!p->all_expert || p->masked) && !p->routed},
        {"rank_id", a->rank_id, p->all_expert && p->scaled},
    };
    moe_status s = validate_pointer("hidden_input", a->hidden_input, out, out_bytes, true);
    for (size_t i = 0; s == MOE_OK && i < sizeof tensors / sizeof tensors[0]; i++)
        if (tensors[i].t != NULL && tensors[i].used)
            s = validate_pointer(tensors[i].name, tensors[i].t, out, out_bytes, false);
    if (s == MOE_OK && p->experts != NULL)
        s = validate_apart("experts", p->experts, p->experts->bytes, out, out_bytes);
    return s;
}

static moe_status check_rank(problem *p)
{
    if (!p->all_expert || !p->scaled) return MOE_OK;
    int64_t rank = problem_integer(p->args->rank_id, 0);
    size_t ranks = p->E / p->E_L;
    if (rank < 0 || (uint64_t)rank >= ranks)
        return error_set(MOE_E_RANK_RANGE,
                         "rank_id = %lld: must be in [0, %zu): E = %zu affinity columns, "
                         "E_L = %zu experts a rank",
                         (long long)rank, ranks, p->E, p->E_L);
    p->rank = (size_t)rank;
    return MOE_OK;
}

static moe_status check_index(const problem *p)
{
    if (p->all_expert || p->args->skip_invalid_experts || p->routed) return MOE_OK;
    for (size_t t = 0; t < p->T; t++)
        for (size_t k = 0; k < p->K; k++) {
            int64_t e = problem_integer(p->args->expert_index, t * p->K + k);
            if (e < 0 || (uint64_t)e >= p->E_L)
                return error_set(MOE_E_EXPERT_INDEX,
                                 "expert_index[%zu][%zu] = %lld: must be in [0, %zu)", t, k,
                                 (long long)e, p->E_L);
        }
    return MOE_OK;
}

moe_status problem_data(const void *output, size_t output_bytes, problem *p)
{
    if (p->T == 0) return MOE_OK;
    size_t bytes, element = moe_dtype_size(p->output);
    problem_output(p, &bytes);
    if (output == NULL) return error_set(MOE_E_NULL_ARG, "output = NULL: required");
    if (output_bytes < bytes)
        return error_set(MOE_E_OVERFLOW, "output_bytes = %zu: must be at least %zu", output_bytes,
                         bytes);
    if ((uintptr_t)output % element != 0)
        return error_set(MOE_E_ALIGN, "output = %p: must be aligned to %zu bytes", output, element);
    moe_status s = check_pointers(p, (uintptr_t)output, bytes);
    if (s == MOE_OK) s = check_rank(p);
    if (s == MOE_OK) s = check_index(p);
    return s;
}

moe_status problem_check(const moe_tkg_args *args, const void *output, size_t output_bytes,
                         problem *p)
{
    moe_status s = problem_shape(args, p);
    return s == MOE_OK ? problem_data(output, output_bytes, p) : s;
}

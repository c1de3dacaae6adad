/* SPDX-License-Identifier: Apache-2.0 */
/* paths.c - calls the operator with a case's tensors, or with experts packed from them. */
#include "paths.h"

#include "case.h"

#include <string.h>

static const char *const NAMES[] = {"raw", "packed", "both"};

const char *path_name(compute_path path)
{
    return NAMES[path];
}

bool path_from_name(const char *text, compute_path *path)
{
    bool raw = strcmp(text, NAMES[PATH_RAW]) == 0;
    *path = raw ? PATH_RAW : PATH_PACKED;
    return raw || strcmp(text, NAMES[PATH_PACKED]) == 0;
}

moe_experts_args path_experts_args(const moe_tkg_args *args)
{
    moe_experts_args e = moe_experts_args_init();
    e.expert_gate_up_weights = args->expert_gate_up_weights;
    e.expert_down_weights = args->expert_down_weights;
    e.expert_gate_up_bias = args->expert_gate_up_bias;
    e.expert_down_bias = args->expert_down_bias;
    e.expert_gate_up_weights_scale = args->expert_gate_up_weights_scale;
    e.expert_down_weights_scale = args->expert_down_weights_scale;
    return e;
}

moe_tkg_args path_with_experts(const moe_tkg_args *args, const moe_experts *experts)
{
    moe_tkg_args a = *args;
    a.expert_gate_up_weights = a.expert_down_weights = NULL;
    a.expert_gate_up_bias = a.expert_down_bias = NULL;
    a.expert_gate_up_weights_scale = a.expert_down_weights_scale = NULL;
    a.experts = experts;
    return a;
}

moe_status path_compute(compute_path path, moe_context *context, const moe_tkg_args *args,
                        moe_tensor *output, size_t *bytes)
{
    if (path != PATH_PACKED) return case_compute(context, args, output, bytes);
    moe_experts *experts = NULL;
    memset(output, 0, sizeof *output);
    /* Of a call that is refused for what it is the case has no data. */
    moe_status status = moe_tkg_output(args, output, bytes);
    if (status != MOE_OK) return status;
    moe_experts_args weights = path_experts_args(args);
    status = moe_experts_create(context, &weights, &experts);
    if (status != MOE_OK) return status;
    moe_tkg_args packed = path_with_experts(args, experts);
    status = case_compute(context, &packed, output, bytes);
    moe_experts_destroy(experts); /* cannot fail here, so that moe_last_error is the call's */
    return status;
}

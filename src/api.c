/* SPDX-License-Identifier: Apache-2.0 */
/* api.c - the public calls on the operator: one call from its check to its result.  No
 * arithmetic. */
#define _POSIX_C_SOURCE 200809L
#include "context.h"
#include "error.h"
#include "experts.h"
#include "forward.h"
#include "fpenv.h"

#include <pthread.h>

#define TEXT_OF(x)  #x
#define VALUE_OF(x) TEXT_OF(x)

const char *moe_version(void)
{
    return VALUE_OF(MOE_VERSION_MAJOR) "." VALUE_OF(MOE_VERSION_MINOR) "." VALUE_OF(
        MOE_VERSION_PATCH);
}

int moe_version_number(void)
{
    return MOE_VERSION_NUMBER;
}

static const struct {
    const char *name;
    size_t size, k;
} dtypes[MOE_DTYPE_COUNT] = {
    [MOE_DTYPE_NONE] = {"none", 0, 0},
    [MOE_BF16] = {"bf16", 2, 1},
    [MOE_F16] = {"f16", 2, 1},
    [MOE_F32] = {"f32", 4, 1},
    [MOE_E4M3_IEEE] = {"e4m3_ieee", 1, 1},
    [MOE_E4M3FN] = {"e4m3fn", 1, 1},
    [MOE_E8M0] = {"e8m0", 1, 1},
    [MOE_MXFP4_X4] = {"mxfp4_x4", 2, 4},
    [MOE_MXFP8_X4] = {"mxfp8_x4", 4, 4},
    [MOE_I32] = {"i32", 4, 1},
    [MOE_U32] = {"u32", 4, 1},
    [MOE_I64] = {"i64", 8, 1},
    [MOE_E2M1_X2] = {"e2m1_x2", 1, 2},
    [MOE_INT4_X2] = {"int4_x2", 1, 2},
    [MOE_Q8_0] = {"q8_0", 34, 32},
    [MOE_Q4_0] = {"q4_0", 18, 32},
    [MOE_Q4_K] = {"q4_k", 144, 256},
    [MOE_Q5_K] = {"q5_k", 176, 256},
    [MOE_Q6_K] = {"q6_k", 210, 256},
    [MOE_GGML_MXFP4] = {"ggml_mxfp4", 17, 32},
    [MOE_GGML_NVFP4] = {"ggml_nvfp4", 36, 64},
};

static bool is_dtype(moe_dtype dtype)
{
    return (size_t)dtype < MOE_DTYPE_COUNT;
}

size_t moe_dtype_size(moe_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].size : 0;
}

size_t moe_dtype_k(moe_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].k : 0;
}

const char *moe_dtype_name(moe_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].name : "unknown";
}

/* Counts a use of the call's packed experts, if it has any: from before their check on, so that
 * they cannot be destroyed meanwhile. */
static moe_status enter(const moe_tkg_args *args, const moe_experts **experts)
{
    bool known = args != NULL && error_struct_size(args, sizeof *args, "moe_tkg_args") == MOE_OK;
    *experts = known ? args->experts : NULL;
    return *experts == NULL ? MOE_OK : experts_enter(*experts);
}

static void leave(const moe_experts *experts)
{
    if (experts != NULL) experts_leave(experts);
}

/* Validation compares numbers of the caller's: in the canonical environment, so that it neither
 * traps nor leaves flags. */
static moe_status check(const moe_tkg_args *args, const void *output, size_t output_bytes,
                        problem *p)
{
    fpenv saved = fpenv_enter();
    moe_status s = problem_check(args, output, output_bytes, p);
    fpenv_leave(saved);
    return s;
}

static moe_status size(const problem *p, const kernel_table *kernels, call_plan *plan)
{
    if (plan_size(p, kernels, plan)) return MOE_OK;
    return error_set(
        MOE_E_OVERFLOW,
        "T = %zu, H = %zu, I = %zu, E_L = %zu: the scratch's bytes do not fit in size_t", p->T,
        p->axis.H, p->axis.I, p->E_L);
}

moe_status moe_tkg_output(const moe_tkg_args *args, moe_tensor *output, size_t *bytes)
{
    problem p;
    call_plan plan;
    const moe_experts *experts;
    if (output == NULL) return error_set(MOE_E_NULL_ARG, "output = NULL: required");
    if (bytes == NULL) return error_set(MOE_E_NULL_ARG, "bytes = NULL: required");
    moe_status s = enter(args, &experts);
    if (s != MOE_OK) return s;
    fpenv saved = fpenv_enter();
    s = problem_shape(args, &p);
    fpenv_leave(saved);
    if (s == MOE_OK) s = size(&p, context_kernels(NULL), &plan);
    if (s == MOE_OK) *output = problem_output(&p, bytes);
    leave(experts);
    return s;
}

/* About what the call reads of the weights: those of as many experts as can run. */
static size_t weight_bytes(const problem *p, const call_plan *plan)
{
    size_t experts = p->all_expert || p->T * p->K > p->E_L ? p->E_L : p->T * p->K;
    return experts * plan->layout.bytes;
}

/* The call after its check, on team or, if that is NULL, on what the context has. */
static moe_status run(moe_context *context, threads *team, const problem *p, void *output)
{
    call_plan plan;
    context_call call;
    const kernel_table *kernels = context_kernels(context);
    moe_status s = size(p, kernels, &plan);
    if (s != MOE_OK) return s;
    if (!context_enter(context, team, plan.scratch.bytes, weight_bytes(p, &plan), &call))
        return error_set(MOE_E_NOMEM, "no memory for %zu bytes of scratch", plan.scratch.bytes);
    fpenv saved = fpenv_enter();
    forward_run(&plan, kernels, call.team, call.scratch, output);
    fpenv_leave(saved);
    context_leave(context, &call);
    return MOE_OK;
}

/* A whole call.  A thread that is cancelled in here would leave its context, and its experts,
 * without an owner. */
static moe_status compute(moe_context *context, threads *team, const moe_tkg_args *args,
                          void *output, size_t output_bytes)
{
    problem p;
    int cancel;
    const moe_experts *experts;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    moe_status s = enter(args, &experts);
    if (s == MOE_OK) {
        s = check(args, output, output_bytes, &p);
        if (s == MOE_OK && p.T > 0) s = run(context, team, &p, output);
        leave(experts);
    }
    pthread_setcancelstate(cancel, NULL);
    return s;
}

moe_status moe_tkg(moe_context *context, const moe_tkg_args *args, void *output,
                   size_t output_bytes)
{
    return compute(context, NULL, args, output, output_bytes);
}

moe_status moe_tkg_part(moe_context *context, int32_t ith, int32_t nth, const moe_tkg_args *args,
                        void *output, size_t output_bytes)
{
    int cancel;
    moe_status s;
    if (context == NULL) return error_set(MOE_E_NULL_ARG, "context = NULL: required");
    if (nth < 1 || nth > THREADS_MOST)
        return error_set(MOE_E_VALUE, "nth = %d: must be in [1, %d]", (int)nth, THREADS_MOST);
    if (ith < 0 || ith >= nth)
        return error_set(MOE_E_VALUE, "ith = %d: must be in [0, nth = %d)", (int)ith, (int)nth);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel); /* the others wait for this one */
    if (ith == 0) {
        threads *team = context_open(context, nth);
        s = context_close(context, nth, compute(context, team, args, output, output_bytes));
    } else {
        s = context_join(context, ith);
    }
    pthread_setcancelstate(cancel, NULL);
    return s;
}

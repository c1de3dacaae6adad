/* SPDX-License-Identifier: Apache-2.0 */
/* api_block.c - the public calls on a router and a block: each from its check to its result.  No arithmetic. */
#define _POSIX_C_SOURCE 200809L
#include "block.h"
#include "context.h"
#include "error.h"
#include "experts.h"
#include "fpenv.h"
#include "sizes.h"
#include "validate.h"
#include "validate_router.h"

#include <pthread.h>

/* ---- moe_router_topk ------------------------------------------------------------------------- */

static moe_status check_router(const moe_router_args *args, const moe_router_output *output,
                               router *r, size_t *T)
{
    size_t H = 0;
    if (args == NULL) return error_set(MOE_E_NULL_ARG, "args = NULL: required");
    if (output == NULL) return error_set(MOE_E_NULL_ARG, "output = NULL: required");
    moe_status s = validate_router(args, r);
    if (s != MOE_OK) return s;
    if (args->x == NULL) return error_set(MOE_E_NULL_ARG, "x = NULL: required");
    s = validate_tensor("x", args->x, VALIDATE_FLOATS, false);
    if (s == MOE_OK) s = validate_rows("x", args->x, T, &H);
    if (s == MOE_OK) s = validate_rows_sizes("x", *T, H);
    if (s == MOE_OK) s = validate_router_arrays(args, r, H, false);
    if (s != MOE_OK || *T == 0) return s;
    validate_spans spans = {.n = 0};
    size_t element = moe_dtype_size(args->x->dtype);
    s = validate_span(&spans, "x", args->x->data, *T * H * element, element, false);
    return s == MOE_OK ? validate_router_data(r, *T, output, false, &spans) : s;
}

/* The tokens of a call, some at a time. */
typedef struct routed {
    const router *r;
    const router_scratch *s;
    const kernel_table *kernels;
    uint8_t *memory;
    size_t first;
} routed;

static void widen_row(void *arg, size_t i)
{
    const routed *a = arg;
    const moe_tensor *x = a->r->args->x;
    size_t H = a->r->H, element = moe_dtype_size(x->dtype);
    router_widen(a->kernels, (const char *)x->data + (a->first + i) * H * element, x->dtype,
                 element, H, (float *)(void *)(a->memory + a->s->rows) + i * a->s->row, a->s->row);
}

static moe_status run_router(moe_context *context, const router *r, size_t T,
                             const moe_router_output *output)
{
    router_scratch s;
    context_call call;
    const kernel_table *kernels = context_kernels(context);
    if (!router_size(r, T, &s))
        return error_set(MOE_E_OVERFLOW,
                         "T = %zu, H = %zu, E = %zu: the scratch's bytes do not fit in size_t", T,
                         r->H, r->E);
    size_t weights = r->E * r->H * moe_dtype_size(r->args->weights.dtype);
    if (!context_enter(context, NULL, s.bytes, weights, &call))
        return error_set(MOE_E_NOMEM, "no memory for %zu bytes of scratch", s.bytes);
    fpenv saved = fpenv_enter();
    routed a = {r, &s, kernels, call.scratch, 0};
    for (size_t n; a.first < T; a.first += n) {
        n = size_smaller(T - a.first, s.tokens);
        threads_loop(call.team, n, widen_row, &a);
        router_run(r, &s, kernels, call.team, call.scratch, a.first, n, NULL, output);
    }
    fpenv_leave(saved);
    context_leave(context, &call);
    return MOE_OK;
}

moe_status moe_router_topk(moe_context *context, const moe_router_args *args,
                           const moe_router_output *output)
{
    router r;
    size_t T = 0;
    int cancel;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    fpenv saved = fpenv_enter();
    moe_status s = check_router(args, output, &r, &T);
    fpenv_leave(saved);
    if (s == MOE_OK && T > 0) s = run_router(context, &r, T, output);
    pthread_setcancelstate(cancel, NULL);
    return s;
}

/* ---- moe_block ------------------------------------------------------------------------------- */

/* Counts uses of the packed experts from before their check on, so that they cannot be destroyed
 * meanwhile. */
static moe_status enter(const moe_block_args *args, const moe_experts **experts)
{
    experts[0] = experts[1] = NULL;
    if (args == NULL || error_struct_size(args, sizeof *args, "moe_block_args") != MOE_OK)
        return MOE_OK;
    const moe_experts *given[] = {args->experts.experts, args->shared};
    for (size_t i = 0; i < 2; i++) {
        if (given[i] == NULL) continue;
        moe_status s = experts_enter(given[i]);
        if (s != MOE_OK) {
            if (experts[0] != NULL) experts_leave(experts[0]);
            return s;
        }
        experts[i] = given[i];
    }
    return MOE_OK;
}

/* In the order opposite to entering, so that whoever could destroy the first can destroy both. */
static void leave(const moe_experts *const *experts)
{
    for (size_t i = 2; i-- > 0;)
        if (experts[i] != NULL) experts_leave(experts[i]);
}

/* About what the call reads of weights. */
static size_t weight_bytes(const block *b, const block_scratch *s)
{
    const problem *p = &b->experts_problem;
    size_t experts = p->all_expert || b->T * b->router.K > p->E_L ? p->E_L : b->T * b->router.K;
    return experts * s->experts_plan.layout.bytes + (b->shared ? s->shared_plan.layout.bytes : 0) +
           b->router.E * b->H * moe_dtype_size(b->router.args->weights.dtype);
}

static moe_status run_block(moe_context *context, block *b, void *output)
{
    block_scratch s;
    context_call call;
    const kernel_table *kernels = context_kernels(context);
    if (!block_size(b, kernels, &s))
        return error_set(MOE_E_OVERFLOW,
                         "T = %zu, H = %zu, E = %zu: the scratch's bytes do not fit in size_t",
                         b->T, b->H, b->router.E);
    if (!context_enter(context, NULL, s.bytes, weight_bytes(b, &s), &call))
        return error_set(MOE_E_NOMEM, "no memory for %zu bytes of scratch", s.bytes);
    fpenv saved = fpenv_enter();
    block_run(b, &s, kernels, call.team, call.scratch, output);
    fpenv_leave(saved);
    context_leave(context, &call);
    return MOE_OK;
}

moe_status moe_block(moe_context *context, const moe_block_args *args, void *output,
                     size_t output_bytes)
{
    block b;
    int cancel;
    const moe_experts *experts[2];
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    moe_status s = enter(args, experts);
    if (s == MOE_OK) {
        fpenv saved = fpenv_enter();
        s = block_check(args, output, output_bytes, &b);
        fpenv_leave(saved);
        if (s == MOE_OK && b.T > 0) s = run_block(context, &b, output);
        leave(experts);
    }
    pthread_setcancelstate(cancel, NULL);
    return s;
}

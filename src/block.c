/* SPDX-License-Identifier: Apache-2.0 */
/* block.c - norm, router, experts and shared expert as one call: docs/numerics.md section 10.
 *
 * Owns the norm, the shared expert's gate and the last sum; the rest is router.c's and forward.c's.
 * The output is written at the end alone, so that it may lie where hidden_input does.
 *
 *     per ROUTER_TOKENS tokens    norm and gate | router
 *     experts                     forward_run: into the output, or with a shared expert as f32
 *     shared expert               forward_run, as f32
 *     add                         one rounding */
#include "block.h"

#include "checked.h"
#include "experts.h"
#include "forward.h"
#include "numeric.h"
#include "sizes.h"

enum { ADD_COLUMNS = 1024 };

/* ---- scratch --------------------------------------------------------------------------------- */

static bool reserve(block_scratch *s, size_t count, size_t unit, size_t *at)
{
    size_t bytes;
    return checked_mul(count, unit, &bytes) && checked_place(bytes, KERNEL_ALIGN, &s->bytes, at);
}

bool block_size(const block *b, const kernel_table *kernels, block_scratch *s)
{
    const size_t T = b->T, rows = b->shared ? T : 0, row = router_row(b->H) * sizeof(float);
    const bool all = b->experts_problem.all_expert;
    size_t plan, cells;
    memset(s, 0, sizeof *s);
    if (!router_size(&b->router, T, &s->router) ||
        !plan_size(&b->experts_problem, kernels, &s->experts_plan) ||
        (b->shared && !plan_size(&b->shared_problem, kernels, &s->shared_plan)) ||
        !checked_mul(rows, b->H, &cells))
        return false;
    plan = s->experts_plan.scratch.bytes;
    if (b->shared && s->shared_plan.scratch.bytes > plan) plan = s->shared_plan.scratch.bytes;
    return reserve(s, s->router.bytes, 1, &s->router_at) &&
           reserve(s, b->norm ? T * moe_dtype_size(b->x) : 0, b->H, &s->hidden) &&
           reserve(s, b->norm, row, &s->gamma) && reserve(s, b->gate, row, &s->gate) &&
           reserve(s, rows, sizeof(float), &s->factor) &&
           reserve(s, T, b->router.K * sizeof(int32_t), &s->index) &&
           reserve(s, T, (all ? b->router.E : b->router.K) * sizeof(float), &s->weights) &&
           reserve(s, cells, sizeof(float), &s->sums) &&
           reserve(s, cells, sizeof(float), &s->shared) && reserve(s, plan, 1, &s->plan);
}

/* ---- norm and gate --------------------------------------------------------------------------- */

/* A run of a block. */
typedef struct running {
    block *b;
    const block_scratch *s;
    const kernel_table *kernels;
    uint8_t *memory;
    void *output;
    size_t first; /* token of the chunk at hand */
} running;

static float *floats(const running *a, size_t at)
{
    return (float *)(void *)(a->memory + at);
}

/* v as an element of dtype at `at`, and what it then is. */
static float put(moe_dtype dtype, void *to, size_t at, float v)
{
    uint16_t half;
    switch (dtype) {
    case MOE_BF16:
        half = num_to_bf16(v);
        ((uint16_t *)to)[at] = half;
        return num_from_bf16(half);
    case MOE_F16:
        half = num_to_f16(v);
        ((uint16_t *)to)[at] = half;
        return num_from_f16(half);
    default: return ((float *)to)[at] = num_to_f32(v);
    }
}

/* Item: one token's row for the router, normalised, and its factor for the shared expert. */
static void norm_row(void *arg, size_t i)
{
    const running *a = arg;
    const block *b = a->b;
    const size_t H = b->H, t = a->first + i, row = a->s->router.row, size = moe_dtype_size(b->x);
    const char *x = (const char *)b->args->experts.hidden_input->data + t * H * size;
    float *v = floats(a, a->s->router_at + a->s->router.rows) + i * row;
    router_widen(a->kernels, x, b->x, size, H, v, row);
    if (b->norm) {
        const float *gamma = floats(a, a->s->gamma);
        uint8_t *to = a->memory + a->s->hidden + t * H * size;
        float mean = router_dot(a->kernels, v, v, row) / b->norm_H;
        float root = sqrtf(mean + b->args->norm_epsilon);
        for (size_t h = 0; h < H; h++) v[h] = put(b->x, to, h, v[h] / root * gamma[h]);
    }
    if (b->gate)
        floats(a, a->s->factor)[t] =
            num_sigmoid(router_dot(a->kernels, v, floats(a, a->s->gate), row));
}

static void route(running *a, threads *team)
{
    block *b = a->b;
    const block_scratch *s = a->s;
    const moe_block_args *args = b->args;
    const size_t row = s->router.row;
    float *weights = floats(a, s->weights);
    moe_router_output own = {.index = (int32_t *)(void *)(a->memory + s->index)};
    if (b->experts_problem.all_expert)
        own.affinities = weights;
    else
        own.weights = weights;
    if (b->norm)
        router_widen(a->kernels, args->gamma.data, args->gamma.dtype,
                     (size_t)args->gamma.row_stride, b->H, floats(a, s->gamma), row);
    if (b->gate)
        router_widen(a->kernels, args->shared_gate.data, args->shared_gate.dtype,
                     (size_t)args->shared_gate.row_stride, b->H, floats(a, s->gate), row);
    for (size_t n; a->first < b->T; a->first += n) {
        n = size_smaller(b->T - a->first, s->router.tokens);
        threads_loop(team, n, norm_row, a);
        router_run(&b->router, &s->router, a->kernels, team, a->memory + s->router_at, a->first, n,
                   &own, &args->routed);
    }
    b->index.data = own.index;
    b->weights.data = b->affinities.data = weights;
}

/* ---- the last sum ---------------------------------------------------------------------------- */

/* Item: a range of columns of one token. */
static void add_columns(void *arg, size_t i)
{
    const running *a = arg;
    const block *b = a->b;
    const size_t H = b->H, items = size_pieces(H, ADD_COLUMNS), t = i / items,
                 first = i % items * ADD_COLUMNS, n = size_smaller(H - first, ADD_COLUMNS);
    float *sum = floats(a, a->s->sums) + t * H + first;
    const float *shared = floats(a, a->s->shared) + t * H + first;
    const float *factor = b->gate ? floats(a, a->s->factor) + t : NULL;
    a->kernels->reduce(&(kernel_reduce){&shared, factor, 1, n, sum});
    for (size_t h = 0; h < n; h++) put(b->output, a->output, t * H + first + h, sum[h]);
}

void block_run(block *b, block_scratch *s, const kernel_table *kernels, threads *team,
               uint8_t *memory, void *output)
{
    running a = {b, s, kernels, memory, output, 0};
    route(&a, team);
    b->hidden = *b->args->experts.hidden_input;
    if (b->norm) b->hidden.data = memory + s->hidden;
    b->experts_args.hidden_input = b->shared_args.hidden_input = &b->hidden;
    if (!b->shared) {
        forward_run(&s->experts_plan, kernels, team, memory + s->plan, output);
        return;
    }
    b->experts_problem.output = b->shared_problem.output = MOE_F32;
    forward_run(&s->experts_plan, kernels, team, memory + s->plan, floats(&a, s->sums));
    forward_run(&s->shared_plan, kernels, team, memory + s->plan, floats(&a, s->shared));
    threads_loop(team, b->T * size_pieces(b->H, ADD_COLUMNS), add_columns, &a);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* forward.c - one batch of tokens through its experts.
 *
 * Owns the order of the phases and the barriers between them (each threads_loop is one).  Knows nothing of instruction sets (the
 * kernel table hides them), of packing (pack.h) or of who chose the experts (plan.h).  Allocates nothing: scratch was sized
 * by plan_size().
 *
 *     quantize    hidden -> operand rows, once per token
 *     per pass    pack experts | gate_up -> intermediate | quantize it | down -> y rows | (all-expert) add them up
 *     store       (selective) add the y rows up in slot order; round; output layout */
#include "forward.h"

#include "axis.h"
#include "numeric.h"
#include "quantize.h"

typedef struct forward {
    call_plan *plan;
    const problem *p;
    const pack_layout *l;
    const kernel_table *kernels;
    threads *pool;
    plan_pass pass;
    void *output;

    uint8_t *hidden, *expert, *operand;
    float *mid, *y, *out;
    const void **x; /* operand row of each term of the pass */
} forward;

/* Terms are numbered through a pass: group g's begin where those of the groups before it end. */
static size_t place(const forward *f, const plan_group *g)
{
    return g->first - f->pass.group[0].first;
}

static uint8_t *packed(const forward *f, const plan_group *g)
{
    return f->expert + g->slot * f->l->bytes;
}

/* ---- the phases: each is one loop over independent items ------------------------------------------------------------- */

static void hidden_row(void *arg, size_t t)
{
    forward *f = arg;
    quantize_hidden(f->p, t, f->l->hidden_k, f->hidden + t * f->plan->scratch.hidden_row);
}

/* Item: one panel of one packed expert of the pass. */
static void pack_panel(void *arg, size_t i)
{
    forward *f = arg;
    size_t panels = f->l->gate_up_panels + f->l->down_panels, panel = i % panels;
    const plan_group *g = f->pass.group;
    while (g->slot != i / panels) g++;
    if (panel >= f->l->gate_up_panels)
        pack_down(f->p, f->l, g->expert, panel - f->l->gate_up_panels, packed(f, g));
    else if (panel * KERNEL_ROWS < g->mid_k)
        pack_gate_up(f->p, f->l, g->expert, panel, packed(f, g));
}

/* mid[term][rows of the panel] for one group and panel. */
static void gate_up_panel(void *arg, size_t i)
{
    forward *f = arg;
    const plan_group *g = &f->pass.group[i / f->l->gate_up_panels];
    size_t panel = i % f->l->gate_up_panels, first = place(f, g);
    if (panel * KERNEL_ROWS >= g->mid_k) return;
    const uint8_t *w = packed(f, g) + panel * f->l->gate_up_bytes;
    kernel_gate_up a = {
        .panel = w,
        .k = f->l->hidden_k,
        .tokens = g->count,
        .x = f->x + first,
        .gate = pack_gate_rows(f->p, f->l, w),
        .up = pack_up_rows(f->p, f->l, w),
        .point = &f->p->point,
        .mid = f->mid + first * f->plan->scratch.mid_row + panel * KERNEL_ROWS,
        .mid_stride = f->plan->scratch.mid_row,
    };
    f->kernels->gate_up[f->p->gate_up][f->plan->operand](&a);
}

/* Item: one term of the pass. */
static void mid_row(void *arg, size_t n)
{
    forward *f = arg;
    const plan_scratch *s = &f->plan->scratch;
    const plan_group *g = f->pass.group;
    while (n >= place(f, g) + g->count) g++;
    quantize_mid(f->p, f->mid + n * s->mid_row, g->mid_k, f->operand + n * s->operand_row);
    f->x[n] = f->operand + n * s->operand_row;
}

/* y[term's row][rows of the panel] for one group and panel. */
static void down_panel(void *arg, size_t i)
{
    forward *f = arg;
    const plan_scratch *s = &f->plan->scratch;
    const plan_group *g = &f->pass.group[i / f->l->down_panels];
    size_t panel = i % f->l->down_panels;
    const uint8_t *w = packed(f, g) + f->l->down_at + panel * f->l->down_bytes;
    float rows[KERNEL_TOKENS][KERNEL_ROWS];
    kernel_down a = {
        .panel = w,
        .k = g->mid_k,
        .tokens = g->count,
        .x = f->x + place(f, g),
        .down = pack_down_rows(f->p, f->l, w),
        .y = rows[0],
        .y_stride = KERNEL_ROWS,
    };
    f->kernels->down[f->p->down][f->plan->operand](&a);
    for (size_t n = 0; n < g->count; n++)
        memcpy(f->y + f->plan->term[g->first + n].row * s->y_row + panel * KERNEL_ROWS, rows[n],
               sizeof rows[n]);
}

/* out = fma(a, y, out); without scaling out + y. */
static void add_term(const problem *p, float a, const float *y, float *out, size_t n)
{
    for (size_t h = 0; h < n; h++) out[h] = p->scaled ? fmaf(a, y[h], out[h]) : out[h] + y[h];
}

/* All-expert: adds the pass's y rows of one panel of H to their tokens' sums.  Terms ascend by expert, as the sum must. */
static void add_pass_panel(void *arg, size_t panel)
{
    forward *f = arg;
    size_t stride = f->plan->scratch.y_row, at = panel * KERNEL_ROWS;
    const plan_term *term = f->plan->term + f->pass.group[0].first;
    for (size_t n = 0; n < f->pass.terms; n++)
        add_term(f->p, term[n].affinity, f->y + term[n].row * stride + at,
                 f->out + term[n].token * stride + at, KERNEL_ROWS);
}

/* Selective: adds the y rows of a token's slots. */
static void add_slots(const forward *f, size_t t, float *out)
{
    const problem *p = f->p;
    size_t expert;
    float affinity;
    for (size_t k = 0; k < p->K; k++)
        if (plan_slot(p, t, k, &expert, &affinity))
            add_term(p, affinity, f->y + (t * p->K + k) * f->plan->scratch.y_row, out, p->H);
}

/* Item: one token, its sum finished, rounded and laid out. */
static void store_row(void *arg, size_t t)
{
    forward *f = arg;
    const problem *p = f->p;
    float *row = f->out + t * f->plan->scratch.y_row;
    if (!p->all_expert) add_slots(f, t, row);
    for (size_t h = 0; h < p->H; h++) {
        size_t at = axis_row_element(p, p->args->output_in_sbuf, t, h);
        if (p->output == MOE_F32)
            ((float *)f->output)[at] = num_to_f32(row[h]);
        else
            ((uint16_t *)f->output)[at] =
                p->output == MOE_BF16 ? num_to_bf16(row[h]) : num_to_f16(row[h]);
    }
}

/* ---- the path -------------------------------------------------------------------------------------------------------- */

static void run_pass(forward *f)
{
    const pack_layout *l = f->l;
    const plan_group *group = f->pass.group;
    const plan_term *term = f->plan->term + group[0].first;
    for (size_t n = 0; n < f->pass.terms; n++)
        f->x[n] = f->hidden + term[n].token * f->plan->scratch.hidden_row;
    threads_loop(f->pool, f->pass.slots * (l->gate_up_panels + l->down_panels), pack_panel, f);
    threads_loop(f->pool, f->pass.groups * l->gate_up_panels, gate_up_panel, f);
    threads_loop(f->pool, f->pass.terms, mid_row, f);
    threads_loop(f->pool, f->pass.groups * l->down_panels, down_panel, f);
    if (f->p->all_expert) threads_loop(f->pool, l->down_panels, add_pass_panel, f);
}

void forward_run(call_plan *plan, const kernel_table *kernels, threads *pool, uint8_t *scratch,
                 void *output)
{
    const plan_scratch *s = &plan->scratch;
    forward f = {
        .plan = plan,
        .p = plan->p,
        .l = &plan->layout,
        .kernels = kernels,
        .pool = pool,
        .output = output,
        .hidden = scratch + s->hidden,
        .expert = scratch + s->expert,
        .operand = scratch + s->operand,
        .mid = (float *)(void *)(scratch + s->mid),
        .y = (float *)(void *)(scratch + s->y),
        .out = (float *)(void *)(scratch + s->out),
        .x = (const void **)(void *)(scratch + s->x),
    };
    plan_route(plan, scratch);
    memset(f.out, 0, plan->p->T * s->y_row * sizeof(float));
    threads_loop(pool, plan->p->T, hidden_row, &f);
    for (size_t next = 0; plan_next(plan, &next, &f.pass);) run_pass(&f);
    threads_loop(pool, plan->p->T, store_row, &f);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* forward.c - one batch of tokens through its experts.
 *
 * Owns the order of the phases and the barriers between them (each threads_loop is one).  Knows
 * nothing of instruction sets (the kernel table hides them), of packing (pack.h) or of who chose
 * the experts (plan.h).  Allocates nothing: scratch was sized by plan_size().
 *
 *     quantize    hidden -> operand rows, once per token
 *     per pass    pack experts | gate_up -> intermediate | quantize it | down -> y rows |
 *                 (all-expert) add them up
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

    uint8_t *hidden, *hidden_tile, *expert, *mid_operand, *mid_tile;
    float *mid, *y, *out;
} forward;

enum { PACK_PANELS = 8 };

static size_t pack_items(const pack_layout *l)
{
    return (l->gate_up_panels + l->down_panels + PACK_PANELS - 1) / PACK_PANELS;
}

/* Terms are numbered through a pass: group g's begin where those of the groups before it end. */
static size_t place(const forward *f, const plan_group *g)
{
    return g->first - f->pass.group[0].first;
}

/* The tiles of a group: as few as their width allows, as even as they come.  A single row is its
 * own tile. */
static kernel_tiles tiles_of(const forward *f, const plan_group *g, const uint8_t *row,
                             uint8_t *tile, size_t row_bytes)
{
    size_t n = (g->count + f->plan->tile_width - 1) / f->plan->tile_width,
           width = (g->count + n - 1) / n;
    const uint8_t *x = g->count == 1 ? row : tile + place(f, g) * row_bytes;
    return (kernel_tiles){x, g->count, width, width * row_bytes};
}

static const plan_term *term_of(const forward *f, const plan_group *g)
{
    return f->plan->term + g->first;
}

static kernel_tiles hidden_tiles(const forward *f, const plan_group *g)
{
    size_t bytes = f->plan->scratch.hidden_row;
    return tiles_of(f, g, f->hidden + term_of(f, g)->token * bytes, f->hidden_tile, bytes);
}

static kernel_tiles mid_tiles(const forward *f, const plan_group *g)
{
    size_t bytes = f->plan->scratch.mid_operand_row;
    return tiles_of(f, g, f->mid_operand + place(f, g) * bytes, f->mid_tile, bytes);
}

/* The group that term n of the pass belongs to. */
static const plan_group *group_of(const forward *f, size_t n)
{
    const plan_group *g = f->pass.group;
    while (n >= place(f, g) + g->count) g++;
    return g;
}

static uint8_t *packed(const forward *f, const plan_group *g)
{
    return f->expert + g->slot * f->l->bytes;
}

/* ---- the phases: each is one loop over independent items ------------------------------------- */

static void hidden_row(void *arg, size_t t)
{
    forward *f = arg;
    quantize_hidden(f->p, f->plan->hidden_operand, t, f->l->hidden_k,
                    (uint32_t *)(void *)(f->hidden + t * f->plan->scratch.hidden_row));
}

/* Item: PACK_PANELS neighbouring panels of one packed expert of the pass, which share cache
 * lines of the source. */
static void pack_panels(void *arg, size_t i)
{
    forward *f = arg;
    const pack_layout *l = f->l;
    size_t items = pack_items(l), first = i % items * PACK_PANELS, end = first + PACK_PANELS;
    const plan_group *g = f->pass.group;
    while (g->slot != i / items) g++;
    for (size_t panel = first; panel < end && panel < l->gate_up_panels + l->down_panels; panel++)
        if (panel >= l->gate_up_panels)
            pack_down(f->p, l, g->expert, panel - l->gate_up_panels, g->mid_k, packed(f, g));
        else if (panel * KERNEL_ROWS < g->mid_k)
            pack_gate_up(f->p, l, g->expert, panel, packed(f, g));
}

/* Pad lanes see no hidden value: their sums are +0 even where hidden is infinite, so that their
 * m is what the same kernel makes of no terms at all, the same for every token. */
static void fill_pads(const forward *f, size_t panel, const kernel_gate_up *a)
{
    uint32_t pads = pack_pad_rows(f->p, panel);
    if (pads == 0) return;
    float mid[KERNEL_ROWS];
    kernel_gate_up none = *a;
    none.k = 0;
    none.tiles.tokens = 1;
    none.mid = mid;
    f->kernels->gate_up[f->p->gate_up][f->plan->hidden_operand](&none);
    for (size_t t = 0; t < a->tiles.tokens; t++)
        for (size_t r = 0; r < KERNEL_ROWS; r++)
            if (pads >> r & 1) a->mid[t * a->mid_stride + r] = mid[r];
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
        .tiles = hidden_tiles(f, g),
        .gate = pack_gate_rows(f->p, f->l, w),
        .up = pack_up_rows(f->p, f->l, w),
        .point = &f->p->point,
        .mid = f->mid + first * f->plan->scratch.mid_row + panel * KERNEL_ROWS,
        .mid_stride = f->plan->scratch.mid_row,
    };
    f->kernels->gate_up[f->p->gate_up][f->plan->hidden_operand](&a);
    fill_pads(f, panel, &a);
}

/* Item: one term of the pass.  The first of each tile interleaves the hidden rows of all. */
static void hidden_tile(void *arg, size_t n)
{
    forward *f = arg;
    const plan_group *g = group_of(f, n);
    kernel_tiles tiles = hidden_tiles(f, g);
    size_t t = n - place(f, g), bytes = f->plan->scratch.hidden_row;
    if (g->count == 1 || t % tiles.width != 0) return;
    const uint32_t *rows[KERNEL_WIDTH];
    size_t width = g->count - t < tiles.width ? g->count - t : tiles.width;
    for (size_t i = 0; i < width; i++)
        rows[i] = (const uint32_t *)(const void *)(f->hidden + term_of(f, g)[t + i].token * bytes);
    quantize_tile(rows, width, quantize_words(f->plan->hidden_operand, f->l->hidden_k),
                  (uint32_t *)(void *)(f->hidden_tile + n * bytes));
}

/* Item: one term of the pass.  The first of each tile makes operand rows of the intermediate
 * rows of all and interleaves them. */
static void mid_tile(void *arg, size_t n)
{
    forward *f = arg;
    const plan_scratch *s = &f->plan->scratch;
    const plan_group *g = group_of(f, n);
    kernel_tiles tiles = mid_tiles(f, g);
    size_t t = n - place(f, g), bytes = s->mid_operand_row;
    if (t % tiles.width != 0) return;
    const uint32_t *rows[KERNEL_WIDTH];
    size_t width = g->count - t < tiles.width ? g->count - t : tiles.width;
    for (size_t i = 0; i < width; i++) {
        uint32_t *row = (uint32_t *)(void *)(f->mid_operand + (n + i) * bytes);
        quantize_mid(f->p, f->plan->mid_operand, f->mid + (n + i) * s->mid_row, g->mid_k, row);
        rows[i] = row;
    }
    if (g->count > 1)
        quantize_tile(rows, width, quantize_words(f->plan->mid_operand, g->mid_k),
                      (uint32_t *)(void *)(f->mid_tile + n * bytes));
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
        .tiles = mid_tiles(f, g),
        .down = pack_down_rows(f->p, f->l, w),
        .y = rows[0],
        .y_stride = KERNEL_ROWS,
    };
    f->kernels->down[f->p->down][f->plan->mid_operand](&a);
    for (size_t n = 0; n < g->count; n++)
        memcpy(f->y + f->plan->term[g->first + n].row * s->y_row + panel * KERNEL_ROWS, rows[n],
               sizeof rows[n]);
}

/* out = fma(a, y, out); without scaling out + y. */
static void add_term(const problem *p, float a, const float *y, float *out, size_t n)
{
    for (size_t h = 0; h < n; h++) out[h] = p->scaled ? fmaf(a, y[h], out[h]) : out[h] + y[h];
}

/* All-expert: adds the pass's y rows of one panel of H to their tokens' sums.  Terms ascend by
 * expert, as the sum must. */
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

/* ---- the path -------------------------------------------------------------------------------- */

static void run_pass(forward *f)
{
    const pack_layout *l = f->l;
    threads_loop(f->pool, f->pass.slots * pack_items(l), pack_panels, f);
    threads_loop(f->pool, f->pass.terms, hidden_tile, f);
    threads_loop(f->pool, f->pass.groups * l->gate_up_panels, gate_up_panel, f);
    threads_loop(f->pool, f->pass.terms, mid_tile, f);
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
        .hidden_tile = scratch + s->hidden_tile,
        .mid_operand = scratch + s->mid_operand,
        .mid_tile = scratch + s->mid_tile,
        .mid = (float *)(void *)(scratch + s->mid),
        .y = (float *)(void *)(scratch + s->y),
        .out = (float *)(void *)(scratch + s->out),
    };
    plan_route(plan, scratch);
    memset(f.out, 0, plan->p->T * s->y_row * sizeof(float));
    threads_loop(pool, plan->p->T, hidden_row, &f);
    for (size_t next = 0; plan_next(plan, &next, &f.pass);) run_pass(&f);
    threads_loop(pool, plan->p->T, store_row, &f);
}

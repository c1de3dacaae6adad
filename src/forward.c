/* SPDX-License-Identifier: Apache-2.0 */
/* forward.c - one batch of tokens through its experts.
 *
 * Owns the order of the phases and the barriers between them (each threads_loop is one).  Knows
 * nothing of instruction sets (the kernel table hides them), of packing (pack.h) or of who chose
 * the experts (plan.h).  Allocates nothing: scratch was sized by plan_size().
 *
 *     quantize    hidden -> operand rows, once per token
 *     per pass    (raw) pack experts | gate_up -> intermediate -> operands | down -> y rows |
 *                 (all-expert) add them up
 *     store       (selective) add the y rows up in slot order; round; output layout */
#include "forward.h"

#include "experts.h"
#include "numeric.h"
#include "sizes.h"

typedef struct forward {
    call_plan *plan;
    const problem *p;
    const pack_layout *l;
    const kernel_table *kernels;
    threads *team;
    plan_pass pass;
    void *output;

    uint8_t *hidden, *hidden_tile, *expert, *mid_tile;
    float *y, *out;
} forward;

enum { DOWN_ROWS = 2 * KERNEL_ROWS, STORE_COLUMNS = 1024 };

static size_t pack_items(const pack_layout *l)
{
    return size_pieces(l->gate_up_panels, PACK_RUN) + size_pieces(l->down_panels, PACK_RUN);
}

/* Rows of the intermediate that one gate_up panel makes; panels of one block of KERNEL_BLOCK. */
static size_t panel_rows(const forward *f)
{
    return f->p->point.ungated ? 2 * KERNEL_ROWS : KERNEL_ROWS;
}

static size_t block_panels(const forward *f)
{
    return KERNEL_BLOCK / panel_rows(f);
}

/* Terms are numbered through a pass: group g's begin where those of the groups before it end. */
static size_t place(const forward *f, const plan_group *g)
{
    return g->first - f->pass.group[0].first;
}

/* The tiles of a group: as few as their width allows, as even as they come. */
static kernel_tiles tiles_of(const forward *f, const plan_group *g, const uint8_t *tile,
                             size_t row_bytes, size_t widest)
{
    size_t n = size_pieces(g->count, widest), width = size_pieces(g->count, n);
    return (kernel_tiles){tile + place(f, g) * row_bytes, g->count, width, width * row_bytes};
}

static const plan_term *term_of(const forward *f, const plan_group *g)
{
    return f->plan->term + g->first;
}

/* A single hidden row is its own tile. */
static kernel_tiles hidden_tiles(const forward *f, const plan_group *g)
{
    size_t bytes = f->plan->scratch.hidden_row;
    kernel_tiles tiles = tiles_of(f, g, f->hidden_tile, bytes, f->plan->hidden_width);
    if (g->count == 1) tiles.x = f->hidden + term_of(f, g)->token * bytes;
    return tiles;
}

static kernel_tiles mid_tiles(const forward *f, const plan_group *g)
{
    return tiles_of(f, g, f->mid_tile, f->plan->scratch.mid_row, f->plan->mid_width);
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

static kernel_panel gate_up_panel(const forward *f, const plan_group *g, size_t panel)
{
    if (f->p->experts != NULL) return experts_gate_up(f->p->experts, g->expert, panel);
    return pack_gate_up_panel(f->l, packed(f, g), panel);
}

static kernel_panel down_panel(const forward *f, const plan_group *g, size_t panel)
{
    if (f->p->experts != NULL) return experts_down(f->p->experts, g->expert, panel);
    return pack_down_panel(f->l, packed(f, g), panel, g->mid_k);
}

/* Item i of a loop over `each` items of every group of the pass.  Participant w of n of the team
 * begins with its part of them in one group after the other, the part that it packed. */
typedef struct group_item {
    const plan_group *group;
    size_t at;
} group_item;

static group_item item_of(const forward *f, size_t i, size_t each)
{
    const size_t groups = f->pass.groups, n = f->team != NULL ? (size_t)threads_count(f->team) : 1;
    size_t w = i * n / (groups * each);
    while (groups * (each * (w + 1) / n) <= i) w++;
    while (groups * (each * w / n) > i) w--;
    size_t first = each * w / n, count = each * (w + 1) / n - first, j = i - groups * first;
    return (group_item){&f->pass.group[j / count], first + j % count};
}

/* ---- the phases: each is one loop over independent items ------------------------------------- */

static void hidden_row(void *arg, size_t t)
{
    forward *f = arg;
    quantize_hidden(f->p, f->kernels, f->plan->hidden, t, f->l->hidden_k,
                    (uint32_t *)(void *)(f->hidden + t * f->plan->scratch.hidden_row));
}

/* Item: a run of neighbouring panels of one expert of the pass. */
static void pack_panels(void *arg, size_t i)
{
    forward *f = arg;
    const pack_layout *l = f->l;
    const pack_source *s = &f->p->source;
    const plan_group *g = f->pass.group;
    size_t items = pack_items(l), down = size_pieces(l->gate_up_panels, PACK_RUN), run = i % items;
    while (g->slot != i / items) g++;
    if (run >= down) {
        size_t first = (run - down) * PACK_RUN;
        pack_down(s, l, g->expert, first, size_smaller(l->down_panels - first, PACK_RUN), g->mid_k,
                  packed(f, g));
    } else {
        size_t first = run * PACK_RUN, end = pack_gate_up_panels(l, g->mid_k);
        if (first < end)
            pack_gate_up(s, l, g->expert, first, size_smaller(end - first, PACK_RUN), packed(f, g));
    }
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
    size_t width = size_smaller(g->count - t, tiles.width);
    for (size_t i = 0; i < width; i++)
        rows[i] = (const uint32_t *)(const void *)(f->hidden + term_of(f, g)[t + i].token * bytes);
    quantize_tile(rows, width, kernel_operand_words(f->plan->hidden.operand, f->l->hidden_k),
                  (uint32_t *)(void *)(f->hidden_tile + n * bytes));
}

/* Rows of a panel that no hidden value may reach.  Pad lanes have sums of +0 even where hidden is
 * infinite: their m is what the same kernel makes of no terms at all, the same for every token.
 * A row past I, that pads k, is +0. */
static void fill_pads(const forward *f, size_t panel, const kernel_gate_up *a)
{
    const axis *x = &f->p->axis;
    const size_t rows = panel_rows(f);
    uint32_t pads = pack_pad_rows(x, panel * rows, rows);
    float mid[2 * KERNEL_ROWS] = {0};
    if (pads == 0) return;
    if (x->strided) {
        kernel_gate_up none = *a;
        none.panel.k = 0;
        none.tiles.tokens = 1;
        none.factor = NULL;
        none.mid = mid;
        f->kernels->gate_up[a->panel.format][f->plan->hidden.operand](&none);
    }
    for (size_t t = 0; t < a->tiles.tokens; t++)
        for (size_t r = 0; r < rows; r++)
            if (pads >> r & 1) a->mid[t * a->mid_stride + r] = mid[r];
}

/* The operands of block `block` of a group's intermediate rows. */
static void quantize_mid(const forward *f, const plan_group *g, size_t block, const float *mid)
{
    kernel_tiles tiles = mid_tiles(f, g);
    uint8_t *tile = f->mid_tile + place(f, g) * f->plan->scratch.mid_row;
    for (size_t t = 0; t < g->count; t += tiles.width, tile += tiles.tile_bytes) {
        size_t width = size_smaller(g->count - t, tiles.width);
        kernel_quantize a = {
            .v = mid + t * KERNEL_BLOCK,
            .stride = KERNEL_BLOCK,
            .tokens = width,
            .terms = size_smaller(g->mid_k - block * KERNEL_BLOCK, KERNEL_BLOCK),
            .block = block,
            .k = g->mid_k,
            .tile = (uint32_t *)(void *)tile,
            .width = width,
        };
        f->kernels->quantize(&a, f->plan->mid.rounding, f->plan->mid.operand);
    }
}

/* Item: one block of the intermediate of one group, from its panels to operands. */
static void gate_up_block(void *arg, size_t i)
{
    forward *f = arg;
    const size_t panels = block_panels(f), rows = panel_rows(f);
    group_item item = item_of(f, i, size_pieces(f->l->gate_up_panels, panels));
    const plan_group *g = item.group;
    size_t block = item.at;
    float mid[KERNEL_TOKENS][KERNEL_BLOCK], factor[KERNEL_TOKENS];
    if (block * KERNEL_BLOCK >= g->mid_k) return;
    for (size_t n = 0; n < g->count; n++) factor[n] = term_of(f, g)[n].affinity;
    for (size_t n = 0; n < panels; n++) {
        size_t panel = block * panels + n;
        if (panel * rows >= g->mid_k) break;
        kernel_gate_up a = {
            .panel = gate_up_panel(f, g, panel),
            .tiles = hidden_tiles(f, g),
            .point = &f->p->point,
            .factor = f->p->input_scaled ? factor : NULL,
            .mid = &mid[0][n * rows],
            .mid_stride = KERNEL_BLOCK,
        };
        f->kernels->gate_up[a.panel.format][f->plan->hidden.operand](&a);
        fill_pads(f, panel, &a);
    }
    quantize_mid(f, g, block, mid[0]);
}

/* Item: y[term's row][rows of the panel] for one group and panel. */
static void down_rows(void *arg, size_t i)
{
    forward *f = arg;
    const plan_scratch *s = &f->plan->scratch;
    group_item item = item_of(f, i, f->l->down_panels);
    const plan_group *g = item.group;
    size_t panel = item.at;
    float rows[KERNEL_TOKENS][DOWN_ROWS];
    kernel_down a = {
        .panel = down_panel(f, g, panel),
        .tiles = mid_tiles(f, g),
        .y = rows[0],
        .y_stride = DOWN_ROWS,
    };
    f->kernels->down[a.panel.format][f->plan->mid.operand](&a);
    for (size_t n = 0; n < g->count; n++)
        memcpy(f->y + term_of(f, g)[n].row * s->y_row + panel * DOWN_ROWS, rows[n],
               a.panel.halves * KERNEL_ROWS * sizeof(float));
}

/* Whether the affinities multiply the y rows. */
static bool scales_rows(const problem *p)
{
    return p->scaled && !p->input_scaled;
}

/* All-expert, item: the pass's y rows of one range of columns added to their tokens' sums.  Terms
 * ascend by expert, as the sum must. */
static void add_pass(void *arg, size_t i)
{
    forward *f = arg;
    size_t stride = f->plan->scratch.y_row, at = i * STORE_COLUMNS;
    const plan_term *term = f->plan->term + f->pass.group[0].first;
    for (size_t n = 0; n < f->pass.terms; n++) {
        const float *y = f->y + term[n].row * stride + at;
        kernel_reduce a = {&y, scales_rows(f->p) ? &term[n].affinity : NULL, 1,
                           size_smaller(f->p->axis.H - at, STORE_COLUMNS),
                           f->out + term[n].token * stride + at};
        f->kernels->reduce(&a);
    }
}

/* Selective: adds the y rows of a token's slots, n columns from `at` on. */
static void add_slots(const forward *f, size_t t, size_t at, size_t n, float *out)
{
    enum { SLOTS = 16 };
    const problem *p = f->p;
    const float *y[SLOTS];
    float affinity[SLOTS];
    size_t expert, terms = 0;
    for (size_t k = 0; k < p->K; k++) {
        y[terms] = f->y + (t * p->K + k) * f->plan->scratch.y_row + at;
        if (plan_slot(p, t, k, &expert, &affinity[terms])) terms++;
        if (terms < SLOTS && k + 1 < p->K) continue;
        kernel_reduce a = {y, scales_rows(p) ? affinity : NULL, terms, n, out};
        f->kernels->reduce(&a);
        terms = 0;
    }
}

/* Item: one range of columns of one token, its sum finished, rounded and laid out. */
static void store_columns(void *arg, size_t i)
{
    forward *f = arg;
    const problem *p = f->p;
    size_t items = size_pieces(p->axis.H, STORE_COLUMNS), t = i / items,
           at = i % items * STORE_COLUMNS;
    size_t n = size_smaller(p->axis.H - at, STORE_COLUMNS);
    float *row = f->out + t * f->plan->scratch.y_row + at;
    if (!p->all_expert) add_slots(f, t, at, n, row);
    for (size_t h = 0; h < n; h++) {
        size_t to = axis_row_element(&p->axis, p->args->output_in_sbuf, p->T, t, at + h);
        if (p->output == MOE_F32)
            ((float *)f->output)[to] = num_to_f32(row[h]);
        else
            ((uint16_t *)f->output)[to] =
                p->output == MOE_BF16 ? num_to_bf16(row[h]) : num_to_f16(row[h]);
    }
}

/* ---- the path -------------------------------------------------------------------------------- */

static void run_pass(forward *f)
{
    const pack_layout *l = f->l;
    const size_t blocks = size_pieces(l->gate_up_panels, block_panels(f));
    if (f->p->experts == NULL) threads_loop(f->team, f->pass.slots * pack_items(l), pack_panels, f);
    threads_loop(f->team, f->pass.terms, hidden_tile, f);
    threads_loop(f->team, f->pass.groups * blocks, gate_up_block, f);
    threads_loop(f->team, f->pass.groups * l->down_panels, down_rows, f);
    if (f->p->all_expert)
        threads_loop(f->team, size_pieces(f->p->axis.H, STORE_COLUMNS), add_pass, f);
}

void forward_run(call_plan *plan, const kernel_table *kernels, threads *team, uint8_t *scratch,
                 void *output)
{
    const plan_scratch *s = &plan->scratch;
    const size_t columns = size_pieces(plan->p->axis.H, STORE_COLUMNS);
    forward f = {
        .plan = plan,
        .p = plan->p,
        .l = &plan->layout,
        .kernels = kernels,
        .team = team,
        .output = output,
        .hidden = scratch + s->hidden,
        .expert = scratch + s->expert,
        .hidden_tile = scratch + s->hidden_tile,
        .mid_tile = scratch + s->mid_tile,
        .y = (float *)(void *)(scratch + s->y),
        .out = (float *)(void *)(scratch + s->out),
    };
    plan_route(plan, scratch);
    memset(f.out, 0, plan->p->T * s->y_row * sizeof(float));
    threads_loop(team, plan->p->T, hidden_row, &f);
    for (size_t next = 0; plan_next(plan, &next, &f.pass);) run_pass(&f);
    threads_loop(team, plan->p->T * columns, store_columns, &f);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.c - the operator in float64: the rows of some tokens, with their bounds.
 *
 * Owns the order of the computation: per expert, each row of its matrices is decoded once and used
 * for all of up to AT_ONCE tokens.  The numbers themselves are in oracle_bound.c and oracle_dot.c,
 * the index arithmetic of the activations in oracle_plan.c. */
#include "oracle.h"
#include "oracle_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { AT_ONCE = 16, BLOCK_PLAIN = 512, BLOCK_MX = 32 };

/* ---- what a token needs --------------------------------------------------------------------- */

/* The left side of a product: terms in the operator's order, in int8 mode without their factor. */
typedef struct operand {
    bounded *x;      /* [terms] */
    bounded *factor; /* [blocks] */
    bool *joint;     /* [blocks] */
} operand;

typedef struct token_work {
    size_t t;
    operand hidden, m;
    oracle_dot dot;
    bool active;        /* the expert at hand counts for this token */
    double affinity;    /* INPUT_SCALE: with this one */
    double *out, *size; /* [H] the sum of the experts' terms; of their magnitudes */
    double *tight, *proof;
    size_t terms;
} token_work;

/* The right side of a product: expert by expert, rows of `segments` runs of `run` columns. */
typedef struct matrix {
    const moe_tensor *weights, *scale; /* scale of MX; else NULL */
    oracle_decoder decoder, scale_decoder;
    oracle_order order;
    size_t segments, run;
    size_t per_tile; /* MX: blocks of a tile */
    size_t tiles;
} matrix;

typedef struct work {
    const oracle_plan *plan;
    matrix gate_up, down;
    token_work token[AT_ONCE];
    size_t n;            /* tokens at hand */
    double *row, *scale; /* [columns] */
    double *affinity;    /* [max(K, 1)] */
    size_t turn;         /* INPUT_SCALE: which of an expert's affinities is at hand */
} work;

static bool operand_make(operand *o, size_t terms, size_t block)
{
    size_t blocks = terms / block + 1;
    o->x = calloc(terms, sizeof *o->x);
    o->factor = calloc(blocks, sizeof *o->factor);
    o->joint = calloc(blocks, sizeof *o->joint);
    return o->x && o->factor && o->joint;
}

static void operand_free(operand *o)
{
    free(o->x);
    free(o->factor);
    free(o->joint);
}

static bool matrix_make(matrix *m, const oracle_plan *p, bool down)
{
    const moe_tkg_args *a = p->args;
    m->weights = down ? a->expert_down_weights : a->expert_gate_up_weights;
    m->segments = down || p->ungated ? 1 : 2;
    m->run = down ? p->H : p->I;
    m->order.terms = down ? p->lanes : p->H;
    m->order.block = p->mx ? BLOCK_MX : BLOCK_PLAIN;
    m->order.integer = p->mode == MOE_ACT_INT8;
    m->per_tile = down ? p->I_p / 8 : 16;
    m->tiles = down ? p->nI : p->nH;
    if (p->mx) m->scale = down ? a->expert_down_weights_scale : a->expert_gate_up_weights_scale;
    return oracle_decoder_make(&m->decoder, m->weights->dtype) &&
           (!m->scale || oracle_decoder_make(&m->scale_decoder, MOE_E8M0));
}

static bool work_make(work *w, const oracle_plan *p, size_t n)
{
    size_t columns = 2 * p->I > p->H ? 2 * p->I : p->H;
    w->plan = p;
    w->row = calloc(columns, sizeof *w->row);
    w->scale = calloc(columns, sizeof *w->scale);
    w->affinity = calloc(p->K + 1, sizeof *w->affinity);
    bool ok = matrix_make(&w->gate_up, p, false) && matrix_make(&w->down, p, true) && w->row &&
              w->scale && w->affinity;
    for (size_t i = 0; ok && i < n && i < AT_ONCE; i++) {
        token_work *t = &w->token[i];
        t->out = calloc(p->H, 4 * sizeof *t->out);
        ok = t->out && operand_make(&t->hidden, p->H, w->gate_up.order.block) &&
             operand_make(&t->m, p->lanes, w->down.order.block) &&
             oracle_dot_make(&t->dot, columns);
        if (!ok) break;
        t->size = t->out + p->H;
        t->tight = t->size + p->H;
        t->proof = t->tight + p->H;
    }
    return ok;
}

static void work_free(work *w)
{
    for (size_t i = 0; i < AT_ONCE; i++) {
        operand_free(&w->token[i].hidden);
        operand_free(&w->token[i].m);
        oracle_dot_free(&w->token[i].dot);
        free(w->token[i].out);
    }
    oracle_decoder_free(&w->gate_up.decoder);
    oracle_decoder_free(&w->gate_up.scale_decoder);
    oracle_decoder_free(&w->down.decoder);
    oracle_decoder_free(&w->down.scale_decoder);
    free(w->row);
    free(w->scale);
    free(w->affinity);
}

/* ---- products ------------------------------------------------------------------------------- */

/* w->row = row k of expert e's matrix (specification, 1.1 and 3.4).  Returns whether all of it is
 * finite. */
static bool read_row(const work *w, const matrix *m, size_t e, size_t k)
{
    oracle_place at = oracle_place_of(k, m->per_tile ? m->per_tile : 1);
    size_t partitions = 8 * m->per_tile, partition = 8 * at.b + at.r;
    bool finite = true;
    for (size_t s = 0; s < m->segments; s++) {
        size_t line = (e * m->order.terms + k) * m->segments + s, q = 0;
        if (m->scale) {
            line = ((e * partitions + partition) * m->segments + s) * m->tiles + at.tile;
            q = at.q;
        }
        double *row = w->row + s * m->run;
        finite &= oracle_decode_row(&m->decoder, m->weights, line * m->run, m->run, q, row);
    }
    return finite;
}

/* The scales of block n in w->scale; NULL for plain weights. */
static const double *read_scales(const work *w, const matrix *m, size_t e, size_t n)
{
    if (!m->scale) return NULL;
    size_t tile = n / m->per_tile, b = n % m->per_tile;
    for (size_t s = 0; s < m->segments; s++) {
        size_t line = ((e * m->per_tile + b) * m->segments + s) * m->tiles + tile;
        oracle_decode_row(&m->scale_decoder, m->scale, line * m->run, m->run, 0,
                          w->scale + s * m->run);
    }
    return w->scale;
}

/* dot[c] = sum_k x[k] W[e][k][c] for the active tokens, over so many terms. */
static void multiply(work *w, const matrix *m, size_t e, size_t terms, bool down)
{
    for (size_t i = 0; i < w->n; i++)
        if (w->token[i].active) oracle_dot_clear(&w->token[i].dot, m->segments * m->run);
    for (size_t first = 0, n = 0; first < terms; first += m->order.block, n++) {
        size_t end = terms - first < m->order.block ? terms : first + m->order.block;
        for (size_t k = first; k < end; k++) {
            bool finite = read_row(w, m, e, k);
            for (size_t i = 0; i < w->n; i++) {
                token_work *t = &w->token[i];
                if (t->active)
                    oracle_dot_term(&t->dot, (down ? t->m : t->hidden).x[k], w->row, finite);
            }
        }
        const double *scale = read_scales(w, m, e, n);
        for (size_t i = 0; i < w->n; i++) {
            token_work *t = &w->token[i];
            const operand *o = down ? &t->m : &t->hidden;
            if (t->active)
                oracle_dot_fold(&t->dot, &m->order, end - first, scale, o->factor[n], o->joint[n]);
        }
    }
}

/* Whether block n of the down product holds only pad lanes and zero weights. */
static bool is_idle(const work *w, size_t e, size_t n)
{
    const oracle_plan *p = w->plan;
    oracle_place at = oracle_place_of(n * BLOCK_MX, p->I_p / 8);
    size_t in_use = ((p->I - (p->nI - 1) * 512 + 7) / 8) * 2;
    if (at.tile + 1 < p->nI || 8 * at.b < in_use) return false;
    bool zero = true;
    for (size_t k = n * BLOCK_MX; k < (n + 1) * BLOCK_MX; k++) {
        read_row(w, &w->down, e, k);
        for (size_t h = 0; h < p->H; h++) zero &= w->row[h] == 0;
    }
    return zero;
}

/* Terms of expert e's down product: without its trailing idle blocks. */
static size_t lanes_in_use(const work *w, size_t e)
{
    if (!w->plan->mx) return w->plan->lanes;
    size_t blocks = w->plan->lanes / BLOCK_MX;
    while (is_idle(w, e, blocks - 1)) blocks--;
    return blocks * BLOCK_MX;
}

/* ---- operands ------------------------------------------------------------------------------- */

/* x becomes the operands of the mode, block by block. */
static void quantise(const work *w, const matrix *m, operand *o, size_t terms, bool already)
{
    for (size_t first = 0, n = 0; first < terms; first += m->order.block, n++) {
        bounded *x = o->x + first;
        o->factor[n] = oracle_exact(1);
        o->joint[n] = false;
        if (w->plan->mode == MOE_ACT_INT8)
            oracle_quantise_int8(x, BLOCK_MX, x, &o->factor[n]);
        else if (w->plan->mode == MOE_ACT_MXFP8 && !already)
            oracle_quantise_mx(x, BLOCK_MX, x, &o->joint[n]);
    }
}

static void read_token(const work *w, token_work *t)
{
    const oracle_plan *p = w->plan;
    for (size_t k = 0; k < p->H; k++) t->hidden.x[k] = oracle_exact(oracle_hidden(p, t->t, k));
    quantise(w, &w->gate_up, &t->hidden, p->H, p->prequantised);
}

/* Element n of a row scale or bias, an f32 to the operator. */
static bounded constant(const moe_tensor *t, size_t n)
{
    return oracle_exact(oracle_at(t, n));
}

static bool is_input_scaled(const work *w)
{
    return w->plan->args->expert_affinities_scaling_mode == MOE_INPUT_SCALE;
}

/* g (s = 0) or u (s = 1) of lane k: factor, scale, bias, limits. */
static bounded projection(const work *w, const token_work *t, size_t e, size_t k, size_t s)
{
    const oracle_plan *p = w->plan;
    const moe_tkg_args *a = p->args;
    const moe_tensor *scale = a->expert_gate_up_weights_scale, *bias = a->expert_gate_up_bias;
    oracle_place at = oracle_place_of(k, p->mx ? p->I_p / 8 : 1);
    size_t i = p->mx ? oracle_lane(p, at) : k, partition = 8 * at.b + at.r;

    bounded g = oracle_exact(0);
    const size_t row = p->ungated ? e : e * 2 + s; /* of [E_L, 2] */
    if (i < p->I) {
        g = oracle_dot_result(&t->dot, &w->gate_up.order, p->ungated ? i : s * p->I + i);
        if (is_input_scaled(w)) g = oracle_mul(g, oracle_exact(t->affinity));
    }
    if (scale && !p->mx) {
        size_t last = (size_t)scale->shape[2];
        g = oracle_mul(g, constant(scale, row * last + (last == 1 ? 0 : i)));
    }
    size_t n = row * p->I + i;
    if (p->mx) n = (((e * p->I_p + partition) * 2 + s) * p->nI + at.tile) * 4 + at.q;
    if (bias) g = oracle_add(g, constant(bias, n));
    return s == 0 ? oracle_clamp(g, a->gate_clamp_upper_limit, a->gate_clamp_lower_limit)
                  : oracle_clamp(g, a->up_clamp_upper_limit, a->up_clamp_lower_limit);
}

/* m = act(g) * u, and what the down product takes of it. */
static void make_intermediate(const work *w, token_work *t, size_t e, size_t terms)
{
    const moe_tkg_args *a = w->plan->args;
    double alpha = oracle_flush((double)a->swiglu_alpha.value);
    for (size_t k = 0; k < terms; k++) {
        bounded u = projection(w, t, e, k, 1), g = w->plan->ungated ? u : projection(w, t, e, k, 0);
        bounded m = oracle_act(a->activation_fn, alpha, g);
        m = oracle_clamp(m, a->act_clamp_upper_limit, (moe_optional_float){0, 0});
        if (a->activation_fn == MOE_SWIGLU)
            u = oracle_add(u, oracle_exact(oracle_flush((double)a->swiglu_up_offset.value)));
        if (!w->plan->ungated) m = oracle_mul(m, u);
        t->m.x[k] = w->plan->round_m ? oracle_to_bf16(m) : m;
    }
    quantise(w, &w->down, &t->m, terms, false);
}

/* ---- outputs -------------------------------------------------------------------------------- */

/* y_h of expert e: the down product, scale, bias. */
static bounded expert_output(const work *w, const token_work *t, size_t e, size_t h)
{
    const oracle_plan *p = w->plan;
    const moe_tensor *scale = p->args->expert_down_weights_scale, *bias = p->args->expert_down_bias;
    bounded y = oracle_dot_result(&t->dot, &w->down.order, h);
    if (scale && !p->mx) {
        size_t last = (size_t)scale->shape[1];
        y = oracle_mul(y, constant(scale, e * last + (last == 1 ? 0 : h)));
    }
    return bias ? oracle_add(y, constant(bias, e * p->H + h)) : y;
}

/* out += a y for each of the affinities with which the expert counts. */
static void add_expert(const work *w, token_work *t, size_t e, const double *affinity, size_t n)
{
    bool post = w->plan->args->expert_affinities_scaling_mode == MOE_POST_SCALE;
    for (size_t h = 0; h < w->plan->H; h++) {
        bounded y = expert_output(w, t, e, h);
        for (size_t i = 0; i < n; i++) {
            bounded term = post ? oracle_mul(oracle_exact(affinity[i]), y) : y;
            t->out[h] += term.v;
            t->size[h] += isfinite(term.v) ? fabs(term.v) + term.proof : 0;
            t->tight[h] += term.tight;
            t->proof[h] += term.proof;
        }
    }
    t->terms += n;
}

/* Each term has been rounded on its own; the sum rounds terms - 1 times more. */
static bounded finish(const token_work *t, size_t h)
{
    double v = t->out[h], size = t->size[h], own = (double)t->terms * 0x1p-53 * size;
    if (isnan(v)) return oracle_exact(v);
    size_t more = size > 0 && t->terms > 0 ? t->terms - 1 : 0;
    double floor = (double)more * ORACLE_ETA + own;
    double tight = t->tight[h] + oracle_gamma_tight(more) * size + floor;
    double proof = t->proof[h] + oracle_gamma(more) * size + floor;
    if (!(size + proof <= ORACLE_MAX_FLOAT)) return oracle_lost();
    return oracle_settle(v, tight, proof);
}

/* The tokens for which expert e counts; INPUT_SCALE: those with another affinity for it. */
static bool activate(work *w, size_t e)
{
    bool any = false;
    for (size_t i = 0; i < w->n; i++) {
        token_work *t = &w->token[i];
        t->active = oracle_affinities(w->plan, t->t, e, w->affinity) > w->turn;
        t->affinity = t->active ? w->affinity[w->turn] : 0;
        any |= t->active;
    }
    return any;
}

static void add_token(work *w, token_work *t, size_t e)
{
    size_t n = oracle_affinities(w->plan, t->t, e, w->affinity);
    add_expert(w, t, e, w->affinity, is_input_scaled(w) ? 1 : n);
}

static void run_turn(work *w, size_t e)
{
    const oracle_plan *p = w->plan;
    multiply(w, &w->gate_up, e, p->H, false);
    size_t terms = lanes_in_use(w, e);
    for (size_t i = 0; i < w->n; i++)
        if (w->token[i].active) make_intermediate(w, &w->token[i], e, terms);
    multiply(w, &w->down, e, terms, true);
    for (size_t i = 0; i < w->n; i++) {
        if (w->token[i].active) add_token(w, &w->token[i], e);
    }
}

static void run_expert(work *w, size_t e)
{
    for (w->turn = 0; (w->turn == 0 || is_input_scaled(w)) && activate(w, e); w->turn++)
        run_turn(w, e);
}

/* Rows first .. first + AT_ONCE - 1 of the result. */
static void run_tokens(work *w, oracle_rows *rows, size_t first)
{
    size_t H = rows->H;
    w->n = rows->n - first < AT_ONCE ? rows->n - first : AT_ONCE;
    for (size_t i = 0; i < w->n; i++) {
        token_work *t = &w->token[i];
        t->t = rows->token[first + i];
        t->terms = 0;
        memset(t->out, 0, H * 4 * sizeof *t->out);
        read_token(w, t);
    }
    for (size_t e = 0; e < w->plan->E_L; e++) run_expert(w, e);
    for (size_t n = 0; n < w->n * H; n++) {
        bounded y = finish(&w->token[n / H], n % H);
        rows->value[first * H + n] = y.v;
        rows->tight[first * H + n] = y.tight;
        rows->proof[first * H + n] = y.proof;
    }
}

/* ---- the call ------------------------------------------------------------------------------- */

static oracle_status rows_make(oracle_rows *rows, const oracle_plan *p, const size_t *tokens,
                               size_t n)
{
    size_t cells;
    if (__builtin_mul_overflow(n, p->H, &cells) || cells > PTRDIFF_MAX / sizeof(double))
        return ORACLE_E_ARGS;
    rows->n = n;
    rows->H = p->H;
    rows->mx = p->mx;
    rows->token = calloc(n + 1, sizeof *rows->token);
    rows->value = calloc(cells + 1, sizeof *rows->value);
    rows->tight = calloc(cells + 1, sizeof *rows->tight);
    rows->proof = calloc(cells + 1, sizeof *rows->proof);
    if (!rows->token || !rows->value || !rows->tight || !rows->proof) return ORACLE_E_NOMEM;
    for (size_t i = 0; i < n; i++) {
        rows->token[i] = tokens ? tokens[i] : i;
        if (rows->token[i] >= p->T) return ORACLE_E_ARGS;
    }
    return ORACLE_OK;
}

/* No token: the operator reads no tensor's data, and they may all be NULL. */
static bool is_empty(const moe_tkg_args *args)
{
    const moe_tensor *x = args->hidden_input;
    bool empty = false;
    for (int32_t i = 0; x && i < x->rank && i < MOE_MAX_RANK; i++) empty |= x->shape[i] == 0;
    return empty;
}

oracle_status oracle_run(const moe_tkg_args *args, const size_t *tokens, size_t n,
                         oracle_rows *rows)
{
    oracle_plan plan;
    *rows = (oracle_rows){0};
    if (is_empty(args)) return tokens && n > 0 ? ORACLE_E_ARGS : ORACLE_OK;
    if (!oracle_plan_make(&plan, args)) return ORACLE_E_ARGS;

    work w = {0};
    oracle_status status = rows_make(rows, &plan, tokens, tokens ? n : plan.T);
    if (status == ORACLE_OK && !work_make(&w, &plan, rows->n)) status = ORACLE_E_NOMEM;
    if (status == ORACLE_OK)
        for (size_t first = 0; first < rows->n; first += AT_ONCE) run_tokens(&w, rows, first);
    else
        oracle_free(rows);
    work_free(&w);
    return status;
}

void oracle_free(oracle_rows *rows)
{
    free(rows->token);
    free(rows->value);
    free(rows->tight);
    free(rows->proof);
    *rows = (oracle_rows){0};
}

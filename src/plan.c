/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c - routing to groups and passes; scratch sizes. */
#include "plan.h"

#include "checked.h"
#include "experts.h"
#include "numeric.h"
#include "sizes.h"

enum {
    PASS_TERMS = 512, /* y and intermediate rows of a pass: some 20 MB for the largest models */
    PASS_PACKED = 64 << 20 /* bytes of experts that a pass packs itself, one expert at least */
};

/* ---- sizes ----------------------------------------------------------------------------------- */

/* Reserves count items of `unit` bytes at the end of the block. */
static bool reserve(plan_scratch *s, size_t count, size_t unit, size_t *offset)
{
    size_t bytes;
    *offset = s->bytes;
    return checked_mul(count, unit, &bytes) && checked_add(s->bytes, bytes, &bytes) &&
           checked_round_up(bytes, KERNEL_ALIGN, &s->bytes) && s->bytes <= PTRDIFF_MAX;
}

static size_t row_bytes(kernel_operand o, size_t k)
{
    size_t bytes = kernel_operand_words(o, k) * sizeof(uint32_t);
    return (bytes + KERNEL_ALIGN - 1) / KERNEL_ALIGN * KERNEL_ALIGN;
}

bool plan_size(const problem *p, const kernel_table *kernels, call_plan *plan)
{
    plan_scratch *s = &plan->scratch;
    pack_layout *l = &plan->layout;
    size_t terms;
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->hidden = quantize_hidden_kind(p, kernels);
    plan->mid = quantize_mid_kind(p, kernels);
    plan->hidden_width = kernels->width[kernel_is_scaled(p->gate_up)];
    plan->mid_width = kernels->width[kernel_is_scaled(p->down)];
    if (p->experts != NULL)
        *l = p->experts->layout;
    else if (!pack_layout_of(&p->source, l))
        return false;
    if (!checked_mul(p->T, p->all_expert ? p->E_L : p->K, &terms)) return false;
    plan->pass_terms = size_smaller(terms, PASS_TERMS);
    plan->pass_slots = size_smaller(p->E_L, plan->pass_terms);
    if (p->experts == NULL)
        plan->pass_slots = size_smaller(plan->pass_slots, 1 + PASS_PACKED / l->bytes);
    s->hidden_row = row_bytes(plan->hidden.operand, l->hidden_k);
    s->mid_row = row_bytes(plan->mid.operand, l->mid_k);
    s->y_row = l->down_panels * 2 * KERNEL_ROWS;
    size_t y_rows = p->all_expert ? plan->pass_terms : terms;
    return reserve(s, p->T, s->hidden_row, &s->hidden) &&
           reserve(s, p->experts == NULL ? plan->pass_slots : 0, l->bytes, &s->expert) &&
           reserve(s, plan->pass_terms, s->hidden_row, &s->hidden_tile) &&
           reserve(s, plan->pass_terms, s->mid_row, &s->mid_tile) &&
           reserve(s, y_rows, s->y_row * sizeof(float), &s->y) &&
           reserve(s, p->T, s->y_row * sizeof(float), &s->out) &&
           reserve(s, terms, sizeof(plan_term), &s->term) &&
           reserve(s, size_smaller(terms, terms / KERNEL_TOKENS + p->E_L), sizeof(plan_group),
                   &s->group) &&
           reserve(s, p->E_L + 1, sizeof(size_t), &s->begin);
}

/* ---- routing --------------------------------------------------------------------------------- */

static bool is_zero(float affinity)
{
    return (num_bits(affinity) & NUM_ABS_MASK) < 0x00800000u; /* a zero or a subnormal */
}

bool plan_slot(const problem *p, size_t t, size_t k, size_t *expert, float *affinity)
{
    const moe_tkg_args *a = p->args;
    int64_t e = problem_integer(a->expert_index, t * p->K + k);
    if (e < 0 || (uint64_t)e >= p->E_L)
        return false; /* skip_invalid_experts: problem_check let it pass */
    *expert = (size_t)e;
    *affinity = 1.0f;
    if (!p->scaled) return true;
    *affinity = a->expert_affinities_eager != NULL
                    ? problem_float(a->expert_affinities_eager, t * p->K + k)
                    : problem_float(a->expert_affinities, t * p->E + *expert);
    return !is_zero(*affinity);
}

static bool is_selected(const problem *p, size_t t, size_t column)
{
    for (size_t k = 0; k < p->K; k++) {
        int64_t e = problem_integer(p->args->expert_index, t * p->K + k);
        if (e >= 0 && (uint64_t)e == column) return true;
    }
    return false;
}

/* All-expert: the affinity of local expert e for token t; false if the pair contributes nothing. */
static bool pair(const problem *p, size_t t, size_t e, float *affinity)
{
    *affinity = 1.0f;
    if (!p->scaled) return true;
    size_t column = p->rank * p->E_L + e;
    *affinity = problem_float(p->args->expert_affinities, t * p->E + column);
    return !is_zero(*affinity) && (!p->masked || is_selected(p, t, column));
}

/* The groups of one expert: terms [first, end). */
static void add_groups(call_plan *plan, size_t expert, size_t first, size_t end)
{
    if (first == end) return;
    const problem *p = plan->p;
    size_t mid_k = p->experts != NULL ? p->experts->mid_k[expert]
                                      : pack_mid_k(&p->source, &plan->layout, expert);
    for (; first < end; first += KERNEL_TOKENS)
        plan->group[plan->groups++] =
            (plan_group){.expert = expert,
                         .mid_k = mid_k,
                         .first = first,
                         .count = size_smaller(end - first, KERNEL_TOKENS)};
}

static void route_all(call_plan *plan)
{
    const problem *p = plan->p;
    size_t n = 0;
    for (size_t e = 0; e < p->E_L; e++) {
        size_t first = n;
        for (size_t t = 0; t < p->T; t++) {
            float affinity;
            if (pair(p, t, e, &affinity)) plan->term[n++] = (plan_term){t, 0, affinity};
        }
        add_groups(plan, e, first, n);
    }
}

/* Counting sort of the slots by expert; terms of one expert stay in order of token and slot. */
static void route_selected(call_plan *plan, size_t *begin)
{
    const problem *p = plan->p;
    size_t e;
    float affinity;
    memset(begin, 0, (p->E_L + 1) * sizeof *begin);
    for (size_t t = 0; t < p->T; t++)
        for (size_t k = 0; k < p->K; k++)
            if (plan_slot(p, t, k, &e, &affinity)) begin[e + 1]++;
    for (e = 0; e < p->E_L; e++) begin[e + 1] += begin[e];
    for (size_t t = 0; t < p->T; t++)
        for (size_t k = 0; k < p->K; k++)
            if (plan_slot(p, t, k, &e, &affinity))
                plan->term[begin[e]++] = (plan_term){t, t * p->K + k, affinity};
    /* begin[e] is now where expert e ends. */
    for (e = 0; e < p->E_L; e++) add_groups(plan, e, e == 0 ? 0 : begin[e - 1], begin[e]);
}

void plan_route(call_plan *plan, uint8_t *memory)
{
    plan->term = (plan_term *)(void *)(memory + plan->scratch.term);
    plan->group = (plan_group *)(void *)(memory + plan->scratch.group);
    if (plan->p->all_expert)
        route_all(plan);
    else
        route_selected(plan, (size_t *)(void *)(memory + plan->scratch.begin));
}

/* ---- passes ---------------------------------------------------------------------------------- */

bool plan_next(call_plan *plan, size_t *next, plan_pass *pass)
{
    *pass = (plan_pass){plan->group + *next, 0, 0, 0};
    for (; *next < plan->groups; ++*next, pass->groups++) {
        plan_group *g = &plan->group[*next];
        bool same = pass->groups > 0 && g[-1].expert == g->expert;
        if (pass->terms + g->count > plan->pass_terms || (!same && pass->slots == plan->pass_slots))
            break;
        if (!same) pass->slots++;
        g->slot = pass->slots - 1;
        for (size_t i = 0; plan->p->all_expert && i < g->count; i++)
            plan->term[g->first + i].row = pass->terms + i;
        pass->terms += g->count;
    }
    return pass->groups > 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* plan.h - from routing to work: which expert sees which tokens, in what order, and how much
 * scratch that takes.
 *
 * Pure: reads the routing and whether pad lanes have weights, computes nothing.  Work is a list
 * of groups (one expert, at most KERNEL_TOKENS of its tokens), sorted by expert, cut into passes
 * whose scratch is bounded. */
#ifndef MOE_PLAN_H
#define MOE_PLAN_H

#include "quantize.h"

/* One term of the sum over experts: y of an expert for a token. */
typedef struct plan_term {
    size_t token;
    size_t row;     /* of the y rows: selective t * K + k; all-expert its place in the pass */
    float affinity; /* POST_SCALE, INPUT_SCALE */
} plan_term;

typedef struct plan_group {
    size_t expert;
    size_t slot;         /* which expert of the pass */
    size_t mid_k;        /* of the expert's down product */
    size_t first, count; /* terms */
} plan_group;

typedef struct plan_pass {
    const plan_group *group;
    size_t groups, slots, terms;
} plan_pass;

/* The scratch of one call: offsets into one block of memory, KERNEL_ALIGN each. */
typedef struct plan_scratch {
    size_t hidden, hidden_row; /* operand rows of all tokens; bytes of one */
    size_t hidden_tile;        /* the same as tiles of a pass's groups */
    size_t expert;             /* experts of a pass that the call packs itself */
    size_t mid_tile, mid_row;  /* operands of the down product of a pass's terms; bytes of one */
    size_t y, y_row;    /* f32 y rows, of all terms or (all-expert) of a pass; floats of a row */
    size_t out;         /* f32 sums [T][y_row] */
    size_t term, group; /* the two lists */
    size_t begin;       /* counting sort: E_L + 1 */
    size_t bytes;
} plan_scratch;

typedef struct call_plan {
    const problem *p;
    pack_layout layout;
    quantize_kind hidden, mid;
    size_t hidden_width, mid_width; /* of the widest tiles */
    plan_scratch scratch;
    size_t pass_terms, pass_slots; /* most terms and experts of one pass */
    plan_term *term;
    plan_group *group;
    size_t groups;
} call_plan;

/* Sizes the scratch of a call.  Depends on dimensions and modes alone, so that equal calls need
 * equal scratch.  False if a size does not fit. */
bool plan_size(const problem *p, const kernel_table *kernels, call_plan *plan);

/* Reads the routing and fills the lists, which lie in memory (plan->scratch.bytes). */
void plan_route(call_plan *plan, uint8_t *memory);

/* Selective mode: the expert of slot k of token t and its affinity; false if the slot
 * contributes nothing. */
bool plan_slot(const problem *p, size_t t, size_t k, size_t *expert, float *affinity);

/* The pass that starts at group number *next; moves *next on.  No groups are left: false. */
bool plan_next(call_plan *plan, size_t *next, plan_pass *pass);

#endif

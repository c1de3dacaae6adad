/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_plan.h - the arguments of a call, checked as far as the oracle's own accesses need it. */
#ifndef MOE_ORACLE_PLAN_H
#define MOE_ORACLE_PLAN_H

#include "oracle_dot.h"

/* The place of an MX term: position q of the x4 word in partition 8 b + r of the tile. */
typedef struct oracle_place {
    size_t tile, b, q, r;
} oracle_place;

typedef struct oracle_plan {
    const moe_tkg_args *args;
    size_t T, H, I, E_L, E, K;
    bool mx, prequantised;
    bool ungated;       /* plain gate/up weights [E_L, H, 1, I]: up alone */
    size_t nH, nI, I_p; /* MX */
    size_t lanes;       /* terms of the down product: I, or nI * I_p * 4 lanes */
    moe_act_mode mode;  /* never DEFAULT */
    bool round_m;       /* the intermediate is rounded to bf16 */
    int64_t column;     /* of the affinities: that of local expert 0 */
} oracle_plan;

/* False if args are such that reading what the plan says would leave a tensor, or make no sense. */
bool oracle_plan_make(oracle_plan *p, const moe_tkg_args *args);

/* That of term k in the operator's order: by tile, b, q, r.  per_tile: blocks of a tile. */
oracle_place oracle_place_of(size_t k, size_t per_tile);

/* Which i the lane is: I if it is a pad lane. */
size_t oracle_lane(const oracle_plan *p, oracle_place at);

/* The hidden value of token t that is term k of the gate and up products. */
double oracle_hidden(const oracle_plan *p, size_t t, size_t k);

/* Stores the affinities with which expert e counts for token t, 1 in NO_SCALE, in a, which has room
 * for max(K, 1).  Returns how many. */
size_t oracle_affinities(const oracle_plan *p, size_t t, size_t e, double *a);

#endif

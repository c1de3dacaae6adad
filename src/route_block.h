/* SPDX-License-Identifier: Apache-2.0 */
/* route_block.h - a router's elementwise work: docs/numerics.md section 9.
 *
 * Written as loops without branches between their turns, and included by each instruction set's
 * file, whose compiler makes vectors of them: every operation is one of IEEE's, so the bits are the
 * same. */
#ifndef MOE_ROUTE_BLOCK_H
#define MOE_ROUTE_BLOCK_H

#include "kernel.h"
#include "numeric.h"

/* The kernel_scores_fn of every table. */
static inline void route_scores(const kernel_scores *a)
{
    switch (a->score) {
    case MOE_SCORE_SIGMOID:
        for (size_t i = 0; i < a->n; i++) a->score_of[i] = num_sigmoid(a->logit[i]);
        break;
    case MOE_SCORE_SQRT_SOFTPLUS:
        for (size_t i = 0; i < a->n; i++) a->score_of[i] = num_sqrt_softplus(a->logit[i]);
        break;
    default:
        for (size_t i = 0; i < a->n; i++)
            a->score_of[i] = num_exp_difference(a->logit[i], a->largest);
    }
}

static inline void route_widen_bf16(const uint16_t *v, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) out[i] = num_from_bf16(v[i]);
}

#endif

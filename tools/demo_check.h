/* SPDX-License-Identifier: Apache-2.0 */
/* demo_check.h - is a token of a layer of row-major MXFP4 experts right?  Asks the float64 oracle. */
#ifndef MOE_DEMO_CHECK_H
#define MOE_DEMO_CHECK_H

#include "bench_layer.h"
#include "judge.h"

enum { DEMO_MAX_K = 8 };

/* One token of a call, and what came out. */
typedef struct demo_token {
    const uint16_t *hidden;     /* [H], bf16 */
    int32_t chosen[DEMO_MAX_K]; /* of the source's experts */
    float affinity[DEMO_MAX_K];
    uint16_t *output;      /* [H], bf16; owned by the caller */
    judge_verdict verdict; /* of demo_check */
} demo_token;

/* source: MXFP4, K at most DEMO_MAX_K.  False: no memory. */
bool demo_check(const bench_source *source, moe_act_mode act, demo_token *token);

#endif

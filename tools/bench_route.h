/* SPDX-License-Identifier: Apache-2.0 */
/* bench_route.h - tokens for a layer: which experts they take, with which affinities. */
#ifndef MOE_BENCH_ROUTE_H
#define MOE_BENCH_ROUTE_H

#include "shapes.h"

#include <stddef.h>

enum { BENCH_MAX_T = 128 };

typedef enum route_kind {
    ROUTE_UNIFORM, /* K of E, each as likely */
    ROUTE_ZIPF,    /* the expert of rank r with weight 1 / r; ranks by a random permutation */
    ROUTE_ONE,     /* all tokens of a call the same K */
    ROUTE_FILE     /* the next lines of a file */
} route_kind;

bool route_from_name(const char *text, route_kind *kind);
const char *route_name(route_kind kind);

/* Draws routings. */
typedef struct router {
    route_kind kind;
    int64_t E, K;
    uint64_t state;
    double *weight; /* [E], of ROUTE_ZIPF */
    double *key;    /* [E] */
    int32_t *order; /* [E] */
    int32_t *line;  /* [lines, K], of ROUTE_FILE */
    size_t lines, next;
} router;

/* path: of ROUTE_FILE, lines of K different expert numbers below E, with blanks or commas between;
 * empty lines and those that begin with # are left out.  False with a message otherwise, or if
 * memory ran out. */
bool router_open(router *r, route_kind kind, const shape *s, uint64_t seed, const char *path,
                 char *message, size_t size);
void router_close(router *r); /* fine if it did not open */

/* The tokens of one call. */
typedef struct bench_batch {
    size_t T, experts; /* experts: how many different ones were chosen */
    moe_tensor hidden, index, affinities;
    uint16_t *x;      /* [BENCH_MAX_T, H], bf16: the same in every batch */
    int32_t *chosen;  /* [BENCH_MAX_T, K] */
    float *affinity;  /* [BENCH_MAX_T, K]: a token's sum to 1 */
    uint8_t *seen;    /* [E] */
    uint16_t *output; /* [BENCH_MAX_T, H], bf16 */
} bench_batch;

bool bench_batch_open(bench_batch *b, const shape *s, uint64_t seed); /* false: no memory */
void bench_batch_close(bench_batch *b);                               /* fine if it did not open */

/* New routing and affinities for T tokens. */
void bench_batch_route(bench_batch *b, router *r, size_t T);

/* The call on these experts: selective, and otherwise as `call` says. */
moe_tkg_args bench_batch_args(const bench_batch *b, const moe_tkg_args *call,
                              const moe_experts *experts, moe_act_mode act);

#endif

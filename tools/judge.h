/* SPDX-License-Identifier: Apache-2.0 */
/* judge.h - is this output right?  Against a case's expectation, or against the float64 oracle. */
#ifndef MOE_JUDGE_H
#define MOE_JUDGE_H

#include "case.h"
#include "oracle.h"

typedef enum judge_gate { JUDGE_TIGHT, JUDGE_STRICT, JUDGE_UPSTREAM, JUDGE_BOUND } judge_gate;

bool judge_gate_from_name(const char *text, judge_gate *gate);
const char *judge_gate_name(judge_gate gate);

typedef struct judge_verdict {
    bool pass;
    double error; /* the largest distance; inf if a NaN or an infinity is wrong */
    double limit; /* what error must not exceed; of JUDGE_BOUND see judge_bound */
    /* Of JUDGE_BOUND: cells judged, of them outside the proven interval, of them inside it but
     * outside the tight one; and cells not judged, because they have no finite bound. */
    size_t cells, outside, between, unbounded;
    char note[256]; /* where it is worst, or what was not judged; "" if nothing need be said */
} judge_verdict;

/* output->data, as the operator would write it, against c->expected, which has as many elements:
 * max|got - expected| <= atol + rtol * max|expected|, with the file's tolerances or, if it has
 * none, those that golden/README.md gives for its types.  gate: not JUDGE_BOUND. */
judge_verdict judge_expected(const moe_case *c, judge_gate gate, const moe_tensor *output);

/* The same output against the interval that the oracle computes for every element.  Passes if all
 * cells are judged and inside their proven intervals; limit is that of oracle_verdict, from the
 * tight interval, and limit and error are those of the cell where error / limit is most.  So error
 * may exceed limit and the verdict be a pass: only if between counts such cells.  Tokens as in
 * oracle_run. */
oracle_status judge_bound(const moe_tkg_args *args, const size_t *tokens, size_t n,
                          const moe_tensor *output, judge_verdict *verdict);

#endif

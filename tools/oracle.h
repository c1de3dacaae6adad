/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.h - the operator in float64, straight from its definition, with a bound for every output.
 *
 * Shares no code with the library: no packing, no tiles, no tricks.  docs/bounds.md derives the
 * bounds.  Assumes rounding to nearest in the caller's floating-point environment. */
#ifndef MOE_ORACLE_H
#define MOE_ORACLE_H

#include <moe_tkg.h>

/* The rows of n tokens: cell (i, h) is at [i * H + h] whatever the layout of the output tensor is.
 *
 * value is the result before the output's rounding, every specified quantisation applied.  The
 * operator's own result, also before that rounding, differs from it by at most proof, and by at
 * most tight but for a probability of 3e-8 for each sum behind it (lambda = 6).  value NaN or
 * infinite: the operator's result is that too, and both bounds are 0.  Where the operator may leave
 * the range of f32, both are infinite and value means nothing. */
typedef struct oracle_rows {
    size_t n, H;
    int mx;        /* whether the weights are MX: the SBUF layout of the output depends on it */
    size_t *token; /* [n] which tokens */
    double *value, *tight, *proof; /* [n * H] */
} oracle_rows;

typedef enum oracle_status { ORACLE_OK = 0, ORACLE_E_NOMEM, ORACLE_E_ARGS } oracle_status;

/* Computes the rows of the n tokens named in tokens (NULL: all T, n is ignored).  args must be
 * arguments that moe_tkg accepts; anything that would make the oracle read outside a tensor is
 * ORACLE_E_ARGS.  Free with oracle_free. */
oracle_status oracle_run(const moe_tkg_args *args, const size_t *tokens, size_t n,
                         oracle_rows *rows);
void oracle_free(oracle_rows *rows);

/* What an output of the operator is worth against the rows.  A cell passes if it lies in
 * [round(value - tight), round(value + tight)], round = to the output's dtype, infinite ends
 * included and -0 = +0; or is NaN where value is. */
typedef struct oracle_verdict {
    size_t cells; /* all of them */
    size_t
        outside_tight; /* outside the tight interval but inside the proven one: to be looked at */
    size_t outside;    /* outside the proven interval: wrong */
    size_t unbounded;  /* not judged, because the bounds are infinite */
    double worst; /* largest |got - value| / limit; infinite for a mismatch of NaN or infinity */
    double limit; /* there: tight + half of the distance of two neighbours in the output's dtype */
    double error; /* largest |got - value| of the finite cells */
    double scale; /* largest |value| of them */
    size_t worst_token, worst_h;
} oracle_verdict;

/* output: what moe_tkg wrote, described by *tensor (as moe_tkg_output fills it). */
oracle_verdict oracle_judge(const oracle_rows *rows, const moe_tensor *tensor, const void *output);

/* One cell of an output tensor, any dtype and layout.  mx: whether the weights are MX. */
double oracle_output_cell(const moe_tensor *tensor, int mx, const void *output, size_t t, size_t h);

#endif

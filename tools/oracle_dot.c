/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_dot.c - sums of products, and how far the operator's may be from them (docs/bounds.md). */
#include "oracle_dot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SUMS = 11 };

bool oracle_dot_make(oracle_dot *d, size_t columns)
{
    *d = (oracle_dot){.columns = columns};
    d->memory = calloc(columns, SUMS * sizeof(double));
    if (d->memory) oracle_dot_clear(d, columns);
    return d->memory != NULL;
}

void oracle_dot_free(oracle_dot *d)
{
    free(d->memory);
    d->memory = NULL;
}

void oracle_dot_clear(oracle_dot *d, size_t columns)
{
    double **sums[SUMS] = {&d->sum,         &d->size,         &d->tight,      &d->proof,
                           &d->square,      &d->total,        &d->total_size, &d->total_tight,
                           &d->total_proof, &d->total_square, &d->floor};
    for (size_t i = 0; i < SUMS; i++) *sums[i] = d->memory + i * columns;
    d->columns = columns;
    memset(d->memory, 0, SUMS * columns * sizeof *d->memory);
}

/* ---- terms ---------------------------------------------------------------------------------- */

/* One term of which something is not finite: x or w infinite or NaN, or x lost. */
static void add_special(oracle_dot *d, size_t c, bounded x, double w)
{
    if (isnan(w) || isnan(x.v)) {
        d->sum[c] = NAN;
    } else if (oracle_is_lost(x) || (isinf(w) && x.proof > 0 && fabs(x.v) <= x.proof)) {
        d->proof[c] = INFINITY;
    } else {
        d->sum[c] += x.v * w;
        if (!isfinite(x.v * w)) return;
        d->size[c] += fabs(x.v * w);
        d->tight[c] += x.tight * fabs(w);
        d->proof[c] += x.proof * fabs(w);
        d->square[c] += x.tight * x.tight * w * w;
    }
}

void oracle_dot_term(oracle_dot *d, bounded x, const double *w, bool finite)
{
    size_t n = d->columns;
    if (!finite || !isfinite(x.v) || oracle_is_lost(x)) {
        for (size_t c = 0; c < n; c++) add_special(d, c, x, w[c]);
        return;
    }
    double *sum = d->sum, *size = d->size, *tight = d->tight, *proof = d->proof,
           *square = d->square;
    for (size_t c = 0; c < n; c++) {
        double term = x.v * w[c];
        sum[c] += term;
        size[c] += fabs(term);
    }
    if (x.proof == 0) return;
    for (size_t c = 0; c < n; c++) {
        double t = x.tight * fabs(w[c]);
        tight[c] += t;
        square[c] += t * t;
        proof[c] += x.proof * fabs(w[c]);
    }
}

/* ---- blocks --------------------------------------------------------------------------------- */

/* What the operator may lose in a block's result by making zero of what is below 2^-126: at every
 * term, at the factor times 1/2 or 1/4 and times the power of two (int8; the sum there is of
 * doubled weights), at the sum of blocks. */
static double floor_of(const oracle_order *order, size_t terms, double most, double least_factor,
                       double scale)
{
    if (!order->integer) return (double)(terms + 2) * ORACLE_ETA * scale + ORACLE_ETA;
    double low = least_factor < 4 * ORACLE_ETA ? 2 * scale : 0;
    return 2 * most * ORACLE_ETA * (1 + low) + ORACLE_ETA;
}

static void fold_column(oracle_dot *d, const oracle_order *order, size_t c, size_t terms,
                        double scale, bounded factor, bool joint)
{
    double sum = d->sum[c], magnitude = isfinite(sum) ? fabs(sum) : 0;
    d->total[c] += sum * factor.v * scale;
    if (isnan(sum) || isnan(scale)) return;
    double size = order->integer ? magnitude : d->size[c], most = size + d->proof[c];
    double high = (factor.v + factor.proof) * scale, high_tight = (factor.v + factor.tight) * scale;
    if (most == 0 && high <= ORACLE_MAX_FLOAT) return;

    /* The sum of the block stands in f32 before its scale, and int8's two scales are multiplied
     * before the sum, which is then 0 times infinity even if nothing was to be scaled. */
    bool fits = most * (1 + oracle_gamma(terms)) <= ORACLE_MAX_FLOAT;
    if (!fits || (order->integer && !(high <= ORACLE_MAX_FLOAT))) d->total_proof[c] = INFINITY;

    double moved = d->tight[c] * high_tight, scaled = factor.tight * scale * magnitude;
    d->total_size[c] += most * high;
    d->total_proof[c] += d->proof[c] * high + factor.proof * scale * magnitude;
    d->total_tight[c] += moved + scaled;
    d->total_square[c] += joint ? moved * moved : d->square[c] * high_tight * high_tight;
    d->total_square[c] += scaled * scaled;
    d->floor[c] += floor_of(order, terms, most, factor.v - factor.proof, scale);
}

void oracle_dot_fold(oracle_dot *d, const oracle_order *order, size_t terms, const double *scale,
                     bounded factor, bool joint)
{
    for (size_t c = 0; c < d->columns; c++)
        fold_column(d, order, c, terms, scale ? scale[c] : 1, factor, joint);
    memset(d->sum, 0, d->columns * sizeof *d->sum);
    memset(d->size, 0, d->columns * sizeof *d->size);
    memset(d->tight, 0, d->columns * sizeof *d->tight);
    memset(d->proof, 0, d->columns * sizeof *d->proof);
    memset(d->square, 0, d->columns * sizeof *d->square);
}

/* gamma_depth S + the operands' share + floor; depth: the roundings that one term can pass. */
bounded oracle_dot_result(const oracle_dot *d, const oracle_order *order, size_t c)
{
    double v = d->total[c], size = d->total_size[c], floor = d->floor[c];
    if (isnan(v)) return oracle_exact(v);
    size_t blocks = (order->terms + order->block - 1) / order->block;
    size_t inside = order->integer ? 0 : order->terms < order->block ? order->terms : order->block;
    size_t depth = inside + blocks;

    double gamma = oracle_gamma(depth), gamma_tight = oracle_gamma_tight(depth);
    double own = (double)(order->terms + blocks + 8) * 0x1p-53 * size; /* of this sum in float64 */
    double moved = fmin(d->total_tight[c], ORACLE_LAMBDA * sqrt(d->total_square[c]));
    double proof = gamma * size + d->total_proof[c] + (1 + gamma) * floor + own;
    double tight = gamma_tight * size + moved + (1 + gamma) * floor + own;
    if (!(size + proof <= ORACLE_MAX_FLOAT)) return oracle_lost();
    return oracle_settle(v, tight, proof);
}

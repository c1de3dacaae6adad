/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_judge.c - is this output right?  Every cell against its interval (docs/bounds.md). */
#include "oracle.h"
#include "oracle_tensor.h"

#include <math.h>

double oracle_output_cell(const moe_tensor *tensor, int mx, const void *output, size_t t, size_t h)
{
    moe_tensor here = *tensor;
    here.data = output;
    if (tensor->layout == MOE_LAYOUT_HBM) {
        size_t H = (size_t)tensor->shape[tensor->rank - 1];
        return oracle_stored_at(&here, t * H + h);
    }
    size_t T = (size_t)tensor->shape[1], H1 = (size_t)tensor->shape[2];
    size_t p = mx ? h % 128 : h / H1, j = mx ? h / 128 : h % H1;
    return oracle_stored_at(&here, (p * T + t) * H1 + j);
}

/* -0 equals +0, an infinite end of the interval takes an infinity of its sign. */
static int is_within(double got, double value, double error, moe_dtype dtype)
{
    return got >= oracle_round(value - error, dtype) && got <= oracle_round(value + error, dtype);
}

/* The error in units of what is allowed; of what is not finite 0 if it is right. */
static double ratio_of(double got, double value, double limit, int right)
{
    if (isfinite(got) && isfinite(value)) return fabs(got - value) / limit;
    return right ? 0 : (double)INFINITY;
}

oracle_verdict oracle_judge(const oracle_rows *rows, const moe_tensor *tensor, const void *output)
{
    oracle_verdict v = {0};
    for (size_t n = 0; n < rows->n * rows->H; n++) {
        size_t t = rows->token[n / rows->H], h = n % rows->H;
        double value = rows->value[n], tight = rows->tight[n], proof = rows->proof[n];
        double got = oracle_output_cell(tensor, rows->mx, output, t, h);
        if (!isfinite(proof)) {
            v.unbounded++;
            continue;
        }
        v.cells++;
        int right = isnan(value) ? isnan(got) : is_within(got, value, proof, tensor->dtype);
        int close = isnan(value) ? right : is_within(got, value, tight, tensor->dtype);
        double limit = tight + oracle_half_unit(fabs(value) + tight, tensor->dtype);
        double ratio = ratio_of(got, value, limit, right);
        v.outside += !right;
        v.outside_tight += right && !close;
        if (isfinite(value)) v.scale = fmax(v.scale, fabs(value));
        if (isfinite(got) && isfinite(value)) v.error = fmax(v.error, fabs(got - value));
        if (ratio > v.worst || v.cells == 1) {
            v.worst = ratio;
            v.limit = limit;
            v.worst_token = t;
            v.worst_h = h;
        }
    }
    return v;
}

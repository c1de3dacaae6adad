/* SPDX-License-Identifier: Apache-2.0 */
/* judge.c - compares an output with what it should be.
 *
 * Owns the gates: the metric and the tolerances of the golden cases, and the reading of the
 * oracle's verdict.  Nothing here falls back from one gate to another. */
#include "judge.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char *const GATES[] = {"tight", "strict", "upstream", "bound"};

bool judge_gate_from_name(const char *text, judge_gate *gate)
{
    for (size_t i = 0; i < sizeof GATES / sizeof GATES[0]; i++) {
        if (strcmp(text, GATES[i]) != 0) continue;
        *gate = (judge_gate)i;
        return true;
    }
    return false;
}

const char *judge_gate_name(judge_gate gate)
{
    return GATES[gate];
}

/* ---- tolerances ---------------------------------------------------------------------------- */

/* Largest relative error of rounding to dtype; that of f32 is inside the 2e-5 of every
 * tolerance. */
static double unit_roundoff(moe_dtype dtype)
{
    return dtype == MOE_BF16 ? 0x1p-8 : dtype == MOE_F16 ? 0x1p-11 : 0;
}

/* What rounding the intermediate to hidden's type may cost. */
static double intermediate_rounding(const moe_tkg_args *args)
{
    int64_t I = args->expert_gate_up_weights->shape[3];
    switch (args->hidden_input->dtype) {
    case MOE_BF16: return I < 64 ? 0x1p-8 : 0x1p-9;
    case MOE_F16: return 0x1p-12;
    default: return 0;
    }
}

static double default_rtol(const moe_tkg_args *args, judge_gate gate)
{
    moe_dtype hidden = args->hidden_input->dtype, output = args->output_dtype;
    if (output == MOE_DTYPE_NONE) output = hidden == MOE_MXFP8_X4 ? MOE_BF16 : hidden;
    bool mx = case_is_mx(args);
    double tight = 2e-5 + unit_roundoff(output);
    switch (gate) {
    case JUDGE_TIGHT: return tight;
    case JUDGE_STRICT:
        return mx ? 1e-2 + unit_roundoff(output) : tight + intermediate_rounding(args);
    default: return mx ? 5e-2 : hidden == MOE_BF16 ? 3e-2 : 2e-2;
    }
}

static double rtol_of(const moe_case *c, judge_gate gate)
{
    double rtol = gate == JUDGE_TIGHT    ? c->rtol_tight
                  : gate == JUDGE_STRICT ? c->rtol_strict
                                         : c->rtol_upstream;
    return isnan(rtol) ? default_rtol(&c->args, gate) : rtol;
}

/* ---- against what a file expects ----------------------------------------------------------- */

static double f16_value(uint16_t bits)
{
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double magnitude = exponent == 31  ? (mantissa ? (double)NAN : (double)INFINITY)
                       : exponent == 0 ? ldexp(mantissa, -24)
                                       : ldexp(1024 + mantissa, exponent - 25);
    return bits >> 15 ? -magnitude : magnitude;
}

/* Element i of an output, in memory order, exactly. */
static double element(const moe_tensor *output, size_t i)
{
    uint32_t word;
    uint16_t half;
    float value;
    if (output->dtype == MOE_F32) {
        memcpy(&value, (const char *)output->data + 4 * i, 4);
        return (double)value;
    }
    memcpy(&half, (const char *)output->data + 2 * i, 2);
    if (output->dtype == MOE_F16) return f16_value(half);
    word = (uint32_t)half << 16;
    memcpy(&value, &word, 4);
    return (double)value;
}

/* Values from here on round to infinity in dtype. */
static double overflow_from(moe_dtype dtype)
{
    return dtype == MOE_F16 ? 65520.0 : dtype == MOE_BF16 ? 0x1.FFp127 : (double)INFINITY;
}

/* expected is before the output's rounding, so an infinity is right where that rounding
 * overflows. */
static double distance(double got, double expected, double overflow)
{
    if (isnan(got) && isnan(expected)) return 0;
    if (isnan(got) || isnan(expected)) return (double)INFINITY;
    if (isinf(got) && fabs(expected) >= overflow && signbit(got) == signbit(expected)) return 0;
    return fabs(got - expected);
}

judge_verdict judge_expected(const moe_case *c, judge_gate gate, const moe_tensor *output)
{
    judge_verdict v = {0};
    double scale = 0, overflow = overflow_from(output->dtype);
    size_t worst = 0;
    for (size_t i = 0; i < c->expected_count; i++) {
        double expected = (double)c->expected[i];
        double d = distance(element(output, i), expected, overflow);
        if (d > v.error) {
            v.error = d;
            worst = i;
        }
        if (isfinite(expected) && fabs(expected) > scale) scale = fabs(expected);
    }
    v.limit = (isnan(c->atol) ? 1e-5 : c->atol) + rtol_of(c, gate) * scale;
    v.pass = v.error <= v.limit && isfinite(v.error);
    if (!v.pass)
        snprintf(v.note, sizeof v.note, "element %zu is %.9g, expected %.9g", worst,
                 element(output, worst), (double)c->expected[worst]);
    return v;
}

/* ---- against the oracle -------------------------------------------------------------------- */

/* Adds a remark to the note. */
__attribute__((format(printf, 2, 3))) static void note(judge_verdict *v, const char *format, ...)
{
    va_list list;
    size_t used = strlen(v->note);
    if (used) used += (size_t)snprintf(v->note + used, sizeof v->note - used, "; ");
    if (used >= sizeof v->note) return;
    va_start(list, format);
    vsnprintf(v->note + used, sizeof v->note - used, format, list);
    va_end(list);
}

/* A cell that nothing was said of is no reason to pass, and one that the proof allows none to
 * fail. */
static void decide(judge_verdict *v, const oracle_verdict *o)
{
    v->cells = o->cells;
    v->outside = o->outside;
    v->between = o->outside_tight;
    v->unbounded = o->unbounded;
    v->pass = o->outside == 0 && o->unbounded == 0;
    v->limit = isnan(o->limit) ? 0 : o->limit; /* of a NaN that is right */
    v->error = isinf(o->worst) ? o->worst : o->worst * v->limit;
    if (o->outside)
        note(v, "%zu of %zu cells outside the proven interval; worst: token %zu, h %zu", o->outside,
             o->cells, o->worst_token, o->worst_h);
    if (o->unbounded)
        note(v, "%zu of %zu cells not judged: no finite bound", o->unbounded,
             o->cells + o->unbounded);
    if (o->outside_tight)
        note(v, "%zu cells between the tight and the proven interval", o->outside_tight);
}

oracle_status judge_bound(const moe_tkg_args *args, const size_t *tokens, size_t n,
                          const moe_tensor *output, judge_verdict *verdict)
{
    oracle_rows rows;
    memset(verdict, 0, sizeof *verdict);
    oracle_status status = oracle_run(args, tokens, n, &rows);
    if (status != ORACLE_OK) return status;
    oracle_verdict o = oracle_judge(&rows, output, output->data);
    oracle_free(&rows);
    decide(verdict, &o);
    return ORACLE_OK;
}

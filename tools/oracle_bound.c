/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_bound.c - the error of one operation, from those of its operands (docs/bounds.md).
 *
 * Owns the rules for numbers that are not finite: what is NaN or infinite for certain stays so,
 * what may have left f32's range is lost. */
#include "oracle_bound.h"

#include <math.h>

/* ---- vocabulary ----------------------------------------------------------------------------- */

bounded oracle_exact(double v)
{
    return (bounded){v, 0, 0};
}

bounded oracle_lost(void)
{
    return (bounded){0, INFINITY, INFINITY};
}

bool oracle_is_lost(bounded a)
{
    return isinf(a.proof);
}

bounded oracle_settle(double v, double tight, double proof)
{
    if (!isfinite(v)) return oracle_exact(v);
    if (!(fabs(v) + proof <= ORACLE_MAX_FLOAT)) return oracle_lost();
    return (bounded){v, fmin(tight, proof), proof};
}

double oracle_gamma(size_t n)
{
    double nu = (double)n * ORACLE_U;
    return nu < 1 ? nu / (1 - nu) : (double)INFINITY;
}

double oracle_gamma_tight(size_t n)
{
    double m = (double)n, u = ORACLE_U;
    return fmin(oracle_gamma(n), expm1(ORACLE_LAMBDA * sqrt(m) * u + m * u * u / (1 - u)));
}

/* The error d of a result of at most that magnitude, after rounding; a sure 0 is not rounded. */
static double rounded(double magnitude, double d)
{
    return magnitude == 0 ? 0 : d + ORACLE_U * magnitude + ORACLE_ETA;
}

/* How far a monotone function gets from its value v, given those at the ends of an interval. */
static double reach(double v, double low, double high)
{
    double down = low == v ? 0 : v - low, up = high == v ? 0 : high - v;
    return fmax(fmax(down, up), 0);
}

/* ---- arithmetic ----------------------------------------------------------------------------- */

bounded oracle_add(bounded a, bounded b)
{
    if (isnan(a.v) || isnan(b.v)) return oracle_exact(NAN);
    if (oracle_is_lost(a) || oracle_is_lost(b)) return oracle_lost();
    if (b.v == 0 && b.proof == 0) return a;
    if (a.v == 0 && a.proof == 0) return b;
    double v = a.v + b.v, tight = a.tight + b.tight, proof = a.proof + b.proof;
    return oracle_settle(v, rounded(fabs(v) + tight, tight), rounded(fabs(v) + proof, proof));
}

static double product_error(double a, double da, double b, double db)
{
    double d = fabs(a) * db + fabs(b) * da + da * db;
    return rounded(fabs(a * b) + d, d);
}

/* Infinity times what may be zero of either sign may be anything. */
bounded oracle_mul(bounded a, bounded b)
{
    if (isnan(a.v) || isnan(b.v)) return oracle_exact(NAN);
    if (oracle_is_lost(a) || oracle_is_lost(b)) return oracle_lost();
    bool unsure_a = a.proof > 0 && fabs(a.v) <= a.proof,
         unsure_b = b.proof > 0 && fabs(b.v) <= b.proof;
    if ((isinf(a.v) && unsure_b) || (isinf(b.v) && unsure_a)) return oracle_lost();
    if (isinf(a.v) || isinf(b.v)) return oracle_exact(a.v * b.v);
    return oracle_settle(a.v * b.v, product_error(a.v, a.tight, b.v, b.tight),
                         product_error(a.v, a.proof, b.v, b.proof));
}

static double clamped(double g, moe_optional_float upper, moe_optional_float lower)
{
    if (upper.given && g > (double)upper.value) g = oracle_flush((double)upper.value);
    if (lower.given && g < (double)lower.value) g = oracle_flush((double)lower.value);
    return g;
}

bounded oracle_clamp(bounded g, moe_optional_float upper, moe_optional_float lower)
{
    if (isnan(g.v) || oracle_is_lost(g)) return g;
    double v = clamped(g.v, upper, lower);
    if (isinf(g.v)) return oracle_exact(v);
    double tight =
        reach(v, clamped(g.v - g.tight, upper, lower), clamped(g.v + g.tight, upper, lower));
    double proof =
        reach(v, clamped(g.v - g.proof, upper, lower), clamped(g.v + g.proof, upper, lower));
    return (bounded){v, tight, proof};
}

static double bf16(double x)
{
    return oracle_round(oracle_flush(x), MOE_BF16);
}

bounded oracle_to_bf16(bounded a)
{
    if (!isfinite(a.v) || oracle_is_lost(a)) return a;
    double v = bf16(a.v);
    double tight = reach(v, bf16(a.v - a.tight), bf16(a.v + a.tight));
    double proof = reach(v, bf16(a.v - a.proof), bf16(a.v + a.proof));
    if (isinf(v)) return proof == 0 ? oracle_exact(v) : oracle_lost();
    return isinf(proof) ? oracle_lost() : (bounded){v, tight, proof};
}

/* ---- activations ---------------------------------------------------------------------------- */

/* f = g s(z), s the logistic function and z(g) odd: all activations but GELU and the ReLUs. */
typedef struct logistic {
    double z, slope; /* z and dz/dg */
} logistic;

static logistic logistic_at(moe_activation fn, double alpha, double g)
{
    const double c1 = 2 * 0.79788456080286535588, c3 = c1 * 0.044715; /* 2 sqrt(2/pi) */
    if (fn == MOE_GELU_TANH) return (logistic){g * (c1 + c3 * g * g), c1 + 3 * c3 * g * g};
    double a = fn == MOE_SWIGLU ? alpha : fn == MOE_SWISH ? (double)1.702f : 1;
    return (logistic){a * g, a};
}

static double act_value(moe_activation fn, double alpha, double g)
{
    if (fn == MOE_RELU || fn == MOE_RELU2) {
        double r = g > 0 || isnan(g) ? g : 0;
        return fn == MOE_RELU ? r : r * r;
    }
    if (fn == MOE_GELU) return 0.5 * g * erfc(-g * 0.70710678118654752440);
    return g / (1 + exp(-logistic_at(fn, alpha, g).z));
}

/* What the function adds of its own at any point of [g - d, g + d]: a multiple of its value, and an
 * absolute part where its exp leaves f32's range. */
static double act_own(moe_activation fn, double alpha, double g, double d, double magnitude)
{
    if (fn == MOE_GELU) return 8 * ORACLE_U * magnitude + 14 * ORACLE_ETA;
    double z0 = logistic_at(fn, alpha, g - d).z, z1 = logistic_at(fn, alpha, g + d).z;
    double lowest = fmin(z0, z1), relative = 4;
    if (fn == MOE_GELU_TANH) relative += (9 + 2.5 * fmax(fabs(z0), fabs(z1))) / (1 + exp(lowest));
    double floor = lowest < -87 ? 0x1p-125 * (fabs(g) + d) : 0;
    return relative * ORACLE_U * magnitude + ORACLE_ETA + floor;
}

/* |f(g +- d) - f(g)| <= min(L d, (|f'| + M d / 2) d), L >= |f'| and M >= |f''| everywhere. */
static double act_error(moe_activation fn, double alpha, double g, double d)
{
    double v = act_value(fn, alpha, g), slope, bend = 0.8, steepest = 1.13;
    if (fn == MOE_GELU) {
        double phi = 0.39894228040143267794 * exp(-g * g / 2);
        slope = 0.5 * erfc(-g * 0.70710678118654752440) + g * phi;
    } else {
        logistic l = logistic_at(fn, alpha, g);
        double s = 1 / (1 + exp(-l.z)), rest = 1 / (1 + exp(l.z));
        slope = s + (rest > 0 && s > 0 ? g * l.slope * s * rest : 0);
        if (fn != MOE_GELU_TANH) bend = 0.5 * fabs(l.slope);
    }
    double moved = fmin(steepest * d, (fabs(slope) + bend * d / 2) * d);
    return moved + act_own(fn, alpha, g, d, fabs(v) + moved);
}

bounded oracle_act(moe_activation fn, double alpha, bounded g)
{
    if (isnan(g.v) || oracle_is_lost(g)) return g;
    if (fn == MOE_RELU2) {
        bounded r = oracle_act(MOE_RELU, alpha, g);
        return oracle_mul(r, r);
    }
    double v = act_value(fn, alpha, g.v);
    if (isinf(g.v) || (g.v == 0 && g.proof == 0)) return oracle_exact(v);
    if (fn == MOE_RELU) {
        double tight = reach(v, fmax(g.v - g.tight, 0), fmax(g.v + g.tight, 0));
        double proof = reach(v, fmax(g.v - g.proof, 0), fmax(g.v + g.proof, 0));
        return (bounded){v, tight, proof};
    }
    return oracle_settle(v, act_error(fn, alpha, g.v, g.tight), act_error(fn, alpha, g.v, g.proof));
}

/* ---- the operands of a block ---------------------------------------------------------------- */

/* Whether the block as a whole is NaN (1: some v is not finite) or lost (-1: may be so). */
static int block_state(const bounded *v, size_t n)
{
    int state = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(v[i].v)) return 1;
        if (oracle_is_lost(v[i])) state = -1;
    }
    return state;
}

/* The largest |v| of a block: as it is, and the least and the most that it can be. */
typedef struct extent {
    double amax, tight_low, tight_high, proof_low, proof_high;
} extent;

static extent extent_of(const bounded *v, size_t n)
{
    extent e = {0, 0, 0, 0, 0};
    for (size_t i = 0; i < n; i++) {
        double a = fabs(v[i].v);
        e.amax = fmax(e.amax, a);
        e.tight_low = fmax(e.tight_low, a - v[i].tight);
        e.tight_high = fmax(e.tight_high, a + v[i].tight);
        e.proof_low = fmax(e.proof_low, a - v[i].proof);
        e.proof_high = fmax(e.proof_high, a + v[i].proof);
    }
    return e;
}

/* be = max(8, biased exponent): what is smaller has exponent field 0 or one below 8. */
static int exponent_of(double amax)
{
    int e = amax > 0 ? ilogb(amax) + 127 : 0;
    return e < 8 ? 8 : e;
}

/* The e4m3fn nearest to clamp(v 2^(135 - be), -448, 448), times 2^(be - 135): monotone in v. */
static double mx_value(double v, int be)
{
    double y = fmin(fmax(ldexp(v, 135 - be), -448), 448);
    return oracle_flush(ldexp(oracle_round(y, MOE_E4M3FN), be - 135));
}

/* The largest distance from x over v +- d and all shared exponents from least to most. */
static double mx_reach(double x, double v, double d, int least, int most)
{
    double far = 0;
    for (int be = least; be <= most; be++)
        far = fmax(far, reach(x, mx_value(v - d, be), mx_value(v + d, be)));
    return far;
}

void oracle_quantise_mx(const bounded *v, size_t n, bounded *x, bool *joint)
{
    int state = block_state(v, n);
    *joint = false;
    if (state != 0) {
        for (size_t i = 0; i < n; i++) x[i] = state > 0 ? oracle_exact(NAN) : oracle_lost();
        return;
    }
    extent e = extent_of(v, n);
    int tight_low = exponent_of(e.tight_low), tight_high = exponent_of(e.tight_high);
    int proof_low = exponent_of(e.proof_low), proof_high = exponent_of(e.proof_high);
    *joint = tight_low != tight_high;
    for (size_t i = 0; i < n; i++) {
        bounded a = v[i];
        x[i].v = mx_value(a.v, exponent_of(e.amax));
        x[i].tight = mx_reach(x[i].v, a.v, a.tight, tight_low, tight_high);
        x[i].proof = mx_reach(x[i].v, a.v, a.proof, proof_low, proof_high);
    }
}

/* rne(v / scale), the quotient an f32, at most 127 because |v| <= amax: monotone in v, and in scale
 * on either side of 0. */
static double int8_value(double v, double scale)
{
    return scale == 0 ? 0 : fmin(fmax(rint(oracle_f32(v / scale)), -127), 127);
}

/* The largest distance from q over v +- d and the scales from low to high.  A scale that may be
 * zero or not, as its low end is, allows every q. */
static double int8_reach(double q, double v, double d, double low, double high)
{
    if (high == 0) return 0;
    if (low == 0) return 127 + fabs(q);
    double least = v - d, most = v + d;
    return reach(q, int8_value(least, least < 0 ? low : high),
                 int8_value(most, most < 0 ? high : low));
}

void oracle_quantise_int8(const bounded *v, size_t n, bounded *q, bounded *scale)
{
    int state = block_state(v, n);
    if (state != 0) {
        for (size_t i = 0; i < n; i++) q[i] = state > 0 ? oracle_exact(0) : oracle_lost();
        *scale = state > 0 ? oracle_exact(NAN) : oracle_lost();
        return;
    }
    extent e = extent_of(v, n);
    double s = oracle_f32(e.amax / 127);
    double tight_low = oracle_f32(e.tight_low / 127), tight_high = oracle_f32(e.tight_high / 127);
    double proof_low = oracle_f32(e.proof_low / 127), proof_high = oracle_f32(e.proof_high / 127);
    *scale = (bounded){s, reach(s, tight_low, tight_high), reach(s, proof_low, proof_high)};
    for (size_t i = 0; i < n; i++) {
        bounded a = v[i];
        q[i].v = int8_value(a.v, s);
        q[i].tight = int8_reach(q[i].v, a.v, a.tight, tight_low, tight_high);
        q[i].proof = int8_reach(q[i].v, a.v, a.proof, proof_low, proof_high);
    }
}

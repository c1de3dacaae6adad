/* SPDX-License-Identifier: Apache-2.0 */
/* test_numeric.c - src/numeric.h against the definitions of its formats and against libm.
 *
 * Runs over a stride of all 2^32 floats, or over all of them (hours) if MOE_EXHAUSTIVE=1. */
#include <fenv.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "canon_ref.h"
#include "numeric.h"

#define UNIT 0x1p-24
#define ALL  ((uint64_t)1 << 32)

/* Distance of the floats tried; a prime reaches every binade and every pattern of the low bits. */
static uint64_t stride(uint64_t usual)
{
    const char *exhaustive = getenv("MOE_EXHAUSTIVE");
    return exhaustive && exhaustive[0] == '1' ? 1 : usual;
}

/* ---- formats: a code's value from its three fields ------------------------------------------- */

typedef struct format {
    const char *name;
    int exponent_bits, mantissa_bits;
    int ieee; /* the largest exponent field is infinity and NaN */
} format;

static const format F32 = {"f32", 8, 23, 1}, BF16 = {"bf16", 8, 7, 1}, F16 = {"f16", 5, 10, 1};
static const format E4M3_IEEE = {"e4m3_ieee", 4, 3, 1}, E4M3FN = {"e4m3fn", 4, 3, 0};
static const format E2M1 = {"e2m1", 2, 1, 0};

static double value_of(const format *f, uint32_t code)
{
    int bias = (1 << (f->exponent_bits - 1)) - 1, top = (1 << f->exponent_bits) - 1;
    int exponent = (int)(code >> f->mantissa_bits) & top;
    uint32_t mantissa = code & ((1u << f->mantissa_bits) - 1);
    double sign = code >> (f->exponent_bits + f->mantissa_bits) & 1 ? -1.0 : 1.0;
    if (f->ieee && exponent == top) return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (f == &E4M3FN && exponent == top && mantissa == 7) return (double)NAN;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - f->mantissa_bits);
    return sign *
           ldexp(mantissa + (double)(1u << f->mantissa_bits), exponent - bias - f->mantissa_bits);
}

static int same(double a, double b)
{
    if (isnan(a) || isnan(b)) return isnan(a) && isnan(b);
    return a == b && !signbit(a) == !signbit(b);
}

static float widen_bf16(uint32_t c)
{
    return num_from_bf16((uint16_t)c);
}

static float widen_f16(uint32_t c)
{
    return num_from_f16((uint16_t)c);
}

static float widen_e4m3_ieee(uint32_t c)
{
    return num_from_e4m3_ieee((uint8_t)c);
}

static float widen_e4m3fn(uint32_t c)
{
    return num_from_e4m3fn((uint8_t)c);
}

static void test_every_code(void **state)
{
    (void)state;
    static const struct {
        const format *format;
        float (*widen)(uint32_t);
        uint32_t codes;
    } kinds[] = {{&BF16, widen_bf16, 1u << 16},
                 {&F16, widen_f16, 1u << 16},
                 {&E4M3_IEEE, widen_e4m3_ieee, 1u << 8},
                 {&E4M3FN, widen_e4m3fn, 1u << 8},
                 {&E2M1, num_from_e2m1, 1u << 4}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (uint32_t code = 0; code < kinds[i].codes; code++) {
            double expected = value_of(kinds[i].format, code);
            double got = value_of(&F32, num_bits(kinds[i].widen(code)));
            if (!same(got, expected))
                fail_msg("%s 0x%X is %a, not %a", kinds[i].format->name, code, expected, got);
        }
    assert_true(value_of(&E4M3_IEEE, 0x77) == 240 && value_of(&E4M3FN, 0x7E) == 448);
    for (unsigned code = 0; code < 16; code++)
        assert_true(num_e2m1_doubled(code) == 2 * value_of(&E2M1, code));
}

static void test_every_scale_byte(void **state)
{
    (void)state;
    for (int s = 0; s < 255; s++) {
        float low = num_e8m0_low((uint8_t)s), power = num_e8m0((uint8_t)s);
        assert_true((double)low * power == ldexp(1, s - 127));
        assert_true(power >= 0x1p-126f); /* a factor that DAZ leaves alone */
    }
    assert_true(num_is_nan(num_e8m0(255)));
    for (int n = -126; n <= 127; n++) assert_true(num_pow2(n) == ldexp(1, n));
}

/* ---- rounding to the formats ----------------------------------------------------------------- */

/* Nearest multiple of the format's step at x, ties to even, by arithmetic that is exact in any
 * environment. */
static double nearest(const format *f, double x)
{
    int exponent, least = 2 - (1 << (f->exponent_bits - 1)) - f->mantissa_bits;
    frexp(x, &exponent);
    int step = exponent - 1 - f->mantissa_bits;
    step = step < least ? least : step;
    double y = ldexp(fabs(x), -step), floor_y = floor(y), rest = y - floor_y;
    if (rest > 0.5 || (rest == 0.5 && fmod(floor_y, 2) != 0)) floor_y += 1;
    double rounded = copysign(ldexp(floor_y, step), x);
    double limit = ldexp(1, 1 << (f->exponent_bits - 1));
    return f->ieee && fabs(rounded) >= limit ? copysign((double)INFINITY, x) : rounded;
}

static uint32_t round_bf16(float x)
{
    return num_to_bf16(x);
}

static uint32_t round_f16(float x)
{
    return num_to_f16(x);
}

static uint32_t round_e4m3fn(float x)
{
    return num_to_e4m3fn(x);
}

typedef struct rounding {
    const format *format;
    uint32_t (*round)(float);
    double limit; /* largest |x| that the function takes */
    uint32_t nan; /* the canonical one; 0 if NaN is not taken */
} rounding;

static const rounding ROUNDINGS[] = {{&BF16, round_bf16, (double)INFINITY, 0x7FC0},
                                     {&F16, round_f16, (double)INFINITY, 0x7E00},
                                     {&E4M3FN, round_e4m3fn, 448, 0}};

static void check_rounding(const rounding *r, uint32_t bits)
{
    double x = value_of(&F32, bits);
    if (isnan(x)) {
        if (r->nan) assert_int_equal(r->round(num_float(bits)), r->nan);
        return;
    }
    if (fabs(x) > r->limit) return;
    double expected = isinf(x) ? x : nearest(r->format, x);
    uint32_t code = r->round(num_float(bits));
    if (!same(value_of(r->format, code), expected))
        fail_msg("%s of 0x%08X: 0x%X, not %a", r->format->name, bits, code, expected);
}

static void test_rounding_of_all_floats(void **state)
{
    (void)state;
    unsigned long saved = canon_enter();
    for (size_t i = 0; i < sizeof ROUNDINGS / sizeof *ROUNDINGS; i++)
        for (uint64_t bits = 0; bits < ALL; bits += stride(2999))
            check_rounding(&ROUNDINGS[i], (uint32_t)bits);
    canon_leave(saved);
}

/* Every value of the format, every tie between two of them, the overflow threshold, and the
 * floats on both sides of each. */
static void check_neighbourhoods(const rounding *r)
{
    uint32_t sign = 1u << (r->format->exponent_bits + r->format->mantissa_bits);
    for (uint32_t code = 0; code < sign && value_of(r->format, code) <= r->limit; code++) {
        double low = value_of(r->format, code), high = value_of(r->format, code + 1);
        if (!isfinite(low)) break;
        if (!isfinite(high)) high = 2 * low - value_of(r->format, code - 1);
        double points[] = {low, low + (high - low) / 2};
        for (size_t i = 0; i < 2; i++)
            for (uint32_t beside = 0; beside < 3; beside++) {
                uint32_t bits = num_bits((float)points[i]) + beside - 1;
                check_rounding(r, bits & NUM_ABS_MASK);
                check_rounding(r, bits | 0x80000000u);
            }
    }
}

static void test_ties(void **state)
{
    (void)state;
    static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    for (size_t i = 0; i < sizeof modes / sizeof *modes;
         i++) { /* integer work: bf16 and f16 do not depend on it */
        fesetround(modes[i]);
        check_neighbourhoods(&ROUNDINGS[0]);
        check_neighbourhoods(&ROUNDINGS[1]);
    }
    fesetround(FE_TONEAREST);
    check_neighbourhoods(&ROUNDINGS[2]);
}

static void test_f32_is_stored_as_it_is(void **state)
{
    (void)state;
    for (uint64_t bits = 0; bits < ALL; bits += stride(10007)) {
        uint32_t b = (uint32_t)bits, nan = (b & NUM_ABS_MASK) > NUM_INF_BITS;
        assert_int_equal(num_bits(num_to_f32(num_float(b))), nan ? NUM_NAN_BITS : b);
    }
}

/* ---- elementary functions against libm in double --------------------------------------------- */

typedef struct function {
    const char *name;
    float (*compute)(float);
    double (*exact)(double);
    double (*units)(double); /* the error that docs/numerics.md allows, in UNITs of the result */
} function;

static double swish_exact(double g, double alpha)
{
    return g / (1 + exp(-alpha * g));
}

static float silu(float g)
{
    return num_swish(g, 1.0f);
}

static double silu_exact(double g)
{
    return swish_exact(g, 1);
}

static float swish(float g)
{
    return num_swish(g, 1.702f);
}

static double swish_1702_exact(double g)
{
    return swish_exact(g, (double)1.702f);
}

static float swish_odd(float g)
{
    return num_swish(g, -1.25f);
}

static double swish_odd_exact(double g)
{
    return swish_exact(g, -1.25);
}

static double gelu_exact(double g)
{
    return 0.5 * g * erfc(-g * sqrt(0.5));
}

/* sqrt(2 / pi) (g + 0.044715 g^3), doubled. */
static double gelu_tanh_argument(double g)
{
    return 2 * sqrt(2 / acos(-1)) * g * (1 + 0.044715 * g * g);
}

static double gelu_tanh_exact(double g)
{
    return g / (1 + exp(-gelu_tanh_argument(g)));
}

static float exp_one(float z)
{
    return num_exp(z, 0.0f);
}

static float relu2(float g)
{
    return num_relu(g) * num_relu(g);
}

static double relu2_exact(double g)
{
    return g > 0 ? g * g : 0;
}

static double sigmoid_exact(double v)
{
    return 1 / (1 + exp(-v));
}

/* Below that exp is zero, and the root of what it should be is not small. */
static bool has_softplus(double v)
{
    return v >= -87.33;
}

static float sqrt_softplus(float v)
{
    return has_softplus((double)v) ? num_sqrt_softplus(v) : 0.0f;
}

static double sqrt_softplus_exact(double v)
{
    if (!has_softplus(v)) return 0;
    return sqrt(v > 0 ? v + log1p(exp(-v)) : log1p(exp(v)));
}

static float log1p_unit(float x)
{
    return x >= 0.0f && x <= 1.0f ? num_log1p(x) : 0.0f;
}

static double log1p_exact(double x)
{
    return x >= 0 && x <= 1 ? log1p(x) : 0;
}

static float exp_difference(float a)
{
    return num_exp_difference(a, 17.2345f);
}

static double exp_difference_exact(double a)
{
    return exp(a - (double)17.2345f);
}

static double units_one(double v)
{
    (void)v;
    return 1.01;
}

static double units_log(double v)
{
    (void)v;
    return 1.5;
}

static double units_score(double v)
{
    (void)v;
    return 2.5;
}

static double units_exp(double z)
{
    (void)z;
    return 1.5;
}

static double units_swish(double g)
{
    (void)g;
    return 3.0;
}

static double units_gelu(double g)
{
    (void)g;
    return 6.5;
}

static double units_gelu_tanh(double g)
{
    return 9 + 2.5 * fabs(gelu_tanh_argument(g));
}

static const function FUNCTIONS[] = {
    {"exp", exp_one, exp, units_exp},
    {"silu", silu, silu_exact, units_swish},
    {"swish", swish, swish_1702_exact, units_swish},
    {"swish, alpha -1.25", swish_odd, swish_odd_exact, units_swish},
    {"gelu", num_gelu, gelu_exact, units_gelu},
    {"gelu_tanh", num_gelu_tanh, gelu_tanh_exact, units_gelu_tanh},
    {"relu2", relu2, relu2_exact, units_one},
    {"log1p", log1p_unit, log1p_exact, units_log},
    {"exp of a difference", exp_difference, exp_difference_exact, units_log},
    {"sigmoid", num_sigmoid, sigmoid_exact, units_score},
    {"sqrt_softplus", sqrt_softplus, sqrt_softplus_exact, units_score}};

/* The error at one finite x as a part of what is allowed: units of the result, and FLOOR below
 * f32's normal range. */
static double error_at(const function *f, float x)
{
    const double floor_error = 0x1p-121, largest = 0x1.fffffep+127;
    double exact = f->exact(x), got = f->compute(x), units = f->units(x);
    if (isinf(got)) return got > 0 && exact >= largest * (1 - units * UNIT) ? 0 : (double)INFINITY;
    if (fabs(exact) > largest) exact = copysign(largest, exact);
    double allowed = units * UNIT * fabs(exact) + floor_error;
    double part = fabs(got - exact) / allowed;
    return isnan(part) ? (double)INFINITY : part;
}

static void test_functions(void **state)
{
    (void)state;
    unsigned long saved = canon_enter();
    for (size_t i = 0; i < sizeof FUNCTIONS / sizeof *FUNCTIONS; i++) {
        const function *f = &FUNCTIONS[i];
        double worst = 0;
        uint32_t at = 0;
        for (uint64_t b = 0; b < ALL; b += stride(1021)) {
            uint32_t bits = (uint32_t)b;
            if ((bits & NUM_ABS_MASK) >= NUM_INF_BITS) continue;
            double part = error_at(f, num_float(bits));
            if (part > worst) {
                worst = part;
                at = bits;
            }
        }
        double x = value_of(&F32, at), units = f->units(x);
        print_message("%-20s worst %.2f of %.1f units, at %.9g\n", f->name, worst * units, units,
                      x);
        if (worst > 1) fail_msg("%s is outside its bound at 0x%08X = %a", f->name, at, x);
    }
    canon_leave(saved);
}

/* The steps of the argument reduction: where z / ln 2 is near an integer or half of one, and the
 * ends of the range. */
static void test_exp_at_its_seams(void **state)
{
    (void)state;
    unsigned long saved = canon_enter();
    for (int n = -256; n <= 256; n++) {
        uint32_t middle = num_bits((float)(n * (log(2) / 2)));
        for (uint32_t d = 0; d < 2001; d++)
            assert_true(error_at(&FUNCTIONS[0], num_float(n == 0 ? d : middle + d - 1000)) <= 1);
    }
    canon_leave(saved);
}

static void test_special_values(void **state)
{
    (void)state;
    const float inf = INFINITY, tiny = 0x1p-149f;
    const struct {
        float (*compute)(float);
        float x, expected; /* NaN: any NaN */
    } cases[] = {
        {exp_one, 0.0f, 1.0f},
        {exp_one, -0.0f, 1.0f},
        {exp_one, inf, inf},
        {exp_one, -inf, 0.0f},
        {exp_one, 88.73f, inf},
        {exp_one, -87.34f, 0.0f},
        {exp_one, 3e38f, inf},
        {exp_one, -3e38f, 0.0f},
        {exp_one, NAN, NAN},
        {exp_one, tiny, 1.0f},
        {silu, 0.0f, 0.0f},
        {silu, -0.0f, -0.0f},
        {silu, inf, inf},
        {silu, -inf, NAN},
        {silu, NAN, NAN},
        {silu, 3e38f, 3e38f},
        {silu, -3e38f, -0.0f},
        {silu, -1e4f, -0.0f},
        {swish, 0.0f, 0.0f},
        {swish, -0.0f, -0.0f},
        {swish, inf, inf},
        {swish, -inf, NAN},
        {swish, NAN, NAN},
        {swish, 3e38f, 3e38f},
        {swish, -3e38f, -0.0f},
        {num_gelu, 0.0f, 0.0f},
        {num_gelu, -0.0f, -0.0f},
        {num_gelu, inf, inf},
        {num_gelu, -inf, NAN},
        {num_gelu, NAN, NAN},
        {num_gelu, 3e38f, 3e38f},
        {num_gelu, -3e38f, -0.0f},
        {num_gelu_tanh, 0.0f, 0.0f},
        {num_gelu_tanh, -0.0f, -0.0f},
        {num_gelu_tanh, inf, inf},
        {num_gelu_tanh, -inf, NAN},
        {num_gelu_tanh, NAN, NAN},
        {num_gelu_tanh, 3e38f, 3e38f},
        {num_gelu_tanh, -3e38f, -0.0f},
        {relu2, -0.0f, 0.0f},
        {relu2, -inf, 0.0f},
        {relu2, 3e38f, inf},
        {relu2, NAN, NAN},
        {num_sigmoid, 0.0f, 0.5f},
        {num_sigmoid, inf, 1.0f},
        {num_sigmoid, -inf, 0.0f},
        {num_sigmoid, -100.0f, 0.0f},
        {num_sigmoid, NAN, NAN},
        {num_sqrt_softplus, inf, inf},
        {num_sqrt_softplus, -inf, 0.0f},
        {num_sqrt_softplus, 100.0f, 10.0f},
        {num_sqrt_softplus, -88.0f, 0.0f},
        {num_sqrt_softplus, NAN, NAN},
        {num_log1p, 0.0f, 0.0f},
        {exp_difference, 17.2345f, 1.0f},
        {exp_difference, -inf, 0.0f},
        {exp_difference, inf, inf},
        {exp_difference, NAN, NAN},
    };
    unsigned long saved = canon_enter();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float got = cases[i].compute(cases[i].x);
        if (!same(value_of(&F32, num_bits(got)), value_of(&F32, num_bits(cases[i].expected))))
            fail_msg("case %zu: f(%a) = %a, not %a", i, cases[i].x, got, cases[i].expected);
    }
    canon_leave(saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code),
        cmocka_unit_test(test_every_scale_byte),
        cmocka_unit_test(test_rounding_of_all_floats),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_f32_is_stored_as_it_is),
        cmocka_unit_test(test_functions),
        cmocka_unit_test(test_exp_at_its_seams),
        cmocka_unit_test(test_special_values),
    };
    return cmocka_run_group_tests_name("numeric", tests, NULL, NULL);
}

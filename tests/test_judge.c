/* SPDX-License-Identifier: Apache-2.0 */
/* test_judge.c - the gates: what passes at the limit, what no limit lets pass, and the tolerances
 * that apply when a file gives none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../tools/judge.h"

#include <math.h>
#include <string.h>

/* A case that expects two elements; limit 0.5 + 0.25 * 8. */
typedef struct fixture {
    moe_case c;
    moe_tensor hidden, weights, output;
    float expected[2], got[2];
} fixture;

static void prepare(fixture *f)
{
    memset(f, 0, sizeof *f);
    f->hidden = moe_tensor_2d(NULL, MOE_F32, 1, 2);
    f->weights = moe_tensor_2d(NULL, MOE_F32, 1, 2);
    f->weights.rank = 4;
    f->weights.shape[3] = 64;
    f->output = moe_tensor_2d(f->got, MOE_F32, 1, 2);
    f->c.args = moe_tkg_args_init();
    f->c.args.hidden_input = &f->hidden;
    f->c.args.expert_gate_up_weights = &f->weights;
    f->c.expected = f->expected;
    f->c.expected_count = 2;
    f->c.atol = 0.5;
    f->c.rtol_tight = f->c.rtol_strict = f->c.rtol_upstream = 0.25;
    f->expected[0] = f->got[0] = -8;
}

static bool passes(fixture *f, float got, float expected)
{
    f->got[1] = got;
    f->expected[1] = expected;
    return judge_expected(&f->c, JUDGE_STRICT, &f->output).pass;
}

static void test_limit(void **state)
{
    (void)state;
    fixture f;
    prepare(&f);
    assert_true(passes(&f, 3.5f, 1)); /* the limit is relative to the largest |expected|: 8 */
    assert_true(passes(&f, -1.5f, 1));
    assert_false(passes(&f, 3.5001f, 1));
    judge_verdict v = judge_expected(&f.c, JUDGE_STRICT, &f.output);
    assert_true(v.limit == 2.5 && v.error > 2.5);
    assert_non_null(strstr(v.note, "element 1 is 3.5"));
}

static void test_special_values(void **state)
{
    (void)state;
    fixture f;
    const float infinity = (float)INFINITY, nan_value = (float)NAN;
    prepare(&f);
    assert_true(passes(&f, nan_value, nan_value));
    assert_false(passes(&f, nan_value, 1));
    assert_false(passes(&f, 1, nan_value));
    assert_true(passes(&f, infinity, infinity));
    assert_true(passes(&f, -infinity, -infinity));
    assert_false(passes(&f, infinity, -infinity));
    assert_false(passes(&f, infinity, 3e38f));
    assert_false(passes(&f, 3e38f, infinity)); /* and an infinite expectation widens no limit */
    assert_false(passes(&f, 20, nan_value));
}

/* The expectation is before the output's rounding, which may overflow. */
static void test_overflow_of_the_output(void **state)
{
    (void)state;
    fixture f;
    uint16_t half[2] = {0xc800, 0x7c00}; /* -8, inf */
    prepare(&f);
    f.output.data = half;
    f.output.dtype = MOE_F16;
    assert_true(passes(&f, 0, 65520));
    assert_false(passes(&f, 0, 65519));
    assert_false(passes(&f, 0, -65520));
    half[0] = 0xc100;
    half[1] = 0x7f80; /* as bf16: -8, inf */
    f.output.dtype = MOE_BF16;
    assert_true(passes(&f, 0, 0x1.FFp127f));
    assert_false(passes(&f, 0, 0x1.FEp127f));
}

static void test_f16_elements(void **state)
{
    (void)state;
    static const struct {
        uint16_t bits;
        float value;
    } SAMPLES[] = {
        {0x3c00, 1},        {0xbc01, -1 - 0x1p-10f}, {0x0001, 0x1p-24f}, {0x83ff, -0x3FFp-24f},
        {0x0400, 0x1p-14f}, {0x7bff, 65504},         {0x8000, 0}};
    fixture f;
    prepare(&f);
    f.output.dtype = MOE_F16;
    f.c.atol = f.c.rtol_strict = 0;
    for (size_t i = 0; i < sizeof SAMPLES / sizeof SAMPLES[0]; i++) {
        const uint16_t half[2] = {0xc800, SAMPLES[i].bits};
        f.output.data = half;
        assert_true(passes(&f, 0, SAMPLES[i].value));
    }
}

/* The rules of golden/README.md, one row for each line there. */
static void test_tolerances_by_rule(void **state)
{
    (void)state;
    static const struct {
        moe_dtype hidden, weights, output;
        int64_t I;
        double tight, strict, upstream;
    } RULES[] = {
        {MOE_BF16, MOE_BF16, MOE_DTYPE_NONE, 64, 0.00392625, 0.005879375, 0.03},
        {MOE_BF16, MOE_BF16, MOE_BF16, 63, 0.00392625, 0.0078325, 0.03},
        {MOE_BF16, MOE_E4M3FN, MOE_F32, 64, 2e-5, 0.001973125, 0.03},
        {MOE_F16, MOE_F16, MOE_F16, 64, 0.00050828125, 0.000752421875, 0.02},
        {MOE_F16, MOE_F16, MOE_BF16, 64, 0.00392625, 0.004170390625, 0.02},
        {MOE_F32, MOE_F32, MOE_F32, 64, 2e-5, 2e-5, 0.02},
        {MOE_F32, MOE_F32, MOE_F16, 64, 0.00050828125, 0.00050828125, 0.02},
        {MOE_BF16, MOE_MXFP4_X4, MOE_BF16, 32, 0.00392625, 0.01390625, 0.05},
        {MOE_F16, MOE_MXFP8_X4, MOE_F16, 64, 0.00050828125, 0.01048828125, 0.05},
        {MOE_MXFP8_X4, MOE_MXFP8_X4, MOE_DTYPE_NONE, 64, 0.00392625, 0.01390625, 0.05},
    };
    for (size_t i = 0; i < sizeof RULES / sizeof RULES[0]; i++) {
        fixture f;
        prepare(&f);
        f.hidden.dtype = RULES[i].hidden;
        f.weights.dtype = RULES[i].weights;
        f.weights.shape[3] = RULES[i].I;
        f.c.args.output_dtype = RULES[i].output;
        f.c.atol = f.c.rtol_tight = f.c.rtol_strict = f.c.rtol_upstream = (double)NAN;
        const double rtol[] = {RULES[i].tight, RULES[i].strict, RULES[i].upstream};
        for (int gate = JUDGE_TIGHT; gate <= JUDGE_UPSTREAM; gate++) {
            judge_verdict v = judge_expected(&f.c, (judge_gate)gate, &f.output);
            assert_true(fabs(v.limit - (1e-5 + 8 * rtol[gate])) < 1e-12);
        }
    }
}

static void test_no_elements(void **state)
{
    (void)state;
    fixture f;
    prepare(&f);
    f.c.expected_count = 0;
    assert_true(judge_expected(&f.c, JUDGE_TIGHT, &f.output).pass);
}

/* ---- against the oracle ---------------------------------------------------------------------- */

enum { WIDE = 1024 };

/* One token, one expert, I = 1, all f32, relu: out = down * (gate . x) * (up . x), every x the
 * same, every weight 1. */
typedef struct small {
    float x[WIDE], gate_up[2 * WIDE], down[WIDE], got[WIDE];
    moe_tensor hidden, gate_up_tensor, down_tensor, output;
    moe_tkg_args args;
} small;

static void prepare_small(small *s, int64_t T, float x)
{
    size_t bytes;
    for (size_t i = 0; i < WIDE; i++) s->x[i] = x;
    for (size_t i = 0; i < WIDE; i++) s->gate_up[2 * i] = s->gate_up[2 * i + 1] = s->down[i] = 1;
    s->hidden = moe_tensor_2d(s->x, MOE_F32, T, WIDE);
    s->gate_up_tensor = moe_tensor_2d(s->gate_up, MOE_F32, 1, WIDE);
    s->gate_up_tensor.rank = 4;
    s->gate_up_tensor.shape[2] = 2;
    s->gate_up_tensor.shape[3] = 1;
    s->down_tensor = moe_tensor_2d(s->down, MOE_F32, 1, 1);
    s->down_tensor.rank = 3;
    s->down_tensor.shape[2] = WIDE;
    s->args = moe_tkg_args_init();
    s->args.hidden_input = &s->hidden;
    s->args.expert_gate_up_weights = &s->gate_up_tensor;
    s->args.expert_down_weights = &s->down_tensor;
    s->args.is_all_expert = 1;
    s->args.activation_fn = MOE_RELU;
    assert_int_equal(moe_tkg_output(&s->args, &s->output, &bytes), MOE_OK);
    s->output.data = s->got;
}

static judge_verdict bound(const small *s)
{
    judge_verdict v;
    assert_int_equal(judge_bound(&s->args, NULL, 0, &s->output, &v), ORACLE_OK);
    return v;
}

/* The proven interval decides; what is outside the tight one is said and counted. */
static void test_bound_decides_by_the_proof(void **state)
{
    (void)state;
    static small s;
    oracle_rows rows;
    prepare_small(&s, 1, 0.75f);
    assert_int_equal(oracle_run(&s.args, NULL, 0, &rows), ORACLE_OK);
    double value = rows.value[0], tight = rows.tight[0], proof = rows.proof[0];
    oracle_free(&rows);
    assert_true(proof > 1.5 * tight && tight > 0);
    for (size_t i = 0; i < WIDE; i++) s.got[i] = (float)value;
    judge_verdict v = bound(&s);
    assert_true(v.pass && v.cells == WIDE && v.between == 0 && v.error <= v.limit);
    assert_string_equal(v.note, "");
    s.got[3] = s.got[7] = (float)(value + 0.9 * proof);
    v = bound(&s);
    assert_true(v.pass && v.between == 2 && v.outside == 0 && v.error > v.limit);
    assert_string_equal(v.note, "2 cells between the tight and the proven interval");
    s.got[5] = (float)(value + 1.5 * proof);
    v = bound(&s);
    assert_true(!v.pass && v.between == 2 && v.outside == 1);
    assert_non_null(
        strstr(v.note, "1 of 1024 cells outside the proven interval; worst: token 0, h 5"));
    assert_non_null(strstr(v.note, "; 2 cells between"));
}

/* A cell without a finite bound passes nothing, whatever it holds. */
static void test_bound_judges_all_or_fails(void **state)
{
    (void)state;
    static small s;
    prepare_small(&s, 1, 0x1.fffffep+127f);
    for (size_t i = 0; i < WIDE; i++) s.got[i] = (float)INFINITY;
    judge_verdict v = bound(&s);
    assert_true(!v.pass && v.outside == 0 && v.unbounded == WIDE);
    assert_true(v.error == 0 && v.limit == 0);
    assert_string_equal(v.note, "1024 of 1024 cells not judged: no finite bound");
}

static void test_bound_of_no_tokens(void **state)
{
    (void)state;
    static small s;
    prepare_small(&s, 0, 1);
    judge_verdict v = bound(&s);
    assert_true(v.pass && v.cells == 0 && v.unbounded == 0);
}

/* NaN is right where NaN must be, and error and limit stay numbers. */
static void test_bound_of_nan(void **state)
{
    (void)state;
    static small s;
    prepare_small(&s, 1, (float)NAN);
    for (size_t i = 0; i < WIDE; i++) s.got[i] = (float)NAN;
    judge_verdict v = bound(&s);
    assert_true(v.pass && v.cells == WIDE && v.error == 0 && v.limit == 0);
    s.got[1] = 1;
    v = bound(&s);
    assert_true(!v.pass && v.outside == 1 && isinf(v.error));
}

static void test_gate_names(void **state)
{
    (void)state;
    judge_gate gate;
    for (int i = JUDGE_TIGHT; i <= JUDGE_BOUND; i++) {
        assert_true(judge_gate_from_name(judge_gate_name((judge_gate)i), &gate));
        assert_int_equal(gate, i);
    }
    assert_false(judge_gate_from_name("loose", &gate));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_special_values),
        cmocka_unit_test(test_overflow_of_the_output),
        cmocka_unit_test(test_f16_elements),
        cmocka_unit_test(test_tolerances_by_rule),
        cmocka_unit_test(test_no_elements),
        cmocka_unit_test(test_bound_decides_by_the_proof),
        cmocka_unit_test(test_bound_judges_all_or_fails),
        cmocka_unit_test(test_bound_of_no_tokens),
        cmocka_unit_test(test_bound_of_nan),
        cmocka_unit_test(test_gate_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

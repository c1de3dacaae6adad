/* SPDX-License-Identifier: Apache-2.0 */
/* test_oracle.c - the float64 oracle against what does not come from this project: golden units and
 * cases, and numbers worked out by hand; and the operator against the oracle on random layers of
 * every kind. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tools/case.h"
#include "../tools/oracle.h"
#include "../tools/oracle_bound.h"
#include "golden.h"
#include "random_layer.h"

/* ---- golden units ---------------------------------------------------------------------------- */

/* A tensor of the file in a block of malloc; its elements. */
static void *read_tensor(const st_file *file, const char *name, size_t *count)
{
    const st_tensor *t = st_find(file, name);
    assert_non_null(t);
    void *data = malloc(t->bytes);
    assert_non_null(data);
    assert_int_equal(st_read(file, t, data, NULL), IO_OK);
    *count = t->bytes * 8 / st_dtype_bits(t->dtype);
    return data;
}

static void check_decoding(const st_file *file, moe_dtype dtype)
{
    size_t n;
    uint8_t *codes = read_tensor(file, "codes", &n);
    float *expected = read_tensor(file, "expected", &n);
    for (size_t i = 0; i < n; i++) {
        if (dtype == MOE_E8M0 && codes[i] == 255) continue; /* the file says infinite */
        double got = oracle_decode(dtype, codes[i]), want = (double)expected[i];
        assert_true(isnan(want) ? isnan(got) : got == want && !signbit(got) == !signbit(want));
    }
    free(codes);
    free(expected);
}

/* x [P, F] in blocks of 8 x 4; the codes of a word are those of 4 neighbours in F. */
static void check_quantising(const st_file *file)
{
    size_t words, values, blocks, F = (size_t)atoi(st_metadata(file, "F"));
    uint32_t *codes = read_tensor(file, "codes", &words);
    float *x = read_tensor(file, "x", &values);
    uint8_t *scale = read_tensor(file, "scale", &blocks);
    for (size_t b = 0; b < blocks; b++) {
        size_t top = b / (F / 4) * 8, left = b % (F / 4) * 4;
        bounded block[32];
        bool joint;
        for (size_t i = 0; i < 32; i++)
            block[i] = oracle_exact(oracle_flush((double)x[(top + i / 4) * F + left + i % 4]));
        oracle_quantise_mx(block, 32, block, &joint);
        assert_false(joint);
        for (size_t i = 0; i < 32; i++) {
            uint32_t code = codes[(top + i / 4) * (F / 4) + left / 4] >> 8 * (i % 4) & 255;
            double want = oracle_decode(MOE_E4M3FN, code) * oracle_decode(MOE_E8M0, scale[b]);
            assert_true(block[i].v == oracle_flush(want));
            assert_true(block[i].tight == 0 && block[i].proof == 0);
        }
    }
    free(codes);
    free(x);
    free(scale);
}

/* The file's own tolerance. */
static void check_activation(const st_file *file, moe_activation fn)
{
    size_t n;
    float *x = read_tensor(file, "x", &n), *expected = read_tensor(file, "expected", &n);
    for (size_t i = 0; i < n; i++) {
        double got = oracle_act(fn, 0, oracle_exact(oracle_flush((double)x[i]))).v;
        double want = (double)expected[i];
        assert_true(fabs(got - want) <= 1e-6 + 1e-5 * fabs(want));
    }
    free(x);
    free(expected);
}

static void check_unit(const char *path)
{
    static const struct {
        const char *name;
        int number;
    } decodings[] = {{"decode_e8m0", MOE_E8M0},
                     {"decode_fp4_e2m1", MOE_MXFP4_X4},
                     {"decode_fp8_e4m3_ieee", MOE_E4M3_IEEE},
                     {"decode_fp8_e4m3fn", MOE_E4M3FN}},
      activations[] = {{"act_silu", MOE_SILU},
                       {"act_gelu", MOE_GELU},
                       {"act_gelu_tanh", MOE_GELU_TANH},
                       {"act_swish", MOE_SWISH},
                       {"act_relu", MOE_RELU}};
    st_file *file;
    assert_int_equal(st_open(path, &file, NULL), IO_OK);
    const char *name = st_metadata(file, "name");
    for (size_t i = 0; i < COUNT(decodings); i++)
        if (strcmp(name, decodings[i].name) == 0)
            check_decoding(file, (moe_dtype)decodings[i].number);
    for (size_t i = 0; i < COUNT(activations); i++)
        if (strcmp(name, activations[i].name) == 0)
            check_activation(file, (moe_activation)activations[i].number);
    if (strncmp(name, "quantize_mx", 11) == 0) check_quantising(file);
    st_close(file);
}

static void test_golden_units(void **state)
{
    (void)state;
    assert_true(golden_each("units", check_unit) >= 17);
}

/* ---- golden cases ---------------------------------------------------------------------------- */

/* The expectation is f32 or float64 arithmetic without any rounding of m.  Where the mode rounds m
 * to bf16 that is up to a unit of bf16 apart, else a few roundings of f32. */
static void check_case(const char *path)
{
    static moe_case c;
    oracle_rows rows;
    moe_tensor output;
    size_t bytes;
    double worst = 0, scale = 0;
    assert_int_equal(case_load(path, &c, NULL), IO_OK);
    assert_int_equal(moe_tkg_output(&c.args, &output, &bytes), MOE_OK);
    assert_int_equal(oracle_run(&c.args, NULL, 0, &rows), ORACLE_OK);
    bool rounds = c.args.hidden_input->dtype == MOE_BF16 && !rows.mx;
    output.dtype = MOE_F32;
    for (size_t n = 0; n < rows.n * rows.H; n++) {
        double want = oracle_output_cell(&output, rows.mx, c.expected, n / rows.H, n % rows.H);
        worst = fmax(worst, fabs(want - rows.value[n]));
        scale = fmax(scale, fabs(want));
    }
    double limit = rounds ? 0x1p-8 : 2e-6;
    if (!(worst <= limit * scale)) fail_msg("%s: %g of %g", path, worst, scale);
    oracle_free(&rows);
    case_free(&c);
}

static void test_golden_cases(void **state)
{
    (void)state;
    assert_true(golden_each("moe_tkg", check_case) > 0);
}

/* ---- by hand --------------------------------------------------------------------------------- */

/* One token, H = 2, I = 1, two experts, f32. */
typedef struct tiny {
    float x[2], gate_up[2][2][2], down[2][1][2], affinity[2], gate_up_bias[2][2], down_bias[2][2];
    int32_t index[3];
    moe_tensor t[7];
    moe_tkg_args args;
} tiny;

static moe_tensor tensor_of(const void *data, moe_dtype dtype, int32_t rank, int64_t a, int64_t b,
                            int64_t c, int64_t d)
{
    return (moe_tensor){data, dtype, MOE_LAYOUT_HBM, rank, {a, b, c, d, 0}};
}

/* x = (1, 2); g = 1*3 + 2*0.5 = 4, in expert 1 -4; u = 1*-1 + 2*2 = 3; y = m (2, -1). */
static void tiny_make(tiny *s)
{
    *s = (tiny){.x = {1, 2},
                .gate_up = {{{3, -1}, {0.5f, 2}}, {{-3, -1}, {-0.5f, 2}}},
                .down = {{{2, -1}}, {{2, -1}}},
                .affinity = {0.5f, -2},
                .gate_up_bias = {{1, -1}, {1, -1}},
                .down_bias = {{10, 20}, {30, 40}},
                .index = {0, 1, 0}};
    s->t[0] = tensor_of(s->x, MOE_F32, 2, 1, 2, 0, 0);
    s->t[1] = tensor_of(s->gate_up, MOE_F32, 4, 2, 2, 2, 1);
    s->t[2] = tensor_of(s->down, MOE_F32, 3, 2, 1, 2, 0);
    s->t[3] = tensor_of(s->affinity, MOE_F32, 2, 1, 2, 0, 0);
    s->t[4] = tensor_of(s->index, MOE_I32, 2, 1, 3, 0, 0);
    s->t[5] = tensor_of(s->gate_up_bias, MOE_F32, 3, 2, 2, 1, 0);
    s->t[6] = tensor_of(s->down_bias, MOE_F32, 2, 2, 2, 0, 0);
    s->args = moe_tkg_args_init();
    s->args.hidden_input = &s->t[0];
    s->args.expert_gate_up_weights = &s->t[1];
    s->args.expert_down_weights = &s->t[2];
    s->args.expert_affinities = &s->t[3];
    s->args.expert_index = &s->t[4];
    s->args.expert_affinities_scaling_mode = MOE_POST_SCALE;
    s->args.activation_fn = MOE_RELU;
}

/* The oracle gives these two values, to within float64, and bounds around them. */
static void expect_row(const tiny *s, double v0, double v1)
{
    oracle_rows rows;
    double want[2] = {v0, v1};
    assert_int_equal(oracle_run(&s->args, NULL, 0, &rows), ORACLE_OK);
    assert_int_equal(rows.n, 1);
    assert_int_equal(rows.H, 2);
    for (int h = 0; h < 2; h++) {
        double largest = isnan(want[h]) ? 0 : 1e-5 * (fabs(want[h]) + 1e3);
        assert_true(isnan(want[h]) ? isnan(rows.value[h])
                                   : fabs(rows.value[h] - want[h]) <= 1e-14 * fabs(want[h]));
        assert_true(rows.tight[h] <= rows.proof[h] && rows.proof[h] <= largest);
    }
    oracle_free(&rows);
}

static void test_by_hand(void **state)
{
    (void)state;
    tiny s;
    tiny_make(&s);
    expect_row(&s, 2 * 0.5 * 24,
               2 * 0.5 * -12); /* slots 0 and 2 are expert 0; expert 1 has relu(-4) */
    s.args.expert_affinities_scaling_mode = MOE_NO_SCALE;
    expect_row(&s, 2 * 24, 2 * -12);
    s.args.expert_gate_up_bias = &s.t[5];
    expect_row(&s, 2 * 20, 2 * -10); /* g = 5, u = 2 */
    s.args.expert_down_bias = &s.t[6];
    expect_row(&s, 2 * 30 + 30, 2 * 10 + 40);
    s.args.gate_clamp_upper_limit = moe_given_float(1);
    s.args.up_clamp_lower_limit = moe_given_float(3);
    expect_row(&s, 2 * (6 + 10) + 30, 2 * (-3 + 20) + 40);
    s.args.gate_clamp_lower_limit = moe_given_float(2); /* crossed limits: the lower one */
    expect_row(&s, 2 * (12 + 10) + 42, 2 * (-6 + 20) + 34);
    s.args.activation_fn = MOE_SWIGLU;
    s.args.swiglu_alpha = moe_given_float(0);
    s.args.swiglu_up_offset = moe_given_float(7); /* g / 2 * (u + 7) = 1 * 10 */
    expect_row(&s, 2 * (20 + 10) + 50, 2 * (-10 + 20) + 30);
}

static void test_more_rules_by_hand(void **state)
{
    (void)state;
    tiny s;
    tiny_make(&s);
    s.args.activation_fn = MOE_RELU2;
    expect_row(&s, 2 * 0.5 * 96, 2 * 0.5 * -48);
    s.args.act_clamp_upper_limit = moe_given_float(2.5f);
    expect_row(&s, 2 * 0.5 * 15, 2 * 0.5 * -7.5);
    s.args.act_clamp_upper_limit.given = 0;
    /* g = 2, u = 1.5 and, of expert 1, g = 8, u = -6 */
    s.args.expert_affinities_scaling_mode = MOE_INPUT_SCALE;
    expect_row(&s, 2 * 12 - 768, 2 * -6 + 384);
    float eager[3] = {0.5f, -2, 1};
    moe_tensor given = tensor_of(eager, MOE_F32, 2, 1, 3, 0, 0);
    s.args.expert_affinities_eager = &given;
    expect_row(&s, 12 - 768 + 96, -6 + 384 - 48);
    eager[1] = 0;
    expect_row(&s, 12 + 96, -6 - 48);
    /* without a gate: u = 3 - 2, of expert 1 0.5 + 4 */
    s.args.expert_affinities_eager = NULL;
    s.args.expert_affinities_scaling_mode = MOE_POST_SCALE;
    s.t[1].shape[2] = 1;
    expect_row(&s, 2 * 0.5 * 2 - 2 * 40.5, 2 * 0.5 * -1 + 2 * 20.25);
}

static void test_all_expert_by_hand(void **state)
{
    (void)state;
    tiny s;
    tiny_make(&s);
    uint32_t zero = 0;
    moe_tensor rank = tensor_of(&zero, MOE_U32, 2, 1, 1, 0, 0);
    s.args.is_all_expert = 1;
    s.args.rank_id = &rank;
    s.gate_up[1][0][0] = 3, s.gate_up[1][1][0] = 0.5f; /* expert 1 as expert 0 */
    expect_row(&s, (0.5 - 2) * 24, (0.5 - 2) * -12);
    s.args.mask_unselected_experts = 1;
    s.index[1] = 7;
    expect_row(&s, 0.5 * 24, 0.5 * -12);
    s.affinity[0] = -0.0f; /* nothing is left */
    s.x[0] = NAN;
    expect_row(&s, 0, 0);
}

static void test_special_values_by_hand(void **state)
{
    (void)state;
    tiny s;
    tiny_make(&s);
    s.x[0] = -INFINITY; /* relu(-inf) = 0, u = +inf */
    expect_row(&s, NAN, NAN);
    s.args.up_clamp_upper_limit = moe_given_float(1);
    s.index[1] = 0;
    expect_row(&s, 0, 0);
    s.args.activation_fn = MOE_SILU;
    expect_row(&s, NAN, NAN); /* -inf / (1 + inf) */
    s.args.gate_clamp_lower_limit = moe_given_float(0);
    expect_row(&s, 0, 0);
    s.gate_up[1][0][0] = NAN; /* of an expert that does not run */
    expect_row(&s, 0, 0);
    s.gate_up[0][0][0] = 1e-40f; /* counts as zero: -inf * 0 */
    expect_row(&s, NAN, NAN);
}

/* What f32 may turn into infinity has no bound; NaN that comes from the inputs has. */
static void test_overflow_is_unbounded(void **state)
{
    (void)state;
    tiny s;
    oracle_rows rows;
    float output[2] = {0, NAN};
    tiny_make(&s);
    s.x[0] = 1e38f;
    assert_int_equal(oracle_run(&s.args, NULL, 0, &rows), ORACLE_OK);
    oracle_verdict v = oracle_judge(&rows, &s.t[0], output);
    assert_int_equal(v.unbounded, 2);
    assert_int_equal(v.cells + v.outside + v.outside_tight, 0);
    oracle_free(&rows);
}

static void test_judging(void **state)
{
    (void)state;
    double value[4] = {1, NAN, INFINITY, 70000}, tight[4] = {1e-6, 0, 0, 1},
           proof[4] = {1e-3, 0, 0, 10};
    size_t token[1] = {0};
    oracle_rows rows = {1, 4, 0, token, value, tight, proof};
    moe_tensor t = moe_tensor_2d(NULL, MOE_F32, 1, 4);
    float right[4] = {1, NAN, INFINITY, 70000.5f}, wrong[4] = {1.0005f, 0, 3e38f, INFINITY};
    oracle_verdict v = oracle_judge(&rows, &t, right);
    assert_int_equal(v.cells, 4);
    assert_int_equal(v.outside + v.outside_tight + v.unbounded, 0);
    assert_true(v.worst > 0 && v.worst < 1 && v.worst_h == 3 && v.error == 0.5);
    v = oracle_judge(&rows, &t, wrong);
    assert_int_equal(v.outside, 3);
    assert_int_equal(v.outside_tight, 1);
    assert_true(isinf(v.worst));

    uint16_t f16[4] = {0x3C00, 0x7E00, 0x7C00, 0x7C00}; /* 70000 is infinite in f16 */
    t.dtype = MOE_F16;
    v = oracle_judge(&rows, &t, f16);
    assert_int_equal(v.outside + v.outside_tight, 0);
    assert_true(v.worst <= 1);
}

static void test_refusals(void **state)
{
    (void)state;
    tiny s;
    oracle_rows rows;
    size_t tokens[2] = {0, 1};
    tiny_make(&s);
    assert_int_equal(oracle_run(&s.args, tokens, 2, &rows), ORACLE_E_ARGS);
    s.index[2] = 2;
    assert_int_equal(oracle_run(&s.args, NULL, 0, &rows), ORACLE_E_ARGS);
    s.args.skip_invalid_experts = 1;
    expect_row(&s, 0.5 * 24, 0.5 * -12);
    s.t[2].shape[1] = 2;
    assert_int_equal(oracle_run(&s.args, NULL, 0, &rows), ORACLE_E_ARGS);
    assert_null(rows.value);
    for (size_t i = 0; i < COUNT(s.t); i++) s.t[i].data = NULL;
    s.t[0].shape[0] = s.t[3].shape[0] = s.t[4].shape[0] = 0;
    assert_int_equal(oracle_run(&s.args, NULL, 0, &rows), ORACLE_OK);
    assert_int_equal(rows.n, 0);
    oracle_free(&rows);
}

/* A row is the same whichever tokens are asked for with it. */
static void test_choice_of_tokens(void **state)
{
    (void)state;
    layer l;
    oracle_rows all, some;
    size_t tokens[20];
    layer_make(&l, &(layer_spec){.hidden = MOE_BF16,
                                 .weights = MOE_MXFP8_X4,
                                 .T = 40,
                                 .H = 512,
                                 .I = 40,
                                 .E_L = 3,
                                 .K = 2,
                                 .scaling = MOE_POST_SCALE});
    for (size_t i = 0; i < COUNT(tokens); i++) tokens[i] = i * 7 % 40;
    assert_int_equal(oracle_run(&l.args, NULL, 0, &all), ORACLE_OK);
    assert_int_equal(oracle_run(&l.args, tokens, COUNT(tokens), &some), ORACLE_OK);
    for (size_t i = 0; i < COUNT(tokens); i++) {
        size_t from = tokens[i] * all.H, to = i * some.H, bytes = all.H * sizeof(double);
        assert_int_equal(some.token[i], tokens[i]);
        assert_memory_equal(some.value + to, all.value + from, bytes);
        assert_memory_equal(some.tight + to, all.tight + from, bytes);
        assert_memory_equal(some.proof + to, all.proof + from, bytes);
    }
    oracle_free(&all);
    oracle_free(&some);
    layer_free(&l);
}

/* ---- random layers --------------------------------------------------------------------------- */

static void judge_layer(const layer *l)
{
    oracle_rows rows;
    moe_tensor output;
    size_t bytes;
    void *got = layer_run(NULL, l, &bytes);
    assert_int_equal(moe_tkg_output(&l->args, &output, &bytes), MOE_OK);
    assert_int_equal(oracle_run(&l->args, NULL, 0, &rows), ORACLE_OK);
    oracle_verdict v = oracle_judge(&rows, &output, got);
    if (v.outside + v.outside_tight > 0)
        fail_msg("weights %s, seed %llu: %zu + %zu of %zu cells outside, worst %g at (%zu, %zu)",
                 moe_dtype_name(l->spec.weights), (unsigned long long)l->spec.seed, v.outside,
                 v.outside_tight, v.cells, v.worst, v.worst_token, v.worst_h);
    oracle_free(&rows);
    free(got);
}

static void stays_within_its_bounds(layer_spec s)
{
    layer l;
    layer_make(&l, &s);
    judge_layer(&l);
    layer_free(&l);
}

/* Terms 4 apart cancel, but for the first four of every sum: row k of gate/up is row k - 4 negated
 * where k & 4, the hidden values are equal.  Rows are h, in MX partitions, whose blocks of 8 hold
 * both. */
static void stays_within_its_bounds_when_terms_cancel(layer_spec s)
{
    layer l;
    s.place = LAYER_HBM;
    s.output_in_sbuf = false;
    s.wild &= ~(unsigned)(LAYER_WILD_SPECIAL | LAYER_WILD_WEIGHTS | LAYER_WILD_ROUTING);
    layer_make(&l, &s);
    bool mx = layer_is_mx(&l);
    size_t E_L = (size_t)s.E_L, H = (size_t)s.H, rows = mx ? 128 : H;
    size_t element = moe_dtype_size(l.tensor[LAYER_GATE_UP].dtype), top = element - 1;
    size_t row = l.bytes[LAYER_GATE_UP] / E_L / rows, wide = moe_dtype_size(l.spec.hidden);
    for (size_t n = 0; n < E_L * rows; n++) {
        size_t k = n % rows;
        uint8_t *to = (uint8_t *)l.data[LAYER_GATE_UP] + n * row;
        if (k < 8 || !(k & 4)) continue;
        memcpy(to, to - 4 * row, row);
        for (size_t b = 0; b < row; b++)
            if (s.weights == MOE_MXFP4_X4)
                to[b] ^= 0x88;
            else if (s.weights == MOE_MXFP8_X4 || b % element == top)
                to[b] ^= 0x80;
    }
    for (size_t n = 0; n < (size_t)s.T * H; n++) {
        uint8_t *to = (uint8_t *)l.data[LAYER_HIDDEN] + n * wide;
        if (n % H % 128 >= 8 && (n % H & 4)) memcpy(to, to - 4 * wide, wide);
    }
    judge_layer(&l);
    layer_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_units),
        cmocka_unit_test(test_golden_cases),
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_more_rules_by_hand),
        cmocka_unit_test(test_all_expert_by_hand),
        cmocka_unit_test(test_special_values_by_hand),
        cmocka_unit_test(test_overflow_is_unbounded),
        cmocka_unit_test(test_judging),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_choice_of_tokens),
        RANDOM_LAYER_TEST(stays_within_its_bounds),
        RANDOM_LAYER_TEST(stays_within_its_bounds_when_terms_cancel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* test_golden.c - every golden case of the operator at the gate `strict`, on every ISA level, as it
 * is and with its experts packed; every unit vector. */
#include "../tools/paths.h"
#include "expect.h"
#include "fpenv.h"
#include "golden.h"
#include "io/safetensors.h"
#include "numeric.h"
#include "quantize_block.h"

#include "../tools/case.h"
#include "../tools/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- cases ----------------------------------------------------------------------------------- */

/* Element i of an output, which lies in the order of c->expected. */
static double element(const moe_tensor *output, size_t i)
{
    moe_tensor flat = *output;
    flat.layout = MOE_LAYOUT_HBM;
    return oracle_output_cell(&flat, 0, output->data, 0, i);
}

static void judge(const char *path, const moe_case *c, const moe_tensor *output)
{
    double error = 0.0, scale = 0.0;
    for (size_t i = 0; i < c->expected_count; i++) {
        double got = element(output, i), expected = c->expected[i];
        if (isnan(got) != isnan(expected))
            fail_msg("%s: element %zu: %g, not %g", path, i, got, expected);
        if (isnan(got) || got == expected) continue;
        error = fmax(error, fabs(got - expected));
        scale = fmax(scale, fabs(expected));
    }
    for (size_t i = 0; i < c->expected_count; i++) {
        double size = fabs((double)c->expected[i]);
        if (size > scale) scale = size; /* not fmax(): gcc 12 for Arm breaks down over it here */
    }
    double limit = c->atol + c->rtol_strict * scale;
    if (!(error <= limit)) fail_msg("%s: error %g, limit %g", path, error, limit);
}

/* The same bits with the experts packed. */
static void expect_packed(const char *path, moe_context *context, const moe_tkg_args *args,
                          const void *expected, size_t bytes)
{
    moe_experts_args experts_args = path_experts_args(args);
    moe_experts *experts;
    void *output = malloc(bytes);
    assert_non_null(output);
    moe_status status = moe_experts_create(context, &experts_args, &experts);
    moe_tkg_args with = path_with_experts(args, experts);
    if (status == MOE_OK) status = moe_tkg(context, &with, output, bytes);
    if (status != MOE_OK) fail_msg("%s, packed: %s", path, moe_last_error());
    if (memcmp(expected, output, bytes) != 0)
        fail_msg("%s: other bits packed on %s", path, moe_context_isa(context));
    assert_int_equal(moe_experts_destroy(experts), MOE_OK);
    free(output);
}

static void golden_case(const char *path)
{
    moe_case c;
    io_error error;
    if (case_load(path, &c, &error) != IO_OK) fail_msg("%s: %s", path, error.text);
    assert_non_null(c.expected);
    moe_tensor shape;
    size_t bytes;
    void *first = NULL;
    for (size_t i = 0; moe_isa_level(i) != NULL; i++)
        for (int32_t threads = getenv("MOE_QUICK") ? 3 : 1; threads <= 3; threads += 2) {
            moe_context_options options = moe_context_options_init();
            options.threads = threads;
            options.isa = moe_isa_level(i);
            moe_context *context;
            assert_int_equal(moe_context_create(&options, &context), MOE_OK);
            moe_status status = moe_tkg_output(&c.args, &shape, &bytes);
            void *output = malloc(bytes);
            assert_non_null(output);
            if (status == MOE_OK) status = moe_tkg(context, &c.args, output, bytes);
            if (status != MOE_OK) fail_msg("%s: %s", path, moe_last_error());
            expect_packed(path, context, &c.args, output, bytes);
            assert_int_equal(moe_context_destroy(context), MOE_OK);
            if (first == NULL) {
                first = output;
                shape.data = first;
                assert_int_equal(bytes, c.expected_count * moe_dtype_size(shape.dtype));
                judge(path, &c, &shape);
                continue;
            }
            if (memcmp(first, output, bytes) != 0)
                fail_msg("%s: other bits on %s, %d threads", path, moe_isa_level(i), (int)threads);
            free(output);
        }
    free(first);
    case_free(&c);
}

static void test_cases(void **state)
{
    (void)state;
    assert_true(golden_each("moe_tkg", golden_case) >= 15);
}

/* ---- units ----------------------------------------------------------------------------------- */

typedef struct unit {
    st_file *file;
    const char *name;
} unit;

static unit unit_open(const char *path)
{
    unit u;
    io_error error;
    if (st_open(path, &u.file, &error) != IO_OK) fail_msg("%s", error.text);
    u.name = st_metadata(u.file, "name");
    assert_non_null(u.name);
    return u;
}

/* The tensor's data in a block of malloc, *count elements. */
static void *unit_data(const unit *u, const char *tensor, size_t *count)
{
    io_error error;
    const st_tensor *t = st_find(u->file, tensor);
    if (t == NULL) fail_msg("%s: no %s", u->name, tensor);
    void *data = malloc(t->bytes);
    assert_non_null(data);
    if (st_read(u->file, t, data, &error) != IO_OK) fail_msg("%s", error.text);
    *count = t->bytes * 8 / st_dtype_bits(t->dtype);
    return data;
}

static float decode_e8m0(uint8_t code)
{
    return num_e8m0_low(code) * num_e8m0(code);
}

static float decode_e2m1(uint8_t code)
{
    return num_from_e2m1(code);
}

static void decode_unit(const unit *u, float (*decode)(uint8_t))
{
    size_t n, m;
    uint8_t *code = unit_data(u, "codes", &n);
    float *expected = unit_data(u, "expected", &m);
    assert_int_equal(n, m);
    for (size_t i = 0; i < n; i++) {
        bool is_left_out =
            decode == decode_e8m0 && code[i] == 255; /* ours is NaN, the file's inf */
        if (is_left_out) expected[i] = NAN;
        float got = decode(code[i]);
        bool same = isnan(expected[i]) ? isnan(got) : num_bits(got) == num_bits(expected[i]);
        if (!same)
            fail_msg("%s: code %u: %g, not %g", u->name, code[i], (double)got, (double)expected[i]);
    }
    free(code);
    free(expected);
}

/* act(x) as the operator computes it: H = I = 1, gate and down weights 1, and up is its bias, 1. */
static void activation_unit(const unit *u, moe_activation activation)
{
    size_t n, m;
    float *x = unit_data(u, "x", &n), *expected = unit_data(u, "expected", &m);
    assert_int_equal(n, m);
    static const float gate_up[2] = {1.0f, 0.0f}, bias[2] = {0.0f, 1.0f}, down[1] = {1.0f};
    moe_tensor hidden = moe_tensor_2d(x, MOE_F32, (int64_t)n, 1),
               w1 = {gate_up, MOE_F32, MOE_LAYOUT_HBM, 4, {1, 1, 2, 1}},
               w2 = {down, MOE_F32, MOE_LAYOUT_HBM, 3, {1, 1, 1}},
               b1 = {bias, MOE_F32, MOE_LAYOUT_HBM, 3, {1, 2, 1}};
    moe_tkg_args args = moe_tkg_args_init();
    args.hidden_input = &hidden;
    args.expert_gate_up_weights = &w1;
    args.expert_down_weights = &w2;
    args.expert_gate_up_bias = &b1;
    args.is_all_expert = 1;
    args.activation_fn = activation;
    float *got = malloc(n * sizeof *got);
    assert_non_null(got);
    assert_int_equal(moe_tkg(NULL, &args, got, n * sizeof *got), MOE_OK);
    for (size_t i = 0; i < n; i++) {
        float limit = 1e-6f + 1e-5f * fabsf(expected[i]);
        if (!(fabsf(got[i] - expected[i]) <= limit))
            fail_msg("%s(%a) = %a, not %a", u->name, (double)x[i], (double)got[i],
                     (double)expected[i]);
    }
    free(got);
    free(x);
    free(expected);
}

/* x [P, F]: a block is 8 rows by 4 neighbours, a code word the 4 neighbours, lowest first. */
static void quantize_unit(const unit *u)
{
    size_t n, words, scales;
    float *x = unit_data(u, "x", &n);
    uint32_t *word = unit_data(u, "codes", &words);
    uint8_t *scale = unit_data(u, "scale", &scales);
    size_t columns = (size_t)st_find(u->file, "codes")->shape[1];
    assert_true(n == 4 * words && words == 8 * scales);
    fpenv saved = fpenv_enter();
    for (size_t s = 0; s < scales; s++) {
        size_t first = s / columns * 8 * columns + s % columns; /* word of the block's first row */
        float block[32];
        for (size_t i = 0; i < 32; i++) block[i] = x[(first + i % 8 * columns) * 4 + i / 8];
        quantize_mxfp8(block);
        for (size_t i = 0; i < 32; i++) {
            uint8_t code = (uint8_t)(word[first + i % 8 * columns] >> i / 8 * 8);
            float expected = num_from_e4m3fn(code) * num_e8m0_low(scale[s]) * num_e8m0(scale[s]);
            if (num_bits(num_to_f32(block[i])) != num_bits(num_to_f32(expected)))
                fail_msg("%s: block %zu: %a, not %a (0x%02x, scale %u)", u->name, s,
                         (double)block[i], (double)expected, code, scale[s]);
        }
    }
    fpenv_leave(saved);
    free(x);
    free(word);
    free(scale);
}

static void golden_unit(const char *path)
{
    static const struct {
        const char *name;
        float (*decode)(uint8_t);
    } decoders[] = {{"decode_e8m0", decode_e8m0},
                    {"decode_fp4_e2m1", decode_e2m1},
                    {"decode_fp8_e4m3_ieee", num_from_e4m3_ieee},
                    {"decode_fp8_e4m3fn", num_from_e4m3fn}};
    static const struct {
        const char *name;
        moe_activation activation;
    } activations[] = {{"act_silu", MOE_SILU},
                       {"act_gelu", MOE_GELU},
                       {"act_gelu_tanh", MOE_GELU_TANH},
                       {"act_swish", MOE_SWISH},
                       {"act_relu", MOE_RELU}};
    unit u = unit_open(path);
    bool known = strncmp(u.name, "quantize_mx_", 12) == 0;
    if (known) quantize_unit(&u);
    for (size_t i = 0; i < COUNT(decoders); i++)
        if (strcmp(u.name, decoders[i].name) == 0) {
            decode_unit(&u, decoders[i].decode);
            known = true;
        }
    for (size_t i = 0; i < COUNT(activations); i++)
        if (strcmp(u.name, activations[i].name) == 0) {
            activation_unit(&u, activations[i].activation);
            known = true;
        }
    if (!known) fail_msg("%s: no such unit", u.name);
    st_close(u.file);
}

static void test_units(void **state)
{
    (void)state;
    assert_true(golden_each("units", golden_unit) >= 17);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* test_ungated.c - experts without a gate: the document's bits on every level, and what says
 * something of a gate is refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "canon_ref.h"
#include "expect.h"
#include "source.h"

/* ---- a call ---------------------------------------------------------------------------------- */

typedef struct subject {
    source source;
    moe_experts *experts;
    layer layer; /* hidden and routing; its weights are others, of the same sizes */
    moe_tkg_args args;
} subject;

static uint64_t dice(uint64_t seed, uint64_t n)
{
    return layer_random(seed, n, 0x0906) >> 6;
}

static source_spec draw_source(uint64_t seed)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32, MOE_E4M3FN};
    static const int64_t sizes[] = {1, 5, 16, 17, 31, 32, 33, 48, 65, 97, 130};
    const uint64_t d = dice(seed, 0);
    source_spec s = {.seed = seed, .ungated = true, .E_L = 1 + (int64_t)(d % 3)};
    s.mx = d >> 2 & 1;
    s.gate_up = s.mx ? (d >> 3 & 1 ? MOE_E2M1_X2 : MOE_E4M3FN) : types[d >> 4 & 3];
    s.down = s.mx ? (d >> 6 & 1 ? MOE_E2M1_X2 : MOE_E4M3FN) : types[d >> 7 & 3];
    s.H = s.mx ? 32 + 32 * (int64_t)((d >> 12) % 3) : sizes[(d >> 12) % COUNT(sizes)];
    s.I = s.mx ? 32 + 32 * (int64_t)((d >> 16) % 4) : sizes[(d >> 16) % COUNT(sizes)];
    if (!s.mx && d >> 20 & 1) s.scale = MOE_F32;
    if (d >> 21 & 1) s.bias = MOE_BF16;
    if (!s.mx && s.gate_up == MOE_BF16 && s.down == MOE_BF16 && d >> 22 & 1)
        s.packing = MOE_PACK_LOSSLESS;
    return s;
}

static layer_spec draw_call(const source_spec *s, uint64_t seed)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32};
    static const moe_affinity_scale scalings[] = {MOE_NO_SCALE, MOE_POST_SCALE, MOE_INPUT_SCALE};
    const uint64_t d = dice(seed, 1);
    layer_spec l = {.seed = seed,
                    .hidden = types[d % 3],
                    .weights = MOE_F32,
                    .T = 1 + (int64_t)((d >> 4) % 6),
                    .H = s->H,
                    .I = s->I,
                    .E_L = s->E_L,
                    .K = 1 + (int64_t)(d >> 8 & 1),
                    .all_expert = d >> 9 & 1,
                    .scaling = scalings[(d >> 10) % 3],
                    .output = MOE_F32};
    if (d >> 16 & 1) l.wild = LAYER_WILD_SPECIAL | LAYER_WILD_ROUTING;
    return l;
}

static void subject_make(subject *s, uint64_t seed)
{
    const source_spec spec = draw_source(seed);
    const layer_spec call = draw_call(&spec, seed);
    const uint64_t d = dice(seed, 2);
    source_make(&s->source, &spec);
    moe_status status = moe_experts_create(NULL, &s->source.args, &s->experts);
    if (status != MOE_OK) fail_msg("seed %llu: %s", (unsigned long long)seed, moe_last_error());
    layer_make(&s->layer, &call);
    layer_drop(&s->layer, LAYER_GATE_UP);
    layer_drop(&s->layer, LAYER_DOWN);
    s->args = s->layer.args;
    s->args.experts = s->experts;
    s->args.activation_fn = (moe_activation)(d % (MOE_RELU2 + 1));
    if (s->args.activation_fn == MOE_SWIGLU) s->args.activation_fn = MOE_RELU2;
    if (d >> 4 & 1) s->args.up_clamp_upper_limit = moe_given_float(1.5f);
    if (d >> 5 & 1) s->args.up_clamp_lower_limit = moe_given_float(-1.25f);
    if (d >> 6 & 1) s->args.act_clamp_upper_limit = moe_given_float(0.75f);
    if (spec.mx && d >> 7 & 1) s->args.act_mode = MOE_ACT_MXFP8;
    if (spec.mx && spec.gate_up == MOE_E2M1_X2 && spec.down == MOE_E2M1_X2 && d >> 8 & 1)
        s->args.act_mode = MOE_ACT_INT8;
}

static void subject_free(subject *s)
{
    assert_int_equal(moe_experts_destroy(s->experts), MOE_OK);
    layer_free(&s->layer);
    source_free(&s->source);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_document(void **state)
{
    (void)state;
    const char *environment = getenv("MOE_SEED");
    const uint64_t first = environment ? strtoull(environment, NULL, 0) : 0;
    const uint64_t rounds = getenv("MOE_QUICK") ? 60 : 300;
    for (size_t level = 0; moe_isa_level(level) != NULL; level++) {
        moe_context_options options = moe_context_options_init();
        moe_context *context;
        options.isa = moe_isa_level(level);
        options.threads = 1 + (int32_t)level % 3;
        assert_int_equal(moe_context_create(&options, &context), MOE_OK);
        for (uint64_t seed = first; seed < first + rounds; seed++) {
            subject s;
            subject_make(&s, seed);
            const size_t bytes = (size_t)(s.layer.spec.T * s.layer.spec.H) * sizeof(float);
            void *want = malloc(bytes), *got = malloc(bytes);
            assert_non_null(want);
            assert_non_null(got);
            canon_run_rows(&s.args, &s.source.args, want);
            moe_status status = moe_tkg(context, &s.args, got, bytes);
            if (status != MOE_OK)
                fail_msg("seed %llu: %s", (unsigned long long)seed, moe_last_error());
            if (memcmp(want, got, bytes) != 0)
                fail_msg("seed %llu: not the document's bits on %s", (unsigned long long)seed,
                         moe_isa_level(level));
            free(want);
            free(got);
            subject_free(&s);
        }
        assert_int_equal(moe_context_destroy(context), MOE_OK);
    }
}

static uint32_t one(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    (void)s, (void)matrix, (void)e, (void)row, (void)k;
    return 0x3F80; /* of bf16 */
}

/* An infinite hidden value is no number in rows past I, whose weights are zeros, and the limits make
 * a number of it in all others: what pads I does not reach the output. */
static void test_pads(void **state)
{
    (void)state;
    for (int64_t I = 1; I <= 70; I++) {
        enum { H = 3 };
        static float x[H] = {1, INFINITY, 2};
        static int32_t index[1];
        source s;
        moe_experts *experts;
        float got[H];
        source_make(&s, &(source_spec){.gate_up = MOE_BF16,
                                       .down = MOE_BF16,
                                       .ungated = true,
                                       .E_L = 1,
                                       .H = H,
                                       .I = I,
                                       .code = one});
        assert_int_equal(moe_experts_create(NULL, &s.args, &experts), MOE_OK);
        moe_tensor hidden = moe_tensor_2d(x, MOE_F32, 1, H),
                   indices = moe_tensor_2d(index, MOE_I32, 1, 1);
        moe_tkg_args args = moe_tkg_args_init();
        args.hidden_input = &hidden;
        args.expert_index = &indices;
        args.experts = experts;
        args.activation_fn = MOE_RELU2;
        args.up_clamp_upper_limit = moe_given_float(2);
        assert_int_equal(moe_tkg(NULL, &args, got, sizeof got), MOE_OK);
        for (size_t h = 0; h < H; h++) assert_true(got[h] == (float)(4 * I));
        assert_int_equal(moe_experts_destroy(experts), MOE_OK);
        source_free(&s);
    }
}

static void test_refused(void **state)
{
    (void)state;
    subject s;
    subject_make(&s, 1);
    s.args.activation_fn = MOE_RELU2;
    expect_accepted(&s.args);
    s.args.gate_clamp_upper_limit = moe_given_float(7);
    expect_refused(&s.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, "gate_clamp_upper_limit",
                   "no gate");
    s.args.gate_clamp_upper_limit.given = 0;
    s.args.gate_clamp_lower_limit = moe_given_float(-7);
    expect_refused(&s.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, "gate_clamp_lower_limit",
                   "no gate");
    s.args.gate_clamp_lower_limit.given = 0;
    s.args.activation_fn = MOE_SWIGLU;
    s.args.swiglu_alpha = s.args.swiglu_up_offset = moe_given_float(1);
    expect_refused(&s.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, "activation_fn", "no gate");
    subject_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_document),
        cmocka_unit_test(test_pads),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("ungated", tests, NULL, NULL);
}

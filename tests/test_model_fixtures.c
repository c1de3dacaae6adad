/* SPDX-License-Identifier: Apache-2.0 */
/* Layers of tiny checkpoints in published layouts, through the library: described as their cases say,
 * and computed within the bound that f32 allows. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fixture.h"
#include "model_bound.h"

enum { TESTED = 1 }; /* the layer that the cases are of */

static void check(moe_status status)
{
    if (status != MOE_OK) fail_msg("%s: %s", moe_status_name(status), moe_io_last_error());
}

static int64_t number_of(const moe_model *model, int64_t layer)
{
    for (int64_t i = 0; i < model->count; i++)
        if (model->layers[i].number == layer) return i;
    fail_msg("layer %lld has no experts", (long long)layer);
    return -1;
}

/* ---- descriptions ---------------------------------------------------------------------------- */

static long fact(const char *folder, const char *key)
{
    char text[64];
    fixture_fact(folder, key, text, sizeof text);
    return strtol(text, NULL, 10);
}

static bool fact_is(const char *folder, const char *key, const char *value)
{
    char text[128];
    fixture_fact(folder, key, text, sizeof text);
    return strcmp(text, value) == 0;
}

static float fact_real(const char *folder, const char *key)
{
    char text[64];
    fixture_fact(folder, key, text, sizeof text);
    return strtof(text, NULL);
}

static void check_router(const char *folder, const moe_layer_info *info)
{
    static const struct {
        const char *rule;
        moe_router_score score;
    } rules[] = {{"softmax", MOE_SCORE_SOFTMAX},
                 {"softmax_topk", MOE_SCORE_TOPK_SOFTMAX},
                 {"sigmoid_bias", MOE_SCORE_SIGMOID},
                 {"sigmoid_input_weight", MOE_SCORE_SIGMOID}};
    char rule[64];
    size_t i = 0;
    fixture_fact(folder, "router_rule", rule, sizeof rule);
    while (i < 3 && strcmp(rules[i].rule, rule) != 0) i++;
    assert_string_equal(rules[i].rule, rule);
    assert_int_equal(info->score, rules[i].score);
    assert_null(info->foreign_router);
    if (info->score != MOE_SCORE_TOPK_SOFTMAX)
        assert_int_equal(info->normalize, fact_is(folder, "norm_topk_prob", "true"));
    assert_true(info->scale == fact_real(folder, "routed_scaling_factor"));
    long groups = fact(folder, "n_group");
    assert_int_equal(info->n_group, groups == 1 ? 0 : groups);
    if (groups > 1) assert_int_equal(info->topk_group, fact(folder, "topk_group"));
    assert_int_equal(info->has_router_bias, fact_is(folder, "router_bias", "yes"));
    assert_int_equal(info->has_selection_bias, fact_is(folder, "score_correction_bias", "yes"));
    assert_int_equal(info->scaling, fact_is(folder, "weight_applied_to", "input") ? MOE_INPUT_SCALE
                                                                                  : MOE_POST_SCALE);
}

static void check_description(const char *folder, const moe_layer_info *info)
{
    assert_int_equal(info->layer, TESTED);
    assert_int_equal(info->H, fact(folder, "hidden_size"));
    assert_int_equal(info->I, fact(folder, "intermediate_size"));
    assert_int_equal(info->E, fact(folder, "num_experts"));
    assert_int_equal(info->K, fact(folder, "top_k"));
    assert_int_equal(info->shared_I, fact(folder, "shared_intermediate_size"));
    assert_int_equal(info->has_shared_gate, fact_is(folder, "shared_expert_gate", "sigmoid"));
    assert_int_equal(info->has_bias, fact_is(folder, "expert_bias", "yes"));
    assert_int_equal(info->has_gate, 1);
    bool swiglu = !fact_is(folder, "activation", "silu(gate)*up");
    assert_int_equal(info->activation, swiglu ? MOE_SWIGLU : MOE_SILU);
    assert_int_equal(info->gate_clamp_upper_limit.given, swiglu);
    if (swiglu) {
        float limit = fact_real(folder, "activation_limit");
        assert_true(info->swiglu_alpha.value == fact_real(folder, "activation_alpha"));
        assert_true(info->swiglu_up_offset.value == fact_real(folder, "activation_up_offset"));
        assert_true(info->gate_clamp_upper_limit.value == limit);
        assert_true(info->up_clamp_upper_limit.value == limit);
        assert_true(info->up_clamp_lower_limit.value == -limit);
    }
    assert_int_equal(info->act_clamp_upper_limit.given, 0);
    assert_true(info->expert_bytes * (uint64_t)info->E < info->bytes);
    check_router(folder, info);
}

static void formats_are(const char *name, const char *is, const moe_layer_info *info)
{
    static const struct {
        const char *name, *family, *gate_up, *down, *shared;
    } formats[] = {
        {"gpt_oss_mxfp4", "gpt-oss", "mxfp4", "mxfp4", ""},
        {"qwen3_moe_bf16", "qwen3-moe", "bf16", "bf16", ""},
        {"mixtral_bf16", "mixtral", "bf16", "bf16", ""},
        {"deepseek_v3_fp8_block", "deepseek-v3", "fp8-block", "fp8-block", "fp8-block"},
        {"glm4_moe_fp8_channel", "glm4-moe", "fp8-channel", "fp8-channel", "fp8-channel"},
        {"olmoe_f16", "olmoe", "f16", "f16", ""},
        {"qwen2_moe_bf16", "qwen2-moe", "bf16", "bf16", "bf16"},
        {"llama4_bf16", "llama4", "bf16", "bf16", "bf16"},
        {"granite_moe_bf16", "granite-moe", "bf16", "bf16", ""},
        {"kimi_k2_int4", "kimi-k2", "int4-g32", "int4-g32", "bf16"},
        {"gguf_gpt_oss_mxfp4", "gpt-oss", "mxfp4", "mxfp4", ""},
        {"gguf_qwen3moe_q8_0", "qwen3-moe", "q8_0", "q8_0", ""},
        {"gguf_glm4moe_bf16", "glm4-moe", "bf16", "bf16", "bf16"},
        {"gguf_qwen2moe_q4_0", "qwen2-moe", "q4_0", "q4_0", "q4_0"},
        {"gguf_qwen3moe_q4_k", "qwen3-moe", "q4_k", "q6_k", ""},
    };
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (strcmp(formats[i].name, name) != 0) continue;
        assert_string_equal(is, formats[i].family);
        assert_string_equal(info->gate_up_format, formats[i].gate_up);
        assert_string_equal(info->down_format, formats[i].down);
        assert_string_equal(info->shared_format, formats[i].shared);
    }
}

static void describe(const char *name, const char *folder)
{
    moe_model *model;
    moe_model_info about = {.struct_size = sizeof about};
    moe_layer_info info = {.struct_size = sizeof info};
    check(moe_model_open(folder, NULL, &model));
    check(moe_model_describe(model, &about));
    assert_string_equal(about.container, strncmp(name, "gguf", 4) == 0 ? "gguf" : "safetensors");
    assert_int_equal(about.layers, 2);
    for (int64_t i = 0; i < about.moe_layers; i++) check(moe_model_layer(model, i, &info));
    check_description(folder, &info);
    formats_are(name, about.family, &info);
    moe_model_close(model);
}

static void described(void **state)
{
    (void)state;
    assert_true(fixture_each(describe) >= 13);
}

/* ---- results --------------------------------------------------------------------------------- */

static void run_experts(const char *name, const moe_layer *layer, const fixture_case *c,
                        const model_bounds *b)
{
    moe_block_args block;
    check(moe_layer_args(layer, &block));
    moe_tkg_args args = block.experts;
    moe_tensor hidden = moe_tensor_2d(c->hidden, MOE_F32, c->T, c->H),
               index = moe_tensor_2d(c->ids, MOE_I32, c->T, c->K),
               weights = moe_tensor_2d(c->weights, MOE_F32, c->T, c->K);
    args.hidden_input = &hidden;
    args.expert_index = &index;
    args.expert_affinities_eager = &weights;
    args.act_mode = MOE_ACT_EXACT;
    size_t bytes = (size_t)(c->T * c->H) * sizeof(float);
    float *output = malloc(bytes);
    moe_status s = moe_tkg(NULL, &args, output, bytes);
    if (s != MOE_OK) fail_msg("%s: %s", name, moe_last_error());
    model_within(name, c, output, c->experts, b->experts);
    free(output);
}

static void compute(const char *name, const char *folder)
{
    moe_model *model;
    moe_layer *layer;
    fixture_case c;
    check(moe_model_open(folder, NULL, &model));
    check(moe_model_load(model, TESTED, NULL, NULL, &layer));
    size_t i = 0;
    for (; fixture_read(folder, i, &c); i++) {
        model_bounds b;
        model_bounds_make(model, number_of(model, TESTED), &c, &b);
        run_experts(name, layer, &c, &b);
        model_bounds_free(&b);
        fixture_free(&c);
    }
    assert_true(i > 0);
    moe_model_close(model);
    check(moe_layer_free(layer));
}

static void computed(void **state)
{
    (void)state;
    assert_true(fixture_each(compute) >= 13);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(described), cmocka_unit_test(computed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

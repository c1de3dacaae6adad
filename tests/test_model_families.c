/* SPDX-License-Identifier: Apache-2.0 */
/* Every family of safetensors models from a checkpoint of one layer: what is found in it, and that each
 * tensor that lacks, or is of another type or shape, is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <moe_tkg_io.h>

#include "gguf_bytes.h"
#include "model_files.h"

#define SIZES                                                                                      \
    "\"num_hidden_layers\": 2, \"hidden_size\": 160, \"hidden_act\": \"silu\", "                   \
    "\"num_experts_per_tok\": 2, "
#define QWEN_I    "\"moe_intermediate_size\": 96, \"num_experts\": 3}"
#define DEEPSEEK  "\"moe_intermediate_size\": 96, \"n_routed_experts\": 3, \"n_shared_experts\": 1"
#define MIXTRAL_I "\"intermediate_size\": 96, \"num_local_experts\": 3"

#define L "model.layers.1."
#define EACH(base, gate, up, down, dtype)                                                          \
    base "experts.{e}." gate " " dtype " I,H", base "experts.{e}." up " " dtype " I,H",            \
        base "experts.{e}." down " " dtype " H,I"
#define PROJECTIONS(base, dtype)                                                                   \
    EACH(base, "gate_proj.weight", "up_proj.weight", "down_proj.weight", dtype)
#define SHARED(base, S)                                                                            \
    base "gate_proj.weight BF16 " S ",H", base "up_proj.weight BF16 " S ",H",                      \
        base "down_proj.weight BF16 H," S
#define FUSED(base) base "experts.gate_up_proj BF16 E,2I,H", base "experts.down_proj BF16 E,H,I"
#define TRANSPOSED(base)                                                                           \
    base "experts.gate_up_proj BF16 E,H,2I", base "experts.down_proj BF16 E,I,H"
#define CORRECTION "mlp.gate.e_score_correction_bias F32 E"
#define BYTES_OF(base, weights, weights_dtype, k, scale, scale_dtype, sk)                          \
    base "experts.{e}.gate_proj" weights " " weights_dtype " I,H" k,                               \
        base "experts.{e}.up_proj" weights " " weights_dtype " I,H" k,                             \
        base "experts.{e}.down_proj" weights " " weights_dtype " H,I" k,                           \
        base "experts.{e}.gate_proj" scale " " scale_dtype " I," sk,                               \
        base "experts.{e}.up_proj" scale " " scale_dtype " I," sk,                                 \
        base "experts.{e}.down_proj" scale " " scale_dtype " H," sk

typedef struct checkpoint_case {
    const char *family, *config, *format, *shared_format, *foreign;
    int shared_I;
    moe_router_score score;
    moe_group_rank group_rank;
    int normalize;
    const char *optional; /* what a name that may lack ends in */
    const char *lines[20];
} checkpoint_case;

static const checkpoint_case cases[] = {
    {.family = "gpt-oss",
     .config = "{\"model_type\": \"gpt_oss\", " SIZES MIXTRAL_I "}",
     .format = "mxfp4",
     .score = MOE_SCORE_TOPK_SOFTMAX,
     .lines = {L "mlp.router.weight BF16 E,H", L "mlp.router.bias BF16 E",
               L "mlp.experts.gate_up_proj_blocks U8 E,2I,H/32,16",
               L "mlp.experts.gate_up_proj_scales U8 E,2I,H/32",
               L "mlp.experts.gate_up_proj_bias BF16 E,2I",
               L "mlp.experts.down_proj_blocks U8 E,H,I/32,16",
               L "mlp.experts.down_proj_scales U8 E,H,I/32",
               L "mlp.experts.down_proj_bias BF16 E,H"}},
    {.family = "gpt-oss", /* the makers' names, with their configuration */
     .config = "{\"num_hidden_layers\": 2, \"num_experts\": 3, \"experts_per_token\": 2, "
               "\"hidden_size\": 160, \"intermediate_size\": 96, \"swiglu_limit\": 7.0}",
     .format = "mxfp4",
     .score = MOE_SCORE_TOPK_SOFTMAX,
     .lines = {"block.1.mlp.gate.weight BF16 E,H", "block.1.mlp.gate.bias BF16 E",
               "block.1.mlp.mlp1_weight.blocks U8 E,2I,H/32,16",
               "block.1.mlp.mlp1_weight.scales U8 E,2I,H/32", "block.1.mlp.mlp1_bias BF16 E,2I",
               "block.1.mlp.mlp2_weight.blocks U8 E,H,I/32,16",
               "block.1.mlp.mlp2_weight.scales U8 E,H,I/32", "block.1.mlp.mlp2_bias BF16 E,H"}},
    {.family = "gpt-oss", /* not quantised: transposed and in turns */
     .config = "{\"model_type\": \"gpt_oss\", " SIZES MIXTRAL_I "}",
     .format = "bf16",
     .score = MOE_SCORE_TOPK_SOFTMAX,
     .lines = {L "mlp.router.weight BF16 E,H", L "mlp.router.bias BF16 E", TRANSPOSED(L "mlp."),
               L "mlp.experts.gate_up_proj_bias BF16 E,2I",
               L "mlp.experts.down_proj_bias BF16 E,H"}},
    {.family = "qwen2-moe",
     .config =
         "{\"model_type\": \"qwen2_moe\", \"shared_expert_intermediate_size\": 64, " SIZES QWEN_I,
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_S,
     .lines = {L "mlp.gate.weight BF16 E,H", PROJECTIONS(L "mlp.", "BF16"),
               SHARED(L "mlp.shared_expert.", "S"), L "mlp.shared_expert_gate.weight BF16 1,H"}},
    {.family = "qwen3-moe",
     .config =
         "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"norm_topk_prob\": true, " SIZES QWEN_I,
     .format = "f32",
     .normalize = 1,
     .lines = {L "mlp.gate.weight BF16 E,H", PROJECTIONS(L "mlp.", "F32")}},
    {.family = "qwen3-moe", /* FP8 in blocks */
     .config = "{\"model_type\": \"qwen3_moe\", \"quantization_config\": {\"weight_block_size\": "
               "[128, 128]}, " SIZES QWEN_I,
     .format = "fp8-block",
     .lines = {L "mlp.gate.weight BF16 E,H", PROJECTIONS(L "mlp.", "F8_E4M3"),
               L "mlp.experts.{e}.gate_proj.weight_scale_inv F32 1,2",
               L "mlp.experts.{e}.up_proj.weight_scale_inv F32 1,2",
               L "mlp.experts.{e}.down_proj.weight_scale_inv F32 2,1"}},
    {.family = "qwen3-moe", /* one scale a matrix */
     .config = "{\"model_type\": \"qwen3_moe\", " SIZES QWEN_I,
     .format = "fp8-tensor",
     .lines = {L "mlp.gate.weight BF16 E,H", PROJECTIONS(L "mlp.", "F8_E4M3"),
               L "mlp.experts.{e}.gate_proj.weight_scale F32",
               L "mlp.experts.{e}.up_proj.weight_scale F32",
               L "mlp.experts.{e}.down_proj.weight_scale F32"}},
    {.family = "qwen3-moe", /* fused, FP8 with a scale for each row */
     .config = "{\"model_type\": \"qwen3_moe\", " SIZES QWEN_I,
     .format = "fp8-channel",
     .lines = {L "mlp.gate.weight BF16 E,H", L "mlp.experts.gate_up_proj F8_E4M3 E,2I,H",
               L "mlp.experts.down_proj F8_E4M3 E,H,I",
               L "mlp.experts.gate_up_proj_scale BF16 E,2I,1",
               L "mlp.experts.down_proj_scale BF16 E,H,1"}},
    {.family = "qwen3-vl-moe",
     .normalize = 1,
     .config = "{\"model_type\": \"qwen3_vl_moe\", \"text_config\": {\"model_type\": "
               "\"qwen3_vl_moe_text\", " SIZES QWEN_I "}",
     .format = "bf16",
     .lines = {"model.language_model.layers.1.mlp.gate.weight BF16 E,H",
               TRANSPOSED("model.language_model.layers.1.mlp.")}},
    {.family = "qwen3-moe", /* NVFP4 as ModelOpt writes it */
     .config = "{\"model_type\": \"qwen3_moe\", " SIZES QWEN_I,
     .format = "nvfp4",
     .lines = {L "mlp.gate.weight BF16 E,H",
               BYTES_OF(L "mlp.", ".weight", "U8", "/2", ".weight_scale", "F8_E4M3", "H/16"),
               L "mlp.experts.{e}.gate_proj.weight_scale_2 F32",
               L "mlp.experts.{e}.up_proj.weight_scale_2 F32",
               L "mlp.experts.{e}.down_proj.weight_scale_2 F32"}},
    {.family = "qwen3-next",
     .config =
         "{\"model_type\": \"qwen3_next\", \"shared_expert_intermediate_size\": 64, " SIZES QWEN_I,
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_S,
     .normalize = 1,
     .lines = {L "mlp.gate.weight BF16 E,H", FUSED(L "mlp."), SHARED(L "mlp.shared_expert.", "S"),
               L "mlp.shared_expert_gate.weight BF16 1,H"}},
    {.family = "qwen3.5-moe",
     .config = "{\"model_type\": \"qwen3_5_moe\", \"text_config\": {\"model_type\": "
               "\"qwen3_5_moe_text\", \"shared_expert_intermediate_size\": 64, " SIZES QWEN_I "}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_S,
     .normalize = 1,
     .lines = {"model.language_model.layers.1.mlp.gate.weight BF16 E,H",
               FUSED("model.language_model.layers.1.mlp."),
               SHARED("model.language_model.layers.1.mlp.shared_expert.", "S"),
               "model.language_model.layers.1.mlp.shared_expert_gate.weight BF16 1,H"}},
    {.family = "olmoe",
     .config =
         "{\"model_type\": \"olmoe\", " SIZES "\"intermediate_size\": 96, \"num_experts\": 3}",
     .format = "f16",
     .lines = {L "mlp.gate.weight F16 E,H", PROJECTIONS(L "mlp.", "F16")}},
    {.family = "mixtral",
     .config = "{\"model_type\": \"mixtral\", " SIZES MIXTRAL_I "}",
     .format = "bf16",
     .normalize = 1,
     .lines = {L "block_sparse_moe.gate.weight BF16 E,H",
               EACH(L "block_sparse_moe.", "w1.weight", "w3.weight", "w2.weight", "BF16")}},
    {.family = "mixtral",
     .config = "{\"model_type\": \"mixtral\", " SIZES MIXTRAL_I "}",
     .format = "bf16",
     .normalize = 1,
     .lines = {L "mlp.gate.weight BF16 E,H", FUSED(L "mlp.")}},
    {.family = "phi3.5-moe",
     .config = "{\"model_type\": \"phimoe\", " SIZES MIXTRAL_I "}",
     .format = "bf16",
     .foreign = "sparsemixer",
     .lines = {EACH(L "block_sparse_moe.", "w1.weight", "w3.weight", "w2.weight", "BF16")}},
    {.family = "deepseek-v2",
     .config = "{\"model_type\": \"deepseek_v2\", \"topk_method\": \"greedy\", " SIZES DEEPSEEK "}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_I,
     .lines = {L "mlp.gate.weight BF16 E,H", PROJECTIONS(L "mlp.", "BF16"),
               SHARED(L "mlp.shared_experts.", "I")}},
    {.family = "deepseek-v2",
     .config = "{\"model_type\": \"deepseek_v2\", \"topk_method\": \"group_limited_greedy\", "
               "\"n_group\": 3, \"topk_group\": 2, " SIZES DEEPSEEK "}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_I,
     .group_rank = MOE_GROUP_BEST,
     .lines = {L "mlp.gate.weight BF16 E,H", PROJECTIONS(L "mlp.", "BF16"),
               SHARED(L "mlp.shared_experts.", "I")}},
    {.family = "deepseek-v2", /* normalised or scaled: who is right? */
     .config = "{\"model_type\": \"deepseek_v2\", \"topk_method\": \"group_limited_greedy\", "
               "\"n_group\": 3, \"topk_group\": 2, \"norm_topk_prob\": true, " SIZES DEEPSEEK "}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_I,
     .foreign = "norm_topk_prob with softmax and groups",
     .lines = {PROJECTIONS(L "mlp.", "BF16"), SHARED(L "mlp.shared_experts.", "I")}},
    {.family = "deepseek-v3",
     .config =
         "{\"model_type\": \"deepseek_v3\", \"n_group\": 1, \"topk_group\": 1, " SIZES DEEPSEEK "}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_I,
     .score = MOE_SCORE_SIGMOID,
     .normalize = 1,
     .lines = {L "mlp.gate.weight BF16 E,H", L CORRECTION, PROJECTIONS(L "mlp.", "BF16"),
               SHARED(L "mlp.shared_experts.", "I")}},
    {.family = "kimi-k2", /* integers of compressed-tensors */
     .config =
         "{\"model_type\": \"kimi_k25\", \"text_config\": {\"model_type\": \"kimi_k2\", " SIZES
             DEEPSEEK "}}",
     .format = "int4-g32",
     .shared_format = "bf16",
     .shared_I = FILES_I,
     .score = MOE_SCORE_SIGMOID,
     .normalize = 1,
     .optional = "weight_shape",
     .lines = {"language_model.model.layers.1.mlp.gate.weight BF16 E,H",
               "language_model.model.layers.1." CORRECTION,
               BYTES_OF("language_model.model.layers.1.mlp.", ".weight_packed", "I32", "/8",
                        ".weight_scale", "BF16", "H/32"),
               "language_model.model.layers.1.mlp.experts.{e}.down_proj.weight_shape I64 2",
               SHARED("language_model.model.layers.1.mlp.shared_experts.", "I")}},
    {.family = "deepseek-v4",
     .config = "{\"model_type\": \"deepseek_v4\", \"swiglu_limit\": 10.0, " SIZES DEEPSEEK "}",
     .format = "mxfp4",
     .shared_format = "fp8-block",
     .shared_I = FILES_I,
     .score = MOE_SCORE_SQRT_SOFTPLUS,
     .normalize = 1,
     .lines = {"layers.1.ffn.gate.weight BF16 E,H", "layers.1.ffn.gate.bias F32 E",
               "layers.1.ffn.experts.{e}.w1.weight I8 I,H/2",
               "layers.1.ffn.experts.{e}.w3.weight I8 I,H/2",
               "layers.1.ffn.experts.{e}.w2.weight I8 H,I/2",
               "layers.1.ffn.experts.{e}.w1.scale F8_E8M0 I,H/32",
               "layers.1.ffn.experts.{e}.w3.scale F8_E8M0 I,H/32",
               "layers.1.ffn.experts.{e}.w2.scale F8_E8M0 H,I/32",
               "layers.1.ffn.shared_experts.w1.weight F8_E4M3 I,H",
               "layers.1.ffn.shared_experts.w1.scale F8_E8M0 1,2",
               "layers.1.ffn.shared_experts.w3.weight F8_E4M3 I,H",
               "layers.1.ffn.shared_experts.w3.scale F8_E8M0 1,2",
               "layers.1.ffn.shared_experts.w2.weight F8_E4M3 H,I",
               "layers.1.ffn.shared_experts.w2.scale F8_E8M0 2,1"}},
    {.family = "deepseek-v4", /* a layer that asks the token */
     .config = "{\"model_type\": \"deepseek_v4\", " SIZES DEEPSEEK "}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_I,
     .foreign = "experts chosen by the token",
     .optional = "tid2eid",
     .lines = {L "mlp.gate.tid2eid I64 100,2", FUSED(L "mlp."),
               SHARED(L "mlp.shared_experts.", "I")}},
    {.family = "glm4-moe",
     .config = "{\"model_type\": \"glm4_moe\", \"norm_topk_prob\": false, \"quantization_config\": "
               "{\"weight_block_size\": [1, 32]}, " SIZES DEEPSEEK "}",
     .format = "mxfp8",
     .shared_format = "bf16",
     .shared_I = FILES_I,
     .score = MOE_SCORE_SIGMOID,
     .lines = {L "mlp.gate.weight BF16 E,H", L CORRECTION, PROJECTIONS(L "mlp.", "F8_E4M3"),
               L "mlp.experts.{e}.gate_proj.weight_scale_inv U8 I,H/32",
               L "mlp.experts.{e}.up_proj.weight_scale_inv U8 I,H/32",
               L "mlp.experts.{e}.down_proj.weight_scale_inv U8 H,I/32",
               SHARED(L "mlp.shared_experts.", "I")}},
    {.family = "minimax-m2",
     .config =
         "{\"model_type\": \"minimax_m2\", \"scoring_func\": \"sigmoid\", " SIZES MIXTRAL_I "}",
     .format = "bf16",
     .score = MOE_SCORE_SIGMOID,
     .normalize = 1,
     .lines = {L "block_sparse_moe.gate.weight BF16 E,H",
               L "block_sparse_moe.e_score_correction_bias F32 E",
               EACH(L "block_sparse_moe.", "w1.weight", "w3.weight", "w2.weight", "BF16")}},
    {.family = "granite-moe",
     .config =
         "{\"model_type\": \"granitemoehybrid\", \"shared_intermediate_size\": 64, " SIZES MIXTRAL_I
         "}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_S,
     .score = MOE_SCORE_TOPK_SOFTMAX,
     .lines = {L "block_sparse_moe.router.layer.weight BF16 E,H",
               L "block_sparse_moe.input_linear.weight BF16 E,2I,H",
               L "block_sparse_moe.output_linear.weight BF16 E,H,I",
               L "shared_mlp.input_linear.weight BF16 2S,H",
               L "shared_mlp.output_linear.weight BF16 H,S"}},
    {.family = "llama4",
     .config =
         "{\"model_type\": \"llama4\", \"text_config\": {\"model_type\": \"llama4_text\", " SIZES
             MIXTRAL_I "}}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_I,
     .score = MOE_SCORE_SIGMOID,
     .lines = {"language_model.model.layers.1.feed_forward.router.weight BF16 E,H",
               TRANSPOSED("language_model.model.layers.1.feed_forward."),
               SHARED("language_model.model.layers.1.feed_forward.shared_expert.", "I")}},
    {.family = "gemma4-moe",
     .config =
         "{\"model_type\": \"gemma4\", \"text_config\": {\"model_type\": \"gemma4_text\", "
         "\"top_k_experts\": 2, \"hidden_activation\": \"gelu_pytorch_tanh\", " SIZES QWEN_I "}",
     .format = "bf16",
     .foreign = "Gemma-4's norm of the router's input",
     .lines = {FUSED("model.language_model.layers.1.")}},
    {.family = "nemotron3-moe",
     .config = "{\"model_type\": \"nemotron_h\", \"mlp_hidden_act\": \"relu2\", "
               "\"moe_shared_expert_intermediate_size\": 64, " SIZES
               "\"moe_intermediate_size\": 96, \"n_routed_experts\": 3}",
     .format = "bf16",
     .shared_format = "bf16",
     .shared_I = FILES_S,
     .score = MOE_SCORE_SIGMOID,
     .normalize = 1,
     .lines = {"backbone.layers.1.mixer.gate.weight BF16 E,H",
               "backbone.layers.1.mixer.gate.e_score_correction_bias F32 E",
               "backbone.layers.1.mixer.experts.{e}.up_proj.weight BF16 I,H",
               "backbone.layers.1.mixer.experts.{e}.down_proj.weight BF16 H,I",
               "backbone.layers.1.mixer.shared_experts.up_proj.weight BF16 S,H",
               "backbone.layers.1.mixer.shared_experts.down_proj.weight BF16 H,S"}},
    {.family = "nemotron3-moe",
     .config =
         "{\"model_type\": \"nemotron_h\", \"mlp_hidden_act\": \"relu2\", "
         "\"layers_block_type\": [\"moe\", \"moe\"], \"hidden_size\": 160, \"num_experts_per_tok\": 2, "
         "\"moe_intermediate_size\": 96, \"n_routed_experts\": 3}",
     .format = "bf16",
     .score = MOE_SCORE_SIGMOID,
     .normalize = 1,
     .lines = {L "mixer.gate.weight BF16 E,H", L "mixer.gate.e_score_correction_bias F32 E",
               L "mixer.experts.up_proj BF16 E,I,H", L "mixer.experts.down_proj BF16 E,H,I"}},
};

enum { CASES = sizeof cases / sizeof cases[0] };

static char folder[64];

/* Lines for k of the other matrix: BYTES_OF has H everywhere. */
static void repair(model_files *f)
{
    for (size_t i = 0; i < f->count; i++) {
        st_tensor *t = &f->tensor[i];
        int64_t shape[2] = {t->shape[0], t->shape[1]};
        bool down = strstr(t->name, "down_proj.") != NULL && strstr(t->name, ".experts.") != NULL;
        if (!down || t->rank != 2 || shape[0] != FILES_H || shape[1] >= FILES_I) continue;
        if (t->dtype == ST_U8 && shape[1] == FILES_H / 2) shape[1] = FILES_I / 2;
        if (t->dtype == ST_BF16 && shape[1] == FILES_H / 32) shape[1] = FILES_I / 32;
        if (t->dtype == ST_F8_E4M3 && shape[1] == FILES_H / 16) shape[1] = FILES_I / 16;
        if (shape[1] != t->shape[1]) model_files_change(f, i, t->dtype, 2, shape);
    }
}

static moe_status describe(moe_layer_info *info)
{
    moe_model *model;
    moe_model_info about = {.struct_size = sizeof about};
    info->struct_size = sizeof *info;
    moe_status s = moe_model_open(folder, NULL, &model);
    if (s != MOE_OK) return s;
    s = moe_model_describe(model, &about);
    if (s == MOE_OK) s = moe_model_layer(model, 0, info);
    assert_true(s != MOE_OK || about.moe_layers == 1);
    moe_model_close(model);
    return s;
}

static const char *text(const char *given)
{
    return given ? given : "";
}

static void finds(void **state)
{
    (void)state;
    for (size_t i = 0; i < CASES; i++) {
        const checkpoint_case *c = &cases[i];
        model_files f;
        moe_layer_info info;
        moe_model *model;
        moe_layer *layer;
        moe_model_info about = {.struct_size = sizeof about};
        model_files_make(&f, c->lines, i);
        repair(&f);
        model_files_write(&f, folder, c->config, f.count);
        if (describe(&info) != MOE_OK) fail_msg("case %zu: %s", i, moe_io_last_error());
        assert_int_equal(info.layer, 1);
        assert_string_equal(info.gate_up_format, c->format);
        assert_string_equal(info.down_format, c->format);
        assert_string_equal(info.shared_format, text(c->shared_format));
        assert_int_equal(info.shared_I, c->shared_I);
        assert_string_equal(text(info.foreign_router), text(c->foreign));
        assert_int_equal(info.normalize, c->foreign ? info.normalize : c->normalize);
        assert_int_equal(info.score, c->foreign ? info.score : c->score);
        assert_int_equal(moe_model_open(folder, NULL, &model), MOE_OK);
        assert_int_equal(moe_model_describe(model, &about), MOE_OK);
        assert_string_equal(about.family, c->family);
        if (moe_model_load(model, 1, NULL, NULL, &layer) != MOE_OK)
            fail_msg("case %zu: %s", i, moe_io_last_error());
        moe_block_args args;
        assert_int_equal(moe_layer_args(layer, &args), MOE_OK);
        assert_int_equal(args.router.E, c->foreign ? 0 : FILES_E);
        assert_int_equal(args.router.group_rank, c->group_rank);
        assert_int_equal(moe_layer_free(layer), MOE_OK);
        moe_model_close(model);
        model_files_free(&f);
    }
}

/* The message must name tensor i; of one for each expert, of whichever is looked at. */
static void named(const model_files *f, size_t i, size_t number, moe_status s)
{
    if (s != MOE_E_MODEL)
        fail_msg("case %zu, tensor %s: %s", number, f->name[i], moe_status_name(s));
    if (!strstr(moe_io_last_error(), f->name[i]))
        fail_msg("case %zu: no %s in: %s", number, f->name[i], moe_io_last_error());
}

static bool may_lack(const checkpoint_case *c, const char *name)
{
    return c->optional && strstr(name, c->optional);
}

/* A name without what its last part, or .weight, begins. */
static void cut_stem(const char *name, char *stem, size_t size)
{
    snprintf(stem, size, "%s", name);
    char *end = strstr(stem, ".weight"), *dot = strrchr(stem, '.'), *bar = strrchr(stem, '_');
    if (!end) end = bar > dot ? bar : dot;
    *end = '\0';
}

static void names_what_lacks(void **state)
{
    (void)state;
    for (size_t n = 0; n < CASES; n++) {
        model_files f;
        moe_layer_info info;
        model_files_make(&f, cases[n].lines, n);
        repair(&f);
        for (size_t i = 0; i < f.count; i++) {
            model_files_write(&f, folder, cases[n].config, i);
            moe_status s = describe(&info);
            if (may_lack(&cases[n], f.name[i])) continue;
            /* Where another form is then looked for, the weights or another suffix are named. */
            char stem[128];
            cut_stem(f.name[i], stem, sizeof stem);
            if (s != MOE_E_MODEL || !strstr(moe_io_last_error(), stem))
                fail_msg("case %zu, tensor %s: %s: %s", n, f.name[i], moe_status_name(s),
                         moe_io_last_error());
        }
        model_files_free(&f);
    }
}

static void names_what_differs(void **state)
{
    (void)state;
    for (size_t n = 0; n < CASES; n++) {
        model_files f;
        moe_layer_info info;
        model_files_make(&f, cases[n].lines, n);
        repair(&f);
        for (size_t i = 0; i < f.count; i++) {
            const st_tensor was = f.tensor[i];
            int64_t shape[ST_MAX_RANK];
            if (strstr(was.name, "tid2eid")) continue;
            memcpy(shape, was.shape, sizeof shape);
            model_files_change(&f, i, ST_F64, was.rank, shape);
            model_files_write(&f, folder, cases[n].config, f.count);
            named(&f, i, n, describe(&info));
            for (int d = 0; d < was.rank; d++) {
                memcpy(shape, was.shape, sizeof shape);
                shape[d]++;
                model_files_change(&f, i, was.dtype, was.rank, shape);
                model_files_write(&f, folder, cases[n].config, f.count);
                named(&f, i, n, describe(&info));
            }
            memcpy(shape, was.shape, sizeof shape);
            model_files_change(&f, i, was.dtype, was.rank, shape);
        }
        model_files_free(&f);
    }
}

/* What a family takes for a key that is not there is what its makers' code does. */
static void takes_for_granted(void **state)
{
    (void)state;
    static const struct {
        const char *family, *config;
        moe_activation activation;
        float limit; /* 0: none */
    } wanted[] = {
        {"gpt-oss", "{\"model_type\": \"gpt_oss\", " SIZES MIXTRAL_I "}", MOE_SWIGLU, 7},
        {"deepseek-v4", "{\"model_type\": \"deepseek_v4\", " SIZES DEEPSEEK "}", MOE_SILU, 10},
        {"deepseek-v2",
         "{\"model_type\": \"deepseek_v2\", \"n_group\": 3, \"topk_group\": 2, " SIZES DEEPSEEK "}",
         MOE_SILU, 0},
        {"gemma4-moe", "{\"model_type\": \"gemma4_text\", \"top_k_experts\": 2, " SIZES QWEN_I,
         MOE_GELU_TANH, 0},
        {"nemotron3-moe", "{\"model_type\": \"nemotron_h\", " SIZES DEEPSEEK "}", MOE_RELU2, 0}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        const checkpoint_case *c = cases;
        while (strcmp(c->family, wanted[i].family) != 0) c++;
        model_files f;
        moe_layer_info info;
        model_files_make(&f, c->lines, i);
        model_files_write(&f, folder, wanted[i].config, f.count);
        if (describe(&info) != MOE_OK) fail_msg("%s: %s", wanted[i].family, moe_io_last_error());
        assert_int_equal(info.activation, wanted[i].activation);
        assert_int_equal(info.gate_clamp_upper_limit.given, wanted[i].limit > 0);
        assert_true(info.gate_clamp_upper_limit.value == wanted[i].limit);
        assert_int_equal(info.n_group, 0);
        assert_string_equal(text(info.foreign_router), text(c->foreign));
        model_files_free(&f);
    }
}

/* A GGUF file of one layer of an architecture with further keys, n of them. */
static void write_gguf(const char *architecture, int n, const char *keys, bool shared)
{
    char script[2048], path[128];
    const char *a = architecture;
    snprintf(script, sizeof script,
             "M%d,%d Kgeneral.architecture=8 S%s K%s.block_count=4 W1 K%s.embedding_length=4 W4 "
             "K%s.expert_feed_forward_length=4 W4 K%s.expert_count=4 W2 K%s.expert_used_count=4 W1 "
             "%s Vblk.0.ffn_gate_inp.weight,0,0,4,2 Vblk.0.exp_probs_b.bias,0,32,2 "
             "Vblk.0.ffn_gate_exps.weight,0,64,4,4,2 Vblk.0.ffn_up_exps.weight,0,192,4,4,2 "
             "Vblk.0.ffn_down_exps.weight,0,320,4,4,2 %s P32 Y640",
             shared ? 8 : 5, n + 6, a, a, a, a, a, a, keys,
             shared ? "Vblk.0.ffn_gate_shexp.weight,0,448,4,4 Vblk.0.ffn_up_shexp.weight,0,512,4,4 "
                      "Vblk.0.ffn_down_shexp.weight,0,576,4,4"
                    : "");
    file_bytes bytes = gguf_bytes(script);
    snprintf(path, sizeof path, "%s/model.safetensors", folder); /* its content says what it is */
    write_bytes(path, bytes);
    free(bytes.bytes);
}

/* Without a limit of its own the shared expert has that of the experts in deepseek4 alone. */
static void limits_of_a_shared_expert(void **state)
{
    (void)state;
    static const char other[] = "other limits for the shared expert";
    static const struct {
        const char *architecture;
        int keys;
        const char *script;
        bool shared;
        const char *foreign;
    } wanted[] = {
        {"glm4moe", 0, "", true, ""},
        {"glm4moe", 1, "Kglm4moe.swiglu_clamp_exp=6 F7", true, other},
        {"glm4moe", 1, "Kglm4moe.swiglu_clamp_exp=6 F7", false, ""},
        {"glm4moe", 1, "Kglm4moe.swiglu_clamp_exp=9 W6 Q1 F0", true, ""},
        {"glm4moe", 1, "Kglm4moe.swiglu_clamp_shexp=6 F7", true, other},
        {"glm4moe", 2, "Kglm4moe.swiglu_clamp_exp=6 F7 Kglm4moe.swiglu_clamp_shexp=6 F7", true, ""},
        {"deepseek4", 1, "Kdeepseek4.swiglu_clamp_exp=6 F7", true, ""},
        {"deepseek4", 2, "Kdeepseek4.swiglu_clamp_exp=6 F7 Kdeepseek4.swiglu_clamp_shexp=6 F0",
         true, other},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        moe_layer_info info;
        write_gguf(wanted[i].architecture, wanted[i].keys, wanted[i].script, wanted[i].shared);
        if (describe(&info) != MOE_OK) fail_msg("%zu: %s", i, moe_io_last_error());
        if (strcmp(text(info.foreign_router), wanted[i].foreign) != 0)
            fail_msg("%zu: \"%s\"", i, text(info.foreign_router));
        bool limited = strstr(wanted[i].script, "clamp_exp=6") != NULL;
        bool before = strcmp(wanted[i].architecture, "deepseek4") == 0;
        assert_int_equal(info.up_clamp_upper_limit.given, limited);
        assert_int_equal(info.gate_clamp_upper_limit.given, limited && before);
        assert_int_equal(info.act_clamp_upper_limit.given, limited && !before);
        assert_int_equal(info.shared_I, wanted[i].shared ? 4 : 0);
    }
}

static int make_folder(void **state)
{
    (void)state;
    model_files_make_folder(folder, sizeof folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    model_files_remove_folder(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(finds), cmocka_unit_test(names_what_lacks),
                                       cmocka_unit_test(names_what_differs),
                                       cmocka_unit_test(takes_for_granted),
                                       cmocka_unit_test(limits_of_a_shared_expert)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

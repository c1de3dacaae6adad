/* SPDX-License-Identifier: Apache-2.0 */
/* family_table.c - the families of safetensors models, one row each.  Facts, and nothing else: how
 * they are read is in family_config.c. */
#include "io/family.h"

/* ---- names ----------------------------------------------------------------------------------- */

/* clang-format off */

/* Qwen, DeepSeek, Kimi, GLM, OLMoE: gate_proj, up_proj, down_proj for each expert. */
#define QWEN_ROUTER                                                                                \
    .router = "mlp.gate.weight", .selection_bias = "mlp.gate.e_score_correction_bias",             \
    .token_table = "mlp.gate.tid2eid"
#define QWEN_SHARED(name)                                                                          \
    .shared_gate = "mlp." name ".gate_proj", .shared_up = "mlp." name ".up_proj",                  \
    .shared_down = "mlp." name ".down_proj"

static const layout qwen = {
    .suffix = ".weight", QWEN_ROUTER, QWEN_SHARED("shared_expert"),
    .shared_gate_weight = "mlp.shared_expert_gate.weight",
    .gate = "mlp.experts.{e}.gate_proj", .up = "mlp.experts.{e}.up_proj",
    .down = "mlp.experts.{e}.down_proj",
};
/* What transformers v5 keeps in memory, and may save: one tensor for all experts. */
static const layout qwen_fused = {
    .suffix = "", QWEN_ROUTER, QWEN_SHARED("shared_expert"),
    .shared_gate_weight = "mlp.shared_expert_gate.weight",
    .gate_up = "mlp.experts.gate_up_proj", .down = "mlp.experts.down_proj",
};
static const layout deepseek = {
    .suffix = ".weight", QWEN_ROUTER, QWEN_SHARED("shared_experts"),
    .gate = "mlp.experts.{e}.gate_proj", .up = "mlp.experts.{e}.up_proj",
    .down = "mlp.experts.{e}.down_proj",
};
static const layout deepseek_fused = {
    .suffix = "", QWEN_ROUTER, QWEN_SHARED("shared_experts"),
    .gate_up = "mlp.experts.gate_up_proj", .down = "mlp.experts.down_proj",
};
/* DeepSeek-V4 as published: gate.bias is the bias of the selection. */
static const layout deepseek_v4 = {
    .suffix = ".weight", .router = "ffn.gate.weight", .selection_bias = "ffn.gate.bias",
    .token_table = "ffn.gate.tid2eid",
    .gate = "ffn.experts.{e}.w1", .up = "ffn.experts.{e}.w3", .down = "ffn.experts.{e}.w2",
    .shared_gate = "ffn.shared_experts.w1", .shared_up = "ffn.shared_experts.w3",
    .shared_down = "ffn.shared_experts.w2",
};
static const layout mixtral = {
    .suffix = ".weight", .router = "block_sparse_moe.gate.weight",
    .selection_bias = "block_sparse_moe.e_score_correction_bias",
    .gate = "block_sparse_moe.experts.{e}.w1", .up = "block_sparse_moe.experts.{e}.w3",
    .down = "block_sparse_moe.experts.{e}.w2",
};
static const layout mixtral_fused = {
    .suffix = "", .router = "mlp.gate.weight", .selection_bias = "mlp.e_score_correction_bias",
    .gate_up = "mlp.experts.gate_up_proj", .down = "mlp.experts.down_proj",
};
static const layout phi_fused = {
    .suffix = "", .router = "mlp.router.weight",
    .gate_up = "mlp.experts.gate_up_proj", .down = "mlp.experts.down_proj",
};
static const layout gpt_oss = {
    .suffix = "_blocks", .router = "mlp.router.weight", .router_bias = "mlp.router.bias",
    .gate_up = "mlp.experts.gate_up_proj", .interleaved = true, .down = "mlp.experts.down_proj",
};
/* The names of the model's makers. */
static const layout gpt_oss_original = {
    .layer = "block.", .suffix = "_weight.blocks", .router = "mlp.gate.weight", .router_bias = "mlp.gate.bias",
    .gate_up = "mlp.mlp1", .interleaved = true, .down = "mlp.mlp2",
};
static const layout granite = {
    .suffix = ".weight", .router = "block_sparse_moe.router.layer.weight",
    .gate_up = "block_sparse_moe.input_linear", .down = "block_sparse_moe.output_linear",
    .shared_gate_up = "shared_mlp.input_linear", .shared_down = "shared_mlp.output_linear",
};
static const layout granite_fused = {
    .suffix = "", .router = "block_sparse_moe.router.weight",
    .gate_up = "block_sparse_moe.experts.gate_up_proj",
    .down = "block_sparse_moe.experts.down_proj",
    .shared_gate_up = "shared_mlp.input_linear", .shared_down = "shared_mlp.output_linear",
};
#define LLAMA4_SHARED                                                                              \
    .shared_gate = "feed_forward.shared_expert.gate_proj",                                         \
    .shared_up = "feed_forward.shared_expert.up_proj",                                             \
    .shared_down = "feed_forward.shared_expert.down_proj"
static const layout llama4 = {
    .suffix = "", .router = "feed_forward.router.weight", LLAMA4_SHARED,
    .gate_up = "feed_forward.experts.gate_up_proj", .down = "feed_forward.experts.down_proj",
};
static const layout llama4_each = { /* of quantised ones */
    .suffix = ".weight", .router = "feed_forward.router.weight", LLAMA4_SHARED,
    .gate = "feed_forward.experts.{e}.gate_proj", .up = "feed_forward.experts.{e}.up_proj",
    .down = "feed_forward.experts.{e}.down_proj",
};
/* The dense MLP beside the experts has norms of its own: it is no shared expert. */
static const layout gemma4 = {
    .suffix = "", .router = "router.proj.weight",
    .gate_up = "experts.gate_up_proj", .down = "experts.down_proj",
};
#define NEMOTRON_REST                                                                              \
    .router = "mixer.gate.weight", .selection_bias = "mixer.gate.e_score_correction_bias",         \
    .shared_up = "mixer.shared_experts.up_proj", .shared_down = "mixer.shared_experts.down_proj"
static const layout nemotron = {
    .suffix = ".weight", NEMOTRON_REST,
    .up = "mixer.experts.{e}.up_proj", .down = "mixer.experts.{e}.down_proj",
};
static const layout nemotron_fused = {
    .suffix = "", NEMOTRON_REST,
    .up = "mixer.experts.up_proj", .down = "mixer.experts.down_proj",
};

/* ---- families -------------------------------------------------------------------------------- */

#define SIGMOID_WITH_BIAS                                                                          \
    .score = MOE_SCORE_SIGMOID, .score_key = true, .needs = FAMILY_NEEDS_SELECTION_BIAS, .norm = NORM_KEY_ELSE,  \
    .epsilon = 1e-20, .groups = true

static const family families[] = {
    {.name = "gpt-oss", .types = "gpt_oss GptOssForCausalLM " FAMILY_UNNAMED,
     .layouts = {&gpt_oss, &gpt_oss_original}, .I_key = "intermediate_size",
     .K_key = "num_experts_per_tok experts_per_token",
     .activation = ACT_SWIGLU, .score = MOE_SCORE_TOPK_SOFTMAX,
     .needs = FAMILY_NEEDS_ROUTER_BIAS | FAMILY_NEEDS_EXPERT_BIAS},
    {.name = "qwen2-moe", .types = "qwen2_moe Qwen2MoeForCausalLM",
     .layouts = {&qwen, &qwen_fused}, .shared_key = "shared_expert_intermediate_size",
     .needs = FAMILY_NEEDS_SHARED_GATE,
     .score = MOE_SCORE_SOFTMAX, .norm = NORM_KEY},
    {.name = "qwen3-moe", .types = "qwen3_moe Qwen3MoeForCausalLM",
     .layouts = {&qwen, &qwen_fused}, .score = MOE_SCORE_SOFTMAX, .norm = NORM_KEY},
    {.name = "qwen3-vl-moe", .types = "qwen3_vl_moe_text qwen3_vl_moe qwen3_omni_moe_text",
     .layouts = {&qwen, &qwen_fused}, .score = MOE_SCORE_SOFTMAX, .norm = NORM_ALWAYS},
    {.name = "qwen3-next", .types = "qwen3_next Qwen3NextForCausalLM",
     .layouts = {&qwen, &qwen_fused}, .shared_key = "shared_expert_intermediate_size",
     .needs = FAMILY_NEEDS_SHARED_GATE,
     .score = MOE_SCORE_SOFTMAX, .norm = NORM_KEY_ELSE},
    {.name = "qwen3.5-moe", .types = "qwen3_5_moe_text qwen3_5_moe Qwen3_5MoeForCausalLM",
     .layouts = {&qwen, &qwen_fused}, .shared_key = "shared_expert_intermediate_size",
     .needs = FAMILY_NEEDS_SHARED_GATE,
     .score = MOE_SCORE_SOFTMAX, .norm = NORM_ALWAYS},
    {.name = "olmoe", .types = "olmoe OlmoeForCausalLM",
     .layouts = {&qwen, &qwen_fused}, .I_key = "intermediate_size",
     .score = MOE_SCORE_SOFTMAX, .norm = NORM_KEY},
    {.name = "mixtral", .types = "mixtral MixtralForCausalLM",
     .layouts = {&mixtral, &mixtral_fused}, .I_key = "intermediate_size",
     .score = MOE_SCORE_SOFTMAX, .norm = NORM_ALWAYS},
    {.name = "phi3.5-moe", .types = "phimoe PhiMoEForCausalLM PhimoeForCausalLM",
     .layouts = {&mixtral, &phi_fused}, .I_key = "intermediate_size",
     .foreign_router = "sparsemixer"},
    {.name = "deepseek-v2", .types = "deepseek_v2 DeepseekV2ForCausalLM",
     .layouts = {&deepseek, &deepseek_fused}, .shared_count = "n_shared_experts",
     .score = MOE_SCORE_SOFTMAX, .score_key = true, .norm = NORM_KEY, .epsilon = 1e-20, .scale = 1.0,
     .groups = true},
    {.name = "deepseek-v3", .types = "deepseek_v3 DeepseekV3ForCausalLM deepseek_v32 DeepseekV32ForCausalLM",
     .layouts = {&deepseek, &deepseek_fused}, .shared_count = "n_shared_experts",
     SIGMOID_WITH_BIAS, .n_group = 8, .topk_group = 4, .scale = 2.5},
    {.name = "kimi-k2", .types = "kimi_k2 KimiK2ForCausalLM",
     .layouts = {&deepseek, &deepseek_fused}, .shared_count = "n_shared_experts",
     SIGMOID_WITH_BIAS, .scale = 2.5},
    {.name = "deepseek-v4", .types = "deepseek_v4 DeepseekV4ForCausalLM",
     .layouts = {&deepseek_v4, &deepseek, &deepseek_fused}, .shared_count = "n_shared_experts",
     .activation = ACT_LIMITED, .score = MOE_SCORE_SQRT_SOFTPLUS, .score_key = true,
     .needs = FAMILY_NEEDS_SELECTION_BIAS,
     .norm = NORM_ALWAYS, .epsilon = 1e-20, .scale = 1.5},
    {.name = "glm4-moe", .types = "glm4_moe Glm4MoeForCausalLM glm4v_moe_text",
     .layouts = {&deepseek, &deepseek_fused}, .shared_count = "n_shared_experts",
     SIGMOID_WITH_BIAS, .scale = 1.0},
    {.name = "glm5-moe", .types = "glm_moe_dsa GlmMoeDsaForCausalLM",
     .layouts = {&deepseek, &deepseek_fused}, .shared_count = "n_shared_experts",
     SIGMOID_WITH_BIAS, .scale = 2.5},
    {.name = "minimax-m2", .types = "minimax_m2 MiniMaxM2ForCausalLM",
     .layouts = {&mixtral, &mixtral_fused}, .I_key = "intermediate_size",
     .score = MOE_SCORE_SIGMOID, .score_key = true, .needs = FAMILY_NEEDS_SELECTION_BIAS, .norm = NORM_ALWAYS},
    {.name = "granite-moe",
     .types = "granitemoe GraniteMoeForCausalLM granitemoeshared GraniteMoeSharedForCausalLM "
              "granitemoehybrid GraniteMoeHybridForCausalLM",
     .layouts = {&granite, &granite_fused}, .I_key = "intermediate_size",
     .shared_key = "shared_intermediate_size", .score = MOE_SCORE_TOPK_SOFTMAX},
    {.name = "llama4", .types = "llama4_text llama4 Llama4ForCausalLM Llama4ForConditionalGeneration",
     .layouts = {&llama4, &llama4_each}, .I_key = "intermediate_size",
     .shared_key = "intermediate_size", .score = MOE_SCORE_SIGMOID, .norm = NORM_NEVER,
     .scaling = MOE_INPUT_SCALE},
    {.name = "gemma4-moe",
     .types = "gemma4_text gemma4 Gemma4ForCausalLM Gemma4ForConditionalGeneration",
     .layouts = {&gemma4}, .K_key = "top_k_experts", .act_key = "hidden_activation",
     .act = MOE_GELU_TANH,
     .foreign_router = "Gemma-4's norm of the router's input"},
    {.name = "nemotron3-moe", .types = "nemotron_h NemotronHForCausalLM",
     .layouts = {&nemotron, &nemotron_fused}, .shared_key = "moe_shared_expert_intermediate_size",
     .act_key = "mlp_hidden_act", .act = MOE_RELU2, .activation = ACT_NO_GATE, SIGMOID_WITH_BIAS, .scale = 1.0},
};
/* clang-format on */

const family *family_row(size_t i)
{
    return i < sizeof families / sizeof families[0] ? &families[i] : NULL;
}

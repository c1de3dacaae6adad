/* SPDX-License-Identifier: Apache-2.0 */
/* family_gguf.c - the architectures of GGUF models, one row each, and from a file's keys to the rules
 * of a model.  Refuses architectures that no row knows. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/family.h"
#include "io/model_error.h"

/* ---- names ----------------------------------------------------------------------------------- */

/* clang-format off */
#define REST                                                                                       \
    .layer = "blk.", .suffix = ".weight", .router = "ffn_gate_inp.weight",                         \
    .router_bias = "ffn_gate_inp.bias", .selection_bias = "exp_probs_b.bias exp_probs_b",          \
    .shared_up = "ffn_up_shexp", .shared_down = "ffn_down_shexp",                                  \
    .shared_gate_weight = "ffn_gate_inp_shexp.weight", .token_table = "ffn_gate_tid2eid.weight"

static const layout split = {
    REST, .shared_gate = "ffn_gate_shexp",
    .gate = "ffn_gate_exps", .up = "ffn_up_exps", .down = "ffn_down_exps",
};
static const layout merged = {
    REST, .shared_gate = "ffn_gate_shexp",
    .gate_up = "ffn_gate_up_exps", .down = "ffn_down_exps",
};
static const layout legacy = { /* files from before there were tensors for all experts */
    REST, .gate = "ffn_gate.{e}", .up = "ffn_up.{e}", .down = "ffn_down.{e}",
};
static const layout no_gate = {REST, .up = "ffn_up_exps", .down = "ffn_down_exps"};

static const layout *const gated_layouts[FAMILY_LAYOUTS] = {&split, &merged, &legacy};
static const layout *const no_gate_layouts[FAMILY_LAYOUTS] = {&no_gate};

/* ---- architectures --------------------------------------------------------------------------- */

/* Numbers of expert_gating_func. */
enum { GATING_NONE, GATING_SOFTMAX, GATING_SIGMOID, GATING_TOPK_SOFTMAX, GATING_SQRT_SOFTPLUS };

typedef struct family_architecture {
    const char *name, *family;
    moe_activation activation;
    bool no_gate;
    bool limit_before; /* swiglu_clamp_exp limits the gate before its activation, not after it */
    int gating;        /* unless expert_gating_func says otherwise */
    bool normalize;    /* unless expert_weights_norm says otherwise */
    moe_affinity_scale scaling; /* MOE_NO_SCALE: MOE_POST_SCALE */
    unsigned needs;             /* FAMILY_NEEDS_... */
    const char *foreign_router;
} architecture;

static const architecture architectures[] = {
    {.name = "gpt-oss", .family = "gpt-oss", .activation = MOE_SWIGLU, .gating = GATING_TOPK_SOFTMAX,
     .needs = FAMILY_NEEDS_ROUTER_BIAS | FAMILY_NEEDS_EXPERT_BIAS},
    {.name = "qwen2moe", .family = "qwen2-moe", .gating = GATING_SOFTMAX,
     .needs = FAMILY_NEEDS_SHARED_GATE},
    {.name = "qwen3moe", .family = "qwen3-moe", .gating = GATING_SOFTMAX, .normalize = true},
    {.name = "qwen3vlmoe", .family = "qwen3-moe", .gating = GATING_SOFTMAX, .normalize = true},
    {.name = "qwen3next", .family = "qwen3-next", .gating = GATING_SOFTMAX, .normalize = true,
     .needs = FAMILY_NEEDS_SHARED_GATE},
    {.name = "qwen35moe", .family = "qwen3.5-moe", .gating = GATING_SOFTMAX, .normalize = true,
     .needs = FAMILY_NEEDS_SHARED_GATE},
    {.name = "olmoe", .family = "olmoe", .gating = GATING_SOFTMAX},
    {.name = "llama", .family = "mixtral", .gating = GATING_SOFTMAX, .normalize = true},
    {.name = "phimoe", .family = "phi3.5-moe", .gating = GATING_SOFTMAX, .normalize = true,
     .foreign_router = "sparsemixer"},
    {.name = "deepseek2", .family = "deepseek", .gating = GATING_SOFTMAX},
    {.name = "deepseek4", .family = "deepseek-v4", .limit_before = true,
     .gating = GATING_SQRT_SOFTPLUS, .normalize = true,
     .needs = FAMILY_NEEDS_SELECTION_BIAS},
    {.name = "glm4moe", .family = "glm4-moe", .gating = GATING_SIGMOID,
     .needs = FAMILY_NEEDS_SELECTION_BIAS},
    {.name = "minimax-m2", .family = "minimax-m2", .gating = GATING_SIGMOID, .normalize = true,
     .needs = FAMILY_NEEDS_SELECTION_BIAS},
    {.name = "granitemoe", .family = "granite-moe", .gating = GATING_TOPK_SOFTMAX},
    {.name = "granitehybrid", .family = "granite-moe", .gating = GATING_TOPK_SOFTMAX},
    {.name = "llama4", .family = "llama4", .gating = GATING_SIGMOID, .scaling = MOE_INPUT_SCALE,
     .needs = FAMILY_NEEDS_SHARED},
    {.name = "gemma4", .family = "gemma4-moe", .activation = MOE_GELU_TANH, .gating = GATING_SOFTMAX,
     .normalize = true, .foreign_router = "Gemma-4's norm of the router's input"},
    {.name = "nemotron_h_moe", .family = "nemotron3-moe", .activation = MOE_RELU2, .no_gate = true,
     .gating = GATING_SIGMOID,
     .needs = FAMILY_NEEDS_SELECTION_BIAS},
};
/* clang-format on */

enum { ARCHITECTURES = sizeof architectures / sizeof architectures[0] };

/* ---- keys ------------------------------------------------------------------------------------ */

typedef struct reader {
    const gg_file *file;
    const char *path;
    const architecture *row;
    char key[128]; /* the latest */
} reader;

static const char *key(reader *r, const char *name)
{
    snprintf(r->key, sizeof r->key, "%s.%s", r->row->name, name);
    return r->key;
}

/* A whole number; absent: *value stays, if that is a number (0 or more). */
static moe_status number(reader *r, const char *name, int64_t most, int64_t *value)
{
    if (!gg_has(r->file, key(r, name))) {
        if (*value >= 0) return MOE_OK;
        return model_fail(MOE_E_MODEL, r->path, "%s: is missing", r->key);
    }
    if (!gg_integer(r->file, r->key, value) || *value > most)
        return model_fail(MOE_E_MODEL, r->path, "%s: must be a whole number from 0 to %lld", r->key,
                          (long long)most);
    return MOE_OK;
}

/* A number that f32 can hold; absent: *value stays. */
static moe_status real(reader *r, const char *name, double *value)
{
    if (!gg_has(r->file, key(r, name))) return MOE_OK;
    if (gg_real(r->file, r->key, value) && fabs(*value) <= FLT_MAX) return MOE_OK;
    return model_fail(MOE_E_MODEL, r->path, "%s: must be one number of at most %g", r->key,
                      (double)FLT_MAX);
}

static moe_status boolean(reader *r, const char *name, bool *value)
{
    if (!gg_has(r->file, key(r, name)) || gg_bool(r->file, r->key, value)) return MOE_OK;
    return model_fail(MOE_E_MODEL, r->path, "%s: must be true or false", r->key);
}

static moe_status recognise(reader *r)
{
    char known[320] = "";
    size_t used = 0;
    const char *name = NULL;
    if (!gg_string(r->file, "general.architecture", &name))
        return model_fail(MOE_E_MODEL, r->path, "no model: general.architecture is missing");
    for (size_t i = 0; i < ARCHITECTURES; i++) {
        r->row = &architectures[i];
        if (strcmp(name, r->row->name) == 0) return MOE_OK;
        if (used < sizeof known)
            used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "",
                                     r->row->name);
    }
    return model_fail(
        MOE_E_MODEL, r->path,
        "no model that is known here: general.architecture is \"%.40s\"; known are %s", name,
        known);
}

/* ---- rules ----------------------------------------------------------------------------------- */

static moe_status sizes(reader *r, family_rules *rules)
{
    moe_layer_info *info = &rules->info;
    int64_t predicting = 0; /* layers at the end that predict further tokens */
    int64_t shared = 0;     /* shared experts, which are one tensor */
    rules->layers = info->H = info->E = info->K = -1;
    info->I = gg_has(r->file, key(r, "expert_feed_forward_length")) ? -1 : 0;
    moe_status s = number(r, "block_count", FAMILY_LAYERS_MOST, &rules->layers);
    if (s == MOE_OK) s = number(r, "nextn_predict_layers", FAMILY_LAYERS_MOST, &predicting);
    if (s == MOE_OK) s = number(r, "embedding_length", INT32_MAX, &info->H);
    if (s == MOE_OK)
        s = number(r, info->I == 0 ? "feed_forward_length" : "expert_feed_forward_length",
                   INT32_MAX, &info->I);
    if (s == MOE_OK) s = number(r, "expert_count", FAMILY_EXPERTS_MOST, &info->E);
    if (s == MOE_OK) s = number(r, "expert_used_count", FAMILY_EXPERTS_MOST, &info->K);
    if (s == MOE_OK) s = number(r, "expert_shared_count", FAMILY_EXPERTS_MOST, &shared);
    if (shared > 0) rules->needs |= FAMILY_NEEDS_SHARED;
    rules->layers -= predicting;
    rules->shared_I = gg_has(r->file, key(r, "expert_shared_feed_forward_length")) ? 0 : -1;
    if (s == MOE_OK && rules->shared_I == 0)
        s = number(r, "expert_shared_feed_forward_length", INT32_MAX, &rules->shared_I);
    return s;
}

static moe_status gating(reader *r, moe_layer_info *info)
{
    static const moe_router_score scores[] = {
        [GATING_SOFTMAX] = MOE_SCORE_SOFTMAX,
        [GATING_SIGMOID] = MOE_SCORE_SIGMOID,
        [GATING_TOPK_SOFTMAX] = MOE_SCORE_TOPK_SOFTMAX,
        [GATING_SQRT_SOFTPLUS] = MOE_SCORE_SQRT_SOFTPLUS,
    };
    int64_t number_of = GATING_NONE;
    moe_status s = number(r, "expert_gating_func", INT32_MAX, &number_of);
    if (s != MOE_OK) return s;
    if (number_of > GATING_SQRT_SOFTPLUS)
        return model_fail(MOE_E_MODEL, r->path, "%s: %lld is not known here", r->key,
                          (long long)number_of);
    info->score = scores[number_of == GATING_NONE ? r->row->gating : number_of];
    return MOE_OK;
}

static moe_status router(reader *r, moe_layer_info *info)
{
    bool normalize = r->row->normalize;
    double scale = 1;
    int64_t n = 0, kept = 0;
    moe_status s = gating(r, info);
    if (s == MOE_OK) s = boolean(r, "expert_weights_norm", &normalize);
    if (s == MOE_OK) s = real(r, "expert_weights_scale", &scale);
    if (s == MOE_OK) s = number(r, "expert_group_count", FAMILY_EXPERTS_MOST, &n);
    if (s == MOE_OK) s = number(r, "expert_group_used_count", FAMILY_EXPERTS_MOST, &kept);
    if (s != MOE_OK) return s;
    info->normalize = normalize;
    info->normalize_epsilon = info->score == MOE_SCORE_SOFTMAX ? 0.0f : 1e-20f;
    info->scale = scale == 0 ? 1.0f : (float)scale; /* 0: not used */
    info->scaling = r->row->scaling == MOE_NO_SCALE ? MOE_POST_SCALE : r->row->scaling;
    info->foreign_router = r->row->foreign_router;
    if (n > 1) {
        info->n_group = (int32_t)n;
        info->topk_group = (int32_t)kept;
        if (strcmp(r->row->name, "deepseek2") == 0 && info->score == MOE_SCORE_SOFTMAX)
            info->group_rank = MOE_GROUP_BEST; /* DeepSeek-V2 */
    }
    return MOE_OK;
}

static void activation(const architecture *row, moe_layer_info *info)
{
    info->activation = row->activation;
    info->has_gate = !row->no_gate;
    if (row->activation != MOE_SWIGLU) return;
    info->swiglu_alpha = moe_given_float(1.702f);
    info->swiglu_up_offset = moe_given_float(1.0f);
}

/* A limit, of all layers or one for each; absent: *limit stays; 0 or less: there is none, 0. */
static moe_status layer_limit(reader *r, const char *name, int64_t layer, double *limit)
{
    if (!gg_has(r->file, key(r, name))) return MOE_OK;
    if (!gg_real(r->file, r->key, limit) && !gg_array_real(r->file, r->key, (size_t)layer, limit))
        return model_fail(MOE_E_MODEL, r->path, "%s: has no number for layer %lld", r->key,
                          (long long)layer);
    if (*limit > FLT_MAX)
        return model_fail(MOE_E_MODEL, r->path, "%s: %g: must be at most %g", r->key, *limit,
                          (double)FLT_MAX);
    if (*limit < 0) *limit = 0;
    return MOE_OK;
}

/* Where nothing is said of the shared expert, ggml's readers limit it as the experts in deepseek4, and
 * else not at all. */
moe_status family_gguf_layer(const gg_file *gguf, const char *path, const family_rules *rules,
                             int64_t layer, bool has_shared, moe_layer_info *info)
{
    reader r = {.file = gguf, .path = path, .row = rules->architecture};
    bool swiglu = r.row->activation == MOE_SWIGLU;
    double limit = swiglu ? 7.0 : 0.0;
    moe_status s = layer_limit(&r, "swiglu_clamp_exp", layer, &limit);
    double shared = r.row->limit_before ? limit : 0.0;
    if (s == MOE_OK) s = layer_limit(&r, "swiglu_clamp_shexp", layer, &shared);
    if (s != MOE_OK) return s;
    if (has_shared && shared != limit && !info->foreign_router)
        info->foreign_router = "other limits for the shared expert";
    if (limit == 0) return MOE_OK;
    if (swiglu || r.row->limit_before)
        info->gate_clamp_upper_limit = moe_given_float((float)limit);
    else
        info->act_clamp_upper_limit = moe_given_float((float)limit);
    info->up_clamp_upper_limit = moe_given_float((float)limit);
    info->up_clamp_lower_limit = moe_given_float((float)-limit);
    return MOE_OK;
}

moe_status family_of_gguf(const gg_file *gguf, const char *path, family_rules *rules)
{
    reader r = {.file = gguf, .path = path};
    memset(rules, 0, sizeof *rules);
    moe_status s = recognise(&r);
    if (s != MOE_OK) return s;
    rules->family = r.row->family;
    rules->layouts = r.row->no_gate ? no_gate_layouts : gated_layouts;
    rules->architecture = r.row;
    rules->needs = r.row->needs;
    rules->grid_rows = 128;
    s = sizes(&r, rules);
    if (s == MOE_OK) s = router(&r, &rules->info);
    activation(r.row, &rules->info);
    return s == MOE_OK ? family_check(path, rules) : s;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* family_config.c - from a config.json to the rules of a model.  Refuses families that no row of
 * family_table.c knows, and keys without a usable value. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/family.h"
#include "io/model_error.h"

enum { PATH_BYTES = 128 };

/* A configuration and where in it the language model's part is. */
typedef struct reader {
    const cfg_file *config;
    const char *path;  /* of the file, for messages */
    const char *inner; /* "text_config." or "" */
    const family *row;
} reader;

/* ---- keys ------------------------------------------------------------------------------------ */

/* Whether `word` is one of the list's: no empty one is, nor one with a space in it. */
static bool listed(const char *list, const char *word)
{
    size_t n = strlen(word);
    if (n == 0 || strchr(word, ' ')) return false;
    for (const char *at = list; at && (at = strstr(at, word)); at += n) {
        bool starts = at == list || at[-1] == ' ';
        if (starts && (at[n] == ' ' || at[n] == '\0')) return true;
    }
    return false;
}

/* The path of a key; of a list, of the first that is there (else of its first). */
static void key_path(const reader *r, const char *keys, char path[PATH_BYTES])
{
    char first[PATH_BYTES];
    for (const char *at = keys; *at != '\0';) {
        size_t n = strcspn(at, " ");
        snprintf(path, PATH_BYTES, "%s%.*s", r->inner, (int)n, at);
        if (at == keys) memcpy(first, path, sizeof first);
        if (cfg_has(r->config, path)) return;
        at += n + (at[n] == ' ');
    }
    memcpy(path, first, sizeof first);
}

/* A whole number from 1 to most; absent: *value stays, if that is a number (0 or more). */
static moe_status number(const reader *r, const char *keys, int64_t most, int64_t *value)
{
    char path[PATH_BYTES];
    key_path(r, keys, path);
    if (!cfg_has(r->config, path)) {
        if (*value >= 0) return MOE_OK;
        return model_fail(MOE_E_MODEL, r->path, "%s: is missing", path);
    }
    if (!cfg_integer(r->config, path, value) || *value < 0 || *value > most)
        return model_fail(MOE_E_MODEL, r->path, "%s: must be a whole number from 0 to %lld", path,
                          (long long)most);
    return MOE_OK;
}

/* A number that f32 can hold; absent: *value stays. */
static moe_status real(const reader *r, const char *key, double *value)
{
    char path[PATH_BYTES];
    key_path(r, key, path);
    if (!cfg_has(r->config, path)) return MOE_OK;
    if (cfg_real(r->config, path, value) && fabs(*value) <= FLT_MAX) return MOE_OK;
    return model_fail(MOE_E_MODEL, r->path, "%s: must be a number of at most %g", path,
                      (double)FLT_MAX);
}

static moe_status boolean(const reader *r, const char *key, bool *value)
{
    char path[PATH_BYTES];
    key_path(r, key, path);
    if (!cfg_has(r->config, path) || cfg_bool(r->config, path, value)) return MOE_OK;
    return model_fail(MOE_E_MODEL, r->path, "%s: must be true or false", path);
}

/* One of n words; absent: *word stays. */
static moe_status choice(const reader *r, const char *key, const char *const *words, size_t n,
                         size_t *word)
{
    char path[PATH_BYTES];
    const char *value;
    key_path(r, key, path);
    if (!cfg_has(r->config, path)) return MOE_OK;
    if (!cfg_string(r->config, path, &value))
        return model_fail(MOE_E_MODEL, r->path, "%s: must be a string", path);
    for (size_t i = 0; i < n; i++) {
        if (!listed(words[i], value)) continue;
        *word = i;
        return MOE_OK;
    }
    return model_fail(MOE_E_MODEL, r->path, "%s: \"%.40s\" is not known here", path, value);
}

/* ---- which family ---------------------------------------------------------------------------- */

static const family *row_of(const char *type)
{
    const family *row;
    for (size_t i = 0; (row = family_row(i)); i++)
        if (listed(row->types, type)) return row;
    return NULL;
}

static moe_status unknown(const reader *r, const char *type)
{
    char known[320] = "";
    size_t used = 0;
    const family *row;
    for (size_t i = 0; (row = family_row(i)) && used < sizeof known; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "",
                                 row->name);
    if (!type)
        return model_fail(MOE_E_MODEL, r->path,
                          "no model that is known here: neither model_type nor architectures say "
                          "what it is; known are %s",
                          known);
    return model_fail(MOE_E_MODEL, r->path,
                      "no model that is known here: model_type is \"%.40s\"; known are %s", type,
                      known);
}

/* Looks for r->row, NULL if there is none, by the type that it returns, NULL if there is none.  The
 * language model of one that also sees or hears has its own configuration inside. */
static const char *recognise(reader *r)
{
    const char *type = NULL;
    r->inner = cfg_what(r->config, "text_config") == CFG_OBJECT ? "text_config." : "";
    const char *const places[] = {"text_config.model_type", "model_type"};
    for (size_t i = *r->inner ? 0 : 1; i < 2 && !r->row; i++)
        if (cfg_string(r->config, places[i], &type)) r->row = row_of(type);
    if (r->row) return type;
    if (!type && cfg_array_string(r->config, "architectures", 0, &type)) r->row = row_of(type);
    if (!type && cfg_has(r->config, "experts_per_token") && cfg_has(r->config, "num_experts"))
        r->row = row_of(FAMILY_UNNAMED);
    return type;
}

/* ---- rules ----------------------------------------------------------------------------------- */

/* Layers of several kinds may be listed instead of counted (Nemotron-3). */
static void count_layers(const reader *r, int64_t *layers)
{
    static const char *const lists[] = {"layers_block_type", "layer_types"};
    char path[PATH_BYTES];
    const char *pattern;
    size_t count;
    for (size_t i = 0; i < 2; i++) {
        key_path(r, lists[i], path);
        if (cfg_array(r->config, path, &count) && count <= FAMILY_LAYERS_MOST)
            *layers = (int64_t)count;
    }
    key_path(r, "hybrid_override_pattern", path);
    if (cfg_string(r->config, path, &pattern) && strlen(pattern) <= FAMILY_LAYERS_MOST)
        *layers = (int64_t)strlen(pattern);
}

static moe_status sizes(const reader *r, family_rules *rules)
{
    moe_layer_info *info = &rules->info;
    const family *row = r->row;
    const char *I_key = row->I_key ? row->I_key : "moe_intermediate_size";
    rules->layers = info->H = info->I = info->E = info->K = -1;
    count_layers(r, &rules->layers);
    moe_status s = number(r, "num_hidden_layers", FAMILY_LAYERS_MOST, &rules->layers);
    if (s == MOE_OK) s = number(r, "hidden_size", INT32_MAX, &info->H);
    if (s == MOE_OK) s = number(r, I_key, INT32_MAX, &info->I);
    if (s == MOE_OK)
        s = number(r, "n_routed_experts num_local_experts num_experts", FAMILY_EXPERTS_MOST,
                   &info->E);
    if (s == MOE_OK)
        s = number(r, row->K_key ? row->K_key : "num_experts_per_tok", FAMILY_EXPERTS_MOST,
                   &info->K);
    rules->shared_I = -1;
    if (s == MOE_OK && row->shared_key) {
        rules->shared_I = INT64_MAX; /* stays, if the key is not there */
        s = number(r, row->shared_key, INT32_MAX, &rules->shared_I);
        if (rules->shared_I == INT64_MAX) rules->shared_I = -1;
    }
    if (s == MOE_OK && row->shared_count) {
        int64_t count = INT64_MAX; /* likewise */
        s = number(r, row->shared_count, 1024, &count);
        rules->shared_I = count == INT64_MAX ? -1 : count * info->I;
    }
    char path[PATH_BYTES];
    key_path(r, "moe_latent_size", path);
    if (s == MOE_OK && cfg_has(r->config, path))
        return model_fail(MOE_E_MODEL, r->path, "%s: experts between projections are not read",
                          path);
    return s;
}

static moe_status activation(const reader *r, family_rules *rules)
{
    /* What transformers calls swish is silu. */
    static const char *const words[] = {"silu swish", "gelu", "gelu_pytorch_tanh gelu_new", "relu",
                                        "relu2"};
    static const moe_activation meanings[] = {MOE_SILU, MOE_GELU, MOE_GELU_TANH, MOE_RELU,
                                              MOE_RELU2};
    moe_layer_info *info = &rules->info;
    const family *row = r->row;
    size_t word = SIZE_MAX;
    double limit = row->activation == ACT_SWIGLU ? 7.0 : 10.0, alpha = 1.702;
    moe_status s = choice(r, row->act_key ? row->act_key : "hidden_act", words,
                          sizeof words / sizeof words[0], &word);
    if (s != MOE_OK) return s;
    info->activation = word == SIZE_MAX ? row->act : meanings[word];
    info->has_gate = row->activation != ACT_NO_GATE;
    if (row->activation != ACT_SWIGLU && row->activation != ACT_LIMITED) return MOE_OK;
    s = real(r, "swiglu_limit", &limit);
    if (s == MOE_OK && row->activation == ACT_SWIGLU) s = real(r, "swiglu_alpha", &alpha);
    if (s != MOE_OK) return s;
    if (row->activation == ACT_SWIGLU) {
        info->activation = MOE_SWIGLU;
        info->swiglu_alpha = moe_given_float((float)alpha);
        info->swiglu_up_offset = moe_given_float(1.0f);
    }
    if (limit > 0) {
        info->gate_clamp_upper_limit = moe_given_float((float)limit);
        info->up_clamp_upper_limit = moe_given_float((float)limit);
        info->up_clamp_lower_limit = moe_given_float((float)-limit);
    }
    return MOE_OK;
}

static moe_status groups(const reader *r, family_rules *rules)
{
    moe_layer_info *info = &rules->info;
    int64_t n = r->row->n_group, kept = r->row->topk_group;
    moe_status s = MOE_OK;
    if (r->row->groups) s = number(r, "n_group", FAMILY_EXPERTS_MOST, &n);
    if (s == MOE_OK && r->row->groups) s = number(r, "topk_group", FAMILY_EXPERTS_MOST, &kept);
    if (s != MOE_OK || n <= 1) return s;
    info->n_group = (int32_t)n;
    info->topk_group = (int32_t)kept;
    return MOE_OK;
}

static moe_status topk_method(const reader *r, family_rules *rules)
{
    static const char *const methods[] = {"noaux_tc", "greedy", "group_limited_greedy"};
    size_t method = r->row->score == MOE_SCORE_SOFTMAX ? 1 : 0; /* if it is not there */
    moe_layer_info *info = &rules->info;
    moe_status s = choice(r, "topk_method", methods, 3, &method);
    if (s != MOE_OK) return s;
    if (method == 1) info->n_group = info->topk_group = 0;
    if (method == 2 && info->n_group > 1) info->group_rank = MOE_GROUP_BEST;
    return MOE_OK;
}

static moe_status router(const reader *r, family_rules *rules)
{
    static const char *const words[] = {"softmax", "sigmoid", "sqrtsoftplus"};
    static const moe_router_score meanings[] = {MOE_SCORE_SOFTMAX, MOE_SCORE_SIGMOID,
                                                MOE_SCORE_SQRT_SOFTPLUS};
    moe_layer_info *info = &rules->info;
    const family *row = r->row;
    size_t word = SIZE_MAX;
    bool normalize = row->norm == NORM_ALWAYS || row->norm == NORM_KEY_ELSE;
    double scale = row->scale;
    moe_status s = row->score_key ? choice(r, "scoring_func", words, 3, &word) : MOE_OK;
    if (s == MOE_OK && row->norm >= NORM_KEY) s = boolean(r, "norm_topk_prob", &normalize);
    if (s == MOE_OK && row->scale != 0) s = real(r, "routed_scaling_factor", &scale);
    if (s == MOE_OK) s = groups(r, rules);
    if (s == MOE_OK && row->groups) s = topk_method(r, rules);
    if (s != MOE_OK) return s;
    info->score = word == SIZE_MAX ? row->score : meanings[word];
    info->normalize = normalize;
    /* DeepSeek-V2: its makers then leave the factor out, others the normalisation. */
    if (row->norm == NORM_KEY && row->groups && normalize)
        info->foreign_router = "norm_topk_prob with softmax and groups";
    info->normalize_epsilon = (float)row->epsilon;
    info->scale = row->scale == 0 ? 1.0f : (float)scale;
    info->scaling = row->scaling == MOE_NO_SCALE ? MOE_POST_SCALE : row->scaling;
    return MOE_OK;
}

/* Blocks of FP8 weights: [rows, columns].  Those of MXFP8, [1, 32], are told by the scales. */
static moe_status grid(const reader *r, family_rules *rules)
{
    static const char *const paths[] = {"quantization_config.weight_block_size",
                                        "text_config.quantization_config.weight_block_size"};
    rules->grid_rows = 128;
    for (size_t i = 0; i < 2; i++) {
        int64_t rows, columns;
        if (!cfg_has(r->config, paths[i])) continue;
        if (!cfg_array_integer(r->config, paths[i], 0, &rows) ||
            !cfg_array_integer(r->config, paths[i], 1, &columns) || rows < 1 || rows > INT32_MAX ||
            (columns != 128 && (rows != 1 || columns != 32)))
            return model_fail(MOE_E_MODEL, r->path, "%s: must be [rows, 128] or [1, 32]", paths[i]);
        if (columns == 128) rules->grid_rows = rows;
    }
    return MOE_OK;
}

moe_status family_of_config(const cfg_file *config, const char *path, family_rules *rules)
{
    reader r = {.config = config, .path = path};
    memset(rules, 0, sizeof *rules);
    const char *type = recognise(&r);
    if (!r.row) return unknown(&r, type);
    rules->family = r.row->name;
    rules->layouts = r.row->layouts;
    rules->needs = r.row->needs;
    rules->info.foreign_router = r.row->foreign_router;
    moe_status s = sizes(&r, rules);
    if (s == MOE_OK) s = activation(&r, rules);
    if (s == MOE_OK) s = router(&r, rules);
    if (s == MOE_OK) s = grid(&r, rules);
    return s == MOE_OK ? family_check(path, rules) : s;
}

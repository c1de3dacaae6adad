/* SPDX-License-Identifier: Apache-2.0 */
/* family.h - what is known of each model family: the names of its tensors, the keys of its
 * configuration, its rules.  docs/formats.md says how to add one. */
#ifndef MOE_IO_FAMILY_H
#define MOE_IO_FAMILY_H

#include <moe_tkg_io.h>

#include "io/checkpoint.h"
#include "io/config.h"

/* ---- names ----------------------------------------------------------------------------------- */

/* Names of a layer's tensors, behind its prefix ("model.layers.3.").  NULL: there is none.  Experts
 * and the shared expert are named by stems: `suffix` is what their weights have behind it, unless they
 * are quantised (layer_forms.c).  "{e}" stands for the expert's number; a stem without it names one
 * tensor for all experts, with one dimension more. */
typedef struct layout {
    const char *layer; /* before a layer's number; NULL: "layers." */
    const char *suffix;
    const char *router, *router_bias, *selection_bias; /* whole names */
    const char *gate, *up, *down;
    const char *gate_up; /* in place of gate and up: both in one, gate first ... */
    bool interleaved;    /* ... or in turns */
    const char *shared_gate, *shared_up, *shared_down, *shared_gate_up;
    const char *shared_gate_weight; /* a whole name */
    /* A table that selects experts by the token itself: layers that have it do not use the router. */
    const char *token_table;
} layout;

/* ---- rules ----------------------------------------------------------------------------------- */

typedef enum family_norm {
    NORM_NEVER,
    NORM_ALWAYS,
    NORM_KEY,     /* norm_topk_prob, else not */
    NORM_KEY_ELSE /* norm_topk_prob, else normalised */
} family_norm;

typedef enum family_activation {
    ACT_KEY,     /* as act_key says; gated by up */
    ACT_SWIGLU,  /* gpt-oss: swiglu_alpha, swiglu_limit */
    ACT_LIMITED, /* as act_key says, gate and up limited by swiglu_limit (else 10) before it */
    ACT_NO_GATE  /* as act_key says, without a gate */
} family_activation;

enum { FAMILY_LAYOUTS = 4 };

/* Tensors without which a layer is not whole; others of a layout may be there or not. */
enum {
    FAMILY_NEEDS_ROUTER_BIAS = 1,
    FAMILY_NEEDS_SELECTION_BIAS = 2,
    FAMILY_NEEDS_EXPERT_BIAS = 4,
    FAMILY_NEEDS_SHARED_GATE = 8, /* ... of a shared expert, which it needs too */
    FAMILY_NEEDS_SHARED = 16
};

/* Stands for the configuration of gpt-oss' makers, which says of no model what it is. */
#define FAMILY_UNNAMED "(unnamed)"

/* Keys are those of config.json (inside text_config, if there is one).  Lists are separated by
 * spaces; of keys, the first that is there counts. */
typedef struct family {
    const char *name;
    const char *types; /* model_type, or architectures */
    const layout *layouts[FAMILY_LAYOUTS];
    const char *I_key;        /* NULL: moe_intermediate_size */
    const char *K_key;        /* NULL: num_experts_per_tok */
    const char *shared_key;   /* the shared expert's I, if a key says it ... */
    const char *shared_count; /* ... or how often it holds I_key */
    const char *act_key;      /* NULL: hidden_act */
    moe_activation act;       /* if that is not there */
    family_activation activation;
    moe_router_score score;
    bool score_key; /* scoring_func, if it is there, says otherwise */
    unsigned needs; /* FAMILY_NEEDS_... */
    family_norm norm;
    double epsilon; /* of the normalisation */
    double scale;   /* routed_scaling_factor if it is not there; 0: there is no such key */
    bool groups;    /* n_group, topk_group; where they are not there: */
    int16_t n_group, topk_group;
    moe_affinity_scale scaling; /* MOE_NO_SCALE: MOE_POST_SCALE */
    const char *foreign_router;
} family;

enum { FAMILY_LAYERS_MOST = 65536, FAMILY_EXPERTS_MOST = 4096, FAMILY_TOPK_MOST = 128 };

/* The rules of a model, as far as they hold for all layers. */
typedef struct family_rules {
    const char *family;
    const struct family_architecture *architecture; /* of GGUF; else NULL */
    const layout *const *layouts;                   /* FAMILY_LAYOUTS, NULL past the last */
    int64_t layers;
    moe_layer_info info; /* all but what tensors say */
    int64_t shared_I;    /* 0: none; -1: what the tensors say */
    int64_t grid_rows;   /* of blocks of FP8 weights */
    unsigned needs;      /* FAMILY_NEEDS_... */
} family_rules;

/* Fills *rules from a configuration (config) or the keys of a GGUF file (gguf).  MOE_E_MODEL: the
 * family is unknown, or a key is missing or has no usable value. */
moe_status family_of_config(const cfg_file *config, const char *path, family_rules *rules);
moe_status family_of_gguf(const gg_file *gguf, const char *path, family_rules *rules);

/* Adds what the keys of a GGUF file say of one layer alone, with a shared expert or without. */
moe_status family_gguf_layer(const gg_file *gguf, const char *path, const family_rules *rules,
                             int64_t layer, bool has_shared, moe_layer_info *info);

/* Shared by both: checks H, I, E, K and groups of *rules. */
moe_status family_check(const char *path, const family_rules *rules);

/* The rows of the tables, for the message that names all that is known; NULL past the last. */
const family *family_row(size_t i);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE 1

#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "../tools/rng.h"
#include "io/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char QWEN3[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\", "
    "\"hidden_size\": 64, \"num_hidden_layers\": 3, \"hidden_act\": \"silu\", "
    "\"moe_intermediate_size\": 32, \"intermediate_size\": 128, \"num_experts\": 4, "
    "\"num_experts_per_tok\": 2, \"norm_topk_prob\": true, \"decoder_sparse_step\": 1, "
    "\"mlp_only_layers\": []}\n";
static const char LLAMA4[] =
    "{\"architectures\": [\"Llama4ForConditionalGeneration\"], \"model_type\": \"llama4\", "
    "\"text_config\": {\"model_type\": \"llama4_text\", \"hidden_size\": 64, "
    "\"num_hidden_layers\": 2, \"hidden_act\": \"silu\", \"intermediate_size\": 32, "
    "\"intermediate_size_mlp\": 64, \"num_local_experts\": 4, \"num_experts_per_tok\": 1, "
    "\"interleave_moe_layer_step\": 1, \"moe_layers\": [0, 1]}}\n";
static const char PHIMOE[] =
    "{\"architectures\": [\"PhiMoEForCausalLM\"], \"model_type\": \"phimoe\", "
    "\"hidden_size\": 64, \"num_hidden_layers\": 1, \"hidden_act\": \"silu\", "
    "\"intermediate_size\": 32, \"num_local_experts\": 4, \"num_experts_per_tok\": 2, "
    "\"router_jitter_noise\": 0.01}\n";

static const char SPARSE[] =
    "{\"model_type\": \"qwen3_moe\", \"hidden_size\": 64, \"num_hidden_layers\": 5, "
    "\"hidden_act\": \"silu\", \"moe_intermediate_size\": 32, \"num_experts\": 4, "
    "\"num_experts_per_tok\": 2, \"norm_topk_prob\": false}\n";

int64_t tiny_layers(tiny_family family)
{
    static const int64_t LAYERS[] = {3, 2, 1, 5};
    return LAYERS[family];
}

int64_t tiny_K(tiny_family family)
{
    return family == TINY_LLAMA4 ? 1 : 2;
}

/* ---- files in the making --------------------------------------------------------------------- */

enum { MOST = 64 };

typedef struct maker {
    st_tensor tensor[MOST];
    const void *data[MOST];
    char name[MOST][96];
    int n;
    uint64_t state;
} maker;

static void *add(maker *m, const char *name, st_dtype dtype, int rank, const int64_t *shape)
{
    st_tensor *t = &m->tensor[m->n];
    assert_true(m->n < MOST);
    snprintf(m->name[m->n], sizeof m->name[0], "%s", name);
    *t = (st_tensor){.name = m->name[m->n], .dtype = dtype, .rank = rank};
    memcpy(t->shape, shape, (size_t)rank * sizeof *shape);
    assert_true(st_shape_bytes(dtype, shape, rank, &t->bytes));
    void *data = calloc(t->bytes + 1, 1);
    assert_non_null(data);
    m->data[m->n++] = data;
    return data;
}

/* bf16 of a size that leaves the outputs near 1. */
static void add_weights(maker *m, const char *name, int rank, const int64_t *shape)
{
    uint8_t *at = add(m, name, ST_BF16, rank, shape);
    for (size_t i = 0; i < m->tensor[m->n - 1].bytes; i += 2) {
        float value = (float)(0.15 * rng_normal(&m->state));
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        at[i] = (uint8_t)(bits >> 16);
        at[i + 1] = (uint8_t)(bits >> 24);
    }
}

/* The file without one of its tensors, -1: with all. */
static void finish(maker *m, const char *path, int leave_out)
{
    io_error error;
    if (leave_out >= 0) {
        assert_true(leave_out < m->n);
        free((void *)m->data[leave_out]);
        m->n--;
        m->tensor[leave_out] = m->tensor[m->n];
        m->data[leave_out] = m->data[m->n];
    }
    io_status status = st_write(path, m->tensor, m->data, (size_t)m->n, NULL, NULL, 0, &error);
    if (status != IO_OK) fail_msg("%s", error.text);
    for (int i = 0; i < m->n; i++) free((void *)m->data[i]);
}

/* ---- families -------------------------------------------------------------------------------- */

static const int64_t IN[] = {TINY_I, TINY_H}, OUT[] = {TINY_H, TINY_I}, ROUTER[] = {TINY_E, TINY_H};

/* An expert's three matrices; names: of gate, up, down. */
static void add_expert(maker *m, const char *prefix, const char *const names[3])
{
    char name[160];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s.%s.weight", prefix, names[i]);
        add_weights(m, name, 2, i < 2 ? IN : OUT);
    }
}

static void add_separate(maker *m, int64_t layer, const char *block, const char *const names[3])
{
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.gate.weight", (int)layer, block);
    add_weights(m, name, 2, ROUTER);
    for (int e = 0; e < TINY_E; e++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.experts.%d", (int)layer, block, e);
        add_expert(m, name, names);
    }
}

static void add_llama4(maker *m, int64_t layer)
{
    static const char *const NAMES[] = {"gate_proj", "up_proj", "down_proj"};
    static const int64_t GATE_UP[] = {TINY_E, TINY_H, 2 * TINY_I},
                         DOWN[] = {TINY_E, TINY_I, TINY_H};
    char prefix[64], name[96];
    snprintf(prefix, sizeof prefix, "language_model.model.layers.%d.feed_forward", (int)layer);
    snprintf(name, sizeof name, "%s.router.weight", prefix);
    add_weights(m, name, 2, ROUTER);
    snprintf(name, sizeof name, "%s.experts.gate_up_proj", prefix);
    add_weights(m, name, 3, GATE_UP);
    snprintf(name, sizeof name, "%s.experts.down_proj", prefix);
    add_weights(m, name, 3, DOWN);
    snprintf(name, sizeof name, "%s.shared_expert", prefix);
    add_expert(m, name, NAMES);
}

static void write_text(const char *folder, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

int tiny_model_write(tiny_family family, const char *folder, int leave_out)
{
    static const char *const QWEN_NAMES[] = {"gate_proj", "up_proj", "down_proj"},
                             *const MIXTRAL_NAMES[] = {"w1", "w3", "w2"};
    maker m = {.state = rng_stream(1, (uint64_t)family)};
    char path[512];
    for (int64_t l = 0; l < tiny_layers(family); l++) {
        if (family == TINY_SPARSE && l % 2 == 0) continue;
        if (family == TINY_LLAMA4)
            add_llama4(&m, l);
        else if (family == TINY_PHIMOE)
            add_separate(&m, l, "block_sparse_moe", MIXTRAL_NAMES);
        else
            add_separate(&m, l, "mlp", QWEN_NAMES);
    }
    int n = m.n;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    finish(&m, path, leave_out);
    static const char *const CONFIGS[] = {QWEN3, LLAMA4, PHIMOE, SPARSE};
    write_text(folder, CONFIGS[family]);
    return n;
}

void tiny_hidden_write(const char *path, int64_t T, int64_t H, int64_t K, int64_t E, uint64_t seed)
{
    maker m = {.state = rng_stream(seed, 7)};
    float *hidden = add(&m, "hidden", ST_F32, 2, (int64_t[]){T, H});
    int32_t *ids = add(&m, "topk_ids", ST_I32, 2, (int64_t[]){T, K});
    float *weights = add(&m, "topk_weights", ST_F32, 2, (int64_t[]){T, K});
    for (int64_t i = 0; i < T * H; i++) hidden[i] = (float)rng_normal(&m.state);
    for (int64_t i = 0; i < T * K; i++) {
        ids[i] = (int32_t)((i % K + (int64_t)rng_below(&m.state, (uint64_t)(E / K)) * K) % E);
        weights[i] = (float)rng_unit(&m.state);
    }
    finish(&m, path, -1);
}

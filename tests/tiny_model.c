/* SPDX-License-Identifier: Apache-2.0 */
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../tools/rng.h"

#define SIZES                                                                                      \
    "\"hidden_size\": 160, \"moe_intermediate_size\": 96, \"num_experts\": 3, "                    \
    "\"num_experts_per_tok\": 2, \"hidden_act\": \"silu\", "

/* A layer's tensors, after its prefix, as model_files has them. */
static const char *const QWEN[] = {
    "mlp.gate.weight BF16 E,H", "mlp.experts.{e}.gate_proj.weight BF16 I,H",
    "mlp.experts.{e}.up_proj.weight BF16 I,H", "mlp.experts.{e}.down_proj.weight BF16 H,I", NULL};
static const char *const PHI[] = {"block_sparse_moe.gate.weight BF16 E,H",
                                  "block_sparse_moe.experts.{e}.w1.weight BF16 I,H",
                                  "block_sparse_moe.experts.{e}.w3.weight BF16 I,H",
                                  "block_sparse_moe.experts.{e}.w2.weight BF16 H,I", NULL};
static const char *const LLAMA[] = {"feed_forward.router.weight BF16 E,H",
                                    "feed_forward.experts.gate_up_proj BF16 E,H,2I",
                                    "feed_forward.experts.down_proj BF16 E,I,H",
                                    "feed_forward.shared_expert.gate_proj.weight BF16 I,H",
                                    "feed_forward.shared_expert.up_proj.weight BF16 I,H",
                                    "feed_forward.shared_expert.down_proj.weight BF16 H,I",
                                    NULL};

static const struct {
    const char *config, *prefix, *const *tensors;
    int64_t layers, K;
} FAMILIES[] = {
    {"{\"model_type\": \"qwen3_moe\", " SIZES "\"num_hidden_layers\": 3, "
     "\"norm_topk_prob\": true}\n",
     "model.layers", QWEN, 3, 2},
    {"{\"model_type\": \"llama4\", \"text_config\": {\"model_type\": \"llama4_text\", "
     "\"hidden_size\": 160, \"num_hidden_layers\": 2, \"hidden_act\": \"silu\", "
     "\"intermediate_size\": 96, \"intermediate_size_mlp\": 192, \"num_local_experts\": 3, "
     "\"num_experts_per_tok\": 1, \"interleave_moe_layer_step\": 1, \"moe_layers\": [0, 1]}}\n",
     "language_model.model.layers", LLAMA, 2, 1},
    {"{\"model_type\": \"phimoe\", \"hidden_size\": 160, \"num_hidden_layers\": 1, "
     "\"hidden_act\": \"silu\", \"intermediate_size\": 96, \"num_local_experts\": 3, "
     "\"num_experts_per_tok\": 2, \"router_jitter_noise\": 0.01}\n",
     "model.layers", PHI, 1, 2},
    {"{\"model_type\": \"qwen3_moe\", " SIZES "\"num_hidden_layers\": 5, "
     "\"norm_topk_prob\": false}\n",
     "model.layers", QWEN, 5, 2},
};

int64_t tiny_layers(tiny_family family)
{
    return FAMILIES[family].layers;
}

int64_t tiny_K(tiny_family family)
{
    return FAMILIES[family].K;
}

/* ---- models ---------------------------------------------------------------------------------- */

/* bf16 of a size that leaves the outputs near 1. */
static void fill_gaussian(model_files *f, uint64_t *state)
{
    for (size_t i = 0; i < f->count; i++)
        for (size_t b = 0; b < f->tensor[i].bytes; b += 2) {
            float value = (float)(0.1 * rng_normal(state));
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            f->data[i][b] = (unsigned char)(bits >> 16);
            f->data[i][b + 1] = (unsigned char)(bits >> 24);
        }
}

void tiny_model_write(tiny_family family, const char *folder, int leave_out)
{
    enum { LINES = 40 };
    char text[LINES][128];
    const char *lines[LINES + 1];
    size_t n = 0;
    for (int64_t l = 0; l < FAMILIES[family].layers; l++) {
        if (family == TINY_SPARSE && l % 2 == 0) continue;
        for (const char *const *t = FAMILIES[family].tensors; *t; t++) {
            assert_true(n < LINES);
            snprintf(text[n], sizeof text[n], "%s.%d.%s", FAMILIES[family].prefix, (int)l, *t);
            lines[n] = text[n];
            n++;
        }
    }
    lines[n] = NULL;
    model_files f;
    uint64_t state = rng_stream(1, (uint64_t)family);
    model_files_make(&f, lines, 1);
    fill_gaussian(&f, &state);
    model_files_write(&f, folder, FAMILIES[family].config,
                      leave_out < 0 ? f.count : (size_t)leave_out);
    model_files_free(&f);
}

/* ---- hidden states --------------------------------------------------------------------------- */

void tiny_hidden_write(const char *path, int64_t T, int64_t K, uint64_t seed)
{
    uint64_t state = rng_stream(seed, 7);
    io_error error;
    size_t n = (size_t)(T * FILES_H), routes = (size_t)(T * K);
    float *hidden = malloc(n * sizeof *hidden), *weights = malloc(routes * sizeof *weights);
    int32_t *ids = malloc(routes * sizeof *ids);
    assert_true(hidden && weights && ids);
    for (size_t i = 0; i < n; i++) hidden[i] = (float)rng_normal(&state);
    for (int64_t t = 0; t < T; t++) {
        int64_t first = (int64_t)rng_below(&state, FILES_E);
        for (int64_t k = 0; k < K; k++) {
            ids[t * K + k] = (int32_t)((first + k) % FILES_E);
            weights[t * K + k] = (float)rng_unit(&state);
        }
    }
    const st_tensor t[] = {
        {.name = "hidden", .dtype = ST_F32, .rank = 2, .shape = {T, FILES_H}, .bytes = n * 4},
        {.name = "topk_ids", .dtype = ST_I32, .rank = 2, .shape = {T, K}, .bytes = routes * 4},
        {.name = "topk_weights", .dtype = ST_F32, .rank = 2, .shape = {T, K}, .bytes = routes * 4},
    };
    if (st_write(path, t, (const void *[]){hidden, ids, weights}, 3, NULL, NULL, 0, &error) !=
        IO_OK)
        fail_msg("%s", error.text);
    free(hidden);
    free(weights);
    free(ids);
}

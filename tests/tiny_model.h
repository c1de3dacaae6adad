/* SPDX-License-Identifier: Apache-2.0 */
/* tiny_model.h - checkpoints with Gaussian weights, of FILES_H and its like, as three families have
 * them; and hidden states for them. */
#ifndef MOE_TEST_TINY_MODEL_H
#define MOE_TEST_TINY_MODEL_H

#include "model_files.h"

typedef enum tiny_family {
    TINY_QWEN3,  /* three layers; its router is the library's */
    TINY_LLAMA4, /* two layers; weights multiply the input; a shared expert */
    TINY_PHIMOE, /* one layer; its router is not the library's */
    TINY_SPARSE  /* as QWEN3, five layers: 1 and 3 have experts */
} tiny_family;

int64_t tiny_layers(tiny_family family);
int64_t tiny_K(tiny_family family);

/* Writes config.json and model.safetensors into the folder, which is there.  leave_out: the number
 * of a tensor that is not written; -1: none. */
void tiny_model_write(tiny_family family, const char *folder, int leave_out);

/* Writes a file of tensors whose values are drawn from seed: hidden f32 [T, FILES_H], topk_ids i32
 * and topk_weights f32 [T, K]. */
void tiny_hidden_write(const char *path, int64_t T, int64_t K, uint64_t seed);

#endif

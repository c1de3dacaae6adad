/* SPDX-License-Identifier: Apache-2.0 */
/* cli_model.h - models as the commands see them: opening, loading, and layers in words. */
#ifndef MOE_CLI_MODEL_H
#define MOE_CLI_MODEL_H

#include "cli.h"

#include <moe_tkg_io.h>

/* The line on it in a command's --help. */
#define CLI_MODEL_HELP                                                                             \
    "      --config FILE    config.json of a safetensors model (default: the one beside it)\n"

/* Stores what moe_io_last_error says of status, and its exit code, which is returned. */
int cli_model_failure(cli_error *error, moe_status status);

/* Each returns CLI_OK, or the code that it stored in *error with a message. */
int cli_model_open(const char *path, const char *config, moe_model **model, cli_error *error);

/* Describes the model and its layers with experts: *layer, which the caller frees, has
 * info->moe_layers of them. */
int cli_model_layers(const moe_model *model, moe_model_info *info, moe_layer_info **layer,
                     cli_error *error);

/* The layer of that number; refused if it is none with experts. */
int cli_model_find(const moe_model *model, int64_t layer, moe_layer_info *info, cli_error *error);

/* Loads it, with a progress bar. */
int cli_model_load(const moe_model *model, int64_t layer, moe_packing packing, moe_context *context,
                   moe_layer **loaded, cli_error *error);

/* ---- in words -------------------------------------------------------------------------------- */

enum { CLI_MODEL_WORDS = 160 };

/* "bf16", or "q4_k/q6_k": gate and up, down. */
void cli_model_format_words(const moe_layer_info *l, char text[CLI_MODEL_WORDS]);

/* "silu", "swiglu 1.702, up + 1, gate <= 7, -7 <= up <= 7", "relu2, no gate", ... */
void cli_model_activation_words(const moe_layer_info *l, char text[CLI_MODEL_WORDS]);

/* "softmax, top 8, normalised", "sigmoid + selection bias, best 4 of 8 groups, ...". */
void cli_model_router_words(const moe_layer_info *l, char text[CLI_MODEL_WORDS]);

/* "-", or "I 2048, bf16, gated". */
void cli_model_shared_words(const moe_layer_info *l, char text[CLI_MODEL_WORDS]);

/* All of it. */
json_t *cli_model_layer_json(const moe_layer_info *l);

/* Bytes that one token reads: of its experts; of router and shared expert too. */
double cli_model_token_expert_bytes(const moe_layer_info *l);
double cli_model_token_bytes(const moe_layer_info *l);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* layer_file.h - layers as moe_model_load would give them, to be saved. */
#ifndef MOE_TEST_LAYER_FILE_H
#define MOE_TEST_LAYER_FILE_H

#include "io/loaded.h"
#include "source.h"

enum { LAYER_FILE_KINDS = 4 };

/* Layer `number` of 12: E experts, H, I and formats as the kind has them, with or without a shared
 * expert, biases, a router of this library's.  To be freed by moe_layer_free; aborts without
 * memory. */
moe_layer *layer_file_make(unsigned kind, int64_t number);

/* What moe_model_load keeps of layer i of the model's, but for the weights. */
moe_layer *layer_file_of(const moe_model *model, int64_t i);

#endif

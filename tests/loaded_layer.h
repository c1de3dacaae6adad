/* SPDX-License-Identifier: Apache-2.0 */
/* loaded_layer.h - layers as moe_model_load would give them, to be saved. */
#ifndef MOE_TEST_LOADED_LAYER_H
#define MOE_TEST_LOADED_LAYER_H

#include "io/loaded.h"
#include "source.h"

enum { LOADED_LAYER_KINDS = 4 };

/* Layer `number` of 12: E experts, H, I and formats as the kind has them, with or without a shared
 * expert, biases, a router of this library's.  To be freed by moe_layer_free; aborts without
 * memory. */
moe_layer *loaded_layer_make(unsigned kind, int64_t number);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* tokens.h - the tokens of a test layer: its rows in every tensor that has one per token, copied,
 * reordered, spoilt. */
#ifndef MOE_TEST_TOKENS_H
#define MOE_TEST_TOKENS_H

#include "layer.h"

/* Makes *to: the layer from with its tokens order[0], order[1], ..., order[n - 1]; all other
 * bytes are from's. */
void tokens_gather(layer *to, const layer *from, const size_t *order, size_t n);

/* A new block with those tokens of an output of from. */
void *tokens_gather_output(const layer *from, const void *output, const size_t *order, size_t n);

/* Sets every byte of token t in the tensor which. */
void tokens_spoil(layer *l, layer_tensor which, size_t t, int byte);

/* Sets every byte of expert e in all tensors that have a slice for each of the E_L experts. */
void tokens_spoil_expert(layer *l, size_t e, int byte);

/* Element n of expert_index; v must fit its type. */
int64_t tokens_index(const layer *l, size_t n);
void tokens_set_index(layer *l, size_t n, int64_t v);

#endif

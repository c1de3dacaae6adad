/* SPDX-License-Identifier: Apache-2.0 */
/* our_layer.h - the layer in this library, by its public interface. */
#ifndef PEERS_OUR_LAYER_H
#define PEERS_OUR_LAYER_H

#include <moe_tkg.h>

#include "layer.h"

typedef struct our_layer our_layer;

/* Copies what it needs of raw.  NULL on failure, said on stderr. */
our_layer *our_layer_create(moe_context *context, const peers_layer *raw);
void our_layer_destroy(our_layer *layer);

/* Untimed: takes the batch, which must stay until the run is over. */
void our_layer_prepare(our_layer *layer, const peers_batch *batch, moe_act_mode act);
/* Timed: one call.  False on failure, said on stderr. */
bool our_layer_run(our_layer *layer);
const float *our_layer_output(const our_layer *layer);  /* [T, H] */
size_t our_layer_output_stride(const our_layer *layer); /* from one token to the next */

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* our_layer.h - the layer in this library, by its public interface. */
#ifndef PEERS_OUR_LAYER_H
#define PEERS_OUR_LAYER_H

#include <moe_tkg.h>

#include "layer.h"

/* Threads, each pinned to a CPU of its own of those that the process may use; the caller is the
 * first of them.  Those that wait for a call poll, until they are put to sleep. */
typedef struct our_pool our_pool;

our_pool *our_pool_create(int threads); /* NULL on failure, said on stderr */
void our_pool_destroy(our_pool *pool);  /* NULL is fine */
void our_pool_pause(our_pool *pool);    /* puts them to sleep; the next call wakes them */
moe_context *our_pool_context(const our_pool *pool);

typedef struct our_layer our_layer;

/* Packs the experts: raw may be freed.  NULL on failure, said on stderr. */
our_layer *our_layer_create(our_pool *pool, const peers_layer *raw);
void our_layer_destroy(our_layer *layer);

/* Untimed: takes the batch, which must stay until the run is over. */
void our_layer_prepare(our_layer *layer, const peers_batch *batch, moe_act_mode act);
/* Timed: one call.  False on failure, said on stderr. */
bool our_layer_run(our_layer *layer);
const float *our_layer_output(const our_layer *layer); /* [T, H] */

#endif

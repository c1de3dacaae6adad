/* SPDX-License-Identifier: Apache-2.0 */
/* ggml_layer.h - the layer in ggml: the chain of operators that llama.cpp's build_moe_ffn makes,
 * from the routing on. */
#ifndef PEERS_GGML_LAYER_H
#define PEERS_GGML_LAYER_H

#include "layer.h"

/* Threads, each pinned to one CPU, and working memory, for any number of layers. */
typedef struct ggml_pool ggml_pool;
ggml_pool *ggml_pool_create(int threads);
void ggml_pool_destroy(ggml_pool *pool);
/* Puts the waiting threads to sleep, which would otherwise poll, and gives the calling thread
 * its CPUs back; the next run wakes them. */
void ggml_pool_pause(ggml_pool *pool);

typedef struct ggml_layer ggml_layer;

/* weights: bf16, mxfp4, q8_0 or q4_0, the last two quantised from raw's bf16.  repack: in the
 * buffer type that llama.cpp prefers, which rearranges the weights; without, as they lie in a
 * file.  Copies what it needs of raw.  NULL on failure, said on stderr. */
ggml_layer *ggml_layer_create(ggml_pool *pool, const peers_layer *raw, const char *weights,
                              bool repack);
void ggml_layer_destroy(ggml_layer *layer);

/* Whether ggml has a rearranged layout for such weights on this machine. */
bool ggml_layer_can_repack(const peers_shape *shape, const char *weights);

/* Untimed: builds the graph for the batch and copies the inputs. */
void ggml_layer_prepare(ggml_layer *layer, const peers_batch *batch);
/* Timed: computes the graph. */
bool ggml_layer_run(ggml_layer *layer);
const float *ggml_layer_output(const ggml_layer *layer); /* [T, H] */

const char *ggml_layer_version(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* cache.h - a directory of packed layers, one file each. */
#ifndef MOE_IO_CACHE_H
#define MOE_IO_CACHE_H

#include <moe_tkg_io.h>

#include "io/packed.h"

typedef struct cache cache;

/* Opens the packed layers in a directory: what they say, not their experts.  MOE_OK and *c NULL if
 * path is no directory, or one without files of such names.  MOE_E_MODEL: they are not of one model,
 * or a checkpoint lies beside them. */
moe_status cache_open(const char *path, cache **c);
void cache_close(cache *c); /* NULL is fine */

/* What moe_tkg_io.h says of a model, of a cache; arguments are checked. */
int64_t cache_count(const cache *c);
void cache_describe(const cache *c, moe_model_info *info);
void cache_layer(const cache *c, int64_t i, moe_layer_info *info);
moe_status cache_load(const cache *c, int64_t layer, moe_context *context,
                      const moe_load_options *options, moe_layer **loaded);

/* *layer, which is all zeros, = what the file holds.  In any case it is to be freed. */
moe_status cache_read(const packed_file *f, moe_context *context, const moe_load_options *options,
                      moe_layer *layer);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* cache_record.h - what a packed file says about its layer: everything but the packed experts. */
#ifndef MOE_IO_CACHE_RECORD_H
#define MOE_IO_CACHE_RECORD_H

#include "io/loaded.h"

/* Bytes of the images that the payload is: of the experts, of the shared expert (0: none). */
typedef struct cache_images {
    uint64_t experts, shared;
} cache_images;

/* The record in memory that the caller frees; NULL: there is none. */
unsigned char *cache_encode(const moe_layer *layer, const cache_images *images, size_t *bytes);

typedef enum cache_verdict { CACHE_SOUND, CACHE_UNSOUND, CACHE_NO_MEMORY } cache_verdict;

/* Fills *layer, which is all zeros, except for its experts.  CACHE_UNSOUND: the bytes are no such
 * record; *rule says what is wrong at byte *at.  What was filled is to be freed in any case
 * (loaded_forget). */
cache_verdict cache_decode(const void *data, size_t bytes, moe_layer *layer, cache_images *images,
                           const char **rule, size_t *at);

#endif

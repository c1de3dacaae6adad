/* SPDX-License-Identifier: Apache-2.0 */
/* keep.h - bytes that are kept until all of them are freed, and do not move meanwhile. */
#ifndef MOE_IO_KEEP_H
#define MOE_IO_KEEP_H

#include <stddef.h>

typedef struct io_block io_block;

typedef struct io_keep {
    io_block *blocks; /* the newest first; NULL: nothing is kept */
} io_keep;

/* n bytes, without alignment; NULL if there is no memory. */
void *io_keep_bytes(io_keep *keep, size_t n);

void io_keep_free(io_keep *keep);

#endif

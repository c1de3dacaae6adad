/* SPDX-License-Identifier: Apache-2.0 */
/* keep.c - bytes from blocks.  Blocks double, so that little stays little, up to a size; what does
 * not fit gets a block of its own size.  At most half of the memory is not used. */
#include "io/keep.h"

#include <stdlib.h>

#include "checked.h"

enum { BLOCK_MIN = 256, BLOCK_MAX = 65536 };

struct io_block {
    io_block *next;
    size_t size, used;
    char bytes[];
};

/* A block before the others, of which n bytes are taken. */
static io_block *new_block(io_block *others, size_t n)
{
    size_t size = others ? others->size * 2 : BLOCK_MIN, bytes;
    if (size > BLOCK_MAX) size = BLOCK_MAX;
    if (size < n) size = n;
    io_block *block = checked_add(sizeof *block, size, &bytes) ? malloc(bytes) : NULL;
    if (block) *block = (io_block){.next = others, .size = size, .used = n};
    return block;
}

void *io_keep_bytes(io_keep *keep, size_t n)
{
    io_block *block = keep->blocks;
    if (block && n <= block->size - block->used) {
        block->used += n;
        return block->bytes + (block->used - n);
    }
    block = new_block(block, n);
    if (!block) return NULL;
    keep->blocks = block;
    return block->bytes;
}

void io_keep_free(io_keep *keep)
{
    while (keep->blocks) {
        io_block *block = keep->blocks;
        keep->blocks = block->next;
        free(block);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* memory.c - the allocator of a caller who brings none. */
#include "memory.h"

#include "checked.h"

#include <stdlib.h>

static void *allocate(size_t bytes, size_t alignment, void *user)
{
    (void)user;
    return checked_round_up(bytes, alignment, &bytes) ? aligned_alloc(alignment, bytes) : NULL;
}

static void release(void *block, size_t bytes, void *user)
{
    (void)bytes;
    (void)user;
    free(block);
}

const allocator memory_default = {allocate, release, NULL};

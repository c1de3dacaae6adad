/* SPDX-License-Identifier: Apache-2.0 */
/* sizes.h - arithmetic of sizes that are known to fit (checked.h: of those that are not). */
#ifndef MOE_SIZES_H
#define MOE_SIZES_H

#include <stddef.h>

static inline size_t size_smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* How many pieces of at most `of` n is. */
static inline size_t size_pieces(size_t n, size_t of)
{
    return (n + of - 1) / of;
}

static inline size_t size_round_up(size_t n, size_t step)
{
    return size_pieces(n, step) * step;
}

#endif

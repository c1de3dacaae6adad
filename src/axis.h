/* SPDX-License-Identifier: Apache-2.0 */
/* axis.h - the k axes of docs/numerics.md section 3: which h or i the k-th term of a sum is.
 *
 * Strided: the operator's MX tensors, where the 32 terms of a scale block are four runs of 8.
 * Else k is h, or i. */
#ifndef MOE_AXIS_H
#define MOE_AXIS_H

#include "kernel.h"

#include <stdbool.h>

#define AXIS_PAD SIZE_MAX

typedef struct axis {
    size_t H, I;
    bool strided;
    size_t tiles_h, tiles_i, lanes_p; /* strided: H / 512, ceil(I / 512), I_p */
} axis;

/* Strided: block number and place of k: k = ((tile * partitions / 8 + b) * 4 + q) * 8 + r,
 * partition = 8 b + r. */
typedef struct axis_place {
    size_t tile, partition, q;
} axis_place;

static inline axis_place axis_place_of(size_t k, size_t partitions)
{
    size_t block = k / KERNEL_BLOCK, per_tile = partitions / 8;
    return (axis_place){block / per_tile, block % per_tile * 8 + k % 8, k % KERNEL_BLOCK / 8};
}

/* The hidden axis, strided: h = q * H/4 + tile * 128 + partition. */
static inline size_t axis_h(const axis *a, axis_place at)
{
    return at.q * (a->H / 4) + at.tile * 128 + at.partition;
}

/* Partitions in use of an intermediate tile: 128, in a partial last tile a quarter of its width
 * rounded up to 8. */
static inline size_t axis_tile_width(const axis *a, size_t tile)
{
    size_t rest = a->I - tile * 512;
    return rest >= 512 ? 128 : (rest + 7) / 8 * 2;
}

/* The intermediate axis, strided: i = tile * 512 + q * w + partition, or AXIS_PAD. */
static inline size_t axis_i(const axis *a, axis_place at)
{
    size_t w = axis_tile_width(a, at.tile), i = at.tile * 512 + at.q * w + at.partition;
    return at.partition < w && i < a->I ? i : AXIS_PAD;
}

/* Element (token t of T, h) of hidden_input or the output: row-major, or SBUF [128, T, H/128]. */
static inline size_t axis_row_element(const axis *a, bool sbuf, size_t T, size_t t, size_t h)
{
    size_t columns = a->H / 128;
    if (!sbuf) return t * a->H + h;
    if (a->strided) return (h % 128 * T + t) * columns + h / 128;
    return (h / columns * T + t) * columns + h % columns;
}

#endif

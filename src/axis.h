/* SPDX-License-Identifier: Apache-2.0 */
/* axis.h - the k axes of docs/numerics.md section 3: which h or i the k-th term of a sum is.
 *
 * Plain weights: k is h, or i.  MX weights: the 32 terms of a scale block are neighbours in k,
 * in four runs of 8. */
#ifndef MOE_AXIS_H
#define MOE_AXIS_H

#include "problem.h"

#define AXIS_PAD SIZE_MAX

/* MX: block number and place of k: k = ((tile * partitions / 8 + b) * 4 + q) * 8 + r, partition
 * = 8 b + r. */
typedef struct axis_place {
    size_t tile, partition, q;
} axis_place;

static inline axis_place axis_place_of(size_t k, size_t partitions)
{
    size_t block = k / KERNEL_BLOCK, per_tile = partitions / 8;
    return (axis_place){block / per_tile, block % per_tile * 8 + k % 8, k % KERNEL_BLOCK / 8};
}

/* The hidden axis, MX: h = q * H/4 + tile * 128 + partition. */
static inline size_t axis_h(const problem *p, axis_place a)
{
    return a.q * (p->H / 4) + a.tile * 128 + a.partition;
}

/* Partitions in use of an intermediate tile: 128, in a partial last tile a quarter of its width
 * rounded up to 8. */
static inline size_t axis_tile_width(const problem *p, size_t tile)
{
    size_t rest = p->I - tile * 512;
    return rest >= 512 ? 128 : (rest + 7) / 8 * 2;
}

/* The intermediate axis, MX: i = tile * 512 + q * w + partition, or AXIS_PAD. */
static inline size_t axis_i(const problem *p, axis_place a)
{
    size_t w = axis_tile_width(p, a.tile), i = a.tile * 512 + a.q * w + a.partition;
    return a.partition < w && i < p->I ? i : AXIS_PAD;
}

/* Element (token t, h) of hidden_input or the output: row-major, or SBUF [128, T, H/128]. */
static inline size_t axis_row_element(const problem *p, bool sbuf, size_t t, size_t h)
{
    size_t columns = p->H / 128;
    if (!sbuf) return t * p->H + h;
    if (p->mx) return (h % 128 * p->T + t) * columns + h / 128;
    return (h / columns * p->T + t) * columns + h % columns;
}

#endif

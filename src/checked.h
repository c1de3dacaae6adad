/* SPDX-License-Identifier: Apache-2.0 */
/* checked.h - sizes added, multiplied and rounded so that one that does not fit is an answer
 * (false) and never a small number.
 *
 * Every byte count of a tensor, of scratch and of a file goes through here before anything
 * relies on it; what is computed from them later is then known to fit. */
#ifndef MOE_CHECKED_H
#define MOE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* *r = a * b; false if that does not fit. */
static inline bool checked_mul(size_t a, size_t b, size_t *r)
{
    return !__builtin_mul_overflow(a, b, r);
}

/* *r = a + b; false if that does not fit. */
static inline bool checked_add(size_t a, size_t b, size_t *r)
{
    return !__builtin_add_overflow(a, b, r);
}

/* *r = a rounded up to a multiple of step (step >= 1); false if that does not fit. */
static inline bool checked_round_up(size_t a, size_t step, size_t *r)
{
    size_t rest = a % step;
    if (rest == 0) {
        *r = a;
        return true;
    }
    return checked_add(a, step - rest, r);
}

/* Reserves `bytes` at the end of a block at a multiple of alignment: *at is where they begin, *end
 * moves past them.  False if the block does not fit. */
static inline bool checked_place(size_t bytes, size_t alignment, size_t *end, size_t *at)
{
    return checked_round_up(*end, alignment, at) && checked_add(*at, bytes, end) &&
           *end <= PTRDIFF_MAX;
}

/* *r = the product of the n dimensions times unit, at most PTRDIFF_MAX; false if it does not fit
 * or a dimension is negative.  A zero dimension makes the product zero only if the other
 * dimensions fit on their own, so that a shape such as [0, 2^62, 2^62] is refused like [1, 2^62,
 * 2^62]. */
static inline bool checked_shape(const int64_t *shape, size_t n, size_t unit, size_t *r)
{
    size_t product = unit;
    bool zero = false;
    for (size_t i = 0; i < n; i++) {
        if (shape[i] < 0) return false;
        if (shape[i] == 0)
            zero = true;
        else if (!checked_mul(product, (size_t)shape[i], &product))
            return false;
    }
    if (product > PTRDIFF_MAX) return false;
    *r = zero ? 0 : product;
    return true;
}

#endif

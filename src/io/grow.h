/* SPDX-License-Identifier: Apache-2.0 */
/* grow.h - arrays that grow while a file is read, so that no count in it is believed. */
#ifndef MOE_IO_GROW_H
#define MOE_IO_GROW_H

#include <stdlib.h>

#include "checked.h"

/* The array, of *room elements of unit bytes, with room for one more than count; NULL if there is no
 * memory, the old array staying valid.  Memory: at most 2.5 times that of the elements, while the
 * old array is copied. */
static inline void *io_grown(void *array, size_t count, size_t *room, size_t unit)
{
    if (count < *room) return array;
    size_t wider = *room + *room / 2 + 8, bytes;
    void *moved = checked_mul(wider, unit, &bytes) ? realloc(array, bytes) : NULL;
    if (moved) *room = wider;
    return moved;
}

#endif

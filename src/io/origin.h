/* SPDX-License-Identifier: Apache-2.0 */
/* origin.h - which files a layer came from, so that a packed one can be held against them. */
#ifndef MOE_IO_ORIGIN_H
#define MOE_IO_ORIGIN_H

#include <moe_tkg.h>
#include <stdbool.h>

struct layer_plan;

enum { ORIGIN_NAME = 256 };

typedef struct origin_file {
    char name[ORIGIN_NAME]; /* without the folder; of a longer one the end */
    uint64_t size;
    int64_t seconds, nanoseconds; /* of its last change */
    uint64_t headers;             /* hash of all before its data section */
} origin_file;

typedef struct origin {
    origin_file *files; /* sorted by name */
    size_t count;
} origin;

/* The files of the plan's tensors: as they were when they were opened; now: as what is under their
 * names is by now.  On failure there is nothing to free. */
moe_status origin_of(const struct layer_plan *plan, bool now, origin *o);
void origin_free(origin *o);

/* The first file of a or b that is not the same in both, NULL if there is none. */
const origin_file *origin_differs(const origin *a, const origin *b);

#endif

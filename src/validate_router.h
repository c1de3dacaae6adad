/* SPDX-License-Identifier: Apache-2.0 */
/* validate_router.h - the parts of judging a router's arguments that a block shares. */
#ifndef MOE_VALIDATE_ROUTER_H
#define MOE_VALIDATE_ROUTER_H

#include "router.h"

/* Memory that a call reads or writes. */
typedef struct validate_bytes {
    const char *name;
    uintptr_t first;
    size_t bytes;
    bool written;
} validate_bytes;

enum { VALIDATE_SPANS = 24 };

typedef struct validate_spans {
    size_t n;
    validate_bytes span[VALIDATE_SPANS];
} validate_spans;

/* Adds it: it is there, aligned, and nothing that is written overlaps another. */
moe_status validate_span(validate_spans *spans, const char *name, const void *at, size_t bytes,
                         size_t element, bool written);

/* An array [rows, columns], or with columns 0 [rows], of bf16, f16 or f32 and one expert. */
moe_status validate_one_array(const char *name, const moe_array *a, bool required, size_t rows,
                              size_t columns);
moe_status validate_array_span(validate_spans *spans, const char *name, const moe_array *a,
                               size_t rows, size_t columns);

/* All scalars: fills *r, but for H. */
moe_status validate_router(const moe_router_args *a, router *r);

/* The arrays' descriptions: fills r->H.  in_block: by which names. */
moe_status validate_router_arrays(const moe_router_args *a, router *r, size_t H, bool in_block);

/* The arrays' and the outputs' memory. */
moe_status validate_router_data(const router *r, size_t T, const moe_router_output *out,
                                bool in_block, validate_spans *spans);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_route.h - a part of kernel_tmpl.h: the dots of a router, whose lanes are terms of one sum. */
#ifndef MOE_KERNEL_ROUTE_H
#define MOE_KERNEL_ROUTE_H

#include "kernel_dot.h"
#include "route_block.h"

/* Rows and tokens whose lanes are kept in registers together. */
enum { ROUTE_TILE = VEC_SUMS >= 16 ? 4 : 2 };

INLINE void route_tile(const kernel_route *a, size_t t, size_t tokens, size_t r, size_t rows)
{
    const float *x = a->x + t * a->x_stride, *w = a->w + r * a->w_stride;
    vec acc[ROUTE_TILE][ROUTE_TILE];
    UNROLL
    for (size_t i = 0; i < tokens; i++) UNROLL
    for (size_t j = 0; j < rows; j++) acc[i][j] = v_load(a->acc[t + i][r + j]);
    for (size_t k = 0; k < a->k; k += KERNEL_LANES) {
        vec row[ROUTE_TILE];
        UNROLL
        for (size_t j = 0; j < rows; j++) row[j] = v_load(w + j * a->w_stride + k);
        UNROLL
        for (size_t i = 0; i < tokens; i++) {
            vec token = v_load(x + i * a->x_stride + k);
            UNROLL
            for (size_t j = 0; j < rows; j++) acc[i][j] = v_fma(token, row[j], acc[i][j]);
        }
    }
    UNROLL
    for (size_t i = 0; i < tokens; i++) UNROLL
    for (size_t j = 0; j < rows; j++) v_store(a->acc[t + i][r + j], acc[i][j]);
}

INLINE void route_rows(const kernel_route *a, size_t r, size_t rows)
{
    size_t t = 0;
    for (; t + ROUTE_TILE <= a->tokens; t += ROUTE_TILE) route_tile(a, t, ROUTE_TILE, r, rows);
    for (; t < a->tokens; t++) route_tile(a, t, 1, r, rows);
}

static void route_dots(const kernel_route *a)
{
    size_t r = 0;
    for (; r + ROUTE_TILE <= a->rows; r += ROUTE_TILE) route_rows(a, r, ROUTE_TILE);
    for (; r < a->rows; r++) route_rows(a, r, 1);
}

static void route_widen(const void *v, moe_dtype dtype, size_t n, float *out)
{
    const uint16_t *half = v;
    size_t i = 0;
    switch (dtype) {
    case MOE_BF16: route_widen_bf16(half, n, out); break;
    case MOE_F16:
        for (; i + KERNEL_LANES <= n; i += KERNEL_LANES)
            v_store(out + i, v_from_f16((const uint8_t *)(half + i)));
        for (; i < n; i++) out[i] = num_from_f16(half[i]);
        break;
    default: memcpy(out, v, n * sizeof *out);
    }
}

#endif

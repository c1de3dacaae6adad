/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_dot.h - a part of kernel_tmpl.h: the dots of one tile of tokens with lines of weights.
 *
 * Owns the decoding of weights in registers, the order of the fmas of a pair of k, prefetching, and
 * what a tile keeps in registers; knows nothing of scales or of where sums go. */
#ifndef MOE_KERNEL_DOT_H
#define MOE_KERNEL_DOT_H

#include "kernel.h"

#define INLINE static inline __attribute__((always_inline))

/* Before a loop over what is kept in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#pragma clang diagnostic ignored "-Wpass-failed" /* where a bound is known only after inlining */
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#ifndef VEC_AHEAD
#define VEC_AHEAD 8704 /* bytes that a panel is prefetched ahead: docs/performance.md */
#endif

/* The sums of a panel, [half][token][row]. */
typedef float panel_sums[2][KERNEL_TOKENS][KERNEL_ROWS];

/* Terms [first, end) of a panel's k and the lines that hold them. */
typedef struct span {
    const kernel_panel *panel;
    const uint8_t *lines;  /* of half 0, term first; scaled: the chunk's section of scales */
    size_t stride, second; /* bytes from line to line of a half; from half 0 to half 1, 0 if none */
    size_t block;          /* scaled: bytes from step to step of a chunk */
    const uint8_t *ahead; /* what is prefetched while the first line is used, and how far on when */
    size_t gap;           /* the next line is */
    size_t first, end;
    const kernel_bf12_escape *escapes; /* bf12: of the span's first chunk */
} span;

/* ---- units of weights: the lines that are decoded together ----------------------------------- */

INLINE size_t unit_pairs(kernel_format f)
{
    switch (kernel_formats[f].element) {
    case ELEMENT_BF16:
    case ELEMENT_F16:
    case ELEMENT_F32: return 1;
    case ELEMENT_E4M3_IEEE:
    case ELEMENT_E4M3FN: return 2;
    default: return 4;
    }
}

INLINE size_t unit_lines(kernel_format f)
{
    switch (kernel_formats[f].element) {
    case ELEMENT_BF12: return 3;
    case ELEMENT_F32:
    case ELEMENT_INT8: return 2;
    default: return 1;
    }
}

typedef struct unit {
    const uint8_t *at;
    line a, b, c, d;
} unit;

INLINE unit unit_load(const uint8_t *at, size_t stride, kernel_format f, kernel_operand o)
{
    unit u;
    u.at = at;
#ifdef VEC_BF16
    if (kernel_formats[f].element == ELEMENT_INT8 && o == OPERAND_BF16) {
        l_int8_bf16(l_load(at), &u.a, &u.b);
        l_int8_bf16(l_load(at + stride), &u.c, &u.d);
        return u;
    }
#endif
    (void)o;
    switch (kernel_formats[f].element) {
    case ELEMENT_F32:
    case ELEMENT_F16: break;
    case ELEMENT_E4M3_IEEE: l_e4m3(l_load(at), 1, &u.a, &u.b); break;
    case ELEMENT_E4M3FN: l_e4m3(l_load(at), 0, &u.a, &u.b); break;
    case ELEMENT_BF12: u.c = l_load(at + 2 * stride); /* fall through */
    case ELEMENT_INT8: u.b = l_load(at + stride);     /* fall through */
    default: u.a = l_load(at);
    }
    return u;
}

/* Pair j (terms 2j and 2j+1 of every row) of a unit as bf16.  table: of bf12's exponents, or of the
 * values of 4-bit codes. */
INLINE line unit_pair(const unit *u, size_t j, kernel_format f, const l_table *table)
{
    switch (f) {
    case FORMAT_BF16: return u->a;
    case FORMAT_MXFP4: return l_e2m1(u->a, (int)j);
    case FORMAT_BF12: return l_bf12(u->a, j < 2 ? u->b : u->c, (int)j, table);
    case FORMAT_INT4_F16_32: return l_nibble(u->a, (int)j, table);
#ifdef VEC_BF16
    case FORMAT_Q8_0:
        return j % 2 == 0 ? l_int8_pair(u->a, u->b, (int)j / 2)
                          : l_int8_pair(u->c, u->d, (int)j / 2);
#endif
    default: return l_e4m3_pair(u->a, u->b, (int)j);
    }
}

/* The same as two vectors of f32, any format. */
INLINE void unit_f32(const unit *u, size_t j, size_t stride, kernel_format f, const l_table *table,
                     vec *even, vec *odd)
{
    if (f == FORMAT_F32) {
        *even = v_load((const float *)(const void *)u->at);
        *odd = v_load((const float *)(const void *)(u->at + stride));
    } else if (f == FORMAT_F16) {
        *even = v_from_f16(u->at);
        *odd = v_from_f16(u->at + KERNEL_LINE / 2);
    } else if (kernel_formats[f].element == ELEMENT_INT8) {
        *even = v_from_byte(j % 2 == 0 ? u->a : u->b, (int)(j / 2));
        *odd = v_from_byte(j % 2 == 0 ? u->a : u->b, (int)(2 + j / 2));
    } else {
        line pair = unit_pair(u, j, f, table);
        *even = v_even(pair);
        *odd = v_odd(pair);
    }
}

/* ---- dots ------------------------------------------------------------------------------------ */

/* What a tile keeps in registers: the dots of so many tokens, halves and blocks. */
typedef struct shape {
    size_t width, halves, blocks;
} shape;

typedef vec accs[2][2][KERNEL_WIDTH]; /* [block][half][token] */

/* Both halves at once if they fit.  Of scaled weights also two steps, whose dots do not wait for each
 * other, if what decoding takes fits beside them; one or two tokens wait for memory instead, which
 * likes lines in order (docs/performance.md). */
INLINE shape shape_of(size_t width, kernel_format f, kernel_operand o)
{
    const size_t halves = 2 * width <= VEC_SUMS ? 2 : 1;
    const int wide = kernel_formats[f].element == ELEMENT_E4M3FN ||
                     (kernel_formats[f].element == ELEMENT_INT8 && o == OPERAND_BF16);
    const size_t room = wide ? VEC_SUMS / 3 : o == OPERAND_INT8 ? VEC_SUMS * 2 / 3 : VEC_SUMS;
    const int both = kernel_is_scaled(f) && width > 2 && 2 * halves * width <= room;
    return (shape){width, halves, both ? 2 : 1};
}

INLINE void accs_clear(shape n, accs acc)
{
    UNROLL
    for (size_t b = 0; b < n.blocks; b++) UNROLL
    for (size_t m = 0; m < n.halves; m++) UNROLL
    for (size_t t = 0; t < n.width; t++) acc[b][m][t] = v_zero();
}

INLINE size_t pair_bytes(size_t width, kernel_operand o)
{
    return width * (o == OPERAND_BF16 ? 1 : 2) * sizeof(uint32_t);
}

/* acc[t] = fma(x[2j], w[2j], fma(x[2j+1], w[2j+1], acc[t])) for both halves of a pair of one
 * block. */
INLINE void dot_pair(const unit *u, size_t j, size_t stride, const uint8_t *x, shape n,
                     kernel_format f, kernel_operand o, const l_table *table,
                     vec acc[2][KERNEL_WIDTH])
{
#ifdef VEC_BF16
    if (o == OPERAND_BF16) {
        line w[2];
        UNROLL
        for (size_t m = 0; m < n.halves; m++) w[m] = unit_pair(&u[m], j, f, table);
        UNROLL
        for (size_t t = 0; t < n.width; t++) {
            line pair = l_word(x + t * sizeof(uint32_t));
            UNROLL
            for (size_t m = 0; m < n.halves; m++) acc[m][t] = v_dot_bf16(acc[m][t], w[m], pair);
        }
        return;
    }
#endif
    const float *xf = (const float *)(const void *)x;
    vec even[2], odd[2];
#ifdef VEC_FEW
    UNROLL
    for (size_t m = 0; m < n.halves; m++) {
        unit_f32(&u[m], j, stride, f, table, &even[m], &odd[m]);
        UNROLL
        for (size_t t = 0; t < n.width; t++)
            acc[m][t] =
                v_fma(v_set1(xf[t]), even[m], v_fma(v_set1(xf[n.width + t]), odd[m], acc[m][t]));
    }
#else
    UNROLL
    for (size_t m = 0; m < n.halves; m++) unit_f32(&u[m], j, stride, f, table, &even[m], &odd[m]);
    UNROLL
    for (size_t t = 0; t < n.width; t++) {
        vec x1 = v_set1(xf[n.width + t]), x0 = v_set1(xf[t]);
        UNROLL
        for (size_t m = 0; m < n.halves; m++)
            acc[m][t] = v_fma(x0, even[m], v_fma(x1, odd[m], acc[m][t]));
    }
#endif
    (void)o;
}

/* The first `pairs` pairs of a unit of each block; x: the tile's words of its first pair, x_block
 * bytes from block to block. */
INLINE void dot_unit(const uint8_t *at, const span *s, size_t pairs, const uint8_t *x,
                     size_t x_block, shape n, kernel_format f, kernel_operand o,
                     const l_table *table, accs acc)
{
    unit u[2][2];
    UNROLL
    for (size_t b = 0; b < n.blocks; b++) UNROLL
    for (size_t m = 0; m < n.halves; m++)
        u[b][m] = unit_load(at + b * s->block + m * s->second, s->stride, f, o);
    UNROLL
    for (size_t j = 0; j < unit_pairs(f); j++) {
        if (j >= pairs) break;
        UNROLL
        for (size_t b = 0; b < n.blocks; b++)
            dot_pair(u[b], j, s->stride, x + b * x_block + j * pair_bytes(n.width, o), n, f, o,
                     table, acc[b]);
    }
}

/* What is prefetched while the line at `at` is used: in the order of addresses, whatever that of
 * use is. */
INLINE const uint8_t *ahead_of(const span *s, const uint8_t *at)
{
    return s->ahead + (size_t)(at - s->lines) / KERNEL_LINE * s->gap;
}

INLINE const uint8_t *prefetch_lines(const uint8_t *ahead, size_t gap, size_t lines)
{
    UNROLL
    for (size_t i = 0; i < lines; i++, ahead += gap) l_prefetch(ahead);
    return ahead;
}

/* All pairs of `units` units of each block; at: the first block's lines; x_block: bytes from block to
 * block of the tile. */
INLINE void dot_units(const uint8_t *at, const uint8_t *ahead, const span *s, size_t units,
                      const uint8_t *x, size_t x_block, shape n, kernel_format f, kernel_operand o,
                      const l_table *table, accs acc)
{
    const size_t lines = unit_lines(f), per = unit_pairs(f);
    for (; units > 0; units--) {
        ahead = prefetch_lines(ahead, s->gap, 2 * lines * n.blocks);
        dot_unit(at, s, per, x, x_block, n, f, o, table, acc);
        at += lines * s->stride;
        x += per * pair_bytes(n.width, o);
    }
}

/* All pairs of `terms` terms of each block, which may end within a unit. */
INLINE void dot_terms(const uint8_t *at, const span *s, size_t terms, const uint8_t *x, shape n,
                      kernel_format f, kernel_operand o, const l_table *table, accs acc)
{
    const size_t per = unit_pairs(f), units = terms / 2 / per, pairs = terms / 2 % per;
    const size_t x_block = terms / 2 * pair_bytes(n.width, o);
    dot_units(at, ahead_of(s, at), s, units, x, x_block, n, f, o, table, acc);
    at += units * unit_lines(f) * s->stride;
    x += units * per * pair_bytes(n.width, o);
    if (pairs > 0) dot_unit(at, s, pairs, x, x_block, n, f, o, table, acc);
}

/* ---- bf12: chunks with escapes --------------------------------------------------------------- */

/* The chunk's lines as those of a bf16 panel, escapes in their places. */
static void bf12_patch(const uint8_t *at, const span *s, size_t terms,
                       const kernel_bf12_escape *escapes, size_t count, const l_table *table,
                       uint8_t *wide)
{
    for (size_t j = 0; j < terms / 2; j++)
        for (size_t m = 0; m < 2; m++) {
            unit u = unit_load(at + j / 4 * 3 * s->stride + m * s->second, s->stride, FORMAT_BF12,
                               OPERAND_F32);
            line pair = j % 4 == 0   ? unit_pair(&u, 0, FORMAT_BF12, table)
                        : j % 4 == 1 ? unit_pair(&u, 1, FORMAT_BF12, table)
                        : j % 4 == 2 ? unit_pair(&u, 2, FORMAT_BF12, table)
                                     : unit_pair(&u, 3, FORMAT_BF12, table);
            l_store(wide + (2 * j + m) * KERNEL_LINE, pair);
        }
    for (size_t i = 0; i < count; i++) {
        size_t row = escapes[i].place % KERNEL_ROWS, k = escapes[i].place / KERNEL_ROWS;
        size_t m = k / KERNEL_BLOCK, at_line = 2 * (k % KERNEL_BLOCK / 2) + m;
        memcpy(wide + at_line * KERNEL_LINE + 4 * row + 2 * (k % 2), &escapes[i].value,
               sizeof escapes[i].value);
    }
}

INLINE void dot_bf12(const span *s, size_t m, const uint8_t *x, shape n, kernel_operand o, accs acc)
{
    const kernel_bf12_head *head = (const kernel_bf12_head *)(const void *)s->panel->stream;
    const uint8_t *counts = s->panel->stream + sizeof *head + s->first / KERNEL_BLOCK;
    const uint8_t *at = s->lines;
    const kernel_bf12_escape *escapes = s->escapes;
    const l_table table = l_bf12_table(head->exponent);
    for (size_t k = s->first; k < s->end; k += KERNEL_BLOCK, counts++) {
        size_t terms = s->end - k < KERNEL_BLOCK ? s->end - k : KERNEL_BLOCK;
        if (__builtin_expect(*counts != 0, 0)) {
            uint8_t wide[KERNEL_BLOCK * KERNEL_LINE] __attribute__((aligned(KERNEL_ALIGN)));
            const span ready = {.panel = s->panel,
                                .lines = wide,
                                .stride = 2 * KERNEL_LINE,
                                .second = KERNEL_LINE,
                                .ahead = ahead_of(s, at),
                                .gap = s->gap};
            bf12_patch(at, s, terms, escapes, *counts, &table, wide);
            dot_terms(wide + m * KERNEL_LINE, &ready, terms, x, n, FORMAT_BF16, o, NULL, acc);
            escapes += *counts;
        } else {
            dot_terms(at + m * s->second, s, terms, x, n, FORMAT_BF12, o, &table, acc);
        }
        at += KERNEL_BLOCK / 8 * 3 * s->stride;
        x += KERNEL_BLOCK / 2 * pair_bytes(n.width, o);
    }
}

#endif

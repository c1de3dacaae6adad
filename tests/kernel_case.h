/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_case.h - panels, operands and guarded memory for calls of single kernels: src/kernel.h
 * read by someone who is not pack.c.
 *
 * All values come from the seed.  Panels and operands lie flush with a page that cannot be
 * touched, at their end or at their start. */
#ifndef MOE_TEST_KERNEL_CASE_H
#define MOE_TEST_KERNEL_CASE_H

#include <stdbool.h>

#include "kernel.h"

/* Whole pages between two that cannot be touched. */
typedef struct guarded {
    uint8_t *first, *end;
} guarded;

guarded guarded_new(size_t bytes);

/* bytes of it, at its end or start, filled with 0xC3. */
void *guarded_at(const guarded *g, size_t bytes, bool at_end);

typedef enum case_data {
    CASE_NORMAL, /* around 1 */
    /* a quarter of the rows each: around 1, any bits, many subnormals and zeros, any finite
     * number; so tokens too, with a single NaN or infinity in some; so scales, NaN, infinite,
     * subnormal and zero ones among them */
    CASE_WILD,
    CASE_EXTREME, /* the largest weights, saturated int8, tiny and huge operands */
    CASE_DATA
} case_data;

typedef struct kernel_case {
    uint64_t seed;
    kernel_format format;
    kernel_operand operand;
    case_data data;
    size_t k, halves, tokens;
    bool scale, bias;    /* f32 rows */
    const float *factor; /* gate_up: of each token, or NULL */
    bool at_end;         /* where everything lies in its pages */
    /* the code of term k of a row (bf12: the bf16), or NULL: drawn */
    uint32_t (*code)(const struct kernel_case *c, size_t half, size_t row, size_t k);
    const void *user; /* of code */
    /* made by case_make */
    kernel_panel panel;
    size_t words;        /* of an operand row */
    uint32_t *row;       /* [tokens][words] */
    size_t scalar_words; /* the same operands as kernel_table_scalar takes them */
    uint32_t *scalar_row;
} kernel_case;

enum { CASE_MAX_K = 2080 };

/* Builds it in memory that the next case_make uses again. */
void case_make(kernel_case *c);

/* The rows as tiles of width tokens; scalar: those of scalar_row, width 1. */
kernel_tiles case_tiles(const kernel_case *c, size_t width, bool scalar);

/* The code of term k of a row, and of a scale: of run n, with PART_D and PART_DMIN of chunk n. */
uint32_t case_code(const kernel_case *c, size_t half, size_t row, size_t k);
uint32_t case_scale(const kernel_case *c, kernel_part part, size_t half, size_t row, size_t n);

/* Bytes of the panel's stream, a bf12 head among them. */
size_t case_panel_bytes(const kernel_case *c);

/* "bf16", ... */
const char *case_format_name(kernel_format f);
const char *case_operand_name(kernel_operand o);

/* Draw number n of the seed. */
uint64_t case_random(uint64_t seed, uint64_t n);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* bench_weights.h - the formats of weights that are timed, and random weights of them, row-major as
 * checkpoints have them. */
#ifndef MOE_BENCH_WEIGHTS_H
#define MOE_BENCH_WEIGHTS_H

#include "shapes.h"

#include <stddef.h>

typedef enum bench_format {
    BENCH_BF16,
    BENCH_BF16_LOSSLESS, /* bf16, packed without loss in fewer bits */
    BENCH_FP16,
    BENCH_FP8_ROW,     /* e4m3fn, f32 scale per row */
    BENCH_FP8_STATIC,  /* e4m3fn, f32 scale per matrix */
    BENCH_FP8_CHANNEL, /* e4m3fn, bf16 scale per row */
    BENCH_FP8_BLOCK,   /* e4m3fn, f32 scale per 128 x 128 */
    BENCH_MXFP8,       /* e4m3fn, e8m0 scale per 32 */
    BENCH_MXFP4,       /* e2m1, e8m0 scale per 32 */
    BENCH_NVFP4,       /* e2m1, e4m3fn scale per 16 and f32 scale per matrix */
    BENCH_INT4_G32,    /* 4-bit integers, bf16 scale per 32 */
    BENCH_INT4_G64,
    BENCH_INT4_G128,
    BENCH_Q8_0, /* blocks of GGUF */
    BENCH_Q4_0,
    BENCH_Q4_K,
    BENCH_Q5_K,
    BENCH_Q6_K,
    BENCH_FORMATS
} bench_format;

bool bench_format_from_name(const char *text, bench_format *format);
const char *bench_format_name(bench_format format);

/* Why the operator refuses the mode with these weights, or the weights at this shape; NULL: it does
 * not. */
const char *bench_refusal(const shape *s, bench_format format, moe_act_mode act);

enum { BENCH_MATRICES = 3 }; /* gate, up, down */

/* The arrays of a matrix. */
typedef enum bench_array {
    BENCH_WEIGHTS,
    BENCH_SCALE,
    BENCH_ROW_SCALE,
    BENCH_BIAS,
    BENCH_ARRAYS
} bench_array;

size_t bench_rows(const shape *s, int matrix);
size_t bench_terms(const shape *s, int matrix);

/* Bytes of an array; 0: there is none. */
size_t bench_array_bytes(const shape *s, bench_format format, int matrix, bench_array array);

/* A matrix as moe_experts_create takes it, without data; all arrays dense. */
moe_matrix bench_matrix(const shape *s, bench_format format, int matrix);

/* Random weights to be drawn from, and an array of a matrix out of them. */
enum { BENCH_TABLE = 1 << 16, BENCH_TABLE_BYTES = 2 * BENCH_TABLE };
void bench_table_make(uint8_t *table, const shape *s, bench_format format, int matrix,
                      uint64_t seed);
void bench_array_fill(uint8_t *p, const shape *s, bench_format format, int matrix,
                      bench_array array, const uint8_t *table, uint64_t *state);

#endif

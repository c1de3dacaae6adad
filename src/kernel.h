/* SPDX-License-Identifier: Apache-2.0 */
/* kernel.h - THE CONTRACT between the data path and the kernels: packed panels, operands, kernel
 * tables.
 *
 * pack.c is the only writer of panels, quantize.c the only writer of operands, src/isa/ holds
 * the only readers.  A kernel gives the bits that docs/numerics.md defines; src/isa/scalar.c is
 * that definition in C.
 *
 * PANELS.  A panel is KERNEL_ROWS output rows and their whole k axis: one stream of 64-byte
 * lines, read once from front to back.  gate_up panels hold the same rows of gate and of up, so
 * that an operand is read once for both.  Rows past the last and k past the last are zero codes.
 *
 *   one line, row r in the 32 bits at byte 4 r: 1 k of f32, 2 of 16 bits, 4 of 8 bits, 8 of 4 bits.
 *   Even k fill the low 16 bits from the bottom, odd k the high 16 bits, so that a shift leaves a
 *   pair (2j, 2j+1) at the bottom of the two halves.
 *
 *   plain panel      lines j = 0, 1, ...: gate line j, up line j (gate_up), or line j (down)
 *   MX panel         groups of 2 (gate_up) or 4 (down) blocks: a line of scale bytes (block,
 *                    matrix, row; 127 for blocks past the last), then the blocks' lines: gate 0,
 *                    up 0, gate 1, up 1, ... or line 0, line 1, ...
 *
 * k and the blocks are those of docs/numerics.md section 3, in its order.
 *
 * OPERANDS.  The rows x of one token (or of one token and expert, for the down product) are made
 * of 32-bit words:
 *   OPERAND_F32    k floats, k even, zero past the last
 *   OPERAND_BF16   k / 2 words: k = 2j in the low half, 2j+1 in the high half
 *   OPERAND_INT8   k / 4 words of codes, in each 8 k the words k0 k4 k1 k5 and k2 k6 k3 k7 as the
 *                  nibbles of a 4-bit line lie; k / 32 floats, half the block's scale; k / 32
 *                  int32, -12 times the sum of the block's codes
 * A tile is the rows of `width` tokens, word by word: word n of token t is at [n * width + t].
 * KERNEL_ALIGN-aligned. */
#ifndef MOE_KERNEL_H
#define MOE_KERNEL_H

#include <moe_tkg.h>

enum {
    KERNEL_ROWS = 16,    /* output rows of a panel */
    KERNEL_LINE = 64,    /* bytes of a line: 4 for each row */
    KERNEL_ALIGN = 64,   /* of panels, operands and f32 rows */
    KERNEL_BLOCK = 32,   /* k of an MX block */
    KERNEL_PLAIN = 512,  /* k of a plain block */
    KERNEL_TOKENS = 128, /* tokens that one kernel call takes at most */
    KERNEL_WIDTH = 12    /* tokens of the widest tile */
};

/* Element formats.  MX ones have an e8m0 scale for each KERNEL_BLOCK k of a row. */
typedef enum kernel_format {
    FORMAT_BF16,
    FORMAT_F16,
    FORMAT_F32,
    FORMAT_E4M3_IEEE,
    FORMAT_E4M3FN,
    FORMAT_MXFP8,
    FORMAT_MXFP4,
    FORMAT_COUNT
} kernel_format;

typedef enum kernel_operand {
    OPERAND_F32,
    OPERAND_BF16,
    OPERAND_INT8,
    OPERAND_COUNT
} kernel_operand;

/* The operands of the tokens of one expert: tiles of `width` tokens, the last of what is left,
 * each tile_bytes after the one before. */
typedef struct kernel_tiles {
    const uint8_t *x;
    size_t tokens; /* 1 .. KERNEL_TOKENS */
    size_t width;  /* 1 .. KERNEL_WIDTH */
    size_t tile_bytes;
} kernel_tiles;

/* What happens between the sums and m.  Limits that are not given are infinite; up_offset -0
 * adds nothing. */
typedef struct kernel_point {
    moe_activation activation; /* SILU and SWIGLU arrive as SWISH with their alpha */
    float alpha, up_offset;
    float gate_upper, gate_lower, up_upper, up_lower;
} kernel_point;

/* The f32 values beside a panel's rows, KERNEL_ROWS of each; NULL: none. */
typedef struct kernel_rows {
    const float *scale, *bias;
} kernel_rows;

/* mid[n][r] = act(gate[r] . x[n]) * (up[r] . x[n])     for n < tokens, r < KERNEL_ROWS */
typedef struct kernel_gate_up {
    const uint8_t *panel;
    size_t k; /* plain: padded to even; MX: a multiple of KERNEL_BLOCK */
    kernel_tiles tiles;
    kernel_rows gate, up;
    const kernel_point *point;
    float *mid;        /* row n at mid + n * mid_stride */
    size_t mid_stride; /* floats */
} kernel_gate_up;

/* y[n][r] = down[r] . x[n] */
typedef struct kernel_down {
    const uint8_t *panel;
    size_t k;
    kernel_tiles tiles;
    kernel_rows down;
    float *y;
    size_t y_stride;
} kernel_down;

/* Kernels read panels and operands only inside what k says and write KERNEL_ROWS floats for each
 * token.  They run in the canonical floating-point environment, allocate nothing and cannot
 * fail.  A slot is NULL where no mode needs it. */
typedef void kernel_gate_up_fn(const kernel_gate_up *a);
typedef void kernel_down_fn(const kernel_down *a);

typedef struct kernel_table {
    const char *isa;
    size_t width; /* of the widest tile that its kernels like, at most KERNEL_WIDTH */
    kernel_gate_up_fn *gate_up[FORMAT_COUNT][OPERAND_COUNT];
    kernel_down_fn *down[FORMAT_COUNT][OPERAND_COUNT];
} kernel_table;

extern const kernel_table kernel_table_scalar;
#if defined(__x86_64__)
extern const kernel_table kernel_table_avx2, kernel_table_avx512, kernel_table_avx512vnni,
    kernel_table_avx512bf16;
#elif defined(__aarch64__)
extern const kernel_table kernel_table_neon, kernel_table_neon_dotprod;
#endif

static inline int kernel_is_mx(kernel_format f)
{
    return f == FORMAT_MXFP8 || f == FORMAT_MXFP4;
}

/* Which of 8 neighbouring k is code number i of an OPERAND_INT8 row. */
static inline size_t kernel_int8_k(size_t i)
{
    return (i & 1) * 4 + (i >> 1 & 1) + (i >> 2 & 1) * 2;
}

/* Bits of one element. */
static inline size_t kernel_bits(kernel_format f)
{
    return f == FORMAT_F32                       ? 32
           : f == FORMAT_BF16 || f == FORMAT_F16 ? 16
           : f == FORMAT_MXFP4                   ? 4
                                                 : 8;
}

/* k of one line. */
static inline size_t kernel_line_k(kernel_format f)
{
    return 32 / kernel_bits(f);
}

/* Bytes of the lines of one MX block and one matrix. */
static inline size_t kernel_block_bytes(kernel_format f)
{
    return KERNEL_ROWS * KERNEL_BLOCK * kernel_bits(f) / 8;
}

/* Blocks that share a line of scale bytes in a panel of 1 (down) or 2 (gate and up) matrices. */
static inline size_t kernel_group(size_t matrices)
{
    return KERNEL_LINE / (KERNEL_ROWS * matrices);
}

/* Where an MX panel has the lines of block n (gate and up interleaved), and its scale bytes
 * [matrix][row]. */
static inline size_t kernel_block_at(kernel_format f, size_t matrices, size_t n)
{
    return (n / kernel_group(matrices) + 1) * KERNEL_LINE + n * matrices * kernel_block_bytes(f);
}

static inline size_t kernel_scale_at(kernel_format f, size_t matrices, size_t n)
{
    size_t first = n - n % kernel_group(matrices);
    return kernel_block_at(f, matrices, first) - KERNEL_LINE + (n - first) * matrices * KERNEL_ROWS;
}

/* Bytes of a panel's stream for k terms. */
static inline size_t kernel_panel_bytes(kernel_format f, size_t matrices, size_t k)
{
    if (!kernel_is_mx(f))
        return (k + kernel_line_k(f) - 1) / kernel_line_k(f) * matrices * KERNEL_LINE;
    size_t blocks = k / KERNEL_BLOCK, group = kernel_group(matrices);
    return (blocks + group - 1) / group * KERNEL_LINE + blocks * matrices * kernel_block_bytes(f);
}

#endif

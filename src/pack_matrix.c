/* SPDX-License-Identifier: Apache-2.0 */
/* pack_matrix.c - lines from matrices with strides.
 *
 * Where the terms of a row are neighbours, 16 bytes of four rows are transposed at a time; where
 * the rows of a term are, as in the operator's tensors, they are interleaved.  Everything else,
 * and what is left over at the ends, goes element by element. */
#include "pack_lines.h"
#include "shuffle.h"
#include "sizes.h"

/* ---- element by element ---------------------------------------------------------------------- */

static uint32_t element(const pack_matrix *m, size_t row, size_t k)
{
    if (row >= m->rows || k >= m->k) return 0;
    const uint8_t *at = m->data + row * m->row_stride;
    uint32_t word;
    uint16_t half;
    switch (kernel_bits(m->format)) {
    case 4: return (uint32_t)at[k / 2] >> k % 2 * 4 & 15u;
    case 8: return at[k * m->column_stride];
    case 16: memcpy(&half, at + k * m->column_stride, sizeof half); return half;
    default: memcpy(&word, at + k * m->column_stride, sizeof word); return word;
    }
}

static void any_line(const pack_matrix *m, size_t row, size_t k, uint8_t *dst)
{
    uint32_t line[KERNEL_LINE / 4] = {0};
    for (size_t n = 0; n < kernel_line_k(m->format); n++)
        for (size_t r = 0; r < KERNEL_ROWS; r++) {
            size_t bit = kernel_bit_at(m->format, r, n);
            line[bit / 32] |= element(m, row + r, k + n) << bit % 32;
        }
    memcpy(dst, line, sizeof line);
}

/* ---- terms that are neighbours --------------------------------------------------------------- */

enum { STEP = 16, STEP_LINES = 4 }; /* bytes of a row at a time, and the lines they go to */

/* The nibbles of k0, k1, ... k7 to k0 k2 k4 k6 k1 k3 k5 k7. */
static inline u8x16 part_nibbles(u8x16 v)
{
    u32x4 x = (u32x4)v, t = (x ^ x >> 4) & 0x00F000F0u;
    x ^= t ^ t << 4;
    t = (x ^ x >> 8) & 0x0000FF00u;
    return (u8x16)(x ^ t ^ t << 8);
}

/* The first 8 terms of two rows and the next 8, for four rows, to pairs of int8 lines. */
static inline void part_bytes(u8x16 line[STEP_LINES])
{
    for (size_t j = 0; j < STEP_LINES; j += 2) {
        u8x16 low = shuffle_low8(line[j], line[j + 1]), high = shuffle_high8(line[j], line[j + 1]);
        line[j] = shuffle_even32(low, high);
        line[j + 1] = shuffle_odd32(low, high);
    }
}

/* STEP bytes of rows r .. r + 3 at src; dst: of row r in line 0. */
static inline void transpose(const uint8_t *src, size_t stride, size_t r, kernel_format f,
                             uint8_t *dst, const size_t *at)
{
    u8x16 a = shuffle_load(src), b = shuffle_load(src + stride), c = shuffle_load(src + 2 * stride),
          d = shuffle_load(src + 3 * stride), line[STEP_LINES];
    const bool int8 = kernel_formats[f].element == ELEMENT_INT8;
    if ((kernel_bits(f) == 8 && !int8) || f == FORMAT_F16) {
        u8x16 ab = shuffle_low16(a, b), cd = shuffle_low16(c, d);
        line[0] = shuffle_low32(ab, cd);
        line[1] = shuffle_high32(ab, cd);
        ab = shuffle_high16(a, b);
        cd = shuffle_high16(c, d);
        line[2] = shuffle_low32(ab, cd);
        line[3] = shuffle_high32(ab, cd);
    } else {
        u8x16 ab = shuffle_low32(a, b), cd = shuffle_low32(c, d);
        line[0] = shuffle_low64(ab, cd);
        line[1] = shuffle_high64(ab, cd);
        ab = shuffle_high32(a, b);
        cd = shuffle_high32(c, d);
        line[2] = shuffle_low64(ab, cd);
        line[3] = shuffle_high64(ab, cd);
    }
    if (int8) part_bytes(line);
    for (size_t j = 0; j < STEP_LINES; j++)
        if (f == FORMAT_F16) {
            memcpy(dst + at[j] + 2 * r, (const char *)&line[j], 8);
            memcpy(dst + at[j] + 2 * r + 32, (const char *)&line[j] + 8, 8);
        } else {
            shuffle_store(dst + at[j] + 4 * r,
                          kernel_bits(f) == 4 ? part_nibbles(line[j]) : line[j]);
        }
}

/* src: term k of the half's first row; lines: a multiple of STEP_LINES. */
static inline void row_lines(const uint8_t *src, size_t stride, kernel_format f, size_t lines,
                             uint8_t *dst, const size_t *at)
{
    for (size_t r = 0; r < KERNEL_ROWS; r += 4)
        for (size_t j = 0; j < lines; j += STEP_LINES)
            transpose(src + r * stride + j * (STEP / STEP_LINES), stride, r, f, dst, at + j);
}

void pack_row_lines(const uint8_t *src, size_t stride, kernel_format f, size_t lines, uint8_t *dst,
                    const size_t *at)
{
    if (kernel_bits(f) == 4)
        row_lines(src, stride, FORMAT_MXFP4, lines, dst, at);
    else
        row_lines(src, stride, FORMAT_Q8_0, lines, dst, at);
}

/* ---- rows that are neighbours ---------------------------------------------------------------- */

/* src: the terms of one line, each 16 rows, stride apart. */
static inline void column_line(const uint8_t *src, size_t stride, kernel_format f, uint8_t *dst)
{
    if (kernel_bits(f) == 32) {
        memcpy(dst, src, KERNEL_LINE);
    } else if (f == FORMAT_F16) {
        memcpy(dst, src, KERNEL_LINE / 2);
        memcpy(dst + KERNEL_LINE / 2, src + stride, KERNEL_LINE / 2);
    } else if (f == FORMAT_BF16) {
        for (size_t n = 0; n < 2; n++) {
            u8x16 a = shuffle_load(src + 16 * n), b = shuffle_load(src + stride + 16 * n);
            shuffle_store(dst + 32 * n, shuffle_low16(a, b));
            shuffle_store(dst + 32 * n + 16, shuffle_high16(a, b));
        }
    } else {
        u8x16 a = shuffle_load(src), b = shuffle_load(src + stride),
              c = shuffle_load(src + 2 * stride), d = shuffle_load(src + 3 * stride);
        u8x16 ab = shuffle_low8(a, b), cd = shuffle_low8(c, d);
        shuffle_store(dst, shuffle_low64(ab, cd));
        shuffle_store(dst + 16, shuffle_high64(ab, cd));
        ab = shuffle_high8(a, b);
        cd = shuffle_high8(c, d);
        shuffle_store(dst + 32, shuffle_low64(ab, cd));
        shuffle_store(dst + 48, shuffle_high64(ab, cd));
    }
}

/* src: term k of the run's first row. */
static inline void column_lines(const uint8_t *src, size_t stride, kernel_format f, size_t halves,
                                size_t lines, uint8_t *const *dst, const size_t *at)
{
    size_t bytes = KERNEL_ROWS * kernel_bits(f) / 8;
    for (size_t j = 0; j < lines; j++)
        for (size_t n = 0; n < halves; n++)
            column_line(src + j * kernel_line_k(f) * stride + n * bytes, stride, f, dst[n] + at[j]);
}

/* ---- runs ------------------------------------------------------------------------------------ */

pack_matrix pack_matrix_of(const pack_run *r)
{
    const moe_array *w = &r->s->matrix[r->matrix].weights;
    const axis *a = &r->s->axis;
    bool down = r->matrix == PACK_DOWN;
    return (pack_matrix){pack_element(w, r->e, 0, 0), (size_t)w->row_stride,
                         (size_t)w->column_stride,    down ? a->H : a->I,
                         down ? a->I : a->H,          r->format};
}

/* Lines of a format's rows; f is a constant in each copy. */
static inline void fast_lines(const pack_run *r, const pack_matrix *m, kernel_format f, bool rows,
                              size_t halves, size_t k, size_t lines, const size_t *at)
{
    const uint8_t *src = m->data + r->row * m->row_stride + k * kernel_bits(f) / 8;
    if (!rows) {
        src = m->data + r->row * m->row_stride + k * m->column_stride;
        column_lines(src, m->column_stride, f, halves, lines, r->dst, at);
        return;
    }
    for (size_t n = 0; n < halves; n++)
        row_lines(src + n * KERNEL_ROWS * m->row_stride, m->row_stride, f, lines, r->dst[n], at);
}

void pack_matrix_lines(const pack_run *r, const pack_matrix *m, size_t k, size_t lines,
                       const size_t *at)
{
    kernel_format f = m->format;
    size_t line_k = kernel_line_k(f), bits = kernel_bits(f);
    bool rows = m->column_stride == (bits + 7) / 8, columns = m->row_stride * 8 == bits;
    /* whole halves, and lines whose terms all exist */
    size_t halves =
        r->row < m->rows ? size_smaller(r->halves, (m->rows - r->row) / KERNEL_ROWS) : 0;
    size_t whole = k < m->k ? size_smaller(lines, (m->k - k) / line_k) : 0;
    if (rows) whole -= whole % STEP_LINES;
    if (!rows && !columns) halves = 0;
    kernel_format like = bits == 4 ? FORMAT_MXFP4 : bits == 8 ? FORMAT_E4M3FN : f;
    if (halves > 0 && whole > 0) switch (like) {
        case FORMAT_BF16: fast_lines(r, m, FORMAT_BF16, rows, halves, k, whole, at); break;
        case FORMAT_F16: fast_lines(r, m, FORMAT_F16, rows, halves, k, whole, at); break;
        case FORMAT_F32: fast_lines(r, m, FORMAT_F32, rows, halves, k, whole, at); break;
        case FORMAT_MXFP4: fast_lines(r, m, FORMAT_MXFP4, rows, halves, k, whole, at); break;
        default: fast_lines(r, m, FORMAT_E4M3FN, rows, halves, k, whole, at); break;
        }
    for (size_t n = 0; n < r->halves; n++)
        for (size_t j = n < halves ? whole : 0; j < lines; j++)
            any_line(m, r->row + n * KERNEL_ROWS, k + j * line_k, r->dst[n] + at[j]);
}

/* FP8_BLOCK: the f32 of each row, out of a grid whose elements are of scale_rows rows. */
static void grid_scales(const pack_run *r, size_t half, size_t rows, size_t run)
{
    const moe_matrix *m = &r->s->matrix[r->matrix];
    uint8_t *dst = pack_scale(r, half, PART_SCALE, run);
    for (size_t i = 0, row = r->row + half * KERNEL_ROWS; i < rows; i++, row++) {
        float f = pack_float(pack_element(&m->scale, r->e, row / (size_t)m->scale_rows, run),
                             m->scale.dtype);
        memcpy(dst + i * sizeof f, &f, sizeof f);
    }
}

void pack_matrix_scales(const pack_run *r, size_t first, size_t runs)
{
    const moe_array *s = &r->s->matrix[r->matrix].scale;
    const axis *a = &r->s->axis;
    size_t rows = r->matrix == PACK_DOWN ? a->H : a->I, k = r->matrix == PACK_DOWN ? a->I : a->H;
    size_t bytes = kernel_scale_bytes(r->format), stride = (size_t)s->row_stride;
    size_t end = size_smaller(first + runs, size_pieces(k, kernel_formats[r->format].scale_k));
    for (size_t n = 0; n < r->halves; n++) {
        size_t row = r->row + n * KERNEL_ROWS;
        size_t count = row < rows ? size_smaller(rows - row, KERNEL_ROWS) : 0;
        for (size_t run = first; count > 0 && run < end; run++) {
            const uint8_t *src = pack_element(s, r->e, row, run);
            uint8_t *dst = pack_scale(r, n, PART_SCALE, run);
            if (bytes == 1)
                for (size_t i = 0; i < count; i++) dst[i] = src[i * stride];
            else if (bytes == 2)
                for (size_t i = 0; i < count; i++) memcpy(dst + 2 * i, src + i * stride, 2);
            else
                grid_scales(r, n, count, run);
        }
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* pack_lines.h - the parts of pack.c that read a source: matrices with strides (pack_matrix.c),
 * blocks with their own scales (pack_blocks.c) and tensors of x4 words (pack_words.c).  All write
 * lines of neighbouring halves. */
#ifndef MOE_PACK_LINES_H
#define MOE_PACK_LINES_H

#include "numeric.h"
#include "pack.h"

enum { PACK_GATE, PACK_UP, PACK_DOWN, PACK_MATRICES };

enum {
    PACK_HALVES = 2 * PACK_RUN, /* of a run, at most */
    PACK_LINES = 64             /* lines of a half that one call writes at most */
};

/* Neighbouring halves of one matrix of one expert, and where they go: half n is number half[n] of
 * the panel_halves of the panel at stream[n]; its line j goes to dst[n] + at[j], with an at for each
 * call. */
typedef struct pack_run {
    const pack_source *s;
    size_t e, matrix;
    kernel_format format;
    size_t row; /* the first */
    size_t halves, panel_halves;
    size_t half[PACK_HALVES];
    uint8_t *stream[PACK_HALVES], *dst[PACK_HALVES];
} pack_run;

/* The matrix of a run in memory.  Rows and terms past the last are zeros. */
typedef struct pack_matrix {
    const uint8_t *data; /* of the expert */
    size_t row_stride, column_stride;
    size_t rows, k;
    kernel_format format;
} pack_matrix;

pack_matrix pack_matrix_of(const pack_run *r);

/* `lines` lines from term k on, which is the first of a line. */
void pack_matrix_lines(const pack_run *r, const pack_matrix *m, size_t k, size_t lines,
                       const size_t *at);

/* The scales of `runs` runs of terms from run `first` on; those past the last row or term stay as
 * they are. */
void pack_matrix_scales(const pack_run *r, size_t first, size_t runs);

/* STEP bytes of neighbouring terms of KERNEL_ROWS rows, stride apart, to lines: a multiple of 4. */
void pack_row_lines(const uint8_t *src, size_t stride, kernel_format f, size_t lines, uint8_t *dst,
                    const size_t *at);

/* Whether a matrix is of blocks, and their lines and scales: those of terms k .. k + n, whole blocks
 * and at most PACK_LINES lines. */
bool pack_is_blocks(const moe_matrix *m);
void pack_block_span(const pack_run *r, size_t k, size_t n, const size_t *at);

/* Where a run's rows are in a tensor of x4 words: the column of each, AXIS_PAD for a pad lane. */
typedef struct pack_words {
    size_t column[PACK_HALVES][KERNEL_ROWS];
} pack_words;

void pack_words_of(const pack_run *r, pack_words *w);

/* The lines of one block, and its scale bytes; those of pad rows stay as they are. */
void pack_word_lines(const pack_run *r, const pack_words *w, size_t block, const size_t *at);
void pack_word_scales(const pack_run *r, const pack_words *w, size_t block);

/* Neighbouring panels: two runs of halves, gate and up, or one of neighbouring rows. */
typedef struct pack_panels {
    kernel_format format;
    size_t halves; /* of each panel */
    size_t runs;
    pack_run run[2];
    pack_matrix matrix[2];
    pack_words words[2];
} pack_panels;

/* Panels [first, first + count) of gate_up or of down, with the same number of halves each; their
 * lines go to stream[]. */
void pack_panels_of(const pack_source *s, size_t e, bool down, size_t first, size_t count,
                    size_t halves, uint8_t *const *stream, pack_panels *p);

/* Plain: `lines` lines of each half from term k on, as a plain panel has them; the first of a
 * panel's at stream[] + offset. */
void pack_plain_lines(const pack_panels *p, size_t k, size_t lines, size_t offset);

/* The f32 rows of a panel. */
void pack_gate_up_rows(const pack_source *s, const pack_layout *l, size_t e, size_t panel,
                       uint8_t *dst);
void pack_down_rows(const pack_source *s, const pack_layout *l, size_t e, size_t panel,
                    uint8_t *dst);

/* Where a panel finds its f32 rows. */
void pack_set_rows(kernel_panel *p, const uint8_t *at, bool scale, bool bias);

/* Element `row`, `column` of expert e's array, of a size that moe_dtype_size knows. */
static inline const uint8_t *pack_element(const moe_array *a, size_t e, size_t row, size_t column)
{
    const uint8_t *base = a->data != NULL ? (const uint8_t *)a->data + e * (size_t)a->expert_stride
                                          : (const uint8_t *)a->experts[e];
    return base + row * (size_t)a->row_stride + column * (size_t)a->column_stride;
}

/* Where a half has the codes of run n: kernel_scale_at. */
static inline uint8_t *pack_scale(const pack_run *r, size_t half, kernel_part part, size_t n)
{
    return r->stream[half] + kernel_scale_at(r->format, r->panel_halves, r->half[half], part, n);
}

/* An element of an array of bf16, f16 or f32. */
static inline float pack_float(const void *at, moe_dtype dtype)
{
    uint16_t half;
    float f;
    if (dtype == MOE_F32) {
        memcpy(&f, at, sizeof f);
        return f;
    }
    memcpy(&half, at, sizeof half);
    return dtype == MOE_BF16 ? num_from_bf16(half) : num_from_f16(half);
}

#endif

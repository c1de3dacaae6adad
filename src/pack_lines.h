/* SPDX-License-Identifier: Apache-2.0 */
/* pack_lines.h - the parts of pack.c that read a source: matrices with strides (pack_matrix.c)
 * and tensors of x4 words (pack_words.c).  Both write lines of neighbouring halves. */
#ifndef MOE_PACK_LINES_H
#define MOE_PACK_LINES_H

#include "pack.h"

enum { PACK_GATE, PACK_UP, PACK_DOWN, PACK_MATRICES };

enum {
    PACK_HALVES = 2 * PACK_RUN, /* of a run, at most */
    PACK_LINES = 64             /* lines of a half that one call writes at most */
};

/* Neighbouring halves of one matrix of one expert, and where they go: line j of half n to dst[n]
 * + at[j], its scale bytes of a block to scale[n] + at, with an at for each call. */
typedef struct pack_run {
    const pack_source *s;
    size_t e, matrix;
    kernel_format format;
    size_t row; /* the first */
    size_t halves;
    uint8_t *dst[PACK_HALVES], *scale[PACK_HALVES];
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

/* The scale bytes of a block; those of rows past the last stay as they are. */
void pack_matrix_scales(const pack_run *r, size_t block, size_t at);

/* Where a run's rows are in a tensor of x4 words: the column of each, AXIS_PAD for a pad lane. */
typedef struct pack_words {
    size_t column[PACK_HALVES][KERNEL_ROWS];
} pack_words;

void pack_words_of(const pack_run *r, pack_words *w);

/* The lines of one block, and its scale bytes; those of pad rows stay as they are. */
void pack_word_lines(const pack_run *r, const pack_words *w, size_t block, const size_t *at);
void pack_word_scales(const pack_run *r, const pack_words *w, size_t block, size_t at);

/* Neighbouring panels: two runs of halves, gate and up, or one of down. */
typedef struct pack_panels {
    kernel_format format;
    size_t halves; /* of each panel */
    size_t runs;
    pack_run run[2];
    pack_matrix matrix[2];
    pack_words words[2];
} pack_panels;

/* Panels [first, first + count) of gate and up, or (with the same number of halves each) of down;
 * their lines go to stream[]. */
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

/* Halves of a down panel. */
size_t pack_down_halves(const pack_layout *l, size_t panel);

/* Of `count` down panels, how many from the first on can be one run. */
size_t pack_down_run(const pack_layout *l, size_t first, size_t count);

/* Element `row`, `column` of expert e's array, of a size that moe_dtype_size knows. */
static inline const uint8_t *pack_element(const moe_array *a, size_t e, size_t row, size_t column)
{
    const uint8_t *base = a->data != NULL ? (const uint8_t *)a->data + e * (size_t)a->expert_stride
                                          : (const uint8_t *)a->experts[e];
    return base + row * (size_t)a->row_stride + column * (size_t)a->column_stride;
}

#endif

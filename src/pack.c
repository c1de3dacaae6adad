/* SPDX-License-Identifier: Apache-2.0 */
/* pack.c - experts' weights to panels (kernel.h): the only writer of the packed layout, with
 * pack_matrix.c, pack_blocks.c and pack_words.c, which read the sources, and pack_bf12.c, which
 * codes.
 *
 * Owns where panels lie and what beside their lines is in them.  Codes are moved, never decoded. */
#include "pack_lines.h"

#include "checked.h"
#include "sizes.h"

/* ---- sizes ----------------------------------------------------------------------------------- */

/* A panel has at most 2 * 64 bytes for each k, and its rows, so that its bytes fit. */
#define LARGEST_K ((size_t)PTRDIFF_MAX >> 10)

size_t pack_rows_bytes(const pack_layout *l, bool down, size_t halves)
{
    size_t rows = down ? (size_t)l->down_scale + (size_t)l->down_bias
                       : (size_t)l->gate_up_scale + (size_t)l->gate_up_bias;
    return rows * halves * KERNEL_ROWS * sizeof(float);
}

/* Rows that lie beside each other in both halves of a panel. */
static bool are_neighbours(const pack_layout *l, bool down)
{
    return down || l->ungated;
}

size_t pack_gate_up_panels(const pack_layout *l, size_t mid_k)
{
    return size_pieces(mid_k, l->ungated ? 2 * KERNEL_ROWS : KERNEL_ROWS);
}

size_t pack_halves(const pack_layout *l, bool down, size_t panel)
{
    size_t rows = down ? l->H : l->mid_k;
    return !are_neighbours(l, down) || rows - panel * 2 * KERNEL_ROWS > KERNEL_ROWS ? 2 : 1;
}

size_t pack_run_length(const pack_layout *l, bool down, size_t first, size_t count)
{
    if (count > 1 && pack_halves(l, down, first + count - 1) == 1) count--;
    return size_smaller(count, PACK_RUN);
}

/* Bytes of a panel's stream. */
static size_t stream_bytes(const pack_layout *l, bool down, size_t halves)
{
    return kernel_panel_bytes(down ? l->down : l->gate_up, halves, down ? l->mid_k : l->hidden_k);
}

/* Of a panel with its rows. */
static size_t panel_bytes(const pack_layout *l, bool down, size_t halves)
{
    return stream_bytes(l, down, halves) + pack_rows_bytes(l, down, halves);
}

/* The scales of rows: of plain weights their only ones. */
static const moe_array *row_scale_of(const pack_source *s, size_t matrix)
{
    const moe_matrix *m = &s->matrix[matrix];
    return kernel_is_scaled(matrix == PACK_DOWN ? s->down : s->gate_up) ? &m->row_scale : &m->scale;
}

static void say_rows(const pack_source *s, pack_layout *l)
{
    l->gate_up_scale = row_scale_of(s, PACK_UP)->dtype != MOE_DTYPE_NONE;
    l->down_scale = row_scale_of(s, PACK_DOWN)->dtype != MOE_DTYPE_NONE;
    l->gate_up_bias =
        s->axis.strided ? s->word_bias[0] != NULL : s->matrix[PACK_UP].bias.dtype != MOE_DTYPE_NONE;
    l->down_bias = s->axis.strided ? s->word_bias[1] != NULL
                                   : s->matrix[PACK_DOWN].bias.dtype != MOE_DTYPE_NONE;
}

static size_t padded_k(kernel_format f, size_t k)
{
    return size_round_up(k, kernel_is_scaled(f) ? KERNEL_BLOCK : 2);
}

bool pack_layout_of(const pack_source *s, pack_layout *l)
{
    memset(l, 0, sizeof *l);
    l->gate_up = s->gate_up;
    l->down = s->down;
    l->ungated = s->ungated;
    say_rows(s, l);
    return pack_layout_sizes(&s->axis, l);
}

bool pack_layout_sizes(const axis *a, pack_layout *l)
{
    if (a->H > LARGEST_K || a->I > LARGEST_K) return false;
    l->H = a->H;
    l->hidden_k = padded_k(l->gate_up, a->H);
    l->mid_k = a->strided ? a->tiles_i * a->lanes_p * 4 : padded_k(l->down, a->I);
    l->gate_up_panels = pack_gate_up_panels(l, l->mid_k);
    l->down_panels = size_pieces(a->H, 2 * KERNEL_ROWS);
    l->gate_up_bytes = panel_bytes(l, false, 2);
    l->down_bytes = panel_bytes(l, true, 2);
    size_t last = panel_bytes(l, false, pack_halves(l, false, l->gate_up_panels - 1)), down;
    if (!checked_mul(l->gate_up_panels - 1, l->gate_up_bytes, &l->down_at) ||
        !checked_add(l->down_at, last, &l->down_at))
        return false;
    last = panel_bytes(l, true, pack_halves(l, true, l->down_panels - 1));
    return checked_mul(l->down_panels - 1, l->down_bytes, &down) &&
           checked_add(l->down_at, down, &down) && checked_add(down, last, &l->bytes) &&
           l->bytes <= PTRDIFF_MAX;
}

static bool all_zero(const moe_tensor *w, size_t base, size_t n)
{
    uint32_t any = 0;
    if (w->dtype == MOE_MXFP4_X4)
        for (size_t i = 0; i < n; i++) any |= ((const uint16_t *)w->data)[base + i] & 0x7777u;
    else
        for (size_t i = 0; i < n; i++) any |= ((const uint32_t *)w->data)[base + i] & 0x7F7F7F7Fu;
    return any == 0;
}

size_t pack_least_mid_k(const axis *a, const pack_layout *l)
{
    size_t k = l->mid_k, last = a->tiles_i - 1;
    if (!a->strided) return k;
    for (size_t width = axis_tile_width(a, last); k > 0; k -= KERNEL_BLOCK) {
        axis_place p = axis_place_of(k - KERNEL_BLOCK, a->lanes_p);
        if (p.tile != last || p.partition < width) break;
    }
    return k;
}

size_t pack_mid_k(const pack_source *s, const pack_layout *l, size_t e)
{
    const axis *a = &s->axis;
    size_t k = l->mid_k;
    for (size_t least = pack_least_mid_k(a, l); k > least; k -= KERNEL_BLOCK) {
        axis_place p = axis_place_of(k - KERNEL_BLOCK, a->lanes_p);
        for (size_t partition = p.partition; partition < p.partition + 8; partition++)
            if (!all_zero(s->words[1], ((e * a->lanes_p + partition) * a->tiles_i + p.tile) * a->H,
                          a->H))
                return k;
    }
    return k;
}

/* ---- streams --------------------------------------------------------------------------------- */

void pack_panels_of(const pack_source *s, size_t e, bool down, size_t first, size_t count,
                    size_t halves, uint8_t *const *stream, pack_panels *p)
{
    bool neighbours = down || s->ungated;
    p->format = down ? s->down : s->gate_up;
    p->halves = halves;
    p->runs = neighbours ? 1 : 2;
    for (size_t i = 0; i < p->runs; i++) {
        pack_run *r = &p->run[i];
        r->s = s;
        r->e = e;
        r->matrix = down ? PACK_DOWN : s->ungated ? PACK_UP : i;
        r->format = p->format;
        r->row = first * KERNEL_ROWS * (neighbours ? 2 : 1);
        r->halves = neighbours ? count * halves : count;
        r->panel_halves = halves;
        for (size_t n = 0; n < r->halves; n++) {
            r->half[n] = neighbours ? n % halves : i;
            r->stream[n] = stream[neighbours ? n / halves : n];
            r->dst[n] = r->stream[n] + r->half[n] * KERNEL_LINE;
        }
        if (s->axis.strided)
            pack_words_of(r, &p->words[i]);
        else
            p->matrix[i] = pack_matrix_of(r);
    }
}

void pack_plain_lines(const pack_panels *p, size_t k, size_t lines, size_t offset)
{
    size_t at[PACK_LINES], line_k = kernel_line_k(p->format), stride = p->halves * KERNEL_LINE;
    for (size_t n; lines > 0; k += n * line_k, lines -= n) {
        n = lines < PACK_LINES ? lines : PACK_LINES;
        for (size_t j = 0; j < n; j++, offset += stride) at[j] = offset;
        for (size_t i = 0; i < p->runs; i++) pack_matrix_lines(&p->run[i], &p->matrix[i], k, n, at);
    }
}

/* What a section of scales holds where nothing else is written. */
static void clear_sections(const pack_panels *p, uint8_t *const *stream, size_t count, size_t k,
                           size_t n)
{
    kernel_format f = p->format;
    size_t bytes = kernel_section_bytes(f, p->halves), chunk = kernel_formats[f].chunk;
    for (size_t c = k / chunk; c < size_pieces(k + n, chunk); c++) {
        size_t at = kernel_line_at(f, p->halves, 0, c * (chunk / kernel_line_k(f))) - bytes;
        for (size_t panel = 0; panel < count; panel++)
            memset(stream[panel] + at, kernel_is_mx(f) ? 127 : 0, bytes);
    }
}

/* Scaled: terms [k, k + n), which have at most PACK_LINES lines; whole chunks but for the last. */
static void write_span(const pack_panels *p, uint8_t *const *stream, size_t count, size_t k,
                       size_t n)
{
    kernel_format f = p->format;
    size_t line_k = kernel_line_k(f), block_lines = KERNEL_BLOCK / line_k, at[PACK_LINES];
    for (size_t j = 0; j < n / line_k; j++) at[j] = kernel_line_at(f, p->halves, 0, k / line_k + j);
    clear_sections(p, stream, count, k, n);
    for (size_t m = 0; m < p->runs; m++) {
        const pack_run *r = &p->run[m];
        if (r->s->axis.strided) {
            for (size_t i = 0; i < n / KERNEL_BLOCK; i++) {
                pack_word_lines(r, &p->words[m], k / KERNEL_BLOCK + i, at + i * block_lines);
                pack_word_scales(r, &p->words[m], k / KERNEL_BLOCK + i);
            }
        } else if (pack_is_blocks(&r->s->matrix[r->matrix])) {
            pack_block_span(r, k, n, at);
        } else {
            size_t scale_k = kernel_formats[f].scale_k;
            pack_matrix_lines(r, &p->matrix[m], k, n / line_k, at);
            pack_matrix_scales(r, k / scale_k, size_pieces(n, scale_k));
        }
    }
}

static void write_streams(const pack_panels *p, uint8_t *const *stream, size_t count, size_t k)
{
    size_t line_k = kernel_line_k(p->format), most = PACK_LINES * line_k;
    if (!kernel_is_scaled(p->format)) {
        pack_plain_lines(p, 0, (k + line_k - 1) / line_k, 0);
        return;
    }
    for (size_t n = 0; n < k; n += most) write_span(p, stream, count, n, size_smaller(k - n, most));
}

/* ---- f32 rows -------------------------------------------------------------------------------- */

/* KERNEL_ROWS floats from row `row` on, zeros past the last. */
static float *write_row(float *dst, const moe_array *a, size_t e, size_t row, size_t rows)
{
    for (size_t r = row; r < row + KERNEL_ROWS; r++)
        *dst++ = r < rows ? pack_float(pack_element(a, e, r, 0), a->dtype) : 0.0f;
    return dst;
}

/* The bias of every lane, pads included. */
static float *write_lane_bias(float *dst, const pack_source *s, size_t e, size_t g, size_t row)
{
    const axis *a = &s->axis;
    const moe_tensor *t = s->word_bias[0];
    for (size_t r = row; r < row + KERNEL_ROWS; r++) {
        axis_place p = axis_place_of(r, a->lanes_p);
        size_t at = (((e * a->lanes_p + p.partition) * 2 + g) * a->tiles_i + p.tile) * 4 + p.q;
        *dst++ = pack_float((const char *)t->data + at * moe_dtype_size(t->dtype), t->dtype);
    }
    return dst;
}

/* The operator's down bias is an array like any other. */
static moe_array down_bias(const pack_source *s)
{
    if (!s->axis.strided) return s->matrix[PACK_DOWN].bias;
    int64_t element = (int64_t)moe_dtype_size(s->word_bias[1]->dtype);
    return (moe_array){.dtype = s->word_bias[1]->dtype,
                       .data = s->word_bias[1]->data,
                       .expert_stride = (int64_t)s->axis.H * element,
                       .row_stride = element};
}

static moe_array bias_of(const pack_source *s, size_t matrix)
{
    return matrix == PACK_DOWN ? down_bias(s) : s->matrix[matrix].bias;
}

/* Of neighbouring rows of one matrix. */
static void write_neighbours(const pack_source *s, size_t e, size_t matrix, bool scale, bool bias,
                             size_t first, size_t halves, float *row)
{
    size_t rows = matrix == PACK_DOWN ? s->axis.H : s->axis.I;
    for (size_t half = 0; scale && half < halves; half++)
        row = write_row(row, row_scale_of(s, matrix), e, first + half * KERNEL_ROWS, rows);
    if (!bias) return;
    moe_array a = bias_of(s, matrix);
    for (size_t half = 0; half < halves; half++)
        row = write_row(row, &a, e, first + half * KERNEL_ROWS, rows);
}

void pack_gate_up_rows(const pack_source *s, const pack_layout *l, size_t e, size_t panel,
                       uint8_t *dst)
{
    float *row = (float *)(void *)dst;
    size_t first = panel * KERNEL_ROWS;
    if (l->ungated) {
        write_neighbours(s, e, PACK_UP, l->gate_up_scale, l->gate_up_bias, 2 * first,
                         pack_halves(l, false, panel), row);
        return;
    }
    for (size_t g = 0; l->gate_up_scale && g < 2; g++)
        row = write_row(row, row_scale_of(s, g), e, first, s->axis.I);
    for (size_t g = 0; l->gate_up_bias && g < 2; g++)
        row = s->axis.strided ? write_lane_bias(row, s, e, g, first)
                              : write_row(row, &s->matrix[g].bias, e, first, s->axis.I);
}

void pack_down_rows(const pack_source *s, const pack_layout *l, size_t e, size_t panel,
                    uint8_t *dst)
{
    write_neighbours(s, e, PACK_DOWN, l->down_scale, l->down_bias, panel * 2 * KERNEL_ROWS,
                     pack_halves(l, true, panel), (float *)(void *)dst);
}

/* ---- panels ---------------------------------------------------------------------------------- */

static void gate_up_run(const pack_source *s, const pack_layout *l, size_t e, size_t first,
                        size_t count, uint8_t *expert)
{
    uint8_t *stream[PACK_RUN];
    size_t halves = pack_halves(l, false, first);
    for (size_t n = 0; n < count; n++) {
        stream[n] = expert + (first + n) * l->gate_up_bytes;
        pack_gate_up_rows(s, l, e, first + n, stream[n] + stream_bytes(l, false, halves));
    }
    pack_panels p;
    pack_panels_of(s, e, false, first, count, halves, stream, &p);
    write_streams(&p, stream, count, l->hidden_k);
}

static void down_run(const pack_source *s, const pack_layout *l, size_t e, size_t first,
                     size_t count, size_t mid_k, uint8_t *expert)
{
    uint8_t *stream[PACK_RUN];
    size_t halves = pack_halves(l, true, first);
    for (size_t n = 0; n < count; n++) {
        stream[n] = expert + l->down_at + (first + n) * l->down_bytes;
        pack_down_rows(s, l, e, first + n, stream[n] + stream_bytes(l, true, halves));
    }
    pack_panels p;
    pack_panels_of(s, e, true, first, count, halves, stream, &p);
    write_streams(&p, stream, count, mid_k);
}

void pack_gate_up(const pack_source *s, const pack_layout *l, size_t e, size_t first, size_t count,
                  uint8_t *expert)
{
    for (size_t n; count > 0; first += n, count -= n) {
        n = pack_run_length(l, false, first, count);
        gate_up_run(s, l, e, first, n, expert);
    }
}

void pack_down(const pack_source *s, const pack_layout *l, size_t e, size_t first, size_t count,
               size_t mid_k, uint8_t *expert)
{
    for (size_t n; count > 0; first += n, count -= n) {
        n = pack_run_length(l, true, first, count);
        down_run(s, l, e, first, n, mid_k, expert);
    }
}

void pack_set_rows(kernel_panel *p, const uint8_t *at, bool scale, bool bias)
{
    const float *row = (const float *)(const void *)at;
    for (size_t half = 0; half < p->halves; half++) {
        if (scale) p->rows[half].scale = row + half * KERNEL_ROWS;
        if (bias) p->rows[half].bias = row + ((scale ? p->halves : 0) + half) * KERNEL_ROWS;
    }
}

kernel_panel pack_gate_up_panel(const pack_layout *l, const uint8_t *expert, size_t panel)
{
    kernel_panel p = {.stream = expert + panel * l->gate_up_bytes,
                      .format = l->gate_up,
                      .k = l->hidden_k,
                      .halves = pack_halves(l, false, panel)};
    pack_set_rows(&p, p.stream + stream_bytes(l, false, p.halves), l->gate_up_scale,
                  l->gate_up_bias);
    return p;
}

kernel_panel pack_down_panel(const pack_layout *l, const uint8_t *expert, size_t panel,
                             size_t mid_k)
{
    kernel_panel p = {.stream = expert + l->down_at + panel * l->down_bytes,
                      .format = l->down,
                      .k = mid_k,
                      .halves = pack_halves(l, true, panel)};
    pack_set_rows(&p, p.stream + stream_bytes(l, true, p.halves), l->down_scale, l->down_bias);
    return p;
}

uint32_t pack_pad_rows(const axis *a, size_t first, size_t rows)
{
    uint32_t pads = 0;
    for (size_t r = 0; r < rows; r++) {
        size_t row = first + r;
        if (a->strided ? axis_i(a, axis_place_of(row, a->lanes_p)) == AXIS_PAD : row >= a->I)
            pads |= 1u << r;
    }
    return pads;
}

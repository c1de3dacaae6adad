/* SPDX-License-Identifier: Apache-2.0 */
/* pack.c - experts' weights to panels (kernel.h): the only writer of the packed layout, with
 * pack_matrix.c and pack_words.c, which read the sources, and pack_bf12.c, which codes.
 *
 * Owns where panels lie and what beside their lines is in them.  Codes are moved, never decoded. */
#include "pack_lines.h"

#include "checked.h"
#include "numeric.h"
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

size_t pack_down_halves(const pack_layout *l, size_t panel)
{
    return l->hidden_k - panel * 2 * KERNEL_ROWS > KERNEL_ROWS ? 2 : 1; /* H, made even */
}

static size_t down_panel_bytes(const pack_layout *l, size_t halves)
{
    return kernel_panel_bytes(l->down, halves, l->mid_k) + pack_rows_bytes(l, true, halves);
}

static void say_rows(const pack_source *s, pack_layout *l)
{
    bool mx = kernel_is_mx(l->gate_up);
    l->gate_up_scale = !mx && s->matrix[PACK_UP].scale.dtype != MOE_DTYPE_NONE;
    l->down_scale = !mx && s->matrix[PACK_DOWN].scale.dtype != MOE_DTYPE_NONE;
    l->gate_up_bias =
        s->axis.strided ? s->word_bias[0] != NULL : s->matrix[PACK_UP].bias.dtype != MOE_DTYPE_NONE;
    l->down_bias = s->axis.strided ? s->word_bias[1] != NULL
                                   : s->matrix[PACK_DOWN].bias.dtype != MOE_DTYPE_NONE;
}

bool pack_layout_of(const pack_source *s, pack_layout *l)
{
    const axis *a = &s->axis;
    if (a->H > LARGEST_K || a->I > LARGEST_K) return false;
    memset(l, 0, sizeof *l);
    l->gate_up = s->gate_up;
    l->down = s->down;
    l->has_gate = s->has_gate;
    say_rows(s, l);
    l->hidden_k = a->H + a->H % 2;
    l->mid_k = a->strided ? a->tiles_i * a->lanes_p * 4 : a->I + a->I % 2;
    l->gate_up_panels = size_pieces(l->mid_k, KERNEL_ROWS);
    l->down_panels = size_pieces(a->H, 2 * KERNEL_ROWS);
    l->gate_up_bytes =
        kernel_panel_bytes(l->gate_up, 2, l->hidden_k) + pack_rows_bytes(l, false, 2);
    l->down_bytes = down_panel_bytes(l, 2);
    size_t last = down_panel_bytes(l, pack_down_halves(l, l->down_panels - 1)), down;
    return checked_mul(l->gate_up_panels, l->gate_up_bytes, &l->down_at) &&
           checked_mul(l->down_panels - 1, l->down_bytes, &down) &&
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

size_t pack_mid_k(const pack_source *s, const pack_layout *l, size_t e)
{
    const axis *a = &s->axis;
    size_t k = l->mid_k;
    if (!a->strided) return k;
    size_t width = axis_tile_width(a, a->tiles_i - 1);
    for (; k > 0; k -= KERNEL_BLOCK) {
        axis_place p = axis_place_of(k - KERNEL_BLOCK, a->lanes_p);
        if (p.tile != a->tiles_i - 1 || p.partition < width) return k;
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
    p->format = down ? s->down : s->gate_up;
    p->halves = halves;
    p->runs = down ? 1 : 2;
    for (size_t i = 0; i < p->runs; i++) {
        pack_run *r = &p->run[i];
        r->s = s;
        r->e = e;
        r->matrix = down ? PACK_DOWN : i;
        r->format = p->format;
        r->row = first * KERNEL_ROWS * (down ? 2 : 1);
        r->halves = down ? count * halves : count;
        for (size_t n = 0; n < r->halves; n++) {
            size_t half = down ? n % halves : i;
            uint8_t *panel = stream[down ? n / halves : n];
            r->dst[n] = panel + half * KERNEL_LINE;
            r->scale[n] = panel + half * KERNEL_ROWS;
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

/* Blocks [first, first + n), which have at most PACK_LINES lines. */
static void write_blocks(const pack_panels *p, uint8_t *const *stream, size_t count, size_t first,
                         size_t n)
{
    kernel_format f = p->format;
    size_t lines = KERNEL_BLOCK / kernel_line_k(f), at[PACK_LINES];
    for (size_t i = 0; i < n * lines; i++)
        at[i] = kernel_line_at(f, p->halves, 0, first * lines + i);
    for (size_t m = 0; m < p->runs && !p->run[0].s->axis.strided; m++)
        pack_matrix_lines(&p->run[m], &p->matrix[m], first * KERNEL_BLOCK, n * lines, at);
    for (size_t i = 0; i < n; i++) {
        size_t scale = kernel_scale_at(f, p->halves, 0, PART_SCALE, first + i);
        if ((first + i) % kernel_runs(f) == 0)
            for (size_t panel = 0; panel < count; panel++)
                memset(stream[panel] + scale, 127, kernel_section_bytes(f, p->halves));
        for (size_t m = 0; m < p->runs; m++)
            if (p->run[m].s->axis.strided) {
                pack_word_lines(&p->run[m], &p->words[m], first + i, at + i * lines);
                pack_word_scales(&p->run[m], &p->words[m], first + i, scale);
            } else {
                pack_matrix_scales(&p->run[m], first + i, scale);
            }
    }
}

static void write_streams(const pack_panels *p, uint8_t *const *stream, size_t count, size_t k)
{
    size_t line_k = kernel_line_k(p->format);
    if (!kernel_is_mx(p->format)) {
        pack_plain_lines(p, 0, (k + line_k - 1) / line_k, 0);
        return;
    }
    size_t blocks = k / KERNEL_BLOCK, most = PACK_LINES * line_k / KERNEL_BLOCK;
    for (size_t n = 0; n < blocks; n += most)
        write_blocks(p, stream, count, n, blocks - n < most ? blocks - n : most);
}

/* ---- f32 rows -------------------------------------------------------------------------------- */

static float to_float(const void *at, moe_dtype dtype)
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

/* KERNEL_ROWS floats from row `row` on, zeros past the last. */
static float *write_row(float *dst, const moe_array *a, size_t e, size_t row, size_t rows)
{
    for (size_t r = row; r < row + KERNEL_ROWS; r++)
        *dst++ = r < rows ? to_float(pack_element(a, e, r, 0), a->dtype) : 0.0f;
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
        *dst++ = to_float((const char *)t->data + at * moe_dtype_size(t->dtype), t->dtype);
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

void pack_gate_up_rows(const pack_source *s, const pack_layout *l, size_t e, size_t panel,
                       uint8_t *dst)
{
    float *row = (float *)(void *)dst;
    size_t first = panel * KERNEL_ROWS;
    for (size_t g = 0; l->gate_up_scale && g < 2; g++)
        row = write_row(row, &s->matrix[g].scale, e, first, s->axis.I);
    for (size_t g = 0; l->gate_up_bias && g < 2; g++)
        row = s->axis.strided ? write_lane_bias(row, s, e, g, first)
                              : write_row(row, &s->matrix[g].bias, e, first, s->axis.I);
}

void pack_down_rows(const pack_source *s, const pack_layout *l, size_t e, size_t panel,
                    uint8_t *dst)
{
    float *row = (float *)(void *)dst;
    size_t first = panel * 2 * KERNEL_ROWS, halves = pack_down_halves(l, panel);
    for (size_t half = 0; l->down_scale && half < halves; half++)
        row = write_row(row, &s->matrix[PACK_DOWN].scale, e, first + half * KERNEL_ROWS, s->axis.H);
    if (!l->down_bias) return;
    moe_array bias = down_bias(s);
    for (size_t half = 0; half < halves; half++)
        row = write_row(row, &bias, e, first + half * KERNEL_ROWS, s->axis.H);
}

/* ---- panels ---------------------------------------------------------------------------------- */

static size_t gate_up_stream(const pack_layout *l)
{
    return kernel_panel_bytes(l->gate_up, 2, l->hidden_k);
}

static size_t down_stream(const pack_layout *l, size_t panel)
{
    return kernel_panel_bytes(l->down, pack_down_halves(l, panel), l->mid_k);
}

static void gate_up_run(const pack_source *s, const pack_layout *l, size_t e, size_t first,
                        size_t count, uint8_t *expert)
{
    uint8_t *stream[PACK_RUN];
    for (size_t n = 0; n < count; n++) {
        stream[n] = expert + (first + n) * l->gate_up_bytes;
        pack_gate_up_rows(s, l, e, first + n, stream[n] + gate_up_stream(l));
    }
    pack_panels p;
    pack_panels_of(s, e, false, first, count, 2, stream, &p);
    write_streams(&p, stream, count, l->hidden_k);
}

/* Panels with the same number of halves. */
static void down_run(const pack_source *s, const pack_layout *l, size_t e, size_t first,
                     size_t count, size_t mid_k, uint8_t *expert)
{
    uint8_t *stream[PACK_RUN];
    for (size_t n = 0; n < count; n++) {
        stream[n] = expert + l->down_at + (first + n) * l->down_bytes;
        pack_down_rows(s, l, e, first + n, stream[n] + down_stream(l, first + n));
    }
    pack_panels p;
    pack_panels_of(s, e, true, first, count, pack_down_halves(l, first), stream, &p);
    write_streams(&p, stream, count, mid_k);
}

void pack_gate_up(const pack_source *s, const pack_layout *l, size_t e, size_t first, size_t count,
                  uint8_t *expert)
{
    for (size_t n; count > 0; first += n, count -= n) {
        n = size_smaller(count, PACK_RUN);
        gate_up_run(s, l, e, first, n, expert);
    }
}

size_t pack_down_run(const pack_layout *l, size_t first, size_t count)
{
    if (count > 1 && pack_down_halves(l, first + count - 1) == 1) count--;
    return size_smaller(count, PACK_RUN);
}

void pack_down(const pack_source *s, const pack_layout *l, size_t e, size_t first, size_t count,
               size_t mid_k, uint8_t *expert)
{
    for (size_t n; count > 0; first += n, count -= n) {
        n = pack_down_run(l, first, count);
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
                      .halves = 2};
    pack_set_rows(&p, p.stream + gate_up_stream(l), l->gate_up_scale, l->gate_up_bias);
    return p;
}

kernel_panel pack_down_panel(const pack_layout *l, const uint8_t *expert, size_t panel,
                             size_t mid_k)
{
    kernel_panel p = {.stream = expert + l->down_at + panel * l->down_bytes,
                      .format = l->down,
                      .k = mid_k,
                      .halves = pack_down_halves(l, panel)};
    pack_set_rows(&p, p.stream + down_stream(l, panel), l->down_scale, l->down_bias);
    return p;
}

uint32_t pack_pad_rows(const axis *a, size_t panel)
{
    uint32_t pads = 0;
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        size_t row = panel * KERNEL_ROWS + r;
        if (a->strided ? axis_i(a, axis_place_of(row, a->lanes_p)) == AXIS_PAD : row >= a->I)
            pads |= 1u << r;
    }
    return pads;
}

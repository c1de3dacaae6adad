/* SPDX-License-Identifier: Apache-2.0 */
/* test_pack.c - panels hold what the sources hold: every element of every format and layout is
 * looked up where src/kernel.h says that it lies, and so is every scale, bias and pad. */
#include "expect.h"

#include "pack.h"
#include "source.h"
#include "validate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One expert in memory that was not zeros before. */
typedef struct packed {
    pack_source source;
    pack_layout layout;
    size_t e, mid_k;
    uint8_t *memory;
} packed;

static void pack(packed *p, const source *s, size_t e)
{
    if (validate_experts(&s->args, &p->source) != MOE_OK ||
        validate_experts_data(&s->args, &p->source) != MOE_OK)
        fail_msg("%s", moe_last_error());
    assert_true(pack_layout_of(&p->source, &p->layout));
    const pack_layout *l = &p->layout;
    p->e = e;
    p->mid_k = pack_mid_k(&p->source, l, e);
    p->memory = aligned_alloc(KERNEL_ALIGN, l->bytes);
    assert_non_null(p->memory);
    memset(p->memory, 0xA5, l->bytes);
    pack_gate_up(&p->source, l, e, 0, l->gate_up_panels, p->memory);
    pack_down(&p->source, l, e, 0, l->down_panels, p->mid_k, p->memory);
}

/* ---- what a panel must hold ------------------------------------------------------------------ */

/* Row `row` of gate and up is this row of the source, or SIZE_MAX for a pad. */
static size_t source_row(const packed *p, size_t matrix, size_t row)
{
    const axis *a = &p->source.axis;
    if (matrix == SOURCE_DOWN) return row < a->H ? row : SIZE_MAX;
    if (!a->strided) return row < a->I ? row : SIZE_MAX;
    size_t block = row / 32, q = row % 32 / 8, tile = block / (a->lanes_p / 8),
           partition = block % (a->lanes_p / 8) * 8 + row % 8, rest = a->I - tile * 512,
           width = rest >= 512 ? 128 : (rest + 7) / 8 * 2, i = tile * 512 + q * width + partition;
    return partition < width && i < a->I ? i : SIZE_MAX;
}

/* Term k is this k of the source: strided gate and up products go over h. */
static size_t source_k(const packed *p, size_t matrix, size_t k)
{
    const axis *a = &p->source.axis;
    if (!a->strided || matrix == SOURCE_DOWN) return k;
    size_t tile = k / 512, b = k / 32 % 16, q = k % 32 / 8;
    return q * (a->H / 4) + tile * 128 + b * 8 + k % 8;
}

static uint32_t expected_code(const packed *p, const source_spec *s, size_t matrix, size_t row,
                              size_t k)
{
    const axis *a = &p->source.axis;
    size_t terms = matrix == SOURCE_DOWN ? source_lanes(s) : a->H;
    size_t from = source_row(p, matrix, row);
    return from == SIZE_MAX || k >= terms
               ? 0
               : source_code(s, matrix, p->e, from, source_k(p, matrix, k));
}

static uint32_t code_at(const uint8_t *line, kernel_format f, size_t r, size_t k)
{
    size_t bits = kernel_bits(f), at = kernel_bit_at(f, r, k);
    uint32_t word;
    memcpy(&word, line + at / 32 * 4, sizeof word);
    return word >> at % 32 & (uint32_t)((1ull << bits) - 1);
}

static void expect_lines(const packed *p, const source_spec *s, const kernel_panel *panel,
                         size_t half, size_t matrix, size_t row)
{
    kernel_format f = panel->format;
    size_t line_k = kernel_line_k(f), end = (panel->k + line_k - 1) / line_k * line_k;
    for (size_t k = 0; k < end; k++) {
        size_t at = kernel_line_at(f, panel->halves, half, kernel_line_of(f, k));
        for (size_t r = 0; r < KERNEL_ROWS; r++) {
            uint32_t got = code_at(panel->stream + at, f, r, k),
                     want = expected_code(p, s, matrix, row + r, k);
            if (got != want)
                fail_msg("format %d layout %d H %d I %d matrix %zu row %zu k %zu: %x, not %x", f,
                         s->layout, (int)s->H, (int)s->I, matrix, row + r, k, got, want);
        }
    }
}

static void expect_scale_bytes(const packed *p, const source_spec *s, const kernel_panel *panel,
                               size_t half, size_t matrix, size_t row)
{
    size_t blocks = panel->k / 32;
    for (size_t n = 0; n < (blocks + 1) / 2 * 2; n++)
        for (size_t r = 0; r < KERNEL_ROWS; r++) {
            size_t from = source_row(p, matrix, row + r);
            uint8_t want = n >= blocks || from == SIZE_MAX
                               ? 127
                               : source_block_scale(s, matrix, p->e, from, n);
            size_t at = kernel_scale_at(panel->format, panel->halves, half, PART_SCALE, n) + r;
            assert_int_equal(panel->stream[at], want);
        }
}

/* The f32 rows of a half. */
static void expect_rows(const packed *p, const source_spec *s, const kernel_rows *rows,
                        size_t matrix, size_t row)
{
    bool strided = p->source.axis.strided;
    bool scale = !s->mx && s->scale != MOE_DTYPE_NONE;
    assert_int_equal(rows->scale != NULL, scale);
    assert_int_equal(rows->bias != NULL, s->bias != MOE_DTYPE_NONE);
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        size_t from = source_row(p, matrix, row + r);
        if (scale) {
            float want = from == SIZE_MAX ? 0.0f : source_scale(s, matrix, p->e, from);
            assert_memory_equal(&rows->scale[r], &want, sizeof want);
        }
        if (s->bias == MOE_DTYPE_NONE) continue;
        if (strided && matrix != SOURCE_DOWN) from = row + r; /* pads have one */
        float want = from == SIZE_MAX ? 0.0f : source_bias(s, matrix, p->e, from);
        assert_memory_equal(&rows->bias[r], &want, sizeof want);
    }
}

static void expect_half(const packed *p, const source_spec *s, const kernel_panel *panel,
                        size_t half, size_t matrix, size_t row)
{
    expect_lines(p, s, panel, half, matrix, row);
    if (kernel_is_mx(panel->format)) expect_scale_bytes(p, s, panel, half, matrix, row);
    expect_rows(p, s, &panel->rows[half], matrix, row);
}

static void expect_packed(const packed *p, const source_spec *s)
{
    const pack_layout *l = &p->layout;
    const uint8_t *end = p->memory;
    for (size_t i = 0; i < l->gate_up_panels && i * KERNEL_ROWS < p->mid_k; i++) {
        kernel_panel panel = pack_gate_up_panel(l, p->memory, i);
        assert_int_equal(panel.halves, 2);
        assert_true(panel.k >= (size_t)s->H && panel.k <= (size_t)s->H + 1);
        assert_ptr_equal(panel.stream, p->memory + i * l->gate_up_bytes);
        expect_half(p, s, &panel, 0, SOURCE_GATE, i * KERNEL_ROWS);
        expect_half(p, s, &panel, 1, SOURCE_UP, i * KERNEL_ROWS);
    }
    for (size_t i = 0; i < l->down_panels; i++) {
        kernel_panel panel = pack_down_panel(l, p->memory, i, p->mid_k);
        size_t row = i * 2 * KERNEL_ROWS, left = (size_t)s->H - row, rows = 0;
        assert_int_equal(panel.halves, left > KERNEL_ROWS ? 2 : 1);
        for (size_t half = 0; half < panel.halves; half++) {
            expect_half(p, s, &panel, half, SOURCE_DOWN, row + half * KERNEL_ROWS);
            rows += (size_t)(panel.rows[half].scale != NULL) + (panel.rows[half].bias != NULL);
        }
        end = panel.stream + kernel_panel_bytes(panel.format, panel.halves, l->mid_k) +
              rows * KERNEL_ROWS * sizeof(float);
        assert_int_equal((uintptr_t)end % KERNEL_ALIGN, 0);
    }
    assert_ptr_equal(end, p->memory + l->bytes);
}

static void expect_source(const source_spec *spec)
{
    source s;
    source_make(&s, spec);
    for (size_t e = 0; e < (size_t)spec->E_L; e++) {
        packed p;
        pack(&p, &s, e);
        expect_packed(&p, spec);
        free(p.memory);
    }
    source_free(&s);
}

/* ---- sizes and layouts ----------------------------------------------------------------------- */

static const moe_dtype plain_types[] = {MOE_BF16, MOE_F16, MOE_F32, MOE_E4M3_IEEE, MOE_E4M3FN};

/* Whole panels and halves, one row or term more, one less; runs of more panels than PACK_RUN. */
static const struct {
    int64_t H, I;
} plain_sizes[] = {{1, 1},   {2, 3},   {15, 17},  {16, 16},   {17, 15},  {31, 33}, {32, 32},
                   {48, 80}, {65, 47}, {97, 130}, {300, 144}, {64, 304}, {560, 20}};

static void test_plain(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(plain_types); t++)
        for (int layout = 0; layout < SOURCE_LAYOUTS; layout++)
            for (size_t i = 0; i < COUNT(plain_sizes); i++)
                expect_source(&(source_spec){.seed = t * 100 + i,
                                             .gate_up = plain_types[t],
                                             .down = plain_types[(t + i) % COUNT(plain_types)],
                                             .layout = (source_layout)layout,
                                             .E_L = 2,
                                             .H = plain_sizes[i].H,
                                             .I = plain_sizes[i].I,
                                             .scale = i % 3 == 0 ? MOE_DTYPE_NONE : MOE_F32,
                                             .one_scale = i % 2 == 0,
                                             .bias = i % 4 == 0 ? MOE_DTYPE_NONE : MOE_BF16});
}

static void test_row_types(void **state)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32};
    (void)state;
    for (size_t t = 0; t < COUNT(types); t++)
        for (int layout = 0; layout < SOURCE_OPERATOR; layout++)
            expect_source(&(source_spec){.gate_up = MOE_E4M3FN,
                                         .down = MOE_E4M3_IEEE,
                                         .layout = (source_layout)layout,
                                         .E_L = 3,
                                         .H = 37,
                                         .I = 21,
                                         .scale = types[t],
                                         .bias = types[(t + 1) % COUNT(types)]});
}

static void test_mx_rows(void **state)
{
    static const struct {
        int64_t H, I;
    } sizes[] = {{32, 32}, {64, 96}, {96, 64}, {288, 160}, {160, 320}, {704, 32}};
    (void)state;
    for (int layout = 0; layout < SOURCE_OPERATOR; layout++)
        for (size_t i = 0; i < COUNT(sizes); i++)
            for (unsigned types = 0; types < 4; types++)
                expect_source(&(source_spec){.seed = i,
                                             .gate_up = types & 1 ? MOE_E2M1_X2 : MOE_E4M3FN,
                                             .down = types & 2 ? MOE_E2M1_X2 : MOE_E4M3FN,
                                             .mx = true,
                                             .layout = (source_layout)layout,
                                             .E_L = 2,
                                             .H = sizes[i].H,
                                             .I = sizes[i].I,
                                             .bias = types == 3 ? MOE_F32 : MOE_DTYPE_NONE});
}

static void test_words(void **state)
{
    static const struct {
        int64_t H, I, lanes_p;
    } sizes[] = {{512, 1, 8},      {512, 32, 8},    {512, 33, 16},
                 {512, 60, 128},   {512, 200, 56},  {512, 512, 128},
                 {1024, 520, 128}, {512, 700, 128}, {512, 1030, 128}};
    (void)state;
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (unsigned types = 0; types < 4; types++)
            expect_source(&(source_spec){.seed = i,
                                         .gate_up = types & 1 ? MOE_MXFP4_X4 : MOE_MXFP8_X4,
                                         .down = types & 2 ? MOE_MXFP4_X4 : MOE_MXFP8_X4,
                                         .mx = true,
                                         .layout = SOURCE_OPERATOR,
                                         .E_L = 2,
                                         .H = sizes[i].H,
                                         .I = sizes[i].I,
                                         .lanes_p = sizes[i].lanes_p,
                                         .bias = types == 3 ? MOE_DTYPE_NONE : MOE_F16});
}

/* Lanes past the last tile's width whose down weights are zeros are left out, of each expert for
 * itself. */
static uint32_t zero_lanes(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    source_spec random = *s;
    random.code = NULL;
    uint32_t zero = row % 2 ? 8 : 0;
    if (matrix == SOURCE_DOWN && k >= (e == 0 ? 32 : 128))
        return e == 0 && k >= 32 ? zero : k == 140 && row == 7;
    return source_code(&random, matrix, e, row, k);
}

static void test_left_out_lanes(void **state)
{
    static const size_t want[] = {32, 160};
    source s;
    (void)state;
    source_make(&s, &(source_spec){.gate_up = MOE_MXFP4_X4,
                                   .down = MOE_MXFP4_X4,
                                   .mx = true,
                                   .layout = SOURCE_OPERATOR,
                                   .E_L = 2,
                                   .H = 512,
                                   .I = 30,
                                   .lanes_p = 64,
                                   .code = zero_lanes});
    for (size_t e = 0; e < 2; e++) {
        packed p;
        pack(&p, &s, e);
        assert_int_equal(p.mid_k, want[e]);
        assert_int_equal(p.layout.mid_k, 256);
        for (size_t panel = 0; panel < p.layout.gate_up_panels; panel++)
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                assert_int_equal(
                    pack_pad_rows(&p.source.axis, panel * KERNEL_ROWS, KERNEL_ROWS) >> r & 1,
                    source_row(&p, SOURCE_GATE, panel * KERNEL_ROWS + r) == SIZE_MAX);
        expect_packed(&p, &s.spec);
        free(p.memory);
    }
    source_free(&s);
}

/* ---- the same panels ------------------------------------------------------------------------- */

/* A panel at a time or many, from any layout: the same bytes. */
static void test_same_bytes(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(plain_types); t++) {
        source_spec spec = {.gate_up = plain_types[t],
                            .down = plain_types[t],
                            .E_L = 2,
                            .H = 335,
                            .I = 301,
                            .scale = MOE_F32,
                            .bias = MOE_BF16};
        packed first;
        source s;
        source_make(&s, &spec);
        pack(&first, &s, 1);
        source_free(&s);
        for (int layout = 1; layout < SOURCE_LAYOUTS; layout++) {
            packed p;
            spec.layout = (source_layout)layout;
            source_make(&s, &spec);
            pack(&p, &s, 1);
            assert_int_equal(p.layout.bytes, first.layout.bytes);
            assert_memory_equal(p.memory, first.memory, p.layout.bytes);
            memset(p.memory, 0x5A, p.layout.bytes);
            for (size_t i = 0; i < p.layout.gate_up_panels; i++)
                pack_gate_up(&p.source, &p.layout, 1, i, 1, p.memory);
            for (size_t i = p.layout.down_panels; i-- > 0;)
                pack_down(&p.source, &p.layout, 1, i, 1, p.mid_k, p.memory);
            assert_memory_equal(p.memory, first.memory, p.layout.bytes);
            free(p.memory);
            source_free(&s);
        }
        free(first.memory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),          cmocka_unit_test(test_row_types),
        cmocka_unit_test(test_mx_rows),        cmocka_unit_test(test_words),
        cmocka_unit_test(test_left_out_lanes), cmocka_unit_test(test_same_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

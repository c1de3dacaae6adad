/* SPDX-License-Identifier: Apache-2.0 */
/* test_lossless.c - bf16 experts packed without loss: every panel, decoded as src/kernel.h says,
 * is bit by bit what the source holds, whatever the source holds; and never much larger. */
#include "expect.h"

#include "experts.h"
#include "source.h"

#include <stdlib.h>
#include <string.h>

/* ---- kinds of weights ------------------------------------------------------------------------ */

typedef uint32_t source_value(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k);

static uint64_t random_of(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    return layer_random(s->seed * 31 + matrix, e << 32 | row, k);
}

/* Exponents fall off as those of a normal distribution do. */
static uint32_t gaussian(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    uint64_t r = random_of(s, matrix, e, row, k);
    uint32_t low = (uint32_t)__builtin_ctzll(r >> 20 | 1ull << 40);
    return (uint32_t)(r & 0x807F) | (124 - low) << 7;
}

static uint32_t any_bits(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    return (uint32_t)random_of(s, matrix, e, row, k) & 0xFFFF;
}

static uint32_t constant(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    (void)s, (void)matrix, (void)e, (void)row, (void)k;
    return 0xBF81;
}

static uint32_t zeros(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    return (uint32_t)random_of(s, matrix, e, row, k) & 0x8000;
}

/* NaNs of every payload, infinities, subnormals and both zeros among ordinary numbers. */
static uint32_t special(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    uint64_t r = random_of(s, matrix, e, row, k);
    uint32_t sign_mantissa = (uint32_t)(r & 0x807F);
    switch (r >> 40 & 63) {
    case 0: return sign_mantissa | 0x7F80;
    case 1: return (uint32_t)(r & 0x8000) | 0x7F80;
    case 2: return sign_mantissa;
    case 3: return (uint32_t)(r & 0x8000);
    default: return gaussian(s, matrix, e, row, k);
    }
}

/* Escapes in every chunk. */
static uint32_t strewn(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    uint64_t r = random_of(s, matrix, e, row, k);
    return r >> 40 & 31 ? gaussian(s, matrix, e, row, k) : (uint32_t)r & 0xFFFF;
}

/* Fifteen exponents and no more; then all escapes in one chunk, and there as many as its count can
 * say, or one more. */
static uint32_t fifteen(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    uint64_t r = random_of(s, matrix, e, row, k);
    return (uint32_t)(r & 0x807F) | (100 + (uint32_t)(r >> 32) % 15) << 7;
}

static uint32_t full_chunk(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k,
                           size_t escapes)
{
    size_t local = (matrix == SOURCE_UP ? 16 : row % (matrix == SOURCE_DOWN ? 32 : 16)) +
                   (matrix == SOURCE_UP ? row % 16 : 0);
    size_t place = local * 32 + k % 32;
    return k / 32 == 1 && place < escapes ? 0x7F80u : fifteen(s, matrix, e, row, k);
}

static uint32_t chunk_255(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    return full_chunk(s, matrix, e, row, k, 255);
}

static uint32_t chunk_256(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    return full_chunk(s, matrix, e, row, k, 256);
}

/* Every panel its own exponents: pairs of equally frequent ones. */
static uint32_t ties(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    (void)s;
    return (uint32_t)(40 + row / 16 * 7 + e + (row + k + matrix) % 20) << 7 | (uint32_t)(k & 127);
}

static const struct {
    source_value *value;
    int coded; /* -1: all panels stay bf16, 1: none does, 0: either */
} kinds[] = {{gaussian, 1}, {any_bits, -1}, {constant, 1},  {zeros, 1},      {special, 1},
             {strewn, 1},   {fifteen, 1},   {chunk_255, 1}, {chunk_256, -1}, {ties, 0}};

/* ---- decoding -------------------------------------------------------------------------------- */

static uint32_t bits_at(const uint8_t *line, size_t bit, size_t bits)
{
    uint32_t word;
    memcpy(&word, line + bit / 32 * 4, sizeof word);
    return word >> bit % 32 & ((1u << bits) - 1);
}

/* Term k of row r of a half; *escapes: those of the chunk seen so far. */
static uint32_t decode(const kernel_panel *p, size_t half, size_t r, size_t k)
{
    size_t stride = p->halves * KERNEL_LINE;
    if (p->format == FORMAT_BF16)
        return bits_at(p->stream + k / 2 * stride + half * KERNEL_LINE,
                       kernel_bit_at(FORMAT_BF16, r, k % 2), 16);
    kernel_bf12_head head;
    memcpy(&head, p->stream, sizeof head);
    const uint8_t *unit = p->stream + head.lines_at + k / 8 * 3 * stride + half * KERNEL_LINE;
    uint32_t code = bits_at(unit, kernel_bit_at(FORMAT_BF12, r, k % 8), 4);
    uint32_t sm = bits_at(unit + (1 + k % 8 / 4) * stride, 32 * r + 16 * (k % 2), 16);
    sm = k % 4 > 1 ? (sm >> 8 | (sm & 0xFF) << 8) & 0x807F : sm & 0x807F;
    if (code < 15) return sm | (uint32_t)head.exponent[code] << 7;
    const uint8_t *counts = p->stream + sizeof head, *list = p->stream + head.escapes_at;
    for (size_t n = 0; n < k / 32; n++) list += counts[n] * sizeof(kernel_bf12_escape);
    size_t place = (half * KERNEL_BLOCK + k % KERNEL_BLOCK) * KERNEL_ROWS + r;
    for (size_t n = 0; n < counts[k / 32]; n++) {
        kernel_bf12_escape e;
        memcpy(&e, list + n * sizeof e, sizeof e);
        if (e.place == place) return e.value;
    }
    fail_msg("row %zu k %zu: no escape", r, k);
    return 0;
}

/* Escapes ascend, lie before the lines, and there is one for each code 15 and none else; codes past
 * k are none; 15 exponents differ, the more frequent first. */
static void expect_form(const kernel_panel *p)
{
    kernel_bf12_head head;
    memcpy(&head, p->stream, sizeof head);
    size_t chunks = (p->k + 31) / 32, escapes = 0, codes[16] = {0};
    assert_int_equal(head.lines_at % KERNEL_LINE, 0);
    assert_int_equal(head.escapes_at % 4, 0);
    assert_true(head.escapes_at >= sizeof head + chunks &&
                head.escapes_at < sizeof head + chunks + 4);
    for (size_t n = 0; n < chunks; n++) {
        int last = -1;
        for (size_t i = 0; i < p->stream[sizeof head + n]; i++, escapes++) {
            kernel_bf12_escape e;
            memcpy(&e, p->stream + head.escapes_at + escapes * sizeof e, sizeof e);
            assert_true(e.place > last);
            last = e.place;
        }
    }
    size_t end = head.escapes_at + escapes * sizeof(kernel_bf12_escape);
    assert_true(end <= head.lines_at && head.lines_at < end + KERNEL_LINE);
    for (size_t half = 0; half < p->halves; half++)
        for (size_t k = 0; k < (p->k + 7) / 8 * 8; k++)
            for (size_t r = 0; r < KERNEL_ROWS; r++) {
                size_t line = head.lines_at + (k / 8 * 3 * p->halves + half) * KERNEL_LINE;
                uint32_t code = bits_at(p->stream + line, kernel_bit_at(FORMAT_BF12, r, k % 8), 4);
                if (k < p->k)
                    codes[code]++;
                else
                    assert_int_not_equal(code, 15);
            }
    assert_int_equal(codes[15], escapes);
    for (size_t i = 0; i < 15; i++)
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(head.exponent[i], head.exponent[j]);
            assert_true(codes[j] >= codes[i]);
            assert_true(codes[j] > codes[i] || head.exponent[j] < head.exponent[i]);
        }
}

static void expect_panel(const kernel_panel *p, const source_spec *s, size_t e, size_t panel,
                         bool down, int coded)
{
    if (coded != 0) assert_int_equal(p->format, coded > 0 ? FORMAT_BF12 : FORMAT_BF16);
    if (p->format == FORMAT_BF12) expect_form(p);
    size_t rows = (size_t)(down ? s->H : s->I), terms = (size_t)(down ? s->I : s->H);
    for (size_t half = 0; half < p->halves; half++)
        for (size_t r = 0; r < KERNEL_ROWS; r++) {
            size_t matrix = down ? SOURCE_DOWN : half, row = panel * KERNEL_ROWS + r;
            if (down) row += (panel + half) * KERNEL_ROWS;
            for (size_t k = 0; k < p->k; k++) {
                uint32_t want = row < rows && k < terms ? source_code(s, matrix, e, row, k) : 0;
                assert_int_equal(decode(p, half, r, k), want);
            }
            float scale = row < rows ? source_scale(s, matrix, e, row) : 0.0f,
                  bias = row < rows ? source_bias(s, matrix, e, row) : 0.0f;
            assert_int_equal(p->rows[half].scale != NULL, s->scale != MOE_DTYPE_NONE);
            assert_int_equal(p->rows[half].bias != NULL, s->bias != MOE_DTYPE_NONE);
            if (s->scale != MOE_DTYPE_NONE) assert_memory_equal(&p->rows[half].scale[r], &scale, 4);
            if (s->bias != MOE_DTYPE_NONE) assert_memory_equal(&p->rows[half].bias[r], &bias, 4);
        }
}

static void expect_lossless(moe_context *context, const source_spec *spec, int coded)
{
    source s;
    moe_experts *x;
    size_t bytes;
    source_make(&s, spec);
    assert_int_equal(moe_experts_bytes(context, &s.args, &bytes), MOE_OK);
    if (moe_experts_create(context, &s.args, &x) != MOE_OK) fail_msg("%s", moe_last_error());
    assert_int_equal(x->bytes, bytes);
    for (size_t e = 0; e < (size_t)spec->E_L; e++) {
        for (size_t i = 0; i < x->layout.gate_up_panels; i++) {
            kernel_panel p = experts_gate_up(x, e, i);
            expect_panel(&p, spec, e, i, false, coded);
        }
        for (size_t i = 0; i < x->layout.down_panels; i++) {
            kernel_panel p = experts_down(x, e, i);
            expect_panel(&p, spec, e, i, true, coded);
        }
    }
    size_t tables = (size_t)(x->base - (const uint8_t *)x);
    assert_true(bytes - tables <= x->layout.bytes * (size_t)spec->E_L);
    if (coded > 0 && spec->H >= 256 && spec->I >= 256)
        assert_true((double)(bytes - tables) < 0.78 * (double)x->layout.bytes * (double)spec->E_L);
    assert_int_equal(moe_experts_destroy(x), MOE_OK);
    source_free(&s);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_kinds(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(kinds); i++)
        for (int layout = 0; layout < SOURCE_LAYOUTS; layout++)
            expect_lossless(NULL,
                            &(source_spec){.seed = i,
                                           .gate_up = MOE_BF16,
                                           .down = MOE_BF16,
                                           .layout = (source_layout)layout,
                                           .E_L = 2,
                                           .H = 160,
                                           .I = 208,
                                           .bias = i % 2 ? MOE_BF16 : MOE_DTYPE_NONE,
                                           .packing = MOE_PACK_LOSSLESS,
                                           .code = kinds[i].value},
                            kinds[i].coded);
}

/* Every rest of a chunk, of a unit of 8 k and of a panel. */
static void test_sizes(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 70; n++)
        expect_lossless(NULL,
                        &(source_spec){.seed = (uint64_t)n,
                                       .gate_up = MOE_BF16,
                                       .down = MOE_BF16,
                                       .layout = (source_layout)(n % SOURCE_LAYOUTS),
                                       .E_L = 1,
                                       .H = n,
                                       .I = 71 - n,
                                       .scale = n % 3 ? MOE_DTYPE_NONE : MOE_F32,
                                       .packing = MOE_PACK_LOSSLESS,
                                       .code = special},
                        0);
}

/* More panels than one run has, shared by threads; about three quarters of the bytes. */
static void test_threads(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        moe_context *context;
        moe_context_options options = moe_context_options_init();
        options.threads = threads;
        assert_int_equal(moe_context_create(&options, &context), MOE_OK);
        expect_lossless(context,
                        &(source_spec){.gate_up = MOE_BF16,
                                       .down = MOE_BF16,
                                       .layout = threads % 2 ? SOURCE_OPERATOR : SOURCE_DENSE,
                                       .E_L = 3,
                                       .H = 600,
                                       .I = 272,
                                       .packing = MOE_PACK_LOSSLESS,
                                       .code = gaussian},
                        1);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_case.c - see kernel_case.h. */
#define _GNU_SOURCE
#include "kernel_case.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "layer.h"
#include "numeric.h"

/* ---- guarded memory -------------------------------------------------------------------------- */

guarded guarded_new(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (bytes + page - 1) / page * page;
    uint8_t *p = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, inner, PROT_READ | PROT_WRITE) != 0) abort();
    return (guarded){p + page, p + page + inner};
}

void *guarded_at(const guarded *g, size_t bytes, bool at_end)
{
    if ((size_t)(g->end - g->first) < bytes) abort();
    memset(at_end ? g->end - bytes : g->first, 0xC3, bytes);
    return at_end ? g->end - bytes : g->first;
}

uint64_t case_random(uint64_t seed, uint64_t n)
{
    return layer_random(seed, n, 0x6B);
}

/* ---- weights --------------------------------------------------------------------------------- */

/* Bits of exponent and mantissa; 0: integers. */
static void fields_of(kernel_format f, unsigned *exponent, unsigned *mantissa)
{
    static const unsigned char bits[][2] = {
        [ELEMENT_BF16] = {8, 7},   [ELEMENT_BF12] = {8, 7}, [ELEMENT_F16] = {5, 10},
        [ELEMENT_F32] = {8, 23},   [ELEMENT_E2M1] = {2, 1}, [ELEMENT_E4M3_IEEE] = {4, 3},
        [ELEMENT_E4M3FN] = {4, 3}, [ELEMENT_INT4] = {0, 0}, [ELEMENT_UINT4] = {0, 0},
        [ELEMENT_INT8] = {0, 0}};
    *exponent = bits[kernel_formats[f].element][0];
    *mantissa = bits[kernel_formats[f].element][1];
}

/* With either sign; of integers the least and the largest. */
static uint32_t largest_code(kernel_format f, bool negative)
{
    unsigned e, m;
    fields_of(f, &e, &m);
    uint32_t sign = negative ? 1u << (e + m) : 0;
    switch (kernel_formats[f].element) {
    case ELEMENT_E2M1: return 7 | sign;
    case ELEMENT_E4M3FN: return 0x7E | sign;
    case ELEMENT_INT4:
    case ELEMENT_UINT4: return negative ? 0 : 15;
    case ELEMENT_INT8: return negative ? 0x80 : 0x7F;
    default: return ((1u << e) - 2) << m | ((1u << m) - 1) | sign;
    }
}

static uint32_t drawn_code(const kernel_case *c, size_t half, size_t row, size_t k)
{
    uint64_t r = layer_random(c->seed, half * 16 + row, k);
    unsigned e, m;
    fields_of(c->format, &e, &m);
    uint32_t any = (uint32_t)(r >> 40), exponent;
    if (c->data == CASE_EXTREME) return largest_code(c->format, row % 2 && (r & 1));
    if (kernel_bits(c->format) == 4 && c->format != FORMAT_BF12) return any & 15;
    if (e == 0) return any & 255;
    uint32_t sign = (uint32_t)(r & 1) << (e + m), mantissa = (uint32_t)(r >> 8) & ((1u << m) - 1);
    exponent = (1u << (e - 1)) - 1 + any % 5 - 3;
    if (c->data == CASE_WILD) switch ((row + half + c->seed) % 4) {
        case 1: exponent = any & ((1u << e) - 1); break;
        case 2:
            if (any >> 8 & 1) exponent = 0;
            if (any >> 9 & 1) mantissa = 0;
            break;
        case 3: exponent = 1 + any % ((1u << e) - 2); break;
        default: break;
        }
    return sign | exponent << m | mantissa;
}

uint32_t case_code(const kernel_case *c, size_t half, size_t row, size_t k)
{
    return c->code ? c->code(c, half, row, k) : drawn_code(c, half, row, k);
}

static void put_code(uint8_t *line, kernel_format f, size_t r, size_t k, uint32_t code)
{
    size_t at = kernel_bit_at(f, r, k);
    uint32_t word;
    memcpy(&word, line + at / 32 * 4, sizeof word);
    word |= code << at % 32;
    memcpy(line + at / 32 * 4, &word, sizeof word);
}

static uint32_t e8m0_code(const kernel_case *c, size_t row, uint64_t r)
{
    static const uint8_t special[] = {0, 1, 254, 255};
    if (c->data == CASE_WILD && row % 4 == 1 && r % 8 == 0) return special[r >> 8 & 3];
    if (c->data == CASE_WILD && row % 4 == 3) return (uint8_t)(r >> 16) % 255;
    if (c->data == CASE_WILD && row % 4 == 2 && r % 3 == 0) return (uint8_t)(r >> 8 & 1);
    return (uint8_t)(120 + (r >> 16) % 12);
}

/* A float of e bits of exponent and m of mantissa, of either sign; e4m3fn has no infinity. */
static uint32_t float_code(const kernel_case *c, size_t row, uint64_t r, unsigned e, unsigned m)
{
    uint32_t any = (uint32_t)(r >> 24), last = (1u << e) - 1, mantissa = any & ((1u << m) - 1);
    uint32_t exponent = (1u << (e - 1)) - 3 + (uint32_t)(r >> 8) % 5;
    if (c->data == CASE_EXTREME && row % 3 == 0) exponent = last - 1;
    if (c->data == CASE_WILD) switch (row % 4) {
        case 1: /* a NaN or an infinity now and then */
            if (r % 8 == 0) exponent = last;
            if (r >> 16 & 1) mantissa = 0;
            if (r >> 17 & 1) mantissa = (1u << m) - 1;
            break;
        case 2: /* many zeros and subnormals */
            if (r % 3 < 2) exponent = 0;
            if (r >> 16 & 1) mantissa = 0;
            break;
        case 3: exponent = (uint32_t)(r >> 8) % last; break;
        default: break;
        }
    return (uint32_t)(r >> 63) << (e + m) | exponent << m | mantissa;
}

uint32_t case_scale(const kernel_case *c, kernel_part part, size_t half, size_t row, size_t n)
{
    uint64_t r = layer_random(c->seed + 1 + 16 * (uint64_t)part, half * 16 + row, n);
    if (part == PART_D || part == PART_DMIN) return float_code(c, row, r, 5, 10);
    switch (kernel_formats[c->format].scale) {
    case SCALE_E8M0: return e8m0_code(c, row, r);
    case SCALE_E4M3: return float_code(c, row, r, 4, 3);
    case SCALE_BF16: return float_code(c, row, r, 8, 7);
    case SCALE_F16: return float_code(c, row, r, 5, 10);
    case SCALE_F32: return float_code(c, row, r, 8, 23);
    default: return c->data == CASE_NORMAL ? r >> 8 & 63 : r >> 8 & 255;
    }
}

static const guarded *memory(size_t which)
{
    static guarded all[6];
    static const size_t bytes[] = {1 << 19, 1 << 21, 1, 1, 1, 1};
    if (all[which].first == NULL) all[which] = guarded_new(bytes[which]);
    return &all[which];
}

/* The codes of one array for all rows of a half, little endian. */
static void put_array(const kernel_case *c, uint8_t *stream, kernel_part part, size_t half,
                      size_t run, size_t n)
{
    size_t bytes = part == PART_D || part == PART_DMIN ? 2 : kernel_scale_bytes(c->format);
    uint8_t *at = stream + kernel_scale_at(c->format, c->halves, half, part, run);
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        uint32_t code = case_scale(c, part, half, r, n);
        memcpy(at + r * bytes, &code, bytes);
    }
}

static void put_scales(const kernel_case *c, uint8_t *stream)
{
    const kernel_info *f = &kernel_formats[c->format];
    size_t section = kernel_section_bytes(c->format, c->halves);
    for (size_t k = 0; k < c->k; k += f->chunk) {
        size_t line = k / kernel_line_k(c->format);
        uint8_t *at = stream + kernel_line_at(c->format, c->halves, 0, line) - section;
        memset(at, f->scale == SCALE_E8M0 ? 127 : 0, section);
    }
    for (size_t k = 0, run = 0; k < c->k; k += f->scale_k, run++)
        for (size_t half = 0; half < c->halves; half++) {
            put_array(c, stream, PART_SCALE, half, run, run);
            if (f->minima) put_array(c, stream, PART_MINIMUM, half, run, run);
            if (f->scale != SCALE_K_U8 && f->scale != SCALE_K_I8) continue;
            put_array(c, stream, PART_D, half, run, k / f->chunk);
            if (f->minima) put_array(c, stream, PART_DMIN, half, run, k / f->chunk);
        }
}

static uint8_t *make_lines(const kernel_case *c)
{
    kernel_format f = c->format;
    size_t bytes = kernel_panel_bytes(f, c->halves, c->k);
    uint8_t *stream = guarded_at(memory(0), bytes, c->at_end);
    memset(stream, 0, bytes);
    for (size_t k = 0; k < c->k; k++)
        for (size_t half = 0; half < c->halves; half++) {
            size_t line = kernel_line_at(f, c->halves, half, kernel_line_of(f, k));
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                put_code(stream + line, f, r, k, case_code(c, half, r, k));
        }
    if (kernel_is_scaled(f)) put_scales(c, stream);
    return stream;
}

/* ---- bf12 ------------------------------------------------------------------------------------ */

/* Exponents around 1, of which a third of the seeds lacks one; zero and NaN in some. */
static void fill_exponents(const kernel_case *c, uint8_t *exponent)
{
    if (c->user != NULL) {
        memcpy(exponent, c->user, 16);
        return;
    }
    for (unsigned i = 0; i < 15; i++) exponent[(i * 4 + c->seed) % 15] = (uint8_t)(118 + i);
    if (c->seed % 3 == 0) exponent[c->seed / 3 % 15] = 0;
    if (c->seed % 3 == 1) exponent[c->seed / 3 % 15] = c->seed % 2 ? 255 : 126;
    exponent[15] = (uint8_t)c->seed; /* of no meaning */
}

static unsigned bf12_code(const uint8_t *exponent, uint32_t value)
{
    unsigned code = 0;
    while (code < 15 && exponent[code] != (value >> 7 & 255)) code++;
    return code;
}

static uint8_t *make_bf12(const kernel_case *c)
{
    enum { CHUNKS = CASE_MAX_K / KERNEL_BLOCK, ALL = CHUNKS * 255 };
    static kernel_bf12_escape escape[ALL];
    static uint16_t value[CASE_MAX_K][2][KERNEL_ROWS];
    uint8_t count[CHUNKS] = {0};
    kernel_bf12_head head = {{0}, 0, 0};
    size_t chunks = (c->k + KERNEL_BLOCK - 1) / KERNEL_BLOCK, escapes = 0;
    fill_exponents(c, head.exponent);
    for (size_t chunk = 0; chunk < chunks; chunk++)
        for (size_t half = 0; half < c->halves; half++)
            for (size_t k = chunk * 32; k < c->k && k < chunk * 32 + 32; k++)
                for (size_t r = 0; r < KERNEL_ROWS; r++) {
                    static const size_t most[] = {0, 2, 255, 1, 0, 30};
                    size_t limit = c->code ? 255 : most[(chunk + c->seed) % 6];
                    uint32_t v = case_code(c, half, r, k);
                    bool coded = bf12_code(head.exponent, v) < 15;
                    if (!coded && count[chunk] >= limit)
                        v = (v & 0x807F) | (uint32_t)head.exponent[(k + r) % 15] << 7;
                    else if (!coded) {
                        escape[escapes].place =
                            (uint16_t)((half * KERNEL_BLOCK + k % 32) * KERNEL_ROWS + r);
                        escape[escapes++].value = (uint16_t)v;
                        count[chunk]++;
                    }
                    value[k][half][r] = (uint16_t)v;
                }
    head.escapes_at = (uint32_t)(sizeof head + chunks + 3) / 4 * 4;
    head.lines_at = (uint32_t)(head.escapes_at + escapes * sizeof *escape + 63) / 64 * 64;
    size_t bytes = head.lines_at + kernel_panel_bytes(FORMAT_BF12, c->halves, c->k);
    uint8_t *stream = guarded_at(memory(0), bytes, c->at_end);
    memset(stream, 0, bytes);
    memcpy(stream, &head, sizeof head);
    memcpy(stream + sizeof head, count, chunks);
    memcpy(stream + head.escapes_at, escape, escapes * sizeof *escape);
    for (size_t k = 0; k < (c->k + 7) / 8 * 8; k++)
        for (size_t half = 0; half < c->halves; half++)
            for (size_t r = 0; r < KERNEL_ROWS; r++) {
                uint8_t *unit =
                    stream + head.lines_at + (k / 8 * 3 * c->halves + half) * KERNEL_LINE;
                if (k >= c->k) { /* padding */
                    put_code(unit, FORMAT_BF12, r, k % 8, (uint32_t)(k + r) % 15);
                    continue;
                }
                uint32_t v = value[k][half][r] & 0x807Fu;
                if (k % 4 > 1) v = v >> 8 | (v & 0xFF) << 8;
                put_code(unit, FORMAT_BF12, r, k % 8, bf12_code(head.exponent, value[k][half][r]));
                put_code(unit + (1 + k % 8 / 4) * c->halves * KERNEL_LINE, FORMAT_BF16, r, k % 2,
                         v);
            }
    return stream;
}

/* ---- operands -------------------------------------------------------------------------------- */

static uint32_t drawn_value(const kernel_case *c, size_t t, size_t k)
{
    uint64_t r = layer_random(c->seed + 2, t, k);
    uint32_t sign = (uint32_t)(r & 1) << 31, mantissa = (uint32_t)(r >> 8) & 0x7FFFFF;
    uint32_t any = (uint32_t)(r >> 40), exponent = 125 + any % 3;
    if (c->data == CASE_EXTREME) {
        static const uint32_t of_token[] = {1, 127, 254, 27};
        exponent = of_token[t % 4];
        mantissa = 0x7FFFFF;
    }
    if (c->data == CASE_WILD) switch ((t + c->seed) % 4) {
        case 1: exponent = 64 + any % 128; break;
        case 2:
            if (any >> 8 & 1) exponent = 0;
            if (any >> 9 & 1) mantissa = 0;
            break;
        case 3:
            if (c->k > 0 && k == c->seed / 4 % c->k) {
                exponent = 255;
                mantissa = any & 1 ? 0 : 0x400000;
            }
            break;
        default: break;
        }
    uint32_t bits = sign | exponent << 23 | mantissa;
    const bool bf16 = c->operand == OPERAND_BF16 || c->operand == OPERAND_BF16_SUMS;
    return bf16 && k < c->k ? bits & 0xFFFF0000 : bits;
}

static void fill_int8(const kernel_case *c, size_t t, uint32_t *row)
{
    static const float special[] = {0.0f, 0x1p-126f, 0x1p+120f, 0x1p-149f};
    for (size_t n = 0; n < c->k / 32; n++) {
        int32_t sum = 0, first = 0;
        uint64_t draw = layer_random(c->seed + 3, t, n);
        float scale = (float)(1 + draw % 1000) * 0x1p-8f;
        bool zero = c->data == CASE_WILD && t % 4 == 1 && draw >> 20 & 1;
        if (c->data == CASE_WILD && t % 4 == 2) scale = special[draw >> 30 & 3];
        if (c->data == CASE_WILD && t % 4 == 3 && n == 0) scale = num_nan();
        for (size_t i = 0; i < 32; i++) {
            uint64_t r = layer_random(c->seed + 4, t, n * 32 + i);
            int q = (int)(r >> 16 & 0xFFFF) % 255 - 127;
            if (c->data == CASE_EXTREME) q = t % 2 == 0 ? 127 : r & 1 ? -127 : 127;
            if (zero) q = 0;
            sum += q;
            if (i < 16) first += q;
            row[n * 8 + i / 4] |= (uint32_t)(uint8_t)q << i % 4 * 8;
        }
        memcpy(&row[c->k / 4 + n], &scale, sizeof scale);
        memcpy(&row[c->k / 4 + c->k / 32 + n], &sum, sizeof sum);
        memcpy(&row[c->k / 4 + c->k / 16 + n], &first, sizeof first);
    }
}

static void make_operands(kernel_case *c)
{
    static uint32_t row[KERNEL_TOKENS * CASE_MAX_K], scalar_row[KERNEL_TOKENS * CASE_MAX_K];
    c->row = row;
    const bool bf16 = c->operand == OPERAND_BF16 || c->operand == OPERAND_BF16_SUMS;
    c->scalar_row = bf16 ? scalar_row : row;
    c->scalar_words = c->operand == OPERAND_INT8 ? c->k / 4 + c->k / 32 * 3 : c->k;
    if (c->operand == OPERAND_SUMS || c->operand == OPERAND_BF16_SUMS)
        c->scalar_words = c->k + c->k / 32;
    c->words = bf16 ? c->scalar_words - c->k / 2 : c->scalar_words;
    memset(row, 0, c->tokens * c->words * sizeof *row);
    for (size_t t = 0; t < c->tokens; t++) {
        if (c->operand == OPERAND_INT8) {
            fill_int8(c, t, row + t * c->words);
            continue;
        }
        for (size_t k = 0; k < c->scalar_words; k++) { /* sums: any values */
            uint32_t v = drawn_value(c, t, k);
            c->scalar_row[t * c->scalar_words + k] = v;
            if (bf16 && k < c->k) row[t * c->words + k / 2] |= v >> 16 << k % 2 * 16;
            if (bf16 && k >= c->k) row[t * c->words + k - c->k / 2] = v;
        }
    }
}

kernel_tiles case_tiles(const kernel_case *c, size_t width, bool scalar)
{
    size_t words = scalar ? c->scalar_words : c->words;
    const uint32_t *row = scalar ? c->scalar_row : c->row;
    size_t tile_bytes = (width * words * 4 + 63) / 64 * 64, full = (c->tokens - 1) / width;
    size_t last = ((c->tokens - full * width) * words * 4 + 63) / 64 * 64;
    uint8_t *x = guarded_at(memory(1), full * tile_bytes + last, c->at_end);
    for (size_t t = 0; t < c->tokens; t += width) {
        size_t n = c->tokens - t < width ? c->tokens - t : width;
        uint32_t *tile = (uint32_t *)(void *)(x + t / width * tile_bytes);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < words; j++) tile[j * n + i] = row[(t + i) * words + j];
    }
    return (kernel_tiles){x, c->tokens, width, tile_bytes};
}

/* ---- the whole ------------------------------------------------------------------------------- */

static const float *make_rows(const kernel_case *c, size_t which)
{
    float *v = guarded_at(memory(2 + which), KERNEL_ROWS * sizeof *v, c->at_end);
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        uint64_t draw = layer_random(c->seed + 5, which, r);
        v[r] = (float)(int)(draw >> 40 & 0xFFF) * 0x1p-10f - 2.0f;
        if (c->data == CASE_WILD && draw % 16 == 0)
            v[r] = draw & 16 ? num_nan() : draw & 32 ? num_float(0x7F800000u) : 0x1p-140f;
    }
    return v;
}

void case_make(kernel_case *c)
{
    if (c->k > CASE_MAX_K || c->tokens > KERNEL_TOKENS) abort();
    memset(&c->panel, 0, sizeof c->panel);
    c->panel.format = c->format;
    c->panel.k = c->k;
    c->panel.halves = c->halves;
    c->panel.stream = c->format == FORMAT_BF12 ? make_bf12(c) : make_lines(c);
    for (size_t half = 0; half < c->halves; half++) {
        if (c->scale) c->panel.rows[half].scale = make_rows(c, half);
        if (c->bias) c->panel.rows[half].bias = make_rows(c, 2 + half);
    }
    make_operands(c);
}

size_t case_panel_bytes(const kernel_case *c)
{
    size_t lines = kernel_panel_bytes(c->format, c->halves, c->k);
    if (c->format != FORMAT_BF12) return lines;
    return lines + ((const kernel_bf12_head *)(const void *)c->panel.stream)->lines_at;
}

const char *case_format_name(kernel_format f)
{
    static const char *const names[] = {
        "bf16",         "f16",           "f32",         "e4m3_ieee",   "e4m3fn",
        "mxfp8",        "mxfp4",         "bf12",        "fp8-block",   "int4-bf16-32",
        "int4-bf16-64", "int4-bf16-128", "int4-f16-32", "int4-f16-64", "int4-f16-128",
        "q8_0",         "q4_k",          "q5_k",        "q6_k",        "nvfp4"};
    return names[f];
}

const char *case_operand_name(kernel_operand o)
{
    static const char *const names[] = {"f32", "bf16", "int8", "sums", "bf16_sums"};
    return names[o];
}

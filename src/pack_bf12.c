/* SPDX-License-Identifier: Apache-2.0 */
/* pack_bf12.c - bf16 panels with their exponents coded (kernel.h: kernel_bf12_head).
 *
 * Both passes go by chunks, KERNEL_BLOCK terms of a run's panels as raw lines in a buffer: the
 * first counts exponents, the second codes.  The lines of a unit of 8 k are, like all lines,
 * alternating by half: codes, codes, k 0..3, k 0..3, k 4..7, k 4..7. */
#include "pack_bf12.h"
#include "shuffle.h"
#include "sizes.h"

enum {
    CODES = 15, /* and the escape */
    EXPONENTS = 256,
    UNIT_K = 8,
    UNIT_RAW = 4, /* raw lines of a unit */
    UNIT_LINES = 3,
    CHUNK_RAW = KERNEL_BLOCK / 2,
    MOST_ESCAPES = 255, /* of a chunk */
    MOST_K = 1 << 24,   /* of a coded panel, whose counts and offsets are 32 bits */
    WORDS = KERNEL_LINE / 4
};

/* Raw lines of one chunk of one panel: words of two terms, as a plain panel has them. */
typedef struct chunk {
    uint32_t line[CHUNK_RAW * 2][WORDS];
} chunk;

/* A run, and its chunks as they go by. */
typedef struct reader {
    pack_panels panels;
    size_t count, k;
    size_t at;    /* k of the chunk */
    size_t lines; /* raw lines of a half in the chunk */
    chunk chunk[PACK_RUN];
} reader;

static void open(reader *r, const pack_bf12_run *run)
{
    uint8_t *stream[PACK_RUN];
    for (size_t n = 0; n < run->count; n++) stream[n] = (uint8_t *)r->chunk[n].line;
    pack_panels_of(run->s, run->e, run->down, run->first, run->count, run->halves, stream,
                   &r->panels);
    r->count = run->count;
    r->k = run->k;
    r->at = 0;
    r->lines = 0;
}

/* The next chunk; false at the end. */
static bool next(reader *r)
{
    r->at += r->lines * 2;
    if (r->at >= r->k) return false;
    r->lines = r->k - r->at < KERNEL_BLOCK ? (r->k - r->at) / 2 : CHUNK_RAW; /* k is even */
    pack_plain_lines(&r->panels, r->at, r->lines, 0);
    return true;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static size_t escapes_at(size_t k)
{
    return size_round_up(sizeof(kernel_bf12_head) + size_round_up(k, KERNEL_BLOCK) / KERNEL_BLOCK,
                         4);
}

static size_t lines_at(size_t k, size_t escapes)
{
    return size_round_up(escapes_at(k) + escapes * sizeof(kernel_bf12_escape), KERNEL_LINE);
}

size_t pack_bf12_bytes(const pack_bf12_coding *c, size_t halves, size_t k)
{
    size_t head = c->format == FORMAT_BF12 ? lines_at(k, c->escapes) : 0;
    return head + kernel_panel_bytes(c->format, halves, k);
}

/* ---- choosing -------------------------------------------------------------------------------- */

/* Several tables, so that equal exponents in a row do not wait for each other. */
enum { TABLES = 4 };
typedef uint32_t histogram[TABLES][EXPONENTS];

static void count_chunk(const chunk *c, size_t lines, histogram h)
{
    for (size_t j = 0; j < lines; j++)
        for (size_t w = 0; w < WORDS; w += 2) {
            uint32_t a = c->line[j][w], b = c->line[j][w + 1];
            h[0][a >> 7 & 255]++;
            h[1][a >> 23 & 255]++;
            h[2][b >> 7 & 255]++;
            h[3][b >> 23 & 255]++;
        }
}

/* The most frequent exponents, of equally frequent ones the lower, by their frequency. */
static void choose(const histogram h, size_t terms, pack_bf12_coding *c)
{
    size_t sum[EXPONENTS], left = terms;
    for (size_t i = 0; i < EXPONENTS; i++)
        sum[i] = (size_t)h[0][i] + h[1][i] + h[2][i] + h[3][i] + 1; /* 0: taken */
    for (size_t code = 0; code < CODES; code++) {
        size_t best = 0;
        for (size_t i = 1; i < EXPONENTS; i++)
            if (sum[i] > sum[best]) best = i;
        c->exponent[code] = (uint8_t)best;
        left -= sum[best] - 1;
        sum[best] = 0;
    }
    c->exponent[CODES] = 0;
    c->escapes = (uint32_t)left;
}

/* The code of each exponent. */
static void codes_of(const pack_bf12_coding *c, uint8_t code[EXPONENTS])
{
    memset(code, CODES, EXPONENTS);
    for (size_t i = CODES; i-- > 0;) code[c->exponent[i]] = (uint8_t)i;
}

static size_t count_escapes(const chunk *c, size_t lines, const uint8_t *code)
{
    size_t n = 0;
    for (size_t j = 0; j < lines; j++)
        for (size_t w = 0; w < WORDS; w++)
            n += (size_t)(code[c->line[j][w] >> 7 & 255] == CODES) +
                 (size_t)(code[c->line[j][w] >> 23 & 255] == CODES);
    return n;
}

/* Whether every chunk of the run's panel number n has a count that fits. */
static bool counts_fit(const pack_bf12_run *run, size_t n, const pack_bf12_coding *c)
{
    reader r;
    pack_bf12_run one = *run;
    uint8_t code[EXPONENTS];
    if (c->escapes <= MOST_ESCAPES) return true;
    codes_of(c, code);
    one.first += n;
    one.count = 1;
    for (open(&r, &one); next(&r);)
        if (count_escapes(&r.chunk[0], r.lines * run->halves, code) > MOST_ESCAPES) return false;
    return true;
}

void pack_bf12_choose(const pack_bf12_run *run, pack_bf12_coding *c)
{
    reader r;
    histogram h[PACK_RUN];
    memset(h, 0, run->count * sizeof h[0]);
    for (open(&r, run); next(&r);)
        for (size_t n = 0; n < run->count; n++)
            count_chunk(&r.chunk[n], r.lines * run->halves, h[n]);
    size_t raw = kernel_panel_bytes(FORMAT_BF16, run->halves, run->k);
    for (size_t n = 0; n < run->count; n++) {
        choose((const uint32_t(*)[EXPONENTS])h[n], run->k * run->halves * KERNEL_ROWS, &c[n]);
        c[n].format = FORMAT_BF12;
        if (run->k > MOST_K || pack_bf12_bytes(&c[n], run->halves, run->k) >= raw ||
            !counts_fit(run, n, &c[n]))
            c[n].format = FORMAT_BF16;
    }
}

/* ---- coding ---------------------------------------------------------------------------------- */

/* exponent[i] in every byte. */
typedef struct code_table {
    u8x16 exponent[CODES];
} code_table;

/* The codes of 16 exponents; CODES where there is none. */
static inline u8x16 codes(u8x16 exponent, const code_table *t)
{
    u8x16 found = {0};
    for (uint8_t i = 0; i < CODES; i++)
        found |= (u8x16)(exponent == t->exponent[i]) & (uint8_t)(i ^ CODES);
    return found ^ (uint8_t)CODES;
}

/* The exponents of two raw lines' terms, in the low bytes and in the high ones. */
static inline u8x16 exponents(u16x8 low, u16x8 high)
{
    return (u8x16)((low >> 7 & 0x00FFu) | (high << 1 & 0xFF00u));
}

/* Sign and mantissa of two raw lines' terms, the second's bytes exchanged. */
static inline u16x8 signs(u16x8 first, u16x8 second)
{
    u16x8 b = second & 0x807Fu;
    return (first & 0x807Fu) | b << 8 | b >> 8;
}

/* The three lines of a unit of one half; raw and dst: its first lines, the others strides apart.
 * Whether there is an escape. */
static bool code_unit(const uint8_t *raw, const code_table *t, uint8_t *dst, size_t stride)
{
    u8x16 escape = {0};
    for (size_t i = 0; i < KERNEL_LINE; i += sizeof(u8x16)) {
        u16x8 k01 = (u16x8)shuffle_load(raw + i), k23 = (u16x8)shuffle_load(raw + stride + i),
              k45 = (u16x8)shuffle_load(raw + 2 * stride + i),
              k67 = (u16x8)shuffle_load(raw + 3 * stride + i);
        u8x16 even = codes(exponents(k01, k45), t), odd = codes(exponents(k23, k67), t);
        escape |= (u8x16)(even == CODES) | (u8x16)(odd == CODES);
        shuffle_store(dst + i, (u8x16)((u16x8)even | (u16x8)odd << 4));
        shuffle_store(dst + stride + i, (u8x16)signs(k01, k23));
        shuffle_store(dst + 2 * stride + i, (u8x16)signs(k45, k67));
    }
    u64x2 any = (u64x2)escape;
    return (any[0] | any[1]) != 0;
}

/* Terms of a last unit that are past k have the first code, and no sign or mantissa. */
static bool code_last(const uint8_t *raw, size_t lines, const code_table *t, uint8_t *dst,
                      size_t stride)
{
    uint16_t unit[UNIT_RAW][KERNEL_LINE / 2];
    uint8_t out[UNIT_LINES][KERNEL_LINE];
    for (size_t j = 0; j < UNIT_RAW; j++)
        for (size_t i = 0; i < KERNEL_LINE / 2; i++)
            unit[j][i] = (uint16_t)(t->exponent[0][0] << 7);
    for (size_t j = 0; j < lines; j++) memcpy(unit[j], raw + j * stride, KERNEL_LINE);
    bool escape = code_unit((const uint8_t *)unit, t, out[0], KERNEL_LINE);
    for (size_t j = 0; j < UNIT_LINES; j++) memcpy(dst + j * stride, out[j], KERNEL_LINE);
    return escape;
}

/* The chunk's escapes to list[0 .. room), in the order of their places; how many. */
static size_t list_escapes(const chunk *c, size_t halves, size_t lines, const uint8_t *code,
                           size_t room, uint8_t *list)
{
    size_t n = 0;
    for (size_t half = 0; half < halves; half++)
        for (size_t k = 0; k < lines * 2; k++)
            for (size_t r = 0; r < KERNEL_ROWS; r++) {
                uint32_t x = c->line[k / 2 * halves + half][r] >> 16 * (k % 2) & 0xFFFFu;
                if (code[x >> 7 & 255] != CODES || n == room) continue;
                kernel_bf12_escape e = {(uint16_t)((half * KERNEL_BLOCK + k) * KERNEL_ROWS + r),
                                        (uint16_t)x};
                memcpy(list + n++ * sizeof e, &e, sizeof e);
            }
    return n;
}

/* A panel that is being written. */
typedef struct writer {
    uint8_t *panel, *lines;
    uint8_t code[EXPONENTS];
    code_table table;
    size_t escapes, most; /* written, chosen */
} writer;

static void begin(writer *w, const pack_bf12_coding *c, size_t k, uint8_t *panel)
{
    kernel_bf12_head head = {.lines_at = (uint32_t)lines_at(k, c->escapes),
                             .escapes_at = (uint32_t)escapes_at(k)};
    memcpy(head.exponent, c->exponent, sizeof head.exponent);
    memset(panel, 0, head.lines_at);
    memcpy(panel, &head, sizeof head);
    *w = (writer){.panel = panel, .lines = panel + head.lines_at, .most = c->escapes};
    codes_of(c, w->code);
    for (size_t i = 0; i < CODES; i++) w->table.exponent[i] = (u8x16){0} + c->exponent[i];
}

static void code_chunk(writer *w, const reader *r, const chunk *c, size_t halves)
{
    bool escape = false;
    size_t stride = halves * KERNEL_LINE;
    for (size_t j = 0; j < r->lines; j += UNIT_RAW, w->lines += UNIT_LINES * stride)
        for (size_t half = 0; half < halves; half++) {
            const uint8_t *raw = (const uint8_t *)c->line[j * halves + half];
            uint8_t *dst = w->lines + half * KERNEL_LINE;
            escape |= r->lines - j >= UNIT_RAW
                          ? code_unit(raw, &w->table, dst, stride)
                          : code_last(raw, r->lines - j, &w->table, dst, stride);
        }
    if (!escape) return;
    size_t room = w->most - w->escapes < MOST_ESCAPES ? w->most - w->escapes : MOST_ESCAPES;
    size_t n = list_escapes(c, halves, r->lines, w->code, room,
                            w->panel + escapes_at(r->k) + w->escapes * sizeof(kernel_bf12_escape));
    w->panel[sizeof(kernel_bf12_head) + r->at / KERNEL_BLOCK] = (uint8_t)n;
    w->escapes += n;
}

void pack_bf12_write(const pack_bf12_run *run, const pack_bf12_coding *c, uint8_t *const *stream)
{
    reader r;
    writer w[PACK_RUN];
    size_t stride = run->halves * KERNEL_LINE;
    for (size_t n = 0; n < run->count; n++)
        if (c[n].format == FORMAT_BF12) begin(&w[n], &c[n], run->k, stream[n]);
    for (open(&r, run); next(&r);)
        for (size_t n = 0; n < run->count; n++)
            if (c[n].format == FORMAT_BF12)
                code_chunk(&w[n], &r, &r.chunk[n], run->halves);
            else
                memcpy(stream[n] + r.at / 2 * stride, r.chunk[n].line, r.lines * stride);
}

/* ---- panels of foreign origin ---------------------------------------------------------------- */

/* The escapes of one chunk: their places ascend, inside the panel. */
static bool are_sound(const uint8_t *list, size_t count, size_t halves, size_t terms)
{
    kernel_bf12_escape e;
    for (size_t i = 0, least = 0; i < count; i++, least = e.place + 1u) {
        memcpy(&e, list + i * sizeof e, sizeof e);
        size_t term = e.place / KERNEL_ROWS;
        if (e.place < least || term / KERNEL_BLOCK >= halves || term % KERNEL_BLOCK >= terms)
            return false;
    }
    return true;
}

size_t pack_bf12_sound(const uint8_t *stream, size_t bytes, size_t halves, size_t k)
{
    kernel_bf12_head head;
    size_t chunks = size_pieces(k, KERNEL_BLOCK), escapes = 0;
    if (k > MOST_K || bytes < escapes_at(k)) return 0;
    memcpy(&head, stream, sizeof head);
    const uint8_t *counts = stream + sizeof head;
    for (size_t n = 0; n < chunks; n++) escapes += counts[n];
    size_t lines = lines_at(k, escapes), all = lines + kernel_panel_bytes(FORMAT_BF12, halves, k);
    if (head.escapes_at != escapes_at(k) || head.lines_at != lines || all > bytes) return 0;
    const uint8_t *list = stream + head.escapes_at;
    for (size_t n = 0; n < chunks; list += counts[n++] * sizeof(kernel_bf12_escape)) {
        size_t left = k - n * KERNEL_BLOCK;
        if (!are_sound(list, counts[n], halves, size_smaller(left, KERNEL_BLOCK))) return 0;
    }
    return all;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* layer_values.c - the numbers in the tensors of test layers. */
#include "layer.h"
#include "numeric.h"

#include <stdlib.h>

/* ---- random numbers -------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

uint64_t layer_random(uint64_t seed, uint64_t a, uint64_t b)
{
    return mix(mix(mix(seed) + a) + b);
}

/* In (-1, 1), with 24 significant bits. */
static float uniform(uint64_t random)
{
    return (float)((int64_t)(random >> 40) * 2 + 1 - (1 << 24)) * 0x1p-24f;
}

enum { KINDS = 6, FIRST_HARMLESS_KIND = 3 };

/* NaN, +inf, -inf; and, harmless to a sum, subnormals of f32, of f16, zeros. */
static float special(uint64_t kind, uint64_t random)
{
    static const float table[KINDS] = {NAN, INFINITY, -INFINITY, 1e-40f, 3e-7f, 0.0f};
    float v = table[kind];
    return kind >= FIRST_HARMLESS_KIND && (random & 1) ? -v : v;
}

/* One of the row's n values if the kind is harmful, else one in four. */
static bool is_hit(uint64_t kind, uint64_t random_row, uint64_t k, uint64_t n, uint64_t random)
{
    return kind < FIRST_HARMLESS_KIND ? k == random_row % n : random % 4 == 0;
}

/* 2^n of a row: n in [-20, 20], or in [-10, 10] where the format has no more. */
static float wide(moe_dtype dtype, uint64_t random)
{
    int reach = dtype == MOE_F16 ? 10 : 20;
    return num_pow2((int)(random % (unsigned)(2 * reach + 1)) - reach);
}

/* ceil(log2(sqrt(n))): what keeps a sum of n products near 1. */
static int half_log2(int64_t n)
{
    int bits = 0;
    while (((int64_t)1 << bits) < n) bits++;
    return (bits + 1) / 2;
}

/* ---- coordinates ----------------------------------------------------------------------------- */

/* A tensor while it is filled. */
typedef struct filling {
    const layer_spec *spec;
    moe_dtype dtype;
    unsigned char *data;
    uint64_t seed; /* of the tensor */
} filling;

static void put(const filling *f, uint64_t n, float v)
{
    uint16_t half = f->dtype == MOE_BF16 ? num_to_bf16(v) : num_to_f16(v);
    if (f->dtype == MOE_F32)
        memcpy(f->data + 4 * n, &v, 4);
    else
        memcpy(f->data + 2 * n, &half, 2);
}

static void put_integer(const filling *f, uint64_t n, int64_t v)
{
    uint32_t word = (uint32_t)v;
    if (f->dtype == MOE_I64)
        memcpy(f->data + 8 * n, &v, 8);
    else
        memcpy(f->data + 4 * n, &word, 4);
}

/* Where zero runs of the hidden axis lie: the four quarters alike, so that they cover whole
 * blocks of MX. */
static bool in_zero_run(const filling *f, uint64_t row, uint64_t h)
{
    uint64_t H = (uint64_t)f->spec->H, quarter = H % 4 == 0 ? H / 4 : H;
    return (f->spec->wild & LAYER_WILD_ZERO_RUNS) &&
           layer_random(f->seed, row, (h % quarter) / 64) % 4 == 0;
}

/* An e4m3 code near 2^-scale, either sign; any finite code if wide. */
static uint8_t e4m3(uint64_t random, int scale, bool any)
{
    if (any) return (uint8_t)((random & 0x80) | random % 0x78);
    int exponent = 7 - scale - (int)(random >> 8 & 3);
    return (uint8_t)((random & 0x87) | (unsigned)(exponent < 0 ? 0 : exponent) << 3);
}

static uint8_t scale_byte(const filling *f, uint64_t random, int usual)
{
    static const uint8_t edges[4] = {0, 1, 254, 255};
    if ((f->spec->wild & LAYER_WILD_SCALE_BYTES) && random % 8 == 0) return edges[random >> 3 & 3];
    return (uint8_t)(usual - (int)(random >> 8 & 3));
}

/* ---- tensors with a row per token ------------------------------------------------------------ */

static float hidden_value(const filling *f, uint64_t t, uint64_t h)
{
    uint64_t row = layer_random(f->seed, t, UINT64_MAX), random = layer_random(f->seed, t, h);
    uint64_t kind = t / 3 % KINDS;
    if ((f->spec->wild & LAYER_WILD_SPECIAL) && t % 3 == 2 &&
        is_hit(kind, row, h, (uint64_t)f->spec->H, random))
        return special(kind, random >> 8);
    if (in_zero_run(f, t, h)) return random & 1 ? -0.0f : 0.0f;
    float v = uniform(random) * 2.0f;
    return f->spec->wild & LAYER_WILD_WIDE ? v * wide(f->dtype, row) : v;
}

/* The h of element (p, j) of a row in SBUF, and of position q of word (p, n). */
static uint64_t sbuf_h(const layer *l, uint64_t p, uint64_t j)
{
    return layer_is_mx(l) ? j * 128 + p : p * (uint64_t)(l->spec.H / 128) + j;
}

static uint64_t word_h(const layer *l, uint64_t p, uint64_t n, uint64_t q)
{
    return q * (uint64_t)(l->spec.H / 4) + n * 128 + p;
}

static void fill_hidden(const layer *l, const filling *f)
{
    uint64_t T = (uint64_t)f->spec->T, H = (uint64_t)f->spec->H;
    if (f->spec->place == LAYER_PREQUANT) {
        bool any = f->spec->wild & LAYER_WILD_WIDE;
        for (uint64_t p = 0; p < 128; p++)
            for (uint64_t n = 0; n < H / 512; n++)
                for (uint64_t t = 0; t < T; t++)
                    for (uint64_t q = 0; q < 4; q++) {
                        uint64_t h = word_h(l, p, n, q), random = layer_random(f->seed, t, h);
                        f->data[((p * (H / 512) + n) * T + t) * 4 + q] =
                            in_zero_run(f, t, h) ? (uint8_t)(random & 0x80) : e4m3(random, 0, any);
                    }
    } else if (f->spec->place == LAYER_SBUF) {
        for (uint64_t p = 0; p < 128; p++)
            for (uint64_t t = 0; t < T; t++)
                for (uint64_t j = 0; j < H / 128; j++)
                    put(f, (p * T + t) * (H / 128) + j, hidden_value(f, t, sbuf_h(l, p, j)));
    } else {
        for (uint64_t t = 0; t < T; t++)
            for (uint64_t h = 0; h < H; h++) put(f, t * H + h, hidden_value(f, t, h));
    }
}

/* Every byte is a plausible scale, those that carry none of the layout's blocks too. */
static void fill_hidden_scale(const filling *f)
{
    uint64_t T = (uint64_t)f->spec->T, tiles = (uint64_t)f->spec->H / 512;
    for (uint64_t p = 0; p < 128; p++)
        for (uint64_t n = 0; n < tiles; n++)
            for (uint64_t t = 0; t < T; t++) {
                uint64_t random = layer_random(f->seed, t, n * 128 + p);
                f->data[(p * tiles + n) * T + t] = scale_byte(f, random, 129);
            }
}

static void fill_affinities(const filling *f, uint64_t columns)
{
    for (uint64_t n = 0; n < (uint64_t)f->spec->T * columns; n++) {
        uint64_t random = layer_random(f->seed, n / columns, n % columns);
        float v = uniform(random);
        if (!f->spec->no_zero_affinity && random % 8 == 0) v = random & 8 ? -0.0f : 0.0f;
        if ((f->spec->wild & LAYER_WILD_ROUTING) && random % 32 == 1)
            v = special((random >> 5) % KINDS, random >> 12);
        put(f, n, v);
    }
}

/* Selective: any expert here, twice in a row too.  All-expert: any of E, and one in 16 is no
 * expert at all. */
static void fill_index(const filling *f)
{
    uint64_t K = (uint64_t)f->spec->K, E = (uint64_t)f->spec->E, E_L = (uint64_t)f->spec->E_L;
    for (uint64_t n = 0; n < (uint64_t)f->spec->T * K; n++) {
        uint64_t random = layer_random(f->seed, n / K, n % K), expert = (random >> 8) % E;
        int64_t strange[4] = {-1, (int64_t)E, INT32_MAX, (int64_t)expert};
        if (f->dtype == MOE_I64) strange[3] += (int64_t)1 << 32;
        bool is_strange = f->spec->all_expert && random % 16 == 0;
        put_integer(f, n,
                    is_strange ? strange[random >> 4 & 3]
                               : (int64_t)(f->spec->all_expert ? expert : (random >> 8) % E_L));
    }
}

/* ---- tensors of the experts ------------------------------------------------------------------ */

/* [E_L, axis, gates, columns] of one element type: gate/up (axis h, two gates) and down (axis i,
 * one). */
static void fill_plain_weights(const filling *f, uint64_t axis, uint64_t gates, uint64_t columns)
{
    int scale = half_log2((int64_t)axis);
    bool is_code = f->dtype == MOE_E4M3_IEEE || f->dtype == MOE_E4M3FN;
    bool is_wide = f->spec->wild & LAYER_WILD_WIDE, has_runs = f->spec->wild & LAYER_WILD_ZERO_RUNS;
    for (uint64_t n = 0; n < (uint64_t)f->spec->E_L * axis * gates * columns; n++) {
        uint64_t c = n % columns, g = n / columns % gates, k = n / columns / gates % axis;
        uint64_t e = n / columns / gates / axis, random = layer_random(f->seed, e, n);
        uint64_t row = layer_random(f->seed, e * gates + g, c ^ (uint64_t)1 << 40);
        /* one NaN of gate/up reaches every output of its expert, so that only the last expert
         * has any */
        uint64_t kind = c / 16 % KINDS;
        if (gates == 2 && e + 1 < (uint64_t)f->spec->E_L && kind < FIRST_HARMLESS_KIND) kind += 3;
        bool is_special = (f->spec->wild & LAYER_WILD_WEIGHTS) && c % 16 == 7 &&
                          is_hit(kind, row, k, axis, random >> 16);
        bool is_zero = has_runs && layer_random(f->seed, k / 64, ~e) % 4 == 0;
        if (is_code) {
            static const uint8_t codes[2][KINDS] = {{0x7F, 0x78, 0xF8, 1, 0x87, 0x80},
                                                    {0x7F, 0xFF, 0x7E, 1, 0x87, 0x80}};
            f->data[n] = is_special ? codes[f->dtype == MOE_E4M3FN][kind]
                         : is_zero  ? (uint8_t)(random & 0x80)
                                    : e4m3(random, scale, is_wide);
        } else {
            float v = uniform(random) * 2.0f * num_pow2(-scale);
            if (is_wide) v *= wide(f->dtype, row);
            put(f, n, is_special ? special(kind, random) : is_zero ? -0.0f : v);
        }
    }
}

/* [E_L, partitions, gates * tiles, columns] of x4 words; a zero run is the 8 partitions of a
 * block. */
static void fill_mx_weights(const filling *f, uint64_t partitions, uint64_t tiles, uint64_t columns)
{
    bool is_fp4 = f->dtype == MOE_MXFP4_X4;
    for (uint64_t n = 0; n < (uint64_t)f->spec->E_L * partitions * tiles * columns; n++) {
        uint64_t c = n % columns, tile = n / columns % tiles, row = n / columns / tiles;
        uint64_t random = layer_random(f->seed, row, n), run = layer_random(f->seed, tile, row / 8);
        bool is_zero = (f->spec->wild & LAYER_WILD_ZERO_RUNS) && run % 4 == 0;
        bool is_nan = (f->spec->wild & LAYER_WILD_WEIGHTS) && c % 16 == 7 && random % 64 == 0 &&
                      row / partitions + 1 == (uint64_t)f->spec->E_L;
        if (is_fp4) {
            uint16_t word = (uint16_t)(is_zero ? random & 0x8888 : random);
            memcpy(f->data + 2 * n, &word, 2);
            continue;
        }
        for (uint64_t q = 0; q < 4; q++) {
            uint64_t r = random >> 16 * q;
            f->data[4 * n + q] = is_nan    ? 0x7F
                                 : is_zero ? (uint8_t)(r & 0x80)
                                           : e4m3(r, -1, f->spec->wild & LAYER_WILD_WIDE);
        }
    }
}

static void fill_mx_scale(const filling *f, uint64_t bytes, uint64_t columns, int64_t axis)
{
    for (uint64_t n = 0; n < bytes; n++) {
        uint64_t c = n % columns, random = layer_random(f->seed, n / columns, c);
        int usual = 127 - half_log2(axis);
        if (f->spec->wild & LAYER_WILD_WIDE)
            usual += (int)(layer_random(f->seed, c, UINT64_MAX) % 41) - 20;
        f->data[n] = scale_byte(f, random, usual);
    }
}

static void fill_bias(const filling *f, uint64_t count, bool harmless)
{
    for (uint64_t n = 0; n < count; n++) {
        uint64_t random = layer_random(f->seed, n, 0), kind = (random >> 5) % KINDS;
        if (harmless && kind < FIRST_HARMLESS_KIND) kind += 3;
        bool is_special = (f->spec->wild & LAYER_WILD_ROUTING) && random % 32 == 0;
        put(f, n, is_special ? special(kind, random >> 12) : uniform(random));
    }
}

/* f32, of either sign, 0.5 to 1.5. */
static void fill_row_scale(const filling *f, uint64_t count)
{
    for (uint64_t n = 0; n < count; n++) {
        uint64_t random = layer_random(f->seed, n, 0);
        float v = 1.0f + 0.5f * uniform(random);
        put(f, n, random % 8 == 0 ? -v : v);
    }
}

/* ---- any tensor ------------------------------------------------------------------------------ */

void layer_fill(layer *l, layer_tensor which)
{
    const layer_spec *s = &l->spec;
    const moe_tensor *t = &l->tensor[which];
    filling f = {s, t->dtype, l->data[which], layer_random(s->seed, (uint64_t)which, 0)};
    uint64_t H = (uint64_t)s->H, I = (uint64_t)s->I, nH = H / 512, nI = (I + 511) / 512;
    uint64_t I_p = (uint64_t)l->tensor[LAYER_DOWN].shape[1];
    uint64_t count = l->bytes[which] / moe_dtype_size(t->dtype);
    bool mx = layer_is_mx(l);
    switch (which) {
    case LAYER_HIDDEN: fill_hidden(l, &f); break;
    case LAYER_GATE_UP:
        if (mx)
            fill_mx_weights(&f, 128, 2 * nH, I);
        else
            fill_plain_weights(&f, H, 2, I);
        break;
    case LAYER_DOWN:
        if (mx)
            fill_mx_weights(&f, I_p, nI, H);
        else
            fill_plain_weights(&f, I, 1, H);
        break;
    case LAYER_AFFINITIES: fill_affinities(&f, (uint64_t)s->E); break;
    case LAYER_INDEX: fill_index(&f); break;
    case LAYER_RANK: put_integer(&f, 0, s->rank); break;
    case LAYER_GATE_UP_BIAS: fill_bias(&f, count, true); break;
    case LAYER_DOWN_BIAS: fill_bias(&f, count, false); break;
    case LAYER_GATE_UP_SCALE:
        if (mx)
            fill_mx_scale(&f, count, I, s->H);
        else
            fill_row_scale(&f, count);
        break;
    case LAYER_DOWN_SCALE:
        if (mx)
            fill_mx_scale(&f, count, H, s->I);
        else
            fill_row_scale(&f, count);
        break;
    case LAYER_HIDDEN_SCALE: fill_hidden_scale(&f); break;
    case LAYER_GATE_UP_INPUT_SCALE:
    case LAYER_DOWN_INPUT_SCALE: fill_row_scale(&f, count); break;
    case LAYER_EAGER: fill_affinities(&f, (uint64_t)s->K); break;
    case LAYER_TENSORS: abort();
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* bench_layer.c - makes the weights of a layer.
 *
 * Owns their distribution: Gaussian, rounded to the format, scaled so that gate and up come out
 * near 1 in size.  A weight is drawn from a table of 65536 rounded ones, since a call does not see
 * the difference and a layer has billions.  Knows nothing of how the operator is timed. */
#include "bench_layer.h"

#include "rng.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct format_facts {
    const char *name;
    moe_dtype weights;
    unsigned bits; /* of an element */
    bool mx;
} format_facts;

static const format_facts FORMATS[BENCH_FORMATS] = {
    [BENCH_BF16] = {"bf16", MOE_BF16, 16, false},
    [BENCH_BF16_LOSSLESS] = {"bf16-lossless", MOE_BF16, 16, false},
    [BENCH_FP16] = {"fp16", MOE_F16, 16, false},
    [BENCH_FP8_ROW] = {"fp8-row", MOE_E4M3FN, 8, false},
    [BENCH_FP8_STATIC] = {"fp8-static", MOE_E4M3FN, 8, false},
    [BENCH_MXFP8] = {"mxfp8", MOE_E4M3FN, 8, true},
    [BENCH_MXFP4] = {"mxfp4", MOE_E2M1_X2, 4, true},
};

enum { BLOCK = 32, TABLE = 1 << 16, STREAM_TABLE = 1000, STREAM_IMAGE = 2000 };

bool bench_format_from_name(const char *text, bench_format *format)
{
    if (strcmp(text, "f16") == 0) text = "fp16";
    if (strcmp(text, "fp8") == 0) text = "fp8-row";
    for (int i = 0; i < BENCH_FORMATS; i++) {
        if (strcmp(text, FORMATS[i].name) != 0) continue;
        *format = (bench_format)i;
        return true;
    }
    return false;
}

const char *bench_format_name(bench_format format)
{
    return FORMATS[format].name;
}

bool bench_format_is_mx(bench_format format)
{
    return FORMATS[format].mx;
}

const char *bench_refusal(const shape *s, bench_format format, moe_act_mode act)
{
    if (FORMATS[format].mx && (s->H % BLOCK || s->I % BLOCK))
        return "needs H and I in multiples of 32, the block of a scale";
    if (act == MOE_ACT_MXFP8 && !FORMATS[format].mx) return "--act mxfp8 needs mxfp4 or mxfp8";
    if (act == MOE_ACT_INT8 && format != BENCH_MXFP4) return "--act int8 needs mxfp4";
    return NULL;
}

/* ---- sizes --------------------------------------------------------------------------------- */

static size_t rows_of(const shape *s, int matrix)
{
    return (size_t)(matrix == 2 ? s->H : s->I);
}

static size_t terms_of(const shape *s, int matrix)
{
    return (size_t)(matrix == 2 ? s->I : s->H);
}

static size_t weight_bytes(const shape *s, bench_format format, int matrix)
{
    return rows_of(s, matrix) * terms_of(s, matrix) * FORMATS[format].bits / 8;
}

static size_t scale_bytes(const shape *s, bench_format format, int matrix)
{
    if (FORMATS[format].mx) return rows_of(s, matrix) * terms_of(s, matrix) / BLOCK;
    if (format == BENCH_FP8_ROW) return rows_of(s, matrix) * sizeof(float);
    return format == BENCH_FP8_STATIC ? sizeof(float) : 0;
}

static size_t bias_bytes(const shape *s, int matrix)
{
    return s->bias ? rows_of(s, matrix) * sizeof(uint16_t) : 0;
}

size_t bench_image_bytes(const shape *s, bench_format format)
{
    size_t bytes = 0;
    for (int m = 0; m < BENCH_MATRICES; m++)
        bytes += weight_bytes(s, format, m) + scale_bytes(s, format, m) + bias_bytes(s, m);
    return bytes;
}

size_t bench_images(const shape *s, bench_format format)
{
    enum { MOST = 4, ENOUGH = 256 << 20 };
    size_t n = 1, bytes = bench_image_bytes(s, format);
    while (n < MOST && n < (size_t)s->E && (n + 1) * bytes <= ENOUGH) n++;
    return n;
}

/* ---- numbers ------------------------------------------------------------------------------- */

static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The code of a small float: `exponents` bits with that bias, `mantissas` bits, no infinities;
 * rounded to nearest, ties to even, at most largest. */
static unsigned to_small(double value, int mantissas, int bias, double largest, int sign_bit)
{
    double size = fabs(value);
    if (size > largest) size = largest;
    int exponent = size > 0 ? ilogb(size) : 1 - bias;
    if (exponent < 1 - bias) exponent = 1 - bias;           /* a subnormal */
    double units = rint(ldexp(size, mantissas - exponent)); /* a carry makes the next exponent */
    unsigned code = (unsigned)(exponent - 1 + bias) << mantissas;
    code += (unsigned)units; /* a normal number's leading 1 adds the missing 1 of the exponent */
    return code | (value < 0 ? 1u << sign_bit : 0);
}

static uint16_t to_f16(double value)
{
    return (uint16_t)to_small(value, 10, 15, 65504, 15);
}

static uint8_t to_e4m3fn(double value)
{
    return (uint8_t)to_small(value, 3, 7, 448, 7);
}

static uint8_t to_e2m1(double value)
{
    return (uint8_t)to_small(value, 1, 1, 6, 3);
}

/* What 1 standard deviation is in the format's codes: where its largest number is reached about as
 * often as scales of that kind let it be.  The largest of 32 Gaussian numbers is near 2.1. */
static double unit_of(bench_format format)
{
    switch (format) {
    case BENCH_FP8_ROW:
    case BENCH_FP8_STATIC: return 448 / 5.0;
    case BENCH_MXFP8: return 384 / 2.1;
    case BENCH_MXFP4: return 5 / 2.1;
    default: return 1;
    }
}

/* The scale of a matrix: that of weights of variance 1 / terms. */
static double deviation(const shape *s, int matrix)
{
    return 1 / sqrt((double)terms_of(s, matrix));
}

/* TABLE random weights: 16 bits each, or 8 bits, which are two codes of MXFP4. */
static void make_table(uint8_t *table, const bench_source *b, int matrix)
{
    uint64_t state = rng_stream(b->seed, STREAM_TABLE + (uint64_t)matrix);
    double unit = unit_of(b->format);
    for (size_t i = 0; i < TABLE; i++) {
        double x = rng_normal(&state);
        uint16_t wide;
        switch (FORMATS[b->format].weights) {
        case MOE_BF16: wide = to_bf16((float)(x * deviation(b->shape, matrix))); break;
        case MOE_F16: wide = to_f16(x * deviation(b->shape, matrix)); break;
        case MOE_E4M3FN: table[i] = to_e4m3fn(x * unit); continue;
        default:
            table[i] = (uint8_t)(to_e2m1(x * unit) | to_e2m1(rng_normal(&state) * unit) << 4);
            continue;
        }
        memcpy(table + 2 * i, &wide, sizeof wide);
    }
}

/* ---- experts ------------------------------------------------------------------------------- */

static void fill_weights(uint8_t *p, size_t bytes, const uint8_t *table, size_t width,
                         uint64_t *state)
{
    for (size_t i = 0; i < bytes;) {
        uint64_t r = rng_next(state);
        for (int n = 0; n < 4 && i < bytes; n++, r >>= 16, i += width) {
            const uint8_t *from = table + (r & 0xffff) * width;
            p[i] = from[0];
            if (width == 2) p[i + 1] = from[1];
        }
    }
}

static void fill_scale(const bench_source *b, int matrix, uint8_t *p, uint64_t *state)
{
    double scale = deviation(b->shape, matrix) / unit_of(b->format);
    size_t bytes = scale_bytes(b->shape, b->format, matrix);
    if (FORMATS[b->format].mx) { /* powers of two around it */
        int low = 126 + (int)lrint(log2(scale));
        for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)(low + (int)rng_below(state, 3));
        return;
    }
    for (size_t i = 0; i < bytes; i += sizeof(float)) {
        float f = (float)(scale * (0.75 + rng_unit(state) / 2));
        memcpy(p + i, &f, sizeof f);
    }
}

static void fill_image(const bench_source *b, size_t i, const uint8_t *const *table)
{
    uint64_t state = rng_stream(b->seed, STREAM_IMAGE + i);
    for (int m = 0; m < BENCH_MATRICES; m++) {
        const bench_image *image = &b->image[i];
        fill_weights(image->weights[m], weight_bytes(b->shape, b->format, m), table[m],
                     FORMATS[b->format].bits == 16 ? 2 : 1, &state);
        if (image->scale[m]) fill_scale(b, m, image->scale[m], &state);
        for (size_t r = 0; image->bias[m] && r < rows_of(b->shape, m); r++) {
            uint16_t bias = to_bf16((float)(0.5 * rng_normal(&state)));
            memcpy(image->bias[m] + r * sizeof bias, &bias, sizeof bias);
        }
    }
}

typedef struct fill_job {
    const bench_source *source;
    const uint8_t *table[BENCH_MATRICES];
    atomic_size_t next;
} fill_job;

static void fill_images(void *arg, size_t thread)
{
    fill_job *j = arg;
    (void)thread;
    for (size_t i; (i = atomic_fetch_add(&j->next, 1)) < j->source->images;)
        fill_image(j->source, i, j->table);
}

/* ---- the source ---------------------------------------------------------------------------- */

moe_experts_args bench_describe(const shape *s, bench_format format)
{
    moe_experts_args args = moe_experts_args_init();
    moe_matrix *matrix[BENCH_MATRICES] = {&args.gate, &args.up, &args.down};
    args.E_L = s->E;
    args.H = s->H;
    args.I = s->I;
    if (format == BENCH_BF16_LOSSLESS) args.packing = MOE_PACK_LOSSLESS;
    for (int m = 0; m < BENCH_MATRICES; m++) {
        int64_t rows = (int64_t)rows_of(s, m), k = (int64_t)terms_of(s, m);
        matrix[m]->weights = moe_array_dense(NULL, FORMATS[format].weights, rows, k);
        if (FORMATS[format].mx) matrix[m]->scale = moe_array_dense(NULL, MOE_E8M0, rows, k / BLOCK);
        if (format == BENCH_FP8_ROW || format == BENCH_FP8_STATIC)
            matrix[m]->scale = moe_array_dense(NULL, MOE_F32, rows, 1);
        if (format == BENCH_FP8_STATIC) matrix[m]->scale.row_stride = 0;
        if (s->bias) matrix[m]->bias = moe_array_dense(NULL, MOE_BF16, rows, 1);
    }
    return args;
}

/* The next array of an image, at a multiple of 64; NULL if there is none of these bytes. */
static uint8_t *place(uint8_t **at, size_t bytes)
{
    uint8_t *p = *at;
    *at += (bytes + 63) / 64 * 64;
    return bytes ? p : NULL;
}

static uint8_t *place_image(const bench_source *b, bench_image *image, uint8_t *at)
{
    for (int m = 0; m < BENCH_MATRICES; m++) {
        image->weights[m] = place(&at, weight_bytes(b->shape, b->format, m));
        image->scale[m] = place(&at, scale_bytes(b->shape, b->format, m));
        image->bias[m] = place(&at, bias_bytes(b->shape, m));
    }
    return at;
}

/* Gives the array the pointers of its experts; which: the offset of the array in a bench_image. */
static const void **point(const bench_source *b, moe_array *a, size_t which, const void **pointer)
{
    if (a->dtype == MOE_DTYPE_NONE) return pointer;
    a->experts = pointer;
    for (int64_t e = 0; e < b->shape->E; e++)
        memcpy(pointer++, (const char *)&b->image[(size_t)e % b->images] + which, sizeof *pointer);
    return pointer;
}

static void point_args(bench_source *b)
{
    moe_matrix *matrix[BENCH_MATRICES] = {&b->args.gate, &b->args.up, &b->args.down};
    const void **p = b->pointers;
    for (size_t m = 0; m < BENCH_MATRICES; m++) {
        p = point(b, &matrix[m]->weights, offsetof(bench_image, weights) + m * sizeof(void *), p);
        p = point(b, &matrix[m]->scale, offsetof(bench_image, scale) + m * sizeof(void *), p);
        p = point(b, &matrix[m]->bias, offsetof(bench_image, bias) + m * sizeof(void *), p);
    }
}

bool bench_source_make(bench_source *b, const shape *s, bench_format format, size_t images,
                       uint64_t seed, team *t)
{
    size_t padded = bench_image_bytes(s, format) + 9 * 64, tables = BENCH_MATRICES * TABLE * 2;
    *b = (bench_source){.shape = s, .format = format, .seed = seed, .images = images};
    b->image_bytes = bench_image_bytes(s, format);
    b->args = bench_describe(s, format);
    b->image = calloc(images, sizeof *b->image);
    b->pointers = malloc(9 * (size_t)s->E * sizeof *b->pointers);
    b->memory = images <= (SIZE_MAX - tables) / padded ? malloc(images * padded + tables) : NULL;
    if (!b->image || !b->pointers || !b->memory) {
        bench_source_free(b);
        return false;
    }
    fill_job j = {.source = b};
    for (int m = 0; m < BENCH_MATRICES; m++) {
        uint8_t *table = b->memory + (size_t)m * TABLE * 2;
        make_table(table, b, m);
        j.table[m] = table;
    }
    uint8_t *at = b->memory + tables;
    for (size_t i = 0; i < images; i++) at = place_image(b, &b->image[i], at);
    team_run(t, fill_images, &j);
    point_args(b);
    return true;
}

void bench_source_free(bench_source *b)
{
    free(b->image);
    free(b->pointers);
    free(b->memory);
    *b = (bench_source){0};
}

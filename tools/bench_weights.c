/* SPDX-License-Identifier: Apache-2.0 */
/* bench_weights.c - random weights in every format that is timed.
 *
 * Owns their distribution: Gaussian, rounded to the format, scaled so that gate and up come out
 * near 1 in size.  A weight is drawn from a table of 65536 rounded ones, since a call does not see
 * the difference and a layer has billions.  Knows nothing of how the operator is timed. */
#include "bench_weights.h"

#include "rng.h"

#include <math.h>
#include <string.h>

typedef struct format_facts {
    const char *name;
    moe_dtype weights, scale;    /* scale beside them, or none */
    int32_t scale_k, scale_rows; /* as a moe_matrix has them */
    int64_t step;                /* H and I are multiples of it */
    bool int8;                   /* --act int8 takes it */
} format_facts;

static const format_facts FORMATS[BENCH_FORMATS] = {
    [BENCH_BF16] = {"bf16", MOE_BF16, MOE_DTYPE_NONE, 0, 0, 1, false},
    [BENCH_BF16_LOSSLESS] = {"bf16-lossless", MOE_BF16, MOE_DTYPE_NONE, 0, 0, 1, false},
    [BENCH_FP16] = {"fp16", MOE_F16, MOE_DTYPE_NONE, 0, 0, 1, false},
    [BENCH_FP8_ROW] = {"fp8-row", MOE_E4M3FN, MOE_F32, 0, 0, 1, false},
    [BENCH_FP8_STATIC] = {"fp8-static", MOE_E4M3FN, MOE_F32, 0, 0, 1, false},
    [BENCH_FP8_CHANNEL] = {"fp8-channel", MOE_E4M3FN, MOE_BF16, 0, 0, 1, false},
    [BENCH_FP8_BLOCK] = {"fp8-block", MOE_E4M3FN, MOE_F32, 128, 128, 1, false},
    [BENCH_MXFP8] = {"mxfp8", MOE_E4M3FN, MOE_E8M0, 32, 0, 32, false},
    [BENCH_MXFP4] = {"mxfp4", MOE_E2M1_X2, MOE_E8M0, 32, 0, 32, true},
    [BENCH_NVFP4] = {"nvfp4", MOE_E2M1_X2, MOE_E4M3FN, 16, 0, 16, true},
    [BENCH_INT4_G32] = {"int4-g32", MOE_INT4_X2, MOE_BF16, 32, 0, 32, true},
    [BENCH_INT4_G64] = {"int4-g64", MOE_INT4_X2, MOE_BF16, 64, 0, 64, true},
    [BENCH_INT4_G128] = {"int4-g128", MOE_INT4_X2, MOE_BF16, 128, 0, 128, true},
    [BENCH_Q8_0] = {"q8_0", MOE_Q8_0, MOE_DTYPE_NONE, 0, 0, 32, true},
    [BENCH_Q4_0] = {"q4_0", MOE_Q4_0, MOE_DTYPE_NONE, 0, 0, 32, true},
    [BENCH_Q4_K] = {"q4_k", MOE_Q4_K, MOE_DTYPE_NONE, 0, 0, 256, true},
    [BENCH_Q5_K] = {"q5_k", MOE_Q5_K, MOE_DTYPE_NONE, 0, 0, 256, true},
    [BENCH_Q6_K] = {"q6_k", MOE_Q6_K, MOE_DTYPE_NONE, 0, 0, 256, true},
};

enum { STREAM_TABLE = 1000, MOST_K = 256 };

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

const char *bench_refusal(const shape *s, bench_format format, moe_act_mode act)
{
    const format_facts *f = &FORMATS[format];
    if (s->H % f->step || s->I % f->step) switch (f->step) {
        case 16: return "needs H and I in multiples of 16, the block of a scale";
        case 32: return "needs H and I in multiples of 32, the block of a scale";
        case 64: return "needs H and I in multiples of 64, the block of a scale";
        case 128: return "needs H and I in multiples of 128, the block of a scale";
        default: return "needs H and I in multiples of 256, a block";
        }
    if (act == MOE_ACT_MXFP8 && f->scale != MOE_E8M0) return "--act mxfp8 needs mxfp4 or mxfp8";
    if (act == MOE_ACT_INT8 && !f->int8) return "--act int8 needs 4-bit or integer weights";
    return NULL;
}

/* ---- sizes --------------------------------------------------------------------------------- */

size_t bench_rows(const shape *s, int matrix)
{
    return (size_t)(matrix == 2 ? s->H : s->I);
}

size_t bench_terms(const shape *s, int matrix)
{
    return (size_t)(matrix == 2 ? s->I : s->H);
}

moe_matrix bench_matrix(const shape *s, bench_format format, int matrix)
{
    const format_facts *f = &FORMATS[format];
    int64_t rows = (int64_t)bench_rows(s, matrix), k = (int64_t)bench_terms(s, matrix);
    int64_t grid = f->scale_rows ? (rows - 1) / f->scale_rows + 1 : rows,
            columns = f->scale_k ? (k - 1) / f->scale_k + 1 : 1;
    moe_matrix m;
    memset(&m, 0, sizeof m);
    m.weights = moe_array_dense(NULL, f->weights, rows, k);
    m.scale_k = f->scale_k;
    m.scale_rows = f->scale_rows;
    if (f->scale != MOE_DTYPE_NONE) m.scale = moe_array_dense(NULL, f->scale, grid, columns);
    if (format == BENCH_FP8_STATIC) m.scale.row_stride = 0;
    if (format == BENCH_NVFP4) m.row_scale = (moe_array){.dtype = MOE_F32, .column_stride = 4};
    if (s->bias) m.bias = moe_array_dense(NULL, MOE_BF16, rows, 1);
    return m;
}

size_t bench_array_bytes(const shape *s, bench_format format, int matrix, bench_array array)
{
    moe_matrix m = bench_matrix(s, format, matrix);
    switch (array) {
    case BENCH_WEIGHTS: return (size_t)m.weights.expert_stride;
    case BENCH_SCALE:
        return format == BENCH_FP8_STATIC ? sizeof(float) : (size_t)m.scale.expert_stride;
    case BENCH_ROW_SCALE: return moe_dtype_size(m.row_scale.dtype);
    default: return (size_t)m.bias.expert_stride;
    }
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

/* The code, from 0 to largest, of an integer format whose middle is 0. */
static uint8_t to_integer(double value, double middle, double largest)
{
    double code = rint(value + middle);
    return (uint8_t)(code < 0 ? 0 : code > largest ? largest : code);
}

/* What 1 standard deviation is in the format's codes: where its largest number is reached about as
 * often as scales of that kind let it be.  The largest of 32 Gaussian numbers is near 2.1, of 16
 * near 1.8. */
static double unit_of(bench_format format)
{
    switch (format) {
    case BENCH_FP8_ROW:
    case BENCH_FP8_STATIC:
    case BENCH_FP8_CHANNEL:
    case BENCH_FP8_BLOCK: return 448 / 5.0;
    case BENCH_MXFP8: return 384 / 2.1;
    case BENCH_MXFP4: return 5 / 2.1;
    case BENCH_NVFP4: return 6 / 1.8;
    case BENCH_INT4_G32:
    case BENCH_Q4_0: return 8 / 2.1;
    case BENCH_INT4_G64: return 8 / 2.4;
    case BENCH_INT4_G128: return 8 / 2.6;
    case BENCH_Q8_0: return 127 / 2.1;
    case BENCH_Q4_K: return 7.5 / 2.1;
    case BENCH_Q5_K: return 15.5 / 2.1;
    case BENCH_Q6_K: return 32 / 1.8;
    default: return 1;
    }
}

/* The scale of a matrix: that of weights of variance 1 / terms. */
static double deviation(const shape *s, int matrix)
{
    return 1 / sqrt((double)bench_terms(s, matrix));
}

/* The code of a number in units of the format, as a table has it. */
static uint16_t code_of(bench_format format, double x, double deviation)
{
    switch (format) {
    case BENCH_BF16:
    case BENCH_BF16_LOSSLESS: return to_bf16((float)(x * deviation));
    case BENCH_FP16: return to_f16(x * deviation);
    case BENCH_MXFP4:
    case BENCH_NVFP4: return to_e2m1(x);
    case BENCH_INT4_G32:
    case BENCH_INT4_G64:
    case BENCH_INT4_G128:
    case BENCH_Q4_0: return to_integer(x, 8, 15);
    case BENCH_Q8_0: return (uint8_t)(to_integer(x, 127, 254) - 127);
    case BENCH_Q4_K: return to_integer(x, 7.5, 15);
    case BENCH_Q5_K: return to_integer(x, 15.5, 31);
    case BENCH_Q6_K: return to_integer(x, 32, 63);
    default: return to_e4m3fn(x);
    }
}

static bool is_pairs(bench_format format)
{
    return FORMATS[format].weights == MOE_E2M1_X2 || FORMATS[format].weights == MOE_INT4_X2;
}

static bool is_wide(bench_format format)
{
    return format <= BENCH_FP16;
}

/* BENCH_TABLE random weights: of 16 bits, or of 8, which are two codes where a byte has two. */
void bench_table_make(uint8_t *table, const shape *s, bench_format format, int matrix,
                      uint64_t seed)
{
    uint64_t state = rng_stream(seed, STREAM_TABLE + (uint64_t)matrix);
    double unit = unit_of(format), scale = deviation(s, matrix);
    for (size_t i = 0; i < BENCH_TABLE; i++) {
        uint16_t code = code_of(format, rng_normal(&state) * unit, scale);
        if (is_pairs(format))
            code |= (uint16_t)(code_of(format, rng_normal(&state) * unit, scale) << 4);
        if (is_wide(format))
            memcpy(table + 2 * i, &code, sizeof code);
        else
            table[i] = (uint8_t)code;
    }
}

/* ---- blocks of GGUF ------------------------------------------------------------------------ */

static void put_f16(uint8_t *p, double value)
{
    uint16_t code = to_f16(value);
    memcpy(p, &code, sizeof code);
}

/* Codes i and i + half of each 2 * half neighbours in one byte. */
static void put_nibbles(uint8_t *p, const uint8_t *code, size_t n, size_t half)
{
    for (size_t i = 0; i < n / 2; i++) {
        const uint8_t *at = code + i / half * 2 * half + i % half;
        p[i] = (uint8_t)((at[0] & 15) | (at[half] & 15) << 4);
    }
}

/* d and dmin, then eight scales of 32 to 63 d, with minima that put 0 in the middle of the codes. */
static void put_k_scales(uint8_t *p, double scale, double middle, uint64_t *state)
{
    double d = scale / 48;
    unsigned s[8];
    put_f16(p, d);
    put_f16(p + 2, d * middle);
    for (size_t j = 0; j < 8; j++) s[j] = 32 + (unsigned)rng_below(state, 32);
    for (size_t j = 0; j < 4; j++) {
        p[4 + j] = p[8 + j] = (uint8_t)(s[j] | s[j + 4] >> 4 << 6);
        p[12 + j] = (uint8_t)((s[j + 4] & 15) * 17);
    }
}

static void put_block(uint8_t *p, bench_format format, const uint8_t *code, double scale,
                      uint64_t *state)
{
    switch (format) {
    case BENCH_Q8_0:
        put_f16(p, scale);
        memcpy(p + 2, code, 32);
        break;
    case BENCH_Q4_0:
        put_f16(p, scale);
        put_nibbles(p + 2, code, 32, 16);
        break;
    case BENCH_Q4_K:
        put_k_scales(p, scale, 7.5, state);
        put_nibbles(p + 16, code, 256, 32);
        break;
    case BENCH_Q5_K:
        put_k_scales(p, scale, 15.5, state);
        memset(p + 16, 0, 32);
        for (size_t k = 0; k < 256; k++) p[16 + k % 32] |= (uint8_t)((code[k] >> 4) << k / 32);
        put_nibbles(p + 48, code, 256, 32);
        break;
    default: /* Q6_K */
        put_nibbles(p, code, 256, 64);
        memset(p + 128, 0, 64);
        for (size_t k = 0; k < 256; k++)
            p[128 + k / 128 * 32 + k % 32] |= (uint8_t)((code[k] >> 4) << k % 128 / 32 * 2);
        for (size_t j = 0; j < 16; j++) p[192 + j] = (uint8_t)(64 + rng_below(state, 64));
        put_f16(p + 208, scale / 96);
    }
}

/* ---- arrays -------------------------------------------------------------------------------- */

/* n elements of `width` bytes out of the table. */
static void draw(uint8_t *p, size_t n, const uint8_t *table, size_t width, uint64_t *state)
{
    for (size_t i = 0; i < n;) {
        uint64_t r = rng_next(state);
        for (int j = 0; j < 4 && i < n; j++, i++, r >>= 16)
            memcpy(p + i * width, table + (r & 0xffff) * width, width);
    }
}

/* Around 1. */
static double vary(uint64_t *state)
{
    return 0.75 + rng_unit(state) / 2;
}

static void fill_blocks(uint8_t *p, size_t bytes, bench_format format, double scale,
                        const uint8_t *table, uint64_t *state)
{
    uint8_t code[MOST_K];
    moe_dtype dtype = FORMATS[format].weights;
    for (size_t at = 0; at < bytes; at += moe_dtype_size(dtype)) {
        draw(code, moe_dtype_k(dtype), table, 1, state);
        put_block(p + at, format, code, scale * vary(state), state);
    }
}

/* One scale of the size given. */
static void put_scale(uint8_t *p, bench_format format, double scale, uint64_t *state)
{
    float f = (float)(scale * vary(state));
    uint16_t half = to_bf16(f);
    switch (FORMATS[format].scale) {
    case MOE_E8M0: *p = (uint8_t)(126 + (int)lrint(log2(scale)) + (int)rng_below(state, 3)); break;
    case MOE_E4M3FN: *p = to_e4m3fn(64 * vary(state)); break; /* the row scale has the rest */
    case MOE_BF16: memcpy(p, &half, sizeof half); break;
    default: memcpy(p, &f, sizeof f);
    }
}

void bench_array_fill(uint8_t *p, const shape *s, bench_format format, int matrix,
                      bench_array array, const uint8_t *table, uint64_t *state)
{
    const format_facts *f = &FORMATS[format];
    size_t bytes = bench_array_bytes(s, format, matrix, array);
    double scale = deviation(s, matrix) / unit_of(format);
    float row = (float)(scale / 64);
    switch (array) {
    case BENCH_WEIGHTS:
        if (moe_dtype_k(f->weights) > 2)
            fill_blocks(p, bytes, format, scale, table, state);
        else
            draw(p, bytes / (is_wide(format) ? 2 : 1), table, is_wide(format) ? 2 : 1, state);
        break;
    case BENCH_SCALE:
        for (size_t i = 0; i < bytes; i += moe_dtype_size(f->scale))
            put_scale(p + i, format, scale, state);
        break;
    case BENCH_ROW_SCALE: memcpy(p, &row, sizeof row); break;
    default:
        for (size_t i = 0; i < bytes; i += sizeof(uint16_t)) {
            uint16_t bias = to_bf16((float)(0.5 * rng_normal(state)));
            memcpy(p + i, &bias, sizeof bias);
        }
    }
}

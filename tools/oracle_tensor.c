/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_tensor.c - number formats and the elements of tensors.
 *
 * Owns the formats: every one is a sign, an exponent field and a mantissa field, so that one
 * decoder and one rounding serve all.  Assumes rounding to nearest in the caller's floating-point
 * environment. */
#include "oracle_tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- formats -------------------------------------------------------------------------------- */

typedef enum top_kind {
    TOP_FINITE, /* the largest exponent field holds ordinary numbers */
    TOP_IEEE,   /* it holds infinities and NaN */
    TOP_NAN     /* its all-ones mantissa is NaN */
} top_kind;

typedef struct format {
    int exponent_bits, mantissa_bits;
    top_kind top;
} format;

static format format_of(moe_dtype dtype)
{
    switch (dtype) {
    case MOE_BF16: return (format){8, 7, TOP_IEEE};
    case MOE_F16: return (format){5, 10, TOP_IEEE};
    case MOE_F32: return (format){8, 23, TOP_IEEE};
    case MOE_E4M3_IEEE: return (format){4, 3, TOP_IEEE};
    case MOE_E4M3FN:
    case MOE_MXFP8_X4: return (format){4, 3, TOP_NAN};
    case MOE_MXFP4_X4: return (format){2, 1, TOP_FINITE};
    default: return (format){0, 0, TOP_FINITE};
    }
}

static int bias_of(format f)
{
    return (1 << (f.exponent_bits - 1)) - 1;
}

/* (-1)^s (1 + m / 2^M) 2^(e - bias), or (-1)^s (m / 2^M) 2^(1 - bias) if e = 0. */
double oracle_stored(moe_dtype dtype, uint32_t code)
{
    format f = format_of(dtype);
    if (dtype == MOE_E8M0) return code == 255 ? (double)NAN : ldexp(1, (int)code - 127);
    if (f.exponent_bits == 0) return NAN;
    uint32_t one = UINT32_C(1) << f.mantissa_bits, last = (UINT32_C(1) << f.exponent_bits) - 1;
    uint32_t m = code & (one - 1), e = code >> f.mantissa_bits & last;
    bool negative = code >> (f.mantissa_bits + f.exponent_bits) & 1;

    double x;
    if (e == last && f.top == TOP_IEEE)
        x = m == 0 ? (double)INFINITY : (double)NAN;
    else if (e == last && f.top == TOP_NAN && m == one - 1)
        x = NAN;
    else
        x = ldexp(e == 0 ? m : one + m, (e == 0 ? 1 : (int)e) - bias_of(f) - f.mantissa_bits);
    return negative ? -x : x;
}

double oracle_decode(moe_dtype dtype, uint32_t code)
{
    double x = oracle_stored(dtype, code);
    return dtype == MOE_E8M0 ? x : oracle_flush(x);
}

double oracle_flush(double x)
{
    return fabs(x) < ORACLE_MIN_FLOAT ? copysign(0, x) : x;
}

/* The distance of neighbours with that many mantissa bits at x, exponents from lowest up. */
static double unit_at(double x, int mantissa_bits, int lowest)
{
    int e = x == 0 ? lowest : ilogb(x); /* |x| in [2^e, 2^(e+1)) */
    return ldexp(1, (e > lowest ? e : lowest) - mantissa_bits);
}

double oracle_f32(double x)
{
    if (x == 0 || !isfinite(x)) return x;
    double unit = unit_at(x, 23, -2000), r = oracle_flush(rint(x / unit) * unit);
    return fabs(r) > ORACLE_MAX_FLOAT ? copysign(INFINITY, x) : r;
}

double oracle_round(double x, moe_dtype dtype)
{
    format f = format_of(dtype);
    if (x == 0 || !isfinite(x) || f.exponent_bits == 0) return x;
    double unit = unit_at(x, f.mantissa_bits, 1 - bias_of(f)), r = rint(x / unit) * unit;
    bool over = f.top == TOP_IEEE && fabs(r) >= ldexp(1, bias_of(f) + 1);
    return over ? copysign(INFINITY, x) : r;
}

double oracle_half_unit(double x, moe_dtype dtype)
{
    format f = format_of(dtype);
    return isfinite(x) ? unit_at(x, f.mantissa_bits, 1 - bias_of(f)) / 2 : 0;
}

/* ---- elements ------------------------------------------------------------------------------- */

/* The n-th element of `bytes` bytes, which are in the order of this machine. */
static uint64_t bits_at(const moe_tensor *t, size_t n, size_t bytes)
{
    const unsigned char *at = (const unsigned char *)t->data + n * bytes;
    uint64_t wide;
    uint32_t word;
    uint16_t half;
    switch (bytes) {
    case 8: memcpy(&wide, at, 8); return wide;
    case 4: memcpy(&word, at, 4); return word;
    case 2: memcpy(&half, at, 2); return half;
    default: return *at;
    }
}

static size_t bytes_of(moe_dtype dtype)
{
    switch (dtype) {
    case MOE_I64: return 8;
    case MOE_F32:
    case MOE_MXFP8_X4:
    case MOE_I32:
    case MOE_U32: return 4;
    case MOE_BF16:
    case MOE_F16:
    case MOE_MXFP4_X4: return 2;
    default: return 1;
    }
}

double oracle_at(const moe_tensor *t, size_t n)
{
    return oracle_decode(t->dtype, (uint32_t)bits_at(t, n, bytes_of(t->dtype)));
}

int64_t oracle_integer_at(const moe_tensor *t, size_t n)
{
    uint64_t bits = bits_at(t, n, bytes_of(t->dtype));
    if (t->dtype == MOE_U32) return (int64_t)bits;
    return t->dtype == MOE_I32 ? (int32_t)(uint32_t)bits : (int64_t)bits;
}

double oracle_stored_at(const moe_tensor *t, size_t n)
{
    return oracle_stored(t->dtype, (uint32_t)bits_at(t, n, bytes_of(t->dtype)));
}

/* Position 0 is in the lowest bits. */
static uint32_t code_in(moe_dtype dtype, uint64_t word, size_t q)
{
    return (uint32_t)(dtype == MOE_MXFP4_X4 ? word >> 4 * q & 15 : word >> 8 * q & 255);
}

double oracle_code_at(const moe_tensor *t, size_t n, size_t q)
{
    return oracle_decode(t->dtype, code_in(t->dtype, bits_at(t, n, bytes_of(t->dtype)), q));
}

bool oracle_decoder_make(oracle_decoder *d, moe_dtype dtype)
{
    *d = (oracle_decoder){dtype, NULL};
    if (dtype == MOE_F32) return true;
    uint32_t codes = dtype == MOE_BF16 || dtype == MOE_F16 ? 65536 : 256;
    d->table = malloc(codes * sizeof *d->table);
    if (!d->table) return false;
    for (uint32_t code = 0; code < codes; code++) d->table[code] = oracle_decode(dtype, code);
    return true;
}

void oracle_decoder_free(oracle_decoder *d)
{
    free(d->table);
    d->table = NULL;
}

bool oracle_decode_row(const oracle_decoder *d, const moe_tensor *t, size_t first, size_t n,
                       size_t q, double *row)
{
    size_t bytes = bytes_of(d->dtype);
    bool x4 = oracle_is_mx(t), finite = true;
    for (size_t c = 0; c < n; c++) {
        uint64_t word = bits_at(t, first + c, bytes);
        uint32_t code = x4 ? code_in(d->dtype, word, q) : (uint32_t)word;
        row[c] = d->table ? d->table[code] : oracle_decode(d->dtype, code);
        finite &= isfinite(row[c]) != 0;
    }
    return finite;
}

bool oracle_is_float(const moe_tensor *t)
{
    return t->dtype == MOE_BF16 || t->dtype == MOE_F16 || t->dtype == MOE_F32;
}

bool oracle_is_integer(const moe_tensor *t)
{
    return t->dtype == MOE_I32 || t->dtype == MOE_U32 || t->dtype == MOE_I64;
}

bool oracle_is_mx(const moe_tensor *t)
{
    return t->dtype == MOE_MXFP4_X4 || t->dtype == MOE_MXFP8_X4;
}

bool oracle_has_shape(const moe_tensor *t, size_t rank, const size_t *dims)
{
    if (!t || t->rank < 0 || (size_t)t->rank != rank) return false;
    size_t bytes = bytes_of(t->dtype);
    for (size_t i = 0; i < rank; i++) {
        if (t->shape[i] < 0 || (uint64_t)t->shape[i] != dims[i]) return false;
        if (__builtin_mul_overflow(bytes, dims[i], &bytes)) return false;
    }
    return bytes <= PTRDIFF_MAX && (t->data || bytes == 0);
}

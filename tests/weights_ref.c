/* SPDX-License-Identifier: Apache-2.0 */
/* weights_ref.c - see weights_ref.h. */
#include "weights_ref.h"

#include <math.h>
#include <string.h>

/* ---- numbers --------------------------------------------------------------------------------- */

/* Sign, exponent and mantissa of a small float; special: its largest exponent is inf and NaN. */
static double small_float(unsigned code, int exponent_bits, int mantissa_bits, int special)
{
    int e = (int)(code >> mantissa_bits) & ((1 << exponent_bits) - 1),
        m = (int)code & ((1 << mantissa_bits) - 1), bias = (1 << (exponent_bits - 1)) - 1;
    double sign = code >> (exponent_bits + mantissa_bits) & 1 ? -1.0 : 1.0;
    if (special && e == (1 << exponent_bits) - 1) return m == 0 ? sign * INFINITY : NAN;
    if (e == 0) return sign * ldexp(m, 1 - bias - mantissa_bits);
    return sign * ldexp(m + (1 << mantissa_bits), e - bias - mantissa_bits);
}

static double f16(const unsigned char *at)
{
    return small_float((unsigned)at[0] | (unsigned)at[1] << 8, 5, 10, 1);
}

static double e4m3fn(unsigned code)
{
    return (code & 0x7F) == 0x7F ? NAN : small_float(code, 4, 3, 0);
}

static double e8m0(unsigned code)
{
    return code == 255 ? NAN : ldexp(1.0, (int)code - 127);
}

static double e2m1(unsigned code)
{
    return small_float(code & 15, 2, 1, 0);
}

double weights_ref_number(const void *at, moe_dtype dtype)
{
    const unsigned char *b = at;
    float f;
    uint32_t bits;
    switch (dtype) {
    case MOE_BF16:
        bits = (uint32_t)b[0] << 16 | (uint32_t)b[1] << 24;
        memcpy(&f, &bits, sizeof f);
        return (double)f;
    case MOE_F16: return f16(b);
    case MOE_F32: memcpy(&f, b, sizeof f); return (double)f;
    case MOE_E4M3_IEEE: return small_float(b[0], 4, 3, 1);
    case MOE_E4M3FN: return e4m3fn(b[0]);
    default: return e8m0(b[0]);
    }
}

/* ---- blocks: b a whole one, k its term ------------------------------------------------------- */

static double q4(const unsigned char *qs, size_t k)
{
    return (double)(k < 16 ? qs[k] & 15 : qs[k - 16] >> 4);
}

/* Scale and minimum j of Q4_K and Q5_K, 6 bits each. */
static void k_scale(const unsigned char *s, size_t j, double *scale, double *minimum)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *minimum = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *minimum = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

static double q45_k(const unsigned char *b, const unsigned char *qs, const unsigned char *qh,
                    size_t k)
{
    double scale, minimum;
    unsigned nibbles = qs[k / 64 * 32 + k % 32], q = k % 64 < 32 ? nibbles & 15 : nibbles >> 4;
    k_scale(b + 4, k / 32, &scale, &minimum);
    if (qh != NULL) q += ((unsigned)qh[k % 32] >> k / 32 & 1u) * 16;
    return f16(b) * scale * q - f16(b + 2) * minimum;
}

static double q6_k(const unsigned char *b, size_t k)
{
    size_t n = k / 128, part = k % 128 / 32, l = k % 32;
    unsigned low = b[64 * n + part % 2 * 32 + l], q = part < 2 ? low & 15 : low >> 4;
    q |= ((unsigned)b[128 + 32 * n + l] >> 2 * part & 3u) << 4;
    return f16(b + 208) * (double)(signed char)b[192 + k / 16] * ((double)q - 32);
}

static double nvfp4(const unsigned char *b, size_t k)
{
    unsigned scale = b[k / 16] & 0x7Fu, q = b[4 + k / 16 * 8 + k % 8];
    q = k % 16 < 8 ? q & 15 : q >> 4;
    return (scale == 0x7F ? 0.0 : e4m3fn(scale)) * e2m1(q);
}

static double block_value(moe_dtype dtype, const unsigned char *b, size_t k)
{
    switch (dtype) {
    case MOE_Q8_0: return f16(b) * (double)(signed char)b[2 + k];
    case MOE_Q4_0: return f16(b) * (q4(b + 2, k) - 8);
    case MOE_Q4_K: return q45_k(b, b + 16, NULL, k);
    case MOE_Q5_K: return q45_k(b, b + 48, b + 16, k);
    case MOE_Q6_K: return q6_k(b, k);
    case MOE_GGML_MXFP4: return e8m0(b[0]) * e2m1((unsigned)q4(b + 1, k));
    default: return nvfp4(b, k);
    }
}

/* ---- matrices -------------------------------------------------------------------------------- */

static const unsigned char *element(const moe_array *a, size_t e, size_t row, size_t column)
{
    const char *base = a->data != NULL ? (const char *)a->data + (int64_t)e * a->expert_stride
                                       : (const char *)a->experts[e];
    return (const unsigned char *)base + row * (size_t)a->row_stride +
           column * (size_t)a->column_stride;
}

double weights_ref_value(const moe_matrix *m, size_t e, size_t row, size_t k)
{
    moe_dtype dtype = m->weights.dtype;
    size_t of = moe_dtype_k(dtype);
    const unsigned char *at = element(&m->weights, e, row, k / of);
    if (of > 2) return block_value(dtype, at, k % of);
    unsigned nibble = k % 2 ? *at >> 4 : *at & 15u;
    double w = dtype == MOE_E2M1_X2   ? e2m1(nibble)
               : dtype == MOE_INT4_X2 ? (double)nibble - 8
                                      : weights_ref_number(at, dtype);
    if (m->scale.dtype == MOE_E8M0) return w * e8m0(*element(&m->scale, e, row, k / 32));
    if (m->scale_k == 0) return w;
    size_t rows = m->scale_rows > 0 ? (size_t)m->scale_rows : 1;
    return w * weights_ref_number(element(&m->scale, e, row / rows, k / (size_t)m->scale_k),
                                  m->scale.dtype);
}

/* ---- panels ---------------------------------------------------------------------------------- */

static double code_value(kernel_format f, uint32_t code)
{
    unsigned char bytes[4];
    memcpy(bytes, &code, sizeof bytes);
    switch (kernel_formats[f].element) {
    case ELEMENT_BF16: return weights_ref_number(bytes, MOE_BF16);
    case ELEMENT_F16: return weights_ref_number(bytes, MOE_F16);
    case ELEMENT_F32: return weights_ref_number(bytes, MOE_F32);
    case ELEMENT_E4M3_IEEE: return weights_ref_number(bytes, MOE_E4M3_IEEE);
    case ELEMENT_E4M3FN: return e4m3fn(code);
    case ELEMENT_E2M1: return e2m1(code);
    case ELEMENT_INT4: return (double)code - 8;
    case ELEMENT_UINT4: return (double)code;
    default: return (double)(signed char)bytes[0];
    }
}

uint32_t weights_ref_code(const kernel_panel *p, size_t half, size_t r, size_t k)
{
    kernel_format f = p->format;
    size_t bit = kernel_bit_at(f, r, k);
    uint32_t word;
    memcpy(&word,
           p->stream + kernel_line_at(f, p->halves, half, kernel_line_of(f, k)) + bit / 32 * 4,
           sizeof word);
    return word >> bit % 32 & (uint32_t)((1ull << kernel_bits(f)) - 1);
}

double weights_ref_packed(const kernel_panel *p, size_t half, size_t r, size_t k)
{
    kernel_format f = p->format;
    const kernel_info *i = &kernel_formats[f];
    double w = code_value(f, weights_ref_code(p, half, r, k));
    if (i->scale == SCALE_NONE) return w;
    size_t run = k / i->scale_k;
    const unsigned char *scale = p->stream + kernel_scale_at(f, p->halves, half, PART_SCALE, run) +
                                 r * kernel_scale_bytes(f);
    switch (i->scale) {
    case SCALE_E8M0: return w * e8m0(*scale);
    case SCALE_E4M3: return w * e4m3fn(*scale);
    case SCALE_BF16: return w * weights_ref_number(scale, MOE_BF16);
    case SCALE_F16: return w * f16(scale);
    case SCALE_F32: return w * weights_ref_number(scale, MOE_F32);
    default: break;
    }
    double d = f16(p->stream + kernel_scale_at(f, p->halves, half, PART_D, run) + 2 * r);
    if (!i->minima) return d * (double)(signed char)*scale * w;
    double minimum = p->stream[kernel_scale_at(f, p->halves, half, PART_MINIMUM, run) + r],
           dmin = f16(p->stream + kernel_scale_at(f, p->halves, half, PART_DMIN, run) + 2 * r);
    return d * (double)*scale * w - dmin * minimum;
}

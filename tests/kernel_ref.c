/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_ref.c - see kernel_ref.h. */
#include "kernel_ref.h"

#include <math.h>
#include <string.h>

/* ---- formats --------------------------------------------------------------------------------- */

/* A float of e bits of exponent and m of mantissa; ieee: the last exponent is infinity or NaN, else
 * (e4m3fn) NaN if the mantissa is all ones. */
static double float_value(uint32_t code, int e, int m, bool ieee)
{
    int exponent = (int)(code >> m) & ((1 << e) - 1), bias = (1 << (e - 1)) - 1;
    int mantissa = (int)code & ((1 << m) - 1), ones = (1 << m) - 1;
    double sign = code >> (e + m) & 1 ? -1 : 1;
    if (exponent == (1 << e) - 1 && ieee) return mantissa ? (double)NAN : sign * HUGE_VAL;
    if (exponent == (1 << e) - 1 && mantissa == ones) return (double)NAN;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - m);
    return sign * ldexp(mantissa + ones + 1, exponent - bias - m);
}

/* Twice the value of e2m1; of all others the value. */
static double weight_of(const kernel_case *c, size_t half, size_t row, size_t k)
{
    static const double doubled[] = {0, 1, 2, 3, 4, 6, 8, 12};
    uint32_t code = case_code(c, half, row, k);
    switch (c->format) {
    case FORMAT_MXFP8:
    case FORMAT_FP8_BLOCK: return float_value(code, 4, 3, false);
    case FORMAT_MXFP4:
    case FORMAT_NVFP4: return code < 8 ? doubled[code] : -doubled[code - 8];
    case FORMAT_Q8_0:
    case FORMAT_Q5_K:
    case FORMAT_Q6_K: return code < 128 ? (double)code : (double)code - 256;
    case FORMAT_Q4_K: return code;
    default: return (double)code - 8;
    }
}

/* The scale of the run that has term k, and its minimum. */
static double scale_of(const kernel_case *c, size_t half, size_t row, size_t k, double *minimum)
{
    size_t chunk = k / 256, run = k / 32;
    *minimum = 0;
    switch (c->format) {
    case FORMAT_FP8_BLOCK:
        return float_value(case_scale(c, PART_SCALE, half, row, k / 128), 8, 23, true);
    case FORMAT_INT4_BF16_32:
        return float_value(case_scale(c, PART_SCALE, half, row, run), 8, 7, true);
    case FORMAT_INT4_BF16_64:
        return float_value(case_scale(c, PART_SCALE, half, row, k / 64), 8, 7, true);
    case FORMAT_INT4_BF16_128:
        return float_value(case_scale(c, PART_SCALE, half, row, k / 128), 8, 7, true);
    case FORMAT_INT4_F16_64:
        return float_value(case_scale(c, PART_SCALE, half, row, k / 64), 5, 10, true);
    case FORMAT_INT4_F16_128:
        return float_value(case_scale(c, PART_SCALE, half, row, k / 128), 5, 10, true);
    case FORMAT_INT4_F16_32:
    case FORMAT_Q8_0: return float_value(case_scale(c, PART_SCALE, half, row, run), 5, 10, true);
    case FORMAT_NVFP4:
        return float_value(case_scale(c, PART_SCALE, half, row, k / 16), 4, 3, false);
    case FORMAT_Q6_K: {
        uint32_t sc = case_scale(c, PART_SCALE, half, row, k / 16);
        return float_value(case_scale(c, PART_D, half, row, chunk), 5, 10, true) *
               (sc < 128 ? (double)sc : (double)sc - 256);
    }
    default: /* Q4_K, Q5_K */
        *minimum = float_value(case_scale(c, PART_DMIN, half, row, chunk), 5, 10, true) *
                   case_scale(c, PART_MINIMUM, half, row, run);
        return float_value(case_scale(c, PART_D, half, row, chunk), 5, 10, true) *
               case_scale(c, PART_SCALE, half, row, run);
    }
}

/* ---- sums ------------------------------------------------------------------------------------ */

static float word_float(const uint32_t *row, size_t n)
{
    float x;
    memcpy(&x, row + n, sizeof x);
    return x;
}

static int operand_code(const uint32_t *row, size_t k)
{
    static const unsigned place[] = {0, 2, 4, 6,
                                     1, 3, 5, 7}; /* of k % 8 among k0 k4 k1 k5 k2 ... */
    size_t byte = k / 8 * 8 + place[k % 8];
    int code = (int)(row[byte / 4] >> byte % 4 * 8 & 255);
    return code < 128 ? code : code - 256;
}

/* acc and the scale before that of the weights, of the step of n terms from k on: exact operands. */
static float float_dot(const kernel_case *c, const uint32_t *x, size_t half, size_t row, size_t k,
                       size_t n)
{
    bool e2m1 = c->format == FORMAT_MXFP4 || c->format == FORMAT_NVFP4;
    float acc = 0;
    for (size_t j = k; j < k + n; j += 2) {
        double w1 = weight_of(c, half, row, j + 1), w0 = weight_of(c, half, row, j);
        acc = fmaf(word_float(x, j + 1), (float)(e2m1 ? w1 / 2 : w1), acc);
        acc = fmaf(word_float(x, j), (float)(e2m1 ? w0 / 2 : w0), acc);
    }
    return acc;
}

static float int8_dot(const kernel_case *c, const uint32_t *x, size_t half, size_t row, size_t k,
                      size_t n)
{
    double dot = 0;
    for (size_t j = k; j < k + n; j++) dot += operand_code(x, j) * weight_of(c, half, row, j);
    return (float)dot;
}

static int codes_of(const uint32_t *x, size_t k)
{
    int sum = 0;
    for (size_t j = k; j < k + 32; j++) sum += operand_code(x, j);
    return sum;
}

static float sum_of(const kernel_case *c, const uint32_t *x, size_t half, size_t row)
{
    const bool int8 = c->operand == OPERAND_INT8;
    const bool e2m1 = c->format == FORMAT_MXFP4 || c->format == FORMAT_NVFP4;
    const size_t n = c->format == FORMAT_NVFP4 || c->format == FORMAT_Q6_K ? 16 : 32;
    float sum = 0;
    for (size_t k = 0; k < c->k; k += n) {
        float sx = int8 ? word_float(x, c->k / 4 + k / 32) : 1;
        float acc = int8 ? int8_dot(c, x, half, row, k, n) : float_dot(c, x, half, row, k, n);
        if (c->format == FORMAT_MXFP8 || c->format == FORMAT_MXFP4) {
            uint32_t s = case_scale(c, PART_SCALE, half, row, k / 32);
            float low = s == 0 ? 0.5f : 1, power = s == 255 ? NAN : (float)ldexp(1, (int)s - 127);
            if (s == 0) power = 0x1p-126f;
            sum = int8 ? fmaf(acc, (sx * (low / 2)) * power, sum) : fmaf(acc * low, power, sum);
            continue;
        }
        double minimum;
        float s = (float)scale_of(c, half, row, k, &minimum), mn = (float)minimum;
        sum = fmaf(acc, int8 ? (e2m1 ? sx / 2 : sx) * s : s, sum);
        if (c->format != FORMAT_Q4_K && c->format != FORMAT_Q5_K) continue;
        if (int8)
            sum = fmaf((float)codes_of(x, k), -(sx * mn), sum);
        else
            sum = fmaf(word_float(x, c->k + k / 32), -mn, sum);
    }
    return sum;
}

void kernel_ref_sums(const kernel_case *c, float *out)
{
    for (size_t t = 0; t < c->tokens; t++)
        for (size_t half = 0; half < c->halves; half++)
            for (size_t row = 0; row < KERNEL_ROWS; row++)
                *out++ = sum_of(c, c->scalar_row + t * c->scalar_words, half, row);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* vec_neon.h - the vocabulary of kernel_tmpl.h in Advanced SIMD (AArch64): four registers for each
 * vec.  With VEC_DOTPROD, defined by the including file, also SDOT; with VEC_MATRIX also SMMLA.
 *
 * VEC_SUMS is 2, though 4 sums are half of the registers: decoding takes the rest, and gcc 12 then
 * moves sums to the stack and back more often than a second half or block saves a load.
 *
 * Left out on purpose: BFDOT and BFMMLA do not round as the two fmas of docs/numerics.md section
 * 4; USDOT is no faster than SDOT, for which weights of 0..24 are signed as well. */
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#define VEC_WIDTH    4
#define VEC_WIDTH_MX 4
#define VEC_SUMS     2
#define VEC_FEW      1
#define V_INLINE     static inline __attribute__((always_inline))

typedef struct vec {
    float32x4_t a, b, c, d;
} vec;

/* As 16-bit lanes: the terms 2j and 2j+1 of rows 0 to 3, 4 to 7, 8 to 11, 12 to 15. */
typedef struct line {
    uint16x8_t a, b, c, d;
} line;

typedef struct ivec {
    int32x4_t a, b, c, d;
} ivec;

/* The four registers of f of one to three values. */
#define EACH1(f, x)                                                                                \
    {                                                                                              \
        f((x).a), f((x).b), f((x).c), f((x).d)                                                     \
    }
#define EACH2(f, x, y)                                                                             \
    {                                                                                              \
        f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)                         \
    }
#define EACH3(f, x, y, z)                                                                          \
    {                                                                                              \
        f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c),                    \
            f((x).d, (y).d, (z).d)                                                                 \
    }

/* ---- f32 ------------------------------------------------------------------------------------- */

V_INLINE vec v_set1(float x)
{
    float32x4_t q = vdupq_n_f32(x);
    return (vec){q, q, q, q};
}
V_INLINE vec v_zero(void)
{
    return v_set1(0);
}
V_INLINE vec v_load(const float *p)
{
    return (vec){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}

V_INLINE void v_store(float *p, vec x)
{
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
}

V_INLINE vec v_add(vec x, vec y)
{
    return (vec)EACH2(vaddq_f32, x, y);
}
V_INLINE vec v_sub(vec x, vec y)
{
    return (vec)EACH2(vsubq_f32, x, y);
}
V_INLINE vec v_mul(vec x, vec y)
{
    return (vec)EACH2(vmulq_f32, x, y);
}
V_INLINE vec v_div(vec x, vec y)
{
    return (vec)EACH2(vdivq_f32, x, y);
}
V_INLINE vec v_fma(vec x, vec y, vec z)
{
    return (vec)EACH3(vfmaq_f32, z, x, y);
}
V_INLINE vec v_neg(vec x)
{
    return (vec)EACH1(vnegq_f32, x);
}
V_INLINE vec v_abs(vec x)
{
    return (vec)EACH1(vabsq_f32, x);
}

V_INLINE float32x4_t q_if_gt(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y)
{
    return vbslq_f32(vcgtq_f32(a, b), x, y);
}

V_INLINE float32x4_t q_if_eq(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y)
{
    return vbslq_f32(vceqq_f32(a, b), x, y);
}

/* a > b ? x : y, and a == b ? x : y; a NaN gives y. */
V_INLINE vec v_if_gt(vec a, vec b, vec x, vec y)
{
    return (vec){q_if_gt(a.a, b.a, x.a, y.a), q_if_gt(a.b, b.b, x.b, y.b),
                 q_if_gt(a.c, b.c, x.c, y.c), q_if_gt(a.d, b.d, x.d, y.d)};
}

V_INLINE vec v_if_eq(vec a, vec b, vec x, vec y)
{
    return (vec){q_if_eq(a.a, b.a, x.a, y.a), q_if_eq(a.b, b.b, x.b, y.b),
                 q_if_eq(a.c, b.c, x.c, y.c), q_if_eq(a.d, b.d, x.d, y.d)};
}

V_INLINE float32x4_t q_pow2(int32x4_t n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

V_INLINE float32x4_t q_scale(float32x4_t p, float32x4_t t, float32x4_t magic)
{
    int32x4_t k = vsubq_s32(vreinterpretq_s32_f32(t), vreinterpretq_s32_f32(magic));
    int32x4_t half = vshrq_n_s32(k, 1);
    return vmulq_f32(vmulq_f32(p, q_pow2(half)), q_pow2(vsubq_s32(k, half)));
}

/* p * 2^k in two steps, k = the integer that t - magic is. */
V_INLINE vec v_scale(vec p, vec t, vec magic)
{
    return (vec)EACH3(q_scale, p, t, magic);
}

/* ---- e8m0 scales, a byte for each row: num_e8m0 and num_e8m0_low ----------------------------- */

/* Sixteen bytes as sixteen integers. */
V_INLINE ivec i_from_bytes(uint8x16_t s)
{
    uint16x8_t low = vmovl_u8(vget_low_u8(s)), high = vmovl_high_u8(s);
    return (ivec){vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
                  vreinterpretq_s32_u32(vmovl_high_u16(low)),
                  vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
                  vreinterpretq_s32_u32(vmovl_high_u16(high))};
}

/* Sixteen halves of 32 bits, the lower one zero. */
V_INLINE float32x4_t q_wide_first(uint16x8_t x)
{
    return vreinterpretq_f32_u16(vzip1q_u16(vdupq_n_u16(0), x));
}

V_INLINE float32x4_t q_wide_second(uint16x8_t x)
{
    return vreinterpretq_f32_u16(vzip2q_u16(vdupq_n_u16(0), x));
}

/* Bytes other than 0 and 255. */
V_INLINE vec v_e8m0_normal(const uint8_t *s)
{
    uint8x16_t e = vld1q_u8(s);
    uint16x8_t low = vshll_n_u8(vget_low_u8(e), 7), high = vshll_high_n_u8(e, 7);
    return (vec){q_wide_first(low), q_wide_second(low), q_wide_first(high), q_wide_second(high)};
}

V_INLINE float32x4_t q_e8m0(int32x4_t e)
{
    uint32x4_t nan = vceqq_s32(e, vdupq_n_s32(255));
    int32x4_t bits = vshlq_n_s32(vmaxq_s32(e, vdupq_n_s32(1)), 23);
    return vreinterpretq_f32_s32(vbslq_s32(nan, vdupq_n_s32(0x7FC00000), bits));
}

V_INLINE vec v_e8m0(const uint8_t *s)
{
    ivec e = i_from_bytes(vld1q_u8(s));
    return (vec)EACH1(q_e8m0, e);
}

V_INLINE float32x4_t q_e8m0_low(int32x4_t e)
{
    return vbslq_f32(vceqzq_s32(e), vdupq_n_f32(0.5f), vdupq_n_f32(1.0f));
}

V_INLINE vec v_e8m0_low(const uint8_t *s)
{
    ivec e = i_from_bytes(vld1q_u8(s));
    return (vec)EACH1(q_e8m0_low, e);
}

/* ---- lines ----------------------------------------------------------------------------------- */

V_INLINE uint16x8_t q_load(const uint8_t *p)
{
    return vreinterpretq_u16_u8(vld1q_u8(p));
}

V_INLINE line l_load(const uint8_t *p)
{
    return (line){q_load(p), q_load(p + 16), q_load(p + 32), q_load(p + 48)};
}

V_INLINE void l_store(uint8_t *p, line x)
{
    vst1q_u8(p, vreinterpretq_u8_u16(x.a));
    vst1q_u8(p + 16, vreinterpretq_u8_u16(x.b));
    vst1q_u8(p + 32, vreinterpretq_u8_u16(x.c));
    vst1q_u8(p + 48, vreinterpretq_u8_u16(x.d));
}

/* The 32 bits at p in every lane. */
V_INLINE line l_word(const uint8_t *p)
{
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    uint16x8_t q = vreinterpretq_u16_u32(vdupq_n_u32(word));
    return (line){q, q, q, q};
}

/* One more than each byte: 0 and 255 become the two least. */
V_INLINE uint8x16_t q_next(uint16x8_t x)
{
    return vaddq_u8(vreinterpretq_u8_u16(x), vdupq_n_u8(1));
}

/* Whether one of 64 e8m0 bytes is 0 or 255. */
V_INLINE int l_has_special(line x)
{
    uint8x16_t least = vminq_u8(vminq_u8(q_next(x.a), q_next(x.b)), //
                                vminq_u8(q_next(x.c), q_next(x.d)));
    return vminvq_u8(least) < 2;
}

V_INLINE void l_prefetch(const uint8_t *p)
{
    __builtin_prefetch(p);
}

V_INLINE float32x4_t q_even(uint16x8_t x)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(x), 16));
}

V_INLINE float32x4_t q_odd(uint16x8_t x)
{
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(x), vdupq_n_u32(0xFFFF0000)));
}

/* The low (k = 2j) and high (2j+1) bf16 of each pair as f32. */
V_INLINE vec v_even(line x)
{
    return (vec)EACH1(q_even, x);
}
V_INLINE vec v_odd(line x)
{
    return (vec)EACH1(q_odd, x);
}

/* f16 subnormals are no subnormals of f32, and are kept. */
V_INLINE vec v_from_f16(const uint8_t *p)
{
    float16x8_t low = vreinterpretq_f16_u8(vld1q_u8(p));
    float16x8_t high = vreinterpretq_f16_u8(vld1q_u8(p + 16));
    return (vec){vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
                 vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)};
}

/* Sixteen neighbouring scales. */
V_INLINE vec v_from_bf16(const uint8_t *p)
{
    uint16x8_t low = q_load(p), high = q_load(p + 16);
    return (vec){q_wide_first(low), q_wide_second(low), q_wide_first(high), q_wide_second(high)};
}

V_INLINE vec v_from_int(ivec x)
{
    return (vec)EACH1(vcvtq_f32_s32, x);
}

V_INLINE vec v_from_u8(const uint8_t *p)
{
    return v_from_int(i_from_bytes(vld1q_u8(p)));
}

V_INLINE vec v_from_i8(const uint8_t *p)
{
    int8x16_t s = vreinterpretq_s8_u8(vld1q_u8(p));
    int16x8_t low = vmovl_s8(vget_low_s8(s)), high = vmovl_high_s8(s);
    return v_from_int((ivec){vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low),
                             vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)});
}

/* Eight e4m3fn as f16 that are 2^-8 times the number: the bits are the same. */
V_INLINE float16x8_t q_e4m3_f16(int8x8_t code)
{
    uint16x8_t c = vreinterpretq_u16_s16(vmovl_s8(code));
    uint16x8_t x = vandq_u16(vshlq_n_u16(c, 7), vdupq_n_u16(0xBF80));
    uint16x8_t nan = vceqq_u16(vandq_u16(c, vdupq_n_u16(0x7F)), vdupq_n_u16(0x7F));
    return vreinterpretq_f16_u16(vbslq_u16(nan, vdupq_n_u16(0x7E00), x));
}

V_INLINE vec v_from_e4m3(const uint8_t *p)
{
    int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(p));
    float16x8_t low = q_e4m3_f16(vget_low_s8(codes)), high = q_e4m3_f16(vget_high_s8(codes));
    return v_mul((vec){vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
                       vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)},
                 v_set1(256));
}

/* Bytes 0 to 15 of a table in halves. */
V_INLINE uint8x16_t q_table(uint64_t low, uint64_t high)
{
    return vcombine_u8(vcreate_u8(low), vcreate_u8(high));
}

/* Pair j of the four in a register of e2m1: both 16-bit halves have their code at bit 4 j.  The
 * low and the high bytes of the bf16 of each nibble are looked up; the bytes of pairs 0 and 1 are
 * the even ones. */
V_INLINE uint16x8_t q_e2m1(uint16x8_t x, int j)
{
    uint8x16_t bytes = vreinterpretq_u8_u16(x);
    uint8x16_t code = j % 2 == 0 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4);
    uint8x16_t low = vqtbl1q_u8(q_table(0xC0804000C0800000, 0xC0804000C0800000), code);
    uint8x16_t high = vqtbl1q_u8(q_table(0x404040403F3F3F00, 0xC0C0C0C0BFBFBF80), code);
    return vreinterpretq_u16_u8(j < 2 ? vtrn1q_u8(low, high) : vtrn2q_u8(low, high));
}

/* Pair j of the four in a line of e2m1. */
V_INLINE line l_e2m1(line x, int j)
{
    return (line){q_e2m1(x.a, j), q_e2m1(x.b, j), q_e2m1(x.c, j), q_e2m1(x.d, j)};
}

/* Codes, each as a byte with its sign, as bf16, but for those below 2^-6 and those without a
 * finite value. */
V_INLINE uint16x8_t q_e4m3(int8x8_t code)
{
    uint16x8_t x = vreinterpretq_u16_s16(vshll_n_s8(code, 4));
    return vaddq_u16(vbicq_u16(x, vdupq_n_u16(0x7800)), vdupq_n_u16(0x3C00));
}

/* The same for every code. */
V_INLINE uint16x8_t q_e4m3_special(int8x8_t code, int ieee)
{
    uint16x8_t mag = vandq_u16(vmovl_u8(vreinterpret_u8_s8(code)), vdupq_n_u16(0x7F));
    uint16x8_t v = vaddq_u16(vshlq_n_u16(mag, 4), vdupq_n_u16(0x3C00));
    /* m / 8 * 2^-6 for m = 0..7, the low and the high bytes of the bf16 */
    uint8x16_t low = vqtbl1q_u8(q_table(0x60402000C0800000, 0), vreinterpretq_u8_u16(mag));
    uint8x16_t high =
        vqtbl1q_u8(q_table(0x3C3C3C3C3B3B3B00, 0), vreinterpretq_u8_u16(vshlq_n_u16(mag, 8)));
    uint16x8_t small = vreinterpretq_u16_u8(vorrq_u8(low, high));
    v = vbslq_u16(vcltq_u16(mag, vdupq_n_u16(8)), small, v);
    if (ieee) v = vbslq_u16(vceqq_u16(mag, vdupq_n_u16(0x78)), vdupq_n_u16(0x7F80), v);
    v = vbslq_u16(vcgtq_u16(mag, vdupq_n_u16(ieee ? 0x78 : 0x7E)), vdupq_n_u16(0x7FC0), v);
    uint16x8_t sign = vreinterpretq_u16_s16(vmovl_s8(code));
    return vbslq_u16(vdupq_n_u16(0x8000), sign, v);
}

/* Above 95 for codes below 2^-6 and those of exponent 15 (e4m3fn: above 109, NaN alone): the
 * doubled byte, 16 or less, becomes 112 to 126. */
V_INLINE int8x16_t q_e4m3_rank(uint16x8_t x)
{
    int8x16_t code = vreinterpretq_s8_u16(x);
    return vaddq_s8(vshlq_n_s8(code, 1), vdupq_n_s8(112));
}

V_INLINE uint16x8_t q_e4m3_first(uint16x8_t x)
{
    return q_e4m3(vget_low_s8(vreinterpretq_s8_u16(x)));
}

V_INLINE uint16x8_t q_e4m3_second(uint16x8_t x)
{
    return q_e4m3(vget_high_s8(vreinterpretq_s8_u16(x)));
}

V_INLINE void q_e4m3_both(uint16x8_t x, int ieee, uint16x8_t *first, uint16x8_t *second)
{
    *first = q_e4m3_special(vget_low_s8(vreinterpretq_s8_u16(x)), ieee);
    *second = q_e4m3_special(vget_high_s8(vreinterpretq_s8_u16(x)), ieee);
}

/* A line of e4m3, and then pair j of its two as bf16. */
V_INLINE void l_e4m3(line x, int ieee, line *first, line *second)
{
    int8x16_t rank = vmaxq_s8(vmaxq_s8(q_e4m3_rank(x.a), q_e4m3_rank(x.b)),
                              vmaxq_s8(q_e4m3_rank(x.c), q_e4m3_rank(x.d)));
    if (__builtin_expect(vmaxvq_s8(rank) > (ieee ? 95 : 109), 0)) {
        q_e4m3_both(x.a, ieee, &first->a, &second->a);
        q_e4m3_both(x.b, ieee, &first->b, &second->b);
        q_e4m3_both(x.c, ieee, &first->c, &second->c);
        q_e4m3_both(x.d, ieee, &first->d, &second->d);
    } else {
        *first = (line)EACH1(q_e4m3_first, x);
        *second = (line)EACH1(q_e4m3_second, x);
    }
}

V_INLINE line l_e4m3_pair(line first, line second, int j)
{
    return j == 0 ? first : second;
}

/* For each of 16 codes the low and the high byte of a bf16; of bf12 the exponent, in low. */
typedef struct l_table {
    uint8x16_t low, high;
} l_table;

V_INLINE l_table l_bf12_table(const uint8_t *exponent)
{
    const uint8x16_t e = vld1q_u8(exponent);
    return (l_table){e, e};
}

V_INLINE l_table l_words_table(const uint16_t *words)
{
    const uint8x16x2_t bytes = vld2q_u8((const uint8_t *)words);
    return (l_table){bytes.val[0], bytes.val[1]};
}

/* As q_e2m1. */
V_INLINE uint16x8_t q_nibble(uint16x8_t x, int j, const l_table *table)
{
    uint8x16_t bytes = vreinterpretq_u8_u16(x);
    uint8x16_t code = j % 2 == 0 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4);
    uint8x16_t low = vqtbl1q_u8(table->low, code), high = vqtbl1q_u8(table->high, code);
    return vreinterpretq_u16_u8(j < 2 ? vtrn1q_u8(low, high) : vtrn2q_u8(low, high));
}

/* Pair j of the four in a line of codes. */
V_INLINE line l_nibble(line x, int j, const l_table *table)
{
    return (line){q_nibble(x.a, j, table), q_nibble(x.b, j, table), q_nibble(x.c, j, table),
                  q_nibble(x.d, j, table)};
}

/* The exponent of code 0, which the upper byte of each code looks up, is shifted out but for one
 * bit, and that is where rest has the sign. */
V_INLINE uint16x8_t q_bf12(uint16x8_t codes, uint16x8_t rest, int j, uint8x16_t table)
{
    uint16x8_t code = vandq_u16(codes >> (uint16_t)(4 * j), vdupq_n_u16(15));
    uint16x8_t e = vreinterpretq_u16_u8(vqtbl1q_u8(table, vreinterpretq_u8_u16(code)));
    if (j % 2 == 1) rest = vreinterpretq_u16_u8(vrev16q_u8(vreinterpretq_u8_u16(rest)));
    return vbslq_u16(vdupq_n_u16(0x807F), rest, vshlq_n_u16(e, 7));
}

/* Pair j of the four of a line of codes, rest: the line that has its signs and mantissas. */
V_INLINE line l_bf12(line codes, line rest, int j, const l_table *table)
{
    const uint8x16_t e = table->low;
    return (line){q_bf12(codes.a, rest.a, j, e), q_bf12(codes.b, rest.b, j, e),
                  q_bf12(codes.c, rest.c, j, e), q_bf12(codes.d, rest.d, j, e)};
}

/* ---- int8 ------------------------------------------------------------------------------------ */

V_INLINE ivec i_set1(int32_t x)
{
    int32x4_t q = vdupq_n_s32(x);
    return (ivec){q, q, q, q};
}
V_INLINE ivec i_mul(ivec x, ivec y)
{
    return (ivec)EACH2(vmulq_s32, x, y);
}

/* The signed byte i of each 32 bits. */
V_INLINE float32x4_t q_from_byte(uint16x8_t x, int i)
{
    int32x4_t v = vreinterpretq_s32_u16(x);
    return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(v, vdupq_n_s32(24 - 8 * i)), 24));
}

V_INLINE vec v_from_byte(line x, int i)
{
    return (vec){q_from_byte(x.a, i), q_from_byte(x.b, i), q_from_byte(x.c, i),
                 q_from_byte(x.d, i)};
}

V_INLINE int32x4_t q_dot(int32x4_t acc, uint16x8_t weights, uint16x8_t codes)
{
    int8x16_t w = vreinterpretq_s8_u16(weights), x = vreinterpretq_s8_u16(codes);
#ifdef VEC_DOTPROD
    return vdotq_s32(acc, w, x);
#else
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpadalq_s16(acc, vpaddq_s16(low, high)); /* pairs are at most 2 * 128 * 127 */
#endif
}

V_INLINE ivec i_dot(ivec acc, line w, line codes)
{
    return (ivec)EACH3(q_dot, acc, w, codes);
}

/* acc + the dots of twice four signed weights and codes, -127 to 127. */
V_INLINE ivec i_dot2(ivec acc, line w0, line codes0, line w1, line codes1)
{
    return i_dot(i_dot(acc, w0, codes0), w1, codes1);
}

/* int8 weights as they are, VEC_INT8_ZERO the one that is zero. */
#define VEC_INT8_ZERO 0
#define i_dot2_int8   i_dot2

V_INLINE line l_int8(line x)
{
    return x;
}

/* For each of 16 codes a byte. */
typedef uint8x16_t l_bytes;

V_INLINE l_bytes l_bytes_table(const uint8_t *bytes)
{
    return vld1q_u8(bytes);
}

V_INLINE uint16x8_t q_nibble_bytes(uint16x8_t x, int b, l_bytes table)
{
    uint8x16_t bytes = vreinterpretq_u8_u16(x);
    return vreinterpretq_u16_u8(
        vqtbl1q_u8(table, b == 0 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4)));
}

/* Those of the low (b 0) or the high (1) nibbles. */
V_INLINE line l_nibble_bytes(line x, int b, const l_bytes *table)
{
    return (line){q_nibble_bytes(x.a, b, *table), q_nibble_bytes(x.b, b, *table),
                  q_nibble_bytes(x.c, b, *table), q_nibble_bytes(x.d, b, *table)};
}

#ifdef VEC_MATRIX

/* Of two tokens' sums: for each row both, two rows in a register, rows 0 and 1 in t0.a, 2 and 3 in
 * t1.a, 4 and 5 in t0.b; and back. */
V_INLINE void i_pair(ivec *t0, ivec *t1)
{
    const ivec a = *t0, b = *t1;
    *t0 = (ivec)EACH2(vzip1q_s32, a, b);
    *t1 = (ivec)EACH2(vzip2q_s32, a, b);
}

V_INLINE void i_unpair(ivec *t0, ivec *t1)
{
    const ivec a = *t0, b = *t1;
    *t0 = (ivec)EACH2(vuzp1q_s32, a, b);
    *t1 = (ivec)EACH2(vuzp2q_s32, a, b);
}

/* The words of two neighbours: first and second of the one, then of the other. */
V_INLINE int8x16_t q_zip_words(uint16x8_t first, uint16x8_t second)
{
    return vreinterpretq_s8_u32(
        vzip1q_u32(vreinterpretq_u32_u16(first), vreinterpretq_u32_u16(second)));
}

V_INLINE int8x16_t q_zip_last_words(uint16x8_t first, uint16x8_t second)
{
    return vreinterpretq_s8_u32(
        vzip2q_u32(vreinterpretq_u32_u16(first), vreinterpretq_u32_u16(second)));
}

V_INLINE void q_matrix(int32x4_t *rows01, int32x4_t *rows23, uint16x8_t w0, uint16x8_t w1,
                       int8x16_t x)
{
    *rows01 = vmmlaq_s32(*rows01, q_zip_words(w0, w1), x);
    *rows23 = vmmlaq_s32(*rows23, q_zip_last_words(w0, w1), x);
}

/* Paired sums + the dots of the eight weights of each row, four in w0 and four in w1, and two
 * tokens' codes: a word of each at x, that goes with w0, and `next` bytes on, with w1. */
V_INLINE void i_matrix(ivec *t0, ivec *t1, line w0, line w1, const uint8_t *x, size_t next)
{
    uint16x8_t first = vreinterpretq_u16_u8(vcombine_u8(vld1_u8(x), vdup_n_u8(0)));
    uint16x8_t second = vreinterpretq_u16_u8(vcombine_u8(vld1_u8(x + next), vdup_n_u8(0)));
    int8x16_t tokens = q_zip_words(first, second);
    q_matrix(&t0->a, &t1->a, w0.a, w1.a, tokens);
    q_matrix(&t0->b, &t1->b, w0.b, w1.b, tokens);
    q_matrix(&t0->c, &t1->c, w0.c, w1.c, tokens);
    q_matrix(&t0->d, &t1->d, w0.d, w1.d, tokens);
}

#endif

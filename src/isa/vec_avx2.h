/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx2.h - the vocabulary of kernel_tmpl.h in AVX2, FMA and F16C: two registers for each
 * vec. */
#include <immintrin.h>
#include <stdint.h>

#define VEC_WIDTH    4
#define VEC_WIDTH_MX 4
#define VEC_SUMS     4
#define VEC_FEW      1
#define V_INLINE     static inline __attribute__((always_inline))

typedef struct vec {
    __m256 a, b;
} vec;

typedef struct line {
    __m256i a, b;
} line;

typedef line ivec;

/* ---- f32 ------------------------------------------------------------------------------------- */

V_INLINE vec v_zero(void)
{
    return (vec){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
V_INLINE vec v_set1(float x)
{
    return (vec){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
V_INLINE vec v_load(const float *p)
{
    return (vec){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

V_INLINE void v_store(float *p, vec x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

V_INLINE vec v_add(vec x, vec y)
{
    return (vec){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
V_INLINE vec v_sub(vec x, vec y)
{
    return (vec){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
V_INLINE vec v_mul(vec x, vec y)
{
    return (vec){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
V_INLINE vec v_div(vec x, vec y)
{
    return (vec){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}

V_INLINE vec v_fma(vec x, vec y, vec z)
{
    return (vec){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

V_INLINE vec v_neg(vec x)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (vec){_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}

V_INLINE vec v_abs(vec x)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (vec){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}

/* a > b ? x : y, and a == b ? x : y; a NaN gives y. */
V_INLINE vec v_if_gt(vec a, vec b, vec x, vec y)
{
    return (vec){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)),
                 _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ))};
}

V_INLINE vec v_if_eq(vec a, vec b, vec x, vec y)
{
    return (vec){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_EQ_OQ)),
                 _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_EQ_OQ))};
}

V_INLINE __m256 half_scale(__m256 p, __m256 t, __m256 magic)
{
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i k = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic));
    __m256i half = _mm256_srai_epi32(k, 1), rest = _mm256_sub_epi32(k, half);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(p,
                         _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

/* p * 2^k in two steps, k = the integer that t - magic is. */
V_INLINE vec v_scale(vec p, vec t, vec magic)
{
    return (vec){half_scale(p.a, t.a, magic.a), half_scale(p.b, t.b, magic.b)};
}

/* ---- e8m0 scales, a byte for each row: num_e8m0 and num_e8m0_low ----------------------------- */

/* Bytes other than 0 and 255. */
V_INLINE vec v_e8m0_normal(const uint8_t *s)
{
    __m128i e = _mm_loadu_si128((const __m128i *)(const void *)s);
    return (vec){
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(e), 23)),
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(e, e)), 23))};
}

V_INLINE __m256 half_e8m0(const uint8_t *s)
{
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)s));
    __m256i nan = _mm256_cmpeq_epi32(e, _mm256_set1_epi32(255));
    e = _mm256_slli_epi32(_mm256_max_epu32(e, _mm256_set1_epi32(1)), 23);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(e, _mm256_set1_epi32(0x7FC00000), nan));
}

V_INLINE vec v_e8m0(const uint8_t *s)
{
    return (vec){half_e8m0(s), half_e8m0(s + 8)};
}

V_INLINE __m256 half_e8m0_low(const uint8_t *s)
{
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)s));
    __m256i zero = _mm256_cmpeq_epi32(e, _mm256_setzero_si256());
    return _mm256_blendv_ps(_mm256_set1_ps(1.0f), _mm256_set1_ps(0.5f), _mm256_castsi256_ps(zero));
}

V_INLINE vec v_e8m0_low(const uint8_t *s)
{
    return (vec){half_e8m0_low(s), half_e8m0_low(s + 8)};
}

/* ---- lines ----------------------------------------------------------------------------------- */

V_INLINE line l_load(const uint8_t *p)
{
    const __m256i *q = (const __m256i *)(const void *)p;
    return (line){_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}

V_INLINE void l_store(uint8_t *p, line x)
{
    __m256i *q = (__m256i *)(void *)p;
    _mm256_storeu_si256(q, x.a);
    _mm256_storeu_si256(q + 1, x.b);
}

/* The 32 bits at p in every lane. */
V_INLINE line l_word(const uint8_t *p)
{
    int word;
    __builtin_memcpy(&word, p, sizeof word);
    return (line){_mm256_set1_epi32(word), _mm256_set1_epi32(word)};
}

/* Whether one of 64 e8m0 bytes is 0 or 255. */
V_INLINE int l_has_special(line x)
{
    const __m256i zero = _mm256_setzero_si256(), nan = _mm256_set1_epi8((char)255);
    __m256i a = _mm256_or_si256(_mm256_cmpeq_epi8(x.a, zero), _mm256_cmpeq_epi8(x.a, nan));
    __m256i b = _mm256_or_si256(_mm256_cmpeq_epi8(x.b, zero), _mm256_cmpeq_epi8(x.b, nan));
    return _mm256_movemask_epi8(_mm256_or_si256(a, b)) != 0;
}

V_INLINE void l_prefetch(const uint8_t *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* The low (k = 2j) and high (2j+1) bf16 of each pair as f32. */
V_INLINE vec v_even(line x)
{
    return (vec){_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
}

V_INLINE vec v_odd(line x)
{
    const __m256i high = _mm256_set1_epi32((int)0xFFFF0000);
    return (vec){_mm256_castsi256_ps(_mm256_and_si256(x.a, high)),
                 _mm256_castsi256_ps(_mm256_and_si256(x.b, high))};
}

V_INLINE vec v_from_f16(const uint8_t *p)
{
    const __m128i *q = (const __m128i *)(const void *)p;
    return (vec){_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}

/* Sixteen neighbouring scales. */
V_INLINE __m256 half_from_bf16(const uint8_t *p)
{
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}

V_INLINE vec v_from_bf16(const uint8_t *p)
{
    return (vec){half_from_bf16(p), half_from_bf16(p + 16)};
}

V_INLINE __m128i eight_bytes(const uint8_t *p)
{
    return _mm_loadl_epi64((const __m128i *)(const void *)p);
}

V_INLINE vec v_from_u8(const uint8_t *p)
{
    return (vec){_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight_bytes(p))),
                 _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight_bytes(p + 8)))};
}

V_INLINE vec v_from_i8(const uint8_t *p)
{
    return (vec){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_bytes(p))),
                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_bytes(p + 8)))};
}

/* e4m3fn, whose bits are those of an f16 that is 2^-8 times the number. */
V_INLINE vec v_from_e4m3(const uint8_t *p)
{
    __m256i c = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
    __m256i x = _mm256_and_si256(_mm256_slli_epi16(c, 7), _mm256_set1_epi16((short)0xBF80));
    __m256i magnitude = _mm256_and_si256(c, _mm256_set1_epi16(0x7F));
    __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7F));
    x = _mm256_blendv_epi8(x, _mm256_set1_epi16(0x7E00), nan);
    return v_mul((vec){_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
                       _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))},
                 v_set1(256));
}

V_INLINE __m256i half_e2m1(__m256i a)
{
    const __m256i low_byte = _mm256_broadcastsi128_si256(
        _mm_set_epi8((char)0xC0, (char)0x80, 0x40, 0, (char)0xC0, (char)0x80, 0, 0, (char)0xC0,
                     (char)0x80, 0x40, 0, (char)0xC0, (char)0x80, 0, 0));
    const __m256i high_byte = _mm256_broadcastsi128_si256(
        _mm_set_epi8((char)0xC0, (char)0xC0, (char)0xC0, (char)0xC0, (char)0xBF, (char)0xBF,
                     (char)0xBF, (char)0x80, 0x40, 0x40, 0x40, 0x40, 0x3F, 0x3F, 0x3F, 0));
    __m256i code = _mm256_and_si256(
        a, _mm256_set1_epi16(15)); /* its upper byte is 0, and so is entry 0 of both tables */
    return _mm256_or_si256(_mm256_shuffle_epi8(low_byte, code),
                           _mm256_shuffle_epi8(high_byte, _mm256_slli_epi16(code, 8)));
}

/* Pair j of the four in a line of e2m1: both 16-bit halves have their code at bit 4 j. */
V_INLINE line l_e2m1(line x, int j)
{
    switch (j) {
    case 0: return (line){half_e2m1(x.a), half_e2m1(x.b)};
    case 1:
        return (line){half_e2m1(_mm256_srli_epi16(x.a, 4)), half_e2m1(_mm256_srli_epi16(x.b, 4))};
    case 2:
        return (line){half_e2m1(_mm256_srli_epi16(x.a, 8)), half_e2m1(_mm256_srli_epi16(x.b, 8))};
    default:
        return (line){half_e2m1(_mm256_srli_epi16(x.a, 12)), half_e2m1(_mm256_srli_epi16(x.b, 12))};
    }
}

/* Codes in the high byte of each 16 bits as bf16, but for those below 2^-6 and NaN. */
V_INLINE __m256i half_e4m3(__m256i a)
{
    __m256i x = _mm256_and_si256(_mm256_srai_epi16(a, 4), _mm256_set1_epi16((short)0x87F0));
    return _mm256_add_epi16(x, _mm256_set1_epi16(0x3C00));
}

/* The same for every code. */
V_INLINE __m256i half_e4m3_special(__m256i a, int ieee)
{
    /* m / 8 * 2^-6 for m = 0..7, the low and the high bytes of the bf16 */
    const __m256i low_byte = _mm256_broadcastsi128_si256(
        _mm_set_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0x60, 0x40, 0x20, 0, (char)0xC0, (char)0x80, 0, 0));
    const __m256i high_byte = _mm256_broadcastsi128_si256(
        _mm_set_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0x3C, 0x3C, 0x3C, 0x3C, 0x3B, 0x3B, 0x3B, 0));
    __m256i mag = _mm256_and_si256(_mm256_srli_epi16(a, 8), _mm256_set1_epi16(0x7F));
    __m256i v = half_e4m3(_mm256_slli_epi16(mag, 8));
    __m256i small = _mm256_or_si256(_mm256_shuffle_epi8(low_byte, mag),
                                    _mm256_shuffle_epi8(high_byte, _mm256_slli_epi16(mag, 8)));
    v = _mm256_blendv_epi8(v, small, _mm256_cmpgt_epi16(_mm256_set1_epi16(8), mag));
    int largest = ieee ? 0x78 : 0x7E;
    __m256i nan = _mm256_cmpgt_epi16(mag, _mm256_set1_epi16((short)largest));
    if (ieee)
        v = _mm256_blendv_epi8(v, _mm256_set1_epi16(0x7F80),
                               _mm256_cmpeq_epi16(mag, _mm256_set1_epi16(0x78)));
    v = _mm256_blendv_epi8(v, _mm256_set1_epi16(0x7FC0), nan);
    return _mm256_or_si256(v, _mm256_and_si256(a, _mm256_set1_epi16((short)0x8000)));
}

/* Whether a code is below 2^-6 (its doubled byte, 16 or less, becomes 112 to 126) or has no finite
 * value below 2^8 (109 or more). */
V_INLINE __m256i half_e4m3_is_special(__m256i a, int ieee)
{
    __m256i x = _mm256_add_epi8(_mm256_add_epi8(a, a), _mm256_set1_epi8(112));
    return _mm256_cmpgt_epi8(x, _mm256_set1_epi8(ieee ? 95 : 109));
}

/* A line of e4m3, and then pair j of its two as bf16. */
V_INLINE void l_e4m3(line x, int ieee, line *first, line *second)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i special =
        _mm256_or_si256(half_e4m3_is_special(x.a, ieee), half_e4m3_is_special(x.b, ieee));
    *first = (line){_mm256_unpacklo_epi8(zero, x.a), _mm256_unpacklo_epi8(zero, x.b)};
    *second = (line){_mm256_unpackhi_epi8(zero, x.a), _mm256_unpackhi_epi8(zero, x.b)};
    if (__builtin_expect(_mm256_testz_si256(special, special), 1)) {
        *first = (line){half_e4m3(first->a), half_e4m3(first->b)};
        *second = (line){half_e4m3(second->a), half_e4m3(second->b)};
    } else {
        *first = (line){half_e4m3_special(first->a, ieee), half_e4m3_special(first->b, ieee)};
        *second = (line){half_e4m3_special(second->a, ieee), half_e4m3_special(second->b, ieee)};
    }
}

V_INLINE line l_e4m3_pair(line first, line second, int j)
{
    return j == 0 ? first : second;
}

/* For each of 16 codes a 16-bit word, its high and its low byte: bf16 values, or bf12's exponents in
 * their place. */
typedef struct l_table {
    __m256i high, low;
} l_table;

V_INLINE l_table l_bf12_table(const uint8_t *exponent)
{
    __m256i e =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)exponent));
    const __m256i one = _mm256_set1_epi8(1);
    return (l_table){_mm256_and_si256(_mm256_srli_epi16(e, 1), _mm256_set1_epi8(0x7F)),
                     _mm256_slli_epi16(_mm256_and_si256(e, one), 7)};
}

V_INLINE l_table l_words_table(const uint16_t *words)
{
    const __m128i *p = (const __m128i *)(const void *)words;
    const __m128i a = _mm_loadu_si128(p), b = _mm_loadu_si128(p + 1), low = _mm_set1_epi16(255);
    return (l_table){
        _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8))),
        _mm256_broadcastsi128_si256(
            _mm_packus_epi16(_mm_and_si128(a, low), _mm_and_si128(b, low)))};
}

/* a: a code in the low 4 bits of each 16. */
V_INLINE __m256i half_nibble(__m256i a, const l_table *table)
{
    __m256i code = _mm256_and_si256(a, _mm256_set1_epi16(15));
    __m256i low = _mm256_or_si256(code, _mm256_set1_epi16((short)0x8000)); /* 0x80 looks up 0 */
    __m256i high = _mm256_or_si256(_mm256_slli_epi16(code, 8), _mm256_set1_epi16(0x80));
    return _mm256_or_si256(_mm256_shuffle_epi8(table->low, low),
                           _mm256_shuffle_epi8(table->high, high));
}

/* Pair j of the four in a line of codes. */
V_INLINE line l_nibble(line x, int j, const l_table *table)
{
    switch (j) {
    case 0: break;
    case 1: x = (line){_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}; break;
    case 2: x = (line){_mm256_srli_epi16(x.a, 8), _mm256_srli_epi16(x.b, 8)}; break;
    default: x = (line){_mm256_srli_epi16(x.a, 12), _mm256_srli_epi16(x.b, 12)};
    }
    return (line){half_nibble(x.a, table), half_nibble(x.b, table)};
}

V_INLINE __m256i half_swap_bytes(__m256i x)
{
    return _mm256_or_si256(_mm256_slli_epi16(x, 8), _mm256_srli_epi16(x, 8));
}

/* Pair j of the four of a line of codes, rest: the line that has its signs and mantissas. */
V_INLINE line l_bf12(line codes, line rest, int j, const l_table *table)
{
    if (j % 2 == 1) rest = (line){half_swap_bytes(rest.a), half_swap_bytes(rest.b)};
    const line e = l_nibble(codes, j, table);
    const __m256i bits = _mm256_set1_epi16((short)0x807F);
    return (line){_mm256_or_si256(e.a, _mm256_and_si256(rest.a, bits)),
                  _mm256_or_si256(e.b, _mm256_and_si256(rest.b, bits))};
}

/* ---- int8 ------------------------------------------------------------------------------------ */

V_INLINE ivec i_set1(int32_t x)
{
    return (ivec){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
V_INLINE ivec i_mul(ivec x, ivec y)
{
    return (ivec){_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)};
}
V_INLINE vec v_from_int(ivec x)
{
    return (vec){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}

V_INLINE __m256i half_dot2(__m256i acc, __m256i w0, __m256i codes0, __m256i w1, __m256i codes1)
{
    __m256i pairs = /* at most 4 * 24 * 127: no saturation */
        _mm256_add_epi16(_mm256_maddubs_epi16(w0, codes0), _mm256_maddubs_epi16(w1, codes1));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* acc + the dots of twice four unsigned weights, 0 to 24, and signed codes. */
V_INLINE ivec i_dot2(ivec acc, line w0, line codes0, line w1, line codes1)
{
    return (ivec){half_dot2(acc.a, w0.a, codes0.a, w1.a, codes1.a),
                  half_dot2(acc.b, w0.b, codes0.b, w1.b, codes1.b)};
}

V_INLINE __m256 half_from_byte(__m256i a, int i)
{
    if (i < 3) a = _mm256_slli_epi32(a, 24 - 8 * i);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(a, 24));
}

/* The signed byte i of each 32 bits. */
V_INLINE vec v_from_byte(line x, int i)
{
    return (vec){half_from_byte(x.a, i), half_from_byte(x.b, i)};
}

/* int8 weights as i_dot2_int8 takes them, VEC_INT8_ZERO the one that is zero. */
#define VEC_INT8_ZERO 0

V_INLINE line l_int8(line x)
{
    return x;
}

/* The sign goes to the codes: pairs are at most 2 * 128 * 127. */
V_INLINE __m256i half_dot_int8(__m256i acc, __m256i w, __m256i codes)
{
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(codes, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* acc + the dots of twice four int8 weights and signed codes, -127 to 127. */
V_INLINE ivec i_dot2_int8(ivec acc, line w0, line codes0, line w1, line codes1)
{
    acc.a = half_dot_int8(half_dot_int8(acc.a, w0.a, codes0.a), w1.a, codes1.a);
    acc.b = half_dot_int8(half_dot_int8(acc.b, w0.b, codes0.b), w1.b, codes1.b);
    return acc;
}

/* For each of 16 codes a byte. */
typedef __m256i l_bytes;

V_INLINE l_bytes l_bytes_table(const uint8_t *bytes)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)bytes));
}

/* Those of the low (b 0) or the high (1) nibbles. */
V_INLINE line l_nibble_bytes(line x, int b, const l_bytes *table)
{
    const __m256i low = _mm256_set1_epi8(15);
    if (b == 1) x = (line){_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)};
    return (line){_mm256_shuffle_epi8(*table, _mm256_and_si256(x.a, low)),
                  _mm256_shuffle_epi8(*table, _mm256_and_si256(x.b, low))};
}

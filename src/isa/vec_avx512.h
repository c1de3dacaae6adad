/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx512.h - the vocabulary of kernel_tmpl.h in AVX-512 F, BW, DQ, VL; with VEC_VNNI,
 * VEC_VBMI (VBMI and VBMI2) and VEC_BF16 defined by the including file also those. */
#include <immintrin.h>
#include <stdint.h>

#define VEC_WIDTH    12
#define VEC_WIDTH_MX 8
#define VEC_SUMS     24
#define V_INLINE     static inline __attribute__((always_inline))

typedef __m512 vec;
typedef __m512i line;
typedef __m512i ivec;

/* ---- f32 ------------------------------------------------------------------------------------- */

V_INLINE vec v_zero(void)
{
    return _mm512_setzero_ps();
}
V_INLINE vec v_set1(float x)
{
    return _mm512_set1_ps(x);
}
V_INLINE vec v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
V_INLINE void v_store(float *p, vec a)
{
    _mm512_storeu_ps(p, a);
}
V_INLINE vec v_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
V_INLINE vec v_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}
V_INLINE vec v_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
V_INLINE vec v_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}
V_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
V_INLINE vec v_neg(vec a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
V_INLINE vec v_abs(vec a)
{
    return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a);
}

/* a > b ? x : y, and a == b ? x : y; a NaN gives y. */
V_INLINE vec v_if_gt(vec a, vec b, vec x, vec y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}

V_INLINE vec v_if_eq(vec a, vec b, vec x, vec y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), y, x);
}

V_INLINE vec v_pow2(__m512i n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

/* p * 2^k in two steps, k = the integer that t - magic is. */
V_INLINE vec v_scale(vec p, vec t, vec magic)
{
    __m512i k = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(magic));
    __m512i half = _mm512_srai_epi32(k, 1);
    return v_mul(v_mul(p, v_pow2(half)), v_pow2(_mm512_sub_epi32(k, half)));
}

/* ---- e8m0 scales, a byte for each row: num_e8m0 and num_e8m0_low ----------------------------- */

/* Bytes other than 0 and 255. */
V_INLINE vec v_e8m0_normal(const uint8_t *s)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)s));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}

V_INLINE vec v_e8m0(const uint8_t *s)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)s));
    __mmask16 nan = _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255));
    e = _mm512_slli_epi32(_mm512_max_epu32(e, _mm512_set1_epi32(1)), 23);
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(e, nan, _mm512_set1_epi32(0x7FC00000)));
}

V_INLINE vec v_e8m0_low(const uint8_t *s)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)s));
    __mmask16 zero = _mm512_testn_epi32_mask(e, e);
    return _mm512_mask_blend_ps(zero, _mm512_set1_ps(1.0f), _mm512_set1_ps(0.5f));
}

/* ---- lines ----------------------------------------------------------------------------------- */

V_INLINE line l_load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}
V_INLINE void l_store(uint8_t *p, line a)
{
    _mm512_storeu_si512(p, a);
}
/* The 32 bits at p in every lane. */
V_INLINE line l_word(const uint8_t *p)
{
    int word;
    __builtin_memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}
/* Whether one of 64 e8m0 bytes is 0 or 255. */
V_INLINE int l_has_special(line a)
{
    return (_mm512_testn_epi8_mask(a, a) |
            _mm512_cmpeq_epi8_mask(a, _mm512_set1_epi8((char)255))) != 0;
}
V_INLINE void l_prefetch(const uint8_t *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* The low (k = 2j) and high (2j+1) bf16 of each pair as f32. */
V_INLINE vec v_even(line a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
}

V_INLINE vec v_odd(line a)
{
    return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int)0xFFFF0000)));
}

V_INLINE vec v_from_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* Sixteen neighbouring scales. */
V_INLINE vec v_from_bf16(const uint8_t *p)
{
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}

V_INLINE vec v_from_u8(const uint8_t *p)
{
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x));
}

V_INLINE vec v_from_i8(const uint8_t *p)
{
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
}

/* e4m3fn, whose bits are those of an f16 that is 2^-8 times the number. */
V_INLINE vec v_from_e4m3(const uint8_t *p)
{
    __m256i c = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
    __m256i x = _mm256_and_si256(_mm256_slli_epi16(c, 7), _mm256_set1_epi16((short)0xBF80));
    __m256i magnitude = _mm256_and_si256(c, _mm256_set1_epi16(0x7F));
    __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7F));
    x = _mm256_mask_mov_epi16(x, nan, _mm256_set1_epi16(0x7E00));
    return v_mul(_mm512_cvtph_ps(x), v_set1(256));
}

/* Pair j of the four in a line of e2m1: both 16-bit halves have their code at bit 4 j; the table
 * ignores the bits above. */
V_INLINE line l_e2m1(line a, int j)
{
    const __m512i table = _mm512_set_epi16(
        (short)0xC0C0, (short)0xC080, (short)0xC040, (short)0xC000, (short)0xBFC0, (short)0xBF80,
        (short)0xBF00, (short)0x8000, 0x40C0, 0x4080, 0x4040, 0x4000, 0x3FC0, 0x3F80, 0x3F00, 0,
        (short)0xC0C0, (short)0xC080, (short)0xC040, (short)0xC000, (short)0xBFC0, (short)0xBF80,
        (short)0xBF00, (short)0x8000, 0x40C0, 0x4080, 0x4040, 0x4000, 0x3FC0, 0x3F80, 0x3F00, 0);
    return _mm512_permutexvar_epi16(j == 0   ? a
                                    : j == 1 ? _mm512_srli_epi16(a, 4)
                                    : j == 2 ? _mm512_srli_epi16(a, 8)
                                             : _mm512_srli_epi16(a, 12),
                                    table);
}

/* A line of e4m3, and then pair j of its two as bf16. */
#ifdef VEC_VBMI

/* The high and the low bytes of the bf16 of codes 0 to 127, by exponent: 0, then 1 to 14 that both
 * kinds share, then 15. */
#define EIGHT(x)   x, x, x, x, x, x, x, x
#define SIXTEEN(x) EIGHT(x), EIGHT(x)
#define MANTISSA   0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
#define MANTISSAS  0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0, MANTISSA
#define E4M3_HIGH                                                                                  \
    0x00, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C, EIGHT(0x3C), SIXTEEN(0x3D), SIXTEEN(0x3E),     \
        SIXTEEN(0x3F), SIXTEEN(0x40), SIXTEEN(0x41), SIXTEEN(0x42), EIGHT(0x43)
#define E4M3_LOW                                                                                   \
    0x00, 0x00, 0x80, 0xC0, 0x00, 0x20, 0x40, 0x60, MANTISSAS, MANTISSAS, MANTISSAS, MANTISSAS,    \
        MANTISSAS, MANTISSAS, MANTISSAS
static const uint8_t e4m3_high[2][128] = {
    {E4M3_HIGH, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x7F},
    {E4M3_HIGH, EIGHT(0x7F)},
};
static const uint8_t e4m3_low[2][128] = {
    {E4M3_LOW, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xC0},
    {E4M3_LOW, 0x80, 0xC0, 0xC0, 0xC0, 0xC0, 0xC0, 0xC0, 0xC0},
};

V_INLINE void l_e4m3(line a, int ieee, line *high, line *low)
{
    const line sign = _mm512_set1_epi8((char)0x80);
    line h = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_high[ieee]), a,
                                      _mm512_loadu_si512(e4m3_high[ieee] + 64));
    *high = _mm512_ternarylogic_epi32(h, a, sign, 0xF8); /* h | (a & sign) */
    *low = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_low[ieee]), a,
                                    _mm512_loadu_si512(e4m3_low[ieee] + 64));
}

V_INLINE line l_e4m3_pair(line high, line low, int j)
{
    return j == 0 ? _mm512_unpacklo_epi8(low, high) : _mm512_unpackhi_epi8(low, high);
}

#else

/* A code in the high byte of each 16 bits as bf16. */
V_INLINE line e4m3_wide(line a, int ieee)
{
    const __m512i table = /* m / 8 * 2^-6 for m = 0..7 */
        _mm512_broadcast_i32x4(
            _mm_set_epi16(0x3C60, 0x3C40, 0x3C20, 0x3C00, 0x3BC0, 0x3B80, 0x3B00, 0));
    line x = _mm512_and_si512(_mm512_srai_epi16(a, 4), _mm512_set1_epi16((short)0x87F0));
    line v = _mm512_add_epi16(x, _mm512_set1_epi16(0x3C00));
    line mag = _mm512_and_si512(x, _mm512_set1_epi16(0x7F0));
    __mmask32 small = _mm512_cmplt_epu16_mask(mag, _mm512_set1_epi16(0x80));
    line sign = _mm512_and_si512(a, _mm512_set1_epi16((short)0x8000));
    v = _mm512_mask_permutexvar_epi16(v, small, _mm512_srli_epi16(mag, 4), table);
    if (ieee)
        v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epu16_mask(mag, _mm512_set1_epi16(0x780)),
                                  _mm512_set1_epi16(0x7F80));
    v = _mm512_mask_mov_epi16(v,
                              _mm512_cmpgt_epu16_mask(mag, _mm512_set1_epi16(ieee ? 0x780 : 0x7E0)),
                              _mm512_set1_epi16(0x7FC0));
    return _mm512_or_si512(v, sign);
}

V_INLINE void l_e4m3(line a, int ieee, line *first, line *second)
{
    *first = e4m3_wide(_mm512_unpacklo_epi8(_mm512_setzero_si512(), a), ieee);
    *second = e4m3_wide(_mm512_unpackhi_epi8(_mm512_setzero_si512(), a), ieee);
}

V_INLINE line l_e4m3_pair(line first, line second, int j)
{
    return j == 0 ? first : second;
}

#endif

/* For each of 16 codes a 16-bit word: bf16 values, or bf12's exponents in their place. */
typedef __m512i l_table;

V_INLINE l_table l_words_table(const uint16_t *words)
{
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)words));
}

/* Pair j of the four in a line of codes. */
V_INLINE line l_nibble(line a, int j, const l_table *table)
{
    return _mm512_permutexvar_epi16(j == 0   ? a
                                    : j == 1 ? _mm512_srli_epi16(a, 4)
                                    : j == 2 ? _mm512_srli_epi16(a, 8)
                                             : _mm512_srli_epi16(a, 12),
                                    *table);
}

V_INLINE l_table l_bf12_table(const uint8_t *exponent)
{
    __m256i e = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)exponent));
    return _mm512_broadcast_i64x4(_mm256_slli_epi16(e, 7));
}

/* Pair j of the four of a line of codes, rest: the line that has its signs and mantissas. */
V_INLINE line l_bf12(line codes, line rest, int j, const l_table *table)
{
    line e = l_nibble(codes, j, table);
#ifdef VEC_VBMI
    if (j % 2 == 1) rest = _mm512_shldi_epi16(rest, rest, 8);
#else
    if (j % 2 == 1) rest = _mm512_or_si512(_mm512_slli_epi16(rest, 8), _mm512_srli_epi16(rest, 8));
#endif
    return _mm512_ternarylogic_epi32(e, rest, _mm512_set1_epi16((short)0x807F), 0xF8);
}

#ifdef VEC_BF16
/* The high and the low bytes of the bf16 of 0 to 127. */
#define FROM(x, d)                                                                                 \
    x, x + (d), x + 2 * (d), x + 3 * (d), x + 4 * (d), x + 5 * (d), x + 6 * (d), x + 7 * (d)
#define FROM2(x, d) FROM(x, d), FROM(x + 8 * (d), d)
#define FROM4(x, d) FROM2(x, d), FROM2(x + 16 * (d), d)
static const uint8_t int8_high[128] = {
    0x00, 0x3F,          0x40,           0x40,           0x40,           0x40,          0x40,
    0x40, FROM(0x41, 0), FROM2(0x41, 0), FROM4(0x42, 0), FROM4(0x42, 0), FROM4(0x42, 0)};
static const uint8_t int8_low[128] = {
    0x00, 0x80,           0x00,           0x40,           0x80,           0xA0,          0xC0,
    0xE0, FROM(0x00, 16), FROM2(0x80, 8), FROM4(0x00, 4), FROM4(0x80, 2), FROM4(0xC0, 2)};
#undef FROM
#undef FROM2
#undef FROM4

/* A line of int8, and then pair j of the two in it as bf16: bytes j and j + 2 of each 32 bits. */
V_INLINE void l_int8_bf16(line a, line *high, line *low)
{
    const line sign = _mm512_set1_epi8((char)0x80);
    const __mmask64 least = _mm512_cmpeq_epi8_mask(a, sign); /* -128 looks up 0 */
    line m = _mm512_abs_epi8(a);
    line h = _mm512_permutex2var_epi8(_mm512_loadu_si512(int8_high), m,
                                      _mm512_loadu_si512(int8_high + 64));
    h = _mm512_mask_mov_epi8(h, least, _mm512_set1_epi8(0x43));
    *high = _mm512_ternarylogic_epi32(h, a, sign, 0xF8); /* h | (a & sign) */
    *low = _mm512_permutex2var_epi8(_mm512_loadu_si512(int8_low), m,
                                    _mm512_loadu_si512(int8_low + 64));
}

V_INLINE line l_int8_pair(line high, line low, int j)
{
    const line bytes = _mm512_set1_epi16(255);
    if (j == 0) /* (low & bytes) | high << 8 */
        return _mm512_ternarylogic_epi32(low, bytes, _mm512_slli_epi16(high, 8), 0xEA);
    return _mm512_ternarylogic_epi32(_mm512_srli_epi16(low, 8), high, bytes, 0xF4);
}

/* fma(x[2j], w[2j], fma(x[2j+1], w[2j+1], acc)). */
V_INLINE vec v_dot_bf16(vec acc, line w, line x)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}
#endif

/* ---- int8 ------------------------------------------------------------------------------------ */

V_INLINE ivec i_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
V_INLINE vec v_from_int(ivec a)
{
    return _mm512_cvtepi32_ps(a);
}

/* The signed byte i of each 32 bits. */
V_INLINE vec v_from_byte(line a, int i)
{
    if (i < 3) a = _mm512_slli_epi32(a, (unsigned)(24 - 8 * i));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(a, 24));
}

/* acc + the dots of twice four unsigned weights, 0 to 24, and signed codes. */
V_INLINE ivec i_dot2(ivec acc, line w0, line codes0, line w1, line codes1)
{
#ifdef VEC_VNNI
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc, w0, codes0), w1, codes1);
#else
    __m512i pairs = /* at most 4 * 24 * 127: no saturation */
        _mm512_add_epi16(_mm512_maddubs_epi16(w0, codes0), _mm512_maddubs_epi16(w1, codes1));
    return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

/* int8 weights as i_dot2_int8 takes them, VEC_INT8_ZERO the one that is zero; and acc + the dots of
 * twice four of them and signed codes, -127 to 127. */
#ifdef VEC_VNNI
#define VEC_INT8_ZERO 128

V_INLINE line l_int8(line a)
{
    return _mm512_xor_si512(a, _mm512_set1_epi8((char)0x80));
}

V_INLINE ivec i_dot2_int8(ivec acc, line w0, line codes0, line w1, line codes1)
{
    return i_dot2(acc, w0, codes0, w1, codes1);
}

#else
#define VEC_INT8_ZERO 0

V_INLINE line l_int8(line a)
{
    return a;
}

/* The sign goes to the codes: pairs are at most 2 * 128 * 127. */
V_INLINE ivec dot_int8(ivec acc, line w, line codes)
{
    line q = _mm512_mask_sub_epi8(codes, _mm512_movepi8_mask(w), _mm512_setzero_si512(), codes);
    line pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), q);
    return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

V_INLINE ivec i_dot2_int8(ivec acc, line w0, line codes0, line w1, line codes1)
{
    return dot_int8(dot_int8(acc, w0, codes0), w1, codes1);
}
#endif

/* For each of 16 codes a byte. */
typedef __m512i l_bytes;

V_INLINE l_bytes l_bytes_table(const uint8_t *bytes)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)bytes));
}

/* Those of the low (b 0) or the high (1) nibbles. */
V_INLINE line l_nibble_bytes(line a, int b, const l_bytes *table)
{
    if (b == 1) a = _mm512_srli_epi16(a, 4);
#ifdef VEC_VBMI
    return _mm512_permutexvar_epi8(a, *table); /* its period is 16: bits above are of no account */
#else
    return _mm512_shuffle_epi8(*table, _mm512_and_si512(a, _mm512_set1_epi8(15)));
#endif
}

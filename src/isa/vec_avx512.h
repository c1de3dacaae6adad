/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx512.h - the vocabulary of kernel_tmpl.h in AVX-512 F, BW, DQ, VL; with VEC_VNNI
 * and VEC_BF16 defined by the including file also those. */
#include <immintrin.h>
#include <stdint.h>

#define VEC_WIDTH 12
#define V_INLINE  static inline __attribute__((always_inline))

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

V_INLINE int l_has_zero(const uint8_t *s)
{
    __m128i e = _mm_loadu_si128((const __m128i *)(const void *)s);
    return _mm_movemask_epi8(_mm_cmpeq_epi8(e, _mm_setzero_si128())) != 0;
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

V_INLINE void v_from_f16(line a, vec *even, vec *odd)
{
    *even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a));
    *odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16)));
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

/* Pair j of the two in a line of e4m3. */
V_INLINE line l_e4m3(line a, int j, int ieee)
{
    const __m512i byte = _mm512_set1_epi16(0x7F);
    const __m512i table = /* m / 8 * 2^-6 for m = 0..7 */
        _mm512_broadcast_i32x4(
            _mm_set_epi16(0x3C60, 0x3C40, 0x3C20, 0x3C00, 0x3BC0, 0x3B80, 0x3B00, 0));
    line code = j == 0 ? a : _mm512_srli_epi16(a, 8);
    line mag = _mm512_and_si512(code, byte);
    line v = _mm512_add_epi16(_mm512_slli_epi16(mag, 4), _mm512_set1_epi16(0x3C00));
    v = _mm512_mask_permutexvar_epi16(v, _mm512_cmplt_epu16_mask(mag, _mm512_set1_epi16(8)), mag,
                                      table);
    if (ieee) {
        v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epu16_mask(mag, _mm512_set1_epi16(0x78)),
                                  _mm512_set1_epi16(0x7F80));
        v = _mm512_mask_mov_epi16(v, _mm512_cmpgt_epu16_mask(mag, _mm512_set1_epi16(0x78)),
                                  _mm512_set1_epi16(0x7FC0));
    } else {
        v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epu16_mask(mag, byte), _mm512_set1_epi16(0x7FC0));
    }
    return _mm512_or_si512(v,
                           _mm512_slli_epi16(_mm512_and_si512(code, _mm512_set1_epi16(0x80)), 8));
}

#ifdef VEC_BF16
/* fma(x[2j], w[2j], fma(x[2j+1], w[2j+1], acc)) with x the pair at p. */
V_INLINE vec v_dot_bf16(vec acc, line w, const uint8_t *p)
{
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(pair));
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

/* acc + the dot of four unsigned weights of each row and the four signed codes at p. */
V_INLINE ivec i_dot(ivec acc, line w, const uint8_t *p)
{
    int codes;
    __builtin_memcpy(&codes, p, sizeof codes);
#ifdef VEC_VNNI
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(codes));
#else
    __m512i pairs =
        _mm512_maddubs_epi16(w, _mm512_set1_epi32(codes)); /* at most 2 * 24 * 127: no saturation */
    return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

/* 12 + twice the e2m1 value of the low and the high nibbles. */
V_INLINE void l_e2m1_bytes(line a, line *low, line *high)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_set_epi8(0, 4, 6, 8, 9, 10, 11, 12, 24, 20, 18, 16, 15, 14, 13, 12));
    *low = _mm512_shuffle_epi8(table, _mm512_and_si512(a, nibble));
    *high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(a, 4), nibble));
}

/* SPDX-License-Identifier: Apache-2.0 */
/* ceiling_x86.c - loads and dot products of x86-64, from registers.
 *
 * Owns the instructions; ceiling.c owns the time.  Each function is compiled for its own
 * instruction set, and chosen at run time. */
#include "ceiling.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define AVX2   __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw")))
#define VNNI   __attribute__((target("avx512f,avx512vnni")))
#define BF16   __attribute__((target("avx512f,avx512bf16")))
#define INLINE static inline __attribute__((always_inline))

/* ---- reading --------------------------------------------------------------------------------- */

enum { STEP = 512 }; /* bytes between two looks at the loop's end */

/* Lines that will be wanted, to the first-level cache. */
INLINE void ask(const uint8_t *p, size_t ahead)
{
    if (ahead == 0) return;
    for (size_t line = 0; line < STEP; line += 64)
        _mm_prefetch((const char *)p + ahead + line, _MM_HINT_T0);
}

AVX512 INLINE __m512i page_avx512(const uint8_t *p, size_t ahead, __m512i sum)
{
    for (size_t i = 0; i < CEILING_PAGE; i += STEP) {
        const __m512i *v = (const __m512i *)(const void *)(p + i);
        ask(p + i, ahead);
        __m512i a = _mm512_or_si512(_mm512_load_si512(v), _mm512_load_si512(v + 1));
        __m512i b = _mm512_or_si512(_mm512_load_si512(v + 2), _mm512_load_si512(v + 3));
        __m512i c = _mm512_or_si512(_mm512_load_si512(v + 4), _mm512_load_si512(v + 5));
        __m512i d = _mm512_or_si512(_mm512_load_si512(v + 6), _mm512_load_si512(v + 7));
        sum = _mm512_or_si512(sum, _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d)));
    }
    return sum;
}

AVX512 static void read_avx512(const uint8_t *p, size_t bytes, size_t streams, size_t ahead)
{
    __m512i sum = _mm512_setzero_si512();
    size_t piece = bytes / streams;
    for (size_t i = 0; i < piece; i += CEILING_PAGE)
        for (size_t s = 0; s < streams; s++)
            sum = ahead ? page_avx512(p + s * piece + i, ahead, sum)
                        : page_avx512(p + s * piece + i, 0, sum);
    __asm__ volatile("" : : "v"(sum));
}

AVX2 INLINE __m256i page_avx2(const uint8_t *p, size_t ahead, __m256i sum)
{
    for (size_t i = 0; i < CEILING_PAGE; i += STEP) {
        ask(p + i, ahead);
        __m256i a = sum, b = sum;
        for (size_t j = 0; j < STEP; j += 64) {
            const __m256i *v = (const __m256i *)(const void *)(p + i + j);
            a = _mm256_or_si256(a, _mm256_load_si256(v));
            b = _mm256_or_si256(b, _mm256_load_si256(v + 1));
        }
        sum = _mm256_or_si256(a, b);
    }
    return sum;
}

AVX2 static void read_avx2(const uint8_t *p, size_t bytes, size_t streams, size_t ahead)
{
    __m256i sum = _mm256_setzero_si256();
    size_t piece = bytes / streams;
    for (size_t i = 0; i < piece; i += CEILING_PAGE)
        for (size_t s = 0; s < streams; s++)
            sum = ahead ? page_avx2(p + s * piece + i, ahead, sum)
                        : page_avx2(p + s * piece + i, 0, sum);
    __asm__ volatile("" : : "x"(sum));
}

static void read_sse2(const uint8_t *p, size_t bytes, size_t streams, size_t ahead)
{
    __m128i sum = _mm_setzero_si128();
    size_t piece = bytes / streams;
    for (size_t i = 0; i < bytes; i += STEP) { /* page by page of each stream in turn */
        size_t page = i / CEILING_PAGE;
        const uint8_t *q =
            p + page % streams * piece + page / streams * CEILING_PAGE + i % CEILING_PAGE;
        ask(q, ahead);
        for (size_t j = 0; j < STEP; j += sizeof sum)
            sum = _mm_or_si128(sum, _mm_load_si128((const __m128i *)(const void *)(q + j)));
    }
    __asm__ volatile("" : : "x"(sum));
}

ceiling_read_fn *ceiling_best_read(void)
{
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return read_avx512;
    return __builtin_cpu_supports("avx2") ? read_avx2 : read_sse2;
}

/* ---- dot products ---------------------------------------------------------------------------- */

/* Each has `n` accumulators; the loops over them are unrolled, so that they are registers. */
AVX512 INLINE uint64_t fma_zmm(uint64_t rounds, size_t n)
{
    __m512 a[CEILING_ACCUMULATORS], x = _mm512_set1_ps(1e-9f), y = _mm512_set1_ps(0.999f);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = _mm512_set1_ps((float)i);
    for (uint64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : "+v"(x));
        CEILING_UNROLLED
        for (size_t i = 0; i < n; i++) a[i] = _mm512_fmadd_ps(x, y, a[i]);
    }
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "v"(a[i]));
    return rounds * n;
}

AVX2 INLINE uint64_t fma_ymm(uint64_t rounds, size_t n)
{
    __m256 a[CEILING_ACCUMULATORS], x = _mm256_set1_ps(1e-9f), y = _mm256_set1_ps(0.999f);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = _mm256_set1_ps((float)i);
    for (uint64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : "+x"(x));
        CEILING_UNROLLED
        for (size_t i = 0; i < n; i++) a[i] = _mm256_fmadd_ps(x, y, a[i]);
    }
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "x"(a[i]));
    return rounds * n;
}

BF16 INLINE uint64_t bf16_zmm(uint64_t rounds, size_t n)
{
    __m512 a[CEILING_ACCUMULATORS];
    __m512i x = _mm512_set1_epi32(0x3c003c00);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = _mm512_set1_ps((float)i);
    for (uint64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : "+v"(x));
        CEILING_UNROLLED
        for (size_t i = 0; i < n; i++) a[i] = _mm512_dpbf16_ps(a[i], (__m512bh)x, (__m512bh)x);
    }
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "v"(a[i]));
    return rounds * n;
}

VNNI INLINE uint64_t vnni_zmm(uint64_t rounds, size_t n)
{
    __m512i a[CEILING_ACCUMULATORS], x = _mm512_set1_epi32(0x01010101);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = _mm512_set1_epi32((int)i);
    for (uint64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : "+v"(x));
        CEILING_UNROLLED
        for (size_t i = 0; i < n; i++) a[i] = _mm512_dpbusd_epi32(a[i], x, x);
    }
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "v"(a[i]));
    return rounds * n;
}

AVX512 INLINE uint64_t maddubs_zmm(uint64_t rounds, size_t n)
{
    __m512i a[CEILING_ACCUMULATORS], x = _mm512_set1_epi32(0x01010101), one = _mm512_set1_epi16(1);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = _mm512_set1_epi32((int)i);
    for (uint64_t r = 0; r < rounds; r++) CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) {
        __asm__ volatile("" : "+v"(x));
        __m512i two = _mm512_maddubs_epi16(x, x);
        __asm__ volatile("" : "+v"(x));
        two = _mm512_add_epi16(two, _mm512_maddubs_epi16(x, x));
        a[i] = _mm512_add_epi32(a[i], _mm512_madd_epi16(two, one));
    }
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "v"(a[i]));
    return 2 * rounds * n; /* as the kernels do, two dots at a time */
}

AVX2 INLINE uint64_t maddubs_ymm(uint64_t rounds, size_t n)
{
    __m256i a[CEILING_ACCUMULATORS], x = _mm256_set1_epi32(0x01010101), one = _mm256_set1_epi16(1);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = _mm256_set1_epi32((int)i);
    for (uint64_t r = 0; r < rounds; r++) CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) {
        __asm__ volatile("" : "+x"(x));
        __m256i two = _mm256_maddubs_epi16(x, x);
        __asm__ volatile("" : "+x"(x));
        two = _mm256_add_epi16(two, _mm256_maddubs_epi16(x, x));
        a[i] = _mm256_add_epi32(a[i], _mm256_madd_epi16(two, one));
    }
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "x"(a[i]));
    return 2 * rounds * n; /* as the kernels do, two dots at a time */
}

/* 16 registers of ymm, two of them operands; 32 of zmm. */
#define VARIANT(attribute, name, n)                                                                \
    attribute static uint64_t name##_##n(uint64_t rounds)                                          \
    {                                                                                              \
        return name(rounds, n);                                                                    \
    }
VARIANT(AVX512, fma_zmm, 8)
VARIANT(AVX512, fma_zmm, 12)
VARIANT(AVX512, fma_zmm, 16)
VARIANT(AVX512, fma_zmm, 24)
VARIANT(BF16, bf16_zmm, 8)
VARIANT(BF16, bf16_zmm, 12)
VARIANT(BF16, bf16_zmm, 16)
VARIANT(BF16, bf16_zmm, 24)
VARIANT(VNNI, vnni_zmm, 8)
VARIANT(VNNI, vnni_zmm, 12)
VARIANT(VNNI, vnni_zmm, 16)
VARIANT(VNNI, vnni_zmm, 24)
VARIANT(AVX512, maddubs_zmm, 8)
VARIANT(AVX512, maddubs_zmm, 12)
VARIANT(AVX512, maddubs_zmm, 16)
VARIANT(AVX2, fma_ymm, 8)
VARIANT(AVX2, fma_ymm, 10)
VARIANT(AVX2, fma_ymm, 12)
VARIANT(AVX2, maddubs_ymm, 8)
VARIANT(AVX2, maddubs_ymm, 10)
VARIANT(AVX2, maddubs_ymm, 12)

typedef enum kind { FMA_ZMM, FMA_YMM, BF16_ZMM, VNNI_ZMM, MADDUBS_ZMM, MADDUBS_YMM } kind;

/* Macs: 16 lanes of a zmm, times the terms of each. */
static const ceiling_dot_kind KINDS[] = {
    [FMA_ZMM] = {"fp32 fma, 512 bits", 16, {fma_zmm_8, fma_zmm_12, fma_zmm_16, fma_zmm_24}},
    [FMA_YMM] = {"fp32 fma, 256 bits", 8, {fma_ymm_8, fma_ymm_10, fma_ymm_12}},
    [BF16_ZMM] = {"vdpbf16ps, 512 bits", 32, {bf16_zmm_8, bf16_zmm_12, bf16_zmm_16, bf16_zmm_24}},
    [VNNI_ZMM] = {"vpdpbusd, 512 bits", 64, {vnni_zmm_8, vnni_zmm_12, vnni_zmm_16, vnni_zmm_24}},
    [MADDUBS_ZMM] = {"vpmaddubsw + vpmaddwd + vpaddd, 512 bits",
                     64,
                     {maddubs_zmm_8, maddubs_zmm_12, maddubs_zmm_16}},
    [MADDUBS_YMM] = {"vpmaddubsw + vpmaddwd + vpaddd, 256 bits",
                     32,
                     {maddubs_ymm_8, maddubs_ymm_10, maddubs_ymm_12}},
};

const ceiling_dot_kind *ceiling_dot_of(const char *isa, ceiling_operand operand)
{
    static const struct {
        const char *isa;
        kind of[3]; /* f32, bf16, int8 */
    } LEVELS[] = {
        {"avx2", {FMA_YMM, FMA_YMM, MADDUBS_YMM}},
        {"avx512", {FMA_ZMM, FMA_ZMM, MADDUBS_ZMM}},
        {"avx512vnni", {FMA_ZMM, FMA_ZMM, VNNI_ZMM}},
        {"avx512bf16", {FMA_ZMM, BF16_ZMM, VNNI_ZMM}},
    };
    for (size_t i = 0; i < sizeof LEVELS / sizeof LEVELS[0]; i++)
        if (strcmp(isa, LEVELS[i].isa) == 0) return &KINDS[LEVELS[i].of[operand]];
    return &ceiling_dot_plain;
}

#endif

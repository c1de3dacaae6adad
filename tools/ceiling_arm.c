/* SPDX-License-Identifier: Apache-2.0 */
/* ceiling_arm.c - loads and dot products of 64-bit Arm, from registers.
 *
 * Owns the instructions; ceiling.c owns the time.  SDOT and SMMLA, which not every Arm has, are run
 * only at the levels that have them; they are written as themselves, since not every arm_neon.h has
 * them without flags. */
#include "ceiling.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define DOTPROD __attribute__((target("dotprod")))
#define I8MM    __attribute__((target("i8mm")))
#else
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define I8MM    __attribute__((target("arch=armv8.2-a+i8mm")))
#endif

/* ---- reading --------------------------------------------------------------------------------- */

enum { STEP = 512 }; /* bytes between two looks at the loop's end */

INLINE uint8x16_t page(const uint8_t *p, size_t ahead, uint8x16_t sum)
{
    for (size_t i = 0; i < CEILING_PAGE; i += STEP) {
        uint8x16_t a = sum, b = sum;
        for (size_t line = 0; ahead && line < STEP; line += 64)
            __builtin_prefetch(p + i + ahead + line, 0, 3);
        for (size_t j = 0; j < STEP; j += 64) {
            uint8x16x4_t v = vld1q_u8_x4(p + i + j);
            a = vorrq_u8(a, vorrq_u8(v.val[0], v.val[1]));
            b = vorrq_u8(b, vorrq_u8(v.val[2], v.val[3]));
        }
        sum = vorrq_u8(a, b);
    }
    return sum;
}

static void read_neon(const uint8_t *p, size_t bytes, size_t streams, size_t ahead)
{
    uint8x16_t sum = vdupq_n_u8(0);
    size_t piece = bytes / streams;
    for (size_t i = 0; i < piece; i += CEILING_PAGE)
        for (size_t s = 0; s < streams; s++)
            sum = ahead ? page(p + s * piece + i, ahead, sum) : page(p + s * piece + i, 0, sum);
    __asm__ volatile("" : : "w"(sum));
}

ceiling_read_fn *ceiling_best_read(void)
{
    return read_neon;
}

/* ---- dot products ---------------------------------------------------------------------------- */

/* Each has `n` accumulators; the loops over them are unrolled, so that they are registers. */

INLINE uint64_t fma_q(uint64_t rounds, size_t n)
{
    float32x4_t a[CEILING_ACCUMULATORS], x = vdupq_n_f32(1e-9f), y = vdupq_n_f32(0.999f);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = vdupq_n_f32((float)i);
    for (uint64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : "+w"(x));
        CEILING_UNROLLED
        for (size_t i = 0; i < n; i++) a[i] = vfmaq_f32(a[i], x, y);
    }
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "w"(a[i]));
    return rounds * n;
}

INLINE uint64_t mull_q(uint64_t rounds, size_t n)
{
    int32x4_t a[CEILING_ACCUMULATORS];
    int8x16_t x = vdupq_n_s8(1);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = vdupq_n_s32((int)i);
    for (uint64_t r = 0; r < rounds; r++) CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) {
        __asm__ volatile("" : "+w"(x));
        int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(x)), high = vmull_high_s8(x, x);
        a[i] = vpadalq_s16(a[i], vpaddq_s16(low, high));
    }
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "w"(a[i]));
    return rounds * n;
}

DOTPROD INLINE uint64_t sdot_q(uint64_t rounds, size_t n)
{
    int32x4_t a[CEILING_ACCUMULATORS];
    int8x16_t x = vdupq_n_s8(1);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = vdupq_n_s32((int)i);
    for (uint64_t r = 0; r < rounds; r++) CEILING_UNROLLED
    for (size_t i = 0; i < n; i++)
        __asm__ volatile("sdot %0.4s, %1.16b, %1.16b" : "+w"(a[i]) : "w"(x));
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "w"(a[i]));
    return rounds * n;
}

I8MM INLINE uint64_t smmla_q(uint64_t rounds, size_t n)
{
    int32x4_t a[CEILING_ACCUMULATORS];
    int8x16_t x = vdupq_n_s8(1);
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) a[i] = vdupq_n_s32((int)i);
    for (uint64_t r = 0; r < rounds; r++) CEILING_UNROLLED
    for (size_t i = 0; i < n; i++)
        __asm__ volatile("smmla %0.4s, %1.16b, %1.16b" : "+w"(a[i]) : "w"(x));
    CEILING_UNROLLED
    for (size_t i = 0; i < n; i++) __asm__ volatile("" : : "w"(a[i]));
    return rounds * n;
}

#define VARIANT(attribute, name, n)                                                                \
    attribute static uint64_t name##_##n(uint64_t rounds)                                          \
    {                                                                                              \
        return name(rounds, n);                                                                    \
    }
VARIANT(, fma_q, 8)
VARIANT(, fma_q, 12)
VARIANT(, fma_q, 16)
VARIANT(, fma_q, 24)
VARIANT(, mull_q, 8)
VARIANT(, mull_q, 12)
VARIANT(, mull_q, 16)
VARIANT(DOTPROD, sdot_q, 8)
VARIANT(DOTPROD, sdot_q, 12)
VARIANT(DOTPROD, sdot_q, 16)
VARIANT(DOTPROD, sdot_q, 24)
VARIANT(I8MM, smmla_q, 8)
VARIANT(I8MM, smmla_q, 12)
VARIANT(I8MM, smmla_q, 16)
VARIANT(I8MM, smmla_q, 24)

static const ceiling_dot_kind FMA = {"fmla", 4, {fma_q_8, fma_q_12, fma_q_16, fma_q_24}},
                              MULL = {"smull + smull2 + addp + sadalp",
                                      16,
                                      {mull_q_8, mull_q_12, mull_q_16}},
                              SDOT = {"sdot", 16, {sdot_q_8, sdot_q_12, sdot_q_16, sdot_q_24}},
                              SMMLA = {
                                  "smmla", 32, {smmla_q_8, smmla_q_12, smmla_q_16, smmla_q_24}};

const ceiling_dot_kind *ceiling_dot_of(const char *isa, ceiling_operand operand)
{
    static const struct {
        const char *isa;
        const ceiling_dot_kind *of_int8;
    } levels[] = {{"neon", &MULL}, {"neon_dotprod", &SDOT}, {"neon_i8mm", &SMMLA}};
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++)
        if (strcmp(isa, levels[i].isa) == 0)
            return operand == CEILING_INT8 ? levels[i].of_int8 : &FMA;
    return &ceiling_dot_plain;
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* shuffle.h - the few words of 128-bit vectors that packing is made of, for every machine that
 * the compiler knows: elements of two vectors interleaved, from their first or their last half. */
#ifndef MOE_SHUFFLE_H
#define MOE_SHUFFLE_H

#include <stdint.h>
#include <string.h>

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef uint64_t u64x2 __attribute__((vector_size(16)));

#if defined(__clang__)
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif

static inline u8x16 shuffle_load(const void *at)
{
    u8x16 v;
    memcpy(&v, at, sizeof v);
    return v;
}

static inline void shuffle_store(void *at, u8x16 v)
{
    memcpy(at, &v, sizeof v);
}

static inline u8x16 shuffle_low8(u8x16 a, u8x16 b)
{
    return SHUFFLE(u8x16, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

static inline u8x16 shuffle_high8(u8x16 a, u8x16 b)
{
    return SHUFFLE(u8x16, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

static inline u8x16 shuffle_low16(u8x16 a, u8x16 b)
{
    return (u8x16)SHUFFLE(u16x8, (u16x8)a, (u16x8)b, 0, 8, 1, 9, 2, 10, 3, 11);
}

static inline u8x16 shuffle_high16(u8x16 a, u8x16 b)
{
    return (u8x16)SHUFFLE(u16x8, (u16x8)a, (u16x8)b, 4, 12, 5, 13, 6, 14, 7, 15);
}

static inline u8x16 shuffle_low32(u8x16 a, u8x16 b)
{
    return (u8x16)SHUFFLE(u32x4, (u32x4)a, (u32x4)b, 0, 4, 1, 5);
}

static inline u8x16 shuffle_high32(u8x16 a, u8x16 b)
{
    return (u8x16)SHUFFLE(u32x4, (u32x4)a, (u32x4)b, 2, 6, 3, 7);
}

static inline u8x16 shuffle_even8(u8x16 a, u8x16 b)
{
    return SHUFFLE(u8x16, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

static inline u8x16 shuffle_even32(u8x16 a, u8x16 b)
{
    return (u8x16)SHUFFLE(u32x4, (u32x4)a, (u32x4)b, 0, 2, 4, 6);
}

static inline u8x16 shuffle_odd32(u8x16 a, u8x16 b)
{
    return (u8x16)SHUFFLE(u32x4, (u32x4)a, (u32x4)b, 1, 3, 5, 7);
}

static inline u8x16 shuffle_low64(u8x16 a, u8x16 b)
{
    return (u8x16)SHUFFLE(u64x2, (u64x2)a, (u64x2)b, 0, 2);
}

static inline u8x16 shuffle_high64(u8x16 a, u8x16 b)
{
    return (u8x16)SHUFFLE(u64x2, (u64x2)a, (u64x2)b, 1, 3);
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* fpenv.h - the canonical floating-point environment: nearest even, DAZ, FTZ, exceptions masked.
 *
 * fpenv_enter() sets it and returns what was there, for fpenv_leave().  The arithmetic that they
 * guard is in functions of other translation units, so that no compiler moves it across them:
 * the library is built without LTO. */
#ifndef MOE_FPENV_H
#define MOE_FPENV_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

typedef unsigned fpenv;

static inline fpenv fpenv_enter(void)
{
    fpenv saved = _mm_getcsr();
    _mm_setcsr(0x1F80u | 0x8000u | 0x0040u); /* all masked | FTZ | DAZ */
    return saved;
}

static inline void fpenv_leave(fpenv saved)
{
    _mm_setcsr(saved);
}

#elif defined(__aarch64__)

typedef uint64_t fpenv;

static inline fpenv fpenv_enter(void)
{
    fpenv saved,
        canonical = (uint64_t)1 << 24; /* FZ: operands and results; nearest even; no traps */
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"(canonical));
    return saved;
}

static inline void fpenv_leave(fpenv saved)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(saved));
}

#else
#error "fpenv.h: say here how this architecture flushes subnormals"
#endif

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_bench.h - the time of single kernels, for those who write them. */
#ifndef MOE_TEST_KERNEL_BENCH_H
#define MOE_TEST_KERNEL_BENCH_H

/* Prints, for every kernel (or those of the format: bf16, f16, f32, e4m3_ieee, e4m3fn, mxfp8, mxfp4,
 * bf12) of every instruction set of this machine and 1, 4 and 8 tokens: clock ticks (of the time
 * stamp counter, on Arm of CNTVCT) for each line of 64 bytes, and 10^9 multiply-adds a second.  The
 * down kernel runs through panels of 256 KiB in all, which the L2 cache holds; the fastest of some
 * turns counts.  Returns what main returns. */
int kernel_bench(const char *format);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_bench.c - see kernel_bench.h. */
#define _POSIX_C_SOURCE 200809L
#include "kernel_bench.h"

#include <stdio.h>
#include <time.h>

#include "cpu.h"
#include "fpenv.h"
#include "kernel_case.h"

enum { PANELS_BYTES = 1 << 18, MAX_K = 1024, TURNS = 20 };

static uint64_t ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    uint64_t t;
    __asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(t));
    return t;
#endif
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void bench_case(const kernel_table *table, kernel_format f, kernel_operand o, size_t tokens)
{
    static float out[KERNEL_TOKENS * 2 * KERNEL_ROWS] __attribute__((aligned(64)));
    static uint8_t panels[PANELS_BYTES] __attribute__((aligned(64)));
    kernel_case c = {.seed = 5,
                     /* of bf12 without escapes */ .format = f,
                     .operand = o,
                     .k = MAX_K,
                     .halves = 2,
                     .tokens = tokens};
    if (table->down[f][o] == NULL) return;
    case_make(&c);
    size_t widest = table->width[kernel_is_scaled(f)], bytes = case_panel_bytes(&c);
    kernel_down a = {c.panel, case_tiles(&c, tokens < widest ? tokens : widest, widest == 1), out,
                     2 * KERNEL_ROWS};
    size_t count = PANELS_BYTES / bytes, calls = table == &kernel_table_scalar ? 1 : count * 4;
    for (size_t i = 0; i < count; i++) memcpy(panels + i * bytes, c.panel.stream, bytes);
    double shortest = 1, lines = (double)bytes / KERNEL_LINE;
    uint64_t fewest = UINT64_MAX;
    fpenv saved = fpenv_enter();
    for (int turn = 0; turn < TURNS; turn++) {
        double start = seconds();
        uint64_t first = ticks();
        for (size_t i = 0; i < calls; i++) {
            a.panel.stream = panels + i % count * bytes;
            table->down[f][o](&a);
        }
        uint64_t taken = ticks() - first;
        double time = (seconds() - start) / (double)calls;
        fewest = taken < fewest ? taken : fewest;
        shortest = time < shortest ? time : shortest;
    }
    fpenv_leave(saved);
    printf("%-11s %-9s %-4s  %3zu  %8.2f  %8.2f\n", table->isa, case_format_name(f),
           case_operand_name(o), tokens, (double)fewest / (double)calls / lines,
           (double)(c.k * 2 * KERNEL_ROWS * tokens) / shortest * 1e-9);
}

int kernel_bench(const char *format)
{
    static const size_t tokens[] = {1, 4, 8};
    printf("isa         weights   x  tokens ticks/line  GMAC/s\n");
    for (int f = 0; f < FORMAT_COUNT; f++) {
        if (format != NULL && strcmp(format, case_format_name((kernel_format)f)) != 0) continue;
        for (size_t i = 0; cpu_level(i) != NULL; i++)
            for (int o = 0; o < OPERAND_COUNT; o++)
                for (size_t n = 0; n < sizeof tokens / sizeof tokens[0]; n++)
                    bench_case(cpu_level(i), (kernel_format)f, (kernel_operand)o, tokens[n]);
    }
    return 0;
}

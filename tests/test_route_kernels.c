/* SPDX-License-Identifier: Apache-2.0 */
/* test_route_kernels.c - the kernels of a router of every instruction set give the bits of the
 * scalar ones and touch nothing beside what they are given. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cpu.h"
#include "expect.h"
#include "fpenv.h"
#include "kernel_case.h"
#include "numeric.h"

typedef float lanes[KERNEL_ROUTE][KERNEL_LANES];

/* NaNs are alike. */
static void expect_floats(const char *what, const char *isa, const float *want, const float *got,
                          size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (num_bits(want[i]) != num_bits(got[i]) && !(isnan(want[i]) && isnan(got[i])))
            fail_msg("%s on %s: [%zu] = %a, not %a", what, isa, i, (double)got[i], (double)want[i]);
}

/* Around 1; in one of eight rows anything. */
static void fill(float *v, size_t n, uint64_t seed, size_t row)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t r = layer_random(seed, row, i);
        v[i] = row % 8 == 3 ? num_float((uint32_t)(r >> 20)) : (float)(r >> 40) * 0x1p-23f - 1.0f;
    }
}

static void test_route(void **state)
{
    (void)state;
    enum { TOKENS = 19, MOST_K = 512 };
    static lanes want[TOKENS];
    guarded w = guarded_new(KERNEL_ROUTE * (MOST_K + 48) * sizeof(float)),
            x = guarded_new(TOKENS * (MOST_K + 48) * sizeof(float)),
            acc = guarded_new(TOKENS * sizeof(lanes));
    for (uint64_t seed = 0; seed < 400; seed++) {
        const uint64_t d = case_random(seed, 0);
        const bool at_end = d & 1;
        const size_t rows = 1 + (d >> 4) % KERNEL_ROUTE, tokens = 1 + (d >> 8) % TOKENS;
        const size_t k = 16 * ((d >> 16) % (MOST_K / 16 + 1)), gap = (d >> 24) % 48;
        kernel_route a = {.w_stride = k + gap,
                          .rows = rows,
                          .x_stride = k + (d >> 32) % 48,
                          .tokens = tokens,
                          .k = k};
        float *weights = guarded_at(&w, ((rows - 1) * a.w_stride + k) * sizeof(float), at_end);
        float *hidden = guarded_at(&x, ((tokens - 1) * a.x_stride + k) * sizeof(float), at_end);
        for (size_t r = 0; r < rows; r++) fill(weights + r * a.w_stride, k, seed, r);
        for (size_t t = 0; t < tokens; t++) fill(hidden + t * a.x_stride, k, seed, 100 + t);
        a.w = weights;
        a.x = hidden;
        for (size_t level = 0; cpu_level(level) != NULL; level++) {
            a.acc = level == 0 ? want : guarded_at(&acc, tokens * sizeof(lanes), at_end);
            for (size_t t = 0; t < tokens; t++)
                for (size_t r = 0; r < KERNEL_ROUTE; r++)
                    fill(a.acc[t][r], KERNEL_LANES, seed, 200 + t * KERNEL_ROUTE + r);
            fpenv saved = fpenv_enter();
            cpu_level(level)->route(&a);
            fpenv_leave(saved);
            expect_floats("route", cpu_level(level)->isa, want[0][0], a.acc[0][0],
                          tokens * sizeof(lanes) / sizeof(float));
        }
    }
}

/* Every code, from every place in a vector. */
static void test_widen(void **state)
{
    (void)state;
    enum { RUN = 37 };
    guarded from = guarded_new(RUN * sizeof(float)), to = guarded_new(RUN * sizeof(float));
    for (int dtype = MOE_BF16; dtype <= MOE_F32; dtype++)
        for (uint32_t first = 0; first < 65536; first += RUN) {
            const size_t n = 1 + (first * 7 + 29) % RUN, size = moe_dtype_size((moe_dtype)dtype);
            const bool at_end = first & 1;
            uint8_t *v = guarded_at(&from, n * size, at_end);
            float want[RUN];
            for (uint32_t i = 0; i < n; i++) {
                const uint16_t half = (uint16_t)(first + i);
                const uint32_t word = (uint32_t)half << 16 | (first * 40503 & 0xFFFF);
                if (size == 4)
                    memcpy(v + 4 * i, &word, 4);
                else
                    memcpy(v + 2 * i, &half, 2);
                want[i] = dtype == MOE_F32    ? num_float(word)
                          : dtype == MOE_BF16 ? num_from_bf16(half)
                                              : num_from_f16(half);
            }
            for (size_t level = 0; cpu_level(level) != NULL; level++) {
                float *out = guarded_at(&to, n * sizeof *out, at_end);
                fpenv saved = fpenv_enter();
                cpu_level(level)->widen(v, (moe_dtype)dtype, n, out);
                fpenv_leave(saved);
                expect_floats("widen", cpu_level(level)->isa, want, out, n);
            }
        }
}

/* All upper halves of floats. */
static void test_scores(void **state)
{
    (void)state;
    enum { RUN = 53 };
    for (int score = 0; score <= MOE_SCORE_SQRT_SOFTPLUS; score++)
        for (uint32_t first = 0; first < 65536; first += RUN) {
            float logit[RUN], want[RUN], got[RUN];
            for (uint32_t i = 0; i < RUN; i++)
                logit[i] = num_float((first + i) << 16 | (uint32_t)(case_random(first, i) >> 48));
            kernel_scores a = {(moe_router_score)score, logit, (float)(first % 77) - 20.5f, RUN,
                               want};
            for (size_t level = 0; cpu_level(level) != NULL; level++) {
                a.score_of = level == 0 ? want : got;
                fpenv saved = fpenv_enter();
                cpu_level(level)->scores(&a);
                fpenv_leave(saved);
                expect_floats("scores", cpu_level(level)->isa, want, a.score_of, RUN);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_route),
        cmocka_unit_test(test_widen),
        cmocka_unit_test(test_scores),
    };
    return cmocka_run_group_tests_name("router kernels", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* test_edges.c - places where two rules meet: infinite values and pad lanes, signalling NaNs and
 * traps, cancellation and contexts, odd texts and one-line errors. */
#define _GNU_SOURCE 1
#include "canon_ref.h"
#include "layer.h"

#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Infinite hidden values, with limits that make every real lane finite again: pad lanes, whose
 * weights are zeros, must not make 0 * inf of them.  Every I up to two blocks of lanes, so that
 * each has pads somewhere. */
static void test_infinite_hidden_and_pads(void **state)
{
    (void)state;
    for (int64_t I = 1; I <= 64; I++)
        for (int act = MOE_ACT_EXACT; act <= MOE_ACT_INT8; act++) {
            layer_spec spec = {.seed = (uint64_t)I,
                               .hidden = MOE_F32,
                               .weights = MOE_MXFP4_X4,
                               .T = 3,
                               .H = 512,
                               .I = I,
                               .E_L = 2,
                               .K = 2,
                               .clamp = true,
                               .activation = MOE_RELU,
                               .act_mode = (moe_act_mode)act};
            layer l;
            layer_make(&l, &spec);
            float *hidden = l.data[LAYER_HIDDEN];
            hidden[5] = (float)INFINITY;
            hidden[512 + 300] = -(float)INFINITY;
            for (size_t i = 0; moe_isa_level(i) != NULL; i++) {
                moe_context_options options = moe_context_options_init();
                moe_context *context;
                options.threads = 1;
                options.isa = moe_isa_level(i);
                assert_int_equal(moe_context_create(&options, &context), MOE_OK);
                size_t bytes;
                void *got = layer_run(context, &l, &bytes), *want = malloc(bytes);
                assert_non_null(want);
                canon_run(&l.args, want);
                assert_memory_equal(got, want, bytes);
                free(want);
                free(got);
                assert_int_equal(moe_context_destroy(context), MOE_OK);
            }
            layer_free(&l);
        }
}

/* Every optional number as a signalling NaN: refused by its name, with traps on and no flag
 * left. */
static void test_signalling_limits(void **state)
{
    (void)state;
    const layer_spec spec = {.hidden = MOE_BF16,
                             .weights = MOE_BF16,
                             .T = 1,
                             .H = 16,
                             .I = 16,
                             .E_L = 2,
                             .activation = MOE_SWIGLU};
    const uint32_t bits = 0x7F800001u;
    layer l;
    layer_make(&l, &spec);
    moe_optional_float *const numbers[] = {
        &l.args.gate_clamp_upper_limit, &l.args.gate_clamp_lower_limit,
        &l.args.up_clamp_upper_limit,   &l.args.up_clamp_lower_limit,
        &l.args.swiglu_alpha,           &l.args.swiglu_up_offset};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        moe_optional_float saved = *numbers[i];
        numbers[i]->given = 1;
        memcpy(&numbers[i]->value, &bits, sizeof bits);
        uint16_t output[16];
        feclearexcept(FE_ALL_EXCEPT);
        int traps = feenableexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW);
        moe_status status = moe_tkg(NULL, &l.args, output, sizeof output);
        int raised = fetestexcept(FE_ALL_EXCEPT);
        fedisableexcept(FE_ALL_EXCEPT);
        if (traps > 0) feenableexcept(traps);
        assert_int_equal(status, MOE_E_VALUE);
        assert_int_equal(raised, 0);
        *numbers[i] = saved;
    }
    layer_free(&l);
}

typedef struct caller {
    moe_context *context;
    const layer *l;
    pthread_barrier_t started;
} caller;

static void *call_for_ever(void *arg)
{
    caller *c = arg;
    pthread_barrier_wait(&c->started);
    for (;;) {
        free(layer_run(c->context, c->l, NULL));
        pthread_testcancel();
    }
    return NULL;
}

/* A thread that is cancelled ends between two calls: its context is idle then and still works. */
static void test_cancelled_caller(void **state)
{
    (void)state;
    const layer_spec spec = {
        .hidden = MOE_BF16, .weights = MOE_BF16, .T = 4, .H = 128, .I = 128, .E_L = 4, .K = 2};
    layer l;
    layer_make(&l, &spec);
    for (int round = 0; round < 50; round++) {
        moe_context_options options = moe_context_options_init();
        caller c = {NULL, &l, {{0}}};
        pthread_t thread;
        options.threads = 2;
        assert_int_equal(moe_context_create(&options, &c.context), MOE_OK);
        pthread_barrier_init(&c.started, NULL, 2);
        assert_int_equal(pthread_create(&thread, NULL, call_for_ever, &c), 0);
        pthread_barrier_wait(&c.started);
        for (int i = 0; i < round; i++) free(layer_run(c.context, &l, NULL));
        pthread_cancel(thread);
        pthread_join(thread, NULL);
        free(layer_run(c.context, &l, NULL));
        assert_int_equal(moe_context_destroy(c.context), MOE_OK);
        pthread_barrier_destroy(&c.started);
    }
    layer_free(&l);
}

/* Text of the caller's cannot break the promise that an error is one line. */
static void test_one_line(void **state)
{
    (void)state;
    moe_context_options options = moe_context_options_init();
    moe_context *context;
    options.isa = "two\nlines\tand\x01 more";
    assert_int_equal(moe_context_create(&options, &context), MOE_E_ISA);
    assert_null(context);
    assert_non_null(strstr(moe_last_error(), "two?lines?and? more"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_infinite_hidden_and_pads),
        cmocka_unit_test(test_signalling_limits),
        cmocka_unit_test(test_cancelled_caller),
        cmocka_unit_test(test_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

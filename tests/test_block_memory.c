/* SPDX-License-Identifier: Apache-2.0 */
/* test_block_memory.c - routers and blocks where memory runs out, and none asked for in calls like
 * those before.  Linked with -Wl,--wrap=aligned_alloc. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>

#include "block_case.h"
#include "expect.h"

/* ---- requests -------------------------------------------------------------------------------- */

/* Requests so far; number `at` fails (1 is the first), 0: none does. */
static unsigned requests, at, failed;

void *__real_aligned_alloc(size_t alignment, size_t bytes) __attribute__((weak));
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

static bool fails(void)
{
    bool now = ++requests == at;
    failed += now;
    return now;
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, bytes);
}

static size_t live;

static void *hook(size_t bytes, size_t alignment, void *user)
{
    void *memory = NULL;
    (void)user;
    if (fails() || posix_memalign(&memory, alignment, bytes) != 0) return NULL;
    memset(memory, 0xA5, bytes); /* not zeros by luck */
    live++;
    return memory;
}

static void unhook(void *memory, size_t bytes, void *user)
{
    (void)user;
    memset(memory, 0x5A, bytes);
    free(memory);
    live--;
}

static void count_from(unsigned which)
{
    requests = failed = 0;
    at = which;
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* The first two need less scratch than the third. */
static const layer_spec SPECS[] = {
    {.seed = 4,
     .hidden = MOE_BF16,
     .weights = MOE_BF16,
     .T = 9,
     .H = 40,
     .I = 24,
     .E_L = 4,
     .K = 2},
    {.seed = 9,
     .hidden = MOE_F32,
     .weights = MOE_E4M3FN,
     .T = 1,
     .H = 33,
     .I = 8,
     .E_L = 2,
     .K = 1},
    {.seed = 11,
     .hidden = MOE_F16,
     .weights = MOE_MXFP4_X4,
     .T = 20,
     .H = 512,
     .I = 70,
     .E_L = 3,
     .all_expert = true},
};

typedef struct workload {
    block_case block[COUNT(SPECS)];
    unsigned char *expected[COUNT(SPECS)], *got;
    size_t bytes[COUNT(SPECS)];
    float *logits;
} workload;

enum { MOST = 1 << 16 };

static void workload_make(workload *w)
{
    count_from(0);
    w->got = malloc(MOST);
    w->logits = malloc(MOST);
    assert_non_null(w->got);
    assert_non_null(w->logits);
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        block_case_make(&w->block[i], SPECS[i]);
        w->expected[i] = block_case_run(NULL, &w->block[i].args, &w->bytes[i]);
        assert_true(w->bytes[i] <= MOST);
    }
}

static void workload_free(workload *w)
{
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        block_case_free(&w->block[i]);
        free(w->expected[i]);
    }
    free(w->got);
    free(w->logits);
}

/* Block i: right bits, or MOE_E_NOMEM and an output as it was. */
static moe_status run_block(workload *w, size_t i, moe_context *context)
{
    memset(w->got, 0xA5, w->bytes[i]);
    moe_status s = moe_block(context, &w->block[i].args, w->got, w->bytes[i]);
    if (s == MOE_OK) {
        assert_memory_equal(w->got, w->expected[i], w->bytes[i]);
        return s;
    }
    assert_int_equal(s, MOE_E_NOMEM);
    assert_non_null(strstr(moe_last_error(), "memory"));
    for (size_t b = 0; b < w->bytes[i]; b++) assert_int_equal(w->got[b], 0xA5);
    return s;
}

/* The router of block i. */
static moe_status run_router(workload *w, size_t i, moe_context *context)
{
    moe_router_args args = w->block[i].args.router;
    args.x = w->block[i].args.experts.hidden_input;
    memset(w->logits, 0xA5, MOST);
    moe_status s = moe_router_topk(context, &args, &(moe_router_output){.logits = w->logits});
    if (s == MOE_OK) return s;
    assert_int_equal(s, MOE_E_NOMEM);
    for (size_t b = 0; b < MOST; b++) assert_int_equal(((unsigned char *)w->logits)[b], 0xA5);
    return s;
}

static moe_context *hooked(void)
{
    moe_context_options options = moe_context_options_init();
    moe_context *context;
    options.threads = 2;
    options.allocate = hook;
    options.release = unhook;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    return context;
}

static void test_hooks_fail(void **state)
{
    (void)state;
    workload w;
    workload_make(&w);
    for (unsigned n = 1, any = 1; any; n++) {
        count_from(0);
        moe_context *context = hooked();
        count_from(n);
        for (size_t i = 0; i < COUNT(SPECS); i++) {
            if (run_router(&w, i, context) != MOE_OK)
                assert_int_equal(run_router(&w, i, context), MOE_OK);
            if (run_block(&w, i, context) != MOE_OK)
                assert_int_equal(run_block(&w, i, context), MOE_OK);
        }
        any = failed;
        assert_true(any || n > 3);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
        assert_int_equal(live, 0);
    }
    workload_free(&w);
}

static void test_no_context(void **state)
{
    (void)state;
    workload w;
    workload_make(&w);
    for (size_t i = 0; i < COUNT(SPECS); i++)
        for (unsigned n = 1; n <= 2; n++) {
            count_from(n);
            assert_int_equal(run_router(&w, i, NULL), n == 1 ? MOE_E_NOMEM : MOE_OK);
            assert_int_equal(requests, 1);
            count_from(n);
            assert_int_equal(run_block(&w, i, NULL), n == 1 ? MOE_E_NOMEM : MOE_OK);
            assert_int_equal(requests, 1);
        }
    workload_free(&w);
}

/* A call like one before asks for nothing, whatever ran in between. */
static void test_steady_state(void **state)
{
    (void)state;
    workload w;
    workload_make(&w);
    moe_context *context = hooked();
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        assert_int_equal(run_router(&w, i, context), MOE_OK);
        assert_int_equal(run_block(&w, i, context), MOE_OK);
    }
    count_from(0);
    for (size_t i = 0; i < 3 * COUNT(SPECS); i++) {
        assert_int_equal(run_block(&w, i % COUNT(SPECS), context), MOE_OK);
        assert_int_equal(run_router(&w, i % COUNT(SPECS), context), MOE_OK);
    }
    assert_int_equal(requests, 0);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
    assert_int_equal(live, 0);
    workload_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hooks_fail),
        cmocka_unit_test(test_no_context),
        cmocka_unit_test(test_steady_state),
    };
    return cmocka_run_group_tests_name("block memory", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* test_packed.c - equal bits: packed experts give what the scalar kernels give on one thread for the
 * operator's own tensors, on every ISA level and number of threads, in any company of tokens, packed
 * in either way, long after their sources and their context are gone. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "experts.h"
#include "random_layer.h"
#include "tokens.h"

/* ---- contexts -------------------------------------------------------------------------------- */

static const int32_t THREADS[] = {1, 2, 3, 5, 8};
enum { LEVELS = 8 };
static moe_context *contexts[LEVELS * COUNT(THREADS)]; /* [level][threads] */
static size_t context_count, levels;

static moe_context *start_context(const char *isa, int32_t threads)
{
    moe_context *context;
    moe_context_options options = moe_context_options_init();
    options.threads = threads;
    options.isa = isa;
    if (moe_context_create(&options, &context) != MOE_OK) abort();
    return context;
}

static int start_contexts(void **state)
{
    (void)state;
    for (; moe_isa_level(levels) != NULL && levels < LEVELS; levels++)
        for (size_t n = 0; n < COUNT(THREADS); n++)
            contexts[context_count++] = start_context(moe_isa_level(levels), THREADS[n]);
    return 0;
}

static int end_contexts(void **state)
{
    (void)state;
    for (size_t i = 0; i < context_count; i++)
        if (moe_context_destroy(contexts[i]) != MOE_OK) return -1;
    return 0;
}

static moe_context *any_context(uint64_t draw)
{
    return contexts[draw % context_count];
}

/* The reference: the operator's tensors, scalar kernels, one thread. */
static void *run_scalar(const layer *l, size_t *bytes)
{
    return layer_run(contexts[0], l, bytes);
}

static void destroy(moe_experts *experts)
{
    assert_int_equal(moe_experts_destroy(experts), MOE_OK);
}

/* Without loss where that can be. */
static moe_packing packing_for(const layer_spec *s)
{
    return s->weights == MOE_BF16 && s->down == MOE_BF16 ? MOE_PACK_LOSSLESS : MOE_PACK_PLAIN;
}

/* Every level, each with another number of threads. */
static void expect_all_levels(const layer *l, const void *expected, size_t bytes,
                              const moe_experts *experts, const char *what)
{
    for (size_t level = 0; level < levels; level++) {
        size_t threads = (size_t)(l->spec.seed >> 3) % COUNT(THREADS);
        random_expect_packed(expected, contexts[level * COUNT(THREADS) + (threads + level) % 5], l,
                             experts, bytes, what);
    }
}

/* ---- the operator's tensors ------------------------------------------------------------------ */

static void packed_is_raw(layer_spec s)
{
    layer l;
    size_t bytes;
    layer_make(&l, &s);
    void *expected = run_scalar(&l, &bytes);
    moe_experts *experts = layer_pack(any_context(s.seed), &l, MOE_PACK_PLAIN);
    expect_all_levels(&l, expected, bytes, experts, "every level");
    destroy(experts);
    free(expected);
    layer_free(&l);
}

/* Tokens one after another, in pairs, repeated and shuffled, each part on some context, all of one
 * handle. */
static void in_any_company(layer_spec s)
{
    layer l, part;
    size_t order[24], bytes, T = (size_t)s.T;
    layer_make(&l, &s);
    void *output = run_scalar(&l, NULL);
    moe_experts *experts = layer_pack(any_context(s.seed >> 7), &l, MOE_PACK_PLAIN);
    for (size_t turn = 0; turn < 5; turn++) {
        uint64_t draw = layer_random(s.seed, turn, 7);
        size_t n = turn == 0 ? 1 : turn == 1 ? T : 1 + draw % COUNT(order);
        for (size_t i = 0; i < n; i++)
            order[i] = turn == 1 ? T - 1 - i : (size_t)layer_random(draw, i, 0) % T;
        tokens_gather(&part, &l, order, n);
        void *expected = tokens_gather_output(&l, output, order, n),
             *got = layer_run_packed(any_context(draw >> 9), &part, experts, &bytes);
        random_expect_bits(expected, got, bytes, "packed, some of the tokens");
        free(expected);
        layer_free(&part);
    }
    destroy(experts);
    free(output);
    layer_free(&l);
}

/* Biases and row scales: all combinations of those that there are. */
static void scales_and_biases(layer_spec s)
{
    if (s.seed % 4 != 0) return;
    bool mx = s.weights == MOE_MXFP4_X4 || s.weights == MOE_MXFP8_X4;
    for (unsigned n = 0; n < (mx ? 4 : 12); n++) {
        s.gate_up_bias = n & 1;
        s.down_bias = n >> 1 & 1;
        s.scales = (layer_scales)(n / 4);
        packed_is_raw(s);
    }
}

/* The sources are overwritten and freed and the context destroyed before the call. */
static void outlives_its_sources(layer_spec s)
{
    static const layer_tensor sources[] = {LAYER_GATE_UP,       LAYER_DOWN,
                                           LAYER_GATE_UP_SCALE, LAYER_DOWN_SCALE,
                                           LAYER_GATE_UP_BIAS,  LAYER_DOWN_BIAS};
    if (s.seed % 2) return;
    layer l;
    size_t bytes;
    layer_make(&l, &s);
    void *expected = run_scalar(&l, &bytes);
    moe_context *context = start_context(moe_isa_level(s.seed / 2 % levels), 2);
    moe_experts *experts = layer_pack(context, &l, packing_for(&s));
    free(layer_run_packed(context, &l, experts, NULL));
    assert_int_equal(moe_context_destroy(context), MOE_OK);
    for (size_t i = 0; i < COUNT(sources); i++) {
        if (l.bytes[sources[i]] > 0) memset(l.data[sources[i]], 0xFF, l.bytes[sources[i]]);
        layer_drop(&l, sources[i]);
    }
    random_expect_packed(expected, NULL, &l, experts, bytes, "sources and context gone");
    expect_all_levels(&l, expected, bytes, experts, "sources gone");
    destroy(experts);
    free(expected);
    layer_free(&l);
}

/* ---- without loss ---------------------------------------------------------------------------- */

/* How the elements of bf16 weights are drawn. */
typedef enum weights { GAUSSIAN, ANY_BITS, SPECIAL, FEW_ESCAPES, CONSTANT, WEIGHTS } weights;

static uint16_t drawn(weights kind, uint64_t r)
{
    uint16_t sign_mantissa = (uint16_t)(r & 0x807F);
    unsigned low = (unsigned)__builtin_ctzll(r >> 20 | 1ull << 40);
    uint16_t normal = (uint16_t)(sign_mantissa | (124 - low) << 7);
    switch (kind) {
    case ANY_BITS: return (uint16_t)r;
    case SPECIAL: /* NaNs and infinities are rare, so that sums without them are left */
        if ((r >> 40) % 4096 == 0) return sign_mantissa | 0x7F80;
        if ((r >> 40) % 4096 == 1) return (uint16_t)((r & 0x8000) | 0x7F80);
        if ((r >> 52) % 32 == 0) return sign_mantissa; /* a subnormal */
        if ((r >> 52) % 32 == 1) return (uint16_t)(r & 0x8000);
        return normal;
    case FEW_ESCAPES: /* sixteen exponents, the last one rare */
        return (uint16_t)(sign_mantissa |
                          ((r >> 40) % 600 == 0 ? 126 : 110 + (unsigned)(r >> 32) % 15) << 7);
    case CONSTANT: return 0xBF81;
    default: return normal;
    }
}

static void draw_weights(layer *l, weights kind)
{
    static const layer_tensor both[] = {LAYER_GATE_UP, LAYER_DOWN};
    for (size_t i = 0; i < 2; i++)
        for (size_t n = 0; n < l->bytes[both[i]] / 2; n++)
            ((uint16_t *)l->data[both[i]])[n] = drawn(kind, layer_random(l->spec.seed, i + 9, n));
}

/* Counts the panels of each kind: [0] as they are, [1] coded, [2] coded with escapes. */
static void count_panels(const moe_experts *x, size_t *count)
{
    size_t panels = x->layout.gate_up_panels + x->layout.down_panels;
    for (size_t n = 0; n < x->E_L * panels; n++) {
        bool coded = x->panel_format[n] == FORMAT_BF12;
        count[coded]++;
        if (!coded) continue;
        const kernel_bf12_head *head = (const void *)(x->base + x->panel_at[n]);
        size_t k = n % panels < x->layout.gate_up_panels ? x->layout.hidden_k : x->layout.mid_k;
        const uint8_t *counts = (const uint8_t *)(head + 1);
        for (size_t i = 0; i < (k + KERNEL_BLOCK - 1) / KERNEL_BLOCK; i++)
            if (counts[i] > 0) {
                count[2]++;
                break;
            }
    }
}

static size_t panels_seen[WEIGHTS][3];

static void expect_lossless(const layer *l, const char *what, size_t *panels)
{
    size_t bytes;
    void *expected = run_scalar(l, &bytes);
    moe_experts *plain = layer_pack(any_context(l->spec.seed >> 5), l, MOE_PACK_PLAIN),
                *coded = layer_pack(any_context(l->spec.seed >> 9), l, MOE_PACK_LOSSLESS);
    random_expect_packed(expected, any_context(l->spec.seed >> 13), l, plain, bytes, what);
    expect_all_levels(l, expected, bytes, coded, what);
    count_panels(coded, panels);
    destroy(coded);
    destroy(plain);
    free(expected);
}

/* All kinds of weights in layers that are random otherwise, the first as they were drawn. */
static void lossless(layer_spec s)
{
    static const char *const names[] = {"gaussian", "any bits", "special", "few escapes",
                                        "constant"};
    if (s.weights != MOE_BF16 || s.down != MOE_BF16) return;
    size_t ignored[3] = {0};
    layer l;
    layer_make(&l, &s);
    expect_lossless(&l, "lossless", ignored);
    for (int kind = 0; kind < WEIGHTS; kind++) {
        draw_weights(&l, (weights)kind);
        expect_lossless(&l, names[kind], panels_seen[kind]);
    }
    layer_free(&l);
}

/* The layers of `lossless` had what they were to have, MOE_QUICK's few as well. */
static void test_lossless_panels(void **state)
{
    (void)state;
    assert_true(panels_seen[GAUSSIAN][2] > 0);
    assert_true(panels_seen[FEW_ESCAPES][2] > 0);
    assert_true(panels_seen[SPECIAL][2] > 0);
    assert_true(panels_seen[CONSTANT][1] > 0 && panels_seen[CONSTANT][2] == 0);
    assert_true(panels_seen[ANY_BITS][0] > 0);
}

/* ---- one handle, many callers ---------------------------------------------------------------- */

enum { CALLERS = 6 };

typedef struct caller {
    moe_context *context;
    const layer *l;
    const moe_experts *experts;
    const void *expected;
    size_t bytes, calls, wrong;
} caller;

static void *call_often(void *arg)
{
    caller *c = arg;
    for (size_t i = 0; i < c->calls; i++) {
        void *got = layer_run_packed(c->context, c->l, c->experts, NULL);
        if (memcmp(got, c->expected, c->bytes) != 0) c->wrong++;
        free(got);
    }
    return NULL;
}

/* Contexts of different levels, shared by some, and no context at all. */
static void many_callers(layer_spec s)
{
    if (s.seed % 3 != 0) return;
    caller callers[CALLERS];
    pthread_t threads[CALLERS];
    layer l;
    size_t bytes;
    layer_make(&l, &s);
    void *expected = run_scalar(&l, &bytes);
    moe_experts *experts = layer_pack(any_context(s.seed), &l, packing_for(&s));
    for (size_t i = 0; i < CALLERS; i++) {
        moe_context *context = i == 0 ? NULL : any_context((s.seed >> 6) + i / 2 * 7);
        callers[i] = (caller){context, &l, experts, expected, bytes, 8, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, call_often, &callers[i]), 0);
    }
    for (size_t i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(callers[i].wrong, 0);
    }
    destroy(experts);
    free(expected);
    layer_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RANDOM_LAYER_TEST(packed_is_raw),     RANDOM_LAYER_TEST(in_any_company),
        RANDOM_LAYER_TEST(scales_and_biases), RANDOM_LAYER_TEST(outlives_its_sources),
        RANDOM_LAYER_TEST(lossless),          cmocka_unit_test(test_lossless_panels),
        RANDOM_LAYER_TEST(many_callers),
    };
    return cmocka_run_group_tests_name("packed", tests, start_contexts, end_contexts);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* test_bits.c - equal bits: a stranger can compute them from the document, and they depend on
 * nothing that the promise of docs/numerics.md leaves out.  Every property is tried on random
 * layers of every kind (random_layer.h). */
#include <fenv.h>
#include <math.h>
#include <stdlib.h>

#include "../tools/paths.h"
#include "canon_ref.h"
#include "numeric.h"
#include "random_layer.h"
#include "tokens.h"

static bool is_mx(layer_spec s)
{
    return s.weights == MOE_MXFP4_X4 || s.weights == MOE_MXFP8_X4;
}

/* ---- the document ---------------------------------------------------------------------------- */

/* Rounding to an output type maps every NaN to the canonical one and all else that the type has
 * to itself. */
static bool is_canonical(moe_dtype dtype, const void *output, size_t n)
{
    if (dtype == MOE_F32) {
        float v = ((const float *)output)[n];
        return num_bits(num_to_f32(v)) == num_bits(v);
    }
    uint16_t v = ((const uint16_t *)output)[n];
    return v == (dtype == MOE_BF16 ? num_to_bf16(num_from_bf16(v)) : num_to_f16(num_from_f16(v)));
}

static void expect_document(const layer *l, const char *what)
{
    size_t bytes;
    moe_tensor shape;
    assert_int_equal(moe_tkg_output(&l->args, &shape, &bytes), MOE_OK);
    void *reference = malloc(bytes + 1);
    assert_non_null(reference);
    canon_run(&l->args, reference);
    random_expect_run(reference, NULL, l, bytes, what);
    free(reference);
}

static void equals_the_document(layer_spec s)
{
    layer l;
    layer_make(&l, &s);
    expect_document(&l, "not what docs/numerics.md says");
    layer_free(&l);
}

static void every_nan_is_canonical(layer_spec s)
{
    layer l;
    size_t bytes;
    moe_tensor shape;
    s.wild |= LAYER_WILD_SPECIAL | LAYER_WILD_ROUTING;
    layer_make(&l, &s);
    void *output = layer_run(NULL, &l, NULL);
    assert_int_equal(moe_tkg_output(&l.args, &shape, &bytes), MOE_OK);
    for (size_t n = 0; n < bytes / moe_dtype_size(shape.dtype); n++)
        assert_true(is_canonical(shape.dtype, output, n));
    free(output);
    layer_free(&l);
}

/* Clears the exponent of every bf16 or f32 of the tensor: only zeros and subnormals are left. */
static void make_subnormal(layer *l, layer_tensor which)
{
    moe_dtype dtype = l->tensor[which].dtype;
    size_t count = l->bytes[which] / moe_dtype_size(dtype);
    for (size_t n = 0; n < count; n++) {
        if (dtype == MOE_BF16) ((uint16_t *)l->data[which])[n] &= 0x807F;
        if (dtype == MOE_F32) ((uint32_t *)l->data[which])[n] &= 0x807FFFFF;
    }
}

/* Subnormal hidden values or weights, or products with an affinity that are subnormal, where
 * nothing else hides what comes of them: gate is about 1, up is tiny, and the output is f32. */
static void subnormals_are_zero(layer_spec s)
{
    s.hidden = s.seed % 2 ? MOE_F32 : MOE_BF16;
    s.place = LAYER_HBM;
    s.scaling = MOE_POST_SCALE;
    s.affinity_type = s.output = MOE_F32;
    s.activation = MOE_RELU;
    s.wild = LAYER_WILD_WIDE;
    s.no_zero_affinity = s.gate_up_bias = true;
    s.eager = s.mask = s.down_bias = s.clamp = s.output_in_sbuf = false;
    layer l;
    layer_make(&l, &s);
    float *bias = l.data[LAYER_GATE_UP_BIAS], *affinity = l.data[LAYER_AFFINITIES];
    size_t columns = (size_t)(is_mx(s) ? (s.I + 511) / 512 * 4 : s.I);
    for (size_t n = 0; n < l.bytes[LAYER_GATE_UP_BIAS] / sizeof *bias; n++)
        bias[n] = n / columns % 2 == 0 ? 1.0f : 0.0f;
    switch (s.seed / 2 % 3) {
    case 0: make_subnormal(&l, LAYER_HIDDEN); break;
    case 1: make_subnormal(&l, LAYER_GATE_UP); break;
    default:
        for (size_t n = 0; n < l.bytes[LAYER_AFFINITIES] / sizeof *affinity; n++)
            affinity[n] = (1 + fabsf(affinity[n])) * 0x1p-126f;
    }
    expect_document(&l, "subnormals");
    layer_free(&l);
}

/* More tokens than the library takes at a time. */
static void many_tokens(layer_spec s)
{
    if (s.seed % 6 != 0) return;
    s.T = s.all_expert ? 129 + (int64_t)(s.seed % 150) : 128;
    s.K = 1 + (int64_t)(s.seed % 4);
    s.I = 1 + (int64_t)(s.seed % 20);
    if (!is_mx(s)) s.H = 128;
    equals_the_document(s);
}

/* A narrower output is the f32 output, rounded once. */
static void output_types_round_f32(layer_spec s)
{
    layer l;
    size_t bytes;
    s.output = MOE_F32;
    layer_make(&l, &s);
    float *f32 = layer_run(NULL, &l, &bytes);
    size_t count = bytes / sizeof *f32;
    for (int i = 0; i < 2; i++) {
        uint16_t *rounded = malloc(count * sizeof *rounded);
        assert_non_null(rounded);
        for (size_t n = 0; n < count; n++)
            rounded[n] = i ? num_to_f16(f32[n]) : num_to_bf16(f32[n]);
        l.args.output_dtype = i ? MOE_F16 : MOE_BF16;
        random_expect_run(rounded, NULL, &l, count * sizeof *rounded, "output type");
        free(rounded);
    }
    free(f32);
    layer_free(&l);
}

/* ---- pad lanes of MX ------------------------------------------------------------------------- */

/* Gives a tensor [E_L, rows, ...] more rows, all bytes of them zero. */
static void add_rows(layer *l, layer_tensor which, size_t rows)
{
    size_t E_L = (size_t)l->spec.E_L, old = l->bytes[which] / E_L;
    if (old == 0) return;
    size_t wide = old / (size_t)l->tensor[which].shape[1] * rows;
    char *data = calloc(E_L, wide);
    assert_non_null(data);
    for (size_t e = 0; e < E_L; e++) memcpy(data + e * wide, (char *)l->data[which] + e * old, old);
    free(l->data[which]);
    l->tensor[which].data = l->data[which] = data;
    l->tensor[which].shape[1] = (int64_t)rows;
    l->bytes[which] = E_L * wide;
}

/* Sets the bytes of the tensor in the last tile, partitions (down_scale: eighths of them) from
 * first on, of every expert. */
static void fill_last_tile(layer *l, layer_tensor which, size_t first, int byte)
{
    if (l->bytes[which] == 0) return;
    const moe_tensor *t = &l->tensor[which];
    size_t rows = (size_t)t->shape[1], nI = (size_t)l->tensor[LAYER_DOWN].shape[2];
    size_t gates = which == LAYER_GATE_UP_BIAS ? 2 : 1;
    size_t bytes = (size_t)t->shape[t->rank - 1] * moe_dtype_size(t->dtype);
    for (size_t row = 0; row < (size_t)l->spec.E_L * rows; row++)
        for (size_t g = 0; g < gates && row % rows >= first; g++)
            memset((char *)l->data[which] + ((row * gates + g) * nI + nI - 1) * bytes, byte, bytes);
}

/* Blocks past the last tile's width, in tensors with more partitions than they need: with zero
 * codes they do not exist, whatever their scales and biases; one code that is not zero brings
 * them back up to its block. */
static void pad_blocks(layer_spec s)
{
    if (!is_mx(s)) return;
    s.I = s.seed % 3 ? 1 + (int64_t)(s.seed % 250) : 513 + (int64_t)(s.seed % 90);
    s.T = s.K = 1;
    s.wild &= ~(unsigned)LAYER_WILD_ZERO_RUNS;
    layer l;
    size_t bytes, w = (size_t)((s.I - 1) % 512 / 8 + 1) * 2, first = (w + 7) / 8 * 8;
    layer_make(&l, &s);
    add_rows(&l, LAYER_DOWN, 128);
    add_rows(&l, LAYER_DOWN_SCALE, 16);
    add_rows(&l, LAYER_GATE_UP_BIAS, 128);
    fill_last_tile(&l, LAYER_DOWN, first, s.down == MOE_MXFP4_X4 ? 0x88 : 0x80); /* -0 */
    void *output = layer_run(NULL, &l, &bytes);
    expect_document(&l, "pad blocks of zeros");
    fill_last_tile(&l, LAYER_DOWN_SCALE, first / 8, 0xFF);
    fill_last_tile(&l, LAYER_GATE_UP_BIAS, first, 0xFF);
    random_expect_run(output, NULL, &l, bytes, "a NaN in a pad block");
    fill_last_tile(&l, LAYER_DOWN_SCALE, first / 8, 120);
    fill_last_tile(&l, LAYER_GATE_UP_BIAS, first, 0x3C);
    size_t some = (first + 128) / 2; /* from here to 120 */
    fill_last_tile(&l, LAYER_DOWN, some, 0x35);
    fill_last_tile(&l, LAYER_DOWN, 120, 0);
    expect_document(&l, "pad blocks");
    free(output);
    layer_free(&l);
}

/* ---- threads, tokens, memory, environment ---------------------------------------------------- */

static const int32_t THREADS[] = {1, 2, 3, 5, 8};
enum { MAX_CONTEXTS = COUNT(THREADS) + 8 };
static moe_context *contexts
    [MAX_CONTEXTS]; /* of those numbers of threads; then of two threads and each ISA level */
static size_t context_count;

static void any_threads_and_isa(layer_spec s)
{
    layer l;
    size_t bytes;
    layer_make(&l, &s);
    void *output = layer_run(NULL, &l, &bytes);
    moe_experts *experts = layer_pack(contexts[s.seed % context_count], &l, MOE_PACK_PLAIN);
    for (size_t i = 0; i < context_count; i++) {
        const char *isa = moe_context_isa(contexts[i]);
        random_expect_bits(output, layer_run(contexts[i], &l, NULL), bytes, isa);
        random_expect_packed(output, contexts[i], &l, experts, bytes, isa);
    }
    assert_int_equal(moe_experts_destroy(experts), MOE_OK);
    free(output);
    layer_free(&l);
}

static void expect_tokens(const layer *l, const void *output, const size_t *order, size_t n,
                          const char *what)
{
    layer part;
    size_t bytes;
    tokens_gather(&part, l, order, n);
    void *expected = tokens_gather_output(l, output, order, n);
    free(layer_run(NULL, &part, &bytes));
    random_expect_run(expected, contexts[1], &part, bytes, what);
    free(expected);
    layer_free(&part);
}

/* In other company and in another order a token's row is the same: any cut into two calls, and
 * shuffles with repeats. */
static void any_batch_of_tokens(layer_spec s)
{
    size_t order[16], T = (size_t)s.T, cut = s.seed % (T + 1);
    layer l;
    layer_make(&l, &s);
    void *output = layer_run(NULL, &l, NULL);
    for (size_t t = 0; t < T; t++) order[t] = t;
    expect_tokens(&l, output, order, cut, "first tokens alone");
    expect_tokens(&l, output, order + cut, T - cut, "last tokens alone");
    for (size_t n = 1; n <= 16; n += 15) {
        for (size_t i = 0; i < n; i++) order[i] = layer_random(s.seed, n, i) % T;
        expect_tokens(&l, output, order, n, "shuffled tokens");
    }
    free(output);
    layer_free(&l);
}

static void *take_at_offset(size_t bytes, size_t element, void *user)
{
    size_t offset = *(const size_t *)user / element * element;
    char *p = aligned_alloc(64, (bytes + offset + 63) / 64 * 64);
    return p ? p + offset : NULL;
}

static void give_at_offset(void *memory, size_t bytes, void *user)
{
    (void)bytes;
    (void)user;
    free((void *)((uintptr_t)memory / 64 * 64));
}

/* All tensors and the output at one of the 64 offsets from a cache line (as far as their elements
 * allow). */
static void any_alignment(layer_spec s)
{
    layer l;
    size_t bytes;
    moe_tensor shape;
    layer_make(&l, &s);
    void *output = layer_run(NULL, &l, &bytes);
    assert_int_equal(moe_tkg_output(&l.args, &shape, &bytes), MOE_OK);
    layer_free(&l);
    for (size_t offset = s.seed % 16; offset < 64; offset += 16) {
        layer_make_in(&l, &s, &(layer_memory){take_at_offset, give_at_offset, &offset});
        char *got = take_at_offset(bytes, moe_dtype_size(shape.dtype), &offset),
             *copy = malloc(bytes + 1);
        assert_non_null(copy);
        assert_int_equal(moe_tkg(contexts[1], &l.args, got, bytes), MOE_OK);
        memcpy(copy, got, bytes);
        random_expect_bits(output, copy, bytes, "alignment");
        give_at_offset(got, bytes, NULL);
        moe_experts *experts = layer_pack(NULL, &l, MOE_PACK_PLAIN);
        random_expect_packed(output, contexts[1], &l, experts, bytes, "alignment");
        assert_int_equal(moe_experts_destroy(experts), MOE_OK);
        layer_free(&l);
    }
    free(output);
}

static void in_place(layer_spec s)
{
    if (s.place == LAYER_PREQUANT) return;
    s.output = s.hidden;
    s.output_in_sbuf = s.place == LAYER_SBUF;
    layer l;
    size_t bytes;
    layer_make(&l, &s);
    void *output = layer_run(NULL, &l, &bytes);
    assert_int_equal(bytes, l.bytes[LAYER_HIDDEN]);
    assert_int_equal(moe_tkg(contexts[1], &l.args, l.data[LAYER_HIDDEN], bytes), MOE_OK);
    void *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, l.data[LAYER_HIDDEN], bytes);
    random_expect_bits(output, copy, bytes, "in place");
    layer_fill(&l, LAYER_HIDDEN);
    moe_experts *experts = layer_pack(NULL, &l, MOE_PACK_PLAIN);
    moe_tkg_args args = path_with_experts(&l.args, experts);
    assert_int_equal(moe_tkg(contexts[1], &args, l.data[LAYER_HIDDEN], bytes), MOE_OK);
    assert_memory_equal(output, l.data[LAYER_HIDDEN], bytes);
    assert_int_equal(moe_experts_destroy(experts), MOE_OK);
    free(output);
    layer_free(&l);
}

/* The caller's environment i of 64: rounding mode, flushing, formats or traps, sticky flags. */
#if defined(__x86_64__)
static unsigned long environment(unsigned i)
{
    enum { FTZ = 0x8000, DAZ = 0x40, MASKS = 0x1F80, FLAGS = 0x3F, ROUNDING = 13 };
    return (i & 3) << ROUNDING | (i & 4 ? FTZ : 0u) | (i & 8 ? DAZ : 0u) | (i & 16 ? 0u : MASKS) |
           (i & 32 ? FLAGS : 0u);
}

static unsigned long get_environment(void)
{
    return __builtin_ia32_stmxcsr();
}

static void set_environment(unsigned long e)
{
    __builtin_ia32_ldmxcsr((unsigned)e);
}
#else /* AArch64; its sticky flags are in another register */
static unsigned long environment(unsigned i)
{
    enum { FZ = 1 << 24, DEFAULT_NAN = 1 << 25, ALTERNATIVE_F16 = 1 << 26, ROUNDING = 22 };
    return (i & 3) << ROUNDING | (i & 4 ? FZ : 0u) | (i & 8 ? DEFAULT_NAN : 0u) |
           (i & 16 ? ALTERNATIVE_F16 : 0u);
}

static unsigned long get_environment(void)
{
    unsigned long e;
    __asm__ volatile("mrs %0, fpcr" : "=r"(e));
    return e;
}

static void set_environment(unsigned long e)
{
    __asm__ volatile("msr fpcr, %0" ::"r"(e));
}
#endif

/* The bits are the same and the caller finds all of it again. */
static void any_environment(layer_spec s)
{
    layer l;
    size_t bytes;
    layer_make(&l, &s);
    void *output = layer_run(NULL, &l, &bytes);
    for (unsigned i = (unsigned)s.seed % 8; i < 64; i += 8) {
        unsigned long before = get_environment(), after;
        moe_context *context = i % 3 ? contexts[1] : NULL;
        set_environment(environment(i));
        void *got = layer_run(context, &l, NULL);
        moe_experts *experts = layer_pack(context, &l, MOE_PACK_PLAIN);
        void *packed = layer_run_packed(context, &l, experts, NULL);
        after = get_environment();
        set_environment(before);
        assert_int_equal(after, environment(i));
        random_expect_bits(output, got, bytes, "floating-point environment");
        random_expect_bits(output, packed, bytes, "floating-point environment, packed");
        assert_int_equal(moe_experts_destroy(experts), MOE_OK);
    }
    free(output);
    layer_free(&l);
}

/* ---- what one token or expert cannot do to others -------------------------------------------- */

static void tokens_are_isolated(layer_spec s)
{
    size_t T = (size_t)s.T, spoilt = s.seed % T, others[16], n = 0;
    layer l;
    layer_make(&l, &s);
    for (size_t t = 0; t < T; t++)
        if (t != spoilt) others[n++] = t;
    void *output = layer_run(NULL, &l, NULL), *before = tokens_gather_output(&l, output, others, n);
    tokens_spoil(&l, LAYER_HIDDEN, spoilt, 0xFF);
    tokens_spoil(&l, LAYER_HIDDEN_SCALE, spoilt, 0xFF);
    tokens_spoil(&l, LAYER_AFFINITIES, spoilt, 0xFF);
    tokens_spoil(&l, LAYER_EAGER, spoilt, 0xFF);
    void *poisoned = layer_run(contexts[1], &l, NULL);
    void *after = tokens_gather_output(&l, poisoned, others, n);
    moe_tensor shape;
    size_t bytes;
    assert_int_equal(moe_tkg_output(&l.args, &shape, &bytes), MOE_OK);
    random_expect_bits(before, after, bytes / T * n, "a NaN in another token");
    free(poisoned);
    free(before);
    free(output);
    layer_free(&l);
}

/* An affinity becomes +0, -0 or (not in f16, where it is a number like others) a subnormal. */
static void set_no_affinity(layer *l, layer_tensor which, size_t n)
{
    size_t size = moe_dtype_size(l->tensor[which].dtype);
    uint32_t bits[] = {0, 1u << (8 * size - 1), l->tensor[which].dtype == MOE_F16 ? 0 : 1};
    memcpy((char *)l->data[which] + n * size, &bits[n % 3], size);
}

/* Takes all work from the last expert: by affinities, or by the index (selective, or masked). */
static void retire_last_expert(layer *l)
{
    const layer_spec *s = &l->spec;
    size_t T = (size_t)s->T, K = (size_t)s->K, E = (size_t)s->E;
    int64_t last = s->all_expert ? (int64_t)(s->rank + 1) * s->E_L - 1 : s->E_L - 1;
    bool by_index = s->scaling == MOE_NO_SCALE || s->mask || s->seed % 2;
    for (size_t n = 0; n < T * K && l->bytes[LAYER_INDEX]; n++) {
        if (tokens_index(l, n) != last) continue;
        if (by_index)
            tokens_set_index(l, n, last - 1);
        else if (s->eager)
            set_no_affinity(l, LAYER_EAGER, n);
    }
    if (by_index && (!s->all_expert || s->mask)) return;
    for (size_t t = 0; t < T && l->bytes[LAYER_AFFINITIES]; t++)
        set_no_affinity(l, LAYER_AFFINITIES, t * E + (size_t)last);
}

static void idle_experts_are_not_read(layer_spec s)
{
    if (s.all_expert && s.scaling == MOE_NO_SCALE) return;
    if (s.E_L < 2) s.E_L = s.E = 2;
    if (s.E < s.E_L) s.E = s.E_L;
    if (s.all_expert) s.rank = (unsigned)(s.E / s.E_L) - 1;
    layer l;
    size_t bytes;
    layer_make(&l, &s);
    retire_last_expert(&l);
    void *output = layer_run(NULL, &l, &bytes);
    tokens_spoil_expert(&l, (size_t)s.E_L - 1, 0xFF);
    random_expect_run(output, contexts[1], &l, bytes, "a NaN in an idle expert");
    free(output);
    layer_free(&l);
}

static bool start_context(int32_t threads, const char *isa)
{
    moe_context_options options = moe_context_options_init();
    options.threads = threads;
    options.isa = isa;
    return context_count < MAX_CONTEXTS &&
           moe_context_create(&options, &contexts[context_count++]) == MOE_OK;
}

/* In an environment that the contexts' threads must not take over. */
static int start_contexts(void **state)
{
    (void)state;
    bool ok = true;
    int rounding = fegetround();
    fesetround(FE_UPWARD);
    for (size_t i = 0; i < COUNT(THREADS); i++) ok = start_context(THREADS[i], NULL) && ok;
    for (size_t i = 0; moe_isa_level(i) != NULL; i++) ok = start_context(2, moe_isa_level(i)) && ok;
    fesetround(rounding);
    return ok ? 0 : -1;
}

static int end_contexts(void **state)
{
    (void)state;
    for (size_t i = 0; i < context_count; i++)
        if (moe_context_destroy(contexts[i]) != MOE_OK) return -1;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RANDOM_LAYER_TEST(equals_the_document),
        RANDOM_LAYER_TEST(subnormals_are_zero),
        RANDOM_LAYER_TEST(many_tokens),
        RANDOM_LAYER_TEST(pad_blocks),
        RANDOM_LAYER_TEST(every_nan_is_canonical),
        RANDOM_LAYER_TEST(output_types_round_f32),
        RANDOM_LAYER_TEST(any_threads_and_isa),
        RANDOM_LAYER_TEST(any_batch_of_tokens),
        RANDOM_LAYER_TEST(any_alignment),
        RANDOM_LAYER_TEST(in_place),
        RANDOM_LAYER_TEST(any_environment),
        RANDOM_LAYER_TEST(tokens_are_isolated),
        RANDOM_LAYER_TEST(idle_experts_are_not_read),
    };
    return cmocka_run_group_tests_name("bits", tests, start_contexts, end_contexts);
}

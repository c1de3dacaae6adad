/* SPDX-License-Identifier: Apache-2.0 */
/* test_experts_fetch.c - experts that are fetched slice by slice: the same panels as from memory,
 * what the callback is asked for, and what becomes of its errors. */
#include "expect.h"

#include "experts.h"
#include "source.h"

#include <stdlib.h>
#include <string.h>

static const source_spec BASE[] = {
    {.gate_up = MOE_BF16, .down = MOE_F32, .E_L = 5, .H = 40, .I = 24, .scale = MOE_F32},
    {.gate_up = MOE_F16,
     .down = MOE_F16,
     .layout = SOURCE_POINTERS,
     .E_L = 4,
     .H = 33,
     .I = 47,
     .bias = MOE_F32},
    {.gate_up = MOE_E2M1_X2,
     .down = MOE_E4M3FN,
     .mx = true,
     .layout = SOURCE_INTERLEAVED,
     .E_L = 7,
     .H = 64,
     .I = 96,
     .bias = MOE_BF16},
    {.gate_up = MOE_E4M3FN,
     .down = MOE_E4M3FN,
     .layout = SOURCE_TRANSPOSED_FUSED,
     .E_L = 1,
     .H = 64,
     .I = 32,
     .scale = MOE_BF16},
    {.gate_up = MOE_BF16,
     .down = MOE_BF16,
     .E_L = 5,
     .H = 40,
     .I = 24,
     .packing = MOE_PACK_LOSSLESS},
};

/* ---- a callback ------------------------------------------------------------------------------ */

typedef struct fetcher {
    const source *from;
    int64_t next; /* expert that comes next */
    int passes, calls;
    int fails_at; /* call number; 0: none */
    moe_status status;
    bool says; /* a call of the library fails inside the callback */
    void (*spoil)(moe_experts_args *part);
} fetcher;

static moe_array *arrays_of(moe_experts_args *a, size_t i)
{
    moe_matrix *m = i / 4 == 0 ? &a->gate : i / 4 == 1 ? &a->up : &a->down;
    moe_array *arrays[] = {&m->weights, &m->scale, &m->bias, &m->row_scale};
    return arrays[i % 4];
}

static moe_status get(void *user, int64_t first, int64_t count, moe_experts_args *part)
{
    fetcher *f = user;
    moe_experts_args all = f->from->args;
    f->calls++;
    if (first == 0) {
        f->passes++;
        f->next = 0;
    }
    if (first != f->next || count < 1 || part->E_L != count || first + count > all.E_L) abort();
    f->next = first + count;
    if (f->calls == f->fails_at) {
        if (f->says) moe_experts_destroy((moe_experts *)(uintptr_t)8);
        return f->status;
    }
    for (size_t i = 0; i < 3 * 4; i++) {
        moe_array *a = arrays_of(&all, i), *p = arrays_of(part, i);
        if (p->data != NULL || p->experts != NULL) abort();
        moe_dtype dtype = p->dtype;
        *p = *a;
        p->dtype = dtype;
        if (a->experts != NULL) p->experts = a->experts + first;
        if (a->data != NULL) p->data = (const char *)a->data + first * a->expert_stride;
    }
    if (f->spoil != NULL) f->spoil(part);
    return MOE_OK;
}

/* args that say all but where the weights are. */
static moe_experts_args to_fetch(const source *s, fetcher *f, int64_t count)
{
    moe_experts_args a = s->args;
    for (size_t i = 0; i < 3 * 4; i++) {
        moe_dtype dtype = arrays_of(&a, i)->dtype;
        memset(arrays_of(&a, i), 0, sizeof(moe_array));
        arrays_of(&a, i)->dtype = dtype;
    }
    a.fetch = get;
    a.fetch_user = f;
    a.fetch_count = count;
    return a;
}

/* ---- the same experts ------------------------------------------------------------------------ */

static void expect_same_experts(const moe_experts *a, const moe_experts *b)
{
    assert_int_equal(a->bytes, b->bytes);
    assert_int_equal(a->expert_bytes, b->expert_bytes);
    for (size_t e = 0; e < a->E_L; e++)
        for (size_t i = 0; i < a->layout.gate_up_panels + a->layout.down_panels; i++) {
            bool down = i >= a->layout.gate_up_panels;
            size_t n = down ? i - a->layout.gate_up_panels : i;
            kernel_panel p = down ? experts_down(a, e, n) : experts_gate_up(a, e, n),
                         q = down ? experts_down(b, e, n) : experts_gate_up(b, e, n);
            assert_int_equal(p.format, q.format);
            assert_memory_equal(p.stream, q.stream, kernel_panel_bytes(p.format, p.halves, p.k));
            for (size_t half = 0; half < p.halves; half++) {
                if (p.rows[half].scale != NULL)
                    assert_memory_equal(p.rows[half].scale, q.rows[half].scale, 64);
                if (p.rows[half].bias != NULL)
                    assert_memory_equal(p.rows[half].bias, q.rows[half].bias, 64);
            }
        }
}

static void test_same(void **state)
{
    static const int64_t counts[] = {1, 2, 3, 1000, INT64_MAX};
    (void)state;
    for (size_t b = 0; b < COUNT(BASE) * COUNT(counts); b++)
        for (int threads = 0; threads < 4; threads += 3) {
            source s;
            fetcher f = {.from = &s};
            moe_context *context = NULL;
            moe_context_options options = moe_context_options_init();
            moe_experts *whole, *sliced;
            size_t bytes;
            int64_t count = counts[b % COUNT(counts)];
            source_make(&s, &BASE[b / COUNT(counts)]);
            moe_experts_args a = to_fetch(&s, &f, count);
            int coded = a.packing == MOE_PACK_LOSSLESS;
            options.threads = threads;
            if (threads > 0) assert_int_equal(moe_context_create(&options, &context), MOE_OK);
            assert_int_equal(moe_experts_create(context, &s.args, &whole), MOE_OK);
            if (moe_experts_bytes(context, &a, &bytes) != MOE_OK) fail_msg("%s", moe_last_error());
            assert_int_equal(bytes, whole->bytes);
            assert_int_equal(f.passes, coded);
            f.calls = f.passes = 0;
            if (moe_experts_create(context, &a, &sliced) != MOE_OK)
                fail_msg("%s", moe_last_error());
            assert_int_equal(f.passes, 1 + coded);
            assert_int_equal(f.calls, (1 + coded) * (count > a.E_L ? 1 : (a.E_L - 1) / count + 1));
            expect_same_experts(whole, sliced);
            assert_int_equal(moe_experts_destroy(whole), MOE_OK);
            assert_int_equal(moe_experts_destroy(sliced), MOE_OK);
            assert_int_equal(moe_context_destroy(context), MOE_OK);
            source_free(&s);
        }
}

/* ---- its errors ------------------------------------------------------------------------------ */

static void expect_fails(fetcher *f, const moe_experts_args *a, moe_status want, const char *text)
{
    moe_experts *x = (moe_experts *)(uintptr_t)64;
    f->calls = f->passes = 0;
    moe_status got = moe_experts_create(NULL, a, &x);
    if (got != want || strstr(moe_last_error(), text) == NULL)
        fail_msg("%s, not %s with \"%s\": %s", moe_status_name(got), moe_status_name(want), text,
                 moe_last_error());
    assert_null(x);
}

static void test_status(void **state)
{
    (void)state;
    source s;
    fetcher f = {.from = &s, .status = MOE_E_READ};
    for (size_t b = 0; b < COUNT(BASE); b += COUNT(BASE) - 1) {
        source_make(&s, &BASE[b]);
        moe_experts_args a = to_fetch(&s, &f, 2);
        for (f.fails_at = 1; f.fails_at <= (BASE[b].packing == MOE_PACK_LOSSLESS ? 6 : 3);
             f.fails_at++) {
            static const char *const text[] = {
                "fetch: experts [0, 2): ", "fetch: experts [2, 4): ", "fetch: experts [4, 5): "};
            f.says = false;
            expect_fails(&f, &a, MOE_E_READ, text[(f.fails_at - 1) % 3]);
            assert_non_null(strstr(moe_last_error(), "MOE_E_READ"));
            f.says = true;
            expect_fails(&f, &a, MOE_E_READ, text[(f.fails_at - 1) % 3]);
            assert_non_null(strstr(moe_last_error(), "not of moe_experts_create"));
            assert_int_equal(f.calls, f.fails_at);
        }
        f.fails_at = 1;
        f.says = false;
        f.status = (moe_status)77;
        expect_fails(&f, &a, f.status, "unknown");
        f.status = MOE_E_READ;
        size_t bytes = 77;
        f.calls = 0;
        assert_int_equal(moe_experts_bytes(NULL, &a, &bytes),
                         a.packing == MOE_PACK_LOSSLESS ? MOE_E_READ : MOE_OK);
        assert_int_equal(bytes == 77, a.packing == MOE_PACK_LOSSLESS);
        source_free(&s);
    }
}

static void no_data(moe_experts_args *p)
{
    p->up.weights.data = NULL;
}
static void odd_data(moe_experts_args *p)
{
    p->up.weights.data = (const char *)64 + 1;
}
static void other_count(moe_experts_args *p)
{
    p->E_L++;
}
static void other_H(moe_experts_args *p)
{
    p->H -= 2;
}
static void other_I(moe_experts_args *p)
{
    p->I++;
}
static void other_packing(moe_experts_args *p)
{
    p->packing = MOE_PACK_LOSSLESS;
}
static void other_dtype(moe_experts_args *p)
{
    p->down.weights.dtype = MOE_F16;
}
static void no_dtype(moe_experts_args *p)
{
    p->gate.scale.dtype = MOE_DTYPE_NONE;
}
static void new_bias(moe_experts_args *p)
{
    p->gate.bias = p->up.bias = p->up.scale;
}
static void wild_dtype(moe_experts_args *p)
{
    p->up.bias.dtype = (moe_dtype)-5;
}
static void other_scale_k(moe_experts_args *p)
{
    p->gate.scale_k = 128;
}
static void no_stride(moe_experts_args *p)
{
    p->gate.weights.row_stride = 0;
}
static void odd_stride(moe_experts_args *p)
{
    p->gate.weights.row_stride++;
}
static void wide_stride(moe_experts_args *p)
{
    p->down.weights.row_stride = INT64_MAX / 8 * 4;
}
static void both(moe_experts_args *p)
{
    static const void *const experts[2] = {"", ""};
    p->down.weights.experts = experts;
}

static void test_spoilt_parts(void **state)
{
    static const struct {
        void (*spoil)(moe_experts_args *part);
        moe_status status;
        const char *text;
    } cases[] = {
        {no_data, MOE_E_NULL_ARG, "up.weights.data = NULL"},
        {odd_data, MOE_E_ALIGN, "up.weights.data"},
        {both, MOE_E_UNSUPPORTED, "down.weights.experts"},
        {other_count, MOE_E_VALUE, "part->E_L = 3: must stay 2"},
        {other_H, MOE_E_VALUE, "part->H = 38: must stay 40"},
        {other_I, MOE_E_VALUE, "part->I = 25: must stay 24"},
        {other_packing, MOE_E_VALUE, "part->packing = 1: must stay 0"},
        {other_dtype, MOE_E_DTYPE, "part->down.weights.dtype = f16: must stay f32"},
        {no_dtype, MOE_E_DTYPE, "part->gate.scale.dtype = none: must stay f32"},
        {new_bias, MOE_E_DTYPE, "part->gate.bias.dtype = f32: must stay none"},
        {wild_dtype, MOE_E_DTYPE, "part->up.bias.dtype = unknown: must stay none"},
        {other_scale_k, MOE_E_VALUE, "part->gate.scale_k = 128: must stay 0"},
        {no_stride, MOE_E_VALUE, "gate.weights.row_stride = 0"},
        {odd_stride, MOE_E_ALIGN, "gate.weights.row_stride = 81"},
        {wide_stride, MOE_E_OVERFLOW, "down.weights"},
    };
    (void)state;
    source s;
    fetcher f = {.from = &s};
    source_make(&s, &BASE[0]);
    moe_experts_args a = to_fetch(&s, &f, 2);
    for (size_t i = 0; i < COUNT(cases); i++) {
        f.spoil = cases[i].spoil;
        expect_fails(&f, &a, cases[i].status, cases[i].text);
        expect_fails(&f, &a, cases[i].status, "fetch: experts [0, 2): ");
    }
    source_free(&s);
}

/* ---- its arguments --------------------------------------------------------------------------- */

static void test_arguments(void **state)
{
    (void)state;
    source s, t;
    fetcher f = {.from = &s};
    source_make(&s, &BASE[0]);
    moe_experts_args a = to_fetch(&s, &f, 0);
    expect_fails(&f, &a, MOE_E_VALUE, "fetch_count = 0: must be at least 1");
    a.fetch_count = -3;
    expect_fails(&f, &a, MOE_E_VALUE, "fetch_count = -3: must be at least 1");
    a.fetch_count = 2;
    a.down.weights.data = &s;
    expect_fails(&f, &a, MOE_E_UNSUPPORTED, "down.weights.data is given");
    a.down.weights.data = NULL;
    a.gate.scale.experts = (const void *const *)s.array;
    expect_fails(&f, &a, MOE_E_UNSUPPORTED, "gate.scale.experts is given");
    a.gate.scale.experts = NULL;
    a.H = 0;
    expect_fails(&f, &a, MOE_E_DIM, "H = 0");
    assert_int_equal(f.calls, 0);
    source_make(&t, &(source_spec){.gate_up = MOE_BF16,
                                   .down = MOE_BF16,
                                   .layout = SOURCE_OPERATOR,
                                   .E_L = 2,
                                   .H = 40,
                                   .I = 24});
    t.args.fetch = get;
    t.args.fetch_count = 1;
    expect_fails(&f, &t.args, MOE_E_UNSUPPORTED, "fetch is given");
    source_free(&t);
    source_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),
        cmocka_unit_test(test_status),
        cmocka_unit_test(test_spoilt_parts),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* test_router.c - moe_router_topk: golden cases, the document's bits whatever runs it, selection by
 * hand, and what is refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "expect.h"
#include "golden.h"
#include "io/safetensors.h"
#include "numeric.h"
#include "router_case.h"
#include "router_ref.h"

/* ---- one call -------------------------------------------------------------------------------- */

/* All outputs of one call. */
typedef struct routed {
    size_t T, E, K;
    moe_router_output out;
} routed;

static void *filled(size_t n)
{
    void *p = malloc(n * sizeof(float) + 1);
    assert_non_null(p);
    memset(p, 0xA5, n * sizeof(float));
    return p;
}

static routed routed_new(size_t T, size_t E, size_t K)
{
    return (routed){
        T, E, K, {filled(T * K), filled(T * K), filled(T * E), filled(T * E), filled(T * E)}};
}

static void routed_free(routed *r)
{
    free(r->out.index);
    free(r->out.weights);
    free(r->out.logits);
    free(r->out.affinities);
    free(r->out.scores);
}

static void expect_same(const routed *want, const routed *got, const char *what)
{
    const struct {
        const char *name;
        const void *want, *got;
        size_t n;
    } rows[] = {{"index", want->out.index, got->out.index, want->T * want->K},
                {"logits", want->out.logits, got->out.logits, want->T * want->E},
                {"scores", want->out.scores, got->out.scores, want->T * want->E},
                {"weights", want->out.weights, got->out.weights, want->T * want->K},
                {"affinities", want->out.affinities, got->out.affinities, want->T * want->E}};
    for (size_t i = 0; i < COUNT(rows); i++)
        for (size_t n = 0; n < rows[i].n; n++) {
            uint32_t a = ((const uint32_t *)rows[i].want)[n],
                     b = ((const uint32_t *)rows[i].got)[n];
            if (a != b)
                fail_msg("%s: %s[%zu]: %a (%d), not %a (%d)", what, rows[i].name, n,
                         (double)num_float(b), (int)b, (double)num_float(a), (int)a);
        }
}

static moe_context *context_of(const char *isa, int32_t threads)
{
    moe_context_options options = moe_context_options_init();
    moe_context *context;
    options.isa = isa;
    options.threads = threads;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    return context;
}

static void run(moe_context *context, const moe_router_args *args, const moe_router_output *out)
{
    moe_status s = moe_router_topk(context, args, out);
    if (s != MOE_OK) fail_msg("%s: %s", moe_status_name(s), moe_last_error());
}

/* ---- golden cases ---------------------------------------------------------------------------- */

static void *read_tensor(const st_file *file, const char *name)
{
    const st_tensor *t = st_find(file, name);
    if (t == NULL) return NULL;
    void *data = malloc(t->bytes);
    assert_non_null(data);
    assert_int_equal(st_read(file, t, data, NULL), IO_OK);
    return data;
}

static size_t number_of(const st_file *file, const char *key)
{
    return strtoul(st_metadata(file, key), NULL, 10);
}

static bool is_set(const st_file *file, const char *key)
{
    return number_of(file, key) == 1;
}

/* |got - expected| <= 1e-5 + 1e-5 max |expected|. */
static void expect_near(const char *path, const char *what, const float *expected, const float *got,
                        size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++)
        most = most < fabs((double)expected[i]) ? fabs((double)expected[i]) : most;
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)expected[i]) <= 1e-5 + 1e-5 * most))
            fail_msg("%s: %s[%zu] = %g, not %g", path, what, i, (double)got[i],
                     (double)expected[i]);
}

static void golden_router(const char *path)
{
    st_file *file;
    assert_int_equal(st_open(path, &file, NULL), IO_OK);
    const size_t T = number_of(file, "T"), H = number_of(file, "H"), E = number_of(file, "E"),
                 K = number_of(file, "k");
    const bool before = is_set(file, "router_pre_norm"), norm = is_set(file, "norm_topk_prob"),
               softmax = strcmp(st_metadata(file, "act_fn"), "SOFTMAX") == 0;
    void *x = read_tensor(file, "x"), *w = read_tensor(file, "w"), *b = read_tensor(file, "w_bias");
    float *logits = read_tensor(file, "expected_logits"),
          *affinities = read_tensor(file, "expected_affinities");
    int32_t *index = read_tensor(file, "expected_index");
    st_close(file);
    moe_tensor tensor = moe_tensor_2d(x, MOE_BF16, (int64_t)T, (int64_t)H);
    moe_router_args args = moe_router_args_init();
    args.x = &tensor;
    args.E = (int64_t)E;
    args.K = (int64_t)K;
    args.weights =
        (moe_array){.dtype = MOE_BF16, .data = w, .row_stride = 2, .column_stride = 2 * (int64_t)E};
    if (b != NULL) args.bias = (moe_array){.dtype = MOE_BF16, .data = b, .row_stride = 2};
    args.score = !softmax ? MOE_SCORE_SIGMOID : before ? MOE_SCORE_SOFTMAX : MOE_SCORE_TOPK_SOFTMAX;
    args.normalize = norm;
    for (size_t i = 0; moe_isa_level(i) != NULL; i++) {
        moe_context *context = context_of(moe_isa_level(i), 2);
        routed r = routed_new(T, E, K);
        run(context, &args, &r.out);
        assert_memory_equal(r.out.index, index, T * K * sizeof *index);
        expect_near(path, "logits", logits, r.out.logits, T * E);
        expect_near(path, "affinities", affinities,
                    before && !norm ? r.out.scores : r.out.affinities, T * E);
        routed_free(&r);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
    }
    free(x);
    free(w);
    free(b);
    free(logits);
    free(affinities);
    free(index);
}

static void test_golden(void **state)
{
    (void)state;
    assert_true(golden_each("router_topk", golden_router) >= 7);
}

/* ---- random routers -------------------------------------------------------------------------- */

static uint64_t first_seed(void)
{
    const char *environment = getenv("MOE_SEED");
    return environment ? strtoull(environment, NULL, 0) : 0;
}

/* The document's bits, on every level, with any number of threads. */
static void test_document(void **state)
{
    (void)state;
    const unsigned rounds = getenv("MOE_QUICK") ? 40 : 200;
    for (size_t level = 0; moe_isa_level(level) != NULL; level++) {
        moe_context *context[] = {context_of(moe_isa_level(level), 1),
                                  context_of(moe_isa_level(level), 3)};
        for (unsigned n = 0; n < rounds; n++) {
            static const size_t tokens[] = {1, 2, 3, 5, 9, 33, 128, 129, 300};
            const uint64_t seed = first_seed() + n;
            const size_t T = tokens[n % 37 == 0 ? 5 + n / 37 % 4 : n % 5];
            char what[80];
            router_case s;
            router_case_make(&s, seed, T);
            routed want = routed_new(T, (size_t)s.args.E, (size_t)s.args.K), got = want;
            router_ref(&s.args, &want.out);
            for (size_t i = 0; i < COUNT(context); i++) {
                got = routed_new(want.T, want.E, want.K);
                snprintf(what, sizeof what, "seed %llu, %s, context %zu", (unsigned long long)seed,
                         moe_isa_level(level), i);
                run(context[i], &s.args, &got.out);
                expect_same(&want, &got, what);
                routed_free(&got);
            }
            routed_free(&want);
            router_case_free(&s);
        }
        for (size_t i = 0; i < COUNT(context); i++)
            assert_int_equal(moe_context_destroy(context[i]), MOE_OK);
    }
}

static void serial_for(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user)
{
    ++*(size_t *)user;
    for (size_t i = n; i-- > 0;) body(arg, i);
}

/* A token's results are its own: alone, at another place, on a caller's threads, with some outputs
 * not wanted. */
static void test_splits(void **state)
{
    (void)state;
    size_t loops = 0;
    moe_context_options options = moe_context_options_init();
    options.threads = 4;
    options.parallel_for = serial_for;
    options.parallel_user = &loops;
    moe_context *context;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    for (uint64_t seed = 1000; seed < 1040; seed++) {
        enum { T = 7 };
        router_case s;
        router_case_make(&s, seed, T);
        routed all = routed_new(T, (size_t)s.args.E, (size_t)s.args.K);
        run(NULL, &s.args, &all.out);
        routed again = routed_new(T, all.E, all.K);
        run(context, &s.args, &again.out);
        expect_same(&all, &again, "parallel_for");
        const size_t row = (size_t)s.x.shape[s.x.rank - 1] * moe_dtype_size(s.x.dtype);
        for (size_t first = 0; first < T; first += 3) {
            const size_t n = first + 3 < T ? 3 : T - first;
            char *moved = malloc(n * row + 8);
            assert_non_null(moved);
            const size_t shift = seed % 2 * moe_dtype_size(s.x.dtype);
            memcpy(moved + shift, (char *)s.memory[0] + first * row, n * row);
            moe_tensor x = s.x, *old = &s.x;
            x.data = moved + shift;
            x.shape[x.rank - 2] = (int64_t)n;
            s.args.x = &x;
            routed part = {n,
                           all.E,
                           all.K,
                           {all.out.index + first * all.K, all.out.weights + first * all.K,
                            all.out.logits + first * all.E, all.out.affinities + first * all.E,
                            all.out.scores + first * all.E}};
            routed got = routed_new(n, all.E, all.K), some = got;
            if (first == 3) some.out.logits = some.out.scores = NULL;
            if (first == 6) some.out.index = NULL, some.out.affinities = NULL;
            run(NULL, &s.args, &some.out);
            if (some.out.logits == NULL) {
                memcpy(got.out.logits, part.out.logits, n * all.E * 4);
                memcpy(got.out.scores, part.out.scores, n * all.E * 4);
            }
            if (some.out.index == NULL) {
                memcpy(got.out.index, part.out.index, n * all.K * 4);
                memcpy(got.out.affinities, part.out.affinities, n * all.E * 4);
            }
            expect_same(&part, &got, "part");
            routed_free(&got);
            s.args.x = old;
            free(moved);
        }
        routed_free(&again);
        routed_free(&all);
        router_case_free(&s);
    }
    assert_true(loops > 0);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
}

/* ---- by hand --------------------------------------------------------------------------------- */

/* Routes one token whose logits are these: x = 1, weights = the logits. */
static routed route_logits(const float *logits, size_t E, moe_router_args *args)
{
    static const float one = 1;
    static moe_tensor x;
    x = moe_tensor_2d(&one, MOE_F32, 1, 1);
    args->x = &x;
    args->E = (int64_t)E;
    args->weights =
        (moe_array){.dtype = MOE_F32, .data = logits, .row_stride = 4, .column_stride = 4};
    routed r = routed_new(1, E, (size_t)args->K);
    run(NULL, args, &r.out);
    return r;
}

static void expect_index(const float *logits, size_t E, moe_router_args *args, const int32_t *want)
{
    routed r = route_logits(logits, E, args);
    for (size_t k = 0; k < r.K; k++)
        if (r.out.index[k] != want[k])
            fail_msg("index[%zu] = %d, not %d", k, (int)r.out.index[k], (int)want[k]);
    routed_free(&r);
}

static void test_order(void **state)
{
    (void)state;
    moe_router_args args = moe_router_args_init();
    args.K = 4;
    args.score = MOE_SCORE_SIGMOID;
    expect_index((float[]){1, 3, 3, 2, 3}, 5, &args, (int32_t[]){1, 2, 4, 3});
    expect_index((float[]){0.0f, -0.0f, 0.0f, -1, 0x1p-140f}, 5, &args, (int32_t[]){0, 1, 2, 4});
    expect_index((float[]){NAN, -INFINITY, NAN, 5, -3}, 5, &args, (int32_t[]){3, 4, 1, 0});
    /* sigmoid is 1 for all of these, the logits tell them apart */
    expect_index((float[]){40, 60, 50, 30}, 4, &args, (int32_t[]){1, 2, 0, 3});
    for (int score = 0; score <= MOE_SCORE_SQRT_SOFTPLUS; score++) {
        args.score = (moe_router_score)score;
        expect_index((float[]){-200, 3, -300, 9, -100}, 5, &args, (int32_t[]){3, 1, 4, 0});
    }
    /* with a bias the scores count, and they are equal */
    static const float bias[] = {0, 0, 0, 1};
    args.score = MOE_SCORE_SIGMOID;
    args.selection_bias = (moe_array){.dtype = MOE_F32, .data = bias, .row_stride = 4};
    expect_index((float[]){40, 60, 50, 0}, 4, &args, (int32_t[]){3, 0, 1, 2});
    args.selection_bias.row_stride = 0; /* one value for all */
    expect_index((float[]){40, 60, 50, 0}, 4, &args, (int32_t[]){0, 1, 2, 3});
}

/* Groups that are out stay out, however small what is left is. */
static void test_groups(void **state)
{
    (void)state;
    static const float bias[] = {-5, -5, -5, -5, -9, -9};
    moe_router_args args = moe_router_args_init();
    args.score = MOE_SCORE_SIGMOID;
    args.K = 2;
    args.n_group = 3;
    args.topk_group = 1;
    expect_index((float[]){9, -9, 1, 1, 0, 2}, 6, &args, (int32_t[]){2, 3});
    args.selection_bias = (moe_array){.dtype = MOE_F32, .data = bias, .row_stride = 4};
    expect_index((float[]){9, -9, 1, 1, 0, 2}, 6, &args, (int32_t[]){2, 3});
    args.topk_group = 2;
    args.K = 4;
    expect_index((float[]){9, -9, 1, 1, 0, 2}, 6, &args, (int32_t[]){0, 2, 3, 1});
    args.selection_bias.dtype = MOE_DTYPE_NONE;
    args.K = 2;
    expect_index((float[]){NAN, 5, 1, 1, 1, 1}, 6, &args, (int32_t[]){2, 3}); /* NaN ranks last */
    args.n_group = 6; /* a group is an expert */
    expect_index((float[]){0, 5, 1, 7, 1, 1}, 6, &args, (int32_t[]){3, 1});
    args.n_group = 3; /* the best alone, or two */
    args.topk_group = 1;
    args.group_rank = MOE_GROUP_BEST;
    expect_index((float[]){3, -9, 2, 2, 0, 2.5f}, 6, &args, (int32_t[]){0, 1});
    args.group_rank = MOE_GROUP_TWO_BEST;
    expect_index((float[]){3, -9, 2, 2, 0, 2.5f}, 6, &args, (int32_t[]){2, 3});
    args.score = MOE_SCORE_TOPK_SOFTMAX;
    expect_index((float[]){9, -9, 1, 1, 0, 1.5f}, 6, &args, (int32_t[]){2, 3});
}

static void test_weights(void **state)
{
    (void)state;
    moe_router_args args = moe_router_args_init();
    args.K = 2;
    args.scale = 3;
    args.score = MOE_SCORE_TOPK_SOFTMAX;
    routed r = route_logits((float[]){1, 1, -4, 1}, 4, &args);
    const float half[] = {1.5f, 1.5f}, row[] = {1.5f, 1.5f, 0, 0};
    assert_memory_equal(r.out.weights, half, sizeof half);
    assert_memory_equal(r.out.affinities, row, sizeof row);
    assert_memory_equal(r.out.scores, row, sizeof row);
    routed_free(&r);
    args.score = MOE_SCORE_SIGMOID;
    args.normalize = 1;
    args.normalize_epsilon = 1;
    r = route_logits((float[]){0, 0, -4, -4}, 4, &args);
    const float normalised[] = {0.75f, 0.75f}; /* 0.5 / (1 + 1) * 3 */
    assert_memory_equal(r.out.weights, normalised, sizeof normalised);
    assert_true(r.out.scores[0] == 0.5f && r.out.scores[2] > 0);
    routed_free(&r);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void refused(const moe_router_args *args, const moe_router_output *out, moe_status status,
                    const char *text)
{
    moe_status s = moe_router_topk(NULL, args, out);
    if (s != status || strstr(moe_last_error(), text) == NULL)
        fail_msg("%s (%s): %s: \"%s\"", moe_status_name(status), text, moe_status_name(s),
                 moe_last_error());
}

static void test_refused(void **state)
{
    (void)state;
    static float x[6], w[12], b[4], weights[4], scores[8];
    static int32_t index[4];
    moe_tensor tensor = moe_tensor_2d(x, MOE_F32, 2, 3);
    moe_router_args good = moe_router_args_init(), a;
    good.x = &tensor;
    good.E = 4;
    good.K = 2;
    good.weights = moe_array_dense(w, MOE_F32, 4, 3);
    moe_router_output out = {index, weights, NULL, NULL, scores}, o;
    assert_int_equal(moe_router_topk(NULL, &good, &out), MOE_OK);
    assert_int_equal(moe_router_topk(NULL, &good, &(moe_router_output){0}), MOE_OK);
    refused(NULL, &out, MOE_E_NULL_ARG, "args");
    refused(&good, NULL, MOE_E_NULL_ARG, "output");
#define REFUSED(change, status, text)                                                              \
    a = good;                                                                                      \
    o = out;                                                                                       \
    change;                                                                                        \
    refused(&a, &o, status, text)
    REFUSED(a.struct_size = 3, MOE_E_ABI, "struct_size");
    REFUSED(a.x = NULL, MOE_E_NULL_ARG, "x = NULL");
    REFUSED(a.score = (moe_router_score)4, MOE_E_BAD_ENUM, "score = 4");
    REFUSED(a.normalize = 2, MOE_E_BAD_ENUM, "normalize = 2");
    REFUSED(a.E = 0, MOE_E_VALUE, "E = 0");
    REFUSED(a.E = 4097, MOE_E_VALUE, "[1, 4096]");
    REFUSED(a.K = 0, MOE_E_VALUE, "K = 0");
    REFUSED(a.K = 5, MOE_E_VALUE, "[1, 4]");
    REFUSED((a.E = 4096, a.K = 129), MOE_E_VALUE, "[1, 128]");
    REFUSED(a.normalize_epsilon = -1, MOE_E_VALUE, "normalize_epsilon");
    REFUSED(a.normalize_epsilon = NAN, MOE_E_VALUE, "normalize_epsilon");
    REFUSED(a.normalize_epsilon = INFINITY, MOE_E_VALUE, "normalize_epsilon");
    REFUSED(a.scale = NAN, MOE_E_VALUE, "scale = nan");
    REFUSED(a.scale = -INFINITY, MOE_E_VALUE, "scale");
    REFUSED(a.n_group = 2, MOE_E_VALUE, "topk_group = 0");
    REFUSED((a.n_group = 2, a.topk_group = 3), MOE_E_VALUE, "topk_group = 3");
    REFUSED((a.n_group = 5, a.topk_group = 1), MOE_E_VALUE, "n_group = 5");
    REFUSED((a.n_group = -1, a.topk_group = 1), MOE_E_VALUE, "n_group = -1");
    REFUSED((a.n_group = 3, a.topk_group = 1), MOE_E_SHAPE, "must divide E = 4");
    REFUSED((a.n_group = 4, a.topk_group = 1), MOE_E_VALUE, "have 1 experts");
    REFUSED(a.group_rank = (moe_group_rank)2, MOE_E_BAD_ENUM, "group_rank = 2");
    REFUSED(a.weights.dtype = MOE_DTYPE_NONE, MOE_E_NULL_ARG, "weights.dtype");
    REFUSED(a.weights.dtype = MOE_E4M3FN, MOE_E_DTYPE, "e4m3fn");
    REFUSED(a.weights.dtype = (moe_dtype)99, MOE_E_BAD_ENUM, "99");
    REFUSED(a.weights.row_stride = 0, MOE_E_VALUE, "weights.row_stride = 0");
    REFUSED(a.weights.row_stride = -12, MOE_E_VALUE, "weights.row_stride = -12");
    REFUSED(a.weights.row_stride = 13, MOE_E_ALIGN, "weights.row_stride = 13");
    REFUSED(a.weights.column_stride = 2, MOE_E_VALUE, "weights.column_stride = 2");
    REFUSED(a.weights.row_stride = INT64_MAX - 3, MOE_E_OVERFLOW, "weights");
    REFUSED(a.weights.data = NULL, MOE_E_NULL_ARG, "weights = NULL");
    REFUSED(a.weights.data = (char *)w + 1, MOE_E_ALIGN, "weights");
    REFUSED(a.weights.experts = (const void *const *)w, MOE_E_UNSUPPORTED, "weights.experts");
    REFUSED(a.bias = ((moe_array){.dtype = MOE_I32, .data = b}), MOE_E_DTYPE, "bias");
    REFUSED(a.bias = ((moe_array){.dtype = MOE_F32}), MOE_E_NULL_ARG, "bias = NULL");
    REFUSED((a.score = MOE_SCORE_TOPK_SOFTMAX,
             a.selection_bias = (moe_array){.dtype = MOE_F32, .data = b, .row_stride = 4}),
            MOE_E_UNSUPPORTED, "selection_bias");
    REFUSED(o.index = (int32_t *)(void *)x, MOE_E_ALIAS, "output.index");
    REFUSED(o.scores = w + 4, MOE_E_ALIAS, "overlap weights");
    REFUSED(o.weights = (float *)(void *)index, MOE_E_ALIAS, "output.index");
    REFUSED(o.weights = (float *)(void *)((char *)weights + 2), MOE_E_ALIGN, "output.weights");
    tensor.rank = 1;
    refused(&good, &out, MOE_E_DIM, "x: rank = 1");
    tensor = moe_tensor_2d(x, MOE_F32, 2, 0);
    refused(&good, &out, MOE_E_DIM, "H = 0");
    tensor = moe_tensor_2d(x, MOE_F32, (int64_t)1 << 31, 3);
    refused(&good, &out, MOE_E_OVERFLOW, "T = 2147483648");
    tensor = moe_tensor_2d(x, MOE_I32, 2, 3);
    refused(&good, &out, MOE_E_DTYPE, "x: dtype");
    tensor = moe_tensor_2d(x, MOE_F32, 2, 3);
    tensor.layout = MOE_LAYOUT_SBUF;
    refused(&good, &out, MOE_E_LAYOUT, "x: layout");
    tensor = moe_tensor_2d(NULL, MOE_F32, 0, 3); /* no tokens, no data */
    good.weights.data = NULL;
    assert_int_equal(moe_router_topk(NULL, &good, &(moe_router_output){0}), MOE_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),  cmocka_unit_test(test_document),
        cmocka_unit_test(test_splits),  cmocka_unit_test(test_order),
        cmocka_unit_test(test_groups),  cmocka_unit_test(test_weights),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("router", tests, NULL, NULL);
}

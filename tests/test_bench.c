/* SPDX-License-Identifier: Apache-2.0 */
/* test_bench.c - what bench and demo are made of: names of shapes, routings, weights, statistics,
 * ceilings, and the check of a row-major layer by the oracle. */
#define _GNU_SOURCE 1

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../tools/bench_run.h"
#include "../tools/demo_check.h"
#include "numeric.h"
#include "weights_ref.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- shapes -------------------------------------------------------------------------------- */

static void expect_found(const char *name, size_t n, const shape *expected)
{
    char text[SHAPE_NAME], message[256];
    shape s;
    for (size_t i = 0; i < n; i++)
        text[i] = name[i] == '-' ? '_' : (char)toupper((unsigned char)name[i]);
    text[n] = '\0';
    assert_true(shape_parse(text, &s, message, sizeof message));
    assert_string_equal(s.name, expected->name);
    assert_true(s.H == expected->H && s.E == expected->E);
}

static void test_every_name_is_found(void **state)
{
    (void)state;
    shape s;
    const char *aliases;
    size_t n = 0;
    for (; shape_at(n, &s, &aliases); n++) {
        expect_found(s.name, strlen(s.name), &s);
        for (const char *p = aliases; *p;) {
            size_t length = strcspn(p, " ");
            expect_found(p, length, &s);
            p += length + strspn(p + length, " ");
        }
        assert_true(s.K >= 1 && s.K <= s.E);
        assert_int_equal(s.bias, strncmp(s.name, "gpt-oss", 7) == 0);
    }
    assert_int_equal(n, 30);
}

static void test_sizes(void **state)
{
    (void)state;
    char message[256];
    shape s;
    assert_true(shape_parse("64,33,4,2", &s, message, sizeof message));
    assert_true(s.H == 64 && s.I == 33 && s.E == 4 && s.K == 2 && !s.bias);
    assert_int_equal(s.activation, SHAPE_SILU);
    assert_string_equal(s.name, "64,33,4,2");
    static const char *const BAD[][2] = {
        {"64,33,4", "four numbers"},     {"64,33,4,2,1", "four numbers"},
        {"64,33,4,x", "four numbers"},   {"64, 33,4,2", "four numbers"},
        {"64,,4,2", "four numbers"},     {"0,33,4,2", "H must be 1 to"},
        {"64,1048577,4,2", "I must be"}, {"64,33,16385,2", "E must be 1 to 16384"},
        {"64,33,4,0", "K must be 1 to"}, {"64,33,4,5", "K = 5 must be at most E = 4"},
        {"64,33,4,-1", "four numbers"},  {"99999999999999999999,1,1,1", "H must be"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        assert_false(shape_parse(BAD[i][0], &s, message, sizeof message));
        assert_non_null(strstr(message, BAD[i][1]));
    }
}

static void test_near_names(void **state)
{
    (void)state;
    char message[256];
    shape s;
    assert_false(shape_parse("gpt-oss", &s, message, sizeof message));
    assert_non_null(strstr(message, "gpt-oss-20b, gpt-oss-120b"));
    assert_false(shape_parse("deepseek-v5", &s, message, sizeof message));
    assert_non_null(strstr(message, "near it: deepseek-v3"));
    assert_false(shape_parse("qwen3-30b-a3c", &s, message, sizeof message));
    assert_non_null(strstr(message, "near it: qwen3-30b-a3b"));
    static const char *const FAR[] = {"", "--", "entirely-something-else", "\xff\xfe"};
    for (size_t i = 0; i < sizeof FAR / sizeof FAR[0]; i++) {
        assert_false(shape_parse(FAR[i], &s, message, sizeof message));
        assert_string_equal(message, "no such shape");
    }
    char tiny[8]; /* a message that is cut short */
    assert_false(shape_parse("gpt-oss", &s, tiny, sizeof tiny));
    assert_string_equal(tiny, "no such");
}

/* ---- routing ------------------------------------------------------------------------------- */

static const shape SMALL = {.name = "small", .H = 32, .I = 32, .E = 24, .K = 3};

/* Experts of a batch: in range, different for each token, counted; affinities sum to 1. */
static void expect_sound(const bench_batch *b)
{
    bool seen[24] = {false};
    size_t K = (size_t)SMALL.K, experts = 0;
    for (size_t t = 0; t < b->T; t++) {
        float sum = 0;
        for (size_t k = 0; k < K; k++) {
            int32_t e = b->chosen[t * K + k];
            assert_in_range(e, 0, SMALL.E - 1);
            for (size_t other = 0; other < k; other++)
                assert_int_not_equal(e, b->chosen[t * K + other]);
            experts += !seen[e];
            seen[e] = true;
            sum += b->affinity[t * K + k];
        }
        assert_true(fabsf(sum - 1) < 1e-5f);
    }
    assert_int_equal(b->experts, experts);
}

static void test_routing(void **state)
{
    (void)state;
    char message[128];
    for (route_kind kind = ROUTE_UNIFORM; kind <= ROUTE_ONE; kind++) {
        bench_batch b;
        router r;
        size_t count[24] = {0}, most = 0, least = SIZE_MAX;
        assert_true(router_open(&r, kind, &SMALL, 7, NULL, message, sizeof message));
        assert_true(bench_batch_open(&b, &SMALL, 7));
        for (int call = 0; call < 100; call++) {
            bench_batch_route(&b, &r, 40);
            expect_sound(&b);
            if (kind == ROUTE_ONE) assert_int_equal(b.experts, SMALL.K);
            for (size_t i = 0; i < 40 * (size_t)SMALL.K; i++) count[b.chosen[i]]++;
        }
        for (size_t e = 0; e < 24; e++) {
            if (count[e] > most) most = count[e];
            if (count[e] < least) least = count[e];
        }
        assert_true(least > 0); /* routing is new in every call */
        if (kind == ROUTE_UNIFORM) assert_true(most < 2 * least);
        if (kind == ROUTE_ZIPF) assert_true(most > 5 * least);
        bench_batch_close(&b);
        router_close(&r);
    }
}

/* What router_open says of a file with this text. */
static bool open_text(const char *text, router *r, char *message, size_t size)
{
    char path[] = "/tmp/moe-tkg-routing-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    bool opened = router_open(r, ROUTE_FILE, &SMALL, 1, path, message, size);
    unlink(path);
    return opened;
}

static void test_routing_file(void **state)
{
    (void)state;
    char message[256] = "";
    router r;
    bench_batch b;
    assert_true(open_text("# tokens\n0 1 2\n\n 3,4,5 \r\n23\t22\t21", &r, message, sizeof message));
    assert_true(bench_batch_open(&b, &SMALL, 1));
    bench_batch_route(&b, &r, 2);
    bench_batch_route(&b, &r, 2); /* the third line, and the first again */
    const int32_t expected[] = {23, 22, 21, 0, 1, 2};
    assert_memory_equal(b.chosen, expected, sizeof expected);
    bench_batch_close(&b);
    router_close(&r);
    static const char *const BAD[][2] = {
        {"0 1 2\n3 4\n", "line 2: 2 experts: must be K = 3"},
        {"\n#\n0 1 2 3\n", "line 3: 4 experts"},
        {"0 1 24\n", "line 1: expert 24: must be 0 to 23"},
        {"0 1 -1\n", "line 1: expert -1"},
        {"0 1 1\n", "line 1: expert 1 twice"},
        {"0 1 2x\n", "line 1: not a number: 2x"},
        {"0 1 99999999999999999999\n", "line 1: not a number"},
        {"", "has no line of experts"},
        {"# nothing\n", "has no line of experts"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        assert_false(open_text(BAD[i][0], &r, message, sizeof message));
        assert_non_null(strstr(message, BAD[i][1]));
    }
    assert_false(router_open(&r, ROUTE_FILE, &SMALL, 1, "/nowhere/x", message, sizeof message));
    assert_non_null(strstr(message, "/nowhere/x: cannot be opened"));
    assert_false(router_open(&r, ROUTE_FILE, &SMALL, 1, "/", message, sizeof message));
    assert_non_null(strstr(message, "/: cannot be read"));
}

/* ---- weights ------------------------------------------------------------------------------- */

/* Weight (row, k) of matrix m of expert 0. */
static double weight(const bench_source *b, int m, size_t row, size_t k)
{
    const moe_matrix *matrix[BENCH_MATRICES] = {&b->args.gate, &b->args.up, &b->args.down};
    const moe_array *scale = &matrix[m]->scale, *rows = &matrix[m]->row_scale;
    double w = weights_ref_value(matrix[m], 0, row, k);
    if (scale->dtype != MOE_DTYPE_NONE && matrix[m]->scale_k == 0)
        w *= weights_ref_number((const char *)scale->experts[0] + row * (size_t)scale->row_stride,
                                scale->dtype);
    if (rows->dtype != MOE_DTYPE_NONE) w *= weights_ref_number(rows->experts[0], rows->dtype);
    return w;
}

static void test_weights_are_gaussian(void **state)
{
    (void)state;
    const shape s = {.name = "s", .H = 512, .I = 256, .E = 2, .K = 1, .bias = true};
    team *t = team_create(2, NULL, 0);
    assert_non_null(t);
    for (bench_format f = 0; f < BENCH_FORMATS; f++) {
        bench_source b;
        bench_format found;
        assert_true(bench_format_from_name(bench_format_name(f), &found) && found == f);
        assert_true(bench_source_make(&b, &s, f, 2, 5, t));
        for (int m = 0; m < BENCH_MATRICES; m++) {
            size_t rows = m == 2 ? 512 : 256, terms = m == 2 ? 256 : 512;
            double sum = 0, square = 0;
            for (size_t i = 0; i < rows * terms; i++) {
                double w = weight(&b, m, i / terms, i % terms);
                sum += w;
                square += w * w;
            }
            assert_true(square / (double)rows > 0.25 && square / (double)rows < 4);
            assert_true(fabs(sum) < 5 * sqrt(square));
        }
        assert_ptr_equal(b.args.down.weights.experts[1], b.image[1].array[2][BENCH_WEIGHTS]);
        bench_source_free(&b);
    }
    team_destroy(t);
    bench_format f;
    assert_true(bench_format_from_name("f16", &f) && f == BENCH_FP16);
    assert_true(bench_format_from_name("fp8", &f) && f == BENCH_FP8_ROW);
    assert_false(bench_format_from_name("fp4", &f));
}

/* ---- statistics and ceilings --------------------------------------------------------------- */

static void test_quantiles(void **state)
{
    (void)state;
    double n[] = {5, 1, 4, 2, 3}, even[] = {4, 1, 2, 3}, one[] = {7};
    assert_true(bench_quantile(n, 5, 0) == 1 && bench_quantile(n, 5, 1) == 5);
    assert_true(bench_quantile(n, 5, 0.5) == 3);
    assert_true(bench_quantile(even, 4, 0.5) == 2.5);
    assert_true(fabs(bench_quantile(n, 5, 0.95) - 4.8) < 1e-12);
    assert_true(bench_quantile(one, 1, 0.95) == 7);
    assert_true(bench_macs(&SMALL, 2) == 2 * 3 * 3 * 32 * 32);
}

static void test_ceilings(void **state)
{
    (void)state;
    team *t = team_create(2, NULL, 0);
    ceiling_reader r;
    assert_non_null(t);
    assert_true(ceiling_reader_open(&r, t, 1 << 20));
    for (int i = 0; i < 10; i++) {
        double gbps = ceiling_read(&r);
        assert_true(gbps > 0 && gbps <= r.best);
    }
    ceiling_reader_close(&r);
    for (size_t i = 0; moe_isa_level(i); i++)
        for (ceiling_operand o = CEILING_F32; o <= CEILING_INT8; o++) {
            const ceiling_dot_kind *kind = ceiling_dot_of(moe_isa_level(i), o);
            int variant = -1;
            assert_true(ceiling_dot(t, kind, 1e-5, &variant) > 0);
            assert_true(variant >= 0 && kind->run[variant]);
            assert_true(ceiling_dot(t, kind, 1e-5, &variant) > 0);
            if (i > 0) assert_ptr_not_equal(kind, &ceiling_dot_plain); /* a level has its own */
        }
    team_destroy(t);
}

/* ---- the oracle on row-major experts ------------------------------------------------------- */

static void check_shape(const shape *s, moe_act_mode act)
{
    char message[128];
    team *t = team_create(1, NULL, 0);
    bench_source source;
    bench_layer l;
    cli_error error;
    router r;
    bench_batch b;
    assert_non_null(t);
    assert_true(bench_source_make(&source, s, BENCH_MXFP4, (size_t)s->E, 3, t));
    assert_int_equal(bench_layer_pack(&l, NULL, &source, 1, &error), CLI_OK);
    assert_true(router_open(&r, ROUTE_UNIFORM, s, 3, NULL, message, sizeof message));
    assert_true(bench_batch_open(&b, s, 3));
    bench_batch_route(&b, &r, 3);
    moe_tkg_args args = bench_batch_args(&b, &l.call, l.experts[0], act);
    assert_int_equal(moe_tkg(NULL, &args, b.output, 3 * (size_t)s->H * sizeof *b.output), MOE_OK);
    for (size_t token = 0; token < 3; token++) {
        size_t H = (size_t)s->H, K = (size_t)s->K;
        demo_token d = {.hidden = b.x + token * H, .output = b.output + token * H};
        memcpy(d.chosen, b.chosen + token * K, K * sizeof *d.chosen);
        memcpy(d.affinity, b.affinity + token * K, K * sizeof *d.affinity);
        assert_true(demo_check(&source, act, &d));
        assert_true(d.verdict.pass);
        assert_true(d.verdict.cells >= H && d.verdict.unbounded == 0);
        d.output[H - 1] ^= 0x100; /* twice or half as much */
        assert_true(demo_check(&source, act, &d));
        assert_false(d.verdict.pass);
        assert_int_equal(d.verdict.outside, 1);
    }
    bench_batch_close(&b);
    router_close(&r);
    bench_layer_free(&l);
    bench_source_free(&source);
    team_destroy(t);
}

static void test_oracle_on_rows(void **state)
{
    (void)state;
    static const shape SHAPES[] = {
        {.name = "a",
         .H = 96,
         .I = 352,
         .E = 3,
         .K = 2,
         .activation = SHAPE_SWIGLU_OAI,
         .bias = true},
        {.name = "b", .H = 544, .I = 1056, .E = 2, .K = 2, .activation = SHAPE_SILU},
        {.name = "c", .H = 512, .I = 32, .E = 1, .K = 1, .activation = SHAPE_GELU_TANH},
    };
    for (size_t i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; i++)
        for (moe_act_mode act = MOE_ACT_EXACT; act <= MOE_ACT_INT8; act++)
            check_shape(&SHAPES[i], act);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_name_is_found), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_near_names),          cmocka_unit_test(test_routing),
        cmocka_unit_test(test_routing_file),        cmocka_unit_test(test_weights_are_gaussian),
        cmocka_unit_test(test_quantiles),           cmocka_unit_test(test_ceilings),
        cmocka_unit_test(test_oracle_on_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

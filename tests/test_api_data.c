/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_data.c - expert indices and rank_id: every value in range and out of it, in every
 * integer type. */
#include "expect.h"

#include <stdio.h>
#include <stdlib.h>

/* Writes v to element n of an index tensor of l; v must fit. */
static void set_integer(layer *l, layer_tensor which, size_t n, int64_t v)
{
    uint32_t word = (uint32_t)v;
    if (l->tensor[which].dtype == MOE_I64)
        memcpy((char *)l->data[which] + 8 * n, &v, 8);
    else
        memcpy((char *)l->data[which] + 4 * n, &word, 4);
}

/* What a reader of the type sees. */
static int64_t as_read(moe_dtype dtype, int64_t v)
{
    return dtype == MOE_I64 ? v : dtype == MOE_I32 ? (int32_t)v : (int64_t)(uint32_t)v;
}

/* ---- expert_index ---------------------------------------------------------------------------- */

enum { E = 4, K = 3, T = 2, H = 3, FIRST = -2, VALUES = 8, CASES = 262144 /* VALUES^(T * K) */ };

static void make_index_layer(layer *l, moe_dtype index_type)
{
    layer_make(l, &(layer_spec){.seed = 5,
                                .hidden = MOE_F32,
                                .weights = MOE_F32,
                                .T = T,
                                .H = H,
                                .I = 2,
                                .E_L = E,
                                .K = K,
                                .down_bias = true,
                                .index_type = index_type});
}

/* y[t][e]: expert e alone on token t. */
static void each_expert(layer *l, float y[T][E][H])
{
    for (int64_t e = 0; e < E; e++) {
        for (size_t n = 0; n < T * K; n++) set_integer(l, LAYER_INDEX, n, n % K == 0 ? e : -1);
        l->args.skip_invalid_experts = 1;
        float *rows = layer_run(NULL, l, NULL);
        for (int t = 0; t < T; t++) memcpy(y[t][e], rows + t * H, H * sizeof *rows);
        free(rows);
    }
}

/* The row of a token: its experts' rows added up in the order of the slots, an invalid one left
 * out. */
static void sum_of_slots(const int64_t *index, float y[E][H], float *row)
{
    bool is_first = true;
    for (int h = 0; h < H; h++) row[h] = 0.0f;
    for (int k = 0; k < K; k++) {
        if (index[k] < 0 || index[k] >= E) continue;
        for (int h = 0; h < H; h++) row[h] = is_first ? y[index[k]][h] : row[h] + y[index[k]][h];
        is_first = false;
    }
}

static void index_case(layer *l, const int64_t *index, float y[T][E][H])
{
    char name[32], value[32];
    size_t bad = 0;
    while (bad < T * K && index[bad] >= 0 && index[bad] < E) bad++;
    float got[T * H], expected[T * H];
    memset(got, 0xA5, sizeof got);
    memcpy(expected, got, sizeof got);
    moe_status status = moe_tkg(NULL, &l->args, got, sizeof got);
    if (bad == T * K || l->args.skip_invalid_experts) {
        assert_int_equal(status, MOE_OK);
        for (int t = 0; t < T; t++) sum_of_slots(index + t * K, y[t], expected + t * H);
    } else {
        assert_int_equal(status, MOE_E_EXPERT_INDEX);
        snprintf(name, sizeof name, "expert_index[%zu][%zu]", bad / K, bad % K);
        snprintf(value, sizeof value, "= %lld:", (long long)index[bad]);
        assert_non_null(strstr(moe_last_error(), name));
        assert_non_null(strstr(moe_last_error(), value));
    }
    assert_memory_equal(got, expected, sizeof got);
}

/* All rows of indices from -2 to 5; a u32 of "-1" is 4294967295. */
static void exhaustive_index(moe_dtype dtype, bool skip, unsigned step)
{
    layer l;
    float y[T][E][H];
    make_index_layer(&l, dtype);
    each_expert(&l, y);
    l.args.skip_invalid_experts = skip;
    for (unsigned n = 0; n < CASES; n += step) {
        int64_t index[T * K];
        for (unsigned i = 0, rest = n; i < T * K; i++, rest /= VALUES) {
            set_integer(&l, LAYER_INDEX, i, FIRST + (int64_t)(rest % VALUES));
            index[i] = as_read(dtype, FIRST + (int64_t)(rest % VALUES));
        }
        index_case(&l, index, y);
    }
    layer_free(&l);
}

static void test_index(void **state)
{
    (void)state;
    exhaustive_index(MOE_I32, false, 1);
    exhaustive_index(MOE_U32, false, 3);
    exhaustive_index(MOE_I64, false, 5);
}

static void test_index_skipped(void **state)
{
    (void)state;
    exhaustive_index(MOE_I32, true, 1);
    exhaustive_index(MOE_U32, true, 13);
    exhaustive_index(MOE_I64, true, 11);
}

/* Values whose low 32 or 8 bits are an expert's number. */
static void test_index_extremes(void **state)
{
    (void)state;
    static const int64_t extremes[] = {INT64_MIN,
                                       INT64_MIN + 1,
                                       INT32_MIN,
                                       INT32_MIN + 1,
                                       -256,
                                       -4,
                                       E,
                                       256,
                                       257,
                                       INT32_MAX,
                                       UINT32_MAX,
                                       (int64_t)1 << 32,
                                       ((int64_t)1 << 32) + 1,
                                       INT64_MAX - 2,
                                       INT64_MAX};
    static const moe_dtype types[] = {MOE_I32, MOE_U32, MOE_I64};
    for (size_t d = 0; d < COUNT(types); d++) {
        layer l;
        float y[T][E][H];
        make_index_layer(&l, types[d]);
        each_expert(&l, y);
        for (size_t v = 0; v < COUNT(extremes); v++) {
            if (as_read(types[d], extremes[v]) != extremes[v]) continue;
            for (int skip = 0; skip <= 1; skip++) {
                const int64_t index[T * K] = {1, 2, 1, 3, extremes[v], 0};
                for (size_t n = 0; n < T * K; n++) set_integer(&l, LAYER_INDEX, n, index[n]);
                l.args.skip_invalid_experts = skip;
                index_case(&l, index, y);
            }
        }
        layer_free(&l);
    }
}

/* All-expert mode: an index that is no expert matches none, whatever it is. */
static void test_index_in_mask(void **state)
{
    (void)state;
    static const moe_dtype types[] = {MOE_I32, MOE_U32, MOE_I64};
    for (size_t d = 0; d < COUNT(types); d++) {
        layer l;
        layer_make(&l, &(layer_spec){.hidden = MOE_F32,
                                     .weights = MOE_F32,
                                     .T = 1,
                                     .H = H,
                                     .I = 2,
                                     .E_L = 2,
                                     .E = 6,
                                     .K = 1,
                                     .all_expert = true,
                                     .scaling = MOE_POST_SCALE,
                                     .rank = 1,
                                     .mask = true,
                                     .down_bias = true,
                                     .no_zero_affinity = true,
                                     .index_type = types[d]});
        static const int64_t values[] = {INT64_MIN,
                                         INT32_MIN,
                                         -1,
                                         0,
                                         1,
                                         2,
                                         3,
                                         4,
                                         5,
                                         6,
                                         INT32_MAX,
                                         UINT32_MAX,
                                         ((int64_t)1 << 32) + 2,
                                         INT64_MAX};
        for (size_t v = 0; v < COUNT(values); v++) {
            if (as_read(types[d], values[v]) != values[v]) continue;
            set_integer(&l, LAYER_INDEX, 0, values[v]);
            float *row = layer_run(NULL, &l, NULL);
            static const float zeros[H] = {0.0f};
            bool is_local = values[v] == 2 || values[v] == 3;
            assert_int_equal(memcmp(row, zeros, sizeof zeros) != 0, is_local);
            free(row);
        }
        layer_free(&l);
    }
}

/* ---- rank_id --------------------------------------------------------------------------------- */

static void test_rank(void **state)
{
    (void)state;
    static const int64_t ranks[] = {INT64_MIN,
                                    INT32_MIN,
                                    -1,
                                    0,
                                    1,
                                    2,
                                    3,
                                    INT32_MAX,
                                    UINT32_MAX,
                                    (int64_t)1 << 32,
                                    (int64_t)1 << 62,
                                    ((int64_t)1 << 62) + 1,
                                    INT64_MAX};
    static const moe_dtype types[] = {MOE_I32, MOE_U32, MOE_I64};
    for (int64_t columns = 3; columns <= 13; columns++)
        for (size_t n = 0; n < COUNT(ranks) * COUNT(types); n++) {
            int64_t rank = ranks[n / COUNT(types)];
            moe_dtype dtype = types[n % COUNT(types)];
            if (as_read(dtype, rank) != rank) continue;
            layer l;
            layer_make(&l, &(layer_spec){.hidden = MOE_BF16,
                                         .weights = MOE_BF16,
                                         .T = 2,
                                         .H = 4,
                                         .I = 2,
                                         .E_L = 4,
                                         .E = columns,
                                         .all_expert = true,
                                         .scaling = MOE_POST_SCALE,
                                         .index_type = dtype});
            set_integer(&l, LAYER_RANK, 0, rank);
            char value[32];
            snprintf(value, sizeof value, "= %lld:", (long long)rank);
            if (columns < 4)
                expect_refused(&l.args, STATUS(MOE_E_SHAPE), BY_SHAPE, "expert_affinities",
                               "E = 3");
            else if (rank < 0 || rank >= columns / 4)
                expect_refused(&l.args, STATUS(MOE_E_RANK_RANGE), BY_DATA, "rank_id", value);
            else
                expect_runs(&l);
            layer_free(&l);
        }
}

/* Where rank_id has no meaning it is not read: any value, no data. */
static void test_rank_unread(void **state)
{
    (void)state;
    for (int n = 0; n < 3; n++) {
        layer l;
        layer_make(&l, &(layer_spec){.hidden = MOE_BF16,
                                     .weights = MOE_BF16,
                                     .T = 2,
                                     .H = 4,
                                     .I = 2,
                                     .E_L = 4,
                                     .all_expert = n == 0,
                                     .scaling = n == 2 ? MOE_POST_SCALE : MOE_NO_SCALE});
        layer_add(&l, LAYER_RANK);
        set_integer(&l, LAYER_RANK, 0, -7);
        expect_runs(&l);
        l.tensor[LAYER_RANK].data = NULL;
        expect_runs(&l);
        layer_free(&l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_index),          cmocka_unit_test(test_index_skipped),
        cmocka_unit_test(test_index_extremes), cmocka_unit_test(test_index_in_mask),
        cmocka_unit_test(test_rank),           cmocka_unit_test(test_rank_unread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

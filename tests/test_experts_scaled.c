/* SPDX-License-Identifier: Apache-2.0 */
/* test_experts_scaled.c - which matrices can be packed: the table at moe_matrix, row by row and field
 * by field, by the sizes that moe_experts_bytes tells and by what it says of the rest. */
#include "expect.h"

#include "kernel.h"

#include <stdlib.h>
#include <string.h>

/* ---- descriptions without data --------------------------------------------------------------- */

typedef struct kind {
    moe_dtype weights, scale;
    int32_t scale_k, scale_rows;
} kind;

/* Dense, of rows * k weights. */
static moe_matrix matrix_of(kind x, int64_t rows, int64_t k)
{
    moe_matrix m;
    memset(&m, 0, sizeof m);
    m.weights = moe_array_dense(NULL, x.weights, rows, k);
    m.scale_k = x.scale_k;
    m.scale_rows = x.scale_rows;
    if (x.scale == MOE_DTYPE_NONE) return m;
    int64_t step = x.scale == MOE_E8M0 ? 32 : x.scale_k,
            grid = x.scale_rows > 0 ? (rows + x.scale_rows - 1) / x.scale_rows : rows;
    m.scale = moe_array_dense(NULL, x.scale, grid, step > 0 ? (k + step - 1) / step : 1);
    return m;
}

static moe_experts_args args_of(kind gate_up, kind down, int64_t H, int64_t I)
{
    moe_experts_args a = moe_experts_args_init();
    a.E_L = 2;
    a.H = H;
    a.I = I;
    a.gate = a.up = matrix_of(gate_up, I, H);
    a.down = matrix_of(down, H, I);
    return a;
}

static void expect_fine(const moe_experts_args *a)
{
    size_t bytes;
    if (moe_experts_bytes(NULL, a, &bytes) != MOE_OK) fail_msg("%s", moe_last_error());
}

static void expect_no(const moe_experts_args *a, moe_status want, const char *name,
                      const char *text)
{
    size_t bytes = 77;
    moe_status got = moe_experts_bytes(NULL, a, &bytes);
    const char *says = moe_last_error();
    if (got != want || strstr(says, name) == NULL || strstr(says, text) == NULL)
        fail_msg("%s, not %s with \"%s\" and \"%s\": %s", moe_status_name(got),
                 moe_status_name(want), name, text, says);
    assert_int_equal(bytes, 77);
}

/* ---- the table ------------------------------------------------------------------------------- */

static const struct row {
    kind is;
    int64_t k; /* multiples of it, and no others, are an H or an I */
    kernel_format format;
} TABLE[] = {
    {{MOE_BF16, MOE_DTYPE_NONE, 0, 0}, 1, FORMAT_BF16},
    {{MOE_F16, MOE_F32, 0, 0}, 1, FORMAT_F16},
    {{MOE_F32, MOE_BF16, 0, 0}, 1, FORMAT_F32},
    {{MOE_E4M3_IEEE, MOE_F16, 0, 0}, 1, FORMAT_E4M3_IEEE},
    {{MOE_E4M3FN, MOE_BF16, 0, 0}, 1, FORMAT_E4M3FN},
    {{MOE_E4M3FN, MOE_DTYPE_NONE, 0, 0}, 1, FORMAT_E4M3FN},
    {{MOE_E4M3FN, MOE_E8M0, 0, 0}, 32, FORMAT_MXFP8},
    {{MOE_E4M3FN, MOE_E8M0, 32, 0}, 32, FORMAT_MXFP8},
    {{MOE_E4M3FN, MOE_F32, 128, 128}, 1, FORMAT_FP8_BLOCK},
    {{MOE_E4M3FN, MOE_BF16, 128, 1}, 1, FORMAT_FP8_BLOCK},
    {{MOE_E4M3FN, MOE_F16, 128, INT32_MAX}, 1, FORMAT_FP8_BLOCK},
    {{MOE_E2M1_X2, MOE_E8M0, 0, 0}, 32, FORMAT_MXFP4},
    {{MOE_E2M1_X2, MOE_E8M0, 32, 0}, 32, FORMAT_MXFP4},
    {{MOE_E2M1_X2, MOE_E4M3FN, 16, 0}, 16, FORMAT_NVFP4},
    {{MOE_INT4_X2, MOE_BF16, 32, 0}, 32, FORMAT_INT4_BF16_32},
    {{MOE_INT4_X2, MOE_BF16, 64, 0}, 64, FORMAT_INT4_BF16_64},
    {{MOE_INT4_X2, MOE_BF16, 128, 0}, 128, FORMAT_INT4_BF16_128},
    {{MOE_INT4_X2, MOE_F16, 32, 0}, 32, FORMAT_INT4_F16_32},
    {{MOE_INT4_X2, MOE_F16, 64, 0}, 64, FORMAT_INT4_F16_64},
    {{MOE_INT4_X2, MOE_F16, 128, 0}, 128, FORMAT_INT4_F16_128},
    {{MOE_Q8_0, MOE_DTYPE_NONE, 0, 0}, 32, FORMAT_Q8_0},
    {{MOE_Q4_0, MOE_DTYPE_NONE, 0, 0}, 32, FORMAT_INT4_F16_32},
    {{MOE_Q4_K, MOE_DTYPE_NONE, 0, 0}, 256, FORMAT_Q4_K},
    {{MOE_Q5_K, MOE_DTYPE_NONE, 0, 0}, 256, FORMAT_Q5_K},
    {{MOE_Q6_K, MOE_DTYPE_NONE, 0, 0}, 256, FORMAT_Q6_K},
    {{MOE_GGML_MXFP4, MOE_DTYPE_NONE, 0, 0}, 32, FORMAT_MXFP4},
    {{MOE_GGML_NVFP4, MOE_DTYPE_NONE, 0, 0}, 64, FORMAT_NVFP4},
};

static const kind PLAIN = {MOE_F32, MOE_DTYPE_NONE, 0, 0};

/* The row of the table that x is, or NULL. */
static const struct row *row_of(kind x)
{
    for (size_t i = 0; i < COUNT(TABLE); i++) {
        const kind *t = &TABLE[i].is;
        bool scale = t->scale == x.scale || (TABLE[i].format < FORMAT_MXFP8 &&
                                             (x.scale <= MOE_F32)); /* rows: any float, or none */
        if (TABLE[i].format == FORMAT_FP8_BLOCK) scale = x.scale >= MOE_BF16 && x.scale <= MOE_F32;
        bool rows = t->scale_rows == x.scale_rows || (t->scale_rows > 0 && x.scale_rows > 0);
        if (t->weights == x.weights && scale && t->scale_k == x.scale_k && rows) return &TABLE[i];
    }
    return NULL;
}

/* Every combination of element types, scale_k and scale_rows is accepted just where the table has it. */
static void test_table(void **state)
{
    static const int32_t k[] = {INT32_MIN, -1, 0, 1, 16, 31, 32, 64, 96, 128, 256, INT32_MAX},
                         rows[] = {INT32_MIN, -1, 0, 1, 100, INT32_MAX};
    size_t accepted = 0;
    (void)state;
    for (int w = MOE_DTYPE_NONE + 1; w < MOE_DTYPE_COUNT; w++)
        for (int s = MOE_DTYPE_NONE; s < MOE_DTYPE_COUNT; s++)
            for (size_t i = 0; i < COUNT(k) * COUNT(rows); i++) {
                kind x = {(moe_dtype)w, (moe_dtype)s, k[i / COUNT(rows)], rows[i % COUNT(rows)]};
                for (int down = 0; down < 2; down++) {
                    moe_experts_args a = args_of(PLAIN, PLAIN, 256, 256);
                    moe_matrix m = matrix_of(x, 256, 256);
                    if (down)
                        a.down = m;
                    else
                        a.gate = a.up = m;
                    size_t bytes;
                    moe_status got = moe_experts_bytes(NULL, &a, &bytes);
                    if ((got == MOE_OK) != (row_of(x) != NULL))
                        fail_msg("%s %s %d %d: %s %s", moe_dtype_name(x.weights),
                                 moe_dtype_name(x.scale), (int)x.scale_k, (int)x.scale_rows,
                                 moe_status_name(got), got == MOE_OK ? "" : moe_last_error());
                    accepted += got == MOE_OK;
                    if (got != MOE_OK && strstr(moe_last_error(), down ? "down." : "gate.") == NULL)
                        fail_msg("no matrix in: %s", moe_last_error());
                }
            }
    assert_true(accepted > 2 * COUNT(TABLE));
}

/* Bytes that one expert's panels take, from the format's table alone. */
static size_t panel_bytes(kernel_format f, size_t rows, size_t k)
{
    const kernel_info *i = &kernel_formats[f];
    size_t half = (k + i->chunk - 1) / i->chunk, bytes = 0;
    for (size_t row = 0; row < rows; row += 32) {
        size_t halves = rows - row > 16 ? 2 : 1;
        bytes += half * kernel_section_bytes(f, halves) + k * halves * 16 * i->bits / 8;
    }
    return bytes;
}

static void test_k_and_sizes(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(TABLE); i++)
        for (int64_t k = 1; k <= 520; k++) {
            const struct row *t = &TABLE[i];
            moe_experts_args gate_up = args_of(t->is, PLAIN, k, 64),
                             down = args_of(PLAIN, t->is, 64, k);
            size_t a = 0, b = 0, padded = (size_t)(k + 31) / 32 * 32;
            if (k % t->k != 0) {
                expect_no(&gate_up, MOE_E_SHAPE, "H = ", "must be a multiple of");
                expect_no(&down, MOE_E_SHAPE, "I = ", "must be a multiple of");
                continue;
            }
            if (!kernel_is_scaled(t->format) || k % 32 != 0) {
                expect_fine(&gate_up);
                expect_fine(&down);
                continue;
            }
            /* what two more experts take */
            assert_int_equal(moe_experts_bytes(NULL, &down, &a), MOE_OK);
            down.E_L = 4;
            assert_int_equal(moe_experts_bytes(NULL, &down, &b), MOE_OK);
            size_t each = panel_bytes(t->format, 64, padded) + 2 * padded * 64 * 4, left = b - a;
            assert_true(left >= 2 * each && left < 2 * each + 128); /* two words and alignment */
        }
}

/* ---- beside the table ------------------------------------------------------------------------ */

static const kind INT4 = {MOE_INT4_X2, MOE_BF16, 32, 0}, GRID = {MOE_E4M3FN, MOE_F32, 128, 128},
                  Q8 = {MOE_Q8_0, MOE_DTYPE_NONE, 0, 0}, BF16 = {MOE_BF16, MOE_F32, 0, 0};

static void test_row_scale(void **state)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32};
    (void)state;
    for (size_t i = 0; i < COUNT(TABLE); i++) {
        moe_experts_args a = args_of(PLAIN, TABLE[i].is, 256, 256);
        size_t before, after;
        expect_fine(&a);
        assert_int_equal(moe_experts_bytes(NULL, &a, &before), MOE_OK);
        for (size_t t = 0; t < COUNT(types); t++) {
            a.down.row_scale = moe_array_dense(NULL, types[t], 256, 1);
            if (!kernel_is_scaled(TABLE[i].format)) {
                expect_no(&a, MOE_E_UNSUPPORTED, "down.row_scale.dtype", "only beside");
                continue;
            }
            assert_int_equal(moe_experts_bytes(NULL, &a, &after), MOE_OK);
            assert_int_equal(after - before, 2 * 256 * sizeof(float));
            a.down.row_scale.row_stride = 0; /* one for all rows */
            expect_fine(&a);
            a.down.row_scale.row_stride = -1;
            expect_no(&a, MOE_E_VALUE, "down.row_scale.row_stride = -1", "at least 0");
        }
    }
    moe_experts_args a = args_of(INT4, PLAIN, 256, 256);
    a.up.row_scale = moe_array_dense(NULL, MOE_F32, 256, 1);
    expect_no(&a, MOE_E_NULL_ARG, "gate.row_scale.dtype = none", "or neither");
    a.gate.row_scale = moe_array_dense(NULL, MOE_BF16, 256, 1);
    expect_fine(&a);
    a.up.row_scale.dtype = MOE_E8M0;
    expect_no(&a, MOE_E_DTYPE, "up.row_scale.dtype = e8m0", "does not take it");
}

static void test_alike(void **state)
{
    static const kind others[] = {{MOE_INT4_X2, MOE_F16, 32, 0}, {MOE_INT4_X2, MOE_BF16, 64, 0}};
    (void)state;
    for (size_t i = 0; i < COUNT(others); i++) {
        moe_experts_args a = args_of(INT4, PLAIN, 256, 256);
        a.up = matrix_of(others[i], 256, 256);
        expect_no(&a, MOE_E_DTYPE, "up.scale.dtype", "of one kind with gate's bf16, 32");
    }
    moe_experts_args a = args_of(GRID, PLAIN, 256, 256);
    a.up = matrix_of((kind){MOE_E4M3FN, MOE_F32, 0, 0}, 256, 256);
    expect_no(&a, MOE_E_DTYPE, "up.scale.dtype = f32, scale_k = 0", "gate's f32, 128");
    a.up = matrix_of((kind){MOE_E4M3FN, MOE_BF16, 128, 64}, 256, 256); /* packed alike */
    expect_fine(&a);
    a.up = matrix_of(Q8, 256, 256);
    expect_no(&a, MOE_E_DTYPE, "up.weights.dtype = q8_0", "gate's e4m3fn");
}

static void test_no_gate(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(TABLE); i++) {
        moe_experts_args a = args_of(TABLE[i].is, TABLE[i].is, 512, 256);
        size_t with, without;
        assert_int_equal(moe_experts_bytes(NULL, &a, &with), MOE_OK);
        memset(&a.gate, 0, sizeof a.gate);
        assert_int_equal(moe_experts_bytes(NULL, &a, &without), MOE_OK);
        assert_true(without < with);
    }
    moe_experts_args a = args_of(BF16, PLAIN, 96, 64);
    a.gate.weights.dtype = MOE_DTYPE_NONE;
    expect_no(&a, MOE_E_NULL_ARG, "gate.weights.dtype = none", "required with gate.scale");
    a.gate.scale.dtype = MOE_DTYPE_NONE;
    a.gate.bias.dtype = MOE_F32;
    expect_no(&a, MOE_E_NULL_ARG, "gate.weights.dtype = none", "required with gate.bias");
    a.gate.bias.dtype = MOE_DTYPE_NONE;
    a.gate.row_scale.dtype = MOE_F32;
    expect_no(&a, MOE_E_NULL_ARG, "gate.weights.dtype = none", "required with gate.row_scale");
    a.gate.row_scale.dtype = MOE_DTYPE_NONE;
    a.gate.scale_k = 32;
    expect_no(&a, MOE_E_NULL_ARG, "gate.weights.dtype = none", "gate.scale_k");
    a.gate.scale_k = 0;
    a.gate.scale_rows = 1;
    expect_no(&a, MOE_E_NULL_ARG, "gate.weights.dtype = none", "gate.scale_rows");
    a.gate.scale_rows = 0;
    expect_fine(&a);
    a.up.weights.dtype = MOE_DTYPE_NONE;
    expect_no(&a, MOE_E_NULL_ARG, "up.weights.dtype = none", "required");
}

/* Strides: of pairs 1, of blocks any that keeps them apart. */
static void test_strides(void **state)
{
    (void)state;
    moe_experts_args a = args_of(INT4, Q8, 256, 64);
    a.up.weights.column_stride = 2;
    expect_no(&a, MOE_E_VALUE, "up.weights.column_stride = 2", "must be 1 with int4_x2");
    a.up.weights.column_stride = 1;
    a.down.weights.column_stride = 33;
    expect_no(&a, MOE_E_VALUE, "down.weights.column_stride = 33", "at least 34");
    a.down.weights.column_stride = 35;
    a.down.weights.row_stride = 71;
    expect_fine(&a);
    a.down.weights.row_stride = 33;
    expect_no(&a, MOE_E_VALUE, "down.weights.row_stride = 33", "at least 34");
    a.down.weights.row_stride = INT64_MAX / 4;
    expect_no(&a, MOE_E_OVERFLOW, "down.weights", "do not fit");
    a.down.weights.row_stride = 71;
    a.up.scale.column_stride = 1;
    expect_no(&a, MOE_E_VALUE, "up.scale.column_stride = 1", "at least 2");
    moe_experts_args one = args_of((kind){MOE_E4M3FN, MOE_F32, 128, 96}, PLAIN, 64, 96);
    one.up.scale.row_stride = INT64_MAX / 4 * 4; /* to a row that is not there */
    expect_fine(&one);
    one.up.scale_rows = 95;
    expect_no(&one, MOE_E_OVERFLOW, "up.scale", "do not fit");
    a.up.scale.column_stride = 5;
    expect_no(&a, MOE_E_ALIGN, "up.scale.column_stride = 5", "2 bytes");
}

/* A grid has as many elements as it says, and no more are read; blocks lie at any byte. */
static void test_data(void **state)
{
    (void)state;
    moe_experts_args a = args_of(GRID, Q8, 300, 32);
    moe_array *arrays[] = {&a.gate.weights, &a.gate.scale, &a.up.weights, &a.up.scale,
                           &a.down.weights};
    static const size_t rows[] = {32, 1, 32, 1, 300};
    void *memory[COUNT(arrays)];
    moe_experts *x;
    for (size_t i = 0; i < COUNT(arrays); i++) {
        size_t odd = i == 4, bytes = (size_t)arrays[i]->row_stride * rows[i] * 2 + odd;
        memory[i] = malloc(bytes);
        assert_non_null(memory[i]);
        memset(memory[i], 0x11, bytes);
        arrays[i]->data = (char *)memory[i] + odd;
    }
    assert_int_equal(a.gate.scale.row_stride, 3 * sizeof(float));
    if (moe_experts_create(NULL, &a, &x) != MOE_OK) fail_msg("%s", moe_last_error());
    assert_int_equal(moe_experts_destroy(x), MOE_OK);
    a.up.scale.data = (char *)memory[3] + 1;
    assert_int_equal(moe_experts_create(NULL, &a, &x), MOE_E_ALIGN);
    assert_non_null(strstr(moe_last_error(), "up.scale.data"));
    for (size_t i = 0; i < COUNT(arrays); i++) free(memory[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),     cmocka_unit_test(test_k_and_sizes),
        cmocka_unit_test(test_row_scale), cmocka_unit_test(test_alike),
        cmocka_unit_test(test_no_gate),   cmocka_unit_test(test_strides),
        cmocka_unit_test(test_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

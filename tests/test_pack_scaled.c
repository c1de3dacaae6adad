/* SPDX-License-Identifier: Apache-2.0 */
/* test_pack_scaled.c - weights with scales of blocks: every weight of a packed panel, read as
 * src/kernel.h says, is the checkpoint's, from every layout, in memory or fetched, and no byte of a
 * panel is left as it was. */
#define _POSIX_C_SOURCE 200809L
#include "expect.h"

#include "experts.h"
#include "source.h"
#include "weights_ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- packing --------------------------------------------------------------------------------- */

static unsigned char before; /* what memory holds before it is packed to */

static void *allocate(size_t bytes, size_t alignment, void *user)
{
    (void)user;
    void *memory = NULL;
    return posix_memalign(&memory, alignment, bytes) == 0 ? memset(memory, before, bytes) : NULL;
}

static void release(void *memory, size_t bytes, void *user)
{
    (void)bytes;
    (void)user;
    free(memory);
}

static moe_array *arrays_of(moe_experts_args *a, size_t i)
{
    moe_matrix *m = i / 4 == 0 ? &a->gate : i / 4 == 1 ? &a->up : &a->down;
    moe_array *arrays[] = {&m->weights, &m->scale, &m->bias, &m->row_scale};
    return arrays[i % 4];
}

static moe_status fetch(void *user, int64_t first, int64_t count, moe_experts_args *part)
{
    moe_experts_args all = *(const moe_experts_args *)user;
    (void)count;
    for (size_t i = 0; i < 3 * 4; i++) {
        moe_array *a = arrays_of(&all, i), *p = arrays_of(part, i);
        *p = *a;
        if (a->experts != NULL) p->experts = a->experts + first;
        if (a->data != NULL) p->data = (const char *)a->data + first * a->expert_stride;
    }
    return MOE_OK;
}

static moe_experts *pack(const source *s, bool fetched, unsigned char fill)
{
    moe_context *context;
    moe_context_options options = moe_context_options_init();
    moe_experts_args args = s->args;
    moe_experts *x;
    size_t bytes = 0;
    options.allocate = allocate;
    options.release = release;
    options.threads = fetched ? 2 : 1;
    before = fill;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    if (fetched) {
        for (size_t i = 0; i < 3 * 4; i++) {
            arrays_of(&args, i)->data = NULL;
            arrays_of(&args, i)->experts = NULL;
        }
        args.fetch = fetch;
        args.fetch_user = (void *)(uintptr_t)&s->args;
        args.fetch_count = 2;
    }
    if (moe_experts_create(context, &args, &x) != MOE_OK ||
        moe_experts_bytes(context, &args, &bytes) != MOE_OK)
        fail_msg("%s", moe_last_error());
    assert_int_equal(bytes, x->bytes);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
    return x;
}

/* ---- what panels hold ------------------------------------------------------------------------ */

static bool same(double a, double b)
{
    return isnan(a) ? isnan(b) : a == b;
}

/* A half that begins with row `row` of a matrix. */
static void expect_half(const source *s, const kernel_panel *p, size_t half, size_t matrix,
                        size_t e, size_t row)
{
    const source_spec *spec = &s->spec;
    const moe_matrix *m = matrix == SOURCE_GATE ? &s->args.gate
                          : matrix == SOURCE_UP ? &s->args.up
                                                : &s->args.down;
    size_t rows = (size_t)(matrix == SOURCE_DOWN ? spec->H : spec->I),
           terms = (size_t)(matrix == SOURCE_DOWN ? spec->I : spec->H);
    bool scaled = source_is_scaled(spec, matrix);
    moe_dtype scale = scaled ? spec->row_scale : spec->scale;
    assert_int_equal(p->k, scaled ? (terms + 31) / 32 * 32 : terms + terms % 2);
    assert_int_equal(kernel_is_scaled(p->format), scaled);
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        for (size_t k = 0; k < p->k; k++) {
            double got = weights_ref_packed(p, half, r, k), want = 0;
            if (row + r < rows && k < terms) want = weights_ref_value(m, e, row + r, k);
            if (row + r >= rows || k >= terms) assert_int_equal(weights_ref_code(p, half, r, k), 0);
            if (k >= terms && isnan(got)) continue; /* a zero code with the scale of terms before */
            if (!same(got, want))
                fail_msg("%s layout %d H %d I %d matrix %zu expert %zu row %zu k %zu: %a, not %a",
                         moe_dtype_name(m->weights.dtype), (int)spec->layout, (int)spec->H,
                         (int)spec->I, matrix, e, row + r, k, got, want);
        }
        float want = row + r < rows ? source_scale(spec, matrix, e, row + r) : 0.0f;
        assert_int_equal(p->rows[half].scale != NULL, scale != MOE_DTYPE_NONE);
        if (scale != MOE_DTYPE_NONE) assert_memory_equal(&p->rows[half].scale[r], &want, 4);
        want = row + r < rows ? source_bias(spec, matrix, e, row + r) : 0.0f;
        assert_int_equal(p->rows[half].bias != NULL, spec->bias != MOE_DTYPE_NONE);
        if (spec->bias != MOE_DTYPE_NONE) assert_memory_equal(&p->rows[half].bias[r], &want, 4);
    }
}

static void expect_holds(const source *s, const moe_experts *x)
{
    const source_spec *spec = &s->spec;
    const pack_layout *l = &x->layout;
    moe_experts_info info = {.struct_size = sizeof info};
    assert_int_equal(moe_experts_describe(x, &info), MOE_OK);
    assert_int_equal(info.has_gate, !spec->ungated);
    assert_int_equal(info.gate_up, spec->gate_up);
    assert_int_equal(info.down, spec->down);
    assert_int_equal(info.expert_bytes, l->bytes);
    size_t each = spec->ungated ? 2 * KERNEL_ROWS : KERNEL_ROWS;
    assert_int_equal(l->gate_up_panels, (x->mid_k[0] + each - 1) / each);
    assert_int_equal(l->down_panels, ((size_t)spec->H + 31) / 32);
    for (size_t e = 0; e < x->E_L; e++) {
        const uint8_t *end = x->base + e * l->bytes;
        for (size_t n = 0; n < l->gate_up_panels + l->down_panels; n++) {
            bool down = n >= l->gate_up_panels;
            size_t i = down ? n - l->gate_up_panels : n, rows = 0;
            kernel_panel p = down ? experts_down(x, e, i) : experts_gate_up(x, e, i);
            assert_ptr_equal(p.stream, end);
            if (!down && !spec->ungated) {
                assert_int_equal(p.halves, 2);
                expect_half(s, &p, 0, SOURCE_GATE, e, i * KERNEL_ROWS);
                expect_half(s, &p, 1, SOURCE_UP, e, i * KERNEL_ROWS);
            } else {
                size_t left = (down ? (size_t)spec->H : x->mid_k[e]) - i * 2 * KERNEL_ROWS;
                assert_int_equal(p.halves, left > KERNEL_ROWS ? 2 : 1);
                for (size_t half = 0; half < p.halves; half++)
                    expect_half(s, &p, half, down ? SOURCE_DOWN : SOURCE_UP, e,
                                (2 * i + half) * KERNEL_ROWS);
            }
            for (size_t half = 0; half < p.halves; half++)
                rows += (size_t)(p.rows[half].scale != NULL) + (p.rows[half].bias != NULL);
            end = p.stream + kernel_panel_bytes(p.format, p.halves, p.k) +
                  rows * KERNEL_ROWS * sizeof(float);
        }
        assert_ptr_equal(end, x->base + (e + 1) * l->bytes);
    }
}

static void expect_source(const source_spec *spec)
{
    source s;
    source_make(&s, spec);
    moe_experts *x = pack(&s, false, 0xA5), *y = pack(&s, true, 0x3C);
    expect_holds(&s, x);
    assert_memory_equal(x->base, y->base, x->E_L * x->layout.bytes); /* all of it was written */
    assert_int_equal(moe_experts_destroy(x), MOE_OK);
    assert_int_equal(moe_experts_destroy(y), MOE_OK);
    source_free(&s);
}

/* ---- formats, shapes and layouts ------------------------------------------------------------- */

static const struct format {
    moe_dtype dtype;
    int32_t k; /* H and I are multiples of it */
    bool mx;
    moe_dtype block_scale;
    int32_t scale_k, scale_rows;
} FORMATS[] = {
    {.dtype = MOE_E4M3FN, .k = 1, .scale_rows = 128},
    {.dtype = MOE_E4M3FN, .k = 1, .scale_rows = 1, .block_scale = MOE_BF16},
    {.dtype = MOE_E4M3FN, .k = 1, .scale_rows = 7, .block_scale = MOE_F16},
    {.dtype = MOE_E4M3FN, .k = 32, .mx = true},
    {.dtype = MOE_E2M1_X2, .k = 32, .mx = true},
    {.dtype = MOE_E2M1_X2, .k = 16},
    {.dtype = MOE_INT4_X2, .k = 32},
    {.dtype = MOE_INT4_X2, .k = 64, .scale_k = 64},
    {.dtype = MOE_INT4_X2, .k = 128, .scale_k = 128},
    {.dtype = MOE_INT4_X2, .k = 32, .block_scale = MOE_F16},
    {.dtype = MOE_INT4_X2, .k = 64, .scale_k = 64, .block_scale = MOE_F16},
    {.dtype = MOE_INT4_X2, .k = 128, .scale_k = 128, .block_scale = MOE_F16},
    {.dtype = MOE_Q8_0, .k = 32},
    {.dtype = MOE_Q4_0, .k = 32},
    {.dtype = MOE_Q4_K, .k = 256},
    {.dtype = MOE_Q5_K, .k = 256},
    {.dtype = MOE_Q6_K, .k = 256},
    {.dtype = MOE_GGML_MXFP4, .k = 32},
    {.dtype = MOE_GGML_NVFP4, .k = 64},
};

static source_spec spec_of(const struct format *f, int64_t H, int64_t I)
{
    return (source_spec){.gate_up = f->dtype,
                         .down = f->dtype,
                         .mx = f->mx,
                         .block_scale = f->block_scale,
                         .scale_k = f->scale_k,
                         .scale_rows = f->scale_rows,
                         .E_L = 1,
                         .H = H,
                         .I = I};
}

/* One k of the format, odd numbers of them, more than a run of panels and a span of lines. */
static void test_shapes(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {3, 2}, {2, 9}, {17, 1}, {1, 18}, {5, 3}};
    (void)state;
    for (size_t f = 0; f < COUNT(FORMATS); f++)
        for (size_t i = 0; i < COUNT(shapes); i++) {
            int64_t k = FORMATS[f].k, unit = k >= 128 ? 1 : k >= 32 ? 2 : 31;
            source_spec spec = spec_of(&FORMATS[f], shapes[i][0] * k, shapes[i][1] * k);
            if (spec.H * spec.I > 400000) continue;
            if (i % 2) spec.I *= unit;
            spec.H *= unit;
            spec.seed = f * 100 + i;
            spec.ungated = i % 3 == 1;
            spec.row_scale = i % 2 ? MOE_F32 : MOE_DTYPE_NONE;
            spec.one_scale = i % 4 == 1;
            spec.bias = i % 3 == 0 ? MOE_BF16 : MOE_DTYPE_NONE;
            expect_source(&spec);
        }
}

static void test_layouts(void **state)
{
    (void)state;
    for (size_t f = 0; f < COUNT(FORMATS); f++)
        for (int layout = 0; layout < SOURCE_OPERATOR; layout++) {
            int64_t k = FORMATS[f].k;
            source_spec spec = spec_of(&FORMATS[f], k == 1 ? 197 : k * 3, k == 1 ? 131 : k);
            if (k <= 32) spec.H += k;
            spec.layout = (source_layout)layout;
            spec.E_L = 3;
            spec.ungated = layout % 2 == (int)f % 2 && layout != SOURCE_INTERLEAVED;
            spec.row_scale = layout % 3 == 0 ? MOE_BF16 : MOE_DTYPE_NONE;
            expect_source(&spec);
        }
}

/* Down is of another kind than gate and up, scaled or plain. */
static void test_mixed(void **state)
{
    static const struct {
        moe_dtype gate_up, down;
        bool mx;
        int64_t H, I;
    } cases[] = {
        {MOE_Q4_K, MOE_Q6_K, false, 512, 256},        {MOE_Q4_K, MOE_Q8_0, false, 256, 96},
        {MOE_BF16, MOE_Q4_0, false, 37, 64},          {MOE_Q5_K, MOE_F32, false, 256, 31},
        {MOE_INT4_X2, MOE_F16, false, 96, 17},        {MOE_E4M3FN, MOE_E2M1_X2, false, 33, 48},
        {MOE_E2M1_X2, MOE_BF16, true, 64, 50},        {MOE_F16, MOE_E4M3FN, true, 49, 32},
        {MOE_GGML_MXFP4, MOE_INT4_X2, true, 32, 160}, {MOE_GGML_MXFP4, MOE_BF16, false, 64, 7},
        {MOE_F32, MOE_GGML_NVFP4, false, 19, 64},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int ungated = 0; ungated < 2; ungated++)
            expect_source(&(source_spec){.seed = i,
                                         .gate_up = cases[i].gate_up,
                                         .down = cases[i].down,
                                         .mx = cases[i].mx,
                                         .ungated = ungated,
                                         .E_L = 2,
                                         .H = cases[i].H,
                                         .I = cases[i].I,
                                         .row_scale = MOE_F16,
                                         .scale = MOE_F32});
}

/* Plain experts without a gate, and coded ones. */
static void test_ungated(void **state)
{
    static const int64_t sizes[][2] = {{1, 1}, {2, 16}, {40, 17}, {33, 32}, {64, 47}, {96, 560}};
    (void)state;
    for (size_t i = 0; i < COUNT(sizes); i++) {
        source_spec spec = {.seed = i,
                            .gate_up = MOE_BF16,
                            .down = MOE_BF16,
                            .ungated = true,
                            .layout = i % 2 ? SOURCE_TRANSPOSED : SOURCE_DENSE,
                            .E_L = 2,
                            .H = sizes[i][0],
                            .I = sizes[i][1],
                            .scale = i % 3 ? MOE_F32 : MOE_DTYPE_NONE,
                            .bias = i % 2 ? MOE_F16 : MOE_DTYPE_NONE};
        expect_source(&spec);
    }
}

/* ---- speed ----------------------------------------------------------------------------------- */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Source bytes that one thread packs in a second, dense and in cache. */
static int bench(void)
{
    printf("weights      scale    k   GB/s\n");
    for (size_t f = 0; f < COUNT(FORMATS); f++) {
        source s;
        source_spec spec = spec_of(&FORMATS[f], 1024, 512);
        double best = 1e9;
        source_make(&s, &spec);
        for (int turn = 0; turn < 20; turn++) {
            moe_experts *x;
            double start = seconds();
            if (moe_experts_create(NULL, &s.args, &x) != MOE_OK) return 1;
            double taken = seconds() - start;
            best = taken < best ? taken : best;
            moe_experts_destroy(x);
        }
        printf("%-12s %-7s %3d  %5.2f\n", moe_dtype_name(spec.gate_up),
               moe_dtype_name(s.args.up.scale.dtype), (int)s.args.up.scale_k,
               (double)s.bytes / best * 1e-9);
        source_free(&s);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--bench") == 0) return bench();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_ungated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

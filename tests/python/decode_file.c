/* SPDX-License-Identifier: Apache-2.0 */
/* decode_file.c - decode_file FILE...: weights of a file, packed and computed with, against the values
 * that the file says they have (test_decode.py, whose decoders are not ours).
 *
 * A line "weights scale scale_k scale_rows rows k what", weights and scale being names of element
 * types; the bytes of the weights [rows, k] and of the scales, dense; rows * k doubles: the weights'
 * values.  what: `packed`, panels are read as src/kernel.h says; `computed`, the products with unit
 * vectors too, of rows without infinities and NaNs, on every ISA level.
 *
 * Values are compared exactly: as doubles, or with `packed32`, `computed32` as floats, which is what
 * some decoders round to.  A NaN is any NaN. */
#include "experts.h"
#include "weights_ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct given {
    const char *path;
    moe_dtype weights, scale;
    int scale_k, scale_rows;
    size_t rows, k;
    char what[16];
    void *weight_bytes, *scale_bytes;
    double *value;
} given;

static _Noreturn void fail(const given *g, const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", g->path, what, moe_last_error());
    exit(1);
}

/* ---- the file -------------------------------------------------------------------------------- */

static moe_dtype dtype_of(const given *g, const char *name)
{
    for (int d = MOE_DTYPE_NONE; d < MOE_DTYPE_COUNT; d++)
        if (strcmp(moe_dtype_name((moe_dtype)d), name) == 0) return (moe_dtype)d;
    fail(g, "an unknown type");
}

static void *read_bytes(const given *g, FILE *f, size_t bytes)
{
    void *memory = malloc(bytes + 1);
    if (memory == NULL || fread(memory, 1, bytes, f) != bytes) fail(g, "too short");
    return memory;
}

/* A matrix of rows [first, first + rows). */
static moe_matrix matrix_of(const given *g, size_t first, size_t rows)
{
    moe_matrix m;
    memset(&m, 0, sizeof m);
    m.scale_k = g->scale_k;
    m.scale_rows = g->scale_rows;
    m.weights = moe_array_dense(g->weight_bytes, g->weights, (int64_t)rows, (int64_t)g->k);
    m.weights.data = (const char *)g->weight_bytes + first * (size_t)m.weights.row_stride;
    if (g->scale == MOE_DTYPE_NONE) return m;
    size_t step = g->scale == MOE_E8M0 ? 32 : (size_t)g->scale_k, grid = rows;
    if (g->scale_rows > 0) {
        grid = (rows + (size_t)g->scale_rows - 1) / (size_t)g->scale_rows;
        first /= (size_t)g->scale_rows;
    }
    m.scale = moe_array_dense(g->scale_bytes, g->scale, (int64_t)grid,
                              (int64_t)((g->k + step - 1) / step));
    m.scale.data = (const char *)g->scale_bytes + first * (size_t)m.scale.row_stride;
    return m;
}

static void read_file(given *g)
{
    FILE *f = fopen(g->path, "rb");
    char weights[16], scale[16];
    if (f == NULL ||
        fscanf(f, "%15s %15s %d %d %zu %zu %15s", weights, scale, &g->scale_k, &g->scale_rows,
               &g->rows, &g->k, g->what) != 7 ||
        fgetc(f) != '\n')
        fail(g, "no first line");
    g->weights = dtype_of(g, weights);
    g->scale = dtype_of(g, scale);
    moe_matrix m = matrix_of(g, 0, g->rows);
    g->weight_bytes = read_bytes(g, f, (size_t)m.weights.expert_stride);
    g->scale_bytes = read_bytes(g, f, (size_t)m.scale.expert_stride);
    g->value = read_bytes(g, f, g->rows * g->k * sizeof *g->value);
    if (fgetc(f) != EOF) fail(g, "too long");
    fclose(f);
}

/* ---- what is packed -------------------------------------------------------------------------- */

static void expect(const given *g, const char *what, double got, double want, size_t row, size_t k)
{
    if (strstr(g->what, "32") != NULL) got = (double)(float)got;
    if (isnan(got) ? isnan(want) : got == want) return;
    fprintf(stderr, "%s: %s: row %zu, k %zu: %a, not %a\n", g->path, what, row, k, got, want);
    exit(1);
}

/* As gate and up, and as down; the other is plain. */
static void check_packed(const given *g)
{
    for (int down = 0; down < 2; down++) {
        moe_experts_args a = moe_experts_args_init();
        moe_experts *x;
        a.E_L = 1;
        a.H = (int64_t)(down ? g->rows : g->k);
        a.I = (int64_t)(down ? g->k : g->rows);
        void *zeros = calloc(g->rows * g->k, 1);
        moe_matrix m = matrix_of(g, 0, g->rows), plain;
        memset(&plain, 0, sizeof plain);
        plain.weights = moe_array_dense(zeros, MOE_E4M3FN, (int64_t)g->k, (int64_t)g->rows);
        a.gate = a.up = down ? plain : m;
        a.down = down ? m : plain;
        if (moe_experts_create(NULL, &a, &x) != MOE_OK) fail(g, "moe_experts_create");
        for (size_t row = 0; row < g->rows; row++)
            for (size_t half = 0; half < (down ? 1u : 2u); half++) {
                size_t rows = down ? 2 * KERNEL_ROWS : KERNEL_ROWS;
                kernel_panel p =
                    down ? experts_down(x, 0, row / rows) : experts_gate_up(x, 0, row / rows);
                size_t at = down ? row % rows / KERNEL_ROWS : half;
                for (size_t k = 0; k < g->k; k++)
                    expect(g, down ? "packed, down" : "packed, gate and up",
                           weights_ref_packed(&p, at, row % KERNEL_ROWS, k),
                           g->value[row * g->k + k], row, k);
            }
        free(zeros);
        moe_experts_destroy(x);
    }
}

/* ---- what is computed ------------------------------------------------------------------------ */

enum { ROWS = 64, TOKENS = 128 };

/* As a sum in f32 with products that underflow to zero. */
static double rounded(double v)
{
    float f = (float)v;
    return fabsf(f) < 0x1p-126f ? 0.0 : (double)f;
}

static bool is_finite(const given *g, size_t row)
{
    for (size_t k = 0; k < g->k; k++)
        if (!isfinite(g->value[row * g->k + k])) return false;
    return true;
}

/* Expert e makes of any hidden row the intermediate that is 1 at e and 0 elsewhere: gate and up have
 * no weights but biases. */
static void compute_rows(const given *g, const char *isa, size_t first, size_t rows)
{
    static const float one = 1;
    moe_context *context;
    moe_context_options options = moe_context_options_init();
    moe_experts_args a = moe_experts_args_init();
    moe_experts *x;
    float *unit = calloc(g->k * g->k, sizeof *unit),
          *hidden = calloc(TOKENS * rows, sizeof *hidden), *y = calloc(TOKENS * rows, sizeof *y);
    int32_t index[TOKENS];
    void *zeros = calloc(rows * g->k, 1);
    for (size_t e = 0; e < g->k; e++) unit[e * g->k + e] = 1;
    a.E_L = a.I = (int64_t)g->k;
    a.H = (int64_t)rows;
    a.gate.weights = moe_array_dense(zeros, MOE_E4M3FN, a.I, a.H);
    a.gate.weights.expert_stride = 0;
    a.up.weights = a.gate.weights;
    a.gate.bias = (moe_array){.dtype = MOE_F32, .data = &one};
    a.up.bias = moe_array_dense(unit, MOE_F32, a.I, 1);
    a.down = matrix_of(g, first, rows);
    a.down.weights.expert_stride = a.down.scale.expert_stride = 0;
    options.isa = isa;
    options.threads = 1;
    if (moe_context_create(&options, &context) != MOE_OK ||
        moe_experts_create(context, &a, &x) != MOE_OK)
        fail(g, "moe_experts_create");
    for (size_t k = 0; k < g->k; k += TOKENS) {
        int64_t T = (int64_t)(g->k - k < TOKENS ? g->k - k : TOKENS);
        moe_tensor h = moe_tensor_2d(hidden, MOE_F32, T, a.H),
                   i = moe_tensor_2d(index, MOE_I32, T, 1);
        moe_tkg_args call = moe_tkg_args_init();
        for (size_t t = 0; t < TOKENS; t++) index[t] = (int32_t)(k + t);
        call.hidden_input = &h;
        call.expert_index = &i;
        call.activation_fn = MOE_RELU;
        call.experts = x;
        if (moe_tkg(context, &call, y, TOKENS * rows * sizeof *y) != MOE_OK) fail(g, "moe_tkg");
        for (size_t row = 0; row < rows; row++)
            for (size_t t = 0; t < (size_t)T && is_finite(g, first + row); t++)
                expect(g, isa, (double)y[t * rows + row],
                       rounded(g->value[(first + row) * g->k + k + t]), first + row, k + t);
    }
    moe_experts_destroy(x);
    moe_context_destroy(context);
    free(zeros);
    free(y);
    free(hidden);
    free(unit);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        given g = {.path = argv[i]};
        read_file(&g);
        check_packed(&g);
        for (size_t level = 0; g.what[0] == 'c' && moe_isa_level(level) != NULL; level++)
            for (size_t row = 0; row < g.rows; row += ROWS)
                compute_rows(&g, moe_isa_level(level), row,
                             g.rows - row < ROWS ? g.rows - row : ROWS);
        free(g.value);
        free(g.scale_bytes);
        free(g.weight_bytes);
    }
    return 0;
}

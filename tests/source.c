/* SPDX-License-Identifier: Apache-2.0 */
#include "source.h"

#include "layer.h"

#include <stdlib.h>
#include <string.h>

/* ---- values ---------------------------------------------------------------------------------- */

static uint64_t random_of(const source_spec *s, size_t what, size_t e, size_t row, size_t k)
{
    return layer_random(s->seed * 131 + what, e << 32 | row, k);
}

size_t source_bits(moe_dtype dtype)
{
    switch (dtype) {
    case MOE_F32: return 32;
    case MOE_BF16:
    case MOE_F16: return 16;
    case MOE_E2M1_X2:
    case MOE_INT4_X2:
    case MOE_MXFP4_X4: return 4;
    default: return 8;
    }
}

static moe_dtype weights_of(const source_spec *s, size_t matrix)
{
    return matrix == SOURCE_DOWN ? s->down : s->gate_up;
}

uint32_t source_code(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    if (s->code != NULL) return s->code(s, matrix, e, row, k);
    return (uint32_t)(random_of(s, matrix, e, row, k) >> 7) &
           (uint32_t)((1ull << source_bits(weights_of(s, matrix))) - 1);
}

uint8_t source_block_scale(const source_spec *s, size_t matrix, size_t e, size_t row, size_t block)
{
    return (uint8_t)(random_of(s, 3 + matrix, e, row, block) >> 5);
}

/* Small integers, which every float type has. */
float source_scale(const source_spec *s, size_t matrix, size_t e, size_t row)
{
    return (float)(random_of(s, 6 + matrix, e, s->one_scale ? 0 : row, 0) % 64 + 1);
}

float source_bias(const source_spec *s, size_t matrix, size_t e, size_t row)
{
    return (float)(random_of(s, 9 + matrix, e, row, 0) % 64) - 32.0f;
}

size_t source_lanes(const source_spec *s)
{
    if (!s->mx || s->layout != SOURCE_OPERATOR) return (size_t)s->I;
    return ((size_t)s->I + 511) / 512 * (size_t)s->lanes_p * 4;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void *take(source *s, size_t bytes)
{
    void *block = s->arrays < SOURCE_ARRAYS ? malloc(bytes) : NULL;
    if (block == NULL) abort();
    memset(block, 0x5A, bytes);
    s->array[s->arrays++] = block;
    s->bytes += bytes;
    return block;
}

static void put_float(void *at, moe_dtype dtype, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    uint16_t half = (uint16_t)(bits >> 16);
    if (dtype == MOE_F16) /* small integers only */
        half = (uint16_t)((bits >> 16 & 0x8000u) |
                          (v == 0 ? 0 : ((bits >> 23 & 255u) - 112) << 10 | (bits >> 13 & 1023u)));
    if (dtype == MOE_F32)
        memcpy(at, &v, sizeof v);
    else
        memcpy(at, &half, sizeof half);
}

/* ---- matrices -------------------------------------------------------------------------------- */

/* The strides of an array in units, and the units of an expert's memory before gate's or up's. */
typedef struct place {
    size_t expert, row, column, up;
} place;

static place place_of(source_layout layout, bool down, size_t rows, size_t columns)
{
    size_t both = down ? 1 : 2;
    switch (layout) {
    case SOURCE_FUSED: return (place){both * rows * columns, columns, 1, rows * columns};
    case SOURCE_INTERLEAVED: return (place){both * rows * columns, both * columns, 1, columns};
    case SOURCE_TRANSPOSED: return (place){rows * columns, 1, rows, 0};
    case SOURCE_TRANSPOSED_FUSED: return (place){both * rows * columns, 1, both * rows, rows};
    case SOURCE_TRANSPOSED_INTERLEAVED: return (place){both * rows * columns, both, both * rows, 1};
    case SOURCE_GAPS: return (place){(rows * (2 * columns + 3) + 5) * 2, 2 * columns + 3, 2, 0};
    default: return (place){rows * columns, columns, 1, 0};
    }
}

static bool is_shared(source_layout layout)
{
    return layout == SOURCE_FUSED || layout == SOURCE_INTERLEAVED ||
           layout == SOURCE_TRANSPOSED_FUSED || layout == SOURCE_TRANSPOSED_INTERLEAVED;
}

static bool is_pair(moe_dtype dtype)
{
    return dtype == MOE_E2M1_X2 || dtype == MOE_INT4_X2;
}

static bool is_blocks(moe_dtype dtype)
{
    return dtype >= MOE_Q8_0 && dtype <= MOE_GGML_NVFP4;
}

/* Two codes of 4 bits are one unit, and stay neighbours. */
static source_layout layout_of(const source_spec *s, moe_dtype dtype)
{
    if (!is_pair(dtype)) return s->layout;
    if (s->layout == SOURCE_TRANSPOSED) return SOURCE_DENSE;
    if (s->layout == SOURCE_TRANSPOSED_FUSED) return SOURCE_FUSED;
    if (s->layout == SOURCE_TRANSPOSED_INTERLEAVED) return SOURCE_INTERLEAVED;
    return s->layout;
}

/* An array without values; up shares gate's memory where the layout says so. */
static moe_array new_array(source *s, size_t matrix, moe_dtype dtype, source_layout layout,
                           size_t rows, size_t columns, const moe_array *gate)
{
    moe_array a;
    memset(&a, 0, sizeof a);
    size_t unit = moe_dtype_size(dtype), E_L = (size_t)s->spec.E_L;
    place p = place_of(layout, matrix == SOURCE_DOWN, rows, columns);
    if (is_pair(dtype) && layout == SOURCE_GAPS) p.column = 1;
    a.dtype = dtype;
    a.row_stride = (int64_t)(p.row * unit);
    a.column_stride = (int64_t)(p.column * unit);
    a.expert_stride = (int64_t)(p.expert * unit);
    if (layout == SOURCE_POINTERS) {
        void **experts = take(s, E_L * sizeof *experts);
        for (size_t e = 0; e < E_L; e++) experts[e] = take(s, rows * columns * unit);
        a.experts = (const void *const *)experts;
        a.expert_stride = -1; /* not read */
    } else if (matrix == SOURCE_UP && is_shared(layout) && !s->spec.ungated) {
        a.data = (const char *)gate->data + p.up * unit;
    } else {
        a.data = take(s, E_L * p.expert * unit);
    }
    return a;
}

static void *element(const moe_array *a, size_t e, size_t row, size_t column)
{
    const char *base =
        a->experts != NULL ? a->experts[e] : (const char *)a->data + e * (size_t)a->expert_stride;
    return (void *)(uintptr_t)(base + row * (size_t)a->row_stride +
                               column * (size_t)a->column_stride);
}

static void fill_weights(const source *s, size_t matrix, const moe_array *a, size_t rows, size_t k)
{
    size_t bits = source_bits(a->dtype);
    for (size_t e = 0; e < (size_t)s->spec.E_L; e++)
        for (size_t row = 0; row < rows; row++)
            for (size_t i = 0; i < k; i += bits == 4 ? 2 : 1) {
                uint32_t code = source_code(&s->spec, matrix, e, row, i);
                if (bits == 4) code |= source_code(&s->spec, matrix, e, row, i + 1) << 4;
                memcpy(element(a, e, row, bits == 4 ? i / 2 : i), &code, bits == 4 ? 1 : bits / 8);
            }
}

static void fill_rows(const source *s, size_t matrix, const moe_array *a, size_t rows,
                      float (*value)(const source_spec *, size_t, size_t, size_t))
{
    for (size_t e = 0; e < (size_t)s->spec.E_L; e++)
        for (size_t row = 0; row < rows; row++)
            put_float(element(a, e, row, 0), a->dtype, value(&s->spec, matrix, e, row));
}

/* Element [row, column] of every expert: random bytes. */
static void fill_bytes(const source *s, size_t what, const moe_array *a, size_t rows,
                       size_t columns)
{
    size_t bytes = moe_dtype_size(a->dtype);
    for (size_t e = 0; e < (size_t)s->spec.E_L; e++)
        for (size_t row = 0; row < rows; row++)
            for (size_t n = 0; n < columns; n++) {
                char *at = element(a, e, row, n);
                for (size_t i = 0; i < bytes; i++)
                    at[i] = (char)(random_of(&s->spec, what, e, row, n * bytes + i) >> 9);
            }
}

/* The scales of blocks that lie beside the weights. */
typedef struct scales {
    moe_dtype dtype; /* none: there are none */
    int32_t k, rows;
} scales;

static scales scales_of(const source_spec *s, moe_dtype weights)
{
    if (is_blocks(weights)) return (scales){MOE_DTYPE_NONE, 0, 0};
    if (weights == MOE_INT4_X2)
        return (scales){s->block_scale == MOE_DTYPE_NONE ? MOE_BF16 : s->block_scale,
                        s->scale_k == 0 ? 32 : s->scale_k, 0};
    if (s->mx && (weights == MOE_E2M1_X2 || weights == MOE_E4M3FN))
        return (scales){MOE_E8M0, 32, 0};
    if (weights == MOE_E2M1_X2) return (scales){MOE_E4M3FN, 16, 0};
    if (weights == MOE_E4M3FN && s->scale_rows > 0)
        return (scales){s->block_scale == MOE_DTYPE_NONE ? MOE_F32 : s->block_scale, 128,
                        s->scale_rows};
    return (scales){MOE_DTYPE_NONE, 0, 0};
}

bool source_is_scaled(const source_spec *s, size_t matrix)
{
    moe_dtype weights = weights_of(s, matrix);
    return is_blocks(weights) || scales_of(s, weights).dtype != MOE_DTYPE_NONE;
}

static void make_block_scales(source *s, size_t matrix, moe_matrix *m, const moe_matrix *gate,
                              size_t rows, size_t k)
{
    const source_spec *spec = &s->spec;
    scales b = scales_of(spec, m->weights.dtype);
    if (b.dtype == MOE_DTYPE_NONE) return;
    size_t step = (size_t)b.k, columns = (k + step - 1) / step;
    if (b.rows > 0) rows = (rows + (size_t)b.rows - 1) / (size_t)b.rows;
    m->scale = new_array(s, matrix, b.dtype, spec->layout, rows, columns, &gate->scale);
    m->scale_k = b.k == 32 && b.dtype == MOE_E8M0 && spec->seed % 2 == 0 ? 0 : b.k;
    m->scale_rows = b.rows;
    if (b.dtype != MOE_E8M0) {
        fill_bytes(s, 3 + matrix, &m->scale, rows, columns);
        return;
    }
    for (size_t e = 0; e < (size_t)spec->E_L; e++)
        for (size_t row = 0; row < rows; row++)
            for (size_t n = 0; n < columns; n++)
                *(uint8_t *)element(&m->scale, e, row, n) =
                    source_block_scale(spec, matrix, e, row, n);
}

/* The scales of rows, by the name that they have beside or without scales of blocks. */
static void make_row_scales(source *s, size_t matrix, moe_dtype dtype, moe_array *a,
                            const moe_array *gate, size_t rows)
{
    const source_spec *spec = &s->spec;
    if (dtype == MOE_DTYPE_NONE) return;
    *a = new_array(s, matrix, dtype, spec->layout, spec->one_scale ? 1 : rows, 1, gate);
    if (spec->one_scale) a->row_stride = 0;
    fill_rows(s, matrix, a, rows, source_scale);
}

static void make_matrix(source *s, size_t matrix, moe_matrix *m, const moe_matrix *gate)
{
    const source_spec *spec = &s->spec;
    bool down = matrix == SOURCE_DOWN;
    size_t rows = (size_t)(down ? spec->H : spec->I), k = (size_t)(down ? spec->I : spec->H);
    moe_dtype dtype = weights_of(spec, matrix);
    size_t columns = k / moe_dtype_k(dtype);
    m->weights = new_array(s, matrix, dtype, layout_of(spec, dtype), rows, columns, &gate->weights);
    if (is_blocks(dtype))
        fill_bytes(s, matrix, &m->weights, rows, columns);
    else
        fill_weights(s, matrix, &m->weights, rows, k);
    make_block_scales(s, matrix, m, gate, rows, k);
    if (source_is_scaled(spec, matrix))
        make_row_scales(s, matrix, spec->row_scale, &m->row_scale, &gate->row_scale, rows);
    else
        make_row_scales(s, matrix, spec->scale, &m->scale, &gate->scale, rows);
    if (spec->bias == MOE_DTYPE_NONE) return;
    m->bias = new_array(s, matrix, spec->bias, spec->layout, rows, 1, &gate->bias);
    fill_rows(s, matrix, &m->bias, rows, source_bias);
}

/* ---- the operator's tensors ------------------------------------------------------------------ */

static const moe_tensor *new_tensor(source *s, size_t which, moe_dtype dtype, int32_t rank,
                                    const int64_t *shape)
{
    size_t bytes = moe_dtype_size(dtype);
    for (int32_t i = 0; i < rank; i++) bytes *= (size_t)shape[i];
    s->tensor[which] = moe_tensor_nd(take(s, bytes), dtype, rank, shape);
    return &s->tensor[which];
}

/* Gives a matrix of plain tensors to the fillers above. */
static moe_array view(const moe_tensor *t, size_t at, size_t expert, size_t row, size_t column)
{
    size_t unit = moe_dtype_size(t->dtype);
    moe_array a = {t->dtype,
                   (const char *)t->data + at * unit,
                   NULL,
                   (int64_t)(expert * unit),
                   (int64_t)(row * unit),
                   (int64_t)(column * unit)};
    return a;
}

static void make_plain_tensors(source *s)
{
    const source_spec *p = &s->spec;
    int64_t E = p->E_L, H = p->H, I = p->I, n = p->one_scale ? 1 : I, m = p->one_scale ? 1 : H;
    const moe_tensor *gu = new_tensor(s, 0, p->gate_up, 4, (int64_t[]){E, H, 2, I}),
                     *down = new_tensor(s, 1, p->down, 3, (int64_t[]){E, I, H}), *scale[2] = {0},
                     *bias[2] = {0};
    if (p->scale != MOE_DTYPE_NONE) {
        scale[0] = new_tensor(s, 2, MOE_F32, 3, (int64_t[]){E, 2, n});
        scale[1] = new_tensor(s, 3, MOE_F32, 2, (int64_t[]){E, m});
    }
    if (p->bias != MOE_DTYPE_NONE) {
        bias[0] = new_tensor(s, 4, p->bias, 3, (int64_t[]){E, 2, I});
        bias[1] = new_tensor(s, 5, p->bias, 2, (int64_t[]){E, H});
    }
    size_t h = (size_t)H, i = (size_t)I;
    for (size_t matrix = 0; matrix < 3; matrix++) {
        bool d = matrix == SOURCE_DOWN;
        size_t rows = d ? h : i, g = d ? 0 : matrix;
        moe_array w = d ? view(down, 0, i * h, 1, h) : view(gu, g * i, h * 2 * i, 1, 2 * i);
        fill_weights(s, matrix, &w, rows, d ? i : h);
        size_t one = (size_t)(d ? m : n), both = d ? 1 : 2;
        if (scale[d] != NULL) {
            moe_array a = view(scale[d], g * one, both * one, p->one_scale ? 0 : 1, 0);
            fill_rows(s, matrix, &a, rows, source_scale);
        }
        if (bias[d] != NULL) {
            moe_array a = view(bias[d], g * rows, both * rows, 1, 0);
            fill_rows(s, matrix, &a, rows, source_bias);
        }
    }
    s->args.expert_gate_up_weights = gu;
    s->args.expert_down_weights = down;
    s->args.expert_gate_up_weights_scale = scale[0];
    s->args.expert_down_weights_scale = scale[1];
    s->args.expert_gate_up_bias = bias[0];
    s->args.expert_down_bias = bias[1];
}

static void put_code(const moe_tensor *t, size_t word, size_t q, uint32_t code)
{
    size_t unit = moe_dtype_size(t->dtype);
    char *at = (char *)(uintptr_t)t->data + word * unit;
    uint32_t w = 0;
    memcpy(&w, at, unit);
    w &= ~((unit == 2 ? 15u : 255u) << q * unit * 2);
    w |= code << q * unit * 2;
    memcpy(at, &w, unit);
}

/* Lane (tile, p, q) of the down product. */
static size_t lane(size_t tile, size_t p, size_t q, size_t lanes_p)
{
    return ((tile * (lanes_p / 8) + p / 8) * 4 + q) * 8 + p % 8;
}

static void make_x4_tensors(source *s)
{
    const source_spec *p = &s->spec;
    int64_t E = p->E_L, H = p->H, I = p->I, nH = H / 512, nI = (I + 511) / 512, P = p->lanes_p;
    const moe_tensor *gu = new_tensor(s, 0, p->gate_up, 5, (int64_t[]){E, 128, 2, nH, I}),
                     *down = new_tensor(s, 1, p->down, 4, (int64_t[]){E, P, nI, H}),
                     *gus = new_tensor(s, 2, MOE_E8M0, 5, (int64_t[]){E, 16, 2, nH, I}),
                     *ds = new_tensor(s, 3, MOE_E8M0, 4, (int64_t[]){E, P / 8, nI, H}), *gub = NULL,
                     *db = NULL;
    if (p->bias != MOE_DTYPE_NONE) {
        gub = new_tensor(s, 4, p->bias, 5, (int64_t[]){E, P, 2, nI, 4});
        db = new_tensor(s, 5, p->bias, 2, (int64_t[]){E, H});
        moe_array a = view(db, 0, (size_t)H, 1, 0);
        fill_rows(s, SOURCE_DOWN, &a, (size_t)H, source_bias);
    }
    size_t h = (size_t)H, i = (size_t)I, tiles_h = (size_t)nH, tiles = (size_t)nI,
           lanes = (size_t)P;
    for (size_t e = 0; e < (size_t)E; e++) {
        for (size_t n = 0; n < 128 * 2 * tiles_h * i; n++) { /* (p, g, tile, i) */
            size_t row = n % i, tile = n / i % tiles_h, g = n / i / tiles_h % 2,
                   part = n / i / tiles_h / 2;
            for (size_t q = 0; q < 4; q++)
                put_code(gu, e * 128 * 2 * tiles_h * i + n, q,
                         source_code(p, g, e, row, q * (h / 4) + tile * 128 + part));
        }
        for (size_t n = 0; n < 16 * 2 * tiles_h * i; n++)
            ((uint8_t *)(uintptr_t)gus->data)[e * 16 * 2 * tiles_h * i + n] = source_block_scale(
                p, n / i / tiles_h % 2, e, n % i, n / i % tiles_h * 16 + n / i / tiles_h / 2);
        for (size_t n = 0; n < lanes * tiles * h; n++) /* (p, tile, h) */
            for (size_t q = 0; q < 4; q++)
                put_code(down, e * lanes * tiles * h + n, q,
                         source_code(p, SOURCE_DOWN, e, n % h,
                                     lane(n / h % tiles, n / h / tiles, q, lanes)));
        for (size_t n = 0; n < lanes / 8 * tiles * h; n++)
            ((uint8_t *)(uintptr_t)ds->data)[e * (lanes / 8) * tiles * h + n] = source_block_scale(
                p, SOURCE_DOWN, e, n % h, n / h % tiles * (lanes / 8) + n / h / tiles);
        for (size_t n = 0; gub != NULL && n < lanes * 2 * tiles * 4; n++) { /* (p, g, tile, q) */
            size_t g = n / 4 / tiles % 2,
                   row = lane(n / 4 % tiles, n / 4 / tiles / 2, n % 4, lanes);
            put_float((char *)(uintptr_t)gub->data +
                          (e * lanes * 2 * tiles * 4 + n) * moe_dtype_size(p->bias),
                      p->bias, source_bias(p, g, e, row));
        }
    }
    s->args.expert_gate_up_weights = gu;
    s->args.expert_down_weights = down;
    s->args.expert_gate_up_weights_scale = gus;
    s->args.expert_down_weights_scale = ds;
    s->args.expert_gate_up_bias = gub;
    s->args.expert_down_bias = db;
}

/* ---- the whole ------------------------------------------------------------------------------- */

void source_make(source *s, const source_spec *spec)
{
    memset(s, 0, sizeof *s);
    s->spec = *spec;
    s->args = moe_experts_args_init();
    s->args.packing = spec->packing;
    if (spec->layout == SOURCE_OPERATOR) {
        if (spec->mx)
            make_x4_tensors(s);
        else
            make_plain_tensors(s);
        return;
    }
    s->args.E_L = spec->E_L;
    s->args.H = spec->H;
    s->args.I = spec->I;
    if (!spec->ungated) make_matrix(s, SOURCE_GATE, &s->args.gate, &s->args.gate);
    make_matrix(s, SOURCE_UP, &s->args.up, &s->args.gate);
    make_matrix(s, SOURCE_DOWN, &s->args.down, &s->args.gate);
}

void source_free(source *s)
{
    while (s->arrays > 0) free(s->array[--s->arrays]);
}

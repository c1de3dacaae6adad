/* SPDX-License-Identifier: Apache-2.0 */
/* bench_layer.c - makes the experts of a layer.  Knows nothing of how the operator is timed. */
#include "bench_layer.h"

#include "rng.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { STREAM_IMAGE = 2000, ALIGN = 64 };

/* ---- sizes --------------------------------------------------------------------------------- */

size_t bench_image_bytes(const shape *s, bench_format format)
{
    size_t bytes = 0;
    for (int m = 0; m < BENCH_MATRICES; m++)
        for (int a = 0; a < BENCH_ARRAYS; a++)
            bytes += bench_array_bytes(s, format, m, (bench_array)a);
    return bytes;
}

size_t bench_images(const shape *s, bench_format format)
{
    enum { MOST = 4, ENOUGH = 256 << 20 };
    size_t n = 1, bytes = bench_image_bytes(s, format);
    while (n < MOST && n < (size_t)s->E && (n + 1) * bytes <= ENOUGH) n++;
    return n;
}

/* ---- experts ------------------------------------------------------------------------------- */

static void fill_image(const bench_source *b, size_t i, const uint8_t *const *table)
{
    uint64_t state = rng_stream(b->seed, STREAM_IMAGE + i);
    for (int m = 0; m < BENCH_MATRICES; m++)
        for (int a = 0; a < BENCH_ARRAYS; a++)
            if (b->image[i].array[m][a])
                bench_array_fill(b->image[i].array[m][a], b->shape, b->format, m, (bench_array)a,
                                 table[m], &state);
}

typedef struct fill_job {
    const bench_source *source;
    const uint8_t *table[BENCH_MATRICES];
    atomic_size_t next;
} fill_job;

static void fill_images(void *arg, size_t thread)
{
    fill_job *j = arg;
    (void)thread;
    for (size_t i; (i = atomic_fetch_add(&j->next, 1)) < j->source->images;)
        fill_image(j->source, i, j->table);
}

/* ---- the source ---------------------------------------------------------------------------- */

moe_experts_args bench_describe(const shape *s, bench_format format)
{
    moe_experts_args args = moe_experts_args_init();
    args.E_L = s->E;
    args.H = s->H;
    args.I = s->I;
    if (format == BENCH_BF16_LOSSLESS) args.packing = MOE_PACK_LOSSLESS;
    args.gate = bench_matrix(s, format, 0);
    args.up = bench_matrix(s, format, 1);
    args.down = bench_matrix(s, format, 2);
    return args;
}

/* The arrays of an image one after the other, at multiples of ALIGN. */
static uint8_t *place_image(const bench_source *b, bench_image *image, uint8_t *at)
{
    for (int m = 0; m < BENCH_MATRICES; m++)
        for (int a = 0; a < BENCH_ARRAYS; a++) {
            size_t bytes = bench_array_bytes(b->shape, b->format, m, (bench_array)a);
            image->array[m][a] = bytes ? at : NULL;
            at += (bytes + ALIGN - 1) / ALIGN * ALIGN;
        }
    return at;
}

/* Gives the arrays the pointers of their experts. */
static void point_args(bench_source *b)
{
    moe_matrix *matrix[BENCH_MATRICES] = {&b->args.gate, &b->args.up, &b->args.down};
    const void **p = b->pointers;
    for (size_t m = 0; m < BENCH_MATRICES; m++) {
        moe_array *const arrays[BENCH_ARRAYS] = {
            [BENCH_WEIGHTS] = &matrix[m]->weights,
            [BENCH_SCALE] = &matrix[m]->scale,
            [BENCH_ROW_SCALE] = &matrix[m]->row_scale,
            [BENCH_BIAS] = &matrix[m]->bias,
        };
        for (int a = 0; a < BENCH_ARRAYS; a++) {
            if (arrays[a]->dtype == MOE_DTYPE_NONE) continue;
            arrays[a]->experts = p;
            for (int64_t e = 0; e < b->shape->E; e++)
                *p++ = b->image[(size_t)e % b->images].array[m][a];
        }
    }
}

bool bench_source_make(bench_source *b, const shape *s, bench_format format, size_t images,
                       uint64_t seed, team *t)
{
    const size_t arrays = BENCH_MATRICES * BENCH_ARRAYS,
                 tables = BENCH_MATRICES * BENCH_TABLE_BYTES,
                 padded = bench_image_bytes(s, format) + arrays * ALIGN;
    *b = (bench_source){.shape = s, .format = format, .seed = seed, .images = images};
    b->image_bytes = bench_image_bytes(s, format);
    b->args = bench_describe(s, format);
    b->image = calloc(images, sizeof *b->image);
    b->pointers = malloc(arrays * (size_t)s->E * sizeof *b->pointers);
    b->memory = images <= (SIZE_MAX - tables) / padded ? malloc(images * padded + tables) : NULL;
    if (!b->image || !b->pointers || !b->memory) {
        bench_source_free(b);
        return false;
    }
    fill_job j = {.source = b};
    for (int m = 0; m < BENCH_MATRICES; m++) {
        uint8_t *table = b->memory + (size_t)m * BENCH_TABLE_BYTES;
        bench_table_make(table, s, format, m, seed);
        j.table[m] = table;
    }
    uint8_t *at = b->memory + tables;
    for (size_t i = 0; i < images; i++) at = place_image(b, &b->image[i], at);
    team_run(t, fill_images, &j);
    point_args(b);
    return true;
}

void bench_source_free(bench_source *b)
{
    free(b->image);
    free(b->pointers);
    free(b->memory);
    *b = (bench_source){0};
}

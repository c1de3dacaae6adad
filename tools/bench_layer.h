/* SPDX-License-Identifier: Apache-2.0 */
/* bench_layer.h - a layer of random experts as a checkpoint has them, row-major; and that, or a
 * model's layer, packed. */
#ifndef MOE_BENCH_LAYER_H
#define MOE_BENCH_LAYER_H

#include "bench_weights.h"
#include "cli_model.h"
#include "team.h"

/* One expert's arrays. */
typedef struct bench_image {
    uint8_t *array[BENCH_MATRICES][BENCH_ARRAYS]; /* NULL: there is none */
} bench_image;

/* The experts of a layer: expert e is image e % images. */
typedef struct bench_source {
    const shape *shape;
    bench_format format;
    uint64_t seed;
    size_t images, image_bytes;
    bench_image *image;
    const void **pointers; /* of the arrays, for each expert */
    uint8_t *memory;
    moe_experts_args args;
} bench_source;

/* Bytes of one expert's arrays. */
size_t bench_image_bytes(const shape *s, bench_format format);

/* How many different experts are enough: what is packed is in memory of its own in any case. */
size_t bench_images(const shape *s, bench_format format);

/* Makes the experts on the team's threads.  False: no memory. */
bool bench_source_make(bench_source *b, const shape *s, bench_format format, size_t images,
                       uint64_t seed, team *t);
void bench_source_free(bench_source *b); /* fine if it was not made */

/* args as moe_experts_create takes them, without data: what moe_experts_bytes needs. */
moe_experts_args bench_describe(const shape *s, bench_format format);

enum { BENCH_MAX_COPIES = 1024 };

/* The packed layer, in as many copies as make `working_set` bytes together. */
typedef struct bench_layer {
    char weights[64];  /* the name of its format */
    moe_tkg_args call; /* activation, its numbers and limits, what affinities multiply */
    size_t copies;
    const moe_experts **experts; /* [copies] */
    moe_layer **loaded;          /* [copies]: whose they are; NULL: made here */
    moe_experts_info info;
    double source_bytes, pack_seconds; /* of one copy */
} bench_layer;

/* Packs a source.  CLI_OK, or the code that it stored in *error; bench_layer_free in either case. */
int bench_layer_pack(bench_layer *l, moe_context *context, const bench_source *source,
                     size_t working_set, cli_error *error);

/* The same of a model's layer, read from its files. */
int bench_layer_load(bench_layer *l, moe_context *context, const moe_model *model,
                     const moe_layer_info *info, size_t working_set, cli_error *error);

void bench_layer_free(bench_layer *l); /* fine if it was not packed */

#endif

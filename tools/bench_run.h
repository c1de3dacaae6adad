/* SPDX-License-Identifier: Apache-2.0 */
/* bench_run.h - calls of the operator, timed beside the machine's ceilings. */
#ifndef MOE_BENCH_RUN_H
#define MOE_BENCH_RUN_H

#include "bench_layer.h"
#include "bench_route.h"
#include "ceiling.h"
#include "crew.h"

enum { BENCH_MAX_BATCHES = 32, BENCH_MAX_REPETITIONS = 100000 };

/* What is asked for. */
typedef struct bench_plan {
    /* A model's layer; else random weights.  shape is then its shape, n_formats 1. */
    const moe_model *model;
    const char *model_path;
    moe_layer_info layer;
    shape shape;
    bench_format formats[BENCH_FORMATS];
    size_t n_formats;
    size_t tokens[BENCH_MAX_BATCHES];
    size_t n_tokens;  /* 0: powers of two */
    moe_act_mode act; /* never MOE_ACT_DEFAULT */
    route_kind routing;
    const char *routing_file;
    size_t repetitions, working_set; /* working_set 0: what the caches ask for */
    uint64_t seed;
} bench_plan;

/* One timed call. */
typedef struct bench_sample {
    double seconds;
    double bytes;         /* of the experts that it read */
    double experts;       /* how many they are */
    double read_gbps;     /* the higher of the two probes beside the call */
    double compute_gmacs; /* the higher of the two probes beside the round's calls */
    double roofline;      /* limit / seconds, the limit from these ceilings */
} bench_sample;

/* What the samples of one batch size and one layer say. */
typedef struct bench_row {
    const char *weights;
    size_t tokens;
    double experts_read, bytes; /* of a call, the mean */
    double median_us, min_us, p95_us;
    double gbps, gmacs;                        /* bytes and products in the median time */
    double read_ceiling_gbps, compute_ceiling; /* medians over the rounds */
    double limit_us; /* max(bytes / read ceiling, products / compute ceiling) */
    double roofline; /* the median of the samples' */
} bench_row;

typedef struct bench {
    cli *cli;
    bench_plan plan;
    crew crew;
    size_t working_set, images; /* images: different experts of a layer, 0: enough */
    ceiling_reader reader;
    router router;
    bench_batch batch;
    bench_source source; /* of the layer made last */
    bench_layer layer[BENCH_FORMATS];
    const ceiling_dot_kind *dot[BENCH_FORMATS];
    int dot_variant[BENCH_FORMATS];
    bench_sample *sample; /* [format][tokens][repetition] */
    size_t calls;         /* so far: which copy of a layer is next */
} bench;

/* Makes everything that is measured; images: different experts in a layer, 0 for enough.  CLI_OK,
 * or a message and its exit code.  bench_close in either case.  *b must stay where it is. */
int bench_open(bench *b, cli *c, const bench_plan *plan, size_t images);
void bench_close(bench *b);

/* Times the calls, all batch sizes and layers in turn, plan->repetitions times.  CLI_OK, or a
 * message and its exit code. */
int bench_measure(bench *b);

/* One call on a layer with the batch as it is, untimed.  CLI_OK, or a message and its exit code. */
int bench_call(bench *b, size_t layer);

/* The row of format number f and batch size number t. */
bench_row bench_row_of(const bench *b, size_t f, size_t t);

/* The number of rank p (0 the least, 1 the largest) of n numbers, which are sorted.  Between two:
 * in proportion. */
double bench_quantile(double *number, size_t n, double p);

/* Multiply-accumulates of one call. */
double bench_macs(const shape *s, size_t tokens);

#endif

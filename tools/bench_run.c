/* SPDX-License-Identifier: Apache-2.0 */
/* bench_run.c - measures.
 *
 * Owns the order in which things happen.  Bandwidth that other guests of a machine leave changes
 * within a second, so that a call is held against what was possible just before and after it:
 * a probe of the memory, a call, a probe, the next batch size's call, ...  The probe reads more
 * than the caches hold, so that no call finds weights in them.  Batch sizes and formats take turns
 * in every round, so that a bad second hits all of them.
 *
 * Refuses what does not fit in memory before it is made. */
#include "bench_run.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double DOT_SECONDS = 0.0005, FIND_SECONDS = 0.005;

double bench_macs(const shape *s, size_t tokens)
{
    return (s->no_gate ? 2 : 3) * (double)tokens * (double)s->K * (double)s->H * (double)s->I;
}

static int refused(const bench *b, moe_status status)
{
    cli_error error;
    if (status == MOE_E_NOMEM) return cli_failure(b->cli, "out of memory");
    cli_fail(&error, CLI_REFUSED, "%s", moe_last_error());
    return cli_report(b->cli, &error);
}

/* ---- making ---------------------------------------------------------------------------------- */

static int report(const bench *b, const cli_error *error)
{
    cli_progress_end();
    return cli_report(b->cli, error);
}

static size_t images_of(const bench *b, size_t f)
{
    return b->images ? b->images : bench_images(&b->plan.shape, b->plan.formats[f]);
}

/* Packed copies of a layer of this size. */
static double copies_bytes(const bench *b, double one)
{
    return one < (double)b->working_set ? one + (double)b->working_set : one;
}

/* Bytes of all that will be made: an upper bound. */
static int needed_memory(bench *b, double *bytes)
{
    const bench_plan *p = &b->plan;
    double sources = 0;
    *bytes = (double)b->working_set;
    if (p->model) {
        *bytes += copies_bytes(b, (double)p->layer.bytes);
        return CLI_OK;
    }
    for (size_t f = 0; f < p->n_formats; f++) {
        moe_experts_args args = bench_describe(&p->shape, p->formats[f]);
        size_t one;
        args.packing = MOE_PACK_PLAIN; /* it is at most as large */
        moe_status status = moe_experts_bytes(b->crew.context, &args, &one);
        if (status != MOE_OK) return refused(b, status);
        *bytes += copies_bytes(b, (double)one);
        double source =
            (double)images_of(b, f) * (double)bench_image_bytes(&p->shape, p->formats[f]);
        if (source > sources) sources = source;
    }
    *bytes += sources;
    return CLI_OK;
}

static int check_memory(bench *b)
{
    double bytes = 0, there = (double)machine_free_memory();
    int code = needed_memory(b, &bytes);
    if (code != CLI_OK || bytes <= there) return code;
    if (b->plan.model)
        return cli_failure(b->cli, "this needs %.1f GB of memory, and %.1f GB are free",
                           1e-9 * bytes, 1e-9 * there);
    return cli_failure(b->cli,
                       "this needs %.1f GB of memory, and %.1f GB are free: --experts N holds "
                       "fewer of the %lld experts%s",
                       1e-9 * bytes, 1e-9 * there, (long long)b->plan.shape.E,
                       b->plan.n_formats > 1 ? ", and fewer --weights take less" : "");
}

/* Random weights in format number f, packed. */
static int make_layer(bench *b, size_t f)
{
    const bench_plan *p = &b->plan;
    cli_error error;
    bench_format format = p->formats[f];
    char what[64];
    snprintf(what, sizeof what, "%s: making", bench_format_name(format));
    cli_progress((double)f / (double)p->n_formats, what);
    bench_source_free(&b->source);
    if (!bench_source_make(&b->source, &p->shape, format, images_of(b, f), p->seed, b->crew.team))
        return refused(b, MOE_E_NOMEM);
    snprintf(what, sizeof what, "%s: packing", bench_format_name(format));
    cli_progress(((double)f + 0.3) / (double)p->n_formats, what);
    int code = bench_layer_pack(&b->layer[f], b->crew.context, &b->source, b->working_set, &error);
    return code == CLI_OK ? code : report(b, &error);
}

static int load_layer(bench *b)
{
    const bench_plan *p = &b->plan;
    cli_error error;
    int code = bench_layer_load(&b->layer[0], b->crew.context, p->model, &p->layer, b->working_set,
                                &error);
    return code == CLI_OK ? code : report(b, &error);
}

/* What products with these weights are made of: f32 holds what bf16 does not. */
static ceiling_operand operand_of(moe_dtype weights, moe_act_mode act)
{
    if (act == MOE_ACT_INT8) return CEILING_INT8;
    return weights == MOE_F16 || weights == MOE_F32 ? CEILING_F32 : CEILING_BF16;
}

static int open_layer(bench *b, size_t f)
{
    int code = b->plan.model ? load_layer(b) : make_layer(b, f);
    if (code != CLI_OK) return code;
    b->dot[f] = ceiling_dot_of(moe_context_isa(b->crew.context),
                               operand_of(b->layer[f].info.gate_up, b->plan.act));
    b->dot_variant[f] = -1;
    ceiling_dot(b->crew.team, b->dot[f], FIND_SECONDS, &b->dot_variant[f]);
    return CLI_OK;
}

/* Powers of two, as many as take well under a minute. */
static void choose_tokens(bench *b)
{
    size_t most = strcmp(moe_context_isa(b->crew.context), "scalar") == 0 ? 8 : BENCH_MAX_T;
    for (size_t T = 1; T <= most; T *= 2) b->plan.tokens[b->plan.n_tokens++] = T;
}

int bench_open(bench *b, cli *c, const bench_plan *plan, size_t images)
{
    char message[512];
    *b = (bench){.cli = c, .plan = *plan, .images = images};
    int code = crew_open(&b->crew, c);
    b->working_set = plan->working_set ? plan->working_set : crew_cold_bytes(&b->crew);
    if (code == CLI_OK) code = check_memory(b);
    if (code != CLI_OK) return code;
    if (plan->n_tokens == 0) choose_tokens(b);
    plan = &b->plan;
    if (!router_open(&b->router, plan->routing, &plan->shape, plan->seed, plan->routing_file,
                     message, sizeof message)) {
        if (plan->routing != ROUTE_FILE) return cli_failure(c, "%s", message);
        cli_usage_error(c, "--routing-file %s", message);
        return c->exit_code;
    }
    size_t samples = plan->n_formats * plan->n_tokens * plan->repetitions;
    b->sample = calloc(samples, sizeof *b->sample);
    if (!b->sample || !bench_batch_open(&b->batch, &plan->shape, plan->seed))
        return refused(b, MOE_E_NOMEM);
    cli_progress(0, "reading memory");
    if (!ceiling_reader_open(&b->reader, b->crew.team, b->working_set))
        return refused(b, MOE_E_NOMEM);
    for (size_t f = 0; code == CLI_OK && f < plan->n_formats; f++) code = open_layer(b, f);
    return code;
}

void bench_close(bench *b)
{
    for (size_t f = 0; f < BENCH_FORMATS; f++) bench_layer_free(&b->layer[f]);
    bench_source_free(&b->source);
    bench_batch_close(&b->batch);
    router_close(&b->router);
    ceiling_reader_close(&b->reader);
    crew_close(&b->crew);
    free(b->sample);
}

/* ---- measuring ------------------------------------------------------------------------------- */

/* One call on the team's threads, which are awake when it begins, as an engine's are. */
typedef struct part_call {
    const bench *b;
    moe_tkg_args args;
    moe_status status; /* of thread 0, and so of all */
    double seconds;
} part_call;

static void run_part(void *arg, size_t i)
{
    part_call *c = arg;
    const bench_batch *batch = &c->b->batch;
    size_t bytes = batch->T * (size_t)c->b->plan.shape.H * sizeof *batch->output;
    double begin = team_seconds();
    moe_status status =
        moe_tkg_part(c->b->crew.context, (int32_t)i, (int32_t)team_size(c->b->crew.team), &c->args,
                     batch->output, bytes);
    if (i > 0) return;
    c->seconds = team_seconds() - begin;
    c->status = status;
}

static moe_status call(bench *b, size_t f, double *seconds)
{
    const bench_layer *l = &b->layer[f];
    part_call c = {.b = b};
    c.args = bench_batch_args(&b->batch, &l->call, l->experts[b->calls++ % l->copies], b->plan.act);
    team_run(b->crew.team, run_part, &c);
    *seconds = c.seconds;
    return c.status;
}

int bench_call(bench *b, size_t layer)
{
    double seconds;
    moe_status status = call(b, layer, &seconds);
    return status == MOE_OK ? CLI_OK : refused(b, status);
}

/* The layer before has just written the hidden rows: they are in a cache. */
static void touch_hidden(const bench_batch *b, const shape *s)
{
    unsigned sum = 0;
    for (size_t i = 0; i < b->T * (size_t)s->H; i += 32) sum += b->x[i];
    __asm__ volatile("" : : "r"(sum));
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static void settle(bench_sample *s, double macs)
{
    double limit = larger(1e-9 * s->bytes / s->read_gbps, 1e-9 * macs / s->compute_gmacs);
    s->roofline = limit / s->seconds;
}

static bench_sample *sample_at(const bench *b, size_t f, size_t t, size_t repetition)
{
    const bench_plan *p = &b->plan;
    return &b->sample[(f * p->n_tokens + t) * p->repetitions + repetition];
}

/* All batch sizes on one layer, between probes. */
static int measure_layer(bench *b, size_t f, size_t repetition)
{
    const bench_plan *p = &b->plan;
    double dots = ceiling_dot(b->crew.team, b->dot[f], DOT_SECONDS, &b->dot_variant[f]), before = 0;
    for (size_t t = 0; t < p->n_tokens; t++) {
        bench_sample *s = sample_at(b, f, t, repetition);
        bench_batch_route(&b->batch, &b->router, p->tokens[t]);
        double probe = ceiling_read(&b->reader);
        if (t > 0) s[-(ptrdiff_t)p->repetitions].read_gbps = larger(before, probe);
        before = probe;
        touch_hidden(&b->batch, &p->shape);
        moe_status status = call(b, f, &s->seconds);
        if (status != MOE_OK) return refused(b, status);
        s->experts = (double)b->batch.experts;
        s->bytes = s->experts * (double)b->layer[f].info.expert_bytes;
    }
    sample_at(b, f, p->n_tokens - 1, repetition)->read_gbps =
        larger(before, ceiling_read(&b->reader));
    dots = larger(dots, ceiling_dot(b->crew.team, b->dot[f], DOT_SECONDS, &b->dot_variant[f]));
    for (size_t t = 0; t < p->n_tokens; t++) {
        bench_sample *s = sample_at(b, f, t, repetition);
        s->compute_gmacs = dots;
        settle(s, bench_macs(&p->shape, p->tokens[t]));
    }
    return CLI_OK;
}

/* Scratch is made, pages are mapped: the largest batch once on every layer. */
static int warm_up(bench *b)
{
    size_t most = 0;
    for (size_t t = 0; t < b->plan.n_tokens; t++)
        if (b->plan.tokens[t] > most) most = b->plan.tokens[t];
    int code = CLI_OK;
    for (size_t f = 0; code == CLI_OK && f < b->plan.n_formats; f++) {
        bench_batch_route(&b->batch, &b->router, most);
        code = bench_call(b, f);
    }
    return code;
}

int bench_measure(bench *b)
{
    const bench_plan *p = &b->plan;
    int code = warm_up(b);
    for (size_t r = 0; code == CLI_OK && r < p->repetitions; r++)
        for (size_t f = 0; code == CLI_OK && f < p->n_formats; f++) {
            size_t done = r * p->n_formats + f;
            cli_progress((double)done / (double)(p->repetitions * p->n_formats), "measuring");
            code = measure_layer(b, f, r);
        }
    cli_progress_end();
    return code;
}

/* ---- statistics ------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

double bench_quantile(double *number, size_t n, double p)
{
    qsort(number, n, sizeof *number, compare);
    double place = p * (double)(n - 1);
    size_t low = (size_t)place;
    if (low + 1 >= n) return number[n - 1];
    return number[low] + (place - (double)low) * (number[low + 1] - number[low]);
}

/* Quantile p of the samples' number at this offset; NaN if there is no memory. */
static double quantile_of(const bench_sample *s, size_t n, size_t offset, double p)
{
    double *number = malloc(n * sizeof *number), result = (double)NAN;
    if (!number) return result;
    for (size_t i = 0; i < n; i++) memcpy(&number[i], (const char *)&s[i] + offset, sizeof *number);
    result = bench_quantile(number, n, p);
    free(number);
    return result;
}

bench_row bench_row_of(const bench *b, size_t f, size_t t)
{
    const bench_plan *p = &b->plan;
    size_t n = p->repetitions;
    const bench_sample *s = sample_at(b, f, t, 0);
    double macs = bench_macs(&p->shape, p->tokens[t]);
    bench_row r = {.weights = b->layer[f].weights, .tokens = p->tokens[t]};
    for (size_t i = 0; i < n; i++) r.experts_read += s[i].experts / (double)n;
    r.bytes = r.experts_read * (double)b->layer[f].info.expert_bytes;
    double median = quantile_of(s, n, offsetof(bench_sample, seconds), 0.5);
    r.median_us = 1e6 * median;
    r.min_us = 1e6 * quantile_of(s, n, offsetof(bench_sample, seconds), 0);
    r.p95_us = 1e6 * quantile_of(s, n, offsetof(bench_sample, seconds), 0.95);
    r.gbps = 1e-9 * r.bytes / median;
    r.gmacs = 1e-9 * macs / median;
    r.read_ceiling_gbps = quantile_of(s, n, offsetof(bench_sample, read_gbps), 0.5);
    r.compute_ceiling = quantile_of(s, n, offsetof(bench_sample, compute_gmacs), 0.5);
    r.limit_us = 1e-3 * larger(r.bytes / r.read_ceiling_gbps, macs / r.compute_ceiling);
    r.roofline = quantile_of(s, n, offsetof(bench_sample, roofline), 0.5);
    return r;
}

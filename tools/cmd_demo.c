/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_demo.c - moe-tkg demo: the main job on a built-in layer, timed and checked.
 *
 * Owns the measuring and the table.  The numbers are of weights that come from memory, not from
 * a cache: the experts of a layer are far larger than one. */
#define _GNU_SOURCE 1

#include "cli.h"
#include "demo_layer.h"
#include "judge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg demo [options]\n"
    "\n"
    "Makes the experts of one gpt-oss-20b layer (H = I = 2880, 32 experts, 4 per token; MXFP4\n"
    "with biases and clamped SwiGLU) with random weights, 460 MB; routes tokens with a random\n"
    "router, runs the operator, and holds the first and the last token of each batch against a\n"
    "float64 oracle.  Prints for each batch: tokens, different experts read, the best time of\n"
    "several runs, weight bytes of those experts per second, and the error next to its tight\n"
    "bound.  A batch is ok if both tokens are inside the proven bound, which is wider.\n"
    "\n"
    "      --tokens LIST    batch sizes, 1 to 128 (default 1,2,4,8,16,32,64,128; up to 8 if the\n"
    "                       machine has scalar kernels only)\n"
    "      --seed N         other weights and tokens (default 1)\n"
    CLI_HELP_COMPUTE
    CLI_HELP_PLAIN
    "\n"
    CLI_EXIT_CODES
    "\n"
    "Example: moe-tkg demo --tokens 1,16 --threads 2\n";
/* clang-format on */

enum { OPT_TOKENS = CLI_OPT_OWN, OPT_SEED };

static const struct option OPTIONS[] = {
    CLI_OPTIONS_PLAIN,
    CLI_OPTIONS_COMPUTE,
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"seed", required_argument, NULL, OPT_SEED},
    {NULL, 0, NULL, 0},
};

enum { MAX_BATCHES = 16 };

/* One line of the table. */
typedef struct measurement {
    size_t tokens, experts;
    double ms, gb_per_s;
    judge_verdict verdict;
} measurement;

typedef struct demo {
    cli cli;
    uint64_t seed;
    size_t tokens[MAX_BATCHES], batches;
    bool default_tokens;
    moe_context *context;
    demo_layer layer;
    demo_batch batch;
    measurement measured[MAX_BATCHES];
} demo;

static moe_tkg_args arguments(const demo *d)
{
    moe_tkg_args args = demo_args(&d->layer, &d->batch);
    args.act_mode = d->cli.act;
    return args;
}

static const char *act_name(const demo *d)
{
    moe_tkg_args args = arguments(d);
    return case_act_name(case_act_in_use(&args));
}

static bool is_scalar(const demo *d)
{
    return strcmp(moe_context_isa(d->context), "scalar") == 0;
}

/* ---- measuring ----------------------------------------------------------------------------- */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Says why, and returns the exit code. */
static int report_failure(const demo *d, moe_status status)
{
    if (status == MOE_E_NOMEM) return cli_failure(&d->cli, "out of memory");
    cli_failure(&d->cli, "%s", moe_last_error());
    return CLI_REFUSED;
}

/* Runs until a second is over, twice at least; the best run counts, the first of which warms up. */
static moe_status time_runs(const demo *d, const moe_tkg_args *args, void *output, size_t bytes,
                            double *best)
{
    double begin = seconds(), last = begin;
    moe_status status = MOE_OK;
    *best = 1e30;
    for (int run = 0; status == MOE_OK && (run < 2 || (last - begin < 1 && run < 20)); run++) {
        status = moe_tkg(d->context, args, output, bytes);
        double now = seconds();
        if (now - last < *best) *best = now - last;
        last = now;
    }
    return status;
}

static int check(const demo *d, const moe_tkg_args *args, const moe_tensor *output, measurement *m)
{
    size_t sample[2] = {0, m->tokens - 1};
    size_t n = m->tokens > 1 ? 2 : 1;
    if (judge_bound(args, sample, n, output, &m->verdict) == ORACLE_OK) return CLI_OK;
    return cli_failure(&d->cli, "the oracle has no memory");
}

/* Measures the batch of T tokens. */
static int measure(demo *d, size_t T, measurement *m)
{
    moe_tensor output;
    size_t bytes;
    double best;
    demo_batch_make(&d->batch, &d->layer, T);
    moe_tkg_args args = arguments(d);
    moe_status status = moe_tkg_output(&args, &output, &bytes);
    if (status != MOE_OK) return report_failure(d, status);
    void *data = malloc(bytes);
    if (!data) return report_failure(d, MOE_E_NOMEM);
    output.data = data;
    status = time_runs(d, &args, data, bytes, &best);
    m->tokens = T;
    m->experts = d->batch.experts;
    m->ms = 1e3 * best;
    m->gb_per_s = 1e-9 * (double)(m->experts * d->layer.expert_bytes) / best;
    int code = status == MOE_OK ? check(d, &args, &output, m) : report_failure(d, status);
    free(data);
    return code;
}

/* ---- the table ----------------------------------------------------------------------------- */

static void print_head(const demo *d)
{
    printf("One layer of gpt-oss-20b, random weights (seed %llu): H = I = %d, %d experts,\n"
           "%d per token, MXFP4, biases, SwiGLU clamped at 7; H padded to %d for the MX layout.\n"
           "moe-tkg %s, isa %s, %d threads, act %s\n\n",
           (unsigned long long)d->seed, DEMO_I, DEMO_E, DEMO_K, DEMO_H, moe_version(),
           moe_context_isa(d->context), (int)moe_context_threads(d->context), act_name(d));
    puts("     T  experts        ms      GB/s       error       bound");
}

static void print_line(const measurement *m)
{
    printf("%6zu  %7zu  %8.2f  %8.2f  %10.3e  %10.3e  %s%s%s\n", m->tokens, m->experts, m->ms,
           m->gb_per_s, m->verdict.error, m->verdict.limit, m->verdict.pass ? "ok" : "FAIL",
           m->verdict.note[0] ? "  " : "", m->verdict.note);
}

static void print_foot(const demo *d)
{
    puts("\nerror: where the float64 oracle's first and last token are nearest to their bound.");
    puts("ms: of one call from the operator's own tensors, which packs the experts it reads.");
    if (d->default_tokens && is_scalar(d))
        puts("The kernels of this level are scalar, hence few tokens: see --tokens.");
}

static json_t *measurement_json(const measurement *m)
{
    return json_pack("{s:I, s:I, s:f, s:f, s:o, s:o, s:I, s:I, s:I, s:b, s:s}", //
                     "tokens", (json_int_t)m->tokens,                           //
                     "experts", (json_int_t)m->experts,                         //
                     "ms", m->ms,                                               //
                     "gb_per_s", m->gb_per_s,                                   //
                     "error", cli_json_real(m->verdict.error),                  //
                     "limit", cli_json_real(m->verdict.limit),                  //
                     "outside", (json_int_t)m->verdict.outside,                 //
                     "between", (json_int_t)m->verdict.between,                 //
                     "unbounded", (json_int_t)m->verdict.unbounded,             //
                     "pass", m->verdict.pass,                                   //
                     "message", m->verdict.note);
}

static int print_json(const demo *d)
{
    json_t *list = json_array();
    bool pass = true;
    for (size_t i = 0; i < d->batches; i++) {
        json_array_append_new(list, measurement_json(&d->measured[i]));
        pass = pass && d->measured[i].verdict.pass;
    }
    return cli_print_json(
        &d->cli,
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:I, s:s, s:s, s:i, s:s, s:o, s:b}", //
                  "model", "gpt-oss-20b",                                         //
                  "H", DEMO_H_MODEL,                                              //
                  "I", DEMO_I,                                                    //
                  "E", DEMO_E,                                                    //
                  "K", DEMO_K,                                                    //
                  "seed", (json_int_t)d->seed,                                    //
                  "version", moe_version(),                                       //
                  "isa", moe_context_isa(d->context),                             //
                  "threads", (int)moe_context_threads(d->context),                //
                  "act", act_name(d),                                             //
                  "batches", list,                                                //
                  "pass", pass));
}

/* ---- the command --------------------------------------------------------------------------- */

/* Making the layer takes about as long as two tokens. */
static void progress(const demo *d, size_t experts_made, size_t batches_done, const char *what)
{
    double done = 2.0 * (double)experts_made / DEMO_E, all = 2;
    for (size_t i = 0; i < d->batches; i++) {
        all += (double)(d->tokens[i] + 2);
        if (i < batches_done) done += (double)(d->tokens[i] + 2);
    }
    cli_progress(done / all, what);
}

static bool make_layer(demo *d)
{
    if (!demo_layer_init(&d->layer, d->seed)) return false;
    for (size_t e = 0; e < DEMO_E; e++) {
        progress(d, e, 0, "making the experts");
        demo_layer_make_expert(&d->layer, e);
    }
    return true;
}

static int run(demo *d)
{
    int code = CLI_OK;
    if (!make_layer(d)) return cli_failure(&d->cli, "out of memory: the layer takes 460 MB");
    for (size_t i = 0; i < d->batches; i++) {
        char what[32];
        snprintf(what, sizeof what, "T = %zu", d->tokens[i]);
        progress(d, DEMO_E, i, what);
        int result = measure(d, d->tokens[i], &d->measured[i]);
        cli_progress_end();
        if (result != CLI_OK) return result;
        if (!d->measured[i].verdict.pass) code = CLI_FAILED;
        if (d->cli.json) continue;
        if (i == 0) print_head(d);
        print_line(&d->measured[i]);
        if (!cli_flush()) return CLI_FAILED; /* nobody reads on */
    }
    if (!d->cli.json) print_foot(d);
    if (d->cli.json && print_json(d) != CLI_OK) return CLI_FAILED;
    return code;
}

static bool parse_tokens(demo *d, char *list)
{
    long long T;
    d->batches = 0;
    d->default_tokens = false;
    for (char *item; (item = strsep(&list, ",")) != NULL;) {
        if (d->batches == MAX_BATCHES || !cli_number(item, 1, DEMO_MAX_T, &T)) return false;
        d->tokens[d->batches++] = (size_t)T;
    }
    return d->batches > 0;
}

static int parse(demo *d)
{
    long long seed;
    for (int opt; (opt = cli_next(&d->cli)) != CLI_END;) {
        switch (opt) {
        case OPT_TOKENS:
            if (!parse_tokens(d, optarg))
                return cli_usage_error(
                    &d->cli, "--tokens: must be up to %d numbers from 1 to %d, with commas",
                    MAX_BATCHES, DEMO_MAX_T);
            break;
        case OPT_SEED:
            if (!cli_number(optarg, 0, INT64_MAX, &seed))
                return cli_usage_error(&d->cli, "--seed %s: must be an integer >= 0", optarg);
            d->seed = (uint64_t)seed;
            break;
        default: return CLI_STOP;
        }
    }
    return optind == d->cli.argc ? CLI_END : cli_usage_error(&d->cli, "takes no argument");
}

/* Powers of two, as many as take well under a minute. */
static void choose_tokens(demo *d)
{
    size_t most = is_scalar(d) ? 8 : DEMO_MAX_T;
    for (size_t T = 1; T <= most; T *= 2) d->tokens[d->batches++] = T;
}

int cmd_demo(int argc, char **argv)
{
    demo *d = calloc(1, sizeof *d);
    cli c = {.command = "demo", .help = HELP, .options = OPTIONS, .argc = argc, .argv = argv};
    if (!d) return cli_failure(&c, "out of memory");
    d->cli = c;
    d->seed = 1;
    d->default_tokens = true;
    int code = parse(d) == CLI_STOP ? d->cli.exit_code : cli_context(&d->cli, &d->context);
    if (d->context) {
        if (d->default_tokens) choose_tokens(d);
        code = run(d);
    }
    cli_progress_end();
    demo_layer_free(&d->layer);
    moe_context_destroy(d->context);
    free(d);
    return code;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_demo.c - moe-tkg demo: the main job on a built-in layer, timed and checked.
 *
 * Owns the table.  The measuring is that of bench, the checking that of demo_check. */
#define _GNU_SOURCE 1

#include "bench_out.h"
#include "case.h"
#include "demo_check.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg demo [options]\n"
    "\n"
    "Makes the experts of one gpt-oss-20b layer (H = I = 2880, 32 experts, 4 per token; MXFP4 as\n"
    "the checkpoint has it, with biases and clamped SwiGLU) with random weights and packs them;\n"
    "times calls as bench does, and holds the first and the last token of a call of each batch\n"
    "size against a float64 oracle.  Prints for each batch: tokens, different experts read, the\n"
    "median time, weight bytes and products per second, the roofline (what the machine's ceilings\n"
    "allow, in parts of which the calls ran) and the error next to its tight bound.  A batch is ok\n"
    "if both tokens are inside the proven bound, which is wider.\n"
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

enum { MAX_BATCHES = 16, CHECKED = 2, REPETITIONS = 10, SCALAR_REPETITIONS = 3 };

/* The first and the last token of one call, and how many experts that read. */
typedef struct check {
    demo_token token[CHECKED];
    size_t n, experts;
    judge_verdict verdict; /* the worse of theirs, with the cells of both */
} check;

typedef struct demo {
    cli cli;
    bench_plan plan;
    bench bench;
    check check[MAX_BATCHES];
    atomic_size_t next; /* token to be checked */
    atomic_bool no_memory;
} demo;

static bool is_scalar(const demo *d)
{
    return strcmp(moe_context_isa(d->bench.crew.context), "scalar") == 0;
}

/* ---- checking ------------------------------------------------------------------------------ */

/* A call of this batch size, whose first and last token are kept. */
static int keep_tokens(demo *d, size_t batch)
{
    bench *b = &d->bench;
    check *c = &d->check[batch];
    size_t T = b->plan.tokens[batch], H = (size_t)b->plan.shape.H, K = (size_t)b->plan.shape.K;
    bench_batch_route(&b->batch, &b->router, T);
    int code = bench_call(b, 0);
    if (code != CLI_OK) return code;
    c->experts = b->batch.experts;
    c->n = T > 1 ? CHECKED : 1;
    for (size_t i = 0; i < c->n; i++) {
        demo_token *t = &c->token[i];
        size_t row = i == 0 ? 0 : T - 1;
        t->hidden = b->batch.x + row * H;
        memcpy(t->chosen, b->batch.chosen + row * K, K * sizeof *t->chosen);
        memcpy(t->affinity, b->batch.affinity + row * K, K * sizeof *t->affinity);
        t->output = malloc(H * sizeof *t->output);
        if (!t->output) return cli_failure(&d->cli, "out of memory");
        memcpy(t->output, b->batch.output + row * H, H * sizeof *t->output);
    }
    return CLI_OK;
}

static void check_tokens(void *arg, size_t thread)
{
    demo *d = arg;
    size_t all = d->bench.plan.n_tokens * CHECKED;
    for (size_t i; (i = atomic_fetch_add(&d->next, 1)) < all;) {
        check *c = &d->check[i / CHECKED];
        if (thread == 0) cli_progress((double)i / (double)all, "asking the oracle");
        if (i % CHECKED < c->n &&
            !demo_check(&d->bench.source, d->bench.plan.act, &c->token[i % CHECKED]))
            d->no_memory = true;
    }
}

/* Of two verdicts the one that is nearer to its limit, or past it. */
static void add_verdict(judge_verdict *sum, const judge_verdict *v)
{
    judge_verdict both = *sum;
    if (sum->cells == 0 || v->error * sum->limit > sum->error * v->limit) both = *v;
    both.pass = v->pass && (sum->cells == 0 || sum->pass);
    both.cells = sum->cells + v->cells;
    both.outside = sum->outside + v->outside;
    both.between = sum->between + v->between;
    both.unbounded = sum->unbounded + v->unbounded;
    *sum = both;
}

static int check_batches(demo *d)
{
    int code = CLI_OK;
    for (size_t t = 0; code == CLI_OK && t < d->bench.plan.n_tokens; t++) code = keep_tokens(d, t);
    if (code != CLI_OK) return code;
    team_run(d->bench.crew.team, check_tokens, d);
    cli_progress_end();
    if (d->no_memory) return cli_failure(&d->cli, "the oracle has no memory");
    for (size_t t = 0; t < d->bench.plan.n_tokens; t++)
        for (size_t i = 0; i < d->check[t].n; i++)
            add_verdict(&d->check[t].verdict, &d->check[t].token[i].verdict);
    return CLI_OK;
}

/* ---- the table ----------------------------------------------------------------------------- */

static void print_table(const demo *d)
{
    printf("One layer with random weights (seed %llu), MXFP4 packed from rows as in the "
           "checkpoint.\n",
           (unsigned long long)d->plan.seed);
    bench_print_head(&d->bench);
    puts("     T  experts        ms      GB/s    GMAC/s  roofline       error       bound");
    for (size_t t = 0; t < d->bench.plan.n_tokens; t++) {
        bench_row r = bench_row_of(&d->bench, 0, t);
        const judge_verdict *v = &d->check[t].verdict;
        printf("%6zu  %7.1f  %8.2f  %8.1f  %8.1f  %6.1f %%  %10.3e  %10.3e  %s%s%s\n", r.tokens,
               r.experts_read, 1e-3 * r.median_us, r.gbps, r.gmacs, 100 * r.roofline, v->error,
               v->limit, v->pass ? "ok" : "FAIL", v->note[0] ? "  " : "", v->note);
    }
    puts("\nerror: where the float64 oracle's first and last token are nearest to their bound.\n"
         "roofline: the median of least possible time / time; see moe-tkg bench.");
    if (d->plan.n_tokens == 0 && is_scalar(d))
        puts("The kernels of this level are scalar, hence few tokens: see --tokens.");
}

static json_t *batch_json(const demo *d, size_t t)
{
    bench_row r = bench_row_of(&d->bench, 0, t);
    const check *c = &d->check[t];
    json_t *o = bench_row_json(&d->bench, &r);
    json_t *more = json_pack("{s:I, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:b, s:s}", //
                             "experts", (json_int_t)c->experts,                    //
                             "ms", cli_json_real(1e-3 * r.median_us),              //
                             "gb_per_s", cli_json_real(r.gbps),                    //
                             "error", cli_json_real(c->verdict.error),             //
                             "limit", cli_json_real(c->verdict.limit),             //
                             "outside", (json_int_t)c->verdict.outside,            //
                             "between", (json_int_t)c->verdict.between,            //
                             "unbounded", (json_int_t)c->verdict.unbounded,        //
                             "pass", c->verdict.pass,                              //
                             "message", c->verdict.note);
    if (o && more) json_object_update(o, more);
    json_decref(more);
    return o;
}

static bool all_pass(const demo *d)
{
    bool pass = true;
    for (size_t t = 0; t < d->bench.plan.n_tokens; t++) pass = pass && d->check[t].verdict.pass;
    return pass;
}

static int print_json(const demo *d)
{
    const shape *s = &d->bench.plan.shape;
    json_t *list = json_array();
    for (size_t t = 0; t < d->bench.plan.n_tokens; t++)
        json_array_append_new(list, batch_json(d, t));
    return cli_print_json(
        &d->cli, json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:i, s:s, s:o, s:o, s:b}", //
                           "model", s->name,                                                    //
                           "H", (json_int_t)s->H,                                               //
                           "I", (json_int_t)s->I,                                               //
                           "E", (json_int_t)s->E,                                               //
                           "K", (json_int_t)s->K,                                               //
                           "seed", (json_int_t)d->plan.seed,                                    //
                           "version", moe_version(),                                            //
                           "isa", moe_context_isa(d->bench.crew.context),                       //
                           "threads", (int)moe_context_threads(d->bench.crew.context),          //
                           "act", case_act_name(d->bench.plan.act),                             //
                           "machine", bench_machine_json(&d->bench),                            //
                           "batches", list,                                                     //
                           "pass", all_pass(d)));
}

/* ---- the command --------------------------------------------------------------------------- */

static int parse(demo *d)
{
    cli *c = &d->cli;
    long long seed;
    for (int opt; (opt = cli_next(c)) != CLI_END;) {
        switch (opt) {
        case OPT_TOKENS:
            if (!cli_numbers(optarg, 1, BENCH_MAX_T, d->plan.tokens, MAX_BATCHES,
                             &d->plan.n_tokens))
                return cli_usage_error(
                    c, "--tokens %s: must be up to %d numbers from 1 to %d, with commas", optarg,
                    MAX_BATCHES, BENCH_MAX_T);
            break;
        case OPT_SEED:
            if (!cli_number(optarg, 0, INT64_MAX, &seed))
                return cli_usage_error(c, "--seed %s: must be an integer >= 0", optarg);
            d->plan.seed = (uint64_t)seed;
            break;
        default: return CLI_STOP;
        }
    }
    d->plan.act = c->act == MOE_ACT_DEFAULT ? MOE_ACT_EXACT : c->act;
    return optind == c->argc ? CLI_END : cli_usage_error(c, "takes no argument");
}

static int run(demo *d)
{
    /* Every expert is another: they are what is checked. */
    int code = bench_open(&d->bench, &d->cli, &d->plan, (size_t)d->plan.shape.E);
    if (d->bench.crew.context && is_scalar(d)) d->bench.plan.repetitions = SCALAR_REPETITIONS;
    if (code == CLI_OK) code = bench_measure(&d->bench);
    if (code == CLI_OK) code = check_batches(d);
    if (code != CLI_OK) return code;
    if (d->cli.json && print_json(d) != CLI_OK) return CLI_FAILED;
    if (!d->cli.json) print_table(d);
    return all_pass(d) ? CLI_OK : CLI_FAILED;
}

int cmd_demo(int argc, char **argv)
{
    char message[128];
    demo *d = calloc(1, sizeof *d);
    cli c = {.command = "demo", .help = HELP, .options = OPTIONS, .argc = argc, .argv = argv};
    if (!d) return cli_failure(&c, "out of memory");
    d->cli = c;
    d->plan = (bench_plan){
        .formats = {BENCH_MXFP4}, .n_formats = 1, .repetitions = REPETITIONS, .seed = 1};
    shape_parse("gpt-oss-20b", &d->plan.shape, message, sizeof message);
    int code = parse(d) == CLI_STOP ? d->cli.exit_code : run(d);
    cli_progress_end();
    for (size_t i = 0; i < MAX_BATCHES * CHECKED; i++)
        free(d->check[i / CHECKED].token[i % CHECKED].output);
    bench_close(&d->bench);
    free(d);
    return code;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* run_model.c - computes a layer of a model on hidden states from a file.
 *
 * Owns the file's tensors, and the splitting of many tokens into calls, which does not change a
 * bit.  Refuses a whole block whose router is not the library's. */
#include "case.h"
#include "cli_model.h"
#include "run.h"
#include "run_input.h"

#include <stdio.h>
#include <stdlib.h>

enum { CALL_TOKENS = 128 }; /* of one call, at most */

typedef struct run {
    const cli *cli;
    const run_job *job;
    moe_context *context;
    moe_model *model;
    moe_layer_info info;
    run_input input;
    moe_layer *layer;
    moe_tensor output;
    size_t output_bytes;
    cli_error error;
} run;

static int check_router(run *r)
{
    if (r->job->experts_only || !r->info.foreign_router) return CLI_OK;
    return cli_fail(&r->error, CLI_REFUSED,
                    "%s: layer %lld: its router is %s, which the library does not have: "
                    "--experts-only runs the experts with given ids",
                    r->job->model, (long long)r->info.layer, r->info.foreign_router);
}

static int make_output(run *r)
{
    const int64_t shape[] = {r->input.hidden.shape[0], r->info.H};
    size_t width = moe_dtype_size(r->job->output_dtype);
    if (__builtin_mul_overflow((size_t)shape[0] * width, (size_t)shape[1], &r->output_bytes))
        return cli_fail(&r->error, CLI_FAILED, "out of memory");
    r->output = moe_tensor_nd(calloc(r->output_bytes + 1, 1), r->job->output_dtype, 2, shape);
    return r->output.data ? CLI_OK : cli_fail(&r->error, CLI_FAILED, "out of memory");
}

/* The n rows from `first` on. */
static moe_tensor rows_of(const moe_tensor *t, int64_t first, int64_t n)
{
    moe_tensor part = *t;
    size_t row = moe_dtype_size(t->dtype) * (size_t)t->shape[1];
    part.data = (const char *)t->data + (size_t)first * row;
    part.shape[0] = n;
    return part;
}

static moe_status call(run *r, const moe_block_args *layer, int64_t first, int64_t n)
{
    moe_block_args args = *layer;
    moe_tensor hidden = rows_of(&r->input.hidden, first, n), output = rows_of(&r->output, first, n);
    size_t bytes = (size_t)n * (size_t)output.shape[1] * moe_dtype_size(output.dtype);
    args.experts.hidden_input = &hidden;
    args.experts.output_dtype = output.dtype;
    args.experts.act_mode = r->cli->act;
    if (!r->job->experts_only) return moe_block(r->context, &args, (void *)output.data, bytes);
    moe_tensor ids = rows_of(&r->input.ids, first, n);
    moe_tensor weights = rows_of(&r->input.weights, first, n);
    args.experts.expert_index = &ids;
    args.experts.expert_affinities_eager = &weights;
    return moe_tkg(r->context, &args.experts, (void *)output.data, bytes);
}

/* What the operator says of a call whose first row is token `first`. */
static int refused(run *r, int64_t first)
{
    char where[64] = "";
    if (first > 0)
        snprintf(where, sizeof where, " (rows counted from token %lld)", (long long)first);
    return cli_fail(&r->error, CLI_REFUSED, "%.480s: layer %lld: refused: %s%s", r->job->model,
                    (long long)r->info.layer, moe_last_error(), where);
}

static int compute(run *r)
{
    moe_block_args args;
    int64_t T = r->output.shape[0], done = 0;
    moe_status status = moe_layer_args(r->layer, &args);
    if (status != MOE_OK) return cli_model_failure(&r->error, status);
    do { /* no token is a call too, which is checked like others */
        int64_t n = T - done < CALL_TOKENS ? T - done : CALL_TOKENS;
        status = call(r, &args, done, n);
        if (status == MOE_E_NOMEM) return cli_fail(&r->error, CLI_FAILED, "out of memory");
        if (status != MOE_OK) return refused(r, done);
        done += n;
    } while (done < T);
    return CLI_OK;
}

static int write_output(run *r)
{
    io_error error;
    if (run_write(r->job->out, &r->output, r->output_bytes, &error) == IO_OK) return CLI_OK;
    return cli_fail(&r->error, CLI_FAILED, "%s", error.text);
}

static int run_steps(run *r)
{
    const run_job *j = r->job;
    int code = cli_model_open(j->model, j->config, &r->model, &r->error);
    if (code == CLI_OK) code = cli_model_find(r->model, j->layer, &r->info, &r->error);
    if (code == CLI_OK) code = check_router(r);
    if (code == CLI_OK) code = run_input_read(j, &r->info, &r->input, &r->error);
    if (code == CLI_OK) code = make_output(r);
    if (code == CLI_OK)
        code = cli_model_load(r->model, j->layer, MOE_PACK_PLAIN, r->context, &r->layer, &r->error);
    if (code == CLI_OK) code = compute(r);
    return code == CLI_OK ? write_output(r) : code;
}

/* MOE_ACT_DEFAULT is exact where weights are in rows. */
static moe_act_mode act_in_use(const run *r)
{
    return r->cli->act == MOE_ACT_DEFAULT ? MOE_ACT_EXACT : r->cli->act;
}

static int print_json(const run *r, int code)
{
    const run_job *j = r->job;
    json_t *object = json_pack("{s:o, s:I, s:o, s:o, s:b}",        //
                               "model", cli_json_text(j->model),   //
                               "layer", (json_int_t)j->layer,      //
                               "hidden", cli_json_text(j->hidden), //
                               "out", cli_json_text(j->out),       //
                               "experts_only", j->experts_only);
    if (code == CLI_OK)
        json_object_update_new(object,
                               json_pack("{s:s, s:i, s:s, s:s, s:s, s:o}",                      //
                                         "isa", moe_context_isa(r->context),                    //
                                         "threads", (int)moe_context_threads(r->context),       //
                                         "act", case_act_name(act_in_use(r)),                   //
                                         "hidden_dtype", moe_dtype_name(r->input.hidden.dtype), //
                                         "dtype", moe_dtype_name(r->output.dtype),              //
                                         "shape", run_shape(&r->output)));
    json_object_update_new(object, cli_json_verdict(code, code == CLI_OK ? "" : r->error.text));
    return cli_print_json(r->cli, object);
}

int run_model(const cli *c, moe_context *context, const run_job *job)
{
    run r = {.cli = c, .job = job, .context = context};
    int code = run_steps(&r);
    if (code != CLI_OK) cli_say(c, r.error.text);
    if (c->json) {
        int printed = print_json(&r, code);
        if (code == CLI_OK) code = printed;
    }
    moe_layer_free(r.layer);
    moe_model_close(r.model);
    run_input_free(&r.input);
    free((void *)r.output.data);
    return code;
}

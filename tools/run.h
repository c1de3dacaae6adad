/* SPDX-License-Identifier: Apache-2.0 */
/* run.h - the two forms of moe-tkg run: a case, and a layer of a model. */
#ifndef MOE_RUN_H
#define MOE_RUN_H

#include "cli.h"
#include "paths.h"

#include "io/safetensors.h"

typedef struct run_job {
    const char *out;
    /* of a case */
    const char *file; /* NULL: a layer of a model */
    compute_path path;
    /* of a model */
    const char *model, *config, *hidden;
    int64_t layer;
    bool experts_only;
    moe_dtype hidden_dtype; /* what hidden is converted to; MOE_DTYPE_NONE: not at all */
    moe_dtype output_dtype;
} run_job;

/* Compute, write job->out and return the exit code. */
int run_case(const cli *c, moe_context *context, const run_job *job);
int run_model(const cli *c, moe_context *context, const run_job *job);

/* Writes the tensor "output" to path, without metadata, so that equal results are equal files. */
io_status run_write(const char *path, const moe_tensor *output, size_t bytes, io_error *error);

json_t *run_shape(const moe_tensor *output);

#endif

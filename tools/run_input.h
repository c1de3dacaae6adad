/* SPDX-License-Identifier: Apache-2.0 */
/* run_input.h - hidden states, and where they go, from a safetensors file. */
#ifndef MOE_RUN_INPUT_H
#define MOE_RUN_INPUT_H

#include "cli_model.h"
#include "run.h"

typedef struct run_input {
    moe_tensor hidden;       /* [T, H], in job->hidden_dtype if that is given */
    moe_tensor ids, weights; /* [T, K], with job->experts_only */
    void *data[3];           /* theirs, owned */
} run_input;

/* Reads job->hidden for a layer.  CLI_OK, or the code that it stored in *error: CLI_USAGE for a
 * file that is not sound, CLI_REFUSED for tensors that are missing or do not fit.
 * run_input_free in either case. */
int run_input_read(const run_job *job, const moe_layer_info *layer, run_input *in,
                   cli_error *error);
void run_input_free(run_input *in); /* fine if it is all zero */

#endif

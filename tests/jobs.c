/* SPDX-License-Identifier: Apache-2.0 */
/* jobs.c - layers with their outputs. */
#include "jobs.h"

#include <stdlib.h>
#include <string.h>

job jobs[JOBS];

int make_jobs(void **state)
{
    (void)state;
    for (unsigned i = 0; i < JOBS; i++) {
        layer_spec s = random_layer(i, i);
        layer_make(&jobs[i].l, &s);
        jobs[i].expected = layer_run(NULL, &jobs[i].l, &jobs[i].bytes);
    }
    return 0;
}

int free_jobs(void **state)
{
    (void)state;
    for (unsigned i = 0; i < JOBS; i++) {
        free(jobs[i].expected);
        layer_free(&jobs[i].l);
    }
    return 0;
}

bool run_job(moe_context *context, unsigned i)
{
    const job *j = &jobs[i % JOBS];
    void *got = malloc(j->bytes);
    bool same = got && moe_tkg(context, &j->l.args, got, j->bytes) == MOE_OK &&
                memcmp(got, j->expected, j->bytes) == 0;
    free(got);
    return same;
}

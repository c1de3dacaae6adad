/* SPDX-License-Identifier: Apache-2.0 */
/* jobs.h - a layer of every kind with the output that one thread gives, for tests of threads. */
#ifndef MOE_TEST_JOBS_H
#define MOE_TEST_JOBS_H

#include "random_layer.h"

enum { JOBS = RANDOM_KINDS };

typedef struct job {
    layer l;
    void *expected;
    size_t bytes;
} job;

extern job jobs[JOBS];

/* Set-up and tear-down of a group of cmocka tests. */
int make_jobs(void **state);
int free_jobs(void **state);

/* Runs job i (of JOBS, over and over) on context; whether it gave its bits.  Fit for any thread, and
 * for a child. */
bool run_job(moe_context *context, unsigned i);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* fixture.h - tiny checkpoints and what they must compute: those of tests/fixtures, and all of them
 * where MOE_SHARED_DIR (or ../shared) is.  Facts: tests/fixtures/README.md. */
#ifndef MOE_TEST_FIXTURE_H
#define MOE_TEST_FIXTURE_H

#include <stddef.h>
#include <stdint.h>

/* Calls each(name, folder) for every one; how many there were. */
size_t fixture_each(void (*each)(const char *name, const char *folder));

/* The folder of one in tests/fixtures. */
const char *fixture_own(const char *name, char *text, size_t size);

/* One number of tokens of a case. */
typedef struct fixture_case {
    int64_t T, H, E, K;
    float *hidden, *logits;  /* [T, H], [T, E] */
    int32_t *ids;            /* [T, K] */
    float *weights;          /* [T, K] */
    double *experts, *block; /* [T, H] */
} fixture_case;

/* Reads case number i of folder/case.safetensors; 0: there are no more.  Fails the test otherwise. */
int fixture_read(const char *folder, size_t i, fixture_case *c);
void fixture_free(fixture_case *c);

/* A value of its metadata; "" if there is none.  Fails the test if there is no file. */
void fixture_fact(const char *folder, const char *key, char *text, size_t size);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_input.h - what the fuzzers of the interface share: bytes as choices, and properties that end
 * the program. */
#ifndef MOE_FUZZ_INPUT_H
#define MOE_FUZZ_INPUT_H

#include <moe_tkg.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define COUNT(array)    (sizeof(array) / sizeof(array)[0])
#define MUST(condition) ((condition) ? (void)0 : broken(__LINE__, #condition))

static inline void broken(int line, const char *condition)
{
    fprintf(stderr, "line %d: not %s (last error: %s)\n", line, condition, moe_last_error());
    abort();
}

typedef struct input {
    const uint8_t *data;
    size_t left;
} input;

/* The next byte; 0 past the end. */
static inline uint8_t next(input *in)
{
    if (in->left == 0) return 0;
    in->left--;
    return *in->data++;
}

static inline size_t pick(input *in, size_t n)
{
    return next(in) % n;
}

#endif

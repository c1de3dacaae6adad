/* SPDX-License-Identifier: Apache-2.0 */
/* error.h - the calling thread's last error, and the one check that every structure shares. */
#ifndef MOE_ERROR_H
#define MOE_ERROR_H

#include <moe_tkg.h>

/* Keeps the text for moe_last_error() and returns status, for `return error_set(...)`. */
moe_status error_set(moe_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Puts text before the last error's. */
void error_prefix(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* How many errors this thread has set so far: whether a callback set one. */
unsigned error_count(void);

/* Whether a caller's structure, which begins with its size_t struct_size, is of a version that this
 * library knows: at least `known` bytes, and zeros in what it has beyond.  name: its type, whose
 * initialiser is name_init(). */
moe_status error_struct_size(const void *structure, size_t known, const char *name);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* error.h - the calling thread's last error. */
#ifndef MOE_ERROR_H
#define MOE_ERROR_H

#include <moe_tkg.h>

/* Keeps the text for moe_last_error() and returns status, for `return error_set(...)`. */
moe_status error_set(moe_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* model_error.h - the last error of moe_tkg_io.h, of each thread. */
#ifndef MOE_IO_MODEL_ERROR_H
#define MOE_IO_MODEL_ERROR_H

#include <moe_tkg_io.h>

#include "io/safetensors.h"

/* Each keeps a line for moe_io_last_error() and returns the status. */

/* "path: ...": about a file, or a whole model. */
__attribute__((format(printf, 3, 4))) moe_status model_fail(moe_status status, const char *path,
                                                            const char *format, ...);

/* About an argument of a call. */
__attribute__((format(printf, 2, 3))) moe_status model_argument(moe_status status,
                                                                const char *format, ...);

/* What a reader said. */
moe_status model_reader(const io_error *error);

/* What moe_last_error() of libmoe_tkg says, at `path`. */
moe_status model_core(moe_status status, const char *path);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* output.h - files that come into being complete, or not at all. */
#ifndef MOE_IO_OUTPUT_H
#define MOE_IO_OUTPUT_H

#include "io/safetensors.h"

/* Open, put, ..., finish; the first failure sticks, later puts do nothing, and finish reports
 * it. */
typedef struct io_output {
    const char *path; /* the caller's; must outlive the output */
    char *target;     /* path with links followed: what the new file replaces */
    char *temporary;  /* the new file until it is finished; NULL: path is written in place */
    int fd;
    int cause; /* the error number of the first failure, 0 */
} io_output;

/* The bytes go to a temporary file in the folder of path, from which those that processes of the past
 * left are removed.  An existing path that is no regular
 * file (a device, a pipe) cannot be replaced and is written in place. */
void io_output_open(io_output *o, const char *path);

void io_output_put(io_output *o, const void *bytes, size_t n);

/* Flushes the file to the disk, gives it its name and flushes that; after a failure removes it,
 * whatever was under the name before staying there.  Frees the output in both cases. */
io_status io_output_finish(io_output *o, io_error *error);

#endif

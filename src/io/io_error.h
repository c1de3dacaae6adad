/* SPDX-License-Identifier: Apache-2.0 */
/* io_error.h - the one-line messages of the readers and writers. */
#ifndef MOE_IO_ERROR_H
#define MOE_IO_ERROR_H

#include "io/safetensors.h"

/* Stores status and the line "path: ..." in *error (NULL is fine) and returns status.  A long
 * path loses its head, so that the rule always fits.  Control bytes become '?': names in foreign
 * files must not steer a terminal. */
__attribute__((format(printf, 4, 5))) io_status io_fail(io_error *error, io_status status,
                                                        const char *path, const char *format, ...);

/* The same for a failed system call: the line ends in what and the text of the error number
 * cause. */
io_status io_fail_errno(io_error *error, io_status status, const char *path, const char *what,
                        int cause);

/* The same for an allocation that failed. */
io_status io_no_memory(io_error *error, const char *path);

/* Makes '?' of the control bytes of a message. */
void io_mask_controls(char *text);

/* How many bytes of a foreign name to print (for %.*s): all, or about 100, never half a UTF-8
 * character. */
int io_clip(const char *name);

#endif

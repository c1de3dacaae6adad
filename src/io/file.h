/* SPDX-License-Identifier: Apache-2.0 */
/* file.h - a file of foreign origin, on disk or in memory, that is read piece by piece.
 *
 * Read and not mapped: a file that shrinks meanwhile gives an error and no signal. */
#ifndef MOE_IO_FILE_H
#define MOE_IO_FILE_H

#include "io/safetensors.h"

typedef struct io_file {
    char *path;                  /* for messages; "(memory)" */
    int fd;                      /* -1: the file is in memory */
    const unsigned char *memory; /* its bytes then */
    size_t size;                 /* when it was opened, as ... */
    int64_t seconds;             /* ... the time of its last change, */
    int32_t nanoseconds;         /* which a file in memory does not have */
} io_file;

/* A regular file; a directory, a device or a pipe is refused (IO_E_OPEN) and not waited for.  On
 * failure there is nothing to close. */
io_status io_file_open(io_file *f, const char *path, io_error *error);

/* The same, and a symbolic link is refused too: for files that this library wrote. */
io_status io_file_open_own(io_file *f, const char *path, io_error *error);

/* The bytes must outlive f. */
io_status io_file_memory(io_file *f, const void *data, size_t size, io_error *error);

void io_file_close(io_file *f);

/* Reads n bytes that lie inside the file as it was when opened. */
io_status io_file_read(const io_file *f, size_t offset, void *dst, size_t n, io_error *error);

/* Tells the system that n bytes, which lie inside the file, are going to be read soon. */
void io_file_will_need(const io_file *f, size_t offset, size_t n);

/* Reads all of it into *text, which the caller frees; more than `most` bytes break a rule. */
io_status io_file_text(const io_file *f, size_t most, char **text, io_error *error);

#endif

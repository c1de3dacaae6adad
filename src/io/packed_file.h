/* SPDX-License-Identifier: Apache-2.0 */
/* packed_file.h - what packed.c and packed_read.c share: an open file. */
#ifndef MOE_IO_PACKED_FILE_H
#define MOE_IO_PACKED_FILE_H

#include "io/packed.h"

struct packed_file {
    char *path;
    int fd;                      /* -1: the file is in memory */
    const unsigned char *memory; /* NULL: the file is on disk */
    size_t size, payload_at, payload, about_bytes;
    unsigned char *front; /* what lies between the head and the payload */
    const uint64_t *sums; /* in it: of each chunk */
};

/* Reads n bytes that lie inside the file as it was when opened. */
io_status packed_read_at(const packed_file *f, size_t offset, void *dst, size_t n, io_error *error);

#endif

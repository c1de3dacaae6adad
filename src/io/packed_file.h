/* SPDX-License-Identifier: Apache-2.0 */
/* packed_file.h - what packed.c and packed_read.c share: an open file. */
#ifndef MOE_IO_PACKED_FILE_H
#define MOE_IO_PACKED_FILE_H

#include "io/file.h"
#include "io/packed.h"

struct packed_file {
    io_file in;
    size_t payload_at, payload, about_bytes;
    unsigned char *front; /* what lies between the head and the payload */
    const uint64_t *sums; /* in it: of each chunk */
};

#endif

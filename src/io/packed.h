/* SPDX-License-Identifier: Apache-2.0 */
/* packed.h - the file of a packed layer: a head, what is said about the layer, and a payload in
 * chunks, everything with checksums.  The reader takes files of any origin.
 *
 *     head       PACKED_HEAD bytes: magic, versions, sizes, checksums
 *     about      as its writer made it
 *     checksums  of each chunk of the payload, XXH3-64
 *     zeros      up to the payload, which begins at a multiple of PACKED_ALIGN
 *     payload    chunks of PACKED_CHUNK bytes, the last of what is left
 *
 * Numbers are as the machine has them; one of another byte order refuses the file. */
#ifndef MOE_IO_PACKED_H
#define MOE_IO_PACKED_H

#include <moe_tkg.h>

#include "io/safetensors.h"

#define PACKED_MAGIC "moepack\x1A" /* the file's first bytes */

enum {
    PACKED_NAME = 8, /* bytes of PACKED_MAGIC */
    PACKED_HEAD = 96,
    PACKED_ALIGN = 4096,
    PACKED_CHUNK = 1 << 20,
};

/* ---- writing --------------------------------------------------------------------------------- */

typedef moe_status packed_put(void *to, const void *data, size_t bytes);

/* Gives the payload to put, piece after piece; called twice, with the same bytes.  A status other
 * than MOE_OK, put's or its own, ends it. */
typedef moe_status packed_emit(const void *from, packed_put *put, void *to);

/* The file comes into being complete, or not at all; what was at path before stays until then.  A
 * path that is there and no regular file, a link say, is refused.  *status is emit's if that
 * failed, and there is no message then. */
io_status packed_write(const char *path, const void *about, size_t about_bytes, packed_emit *emit,
                       const void *from, moe_status *status, io_error *error);

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct packed_file packed_file;

/* Opens path, which must be a regular file and no link to one, and reads and checks all but the
 * payload.  *file is owned by the caller; NULL on failure.  IO_E_STALE: of another version of the
 * file, layout or canon, or of another machine. */
io_status packed_open(const char *path, packed_file **file, io_error *error);
void packed_close(packed_file *file); /* NULL is fine */

/* The same for a file that is in memory; the bytes must outlive it. */
io_status packed_open_memory(const void *data, size_t size, packed_file **file, io_error *error);

const char *packed_path(const packed_file *file);
const void *packed_about(const packed_file *file, size_t *bytes);
size_t packed_bytes(const packed_file *file); /* of the payload */

/* The payload from byte `at` on, in order, verified before it is given. */
typedef struct packed_stream {
    const packed_file *file;
    size_t at;   /* of the next byte */
    int threads; /* that read, the calling one included; fewer if the system does not give them */
    /* Called on the calling thread now and then: not 0 stops the reading (IO_E_READ). */
    int (*progress)(void *user, uint64_t done, uint64_t all);
    void *user;
    io_error error; /* why reading failed */

    unsigned char *chunk; /* the last chunk of which a part was asked for */
    size_t number;        /* its number */
} packed_stream;

/* Large pieces are read to data itself.  False: error says why.  packed_stream_end frees what the
 * stream keeps. */
bool packed_read(packed_stream *s, void *data, size_t bytes);
void packed_stream_end(packed_stream *s);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* sniff.h - what lies at a path, by what it holds and never by its name. */
#ifndef MOE_IO_SNIFF_H
#define MOE_IO_SNIFF_H

#include "io/safetensors.h"

typedef enum io_kind {
    IO_NEITHER, /* a regular file, and none of these */
    IO_DIRECTORY,
    IO_JSON,        /* a text that starts with {: an index if it is anything read here */
    IO_SAFETENSORS, /* the header starts where a safetensors file has it */
    IO_GGUF,        /* of either byte order: the reader says which it does not take */
    IO_PACKED       /* a packed layer */
} io_kind;

/* A guess from the first bytes: whoever reads the file checks the rest, and says what is wrong with
 * it.  IO_E_OPEN if path cannot be opened or is neither a file nor a directory; IO_E_READ. */
io_status io_sniff(const char *path, io_kind *kind, io_error *error);

#endif

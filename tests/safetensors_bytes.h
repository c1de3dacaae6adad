/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors_bytes.h - files as bytes, for the tests of the reader and writer. */
#ifndef MOE_TESTS_SAFETENSORS_BYTES_H
#define MOE_TESTS_SAFETENSORS_BYTES_H

#include <stddef.h>

typedef struct file_bytes {
    unsigned char *bytes;
    size_t size;
} file_bytes;

/* Length of the header, the header, and data_size bytes 0, 1, 2, ...  Fails the test without
 * memory. */
file_bytes safetensors_bytes(const char *header, size_t header_size, size_t data_size);

/* The whole file at path, with a NUL behind the last byte; .bytes NULL if it cannot be read. */
file_bytes bytes_of_file(const char *path);

void write_bytes(const char *path, file_bytes file);

#endif

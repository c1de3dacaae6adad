/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors_bytes.c - files as bytes, for the tests of the reader and writer. */
#include "safetensors_bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

file_bytes safetensors_bytes(const char *header, size_t header_size, size_t data_size)
{
    file_bytes file = {.size = 8 + header_size + data_size};
    file.bytes = malloc(file.size);
    assert_non_null(file.bytes);
    for (int i = 0; i < 8; i++) file.bytes[i] = (unsigned char)((uint64_t)header_size >> 8 * i);
    memcpy(file.bytes + 8, header, header_size);
    for (size_t i = 0; i < data_size; i++) file.bytes[8 + header_size + i] = (unsigned char)i;
    return file;
}

file_bytes bytes_of_file(const char *path)
{
    file_bytes file = {0};
    FILE *f = fopen(path, "rb");
    if (!f) return file;
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    file.size = (size_t)ftell(f);
    rewind(f);
    file.bytes = malloc(file.size + 1);
    assert_non_null(file.bytes);
    assert_int_equal(fread(file.bytes, 1, file.size, f), file.size);
    file.bytes[file.size] = '\0';
    fclose(f);
    return file;
}

void write_bytes(const char *path, file_bytes file)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(file.bytes, 1, file.size, f), file.size);
    assert_int_equal(fclose(f), 0);
}

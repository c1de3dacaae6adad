/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_safetensors.c - any bytes given to the reader, and what it accepts given to the writer.
 *
 * Checks that a refusal has a one-line message, that accepted tensors tile the data section, and
 * that the writer takes what the reader took. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

enum { PREFIX_BYTES = 8 };

static void require(int holds)
{
    if (!holds) abort();
}

static uint64_t load_length(const uint8_t *prefix)
{
    uint64_t length = 0;
    for (int i = PREFIX_BYTES; i-- > 0;) length = length << 8 | prefix[i];
    return length;
}

static void store_length(uint8_t *prefix, uint64_t length)
{
    for (int i = 0; i < PREFIX_BYTES; i++) prefix[i] = (uint8_t)(length >> 8 * i);
}

/* Half of the time the length of the header follows its text, or few mutants would get past the
 * first rule. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    if (size < PREFIX_BYTES || max_size <= PREFIX_BYTES || seed % 2 == 0)
        return LLVMFuzzerMutate(data, size, max_size);
    uint8_t *body = data + PREFIX_BYTES;
    size_t before = size - PREFIX_BYTES, length = (size_t)load_length(data);
    size_t after;
    if (length > 0 && length < before && seed % 4 == 1) { /* the header; the data moves along */
        uint8_t *rest = malloc(before - length);
        if (!rest) return size;
        memcpy(rest, body + length, before - length);
        after = LLVMFuzzerMutate(body, length, max_size - PREFIX_BYTES - (before - length));
        memcpy(body + after, rest, before - length);
        free(rest);
        store_length(data, after);
        return PREFIX_BYTES + after + (before - length);
    }
    after = LLVMFuzzerMutate(body, before, max_size - PREFIX_BYTES);
    store_length(data, length + after - before);
    return PREFIX_BYTES + after;
}

/* Writes the accepted file anew; sizes may differ, soundness must not. */
static void write_again(const st_file *file, unsigned char *data)
{
    size_t n = st_count(file), n_meta = st_metadata_count(file);
    st_tensor *t = calloc(n + 1, sizeof *t);
    const void **parts = calloc(n + 1, sizeof *parts);
    const char **keys = calloc(n_meta + 1, sizeof *keys);
    const char **values = calloc(n_meta + 1, sizeof *values);
    require(t && parts && keys && values);
    for (size_t i = 0; i < n; i++) {
        t[i] = *st_at(file, i);
        parts[i] = data + t[i].offset;
    }
    for (size_t i = 0; i < n_meta; i++) {
        keys[i] = st_metadata_key(file, i);
        values[i] = st_metadata(file, keys[i]);
        require(values[i] != NULL);
    }
    require(st_write("/dev/null", t, parts, n, keys, values, n_meta, NULL) == IO_OK);
    free(t);
    free(parts);
    free(keys);
    free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    st_file *file;
    io_error error = {.status = IO_OK};
    io_status status = st_open_memory(data, size, &file, &error);
    if (status != IO_OK) {
        require(status == IO_E_FORMAT && error.status == status && !file);
        require(strncmp(error.text, "(memory): ", 10) == 0 && !strchr(error.text, '\n'));
        return 0;
    }
    size_t end = 0;
    unsigned char *copy = malloc(size);
    require(copy != NULL);
    for (size_t i = 0; i < st_count(file); i++) {
        const st_tensor *t = st_at(file, i);
        size_t bytes;
        require(t->offset == end && st_find(file, t->name) == t);
        require(st_shape_bytes(t->dtype, t->shape, t->rank, &bytes) && bytes == t->bytes);
        require(st_read(file, t, copy + end, NULL) == IO_OK);
        end += t->bytes;
    }
    require(end == size - PREFIX_BYTES - load_length(data));
    require(memcmp(copy, data + size - end, end) == 0);
    write_again(file, copy);
    free(copy);
    st_close(file);
    return 0;
}

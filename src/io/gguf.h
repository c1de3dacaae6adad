/* SPDX-License-Identifier: Apache-2.0 */
/* gguf.h - read GGUF files, versions 2 and 3, and their splits.  Takes files of any origin. */
#ifndef MOE_IO_GGUF_H
#define MOE_IO_GGUF_H

#include "io/safetensors.h"

/* Types of tensors that are known by more than their number: ggml's own numbers. */
typedef enum gg_type {
    GG_F32 = 0,
    GG_F16 = 1,
    GG_Q4_0 = 2,
    GG_Q8_0 = 8,
    GG_Q4_K = 12,
    GG_Q5_K = 13,
    GG_Q6_K = 14,
    GG_BF16 = 30,
    GG_MXFP4 = 39,
    GG_NVFP4 = 40
} gg_type;

enum { GG_MAX_RANK = 4 };

typedef struct gg_tensor {
    const char *name; /* UTF-8, NUL-terminated, owned by the file */
    uint32_t type;    /* any number that ggml has a block size for */
    int rank;
    uint64_t ne[GG_MAX_RANK]; /* fastest first; 1 past rank */
    size_t offset;            /* from the start of its file's data section */
    size_t bytes;
    size_t part; /* which file of the split */
} gg_tensor;

typedef struct gg_file gg_file;

/* Opens and checks path, and with it the other files of its split, of which it must be the first:
 * headers, keys, every tensor.  Reads no tensor data.  *file is owned by the caller (gg_close);
 * NULL on failure.  IO_E_FORMAT names the rule and the byte. */
io_status gg_open(const char *path, gg_file **file, io_error *error);

/* One file that is in memory; a split is refused.  The bytes must outlive the gg_file. */
io_status gg_open_memory(const void *data, size_t size, gg_file **file, io_error *error);

void gg_close(gg_file *file); /* NULL is fine */

size_t gg_count(const gg_file *file);
const gg_tensor *gg_at(const gg_file *file, size_t i);           /* as the files list them */
const gg_tensor *gg_find(const gg_file *file, const char *name); /* NULL if absent */

/* A key's value (of a split: a key of its first file): false, and *value as it was, if the key is
 * absent, of another type, or does not fit.  Integers of any width and sign, not negative; floats of
 * both widths and integers as reals, finite; strings without a NUL, valid UTF-8. */
bool gg_integer(const gg_file *file, const char *key, int64_t *value);
bool gg_real(const gg_file *file, const char *key, double *value);
bool gg_bool(const gg_file *file, const char *key, bool *value);
bool gg_string(const gg_file *file, const char *key, const char **value); /* owned by the file */
bool gg_has(const gg_file *file, const char *key);
/* An array of numbers, or of booleans as 0 and 1: how many there are, and value number i, as above. */
bool gg_array(const gg_file *file, const char *key, size_t *count);
bool gg_array_integer(const gg_file *file, const char *key, size_t i, int64_t *value);
bool gg_array_real(const gg_file *file, const char *key, size_t i, double *value);

size_t gg_keys(const gg_file *file);
const char *gg_key(const gg_file *file, size_t i);

/* Copies bytes [from, from + n) of the tensor, which has them, to dst. */
io_status gg_read(const gg_file *file, const gg_tensor *t, size_t from, size_t n, void *dst,
                  io_error *error);

/* Tells the system that these bytes are going to be read soon. */
void gg_will_need(const gg_file *file, const gg_tensor *t, size_t from, size_t n);

/* File number `part` of a split itself, and how many bytes its data section comes after. */
const struct io_file *gg_source(const gg_file *file, size_t part, size_t *header_bytes);

const char *gg_type_name(uint32_t type); /* "Q4_K"; NULL for a number that ggml does not have */
/* k and bytes of a block; 0 and 0 for a number that ggml does not have (any more). */
void gg_type_block(uint32_t type, size_t *k, size_t *bytes);

#endif

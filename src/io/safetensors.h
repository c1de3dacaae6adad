/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.h - read and write safetensors files.  The reader takes files of any origin. */
#ifndef MOE_IO_SAFETENSORS_H
#define MOE_IO_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum io_status {
    IO_OK = 0,
    IO_E_OPEN,   /* the file cannot be opened, or is no regular file */
    IO_E_READ,   /* a read failed or came up short */
    IO_E_FORMAT, /* no sound file of its format; the message names the rule and the offset */
    IO_E_NOMEM,
    IO_E_WRITE, /* the file cannot be written whole; nothing is left behind under its name */
    IO_E_STALE, /* a packed layer of another version, or of another machine */
} io_status;

/* Where a function takes an io_error, NULL is fine; success leaves it as it is. */
typedef struct io_error {
    io_status status;
    char text[512]; /* one line, no newline: file, rule, offset or tensor name */
} io_error;

/* Element types of the format, in the order of its documentation. */
/* clang-format off */
typedef enum st_dtype {
    ST_BOOL, ST_U8, ST_I8, ST_I16, ST_U16, ST_F16, ST_BF16, ST_I32, ST_U32, ST_F32, ST_F64, ST_I64,
    ST_U64, ST_C64, ST_F8_E4M3, ST_F8_E5M2, ST_F8_E8M0, ST_F8_E4M3FNUZ, ST_F8_E5M2FNUZ,
    ST_F4, ST_F6_E2M3, ST_F6_E3M2,
    ST_DTYPE_COUNT
} st_dtype;
/* clang-format on */

enum { ST_MAX_RANK = 8 };

typedef struct st_tensor {
    const char *name; /* UTF-8, NUL-terminated, owned by the file */
    st_dtype dtype;
    int rank;
    int64_t shape[ST_MAX_RANK];
    size_t offset; /* from the start of the data section */
    size_t bytes;
} st_tensor;

typedef struct st_file st_file;

/* Opens and checks path: header, every tensor, full coverage of the data section.  Reads no
 * tensor data.  *file is owned by the caller (st_close).  On failure *file is NULL and *error
 * says why. */
io_status st_open(const char *path, st_file **file, io_error *error);

/* The same for a file that is in memory; the bytes must outlive the st_file.  Those of the
 * tensors are touched by st_read alone. */
io_status st_open_memory(const void *data, size_t size, st_file **file, io_error *error);

void st_close(st_file *file); /* NULL is fine */

size_t st_count(const st_file *file);
const st_tensor *st_at(const st_file *file, size_t i);           /* in the order of the data */
const st_tensor *st_find(const st_file *file, const char *name); /* NULL if absent */
size_t st_metadata_count(const st_file *file);
const char *st_metadata_key(const st_file *file, size_t i);    /* sorted */
const char *st_metadata(const st_file *file, const char *key); /* the value, NULL if absent */

/* Copies the tensor's bytes to dst (t->bytes of them; any alignment). */
io_status st_read(const st_file *file, const st_tensor *t, void *dst, io_error *error);

/* The same of its bytes [from, from + n). */
io_status st_read_part(const st_file *file, const st_tensor *t, size_t from, size_t n, void *dst,
                       io_error *error);

/* Tells the system that these bytes are going to be read soon. */
void st_will_need(const st_file *file, const st_tensor *t, size_t from, size_t n);

/* The file itself, and how many bytes its data section comes after. */
const struct io_file *st_source(const st_file *file, size_t *header_bytes);

const char *st_dtype_name(st_dtype dtype); /* "BF16"; NULL if out of range */
size_t st_dtype_bits(st_dtype dtype);      /* 4 for F4, 6 for F6_*, ...; 0 if out of range */

/* Stores the size of a tensor in *bytes; false if it does not fit, is no whole number of bytes, or
 * dtype or a dimension is none.  rank is from 0 to ST_MAX_RANK. */
bool st_shape_bytes(st_dtype dtype, const int64_t *shape, int rank, size_t *bytes);

/* Writes a file with the n tensors, data[i] holding t[i].bytes bytes (t[i].offset is ignored),
 * and the given metadata (n_meta pairs; none writes no __metadata__).  Tensors are ordered and
 * padded as the reference writer does: by descending alignment of dtype, then name; header
 * padded with spaces to a multiple of 8.  Written to a temporary file in the same folder,
 * flushed, and renamed; an existing path that is no regular file (a device, a pipe) is written
 * in place.  What st_open would refuse gives IO_E_FORMAT and no file. */
io_status st_write(const char *path, const st_tensor *t, const void *const *data, size_t n,
                   const char *const *meta_keys, const char *const *meta_values, size_t n_meta,
                   io_error *error);

#endif

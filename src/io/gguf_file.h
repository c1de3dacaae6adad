/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_file.h - what the files of the GGUF reader share. */
#ifndef MOE_IO_GGUF_FILE_H
#define MOE_IO_GGUF_FILE_H

#include "io/file.h"
#include "io/gguf.h"
#include "io/keep.h"

enum {
    GG_STRING_MAX = 65536,        /* bytes of a key, a name, a value */
    GG_KEYS_MAX = 65536,          /* in a file */
    GG_TENSORS_MAX = 65536,       /* in all files of a split */
    GG_ALIGNMENT_MAX = 1048576,   /* bytes */
    GG_HEADER_MAX = 256 << 20,    /* bytes up to the last tensor's entry */
    GG_KEY_BYTES_MIN = 8 + 4 + 1, /* an empty name, type, an 8-bit value */
    GG_TENSOR_BYTES_MIN = 8 + 4 + 4 + 8
};

/* Types of values, by their numbers in the file. */
typedef enum gg_value_type {
    GG_U8,
    GG_I8,
    GG_U16,
    GG_I16,
    GG_U32,
    GG_I32,
    GG_FLOAT,
    GG_BOOL,
    GG_STRING,
    GG_ARRAY,
    GG_U64,
    GG_I64,
    GG_DOUBLE,
    GG_VALUE_TYPES
} gg_value_type;

typedef struct gg_pair {
    const char *key;
    union {
        uint64_t bits;              /* of a number, as they are in the file, 0 above */
        const char *text;           /* of a string; NULL: not kept */
        const unsigned char *bytes; /* of an array of numbers or booleans; else NULL */
    } value;
    uint64_t count; /* elements of an array */
    uint32_t at;    /* where the file has it */
    uint8_t type, element;
} gg_pair;

/* A tensor, and where the header has it. */
typedef struct gg_entry {
    gg_tensor t; /* the first member: a gg_tensor of the file is part of one */
    size_t at;
} gg_entry;

typedef struct gg_part {
    io_file in;
    size_t alignment, data_start;
    gg_pair *pairs;
    size_t pair_count, pair_room;
    const gg_pair **by_key;
    io_keep keep; /* names and values */
} gg_part;

struct gg_file {
    gg_part *parts;
    size_t part_count, part_room;
    gg_entry *entries;
    size_t count, room;
    const gg_entry **by_name;
};

/* ---- gguf_type.c ----------------------------------------------------------------------------- */

/* The one place that knows a tensor's size.  False if it or the number of elements does not fit,
 * ne[0] is no whole number of blocks, or the type has none. */
bool gg_tensor_bytes(uint32_t type, const uint64_t ne[GG_MAX_RANK], size_t *bytes);

/* ---- gguf_cursor.c: one pass over a header --------------------------------------------------- */

typedef struct gg_cursor {
    gg_part *part;
    size_t at;                   /* the next byte */
    size_t token;                /* the first byte of what was read last: where rules are broken */
    const char *what, *name;     /* "key" or "tensor", and which one is being read; NULL outside */
    const unsigned char *window; /* the bytes [window_at, window_at + window_size) of the file */
    size_t window_at, window_size;
    unsigned char *buffer; /* where the window is, unless the file is in memory */
    io_error *error;
    io_status status; /* the first failure; its message is in *error */
} gg_cursor;

/* Functions that return a bool return false after a failure, which is in the cursor then. */

bool gg_cursor_open(gg_cursor *c, gg_part *part, io_error *error);
void gg_cursor_close(gg_cursor *c);

__attribute__((format(printf, 2, 3))) bool gg_fail(gg_cursor *c, const char *format, ...);
bool gg_no_memory(gg_cursor *c);

/* How many bytes the header can still have. */
size_t gg_rest(const gg_cursor *c);

bool gg_take(gg_cursor *c, void *dst, size_t n); /* n bytes; more than the rest break a rule */
bool gg_skip(gg_cursor *c, size_t n);
bool gg_take_u32(gg_cursor *c, uint32_t *value);
bool gg_take_u64(gg_cursor *c, uint64_t *value);

/* Room for n bytes that the part keeps; NULL and a failure if there is no memory. */
void *gg_keep(gg_cursor *c, size_t n);

/* A string's length: at most `most`, and not more than the rest. */
bool gg_take_length(gg_cursor *c, size_t most, size_t *length);

/* The bytes of a string whose length was taken; they are kept, with a NUL behind them. */
bool gg_keep_text(gg_cursor *c, size_t length, const char **text);

/* A key or name: UTF-8 without a NUL. */
bool gg_take_name(gg_cursor *c, const char **name);

/* ---- gguf_key.c ------------------------------------------------------------------------------ */

/* Reads n pairs, and what they say of the alignment. */
bool gg_take_pairs(gg_cursor *c, uint64_t n);
const gg_pair *gg_pair_find(const gg_part *part, const char *key);
bool gg_pair_integer(const gg_pair *pair, int64_t *value);

/* ---- gguf_split.c ---------------------------------------------------------------------------- */

/* Loads the part that is opened as in, and closes in if that fails. */
io_status gg_load_part(gg_file *f, io_file *in, io_error *error);

/* Opens and loads the other parts of a split, if the first says that there are any; path NULL: they
 * cannot be. */
io_status gg_load_split(gg_file *f, const char *path, io_error *error);

#endif

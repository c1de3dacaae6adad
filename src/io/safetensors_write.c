/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors_write.c - the writer.
 *
 * It owns the bytes of the header, those of the reference writer.  What the reader would refuse
 * is refused here too, by the reader: the header is read back before a file is created. */
#include "io/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "io/io_error.h"
#include "io/output.h"

enum { PREFIX_BYTES = 8, HEADER_ALIGNMENT = 8 };

/* The order of the reference writer, last first: wider types come first, so that every tensor is
 * naturally aligned. */
/* clang-format off */
static const unsigned char dtype_order[ST_DTYPE_COUNT] = {
    [ST_BOOL] = 0, [ST_F4] = 1, [ST_F6_E2M3] = 2, [ST_F6_E3M2] = 3, [ST_U8] = 4, [ST_I8] = 5,
    [ST_F8_E5M2] = 6, [ST_F8_E4M3] = 7, [ST_F8_E8M0] = 8,
    [ST_F8_E4M3FNUZ] = 9, [ST_F8_E5M2FNUZ] = 10,
    [ST_I16] = 11, [ST_U16] = 12, [ST_F16] = 13, [ST_BF16] = 14,
    [ST_I32] = 15, [ST_U32] = 16, [ST_F32] = 17,
    [ST_C64] = 18, [ST_F64] = 19, [ST_I64] = 20, [ST_U64] = 21,
};
/* clang-format on */

typedef struct source {
    const st_tensor *tensor;
    const void *data;
} source;

/* A growing text; after a failed allocation it stays as it is. */
typedef struct text {
    char *bytes;
    size_t size, room;
    bool nomem;
} text;

static bool reserve(text *x, size_t n)
{
    size_t need, wider;
    if (x->nomem) return false;
    if (n <= x->room - x->size) return true;
    bool fits = checked_add(x->size, n, &need) && checked_mul(need, 2, &wider);
    char *moved = fits ? realloc(x->bytes, wider) : NULL;
    x->nomem = !moved;
    if (!moved) return false;
    x->bytes = moved;
    x->room = wider;
    return true;
}

static void put(text *x, const char *bytes, size_t n)
{
    if (!reserve(x, n)) return;
    memcpy(x->bytes + x->size, bytes, n);
    x->size += n;
}

static void put_plain(text *x, const char *string)
{
    put(x, string, strlen(string));
}

static void put_number(text *x, int64_t number)
{
    char digits[24];
    put(x, digits, (size_t)snprintf(digits, sizeof digits, "%lld", (long long)number));
}

/* As a JSON string, escaped like the reference writer's. */
static void put_string(text *x, const char *string)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", escapes[] = "\"\\bfnrt";
    put(x, "\"", 1);
    for (const char *p = string; *p; p++) {
        const char *hit = strchr(escaped, *p);
        char pair[] = {'\\', hit ? escapes[hit - escaped] : '\0'}, code[8];
        if (hit)
            put(x, pair, sizeof pair);
        else if ((unsigned char)*p < 0x20)
            put(x, code, (size_t)snprintf(code, sizeof code, "\\u%04x", (unsigned)*p));
        else
            put(x, p, 1);
    }
    put(x, "\"", 1);
}

static void put_metadata(text *x, const char *const *keys, const char *const *values, size_t n)
{
    put_plain(x, "\"__metadata__\":{");
    for (size_t i = 0; i < n; i++) {
        if (i > 0) put_plain(x, ",");
        put_string(x, keys[i]);
        put_plain(x, ":");
        put_string(x, values[i]);
    }
    put_plain(x, "}");
}

static void put_entry(text *x, const st_tensor *t, size_t begin, size_t end)
{
    put_string(x, t->name);
    put_plain(x, ":{\"dtype\":\"");
    put_plain(x, st_dtype_name(t->dtype));
    put_plain(x, "\",\"shape\":[");
    for (int i = 0; i < t->rank; i++) {
        if (i > 0) put_plain(x, ",");
        put_number(x, t->shape[i]);
    }
    put_plain(x, "],\"data_offsets\":[");
    put_number(x, (int64_t)begin);
    put_plain(x, ",");
    put_number(x, (int64_t)end);
    put_plain(x, "]}");
}

/* Pads the header behind the prefix and stores its length in the prefix. */
static void finish_header(text *x)
{
    static const char padding[HEADER_ALIGNMENT] = "        ";
    put(x, padding, (HEADER_ALIGNMENT - x->size % HEADER_ALIGNMENT) % HEADER_ALIGNMENT);
    if (x->nomem) return;
    uint64_t length = x->size - PREFIX_BYTES;
    for (int i = 0; i < PREFIX_BYTES; i++) x->bytes[i] = (char)(length >> 8 * i & 0xFF);
}

/* Puts prefix and header for the sorted tensors; *end is the size of the data section.  False if
 * that does not fit. */
static bool put_header(text *x, const source *list, size_t n, const char *const *meta_keys,
                       const char *const *meta_values, size_t n_meta, size_t *end)
{
    static const char prefix[PREFIX_BYTES];
    put(x, prefix, sizeof prefix);
    put_plain(x, "{");
    if (n_meta > 0) put_metadata(x, meta_keys, meta_values, n_meta);
    *end = 0;
    for (size_t i = 0; i < n; i++) {
        size_t begin = *end;
        if (!checked_add(begin, list[i].tensor->bytes, end)) return false;
        if (i > 0 || n_meta > 0) put_plain(x, ",");
        put_entry(x, list[i].tensor, begin, *end);
    }
    put_plain(x, "}");
    finish_header(x);
    return true;
}

static int compare_sources(const void *a, const void *b)
{
    const st_tensor *x = ((const source *)a)->tensor, *y = ((const source *)b)->tensor;
    int order = dtype_order[y->dtype] - dtype_order[x->dtype];
    return order != 0 ? order : strcmp(x->name, y->name);
}

/* The tensors with their data in the order of the file; NULL if there is no memory. */
static source *sorted(const st_tensor *t, const void *const *data, size_t n)
{
    source *list = malloc((n + 1) * sizeof *list); /* fits: smaller than the caller's n tensors */
    if (!list) return NULL;
    for (size_t i = 0; i < n; i++) list[i] = (source){&t[i], data[i]};
    qsort(list, n, sizeof *list, compare_sources);
    return list;
}

/* What must hold before a tensor can be looked at; the rest is left to the reader. */
static io_status check_enums(const char *path, const st_tensor *t, size_t n, io_error *error)
{
    for (size_t i = 0; i < n; i++) {
        if (!st_dtype_name(t[i].dtype) || t[i].rank < 0 || t[i].rank > ST_MAX_RANK)
            return io_fail(error, IO_E_FORMAT, path,
                           "not written: tensor \"%.*s\": unknown dtype or rank",
                           io_clip(t[i].name), t[i].name);
    }
    return IO_OK;
}

/* Reads the header back.  The reader looks at no tensor data, so none has to follow the header
 * in memory. */
static io_status check_header(const char *path, const text *x, size_t data_size, io_error *error)
{
    st_file *file;
    io_error found;
    size_t size;
    if (!checked_add(x->size, data_size, &size))
        return io_fail(error, IO_E_FORMAT, path, "not written: the tensors are too large");
    io_status status = st_open_memory(x->bytes, size, &file, &found);
    st_close(file);
    return status == IO_OK ? IO_OK : io_fail(error, status, path, "not written: %s", found.text);
}

static io_status write_sorted(const char *path, const source *list, size_t n, const text *head,
                              io_error *error)
{
    io_output out;
    io_output_open(&out, path);
    io_output_put(&out, head->bytes, head->size);
    for (size_t i = 0; i < n; i++) io_output_put(&out, list[i].data, list[i].tensor->bytes);
    return io_output_finish(&out, error);
}

io_status st_write(const char *path, const st_tensor *t, const void *const *data, size_t n,
                   const char *const *meta_keys, const char *const *meta_values, size_t n_meta,
                   io_error *error)
{
    text head = {0};
    size_t data_size;
    io_status status = check_enums(path, t, n, error);
    if (status != IO_OK) return status;
    source *list = sorted(t, data, n);
    if (!list) return io_fail(error, IO_E_NOMEM, path, "out of memory");
    if (!put_header(&head, list, n, meta_keys, meta_values, n_meta, &data_size))
        status = io_fail(error, IO_E_FORMAT, path, "not written: the tensors are too large");
    else if (head.nomem)
        status = io_fail(error, IO_E_NOMEM, path, "out of memory");
    else
        status = check_header(path, &head, data_size, error);
    if (status == IO_OK) status = write_sorted(path, list, n, &head, error);
    free(head.bytes);
    free(list);
    return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.c - the reader.
 *
 * It owns every rule about a file of foreign origin: the length of the header, the three keys of
 * an entry, dtype, shape and offsets that agree, and a data section that the tensors cover from
 * end to end, each byte once.  It refuses what breaks one, and files that are not regular.
 * Memory stays below 16 times the header, and time grows with the header times the logarithm of
 * the number of names. */
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "io/file.h"
#include "io/grow.h"
#include "io/io_error.h"
#include "io/json_scan.h"

enum {
    PREFIX_BYTES = 8,             /* the length of the header, little-endian */
    HEADER_BYTES_MAX = 100000000, /* as in the reference reader */
    NAME_BYTES_MAX = 65536,
};

typedef struct pair {
    const char *key, *value;
} pair;

struct st_file {
    io_file in;
    size_t data_start;
    char *header; /* decoded in place; holds every name, metadata key and value */
    st_tensor *tensors;
    size_t count, room; /* room: of tensors, in elements */
    const st_tensor **by_name;
    pair *metadata; /* sorted by key */
    size_t metadata_count, metadata_room;
};

typedef struct parser {
    st_file *file;
    io_json scan;
    const char *tensor; /* the name of the entry that is being read, NULL outside one */
    bool nomem;
} parser;

/* The answer to a broken rule, at a byte of the file. */
static io_status refuse(const st_file *f, const char *tensor, const char *rule, size_t byte,
                        io_error *error)
{
    if (!tensor) return io_fail(error, IO_E_FORMAT, f->in.path, "%s at byte %zu", rule, byte);
    return io_fail(error, IO_E_FORMAT, f->in.path, "tensor \"%.*s\": %s at byte %zu",
                   io_clip(tensor), tensor, rule, byte);
}

static void *grown(parser *p, void *array, size_t count, size_t *room, size_t unit)
{
    void *moved = io_grown(array, count, room, unit);
    p->nomem = !moved;
    return moved;
}

static bool parse_metadata(parser *p)
{
    st_file *f = p->file;
    io_json *s = &p->scan;
    if (!io_json_open(s, '{')) return false;
    for (size_t n = 0; io_json_next(s, '}', n); n++) {
        pair one;
        if (!io_json_key(s, &one.key) || !io_json_string(s, &one.value)) return false;
        pair *list = grown(p, f->metadata, f->metadata_count, &f->metadata_room, sizeof one);
        if (!list) return false;
        f->metadata = list;
        list[f->metadata_count++] = one;
    }
    return !s->rule;
}

static bool parse_dtype(io_json *s, st_dtype *dtype)
{
    const char *text;
    if (!io_json_string(s, &text)) return false;
    for (int i = 0; i < ST_DTYPE_COUNT; i++) {
        *dtype = (st_dtype)i;
        if (strcmp(text, st_dtype_name(*dtype)) == 0) return true;
    }
    return io_json_fail(s, "the dtype is unknown");
}

/* Reads an array of at most room numbers; more break the rule. */
static bool parse_numbers(io_json *s, int64_t *list, int room, int *count, const char *rule)
{
    if (!io_json_open(s, '[')) return false;
    for (*count = 0; io_json_next(s, ']', (size_t)*count); ++*count) {
        if (*count == room) return io_json_fail(s, rule);
        if (!io_json_integer(s, &list[*count])) return false;
    }
    return !s->rule;
}

static bool parse_offsets(io_json *s, int64_t offsets[2])
{
    static const char rule[] = "data_offsets is not a pair";
    int count;
    if (!parse_numbers(s, offsets, 2, &count, rule)) return false;
    if (count != 2) return io_json_fail(s, rule);
    return true;
}

/* Sets the place of t, whose dtype and shape are known, or breaks a rule. */
static bool place(io_json *s, st_tensor *t, const int64_t offsets[2], size_t data_size)
{
    size_t begin = (size_t)offsets[0], end = (size_t)offsets[1];
    if (!st_shape_bytes(t->dtype, t->shape, t->rank, &t->bytes))
        return io_json_fail(s, "the shape overflows or fills no whole bytes");
    if (begin > end) return io_json_fail(s, "data_offsets end before they begin");
    if (end > data_size) return io_json_fail(s, "data_offsets end beyond the file");
    if (end - begin != t->bytes)
        return io_json_fail(s, "data_offsets disagree with dtype and shape");
    t->offset = begin;
    return true;
}

static bool parse_entry(parser *p, st_tensor *t)
{
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
    io_json *s = &p->scan;
    int64_t offsets[2];
    unsigned seen = 0;
    if (!io_json_open(s, '{')) return false;
    size_t start = s->token;
    for (size_t n = 0; io_json_next(s, '}', n); n++) {
        const char *key;
        if (!io_json_key(s, &key)) return false;
        unsigned field = !strcmp(key, "dtype")          ? DTYPE
                         : !strcmp(key, "shape")        ? SHAPE
                         : !strcmp(key, "data_offsets") ? OFFSETS
                                                        : 0;
        if (field == 0) return io_json_fail(s, "a key of the entry is unknown");
        if (seen & field) return io_json_fail(s, "a key of the entry occurs twice");
        seen |= field;
        bool ok = field == DTYPE   ? parse_dtype(s, &t->dtype)
                  : field == SHAPE ? parse_numbers(s, t->shape, ST_MAX_RANK, &t->rank,
                                                   "the shape has more than 8 dimensions")
                                   : parse_offsets(s, offsets);
        if (!ok) return false;
    }
    if (s->rule) return false;
    s->token = start;
    if (seen != (DTYPE | SHAPE | OFFSETS))
        return io_json_fail(s, "the entry lacks dtype, shape or data_offsets");
    return place(s, t, offsets, p->file->in.size - p->file->data_start);
}

static bool parse_tensor(parser *p, const char *name)
{
    st_file *f = p->file;
    st_tensor t = {.name = name};
    if (strlen(name) > NAME_BYTES_MAX)
        return io_json_fail(&p->scan, "the name is longer than 65536 bytes");
    p->tensor = name;
    if (!parse_entry(p, &t)) return false;
    p->tensor = NULL;
    st_tensor *list = grown(p, f->tensors, f->count, &f->room, sizeof t);
    if (!list) return false;
    f->tensors = list;
    list[f->count++] = t;
    return true;
}

static bool parse_header(parser *p)
{
    io_json *s = &p->scan;
    bool metadata_seen = false;
    if (s->size == 0 || s->text[0] != '{')
        return io_json_fail(s, "the header does not start with {");
    io_json_open(s, '{');
    for (size_t n = 0; io_json_next(s, '}', n); n++) {
        const char *key;
        if (!io_json_key(s, &key)) return false;
        bool is_metadata = strcmp(key, "__metadata__") == 0;
        if (is_metadata && metadata_seen) return io_json_fail(s, "__metadata__ occurs twice");
        metadata_seen |= is_metadata;
        if (!(is_metadata ? parse_metadata(p) : parse_tensor(p, key))) return false;
    }
    return !s->rule && io_json_end(s);
}

static int compare_offsets(const void *a, const void *b)
{
    const st_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const st_tensor *const *)a)->name, (*(const st_tensor *const *)b)->name);
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const pair *)a)->key, ((const pair *)b)->key);
}

/* Sorting, unlike hashing, cannot be slowed down by chosen keys. */
static io_status check_names(st_file *f, io_error *error)
{
    f->by_name = malloc((f->count + 1) * sizeof *f->by_name);
    if (!f->by_name) return io_no_memory(error, f->in.path);
    for (size_t i = 0; i < f->count; i++) f->by_name[i] = &f->tensors[i];
    qsort(f->by_name, f->count, sizeof *f->by_name, compare_names);
    for (size_t i = 1; i < f->count; i++) {
        const char *name = f->by_name[i]->name;
        if (strcmp(f->by_name[i - 1]->name, name) == 0)
            return refuse(f, name, "the name occurs twice",
                          PREFIX_BYTES + (size_t)(name - f->header), error);
    }
    if (f->metadata) qsort(f->metadata, f->metadata_count, sizeof *f->metadata, compare_keys);
    for (size_t i = 1; i < f->metadata_count; i++) {
        const char *key = f->metadata[i].key;
        if (strcmp(f->metadata[i - 1].key, key) == 0)
            return refuse(f, NULL, "a key of __metadata__ occurs twice",
                          PREFIX_BYTES + (size_t)(key - f->header), error);
    }
    return IO_OK;
}

/* Every byte of the data section belongs to exactly one of the tensors, which are sorted by
 * offset. */
static io_status check_coverage(const st_file *f, io_error *error)
{
    size_t end = 0;
    for (size_t i = 0; i < f->count; i++) {
        const st_tensor *t = &f->tensors[i];
        if (t->offset < end)
            return refuse(f, t->name, "the data overlaps another tensor", f->data_start + t->offset,
                          error);
        if (t->offset > end)
            return refuse(f, t->name, "a hole lies before the data", f->data_start + end, error);
        end += t->bytes; /* at most the size of the file: the end was checked */
    }
    if (end != f->in.size - f->data_start)
        return refuse(f, NULL, "bytes follow the last tensor", f->data_start + end, error);
    return IO_OK;
}

static io_status load_header(st_file *f, size_t *length, io_error *error)
{
    unsigned char prefix[PREFIX_BYTES];
    if (f->in.size < PREFIX_BYTES)
        return refuse(f, NULL, "the file is shorter than 8 bytes: it ends", f->in.size, error);
    io_status status = io_file_read(&f->in, 0, prefix, PREFIX_BYTES, error);
    if (status != IO_OK) return status;
    uint64_t n = 0;
    for (int i = PREFIX_BYTES; i-- > 0;) n = n << 8 | prefix[i];
    if (n > HEADER_BYTES_MAX)
        return refuse(f, NULL, "the header is longer than 100000000 bytes", 0, error);
    if (n > f->in.size - PREFIX_BYTES)
        return refuse(f, NULL, "the header ends beyond the file, which ends", f->in.size, error);
    f->data_start = PREFIX_BYTES + n;
    f->header = malloc(n > 0 ? n : 1); /* of size 0, NULL would be no failure */
    if (!f->header) return io_no_memory(error, f->in.path);
    *length = n;
    return io_file_read(&f->in, PREFIX_BYTES, f->header, n, error);
}

static io_status load(st_file *f, io_error *error)
{
    size_t length = 0;
    io_status status = load_header(f, &length, error);
    if (status != IO_OK) return status;
    parser p = {.file = f, .scan = {.text = f->header, .size = length}};
    if (!parse_header(&p)) {
        if (p.nomem) return io_no_memory(error, f->in.path);
        return refuse(f, p.tensor, p.scan.rule, PREFIX_BYTES + p.scan.token, error);
    }
    if (f->tensors) qsort(f->tensors, f->count, sizeof *f->tensors, compare_offsets);
    status = check_names(f, error);
    return status == IO_OK ? check_coverage(f, error) : status;
}

/* Loads what is opened as in and hands it to the caller, or closes it. */
static io_status hand_over(io_file *in, st_file **file, io_error *error)
{
    st_file *f = calloc(1, sizeof *f);
    if (!f) {
        io_status status = io_no_memory(error, in->path);
        io_file_close(in);
        return status;
    }
    f->in = *in;
    io_status status = load(f, error);
    if (status == IO_OK)
        *file = f;
    else
        st_close(f);
    return status;
}

io_status st_open(const char *path, st_file **file, io_error *error)
{
    io_file in;
    *file = NULL;
    io_status status = io_file_open(&in, path, error);
    return status == IO_OK ? hand_over(&in, file, error) : status;
}

io_status st_open_memory(const void *data, size_t size, st_file **file, io_error *error)
{
    io_file in;
    *file = NULL;
    io_status status = io_file_memory(&in, data, size, error);
    return status == IO_OK ? hand_over(&in, file, error) : status;
}

void st_close(st_file *file)
{
    if (!file) return;
    io_file_close(&file->in);
    free(file->header);
    free(file->tensors);
    free(file->by_name);
    free(file->metadata);
    free(file);
}

size_t st_count(const st_file *file)
{
    return file->count;
}

const st_tensor *st_at(const st_file *file, size_t i)
{
    return &file->tensors[i];
}

const st_tensor *st_find(const st_file *file, const char *name)
{
    const st_tensor wanted = {.name = name}, *key = &wanted;
    const st_tensor **hit =
        bsearch(&key, file->by_name, file->count, sizeof *file->by_name, compare_names);
    return hit ? *hit : NULL;
}

size_t st_metadata_count(const st_file *file)
{
    return file->metadata_count;
}

const char *st_metadata_key(const st_file *file, size_t i)
{
    return file->metadata[i].key;
}

const char *st_metadata(const st_file *file, const char *key)
{
    if (!file->metadata) return NULL;
    const pair wanted = {.key = key};
    const pair *hit =
        bsearch(&wanted, file->metadata, file->metadata_count, sizeof wanted, compare_keys);
    return hit ? hit->value : NULL;
}

io_status st_read(const st_file *file, const st_tensor *t, void *dst, io_error *error)
{
    return st_read_part(file, t, 0, t->bytes, dst, error);
}

io_status st_read_part(const st_file *file, const st_tensor *t, size_t from, size_t n, void *dst,
                       io_error *error)
{
    return io_file_read(&file->in, file->data_start + t->offset + from, dst, n, error);
}

void st_will_need(const st_file *file, const st_tensor *t, size_t from, size_t n)
{
    io_file_will_need(&file->in, file->data_start + t->offset + from, n);
}

const io_file *st_source(const st_file *f, size_t *header_bytes)
{
    *header_bytes = f->data_start;
    return &f->in;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* index.c - the reader of indices.
 *
 * It owns the text, decoded in place, an entry for each tensor and the list of files.  It refuses
 * text that is no JSON object with a weight_map of strings, names of files that lead elsewhere, and
 * a tensor that occurs twice.  Memory stays below 16 times the text: 16 bytes for an entry and 8
 * for its file, where the text has seven at least.  Time grows with the text times the logarithm of the
 * number of tensors. */
#include "io/index.h"

#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/grow.h"
#include "io/io_error.h"
#include "io/json_scan.h"

enum {
    TEXT_MAX = 100000000, /* as a safetensors header, which names the same tensors */
    FILE_NAME_MAX = 255,  /* as in a folder */
    DEPTH_MAX = 32
};

typedef struct entry {
    const char *tensor;
    union {
        const char *name; /* while the files have no numbers */
        size_t number;
    } file;
} entry;

struct ix_index {
    char *text;
    entry *entries; /* sorted by tensor */
    size_t count;
    const char **files; /* sorted */
    size_t file_count;
};

typedef struct parser {
    ix_index *index;
    io_json scan;
    size_t room; /* of entries */
    bool nomem;
} parser;

/* ---- reading --------------------------------------------------------------------------------- */

static bool parse_file_name(io_json *s, const char **name)
{
    if (!io_json_string(s, name)) return false;
    if (**name == '\0' || strchr(*name, '/') || !strcmp(*name, ".") || !strcmp(*name, ".."))
        return io_json_fail(s, "a file is no plain name in the folder of the index");
    if (strlen(*name) > FILE_NAME_MAX)
        return io_json_fail(s, "the name of a file is longer than 255 bytes");
    return true;
}

static bool parse_weight_map(parser *p)
{
    ix_index *x = p->index;
    io_json *s = &p->scan;
    if (!io_json_open(s, '{')) return false;
    for (size_t n = 0; io_json_next(s, '}', n); n++) {
        entry one;
        if (!io_json_key(s, &one.tensor) || !parse_file_name(s, &one.file.name)) return false;
        entry *list = io_grown(x->entries, x->count, &p->room, sizeof one);
        p->nomem = !list;
        if (!list) return false;
        x->entries = list;
        list[x->count++] = one;
    }
    return !s->rule;
}

static bool parse_text(parser *p)
{
    io_json *s = &p->scan;
    bool seen = false;
    if (!io_json_open(s, '{')) return false;
    for (size_t n = 0; io_json_next(s, '}', n); n++) {
        const char *key;
        if (!io_json_key(s, &key)) return false;
        bool is_map = strcmp(key, "weight_map") == 0;
        if (is_map && seen) return io_json_fail(s, "weight_map occurs twice");
        seen |= is_map;
        if (!(is_map ? parse_weight_map(p) : io_json_skip(s, DEPTH_MAX))) return false;
    }
    if (s->rule || !io_json_end(s)) return false;
    if (!seen) return io_json_fail(s, "the object has no weight_map");
    return true;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->file.name, ((const entry *)b)->file.name);
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->tensor, ((const entry *)b)->tensor);
}

/* From names of files to their numbers. */
static bool number_files(ix_index *x)
{
    if (x->count == 0) return true;
    qsort(x->entries, x->count, sizeof *x->entries, compare_files);
    size_t files = 1;
    for (size_t i = 1; i < x->count; i++)
        files += compare_files(&x->entries[i - 1], &x->entries[i]) != 0;
    x->files = malloc(files * sizeof *x->files);
    if (!x->files) return false;
    for (size_t i = 0; i < x->count; i++) {
        const char *name = x->entries[i].file.name;
        if (i == 0 || strcmp(x->files[x->file_count - 1], name) != 0)
            x->files[x->file_count++] = name;
        x->entries[i].file.number = x->file_count - 1;
    }
    return true;
}

/* Sorting, unlike hashing, cannot be slowed down by chosen names. */
static io_status sort_tensors(ix_index *x, const char *path, io_error *error)
{
    if (x->count > 0) qsort(x->entries, x->count, sizeof *x->entries, compare_tensors);
    for (size_t i = 1; i < x->count; i++) {
        const char *name = x->entries[i].tensor;
        if (strcmp(x->entries[i - 1].tensor, name) == 0)
            return io_fail(error, IO_E_FORMAT, path,
                           "tensor \"%.*s\": the name occurs twice at byte %zu", io_clip(name),
                           name, (size_t)(name - x->text));
    }
    return IO_OK;
}

static io_status load(ix_index *x, const io_file *in, io_error *error)
{
    io_status status = io_file_text(in, TEXT_MAX, &x->text, error);
    if (status != IO_OK) return status;
    parser p = {.index = x, .scan = {.text = x->text, .size = in->size}};
    bool parsed = parse_text(&p);
    if (p.nomem || (parsed && !number_files(x))) return io_no_memory(error, in->path);
    if (!parsed)
        return io_fail(error, IO_E_FORMAT, in->path, "%s at byte %zu", p.scan.rule, p.scan.token);
    return sort_tensors(x, in->path, error);
}

/* Reads all of in, and closes it. */
static io_status read_index(io_file *in, ix_index **index, io_error *error)
{
    ix_index *x = calloc(1, sizeof *x);
    io_status status = x ? load(x, in, error) : io_no_memory(error, in->path);
    io_file_close(in);
    if (status == IO_OK)
        *index = x;
    else
        ix_close(x);
    return status;
}

io_status ix_open(const char *path, ix_index **index, io_error *error)
{
    io_file in;
    *index = NULL;
    io_status status = io_file_open(&in, path, error);
    return status == IO_OK ? read_index(&in, index, error) : status;
}

io_status ix_open_memory(const void *text, size_t size, ix_index **index, io_error *error)
{
    io_file in;
    *index = NULL;
    io_status status = io_file_memory(&in, text, size, error);
    return status == IO_OK ? read_index(&in, index, error) : status;
}

void ix_close(ix_index *index)
{
    if (!index) return;
    free(index->text);
    free(index->entries);
    free(index->files);
    free(index);
}

/* ---- looking up ------------------------------------------------------------------------------ */

size_t ix_files(const ix_index *index)
{
    return index->file_count;
}

const char *ix_file(const ix_index *index, size_t file)
{
    return index->files[file];
}

size_t ix_count(const ix_index *index)
{
    return index->count;
}

const char *ix_tensor(const ix_index *index, size_t i, size_t *file)
{
    *file = index->entries[i].file.number;
    return index->entries[i].tensor;
}

bool ix_find(const ix_index *index, const char *tensor, size_t *file)
{
    if (index->count == 0) return false;
    const entry wanted = {.tensor = tensor};
    const entry *hit =
        bsearch(&wanted, index->entries, index->count, sizeof wanted, compare_tensors);
    if (hit) *file = hit->file.number;
    return hit != NULL;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_split.c - a model in several files, NAME-00001-of-0000N.gguf.
 *
 * It owns the rules between them: each says its number and how many there are, as its name does, and
 * all agree on how many tensors they hold together.  Whether a file is one of several, its keys say. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/gguf_file.h"
#include "io/io_error.h"

enum { SUFFIX = sizeof "-00001-of-00002.gguf" - 1, FILES_MAX = 99999 };

/* The integer of a key that part must have, at most `most`. */
static io_status take_integer(const gg_part *part, const char *key, int64_t most, int64_t *value,
                              io_error *error)
{
    const gg_pair *pair = gg_pair_find(part, key);
    if (!pair)
        return io_fail(error, IO_E_FORMAT, part->in.path, "key \"%s\" is missing in a split", key);
    if (gg_pair_integer(pair, value) && *value <= most) return IO_OK;
    return io_fail(error, IO_E_FORMAT, part->in.path,
                   "key \"%s\": the value is no integer from 0 to %" PRId64 " at byte %" PRIu32,
                   key, most, pair->at);
}

/* key has the value that is wanted. */
static io_status check_integer(const gg_part *part, const char *key, int64_t wanted,
                               io_error *error)
{
    int64_t value;
    io_status status = take_integer(part, key, INT64_MAX, &value, error);
    if (status != IO_OK || value == wanted) return status;
    return io_fail(error, IO_E_FORMAT, part->in.path,
                   "key \"%s\": the value is %" PRId64 " where %" PRId64
                   " is expected at byte %" PRIu32,
                   key, value, wanted, gg_pair_find(part, key)->at);
}

static io_status load_part(gg_file *f, const char *path, int64_t no, int64_t count, int64_t tensors,
                           io_error *error)
{
    io_file in;
    io_status status = io_file_open(&in, path, error);
    if (status == IO_OK) status = gg_load_part(f, &in, error);
    if (status != IO_OK) return status;
    const gg_part *part = &f->parts[f->part_count - 1];
    status = check_integer(part, "split.no", no, error);
    if (status == IO_OK) status = check_integer(part, "split.count", count, error);
    if (status == IO_OK) status = check_integer(part, "split.tensors.count", tensors, error);
    return status;
}

/* The last SUFFIX characters of a path. */
static void put_suffix(char suffix[SUFFIX + 1], int64_t no, int64_t count)
{
    char text[64];
    snprintf(text, sizeof text, "-%05" PRId64 "-of-%05" PRId64 ".gguf", no + 1, count);
    memcpy(suffix, text, SUFFIX + 1);
}

/* The end of the path if it is that of file number no, else NULL. */
static char *suffix_of(char *path, int64_t no, int64_t count)
{
    char suffix[SUFFIX + 1];
    size_t length = strlen(path);
    put_suffix(suffix, no, count);
    if (length < SUFFIX || strcmp(path + length - SUFFIX, suffix) != 0) return NULL;
    return path + length - SUFFIX;
}

/* The file at path is number no, and not the first, which may not even be there. */
static io_status refuse_later(char *path, int64_t no, int64_t count, io_error *error)
{
    char *suffix = suffix_of(path, no, count);
    if (suffix) {
        io_file first;
        put_suffix(suffix, 0, count);
        io_status status = io_file_open(&first, path, error);
        if (status != IO_OK) return status;
        io_file_close(&first);
        put_suffix(suffix, no, count);
    }
    return io_fail(error, IO_E_FORMAT, path,
                   "the file is number %" PRId64 " of a split: the first is to be opened", no + 1);
}

static io_status load_parts(gg_file *f, char *path, int64_t count, io_error *error)
{
    char *suffix = suffix_of(path, 0, count);
    if (!suffix)
        return io_fail(error, IO_E_FORMAT, path,
                       "the file is one of a split, and its name does not end in "
                       "-00001-of-%05" PRId64 ".gguf",
                       count);
    int64_t tensors;
    io_status status =
        take_integer(&f->parts[0], "split.tensors.count", GG_TENSORS_MAX, &tensors, error);
    for (int64_t no = 1; no < count && status == IO_OK; no++) {
        put_suffix(suffix, no, count);
        status = load_part(f, path, no, count, tensors, error);
    }
    if (status != IO_OK || f->count == (size_t)tensors) return status;
    return io_fail(error, IO_E_FORMAT, f->parts[0].in.path,
                   "the files of the split hold %zu tensors, and split.tensors.count is %" PRId64,
                   f->count, tensors);
}

/* split.count 0 is what merging leaves behind. */
io_status gg_load_split(gg_file *f, const char *path, io_error *error)
{
    const gg_part *first = &f->parts[0];
    int64_t count = 0, no;
    if (!gg_pair_find(first, "split.count")) return IO_OK;
    io_status status = take_integer(first, "split.count", FILES_MAX, &count, error);
    if (status != IO_OK || count <= 1) return status;
    status = take_integer(first, "split.no", count - 1, &no, error);
    if (status != IO_OK) return status;
    if (!path)
        return io_fail(error, IO_E_FORMAT, first->in.path, "the file is one of a split of %" PRId64,
                       count);
    size_t bytes = strlen(path) + 1;
    char *copy = malloc(bytes);
    if (!copy) return io_no_memory(error, path);
    memcpy(copy, path, bytes);
    status = no == 0 ? load_parts(f, copy, count, error) : refuse_later(copy, no, count, error);
    free(copy);
    return status;
}

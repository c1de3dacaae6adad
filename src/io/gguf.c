/* SPDX-License-Identifier: Apache-2.0 */
/* gguf.c - the reader: the head of a file, its tensors, opening and reading.
 *
 * It owns the rules of a file as a whole: magic, version, counts, and tensors of known types whose
 * data lie aligned inside the file, each byte in one of them at most.  (Bytes that are in none, and
 * any after the last, are legal.)  Memory stays below 16 times the header, and time grows with the
 * header times the logarithm of the number of names. */
#include "io/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "io/gguf_file.h"
#include "io/grow.h"
#include "io/io_error.h"

/* ---- the head -------------------------------------------------------------------------------- */

static bool check_version(gg_cursor *c, uint32_t version)
{
    if (version == 2 || version == 3) return true;
    if (version << 16 == 0 && version != 0) return gg_fail(c, "the file is big-endian");
    return gg_fail(c, "version %" PRIu32 " is neither 2 nor 3", version);
}

static bool take_magic(gg_cursor *c)
{
    char magic[4];
    uint32_t version;
    if (!gg_take(c, magic, sizeof magic)) return false;
    if (memcmp(magic, "FUGG", sizeof magic) == 0) return gg_fail(c, "the file is big-endian");
    if (memcmp(magic, "GGUF", sizeof magic) != 0) return gg_fail(c, "the magic is not GGUF");
    return gg_take_u32(c, &version) && check_version(c, version);
}

/* A count of records of so many bytes at least. */
static bool take_count(gg_cursor *c, const char *what, uint64_t most, size_t bytes, uint64_t *n)
{
    if (!gg_take_u64(c, n)) return false;
    if (*n > most) return gg_fail(c, "%" PRIu64 " %s are more than %" PRIu64, *n, what, most);
    if (*n > gg_rest(c) / bytes)
        return gg_fail(c, "%" PRIu64 " %s are more than the rest of the file holds", *n, what);
    return true;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static bool take_shape(gg_cursor *c, gg_tensor *t)
{
    uint32_t rank;
    if (!gg_take_u32(c, &rank)) return false;
    if (rank > GG_MAX_RANK)
        return gg_fail(c, "%" PRIu32 " dimensions are more than %d", rank, GG_MAX_RANK);
    t->rank = (int)rank;
    for (int i = 0; i < GG_MAX_RANK; i++) {
        t->ne[i] = 1;
        if (i >= t->rank) continue;
        if (!gg_take_u64(c, &t->ne[i])) return false;
        if (t->ne[i] > INT64_MAX) return gg_fail(c, "a dimension is negative, or 2^63 or more");
    }
    return true;
}

static bool take_type(gg_cursor *c, gg_tensor *t)
{
    size_t k, block;
    if (!gg_take_u32(c, &t->type)) return false;
    gg_type_block(t->type, &k, &block);
    if (k == 0) return gg_fail(c, "%" PRIu32 " is no type of a tensor", t->type);
    if (t->ne[0] % k != 0)
        return gg_fail(c, "the first dimension, %" PRIu64 ", is no multiple of a %s block, %zu",
                       t->ne[0], gg_type_name(t->type), k);
    if (!gg_tensor_bytes(t->type, t->ne, &t->bytes)) return gg_fail(c, "the shape overflows");
    return true;
}

static bool take_offset(gg_cursor *c, gg_tensor *t)
{
    uint64_t offset;
    if (!gg_take_u64(c, &offset)) return false;
    if (offset % c->part->alignment != 0)
        return gg_fail(c, "the offset %" PRIu64 " is no multiple of the alignment, %zu", offset,
                       c->part->alignment);
    t->offset = offset;
    return true;
}

static bool take_tensor(gg_cursor *c, gg_file *f)
{
    gg_entry one = {.at = c->at, .t = {.part = f->part_count}};
    gg_tensor *t = &one.t;
    if (f->count == GG_TENSORS_MAX)
        return gg_fail(c, "the split has more than %d tensors", GG_TENSORS_MAX);
    if (!gg_take_name(c, &t->name)) return false;
    c->what = "tensor";
    c->name = t->name;
    if (!take_shape(c, t) || !take_type(c, t) || !take_offset(c, t)) return false;
    c->name = NULL;
    gg_entry *list = io_grown(f->entries, f->count, &f->room, sizeof one);
    if (!list) return gg_no_memory(c);
    f->entries = list;
    list[f->count++] = one;
    return true;
}

/* The tensors of the part, which are the last of f, lie inside the file. */
static bool check_ends(gg_cursor *c, gg_file *f, size_t first)
{
    gg_part *p = c->part;
    bool fits = checked_round_up(c->at, p->alignment, &p->data_start);
    size_t room = fits && p->in.size > p->data_start ? p->in.size - p->data_start : 0;
    for (size_t i = first; i < f->count; i++) {
        const gg_tensor *t = &f->entries[i].t;
        if (t->offset <= room && t->bytes <= room - t->offset) continue;
        c->what = "tensor";
        c->name = t->name;
        c->token = f->entries[i].at;
        return gg_fail(c, "%zu bytes at offset %zu end beyond the file, whose data are %zu bytes,",
                       t->bytes, t->offset, room);
    }
    return true;
}

static bool take_header(gg_cursor *c, gg_file *f)
{
    uint64_t tensors, pairs;
    size_t first = f->count;
    if (!take_magic(c) ||
        !take_count(c, "tensors", GG_TENSORS_MAX, GG_TENSOR_BYTES_MIN, &tensors) ||
        !take_count(c, "keys", GG_KEYS_MAX, GG_KEY_BYTES_MIN, &pairs) || !gg_take_pairs(c, pairs))
        return false;
    while (tensors-- > 0) {
        if (!take_tensor(c, f)) return false;
    }
    return check_ends(c, f, first);
}

static void close_part(gg_part *p)
{
    io_keep_free(&p->keep);
    free(p->pairs);
    free(p->by_key);
    io_file_close(&p->in);
}

io_status gg_load_part(gg_file *f, io_file *in, io_error *error)
{
    gg_part *list = io_grown(f->parts, f->part_count, &f->part_room, sizeof *list);
    if (!list) {
        io_status status = io_no_memory(error, in->path);
        io_file_close(in);
        return status;
    }
    f->parts = list;
    gg_part *p = &list[f->part_count];
    *p = (gg_part){.in = *in};
    gg_cursor c;
    if (gg_cursor_open(&c, p, error)) take_header(&c, f);
    gg_cursor_close(&c);
    if (c.status == IO_OK)
        f->part_count++;
    else
        close_part(p);
    return c.status;
}

/* ---- all tensors together -------------------------------------------------------------------- */

static int compare_places(const void *a, const void *b)
{
    const gg_tensor *x = &(*(const gg_entry *const *)a)->t, *y = &(*(const gg_entry *const *)b)->t;
    if (x->part != y->part) return x->part < y->part ? -1 : 1;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const gg_entry *const *)a)->t.name, (*(const gg_entry *const *)b)->t.name);
}

static io_status refuse(const gg_file *f, const gg_entry *e, const char *rule, io_error *error)
{
    return io_fail(error, IO_E_FORMAT, f->parts[e->t.part].in.path,
                   "tensor \"%.*s\": %s at byte %zu", io_clip(e->t.name), e->t.name, rule, e->at);
}

static io_status check_overlap(gg_file *f, io_error *error)
{
    size_t part = 0, end = 0;
    qsort(f->by_name, f->count, sizeof *f->by_name, compare_places);
    for (size_t i = 0; i < f->count; i++) {
        const gg_tensor *t = &f->by_name[i]->t;
        if (t->bytes == 0) continue;
        if (t->part != part) end = 0;
        if (t->offset < end)
            return refuse(f, f->by_name[i], "the data overlap another tensor's", error);
        part = t->part;
        end = t->offset + t->bytes; /* inside the file: was checked */
    }
    return IO_OK;
}

/* Sorting, unlike hashing, cannot be slowed down by chosen names. */
static io_status check_names(gg_file *f, io_error *error)
{
    qsort(f->by_name, f->count, sizeof *f->by_name, compare_names);
    for (size_t i = 1; i < f->count; i++) {
        if (compare_names(&f->by_name[i - 1], &f->by_name[i]) == 0)
            return refuse(f, f->by_name[i], "the name occurs twice", error);
    }
    return IO_OK;
}

static io_status check_tensors(gg_file *f, io_error *error)
{
    f->by_name = malloc((f->count + 1) * sizeof *f->by_name);
    if (!f->by_name) return io_no_memory(error, f->parts[0].in.path);
    for (size_t i = 0; i < f->count; i++) f->by_name[i] = &f->entries[i];
    io_status status = check_overlap(f, error);
    return status == IO_OK ? check_names(f, error) : status;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Loads what is opened as in, and what belongs to it, and hands it to the caller, or closes it. */
static io_status hand_over(io_file *in, const char *path, gg_file **file, io_error *error)
{
    gg_file *f = calloc(1, sizeof *f);
    if (!f) {
        io_status status = io_no_memory(error, in->path);
        io_file_close(in);
        return status;
    }
    io_status status = gg_load_part(f, in, error);
    if (status == IO_OK) status = gg_load_split(f, path, error);
    if (status == IO_OK) status = check_tensors(f, error);
    if (status == IO_OK)
        *file = f;
    else
        gg_close(f);
    return status;
}

io_status gg_open(const char *path, gg_file **file, io_error *error)
{
    io_file in;
    *file = NULL;
    io_status status = io_file_open(&in, path, error);
    return status == IO_OK ? hand_over(&in, path, file, error) : status;
}

io_status gg_open_memory(const void *data, size_t size, gg_file **file, io_error *error)
{
    io_file in;
    *file = NULL;
    io_status status = io_file_memory(&in, data, size, error);
    return status == IO_OK ? hand_over(&in, NULL, file, error) : status;
}

void gg_close(gg_file *file)
{
    if (!file) return;
    for (size_t i = 0; i < file->part_count; i++) close_part(&file->parts[i]);
    free(file->parts);
    free(file->entries);
    free(file->by_name);
    free(file);
}

size_t gg_count(const gg_file *file)
{
    return file->count;
}

const gg_tensor *gg_at(const gg_file *file, size_t i)
{
    return &file->entries[i].t;
}

const gg_tensor *gg_find(const gg_file *file, const char *name)
{
    const gg_entry wanted = {.t.name = name}, *at = &wanted;
    const gg_entry **hit = bsearch(&at, file->by_name, file->count, sizeof at, compare_names);
    return hit ? &(*hit)->t : NULL;
}

io_status gg_read(const gg_file *file, const gg_tensor *t, size_t from, size_t n, void *dst,
                  io_error *error)
{
    const gg_part *p = &file->parts[t->part];
    return io_file_read(&p->in, p->data_start + t->offset + from, dst, n, error);
}

void gg_will_need(const gg_file *file, const gg_tensor *t, size_t from, size_t n)
{
    const gg_part *p = &file->parts[t->part];
    io_file_will_need(&p->in, p->data_start + t->offset + from, n);
}

const io_file *gg_source(const gg_file *f, size_t part, size_t *header_bytes)
{
    *header_bytes = f->parts[part].data_start;
    return &f->parts[part].in;
}

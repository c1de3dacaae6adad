/* SPDX-License-Identifier: Apache-2.0 */
/* packed.c - head and checksums of packed layers, and who writes them.
 *
 * It owns the rules of the head: sizes that agree with each other and with the file's, checksums
 * that agree with what they are of.  What `about` and the payload mean is others' (cache.c). */
#define _XOPEN_SOURCE 700

#include "io/packed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checked.h"
#include "experts_version.h"
#include "io/hash.h"
#include "io/io_error.h"
#include "io/output.h"
#include "io/packed_file.h"
#include "sizes.h"

enum { PACKED_ORDER = 0x01020304, PACKED_VERSION = 1 };

/* What an honest file stays far below, and what memory is taken for before its checksum is seen. */
#define PACKED_ABOUT_MOST   ((uint64_t)256 << 20)
#define PACKED_PAYLOAD_MOST ((uint64_t)4 << 40)

/* The first 32 bytes are the same in every version, so that one that is not known is not taken for
 * damage. */
typedef struct packed_head {
    char magic[PACKED_NAME];
    uint32_t order, version, layout, canon;
    uint64_t kind_hash; /* of the above */
    uint64_t file_bytes, about_bytes, payload_at, payload_bytes;
    uint64_t chunk_bytes;
    uint64_t about_hash; /* of all from PACKED_HEAD to the payload */
    uint64_t spare;      /* 0 */
    uint64_t head_hash;  /* of the above */
} packed_head;

_Static_assert(sizeof(packed_head) == PACKED_HEAD && sizeof(size_t) == 8, "no padding, 64 bits");

static size_t chunks_of(size_t payload)
{
    return size_pieces(payload, PACKED_CHUNK);
}

static size_t sums_at(size_t about_bytes)
{
    return PACKED_HEAD + size_round_up(about_bytes, sizeof(uint64_t));
}

static packed_head head_of(size_t about_bytes, size_t payload)
{
    packed_head h;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, PACKED_MAGIC, sizeof h.magic);
    h.order = PACKED_ORDER;
    h.version = PACKED_VERSION;
    h.layout = EXPERTS_VERSION;
    h.canon = EXPERTS_CANON;
    h.kind_hash = io_hash(&h, offsetof(packed_head, kind_hash));
    h.about_bytes = about_bytes;
    h.payload_at =
        size_round_up(sums_at(about_bytes) + chunks_of(payload) * sizeof(uint64_t), PACKED_ALIGN);
    h.payload_bytes = payload;
    h.file_bytes = h.payload_at + payload;
    h.chunk_bytes = PACKED_CHUNK;
    return h;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* The checksums of a payload that comes in pieces. */
typedef struct summing {
    unsigned char *chunk; /* one that is not whole yet */
    size_t filled, bytes; /* of it; of all before it */
    uint64_t *sums;
    size_t room;
} summing;

static bool sum_chunk(summing *s, const void *data, size_t bytes)
{
    size_t n = s->bytes / PACKED_CHUNK;
    if (n == s->room) {
        size_t room = s->room * 2 + 64;
        uint64_t *wider = realloc(s->sums, room * sizeof *wider);
        if (wider == NULL) return false;
        s->sums = wider;
        s->room = room;
    }
    s->sums[n] = io_hash(data, bytes);
    s->bytes += bytes;
    return true;
}

static moe_status put_sum(void *to, const void *data, size_t bytes)
{
    summing *s = to;
    const unsigned char *at = data;
    for (size_t n; bytes > 0; at += n, bytes -= n) {
        const void *whole = at;
        n = size_smaller(bytes, PACKED_CHUNK - s->filled);
        if (n < PACKED_CHUNK) {
            memcpy(s->chunk + s->filled, at, n);
            s->filled += n;
            if (s->filled < PACKED_CHUNK) continue;
            s->filled = 0;
            whole = s->chunk;
        }
        if (!sum_chunk(s, whole, PACKED_CHUNK)) return MOE_E_NOMEM;
    }
    return MOE_OK;
}

static moe_status put_bytes(void *to, const void *data, size_t bytes)
{
    io_output *o = to;
    io_output_put(o, data, bytes);
    return o->cause == 0 ? MOE_OK : MOE_E_WRITE;
}

/* Replaces no link, device or pipe. */
static io_status check_target(const char *path, io_error *error)
{
    struct stat about;
    if (lstat(path, &about) != 0 || S_ISREG(about.st_mode)) return IO_OK;
    return io_fail(error, IO_E_WRITE, path, "is there already, and is no regular file");
}

/* The head and all before the payload: *bytes of them, which the caller frees. */
static unsigned char *front_of(const void *about, size_t about_bytes, const summing *s,
                               size_t *bytes)
{
    packed_head h = head_of(about_bytes, s->bytes);
    unsigned char *front = calloc(1, (size_t)h.payload_at);
    if (front == NULL) return NULL;
    *bytes = (size_t)h.payload_at;
    if (about_bytes > 0) memcpy(front + PACKED_HEAD, about, about_bytes);
    if (s->bytes > 0)
        memcpy(front + sums_at(about_bytes), s->sums, chunks_of(s->bytes) * sizeof *s->sums);
    h.about_hash = io_hash(front + PACKED_HEAD, *bytes - PACKED_HEAD);
    h.head_hash = io_hash(&h, offsetof(packed_head, head_hash));
    memcpy(front, &h, sizeof h);
    return front;
}

static io_status write_all(const char *path, const unsigned char *front, size_t bytes,
                           packed_emit *emit, const void *from, moe_status *status, io_error *error)
{
    io_output o;
    io_output_open(&o, path);
    io_output_put(&o, front, bytes);
    if (o.cause == 0) {
        *status = emit(from, put_bytes, &o);
        if (*status != MOE_OK && o.cause == 0) o.cause = ECANCELED;
    }
    io_status s = io_output_finish(&o, error);
    if (s != IO_OK && o.cause != ECANCELED) *status = MOE_OK;
    return s;
}

io_status packed_write(const char *path, const void *about, size_t about_bytes, packed_emit *emit,
                       const void *from, moe_status *status, io_error *error)
{
    summing s = {.chunk = malloc(PACKED_CHUNK)};
    *status = MOE_OK;
    io_status result = check_target(path, error);
    if (result == IO_OK && s.chunk == NULL) result = io_no_memory(error, path);
    if (result == IO_OK) {
        *status = emit(from, put_sum, &s);
        if (*status == MOE_OK && s.filled > 0 && !sum_chunk(&s, s.chunk, s.filled))
            *status = MOE_E_NOMEM;
        if (*status == MOE_E_NOMEM) result = io_no_memory(error, path);
        if (*status != MOE_OK && result == IO_OK)
            result = io_fail(error, IO_E_WRITE, path, "%s", moe_last_error());
    }
    unsigned char *front = NULL;
    size_t bytes = 0;
    if (result == IO_OK) {
        front = front_of(about, about_bytes, &s, &bytes);
        result = front != NULL ? write_all(path, front, bytes, emit, from, status, error)
                               : io_no_memory(error, path);
    }
    free(front);
    free(s.sums);
    free(s.chunk);
    return result;
}

/* ---- opening --------------------------------------------------------------------------------- */

#define REFUSE(file, field, rule, error)                                                           \
    io_fail(error, IO_E_FORMAT, (file)->in.path, "%s at byte %zu", rule,                           \
            offsetof(packed_head, field))

static io_status check_kind(const packed_file *f, const packed_head *h, io_error *error)
{
    if (memcmp(h->magic, PACKED_MAGIC, sizeof h->magic) != 0)
        return REFUSE(f, magic, "not a packed layer", error);
    if (h->order == __builtin_bswap32(PACKED_ORDER))
        return io_fail(error, IO_E_STALE, f->in.path, "packed on a machine of another byte order");
    if (h->kind_hash != io_hash(h, offsetof(packed_head, kind_hash)))
        return REFUSE(f, kind_hash, "the versions do not have their checksum", error);
    if (h->order != PACKED_ORDER) return REFUSE(f, order, "no byte order", error);
    if (h->version != PACKED_VERSION || h->layout != EXPERTS_VERSION || h->canon != EXPERTS_CANON)
        return io_fail(error, IO_E_STALE, f->in.path,
                       "packed in version %u, layout %u, canon %u: this library reads %u, %u, %u",
                       (unsigned)h->version, (unsigned)h->layout, (unsigned)h->canon,
                       (unsigned)PACKED_VERSION, EXPERTS_VERSION, (unsigned)EXPERTS_CANON);
    return IO_OK;
}

static io_status check_sizes(const packed_file *f, const packed_head *h, io_error *error)
{
    if (h->head_hash != io_hash(h, offsetof(packed_head, head_hash)))
        return REFUSE(f, head_hash, "the head does not have its checksum", error);
    if (h->about_bytes > PACKED_ABOUT_MOST)
        return REFUSE(f, about_bytes, "more is said about the layer than there can be", error);
    if (h->payload_bytes > PACKED_PAYLOAD_MOST)
        return REFUSE(f, payload_bytes, "a payload of more than 4 TiB", error);
    packed_head must = head_of((size_t)h->about_bytes, (size_t)h->payload_bytes);
    must.about_hash = h->about_hash;
    must.head_hash = h->head_hash;
    for (size_t i = 0; i < sizeof must; i++)
        if (((const char *)h)[i] != ((const char *)&must)[i])
            return io_fail(error, IO_E_FORMAT, f->in.path,
                           "a size that does not agree with the others at byte %zu", i);
    if (h->file_bytes != f->in.size)
        return io_fail(error, IO_E_FORMAT, f->in.path, "%zu bytes: must be %llu, as its head says",
                       f->in.size, (unsigned long long)h->file_bytes);
    return IO_OK;
}

/* f, of which path, where it is read from and size are known. */
static io_status open_front(packed_file *f, io_error *error)
{
    packed_head h;
    if (f->in.size < sizeof h)
        return io_fail(error, IO_E_FORMAT, f->in.path, "the head is cut off at byte %zu",
                       f->in.size);
    io_status s = io_file_read(&f->in, 0, &h, sizeof h, error);
    if (s == IO_OK) s = check_kind(f, &h, error);
    if (s == IO_OK) s = check_sizes(f, &h, error);
    if (s != IO_OK) return s;
    f->payload_at = (size_t)h.payload_at;
    f->payload = (size_t)h.payload_bytes;
    f->about_bytes = (size_t)h.about_bytes;
    size_t rest = f->payload_at - PACKED_HEAD; /* not 0: the payload is aligned */
    f->front = malloc(rest);
    if (f->front == NULL) return io_no_memory(error, f->in.path);
    s = io_file_read(&f->in, PACKED_HEAD, f->front, rest, error);
    if (s == IO_OK && io_hash(f->front, rest) != h.about_hash)
        return io_fail(error, IO_E_FORMAT, f->in.path,
                       "bytes %d to %zu do not have their checksum, at byte %zu", PACKED_HEAD,
                       f->payload_at, offsetof(packed_head, about_hash));
    /* malloc's alignment, and PACKED_HEAD and sums_at are multiples of 8 */
    f->sums = (const uint64_t *)(const void *)(f->front + sums_at(f->about_bytes) - PACKED_HEAD);
    return s;
}

/* Closes `in` if it fails. */
static io_status hand_over(io_file *in, packed_file **file, io_error *error)
{
    packed_file *f = calloc(1, sizeof *f);
    if (f == NULL) {
        io_status s = io_no_memory(error, in->path);
        io_file_close(in);
        return s;
    }
    f->in = *in;
    io_status s = open_front(f, error);
    if (s == IO_OK)
        *file = f;
    else
        packed_close(f);
    return s;
}

io_status packed_open(const char *path, packed_file **file, io_error *error)
{
    io_file in;
    *file = NULL;
    io_status s = io_file_open_own(&in, path, error);
    return s == IO_OK ? hand_over(&in, file, error) : s;
}

io_status packed_open_memory(const void *data, size_t size, packed_file **file, io_error *error)
{
    io_file in;
    *file = NULL;
    io_status s = io_file_memory(&in, data, size, error);
    return s == IO_OK ? hand_over(&in, file, error) : s;
}

void packed_close(packed_file *f)
{
    if (f == NULL) return;
    io_file_close(&f->in);
    free(f->front);
    free(f);
}

const char *packed_path(const packed_file *f)
{
    return f->in.path;
}

const void *packed_about(const packed_file *f, size_t *bytes)
{
    *bytes = f->about_bytes;
    return f->front;
}

size_t packed_bytes(const packed_file *f)
{
    return f->payload;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* packed_read.c - the payload of a packed layer, verified, by several threads.
 *
 * A chunk that is wanted whole is read to where it is wanted and summed there, in the cache of the
 * thread that read it.  One of which a part is wanted is kept aside, whole and verified, for the
 * parts that follow; so that nothing is given that was not verified as it is. */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "io/hash.h"
#include "io/io_error.h"
#include "io/packed_file.h"
#include "sizes.h"

enum { THREADS_MOST = 64 };

/* ---- chunks ---------------------------------------------------------------------------------- */

static size_t chunk_bytes(const packed_file *f, size_t number)
{
    return size_smaller(f->payload - number * PACKED_CHUNK, PACKED_CHUNK);
}

static io_status read_chunk(const packed_file *f, size_t number, void *dst, io_error *error)
{
    size_t bytes = chunk_bytes(f, number), at = f->payload_at + number * PACKED_CHUNK;
    io_status s = io_file_read(&f->in, at, dst, bytes, error);
    if (s != IO_OK || io_hash(dst, bytes) == f->sums[number]) return s;
    return io_fail(error, IO_E_FORMAT, f->in.path,
                   "the %zu bytes do not have their checksum at byte %zu", bytes, at);
}

/* ---- many chunks ----------------------------------------------------------------------------- */

/* Chunks [first, end), to be read by all who join. */
typedef struct reading {
    packed_stream *stream;
    unsigned char *to; /* of chunk `first` */
    size_t first, end;
    atomic_size_t next, done; /* done: chunks */
    atomic_bool stop;
    pthread_mutex_t lock; /* of stream->error and failed */
    size_t failed;        /* the first chunk that did, end: none */
} reading;

static void fail(reading *r, size_t number, const io_error *error)
{
    pthread_mutex_lock(&r->lock);
    if (number < r->failed) {
        r->failed = number;
        r->stream->error = *error;
    }
    pthread_mutex_unlock(&r->lock);
    atomic_store(&r->stop, true);
}

/* False if there was nothing left to do. */
static bool read_next(reading *r)
{
    io_error error;
    if (atomic_load(&r->stop)) return false;
    size_t n = atomic_fetch_add(&r->next, 1);
    if (n >= r->end) return false;
    unsigned char *to = r->to + (n - r->first) * PACKED_CHUNK;
    if (read_chunk(r->stream->file, n, to, &error) != IO_OK) fail(r, n, &error);
    atomic_fetch_add(&r->done, 1);
    return true;
}

static void *help(void *arg)
{
    while (read_next(arg)) continue;
    return NULL;
}

/* Asks whether to go on; `bytes` of the payload are read, or all. */
static bool go_on(packed_stream *s, size_t bytes)
{
    bytes = size_smaller(bytes, s->file->payload);
    if (s->progress == NULL || s->progress(s->user, bytes, s->file->payload) == 0) return true;
    io_fail(&s->error, IO_E_READ, s->file->in.path, "reading was stopped at byte %zu",
            s->file->payload_at + bytes);
    return false;
}

/* Signals are for the caller's threads. */
static size_t start(reading *r, size_t count, pthread_t *thread)
{
    sigset_t all, old;
    size_t n = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (n < count && pthread_create(&thread[n], NULL, help, r) == 0) n++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return n;
}

static bool read_chunks(packed_stream *s, unsigned char *to, size_t first, size_t end)
{
    pthread_t thread[THREADS_MOST];
    reading r = {.stream = s, .to = to, .first = first, .end = end, .failed = end};
    atomic_init(&r.next, first);
    if (pthread_mutex_init(&r.lock, NULL) != 0) {
        io_fail(&s->error, IO_E_NOMEM, s->file->in.path, "out of memory");
        return false;
    }
    size_t helpers = s->threads > 1 ? (size_t)s->threads - 1 : 0;
    helpers = size_smaller(size_smaller(helpers, THREADS_MOST), end - first - 1);
    helpers = start(&r, helpers, thread); /* without them it takes longer */
    bool goes_on = true;
    size_t reported = first;
    while (goes_on && read_next(&r)) {
        reported = first + atomic_load(&r.done);
        goes_on = go_on(s, reported * PACKED_CHUNK);
    }
    if (!goes_on) atomic_store(&r.stop, true);
    for (size_t n = 0; n < helpers; n++) pthread_join(thread[n], NULL);
    pthread_mutex_destroy(&r.lock);
    if (!goes_on || r.failed < end) return false;
    return reported == end || go_on(s, end * PACKED_CHUNK); /* helpers were last */
}

/* ---- the stream ------------------------------------------------------------------------------ */

/* The chunk to s->chunk. */
static bool keep(packed_stream *s, size_t number)
{
    if (s->chunk != NULL && s->number == number) return true;
    if (s->chunk == NULL) s->chunk = malloc(PACKED_CHUNK);
    s->number = SIZE_MAX;
    if (s->chunk == NULL) {
        io_fail(&s->error, IO_E_NOMEM, s->file->in.path, "out of memory");
        return false;
    }
    if (read_chunk(s->file, number, s->chunk, &s->error) != IO_OK) return false;
    s->number = number;
    return go_on(s, (number + 1) * PACKED_CHUNK);
}

bool packed_read(packed_stream *s, void *data, size_t bytes)
{
    const packed_file *f = s->file;
    unsigned char *to = data;
    if (s->at > f->payload || bytes > f->payload - s->at) {
        io_fail(&s->error, IO_E_FORMAT, f->in.path, "the payload ends at byte %zu", f->in.size);
        return false;
    }
    for (size_t n; bytes > 0; to += n, s->at += n, bytes -= n) {
        size_t number = s->at / PACKED_CHUNK, inside = s->at % PACKED_CHUNK;
        size_t whole =
            bytes / PACKED_CHUNK; /* and the last chunk of the file, if all of it is wanted */
        if (s->at + bytes == f->payload) whole = size_pieces(bytes, PACKED_CHUNK);
        if (inside == 0 && whole > 0) {
            n = size_smaller(bytes, whole * PACKED_CHUNK);
            if (!read_chunks(s, to, number, number + whole)) return false;
        } else {
            n = size_smaller(bytes, chunk_bytes(f, number) - inside);
            if (!keep(s, number)) return false;
            memcpy(to, s->chunk + inside, n);
        }
    }
    return true;
}

void packed_stream_end(packed_stream *s)
{
    free(s->chunk);
    s->chunk = NULL;
}

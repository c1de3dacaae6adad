/* SPDX-License-Identifier: Apache-2.0 */
/* origin.c - sizes, times and headers of the files of a layer. */
#define _POSIX_C_SOURCE 200809L

#include "io/origin.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/checkpoint_files.h"
#include "io/file.h"
#include "io/hash.h"
#include "io/layer.h"
#include "io/model_error.h"
#include "sizes.h"

enum { PIECE = 65536 };

/* A file of the plan, before it is described. */
typedef struct found {
    const io_file *in;
    size_t header;
} found;

typedef struct list {
    found *files;
    size_t count;
} list;

/* ---- finding them ---------------------------------------------------------------------------- */

static bool add(list *l, const ck_tensor *t)
{
    found f;
    if (t->gguf)
        f.in = gg_source(t->file, ((const gg_tensor *)t->entry)->part, &f.header);
    else
        f.in = st_source(t->file, &f.header);
    for (size_t i = l->count; i-- > 0;) /* most often that of the tensor before */
        if (l->files[i].in == f.in) return true;
    found *wider = realloc(l->files, (l->count + 1) * sizeof *wider);
    if (wider == NULL) return false;
    l->files = wider;
    wider[l->count++] = f;
    return true;
}

static bool add_experts(list *l, const layer_experts *x)
{
    bool ok = true;
    for (int i = 0; ok && i < x->piece_count; i++)
        for (int64_t e = 0; ok && e < (x->pieces[i].each ? x->E : 1); e++)
            ok = add(l, &x->pieces[i].tensors[e]);
    return ok;
}

static bool find(const layer_plan *plan, list *l)
{
    const layer_vector *vectors[] = {&plan->router, &plan->router_bias, &plan->selection_bias,
                                     &plan->shared_gate};
    bool ok = add_experts(l, &plan->experts) && add_experts(l, &plan->shared);
    for (size_t i = 0; ok && i < sizeof vectors / sizeof vectors[0]; i++)
        if (vectors[i]->given) ok = add(l, &vectors[i]->tensor);
    return ok;
}

/* ---- describing them ------------------------------------------------------------------------- */

static io_status hash_header(const found *f, uint64_t *hash, io_error *error)
{
    unsigned char piece[PIECE];
    uint64_t sums[2] = {f->header, 0}; /* of the pieces before, of the next */
    io_status s = IO_OK;
    for (size_t at = 0, n; s == IO_OK && at < f->header; at += n) {
        n = size_smaller(f->header - at, PIECE);
        s = io_file_read(f->in, at, piece, n, error);
        if (s != IO_OK) break;
        sums[1] = io_hash(piece, n);
        sums[0] = io_hash(sums, sizeof sums);
    }
    *hash = sums[0];
    return s;
}

static moe_status describe(const found *f, bool now, origin_file *o)
{
    io_error error;
    struct stat about;
    const char *name = files_last(f->in->path);
    size_t length = strlen(name);
    memset(o, 0, sizeof *o);
    if (length >= ORIGIN_NAME) name += length - (ORIGIN_NAME - 1);
    strncpy(o->name, name, ORIGIN_NAME - 1);
    o->size = f->in->size;
    o->seconds = f->in->seconds;
    o->nanoseconds = f->in->nanoseconds;
    if (now) {
        if (stat(f->in->path, &about) != 0)
            return model_fail(MOE_E_STALE, f->in->path, "is not there any more");
        o->size = (uint64_t)about.st_size;
        o->seconds = about.st_mtim.tv_sec;
        o->nanoseconds = about.st_mtim.tv_nsec;
    }
    return hash_header(f, &o->headers, &error) == IO_OK ? MOE_OK : model_reader(&error);
}

static int compare(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(origin_file)); /* the name comes first */
}

moe_status origin_of(const layer_plan *plan, bool now, origin *o)
{
    list l = {NULL, 0};
    *o = (origin){NULL, 0};
    moe_status s = MOE_OK;
    if (find(plan, &l)) o->files = calloc(l.count > 0 ? l.count : 1, sizeof *o->files);
    if (o->files == NULL) s = model_argument(MOE_E_NOMEM, "out of memory");
    for (; s == MOE_OK && o->count < l.count; o->count++)
        s = describe(&l.files[o->count], now, &o->files[o->count]);
    if (s == MOE_OK)
        qsort(o->files, o->count, sizeof *o->files, compare);
    else
        origin_free(o);
    free(l.files);
    return s;
}

void origin_free(origin *o)
{
    free(o->files);
    *o = (origin){NULL, 0};
}

const origin_file *origin_differs(const origin *a, const origin *b)
{
    size_t n = size_smaller(a->count, b->count);
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a->files[i], &b->files[i], sizeof a->files[i]) != 0) return &a->files[i];
    if (a->count == b->count) return NULL;
    return a->count > n ? &a->files[n] : &b->files[n];
}

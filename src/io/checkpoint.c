/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.c - finds a model's files and the tensors in them.
 *
 * With an index, a file is opened when a tensor of it is first asked for.  What a file is, its content
 * says; names matter only where a directory has to be searched. */
#define _POSIX_C_SOURCE 200809L

#include "io/checkpoint.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_files.h"
#include "io/index.h"
#include "io/io_error.h"
#include "io/model_error.h"
#include "io/sniff.h"

typedef struct shard {
    char *path;
    _Atomic(st_file *) file; /* NULL: not opened yet */
} shard;

struct checkpoint {
    char *path, *folder;
    gg_file *gguf;   /* or NULL, and */
    ix_index *index; /* of the shards; NULL: all shards are open, and each is searched */
    shard *shards;
    size_t count;
    pthread_mutex_t *opening;
};

/* ---- opening --------------------------------------------------------------------------------- */

static moe_status no_memory(const char *path)
{
    return model_fail(MOE_E_NOMEM, path, "out of memory");
}

static moe_status open_shard(shard *s)
{
    io_error error;
    st_file *file;
    if (st_open(s->path, &file, &error) != IO_OK) return model_reader(&error);
    atomic_store(&s->file, file);
    return MOE_OK;
}

/* n shards whose paths are joined from the folder and name(i). */
static moe_status make_shards(checkpoint *ck, size_t n, const char *(*name)(const void *, size_t),
                              const void *names)
{
    ck->shards = calloc(n > 0 ? n : 1, sizeof *ck->shards);
    if (!ck->shards) return no_memory(ck->path);
    for (; ck->count < n; ck->count++) {
        char *path = files_join(ck->folder, name(names, ck->count));
        if (!path) return no_memory(ck->path);
        ck->shards[ck->count].path = path;
    }
    return MOE_OK;
}

static const char *index_name(const void *names, size_t i)
{
    return ix_file(names, i);
}

static const char *list_name(const void *names, size_t i)
{
    return ((char *const *)names)[i];
}

static moe_status open_index(checkpoint *ck, const char *path)
{
    io_error error;
    if (ix_open(path, &ck->index, &error) != IO_OK) return model_reader(&error);
    return make_shards(ck, ix_files(ck->index), index_name, ck->index);
}

static moe_status open_shards(checkpoint *ck, char *const *names, size_t n)
{
    moe_status s = make_shards(ck, n, list_name, names);
    for (size_t i = 0; s == MOE_OK && i < n; i++) s = open_shard(&ck->shards[i]);
    return s;
}

static moe_status open_gguf(checkpoint *ck, const char *path)
{
    io_error error;
    return gg_open(path, &ck->gguf, &error) == IO_OK ? MOE_OK : model_reader(&error);
}

/* A file that is no directory. */
static moe_status open_file(checkpoint *ck, const char *path, io_kind kind)
{
    char *name[1];
    switch (kind) {
    case IO_JSON: return open_index(ck, path);
    case IO_GGUF: return open_gguf(ck, path);
    case IO_PACKED:
        return model_fail(MOE_E_MODEL, path,
                          "one packed layer: the folder that it is in is opened");
    default: break; /* what is neither, the reader of safetensors refuses by its rules */
    }
    name[0] = (char *)files_last(path);
    return open_shards(ck, name, 1);
}

static moe_status open_parts(checkpoint *ck, const files_list *list)
{
    moe_status s = files_check_parts(ck->folder, list);
    return s == MOE_OK ? open_shards(ck, list->names, list->count) : s;
}

static moe_status open_directory(checkpoint *ck)
{
    files_list list;
    moe_status s = files_search(ck->folder, &list);
    if (s != MOE_OK) return s;
    char *path = files_join(ck->folder, list.count > 0 ? list.names[0] : "");
    if (!path)
        s = no_memory(ck->path);
    else if (list.kind == IO_SAFETENSORS)
        s = open_parts(ck, &list);
    else
        s = open_file(ck, path, list.kind);
    free(path);
    files_free(&list);
    return s;
}

static moe_status open_path(checkpoint *ck)
{
    io_error error;
    io_kind kind;
    if (io_sniff(ck->path, &kind, &error) != IO_OK) return model_reader(&error);
    ck->folder = kind == IO_DIRECTORY ? files_inside(ck->path) : files_folder(ck->path);
    if (!ck->folder) return no_memory(ck->path);
    return kind == IO_DIRECTORY ? open_directory(ck) : open_file(ck, ck->path, kind);
}

moe_status ck_open(const char *path, checkpoint **out)
{
    *out = NULL;
    checkpoint *ck = calloc(1, sizeof *ck);
    if (!ck) return no_memory(path);
    ck->path = files_join(path, "");
    ck->opening = malloc(sizeof *ck->opening);
    if (ck->opening && pthread_mutex_init(ck->opening, NULL) != 0) {
        free(ck->opening);
        ck->opening = NULL;
    }
    moe_status s = ck->path && ck->opening ? open_path(ck) : no_memory(path);
    if (s == MOE_OK)
        *out = ck;
    else
        ck_close(ck);
    return s;
}

void ck_close(checkpoint *ck)
{
    if (!ck) return;
    for (size_t i = 0; i < ck->count; i++) {
        st_close(atomic_load(&ck->shards[i].file));
        free(ck->shards[i].path);
    }
    free(ck->shards);
    ix_close(ck->index);
    gg_close(ck->gguf);
    if (ck->opening) pthread_mutex_destroy(ck->opening);
    free(ck->opening);
    free(ck->folder);
    free(ck->path);
    free(ck);
}

const char *ck_path(const checkpoint *ck)
{
    return ck->path;
}

const char *ck_folder(const checkpoint *ck)
{
    return ck->folder;
}

const gg_file *ck_gguf(const checkpoint *ck)
{
    return ck->gguf;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static ck_type of_safetensors(st_dtype dtype)
{
    switch (dtype) {
    case ST_F32: return CK_F32;
    case ST_F16: return CK_F16;
    case ST_BF16: return CK_BF16;
    case ST_F8_E4M3: return CK_E4M3;
    case ST_F8_E8M0: return CK_E8M0;
    case ST_U8: return CK_U8;
    case ST_I8: return CK_I8;
    case ST_F4: return CK_F4;
    case ST_I32: return CK_I32;
    case ST_I64: return CK_I64;
    default: return CK_OTHER;
    }
}

static ck_tensor from_safetensors(const st_file *file, const st_tensor *entry)
{
    ck_tensor t = {
        .name = entry->name,
        .type_name = st_dtype_name(entry->dtype),
        .type = of_safetensors(entry->dtype),
        .block_k = 1,
        .block_bytes = st_dtype_bits(entry->dtype) / 8,
        .rank = entry->rank,
        .bytes = entry->bytes,
        .file = file,
        .entry = entry,
    };
    memcpy(t.shape, entry->shape, sizeof t.shape);
    return t;
}

static ck_type of_gguf(uint32_t type, moe_dtype *blocks)
{
    static const struct {
        uint32_t type;
        ck_type is;
        moe_dtype blocks;
    } types[] = {
        {GG_F32, CK_F32, MOE_DTYPE_NONE},      {GG_F16, CK_F16, MOE_DTYPE_NONE},
        {GG_BF16, CK_BF16, MOE_DTYPE_NONE},    {GG_Q8_0, CK_BLOCKS, MOE_Q8_0},
        {GG_Q4_0, CK_BLOCKS, MOE_Q4_0},        {GG_Q4_K, CK_BLOCKS, MOE_Q4_K},
        {GG_Q5_K, CK_BLOCKS, MOE_Q5_K},        {GG_Q6_K, CK_BLOCKS, MOE_Q6_K},
        {GG_MXFP4, CK_BLOCKS, MOE_GGML_MXFP4}, {GG_NVFP4, CK_BLOCKS, MOE_GGML_NVFP4},
    };
    *blocks = MOE_DTYPE_NONE;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (types[i].type != type) continue;
        *blocks = types[i].blocks;
        return types[i].is;
    }
    return CK_OTHER;
}

static ck_tensor from_gguf(const gg_file *file, const gg_tensor *entry)
{
    ck_tensor t = {
        .name = entry->name,
        .type_name = gg_type_name(entry->type),
        .rank = entry->rank,
        .bytes = entry->bytes,
        .gguf = true,
        .file = file,
        .entry = entry,
    };
    t.type = of_gguf(entry->type, &t.blocks);
    gg_type_block(entry->type, &t.block_k, &t.block_bytes);
    for (int i = 0; i < entry->rank; i++) t.shape[i] = (int64_t)entry->ne[entry->rank - 1 - i];
    return t;
}

/* The shard's file, opened if it was not; one thread opens at a time. */
static moe_status shard_file(const checkpoint *ck, shard *s, const st_file **file)
{
    moe_status status = MOE_OK;
    *file = atomic_load(&s->file);
    if (*file) return MOE_OK;
    pthread_mutex_lock(ck->opening);
    if (!atomic_load(&s->file)) status = open_shard(s);
    pthread_mutex_unlock(ck->opening);
    *file = atomic_load(&s->file);
    return status;
}

static const st_tensor *search_shards(const checkpoint *ck, const char *name, const st_file **file)
{
    for (size_t i = 0; i < ck->count; i++) {
        *file = atomic_load(&ck->shards[i].file);
        const st_tensor *entry = st_find(*file, name);
        if (entry) return entry;
    }
    return NULL;
}

bool ck_has(const checkpoint *ck, const char *name)
{
    const st_file *file;
    size_t number;
    if (ck->gguf) return gg_find(ck->gguf, name) != NULL;
    if (ck->index) return ix_find(ck->index, name, &number);
    return search_shards(ck, name, &file) != NULL;
}

void ck_names(const checkpoint *ck, void (*see)(void *user, const char *name), void *user)
{
    size_t of;
    if (ck->gguf)
        for (size_t i = 0; i < gg_count(ck->gguf); i++) see(user, gg_at(ck->gguf, i)->name);
    else if (ck->index)
        for (size_t i = 0; i < ix_count(ck->index); i++) see(user, ix_tensor(ck->index, i, &of));
    else
        for (size_t i = 0; i < ck->count; i++) {
            const st_file *file = atomic_load(&ck->shards[i].file);
            for (size_t n = 0; n < st_count(file); n++) see(user, st_at(file, n)->name);
        }
}

moe_status ck_find(const checkpoint *ck, const char *name, ck_tensor *t, bool *found)
{
    const st_file *file = NULL;
    const st_tensor *entry = NULL;
    size_t number;
    *found = false;
    if (ck->gguf) {
        const gg_tensor *g = gg_find(ck->gguf, name);
        *found = g != NULL;
        if (g) *t = from_gguf(ck->gguf, g);
        return MOE_OK;
    }
    if (ck->index) {
        if (!ix_find(ck->index, name, &number)) return MOE_OK;
        moe_status s = shard_file(ck, &ck->shards[number], &file);
        if (s != MOE_OK) return s;
        entry = st_find(file, name);
        if (!entry)
            return model_fail(MOE_E_MODEL, ck->shards[number].path,
                              "tensor \"%.*s\" is missing, which the index says is here",
                              io_clip(name), name);
    } else {
        entry = search_shards(ck, name, &file);
    }
    *found = entry != NULL;
    if (entry) *t = from_safetensors(file, entry);
    return MOE_OK;
}

io_status ck_read(const ck_tensor *t, size_t from, size_t n, void *dst, io_error *error)
{
    if (t->gguf) return gg_read(t->file, t->entry, from, n, dst, error);
    return st_read_part(t->file, t->entry, from, n, dst, error);
}

void ck_will_need(const ck_tensor *t, size_t from, size_t n)
{
    if (t->gguf)
        gg_will_need(t->file, t->entry, from, n);
    else
        st_will_need(t->file, t->entry, from, n);
}

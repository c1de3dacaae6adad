/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.h - the tensors of a model by name, in whatever files they lie: one safetensors file,
 * several with or without an index, a GGUF file or a split. */
#ifndef MOE_IO_CHECKPOINT_H
#define MOE_IO_CHECKPOINT_H

#include <moe_tkg.h>

#include "io/gguf.h"
#include "io/safetensors.h"

/* Element types that weights, scales and routers come in. */
typedef enum ck_type {
    CK_OTHER,
    CK_F32,
    CK_F16,
    CK_BF16,
    CK_E4M3,
    CK_E8M0,
    CK_U8,
    CK_I8,
    CK_F4,
    CK_I32,
    CK_I64,
    CK_BLOCKS /* GGUF blocks: `blocks` says which */
} ck_type;

typedef struct ck_tensor {
    const char *name; /* owned by the checkpoint */
    const char *type_name;
    ck_type type;
    moe_dtype blocks; /* with CK_BLOCKS: MOE_Q8_0, ... */
    size_t block_k, block_bytes;
    int rank;
    int64_t shape[ST_MAX_RANK]; /* slowest first, in elements, whatever the file's order is */
    size_t bytes;
    bool gguf;
    const void *file, *entry; /* st_file and st_tensor, or gg_file and gg_tensor */
} ck_tensor;

typedef struct checkpoint checkpoint;

/* Opens what lies at path: a directory, an index, a safetensors or a GGUF file.  *ck is owned by the
 * caller (ck_close); NULL on failure. */
moe_status ck_open(const char *path, checkpoint **ck);
void ck_close(checkpoint *ck); /* NULL is fine */

const char *ck_path(const checkpoint *ck);   /* as it was opened, for messages */
const char *ck_folder(const checkpoint *ck); /* where its files lie, with a '/' at the end, or "" */
const gg_file *ck_gguf(const checkpoint *ck); /* NULL: safetensors */

/* Whether there is a tensor of this name; opens no further file. */
bool ck_has(const checkpoint *ck, const char *name);

/* Calls see(user, name) for every tensor; opens no further file. */
void ck_names(const checkpoint *ck, void (*see)(void *user, const char *name), void *user);

/* *t = the tensor, *found = whether there is one.  May open the file that has it, and fail as that
 * does.  Safe from any number of threads at once, as ck_read. */
moe_status ck_find(const checkpoint *ck, const char *name, ck_tensor *t, bool *found);

/* Copies bytes [from, from + n) of the tensor, which has them, to dst. */
io_status ck_read(const ck_tensor *t, size_t from, size_t n, void *dst, io_error *error);

/* Tells the system that these bytes are going to be read soon. */
void ck_will_need(const ck_tensor *t, size_t from, size_t n);

#endif

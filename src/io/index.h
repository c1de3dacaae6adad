/* SPDX-License-Identifier: Apache-2.0 */
/* index.h - read a model.safetensors.index.json: which file holds which tensor.  Takes files of
 * any origin. */
#ifndef MOE_IO_INDEX_H
#define MOE_IO_INDEX_H

#include "io/safetensors.h"

typedef struct ix_index ix_index;

/* Reads and checks path: one JSON object with a weight_map, tensor to file, no tensor twice, at
 * most 100,000,000 bytes.  Other members are skipped.  A file is a plain name in the folder of the
 * index: not empty, at most 255 bytes, no '/', not "." or "..".  Whether it is there, and holds
 * the tensor, is not looked at.  *index is owned by the caller (ix_close); NULL on failure. */
io_status ix_open(const char *path, ix_index **index, io_error *error);

/* The same for a text in memory, which may go away afterwards. */
io_status ix_open_memory(const void *text, size_t size, ix_index **index, io_error *error);

void ix_close(ix_index *index); /* NULL is fine */

/* The files, each once, sorted by name. */
size_t ix_files(const ix_index *index);
const char *ix_file(const ix_index *index, size_t file);

/* The tensors, sorted by name (owned by index), and the number of each one's file. */
size_t ix_count(const ix_index *index);
const char *ix_tensor(const ix_index *index, size_t i, size_t *file);

/* False if there is no such tensor. */
bool ix_find(const ix_index *index, const char *tensor, size_t *file);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* model_files.h - small checkpoints from short descriptions, with tensors that lack or differ.
 *
 * A description is lines "NAME DTYPE DIMENSION,DIMENSION": a {e} in the name stands for each expert, and
 * a dimension is a number or one of H, I, 2I, S, 2S, E, or such a one divided, as H/32. */
#ifndef MOE_TEST_MODEL_FILES_H
#define MOE_TEST_MODEL_FILES_H

#include <stddef.h>
#include <stdint.h>

#include "io/safetensors.h"

enum { FILES_H = 160, FILES_I = 96, FILES_S = 64, FILES_E = 3, FILES_TENSORS = 64 };

typedef struct model_files {
    st_tensor tensor[FILES_TENSORS];
    char name[FILES_TENSORS][128];
    unsigned char *data[FILES_TENSORS];
    size_t count;
} model_files;

/* The tensors of a description, with bytes drawn from seed that are no NaN in any type. */
void model_files_make(model_files *f, const char *const *lines, uint64_t seed);
void model_files_free(model_files *f);

/* Gives tensor i another type or shape, and bytes to fill it. */
void model_files_change(model_files *f, size_t i, st_dtype dtype, int rank, const int64_t *shape);

/* Writes folder/config.json (NULL: none) and folder/model.safetensors without tensor leave_out
 * (f->count: with all). */
void model_files_write(const model_files *f, const char *folder, const char *config,
                       size_t leave_out);

/* A folder of the test's own, which model_files_remove_folder removes with those two files. */
void model_files_make_folder(char *text, size_t size);
void model_files_remove_folder(const char *folder);

#endif

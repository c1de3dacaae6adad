/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint_files.h - paths, and which files of a directory are a model. */
#ifndef MOE_IO_CHECKPOINT_FILES_H
#define MOE_IO_CHECKPOINT_FILES_H

#include <moe_tkg.h>

#include "io/sniff.h"

/* head and tail in one string, which the caller frees; NULL: no memory. */
char *files_join(const char *head, const char *tail);

/* The path of a folder with a '/' at its end, to be freed; NULL: no memory. */
char *files_inside(const char *folder);

const char *files_last(const char *path); /* what follows its last '/' */
char *files_folder(const char *path);     /* what comes before, with the '/'; "": none */

typedef struct files_list {
    io_kind kind; /* IO_JSON (an index), IO_GGUF (one file), or IO_SAFETENSORS (all are shards) */
    char **names; /* sorted */
    size_t count;
} files_list;

/* The model in a folder (with a '/' at the end): its model.safetensors.index.json, else its
 * model.safetensors or model.gguf, else the only safetensors or GGUF file, or all parts
 * NAME-nnnnn-of-nnnnn.EXT of one (of a GGUF split the first).  Anything else is no model, or more
 * than one (MOE_E_MODEL).  There is nothing to free then. */
moe_status files_search(const char *folder, files_list *list);

/* MOE_E_OPEN if the names, which are sorted, are parts NAME-nnnnn-of-nnnnn.EXT and not all. */
moe_status files_check_parts(const char *folder, const files_list *list);

void files_free(files_list *list);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_index.c - any text given to the reader of indices.
 *
 * Checks that a refusal has a one-line message, that files are plain names, each once and sorted, and
 * that every tensor is found with its own file. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds)
{
    if (!holds) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ix_index *index;
    io_error error = {.status = IO_OK};
    io_status status = ix_open_memory(data, size, &index, &error);
    if (status != IO_OK) {
        require(status == IO_E_FORMAT && error.status == status && !index);
        require(strncmp(error.text, "(memory): ", 10) == 0 && !strchr(error.text, '\n'));
        require(strstr(error.text, " at byte ") != NULL);
        return 0;
    }
    size_t files = ix_files(index), count = ix_count(index), used = 0;
    require(files <= count);
    for (size_t i = 0; i < files; i++) {
        const char *name = ix_file(index, i);
        require(*name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, ".."));
        require(strlen(name) <= 255 && (i == 0 || strcmp(ix_file(index, i - 1), name) < 0));
        for (size_t t = 0, file; t < count; t++) {
            ix_tensor(index, t, &file);
            if (file != i) continue;
            used++;
            break;
        }
    }
    require(used == files);
    for (size_t i = 0; i < count; i++) {
        size_t file, before, found = files;
        const char *tensor = ix_tensor(index, i, &file);
        require(file < files && ix_find(index, tensor, &found) && found == file);
        require(i == 0 || strcmp(ix_tensor(index, i - 1, &before), tensor) < 0);
    }
    ix_close(index);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* golden.h - the golden files: those of the repository, and all of them where MOE_SHARED_DIR (or
 * ../shared) is. */
#ifndef MOE_TEST_GOLDEN_H
#define MOE_TEST_GOLDEN_H

#include <stddef.h>

/* Calls each(path) on every .safetensors file of the folder in tests/golden and in the shared
 * folder, in no order; the number of files. */
size_t golden_each(const char *folder, void (*each)(const char *path));

/* The shared folder's path of golden/name in text; NULL if there is no such file. */
const char *golden_shared(const char *name, char *text, size_t size);

#endif

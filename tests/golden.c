/* SPDX-License-Identifier: Apache-2.0 */
/* golden.c - see golden.h. */
#define _POSIX_C_SOURCE 200809L
#include "golden.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH = 1024 };

static void shared_path(const char *name, char *text, size_t size)
{
    const char *folder = getenv("MOE_SHARED_DIR");
    snprintf(text, size, "%s/golden/%s", folder != NULL ? folder : MOE_SOURCE_DIR "/../shared",
             name);
}

static size_t each_of(const char *folder, void (*each)(const char *path))
{
    size_t files = 0;
    DIR *d = opendir(folder);
    if (d == NULL) return 0;
    for (struct dirent *entry; (entry = readdir(d)) != NULL;) {
        char path[PATH];
        const char *dot = strrchr(entry->d_name, '.');
        if (dot == NULL || strcmp(dot, ".safetensors") != 0) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        each(path);
        files++;
    }
    closedir(d);
    return files;
}

size_t golden_each(const char *folder, void (*each)(const char *path))
{
    char own[PATH], shared[PATH];
    snprintf(own, sizeof own, "%s/tests/golden/%s", MOE_SOURCE_DIR, folder);
    shared_path(folder, shared, sizeof shared);
    return each_of(own, each) + each_of(shared, each);
}

const char *golden_shared(const char *name, char *text, size_t size)
{
    shared_path(name, text, size);
    return access(text, R_OK) == 0 ? text : NULL;
}

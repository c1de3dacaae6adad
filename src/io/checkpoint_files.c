/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint_files.c - searches directories.  Refuses those in which more than one model lies. */
#define _POSIX_C_SOURCE 200809L

#include "io/checkpoint_files.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "io/io_error.h"
#include "io/model_error.h"

static const char index_name[] = "model.safetensors.index.json";
static const char safetensors_name[] = "model.safetensors", gguf_name[] = "model.gguf";

char *files_join(const char *head, const char *tail)
{
    size_t a = strlen(head), b = strlen(tail), bytes;
    if (!checked_add(a, b + 1, &bytes)) return NULL;
    char *path = malloc(bytes);
    if (!path) return NULL;
    memcpy(path, head, a);
    memcpy(path + a, tail, b + 1);
    return path;
}

char *files_inside(const char *folder)
{
    size_t n = strlen(folder);
    return files_join(folder, n > 0 && folder[n - 1] == '/' ? "" : "/");
}

const char *files_last(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *files_folder(const char *path)
{
    char *folder = files_join(path, "");
    if (folder) folder[files_last(path) - path] = '\0';
    return folder;
}

/* ---- lists ----------------------------------------------------------------------------------- */

static bool append(files_list *list, const char *name)
{
    char **names = realloc(list->names, (list->count + 1) * sizeof *names);
    if (!names) return false;
    list->names = names;
    names[list->count] = files_join(name, "");
    if (!names[list->count]) return false;
    list->count++;
    return true;
}

void files_free(files_list *list)
{
    for (size_t i = 0; i < list->count; i++) free(list->names[i]);
    free(list->names);
    *list = (files_list){0};
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum { DIGITS = 5 }; /* of a part's number, and of how many there are */

static int number_at(const char *digits)
{
    int number = 0;
    for (int i = 0; i < DIGITS; i++) number = 10 * number + (digits[i] - '0');
    return number;
}

/* The length of NAME in NAME-nnnnn-of-nnnnn.EXT, with the part's number and that of all; 0: it is no
 * such name. */
static size_t part_stem(const char *name, int *number, int *all)
{
    static const char shape[] = "-ddddd-of-ddddd";
    const char *dot = strrchr(name, '.');
    size_t n = sizeof shape - 1;
    if (!dot || (size_t)(dot - name) <= n) return 0;
    const char *at = dot - n;
    for (size_t i = 0; i < n; i++)
        if (shape[i] == 'd' ? !isdigit((unsigned char)at[i]) : at[i] != shape[i]) return 0;
    *number = number_at(at + 1);
    *all = number_at(dot - DIGITS);
    return *number >= 1 && *number <= *all ? (size_t)(at - name) : 0;
}

/* Whether the files are the parts of one: equal but for the first number. */
static bool are_parts(const files_list *list)
{
    int number, all;
    const char *first = list->names[0];
    size_t stem = part_stem(first, &number, &all), rest = stem + 1 + DIGITS;
    for (size_t i = 0; i < list->count; i++) {
        const char *name = list->names[i];
        if (stem == 0 || part_stem(name, &number, &all) != stem || memcmp(name, first, stem) != 0 ||
            strcmp(name + rest, first + rest) != 0)
            return false;
    }
    return true;
}

moe_status files_check_parts(const char *folder, const files_list *list)
{
    int number, all;
    const char *first = list->names[0];
    size_t stem = part_stem(first, &number, &all);
    for (size_t i = 0; stem > 0 && i < (size_t)all; i++) {
        if (i < list->count) part_stem(list->names[i], &number, &all);
        if (i < list->count && (size_t)number == i + 1) continue;
        return model_fail(MOE_E_OPEN, folder, "%.*s-%05zu%s is missing: %zu of %d parts are there",
                          (int)stem, first, i + 1, first + stem + 1 + DIGITS, list->count, all);
    }
    return MOE_OK;
}

/* ---- searching ------------------------------------------------------------------------------- */

typedef struct found {
    files_list safetensors, gguf;
    bool has_index;
    io_error error; /* of a file that has a model's name and cannot be opened; IO_OK: none */
} found;

static moe_status look_at(const char *folder, const char *name, found *f)
{
    io_kind kind;
    if (strcmp(name, index_name) == 0) f->has_index = true;
    char *path = files_join(folder, name);
    if (!path) return model_fail(MOE_E_NOMEM, folder, "out of memory");
    /* What cannot be opened, as sockets and the files of others, is none of the model's, unless it
     * is called as a model would be. */
    io_error error;
    io_status status = io_sniff(path, &kind, &error);
    free(path);
    if (status == IO_E_NOMEM || status == IO_E_READ) return model_reader(&error);
    if (status != IO_OK && (!strcmp(name, safetensors_name) || !strcmp(name, gguf_name)))
        f->error = error;
    files_list *list = status != IO_OK          ? NULL
                       : kind == IO_SAFETENSORS ? &f->safetensors
                       : kind == IO_GGUF        ? &f->gguf
                                                : NULL;
    if (!list || append(list, name)) return MOE_OK;
    return model_fail(MOE_E_NOMEM, folder, "out of memory");
}

static moe_status look_through(const char *folder, found *f)
{
    DIR *directory = opendir(folder);
    if (!directory) {
        io_error error;
        io_fail_errno(&error, IO_E_OPEN, folder, "cannot be opened", errno);
        return model_reader(&error);
    }
    moe_status s = MOE_OK;
    for (struct dirent *entry; s == MOE_OK && (entry = readdir(directory));)
        s = look_at(folder, entry->d_name, f);
    closedir(directory);
    return s;
}

static const char *named(const files_list *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->names[i], name) == 0) return list->names[i];
    return NULL;
}

/* One name of those found. */
static moe_status choose(const char *folder, io_kind kind, const char *name, files_list *list)
{
    list->kind = kind;
    if (append(list, name)) return MOE_OK;
    files_free(list);
    return model_fail(MOE_E_NOMEM, folder, "out of memory");
}

static moe_status pick(const char *folder, found *f, files_list *list)
{
    const char *model = named(&f->safetensors, safetensors_name);
    const char *gguf = named(&f->gguf, gguf_name);
    if (f->has_index) return choose(folder, IO_JSON, index_name, list);
    if (f->error.status != IO_OK) return model_reader(&f->error);
    if (model && !gguf) return choose(folder, IO_SAFETENSORS, model, list);
    if (gguf && !model) return choose(folder, IO_GGUF, gguf, list);
    bool both = f->safetensors.count > 0 && f->gguf.count > 0;
    if (f->safetensors.count == 0 && f->gguf.count == 0)
        return model_fail(MOE_E_OPEN, folder, "no model: looked for %s, safetensors and GGUF files",
                          index_name);
    files_list *only = f->gguf.count > 0 ? &f->gguf : &f->safetensors;
    qsort(only->names, only->count, sizeof *only->names, compare_names);
    if (both || (only->count > 1 && !are_parts(only)))
        return model_fail(MOE_E_MODEL, folder,
                          "more than one model (%zu safetensors and %zu GGUF files, none called "
                          "%s or %s): the file must be named",
                          f->safetensors.count, f->gguf.count, safetensors_name, gguf_name);
    if (only == &f->gguf) return choose(folder, IO_GGUF, only->names[0], list);
    *list = *only;
    list->kind = IO_SAFETENSORS;
    *only = (files_list){0};
    return MOE_OK;
}

moe_status files_search(const char *folder, files_list *list)
{
    found f = {0};
    *list = (files_list){0};
    moe_status s = look_through(folder, &f);
    if (s == MOE_OK) s = pick(folder, &f, list);
    files_free(&f.safetensors);
    files_free(&f.gguf);
    return s;
}

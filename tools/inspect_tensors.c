/* SPDX-License-Identifier: Apache-2.0 */
/* inspect_tensors.c - the tensors of any sound container, model or not.
 *
 * What a file is, its content says.  Of a folder: the files that its index names, or model.safetensors
 * or model.gguf, or all that are safetensors or GGUF, folders inside not looked into. */
#define _GNU_SOURCE 1

#include "inspect.h"

#include "io/gguf.h"
#include "io/index.h"
#include "io/sniff.h"
#include "table.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INDEX "model.safetensors.index.json"

typedef struct listing {
    bool json;
    table table;
    json_t *tensors;
    size_t files, count;
    double bytes;
    size_t split; /* files of the split that was listed last, its first one included */
    io_error error;
} listing;

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* ---- one tensor ------------------------------------------------------------------------------ */

static void add_cells(listing *l, const char *name, const char *type, const uint64_t *shape,
                      int rank, size_t bytes, const char *file)
{
    char text[256] = "";
    int n = 0;
    for (int d = 0; d < rank; d++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%llu", d ? ", " : "",
                      (unsigned long long)shape[d]);
    table_cell(&l->table, "%s", name);
    table_cell(&l->table, "%s", type);
    table_cell(&l->table, "[%s]", text);
    table_cell(&l->table, "%zu", bytes);
    table_cell(&l->table, "%s", file);
}

static void add_object(listing *l, const char *name, const char *type, const uint64_t *shape,
                       int rank, size_t bytes, const char *file)
{
    json_t *sizes = json_array();
    for (int d = 0; d < rank; d++) json_array_append_new(sizes, json_integer((json_int_t)shape[d]));
    json_array_append_new(l->tensors, json_pack("{s:o, s:s, s:o, s:I, s:o}", //
                                                "name", cli_json_text(name), //
                                                "type", type,                //
                                                "shape", sizes,              //
                                                "bytes", (json_int_t)bytes,  //
                                                "file", cli_json_text(file)));
}

static void add(listing *l, const char *name, const char *type, const uint64_t *shape, int rank,
                size_t bytes, const char *file)
{
    if (l->json)
        add_object(l, name, type, shape, rank, bytes, file);
    else
        add_cells(l, name, type, shape, rank, bytes, file);
    l->count++;
    l->bytes += (double)bytes;
}

/* ---- one file -------------------------------------------------------------------------------- */

/* What the index says lies in its file number n must be there. */
static io_status check_index(listing *l, const ix_index *index, size_t n, const st_file *file)
{
    for (size_t i = 0; i < ix_count(index); i++) {
        size_t of;
        const char *name = ix_tensor(index, i, &of);
        if (of != n || st_find(file, name)) continue;
        snprintf(l->error.text, sizeof l->error.text,
                 "%.250s: has no tensor \"%.100s\", which the index says it has", ix_file(index, n),
                 name);
        return l->error.status = IO_E_FORMAT;
    }
    return IO_OK;
}

/* index: NULL, or the one whose file number n this is. */
static io_status list_safetensors(listing *l, const char *path, const ix_index *index, size_t n)
{
    st_file *file;
    io_status status = st_open(path, &file, &l->error);
    if (status != IO_OK) return status;
    if (index) status = check_index(l, index, n, file);
    for (size_t i = 0; status == IO_OK && i < st_count(file); i++) {
        const st_tensor *t = st_at(file, i);
        uint64_t shape[ST_MAX_RANK];
        for (int d = 0; d < t->rank; d++) shape[d] = (uint64_t)t->shape[d];
        add(l, t->name, st_dtype_name(t->dtype), shape, t->rank, t->bytes, base_name(path));
    }
    l->files++;
    st_close(file);
    return status;
}

/* "x-00003-of-00004.gguf" for part 2 of "x-00001-of-00004.gguf". */
static void part_name(const char *first, size_t part, char *name, size_t size)
{
    static const char TAIL[] = "-00001-of-00000.gguf";
    size_t length = strlen(first), tail = sizeof TAIL - 1;
    if (part == 0 || length < tail)
        snprintf(name, size, "%s", first);
    else
        snprintf(name, size, "%.*s-%05zu%s", (int)(length - tail), first, part + 1,
                 first + length - tail + strlen("-00001"));
}

static io_status list_gguf(listing *l, const char *path)
{
    gg_file *file;
    io_status status = gg_open(path, &file, &l->error);
    if (status != IO_OK) return status;
    l->split = 1;
    for (size_t i = 0; i < gg_count(file); i++) {
        const gg_tensor *t = gg_at(file, i);
        char number[32], name[512];
        const char *type = gg_type_name(t->type);
        snprintf(number, sizeof number, "type %u", (unsigned)t->type);
        part_name(base_name(path), t->part, name, sizeof name);
        add(l, t->name, type ? type : number, t->ne, t->rank, t->bytes, name);
        if (t->part >= l->split) l->split = t->part + 1;
    }
    l->files += l->split;
    gg_close(file);
    return IO_OK;
}

/* ---- several files --------------------------------------------------------------------------- */

static io_status no_memory(listing *l)
{
    snprintf(l->error.text, sizeof l->error.text, "out of memory");
    return l->error.status = IO_E_NOMEM;
}

/* folder/name, to be freed. */
static char *join(const char *folder, const char *name)
{
    char *path = NULL;
    const char *slash = folder[strlen(folder) - 1] == '/' ? "" : "/";
    return asprintf(&path, "%s%s%s", folder, slash, name) < 0 ? NULL : path;
}

static io_status list_index(listing *l, const char *path)
{
    ix_index *index = NULL;
    const char *name = base_name(path);
    char *folder = name == path ? strdup(".") : strndup(path, (size_t)(name - path));
    io_status status = folder ? ix_open(path, &index, &l->error) : no_memory(l);
    for (size_t i = 0; status == IO_OK && i < ix_files(index); i++) {
        char *file = join(folder, ix_file(index, i));
        status = file ? list_safetensors(l, file, index, i) : no_memory(l);
        free(file);
    }
    ix_close(index);
    free(folder);
    return status;
}

static io_status list_file(listing *l, const char *path)
{
    io_kind kind;
    io_status status = io_sniff(path, &kind, &l->error);
    if (status != IO_OK) return status;
    switch (kind) {
    case IO_JSON: return list_index(l, path);
    case IO_GGUF: return list_gguf(l, path);
    case IO_PACKED:
        snprintf(l->error.text, sizeof l->error.text, "%.400s: a packed layer, without tensors",
                 path);
        return l->error.status = IO_E_FORMAT;
    default: return list_safetensors(l, path, NULL, 0); /* which says what else it may be */
    }
}

static int is_listable(const struct dirent *e)
{
    return e->d_name[0] != '.' && e->d_type != DT_DIR;
}

/* Lists the file if it is a container; others of the folder are passed over. */
static io_status list_if_container(listing *l, const char *path)
{
    io_kind kind;
    if (io_sniff(path, &kind, &l->error) != IO_OK) return IO_OK;
    if (kind == IO_SAFETENSORS) return list_safetensors(l, path, NULL, 0);
    return kind == IO_GGUF ? list_gguf(l, path) : IO_OK;
}

static io_status list_names(listing *l, const char *folder, struct dirent **entry, int n)
{
    io_status status = IO_OK;
    for (int i = 0; status == IO_OK && i < n; i++) {
        char *path = join(folder, entry[i]->d_name);
        status = path ? list_if_container(l, path) : no_memory(l);
        free(path);
        if (l->split > 1) i += (int)l->split - 1; /* its other files follow it by name */
        l->split = 0;
    }
    if (status != IO_OK || l->files > 0) return status;
    snprintf(l->error.text, sizeof l->error.text,
             "%.300s: no " INDEX ", and no file that is safetensors or GGUF", folder);
    return l->error.status = IO_E_OPEN;
}

/* Lists all containers of a folder. */
static io_status list_all(listing *l, const char *folder)
{
    struct dirent **entry;
    int n = scandir(folder, &entry, is_listable, alphasort);
    if (n < 0) {
        snprintf(l->error.text, sizeof l->error.text, "%.300s: cannot be read: %s", folder,
                 strerror(errno));
        return l->error.status = IO_E_OPEN;
    }
    io_status status = list_names(l, folder, entry, n);
    for (int i = 0; i < n; i++) free(entry[i]);
    free(entry);
    return status;
}

static io_status list_folder(listing *l, const char *folder)
{
    static const char *const MODELS[] = {INDEX, "model.safetensors", "model.gguf"};
    for (size_t i = 0; i < sizeof MODELS / sizeof MODELS[0]; i++) {
        char *path = join(folder, MODELS[i]);
        if (!path) return no_memory(l);
        bool there = access(path, F_OK) == 0;
        io_status status = there ? list_file(l, path) : IO_OK;
        free(path);
        if (there) return status;
    }
    return list_all(l, folder);
}

static io_status list_path(listing *l, const char *path)
{
    io_kind kind;
    io_status status = io_sniff(path, &kind, &l->error);
    if (status != IO_OK) return status;
    return kind == IO_DIRECTORY ? list_folder(l, path) : list_file(l, path);
}

/* ---- printing -------------------------------------------------------------------------------- */

static int print(listing *l, const cli *c, const char *path)
{
    if (l->json) {
        json_t *object = json_pack("{s:o, s:I, s:o, s:O}",           //
                                   "path", cli_json_text(path),      //
                                   "files", (json_int_t)l->files,    //
                                   "bytes", cli_json_real(l->bytes), //
                                   "tensors", l->tensors);
        return cli_print_json(c, object);
    }
    if (!table_print(&l->table)) return cli_failure(c, "out of memory");
    printf("\n%zu tensors, %.1f MB, in %zu file%s\n", l->count, 1e-6 * l->bytes, l->files,
           l->files == 1 ? "" : "s");
    return CLI_OK;
}

/* Whether path is a folder that moe_layer_save wrote to, which has layers and no tensors. */
static bool is_packed(const char *path)
{
    moe_model *model;
    moe_model_info info = {.struct_size = sizeof info};
    if (moe_model_open(path, NULL, &model) != MOE_OK) return false;
    bool packed =
        moe_model_describe(model, &info) == MOE_OK && strcmp(info.container, "packed") == 0;
    moe_model_close(model);
    return packed;
}

static int refuse(const listing *l, const cli *c, const char *path)
{
    cli_error error;
    if (l->files == 0 && is_packed(path))
        cli_fail(&error, CLI_REFUSED,
                 "%.480s: has packed layers and no tensors: see it without --tensors", path);
    else
        cli_fail(&error, l->error.status == IO_E_NOMEM ? CLI_FAILED : CLI_USAGE, "%s",
                 l->error.text);
    return cli_report(c, &error);
}

int inspect_tensors(const cli *c, const char *path)
{
    static const char *const TITLES[] = {"<name", "<type", "<shape", ">bytes", "<file"};
    listing l = {.json = c->json,
                 .table = {.titles = TITLES, .columns = sizeof TITLES / sizeof TITLES[0]}};
    if (l.json) l.tensors = json_array();
    int code = list_path(&l, path) == IO_OK ? print(&l, c, path) : refuse(&l, c, path);
    json_decref(l.tensors);
    table_free(&l.table);
    return code;
}

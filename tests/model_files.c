/* SPDX-License-Identifier: Apache-2.0 */
/* model_files.c - see model_files.h. */
#define _XOPEN_SOURCE 700
#include "model_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { PATH = 512 };

/* ---- descriptions ---------------------------------------------------------------------------- */

static int64_t dimension(const char *text)
{
    static const struct {
        const char *name;
        int64_t value;
    } names[] = {{"2I", 2 * FILES_I}, {"2S", 2 * FILES_S}, {"H", FILES_H},
                 {"I", FILES_I},      {"S", FILES_S},      {"E", FILES_E}};
    char *end;
    const char *slash = strchr(text, '/');
    int64_t value = -1;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && value < 0; i++)
        if (strncmp(text, names[i].name, strlen(names[i].name)) == 0) value = names[i].value;
    if (value < 0) value = strtol(text, &end, 10);
    return slash ? value / strtol(slash + 1, NULL, 10) : value;
}

static st_dtype dtype_of(const char *name)
{
    for (int d = 0; d < ST_DTYPE_COUNT; d++)
        if (strcmp(st_dtype_name((st_dtype)d), name) == 0) return (st_dtype)d;
    fail_msg("no dtype %s", name);
    return ST_F32;
}

/* Bytes below 0x3C, and every other one of those above 0x30 in the high byte: finite and small in
 * bf16, f16, f32, e4m3, e8m0. */
static void fill(model_files *f, size_t i, uint64_t seed)
{
    st_tensor *t = &f->tensor[i];
    assert_true(st_shape_bytes(t->dtype, t->shape, t->rank, &t->bytes));
    free(f->data[i]);
    f->data[i] = malloc(t->bytes + 1);
    assert_non_null(f->data[i]);
    uint64_t state = seed * 0x9E3779B97F4A7C15u + i;
    for (size_t b = 0; b < t->bytes; b++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        f->data[i][b] = (unsigned char)((state >> 40) % 0x3C);
    }
    /* weight_shape: what it must say is found from the name's line by the caller's dimensions */
    if (t->dtype == ST_I64 && t->rank == 1 && t->shape[0] == 2) {
        int64_t down = strstr(t->name, "down") != NULL,
                shape[2] = {down ? FILES_H : FILES_I, down ? FILES_I : FILES_H};
        memcpy(f->data[i], shape, sizeof shape);
    }
}

static void add(model_files *f, const char *name, const char *dtype, const char *dimensions,
                uint64_t seed)
{
    st_tensor *t = &f->tensor[f->count];
    char text[64], *rest = text;
    assert_true(f->count < FILES_TENSORS);
    snprintf(f->name[f->count], sizeof f->name[0], "%s", name);
    snprintf(text, sizeof text, "%s", dimensions);
    *t = (st_tensor){.name = f->name[f->count], .dtype = dtype_of(dtype)};
    for (char *d = strtok_r(text, ",", &rest); d; d = strtok_r(NULL, ",", &rest))
        t->shape[t->rank++] = dimension(d);
    fill(f, f->count++, seed);
}

void model_files_make(model_files *f, const char *const *lines, uint64_t seed)
{
    memset(f, 0, sizeof *f);
    for (; *lines; lines++) {
        char name[96], dtype[16], dimensions[48] = "", full[128];
        assert_true(sscanf(*lines, "%95s %15s %47s", name, dtype, dimensions) >= 2);
        char *number = strstr(name, "{e}");
        for (int e = 0; e < (number ? FILES_E : 1); e++) {
            if (number)
                snprintf(full, sizeof full, "%.*s%d%s", (int)(number - name), name, e, number + 3);
            else
                snprintf(full, sizeof full, "%s", name);
            add(f, full, dtype, dimensions, seed);
        }
    }
}

void model_files_free(model_files *f)
{
    for (size_t i = 0; i < f->count; i++) free(f->data[i]);
}

void model_files_change(model_files *f, size_t i, st_dtype dtype, int rank, const int64_t *shape)
{
    st_tensor *t = &f->tensor[i];
    t->dtype = dtype;
    t->rank = rank;
    memset(t->shape, 0, sizeof t->shape);
    for (int d = 0; d < rank; d++) t->shape[d] = shape[d];
    fill(f, i, 7);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

void model_files_write(const model_files *f, const char *folder, const char *config,
                       size_t leave_out)
{
    char path[PATH];
    io_error error;
    st_tensor list[FILES_TENSORS];
    const void *data[FILES_TENSORS];
    size_t n = 0;
    for (size_t i = 0; i < f->count; i++) {
        if (i == leave_out) continue;
        list[n] = f->tensor[i];
        list[n].name = f->name[i];
        data[n++] = f->data[i];
    }
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (st_write(path, list, data, n, NULL, NULL, 0, &error) != IO_OK) fail_msg("%s", error.text);
    snprintf(path, sizeof path, "%s/config.json", folder);
    if (config) write_text(path, config);
}

void model_files_make_folder(char *text, size_t size)
{
    snprintf(text, size, "/tmp/moe_model_XXXXXX");
    assert_non_null(mkdtemp(text));
}

void model_files_remove_folder(const char *folder)
{
    char path[PATH];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/config.json", folder);
    unlink(path);
    assert_int_equal(rmdir(folder), 0);
}

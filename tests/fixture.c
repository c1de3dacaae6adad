/* SPDX-License-Identifier: Apache-2.0 */
/* fixture.c - see fixture.h. */
#define _POSIX_C_SOURCE 200809L
#include "fixture.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/safetensors.h"

enum { PATH = 1024 };

const char *fixture_own(const char *name, char *text, size_t size)
{
    snprintf(text, size, "%s/tests/fixtures/%s", MOE_SOURCE_DIR, name);
    return text;
}

static size_t each_of(const char *root, int all, void (*each)(const char *, const char *))
{
    size_t count = 0;
    DIR *d = opendir(root);
    if (d == NULL) return 0;
    for (struct dirent *entry; (entry = readdir(d)) != NULL;) {
        char folder[PATH], file[PATH + 32], own[PATH];
        snprintf(folder, sizeof folder, "%.500s/%.255s", root, entry->d_name);
        snprintf(file, sizeof file, "%s/case.safetensors", folder);
        if (entry->d_name[0] == '.' || access(file, R_OK) != 0) continue;
        if (!all && access(fixture_own(entry->d_name, own, sizeof own), R_OK) == 0) continue;
        each(entry->d_name, folder);
        count++;
    }
    closedir(d);
    return count;
}

size_t fixture_each(void (*each)(const char *name, const char *folder))
{
    char shared[PATH], own[PATH];
    const char *root = getenv("MOE_SHARED_DIR");
    snprintf(shared, sizeof shared, "%s/fixtures", root ? root : MOE_SOURCE_DIR "/../shared");
    return each_of(fixture_own("", own, sizeof own), 1, each) + each_of(shared, 0, each);
}

static st_file *open_case(const char *folder)
{
    char path[PATH];
    io_error error;
    st_file *file;
    snprintf(path, sizeof path, "%s/case.safetensors", folder);
    if (st_open(path, &file, &error) != IO_OK) fail_msg("%s", error.text);
    return file;
}

/* The tensor tT.name, and its dimensions in shape. */
static void *take(const st_file *file, const char *prefix, const char *name, int64_t shape[2])
{
    char full[128];
    io_error error;
    snprintf(full, sizeof full, "%s.%s", prefix, name);
    const st_tensor *t = st_find(file, full);
    if (t == NULL) fail_msg("no tensor %s", full);
    assert_int_equal(t->rank, 2);
    memcpy(shape, t->shape, 2 * sizeof *shape);
    void *data = malloc(t->bytes + 1);
    assert_non_null(data);
    if (st_read(file, t, data, &error) != IO_OK) fail_msg("%s", error.text);
    return data;
}

int fixture_read(const char *folder, size_t i, fixture_case *c)
{
    st_file *file = open_case(folder);
    char list[256], *rest = list, *prefix = NULL;
    snprintf(list, sizeof list, "%s", st_metadata(file, "cases"));
    for (size_t n = 0; n <= i; n++) prefix = strtok_r(n == 0 ? list : NULL, ",", &rest);
    if (prefix != NULL) {
        int64_t shape[2];
        c->experts = take(file, prefix, "expected_experts", shape);
        c->block = take(file, prefix, "expected_block", shape);
        c->hidden = take(file, prefix, "hidden", shape);
        c->T = shape[0];
        c->H = shape[1];
        c->logits = take(file, prefix, "router_logits", shape);
        c->E = shape[1];
        c->ids = take(file, prefix, "topk_ids", shape);
        c->weights = take(file, prefix, "topk_weights", shape);
        c->K = shape[1];
    }
    st_close(file);
    return prefix != NULL;
}

void fixture_free(fixture_case *c)
{
    free(c->hidden);
    free(c->logits);
    free(c->ids);
    free(c->weights);
    free(c->experts);
    free(c->block);
}

void fixture_fact(const char *folder, const char *key, char *text, size_t size)
{
    st_file *file = open_case(folder);
    const char *value = st_metadata(file, key);
    snprintf(text, size, "%s", value ? value : "");
    st_close(file);
}

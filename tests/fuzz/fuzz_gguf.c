/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_gguf.c - any bytes given to the reader of GGUF files.
 *
 * Checks that a refusal has a one-line message, that accepted tensors lie inside the file and in no
 * other's bytes, that keys have one kind of value each, and that a file on the disk, which is read a
 * window at a time, is judged as the same bytes in memory are.  What is a model is described, loaded
 * and run. */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <moe_tkg_io.h>

#include "io/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds)
{
    if (!holds) abort();
}

static void check_tensors(const gg_file *file, const uint8_t *data, size_t size)
{
    unsigned char *used = calloc(size + 1, 1), *copy = malloc(size + 1);
    size_t sum = 0;
    require(used && copy);
    for (size_t i = 0; i < gg_count(file); i++) {
        const gg_tensor *t = gg_at(file, i);
        size_t k, bytes;
        gg_type_block(t->type, &k, &bytes);
        require(gg_find(file, t->name) == t && t->part == 0 && t->rank >= 0 && t->rank <= 4);
        require(gg_type_name(t->type) && k > 0 && t->ne[0] % k == 0);
        size_t wanted = t->ne[0] / k * bytes;
        for (int d = 1; d < GG_MAX_RANK; d++) wanted *= t->ne[d];
        require(wanted == t->bytes && t->bytes <= size - sum);
        sum += t->bytes;
        require(gg_read(file, t, 0, t->bytes, copy, NULL) == IO_OK);
        if (t->bytes == 0) continue;
        const uint8_t *start = data + (size - t->bytes);
        while (memcmp(start, copy, t->bytes) != 0)
            require(start-- > data); /* they are the file's */
        require(gg_read(file, t, t->bytes - 1, 1, used, NULL) == IO_OK);
        require(used[0] == copy[t->bytes - 1]);
    }
    free(used);
    free(copy);
}

static void check_keys(const gg_file *file)
{
    for (size_t i = 0; i < gg_keys(file); i++) {
        const char *key = gg_key(file, i), *text;
        int64_t integer, element;
        double real;
        bool truth;
        size_t count;
        bool is_integer = gg_integer(file, key, &integer), is_real = gg_real(file, key, &real);
        bool is_array = gg_array(file, key, &count);
        require(gg_has(file, key));
        require(is_real + gg_bool(file, key, &truth) + gg_string(file, key, &text) + is_array <= 1);
        if (is_integer) require(is_real && integer >= 0 && real == (double)integer);
        if (is_real) require(isfinite(real));
        if (!is_array) continue;
        for (size_t e = 0; e < count; e++)
            require(!gg_array_integer(file, key, e, &element) || element >= 0);
        require(!gg_array_integer(file, key, count, &element));
    }
}

enum { H_MOST = 4096 };

static void run_layer(const moe_layer *layer, const moe_layer_info *info)
{
    static float x[H_MOST], y[H_MOST];
    moe_block_args args;
    require(info->H <= H_MOST && moe_layer_args(layer, &args) == MOE_OK);
    moe_tensor hidden = moe_tensor_2d(x, MOE_F32, 1, info->H);
    for (int64_t h = 0; h < info->H; h++) x[h] = (float)(h % 7 - 3);
    args.experts.hidden_input = &hidden;
    moe_status s = moe_block(NULL, &args, y, sizeof y);
    require(s == MOE_OK || info->foreign_router != NULL);
}

static void check_model(const char *path)
{
    moe_model *model;
    moe_model_info about = {.struct_size = sizeof about};
    moe_status s = moe_model_open(path, NULL, &model);
    require(s == MOE_OK || s == MOE_E_MODEL);
    if (s != MOE_OK) require(!strchr(moe_io_last_error(), '\n'));
    if (s != MOE_OK) return;
    require(moe_model_describe(model, &about) == MOE_OK && about.moe_layers > 0);
    for (int64_t i = 0; i < about.moe_layers && i < 3; i++) {
        moe_layer_info info = {.struct_size = sizeof info};
        moe_layer *layer;
        s = moe_model_layer(model, i, &info);
        require(s == MOE_OK || s == MOE_E_MODEL);
        if (s != MOE_OK) continue;
        require(info.H > 0 && info.I > 0 && info.K > 0 && info.K <= info.E && info.bytes > 0);
        require(moe_model_load(model, info.layer, NULL, NULL, &layer) == MOE_OK);
        run_layer(layer, &info);
        require(moe_layer_free(layer) == MOE_OK);
    }
    moe_model_close(model);
}

/* The same bytes in a file. */
static void check_on_disk(const uint8_t *data, size_t size, io_status wanted, const char *message)
{
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("gguf", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    require(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    gg_file *file;
    io_error error;
    io_status status = gg_open(path, &file, &error);
    if (message && strstr(message, "split")) return; /* one of several: in memory there are none */
    require(status == wanted);
    if (status != IO_OK) require(!strcmp(error.text + strlen(path), message));
    gg_close(file);
    if (status == IO_OK) check_model(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gg_file *file;
    io_error error = {.status = IO_OK};
    io_status status = gg_open_memory(data, size, &file, &error);
    if (status == IO_OK) {
        check_tensors(file, data, size);
        check_keys(file);
        gg_close(file);
        check_on_disk(data, size, status, NULL);
        return 0;
    }
    require(status == IO_E_FORMAT && error.status == status && !file);
    require(strncmp(error.text, "(memory): ", 10) == 0 && !strchr(error.text, '\n'));
    require(strstr(error.text, " at byte ") || strstr(error.text, "split"));
    check_on_disk(data, size, status, error.text + strlen("(memory)"));
    return 0;
}

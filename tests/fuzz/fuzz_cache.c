/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_cache.c - libFuzzer: any bytes as the file of a packed layer, and any bytes as what such a
 * file says about its layer.
 *
 * The input is a file; or it is changes to a sound one, after which the checksums are made right
 * again, so that what they guard is judged.  What is refused has a message of one line; what is read
 * is a layer that says of itself what was said, and whose experts are those of their images. */
#define _XOPEN_SOURCE 700
#include "fuzz_input.h"

#include "io/cache.h"
#include "io/cache_record.h"
#include "io/hash.h"
#include "loaded_layer.h"

#include <stdlib.h>

enum { KINDS = LOADED_LAYER_KINDS - 1 }; /* without the largest, which is slow */
enum { AT_KIND = 24, AT_ABOUT = 40, AT_PAYLOAD = 48, AT_ABOUT_HASH = 72, AT_HEAD_HASH = 88 };

typedef struct bytes {
    unsigned char *data;
    size_t size;
} bytes;

/* ---- a sound file ---------------------------------------------------------------------------- */

/* Of a kind of loaded_layer.h; made once. */
static bytes sound_file(unsigned kind)
{
    static bytes files[KINDS];
    char folder[] = "/tmp/moe_fuzz_cache_XXXXXX", path[64];
    if (files[kind].data != NULL) return files[kind];
    moe_layer *layer = loaded_layer_make(kind, 3);
    MUST(mkdtemp(folder) != NULL && moe_layer_save(layer, folder) == MOE_OK);
    snprintf(path, sizeof path, "%s/layer-00003.moe", folder);
    FILE *f = fopen(path, "rb");
    MUST(f != NULL && fseek(f, 0, SEEK_END) == 0);
    bytes b = {.size = (size_t)ftell(f)};
    rewind(f);
    b.data = malloc(b.size);
    MUST(b.data != NULL && fread(b.data, 1, b.size, f) == b.size);
    fclose(f);
    remove(path);
    remove(folder);
    moe_layer_free(layer);
    return files[kind] = b;
}

static uint64_t number_at(const bytes *b, size_t at)
{
    uint64_t n;
    memcpy(&n, b->data + at, sizeof n);
    return n;
}

static void put_hash(bytes *b, size_t at, size_t from, size_t end)
{
    uint64_t hash = io_hash(b->data + from, end - from);
    memcpy(b->data + at, &hash, sizeof hash);
}

/* Every checksum that lies in the file. */
static void seal(bytes *b)
{
    uint64_t about = number_at(b, AT_ABOUT), payload = number_at(b, AT_PAYLOAD);
    put_hash(b, AT_KIND, 0, AT_KIND);
    if (payload >= PACKED_HEAD && payload <= b->size && about <= payload) {
        size_t sums = PACKED_HEAD + ((size_t)about + 7) / 8 * 8;
        for (size_t at = (size_t)payload; at < b->size && sums + 8 <= payload;
             at += PACKED_CHUNK, sums += 8)
            put_hash(b, sums, at, b->size - at < PACKED_CHUNK ? b->size : at + PACKED_CHUNK);
        put_hash(b, AT_ABOUT_HASH, PACKED_HEAD, (size_t)payload);
    }
    put_hash(b, AT_HEAD_HASH, 0, AT_HEAD_HASH);
}

/* Bytes of the head and of what is said, or of the front of the payload. */
static void change(bytes *b, input *in)
{
    uint8_t how = next(in), value = next(in);
    size_t at = next(in) | (size_t)next(in) << 8;
    static const uint64_t edges[] = {0, 1, UINT64_MAX, INT64_MAX, 1ull << 32, 1ull << 62, 4096};
    if (how & 1) {
        b->data[(how & 2 ? number_at(b, AT_PAYLOAD) % b->size + at : at) % b->size] ^= value;
        return;
    }
    uint64_t number;
    at = at % (b->size / 4 - 1) * 4;
    memcpy(&number, b->data + at, sizeof number);
    number = how & 4 ? edges[value % COUNT(edges)] : number + (uint64_t)(int64_t)(int8_t)value;
    memcpy(b->data + at, &number, how & 8 ? 8 : 4);
}

/* ---- properties ------------------------------------------------------------------------------ */

static void expect_line(void)
{
    const char *text = moe_io_last_error();
    MUST(text[0] != '\0' && strchr(text, '\n') == NULL);
}

static void expect_layer(const moe_layer *layer, const packed_file *f)
{
    moe_layer_info info = {.struct_size = sizeof info};
    moe_experts_info experts = {.struct_size = sizeof experts};
    moe_block_args args;
    MUST(moe_layer_describe(layer, &info) == MOE_OK && moe_layer_args(layer, &args) == MOE_OK);
    MUST(moe_experts_describe(layer->experts, &experts) == MOE_OK);
    MUST(experts.E_L == info.E && experts.H == info.H && experts.I == info.I);
    MUST((layer->shared != NULL) == (info.shared_I > 0));
    /* the same is said of it again */
    cache_images images = {1, info.shared_I > 0};
    size_t size, said;
    unsigned char *about = cache_encode(layer, &images, &size);
    packed_about(f, &said);
    MUST(about != NULL && size == said);
    free(about);
}

static void read_file(const unsigned char *data, size_t size)
{
    packed_file *f;
    moe_load_options options = moe_load_options_init();
    io_error error = {.status = IO_OK};
    if (packed_open_memory(data, size, &f, &error) != IO_OK) {
        MUST(f == NULL && (error.status == IO_E_FORMAT || error.status == IO_E_STALE));
        return;
    }
    moe_layer *layer = calloc(1, sizeof *layer);
    MUST(layer != NULL);
    moe_status s = cache_read(f, NULL, &options, layer);
    if (s == MOE_OK)
        expect_layer(layer, f);
    else
        expect_line();
    MUST(s == MOE_OK || s == MOE_E_FORMAT || s == MOE_E_STALE);
    MUST(moe_layer_free(layer) == MOE_OK);
    packed_close(f);
}

static void read_record(const unsigned char *data, size_t size)
{
    moe_layer said;
    cache_images images;
    const char *rule;
    size_t at, again;
    memset(&said, 0, sizeof said);
    memset(&images, 0, sizeof images);
    cache_verdict v = cache_decode(data, size, &said, &images, &rule, &at);
    MUST(v == CACHE_SOUND || (v == CACHE_UNSOUND && rule != NULL && at <= size));
    if (v == CACHE_SOUND) {
        unsigned char *copy = cache_encode(&said, &images, &again);
        MUST(copy != NULL && again == size && memcmp(copy, data, size) == 0);
        free(copy);
    }
    loaded_forget(&said);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    uint8_t what = next(&in);
    switch (what % 4) {
    case 0: read_file(in.data, in.left); return 0;
    case 1: read_record(in.data, in.left); return 0;
    default: break;
    }
    bytes sound = sound_file(what / 4 % KINDS), b = {malloc(sound.size), sound.size};
    MUST(b.data != NULL);
    memcpy(b.data, sound.data, b.size);
    while (in.left >= 4) change(&b, &in);
    if (what % 4 == 2) seal(&b);
    size_t cut = what & 128 ? (size_t)next(&in) * 16 : 0;
    read_file(b.data, b.size - cut);
    free(b.data);
    return 0;
}

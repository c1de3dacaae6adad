/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_key.c - the keys of a GGUF file and their values.
 *
 * It owns their rules: known types, arrays of scalars and strings that end inside the file, booleans
 * of 0 and 1, no key twice, an alignment that is a power of two.  Kept are numbers, strings, and
 * arrays of integers and booleans; other arrays, which a tokenizer fills with hundreds of thousands
 * of strings, are checked and passed over. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/gguf_file.h"
#include "io/grow.h"
#include "io/utf8.h"

/* Bytes of a number; 0 for what is none. */
static const uint8_t value_bytes[GG_VALUE_TYPES] = {
    [GG_U8] = 1,  [GG_I8] = 1,    [GG_BOOL] = 1, [GG_U16] = 2, [GG_I16] = 2,   [GG_U32] = 4,
    [GG_I32] = 4, [GG_FLOAT] = 4, [GG_U64] = 8,  [GG_I64] = 8, [GG_DOUBLE] = 8};

static bool take_type(gg_cursor *c, uint8_t *type)
{
    uint32_t number;
    if (!gg_take_u32(c, &number)) return false;
    if (number >= GG_VALUE_TYPES) return gg_fail(c, "%" PRIu32 " is no type of a value", number);
    *type = (uint8_t)number;
    return true;
}

static bool check_bools(gg_cursor *c, const unsigned char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] > 1) return gg_fail(c, "a boolean is %d, neither 0 nor 1", bytes[i]);
    }
    return true;
}

static bool take_number(gg_cursor *c, gg_pair *pair)
{
    unsigned char bytes[8] = {0};
    size_t n = value_bytes[pair->type];
    if (!gg_take(c, bytes, n)) return false;
    for (size_t i = n; i-- > 0;) pair->value.bits = pair->value.bits << 8 | bytes[i];
    return pair->type != GG_BOOL || check_bools(c, bytes, 1);
}

/* A tokenizer may be one long text (tokenizer.huggingface.json), which nothing here reads: it is not
 * kept.  Nor is a value that is no text, though legal. */
static bool take_string(gg_cursor *c, gg_pair *pair)
{
    size_t length, most = strncmp(pair->key, "tokenizer.", 10) ? GG_STRING_MAX : SIZE_MAX;
    if (!gg_take_length(c, most, &length)) return false;
    if (length > GG_STRING_MAX) return gg_skip(c, length);
    if (!gg_keep_text(c, length, &pair->value.text)) return false;
    if (!io_utf8_text(pair->value.text, length)) pair->value.text = NULL;
    return true;
}

static bool skip_strings(gg_cursor *c, uint64_t n)
{
    size_t length;
    if (n > gg_rest(c) / 8)
        return gg_fail(c, "an array of %" PRIu64 " strings is longer than the rest of the header",
                       n);
    while (n-- > 0) {
        if (!gg_take_length(c, GG_STRING_MAX, &length) || !gg_skip(c, length)) return false;
    }
    return true;
}

static bool is_integer(uint8_t type)
{
    return value_bytes[type] > 0 && type != GG_FLOAT && type != GG_DOUBLE && type != GG_BOOL;
}

static bool take_array(gg_cursor *c, gg_pair *pair)
{
    if (!take_type(c, &pair->element)) return false;
    if (pair->element == GG_ARRAY) return gg_fail(c, "an array holds arrays");
    if (!gg_take_u64(c, &pair->count)) return false;
    if (pair->element == GG_STRING) return skip_strings(c, pair->count);
    size_t width = value_bytes[pair->element];
    if (pair->count > gg_rest(c) / width)
        return gg_fail(c, "an array of %" PRIu64 " values is longer than the rest of the header",
                       pair->count);
    size_t n = pair->count * width; /* at most the rest */
    unsigned char *bytes = gg_keep(c, n);
    if (!bytes || !gg_take(c, bytes, n)) return false;
    pair->value.bytes = bytes;
    return pair->element != GG_BOOL || check_bools(c, bytes, n);
}

static bool take_value(gg_cursor *c, gg_pair *pair)
{
    if (!take_type(c, &pair->type)) return false;
    if (pair->type == GG_STRING) return take_string(c, pair);
    if (pair->type == GG_ARRAY) return take_array(c, pair);
    return take_number(c, pair);
}

static bool take_pair(gg_cursor *c)
{
    gg_part *p = c->part;
    gg_pair pair = {.at = (uint32_t)c->at};
    if (!gg_take_name(c, &pair.key)) return false;
    c->what = "key";
    c->name = pair.key;
    if (!take_value(c, &pair)) return false;
    c->name = NULL;
    gg_pair *list = io_grown(p->pairs, p->pair_count, &p->pair_room, sizeof pair);
    if (!list) return gg_no_memory(c);
    p->pairs = list;
    list[p->pair_count++] = pair;
    return true;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp((*(const gg_pair *const *)a)->key, (*(const gg_pair *const *)b)->key);
}

/* Sorting, unlike hashing, cannot be slowed down by chosen keys. */
static bool sort_pairs(gg_cursor *c)
{
    gg_part *p = c->part;
    p->by_key = malloc((p->pair_count + 1) * sizeof *p->by_key);
    if (!p->by_key) return gg_no_memory(c);
    for (size_t i = 0; i < p->pair_count; i++) p->by_key[i] = &p->pairs[i];
    qsort(p->by_key, p->pair_count, sizeof *p->by_key, compare_keys);
    for (size_t i = 1; i < p->pair_count; i++) {
        if (compare_keys(&p->by_key[i - 1], &p->by_key[i]) != 0) continue;
        c->what = "key";
        c->name = p->by_key[i]->key;
        c->token = p->by_key[i]->at;
        return gg_fail(c, "the key occurs twice");
    }
    return true;
}

static bool take_alignment(gg_cursor *c)
{
    int64_t value = 32;
    const gg_pair *pair = gg_pair_find(c->part, "general.alignment");
    if (pair) {
        c->what = "key";
        c->name = pair->key;
        c->token = pair->at;
        if (!is_integer(pair->type)) return gg_fail(c, "the value is no integer");
        if (!gg_pair_integer(pair, &value) || value == 0 || (value & (value - 1)) != 0 ||
            value > GG_ALIGNMENT_MAX)
            return gg_fail(c, "the value is no power of two up to %d", GG_ALIGNMENT_MAX);
        c->name = NULL;
    }
    c->part->alignment = (size_t)value;
    return true;
}

bool gg_take_pairs(gg_cursor *c, uint64_t n)
{
    while (n-- > 0) {
        if (!take_pair(c)) return false;
    }
    return sort_pairs(c) && take_alignment(c);
}

/* ---- values ---------------------------------------------------------------------------------- */

const gg_pair *gg_pair_find(const gg_part *part, const char *key)
{
    const gg_pair wanted = {.key = key}, *at = &wanted;
    const gg_pair **hit = bsearch(&at, part->by_key, part->pair_count, sizeof at, compare_keys);
    return hit ? *hit : NULL;
}

/* The integer of a type whose bytes are the low ones of bits; false if it is none, negative or more
 * than 2^63-1. */
static bool to_integer(uint8_t type, uint64_t bits, int64_t *value)
{
    if (!is_integer(type)) return false;
    bool is_signed = type == GG_I8 || type == GG_I16 || type == GG_I32 || type == GG_I64;
    int top = 8 * value_bytes[type] - 1;
    if (bits > INT64_MAX || (is_signed && bits >> top)) return false;
    *value = (int64_t)bits;
    return true;
}

bool gg_pair_integer(const gg_pair *pair, int64_t *value)
{
    return to_integer(pair->type, pair->value.bits, value);
}

/* The pair of file with that key and type, or NULL. */
static const gg_pair *find(const gg_file *file, const char *key, gg_value_type type)
{
    const gg_pair *pair = gg_pair_find(&file->parts[0], key);
    return pair && pair->type == type ? pair : NULL;
}

bool gg_integer(const gg_file *file, const char *key, int64_t *value)
{
    const gg_pair *pair = gg_pair_find(&file->parts[0], key);
    return pair && gg_pair_integer(pair, value);
}

/* A signed integer keeps its sign here. */
static double signed_real(const gg_pair *pair)
{
    int unused = 64 - 8 * value_bytes[pair->type];
    return (double)((int64_t)(pair->value.bits << unused) >> unused);
}

static double pair_real(const gg_pair *pair)
{
    uint64_t bits = pair->value.bits;
    float narrow;
    double wide;
    switch (pair->type) {
    case GG_FLOAT:
        memcpy(&narrow, &(uint32_t){(uint32_t)bits}, sizeof narrow);
        return (double)narrow;
    case GG_DOUBLE: memcpy(&wide, &bits, sizeof wide); return wide;
    case GG_U8:
    case GG_U16:
    case GG_U32:
    case GG_U64: return (double)bits;
    case GG_I8:
    case GG_I16:
    case GG_I32:
    case GG_I64: return signed_real(pair);
    default: return NAN;
    }
}

bool gg_real(const gg_file *file, const char *key, double *value)
{
    const gg_pair *pair = gg_pair_find(&file->parts[0], key);
    double real = pair ? pair_real(pair) : NAN;
    if (!isfinite(real)) return false;
    *value = real;
    return true;
}

bool gg_bool(const gg_file *file, const char *key, bool *value)
{
    const gg_pair *pair = find(file, key, GG_BOOL);
    if (pair) *value = pair->value.bits != 0;
    return pair != NULL;
}

bool gg_string(const gg_file *file, const char *key, const char **value)
{
    const gg_pair *pair = find(file, key, GG_STRING);
    if (!pair || !pair->value.text) return false;
    *value = pair->value.text;
    return true;
}

bool gg_has(const gg_file *file, const char *key)
{
    return gg_pair_find(&file->parts[0], key) != NULL;
}

bool gg_array(const gg_file *file, const char *key, size_t *count)
{
    const gg_pair *pair = find(file, key, GG_ARRAY);
    if (!pair || !pair->value.bytes) return false;
    *count = pair->count;
    return true;
}

/* Element i as a pair of its own; false if there is none. */
static bool element(const gg_file *file, const char *key, size_t i, gg_pair *one)
{
    const gg_pair *pair = find(file, key, GG_ARRAY);
    if (!pair || !pair->value.bytes || i >= pair->count) return false;
    size_t width = value_bytes[pair->element];
    *one = (gg_pair){.type = pair->element == GG_BOOL ? GG_U8 : pair->element};
    for (size_t b = width; b-- > 0;)
        one->value.bits = one->value.bits << 8 | pair->value.bytes[i * width + b];
    return true;
}

bool gg_array_integer(const gg_file *file, const char *key, size_t i, int64_t *value)
{
    gg_pair one;
    return element(file, key, i, &one) && gg_pair_integer(&one, value);
}

bool gg_array_real(const gg_file *file, const char *key, size_t i, double *value)
{
    gg_pair one;
    double real = element(file, key, i, &one) ? pair_real(&one) : NAN;
    if (!isfinite(real)) return false;
    *value = real;
    return true;
}

size_t gg_keys(const gg_file *file)
{
    return file->parts[0].pair_count;
}

const char *gg_key(const gg_file *file, size_t i)
{
    return file->parts[0].pairs[i].key;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_cursor.c - goes through a GGUF header from front to back, a window of the file at a time.
 *
 * It owns the rules of bytes and strings: nothing is longer than what the file has left, and nothing
 * is allocated before that is known. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/gguf_file.h"
#include "io/io_error.h"
#include "io/utf8.h"

enum { WINDOW = 16384 };

bool gg_cursor_open(gg_cursor *c, gg_part *part, io_error *error)
{
    *c = (gg_cursor){.part = part, .error = error};
    if (part->in.fd < 0) {
        c->window = part->in.memory;
        c->window_size = part->in.size;
        return true;
    }
    c->buffer = malloc(WINDOW);
    c->window = c->buffer;
    return c->buffer || gg_no_memory(c);
}

void gg_cursor_close(gg_cursor *c)
{
    free(c->buffer);
}

bool gg_fail(gg_cursor *c, const char *format, ...)
{
    char rule[200];
    va_list values;
    va_start(values, format);
    vsnprintf(rule, sizeof rule, format, values);
    va_end(values);
    const char *path = c->part->in.path;
    if (c->name)
        c->status = io_fail(c->error, IO_E_FORMAT, path, "%s \"%.*s\": %s at byte %zu", c->what,
                            io_clip(c->name), c->name, rule, c->token);
    else
        c->status = io_fail(c->error, IO_E_FORMAT, path, "%s at byte %zu", rule, c->token);
    return false;
}

bool gg_no_memory(gg_cursor *c)
{
    c->status = io_no_memory(c->error, c->part->in.path);
    return false;
}

size_t gg_rest(const gg_cursor *c)
{
    size_t end = c->part->in.size < GG_HEADER_MAX ? c->part->in.size : GG_HEADER_MAX;
    return end - c->at;
}

/* Whether n more bytes are there; the token starts here. */
static bool has(gg_cursor *c, size_t n)
{
    c->token = c->at;
    if (n <= gg_rest(c)) return true;
    if (c->part->in.size > GG_HEADER_MAX)
        return gg_fail(c, "the header is longer than %d bytes", GG_HEADER_MAX);
    return gg_fail(c, "the file ends inside the header, after %zu bytes,", c->part->in.size);
}

static bool read_at(gg_cursor *c, void *dst, size_t n)
{
    c->status = io_file_read(&c->part->in, c->at, dst, n, c->error);
    return c->status == IO_OK;
}

/* Moves the window so that it starts at the next byte. */
static bool move_window(gg_cursor *c)
{
    size_t left = c->part->in.size - c->at;
    c->window_size = 0;
    if (!read_at(c, c->buffer, left < WINDOW ? left : WINDOW)) return false;
    c->window_at = c->at;
    c->window_size = left < WINDOW ? left : WINDOW;
    return true;
}

bool gg_take(gg_cursor *c, void *dst, size_t n)
{
    if (!has(c, n)) return false;
    size_t skipped = c->at - c->window_at; /* windows never lie ahead */
    bool inside = skipped <= c->window_size && n <= c->window_size - skipped;
    if (!inside && n > WINDOW) {
        if (!read_at(c, dst, n)) return false;
    } else if (n > 0) {
        if (!inside && !move_window(c)) return false;
        memcpy(dst, c->window + (c->at - c->window_at), n);
    }
    c->at += n;
    return true;
}

bool gg_skip(gg_cursor *c, size_t n)
{
    if (!has(c, n)) return false;
    c->at += n;
    return true;
}

static uint64_t little_endian(const unsigned char *bytes, int n)
{
    uint64_t value = 0;
    while (n-- > 0) value = value << 8 | bytes[n];
    return value;
}

bool gg_take_u32(gg_cursor *c, uint32_t *value)
{
    unsigned char bytes[4];
    if (!gg_take(c, bytes, sizeof bytes)) return false;
    *value = (uint32_t)little_endian(bytes, sizeof bytes);
    return true;
}

bool gg_take_u64(gg_cursor *c, uint64_t *value)
{
    unsigned char bytes[8];
    if (!gg_take(c, bytes, sizeof bytes)) return false;
    *value = little_endian(bytes, sizeof bytes);
    return true;
}

void *gg_keep(gg_cursor *c, size_t n)
{
    void *kept = io_keep_bytes(&c->part->keep, n);
    if (!kept) gg_no_memory(c);
    return kept;
}

bool gg_take_length(gg_cursor *c, size_t most, size_t *length)
{
    uint64_t n;
    if (!gg_take_u64(c, &n)) return false;
    if (n > most) return gg_fail(c, "a string of %" PRIu64 " bytes is longer than %zu", n, most);
    if (n > gg_rest(c))
        return gg_fail(c, "a string of %" PRIu64 " bytes is longer than the rest of the header", n);
    *length = n;
    return true;
}

bool gg_keep_text(gg_cursor *c, size_t length, const char **text)
{
    size_t start = c->token;
    char *kept = gg_keep(c, length + 1);
    if (!kept || !gg_take(c, kept, length)) return false;
    kept[length] = '\0';
    *text = kept;
    c->token = start;
    return true;
}

bool gg_take_name(gg_cursor *c, const char **name)
{
    size_t length;
    if (!gg_take_length(c, GG_STRING_MAX, &length) || !gg_keep_text(c, length, name)) return false;
    if (!io_utf8_text(*name, length)) return gg_fail(c, "a name is not UTF-8 without a NUL");
    return true;
}

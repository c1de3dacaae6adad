/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_bytes.c - puts GGUF files together from scripts. */
#include "gguf_bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct builder {
    file_bytes file;
    size_t room;
} builder;

static void put(builder *b, const void *bytes, size_t n)
{
    if (b->file.size + n > b->room) {
        b->room = 2 * (b->file.size + n) + 64;
        b->file.bytes = realloc(b->file.bytes, b->room);
        assert_non_null(b->file.bytes);
    }
    memcpy(b->file.bytes + b->file.size, bytes, n);
    b->file.size += n;
}

static void put_integer(builder *b, uint64_t value, size_t n)
{
    unsigned char bytes[8];
    for (size_t i = 0; i < n; i++) bytes[i] = (unsigned char)(value >> 8 * i);
    put(b, bytes, n);
}

static void put_fill(builder *b, size_t n, int counts)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = counts ? (unsigned char)i : 'x';
        put(b, &byte, 1);
    }
}

static uint64_t number(const char *text)
{
    return text[0] == '-' ? (uint64_t)strtoll(text, NULL, 0) : strtoull(text, NULL, 0);
}

/* Decodes text[0 .. n) into out, of at least as many bytes; how many there are. */
static size_t decode(const char *text, size_t n, char *out)
{
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        out[used] = text[i];
        if (text[i] == '\\') {
            char digits[3] = {text[i + 1], text[i + 2], '\0'};
            out[used] = (char)strtol(digits, NULL, 16);
            i += 2;
        }
        used++;
    }
    return used;
}

static void put_text(builder *b, const char *text, size_t n, int with_length)
{
    char bytes[256];
    assert_true(n <= sizeof bytes);
    n = decode(text, n, bytes);
    if (with_length) put_integer(b, n, 8);
    put(b, bytes, n);
}

static void put_key(builder *b, const char *text)
{
    const char *equals = strrchr(text, '=');
    assert_non_null(equals);
    put_text(b, text, (size_t)(equals - text), 1);
    put_integer(b, number(equals + 1), 4);
}

static void put_tensor(builder *b, const char *text)
{
    const char *fields[8];
    int count = 0;
    for (const char *at = strchr(text, ','); at; at = strchr(at + 1, ',')) {
        assert_true(count < 8);
        fields[count++] = at + 1;
    }
    assert_true(count >= 2);
    put_text(b, text, (size_t)(fields[0] - 1 - text), 1);
    put_integer(b, (uint64_t)count - 2, 4);
    for (int i = 2; i < count; i++) put_integer(b, number(fields[i]), 8);
    put_integer(b, number(fields[0]), 4);
    put_integer(b, number(fields[1]), 8);
}

static void put_head(builder *b, const char *text)
{
    const char *comma = strchr(text, ',');
    assert_non_null(comma);
    put(b, "GGUF\3\0\0\0", 8);
    put_integer(b, number(text), 8);
    put_integer(b, number(comma + 1), 8);
}

static void put_word(builder *b, const char *word)
{
    const char *text = word + 1;
    size_t n = strlen(text);
    float narrow = strtof(text, NULL);
    double wide = strtod(text, NULL);
    switch (word[0]) {
    case 'B': put_integer(b, number(text), 1); break;
    case 'H': put_integer(b, number(text), 2); break;
    case 'W': put_integer(b, number(text), 4); break;
    case 'Q': put_integer(b, number(text), 8); break;
    case 'F': put(b, &narrow, sizeof narrow); break;
    case 'G': put(b, &wide, sizeof wide); break;
    case 'S': put_text(b, text, n, 1); break;
    case 'T': put_text(b, text, n, 0); break;
    case 'X': put_integer(b, number(text), 8); /* fall through */
    case 'Y': put_fill(b, number(text), 0); break;
    case 'P':
        while (b->file.size % number(text) != 0) put_integer(b, 0, 1);
        break;
    case 'D': put_fill(b, number(text), 1); break;
    case 'M': put_head(b, text); break;
    case 'K': put_key(b, text); break;
    case 'V': put_tensor(b, text); break;
    default: fail_msg("no word of a script: %s", word);
    }
}

file_bytes gguf_bytes(const char *script)
{
    builder b = {.file = {.bytes = malloc(1)}, .room = 1};
    assert_non_null(b.file.bytes);
    while (*script) {
        char word[300];
        size_t n = strcspn(script, " ");
        assert_true(n < sizeof word);
        memcpy(word, script, n);
        word[n] = '\0';
        script += n + (script[n] == ' ');
        if (n == 0) continue;
        char *star = strchr("STK", word[0]) ? NULL : strchr(word, '*');
        size_t times = 1;
        if (star) {
            times = number(star + 1);
            *star = '\0';
        }
        while (times-- > 0) put_word(&b, word);
    }
    return b.file;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* json_value.c - values of any kind: numbers as JSON has them, words, whatever is to be skipped. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json_scan.h"

enum { NUMBER_MAX = 1000 }; /* characters of a number that becomes a double */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Whether word stands at s->at. */
static bool stands(const io_json *s, const char *word)
{
    size_t length = strlen(word);
    return s->size - s->at >= length && memcmp(s->text + s->at, word, length) == 0;
}

static bool read_word(io_json *s, io_json_value *value)
{
    static const struct {
        const char *word;
        io_json_kind kind;
    } words[] = {{"null", IO_JSON_NULL},     {"false", IO_JSON_FALSE}, {"true", IO_JSON_TRUE},
                 {"Infinity", IO_JSON_REAL}, {"NaN", IO_JSON_REAL},    {"-Infinity", IO_JSON_REAL}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (!stands(s, words[i].word)) continue;
        size_t length = strlen(words[i].word);
        *value = (io_json_value){words[i].kind, s->text + s->at, length};
        s->at += length;
        return true;
    }
    return io_json_fail(s, "a value is expected");
}

/* Skips digits; whether there was one. */
static bool digits(io_json *s)
{
    size_t start = s->at;
    while (s->at < s->size && is_digit(s->text[s->at])) s->at++;
    return s->at > start;
}

static bool one_of(io_json *s, const char *set)
{
    if (s->at == s->size || !memchr(set, s->text[s->at], strlen(set))) return false;
    s->at++;
    return true;
}

/* A number, which starts with a digit, or with a minus. */
static bool read_number(io_json *s, io_json_value *value)
{
    size_t start = s->at;
    *value = (io_json_value){.kind = IO_JSON_INTEGER, .text = s->text + start};
    one_of(s, "-");
    bool zero = s->at < s->size && s->text[s->at] == '0';
    size_t whole = s->at;
    if (!digits(s)) return io_json_fail(s, "a number lacks digits");
    if (zero && s->at - whole > 1) return io_json_fail(s, "a number starts with 0");
    if (one_of(s, ".")) {
        value->kind = IO_JSON_REAL;
        if (!digits(s)) return io_json_fail(s, "a number lacks digits");
    }
    if (one_of(s, "eE")) {
        value->kind = IO_JSON_REAL;
        one_of(s, "+-");
        if (!digits(s)) return io_json_fail(s, "a number lacks digits");
    }
    value->length = s->at - start;
    return true;
}

bool io_json_read(io_json *s, io_json_value *value)
{
    int first = io_json_peek(s);
    if (first == '{' || first == '[') {
        *value = (io_json_value){.kind = first == '{' ? IO_JSON_OBJECT : IO_JSON_ARRAY};
        return io_json_open(s, (char)first);
    }
    if (first == '"') {
        *value = (io_json_value){.kind = IO_JSON_STRING};
        return io_json_string(s, &value->text);
    }
    if (first < 0) return io_json_fail(s, "a value is expected");
    bool number = is_digit((char)first) || (first == '-' && !stands(s, "-I"));
    return number ? read_number(s, value) : read_word(s, value);
}

/* One bit for each open list, the innermost lowest: 1 for an object. */
bool io_json_skip(io_json *s, int depth_max)
{
    uint64_t objects = 0;
    int depth = 0;
    for (;;) {
        io_json_value value;
        if (!io_json_read(s, &value)) return false;
        size_t members = 1; /* enough to know that there was one */
        if (value.kind == IO_JSON_ARRAY || value.kind == IO_JSON_OBJECT) {
            if (depth++ == depth_max) return io_json_fail(s, "lists are nested too deeply");
            objects = objects << 1 | (value.kind == IO_JSON_OBJECT);
            members = 0;
        }
        while (depth > 0 && !io_json_next(s, objects & 1 ? '}' : ']', members)) {
            if (s->rule) return false;
            objects >>= 1;
            depth--;
            members = 1;
        }
        if (depth == 0) return true;
        const char *key;
        if ((objects & 1) && !io_json_key(s, &key)) return false;
    }
}

bool io_json_to_integer(const io_json_value *value, int64_t *integer)
{
    if (value->kind != IO_JSON_INTEGER) return false;
    bool negative = value->text[0] == '-';
    int64_t number = 0;
    for (size_t i = negative; i < value->length; i++) {
        int digit = value->text[i] - '0';
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_sub_overflow(number, digit, &number)) /* -2^63 has no positive counterpart */
            return false;
    }
    if (!negative && __builtin_sub_overflow(0, number, &number)) return false;
    *integer = number;
    return true;
}

/* The decimal exponent at the end of a number, kept where adding to it cannot overflow: text is what
 * follows the e. */
static int exponent_of(const char *text, size_t n)
{
    bool negative = n > 0 && text[0] == '-';
    int exponent = 0;
    for (size_t i = n > 0 && !is_digit(text[0]); i < n; i++) {
        exponent = exponent * 10 + (text[i] - '0');
        if (exponent > 10 * NUMBER_MAX) exponent = 10 * NUMBER_MAX;
    }
    return negative ? -exponent : exponent;
}

/* strtod reads the point that the locale has.  So it is given none: all digits as a whole number,
 * and an exponent that makes up for it.  NaN and Infinity it reads as that, which is not finite. */
bool io_json_to_real(const io_json_value *value, double *real)
{
    bool number = value->kind == IO_JSON_INTEGER || value->kind == IO_JSON_REAL;
    if (!number || value->length > NUMBER_MAX) return false;
    char plain[NUMBER_MAX + 32], *out = plain;
    int exponent = 0;
    bool fraction = false;
    for (size_t i = 0; i < value->length; i++) {
        char c = value->text[i];
        if (c == 'e' || c == 'E') {
            exponent += exponent_of(value->text + i + 1, value->length - i - 1);
            break;
        }
        exponent -= fraction && is_digit(c);
        if (c == '.')
            fraction = true;
        else
            *out++ = c;
    }
    snprintf(out, sizeof plain - (size_t)(out - plain), "e%d", exponent);
    double result = strtod(plain, NULL);
    if (!isfinite(result)) return false;
    *real = result;
    return true;
}

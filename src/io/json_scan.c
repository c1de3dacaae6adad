/* SPDX-License-Identifier: Apache-2.0 */
/* json_scan.c - owns the lexical rules of JSON.  Refuses invalid UTF-8 (overlong forms,
 * surrogates, code points above U+10FFFF), control bytes, NUL, lone surrogates, unknown escapes,
 * and, where an integer is asked for, every number that is no int64_t >= 0. */
#include "io/json_scan.h"

#include <string.h>

#include "checked.h"
#include "io/utf8.h"

bool io_json_fail(io_json *s, const char *rule)
{
    s->rule = rule;
    return false;
}

int io_json_peek(io_json *s)
{
    while (s->at < s->size && memchr(" \t\n\r", s->text[s->at], 4)) s->at++;
    s->token = s->at;
    return s->at < s->size ? (unsigned char)s->text[s->at] : -1;
}

static bool expect(io_json *s, char wanted, const char *rule)
{
    if (io_json_peek(s) != wanted) return io_json_fail(s, rule);
    s->at++;
    return true;
}

bool io_json_open(io_json *s, char bracket)
{
    return expect(s, bracket, bracket == '{' ? "an object is expected" : "an array is expected");
}

bool io_json_next(io_json *s, char closing_bracket, size_t members_read)
{
    if (io_json_peek(s) == closing_bracket) {
        s->at++;
        return false;
    }
    return members_read == 0 || expect(s, ',', "a comma or closing bracket is expected");
}

bool io_json_end(io_json *s)
{
    if (io_json_peek(s) != -1) return io_json_fail(s, "text follows the JSON object");
    return true;
}

/* Writes code, no surrogate and at most U+10FFFF, as UTF-8 and returns the end of it. */
static char *put_utf8(char *out, uint32_t code)
{
    int tail = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char lead[] = {0x00, 0xC0, 0xE0, 0xF0};
    *out++ = (char)(lead[tail] | code >> 6 * tail);
    while (tail-- > 0) *out++ = (char)(0x80 | (code >> 6 * tail & 0x3F));
    return out;
}

static bool hex4(io_json *s, uint32_t *unit)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    if (s->size - s->at < 4) return io_json_fail(s, "the text ends inside a string");
    *unit = 0;
    for (int i = 0; i < 4; i++) {
        const char *digit = memchr(digits, s->text[s->at++], sizeof digits - 1);
        if (!digit) return io_json_fail(s, "\\u is not followed by four hexadecimal digits");
        uint32_t value = (uint32_t)(digit - digits);
        *unit = *unit << 4 | (value < 16 ? value : value - 6);
    }
    return true;
}

/* Decodes what follows \u: one code point, of one or two UTF-16 units. */
static bool unescape_unicode(io_json *s, char **out)
{
    uint32_t code, low;
    if (!hex4(s, &code)) return false;
    if (code == 0) return io_json_fail(s, "a string holds a NUL");
    if (code >= 0xD800 && code <= 0xDFFF) {
        bool pair = code < 0xDC00 && s->size - s->at >= 2 && !memcmp(s->text + s->at, "\\u", 2);
        if (!pair) return io_json_fail(s, "a surrogate stands alone");
        s->at += 2;
        if (!hex4(s, &low)) return false;
        if (low < 0xDC00 || low > 0xDFFF) return io_json_fail(s, "a surrogate stands alone");
        code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
    }
    *out = put_utf8(*out, code);
    return true;
}

static bool unescape(io_json *s, char **out)
{
    static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (s->size - s->at < 2) return io_json_fail(s, "the text ends inside a string");
    char escape = s->text[s->at + 1];
    s->at += 2;
    if (escape == 'u') return unescape_unicode(s, out);
    const char *known = memchr(escapes, escape, sizeof escapes - 1);
    if (!known) return io_json_fail(s, "an escape is unknown");
    *(*out)++ = meanings[known - escapes];
    return true;
}

/* Copies one character that is not escaped. */
static bool copy_character(io_json *s, char **out)
{
    if ((unsigned char)s->text[s->at] < 0x20)
        return io_json_fail(s, "a string holds a control byte");
    size_t length = io_utf8_length((unsigned char *)s->text + s->at, s->size - s->at);
    if (length == 0) return io_json_fail(s, "a string is not valid UTF-8");
    memmove(*out, s->text + s->at, length);
    *out += length;
    s->at += length;
    return true;
}

bool io_json_string(io_json *s, const char **value)
{
    if (!expect(s, '"', "a string is expected")) return false;
    size_t start = s->token;
    char *out = s->text + s->at;
    *value = out;
    for (;;) {
        s->token = s->at;
        if (s->at == s->size) return io_json_fail(s, "the text ends inside a string");
        char c = s->text[s->at];
        if (c == '"') break;
        if (!(c == '\\' ? unescape(s, &out) : copy_character(s, &out))) return false;
    }
    *out = '\0'; /* never past the closing quote: decoding does not lengthen */
    s->at++;
    s->token = start;
    return true;
}

bool io_json_key(io_json *s, const char **value)
{
    if (!io_json_string(s, value)) return false;
    size_t start = s->token;
    if (!expect(s, ':', "a colon is expected")) return false;
    s->token = start;
    return true;
}

static bool is_digit(int c)
{
    return c >= '0' && c <= '9';
}

bool io_json_integer(io_json *s, int64_t *value)
{
    int first = io_json_peek(s);
    if (first == '-') return io_json_fail(s, "a number is negative");
    if (!is_digit(first)) return io_json_fail(s, "a number is expected");
    size_t number = 0;
    for (; s->at < s->size && is_digit(s->text[s->at]); s->at++) {
        size_t digit = (size_t)(s->text[s->at] - '0');
        if (!checked_mul(number, 10, &number) || !checked_add(number, digit, &number) ||
            number > INT64_MAX)
            return io_json_fail(s, "a number exceeds 2^63-1");
    }
    if (first == '0' && s->at - s->token > 1) return io_json_fail(s, "a number starts with 0");
    if (s->at < s->size && memchr(".eE", s->text[s->at], 3))
        return io_json_fail(s, "a number is not whole");
    *value = (int64_t)number;
    return true;
}
